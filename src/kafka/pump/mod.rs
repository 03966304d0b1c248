//! The pump of one group: takes what librdkafka has, gives it to the group, commits what the group has acknowledged.
//!
//! `messages` takes messages, `seek` moves the group, `watchdog` sees that it gets on. Invariants: one commit is under way at a time, so
//! an older one never overtakes a newer; a pump step handles at most [`limits::LOOP_ITEMS_MAX`] messages and then yields. Partitions are
//! never paused: librdkafka's pause waits for its own thread, and outlives an assignment. Per core; lives as long as one client.

mod messages;
mod seek;
mod watchdog;

use std::{
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use rdkafka::bindings::rd_kafka_resp_err_t as rd;

use self::seek::Seeking;
pub(super) use self::{
    seek::{Seeks, unavailable},
    watchdog::Watchdog,
};
use super::{
    consumer::{Member, leave_by},
    delivery::log_line,
    native::{Client, ErrorCode, Event, Fetched, PartitionList, Queue},
    offsets::{Assigned, Start},
    rebalance::{Answers, Outcome, Rebalance},
};
use crate::{
    limits,
    store::{Offset, Partition},
    within::within,
};

/// The consumer queue is polled at least so often.
const TICK: Duration = Duration::from_secs(1);
/// A member without partitions asks so often for the commits of others, until it has seen one.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// A commit whose result did not come by then is taken for failed.
const COMMIT_LOST: Duration = Duration::from_secs(15);
/// How long a refusal (authorization, no such topic) is shown to clients when it does not repeat.
const FAULT_SHOWN: Duration = Duration::from_secs(5);
/// Of syslog's levels.
const LOG_WARNING: i32 = 4;

#[derive(Debug)]
struct Part {
    id: Partition,
    queue: Queue,
    /// The offset expected next, or a later one.
    next: Offset,
}

/// A commit under way.
#[derive(Debug)]
struct Committing {
    since: Instant,
    partitions: Vec<Partition>,
}

impl Committing {
    fn is_lost(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.since) >= COMMIT_LOST
    }
}

/// See the module text.
#[derive(Debug)]
pub(super) struct Pump {
    member: Rc<Member>,
    client: Arc<Client>,
    queue: Queue,
    parts: Vec<Part>,
    /// Where the next step starts, so that no partition is preferred.
    turn: usize,
    answers: Rc<Answers>,
    fetched: Vec<Fetched>,
    committing: Option<Committing>,
    seeking: Option<Seeking>,
    /// There was an assignment, perhaps of nothing.
    has_joined: bool,
    commit_due: Instant,
    tick_due: Instant,
    look_due: Instant,
    /// Since when no broker answers.
    down_since: Option<Instant>,
    fault_until: Option<Instant>,
    is_broken: bool,
    /// The group is stuck: it leaves, and joins anew by another client.
    is_stuck: bool,
    /// Messages it still gives (`test.deaf_after_messages`).
    pub(in crate::kafka) deaf_after: Option<usize>,
}

impl Pump {
    pub fn new(member: Rc<Member>, client: Arc<Client>) -> Option<Self> {
        let queue = client.consumer_queue()?;
        queue.watch();
        let now = Instant::now();
        Some(Self {
            answers: Answers::new(&member, &client),
            member,
            client,
            queue,
            parts: Vec::new(),
            turn: 0,
            fetched: Vec::with_capacity(limits::LOOP_ITEMS_MAX),
            committing: None,
            seeking: None,
            has_joined: false,
            commit_due: now,
            tick_due: now,
            look_due: now,
            down_since: None,
            fault_until: None,
            is_broken: false,
            is_stuck: false,
            deaf_after: None,
        })
    }

    /// Pumps until the group closes (`true`: it has left) or the client breaks (`false`).
    pub async fn run(mut self) -> bool {
        let group = Rc::clone(&self.member.group);
        loop {
            let rung = group.bell.wait();
            self.serve().await;
            let is_leaving = (group.is_closing() || self.is_stuck) && !self.answers.is_busy();
            if is_leaving && !self.is_broken {
                self.leave().await;
            }
            if is_leaving || self.is_broken {
                // What could not be given up in time is the next client's to get, and nobody's until then.
                for part in std::mem::take(&mut self.parts) {
                    group.revoke(part.id);
                }
                return group.is_closing();
            }
            let more = self.fetch_some();
            let now = Instant::now();
            self.commit_if_due(now);
            self.tick(now);
            if more {
                glommio::executor().yield_now().await;
                continue;
            }
            let nap = self.nap(now);
            within(nap, rung).await;
        }
    }

    fn nap(&self, now: Instant) -> Duration {
        let until_tick = self.tick_due.saturating_duration_since(now);
        let until_commit = self.commit_due.saturating_duration_since(now);
        // A commit that is due and was not sent had nothing to commit: an acknowledgement rings.
        if until_commit.is_zero() || self.committing.is_some() { until_tick } else { until_tick.min(until_commit) }
    }

    /// Everything but messages: the consumer queue, and what the offload pool has done.
    async fn serve(&mut self) {
        let mut handled = 0;
        while let Some(event) = self.queue.poll() {
            self.take_event(event);
            handled += 1;
            if handled % limits::LOOP_ITEMS_MAX == 0 {
                glommio::executor().yield_now().await;
            }
        }
        while let Some(outcome) = self.answers.next_outcome() {
            self.take_outcome(outcome);
        }
        while let Some(rebalance) = self.answers.next_rebalance() {
            self.take_rebalance(rebalance);
        }
        self.begin_seek();
    }

    fn take_rebalance(&mut self, rebalance: Rebalance) {
        self.member.around.stats.rebalances.one();
        match rebalance {
            Rebalance::Assign(partitions) => {
                self.heard();
                self.answers.assign(partitions);
            }
            Rebalance::Revoke { partitions, is_lost } => self.revoke(partitions, is_lost),
        }
    }

    fn take_event(&mut self, event: Event) {
        match event {
            Event::Assign(list) => self.answers.ask(Rebalance::Assign(list.partitions())),
            Event::Revoke(list) => {
                let is_lost = self.client.is_assignment_lost();
                self.answers.ask(Rebalance::Revoke { partitions: list.partitions(), is_lost });
            }
            Event::Committed { code, partitions } => self.take_commit(code, partitions.as_ref()),
            Event::Error { code, text, fatal } => self.take_error(code, &text, fatal),
            Event::Log { level, text } => {
                // The only sign librdkafka gives that it continued at the oldest because the position was gone.
                if level <= LOG_WARNING && text.starts_with("OFFSET:") {
                    self.member.around.stats.offset_resets.one();
                }
                log_line(&self.member.around.reach.log, level, &text);
            }
            // Of a partition that was not split off in time: as good as any other, and later ones must not overtake it.
            Event::Message(message) => {
                if self.is_moving(message.partition()) {
                    // From before the move or from after it? The next client reads it again.
                    self.is_broken = true;
                    return;
                }
                self.take_message(*message);
                self.member.group.wake_first();
            }
            Event::Reports(_) | Event::Other => {}
        }
    }

    fn take_outcome(&mut self, outcome: Outcome) {
        let group = &self.member.group;
        match outcome {
            Outcome::Assigned(Assigned { starts, commits, anew }) => {
                let mut standing = self.member.standing.borrow_mut();
                if standing.anew != anew && starts.iter().any(|start| start.is_chosen) {
                    // What was made again while the offsets were asked for is new to the group from its beginning. These are assigned by
                    // now, and moving them could be taken for the answer to a rebalance: the next client asks for all of it.
                    tracing::warn!(
                        group = group.group_id,
                        "the topic was made again during an assignment; the client is replaced"
                    );
                    self.is_broken = true;
                    return;
                }
                // What else was learnt while the offsets were asked for stays.
                standing.learn(&commits);
                standing.choose(&starts);
                drop(standing);
                self.take_partitions(starts);
            }
            Outcome::NotAssigned => {}
            Outcome::Sought(sought) => self.end_seek(sought),
            Outcome::Refused(text) => {
                self.member.around.stats.errors.one();
                tracing::error!(
                    group = group.group_id,
                    text,
                    "a rebalance was answered wrongly; the client is replaced"
                );
                self.is_broken = true;
            }
            Outcome::GaveUp { ends, is_committed } => {
                let counter = if is_committed {
                    &self.member.around.stats.commits
                } else {
                    &self.member.around.stats.commits_failed
                };
                if !ends.is_empty() {
                    counter.one();
                }
                if is_committed {
                    let partitions = ends.into_iter().map(|(partition, _)| partition);
                    self.member.standing.borrow_mut().committed.extend(partitions);
                }
            }
        }
    }

    fn take_partitions(&mut self, starts: Vec<Start>) {
        let group = Rc::clone(&self.member.group);
        for Start { partition, offset, is_chosen, gap, queue } in starts {
            group.assign(partition, offset);
            if let Some((first, last)) = gap {
                self.note_gap(partition, first, last);
            }
            if is_chosen {
                group.mark_uncommitted([partition]);
            }
            self.parts.retain(|part| part.id != partition);
            self.parts.push(Part { id: partition, queue, next: offset });
        }
        self.commit_due = Instant::now();
        self.has_joined = true;
        group.set_assigned();
    }

    /// Leases are void from here on, so what is acknowledged later is refused rather than lost; then commit and give up.
    fn revoke(&mut self, revoked: Vec<Partition>, is_lost: bool) {
        let group = &self.member.group;
        let stats = &self.member.around.stats;
        if let Some(Committing { partitions, .. }) = &self.committing {
            // What becomes of it is known too late: commit that again.
            group.mark_uncommitted(partitions.iter().copied());
        }
        let (mut ends, kept): (Vec<_>, Vec<_>) =
            group.take_dirty().into_iter().partition(|(partition, _)| revoked.contains(partition));
        // What stays ours goes with the next ordinary commit.
        group.mark_uncommitted(kept.into_iter().map(|(partition, _)| partition));
        if is_lost {
            ends.clear();
        }
        for partition in &revoked {
            group.revoke(*partition);
            self.parts.retain(|part| part.id != *partition);
            if is_lost {
                stats.lost_partitions.one();
            }
        }
        self.answers.give_up(ends, revoked);
    }
}

// === commits ===

impl Pump {
    /// Whether a commit is under way. One whose result does not come is given up: it must not hold up the next, nor a move, for ever.
    fn is_committing(&mut self, now: Instant) -> bool {
        if let Some(Committing { partitions, .. }) = self.committing.take_if(|commit| commit.is_lost(now)) {
            self.member.around.stats.commits_failed.one();
            if let Some(held) = self.member.around.reach.log.pass(now) {
                tracing::warn!(group = self.member.group.group_id, held, "a commit was not answered");
            }
            self.member.group.mark_uncommitted(partitions);
        }
        self.committing.is_some()
    }

    fn commit_if_due(&mut self, now: Instant) {
        if self.is_committing(now) || self.seeking.is_some() || now < self.commit_due {
            return;
        }
        let ends = self.member.group.take_dirty();
        if ends.is_empty() {
            return;
        }
        let list = self.member.commits(&ends);
        self.commit_due = now + self.member.around.config.subscribe.commit_interval;
        match self.client.commit_to(&self.queue, &list) {
            Ok(()) => self.committing = Some(Committing { since: now, partitions: list.partitions() }),
            Err(code) => self.take_commit(code, Some(&list)),
        }
    }

    fn take_commit(&mut self, code: ErrorCode, partitions: Option<&PartitionList>) {
        self.committing = None;
        let stats = &self.member.around.stats;
        // Some may succeed where others fail.
        let (committed, failed): (Vec<_>, Vec<_>) = partitions
            .into_iter()
            .flat_map(PartitionList::entries)
            .partition(|entry| code.is_ok() && entry.code.is_ok());
        self.member.standing.borrow_mut().committed.extend(committed.iter().map(|entry| entry.partition));
        if code.is_ok() && failed.is_empty() {
            stats.commits.one();
            self.heard();
            return;
        }
        stats.commits_failed.one();
        if let Some(held) = self.member.around.reach.log.pass(Instant::now()) {
            tracing::warn!(group = self.member.group.group_id, error = code.name(), held, "a commit failed");
        }
        self.member.group.mark_uncommitted(failed.iter().map(|entry| entry.partition));
    }
}

// === health ===

impl Pump {
    fn heard(&mut self) {
        self.down_since = None;
        self.member.around.reach.heard(Instant::now());
    }

    fn take_error(&mut self, code: ErrorCode, text: &str, fatal: bool) {
        let group = &self.member.group;
        self.member.around.stats.errors.one();
        if let Some(held) = self.member.around.reach.log.pass(Instant::now()) {
            tracing::warn!(group = group.group_id, error = code.name(), text, held, "consumer error");
        }
        if code.is(rd::RD_KAFKA_RESP_ERR__ALL_BROKERS_DOWN) {
            self.member.around.reach.missed();
        }
        if fatal {
            group.fail(code.name());
            self.is_broken = true;
        } else if is_refusal(code) {
            group.fail(code.name());
            self.fault_until = Some(Instant::now() + FAULT_SHOWN);
        }
    }

    /// Once a second: lag, what others have committed, and whether waiting clients should be told that nothing can come.
    fn tick(&mut self, now: Instant) {
        if now < self.tick_due {
            return;
        }
        self.tick_due = now + TICK;
        let group = Rc::clone(&self.member.group);
        for part in &self.parts {
            if let Some(latest) = self.client.ends_seen(&self.member.topic, part.id).1 {
                group.set_latest(part.id, latest);
            }
        }
        if self.member.around.reach.is_up() {
            self.down_since = None;
            self.watch_over(&group, now);
            if self.parts.is_empty() && group.is_assigned() && now >= self.look_due && self.member.look(&self.client) {
                self.look_due = now + LOOK_EVERY;
            }
            if self.fault_until.is_some_and(|until| now > until) {
                self.fault_until = None;
                group.recovered();
            }
            return;
        }
        let down_since = *self.down_since.get_or_insert(now);
        if now.saturating_duration_since(down_since) >= self.member.around.config.kafka.admin_timeout {
            group.fail("no broker of the cluster answers");
            self.fault_until = Some(now);
        }
    }
}

/// What the cluster will say again next time.
fn is_refusal(code: ErrorCode) -> bool {
    code.is_one_of(&[
        rd::RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED,
        rd::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED,
        rd::RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED,
        rd::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART,
        rd::RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC,
        rd::RD_KAFKA_RESP_ERR_TOPIC_EXCEPTION,
        rd::RD_KAFKA_RESP_ERR_INVALID_GROUP_ID,
        rd::RD_KAFKA_RESP_ERR_INVALID_SESSION_TIMEOUT,
        rd::RD_KAFKA_RESP_ERR_GROUP_MAX_SIZE_REACHED,
        rd::RD_KAFKA_RESP_ERR_INCONSISTENT_GROUP_PROTOCOL,
        rd::RD_KAFKA_RESP_ERR__AUTHENTICATION,
        rd::RD_KAFKA_RESP_ERR__SSL,
    ])
}

// === leaving ===

impl Drop for Pump {
    fn drop(&mut self) {
        self.answers.end();
    }
}

impl Pump {
    /// Closes the consumer: librdkafka revokes (which commits, see `revoke`), sends LeaveGroup, and says when it is done.
    async fn leave(&mut self) {
        let by = leave_by(Instant::now());
        if let Err(text) = self.client.close_to(&self.queue) {
            tracing::warn!(group = self.member.group.group_id, text, "a group could not be left");
            return;
        }
        let group = Rc::clone(&self.member.group);
        while !self.client.is_closed() || self.answers.is_busy() {
            let rung = group.bell.wait();
            self.serve().await;
            if Instant::now() >= by {
                self.member.around.stats.closes_overdue.one();
                return;
            }
            within(Duration::from_millis(20), rung).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_that_is_not_answered_is_lost_some_time() {
        let since = Instant::now();
        let commit = Committing { since, partitions: vec![0] };
        assert!(!commit.is_lost(since) && !commit.is_lost(since + COMMIT_LOST / 2));
        assert!(commit.is_lost(since + COMMIT_LOST));
    }
}
