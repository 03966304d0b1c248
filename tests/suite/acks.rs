//! With `ack=1` a message is the reader's until it acknowledges or its lease ends; the committed offset never passes what is not
//! acknowledged.
//!
//! Method: small partitions with known content, on the embedded store and on the real cluster, where the committed offset is read from
//! the broker. Each way to acknowledge (the next read, a call of its own, from another connection and another shard), each order, each
//! bound, and each kind of nonsense, which must change nothing. A lease that ends, by time or with its client, gives its messages back
//! before new ones come.

use std::time::{Duration, Instant};

use kateway_tests::{figures, problem, wait_until};

use crate::Case;
use crate::stage::{Single, Stage, call, lines, pass, single};

pub const CASES: &[Case] = &[
    Case::new("acks::next_read_acknowledges_on_memory", || next_read_acknowledges(&memory())),
    Case::new("acks::next_read_acknowledges_on_kafka", || next_read_acknowledges(&on_kafka())).kafka(),
    Case::new("acks::one_call_for_all_on_memory", || one_call_for_all(&memory())),
    Case::new("acks::one_call_for_all_on_kafka", || one_call_for_all(&on_kafka())).kafka(),
    Case::new("acks::own_lease_only_on_memory", || own_lease_only(&memory())),
    Case::new("acks::own_lease_only_on_kafka", || own_lease_only(&on_kafka())).kafka(),
    Case::new("acks::any_order_on_memory", || any_order(&memory())),
    Case::new("acks::any_order_on_kafka", || any_order(&on_kafka())).kafka(),
    Case::new("acks::unknown_and_repeated_on_memory", || unknown_and_repeated(&memory())),
    Case::new("acks::unknown_and_repeated_on_kafka", || unknown_and_repeated(&on_kafka())).kafka(),
    Case::new("acks::lease_ends_on_memory", || lease_ends(&memory())),
    Case::new("acks::lease_ends_on_kafka", || lease_ends(&on_kafka())).kafka(),
    Case::new("acks::lease_is_extended_on_memory", || lease_is_extended(&memory())),
    Case::new("acks::lease_is_extended_on_kafka", || lease_is_extended(&on_kafka())).kafka(),
    Case::new("acks::gap_stops_the_partition_on_memory", gap_stops_the_partition_on_memory),
    Case::new("acks::gap_stops_the_partition_on_kafka", gap_stops_the_partition_on_kafka).kafka(),
    Case::new("acks::cut_client_gives_back_on_memory", || cut_client_gives_back(&memory())),
    Case::new("acks::cut_client_gives_back_on_kafka", || cut_client_gives_back(&on_kafka())).kafka(),
    Case::new("acks::any_shard_on_memory", any_shard_on_memory),
    Case::new("acks::any_shard_on_kafka", any_shard_on_kafka).kafka(),
    Case::new("acks::committed_within_a_second", committed_within_a_second).kafka(),
    Case::new("acks::nonsense_changes_nothing_on_memory", || nonsense_changes_nothing(&memory())),
    Case::new("acks::nonsense_changes_nothing_on_kafka", || nonsense_changes_nothing(&on_kafka())).kafka(),
];

fn memory() -> Stage {
    Stage::on_memory("acked")
}

fn on_kafka() -> Stage {
    Stage::on_kafka("acked", 4)
}

fn next_read_acknowledges(stage: &Stage) {
    stage.fill(0, 0..5);
    let mut connection = stage.gateway.subscriber();
    let query = "ack=1&wait=20s&lease=1m";
    let mut last = single(&call(&mut connection, &stage.topic.read("g", query)));
    assert_eq!(last, Single { partition: 0, offset: 0, text: "0".into(), count: None });
    for n in 1..5 {
        let request = stage.topic.read_and_ack("g", query, last.partition, last.offset);
        last = single(&call(&mut connection, &request));
        assert_eq!((last.offset, last.count), (n, None));
        stage.wait_committed(0, n);
    }
    let request = stage.topic.read_and_ack("g", "ack=1&wait=0s", 0, 4);
    call(&mut connection, &request).expect(204);
    stage.wait_committed(0, 5);

    // Both empty, or both -1: there is nothing to acknowledge, which old clients say with their first read.
    stage.fill(0, 5..7);
    let with = |value: &str| stage.topic.read("g", query).header("X-Partition", value).header("X-Offset", value);
    assert_eq!(single(&stage.call(&with(""))).offset, 5);
    assert_eq!(single(&stage.call(&with("-1"))).offset, 6);
    stage.stays_committed(0, Some(5));
}

/// Several partitions and several leases of each, in one call; then by the offset that is next to read.
fn one_call_for_all(stage: &Stage) {
    for (query, from, ahead) in [("", 0, 0), ("next=1", 6, 1)] {
        for partition in 0..2 {
            stage.fill(partition, from..from + 6);
        }
        let mut items = Vec::new();
        let mut count = 0;
        while count < 12 {
            let batch = stage.lease_batch("batch=3");
            count += batch.len();
            for partition in 0..2 {
                let last = batch.iter().rev().find(|delivery| delivery.partition == partition);
                items.extend(last.map(|delivery| (partition, delivery.offset + ahead)));
            }
        }
        assert!(items.len() > 2, "several leases: {items:?}");
        let answer = stage.call(&stage.topic.ack_all("g", query, &items)).expect(200);
        assert_eq!(answer.json()["ok"], 1);
        stage.wait_committed(0, from + 6);
        stage.wait_committed(1, from + 6);
    }
    stage.call(&stage.topic.read("g", "ack=1&wait=300ms")).expect(204);
}

fn own_lease_only(stage: &Stage) {
    stage.fill(0, 0..6);
    let offsets = |batch: Vec<kateway_tests::readers::Delivery>| -> Vec<i64> {
        batch.iter().map(|delivery| delivery.offset).collect()
    };
    // The linger lets each of them fill.
    assert_eq!(offsets(stage.lease_batch("batch=3&linger=500ms")), [0, 1, 2]);
    assert_eq!(offsets(stage.lease_batch("batch=3&linger=500ms")), [3, 4, 5]);
    stage.ack(&[(0, 4)]).expect(200);
    stage.stays_committed(0, None);
    stage.ack(&[(0, 2)]).expect(200);
    stage.wait_committed(0, 5);
    stage.stays_committed(0, Some(5));
    stage.ack(&[(0, 5)]).expect(200);
    stage.wait_committed(0, 6);
}

fn any_order(stage: &Stage) {
    stage.fill(0, 0..6);
    for n in 0..6 {
        assert_eq!(stage.lease("lease=1m").offset, n);
    }
    for (acked, committed) in [(4, None), (2, None), (0, Some(1)), (1, Some(3)), (5, Some(3)), (3, Some(6))] {
        stage.ack(&[(0, acked)]).expect(200);
        if let Some(committed) = committed {
            stage.wait_committed(0, committed);
        }
        // Nothing above the gap is ever committed.
        assert!(stage.committed("g", 0).unwrap_or(0) <= committed.unwrap_or(0));
    }
}

fn unknown_and_repeated(stage: &Stage) {
    stage.fill(0, 0..4);
    assert_eq!(stage.lease("lease=1m").offset, 0);
    assert_eq!(stage.lease("lease=1m").offset, 1);
    for never_leased in [2, 3, 1_000_000] {
        problem::check(&stage.ack(&[(0, never_leased)]), 409);
    }
    let request = stage.topic.read_and_ack("g", "ack=1&wait=0s", 0, 3);
    problem::check(&stage.call(&request), 409);
    stage.stays_committed(0, None);
    // The refused read took nothing with it.
    assert_eq!(stage.lease("lease=1m").offset, 2);
    for _ in 0..3 {
        stage.ack(&[(0, 0)]).expect(200);
    }
    stage.wait_committed(0, 1);
    stage.ack(&[(0, 1)]).expect(200);
    stage.wait_committed(0, 2);
    stage.ack(&[(0, 0)]).expect(200);
    stage.stays_committed(0, Some(2));
    // A group nobody reads holds no lease.
    problem::check(&stage.call(&stage.topic.ack_all("nobody", "", &[(0, 0)])), 409);
}

fn lease_ends(stage: &Stage) {
    stage.fill(0, 0..4);
    assert_eq!(stage.lease("lease=500ms").offset, 0);
    assert_eq!(stage.lease("lease=500ms").offset, 1);
    pass(Duration::from_millis(900));
    problem::check(&stage.ack(&[(0, 0)]), 409);
    for offset in 0..2 {
        let again = stage.lease("lease=1m");
        assert_eq!((again.offset, again.count), (offset, Some(2)), "before new messages");
    }
    let new = stage.lease("lease=1m");
    assert_eq!((new.offset, new.count), (2, None));
    stage.ack(&[(0, 0), (0, 1), (0, 2)]).expect(200);
    stage.wait_committed(0, 3);

    // A read that waits is told of the end of a lease, not only a later one; and the count goes on.
    assert_eq!(stage.lease("lease=700ms").offset, 3);
    for count in 2..5 {
        let start = Instant::now();
        let again = stage.lease("lease=700ms");
        assert_eq!((again.offset, again.count), (3, Some(count)));
        let took = start.elapsed();
        assert!(took > Duration::from_millis(400) && took < Duration::from_secs(5), "{took:?}");
    }
}

fn lease_is_extended(stage: &Stage) {
    stage.fill(0, 0..3);
    assert_eq!(stage.lease("lease=1500ms").offset, 0);
    assert_eq!(stage.lease("lease=1500ms").offset, 1);
    let extend = |offset: i64| {
        let body = format!(r#"[{{"partition":0,"offset":{offset},"extend":"1m"}}]"#);
        stage.call(&stage.topic.ack("g", "", body))
    };
    extend(0).expect(200);
    problem::check(&extend(2), 409);
    pass(Duration::from_secs(2));
    let next = stage.lease("lease=1m");
    assert_eq!((next.offset, next.count), (1, Some(2)), "the one that was not extended");
    assert_eq!(stage.lease("lease=1m").offset, 2, "the other is still held");
    stage.stays_committed(0, None);
    stage.ack(&[(0, 0)]).expect(200);
    stage.wait_committed(0, 1);
}

fn gap_stops_the_partition_on_memory() {
    gap_stops_the_partition(&Stage::on_memory_with("acked", |builder| builder.set("sub.leases_max", 10)));
}

fn gap_stops_the_partition_on_kafka() {
    gap_stops_the_partition(&Stage::on_kafka_with("acked", 4, |builder| builder.set("sub.leases_max", 10)));
}

fn gap_stops_the_partition(stage: &Stage) {
    stage.fill(0, 0..30);
    stage.fill(1, 0..1);
    let read = || stage.call(&stage.topic.read("g", "ack=1&lease=1m&wait=1s"));
    let mut given = Vec::new();
    let mut other = 0;
    loop {
        let answer = read();
        if answer.status == 204 {
            break;
        }
        let message = single(&answer);
        if message.partition == 0 { given.push(message.offset) } else { other += 1 }
    }
    assert_eq!(other, 1, "the other partition is not held up");
    assert_eq!(given, (0..10).collect::<Vec<_>>(), "as many as may be handed out");
    for offset in 1..10 {
        stage.ack(&[(0, offset)]).expect(200);
    }
    read().expect(204);
    // A reader that waits is woken by the acknowledgement that closes the gap.
    let mut waiting = stage.gateway.subscriber();
    waiting.send(&stage.topic.read("g", "ack=1&lease=1m&wait=20s").bytes()).expect("sent");
    let start = Instant::now();
    stage.ack(&[(0, 0)]).expect(200);
    let next = single(&waiting.read_response().unwrap_or_else(|e| panic!("{e}")));
    assert_eq!(next.offset, 10);
    assert!(start.elapsed() < Duration::from_secs(5), "at once: {:?}", start.elapsed());
    stage.wait_committed(0, 10);
}

fn cut_client_gives_back(stage: &Stage) {
    const COUNT: usize = 50;
    let mut publisher = stage.gateway.publisher();
    for _ in 0..COUNT {
        // More than the socket buffers between the gateway and the client take.
        call(&mut publisher, &stage.topic.publish("partition=0", vec![b'.'; 200_000])).expect(201);
    }
    let mut client = stage.gateway.subscriber();
    let request = stage.topic.read("g", &format!("ack=1&lease=10m&batch={COUNT}&wait=20s&linger=1s"));
    client.send(&request.bytes()).expect("sent");
    client.read_raw(100).expect("the answer begins");
    client.reset();
    let cut = Instant::now();
    // A reader that comes before the gateway has noticed would be given what is new first.
    wait_until(Duration::from_secs(10), "the lease ends with its client", || {
        let status = stage.gateway.status();
        let of_group = |what: &str| -> u64 {
            let partitions = status["groups"][0]["partitions"].as_array().expect("the group is open");
            partitions.iter().filter_map(|partition| partition[what].as_u64()).sum()
        };
        of_group("leased") == 0 && of_group("returned") > 0
    });
    let mut again = Vec::new();
    wait_until(Duration::from_secs(10), "what the client had comes again", || {
        let request = stage.topic.read("g", &format!("ack=1&lease=10m&batch={COUNT}&wait=1s"));
        let answer = stage.call(&request.header("Accept", "application/x-ndjson"));
        if answer.status == 200 {
            again.extend(lines(&answer).into_iter().map(|delivery| (delivery.offset, delivery.deliveries)));
        }
        again.len() >= COUNT
    });
    figures::note("acks: a cut client's messages are with another after", format!("{:?}", cut.elapsed()));
    let offsets: Vec<i64> = again.iter().map(|(offset, _)| *offset).collect();
    assert_eq!(offsets, (0..50).collect::<Vec<_>>(), "each once, in order");
    assert!(again.iter().any(|(_, count)| *count == Some(2)), "{again:?}");
}

fn any_shard_on_memory() {
    any_shard(&Stage::on_memory_with("acked", |builder| builder.set("sub.steer", false)));
}

fn any_shard_on_kafka() {
    any_shard(&Stage::on_kafka_with("acked", 4, |builder| builder.set("sub.steer", false)));
}

/// Whichever shard is the group's home: one of the two connections is always somewhere else.
fn any_shard(stage: &Stage) {
    stage.fill(0, 0..8);
    let mut shards = [0, 1].map(|shard| stage.gateway.connection_of_shard(shard, stage.gateway.subscribe));
    for n in 0..4 {
        for (reads, acks) in [(0, 1), (1, 0)] {
            let read = stage.topic.read("g", "ack=1&lease=1m&wait=20s");
            let message = single(&call(&mut shards[reads], &read));
            let answer = call(&mut shards[acks], &stage.topic.ack_all("g", "", &[message.position()]));
            answer.expect(200);
            assert_eq!(message.offset / 2, n);
        }
    }
    stage.wait_committed(0, 8);
    problem::check(&call(&mut shards[0], &stage.topic.ack_all("g", "", &[(0, 8)])), 409);
    problem::check(&call(&mut shards[1], &stage.topic.ack_all("g", "", &[(0, 8)])), 409);
}

fn committed_within_a_second() {
    let stage = on_kafka();
    stage.fill(0, 0..20);
    let mut slowest = Duration::ZERO;
    for n in 0..20 {
        assert_eq!(stage.lease("lease=1m").offset, n);
        stage.ack(&[(0, n)]).expect(200);
        slowest = slowest.max(stage.wait_committed(0, n + 1));
    }
    figures::note("acks: slowest of 20 to be seen at the broker", format!("{slowest:?}"));
    // Three more trials and three brokers share the machine.
    assert!(slowest < Duration::from_secs(3), "{slowest:?}");
}

fn nonsense_changes_nothing(stage: &Stage) {
    stage.fill(0, 0..3);
    for lease in ["99ms", "0", "0s", "12h1s", "43201", "13h", "soon", "-1s"] {
        let answer = stage.call(&stage.topic.read("g", &format!("ack=1&wait=0s&lease={lease}")));
        problem::check(&answer, 400);
    }
    assert_eq!(stage.lease("lease=12h").offset, 0);
    assert_eq!(stage.lease("lease=43200").offset, 1);
    let bodies = [
        "",
        "no JSON",
        "{}",
        "[",
        "[1]",
        r#"{"partition":0,"offset":0}"#,
        r#"[{"partition":0}]"#,
        r#"[{"offset":0}]"#,
        r#"[{"partition":"0","offset":0}]"#,
        r#"[{"partition":0,"offset":"0"}]"#,
        r#"[{"partition":0,"offset":0.5}]"#,
        r#"[{"partition":0,"offset":-7}]"#,
        r#"[{"partition":-7,"offset":0}]"#,
        r#"[{"partition":0,"offset":0,"extend":"for ever"}]"#,
        r#"[{"partition":0,"offset":0,"extend":"13h"}]"#,
        r#"[{"partition":0,"offset":0},{"partition":0}]"#,
        r#"[{"partition":0,"offset":0}"#,
        r#"[{"partition":0,"offset":0}] and more"#,
    ];
    for body in bodies {
        let answer = stage.call(&stage.topic.ack("g", "", body));
        assert_eq!(answer.status, 400, "{body}: {}", answer.text());
        problem::check(&answer, 400);
    }
    let with = |partition: &str, offset: &str| {
        let read = stage.topic.read("g", "ack=1&wait=0s").header("X-Partition", partition);
        problem::check(&stage.call(&read.header("X-Offset", offset)), 400)
    };
    for (partition, offset) in [("0", "x"), ("x", "0"), ("0", ""), ("", "0"), ("0", "1.5")] {
        with(partition, offset);
    }
    problem::check(&stage.call(&stage.topic.ack_all("g", "acks=1", &[(0, 0)])), 400);
    stage.stays_committed(0, None);
    assert_eq!(stage.lease("lease=1m").offset, 2, "and nothing was delivered");
    stage.ack(&[(0, 0), (0, 1), (0, 2)]).expect(200);
    stage.wait_committed(0, 3);
}
