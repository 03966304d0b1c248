//! What the Kafka side counts. Per core: one writer, plain cells; whoever shows them takes a snapshot on the same core.

use std::cell::Cell;

/// A number that only grows.
#[derive(Default, Debug)]
pub struct Counter(Cell<u64>);

impl Counter {
    pub fn add(&self, n: u64) {
        self.0.set(self.0.get() + n);
    }

    pub fn one(&self) {
        self.add(1);
    }

    pub fn get(&self) -> u64 {
        self.0.get()
    }
}

/// Counters of all producers of a core.
#[derive(Default, Debug)]
pub struct ProducerStats {
    /// Records librdkafka took.
    pub produced: Counter,
    pub produced_bytes: Counter,
    /// Reports: stored.
    pub stored: Counter,
    /// Reports: for sure not stored.
    pub not_stored: Counter,
    /// Reports: perhaps stored.
    pub unknown: Counter,
    /// Reports: refused by the broker.
    pub refused: Counter,
    /// Reports and enqueues: no such topic or partition.
    pub unknown_topic: Counter,
    /// Enqueues refused because the producer's queue was full.
    pub queue_full: Counter,
    /// Enqueues refused for any other reason.
    pub enqueue_failed: Counter,
    /// Requests answered by their deadline, before the report.
    pub overdue: Counter,
    /// Reports that came after their request was answered by its deadline.
    pub late: Counter,
    /// Producers replaced after a fatal error.
    pub fatal_restarts: Counter,
    /// Times the core was told of reports.
    pub wakeups: Counter,
}

/// [`ProducerStats`] at one moment, and what waits now.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct ProducerSnapshot {
    pub produced: u64,
    pub produced_bytes: u64,
    pub stored: u64,
    pub not_stored: u64,
    pub unknown: u64,
    pub refused: u64,
    pub unknown_topic: u64,
    pub queue_full: u64,
    pub enqueue_failed: u64,
    pub overdue: u64,
    pub late: u64,
    pub fatal_restarts: u64,
    pub wakeups: u64,
    /// Records without a report.
    pub queued: u64,
    pub queued_bytes: u64,
    /// Clients of librdkafka there are.
    pub producers: u64,
}

impl ProducerStats {
    pub(super) fn snapshot(&self) -> ProducerSnapshot {
        ProducerSnapshot {
            produced: self.produced.get(),
            produced_bytes: self.produced_bytes.get(),
            stored: self.stored.get(),
            not_stored: self.not_stored.get(),
            unknown: self.unknown.get(),
            refused: self.refused.get(),
            unknown_topic: self.unknown_topic.get(),
            queue_full: self.queue_full.get(),
            enqueue_failed: self.enqueue_failed.get(),
            overdue: self.overdue.get(),
            late: self.late.get(),
            fatal_restarts: self.fatal_restarts.get(),
            wakeups: self.wakeups.get(),
            queued: 0,
            queued_bytes: 0,
            producers: 0,
        }
    }
}

/// Counters of all groups of a core.
#[derive(Default, Debug)]
pub struct ConsumerStats {
    pub fetched: Counter,
    pub fetched_bytes: Counter,
    /// Assignments and revocations answered.
    pub rebalances: Counter,
    /// Partitions taken away before anything could be committed.
    pub lost_partitions: Counter,
    pub commits: Counter,
    pub commits_failed: Counter,
    /// Partitions continued at the oldest because their offset was gone.
    pub offset_resets: Counter,
    pub errors: Counter,
    pub groups_opened: Counter,
    pub groups_closed: Counter,
    /// Groups that could not leave within their time.
    pub closes_overdue: Counter,
}

/// [`ConsumerStats`] at one moment.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct ConsumerSnapshot {
    pub fetched: u64,
    pub fetched_bytes: u64,
    pub rebalances: u64,
    pub lost_partitions: u64,
    pub commits: u64,
    pub commits_failed: u64,
    pub offset_resets: u64,
    pub errors: u64,
    pub groups_opened: u64,
    pub groups_closed: u64,
    pub closes_overdue: u64,
}

impl ConsumerStats {
    pub(super) fn snapshot(&self) -> ConsumerSnapshot {
        ConsumerSnapshot {
            fetched: self.fetched.get(),
            fetched_bytes: self.fetched_bytes.get(),
            rebalances: self.rebalances.get(),
            lost_partitions: self.lost_partitions.get(),
            commits: self.commits.get(),
            commits_failed: self.commits_failed.get(),
            offset_resets: self.offset_resets.get(),
            errors: self.errors.get(),
            groups_opened: self.groups_opened.get(),
            groups_closed: self.groups_closed.get(),
            closes_overdue: self.closes_overdue.get(),
        }
    }
}
