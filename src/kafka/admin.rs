//! Questions about topics, and whether the cluster answers at all.
//!
//! Invariants: every call waits in the offload pool, never on the core; answers are proof that the cluster is reachable, silence
//! is not proof that it is not, until a probe failed. The calls go through the `ack=all` producer: it is there anyway, and one
//! more client would cost two threads and a connection to each broker. Per core.

use std::{
    ffi::CString,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use rdkafka::bindings::rd_kafka_resp_err_t as rd;

use super::{
    native::{Client, End, ErrorCode, PartitionList},
    offsets,
    producer::Producer,
    reach::Reach,
    topic_name,
};
use crate::{
    offload::{Offload, OffloadError},
    store::{AdminError, At, Offset, Partition, Topic, TopicMeta, Watermarks},
};

/// Per core.
#[derive(Debug)]
pub(super) struct Admin {
    producer: Rc<Producer>,
    offload: Offload,
    timeout: Duration,
    reach: Rc<Reach>,
}

impl Admin {
    pub fn new(producer: &Rc<Producer>, offload: &Offload, timeout: Duration, reach: &Rc<Reach>) -> Rc<Self> {
        let (producer, reach) = (Rc::clone(producer), Rc::clone(reach));
        Rc::new(Self { producer, offload: offload.clone(), timeout, reach })
    }

    pub async fn list_topics(&self) -> Result<Vec<TopicMeta>, AdminError> {
        let timeout = self.timeout;
        let topics = self.ask(move |client| client.topics(None, timeout)).await?.map_err(unavailable)?;
        self.reach.heard(Instant::now());
        Ok(topics.into_iter().filter(|topic| topic.code.is_ok()).map(|topic| topic.meta).collect())
    }

    pub async fn create_topic(&self, name: &str, partitions: i32, replicas: i32) -> Result<(), AdminError> {
        let (name, timeout) = (name.to_owned(), self.timeout);
        let made = self.ask(move |client| client.create_topic(&name, partitions, replicas, timeout)).await?;
        if made.as_ref().is_err_and(|(code, _)| code.0 < 0) {
            return made.map_err(|(code, text)| AdminError::Unavailable { reason: told(code, &text) });
        }
        self.reach.heard(Instant::now());
        made.map_err(|(code, text)| match code {
            _ if code.is(rd::RD_KAFKA_RESP_ERR_TOPIC_ALREADY_EXISTS) => AdminError::Exists,
            // The only sign that two names differ in `.` and `_` alone is the broker's text.
            _ if code.is(rd::RD_KAFKA_RESP_ERR_TOPIC_EXCEPTION) && text.contains("collide") => AdminError::Collides,
            _ if is_passing(code) => AdminError::Unavailable { reason: told(code, &text) },
            _ => AdminError::Refused { reason: told(code, &text) },
        })
    }

    pub async fn watermarks(&self, topic: &Topic) -> Result<Vec<Watermarks>, AdminError> {
        let (every, timeout) = (EveryPartition::of(topic)?, self.timeout);
        let found = self
            .ask(move |client| {
                let ends = |end| {
                    let mut list = every.list();
                    client.offsets_at(end, &mut list, timeout).map(|()| list)
                };
                Ok::<_, ErrorCode>((ends(End::Oldest)?, ends(End::Latest)?))
            })
            .await?;
        let (oldest, latest) = found.map_err(topic_failed)?;
        self.reach.heard(Instant::now());
        let both = oldest.entries().zip(latest.entries());
        // A partition without a leader has no answer; it is left out rather than shown as empty.
        let answered = both.filter(|(low, high)| low.code.is_ok() && high.code.is_ok());
        Ok(answered
            .map(|(low, high)| Watermarks { partition: low.partition, oldest: low.offset, latest: high.offset })
            .collect())
    }

    /// The offset of a place in every partition; a partition without a leader is an error.
    pub async fn offsets_at(&self, topic: &Topic, at: At) -> Result<Vec<(Partition, Offset)>, AdminError> {
        let (every, timeout) = (EveryPartition::of(topic)?, self.timeout);
        let found = self.ask(move |client| offsets::places(client, &every.topic, every.count, at, timeout)).await?;
        let found = found.map_err(topic_failed)?;
        self.reach.heard(Instant::now());
        Ok(found)
    }

    /// Asks for a sign of life whenever none came by itself. Never ends.
    pub async fn watch(self: Rc<Self>) {
        loop {
            let pause = self.reach.next_probe_in(Instant::now());
            if !pause.is_zero() {
                glommio::timer::sleep(pause).await;
                if !self.reach.next_probe_in(Instant::now()).is_zero() && self.reach.is_up() {
                    continue;
                }
            }
            let timeout = self.timeout;
            match self.ask(move |client| client.probe(timeout)).await {
                Ok(Ok(())) => self.reach.heard(Instant::now()),
                Ok(Err(_)) => self.reach.missed(),
                // The pool is full: that says nothing about the cluster.
                Err(_) => glommio::timer::sleep(Duration::from_secs(1)).await,
            }
        }
    }

    /// As `ask`, of a call whose success is a sign of life.
    pub async fn ask_heard<T: Send + 'static, E: Send + 'static>(
        &self,
        question: impl FnOnce(&Arc<Client>) -> Result<T, E> + Send + 'static,
    ) -> Result<Result<T, E>, AdminError> {
        let answer = self.ask(question).await?;
        if answer.is_ok() {
            self.reach.heard(Instant::now());
        }
        Ok(answer)
    }

    /// A call that brings its own client.
    pub async fn run<T: Send + 'static>(&self, call: impl FnOnce() -> T + Send + 'static) -> Result<T, AdminError> {
        self.offload.run(call).await.map_err(offload_failed)
    }

    async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Arc<Client>) -> T + Send + 'static,
    ) -> Result<T, AdminError> {
        let client = self.producer.warm().await;
        let client = client.ok_or_else(|| AdminError::Unavailable { reason: "no Kafka client".to_owned() })?;
        let answer = self.offload.run(move || question(&client)).await;
        answer.map_err(offload_failed)
    }
}

/// A topic and how many partitions it has, for a thread of the pool.
#[derive(Clone, Debug)]
pub(super) struct EveryPartition {
    pub topic: CString,
    pub count: Partition,
}

impl EveryPartition {
    pub fn of(topic: &Topic) -> Result<Self, AdminError> {
        let count = topic.partitions.get();
        if count <= 0 { Err(AdminError::UnknownTopic) } else { Ok(Self { topic: topic_name(&topic.name), count }) }
    }

    pub fn list(&self) -> PartitionList {
        PartitionList::new(&self.topic, (0..self.count).map(|partition| (partition, 0)))
    }

    pub fn committed(&self, client: &Client, timeout: Duration) -> Result<PartitionList, ErrorCode> {
        let mut list = self.list();
        client.committed(&mut list, timeout)?;
        list.all_done().map(|()| list)
    }
}

/// The pool has no room, or the call panicked.
pub(super) fn offload_failed(error: OffloadError) -> AdminError {
    let reason = match error {
        OffloadError::Full => "too many calls are waiting",
        OffloadError::Panicked => "the call failed",
    };
    AdminError::Unavailable { reason: reason.to_owned() }
}

/// A topic that is not there has no partition either: which of the three it is depends on who noticed.
pub(super) fn topic_failed(code: ErrorCode) -> AdminError {
    let absent = [
        rd::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART,
        rd::RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC,
        rd::RD_KAFKA_RESP_ERR__UNKNOWN_PARTITION,
    ];
    if code.is_one_of(&absent) { AdminError::UnknownTopic } else { unavailable(code) }
}

fn unavailable(code: ErrorCode) -> AdminError {
    AdminError::Unavailable { reason: code.name().to_owned() }
}

pub(super) fn told(code: ErrorCode, text: &str) -> String {
    if text.is_empty() { code.name().to_owned() } else { format!("{}: {text}", code.name()) }
}

/// A refusal that says "not now" rather than "no".
pub(super) fn is_passing(code: ErrorCode) -> bool {
    code.is_one_of(&[
        rd::RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT,
        rd::RD_KAFKA_RESP_ERR_NOT_CONTROLLER,
        rd::RD_KAFKA_RESP_ERR_THROTTLING_QUOTA_EXCEEDED,
        rd::RD_KAFKA_RESP_ERR_COORDINATOR_NOT_AVAILABLE,
    ])
}
