//! One listening socket of one core: accept, count, hand to a connection task.
//!
//! A connection over the bound is answered 503 and closed, so the client knows. Closing serves what the kernel already took in.

use std::{cell::RefCell, io, net::SocketAddr, os::fd::OwnedFd, rc::Rc, time::Duration};

use super::{
    Connections, conn,
    preface::{self, Door},
    socket::BACKLOG,
};
use crate::{
    api::{context::Context, frame::Listening},
    config::Roles,
    limits,
    readiness::{ListenSocket, Socket},
    store::notify::Notify,
};

/// Pause after an accept that failed for want of resources (EMFILE): the queue stays, the core does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(10);

/// Connections over the bound that are told so at a time.
const REFUSING_MAX: usize = 1_000;

/// A listener and what serves its connections.
#[derive(Debug)]
pub struct Listener {
    pub addr: SocketAddr,
    roles: Roles,
    /// Gone once closed.
    socket: RefCell<Option<Rc<ListenSocket>>>,
    closed: Notify,
    ctx: Rc<Context>,
    connections: Rc<Connections>,
}

impl Listener {
    pub fn new(
        socket: socket2::Socket,
        roles: Roles,
        ctx: Rc<Context>,
        connections: Rc<Connections>,
    ) -> io::Result<Rc<Self>> {
        let addr = socket.local_addr()?.as_socket().ok_or(io::ErrorKind::AddrNotAvailable)?;
        let socket = RefCell::new(Some(Rc::new(ListenSocket::adopt(OwnedFd::from(socket))?)));
        Ok(Rc::new(Self { addr, roles, socket, closed: Notify::default(), ctx, connections }))
    }

    /// Its socket, for a successor; `None` once closed.
    pub fn listening(&self) -> io::Result<Option<Listening>> {
        let Some(socket) = self.socket.borrow().clone() else { return Ok(None) };
        let fd = socket.duplicate()?;
        Ok(Some(Listening { addr: self.addr, roles: self.roles, fd }))
    }

    /// Accepts until [`Listener::close`].
    pub async fn run(self: Rc<Self>) {
        let mut accepted = 0_usize;
        if let Some(socket) = &*self.socket.borrow()
            && let Err(error) = socket.listen(BACKLOG)
        {
            tracing::error!(%error, addr = %self.addr, "no connection is taken in");
        }
        loop {
            let Some(socket) = self.socket.borrow().clone() else { return };
            let next = async { Some(socket.accept().await) };
            let closed = async {
                self.closed.wait().await;
                None
            };
            match futures_lite::future::or(next, closed).await {
                Some(Ok(stream)) => self.serve(stream),
                Some(Err(error)) => {
                    tracing::warn!(%error, addr = %self.addr, "accept failed");
                    glommio::timer::sleep(ACCEPT_PAUSE).await;
                }
                None => {
                    // What came while this task was being woken.
                    self.serve_pending(&socket);
                    return;
                }
            }
            accepted += 1;
            if accepted.is_multiple_of(limits::LOOP_ITEMS_MAX) {
                futures_lite::future::yield_now().await;
            }
        }
    }

    /// Serves what the kernel already took in, then stops listening. Where a successor holds the socket too, it goes on there.
    pub fn close(&self) {
        let Some(socket) = self.socket.borrow_mut().take() else { return };
        socket.unwatch();
        self.serve_pending(&socket);
        self.closed.ring();
    }

    fn serve_pending(&self, socket: &ListenSocket) {
        while let Ok(stream) = socket.accept_now() {
            self.serve(stream);
        }
    }

    /// What a connection begins with, unless it is HTTP.
    fn door(&self, stream: &Socket) -> Option<Door> {
        let config = self.ctx.config.borrow();
        let blocks = &config.balancers.proxy_from;
        // Who manages comes by no load balancer.
        let is_data = self.roles.publish || self.roles.subscribe;
        let is_proxied = is_data && !blocks.is_empty() && preface::is_in(blocks, stream.peer_ip());
        let tls = self.roles.tls.then(|| self.connections.tls.borrow().clone()).flatten();
        (is_proxied || self.roles.tls).then_some(Door { roles: self.roles, is_proxied, tls })
    }

    fn serve(&self, stream: Socket) {
        let cells = &self.ctx.metrics.cells;
        cells.accepted.add(1);
        let over = self.connections.len() >= self.ctx.config.borrow().http.connections_max;
        if over {
            cells.connections_refused.add(1);
            let far_over = self.connections.len() >= self.ctx.config.borrow().http.connections_max + REFUSING_MAX;
            if far_over || self.roles.tls {
                // Too many even to be told, or no way to tell without a handshake: the socket closes here.
                return;
            }
        }
        let (connections, roles) = (Rc::clone(&self.connections), self.roles);
        if let Some(door) = self.door(&stream).filter(|_| !over) {
            conn::spawn(&self.ctx, move |ctx| async move { preface::serve(&ctx, &connections, stream, door).await });
            return;
        }
        conn::spawn(&self.ctx, move |ctx| async move {
            if over {
                conn::refuse(&ctx, &connections, stream).await;
            } else {
                conn::serve(&ctx, &connections, stream, roles).await;
            }
        });
    }
}
