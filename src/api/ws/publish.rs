//! `/v1/ws/msgs/:topic/:ver`: each message of the connection is a record; acknowledgements come back.
//!
//! ```text
//!   socket --> [ message n ] --produce--> store          taken n, n+1, ..: as many under way as may be, then the socket is not read
//!                 under way, in order     | reports
//!   client <-- {"ack":n} <-- settled n <--/              {"n":n,"code":..} before the acknowledgement that covers it
//! ```
//!
//! Reports are looked at in the order of the messages, so only the first one under way keeps a waker, and one wake-up settles all that
//! are in; there is no task, timer or channel for a message. Invariants: messages are produced in the order they came; `{"ack":n}` says
//! that each of the first n is stored, or was reported as failed before; nothing that was read is dropped while the client is there; what
//! is under way is bounded for the connection and for the core. Per core.

use std::{
    collections::VecDeque,
    future::{Future, poll_fn},
    pin::Pin,
    rc::Rc,
    task::{self, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_lite::{AsyncRead, AsyncWrite};

use super::{
    super::{
        admit,
        batch::parse::envelope,
        codes,
        context::{Context, DataPlane},
        publish::{self, failed},
        query::{Query, invalid},
        reply::{self, Problem},
    },
    Closing, Protocol,
};
use crate::{
    limits,
    proto::{
        Head,
        ws::{Alarm, Close, Goodbye, Incoming, Opcode, Ws},
    },
    registry::names,
    store::{Ack, Line, Partition, ProduceError, Record, Store, Stored, Topic},
};

/// The parameters of the route.
const PARAMETERS: &[&str] = &["key", "partition", "ack", "async", "hh", "acks"];
/// Until the producer's queue is tried again that had no room, when no report of this connection is to come.
const QUEUE_AGAIN: Duration = Duration::from_millis(5);
/// Frame bytes around a small message: what a message counts at least.
const FRAME_BYTES: usize = 14;

/// A handshake that was found good.
#[derive(Debug)]
pub struct Publishing {
    topic: Box<str>,
    terms: Terms,
}

/// What holds for every message of the connection.
#[derive(Debug)]
struct Terms {
    /// Without its value.
    record: Record,
    ack: Ack,
    is_async: bool,
    /// Each message is acknowledged by itself.
    each: bool,
    protocol: Protocol,
    message_bytes_max: usize,
}

impl Publishing {
    pub fn plan(
        ctx: &Context,
        head: &Head<'_>,
        appid: &str,
        protocol: Protocol,
        [topic, ver]: [&[u8]; 2],
    ) -> Result<Self, Problem> {
        let (topic, ver) = admit::topic_names(topic, ver)?;
        let query = Query::parse(head.query, PARAMETERS)?;
        publish::check_hand_off(&query)?;
        let each = match query.get("acks") {
            None | Some(b"range") => false,
            Some(b"each") => true,
            Some(other) => return Err(invalid("acks", other, "each or range")),
        };
        let mut once = None;
        let record = Record {
            key: publish::key(&query)?,
            headers: publish::record_headers(head, &mut once)?,
            partition: publish::partition(&query)?,
            ..Record::default()
        };
        if once.is_some() {
            return Err(Problem::new(
                &codes::INVALID_FIELD,
                "Idempotency-Key is for one message, not for a connection",
            ));
        }
        let message_bytes_max = ctx.config.borrow().publish.message_bytes_max;
        let (ack, is_async) = (publish::ack(&query)?, query.flag("async")?);
        let terms = Terms { record, ack, is_async, each, protocol, message_bytes_max };
        Ok(Self { topic: names::with_kafka_topic(appid, topic, ver, |name| Box::from(name)), terms })
    }

    /// Looks the topic up: what is wrong with it is known before the connection is a WebSocket.
    pub async fn open(self, ctx: &Rc<Context>) -> Result<Publishes, Problem> {
        let deadline = ctx.config.borrow().publish.deadline;
        let topic = publish::in_time(look_up(ctx, &self.topic, self.terms.record.partition), deadline).await?;
        Ok(Publishes { topic, terms: self.terms })
    }
}

async fn look_up(ctx: &Rc<Context>, name: &str, partition: Option<Partition>) -> Result<Rc<Topic>, Problem> {
    let mut topic = ctx.find_topic(name, true).await?;
    let Some(partition) = partition else { return Ok(topic) };
    let data = ctx.plane()?;
    if partition >= topic.partitions.get() && !data.backend.makes_topics() {
        // The topic may have grown since the snapshot.
        ctx.refresh_topics(data).await?;
        topic = data.topics.get(name).ok_or_else(reply::unknown_topic)?;
    }
    match topic.partitions.get() {
        count if partition < count => Ok(topic),
        count => Err(Problem::new(&codes::PARTITION_OUT_OF_RANGE, format!("partition {partition} of {count}"))),
    }
}

/// The same with its topic.
#[derive(Debug)]
pub struct Publishes {
    topic: Rc<Topic>,
    terms: Terms,
}

impl Publishes {
    /// The most a frame may hold.
    pub fn frame_bytes_max(&self) -> usize {
        match self.terms.protocol {
            Protocol::Binary => self.terms.message_bytes_max,
            // An envelope may hold the message as base64, and headers beside it.
            Protocol::Json => 2 * self.terms.message_bytes_max + limits::WS_ENVELOPE_BYTES_MAX,
        }
    }

    pub async fn serve<S>(self, ctx: &Rc<Context>, ws: &mut Ws<S>, closing: Closing) -> Goodbye
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let mut session = Session {
            ctx,
            ws,
            closing,
            topic: self.topic,
            terms: self.terms,
            collected: VecDeque::new(),
            under_way: VecDeque::new(),
            line: Rc::default(),
            bytes: 0,
            held: None,
            looking: None,
            again: None,
            is_paused: false,
            settled: 0,
            told: 0,
            tell_by: None,
            ending: None,
        };
        poll_fn(|cx| session.poll(cx)).await
    }
}

type Outcome = Result<Stored, Box<Problem>>;

#[derive(Debug)]
enum Fate {
    /// For the next of the line.
    Waiting,
    Known(Outcome),
}

/// A message that was taken and is not settled.
#[derive(Debug)]
struct UnderWay {
    fate: Fate,
    /// Of its payload.
    bytes: u32,
    /// Of its frame, which may keep the buffer from being freed that it was read into.
    frame_bytes: u32,
    is_chosen_by_store: bool,
}

/// A message as it came.
struct Frame {
    bytes: Bytes,
    /// It is a small part of what it was read with.
    is_sparse: bool,
}

impl Frame {
    /// Of its frame.
    fn len(&self) -> usize {
        self.bytes.len() + FRAME_BYTES
    }
}

type Looking = Pin<Box<dyn Future<Output = Result<Rc<Topic>, Problem>>>>;

/// Why no further message is taken for now.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stop {
    /// There is none.
    Idle,
    /// Reports have to come first, or the producer's queue has to have room.
    Full,
    /// The core is to do something else in between.
    Yield,
}

struct Session<'a, S> {
    ctx: &'a Rc<Context>,
    ws: &'a mut Ws<S>,
    closing: Closing,
    topic: Rc<Topic>,
    terms: Terms,
    /// Not handed over yet: the last of those under way that wait.
    collected: VecDeque<Record>,
    line: Rc<Line>,
    /// In the order they came; the first is number `settled + 1`.
    under_way: VecDeque<UnderWay>,
    /// Of their frames.
    bytes: usize,
    /// A message that is not collected: the producer's queue had no room for it, or its topic is being looked up.
    held: Option<Frame>,
    looking: Option<Looking>,
    /// For the next try of a full queue.
    again: Option<Alarm>,
    is_paused: bool,
    settled: u64,
    /// The last acknowledgement, and when the next has to go.
    told: u64,
    tell_by: Option<Alarm>,
    /// No message is taken any more; told when nothing is under way.
    ending: Option<Goodbye>,
}

impl<S> Drop for Session<'_, S> {
    fn drop(&mut self) {
        self.line.close();
        self.ctx.metrics.cells.ws_bytes.sub(self.bytes as u64);
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Session<'_, S> {
    fn poll(&mut self, cx: &mut task::Context<'_>) -> Poll<Goodbye> {
        let ctx = self.ctx;
        let Ok(data) = ctx.plane() else { return Poll::Ready(Goodbye::Gone) };
        if let Poll::Ready(goodbye) = self.ws.poll_pulse(cx) {
            if goodbye != Goodbye::Ours(Close::slow()) {
                return Poll::Ready(goodbye);
            }
            // It listens, so it is told what is under way.
            self.ending.get_or_insert(goodbye);
        }
        if self.ending.is_none()
            && let Poll::Ready(reason) = self.closing.as_mut().poll(cx)
        {
            self.ending = Some(Goodbye::Ours(Close::going_away(reason)));
        }
        let mut settled = 0;
        loop {
            let stop = self.take(cx, data);
            self.hand_over(cx, data);
            let before = settled;
            settled += self.settle(cx, data);
            if self.ending == Some(Goodbye::Gone) {
                return Poll::Ready(Goodbye::Gone);
            }
            if stop == Stop::Yield || settled >= limits::LOOP_ITEMS_MAX {
                cx.waker().wake_by_ref();
                break;
            }
            if stop == Stop::Idle || settled == before {
                break;
            }
        }
        self.tell(cx);
        if let Poll::Ready(Err(_)) = self.ws.poll_flush(cx) {
            return Poll::Ready(Goodbye::Gone);
        }
        let is_over = self.under_way.is_empty() && self.held.is_none();
        self.ending.take_if(|_| is_over).map_or(Poll::Pending, Poll::Ready)
    }

    // === taking ===

    fn take(&mut self, cx: &mut task::Context<'_>, data: &DataPlane) -> Stop {
        for _ in 0..limits::LOOP_ITEMS_MAX {
            if !self.has_room(cx, data) {
                if !std::mem::replace(&mut self.is_paused, true) {
                    self.ctx.metrics.cells.ws_paused.add(1);
                }
                self.ws.pause();
                return Stop::Full;
            }
            let message = match self.held.take() {
                Some(message) => message,
                None if self.ending.is_some() => return Stop::Idle,
                None => match self.ws.poll_message(cx) {
                    Poll::Ready(Incoming::Message { bytes, is_sparse, .. }) => Frame { bytes, is_sparse },
                    Poll::Ready(Incoming::End(goodbye)) => {
                        self.ending = Some(goodbye);
                        return Stop::Idle;
                    }
                    Poll::Pending => return Stop::Idle,
                },
            };
            self.is_paused = false;
            if self.topic.partitions.get() > 0 {
                self.publish(cx, data, message);
            } else if let Poll::Ready(found) = self.poll_topic(cx) {
                match found {
                    Ok(()) => self.publish(cx, data, message),
                    Err(problem) => self.push(Fate::Known(Err(problem)), 0, message.len(), true),
                }
            } else {
                self.held = Some(message);
                return Stop::Idle;
            }
        }
        Stop::Yield
    }

    /// Whether one more message may be under way now.
    fn has_room(&mut self, cx: &mut task::Context<'_>, data: &DataPlane) -> bool {
        if let Some(again) = &mut self.again {
            if again.poll(cx).is_pending() {
                return false;
            }
            self.again = None;
            self.hand_over(cx, data);
        }
        self.again.is_none() && self.is_room()
    }

    fn is_room(&self) -> bool {
        self.under_way.is_empty()
            || (self.under_way.len() < limits::WS_UNDER_WAY_MAX
                && self.bytes < limits::WS_UNDER_WAY_BYTES_MAX
                && self.ctx.metrics.cells.ws_bytes.get() < limits::WS_CORE_BYTES_MAX)
    }

    /// Looks for a topic that went while the connection was open: it may have been made again.
    fn poll_topic(&mut self, cx: &mut task::Context<'_>) -> Poll<Result<(), Box<Problem>>> {
        let (ctx, topic, partition) = (self.ctx, &self.topic, self.terms.record.partition);
        let looking = self.looking.get_or_insert_with(|| {
            let (ctx, topic) = (Rc::clone(ctx), Rc::clone(topic));
            Box::pin(async move {
                let deadline = ctx.config.borrow().publish.deadline;
                publish::in_time(look_up(&ctx, &topic.name, partition), deadline).await
            })
        });
        let Poll::Ready(found) = looking.as_mut().poll(cx) else { return Poll::Pending };
        self.looking = None;
        Poll::Ready(found.map(|topic| self.topic = topic).map_err(Box::new))
    }

    fn publish(&mut self, cx: &mut task::Context<'_>, data: &DataPlane, message: Frame) {
        let record = match self.terms.record(&message, self.topic.partitions.get()) {
            Ok(record) => record,
            Err(problem) => return self.push(Fate::Known(Err(problem)), 0, message.len(), true),
        };
        let (bytes, is_chosen_by_store) = (record.value.len(), record.partition.is_none());
        let (topic, ack) = (&*self.topic, self.terms.ack);
        if !self.terms.is_queued() {
            self.collected.push_back(record);
            return self.push(Fate::Waiting, bytes, message.len(), is_chosen_by_store);
        }
        let queued = Stored { partition: record.partition.unwrap_or(-1), offset: -1 };
        match data.backend.enqueue(topic, record, ack) {
            Ok(()) => self.push(Fate::Known(Ok(queued)), bytes, message.len(), is_chosen_by_store),
            Err(ProduceError::QueueFull { .. }) => {
                self.held = Some(message);
                self.try_again(cx);
            }
            Err(error) => {
                let problem = failed(self.ctx, data, &self.topic, error, is_chosen_by_store);
                self.push(Fate::Known(Err(Box::new(problem))), 0, message.len(), is_chosen_by_store);
            }
        }
    }

    /// Hands over what was collected. What there is no room for is tried again in a moment, before anything else is taken.
    fn hand_over(&mut self, cx: &mut task::Context<'_>, data: &DataPlane) {
        if self.collected.is_empty() || self.again.is_some() {
            return;
        }
        if data.backend.produce_all(&self.topic, &mut self.collected, self.terms.ack, &self.line).is_err() {
            self.try_again(cx);
        }
    }

    /// Wakes this session in a moment: nothing else may.
    fn try_again(&mut self, cx: &mut task::Context<'_>) {
        let mut again = Alarm::after(QUEUE_AGAIN);
        // It is set by the first poll.
        let _ = again.poll(cx);
        self.again = Some(again);
    }

    #[inline] // Once for each message.
    fn push(&mut self, fate: Fate, bytes: usize, frame_bytes: usize, is_chosen_by_store: bool) {
        self.bytes += frame_bytes;
        self.ctx.metrics.cells.ws_bytes.add(frame_bytes as u64);
        let small = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX);
        let (bytes, frame_bytes) = (small(bytes), small(frame_bytes));
        self.under_way.push_back(UnderWay { fate, bytes, frame_bytes, is_chosen_by_store });
    }

    // === settling ===

    /// Takes the reports that are in, in the order of the messages. Gives how many.
    fn settle(&mut self, cx: &mut task::Context<'_>, data: &DataPlane) -> usize {
        let (mut settled, mut stored, mut stored_bytes, mut frame_bytes) = (0, 0, 0, 0);
        while settled < limits::LOOP_ITEMS_MAX
            && let Some(first) = self.under_way.front_mut()
        {
            let outcome = match &mut first.fate {
                Fate::Waiting => match self.line.poll_take(cx) {
                    Poll::Pending => break,
                    Poll::Ready(Ok(stored)) => Ok(stored),
                    Poll::Ready(Err(error)) => {
                        Err(Box::new(failed(self.ctx, data, &self.topic, error, first.is_chosen_by_store)))
                    }
                },
                Fate::Known(outcome) => outcome.clone(),
            };
            settled += 1;
            self.settled += 1;
            frame_bytes += first.frame_bytes as usize;
            if outcome.is_ok() {
                stored += 1;
                stored_bytes += u64::from(first.bytes);
            }
            self.under_way.pop_front();
            if self.terms.each || outcome.is_err() {
                self.report(&outcome);
            }
        }
        if settled > 0 {
            self.bytes -= frame_bytes;
            let cells = &self.ctx.metrics.cells;
            cells.ws_bytes.sub(frame_bytes as u64);
            cells.ws_failed.add(settled as u64 - stored);
            cells.pub_messages.add(stored);
            cells.pub_bytes.add(stored_bytes);
            self.topic.usage.published.add(stored, stored_bytes);
        }
        settled
    }

    /// Tells of the message just settled.
    fn report(&mut self, outcome: &Outcome) {
        match outcome {
            Ok(Stored { partition, offset }) => {
                let (mut n, mut p, mut o) = (itoa::Buffer::new(), itoa::Buffer::new(), itoa::Buffer::new());
                self.ws.put(
                    Opcode::Text,
                    &[
                        b"{\"n\":",
                        n.format(self.settled).as_bytes(),
                        b",\"partition\":",
                        p.format(*partition).as_bytes(),
                        b",\"offset\":",
                        o.format(*offset).as_bytes(),
                        b"}",
                    ],
                );
            }
            Err(problem) => {
                let mut document = problem.short();
                document["n"] = self.settled.into();
                self.ws.put(Opcode::Text, &[document.to_string().as_bytes()]);
            }
        }
    }

    /// Acknowledges what was settled: at once when nothing is under way or there is much of it, else it waits for more, for a moment.
    fn tell(&mut self, cx: &mut task::Context<'_>) {
        let news = self.settled - self.told;
        if news == 0 || self.terms.each {
            return;
        }
        let is_due = self.under_way.is_empty() || news >= limits::WS_ACK_MESSAGES_MAX || {
            let tell_within = Duration::from_millis(limits::WS_ACK_MS_MAX);
            self.tell_by.get_or_insert_with(|| Alarm::after(tell_within)).poll(cx).is_ready()
        };
        if is_due {
            let mut n = itoa::Buffer::new();
            self.ws.put(Opcode::Text, &[b"{\"ack\":", n.format(self.settled).as_bytes(), b"}"]);
            self.told = self.settled;
            self.tell_by = None;
        }
    }
}

impl Terms {
    /// Nobody waits for the report.
    fn is_queued(&self) -> bool {
        self.is_async || self.ack == Ack::None
    }

    /// The record a message is; `partitions` is how many the topic has.
    fn record(&self, message: &Frame, partitions: Partition) -> Result<Record, Box<Problem>> {
        let Frame { bytes, is_sparse } = message;
        let mut record = if self.protocol == Protocol::Json {
            let start = bytes.iter().position(|byte| !byte.is_ascii_whitespace()).unwrap_or(0);
            let item = envelope(bytes, start..bytes.len(), self.message_bytes_max).and_then(|parsed| parsed);
            item.map_err(Box::new)?.over(&self.record, partitions)?
        } else if bytes.is_empty() {
            return Err(Box::new(Problem::new(&codes::EMPTY_MESSAGE, "a message has at least one byte")));
        } else {
            let Record { key, headers, partition, .. } = &self.record;
            let (key, value, headers) = (key.clone(), bytes.clone(), headers.clone());
            Record { key, value, is_tombstone: false, headers, partition: *partition }
        };
        // A slice keeps the buffer it was read into, which is counted only as far as frames under way fill it.
        let is_small = record.value.len() < limits::COPIED_BYTES_MAX;
        if record.value.len() < bytes.len() / 2 || (is_small && (*is_sparse || self.is_queued())) {
            record.value = Bytes::copy_from_slice(&record.value);
        }
        Ok(record)
    }
}
