//! Answers that go compressed: a small body at once, anything else piece by piece.
//!
//! ```text
//!   source --piece--> [ plain ] --a step at a time--> encoder --> out
//!      | pending: what the encoder holds is flushed, so that a reader has every message that is there
//! ```
//!
//! Invariants: nothing is held back while the source waits; the source is told that its pieces were handed over only when none of them is
//! still in here. A core has so many encoders at a time ([`limits::ENCODERS_MAX`]); over it answers go as they are.

use std::{
    cell::Cell,
    fmt,
    rc::Rc,
    task::{Context, Poll},
};

use flate2::{Compress, Compression, FlushCompress, Status};
use zstd_safe::{CCtx, CParameter, InBuffer, OutBuffer, zstd_sys::ZSTD_EndDirective as Directive};

use super::Coding;
use crate::{
    limits,
    proto::reply::{Aborted, Body, BodySource, Reply, Sent},
};

/// A body this short gains nothing.
const PLAIN_BYTES_MAX: usize = 256;
/// Of gzip: what costs a core least and still finds what repeats.
const GZIP_LEVEL: u32 = 1;
/// Window of gzip, 15 at most: a stream keeps its encoder as long as it lasts.
const GZIP_WINDOW_BITS: u8 = 13;
const ZSTD_LEVEL: i32 = 1;
/// The same for zstd: 64 KiB.
const ZSTD_WINDOW_LOG: u32 = 16;
/// Room asked for at a time while encoding.
const ROOM_BYTES: usize = 4 * 1024;

/// How many encoders a core has. Per core.
#[derive(Clone, Debug, Default)]
pub struct Encoders(Rc<Cell<usize>>);

impl Encoders {
    fn take(&self) -> Option<Taken> {
        let taken = self.0.get();
        (taken < limits::ENCODERS_MAX).then(|| {
            self.0.set(taken + 1);
            Taken(Rc::clone(&self.0))
        })
    }
}

struct Taken(Rc<Cell<usize>>);

impl Drop for Taken {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Flush {
    /// More is to come at once.
    None,
    /// What went in must be there.
    Sync,
    End,
}

enum Encoder {
    Gzip(Box<Compress>),
    Zstd(CCtx<'static>),
}

impl Encoder {
    fn new(coding: Coding) -> Option<Self> {
        match coding {
            Coding::Gzip => {
                Some(Self::Gzip(Box::new(Compress::new_gzip(Compression::new(GZIP_LEVEL), GZIP_WINDOW_BITS))))
            }
            Coding::Zstd => {
                let mut context = CCtx::try_create()?;
                // Numbers of their range, given before the first byte.
                context.set_parameter(CParameter::CompressionLevel(ZSTD_LEVEL)).ok()?;
                context.set_parameter(CParameter::WindowLog(ZSTD_WINDOW_LOG)).ok()?;
                Some(Self::Zstd(context))
            }
        }
    }

    /// Encodes all of it, and of what it holds what `flush` says.
    fn encode(&mut self, mut input: &[u8], flush: Flush, out: &mut Vec<u8>) -> Result<(), Aborted> {
        loop {
            out.reserve(ROOM_BYTES);
            let before = out.len();
            let (taken, is_done) = match self {
                Self::Gzip(deflate) => {
                    let how = match flush {
                        Flush::None => FlushCompress::None,
                        Flush::Sync => FlushCompress::Sync,
                        Flush::End => FlushCompress::Finish,
                    };
                    let before = deflate.total_in();
                    let status = deflate.compress_vec(input, out, how).map_err(|_| failed())?;
                    let taken = usize::try_from(deflate.total_in() - before).unwrap_or(0);
                    let is_all = taken == input.len();
                    // Room that was left says that there was nothing more to give.
                    let is_done = if flush == Flush::End {
                        status == Status::StreamEnd
                    } else {
                        is_all && out.len() < out.capacity()
                    };
                    (taken, is_done)
                }
                Self::Zstd(context) => {
                    let how = match flush {
                        Flush::None => Directive::ZSTD_e_continue,
                        Flush::Sync => Directive::ZSTD_e_flush,
                        Flush::End => Directive::ZSTD_e_end,
                    };
                    let mut from = InBuffer::around(input);
                    let left = {
                        let mut into = OutBuffer::around_pos(out, before);
                        context.compress_stream2(&mut into, &mut from, how).map_err(|_| failed())?
                    };
                    let is_all = from.pos() == input.len();
                    (from.pos(), is_all && (left == 0 || flush == Flush::None))
                }
            };
            input = &input[taken..];
            if is_done {
                return Ok(());
            }
        }
    }
}

fn failed() -> Aborted {
    Aborted(Some("50000 the answer could not be compressed".into()))
}

/// Has the answer go in `coding`, if that is worth it. `false`: the core has as many encoders as it may.
pub fn compress(reply: &mut Reply, coding: Coding, encoders: &Encoders) -> bool {
    let is_small = match &reply.body {
        Body::Empty => true,
        Body::Bytes(bytes) => bytes.len() < PLAIN_BYTES_MAX,
        Body::Source(_) => false,
    };
    if is_small {
        return true;
    }
    let Some((taken, mut encoder)) = encoders.take().zip(Encoder::new(coding)) else { return false };
    reply.add_field("Content-Encoding", coding.name().as_bytes());
    reply.body = match std::mem::replace(&mut reply.body, Body::Empty) {
        Body::Bytes(bytes) if bytes.len() <= limits::CODING_STEP_BYTES => {
            let mut out = Vec::with_capacity(bytes.len() / 2);
            match encoder.encode(&bytes, Flush::End, &mut out) {
                Ok(()) => Body::Bytes(out.into()),
                // It cannot be taken back what the head says: the answer is cut.
                Err(aborted) => Body::Source(Box::new(Failed(aborted))),
            }
        }
        Body::Bytes(bytes) => {
            let plain = bytes.to_vec();
            Body::Source(Box::new(Deflated { plain, ..Deflated::new(encoder, None, taken) }))
        }
        Body::Source(source) => Body::Source(Box::new(Deflated::new(encoder, Some(source), taken))),
        Body::Empty => Body::Empty,
    };
    true
}

struct Failed(Aborted);

impl BodySource for Failed {
    fn poll_piece(&mut self, _: &mut Context<'_>, _: &mut Vec<u8>) -> Poll<Option<Result<(), Aborted>>> {
        Poll::Ready(Some(Err(self.0.clone())))
    }
}

/// See the module text.
struct Deflated {
    encoder: Encoder,
    /// `None`: it has ended.
    source: Option<Box<dyn BodySource>>,
    /// What the source gave, and how much of it was encoded.
    plain: Vec<u8>,
    used: usize,
    /// The encoder holds something of it.
    is_held: bool,
    /// Encoded since this last let the core do something else.
    encoded: usize,
    is_over: bool,
    /// How the source failed, once what it gave before is given.
    failed: Option<Aborted>,
    _taken: Taken,
}

impl fmt::Debug for Deflated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Deflated").field("plain", &self.plain.len()).field("used", &self.used).finish_non_exhaustive()
    }
}

impl Deflated {
    fn new(encoder: Encoder, source: Option<Box<dyn BodySource>>, taken: Taken) -> Self {
        let (plain, used, encoded) = Default::default();
        let (is_held, is_over, failed) = Default::default();
        Self { encoder, source, plain, used, is_held, encoded, is_over, failed, _taken: taken }
    }

    /// One step of what is there.
    fn encode_step(&mut self, out: &mut Vec<u8>) -> Result<(), Aborted> {
        let end = self.plain.len().min(self.used + limits::CODING_STEP_BYTES);
        self.encoder.encode(&self.plain[self.used..end], Flush::None, out)?;
        self.encoded += end - self.used;
        self.used = end;
        self.is_held = true;
        if self.used == self.plain.len() {
            self.plain.clear();
            self.used = 0;
            if self.plain.capacity() > 2 * limits::WRITE_CHUNK_BYTES {
                self.plain = Vec::new();
            }
        }
        Ok(())
    }
}

impl Deflated {
    /// More of what is to be encoded.
    fn poll_source(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<(), Aborted>>> {
        if let Some(aborted) = self.failed.take() {
            return Poll::Ready(Some(Err(aborted)));
        }
        match &mut self.source {
            Some(source) if !self.is_over => {
                let polled = source.poll_piece(cx, &mut self.plain);
                if !matches!(polled, Poll::Ready(Some(Ok(())))) {
                    // It may have begun a piece.
                    self.plain.clear();
                }
                polled
            }
            _ => Poll::Ready(None),
        }
    }
}

impl BodySource for Deflated {
    fn poll_piece(&mut self, cx: &mut Context<'_>, out: &mut Vec<u8>) -> Poll<Option<Result<(), Aborted>>> {
        let before = out.len();
        loop {
            let has_given = out.len() > before;
            if self.used < self.plain.len() {
                if has_given {
                    return Poll::Ready(Some(Ok(())));
                }
                if self.encoded >= limits::CODING_STEP_BYTES {
                    self.encoded = 0;
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                if let Err(aborted) = self.encode_step(out) {
                    return Poll::Ready(Some(Err(aborted)));
                }
                continue;
            }
            // Asked before what was encoded is given: once that is handed over nothing of it may be left in here, or the source waits
            // for ever for being told.
            let flush = match self.poll_source(cx) {
                Poll::Ready(Some(Ok(()))) => continue,
                Poll::Ready(Some(Err(aborted))) if has_given => {
                    self.failed = Some(aborted);
                    return Poll::Ready(Some(Ok(())));
                }
                Poll::Ready(Some(Err(aborted))) => return Poll::Ready(Some(Err(aborted))),
                Poll::Pending if self.is_held => Flush::Sync,
                Poll::Pending => return Poll::Pending,
                Poll::Ready(None) if self.is_over => return Poll::Ready(None),
                Poll::Ready(None) => Flush::End,
            };
            self.encoded = 0;
            if let Err(aborted) = self.encoder.encode(&[], flush, out) {
                return Poll::Ready(Some(Err(aborted)));
            }
            self.is_held = false;
            self.is_over = flush == Flush::End;
            if out.len() > before {
                return Poll::Ready(Some(Ok(())));
            }
        }
    }

    fn handed_over(&mut self) -> Option<Box<dyn Sent>> {
        if self.is_held || !self.plain.is_empty() {
            return None;
        }
        self.source.as_mut()?.handed_over()
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Read, task::Waker};

    use super::*;

    /// Gives these, one at a time; an empty one is a wait.
    struct Source(Vec<Vec<u8>>);

    impl BodySource for Source {
        fn poll_piece(&mut self, _: &mut Context<'_>, out: &mut Vec<u8>) -> Poll<Option<Result<(), Aborted>>> {
            if self.0.is_empty() {
                return Poll::Ready(None);
            }
            let piece = self.0.remove(0);
            if piece.is_empty() {
                return Poll::Pending;
            }
            out.extend_from_slice(&piece);
            Poll::Ready(Some(Ok(())))
        }
    }

    fn decoded(coding: Coding, bytes: &[u8]) -> Vec<u8> {
        let mut plain = Vec::new();
        // A stream that goes on is read as far as it has come.
        let _ = match coding {
            Coding::Gzip => flate2::read::GzDecoder::new(bytes).read_to_end(&mut plain),
            Coding::Zstd => {
                let mut context = zstd_safe::DCtx::create();
                let mut room = vec![0; 4 << 20];
                let mut out = OutBuffer::around(&mut room[..]);
                let mut from = InBuffer::around(bytes);
                while from.pos() < bytes.len() {
                    context.decompress_stream(&mut out, &mut from).expect("zstd");
                }
                plain.extend_from_slice(out.as_slice());
                Ok(0)
            }
        };
        plain
    }

    /// What comes out at each wait, and at the end.
    fn answer(coding: Coding, body: Body) -> Vec<Vec<u8>> {
        let (mut reply, encoders) = (Reply::new(200), Encoders::default());
        reply.body = body;
        assert!(compress(&mut reply, coding, &encoders));
        assert!(reply.fields().any(|(name, value)| name == b"Content-Encoding" && value == coding.name().as_bytes()));
        let mut source = match reply.body {
            Body::Source(source) => source,
            Body::Bytes(bytes) => return vec![decoded(coding, &bytes)],
            Body::Empty => panic!("there was a body"),
        };
        let (mut out, mut seen) = (Vec::new(), Vec::new());
        loop {
            match source.poll_piece(&mut Context::from_waker(Waker::noop()), &mut out) {
                Poll::Ready(Some(piece)) => piece.expect("it can be encoded"),
                Poll::Ready(None) => break,
                Poll::Pending => seen.push(decoded(coding, &out)),
            }
        }
        seen.push(decoded(coding, &out));
        drop(source);
        assert_eq!(encoders.0.get(), 0);
        seen
    }

    #[test]
    fn what_waits_is_flushed() {
        for coding in [Coding::Gzip, Coding::Zstd] {
            // A wait is asked about once for the flush, and once more.
            let pieces = ["one", "", "", "two", "three", "", "", ""].map(|text| text.as_bytes().to_vec());
            let seen = answer(coding, Body::Source(Box::new(Source(pieces.to_vec()))));
            let texts: Vec<_> = seen.iter().map(|seen| String::from_utf8_lossy(seen)).collect();
            assert_eq!(texts, ["one", "onetwothree", "onetwothree", "onetwothree"], "{coding:?}");
        }
    }

    /// Gives one piece, and the next one only once it was told that the one before was handed over; it keeps no waker.
    struct Told {
        piece: Vec<u8>,
        left: usize,
        is_given: bool,
    }

    struct Nobody;

    impl Sent for Nobody {
        fn sent(self: Box<Self>) {}
    }

    impl BodySource for Told {
        fn poll_piece(&mut self, _: &mut Context<'_>, out: &mut Vec<u8>) -> Poll<Option<Result<(), Aborted>>> {
            if self.is_given {
                return Poll::Pending;
            }
            if self.left == 0 {
                return Poll::Ready(None);
            }
            (self.left, self.is_given) = (self.left - 1, true);
            out.extend_from_slice(&self.piece);
            Poll::Ready(Some(Ok(())))
        }

        fn handed_over(&mut self) -> Option<Box<dyn Sent>> {
            self.is_given = false;
            Some(Box::new(Nobody))
        }
    }

    /// Pieces that are whole blocks of the encoder leave nothing in it that a flush would give.
    #[test]
    fn a_source_is_told_whatever_the_length_of_its_pieces() {
        let mut state = 1_u64;
        let mut noise = |length: usize| {
            let mut byte = || {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                state.to_be_bytes()[0]
            };
            (0..length).map(|_| byte()).collect::<Vec<u8>>()
        };
        for coding in [Coding::Gzip, Coding::Zstd] {
            for length in [1, 65_535, 65_536, 65_537, 131_072, 131_073, 196_608] {
                let piece = noise(length);
                let (encoders, expected) = (Encoders::default(), piece.repeat(3));
                let source = Told { piece, left: 3, is_given: false };
                let taken = encoders.take().expect("the first");
                let encoder = Encoder::new(coding).expect("there is memory");
                let mut source = Deflated::new(encoder, Some(Box::new(source)), taken);
                // As a connection does.
                let (mut written, mut out, mut idle) = (Vec::new(), Vec::new(), 0);
                loop {
                    let polled = source.poll_piece(&mut Context::from_waker(Waker::noop()), &mut out);
                    if matches!(polled, Poll::Ready(None)) {
                        break;
                    }
                    if out.len() >= limits::WRITE_CHUNK_BYTES || (polled.is_pending() && !out.is_empty()) {
                        written.append(&mut out);
                        source.handed_over();
                        idle = 0;
                    }
                    idle += 1;
                    assert!(idle < 100, "{coding:?} {length}: it waits for ever");
                }
                written.append(&mut out);
                assert!(decoded(coding, &written) == expected, "{coding:?} {length}");
            }
        }
    }

    #[test]
    fn large_bodies_go_in_steps() {
        #[allow(clippy::cast_possible_truncation)] // Some bytes or other.
        let large: Vec<u8> = (0..1_000_000_u32).map(|n| ((n / 7) ^ n) as u8).collect();
        for coding in [Coding::Gzip, Coding::Zstd] {
            let seen = answer(coding, Body::Bytes(large.clone().into()));
            assert!(seen.len() > 10 && seen.last() == Some(&large), "{coding:?}: {}", seen.len());
            let seen = answer(coding, Body::Source(Box::new(Source(vec![large.clone(), large.clone()]))));
            assert!(seen.last() == Some(&large.repeat(2)), "{coding:?}");
            let small = vec![b'x'; 10_000];
            assert_eq!(answer(coding, Body::Bytes(small.clone().into())), [small], "{coding:?}");
        }
    }

    #[test]
    fn small_bodies_and_too_many_go_as_they_are() {
        let encoders = Encoders::default();
        let mut reply = Reply::new(200).body("text/plain", "short");
        assert!(compress(&mut reply, Coding::Gzip, &encoders));
        assert!(matches!(&reply.body, Body::Bytes(bytes) if bytes.len() == 5));
        encoders.0.set(limits::ENCODERS_MAX);
        let mut reply = Reply::new(200).body("text/plain", vec![b'x'; 1_000]);
        assert!(!compress(&mut reply, Coding::Gzip, &encoders));
        assert!(matches!(&reply.body, Body::Bytes(bytes) if bytes.len() == 1_000));
    }
}
