//! `GET /v1/msgs/:appid/:topic/:ver`: messages of a group, one or a batch, waiting if there are none.
//!
//! The messages come from the group's home ([`super::home`]), wherever that is, and are settled by what became of the answer:
//! delivered when its last byte was taken by the kernel, given back when the client had gone. With `ack=1` delivered messages are
//! held until somebody acknowledges them.

use std::{
    net::IpAddr,
    rc::Rc,
    sync::Arc,
    task::{self, Poll},
    time::Duration,
};

use super::{
    ack, bury, call, codes,
    context::Context,
    format::{self, BatchBody, Format},
    frame::{AckAt, DrainPhase, FetchRequest, GroupKey, Op},
    home::{self, Lease},
    query::{Query, invalid},
    reply::{Problem, Stamp},
    resume,
    stream::{Batch, Batches, Next, StreamBody, StreamSpec},
};
use crate::{
    limits,
    mesh::ShardId,
    proto::{Body, BodySource, Head, Reply, Sent, compress::Coding, reply::Aborted},
    registry::names::{self, Queue},
    store::{Delivery, FetchSpec, Gap, LeaseSpec, Offset, Outcome, Partition, Reset, TagFilter, Topic},
};

/// The parameters of the route.
pub const PARAMETERS: &[&str] =
    &["group", "batch", "wait", "reset", "linger", "ack", "lease", "max_deliveries", "q", "stream", "next"];
/// The same on a WebSocket.
const WS_PARAMETERS: &[&str] =
    &["group", "batch", "wait", "reset", "linger", "ack", "lease", "max_deliveries", "q", "stream", "next", "credit"];
const LINGER_DEFAULT: Duration = Duration::from_millis(5);
const LINGER_MAX: Duration = Duration::from_secs(1);
const LEASE_DEFAULT: Duration = Duration::from_secs(30);
/// A stream's messages of one step, where `batch` does not say.
const STREAM_BATCH: i64 = 256;
/// Something is written to a stream at least so often.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// Bytes a stream takes at a time: what one slow reader holds.
const STREAM_BYTES_MAX: usize = 1024 * 1024;

/// A read whose head was found good.
#[derive(Debug)]
pub struct Subscribe {
    key: GroupKey,
    /// Its partitions are known when the topic is.
    request: FetchRequest,
    format: Format,
    /// What it acknowledges first.
    ack: Option<AckAt>,
    /// `Last-Event-ID`.
    cursor: Option<Vec<(Partition, Offset)>>,
    is_stream: bool,
    is_single: bool,
    /// Of a client that says what it takes: what its answer is compressed with.
    pub coding: Option<Option<Coding>>,
    /// Where messages that were delivered too often go; it has to be there.
    dead_queue: Option<String>,
    /// On a WebSocket: offsets in its frames name the message to read next.
    is_next: bool,
    /// Messages a WebSocket may be sent before it says more, if that is to be so.
    credit: Option<u64>,
}

/// What a request is to become.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Answer,
    WebSocket(Format),
}

impl Subscribe {
    pub fn plan(
        ctx: &Rc<Context>,
        head: &Head<'_>,
        reader: &str,
        client: Option<IpAddr>,
        parts: [&[u8]; 3],
    ) -> Result<Self, Problem> {
        let query = Query::parse(head.query, PARAMETERS)?;
        Self::plan_as(ctx, head, reader, client, parts, &query, Kind::Answer)
    }

    /// The same for a WebSocket, which is a stream by other means.
    pub fn plan_ws(
        ctx: &Rc<Context>,
        head: &Head<'_>,
        reader: &str,
        client: Option<IpAddr>,
        parts: [&[u8]; 3],
        format: Format,
    ) -> Result<Self, Problem> {
        let query = Query::parse(head.query, WS_PARAMETERS)?;
        Self::plan_as(ctx, head, reader, client, parts, &query, Kind::WebSocket(format))
    }

    fn plan_as(
        ctx: &Rc<Context>,
        head: &Head<'_>,
        reader: &str,
        client: Option<IpAddr>,
        parts: [&[u8]; 3],
        query: &Query<'_>,
        kind: Kind,
    ) -> Result<Self, Problem> {
        let topic = call::topic(parts)?;
        let group_id = call::group_id(reader, query.required("group")?)?;
        let is_stream = query.flag("stream")? || kind != Kind::Answer;
        let batch_max = i64::try_from(limits::BATCH_MESSAGES_MAX).unwrap_or(i64::MAX);
        let batch = query.number("batch", 1..=batch_max)?.unwrap_or(if is_stream { STREAM_BATCH } else { 1 });
        let wait_max = Duration::from_secs(limits::WAIT_S_MAX);
        let reset = match query.get("reset") {
            None | Some(b"oldest") => Reset::Oldest,
            Some(b"newest") => Reset::Newest,
            Some(other) => return Err(invalid("reset", other, "oldest or newest")),
        };
        let queue = call::queue(query)?;
        let format = match kind {
            Kind::Answer => Format::accepted(head.field("accept")),
            Kind::WebSocket(format) => format,
        };
        let batch_bytes_max = ctx.config.borrow().subscribe.batch_bytes_max;
        let spec = FetchSpec {
            messages_max: usize::try_from(batch).unwrap_or(1),
            bytes_max: if is_stream { batch_bytes_max.min(STREAM_BYTES_MAX) } else { batch_bytes_max },
            wait: query.duration("wait", wait_max)?.unwrap_or(wait_max),
            linger: query.duration("linger", LINGER_MAX)?.unwrap_or(LINGER_DEFAULT),
            filter: filter(head)?,
            lease: lease(ctx, query, queue, is_stream)?,
            client,
            with_ends: is_stream && format == Format::Sse,
            waited: Duration::ZERO,
        };
        let has_limit = spec.lease.is_some_and(|lease| lease.deliveries_max.is_some());
        let dead_queue = has_limit.then(|| Queue::Dead.topic(&topic, &group_id));
        let key = call::key(topic, group_id, queue);
        let is_next = query.flag("next")?;
        let (ack, is_single) = (ack::by_fields(head, is_next)?, batch == 1 && !is_stream);
        let request = FetchRequest { partitions: 0, reset, spec, is_from_peer: false, ticket: 0 };
        let mut accepts = head.fields_named("accept-encoding").peekable();
        let coding = accepts.peek().is_some().then_some(()).map(|()| Coding::accepted(accepts));
        let credit = query.number("credit", 0..=i64::MAX)?.and_then(|credit| u64::try_from(credit).ok());
        let cursor = cursor(head, format)?;
        Ok(Self { key, request, format, ack, cursor, is_stream, is_single, coding, dead_queue, is_next, credit })
    }

    /// The core the group lives on.
    pub fn home(&self, ctx: &Context) -> ShardId {
        home::of(ctx, &self.key)
    }

    /// Takes itself by its box: it is large, and moved once more by value.
    pub async fn run(mut self: Box<Self>, ctx: &Rc<Context>, stamp: &Stamp) -> Result<Reply, Problem> {
        let topic = self.prepare(ctx).await?;
        if self.is_stream {
            let reading = Reading { ctx: Rc::clone(ctx), key: self.key, topic, request: self.request };
            return Box::pin(reading.stream(self.format, stamp)).await;
        }
        let lease = home::fetch(ctx, &self.key, &self.request).await?;
        let settlement = Settlement::new(ctx, lease, topic, self.key.group_id);
        Ok(answer(settlement, self.is_single, self.format, stamp))
    }

    /// Begins to read for a WebSocket. What is wrong shows with the first look, before the connection is one.
    pub async fn open(mut self: Box<Self>, ctx: &Rc<Context>) -> Result<Opened, Problem> {
        let topic = self.prepare(ctx).await?;
        let mut reading = Reading { ctx: Rc::clone(ctx), key: self.key, topic, request: self.request };
        let first = match self.credit {
            Some(0) => Batch::default(),
            credit => reading.next_of(credit, Duration::ZERO).await?,
        };
        Ok(Opened { reading, first, format: self.format, is_next: self.is_next, credit: self.credit })
    }

    /// Looks up what it is about, and does what it is to do before it reads.
    async fn prepare(&mut self, ctx: &Rc<Context>) -> Result<Rc<Topic>, Problem> {
        let topic = bury::shadow_or_topic(ctx, &self.key.topic).await?;
        if let Some(dead_queue) = &self.dead_queue {
            bury::shadow_topic(ctx, dead_queue).await?;
        }
        if let Some(item) = self.ack {
            Box::pin(ack::acknowledge(ctx, &self.key, vec![item])).await?;
        }
        if let Some(cursor) = self.cursor.take() {
            let is_explicit = self.request.spec.lease.is_some();
            Box::pin(resume::resume(ctx, &self.key, &topic, cursor, is_explicit)).await?;
        }
        self.request.partitions = topic.partitions.get();
        Ok(topic)
    }
}

/// A group that is read for a WebSocket.
#[derive(Debug)]
pub struct Opened {
    pub reading: Reading,
    pub first: Batch,
    pub format: Format,
    pub is_next: bool,
    pub credit: Option<u64>,
}

/// Where an event stream that was cut is to go on.
fn cursor(head: &Head<'_>, format: Format) -> Result<Option<Vec<(Partition, Offset)>>, Problem> {
    if format != Format::Sse {
        return Ok(None);
    }
    let Some(text) = head.field("last-event-id").filter(|text| !text.is_empty()) else { return Ok(None) };
    let wrong = || Problem::new(&codes::INVALID_FIELD, "Last-Event-ID is not an id of ours");
    format::parse_cursor(text).map(Some).ok_or_else(wrong)
}

/// A group read without end.
#[derive(Debug)]
pub struct Reading {
    ctx: Rc<Context>,
    pub key: GroupKey,
    topic: Rc<Topic>,
    request: FetchRequest,
}

impl Reading {
    /// What is wrong shows with the first look, and is answered as such; from then on the answer has begun.
    async fn stream(mut self, format: Format, stamp: &Stamp) -> Result<Reply, Problem> {
        let (ctx, max_stream) = (Rc::clone(&self.ctx), self.ctx.config.borrow().subscribe.max_stream);
        let first = self.next(Duration::ZERO).await?;
        let spec = StreamSpec { format, heartbeat: HEARTBEAT, max_stream, stamp: stamp.clone() };
        let mut reply = format.reply(&stamp.request_id);
        let (key, stream) = (self.key.clone(), self.request.spec.lease.and_then(|lease| lease.stream));
        let body = StreamBody::new(Box::new(self), first, spec);
        reply.body = Body::Source(Box::new(Streaming { body, key, stream, ctx: Rc::clone(&ctx) }));
        ctx.metrics.cells.streams.add(1);
        Ok(reply)
    }
}

impl Batches for Reading {
    fn next(&mut self, wait: Duration) -> Next {
        self.next_of(None, wait)
    }
}

impl Reading {
    /// The next batch, of so many messages at most.
    pub fn next_of(&mut self, messages_max: Option<u64>, wait: Duration) -> Next {
        let (ctx, key, topic) = (Rc::clone(&self.ctx), self.key.clone(), Rc::clone(&self.topic));
        let mut request = self.request.clone();
        request.spec.wait = wait;
        if let Some(max) = messages_max.and_then(|max| usize::try_from(max).ok()) {
            request.spec.messages_max = request.spec.messages_max.min(max);
        }
        Box::pin(async move {
            let lease = home::fetch(&ctx, &key, &request).await?;
            let end = matches!(lease, Lease::Nothing) || ctx.drain_phase() == DrainPhase::Closing;
            let mut settlement = Settlement::new(&ctx, lease, topic, key.group_id);
            let delivery = settlement.take();
            let settle = if delivery.messages.is_empty() { settlement.forget() } else { Some(settlement) };
            Ok(Batch { delivery, settle: settle.map(|settle| Box::new(settle) as _), end })
        })
    }

    /// Its client stopped taking it.
    pub fn give_up(&self) {
        if let Some(stream) = self.request.spec.lease.and_then(|lease| lease.stream) {
            end_stream(&self.ctx, &self.key, stream);
        }
    }
}

/// What a stream's client was given before it stopped taking it is another's at once, not only when its leases end.
fn end_stream(ctx: &Rc<Context>, key: &GroupKey, stream: u64) {
    let (ctx, key) = (Rc::clone(ctx), key.clone());
    glommio::spawn_local(async move {
        // What fails comes again when its leases end.
        let _ = home::ask(&ctx, &key, Op::EndStream(stream), false).await;
    })
    .detach();
}

/// Counts a stream while it is written.
struct Streaming {
    body: StreamBody,
    key: GroupKey,
    /// What its leases go by, with `ack=1`.
    stream: Option<u64>,
    ctx: Rc<Context>,
}

impl BodySource for Streaming {
    fn poll_piece(&mut self, cx: &mut task::Context<'_>, out: &mut Vec<u8>) -> Poll<Option<Result<(), Aborted>>> {
        self.body.poll_piece(cx, out)
    }

    fn handed_over(&mut self) -> Option<Box<dyn Sent>> {
        self.body.handed_over()
    }
}

impl Drop for Streaming {
    fn drop(&mut self) {
        self.ctx.metrics.cells.streams.sub(1);
        if let Some(stream) = self.stream.filter(|_| self.body.is_holding()) {
            end_stream(&self.ctx, &self.key, stream);
        }
    }
}

fn filter(head: &Head<'_>) -> Result<Option<TagFilter>, Problem> {
    if head.field("x-tag-expr").is_some() {
        return Err(Problem::new(&codes::NOT_SUPPORTED, "not supported: X-Tag-Expr is not built yet in this version"));
    }
    let tag = head.field("x-tag");
    if tag.is_some_and(|t| t.len() > limits::TAG_BYTES_MAX) {
        return Err(Problem::new(&codes::TAG_TOO_LONG, "X-Tag is over its limit"));
    }
    Ok(tag.and_then(TagFilter::parse))
}

/// How messages are held, with `ack=1`.
fn lease(
    ctx: &Context,
    query: &Query<'_>,
    queue: Option<Queue>,
    is_stream: bool,
) -> Result<Option<LeaseSpec>, Problem> {
    let term = query.duration("lease", ack::LEASE_MAX)?;
    if let Some(term) = term.filter(|term| *term < ack::LEASE_MIN) {
        return Err(invalid("lease", format!("{}ms", term.as_millis()).as_bytes(), "a duration from 100ms to 12h"));
    }
    let deliveries_max = query.number("max_deliveries", 1..=1_000_000)?.and_then(|n| u32::try_from(n).ok());
    if !query.flag("ack")? {
        let given = [("lease", term.is_some()), ("max_deliveries", deliveries_max.is_some())];
        return match given.iter().find(|(_, is_given)| *is_given) {
            Some((name, _)) => Err(Problem::new(&codes::INVALID_PARAMETER, format!("{name}= is for ack=1 only"))),
            None => Ok(None),
        };
    }
    if deliveries_max.is_some() && queue == Some(Queue::Dead) {
        let detail = "max_deliveries= is not for the dead queue, from which nothing is buried further";
        return Err(Problem::new(&codes::INVALID_PARAMETER, detail));
    }
    let stream = is_stream.then(|| ctx.unique());
    Ok(Some(LeaseSpec { deliveries_max, stream, ..LeaseSpec::of(term.unwrap_or(LEASE_DEFAULT)) }))
}

fn answer(mut settlement: Settlement, is_single: bool, format: Format, stamp: &Stamp) -> Reply {
    let mut delivery = settlement.take();
    let filtered = delivery.filtered;
    let Some(first) = delivery.messages.first() else {
        settlement.forget();
        return with_filtered(Reply::new(204).field("X-Request-Id", &stamp.request_id), filtered);
    };
    let reply = if is_single {
        format::single(&delivery, first, &stamp.request_id)
    } else {
        let mut reply = format.reply(&stamp.request_id);
        // Not in the body, where readers of the old frames would take it for a message.
        for gap in delivery.gaps.drain(..) {
            let Gap { partition, from, to } = gap;
            reply.add_display("X-Gap", format_args!("{from}-{to};partition={partition}"));
        }
        reply.body = Body::Source(Box::new(BatchBody::new(format, delivery)));
        reply
    };
    let mut reply = with_filtered(reply, filtered);
    reply.on_sent = Some(Box::new(settlement));
    reply
}

fn with_filtered(reply: Reply, filtered: u64) -> Reply {
    if filtered == 0 {
        return reply;
    }
    reply.number("X-Filtered", i64::try_from(filtered).unwrap_or(i64::MAX))
}

/// Settles a lease by what becomes of its answer.
struct Settlement {
    lease: Option<Lease>,
    ctx: Rc<Context>,
    topic: Rc<Topic>,
    group_id: Arc<str>,
    messages: u64,
    bytes: u64,
}

impl Settlement {
    fn new(ctx: &Rc<Context>, lease: Lease, topic: Rc<Topic>, group_id: Arc<str>) -> Self {
        Self { lease: Some(lease), ctx: Rc::clone(ctx), topic, group_id, messages: 0, bytes: 0 }
    }

    /// The messages, to be written.
    fn take(&mut self) -> Delivery {
        let delivery = self.lease.as_mut().map(Lease::take_messages).unwrap_or_default();
        self.ctx.metrics.cells.sub_filtered.add(delivery.filtered);
        self.bytes = delivery.messages.iter().map(|m| m.value.len() as u64).sum();
        self.messages = delivery.messages.len() as u64;
        delivery
    }

    /// An empty lease settles nothing.
    fn forget(mut self) -> Option<Self> {
        self.lease = None;
        None
    }

    fn count(&self) {
        self.ctx.metrics.cells.sub_messages.add(self.messages);
        self.ctx.metrics.cells.sub_bytes.add(self.bytes);
        self.topic.usage.read.add(self.messages, self.bytes);
        if let Some(data) = &self.ctx.data {
            let reader = names::reader_of(&self.group_id);
            data.readers.messages.add(reader, self.messages);
            data.readers.bytes.add(reader, self.bytes);
        }
    }
}

impl Sent for Settlement {
    fn sent(mut self: Box<Self>) {
        self.count();
        if let Some(lease) = self.lease.take() {
            lease.settle(Outcome::Delivered);
        }
    }
}

impl Drop for Settlement {
    fn drop(&mut self) {
        if let Some(lease) = self.lease.take() {
            self.ctx.metrics.cells.sub_given_back.add(1);
            lease.settle(Outcome::Cut);
        }
    }
}
