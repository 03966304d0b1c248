//! What is published by WebSocket is stored in the order it was sent, and each message is acknowledged or said to have failed.
//!
//! Method: the client of the tests sends frames as it likes (text, binary, fragments with pings between them, one after the other and
//! thousands at once) and reads the acknowledgements; what is stored is read back by HTTP or from Kafka. Failures are provoked (empty
//! messages, envelopes that are none, a topic that goes, a message over the limit) and must be told before the acknowledgement that
//! covers them; the messages around them are stored. A broker is frozen while a client keeps sending: the gateway must stop reading
//! and stay small, and lose nothing when the broker is back. A client that answers no ping is closed, one that is busy is pinged all
//! the same; a gateway that drains acknowledges what it took and says 1001.

use std::io::Write;
use std::time::{Duration, Instant};

use kateway_tests::kateway::Kateway;
use kateway_tests::topic::Topic;
use kateway_tests::ws::{BINARY, CONTINUATION, Event, FINAL, PING, TEXT, WebSocket, frame, handshake};
use kateway_tests::{figures, kcat, wait_until};
use serde_json::json;

use crate::faults::Frozen;
use crate::stage::{SOON, Stage, lines};
use crate::{Case, kafka};

pub const CASES: &[Case] = &[
    Case::new("ws_publish::in_order_and_acknowledged_on_memory", || in_order(&Stage::on_memory("ws"))),
    Case::new("ws_publish::in_order_and_acknowledged_on_kafka", || in_order(&Stage::on_kafka("ws", 4))).kafka(),
    Case::new("ws_publish::each_by_itself", || each_by_itself(&Stage::on_kafka("ws", 2))).kafka(),
    Case::new("ws_publish::frames_of_every_shape", || frames_of_every_shape(&Stage::on_memory("ws"))),
    Case::new("ws_publish::the_query_holds_for_all", || the_query_holds_for_all(&Stage::on_kafka("ws", 4))).kafka(),
    Case::new("ws_publish::envelopes_are_records", || envelopes_are_records(&Stage::on_memory("ws"))),
    Case::new("ws_publish::failures_come_first_and_the_rest_goes_on", failures_come_first),
    Case::new("ws_publish::topic_that_goes_and_comes_back", topic_that_goes_and_comes_back).kafka(),
    Case::new("ws_publish::too_big_is_1009", too_big_is_1009),
    Case::new("ws_publish::nobody_waits_for_reports", nobody_waits_for_reports),
    Case::new("ws_publish::goodbye_waits_for_acknowledgements", goodbye_waits).kafka(),
    Case::new("ws_publish::drain_is_1001", drain_is_1001).kafka(),
    Case::new("ws_publish::pings_whatever_the_traffic", pings_whatever_the_traffic),
    Case::new("ws_publish::silence_is_closed", silence_is_closed),
    Case::new("ws_publish::client_that_reads_no_answers_is_not_read", reads_no_answers),
    Case::new("ws_publish::frozen_broker_stops_the_reading", frozen_broker_stops_the_reading).kafka().alone(),
    Case::new("ws_publish::full_queue_is_tried_again", full_queue_is_tried_again).kafka().alone(),
    Case::new("ws_publish::no_key_goes_everywhere", no_key_goes_everywhere).kafka(),
];

pub fn publisher(gateway: &Kateway, topic: &Topic, query: &str) -> WebSocket {
    let target = format!("/v1/ws/msgs/{}/{}?{query}", topic.name, topic.ver);
    WebSocket::open(gateway.publish, &handshake("GET", &target).app(&topic.appid))
}

/// All messages of one partition, read by HTTP.
fn stored(stage: &Stage, partition: i32) -> Vec<String> {
    let request = stage.topic.peek(&format!("partition={partition}&n=1000"));
    let answer = stage.gateway.subscribe(&request).expect(200);
    lines(&answer).iter().map(kateway_tests::readers::Delivery::text).collect()
}

fn in_order(stage: &Stage) {
    let mut ws = publisher(&stage.gateway, &stage.topic, "partition=2");
    for n in 0..20 {
        ws.text(&n.to_string());
        assert_eq!(ws.json(SOON), json!({ "ack": n + 1 }), "a lone message is acknowledged by itself");
    }
    let many: Vec<u8> = (20..1_000).flat_map(|n: u32| frame(FINAL | TEXT, n.to_string().as_bytes())).collect();
    ws.send_raw(&many).expect("it reads");
    assert!(ws.acked(1_000, SOON).is_empty());
    let expected: Vec<String> = (0..1_000).map(|n| n.to_string()).collect();
    assert_eq!(stored(stage, 2), expected);
    // More than are under way at a time.
    let many: Vec<u8> = (0..50_000_u32).flat_map(|n| frame(FINAL | BINARY, &n.to_be_bytes())).collect();
    let mut sender = ws.sender();
    let sending = std::thread::spawn(move || sender.write_all(&many).expect("it reads"));
    assert!(ws.acked(51_000, 3 * SOON).is_empty());
    sending.join().expect("the sender does not panic");
    let totals = stage.gateway.status()["totals"].clone();
    assert_eq!(totals["kateway_pub_messages_total"], 51_000);
    assert_eq!(totals["kateway_ws_publish_bytes"], 0, "nothing is under way");
}

fn each_by_itself(stage: &Stage) {
    let mut ws = publisher(&stage.gateway, &stage.topic, "acks=each&partition=1");
    for n in 0..300 {
        ws.text(&format!("m{n}"));
    }
    for n in 0..300 {
        assert_eq!(ws.json(SOON), json!({ "n": n + 1, "partition": 1, "offset": n }));
    }
    let found = kcat::read_one(&kafka().bootstrap(), &stage.topic.in_kafka(), 1, 299);
    assert_eq!(found.payload.as_deref(), Some(&b"m299"[..]));
}

fn frames_of_every_shape(stage: &Stage) {
    let mut ws = publisher(&stage.gateway, &stage.topic, "partition=0");
    let large = "large".repeat(20_000);
    let frames = [
        frame(FINAL | TEXT, "t\u{e4}xt".as_bytes()),
        frame(FINAL | BINARY, b"binary"),
        frame(TEXT, b"in "),
        frame(FINAL | PING, b"between"),
        // Half of a character.
        frame(CONTINUATION, &"th\u{e9}".as_bytes()[..3]),
        frame(CONTINUATION, b""),
        frame(FINAL | CONTINUATION, &"th\u{e9}".as_bytes()[3..]),
        frame(FINAL | BINARY, large.as_bytes()),
    ]
    .concat();
    // Byte by byte as far as it is interesting, then at once.
    for byte in &frames[..80] {
        ws.send_raw(&[*byte]).expect("it reads");
    }
    ws.send_raw(&frames[80..]).expect("it reads");
    let mut events = Vec::new();
    while events.last() != Some(&Event::Text("{\"ack\":4}".into())) {
        events.push(ws.next(SOON));
        assert!(!matches!(events.last(), Some(Event::Nothing | Event::End | Event::Close(..))), "{events:?}");
    }
    assert!(events.contains(&Event::Pong(b"between".to_vec())));
    assert_eq!(stored(stage, 0), ["t\u{e4}xt", "binary", "in th\u{e9}", &large]);
}

fn the_query_holds_for_all(stage: &Stage) {
    let target = format!("/v1/ws/msgs/{}/v1?key=k%00y&ack=local&acks=each", stage.topic.name);
    let request = handshake("POST", &target).app(&stage.topic.appid).header("X-Tag", "a;b");
    let request = request.header("X-Header-Trace", "aGk=").header("traceparent", "00-1-1-00");
    let mut ws = WebSocket::open(stage.gateway.publish, &request);
    ws.text("one");
    ws.text("two");
    let (one, two) = (ws.json(SOON), ws.json(SOON));
    assert_eq!((&one["partition"], two["n"].as_u64()), (&two["partition"], Some(2)), "one key, one partition");
    let partition = i32::try_from(one["partition"].as_i64().expect("a number")).expect("a partition");
    let record = kcat::read_one(&kafka().bootstrap(), &stage.topic.in_kafka(), partition, 1);
    assert_eq!((record.key.as_deref(), record.payload.as_deref()), (Some(&b"k\0y"[..]), Some(&b"two"[..])));
    let headers = kcat::read_headers(&kafka().bootstrap(), &stage.topic.in_kafka(), partition, 1);
    let headers = String::from_utf8_lossy(&headers);
    assert_eq!(headers.trim(), "kateway-tag=a;b,trace=hi,traceparent=00-1-1-00");
}

fn envelopes_are_records(stage: &Stage) {
    let target = format!("/v1/ws/msgs/{}/v1?partition=1&key=all", stage.topic.name);
    let request = handshake("GET", &target).app(&stage.topic.appid).header("X-Tag", "all");
    let mut ws = WebSocket::open(stage.gateway.publish, &request.header("Sec-WebSocket-Protocol", "kateway.v1.json"));
    ws.text(r#"{"value":{"a": 1.0}}"#);
    ws.text(r#"{"key":"own","tag":"mine","headers":[["h","aGk="],["n",null]],"value":"t\u00e4xt"}"#);
    ws.send(BINARY, br#"{"key64":"/w==","partition":3,"base64":"AAE="}"#);
    for bad in ["{", "[]", "{}", r#"{"value":1,"more":2}"#, r#"{"partition":9,"value":1}"#, r#"{"value":""}"#] {
        ws.text(bad);
    }
    let failures = ws.acked(9, SOON);
    let codes: Vec<_> = failures.iter().map(|f| (f["n"].as_u64(), f["code"].as_u64())).collect();
    let expected = [40014, 40014, 40014, 40014, 40009, 40006];
    assert_eq!(codes, (4..).zip(expected).map(|(n, code)| (Some(n), Some(code))).collect::<Vec<_>>());
    let read = |partition: i32| {
        let request = stage.topic.peek(&format!("partition={partition}&n=10"));
        kateway_tests::frames::decode_lines(&stage.gateway.subscribe(&request).expect(200).body)
    };
    let [first, second] = &read(1)[..] else { panic!("two messages") };
    assert_eq!((first.key.as_deref(), first.tag.as_deref()), (Some(&b"all"[..]), Some("all")));
    assert_eq!((&first.payload[..], &second.payload[..]), (&br#"{"a": 1.0}"#[..], "t\u{e4}xt".as_bytes()));
    assert_eq!((second.key.as_deref(), second.tag.as_deref()), (Some(&b"own"[..]), Some("mine")));
    assert_eq!(second.headers, [("h".to_owned(), Some(b"hi".to_vec())), ("n".to_owned(), None)]);
    let [third] = &read(3)[..] else { panic!("one message") };
    assert_eq!((third.key.as_deref(), &third.payload[..]), (Some(&b"\xff"[..]), &b"\0\x01"[..]));
}

fn failures_come_first() {
    let stage = Stage::on_memory("ws");
    let mut ws = publisher(&stage.gateway, &stage.topic, "partition=0");
    ws.send_raw(&[frame(FINAL | TEXT, b"one"), frame(FINAL | TEXT, b""), frame(FINAL | TEXT, b"three")].concat())
        .expect("it reads");
    let failures = ws.acked(3, SOON);
    let [failure] = &failures[..] else { panic!("{failures:?}") };
    assert_eq!((&failure["n"], &failure["code"], &failure["retryable"]), (&json!(2), &json!(40006), &json!(false)));
    assert!(failure["errmsg"].is_string());
    assert_eq!(stored(&stage, 0), ["one", "three"]);
    assert_eq!(stage.gateway.status()["totals"]["kateway_ws_messages_failed_total"], 1);
}

fn topic_that_goes_and_comes_back() {
    let stage = Stage::on_kafka("ws", 1);
    let mut ws = publisher(&stage.gateway, &stage.topic, "");
    ws.text("before");
    ws.acked(1, SOON);
    kafka().admin().delete_topic(&stage.topic.in_kafka());
    let (mut n, start) = (1, Instant::now());
    let failure = loop {
        n += 1;
        ws.text("meanwhile");
        if let Some(failure) = ws.acked(n, SOON).pop() {
            break failure;
        }
        assert!(start.elapsed() < 2 * SOON, "messages to a topic that is gone fail");
        std::thread::sleep(Duration::from_millis(50));
    };
    assert!([40401, 50301].contains(&failure["code"].as_u64().expect("a number")), "{failure}");
    kafka().admin().create_topic(&stage.topic.in_kafka(), 1);
    wait_until(2 * SOON, "the same connection publishes to the new topic", || {
        n += 1;
        ws.text("after");
        let is_stored = ws.acked(n, SOON).is_empty();
        std::thread::sleep(Duration::from_millis(50));
        is_stored
    });
}

fn too_big_is_1009() {
    let stage = Stage::on_memory_with("ws", |builder| builder.set("pub.message_bytes_max", 1_000));
    for big in [frame(FINAL | BINARY, &[b'x'; 1_001]), {
        let half = [frame(BINARY, &[b'x'; 600]), frame(FINAL | CONTINUATION, &[b'x'; 600])];
        half.concat()
    }] {
        let mut ws = publisher(&stage.gateway, &stage.topic, "partition=0");
        ws.send_raw(&[frame(FINAL | BINARY, &[b'x'; 1_000]), big, frame(FINAL | TEXT, b"behind")].concat())
            .expect("it reads");
        let (events, code) = ws.rest(SOON);
        assert_eq!((events, code), (vec![Event::Text("{\"ack\":1}".into())], 1009));
    }
    assert_eq!(stored(&stage, 0).len(), 2, "what came before is stored, what came behind is not");
    // A length alone is enough; nothing waits for the rest.
    let mut ws = publisher(&stage.gateway, &stage.topic, "");
    ws.send_raw(&frame(FINAL | BINARY, &vec![b'x'; 100_000])[..14]).expect("it reads");
    assert_eq!(ws.rest(SOON), (Vec::new(), 1009));
}

fn nobody_waits_for_reports() {
    let stage = Stage::on_memory("ws");
    for query in ["async=1", "ack=none"] {
        let mut ws = publisher(&stage.gateway, &stage.topic, &format!("{query}&partition=3"));
        ws.text("x");
        assert_eq!(ws.json(SOON), json!({ "ack": 1 }));
        let mut ws = publisher(&stage.gateway, &stage.topic, &format!("{query}&acks=each&partition=3"));
        ws.text("x");
        assert_eq!(ws.json(SOON)["offset"], -1, "nobody knows it yet");
    }
    assert_eq!(stored(&stage, 3).len(), 4);
}

fn goodbye_waits() {
    let stage = Stage::on_kafka("ws", 4);
    let mut ws = publisher(&stage.gateway, &stage.topic, "");
    let mut bytes: Vec<u8> = (0..5_000).flat_map(|_| frame(FINAL | BINARY, &[b'x'; 100])).collect();
    bytes.extend(frame(FINAL | kateway_tests::ws::CLOSE, &1000_u16.to_be_bytes()));
    ws.send_raw(&bytes).expect("it reads");
    let (events, code) = ws.rest(SOON);
    assert_eq!((events.last(), code), (Some(&Event::Text("{\"ack\":5000}".into())), 1000));
    assert_eq!(ws.next(SOON), Event::End);
}

fn drain_is_1001() {
    let Stage { mut gateway, topic, .. } = Stage::on_kafka("ws", 4);
    let mut ws = publisher(&gateway, &topic, "");
    let idle = publisher(&gateway, &topic, "");
    let mut sender = ws.sender();
    let sending = std::thread::spawn(move || {
        let mut sent = 0_u64;
        // Until the gateway is gone.
        while sender.write_all(&frame(FINAL | BINARY, &[b'x'; 100])).is_ok() {
            sent += 1;
        }
        sent
    });
    // Some are under way.
    assert!(matches!(ws.next(SOON), Event::Text(_)));
    gateway.signal(libc::SIGTERM);
    let (events, code) = ws.rest(SOON);
    assert_eq!(code, 1001);
    let acked = events.iter().rev().find_map(|event| match event {
        Event::Text(text) => serde_json::from_str::<serde_json::Value>(text).ok()?["ack"].as_u64(),
        _ => None,
    });
    let acked = acked.expect("what was taken is acknowledged");
    let mut idle = idle;
    assert_eq!(idle.rest(SOON), (Vec::new(), 1001));
    drop(ws);
    assert!(gateway.wait_end(SOON).success());
    let sent = sending.join().expect("the sender does not panic");
    let found = kcat::read_all(&kafka().bootstrap(), &topic.in_kafka()).len() as u64;
    assert_eq!(found, acked, "what was taken is acknowledged, what was not is not stored; {sent} were sent");
}

fn pings_whatever_the_traffic() {
    let gateway = Kateway::memory().set("http.ws_ping_ms", 300).start();
    let mut ws = publisher(&gateway, &Topic::fresh("ws"), "");
    let (start, mut n) = (Instant::now(), 0);
    while start.elapsed() < Duration::from_secs(2) {
        n += 1;
        ws.text("busy");
        ws.acked(n, SOON);
    }
    assert!((4..=7).contains(&ws.pings), "{} pings in 2 s", ws.pings);
    assert!(n > 100, "{n} messages");
}

fn silence_is_closed() {
    let gateway = Kateway::memory().set("http.ws_ping_ms", 300).start();
    let mut ws = publisher(&gateway, &Topic::fresh("ws"), "");
    ws.answers_pings = false;
    let start = Instant::now();
    let mut n = 0;
    loop {
        // Its messages are no answer to a ping.
        n += 1;
        if ws.send_raw(&frame(FINAL | TEXT, b"x")).is_err() {
            break;
        }
        match ws.next(Duration::from_millis(50)) {
            Event::Close(code, _) => {
                assert_eq!(code, 1008);
                break;
            }
            Event::End => break,
            _ => {}
        }
        assert!(start.elapsed() < SOON, "it is closed");
    }
    let after = start.elapsed();
    assert!((Duration::from_millis(1_100)..Duration::from_millis(2_500)).contains(&after), "{after:?}");
    assert_eq!(ws.pings, 4 - 1, "three in a row are left unanswered; {n} messages");
    assert_eq!(gateway.status()["totals"]["kateway_ws_silent_total"], 1);
}

fn reads_no_answers() {
    let gateway = Kateway::memory().set("http.write_timeout_ms", 1_500).start();
    let topic = Topic::fresh("ws");
    let ws = publisher(&gateway, &topic, "acks=each");
    let before = gateway.resident_kib();
    let mut sender = ws.sender();
    sender.set_write_timeout(Some(SOON)).expect("a positive timeout");
    let message = frame(FINAL | BINARY, b"x").repeat(1_000);
    let mut sent = 0;
    // The kernel's buffers take some megabytes of answers; then it is cut.
    while sender.write_all(&message).is_ok() {
        sent += 1_000;
        assert!(sent < 5_000_000, "it stops reading");
    }
    let grown = gateway.resident_kib().saturating_sub(before);
    // What is stored is in memory too: some hundred bytes for each record.
    assert!(grown < 200 * 1024, "{grown} KiB more for {sent} messages");
    wait_until(SOON, "it is gone", || gateway.status()["totals"]["kateway_ws_connections"] == 0);
}

/// A publisher that the broker to be frozen will hold up: its first message is acknowledged.
struct Held {
    topic: Topic,
    gateway: Kateway,
    ws: WebSocket,
    leader: u32,
}

impl Held {
    fn behind_a_queue_of(messages: usize) -> Self {
        let topic = Topic::fresh("ws");
        kafka().admin().create_topic(&topic.in_kafka(), 1);
        let gateway = Kateway::kafka(&kafka().bootstrap())
            .set("kafka.queue_messages_max", messages)
            // Long enough that what waits is stored in the end.
            .set("pub.deadline_ms", 60_000)
            .start();
        let mut ws = publisher(&gateway, &topic, "ack=local");
        ws.text("first");
        ws.acked(1, SOON);
        let leader = u32::try_from(kafka().admin().leader(&topic.in_kafka(), 0)).expect("it has one");
        Self { topic, gateway, ws, leader }
    }
}

fn frozen_broker_stops_the_reading() {
    let Held { topic, gateway, mut ws, leader } = Held::behind_a_queue_of(5_000);
    let before = gateway.resident_kib();
    let frozen = Frozen::new(leader);
    let mut sender = ws.sender();
    let (total, body) = (200_000_u64, [b'x'; 500]);
    let sending = std::thread::spawn(move || {
        let many = frame(FINAL | BINARY, &body).repeat(100);
        for _ in 0..total / 100 {
            sender.write_all(&many).expect("it reads in the end");
        }
    });
    wait_until(SOON, "the reading has stopped", || gateway.status()["totals"]["kateway_ws_pauses_total"] != 0);
    std::thread::sleep(Duration::from_secs(3));
    let grown = gateway.resident_kib().saturating_sub(before);
    let is_blocked = !sending.is_finished();
    drop(frozen);
    kafka().wait_recovered();
    assert!(is_blocked, "the client is stopped");
    assert!(grown < 40 * 1024, "{grown} KiB more");
    assert!(ws.acked(1 + total, 5 * SOON).is_empty(), "all of it is stored");
    sending.join().expect("the sender does not panic");
    assert_eq!(kcat::read_all(&kafka().bootstrap(), &topic.in_kafka()).len() as u64, 1 + total);
}

/// The queue is full of what others published, so no report of its own wakes a connection.
fn full_queue_is_tried_again() {
    const ROOM: usize = 20;
    /// `http.ws_ping_ms`.
    const PING_EVERY: Duration = Duration::from_secs(20);
    let Held { topic, gateway, mut ws, leader } = Held::behind_a_queue_of(ROOM);
    let frozen = Frozen::new(leader);
    let mut taken = 0;
    wait_until(SOON, "the queue is full", || {
        let status = gateway.publish(&topic.publish("ack=local&async=1", "before")).status;
        taken += usize::from(status == 202);
        status == 503
    });
    let refused = || gateway.scrape().sum("kateway_producer_queue_full_total", &[]);
    let before = refused();
    ws.text("second");
    // Refused more than once, and tried again each time.
    wait_until(SOON, "it is tried again and again", || refused() >= before + 3.0);
    drop(frozen);
    let start = Instant::now();
    assert!(ws.acked(2, 2 * SOON).is_empty());
    let took = start.elapsed();
    kafka().wait_recovered();
    figures::note("WebSocket publish, queue full of others': acknowledged after", format!("{took:?}"));
    assert!(took < PING_EVERY / 2, "not only when the next ping wakes it: {took:?}");
    let count = 2 + i64::try_from(taken).expect("few");
    wait_until(SOON, format!("{count} are stored"), || kafka().admin().message_count(&topic.in_kafka()) == count);
}

/// With headers as without: who names no key spreads over the partitions.
fn no_key_goes_everywhere() {
    let topic = Topic::fresh("ws");
    kafka().admin().create_topic(&topic.in_kafka(), 3);
    let gateway = Kateway::kafka(&kafka().bootstrap()).start();
    let of_partition = |partition: usize| kafka().admin().end_offsets(&topic.in_kafka())[partition];
    let target = format!("/v1/ws/msgs/{}/{}?ack=local", topic.name, topic.ver);
    let plain = handshake("GET", &target).app(&topic.appid);
    let tagged = handshake("GET", &target).app(&topic.appid).header("X-Tag", "blue");
    for (what, request) in [("plain", plain), ("tagged", tagged)] {
        let before = [0, 1, 2].map(of_partition);
        let mut ws = WebSocket::open(gateway.publish, &request);
        let mut sent = 0;
        wait_until(SOON, format!("every partition has some, {what}"), || {
            sent += 1;
            ws.text("somewhere");
            ws.acked(sent, SOON);
            sent % 20 == 0 && (0..3).all(|partition| of_partition(partition) > before[partition])
        });
    }
}
