//! How a session ends: who says goodbye, by what code (RFC 6455 section 7.4.1), and the rest of the handshake of closing.

use std::{
    borrow::Cow,
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use futures_lite::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tungstenite::{
    Error,
    error::ProtocolError,
    protocol::{CloseFrame, frame::coding::CloseCode},
};

use super::{Wire, Ws};
use crate::{limits, proto::watch::Phase};

/// Of a reason: a control frame carries 125 bytes, two of them are the code.
const REASON_BYTES_MAX: usize = 123;

/// What the client is told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Close {
    pub code: u16,
    pub reason: Cow<'static, str>,
}

impl Close {
    pub fn new(code: u16, reason: impl Into<Cow<'static, str>>) -> Self {
        Self { code, reason: reason.into() }
    }

    /// 1001: this gateway goes away.
    pub fn going_away(reason: &'static str) -> Self {
        Self::new(1001, reason)
    }

    /// 1008: the client answers no ping.
    pub fn silent() -> Self {
        Self::new(1008, "no pong came")
    }

    /// 1008: a message that was begun does not come.
    pub fn slow() -> Self {
        Self::new(1008, "the message comes slower than http.body_bytes_per_s_min")
    }

    /// 1008: the client does what it may not.
    pub fn policy(reason: impl Into<Cow<'static, str>>) -> Self {
        Self::new(1008, reason)
    }
}

/// Who ends the session, and why.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Goodbye {
    /// We do, between two messages.
    Ours(Close),
    /// We do, over bytes after which nothing can be read.
    Broken(Close),
    /// The client has said it, and waits for our word.
    Client,
    /// Nobody is there any more.
    Gone,
}

impl Goodbye {
    pub(super) fn of(error: &Error) -> Self {
        match error {
            Error::Capacity(_) => Self::Broken(Close::new(1009, "the message is over its limit")),
            Error::Utf8(_) => Self::Broken(Close::new(1007, "the text is not UTF-8")),
            Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) => Self::Gone,
            Error::Protocol(error) => Self::Broken(Close::new(1002, error.to_string())),
            _ => Self::Gone,
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Ws<S> {
    /// Ends the session: what was put goes out, then our goodbye; the client's is waited for, for a while.
    pub async fn end(mut self, goodbye: Goodbye) {
        if goodbye == Goodbye::Gone || poll_fn(|cx| self.poll_goodbye(cx, &goodbye)).await.is_err() {
            return;
        }
        self.watch.enter(Phase::Discard, Some(Duration::from_millis(limits::REFUSED_BODY_MS_MAX)));
        if matches!(goodbye, Goodbye::Ours(_)) {
            self.read_to_the_end().await;
        }
        // The server closes first, and reads what still comes, so that no reset overtakes its last words.
        if self.stream.close().await.is_ok() {
            self.discard().await;
        }
    }

    fn poll_goodbye(&mut self, cx: &mut Context<'_>, goodbye: &Goodbye) -> Poll<Result<(), ()>> {
        let Self { stream, out, context, reading, .. } = self;
        let mut wire = Wire { stream, out, reading, cx };
        // Both only append to `out`; that the session is over with it is no error here. Repeated, they append nothing.
        let _ = match goodbye {
            Goodbye::Ours(close) | Goodbye::Broken(close) => {
                let (code, mut end) = (CloseCode::from(close.code), close.reason.len().min(REASON_BYTES_MAX));
                while !close.reason.is_char_boundary(end) {
                    end -= 1;
                }
                context.close(&mut wire, Some(CloseFrame { code, reason: close.reason[..end].into() }))
            }
            Goodbye::Client | Goodbye::Gone => context.flush(&mut wire),
        };
        self.poll_flush(cx).map_err(|_| ())
    }

    /// Reads until the client has answered our goodbye. What it sent before it heard it is dropped.
    async fn read_to_the_end(&mut self) {
        let mut messages = 0;
        loop {
            let read = poll_fn(|cx| {
                let Self { stream, out, context, reading, .. } = &mut *self;
                match context.read(&mut Wire { stream, out, reading, cx }) {
                    Err(Error::Io(error)) if error.kind() == std::io::ErrorKind::WouldBlock => {
                        self.reading.has_paused(cx);
                        Poll::Pending
                    }
                    read => Poll::Ready(read),
                }
            });
            match read.await {
                Ok(message) if !message.is_close() => messages += 1,
                _ => return,
            }
            if messages % limits::LOOP_ITEMS_MAX == 0 {
                futures_lite::future::yield_now().await;
            }
        }
    }

    async fn discard(&mut self) {
        let (mut passed, mut buffer) = (0, [0; 1024]);
        while passed < limits::REFUSED_BODY_BYTES_MAX {
            match poll_fn(|cx| Pin::new(&mut self.stream).poll_read(cx, &mut buffer)).await {
                Ok(0) | Err(_) => return,
                Ok(read) => passed += read,
            }
        }
    }
}
