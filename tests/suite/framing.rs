//! What is not well-formed HTTP/1.1 is refused and the connection closed.
//!
//! Two parsers that disagree about where a request ends let one client speak for another (request smuggling), so the
//! gateway takes RFC 9112 at its strictest. Method: each row is sent byte for byte on a connection of its own, followed
//! by a complete second request; the gateway must answer once, 400 as a problem document, close, and store neither.
//! Where the RFC allows a form, the row expects 201.

use std::time::Duration;

use kateway_tests::client::Connection;
use kateway_tests::kateway::Kateway;
use kateway_tests::topic::Topic;
use kateway_tests::{frames, problem};

use crate::Case;

pub const CASES: &[Case] = &[
    Case::new("framing::malformed_requests_are_refused_and_closed", malformed_requests_are_refused_and_closed),
    Case::new("framing::other_protocols_are_closed_without_an_answer", other_protocols_are_closed_without_an_answer),
    Case::new("framing::unusual_but_legal_requests_work", unusual_but_legal_requests_work),
    Case::new("framing::a_slow_head_is_waited_for", a_slow_head_is_waited_for),
];

/// `{H}` is Host and Appid, each with its line end.
const MALFORMED: &[(&str, &str)] = &[
    (
        "length and chunked",
        "POST /v1/msgs/t/v1 HTTP/1.1\r\n{H}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    ),
    (
        "chunked and length",
        "POST /v1/msgs/t/v1 HTTP/1.1\r\n{H}Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    ),
    ("two lengths", "POST /v1/msgs/t/v1 HTTP/1.1\r\n{H}Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!"),
    ("the same length twice", "POST /v1/msgs/t/v1 HTTP/1.1\r\n{H}Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello"),
    ("length as a list", "POST /v1/msgs/t/v1 HTTP/1.1\r\n{H}Content-Length: 5, 5\r\n\r\nhello"),
    ("negative length", "POST /v1/msgs/t/v1 HTTP/1.1\r\n{H}Content-Length: -5\r\n\r\nhello"),
    ("length with a plus", "POST /v1/msgs/t/v1 HTTP/1.1\r\n{H}Content-Length: +5\r\n\r\nhello"),
    ("length in hex", "POST /v1/msgs/t/v1 HTTP/1.1\r\n{H}Content-Length: 0x5\r\n\r\nhello"),
    ("length beyond u64", "POST /v1/msgs/t/v1 HTTP/1.1\r\n{H}Content-Length: 18446744073709551621\r\n\r\nhello"),
    ("empty length", "POST /v1/msgs/t/v1 HTTP/1.1\r\n{H}Content-Length:\r\n\r\nhello"),
    ("gzip as transfer coding", "POST /v1/msgs/t/v1 HTTP/1.1\r\n{H}Transfer-Encoding: gzip\r\n\r\nhello"),
    (
        "gzip then chunked",
        "POST /v1/msgs/t/v1 HTTP/1.1\r\n{H}Transfer-Encoding: gzip, chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    ),
    (
        "chunked twice",
        "POST /v1/msgs/t/v1 HTTP/1.1\r\n{H}Transfer-Encoding: chunked, chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    ),
    (
        "chunked then identity",
        "POST /v1/msgs/t/v1 HTTP/1.1\r\n{H}Transfer-Encoding: chunked, identity\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    ),
    (
        "two transfer codings",
        "POST /v1/msgs/t/v1 HTTP/1.1\r\n{H}Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    ),
    ("coding misspelt", "POST /v1/msgs/t/v1 HTTP/1.1\r\n{H}Transfer-Encoding: xchunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"),
    (
        "coding after vertical tab",
        "POST /v1/msgs/t/v1 HTTP/1.1\r\n{H}Transfer-Encoding: \x0bchunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    ),
    (
        "chunk size no hex",
        "POST /v1/msgs/t/v1 HTTP/1.1\r\n{H}Transfer-Encoding: chunked\r\n\r\nxyz\r\nhello\r\n0\r\n\r\n",
    ),
    (
        "negative chunk size",
        "POST /v1/msgs/t/v1 HTTP/1.1\r\n{H}Transfer-Encoding: chunked\r\n\r\n-5\r\nhello\r\n0\r\n\r\n",
    ),
    (
        "chunk size with 0x",
        "POST /v1/msgs/t/v1 HTTP/1.1\r\n{H}Transfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n",
    ),
    ("empty chunk size", "POST /v1/msgs/t/v1 HTTP/1.1\r\n{H}Transfer-Encoding: chunked\r\n\r\n\r\nhello\r\n0\r\n\r\n"),
    (
        "chunk size beyond u64",
        "POST /v1/msgs/t/v1 HTTP/1.1\r\n{H}Transfer-Encoding: chunked\r\n\r\n10000000000000005\r\nhello\r\n0\r\n\r\n",
    ),
    (
        "chunk longer than said",
        "POST /v1/msgs/t/v1 HTTP/1.1\r\n{H}Transfer-Encoding: chunked\r\n\r\n4\r\nhello\r\n0\r\n\r\n",
    ),
    (
        "chunk line ends in bare LF",
        "POST /v1/msgs/t/v1 HTTP/1.1\r\n{H}Transfer-Encoding: chunked\r\n\r\n5\nhello\r\n0\r\n\r\n",
    ),
    ("bare LF after request line", "POST /v1/msgs/t/v1 HTTP/1.1\n{H}Content-Length: 5\r\n\r\nhello"),
    ("bare LF after a header", "POST /v1/msgs/t/v1 HTTP/1.1\r\n{H}Content-Length: 5\n\r\nhello"),
    ("head ends in bare LF", "POST /v1/msgs/t/v1 HTTP/1.1\r\n{H}Content-Length: 5\r\n\nhello"),
    ("bare CR in a value", "POST /v1/msgs/t/v1 HTTP/1.1\r\n{H}X-Tag: a\rb\r\nContent-Length: 5\r\n\r\nhello"),
    ("folded header", "POST /v1/msgs/t/v1 HTTP/1.1\r\n{H}X-Tag: a\r\n b\r\nContent-Length: 5\r\n\r\nhello"),
    (
        "leading space before the first header",
        "POST /v1/msgs/t/v1 HTTP/1.1\r\n X-Tag: a\r\n{H}Content-Length: 5\r\n\r\nhello",
    ),
    ("space before colon", "POST /v1/msgs/t/v1 HTTP/1.1\r\n{H}Content-Length : 5\r\n\r\nhello"),
    ("space in header name", "POST /v1/msgs/t/v1 HTTP/1.1\r\n{H}X Tag: a\r\nContent-Length: 5\r\n\r\nhello"),
    ("header without colon", "POST /v1/msgs/t/v1 HTTP/1.1\r\n{H}X-Tag\r\nContent-Length: 5\r\n\r\nhello"),
    ("header without name", "POST /v1/msgs/t/v1 HTTP/1.1\r\n{H}: a\r\nContent-Length: 5\r\n\r\nhello"),
    ("NUL in a value", "POST /v1/msgs/t/v1 HTTP/1.1\r\n{H}X-Tag: a\0b\r\nContent-Length: 5\r\n\r\nhello"),
    ("NUL in a name", "POST /v1/msgs/t/v1 HTTP/1.1\r\n{H}X-T\0g: a\r\nContent-Length: 5\r\n\r\nhello"),
    ("NUL in the target", "POST /v1/msgs/t\0/v1 HTTP/1.1\r\n{H}Content-Length: 5\r\n\r\nhello"),
    ("raw CJK in the target", "POST /v1/msgs/日/v1 HTTP/1.1\r\n{H}Content-Length: 5\r\n\r\nhello"),
    ("space in the target", "POST /v1/msgs/t /v1 HTTP/1.1\r\n{H}Content-Length: 5\r\n\r\nhello"),
    ("two spaces in the request line", "POST  /v1/msgs/t/v1 HTTP/1.1\r\n{H}Content-Length: 5\r\n\r\nhello"),
    ("tab in the request line", "POST\t/v1/msgs/t/v1 HTTP/1.1\r\n{H}Content-Length: 5\r\n\r\nhello"),
    ("version of the future", "POST /v1/msgs/t/v1 HTTP/1.2\r\n{H}Content-Length: 5\r\n\r\nhello"),
    ("method with brackets", "PO(ST /v1/msgs/t/v1 HTTP/1.1\r\n{H}Content-Length: 5\r\n\r\nhello"),
    ("no Host", "POST /v1/msgs/t/v1 HTTP/1.1\r\nAppid: {A}\r\nContent-Length: 5\r\n\r\nhello"),
    ("two Hosts", "POST /v1/msgs/t/v1 HTTP/1.1\r\nHost: other\r\n{H}Content-Length: 5\r\n\r\nhello"),
    (
        "chunked in HTTP/1.0",
        "POST /v1/msgs/t/v1 HTTP/1.0\r\n{H}Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    ),
    ("fragment in the target", "POST /v1/msgs/t/v1#x HTTP/1.1\r\n{H}Content-Length: 5\r\n\r\nhello"),
    ("Host is no host", "POST /v1/msgs/t/v1 HTTP/1.1\r\nHost: a/b\r\nContent-Length: 5\r\n\r\nhello"),
    ("absolute target without host", "POST http:///v1/msgs/t/v1 HTTP/1.1\r\n{H}Content-Length: 5\r\n\r\nhello"),
    ("absolute target with user", "POST http://a@b/v1/msgs/t/v1 HTTP/1.1\r\n{H}Content-Length: 5\r\n\r\nhello"),
    (
        "bare CR in a chunk extension",
        "POST /v1/msgs/t/v1 HTTP/1.1\r\n{H}Transfer-Encoding: chunked\r\n\r\n5;a\rb\r\nhello\r\n0\r\n\r\n",
    ),
    (
        "chunk extension without name",
        "POST /v1/msgs/t/v1 HTTP/1.1\r\n{H}Transfer-Encoding: chunked\r\n\r\n5;\r\nhello\r\n0\r\n\r\n",
    ),
    (
        "length as a trailer",
        "POST /v1/msgs/t/v1 HTTP/1.1\r\n{H}Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nContent-Length: 5\r\n\r\n",
    ),
    (
        "trailer that is no field",
        "POST /v1/msgs/t/v1 HTTP/1.1\r\n{H}Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nnothing\r\n\r\n",
    ),
    ("target without slash", "POST v1/msgs/t/v1 HTTP/1.1\r\n{H}Content-Length: 5\r\n\r\nhello"),
];

/// First lines of other protocols; an answer would be noise to whoever sent them.
const FOREIGN: &[(&str, &[u8])] = &[
    ("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
    ("TLS with a line end in it", b"\x16\x03\x01\x02\x00\x01\n"),
    ("SSH", b"SSH-2.0-OpenSSH_9.2p1\r\n"),
    ("HTTP/0.9", b"GET /v1/msgs/t/v1\r\n"),
    ("version in lower case", b"POST /v1/msgs/t/v1 http/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello"),
    ("HTTP/2 in a request line", b"GET / HTTP/2.0\r\nHost: a\r\n\r\n"),
    ("half a preface", b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n"),
    ("SMTP", b"EHLO example.org\r\n"),
];

fn other_protocols_are_closed_without_an_answer() {
    let gateway = Kateway::memory().start();
    for (what, bytes) in FOREIGN {
        let mut connection = gateway.publisher();
        connection.send(bytes).expect("sent");
        assert!(connection.closes_within(Duration::from_secs(5)), "{what}");
    }
    let malformed = gateway.scrape().sum("kateway_requests_malformed_total", &[]);
    assert_eq!(malformed, f64::from(u32::try_from(FOREIGN.len()).expect("a few")));
}

fn malformed_requests_are_refused_and_closed() {
    let gateway = Kateway::memory().start();
    let topic = Topic::fresh("t");
    let wrong: Vec<String> = MALFORMED
        .iter()
        .filter_map(|(what, text)| {
            let mut connection = gateway.publisher();
            refused(&mut connection, &fill(text, &topic)).err().map(|complaint| format!("{what}: {complaint}"))
        })
        .collect();
    assert!(wrong.is_empty(), "{} of {} rows:\n  {}", wrong.len(), MALFORMED.len(), wrong.join("\n  "));
    assert_nothing_stored(&gateway, &topic);
}

fn fill(text: &str, topic: &Topic) -> String {
    text.replace("{H}", &format!("Host: kateway\r\nAppid: {}\r\n", topic.appid)).replace("{A}", &topic.appid)
}

fn refused(connection: &mut Connection, first: &str) -> Result<(), String> {
    let second = "POST /v1/msgs/t/v1 HTTP/1.1\r\nHost: kateway\r\nContent-Length: 8\r\n\r\nsmuggled";
    connection.patience(Duration::from_secs(5));
    connection.send(format!("{first}{second}").as_bytes()).map_err(|e| e.to_string())?;
    let answer = connection.read_response().map_err(|e| format!("no answer: {e}"))?;
    if answer.status != 400 {
        return Err(format!("{} instead of 400: {}", answer.status, answer.text()));
    }
    problem::check(&answer, 400);
    if !connection.closes_within(Duration::from_secs(5)) {
        return Err("the connection stays open, or a second answer came".into());
    }
    Ok(())
}

fn assert_nothing_stored(gateway: &Kateway, topic: &Topic) {
    gateway.publish(&topic.publish("partition=0", "sentinel")).expect(201);
    let answer = gateway.subscribe(&topic.read("g", "batch=100&wait=1s&linger=200ms")).expect(200);
    let stored: Vec<_> = frames::decode(&answer.body).into_iter().map(|frame| frame.payload).collect();
    assert_eq!(stored, [b"sentinel"], "nothing but the sentinel is stored");
    let smuggled = Topic::new("default", "t", "v1");
    let answer = gateway.subscribe(&smuggled.read("g", "wait=0s"));
    assert_eq!(answer.status, 404, "the second request never ran, so its topic does not exist: {}", answer.text());
}

/// Legal by RFC 9112, and seen in the wild.
const LEGAL: &[(&str, &str)] = &[
    (
        "chunk sizes in upper case",
        "POST /v1/msgs/t/v1 HTTP/1.1\r\n{H}Transfer-Encoding: chunked\r\n\r\nA\r\n0123456789\r\n0\r\n\r\n",
    ),
    (
        "leading zeros in chunk size",
        "POST /v1/msgs/t/v1 HTTP/1.1\r\n{H}Transfer-Encoding: chunked\r\n\r\n0005\r\nhello\r\n000\r\n\r\n",
    ),
    (
        "chunk extension",
        "POST /v1/msgs/t/v1 HTTP/1.1\r\n{H}Transfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\n\r\n",
    ),
    (
        "trailers",
        "POST /v1/msgs/t/v1 HTTP/1.1\r\n{H}Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX-A: b\r\n\r\n",
    ),
    (
        "coding in upper case",
        "POST /v1/msgs/t/v1 HTTP/1.1\r\n{H}Transfer-Encoding: Chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    ),
    ("header names in any case", "POST /v1/msgs/t/v1 HTTP/1.1\r\n{H}cOnTeNt-LeNgTh: 5\r\n\r\nhello"),
    ("no space after colon", "POST /v1/msgs/t/v1 HTTP/1.1\r\n{H}Content-Length:5\r\n\r\nhello"),
    ("blanks around a value", "POST /v1/msgs/t/v1 HTTP/1.1\r\n{H}Content-Length: \t 5 \t\r\n\r\nhello"),
    ("empty line before the request", "\r\nPOST /v1/msgs/t/v1 HTTP/1.1\r\n{H}Content-Length: 5\r\n\r\nhello"),
    ("absolute target", "POST http://kateway/v1/msgs/t/v1 HTTP/1.1\r\n{H}Content-Length: 5\r\n\r\nhello"),
    ("HTTP/1.0", "POST /v1/msgs/t/v1 HTTP/1.0\r\n{H}Content-Length: 5\r\n\r\nhello"),
    ("empty query", "POST /v1/msgs/t/v1? HTTP/1.1\r\n{H}Content-Length: 5\r\n\r\nhello"),
];

fn unusual_but_legal_requests_work() {
    let gateway = Kateway::memory().start();
    let topic = Topic::fresh("t");
    for (what, text) in LEGAL {
        let mut connection = gateway.publisher();
        connection.patience(Duration::from_secs(5));
        connection.send(fill(text, &topic).as_bytes()).unwrap_or_else(|e| panic!("{what}: {e}"));
        let answer = connection.read_response().unwrap_or_else(|e| panic!("{what}: {e}"));
        assert_eq!(answer.status, 201, "{what}: {}", answer.text());
        if text.contains("HTTP/1.0") {
            assert!(connection.closes_within(Duration::from_secs(5)), "HTTP/1.0 closes after one answer");
        }
    }
    // A method is case-sensitive: `post` is a method, only not one we know.
    let mut connection = gateway.publisher();
    connection
        .send(fill("post /v1/msgs/t/v1 HTTP/1.1\r\n{H}Content-Length: 5\r\n\r\nhello", &topic).as_bytes())
        .expect("sent");
    let answer = connection.read_response().expect("an answer");
    assert!([400, 405, 501].contains(&answer.status), "{}", answer.status);
    // Two slashes are an empty name, not one slash.
    let answer = gateway.publish(&kateway_tests::client::Request::post("//v1/msgs/t/v1", "x").app(&topic.appid));
    assert_eq!(answer.status, 404, "{}", answer.text());
}

fn a_slow_head_is_waited_for() {
    let gateway = Kateway::memory().start();
    let topic = Topic::fresh("slow");
    let mut connection = gateway.publisher();
    for byte in topic.publish("key=k", "slowly").bytes() {
        connection.send(&[byte]).expect("the gateway keeps reading");
    }
    connection.read_response().expect("an answer").expect(201);
    let answer = gateway.subscribe(&topic.read("g", "wait=1s")).expect(200);
    assert_eq!(answer.text(), "slowly");
}
