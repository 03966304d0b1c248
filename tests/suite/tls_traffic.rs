//! What goes over TLS is what goes in cleartext: long polls, streams, large bodies, pipelining, the end of a connection, a drain.
//!
//! Method: the harness's client over TLS, on shards that do not home the group, so that reads go over the mesh (a session cannot move).
//! The end is looked at byte by byte: a connection that the gateway ends is ended by close_notify, and one that is cut is not. During a drain
//! keep-alive connections publish as fast as they can, and every answer that was promised must come.

use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use kateway_tests::client::{Connection, Failure, Part, Request};
use kateway_tests::kateway::Kateway;
use kateway_tests::tls::Authority;
use kateway_tests::topic::Topic;
use kateway_tests::{figures, wait_until};
use rustls::ClientConfig;
use rustls::version::{TLS12, TLS13};

use crate::Case;
use crate::tls::with_tls;

pub const CASES: &[Case] = &[
    Case::new("tls_traffic::reads_wait_and_stream", reads_wait_and_stream),
    Case::new("tls_traffic::large_and_many", large_and_many),
    Case::new("tls_traffic::the_end_is_said", the_end_is_said),
    Case::new("tls_traffic::a_slow_reader_is_not_cut_while_it_reads", a_slow_reader_is_not_cut_while_it_reads),
    Case::new("tls_traffic::drain_cuts_nobody", drain_cuts_nobody).alone(),
    Case::new("tls_traffic::drain_answers_what_has_begun", drain_answers_what_has_begun),
    Case::new("tls_traffic::continue_is_said", continue_is_said),
    Case::new("tls_traffic::connections_over_the_bound_are_closed", connections_over_the_bound_are_closed),
];

const SOON: Duration = Duration::from_secs(10);

struct Secured {
    gateway: Kateway,
    client: Arc<ClientConfig>,
    topic: Topic,
}

impl Secured {
    fn start(settle: impl FnOnce(kateway_tests::kateway::Builder) -> kateway_tests::kateway::Builder) -> Self {
        let authority = Authority::new();
        let gateway = settle(with_tls(Kateway::memory().shards(2), &[&authority.issue("DNS:a.test")])).start();
        Self { gateway, client: authority.client(&[&TLS12, &TLS13], &[]), topic: Topic::fresh("secured") }
    }

    fn connect(&self, role: &str) -> Connection {
        Connection::open_tls(self.gateway.address(role), &self.client, "a.test").unwrap_or_else(|e| panic!("{e}"))
    }

    fn publish(&self, body: impl Into<Vec<u8>>) {
        self.gateway.publish(&self.topic.publish("partition=0", body)).expect(201);
    }
}

fn reads_wait_and_stream() {
    let secured = Secured::start(|builder| builder);
    let Secured { gateway, topic, .. } = &secured;
    secured.publish("first");
    // So many that both shards have some; the group lives on one.
    let mut readers: Vec<Connection> = (0..8).map(|_| secured.connect("sub_tls")).collect();
    readers[0].call(&topic.read("g", "wait=5s")).expect("an answer").expect(200);
    for (n, reader) in readers.iter_mut().enumerate() {
        reader.send(&topic.read("g", "wait=20s").bytes()).expect("sent");
        wait_until(SOON, "it waits", || {
            gateway.status()["groups"].as_array().is_some_and(|groups| groups.iter().any(|group| group["waiting"] == 1))
        });
        let start = Instant::now();
        secured.publish(format!("message {n}"));
        let answer = reader.read_response().unwrap_or_else(|e| panic!("{e}")).expect(200);
        assert_eq!(answer.text(), format!("message {n}"));
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    }
    let scrape = gateway.scrape();
    assert_eq!(scrape.sum("kateway_connections_steered_total", &[]), 0.0, "a session stays where it is");
    assert!(scrape.sum("kateway_sub_forwarded_total", &[]) > 0.0, "what lives elsewhere comes over the mesh");

    let mut stream = secured.connect("sub_tls");
    let request = topic.read("g", "stream=1&batch=10").header("Accept", "application/x-ndjson");
    stream.send(&request.bytes()).expect("sent");
    for n in 0..3 {
        secured.publish(format!("streamed {n}"));
        if n == 0 {
            assert_eq!(stream.head().expect("a head").status, 200);
        }
        let Part::Chunk(line) = stream.part().expect("a part") else { panic!("the stream goes on") };
        let line: serde_json::Value = serde_json::from_slice(&line).expect("a line");
        assert_eq!(line["value"], format!("streamed {n}"));
    }
    // A long poll whose client has gone is given up.
    let mut gone = secured.connect("sub_tls");
    gone.send(&topic.read("other", "reset=newest&wait=20s").bytes()).expect("sent");
    let waits = |n: u64| {
        let status = gateway.status();
        let groups = status["groups"].as_array().cloned().unwrap_or_default();
        groups.iter().any(|group| group["group"] == topic.group_in_kafka("other") && group["waiting"] == n)
    };
    wait_until(SOON, "it waits", || waits(1));
    drop(gone);
    wait_until(SOON, "nobody waits", || waits(0));
}

fn large_and_many() {
    let secured = Secured::start(|builder| builder);
    let topic = &secured.topic;
    let mut publisher = secured.connect("pub_tls");
    let large: Vec<u8> = (0..512 * 1024_u32).map(|n| n.to_le_bytes()[0] ^ n.to_le_bytes()[1]).collect();
    publisher.call(&topic.publish("partition=0", large.clone())).expect("an answer").expect(201);
    publisher.call(&topic.publish("partition=0", large.clone()).chunked(1_000)).expect("an answer").expect(201);
    publisher.call(&topic.publish("partition=0", vec![0; 512 * 1024 + 1])).expect("an answer").expect(413);
    let mut reader = secured.connect("sub_tls");
    for _ in 0..2 {
        let answer = reader.call(&topic.read("g", "wait=5s")).expect("an answer").expect(200);
        assert!(answer.body == large, "{} bytes", answer.body.len());
    }
    // Pipelined: many requests in few records, answered in order.
    let mut publisher = secured.connect("pub_tls");
    let requests: Vec<u8> = (0..300).flat_map(|n| topic.publish("partition=1", n.to_string()).bytes()).collect();
    publisher.send(&requests).expect("sent");
    for n in 0..300 {
        assert_eq!(publisher.read_response().expect("an answer").expect(201).number("x-offset"), n);
    }
}

/// How a connection ended: by close_notify, or cut.
fn ends_well(mut connection: Connection) -> bool {
    match connection.read_to_end() {
        Ok(rest) => {
            assert!(rest.is_empty(), "{rest:?}");
            true
        }
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::UnexpectedEof, "{error}");
            false
        }
    }
}

fn the_end_is_said() {
    let secured = Secured::start(|builder| builder.set("http.idle_timeout_ms", 300));
    let mut asked = secured.connect("pub_tls");
    let answer = asked.call(&Request::get("/alive").header("Connection", "close")).expect("an answer");
    assert!(answer.expect(200).closes());
    assert!(ends_well(asked), "with the last answer");
    assert!(ends_well(secured.connect("pub_tls")), "an idle connection");
    let mut half = secured.connect("pub_tls");
    half.send(&secured.topic.publish("", "x").bytes()).expect("sent");
    half.finish();
    half.read_response().expect("a client that only says that it sends no more is answered").expect(201);
    assert!(ends_well(half), "and then told that it is over");
    let mut malformed = secured.connect("pub_tls");
    malformed.send(b"GET / HTTP/1.1\r\nHost : x\r\n\r\n").expect("sent");
    malformed.read_response().expect("an answer").expect(400);
    assert!(ends_well(malformed), "after a refusal");
}

/// The deadline of writing is for progress: a client that takes a little now and then keeps its connection.
fn a_slow_reader_is_not_cut_while_it_reads() {
    // So many that they fit no kernel's buffers; and the kernel tells of room only when a third of them is free.
    const COUNT: usize = 16;
    const BYTES: usize = 512 * 1024;
    let deadline = Duration::from_millis(2_500);
    let secured = Secured::start(|builder| builder.set("http.write_timeout_ms", deadline.as_millis()));
    for _ in 0..COUNT {
        secured.publish(vec![b'x'; BYTES]);
    }
    let mut slow = secured.connect("sub_tls");
    let read = |mode: &str| secured.topic.read("g", &format!("{mode}&ack=1&lease=100ms&wait=5s")).bytes();
    slow.send(&read("batch=16")).expect("sent");
    let start = Instant::now();
    let mut taken = 0;
    while taken < COUNT * BYTES {
        taken += slow.read_raw(64 * 1024).unwrap_or_else(|e| panic!("{taken} bytes came: {}", short(&e))).len();
        std::thread::sleep(Duration::from_millis(40));
    }
    assert!(start.elapsed() > 2 * deadline, "it was slower than the deadline: {:?}", start.elapsed());
    drop(slow);
    // One that takes nothing is cut.
    let mut stuck = secured.connect("sub_tls");
    stuck.send(&read("stream=1&batch=4")).expect("sent");
    for _ in 0..COUNT {
        secured.publish(vec![b'x'; BYTES]);
    }
    wait_until(SOON, "it is cut", || secured.gateway.scrape().sum("kateway_connections_expired_total", &[]) == 1.0);
    let ended = stuck.read_to_end().expect_err("cut in the middle, and not ended");
    assert!([ErrorKind::UnexpectedEof, ErrorKind::ConnectionReset].contains(&ended.kind()), "{ended}");
}

/// Without the megabytes that came before.
fn short(failure: &Failure) -> String {
    format!("{failure:?}").chars().take(60).collect()
}

fn drain_cuts_nobody() {
    let mut secured = Secured::start(|builder| builder.set("drain.notice_s", 1));
    let answered = AtomicUsize::new(0);
    let publish = |secured: &Secured| {
        let request = secured.topic.publish("", "x");
        loop {
            let Ok(mut connection) =
                Connection::open_tls(secured.gateway.address("pub_tls"), &secured.client, "a.test")
            else {
                return;
            };
            loop {
                let answer = connection.call(&request).unwrap_or_else(|e| panic!("a request is cut: {e}")).expect(201);
                answered.fetch_add(1, Ordering::Relaxed);
                if answer.closes() {
                    break;
                }
            }
        }
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| publish(&secured))).collect();
        wait_until(SOON, "they publish", || answered.load(Ordering::Relaxed) > 500);
        secured.gateway.signal(libc::SIGTERM);
        for thread in threads {
            thread.join().expect("no request is cut");
        }
    });
    assert_eq!(secured.gateway.wait_end(Duration::from_secs(20)).code(), Some(0));
    figures::note("drain over TLS: answers, none cut", answered.into_inner());
}

/// A request of which a part of one record is there is a request; and whose handshake was slow has not been idle.
fn drain_answers_what_has_begun() {
    let mut secured = Secured::start(|builder| builder.set("drain.notice_s", 0));
    let request = secured.topic.publish("", vec![b'x'; 3_000]);
    let halves: Vec<_> = [3, 1_500]
        .map(|sent| {
            let mut half = secured.connect("pub_tls");
            half.call(&request).expect("an answer").expect(201);
            let bytes = half.sealed(&request.bytes());
            half.send_sealed(&bytes[..sent]).expect("sent");
            (half, bytes[sent..].to_vec())
        })
        .into();
    let late = Connection::open(secured.gateway.address("pub_tls")).expect("a connection");
    let idle = secured.connect("pub_tls");
    secured.gateway.signal(libc::SIGTERM);
    assert!(ends_well(idle), "who is idle is sent away");
    // It is, until here, as old as the idle one.
    let mut late = late.upgrade(&secured.client, "a.test").unwrap_or_else(|e| panic!("{e}"));
    for (mut half, rest) in halves {
        half.send_sealed(&rest).expect("sent");
        half.read_response().unwrap_or_else(|e| panic!("{} bytes were to come: {e}", rest.len())).expect(201);
    }
    // Longer than a client may be quiet, shorter than one is new.
    std::thread::sleep(Duration::from_millis(500));
    late.call(&request).unwrap_or_else(|e| panic!("it was not asked for long: {e}")).expect(201);
    drop(late);
    assert_eq!(secured.gateway.wait_end(Duration::from_secs(20)).code(), Some(0));
}

/// A client that holds its body back until it is asked for it.
fn continue_is_said() {
    let secured = Secured::start(|builder| builder);
    for request in [secured.topic.publish("", "x"), secured.topic.publish("", "x").chunked(1)] {
        let mut connection = secured.connect("pub_tls");
        let bytes = request.header("Expect", "100-continue").bytes();
        let head = bytes.windows(4).position(|end| end == b"\r\n\r\n").expect("a head") + 4;
        connection.send(&bytes[..head]).expect("sent");
        let asked = b"HTTP/1.1 100 Continue\r\n\r\n";
        assert_eq!(connection.read_raw(asked.len()).expect("it is asked for"), asked);
        connection.send(&bytes[head..]).expect("sent");
        connection.read_response().expect("an answer").expect(201);
    }
}

fn connections_over_the_bound_are_closed() {
    let secured = Secured::start(|builder| builder.shards(1).set("http.connections_max", 3));
    let kept: Vec<Connection> = (0..3).map(|_| secured.connect("pub_tls")).collect();
    let over = Connection::open_tls(secured.gateway.address("pub_tls"), &secured.client, "a.test");
    assert!(matches!(over, Err(Failure::Connect(_))), "no handshake is made only to refuse");
    assert_eq!(secured.gateway.scrape().sum("kateway_connections_refused_total", &[]), 1.0);
    drop(kept);
    wait_until(SOON, "there is room again", || {
        Connection::open_tls(secured.gateway.address("pub_tls"), &secured.client, "a.test").is_ok()
    });
}
