//! The clients' side of a group: the waiting line, and what each fetch takes.

use std::{
    cell::RefCell,
    future::{Future, poll_fn},
    rc::Rc,
    task::Poll,
    time::{Duration, Instant},
};

use super::{Delivery, FetchError, FetchSpec, Group, GroupStatus, Outcome, PartitionStatus, Waiter, part::Part};
use crate::{
    limits,
    store::{lease::LeaseId, tag::TagFilter},
};

/// Even a fetch that does not want to wait gives the source a turn: it is only asked once somebody waits.
const FIRST_LOOK_MIN: Duration = Duration::from_millis(50);
/// When the others did not answer about a filter.
const AGREE_AGAIN: Duration = Duration::from_secs(5);
/// A group that nobody read for so long had no occasion to get on.
const UNUSED: Duration = Duration::from_secs(5);

/// What the group's other members say to the filter in use.
#[derive(Clone, Copy, Debug, Default)]
pub(super) enum Agreed {
    #[default]
    No,
    /// They were asked then, and did not all answer.
    Tried(Instant),
    Yes,
}

/// A reader of the group, counted from when it comes until it has what it wants, or has gone. While there is one, the group's filter stays.
#[derive(Debug)]
pub struct Fetching<'a> {
    group: &'a Group,
    is_for_peer: bool,
}

impl Drop for Fetching<'_> {
    fn drop(&mut self) {
        let group = self.group;
        group.fetching.set(group.fetching.get() - 1);
        if self.is_for_peer {
            group.fetching_for_peers.set(group.fetching_for_peers.get() - 1);
        } else {
            // Readers of other gateways do not keep this one in the group: they join it themselves.
            group.used_at.set(Instant::now());
        }
    }
}

/// What a fetch took so far; given back when the fetch is dropped half-way.
struct Taken<'a> {
    group: &'a Group,
    delivery: Delivery,
    /// One answer's messages of a partition are one lease.
    lease: LeaseId,
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        self.group.settle(&self.delivery.grants, Outcome::Unsent);
        self.group.end_telling(&self.delivery, self.lease, false);
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
    /// A reader comes. Refused while others read by another filter.
    pub fn enter(&self, spec: &FetchSpec) -> Result<Fetching<'_>, FetchError> {
        self.adopt_filter(spec.filter.as_ref())?;
        let is_for_peer = spec.lease.is_some_and(|lease| lease.on_way.is_some());
        self.fetching.set(self.fetching.get() + 1);
        self.fetching_for_peers.set(self.fetching_for_peers.get() + usize::from(is_for_peer));
        Ok(Fetching { group: self, is_for_peer })
    }

    /// Waits for messages and takes up to what `spec` allows. An empty delivery means: nothing within `spec.wait`, or closing.
    pub async fn fetch(&self, spec: &FetchSpec) -> Result<Delivery, FetchError> {
        let fetching = self.enter(spec)?;
        self.fetch_as(&fetching, spec).await
    }

    /// As [`Group::fetch`], for a reader that is counted already.
    pub async fn fetch_as(&self, _: &Fetching<'_>, spec: &FetchSpec) -> Result<Delivery, FetchError> {
        self.lease.set(self.lease.get() + 1);
        let mut taken = Taken { group: self, delivery: Delivery::default(), lease: self.lease.get() };
        let first_by = Instant::now() + spec.wait.max(FIRST_LOOK_MIN);
        self.take_in_turn(spec, &mut taken, first_by, 1).await?;
        if !taken.delivery.messages.is_empty() && !spec.is_full(&taken.delivery) && !spec.linger.is_zero() {
            let full_by = Instant::now() + spec.linger;
            self.take_in_turn(spec, &mut taken, full_by, usize::MAX).await?;
        }
        if !taken.delivery.messages.is_empty() {
            self.delivered.set(self.delivered.get() + taken.delivery.messages.len() as u64);
        }
        // What is told without a message is heard: nothing settles it.
        self.end_telling(&taken.delivery, taken.lease, true);
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
        if taken.delivery.messages.len() >= enough || spec.is_full(&taken.delivery) || self.ending.get() {
            return Ok(());
        }
        let place = self.stand_in_line(spec.messages_max - taken.delivery.messages.len(), spec.waited)?;
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
            if taken.delivery.messages.len() >= enough || spec.is_full(&taken.delivery) {
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

    fn stand_in_line(&self, messages_max: usize, waited: Duration) -> Result<Place<'_>, FetchError> {
        let mut waiters = self.waiters.borrow_mut();
        if waiters.len() >= limits::GROUP_WAITERS_MAX {
            return Err(FetchError::TooManyWaiters);
        }
        let now = Instant::now();
        let since = now.checked_sub(waited).unwrap_or(now);
        let waiter = Rc::new(Waiter { messages_max, since, waker: RefCell::new(None) });
        if waiters.is_empty() && self.used_at.get().elapsed() > UNUSED {
            // Nobody asked for what has piled up since.
            self.wanted_since.set(now);
        }
        let behind = waiters.iter().rposition(|other| other.since <= since).map_or(0, |place| place + 1);
        waiters.insert(behind, Rc::clone(&waiter));
        Ok(Place { group: self, waiter })
    }

    /// From now on the group is read by this filter; refused while it is read by another.
    pub fn adopt_filter(&self, filter: Option<&TagFilter>) -> Result<(), FetchError> {
        if self.filter.borrow().as_ref() == filter {
            return Ok(());
        }
        let leased = self.parts.borrow().iter().any(Part::is_leased);
        if self.fetching.get() > 0 || leased {
            return Err(FetchError::FilterConflict);
        }
        *self.filter.borrow_mut() = filter.cloned();
        self.filter_agreed.set(Agreed::No);
        Ok(())
    }

    /// Whether it is the filter in use, and the other members of the group need not be asked about it now.
    pub fn has_agreed(&self, filter: Option<&TagFilter>) -> bool {
        let is_agreed = match self.filter_agreed.get() {
            Agreed::No => false,
            Agreed::Tried(at) => at.elapsed() < AGREE_AGAIN,
            Agreed::Yes => true,
        };
        is_agreed && self.filter.borrow().as_ref() == filter
    }

    /// They were asked, unless another filter came in between. Some may not have answered: then they are asked again after a while.
    pub fn set_agreed(&self, filter: Option<&TagFilter>, have_answered: bool) {
        if self.filter.borrow().as_ref() == filter {
            self.filter_agreed.set(if have_answered { Agreed::Yes } else { Agreed::Tried(Instant::now()) });
        }
    }

    /// Takes what is there, each partition in turn, returned messages of a partition before its new ones.
    fn take(&self, spec: &FetchSpec, taken: &mut Taken<'_>) {
        let filter = self.filter.borrow();
        let mut parts = self.parts.borrow_mut();
        if spec.with_ends && taken.delivery.ends.is_empty() {
            taken.delivery.ends = parts.iter().map(|part| (part.id, part.table.end())).collect();
        }
        // At once what the answer can take of it, rather than by doubling.
        let ready: usize = parts.iter().map(Part::deliverable).sum();
        let messages = &mut taken.delivery.messages;
        messages.reserve(ready.min(spec.messages_max.saturating_sub(messages.len())));
        let count = parts.len();
        let start = self.turn.get();
        self.turn.set(start.wrapping_add(1));
        let (mut skipped, now) = (false, Instant::now());
        for i in 0..count {
            if spec.is_full(&taken.delivery) {
                break;
            }
            let part = &mut parts[(start + i) % count];
            skipped |= part.take(taken.lease, spec, filter.as_ref(), &mut taken.delivery, now);
        }
        drop(parts);
        if skipped {
            self.bell.ring();
        }
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

    /// Of what this answer tells without a message of the same partition: it is heard, or is told again.
    fn end_telling(&self, delivery: &Delivery, lease: LeaseId, is_heard: bool) {
        for gap in &delivery.gaps {
            if !delivery.grants.iter().any(|grant| grant.partition == gap.partition) {
                self.with_part(gap.partition, |part, _| part.end_telling(lease, is_heard));
            }
        }
    }

    /// Readers, here and of other gateways.
    pub fn fetching(&self) -> usize {
        self.fetching.get()
    }

    pub fn is_assigned(&self) -> bool {
        self.assigned.get()
    }

    /// No client of this gateway reads and nothing is leased; since when.
    pub fn idle_since(&self) -> Option<Instant> {
        let leased = self.parts.borrow().iter().any(Part::is_leased);
        (self.fetching.get() == self.fetching_for_peers.get() && !leased).then(|| self.used_at.get())
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
        self.parts.borrow().iter().any(|p| p.deliverable() > 0)
    }
}

fn partition_status(part: &Part) -> PartitionStatus {
    PartitionStatus {
        partition: part.id,
        end: part.table.end(),
        latest: part.latest,
        ready: part.ready(),
        leased: part.table.leased(),
        returned: part.table.returned(),
        bytes: part.bytes(),
        last_reader: part.last_reader,
        delivered_s_ago: part.delivered_at.map(|at| at.elapsed().as_secs()),
    }
}
