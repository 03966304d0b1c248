//! A client of HTTP/2, for calls from gateway to gateway: hyper's over a socket of this core.
//!
//! One connection carries many calls; dropping a call resets its stream, so the other side learns that nobody waits. Per core. What
//! is said is the caller's business.

use std::{
    io,
    panic::AssertUnwindSafe,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use futures_lite::{AsyncRead, AsyncWrite, FutureExt};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http2::{self, SendRequest};

use crate::readiness::Socket;

/// hyper's view of a socket.
struct ClientIo(Socket);

impl hyper::rt::Read for ClientIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut buf: hyper::rt::ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let mut scratch = [0; 16 * 1024];
        let room = scratch.len().min(buf.remaining());
        let read = std::task::ready!(Pin::new(&mut self.0).poll_read(cx, &mut scratch[..room]))?;
        buf.put_slice(&scratch[..read]);
        Poll::Ready(Ok(()))
    }
}

impl hyper::rt::Write for ClientIo {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_close(cx)
    }
}

/// Spawns hyper's tasks on this core. A panic ends its call, not the core.
#[derive(Clone, Copy, Debug)]
struct Here;

impl<F: Future<Output = ()> + 'static> hyper::rt::Executor<F> for Here {
    fn execute(&self, future: F) {
        glommio::spawn_local(async {
            if AssertUnwindSafe(future).catch_unwind().await.is_err() {
                tracing::error!("a task of a call to another gateway panicked");
            }
        })
        .detach();
    }
}

/// One connection to another gateway.
#[derive(Clone, Debug)]
pub struct Client {
    sender: SendRequest<Full<Bytes>>,
}

/// What a call says beside its body.
#[derive(Debug)]
pub struct Post<'a> {
    pub authority: &'a str,
    pub path: &'a str,
    pub fields: &'a [(&'static str, &'a str)],
    pub body: Bytes,
    /// The most an answer may have.
    pub answer_bytes_max: usize,
}

impl Client {
    /// Speaks HTTP/2 with prior knowledge over `stream`.
    pub async fn over(stream: Socket) -> Result<Self, String> {
        let handshake = http2::Builder::new(Here)
            .initial_stream_window_size(2 * 1024 * 1024)
            .initial_connection_window_size(16 * 1024 * 1024)
            .handshake(ClientIo(stream));
        let (sender, connection) = handshake.await.map_err(|error| error.to_string())?;
        glommio::spawn_local(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection to another gateway ended early");
            }
        })
        .detach();
        Ok(Self { sender })
    }

    pub fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    /// Sends a request and reads the whole answer. Gives its status and body.
    pub async fn post(&self, post: Post<'_>) -> Result<(u16, Bytes), String> {
        let mut request = http::Request::post(format!("http://{}{}", post.authority, post.path));
        for (name, value) in post.fields {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(post.body)).map_err(|error| error.to_string())?;
        let mut sender = self.sender.clone();
        sender.ready().await.map_err(|error| error.to_string())?;
        let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
        let status = response.status().as_u16();
        let body = Limited::new(response.into_body(), post.answer_bytes_max).collect().await;
        Ok((status, body.map_err(|error| error.to_string())?.to_bytes()))
    }
}
