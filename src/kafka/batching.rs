//! When a broker's thread of librdkafka sends what it has: a linger after the first record, to the microsecond; the linger by how many
//! records wait for their reports.
//!
//! ```text
//!   record --> librdkafka --(thread wakes, finds the first record too young, sleeps on)
//!     \--> nudge due a linger later --------------------------> thread wakes again, sends all that came meanwhile
//! ```
//!
//! librdkafka counts a thread's sleep in whole milliseconds: whatever its `linger.ms`, a batch that no later record pushes out waits up to
//! a millisecond more, and clients that wait for their answers send no later record. So a lone publish took 1.4 ms, and 64 connections
//! reached 35k/s where 51k/s are possible (`perf/results`, batching). With linger 0 each record is nearly its own request. A nudge is
//! `rd_kafka_flush` with no time: it wakes the threads and waits for nothing. While records keep coming none is needed as a rule: one that
//! finds an older one of its partition past its linger wakes the thread.
//!
//! A record with no other under way, if that was so for the one before it too, is sent at once: nobody would join it but by chance, and
//! the thread that its coming wakes sends it, without a nudge. (The first after a batch has come back is not alone for long.) From
//! [`MANY`] on the linger doubles: what is under way anyway hides it, and larger batches save both sides CPU (`perf/results`, compare).
//! Between the two it is `kafka.linger_us`: for few clients that all wait, a longer one is idle time.
//!
//! Invariant: after the last record given to librdkafka that was not alone there is a nudge a linger later, if its report has not come
//! by then (two, if the linger has just fallen); while records keep coming there is one each [`FLOWING_MAX`] lingers, for a broker that
//! they do not go to. Per core.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use super::native::Linger;

/// Records without a report from which on they linger twice as long: more than 16 connections ever have, less than a loaded core has.
const MANY: u64 = 24;

/// librdkafka's clock begins when it takes the record, a little after ours; a nudge that came too early would be in vain.
const MARGIN: Duration = Duration::from_micros(5);

/// Lingers for which records that keep coming put a nudge off.
const FLOWING_MAX: u32 = 4;

/// When the next nudge is due.
#[derive(Debug)]
pub(super) struct Nudge {
    /// `kafka.linger_us`; 0: the threads wait for nothing, and there are no nudges.
    base: Duration,
    linger: Cell<Duration>,
    /// Of the record before.
    was_alone: Cell<bool>,
    /// What the client's threads obey.
    obeyed: Arc<Linger>,
    /// When the first record was sent that no nudge has followed, and the last.
    sent: Cell<Option<(Instant, Instant)>>,
    /// Of the task that nudges.
    waker: RefCell<Option<Waker>>,
}

impl Nudge {
    pub fn new(base: Duration, obeyed: Arc<Linger>) -> Self {
        obeyed.set(base);
        Self {
            base,
            linger: Cell::new(base),
            was_alone: Cell::new(true),
            obeyed,
            sent: Cell::new(None),
            waker: RefCell::default(),
        }
    }

    /// A record is about to be given to librdkafka, and `waiting` with it will be without a report.
    pub fn fit(&self, waiting: u64) {
        let is_alone = waiting <= 1;
        let was_alone = self.was_alone.replace(is_alone);
        let linger = if was_alone && is_alone && self.obeyed.is_obeyed() {
            Duration::ZERO
        } else if waiting < MANY {
            self.base
        } else {
            2 * self.base
        };
        if self.linger.replace(linger) != linger {
            self.obeyed.set(linger);
        }
    }

    /// The record was given to librdkafka.
    pub fn sent(&self, now: Instant) {
        if self.linger.get().is_zero() {
            return;
        }
        let first = self.sent.get().map(|(first, _)| first);
        self.sent.set(Some((first.unwrap_or(now), now)));
        if first.is_none()
            && let Some(waker) = self.waker.borrow_mut().take()
        {
            waker.wake();
        }
    }

    /// Resolves when a nudge is due. Awaited by one task; dropped, it is still due.
    pub async fn due(&self) {
        loop {
            let (first, last) = poll_fn(|cx| self.poll_sent(cx)).await;
            // A lone record that followed has set it to 0, and is sent without us.
            let linger = self.linger.get().max(self.base);
            let due = (last + linger).min(first + linger * FLOWING_MAX) + MARGIN;
            let left = due.saturating_duration_since(Instant::now());
            if left.is_zero() {
                // What is younger than its linger stays behind, for the next nudge.
                let is_left = last + linger > Instant::now();
                self.sent.set(is_left.then_some((last, last)));
                return;
            }
            glommio::timer::sleep(left).await;
        }
    }

    fn poll_sent(&self, cx: &Context<'_>) -> Poll<(Instant, Instant)> {
        if let Some(sent) = self.sent.get() {
            return Poll::Ready(sent);
        }
        let mut waker = self.waker.borrow_mut();
        if !waker.as_ref().is_some_and(|known| known.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use futures_lite::future::{block_on, poll_once};

    use super::*;

    const LINGER: Duration = Duration::from_secs(1);

    fn nudge(base: Duration) -> Nudge {
        let linger = Arc::new(Linger::default());
        linger.obey();
        let nudge = Nudge::new(base, linger);
        nudge.fit(2);
        nudge
    }

    fn ago(lingers: f64) -> Instant {
        Instant::now().checked_sub(LINGER.mul_f64(lingers)).expect("the clock is older than some seconds")
    }

    fn is_due(nudge: &Nudge) -> bool {
        block_on(poll_once(nudge.due())).is_some()
    }

    #[test]
    fn one_nudge_follows_the_last_of_several_records() {
        let nudge = nudge(LINGER);
        assert!(!is_due(&nudge), "nothing was sent");
        nudge.sent(ago(1.5));
        nudge.sent(ago(1.1));
        assert!(is_due(&nudge));
        assert!(!is_due(&nudge), "both have lingered");
    }

    #[test]
    fn records_that_keep_coming_put_it_off_for_a_while() {
        let nudge = nudge(LINGER);
        nudge.sent(ago(4.5));
        nudge.sent(ago(0.5));
        assert!(is_due(&nudge), "the first has waited long enough");
        assert_eq!(nudge.sent.get().map(|(first, last)| first == last), Some(true), "the last has not lingered");
    }

    #[test]
    fn the_linger_fits_what_is_under_way() {
        let nudge = nudge(LINGER);
        let after_a_batch = (1, LINGER);
        for (waiting, linger) in
            [(MANY - 1, LINGER), (MANY, 2 * LINGER), after_a_batch, (1, Duration::ZERO), (2, LINGER), after_a_batch]
        {
            nudge.fit(waiting);
            assert_eq!(nudge.linger.get(), linger, "{waiting} under way");
        }
        nudge.fit(1);
        nudge.sent(ago(9.0));
        assert!(!is_due(&nudge), "a lone record is sent without a nudge");
    }

    #[test]
    fn without_linger_there_is_nothing_to_wait_for() {
        let nudge = nudge(Duration::ZERO);
        nudge.fit(MANY);
        nudge.sent(ago(1.0));
        assert!(!is_due(&nudge));
    }
}
