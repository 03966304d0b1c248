//! A timer that many polls look at and few set. Per core: the timer is glommio's, which registers anew with each poll.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use glommio::timer::Timer;

/// Wakes the task that polled it first, which therefore has to be the one that polls it later.
#[derive(Debug)]
pub struct Alarm {
    due: Instant,
    /// Set with the first poll.
    timer: Option<Timer>,
}

impl Alarm {
    pub fn after(delay: Duration) -> Self {
        Self { due: Instant::now() + delay, timer: None }
    }

    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let left = self.due.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Poll::Ready(());
        }
        if self.timer.is_none() {
            let timer = self.timer.insert(Timer::new(left));
            return Pin::new(timer).poll(cx).map(|_| ());
        }
        Poll::Pending
    }
}
