//! Lines and frames are published while the body still arrives, and no more of it is read than the store takes.
//!
//! Method: a client sends a part of its body and waits until a reader has it, before it sends the next; over HTTP/1.1 by raw bytes, over
//! HTTP/2 by curl, which is fed as slowly. A body that is cut has no answer. A store that answers slowly slows a client that sends more
//! than may be under way.

use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use kateway_tests::client::{Connection, Failure};
use kateway_tests::kateway::Kateway;
use kateway_tests::topic::Topic;
use kateway_tests::{problem, process, wait_until};
use serde_json::{Value, json};

use crate::Case;
use crate::batches::{ARRAY, FRAMES, LINES, batch, framed, payloads, read};

pub const CASES: &[Case] = &[
    Case::new("batch_streams::readable_before_the_end", readable_before_the_end),
    Case::new("batch_streams::readable_before_the_end_http2", readable_before_the_end_http2),
    Case::new("batch_streams::a_cut_body_has_no_answer", a_cut_body_has_no_answer),
    Case::new("batch_streams::a_body_that_takes_too_long", a_body_that_takes_too_long),
    Case::new("batch_streams::a_slow_store_slows_the_client", a_slow_store_slows_the_client),
    Case::new("batch_streams::pipelined_requests_follow", pipelined_requests_follow),
];

const SOON: Duration = Duration::from_secs(10);

/// The head of a chunked request, without its body.
fn head(topic: &Topic, form: &str) -> Vec<u8> {
    let whole = batch(topic, "partition=0", form, "").chunked(1).bytes();
    whole[..whole.len() - b"0\r\n\r\n".len()].to_vec()
}

fn chunk(bytes: &[u8]) -> Vec<u8> {
    [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat()
}

fn wait_readable(gateway: &Kateway, topic: &Topic, count: usize) {
    wait_until(SOON, format!("{count} messages can be read"), || read(gateway, topic).len() == count);
}

fn readable_before_the_end() {
    let gateway = Kateway::memory().start();
    let frames = framed(&[b"1", b"2", b"three", b"4"]);
    // The last line ends with the body, the last frame by itself.
    for (form, body, cut, whole) in [(LINES, &b"1\n2\n\"three\"\n4"[..], 8, 3), (FRAMES, &frames[..], 12, 4)] {
        let topic = Topic::fresh("early");
        let mut connection = gateway.publisher();
        connection.send(&head(&topic, form)).expect("it can be sent");
        connection.send(&chunk(&body[..cut])).expect("it can be sent");
        wait_readable(&gateway, &topic, 2);
        connection.send(&chunk(&body[cut..])).expect("it can be sent");
        wait_readable(&gateway, &topic, whole);
        connection.send(b"0\r\n\r\n").expect("it can be sent");
        let answer = connection.read_response().unwrap_or_else(|e| panic!("{e}")).expect(201).json();
        assert_eq!(answer["ok"], 4);
        assert_eq!(payloads(&read(&gateway, &topic)), [&b"1"[..], b"2", b"three", b"4"], "{form}");
    }
}

fn readable_before_the_end_http2() {
    let gateway = Kateway::memory().start();
    let topic = Topic::fresh("early");
    let mut command = Command::new("curl");
    command.args(["--silent", "--show-error", "--max-time", "40", "--http2-prior-knowledge", "-X", "POST", "-T", "."]);
    command.args(["-H", &format!("Content-Type: {LINES}"), "-H", &format!("Appid: {}", topic.appid), "-H", "Expect:"]);
    command.arg(format!("http://{}/v1/msgs/{}/v1?batch=1&partition=0", gateway.publish, topic.name));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    let mut curl = process::spawn(command).expect("curl can be run");
    let mut stdin = curl.stdin.take().expect("stdin is piped");
    for n in 1..=5 {
        stdin.write_all(format!("{{\"n\":{n}}}\n").as_bytes()).expect("curl reads");
        stdin.flush().expect("curl reads");
        wait_readable(&gateway, &topic, n);
    }
    drop(stdin);
    let mut answer = String::new();
    curl.stdout.take().expect("stdout is piped").read_to_string(&mut answer).expect("text");
    assert!(curl.wait().expect("curl can be waited for").success());
    let answer: Value = serde_json::from_str(&answer).expect("JSON");
    assert_eq!(answer["results"][4], json!({"partition": 0, "offset": 4}));
}

/// What came before is stored: it is a stream's prefix. Of a document nothing is.
fn a_cut_body_has_no_answer() {
    let gateway = Kateway::memory().start();
    for (form, part, stored) in [(LINES, &b"1\n2\n3"[..], 2), (ARRAY, b"[1,2,3", 0)] {
        let topic = Topic::fresh("cut");
        let mut connection = gateway.publisher();
        connection.send(&head(&topic, form)).expect("it can be sent");
        connection.send(&chunk(part)).expect("it can be sent");
        if stored > 0 {
            wait_readable(&gateway, &topic, stored);
        }
        connection.finish();
        let failure = connection.read_response().expect_err("a body that is cut has no answer");
        assert!(matches!(failure, Failure::NoAnswer), "{failure}");
        assert_eq!(read(&gateway, &topic).len(), stored, "{form}");
    }
    let mut after = Connection::open(gateway.publish).expect("it accepts");
    after.call(&Topic::fresh("cut").publish("", "x")).unwrap_or_else(|e| panic!("{e}")).expect(201);
}

fn a_body_that_takes_too_long() {
    let gateway = Kateway::memory().set("http.body_timeout_ms", 500).start();
    let topic = Topic::fresh("late");
    let mut connection = gateway.publisher();
    connection.send(&head(&topic, LINES)).expect("it can be sent");
    connection.send(&chunk(b"1\n2")).expect("it can be sent");
    let answer = connection.read_response().unwrap_or_else(|e| panic!("{e}")).expect(207);
    assert!(answer.closes());
    assert_eq!((&answer.json()["ok"], &answer.json()["results"][1]["code"]), (&json!(1), &json!(40801)));
    let mut connection = gateway.publisher();
    connection.send(&head(&topic, ARRAY)).expect("it can be sent");
    let answer = connection.read_response().unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(problem::check(&answer, 408).code, 40801);
}

fn a_slow_store_slows_the_client() {
    const MESSAGE_BYTES: usize = 100_000;
    const MESSAGES: usize = 60;
    let gateway = Kateway::null().set("null.delay_us", 100_000).start();
    let topic = Topic::fresh("slow");
    gateway.publish(&topic.publish("", "a first one")).expect(201);
    let message = vec![b'x'; MESSAGE_BYTES];
    let body = framed(&vec![message.as_slice(); MESSAGES]);
    let start = Instant::now();
    let answer = gateway.publish(&batch(&topic, "", FRAMES, body)).expect(201).json();
    assert_eq!(answer["ok"], MESSAGES);
    // A mebibyte may be under way, for a tenth of a second: six of them take half a second at least.
    assert!(start.elapsed() > Duration::from_millis(400), "{:?}", start.elapsed());
}

fn pipelined_requests_follow() {
    let gateway = Kateway::memory().start();
    let topic = Topic::fresh("pipelined");
    let mut connection = gateway.publisher();
    let mut bytes = batch(&topic, "partition=0", LINES, "1\n2").bytes();
    bytes.extend(batch(&topic, "partition=0", FRAMES, framed(&[b"3"])).chunked(2).bytes());
    bytes.extend(batch(&topic, "partition=0", ARRAY, "[4]").bytes());
    bytes.extend(topic.publish("partition=0", "5").bytes());
    connection.send(&bytes).expect("it can be sent");
    for stored in [2, 1, 1, 1] {
        let answer = connection.read_response().unwrap_or_else(|e| panic!("{e}")).expect(201).json();
        assert_eq!(answer["ok"], stored);
    }
    assert_eq!(payloads(&read(&gateway, &topic)), [b"1", b"2", b"3", b"4", b"5"]);
}
