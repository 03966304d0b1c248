//! What goes in by HTTP stands in Kafka byte for byte, and comes out by HTTP byte for byte.
//!
//! Method: publish a set of samples chosen to hurt (every byte value, one byte, the largest message, non-ASCII tags,
//! repeated headers, binary keys) to a topic of the real cluster. Read the topic with kcat and compare payload, key,
//! headers, partition and offset with what was sent and what the 201 said. Then read it through the gateway in all
//! three forms, one message at a time, frames and NDJSON, each with a group of its own, and compare again. Kafka's own
//! console consumer and offset tool look at a part of it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use kateway_tests::client::{Connection, Response, percent_decode, percent_encode};
use kateway_tests::kateway::Kateway;
use kateway_tests::topic::Topic;
use kateway_tests::{figures, frames, java, kcat};

use crate::{Case, kafka};

pub const CASES: &[Case] = &[
    Case::new("roundtrip::kafka_holds_and_gives_back_every_byte", kafka_holds_and_gives_back_every_byte).kafka(),
    Case::new("roundtrip::memory_gives_back_every_byte", memory_gives_back_every_byte),
    Case::new("roundtrip::kafkas_own_tools_agree", kafkas_own_tools_agree).kafka(),
];

const LARGEST: usize = 512 * 1024;

/// A message with everything a publisher can give.
struct Sample {
    key: Vec<u8>,
    tag: Option<&'static str>,
    headers: Vec<(&'static str, Vec<u8>)>,
    body: Vec<u8>,
    chunked: bool,
}

/// Where a sample went.
type Position = (i32, i64);

fn sample(body: impl Into<Vec<u8>>) -> Sample {
    Sample { key: Vec::new(), tag: None, headers: Vec::new(), body: body.into(), chunked: false }
}

fn samples() -> Vec<Sample> {
    let all_bytes: Vec<u8> = (0..=255).collect();
    let mut samples = vec![
        Sample { key: b"order-1".to_vec(), ..sample(all_bytes.clone()) },
        Sample { key: all_bytes[..].to_vec(), ..sample("a binary key of the greatest length") },
        Sample { tag: Some("a;b"), ..sample("tagged") },
        Sample { tag: Some("größe;日本"), key: "ключ".as_bytes().to_vec(), ..sample("non-ASCII tag and key") },
        Sample { chunked: true, ..sample("sent in chunks ".repeat(100)) },
        Sample { chunked: true, key: b"big".to_vec(), ..sample(pattern(LARGEST)) },
        sample(pattern(LARGEST)),
        sample("\r\n\r\n0\r\n\r\n"),
        sample("x"),
        sample([0]),
        sample(b"\x01untagged\x01".to_vec()),
        Sample {
            headers: vec![
                ("zeta", b"1".to_vec()),
                ("alpha", b"2".to_vec()),
                ("zeta", b"3".to_vec()),
                ("empty", Vec::new()),
                ("bytes", (1..=255).collect()),
            ],
            tag: Some("t"),
            ..sample("headers in order, one repeated, one empty, one binary")
        },
    ];
    samples.extend((0..=255).map(|byte: u8| sample([byte])));
    samples
}

/// Bytes that repeat only after 251, so that a lost or moved block shows.
fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| u8::try_from(i % 251).expect("below 251")).collect()
}

fn kafka_holds_and_gives_back_every_byte() {
    let admin = kafka().admin();
    let topic = Topic::fresh("bytes");
    admin.create_topic(&topic.in_kafka(), 4);
    let gateway = Kateway::kafka(admin.brokers()).shards(2).start();
    let samples = samples();
    let positions = publish_all(&gateway, &topic, &samples);

    let records = kcat::read_all(admin.brokers(), &topic.in_kafka());
    assert_eq!(records.len(), samples.len(), "every sample once and nothing else");
    let stored: BTreeMap<Position, _> = records.iter().map(|r| ((r.partition, r.offset), r)).collect();
    for (sample, position) in samples.iter().zip(&positions) {
        let record = stored[position];
        assert!(record.payload.as_deref() == Some(&sample.body[..]), "payload at {position:?}");
        assert_eq!(record.key.as_deref().unwrap_or_default(), sample.key, "key at {position:?}");
        assert!(!sample.key.is_empty() || record.key.is_none(), "no key means null, not empty, at {position:?}");
        if sample.tag.is_some() || !sample.headers.is_empty() {
            let headers = kcat::read_headers(admin.brokers(), &topic.in_kafka(), position.0, position.1);
            assert_headers_in_kafka(sample, &headers);
        }
    }
    read_back(&gateway, &topic, &samples, &positions);
}

fn memory_gives_back_every_byte() {
    let topic = Topic::fresh("bytes");
    let gateway = Kateway::memory().shards(2).start();
    let samples = samples();
    let positions = publish_all(&gateway, &topic, &samples);
    read_back(&gateway, &topic, &samples, &positions);
}

fn kafkas_own_tools_agree() {
    let admin = kafka().admin();
    let topic = Topic::fresh("tools");
    admin.create_topic(&topic.in_kafka(), 2);
    let gateway = Kateway::kafka(admin.brokers()).start();
    for n in 0..20 {
        let answer = gateway.publish(&topic.publish(&format!("key=k{n}"), format!("value {n}"))).expect(201);
        assert_eq!(answer.json()["ok"], 1);
    }
    let args = ["--bootstrap-server", admin.brokers(), "--topic", &topic.in_kafka()];
    let reading = ["--from-beginning", "--max-messages", "20", "--timeout-ms", "20000", "--property", "print.key=true"];
    let output = java::tool(java::CONSOLE_CONSUMER, &[&args[..], &reading[..]].concat(), b"");
    let mut lines: Vec<_> =
        String::from_utf8(output.stdout).expect("the values are text").lines().map(str::to_owned).collect();
    lines.sort();
    let mut expected: Vec<_> = (0..20).map(|n| format!("k{n}\tvalue {n}")).collect();
    expected.sort();
    assert_eq!(lines, expected);

    let output = java::tool(java::GET_OFFSETS, &args, b"");
    let ends = String::from_utf8(output.stdout).expect("ASCII");
    let sum: i64 = ends.lines().filter_map(|line| line.rsplit(':').next()?.parse::<i64>().ok()).sum();
    assert_eq!(sum, 20, "{ends}");
}

// === publish ===

fn publish_all(gateway: &Kateway, topic: &Topic, samples: &[Sample]) -> Vec<Position> {
    let mut connection = gateway.publisher();
    let start = Instant::now();
    let positions = samples.iter().map(|sample| publish(&mut connection, topic, sample)).collect();
    figures::note(
        "roundtrip: one connection, one message at a time",
        format!("{} in {:?}", samples.len(), start.elapsed()),
    );
    positions
}

fn publish(connection: &mut Connection, topic: &Topic, sample: &Sample) -> Position {
    let query = if sample.key.is_empty() { String::new() } else { format!("key={}", percent_encode(&sample.key)) };
    let mut request = topic.publish(&query, sample.body.clone());
    if let Some(tag) = sample.tag {
        request = request.header("X-Tag", tag);
    }
    for (name, value) in &sample.headers {
        request = request.header(&format!("X-Header-{name}"), &STANDARD.encode(value));
    }
    if sample.chunked {
        request = request.chunked(7_919);
    }
    let answer = connection.call(&request).unwrap_or_else(|e| panic!("{e}")).expect(201);
    assert_eq!(answer.json()["ok"], 1);
    let partition = i32::try_from(answer.number("x-partition")).expect("a partition number");
    (partition, answer.number("x-offset"))
}

/// kcat joins headers as `name=value,..`. Where the tag stands among them is not promised, the order of the others is.
fn assert_headers_in_kafka(sample: &Sample, found: &[u8]) {
    let tag = sample.tag.map(|tag| ("kateway-tag", tag.as_bytes().to_vec()));
    let tag_first = join(tag.iter().chain(&sample.headers));
    let tag_last = join(sample.headers.iter().chain(&tag));
    assert!(
        found == tag_first || found == tag_last,
        "{:?} is neither {:?} nor {:?}",
        String::from_utf8_lossy(found),
        String::from_utf8_lossy(&tag_first),
        String::from_utf8_lossy(&tag_last)
    );
}

fn join<'a>(headers: impl Iterator<Item = &'a (&'static str, Vec<u8>)>) -> Vec<u8> {
    let pairs: Vec<Vec<u8>> = headers.map(|(name, value)| [name.as_bytes(), b"=", value].concat()).collect();
    pairs.join(&b","[..])
}

// === read ===

fn read_back(gateway: &Kateway, topic: &Topic, samples: &[Sample], positions: &[Position]) {
    let expected: BTreeMap<Position, &Sample> = positions.iter().copied().zip(samples).collect();
    assert_eq!(expected.len(), samples.len(), "every sample has a position of its own");
    read_singly(gateway, topic, &expected);
    read_frames(gateway, topic, &expected);
    read_lines(gateway, topic, &expected);
}

fn read_singly(gateway: &Kateway, topic: &Topic, expected: &BTreeMap<Position, &Sample>) {
    let mut connection = gateway.subscriber();
    let mut left = expected.clone();
    while !left.is_empty() {
        let answer = connection.call(&topic.read("singly", "wait=20s")).unwrap_or_else(|e| panic!("{e}")).expect(200);
        let partition = i32::try_from(answer.number("x-partition")).expect("a partition number");
        let position = (partition, answer.number("x-offset"));
        let sample = left.remove(&position).unwrap_or_else(|| panic!("{position:?} comes once"));
        assert!(answer.body == sample.body, "payload at {position:?}");
        assert_single_headers(&answer, sample);
    }
    let answer = connection.call(&topic.read("singly", "wait=0s")).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(answer.status, 204, "nothing is left");
}

fn assert_single_headers(answer: &Response, sample: &Sample) {
    let decoded = |name| answer.header(name).map(percent_decode);
    assert_eq!(decoded("x-key").unwrap_or_default(), sample.key);
    assert_eq!(decoded("x-tag"), sample.tag.map(|tag| tag.as_bytes().to_vec()));
    let age_ms = now_ms() - answer.number("x-timestamp");
    assert!((-1_000..600_000).contains(&age_ms), "X-Timestamp is now, not {age_ms} ms ago");
    let prefix = "x-header-";
    let found: Vec<(String, Vec<u8>)> = answer
        .headers
        .iter()
        .filter_map(|(name, value)| {
            Some((name.strip_prefix(prefix)?.to_owned(), STANDARD.decode(value).expect("base64")))
        })
        .collect();
    let sent: Vec<(String, Vec<u8>)> = sample.headers.iter().map(|(n, v)| ((*n).to_owned(), v.clone())).collect();
    assert_eq!(found, sent);
}

fn read_frames(gateway: &Kateway, topic: &Topic, expected: &BTreeMap<Position, &Sample>) {
    let mut connection = gateway.subscriber();
    let mut left = expected.clone();
    while !left.is_empty() {
        let request = topic.read("frames", "batch=100&wait=20s");
        let answer = connection.call(&request).unwrap_or_else(|e| panic!("{e}")).expect(200);
        assert_eq!(answer.header("content-type"), Some("application/octet-stream"));
        for frame in frames::decode(&answer.body) {
            let sample = left.remove(&(frame.partition, frame.offset)).expect("each position comes once");
            assert!(frame.payload == sample.body, "payload at {} {}", frame.partition, frame.offset);
        }
    }
}

fn read_lines(gateway: &Kateway, topic: &Topic, expected: &BTreeMap<Position, &Sample>) {
    let mut connection = gateway.subscriber();
    let mut left = expected.clone();
    while !left.is_empty() {
        let request = topic.read("lines", "batch=100&wait=20s").header("Accept", "application/x-ndjson");
        let answer = connection.call(&request).unwrap_or_else(|e| panic!("{e}")).expect(200);
        assert_eq!(answer.header("content-type"), Some("application/x-ndjson"));
        for line in frames::decode_lines(&answer.body) {
            let sample = left.remove(&(line.partition, line.offset)).expect("each position comes once");
            assert!(line.payload == sample.body, "payload at {} {}", line.partition, line.offset);
            assert_eq!(line.key.unwrap_or_default(), sample.key);
            assert_eq!(line.tag.as_deref(), sample.tag);
            let sent: Vec<_> = sample.headers.iter().map(|(n, v)| ((*n).to_owned(), Some(v.clone()))).collect();
            assert_eq!(line.headers, sent);
        }
    }
}

fn now_ms() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    i64::try_from(now.as_millis()).expect("before the year 292 million")
}
