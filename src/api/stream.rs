//! `stream=1`: an answer without end, made of one batch after the other.
//!
//! ```text
//!   Batches --next--> [ one batch ] --pieces--> connection --flush--> settled --> Batches --next--> ..
//!                          nothing for a while: heartbeat
//! ```
//!
//! Invariants: at most one batch is held, and the next is asked for only after the one before was handed to the connection and flushed,
//! so a slow reader is slowed at the source; a batch is settled by itself once its last byte was flushed, and one that never gets there
//! is dropped, which gives its messages back. Where batches come from is [`Batches`]' affair; this file knows no group and no core.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use glommio::timer::Timer;

use super::{
    format::{Format, Unwritten, Writer},
    reply::{Problem, Stamp},
};
use crate::{
    limits,
    proto::{BodySource, Sent, reply::Aborted},
    store::Delivery,
};

/// A batch to come.
pub type Next = Pin<Box<dyn Future<Output = Result<Batch, Problem>>>>;

/// Where a stream's messages come from.
pub trait Batches {
    /// The next batch; an empty one after `wait` at the latest. Dropping the future gives back what it took.
    fn next(&mut self, wait: Duration) -> Next;
}

/// Some messages and who is told what became of them.
#[derive(Default)]
pub struct Batch {
    pub delivery: Delivery,
    /// Told when the last byte was flushed; dropping it untold gives the messages back.
    pub settle: Option<Box<dyn Sent>>,
    /// None comes after this one.
    pub end: bool,
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batch").field("delivery", &self.delivery).field("end", &self.end).finish_non_exhaustive()
    }
}

/// How a stream is to be.
#[derive(Debug)]
pub struct StreamSpec {
    pub format: Format,
    /// Something is written this often at least.
    pub heartbeat: Duration,
    /// The stream ends by itself after that long; `None`: never.
    pub max_stream: Option<Duration>,
    /// For the problem document of an error.
    pub stamp: Stamp,
}

enum State {
    Writing {
        rest: Unwritten,
        settle: Option<Box<dyn Sent>>,
    },
    /// All of a batch was given; the connection has not taken it yet.
    Given(Option<Box<dyn Sent>>),
    /// Nothing is held.
    Free,
    Asking(Next),
    Over,
}

/// See the module text.
pub struct StreamBody {
    batches: Box<dyn Batches>,
    spec: StreamSpec,
    writer: Writer,
    state: State,
    /// No batch is asked for any more.
    is_last: bool,
    ends_at: Option<Instant>,
    written_at: Instant,
    timer: Option<Timer>,
}

impl fmt::Debug for StreamBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamBody").field("spec", &self.spec).finish_non_exhaustive()
    }
}

impl StreamBody {
    /// `first` may be empty.
    pub fn new(batches: Box<dyn Batches>, first: Batch, spec: StreamSpec) -> Self {
        let now = Instant::now();
        let mut this = Self {
            batches,
            writer: Writer::new(spec.format),
            state: State::Free,
            is_last: false,
            ends_at: spec.max_stream.and_then(|length| now.checked_add(length)),
            written_at: now,
            timer: None,
            spec,
        };
        this.take(first);
        this
    }

    /// Whether a batch is held that the connection has not taken.
    pub fn is_holding(&self) -> bool {
        matches!(self.state, State::Writing { .. } | State::Given(Some(_)))
    }

    /// Gives whether there is something to write.
    fn take(&mut self, batch: Batch) -> bool {
        self.is_last |= batch.end;
        let rest = Unwritten::new(batch.delivery);
        let is_empty = rest.is_over();
        self.state = if is_empty { State::Free } else { State::Writing { rest, settle: batch.settle } };
        !is_empty
    }

    /// Asks for the next batch, unless the stream is at its end.
    fn ask(&mut self) -> State {
        let left = self.ends_at.map(|end| end.saturating_duration_since(Instant::now()));
        if self.is_last || left.is_some_and(|left| left.is_zero()) {
            return State::Over;
        }
        let wait = Duration::from_secs(limits::WAIT_S_MAX);
        State::Asking(self.batches.next(left.map_or(wait, |left| left.min(wait))))
    }

    /// While there is nothing else.
    fn poll_heartbeat(&mut self, cx: &mut Context<'_>, out: &mut Vec<u8>) -> Poll<Option<Result<(), Aborted>>> {
        loop {
            let quiet_for = self.written_at.elapsed();
            let timer = self.timer.get_or_insert_with(|| Timer::new(self.spec.heartbeat.saturating_sub(quiet_for)));
            if Pin::new(timer).poll(cx).is_pending() {
                return Poll::Pending;
            }
            self.timer = None;
            if self.written_at.elapsed() >= self.spec.heartbeat {
                self.written_at = Instant::now();
                self.writer.heartbeat(out);
                return Poll::Ready(Some(Ok(())));
            }
        }
    }
}

impl BodySource for StreamBody {
    fn poll_piece(&mut self, cx: &mut Context<'_>, out: &mut Vec<u8>) -> Poll<Option<Result<(), Aborted>>> {
        loop {
            match &mut self.state {
                State::Writing { rest, settle } => {
                    rest.write(&mut self.writer, out);
                    if rest.is_over() {
                        self.state = State::Given(settle.take());
                    }
                    self.written_at = Instant::now();
                    return Poll::Ready(Some(Ok(())));
                }
                // The connection asks again once it has handed over what it was given.
                State::Given(_) => return Poll::Pending,
                State::Free => self.state = self.ask(),
                State::Asking(next) => match next.as_mut().poll(cx) {
                    Poll::Ready(Ok(batch)) => {
                        if !self.take(batch) && !self.is_last {
                            // One that comes before its wait is over must not keep the core.
                            cx.waker().wake_by_ref();
                            return Poll::Pending;
                        }
                    }
                    Poll::Ready(Err(problem)) => {
                        self.state = State::Over;
                        return Poll::Ready(Some(self.writer.error(&problem, &self.spec.stamp, out)));
                    }
                    Poll::Pending => return self.poll_heartbeat(cx, out),
                },
                State::Over => return Poll::Ready(None),
            }
        }
    }

    fn handed_over(&mut self) -> Option<Box<dyn Sent>> {
        let State::Given(settle) = &mut self.state else { return None };
        let settle = settle.take();
        self.state = State::Free;
        settle
    }
}

#[cfg(test)]
mod tests {
    use std::{
        cell::{Cell, RefCell},
        collections::VecDeque,
        future::poll_fn,
        rc::Rc,
        task::Waker,
    };

    use bytes::Bytes;

    use super::*;
    use crate::{api::codes, store::Message};

    /// What became of the batches.
    #[derive(Default)]
    struct Log {
        asked: Cell<usize>,
        settled: Cell<usize>,
        given_back: Cell<usize>,
    }

    struct Settle(Rc<Log>, bool);

    impl Sent for Settle {
        fn sent(mut self: Box<Self>) {
            self.1 = true;
            self.0.settled.set(self.0.settled.get() + 1);
        }
    }

    impl Drop for Settle {
        fn drop(&mut self) {
            self.0.given_back.set(self.0.given_back.get() + usize::from(!self.1));
        }
    }

    type Script = Rc<RefCell<VecDeque<Option<Result<Batch, Problem>>>>>;

    /// `None` of the script, and its end: pending.
    struct Fake {
        script: Script,
        log: Rc<Log>,
    }

    impl Batches for Fake {
        fn next(&mut self, _: Duration) -> Next {
            self.log.asked.set(self.log.asked.get() + 1);
            let script = Rc::clone(&self.script);
            Box::pin(poll_fn(move |_| match script.borrow_mut().pop_front() {
                Some(Some(result)) => Poll::Ready(result),
                Some(None) | None => Poll::Pending,
            }))
        }
    }

    struct Trial {
        body: StreamBody,
        log: Rc<Log>,
        script: Script,
        out: Vec<u8>,
    }

    fn batch(log: &Rc<Log>, offsets: std::ops::Range<i64>, bytes: usize) -> Batch {
        let message = |offset| Message {
            partition: 0,
            offset,
            timestamp_ms: 0,
            key: None,
            value: Bytes::from(vec![b'v'; bytes]),
            ..Message::default()
        };
        let delivery = Delivery { messages: offsets.map(message).collect(), ..Delivery::default() };
        Batch { delivery, settle: Some(Box::new(Settle(Rc::clone(log), false))), ..Batch::default() }
    }

    impl Trial {
        fn new(format: Format, heartbeat_ms: u64, max_stream_ms: Option<u64>) -> Self {
            let (log, script) = (Rc::<Log>::default(), Script::default());
            let fake = Fake { script: Rc::clone(&script), log: Rc::clone(&log) };
            let spec = StreamSpec {
                format,
                heartbeat: Duration::from_millis(heartbeat_ms),
                max_stream: max_stream_ms.map(Duration::from_millis),
                stamp: Stamp::default(),
            };
            let first = batch(&log, 0..2, 1);
            Self { body: StreamBody::new(Box::new(fake), first, spec), log, script, out: Vec::new() }
        }

        fn push(&self, step: Option<Result<Batch, Problem>>) {
            self.script.borrow_mut().push_back(step);
        }

        fn poll(&mut self) -> Poll<Option<Result<(), Aborted>>> {
            self.body.poll_piece(&mut Context::from_waker(Waker::noop()), &mut self.out)
        }

        /// As a connection flushes.
        fn flush(&mut self) -> String {
            if let Some(sent) = self.body.handed_over() {
                sent.sent();
            }
            String::from_utf8(std::mem::take(&mut self.out)).expect("the trials write text")
        }

        fn state(&self) -> (usize, usize, usize) {
            (self.log.asked.get(), self.log.settled.get(), self.log.given_back.get())
        }
    }

    const WROTE: Poll<Option<Result<(), Aborted>>> = Poll::Ready(Some(Ok(())));

    /// Timers need an executor.
    fn on_a_core(trial: impl Future<Output = ()> + 'static) {
        let executor = glommio::LocalExecutorBuilder::default().io_memory(1 << 20).make().expect("an executor");
        executor.run(trial);
    }

    #[test]
    fn a_batch_is_settled_by_itself_and_the_next_asked_for_after_it() {
        on_a_core(async {
            let mut trial = Trial::new(Format::Ndjson, 60_000, None);
            assert_eq!(trial.poll(), WROTE);
            assert_eq!(trial.poll(), Poll::Pending, "nothing is asked for before it is handed over");
            assert_eq!(trial.state(), (0, 0, 0));
            assert_eq!(trial.flush().lines().count(), 2);
            assert_eq!(trial.state(), (0, 1, 0));
            assert_eq!(trial.poll(), Poll::Pending);
            assert_eq!(trial.state(), (1, 1, 0));
            trial.push(Some(Ok(batch(&trial.log, 2..3, 1))));
            assert_eq!(trial.poll(), WROTE);
            assert!(trial.out.starts_with(b"{\"partition\":0,\"offset\":2,"));
            // The client leaves before the flush.
            let log = Rc::clone(&trial.log);
            drop(trial);
            assert_eq!((log.settled.get(), log.given_back.get()), (1, 1));
        });
    }

    #[test]
    fn a_large_batch_is_given_in_pieces_and_settled_after_the_last() {
        on_a_core(async {
            let mut trial = Trial::new(Format::Ndjson, 60_000, None);
            assert_eq!(trial.poll(), WROTE);
            trial.flush();
            trial.push(Some(Ok(batch(&trial.log, 0..10, 20_000))));
            let mut pieces = 0;
            while trial.log.settled.get() == 1 {
                assert_eq!(trial.poll(), WROTE);
                assert!(trial.out.len() < limits::WRITE_CHUNK_BYTES + 21_000);
                trial.flush();
                pieces += 1;
            }
            assert_eq!((pieces, trial.log.asked.get()), (3, 1));
        });
    }

    #[test]
    fn it_ends_when_the_batches_say_so() {
        on_a_core(async {
            let mut trial = Trial::new(Format::Ndjson, 60_000, None);
            assert_eq!(trial.poll(), WROTE);
            trial.flush();
            trial.push(Some(Ok(Batch::default())));
            assert_eq!(trial.poll(), Poll::Pending, "an empty batch is no end");
            trial.push(Some(Ok(Batch { end: true, ..batch(&trial.log, 5..6, 1) })));
            assert_eq!(trial.poll(), WROTE);
            assert_eq!(trial.poll(), Poll::Pending);
            trial.flush();
            assert_eq!(trial.poll(), Poll::Ready(None));
            assert_eq!(trial.poll(), Poll::Ready(None));
            assert_eq!(trial.state(), (2, 2, 0));

            let mut trial = Trial::new(Format::Ndjson, 60_000, None);
            assert_eq!(trial.poll(), WROTE);
            trial.flush();
            trial.push(Some(Ok(Batch { end: true, ..Batch::default() })));
            assert_eq!(trial.poll(), Poll::Ready(None));
        });
    }

    #[test]
    fn it_ends_after_its_longest_time() {
        on_a_core(async {
            let mut trial = Trial::new(Format::Ndjson, 60_000, Some(30));
            assert_eq!(trial.poll(), WROTE);
            glommio::timer::sleep(Duration::from_millis(40)).await;
            assert_eq!(trial.poll(), Poll::Pending, "what was given is handed over first");
            trial.flush();
            assert_eq!(trial.poll(), Poll::Ready(None));
            assert_eq!(trial.state(), (0, 1, 0));
        });
    }

    #[test]
    fn it_shows_that_it_lives() {
        on_a_core(async {
            let mut trial = Trial::new(Format::Sse, 50, None);
            assert_eq!(trial.poll(), WROTE);
            let text = trial.flush();
            assert!(text.starts_with("retry: 2000\n\nid: 0:1\ndata: {") && text.contains("id: 0:2\n"), "{text}");
            let started = Instant::now();
            for _ in 0..2 {
                assert_eq!(poll_fn(|cx| trial.body.poll_piece(cx, &mut trial.out)).await, Some(Ok(())));
                assert_eq!(trial.flush(), ": hb\n\n");
            }
            assert!(started.elapsed() > Duration::from_millis(95), "{:?}", started.elapsed());
            // A message in between puts the next one off.
            glommio::timer::sleep(Duration::from_millis(30)).await;
            trial.push(Some(Ok(batch(&trial.log, 2..3, 1))));
            assert_eq!(trial.poll(), WROTE);
            assert!(trial.flush().contains("id: 0:3\n"));
            let started = Instant::now();
            assert_eq!(poll_fn(|cx| trial.body.poll_piece(cx, &mut trial.out)).await, Some(Ok(())));
            assert_eq!(trial.flush(), ": hb\n\n");
            assert!(started.elapsed() > Duration::from_millis(40), "{:?}", started.elapsed());
        });
    }

    #[test]
    fn an_error_is_an_event_or_cuts_the_answer() {
        on_a_core(async {
            let problem = || Problem::new(&codes::UNAVAILABLE, "no broker");
            let mut trial = Trial::new(Format::Sse, 60_000, None);
            assert_eq!(trial.poll(), WROTE);
            trial.flush();
            trial.push(Some(Err(problem())));
            assert_eq!(trial.poll(), WROTE);
            assert!(trial.flush().starts_with("event: error\ndata: {"));
            assert_eq!(trial.poll(), Poll::Ready(None));

            let mut trial = Trial::new(Format::Ndjson, 60_000, None);
            assert_eq!(trial.poll(), WROTE);
            trial.flush();
            trial.push(Some(Err(problem())));
            assert_eq!(trial.poll(), Poll::Ready(Some(Err(Aborted(Some("50302 no broker".into()))))));
        });
    }
}
