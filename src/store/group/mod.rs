//! A reader group on its home core: buffered messages, lease tables, and the clients waiting for them.
//!
//! ```text
//!  source (kafka consumer, memory log)             clients (any core, through the API)
//!     | push, assign, revoke                          | fetch            | ack, give_back
//!     v                                               v                  v
//!   [ ready messages per partition ] --- takes --> [ waiting line, first come first served ]
//!                                        \--> [ lease table per partition ] --> dirty ends --> source commits
//! ```
//!
//! This file is the source's side and the settlement; `clients` the waiting line, `part` one partition, `budget` what may be held.
//!
//! Invariants: clients are served in the order they came; a message taken is in a lease until acknowledged or given back; a
//! fetch that is dropped (its client left) gives back what it took. The source is only asked for what waiting clients want
//! ([`Group::demand`]), so a group without clients buffers nothing here. Per core. This folder knows no Kafka client and no HTTP.

mod budget;
mod clients;
mod part;

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    net::IpAddr,
    rc::Rc,
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    },
    task::Waker,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

pub use self::{
    budget::Budget,
    clients::Fetching,
    part::{Acked, Burial, LeaseSpec, Outcome},
};
use self::{clients::Agreed, part::Part};
use super::{Gap, Message, Offset, Partition, lease::LeaseId, notify::Notify, tag::TagFilter};
use crate::config::resolve::SubscribeConfig;

/// Where the next group's epochs start: a late settlement meant for a group that was left must fit no later one of its name.
/// Nor one of an earlier life of this gateway, which other gateways may still hold.
static GENERATION: LazyLock<AtomicU64> =
    LazyLock::new(|| AtomicU64::new(ahash::RandomState::new().hash_one(std::process::id())));

/// What a client wants of one fetch.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FetchSpec {
    pub messages_max: usize,
    pub bytes_max: usize,
    /// How long to wait for the first message.
    pub wait: Duration,
    /// How long to wait after the first for the batch to fill.
    pub linger: Duration,
    pub filter: Option<TagFilter>,
    /// `ack=1`.
    pub lease: Option<LeaseSpec>,
    /// Who reads, for the status.
    pub client: Option<IpAddr>,
    /// Say where every partition stands, before what is delivered of it.
    pub with_ends: bool,
    /// For another gateway: how long its client has waited already.
    pub waited: Duration,
}

impl FetchSpec {
    fn is_full(&self, delivery: &Delivery) -> bool {
        delivery.messages.len() >= self.messages_max || delivery.bytes >= self.bytes_max
    }
}

/// One answer's messages of one partition: the right to acknowledge them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Grant {
    pub partition: Partition,
    /// Which assignment of the partition this belongs to; after a rebalance it is void.
    pub epoch: u64,
    pub lease: LeaseId,
    pub first: Offset,
    pub last: Offset,
}

/// What a fetch gives: messages and the leases they are under.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Delivery {
    pub messages: Vec<Message>,
    /// How often each redelivered message was delivered: `(index in messages, deliveries)`, first deliveries left out.
    pub redelivered: Vec<(usize, u32)>,
    pub grants: Vec<Grant>,
    /// Messages of this fetch the tag filter passed over.
    pub filtered: u64,
    /// What retention took before the group had read it.
    pub gaps: Vec<Gap>,
    /// Of the messages.
    pub bytes: usize,
    /// Where the owner's partitions stood before, if that was asked for.
    pub ends: Vec<(Partition, Offset)>,
}

impl Delivery {
    fn add(&mut self, message: Message) {
        self.bytes += message.bytes();
        self.messages.push(message);
    }
}

/// Why a fetch gave nothing, other than that there was nothing.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum FetchError {
    /// Another filter is in use by active readers of this group.
    FilterConflict,
    /// Too many clients wait on this group.
    TooManyWaiters,
    /// The source cannot reach its cluster, or was refused by it.
    Unavailable { reason: String },
}

/// One partition as the status shows it.
#[derive(Clone, Debug)]
pub struct PartitionStatus {
    pub partition: Partition,
    pub end: Offset,
    /// One past the newest message the source knows of; -1 when unknown.
    pub latest: Offset,
    pub ready: usize,
    pub leased: usize,
    pub returned: usize,
    pub bytes: usize,
    /// Who was last given messages of it, and how long ago.
    pub last_reader: Option<IpAddr>,
    pub delivered_s_ago: Option<u64>,
}

/// A group as the status shows it.
#[derive(Clone, Debug, Default)]
pub struct GroupStatus {
    pub topic: String,
    pub group_id: String,
    pub assigned: bool,
    pub waiting: usize,
    pub delivered: u64,
    pub partitions: Vec<PartitionStatus>,
}

#[derive(Debug)]
struct Waiter {
    messages_max: usize,
    /// Whoever has waited longest is served first.
    since: Instant,
    waker: RefCell<Option<Waker>>,
}

/// See the module text.
#[derive(Debug)]
pub struct Group {
    pub topic_name: String,
    pub group_id: String,
    /// Messages may say when they are to be read.
    is_retry_queue: bool,
    bounds: Bounds,
    parts: RefCell<Vec<Part>>,
    waiters: RefCell<VecDeque<Rc<Waiter>>>,
    /// The filter in use; it may change when nobody waits and nothing is leased.
    filter: RefCell<Option<TagFilter>>,
    /// Since it is in use the group's other members were asked whether theirs is over.
    filter_agreed: Cell<Agreed>,
    fault: RefCell<Option<String>>,
    epoch: Cell<u64>,
    lease: Cell<LeaseId>,
    /// Where the next fetch starts looking, so that no partition is preferred.
    turn: Cell<usize>,
    assigned: Cell<bool>,
    /// Fetches end with nothing; what is handed out can still be settled and committed.
    ending: Cell<bool>,
    closing: Cell<bool>,
    delivered: Cell<u64>,
    /// Since when there are clients that want messages, with pauses, or partitions to give them.
    wanted_since: Cell<Instant>,
    fetching: Cell<usize>,
    /// Of these, for other gateways.
    fetching_for_peers: Cell<usize>,
    used_at: Cell<Instant>,
    /// Messages that were delivered often enough.
    worn: RefCell<Vec<Burial>>,
    /// Rung when clients want messages, when ends moved, and at closing: the source's pump waits on it.
    pub bell: Notify,
    /// Rung when partitions came or went.
    pub changed: Notify,
}

/// A partition that gives its waiting clients nothing, although the log goes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stuck {
    pub partition: Partition,
    /// The offset that does not come.
    pub next: Offset,
    pub latest: Offset,
}

/// What one group may hold.
#[derive(Clone, Debug)]
pub struct Bounds {
    /// Messages of one partition that may be handed out above the acknowledged run.
    pub leases_max: usize,
    pub budget: Rc<Budget>,
}

impl Bounds {
    /// One for all groups of a core.
    pub fn new(config: &SubscribeConfig) -> Self {
        Self { leases_max: config.leases_max, budget: Budget::new(config.memory_bytes_max) }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.bounds.budget.leave();
    }
}

impl Group {
    pub fn new(topic_name: &str, group_id: &str, bounds: &Bounds) -> Rc<Self> {
        bounds.budget.enter();
        Rc::new(Self {
            topic_name: topic_name.to_owned(),
            group_id: group_id.to_owned(),
            is_retry_queue: topic_name.ends_with(super::RETRY_SUFFIX),
            bounds: bounds.clone(),
            parts: RefCell::default(),
            waiters: RefCell::default(),
            filter: RefCell::default(),
            filter_agreed: Cell::default(),
            fault: RefCell::default(),
            epoch: Cell::new(GENERATION.fetch_add(1 << 32, Ordering::Relaxed)),
            lease: Cell::new(0),
            turn: Cell::new(0),
            assigned: Cell::new(false),
            ending: Cell::new(false),
            closing: Cell::new(false),
            delivered: Cell::new(0),
            wanted_since: Cell::new(Instant::now()),
            fetching: Cell::new(0),
            fetching_for_peers: Cell::new(0),
            used_at: Cell::new(Instant::now()),
            worn: RefCell::default(),
            bell: Notify::default(),
            changed: Notify::default(),
        })
    }
}

// === the source's side ===

impl Group {
    /// A partition is ours from `start` on.
    pub fn assign(&self, partition: Partition, start: Offset) {
        self.epoch.set(self.epoch.get() + 1);
        let part = Part::new(partition, self.epoch.get(), start, self.is_retry_queue, &self.bounds.budget);
        let mut parts = self.parts.borrow_mut();
        parts.retain(|p| p.id != partition);
        parts.push(part);
        parts.sort_by_key(|p| p.id);
        drop(parts);
        self.assigned.set(true);
        self.fault.replace(None);
        self.wanted_since.set(Instant::now());
        self.bell.ring();
        self.changed.ring();
    }

    /// The group has joined, perhaps with no partition of its own.
    pub fn set_assigned(&self) {
        self.assigned.set(true);
        self.fault.replace(None);
    }

    /// A partition is no longer ours: its leases are void, its buffered messages go.
    pub fn revoke(&self, partition: Partition) {
        self.parts.borrow_mut().retain(|p| p.id != partition);
        self.changed.ring();
    }

    /// Messages the source should fetch now: what waiting clients want beyond what is buffered.
    pub fn demand(&self) -> usize {
        if self.ending.get() {
            return 0;
        }
        let wanted: usize = self.waiters.borrow().iter().map(|w| w.messages_max).sum();
        let ready: usize = self.parts.borrow().iter().map(Part::deliverable).sum();
        wanted.saturating_sub(ready)
    }

    /// How many messages the partition may take more: none where it is not ours, where its leases are at their bound, or where the
    /// group holds as many bytes as it may.
    pub fn room(&self, partition: Partition) -> usize {
        let parts = self.parts.borrow();
        let bytes = parts.iter().map(Part::bytes).sum();
        let Some(part) = parts.iter().find(|p| p.id == partition) else { return 0 };
        if self.bounds.budget.has_room(bytes) { self.bounds.leases_max.saturating_sub(part.outstanding()) } else { 0 }
    }

    /// A message of an assigned partition, in offset order. Others are dropped: they come again from the committed offset.
    pub fn push(&self, message: Message) {
        if let Some(part) = self.parts.borrow_mut().iter_mut().find(|p| p.id == message.partition) {
            part.push(message);
        }
    }

    /// Retention took these offsets, both included, before they were read: the next reader of the partition is told.
    pub fn note_gap(&self, partition: Partition, from: Offset, to: Offset) {
        if let Some(part) = self.parts.borrow_mut().iter_mut().find(|p| p.id == partition) {
            part.note_gap(from, to);
        }
    }

    /// Where nothing has come for `limit` although there is something to read and clients wait. What stands still because its leases are
    /// at their bound is its clients' affair.
    pub fn stuck(&self, limit: Duration) -> Vec<Stuck> {
        if self.waiters.borrow().is_empty() || self.wanted_since.get().elapsed() < limit || self.ending.get() {
            return Vec::new();
        }
        let (parts, now) = (self.parts.borrow(), Instant::now());
        let behind = parts.iter().filter(|part| part.is_behind(limit, now));
        let mut stuck: Vec<_> = behind.map(|p| Stuck { partition: p.id, next: p.next(), latest: p.latest }).collect();
        drop(parts);
        stuck.retain(|stuck| self.room(stuck.partition) > 0);
        stuck
    }

    /// Serves whoever waits first; called once after a run of [`Group::push`].
    pub fn wake_first(&self) {
        let first = self.waiters.borrow().front().cloned();
        if let Some(waker) = first.and_then(|w| w.waker.borrow_mut().take()) {
            waker.wake();
        }
    }

    /// One past the newest message of the partition, for lag.
    pub fn set_latest(&self, partition: Partition, latest: Offset) {
        if let Some(part) = self.parts.borrow_mut().iter_mut().find(|p| p.id == partition) {
            part.set_latest(latest, Instant::now());
        }
    }

    /// The source cannot serve; waiting clients are told. Cleared by the next assignment.
    pub fn fail(&self, reason: &str) {
        self.fault.replace(Some(reason.to_owned()));
        self.wake_all();
    }

    /// The source can serve again, with what it has.
    pub fn recovered(&self) {
        self.fault.replace(None);
    }

    /// Partitions whose contiguous end moved since this was last asked: what to commit.
    pub fn take_dirty(&self) -> Vec<(Partition, Offset)> {
        let mut parts = self.parts.borrow_mut();
        let dirty = parts.iter_mut().filter(|p| p.table.end() != p.committed);
        dirty
            .map(|p| {
                p.committed = p.table.end();
                (p.id, p.committed)
            })
            .collect()
    }

    /// A commit failed: these ends are dirty again.
    pub fn mark_uncommitted(&self, partitions: impl IntoIterator<Item = Partition>) {
        let mut parts = self.parts.borrow_mut();
        for partition in partitions {
            if let Some(part) = parts.iter_mut().find(|p| p.id == partition) {
                part.committed = -1;
            }
        }
    }

    /// The partitions assigned now.
    pub fn partitions(&self) -> Vec<Partition> {
        self.parts.borrow().iter().map(|p| p.id).collect()
    }

    /// How many.
    pub fn owned(&self) -> usize {
        self.parts.borrow().len()
    }

    /// Whether this assignment of the partition still holds.
    pub fn is_current(&self, partition: Partition, epoch: u64) -> bool {
        self.parts.borrow().iter().any(|p| p.id == partition && p.epoch == epoch)
    }

    fn wake_all(&self) {
        let waiters: Vec<_> = self.waiters.borrow().iter().cloned().collect();
        for waiter in waiters {
            if let Some(waker) = waiter.waker.borrow_mut().take() {
                waker.wake();
            }
        }
    }
}

// === settlement ===

impl Group {
    fn with_part<T>(&self, partition: Partition, change: impl FnOnce(&mut Part, &mut Vec<Burial>) -> T) -> Option<T> {
        let mut parts = self.parts.borrow_mut();
        let part = parts.iter_mut().find(|p| p.id == partition)?;
        Some(change(part, &mut self.worn.borrow_mut()))
    }

    /// The answers with these messages were taken by their clients, or were not: then they go to the next client. Grants of an earlier
    /// assignment change nothing.
    pub fn settle(&self, grants: &[Grant], outcome: Outcome) {
        if grants.is_empty() {
            return;
        }
        let now = Instant::now();
        for grant in grants {
            self.with_part(grant.partition, |part, worn| {
                if part.epoch == grant.epoch {
                    part.settle(grant, outcome, now, worn);
                }
            });
        }
        if outcome == Outcome::Delivered {
            self.bell.ring();
        } else {
            self.wake_first();
        }
    }

    /// The answers with these messages are still on their way through another gateway.
    pub fn renew(&self, grants: &[Grant]) {
        let now = Instant::now();
        for grant in grants {
            self.with_part(grant.partition, |part, _| {
                if part.epoch == grant.epoch {
                    part.renew(grant, now);
                }
            });
        }
    }

    /// Acknowledges what the lease with this message holds up to it.
    pub fn ack_at(&self, partition: Partition, offset: Offset) -> Acked {
        let acked = self.with_part(partition, |part, _| part.ack_at(offset)).unwrap_or(Acked::NotOwned);
        self.bell.ring();
        acked
    }

    /// Renews the lease with this message.
    pub fn extend_at(&self, partition: Partition, offset: Offset, term: Duration) -> Acked {
        let now = Instant::now();
        self.with_part(partition, |part, _| part.extend_at(offset, term, now)).unwrap_or(Acked::NotOwned)
    }

    /// The client of an endless answer did not take it: all that was delivered by it goes to the next client.
    pub fn end_stream(&self, stream: u64) {
        for part in &mut *self.parts.borrow_mut() {
            part.end_stream(stream, &mut self.worn.borrow_mut());
        }
        self.wake_first();
    }

    /// Ends the leases whose time is over: their messages come again. Delayed messages whose time has come are there from now on.
    pub fn expire(&self, now: Instant) {
        let mut changed = 0;
        for part in &mut *self.parts.borrow_mut() {
            changed += part.expire(now, &mut self.worn.borrow_mut()) + part.wake_delayed();
        }
        if changed > 0 {
            self.wake_first();
        }
    }

    /// Takes a message out of its lease, to be copied to a shadow queue. The caller says what became of it.
    pub fn begin_bury(&self, partition: Partition, offset: Offset) -> Result<Burial, Acked> {
        self.with_part(partition, |part, _| part.begin_bury(offset)).unwrap_or(Err(Acked::NotOwned))
    }

    /// The copy is stored, or is not. Gives whether that could be recorded: it cannot once the partition is another's, and then the
    /// message comes again.
    pub fn end_bury(&self, burial: &Burial, is_stored: bool) -> bool {
        let partition = burial.message.partition;
        let is_current = self.is_current(partition, burial.epoch);
        if is_current {
            self.with_part(partition, |part, _| part.end_bury(burial, is_stored));
        }
        self.bell.ring();
        if !is_stored {
            self.wake_first();
        }
        is_current
    }

    /// Messages that were delivered as often as their readers allow: to be buried by the caller.
    pub fn take_worn(&self) -> Vec<Burial> {
        std::mem::take(&mut self.worn.borrow_mut())
    }
}
