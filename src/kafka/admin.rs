//! Questions about topics, and whether the cluster answers at all.
//!
//! Invariants: every call waits in the offload pool, never on the core; answers are proof that the cluster is reachable, silence
//! is not proof that it is not, until a probe failed. The calls go through the `ack=all` producer: it is there anyway, and one
//! more client would cost two threads and a connection to each broker. Per core.

use std::{
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use rdkafka::bindings::rd_kafka_resp_err_t as rd;

use super::{
    native::{Client, End, ErrorCode, PartitionList},
    producer::Producer,
    reach::Reach,
    topic_name,
};
use crate::{
    offload::{Offload, OffloadError},
    store::{AdminError, Topic, TopicMeta, Watermarks},
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
        let (name, count, timeout) = (topic_name(&topic.name), topic.partitions.get(), self.timeout);
        if count <= 0 {
            return Err(AdminError::UnknownTopic);
        }
        let found = self
            .ask(move |client| {
                let ends = |end| {
                    let mut list = PartitionList::new(&name, (0..count).map(|p| (p, 0)));
                    client.offsets_at(end, &mut list, timeout).map(|()| list)
                };
                Ok::<_, ErrorCode>((ends(End::Oldest)?, ends(End::Latest)?))
            })
            .await?;
        let (oldest, latest) = found.map_err(|code| {
            // A topic that is not there has no partition either: which of the three it is depends on who noticed.
            let absent = [
                rd::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART,
                rd::RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC,
                rd::RD_KAFKA_RESP_ERR__UNKNOWN_PARTITION,
            ];
            let is_absent = absent.iter().any(|known| code.is(*known));
            if is_absent { AdminError::UnknownTopic } else { unavailable(code) }
        })?;
        self.reach.heard(Instant::now());
        let both = oldest.entries().zip(latest.entries());
        // A partition without a leader has no answer; it is left out rather than shown as empty.
        let answered = both.filter(|(low, high)| low.code.is_ok() && high.code.is_ok());
        Ok(answered
            .map(|(low, high)| Watermarks { partition: low.partition, oldest: low.offset, latest: high.offset })
            .collect())
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

    async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Arc<Client>) -> T + Send + 'static,
    ) -> Result<T, AdminError> {
        let client = self.producer.warm().await;
        let client = client.ok_or_else(|| AdminError::Unavailable { reason: "no Kafka client".to_owned() })?;
        let answer = self.offload.run(move || question(&client)).await;
        answer.map_err(|error| {
            let reason = match error {
                OffloadError::Full => "too many calls are waiting",
                OffloadError::Panicked => "the call failed",
            };
            AdminError::Unavailable { reason: reason.to_owned() }
        })
    }
}

fn unavailable(code: ErrorCode) -> AdminError {
    AdminError::Unavailable { reason: code.name().to_owned() }
}

fn told(code: ErrorCode, text: &str) -> String {
    if text.is_empty() { code.name().to_owned() } else { format!("{}: {text}", code.name()) }
}

/// A refusal that says "not now" rather than "no".
fn is_passing(code: ErrorCode) -> bool {
    [
        rd::RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT,
        rd::RD_KAFKA_RESP_ERR_NOT_CONTROLLER,
        rd::RD_KAFKA_RESP_ERR_THROTTLING_QUOTA_EXCEEDED,
        rd::RD_KAFKA_RESP_ERR_COORDINATOR_NOT_AVAILABLE,
    ]
    .iter()
    .any(|passing| code.is(*passing))
}
