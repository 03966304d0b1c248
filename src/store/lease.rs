//! The lease table of one partition: what was handed out, what was acknowledged, and how far the group may commit.
//!
//! ```text
//!   end                       next
//!    |  A  L1 L1 A  R  L2 L2   |      A acknowledged, L leased (by lease id), R returned: to be delivered again
//!    committed up to here      what the source gives next
//! ```
//!
//! Invariants: `end` never passes a message that is leased or returned, so the committed offset never passes an unacknowledged
//! message; entries are sorted by offset; an acknowledgement touches its own lease only. Both acknowledgement modes and both
//! stores use this table. Per core: it lives where the group lives. It knows no clients, no clocks and no Kafka.

use std::collections::VecDeque;

use super::{Message, Offset};

/// Identifies one answer's messages of one partition. Unique within a group on one core.
pub type LeaseId = u64;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Leased(LeaseId),
    Acked,
    Returned,
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
}

impl LeaseTable {
    /// A table whose first message is expected at `start`.
    pub fn new(start: Offset) -> Self {
        Self { end: start, entries: VecDeque::new(), leased: 0, returned: 0 }
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

    /// Hands out a new message under `lease`. Messages come in offset order; gaps (compaction, markers) are fine.
    pub fn deliver(&mut self, lease: LeaseId, message: &Message) {
        debug_assert!(self.is_new(message.offset), "the source delivers in offset order");
        self.leased += 1;
        self.entries.push_back(Entry {
            offset: message.offset,
            state: State::Leased(lease),
            deliveries: 1,
            message: Some(message.clone()),
        });
    }

    /// Whether `offset` was not handed out before: a source that was repositioned may repeat what the table holds.
    pub fn is_new(&self, offset: Offset) -> bool {
        offset >= self.end && self.entries.back().is_none_or(|last| offset > last.offset)
    }

    /// Passes over a message nobody wants (filtered out): it counts as acknowledged.
    pub fn skip(&mut self, offset: Offset) {
        self.entries.push_back(Entry { offset, state: State::Acked, deliveries: 0, message: None });
        self.advance();
    }

    /// Hands out one returned message again, the lowest offset first. Gives the message and how often it was delivered now.
    #[inline] // Asked for each message of a batch, and nearly always in vain.
    pub fn redeliver(&mut self, lease: LeaseId) -> Option<(Message, u32)> {
        if self.returned == 0 { None } else { self.redeliver_lowest(lease) }
    }

    fn redeliver_lowest(&mut self, lease: LeaseId) -> Option<(Message, u32)> {
        let entry = self.entries.iter_mut().find(|e| e.state == State::Returned)?;
        entry.state = State::Leased(lease);
        entry.deliveries += 1;
        self.returned -= 1;
        self.leased += 1;
        entry.message.clone().map(|message| (message, entry.deliveries))
    }

    /// Acknowledges the messages of `lease` between `first` and `last`. Gives how many were.
    pub fn ack(&mut self, lease: LeaseId, first: Offset, last: Offset) -> usize {
        let acked = self.change(lease, first, last, State::Acked);
        self.advance();
        acked
    }

    /// The messages of `lease` between `first` and `last` go back: they are delivered again before new ones.
    pub fn give_back(&mut self, lease: LeaseId, first: Offset, last: Offset) -> usize {
        let returned = self.change(lease, first, last, State::Returned);
        self.returned += returned;
        returned
    }

    fn change(&mut self, lease: LeaseId, first: Offset, last: Offset, to: State) -> usize {
        let from = self.entries.partition_point(|e| e.offset < first);
        let mut changed = 0;
        for entry in self.entries.range_mut(from..).take_while(|e| e.offset <= last) {
            if entry.state == State::Leased(lease) {
                entry.state = to;
                if to == State::Acked {
                    entry.message = None;
                }
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
        Message { partition: 0, offset, timestamp_ms: 0, key: None, value: Bytes::from_static(b"x"), headers: None }
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
        assert_eq!(table.give_back(1, 0, 1), 2);
        let (again, deliveries) = table.redeliver(2).expect("two were returned");
        assert_eq!((again.offset, deliveries), (0, 2));
        assert_eq!((table.leased(), table.returned()), (1, 1));
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
        let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = move |below: u64| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed % below
        };
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
                        assert_eq!(table.give_back(id, offset, offset), 1);
                        lease += 1;
                        let (again, _) = table.redeliver(lease).expect("one was returned");
                        open.push((lease, again.offset));
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
