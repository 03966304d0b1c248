//! What becomes of many records, told in the order in which they were handed over.
//!
//! ```text
//!   append --> [ place | place | place ] --settle(number)--> take: first to last, as far as they are settled
//! ```
//!
//! For who has many records under way and wants to hear of each in turn: one place in a line costs less than a future. Invariants: a place
//! is settled once, the first time counts; who waits is woken when the first place is settled, not for those behind it. Per core.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    task::{Context, Poll, Waker},
};

use super::{ProduceError, Stored};

/// What became of a record.
pub type Produced = Result<Stored, ProduceError>;

/// See the module text.
#[derive(Debug, Default)]
pub struct Line {
    /// `None`: not settled yet.
    places: RefCell<VecDeque<Option<Produced>>>,
    /// The number of the first place. Numbers wrap: what is told apart by them is far less than half of their range.
    first: Cell<u32>,
    waker: RefCell<Option<Waker>>,
    /// Nobody takes from it any more.
    is_closed: Cell<bool>,
}

impl Line {
    /// A place at the end. Gives its number.
    pub fn append(&self) -> u32 {
        let number = self.end();
        self.places.borrow_mut().push_back(None);
        number
    }

    /// A place at the end for what is known already.
    pub fn append_settled(&self, outcome: Produced) {
        let number = self.append();
        self.settle(number, outcome);
    }

    /// The number that the next place will have.
    pub fn end(&self) -> u32 {
        let count = u32::try_from(self.places.borrow().len()).expect("fewer are under way than numbers there are");
        self.first.get().wrapping_add(count)
    }

    /// Says what became of a record. `false`: that was said before.
    pub fn settle(&self, number: u32, outcome: Produced) -> bool {
        if self.is_closed.get() {
            return true;
        }
        // A place that is gone has a number far beyond the end.
        let at = number.wrapping_sub(self.first.get()) as usize;
        {
            let mut places = self.places.borrow_mut();
            let Some(place) = places.get_mut(at) else { return false };
            if place.is_some() {
                return false;
            }
            *place = Some(outcome);
        }
        if at == 0
            && let Some(waker) = self.waker.take()
        {
            waker.wake();
        }
        true
    }

    /// How many places there are before `end`.
    fn before(&self, end: u32) -> usize {
        let count = end.wrapping_sub(self.first.get()) as usize;
        if count > self.places.borrow().len() { 0 } else { count }
    }

    /// Settles every place before `end` that is not. Gives how many.
    pub fn settle_before(&self, end: u32, outcome: &Produced) -> u64 {
        let first = self.first.get();
        let numbers = (0..end.wrapping_sub(first)).take(self.before(end)).map(|step| first.wrapping_add(step));
        numbers.map(|number| u64::from(self.settle(number, outcome.clone()))).sum()
    }

    /// Whether all before `end` is settled.
    pub fn is_settled_before(&self, end: u32) -> bool {
        self.places.borrow().iter().take(self.before(end)).all(Option::is_some)
    }

    /// What became of the first; its place is gone with that.
    pub fn poll_take(&self, cx: &Context<'_>) -> Poll<Produced> {
        let mut places = self.places.borrow_mut();
        if let Some(Some(_)) = places.front()
            && let Some(Some(outcome)) = places.pop_front()
        {
            self.first.set(self.first.get().wrapping_add(1));
            return Poll::Ready(outcome);
        }
        let mut waker = self.waker.borrow_mut();
        if waker.as_ref().is_none_or(|kept| !kept.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    /// Nobody wants to hear of what is left.
    pub fn close(&self) {
        self.is_closed.set(true);
        self.places.take();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STORED: Produced = Ok(Stored { partition: 0, offset: 7 });
    const LATE: Produced = Err(ProduceError::Unknown { reason: "DEADLINE" });

    fn take(line: &Line) -> Option<Produced> {
        match line.poll_take(&Context::from_waker(Waker::noop())) {
            Poll::Ready(outcome) => Some(outcome),
            Poll::Pending => None,
        }
    }

    #[test]
    fn is_told_in_order() {
        let line = Line::default();
        let numbers = [line.append(), line.append(), line.append()];
        assert!(line.settle(numbers[2], STORED) && line.settle(numbers[1], LATE));
        assert_eq!(take(&line), None);
        assert!(line.settle(numbers[0], STORED));
        assert_eq!(
            [take(&line), take(&line), take(&line), take(&line)],
            [Some(STORED), Some(LATE), Some(STORED), None]
        );
        assert_eq!(line.append(), 3);
    }

    #[test]
    fn the_first_word_counts() {
        let line = Line::default();
        let (first, second) = (line.append(), line.append());
        assert!(line.settle(second, STORED) && !line.is_settled_before(line.end()));
        assert_eq!(line.settle_before(line.end(), &LATE), 1);
        assert!(line.is_settled_before(line.end()) && !line.settle(first, STORED));
        assert_eq!([take(&line), take(&line)], [Some(LATE), Some(STORED)]);
        assert!(!line.settle(first, STORED), "its place is gone");
    }

    #[test]
    fn numbers_wrap() {
        let line = Line { first: Cell::new(u32::MAX - 1), ..Line::default() };
        let numbers = [line.append(), line.append(), line.append()];
        assert_eq!((numbers, line.end()), ([u32::MAX - 1, u32::MAX, 0], 1));
        assert!(line.settle(0, STORED) && !line.is_settled_before(0) && !line.settle(1, STORED));
        assert_eq!(line.settle_before(line.end(), &LATE), 2);
        assert_eq!([take(&line), take(&line), take(&line), take(&line)], [Some(LATE), Some(LATE), Some(STORED), None]);
        assert!(!line.settle(0, STORED) && line.is_settled_before(1) && line.is_settled_before(u32::MAX));
    }

    #[test]
    fn who_waits_is_woken_for_the_first_alone() {
        struct Count(std::sync::atomic::AtomicUsize);
        impl std::task::Wake for Count {
            fn wake(self: std::sync::Arc<Self>) {
                self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            }
        }
        let count = std::sync::Arc::new(Count(0.into()));
        let waker = Waker::from(std::sync::Arc::clone(&count));
        let line = Line::default();
        let numbers = [line.append(), line.append()];
        assert!(line.poll_take(&Context::from_waker(&waker)).is_pending());
        let woken = || count.0.load(std::sync::atomic::Ordering::Relaxed);
        line.settle(numbers[1], STORED);
        assert_eq!(woken(), 0);
        line.settle(numbers[0], STORED);
        assert_eq!(woken(), 1);
        line.close();
        assert!(line.settle(line.append(), STORED) && line.is_settled_before(9), "nobody listens");
    }
}
