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
//! Invariants: nothing is read while `out` holds a write's worth, so a client that does not read is not read from; a ping goes out each
//! `ping_every` whatever the traffic; a client that does not answer for three of them is closed, but not while it is us who do not read; a
//! client that takes no byte for the write timeout is cut, by the [`Watch`]. Per core. Knows no topic.

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

/// How a session is to be.
#[derive(Clone, Copy, Debug)]
pub struct Spec {
    /// One message; over it the client is closed with 1009.
    pub message_bytes_max: usize,
    pub ping_every: Duration,
    pub write_timeout: Duration,
}

/// What came.
#[derive(Debug)]
pub enum Incoming {
    /// A whole message, however many fragments it had. Text is valid UTF-8.
    Message { bytes: Bytes, is_text: bool },
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
}

/// The socket as tungstenite sees it during one poll.
struct Wire<'a, 'b, S> {
    stream: &'a mut S,
    out: &'a mut Vec<u8>,
    cx: &'a mut Context<'b>,
}

impl<S: AsyncRead + Unpin> io::Read for Wire<'_, '_, S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match Pin::new(&mut *self.stream).poll_read(self.cx, buffer) {
            Poll::Ready(read) => read,
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
        let context = WebSocketContext::from_partially_read(unread.to_vec(), Role::Server, Some(config));
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
            let Self { stream, out, context, .. } = self;
            let end = match context.read(&mut Wire { stream, out, cx }) {
                Ok(Message::Binary(bytes)) => return Poll::Ready(Incoming::Message { bytes, is_text: false }),
                Ok(Message::Text(text)) => return Poll::Ready(Incoming::Message { bytes: text.into(), is_text: true }),
                Ok(Message::Close(_)) => Goodbye::Client,
                Ok(Message::Pong(_)) => {
                    self.unanswered = None;
                    continue;
                }
                Ok(_) => continue,
                Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.has_caught_up = true;
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
        let before = self.sent;
        let polled = self.poll_write(cx);
        match &polled {
            Poll::Pending if !self.is_blocked || self.sent > before => {
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
                Poll::Pending => return Poll::Pending,
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
        }
        self.unanswered.get_or_insert(now);
        self.put(Opcode::Ping, &[]);
        self.ping = Alarm::after(self.spec.ping_every);
        // Arms it.
        let _ = self.ping.poll(cx);
        Poll::Pending
    }
}
