//! The pump's messages: from librdkafka's queues to the group, in bounded steps.
//!
//! Invariants: nothing is taken of a partition that is being moved; what is handed on has the offset expected next or a later one, or the
//! group is told why not (another log under the same name, or retention passed it).

use std::{rc::Rc, time::Instant};

use super::{
    super::{native::Fetched, offsets},
    Pump,
};
use crate::{
    limits,
    store::{Offset, Partition},
};

/// Values up to this are copied: a message handed out as it is keeps its whole fetch answer in memory.
const COPY_BYTES_MAX: usize = 256;

impl Pump {
    /// One bounded step of messages. Gives whether there may be more that are wanted.
    pub(super) fn fetch_some(&mut self) -> bool {
        let group = Rc::clone(&self.member.group);
        let demand = group.demand().min(limits::LOOP_ITEMS_MAX).min(self.deaf_after.unwrap_or(usize::MAX));
        if demand == 0 {
            return false;
        }
        let count = self.parts.len();
        let (mut taken, mut bytes) = (0, 0);
        for step in 0..count {
            if taken >= demand || bytes >= limits::BATCH_BYTES_MAX {
                break;
            }
            let part = &self.parts[(self.turn + step) % count];
            let room = group.room(part.id).min(demand - taken);
            if room == 0 || self.is_moving(part.id) {
                continue;
            }
            let mut fetched = std::mem::take(&mut self.fetched);
            taken += part.queue.fetch(room, &mut fetched);
            for message in fetched.drain(..) {
                bytes += self.take_message(message);
            }
            self.fetched = fetched;
        }
        if count > 0 {
            self.turn = (self.turn + 1) % count;
        }
        self.deaf_after = self.deaf_after.map(|left| left - taken);
        if taken > 0 {
            self.heard();
            group.wake_first();
        }
        taken > 0 && group.demand() > 0
    }

    /// Gives the message's bytes.
    pub(super) fn take_message(&mut self, message: Fetched) -> usize {
        if let Some(code) = message.error() {
            self.take_error(code, "", false);
            return 0;
        }
        self.follow(message.partition(), message.offset());
        let message = message.into_message(COPY_BYTES_MAX);
        let bytes = message.bytes();
        self.member.around.stats.fetched.one();
        self.member.around.stats.fetched_bytes.add(bytes as u64);
        self.member.group.push(message);
        bytes
    }

    /// A position that goes back means another log under the same name: what was handed out is of the old one. One that leaps may mean
    /// that what lies between is gone.
    fn follow(&mut self, partition: Partition, offset: Offset) {
        let Some(part) = self.parts.iter_mut().find(|part| part.id == partition) else { return };
        let expected = std::mem::replace(&mut part.next, offset + 1);
        if offset < expected {
            self.member.standing.borrow_mut().begin_anew();
            self.member.group.assign(partition, offset);
            self.member.group.mark_uncommitted([partition]);
        }
        if offset > expected {
            // Compaction and transactions leave holes too, but above the oldest offset.
            let oldest = self.client.ends_seen(&self.member.topic, partition).0;
            if let Some(gap) = oldest.and_then(|oldest| offsets::gap(expected, oldest.min(offset))) {
                self.note_gap(partition, gap.0, gap.1);
            }
        }
    }

    /// Retention passed the group: from `first` to `last` there is nothing any more.
    pub(super) fn note_gap(&self, partition: Partition, first: Offset, last: Offset) {
        self.member.around.stats.gaps.one();
        let group = &self.member.group;
        if let Some(held) = self.member.around.reach.log.pass(Instant::now()) {
            tracing::warn!(
                group = group.group_id,
                partition,
                first,
                last,
                held,
                "messages were gone before they were read"
            );
        }
        group.note_gap(partition, first, last);
    }
}
