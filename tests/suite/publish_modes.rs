//! Each way of publishing promises what its answer says, and no more.
//!
//! Method: `ack=all|local|none` and `async=1` on the real cluster; the answer's status, `X-Durability` and position are
//! held against the contract, and kcat must find every message, none twice. An explicit partition is obeyed and keeps
//! the key.

use std::time::Duration;

use kateway_tests::kateway::Kateway;
use kateway_tests::topic::Topic;
use kateway_tests::{kcat, wait_until};

use crate::{Case, kafka};

pub const CASES: &[Case] = &[
    Case::new("publish_modes::answers_say_what_they_promise", answers_say_what_they_promise).kafka(),
    Case::new("publish_modes::explicit_partition_keeps_the_key", explicit_partition_keeps_the_key).kafka(),
    Case::new("publish_modes::trace_context_becomes_headers", trace_context_becomes_headers).kafka(),
    Case::new("publish_modes::old_parameters_are_accepted", old_parameters_are_accepted),
];

fn answers_say_what_they_promise() {
    let admin = kafka().admin();
    let topic = Topic::fresh("modes");
    admin.create_topic(&topic.in_kafka(), 3);
    let gateway = Kateway::kafka(admin.brokers()).shards(2).start();
    let mut expected = Vec::new();
    for (query, status, durability) in [
        ("", 201, None),
        ("ack=all", 201, None),
        ("ack=local", 201, None),
        ("ack=none", 202, Some("none")),
        ("async=1", 202, Some("none")),
        ("async=1&ack=local", 202, Some("none")),
        ("async=0", 201, None),
        ("hh=n", 201, None),
    ] {
        for n in 0..20 {
            let body = format!("{query} {n}");
            let answer = gateway.publish(&topic.publish(query, body.clone())).expect(status);
            assert_eq!(answer.json()["ok"], 1);
            assert_eq!(answer.header("x-durability"), durability, "{query}");
            assert_eq!(answer.header("x-offset").is_some(), status == 201, "an offset where it is known: {query}");
            expected.push(body.into_bytes());
        }
    }
    let count = i64::try_from(expected.len()).expect("few");
    wait_until(Duration::from_secs(20), "what was queued is stored", || {
        admin.message_count(&topic.in_kafka()) >= count
    });
    let mut found: Vec<Vec<u8>> =
        kcat::read_all(admin.brokers(), &topic.in_kafka()).into_iter().filter_map(|r| r.payload).collect();
    found.sort();
    expected.sort();
    assert!(found == expected, "{} sent, {} found", expected.len(), found.len());
}

fn explicit_partition_keeps_the_key() {
    let admin = kafka().admin();
    let topic = Topic::fresh("explicit");
    admin.create_topic(&topic.in_kafka(), 3);
    let gateway = Kateway::kafka(admin.brokers()).start();
    for partition in 0..3 {
        let query = format!("key=always-the-same&partition={partition}");
        let answer = gateway.publish(&topic.publish(&query, "x")).expect(201);
        assert_eq!((answer.number("x-partition"), answer.number("x-offset")), (partition, 0));
    }
    let records = kcat::read_all(admin.brokers(), &topic.in_kafka());
    assert!(records.iter().all(|r| r.key.as_deref() == Some(b"always-the-same")), "{records:?}");
}

fn trace_context_becomes_headers() {
    let admin = kafka().admin();
    let topic = Topic::fresh("traced");
    admin.create_topic(&topic.in_kafka(), 1);
    let gateway = Kateway::kafka(admin.brokers()).start();
    let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let request = topic.publish("", "x").header("traceparent", parent).header("tracestate", "a=1,b=2");
    gateway.publish(&request).expect(201);
    let headers = kcat::read_headers(admin.brokers(), &topic.in_kafka(), 0, 0);
    assert_eq!(String::from_utf8_lossy(&headers), format!("traceparent={parent},tracestate=a=1,b=2"));
    let answer = gateway.subscribe(&topic.read("g", "wait=20s")).expect(200);
    assert_eq!(answer.header("traceparent"), Some(parent));
    assert_eq!(answer.header("tracestate"), Some("a=1,b=2"));
}

/// Clients of the old gateway send these; they never had to mean anything.
fn old_parameters_are_accepted() {
    let gateway = Kateway::memory().start();
    let topic = Topic::fresh("old");
    gateway.publish(&topic.publish("mux=1&use=x&replicas=2&limit=5", "x")).expect(201);
    gateway.subscribe(&topic.read("g", "mux=1&use=x&replicas=2&limit=5&wait=1")).expect(200);
}
