//! The answer half of an HTTP/1.1 connection: head lines, chunks, trailers, and who is told what was written.
//!
//! ```text
//!   source --pieces--> [ out: at most one write's worth and a message ] --flush--> socket --> what was handed over is told
//!      | pending: what is ready goes out, then source and client are watched together
//! ```
//!
//! Invariants: the deadline is for progress, so each partial write arms it anew, and waiting for the source has none; a body that
//! did not end well never gets a plain last chunk, and its `on_sent` is dropped.

use std::{future::poll_fn, io, pin::Pin, task::Poll, time::Duration};

use bytes::Bytes;
use futures_lite::{AsyncRead, AsyncWrite, AsyncWriteExt, future::yield_now};

use super::{H1, Pending};
use crate::{
    limits,
    proto::{
        date,
        head::Version,
        reply::{Aborted, Body, BodySource, Reply, reason},
        watch::{Phase, Watch},
    },
};

/// Bytes of a chunk header as we write it: eight hex digits and CRLF, patched when the length is known.
const CHUNK_HEADER: &[u8] = b"00000000\r\n";
/// Of an `X-Error` trailer; the rest of the text is cut off.
const ERROR_BYTES_MAX: usize = 512;

type Piece = Option<Result<(), Aborted>>;

/// How a body of unknown length looks on this connection.
#[derive(Clone, Copy)]
struct Coding {
    /// In chunks; else the connection's end is its end (HTTP/1.0).
    chunked: bool,
    /// An error after the first byte is told in a trailer.
    trailers: bool,
}

impl Coding {
    fn of(pending: &Pending) -> Self {
        let chunked = pending.version != Version::Http10;
        Self { chunked, trailers: chunked && pending.takes_trailers }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> H1<S> {
    /// Writes the whole answer. `Err`: the client did not take it all, or the answer was cut on purpose.
    pub async fn answer(&mut self, mut reply: Reply, pending: &Pending, close: bool) -> io::Result<()> {
        let body = std::mem::replace(&mut reply.body, Body::Empty);
        self.head_lines(&reply, &body, pending, close);
        let is_whole = match body {
            Body::Bytes(bytes) if !pending.bodiless => {
                self.bytes_body(&bytes).await?;
                true
            }
            Body::Source(source) if !pending.bodiless => self.source_body(source, Coding::of(pending)).await?,
            _ => {
                self.flush().await?;
                true
            }
        };
        if let Some(on_sent) = reply.on_sent.take().filter(|_| is_whole) {
            on_sent.sent();
        }
        Ok(())
    }

    fn head_lines(&mut self, reply: &Reply, body: &Body, pending: &Pending, close: bool) {
        let out = &mut self.out;
        out.extend_from_slice(b"HTTP/1.1 ");
        let mut digits = itoa::Buffer::new();
        out.extend_from_slice(digits.format(reply.status).as_bytes());
        out.push(b' ');
        out.extend_from_slice(reason(reply.status).as_bytes());
        out.extend_from_slice(b"\r\nServer: kateway\r\nDate: ");
        out.extend_from_slice(&date::cached());
        out.extend_from_slice(b"\r\n");
        out.extend_from_slice(reply.lines());
        match body {
            Body::Source(_) => {
                let coding = Coding::of(pending);
                if coding.chunked {
                    out.extend_from_slice(b"Transfer-Encoding: chunked\r\n");
                }
                if coding.trailers {
                    out.extend_from_slice(b"Trailer: X-Error\r\n");
                }
            }
            _ if matches!(reply.status, 101 | 204) => {}
            Body::Empty => out.extend_from_slice(b"Content-Length: 0\r\n"),
            Body::Bytes(bytes) => {
                out.extend_from_slice(b"Content-Length: ");
                out.extend_from_slice(digits.format(bytes.len()).as_bytes());
                out.extend_from_slice(b"\r\n");
            }
        }
        if close {
            out.extend_from_slice(b"Connection: close\r\n");
        } else if pending.version == Version::Http10 {
            out.extend_from_slice(b"Connection: keep-alive\r\n");
        }
        out.extend_from_slice(b"\r\n");
    }

    async fn bytes_body(&mut self, bytes: &Bytes) -> io::Result<()> {
        if bytes.len() <= limits::WRITE_CHUNK_BYTES {
            self.out.extend_from_slice(bytes);
            return self.flush().await;
        }
        self.flush().await?;
        write(&mut self.stream, &self.watch, self.config.write_timeout, bytes).await
    }

    /// Writes pieces until the source ends. Gives whether it ended well.
    async fn source_body(&mut self, mut source: Box<dyn BodySource>, coding: Coding) -> io::Result<bool> {
        loop {
            let piece = match self.gather(source.as_mut(), coding).await {
                Some(piece) => piece,
                None if self.out.is_empty() => self.wait(source.as_mut(), coding).await?,
                None => {
                    // What is ready goes out before waiting for more.
                    self.flush_of(source.as_mut()).await?;
                    yield_now().await;
                    continue;
                }
            };
            match piece {
                Some(Ok(())) if self.out.len() < limits::WRITE_CHUNK_BYTES => {}
                Some(Ok(())) => {
                    self.flush_of(source.as_mut()).await?;
                    // A source that always has more, and a client that always takes it, must not keep the core.
                    yield_now().await;
                }
                Some(Err(aborted)) => return self.cut(source.as_mut(), &aborted, coding).await.map(|()| false),
                None => {
                    if coding.chunked {
                        self.out.extend_from_slice(b"0\r\n\r\n");
                    }
                    return self.flush_of(source.as_mut()).await.map(|()| true);
                }
            }
        }
    }

    /// One more piece; `None` when the source has none ready.
    async fn gather(&mut self, source: &mut dyn BodySource, coding: Coding) -> Option<Piece> {
        let header_at = self.out.len();
        let polled = poll_fn(|cx| {
            self.begin_chunk(coding);
            Poll::Ready(source.poll_piece(cx, &mut self.out))
        });
        match polled.await {
            Poll::Ready(piece) => {
                self.finish_chunk(header_at, coding);
                Some(piece)
            }
            Poll::Pending => {
                self.out.truncate(header_at);
                None
            }
        }
    }

    /// Waits for the source's next piece, however long that takes, or for the client to go.
    async fn wait(&mut self, source: &mut dyn BodySource, coding: Coding) -> io::Result<Piece> {
        self.watch.enter(Phase::Handler, None);
        let piece = poll_fn(|cx| {
            // Its going is looked at first: a piece made in the same round would be written to nobody.
            if self.poll_gone(cx).is_ready() {
                return Poll::Ready(Err(io::Error::from(io::ErrorKind::ConnectionAborted)));
            }
            self.begin_chunk(coding);
            let polled = source.poll_piece(cx, &mut self.out);
            if polled.is_pending() {
                self.out.clear();
            }
            polled.map(Ok)
        })
        .await?;
        self.finish_chunk(0, coding);
        Ok(piece)
    }

    fn begin_chunk(&mut self, coding: Coding) {
        if coding.chunked {
            self.out.extend_from_slice(CHUNK_HEADER);
        }
    }

    /// Patches the header of the chunk just appended, or removes it when the chunk is empty.
    fn finish_chunk(&mut self, header_at: usize, coding: Coding) {
        if !coding.chunked {
            return;
        }
        let mut len = self.out.len() - header_at - CHUNK_HEADER.len();
        if len == 0 {
            self.out.truncate(header_at);
            return;
        }
        for digit in self.out[header_at..header_at + 8].iter_mut().rev() {
            *digit = b"0123456789abcdef"[len & 15];
            len >>= 4;
        }
        self.out.extend_from_slice(b"\r\n");
    }

    /// Ends a body that cannot go on: by a last chunk with the reason, or with an error, which has the connection closed.
    async fn cut(&mut self, source: &mut dyn BodySource, aborted: &Aborted, coding: Coding) -> io::Result<()> {
        let Some(text) = aborted.0.as_ref().filter(|_| coding.trailers) else {
            return Err(io::ErrorKind::ConnectionAborted.into());
        };
        self.out.extend_from_slice(b"0\r\nX-Error: ");
        let visible = |b: u8| if (0x20..=0x7e).contains(&b) { b } else { b'?' };
        self.out.extend(text.bytes().take(ERROR_BYTES_MAX).map(visible));
        self.out.extend_from_slice(b"\r\n\r\n");
        self.flush_of(source).await
    }

    /// Flushes, and tells whom the source names.
    async fn flush_of(&mut self, source: &mut dyn BodySource) -> io::Result<()> {
        self.flush().await?;
        if let Some(handed_over) = source.handed_over() {
            handed_over.sent();
        }
        Ok(())
    }

    async fn flush(&mut self) -> io::Result<()> {
        let result = write(&mut self.stream, &self.watch, self.config.write_timeout, &self.out).await;
        self.out.clear();
        if self.out.capacity() > 2 * limits::WRITE_CHUNK_BYTES {
            // One large answer must not keep its buffer for the life of an idle connection.
            self.out.shrink_to(512);
        }
        result
    }
}

/// Writes all of it. The deadline is for progress: a slow client that lives is not cut, however long the whole takes it.
pub(super) async fn write<S: AsyncWrite + Unpin>(
    stream: &mut S,
    watch: &Watch,
    write_timeout: Duration,
    mut bytes: &[u8],
) -> io::Result<()> {
    while !bytes.is_empty() {
        watch.enter(Phase::Write, Some(write_timeout));
        let taken = poll_fn(|cx| Pin::new(&mut *stream).poll_write(cx, bytes)).await?;
        if taken == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        bytes = &bytes[taken..];
    }
    stream.flush().await
}
