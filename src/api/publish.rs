//! `POST /v1/msgs/:topic/:ver`: one message, one record.
//!
//! Planned from the head (everything that can be refused is refused before the body is read), carried out with the body. Takes
//! the decisions: produce and wait, produce and go, refuse.

use std::{
    rc::Rc,
    time::{Duration, Instant},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;

use super::{
    Action,
    admit::Inflight,
    batch::{self, Batch},
    codes,
    context::{Context, DataPlane},
    idempotency::{Key, Once},
    query::{Query, invalid, percent_decode},
    reply::{self, Problem, Stamp},
};
use crate::{
    limits,
    proto::{
        Head, Reply,
        compress::{Coding, UnknownCoding, sent_bytes_max},
        head::Framing,
    },
    registry::names,
    store::{Ack, Header, Partition, ProduceError, Record, Store, Stored, TAG_HEADER, Topic},
    within::within,
};

/// The parameters of the route.
pub const PARAMETERS: &[&str] = &["key", "partition", "ack", "async", "hh", "batch", "results"];

/// A look-up that took longer counts against the publish's deadline.
const LOOK_UP_SLOW: Duration = Duration::from_millis(100);

/// A publish whose head was found good.
#[derive(Debug)]
pub struct Publish {
    topic: TopicRef,
    pub(super) record: Record,
    pub(super) ack: Ack,
    /// Answer once the record is in the producer's queue.
    pub(super) is_async: bool,
    bytes_max: usize,
    inflight: Inflight,
}

/// The topic, or its name when this core has not met it yet.
#[derive(Debug)]
enum TopicRef {
    Known(Rc<Topic>),
    Unknown(String),
}

/// When the stages of a publish that was handed over ended (see [`crate::metrics::Stages`]).
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// The record was handed to the store.
    pub enqueued: Instant,
    /// The core had its report.
    pub reported: Instant,
    /// The request ran again.
    pub resumed: Instant,
}

impl Publish {
    /// Reads everything but the body. The order of the checks is the contract's.
    pub(super) fn plan(ctx: &Rc<Context>, head: &Head<'_>, topic: &[u8], ver: &[u8]) -> Result<Action, Problem> {
        let inflight = Inflight::admit(ctx)?;
        let appid = super::admit::appid(head)?;
        let (topic, ver) = super::admit::topic_names(topic, ver)?;
        let query = Query::parse(head.query, PARAMETERS)?;
        let is_batch = query.flag("batch")?;
        let (bytes_max, too_large) = if is_batch {
            (ctx.config.borrow().publish.batch_bytes_max, batch::too_large as fn(usize) -> Problem)
        } else {
            (ctx.config.borrow().publish.message_bytes_max, too_large as fn(usize) -> Problem)
        };
        let coding = coding(head);
        // What is compressed may be a little longer than what it becomes.
        let sent_max = if let Ok(Some(_)) = coding { sent_bytes_max(bytes_max) } else { bytes_max };
        check_size(head, sent_max, || too_large(bytes_max))?;
        let coding = coding?;
        check_hand_off(&query)?;
        let ack = ack(&query)?;
        let mut once = None;
        let record = Record {
            key: key(&query)?,
            value: Bytes::new(),
            is_tombstone: false,
            headers: record_headers(head, &mut once)?,
            partition: partition(&query)?,
        };
        let topic = names::with_kafka_topic(appid, topic, ver, |name| {
            match ctx.data.as_ref().and_then(|data| data.topics.get(name)) {
                Some(topic) => TopicRef::Known(topic),
                None => TopicRef::Unknown(name.to_owned()),
            }
        });
        let publish = Self { topic, record, ack, is_async: query.flag("async")?, bytes_max, inflight };
        if is_batch {
            return Batch::plan(ctx, head, &query, publish, coding).map(|batch| Action::Batch(Box::new(batch)));
        }
        if let Some(results) = query.get("results") {
            return Err(invalid("results", results, "for batch=1 alone"));
        }
        Ok(match (coding, once) {
            (Some(coding), once) => Action::Inflate(Box::new((publish, once, coding))),
            (None, Some(key)) => Action::Once(Box::new(Once::new(key, publish))),
            (None, None) => Action::Publish(publish),
        })
    }

    /// The topic's name in Kafka.
    pub fn topic_name(&self) -> &str {
        match &self.topic {
            TopicRef::Known(topic) => &topic.name,
            TopicRef::Unknown(name) => name,
        }
    }

    pub fn bytes_max(&self) -> usize {
        self.bytes_max
    }

    /// Produces the body and answers.
    pub async fn run(
        mut self,
        ctx: &Rc<Context>,
        body: Bytes,
        stamp: &Stamp,
    ) -> (Result<Reply, Problem>, Option<Timing>) {
        let mut timing = None;
        self.record.value = body;
        let result = self.produce(ctx, stamp, &mut timing).await;
        drop(self.inflight);
        (result, timing)
    }

    /// The same for one that waited since `began`: what that has taken is taken off its deadline.
    pub(super) async fn run_since(
        mut self,
        began: Instant,
        ctx: &Rc<Context>,
        body: Bytes,
        stamp: &Stamp,
    ) -> (Result<Reply, Problem>, Option<Timing>) {
        if began.elapsed() < LOOK_UP_SLOW {
            return self.run(ctx, body, stamp).await;
        }
        let deadline = began + ctx.config.borrow().publish.deadline;
        let left = || deadline.saturating_duration_since(Instant::now());
        let look_up = async { self.topic(ctx).await.map(|(topic, _)| topic) };
        match in_time(look_up, left()).await {
            Ok(topic) => self.topic = TopicRef::Known(topic),
            Err(problem) => return (Err(problem), None),
        }
        // Nothing but the report is waited for any more.
        let unknown = || (Err(reply::produce_failed(&ProduceError::Unknown { reason: "DEADLINE" })), None);
        within(left(), self.run(ctx, body, stamp)).await.unwrap_or_else(unknown)
    }

    async fn produce(
        &mut self,
        ctx: &Rc<Context>,
        stamp: &Stamp,
        timing: &mut Option<Timing>,
    ) -> Result<Reply, Problem> {
        let data = ctx.plane()?;
        let bytes = self.record.value.len();
        if bytes == 0 {
            return Err(Problem::new(&codes::EMPTY_MESSAGE, "a message has at least one byte"));
        }
        let (topic, late) = self.topic(ctx).await?;
        let record = std::mem::take(&mut self.record);
        let is_chosen_by_store = record.partition.is_none();
        let answer = self.hand_over(data, &topic, record, stamp, late, timing).await;
        let reply = answer.map_err(|error| failed(ctx, data, &topic, error, is_chosen_by_store))?;
        ctx.metrics.cells.pub_messages.add(1);
        ctx.metrics.cells.pub_bytes.add(bytes as u64);
        topic.usage.published.add(1, bytes as u64);
        Ok(reply)
    }

    /// Hands the record to the store, and waits for its report unless nobody wants it.
    async fn hand_over(
        &self,
        data: &DataPlane,
        topic: &Topic,
        record: Record,
        stamp: &Stamp,
        late: Option<Instant>,
        timing: &mut Option<Timing>,
    ) -> Result<Reply, ProduceError> {
        let enqueued = Instant::now();
        if self.is_async || self.ack == Ack::None {
            data.backend.enqueue(topic, record, self.ack)?;
            let resumed = Instant::now();
            *timing = Some(Timing { enqueued, reported: resumed, resumed });
            return Ok(queued_reply(stamp));
        }
        let mut report = data.backend.produce(topic, record, self.ack)?;
        let stored = reported(&mut report, late).await;
        let resumed = Instant::now();
        *timing = Some(Timing { enqueued, reported: report.reported_at().unwrap_or(resumed), resumed });
        stored.map(|stored| stored_reply(stored, data.backend.is_volatile(), stamp))
    }

    /// The topic, and the publish's deadline if the look-up has used up some of its time.
    pub(super) async fn topic(&self, ctx: &Rc<Context>) -> Result<(Rc<Topic>, Option<Instant>), Problem> {
        if let TopicRef::Known(topic) = &self.topic
            && self.record.partition.is_none_or(|partition| partition < topic.partitions.get())
        {
            return Ok((Rc::clone(topic), None));
        }
        let began = Instant::now();
        let deadline = ctx.config.borrow().publish.deadline;
        let topic = in_time(self.look_up(ctx), deadline).await?;
        Ok((topic, (began.elapsed() >= LOOK_UP_SLOW).then_some(began + deadline)))
    }

    async fn look_up(&self, ctx: &Rc<Context>) -> Result<Rc<Topic>, Problem> {
        let topic = match &self.topic {
            TopicRef::Known(topic) => Rc::clone(topic),
            TopicRef::Unknown(name) => ctx.find_topic(name, true).await?,
        };
        let Some(partition) = self.record.partition else { return Ok(topic) };
        if partition >= topic.partitions.get()
            && let Some(data) = &ctx.data
            && !data.backend.makes_topics()
        {
            // The topic may have grown since the snapshot.
            ctx.refresh_topics(data).await?;
        }
        let topic = match (topic.partitions.get(), &self.topic) {
            // It is gone, which this look-up has found out: the same as if it had never been.
            (0, TopicRef::Known(gone)) => ctx.find_topic(&gone.name, true).await?,
            _ => topic,
        };
        match topic.partitions.get() {
            0 => Err(reply::unknown_topic()),
            count if partition < count => Ok(topic),
            count => Err(Problem::new(&codes::PARTITION_OUT_OF_RANGE, format!("partition {partition} of {count}"))),
        }
    }
}

/// What the snapshot and the client are told of a publish that failed.
pub(super) fn failed(
    ctx: &Rc<Context>,
    data: &DataPlane,
    topic: &Topic,
    error: ProduceError,
    is_chosen_by_store: bool,
) -> Problem {
    match error {
        ProduceError::UnknownTopic => {
            data.topics.forget(topic);
            // Where a missing topic is made, the next publish makes this one.
            let is_made = ctx.config.borrow().topics.auto_create;
            let error = if is_made { ProduceError::NotStored { reason: "UNKNOWN_TOPIC" } } else { error };
            reply::produce_failed(&error)
        }
        // The number was checked against the snapshot: the topic goes, is made again, or has grown.
        ProduceError::UnknownPartition => {
            if is_chosen_by_store {
                data.topics.forget(topic);
            } else {
                // Rather the producer is behind, and others who rely on the snapshot must not wait for it.
                ctx.want_refresh(data);
            }
            reply::produce_failed(&ProduceError::NotStored { reason: "UNKNOWN_PARTITION" })
        }
        error => reply::produce_failed(&error),
    }
}

/// A look-up of a topic, no longer than a publish may take.
pub(super) async fn in_time(
    look_up: impl Future<Output = Result<Rc<Topic>, Problem>>,
    deadline: Duration,
) -> Result<Rc<Topic>, Problem> {
    let late = || Err(Problem::new(&codes::UNAVAILABLE, "the topic could not be looked up within the deadline"));
    within(deadline, look_up).await.unwrap_or_else(late)
}

/// The report, no later than the deadline. The store bounds a wait that begins at once by itself; here only what a slow look-up
/// of the topic has taken is taken off.
async fn reported(
    report: impl Future<Output = Result<Stored, ProduceError>>,
    deadline: Option<Instant>,
) -> Result<Stored, ProduceError> {
    let Some(deadline) = deadline else { return report.await };
    let left = deadline.saturating_duration_since(Instant::now());
    within(left, report).await.unwrap_or(Err(ProduceError::Unknown { reason: "DEADLINE" }))
}

fn check_size(head: &Head<'_>, bytes_max: usize, too_large: impl Fn() -> Problem) -> Result<(), Problem> {
    let announced = match head.framing {
        Framing::Length(0) => return Err(Problem::new(&codes::EMPTY_MESSAGE, "a message has at least one byte")),
        Framing::Length(length) => Some(length),
        Framing::Stream(length) => length,
        Framing::Chunked => None,
    };
    match announced {
        Some(length) if length > bytes_max as u64 => Err(too_large()),
        _ => Ok(()),
    }
}

/// The problem of a body over the limit, found before or while reading.
pub fn too_large(bytes_max: usize) -> Problem {
    Problem::new(&codes::MESSAGE_TOO_LARGE, format!("a message has at most {bytes_max} bytes"))
}

/// What the body is compressed with.
fn coding(head: &Head<'_>) -> Result<Option<Coding>, Problem> {
    let mut fields = head.fields_named("content-encoding");
    let Some(field) = fields.next() else { return Ok(None) };
    let coding = if fields.next().is_some() { Err(UnknownCoding) } else { Coding::of_content(field) };
    coding.map_err(|UnknownCoding| Problem::new(&codes::UNKNOWN_CODING, "Content-Encoding is gzip, zstd or identity"))
}

/// Whether it may be handed off.
pub(super) fn check_hand_off(query: &Query<'_>) -> Result<(), Problem> {
    match query.get("hh") {
        None | Some(b"n" | b"y") => Ok(()),
        Some(other) => Err(invalid("hh", other, "n or y")),
    }
}

pub(super) fn ack(query: &Query<'_>) -> Result<Ack, Problem> {
    match query.get("ack") {
        None | Some(b"all") => Ok(Ack::All),
        Some(b"local") => Ok(Ack::Local),
        Some(b"none") => Ok(Ack::None),
        Some(other) => Err(invalid("ack", other, "all, local or none")),
    }
}

pub(super) fn key(query: &Query<'_>) -> Result<Option<Bytes>, Problem> {
    let Some(text) = query.get("key").filter(|t| !t.is_empty()) else { return Ok(None) };
    let key = percent_decode(text).ok_or_else(|| invalid("key", text, "percent-encoded bytes"))?;
    if key.len() > limits::KEY_BYTES_MAX {
        let detail = format!("a key has at most {} bytes, this one has {}", limits::KEY_BYTES_MAX, key.len());
        return Err(Problem::new(&codes::KEY_TOO_LONG, detail));
    }
    Ok(Some(key))
}

pub(super) fn partition(query: &Query<'_>) -> Result<Option<Partition>, Problem> {
    let Some(number) = query.number("partition", i64::MIN..=i64::MAX)? else { return Ok(None) };
    let partition = Partition::try_from(number).ok().filter(|p| *p >= 0);
    partition
        .map(Some)
        .ok_or_else(|| Problem::new(&codes::PARTITION_OUT_OF_RANGE, format!("no topic has partition {number}")))
}

/// `X-Tag`, trace context and `X-Header-*`, in the order they came. An `Idempotency-Key` on the way goes into `once`.
pub(super) fn record_headers(head: &Head<'_>, once: &mut Option<Key>) -> Result<Vec<Header>, Problem> {
    let mut headers = Vec::new();
    let mut tagged = false;
    for (name, value) in &head.fields {
        if name.eq_ignore_ascii_case(b"x-tag") {
            if value.len() > limits::TAG_BYTES_MAX {
                let detail = format!("a tag has at most {} bytes", limits::TAG_BYTES_MAX);
                return Err(Problem::new(&codes::TAG_TOO_LONG, detail));
            }
            if std::mem::replace(&mut tagged, true) {
                return Err(Problem::new(&codes::INVALID_FIELD, "X-Tag is given twice"));
            }
            if !value.is_empty() {
                headers.push((Bytes::from_static(TAG_HEADER), Some(Bytes::copy_from_slice(value))));
            }
        } else if name.eq_ignore_ascii_case(b"traceparent") || name.eq_ignore_ascii_case(b"tracestate") {
            headers.push((name.to_ascii_lowercase().into(), Some(Bytes::copy_from_slice(value))));
        } else if name.eq_ignore_ascii_case(b"idempotency-key") {
            *once = Some(super::idempotency::key(head, value)?);
        } else if name.len() > 9 && name[..9].eq_ignore_ascii_case(b"x-header-") {
            if name[9..].len() >= 8 && name[9..17].eq_ignore_ascii_case(b"kateway-") {
                return Err(Problem::new(&codes::INVALID_FIELD, "record headers named kateway- are the gateway's own"));
            }
            let decoded = STANDARD
                .decode(value)
                .map_err(|_| Problem::new(&codes::INVALID_FIELD, "the value of an X-Header- field is not base64"))?;
            headers.push((name[9..].to_ascii_lowercase().into(), Some(decoded.into())));
        }
    }
    Ok(headers)
}

pub const OK_BODY: &[u8] = b"{\"ok\":1}";

fn stored_reply(stored: Stored, volatile: bool, stamp: &Stamp) -> Reply {
    let mut reply = Reply::new(201)
        .field("X-Request-Id", &stamp.request_id)
        .number("X-Partition", i64::from(stored.partition))
        .number("X-Offset", stored.offset);
    if volatile {
        reply.add_field("X-Durability", b"none");
    }
    reply.body("application/json", OK_BODY)
}

fn queued_reply(stamp: &Stamp) -> Reply {
    Reply::new(202)
        .field("X-Request-Id", &stamp.request_id)
        .field("X-Durability", b"none")
        .body("application/json", OK_BODY)
}
