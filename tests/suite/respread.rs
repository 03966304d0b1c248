//! Connections that have carried enough, or are old enough, are ended in a way that loses no request.
//!
//! Method: with `http.max_requests` the answer of that number says `Connection: close` and the connection ends, pipelined requests behind it
//! unanswered; over HTTP/2 a GOAWAY comes, and h2load, which opens no second connection, must have got so many answers and no error. With
//! `http.max_age_s` the first answer after the age does; connections opened together do not end together; one without a request is left
//! alone. An answer under way, however long, is not cut. A WebSocket is closed with 1001, all of its messages acknowledged.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use kateway_tests::client::{Connection, Part, Request};
use kateway_tests::kateway::Kateway;
use kateway_tests::topic::Topic;
use kateway_tests::ws::{WebSocket, handshake};
use kateway_tests::{figures, process};

use crate::Case;

pub const CASES: &[Case] = &[
    Case::new("respread::so_many_requests", so_many_requests),
    Case::new("respread::moved_connections_are_no_new_ones", moved_connections_are_no_new_ones),
    Case::new("respread::so_many_requests_over_http2", so_many_requests_over_http2),
    Case::new("respread::so_old", so_old),
    Case::new("respread::so_old_over_http2", so_old_over_http2),
    Case::new("respread::so_old_over_websocket", so_old_over_websocket),
    Case::new("respread::an_answer_under_way_goes_on", an_answer_under_way_goes_on),
];

const SOON: Duration = Duration::from_secs(10);

fn alive(connection: &mut Connection) -> bool {
    connection.call(&Request::get("/alive")).unwrap_or_else(|e| panic!("{e}")).expect(200).closes()
}

fn so_many_requests() {
    let gateway = Kateway::memory().set("http.max_requests", 3).start();
    for _ in 0..2 {
        let mut connection = gateway.publisher();
        assert_eq!([alive(&mut connection), alive(&mut connection), alive(&mut connection)], [false, false, true]);
        assert!(connection.closes_within(SOON));
    }
    let topic = Topic::fresh("counted");
    let mut pipelined = gateway.publisher();
    let requests: Vec<u8> = (0..5).flat_map(|n| topic.publish("partition=0", n.to_string()).bytes()).collect();
    pipelined.send(&requests).expect("sent");
    for n in 0..3 {
        let answer = pipelined.read_response().unwrap_or_else(|e| panic!("{e}")).expect(201);
        assert_eq!((answer.number("x-offset"), answer.closes()), (n, n == 2));
    }
    assert!(pipelined.closes_within(SOON), "the others are not answered");
    assert_eq!(gateway.scrape().sum("kateway_pub_messages_total", &[]), 3.0, "and not stored");
    let limits = &gateway.status()["limits"];
    assert_eq!(limits["requests_max_per_connection"], 3, "{limits}");
}

/// A connection that goes to the shard of its first read takes its count along.
fn moved_connections_are_no_new_ones() {
    let gateway = Kateway::memory().shards(2).set("http.max_requests", 3).start();
    let topic = Topic::fresh("moved");
    for shard in 0..2 {
        gateway.publish(&topic.publish("partition=0", "x")).expect(201);
        // It has asked once already.
        let mut connection = gateway.connection_of_shard(shard, gateway.subscribe);
        assert!(!alive(&mut connection));
        let third = connection.call(&topic.read("g", "wait=5s")).unwrap_or_else(|e| panic!("{e}")).expect(200);
        assert!(third.closes(), "shard {shard}");
    }
    assert_eq!(gateway.scrape().sum("kateway_connections_steered_total", &[]), 1.0, "one of the two moved");
}

/// What h2load says of `count` requests on one connection with `streams` of them at a time: how many were answered 2xx, and how many
/// failed in any other way than never being sent.
fn h2load(gateway: &Kateway, count: usize, streams: usize) -> (usize, String) {
    let url = format!("http://{}/alive", gateway.publish);
    let mut command = Command::new("h2load");
    command.args(["-n", &count.to_string(), "-c", "1", "-m", &streams.to_string(), &url]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let output = process::output("h2load", command, SOON * 3).expect("the tests need h2load (package nghttp2-client)");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let answered = said.lines().find_map(|line| line.strip_prefix("status codes: ")?.split(' ').next()?.parse().ok());
    (answered.unwrap_or_else(|| panic!("h2load names status codes: {said}")), said)
}

fn so_many_requests_over_http2() {
    let gateway = Kateway::memory().set("http.max_requests", 50).start();
    let (answered, said) = h2load(&gateway, 40, 4);
    assert_eq!(answered, 40, "{said}");
    for streams in [1, 10] {
        let (answered, said) = h2load(&gateway, 5_000, streams);
        // What was on its way when the GOAWAY was written is answered too.
        assert!((50..500).contains(&answered), "{answered} of one connection: {said}");
    }
}

fn so_old() {
    let gateway = Kateway::memory().set("http.max_age_s", 2).start();
    let start = Instant::now();
    let mut connections: Vec<_> = (0..16).map(|_| Some(gateway.publisher())).collect();
    let mut idle = gateway.publisher();
    let mut ends = Vec::new();
    while ends.len() < connections.len() {
        for slot in &mut connections {
            if let Some(connection) = slot
                && alive(connection)
            {
                ends.push(start.elapsed());
                assert!(connection.closes_within(SOON));
                *slot = None;
            }
        }
        assert!(start.elapsed() < SOON, "{ends:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
    figures::note("respread: 16 connections of at most 2 s ended after", format!("{ends:?}"));
    assert!(ends[0] >= Duration::from_millis(1_400), "three quarters at least: {ends:?}");
    assert!(ends[15].saturating_sub(ends[0]) > Duration::from_millis(200), "not all at once: {ends:?}");
    assert!(!idle.closes_within(Duration::from_millis(500)), "no answer, no end");
    assert!(alive(&mut idle), "its next answer is its last");
}

fn so_old_over_http2() {
    let gateway = Kateway::memory().set("http.max_age_s", 1).start();
    let mut connection = gateway.publisher();
    connection.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").expect("sent");
    let start = Instant::now();
    let went = loop {
        let head = connection.read_raw(9).unwrap_or_else(|e| panic!("{e}"));
        let len = usize::from(head[1]) << 8 | usize::from(head[2]);
        let payload = connection.read_raw(len).unwrap_or_else(|e| panic!("{e}"));
        match head[3] {
            7 => break start.elapsed(),
            // Its settings and a ping are answered, as a client does.
            4 if head[4] == 0 => connection.send(b"\0\0\0\x04\x01\0\0\0\0").expect("sent"),
            6 if head[4] == 0 => connection.send(&[b"\0\0\x08\x06\x01\0\0\0\0", &payload[..]].concat()).expect("sent"),
            _ => {}
        }
    };
    assert!(went >= Duration::from_millis(650) && went < SOON, "GOAWAY after {went:?}");
}

fn so_old_over_websocket() {
    let gateway = Kateway::memory().set("http.max_age_s", 2).start();
    let topic = Topic::fresh("old");
    gateway.publish(&topic.publish("partition=0", "x")).expect(201);
    let start = Instant::now();
    let target = format!("/v1/ws/msgs/{}/v1?partition=0", topic.name);
    let mut publisher = WebSocket::open(gateway.publish, &handshake("GET", &target).header("Appid", &topic.appid));
    let target = format!("/v1/ws/msgs/{}/{}/v1?group=g", topic.appid, topic.name);
    let mut reader = WebSocket::open(gateway.subscribe, &handshake("GET", &target).header("Appid", "reader"));
    publisher.send(2, b"one");
    publisher.acked(1, SOON);
    assert_eq!((publisher.rest(SOON).1, reader.rest(SOON).1), (1001, 1001));
    let took = start.elapsed();
    assert!(took >= Duration::from_millis(1_400) && took < SOON, "{took:?}");
}

fn an_answer_under_way_goes_on() {
    let gateway = Kateway::memory().set("http.max_age_s", 1).set("http.max_requests", 1).start();
    let topic = Topic::fresh("endless");
    let publish = |text: &str| gateway.publish(&topic.publish("partition=0", text)).expect(201);
    publish("first");
    let mut stream = gateway.subscriber();
    stream.send(&topic.read("g", "stream=1&batch=2").header("Accept", "application/x-ndjson").bytes()).expect("sent");
    assert!(stream.head().expect("a head").closes(), "its answer is the last");
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(3) {
        publish("another");
        assert!(matches!(stream.part(), Ok(Part::Chunk(_))), "it goes on");
        std::thread::sleep(Duration::from_millis(200));
    }
}
