//! What a connection is doing and until when: the coarse deadlines a core sweeps instead of arming a timer per read.
//!
//! Per core. A connection sets its phase, which costs two stores; the core's sweeper (in `shard`) compares deadlines with the
//! coarse clock and shuts the reading side of an overdue socket, whose reader then finds [`Watch::is_expired`].

use std::{
    cell::{Cell, RefCell},
    os::fd::OwnedFd,
    rc::Rc,
    task::{Context, Waker},
    time::{Duration, Instant},
};

/// What the connection waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// What comes before HTTP: a PROXY header, a TLS handshake.
    Preface,
    /// The next request; nothing of it has come.
    Idle,
    /// The rest of a head.
    Head,
    /// The rest of a body, whose time is nearly over.
    Body,
    /// The next bytes of a body, which come too slowly.
    BodyRate,
    /// The handler: no deadline here, handlers have their own.
    Handler,
    /// The client to take the answer.
    Write,
    /// A refused body to pass by.
    Discard,
    /// Any progress on an HTTP/2 connection with open requests.
    Stream,
    /// A request on an HTTP/2 connection that has none.
    StreamIdle,
    /// The rest of a head, or of another frame without a body, on an HTTP/2 connection.
    StreamHead,
    /// An HTTP/2 client to take its answers.
    StreamWrite,
}

/// The core's coarse clock, in ms since it started. Advanced by the core's tick.
#[derive(Clone, Debug)]
pub struct Clock {
    started: Instant,
    now_ms: Rc<Cell<u64>>,
}

impl Default for Clock {
    fn default() -> Self {
        Self { started: Instant::now(), now_ms: Rc::default() }
    }
}

impl Clock {
    pub fn now_ms(&self) -> u64 {
        self.now_ms.get()
    }

    pub fn advance(&self) {
        self.now_ms.set(u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX));
    }
}

/// What is to be done each so many ms of the coarse clock, or later where ticks are rarer.
#[derive(Debug)]
pub struct Every {
    period_ms: u64,
    next_ms: u64,
}

impl Every {
    pub fn ms(period_ms: u64) -> Self {
        Self { period_ms, next_ms: 0 }
    }

    pub fn is_due(&mut self, clock: &Clock) -> bool {
        let is_due = clock.now_ms() >= self.next_ms;
        if is_due {
            self.next_ms = clock.now_ms() + self.period_ms;
        }
        is_due
    }
}

/// What a connection has behind it that moves to another core.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lived {
    pub requests: u64,
    pub age: Duration,
}

/// One connection's deadline.
#[derive(Debug)]
pub struct Watch {
    pub socket: Rc<OwnedFd>,
    clock: Clock,
    phase: Cell<Phase>,
    deadline_ms: Cell<u64>,
    expired: Cell<bool>,
    opened_ms: Cell<u64>,
    /// Since when requests can come: what is before HTTP was over.
    ready_ms: Cell<u64>,
    /// Part of a TLS record has come.
    has_begun: Cell<bool>,
    /// Requests answered, or being answered.
    requests: Cell<u64>,
    /// Between 0 and 255: connections that were opened together do not grow old together.
    spread: u8,
    /// The deadline that [`Watch::unchanged_ms`] has seen, and since when.
    seen: Cell<(u64, u64)>,
    /// No further request is wanted; whoever waits for one looks once more and ends.
    closing: Cell<bool>,
    reader: RefCell<Option<Waker>>,
}

impl Watch {
    pub fn new(socket: Rc<OwnedFd>, clock: Clock, spread: u8) -> Self {
        Self {
            requests: Cell::new(0),
            spread,
            opened_ms: Cell::new(clock.now_ms()),
            ready_ms: Cell::new(clock.now_ms()),
            has_begun: Cell::new(false),
            seen: Cell::default(),
            closing: Cell::new(false),
            reader: RefCell::default(),
            socket,
            clock,
            phase: Cell::new(Phase::Idle),
            deadline_ms: Cell::new(u64::MAX),
            expired: Cell::new(false),
        }
    }

    /// The connection now waits for `phase`, at most `within` (`None`: as long as it takes).
    pub fn enter(&self, phase: Phase, within: Option<Duration>) {
        self.enter_until(phase, within.map_or(u64::MAX, |within| self.in_ms(within)));
    }

    /// The same, with a time of the coarse clock.
    pub fn enter_until(&self, phase: Phase, deadline_ms: u64) {
        if matches!(phase, Phase::Write | Phase::Discard) {
            // What tells a client of its deadline has one of its own.
            self.expired.set(false);
        }
        self.deadline_ms.set(deadline_ms);
        self.phase.set(phase);
    }

    /// When the coarse clock will have advanced by so much.
    pub fn in_ms(&self, within: Duration) -> u64 {
        self.now_ms().saturating_add(u64::try_from(within.as_millis()).unwrap_or(u64::MAX))
    }

    pub fn phase(&self) -> Phase {
        self.phase.get()
    }

    /// Marks the deadline as passed; true the first time.
    pub fn expire_if_overdue(&self) -> bool {
        let overdue = self.clock.now_ms() > self.deadline_ms.get() && !self.expired.get();
        if overdue {
            self.expired.set(true);
        }
        overdue
    }

    /// The core's coarse clock.
    pub fn now_ms(&self) -> u64 {
        self.clock.now_ms()
    }

    /// How long ago the connection was accepted.
    pub fn age_ms(&self) -> u64 {
        self.clock.now_ms().saturating_sub(self.opened_ms.get())
    }

    /// What is before HTTP is over: requests can come from now on.
    pub fn set_ready(&self) {
        self.ready_ms.set(self.clock.now_ms());
    }

    /// For how long requests could come.
    pub fn ready_for_ms(&self) -> u64 {
        self.clock.now_ms().saturating_sub(self.ready_ms.get())
    }

    pub fn lived(&self) -> Lived {
        Lived { requests: self.requests.get(), age: Duration::from_millis(self.age_ms()) }
    }

    /// The connection is not new: it goes on from where it was on another core.
    pub fn go_on(&self, lived: Lived) {
        let age_ms = u64::try_from(lived.age.as_millis()).unwrap_or(u64::MAX);
        self.opened_ms.set(self.clock.now_ms().saturating_sub(age_ms));
        self.requests.set(lived.requests);
    }

    /// Whether part of a TLS record has come, and with it part of a request, most likely.
    pub fn has_begun(&self) -> bool {
        self.has_begun.get()
    }

    pub fn set_begun(&self, has_begun: bool) {
        self.has_begun.set(has_begun);
    }

    /// Counts a request; true when it is the last one that the connection is to carry. `None`: no bound.
    pub fn count_request(&self, requests_max: Option<u64>, age_max: Option<Duration>) -> bool {
        let requests = self.requests.get() + 1;
        self.requests.set(requests);
        requests_max.is_some_and(|max| requests >= max) || self.time_left(age_max).is_some_and(|left| left.is_zero())
    }

    /// How long the connection may still be used: its age is at most `age_max`, and at least three quarters of it.
    pub fn time_left(&self, age_max: Option<Duration>) -> Option<Duration> {
        Some(self.own_age(age_max)?.saturating_sub(Duration::from_millis(self.age_ms())))
    }

    /// The part of `age_max` that is this connection's.
    pub fn own_age(&self, age_max: Option<Duration>) -> Option<Duration> {
        let age_max = age_max?;
        Some(age_max.saturating_sub(age_max / 4 * u32::from(self.spread) / 255))
    }

    /// How long it has been in its phase, as far as calls of this have seen: each phase has a deadline of its own.
    pub fn unchanged_ms(&self) -> u64 {
        let (deadline_ms, since_ms) = self.seen.get();
        if deadline_ms == self.deadline_ms.get() {
            return self.clock.now_ms().saturating_sub(since_ms);
        }
        self.seen.set((self.deadline_ms.get(), self.clock.now_ms()));
        0
    }

    /// Ends the wait for a next request.
    pub fn close_when_idle(&self) {
        self.closing.set(true);
        let reader = self.reader.borrow_mut().take();
        if let Some(reader) = reader {
            reader.wake();
        }
    }

    /// Whether the wait for a next request is to end now; else who waits is remembered.
    pub fn ends_idle(&self, cx: &Context<'_>) -> bool {
        let mut reader = self.reader.borrow_mut();
        if !reader.as_ref().is_some_and(|known| known.will_wake(cx.waker())) {
            *reader = Some(cx.waker().clone());
        }
        self.closing.get()
    }

    pub fn is_expired(&self) -> bool {
        self.expired.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watch(spread: u8) -> Watch {
        let socket = std::os::unix::net::UnixStream::pair().expect("a pair").0;
        Watch::new(Rc::new(socket.into()), Clock::default(), spread)
    }

    #[test]
    fn a_connection_has_its_requests_and_its_time() {
        let fresh = watch(0);
        assert!(!fresh.count_request(None, None) && !fresh.count_request(Some(3), None));
        assert!(fresh.count_request(Some(3), None) && fresh.count_request(Some(3), None), "the third, and later ones");
        let age_max = Some(Duration::from_secs(40));
        assert_eq!(fresh.time_left(age_max), age_max);
        assert_eq!(watch(255).time_left(age_max), Some(Duration::from_secs(30)));
        assert!(!fresh.count_request(None, age_max) && fresh.count_request(None, Some(Duration::ZERO)));
    }

    #[test]
    #[allow(clippy::disallowed_methods)] // A test is no core.
    fn a_moved_connection_is_no_new_one() {
        let (old, moved) = (watch(0), watch(0));
        assert!(!old.count_request(Some(3), None) && !old.count_request(Some(3), None));
        std::thread::sleep(Duration::from_millis(20));
        old.clock.advance();
        moved.clock.advance();
        moved.go_on(old.lived());
        assert!(moved.count_request(Some(3), None), "the third");
        assert!(moved.count_request(None, Some(Duration::from_millis(20))), "and it is as old as before");
        assert!(moved.age_ms() >= 20 && moved.age_ms() == old.age_ms());
    }
}
