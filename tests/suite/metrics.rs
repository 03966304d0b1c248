//! `/metrics` is valid Prometheus text, counts what was done, and its labels do not grow with what clients write.
//!
//! Method: a strict parser (`harness/exposition.rs`) reads the whole scrape; known work and a known lag must appear in it; then
//! hundreds of made-up topics, paths and methods are asked for, and the set of series and label values must not have taken in
//! a single one. A group is made by whoever reads a topic that exists, and is a label of its lag: of these there are so many at
//! most, and what is over it is one series.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use kateway_tests::client::Request;
use kateway_tests::kateway::Kateway;
use kateway_tests::topic::Topic;
use kateway_tests::{figures, frames, wait_until};

use crate::{Case, kafka};

pub const CASES: &[Case] = &[
    Case::new("metrics::valid_and_complete", valid_and_complete),
    Case::new("metrics::counts_what_was_done", counts_what_was_done).kafka(),
    Case::new("metrics::lag_is_what_is_left_to_read", lag_is_what_is_left_to_read).kafka(),
    Case::new("metrics::shards_are_busy_when_they_work", shards_are_busy_when_they_work).alone(),
    Case::new("metrics::labels_do_not_grow", labels_do_not_grow),
    Case::new("metrics::groups_are_labels_up_to_a_bound", groups_are_labels_up_to_a_bound),
];

const SOON: Duration = Duration::from_secs(10);

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

fn lag_is_what_is_left_to_read() {
    let admin = kafka().admin();
    let topic = Topic::fresh("lagging");
    admin.create_topic(&topic.in_kafka(), 2);
    let gateway = Kateway::kafka(admin.brokers()).shards(2).start();
    let (name, group) = (topic.in_kafka(), topic.group_in_kafka("g"));
    let lag = || gateway.scrape().sum("kateway_sub_lag_messages", &[("topic", &name), ("group", &group)]);
    let mut reader = gateway.subscriber();
    let mut read = |batch: usize| {
        let answer = reader.call(&topic.read("g", &format!("batch={batch}&wait=20s&linger=1s")));
        assert_eq!(frames::decode(&answer.unwrap_or_else(|e| panic!("{e}")).expect(200).body).len(), batch);
    };
    for (written, batch, left) in [(30, 10, 20.0), (0, 15, 5.0), (10, 15, 0.0)] {
        admin.produce(&name, 2, (0..written).map(|n| format!("{n}").into_bytes()));
        read(batch);
        wait_until(Duration::from_secs(10), format!("{left} messages are left"), || lag() == left);
    }
}

/// A shard's busy time grows with its work, no faster than time itself, and hardly while it has none.
fn shards_are_busy_when_they_work() {
    let gateway = Kateway::null().start();
    let topic = Topic::fresh("busy");
    let busy_s = || gateway.scrape().sum("kateway_shard_busy_microseconds_total", &[]) / 1e6;
    let share_while = |work: &dyn Fn()| {
        let (before, start) = (busy_s(), Instant::now());
        work();
        // The figure is taken ten times a second.
        let figures = |wanted: f64| wait_until(SOON, "the shard has ticked", || ticks(&gateway) >= wanted);
        figures(ticks(&gateway) + 100.0);
        (busy_s() - before) / start.elapsed().as_secs_f64()
    };
    let working = share_while(&|| {
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let mut connection = gateway.publisher();
                    for _ in 0..2_000 {
                        connection.call(&topic.publish("", "x")).unwrap_or_else(|e| panic!("{e}")).expect(201);
                    }
                });
            }
        });
    });
    let idle = share_while(&|| ());
    figures::note("metrics: busy share of a shard", format!("{working:.3} with four publishers, {idle:.3} without"));
    assert!(working > 2.0 * idle && working < 1.1, "{working} and {idle}");
}

fn ticks(gateway: &Kateway) -> f64 {
    gateway.scrape().sum("kateway_shard_ticks_total", &[])
}

fn groups_are_labels_up_to_a_bound() {
    const SERIES_MAX: usize = 200;
    const GROUPS: usize = SERIES_MAX + 20;
    let gateway = Kateway::memory().shards(2).start();
    let topic = Topic::fresh("labels");
    for n in 0..3 {
        gateway.publish(&topic.publish("key=k", format!("{n}"))).expect(201);
    }
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut connection = gateway.subscriber();
                let mut read = |group: usize| connection.call(&topic.read(&format!("made-up-{group}"), "wait=20s"));
                while let group @ 0..GROUPS = next.fetch_add(1, Ordering::Relaxed) {
                    read(group).unwrap_or_else(|e| panic!("{e}")).expect(200);
                }
            });
        }
    });
    let lag = "kateway_sub_lag_messages";
    wait_until(SOON, "each group has two of three messages left", || {
        gateway.scrape().sum(lag, &[]) == 2.0 * as_f64(GROUPS)
    });
    let scrape = gateway.scrape();
    assert_eq!(scrape.samples.iter().filter(|sample| sample.name == lag).count(), SERIES_MAX + 1);
    let rest = scrape.sum(lag, &[("group", "other"), ("topic", "other")]);
    assert_eq!(rest, 2.0 * as_f64(GROUPS - SERIES_MAX));
}

#[allow(clippy::cast_precision_loss)] // a few hundred
fn as_f64(count: usize) -> f64 {
    count as f64
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

/// Everything a client can make up that is refused.
fn probe(gateway: &Kateway, count: usize) {
    for n in 0..count {
        gateway.publish(&Request::post(&format!("/made-up-{n}/x"), "x")).expect(404);
        gateway.publish(&Request::post(&format!("/v1/msgs/made-up-{n}/v1?made-up-{n}=1"), "x")).expect(400);
        gateway.subscribe(&Request::get(&format!("/v1/msgs/app/made-up-{n}/v1?group=made-up-{n}&wait=0s"))).expect(404);
        let odd_method = gateway.publish(&Request::new(&format!("MADE-UP-{n}"), "/v1/msgs/x/v1"));
        assert!(odd_method.status == 405 || odd_method.status == 501, "{}", odd_method.status);
    }
}
