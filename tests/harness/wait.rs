//! Waiting for a condition, with a deadline and a name.
//!
//! A test never sleeps for a guessed time: it says what it waits for and how long that may take. When the deadline
//! passes, the panic names the condition, which is most of the diagnosis.

use std::fmt::Display;
use std::time::{Duration, Instant};

/// How often a condition is looked at. Short against every latency tested here, long against the cost of looking.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Returns how long it took until `condition` held; panics with `what` when `limit` passed first.
#[track_caller]
pub fn wait_until(limit: Duration, what: impl Display, mut condition: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < limit, "waited {limit:?} in vain: {what}");
        std::thread::sleep(LOOK_EVERY);
    }
    start.elapsed()
}

/// Like [`wait_until`], for a condition that yields a value.
#[track_caller]
pub fn wait_for<T>(limit: Duration, what: impl Display, mut find: impl FnMut() -> Option<T>) -> T {
    let mut found = None;
    wait_until(limit, what, || {
        found = find();
        found.is_some()
    });
    found.expect("wait_until returns only after the condition held")
}
