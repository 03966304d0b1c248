//! The bytes a core keeps for its groups: one bound for all of them, and none can take it from the others.
//!
//! A core may hold `bytes_max` of messages that are buffered or handed out. Over that, a group goes on only while it holds less than
//! its equal part: so slow readers of one group stop that group, and memory stays below twice the bound. Per core.

use std::{cell::Cell, rc::Rc};

/// See the module text.
#[derive(Debug)]
pub struct Budget {
    bytes_max: usize,
    held: Cell<usize>,
    groups: Cell<usize>,
}

impl Budget {
    pub fn new(bytes_max: usize) -> Rc<Self> {
        Rc::new(Self { bytes_max, held: Cell::new(0), groups: Cell::new(0) })
    }

    /// Bytes held now, by all groups.
    pub fn held(&self) -> usize {
        self.held.get()
    }

    /// What a group that is opened now may have fetched ahead of its clients, outside this budget: its equal part of as much again, and
    /// `max` at most.
    pub fn ahead_kbytes(&self, max: usize) -> usize {
        const LEAST: usize = 256;
        (self.bytes_max / 1024 / self.groups.get().max(1)).clamp(LEAST.min(max), max)
    }

    pub(super) fn enter(&self) {
        self.groups.set(self.groups.get() + 1);
    }

    pub(super) fn leave(&self) {
        self.groups.set(self.groups.get() - 1);
    }

    /// Whether a group that holds so many bytes may take more. One that holds nothing always may: a message larger than its part
    /// must not stop it.
    pub(super) fn has_room(&self, group_bytes: usize) -> bool {
        group_bytes == 0 || self.held.get() < self.bytes_max || group_bytes < self.bytes_max / self.groups.get().max(1)
    }
}

/// What one partition holds of the budget; given up when dropped.
#[derive(Debug)]
pub(super) struct Share {
    budget: Rc<Budget>,
    bytes: usize,
}

impl Share {
    pub fn new(budget: &Rc<Budget>) -> Self {
        Self { budget: Rc::clone(budget), bytes: 0 }
    }

    pub fn set(&mut self, bytes: usize) {
        self.budget.held.set(self.budget.held.get() + bytes - self.bytes);
        self.bytes = bytes;
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget.held.set(self.budget.held.get() - self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn over_the_bound_each_group_still_has_its_part() {
        let budget = Budget::new(100);
        (0..4).for_each(|_| budget.enter());
        let (mut greedy, mut modest) = (Share::new(&budget), Share::new(&budget));
        greedy.set(100);
        assert!(!budget.has_room(100) && budget.has_room(24) && budget.has_room(0));
        modest.set(25);
        assert!(!budget.has_room(25));
        drop(greedy);
        assert!(budget.has_room(25));
        assert_eq!(budget.held(), 25);
    }
}
