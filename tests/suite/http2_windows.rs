//! What an HTTP/2 client does not take is not delivered, holds up nobody else, and is not kept for ever.
//!
//! Method: raw frames, with windows of a size of our choosing. A read whose answer does not fit its window is left standing and its
//! connection closed: the next reader must get the message. A stream that is never taken must be reset after `http.write_timeout_ms`,
//! while other streams of the connection are answered; a client that stops reading its socket must be cut.

use std::time::{Duration, Instant};

use kateway_tests::client::Connection;
use kateway_tests::h2::{
    ACK, DATA, END_HEADERS, END_STREAM, Frame, GOAWAY, HEADERS, PING, PREFACE, RST_STREAM, SETTINGS, WINDOW_UPDATE,
    frame, head, ping, read_frame,
};
use kateway_tests::kateway::Kateway;
use kateway_tests::topic::Topic;
use kateway_tests::{figures, wait_until};

use crate::Case;

pub const CASES: &[Case] = &[
    Case::new("http2_windows::what_is_not_taken_is_not_delivered", what_is_not_taken_is_not_delivered),
    Case::new("http2_windows::stuck_stream_is_reset_alone", stuck_stream_is_reset_alone),
    Case::new("http2_windows::client_that_stops_reading_is_cut", client_that_stops_reading_is_cut),
];

const SOON: Duration = Duration::from_secs(10);
const SETTINGS_INITIAL_WINDOW_SIZE: [u8; 2] = [0, 4];

/// The next frame of that kind and stream; others are passed by.
fn wait_for(connection: &mut Connection, kind: u8, stream: u32) -> Frame {
    loop {
        let frame = read_frame(connection).unwrap_or_else(|e| panic!("{e}"));
        assert!(frame.kind != GOAWAY, "the connection goes on: {:?}", String::from_utf8_lossy(&frame.payload));
        if (frame.kind, frame.stream) == (kind, stream) && (kind != PING || frame.flags == ACK) {
            return frame;
        }
    }
}

/// An HTTP/2 connection whose streams begin with that window.
fn connect(gateway: &Kateway, window_bytes: u32) -> Connection {
    let mut connection = gateway.subscriber();
    let settings = [&SETTINGS_INITIAL_WINDOW_SIZE[..], &window_bytes.to_be_bytes()].concat();
    connection.send(&[PREFACE, &frame(SETTINGS, 0, 0, &settings)].concat()).expect("sent");
    connection
}

fn read(topic: &Topic, stream: u32, query: &str) -> Vec<u8> {
    let path = format!("/v1/msgs/{}/{}/v1?{query}", topic.appid, topic.name);
    frame(HEADERS, END_STREAM | END_HEADERS, stream, &head("GET", &path, &[("appid", &topic.appid)]))
}

fn what_is_not_taken_is_not_delivered() {
    let gateway = Kateway::memory().start();
    for (window_bytes, body_bytes, query) in [
        (0, 10, ""),
        (999, 1_000, ""),
        (0, 100_000, ""),
        (50_000, 100_000, ""),
        (0, 10, "&batch=10"),
        (60_000, 60_001, "&batch=10"),
    ] {
        let what = format!("window {window_bytes}, body {body_bytes}{query}");
        let topic = Topic::fresh("windows");
        let body = vec![b'w'; body_bytes];
        gateway.publish(&topic.publish("", body.clone())).expect(201);
        let mut connection = connect(&gateway, window_bytes);
        connection.send(&read(&topic, 1, &format!("group=g&wait=5s{query}"))).expect("sent");
        wait_for(&mut connection, HEADERS, 1);
        // Whatever the gateway had to say about that answer is said by then.
        ping(&mut connection);
        ping(&mut connection);
        drop(connection);
        let again = gateway.subscribe(&topic.read("g", "wait=5s"));
        assert_eq!(again.status, 200, "{what}: the message was not taken, so it comes again");
        assert!(again.body == body, "{what}");

        // And what is taken, if late, is delivered once.
        gateway.publish(&topic.publish("", body.clone())).expect(201);
        let mut connection = connect(&gateway, window_bytes);
        connection.send(&read(&topic, 1, &format!("group=g&wait=5s{query}"))).expect("sent");
        wait_for(&mut connection, HEADERS, 1);
        ping(&mut connection);
        let more = frame(WINDOW_UPDATE, 0, 1, &200_000_u32.to_be_bytes());
        connection.send(&[more, frame(WINDOW_UPDATE, 0, 0, &200_000_u32.to_be_bytes())].concat()).expect("sent");
        while wait_for(&mut connection, DATA, 1).flags & END_STREAM == 0 {}
        ping(&mut connection);
        drop(connection);
        assert_eq!(gateway.subscribe(&topic.read("g", "wait=300ms")).status, 204, "{what}: it was delivered");
    }
}

fn stuck_stream_is_reset_alone() {
    let gateway = Kateway::memory().set("http.write_timeout_ms", 1_000).start();
    let (stuck, live) = (Topic::fresh("windows"), Topic::fresh("windows"));
    gateway.publish(&stuck.publish("", vec![b's'; 100_000])).expect(201);
    let mut connection = connect(&gateway, 20_000);
    connection.send(&read(&stuck, 1, "group=g&wait=5s")).expect("sent");
    wait_for(&mut connection, HEADERS, 1);
    let start = Instant::now();
    let (mut stream, mut reset) = (1, false);
    let mut slowest = Duration::ZERO;
    while !reset {
        assert!(start.elapsed() < SOON, "the stuck stream is never reset");
        gateway.publish(&live.publish("", "live")).expect(201);
        stream += 2;
        let asked = Instant::now();
        connection.send(&read(&live, stream, "group=g&wait=5s")).expect("sent");
        loop {
            let frame = read_frame(&mut connection).unwrap_or_else(|e| panic!("{e}"));
            reset |= (frame.kind, frame.stream) == (RST_STREAM, 1);
            if frame.stream == stream && frame.flags & END_STREAM != 0 {
                break;
            }
        }
        slowest = slowest.max(asked.elapsed());
    }
    let took = start.elapsed();
    figures::note("http2: a stuck stream is reset after (http.write_timeout_ms=1000)", format!("{took:?}"));
    figures::note("http2: slowest answer beside a stuck stream", format!("{slowest:?}"));
    assert!(took > Duration::from_millis(900) && took < Duration::from_millis(3_500), "{took:?}");
    assert!(slowest < Duration::from_millis(500), "{slowest:?}");
    ping(&mut connection);
    let again = gateway.subscribe(&stuck.read("g", "wait=5s")).expect(200);
    assert_eq!(again.body.len(), 100_000);
}

fn client_that_stops_reading_is_cut() {
    let gateway = Kateway::memory().set("http.write_timeout_ms", 1_000).start();
    let topic = Topic::fresh("windows");
    for _ in 0..40 {
        gateway.publish(&topic.publish("", vec![b'c'; 500_000])).expect(201);
    }
    let open = || gateway.scrape().sum("kateway_connections", &[("shard", "0")]);
    let mut connection = connect(&gateway, 0x7fff_ffff);
    let more = frame(WINDOW_UPDATE, 0, 0, &0x7fff_0000_u32.to_be_bytes());
    connection.send(&[more, read(&topic, 1, "group=g&wait=5s&batch=100")].concat()).expect("sent");
    connection.send(&read(&topic, 3, "group=g&wait=5s&batch=100")).expect("sent");
    let start = Instant::now();
    wait_until(SOON, "the connection is served".to_owned(), || open() >= 1.0);
    wait_until(SOON, "the connection is cut".to_owned(), || open() == 0.0);
    figures::note(
        "http2: a client that stops reading is cut after (http.write_timeout_ms=1000)",
        format!("{:?}", start.elapsed()),
    );
    drop(connection);
    gateway.subscribe(&topic.read("g", "wait=5s")).expect(200);
}
