//! A reader that names tags gets messages with any of them; what it does not want is committed, and said.
//!
//! Method: messages of six kinds of tags, in one partition, so that order and offsets are known. What a filter passes over must be
//! counted in `X-Filtered` of the very answer, and committed, even when nothing at all was wanted. While a group is read with one filter
//! another is refused; afterwards it is free. `subscribe_options` has the tables of what matches.

use std::time::Duration;

use kateway_tests::client::Request;
use kateway_tests::readers::{Format, Stream};
use kateway_tests::{problem, wait_until};

use crate::Case;
use crate::stage::{SOON, Stage, lines};

pub const CASES: &[Case] = &[
    Case::new("tag_filter::passed_over_is_said_and_committed_on_memory", || {
        passed_over_is_said_and_committed(&Stage::on_memory("tagged"));
    }),
    Case::new("tag_filter::passed_over_is_said_and_committed_on_kafka", || {
        passed_over_is_said_and_committed(&Stage::on_kafka("tagged", 1));
    })
    .kafka(),
    Case::new("tag_filter::with_ack", || with_ack(&Stage::on_memory("tagged"))),
    Case::new("tag_filter::with_ack_on_kafka", || with_ack(&Stage::on_kafka("tagged", 1))).kafka(),
    Case::new("tag_filter::in_a_stream", in_a_stream),
    Case::new("tag_filter::one_at_a_time", one_at_a_time),
    Case::new("tag_filter::expressions_are_not_built", expressions_are_not_built),
];

/// Message `n` has tag `a`, `b`, both, or none, in turn.
fn fill(stage: &Stage, count: usize) {
    let mut connection = stage.gateway.publisher();
    for n in 0..count {
        let request = stage.topic.publish("partition=0", n.to_string());
        let tag = [Some("a"), Some("b"), Some("a;b"), None][n % 4];
        let request = tag.into_iter().fold(request, |request, tag| request.header("X-Tag", tag));
        connection.call(&request).unwrap_or_else(|e| panic!("{e}")).expect(201);
    }
}

fn wants(stage: &Stage, group: &str, tag: &str, query: &str) -> Request {
    stage.topic.read(group, query).header("X-Tag", tag).header("Accept", Format::Lines.media_type())
}

/// Reads until nothing comes; gives the bodies, and how many the answers said were passed over.
fn drain(stage: &Stage, group: &str, tag: &str) -> (Vec<String>, i64) {
    let (mut bodies, mut filtered) = (Vec::new(), 0);
    loop {
        let answer = stage.call(&wants(stage, group, tag, "batch=5&wait=1s"));
        filtered += answer.header("x-filtered").map_or(0, |_| answer.number("x-filtered"));
        if answer.status == 204 {
            return (bodies, filtered);
        }
        bodies.extend(lines(&answer.expect(200)).iter().map(kateway_tests::readers::Delivery::text));
    }
}

fn passed_over_is_said_and_committed(stage: &Stage) {
    fill(stage, 40);
    let texts = |numbers: &mut dyn Iterator<Item = usize>| -> Vec<String> { numbers.map(|n| n.to_string()).collect() };
    let expected = [
        ("wants-a", "a", texts(&mut (0..40).filter(|n| n % 4 == 0 || n % 4 == 2)), 20),
        ("wants-both", "b;a", texts(&mut (0..40).filter(|n| n % 4 != 3)), 10),
        ("wants-none", "c", Vec::new(), 40),
    ];
    for (group, tag, bodies, filtered) in expected {
        assert_eq!(drain(stage, group, tag), (bodies, filtered), "{group}");
        wait_until(SOON, format!("all is committed for {group}"), || stage.committed(group, 0) == Some(40));
    }
    let counted = || stage.gateway.scrape().sum("kateway_sub_filtered_total", &[]);
    wait_until(SOON, "what was passed over is counted", || counted() == 70.0);
}

/// What is passed over above an unacknowledged message is not committed before that one.
fn with_ack(stage: &Stage) {
    fill(stage, 8);
    let first = lines(&stage.call(&wants(stage, "g", "a", "ack=1&lease=1m&batch=2&wait=20s&linger=500ms")).expect(200));
    assert_eq!(first.iter().map(|delivery| delivery.offset).collect::<Vec<_>>(), [0, 2]);
    stage.stays_committed(0, None);
    stage.ack(&[(0, 2)]).expect(200);
    wait_until(SOON, "at least what was acknowledged is committed", || stage.committed("g", 0) >= Some(3));
    assert!(stage.committed("g", 0) <= Some(4), "the next one wanted is not");
    let rest = lines(&stage.call(&wants(stage, "g", "a", "ack=1&lease=1m&batch=5&wait=20s&linger=500ms")).expect(200));
    assert_eq!(rest.iter().map(|delivery| delivery.offset).collect::<Vec<_>>(), [4, 6]);
    stage.ack(&[(0, 6)]).expect(200);
    stage.call(&wants(stage, "g", "a", "ack=1&wait=1s")).expect(204);
    stage.wait_committed(0, 8);
}

fn in_a_stream() {
    let stage = Stage::on_memory("tagged");
    fill(&stage, 40);
    let request = stage.topic.read("g", "stream=1").header("X-Tag", "b");
    let mut stream = Stream::open(stage.gateway.subscribe, &request, Format::Sse).unwrap_or_else(|e| panic!("{e}"));
    for n in (0..40).filter(|n| n % 4 == 1 || n % 4 == 2) {
        assert_eq!(stream.message(SOON).offset, n);
    }
    wait_until(SOON, "the stream's progress is committed", || stage.committed("g", 0) == Some(40));
}

fn one_at_a_time() {
    let stage = Stage::on_memory("tagged");
    fill(&stage, 1);
    let mut waiting = stage.gateway.subscriber();
    waiting.send(&wants(&stage, "g", "c", "wait=3s").bytes()).expect("sent");
    wait_until(SOON, "a reader with a filter waits", || {
        let status = stage.gateway.status();
        status["groups"].as_array().is_some_and(|groups| groups.iter().any(|group| group["waiting"] == 1))
    });
    for other in ["a", "c;d"] {
        problem::check(&stage.call(&wants(&stage, "g", other, "wait=0s")), 409);
    }
    problem::check(&stage.call(&stage.topic.read("g", "wait=0s")), 409);
    // The same one, and other groups, are free.
    stage.call(&wants(&stage, "g", "c", "wait=0s")).expect(204);
    stage.call(&wants(&stage, "h", "d", "wait=0s")).expect(204);
    assert_eq!(waiting.read_response().unwrap_or_else(|e| panic!("{e}")).status, 204);
    wait_until(Duration::from_secs(5), "another filter is taken", || {
        stage.call(&wants(&stage, "g", "d", "wait=0s")).status == 204
    });
}

fn expressions_are_not_built() {
    let stage = Stage::on_memory("tagged");
    fill(&stage, 1);
    let answer = stage.call(&stage.topic.read("g", "wait=0s").header("X-Tag-Expr", "a && !b"));
    let refused = problem::check(&answer, 400);
    assert_eq!(refused.slug, "not-supported");
    stage.call(&stage.topic.read("g", "wait=20s")).expect(200);
}
