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
//! Invariants: clients are served in the order they came; a message taken is in a lease until acknowledged or given back; a
//! fetch that is dropped (its client left) gives back what it took. The source is only asked for what waiting clients want
//! ([`Group::demand`]), so a group without clients buffers nothing here. Per core. This file knows no Kafka client and no HTTP.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    future::{Future, poll_fn},
    rc::Rc,
    sync::atomic::{AtomicU64, Ordering},
    task::{Poll, Waker},
    time::{Duration, Instant},
};

use super::{
    Message, Offset, Partition,
    lease::{LeaseId, LeaseTable},
    notify::Notify,
    tag::TagFilter,
};
use crate::limits;

/// Where the next group's epochs start: a late settlement meant for a group that was left must fit no later one of its name.
static GENERATION: AtomicU64 = AtomicU64::new(1);

/// Even a fetch that does not want to wait gives the source a turn: it is only asked once somebody waits.
const FIRST_LOOK_MIN: Duration = Duration::from_millis(50);

/// What a client wants of one fetch.
#[derive(Clone, Debug)]
pub struct FetchSpec {
    pub messages_max: usize,
    pub bytes_max: usize,
    /// How long to wait for the first message.
    pub wait: Duration,
    /// How long to wait after the first for the batch to fill.
    pub linger: Duration,
    pub filter: Option<TagFilter>,
}

/// One answer's messages of one partition: the right to acknowledge them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Grant {
    pub partition: Partition,
    /// Which assignment of the partition this belongs to; after a rebalance it is void.
    pub epoch: u64,
    pub lease: LeaseId,
    pub first: Offset,
    pub last: Offset,
}

/// What a fetch gives: messages and the leases they are under.
#[derive(Clone, Debug, Default)]
pub struct Delivery {
    pub messages: Vec<Message>,
    /// How often each redelivered message was delivered: `(index in messages, deliveries)`, first deliveries left out.
    pub redelivered: Vec<(usize, u32)>,
    pub grants: Vec<Grant>,
    /// Messages of this fetch the tag filter passed over.
    pub filtered: u64,
}

/// Why a fetch gave nothing, other than that there was nothing.
#[derive(Clone, PartialEq, Eq, Debug)]
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
struct Part {
    id: Partition,
    epoch: u64,
    table: LeaseTable,
    ready: VecDeque<Message>,
    committed: Offset,
    latest: Offset,
}

impl Part {
    /// Messages that the next fetch may take.
    fn deliverable(&self) -> usize {
        self.ready.len() + self.table.returned()
    }
}

#[derive(Debug)]
struct Waiter {
    messages_max: usize,
    waker: RefCell<Option<Waker>>,
}

/// See the module text.
#[derive(Debug)]
pub struct Group {
    pub topic_name: String,
    pub group_id: String,
    leases_max: usize,
    parts: RefCell<Vec<Part>>,
    waiters: RefCell<VecDeque<Rc<Waiter>>>,
    /// The filter in use; it may change when nobody waits and nothing is leased.
    filter: RefCell<Option<TagFilter>>,
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
    fetching: Cell<usize>,
    used_at: Cell<Instant>,
    /// Rung when clients want messages, when ends moved, and at closing: the source's pump waits on it.
    pub bell: Notify,
}

impl Group {
    /// `leases_max`: messages of one partition that may be handed out above the acknowledged run.
    pub fn new(topic_name: &str, group_id: &str, leases_max: usize) -> Rc<Self> {
        Rc::new(Self {
            topic_name: topic_name.to_owned(),
            group_id: group_id.to_owned(),
            leases_max,
            parts: RefCell::default(),
            waiters: RefCell::default(),
            filter: RefCell::default(),
            fault: RefCell::default(),
            epoch: Cell::new(GENERATION.fetch_add(1 << 32, Ordering::Relaxed)),
            lease: Cell::new(0),
            turn: Cell::new(0),
            assigned: Cell::new(false),
            ending: Cell::new(false),
            closing: Cell::new(false),
            delivered: Cell::new(0),
            fetching: Cell::new(0),
            used_at: Cell::new(Instant::now()),
            bell: Notify::default(),
        })
    }
}

// === the source's side ===

impl Group {
    /// A partition is ours from `start` on.
    pub fn assign(&self, partition: Partition, start: Offset) {
        self.epoch.set(self.epoch.get() + 1);
        let part = Part {
            id: partition,
            epoch: self.epoch.get(),
            table: LeaseTable::new(start),
            ready: VecDeque::new(),
            committed: start,
            latest: -1,
        };
        let mut parts = self.parts.borrow_mut();
        parts.retain(|p| p.id != partition);
        parts.push(part);
        parts.sort_by_key(|p| p.id);
        drop(parts);
        self.assigned.set(true);
        self.fault.replace(None);
        self.bell.ring();
    }

    /// The group has joined, perhaps with no partition of its own.
    pub fn set_assigned(&self) {
        self.assigned.set(true);
        self.fault.replace(None);
    }

    /// A partition is no longer ours: its leases are void, its buffered messages go.
    pub fn revoke(&self, partition: Partition) {
        self.parts.borrow_mut().retain(|p| p.id != partition);
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

    /// Whether the partition may take more messages (it is ours, and its leases are under the bound).
    pub fn has_room(&self, partition: Partition) -> bool {
        let parts = self.parts.borrow();
        parts
            .iter()
            .find(|p| p.id == partition)
            .is_some_and(|p| p.table.outstanding() + p.ready.len() < self.leases_max)
    }

    /// A message of an assigned partition, in offset order. Others are dropped: they come again from the committed offset.
    pub fn push(&self, message: Message) {
        let mut parts = self.parts.borrow_mut();
        let Some(part) = parts.iter_mut().find(|p| p.id == message.partition) else { return };
        let after_ready = part.ready.back().is_none_or(|last| message.offset > last.offset);
        if after_ready && part.table.is_new(message.offset) {
            part.latest = part.latest.max(message.offset + 1);
            part.ready.push_back(message);
        }
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
            part.latest = part.latest.max(latest);
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

    fn wake_all(&self) {
        let waiters: Vec<_> = self.waiters.borrow().iter().cloned().collect();
        for waiter in waiters {
            if let Some(waker) = waiter.waker.borrow_mut().take() {
                waker.wake();
            }
        }
    }
}

// === the clients' side ===

/// Counts a fetch in progress, whatever way it ends.
struct Fetching<'a>(&'a Group);

impl Drop for Fetching<'_> {
    fn drop(&mut self) {
        self.0.fetching.set(self.0.fetching.get() - 1);
        self.0.used_at.set(Instant::now());
    }
}

/// What a fetch took so far; given back when the fetch is dropped half-way.
struct Taken<'a> {
    group: &'a Group,
    delivery: Delivery,
    bytes: usize,
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        self.group.give_back(&self.delivery.grants);
    }
}

/// A place in the waiting line; left when dropped, and the next one is served.
struct Place<'a> {
    group: &'a Group,
    waiter: Rc<Waiter>,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.group.waiters.borrow_mut().retain(|w| !Rc::ptr_eq(w, &self.waiter));
        if self.group.has_ready() {
            self.group.wake_first();
        }
    }
}

impl Group {
    /// Waits for messages and takes up to what `spec` allows. An empty delivery means: nothing within `spec.wait`, or closing.
    pub async fn fetch(&self, spec: &FetchSpec) -> Result<Delivery, FetchError> {
        self.adopt_filter(spec.filter.as_ref())?;
        self.fetching.set(self.fetching.get() + 1);
        let _fetching = Fetching(self);
        let mut taken = Taken { group: self, delivery: Delivery::default(), bytes: 0 };
        let first_by = Instant::now() + spec.wait.max(FIRST_LOOK_MIN);
        self.take_in_turn(spec, &mut taken, first_by, 1).await?;
        if !taken.delivery.messages.is_empty() && !is_full(spec, &taken) && !spec.linger.is_zero() {
            let full_by = Instant::now() + spec.linger;
            self.take_in_turn(spec, &mut taken, full_by, usize::MAX).await?;
        }
        self.delivered.set(self.delivered.get() + taken.delivery.messages.len() as u64);
        Ok(std::mem::take(&mut taken.delivery))
    }

    /// Stands in line until at least `enough` messages are taken, the answer is full, the time is over, or the group closes.
    async fn take_in_turn(
        &self,
        spec: &FetchSpec,
        taken: &mut Taken<'_>,
        until: Instant,
        enough: usize,
    ) -> Result<(), FetchError> {
        if self.waiters.borrow().is_empty() {
            self.take(spec, taken);
        }
        if taken.delivery.messages.len() >= enough || is_full(spec, taken) || self.ending.get() {
            return Ok(());
        }
        let place = self.stand_in_line(spec.messages_max - taken.delivery.messages.len())?;
        self.bell.ring();
        let mut turn = std::pin::pin!(poll_fn(|cx| {
            if self.ending.get() {
                return Poll::Ready(Ok(()));
            }
            if taken.delivery.messages.is_empty()
                && let Some(reason) = self.fault.borrow().as_ref()
            {
                return Poll::Ready(Err(FetchError::Unavailable { reason: reason.clone() }));
            }
            let is_first = self.waiters.borrow().front().is_some_and(|w| Rc::ptr_eq(w, &place.waiter));
            if is_first {
                self.take(spec, taken);
            }
            if taken.delivery.messages.len() >= enough || is_full(spec, taken) {
                return Poll::Ready(Ok(()));
            }
            *place.waiter.waker.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        }));
        let left = until.saturating_duration_since(Instant::now());
        let mut timer = std::pin::pin!(glommio::timer::sleep(left));
        poll_fn(|cx| match turn.as_mut().poll(cx) {
            Poll::Ready(result) => Poll::Ready(result),
            Poll::Pending => timer.as_mut().poll(cx).map(|()| Ok(())),
        })
        .await
    }

    fn stand_in_line(&self, messages_max: usize) -> Result<Place<'_>, FetchError> {
        let mut waiters = self.waiters.borrow_mut();
        if waiters.len() >= limits::GROUP_WAITERS_MAX {
            return Err(FetchError::TooManyWaiters);
        }
        let waiter = Rc::new(Waiter { messages_max, waker: RefCell::new(None) });
        waiters.push_back(Rc::clone(&waiter));
        Ok(Place { group: self, waiter })
    }

    fn adopt_filter(&self, filter: Option<&TagFilter>) -> Result<(), FetchError> {
        if self.filter.borrow().as_ref() == filter {
            return Ok(());
        }
        let leased = self.parts.borrow().iter().any(|p| p.table.leased() > 0);
        if self.fetching.get() > 0 || leased {
            return Err(FetchError::FilterConflict);
        }
        *self.filter.borrow_mut() = filter.cloned();
        Ok(())
    }

    /// Takes what is there, each partition in turn, returned messages of a partition before its new ones.
    fn take(&self, spec: &FetchSpec, taken: &mut Taken<'_>) {
        let filter = self.filter.borrow();
        let mut parts = self.parts.borrow_mut();
        // At once what the answer can take of it, rather than by doubling.
        let ready: usize = parts.iter().map(Part::deliverable).sum();
        let messages = &mut taken.delivery.messages;
        messages.reserve(ready.min(spec.messages_max.saturating_sub(messages.len())));
        let count = parts.len();
        let start = self.turn.get();
        self.turn.set(start.wrapping_add(1));
        let mut skipped = false;
        for i in 0..count {
            if is_full(spec, taken) {
                break;
            }
            let part = &mut parts[(start + i) % count];
            let lease = self.lease.get() + 1;
            self.lease.set(lease);
            skipped |= take_from(part, lease, spec, filter.as_ref(), taken);
        }
        drop(parts);
        if skipped {
            self.bell.ring();
        }
    }

    /// The messages under these grants are done; grants of an earlier assignment change nothing.
    pub fn ack(&self, grants: &[Grant]) -> usize {
        let mut parts = self.parts.borrow_mut();
        let mut acked = 0;
        for grant in grants {
            if let Some(part) = parts.iter_mut().find(|p| p.id == grant.partition && p.epoch == grant.epoch) {
                acked += part.table.ack(grant.lease, grant.first, grant.last);
            }
        }
        drop(parts);
        self.bell.ring();
        acked
    }

    /// The messages under these grants were not delivered: they go to the next client.
    pub fn give_back(&self, grants: &[Grant]) {
        if grants.is_empty() {
            return;
        }
        let mut parts = self.parts.borrow_mut();
        for grant in grants {
            if let Some(part) = parts.iter_mut().find(|p| p.id == grant.partition && p.epoch == grant.epoch) {
                part.table.give_back(grant.lease, grant.first, grant.last);
            }
        }
        drop(parts);
        self.wake_first();
    }

    /// From now on fetches end empty. What was handed out is still settled and committed.
    pub fn end_fetches(&self) {
        self.ending.set(true);
        self.wake_all();
    }

    /// The source commits what is acknowledged, and leaves.
    pub fn close(&self) {
        self.closing.set(true);
        self.end_fetches();
        self.bell.ring();
    }

    pub fn is_closing(&self) -> bool {
        self.closing.get()
    }

    /// Fetches in progress.
    pub fn fetching(&self) -> usize {
        self.fetching.get()
    }

    pub fn is_assigned(&self) -> bool {
        self.assigned.get()
    }

    /// Nobody fetches and nothing is leased; since when.
    pub fn idle_since(&self) -> Option<Instant> {
        let leased = self.parts.borrow().iter().any(|p| p.table.leased() > 0);
        (self.fetching.get() == 0 && !leased).then(|| self.used_at.get())
    }

    pub fn status(&self) -> GroupStatus {
        let partitions = self.parts.borrow().iter().map(partition_status).collect();
        GroupStatus {
            topic: self.topic_name.clone(),
            group_id: self.group_id.clone(),
            assigned: self.assigned.get(),
            waiting: self.waiters.borrow().len(),
            delivered: self.delivered.get(),
            partitions,
        }
    }

    fn has_ready(&self) -> bool {
        self.parts.borrow().iter().any(|p| !p.ready.is_empty() || p.table.returned() > 0)
    }
}

fn partition_status(part: &Part) -> PartitionStatus {
    PartitionStatus {
        partition: part.id,
        end: part.table.end(),
        latest: part.latest,
        ready: part.ready.len(),
        leased: part.table.leased(),
        returned: part.table.returned(),
    }
}

fn is_full(spec: &FetchSpec, taken: &Taken<'_>) -> bool {
    taken.delivery.messages.len() >= spec.messages_max || taken.bytes >= spec.bytes_max
}

/// Takes from one partition until the answer is full. Gives whether the filter passed over any message.
fn take_from(
    part: &mut Part,
    lease: LeaseId,
    spec: &FetchSpec,
    filter: Option<&TagFilter>,
    taken: &mut Taken<'_>,
) -> bool {
    let mut span: Option<(Offset, Offset)> = None;
    let mut skipped = false;
    while !is_full(spec, taken) {
        let message = if let Some((message, deliveries)) = part.table.redeliver(lease) {
            if filter.is_some_and(|f| !f.passes(&message)) {
                // It was returned under an earlier filter; the present readers do not want it.
                part.table.ack(lease, message.offset, message.offset);
                taken.delivery.filtered += 1;
                skipped = true;
                continue;
            }
            taken.delivery.redelivered.push((taken.delivery.messages.len(), deliveries));
            message
        } else if let Some(message) = part.ready.pop_front() {
            if filter.is_some_and(|f| !f.passes(&message)) {
                part.table.skip(message.offset);
                taken.delivery.filtered += 1;
                skipped = true;
                continue;
            }
            part.table.deliver(lease, &message);
            message
        } else {
            break;
        };
        taken.bytes += message.bytes();
        let (first, last) = span.unwrap_or((message.offset, message.offset));
        span = Some((first.min(message.offset), last.max(message.offset)));
        taken.delivery.messages.push(message);
    }
    if let Some((first, last)) = span {
        taken.delivery.grants.push(Grant { partition: part.id, epoch: part.epoch, lease, first, last });
    }
    skipped
}
