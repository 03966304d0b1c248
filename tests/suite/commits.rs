//! What was delivered is committed, what was not comes again, and clients that come and go do not disturb the group.
//!
//! Method: on the real cluster, with the group's committed offsets and members read from the broker. A client that goes
//! away in the middle of its answer has not been delivered to: its messages come again, to another client. The
//! gateway's consumer is one member of the Kafka group, and the same one however many connections come and go. SIGTERM
//! commits and leaves, so the next gateway starts where this one ended, at once.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use kateway_tests::kateway::Kateway;
use kateway_tests::topic::Topic;
use kateway_tests::{figures, frames, java, wait_until};

use crate::{Case, kafka};

pub const CASES: &[Case] = &[
    Case::new("commits::delivered_is_committed", delivered_is_committed).kafka(),
    Case::new("commits::kafkas_own_tool_sees_the_group", kafkas_own_tool_sees_the_group).kafka(),
    Case::new("commits::undelivered_comes_again", undelivered_comes_again).kafka(),
    Case::new("commits::undelivered_comes_again_on_memory", undelivered_comes_again_on_memory),
    Case::new("commits::deliveries_are_counted", deliveries_are_counted).kafka(),
    Case::new("commits::deliveries_are_counted_on_memory", deliveries_are_counted_on_memory),
    Case::new("commits::member_outlives_connections", member_outlives_connections).kafka(),
    Case::new("commits::idle_group_stays_and_then_leaves", idle_group_stays_and_then_leaves).kafka(),
    Case::new("commits::next_gateway_goes_on_at_once", next_gateway_goes_on_at_once).kafka(),
    Case::new("commits::killed_gateway_loses_nothing", killed_gateway_loses_nothing).kafka(),
];

fn topic_of(count: usize) -> Topic {
    let admin = kafka().admin();
    let topic = Topic::fresh("committed");
    admin.create_topic(&topic.in_kafka(), 2);
    admin.produce(&topic.in_kafka(), 2, (0..count).map(|n| format!("{n}").into_bytes()));
    topic
}

/// Reads `count` messages one by one on one connection.
fn read(gateway: &Kateway, topic: &Topic, count: usize) -> Vec<String> {
    let mut connection = gateway.subscriber();
    let next = |_| connection.call(&topic.read("g", "wait=20s")).unwrap_or_else(|e| panic!("{e}")).expect(200).text();
    (0..count).map(next).collect()
}

fn wait_committed(topic: &Topic, count: i64) -> Duration {
    let admin = kafka().admin();
    wait_until(Duration::from_secs(10), format!("{count} messages are committed"), || {
        admin.committed_sum(&topic.group_in_kafka("g"), &topic.in_kafka()) == count
    })
}

fn delivered_is_committed() {
    let topic = topic_of(100);
    let gateway = Kateway::kafka(&kafka().bootstrap()).shards(2).start();
    read(&gateway, &topic, 30);
    let took = wait_committed(&topic, 30);
    figures::note("commits: seen at the broker after the answer", format!("{took:?}"));
    read(&gateway, &topic, 70);
    wait_committed(&topic, 100);
}

fn kafkas_own_tool_sees_the_group() {
    let topic = topic_of(10);
    let gateway = Kateway::kafka(&kafka().bootstrap()).start();
    read(&gateway, &topic, 10);
    wait_committed(&topic, 10);
    let brokers = kafka().bootstrap();
    let group = topic.group_in_kafka("g");
    let args = ["--bootstrap-server", &brokers, "--describe", "--group", &group];
    let output = java::tool(java::CONSUMER_GROUPS, &args, b"");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let name = topic.in_kafka();
    let rows: Vec<Vec<&str>> = text
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter(|row| row.get(1) == Some(&name.as_str()))
        .collect();
    let sum = |column: usize| rows.iter().map(|row| row[column].parse::<i64>().expect("a number")).sum::<i64>();
    assert_eq!((rows.len(), sum(3), sum(5)), (2, 10, 0), "two partitions, 10 committed, lag 0:\n{text}");
}

/// A client that takes the head of an answer and resets the connection has not got its messages.
fn abandon(gateway: &Kateway, topic: &Topic) {
    let mut connection = gateway.subscriber();
    // The linger lets the batch fill to its bound of 8 MB, more than all socket buffers between here and there can
    // take: an answer the kernel took whole would count as delivered.
    connection.send(&topic.read("g", "batch=1000&wait=20s&linger=1s").bytes()).expect("sent");
    connection.read_raw(100).expect("the answer begins");
    connection.reset();
}

fn undelivered_comes_again() {
    const COUNT: usize = 100;
    let admin = kafka().admin();
    let topic = Topic::fresh("large");
    admin.create_topic(&topic.in_kafka(), 2);
    admin.produce(&topic.in_kafka(), 2, (0..COUNT).map(large));
    let gateway = Kateway::kafka(admin.brokers()).shards(2).start();
    abandon_and_read(&gateway, &topic, COUNT);
    wait_committed(&topic, i64::try_from(COUNT).expect("few"));
}

fn undelivered_comes_again_on_memory() {
    const COUNT: usize = 100;
    let topic = Topic::fresh("large");
    let gateway = Kateway::memory().shards(2).start();
    for n in 0..COUNT {
        gateway.publish(&topic.publish("", large(n))).expect(201);
    }
    abandon_and_read(&gateway, &topic, COUNT);
}

fn large(n: usize) -> Vec<u8> {
    let mut body = vec![b'.'; 200_000];
    body[..8].copy_from_slice(&n.to_be_bytes());
    body
}

fn abandon_and_read(gateway: &Kateway, topic: &Topic, count: usize) {
    for _ in 0..5 {
        abandon(gateway, topic);
    }
    let mut seen = HashSet::new();
    let deadline = Instant::now() + Duration::from_secs(40);
    let mut connection = gateway.subscriber();
    while seen.len() < count && Instant::now() < deadline {
        let answer = connection.call(&topic.read("g", "batch=20&wait=2s")).unwrap_or_else(|e| panic!("{e}"));
        seen.extend(frames::decode(&answer.body).into_iter().map(|frame| (frame.partition, frame.offset)));
    }
    assert_eq!(seen.len(), count, "what five clients abandoned comes again");
}

fn deliveries_are_counted() {
    let admin = kafka().admin();
    let topic = Topic::fresh("again");
    admin.create_topic(&topic.in_kafka(), 1);
    let gateway = Kateway::kafka(admin.brokers()).shards(2).start();
    wait_until(Duration::from_secs(20), "the group stands in the topic", || {
        gateway.subscribe(&topic.read("g", "wait=1s")).expect(204);
        admin.committed(&topic.group_in_kafka("g"), &topic.in_kafka()) == [Some(0)]
    });
    abandon_and_count(&gateway, &topic);
}

fn deliveries_are_counted_on_memory() {
    abandon_and_count(&Kateway::memory().shards(2).start(), &Topic::fresh("again"));
}

/// One client abandons an answer; the next ones are told how often they get its messages now, in both formats that can say it.
fn abandon_and_count(gateway: &Kateway, topic: &Topic) {
    for n in 0..50 {
        gateway.publish(&topic.publish("partition=0", large(n))).expect(201);
    }
    abandon(gateway, topic);
    let returned = || gateway.status()["groups"][0]["partitions"][0]["returned"].as_u64().unwrap_or(0);
    wait_until(Duration::from_secs(10), "the answer is given back", || returned() > 30);
    let again = returned();
    let mut connection = gateway.subscriber();
    let mut call = |query: &str| {
        let request = topic.read("g", query).header("Accept", "application/x-ndjson");
        connection.call(&request).unwrap_or_else(|e| panic!("{e}")).expect(200)
    };
    let single = call("wait=5s");
    assert_eq!((single.number("x-offset"), single.number("x-delivery-count")), (0, 2));
    let lines = frames::decode_lines(&call(&format!("batch={again}&wait=5s&linger=1s")).body);
    let counts: Vec<_> = lines.iter().map(|line| (line.offset, line.deliveries)).collect();
    let again = i64::try_from(again).expect("few");
    let expected: Vec<_> = (1..=again).map(|offset| (offset, if offset < again { 2 } else { 1 })).collect();
    assert_eq!(counts, expected, "those that come again, then a new one");
    let single = call("wait=5s");
    assert_eq!((single.number("x-offset"), single.header("x-delivery-count")), (again + 1, None));
}

fn member_outlives_connections() {
    let topic = topic_of(200);
    let gateway = Kateway::kafka(&kafka().bootstrap()).shards(2).start();
    let group = topic.group_in_kafka("g");
    read(&gateway, &topic, 1);
    let before = kafka().admin().members(&group);
    assert_eq!(before.len(), 1, "one gateway is one member: {before:?}");
    let mut slowest = Duration::ZERO;
    for _ in 0..100 {
        let start = Instant::now();
        read(&gateway, &topic, 1);
        slowest = slowest.max(start.elapsed());
    }
    assert_eq!(kafka().admin().members(&group), before, "a hundred connections later it is the same member");
    figures::note("commits: slowest read on a fresh connection", format!("{slowest:?}"));
    assert!(slowest < Duration::from_secs(2), "a new connection costs no rebalance: {slowest:?}");
}

/// Without any client the gateway stays a member beyond Kafka's session time-out (6 s), and leaves when its own idle time is over.
fn idle_group_stays_and_then_leaves() {
    let topic = topic_of(10);
    let gateway = Kateway::kafka(&kafka().bootstrap()).set("sub.group_idle_s", 10).start();
    let group = topic.group_in_kafka("g");
    read(&gateway, &topic, 1);
    let idle_since = Instant::now();
    let member = kafka().admin().members(&group);
    let left = wait_until(Duration::from_secs(25), "the idle group is left", || {
        let now = kafka().admin().members(&group);
        assert!(now.is_empty() || now == member, "still the same member: {now:?} was {member:?}");
        now.is_empty()
    });
    assert!(idle_since.elapsed() > Duration::from_secs(9), "not before its time: {left:?}");
    assert_eq!(read(&gateway, &topic, 9).len(), 9, "and it comes back where it was");
}

fn next_gateway_goes_on_at_once() {
    let topic = topic_of(100);
    let mut first = Kateway::kafka(&kafka().bootstrap()).shards(2).start();
    let mut seen = read(&first, &topic, 40);
    assert!(first.terminate(Duration::from_secs(25)).success());
    assert_eq!(kafka().admin().members(&topic.group_in_kafka("g")), [], "the group was left");
    assert_eq!(kafka().admin().committed_sum(&topic.group_in_kafka("g"), &topic.in_kafka()), 40, "all of it committed");

    let second = Kateway::kafka(&kafka().bootstrap()).shards(2).start();
    let start = Instant::now();
    seen.extend(read(&second, &topic, 1));
    figures::note("commits: first message from the next gateway", format!("{:?}", start.elapsed()));
    seen.extend(read(&second, &topic, 59));
    assert_eq!(seen.iter().collect::<HashSet<_>>().len(), 100, "each message once");
}

/// After `kill -9` what was acknowledged within the last commit interval may come again, but nothing is skipped.
fn killed_gateway_loses_nothing() {
    let topic = topic_of(100);
    let mut first = Kateway::kafka(&kafka().bootstrap()).start();
    let mut seen: HashSet<String> = read(&first, &topic, 40).into_iter().collect();
    first.kill();
    let second = Kateway::kafka(&kafka().bootstrap()).start();
    let mut connection = second.subscriber();
    let deadline = Instant::now() + Duration::from_secs(40);
    let mut again = 0;
    while seen.len() < 100 && Instant::now() < deadline {
        let answer = connection.call(&topic.read("g", "wait=5s")).unwrap_or_else(|e| panic!("{e}"));
        if answer.status == 200 {
            again += usize::from(!seen.insert(answer.text()));
        }
    }
    assert_eq!(seen.len(), 100, "nothing is skipped");
    figures::note("commits: messages delivered again after kill -9", again);
}
