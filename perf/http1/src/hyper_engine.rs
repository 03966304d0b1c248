//! Engine `hyper`: hyper's HTTP/1 connection over a thin adapter of the glommio stream, the framing scanner in between.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue, SERVER};
use hyper::rt::ReadBufCursor;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};

use crate::own::READ_BUFFER_BYTES;
use crate::scanner::Scanner;
use crate::sink::{Sink, write_hex};
use crate::wire::Wire;

struct HyperIo<W> {
    wire: W,
    scanner: Scanner,
}

impl<W: Wire + Unpin> hyper::rt::Read for HyperIo<W> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        mut cursor: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        // SAFETY: the bytes are only written by recv(2), and only what it wrote is advanced over.
        let spare = unsafe { &mut *(std::ptr::from_mut(cursor.as_mut()) as *mut [u8]) };
        match this.wire.poll_recv(context, spare) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Ready(Ok(count)) => {
                if let Err(refusal) = this.scanner.scan(&spare[..count]) {
                    // Best effort, in one piece: the socket's send buffer holds it unless the peer does not read at all.
                    let text = format!("HTTP/1.1 {refusal}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
                    let _ = this.wire.poll_send(context, text.as_bytes());
                    return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
                }
                // SAFETY: recv(2) initialised `count` bytes at the cursor.
                unsafe { cursor.advance(count) };
                Poll::Ready(Ok(()))
            }
        }
    }
}

impl<W: Wire + Unpin> hyper::rt::Write for HyperIo<W> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.wire.poll_send(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(())) // the socket closes when the connection is dropped
    }
}

pub async fn serve_connection<W: Wire + Unpin>(wire: W, sink: Rc<RefCell<Sink>>) {
    let io = HyperIo { wire, scanner: Scanner::new() };
    let service = service_fn(move |request| answer(request, Rc::clone(&sink)));
    let _ =
        http1::Builder::new().max_buf_size(READ_BUFFER_BYTES).pipeline_flush(true).serve_connection(io, service).await;
}

async fn answer(request: Request<Incoming>, sink: Rc<RefCell<Sink>>) -> Result<Response<Full<Bytes>>, hyper::Error> {
    let body = request.into_body().collect().await?.to_bytes();
    let id = sink.borrow_mut().take(body);
    let mut hex = [0; 16];
    write_hex(id, &mut hex);
    let mut response = Response::new(Full::new(Bytes::from_static(b"{\"ok\":1}")));
    *response.status_mut() = StatusCode::CREATED;
    let headers = response.headers_mut();
    headers.insert(SERVER, HeaderValue::from_static("kateway"));
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Ok(value) = HeaderValue::from_bytes(&hex) {
        headers.insert(HeaderName::from_static("x-request-id"), value);
    }
    Ok(response)
}
