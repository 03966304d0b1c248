//! The configured store behind one enum: dispatch costs a branch, and no message is boxed.

use std::{
    collections::VecDeque,
    future::Future,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
    time::Instant,
};

pub use crate::kafka::ClientCounter;
use crate::{
    kafka::KafkaStore,
    metrics::SizesSnapshot,
    store::{
        Ack, AdminError, At, Begin, Group, GroupInfo, Line, ListedGroup, Message, Offset, Partition, ProduceError,
        Record, SeekError, Store, Stored, Topic, TopicMeta, Watermarks, memory::MemoryStore, null::NullStore,
    },
};

/// Per core.
#[derive(Debug)]
pub enum Backend {
    Kafka(KafkaStore),
    Memory(MemoryStore),
    Null(NullStore),
}

/// The report of whichever store took the record.
#[derive(Debug)]
pub enum Report {
    Kafka(<KafkaStore as Store>::Report),
    Memory(<MemoryStore as Store>::Report),
    Null(<NullStore as Store>::Report),
}

impl Report {
    /// When the core had the report that was awaited here; `None` for a store that has it at once.
    pub fn reported_at(&self) -> Option<Instant> {
        if let Self::Kafka(report) = self { report.reported_at() } else { None }
    }
}

impl Future for Report {
    type Output = Result<Stored, ProduceError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.get_mut() {
            Self::Kafka(report) => Pin::new(report).poll(cx),
            Self::Memory(report) => Pin::new(report).poll(cx),
            Self::Null(report) => Pin::new(report).poll(cx),
        }
    }
}

macro_rules! each {
    ($backend:expr, $store:ident => $call:expr) => {
        match $backend {
            Backend::Kafka($store) => $call,
            Backend::Memory($store) => $call,
            Backend::Null($store) => $call,
        }
    };
}

impl Backend {
    /// What the Kafka clients of this core count. Empty for the other stores.
    pub fn counters(&self) -> Vec<ClientCounter> {
        if let Self::Kafka(store) = self { store.counters() } else { Vec::new() }
    }

    /// Records by the batch they were sent in. Empty for the other stores.
    pub fn batch_sizes(&self) -> SizesSnapshot {
        if let Self::Kafka(store) = self { store.batch_sizes() } else { SizesSnapshot::default() }
    }

    /// Bytes of messages kept for the groups of this core.
    pub fn held_bytes(&self) -> usize {
        each!(self, store => store.bounds().budget.held())
    }

    /// Topics come into being when first used, whatever the configuration says.
    pub fn makes_topics(&self) -> bool {
        matches!(self, Self::Memory(_) | Self::Null(_))
    }

    /// What it stores is gone with the process.
    pub fn is_volatile(&self) -> bool {
        matches!(self, Self::Memory(_) | Self::Null(_))
    }
}

// === impl Store ===

impl Store for Backend {
    type Report = Report;

    fn produce(&self, topic: &Topic, record: Record, ack: Ack) -> Result<Report, ProduceError> {
        match self {
            Self::Kafka(store) => store.produce(topic, record, ack).map(Report::Kafka),
            Self::Memory(store) => store.produce(topic, record, ack).map(Report::Memory),
            Self::Null(store) => store.produce(topic, record, ack).map(Report::Null),
        }
    }

    fn produce_all(
        &self,
        topic: &Topic,
        records: &mut VecDeque<Record>,
        ack: Ack,
        line: &Rc<Line>,
    ) -> Result<(), ProduceError> {
        each!(self, store => store.produce_all(topic, records, ack, line))
    }

    fn enqueue(&self, topic: &Topic, record: Record, ack: Ack) -> Result<(), ProduceError> {
        each!(self, store => store.enqueue(topic, record, ack))
    }

    fn has_room(&self, ack: Ack) -> bool {
        if let Self::Kafka(store) = self { store.has_room(ack) } else { true }
    }

    async fn list_topics(&self) -> Result<Vec<TopicMeta>, AdminError> {
        each!(self, store => store.list_topics().await)
    }

    async fn create_topic(&self, name: &str, partitions: i32, replicas: i32) -> Result<(), AdminError> {
        each!(self, store => store.create_topic(name, partitions, replicas).await)
    }

    async fn watermarks(&self, topic: &Topic) -> Result<Vec<Watermarks>, AdminError> {
        each!(self, store => store.watermarks(topic).await)
    }

    fn open_group(&self, topic: &Rc<Topic>, group_id: &str, begin: Begin) -> Result<Rc<Group>, AdminError> {
        each!(self, store => store.open_group(topic, group_id, begin))
    }

    async fn close_group(&self, group: &Rc<Group>) {
        each!(self, store => store.close_group(group).await);
    }

    async fn describe_group(&self, topic: &str, group_id: &str) -> Result<GroupInfo, AdminError> {
        each!(self, store => store.describe_group(topic, group_id).await)
    }

    async fn list_groups(&self, topic: &str) -> Result<Vec<ListedGroup>, AdminError> {
        each!(self, store => store.list_groups(topic).await)
    }

    async fn committed(&self, topic: &Topic, group_id: &str) -> Result<Vec<(Partition, Offset)>, AdminError> {
        each!(self, store => store.committed(topic, group_id).await)
    }

    async fn set_committed(
        &self,
        topic: &Topic,
        group_id: &str,
        ends: &[(Partition, Offset)],
    ) -> Result<(), AdminError> {
        each!(self, store => store.set_committed(topic, group_id, ends).await)
    }

    async fn delete_committed(&self, topic: &Topic, group_id: &str) -> Result<(), AdminError> {
        each!(self, store => store.delete_committed(topic, group_id).await)
    }

    async fn offsets_at(&self, topic: &Topic, at: At) -> Result<Vec<(Partition, Offset)>, AdminError> {
        each!(self, store => store.offsets_at(topic, at).await)
    }

    async fn seek(&self, group: &Rc<Group>, moves: Vec<(Partition, Offset)>) -> Result<(), SeekError> {
        each!(self, store => store.seek(group, moves).await)
    }

    async fn peek(
        &self,
        topic: &Topic,
        from: &[(Partition, Offset)],
        messages_max: usize,
        bytes_max: usize,
    ) -> Result<Vec<Message>, AdminError> {
        each!(self, store => store.peek(topic, from, messages_max, bytes_max).await)
    }

    async fn flush(&self, deadline: Instant) -> u64 {
        each!(self, store => store.flush(deadline).await)
    }

    fn is_reachable(&self) -> bool {
        each!(self, store => store.is_reachable())
    }

    fn queued(&self) -> (u64, u64) {
        each!(self, store => store.queued())
    }
}
