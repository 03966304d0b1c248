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
    /// The number of the first place.
    first: Cell<u64>,
    /// Whoever waits was told of all before it, though not all was settled.
    told_before: Cell<u64>,
    waker: RefCell<Option<Waker>>,
    /// Nobody takes from it any more.
    is_closed: Cell<bool>,
}

impl Line {
    /// A place at the end. Gives its number, or what is enough of it: far fewer are under way than half of what 32 bits tell apart.
    pub fn append(&self) -> u32 {
        let number = self.end();
        self.places.borrow_mut().push_back(None);
        low(number)
    }

    /// A place at the end for what is known already.
    pub fn append_settled(&self, outcome: Produced) {
        let number = self.append();
        self.settle(number, outcome);
    }

    /// The number that the next place will have.
    pub fn end(&self) -> u64 {
        self.first.get() + self.places.borrow().len() as u64
    }

    /// Says what became of a record. `false`: too late, that was said before.
    pub fn settle(&self, number: u32, outcome: Produced) -> bool {
        let first = self.first.get();
        let number = first.wrapping_add_signed(i64::from(number.wrapping_sub(low(first)).cast_signed()));
        number >= self.told_before.get() && (self.is_closed.get() || self.settle_place(number, outcome))
    }

    fn settle_place(&self, number: u64, outcome: Produced) -> bool {
        let Some(at) = number.checked_sub(self.first.get()) else { return false };
        {
            let mut places = self.places.borrow_mut();
            let Some(place) = usize::try_from(at).ok().and_then(|at| places.get_mut(at)) else { return false };
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

    /// Settles every place before `end` that is not. Gives how many.
    pub fn settle_before(&self, end: u64, outcome: &Produced) -> u64 {
        let start = self.told_before.get().max(self.first.get());
        let settled = (start..end.min(self.end())).map(|number| u64::from(self.settle_place(number, outcome.clone())));
        let settled = settled.sum();
        self.told_before.set(self.told_before.get().max(end));
        settled
    }

    /// Whether all before `end` is settled.
    pub fn is_settled_before(&self, end: u64) -> bool {
        let count = usize::try_from(end.saturating_sub(self.first.get())).unwrap_or(usize::MAX);
        self.places.borrow().iter().take(count).all(Option::is_some)
    }

    /// What became of the first; its place is gone with that.
    pub fn poll_take(&self, cx: &Context<'_>) -> Poll<Produced> {
        let mut places = self.places.borrow_mut();
        if let Some(Some(_)) = places.front()
            && let Some(Some(outcome)) = places.pop_front()
        {
            self.first.set(self.first.get() + 1);
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
        self.waker.take();
    }
}

fn low(number: u64) -> u32 {
    u32::try_from(number & u64::from(u32::MAX)).unwrap_or_default()
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
    fn half_a_number_is_enough() {
        const FIRST: u64 = 7 * (1 << 32) - 2;
        let line = Line { first: Cell::new(FIRST), ..Line::default() };
        let numbers = [line.append(), line.append(), line.append()];
        assert_eq!((numbers, line.end()), ([u32::MAX - 1, u32::MAX, 0], FIRST + 3));
        assert!(line.settle(0, STORED) && !line.is_settled_before(line.end()) && !line.settle(1, STORED));
        assert_eq!(line.settle_before(line.end(), &LATE), 2);
        assert_eq!([take(&line), take(&line), take(&line), take(&line)], [Some(LATE), Some(LATE), Some(STORED), None]);
        assert!(!line.settle(0, STORED) && line.is_settled_before(line.end()));
    }

    #[test]
    fn late_is_late_also_when_nobody_listens() {
        let line = Line::default();
        let (told, untold) = (line.append(), line.append());
        assert_eq!(line.settle_before(1, &LATE), 1);
        line.close();
        assert!(!line.settle(told, STORED) && line.settle(untold, STORED));
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
    }
}
