//! Every format, byte for byte.

use std::{sync::Arc, task::Waker};

use bytes::Bytes;

use super::*;
use crate::{api::codes, store::TAG_HEADER};

fn message(offset: Offset, value: &'static [u8]) -> Message {
    Message {
        partition: 3,
        offset,
        timestamp_ms: 1_700_000_000_123,
        key: None,
        value: Bytes::from_static(value),
        ..Message::default()
    }
}

fn headers(headers: &[(&'static [u8], Option<&'static [u8]>)]) -> Arc<[crate::store::Header]> {
    headers.iter().map(|(n, v)| (Bytes::from_static(n), v.map(Bytes::from_static))).collect()
}

fn written(format: Format, message: &Message, deliveries: u32) -> Vec<u8> {
    let mut out = Vec::new();
    Writer::new(format).message(message, deliveries, &mut out);
    out
}

fn ndjson(message: &Message) -> String {
    String::from_utf8(written(Format::Ndjson, message, 1)).expect("JSON is text")
}

fn whole(body: &mut BatchBody) -> Vec<Vec<u8>> {
    let mut cx = Context::from_waker(Waker::noop());
    let mut pieces = Vec::new();
    loop {
        let mut out = Vec::new();
        match body.poll_piece(&mut cx, &mut out) {
            Poll::Ready(Some(Ok(()))) => pieces.push(out),
            Poll::Ready(None) => return pieces,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn ndjson_has_the_fields_of_the_contract_in_its_order() {
    let mut tagged = message(-1, b"a \"quoted\" line\nand \xc3\xa9\x01");
    tagged.key = Some(Bytes::from_static(b"k\\1"));
    tagged.headers = Some(headers(&[
        (b"a", Some(b"1")),
        (TAG_HEADER, Some(b"red;green")),
        (b"a", Some(b"")),
        (b"n", None),
        (b"\xff\"", Some(b"\x00\xff")),
    ]));
    tagged.timestamp_ms = -1;
    assert_eq!(
        ndjson(&tagged),
        "{\"partition\":3,\"offset\":-1,\"timestamp\":-1,\"key\":\"k\\\\1\",\"tag\":\"red;green\",\
         \"headers\":[[\"a\",\"MQ==\"],[\"a\",\"\"],[\"n\",null],[\"\u{fffd}\\\"\",\"AP8=\"]],\"deliveries\":1,\
         \"value\":\"a \\\"quoted\\\" line\\nand \u{e9}\\u0001\"}\n"
    );
}

#[test]
fn ndjson_leaves_out_what_is_not_there_and_encodes_what_is_no_text() {
    let plain = "{\"partition\":3,\"offset\":9,\"timestamp\":1700000000123,\"deliveries\":1,\"value\":\"\"}\n";
    assert_eq!(ndjson(&message(9, b"")), plain);
    let mut only_tag = message(9, b"");
    only_tag.headers = Some(headers(&[(TAG_HEADER, Some(b"t"))]));
    assert_eq!(ndjson(&only_tag), plain.replace(",\"deliveries\"", ",\"tag\":\"t\",\"deliveries\""));
    let mut null_tag = message(9, b"");
    null_tag.headers = Some(headers(&[(TAG_HEADER, None), (b"x", Some(b"ab"))]));
    assert_eq!(ndjson(&null_tag), plain.replace(",\"deliveries\"", ",\"headers\":[[\"x\",\"YWI=\"]],\"deliveries\""));
    let mut binary = message(9, b"\xff\x00");
    binary.key = Some(Bytes::from_static(b"\x80"));
    assert_eq!(
        ndjson(&binary),
        "{\"partition\":3,\"offset\":9,\"timestamp\":1700000000123,\"key64\":\"gA==\",\"deliveries\":1,\"base64\":\"/wA=\"}\n"
    );
    let mut empty_key = message(9, b"v");
    empty_key.key = Some(Bytes::new());
    let object: serde_json::Value = serde_json::from_str(&ndjson(&empty_key)).expect("JSON");
    assert_eq!((&object["key"], &object["value"]), (&"".into(), &"v".into()));
}

#[test]
fn any_bytes_come_back_from_json() {
    for len in 0..=256_usize {
        for start in [0_u8, 100, 200] {
            let value: Vec<u8> =
                (0..len).map(|i| start.wrapping_add(u8::try_from(i % 256).expect("it fits"))).collect();
            let mut sample = message(1, b"");
            sample.value = value.clone().into();
            let line = ndjson(&sample);
            assert_eq!(line.matches('\n').count(), 1, "a line has one end");
            let object: serde_json::Value = serde_json::from_str(&line).expect("JSON");
            let back = match (object["value"].as_str(), object["base64"].as_str()) {
                (Some(text), None) => text.as_bytes().to_vec(),
                (None, Some(encoded)) => {
                    use base64::Engine;
                    base64::engine::general_purpose::STANDARD.decode(encoded).expect("base64")
                }
                other => panic!("{other:?}"),
            };
            assert_eq!(back, value);
        }
    }
}

#[test]
fn frames_are_the_old_ones() {
    let mut expected = vec![0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 2];
    expected.extend_from_slice(b"\xffv");
    assert_eq!(written(Format::Frames, &message(256, b"\xffv"), 7), expected);

    let mut writer = Writer::new(Format::Frames);
    let mut out = Vec::new();
    writer.heartbeat(&mut out);
    writer.gap(&Gap { partition: 1, from: 5, to: 9 }, &mut out);
    let heartbeat = [[0xff; 12].as_slice(), &[0; 4]].concat();
    let gap =
        [[0xff, 0xff, 0xff, 0xfe].as_slice(), &[0, 0, 0, 0, 0, 0, 0, 5], &[0, 0, 0, 8], &[0, 0, 0, 0, 0, 0, 0, 9]];
    assert_eq!(out, [heartbeat, gap.concat()].concat());
}

#[test]
fn events_carry_how_far_the_answer_has_come() {
    let mut writer = Writer::new(Format::Sse);
    let mut out = Vec::new();
    writer.message(&message(7, b"a\r\nb"), 1, &mut out);
    let mut other = message(2, b"\xff");
    other.partition = 0;
    writer.message(&other, 3, &mut out);
    writer.heartbeat(&mut out);
    writer.gap(&Gap { partition: 1, from: 5, to: 9 }, &mut out);
    let problem = Problem::new(&codes::UNAVAILABLE, "no\nbroker");
    writer.error(&problem, &Stamp::default(), &mut out).expect("an event has room for it");
    let text = String::from_utf8(out).expect("events are text");
    let (events, error) = text.split_once("event: error\ndata: ").expect("an error event");
    assert_eq!(
        events,
        "retry: 2000\n\n\
         id: 3:8\ndata: {\"partition\":3,\"offset\":7,\"timestamp\":1700000000123,\"deliveries\":1,\"value\":\"a\\r\\nb\"}\n\n\
         id: 0:3,3:8\ndata: {\"partition\":0,\"offset\":2,\"timestamp\":1700000000123,\"deliveries\":3,\"base64\":\"/w==\"}\n\n\
         : hb\n\n\
         event: gap\ndata: {\"gap\":{\"partition\":1,\"from\":5,\"to\":9}}\n\n"
    );
    let error: serde_json::Value = serde_json::from_str(error.strip_suffix("\n\n").expect("its end")).expect("JSON");
    assert_eq!((&error["code"], &error["detail"]), (&50302.into(), &"no\nbroker".into()));
}

#[test]
fn lines_have_heartbeats_and_gaps_and_no_errors() {
    let mut writer = Writer::new(Format::Ndjson);
    let mut out = Vec::new();
    writer.heartbeat(&mut out);
    writer.gap(&Gap { partition: 0, from: 5, to: 9 }, &mut out);
    assert_eq!(String::from_utf8_lossy(&out), "\n{\"gap\":{\"partition\":0,\"from\":5,\"to\":9}}\n");
    let problem = Problem::new(&codes::UNAVAILABLE, "no broker");
    for format in [Format::Ndjson, Format::Frames] {
        let aborted = Writer::new(format).error(&problem, &Stamp::default(), &mut out).expect_err("it is cut");
        assert_eq!(aborted.0.as_deref(), Some("50302 no broker"));
    }
}

#[test]
fn a_batch_is_written_whole_in_bounded_pieces() {
    for format in [Format::Frames, Format::Ndjson, Format::Sse] {
        let messages: Vec<_> = (0..40).map(|offset| message(offset, &[b'v'; 10_000])).collect();
        let delivery =
            Delivery { messages: messages.clone(), redelivered: vec![(0, 2), (39, 5)], ..Delivery::default() };
        let gap = Gap { partition: 3, from: -9, to: -1 };
        let delivery = Delivery { gaps: vec![gap], ..delivery };
        let pieces = whole(&mut BatchBody::new(format, delivery));
        assert!(pieces.iter().all(|piece| piece.len() < limits::WRITE_CHUNK_BYTES + 11_000));
        let mut writer = Writer::new(format);
        let mut expected = Vec::new();
        writer.gap(&gap, &mut expected);
        for (i, message) in messages.iter().enumerate() {
            writer.message(
                message,
                [(0, 2), (39, 5)].iter().find(|(at, _)| *at == i).map_or(1, |(_, n)| *n),
                &mut expected,
            );
        }
        assert_eq!(pieces.concat(), expected);
    }
    assert!(whole(&mut BatchBody::new(Format::Sse, Delivery::default())).is_empty());
}

#[test]
fn one_message_writes_into_a_full_buffer_all_the_same() {
    let delivery = Delivery { messages: vec![message(1, b"v")], ..Delivery::default() };
    let mut out = vec![0; limits::WRITE_CHUNK_BYTES];
    assert!(Unwritten::new(delivery).write(&mut Writer::new(Format::Frames), &mut out), "there is always progress");
}

#[test]
fn the_format_is_what_is_liked_best() {
    for (accept, expected) in [
        (None, Format::Frames),
        (Some(""), Format::Frames),
        (Some("*/*"), Format::Frames),
        (Some("text/html"), Format::Frames),
        (Some("application/octet-stream"), Format::Frames),
        (Some("application/x-ndjson"), Format::Ndjson),
        (Some("Application/X-NDJSON; charset=utf-8"), Format::Ndjson),
        (Some("text/event-stream"), Format::Sse),
        (Some("text/event-stream, */*"), Format::Sse),
        (Some("text/event-stream;q=0.5, */*"), Format::Frames),
        (Some("application/x-ndjson, text/event-stream"), Format::Ndjson),
        (Some("application/x-ndjson;q=0.4,text/event-stream;q=0.8"), Format::Sse),
        (Some("application/octet-stream, application/x-ndjson"), Format::Ndjson),
        (Some("application/x-ndjson;q=0, */*;q=0.1"), Format::Frames),
        (Some("application/x-ndjson;q=x"), Format::Frames),
    ] {
        assert_eq!(Format::accepted(accept.map(str::as_bytes)), expected, "{accept:?}");
    }
    let fields = |format: Format| {
        let reply = format.reply(b"id");
        String::from_utf8_lossy(reply.lines()).into_owned()
    };
    assert!(fields(Format::Sse).contains("Content-Type: text/event-stream\r\nCache-Control: no-cache\r\n"));
    assert!(!fields(Format::Ndjson).contains("Cache-Control"));
}

#[test]
fn a_single_message_has_its_fields() {
    let mut one = message(5, b"payload");
    one.key = Some(Bytes::from_static(b"k 1"));
    one.headers =
        Some(headers(&[(TAG_HEADER, Some(b"a;b")), (b"x", Some(b"")), (b"x", None), (b"no token", Some(b"1"))]));
    let delivery = Delivery { messages: vec![one.clone()], redelivered: vec![(0, 4)], ..Delivery::default() };
    let delivery = Delivery { gaps: vec![Gap { partition: 3, from: 1, to: 4 }], ..delivery };
    let reply = single(&delivery, &one, b"id");
    assert_eq!(
        String::from_utf8_lossy(reply.lines()),
        "X-Request-Id: id\r\nX-Partition: 3\r\nX-Offset: 5\r\nX-Timestamp: 1700000000123\r\nX-Key: k%201\r\nX-Tag: a;b\r\n\
         X-Header-x: \r\nX-Delivery-Count: 4\r\nX-Gap: 1-4\r\nContent-Type: application/octet-stream\r\n"
    );
}
