//! The watchdog of a member: a group that has messages, waiting clients and no progress joins anew.
//!
//! ```text
//!   the pump, each second: seems stuck? --> a look from there on, without the group --> a message, and still stuck --> join anew
//!                                                        \--> nothing to read: not looked at again until something moves
//! ```
//!
//! A log may end in a transaction that is open, or in the mark of one that is over: offsets that no reader ever gets. From outside that
//! looks like messages that do not come, and joining anew would void every lease of the group for nothing. Invariants: the group joins
//! anew only for a message that somebody else could read, and once for each place; a core has one look under way for all its groups, so
//! that clients' own looks (peek) have room. Per core; lives as long as its member, over all of its clients.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
    time::Instant,
};

use super::{super::consumer::Member, Pump};
use crate::store::{Group, Offset, Partition, Stuck};

/// See the module text.
#[derive(Debug, Default)]
pub(in super::super) struct Watchdog {
    /// Places where there was nothing to read.
    empty: RefCell<BTreeMap<Partition, Stuck>>,
    /// Where the group was stuck when it last joined anew.
    left_at: Cell<Option<(Partition, Offset)>>,
    /// A place where there is a message to read, unless the group has got on meanwhile.
    found: Cell<Option<Stuck>>,
    is_looking: Cell<bool>,
    look_due: Cell<Option<Instant>>,
}

// === impl Watchdog ===

impl Watchdog {
    /// Of these places those of which nobody knows why nothing comes.
    fn unexplained(&self, mut places: Vec<Stuck>) -> Vec<Stuck> {
        let empty = self.empty.borrow();
        places.retain(|place| {
            empty.get(&place.partition) != Some(place) && self.left_at.get() != Some((place.partition, place.next))
        });
        places
    }

    /// There was nothing to read at these places.
    fn explain(&self, places: &[Stuck]) {
        self.empty.borrow_mut().extend(places.iter().map(|place| (place.partition, *place)));
    }

    /// The place of these for whose sake the group is to join anew.
    fn verdict(&self, places: &[Stuck]) -> Option<Stuck> {
        let found = self.found.take()?;
        let stuck = places.iter().find(|place| (place.partition, place.next) == (found.partition, found.next))?;
        self.left_at.set(Some((stuck.partition, stuck.next)));
        Some(*stuck)
    }
}

// === impl Pump ===

impl Pump {
    /// Once a second.
    pub(super) fn watch_over(&mut self, group: &Group, now: Instant) {
        let limit = self.member.around.config.subscribe.watchdog;
        let watchdog = &self.member.watchdog;
        if watchdog.is_looking.get() {
            return;
        }
        let places = group.stuck(limit);
        if let Some(Stuck { partition, next, latest }) = watchdog.verdict(&places) {
            self.member.around.stats.stuck.one();
            tracing::warn!(group = group.group_id, partition, next, latest, ?limit, "a group is stuck and joins anew");
            self.is_stuck = true;
            return;
        }
        let unexplained = watchdog.unexplained(places);
        let is_due = watchdog.look_due.get().is_none_or(|due| now >= due);
        if is_due && !unexplained.is_empty() && self.member.look_into(unexplained) {
            watchdog.look_due.set(Some(now + limit));
        }
    }
}

// === impl Member ===

impl Member {
    /// Looks from these places on for a message that can be read, in a task of its own. Gives `false` when it was not this member's turn.
    fn look_into(self: &Rc<Self>, places: Vec<Stuck>) -> bool {
        if self.around.is_watching.replace(true) {
            return false;
        }
        self.watchdog.is_looking.set(true);
        self.around.stats.watchdog_looks.one();
        let this = Rc::clone(self);
        glommio::spawn_local(async move {
            let from: Vec<_> = places.iter().map(|place| (place.partition, place.next)).collect();
            match this.around.peeks.first(&this.group.topic_name, &from).await {
                Ok(Some(message)) => {
                    // One from before is of another log, which the group's own consumer has yet to notice.
                    let is_of = |place: &&Stuck| place.partition == message.partition && message.offset >= place.next;
                    this.watchdog.found.set(places.iter().find(is_of).copied());
                }
                Ok(None) => this.watchdog.explain(&places),
                // Nobody knows: the next look is due after another period.
                Err(error) => {
                    if let Some(held) = this.around.reach.log.pass(Instant::now()) {
                        let group = &this.group.group_id;
                        tracing::warn!(
                            group,
                            ?error,
                            held,
                            "a group seems stuck, and its topic could not be looked into"
                        );
                    }
                }
            }
            this.watchdog.is_looking.set(false);
            this.around.is_watching.set(false);
        })
        .detach();
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(partition: Partition, next: Offset, latest: Offset) -> Stuck {
        Stuck { partition, next, latest }
    }

    #[test]
    fn an_empty_place_is_looked_at_again_when_something_moved() {
        let watchdog = Watchdog::default();
        let places = vec![at(0, 1, 2), at(1, 5, 6)];
        assert_eq!(watchdog.unexplained(places.clone()), places);
        watchdog.explain(&places[..1]);
        assert_eq!(watchdog.unexplained(places), [at(1, 5, 6)], "it does not hide the other");
        assert_eq!(watchdog.unexplained(vec![at(0, 1, 3)]), [at(0, 1, 3)], "the log went on");
        assert_eq!(watchdog.unexplained(vec![at(0, 2, 2)]), [at(0, 2, 2)], "the group went on");
    }

    #[test]
    fn the_group_joins_anew_once_for_each_place_it_is_still_at() {
        let watchdog = Watchdog::default();
        assert_eq!(watchdog.verdict(&[at(0, 1, 2)]), None, "nothing was found");
        watchdog.found.set(Some(at(0, 1, 2)));
        assert_eq!(watchdog.verdict(&[at(0, 2, 3)]), None, "it got on meanwhile");
        assert_eq!(watchdog.verdict(&[at(0, 1, 2)]), None, "what was found then says nothing of now");
        watchdog.found.set(Some(at(0, 1, 2)));
        assert_eq!(watchdog.verdict(&[at(1, 7, 8), at(0, 1, 3)]), Some(at(0, 1, 3)));
        assert!(watchdog.unexplained(vec![at(0, 1, 4)]).is_empty(), "joining anew did not help before");
        assert_eq!(watchdog.unexplained(vec![at(0, 2, 4)]), [at(0, 2, 4)]);
    }
}
