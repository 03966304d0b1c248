//! HTTP/2 frames by hand (RFC 9113), for what no proper client does.
//!
//! Frames are bytes to send on a [`Connection`]; header blocks write every field out (RFC 7541, 6.2.2), so they need no table and
//! no state. Answers come back as frames, not as responses.

use crate::client::{Connection, Failure};

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const ACK: u8 = 1;
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;

pub const ENHANCE_YOUR_CALM: u32 = 11;
/// Payload of a RST_STREAM with CANCEL.
pub const CANCEL: [u8; 4] = [0, 0, 0, 8];

/// A frame that was received.
#[derive(Debug)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Frame {
    /// The error code of a RST_STREAM or GOAWAY.
    pub fn code(&self) -> Option<u32> {
        let at = match self.kind {
            RST_STREAM => 0,
            GOAWAY => 4,
            _ => return None,
        };
        Some(u32::from_be_bytes(*self.payload[at..].first_chunk().expect("an error code")))
    }
}

/// The bytes of a frame.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).expect("a few bytes").to_be_bytes();
    [&len[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A header block.
pub fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let text = |text: &str| [&[u8::try_from(text.len()).expect("short")], text.as_bytes()].concat();
    fields.iter().flat_map(|(name, value)| [vec![0], text(name), text(value)].concat()).collect()
}

/// The head of a request, its last two fields as given.
pub fn head<'a>(method: &'a str, path: &'a str, more: &[(&'a str, &'a str)]) -> Vec<u8> {
    let first = [(":method", method), (":scheme", "http"), (":authority", "kateway"), (":path", path)];
    block(&[&first[..], more].concat())
}

/// The preface and settings that change nothing.
pub fn greeting() -> Vec<u8> {
    [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()
}

/// The next frame, whatever it is.
pub fn read_frame(connection: &mut Connection) -> Result<Frame, Failure> {
    let head = connection.read_raw(9)?;
    let len = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
    let payload = connection.read_raw(len)?;
    let stream = u32::from_be_bytes(head[5..9].try_into().expect("four bytes"));
    Ok(Frame { kind: head[3], flags: head[4], stream, payload })
}

/// Sends a PING and reads frames until its answer: what was sent before is read by then.
#[track_caller]
pub fn ping(connection: &mut Connection) {
    connection.send(&frame(PING, 0, 0, b"kateway?")).expect("sent");
    loop {
        let frame = read_frame(connection).unwrap_or_else(|e| panic!("{e}"));
        if (frame.kind, frame.flags) == (PING, ACK) {
            return;
        }
    }
}
