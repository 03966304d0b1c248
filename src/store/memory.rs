//! The embedded store: topics, groups and offsets in this process, for trying kateway out and for tests without Kafka.
//!
//! All cores share one [`Broker`] behind one plain lock, the only lock a core ever takes: it is held for a push or a copy of
//! some handles, never across an await. The data is bounded: over the bound the oldest records of all go, as Kafka's
//! `retention.bytes` would have it. Everything is gone at exit, which the start says loudly. It behaves as Kafka does where a client
//! can see it: murmur2 partitioning, offsets from 0, committed positions per group.
#![allow(clippy::disallowed_types)] // The embedded store's one lock, see above.

use std::{
    collections::{HashMap, VecDeque},
    future::{Future, Ready, poll_fn, ready},
    pin::Pin,
    rc::Rc,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::Poll,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use atomic_waker::AtomicWaker;
use bytes::Bytes;

use super::{
    Ack, AdminError, Begin, Group, Header, Message, Offset, Partition, ProduceError, Record, Reset, Store, Stored,
    Topic, TopicMeta, Watermarks, murmur2,
};
use crate::limits;

/// The data all cores share.
#[derive(Debug)]
pub struct Broker {
    inner: Mutex<Inner>,
    bytes_max: usize,
}

#[derive(Debug, Default)]
struct Inner {
    /// Positions in `logs`, which only grows.
    topics: HashMap<String, usize>,
    logs: Vec<Log>,
    /// Topic and partition of every record, the oldest first: what goes when the bound is reached.
    order: VecDeque<(u32, u32)>,
    committed: HashMap<(String, String, Partition), Offset>,
    bytes: usize,
}

#[derive(Debug, Default)]
struct Log {
    partitions: Vec<Segment>,
    /// One per reader group of this topic; woken by every append.
    watchers: Vec<Arc<AtomicWaker>>,
    round_robin: usize,
}

#[derive(Debug, Default)]
struct Segment {
    base: Offset,
    messages: VecDeque<Message>,
}

impl Segment {
    fn latest(&self) -> Offset {
        self.base + Offset::try_from(self.messages.len()).unwrap_or(0)
    }
}

impl Broker {
    pub fn new(bytes_max: usize) -> Arc<Self> {
        Arc::new(Self { inner: Mutex::default(), bytes_max })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn append(&self, topic: &str, record: Record) -> Result<Stored, ProduceError> {
        let mut inner = self.lock();
        let inner = &mut *inner;
        let topic = *inner.topics.get(topic).ok_or(ProduceError::UnknownTopic)?;
        let log = inner.logs.get_mut(topic).ok_or(ProduceError::UnknownTopic)?;
        let partition = log.choose(&record)?;
        let index = usize::try_from(partition).map_err(|_| ProduceError::UnknownPartition)?;
        let segment = log.partitions.get_mut(index).ok_or(ProduceError::UnknownPartition)?;
        let message = Message {
            partition,
            offset: segment.latest(),
            timestamp_ms: now_ms(),
            key: record.key,
            value: record.value,
            headers: (!record.headers.is_empty()).then(|| record.headers.into()),
        };
        let offset = message.offset;
        inner.bytes += held_bytes(&message);
        segment.messages.push_back(message);
        let place = (u32::try_from(topic).unwrap_or(u32::MAX), u32::try_from(index).unwrap_or(u32::MAX));
        inner.order.push_back(place);
        for watcher in &log.watchers {
            watcher.wake();
        }
        inner.keep_within(self.bytes_max);
        Ok(Stored { partition, offset })
    }

    /// Moves up to `count` messages from `next` on into `push`; gives the position after them and the latest offset.
    fn read(
        &self,
        topic: &str,
        partition: Partition,
        next: Offset,
        count: usize,
        mut push: impl FnMut(Message),
    ) -> (Offset, Offset) {
        let inner = self.lock();
        let segment = inner.log(topic).and_then(|log| log.partitions.get(usize::try_from(partition).ok()?));
        let Some(segment) = segment else { return (next, -1) };
        let next = next.max(segment.base);
        let from = usize::try_from(next - segment.base).unwrap_or(usize::MAX).min(segment.messages.len());
        let to = from.saturating_add(count).min(segment.messages.len());
        for message in segment.messages.range(from..to) {
            push(message.clone());
        }
        (segment.base + Offset::try_from(to).unwrap_or(0), segment.latest())
    }

    fn start_of(&self, topic: &str, group_id: &str, partition: Partition, reset: Reset) -> Offset {
        let mut inner = self.lock();
        let at = (group_id.to_owned(), topic.to_owned(), partition);
        if let Some(offset) = inner.committed.get(&at) {
            return *offset;
        }
        let segment = inner.log(topic).and_then(|log| log.partitions.get(usize::try_from(partition).ok()?));
        let start = segment.map_or(0, |s| if reset == Reset::Oldest { s.base } else { s.latest() });
        inner.committed.insert(at, start);
        start
    }

    fn commit(&self, topic: &str, group_id: &str, ends: Vec<(Partition, Offset)>) {
        let mut inner = self.lock();
        for (partition, end) in ends {
            inner.committed.insert((group_id.to_owned(), topic.to_owned(), partition), end);
        }
    }

    fn watch(&self, topic: &str) -> Arc<AtomicWaker> {
        let watcher = Arc::new(AtomicWaker::new());
        if let Some(log) = self.lock().log_mut(topic) {
            log.watchers.push(Arc::clone(&watcher));
        }
        watcher
    }

    fn unwatch(&self, topic: &str, watcher: &Arc<AtomicWaker>) {
        if let Some(log) = self.lock().log_mut(topic) {
            log.watchers.retain(|w| !Arc::ptr_eq(w, watcher));
        }
    }

    fn watermarks(&self, topic: &str) -> Option<Vec<Watermarks>> {
        let inner = self.lock();
        let log = inner.log(topic)?;
        let marks = (0..).zip(&log.partitions);
        Some(marks.map(|(partition, s)| Watermarks { partition, oldest: s.base, latest: s.latest() }).collect())
    }
}

impl Inner {
    fn log(&self, topic: &str) -> Option<&Log> {
        self.logs.get(*self.topics.get(topic)?)
    }

    fn log_mut(&mut self, topic: &str) -> Option<&mut Log> {
        self.logs.get_mut(*self.topics.get(topic)?)
    }

    /// Drops the oldest records of all until the bound holds; the newest stays.
    fn keep_within(&mut self, bytes_max: usize) {
        while self.bytes > bytes_max && self.order.len() > 1 {
            let Some((topic, partition)) = self.order.pop_front() else { return };
            let log = self.logs.get_mut(topic as usize);
            let segment = log.and_then(|log| log.partitions.get_mut(partition as usize));
            if let Some(segment) = segment
                && let Some(oldest) = segment.messages.pop_front()
            {
                segment.base += 1;
                self.bytes -= held_bytes(&oldest);
            }
        }
    }
}

/// What a record costs: its bytes, its headers', and what stands around them.
fn held_bytes(message: &Message) -> usize {
    const AROUND_BYTES: usize = 160;
    let header = |(name, value): &Header| name.len() + value.as_ref().map_or(0, Bytes::len) + AROUND_BYTES / 2;
    message.bytes() + message.headers().iter().map(header).sum::<usize>() + AROUND_BYTES
}

impl Log {
    fn choose(&mut self, record: &Record) -> Result<Partition, ProduceError> {
        let count = i32::try_from(self.partitions.len()).unwrap_or(i32::MAX);
        match (record.partition, &record.key) {
            (Some(explicit), _) if (0..count).contains(&explicit) => Ok(explicit),
            (Some(_), _) => Err(ProduceError::UnknownPartition),
            (None, Some(key)) => Ok(murmur2::partition_of(key, count)),
            (None, None) => {
                self.round_robin = (self.round_robin + 1) % self.partitions.len().max(1);
                Ok(i32::try_from(self.round_robin).unwrap_or(0))
            }
        }
    }
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// Per core: a handle to the broker.
#[derive(Clone, Debug)]
pub struct MemoryStore {
    broker: Arc<Broker>,
    leases_max: usize,
}

impl MemoryStore {
    pub fn new(broker: Arc<Broker>, leases_max: usize) -> Self {
        Self { broker, leases_max }
    }
}

// === impl Store ===

impl Store for MemoryStore {
    type Report = Ready<Result<Stored, ProduceError>>;

    fn produce(&self, topic: &Topic, record: Record, _ack: Ack) -> Result<Self::Report, ProduceError> {
        self.broker.append(&topic.name, record).map(|stored| ready(Ok(stored)))
    }

    fn enqueue(&self, topic: &Topic, record: Record, _ack: Ack) -> Result<(), ProduceError> {
        self.broker.append(&topic.name, record).map(|_| ())
    }

    async fn list_topics(&self) -> Result<Vec<TopicMeta>, AdminError> {
        let inner = self.broker.lock();
        let topics = inner.topics.iter().map(|(name, at)| TopicMeta {
            name: name.clone(),
            partitions: inner.logs.get(*at).map_or(0, |log| i32::try_from(log.partitions.len()).unwrap_or(i32::MAX)),
        });
        Ok(topics.collect())
    }

    async fn create_topic(&self, name: &str, partitions: i32, _replicas: i32) -> Result<(), AdminError> {
        let count = usize::try_from(partitions).unwrap_or(1).max(1);
        let mut inner = self.broker.lock();
        if inner.topics.len() >= limits::TOPICS_MAX {
            return Err(AdminError::Refused { reason: "the embedded store holds no more topics".to_owned() });
        }
        if inner.topics.contains_key(name) {
            return Err(AdminError::Exists);
        }
        let partitions = std::iter::repeat_with(Segment::default).take(count).collect();
        let at = inner.logs.len();
        inner.topics.insert(name.to_owned(), at);
        inner.logs.push(Log { partitions, ..Log::default() });
        Ok(())
    }

    async fn watermarks(&self, topic: &Topic) -> Result<Vec<Watermarks>, AdminError> {
        self.broker.watermarks(&topic.name).ok_or(AdminError::UnknownTopic)
    }

    fn open_group(&self, topic: &Rc<Topic>, group_id: &str, begin: Begin) -> Result<Rc<Group>, AdminError> {
        let marks = self.broker.watermarks(&topic.name).ok_or(AdminError::UnknownTopic)?;
        let group = Group::new(&topic.name, group_id, self.leases_max);
        let mut next = Vec::with_capacity(marks.len());
        for mark in marks {
            let start = self.broker.start_of(&topic.name, group_id, mark.partition, begin.reset);
            group.assign(mark.partition, start);
            next.push((mark.partition, start));
        }
        glommio::spawn_local(pump(Arc::clone(&self.broker), Rc::clone(&group), next)).detach();
        Ok(group)
    }

    async fn close_group(&self, group: &Rc<Group>) {
        group.close();
        self.broker.commit(&group.topic_name, &group.group_id, group.take_dirty());
    }

    async fn flush(&self, _deadline: Instant) -> u64 {
        0
    }

    fn is_reachable(&self) -> bool {
        true
    }

    fn queued(&self) -> (u64, u64) {
        (0, 0)
    }
}

/// Moves messages from the log to the group as its clients ask for them, and commits what they acknowledged.
async fn pump(broker: Arc<Broker>, group: Rc<Group>, mut next: Vec<(Partition, Offset)>) {
    let watcher = broker.watch(&group.topic_name);
    let mut rung = group.bell.wait();
    poll_fn(|cx| {
        // Registered before looking, so an append in between is not missed.
        watcher.register(cx.waker());
        loop {
            let dirty = group.take_dirty();
            if !dirty.is_empty() {
                broker.commit(&group.topic_name, &group.group_id, dirty);
            }
            fill(&broker, &group, &mut next);
            if group.is_closing() {
                return Poll::Ready(());
            }
            if Pin::new(&mut rung).poll(cx).is_pending() {
                return Poll::Pending;
            }
            // The next wait begins before the next look, so no ring falls between.
            rung = group.bell.wait();
        }
    })
    .await;
    broker.unwatch(&group.topic_name, &watcher);
}

/// Gives the group what its clients wait for: every partition an equal part, then what is left from those that have more.
fn fill(broker: &Broker, group: &Group, next: &mut [(Partition, Offset)]) {
    let mut pushed = 0;
    loop {
        let demand = group.demand().min(limits::BATCH_MESSAGES_MAX);
        if demand == 0 {
            break;
        }
        let share = demand.div_ceil(next.len().max(1));
        let before = pushed;
        for (partition, position) in &mut *next {
            let count = if group.has_room(*partition) { share } else { 0 };
            let (after, latest) = broker.read(&group.topic_name, *partition, *position, count, |message| {
                pushed += 1;
                group.push(message);
            });
            *position = after;
            group.set_latest(*partition, latest);
        }
        if pushed == before || pushed >= limits::BATCH_MESSAGES_MAX {
            break;
        }
    }
    if pushed > 0 {
        group.wake_first();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn over_the_bound_the_oldest_records_of_all_go() {
        let broker = Broker::new(10_000);
        let store = MemoryStore::new(Arc::clone(&broker), 10);
        for topic in ["a", "b"] {
            futures_lite::future::block_on(store.create_topic(topic, 1, 1)).expect("it is new");
        }
        let publish = |topic| {
            let record = Record { value: Bytes::from(vec![0; 1_000]), ..Record::default() };
            broker.append(topic, record).expect("the topic is there")
        };
        publish("a");
        (0..20).for_each(|_| _ = publish("b"));
        publish("a");
        assert!(broker.lock().bytes <= 10_000);
        let marks = |topic| broker.watermarks(topic).expect("the topic is there")[0];
        assert_eq!((marks("a").oldest, marks("a").latest), (1, 2));
        assert_eq!(marks("b").latest, 20);
        assert!(marks("b").oldest > 10);
    }
}
