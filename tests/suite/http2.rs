//! HTTP/2 without TLS, by prior knowledge, on the same ports as HTTP/1.1.
//!
//! Method: curl publishes and subscribes with `--http2-prior-knowledge`, once each and then with refusals, so that the
//! meaning is seen to be the same as over HTTP/1.1. h2load then opens several connections with several streams each;
//! every request must be answered 2xx, and all must be stored. Heads over a limit get their exact answer, and bodies that are cut,
//! which are sent as raw frames, store nothing.

use std::io::Write;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use kateway_tests::h2::{self, CANCEL, DATA, END_HEADERS, END_STREAM, HEADERS, RST_STREAM, frame};
use kateway_tests::kateway::Kateway;
use kateway_tests::topic::Topic;
use kateway_tests::{folder, process, wait_until};

use crate::bad_input::assert_nothing_stored;
use crate::{Case, kafka};

pub const CASES: &[Case] = &[
    Case::new("http2::curl_publishes_and_reads", curl_publishes_and_reads),
    Case::new("http2::refusals_are_the_same", refusals_are_the_same),
    Case::new("http2::heads_over_a_limit", heads_over_a_limit),
    Case::new("http2::body_cut_short_stores_nothing", body_cut_short_stores_nothing),
    Case::new("http2::many_streams_on_kafka", many_streams_on_kafka).kafka(),
];

const SOON: Duration = Duration::from_secs(10);

/// Runs curl with `args`, the body on stdin; the status follows the answer's body on a line of its own.
fn curl(args: &[&str], body: &[u8]) -> (u16, Vec<u8>, String) {
    let head = folder::fresh("curl", ".head");
    let mut command = Command::new("curl");
    command.args(["--silent", "--show-error", "--max-time", "40", "--http2-prior-knowledge"]);
    command.args(["--write-out", "\n%{http_code} %{http_version}", "--dump-header"]).arg(&head).args(args);
    let output = feed(command, body);
    assert!(output.status.success(), "curl {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    let at = output.stdout.iter().rposition(|&b| b == b'\n').expect("curl writes the status");
    let (body, tail) = output.stdout.split_at(at);
    let tail = String::from_utf8_lossy(&tail[1..]);
    let (status, version) = tail.split_once(' ').expect("status and version");
    assert_eq!(version, "2", "HTTP/2 was spoken");
    let head = std::fs::read_to_string(&head).expect("curl wrote the head");
    (status.parse().expect("a status"), body.to_vec(), head.to_ascii_lowercase())
}

fn feed(mut command: Command, input: &[u8]) -> Output {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = process::spawn(command).expect("the tests need curl and h2load (packages curl, nghttp2-client)");
    let mut stdin = child.stdin.take().expect("stdin is piped");
    // A tool that needs no input may close it early.
    let _ = stdin.write_all(input);
    drop(stdin);
    child.wait_with_output().expect("the tool can be waited for")
}

fn publish_with_curl(gateway: &Kateway, topic: &Topic, query: &str, body: &[u8]) -> (u16, Vec<u8>, String) {
    let url = format!("http://{}/v1/msgs/{}/v1?{query}", gateway.publish, topic.name);
    let appid = format!("Appid: {}", topic.appid);
    curl(&["--data-binary", "@-", "-H", &appid, "-H", "X-Tag: a;b", "-H", "Expect:", &url], body)
}

fn read_with_curl(gateway: &Kateway, topic: &Topic, query: &str) -> (u16, Vec<u8>, String) {
    let url = format!("http://{}/v1/msgs/{}/{}/v1?group=g&{query}", gateway.subscribe, topic.appid, topic.name);
    curl(&["-H", &format!("Appid: {}", topic.appid), &url], b"")
}

fn curl_publishes_and_reads() {
    let gateway = Kateway::memory().shards(2).start();
    let topic = Topic::fresh("two");
    let bodies: [Vec<u8>; 3] = [(0..=255).collect(), vec![b'x'; 512 * 1024], b"one".to_vec()];
    for body in &bodies {
        let (status, answer, head) = publish_with_curl(&gateway, &topic, "key=k", body);
        assert_eq!((status, &answer[..]), (201, &b"{\"ok\":1}"[..]));
        assert!(head.contains("x-offset: ") && head.contains("server: kateway"), "{head}");
    }
    for (offset, body) in bodies.iter().enumerate() {
        let (status, answer, head) = read_with_curl(&gateway, &topic, "wait=5s");
        assert_eq!(status, 200);
        assert!(answer == *body, "{} bytes came back as {}", body.len(), answer.len());
        assert!(head.contains(&format!("x-offset: {offset}")) && head.contains("x-tag: a;b"), "{head}");
    }
    assert_eq!(read_with_curl(&gateway, &topic, "wait=300ms").0, 204);
}

fn refusals_are_the_same() {
    let gateway = Kateway::memory().start();
    let topic = Topic::fresh("two");
    for (query, body, status, code) in [
        ("acks=all", b"x".to_vec(), 400, 40003),
        ("ack=all", Vec::new(), 400, 40006),
        ("ack=all", vec![0; 512 * 1024 + 1], 413, 41301),
    ] {
        let (found, answer, head) = publish_with_curl(&gateway, &topic, query, &body);
        assert_eq!(found, status);
        assert!(head.contains("content-type: application/problem+json"), "{head}");
        let problem: serde_json::Value = serde_json::from_slice(&answer).expect("a problem document");
        assert_eq!(problem["code"], code);
    }
}

fn heads_over_a_limit() {
    let gateway = Kateway::memory().start();
    let topic = Topic::fresh("two");
    let publish = |query: &str, field: &str| {
        let url = format!("http://{}/v1/msgs/{}/v1{query}", gateway.publish, topic.name);
        let appid = format!("Appid: {}", topic.appid);
        let (status, answer, head) =
            curl(&["--data-binary", "@-", "-H", &appid, "-H", field, "-H", "Expect:", &url], b"must not be stored");
        assert!(head.contains("content-type: application/problem+json"), "{head}");
        let problem: serde_json::Value = serde_json::from_slice(&answer).expect("a problem document");
        (status, problem["code"].as_u64().expect("a number"))
    };
    let target = |len: usize| {
        let start = format!("/v1/msgs/{}/v1?unknown=", topic.name).len();
        format!("?unknown={}", "p".repeat(len - start))
    };
    assert_eq!(publish(&target(2_048), "X-Pad: p"), (400, 40003), "2,048 bytes of target are read");
    assert_eq!(publish(&target(2_049), "X-Pad: p"), (414, 41400));
    // How long the head is over HTTP/1.1 depends on what curl adds: a little under the limit, and over it.
    assert_eq!(publish("?unknown=1", &format!("X-Pad: {}", "p".repeat(3_500))), (400, 40003));
    assert_eq!(publish("?unknown=1", &format!("X-Pad: {}", "p".repeat(4_096))), (431, 43100));
    assert_nothing_stored(&gateway, &topic);
}

/// The stream or the connection ends before the body does.
fn body_cut_short_stores_nothing() {
    let gateway = Kateway::memory().start();
    let topic = Topic::fresh("two");
    let data = frame(DATA, 0, 1, b"only this");
    let cuts = [
        ("connection closed, length announced", Some("100"), data.clone()),
        ("connection closed, no length", None, data.clone()),
        ("connection closed before the body", Some("100"), Vec::new()),
        ("stream reset", Some("100"), [data.clone(), frame(RST_STREAM, 0, 1, &CANCEL)].concat()),
        ("stream reset, no length", None, [data, frame(RST_STREAM, 0, 1, &CANCEL)].concat()),
        ("ended before its length", Some("100"), frame(DATA, END_STREAM, 1, b"only this")),
        ("longer than its length", Some("4"), frame(DATA, END_STREAM, 1, b"only this")),
    ];
    let open = || gateway.scrape().sum("kateway_connections", &[("shard", "0")]);
    for (what, length, rest) in cuts {
        let mut connection = gateway.publisher();
        connection.send(&[h2::greeting(), head(&topic, length), rest].concat()).expect("sent");
        wait_until(SOON, format!("{what}: the connection is served"), || open() >= 1.0);
        h2::ping(&mut connection);
        drop(connection);
        wait_until(SOON, format!("{what}: the connection is gone"), || open() == 0.0);
    }
    assert_nothing_stored(&gateway, &topic);
}

/// The head of a publish on stream 1.
fn head(topic: &Topic, length: Option<&str>) -> Vec<u8> {
    let path = format!("/v1/msgs/{}/v1?partition=0", topic.name);
    let length = length.map(|length| ("content-length", length));
    let fields: Vec<_> = [("appid", topic.appid.as_str())].into_iter().chain(length).collect();
    frame(HEADERS, END_HEADERS, 1, &h2::head("POST", &path, &fields))
}

fn many_streams_on_kafka() {
    const REQUESTS: i64 = 5_000;
    let admin = kafka().admin();
    let topic = Topic::fresh("streams");
    admin.create_topic(&topic.in_kafka(), 4);
    let gateway = Kateway::kafka(admin.brokers()).shards(2).start();
    let body = folder::fresh("h2load", ".body");
    std::fs::write(&body, vec![b'm'; 1_024]).expect("the run's folder can be written");
    let mut command = Command::new("h2load");
    command.args(["-n", &REQUESTS.to_string(), "-c", "8", "-m", "16", "-d"]).arg(&body);
    command.args(["-H", &format!("Appid: {}", topic.appid)]);
    command.arg(format!("http://{}/v1/msgs/{}/v1", gateway.publish, topic.name));
    let output = feed(command, b"");
    let report = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(report.contains(&format!("status codes: {REQUESTS} 2xx, 0 3xx, 0 4xx, 0 5xx")), "{report}");
    assert_eq!(admin.message_count(&topic.in_kafka()), REQUESTS);
}
