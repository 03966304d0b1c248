//! An answer's body on its way through hyper: which pieces were taken, who is told of it, and when a stream is stuck.
//!
//! ```text
//!   source --> Piece --> hyper --> h2's send buffer --(flow-control window)--> connection buffer --flush--> socket
//!                |                                        consumed whole: dropped --^          told --^
//!                +-- at most PIECES_MAX of a stream are on the way; its source is not asked for more
//! ```
//!
//! hyper asks for the next piece as soon as h2 has queued the one before, whatever the window: so being asked says nothing. A [`Piece`]
//! is the buffer that h2 itself advances, and says when the window and the connection have taken all of it. Invariants: what counts as
//! sent was consumed whole and then flushed; a piece that is dropped with bytes left tells nobody.

use std::{
    cell::{Cell, RefCell},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use bytes::{Buf, Bytes};
use glommio::timer::Timer;
use http_body::Frame;

use super::pulse::OpenRequest;
use crate::{
    limits,
    proto::reply::{Aborted, Body, BodySource, Reply, Sent},
};

/// Pieces of one stream that may be on their way: one in h2's buffer, one behind it.
const PIECES_MAX: usize = 2;
/// A larger last piece ends the stream only once it was taken, so that a client that does not take it can be cut.
const LAST_BYTES_MAX: usize = 16 * 1024;

/// What was taken of answers; settled by the connection's next finished flush.
#[derive(Default)]
pub(super) struct Flushes {
    sent: RefCell<Vec<Box<dyn Sent>>>,
    timed_from: RefCell<Vec<Instant>>,
    /// Bytes went to the socket's buffer, or were to, since the last finished flush.
    is_dirty: Cell<bool>,
    /// hyper is at work on the connection, and may hold bytes that the socket has not seen.
    is_polled: Cell<bool>,
}

impl Flushes {
    pub(super) fn wrote(&self) {
        self.is_dirty.set(true);
    }

    pub(super) fn flushed(&self, record: impl FnMut(Duration)) {
        self.is_dirty.set(false);
        self.settle(record);
    }

    /// Around each poll of the connection. What was taken after its last flush, but before its end, is settled here.
    pub(super) fn polled(&self, is_polled: bool, record: impl FnMut(Duration)) {
        self.is_polled.set(is_polled);
        if !is_polled && !self.is_dirty.get() {
            self.settle(record);
        }
    }

    fn settle(&self, record: impl FnMut(Duration)) {
        if !self.timed_from.borrow().is_empty() {
            let now = Instant::now();
            let timed_from = std::mem::take(&mut *self.timed_from.borrow_mut());
            timed_from.into_iter().map(|from| now - from).for_each(record);
        }
        if !self.sent.borrow().is_empty() {
            let sent = std::mem::take(&mut *self.sent.borrow_mut());
            sent.into_iter().for_each(Sent::sent);
        }
    }

    /// What was taken before was handed over: told at once if it was flushed already, else by the next flush.
    fn hand_over(&self, sent: Box<dyn Sent>) {
        if self.is_dirty.get() || self.is_polled.get() {
            self.sent.borrow_mut().push(sent);
        } else {
            sent.sent();
        }
    }
}

/// Who is told that an answer is out.
#[derive(Default)]
struct Ending {
    on_sent: Option<Box<dyn Sent>>,
    timed_from: Option<Instant>,
}

/// One answer's pieces on their way. Shared by its body, its pieces and the task of its stream.
pub(super) struct Handing {
    flushes: Rc<Flushes>,
    /// Given and not yet consumed whole.
    pieces: Cell<usize>,
    /// Bytes of it were consumed since this was last looked at.
    moved: Cell<bool>,
    /// Set when the last piece was given.
    ending: RefCell<Option<Ending>>,
    waker: RefCell<Option<Waker>>,
    /// Open until the answer is over.
    open: OpenRequest,
}

impl Handing {
    pub(super) fn new(flushes: Rc<Flushes>, open: OpenRequest) -> Rc<Self> {
        let (pieces, moved, ending, waker) = Default::default();
        Rc::new(Self { flushes, pieces, moved, ending, waker, open })
    }

    /// Nothing more is given. An answer without a body ends with its head, which the next flush takes along.
    fn end(&self, ending: Ending) {
        if self.pieces.get() > 0 {
            self.ending.replace(Some(ending));
        } else {
            self.flushes.sent.borrow_mut().extend(ending.on_sent);
            self.flushes.timed_from.borrow_mut().extend(ending.timed_from);
        }
    }

    fn piece(self: &Rc<Self>, bytes: Bytes) -> Frame<Piece> {
        self.pieces.set(self.pieces.get() + 1);
        self.open.0.owe(1);
        Frame::data(Piece { bytes, handing: Rc::clone(self) })
    }

    /// Its client has not taken it for too long.
    pub(super) fn count_stuck(&self) {
        // Of a connection that takes nothing at all is told once.
        if !self.open.0.is_blocked() {
            self.open.0.metrics.cells.expired_write.add(1);
        }
    }

    fn wait(&self, cx: &Context<'_>) {
        self.waker.replace(Some(cx.waker().clone()));
    }

    fn piece_dropped(&self, is_consumed: bool) {
        self.open.0.owe(-1);
        if !is_consumed {
            return;
        }
        self.pieces.set(self.pieces.get() - 1);
        if self.pieces.get() == 0
            && let Some(ending) = self.ending.take()
        {
            self.end(ending);
        }
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

/// Bytes that h2 consumes; see the module text.
pub(super) struct Piece {
    bytes: Bytes,
    handing: Rc<Handing>,
}

impl Buf for Piece {
    fn remaining(&self) -> usize {
        self.bytes.len()
    }

    fn chunk(&self) -> &[u8] {
        &self.bytes
    }

    fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
        self.handing.moved.set(true);
        self.handing.open.0.moved();
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        self.handing.piece_dropped(self.bytes.is_empty());
    }
}

/// Cuts the stream of an answer that its client does not take: ready when nothing of it moved for `limit`, or twice that at most, while
/// there was something to take.
#[derive(Default)]
pub(super) struct Stuck {
    timer: Option<Timer>,
}

impl Stuck {
    pub(super) fn poll(&mut self, handing: &Handing, limit: Duration, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if self.timer.is_none() && handing.pieces.get() == 0 {
                return Poll::Pending;
            }
            let timer = self.timer.get_or_insert_with(|| {
                handing.moved.set(false);
                Timer::new(limit)
            });
            if Pin::new(timer).poll(cx).is_pending() {
                return Poll::Pending;
            }
            self.timer = None;
            if handing.pieces.get() > 0 && !handing.moved.get() {
                return Poll::Ready(());
            }
        }
    }
}

/// hyper's view of a [`Body`].
pub(super) struct ResponseBody {
    body: Body,
    ending: Ending,
    /// Pieces of a source were given since it was last told that all were handed over.
    is_given: bool,
    handing: Rc<Handing>,
}

impl ResponseBody {
    pub(super) fn new(reply: &mut Reply, handing: Rc<Handing>) -> Self {
        let body = std::mem::replace(&mut reply.body, Body::Empty);
        let ending = Ending { on_sent: reply.on_sent.take(), timed_from: reply.timed_from };
        let mut this = Self { body, ending, is_given: false, handing };
        if matches!(this.body, Body::Empty) {
            this.finish();
        }
        this
    }

    fn finish(&mut self) {
        self.body = Body::Empty;
        self.handing.end(std::mem::take(&mut self.ending));
    }

    /// The last bytes, or the end after them. A large piece is waited for, with the body left open.
    fn last(&mut self, bytes: Bytes, cx: &Context<'_>) -> Poll<Option<Result<Frame<Piece>, AbortError>>> {
        if bytes.is_empty() {
            if self.handing.pieces.get() > 0 {
                self.body = Body::Bytes(bytes);
                self.handing.wait(cx);
                return Poll::Pending;
            }
            self.finish();
            return Poll::Ready(None);
        }
        let is_large = bytes.len() > LAST_BYTES_MAX;
        let piece = self.handing.piece(bytes);
        if is_large {
            self.body = Body::Bytes(Bytes::new());
        } else {
            self.finish();
        }
        Poll::Ready(Some(Ok(piece)))
    }

    fn poll_source(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Piece>, AbortError>>> {
        let Body::Source(source) = &mut self.body else { return Poll::Ready(None) };
        let pieces = self.handing.pieces.get();
        if pieces >= PIECES_MAX {
            self.handing.wait(cx);
            return Poll::Pending;
        }
        if pieces == 0
            && std::mem::take(&mut self.is_given)
            && let Some(sent) = source.handed_over()
        {
            self.handing.flushes.hand_over(sent);
        }
        match gather(source.as_mut(), cx) {
            Poll::Pending => {
                if pieces > 0 {
                    self.handing.wait(cx);
                }
                Poll::Pending
            }
            Poll::Ready(Ok((bytes, true))) => {
                self.is_given = true;
                Poll::Ready(Some(Ok(self.handing.piece(bytes))))
            }
            Poll::Ready(Ok((bytes, false))) => self.last(bytes, cx),
            Poll::Ready(Err(_)) => Poll::Ready(Some(Err(AbortError))),
        }
    }
}

/// Gathers what the source has ready, up to one write's worth. Gives whether more is to come.
fn gather(source: &mut dyn BodySource, cx: &mut Context<'_>) -> Poll<Result<(Bytes, bool), Aborted>> {
    let mut out = Vec::new();
    loop {
        match source.poll_piece(cx, &mut out) {
            Poll::Ready(Some(Ok(()))) if out.len() < limits::WRITE_CHUNK_BYTES => {}
            Poll::Ready(None) => return Poll::Ready(Ok((out.into(), false))),
            Poll::Ready(Some(Err(aborted))) => return Poll::Ready(Err(aborted)),
            Poll::Pending if out.is_empty() => return Poll::Pending,
            Poll::Ready(Some(Ok(()))) | Poll::Pending => return Poll::Ready(Ok((out.into(), true))),
        }
    }
}

/// Makes hyper reset the stream.
#[derive(Debug)]
pub(super) struct AbortError;

impl std::fmt::Display for AbortError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the answer was cut on purpose")
    }
}

impl std::error::Error for AbortError {}

impl http_body::Body for ResponseBody {
    type Data = Piece;
    type Error = AbortError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Piece>, AbortError>>> {
        let this = self.get_mut();
        match &mut this.body {
            Body::Empty => Poll::Ready(None),
            Body::Bytes(bytes) => {
                let bytes = std::mem::take(bytes);
                this.last(bytes, cx)
            }
            Body::Source(_) => this.poll_source(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.body, Body::Empty)
    }

    fn size_hint(&self) -> http_body::SizeHint {
        match &self.body {
            Body::Empty => http_body::SizeHint::with_exact(0),
            Body::Bytes(bytes) => http_body::SizeHint::with_exact(bytes.len() as u64),
            Body::Source(_) => http_body::SizeHint::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, sync::Arc};

    use http_body::Body as _;

    use super::*;
    use crate::{
        config::resolve::HttpConfig,
        proto::{
            h2::pulse::Pulse,
            watch::{Clock, Watch},
        },
    };

    #[derive(Clone, Default)]
    struct Told(Rc<Cell<usize>>);

    impl Sent for Told {
        fn sent(self: Box<Self>) {
            self.0.set(self.0.get() + 1);
        }
    }

    /// Gives one piece, and the next one only once that was handed over; ends after `left`.
    struct Source {
        left: usize,
        is_given: bool,
        told: Told,
    }

    impl BodySource for Source {
        fn poll_piece(&mut self, _: &mut Context<'_>, out: &mut Vec<u8>) -> Poll<Option<Result<(), Aborted>>> {
            if self.is_given {
                return Poll::Pending;
            }
            if self.left == 0 {
                return Poll::Ready(None);
            }
            self.left -= 1;
            self.is_given = true;
            out.extend_from_slice(b"piece");
            Poll::Ready(Some(Ok(())))
        }

        fn handed_over(&mut self) -> Option<Box<dyn Sent>> {
            self.is_given = false;
            Some(Box::new(self.told.clone()))
        }
    }

    fn handing(flushes: &Rc<Flushes>) -> Rc<Handing> {
        let config = HttpConfig::of_a_test(Duration::from_secs(1));
        let socket = File::open("/dev/null").expect("it is there").into();
        let watch = Rc::new(Watch::new(Rc::new(socket), Clock::default(), 0));
        let pulse = Pulse::new(watch, &config, Arc::default());
        Handing::new(Rc::clone(flushes), OpenRequest::new(&pulse))
    }

    fn poll(body: &mut ResponseBody) -> Poll<Option<Piece>> {
        let polled = Pin::new(body).poll_frame(&mut Context::from_waker(Waker::noop()));
        polled.map(|frame| frame.map(|frame| frame.expect("no error").into_data().ok().expect("data")))
    }

    fn piece(body: &mut ResponseBody) -> Piece {
        match poll(body) {
            Poll::Ready(Some(piece)) => piece,
            other => panic!("a piece, not {:?}", other.map(|end| end.is_some())),
        }
    }

    fn take(mut piece: Piece) {
        piece.advance(piece.remaining());
    }

    fn flush(flushes: &Flushes) {
        flushes.wrote();
        flushes.flushed(|_| {});
    }

    #[test]
    fn a_source_is_told_when_its_pieces_were_consumed_and_flushed() {
        let (flushes, told, whole) = (Rc::<Flushes>::default(), Told::default(), Told::default());
        let mut reply = Reply::new(200);
        reply.on_sent = Some(Box::new(whole.clone()));
        reply.body = Body::Source(Box::new(Source { left: 2, is_given: false, told: told.clone() }));
        let mut body = ResponseBody::new(&mut reply, handing(&flushes));
        let mut first = piece(&mut body);
        assert!(poll(&mut body).is_pending(), "nothing was taken yet");
        first.advance(2);
        flush(&flushes);
        assert!(poll(&mut body).is_pending(), "only a part was");
        flushes.polled(true, |_| {});
        take(first);
        flushes.wrote();
        flushes.polled(false, |_| {});
        let second = piece(&mut body);
        assert_eq!(told.0.get(), 0, "taken, but not flushed");
        flush(&flushes);
        assert_eq!(told.0.get(), 1);
        take(second);
        flush(&flushes);
        assert!(matches!(poll(&mut body), Poll::Ready(None)));
        assert_eq!((told.0.get(), whole.0.get()), (2, 0), "flushed already, so told at once");
        flush(&flushes);
        assert_eq!(whole.0.get(), 1);
    }

    #[test]
    fn an_answer_whose_bytes_are_thrown_away_tells_nobody() {
        for bytes in [10, 100_000] {
            let (flushes, whole) = (Rc::<Flushes>::default(), Told::default());
            let answer = || {
                let mut reply = Reply::new(200);
                reply.on_sent = Some(Box::new(whole.clone()));
                reply.body = Body::Bytes(vec![0; bytes].into());
                ResponseBody::new(&mut reply, handing(&flushes))
            };
            let mut body = answer();
            let mut lost = piece(&mut body);
            assert_eq!(body.is_end_stream(), bytes <= LAST_BYTES_MAX);
            lost.advance(bytes - 1);
            drop((lost, body));
            flush(&flushes);
            assert_eq!(whole.0.get(), 0);
            let mut body = answer();
            take(piece(&mut body));
            if !body.is_end_stream() {
                assert!(matches!(poll(&mut body), Poll::Ready(None)));
            }
            flush(&flushes);
            assert_eq!(whole.0.get(), 1);
        }
    }
}
