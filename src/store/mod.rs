//! The seam under the API: what a store offers, in Kafka's words, without Kafka.
//!
//! A store produces records, answers what topics exist, and opens reader groups. Three implement it: `kafka` (its own module,
//! production), [`memory`] (embedded, in this process) and [`null`] (dry run). The seam is a trait without boxing: the API
//! dispatches over an enum, so the Kafka path pays nothing for the other two.
//!
//! Invariants: `produce` has handed the record over when it returns, not when its future is first polled; a future that is
//! dropped never un-sends a record. What a report means for data safety is decided here once, by [`ProduceError`].
//! This module knows no HTTP and no librdkafka.

pub mod admin;
pub mod group;
pub mod lease;
pub mod line;
pub mod memory;
pub mod murmur2;
pub mod notify;
pub mod null;
pub mod record;
pub mod tag;

use std::{cell::Cell, collections::VecDeque, future::Future, rc::Rc, sync::Arc};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

pub use admin::{At, GroupInfo, GroupMember, ListedGroup, SeekError};
pub use group::{
    Acked, Bounds, Budget, Burial, Delivery, FetchError, FetchSpec, Grant, Group, GroupStatus, LeaseSpec, Outcome,
    Stuck,
};
pub use line::{Line, Produced};
pub use record::{Header, Partition, Record, TAG_HEADER};
pub use tag::TagFilter;

/// Record offset within a partition.
pub type Offset = i64;

/// How sure the publisher wants to be before the answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ack {
    /// All in-sync replicas, idempotent producer.
    All,
    /// The leader's log.
    Local,
    /// Not even the broker's answer.
    None,
}

/// What the Kafka name of a group's retry queue ends in.
pub const RETRY_SUFFIX: &str = ".retry";

/// The record header that says from when on (Unix ms) a message of a retry queue may be read.
pub const DUE_HEADER: &[u8] = b"kateway-due";

/// Where a record stands. `offset` is -1 where the store has none to give (`ack=none`, null store).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stored {
    pub partition: Partition,
    pub offset: Offset,
}

/// Why a record was not acknowledged. The variants say what is known about the data, not what went wrong inside.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ProduceError {
    /// The producer's queue has no room: nothing was taken. Retry after the queue drained.
    QueueFull { queued_bytes: u64 },
    /// For sure not in the topic (`NOT_PERSISTED`, `NOT_ENOUGH_REPLICAS`): may be retried or handed off.
    NotStored { reason: &'static str },
    /// May be in the topic (`POSSIBLY_PERSISTED`, deadline passed): must not be retried by us.
    Unknown { reason: &'static str },
    /// The broker refused it for good.
    Refused { reason: &'static str },
    /// The broker or the local metadata says there is no such topic.
    UnknownTopic,
    /// The explicit partition does not exist.
    UnknownPartition,
}

impl ProduceError {
    /// There is no such topic or partition, as far as is known.
    pub fn is_unknown(&self) -> bool {
        matches!(self, Self::UnknownTopic | Self::UnknownPartition)
    }
}

/// A message on its way out.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Message {
    pub partition: Partition,
    pub offset: Offset,
    /// Unix time in ms; -1 when the broker keeps none.
    pub timestamp_ms: i64,
    pub key: Option<Bytes>,
    pub value: Bytes,
    /// The value is null, which is not the same as empty. `value` is empty then.
    pub is_tombstone: bool,
    /// Shared, because a delivered message is kept until it is acknowledged; `None` for the usual record without headers.
    pub headers: Option<Arc<[Header]>>,
}

impl Message {
    /// The value of `kateway-tag`, if the message was tagged.
    pub fn tag(&self) -> Option<&[u8]> {
        self.headers().iter().find(|(name, _)| name.as_ref() == TAG_HEADER).and_then(|(_, value)| value.as_deref())
    }

    /// From when on it may be read, in Unix ms, if that was said.
    pub fn due_ms(&self) -> Option<i64> {
        let (_, due) = self.headers.as_ref()?.iter().find(|(name, _)| name.as_ref() == DUE_HEADER)?;
        std::str::from_utf8(due.as_deref()?).ok()?.parse().ok()
    }

    pub fn headers(&self) -> &[Header] {
        self.headers.as_deref().unwrap_or_default()
    }

    /// What it counts against a byte budget.
    pub fn bytes(&self) -> usize {
        let bytes = self.value.len() + self.key.as_ref().map_or(0, Bytes::len);
        if let Some(headers) = &self.headers { bytes + headers_bytes(headers) } else { bytes }
    }
}

#[inline(never)] // Each message is asked for its bytes some times, and few have headers.
fn headers_bytes(headers: &[Header]) -> usize {
    headers.iter().map(|(name, value)| name.len() + value.as_ref().map_or(0, Bytes::len)).sum()
}

/// Offsets that retention took before a group had read them, both included.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Gap {
    pub partition: Partition,
    pub from: Offset,
    pub to: Offset,
}

/// What a core knows of a topic. Per core: interned once, so that handles and counters hang on `slot`.
#[derive(Debug)]
pub struct Topic {
    /// Kafka's name (`appid.topic.ver`).
    pub name: Box<str>,
    /// Dense index on this core, for handle caches.
    pub slot: usize,
    /// Partitions at the last refresh.
    pub partitions: Cell<i32>,
    pub usage: Usage,
}

/// What clients of this core did with a topic. Beside what the hot path reads of it anyway: counting is four plain stores.
#[derive(Debug, Default)]
pub struct Usage {
    pub published: Traffic,
    pub read: Traffic,
}

/// Messages and their bytes.
#[derive(Debug, Default)]
pub struct Traffic {
    messages: Cell<u64>,
    bytes: Cell<u64>,
}

impl Traffic {
    pub fn add(&self, messages: u64, bytes: u64) {
        self.messages.set(self.messages.get().wrapping_add(messages));
        self.bytes.set(self.bytes.get().wrapping_add(bytes));
    }

    /// Messages and bytes since the start.
    pub fn get(&self) -> (u64, u64) {
        (self.messages.get(), self.bytes.get())
    }
}

/// A topic as the cluster lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicMeta {
    pub name: String,
    pub partitions: i32,
}

/// Failure of a call about topics or groups (metadata, create, watermarks).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AdminError {
    /// No broker answered in time, or the offload pool is full.
    Unavailable {
        reason: String,
    },
    Exists,
    /// Kafka takes the name for another's (`.` against `_`).
    Collides,
    UnknownTopic,
    /// The cluster refused (policy, bad replication factor).
    Refused {
        reason: String,
    },
    /// The group has members, which alone may move or forget its offsets.
    InUse,
    /// This store has no such operation.
    NotSupported,
}

/// Where a group starts where it has nothing committed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum Reset {
    #[default]
    Oldest,
    Newest,
}

/// How a group begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Begin {
    pub reset: Reset,
    /// Partitions `reset` is for: those that both the core that was asked and the group's home know of. That can be fewer than the
    /// topic has, for as long as one of the two has not listed it since it grew.
    pub partitions: Partition,
}

/// Oldest and next offset of one partition.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Watermarks {
    pub partition: Partition,
    pub oldest: Offset,
    pub latest: Offset,
}

/// What every store offers. Per core: one value per executor, never shared.
pub trait Store {
    /// Resolves with the report of one record. Owns nothing of the record: dropping it only stops the waiting.
    type Report: Future<Output = Result<Stored, ProduceError>> + 'static;

    /// Hands a record over. The record is taken when this returns `Ok`, whether or not the report is awaited.
    fn produce(&self, topic: &Topic, record: Record, ack: Ack) -> Result<Self::Report, ProduceError>;

    /// Hands records over in their order, each with a place in `line` for what becomes of it. Fails only for want of room: then those
    /// stay in `records` that were not taken.
    fn produce_all(
        &self,
        topic: &Topic,
        records: &mut VecDeque<Record>,
        ack: Ack,
        line: &Rc<Line>,
    ) -> Result<(), ProduceError>;

    /// Hands a record over; nobody waits for its report (`async=1`, `ack=none`).
    fn enqueue(&self, topic: &Topic, record: Record, ack: Ack) -> Result<(), ProduceError>;

    /// Whether the producer's queue takes more than a few records; where many are to follow each other it is waited for.
    fn has_room(&self, _ack: Ack) -> bool {
        true
    }

    /// Every topic of the cluster. Never blocks the core.
    fn list_topics(&self) -> impl Future<Output = Result<Vec<TopicMeta>, AdminError>>;

    fn create_topic(&self, name: &str, partitions: i32, replicas: i32) -> impl Future<Output = Result<(), AdminError>>;

    /// Oldest and latest of every partition.
    fn watermarks(&self, topic: &Topic) -> impl Future<Output = Result<Vec<Watermarks>, AdminError>>;

    /// Joins `group` (Kafka's group id) on `topic`. Returns at once; the group fills when partitions are assigned.
    fn open_group(&self, topic: &Rc<Topic>, group_id: &str, begin: Begin) -> Result<Rc<Group>, AdminError>;

    /// Commits what is acknowledged, leaves, and frees the client. The group is not used afterwards.
    fn close_group(&self, group: &Rc<Group>) -> impl Future<Output = ()>;

    /// Who reads `topic` in the group, here or elsewhere.
    fn describe_group(&self, topic: &str, group_id: &str) -> impl Future<Output = Result<GroupInfo, AdminError>>;

    /// The groups of the cluster, at most [`crate::limits::GROUPS_LISTED_MAX`]: those that read `topic` now stand first.
    fn list_groups(&self, topic: &str) -> impl Future<Output = Result<Vec<ListedGroup>, AdminError>>;

    /// Committed offsets of the group, of the partitions that have one. A group that is not there has none.
    fn committed(
        &self,
        topic: &Topic,
        group_id: &str,
    ) -> impl Future<Output = Result<Vec<(Partition, Offset)>, AdminError>>;

    /// Commits for a group that nobody reads; [`AdminError::InUse`] when somebody does. An open group is moved by `seek`.
    fn set_committed(
        &self,
        topic: &Topic,
        group_id: &str,
        ends: &[(Partition, Offset)],
    ) -> impl Future<Output = Result<(), AdminError>>;

    /// Forgets what the group has committed in this topic; [`AdminError::InUse`] while it is read.
    fn delete_committed(&self, topic: &Topic, group_id: &str) -> impl Future<Output = Result<(), AdminError>>;

    /// The offset of a place in every partition.
    fn offsets_at(&self, topic: &Topic, at: At) -> impl Future<Output = Result<Vec<(Partition, Offset)>, AdminError>>;

    /// Moves a group that is open on this core: its leases of these partitions are void, no message from before is delivered after
    /// this ends, and the offsets are committed when it gives `Ok`. Offsets outside the log are not checked here.
    fn seek(&self, group: &Rc<Group>, moves: Vec<(Partition, Offset)>) -> impl Future<Output = Result<(), SeekError>>;

    /// Messages from these offsets on, without a group: at most `messages_max`, and no more once `bytes_max` is reached. It ends at
    /// what was the newest when it began, or after a few seconds.
    fn peek(
        &self,
        topic: &Topic,
        from: &[(Partition, Offset)],
        messages_max: usize,
        bytes_max: usize,
    ) -> impl Future<Output = Result<Vec<Message>, AdminError>>;

    /// Waits until every record handed over is reported, at most until `deadline`; what is left then is counted.
    fn flush(&self, deadline: std::time::Instant) -> impl Future<Output = u64>;

    /// Whether a cluster can be reached; what `/readyz` asks.
    fn is_reachable(&self) -> bool;

    /// Messages and bytes waiting in producers of this core.
    fn queued(&self) -> (u64, u64);
}

/// Numbers below what is asked, the same in every run: for tests against a model.
#[cfg(test)]
fn random() -> impl FnMut(u64) -> u64 {
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    move |below| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed % below
    }
}
