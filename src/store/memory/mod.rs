//! The embedded store: topics, groups and offsets in this process, for trying kateway out and for tests without Kafka.
//!
//! All cores share one [`Broker`] behind one plain lock, the only lock a core ever takes: it is held for a push or a copy of
//! some handles, never across an await. The data is bounded: over the bound the oldest records of all go, as Kafka's
//! `retention.bytes` would have it. Everything is gone at exit, which the start says loudly. It behaves as Kafka does where a client
//! can see it: murmur2 partitioning, offsets from 0, committed positions per group.

mod broker;

use std::{
    cell::RefCell,
    collections::{BTreeSet, VecDeque},
    future::{Future, Ready, poll_fn, ready},
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::Poll,
    time::Instant,
};

pub use self::broker::Broker;
use super::{
    Ack, AdminError, At, Begin, Bounds, Group, GroupInfo, Line, ListedGroup, Message, Offset, Partition, ProduceError,
    Record, SeekError, Store, Stored, Topic, TopicMeta, Watermarks,
};
use crate::limits;

/// Per core: a handle to the broker, and the groups that live here.
#[derive(Debug)]
pub struct MemoryStore {
    broker: Arc<Broker>,
    bounds: Bounds,
    readers: RefCell<Vec<Reader>>,
}

/// An open group, and what its pump reads next: shared with the pump, so that a seek reaches it.
#[derive(Clone, Debug)]
struct Reader {
    group: Rc<Group>,
    next: Rc<RefCell<Vec<(Partition, Offset)>>>,
}

impl MemoryStore {
    /// What its groups may hold.
    pub fn bounds(&self) -> &Bounds {
        &self.bounds
    }

    pub fn new(broker: Arc<Broker>, bounds: Bounds) -> Self {
        Self { broker, bounds, readers: RefCell::default() }
    }
}

// === impl Reader ===

impl Reader {
    /// All of it or nothing.
    fn seek(&self, broker: &Broker, moves: &[(Partition, Offset)]) -> Result<(), SeekError> {
        let mut next = self.next.borrow_mut();
        let unknown = moves.iter().find(|(moved, _)| !next.iter().any(|(partition, _)| partition == moved));
        if let Some((partition, _)) = unknown {
            return Err(SeekError::NotOwned(*partition));
        }
        for (partition, offset) in moves {
            next.iter_mut().filter(|(known, _)| known == partition).for_each(|(_, position)| *position = *offset);
            self.group.assign(*partition, *offset);
        }
        broker.commit(&self.group.topic_name, &self.group.group_id, moves);
        Ok(())
    }
}

// === impl Store ===

impl Store for MemoryStore {
    type Report = Ready<Result<Stored, ProduceError>>;

    fn produce(&self, topic: &Topic, record: Record, _ack: Ack) -> Result<Self::Report, ProduceError> {
        self.broker.append(&topic.name, record).map(|stored| ready(Ok(stored)))
    }

    fn produce_all(
        &self,
        topic: &Topic,
        records: &mut VecDeque<Record>,
        _ack: Ack,
        line: &Rc<Line>,
    ) -> Result<(), ProduceError> {
        records.drain(..).for_each(|record| line.append_settled(self.broker.append(&topic.name, record)));
        Ok(())
    }

    fn enqueue(&self, topic: &Topic, record: Record, _ack: Ack) -> Result<(), ProduceError> {
        self.broker.append(&topic.name, record).map(|_| ())
    }

    async fn list_topics(&self) -> Result<Vec<TopicMeta>, AdminError> {
        Ok(self.broker.topics())
    }

    async fn create_topic(&self, name: &str, partitions: i32, _replicas: i32) -> Result<(), AdminError> {
        self.broker.create_topic(name, partitions)
    }

    async fn watermarks(&self, topic: &Topic) -> Result<Vec<Watermarks>, AdminError> {
        self.broker.watermarks(&topic.name).ok_or(AdminError::UnknownTopic)
    }

    fn open_group(&self, topic: &Rc<Topic>, group_id: &str, begin: Begin) -> Result<Rc<Group>, AdminError> {
        let marks = self.broker.watermarks(&topic.name).ok_or(AdminError::UnknownTopic)?;
        let group = Group::new(&topic.name, group_id, &self.bounds);
        // From here on it is in use: its commits are its own.
        self.broker.join(&topic.name, group_id);
        let mut next = Vec::with_capacity(marks.len());
        for mark in marks {
            let start = self.broker.start_of(&topic.name, group_id, mark.partition, begin.reset);
            group.assign(mark.partition, start);
            next.push((mark.partition, start));
        }
        let reader = Reader { group: Rc::clone(&group), next: Rc::new(RefCell::new(next)) };
        self.readers.borrow_mut().push(reader.clone());
        glommio::spawn_local(pump(Arc::clone(&self.broker), reader)).detach();
        Ok(group)
    }

    async fn close_group(&self, group: &Rc<Group>) {
        group.close();
        self.broker.commit(&group.topic_name, &group.group_id, &group.take_dirty());
        let mut readers = self.readers.borrow_mut();
        if let Some(at) = readers.iter().position(|reader| Rc::ptr_eq(&reader.group, group)) {
            readers.swap_remove(at);
            self.broker.leave(&group.topic_name, &group.group_id);
        }
    }

    async fn describe_group(&self, _topic: &str, _group_id: &str) -> Result<GroupInfo, AdminError> {
        // Whoever reads does so in this process, and is known there.
        Ok(GroupInfo { members: Vec::new(), is_settled: true })
    }

    async fn list_groups(&self, topic: &str) -> Result<Vec<ListedGroup>, AdminError> {
        let inner = self.broker.lock();
        let readers: BTreeSet<&String> = inner.log(topic).map(|log| log.readers.iter().collect()).unwrap_or_default();
        let committed: BTreeSet<&String> = inner.committed.keys().map(|(group_id, _, _)| group_id).collect();
        let read = readers.iter().map(|group_id| (*group_id, true));
        let others = committed.difference(&readers).map(|group_id| (*group_id, false));
        let listed = read.chain(others).take(limits::GROUPS_LISTED_MAX);
        Ok(listed.map(|(group_id, is_read)| ListedGroup { group_id: group_id.clone(), is_read }).collect())
    }

    async fn committed(&self, topic: &Topic, group_id: &str) -> Result<Vec<(Partition, Offset)>, AdminError> {
        let inner = self.broker.lock();
        let found = |partition: Partition| {
            let at = (group_id.to_owned(), topic.name.to_string(), partition);
            inner.committed.get(&at).map(|offset| (partition, *offset))
        };
        let partitions = inner.log(&topic.name).ok_or(AdminError::UnknownTopic)?.partitions.len();
        Ok((0..).take(partitions).filter_map(found).collect())
    }

    async fn set_committed(
        &self,
        topic: &Topic,
        group_id: &str,
        ends: &[(Partition, Offset)],
    ) -> Result<(), AdminError> {
        self.broker.lock_unread(&topic.name, group_id)?.commit(&topic.name, group_id, ends);
        Ok(())
    }

    async fn delete_committed(&self, topic: &Topic, group_id: &str) -> Result<(), AdminError> {
        let mut inner = self.broker.lock_unread(&topic.name, group_id)?;
        inner.committed.retain(|(group, name, _), _| group != group_id || name.as_str() != &*topic.name);
        Ok(())
    }

    async fn offsets_at(&self, topic: &Topic, at: At) -> Result<Vec<(Partition, Offset)>, AdminError> {
        let inner = self.broker.lock();
        let log = inner.log(&topic.name).ok_or(AdminError::UnknownTopic)?;
        Ok((0..).zip(&log.partitions).map(|(partition, segment)| (partition, segment.offset_at(at))).collect())
    }

    async fn seek(&self, group: &Rc<Group>, moves: Vec<(Partition, Offset)>) -> Result<(), SeekError> {
        let readers = self.readers.borrow();
        let reader = readers.iter().find(|reader| Rc::ptr_eq(&reader.group, group));
        let closed = || SeekError::Unavailable { reason: "the group is being left".to_owned() };
        reader.ok_or_else(closed)?.seek(&self.broker, &moves)
    }

    async fn peek(
        &self,
        topic: &Topic,
        from: &[(Partition, Offset)],
        messages_max: usize,
        bytes_max: usize,
    ) -> Result<Vec<Message>, AdminError> {
        let (mut messages, mut bytes) = (Vec::new(), 0);
        for (partition, start) in from {
            self.broker.read(&topic.name, *partition, *start, messages_max - messages.len(), |message| {
                if bytes < bytes_max {
                    bytes += message.bytes();
                    messages.push(message);
                }
            });
        }
        Ok(messages)
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
async fn pump(broker: Arc<Broker>, reader: Reader) {
    let group = &reader.group;
    let watcher = broker.watch(&group.topic_name);
    let mut rung = group.bell.wait();
    poll_fn(|cx| {
        // Registered before looking, so an append in between is not missed.
        watcher.register(cx.waker());
        loop {
            let dirty = group.take_dirty();
            if !dirty.is_empty() {
                broker.commit(&group.topic_name, &group.group_id, &dirty);
            }
            fill(&broker, group, &mut reader.next.borrow_mut());
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
            let count = group.room(*partition).min(share);
            let read = broker.read(&group.topic_name, *partition, *position, count, |message| {
                pushed += 1;
                group.push(message);
            });
            if let Some((first, last)) = read.gap {
                group.note_gap(*partition, first, last);
            }
            *position = read.next;
            group.set_latest(*partition, read.latest);
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
    use bytes::Bytes;

    use super::{super::Reset, broker::now_ms, *};

    fn bounds() -> Bounds {
        Bounds { leases_max: 10, budget: super::super::Budget::new(1 << 20) }
    }

    #[test]
    fn over_the_bound_the_oldest_records_of_all_go() {
        let broker = Broker::new(10_000);
        let store = MemoryStore::new(Arc::clone(&broker), bounds());
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

    fn topic(name: &str) -> Rc<Topic> {
        let partitions = std::cell::Cell::new(1);
        Rc::new(Topic { name: name.into(), slot: 0, partitions, usage: super::super::Usage::default() })
    }

    /// A store with the topic `t` of one partition and ten messages, and the topic.
    fn ten(bytes_max: usize) -> (MemoryStore, Rc<Topic>) {
        let store = MemoryStore::new(Broker::new(bytes_max), bounds());
        futures_lite::future::block_on(store.create_topic("t", 1, 1)).expect("it is new");
        for n in 0..10 {
            let record = Record { value: Bytes::from(vec![n; 1_000]), is_tombstone: n == 9, ..Record::default() };
            store.broker.append("t", record).expect("the topic is there");
        }
        (store, topic("t"))
    }

    #[test]
    fn places_and_looks_without_a_group() {
        futures_lite::future::block_on(async {
            let (store, topic) = ten(1 << 20);
            let at = async |at| store.offsets_at(&topic, at).await.expect("the topic is there")[0].1;
            assert_eq!((at(At::Oldest).await, at(At::Newest).await), (0, 10));
            assert_eq!((at(At::TimeMs(0)).await, at(At::TimeMs(now_ms() + 60_000)).await), (0, 10));
            let seen = store.peek(&topic, &[(0, 7)], 100, 100_000).await.expect("the topic is there");
            assert_eq!(seen.iter().map(|m| m.offset).collect::<Vec<_>>(), [7, 8, 9]);
            assert_eq!(seen.iter().map(|m| m.is_tombstone).collect::<Vec<_>>(), [false, false, true]);
            assert_eq!(store.peek(&topic, &[(0, 0)], 100, 2_500).await.expect("the topic is there").len(), 3);
            assert_eq!(store.peek(&topic, &[(0, 0)], 2, 100_000).await.expect("the topic is there").len(), 2);
        });
    }

    #[test]
    fn an_open_group_is_moved_by_a_seek_only() {
        let executor = glommio::LocalExecutorBuilder::default().io_memory(1 << 20).make().expect("io_uring is there");
        executor.run(async {
            let (store, topic) = ten(1 << 20);
            store.set_committed(&topic, "g", &[(0, 5)]).await.expect("nobody reads it");
            let begin = Begin { reset: Reset::Oldest, partitions: 1 };
            let group = store.open_group(&topic, "g", begin).expect("the topic is there");
            let listed = |is_read| Ok(vec![ListedGroup { group_id: "g".to_owned(), is_read }]);
            assert_eq!(store.list_groups("t").await, listed(true));
            assert_eq!(store.list_groups("u").await, listed(false), "it reads another topic");
            for refused in
                [store.set_committed(&topic, "g", &[(0, 1)]).await, store.delete_committed(&topic, "g").await]
            {
                assert_eq!(refused, Err(AdminError::InUse));
            }
            let spec = crate::store::FetchSpec {
                messages_max: 1,
                bytes_max: 1 << 20,
                wait: std::time::Duration::from_secs(5),
                linger: std::time::Duration::ZERO,
                filter: None,
                lease: None,
                client: None,
                with_ends: false,
                waited: std::time::Duration::ZERO,
            };
            let before = group.fetch(&spec).await.expect("it is open");
            assert_eq!(before.messages[0].offset, 5);
            assert_eq!(store.seek(&group, vec![(0, 2), (7, 0)]).await, Err(SeekError::NotOwned(7)));
            assert_eq!(store.committed(&topic, "g").await, Ok(vec![(0, 5)]), "all or nothing");
            assert_eq!(store.seek(&group, vec![(0, 2)]).await, Ok(()));
            assert_eq!(store.committed(&topic, "g").await, Ok(vec![(0, 2)]));
            group.settle(&before.grants, crate::store::Outcome::Delivered);
            assert_eq!(group.status().partitions[0].end, 2, "the lease is void");
            assert_eq!(group.fetch(&spec).await.expect("it is open").messages[0].offset, 2);
            store.close_group(&group).await;
            assert!(matches!(store.seek(&group, vec![(0, 0)]).await, Err(SeekError::Unavailable { .. })));
            assert_eq!(store.list_groups("t").await, listed(false));
            assert_eq!(store.delete_committed(&topic, "g").await, Ok(()));
            assert_eq!(store.committed(&topic, "g").await, Ok(Vec::new()));
        });
    }

    #[test]
    fn what_was_dropped_unread_is_a_gap() {
        let (store, _) = ten(5_500);
        let read = store.broker.read("t", 0, 1, 100, |_| {});
        let oldest = store.broker.watermarks("t").expect("the topic is there")[0].oldest;
        assert!(oldest > 1 && read.gap == Some((1, oldest - 1)), "{read:?}");
        assert_eq!(store.broker.read("t", 0, read.next, 100, |_| {}).gap, None);
    }
}
