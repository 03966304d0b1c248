//! When the next request is to be sent: at once (closed loop), or at its time on a fixed schedule (open loop).
//!
//! Invariants: the n-th request of an open loop is due at start + n * interval, whatever the answers do; when nobody is free to send
//! it, it waits in line and keeps its time, so that latency counts the waiting (no coordinated omission); none is left out. Per
//! thread.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    io,
    time::{Duration, Instant},
};

use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};
use tokio::{
    io::unix::AsyncFd,
    sync::{Notify, oneshot},
};

/// Whether a request may go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Turn {
    /// With the time it was meant to go.
    Now(Instant),
    Later,
    /// There are no more.
    Over,
}

/// See the module text.
#[derive(Debug)]
pub struct Pacer {
    start: Instant,
    end: Cell<Instant>,
    /// `None`: closed loop.
    interval: Option<Duration>,
    taken: Cell<u64>,
    line_max: Cell<u64>,
    waiting: RefCell<VecDeque<oneshot::Sender<Instant>>>,
    joined: Notify,
}

impl Pacer {
    /// `rate` is this thread's share, in requests a second; 0 is a closed loop.
    pub fn new(start: Instant, end: Instant, rate: f64) -> Self {
        Self {
            start,
            end: Cell::new(end),
            interval: (rate > 0.0).then(|| Duration::from_secs_f64(1.0 / rate)),
            taken: Cell::new(0),
            line_max: Cell::new(0),
            waiting: RefCell::default(),
            joined: Notify::new(),
        }
    }

    pub fn is_open_loop(&self) -> bool {
        self.interval.is_some()
    }

    /// The longest line of requests that were due and not sent.
    pub fn line_max(&self) -> u64 {
        self.line_max.get()
    }

    /// Whether there are no more turns.
    pub fn is_over(&self) -> bool {
        let next = self.interval.map_or_else(Instant::now, |interval| self.due(interval));
        next >= self.end.get()
    }

    /// No more requests from now on.
    pub fn stop(&self) {
        self.end.set(Instant::now().min(self.end.get()));
        self.waiting.borrow_mut().clear();
        self.joined.notify_one();
    }

    /// A turn, if there is one at once.
    pub fn try_turn(&self, now: Instant) -> Turn {
        let Some(interval) = self.interval else {
            return if now < self.end.get() { Turn::Now(now) } else { Turn::Over };
        };
        let due = self.due(interval);
        if due >= self.end.get() {
            return Turn::Over;
        }
        // Who waits already goes first.
        if due > now || !self.waiting.borrow().is_empty() {
            return Turn::Later;
        }
        let in_line = now.saturating_duration_since(due).as_nanos() / interval.as_nanos().max(1);
        self.line_max.set(self.line_max.get().max(u64::try_from(in_line).unwrap_or(u64::MAX)));
        self.taken.set(self.taken.get() + 1);
        Turn::Now(due)
    }

    /// Waits for a turn; `None` when there are no more. Dropped before it is ready it takes none.
    pub async fn turn(&self) -> Option<Instant> {
        match self.try_turn(Instant::now()) {
            Turn::Now(due) => return Some(due),
            Turn::Over => return None,
            Turn::Later => {}
        }
        let (give, given) = oneshot::channel();
        self.waiting.borrow_mut().push_back(give);
        self.joined.notify_one();
        given.await.ok()
    }

    /// Gives turns out as they come due, with how late each was given. Runs as long as there are any.
    pub async fn run(&self, mut late: impl FnMut(Duration)) -> io::Result<()> {
        let Some(interval) = self.interval else { return Ok(()) };
        let timer = Timer::new()?;
        while self.due(interval) < self.end.get() {
            if self.waiting.borrow().is_empty() {
                let left = self.end.get().saturating_duration_since(Instant::now());
                // Nobody is free: whoever becomes free takes its turn itself.
                let _ = tokio::time::timeout(left, self.joined.notified()).await;
                if left.is_zero() {
                    break;
                }
                continue;
            }
            let due = self.due(interval);
            let now = Instant::now();
            if due > now {
                timer.sleep(due - now).await?;
                continue;
            }
            let first = self.waiting.borrow_mut().pop_front();
            // Who has gone away leaves the turn to the next.
            if first.is_some_and(|give| give.send(due).is_ok()) {
                self.taken.set(self.taken.get() + 1);
                late(now - due);
            }
        }
        self.waiting.borrow_mut().clear();
        Ok(())
    }

    fn due(&self, interval: Duration) -> Instant {
        self.start + nth(interval, self.taken.get())
    }
}

/// `interval * n`, exact to the nanosecond of the interval.
fn nth(interval: Duration, n: u64) -> Duration {
    let nanos = interval.as_nanos().saturating_mul(u128::from(n));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

/// Sleeps to the microsecond; the runtime's own timer counts milliseconds.
struct Timer(AsyncFd<rustix::fd::OwnedFd>);

impl Timer {
    #[allow(unsafe_code)] // the runtime has no safe face for a descriptor of ours
    fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = rustix::time::timerfd_create(TimerfdClockId::Monotonic, flags)?;
        // SAFETY: the descriptor is owned by what is registered, and closed with it, not before.
        let registered = unsafe { AsyncFd::register(timer) };
        registered.map(Self).map_err(Into::into)
    }

    async fn sleep(&self, time: Duration) -> io::Result<()> {
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        let nanos = time.as_nanos().max(1);
        let value = Timespec {
            tv_sec: i64::try_from(nanos / 1_000_000_000).unwrap_or(i64::MAX),
            tv_nsec: i64::try_from(nanos % 1_000_000_000).unwrap_or(0),
        };
        let spec = Itimerspec { it_interval: zero, it_value: value };
        rustix::time::timerfd_settime(self.0.get_ref(), TimerfdTimerFlags::empty(), &spec)?;
        let mut ready = self.0.readable().await?;
        // The next arming resets the count of expirations; nothing has to be read.
        ready.clear_ready();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: f64 = 1_000.0;

    #[test]
    fn who_is_late_takes_the_times_that_were_meant() {
        let start = Instant::now();
        let pacer = Pacer::new(start, start + Duration::from_secs(60), RATE);
        let now = pacer.start + Duration::from_millis(50);
        for n in 0..=50 {
            assert_eq!(pacer.try_turn(now), Turn::Now(pacer.start + Duration::from_millis(n)), "none is left out");
        }
        assert_eq!(pacer.try_turn(now), Turn::Later);
        assert_eq!(pacer.line_max(), 50);
    }

    #[test]
    fn a_closed_loop_ends_and_knows_no_line() {
        let start = Instant::now();
        let pacer = Pacer::new(start, start + Duration::from_secs(1), 0.0);
        assert_eq!(pacer.try_turn(start), Turn::Now(start));
        assert_eq!(pacer.try_turn(start + Duration::from_secs(1)), Turn::Over);
        assert_eq!(pacer.line_max(), 0);
    }

    #[test]
    fn turns_are_given_in_order_at_their_times() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let start = Instant::now();
            let pacer = Pacer::new(start, start + Duration::from_millis(50), RATE);
            let mut late = Vec::new();
            let taking = async {
                let mut turns = Vec::new();
                while let Some(due) = pacer.turn().await {
                    assert!(Instant::now() >= due, "not before its time");
                    turns.push(due - start);
                }
                turns
            };
            let (ran, turns) = tokio::join!(pacer.run(|by| late.push(by)), taking);
            ran.expect("timers work");
            assert_eq!(turns, (0..50).map(Duration::from_millis).collect::<Vec<_>>());
        });
    }

    #[test]
    fn who_goes_away_leaves_its_turn() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let start = Instant::now() + Duration::from_millis(20);
            let pacer = Pacer::new(start, start + Duration::from_millis(2), RATE);
            let gone = tokio::time::timeout(Duration::from_millis(1), pacer.turn()).await;
            assert!(gone.is_err(), "it went before its turn came");
            let taking = async { [pacer.turn().await, pacer.turn().await, pacer.turn().await] };
            let (_, turns) = tokio::join!(pacer.run(|_| ()), taking);
            assert_eq!(turns, [Some(start), Some(start + Duration::from_millis(1)), None]);
        });
    }
}
