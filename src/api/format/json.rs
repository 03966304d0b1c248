//! The JSON of messages, written straight into the answer: field by field in the contract's order.
//!
//! Text stands as text, anything that is not UTF-8 as base64 under the other name. Every byte below 0x20 is escaped, so an object
//! never holds a line break, which both NDJSON and SSE stand on.

use base64::{Engine, engine::general_purpose::STANDARD};

use crate::store::{DUE_HEADER, Gap, Message, TAG_HEADER};

/// `{"partition","offset","timestamp","key"|"key64","tag","headers","deliveries","value"|"base64"}`
pub fn put_message(message: &Message, deliveries: u32, out: &mut Vec<u8>) {
    // Most of it at once rather than by doubling; escapes may take more.
    out.reserve(160 + message.value.len());
    out.extend_from_slice(b"{\"partition\":");
    put_number(message.partition, out);
    out.extend_from_slice(b",\"offset\":");
    put_number(message.offset, out);
    out.extend_from_slice(b",\"timestamp\":");
    put_number(message.timestamp_ms, out);
    if let Some(key) = &message.key {
        put_bytes(b",\"key\":", b",\"key64\":", key, out);
    }
    put_headers(message, out);
    out.extend_from_slice(b",\"deliveries\":");
    put_number(deliveries, out);
    if message.is_tombstone {
        out.extend_from_slice(b",\"value\":null");
    } else {
        put_bytes(b",\"value\":", b",\"base64\":", &message.value, out);
    }
    out.push(b'}');
}

/// The tag, and the headers other than it; neither where there is none.
fn put_headers(message: &Message, out: &mut Vec<u8>) {
    let headers = message.headers();
    if headers.is_empty() {
        return;
    }
    if let Some(tag) = message.tag() {
        out.extend_from_slice(b",\"tag\":");
        put_text(&String::from_utf8_lossy(tag), out);
    }
    let mut before: &[u8] = b",\"headers\":[[";
    for (name, value) in headers.iter().filter(|(name, _)| ![TAG_HEADER, DUE_HEADER].contains(&name.as_ref())) {
        out.extend_from_slice(std::mem::replace(&mut before, b"],["));
        put_text(&String::from_utf8_lossy(name), out);
        match value {
            Some(value) => {
                out.push(b',');
                put_base64(value, out);
            }
            None => out.extend_from_slice(b",null"),
        }
    }
    if before == b"],[" {
        out.extend_from_slice(b"]]");
    }
}

/// `{"gap":{"partition","from","to"}}`
pub fn put_gap(gap: &Gap, out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"gap\":{\"partition\":");
    put_number(gap.partition, out);
    out.extend_from_slice(b",\"from\":");
    put_number(gap.from, out);
    out.extend_from_slice(b",\"to\":");
    put_number(gap.to, out);
    out.extend_from_slice(b"}}");
}

pub(super) fn put_value(value: &serde_json::Value, out: &mut Vec<u8>) {
    // Writing into memory cannot fail.
    let _ = serde_json::to_writer(out, value);
}

pub(super) fn put_number(number: impl itoa::Integer, out: &mut Vec<u8>) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

fn put_bytes(text_name: &[u8], base64_name: &[u8], bytes: &[u8], out: &mut Vec<u8>) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        out.extend_from_slice(text_name);
        put_text(text, out);
    } else {
        out.extend_from_slice(base64_name);
        put_base64(bytes, out);
    }
}

fn put_text(text: &str, out: &mut Vec<u8>) {
    // As above.
    let _ = serde_json::to_writer(out, text);
}

fn put_base64(bytes: &[u8], out: &mut Vec<u8>) {
    out.push(b'"');
    let at = out.len();
    out.resize(at + bytes.len().div_ceil(3) * 4, 0);
    // There is exactly the room it takes.
    let written = STANDARD.encode_slice(bytes, &mut out[at..]).unwrap_or(0);
    out.truncate(at + written);
    out.push(b'"');
}
