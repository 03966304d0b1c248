//! One message as a whole answer: the payload as the body, the rest as header fields.
//!
//! What does not fit a field (a name that is no token, more than the head's limit in all) is left out; it is in NDJSON.

use base64::{Engine, engine::general_purpose::STANDARD};
use smallvec::SmallVec;

use crate::{
    api::query::percent_encode,
    limits,
    proto::Reply,
    store::{DUE_HEADER, Delivery, Message, TAG_HEADER},
};

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
        if name.as_ref() == DUE_HEADER {
            continue;
        }
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
    if let Some((_, deliveries)) = delivery.redelivered.first().filter(|(index, _)| *index == 0) {
        reply = reply.number("X-Delivery-Count", i64::from(*deliveries));
    }
    if message.is_tombstone {
        reply.add_field("X-Tombstone", b"true");
    }
    // What retention took before this message; the partition is `X-Partition`'s.
    if let Some(gap) = delivery.gaps.first() {
        reply.add_display("X-Gap", format_args!("{}-{}", gap.from, gap.to));
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
