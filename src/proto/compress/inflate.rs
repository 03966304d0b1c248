//! Bodies that came compressed, piece by piece.
//!
//! Invariants: what goes in and what comes out of a step is bounded, and a core may do something else between two, so that a body that
//! grows a thousandfold, or that is long and becomes nothing, costs memory and time for what may be of it; what goes in is taken from
//! the connection only when all that was taken before is used up. What a decoder has to remember is asked for before it is used.

use std::fmt;

use bytes::{Buf, Bytes};
use flate2::{Decompress, FlushDecompress, Status};
use zstd_safe::{DCtx, DParameter, InBuffer, OutBuffer, ResetDirective};

use super::{Coding, length::measure, sent_bytes_max};
use crate::{
    limits,
    proto::{Malformed, Pieces},
};

pub(super) const BROKEN: Malformed = Malformed::Coding("the body is not what its Content-Encoding says");
pub(super) const CUT: Malformed = Malformed::Coding("the compressed body is cut short");
pub(super) const WINDOW_TOO_LARGE: Malformed = Malformed::Coding("the window of a zstd body is over 8 MiB (RFC 9659)");

/// The most a decoder of zstd has to remember for a client (RFC 9659).
const ZSTD_WINDOW_LOG_MAX: u32 = 23;
/// The longest head of a zstd frame (RFC 8878 section 3.1.1.1), with its magic number.
const ZSTD_HEAD_BYTES_MAX: usize = 18;
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// What zstd keeps beside the window: two blocks.
const ZSTD_BLOCKS_BYTES: usize = 256 * 1024;
/// As gzip has it.
const GZIP_WINDOW_BITS: u8 = 15;

enum Engine {
    Gzip(Box<Decompress>),
    Zstd(DCtx<'static>),
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if matches!(self, Self::Gzip(_)) { "Gzip" } else { "Zstd" })
    }
}

/// What one step did.
struct Step {
    taken: usize,
    given: usize,
    /// The stream, or one of several, ended with it.
    has_ended: bool,
}

impl Engine {
    fn new(coding: Coding) -> Self {
        match coding {
            Coding::Gzip => Self::Gzip(Box::new(Decompress::new_gzip(GZIP_WINDOW_BITS))),
            Coding::Zstd => {
                let mut context = DCtx::create();
                // It takes any number in its range, of which this is one.
                let _ = context.set_parameter(DParameter::WindowLogMax(ZSTD_WINDOW_LOG_MAX));
                Self::Zstd(context)
            }
        }
    }

    /// For a further stream.
    fn reset(&mut self) -> Result<(), Malformed> {
        match self {
            // Told that there is a head it stays with gzip's.
            Self::Gzip(inflate) => inflate.reset(true),
            Self::Zstd(context) => {
                context.reset(ResetDirective::SessionOnly).map_err(|_| BROKEN)?;
            }
        }
        Ok(())
    }

    fn step(&mut self, input: &[u8], output: &mut [u8]) -> Result<Step, Malformed> {
        match self {
            Self::Gzip(inflate) => {
                let before = (inflate.total_in(), inflate.total_out());
                let status = inflate.decompress(input, output, FlushDecompress::None).map_err(|_| BROKEN)?;
                let since = |now: u64, before: u64| usize::try_from(now - before).unwrap_or(0);
                let (taken, given) = (since(inflate.total_in(), before.0), since(inflate.total_out(), before.1));
                Ok(Step { taken, given, has_ended: status == Status::StreamEnd })
            }
            Self::Zstd(context) => {
                let (mut input, mut output) = (InBuffer::around(input), OutBuffer::around(output));
                let hint = context.decompress_stream(&mut output, &mut input).map_err(|_| BROKEN)?;
                Ok(Step { taken: input.pos(), given: output.pos(), has_ended: hint == 0 })
            }
        }
    }
}

/// What the head of a zstd frame says. What is no frame with content has none of it.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct FrameHead {
    /// Its own length.
    pub(super) bytes: usize,
    pub(super) has_checksum: bool,
    pub(super) window_bytes: u64,
    /// What the frame becomes, if it says so.
    pub(super) content_bytes: Option<u64>,
}

impl FrameHead {
    /// `None`: it has not come whole.
    pub(super) fn read(head: &[u8]) -> Option<Self> {
        let (magic, rest) = head.split_at_checked(ZSTD_MAGIC.len())?;
        if magic != ZSTD_MAGIC {
            return Some(Self::default());
        }
        let (descriptor, window) = (*rest.first()?, *rest.get(1)?);
        let content_bytes = zstd_safe::get_frame_content_size(head).ok()?;
        let is_one_segment = descriptor & 0x20 != 0;
        let window_bytes = if is_one_segment {
            content_bytes.unwrap_or(0)
        } else {
            let base = 1_u64 << (10 + (window >> 3));
            base + base / 8 * u64::from(window & 7)
        };
        let dictionary = [0, 1, 2, 4][usize::from(descriptor & 3)];
        let content = [usize::from(is_one_segment), 2, 4, 8][usize::from(descriptor >> 6)];
        let bytes = magic.len() + 1 + usize::from(!is_one_segment) + dictionary + content;
        Some(Self { bytes, has_checksum: descriptor & 4 != 0, window_bytes, content_bytes })
    }

    /// Whether the frame can be one of a body that may become so much.
    pub(super) fn check(&self, bytes_max: u64) -> Result<(), Malformed> {
        if self.content_bytes.is_some_and(|bytes| bytes > bytes_max) {
            return Err(Malformed::BodyTooLarge);
        }
        if self.window_bytes > 1 << ZSTD_WINDOW_LOG_MAX { Err(WINDOW_TOO_LARGE) } else { Ok(()) }
    }
}

/// What one step came to.
enum Did {
    /// So many bytes stand in the scratch buffer.
    Gave(usize),
    /// Input was used, and nothing came of it yet.
    Took,
    /// All input is used up.
    Hungry,
}

struct Decoder<'a> {
    engine: Engine,
    /// What was not used yet.
    input: Bytes,
    /// Inside a stream: the body must not end here.
    is_open: bool,
    has_begun: bool,
    /// All of the last step's room was used: there may be more without further input.
    is_full: bool,
    /// Made with the first step.
    scratch: Vec<u8>,
    /// What the body may become.
    bytes_max: usize,
    /// The head of the zstd frame that is open, as far as it has come; `None` once it was looked at.
    head: Option<Vec<u8>>,
    /// Beside the input: what has to be remembered.
    window_bytes: usize,
    /// Held by the caller for as long.
    beside_bytes: usize,
    room: &'a dyn Fn(usize) -> bool,
}

impl fmt::Debug for Decoder<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decoder").field("engine", &self.engine).field("is_open", &self.is_open).finish_non_exhaustive()
    }
}

impl<'a> Decoder<'a> {
    fn new(coding: Coding, bytes_max: usize, room: &'a dyn Fn(usize) -> bool) -> Self {
        let (is_open, has_begun, is_full, head, window_bytes, beside_bytes) = Default::default();
        let (engine, scratch, input) = (Engine::new(coding), Vec::new(), Bytes::new());
        Self { engine, input, is_open, has_begun, is_full, scratch, bytes_max, head, window_bytes, beside_bytes, room }
    }

    /// Once more from the beginning, with all there is.
    fn restart(&mut self, input: Bytes) -> Result<(), Malformed> {
        if self.has_begun {
            self.engine.reset()?;
        }
        (self.is_open, self.has_begun, self.is_full, self.input) = (false, false, false, input);
        Ok(())
    }

    /// Takes and gives no more than a step's bytes.
    fn step(&mut self) -> Result<Did, Malformed> {
        if self.input.is_empty() && !self.is_full {
            return Ok(Did::Hungry);
        }
        if !self.is_open {
            // A further stream may follow the one that ended: both formats allow it.
            if self.has_begun {
                self.engine.reset()?;
            }
            (self.is_open, self.has_begun) = (true, true);
            self.head = matches!(self.engine, Engine::Zstd(_)).then(Vec::new);
        }
        self.look()?;
        self.scratch.resize(limits::CODING_STEP_BYTES, 0);
        let end = self.input.len().min(limits::CODING_INPUT_BYTES);
        let Step { taken, given, has_ended } = self.engine.step(&self.input[..end], &mut self.scratch)?;
        self.input.advance(taken);
        self.is_full = given == self.scratch.len() && !has_ended;
        self.is_open = !has_ended;
        if given > 0 {
            return Ok(Did::Gave(given));
        }
        if taken == 0 && !has_ended && !self.input.is_empty() {
            return Err(BROKEN);
        }
        Ok(Did::Took)
    }

    /// Looks at the head of a frame before the engine has all of it: what cannot be is refused before memory is taken for it.
    fn look(&mut self) -> Result<(), Malformed> {
        let Some(head) = &mut self.head else { return Ok(()) };
        let missing = ZSTD_HEAD_BYTES_MAX.saturating_sub(head.len());
        head.extend_from_slice(&self.input[..self.input.len().min(missing)]);
        let Some(found) = FrameHead::read(head) else { return Ok(()) };
        self.head = None;
        found.check(self.bytes_max as u64)?;
        let window_bytes = usize::try_from(found.window_bytes).unwrap_or(usize::MAX).saturating_add(ZSTD_BLOCKS_BYTES);
        if window_bytes > self.window_bytes {
            self.window_bytes = window_bytes;
            self.ask(0)?;
        }
        Ok(())
    }

    /// Asks for all that is held, and for so much more.
    fn ask(&self, more: usize) -> Result<(), Malformed> {
        if (self.room)(self.beside_bytes + self.window_bytes + more) { Ok(()) } else { Err(Malformed::NoRoom) }
    }

    /// Nothing more comes.
    fn end(&self) -> Result<(), Malformed> {
        if self.is_open || !self.has_begun { Err(CUT) } else { Ok(()) }
    }
}

/// Compressed pieces, decompressed.
#[derive(Debug)]
pub struct Inflated<'a, P> {
    pieces: &'a mut P,
    decoder: Decoder<'a>,
    /// Compressed bytes that have come.
    sent: usize,
}

impl<'a, P: Pieces> Inflated<'a, P> {
    /// A body that becomes no more than `bytes_max`. `room` is asked before more memory is held, for all of it together.
    pub fn new(coding: Coding, pieces: &'a mut P, bytes_max: usize, room: &'a dyn Fn(usize) -> bool) -> Self {
        Self { pieces, decoder: Decoder::new(coding, bytes_max, room), sent: 0 }
    }
}

impl<P: Pieces> Pieces for Inflated<'_, P> {
    async fn next(&mut self) -> Result<Option<Bytes>, Malformed> {
        loop {
            match self.decoder.step()? {
                Did::Gave(bytes) => {
                    glommio::executor().yield_if_needed().await;
                    return Ok(Some(Bytes::copy_from_slice(&self.decoder.scratch[..bytes])));
                }
                Did::Took => glommio::executor().yield_if_needed().await,
                Did::Hungry => match self.pieces.next().await? {
                    Some(piece) => {
                        self.sent += piece.len();
                        if self.sent > sent_bytes_max(self.decoder.bytes_max) {
                            return Err(Malformed::BodyTooLarge);
                        }
                        self.decoder.input = piece;
                    }
                    None => return self.decoder.end().map(|()| None),
                },
            }
        }
    }

    async fn whole(&mut self, bytes_max: usize) -> Result<Bytes, Malformed> {
        let compressed = self.pieces.whole(sent_bytes_max(bytes_max)).await?;
        inflate(&mut self.decoder, &compressed, bytes_max).await
    }
}

/// A whole body, whose length is known before memory is taken for it: a small body that would become a large one costs none. Of gzip the
/// length is found by decompressing, which is not done twice where it says that it is short; of zstd it is read.
async fn inflate(decoder: &mut Decoder<'_>, compressed: &Bytes, bytes_max: usize) -> Result<Bytes, Malformed> {
    decoder.beside_bytes = compressed.len();
    let length = match &mut decoder.engine {
        Engine::Gzip(_) => {
            // Taken at its word it is decompressed once, and nothing of it grows meanwhile.
            let said = said_by_gzip(compressed);
            let kept_max = if said <= limits::INFLATED_AT_ONCE_BYTES_MAX.min(bytes_max) { said } else { 0 };
            let body = Vec::with_capacity(kept_max);
            let (mut body, length) = in_steps(decoder, compressed, bytes_max, body, kept_max).await?;
            if body.len() == length {
                // It is kept as long as a message of it.
                body.shrink_to_fit();
                return Ok(body.into());
            }
            length
        }
        Engine::Zstd(context) => {
            let measured = measure(compressed, bytes_max).await?;
            if measured.bytes <= limits::INFLATED_AT_ONCE_BYTES_MAX
                && measured.parts <= limits::INFLATED_AT_ONCE_PARTS_MAX
            {
                // Where it goes is the window.
                let mut body = Vec::with_capacity(measured.bytes);
                context.decompress(&mut body, compressed).map_err(|_| BROKEN)?;
                glommio::executor().yield_if_needed().await;
                return Ok(body.into());
            }
            measured.bytes
        }
    };
    decoder.beside_bytes += length;
    decoder.ask(0)?;
    let body = Vec::with_capacity(length);
    in_steps(decoder, compressed, length, body, length).await.map(|(body, _)| body.into())
}

/// What the last member of a gzip body says that it becomes (RFC 1952 section 2.3.1); most bodies have one.
fn said_by_gzip(compressed: &[u8]) -> usize {
    let last = compressed.last_chunk().map_or(0, |last| u32::from_le_bytes(*last));
    usize::try_from(last).unwrap_or(usize::MAX)
}

/// What a whole body becomes, and its length; over `kept_max` the length alone.
async fn in_steps(
    decoder: &mut Decoder<'_>,
    compressed: &Bytes,
    bytes_max: usize,
    mut body: Vec<u8>,
    kept_max: usize,
) -> Result<(Vec<u8>, usize), Malformed> {
    decoder.restart(compressed.clone())?;
    let mut length = 0;
    loop {
        let bytes = match decoder.step()? {
            Did::Gave(bytes) => bytes,
            Did::Took => 0,
            Did::Hungry => break,
        };
        length += bytes;
        if length > bytes_max {
            return Err(Malformed::BodyTooLarge);
        }
        if length <= kept_max {
            body.extend_from_slice(&decoder.scratch[..bytes]);
        } else {
            body = Vec::new();
        }
        glommio::executor().yield_if_needed().await;
    }
    decoder.end()?;
    Ok((body, length))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::{Compression, write::GzEncoder};

    use super::*;

    struct Given(Vec<Bytes>);

    impl Pieces for Given {
        async fn next(&mut self) -> Result<Option<Bytes>, Malformed> {
            Ok(if self.0.is_empty() { None } else { Some(self.0.remove(0)) })
        }

        async fn whole(&mut self, _: usize) -> Result<Bytes, Malformed> {
            Ok(self.0.drain(..).flatten().collect())
        }
    }

    fn coded(coding: Coding, plain: &[u8]) -> Vec<u8> {
        match coding {
            Coding::Gzip => {
                let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
                encoder.write_all(plain).expect("memory takes it");
                encoder.finish().expect("memory takes it")
            }
            Coding::Zstd => {
                let mut out = Vec::with_capacity(zstd_safe::compress_bound(plain.len()));
                zstd_safe::compress(&mut out, plain, 3).expect("there is room");
                out
            }
        }
    }

    fn run<T>(future: impl Future<Output = T>) -> T {
        glommio::LocalExecutorBuilder::default().io_memory(1 << 20).make().expect("an executor").run(future)
    }

    /// Whole, and piece by piece.
    fn both(
        coding: Coding,
        compressed: &[u8],
        piece_bytes: usize,
        bytes_max: usize,
    ) -> [Result<Vec<u8>, Malformed>; 2] {
        let given = || Given(compressed.chunks(piece_bytes).map(Bytes::copy_from_slice).collect());
        run(async {
            let room = |_: usize| true;
            let mut pieces = given();
            let mut inflated = Inflated::new(coding, &mut pieces, bytes_max, &room);
            let whole = inflated.whole(bytes_max).await.map(|body| body.to_vec());
            let (mut pieces, mut body) = (given(), Vec::new());
            let mut inflated = Inflated::new(coding, &mut pieces, bytes_max, &room);
            let streamed = loop {
                match inflated.next().await {
                    Ok(Some(piece)) => body.extend_from_slice(&piece),
                    Ok(None) => break Ok(body),
                    Err(cause) => break Err(cause),
                }
            };
            [whole, streamed]
        })
    }

    #[test]
    fn what_was_compressed_comes_out() {
        for coding in [Coding::Gzip, Coding::Zstd] {
            for length in [0, 1, 1_000, 300_000, 3_000_000] {
                #[allow(clippy::cast_possible_truncation)] // Some bytes or other.
                let plain: Vec<u8> = (0..length).map(|n: u32| ((n / 7) ^ n) as u8).collect();
                let compressed = coded(coding, &plain);
                for piece_bytes in [7, 65_536] {
                    let [whole, streamed] = both(coding, &compressed, piece_bytes, plain.len());
                    assert!(whole.as_ref() == Ok(&plain), "{coding:?} {length}");
                    assert!(streamed.as_ref() == Ok(&plain), "{coding:?} {length}");
                }
                if length > 0 {
                    assert_eq!(both(coding, &compressed, 1_000, plain.len() - 1)[0], Err(Malformed::BodyTooLarge));
                }
                for cut in [1, compressed.len() / 2, compressed.len()] {
                    let cut = both(coding, &compressed[..compressed.len() - cut], 1_000, plain.len());
                    assert!(
                        cut.iter().all(|cut| matches!(cut, Err(Malformed::Coding(_)))),
                        "{coding:?} {length}: {cut:?}"
                    );
                }
            }
            let twice = [coded(coding, b"one "), coded(coding, b"after the other")].concat();
            let expected: Vec<u8> = b"one after the other".to_vec();
            assert_eq!(both(coding, &twice, 3, 100), [Ok(expected.clone()), Ok(expected)]);
            assert!(both(coding, b"no such thing", 100, 100).iter().all(Result::is_err));
        }
    }

    /// A frame that becomes nothing.
    const SKIPPABLE: [u8; 8] = [0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0];

    #[test]
    fn what_becomes_nothing_goes_in_steps_as_well() {
        let nothing = [(Coding::Zstd, SKIPPABLE.to_vec()), (Coding::Gzip, coded(Coding::Gzip, b""))];
        for (coding, nothing) in nothing {
            let room = |_: usize| true;
            let mut decoder = Decoder::new(coding, 100, &room);
            decoder.input = nothing.repeat(10_000).into();
            let (mut left, mut steps) = (decoder.input.len(), 0);
            while !matches!(decoder.step().expect("good"), Did::Hungry) {
                assert!(left - decoder.input.len() <= limits::CODING_INPUT_BYTES, "{coding:?}");
                (left, steps) = (decoder.input.len(), steps + 1);
            }
            assert!(steps >= 10_000, "{coding:?}: {steps}");
            // An end of the format's alone is no bound: what is sent has one.
            let long = nothing.repeat(2_000);
            assert_eq!(both(coding, &long, 1_000, 100)[1], Err(Malformed::BodyTooLarge), "{coding:?}");
            assert_eq!(both(coding, &long, 1_000, long.len())[1], Ok(Vec::new()), "{coding:?}");
        }
    }

    /// With a window of so many bits.
    fn framed(plain: &[u8], window_log: u32, is_length_said: bool) -> Vec<u8> {
        use zstd_safe::{CParameter, zstd_sys::ZSTD_EndDirective as Directive};
        let mut context = zstd_safe::CCtx::create();
        context.set_parameter(CParameter::WindowLog(window_log)).expect("in its range");
        context.set_parameter(CParameter::ContentSizeFlag(is_length_said)).expect("in its range");
        let mut out = Vec::with_capacity(zstd_safe::compress_bound(plain.len()));
        if is_length_said {
            context.compress2(&mut out, plain).expect("there is room");
            return out;
        }
        // It does not know the length when it writes the head.
        let mut from = InBuffer::around(plain);
        let mut into = OutBuffer::around(&mut out);
        for how in [Directive::ZSTD_e_continue, Directive::ZSTD_e_end] {
            while context.compress_stream2(&mut into, &mut from, how).expect("there is room") > 0
                && (how == Directive::ZSTD_e_end || from.pos() < plain.len())
            {}
        }
        out
    }

    #[test]
    fn the_head_of_a_frame_says_what_it_takes() {
        let plain = vec![b' '; 3 << 20];
        let head = |bytes: &[u8]| FrameHead::read(&bytes[..ZSTD_HEAD_BYTES_MAX.min(bytes.len())]).expect("whole");
        let says =
            |window_bytes, content_bytes, bytes| FrameHead { bytes, has_checksum: false, window_bytes, content_bytes };
        assert_eq!(head(&framed(&plain, 23, true)), says(3 << 20, Some(3 << 20), 4 + 1 + 4));
        assert_eq!(head(&framed(&plain, 23, false)), says(8 << 20, None, 4 + 1 + 1));
        assert_eq!(head(&framed(&plain, 20, true)).window_bytes, 1 << 20);
        assert_eq!(head(&SKIPPABLE), FrameHead::default());
        assert!((0..6).all(|length| FrameHead::read(&framed(b"x", 20, true)[..length]).is_none()));
    }

    #[test]
    fn what_is_too_large_is_refused_by_its_head() {
        let plain = vec![b' '; 3 << 20];
        let said = framed(&plain, 23, true);
        // The head alone: nothing was decompressed.
        let head = &said[..ZSTD_HEAD_BYTES_MAX];
        for piece_bytes in [1, 100] {
            assert_eq!(both(Coding::Zstd, head, piece_bytes, 1 << 20), [const { Err(Malformed::BodyTooLarge) }; 2]);
        }
        let wide = framed(&plain, 24, false);
        assert_eq!(both(Coding::Zstd, &wide, 1_000, 4 << 20), [Err(WINDOW_TOO_LARGE), Err(WINDOW_TOO_LARGE)]);
        let asked = std::cell::Cell::new(0);
        let room = |bytes: usize| {
            asked.set(bytes);
            bytes < 4 << 20
        };
        let refused = run(async {
            let mut pieces = Given(vec![framed(&plain, 22, false).into()]);
            Inflated::new(Coding::Zstd, &mut pieces, 8 << 20, &room).next().await
        });
        assert_eq!((refused, asked.get()), (Err(Malformed::NoRoom), (4 << 20) + ZSTD_BLOCKS_BYTES));
        let taken = run(async {
            let mut pieces = Given(vec![framed(&plain, 20, false).into()]);
            Inflated::new(Coding::Zstd, &mut pieces, 8 << 20, &room).whole(8 << 20).await
        });
        // Window, blocks, body and what was sent.
        assert!(taken == Err(Malformed::NoRoom) && asked.get() > 4 << 20, "{}", asked.get());
    }
}
