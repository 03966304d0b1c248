//! How long a request body may still take: a floor under its rate, and a bound on the whole.
//!
//! ```text
//!   credit: http.body_grace_ms at first; each byte buys its time at http.body_bytes_per_s_min, up to half a minute ahead
//!   left:   http.body_timeout_ms in all, however fast it comes
//! ```
//!
//! So a slow but steady body is waited for, one that trickles is not, and nobody buys an hour of silence by a fast beginning.
//! Invariant: only reading costs; whoever does something else between two reads says so by [`Pace::resume`]. Times are ms of any
//! clock that the caller keeps to. Knows no socket.

use std::time::Duration;

use super::{Malformed, watch::Phase};
use crate::config::resolve::HttpConfig;

/// Silence that bytes can buy, however many.
const CREDIT_US_MAX: u64 = 30_000_000;

/// See the module text.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    credit_us: u64,
    left_us: u64,
    /// 0: no floor.
    bytes_per_s: u64,
    at_ms: u64,
}

impl Pace {
    pub fn new(config: &HttpConfig, now_ms: u64) -> Self {
        Self {
            credit_us: micros(config.body_grace),
            left_us: micros(config.body_timeout),
            bytes_per_s: config.body_bytes_per_s_min,
            at_ms: now_ms,
        }
    }

    /// No floor, only so long in all.
    pub fn within(limit: Duration, now_ms: u64) -> Self {
        Self { credit_us: 0, left_us: micros(limit), bytes_per_s: 0, at_ms: now_ms }
    }

    /// So many bytes came.
    pub fn got(&mut self, bytes: usize, now_ms: u64) {
        let spent_us = now_ms.saturating_sub(self.at_ms) * 1_000;
        self.at_ms = now_ms;
        self.left_us = self.left_us.saturating_sub(spent_us);
        if let Some(bought_us) = (bytes as u64).saturating_mul(1_000_000).checked_div(self.bytes_per_s) {
            let most_us = CREDIT_US_MAX.max(self.credit_us);
            self.credit_us = (self.credit_us.saturating_sub(spent_us) + bought_us).min(most_us);
        }
    }

    /// Reading goes on after a while that was not the client's.
    pub fn resume(&mut self, now_ms: u64) {
        self.at_ms = now_ms;
    }

    /// How long the next byte may take from when bytes came last, and what to say if it takes longer.
    fn next_us(&self) -> (u64, Malformed) {
        if self.bytes_per_s > 0 && self.credit_us < self.left_us {
            (self.credit_us, Malformed::BodyTooSlow)
        } else {
            (self.left_us, Malformed::BodyTimeout)
        }
    }

    /// For a sweeper: the phase, and how long it may take.
    pub fn phase(&self) -> (Phase, Duration) {
        let (us, cause) = self.next_us();
        let phase = if cause == Malformed::BodyTooSlow { Phase::BodyRate } else { Phase::Body };
        (phase, Duration::from_micros(us))
    }

    /// For a timer: how long from now, or what to say because that is over.
    pub fn left(&self, now_ms: u64) -> Result<Duration, Malformed> {
        let (us, cause) = self.next_us();
        let left_us = us.saturating_sub(now_ms.saturating_sub(self.at_ms) * 1_000);
        if left_us == 0 { Err(cause) } else { Ok(Duration::from_micros(left_us)) }
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pace() -> Pace {
        Pace { credit_us: 5_000_000, left_us: 600_000_000, bytes_per_s: 1_024, at_ms: 0 }
    }

    /// Feeds so many bytes each second; gives the second it was given up in, and why.
    fn feed(bytes_per_s: usize, seconds: u64) -> Option<(u64, Malformed)> {
        let mut pace = pace();
        for second in 1..=seconds {
            if let Err(cause) = pace.left(second * 1_000) {
                return Some((second, cause));
            }
            pace.got(bytes_per_s, second * 1_000);
        }
        None
    }

    #[test]
    fn a_steady_body_is_waited_for_until_the_end_of_patience() {
        assert_eq!(feed(1_100, 599), None);
        assert_eq!(feed(1_100, 700), Some((600, Malformed::BodyTimeout)));
        assert_eq!(feed(1_000_000, 700), Some((600, Malformed::BodyTimeout)));
    }

    #[test]
    fn a_trickle_is_given_up() {
        assert_eq!(feed(0, 10), Some((5, Malformed::BodyTooSlow)));
        assert_eq!(feed(1, 10), Some((6, Malformed::BodyTooSlow)));
        assert_eq!(feed(512, 60), Some((9, Malformed::BodyTooSlow)));
    }

    #[test]
    fn a_fast_beginning_buys_half_a_minute() {
        let mut pace = pace();
        pace.got(10_000_000, 100);
        assert!(pace.left(30_000).is_ok());
        assert_eq!(pace.left(30_100), Err(Malformed::BodyTooSlow));
        pace.resume(100_000);
        assert!(pace.left(120_000).is_ok(), "the time between was not the client's");
    }

    #[test]
    fn without_a_floor_only_the_whole_counts() {
        let mut pace = Pace::within(Duration::from_secs(2), 0);
        assert_eq!(pace.phase().0, Phase::Body);
        pace.got(1, 1_900);
        assert_eq!(pace.left(1_900), Ok(Duration::from_millis(100)));
        assert_eq!(pace.left(2_000), Err(Malformed::BodyTimeout));
    }
}
