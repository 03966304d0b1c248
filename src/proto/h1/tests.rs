//! Answers against a wire in memory: what bytes go out, when the source is told, and what the client's going does.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    fs::File,
    future::Future,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use futures_lite::{AsyncRead, AsyncWrite};

use super::{H1, Pending};
use crate::{
    config::resolve::HttpConfig,
    limits,
    proto::{
        Body, BodySource, Reply, Sent,
        head::{Framing, Version},
        reply::Aborted,
        watch::{Clock, Phase, Watch},
    },
};

/// Both directions of a connection.
#[derive(Default)]
struct Wire {
    incoming: RefCell<VecDeque<u8>>,
    is_ended: Cell<bool>,
    outgoing: RefCell<Vec<u8>>,
    /// Bytes the client takes before it must be given more room.
    room: Cell<usize>,
    writes: Cell<usize>,
}

impl Wire {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.outgoing.borrow()).into_owned()
    }

    fn body(&self) -> String {
        self.text().split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).expect("a head went out")
    }
}

struct Stream(Rc<Wire>);

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut incoming = self.0.incoming.borrow_mut();
        let got = incoming.len().min(buffer.len());
        for (slot, byte) in buffer.iter_mut().zip(incoming.drain(..got)) {
            *slot = byte;
        }
        if got > 0 || self.0.is_ended.get() { Poll::Ready(Ok(got)) } else { Poll::Pending }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let taken = bytes.len().min(self.0.room.get());
        if taken == 0 {
            return Poll::Pending;
        }
        self.0.room.set(self.0.room.get() - taken);
        self.0.writes.set(self.0.writes.get() + 1);
        self.0.outgoing.borrow_mut().extend_from_slice(&bytes[..taken]);
        Poll::Ready(Ok(taken))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

enum Step {
    Piece(&'static str),
    Bytes(usize),
    Pending,
    /// Pending until told that all was handed over.
    HandedOver,
    Abort(Option<&'static str>),
}

#[derive(Clone, Default)]
struct Told(Rc<Cell<usize>>);

impl Sent for Told {
    fn sent(self: Box<Self>) {
        self.0.set(self.0.get() + 1);
    }
}

struct Source {
    steps: VecDeque<Step>,
    told: Told,
    out_max: Rc<Cell<usize>>,
}

impl BodySource for Source {
    fn poll_piece(&mut self, _: &mut Context<'_>, out: &mut Vec<u8>) -> Poll<Option<Result<(), Aborted>>> {
        match self.steps.pop_front() {
            Some(Step::Piece(text)) => out.extend_from_slice(text.as_bytes()),
            Some(Step::Bytes(count)) => out.resize(out.len() + count, b'x'),
            Some(Step::Pending) => return Poll::Pending,
            Some(Step::HandedOver) => {
                self.steps.push_front(Step::HandedOver);
                return Poll::Pending;
            }
            Some(Step::Abort(text)) => return Poll::Ready(Some(Err(Aborted(text.map(Into::into))))),
            None => return Poll::Ready(None),
        }
        self.out_max.set(self.out_max.get().max(out.len()));
        Poll::Ready(Some(Ok(())))
    }

    fn handed_over(&mut self) -> Option<Box<dyn Sent>> {
        if matches!(self.steps.front(), Some(Step::HandedOver)) {
            self.steps.pop_front();
        }
        Some(Box::new(self.told.clone()))
    }
}

struct Trial {
    wire: Rc<Wire>,
    watch: Rc<Watch>,
    clock: Clock,
    h1: H1<Stream>,
    handed_over: Told,
    whole: Told,
    out_max: Rc<Cell<usize>>,
    pending: Pending,
}

impl Trial {
    fn new() -> Self {
        let write_timeout = Duration::from_millis(50);
        let config = HttpConfig { write_timeout, ..HttpConfig::of_a_test(Duration::from_secs(1)) };
        let wire = Rc::new(Wire { room: Cell::new(usize::MAX), ..Wire::default() });
        let clock = Clock::default();
        let socket = File::open("/dev/null").expect("it is there").into();
        let watch = Rc::new(Watch::new(Rc::new(socket), clock.clone(), 0));
        let h1 = H1::new(Stream(Rc::clone(&wire)), Rc::clone(&watch), Rc::new(config));
        let pending = Pending {
            framing: Framing::Length(0),
            version: Version::Http11,
            keep_alive: true,
            expects_continue: false,
            bodiless: false,
            takes_trailers: false,
            head_bytes: 0,
        };
        let (handed_over, whole, out_max) = Default::default();
        Self { wire, watch, clock, h1, handed_over, whole, out_max, pending }
    }

    fn reply(&self, steps: impl IntoIterator<Item = Step>) -> Reply {
        let mut reply = Reply::new(200);
        reply.on_sent = Some(Box::new(self.whole.clone()));
        let steps = steps.into_iter().collect();
        let (told, out_max) = (self.handed_over.clone(), Rc::clone(&self.out_max));
        reply.body = Body::Source(Box::new(Source { steps, told, out_max }));
        reply
    }

    /// Polls the answer a few times, with `between` after each poll; `None`: it is not over.
    fn answer(&mut self, reply: Reply, mut between: impl FnMut(&Wire, &Watch, &Clock)) -> Option<io::Result<()>> {
        let mut answer = std::pin::pin!(self.h1.answer(reply, &self.pending, false));
        let mut cx = Context::from_waker(Waker::noop());
        for _ in 0..500 {
            if let Poll::Ready(result) = answer.as_mut().poll(&mut cx) {
                return Some(result);
            }
            between(&self.wire, &self.watch, &self.clock);
        }
        None
    }
}

#[test]
fn pieces_are_chunks_and_each_flush_is_told() {
    let mut trial = Trial::new();
    let steps = [Step::Piece("one"), Step::Piece("two"), Step::Pending, Step::Pending, Step::Piece("three")];
    let told_at_first_wait = Cell::new(0);
    let told = trial.handed_over.clone();
    let reply = trial.reply(steps);
    let result = trial.answer(reply, |wire, _, _| {
        if told_at_first_wait.get() == 0 {
            told_at_first_wait.set(told.0.get());
            assert!(wire.text().ends_with("\r\n\r\n00000003\r\none\r\n00000003\r\ntwo\r\n"), "{}", wire.text());
        }
    });
    assert!(matches!(result, Some(Ok(()))), "{result:?}");
    assert_eq!(told_at_first_wait.get(), 1, "the first two were told of before the third was there");
    assert!(trial.wire.text().ends_with("00000005\r\nthree\r\n0\r\n\r\n"), "{}", trial.wire.text());
    assert_eq!((trial.handed_over.0.get(), trial.whole.0.get()), (2, 1));
    assert!(!trial.wire.text().contains("Trailer"));
}

#[test]
fn a_source_that_waits_for_the_flush_is_asked_again() {
    let mut trial = Trial::new();
    let reply = trial.reply([Step::Piece("one"), Step::HandedOver, Step::Piece("two"), Step::HandedOver]);
    // No waker is ever woken by the source.
    let result = trial.answer(reply, |_, watch, _| assert_eq!(watch.phase(), Phase::Write));
    assert!(matches!(result, Some(Ok(()))), "{result:?}");
    assert_eq!(trial.wire.body(), "00000003\r\none\r\n00000003\r\ntwo\r\n0\r\n\r\n");
}

#[test]
fn the_client_s_going_ends_the_wait() {
    let mut trial = Trial::new();
    let reply = trial.reply((0..1_000).map(|_| Step::Pending));
    let result = trial.answer(reply, |wire, _, _| wire.is_ended.set(true));
    assert_eq!(result.expect("it is over").expect_err("the client left").kind(), io::ErrorKind::ConnectionAborted);
    assert_eq!(trial.whole.0.get(), 0);
}

#[test]
fn what_arrives_while_waiting_is_the_next_request() {
    let mut trial = Trial::new();
    let next = "GET /next HTTP/1.1\r\nHost: x\r\n\r\n";
    let mut sent = false;
    let reply = trial.reply((0..5).map(|_| Step::Pending).chain([Step::Piece("end")]));
    let result = trial.answer(reply, |wire, _, _| {
        if !std::mem::replace(&mut sent, true) {
            wire.incoming.borrow_mut().extend(next.as_bytes());
        }
    });
    assert!(matches!(result, Some(Ok(()))), "{result:?}");
    let path = |head: &crate::proto::Head<'_>, _: Instant| head.path.to_vec();
    let read = futures_lite::future::block_on(trial.h1.next(path)).expect("it is a request");
    assert_eq!(read.expect("it is there").0, b"/next");
}

#[test]
fn a_client_that_fills_the_buffer_is_not_looked_at_further() {
    let mut trial = Trial::new();
    let reply = trial.reply((0..20).map(|_| Step::Pending).chain([Step::Piece("end")]));
    let result = trial.answer(reply, |wire, _, _| {
        wire.incoming.borrow_mut().extend(vec![b'x'; 65_536]);
        wire.is_ended.set(true);
    });
    assert!(matches!(result, Some(Ok(()))), "{result:?}");
    assert!(trial.wire.incoming.borrow().len() > 50_000, "most of it was left in the socket");
}

#[test]
fn an_error_cuts_the_body_or_ends_it_with_a_trailer() {
    let mut trial = Trial::new();
    let steps = || [Step::Piece("one"), Step::Pending, Step::Piece("two"), Step::Abort(Some("50302 no\r\nbroker"))];
    let reply = trial.reply(steps());
    let result = trial.answer(reply, |_, _, _| {});
    assert!(matches!(result, Some(Err(_))), "{result:?}");
    assert_eq!(trial.wire.body(), "00000003\r\none\r\n", "what was not flushed is not given half");

    trial = Trial::new();
    trial.pending.takes_trailers = true;
    let reply = trial.reply(steps());
    let result = trial.answer(reply, |_, _, _| {});
    assert!(matches!(result, Some(Ok(()))), "the connection goes on: {result:?}");
    let body = trial.wire.body();
    assert_eq!(body, "00000003\r\none\r\n00000003\r\ntwo\r\n0\r\nX-Error: 50302 no??broker\r\n\r\n");
    assert!(trial.wire.text().contains("\r\nTrailer: X-Error\r\n"));
    assert_eq!(trial.whole.0.get(), 0, "the answer is not whole");

    // Without a reason there is nothing to say, and HTTP/1.0 has no trailers.
    for (version, reason) in [(Version::Http11, None), (Version::Http10, Some("50000 x"))] {
        trial = Trial::new();
        trial.pending.takes_trailers = true;
        trial.pending.version = version;
        let reply = trial.reply([Step::Piece("one"), Step::Abort(reason)]);
        assert!(matches!(trial.answer(reply, |_, _, _| {}), Some(Err(_))));
    }
}

#[allow(clippy::disallowed_methods)] // No core runs here.
fn pass(clock: &Clock, ms: u64) {
    std::thread::sleep(Duration::from_millis(ms));
    clock.advance();
}

#[test]
fn the_deadline_is_for_progress() {
    // A slow client that lives: some bytes now and then, for longer than the deadline.
    let mut trial = Trial::new();
    trial.wire.room.set(0);
    let reply = trial.reply([Step::Bytes(100)]);
    let started = Instant::now();
    let result = trial.answer(reply, |wire, watch, clock| {
        assert!(!watch.expire_if_overdue(), "it moves");
        pass(clock, 2);
        wire.room.set(4);
    });
    assert!(matches!(result, Some(Ok(()))), "{result:?}");
    assert!(trial.wire.writes.get() > 25 && started.elapsed() > Duration::from_millis(50));

    // A dead one.
    trial = Trial::new();
    trial.wire.room.set(0);
    let expired = Cell::new(false);
    let reply = trial.reply([Step::Bytes(100)]);
    let result = trial.answer(reply, |_, watch, clock| {
        pass(clock, 1);
        expired.set(expired.get() || watch.expire_if_overdue());
    });
    assert!(result.is_none() && expired.get());
}

#[test]
fn waiting_for_the_source_has_no_deadline() {
    let mut trial = Trial::new();
    let reply = trial.reply((0..80).map(|_| Step::Pending));
    let mut waits = 0;
    let result = trial.answer(reply, |_, watch, clock| {
        pass(clock, 1);
        assert!(!watch.expire_if_overdue());
        waits += usize::from(watch.phase() == Phase::Handler);
    });
    assert!(waits > 70, "{waits}");
    assert!(matches!(result, Some(Ok(()))), "{result:?}");
}

#[test]
fn never_more_than_a_write_and_a_message_is_gathered() {
    let mut trial = Trial::new();
    let reply = trial.reply((0..400).map(|n| Step::Bytes(if n % 10 == 9 { 100_000 } else { 1_000 })));
    let result = trial.answer(reply, |_, _, _| {});
    assert!(matches!(result, Some(Ok(()))), "{result:?}");
    assert!(trial.out_max.get() < limits::WRITE_CHUNK_BYTES + 100_000 + 100, "{}", trial.out_max.get());
}
