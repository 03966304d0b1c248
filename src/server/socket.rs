//! Listening sockets: made by hand, so that every option is ours.

use std::{io, net::SocketAddr};

use socket2::{Domain, Protocol, Socket, Type};

/// Connections the kernel holds for us until they are accepted.
pub const BACKLOG: i32 = 4096;

/// A listening socket that shares its port with the other cores'.
pub fn listen(addr: SocketAddr) -> io::Result<Socket> {
    let socket = reserve(addr)?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

/// The same before it listens: the kernel gives it no connection yet.
pub fn reserve(addr: SocketAddr) -> io::Result<Socket> {
    let kind = Type::STREAM.cloexec().nonblocking();
    let socket = Socket::new(Domain::for_address(addr), kind, Some(Protocol::TCP))?;
    // Without it a restart would fail while old connections are in TIME_WAIT.
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    // Accepted sockets inherit it: an answer must not wait for the client's ACK.
    socket.set_tcp_nodelay(true)?;
    socket.bind(&addr.into())?;
    Ok(socket)
}

/// Whether something listens on the address already: SO_REUSEPORT alone would share it with a stranger of the same user.
pub fn is_taken(addr: SocketAddr) -> bool {
    if addr.port() == 0 {
        return false;
    }
    let probe = Socket::new(Domain::for_address(addr), Type::STREAM.cloexec(), Some(Protocol::TCP));
    let bound = probe.and_then(|socket| {
        socket.set_reuse_address(true)?;
        socket.bind(&addr.into())?;
        socket.listen(1)
    });
    matches!(bound, Err(error) if error.kind() == io::ErrorKind::AddrInUse)
}
