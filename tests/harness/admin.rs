//! Kafka seen from the other side: topics, offsets, groups, and a fast producer that is not the gateway.
//!
//! Built on librdkafka's admin client, which the gateway uses as well; that is fine for *questions* (how far does this
//! topic reach, what has this group committed), whose answers come from the broker. Bytes are compared with what
//! [`crate::kcat`] and Kafka's own tools read.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_lite::future::block_on;
use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::{KafkaResult, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{Offset, TopicPartitionList};

use crate::wait::{wait_for, wait_until};

const CALL: Duration = Duration::from_secs(30);

/// Where brokers keep what groups commit.
pub const OFFSETS: &str = "__consumer_offsets";

/// A client of one cluster for questions and preparation.
pub struct Admin {
    brokers: String,
    client: AdminClient<DefaultClientContext>,
    consumer: BaseConsumer,
}

/// A member of a consumer group, as the broker describes it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Member {
    pub id: String,
    pub client_id: String,
}

/// A record as a producer gives it; `None` is Kafka's null.
#[derive(Debug, Clone, Default)]
pub struct Raw {
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    pub headers: Vec<(String, Option<Vec<u8>>)>,
}

/// How fast, and how large, [`Admin::produce_paced`] produces.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    pub per_second: u32,
    pub bytes: usize,
}

impl Admin {
    pub fn new(brokers: &str) -> Self {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", brokers).set("group.id", "tests-admin").set("enable.auto.commit", "false");
        // Broker restarts are part of the tests; librdkafka's own complaints about them are noise.
        config.set("log_level", "0").set("log.connection.close", "false");
        Self {
            brokers: brokers.to_owned(),
            client: config.create().expect("the configuration is valid"),
            consumer: config.create().expect("the configuration is valid"),
        }
    }

    pub fn brokers(&self) -> &str {
        &self.brokers
    }

    pub fn broker_count(&self) -> KafkaResult<usize> {
        Ok(self.consumer.fetch_metadata(None, Duration::from_secs(2))?.brokers().len())
    }

    /// Makes `topic` with three replicas (or one where there is one broker) and waits until every partition has a
    /// leader everywhere.
    pub fn create_topic(&self, topic: &str, partitions: i32) {
        self.create_topic_with(topic, partitions, &[]);
    }

    /// The same with settings of its own, such as `max.message.bytes`.
    pub fn create_topic_with(&self, topic: &str, partitions: i32, settings: &[(&str, &str)]) {
        let brokers = wait_for(CALL, "the cluster answers", || self.broker_count().ok());
        let replicas = i32::try_from(brokers.min(3)).expect("at most 3");
        let new = NewTopic::new(topic, partitions, TopicReplication::Fixed(replicas));
        self.create(&settings.iter().fold(new, |new, (key, value)| new.set(key, value)));
    }

    /// Makes `topic` with one partition, whose replicas `brokers` hold; the first leads.
    pub fn create_topic_on(&self, topic: &str, brokers: &[i32]) {
        self.create(&NewTopic::new(topic, 1, TopicReplication::Variable(&[brokers])));
    }

    fn create(&self, new: &NewTopic<'_>) {
        let topic = new.name;
        wait_until(CALL, format!("{topic} is made"), || {
            let results = block_on(self.client.create_topics([new], &options())).expect("CreateTopics is answered");
            match results.into_iter().next().expect("one topic, one result") {
                Ok(_) => true,
                Err((_, error)) => {
                    // The controller may still be at work deleting its predecessor, be another one since a moment, not have seen yet
                    // that a broker is back, or fall over one that has just come (UNKNOWN_SERVER_ERROR).
                    let is_passing = matches!(
                        error,
                        RDKafkaErrorCode::TopicAlreadyExists
                            | RDKafkaErrorCode::NotController
                            | RDKafkaErrorCode::InvalidReplicationFactor
                            | RDKafkaErrorCode::RequestTimedOut
                            | RDKafkaErrorCode::Unknown
                    );
                    assert!(is_passing, "cannot create {topic}: {error:?}");
                    false
                }
            }
        });
        let partitions = new.num_partitions;
        self.wait_everywhere(&format!("the leaders of {topic}"), |witness| {
            led_partitions(witness, topic) == usize::try_from(partitions).ok()
        });
    }

    /// Grows `topic` to `partitions` and waits until each of them has a leader everywhere.
    pub fn create_partitions(&self, topic: &str, partitions: usize) {
        let grown = NewPartitions::new(topic, partitions);
        let results =
            block_on(self.client.create_partitions([&grown], &options())).expect("CreatePartitions is answered");
        let result = results.into_iter().next().expect("one topic, one result");
        result.unwrap_or_else(|e| panic!("cannot grow {topic}: {e:?}"));
        self.wait_everywhere(&format!("{partitions} partitions of {topic}"), |witness| {
            led_partitions(witness, topic) == Some(partitions)
        });
    }

    /// Each broker learns of a change for itself, a little later, and the gateway may ask any of them.
    fn wait_everywhere(&self, what: &str, is_known: impl Fn(&BaseConsumer) -> bool) {
        for broker in self.brokers.split(',') {
            let witness: BaseConsumer =
                ClientConfig::new().set("bootstrap.servers", broker).create().expect("the configuration is valid");
            wait_until(CALL, format!("{broker} knows {what}"), || is_known(&witness));
        }
    }

    /// Commits for a group once, so that the offsets topic is made, has its leaders and is replicated before anything is measured or
    /// killed: brokers make it on first use, which takes seconds.
    pub fn warm_up_groups(&self) {
        const TOPIC: &str = "warm-up";
        self.create_topic(TOPIC, 1);
        let mut offsets = TopicPartitionList::new();
        offsets.add_partition_offset(TOPIC, 0, Offset::Offset(0)).expect("a legal offset");
        wait_until(CALL, "a commit succeeds", || self.consumer.commit(&offsets, CommitMode::Sync).is_ok());
        wait_until(CALL, "the offsets topic is replicated", || self.fully_in_sync(OFFSETS));
    }

    /// The partition of the offsets topic that keeps what `group` commits (Kafka's `GroupMetadataManager.partitionFor`); whoever leads it
    /// coordinates the group.
    pub fn offsets_partition(&self, group: &str) -> i32 {
        let hash = group.encode_utf16().fold(0_i32, |hash, unit| hash.wrapping_mul(31).wrapping_add(i32::from(unit)));
        let count = self.partitions(OFFSETS).expect("the offsets topic is made when the cluster starts");
        (hash & i32::MAX) % i32::try_from(count).expect("few partitions")
    }

    /// Deletes `topic` and waits until every broker says that there is none.
    pub fn delete_topic(&self, topic: &str) {
        let results = block_on(self.client.delete_topics(&[topic], &options())).expect("DeleteTopics is answered");
        let result = results.into_iter().next().expect("one topic, one result");
        result.unwrap_or_else(|e| panic!("cannot delete {topic}: {e:?}"));
        self.wait_everywhere(&format!("that {topic} is gone"), |witness| is_absent(witness, topic));
    }

    /// The number of partitions that have a leader, or `None` while the topic is unknown.
    pub fn partitions(&self, topic: &str) -> Option<usize> {
        led_partitions(&self.consumer, topic)
    }

    /// The broker that leads a partition now.
    pub fn leader(&self, topic: &str, partition: i32) -> i32 {
        let metadata = self.consumer.fetch_metadata(Some(topic), CALL).expect("the cluster answers");
        let topic = metadata.topics().first().expect("asked for one topic");
        topic.partitions().iter().find(|p| p.id() == partition).expect("the partition exists").leader()
    }

    /// Whether every partition has a leader and as many in-sync replicas as replicas.
    pub fn fully_in_sync(&self, topic: &str) -> bool {
        let Ok(metadata) = self.consumer.fetch_metadata(Some(topic), CALL) else { return false };
        metadata.topics().first().is_some_and(|topic| {
            topic.error().is_none()
                && !topic.partitions().is_empty()
                && topic.partitions().iter().all(|p| p.leader() >= 0 && p.isr().len() == p.replicas().len())
        })
    }

    /// The offset after the last message of each partition, in partition order.
    pub fn end_offsets(&self, topic: &str) -> Vec<i64> {
        let count = self.partitions(topic).unwrap_or_else(|| panic!("{topic} exists"));
        let end = |p| self.consumer.fetch_watermarks(topic, p, CALL).expect("watermarks are answered").1;
        (0..i32::try_from(count).expect("few partitions")).map(end).collect()
    }

    /// How many messages the topic has ever taken.
    pub fn message_count(&self, topic: &str) -> i64 {
        self.end_offsets(topic).iter().sum()
    }

    /// What `group` has committed for each partition of `topic`; `None` where nothing.
    pub fn committed(&self, group: &str, topic: &str) -> Vec<Option<i64>> {
        let count =
            i32::try_from(self.partitions(topic).unwrap_or_else(|| panic!("{topic} exists"))).expect("few partitions");
        let mut asked = TopicPartitionList::new();
        asked.add_partition_range(topic, 0, count - 1);
        let probe: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", &self.brokers)
            .set("group.id", group)
            .set("log_level", "0")
            .create()
            .expect("the configuration is valid");
        let answer = probe.committed_offsets(asked, CALL).expect("OffsetFetch is answered");
        let offset = |p| match answer.find_partition(topic, p).expect("asked for it").offset() {
            Offset::Offset(n) => Some(n),
            _ => None,
        };
        (0..count).map(offset).collect()
    }

    /// The sum of what `group` has committed in `topic`.
    pub fn committed_sum(&self, group: &str, topic: &str) -> i64 {
        self.committed(group, topic).iter().flatten().sum()
    }

    /// Commits for a group without members.
    pub fn commit(&self, group: &str, topic: &str, partition: i32, offset: i64) {
        let probe: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", &self.brokers)
            .set("group.id", group)
            .set("log_level", "0")
            .create()
            .expect("the configuration is valid");
        let mut offsets = TopicPartitionList::new();
        offsets.add_partition_offset(topic, partition, Offset::Offset(offset)).expect("a legal offset");
        wait_until(CALL, format!("{group} has committed"), || probe.commit(&offsets, CommitMode::Sync).is_ok());
    }

    /// Deletes the messages of a partition below `offset`, as retention would.
    pub fn delete_records(&self, topic: &str, partition: i32, offset: i64) {
        let mut offsets = TopicPartitionList::new();
        offsets.add_partition_offset(topic, partition, Offset::Offset(offset)).expect("a legal offset");
        block_on(self.client.delete_records(&offsets, &options())).expect("DeleteRecords is answered");
        wait_until(CALL, format!("{topic} begins at {offset}"), || self.oldest(topic, partition) == offset);
    }

    /// The first offset that is there.
    pub fn oldest(&self, topic: &str, partition: i32) -> i64 {
        self.consumer.fetch_watermarks(topic, partition, CALL).expect("watermarks are answered").0
    }

    /// The members of a group, sorted.
    pub fn members(&self, group: &str) -> Vec<Member> {
        let list = self.consumer.fetch_group_list(Some(group), CALL).expect("DescribeGroups is answered");
        let members = list.groups().iter().filter(|g| g.name() == group).flat_map(|g| g.members().iter());
        let mut members: Vec<Member> =
            members.map(|m| Member { id: m.id().to_owned(), client_id: m.client_id().to_owned() }).collect();
        members.sort();
        members
    }

    /// A producer that loses and repeats nothing, with one option more.
    fn producer(&self, option: &str, value: &str) -> BaseProducer {
        ClientConfig::new()
            .set("bootstrap.servers", &self.brokers)
            .set("enable.idempotence", "true")
            .set(option, value)
            .set("log_level", "0")
            .create()
            .expect("the configuration is valid")
    }

    /// Produces records with everything Kafka can hold, in order, to one partition.
    pub fn produce_records(&self, topic: &str, partition: i32, records: &[Raw]) {
        let producer = self.producer("message.max.bytes", "20000000");
        for raw in records {
            let mut headers = OwnedHeaders::new();
            for (name, value) in &raw.headers {
                headers = headers.insert(Header { key: name, value: value.as_deref() });
            }
            let mut record = BaseRecord::<[u8], [u8]>::to(topic).partition(partition).headers(headers);
            (record.key, record.payload) = (raw.key.as_deref(), raw.value.as_deref());
            producer.send(record).unwrap_or_else(|(error, _)| panic!("a record can be queued: {error}"));
        }
        producer.flush(Duration::from_secs(30)).expect("all of it is stored");
    }

    /// Produces numbered messages of `len` bytes, `per_second` of them, round-robin over `partitions`, until `is_over`; gives how many.
    pub fn produce_paced(&self, topic: &str, partitions: i32, pace: Pace, is_over: &AtomicBool) -> u64 {
        let producer = self.producer("linger.ms", "5");
        let began = Instant::now();
        let mut count = 0;
        while !is_over.load(Ordering::Relaxed) {
            let due = began.elapsed().as_millis() * u128::from(pace.per_second) / 1_000;
            while u128::from(count) < due {
                let mut payload = count.to_string().into_bytes();
                payload.resize(pace.bytes, b' ');
                let partition = i32::try_from(count % u64::try_from(partitions).expect("positive")).expect("few");
                send(&producer, topic, partition, &payload);
                count += 1;
            }
            producer.poll(Duration::from_millis(5));
        }
        producer.flush(Duration::from_secs(30)).expect("all of it is stored");
        count
    }

    /// Produces `payloads` without the gateway, spread round-robin over `partitions`, and waits until all are stored.
    pub fn produce(&self, topic: &str, partitions: i32, payloads: impl IntoIterator<Item = Vec<u8>>) {
        let producer = self.producer("linger.ms", "5");
        for (payload, partition) in payloads.into_iter().zip((0..partitions).cycle()) {
            send(&producer, topic, partition, &payload);
        }
        producer.flush(Duration::from_secs(30)).expect("all of it is stored");
    }
}

/// Queues a message, as soon as there is room for it.
fn send(producer: &BaseProducer, topic: &str, partition: i32, payload: &[u8]) {
    let mut record = BaseRecord::<(), _>::to(topic).payload(payload).partition(partition);
    while let Err((_, back)) = producer.send(record) {
        record = back;
        producer.poll(Duration::from_millis(5));
    }
}

fn led_partitions(client: &BaseConsumer, topic: &str) -> Option<usize> {
    let metadata = client.fetch_metadata(Some(topic), CALL).ok()?;
    let topic = metadata.topics().first()?;
    let led = topic.partitions().iter().filter(|p| p.leader() >= 0 && p.error().is_none()).count();
    (topic.error().is_none() && led > 0).then_some(led)
}

/// Whether a broker says that there is no such topic; silence does not count.
fn is_absent(client: &BaseConsumer, topic: &str) -> bool {
    let Ok(metadata) = client.fetch_metadata(Some(topic), CALL) else { return false };
    let error = metadata.topics().first().and_then(rdkafka::metadata::MetadataTopic::error);
    error.map(RDKafkaErrorCode::from) == Some(RDKafkaErrorCode::UnknownTopicOrPartition)
}

fn options() -> AdminOptions {
    AdminOptions::new().request_timeout(Some(CALL)).operation_timeout(Some(CALL))
}
