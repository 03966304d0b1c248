//! The options of a read: where a new group starts, which tags it wants, how a batch is filled.
//!
//! Method: on the real cluster and on the embedded store, small topics with known content; each option is held against
//! exactly the messages it must give. What a filter leaves out is passed over for good and must be committed as well,
//! or a group that wants few messages would read all of them again after every restart.

use std::time::{Duration, Instant};

use kateway_tests::frames::{self, Frame};
use kateway_tests::kateway::Kateway;
use kateway_tests::topic::Topic;
use kateway_tests::{problem, wait_until};

use crate::{Case, kafka};

pub const CASES: &[Case] = &[
    Case::new("subscribe_options::reset_on_kafka", reset_on_kafka).kafka(),
    Case::new("subscribe_options::reset_on_memory", reset_on_memory),
    Case::new("subscribe_options::tag_filter_on_kafka", tag_filter_on_kafka).kafka(),
    Case::new("subscribe_options::tag_filter_on_memory", tag_filter_on_memory),
    Case::new("subscribe_options::one_filter_at_a_time", one_filter_at_a_time),
    Case::new("subscribe_options::batch_is_an_upper_bound", batch_is_an_upper_bound),
    Case::new("subscribe_options::linger_fills_a_batch", linger_fills_a_batch),
    Case::new("subscribe_options::reader_formats", reader_formats),
];

fn on_kafka() -> (Kateway, Topic) {
    let admin = kafka().admin();
    let topic = Topic::fresh("options");
    admin.create_topic(&topic.in_kafka(), 2);
    (Kateway::kafka(admin.brokers()).shards(2).start(), topic)
}

fn on_memory() -> (Kateway, Topic) {
    (Kateway::memory().shards(2).start(), Topic::fresh("options"))
}

fn publish(gateway: &Kateway, topic: &Topic, bodies: impl IntoIterator<Item = String>) {
    let mut connection = gateway.publisher();
    for body in bodies {
        connection.call(&topic.publish("key=k", body)).unwrap_or_else(|e| panic!("{e}")).expect(201);
    }
}

/// Reads until a read gives nothing.
fn drain(gateway: &Kateway, topic: &Topic, group: &str, query: &str, tag: Option<&str>) -> Vec<String> {
    let mut connection = gateway.subscriber();
    let mut bodies = Vec::new();
    loop {
        let mut request = topic.read(group, &format!("batch=100&wait=2s&{query}"));
        if let Some(tag) = tag {
            request = request.header("X-Tag", tag);
        }
        let answer = connection.call(&request).unwrap_or_else(|e| panic!("{e}"));
        if answer.status == 204 {
            return bodies;
        }
        let frames = frames::decode(&answer.expect(200).body);
        bodies.extend(frames.into_iter().map(|Frame { payload, .. }| String::from_utf8(payload).expect("text")));
    }
}

fn numbered(range: std::ops::Range<u32>) -> Vec<String> {
    range.map(|n| n.to_string()).collect()
}

fn reset_on_kafka() {
    let (gateway, topic) = on_kafka();
    reset(&gateway, &topic);
}

fn reset_on_memory() {
    let (gateway, topic) = on_memory();
    reset(&gateway, &topic);
}

fn reset(gateway: &Kateway, topic: &Topic) {
    publish(gateway, topic, numbered(0..10));
    assert_eq!(drain(gateway, topic, "by-default", "", None), numbered(0..10), "oldest is the default");
    assert_eq!(drain(gateway, topic, "oldest", "reset=oldest", None), numbered(0..10));
    assert_eq!(drain(gateway, topic, "newest", "reset=newest", None), numbered(0..0));
    publish(gateway, topic, numbered(10..20));
    // The start was committed at once, so `newest` meant the moment of the first read, and a later `reset` changes
    // nothing.
    assert_eq!(drain(gateway, topic, "newest", "reset=oldest", None), numbered(10..20));
    assert_eq!(drain(gateway, topic, "oldest", "reset=newest", None), numbered(10..20));
}

fn tag_filter_on_kafka() {
    let (gateway, topic) = on_kafka();
    tag_filter(&gateway, &topic);
    let admin = kafka().admin();
    wait_until(Duration::from_secs(10), "what the filter passed over is committed", || {
        admin.committed_sum(&topic.group_in_kafka("wants-a"), &topic.in_kafka()) == 60
    });
}

fn tag_filter_on_memory() {
    let (gateway, topic) = on_memory();
    tag_filter(&gateway, &topic);
}

fn tag_filter(gateway: &Kateway, topic: &Topic) {
    let tags = [None, Some("a"), Some("b"), Some("a;b"), Some("größe"), Some("aa")];
    let mut connection = gateway.publisher();
    for n in 0..60 {
        let tag = tags[n % tags.len()];
        let request = topic.publish("key=k", format!("{n} {}", tag.unwrap_or("-")));
        let request = tag.into_iter().fold(request, |request, tag| request.header("X-Tag", tag));
        connection.call(&request).unwrap_or_else(|e| panic!("{e}")).expect(201);
    }
    let wants = |group: &str, tag: &str| {
        let bodies = drain(gateway, topic, group, "", Some(tag));
        bodies.into_iter().map(|body| body.split_once(' ').expect("number and tag").1.to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(wants("wants-a", "a"), ["a", "a;b"].repeat(10));
    assert_eq!(wants("wants-a-or-b", "a;b"), ["a", "b", "a;b"].repeat(10));
    assert_eq!(wants("wants-size", "größe"), ["größe"].repeat(10));
    assert_eq!(wants("wants-none", "c"), [""; 0]);
    assert_eq!(drain(gateway, topic, "wants-all", "", None).len(), 60);
}

fn one_filter_at_a_time() {
    let (gateway, topic) = on_memory();
    publish(&gateway, &topic, numbered(0..1));
    gateway.subscribe(&topic.read("g", "wait=5s")).expect(200);
    // The answer is settled a moment after the client has it; while something is leased the filter cannot change.
    wait_until(Duration::from_secs(5), "the message is acknowledged", || {
        gateway.status()["groups"][0]["partitions"]
            .as_array()
            .is_some_and(|partitions| partitions.iter().all(|partition| partition["leased"] == 0))
    });
    let mut waiting = gateway.subscriber();
    waiting.send(&topic.read("g", "wait=5s").header("X-Tag", "a").bytes()).expect("sent");
    wait_until(Duration::from_secs(5), "a reader with a filter is active", || {
        gateway.status()["groups"].as_array().is_some_and(|groups| groups.iter().any(|group| group["waiting"] == 1))
    });
    let answer = gateway.subscribe(&topic.read("g", "wait=0s").header("X-Tag", "b"));
    assert_eq!(problem::check(&answer, 409).code, 40900);
    gateway.subscribe(&topic.read("g", "wait=0s").header("X-Tag", "a")).expect(204);
}

fn batch_is_an_upper_bound() {
    let (gateway, topic) = on_memory();
    publish(&gateway, &topic, numbered(0..4_100));
    let read = |query: &str| frames::decode(&gateway.subscribe(&topic.read("g", query)).expect(200).body).len();
    assert_eq!(read("batch=7&wait=2s"), 7);
    assert_eq!(read("batch=4000&wait=2s"), 4_000);
    assert_eq!(read("batch=4000&wait=2s"), 93, "what is there, not what was asked for");
}

fn linger_fills_a_batch() {
    let (gateway, topic) = on_memory();
    publish(&gateway, &topic, numbered(0..1));
    gateway.subscribe(&topic.read("g", "wait=5s")).expect(200);
    let mut reader = gateway.subscriber();
    reader.send(&topic.read("g", "batch=5&wait=10s&linger=1s").bytes()).expect("sent");
    let start = Instant::now();
    publish(&gateway, &topic, numbered(0..5));
    let answer = reader.read_response().unwrap_or_else(|e| panic!("{e}")).expect(200);
    assert_eq!(frames::decode(&answer.body).len(), 5, "messages that come within the linger are waited for");
    assert!(start.elapsed() < Duration::from_millis(900), "a full batch does not linger: {:?}", start.elapsed());

    let start = Instant::now();
    publish(&gateway, &topic, numbered(0..1));
    let answer = gateway.subscribe(&topic.read("g", "batch=5&wait=10s&linger=500ms")).expect(200);
    assert_eq!(frames::decode(&answer.body).len(), 1);
    let took = start.elapsed();
    assert!(took >= Duration::from_millis(450) && took < Duration::from_secs(3), "lingered {took:?}");
}

fn reader_formats() {
    let (gateway, topic) = on_memory();
    publish(&gateway, &topic, numbered(0..4));
    let binary = gateway.subscribe(&topic.read("a", "batch=10&wait=2s").header("Accept", "application/octet-stream"));
    let any = gateway.subscribe(&topic.read("b", "batch=10&wait=2s").header("Accept", "*/*"));
    let lines = gateway.subscribe(&topic.read("c", "batch=10&wait=2s").header("Accept", "application/x-ndjson"));
    assert_eq!(frames::decode(&binary.expect(200).body), frames::decode(&any.expect(200).body));
    let lines = frames::decode_lines(&lines.expect(200).body);
    let bodies: Vec<_> = lines.iter().map(|line| String::from_utf8_lossy(&line.payload).into_owned()).collect();
    assert_eq!(bodies, numbered(0..4));
    assert!(lines.iter().all(|line| line.key.as_deref() == Some(b"k") && line.tag.is_none()));
}
