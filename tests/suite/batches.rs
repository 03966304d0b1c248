//! A batch is so many messages: each stored with its exact bytes, or its own result says why not.
//!
//! Method: every form goes in over HTTP/1.1 (with a length and in chunks) and over HTTP/2 (curl), and what is read back is held against
//! what the form says its messages are. Batches with one bad message, with a fault in the document and over a limit are sent, and after
//! each the topic is looked at: what was refused is not there.

use std::process::{Command, Stdio};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use kateway_tests::client::{Request, Response};
use kateway_tests::frames::{self, Line};
use kateway_tests::kateway::Kateway;
use kateway_tests::topic::Topic;
use kateway_tests::{folder, kcat, problem, process};
use serde_json::{Value, json};

use crate::{Case, kafka};

pub const CASES: &[Case] = &[
    Case::new("batches::every_form_keeps_the_bytes", every_form_keeps_the_bytes),
    Case::new("batches::envelopes_over_the_request", envelopes_over_the_request),
    Case::new("batches::results_stand_in_order", results_stand_in_order),
    Case::new("batches::a_fault_in_a_document_stores_nothing", a_fault_in_a_document_stores_nothing),
    Case::new("batches::json_is_what_its_grammar_says", json_is_what_its_grammar_says),
    Case::new("batches::small_messages_keep_no_bodies", small_messages_keep_no_bodies),
    Case::new("batches::limits", limits),
    Case::new("batches::memory_is_bounded", memory_is_bounded),
    Case::new("batches::what_a_batch_cannot_be", what_a_batch_cannot_be),
    Case::new("batches::ways_of_publishing", ways_of_publishing).kafka(),
];

pub const ARRAY: &str = "application/json";
pub const ENVELOPES: &str = "application/vnd.kateway.batch+json";
pub const LINES: &str = "application/x-ndjson";
pub const FRAMES: &str = "application/vnd.kateway.frames";

/// A batch; `query` beside `batch=1`, may be empty.
pub fn batch(topic: &Topic, query: &str, form: &str, body: impl Into<Vec<u8>>) -> Request {
    let and = if query.is_empty() { "" } else { "&" };
    topic.publish(&format!("batch=1{and}{query}"), body).header("Content-Type", form)
}

pub fn framed(messages: &[&[u8]]) -> Vec<u8> {
    let frame = |message: &&[u8]| [&u32::try_from(message.len()).expect("short").to_be_bytes(), *message].concat();
    messages.iter().flat_map(frame).collect()
}

/// Everything in the topic, in order of partition and offset.
pub fn read(gateway: &Kateway, topic: &Topic) -> Vec<Line> {
    let request = topic.read(&folder::unique("group"), "batch=4000&wait=300ms").header("Accept", LINES);
    let answer = gateway.subscribe(&request);
    // The topic comes with its first message.
    let is_empty = [204, 404].contains(&answer.status);
    let mut lines = if is_empty { Vec::new() } else { frames::decode_lines(&answer.expect(200).body) };
    lines.sort_by_key(|line| (line.partition, line.offset));
    lines
}

pub fn payloads(lines: &[Line]) -> Vec<&[u8]> {
    lines.iter().map(|line| line.payload.as_slice()).collect()
}

/// A form, a body, and the messages it says.
type Example = (&'static str, Vec<u8>, Vec<Vec<u8>>);

fn examples() -> Vec<Example> {
    let bytes: Vec<u8> = (0..=255).collect();
    let array =
        b" [ {\"a\" : 1.0} ,[1, [2]],\"te\\\"xt\\n\" ,\"\xc3\xa4]\",-1e+2,true\t,{\"]\":\"\\\\\"},null\n] ".to_vec();
    let of_array: [&[u8]; 8] =
        [b"{\"a\" : 1.0}", b"[1, [2]]", b"te\"xt\n", b"\xc3\xa4]", b"-1e+2", b"true", b"{\"]\":\"\\\\\"}", b"null"];
    let envelopes = format!(
        "[{{\"value\":{{\"b\" : 2}}}}, {{\"base64\":\"{}\"}} ,{{\"value\":\"te\\u00e4xt\"}}]",
        STANDARD.encode(&bytes)
    );
    let of_envelopes: [&[u8]; 3] = [b"{\"b\" : 2}", &bytes, "te\u{e4}xt".as_bytes()];
    let lines = b"{\"c\" : 3} \r\n\n  [4]\n\"te\\nxt\"\n5";
    let of_lines: [&[u8]; 4] = [b"{\"c\" : 3}", b"[4]", b"te\nxt", b"5"];
    let large = vec![b'x'; 512 * 1024];
    let of_frames: [&[u8]; 4] = [&bytes, b"\n", &large, b"end"];
    let owned = |messages: &[&[u8]]| messages.iter().map(|message| message.to_vec()).collect::<Vec<_>>();
    vec![
        (ARRAY, array, owned(&of_array)),
        (ENVELOPES, envelopes.into_bytes(), owned(&of_envelopes)),
        (LINES, lines.to_vec(), owned(&of_lines)),
        (FRAMES, framed(&of_frames), owned(&of_frames)),
    ]
}

fn every_form_keeps_the_bytes() {
    let gateway = Kateway::memory().shards(2).start();
    for (form, body, messages) in examples() {
        let stored = |way: &str, answer: &Value, topic: &Topic| {
            assert_eq!(answer["ok"], messages.len(), "{form} {way}: {answer}");
            let results = answer["results"].as_array().expect("a list");
            let expected: Vec<_> = (0..messages.len()).map(|n| json!({"partition": 1, "offset": n})).collect();
            assert_eq!(*results, expected, "{form} {way}");
            assert_eq!(payloads(&read(&gateway, topic)), messages, "{form} {way}");
        };
        let topic = Topic::fresh("batch");
        let answer = gateway.publish(&batch(&topic, "partition=1", form, body.clone())).expect(201);
        assert_eq!(answer.header("x-durability"), Some("none"), "the memory store says so");
        stored("with a length", &answer.json(), &topic);
        for chunk_bytes in [7, 10_000] {
            let topic = Topic::fresh("batch");
            let request = batch(&topic, "partition=1", form, body.clone()).chunked(chunk_bytes);
            stored("in chunks", &gateway.publish(&request).expect(201).json(), &topic);
        }
        let topic = Topic::fresh("batch");
        let (status, answer) = curl(&gateway, &topic, "partition=1", form, &body);
        assert_eq!(status, 201, "{answer}");
        stored("over HTTP/2", &answer, &topic);
    }
}

/// The same over HTTP/2.
pub fn curl(gateway: &Kateway, topic: &Topic, query: &str, form: &str, body: &[u8]) -> (u16, Value) {
    let file = folder::fresh("batch", ".body");
    std::fs::write(&file, body).expect("the run's folder can be written");
    let mut command = Command::new("curl");
    command.args(["--silent", "--show-error", "--max-time", "40", "--http2-prior-knowledge", "-H", "Expect:"]);
    command.args(["--write-out", "\n%{http_code} %{http_version}", "-H", &format!("Content-Type: {form}")]);
    command.args(["-H", &format!("Appid: {}", topic.appid), "--data-binary", &format!("@{}", file.display())]);
    command.arg(format!("http://{}/v1/msgs/{}/v1?batch=1&{query}", gateway.publish, topic.name));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let output = process::spawn(command).and_then(std::process::Child::wait_with_output).expect("curl can be run");
    assert!(output.status.success(), "curl: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout);
    let (answer, tail) = text.rsplit_once('\n').expect("curl writes the status");
    let (status, version) = tail.split_once(' ').expect("status and version");
    assert_eq!(version, "2", "HTTP/2 was spoken");
    (status.parse().expect("a status"), serde_json::from_str(answer).expect("JSON"))
}

fn envelopes_over_the_request() {
    let gateway = Kateway::memory().start();
    let topic = Topic::fresh("envelopes");
    let body = r#"[{"value":"own","key":"k2","tag":"t2","partition":3,"headers":[["h","AQ=="],["h",null],["i","Ag=="]]},
                   {"value":"of the request"},{"value":"none","key":"","tag":""},{"key64":"/w==","value":null}]"#;
    let request = batch(&topic, "key=k1", ENVELOPES, body).header("X-Tag", "t1").header("X-Header-H", "Aw==");
    let answer = gateway.publish(&request.header("X-Header-J", "BA==")).expect(201).json();
    assert_eq!(answer["results"][0]["partition"], 3);
    let lines = read(&gateway, &topic);
    let find = |payload: &[u8]| lines.iter().find(|line| line.payload == payload).expect("it is stored");
    let header = |name: &str, value: Option<u8>| (name.to_owned(), value.map(|byte| vec![byte]));
    let own = find(b"own");
    assert_eq!((own.partition, own.key.as_deref(), own.tag.as_deref()), (3, Some(&b"k2"[..]), Some("t2")));
    assert_eq!(own.headers, [header("j", Some(4)), header("h", Some(1)), header("h", None), header("i", Some(2))]);
    let of_request = find(b"of the request");
    assert_eq!((of_request.key.as_deref(), of_request.tag.as_deref()), (Some(&b"k1"[..]), Some("t1")));
    assert_eq!(of_request.headers, [header("h", Some(3)), header("j", Some(4))]);
    let none = find(b"none");
    assert_eq!((none.key.as_deref(), none.tag.as_deref()), (None, None));
    let tombstone = lines.iter().find(|line| line.is_tombstone).expect("a tombstone is stored");
    assert_eq!(tombstone.key.as_deref(), Some(&b"\xff"[..]));
}

fn results_stand_in_order() {
    let gateway = Kateway::memory().set("pub.message_bytes_max", 100).start();
    let long = format!("\"{}\"", "x".repeat(101));
    for (form, body) in [
        (ARRAY, format!("[1,\"\",{long},2]").into_bytes()),
        (ENVELOPES, format!("[{{\"value\":1}},{{\"value\":\"\"}},{{\"value\":{long}}},{{\"value\":2}}]").into_bytes()),
        (LINES, format!("1\n\"\"\n{long}\n2\n").into_bytes()),
        (FRAMES, framed(&[b"1", b"", long.as_bytes(), b"2"])),
    ] {
        let topic = Topic::fresh("mixed");
        let answer = gateway.publish(&batch(&topic, "partition=0", form, body.clone())).expect(207).json();
        assert_eq!(answer["ok"], 2);
        let codes: Vec<_> = answer["results"].as_array().expect("a list").iter().map(|r| r["code"].as_u64()).collect();
        assert_eq!(codes, [None, Some(40006), Some(41301), None], "{form}");
        assert_eq!(answer["results"][3], json!({"partition": 0, "offset": 1}));
        assert!(answer["results"][1]["errmsg"].as_str().is_some_and(|text| !text.is_empty()));
        assert_eq!(payloads(&read(&gateway, &topic)), [b"1", b"2"]);

        let answer = gateway.publish(&batch(&topic, "partition=0&results=range", form, body)).expect(207).json();
        let ranges = answer["results"].as_array().expect("a list");
        assert_eq!(ranges[0], json!({"from": 0, "to": 0, "partition": 0, "offset": 2}));
        assert_eq!((&ranges[1]["from"], &ranges[1]["code"]), (&json!(1), &json!(40006)));
    }
    let topic = Topic::fresh("ranges");
    let answer = gateway.publish(&batch(&topic, "partition=2&results=range", ARRAY, "[1,2,3]")).expect(201).json();
    assert_eq!(answer, json!({"ok": 3, "results": [{"from": 0, "to": 2, "partition": 2, "offset": 0}]}));
    // A bad line alone is a result like any other.
    let answer = gateway.publish(&batch(&topic, "partition=2", LINES, "1\n{]\n3")).expect(207).json();
    assert_eq!((&answer["ok"], &answer["results"][1]["code"]), (&json!(2), &json!(40014)));
    // So is a frame that is cut short, and nothing after it.
    let answer = gateway.publish(&batch(&topic, "partition=2", FRAMES, "\0\0\0\u{2}ab\0")).expect(207).json();
    assert_eq!((&answer["ok"], &answer["results"][1]["code"]), (&json!(1), &json!(40014)));
    assert_eq!(answer["results"].as_array().map(Vec::len), Some(2));
    // None stored: the first one's problem.
    let answer = gateway.publish(&batch(&topic, "", LINES, format!("{long}\n{{]\n")));
    let said = problem::check(&answer, 413);
    assert_eq!((said.code, &said.document["ok"]), (41301, &json!(0)));
    assert_eq!(said.document["results"][1]["code"], 40014);
    assert_eq!(said.document["results"].as_array().map(Vec::len), Some(2));
}

/// As JSON has them (RFC 8259): numbers of any size, and strings that are no text, which are messages only inside of others.
fn json_is_what_its_grammar_says() {
    let gateway = Kateway::memory().start();
    let topic = Topic::fresh("grammar");
    let elements =
        ["123456789012345678901234567890", "-9223372036854775809", "1e400", "[\"\\ud800\"]", "{\"\\udc00\":0}"];
    let answer =
        gateway.publish(&batch(&topic, "partition=0", ARRAY, format!("[{}]", elements.join(" , ")))).expect(201);
    assert_eq!(answer.json()["ok"], 5);
    gateway.publish(&batch(&topic, "partition=0", LINES, elements.join("\n"))).expect(201);
    let twice: Vec<_> = elements.iter().chain(&elements).map(|element| element.as_bytes()).collect();
    assert_eq!(payloads(&read(&gateway, &topic)), twice);
    for (form, body) in [(ARRAY, "[1,\"\\ud800\",2]"), (LINES, "1\n\"\\ud800\"\n2")] {
        let answer = gateway.publish(&batch(&topic, "partition=0", form, body)).expect(207).json();
        assert_eq!((&answer["ok"], &answer["results"][1]["code"]), (&json!(2), &json!(40014)), "{form}");
    }
    // An element that can be no message is a result of its own, whatever it is made of.
    let huge = format!("[1,[{}1],2]", "1,".repeat(3 << 20));
    let answer = gateway.publish(&batch(&topic, "partition=0", ARRAY, huge)).expect(207).json();
    assert_eq!((&answer["ok"], &answer["results"][1]["code"]), (&json!(2), &json!(41301)));
}

/// One small message of a large body does not keep the body: neither in a document nor in a stream.
fn small_messages_keep_no_bodies() {
    const BODIES: usize = 24;
    let gateway = Kateway::memory().start();
    for (form, body) in [
        (ARRAY, format!("[{}1]", " ".repeat(4 << 20))),
        (ENVELOPES, format!("[{{\"value\":{}1}}]", " ".repeat(4 << 20))),
        (LINES, format!("{}1\n", format!("{}\n", " ".repeat(60_000)).repeat(70))),
    ] {
        let topic = Topic::fresh("kept");
        let publish = || gateway.publish(&batch(&topic, "partition=0", form, body.clone())).expect(201);
        // What is used once is there from then on.
        (0..4).for_each(|_| drop(publish()));
        let before = process::resident_kib(gateway.pid());
        (0..BODIES).for_each(|_| drop(publish()));
        let grown = process::resident_kib(gateway.pid()).saturating_sub(before);
        assert!(grown < 32 << 10, "{form}: {grown} KiB for {BODIES} bodies of 4 MiB");
    }
}

fn a_fault_in_a_document_stores_nothing() {
    let gateway = Kateway::memory().start();
    let topic = Topic::fresh("fault");
    let many = "{\"n\":\"a message like others\"},".repeat(3_999);
    for (form, bodies) in [
        (ARRAY, vec!["[1,2,]".to_owned(), "[1,2".to_owned(), "{\"a\":1}".to_owned(), format!("[{many}tru]")]),
        (ENVELOPES, vec!["[{\"value\":1},2]".to_owned(), "[{\"value\":1},{\"vlaue\":2}]".to_owned()]),
        (ARRAY, vec!["[\"\u{1}\"]".to_owned(), "[1] [2]".to_owned(), " ".to_owned()]),
    ] {
        for body in bodies {
            let answer = gateway.publish(&batch(&topic, "", form, body.clone()));
            assert_eq!(problem::check(&answer, 400).code, 40014, "{}", &body[..body.len().min(60)]);
        }
    }
    for (form, body) in [(ARRAY, "[]"), (LINES, "\n \n"), (ARRAY, "")] {
        assert_eq!(problem::check(&gateway.publish(&batch(&topic, "", form, body)), 400).code, 40006);
    }
    let (status, answer) = curl(&gateway, &topic, "", ARRAY, b"");
    assert_eq!((status, &answer["code"]), (400, &json!(40006)));
    assert!(read(&gateway, &topic).is_empty());
}

fn limits() {
    let gateway = Kateway::memory().start();
    let topic = Topic::fresh("limits");
    let full = format!("[{}1]", "1,".repeat(3_999));
    let answer = gateway.publish(&batch(&topic, "partition=0&results=range", ARRAY, full)).expect(201).json();
    assert_eq!(answer["results"], json!([{"from": 0, "to": 3_999, "partition": 0, "offset": 0}]));
    let topic = Topic::fresh("limits");
    let over = format!("[{}1]", "1,".repeat(4_000));
    assert_eq!(problem::check(&gateway.publish(&batch(&topic, "", ARRAY, over)), 400).code, 40016);
    let large = vec![b' '; 8 * 1024 * 1024 + 1];
    let answer = gateway.publish(&batch(&topic, "", ARRAY, large.clone()));
    assert_eq!(problem::check(&answer, 413).code, 41302);
    let answer = gateway.publish(&batch(&topic, "", ARRAY, large).chunked(60_000));
    assert_eq!(problem::check(&answer, 413).code, 41302);
    assert!(read(&gateway, &topic).is_empty());
    // What streams is stored up to the limit, and the last result stands for all that was not read.
    let answer =
        gateway.publish(&batch(&topic, "results=range&partition=0", LINES, "1\n".repeat(4_100))).expect(207).json();
    assert_eq!((&answer["ok"], answer["results"].as_array().map(Vec::len)), (&json!(4_000), Some(2)));
    assert_eq!((&answer["results"][1]["from"], &answer["results"][1]["code"]), (&json!(4_000), &json!(40016)));
    assert_eq!(read(&gateway, &topic).len(), 4_000);
    let topic = Topic::fresh("limits");
    let frame = vec![b'x'; 500_000];
    let frames = framed(&[frame.as_slice(); 20]);
    assert_eq!(problem::check(&gateway.publish(&batch(&topic, "", FRAMES, frames.clone())), 413).code, 41302);
    let answer = gateway.publish(&batch(&topic, "", FRAMES, frames).chunked(60_000)).expect(207).json();
    assert_eq!((&answer["ok"], &answer["results"][16]["code"]), (&json!(16), &json!(41302)));
}

fn memory_is_bounded() {
    let gateway = Kateway::memory().set("pub.batch_memory_bytes_max", 3 << 20).start();
    let topic = Topic::fresh("memory");
    let head = |length: usize| {
        let request = batch(&topic, "", ARRAY, "").bytes();
        String::from_utf8(request).expect("text").replace("Content-Length: 0", &format!("Content-Length: {length}"))
    };
    let mut first = gateway.publisher();
    first.send(head(2 << 20).as_bytes()).expect("it can be sent");
    kateway_tests::wait_until(Duration::from_secs(10), "the first batch is under way", || {
        gateway.scrape().sum("kateway_pub_batch_bytes", &[]) >= f64::from(2 << 20)
    });
    let answer = gateway.publish(&batch(&topic, "", ARRAY, vec![b' '; 2 << 20]));
    assert_eq!(problem::check(&answer, 429).code, 42900);
    gateway.publish(&batch(&topic, "", ARRAY, "[1]")).expect(201);
    first.send(format!("[{}1]", " ".repeat((2 << 20) - 3)).as_bytes()).expect("it can be sent");
    first.read_response().unwrap_or_else(|e| panic!("{e}")).expect(201);
    gateway.publish(&batch(&topic, "", ARRAY, format!("[{}1]", " ".repeat(2 << 20)))).expect(201);
    assert_eq!(gateway.scrape().sum("kateway_pub_batch_bytes", &[]), 0.0);
}

fn what_a_batch_cannot_be() {
    let gateway = Kateway::memory().start();
    let topic = Topic::fresh("cannot");
    let code = |answer: &Response, status| problem::check(answer, status).code;
    assert_eq!(code(&gateway.publish(&batch(&topic, "", "text/plain", "[1]")), 415), 41501);
    assert_eq!(code(&gateway.publish(&topic.publish("batch=1", "[1]")), 415), 41501);
    assert_eq!(code(&gateway.publish(&batch(&topic, "results=all", ARRAY, "[1]")), 400), 40002);
    assert_eq!(code(&gateway.publish(&topic.publish("results=range", "[1]")), 400), 40002);
    assert_eq!(code(&gateway.publish(&batch(&topic, "partition=9", ARRAY, "[1]")), 400), 40009);
    let answer = gateway.publish(&batch(&topic, "", ARRAY, "[1]").header("Idempotency-Key", "a"));
    assert_eq!(code(&answer, 400), 40011);
    let answer =
        gateway.publish(&batch(&topic, "", ENVELOPES, r#"[{"value":1},{"value":2,"partition":4}]"#)).expect(207);
    assert_eq!(answer.json()["results"][1]["code"], 40009);
    // Without `batch=1` an array is a message.
    gateway.publish(&topic.publish("partition=3", "[1]").header("Content-Type", ARRAY)).expect(201);
    assert!(read(&gateway, &topic).iter().any(|line| line.partition == 3 && line.payload == b"[1]"));
}

/// The answer says what was promised, for all messages at once; Kafka has every one of them, in the order of the request.
fn ways_of_publishing() {
    let admin = kafka().admin();
    let topic = Topic::fresh("ways");
    admin.create_topic(&topic.in_kafka(), 3);
    let gateway = Kateway::kafka(admin.brokers()).shards(2).start();
    let mut expected = 0;
    for (query, status, durability) in [
        ("key=k", 201, None),
        ("key=k&ack=local", 201, None),
        ("key=k&ack=none", 202, Some("none")),
        ("key=k&async=1", 202, Some("none")),
    ] {
        let body: Vec<Value> = (0..1_000).map(|n| json!({"query": query, "n": n})).collect();
        let answer = gateway.publish(&batch(&topic, &format!("{query}&results=range"), ARRAY, json!(body).to_string()));
        assert_eq!((answer.status, answer.header("x-durability")), (status, durability), "{}", answer.text());
        expected += 1_000;
        kateway_tests::wait_until(Duration::from_secs(20), "what was queued is stored", || {
            admin.message_count(&topic.in_kafka()) >= expected
        });
    }
    let answer = gateway.publish(&batch(&topic, "partition=7", ARRAY, "[1]"));
    assert_eq!(problem::check(&answer, 400).code, 40009);
    let elsewhere = Topic::fresh("nowhere");
    assert_eq!(problem::check(&gateway.publish(&batch(&elsewhere, "", ARRAY, "[1]")), 404).code, 40401);
    assert_eq!(problem::check(&gateway.publish(&batch(&elsewhere, "", LINES, "1")), 404).code, 40401);
    let records = kcat::read_all(admin.brokers(), &topic.in_kafka());
    let places: Vec<i64> = records
        .iter()
        .filter_map(|record| serde_json::from_slice::<Value>(record.payload.as_deref()?).ok()?["n"].as_i64())
        .collect();
    let once: Vec<i64> = (0..1_000).collect();
    assert_eq!(places, once.repeat(4), "one key is one partition, and its order the requests'");
}
