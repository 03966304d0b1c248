//! Raw sockets: what glommio and std leave to be done by hand.
#![allow(unsafe_code)] // The named file for socket calls; each block says what it leans on.

use std::{
    io,
    net::{Shutdown, SocketAddr},
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, RawFd},
};

use socket2::{Domain, Protocol, SockRef, Socket, Type};

/// Connections the kernel holds for us until they are accepted.
const BACKLOG: i32 = 4096;

/// A listening socket that shares its port with the other cores'.
pub fn listen(addr: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM.cloexec(), Some(Protocol::TCP))?;
    // Without it a restart would fail while old connections are in TIME_WAIT.
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    // Accepted sockets inherit it: an answer must not wait for the client's ACK.
    socket.set_tcp_nodelay(true)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
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

/// Hands a listening socket to glommio.
pub fn into_listener(socket: Socket) -> glommio::net::TcpListener {
    // SAFETY: `into_raw_fd` gives up the only owner of an open socket, and the listener becomes its new one.
    unsafe { glommio::net::TcpListener::from_raw_fd(socket.into_raw_fd()) }
}

/// Hands one end of a socket pair to glommio.
pub fn into_unix_stream(stream: std::os::unix::net::UnixStream) -> glommio::net::UnixStream {
    // SAFETY: `into_raw_fd` gives up the only owner of an open socket, and the stream becomes its new one.
    unsafe { glommio::net::UnixStream::from_raw_fd(stream.into_raw_fd()) }
}

/// Borrows an fd of the caller's for one call.
fn with_socket<T>(fd: RawFd, call: impl FnOnce(SockRef<'_>) -> T) -> T {
    // SAFETY: callers pass the fd of a socket they hold open for the whole call; nothing keeps the borrow beyond it.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    call(SockRef::from(&borrowed))
}

/// Shuts one or both directions; a socket that is gone already is as good.
pub fn shutdown(fd: RawFd, how: Shutdown) {
    with_socket(fd, |socket| {
        let _ = socket.shutdown(how);
    });
}

/// What every accepted socket needs: no inheritance by children (glommio's accept leaves that out).
pub fn prepare_accepted(stream: &impl AsRawFd) -> io::Result<()> {
    with_socket(stream.as_raw_fd(), |socket| socket.set_cloexec(true))
}

/// Accepts what the kernel already holds for a listener, without waiting.
pub fn accept_pending(listener: RawFd) -> Vec<glommio::net::TcpStream> {
    let mut accepted = Vec::new();
    with_socket(listener, |socket| {
        // The listener is about to close; its accept task ends with the error this causes.
        if socket.set_nonblocking(true).is_err() {
            return;
        }
        while let Ok((stream, _)) = socket.accept() {
            // The listening socket's mode is inherited by nobody, but be sure: glommio wants blocking sockets.
            if stream.set_nonblocking(false).is_ok() {
                // SAFETY: `into_raw_fd` gives up the only owner of an open socket, and the stream becomes its new one.
                accepted.push(unsafe { glommio::net::TcpStream::from_raw_fd(stream.into_raw_fd()) });
            }
        }
    });
    accepted
}
