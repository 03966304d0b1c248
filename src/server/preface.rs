//! What comes before HTTP on a connection: the PROXY header of a load balancer, the TLS handshake.
//!
//! ```text
//!   accepted > [PROXY header, if the address is one of http.proxy_from] > [TLS, on a tls_addr] > HTTP
//! ```
//!
//! Both together have one deadline. A connection that fails here gets no answer: there is nothing yet in which one could be given.
//! Per core. Only connections that need it come here: a plain one goes straight to [`conn::serve`].

use std::{future::poll_fn, io, net::IpAddr, rc::Rc, time::Duration};

use futures_lite::AsyncReadExt;

use super::{Connections, Listed, conn};
use crate::{
    api::{Arrival, context::Context},
    config::{Cidr, Roles},
    limits,
    proto::{
        Stream, proxy_protocol,
        tls::{self, Acceptor, Failure},
        watch::Phase,
    },
    readiness::Socket,
};

/// How a connection begins.
#[derive(Debug)]
pub struct Door {
    pub roles: Roles,
    /// It came from a load balancer that says for whom.
    pub is_proxied: bool,
    /// It speaks TLS.
    pub tls: Option<Acceptor>,
}

/// Whether the address is in one of the blocks.
pub fn is_in(blocks: &[Cidr], address: Option<IpAddr>) -> bool {
    address.is_some_and(|address| blocks.iter().any(|block| block.contains(address)))
}

/// Reads the preface, then serves the connection until it ends.
pub async fn serve(ctx: &Rc<Context>, connections: &Rc<Connections>, mut socket: Socket, door: Door) {
    let open = conn::Open::new(ctx);
    let listed = connections.list(&socket);
    listed.watch.enter(Phase::Preface, Some(Duration::from_millis(limits::PREFACE_MS_MAX)));
    let mut client = socket.peer_ip();
    if door.is_proxied {
        match proxy_header(&mut socket).await {
            Ok(header) => client = header.client.or(client),
            Err(error) => {
                ctx.metrics.cells.proxy_headers_failed.add(1);
                tracing::debug!(%error, ?client, "a load balancer's PROXY header");
                return;
            }
        }
    }
    let (stream, is_h2) = match door.tls {
        None if door.roles.tls => return tracing::error!("a listener over TLS has no certificate"),
        None => (Stream::Plain(socket), None),
        Some(acceptor) => {
            // On the heap: it is large, and short-lived.
            let Some(tls) = Box::pin(handshake(ctx, &listed, &acceptor, socket, client)).await else { return };
            let is_h2 = tls::is_h2(&tls);
            (Stream::Tls(Box::new(tls)), is_h2)
        }
    };
    // The time it took was the client's too: it has not been able to send a request.
    listed.watch.set_ready();
    let arrival = Arrival { roles: door.roles, client };
    conn::serve_entered(ctx, connections, conn::Entered { open, listed, stream, arrival, is_h2 }).await;
}

async fn handshake(
    ctx: &Context,
    listed: &Listed,
    acceptor: &Acceptor,
    socket: Socket,
    client: Option<IpAddr>,
) -> Option<tls::TlsStream> {
    match acceptor.accept(socket, Rc::clone(&listed.watch)).await {
        Ok(stream) => {
            ctx.metrics.cells.tls_handshakes.add(1);
            ctx.metrics.cells.tls_resumed.add(u64::from(tls::is_resumed(&stream)));
            Some(stream)
        }
        Err(error) => {
            let failure = if listed.watch.is_expired() { Failure::Timeout } else { Failure::of(&error) };
            ctx.metrics.tls_failures[failure as usize].add(1);
            tracing::debug!(%error, ?failure, ?client, "a TLS handshake failed");
            None
        }
    }
}

/// Reads the header, and not a byte more.
async fn proxy_header(socket: &mut Socket) -> io::Result<proxy_protocol::Header> {
    let mut buffer = vec![0; proxy_protocol::HEADER_BYTES_MAX];
    let mut seen = 0;
    loop {
        seen = poll_fn(|cx| socket.poll_peek(cx, &mut buffer, seen)).await?;
        let parsed = proxy_protocol::parse(&buffer[..seen]);
        if let Some(header) = parsed.map_err(|wrong| io::Error::new(io::ErrorKind::InvalidData, wrong.0))? {
            socket.read_exact(&mut buffer[..header.bytes]).await?;
            return Ok(header);
        }
    }
}
