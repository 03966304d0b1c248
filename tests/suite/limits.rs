//! Every bound refuses with an answer, and what was refused can come back later.
//!
//! Method: a gateway whose bound is set to a handful is filled up to it by clients that stay; the next one must get 503
//! or 429 as a complete problem with `Retry-After`, and after one of the others left it must be served. Slow clients
//! are cut by their own deadlines, with an answer where they can still read one.

use std::time::{Duration, Instant};

use kateway_tests::client::{Connection, Failure, Request, Response};
use kateway_tests::kateway::Kateway;
use kateway_tests::topic::Topic;
use kateway_tests::{problem, wait_until};

use crate::Case;

pub const CASES: &[Case] = &[
    Case::new("limits::connections", connections),
    Case::new("limits::publishes_in_flight", publishes_in_flight),
    Case::new("limits::readers_of_a_group", readers_of_a_group),
    Case::new("limits::groups", groups),
    Case::new("limits::groups_of_each_shard", groups_of_each_shard),
    Case::new("limits::slow_head_and_slow_body", slow_head_and_slow_body),
    Case::new("limits::idle_connections_are_closed", idle_connections_are_closed),
    Case::new("limits::message_size_is_configurable", message_size_is_configurable),
    Case::new("limits::manage_answers_at_the_connection_limit", manage_answers_at_the_connection_limit),
];

fn connections() {
    let gateway = Kateway::memory().set("http.connections_max", 10).start();
    let topic = Topic::fresh("limited");
    let mut kept = full(&gateway, &topic);
    let mut refused = gateway.publisher();
    let answer = refused.read_response().unwrap_or_else(|e| panic!("an answer without a request: {e}"));
    assert_eq!(problem::check(&answer, 503).code, 50303);
    assert!(answer.closes() && refused.closes_within(Duration::from_secs(5)));
    for connection in &mut kept {
        connection.call(&topic.publish("", "still served")).unwrap_or_else(|e| panic!("{e}")).expect(201);
    }
    kept.truncate(5);
    wait_until(Duration::from_secs(5), "there is room again", || served(&gateway, &topic));
}

/// Opens connections, each proven by a request, until one is refused.
fn full(gateway: &Kateway, topic: &Topic) -> Vec<Connection> {
    let mut kept = Vec::new();
    while kept.len() < 100 {
        let mut connection = gateway.publisher();
        match connection.call(&topic.publish("", "x")) {
            Ok(Response { status: 201, .. }) => kept.push(connection),
            _ => break,
        }
    }
    // What the listeners of the other roles hold counts as well, so it may be fewer than the bound.
    assert!((5..=10).contains(&kept.len()), "{} connections were taken", kept.len());
    kept
}

fn served(gateway: &Kateway, topic: &Topic) -> bool {
    matches!(gateway.publisher().call(&topic.publish("", "x")), Ok(Response { status: 201, .. }))
}

fn manage_answers_at_the_connection_limit() {
    let gateway = Kateway::memory().set("http.connections_max", 10).start();
    let _kept = full(&gateway, &Topic::fresh("limited"));
    gateway.manage(&Request::get("/alive")).expect(200);
    gateway.manage(&Request::get("/readyz")).expect(200);
    assert!(gateway.scrape().sum("kateway_connections_refused_total", &[]) > 0.0);
}

/// The null store answers late on purpose, so publishes pile up.
fn publishes_in_flight() {
    let gateway = Kateway::null().set("pub.inflight_max", 4).set("null.delay_us", 1_000_000).start();
    let topic = Topic::fresh("limited");
    let mut clients: Vec<Connection> = (0..4).map(|_| gateway.publisher()).collect();
    for client in &mut clients {
        client.send(&topic.publish("", "x").bytes()).expect("sent");
    }
    wait_until(Duration::from_secs(1), "four publishes are in flight", || {
        gateway.scrape().sum("kateway_pub_inflight", &[]) >= 4.0
    });
    let answer = gateway.publish(&topic.publish("", "x"));
    assert_eq!(problem::check(&answer, 429).code, 42900);
    for client in &mut clients {
        client.read_response().unwrap_or_else(|e| panic!("{e}")).expect(201);
    }
    gateway.publish(&topic.publish("", "x")).expect(201);
}

fn readers_of_a_group() {
    let gateway = Kateway::memory().set("sub.waiters_max", 3).start();
    let topic = Topic::fresh("limited");
    gateway.publish(&topic.publish("", "x")).expect(201);
    gateway.subscribe(&topic.read("g", "wait=5s")).expect(200);
    let mut waiting: Vec<Connection> = (0..3).map(|_| gateway.subscriber()).collect();
    for client in &mut waiting {
        client.send(&topic.read("g", "wait=2s").bytes()).expect("sent");
    }
    wait_until(Duration::from_secs(2), "three reads wait", || {
        gateway.status()["groups"].as_array().is_some_and(|groups| groups.iter().any(|group| group["waiting"] == 3))
    });
    let answer = gateway.subscribe(&topic.read("g", "wait=2s"));
    assert_eq!(problem::check(&answer, 429).code, 42901);
    gateway.subscribe(&topic.read("another", "wait=2s")).expect(200);
    for client in &mut waiting {
        client.read_response().unwrap_or_else(|e| panic!("{e}")).expect(204);
    }
}

fn groups() {
    let gateway = Kateway::memory().set("sub.groups_max", 3).set("sub.group_idle_s", 1).start();
    let topic = Topic::fresh("limited");
    gateway.publish(&topic.publish("", "x")).expect(201);
    for group in ["a", "b", "c"] {
        gateway.subscribe(&topic.read(group, "wait=2s")).expect(200);
    }
    let answer = gateway.subscribe(&topic.read("d", "wait=0s"));
    assert_eq!(problem::check(&answer, 429).code, 42902);
    wait_until(Duration::from_secs(10), "idle groups are left and there is room", || {
        gateway.subscribe(&topic.read("d", "wait=0s")).status != 429
    });
}

/// Each shard takes its part, whichever comes first.
fn groups_of_each_shard() {
    let gateway = Kateway::memory().shards(2).set("sub.groups_max", 4).start();
    let topic = Topic::fresh("limited");
    gateway.publish(&topic.publish("", "x")).expect(201);
    let answers = (0..24).map(|n| gateway.subscribe(&topic.read(&format!("g{n}"), "wait=2s")));
    let (served, refused): (Vec<_>, Vec<_>) = answers.partition(|answer| answer.status == 200);
    for answer in &refused {
        assert_eq!(problem::check(answer, 429).code, 42902);
    }
    assert_eq!((served.len(), refused.len()), (4, 20));
    for shard in ["0", "1"] {
        assert_eq!(gateway.scrape().sum("kateway_sub_groups", &[("shard", shard)]), 2.0, "shard {shard}");
    }
}

fn slow_head_and_slow_body() {
    let builder = Kateway::memory().set("http.head_timeout_ms", 500).set("http.body_timeout_ms", 500);
    let gateway = builder.start();
    let topic = Topic::fresh("slow");
    let request = topic.publish("", "a body that does not come").bytes();
    let body_at = request.len() - "a body that does not come".len();
    for (sent, code) in [(20, 40800), (body_at, 40801), (body_at + 5, 40801)] {
        let mut connection = gateway.publisher();
        let start = Instant::now();
        connection.send(&request[..sent]).expect("sent");
        let answer = connection.read_response().unwrap_or_else(|e| panic!("after {sent} bytes: {e}"));
        assert_eq!(problem::check(&answer, 408).code, code);
        let took = start.elapsed();
        assert!(took > Duration::from_millis(400) && took < Duration::from_secs(4), "{took:?} after {sent} bytes");
        assert!(connection.closes_within(Duration::from_secs(5)));
    }
}

fn idle_connections_are_closed() {
    let gateway = Kateway::memory().set("http.idle_timeout_ms", 500).start();
    let topic = Topic::fresh("idle");
    let mut used = gateway.publisher();
    used.call(&topic.publish("", "x")).unwrap_or_else(|e| panic!("{e}")).expect(201);
    let mut fresh = gateway.publisher();
    for (what, connection) in [("used", &mut used), ("fresh", &mut fresh)] {
        connection.patience(Duration::from_secs(5));
        let end = connection.read_response();
        assert!(matches!(end, Err(Failure::NoAnswer)), "a {what} idle connection is closed without a word: {end:?}");
    }
    // A waiting read is not idle.
    gateway.subscribe(&topic.read("g", "wait=5s")).expect(200);
    gateway.subscribe(&topic.read("g", "wait=2s")).expect(204);
}

fn message_size_is_configurable() {
    let gateway = Kateway::memory().set("pub.message_bytes_max", 100).start();
    let topic = Topic::fresh("small");
    gateway.publish(&topic.publish("", vec![b'x'; 100])).expect(201);
    let answer = gateway.publish(&topic.publish("", vec![b'x'; 101]));
    assert_eq!(problem::check(&answer, 413).code, 41301);
    assert_eq!(gateway.status()["limits"]["message_bytes_max"], 100);
}
