//! What every answer carries: server, request id, and on demand where the time went.
//!
//! Method: the same checks on a success, a refusal and a 204, of all three listeners; the id is echoed where the client
//! sent a usable one and made, differently each time, where it did not.

use std::collections::HashSet;

use kateway_tests::client::{Request, Response};
use kateway_tests::kateway::Kateway;
use kateway_tests::topic::Topic;

use crate::{Case, kafka};

pub const CASES: &[Case] = &[
    Case::new("answers::server_and_request_id", server_and_request_id),
    Case::new("answers::unusable_request_ids_are_replaced", unusable_request_ids_are_replaced),
    Case::new("answers::trace_shows_where_the_time_went", trace_shows_where_the_time_went).kafka(),
];

/// One request of each kind, `prepare`d, with its answer.
fn answers_of_all_kinds(gateway: &Kateway, prepare: impl Fn(Request) -> Request) -> Vec<Response> {
    let topic = Topic::fresh("answers");
    vec![
        gateway.publish(&prepare(topic.publish("", "x"))).expect(201),
        gateway.publish(&prepare(topic.publish("async=1", "x"))).expect(202),
        gateway.publish(&prepare(topic.publish("acks=1", "x"))).expect(400),
        gateway.publish(&prepare(Request::get("/nowhere"))).expect(404),
        gateway.subscribe(&prepare(topic.read("g", "wait=5s"))).expect(200),
        gateway.subscribe(&prepare(topic.read("h", "batch=10&wait=5s"))).expect(200),
        gateway.subscribe(&prepare(topic.read("g", "reset=newest&wait=0s&batch=100"))),
        gateway.subscribe(&prepare(topic.read("g", "wait=0s"))).expect(204),
        gateway.manage(&prepare(Request::get("/alive"))).expect(200),
        gateway.manage(&prepare(Request::get("/v1/status"))).expect(200),
        gateway.manage(&prepare(Request::get("/metrics"))).expect(200),
    ]
}

fn server_and_request_id() {
    let gateway = Kateway::memory().shards(2).start();
    let echoed = answers_of_all_kinds(&gateway, |request| request.header("X-Request-Id", "from-the-client.7"));
    for answer in &echoed {
        assert_eq!(answer.header("server"), Some("kateway"), "{answer:?}");
        assert_eq!(answer.header("x-request-id"), Some("from-the-client.7"), "{answer:?}");
    }
    let made = answers_of_all_kinds(&gateway, |request| request);
    let ids: HashSet<&str> = made.iter().filter_map(|answer| answer.header("x-request-id")).collect();
    assert_eq!(ids.len(), made.len(), "every request has an id of its own: {ids:?}");
}

fn unusable_request_ids_are_replaced() {
    let gateway = Kateway::memory().start();
    let topic = Topic::fresh("ids");
    for id in ["", &"x".repeat(1_000), "two words", "\"quoted\"", "größe"] {
        let answer = gateway.publish(&topic.publish("", "x").header("X-Request-Id", id)).expect(201);
        let given = answer.header("x-request-id").expect("always there");
        assert!(!given.is_empty() && given.len() <= 128, "{given:?}");
        assert!(given.bytes().all(|b| b.is_ascii_graphic()), "{given:?}");
    }
}

fn trace_shows_where_the_time_went() {
    let admin = kafka().admin();
    let topic = Topic::fresh("traced");
    admin.create_topic(&topic.in_kafka(), 1);
    let gateway = Kateway::kafka(admin.brokers()).start();
    let answer = gateway.publish(&topic.publish("", "x").header("X-Trace", "true")).expect(201);
    assert!(answer.header("x-serverid").is_some_and(|id| !id.is_empty()));
    for milliseconds in stages(&answer) {
        assert!((0.0..10_000.0).contains(&milliseconds), "{milliseconds}");
    }
    gateway.subscribe(&topic.read("g", "wait=10s")).expect(200);
    let waited = gateway.subscribe(&topic.read("g", "wait=500ms").header("X-Trace", "true")).expect(204);
    let [parse, queue, kafka] = stages(&waited);
    assert!(kafka >= 490.0 && parse + queue < 490.0, "the wait for messages is `kafka`: {parse} {queue} {kafka}");
    let answer = gateway.publish(&topic.publish("", "x")).expect(201);
    assert_eq!(answer.header("server-timing"), None, "only when asked");
}

/// Milliseconds of parse, queue and kafka.
fn stages(answer: &Response) -> [f64; 3] {
    let timing = answer.header("server-timing").expect("asked for");
    ["parse", "queue", "kafka"].map(|stage| {
        let entry = timing.split(", ").find_map(|entry| entry.strip_prefix(stage)?.strip_prefix(";dur="));
        entry.unwrap_or_else(|| panic!("{stage} in {timing}")).parse().expect("a number")
    })
}
