//! Moving a group that is being read: whoever asks waits here until the pump has moved librdkafka and the move is committed.
//!
//! ```text
//!   Member::seek --> [ waiting, bounded ] --> the pump, between rebalances and commits --> offload pool: seek, then commit
//!                                                                                   leases void, answer <--/
//! ```
//!
//! Invariants: a move and a rebalance are answered one at a time, so a partition stays ours while it moves and a late move never meets
//! a new assignment; no commit is under way meanwhile but the move's own; nothing is taken of a moving partition between the moment
//! librdkafka may already give messages from after the move and the moment the group knows of it. Per core.

use std::{
    cell::RefCell,
    collections::{BTreeMap, VecDeque},
    time::Instant,
};

use futures_channel::oneshot;

use super::{
    super::{consumer::Member, rebalance::Sought},
    Pump,
};
use crate::{
    limits,
    store::{Offset, Partition, SeekError},
    within::within,
};

/// A move somebody waits for.
#[derive(Debug)]
pub(super) struct Seek {
    moves: BTreeMap<Partition, Offset>,
    answer: oneshot::Sender<Result<(), SeekError>>,
}

/// Moves whose turn has not come.
#[derive(Debug, Default)]
pub(in super::super) struct Seeks(RefCell<VecDeque<Seek>>);

/// A move under way.
#[derive(Debug)]
pub(super) struct Seeking {
    seek: Seek,
    /// `Standing::anew` when it began.
    anew: u64,
}

// === impl Seeks ===

impl Seeks {
    /// Gives `None` when too many wait.
    fn wait(&self, moves: BTreeMap<Partition, Offset>) -> Option<oneshot::Receiver<Result<(), SeekError>>> {
        let mut waiting = self.0.borrow_mut();
        // Whoever gave up waiting wants no move any more.
        waiting.retain(|seek| !seek.answer.is_canceled());
        if waiting.len() >= limits::SEEKS_MAX {
            return None;
        }
        let (answer, answered) = oneshot::channel();
        waiting.push_back(Seek { moves, answer });
        Some(answered)
    }

    fn next(&self) -> Option<Seek> {
        self.0.borrow_mut().pop_front()
    }

    /// Those who wait hear that it will not happen.
    pub fn clear(&self) {
        let dropped = self.0.take();
        drop(dropped);
    }
}

// === impl Member ===

impl Member {
    /// Moves partitions of this member; see [`crate::store::Store::seek`]. Of a partition named twice the last counts.
    pub async fn seek(&self, moves: Vec<(Partition, Offset)>) -> Result<(), SeekError> {
        let moves: BTreeMap<_, _> = moves.into_iter().map(|(partition, offset)| (partition, offset.max(0))).collect();
        if moves.is_empty() {
            return Ok(());
        }
        if self.group.is_closing() {
            return Err(unavailable("the group is being left"));
        }
        let answered = self.seeks.wait(moves).ok_or_else(|| unavailable("too many moves are waiting"))?;
        self.group.bell.ring();
        // A rebalance may have to end first, and each of the two waits for brokers.
        let seek_max = self.around.config.kafka.admin_timeout * 2;
        match within(seek_max, answered).await {
            Some(Ok(moved)) => moved,
            Some(Err(_)) => Err(unavailable("the group's client ended")),
            None => Err(unavailable("the group did not move in time")),
        }
    }
}

// === impl Pump ===

impl Pump {
    /// Takes up the next move, when nothing is under way that it could meet.
    pub(super) fn begin_seek(&mut self) {
        let is_blocked = self.is_committing(Instant::now()) || self.seeking.is_some() || self.answers.is_busy();
        // Before the first assignment what is not ours may just not be ours yet.
        if is_blocked || !self.has_joined || self.is_broken {
            return;
        }
        while let Some(seek) = self.member.seeks.next() {
            if seek.answer.is_canceled() {
                continue;
            }
            let not_ours = seek.moves.keys().find(|moved| !self.parts.iter().any(|part| part.id == **moved));
            let refusal = if self.member.group.is_closing() {
                Some(unavailable("the group is being left"))
            } else {
                not_ours.map(|partition| SeekError::NotOwned(*partition))
            };
            if let Some(refusal) = refusal {
                // Whoever asked may have gone.
                let _ = seek.answer.send(Err(refusal));
                continue;
            }
            self.answers.seek(seek.moves.iter().map(|(partition, offset)| (*partition, *offset)).collect());
            let anew = self.member.standing.borrow().anew;
            self.seeking = Some(Seeking { seek, anew });
            return;
        }
    }

    /// What was moved begins anew for the group, in the same step in which its messages are taken again.
    pub(super) fn end_seek(&mut self, sought: Sought) {
        let Sought { moved, is_committed, error, is_torn } = sought;
        let Some(Seeking { seek, anew }) = self.seeking.take() else { return };
        let group = &self.member.group;
        let mut standing = self.member.standing.borrow_mut();
        for (partition, offset) in &moved {
            let Some(part) = self.parts.iter_mut().find(|part| part.id == *partition) else { continue };
            part.next = *offset;
            group.assign(*partition, *offset);
            if is_committed {
                standing.committed.insert(*partition);
            } else {
                group.mark_uncommitted([*partition]);
            }
            if standing.anew == anew {
                standing.chosen.insert(*partition, *offset);
            }
        }
        drop(standing);
        self.member.around.stats.seeks.add(moved.len() as u64);
        if !is_committed {
            self.commit_due = Instant::now();
        }
        if is_torn {
            tracing::error!(group = group.group_id, "a move did not end; the client is replaced");
            self.is_broken = true;
        }
        // Whoever asked may have gone.
        let _ = seek.answer.send(error.map_or(Ok(()), Err));
    }

    /// Whether nothing is to be taken of the partition, because it is being moved.
    pub(super) fn is_moving(&self, partition: Partition) -> bool {
        self.seeking.as_ref().is_some_and(|seeking| seeking.seek.moves.contains_key(&partition))
    }
}

pub(in super::super) fn unavailable(reason: &str) -> SeekError {
    SeekError::Unavailable { reason: reason.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moves_wait_in_order_and_within_a_bound() {
        let seeks = Seeks::default();
        let ask = |offset| seeks.wait(BTreeMap::from([(0, offset)]));
        let mut waiting: Vec<_> = (0..).map_while(ask).collect();
        assert_eq!(waiting.len(), limits::SEEKS_MAX);
        drop(waiting.remove(1));
        assert!(ask(100).is_some(), "who gave up makes room");
        assert_eq!(seeks.next().map(|seek| seek.moves[&0]), Some(0));
        assert_eq!(seeks.next().map(|seek| seek.moves[&0]), Some(2));
        seeks.clear();
        let last = waiting.pop().expect("one waits");
        assert!(futures_lite::future::block_on(last).is_err(), "it hears that it will not happen");
    }
}
