//! What all cores share of the embedded store: the logs, what groups have committed, and who reads.
//!
//! Behind one plain lock, held for a push or a copy of some handles and never across an await. Bounded: over the bound the oldest
//! records of all go.
#![allow(clippy::disallowed_types)] // The embedded store's one lock, see above.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use atomic_waker::AtomicWaker;
use bytes::Bytes;

use super::super::{
    AdminError, At, Header, Message, Offset, Partition, ProduceError, Record, Reset, Stored, TopicMeta, Watermarks,
    murmur2,
};
use crate::limits;

/// The data all cores share.
#[derive(Debug)]
pub struct Broker {
    inner: Mutex<Inner>,
    bytes_max: usize,
}

#[derive(Debug, Default)]
pub(super) struct Inner {
    /// Positions in `logs`, which only grows.
    pub(super) topics: HashMap<String, usize>,
    pub(super) logs: Vec<Log>,
    /// Topic and partition of every record, the oldest first: what goes when the bound is reached.
    pub(super) order: VecDeque<(u32, u32)>,
    pub(super) committed: HashMap<(String, String, Partition), Offset>,
    pub(super) bytes: usize,
}

#[derive(Debug, Default)]
pub(super) struct Log {
    pub(super) partitions: Vec<Segment>,
    /// One per reader group of this topic; woken by every append.
    pub(super) watchers: Vec<Arc<AtomicWaker>>,
    /// The groups that read this topic, each on its home core.
    pub(super) readers: Vec<String>,
    pub(super) round_robin: usize,
}

#[derive(Debug, Default)]
pub(super) struct Segment {
    pub(super) base: Offset,
    pub(super) messages: VecDeque<Message>,
}

impl Segment {
    pub(super) fn latest(&self) -> Offset {
        self.base + Offset::try_from(self.messages.len()).unwrap_or(0)
    }

    pub(super) fn offset_at(&self, at: At) -> Offset {
        match at {
            At::Oldest => self.base,
            At::Newest => self.latest(),
            At::TimeMs(time_ms) => {
                let found = self.messages.iter().find(|message| message.timestamp_ms >= time_ms);
                found.map_or_else(|| self.latest(), |message| message.offset)
            }
        }
    }
}

/// What a read found.
#[derive(Clone, Copy, Debug)]
pub(super) struct Read {
    /// After what was read.
    pub(super) next: Offset,
    pub(super) latest: Offset,
    /// First and last offset that were to be read and are gone.
    pub(super) gap: Option<(Offset, Offset)>,
}

impl Broker {
    pub fn new(bytes_max: usize) -> Arc<Self> {
        Arc::new(Self { inner: Mutex::default(), bytes_max })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn append(&self, topic: &str, record: Record) -> Result<Stored, ProduceError> {
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
            value: if record.is_tombstone { Bytes::new() } else { record.value },
            is_tombstone: record.is_tombstone,
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

    /// Moves up to `count` messages from `start` on into `push`.
    pub(super) fn read(
        &self,
        topic: &str,
        partition: Partition,
        start: Offset,
        count: usize,
        mut push: impl FnMut(Message),
    ) -> Read {
        let inner = self.lock();
        let segment = inner.log(topic).and_then(|log| log.partitions.get(usize::try_from(partition).ok()?));
        let Some(segment) = segment else { return Read { next: start, latest: -1, gap: None } };
        let gap = (start < segment.base).then_some((start, segment.base - 1));
        let next = start.max(segment.base);
        let from = usize::try_from(next - segment.base).unwrap_or(usize::MAX).min(segment.messages.len());
        let to = from.saturating_add(count).min(segment.messages.len());
        for message in segment.messages.range(from..to) {
            push(message.clone());
        }
        Read { next: segment.base + Offset::try_from(to).unwrap_or(0), latest: segment.latest(), gap }
    }

    pub(super) fn topics(&self) -> Vec<TopicMeta> {
        let inner = self.lock();
        let topics = inner.topics.iter().map(|(name, at)| TopicMeta {
            name: name.clone(),
            partitions: inner.logs.get(*at).map_or(0, |log| i32::try_from(log.partitions.len()).unwrap_or(i32::MAX)),
        });
        topics.collect()
    }

    pub(super) fn create_topic(&self, name: &str, partitions: i32) -> Result<(), AdminError> {
        let count = usize::try_from(partitions).unwrap_or(1).max(1);
        let mut inner = self.lock();
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

    pub(super) fn start_of(&self, topic: &str, group_id: &str, partition: Partition, reset: Reset) -> Offset {
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

    pub(super) fn commit(&self, topic: &str, group_id: &str, ends: &[(Partition, Offset)]) {
        self.lock().commit(topic, group_id, ends);
    }

    pub(super) fn join(&self, topic: &str, group_id: &str) {
        if let Some(log) = self.lock().log_mut(topic) {
            log.readers.push(group_id.to_owned());
        }
    }

    pub(super) fn leave(&self, topic: &str, group_id: &str) {
        if let Some(log) = self.lock().log_mut(topic)
            && let Some(at) = log.readers.iter().position(|reader| reader == group_id)
        {
            log.readers.swap_remove(at);
        }
    }

    /// The broker's data, if the topic is there and the group does not read it.
    pub(super) fn lock_unread(&self, topic: &str, group_id: &str) -> Result<MutexGuard<'_, Inner>, AdminError> {
        let inner = self.lock();
        let log = inner.log(topic).ok_or(AdminError::UnknownTopic)?;
        if log.readers.iter().any(|reader| reader == group_id) { Err(AdminError::InUse) } else { Ok(inner) }
    }

    pub(super) fn watch(&self, topic: &str) -> Arc<AtomicWaker> {
        let watcher = Arc::new(AtomicWaker::new());
        if let Some(log) = self.lock().log_mut(topic) {
            log.watchers.push(Arc::clone(&watcher));
        }
        watcher
    }

    pub(super) fn unwatch(&self, topic: &str, watcher: &Arc<AtomicWaker>) {
        if let Some(log) = self.lock().log_mut(topic) {
            log.watchers.retain(|w| !Arc::ptr_eq(w, watcher));
        }
    }

    pub(super) fn watermarks(&self, topic: &str) -> Option<Vec<Watermarks>> {
        let inner = self.lock();
        let log = inner.log(topic)?;
        let marks = (0..).zip(&log.partitions);
        Some(marks.map(|(partition, s)| Watermarks { partition, oldest: s.base, latest: s.latest() }).collect())
    }
}

impl Inner {
    pub(super) fn log(&self, topic: &str) -> Option<&Log> {
        self.logs.get(*self.topics.get(topic)?)
    }

    pub(super) fn log_mut(&mut self, topic: &str) -> Option<&mut Log> {
        self.logs.get_mut(*self.topics.get(topic)?)
    }

    pub(super) fn commit(&mut self, topic: &str, group_id: &str, ends: &[(Partition, Offset)]) {
        for (partition, end) in ends {
            self.committed.insert((group_id.to_owned(), topic.to_owned(), *partition), *end);
        }
    }

    /// Drops the oldest records of all until the bound holds; the newest stays.
    pub(super) fn keep_within(&mut self, bytes_max: usize) {
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
    pub(super) fn choose(&mut self, record: &Record) -> Result<Partition, ProduceError> {
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

pub(super) fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
