//! The gateway's parsers, included from its source as they are, and what must hold for any bytes.
//!
//! An inline module with a path stands for its folder there; what of it is not bytes and limits is left out, or has a stand-in here.
//! Each function takes what the fuzzer made and panics where a property is broken.

#![allow(dead_code, unused_imports)] // Of an included file a target uses a part.

#[path = "../../../src/limits.rs"]
mod limits;

#[path = "../../../src/proto"]
mod proto {
    pub mod compress;
    pub mod head;
    pub mod pieces;
    pub mod proxy_protocol;
    pub mod reply;
    pub mod watch;
    pub mod ws;

    pub use head::Malformed;
    pub use pieces::Pieces;
    pub use reply::Reply;

    pub mod h1 {
        mod chunk;

        /// The line before a chunk, and a trailer.
        pub fn line(bytes: &[u8]) {
            if let Ok(size) = chunk::parse_size(bytes) {
                let digits = bytes.split(|b| *b == b';').next().and_then(|digits| std::str::from_utf8(digits).ok());
                let expected = digits.and_then(|digits| u64::from_str_radix(digits, 16).ok());
                assert_eq!(Some(size), expected);
                assert!(!bytes.iter().any(|b| matches!(b, b'\r' | b'\n' | 0)));
            }
            if chunk::check_trailer(bytes).is_ok() {
                let colon = bytes.iter().position(|b| *b == b':').expect("a field has a colon");
                assert!(colon > 0 && !bytes[..colon].contains(&b' '));
                assert!(!bytes.iter().any(|b| matches!(b, b'\r' | b'\n' | 0)));
            }
        }
    }

    pub mod h2 {
        mod floods;

        use self::floods::Frames;
        use super::head::H2_PREFACE;

        /// The same bytes, whole and cut: the verdict is the same, whoever sent them.
        pub fn frames(bytes: &[u8]) {
            let Some((cut, bytes)) = bytes.split_first() else { return };
            let piece_bytes = usize::from(*cut).max(1);
            let mut verdicts = Vec::new();
            for piece_bytes in [bytes.len().max(1), piece_bytes] {
                let mut frames = Frames::new();
                frames.read(H2_PREFACE, 0).expect("the preface is no frame");
                let verdict = bytes.chunks(piece_bytes).try_for_each(|piece| frames.read(piece, 1));
                let is_cut_short = frames.is_cut_short();
                let mut written = Frames::new();
                // To the end, whatever is found.
                let first = bytes.chunks(piece_bytes).filter_map(|piece| written.written(piece, 1).err()).next();
                verdicts.push((verdict, verdict.is_ok().then_some(is_cut_short), first));
            }
            assert_eq!(verdicts[0], verdicts[1]);
        }
    }
}

#[path = "../../../src/store"]
mod store {
    mod record;

    pub use record::{Header, Partition, Record, TAG_HEADER};
}

#[path = "../../../src/api"]
mod api {
    pub mod codes;

    /// A failure without its way to the client.
    pub mod reply {
        use std::borrow::Cow;

        use super::codes::Code;

        #[derive(Clone, PartialEq, Eq, Debug)]
        pub struct Problem {
            pub code: &'static Code,
            pub detail: Cow<'static, str>,
        }

        impl Problem {
            pub fn new(code: &'static Code, detail: impl Into<Cow<'static, str>>) -> Self {
                Self { code, detail: detail.into() }
            }
        }
    }

    pub mod publish {
        use super::{codes, reply::Problem};

        pub fn too_large(bytes_max: usize) -> Problem {
            Problem::new(&codes::MESSAGE_TOO_LARGE, format!("a message has at most {bytes_max} bytes"))
        }
    }

    pub mod batch {
        pub mod document;
        pub mod parse;
        pub mod split;
    }
}

mod coded;
mod session;

pub use coded::coded;
pub use proto::{h1::line, h2::frames};
pub use session::session;

use std::{
    future::Future,
    pin::pin,
    task::{Context, Poll, Waker},
};

use api::batch::{
    document,
    parse::{self, Form, Item, Parsed},
    split::Splitter,
};
use bytes::Bytes;
use serde_json::value::RawValue;

use proto::{
    head::{Framing, Malformed, parse_h1},
    ws::handshake::Offer,
};

/// A PROXY header is as long as it says, and the same whatever follows; a byte less, and it has not come yet.
pub fn proxy(bytes: &[u8]) {
    let Ok(Some(found)) = proto::proxy_protocol::parse(bytes) else { return };
    assert!((1..=proto::proxy_protocol::HEADER_BYTES_MAX).contains(&found.bytes) && found.bytes <= bytes.len());
    assert_eq!(proto::proxy_protocol::parse(&bytes[..found.bytes]), Ok(Some(found)));
    assert_eq!(proto::proxy_protocol::parse(&bytes[..found.bytes - 1]), Ok(None));
}

/// Small, so that the fuzzer reaches it.
const MESSAGE_BYTES_MAX: usize = 64;
const MESSAGES_MAX: usize = 32;

/// The form of a batch, the size of the pieces it comes in, and its bytes.
pub fn batch(bytes: &[u8]) {
    let [form, cut, rest @ ..] = bytes else { return };
    match form % 4 {
        0 => assert_eq!(split(Form::Lines, rest, usize::MAX), split(Form::Lines, rest, usize::from(*cut))),
        1 => assert_eq!(split(Form::Frames, rest, usize::MAX), split(Form::Frames, rest, usize::from(*cut))),
        form => array(&Bytes::copy_from_slice(rest), form == 3),
    }
}

/// Whatever the pieces, the messages are the same; none is empty or over the limit.
fn split(form: Form, body: &[u8], piece_bytes: usize) -> Vec<Result<Item, u32>> {
    let mut splitter = Splitter::new(form, MESSAGE_BYTES_MAX);
    let mut found = Vec::new();
    let mut take = |parsed: Parsed| {
        if let Ok(item) = &parsed {
            assert!((1..=MESSAGE_BYTES_MAX).contains(&item.value.len()));
        }
        found.push(parsed.map_err(|problem| problem.code.number));
    };
    for piece in body.chunks(piece_bytes.max(1)) {
        splitter.feed(Bytes::copy_from_slice(piece));
        while let Some(parsed) = splitter.next() {
            take(parsed);
        }
    }
    if let Some(parsed) = splitter.last() {
        take(parsed);
    }
    found
}

/// What is taken for an array is one for serde_json too, with the same elements.
fn array(body: &Bytes, are_envelopes: bool) {
    let elements = document::elements(body, MESSAGES_MAX);
    let Poll::Ready(found) = pin!(elements).poll(&mut Context::from_waker(Waker::noop())) else {
        panic!("nobody to yield to")
    };
    let Ok(ranges) = found else { return };
    assert!((1..=MESSAGES_MAX).contains(&ranges.len()));
    match serde_json::from_slice::<Vec<&RawValue>>(body) {
        Ok(others) => {
            let others: Vec<_> = others.iter().map(|raw| raw.get().as_bytes()).collect();
            let ours: Vec<_> = ranges.iter().map(|range| &body[range.clone()]).collect();
            assert_eq!(ours, others);
        }
        // It gives up earlier on what is nested deeply.
        Err(error) => assert!(error.to_string().starts_with("recursion limit"), "{error}"),
    }
    for range in ranges {
        if are_envelopes {
            if let Ok(Ok(item)) = parse::envelope(body, range, MESSAGE_BYTES_MAX) {
                assert!(item.value.len() <= MESSAGE_BYTES_MAX);
                assert!(item.is_tombstone || !item.value.is_empty());
            }
        } else if let Ok(item) = parse::element(body, range, MESSAGE_BYTES_MAX) {
            assert!((1..=MESSAGE_BYTES_MAX).contains(&item.value.len()));
        }
    }
}

/// What is read of a head.
#[derive(PartialEq, Eq, Debug)]
struct Read {
    len: usize,
    framing: Framing,
    path: Vec<u8>,
    fields: usize,
    keep_alive: bool,
    /// It asks to become a WebSocket, with so many subprotocols.
    handshake: Option<usize>,
}

fn read(bytes: &[u8]) -> Result<Option<Read>, Malformed> {
    parse_h1(bytes, limits::HEAD_BYTES_MAX, limits::TARGET_BYTES_MAX, |head, len| Read {
        len,
        framing: head.framing,
        path: head.path.to_vec(),
        fields: head.fields.len(),
        keep_alive: head.keep_alive,
        handshake: Offer::read(head).ok().map(|offer| offer.protocols.len()),
    })
}

/// A head that is read ends with an empty line, holds no line end but CRLF, is within its bounds, and is the same head whatever
/// follows; a byte less, and it has not come yet.
pub fn head(bytes: &[u8]) {
    let Ok(Some(found)) = read(bytes) else { return };
    let head = &bytes[..found.len];
    assert!(head.ends_with(b"\r\n\r\n") && found.len <= limits::HEAD_BYTES_MAX);
    let bare = head.iter().enumerate().any(|(at, b)| match b {
        b'\n' => at == 0 || head[at - 1] != b'\r',
        b'\r' => head.get(at + 1) != Some(&b'\n'),
        0 => true,
        _ => false,
    });
    assert!(!bare, "no bare CR, bare LF or NUL in a head");
    assert!(found.path.starts_with(b"/") && found.path.iter().all(|b| (0x21..=0x7e).contains(b)));
    let lower = head.to_ascii_lowercase();
    let named = |name: &[u8]| lower.windows(name.len()).any(|window| window == name);
    match found.framing {
        Framing::Chunked => assert!(named(b"\r\ntransfer-encoding:") && !named(b"\r\ncontent-length:")),
        Framing::Length(length) => assert!(length == 0 || named(b"\r\ncontent-length:")),
        Framing::Stream(_) => panic!("HTTP/1 has no streams"),
    }
    if found.handshake.is_some() {
        assert!(named(b"\r\nsec-websocket-key:") && found.framing == Framing::Length(0));
    }
    assert_eq!(read(head), Ok(Some(found)));
    assert_eq!(read(&head[..head.len() - 1]), Ok(None));
}
