//! A group is read by WebSocket as by a stream: every message once, in order, from wherever it is owned; what the client did not take goes
//! back; and the client acknowledges, buries and asks for more on the same connection.
//!
//! Method: messages are read as frames and as JSON objects by the client of the tests. What auto mode has delivered must be committed, and
//! what a client that stopped reading was not given must come to another. With `ack=1` acknowledgements and burials go over the
//! connection, and their effect is looked up where it shows: the committed offset, the queues. Credit is granted bit by bit, and never
//! may there be more messages than that. Frames that are no commands are told so; what is no JSON ends the connection. Four readers on
//! both cores share a group, one through another gateway; a gateway that drains says 1001 with everything committed.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use kateway_tests::frames;
use kateway_tests::kateway::Kateway;
use kateway_tests::problem;
use kateway_tests::topic::Topic;
use kateway_tests::wait_until;
use kateway_tests::ws::{BINARY, Event, WebSocket, handshake};
use serde_json::{Value, json};

use crate::stage::{SOON, Stage, pass};
use crate::through_the_other::owned;
use crate::{Case, kafka};

pub const CASES: &[Case] = &[
    Case::new("ws_subscribe::frames_and_objects_on_memory", || frames_and_objects(&Stage::on_memory("ws"))),
    Case::new("ws_subscribe::frames_and_objects_on_kafka", || frames_and_objects(&Stage::on_kafka("ws", 4))).kafka(),
    Case::new("ws_subscribe::acknowledged_on_the_connection_on_memory", || acknowledged(&Stage::on_memory("ws"))),
    Case::new("ws_subscribe::acknowledged_on_the_connection_on_kafka", || acknowledged(&Stage::on_kafka("ws", 4)))
        .kafka(),
    Case::new("ws_subscribe::buried_on_the_connection", || buried(&Stage::on_kafka("ws", 4))).kafka(),
    Case::new("ws_subscribe::never_more_than_credit", || never_more_than_credit(&Stage::on_memory("ws"))),
    Case::new("ws_subscribe::wrong_frames_are_told", || wrong_frames_are_told(&Stage::on_memory("ws"))),
    Case::new("ws_subscribe::filtered_by_tag", || filtered_by_tag(&Stage::on_memory("ws"))),
    Case::new("ws_subscribe::slow_client_is_waited_for_and_dead_one_cut", slow_and_dead),
    Case::new("ws_subscribe::readers_share_a_group", readers_share_a_group).kafka(),
    Case::new("ws_subscribe::drain_on_memory", || drain(Stage::on_memory("ws"))),
    Case::new("ws_subscribe::drain_on_kafka", || drain(Stage::on_kafka("ws", 2))).kafka(),
    Case::new("ws_subscribe::ends_after_its_longest_time", ends_after_its_longest_time),
    Case::new("ws_subscribe::topic_that_goes", topic_that_goes).kafka(),
];

pub fn request(topic: &Topic, query: &str, protocol: &str) -> kateway_tests::client::Request {
    let target = format!("/v1/ws/msgs/{}?group=g&{query}", topic.path());
    handshake("GET", &target).app(&topic.appid).header("Sec-WebSocket-Protocol", protocol)
}

fn reader(stage: &Stage, query: &str) -> WebSocket {
    WebSocket::open(stage.gateway.subscribe, &request(&stage.topic, query, "kateway.v1.json"))
}

/// The next message, an object.
#[track_caller]
fn message(ws: &mut WebSocket) -> (i32, i64, String) {
    let object = ws.json(SOON);
    let line = frames::decode_object(&object);
    (line.partition, line.offset, String::from_utf8(line.payload).expect("text"))
}

#[track_caller]
fn nothing(ws: &mut WebSocket) {
    assert_eq!(ws.next(Duration::from_millis(400)), Event::Nothing);
}

fn frames_and_objects(stage: &Stage) {
    stage.fill(1, 0..100);
    let mut ws = WebSocket::open(stage.gateway.subscribe, &request(&stage.topic, "", "kateway.v1.bin"));
    for n in 0..100 {
        let Event::Binary(bytes) = ws.next(SOON) else { panic!("message {n}") };
        let [frame] = &frames::decode(&bytes)[..] else { panic!("one frame a message") };
        let expected = (1, n, n.to_string().into_bytes());
        assert_eq!((frame.partition, frame.offset, frame.payload.clone()), expected);
    }
    stage.wait_committed(1, 100);
    // What comes later is pushed.
    stage.fill(1, 100..101);
    assert!(matches!(ws.next(SOON), Event::Binary(_)));
    ws.close(1000);
    assert_eq!(ws.next(SOON), Event::Close(1000, String::new()));
    let mut ws = reader(stage, "");
    let tagged = stage.topic.publish("partition=2&key=k", "\u{e4}").header("X-Tag", "t");
    stage.gateway.publish(&tagged).expect(201);
    let object = ws.json(SOON);
    let shown = ["partition", "offset", "key", "tag", "deliveries", "value"].map(|name| object[name].clone());
    assert_eq!(shown, [json!(2), json!(0), json!("k"), json!("t"), json!(1), json!("\u{e4}")]);
}

fn acknowledged(stage: &Stage) {
    stage.fill(0, 0..10);
    let mut ws = reader(stage, "ack=1&lease=5m");
    let read: Vec<_> = (0..10).map(|_| message(&mut ws)).collect();
    assert_eq!(read.last(), Some(&(0, 9, "9".to_owned())));
    assert_eq!(stage.committed("g", 0).unwrap_or(0), 0, "nothing is acknowledged by itself");
    ws.text(r#"{"ack":[{"partition":0,"offset":3}]}"#);
    stage.wait_committed(0, 4);
    // As a binary frame, and over HTTP, it is the same.
    ws.send(BINARY, br#"{"ack":[{"partition":0,"offset":5}]}"#);
    stage.wait_committed(0, 6);
    stage.ack(&[(0, 7)]).expect(200);
    stage.wait_committed(0, 8);
    // What no lease holds is told, and the rest of the frame counts.
    ws.text(r#"{"ack":[{"partition":0,"offset":99},{"partition":0,"offset":8}]}"#);
    let told = ws.json(SOON);
    assert_eq!((&told["code"], &told["of"], &told["retryable"]), (&json!(40902), &json!("ack"), &json!(false)));
    stage.wait_committed(0, 9);
    // A lease that is renewed does not end.
    drop(ws);
    let mut ws = reader(stage, "ack=1&lease=2s");
    stage.fill(1, 0..1);
    let (partition, offset, _) = message(&mut ws);
    let renewal = json!({ "ack": [{ "partition": partition, "offset": offset, "extend": "1m" }] });
    ws.text(&renewal.to_string());
    assert_eq!(ws.next(Duration::from_secs(3)), Event::Nothing, "it does not come again");
}

fn buried(stage: &Stage) {
    stage.fill(0, 0..4);
    let mut ws = reader(stage, "ack=1");
    (0..4).for_each(|_| drop(message(&mut ws)));
    let bury = |offset: i64, more: &str| format!(r#"{{"bury":{{"partition":0,"offset":{offset}{more}}}}}"#);
    ws.text(&bury(0, r#","to":"retry""#));
    assert_eq!(ws.json(SOON)["code"], 40013, "register shadow first");
    stage.call(&stage.topic.shadow("g")).expect(201);
    for (offset, more) in [(0, r#","to":"retry""#), (1, r#","to":"dead","value":"instead""#)] {
        ws.text(&bury(offset, more));
        assert_eq!(ws.json(SOON), json!({ "buried": { "partition": 0, "offset": offset } }));
    }
    stage.wait_committed(0, 2);
    for (more, code) in [
        (r#","to":"elsewhere""#, 40014),
        (r#","to":"dead","delay":"5s""#, 40002),
        (r#","to":"retry","delay":"1e9""#, 40002),
        (r#","to":"retry","value":"a","base64":"YQ==""#, 40014),
        (r#","to":"retry","base64":"*""#, 40014),
        ("", 40014),
        (r#","to":"retry","more":1"#, 40014),
    ] {
        ws.text(&bury(2, more));
        let told = ws.json(SOON);
        assert_eq!((&told["code"], &told["of"]), (&json!(code), &json!("bury")), "{more}: {told}");
    }
    ws.text(&bury(99, r#","to":"retry""#));
    assert_eq!(ws.json(SOON)["code"], 40902);
    // Both queues can be read by WebSocket, and what was read from one be buried further.
    let mut dead = reader(stage, "q=dead");
    assert_eq!(message(&mut dead).2, "instead");
    let mut retry = reader(stage, "q=retry&ack=1");
    let (partition, offset, text) = message(&mut retry);
    assert_eq!(text, "0");
    let further = json!({ "bury": { "partition": partition, "offset": offset, "to": "dead" } });
    retry.text(&further.to_string());
    assert_eq!(retry.json(SOON), json!({ "buried": { "partition": partition, "offset": offset } }));
    assert_eq!(message(&mut dead).2, "0");
}

fn never_more_than_credit(stage: &Stage) {
    stage.fill(0, 0..1_000);
    // From the first message on.
    let mut ws = reader(stage, "credit=0");
    nothing(&mut ws);
    let mut read = 0;
    for grant in [1_i64, 5, 300, 0, 64] {
        ws.text(&json!({ "credit": grant }).to_string());
        for _ in 0..grant {
            assert_eq!(message(&mut ws).1, read);
            read += 1;
        }
        nothing(&mut ws);
    }
    stage.wait_committed(0, read);
    // Grants add up.
    ws.text(r#"{"credit":10}"#);
    ws.text(r#"{"credit":10}"#);
    (0..20).for_each(|_| drop(message(&mut ws)));
    nothing(&mut ws);
    ws.close(1000);
    ws.rest(SOON);
    // Without a word about it there is no bound; once there was one, there is.
    let mut ws = reader(stage, "");
    let (mut last, mut count) = (read + 19, 0);
    while last < 999 {
        last = message(&mut ws).1;
        count += 1;
    }
    assert_eq!(count, 1_000 - read - 20, "what was granted and sent does not come again");
    ws.text(r#"{"credit":2}"#);
    pass(Duration::from_millis(200));
    stage.fill(0, 1_000..1_010);
    assert_eq!([message(&mut ws).1, message(&mut ws).1], [1_000, 1_001]);
    nothing(&mut ws);
    // Another reader gets the others at once.
    let mut other = reader(stage, "");
    assert_eq!(message(&mut other).1, 1_002);
}

fn wrong_frames_are_told(stage: &Stage) {
    stage.fill(0, 0..1);
    let mut ws = reader(stage, "ack=1");
    message(&mut ws);
    for (frame, of) in [
        (r#"{"acks":[]}"#, "frame"),
        ("[]", "frame"),
        ("1", "frame"),
        ("{}", "frame"),
        (r#"{"ack":[{"partition":0,"offset":0}],"credit":1}"#, "frame"),
        (r#"{"credit":-1}"#, "credit"),
        (r#"{"credit":1.5}"#, "credit"),
        (r#"{"credit":"1"}"#, "credit"),
        (r#"{"ack":[]}"#, "ack"),
        (r#"{"ack":{"partition":0,"offset":0}}"#, "ack"),
        (r#"{"ack":[{"partition":0}]}"#, "ack"),
        (r#"{"ack":[{"partition":-1,"offset":0}]}"#, "ack"),
        (r#"{"ack":[{"partition":0,"offset":0,"more":1}]}"#, "ack"),
        (r#"{"ack":[{"partition":0,"offset":0,"extend":"1ms"}]}"#, "ack"),
        (r#"{"bury":{}}"#, "bury"),
    ] {
        ws.text(frame);
        let told = ws.json(SOON);
        assert_eq!(told["of"], of, "{frame}: {told}");
        assert!([40014, 40002].contains(&told["code"].as_u64().expect("a number")), "{frame}: {told}");
    }
    // The connection is as good as before.
    ws.text(r#"{"ack":[{"partition":0,"offset":0}]}"#);
    stage.wait_committed(0, 1);
    for no_json in ["", "ack", "{\"ack\":"] {
        let mut ws = reader(stage, "ack=1");
        ws.text(no_json);
        assert_eq!(ws.rest(SOON), (Vec::new(), 1008), "{no_json:?}");
    }
}

fn filtered_by_tag(stage: &Stage) {
    for (text, tag) in [("1", "a"), ("2", "b"), ("3", "a;c"), ("4", "c")] {
        stage.gateway.publish(&stage.topic.publish("partition=0", text).header("X-Tag", tag)).expect(201);
    }
    let request = request(&stage.topic, "", "kateway.v1.json").header("X-Tag", "a");
    let mut ws = WebSocket::open(stage.gateway.subscribe, &request);
    assert_eq!([message(&mut ws).2, message(&mut ws).2], ["1", "3"]);
    nothing(&mut ws);
    stage.wait_committed(0, 4);
}

fn slow_and_dead() {
    let stage = Stage::on_memory_with("ws", |builder| builder.set("http.write_timeout_ms", 3_000));
    let body = vec![b'x'; 100_000];
    let mut connection = stage.gateway.publisher();
    for _ in 0..200 {
        connection
            .call(&stage.topic.publish("partition=0", body.clone()))
            .unwrap_or_else(|e| panic!("{e}"))
            .expect(201);
    }
    let before = stage.gateway.resident_kib();
    let mut ws = WebSocket::open(stage.gateway.subscribe, &request(&stage.topic, "ack=1&lease=1h", "kateway.v1.bin"));
    // Slow: a message now and then, for longer than the deadline for one write.
    let (mut read, start) = (0, Instant::now());
    while start.elapsed() < Duration::from_secs(5) {
        assert!(matches!(ws.next(SOON), Event::Binary(_)), "after {read}");
        read += 1;
        pass(Duration::from_millis(200));
    }
    // Dead: nothing at all. What it was not given is another's, what it was given too.
    let mut other = reader(&stage, "ack=1");
    let mut offsets = BTreeSet::new();
    while offsets.len() < 200 {
        offsets.insert(message(&mut other).1);
    }
    let grown = stage.gateway.resident_kib().saturating_sub(before);
    assert!(grown < 60 * 1024, "{grown} KiB more; {read} were read");
    assert_eq!(stage.gateway.status()["totals"]["kateway_connections_expired_total"], 1);
}

fn readers_share_a_group() {
    let stage = Stage::on_kafka_with("ws", 4, |builder| builder.set("gateway.peer_secret", "0123456789abcdef"));
    let second = Kateway::kafka(&kafka().bootstrap()).shards(2).set("gateway.peer_secret", "0123456789abcdef").start();
    let open =
        |gateway: &Kateway| WebSocket::open(gateway.subscribe, &request(&stage.topic, "batch=10", "kateway.v1.json"));
    let mut readers: Vec<_> = (0..3).map(|_| open(&stage.gateway)).collect();
    readers.push(open(&second));
    // A partition that changes hands may give again what was on its way; that is other trials' business.
    wait_until(4 * SOON, "each gateway owns some of the partitions", || {
        let owned = [&stage.gateway, &second].map(|gateway| owned(gateway, &stage.topic.in_kafka()));
        owned.iter().sum::<usize>() == 4 && !owned.contains(&0)
    });
    for partition in 0..4 {
        stage.fill(partition, 0..250);
    }
    let deadline = Instant::now() + 3 * SOON;
    let mut found: Vec<BTreeSet<(i32, i64)>> = vec![BTreeSet::new(); readers.len()];
    while found.iter().map(BTreeSet::len).sum::<usize>() < 1_000 {
        assert!(Instant::now() < deadline, "{:?}", found.iter().map(BTreeSet::len).collect::<Vec<_>>());
        for (ws, found) in readers.iter_mut().zip(&mut found) {
            while let Event::Text(text) = ws.next(Duration::from_millis(5)) {
                let object: Value = serde_json::from_str(&text).expect("JSON");
                let line = frames::decode_object(&object);
                assert!(found.insert((line.partition, line.offset)), "twice: {text}");
            }
        }
    }
    let all: BTreeSet<_> = found.iter().flatten().collect();
    assert_eq!(all.len(), 1_000, "each message went to one reader");
    for partition in 0..4 {
        stage.wait_committed(partition, 250);
    }
}

fn drain(stage: Stage) {
    stage.fill(0, 0..50);
    let mut ws = reader(&stage, "");
    let mut idle = reader(&stage, "credit=0");
    (0..50).for_each(|_| drop(message(&mut ws)));
    let Stage { mut gateway, topic, on_kafka } = stage;
    gateway.signal(libc::SIGTERM);
    assert_eq!(ws.rest(SOON), (Vec::new(), 1001));
    assert_eq!(idle.rest(SOON), (Vec::new(), 1001));
    assert!(gateway.wait_end(SOON).success());
    if on_kafka {
        let committed = kafka().admin().committed(&topic.group_in_kafka("g"), &topic.in_kafka());
        assert_eq!(committed[0], Some(50), "what was taken is committed");
    }
}

fn ends_after_its_longest_time() {
    let stage = Stage::on_memory_with("ws", |builder| builder.set("sub.max_stream_s", 1));
    stage.fill(0, 0..1);
    let start = Instant::now();
    let mut ws = reader(&stage, "");
    message(&mut ws);
    assert_eq!(ws.rest(SOON), (Vec::new(), 1001));
    let lasted = start.elapsed();
    assert!((Duration::from_millis(900)..Duration::from_secs(5)).contains(&lasted), "{lasted:?}");
}

fn topic_that_goes() {
    let stage = Stage::on_kafka("ws", 1);
    stage.fill(0, 0..1);
    let mut ws = reader(&stage, "");
    message(&mut ws);
    kafka().admin().delete_topic(&stage.topic.in_kafka());
    let (events, code) = ws.rest(3 * SOON);
    let [Event::Text(text)] = &events[..] else { panic!("{events:?}") };
    let told: Value = serde_json::from_str(text).expect("JSON");
    assert_eq!((&told["of"], code), (&json!("read"), 1013), "{told}: it may come back");
    let refusal = WebSocket::try_open(stage.gateway.subscribe, &request(&stage.topic, "", "kateway.v1.json"));
    let refusal = refusal.err().expect("it is gone");
    assert!([404, 503].contains(&refusal.status), "{}", refusal.text());
    problem::check(&refusal, refusal.status);
}
