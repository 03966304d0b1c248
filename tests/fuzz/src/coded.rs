//! Compressed bodies, whole and piece by piece.

use std::{
    collections::VecDeque,
    future::Future,
    pin::pin,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;

use crate::proto::{
    Malformed, Pieces,
    compress::{Coding, Inflated},
};

/// Small, so that the fuzzer reaches it.
const BODY_BYTES_MAX: usize = 10_000;

/// A coding, the size of the pieces a body comes in, and its bytes. It becomes the same whole, where a zstd body is measured first and
/// decompressed without a window, and in pieces; what zstd itself takes is measured rightly.
pub fn coded(bytes: &[u8]) {
    let [coding, cut, sent @ ..] = bytes else { return };
    let coding = if coding % 4 == 0 { Coding::Gzip } else { Coding::Zstd };
    let whole = {
        let mut body = Body::of(sent, usize::MAX);
        now(Inflated::new(coding, &mut body, BODY_BYTES_MAX, &|_| true).whole(BODY_BYTES_MAX))
    };
    let mut body = Body::of(sent, usize::from(*cut).max(1));
    let mut inflated = Inflated::new(coding, &mut body, BODY_BYTES_MAX, &|_| true);
    let mut plain = Vec::new();
    let streamed = loop {
        match now(inflated.next()) {
            Ok(Some(piece)) => plain.extend_from_slice(&piece),
            Ok(None) => break Ok(()),
            Err(cause) => break Err(cause),
        }
        // Who reads it has to say so.
        if plain.len() > BODY_BYTES_MAX {
            break Err(Malformed::BodyTooLarge);
        }
    };
    match (whole, streamed) {
        // A match from before the window is one for a decoder that does not stream, and reads something else where it does.
        (Ok(whole), Ok(())) => assert!(whole == plain || (coding == Coding::Zstd && whole.len() == plain.len())),
        (Ok(_), Err(Malformed::Coding(_))) if coding == Coding::Zstd => {}
        // One that streams takes some of what is no good, such as an empty block that says it is compressed.
        (Err(_), Ok(())) if coding == Coding::Zstd => assert!(!is_good_zstd(sent)),
        (Err(_), Err(_)) => {}
        (whole, streamed) => panic!("whole {:?}, in pieces {streamed:?}", whole.map(|whole| whole.len())),
    }
}

fn is_good_zstd(sent: &[u8]) -> bool {
    zstd_safe::decompress(&mut Vec::with_capacity(BODY_BYTES_MAX), sent).is_ok()
}

fn now<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(done) => done,
        Poll::Pending => panic!("there is nobody to yield to"),
    }
}

struct Body(VecDeque<Bytes>);

impl Body {
    fn of(sent: &[u8], piece_bytes: usize) -> Self {
        Self(sent.chunks(piece_bytes).map(Bytes::copy_from_slice).collect())
    }
}

impl Pieces for Body {
    async fn next(&mut self) -> Result<Option<Bytes>, Malformed> {
        Ok(self.0.pop_front())
    }

    async fn whole(&mut self, bytes_max: usize) -> Result<Bytes, Malformed> {
        let whole: Bytes = self.0.drain(..).flatten().collect();
        if whole.len() > bytes_max { Err(Malformed::BodyTooLarge) } else { Ok(whole) }
    }
}
