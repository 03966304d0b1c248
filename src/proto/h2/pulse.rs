//! The deadlines of one HTTP/2 connection, which has many things to wait for at a time. Per core.

use std::{cell::Cell, rc::Rc, sync::Arc, time::Duration};

use crate::{
    config::resolve::HttpConfig,
    limits,
    metrics::ShardMetrics,
    proto::watch::{Phase, Watch},
};

/// Keeps a connection's deadline. While the socket takes nothing of what is written: the time to write. While answers stand in
/// windows that the client does not open: bytes of an answer must move within the longest wait an answer may have and the time to
/// write it, whatever else the client says. Else any byte must, within that time while requests are open (an endless answer has its
/// heartbeats) and within the idle time when none is. A head that was begun, or another frame without a body, must come to its end
/// within the time for heads, whatever moves meanwhile.
#[derive(Debug)]
pub(super) struct Pulse {
    pub(super) watch: Rc<Watch>,
    pub(super) metrics: Arc<ShardMetrics>,
    open: Cell<usize>,
    /// Pieces of answers that were given and not yet taken.
    owed: Cell<usize>,
    is_blocked: Cell<bool>,
    /// What is waited for, and until when, but for heads.
    waits: Cell<(Phase, u64)>,
    /// When the head that was begun must be over; `u64::MAX`: none was.
    head_until_ms: Cell<u64>,
    head: Duration,
    idle: Duration,
    busy: Duration,
    write: Duration,
}

impl Pulse {
    pub(super) fn new(watch: Rc<Watch>, config: &HttpConfig, metrics: Arc<ShardMetrics>) -> Rc<Self> {
        let busy = Duration::from_secs(limits::WAIT_S_MAX) + config.write_timeout;
        let (head, idle, write) = (config.head_timeout, config.idle_timeout, config.write_timeout);
        let (open, owed, is_blocked) = Default::default();
        let (waits, head_until_ms) = (Cell::new((Phase::StreamIdle, 0)), Cell::new(u64::MAX));
        let this = Self { watch, metrics, open, owed, is_blocked, waits, head_until_ms, head, idle, busy, write };
        this.beat();
        Rc::new(this)
    }

    fn beat(&self) {
        match (self.open.get(), self.owed.get()) {
            (0, _) => self.wait(Phase::StreamIdle, self.idle),
            (_, 0) => self.wait(Phase::Stream, self.busy),
            _ => self.wait(Phase::StreamWrite, self.busy),
        }
    }

    fn wait(&self, phase: Phase, within: Duration) {
        self.waits.set((phase, self.watch.in_ms(within)));
        self.set_watch();
    }

    fn set_watch(&self) {
        let (phase, until_ms) = self.waits.get();
        if self.head_until_ms.get() < until_ms {
            self.watch.enter_until(Phase::StreamHead, self.head_until_ms.get());
        } else {
            self.watch.enter_until(phase, until_ms);
        }
    }

    /// Bytes came; with them a frame may have been begun that is no body, and is not whole.
    pub(super) fn read(&self, is_cut_short: bool) {
        if !is_cut_short {
            self.head_until_ms.set(u64::MAX);
        } else if self.head_until_ms.get() == u64::MAX {
            self.head_until_ms.set(self.watch.in_ms(self.head));
        }
        self.look();
    }

    fn look(&self) {
        if self.owed.get() == 0 && !self.is_blocked.get() {
            self.beat();
        } else {
            self.set_watch();
        }
    }

    pub(super) fn wrote(&self) {
        if self.is_blocked.replace(false) || self.owed.get() == 0 {
            self.beat();
        }
    }

    /// The socket has all that was written.
    pub(super) fn flushed(&self) {
        if self.is_blocked.get() {
            self.wrote();
        }
    }

    /// The socket takes no more.
    pub(super) fn blocked(&self) {
        if !self.is_blocked.replace(true) {
            self.wait(Phase::StreamWrite, self.write);
        }
    }

    /// The socket takes nothing of what is written.
    pub(super) fn is_blocked(&self) -> bool {
        self.is_blocked.get()
    }

    /// Bytes of an answer went through its window.
    pub(super) fn moved(&self) {
        if !self.is_blocked.get() {
            self.beat();
        }
    }

    fn change(&self, open: usize) {
        self.open.set(open);
        self.look();
    }

    pub(super) fn owe(&self, pieces: isize) {
        let owed_before = self.owed.get();
        self.owed.set(owed_before.saturating_add_signed(pieces));
        if owed_before == 0 {
            self.moved();
        }
    }
}

/// One open request.
#[derive(Debug)]
pub(super) struct OpenRequest(pub(super) Rc<Pulse>);

impl OpenRequest {
    pub(super) fn new(pulse: &Rc<Pulse>) -> Self {
        pulse.change(pulse.open.get() + 1);
        Self(Rc::clone(pulse))
    }
}

impl Drop for OpenRequest {
    fn drop(&mut self) {
        self.0.change(self.0.open.get() - 1);
    }
}
