//! What a core remembers of keyed publishes: by name, and in the order they finished.
//!
//! Invariants: what runs is never dropped, only what has finished, and of that the oldest first; count and bytes stay within their
//! bounds as long as what runs does. Per core. It knows no requests and no cores.

use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{Begun, Fingerprint, Name, Outcome};
use crate::{config::PublishConfig, limits};

/// What one entry takes besides its name and its answer's fields: both places it stands in.
const ENTRY_BYTES: usize = 192;

/// How much is remembered, and how long.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub keys_max: usize,
    pub bytes_max: usize,
    pub window: Duration,
}

impl Bounds {
    pub fn of(config: &PublishConfig) -> Self {
        let (keys_max, window) = (config.idempotency_keys_max, config.idempotency_window);
        Self { keys_max, bytes_max: limits::IDEMPOTENCY_BYTES_MAX, window }
    }
}

/// Per core: see the module text.
#[derive(Debug, Default)]
pub struct Kept {
    entries: RefCell<HashMap<Name, Entry, ahash::RandomState>>,
    /// Those that have finished, the oldest first.
    finished: RefCell<VecDeque<(Instant, Name)>>,
    bytes: Cell<usize>,
    /// Dropped before their time since this was last asked.
    forgotten: Cell<u64>,
}

#[derive(Debug)]
struct Entry {
    fingerprint: Fingerprint,
    /// `None` while it runs.
    outcome: Option<Outcome>,
}

fn bytes_of(name: &Name, outcome: Option<&Outcome>) -> usize {
    let said = match outcome {
        None => 0,
        Some(Outcome::Done { lines, .. }) => lines.len(),
        Some(Outcome::Unknown { detail }) => detail.len(),
    };
    ENTRY_BYTES + name.len() + said
}

impl Kept {
    pub fn len(&self) -> usize {
        self.entries.borrow().len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.borrow().is_empty()
    }

    /// How many were dropped before their time since the last call.
    pub fn take_forgotten(&self) -> u64 {
        self.forgotten.take()
    }

    /// Enters a publish that is to run; else what is known of its name.
    pub fn begin(&self, name: &Name, fingerprint: &Fingerprint, bounds: &Bounds, now: Instant) -> Option<Begun> {
        self.expire(bounds.window, now);
        if let Some(entry) = self.entries.borrow().get(name) {
            return Some(match &entry.outcome {
                _ if entry.fingerprint != *fingerprint => Begun::Other,
                None => Begun::Running,
                Some(outcome) => Begun::Finished(outcome.clone()),
            });
        }
        let bytes = bytes_of(name, None);
        self.make_room(bounds, 1, bytes);
        if self.len() >= bounds.keys_max || self.bytes.get() + bytes > bounds.bytes_max {
            return Some(Begun::Full);
        }
        let entry = Entry { fingerprint: *fingerprint, outcome: None };
        self.entries.borrow_mut().insert(Arc::clone(name), entry);
        self.bytes.set(self.bytes.get() + bytes);
        None
    }

    /// Enters what came of a publish; `None`: nothing, and a repeat runs.
    pub fn conclude(&self, name: &Name, outcome: Option<Outcome>, bounds: &Bounds, now: Instant) {
        let mut entries = self.entries.borrow_mut();
        let Some(entry) = entries.get_mut(name).filter(|entry| entry.outcome.is_none()) else { return };
        let before = bytes_of(name, None);
        if let Some(outcome) = outcome {
            let after = bytes_of(name, Some(&outcome));
            entry.outcome = Some(outcome);
            self.bytes.set(self.bytes.get() + after - before);
            self.finished.borrow_mut().push_back((now, Arc::clone(name)));
        } else {
            entries.remove(name);
            self.bytes.set(self.bytes.get() - before);
        }
        drop(entries);
        self.make_room(bounds, 0, 0);
    }

    /// Drops what is older than `window`, some of it at a time.
    pub fn expire(&self, window: Duration, now: Instant) {
        for _ in 0..limits::LOOP_ITEMS_MAX {
            let is_over = |(at, _): &(Instant, Name)| now.saturating_duration_since(*at) >= window;
            if !self.finished.borrow().front().is_some_and(is_over) {
                return;
            }
            self.drop_oldest();
        }
    }

    /// Drops the oldest of those that have finished until there is room for so much more.
    fn make_room(&self, bounds: &Bounds, keys: usize, bytes: usize) {
        let is_over = || self.len() + keys > bounds.keys_max || self.bytes.get() + bytes > bounds.bytes_max;
        while is_over() && self.drop_oldest() {
            self.forgotten.set(self.forgotten.get() + 1);
        }
    }

    fn drop_oldest(&self) -> bool {
        let Some((_, name)) = self.finished.borrow_mut().pop_front() else { return false };
        if let Some(entry) = self.entries.borrow_mut().remove(&name) {
            self.bytes.set(self.bytes.get() - bytes_of(&name, entry.outcome.as_ref()));
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_secs(600);
    const BOUNDS: Bounds = Bounds { keys_max: 3, bytes_max: 10_000, window: WINDOW };
    const PRINT: Fingerprint = [7; 32];

    fn name(text: &str) -> Name {
        text.as_bytes().into()
    }

    fn done(bytes: usize) -> Outcome {
        Outcome::Done { status: 201, lines: vec![b'x'; bytes].into() }
    }

    fn run(kept: &Kept, text: &str, now: Instant) {
        assert!(kept.begin(&name(text), &PRINT, &BOUNDS, now).is_none(), "{text} is new");
        kept.conclude(&name(text), Some(done(10)), &BOUNDS, now);
    }

    #[test]
    fn a_name_is_new_running_finished_other() {
        let (kept, now) = (Kept::default(), Instant::now());
        let begin = |print: &Fingerprint| kept.begin(&name("a"), print, &BOUNDS, now);
        assert!(begin(&PRINT).is_none());
        assert!(matches!(begin(&PRINT), Some(Begun::Running)));
        assert!(matches!(begin(&[8; 32]), Some(Begun::Other)));
        kept.conclude(&name("a"), None, &BOUNDS, now);
        assert!(kept.is_empty() && kept.bytes.get() == 0, "what stored nothing is forgotten");
        assert!(begin(&PRINT).is_none());
        kept.conclude(&name("a"), Some(done(10)), &BOUNDS, now);
        assert!(matches!(begin(&PRINT), Some(Begun::Finished(outcome)) if outcome == done(10)));
        assert!(matches!(begin(&[8; 32]), Some(Begun::Other)));
        kept.conclude(&name("a"), None, &BOUNDS, now);
        assert_eq!(kept.len(), 1, "it has an outcome already");
    }

    #[test]
    fn the_oldest_finished_goes_first_and_what_runs_stays() {
        let (kept, now) = (Kept::default(), Instant::now());
        assert!(kept.begin(&name("runs"), &PRINT, &BOUNDS, now).is_none());
        for text in ["a", "b", "c"] {
            run(&kept, text, now);
        }
        assert_eq!((kept.len(), kept.take_forgotten(), kept.take_forgotten()), (3, 1, 0));
        assert!(matches!(kept.begin(&name("b"), &PRINT, &BOUNDS, now), Some(Begun::Finished(_))));
        assert!(kept.begin(&name("a"), &PRINT, &BOUNDS, now).is_none(), "the oldest, which is run again");
        assert!(matches!(kept.begin(&name("runs"), &PRINT, &BOUNDS, now), Some(Begun::Running)));
        assert!(kept.begin(&name("d"), &PRINT, &BOUNDS, now).is_none());
        assert!(matches!(kept.begin(&name("e"), &PRINT, &BOUNDS, now), Some(Begun::Full)), "all of them run");
    }

    #[test]
    fn bytes_are_bounded_too() {
        let bounds = Bounds { keys_max: 1_000, bytes_max: 5 * (ENTRY_BYTES + 100), window: WINDOW };
        let (kept, now) = (Kept::default(), Instant::now());
        for n in 0..100 {
            let name = name(&format!("{n}"));
            assert!(kept.begin(&name, &PRINT, &bounds, now).is_none());
            kept.conclude(&name, Some(done(90)), &bounds, now);
            assert!(kept.bytes.get() <= bounds.bytes_max);
        }
        assert_eq!(kept.len(), 5);
    }

    #[test]
    fn what_is_old_goes() {
        let (kept, now) = (Kept::default(), Instant::now());
        run(&kept, "a", now);
        run(&kept, "b", now + WINDOW / 2);
        kept.expire(WINDOW, now + WINDOW);
        assert_eq!((kept.len(), kept.take_forgotten()), (1, 0));
        assert!(kept.begin(&name("b"), &PRINT, &BOUNDS, now + 2 * WINDOW).is_none());
        kept.conclude(&name("b"), None, &BOUNDS, now);
        assert_eq!((kept.len(), kept.bytes.get()), (0, 0));
    }
}
