//! One listening socket of one core: accept, count, hand to a connection task.
//!
//! glommio's `accept` loses connections when it is raced with anything, so it stands alone in its loop; it ends by shutting the
//! listening socket. A connection over the bound is answered 503 and closed, so the client knows.

use std::{
    cell::Cell,
    net::SocketAddr,
    os::fd::{AsRawFd, RawFd},
    panic::AssertUnwindSafe,
    rc::Rc,
    time::Duration,
};

use futures_lite::FutureExt;
use glommio::net::{TcpListener, TcpStream};

use super::{Connections, conn, socket};
use crate::{
    api::{context::Context, frame::DrainPhase},
    config::resolve::Roles,
};

/// Pause after an accept that failed for want of resources (EMFILE): the queue stays, the core does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(10);

/// A listener and what serves its connections.
#[derive(Debug)]
pub struct Listener {
    pub addr: SocketAddr,
    pub roles: Roles,
    listener: TcpListener,
    fd: RawFd,
    closed: Cell<bool>,
    ctx: Rc<Context>,
    connections: Rc<Connections>,
}

impl Listener {
    pub fn new(socket: socket2::Socket, roles: Roles, ctx: Rc<Context>, connections: Rc<Connections>) -> Option<Rc<Self>> {
        let addr = socket.local_addr().ok()?.as_socket()?;
        let fd = socket.as_raw_fd();
        let listener = socket::into_listener(socket);
        Some(Rc::new(Self { addr, roles, listener, fd, closed: Cell::new(false), ctx, connections }))
    }

    /// Accepts until [`Listener::close`].
    pub async fn run(self: Rc<Self>) {
        while !self.closed.get() {
            match self.listener.accept().await {
                Ok(stream) => self.serve(stream),
                Err(_) if self.closed.get() => return,
                Err(error) => {
                    tracing::warn!(%error, addr = %self.addr, "accept failed");
                    glommio::timer::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Serves what the kernel already took in, then stops listening.
    pub fn close(&self) {
        if self.closed.replace(true) {
            return;
        }
        for stream in socket::accept_pending(self.fd) {
            self.serve(stream);
        }
        socket::shutdown(self.fd, std::net::Shutdown::Both);
    }

    fn serve(&self, stream: TcpStream) {
        let cells = &self.ctx.metrics.cells;
        cells.accepted.add(1);
        if let Err(error) = socket::prepare_accepted(&stream) {
            tracing::debug!(%error, "an accepted socket was gone at once");
            return;
        }
        let over = self.connections.len() >= self.ctx.config.borrow().http.connections_max;
        if over {
            cells.connections_refused.add(1);
        }
        let (ctx, connections, roles) = (Rc::clone(&self.ctx), Rc::clone(&self.connections), self.roles);
        glommio::spawn_local(async move {
            let served = async {
                if over {
                    conn::refuse(&ctx, &connections, stream).await;
                } else {
                    conn::serve(&ctx, &connections, stream, roles).await;
                }
            };
            if AssertUnwindSafe(served).catch_unwind().await.is_err() {
                ctx.metrics.cells.panics.add(1);
                tracing::error!("a connection task panicked; the connection is closed");
            }
        })
        .detach();
    }

    /// Whether connections accepted now are to be closed soon.
    pub fn is_draining(&self) -> bool {
        self.ctx.drain_phase() != DrainPhase::Serving
    }
}
