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

use slab::Slab;

/// See the module text.
#[derive(Default, Debug)]
pub struct Notify {
    generation: Cell<u64>,
    waiting: RefCell<Slab<Waker>>,
}

impl Notify {
    /// Wakes everybody who waits.
    pub fn ring(&self) {
        self.generation.set(self.generation.get().wrapping_add(1));
        let waiting = std::mem::take(&mut *self.waiting.borrow_mut());
        for (_, waker) in waiting {
            waker.wake();
        }
    }

    /// Resolves at the first ring after this call (not after the first poll).
    pub fn wait(&self) -> Wait<'_> {
        Wait { notify: self, seen: self.generation.get(), place: None }
    }
}

/// Lets so many through at a time; the others wait. In no order.
#[derive(Default, Debug)]
pub struct Gate {
    inside: Cell<usize>,
    left: Notify,
}

/// Whoever holds it is inside.
#[derive(Debug)]
pub struct Pass<'a>(&'a Gate);

impl Gate {
    pub async fn enter(&self, at_once: usize) -> Pass<'_> {
        while self.inside.get() >= at_once {
            self.left.wait().await;
        }
        self.inside.set(self.inside.get() + 1);
        Pass(self)
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        self.0.inside.set(self.0.inside.get() - 1);
        self.0.left.ring();
    }
}

/// Future of [`Notify::wait`]. Dropped, it leaves no trace.
#[derive(Debug)]
pub struct Wait<'a> {
    notify: &'a Notify,
    seen: u64,
    /// Where its waker is; void after a ring, which takes all of them.
    place: Option<usize>,
}

impl Future for Wait<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.notify.generation.get() != self.seen {
            return Poll::Ready(());
        }
        let mut waiting = self.notify.waiting.borrow_mut();
        if let Some(known) = self.place.and_then(|place| waiting.get_mut(place)) {
            known.clone_from(cx.waker());
        } else {
            let place = waiting.insert(cx.waker().clone());
            drop(waiting);
            self.place = Some(place);
        }
        Poll::Pending
    }
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        if let Some(place) = self.place
            && self.notify.generation.get() == self.seen
        {
            self.notify.waiting.borrow_mut().try_remove(place);
        }
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

    #[test]
    fn a_wait_that_is_dropped_leaves_no_waker() {
        let notify = Notify::default();
        for _ in 0..3 {
            let wait = notify.wait();
            assert_eq!(futures_lite::future::block_on(futures_lite::future::poll_once(wait)), None);
        }
        assert!(notify.waiting.borrow().is_empty());
    }
}
