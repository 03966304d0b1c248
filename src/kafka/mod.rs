//! Apache Kafka behind the store seam: producers, groups and questions about topics, by librdkafka.
//!
//! ```text
//!   KafkaStore (one per core)
//!     producer[all|local|none] --> delivery::Pipe --> native::Outbox --> librdkafka     reports come back to the same core
//!     consumer (one per group) --> store::Group                                         messages are taken when clients wait
//!     admin, groups, peek      --> offload pool                                         everything that waits for a broker
//! ```
//!
//! Invariants: nothing here waits on the core; everything librdkafka says is read on the core that owns the client; what an
//! error means for the data is decided in `delivery::judge` alone. Per core: a `KafkaStore` never leaves its executor.
//! This module knows no HTTP and no tenants: topics and groups have Kafka's names here.

mod admin;
mod batching;
mod consumer;
mod delivery;
mod groups;
mod native;
mod offsets;
mod options;
mod peek;
mod producer;
mod pump;
mod reach;
mod rebalance;
mod stats;

use std::{
    cell::RefCell,
    collections::VecDeque,
    ffi::CString,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use glommio::Task;

pub use delivery::Report;
pub use stats::Row as ClientCounter;

use self::{
    admin::Admin,
    consumer::{Member, Surroundings},
    groups::GroupAdmin,
    native::Client,
    peek::Peeks,
    producer::Producer,
    reach::Reach,
    stats::ProducerStats,
};
use crate::{
    config::resolve::Config,
    metrics::SizesSnapshot,
    offload::Offload,
    store::{
        Ack, AdminError, At, Begin, Bounds, Group, GroupInfo, Line, ListedGroup, Message, Offset, Partition,
        ProduceError, Record, SeekError, Store, Topic, TopicMeta, Watermarks,
    },
};

/// How often overdue requests are looked for: how much later than its deadline an answer may come.
const SWEEP: Duration = Duration::from_millis(100);
/// Silence taken for health before the cluster is asked for a sign of life.
const QUIET_MAX: Duration = Duration::from_secs(10);
/// How often a flush looks whether it is done.
const FLUSH_STEP: Duration = Duration::from_millis(5);

/// Per core. The Kafka store; see the module text.
#[derive(Debug)]
pub struct KafkaStore {
    /// By ack level, in the order of [`slot`].
    producers: [Rc<Producer>; 3],
    admin: Rc<Admin>,
    groups: GroupAdmin,
    peeks: Rc<Peeks>,
    reach: Rc<Reach>,
    producer_stats: Rc<ProducerStats>,
    around: Surroundings,
    members: RefCell<Vec<Rc<Member>>>,
    /// Sweeping and probing; they end with the store.
    _tasks: [Task<()>; 2],
}

impl KafkaStore {
    /// What its groups may hold.
    pub fn bounds(&self) -> &Bounds {
        &self.around.bounds
    }

    /// Does not wait: clients are made when first used. Call it on the executor that will own the store.
    pub fn new(config: &Arc<Config>, offload: &Offload) -> Self {
        let reach = Rc::new(Reach::new(QUIET_MAX.min(config.kafka.metadata_interval)));
        let producer_stats = Rc::new(ProducerStats::default());
        let producers =
            [Ack::All, Ack::Local, Ack::None].map(|ack| Producer::new(ack, config, offload, &producer_stats, &reach));
        let admin = Admin::new(&producers[slot(Ack::All)], offload, config.kafka.admin_timeout, &reach);
        let groups = GroupAdmin::new(config, offload, &admin);
        let swept = producers.clone();
        let sweeping = glommio::spawn_local(async move {
            loop {
                glommio::timer::sleep(SWEEP).await;
                for producer in &swept {
                    producer.sweep(Instant::now()).await;
                }
            }
        });
        let probing = glommio::spawn_local(Rc::clone(&admin).watch());
        let peeks = Rc::new(Peeks::new(config, offload, &reach));
        let around = Surroundings {
            config: Arc::clone(config),
            offload: offload.clone(),
            stats: Rc::default(),
            reach: Rc::clone(&reach),
            bounds: Bounds::new(&config.subscribe),
            is_looking: Rc::default(),
            peeks: Rc::clone(&peeks),
            is_watching: Rc::default(),
        };
        let members = RefCell::default();
        Self { producers, admin, groups, peeks, reach, producer_stats, around, members, _tasks: [sweeping, probing] }
    }

    /// What the clients of this core did, for `/metrics`.
    pub fn counters(&self) -> Vec<ClientCounter> {
        let clients = self.producers.iter().map(|producer| producer.clients()).sum();
        let mut rows = self.producer_stats.rows();
        rows.push(("kateway_producer_clients", "gauge", "Producer clients.", clients));
        rows.extend(self.around.stats.rows());
        rows
    }

    /// Records by the batch they were sent in, of all producers of this core.
    pub fn batch_sizes(&self) -> SizesSnapshot {
        self.producer_stats.batches.snapshot()
    }

    fn producer(&self, ack: Ack) -> &Rc<Producer> {
        &self.producers[slot(ack)]
    }
}

impl Drop for KafkaStore {
    fn drop(&mut self) {
        // Members and their pumps hold each other.
        for member in self.members.borrow_mut().drain(..) {
            member.abandon();
        }
    }
}

// === impl Store ===

impl Store for KafkaStore {
    type Report = Report;

    fn produce(&self, topic: &Topic, record: Record, ack: Ack) -> Result<Report, ProduceError> {
        self.producer(ack).produce(topic, record)
    }

    fn produce_all(
        &self,
        topic: &Topic,
        records: &mut VecDeque<Record>,
        ack: Ack,
        line: &Rc<Line>,
    ) -> Result<(), ProduceError> {
        self.producer(ack).produce_all(topic, records, line)
    }

    fn enqueue(&self, topic: &Topic, record: Record, ack: Ack) -> Result<(), ProduceError> {
        self.producer(ack).enqueue(topic, record)
    }

    fn has_room(&self, ack: Ack) -> bool {
        self.producer(ack).has_room()
    }

    async fn list_topics(&self) -> Result<Vec<TopicMeta>, AdminError> {
        self.admin.list_topics().await
    }

    async fn create_topic(&self, name: &str, partitions: i32, replicas: i32) -> Result<(), AdminError> {
        self.admin.create_topic(name, partitions, replicas).await
    }

    async fn watermarks(&self, topic: &Topic) -> Result<Vec<Watermarks>, AdminError> {
        self.admin.watermarks(topic).await
    }

    fn open_group(&self, topic: &Rc<Topic>, group_id: &str, begin: Begin) -> Result<Rc<Group>, AdminError> {
        let member = Member::join(self.around.clone(), topic, group_id, begin);
        let group = Rc::clone(&member.group);
        self.members.borrow_mut().push(member);
        Ok(group)
    }

    async fn close_group(&self, group: &Rc<Group>) {
        let member = {
            let mut members = self.members.borrow_mut();
            let found = members.iter().position(|member| Rc::ptr_eq(&member.group, group));
            found.map(|index| members.swap_remove(index))
        };
        if let Some(member) = member {
            member.leave().await;
        }
    }

    async fn describe_group(&self, topic: &str, group_id: &str) -> Result<GroupInfo, AdminError> {
        self.groups.describe(topic, group_id).await
    }

    async fn list_groups(&self, topic: &str) -> Result<Vec<ListedGroup>, AdminError> {
        self.groups.list(topic).await
    }

    async fn committed(&self, topic: &Topic, group_id: &str) -> Result<Vec<(Partition, Offset)>, AdminError> {
        self.groups.committed(topic, group_id).await
    }

    async fn set_committed(
        &self,
        topic: &Topic,
        group_id: &str,
        ends: &[(Partition, Offset)],
    ) -> Result<(), AdminError> {
        self.groups.set_committed(topic, group_id, ends).await
    }

    async fn delete_committed(&self, topic: &Topic, group_id: &str) -> Result<(), AdminError> {
        self.groups.delete_committed(topic, group_id).await
    }

    async fn offsets_at(&self, topic: &Topic, at: At) -> Result<Vec<(Partition, Offset)>, AdminError> {
        self.admin.offsets_at(topic, at).await
    }

    async fn seek(&self, group: &Rc<Group>, moves: Vec<(Partition, Offset)>) -> Result<(), SeekError> {
        let member = self.members.borrow().iter().find(|member| Rc::ptr_eq(&member.group, group)).cloned();
        match member {
            Some(member) => member.seek(moves).await,
            None => Err(SeekError::Unavailable { reason: "the group is being left".to_owned() }),
        }
    }

    async fn peek(
        &self,
        topic: &Topic,
        from: &[(Partition, Offset)],
        messages_max: usize,
        bytes_max: usize,
    ) -> Result<Vec<Message>, AdminError> {
        self.peeks.peek(&topic.name, from, messages_max, bytes_max).await
    }

    async fn flush(&self, deadline: Instant) -> u64 {
        loop {
            let left = self.queued().0;
            if left == 0 || Instant::now() >= deadline {
                return left;
            }
            glommio::timer::sleep(FLUSH_STEP).await;
        }
    }

    fn is_reachable(&self) -> bool {
        self.reach.is_up()
    }

    fn queued(&self) -> (u64, u64) {
        let sums = self.producers.iter().map(|producer| producer.queued());
        sums.fold((0, 0), |(records, bytes), (r, b)| (records + r, bytes + b))
    }
}

fn slot(ack: Ack) -> usize {
    match ack {
        Ack::All => 0,
        Ack::Local => 1,
        Ack::None => 2,
    }
}

/// Breaks a client as a broker could, when the time of `test.break_clients_ms` has come.
fn break_later(config: &Config, client: &Arc<Client>) {
    let Some(after) = config.test.break_clients else { return };
    let client = Arc::downgrade(client);
    let breaking = async move {
        glommio::timer::sleep(after).await;
        if let Some(client) = client.upgrade() {
            client.raise_fatal_error();
        }
    };
    glommio::spawn_local(breaking).detach();
}

/// A topic's name for librdkafka. Names were checked long before; one with a NUL becomes the empty name, which no topic has.
fn topic_name(name: &str) -> CString {
    CString::new(name).unwrap_or_default()
}
