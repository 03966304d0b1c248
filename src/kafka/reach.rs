//! Whether the cluster can be reached, as far as this core knows.
//!
//! Invariants: anything a broker answered is proof; silence is looked into (a probe in the offload pool) after an error or when
//! nothing was heard for a while; nobody waits for it. Per core. It knows no requests; the probe itself is `admin`'s.

use std::{
    cell::Cell,
    time::{Duration, Instant},
};

/// How often a cluster that does not answer is asked.
const PROBE_DOWN: Duration = Duration::from_secs(1);

/// See the module text.
#[derive(Debug)]
pub struct Reach {
    is_up: Cell<bool>,
    heard_at: Cell<Option<Instant>>,
    /// How long silence is taken for health.
    quiet_max: Duration,
    /// Shared by all clients of the core: a thousand groups that lost the same brokers are one line.
    pub log: LogLimit,
}

impl Reach {
    pub fn new(quiet_max: Duration) -> Self {
        Self { is_up: Cell::new(false), heard_at: Cell::new(None), quiet_max, log: LogLimit::default() }
    }

    pub fn is_up(&self) -> bool {
        self.is_up.get()
    }

    /// A broker answered.
    pub fn heard(&self, now: Instant) {
        self.heard_at.set(Some(now));
        if !self.is_up.replace(true) {
            tracing::info!("the Kafka cluster answers");
        }
    }

    /// A client lost all its brokers, or a probe had no answer.
    pub fn missed(&self) {
        if self.is_up.replace(false) {
            tracing::warn!("the Kafka cluster does not answer");
        }
    }

    /// How long the prober may sleep.
    pub fn next_probe_in(&self, now: Instant) -> Duration {
        match self.heard_at.get() {
            _ if !self.is_up.get() => PROBE_DOWN,
            Some(heard) => self.quiet_max.saturating_sub(now.saturating_duration_since(heard)),
            None => Duration::ZERO,
        }
    }
}

/// Lets one line a second through, with the number of those held back.
#[derive(Default, Debug)]
pub struct LogLimit {
    last: Cell<Option<Instant>>,
    held: Cell<u64>,
}

impl LogLimit {
    /// `Some(n)` when this line may be logged and `n` before it were not.
    pub fn pass(&self, now: Instant) -> Option<u64> {
        if self.last.get().is_some_and(|last| now.saturating_duration_since(last) < Duration::from_secs(1)) {
            self.held.set(self.held.get() + 1);
            return None;
        }
        self.last.set(Some(now));
        Some(self.held.replace(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_probed_and_answers_postpone_it() {
        let reach = Reach::new(Duration::from_secs(10));
        let start = Instant::now();
        assert_eq!(reach.next_probe_in(start), PROBE_DOWN);
        reach.heard(start);
        assert!(reach.is_up());
        assert_eq!(reach.next_probe_in(start + Duration::from_secs(4)), Duration::from_secs(6));
        reach.missed();
        assert_eq!(reach.next_probe_in(start), PROBE_DOWN);
    }

    #[test]
    fn one_line_a_second() {
        let limit = LogLimit::default();
        let start = Instant::now();
        assert_eq!(limit.pass(start), Some(0));
        assert_eq!(limit.pass(start), None);
        assert_eq!(limit.pass(start + Duration::from_millis(1001)), Some(1));
    }
}
