//! The configured store behind one enum: dispatch costs a branch, and no message is boxed.

use std::{
    future::Future,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
    time::Instant,
};

use crate::{
    kafka::KafkaStore,
    store::{
        Ack, AdminError, Group, ProduceError, Record, Reset, Store, Stored, Topic, TopicMeta, Watermarks,
        memory::MemoryStore, null::NullStore,
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

/// One number of a client: metric name, kind, help, value.
pub type ClientCounter = (&'static str, &'static str, &'static str, u64);

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
    /// What the Kafka clients of this core count: metric name, kind, help, value. Empty for the other stores.
    pub fn counters(&self) -> Vec<ClientCounter> {
        let Self::Kafka(store) = self else { return Vec::new() };
        let (producer, consumer) = (store.producer_stats(), store.consumer_stats());
        vec![
            ("kateway_producer_records_total", "counter", "Records librdkafka took.", producer.produced),
            ("kateway_producer_stored_total", "counter", "Reports: stored.", producer.stored),
            ("kateway_producer_not_stored_total", "counter", "Reports: for sure not stored.", producer.not_stored),
            ("kateway_producer_unknown_total", "counter", "Reports: perhaps stored.", producer.unknown),
            ("kateway_producer_refused_total", "counter", "Reports: refused by the broker.", producer.refused),
            ("kateway_producer_queue_full_total", "counter", "Records refused by a full queue.", producer.queue_full),
            ("kateway_producer_overdue_total", "counter", "Requests answered before their report.", producer.overdue),
            ("kateway_producer_late_total", "counter", "Reports after their request was answered.", producer.late),
            (
                "kateway_producer_restarts_total",
                "counter",
                "Producers replaced after a fatal error.",
                producer.fatal_restarts,
            ),
            ("kateway_producer_wakeups_total", "counter", "Times the core was told of reports.", producer.wakeups),
            ("kateway_producer_clients", "gauge", "Producer clients.", producer.producers),
            ("kateway_consumer_fetched_total", "counter", "Messages taken from librdkafka.", consumer.fetched),
            ("kateway_consumer_rebalances_total", "counter", "Assignments and revocations.", consumer.rebalances),
            (
                "kateway_consumer_lost_partitions_total",
                "counter",
                "Partitions lost uncommitted.",
                consumer.lost_partitions,
            ),
            ("kateway_consumer_commits_total", "counter", "Offset commits.", consumer.commits),
            (
                "kateway_consumer_commits_failed_total",
                "counter",
                "Offset commits that failed.",
                consumer.commits_failed,
            ),
            (
                "kateway_consumer_offset_resets_total",
                "counter",
                "Partitions continued at the oldest.",
                consumer.offset_resets,
            ),
            ("kateway_consumer_errors_total", "counter", "Consumer errors.", consumer.errors),
        ]
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

    fn enqueue(&self, topic: &Topic, record: Record, ack: Ack) -> Result<(), ProduceError> {
        each!(self, store => store.enqueue(topic, record, ack))
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

    fn open_group(&self, topic: &Rc<Topic>, group_id: &str, reset: Reset) -> Result<Rc<Group>, AdminError> {
        each!(self, store => store.open_group(topic, group_id, reset))
    }

    async fn close_group(&self, group: &Rc<Group>) {
        each!(self, store => store.close_group(group).await);
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
