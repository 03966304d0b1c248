//! Heavy hitters among names that clients make up, in bounded memory (Space-Saving).
//!
//! So many counters and no more: a new name takes the place of the smallest, and its count begins there. So a count is never too
//! low, it is too high by at most what stands beside it, and a name with more than `1 / HITTERS_MAX` of the whole is in the
//! table for sure. As long as there are fewer names than counters all counts are exact.

use std::{cell::RefCell, collections::HashMap};

/// Counters of one table.
pub const HITTERS_MAX: usize = 256;

/// Per core.
#[derive(Debug, Default)]
pub struct Hitters {
    by_name: RefCell<HashMap<Box<str>, Hits, ahash::RandomState>>,
}

/// One name's count.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Hits {
    pub count: u64,
    /// Of these, what may be others'.
    pub others_max: u64,
}

impl Hitters {
    pub fn add(&self, name: &str, n: u64) {
        let mut by_name = self.by_name.borrow_mut();
        if let Some(hits) = by_name.get_mut(name) {
            hits.count = hits.count.saturating_add(n);
            return;
        }
        let mut others_max = 0;
        if by_name.len() >= HITTERS_MAX {
            let smallest = by_name.iter().min_by_key(|(_, hits)| hits.count).map(|(name, hits)| (name.clone(), *hits));
            if let Some((name, hits)) = smallest {
                by_name.remove(&name);
                others_max = hits.count;
            }
        }
        by_name.insert(name.into(), Hits { count: others_max.saturating_add(n), others_max });
    }

    /// Every name in the table.
    pub fn list(&self) -> Vec<(Box<str>, Hits)> {
        self.by_name.borrow().iter().map(|(name, hits)| (name.clone(), *hits)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_names_are_counted_exactly() {
        let hitters = Hitters::default();
        for round in 1..=3 {
            for n in 0..HITTERS_MAX {
                hitters.add(&format!("app{n}"), round * n as u64);
            }
        }
        let list = hitters.list();
        assert_eq!(list.len(), HITTERS_MAX);
        for (name, hits) in list {
            let n: u64 = name[3..].parse().expect("a number");
            assert_eq!(hits, Hits { count: 6 * n, others_max: 0 });
        }
    }

    #[test]
    fn the_heavy_ones_are_found_among_many() {
        let hitters = Hitters::default();
        for n in 0..20_000 {
            hitters.add(&format!("made-up-{n}"), 1);
            hitters.add("heavy", 1);
        }
        let list = hitters.list();
        assert_eq!(list.len(), HITTERS_MAX);
        let (_, heavy) = list.iter().find(|(name, _)| &**name == "heavy").expect("it has half of all");
        assert!(heavy.count >= 20_000 && heavy.count - heavy.others_max <= 20_000, "{heavy:?}");
        // No count is above what all names together had per counter, but the heavy one's.
        assert!(list.iter().all(|(name, hits)| &**name == "heavy" || hits.count <= 40_000 / HITTERS_MAX as u64));
    }
}
