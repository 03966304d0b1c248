//! Each deadline of a connection has its own answer and its own counter, over HTTP/1.1 and over HTTP/2.
//!
//! Method: deadlines are set to a second or less. A client is slow in one way at a time: it must get the 408 of that way, or be closed
//! where there is nothing to answer, and the counter of that kind alone must move. A body that comes steadily, faster than the floor, is
//! taken however long it takes, until the bound on the whole.

use std::time::{Duration, Instant};

use kateway_tests::client::{Connection, Failure};
use kateway_tests::h2::{self, DATA, END_HEADERS, END_STREAM, HEADERS, frame, read_frame};
use kateway_tests::kateway::Kateway;
use kateway_tests::topic::Topic;
use kateway_tests::{frames, problem, wait_until};

use crate::Case;

pub const CASES: &[Case] = &[
    Case::new("deadlines::bodies_have_a_floor_under_their_rate", bodies_have_a_floor_under_their_rate),
    Case::new("deadlines::bodies_of_http2_as_well", bodies_of_http2_as_well),
    Case::new("deadlines::head_idle_and_write_are_told_apart", head_idle_and_write_are_told_apart),
    Case::new("deadlines::heads_of_http2_are_not_kept_open", heads_of_http2_are_not_kept_open),
];

const SOON: Duration = Duration::from_secs(10);
const KINDS: [&str; 6] = ["idle", "head", "body", "body_rate", "write", "silent"];

/// What was counted, by kind.
fn counted(gateway: &Kateway) -> Vec<(&'static str, f64)> {
    let scrape = gateway.scrape();
    let count = |kind| (kind, scrape.sum("kateway_connections_expired_total", &[("kind", kind)]));
    KINDS.into_iter().map(count).filter(|(_, count)| *count > 0.0).collect()
}

/// How a body comes: so many bytes each tenth of a second, and what is answered.
const BODIES: [(&str, usize, usize, u64); 4] = [
    ("steady", 300, 3_000, 201),
    ("nothing", 0, 1_000, 40802),
    ("a trickle", 20, 1_000, 40802),
    ("steady, without end", 300, 100_000, 40801),
];

fn start() -> Kateway {
    let builder = Kateway::memory().set("http.body_grace_ms", 500).set("http.body_bytes_per_s_min", 1_000);
    builder.set("http.body_timeout_ms", 2_500).start()
}

/// Sends pieces until the body is over or `is_answered`.
fn feed(body_bytes: usize, piece_bytes: usize, mut send: impl FnMut(&[u8], bool) -> bool) {
    let body = vec![b'b'; body_bytes];
    let (start, mut done) = (Instant::now(), 0);
    while done < body_bytes && start.elapsed() < SOON {
        let end = (done + piece_bytes).min(body_bytes);
        if send(&body[done..end], end == body_bytes) {
            return;
        }
        done = end;
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn bodies_have_a_floor_under_their_rate() {
    let gateway = start();
    for (what, piece_bytes, body_bytes, expected) in BODIES {
        for is_chunked in [false, true] {
            let topic = Topic::fresh("paced");
            let request = topic.publish("", vec![b'b'; body_bytes]);
            let request = if is_chunked { request.chunked(body_bytes) } else { request }.bytes();
            let head = request.len() - body_bytes - if is_chunked { b"\r\n0\r\n\r\n".len() } else { 0 };
            let mut connection = gateway.publisher();
            connection.send(&request[..head]).expect("sent");
            connection.patience(Duration::from_millis(1));
            let mut early = None;
            feed(body_bytes, piece_bytes, |piece, is_last| {
                let sent = connection.send(piece).and_then(|()| {
                    if is_last && is_chunked { connection.send(&request[request.len() - 7..]) } else { Ok(()) }
                });
                if sent.is_ok()
                    && let Err(Failure::Timeout) = connection.peek()
                {
                    return false;
                }
                connection.patience(SOON);
                early = Some(connection.read_response().unwrap_or_else(|e| panic!("{what}: {e}")));
                true
            });
            connection.patience(SOON);
            let answer = early.unwrap_or_else(|| connection.read_response().unwrap_or_else(|e| panic!("{what}: {e}")));
            if expected == 201 {
                answer.expect(201);
                let stored = gateway.subscribe(&topic.read("g", "wait=5s")).expect(200);
                assert_eq!(stored.body.len(), body_bytes);
            } else {
                assert_eq!(problem::check(&answer, 408).code, expected, "{what}");
                assert!(connection.closes_within(SOON));
                assert_eq!(gateway.subscribe(&topic.read("g", "wait=0s")).status, 404, "nothing was stored");
            }
        }
    }
    assert_eq!(counted(&gateway), [("body", 2.0), ("body_rate", 4.0)]);
}

fn bodies_of_http2_as_well() {
    let gateway = start();
    for (what, piece_bytes, body_bytes, expected) in BODIES {
        let topic = Topic::fresh("paced");
        let mut connection = gateway.publisher();
        let head = h2::head("POST", &format!("/v1/msgs/{}/v1", topic.name), &[("appid", &topic.appid)]);
        connection.send(&[h2::greeting(), frame(HEADERS, END_HEADERS, 1, &head)].concat()).expect("sent");
        connection.patience(Duration::from_millis(1));
        feed(body_bytes, piece_bytes, |piece, is_last| {
            if !piece.is_empty() {
                let flags = if is_last { END_STREAM } else { 0 };
                connection.send(&frame(DATA, flags, 1, piece)).expect("the connection goes on");
            }
            loop {
                match connection.peek() {
                    // Settings and windows come at once.
                    Ok(head) if head[8] == 0 => drop(read_frame(&mut connection)),
                    Ok(_) => return true,
                    Err(_) => return false,
                }
            }
        });
        connection.patience(SOON);
        let answer = loop {
            let frame = read_frame(&mut connection).unwrap_or_else(|e| panic!("{what}: {e}"));
            if (frame.kind, frame.stream) == (DATA, 1) && !frame.payload.is_empty() {
                break frame.payload;
            }
        };
        let document: serde_json::Value = serde_json::from_slice(&answer).expect("a document");
        if expected == 201 {
            assert_eq!(document["ok"], 1, "{document}");
        } else {
            assert_eq!(problem::check_document(document, 408).code, expected, "{what}");
        }
        // The connection serves others.
        h2::ping(&mut connection);
    }
    assert_eq!(counted(&gateway), [("body", 1.0), ("body_rate", 2.0)]);
}

fn head_idle_and_write_are_told_apart() {
    let gateway = Kateway::memory().set("http.head_timeout_ms", 500).set("http.write_timeout_ms", 500).start();
    let topic = Topic::fresh("slow");
    let mut connection = gateway.publisher();
    connection.send(b"P").expect("sent");
    let start = Instant::now();
    // Each byte is progress, and buys nothing.
    while connection.peek_for(Duration::from_millis(50)).is_none() {
        assert!(start.elapsed() < SOON, "no answer");
        connection.send(b"O").expect("sent");
    }
    connection.patience(SOON);
    let answer = connection.read_response().unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(problem::check(&answer, 408).code, 40800);
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    assert_eq!(counted(&gateway), [("head", 1.0)]);

    for _ in 0..30 {
        gateway.publish(&topic.publish("", vec![b'w'; 500_000])).expect(201);
    }
    let mut stuck = gateway.subscriber();
    stuck.send(&topic.read("g", "batch=100&wait=5s").bytes()).expect("sent");
    wait_until(SOON, "a client that takes nothing is cut".to_owned(), || {
        counted(&gateway) == [("head", 1.0), ("write", 1.0)]
    });
    drop(stuck);
    let answer = gateway.subscribe(&topic.read("g", "batch=100&wait=5s")).expect(200);
    assert!(!frames::decode(&answer.body).is_empty(), "what was not taken comes again");

    let gateway = Kateway::memory().set("http.idle_timeout_ms", 300).start();
    let mut idle = [gateway.publisher(), gateway.publisher()];
    idle[1].send(&h2::greeting()).expect("sent");
    wait_until(SOON, "idle connections are closed".to_owned(), || counted(&gateway) == [("idle", 2.0)]);
    assert!(idle[0].closes_within(SOON), "without a word");
}

/// Frames of other streams and PINGs do not keep a head open that never ends.
fn heads_of_http2_are_not_kept_open() {
    let gateway = Kateway::memory().set("http.head_timeout_ms", 500).start();
    let head = h2::head("GET", "/alive", &[]);
    let headers = frame(HEADERS, END_STREAM | END_HEADERS, 1, &head);
    let begun = frame(HEADERS, END_STREAM, 1, &head);
    for (what, bytes) in [("half a frame", &headers[..headers.len() - 1]), ("no END_HEADERS", &begun[..])] {
        let before = counted(&gateway).iter().map(|(_, count)| count).sum::<f64>();
        let mut connection: Connection = gateway.publisher();
        connection.send(&[&h2::greeting(), bytes].concat()).expect("sent");
        let start = Instant::now();
        connection.patience(SOON);
        while read_frame(&mut connection).is_ok() {}
        assert!(start.elapsed() < Duration::from_secs(3), "{what}: {:?}", start.elapsed());
        assert_eq!(counted(&gateway), [("head", before + 1.0)], "{what}");
    }
    // One that takes its time, and is in time.
    let mut connection = gateway.publisher();
    connection.send(&h2::greeting()).expect("sent");
    for _ in 0..3 {
        std::thread::sleep(Duration::from_millis(400));
        h2::ping(&mut connection);
    }
    connection.send(&headers[..20]).expect("sent");
    std::thread::sleep(Duration::from_millis(100));
    connection.send(&headers[20..]).expect("sent");
    while read_frame(&mut connection).expect("the connection goes on").kind != HEADERS {}
}
