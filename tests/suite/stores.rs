//! The embedded and the dry-run store say what they are.
//!
//! Method: answers that promise nothing durable carry `X-Durability: none`; the memory store says loudly at start that
//! its data is gone at exit, and so does open tenancy. Both make topics on first use, with four partitions; the memory
//! store drops its oldest messages at its bound instead of growing, and a reader goes on at the oldest that is left.

use std::time::Duration;

use kateway_tests::frames;
use kateway_tests::kateway::Kateway;
use kateway_tests::topic::Topic;

use crate::Case;

pub const CASES: &[Case] = &[
    Case::new("stores::memory_and_null_promise_nothing_durable", memory_and_null_promise_nothing_durable),
    Case::new("stores::memory_says_so_at_start", memory_says_so_at_start),
    Case::new("stores::topics_are_made_on_first_use", topics_are_made_on_first_use),
    Case::new("stores::null_can_be_slow_and_fail", null_can_be_slow_and_fail),
    Case::new("stores::memory_is_bounded", memory_is_bounded),
];

fn memory_and_null_promise_nothing_durable() {
    for gateway in [Kateway::memory().start(), Kateway::null().start()] {
        let topic = Topic::fresh("volatile");
        for query in ["", "ack=all", "ack=local"] {
            let answer = gateway.publish(&topic.publish(query, "x")).expect(201);
            assert_eq!(answer.header("x-durability"), Some("none"), "{query}");
            assert_eq!(answer.json()["ok"], 1);
            assert!(answer.number("x-partition") >= 0);
        }
    }
}

fn memory_says_so_at_start() {
    let gateway = Kateway::memory().start();
    gateway.wait_log(Duration::from_secs(5), "WARN");
    let log = gateway.log();
    let warned = |word: &str| log.lines().any(|line| line.contains("WARN") && line.contains(word));
    assert!(warned("memory"), "the memory store is named in a warning:\n{log}");
    assert!(warned("tenancy"), "open tenancy is named in a warning:\n{log}");
}

fn topics_are_made_on_first_use() {
    let gateway = Kateway::memory().shards(2).start();
    let topic = Topic::fresh("new");
    gateway.subscribe(&topic.read("g", "wait=0s")).expect(404);
    for partition in 0..4 {
        gateway.publish(&topic.publish(&format!("partition={partition}"), "x")).expect(201);
    }
    gateway.publish(&topic.publish("partition=4", "x")).expect(400);
    gateway.subscribe(&topic.read("g", "wait=5s")).expect(200);
}

fn null_can_be_slow_and_fail() {
    let gateway = Kateway::null().set("null.delay_us", 300_000).start();
    let topic = Topic::fresh("slow");
    let start = std::time::Instant::now();
    gateway.publish(&topic.publish("", "x")).expect(201);
    assert!(start.elapsed() >= Duration::from_millis(300), "{:?}", start.elapsed());

    let gateway = Kateway::null().set("null.error_ppm", 1_000_000).start();
    let answer = gateway.publish(&topic.publish("", "x"));
    kateway_tests::problem::check(&answer, answer.status);
    assert!(answer.status >= 500, "{}", answer.status);
}

fn memory_is_bounded() {
    let gateway = Kateway::memory().set("memory.bytes_max", 8 << 20).start();
    let topic = Topic::fresh("bounded");
    let mut connection = gateway.publisher();
    let before = gateway.resident_kib();
    for n in 0..400_u32 {
        let mut body = vec![0; 100_000];
        body[..4].copy_from_slice(&n.to_be_bytes());
        connection.call(&topic.publish("partition=0", body)).unwrap_or_else(|e| panic!("{e}")).expect(201);
    }
    let grown = gateway.resident_kib().saturating_sub(before);
    assert!(grown < 32 << 10, "40 MB through an 8 MiB store: memory grew by {grown} KiB");
    let answer = gateway.subscribe(&topic.read("g", "batch=50&wait=5s")).expect(200);
    let frames = frames::decode(&answer.body);
    assert!(frames[0].offset > 0, "the oldest were dropped");
    let numbers: Vec<i64> =
        frames.iter().map(|f| i64::from(u32::from_be_bytes(f.payload[..4].try_into().expect("4 bytes")))).collect();
    assert!(
        frames.iter().zip(&numbers).all(|(frame, number)| frame.offset == *number),
        "offsets stay with their messages"
    );
}
