//! The judge is judged first: the ledger finds each kind of fault, made by hand and made by a gateway that breaks its
//! promise.
//!
//! Method: entries and records are put together for every fault the ledger knows, and it must count that one and no
//! other. Then a gateway is started with the switch `test.answer_before_report`, which answers 201 before Kafka has
//! reported, and is killed with `kill -9` under load: the ledger must report losses. The same kill without the switch
//! must report none. Only then do the verdicts in `faults.rs` mean anything.

use std::sync::Arc;
use std::time::Duration;

use kateway_tests::kateway::{Builder, Kateway};
use kateway_tests::kcat::{self, Record};
use kateway_tests::ledger::{Answer, Draft, Ledger, Verdict};
use kateway_tests::load::{Load, Plan};
use kateway_tests::topic::Topic;
use kateway_tests::{figures, wait_until};

use crate::{Case, kafka};

pub const CASES: &[Case] = &[
    Case::new("ledger_checker::clean", clean),
    Case::new("ledger_checker::each_fault_is_found", each_fault_is_found),
    Case::new("ledger_checker::promises_of_202_and_unknown", promises_of_202_and_unknown),
    Case::new("ledger_checker::red_when_the_gateway_answers_too_early", red_when_the_gateway_answers_too_early)
        .kafka()
        .alone(),
    Case::new("ledger_checker::green_when_it_does_not", green_when_it_does_not).kafka().alone(),
];

// === by hand ===

fn record(draft: &Draft, partition: i32, offset: i64) -> Record {
    let (key, payload) = (Some(draft.key.clone().into_bytes()), Some(draft.body.clone()));
    Record { partition, offset, timestamp: 0, key, payload }
}

/// A ledger of five durable attempts of one connection and key, and the records that belong to them.
fn five() -> (Ledger, Vec<Draft>, Vec<Record>) {
    let ledger = Ledger::new(7);
    let drafts: Vec<Draft> = (0..5).map(|_| ledger.enter(1, 2, 100)).collect();
    for draft in &drafts {
        ledger.answered(draft.id, Answer::Durable);
    }
    let records = drafts.iter().zip(0..).map(|(draft, offset)| record(draft, 0, offset)).collect();
    (ledger, drafts, records)
}

fn clean() {
    let (ledger, _, records) = five();
    let verdict = ledger.check(&records);
    verdict.assert_clean();
    assert_eq!((verdict.durable, verdict.records), (5, 5));
}

fn each_fault_is_found() {
    let expect = |fault: &str, verdict: Verdict, wanted: [usize; 6]| {
        let found = [verdict.lost, verdict.ghost, verdict.altered, verdict.stray, verdict.duplicate, verdict.reorder];
        assert_eq!(found, wanted, "{fault}: lost, ghost, altered, stray, duplicate, reorder");
    };
    let (ledger, _, mut records) = five();
    records.remove(2);
    expect("one is missing", ledger.check(&records), [1, 0, 0, 0, 0, 0]);

    let (ledger, drafts, records) = five();
    ledger.answered(drafts[3].id, Answer::Refused);
    expect("one was refused and is there", ledger.check(&records), [0, 1, 0, 0, 0, 0]);

    let (ledger, _, mut records) = five();
    records[1].payload.as_mut().expect("it has one")[99] ^= 1;
    expect("one bit is flipped", ledger.check(&records), [0, 0, 1, 0, 0, 0]);

    let (ledger, _, mut records) = five();
    records[4].key = None;
    expect("the key is gone", ledger.check(&records), [0, 0, 1, 0, 0, 0]);

    let (ledger, _, mut records) = five();
    records.push(Record { offset: 5, payload: Some(b"from nowhere".to_vec()), ..records[0].clone() });
    expect("one was never sent", ledger.check(&records), [0, 0, 0, 1, 0, 0]);

    let (ledger, _, mut records) = five();
    records.push(record(&Ledger::new(8).enter(1, 2, 100), 0, 5));
    expect("one is of another run", ledger.check(&records), [0, 0, 0, 1, 0, 0]);

    let (ledger, drafts, mut records) = five();
    records.push(record(&drafts[4], 0, 5));
    expect("one is there twice", ledger.check(&records), [0, 0, 0, 0, 1, 0]);

    let (ledger, _, mut records) = five();
    (records[1].offset, records[2].offset) = (2, 1);
    expect("two changed places", ledger.check(&records), [0, 0, 0, 0, 0, 1]);
}

fn promises_of_202_and_unknown() {
    for answer in [Answer::Local, Answer::None, Answer::Unknown] {
        let (ledger, drafts, mut records) = five();
        ledger.answered(drafts[0].id, answer);
        ledger.check(&records).assert_clean();
        records.remove(0);
        ledger.check(&records).assert_clean();
    }
}

// === by a gateway ===

fn red_when_the_gateway_answers_too_early() {
    // The producer's queue is what is lost, so it is made to hold messages for a while.
    let builder =
        Kateway::kafka(&kafka().bootstrap()).set("test.answer_before_report", true).set("kafka.linger_us", 100_000);
    let verdict = kill_under_load(builder);
    figures::note("ledger, gateway that answers too early, kill -9", &verdict);
    assert!(verdict.lost > 0, "the ledger sees that promises were broken: {verdict}");
}

fn green_when_it_does_not() {
    let verdict = kill_under_load(Kateway::kafka(&kafka().bootstrap()));
    figures::note("ledger, gateway as it is, kill -9", &verdict);
    verdict.assert_clean();
}

fn kill_under_load(builder: Builder) -> Verdict {
    let admin = kafka().admin();
    let topic = Topic::fresh("ledger");
    admin.create_topic(&topic.in_kafka(), 4);
    let mut gateway = builder.start();
    let ledger = Arc::new(Ledger::new(u64::from(gateway.pid())));
    let load = Load::start(&Plan::new(gateway.publish, &topic.appid, &topic.name), &ledger);
    wait_until(Duration::from_mins(1), "two thousand durable answers", || ledger.count(Answer::Durable) >= 2_000);
    gateway.kill();
    load.stop();
    // Nothing is on its way any more: the producer died with the process, and what brokers took they have.
    ledger.check(&kcat::read_all(admin.brokers(), &topic.in_kafka()))
}
