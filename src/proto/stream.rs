//! What a connection's bytes come through: the socket itself, or TLS over it.
//!
//! One type for both, so that whatever serves a connection is compiled once; a plain one pays a branch per call. Per core. Only a
//! plain stream can move to another core: the state of a TLS session stays where it was made.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use futures_lite::{AsyncRead, AsyncWrite};

use super::tls::TlsStream;
use crate::readiness::Socket;

/// See the module text.
#[derive(Debug)]
pub enum Stream {
    Plain(Socket),
    /// On the heap: most connections are plain, and it is large.
    Tls(Box<TlsStream>),
}

impl Stream {
    /// The socket under it.
    pub fn socket(&self) -> &Socket {
        match self {
            Self::Plain(socket) => socket,
            Self::Tls(tls) => tls.get_ref().0.socket(),
        }
    }

    /// Whether it can move to another core.
    pub fn is_plain(&self) -> bool {
        matches!(self, Self::Plain(_))
    }

    /// The socket alone, of a stream that is plain.
    pub fn into_plain(self) -> Option<Socket> {
        match self {
            Self::Plain(socket) => Some(socket),
            Self::Tls(_) => None,
        }
    }
}

impl Stream {
    /// Over TLS, says that nothing more comes (close_notify); what the socket does not take at once is not waited for.
    pub fn say_close(&mut self) {
        if let Self::Tls(tls) = self {
            // It fails when the client is gone already.
            let _ = Pin::new(tls).poll_close(&mut Context::from_waker(std::task::Waker::noop()));
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_read(cx, buffer),
            Self::Tls(tls) => Pin::new(tls).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_write(cx, bytes),
            Self::Tls(tls) => Pin::new(tls).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_flush(cx),
            Self::Tls(tls) => Pin::new(tls).poll_flush(cx),
        }
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_close(cx),
            Self::Tls(tls) => Pin::new(tls).poll_close(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_stream_is_as_small_as_its_socket() {
        assert_eq!(size_of::<Stream>(), size_of::<Socket>());
    }
}
