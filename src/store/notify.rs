//! A bell within one core: many tasks wait, one call rings.
//!
//! Per core (`!Send`). Like a condition variable without a lock: whoever is rung looks at the state again. A ring before
//! anybody waits is remembered once, so the order "look, then wait" cannot miss a change made between the two on another
//! task's turn.

use std::{
    cell::{Cell, RefCell},
    future::Future,
    pin::Pin,
    task::{Context, Poll, Waker},
};

/// See the module text.
#[derive(Default, Debug)]
pub struct Notify {
    generation: Cell<u64>,
    waiting: RefCell<Vec<Waker>>,
}

impl Notify {
    /// Wakes everybody who waits.
    pub fn ring(&self) {
        self.generation.set(self.generation.get().wrapping_add(1));
        let waiting = std::mem::take(&mut *self.waiting.borrow_mut());
        for waker in waiting {
            waker.wake();
        }
    }

    /// Resolves at the first ring after this call (not after the first poll).
    pub fn wait(&self) -> Wait<'_> {
        Wait { notify: self, seen: self.generation.get() }
    }
}

/// Future of [`Notify::wait`].
#[derive(Debug)]
pub struct Wait<'a> {
    notify: &'a Notify,
    seen: u64,
}

impl Future for Wait<'_> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.notify.generation.get() != self.seen {
            return Poll::Ready(());
        }
        let mut waiting = self.notify.waiting.borrow_mut();
        if !waiting.iter().any(|w| w.will_wake(cx.waker())) {
            waiting.push(cx.waker().clone());
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_between_wait_and_poll_is_seen() {
        let notify = Notify::default();
        let wait = notify.wait();
        notify.ring();
        futures_lite::future::block_on(wait);
    }
}
