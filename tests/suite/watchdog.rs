//! A group that has messages, waiting clients and no progress is not left to itself: it is counted, named in the log, and joins anew.
//!
//! Method: the group's first consumer is made to give nothing any more after it has given one message (`test.deaf_after_messages`), as one
//! that hangs would. A client waits; what was published meanwhile comes without anybody's help. A group whose readers hold as many
//! leases as they may stands still just as well, but by its clients' doing, and is left alone. So is one that waits behind a transaction, or
//! behind the mark that one leaves at the end of a log: the gateway has to look, and to see that there is nothing to read. Such an end of
//! one partition hides no other partition that hangs.

use std::time::{Duration, Instant};

use kateway_tests::transaction::Transaction;
use kateway_tests::{figures, wait_until};

use crate::stage::{SOON, Stage, single};
use crate::{Case, kafka};

pub const CASES: &[Case] = &[
    Case::new("watchdog::a_stuck_group_joins_anew", a_stuck_group_joins_anew).kafka(),
    Case::new("watchdog::a_full_group_is_left_alone", a_full_group_is_left_alone).kafka(),
    Case::new("watchdog::the_end_of_a_transaction_is_no_reason", the_end_of_a_transaction_is_no_reason).kafka(),
    Case::new("watchdog::a_mark_hides_no_stuck_partition", a_mark_hides_no_stuck_partition).kafka(),
];

const WATCHDOG_S: u64 = 5;

fn stuck(stage: &Stage) -> f64 {
    stage.gateway.scrape().sum("kateway_sub_stuck_total", &[])
}

fn looks(stage: &Stage) -> f64 {
    stage.gateway.scrape().sum("kateway_sub_watchdog_looks_total", &[])
}

fn write_in_transaction(stage: &Stage, partition: i32) -> Transaction {
    Transaction::write(&kafka().bootstrap(), &stage.topic.in_kafka(), partition, "in a transaction")
}

/// Waits in vain, for twice the watchdog's time.
#[track_caller]
fn wait_for_nothing(stage: &Stage) {
    stage.call(&stage.topic.read("g", &format!("ack=1&lease=10m&wait={}s", 2 * WATCHDOG_S))).expect(204);
}

fn a_stuck_group_joins_anew() {
    let stage = Stage::on_kafka_with("stuck", 2, |builder| {
        builder.set("test.deaf_after_messages", 1).set("sub.watchdog_s", WATCHDOG_S)
    });
    stage.fill(0, 0..1);
    assert_eq!(single(&stage.call(&stage.topic.read("g", "wait=20s"))).offset, 0);
    stage.fill(0, 1..3);
    let start = Instant::now();
    let mut got = Vec::new();
    wait_until(Duration::from_mins(1), "the messages come all the same", || {
        let answer = stage.call(&stage.topic.read("g", "wait=20s"));
        if answer.status == 200 {
            got.push(single(&answer).offset);
        }
        got.len() >= 2
    });
    assert_eq!(got, [1, 2]);
    figures::note("watchdog of 5 s: a stuck group gives again after", format!("{:?}", start.elapsed()));
    assert!(stuck(&stage) >= 1.0);
    stage.gateway.wait_log(SOON, "a group is stuck and joins anew");
}

fn a_full_group_is_left_alone() {
    let stage =
        Stage::on_kafka_with("full", 1, |builder| builder.set("sub.leases_max", 2).set("sub.watchdog_s", WATCHDOG_S));
    stage.fill(0, 0..5);
    for offset in 0..2 {
        assert_eq!(stage.lease("lease=10m").offset, offset);
    }
    let start = Instant::now();
    let mut waiting = stage.gateway.subscriber();
    waiting.send(&stage.topic.read("g", "ack=1&lease=10m&wait=10s").bytes()).expect("sent");
    assert_eq!(waiting.read_response().unwrap_or_else(|e| panic!("{e}")).status, 204);
    assert!(start.elapsed() > Duration::from_secs(WATCHDOG_S + 2), "long enough for the watchdog to bite");
    assert!(stuck(&stage) == 0.0, "nothing is wrong with the group");
    // Its leases are still good.
    stage.ack(&[(0, 0), (0, 1)]).expect(200);
    assert_eq!(stage.lease("lease=1m").offset, 2);
}

fn the_end_of_a_transaction_is_no_reason() {
    let stage = Stage::on_kafka_with("marked", 1, |builder| builder.set("sub.watchdog_s", WATCHDOG_S));
    stage.fill(0, 0..1);
    assert_eq!(stage.lease("lease=10m").offset, 0);

    let open = write_in_transaction(&stage, 0);
    wait_for_nothing(&stage);
    assert!(stuck(&stage) == 0.0, "the message cannot be read yet");
    let while_open = looks(&stage);

    open.commit();
    assert_eq!(stage.lease("lease=10m").offset, 1);
    wait_for_nothing(&stage);
    assert!(stuck(&stage) == 0.0, "the mark at offset 2 is no message");
    let looked = looks(&stage);
    wait_for_nothing(&stage);
    assert!(stuck(&stage) == 0.0);
    stage.ack(&[(0, 0), (0, 1)]).expect(200);

    // Did it bite at all, and only when there was something new?
    assert!(while_open >= 1.0, "{while_open} looks while the transaction was open");
    assert!(looked > while_open, "{while_open} looks, {looked} behind the mark");
    assert!(looks(&stage) == looked, "the place is known");
}

fn a_mark_hides_no_stuck_partition() {
    let stage = Stage::on_kafka_with("hidden", 2, |builder| {
        builder.set("test.deaf_after_messages", 1).set("sub.watchdog_s", WATCHDOG_S)
    });
    write_in_transaction(&stage, 0).commit();
    let first = single(&stage.call(&stage.topic.read("g", "wait=20s")));
    assert_eq!((first.partition, first.offset), (0, 0));
    wait_for_nothing(&stage);
    assert!(stuck(&stage) == 0.0, "partition 0 ends in a mark");
    stage.fill(1, 0..1);
    let mut got = None;
    wait_until(Duration::from_mins(1), "the message comes all the same", || {
        let answer = stage.call(&stage.topic.read("g", "wait=20s"));
        got = (answer.status == 200).then(|| single(&answer));
        got.is_some()
    });
    assert_eq!(got.map(|message| message.position()), Some((1, 0)));
    assert!(stuck(&stage) >= 1.0);
}
