//! HTTP/1.1 on one connection: read a head, read its body, write an answer, in that order, strictly.
//!
//! ```text
//!   recv --> [ one fixed buffer ] --parse--> Head (borrowed) --> the caller's plan (owned)
//!                     |-- body: copied once into its own Bytes, or received straight into it when it is larger
//!   answer: gathered in one Vec, written with one send (answer)
//! ```
//!
//! Invariants: whatever the buffer holds beyond one request stays for the next (pipelining); a body is never longer than the
//! caller allowed; after any [`Malformed`] the caller answers, lets the rest pass by, and closes. Deadlines are the [`Watch`]'s.

mod answer;
mod chunk;
mod pieces;
#[cfg(test)]
mod tests;

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

use self::chunk::Overhead;
use super::{
    Stream,
    head::{Framing, H2_PREFACE, Head, Malformed, Version, parse_h1},
    pace::Pace,
    watch::{Phase, Watch},
};
use crate::{config::resolve::HttpConfig, limits};

/// What of a request is left once its head was given to the caller.
#[derive(Clone, Copy, Debug)]
pub struct Pending {
    pub framing: Framing,
    pub version: Version,
    pub keep_alive: bool,
    pub expects_continue: bool,
    /// A HEAD request: the answer has no body.
    pub bodiless: bool,
    /// The client reads trailer fields.
    pub takes_trailers: bool,
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
    /// Of the body being read.
    pace: Pace,
    /// When the first byte of the request being read was there.
    began: Option<Instant>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> H1<S> {
    pub fn new(stream: S, watch: Rc<Watch>, config: Rc<HttpConfig>) -> Self {
        let bytes = limits::READ_BUFFER_BYTES.max(config.head_bytes_max + 1024);
        let (buffer, out) = (vec![0; bytes].into(), Vec::with_capacity(512));
        let pace = Pace::new(&config, watch.now_ms());
        Self { stream, buffer, start: 0, end: 0, out, watch, config, pace, began: None }
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

    /// The deadlines of this connection, for what it becomes.
    pub fn watch(&self) -> Rc<Watch> {
        Rc::clone(&self.watch)
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
        // A head that was begun while the protocol was being told keeps its deadline.
        if self.watch.phase() != Phase::Head {
            self.watch.enter(Phase::Idle, Some(self.config.idle_timeout));
        }
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
                        takes_trailers: head.takes_trailers,
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
                return if self.watch.phase() == Phase::Idle {
                    Ok(None)
                } else if self.watch.is_expired() {
                    Err(Malformed::HeadTimeout)
                } else if self.start == self.end {
                    Ok(None)
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
        let length = match pending.framing {
            Framing::Length(length) => match usize::try_from(length) {
                Ok(length) if length <= bytes_max => Some(length),
                _ => return Err(Malformed::BodyTooLarge),
            },
            Framing::Chunked | Framing::Stream(_) => None,
        };
        // What came with its head, as most do, has no deadline to keep.
        if let Some(length) = length.filter(|length| *length <= self.end - self.start) {
            let body = Bytes::copy_from_slice(&self.buffer[self.start..self.start + length]);
            self.start += length;
            pending.framing = Framing::Length(0);
            return Ok(body);
        }
        self.begin_body();
        if std::mem::take(&mut pending.expects_continue) && self.start == self.end {
            self.say_continue().await?;
        }
        let body = match length {
            Some(length) => self.sized(length).await?,
            None => self.chunked(bytes_max).await?,
        };
        pending.framing = Framing::Length(0);
        self.watch.enter(Phase::Handler, None);
        Ok(body)
    }

    fn begin_body(&mut self) {
        self.pace = Pace::new(&self.config, self.watch.now_ms());
        self.pace_body();
    }

    /// Reading goes on after a while that was the reader's.
    fn resume_body(&mut self) {
        self.pace.resume(self.watch.now_ms());
        self.pace_body();
    }

    fn pace_body(&mut self) {
        let (phase, within) = self.pace.phase();
        self.watch.enter(phase, Some(within));
    }

    /// So many bytes came; those of a body buy it time.
    fn came(&mut self, bytes: usize) {
        if matches!(self.watch.phase(), Phase::Body | Phase::BodyRate) && !self.watch.is_expired() {
            self.pace.got(bytes, self.watch.now_ms());
            self.pace_body();
        }
    }

    /// Asks for the body that the client holds back (RFC 9110 section 10.1.1).
    async fn say_continue(&mut self) -> Result<(), Malformed> {
        // A client that reads nothing has the time to write, not that of a body.
        let text = b"HTTP/1.1 100 Continue\r\n\r\n";
        let written = answer::write(&mut self.stream, &self.watch, self.config.write_timeout, text).await;
        self.begin_body();
        written.map_err(|_| Malformed::Cut)
    }

    async fn sized(&mut self, length: usize) -> Result<Bytes, Malformed> {
        let mut body = vec![0; length];
        let mut filled = self.end - self.start;
        body[..filled].copy_from_slice(&self.buffer[self.start..self.end]);
        self.start = self.end;
        while filled < length {
            let got = read(&mut self.stream, &mut body[filled..]).await;
            match got {
                Ok(0) | Err(_) => return Err(self.cut_in_body()),
                Ok(n) => {
                    filled += n;
                    self.came(n);
                }
            }
        }
        Ok(body.into())
    }

    async fn chunked(&mut self, bytes_max: usize) -> Result<Bytes, Malformed> {
        let mut body = Vec::new();
        let mut overhead = Overhead::default();
        loop {
            let size = self.chunk_size(&mut overhead).await?;
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
        self.trailers().await?;
        Ok(body.into())
    }

    /// The size of the next chunk; 0: the last.
    async fn chunk_size(&mut self, overhead: &mut Overhead) -> Result<u64, Malformed> {
        let line = self.line().await?;
        let size = chunk::parse_size(line)?;
        overhead.add(line.len(), size)?;
        Ok(size)
    }

    /// What stands behind the last chunk; it is passed over.
    async fn trailers(&mut self) -> Result<(), Malformed> {
        let mut trailer_bytes = 0;
        loop {
            let line = self.line().await?;
            if line.is_empty() {
                return Ok(());
            }
            chunk::check_trailer(line)?;
            trailer_bytes += line.len();
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
        match self.watch.phase() {
            Phase::Body if self.watch.is_expired() => Malformed::BodyTimeout,
            Phase::BodyRate if self.watch.is_expired() => Malformed::BodyTooSlow,
            _ => Malformed::Cut,
        }
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

    /// Counts the request that is being answered. True when the connection is to end with this answer.
    pub fn is_last(&self) -> bool {
        self.watch.count_request(self.config.max_requests, self.config.max_age)
    }

    /// Resolves when the client has gone. What it sends meanwhile is kept for the next request.
    pub async fn gone(&mut self) {
        poll_fn(|cx| self.poll_gone(cx)).await;
    }

    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if self.make_room().is_err() {
                // The buffer is full of pipelined requests; the write will tell whether the client is there.
                return Poll::Pending;
            }
            match Pin::new(&mut self.stream).poll_read(cx, &mut self.buffer[self.end..]) {
                Poll::Ready(Ok(got)) if got > 0 => self.end += got,
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// Makes the end of the buffer free; an error when the whole of it holds bytes not yet used.
    fn make_room(&mut self) -> Result<(), Malformed> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.end == self.buffer.len() {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
            if self.end == self.buffer.len() {
                return Err(Malformed::HeadTooLarge);
            }
        }
        Ok(())
    }

    /// Reads more into the buffer; 0 at the end of the stream.
    async fn fill(&mut self) -> Result<usize, Malformed> {
        self.make_room()?;
        // An error while reading (reset, time-out) is the same as the end to everybody above.
        let got = if self.watch.phase() == Phase::Idle {
            let (stream, buffer, watch) = (&mut self.stream, &mut self.buffer[self.end..], &self.watch);
            let head_timeout = self.config.head_timeout;
            // A drain ends the wait only when neither the socket nor TLS has anything: what a client has sent is answered.
            poll_fn(|cx| match Pin::new(&mut *stream).poll_read(cx, buffer) {
                Poll::Pending if watch.has_begun() => {
                    if watch.phase() == Phase::Idle {
                        watch.enter(Phase::Head, Some(head_timeout));
                    }
                    Poll::Pending
                }
                Poll::Pending if watch.ends_idle(cx) => Poll::Ready(Ok(0)),
                read => read,
            })
            .await
        } else {
            read(&mut self.stream, &mut self.buffer[self.end..]).await
        }
        .unwrap_or(0);
        self.end += got;
        self.came(got);
        Ok(got)
    }
}

impl H1<Stream> {
    /// Tells a client over TLS that the connection ends here and was not cut. A plain one sees its end.
    pub fn say_close(&mut self) {
        self.stream.say_close();
    }
}

/// One read. Dropping it loses nothing: bytes leave the socket only when it resolves.
fn read<'a, S: AsyncRead + Unpin>(
    stream: &'a mut S,
    into: &'a mut [u8],
) -> impl Future<Output = io::Result<usize>> + 'a {
    poll_fn(move |cx: &mut Context<'_>| Pin::new(&mut *stream).poll_read(cx, into))
}
