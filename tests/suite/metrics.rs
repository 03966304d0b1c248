//! `/metrics` is valid Prometheus text, counts what was done, and its labels do not grow with what clients write.
//!
//! Method: a strict parser (`harness/exposition.rs`) reads the whole scrape; known work must appear in it; then
//! hundreds of made-up topics, paths, groups and methods are asked for, and the set of series and label values must not
//! have taken in a single one.

use std::collections::HashSet;

use kateway_tests::client::Request;
use kateway_tests::kateway::Kateway;
use kateway_tests::topic::Topic;

use crate::{Case, kafka};

pub const CASES: &[Case] = &[
    Case::new("metrics::valid_and_complete", valid_and_complete),
    Case::new("metrics::counts_what_was_done", counts_what_was_done).kafka(),
    Case::new("metrics::labels_do_not_grow", labels_do_not_grow),
];

fn valid_and_complete() {
    let gateway = Kateway::memory().shards(2).start();
    let topic = Topic::fresh("measured");
    gateway.publish(&topic.publish("", "x")).expect(201);
    gateway.subscribe(&topic.read("g", "wait=5s")).expect(200);
    let answer = gateway.manage(&Request::get("/metrics")).expect(200);
    assert!(answer.header("content-type").is_some_and(|kind| kind.starts_with("text/plain; version=0.0.4")));
    let scrape = gateway.scrape();
    for name in [
        "kateway_build_info",
        "kateway_requests_total",
        "kateway_connections",
        "kateway_pub_inflight",
        "kateway_pub_bytes_total",
        "kateway_sub_bytes_total",
        "kateway_producer_queue_messages",
        "kateway_sub_lag_messages",
        "kateway_shard_busy_microseconds_total",
        "kateway_shard_stalls_total",
        "kateway_pub_duration_seconds_bucket",
        "kateway_pub_stage_seconds_bucket",
        "kateway_shard_loop_delay_seconds_bucket",
        "kateway_shard_skew_ratio",
        "kateway_sub_duration_seconds_bucket",
    ] {
        assert!(scrape.has(name), "{name} is there");
    }
    for (name, kind) in &scrape.types {
        assert!(name.starts_with("kateway_"), "{name}");
        assert_eq!(kind == "counter", name.ends_with("_total"), "{name} is a {kind}");
    }
    assert_histograms(&scrape);
}

/// Of each series the buckets rise, and the last one is the count.
fn assert_histograms(scrape: &kateway_tests::exposition::Scrape) {
    for (name, _) in scrape.types.iter().filter(|(_, kind)| *kind == "histogram") {
        let counts = scrape.samples.iter().filter(|s| s.name == format!("{name}_count"));
        for count in counts {
            let of_series = |labels: &std::collections::BTreeMap<String, String>| {
                let mut labels = labels.clone();
                labels.remove("le");
                labels == count.labels
            };
            let buckets = scrape.samples.iter().filter(|s| s.name == format!("{name}_bucket") && of_series(&s.labels));
            let buckets: Vec<f64> = buckets.map(|s| s.value).collect();
            assert!(buckets.windows(2).all(|pair| pair[0] <= pair[1]), "{name}: {buckets:?}");
            assert_eq!(buckets.last().copied(), Some(count.value), "{name}");
        }
    }
}

fn counts_what_was_done() {
    let admin = kafka().admin();
    let topic = Topic::fresh("measured");
    admin.create_topic(&topic.in_kafka(), 2);
    let gateway = Kateway::kafka(admin.brokers()).shards(2).start();
    for n in 0..30 {
        gateway.publish(&topic.publish("", format!("{n:02}"))).expect(201);
    }
    for _ in 0..5 {
        gateway.publish(&topic.publish("acks=all", "x")).expect(400);
    }
    gateway.publish(&Topic::new(&topic.appid, "never-made", "v1").publish("", "x")).expect(404);
    let scrape = gateway.scrape();
    let requests = |code: &str| scrape.sum("kateway_requests_total", &[("route", "publish"), ("code", code)]);
    assert_eq!([requests("201"), requests("40003"), requests("40401")], [30.0, 5.0, 1.0]);
    assert_eq!(scrape.sum("kateway_pub_messages_total", &[]), 30.0);
    assert_eq!(scrape.sum("kateway_pub_bytes_total", &[]), 60.0);
    let timed = scrape.sum("kateway_pub_duration_seconds_count", &[]);
    assert_eq!(timed, 31.0, "those refused before their body was read are not in the latency");
    let shards: HashSet<&str> =
        scrape.samples.iter().filter_map(|s| s.labels.get("shard")).map(String::as_str).collect();
    assert_eq!(shards, HashSet::from(["0", "1"]));
}

fn labels_do_not_grow() {
    let gateway = Kateway::memory().start();
    let topic = Topic::fresh("labels");
    gateway.publish(&topic.publish("", "x")).expect(201);
    gateway.subscribe(&topic.read("g", "wait=5s")).expect(200);
    probe(&gateway, 1);
    let before = gateway.scrape().samples.len();
    probe(&gateway, 200);
    let scrape = gateway.scrape();
    assert_eq!(scrape.samples.len(), before, "no series was added by what clients made up");
    let leaked: Vec<_> =
        scrape.label_values().into_iter().filter(|value| value.contains("made-up")).map(str::to_owned).collect();
    assert!(leaked.is_empty(), "{leaked:?}");
}

/// Everything a client can make up, refused.
fn probe(gateway: &Kateway, count: usize) {
    for n in 0..count {
        gateway.publish(&Request::post(&format!("/made-up-{n}/x"), "x")).expect(404);
        gateway.publish(&Request::post(&format!("/v1/msgs/made-up-{n}/v1?made-up-{n}=1"), "x")).expect(400);
        gateway.subscribe(&Request::get(&format!("/v1/msgs/app/made-up-{n}/v1?group=made-up-{n}&wait=0s"))).expect(404);
        let odd_method = gateway.publish(&Request::new(&format!("MADE-UP-{n}"), "/v1/msgs/x/v1"));
        assert!(odd_method.status == 405 || odd_method.status == 501, "{}", odd_method.status);
    }
}
