//! Bad input gets one exact answer and stores nothing.
//!
//! Method: a table of requests, each with the status and the five-digit code it must be refused with. Every refusal is
//! held against the full shape of a problem document (`harness/problem.rs`). Each table runs on a topic of its own;
//! after each refusal the connection is either usable or closed as announced, and at the end a good message is
//! published and a fresh group must read that message and nothing else. The same publish rows run against real Kafka,
//! where the end offsets are the judge. Malformed HTTP, which never becomes a request, is in `framing.rs`.

use std::io::Write;
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use kateway_tests::client::{Connection, Request};
use kateway_tests::kateway::Kateway;
use kateway_tests::topic::Topic;
use kateway_tests::{folder, frames, problem, wait_until};

use crate::{Case, kafka};

pub const CASES: &[Case] = &[
    Case::new("bad_input::publish_on_memory", publish_on_memory),
    Case::new("bad_input::publish_on_kafka", publish_on_kafka).kafka(),
    Case::new("bad_input::subscribe_on_memory", subscribe_on_memory),
    Case::new("bad_input::subscribe_on_kafka", subscribe_on_kafka).kafka(),
    Case::new("bad_input::routes_and_methods", routes_and_methods),
    Case::new("bad_input::limits_are_exact", limits_are_exact),
    Case::new("bad_input::body_cut_short_on_memory", body_cut_short_on_memory),
    Case::new("bad_input::body_cut_short_on_kafka", body_cut_short_on_kafka).kafka(),
    Case::new("bad_input::refusal_of_a_large_body_is_readable", refusal_of_a_large_body_is_readable),
];

/// A request and the refusal it must get.
struct Row {
    what: &'static str,
    request: Request,
    status: u16,
    code: u64,
}

fn row(what: &'static str, request: Request, code: u64) -> Row {
    Row { what, request, status: u16::try_from(code / 100).expect("a status"), code }
}

const BODY_MAX: usize = 512 * 1024;

// === publish ===

fn publish_rows(topic: &Topic) -> Vec<Row> {
    let publish = |query: &str| topic.publish(query, "must not be stored");
    let path = |name: &str, ver: &str| {
        Request::post(&format!("/v1/msgs/{name}/{ver}"), "must not be stored").app(&topic.appid)
    };
    let as_app = |appid: &str| Topic::new(appid, &topic.name, "v1").publish("", "must not be stored");
    let long = "a".repeat(65);
    vec![
        row("empty body", topic.publish("", ""), code::EMPTY),
        row(
            "no body at all",
            Request::new("POST", &format!("/v1/msgs/{}/v1", topic.name)).app(&topic.appid),
            code::EMPTY,
        ),
        row("empty chunked body", topic.publish("", "").chunked(1), code::EMPTY),
        row("body one over, with length", topic.publish("", vec![7; BODY_MAX + 1]), code::TOO_LARGE),
        row("body one over, chunked", topic.publish("", vec![7; BODY_MAX + 1]).chunked(65_536), code::TOO_LARGE),
        row("dot in topic", path("a.b", "v1"), code::NAME),
        row("encoded dot in topic", path("a%2eb", "v1"), code::NAME),
        row("encoded NUL in topic", path("a%00b", "v1"), code::NAME),
        row("encoded slash in topic", path("a%2fb", "v1"), code::NAME),
        row("CJK in topic", path("%E6%97%A5", "v1"), code::NAME),
        row("empty topic", path("", "v1"), code::NAME),
        row("topic of 65", path(&long, "v1"), code::NAME),
        row("version without v", path(&topic.name, "1"), code::NAME),
        row("version without digits", path(&topic.name, "v"), code::NAME),
        row("version of five digits", path(&topic.name, "v12345"), code::NAME),
        row("version in upper case", path(&topic.name, "V1"), code::NAME),
        row("version with a dot", path(&topic.name, "v1.0"), code::NAME),
        row("dot in app", as_app("a.b"), code::NAME),
        row("space in app", as_app("a b"), code::NAME),
        row("app of 65", as_app(&long), code::NAME),
        row("unknown parameter", publish("acks=all"), code::UNKNOWN_PARAMETER),
        row("parameter in upper case", publish("Ack=all"), code::UNKNOWN_PARAMETER),
        row("doubled parameter", publish("ack=all&ack=all"), code::DOUBLED_PARAMETER),
        row("doubled key", publish("key=a&key=b"), code::DOUBLED_PARAMETER),
        row("unknown ack", publish("ack=2"), code::BAD_PARAMETER),
        row("empty ack", publish("ack="), code::BAD_PARAMETER),
        row("async is 0 or 1", publish("async=yes"), code::BAD_PARAMETER),
        row("negative partition", publish("partition=-1"), code::PARTITION_RANGE),
        row("partition no number", publish("partition=1e1"), code::BAD_PARAMETER),
        row("partition out of range", publish("partition=4"), code::PARTITION_RANGE),
        row("partition far out of range", publish("partition=2147483648"), code::PARTITION_RANGE),
        row("key of 257", publish(&format!("key={}", "k".repeat(257))), code::KEY_TOO_LONG),
        row("key of 257 once decoded", publish(&format!("key={}", "%00".repeat(257))), code::KEY_TOO_LONG),
        row("key cut in its escape", publish("key=%4"), code::BAD_PARAMETER),
        row("tag of 1025", publish("").header("X-Tag", &"t".repeat(1_025)), code::TAG_TOO_LONG),
        row("header value no base64", publish("").header("X-Header-a", "***"), code::BAD_FIELD),
        row("a batch of no known form", publish("batch=1"), code::CONTENT_TYPE),
        row("idempotency key of 256", publish("").header("Idempotency-Key", &"k".repeat(256)), code::BAD_FIELD),
        row("unknown content coding", publish("").header("Content-Encoding", "br"), code::CONTENT_CODING),
    ]
}

fn publish_on_memory() {
    let gateway = Kateway::memory().shards(2).start();
    let topic = Topic::fresh("refused");
    let rows = publish_rows(&topic);
    refuse_all(gateway.publish, &rows);
    assert_nothing_stored(&gateway, &topic);
}

/// A message that is stored now is the first one, and the only one a fresh group gets.
pub fn assert_nothing_stored(gateway: &Kateway, topic: &Topic) {
    gateway.publish(&topic.publish("partition=0", "the only one")).expect(201);
    let answer = gateway.subscribe(&topic.read("g", "batch=100&wait=5s&linger=500ms")).expect(200);
    let stored = frames::decode(&answer.body);
    let stored: Vec<_> = stored.iter().map(|frame| (frame.offset, &frame.payload[..])).collect();
    assert_eq!(stored, [(0, &b"the only one"[..])], "what was refused is not stored");
}

fn publish_on_kafka() {
    let admin = kafka().admin();
    let gateway = Kateway::kafka(admin.brokers()).shards(2).start();
    let topic = Topic::fresh("refused");
    admin.create_topic(&topic.in_kafka(), 4);
    let mut rows = publish_rows(&topic);
    let unknown = Topic::new(&topic.appid, "never-made", "v1");
    rows.push(row("unknown topic", unknown.publish("", "x"), code::UNKNOWN_TOPIC));
    refuse_all(gateway.publish, &rows);
    assert_eq!(admin.message_count(&topic.in_kafka()), 0, "of {} refused messages none is stored", rows.len());
    assert_eq!(admin.partitions(&unknown.in_kafka()), None, "publishing makes no topic");
}

// === subscribe ===

fn subscribe_rows(topic: &Topic) -> Vec<Row> {
    let read = |query: &str| topic.read("g", query);
    let get = |target: &str| Request::get(target).app(&topic.appid);
    let base = format!("/v1/msgs/{}/{}/v1", topic.appid, topic.name);
    let mut rows = vec![
        row("flag that is none", read("ack=yes"), code::BAD_PARAMETER),
        row("lease without ack", read("lease=30s"), code::BAD_PARAMETER),
        row("lease of nothing", read("ack=1&lease=0s"), code::BAD_PARAMETER),
        row("deliveries without ack", read("max_deliveries=3"), code::BAD_PARAMETER),
        row("no deliveries", read("ack=1&max_deliveries=0"), code::BAD_PARAMETER),
        row("no such queue", read("q=grave"), code::BAD_PARAMETER),
        row("no shadow queues", read("q=retry"), code::NO_SHADOW),
        row("half an acknowledgement", read("ack=1").header("X-Offset", "3"), code::BAD_FIELD),
        row(
            "foreign event id",
            read("").header("Accept", "text/event-stream").header("Last-Event-ID", "x"),
            code::BAD_FIELD,
        ),
        row("not built: tag expressions", read("").header("X-Tag-Expr", "a && !b"), code::NOT_SUPPORTED),
        row("no group", get(&base), code::MISSING_PARAMETER),
        row("empty group", get(&format!("{base}?group=")), code::NAME),
        row("dot in group", get(&format!("{base}?group=a.b")), code::NAME),
        row("encoded dot in group", get(&format!("{base}?group=a%2eb")), code::NAME),
        row("group of 65", get(&format!("{base}?group={}", "g".repeat(65))), code::NAME),
        row("doubled group", read("group=h"), code::DOUBLED_PARAMETER),
        row("unknown parameter", read("batchsize=3"), code::UNKNOWN_PARAMETER),
        row("unknown reset", read("reset=middle"), code::BAD_PARAMETER),
        row("dot in owner", get(&format!("/v1/msgs/a.b/{}/v1?group=g", topic.name)), code::NAME),
        row("dot in topic", get(&format!("/v1/msgs/{}/a%2eb/v1?group=g", topic.appid)), code::NAME),
        row("bad version", get(&format!("/v1/msgs/{}/{}/x1?group=g", topic.appid, topic.name)), code::NAME),
        row("bad reader", topic.read_as("a.b", "g", ""), code::NAME),
        row("unknown topic", Topic::new(&topic.appid, "never-made", "v1").read("g", "wait=0s"), code::UNKNOWN_TOPIC),
    ];
    for batch in ["0", "-1", "4001", "1e3", "", "%31%30.", "99999999999999999999"] {
        rows.push(row("bad batch", read(&format!("batch={batch}")), code::BAD_PARAMETER));
    }
    for wait in ["-1s", "x", "1y", "31s", "99999999999999999999s"] {
        rows.push(row("bad wait", read(&format!("wait={wait}")), code::BAD_PARAMETER));
    }
    rows
}

fn subscribe_on_memory() {
    let gateway = Kateway::memory().shards(2).start();
    let topic = Topic::fresh("unread");
    gateway.publish(&topic.publish("partition=1", "still there")).expect(201);
    refuse_all(gateway.subscribe, &subscribe_rows(&topic));
    let answer = gateway.subscribe(&topic.read("g", "wait=1s")).expect(200);
    assert_eq!(answer.text(), "still there", "a refused read takes nothing");
}

fn subscribe_on_kafka() {
    let admin = kafka().admin();
    let gateway = Kateway::kafka(admin.brokers()).shards(2).start();
    let topic = Topic::fresh("unread");
    admin.create_topic(&topic.in_kafka(), 4);
    gateway.publish(&topic.publish("partition=1", "still there")).expect(201);
    refuse_all(gateway.subscribe, &subscribe_rows(&topic));
    assert_eq!(admin.members(&topic.group_in_kafka("g")), [], "a refused read joins no group");
    let answer = gateway.subscribe(&topic.read("g", "wait=20s")).expect(200);
    assert_eq!(answer.text(), "still there", "a refused read takes nothing");
}

fn refuse_all(address: std::net::SocketAddr, rows: &[Row]) {
    let mut wrong = Vec::new();
    let mut connection = None;
    for row in rows {
        let kept = match connection.take() {
            Some(kept) => kept,
            None => Connection::open(address).expect("the gateway accepts"),
        };
        // Every row is looked at before the test fails, so that one run shows the whole picture.
        match refuse(kept, row) {
            Ok(next) => connection = next,
            Err(complaint) => wrong.push(format!("{}: {complaint}", row.what)),
        }
    }
    assert!(wrong.is_empty(), "{} of {} rows:\n  {}", wrong.len(), rows.len(), wrong.join("\n  "));
}

/// Sends one row; returns the connection if it stays open.
fn refuse(mut connection: Connection, row: &Row) -> Result<Option<Connection>, String> {
    let response = connection.call(&row.request).map_err(|e| e.to_string())?;
    if response.status != row.status {
        return Err(format!("{} instead of {}: {}", response.status, row.status, response.text()));
    }
    let problem = problem::check(&response, row.status);
    if problem.code != row.code {
        return Err(format!("code {} ({}) instead of {}", problem.code, problem.slug, row.code));
    }
    Ok((!response.closes()).then_some(connection))
}

// === routes ===

fn routes_and_methods() {
    let gateway = Kateway::memory().start();
    let topic = Topic::fresh("orders");
    let publish = |request: Request| gateway.publish(&request.app(&topic.appid));
    for method in ["GET", "PUT", "DELETE", "PATCH"] {
        let answer = publish(Request::new(method, "/v1/msgs/orders/v1").body("must not be stored"));
        assert_eq!(problem::check(&answer, 405).code, code::METHOD, "{method}");
        assert_eq!(answer.header("allow"), Some("POST"), "{method}");
    }
    let target = format!("/v1/msgs/{}/orders/v1?group=g", topic.appid);
    let answer = gateway.subscribe(&Request::post(&target, "must not be stored").app(&topic.appid));
    problem::check(&answer, 405);
    assert!(answer.header("allow").is_some_and(|allow| allow.split(", ").any(|method| method == "GET")));
    let answer = gateway.manage(&Request::post("/v1/status", "x"));
    problem::check(&answer, 405);

    for target in [
        "/",
        "/v1",
        "/v1/msgs",
        "/v1/msgs/",
        "/v1/msgs/orders",
        "/v1/msgs/orders/v1/x/y/z",
        "/v2/msgs/orders/v1",
        "/alive2",
    ] {
        let answer = publish(Request::post(target, "must not be stored"));
        assert_eq!(problem::check(&answer, 404).code, code::NO_ROUTE, "{target}");
    }
    let other_role = publish(Request::get("/v1/status"));
    problem::check(&other_role, 404);
    assert_nothing_stored(&gateway, &topic);
}

// === limits ===

fn limits_are_exact() {
    let gateway = Kateway::memory().start();
    let topic = Topic::fresh("limits");
    let ok = |request: Request| gateway.publish(&request).expect(201);
    ok(topic.publish("", vec![1; BODY_MAX]));
    ok(topic.publish("", vec![1; BODY_MAX]).chunked(100_000));
    ok(topic.publish("", vec![1; 1]));
    ok(topic.publish(&format!("key={}", "%41".repeat(256)), "x"));
    ok(topic.publish("", "x").header("X-Tag", &"t".repeat(1_024)));
    ok(Topic::new(&"a".repeat(64), &"t".repeat(64), "v9999").publish("", "x"));

    ok(padded_to(&topic, 4_096));
    let over = Topic::fresh("over");
    let answer = gateway.publish(&padded_to(&over, 4_097));
    assert_eq!(problem::check(&answer, 431).code, code::HEAD_TOO_LARGE);

    let at_most = gateway.publish(&target_of(&over, 2_048));
    assert_eq!(problem::check(&at_most, 400).code, code::UNKNOWN_PARAMETER, "2,048 bytes of target are read");
    let answer = gateway.publish(&target_of(&over, 2_049));
    assert_eq!(problem::check(&answer, 414).code, code::TARGET_TOO_LONG);
    assert_nothing_stored(&gateway, &over);
}

/// A publish request whose head, from the request line to the empty line, has exactly `len` bytes.
fn padded_to(topic: &Topic, len: usize) -> Request {
    let with = |pad: usize| topic.publish("", "x").header("X-Pad", &"p".repeat(pad));
    let head_len = |request: &Request| request.bytes().len() - 1;
    let request = with(len - head_len(&with(0)));
    assert_eq!(head_len(&request), len);
    request
}

fn target_of(topic: &Topic, len: usize) -> Request {
    let target = format!("/v1/msgs/{}/v1?unknown=", topic.name);
    let pad = "p".repeat(len - target.len());
    Request::post(&format!("{target}{pad}"), "x").app(&topic.appid)
}

// === bodies ===

fn body_cut_short_on_memory() {
    body_cut_short(&Kateway::memory().start(), &Topic::fresh("cut"));
}

fn body_cut_short_on_kafka() {
    let admin = kafka().admin();
    let topic = Topic::fresh("cut");
    admin.create_topic(&topic.in_kafka(), 1);
    let gateway = Kateway::kafka(admin.brokers()).start();
    body_cut_short(&gateway, &topic);
    assert_eq!(admin.message_count(&topic.in_kafka()), 1);
}

fn body_cut_short(gateway: &Kateway, topic: &Topic) {
    let head = format!("POST /v1/msgs/cut/v1 HTTP/1.1\r\nHost: x\r\nAppid: {}\r\n", topic.appid);
    let cut = [
        format!("{head}Content-Length: 100\r\n\r\nonly this"),
        format!("{head}Content-Length: 100\r\n\r\n"),
        format!("{head}Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"),
        format!("{head}Transfer-Encoding: chunked\r\n\r\n5\r\nhel"),
        format!("{head}Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n"),
    ];
    for bytes in &cut {
        let mut stream = TcpStream::connect(gateway.publish).expect("the gateway accepts");
        stream.write_all(bytes.as_bytes()).expect("a few bytes fit");
        // Once by FIN, so that all of it is read before the end; dropping the stream would do the same here.
        stream.shutdown(Shutdown::Both).expect("the connection is open");
    }
    wait_until(Duration::from_secs(10), "the cut connections are gone", || {
        let scrape = gateway.scrape();
        let (accepted, open) = ("kateway_connections_accepted_total", "kateway_connections");
        // The scrape's own is open and on no shard.
        scrape.sum(accepted, &[]) >= 5.0 && scrape.sum(open, &[("shard", "0")]) == 0.0
    });
    assert_nothing_stored(gateway, topic);
}

/// A client that writes its whole body before it reads must still find the refusal, not a reset connection.
fn refusal_of_a_large_body_is_readable() {
    let gateway = Kateway::memory().start();
    let appid = folder::unique("app");
    for len in [BODY_MAX + 1, 900 * 1024] {
        let request = Request::post("/v1/msgs/large/v1", vec![0; len]).app(&appid);
        let mut connection = gateway.publisher();
        connection.send(&request.bytes()).unwrap_or_else(|e| panic!("{len} bytes are read and dropped: {e}"));
        let answer = connection.read_response().unwrap_or_else(|e| panic!("after {len} bytes: {e}"));
        assert_eq!(problem::check(&answer, 413).code, code::TOO_LARGE);
    }
}

/// The codes, as the gateway publishes them in its list of error codes. They are part of the contract: clients match on
/// them, so a changed number is a broken client.
mod code {
    pub const NAME: u64 = 40001;
    pub const BAD_PARAMETER: u64 = 40002;
    pub const UNKNOWN_PARAMETER: u64 = 40003;
    pub const DOUBLED_PARAMETER: u64 = 40004;
    pub const MISSING_PARAMETER: u64 = 40005;
    pub const EMPTY: u64 = 40006;
    pub const KEY_TOO_LONG: u64 = 40007;
    pub const TAG_TOO_LONG: u64 = 40008;
    pub const PARTITION_RANGE: u64 = 40009;
    pub const BAD_FIELD: u64 = 40010;
    pub const NOT_SUPPORTED: u64 = 40011;
    pub const NO_SHADOW: u64 = 40013;
    pub const NO_ROUTE: u64 = 40400;
    pub const UNKNOWN_TOPIC: u64 = 40401;
    pub const METHOD: u64 = 40500;
    pub const TOO_LARGE: u64 = 41301;
    pub const TARGET_TOO_LONG: u64 = 41400;
    pub const CONTENT_CODING: u64 = 41500;
    pub const CONTENT_TYPE: u64 = 41501;
    pub const HEAD_TOO_LARGE: u64 = 43100;
}
