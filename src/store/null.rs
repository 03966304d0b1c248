//! The dry-run store: takes everything, keeps nothing, with a scripted delay and error rate.
//!
//! It shows what HTTP alone costs, and lets a client be tried against slow or failing writes. Every topic exists with four
//! partitions; offsets are -1; a reader waits in vain. Per core.

use std::{
    cell::Cell,
    collections::VecDeque,
    future::Future,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use super::{
    Ack, AdminError, At, Begin, Bounds, Group, GroupInfo, Line, ListedGroup, Message, Offset, Partition, ProduceError,
    Record, SeekError, Store, Stored, Topic, TopicMeta, Watermarks, murmur2,
};
use crate::config::resolve::{Config, NullConfig};

/// See the module text.
#[derive(Debug)]
pub struct NullStore {
    bounds: Bounds,
    delay: Duration,
    error_ppm: u32,
    /// Spreads the scripted errors evenly instead of by chance, so that a test can count them.
    error_debt: Cell<u32>,
    next: Cell<i32>,
}

impl NullStore {
    /// What its groups may hold.
    pub fn bounds(&self) -> &Bounds {
        &self.bounds
    }

    pub fn new(config: &Config) -> Self {
        let NullConfig { delay, error_ppm } = config.null;
        Self { bounds: Bounds::new(&config.subscribe), delay, error_ppm, error_debt: Cell::new(0), next: Cell::new(0) }
    }

    fn outcome(&self, topic: &Topic, record: &Record) -> Result<Stored, ProduceError> {
        let partitions = topic.partitions.get().max(1);
        let partition = match (record.partition, &record.key) {
            (Some(explicit), _) if (0..partitions).contains(&explicit) => explicit,
            (Some(_), _) => return Err(ProduceError::UnknownPartition),
            (None, Some(key)) => murmur2::partition_of(key, partitions),
            (None, None) => {
                self.next.set((self.next.get() + 1) % partitions);
                self.next.get()
            }
        };
        let debt = self.error_debt.get() + self.error_ppm;
        self.error_debt.set(debt % 1_000_000);
        if debt >= 1_000_000 {
            return Err(ProduceError::NotStored { reason: "scripted" });
        }
        Ok(Stored { partition, offset: -1 })
    }
}

/// The scripted report: at once, or after the scripted delay.
#[derive(Debug)]
pub struct NullReport {
    outcome: Option<Result<Stored, ProduceError>>,
    timer: Option<glommio::timer::Timer>,
}

impl Future for NullReport {
    type Output = Result<Stored, ProduceError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let Some(timer) = self.timer.as_mut()
            && Pin::new(timer).poll(cx).is_pending()
        {
            return Poll::Pending;
        }
        Poll::Ready(self.outcome.take().unwrap_or(Err(ProduceError::Unknown { reason: "polled twice" })))
    }
}

// === impl Store ===

impl Store for NullStore {
    type Report = NullReport;

    fn produce(&self, topic: &Topic, record: Record, _ack: Ack) -> Result<Self::Report, ProduceError> {
        let timer = (!self.delay.is_zero()).then(|| glommio::timer::Timer::new(self.delay));
        Ok(NullReport { outcome: Some(self.outcome(topic, &record)), timer })
    }

    fn produce_all(
        &self,
        topic: &Topic,
        records: &mut VecDeque<Record>,
        _ack: Ack,
        line: &Rc<Line>,
    ) -> Result<(), ProduceError> {
        for record in records.drain(..) {
            let (outcome, number) = (self.outcome(topic, &record), line.append());
            if self.delay.is_zero() {
                line.settle(number, outcome);
                continue;
            }
            let (line, delay) = (Rc::clone(line), self.delay);
            glommio::spawn_local(async move {
                glommio::timer::sleep(delay).await;
                line.settle(number, outcome);
            })
            .detach();
        }
        Ok(())
    }

    fn enqueue(&self, topic: &Topic, record: Record, _ack: Ack) -> Result<(), ProduceError> {
        self.outcome(topic, &record).map(|_| ())
    }

    async fn list_topics(&self) -> Result<Vec<TopicMeta>, AdminError> {
        Ok(Vec::new())
    }

    async fn create_topic(&self, _name: &str, _partitions: i32, _replicas: i32) -> Result<(), AdminError> {
        Ok(())
    }

    async fn watermarks(&self, _topic: &Topic) -> Result<Vec<Watermarks>, AdminError> {
        Ok(Vec::new())
    }

    fn open_group(&self, topic: &Rc<Topic>, group_id: &str, _begin: Begin) -> Result<Rc<Group>, AdminError> {
        let group = Group::new(&topic.name, group_id, &self.bounds);
        group.set_assigned();
        Ok(group)
    }

    async fn close_group(&self, group: &Rc<Group>) {
        group.close();
    }

    async fn describe_group(&self, _topic: &str, _group_id: &str) -> Result<GroupInfo, AdminError> {
        Ok(GroupInfo { members: Vec::new(), is_settled: true })
    }

    async fn list_groups(&self, _topic: &str) -> Result<Vec<ListedGroup>, AdminError> {
        Ok(Vec::new())
    }

    async fn committed(&self, _topic: &Topic, _group_id: &str) -> Result<Vec<(Partition, Offset)>, AdminError> {
        Ok(Vec::new())
    }

    async fn set_committed(
        &self,
        _topic: &Topic,
        _group_id: &str,
        _ends: &[(Partition, Offset)],
    ) -> Result<(), AdminError> {
        Ok(())
    }

    async fn delete_committed(&self, _topic: &Topic, _group_id: &str) -> Result<(), AdminError> {
        Ok(())
    }

    async fn offsets_at(&self, topic: &Topic, _at: At) -> Result<Vec<(Partition, Offset)>, AdminError> {
        Ok((0..topic.partitions.get()).map(|partition| (partition, 0)).collect())
    }

    async fn seek(&self, _group: &Rc<Group>, _moves: Vec<(Partition, Offset)>) -> Result<(), SeekError> {
        Ok(())
    }

    async fn peek(
        &self,
        _topic: &Topic,
        _from: &[(Partition, Offset)],
        _messages_max: usize,
        _bytes_max: usize,
    ) -> Result<Vec<Message>, AdminError> {
        Ok(Vec::new())
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
