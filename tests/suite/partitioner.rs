//! A key goes to the partition Kafka's Java client would give it.
//!
//! Clients move between the Java client and the gateway, and order per key holds only if both agree. Method: Kafka's
//! console producer (Java) writes a set of keys, kcat says where they landed, and each key published through the
//! gateway must be answered with the same `X-Partition`. Keys cover lengths 1 to 40 (murmur2 treats the last one to
//! three bytes apart) and non-ASCII.

use std::collections::HashMap;

use kateway_tests::client::percent_encode;
use kateway_tests::kateway::Kateway;
use kateway_tests::topic::Topic;
use kateway_tests::{java, kcat};

use crate::{Case, kafka};

pub const CASES: &[Case] = &[
    Case::new("partitioner::agrees_with_the_java_client", agrees_with_the_java_client).kafka(),
    Case::new("partitioner::memory_store_uses_the_same_rule", memory_store_uses_the_same_rule),
    Case::new("partitioner::keyless_messages_are_spread", keyless_messages_are_spread).kafka(),
];

/// What Kafka's Java client does with four partitions; `agrees_with_the_java_client` would notice if this were wrong.
const VECTORS_OF_4: [(&str, i32); 4] = [("a", 0), ("order-1", 2), ("order-2", 3), ("ключ", 0)];

fn agrees_with_the_java_client() {
    let admin = kafka().admin();
    let topic = Topic::fresh("keys");
    admin.create_topic(&topic.in_kafka(), 7);
    let mut keys: Vec<String> = (1..=40).map(|len| "kateway-partitioner-"[..].repeat(2)[..len].to_owned()).collect();
    keys.extend((0..60).map(|n| format!("order-{n}")));
    keys.extend(["ключ", "größe", "日本", "🦀"].map(str::to_owned));

    let input = keys.join("\tby java\n") + "\tby java\n";
    let name = topic.in_kafka();
    let args = ["--bootstrap-server", admin.brokers(), "--topic", &name, "--property", "parse.key=true"];
    java::tool(java::CONSOLE_PRODUCER, &args, input.as_bytes());
    let by_java: HashMap<Vec<u8>, i32> = kcat::read_all(admin.brokers(), &name)
        .into_iter()
        .map(|r| (r.key.expect("all have keys"), r.partition))
        .collect();
    assert_eq!(by_java.len(), keys.len());

    let gateway = Kateway::kafka(admin.brokers()).start();
    for key in &keys {
        let query = format!("key={}", percent_encode(key.as_bytes()));
        let answer = gateway.publish(&topic.publish(&query, "by kateway")).expect(201);
        assert_eq!(answer.number("x-partition"), i64::from(by_java[key.as_bytes()]), "key {key:?}");
    }
}

fn memory_store_uses_the_same_rule() {
    let gateway = Kateway::memory().start();
    let topic = Topic::fresh("keys");
    for (key, partition) in VECTORS_OF_4 {
        let query = format!("key={}", percent_encode(key.as_bytes()));
        let answer = gateway.publish(&topic.publish(&query, "x")).expect(201);
        assert_eq!(answer.number("x-partition"), i64::from(partition), "key {key:?}");
    }
}

fn keyless_messages_are_spread() {
    let admin = kafka().admin();
    let topic = Topic::fresh("keyless");
    admin.create_topic(&topic.in_kafka(), 4);
    let gateway = Kateway::kafka(admin.brokers()).start();
    let mut connection = gateway.publisher();
    for n in 0..400 {
        connection.call(&topic.publish("", format!("{n}"))).unwrap_or_else(|e| panic!("{e}")).expect(201);
    }
    let ends = admin.end_offsets(&topic.in_kafka());
    assert_eq!(ends.iter().sum::<i64>(), 400);
    assert!(ends.iter().all(|&end| end > 0), "every partition gets some of 400 keyless messages: {ends:?}");
}
