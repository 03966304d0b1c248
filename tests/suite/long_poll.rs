//! A read without messages waits; it ends with a message at once, with 204 after its wait, and with the client when the
//! client goes.
//!
//! Method: the wait is measured on both stores; a message published in the middle must arrive at once (the time is
//! printed). Then a thousand clients begin to wait and go away, by FIN and by RST, and a thousand more go in the middle of an answer that
//! leases every message to them: file descriptors, memory, waiting reads and leases must return to what they were, and all
//! messages must go to a client that is there.

use std::time::{Duration, Instant};

use kateway_tests::kateway::Kateway;
use kateway_tests::topic::Topic;
use kateway_tests::{figures, frames, wait_until};

use crate::{Case, kafka};

pub const CASES: &[Case] = &[
    Case::new("long_poll::waits_as_long_as_asked_on_memory", waits_as_long_as_asked_on_memory),
    Case::new("long_poll::waits_as_long_as_asked_on_kafka", waits_as_long_as_asked_on_kafka).kafka(),
    Case::new("long_poll::message_in_between_is_delivered_at_once", message_in_between_is_delivered_at_once)
        .kafka()
        .alone(),
    Case::new("long_poll::thousand_departures_on_memory", thousand_departures_on_memory).alone(),
    Case::new("long_poll::thousand_departures_on_kafka", thousand_departures_on_kafka).kafka().alone(),
    Case::new("long_poll::one_message_wakes_one_of_many", one_message_wakes_one_of_many),
];

fn gateway_and_topic_on_kafka() -> (Kateway, Topic) {
    let admin = kafka().admin();
    let topic = Topic::fresh("polled");
    admin.create_topic(&topic.in_kafka(), 4);
    (Kateway::kafka(admin.brokers()).shards(2).start(), topic)
}

/// The memory store makes topics by publishing, so one message is published and read first.
fn gateway_and_topic_on_memory() -> (Kateway, Topic) {
    let gateway = Kateway::memory().shards(2).start();
    let topic = Topic::fresh("polled");
    gateway.publish(&topic.publish("", "first")).expect(201);
    gateway.subscribe(&topic.read("g", "wait=5s")).expect(200);
    (gateway, topic)
}

fn waits_as_long_as_asked_on_memory() {
    let (gateway, topic) = gateway_and_topic_on_memory();
    waits_as_long_as_asked("memory", &gateway, &topic);
}

fn waits_as_long_as_asked_on_kafka() {
    let (gateway, topic) = gateway_and_topic_on_kafka();
    // The first read joins the group; that may take longer than the wait.
    let start = Instant::now();
    gateway.subscribe(&topic.read("g", "wait=1s")).expect(204);
    figures::note("long poll, kafka: first read of a new group, wait=1s", format!("{:?}", start.elapsed()));
    assert!(start.elapsed() < Duration::from_secs(3), "joining does not outlast the wait by much");
    waits_as_long_as_asked("kafka", &gateway, &topic);
}

fn waits_as_long_as_asked(store: &str, gateway: &Kateway, topic: &Topic) {
    for (wait, limit_ms) in [("0s", 0), ("0", 0), ("300ms", 300), ("1", 1_000), ("2s", 2_000)] {
        let start = Instant::now();
        let answer = gateway.subscribe(&topic.read("g", &format!("wait={wait}"))).expect(204);
        let took = start.elapsed();
        figures::note(format!("long poll, {store}: wait={wait}"), format!("{took:?}"));
        assert!(answer.body.is_empty());
        let limit = Duration::from_millis(limit_ms);
        assert!(took >= limit && took < limit + Duration::from_secs(1), "wait={wait} took {took:?}");
    }
}

fn message_in_between_is_delivered_at_once() {
    let (gateway, topic) = gateway_and_topic_on_kafka();
    gateway.subscribe(&topic.read("g", "wait=1s")).expect(204);
    let mut latencies: Vec<Duration> = (0..50).map(|n| deliver(&gateway, &topic, n)).collect();
    latencies.sort();
    let (median, worst) = (latencies[25], latencies[49]);
    figures::note("long poll, kafka: publish to delivery", format!("median {median:?}, worst of 50 {worst:?}"));
    assert!(
        median < Duration::from_millis(200) && worst < Duration::from_secs(2),
        "median {median:?}, worst {worst:?}"
    );
}

/// One waiting reader, one message published while it waits; from the 201 to the end of the reader's answer.
fn deliver(gateway: &Kateway, topic: &Topic, n: usize) -> Duration {
    let mut reader = gateway.subscriber();
    reader.send(&topic.read("g", "wait=20s").bytes()).expect("sent");
    wait_until(Duration::from_secs(5), "the read waits", || waiting(gateway) == 1);
    gateway.publish(&topic.publish("", format!("{n}"))).expect(201);
    let start = Instant::now();
    let answer = reader.read_response().unwrap_or_else(|e| panic!("{e}")).expect(200);
    assert_eq!(answer.text(), format!("{n}"));
    start.elapsed()
}

fn waiting(gateway: &Kateway) -> u64 {
    sum_of_groups(gateway, |group| group["waiting"].as_u64())
}

/// Messages that were handed out and are not acknowledged, over all groups: those under a lease, and those to be delivered again.
fn leases(gateway: &Kateway) -> [u64; 2] {
    ["leased", "returned"].map(|state| {
        sum_of_groups(gateway, |group| {
            let partitions = group["partitions"].as_array()?;
            partitions.iter().map(|partition| partition[state].as_u64()).sum()
        })
    })
}

fn sum_of_groups(gateway: &Kateway, value: impl Fn(&serde_json::Value) -> Option<u64>) -> u64 {
    let status = gateway.status();
    let groups = status["groups"].as_array().expect("status lists groups");
    groups.iter().map(|group| value(group).unwrap_or_else(|| panic!("as expected in {group}"))).sum()
}

fn thousand_departures_on_memory() {
    let (gateway, topic) = gateway_and_topic_on_memory();
    thousand_departures("memory", &gateway, &topic);
}

fn thousand_departures_on_kafka() {
    let (gateway, topic) = gateway_and_topic_on_kafka();
    gateway.subscribe(&topic.read("g", "wait=2s")).expect(204);
    thousand_departures("kafka", &gateway, &topic);
}

/// More bytes than the socket buffers between the gateway and a client take: an answer the kernel took whole would count as delivered.
const LARGE_BYTES: usize = 200_000;
const LARGE: u64 = 42;

fn thousand_departures(store: &str, gateway: &Kateway, topic: &Topic) {
    leave_waiting(gateway, topic, 50);
    measure(&format!("{store}, waiting"), gateway, || leave_waiting(gateway, topic, 1_000));
    assert_eq!(leases(gateway), [0, 0]);
    nobody_gone_gets_anything(gateway, topic);

    for _ in 0..LARGE {
        gateway.publish(&topic.publish("", vec![b'.'; LARGE_BYTES])).expect(201);
    }
    leave_reading(gateway, topic, 20);
    measure(&format!("{store}, reading"), gateway, || leave_reading(gateway, topic, 1_000));
    assert_eq!(leases(gateway), [0, LARGE], "all of it waits to be delivered again");
    let mut reader = gateway.subscriber();
    let answer = reader.call(&topic.read("g", &format!("batch={LARGE}&wait=10s"))).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(frames::decode(&answer.expect(200).body).len() as u64, LARGE);
    wait_until(Duration::from_secs(10), "all of it is delivered", || leases(gateway) == [0, 0]);
    nobody_gone_gets_anything(gateway, topic);
}

/// What a thousand departures leave behind, which is nothing.
fn measure(what: &str, gateway: &Kateway, depart: impl FnOnce()) {
    let (fds, kib) = (gateway.open_fds(), gateway.resident_kib());
    let start = Instant::now();
    depart();
    let took = start.elapsed();
    let mut now = 0;
    wait_until(Duration::from_secs(10), format!("descriptors return to {fds}"), || {
        now = gateway.open_fds();
        now <= fds
    });
    wait_until(Duration::from_secs(10), "no read waits and nothing is leased", || {
        waiting(gateway) == 0 && leases(gateway)[0] == 0
    });
    let grown = gateway.resident_kib().saturating_sub(kib);
    figures::note(
        format!("long poll, {what}: 1,000 departures"),
        format!("{took:?}; descriptors {fds} -> {now}; memory {kib} KiB + {grown} KiB"),
    );
    assert!(grown < 16 * 1024, "memory grew by {grown} KiB over a thousand departures");
}

/// Clients that get the beginning of an answer with all messages in it, and leave by RST. Each round has to wait for the leases of the
/// one before to come back.
fn leave_reading(gateway: &Kateway, topic: &Topic, count: usize) {
    for _ in 0..count {
        let mut client = gateway.subscriber();
        client.send(&topic.read("g", &format!("batch={LARGE}&wait=20s&linger=1s")).bytes()).expect("sent");
        client.read_raw(100).expect("the answer begins");
        client.reset();
    }
    wait_until(Duration::from_secs(10), "all of it is given back", || leases(gateway) == [0, LARGE]);
}

/// Clients that wait and leave, ten at a time; odd ones by FIN, even ones by RST.
fn leave_waiting(gateway: &Kateway, topic: &Topic, count: usize) {
    for _ in 0..count / 10 {
        let mut clients: Vec<_> = (0..10).map(|_| gateway.subscriber()).collect();
        for client in &mut clients {
            client.send(&topic.read("g", "wait=30s").bytes()).expect("sent");
        }
        wait_until(Duration::from_secs(10), "ten reads wait", || waiting(gateway) >= 10);
        for (n, client) in clients.into_iter().enumerate() {
            if n % 2 == 0 {
                client.reset();
            }
        }
        wait_until(Duration::from_secs(10), "nobody waits any more", || waiting(gateway) == 0);
    }
}

/// Messages published after everybody left all go to the one who is there.
fn nobody_gone_gets_anything(gateway: &Kateway, topic: &Topic) {
    for n in 0..20 {
        gateway.publish(&topic.publish("key=k", format!("{n}"))).expect(201);
    }
    let mut reader = gateway.subscriber();
    for n in 0..20 {
        let answer = reader.call(&topic.read("g", "wait=10s")).unwrap_or_else(|e| panic!("{e}")).expect(200);
        assert_eq!(answer.text(), format!("{n}"));
    }
}

fn one_message_wakes_one_of_many() {
    let (gateway, topic) = gateway_and_topic_on_memory();
    let mut readers: Vec<_> = (0..20).map(|_| gateway.subscriber()).collect();
    for reader in &mut readers {
        reader.send(&topic.read("g", "wait=3s").bytes()).expect("sent");
    }
    wait_until(Duration::from_secs(5), "all of them wait", || waiting(&gateway) == 20);
    for n in 0..5 {
        gateway.publish(&topic.publish("", format!("{n}"))).expect(201);
    }
    let answers: Vec<_> =
        readers.iter_mut().map(|reader| reader.read_response().unwrap_or_else(|e| panic!("{e}"))).collect();
    let given = answers.iter().filter(|answer| answer.status == 200).count();
    let nothing = answers.iter().filter(|answer| answer.status == 204).count();
    assert_eq!((given, nothing), (5, 15), "five messages, twenty readers");
}
