//! The lease table of one partition: what was handed out, what was acknowledged, and how far the group may commit.
//!
//! ```text
//!   end                       next
//!    |  A  L1 L1 A  R  L2 B L2 |      A acknowledged, L leased (by lease id), R returned: to be delivered again, B being buried
//!    committed up to here      what the source gives next
//! ```
//!
//! Invariants: `end` never passes a message that is leased, returned or being buried, so the committed offset never passes an
//! unacknowledged message; entries are sorted by offset; an acknowledgement touches its own lease only; one lease takes over
//! returned messages of one former lease only, so whoever acknowledges late acknowledges nothing it was not given. Both
//! acknowledgement modes and both stores use this table. Per core: it lives where the group lives. It knows no clients, no clocks
//! and no Kafka.

use std::collections::VecDeque;

use super::{Message, Offset};

/// Identifies one answer's messages of one partition. Unique within a group on one core.
pub type LeaseId = u64;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Leased(LeaseId),
    Acked,
    /// By the lease that had it; 0 where nobody can name a lease that ever had it.
    Returned(LeaseId),
    Burying,
    /// Not to be handed out yet.
    Delayed,
}

/// Who holds a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Holder {
    Lease(LeaseId),
    /// It is acknowledged, or was before this table began.
    Done,
    /// It is on its way to a shadow queue.
    Burial,
    /// Not handed out, not known, or returned.
    Nobody,
}

#[derive(Debug)]
struct Entry {
    offset: Offset,
    state: State,
    deliveries: u32,
    /// Kept until acknowledged, so that a returned message is delivered again without asking the source.
    message: Option<Message>,
}

/// See the module text.
#[derive(Debug)]
pub struct LeaseTable {
    end: Offset,
    entries: VecDeque<Entry>,
    leased: usize,
    returned: usize,
    /// No message below it is returned.
    returned_from: Offset,
    /// Of the messages kept.
    bytes: usize,
}

/// A message handed out again.
#[derive(Debug)]
pub struct Again {
    pub message: Message,
    /// How often it was delivered, this time included.
    pub deliveries: u32,
    /// The lease that had it.
    pub former: LeaseId,
}

impl LeaseTable {
    /// A table whose first message is expected at `start`.
    pub fn new(start: Offset) -> Self {
        Self { end: start, entries: VecDeque::new(), leased: 0, returned: 0, returned_from: start, bytes: 0 }
    }

    /// End of the contiguous acknowledged run: what may be committed (Kafka's "next to read").
    pub fn end(&self) -> Offset {
        self.end
    }

    /// Messages handed out and not yet acknowledged or returned.
    pub fn leased(&self) -> usize {
        self.leased
    }

    /// Messages waiting to be delivered again.
    pub fn returned(&self) -> usize {
        self.returned
    }

    /// Messages delivered above `end`, whatever their state; what `leases_max` bounds.
    pub fn outstanding(&self) -> usize {
        self.entries.len()
    }

    /// Bytes of the messages kept for another delivery.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The offset a new message is expected at, or below.
    pub fn next(&self) -> Offset {
        self.entries.back().map_or(self.end, |last| last.offset + 1)
    }

    /// Hands out a new message under `lease`. Messages come in offset order; gaps (compaction, markers) are fine.
    pub fn deliver(&mut self, lease: LeaseId, message: &Message) {
        debug_assert!(self.is_new(message.offset), "the source delivers in offset order");
        self.leased += 1;
        self.bytes += message.bytes();
        self.entries.push_back(Entry {
            offset: message.offset,
            state: State::Leased(lease),
            deliveries: 1,
            message: Some(message.clone()),
        });
    }

    /// Whether `offset` was not handed out before: a source that was repositioned may repeat what the table holds.
    pub fn is_new(&self, offset: Offset) -> bool {
        offset >= self.next()
    }

    /// Passes over a message nobody wants (filtered out): it counts as acknowledged.
    pub fn skip(&mut self, offset: Offset) {
        self.entries.push_back(Entry { offset, state: State::Acked, deliveries: 0, message: None });
        self.advance();
    }

    /// Takes a new message that is not to be handed out before [`LeaseTable::due`].
    pub fn delay(&mut self, message: Message) {
        let offset = message.offset;
        self.bytes += message.bytes();
        self.entries.push_back(Entry { offset, state: State::Delayed, deliveries: 0, message: Some(message) });
    }

    /// The time of a delayed message has come.
    pub fn due(&mut self, offset: Offset) {
        let Some(entry) = self.entry_mut(offset).filter(|entry| entry.state == State::Delayed) else { return };
        entry.state = State::Returned(0);
        self.returned += 1;
        self.returned_from = self.returned_from.min(offset);
    }

    /// Hands out one returned message again, the lowest offset first, if it was returned by `former` (where that is given).
    #[inline] // Asked for each message of a batch, and nearly always in vain.
    pub fn redeliver(&mut self, lease: LeaseId, former: Option<LeaseId>) -> Option<Again> {
        if self.returned == 0 { None } else { self.redeliver_lowest(lease, former) }
    }

    fn redeliver_lowest(&mut self, lease: LeaseId, wanted: Option<LeaseId>) -> Option<Again> {
        let from = self.index_of(self.returned_from);
        let (entry, former) = self.entries.range_mut(from..).find_map(|entry| match entry.state {
            State::Returned(former) => Some((entry, former)),
            _ => None,
        })?;
        self.returned_from = entry.offset;
        if wanted.is_some_and(|wanted| wanted != former) {
            return None;
        }
        entry.state = State::Leased(lease);
        entry.deliveries += 1;
        self.returned -= 1;
        self.leased += 1;
        let deliveries = entry.deliveries;
        entry.message.clone().map(|message| Again { message, deliveries, former })
    }

    /// Who holds the message at `offset`.
    pub fn holder(&self, offset: Offset) -> Holder {
        if offset < self.end {
            return Holder::Done;
        }
        match self.entry(offset).map(|entry| entry.state) {
            Some(State::Leased(lease)) => Holder::Lease(lease),
            Some(State::Acked) => Holder::Done,
            Some(State::Burying) => Holder::Burial,
            Some(State::Returned(_) | State::Delayed) | None => Holder::Nobody,
        }
    }

    /// How often the message was delivered, and its text, while it is kept.
    pub fn message(&self, offset: Offset) -> Option<(&Message, u32)> {
        self.entry(offset).and_then(|entry| Some((entry.message.as_ref()?, entry.deliveries)))
    }

    /// Acknowledges the messages of `lease` between `first` and `last`. Gives how many were.
    pub fn ack(&mut self, lease: LeaseId, first: Offset, last: Offset) -> usize {
        let mut bytes = 0;
        let acked = self.change(lease, first, last, |entry| {
            // Dropped where it stands: taking it would move it out first.
            bytes += entry.message.as_ref().map_or(0, Message::bytes);
            entry.message = None;
            State::Acked
        });
        self.bytes -= bytes;
        self.advance();
        acked
    }

    /// The messages of `lease` between `first` and `last` go back: they are delivered again before new ones. `named`: whoever
    /// holds the lease may still name it. What was delivered before may be named by whoever had it then.
    pub fn give_back(&mut self, lease: LeaseId, first: Offset, last: Offset, named: bool) -> usize {
        let former = |entry: &mut Entry| State::Returned(if named || entry.deliveries > 1 { lease } else { 0 });
        let returned = self.change(lease, first, last, former);
        self.note_returned(first, returned);
        returned
    }

    /// As [`LeaseTable::give_back`], of an answer of which nothing left: no delivery at all.
    pub fn take_back(&mut self, lease: LeaseId, first: Offset, last: Offset) -> usize {
        let returned = self.change(lease, first, last, |entry| {
            entry.deliveries -= 1;
            State::Returned(if entry.deliveries > 0 { lease } else { 0 })
        });
        self.note_returned(first, returned);
        returned
    }

    fn note_returned(&mut self, first: Offset, returned: usize) {
        self.returned += returned;
        if returned > 0 {
            self.returned_from = self.returned_from.min(first);
        }
    }

    /// A leased message is on its way to a shadow queue: nobody's until [`LeaseTable::buried`].
    pub fn bury(&mut self, lease: LeaseId, offset: Offset) -> bool {
        self.change(lease, offset, offset, |_| State::Burying) == 1
    }

    /// The message is in the shadow queue, which acknowledges it; or it is not, and goes back to `lease`, or, where that has ended
    /// (`is_held`), to whoever comes next.
    pub fn buried(&mut self, offset: Offset, is_stored: bool, lease: LeaseId, is_held: bool) {
        let Some(entry) = self.entry_mut(offset).filter(|entry| entry.state == State::Burying) else { return };
        entry.state = match is_held {
            _ if is_stored => State::Acked,
            true => State::Leased(lease),
            false => State::Returned(lease),
        };
        let bytes = if is_stored { entry.message.take().map_or(0, |message| message.bytes()) } else { 0 };
        match entry.state {
            State::Leased(_) => self.leased += 1,
            State::Returned(_) => {
                self.returned += 1;
                self.returned_from = self.returned_from.min(offset);
            }
            State::Acked | State::Burying | State::Delayed => {}
        }
        self.bytes -= bytes;
        self.advance();
    }

    /// Those messages of `lease` that were delivered `deliveries_max` times are buried: gives them, with how often that was.
    pub fn bury_worn(
        &mut self,
        lease: LeaseId,
        first: Offset,
        last: Offset,
        deliveries_max: u32,
    ) -> Vec<(Message, u32)> {
        let from = self.index_of(first);
        let mut worn = Vec::new();
        for entry in self.entries.range_mut(from..).take_while(|e| e.offset <= last) {
            if entry.state == State::Leased(lease)
                && entry.deliveries >= deliveries_max
                && let Some(message) = &entry.message
            {
                worn.push((message.clone(), entry.deliveries));
                entry.state = State::Burying;
            }
        }
        self.leased -= worn.len();
        worn
    }

    fn index_of(&self, offset: Offset) -> usize {
        self.entries.partition_point(|e| e.offset < offset)
    }

    fn entry(&self, offset: Offset) -> Option<&Entry> {
        self.entries.get(self.index_of(offset)).filter(|entry| entry.offset == offset)
    }

    fn entry_mut(&mut self, offset: Offset) -> Option<&mut Entry> {
        let index = self.index_of(offset);
        self.entries.get_mut(index).filter(|entry| entry.offset == offset)
    }

    fn change(
        &mut self,
        lease: LeaseId,
        first: Offset,
        last: Offset,
        mut to: impl FnMut(&mut Entry) -> State,
    ) -> usize {
        let from = self.index_of(first);
        let mut changed = 0;
        for entry in self.entries.range_mut(from..).take_while(|e| e.offset <= last) {
            if entry.state == State::Leased(lease) {
                entry.state = to(entry);
                changed += 1;
            }
        }
        self.leased -= changed;
        changed
    }

    fn advance(&mut self) {
        let acked = self.entries.iter().take_while(|entry| entry.state == State::Acked).count();
        // Dropped where they stand: popping would move each of them out first.
        if let Some(last) = self.entries.drain(..acked).next_back() {
            self.end = last.offset + 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn message(offset: Offset) -> Message {
        Message { offset, value: Bytes::from_static(b"x"), ..Message::default() }
    }

    #[test]
    fn the_end_stops_at_a_gap() {
        let mut table = LeaseTable::new(10);
        table.deliver(1, &message(10));
        table.deliver(2, &message(11));
        table.deliver(3, &message(12));
        assert_eq!(table.ack(2, 11, 11), 1);
        assert_eq!(table.ack(3, 12, 12), 1);
        assert_eq!(table.end(), 10);
        assert_eq!(table.ack(1, 10, 10), 1);
        assert_eq!((table.end(), table.outstanding()), (13, 0));
    }

    #[test]
    fn an_ack_touches_its_own_lease_only() {
        let mut table = LeaseTable::new(0);
        table.deliver(1, &message(0));
        table.deliver(2, &message(1));
        assert_eq!(table.ack(2, 0, 1), 1);
        assert_eq!(table.end(), 0);
        assert_eq!(table.ack(2, 0, 1), 0, "a second ack changes nothing");
    }

    #[test]
    fn returned_messages_come_again_first_and_counted() {
        let mut table = LeaseTable::new(0);
        table.deliver(1, &message(0));
        table.deliver(1, &message(1));
        assert_eq!(table.give_back(1, 0, 1, true), 2);
        let again = table.redeliver(2, None).expect("two were returned");
        assert_eq!((again.message.offset, again.deliveries, again.former), (0, 2, 1));
        assert_eq!((table.leased(), table.returned()), (1, 1));
    }

    #[test]
    fn a_lease_takes_over_from_one_lease_only() {
        let mut table = LeaseTable::new(0);
        (0..4).for_each(|offset| table.deliver(1 + u64::from(offset >= 2), &message(offset)));
        table.give_back(1, 0, 1, true);
        table.give_back(2, 2, 3, true);
        let former = table.redeliver(3, None).expect("four were returned").former;
        assert_eq!(table.redeliver(3, Some(former)).map(|again| again.message.offset), Some(1));
        assert!(table.redeliver(3, Some(former)).is_none(), "what the other lease returned is another answer's");
        assert_eq!(table.redeliver(4, None).map(|again| again.message.offset), Some(2));
    }

    #[test]
    fn what_never_left_was_not_delivered() {
        let mut table = LeaseTable::new(0);
        (0..2).for_each(|offset| table.deliver(1, &message(offset)));
        assert_eq!(table.take_back(1, 0, 1), 2);
        let again = |table: &mut LeaseTable, lease| {
            table.redeliver(lease, None).map(|again| (again.message.offset, again.deliveries, again.former))
        };
        assert_eq!(again(&mut table, 2), Some((0, 1, 0)), "its first delivery, and nobody can name the lease");
        table.give_back(2, 0, 0, true);
        assert_eq!(again(&mut table, 3), Some((0, 2, 2)));
        table.take_back(3, 0, 0);
        assert_eq!(again(&mut table, 4), Some((0, 2, 3)), "not mixed with what others had");
    }

    #[test]
    fn a_message_being_buried_is_nobodys_and_stops_the_end() {
        let mut table = LeaseTable::new(0);
        (0..3).for_each(|offset| table.deliver(1, &message(offset)));
        assert!(table.bury(1, 0));
        assert!(!table.bury(1, 0), "once");
        assert_eq!(table.ack(1, 0, 2), 2);
        assert_eq!((table.end(), table.holder(0), table.holder(1)), (0, Holder::Burial, Holder::Done));
        table.buried(0, false, 1, false);
        let again = table.redeliver(2, None).map(|again| (again.deliveries, again.former));
        assert_eq!(again, Some((2, 1)), "whoever had it may still name its lease");
        assert!(table.bury(2, 0));
        table.buried(0, true, 2, false);
        assert_eq!((table.end(), table.bytes(), table.outstanding()), (3, 0, 0));
    }

    #[test]
    fn skipped_messages_move_the_end_and_offsets_may_jump() {
        let mut table = LeaseTable::new(0);
        table.skip(5);
        assert_eq!(table.end(), 6);
        table.deliver(1, &message(9));
        table.skip(12);
        assert_eq!(table.end(), 6);
        table.ack(1, 9, 9);
        assert_eq!(table.end(), 13);
    }

    /// Random interleavings of deliver, skip, ack and give back against a plain model.
    #[test]
    fn the_end_never_passes_an_unacknowledged_message() {
        let mut random = crate::store::random();
        for _ in 0..200 {
            let mut table = LeaseTable::new(0);
            let (mut next, mut lease) = (0_i64, 0_u64);
            let mut open: Vec<(LeaseId, Offset)> = Vec::new();
            let mut acked = std::collections::BTreeSet::new();
            for _ in 0..300 {
                match random(5) {
                    0 | 1 => {
                        lease += 1;
                        table.deliver(lease, &message(next));
                        open.push((lease, next));
                        next += 1;
                    }
                    2 => {
                        table.skip(next);
                        acked.insert(next);
                        next += 1;
                    }
                    3 if !open.is_empty() => {
                        let index = usize::try_from(random(open.len() as u64)).expect("small");
                        let (id, offset) = open.swap_remove(index);
                        assert_eq!(table.ack(id, offset, offset), 1);
                        acked.insert(offset);
                    }
                    4 if !open.is_empty() => {
                        let index = usize::try_from(random(open.len() as u64)).expect("small");
                        let (id, offset) = open.swap_remove(index);
                        assert_eq!(table.give_back(id, offset, offset, true), 1);
                        lease += 1;
                        let again = table.redeliver(lease, None).expect("one was returned");
                        open.push((lease, again.message.offset));
                    }
                    _ => {}
                }
                let contiguous = (0..next).take_while(|o| acked.contains(o)).count();
                assert_eq!(table.end(), i64::try_from(contiguous).expect("small"));
                assert_eq!(table.leased(), open.len());
            }
        }
    }
}
