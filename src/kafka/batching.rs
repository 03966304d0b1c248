//! When a broker's thread of librdkafka sends what it has: `kafka.linger_us` after the first record, to the microsecond.
//!
//! ```text
//!   record --> librdkafka --(thread wakes, finds the first record too young, sleeps on)
//!     \--> nudge due in linger_us ----------------------------> thread wakes again, sends all that came meanwhile
//! ```
//!
//! librdkafka counts a thread's sleep in whole milliseconds: whatever its `linger.ms`, a batch that no later record pushes out waits up to
//! a millisecond more, and clients that wait for their answers send no later record. So a lone publish took 1.4 ms, and 64 connections
//! reached 35k/s where 58k/s are possible at the same CPU (`perf/results`, batching). With linger 0 each record is its own request. A
//! nudge is `rd_kafka_flush` with no time: it wakes the threads and waits for nothing.
//!
//! Invariant: a record given to librdkafka is followed by a nudge that is at least a linger later, if its report has not come by then.
//! Per core.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    task::{Poll, Waker},
    time::{Duration, Instant},
};

/// librdkafka's clock begins when it takes the record, a little after ours; a nudge that came too early would be in vain.
const MARGIN: Duration = Duration::from_micros(5);

/// When the next nudge is due.
#[derive(Debug)]
pub(super) struct Nudge {
    linger: Duration,
    due: Cell<Option<Instant>>,
    /// Of the task that nudges.
    waker: RefCell<Option<Waker>>,
}

impl Nudge {
    /// `linger` as the client's `linger.ms` has it; none if that is 0: then its threads wait for nothing.
    pub fn new(linger: Duration) -> Self {
        Self { linger, due: Cell::new(None), waker: RefCell::default() }
    }

    /// A record was given to librdkafka.
    pub fn sent(&self, now: Instant) {
        if self.due.get().is_none() && !self.linger.is_zero() {
            self.due.set(Some(now + self.linger + MARGIN));
            if let Some(waker) = self.waker.borrow_mut().take() {
                waker.wake();
            }
        }
    }

    /// Resolves when a nudge is due. Awaited by one task; dropped, it is still due.
    pub async fn due(&self) {
        let due = poll_fn(|cx| {
            if let Some(due) = self.due.get() {
                return Poll::Ready(due);
            }
            let mut waker = self.waker.borrow_mut();
            if !waker.as_ref().is_some_and(|known| known.will_wake(cx.waker())) {
                *waker = Some(cx.waker().clone());
            }
            Poll::Pending
        });
        let left = due.await.saturating_duration_since(Instant::now());
        if !left.is_zero() {
            glommio::timer::sleep(left).await;
        }
        self.due.set(None);
    }
}

#[cfg(test)]
mod tests {
    use futures_lite::future::{block_on, poll_once};

    use super::*;

    #[test]
    fn one_nudge_is_due_after_the_first_of_several_records() {
        let nudge = Nudge::new(Duration::from_micros(100));
        assert_eq!(block_on(poll_once(nudge.due())), None, "nothing was sent");
        let first = Instant::now().checked_sub(Duration::from_secs(1)).expect("the clock is older than a second");
        nudge.sent(first);
        nudge.sent(Instant::now());
        assert_eq!(block_on(poll_once(nudge.due())), Some(()));
        assert_eq!(block_on(poll_once(nudge.due())), None, "the second went with the first");
    }

    #[test]
    fn without_linger_there_is_nothing_to_wait_for() {
        let nudge = Nudge::new(Duration::ZERO);
        nudge.sent(Instant::now());
        assert_eq!(block_on(poll_once(nudge.due())), None);
    }
}
