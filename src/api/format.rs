//! Messages as readers get them: the 16-byte frames, NDJSON, and one message with its fields as headers.

use std::task::{Context, Poll};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use smallvec::SmallVec;

use super::query::percent_encode;
use crate::{
    limits,
    proto::{BodySource, Reply, reply::Aborted},
    store::{Delivery, Message, TAG_HEADER},
};

/// What stands before the payload in a frame.
const FRAME_HEAD_BYTES: usize = 16;

/// How a batch is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// `i32 partition | i64 offset | i32 length | payload`, big endian.
    Frames,
    Ndjson,
}

impl Format {
    /// By `Accept`; frames unless NDJSON is named. `None`: only what is not built yet is named.
    pub fn by_accept(accept: Option<&[u8]>) -> Option<Self> {
        let names = |media_type: &str| accept.is_some_and(|a| memchr::memmem::find(a, media_type.as_bytes()).is_some());
        if names("application/x-ndjson") {
            return Some(Self::Ndjson);
        }
        let is_sse_alone = names("text/event-stream") && !names("application/octet-stream") && !names("*/*");
        (!is_sse_alone).then_some(Self::Frames)
    }

    pub fn content_type(self) -> &'static str {
        match self {
            Self::Frames => "application/octet-stream",
            Self::Ndjson => "application/x-ndjson",
        }
    }
}

/// A batch, written piece by piece so that an answer never stands twice in memory.
#[derive(Debug)]
pub struct BatchBody {
    pub format: Format,
    pub delivery: Delivery,
    next: usize,
}

impl BatchBody {
    pub fn new(format: Format, delivery: Delivery) -> Self {
        Self { format, delivery, next: 0 }
    }
}

impl BodySource for BatchBody {
    fn poll_piece(&mut self, _cx: &mut Context<'_>, out: &mut Vec<u8>) -> Poll<Option<Result<(), Aborted>>> {
        let limit = out.len() + limits::WRITE_CHUNK_BYTES;
        let before = self.next;
        while let Some(message) = self.delivery.messages.get(self.next)
            && out.len() < limit
        {
            match self.format {
                Format::Frames => write_frame(message, out),
                Format::Ndjson => write_ndjson(message, deliveries(&self.delivery, self.next), out),
            }
            self.next += 1;
        }
        Poll::Ready((self.next > before).then_some(Ok(())))
    }
}

fn deliveries(delivery: &Delivery, index: usize) -> u32 {
    delivery.redelivered.iter().find(|(i, _)| *i == index).map_or(1, |(_, count)| *count)
}

fn write_frame(message: &Message, out: &mut Vec<u8>) {
    // A payload came through a limit far below 2 GiB, or from Kafka, whose own length is an i32.
    let length = i32::try_from(message.value.len()).unwrap_or(i32::MAX);
    // Put together first: each appending looks whether there is room.
    let mut head = [0; FRAME_HEAD_BYTES];
    head[..4].copy_from_slice(&message.partition.to_be_bytes());
    head[4..12].copy_from_slice(&message.offset.to_be_bytes());
    head[12..].copy_from_slice(&length.to_be_bytes());
    out.reserve(FRAME_HEAD_BYTES + message.value.len());
    out.extend_from_slice(&head);
    out.extend_from_slice(&message.value);
}

fn write_ndjson(message: &Message, deliveries: u32, out: &mut Vec<u8>) {
    let mut object = json!({
        "partition": message.partition,
        "offset": message.offset,
        "timestamp": message.timestamp_ms,
        "deliveries": deliveries,
    });
    if let Some(key) = &message.key {
        put_bytes(&mut object, "key", "key64", key);
    }
    if let Some(tag) = message.tag() {
        object["tag"] = String::from_utf8_lossy(tag).into();
    }
    let headers: Vec<Value> = message
        .headers()
        .iter()
        .filter(|(name, _)| name.as_ref() != TAG_HEADER)
        .map(|(name, value)| json!([String::from_utf8_lossy(name), value.as_ref().map(|v| STANDARD.encode(v))]))
        .collect();
    if !headers.is_empty() {
        object["headers"] = headers.into();
    }
    put_bytes(&mut object, "value", "base64", &message.value);
    // Serialising a Value into memory cannot fail.
    let _ = serde_json::to_writer(&mut *out, &object);
    out.push(b'\n');
}

/// Text as text, anything else as base64 under the other name.
fn put_bytes(object: &mut Value, text_name: &str, base64_name: &str, bytes: &[u8]) {
    match std::str::from_utf8(bytes) {
        Ok(text) => object[text_name] = text.into(),
        Err(_) => object[base64_name] = STANDARD.encode(bytes).into(),
    }
}

/// One message: the payload as the body, the rest as headers. What does not fit a header is left to NDJSON.
pub fn single(delivery: &Delivery, message: &Message, request_id: &[u8]) -> Reply {
    let mut reply = Reply::new(200)
        .field("X-Request-Id", request_id)
        .number("X-Partition", i64::from(message.partition))
        .number("X-Offset", message.offset)
        .number("X-Timestamp", message.timestamp_ms);
    let mut text: SmallVec<[u8; 64]> = SmallVec::new();
    let mut room = limits::HEAD_BYTES_MAX;
    if let Some(key) = message.key.as_ref().filter(|key| key.len() <= room) {
        percent_encode(key, &mut text);
        add_if_fits(&mut reply, "X-Key", &text, &mut room);
    }
    for (name, value) in message.headers() {
        text.clear();
        if name.as_ref() == TAG_HEADER {
            percent_encode(value.as_deref().unwrap_or_default(), &mut text);
            add_if_fits(&mut reply, "X-Tag", &text, &mut room);
            continue;
        }
        let Some(value) = value else { continue };
        if is_trace(name) && value.iter().all(|b| (0x20..=0x7e).contains(b)) && value.len() < room {
            room -= value.len();
            reply.add_field(if name.ends_with(b"parent") { "traceparent" } else { "tracestate" }, value);
            continue;
        }
        let encoded = STANDARD.encode(value);
        let bytes = "X-Header-: \r\n".len() + name.len() + encoded.len();
        if is_token(name) && bytes <= room {
            room -= bytes;
            reply.add_field(&format!("X-Header-{}", String::from_utf8_lossy(name)), encoded.as_bytes());
        }
    }
    let deliveries = deliveries(delivery, 0);
    if deliveries > 1 {
        reply = reply.number("X-Delivery-Count", i64::from(deliveries));
    }
    reply.body("application/octet-stream", message.value.clone())
}

/// What is left out is in NDJSON.
fn add_if_fits(reply: &mut Reply, name: &str, value: &[u8], room: &mut usize) {
    if let Some(left) = room.checked_sub(name.len() + value.len()) {
        *room = left;
        reply.add_field(name, value);
    }
}

fn is_trace(name: &[u8]) -> bool {
    name == b"traceparent" || name == b"tracestate"
}

/// An RFC 9110 token.
fn is_token(name: &[u8]) -> bool {
    !name.is_empty() && name.iter().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(b))
}
