//! `/v1/ws/msgs/:appid/:topic/:ver`: a group's messages, each a frame of its own.
//!
//! ```text
//!   group --next--> [ one batch ] --frames--> socket --flush--> settled --> next ..
//!   client --> {"credit":n}: n more   {"ack":[..]}, {"bury":{..}}: one after the other, beside the messages
//! ```
//!
//! The same stream as `stream=1` ([`super::super::stream`]), with the client's word on the same connection. Invariants: at most one batch is
//! held, and the next is asked for only after the one before was flushed, so a slow client is slowed at the source; once a client has spoken
//! of credit it is never sent more messages than it granted; a batch that does not get out goes back. Per core.

use std::{
    future::poll_fn,
    rc::Rc,
    task::{self, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_lite::{AsyncRead, AsyncWrite};

use super::{
    super::{
        context::Context,
        format::{self, Format, Unwritten},
        reply::Problem,
        stream::{Batch, Next},
        subscribe::{Opened, Reading},
    },
    Closing,
    command::{self, Acting, Command, Wrong},
};
use crate::{
    limits,
    proto::{
        Sent,
        ws::{Close, Goodbye, Incoming, Opcode, Ws},
    },
};

/// Serves the connection until one side says goodbye.
pub async fn serve<S>(opened: Opened, ctx: &Rc<Context>, ws: &mut Ws<S>, closing: Closing) -> Goodbye
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let Opened { reading, first, format, is_next, credit } = opened;
    let max_stream = ctx.config.borrow().subscribe.max_stream;
    let mut session = Session {
        ctx,
        ws,
        closing,
        reading,
        format,
        is_next,
        credit,
        state: State::Free,
        ends_at: max_stream.and_then(|length| Instant::now().checked_add(length)),
        acting: None,
        json: Vec::new(),
        ending: None,
    };
    session.take(first);
    let goodbye = poll_fn(|cx| session.poll(cx)).await;
    if session.is_holding() {
        session.reading.give_up();
    }
    goodbye
}

enum State {
    /// Nothing is held.
    Free,
    Asking(Next),
    Writing {
        rest: Unwritten,
        settle: Option<Box<dyn Sent>>,
    },
    /// All of a batch was put; the socket has not taken it yet.
    Given(Option<Box<dyn Sent>>),
}

struct Session<'a, S> {
    ctx: &'a Rc<Context>,
    ws: &'a mut Ws<S>,
    closing: Closing,
    reading: Reading,
    format: Format,
    is_next: bool,
    /// Messages the client may still be sent; `None`: it has not spoken of it.
    credit: Option<u64>,
    state: State,
    ends_at: Option<Instant>,
    /// What the client asked for; what it says next is read when this is done.
    acting: Option<Acting>,
    /// One message as JSON.
    json: Vec<u8>,
    /// No batch is asked for any more; told when none is held.
    ending: Option<Goodbye>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Session<'_, S> {
    fn poll(&mut self, cx: &mut task::Context<'_>) -> Poll<Goodbye> {
        if let Poll::Ready(goodbye) = self.ws.poll_pulse(cx) {
            if goodbye != Goodbye::Ours(Close::slow()) {
                return Poll::Ready(goodbye);
            }
            self.ending.get_or_insert(goodbye);
        }
        self.listen(cx);
        if self.ending.is_none()
            && let Poll::Ready(reason) = self.closing.as_mut().poll(cx)
        {
            self.ending = Some(Goodbye::Ours(Close::going_away(reason)));
        }
        if self.ending.as_ref().is_some_and(|goodbye| !matches!(goodbye, Goodbye::Ours(_))) {
            // What is held is for nobody.
            return self.ending.take().map_or(Poll::Pending, Poll::Ready);
        }
        self.deliver(cx);
        if let Poll::Ready(Err(_)) = self.ws.poll_flush(cx) {
            return Poll::Ready(Goodbye::Gone);
        }
        let is_over = self.acting.is_none() && !self.has_more_to_give();
        self.ending.take_if(|_| is_over).map_or(Poll::Pending, Poll::Ready)
    }

    // === what the client says ===

    fn listen(&mut self, cx: &mut task::Context<'_>) {
        for _ in 0..limits::LOOP_ITEMS_MAX {
            if let Some(acting) = &mut self.acting {
                let Poll::Ready(answer) = acting.as_mut().poll(cx) else {
                    self.ws.pause();
                    return;
                };
                self.acting = None;
                if let Some(answer) = answer {
                    self.ws.put(Opcode::Text, &[answer.as_bytes()]);
                }
            }
            if self.ending.is_some() {
                return;
            }
            match self.ws.poll_message(cx) {
                Poll::Ready(Incoming::Message { bytes, .. }) => self.obey(&bytes),
                Poll::Ready(Incoming::End(goodbye)) => self.ending = Some(goodbye),
                Poll::Pending => return,
            }
        }
        cx.waker().wake_by_ref();
    }

    fn obey(&mut self, frame: &Bytes) {
        match Command::read(frame, self.ctx, &self.reading.key, self.is_next) {
            Ok(Command::Credit(more)) => {
                if self.credit.is_none() && matches!(self.state, State::Asking(_)) {
                    // It was asked for without a bound; what it has taken goes back.
                    self.state = State::Free;
                }
                self.credit = Some(self.credit.unwrap_or(0).saturating_add(more));
            }
            Ok(command) => self.acting = command::act(self.ctx, &self.reading.key, command),
            Err(Wrong::NoJson) => self.ending = Some(Goodbye::Ours(Close::policy("the frame is no JSON"))),
            Err(Wrong::Command(of, problem)) => {
                self.ws.put(Opcode::Text, &[command::failure(&problem, of).as_bytes()]);
            }
        }
    }

    // === what the client gets ===

    fn is_holding(&self) -> bool {
        matches!(self.state, State::Writing { .. } | State::Given(Some(_)))
    }

    /// Whether a batch is held that the client may have.
    fn has_more_to_give(&self) -> bool {
        self.is_holding() && (self.credit != Some(0) || matches!(self.state, State::Given(_)))
    }

    /// Gives whether there is something to write.
    fn take(&mut self, batch: Batch) -> bool {
        if batch.end && self.ending.is_none() {
            self.ending = Some(Goodbye::Ours(Close::going_away("drain")));
        }
        let rest = Unwritten::new(batch.delivery);
        let is_empty = rest.is_over();
        self.state = if is_empty { State::Free } else { State::Writing { rest, settle: batch.settle } };
        !is_empty
    }

    fn deliver(&mut self, cx: &mut task::Context<'_>) {
        loop {
            match &mut self.state {
                State::Free => {
                    let left = self.ends_at.map(|end| end.saturating_duration_since(Instant::now()));
                    if left.is_some_and(|left| left.is_zero()) && self.ending.is_none() {
                        self.ending = Some(Goodbye::Ours(Close::going_away("the stream has lasted sub.max_stream_s")));
                    }
                    if self.ending.is_some() || self.credit == Some(0) {
                        return;
                    }
                    let wait = Duration::from_secs(limits::WAIT_S_MAX);
                    let next = self.reading.next_of(self.credit, left.map_or(wait, |left| left.min(wait)));
                    self.state = State::Asking(next);
                }
                State::Asking(_) if self.ending.is_some() => self.state = State::Free,
                State::Asking(next) => match next.as_mut().poll(cx) {
                    Poll::Ready(Ok(batch)) => {
                        if !self.take(batch) {
                            // One that comes before its wait is over must not keep the core.
                            cx.waker().wake_by_ref();
                            return;
                        }
                    }
                    Poll::Ready(Err(problem)) => self.fail(&problem),
                    Poll::Pending => return,
                },
                State::Writing { .. } => {
                    self.write();
                    if matches!(self.state, State::Writing { .. }) {
                        if self.credit != Some(0) && self.ws.poll_flush(cx).is_ready() {
                            cx.waker().wake_by_ref();
                        }
                        return;
                    }
                }
                State::Given(settle) => {
                    match self.ws.poll_flush(cx) {
                        Poll::Ready(Ok(())) => {}
                        // An error is found by the flush that follows.
                        Poll::Ready(Err(_)) | Poll::Pending => return,
                    }
                    if let Some(settle) = settle.take() {
                        settle.sent();
                    }
                    self.state = State::Free;
                    // A group that always has more, and a client that always takes it, must not keep the core.
                    cx.waker().wake_by_ref();
                    return;
                }
            }
        }
    }

    /// Puts messages until there is one write's worth, or the client's credit is used up.
    fn write(&mut self) {
        let State::Writing { rest, settle } = &mut self.state else { return };
        while let Some(gap) = rest.next_gap() {
            if self.format == Format::Frames {
                self.ws.put(Opcode::Binary, &[&format::gap_frame(&gap)]);
            } else {
                self.json.clear();
                format::put_gap(&gap, &mut self.json);
                self.ws.put(Opcode::Text, &[&self.json]);
            }
        }
        while self.credit != Some(0)
            && self.ws.unsent() < limits::WRITE_CHUNK_BYTES
            && let Some((message, deliveries)) = rest.next_message()
        {
            if self.format == Format::Frames {
                let head = format::frame_head(message.partition, message.offset, message.value.len());
                self.ws.put(Opcode::Binary, &[&head, &message.value]);
            } else {
                self.json.clear();
                format::put_message(message, deliveries, &mut self.json);
                self.ws.put(Opcode::Text, &[&self.json]);
            }
            self.credit = self.credit.map(|credit| credit - 1);
        }
        if rest.is_over() {
            self.state = State::Given(settle.take());
        }
    }

    /// The group cannot be read: the client is told why, and when to come back by the code of the close.
    fn fail(&mut self, problem: &Problem) {
        self.state = State::Free;
        self.ws.put(Opcode::Text, &[command::failure(problem, "read").as_bytes()]);
        let detail = problem.detail.clone();
        let close = match problem.code.status() {
            500 => Close::new(1011, detail),
            _ if problem.code.retryable => Close::new(1013, detail),
            _ => Close::policy(detail),
        };
        self.ending = Some(Goodbye::Ours(close));
    }
}
