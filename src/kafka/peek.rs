//! Looks into a topic without a group: a client for each, in the offload pool.
//!
//! Invariants: few at a time, each bounded in time, messages and bytes; nothing is joined and nothing is committed. A look counts until
//! its job has ended, whether or not anybody still waits for it. Per core.

use std::{
    collections::BTreeMap,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use rdkafka::bindings::rd_kafka_resp_err_t as rd;

use super::{
    admin::{offload_failed, topic_failed},
    native::{Client, End, ErrorCode, Kind, PartitionList, Reading, TopicHandle},
    options,
    reach::Reach,
    topic_name,
};
use crate::{
    config::resolve::Config,
    limits,
    offload::Offload,
    store::{AdminError, Message, Offset, Partition},
};

/// How long the end of the time is not looked at.
const STEP_MS: i32 = 100;

/// See the module text.
#[derive(Debug)]
pub(super) struct Peeks {
    config: Arc<Config>,
    offload: Offload,
    reach: Rc<Reach>,
    /// Each job has a clone.
    running: Arc<()>,
}

impl Peeks {
    pub fn new(config: &Arc<Config>, offload: &Offload, reach: &Rc<Reach>) -> Self {
        let (config, reach) = (Arc::clone(config), Rc::clone(reach));
        Self { config, offload: offload.clone(), reach, running: Arc::new(()) }
    }

    pub async fn peek(
        &self,
        topic: &str,
        from: &[(Partition, Offset)],
        messages_max: usize,
        bytes_max: usize,
    ) -> Result<Vec<Message>, AdminError> {
        self.look(topic, from, messages_max, bytes_max).await.map(|seen| seen.messages)
    }

    /// One message that can be read at one of these places or after it; `None` when there is none for sure.
    pub async fn first(&self, topic: &str, from: &[(Partition, Offset)]) -> Result<Option<Message>, AdminError> {
        let seen = self.look(topic, from, 1, usize::MAX).await?;
        match seen.messages.into_iter().next() {
            None if !seen.is_whole => Err(AdminError::Unavailable { reason: "the look took too long".to_owned() }),
            first => Ok(first),
        }
    }

    async fn look(
        &self,
        topic: &str,
        from: &[(Partition, Offset)],
        messages_max: usize,
        bytes_max: usize,
    ) -> Result<Seen, AdminError> {
        if from.is_empty() || messages_max == 0 {
            return Ok(Seen { messages: Vec::new(), is_whole: true });
        }
        // Beside the one here. Clones are made on this core only, so the count is never too small.
        if Arc::strong_count(&self.running) > limits::PEEKS_MAX {
            return Err(AdminError::Unavailable { reason: "others are looking into topics".to_owned() });
        }
        let running = Arc::clone(&self.running);
        let (config, offload) = (Arc::clone(&self.config), self.offload.clone());
        let look = Look { topic: topic.to_owned(), from: from.iter().copied().collect(), messages_max, bytes_max };
        let looked = self.offload.run(move || {
            let seen = look.run(&config, &offload);
            drop(running);
            seen
        });
        let seen = looked.await.map_err(offload_failed)??;
        self.reach.heard(Instant::now());
        Ok(seen)
    }
}

/// What a look saw.
#[derive(Debug)]
struct Seen {
    messages: Vec<Message>,
    /// Every partition up to its end.
    is_whole: bool,
}

/// One look.
#[derive(Debug)]
struct Look {
    topic: String,
    from: BTreeMap<Partition, Offset>,
    messages_max: usize,
    bytes_max: usize,
}

impl Look {
    /// Blocks.
    fn run(mut self, config: &Config, offload: &Offload) -> Result<Seen, AdminError> {
        let unavailable = |reason| AdminError::Unavailable { reason };
        let (client, _) = Client::create(Kind::Consumer, &options::peek(config), offload).map_err(unavailable)?;
        let topic = TopicHandle::open(&client, &self.topic, None).ok_or(AdminError::UnknownTopic)?;
        let latest = self.latest(&client, config.kafka.admin_timeout).map_err(topic_failed)?;
        self.from.retain(|partition, offset| latest.get(partition).is_some_and(|latest| *offset < *latest));
        if self.from.is_empty() {
            return Ok(Seen { messages: Vec::new(), is_whole: true });
        }
        let until = Instant::now() + Duration::from_millis(limits::PEEK_MS_MAX);
        let reading = Reading::start(&client, &topic, self.from.clone()).map_err(topic_failed)?;
        self.read(&reading, latest, until).map_err(topic_failed)
    }

    fn latest(&self, client: &Client, timeout: Duration) -> Result<BTreeMap<Partition, Offset>, ErrorCode> {
        let mut list = PartitionList::new(&topic_name(&self.topic), self.from.iter().map(|(p, offset)| (*p, *offset)));
        client.offsets_at(End::Latest, &mut list, timeout)?;
        list.entries().map(|e| if e.code.is_ok() { Ok((e.partition, e.offset)) } else { Err(e.code) }).collect()
    }

    /// Takes messages as they come, until every partition has come to its end.
    fn read(
        &self,
        reading: &Reading<'_>,
        latest: BTreeMap<Partition, Offset>,
        until: Instant,
    ) -> Result<Seen, ErrorCode> {
        let mut open = latest;
        open.retain(|partition, _| self.from.contains_key(partition));
        let (mut messages, mut bytes) = (Vec::new(), 0);
        while !open.is_empty() && messages.len() < self.messages_max && bytes < self.bytes_max && Instant::now() < until
        {
            let Some(message) = reading.queue.next_message(STEP_MS) else { continue };
            let Some(end) = open.get(&message.partition()).copied() else { continue };
            if let Some(code) = message.error() {
                if code.is(rd::RD_KAFKA_RESP_ERR__PARTITION_EOF) {
                    open.remove(&message.partition());
                } else if !is_of_brokers(code) {
                    return Err(code);
                }
                continue;
            }
            if message.offset() + 1 >= end {
                open.remove(&message.partition());
            }
            if message.offset() < end {
                let message = message.into_message(usize::MAX);
                bytes += message.bytes();
                messages.push(message);
            }
        }
        Ok(Seen { messages, is_whole: open.is_empty() })
    }
}

/// What librdkafka gets over by itself, or not within the time.
fn is_of_brokers(code: ErrorCode) -> bool {
    code.is_one_of(&[
        rd::RD_KAFKA_RESP_ERR__TRANSPORT,
        rd::RD_KAFKA_RESP_ERR__ALL_BROKERS_DOWN,
        rd::RD_KAFKA_RESP_ERR__RESOLVE,
    ])
}
