//! WebSocket (RFC 6455) on a connection that was HTTP/1.1 until its handshake ([`handshake`]).
//!
//! ```text
//!   socket --recv--> [ tungstenite: frames, masks, fragments, UTF-8 ] --> Incoming          several messages per recv, none copied
//!   put, pings, pongs, close --> [ out ] --send--> socket                                    several messages per send
//! ```
//!
//! tungstenite has the protocol's rules and no I/O of its own here: it reads straight from the socket into the buffer that messages are
//! slices of, and what it has to say goes to `out`, where data frames are put directly: a server's are not masked.
//!
//! Invariants: nothing is read while `out` holds a write's worth, so a client that does not read is not read from; after
//! [`limits::WS_READ_AT_ONCE_BYTES`] the core looks at others, whatever came of them; a ping goes out each `ping_every` whatever the
//! traffic; a client that does not answer for three of them is closed, but not while it is us who do not read; so is one whose message
//! comes slower than a body may; a client that takes no byte for the write timeout is cut, by the [`Watch`]. Per core. Knows no topic.

mod alarm;
mod close;
mod frame;
pub mod handshake;
#[cfg(test)]
mod tests;

use std::{
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_lite::{AsyncRead, AsyncWrite};
use tungstenite::{
    Error, Message,
    protocol::{Role, WebSocketConfig, WebSocketContext},
};

pub use self::{
    alarm::Alarm,
    close::{Close, Goodbye},
    frame::Opcode,
};
use super::watch::{Phase, Watch};
use crate::limits;

/// Pings in a row that a client may leave unanswered.
const PINGS_UNANSWERED_MAX: u32 = 3;
/// Of a client's control frame: two bytes and the mask.
const CONTROL_HEAD_BYTES: u64 = 6;
/// Bytes that were read and are of no message from which on messages are few among them: what is read ahead is less.
const SPARSE_BYTES: usize = 2 * limits::WS_READ_BUFFER_BYTES;

/// How a session is to be.
#[derive(Clone, Copy, Debug)]
pub struct Spec {
    /// One message; over it the client is closed with 1009.
    pub message_bytes_max: usize,
    pub ping_every: Duration,
    pub write_timeout: Duration,
    /// Of a message that was begun, and how often it is looked at, with a ping.
    pub bytes_per_s_min: u64,
    pub pace_every: Duration,
}

/// What came.
#[derive(Debug)]
pub enum Incoming {
    /// A whole message, however many fragments it had. Text is valid UTF-8. The buffer that it may be a slice of holds much that is no
    /// message: `is_sparse`.
    Message { bytes: Bytes, is_text: bool, is_sparse: bool },
    /// None comes any more.
    End(Goodbye),
}

/// One connection.
#[derive(Debug)]
pub struct Ws<S> {
    stream: S,
    context: WebSocketContext,
    out: Vec<u8>,
    /// Bytes of `out` the socket has taken.
    sent: usize,
    /// The write deadline runs.
    is_blocked: bool,
    watch: Rc<Watch>,
    spec: Spec,
    ping: Alarm,
    /// When the first ping went out that no pong has followed.
    unanswered: Option<Instant>,
    /// Everything the client has sent was read, at some time since the last ping.
    has_caught_up: bool,
    reading: Reading,
    /// Since when it is looked at whether a message that was begun goes on, what number it has, and what there was of it.
    paced: (Instant, u64, u64),
}

/// What was read.
#[derive(Debug)]
struct Reading {
    /// Bytes that may be read before the core does something else. tungstenite reads until it has a whole message, which fragments may
    /// put off for as long as they come.
    at_once: usize,
    /// Whole messages.
    messages: u64,
    /// Bytes read since the last whole message, but for control frames: what was read with that message is not in it.
    unfinished: u64,
    /// Bytes that are of no message so far; dense messages make good for what was sparse before.
    beside: usize,
}

impl Reading {
    const fn new() -> Self {
        Self { at_once: limits::WS_READ_AT_ONCE_BYTES, messages: 0, unfinished: 0, beside: 0 }
    }

    /// Nothing could be read. Gives whether there was nothing: else it was enough for now, and the task is woken to go on.
    fn has_paused(&mut self, cx: &Context<'_>) -> bool {
        let is_enough = self.at_once == 0;
        self.at_once = limits::WS_READ_AT_ONCE_BYTES;
        if is_enough {
            cx.waker().wake_by_ref();
        }
        !is_enough
    }

    fn message(&mut self, bytes: Bytes, is_text: bool) -> Incoming {
        self.messages += 1;
        self.unfinished = 0;
        let frame_bytes = bytes.len() + head_bytes(bytes.len());
        self.beside = self.beside.saturating_sub(frame_bytes + frame_bytes / 8);
        Incoming::Message { bytes, is_text, is_sparse: self.beside > SPARSE_BYTES }
    }

    fn control(&mut self, payload: &Bytes) {
        self.unfinished = self.unfinished.saturating_sub(CONTROL_HEAD_BYTES + payload.len() as u64);
    }
}

/// Of a client's frame with so much payload (RFC 6455 section 5.2).
fn head_bytes(payload: usize) -> usize {
    match payload {
        ..126 => 6,
        126..=0xffff => 8,
        _ => 14,
    }
}

/// The socket as tungstenite sees it during one poll.
struct Wire<'a, 'b, S> {
    stream: &'a mut S,
    out: &'a mut Vec<u8>,
    reading: &'a mut Reading,
    cx: &'a mut Context<'b>,
}

impl<S: AsyncRead + Unpin> io::Read for Wire<'_, '_, S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.reading.at_once == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        match Pin::new(&mut *self.stream).poll_read(self.cx, buffer) {
            Poll::Ready(read) => {
                let bytes = read?;
                self.reading.at_once = self.reading.at_once.saturating_sub(bytes);
                self.reading.unfinished += bytes as u64;
                self.reading.beside += bytes;
                Ok(bytes)
            }
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
        }
    }
}

impl<S> io::Write for Wire<'_, '_, S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Ws<S> {
    /// Takes over a connection whose handshake was answered; `unread` came behind its head.
    pub fn new(stream: S, unread: &[u8], watch: Rc<Watch>, spec: Spec) -> Self {
        watch.enter(Phase::Handler, None);
        let config = WebSocketConfig::default()
            .read_buffer_size(limits::WS_READ_BUFFER_BYTES)
            .write_buffer_size(0)
            .max_message_size(Some(spec.message_bytes_max))
            .max_frame_size(Some(spec.message_bytes_max));
        // Once slices of it are held, each new buffer gets the size of the first.
        let context = if unread.is_empty() {
            WebSocketContext::new(Role::Server, Some(config))
        } else {
            let mut first = Vec::with_capacity(limits::WS_READ_BUFFER_BYTES.max(unread.len()));
            first.extend_from_slice(unread);
            WebSocketContext::from_partially_read(first, Role::Server, Some(config))
        };
        Self {
            stream,
            context,
            out: Vec::new(),
            sent: 0,
            is_blocked: false,
            watch,
            spec,
            ping: Alarm::after(spec.ping_every),
            unanswered: None,
            has_caught_up: true,
            reading: Reading::new(),
            paced: (Instant::now(), 0, 0),
        }
    }

    /// The next message. Pings are answered on the way; what that takes goes out with the next flush, so one has to follow. Pending also
    /// while the client does not take what was put for it.
    pub fn poll_message(&mut self, cx: &mut Context<'_>) -> Poll<Incoming> {
        // Pings alone must not keep the core.
        for _ in 0..limits::LOOP_ITEMS_MAX {
            if self.unsent() >= limits::WRITE_CHUNK_BYTES {
                match self.poll_flush(cx) {
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(_)) => return Poll::Ready(Incoming::End(Goodbye::Gone)),
                    Poll::Pending => return Poll::Pending,
                }
            }
            let Self { stream, out, context, reading, .. } = self;
            let end = match context.read(&mut Wire { stream, out, reading, cx }) {
                Ok(Message::Binary(bytes)) => return Poll::Ready(self.reading.message(bytes, false)),
                Ok(Message::Text(text)) => return Poll::Ready(self.reading.message(text.into(), true)),
                Ok(Message::Close(_)) => Goodbye::Client,
                Ok(Message::Pong(payload)) => {
                    self.reading.control(&payload);
                    self.unanswered = None;
                    continue;
                }
                Ok(Message::Ping(payload)) => {
                    self.reading.control(&payload);
                    continue;
                }
                Ok(_) => continue,
                Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.has_caught_up |= self.reading.has_paused(cx);
                    return Poll::Pending;
                }
                Err(error) => Goodbye::of(&error),
            };
            return Poll::Ready(Incoming::End(end));
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Puts a data frame; it goes out with the next flush.
    pub fn put(&mut self, opcode: Opcode, parts: &[&[u8]]) {
        frame::put(opcode, parts, &mut self.out);
    }

    /// Bytes that wait for the socket.
    pub fn unsent(&self) -> usize {
        self.out.len() - self.sent
    }

    /// Writes what was put. Ready when the socket has taken all of it.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let before = self.unsent();
        let polled = self.poll_write(cx);
        match &polled {
            Poll::Pending if !self.is_blocked || self.unsent() < before => {
                // For progress, as an answer's: a slow client that lives is not cut.
                self.watch.enter(Phase::Write, Some(self.spec.write_timeout));
                self.is_blocked = true;
            }
            Poll::Ready(_) if self.is_blocked => {
                self.watch.enter(Phase::Handler, None);
                self.is_blocked = false;
            }
            _ => {}
        }
        polled
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.out.is_empty() {
            return Poll::Ready(Ok(()));
        }
        while self.sent < self.out.len() {
            match Pin::new(&mut self.stream).poll_write(cx, &self.out[self.sent..]) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(taken)) => self.sent += taken,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    // A client that is always a little behind must not be remembered whole.
                    if self.sent >= limits::WRITE_CHUNK_BYTES {
                        self.out.drain(..self.sent);
                        self.sent = 0;
                    }
                    return Poll::Pending;
                }
            }
        }
        let polled = Pin::new(&mut self.stream).poll_flush(cx);
        if polled.is_ready() {
            self.sent = 0;
            self.out.clear();
            if self.out.capacity() > 2 * limits::WRITE_CHUNK_BYTES {
                self.out.shrink_to(limits::WRITE_CHUNK_BYTES);
            }
        }
        polled
    }

    /// Sends a ping when one is due; to be polled with the rest. Ready when the client has not answered for too long.
    pub fn poll_pulse(&mut self, cx: &mut Context<'_>) -> Poll<Goodbye> {
        if self.ping.poll(cx).is_pending() {
            return Poll::Pending;
        }
        let now = Instant::now();
        if !std::mem::replace(&mut self.has_caught_up, false) {
            // Its pong may lie in the socket, which we do not read.
            self.unanswered = self.unanswered.map(|_| now);
        } else if self.unanswered.is_some_and(|at| now - at >= self.spec.ping_every * PINGS_UNANSWERED_MAX) {
            return Poll::Ready(Goodbye::Ours(Close::silent()));
        } else if self.is_too_slow(now) {
            return Poll::Ready(Goodbye::Ours(Close::slow()));
        }
        self.unanswered.get_or_insert(now);
        self.put(Opcode::Ping, &[]);
        self.ping = Alarm::after(self.spec.ping_every);
        // Arms it.
        let _ = self.ping.poll(cx);
        Poll::Pending
    }

    /// It is us who do not read for now: what does not come meanwhile is no fault of the client.
    pub fn pause(&mut self) {
        self.paced.2 = 0;
    }

    /// Whether the message that comes came too slowly since it was last looked at, before which it had begun.
    fn is_too_slow(&mut self, now: Instant) -> bool {
        let (since, message, unfinished) = self.paced;
        let took = now - since;
        if took < self.spec.pace_every {
            return false;
        }
        self.paced = (now, self.reading.messages, self.reading.unfinished);
        let came = self.reading.unfinished.saturating_sub(unfinished);
        let is_same = message == self.reading.messages && unfinished > 0 && self.reading.unfinished > 0;
        is_same && u128::from(came) * 1_000 < u128::from(self.spec.bytes_per_s_min) * took.as_millis()
    }
}
