//! Readers that take nothing slow nobody down, and cost no more memory than their budget, however many they are.
//!
//! Method: a group reads a topic to its end, and the time is taken. Then a dozen clients of as many groups ask for the same topic, in
//! streams and in large batches, and do not read: together their answers would be hundreds of megabytes. While they stand another
//! group reads the topic to its end; it may not take much longer than the first, and resident memory may not grow beyond its bound.
//! The budgets are given back: when the dead have gone, memory and descriptors are as before.

use std::time::{Duration, Instant};

use kateway_tests::client::Connection;
use kateway_tests::kateway::Builder;
use kateway_tests::readers::{Decoder, Format};
use kateway_tests::{figures, wait_until};

use crate::Case;
use crate::stage::{SOON, Stage, call};

pub const CASES: &[Case] = &[
    Case::new("slow_readers::slow_nobody_down_on_memory", slow_nobody_down_on_memory).alone(),
    Case::new("slow_readers::slow_nobody_down_on_kafka", slow_nobody_down_on_kafka).kafka().alone(),
];

const MESSAGES: usize = 400;
const BYTES: usize = 100_000;
const DEAD: usize = 12;
/// A dozen answers of 8 MB; each message keeps its fetch answer of up to 4 MB, another is under way, and a consumer has its own.
const GROWTH_KIB_MAX: u64 = 256 * 1024;

/// None is cut while the trial looks.
fn patient(builder: Builder) -> Builder {
    builder.set("http.write_timeout_ms", 120_000)
}

fn slow_nobody_down_on_memory() {
    slow_nobody_down("memory", &Stage::on_memory_with("slow", patient));
}

fn slow_nobody_down_on_kafka() {
    let small = |builder| patient(builder).set("kafka.fetch_queue_kbytes", 1_024).set("sub.group_idle_s", 2);
    slow_nobody_down("kafka", &Stage::on_kafka_with("slow", 4, small));
}

fn slow_nobody_down(store: &str, stage: &Stage) {
    let mut publisher = stage.gateway.publisher();
    for n in 0..MESSAGES {
        call(&mut publisher, &stage.topic.publish(&format!("partition={}", n % 4), vec![b'.'; BYTES])).expect(201);
    }
    drop(publisher);
    // The first of all groups pays for what is made on first use.
    read_all(stage, "first");
    let before = read_all(stage, "before");
    let (fds, rss) = (stage.gateway.open_fds(), stage.gateway.resident_kib());
    let dead: Vec<Connection> = (0..DEAD).map(|n| ask_and_do_not_read(stage, n)).collect();
    let during = read_all(stage, "during");
    let again = read_all(stage, "again");
    let grown = stage.gateway.resident_kib().saturating_sub(rss);
    figures::note(
        format!("slow readers, {store}: 40 MB by another group, before / beside {DEAD} dead readers"),
        format!("{before:?} / {during:?}, {again:?}; RSS {rss} KiB + {grown} KiB"),
    );
    assert!(grown < GROWTH_KIB_MAX, "{DEAD} readers that do not read cost {grown} KiB");
    let bound = before * 3 + Duration::from_secs(1);
    assert!(during.min(again) < bound, "{during:?}, {again:?} beside the dead, {before:?} without");
    for client in dead {
        client.reset();
    }
    wait_until(SOON, format!("descriptors return to {fds}"), || stage.gateway.open_fds() <= fds + 2 * DEAD);
    wait_until(SOON, "no connection is left", || stage.gateway.scrape().sum("kateway_connections", &[]) == 0.0);
}

/// The answer begins, and nobody takes it.
fn ask_and_do_not_read(stage: &Stage, n: usize) -> Connection {
    let query = ["stream=1", "batch=4000&linger=500ms&wait=20s", "stream=1&ack=1", "ack=1&batch=4000&wait=20s"][n % 4];
    let format = Format::ALL[n % 3];
    let mut client = stage.gateway.subscriber();
    let request = stage.topic.read(&format!("dead-{n}"), query).header("Accept", format.media_type());
    client.send(&request.bytes()).expect("sent");
    client.read_raw(100).expect("the answer begins");
    client
}

/// How long a group takes to read the topic, from its first message on.
fn read_all(stage: &Stage, group: &str) -> Duration {
    let mut connection = stage.gateway.subscriber();
    let mut start = None;
    let mut count = 0;
    while count < MESSAGES {
        let answer = call(&mut connection, &stage.topic.read(group, "batch=20&wait=20s")).expect(200);
        let _ = start.get_or_insert_with(Instant::now);
        count += Decoder::messages(Format::Frames, &answer.body).len();
    }
    start.expect("messages came").elapsed()
}
