//! Bodies of `batch=1`: their forms, and one message taken out of what stands for it.
//!
//! A value is a slice of the body wherever its bytes are the message; only a string with escapes, and base64, are made anew. Knows no
//! topic and no store.

use std::{borrow::Cow, fmt, ops::Range};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use memchr::memchr;
use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, SeqAccess, Visitor},
};
use serde_json::value::RawValue;

use super::super::{codes, publish, reply::Problem};
use crate::{
    limits,
    store::{Header, Partition, Record, TAG_HEADER},
};

/// Of what a parser says.
const SAID_CHARS_MAX: usize = 200;

/// How messages stand in the body.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Form {
    /// `application/json`: the elements of an array.
    Array,
    /// `application/vnd.kateway.batch+json`: an array of objects.
    Envelopes,
    /// `application/x-ndjson`.
    Lines,
    /// `application/vnd.kateway.frames`: `u32 length | bytes`, big endian.
    Frames,
}

impl Form {
    /// By `Content-Type`; its parameters say nothing here.
    pub fn of(content_type: Option<&[u8]>) -> Option<Self> {
        let name = content_type?.split(|byte| *byte == b';').next()?.trim_ascii();
        let forms = [
            ("application/json", Self::Array),
            ("application/vnd.kateway.batch+json", Self::Envelopes),
            ("application/x-ndjson", Self::Lines),
            ("application/vnd.kateway.frames", Self::Frames),
        ];
        forms.into_iter().find(|(known, _)| name.eq_ignore_ascii_case(known.as_bytes())).map(|(_, form)| form)
    }

    /// Messages are published while the body still arrives; else it is looked at whole before anything of it is used.
    pub fn is_streamed(self) -> bool {
        matches!(self, Self::Lines | Self::Frames)
    }
}

/// One message, with what its envelope says of it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Item {
    pub value: Bytes,
    pub is_tombstone: bool,
    /// An empty key is no key, and says so.
    pub key: Option<Bytes>,
    pub partition: Option<Partition>,
    /// The tag is one of them.
    pub headers: Vec<Header>,
}

impl Item {
    /// What it says, over what is said of all; `partitions` is how many the topic has.
    pub fn over(self, common: &Record, partitions: Partition) -> Result<Record, Box<Problem>> {
        let Self { value, is_tombstone, key, partition, headers: own } = self;
        let partition = partition.or(common.partition);
        if let Some(partition) = partition.filter(|partition| *partition >= partitions) {
            let detail = format!("partition {partition} of {partitions}");
            return Err(Box::new(Problem::new(&codes::PARTITION_OUT_OF_RANGE, detail)));
        }
        let key = key.or_else(|| common.key.clone()).filter(|key| !key.is_empty());
        let mut headers = common.headers.clone();
        if !own.is_empty() {
            headers.retain(|(name, _)| !own.iter().any(|(other, _)| other == name));
            // An empty tag is none.
            let says =
                |name: &[u8], value: Option<&[u8]>| name != TAG_HEADER || value.is_some_and(|tag| !tag.is_empty());
            headers.extend(own.into_iter().filter(|(name, value)| says(name, value.as_deref())));
        }
        Ok(Record { key, value, is_tombstone, headers, partition })
    }

    /// Its value stands by itself if it is shorter than that: a slice keeps all it was cut from.
    pub fn apart(mut self, shorter_than: usize) -> Self {
        if self.value.len() < shorter_than {
            self.value = Bytes::copy_from_slice(&self.value);
        }
        self
    }
}

/// A message, or why it is none.
pub type Parsed = Result<Item, Problem>;

pub fn wrong(detail: impl Into<Cow<'static, str>>) -> Problem {
    Problem::new(&codes::INVALID_BODY, detail)
}

/// What a parser says of a text; it may name what stands there, whatever its length.
fn said(error: &serde_json::Error) -> String {
    let mut text = error.to_string();
    if let Some((end, _)) = text.char_indices().nth(SAID_CHARS_MAX) {
        text.truncate(end);
        text.push_str("...");
    }
    text
}

/// The longest JSON string that may stand for a message: an escape is six bytes for one.
pub fn text_bytes_max(message_bytes_max: usize) -> usize {
    6 * message_bytes_max + 2
}

/// Whether it is JSON, by the grammar alone: numbers of any size, escapes of any character.
pub fn check_json(text: &[u8]) -> Result<(), Problem> {
    let text = std::str::from_utf8(text).map_err(|_| wrong("not UTF-8"))?;
    serde_json::from_str::<IgnoredAny>(text).map_err(|error| wrong(format!("not JSON: {}", said(&error))))?;
    Ok(())
}

/// A value that may be a message.
pub fn checked(value: Bytes, message_bytes_max: usize) -> Parsed {
    match value.len() {
        0 => Err(Problem::new(&codes::EMPTY_MESSAGE, "a message has at least one byte")),
        bytes if bytes > message_bytes_max => Err(publish::too_large(message_bytes_max)),
        _ => Ok(Item { value, ..Item::default() }),
    }
}

/// The message that a JSON value known to be good stands for: its exact bytes; of a string its text.
pub fn element(body: &Bytes, range: Range<usize>, message_bytes_max: usize) -> Parsed {
    // Not unescaped for nothing.
    if range.len() > text_bytes_max(message_bytes_max) {
        return Err(publish::too_large(message_bytes_max));
    }
    checked(value(body, range)?, message_bytes_max)
}

fn value(body: &Bytes, range: Range<usize>) -> Result<Bytes, Problem> {
    Ok(match &body[range.clone()] {
        [b'"', inner @ .., b'"'] if memchr(b'\\', inner).is_none() => body.slice(range.start + 1..range.end - 1),
        text @ [b'"', ..] => {
            let text: String =
                serde_json::from_slice(text).map_err(|error| wrong(format!("a string: {}", said(&error))))?;
            Bytes::from(text)
        }
        _ => body.slice(range),
    })
}

/// The message of one line, which has to be JSON.
pub fn line(line: &Bytes, message_bytes_max: usize) -> Parsed {
    check_json(line).map_err(|problem| wrong(format!("the line is {}", problem.detail)))?;
    let whole = 0..line.len();
    element(line, whole, message_bytes_max)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope<'a> {
    #[serde(borrow)]
    key: Option<Cow<'a, str>>,
    #[serde(borrow)]
    key64: Option<Cow<'a, str>>,
    #[serde(borrow)]
    tag: Option<Cow<'a, str>>,
    partition: Option<Partition>,
    #[serde(borrow, default)]
    headers: Headers<'a>,
    #[serde(borrow, default, deserialize_with = "raw")]
    value: Option<&'a RawValue>,
    #[serde(borrow)]
    base64: Option<Cow<'a, str>>,
}

/// Names and values: no more than there may be, and one, so that there are too many.
#[derive(Default)]
struct Headers<'a>(Vec<(Cow<'a, str>, Option<Cow<'a, str>>)>);

impl<'de: 'a, 'a> Deserialize<'de> for Headers<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(HeadersVisitor).map(Self)
    }
}

struct HeadersVisitor;

impl<'de> Visitor<'de> for HeadersVisitor {
    type Value = Vec<(Cow<'de, str>, Option<Cow<'de, str>>)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of names and values")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut headers = Vec::new();
        while headers.len() <= limits::RECORD_HEADERS_MAX {
            let Some(header) = list.next_element()? else { return Ok(headers) };
            headers.push(header);
        }
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(headers)
    }
}

/// So that `null` is told from nothing.
fn raw<'de: 'a, 'a, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'a RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

/// The message of one envelope, a JSON object. `Err`: it is none; `Ok(Err)`: it is one, and says what cannot be.
pub fn envelope(body: &Bytes, range: Range<usize>, message_bytes_max: usize) -> Result<Parsed, Problem> {
    // A list of its values would do for the parser.
    if body.get(range.start) != Some(&b'{') {
        return Err(wrong("an envelope is an object"));
    }
    let envelope: Envelope<'_> =
        serde_json::from_slice(&body[range]).map_err(|error| wrong(format!("an envelope: {}", said(&error))))?;
    let item = match (envelope.value, envelope.base64.as_deref()) {
        (Some(raw), None) if raw.get() == "null" => Ok(Item { is_tombstone: true, ..Item::default() }),
        (Some(raw), None) => {
            let raw = body.slice_ref(raw.get().as_bytes());
            let whole = 0..raw.len();
            element(&raw, whole, message_bytes_max)
        }
        (None, Some(text)) => base64(text).and_then(|value| checked(value, message_bytes_max)),
        _ => Err(wrong("an envelope has either value or base64")),
    };
    Ok(item.and_then(|mut item| {
        item.key = key(envelope.key, envelope.key64.as_deref())?;
        item.partition = envelope.partition;
        if item.partition.is_some_and(|partition| partition < 0) {
            return Err(Problem::new(&codes::PARTITION_OUT_OF_RANGE, "no topic has a partition below 0"));
        }
        item.headers = headers(envelope.tag, envelope.headers.0)?;
        Ok(item)
    }))
}

fn key(text: Option<Cow<'_, str>>, base64_text: Option<&str>) -> Result<Option<Bytes>, Problem> {
    let key = match (text, base64_text) {
        (None, None) => return Ok(None),
        (Some(text), None) => Bytes::from(text.into_owned()),
        (None, Some(text)) => base64(text)?,
        _ => return Err(wrong("an envelope has either key or key64")),
    };
    if key.len() > limits::KEY_BYTES_MAX {
        let detail = format!("a key has at most {} bytes, this one has {}", limits::KEY_BYTES_MAX, key.len());
        return Err(Problem::new(&codes::KEY_TOO_LONG, detail));
    }
    Ok(Some(key))
}

fn headers(
    tag: Option<Cow<'_, str>>,
    named: Vec<(Cow<'_, str>, Option<Cow<'_, str>>)>,
) -> Result<Vec<Header>, Problem> {
    if named.len() > limits::RECORD_HEADERS_MAX {
        return Err(wrong(format!("a message has at most {} record headers", limits::RECORD_HEADERS_MAX)));
    }
    let mut headers = Vec::with_capacity(usize::from(tag.is_some()) + named.len());
    let mut bytes = 0;
    if let Some(tag) = tag {
        if tag.len() > limits::TAG_BYTES_MAX {
            let detail = format!("a tag has at most {} bytes", limits::TAG_BYTES_MAX);
            return Err(Problem::new(&codes::TAG_TOO_LONG, detail));
        }
        headers.push((Bytes::from_static(TAG_HEADER), Some(Bytes::from(tag.into_owned()))));
    }
    for (name, value) in named {
        if name.is_empty() || name.contains('\0') {
            return Err(wrong("a record header has a name, without NUL"));
        }
        if name.len() >= 8 && name.as_bytes()[..8].eq_ignore_ascii_case(b"kateway-") {
            return Err(wrong("record headers named kateway- are the gateway's own"));
        }
        let value = value.as_deref().map(base64).transpose()?;
        bytes += name.len() + value.as_ref().map_or(0, Bytes::len);
        headers.push((name.into_owned().into(), value));
    }
    if bytes > limits::RECORD_HEADERS_BYTES_MAX {
        return Err(wrong(format!("record headers have at most {} bytes", limits::RECORD_HEADERS_BYTES_MAX)));
    }
    Ok(headers)
}

fn base64(text: &str) -> Result<Bytes, Problem> {
    STANDARD.decode(text).map(Bytes::from).map_err(|_| wrong("what should be base64 is not"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_is_named_by_its_type() {
        assert_eq!(Form::of(Some(b"application/JSON; charset=utf-8")), Some(Form::Array));
        assert_eq!(Form::of(Some(b" application/x-ndjson ")), Some(Form::Lines));
        assert_eq!(Form::of(Some(b"text/plain")), None);
        assert_eq!(Form::of(None), None);
    }

    #[test]
    fn a_line_is_json_and_a_string_is_its_text() {
        let of = |text: &'static str| {
            line(&Bytes::from_static(text.as_bytes()), 20).map(|item| item.value).map_err(|problem| problem.code.number)
        };
        assert_eq!(of("{\"a\": 1}"), Ok(Bytes::from_static(b"{\"a\": 1}")));
        assert_eq!(of("\"te\\\"xt\\n\""), Ok(Bytes::from_static(b"te\"xt\n")));
        assert_eq!(of("\"\""), Err(40006));
        assert_eq!(of("\"\\ud800\""), Err(40014));
        assert_eq!(of("123456789012345678901"), Err(41301));
        for bad in ["{]", "1 2", "", "{\"a\":01}", "\"\u{1}\""] {
            assert_eq!(of(bad), Err(40014), "{bad}");
        }
        assert!(line(&Bytes::from_static(b"\"\xff\""), 20).is_err());
    }

    #[test]
    fn a_small_message_is_told_apart_from_its_body() {
        let body = Bytes::from(format!("[{}1]", " ".repeat(10_000)));
        let is_in = |value: &Bytes| body.as_ptr_range().contains(&value.as_ptr());
        let end = body.len() - 1;
        let item = element(&body, end - 1..end, 100).expect("good");
        assert!(is_in(&item.value), "a slice");
        assert!(is_in(&item.clone().apart(1).value) && !is_in(&item.apart(2).value));
    }

    #[test]
    fn what_is_said_is_short_and_headers_are_few() {
        let long = format!("{{\"{}\":1}}", "long\u{e4}".repeat(100_000));
        let problem = envelope(&long.clone().into(), 0..long.len(), 100).expect_err("no such field");
        assert!(problem.detail.chars().count() < 300 && problem.detail.contains("longälong"), "{}", problem.detail);
        for (count, is_good) in [(100, true), (101, false), (100_000, false)] {
            let text = format!("{{\"headers\":[{}[\"a\",null]],\"value\":1}}", "[\"a\",null],".repeat(count - 1));
            let parsed = envelope(&text.clone().into(), 0..text.len(), 100).expect("an envelope");
            assert_eq!(parsed.map(|item| item.headers.len()).ok(), is_good.then_some(count));
        }
        let large = format!("\"{}\"", "\\n".repeat(1_000));
        assert_eq!(element(&large.clone().into(), 0..large.len(), 100).expect_err("long").code.number, 41301);
    }

    #[test]
    fn envelopes_say_more() {
        let of = |text: &'static str| envelope(&Bytes::from_static(text.as_bytes()), 0..text.len(), 100);
        let first = of(r#"{"key":"k","tag":"a;b","partition":2,"headers":[["h","AQ=="],["h",null]],"value":{"x": 1}}"#);
        let first = first.expect("an envelope").expect("good");
        assert_eq!(
            (first.key.as_deref(), first.partition, &*first.value),
            (Some(&b"k"[..]), Some(2), &b"{\"x\": 1}"[..])
        );
        let header = |name: &'static [u8], value: Option<&'static [u8]>| {
            (Bytes::from_static(name), value.map(Bytes::from_static))
        };
        assert_eq!(first.headers, [header(TAG_HEADER, Some(b"a;b")), header(b"h", Some(b"\x01")), header(b"h", None)]);
        let second = of(r#"{"key64":"/w==","base64":"AAE="}"#).expect("an envelope").expect("good");
        assert_eq!((second.key.as_deref(), &*second.value), (Some(&b"\xff"[..]), &b"\0\x01"[..]));
        let third = of("{\"value\":\"te\\nxt\"}").expect("an envelope").expect("good");
        assert_eq!(&*third.value, b"te\nxt");
        let tombstone = of(r#"{"key":"k","value":null}"#).expect("an envelope").expect("good");
        assert!(tombstone.is_tombstone && tombstone.value.is_empty());
        for (text, code) in [
            (r#"{"value":1,"base64":"AA=="}"#, 40014),
            (r#"{"key":"k"}"#, 40014),
            (r#"{"key":"k","key64":"aw==","value":1}"#, 40014),
            (r#"{"base64":"*"}"#, 40014),
            (r#"{"base64":""}"#, 40006),
            (r#"{"partition":-1,"value":1}"#, 40009),
            (r#"{"headers":[["kateway-tag",null]],"value":1}"#, 40014),
            (r#"{"headers":[["",null]],"value":1}"#, 40014),
        ] {
            assert_eq!(of(text).expect("an envelope").expect_err(text).code.number, code, "{text}");
        }
        for none in [
            "1",
            "[1]",
            "[null,null,null,null,[],1,null]",
            r#"{"valu":1}"#,
            r#"{"value":1,"partition":"x"}"#,
            r#"{"value":1,"key":7}"#,
        ] {
            assert!(of(none).is_err(), "{none}");
        }
    }
}
