//! A topic's name in Kafka follows from app, topic and version exactly as it always has.
//!
//! Method: for each vector the Kafka topic is made by hand under the expected name, a message is published through the
//! gateway, and kcat must find it there. A version of two or more digits adds `adler32(appid + topic) % 1000`, not
//! zero-padded: one vector has three digits, one a single digit, one is zero. The group's name in Kafka is checked by
//! what it commits.

use std::time::Duration;

use kateway_tests::kateway::Kateway;
use kateway_tests::topic::Topic;
use kateway_tests::{kcat, wait_until};

use crate::{Case, kafka};

pub const CASES: &[Case] = &[
    Case::new("topic_names::vectors", vectors).kafka(),
    Case::new("topic_names::auto_create_makes_the_topic", auto_create_makes_the_topic).kafka(),
    Case::new("topic_names::group_is_reader_and_group", group_is_reader_and_group).kafka(),
];

const VECTORS: [(&str, &str, &str, &str); 6] = [
    ("app1", "foobar", "v1", "app1.foobar.v1"),
    ("app1", "foobar", "v10", "app1.foobar.v10.844"),
    ("app1", "foobar", "v9999", "app1.foobar.v9999.844"),
    ("app1", "t11", "v12", "app1.t11.v12.9"),
    ("app1", "t540", "v00", "app1.t540.v00.0"),
    ("App_1-x", "a", "v9", "App_1-x.a.v9"),
];

fn vectors() {
    let admin = kafka().admin();
    let gateway = Kateway::kafka(admin.brokers()).start();
    for (appid, name, ver, expected) in VECTORS {
        admin.create_topic(expected, 1);
        gateway.publish(&Topic::new(appid, name, ver).publish("", expected)).expect(201);
        let records = kcat::read_all(admin.brokers(), expected);
        let payloads: Vec<_> = records.iter().filter_map(|r| r.payload.as_deref()).collect();
        assert_eq!(payloads, [expected.as_bytes()], "{appid} {name} {ver}");
    }
}

fn auto_create_makes_the_topic() {
    let admin = kafka().admin();
    let settings = [("topics.auto_create", "true"), ("topics.partitions", "3"), ("topics.replicas", "3")];
    let gateway = settings.iter().fold(Kateway::kafka(admin.brokers()), |builder, (k, v)| builder.set(k, v)).start();
    let topic = Topic::fresh("made");
    gateway.publish(&topic.publish("", "first")).expect(201);
    assert_eq!(admin.partitions(&topic.in_kafka()), Some(3));
    let answer = gateway.subscribe(&topic.read("g", "wait=20s")).expect(200);
    assert_eq!(answer.text(), "first");
}

fn group_is_reader_and_group() {
    let admin = kafka().admin();
    let topic = Topic::fresh("owned");
    admin.create_topic(&topic.in_kafka(), 1);
    let gateway = Kateway::kafka(admin.brokers()).start();
    gateway.publish(&topic.publish("", "hello")).expect(201);
    let answer = gateway.subscribe(&topic.read_as("reader-1", "group_1", "wait=20s")).expect(200);
    assert_eq!(answer.text(), "hello");
    wait_until(Duration::from_secs(10), "reader-1.group_1 has committed 1", || {
        admin.committed("reader-1.group_1", &topic.in_kafka()) == [Some(1)]
    });
}
