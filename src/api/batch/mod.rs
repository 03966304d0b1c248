//! `POST /v1/msgs/:topic/:ver?batch=1`: many messages in one request, each a record of its own.
//!
//! ```text
//!   JSON document: the body whole --> checked whole --> messages \
//!   lines, frames: piece after piece ----------------> messages  --> sending --> results
//!                    ^ not read while too much is under way -----------/
//! ```
//!
//! Invariants: messages are handed over in the order of the request; a document with a fault stores nothing; of a body that is cut there
//! is no answer. Key, partition, tag and record headers of the request hold for every message that does not say otherwise itself. What
//! the batches of a core may hold in memory is taken before a body is read. Per core.

mod answer;
mod document;
pub mod parse;
mod send;
mod split;

use std::{cell::Cell, ops::Range, rc::Rc};

use bytes::Bytes;

use self::{
    answer::{Answered, Manner},
    parse::{Form, Parsed},
    send::Sending,
    split::Splitter,
};
use super::{
    codes,
    context::Context,
    publish::Publish,
    query::{Query, invalid},
    reply::{self, Problem, Stamp},
};
use crate::{
    config::resolve::PublishConfig,
    limits,
    proto::{
        Head, Malformed, Pieces,
        compress::{Coding, Inflated},
        head::Framing,
    },
    store::{Ack, Partition, Topic},
};

/// How many times as long a compressed body becomes, as a rule.
const USUAL_RATIO: usize = 16;

/// A batch whose head was found good.
#[derive(Debug)]
pub struct Batch {
    /// What the request says of all its messages.
    publish: Publish,
    form: Form,
    coding: Option<Coding>,
    /// Results of neighbours are said together.
    in_ranges: bool,
    message_bytes_max: usize,
    bytes_max: usize,
    messages_max: usize,
    /// Until it is answered.
    memory: Memory,
    /// Of it: what decompressing takes.
    inflating_bytes: Cell<usize>,
}

/// What a batch may hold in memory; taken from what its core has for batches.
#[derive(Debug)]
struct Memory {
    ctx: Rc<Context>,
    bytes: Cell<u64>,
}

impl Memory {
    fn take(ctx: &Rc<Context>, bytes: usize) -> Result<Self, Problem> {
        let (bytes, taken) = (bytes as u64, ctx.metrics.cells.batch_bytes.get());
        if taken + bytes > ctx.config.borrow().publish.batch_memory_bytes_max as u64 {
            let detail = format!("batches under way on this core hold {taken} bytes");
            return Err(Problem::new(&codes::TOO_MANY_INFLIGHT, detail));
        }
        ctx.metrics.cells.batch_bytes.add(bytes);
        Ok(Self { ctx: Rc::clone(ctx), bytes: Cell::new(bytes) })
    }

    /// It holds at least so much.
    fn hold(&self, bytes: usize) -> Result<(), Problem> {
        let more = bytes.saturating_sub(usize::try_from(self.bytes.get()).unwrap_or(usize::MAX));
        if more > 0 {
            let more = Self::take(&self.ctx, more)?;
            self.bytes.set(self.bytes.get() + more.bytes.take());
        }
        Ok(())
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.ctx.metrics.cells.batch_bytes.sub(self.bytes.get());
    }
}

/// What is left of a batch whose body cannot be read on.
enum End {
    /// Nobody is there to be told.
    Gone,
    /// No message after those before it.
    Refused(Problem),
}

impl Batch {
    /// Reads what only a batch has; the rest of the head is `publish`'s.
    pub fn plan(
        ctx: &Rc<Context>,
        head: &Head<'_>,
        query: &Query<'_>,
        publish: Publish,
        coding: Option<Coding>,
    ) -> Result<Self, Problem> {
        if head.field("idempotency-key").is_some() {
            return Err(Problem::new(&codes::NOT_SUPPORTED, "a batch takes no Idempotency-Key"));
        }
        let form = Form::of(head.field("content-type")).ok_or_else(|| {
            let detail = "a batch is application/json, application/vnd.kateway.batch+json, application/x-ndjson or \
                          application/vnd.kateway.frames";
            Problem::new(&codes::UNKNOWN_TYPE, detail)
        })?;
        let in_ranges = match query.get("results") {
            None | Some(b"each") => false,
            Some(b"range") => true,
            Some(other) => return Err(invalid("results", other, "range or each")),
        };
        let PublishConfig { message_bytes_max, batch_bytes_max, batch_messages_max, .. } = ctx.config.borrow().publish;
        let held = match coding {
            _ if form.is_streamed() => stream_bytes(message_bytes_max),
            None => announced(head).unwrap_or(batch_bytes_max),
            // What it becomes is known later; most becomes no more than so much.
            Some(_) => {
                announced(head).map_or(batch_bytes_max, |bytes| bytes.saturating_mul(USUAL_RATIO).min(batch_bytes_max))
            }
        };
        let memory = Memory::take(ctx, held)?;
        Ok(Self {
            publish,
            form,
            coding,
            in_ranges,
            message_bytes_max,
            bytes_max: batch_bytes_max,
            messages_max: batch_messages_max,
            memory,
            inflating_bytes: Cell::default(),
        })
    }

    /// Reads the body, produces what is in it, and answers. `None`: the client has gone.
    pub async fn run(self, ctx: &Rc<Context>, pieces: &mut impl Pieces, stamp: &Stamp) -> Option<Answered> {
        match self.coding {
            None => self.read(ctx, pieces, stamp).await,
            Some(coding) => {
                let room = |bytes| {
                    self.inflating_bytes.set(bytes);
                    self.hold(0).is_ok()
                };
                self.read(ctx, &mut Inflated::new(coding, pieces, self.bytes_max, &room), stamp).await
            }
        }
    }

    /// Takes memory for what is held beside what a stream always may.
    fn hold(&self, partial_bytes: usize) -> Result<(), Problem> {
        let held = if self.form.is_streamed() {
            stream_bytes(self.message_bytes_max) + partial_bytes.saturating_sub(self.message_bytes_max)
        } else {
            0
        };
        self.memory.hold(held + self.inflating_bytes.get())
    }

    async fn read(&self, ctx: &Rc<Context>, pieces: &mut impl Pieces, stamp: &Stamp) -> Option<Answered> {
        let results = if self.form.is_streamed() {
            self.stream(ctx, pieces, stamp).await
        } else {
            self.document(ctx, pieces, stamp).await
        };
        match results {
            Ok(answered) => Some(answered),
            Err(End::Refused(problem)) => Some(answer::refused(&problem, stamp)),
            Err(End::Gone) => None,
        }
    }

    fn is_queued(&self) -> bool {
        self.publish.is_async || self.publish.ack == Ack::None
    }

    fn sending<'a>(&'a self, ctx: &'a Rc<Context>, topic: Rc<Topic>) -> Result<Sending<'a>, Problem> {
        let manner = (self.publish.ack, self.is_queued());
        Ok(Sending::new(ctx, ctx.plane()?, topic, &self.publish.record, manner))
    }

    async fn answer(&self, ctx: &Rc<Context>, mut sending: Sending<'_>, stamp: &Stamp) -> Answered {
        sending.finish().await;
        let is_volatile = ctx.data.as_ref().is_some_and(|data| data.backend.is_volatile());
        let manner = Manner { in_ranges: self.in_ranges, is_queued: self.is_queued(), is_volatile };
        answer::answer(&sending.results, sending.stored, manner, stamp).await
    }

    // === documents ===

    async fn document(&self, ctx: &Rc<Context>, pieces: &mut impl Pieces, stamp: &Stamp) -> Result<Answered, End> {
        let body = pieces.whole(self.bytes_max).await.map_err(|cause| self.unread(cause))?;
        if body.is_empty() {
            return Err(document::no_messages().into());
        }
        self.memory.hold(body.len())?;
        let elements = document::elements(&body, self.messages_max).await?;
        if self.form == Form::Array {
            let values = elements.iter().map(Range::len).filter(|bytes| *bytes <= self.message_bytes_max + 2).sum();
            let apart_below = apart_below(&body, values);
            let (topic, _) = self.publish.topic(ctx).await?;
            let mut sending = self.sending(ctx, topic)?;
            sending.expect(elements.len());
            for range in elements {
                let item = parse::element(&body, range, self.message_bytes_max);
                sending.send(item.map(|item| item.apart(apart_below))).await;
            }
            return Ok(self.answer(ctx, sending, stamp).await);
        }
        let items = self.envelopes(&body, elements).await?;
        let values = items.iter().filter_map(|item| Some(item.as_ref().ok()?.value.len())).sum();
        let apart_below = apart_below(&body, values);
        let (topic, _) = self.publish.topic(ctx).await?;
        let highest = items.iter().filter_map(|item| item.as_ref().ok()?.partition).max();
        self.know_partition(ctx, &topic, highest).await?;
        let mut sending = self.sending(ctx, topic)?;
        sending.expect(items.len());
        for item in items {
            sending.send(item.map(|item| item.apart(apart_below))).await;
        }
        Ok(self.answer(ctx, sending, stamp).await)
    }

    async fn envelopes(&self, body: &Bytes, elements: Vec<Range<usize>>) -> Result<Vec<Parsed>, Problem> {
        let mut items = Vec::with_capacity(elements.len());
        for range in elements {
            let index = items.len();
            let item = parse::envelope(body, range, self.message_bytes_max).map_err(|mut problem| {
                problem.detail = format!("element {index}: {}", problem.detail).into();
                problem
            });
            items.push(item?);
            if index % limits::LOOP_ITEMS_MAX == limits::LOOP_ITEMS_MAX - 1 {
                glommio::executor().yield_now().await;
            }
        }
        Ok(items)
    }

    /// A message names a partition that the snapshot has not: the topic may have grown since. Those that are none fail alone.
    async fn know_partition(
        &self,
        ctx: &Rc<Context>,
        topic: &Topic,
        highest: Option<Partition>,
    ) -> Result<(), Problem> {
        let data = ctx.plane()?;
        if highest.is_some_and(|partition| partition >= topic.partitions.get()) && !data.backend.makes_topics() {
            ctx.refresh_topics(data).await?;
        }
        Ok(())
    }

    // === streams ===

    async fn stream(&self, ctx: &Rc<Context>, pieces: &mut impl Pieces, stamp: &Stamp) -> Result<Answered, End> {
        let mut splitter = Splitter::new(self.form, self.message_bytes_max);
        let mut read = 0;
        let mut sending = None;
        let ended = loop {
            let piece = match self.piece(pieces, &mut read).await {
                Ok(piece) => piece,
                Err(End::Gone) => return Err(End::Gone),
                Err(End::Refused(problem)) => break Err(problem),
            };
            let is_last = piece.is_none();
            splitter.feed(piece.unwrap_or_default());
            match self.send_all(ctx, &mut splitter, is_last, &mut sending).await {
                Ok(()) if is_last => break Ok(()),
                Ok(()) => {}
                Err(problem) => break Err(problem),
            }
        };
        match (sending, ended) {
            (None, Err(problem)) => Err(End::Refused(problem)),
            (None, Ok(())) => Err(document::no_messages().into()),
            (Some(mut sending), ended) => {
                // It is the result of the message it was found at, and of all after it.
                sending.results.extend(ended.err().map(|problem| Err(Box::new(problem))));
                Ok(self.answer(ctx, sending, stamp).await)
            }
        }
    }

    /// The next piece of a body that is not yet longer than it may be.
    async fn piece(&self, pieces: &mut impl Pieces, read: &mut usize) -> Result<Option<Bytes>, End> {
        let piece = pieces.next().await.map_err(|cause| self.unread(cause))?;
        *read += piece.as_ref().map_or(0, Bytes::len);
        if *read > self.bytes_max { Err(End::Refused(self.too_large())) } else { Ok(piece) }
    }

    /// Hands over what has come whole, and then waits until there is room for more.
    async fn send_all<'a>(
        &'a self,
        ctx: &'a Rc<Context>,
        splitter: &mut Splitter,
        is_last: bool,
        sending: &mut Option<Sending<'a>>,
    ) -> Result<(), Problem> {
        loop {
            let Some(parsed) = splitter.next().or_else(|| if is_last { splitter.last() } else { None }) else { break };
            if sending.is_none() {
                *sending = Some(self.sending(ctx, self.publish.topic(ctx).await?.0)?);
            }
            let Some(sending) = sending.as_mut() else { break };
            if sending.results.len() == self.messages_max {
                return Err(document::too_many(self.messages_max));
            }
            sending.send(parsed).await;
        }
        self.hold(splitter.held_bytes())?;
        if let Some(sending) = sending {
            sending.drain_to(limits::BATCH_UNDER_WAY_BYTES_MAX).await;
        }
        Ok(())
    }

    // === refusals ===

    /// Why a body could not be read.
    fn unread(&self, cause: Malformed) -> End {
        match cause {
            Malformed::BodyTooLarge => End::Refused(self.too_large()),
            cause => reply::malformed(cause).map_or(End::Gone, End::Refused),
        }
    }

    fn too_large(&self) -> Problem {
        too_large(self.bytes_max)
    }
}

impl From<Problem> for End {
    fn from(problem: Problem) -> Self {
        Self::Refused(problem)
    }
}

/// What a body that is used while it arrives may hold: what is under way, and a message that goes on.
fn stream_bytes(message_bytes_max: usize) -> usize {
    limits::BATCH_UNDER_WAY_BYTES_MAX + message_bytes_max
}

/// Which messages are copied out of a body whose messages have so many bytes together: the last one keeps all of it.
fn apart_below(body: &Bytes, values: usize) -> usize {
    if values < body.len() / 2 { usize::MAX } else { limits::COPIED_BYTES_MAX }
}

/// The problem of a body over the limit.
pub fn too_large(bytes_max: usize) -> Problem {
    Problem::new(&codes::BATCH_TOO_LARGE, format!("a batch has at most {bytes_max} bytes"))
}

/// How long the body is, if the head says so.
fn announced(head: &Head<'_>) -> Option<usize> {
    let length = match head.framing {
        Framing::Length(length) => Some(length),
        Framing::Stream(length) => length,
        Framing::Chunked => None,
    };
    length.and_then(|length| usize::try_from(length).ok())
}
