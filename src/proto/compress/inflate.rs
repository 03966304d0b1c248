//! Bodies that came compressed, piece by piece.
//!
//! Invariants: what comes out is bounded by the caller, step by step, whatever goes in, so that a body that grows a thousandfold costs
//! memory for what may be of it; what goes in is taken from the connection only when all that was taken before is used up.

use std::fmt;

use bytes::{Buf, Bytes};
use flate2::{Decompress, FlushDecompress, Status};
use zstd_safe::{DCtx, DParameter, InBuffer, OutBuffer};

use super::Coding;
use crate::{
    limits,
    proto::{Malformed, Pieces},
};

const BROKEN: Malformed = Malformed::Coding("the body is not what its Content-Encoding says");
const CUT: Malformed = Malformed::Coding("the compressed body is cut short");

/// The most a decoder of zstd has to remember for a client (RFC 9659).
const ZSTD_WINDOW_LOG_MAX: u32 = 23;
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

/// What a step came to.
enum Did {
    /// So many bytes stand in the scratch buffer.
    Gave(usize),
    /// All input is used up.
    Hungry,
}

#[derive(Debug)]
struct Decoder {
    coding: Coding,
    engine: Engine,
    /// What was not used yet.
    input: Bytes,
    /// Inside a stream: the body must not end here.
    is_open: bool,
    has_begun: bool,
    /// All of the last step's room was used: there may be more without further input.
    is_full: bool,
    scratch: Vec<u8>,
}

impl Decoder {
    fn new(coding: Coding) -> Self {
        let (is_open, has_begun, is_full) = Default::default();
        let scratch = vec![0; limits::CODING_STEP_BYTES];
        Self { coding, engine: Engine::new(coding), input: Bytes::new(), is_open, has_begun, is_full, scratch }
    }

    fn step(&mut self) -> Result<Did, Malformed> {
        while !self.input.is_empty() || self.is_full {
            if !self.is_open {
                // A further stream may follow the one that ended: both formats allow it.
                if self.has_begun {
                    self.engine = Engine::new(self.coding);
                }
                (self.is_open, self.has_begun) = (true, true);
            }
            let Step { taken, given, has_ended } = self.engine.step(&self.input, &mut self.scratch)?;
            self.input.advance(taken);
            self.is_full = given == self.scratch.len() && !has_ended;
            self.is_open = !has_ended;
            if given > 0 {
                return Ok(Did::Gave(given));
            }
            if taken == 0 && !has_ended && !self.input.is_empty() {
                return Err(BROKEN);
            }
        }
        Ok(Did::Hungry)
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
    decoder: Decoder,
}

impl<'a, P: Pieces> Inflated<'a, P> {
    pub fn new(coding: Coding, pieces: &'a mut P) -> Self {
        Self { pieces, decoder: Decoder::new(coding) }
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
                Did::Hungry => match self.pieces.next().await? {
                    Some(piece) => self.decoder.input = piece,
                    None => return self.decoder.end().map(|()| None),
                },
            }
        }
    }

    async fn whole(&mut self, bytes_max: usize) -> Result<Bytes, Malformed> {
        let compressed = self.pieces.whole(bytes_max).await?;
        inflate(self.decoder.coding, &compressed, bytes_max).await
    }
}

/// A whole body. From [`limits::INFLATED_AT_ONCE_BYTES`] on it is first decompressed for its length alone, and again if it is not longer than
/// it may be: a small body that would become a large one costs no memory.
async fn inflate(coding: Coding, compressed: &Bytes, bytes_max: usize) -> Result<Bytes, Malformed> {
    let (mut body, mut length) = (Vec::new(), 0);
    for is_kept in [false, true] {
        let mut decoder = Decoder::new(coding);
        decoder.input = compressed.clone();
        while let Did::Gave(bytes) = decoder.step()? {
            if is_kept || length + bytes <= limits::INFLATED_AT_ONCE_BYTES {
                body.extend_from_slice(&decoder.scratch[..bytes]);
            } else {
                body = Vec::new();
            }
            length += bytes;
            if length > bytes_max && !is_kept {
                return Err(Malformed::BodyTooLarge);
            }
            glommio::executor().yield_if_needed().await;
        }
        decoder.end()?;
        if body.len() == length {
            break;
        }
        body = Vec::with_capacity(length);
        length = 0;
    }
    Ok(body.into())
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
            let whole = Inflated::new(coding, &mut given()).whole(bytes_max).await.map(|body| body.to_vec());
            let (mut pieces, mut body) = (given(), Vec::new());
            let mut inflated = Inflated::new(coding, &mut pieces);
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
}
