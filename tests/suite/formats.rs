//! Every message there can be in a topic is delivered in every format, or marked for what it is; none stops a reader.
//!
//! Method: messages of one byte and of the largest size, with keys and values that are no text, with repeated and empty headers, are
//! published and read as frames, NDJSON and SSE, each by a group of its own, and compared byte for byte. On the real cluster a producer
//! that is not the gateway adds what no gateway takes: empty values, tombstones, null header values, and messages of several megabytes,
//! larger than what the gateway fetches or answers at once. Read singly, in batches and in a stream, all must come, in order.

use std::collections::HashSet;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use kateway_tests::admin::Raw;
use kateway_tests::client::percent_encode;
use kateway_tests::readers::{Decoder, Delivery, Format, Stream};
use kateway_tests::topic::Topic;
use kateway_tests::{figures, problem};

use crate::stage::{SOON, Stage, call, single};
use crate::{Case, kafka};

pub const CASES: &[Case] = &[
    Case::new("formats::say_the_same_on_memory", || say_the_same(&Stage::on_memory("written"))),
    Case::new("formats::say_the_same_on_kafka", || say_the_same(&Stage::on_kafka("written", 2))).kafka(),
    Case::new("formats::what_no_gateway_takes", what_no_gateway_takes).kafka(),
    Case::new("formats::larger_than_a_fetch", larger_than_a_fetch).kafka(),
    Case::new("formats::accept_decides", accept_decides),
];

const LARGEST: usize = 512 * 1024;

fn samples() -> Vec<Raw> {
    let text = |text: &str| Some(text.as_bytes().to_vec());
    let header = |name: &str, value: &[u8]| (name.to_owned(), Some(value.to_vec()));
    let value = |bytes: Vec<u8>| Raw { value: Some(bytes), ..Raw::default() };
    vec![
        value(vec![b'x']),
        value(vec![0]),
        value((0..LARGEST).map(|i| u8::try_from(i % 251).expect("below 251")).collect()),
        Raw { key: text("ключ"), ..value("größe\r\n\r\ndata: no\n".into()) },
        Raw { key: Some(vec![0xff, 0, 0xfe]), ..value(vec![0xc3, 0x28, b'\n']) },
        value(b"id: 7\ndata: x\n\n".to_vec()),
        Raw {
            headers: vec![
                header("zeta", b"1"),
                header("alpha", b""),
                header("zeta", b"3"),
                header("bytes", &[0, 255]),
                header("alpha", b""),
            ],
            ..value(b"headers in order, some repeated, some empty".to_vec())
        },
    ]
}

fn say_the_same(stage: &Stage) {
    let mut connection = stage.gateway.publisher();
    for raw in samples() {
        let key = percent_encode(raw.key.as_deref().unwrap_or_default());
        let mut request = stage.topic.publish(&format!("partition=0&key={key}"), raw.value.unwrap_or_default());
        for (name, value) in raw.headers {
            request = request.header(&format!("X-Header-{name}"), &STANDARD.encode(value.unwrap_or_default()));
        }
        call(&mut connection, &request).expect(201);
    }
    for format in Format::ALL {
        assert_all_come(stage, format, &samples());
    }
}

/// Reads everything in one format, by a group of its own, and compares.
fn assert_all_come(stage: &Stage, format: Format, expected: &[Raw]) {
    let group = format!("{format:?}");
    let mut connection = stage.gateway.subscriber();
    let mut got = Vec::new();
    while got.len() < expected.len() {
        let request = stage.topic.read(&group, "batch=100&wait=20s").header("Accept", format.media_type());
        let answer = call(&mut connection, &request).expect(200);
        assert_eq!(answer.header("content-type"), Some(format.media_type()));
        assert!(!answer.chunks.is_empty(), "batches are chunked");
        got.extend(Decoder::messages(format, &answer.body));
    }
    assert_eq!(got.len(), expected.len(), "{format:?}");
    for (n, (delivery, raw)) in got.iter().zip(expected).enumerate() {
        assert_same(format, n, delivery, raw);
    }
    let cursors: HashSet<&String> = got.iter().filter_map(|delivery| delivery.cursor.as_ref()).collect();
    assert!(format != Format::Sse || cursors.len() == got.len(), "each event has a cursor of its own");
}

fn assert_same(format: Format, n: usize, delivery: &Delivery, raw: &Raw) {
    assert_eq!(delivery.position(), (0, i64::try_from(n).expect("few")), "{format:?}");
    if format == Format::Frames {
        // Frames may write null as they write empty.
        let payload = delivery.payload.as_deref().unwrap_or_default();
        assert!(payload == raw.value.as_deref().unwrap_or_default(), "{format:?}: payload {n}");
        return;
    }
    assert!(delivery.payload == raw.value, "{format:?}: payload {n}");
    let key = |key: &Option<Vec<u8>>| key.clone().filter(|key| !key.is_empty());
    assert_eq!(key(&delivery.key), key(&raw.key), "{format:?}: key {n}");
    assert_eq!(delivery.headers, raw.headers, "{format:?}: headers {n}");
    assert_eq!(delivery.deliveries, Some(1));
}

fn what_no_gateway_takes() {
    let stage = Stage::on_kafka("written", 1);
    let text = |text: &str| Some(text.as_bytes().to_vec());
    let records = vec![
        Raw { key: text("deleted"), ..Raw::default() },
        Raw { value: text(""), ..Raw::default() },
        Raw { key: text(""), value: text("an empty key"), ..Raw::default() },
        Raw {
            value: text("nothing in a header"),
            headers: vec![("null".into(), None), ("empty".into(), text(""))],
            ..Raw::default()
        },
        Raw { value: text("not a token"), headers: vec![("a b:c".into(), text("d"))], ..Raw::default() },
        Raw { value: text("long"), headers: vec![("long".into(), Some(vec![b'h'; 6_000]))], ..Raw::default() },
        Raw { key: Some(vec![0xff; 4_000]), value: text("a key longer than any head"), ..Raw::default() },
        Raw::default(),
        Raw { value: text("the last"), ..Raw::default() },
    ];
    kafka().admin().produce_records(&stage.topic.in_kafka(), 0, &records);
    for format in Format::ALL {
        assert_all_come(&stage, format, &records);
    }
    let mut connection = stage.gateway.subscriber();
    for (n, raw) in records.iter().enumerate() {
        let message = call(&mut connection, &stage.topic.read("singly", "wait=20s"));
        assert!(message.body == raw.value.clone().unwrap_or_default(), "payload {n}");
        assert_eq!(message.number("x-offset"), i64::try_from(n).expect("few"));
        let head: usize = message.headers.iter().map(|(name, value)| name.len() + value.len() + 4).sum();
        assert!(head < 8_192, "a head of {head} bytes");
    }
    call(&mut connection, &stage.topic.read("singly", "wait=0s")).expect(204);
}

/// Larger than `kafka.fetch_queue_kbytes`, and than `sub.batch_bytes_max`.
fn larger_than_a_fetch() {
    let admin = kafka().admin();
    let topic = Topic::fresh("large");
    admin.create_topic_with(&topic.in_kafka(), 1, &[("max.message.bytes", "16000000")]);
    let gateway = kateway_tests::kateway::Kateway::kafka(admin.brokers()).shards(2).start();
    let stage = Stage { gateway, topic, on_kafka: true };
    let of = |len: usize, first: u8| {
        let mut bytes: Vec<u8> = (0..len).map(|i| u8::try_from(i % 251).expect("below 251")).collect();
        bytes[0] = first;
        Raw { value: Some(bytes), ..Raw::default() }
    };
    let records: Vec<Raw> =
        [10, 5_000_000, 10, 9_000_000, 9_000_000, 10].into_iter().zip(0..).map(|(len, first)| of(len, first)).collect();
    admin.produce_records(&stage.topic.in_kafka(), 0, &records);
    assert_all_come(&stage, Format::Frames, &records);
    assert_all_come(&stage, Format::Lines, &records);

    let mut connection = stage.gateway.subscriber();
    for (n, raw) in records.iter().enumerate() {
        let answer = call(&mut connection, &stage.topic.read("singly", "wait=20s"));
        assert_eq!(single(&answer).offset, i64::try_from(n).expect("few"));
        assert!(Some(&answer.body) == raw.value.as_ref(), "payload {n}");
    }
    let request = stage.topic.read("streamed", "stream=1");
    let mut stream = Stream::open(stage.gateway.subscribe, &request, Format::Frames).unwrap_or_else(|e| panic!("{e}"));
    for raw in &records {
        assert!(stream.message(SOON).payload == raw.value);
    }
    figures::note(
        "formats: RSS after 24 MB in six messages, four times",
        format!("{} KiB", stage.gateway.resident_kib()),
    );
}

fn accept_decides() {
    let stage = Stage::on_memory("written");
    stage.fill(0, 0..1);
    let answered = |group: &str, accept: &str| {
        let request = stage.topic.read(group, "batch=10&wait=20s").header("Accept", accept);
        stage.call(&request).expect(200).header("content-type").map(str::to_owned)
    };
    for (n, (accept, format)) in [
        ("*/*", Format::Frames),
        ("application/octet-stream", Format::Frames),
        ("application/x-ndjson", Format::Lines),
        ("text/event-stream", Format::Sse),
        ("text/event-stream, application/json;q=0.5", Format::Sse),
    ]
    .into_iter()
    .enumerate()
    {
        assert_eq!(answered(&format!("g{n}"), accept).as_deref(), Some(format.media_type()), "{accept}");
    }
    // One message is given as it is, whatever the client accepts.
    let request = stage.topic.read("one", "wait=20s").header("Accept", "text/plain");
    assert_eq!(single(&stage.call(&request)).text, "0");
    for value in ["2", "yes", ""] {
        problem::check(&stage.call(&stage.topic.read("one", &format!("stream={value}"))), 400);
    }
    let never = Duration::from_millis(500);
    let request = stage.topic.read("stream-of-nothing", "stream=1&reset=newest");
    let mut stream = Stream::open(stage.gateway.subscribe, &request, Format::Lines).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(stream.next(never), kateway_tests::readers::Next::Nothing);
}
