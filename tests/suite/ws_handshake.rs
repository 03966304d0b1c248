//! A WebSocket begins with a good handshake only, says which subprotocol it speaks, and lets in the pages it is told to.
//!
//! Method: each row of a table is one request on a connection of its own, as RFC 6455 section 4 has it or off by one thing; refusals are
//! problem documents, and the connection is good for a next request. What a browser says of itself by subprotocol must have its effect
//! (the topic is that app's) and appear nowhere: not in the answer, not in the log.

use kateway_tests::client::{Connection, Request};
use kateway_tests::kateway::Kateway;
use kateway_tests::topic::Topic;
use kateway_tests::ws::{Event, WebSocket, handshake};
use kateway_tests::{problem, wait_until};

use crate::Case;
use crate::stage::SOON;

pub const CASES: &[Case] = &[
    Case::new("ws_handshake::refusals", refusals),
    Case::new("ws_handshake::subprotocols_are_chosen", subprotocols_are_chosen),
    Case::new("ws_handshake::a_browser_says_who_it_is", a_browser_says_who_it_is),
    Case::new("ws_handshake::pages_of_other_origins_stay_out", pages_of_other_origins_stay_out),
    Case::new("ws_handshake::what_is_wrong_is_known_before", what_is_wrong_is_known_before),
    Case::new("ws_handshake::echo_is_off_by_default", echo_is_off_by_default),
    Case::new("ws_handshake::open_ones_are_counted", open_ones_are_counted),
];

/// A target, what of a good handshake is replaced by what, and the status and code that has.
const TABLE: &[(&str, &str, &str, u16, u64)] = &[
    ("/v1/ws/msgs/t/v1", "Upgrade: websocket\r\n", "", 426, 42600),
    ("/v1/ws/msgs/t/v1", "Upgrade: websocket\r\n", "Upgrade: h2c\r\n", 426, 42600),
    ("/v1/ws/msgs/t/v1", "Connection: Upgrade\r\n", "", 426, 42600),
    ("/v1/ws/msgs/t/v1", "Connection: Upgrade\r\n", "Connection: keep-alive\r\n", 426, 42600),
    ("/v1/ws/msgs/t/v1", "HTTP/1.1", "HTTP/1.0", 426, 42600),
    ("/v1/ws/msgs/t/v1", "Version: 13", "Version: 8", 426, 42600),
    ("/v1/ws/msgs/t/v1", "Version: 13", "Version: 13, 8", 426, 42600),
    ("/v1/ws/msgs/t/v1", "Sec-WebSocket-Version: 13\r\n", "", 400, 40010),
    ("/v1/ws/msgs/t/v1", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", "", 400, 40010),
    ("/v1/ws/msgs/t/v1", "dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25jZQ", 400, 40010),
    ("/v1/ws/msgs/t/v1", "dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZQ==", 400, 40010),
    (
        "/v1/ws/msgs/t/v1",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
        400,
        40010,
    ),
    (
        "/v1/ws/msgs/t/v1",
        "Upgrade: websocket\r\n",
        "Upgrade: websocket\r\nSec-WebSocket-Protocol: mqtt\r\n",
        400,
        40010,
    ),
    (
        "/v1/ws/msgs/t/v1",
        "Upgrade: websocket\r\n",
        // A browser offered something takes no answer without a choice.
        "Upgrade: websocket\r\nSec-WebSocket-Protocol: kateway.app.a\r\n",
        400,
        40010,
    ),
    ("/v1/ws/msgs/t/v1", "Upgrade: websocket\r\n", "Upgrade: websocket\r\nSec-WebSocket-Protocol: a b\r\n", 400, 40010),
    ("/v1/ws/msgs/t/v1?token=x", "", "", 400, 40003),
    ("/v1/ws/msgs/t/v1?batch=1", "", "", 400, 40003),
    ("/v1/ws/msgs/t/v1?acks=all", "", "", 400, 40002),
    ("/v1/ws/msgs/t/v1?ack=some", "", "", 400, 40002),
    ("/v1/ws/msgs/t/v1?partition=9", "", "", 400, 40009),
    ("/v1/ws/msgs/t.t/v1", "", "", 400, 40001),
    ("/v1/ws/msgs/t/v1", "GET", "PUT", 405, 40500),
    ("/v1/ws/msgs/a/t/v1?group=g", "GET", "POST", 405, 40500),
    ("/v1/ws/msgs/a/t/v1", "", "", 400, 40005),
    ("/v1/ws/msgs/a/t/v1?group=g&batch=0", "", "", 400, 40002),
    ("/v1/ws/msgs/a/t/v1?group=g&credit=-1", "", "", 400, 40002),
    ("/v1/ws/msgs/a/t/v1?group=g&lease=5s", "", "", 400, 40002),
    ("/v1/ws/msgs/a/t/v1?group=g&token=x", "", "", 400, 40003),
    ("/v1/ws/jobs", "", "", 404, 40400),
];

fn refusals() {
    let gateway = Kateway::memory().start();
    // Subscribers know only topics that are there.
    gateway.publish(&Topic::new("a", "t", "v1").publish("", "x")).expect(201);
    for (target, from, to, status, code) in TABLE {
        let is_sub = target.starts_with("/v1/ws/msgs/a/");
        let good = String::from_utf8(handshake("GET", target).header("Appid", "a").bytes()).expect("text");
        assert!(good.contains(from), "{from}");
        let mut connection = if is_sub { gateway.subscriber() } else { gateway.publisher() };
        connection.send(good.replacen(from, to, 1).as_bytes()).expect("it is read");
        let refusal = connection.read_response().unwrap_or_else(|e| panic!("{target} {to:?}: {e}"));
        assert_eq!((refusal.status, problem::check(&refusal, *status).code), (*status, *code), "{target} {to:?}");
        if *status == 426 {
            let fields = ["upgrade", "sec-websocket-version"].map(|name| refusal.header(name));
            assert_eq!(fields, [Some("websocket"), Some("13")]);
        }
        if !refusal.all("connection").contains(&&b"close"[..]) {
            connection.call(&Request::get("/alive")).unwrap_or_else(|e| panic!("{target} {to:?}: {e}")).expect(200);
        }
    }
    // A body would be read as frames.
    let request = handshake("POST", "/v1/ws/msgs/t/v1").body("x");
    problem::check(&gateway.publish(&request), 400);
}

fn subprotocols_are_chosen() {
    let gateway = Kateway::memory().start();
    for (offered, chosen) in [
        (None, None),
        (Some("kateway.v1.bin"), Some("kateway.v1.bin")),
        (Some("kateway.v1.json"), Some("kateway.v1.json")),
        (Some("mqtt, kateway.v1.json, kateway.v1.bin"), Some("kateway.v1.json")),
    ] {
        for method in ["GET", "POST"] {
            let mut request = handshake(method, "/v1/ws/msgs/t/v1");
            if let Some(offered) = offered {
                request = request.header("Sec-WebSocket-Protocol", offered);
            }
            let (mut ws, response) = WebSocket::try_open(gateway.publish, &request).expect("a good handshake");
            assert_eq!(response.header("sec-websocket-protocol"), chosen, "{offered:?}");
            assert!(response.header("x-request-id").is_some() && response.header("server") == Some("kateway"));
            ws.close(1000);
            assert_eq!(ws.next(SOON), Event::Close(1000, String::new()));
            assert_eq!(ws.next(SOON), Event::End);
        }
    }
}

fn a_browser_says_who_it_is() {
    let gateway = Kateway::memory().set("log.level", "trace").start();
    let topic = Topic::fresh("by-name");
    let token = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJtZSJ9.c2VjcmV0c2VjcmV0";
    let (app, token) = (format!("kateway.app.{}", topic.appid), format!("kateway.token.{token}"));
    let offer = |offered: &str| {
        let target = format!("/v1/ws/msgs/{}/{}", topic.name, topic.ver);
        handshake("GET", &target).header("Sec-WebSocket-Protocol", offered)
    };
    let all = offer(&format!("{app}, {token}, kateway.v1.bin"));
    let (mut ws, response) = WebSocket::try_open(gateway.publish, &all).expect("a good handshake");
    assert_eq!(response.header("sec-websocket-protocol"), Some("kateway.v1.bin"));
    ws.text("mine");
    ws.acked(1, SOON);
    assert_eq!(gateway.subscribe(&topic.read("g", "")).expect(200).text(), "mine", "it is in that app's topic");
    // The same said twice is no contradiction, another is.
    assert!(WebSocket::try_open(gateway.publish, &all.clone().app(&topic.appid)).is_ok());
    for request in [
        all.app("other"),
        offer("kateway.app.a, kateway.app.b, kateway.v1.bin"),
        offer("kateway.app., kateway.v1.bin"),
        offer("kateway.app.a.b, kateway.v1.bin"),
    ] {
        let Err(refusal) = WebSocket::try_open(gateway.publish, &request) else { panic!("{request:?}") };
        problem::check(&refusal, 400);
        assert!(!refusal.text().contains("c2VjcmV0"));
    }
    assert!(!gateway.log().contains("c2VjcmV0"), "a token is never logged");
}

fn pages_of_other_origins_stay_out() {
    let open = |gateway: &Kateway, origin: &[&str]| {
        let mut request = handshake("GET", "/v1/ws/msgs/t/v1");
        for origin in origin {
            request = request.header("Origin", origin);
        }
        match WebSocket::try_open(gateway.publish, &request) {
            Ok(_) => 101,
            Err(refusal) => problem::check(&refusal, refusal.status).code,
        }
    };
    let strict = Kateway::memory().start();
    assert_eq!(open(&strict, &[]), 101, "what is no browser has no origin");
    // The tests' Host is `kateway`.
    for (origin, code) in [
        ("http://kateway", 101),
        ("https://KATEWAY:443", 101),
        ("http://kateway:8080", 40301),
        ("https://app.example.org", 40301),
        ("null", 40301),
    ] {
        assert_eq!(open(&strict, &[origin]), code, "{origin}");
    }
    let named = Kateway::memory().set("http.origins", "https://app.example.org,http://localhost:3000").start();
    for (origin, code) in [
        ("https://app.example.org", 101),
        ("HTTPS://App.Example.ORG", 101),
        ("http://localhost:3000", 101),
        ("https://app.example.org.evil", 40301),
        ("http://app.example.org", 40301),
    ] {
        assert_eq!(open(&named, &[origin]), code, "{origin}");
    }
    assert_eq!(open(&named, &["https://app.example.org", "https://evil.example"]), 40301, "two origins are none");
    let open_to_all = Kateway::memory().set("http.origins", "*").start();
    assert_eq!(open(&open_to_all, &["https://evil.example"]), 101);
}

fn what_is_wrong_is_known_before() {
    let gateway = Kateway::memory().start();
    let request = handshake("GET", "/v1/ws/msgs/a/missing/v1?group=g");
    let refusal = WebSocket::try_open(gateway.subscribe, &request).err().expect("no such topic");
    assert_eq!(problem::check(&refusal, 404).code, 40401);
    // A group is read by one filter.
    let topic = Topic::fresh("filtered");
    gateway.publish(&topic.publish("", "x")).expect(201);
    let target = format!("/v1/ws/msgs/{}?group=g", topic.path());
    let request = handshake("GET", &target).app(&topic.appid);
    let _reading = WebSocket::open(gateway.subscribe, &request);
    let refusal = WebSocket::try_open(gateway.subscribe, &request.header("X-Tag", "a")).err().expect("another filter");
    assert_eq!(problem::check(&refusal, 409).code, 40900);
}

fn echo_is_off_by_default() {
    let request = handshake("GET", "/v1/ws/_echo");
    let off = Kateway::memory().start();
    let refusal = WebSocket::try_open(off.manage, &request).err().expect("it is off");
    problem::check(&refusal, 404);
    let on = Kateway::memory().set("http.ws_echo", true).start();
    let mut ws = WebSocket::open(on.manage, &request);
    ws.text("h\u{e4}ll\u{f6}");
    assert_eq!(ws.next(SOON), Event::Text("h\u{e4}ll\u{f6}".into()));
    ws.send(kateway_tests::ws::BINARY, &vec![0xff; 70_000]);
    assert_eq!(ws.next(SOON), Event::Binary(vec![0xff; 70_000]));
    let refusal = WebSocket::try_open(on.publish, &request).err().expect("it is the manage role's");
    problem::check(&refusal, 404);
}

fn open_ones_are_counted() {
    let gateway = Kateway::memory().start();
    let open = || gateway.status()["totals"]["kateway_ws_connections"].as_u64();
    let mut sockets: Vec<_> =
        (0..5).map(|_| WebSocket::open(gateway.publish, &handshake("GET", "/v1/ws/msgs/t/v1"))).collect();
    assert_eq!(open(), Some(5));
    assert!((gateway.scrape().sum("kateway_ws_connections", &[]) - 5.0).abs() < 0.1);
    let fds = gateway.open_fds();
    sockets.truncate(2);
    wait_until(SOON, "those that were dropped are not counted", || open() == Some(2));
    // Many that come and go leave nothing behind.
    for _ in 0..200 {
        drop(WebSocket::open(gateway.publish, &handshake("GET", "/v1/ws/msgs/t/v1")));
    }
    wait_until(SOON, "all have gone", || open() == Some(2) && gateway.open_fds() <= fds - 3);
    let mut connection = Connection::open(gateway.publish).expect("it accepts");
    connection.call(&Request::get("/alive")).unwrap_or_else(|e| panic!("{e}")).expect(200);
}
