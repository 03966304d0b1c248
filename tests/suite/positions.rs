//! A group can be moved, looked past, deleted and overtaken by retention, and every reader sees exactly the consequence.
//!
//! Method: groups are moved by offset and by time, idle and under a waiting reader, on both stores; what comes next is known because the
//! messages are numbers. Leases of before a move hold nothing any more. Peek reads without a trace. Retention is made by Kafka's own
//! DeleteRecords: the group goes on at the oldest message, is told what it missed, and a counter says it too. `reset` speaks only where
//! nothing is committed.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kateway_tests::client::Response;
use kateway_tests::readers::{Event, Format, Next, Stream};
use kateway_tests::{problem, wait_until};

use crate::stage::{SOON, Stage, lines, pass, single};
use crate::{Case, kafka};

pub const CASES: &[Case] = &[
    Case::new("positions::by_offset_on_memory", || by_offset(&memory())),
    Case::new("positions::by_offset_on_kafka", || by_offset(&on_kafka())).kafka(),
    Case::new("positions::by_time_on_memory", || by_time(&memory())),
    Case::new("positions::by_time_on_kafka", || by_time(&on_kafka())).kafka(),
    Case::new("positions::under_a_reader_on_memory", || under_a_reader(&memory())),
    Case::new("positions::under_a_reader_on_kafka", || under_a_reader(&on_kafka())).kafka(),
    Case::new("positions::peek_leaves_no_trace_on_memory", || peek_leaves_no_trace(&memory())),
    Case::new("positions::peek_leaves_no_trace_on_kafka", || peek_leaves_no_trace(&on_kafka())).kafka(),
    Case::new("positions::group_is_deleted_on_memory", || group_is_deleted(&memory())),
    Case::new("positions::group_is_deleted_on_kafka", || group_is_deleted(&on_kafka())).kafka(),
    Case::new("positions::retention_passes_the_group", retention_passes_the_group).kafka(),
    Case::new("positions::retention_passes_a_stream", retention_passes_a_stream).kafka(),
    Case::new("positions::reset_where_nothing_is_committed_on_memory", || reset_where_nothing_is_committed(&memory())),
    Case::new("positions::reset_where_nothing_is_committed_on_kafka", || reset_where_nothing_is_committed(&on_kafka()))
        .kafka(),
    Case::new("positions::nonsense_moves_nothing", nonsense_moves_nothing),
];

fn memory() -> Stage {
    Stage::on_memory("moved")
}

fn on_kafka() -> Stage {
    Stage::on_kafka("moved", 2)
}

/// The next message of a group in auto mode, which must come.
fn next(stage: &Stage, group: &str) -> i64 {
    single(&stage.call(&stage.topic.read(group, "wait=20s"))).offset
}

fn read(stage: &Stage, group: &str, offsets: impl IntoIterator<Item = i64>) {
    for offset in offsets {
        assert_eq!(next(stage, group), offset);
    }
}

fn is_at_its_end(stage: &Stage, group: &str) {
    stage.call(&stage.topic.read(group, "wait=300ms")).expect(204);
}

#[track_caller]
fn moved(answer: Response) {
    assert_eq!(answer.expect(200).json()["ok"], 1);
}

fn by_offset(stage: &Stage) {
    stage.fill(0, 0..10);
    read(stage, "g", 0..10);
    for (to, from) in [("3", 3), ("0", 0), ("9", 9)] {
        moved(stage.call(&stage.topic.move_to_offset("g", 0, to)));
        read(stage, "g", from..10);
        is_at_its_end(stage, "g");
        stage.wait_committed(0, 10);
    }
    // It is the message to read next, so the end is as good a place as any.
    moved(stage.call(&stage.topic.move_to_offset("g", 0, "10")));
    is_at_its_end(stage, "g");
    // A group nobody has read yet starts where it was put.
    moved(stage.call(&stage.topic.move_to_offset("new", 0, "7")));
    assert_eq!(stage.committed("new", 0), Some(7), "committed with the answer");
    read(stage, "new", 7..10);
    // The same on the manage listener.
    moved(stage.gateway.manage(&stage.topic.move_to_offset("new", 0, "8")));
    read(stage, "new", 8..10);
}

fn now_ms() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is past 1970").as_millis()
}

/// RFC 3339 of a moment, by the arithmetic of the calendar (Howard Hinnant, `civil_from_days`).
fn rfc3339(ms: u128) -> String {
    let (days, ms) = (i64::try_from(ms / 86_400_000).expect("few"), ms % 86_400_000);
    let z = days + 719_468;
    let (era, day_of_era) = (z.div_euclid(146_097), z.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (seconds, ms) = (ms / 1_000, ms % 1_000);
    let (hours, minutes, seconds) = (seconds / 3_600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hours:02}:{minutes:02}:{seconds:02}.{ms:03}Z")
}

fn by_time(stage: &Stage) {
    assert_eq!(rfc3339(1_709_164_799_007), "2024-02-28T23:59:59.007Z");
    assert_eq!(rfc3339(1_709_164_800_000), "2024-02-29T00:00:00.000Z");
    for partition in 0..2 {
        stage.fill(partition, 0..5);
    }
    // Kafka keeps milliseconds.
    pass(Duration::from_millis(20));
    let between = now_ms();
    pass(Duration::from_millis(20));
    for partition in 0..2 {
        stage.fill(partition, 5..8);
    }
    // The same moment, written with an offset from UTC.
    let elsewhere = rfc3339(between + 2 * 3_600_000).replace('Z', "+02:00");
    for (time, expected) in [
        ("oldest".to_owned(), 16),
        (between.to_string(), 6),
        (rfc3339(between), 6),
        (elsewhere, 6),
        ("0".to_owned(), 16),
        ((now_ms() + 3_600_000).to_string(), 0),
        ("newest".to_owned(), 0),
    ] {
        moved(stage.call(&stage.topic.move_to_time("g", &time)));
        let mut count = 0;
        loop {
            let answer =
                stage.call(&stage.topic.read("g", "batch=100&wait=700ms").header("Accept", Format::Lines.media_type()));
            if answer.status == 204 {
                break;
            }
            let batch = lines(&answer);
            assert!(expected != 6 || batch.iter().all(|delivery| delivery.offset >= 5), "{time}: {batch:?}");
            count += batch.len();
        }
        assert_eq!(count, expected, "time={time}");
    }
}

/// Leases of before the move hold nothing any more, and a reader that waits gets what stands at the new place.
fn under_a_reader(stage: &Stage) {
    stage.fill(0, 0..5);
    for offset in 0..5 {
        assert_eq!(stage.lease("lease=1m").offset, offset);
    }
    stage.ack(&[(0, 0), (0, 1)]).expect(200);
    stage.wait_committed(0, 2);
    let mut waiting = stage.gateway.subscriber();
    waiting.send(&stage.topic.read("g", "ack=1&lease=1m&wait=20s").bytes()).expect("sent");
    wait_until(SOON, "a reader waits", || stage.gateway.status()["groups"][0]["waiting"] == 1);
    moved(stage.call(&stage.topic.move_to_offset("g", 0, "1")));
    let first = single(&waiting.read_response().unwrap_or_else(|e| panic!("{e}")));
    assert_eq!((first.offset, first.count), (1, None), "a move begins a new life of leases");
    for dropped in 2..5 {
        problem::check(&stage.ack(&[(0, dropped)]), 409);
    }
    stage.wait_committed(0, 1);
    for offset in 2..5 {
        assert_eq!(stage.lease("lease=1m").offset, offset);
    }
    stage.ack(&[(0, 1), (0, 2), (0, 3), (0, 4)]).expect(200);
    stage.wait_committed(0, 5);
    // Forward, past what nobody has read.
    stage.fill(0, 5..10);
    moved(stage.call(&stage.topic.move_to_offset("g", 0, "8")));
    assert_eq!(stage.lease("lease=1m").offset, 8);
    stage.wait_committed(0, 8);
}

fn peek_leaves_no_trace(stage: &Stage) {
    stage.fill(0, 0..10);
    read(stage, "g", 0..3);
    stage.wait_committed(0, 3);
    let peek = |query: &str| -> Vec<(i32, i64, String)> {
        let answer = stage.call(&stage.topic.peek(query)).expect(200);
        let position = |line: &kateway_tests::readers::Delivery| (line.partition, line.offset, line.text());
        lines(&answer).iter().map(position).collect()
    };
    let expected = |offsets: std::ops::Range<i64>| -> Vec<(i32, i64, String)> {
        offsets.map(|offset| (0, offset, offset.to_string())).collect()
    };
    assert_eq!(peek("partition=0&offset=0&n=4"), expected(0..4));
    assert_eq!(peek("partition=0&offset=7&n=100"), expected(7..10));
    for _ in 0..3 {
        assert_eq!(peek("partition=0&offset=3&n=1"), expected(3..4));
    }
    let at_the_end = stage.call(&stage.topic.peek("partition=0&offset=10&n=5"));
    assert!([200, 204].contains(&at_the_end.status) && at_the_end.body.is_empty(), "{}", at_the_end.text());
    assert_eq!(lines(&stage.gateway.manage(&stage.topic.peek("partition=0&offset=0&n=2")).expect(200)).len(), 2);
    for query in ["n=0", "n=x", "partition=99", "partition=-1", "partition=0&offset=-5", "m=1", "partition=0&offset=x"]
    {
        problem::check(&stage.call(&stage.topic.peek(query)), 400);
    }
    stage.stays_committed(0, Some(3));
    read(stage, "g", 3..10);
}

fn group_is_deleted(stage: &Stage) {
    stage.fill(0, 0..5);
    read(stage, "g", 0..5);
    stage.wait_committed(0, 5);
    let mut waiting = stage.gateway.subscriber();
    waiting.send(&stage.topic.read("g", "wait=2s").bytes()).expect("sent");
    wait_until(SOON, "a reader waits", || stage.gateway.status()["groups"][0]["waiting"] == 1);
    problem::check(&stage.call(&stage.topic.delete_group("g")), 409);
    assert_eq!(waiting.read_response().unwrap_or_else(|e| panic!("{e}")).status, 204);
    // Nobody reads any more, though the gateway is a member for a while yet.
    wait_until(SOON, "the group is deleted", || {
        let answer = stage.call(&stage.topic.delete_group("g"));
        assert!([200, 409].contains(&answer.status), "{}", answer.text());
        answer.status == 200
    });
    if stage.on_kafka {
        assert_eq!(stage.committed("g", 0), None, "its offsets are gone");
    }
    read(stage, "g", 0..5);
    is_at_its_end(stage, "g");
}

/// What the answer says was missed.
fn gap(answer: &Response) -> Option<(i64, i64)> {
    // Which partition it is of may follow.
    let range = answer.header("x-gap")?.split(';').next()?;
    let (from, to) = range.split_once('-').expect("from-to");
    Some((from.parse().expect("a number"), to.parse().expect("a number")))
}

fn retention_passes_the_group() {
    let stage = Stage::on_kafka("moved", 1);
    let admin = kafka().admin();
    stage.fill(0, 0..30);
    // Committed by somebody else, so that no gateway has fetched what is deleted.
    admin.commit(&stage.topic.group_in_kafka("g"), &stage.topic.in_kafka(), 0, 5);
    admin.delete_records(&stage.topic.in_kafka(), 0, 20);
    let counted = || stage.gateway.scrape().sum("kateway_sub_gaps_total", &[]);
    let answer = stage.call(&stage.topic.read("g", "wait=20s"));
    assert_eq!(single(&answer).offset, 20);
    let (from, to) = gap(&answer).expect("the group is told what it missed");
    assert!(from == 5 && [19, 20].contains(&to), "X-Gap: {from}-{to}");
    wait_until(SOON, "the gap is counted", || counted() >= 1.0);
    let answer = stage.call(&stage.topic.read("g", "wait=20s"));
    assert_eq!((single(&answer).offset, gap(&answer)), (21, None), "it is told once");
    read(&stage, "g", 22..30);
    stage.wait_committed(0, 30);
    // A new group begins at the oldest there is: nothing was missed.
    let answer = stage.call(&stage.topic.read("new", "wait=20s"));
    assert_eq!((single(&answer).offset, gap(&answer)), (20, None));
}

fn retention_passes_a_stream() {
    let stage = Stage::on_kafka("moved", 1);
    let admin = kafka().admin();
    stage.fill(0, 0..30);
    admin.delete_records(&stage.topic.in_kafka(), 0, 20);
    for format in Format::ALL {
        let group = format!("{format:?}");
        admin.commit(&stage.topic.group_in_kafka(&group), &stage.topic.in_kafka(), 0, 5);
        let request = stage.topic.read(&group, "stream=1");
        let mut stream = Stream::open(stage.gateway.subscribe, &request, format).unwrap_or_else(|e| panic!("{e}"));
        let Next::Event(Event::Gap { from, to, .. }) = stream.next(SOON) else {
            panic!("{format:?}: a gap comes first")
        };
        assert!(from == 5 && [19, 20].contains(&to), "{format:?}: {from}-{to}");
        for offset in 20..30 {
            assert_eq!(stream.message(SOON).offset, offset, "{format:?}");
        }
    }
}

fn reset_where_nothing_is_committed(stage: &Stage) {
    stage.fill(0, 0..5);
    let call = |group: &str, query: &str| stage.call(&stage.topic.read(group, query));
    call("new", "reset=newest&wait=1s").expect(204);
    stage.fill(0, 5..8);
    assert_eq!(single(&call("new", "reset=newest&wait=20s")).offset, 5);
    // It has a place now, whatever is asked for.
    assert_eq!(single(&call("new", "reset=oldest&wait=20s")).offset, 6);
    moved(stage.call(&stage.topic.move_to_offset("new", 0, "2")));
    assert_eq!(single(&call("new", "reset=newest&wait=20s")).offset, 2);
    assert_eq!(single(&call("old", "wait=20s")).offset, 0);
    problem::check(&call("old", "reset=3&wait=0s"), 400);
}

fn nonsense_moves_nothing() {
    let stage = memory();
    stage.fill(0, 0..5);
    read(&stage, "g", 0..3);
    stage.wait_committed(0, 3);
    for offset in ["-5", "x", "", "1.5"] {
        problem::check(&stage.call(&stage.topic.move_to_offset("g", 0, offset)), 400);
    }
    problem::check(&stage.call(&stage.topic.move_to_offset("g", 99, "0")), 400);
    for time in ["yesterday", "", "2024-13-01T00:00:00Z", "2024-01-01"] {
        problem::check(&stage.call(&stage.topic.move_to_time("g", time)), 400);
    }
    let elsewhere = kateway_tests::topic::Topic::new(&stage.topic.appid, "elsewhere", "v1");
    problem::check(&stage.call(&elsewhere.move_to_offset("g", 0, "0")), 404);
    stage.stays_committed(0, Some(3));
    read(&stage, "g", 3..5);
}
