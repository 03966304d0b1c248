//! The two batch formats of a subscription, decoded strictly.
//!
//! Binary frames are `i32 partition | i64 offset | i32 length | payload`, big endian. NDJSON is one object a line;
//! bytes that are not UTF-8 text come in `key64` and `base64`. Anything left over, or missing, is a panic: a reader
//! that tolerates is no judge.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

/// A frame's content.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Frame {
    pub partition: i32,
    pub offset: i64,
    pub payload: Vec<u8>,
}

/// A line's content.
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    pub partition: i32,
    pub offset: i64,
    pub timestamp: i64,
    pub key: Option<Vec<u8>>,
    pub tag: Option<String>,
    pub headers: Vec<(String, Option<Vec<u8>>)>,
    pub payload: Vec<u8>,
    /// Kafka's null: said with `"value":null`, which is not the same as empty.
    pub is_tombstone: bool,
    /// How often the message was delivered, this time included.
    pub deliveries: i64,
}

/// Splits a body into frames.
#[track_caller]
pub fn decode(mut body: &[u8]) -> Vec<Frame> {
    let mut frames = Vec::new();
    while !body.is_empty() {
        let (head, rest) =
            body.split_at_checked(16).unwrap_or_else(|| panic!("{} bytes are no frame head", body.len()));
        let partition = i32::from_be_bytes(head[..4].try_into().expect("4 bytes"));
        let offset = i64::from_be_bytes(head[4..12].try_into().expect("8 bytes"));
        let len = i32::from_be_bytes(head[12..].try_into().expect("4 bytes"));
        let len = usize::try_from(len).unwrap_or_else(|_| panic!("a length of {len}"));
        let (payload, rest) =
            rest.split_at_checked(len).unwrap_or_else(|| panic!("{len} bytes announced, {} left", rest.len()));
        frames.push(Frame { partition, offset, payload: payload.to_vec() });
        body = rest;
    }
    frames
}

/// Splits a body into NDJSON lines.
#[track_caller]
pub fn decode_lines(body: &[u8]) -> Vec<Line> {
    assert!(body.is_empty() || body.ends_with(b"\n"), "every NDJSON line ends with a newline");
    let lines = body.split(|&b| b == b'\n').filter(|line| !line.is_empty());
    lines.map(decode_line).collect()
}

fn decode_line(line: &[u8]) -> Line {
    let object: Value =
        serde_json::from_slice(line).unwrap_or_else(|e| panic!("{e} in {:?}", String::from_utf8_lossy(line)));
    decode_object(&object)
}

/// What an object of NDJSON or SSE says.
#[track_caller]
pub fn decode_object(object: &Value) -> Line {
    let number = |name: &str| object[name].as_i64().unwrap_or_else(|| panic!("{name} is a number in {object}"));
    let headers = object["headers"].as_array().map(Vec::as_slice).unwrap_or_default();
    let is_tombstone = object.get("value").is_some_and(Value::is_null) && object.get("base64").is_none();
    let payload = text_or_bytes(object, "value", "base64").or_else(|| is_tombstone.then(Vec::new));
    Line {
        partition: i32::try_from(number("partition")).expect("a partition number"),
        offset: number("offset"),
        timestamp: number("timestamp"),
        key: text_or_bytes(object, "key", "key64"),
        tag: object["tag"].as_str().map(str::to_owned),
        headers: headers.iter().map(decode_header).collect(),
        payload: payload.unwrap_or_else(|| panic!("value or base64 in {object}")),
        is_tombstone,
        deliveries: number("deliveries"),
    }
}

fn text_or_bytes(object: &Value, text: &str, encoded: &str) -> Option<Vec<u8>> {
    assert!(object[text].is_null() || object[encoded].is_null(), "not both {text} and {encoded}: {object}");
    match (object[text].as_str(), object[encoded].as_str()) {
        (Some(text), _) => Some(text.as_bytes().to_vec()),
        (None, Some(encoded)) => Some(STANDARD.decode(encoded).expect("valid base64")),
        (None, None) => None,
    }
}

fn decode_header(pair: &Value) -> (String, Option<Vec<u8>>) {
    let name = pair[0].as_str().unwrap_or_else(|| panic!("a header is [name, base64 or null]: {pair}"));
    (name.to_owned(), pair[1].as_str().map(|value| STANDARD.decode(value).expect("valid base64")))
}
