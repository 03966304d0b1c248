//! HTTP/1.1 on one connection: read a head, read its body, write an answer, in that order, strictly.
//!
//! ```text
//!   recv --> [ one fixed buffer ] --parse--> Head (borrowed) --> the caller's plan (owned)
//!                     |-- body: copied once into its own Bytes, or received straight into it when it is larger
//!   answer: gathered in one Vec, written with one send
//! ```
//!
//! Invariants: whatever the buffer holds beyond one request stays for the next (pipelining); a body is never longer than the
//! caller allowed; after any [`Malformed`] the caller answers, lets the rest pass by, and closes. Deadlines are the [`Watch`]'s.

use std::{
    future::{Future, poll_fn},
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_lite::{AsyncRead, AsyncWrite, AsyncWriteExt};

use super::{
    date,
    head::{Framing, Head, Malformed, Version, parse_h1},
    reply::{Body, BodySource, Reply, reason},
    watch::{Phase, Watch},
};
use crate::{config::resolve::HttpConfig, limits};

/// The HTTP/2 connection preface; a cleartext client that knows starts with it (RFC 9113 section 3.3).
pub const H2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Bytes of a chunk header as we write it: eight hex digits and CRLF, patched when the length is known.
const CHUNK_HEADER_BYTES: usize = 10;

/// What of a request is left once its head was given to the caller.
#[derive(Clone, Copy, Debug)]
pub struct Pending {
    pub framing: Framing,
    pub version: Version,
    pub keep_alive: bool,
    pub expects_continue: bool,
    /// A HEAD request: the answer has no body.
    pub bodiless: bool,
    /// Bytes of the head, for [`H1::rewind`].
    pub head_bytes: usize,
}

/// One connection. `S` is the plain or the TLS stream.
#[derive(Debug)]
pub struct H1<S> {
    stream: S,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    out: Vec<u8>,
    watch: Rc<Watch>,
    config: Rc<HttpConfig>,
    /// When the first byte of the request being read was there.
    began: Option<Instant>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> H1<S> {
    pub fn new(stream: S, watch: Rc<Watch>, config: Rc<HttpConfig>) -> Self {
        let bytes = limits::READ_BUFFER_BYTES.max(config.head_bytes_max + 1024);
        let (buffer, out) = (vec![0; bytes].into(), Vec::with_capacity(512));
        Self { stream, buffer, start: 0, end: 0, out, watch, config, began: None }
    }

    /// A connection of which some bytes were read elsewhere. The time that took is in no figure.
    pub fn resume(stream: S, unread: &[u8], watch: Rc<Watch>, config: Rc<HttpConfig>) -> Self {
        let mut this = Self::new(stream, watch, config);
        if this.buffer.len() < unread.len() {
            this.buffer = vec![0; unread.len()].into();
        }
        this.buffer[..unread.len()].copy_from_slice(unread);
        this.end = unread.len();
        this
    }

    /// Whether the first bytes are the HTTP/2 preface. Waits for as many as it takes to tell.
    pub async fn is_h2(&mut self) -> Result<bool, Malformed> {
        self.watch.enter(Phase::Idle, Some(self.config.idle_timeout));
        loop {
            let got = &self.buffer[self.start..self.end];
            if !got.is_empty() && self.watch.phase() == Phase::Idle {
                self.watch.enter(Phase::Head, Some(self.config.head_timeout));
            }
            let common = got.len().min(H2_PREFACE.len());
            if got[..common] != H2_PREFACE[..common] {
                return Ok(false);
            }
            if common == H2_PREFACE.len() {
                return Ok(true);
            }
            if self.fill().await? == 0 {
                return Ok(false);
            }
            self.began.get_or_insert_with(Instant::now);
        }
    }

    /// Gives up the stream and the bytes read but not used.
    pub fn into_parts(self) -> (S, Bytes) {
        let unread = Bytes::copy_from_slice(&self.buffer[self.start..self.end]);
        (self.stream, unread)
    }

    /// Reads one head and gives it to `plan`, with the time its first byte was there (for one that had to wait for the answer
    /// before it: the time it is looked at). `None`: the client closed between requests.
    pub async fn next<T>(
        &mut self,
        plan: impl FnOnce(&Head<'_>, Instant) -> T,
    ) -> Result<Option<(T, Pending)>, Malformed> {
        self.watch.enter(Phase::Idle, Some(self.config.idle_timeout));
        let mut plan = Some(plan);
        loop {
            if self.start < self.end {
                let bytes = &self.buffer[self.start..self.end];
                let (plan, began) = (&mut plan, &mut self.began);
                let take = |head: &Head<'_>, head_bytes| {
                    let pending = Pending {
                        framing: head.framing,
                        version: head.version,
                        keep_alive: head.keep_alive,
                        expects_continue: head.expects_continue,
                        bodiless: head.method == super::Method::Head,
                        head_bytes,
                    };
                    let began = began.take().unwrap_or_else(Instant::now);
                    plan.take().map(|plan| (plan(head, began), pending))
                };
                if let Some(next) = parse_h1(bytes, self.config.head_bytes_max, self.config.target_bytes_max, take)? {
                    let (planned, pending) = next.ok_or(Malformed::Cut)?;
                    self.start += pending.head_bytes;
                    self.watch.enter(Phase::Handler, None);
                    return Ok(Some((planned, pending)));
                }
                if self.watch.phase() == Phase::Idle {
                    self.watch.enter(Phase::Head, Some(self.config.head_timeout));
                }
            }
            if self.fill().await? == 0 {
                return if self.start == self.end || self.watch.phase() == Phase::Idle {
                    Ok(None)
                } else if self.watch.is_expired() {
                    Err(Malformed::HeadTimeout)
                } else {
                    Err(Malformed::Cut)
                };
            }
            self.began.get_or_insert_with(Instant::now);
        }
    }

    /// Makes the head that [`H1::next`] just gave unread again. Nothing was read since.
    pub fn rewind(&mut self, pending: &Pending) {
        self.start -= pending.head_bytes;
    }

    /// Reads the whole body, at most `bytes_max` of it.
    pub async fn body(&mut self, pending: &mut Pending, bytes_max: usize) -> Result<Bytes, Malformed> {
        if pending.framing == Framing::Length(0) {
            return Ok(Bytes::new());
        }
        self.watch.enter(Phase::Body, Some(self.config.body_timeout));
        if std::mem::take(&mut pending.expects_continue) && self.start == self.end {
            self.out.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
            self.flush().await.map_err(|_| Malformed::Cut)?;
            self.watch.enter(Phase::Body, Some(self.config.body_timeout));
        }
        let body = match pending.framing {
            Framing::Length(length) => match usize::try_from(length) {
                Ok(length) if length <= bytes_max => self.sized(length).await?,
                _ => return Err(Malformed::BodyTooLarge),
            },
            Framing::Chunked | Framing::Stream(_) => self.chunked(bytes_max).await?,
        };
        pending.framing = Framing::Length(0);
        self.watch.enter(Phase::Handler, None);
        Ok(body)
    }

    async fn sized(&mut self, length: usize) -> Result<Bytes, Malformed> {
        if self.end - self.start >= length {
            let body = Bytes::copy_from_slice(&self.buffer[self.start..self.start + length]);
            self.start += length;
            return Ok(body);
        }
        let mut body = vec![0; length];
        let mut filled = self.end - self.start;
        body[..filled].copy_from_slice(&self.buffer[self.start..self.end]);
        self.start = self.end;
        while filled < length {
            let got = read(&mut self.stream, &mut body[filled..]).await;
            match got {
                Ok(0) | Err(_) => return Err(self.cut_in_body()),
                Ok(n) => filled += n,
            }
        }
        Ok(body.into())
    }

    async fn chunked(&mut self, bytes_max: usize) -> Result<Bytes, Malformed> {
        let mut body = Vec::new();
        loop {
            let size = parse_chunk_size(self.line().await?)?;
            if size == 0 {
                break;
            }
            if size > (bytes_max - body.len()) as u64 {
                return Err(Malformed::BodyTooLarge);
            }
            let mut left = usize::try_from(size).map_err(|_| Malformed::BodyTooLarge)?;
            body.reserve(left);
            while left > 0 {
                if self.start == self.end && self.fill().await? == 0 {
                    return Err(self.cut_in_body());
                }
                let take = left.min(self.end - self.start);
                body.extend_from_slice(&self.buffer[self.start..self.start + take]);
                self.start += take;
                left -= take;
            }
            if !self.line().await?.is_empty() {
                return Err(Malformed::Syntax("a chunk does not end where its size says"));
            }
        }
        let mut trailer_bytes = 0;
        loop {
            let line = self.line().await?.len();
            trailer_bytes += line;
            if line == 0 {
                return Ok(body.into());
            }
            if trailer_bytes > limits::HEAD_BYTES_MAX {
                return Err(Malformed::HeadTooLarge);
            }
        }
    }

    /// One line of a chunked body without its CRLF.
    async fn line(&mut self) -> Result<&[u8], Malformed> {
        let mut looked = 0;
        let len = loop {
            let got = &self.buffer[self.start..self.end];
            if let Some(at) = memchr::memchr(b'\n', &got[looked..]) {
                break looked + at;
            }
            looked = got.len();
            if looked > 1024 {
                return Err(Malformed::Syntax("a chunk line is too long"));
            }
            if self.fill().await? == 0 {
                return Err(self.cut_in_body());
            }
        };
        let line = self.start;
        self.start += len + 1;
        self.buffer[line..line + len].strip_suffix(b"\r").ok_or(Malformed::Syntax("a chunk line ends in a bare LF"))
    }

    fn cut_in_body(&self) -> Malformed {
        if self.watch.is_expired() { Malformed::BodyTimeout } else { Malformed::Cut }
    }

    /// Passes by the rest of a refused body. True when the connection may go on: all of it was already here.
    pub fn skip_buffered(&mut self, pending: &Pending) -> bool {
        let Framing::Length(length) = pending.framing else { return false };
        let here = (self.end - self.start) as u64;
        if length > here || (pending.expects_continue && length > 0 && here == 0) {
            return false;
        }
        self.start += usize::try_from(length).unwrap_or(0);
        true
    }

    /// After the last answer: says that nothing more comes, and reads what the client still sends for a while, so that the
    /// kernel does not reset the connection over the answer.
    pub async fn close(mut self) {
        if self.stream.close().await.is_err() {
            return;
        }
        self.watch.enter(Phase::Discard, Some(Duration::from_millis(limits::REFUSED_BODY_MS_MAX)));
        let mut passed = 0;
        while passed < limits::REFUSED_BODY_BYTES_MAX {
            match read(&mut self.stream, &mut self.buffer).await {
                Ok(0) | Err(_) => return,
                Ok(n) => passed += n,
            }
        }
    }

    /// Resolves when the client has gone. What it sends meanwhile is kept for the next request.
    pub async fn gone(&mut self) {
        loop {
            if self.end == self.buffer.len() && self.start == 0 {
                // The buffer is full of pipelined requests; the write will tell whether the client is there.
                return std::future::pending().await;
            }
            if !matches!(self.fill().await, Ok(n) if n > 0) {
                return;
            }
        }
    }

    /// Reads more into the buffer; 0 at the end of the stream.
    async fn fill(&mut self) -> Result<usize, Malformed> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.end == self.buffer.len() {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
            if self.end == self.buffer.len() {
                return Err(Malformed::HeadTooLarge);
            }
        }
        // An error while reading (reset, time-out) is the same as the end to everybody above.
        let got = if self.watch.phase() == Phase::Idle {
            let (stream, buffer, watch) = (&mut self.stream, &mut self.buffer[self.end..], &self.watch);
            // A drain ends the wait only when the socket has nothing: what a client has sent is answered.
            poll_fn(|cx| match Pin::new(&mut *stream).poll_read(cx, buffer) {
                Poll::Pending if watch.ends_idle(cx) => Poll::Ready(Ok(0)),
                read => read,
            })
            .await
        } else {
            read(&mut self.stream, &mut self.buffer[self.end..]).await
        }
        .unwrap_or(0);
        self.end += got;
        Ok(got)
    }

    // === answers ===

    /// Writes the whole answer. `Err`: the client did not take it all, or the answer was cut on purpose.
    pub async fn answer(&mut self, mut reply: Reply, pending: &Pending, close: bool) -> io::Result<()> {
        self.watch.enter(Phase::Write, Some(self.config.write_timeout));
        let body = std::mem::replace(&mut reply.body, Body::Empty);
        self.head_lines(&reply, &body, pending, close);
        match body {
            Body::Bytes(bytes) if !pending.bodiless => {
                if bytes.len() <= limits::WRITE_CHUNK_BYTES {
                    self.out.extend_from_slice(&bytes);
                    self.flush().await?;
                } else {
                    self.flush().await?;
                    for piece in bytes.chunks(limits::WRITE_CHUNK_BYTES) {
                        // The deadline is for progress, not for the whole.
                        self.watch.enter(Phase::Write, Some(self.config.write_timeout));
                        self.stream.write_all(piece).await?;
                    }
                }
            }
            Body::Source(source) if !pending.bodiless => {
                self.stream_body(source, pending.version != Version::Http10).await?;
            }
            _ => self.flush().await?,
        }
        if let Some(on_sent) = reply.on_sent.take() {
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
            Body::Source(_) if pending.version == Version::Http10 => {}
            Body::Source(_) => out.extend_from_slice(b"Transfer-Encoding: chunked\r\n"),
            _ if reply.status == 204 => {}
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

    async fn stream_body(&mut self, mut source: Box<dyn BodySource>, chunked: bool) -> io::Result<()> {
        loop {
            let header_at = self.out.len();
            if chunked {
                self.out.extend_from_slice(b"00000000\r\n");
            }
            let data_at = self.out.len();
            let piece = poll_fn(|cx| Poll::Ready(source.poll_piece(cx, &mut self.out))).await;
            let piece = match piece {
                Poll::Ready(piece) => piece,
                Poll::Pending => {
                    // What is ready goes out before waiting for more.
                    self.out.truncate(header_at);
                    self.flush().await?;
                    self.watch.enter(Phase::Handler, None);
                    if chunked {
                        self.out.extend_from_slice(b"00000000\r\n");
                    }
                    let piece = poll_fn(|cx| source.poll_piece(cx, &mut self.out)).await;
                    self.watch.enter(Phase::Write, Some(self.config.write_timeout));
                    self.finish_piece(0, if chunked { CHUNK_HEADER_BYTES } else { 0 }, chunked);
                    if self.ends(piece, chunked)? {
                        return self.flush().await;
                    }
                    continue;
                }
            };
            self.finish_piece(header_at, data_at, chunked);
            if self.ends(piece, chunked)? {
                return self.flush().await;
            }
            if self.out.len() >= limits::WRITE_CHUNK_BYTES {
                self.flush().await?;
            }
        }
    }

    /// Patches the chunk header of the piece just appended, or removes it when the piece is empty.
    fn finish_piece(&mut self, header_at: usize, data_at: usize, chunked: bool) {
        let mut len = self.out.len() - data_at;
        if !chunked {
            return;
        }
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

    /// Whether the body is over; appends the last chunk when it ended well.
    fn ends(&mut self, piece: Option<Result<(), super::reply::Aborted>>, chunked: bool) -> io::Result<bool> {
        match piece {
            Some(Ok(())) => Ok(false),
            Some(Err(_)) => Err(io::ErrorKind::ConnectionAborted.into()),
            None => {
                if chunked {
                    self.out.extend_from_slice(b"0\r\n\r\n");
                }
                Ok(true)
            }
        }
    }

    async fn flush(&mut self) -> io::Result<()> {
        if self.watch.phase() == Phase::Write {
            self.watch.enter(Phase::Write, Some(self.config.write_timeout));
        }
        let result = self.stream.write_all(&self.out).await;
        self.out.clear();
        if self.out.capacity() > 2 * limits::WRITE_CHUNK_BYTES {
            // One large answer must not keep its buffer for the life of an idle connection.
            self.out.shrink_to(512);
        }
        result
    }
}

/// Size in hex, at most eight digits; extensions are passed over.
fn parse_chunk_size(line: &[u8]) -> Result<u64, Malformed> {
    let wrong = Malformed::Syntax("a chunk size is not a hex number");
    let end = line.iter().position(|b| !b.is_ascii_hexdigit()).unwrap_or(line.len());
    if end == 0 || end > 8 || (end < line.len() && line[end] != b';') {
        return Err(wrong);
    }
    if line.iter().any(|b| matches!(b, b'\r' | 0)) {
        return Err(wrong);
    }
    let digits = std::str::from_utf8(&line[..end]).map_err(|_| wrong)?;
    u64::from_str_radix(digits, 16).map_err(|_| wrong)
}

/// One read. Dropping it loses nothing: bytes leave the socket only when it resolves.
fn read<'a, S: AsyncRead + Unpin>(
    stream: &'a mut S,
    into: &'a mut [u8],
) -> impl Future<Output = io::Result<usize>> + 'a {
    poll_fn(move |cx: &mut Context<'_>| Pin::new(&mut *stream).poll_read(cx, into))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunk_sizes_are_read_strictly() {
        assert_eq!(parse_chunk_size(b"1f"), Ok(31));
        assert_eq!(parse_chunk_size(b"00A;name=value"), Ok(10));
        for bad in [&b""[..], b"-1", b"0x1", b" 1", b"1 ", b"123456789", b"g", b"1\r"] {
            assert!(parse_chunk_size(bad).is_err(), "{bad:?}");
        }
    }
}
