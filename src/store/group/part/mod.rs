//! One partition of a group: what is buffered, its lease table, and the leases clients hold by themselves.
//!
//! A lease of the auto mode lives as long as its answer is being written. A *held* lease (`ack=1`) lives on after the answer, held by
//! nobody in particular, until its messages are acknowledged or its time is over. Invariants: every held lease has messages that are
//! leased or being buried; one that ends gives its messages back, or, where they were delivered often enough, to be buried. Per core.
//! It is told the time, and knows no clients.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::IpAddr,
    rc::Rc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

use super::{
    Delivery, FetchSpec, Grant, TagFilter,
    budget::{Budget, Share},
};
use crate::store::{
    Gap, Message, Offset, Partition,
    lease::{Holder, LeaseId, LeaseTable},
};

/// Burials of one partition that are remembered.
const BURIED_MAX: usize = 256;

/// How a client wants to hold what it gets (`ack=1`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LeaseSpec {
    /// How long, from the delivery on.
    pub term: Duration,
    /// A message that was delivered so often and is not acknowledged goes to the dead queue.
    pub deliveries_max: Option<u32>,
    /// The endless answer it belongs to: all it delivers of a partition is acknowledged like one lease.
    pub stream: Option<u64>,
    /// Of the auto mode, read for another gateway: its delivery acknowledges it, and no client can.
    pub is_auto: bool,
    /// Read for another gateway, which may die with the answer: so long the lease lives unless it is renewed, until that gateway says that
    /// its client has the answer. `None`: whoever writes the answer will say for sure what became of it.
    pub on_way: Option<Duration>,
}

impl LeaseSpec {
    /// Of `term`, for a client of this gateway.
    pub fn of(term: Duration) -> Self {
        Self { term, deliveries_max: None, stream: None, is_auto: false, on_way: None }
    }
}

/// What became of an answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Outcome {
    /// Its client has it.
    Delivered,
    /// Its client has left, perhaps with some of it.
    Cut,
    /// Nothing of it left for its client, so it was no delivery.
    Unsent,
}

/// What came of an acknowledgement.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Acked {
    /// It is recorded, or was before.
    Done,
    /// No lease holds that message.
    NotLeased,
    /// It is on its way to a shadow queue; what becomes of it is known soon.
    Burying,
    /// The partition is not this member's.
    NotOwned,
}

/// A message on its way to a shadow queue. Nobody's until [`super::Group::end_bury`] is told what became of it.
#[derive(Clone, Debug)]
pub struct Burial {
    pub epoch: u64,
    pub message: Message,
    pub deliveries: u32,
    /// The lease it is taken from, which may have ended.
    pub lease: LeaseId,
}

#[derive(Debug)]
struct Held {
    spec: LeaseSpec,
    /// Its client has the answer: from then on its time counts.
    is_delivered: bool,
    ends_at: Instant,
    /// Its client has asked for that.
    extended_to: Option<Instant>,
    first: Offset,
    last: Offset,
    /// Messages still leased, and being buried.
    leased: usize,
    burying: usize,
}

/// See the module text.
#[derive(Debug)]
pub(super) struct Part {
    pub id: Partition,
    pub epoch: u64,
    pub table: LeaseTable,
    pub committed: Offset,
    pub latest: Offset,
    pub last_reader: Option<IpAddr>,
    pub delivered_at: Option<Instant>,
    /// Since when there is something in the log that does not come.
    behind_since: Option<Instant>,
    ready: VecDeque<Message>,
    ready_bytes: usize,
    held: BTreeMap<LeaseId, Held>,
    /// No held lease ends before.
    expires_at: Option<Instant>,
    /// What retention took, until an answer that says so was delivered.
    gap: Option<Gap>,
    /// The answer that says so.
    gap_told_by: Option<LeaseId>,
    /// When messages may be read that may not yet, in Unix ms.
    delayed: BTreeSet<(i64, Offset)>,
    has_delays: bool,
    /// What was buried last: whoever did not hear of it may ask again.
    buried: VecDeque<Offset>,
    share: Share,
}

impl Part {
    pub fn new(id: Partition, epoch: u64, start: Offset, has_delays: bool, budget: &Rc<Budget>) -> Self {
        Self {
            id,
            epoch,
            table: LeaseTable::new(start),
            committed: start,
            latest: -1,
            last_reader: None,
            delivered_at: None,
            behind_since: None,
            ready: VecDeque::new(),
            ready_bytes: 0,
            held: BTreeMap::new(),
            expires_at: None,
            gap: None,
            gap_told_by: None,
            delayed: BTreeSet::new(),
            has_delays,
            buried: VecDeque::new(),
            share: Share::new(budget),
        }
    }

    // === what is buffered ===

    pub fn ready(&self) -> usize {
        self.ready.len()
    }

    /// Messages that the next fetch may take.
    pub fn deliverable(&self) -> usize {
        self.ready.len() + self.table.returned()
    }

    /// Messages handed out or buffered, which `leases_max` bounds.
    pub fn outstanding(&self) -> usize {
        self.table.outstanding() + self.ready.len()
    }

    /// Bytes this partition keeps in memory.
    pub fn bytes(&self) -> usize {
        self.table.bytes() + self.ready_bytes
    }

    /// The offset the next message from the source is expected at, or below.
    pub fn next(&self) -> Offset {
        self.ready.back().map_or_else(|| self.table.next(), |last| last.offset + 1)
    }

    /// Takes a message from the source, unless it is known.
    pub fn push(&mut self, message: Message) {
        if message.offset >= self.next() {
            self.latest = self.latest.max(message.offset + 1);
            self.behind_since = None;
            self.ready_bytes += message.bytes();
            self.ready.push_back(message);
            self.account();
        }
    }

    /// One past the newest message of the log.
    pub fn set_latest(&mut self, latest: Offset, now: Instant) {
        self.latest = self.latest.max(latest);
        self.behind_since = if self.latest > self.next() { self.behind_since.or(Some(now)) } else { None };
    }

    /// Whether there is something in the log that has not come for `limit`, and nothing else to give.
    pub fn is_behind(&self, limit: Duration, now: Instant) -> bool {
        self.deliverable() == 0 && self.behind_since.is_some_and(|since| now.saturating_duration_since(since) >= limit)
    }

    pub fn note_gap(&mut self, from: Offset, to: Offset) {
        let from = self.gap.map_or(from, |gap| gap.from.min(from));
        self.gap = Some(Gap { partition: self.id, from, to });
        self.gap_told_by = None;
    }

    fn account(&mut self) {
        self.share.set(self.bytes());
    }

    // === delivery ===

    /// Takes what there is for one answer until that is full: returned messages before new ones, and of those only what one former
    /// lease returned. Gives whether the filter passed over any message.
    pub fn take(
        &mut self,
        lease: LeaseId,
        spec: &FetchSpec,
        filter: Option<&TagFilter>,
        delivery: &mut Delivery,
        now: Instant,
    ) -> bool {
        let (mut span, mut count): (Option<(Offset, Offset)>, usize) = (None, 0);
        let (mut skipped, mut former) = (false, None);
        let known = delivery.grants.iter().position(|grant| grant.partition == self.id);
        if known.is_some() && self.table.returned() > 0 {
            // They go to another answer: this one's lease has messages already.
            return false;
        }
        while !spec.is_full(delivery)
            && let Some((message, again)) = self.next_for(lease, &mut former)
        {
            if filter.is_some_and(|f| !f.passes(&message)) {
                if again.is_none() {
                    self.table.skip(message.offset);
                } else {
                    // It was returned under an earlier filter; the present readers do not want it.
                    self.table.ack(lease, message.offset, message.offset);
                }
                delivery.filtered += 1;
                skipped = true;
                continue;
            }
            match again {
                None => self.table.deliver(lease, &message),
                Some(deliveries) if deliveries > 1 => delivery.redelivered.push((delivery.messages.len(), deliveries)),
                // It was delayed: this is its first delivery.
                Some(_) => {}
            }
            let (first, last) = span.unwrap_or((message.offset, message.offset));
            span = Some((first.min(message.offset), last.max(message.offset)));
            count += 1;
            delivery.add(message);
        }
        self.account();
        if (span.is_some() || skipped) && self.gap.is_some() && self.gap_told_by.is_none() {
            delivery.gaps.extend(self.gap);
            self.gap_told_by = Some(lease);
        }
        if let Some((first, last)) = span {
            (self.last_reader, self.delivered_at) = (spec.client, Some(now));
            if let Some(grant) = known.and_then(|at| delivery.grants.get_mut(at)) {
                grant.last = last;
            } else {
                delivery.grants.push(Grant { partition: self.id, epoch: self.epoch, lease, first, last });
            }
            if let Some(spec) = spec.lease {
                self.hold(lease, spec, (first, last), count, now);
            }
        }
        skipped
    }

    /// The next message for an answer, with how often one that comes again was delivered; what came again of one former lease only.
    #[inline] // Asked for each message of a batch.
    fn next_for(&mut self, lease: LeaseId, former: &mut Option<LeaseId>) -> Option<(Message, Option<u32>)> {
        loop {
            if let Some(again) = self.table.redeliver(lease, *former) {
                *former = Some(again.former);
                return Some((again.message, Some(again.deliveries)));
            }
            if self.table.returned() > 0 {
                return None;
            }
            let message = self.ready.pop_front()?;
            self.ready_bytes -= message.bytes();
            let due_ms = if self.has_delays { message.due_ms() } else { None };
            match due_ms.filter(|due_ms| *due_ms > unix_ms()) {
                None => return Some((message, None)),
                Some(due_ms) => {
                    self.delayed.insert((due_ms, message.offset));
                    self.table.delay(message);
                }
            }
        }
    }

    /// The answer is still on its way.
    pub fn renew(&mut self, grant: &Grant, now: Instant) {
        if let Some(held) = self.held.get_mut(&grant.lease).filter(|held| !held.is_delivered)
            && let Some(on_way) = held.spec.on_way
        {
            held.ends_at = held.ends_at.max(now + on_way);
        }
    }

    fn hold(&mut self, lease: LeaseId, spec: LeaseSpec, (first, last): (Offset, Offset), leased: usize, now: Instant) {
        let ends_at = now + spec.on_way.unwrap_or(spec.term);
        let held = Held { spec, is_delivered: false, ends_at, extended_to: None, first, last, leased, burying: 0 };
        if let Some(known) = self.held.get_mut(&lease) {
            // The same answer took more after its first look.
            known.first = known.first.min(first);
            known.last = known.last.max(last);
            known.leased += leased;
        } else {
            self.held.insert(lease, held);
        }
        self.expires_at = Some(self.expires_at.map_or(ends_at, |at| at.min(ends_at)));
    }

    /// The answer was taken by its client, or was not.
    pub fn settle(&mut self, grant: &Grant, outcome: Outcome, now: Instant, worn: &mut Vec<Burial>) {
        let Grant { lease, first, last, .. } = *grant;
        self.end_telling(lease, outcome == Outcome::Delivered);
        match (outcome, self.held.get_mut(&lease)) {
            (Outcome::Delivered, Some(held)) if !held.spec.is_auto => {
                held.is_delivered = true;
                held.ends_at = held.extended_to.unwrap_or(now + held.spec.term);
                self.expires_at = Some(self.expires_at.map_or(held.ends_at, |at| at.min(held.ends_at)));
            }
            (Outcome::Delivered, _) => {
                self.held.remove(&lease);
                self.table.ack(lease, first, last);
            }
            (Outcome::Cut, Some(_)) => self.end_lease(lease, worn),
            (Outcome::Cut, None) => _ = self.table.give_back(lease, first, last, false),
            (Outcome::Unsent, _) => {
                self.held.remove(&lease);
                self.table.take_back(lease, first, last);
            }
        }
        self.account();
    }

    /// The answer that tells of a gap was heard, or was not: then the next one tells it.
    pub fn end_telling(&mut self, lease: LeaseId, is_heard: bool) {
        if self.gap_told_by == Some(lease) {
            self.gap = self.gap.filter(|_| !is_heard);
            self.gap_told_by = None;
        }
    }

    // === held leases ===

    /// Acknowledges the messages up to `offset` of the lease that holds it.
    pub fn ack_at(&mut self, offset: Offset) -> Acked {
        let lease = match self.holder(offset) {
            Ok(lease) => lease,
            Err(acked) => return acked,
        };
        self.ack_up_to(lease, offset);
        Acked::Done
    }

    fn holder(&self, offset: Offset) -> Result<LeaseId, Acked> {
        match self.table.holder(offset) {
            Holder::Done => Err(Acked::Done),
            Holder::Burial => Err(Acked::Burying),
            Holder::Lease(lease) if self.held.get(&lease).is_some_and(|held| !held.spec.is_auto) => Ok(lease),
            Holder::Lease(_) | Holder::Nobody => Err(Acked::NotLeased),
        }
    }

    fn ack_up_to(&mut self, lease: LeaseId, offset: Offset) {
        for lease in self.with_stream(lease, offset) {
            let Some(held) = self.held.get_mut(&lease) else { continue };
            held.leased -= self.table.ack(lease, held.first, held.last.min(offset));
            if held.leased == 0 && held.burying == 0 {
                self.held.remove(&lease);
            }
        }
        self.account();
    }

    /// The lease, and those of the same endless answer that were given before it: what was given later its client may not have yet, be its
    /// offsets lower (they came again from another client).
    fn with_stream(&self, lease: LeaseId, offset: Offset) -> Vec<LeaseId> {
        let stream = self.held.get(&lease).and_then(|held| held.spec.stream);
        if stream.is_none() {
            return vec![lease];
        }
        let before = self.held.range(..=lease);
        let same = before.filter(|(_, held)| held.spec.stream == stream && held.first <= offset);
        same.map(|(lease, _)| *lease).collect()
    }

    /// Renews the lease that holds the message at `offset`: it ends `term` from now.
    pub fn extend_at(&mut self, offset: Offset, term: Duration, now: Instant) -> Acked {
        // Of what is acknowledged there is nothing left to renew.
        let Ok(lease) = self.holder(offset) else { return Acked::NotLeased };
        for lease in self.with_stream(lease, offset) {
            if let Some(held) = self.held.get_mut(&lease) {
                held.extended_to = Some(now + term);
                // While the answer is on its way the lease ends no sooner for it.
                held.ends_at = if held.is_delivered { now + term } else { held.ends_at.max(now + term) };
            }
        }
        self.expires_at = self.expires_at.map(|at| at.min(now + term));
        Acked::Done
    }

    /// Ends the leases whose time is over. Gives how many.
    pub fn expire(&mut self, now: Instant, worn: &mut Vec<Burial>) -> usize {
        if self.expires_at.is_none_or(|at| at > now) {
            return 0;
        }
        let is_over = |held: &Held| held.ends_at <= now && (held.is_delivered || held.spec.on_way.is_some());
        let over: Vec<LeaseId> = self.held.iter().filter(|(_, held)| is_over(held)).map(|(lease, _)| *lease).collect();
        for lease in &over {
            self.end_lease(*lease, worn);
        }
        self.expires_at = self.held.values().map(|held| held.ends_at).min();
        over.len()
    }

    /// Delayed messages whose time has come. Gives how many.
    pub fn wake_delayed(&mut self) -> usize {
        let mut woken = 0;
        while let Some((due_ms, offset)) = self.delayed.first().copied()
            && due_ms <= unix_ms()
        {
            self.delayed.pop_first();
            self.table.due(offset);
            woken += 1;
        }
        woken
    }

    pub fn end_stream(&mut self, stream: u64, worn: &mut Vec<Burial>) {
        let of_stream = self.held.iter().filter(|(_, held)| held.spec.stream == Some(stream));
        let leases: Vec<LeaseId> = of_stream.map(|(lease, _)| *lease).collect();
        for lease in leases {
            self.end_lease(lease, worn);
        }
    }

    fn end_lease(&mut self, lease: LeaseId, worn: &mut Vec<Burial>) {
        let Some(held) = self.held.remove(&lease) else { return };
        if let Some(deliveries_max) = held.spec.deliveries_max {
            for (message, deliveries) in self.table.bury_worn(lease, held.first, held.last, deliveries_max) {
                worn.push(Burial { epoch: self.epoch, message, deliveries, lease });
            }
        }
        self.end_telling(lease, false);
        self.table.give_back(lease, held.first, held.last, true);
    }

    // === burying ===

    /// Takes the message at `offset` out of its lease. [`Acked::Done`]: it was buried a moment ago.
    pub fn begin_bury(&mut self, offset: Offset) -> Result<Burial, Acked> {
        let lease = self.holder(offset).map_err(|acked| match acked {
            // There is no copy of what was only acknowledged.
            Acked::Done if !self.buried.contains(&offset) => Acked::NotLeased,
            acked => acked,
        })?;
        let (message, deliveries) = self.table.message(offset).ok_or(Acked::NotLeased)?;
        let message = message.clone();
        if self.table.bury(lease, offset)
            && let Some(held) = self.held.get_mut(&lease)
        {
            held.leased -= 1;
            held.burying += 1;
        }
        Ok(Burial { epoch: self.epoch, message, deliveries, lease })
    }

    /// The copy is stored, or is not. Stored, the rest of its lease up to there is acknowledged with it.
    pub fn end_bury(&mut self, burial: &Burial, is_stored: bool) {
        let offset = burial.message.offset;
        if is_stored {
            if self.buried.len() >= BURIED_MAX {
                self.buried.pop_front();
            }
            self.buried.push_back(offset);
        }
        let held = self.held.get_mut(&burial.lease);
        self.table.buried(offset, is_stored, burial.lease, held.is_some());
        if let Some(held) = held {
            held.burying = held.burying.saturating_sub(1);
            held.leased += usize::from(!is_stored);
            if is_stored {
                self.ack_up_to(burial.lease, offset);
            }
        }
        self.account();
    }

    /// Whether somebody reads, by a lease of whatever kind.
    pub fn is_leased(&self) -> bool {
        self.table.leased() > 0
    }
}

fn unix_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
