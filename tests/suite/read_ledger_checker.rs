//! The judge of readers is judged first: the ledger of deliveries finds each kind of fault, and forgives exactly what is promised; the
//! decoders of the three formats take any split of the bytes and refuse what is not of the format.
//!
//! Method: deliveries and acknowledgements are put together by hand for every fault the ledger knows, and it must count that one and no
//! other; and for every duplicate that is allowed, once just inside and once just outside the bounds. The decoders are fed samples whole
//! and byte by byte.

use std::time::Duration;

use kateway_tests::kcat::Record;
use kateway_tests::read_ledger::{Ack, ReadLedger, ReadVerdict, Received, hash};
use kateway_tests::readers::{Decoder, Event, Format};

use crate::Case;

pub const CASES: &[Case] = &[
    Case::new("read_ledger_checker::clean", clean),
    Case::new("read_ledger_checker::each_fault_is_found", each_fault_is_found),
    Case::new("read_ledger_checker::allowed_duplicates", allowed_duplicates),
    Case::new("read_ledger_checker::order_within_a_generation", order_within_a_generation),
    Case::new("read_ledger_checker::decoders", decoders),
];

const INTERVAL: Duration = Duration::from_millis(100);

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn records(count: i64) -> Vec<Record> {
    let record = |offset| Record {
        partition: 0,
        offset,
        timestamp: 0,
        key: None,
        payload: Some(format!("{offset}").into_bytes()),
    };
    (0..count).map(record).collect()
}

fn deliver(ledger: &ReadLedger, client: u32, offset: i64, at: u64) {
    deliver_counted(ledger, client, offset, at, 1);
}

fn deliver_counted(ledger: &ReadLedger, client: u32, offset: i64, at: u64, count: i64) {
    let hash = hash(format!("{offset}").as_bytes());
    ledger.received(Received { client, position: (0, offset), count, hash, at: ms(at), processed: true });
}

fn ack(ledger: &ReadLedger, offsets: &[i64], at: u64, status: Option<u16>) {
    let (sent, answered, call) = (ms(at), ms(at + 1), ledger.call());
    ledger.acked(Ack { client: 1, partition: 0, offsets: offsets.to_vec(), sent, answered, status, call });
}

/// Five messages, delivered and acknowledged in two answers.
fn five() -> ReadLedger {
    let ledger = ReadLedger::new(INTERVAL);
    for offset in 0..5 {
        deliver(&ledger, 1, offset, 10 + u64::try_from(offset).expect("few"));
    }
    ack(&ledger, &[0, 1, 2], 20, Some(200));
    ack(&ledger, &[3, 4], 30, Some(200));
    ledger
}

fn faults(verdict: &ReadVerdict) -> [usize; 5] {
    [verdict.lost, verdict.stray, verdict.altered, verdict.duplicate, verdict.reorder]
}

fn clean() {
    let verdict = five().check(&records(5));
    verdict.assert_clean();
    assert_eq!((verdict.records, verdict.deliveries, verdict.acked), (5, 5, 5));
}

fn each_fault_is_found() {
    let expect = |fault: &str, verdict: &ReadVerdict, wanted: [usize; 5]| {
        assert_eq!(faults(verdict), wanted, "{fault}: lost, stray, altered, duplicate, reorder");
    };
    expect("one never came", &five().check(&records(6)), [1, 0, 0, 0, 0]);
    expect("one came from nowhere", &five().check(&records(4)), [0, 1, 0, 0, 0]);

    let mut other = records(5);
    other[2].payload = Some(b"other".to_vec());
    expect("one came with other bytes", &five().check(&other), [0, 0, 1, 0, 0]);

    let ledger = five();
    deliver(&ledger, 2, 1, 40);
    expect("one came again after its acknowledgement", &ledger.check(&records(5)), [0, 0, 0, 1, 0]);

    let ledger = five();
    deliver(&ledger, 1, 6, 40);
    deliver(&ledger, 1, 5, 41);
    expect("two changed places", &ledger.check(&records(7)), [0, 0, 0, 0, 1]);

    let ledger = five();
    let hash = hash(b"5");
    ledger.received(Received { client: 1, position: (0, 5), count: 1, hash, at: ms(50), processed: false });
    expect("one came to a client that died", &ledger.check(&records(6)), [1, 0, 0, 0, 0]);
    deliver_counted(&ledger, 2, 5, 60, 2);
    expect("and again to one that lived", &ledger.check(&records(6)), [0, 0, 0, 0, 0]);
}

fn allowed_duplicates() {
    let expect = |what: &str, ledger: &ReadLedger, wanted: [usize; 4]| {
        let verdict = ledger.check(&records(5));
        let found = [verdict.unacked_again, verdict.young_again, verdict.above_gap_again, verdict.duplicate];
        assert_eq!(found, wanted, "{what}: unacked, young, above a gap, duplicate");
    };
    for status in [None, Some(409), Some(503)] {
        let ledger = ReadLedger::new(INTERVAL);
        (0..5).for_each(|offset| deliver(&ledger, 1, offset, 10));
        ack(&ledger, &[0, 1, 2, 3, 4], 20, status);
        deliver_counted(&ledger, 2, 4, 30, 2);
        expect("never acknowledged with 200", &ledger, [1, 0, 0, 0]);
    }
    // The second answer was given at 31 ms; the interval and a second later is 1,131 ms.
    for (killed, wanted) in [(1_131, [0, 1, 0, 0]), (1_132, [0, 0, 0, 1]), (30, [0, 1, 0, 0])] {
        let ledger = five();
        ledger.disturbed(ms(killed), ms(killed));
        deliver(&ledger, 2, 4, 2_000);
        expect(&format!("killed at {killed} ms"), &ledger, wanted);
    }
    let ledger = five();
    ledger.disturbed(ms(5), ms(25));
    deliver(&ledger, 2, 4, 2_000);
    expect("acknowledged after the disturbance was over", &ledger, [0, 0, 0, 1]);
    ledger.disturbed(ms(5), ms(40));
    expect("acknowledged while it lasted", &ledger, [0, 1, 0, 0]);

    // Handed to another before it was acknowledged: whose lease it was is not known, so only the last offset counts.
    for (at, wanted) in [(25, [2, 0, 0, 0]), (5_000, [0, 0, 0, 2])] {
        let ledger = five();
        deliver(&ledger, 2, 4, at);
        deliver(&ledger, 3, 3, 6_000);
        expect(&format!("handed to another at {at} ms"), &ledger, wanted);
    }

    let above_gap = |first_acked_at: Option<u64>| {
        let ledger = ReadLedger::new(INTERVAL);
        (0..5).for_each(|offset| deliver(&ledger, 1, offset, 10));
        ack(&ledger, &[3, 4], 20, Some(200));
        if let Some(at) = first_acked_at {
            ack(&ledger, &[0, 1, 2], at, Some(200));
        }
        deliver(&ledger, 2, 4, 5_000);
        ledger
    };
    expect("a gap below that never closed", &above_gap(None), [0, 0, 1, 0]);
    expect("a gap below that closed later", &above_gap(Some(30)), [0, 0, 1, 0]);
    expect("no gap when it was acknowledged", &above_gap(Some(15)), [0, 0, 0, 1]);
}

fn order_within_a_generation() {
    let backwards = |count: i64, spans: &[(u64, u64)]| {
        let ledger = five();
        deliver(&ledger, 1, 6, 40);
        deliver_counted(&ledger, 1, 5, 60, count);
        for (from, to) in spans {
            ledger.moved(ms(*from), ms(*to));
        }
        ledger.check(&records(7)).reorder
    };
    assert_eq!(backwards(1, &[]), 1);
    assert_eq!(backwards(2, &[]), 0, "a redelivery comes when it comes");
    assert_eq!(backwards(1, &[(45, 50)]), 0, "the partition moved in between");
    assert_eq!(backwards(1, &[(61, 70), (10, 39)]), 1, "it moved before and after");
    let ledger = five();
    deliver(&ledger, 1, 6, 40);
    deliver(&ledger, 2, 5, 60);
    assert_eq!(ledger.check(&records(7)).reorder, 0, "two clients have no order");
}

// === decoders ===

fn decoders() {
    let frame = |partition: i32, offset: i64, len: i32, payload: &[u8]| {
        [&partition.to_be_bytes()[..], &offset.to_be_bytes(), &len.to_be_bytes(), payload].concat()
    };
    let frames = [
        frame(3, 7, 2, b"ab"),
        frame(-1, 0, 0, b""),
        frame(0, 8, 0, b""),
        frame(0, 9, -1, b""),
        frame(-2, 10, 8, &20i64.to_be_bytes()),
    ];
    assert_eq!(told(Format::Frames, &frames.concat()), ["3 7 ab", "heartbeat", "0 8 ", "0 9 null", "gap -2 10 20"]);

    let object = |offset: i64, value: &str| {
        format!(r#"{{"partition":3,"offset":{offset},"timestamp":1,"deliveries":1,"value":{value}}}"#)
    };
    let lines = [
        &object(7, "\"ab\""),
        "",
        &object(8, "\"\""),
        &object(9, "null"),
        r#"{"gap":{"partition":3,"from":10,"to":20}}"#,
    ];
    assert_eq!(
        told(Format::Lines, (lines.join("\n") + "\n").as_bytes()),
        ["3 7 ab", "heartbeat", "3 8 ", "3 9 null", "gap 3 10 20"]
    );

    let sse = [
        "retry: 1000\n\n",
        &format!("id: c7\ndata: {}\n\n", object(7, "\"ab\"")),
        ": still there\n\n",
        &format!("id:c8\r\ndata:{}\r\n\r\n", object(8, "null")),
        "event: gap\ndata: {\"gap\":{\"partition\":3,\"from\":10,\"to\":20}}\n\n",
        "event: error\ndata: {\"code\":50302}\n\n",
    ];
    assert_eq!(
        told(Format::Sse, sse.concat().as_bytes()),
        ["retry 1000", "3 7 ab c7", "heartbeat", "3 8 null c8", "gap 3 10 20", "error {\"code\":50302}"]
    );
}

/// Decodes a body whole and byte by byte; both must say the same.
fn told(format: Format, body: &[u8]) -> Vec<String> {
    let whole = Decoder::decode(format, body);
    let mut decoder = Decoder::new(format);
    let pieces: Vec<Event> = body.chunks(1).flat_map(|piece| decoder.feed(piece)).collect();
    decoder.finish();
    assert_eq!(whole, pieces, "{format:?}");
    whole.iter().map(tell).collect()
}

fn tell(event: &Event) -> String {
    match event {
        Event::Message(message) => {
            let (partition, offset) = message.position();
            let payload = message.payload.as_ref().map_or_else(|| "null".to_owned(), |_| message.text());
            let cursor = message.cursor.as_ref().map(|cursor| format!(" {cursor}")).unwrap_or_default();
            format!("{partition} {offset} {payload}{cursor}")
        }
        Event::Heartbeat => "heartbeat".to_owned(),
        Event::Gap { partition, from, to } => format!("gap {partition} {from} {to}"),
        Event::Retry(ms) => format!("retry {ms}"),
        Event::Error(data) => format!("error {data}"),
    }
}
