//! The management listener: health, and one status document over all shards.
//!
//! Method: known work is done, and the document must add up to it, over all shards, each listed by itself. Health
//! answers are those load balancers and orchestrators expect. While the data shards are saturated the management
//! listener must still answer.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kateway_tests::client::Request;
use kateway_tests::kateway::Kateway;
use kateway_tests::ledger::Ledger;
use kateway_tests::load::{Load, Plan};
use kateway_tests::topic::Topic;
use kateway_tests::{figures, problem, wait_until};

use crate::{Case, kafka};

pub const CASES: &[Case] = &[
    Case::new("status::health", health),
    Case::new("status::readyz_follows_kafka", readyz_follows_kafka),
    Case::new("status::adds_up_over_shards", adds_up_over_shards).kafka(),
    Case::new("status::what_a_group_takes", what_a_group_takes).kafka(),
    Case::new("status::limits_are_listed", limits_are_listed),
    Case::new("status::answers_under_load", answers_under_load).alone(),
    Case::new("status::manage_routes_stay_on_manage", manage_routes_stay_on_manage),
];

fn health() {
    let gateway = Kateway::memory().shards(2).start();
    for target in ["/alive", "/livez", "/readyz"] {
        let answer = gateway.manage(&Request::get(target)).expect(200);
        assert_eq!(answer.json()["ok"], 1, "{target}");
        assert_eq!(answer.header("content-type"), Some("application/json"));
    }
    gateway.publish(&Request::get("/alive")).expect(200);
    gateway.subscribe(&Request::get("/alive")).expect(200);
    let verbose = gateway.manage(&Request::get("/readyz?verbose")).expect(200).json();
    assert_eq!(verbose["shards"].as_array().map(Vec::len), Some(2), "{verbose}");
    let head = gateway.manage(&Request::new("HEAD", "/alive"));
    assert_eq!((head.status, head.body.len()), (200, 0), "load balancers ask with HEAD");
}

/// Brokers that do not exist: alive, but not ready, and a publish is told so within its deadline.
fn readyz_follows_kafka() {
    let nobody = format!("127.0.0.1:{}", kateway_tests::ports::reserve());
    let gateway = Kateway::kafka(&nobody).set("pub.deadline_ms", 2_000).set("kafka.admin_timeout_ms", 1_000).start();
    gateway.manage(&Request::get("/alive")).expect(200);
    problem::check(&gateway.manage(&Request::get("/readyz")), 503);
    let start = Instant::now();
    let answer = gateway.publish(&Topic::fresh("nowhere").publish("", "x"));
    problem::check(&answer, 503);
    assert!(start.elapsed() < Duration::from_secs(5), "answered within the deadline: {:?}", start.elapsed());
    let start = Instant::now();
    let answer = gateway.subscribe(&Topic::fresh("nowhere").read("g", "wait=1s"));
    problem::check(&answer, 503);
    assert!(start.elapsed() < Duration::from_secs(5), "answered within the deadline: {:?}", start.elapsed());
}

fn adds_up_over_shards() {
    const COUNT: u64 = 60;
    let admin = kafka().admin();
    let topic = Topic::fresh("counted");
    admin.create_topic(&topic.in_kafka(), 4);
    let gateway = Kateway::kafka(admin.brokers()).shards(2).start();
    for n in 0..COUNT {
        gateway.publish(&topic.publish("", format!("{n:04}"))).expect(201);
    }
    let mut read = 0;
    while read < 40 {
        let answer = gateway.subscribe(&topic.read("g", "wait=20s")).expect(200);
        read += u64::from(!answer.body.is_empty());
    }
    let mut status = serde_json::Value::Null;
    wait_until(Duration::from_secs(5), "the counters have what was done", || {
        status = gateway.status();
        status["totals"]["kateway_sub_messages_total"] == 40
    });
    assert_eq!(status["store"], "kafka");
    assert_eq!(status["totals"]["kateway_pub_messages_total"], COUNT);
    assert_eq!(status["totals"]["kateway_pub_bytes_total"], COUNT * 4);
    let shards = status["shards"].as_array().expect("a list of shards");
    assert_eq!(shards.len(), 2);
    assert!(shards.iter().all(|shard| shard["answered"] == true), "{status}");
    let by_shard = |shard: &serde_json::Value| shard["counters"]["kateway_pub_messages_total"].as_u64().unwrap_or(0);
    assert_eq!(shards.iter().map(by_shard).sum::<u64>(), COUNT);
    assert!(shards.iter().all(|shard| by_shard(shard) > 0), "the kernel spreads sixty connections over both: {status}");

    let group = status["groups"].as_array().and_then(|groups| groups.first()).expect("one group").clone();
    assert_eq!(group["topic"], topic.in_kafka().as_str());
    assert_eq!(group["group"], topic.group_in_kafka("g").as_str());
    let partitions = group["partitions"].as_array().expect("a list of partitions");
    assert_eq!(partitions.len(), 4);
}

/// Each open group has a consumer of its own, whose threads and memory an operator can see.
fn what_a_group_takes() {
    const GROUPS: usize = 4;
    let topic = Topic::fresh("taken");
    kafka().admin().create_topic(&topic.in_kafka(), 1);
    let gateway = Kateway::kafka(&kafka().bootstrap()).start();
    let before = gateway.status();
    assert!(before["process"]["threads_per_group"].is_null(), "there is no group yet: {}", before["process"]);
    for n in 0..GROUPS {
        gateway.subscribe(&topic.read(&format!("g{n}"), "wait=1s")).expect(204);
    }
    let status = gateway.status();
    assert_eq!(status["groups"].as_array().map(Vec::len), Some(GROUPS));
    let process = &status["process"];
    for name in ["threads", "resident_bytes", "threads_per_group", "resident_bytes_per_group"] {
        assert!(process[name].as_u64().is_some_and(|number| number > 0), "{name}: {process}");
    }
    let (threads, bytes) = (&process["threads_per_group"], &process["resident_bytes_per_group"]);
    figures::note("status: what each of 4 groups takes", format!("{threads} threads, {bytes} bytes"));
}

fn limits_are_listed() {
    let gateway = Kateway::memory().start();
    let status = gateway.status();
    for (name, value) in [
        ("head_bytes_max", 4_096),
        ("target_bytes_max", 2_048),
        ("message_bytes_max", 512 * 1_024),
        ("key_bytes_max", 256),
        ("tag_bytes_max", 1_024),
        ("batch_messages_max", 4_000),
    ] {
        assert_eq!(status["limits"][name], value, "{name}");
    }
    assert!(status["build"]["version"].is_string());
    assert_eq!(status["store"], "memory");
}

fn answers_under_load() {
    let gateway = Kateway::null().start();
    let topic = Topic::fresh("busy");
    let ledger = Arc::new(Ledger::new(1));
    let plan = Plan { connections: 32, ..Plan::new(gateway.publish, &topic.appid, &topic.name) };
    let load = Load::start(&plan, &ledger);
    let mut slowest = Duration::ZERO;
    for target in ["/alive", "/readyz", "/v1/status", "/metrics"].repeat(10) {
        let start = Instant::now();
        gateway.manage(&Request::get(target)).expect(200);
        slowest = slowest.max(start.elapsed());
    }
    let tally = load.stop();
    figures::note("status: slowest of 40 answers while a shard is saturated", format!("{slowest:?}"));
    assert!(tally.status(201) > 100, "{tally:?}");
    assert!(slowest < Duration::from_secs(1), "{slowest:?}");
}

fn manage_routes_stay_on_manage() {
    let gateway = Kateway::memory().start();
    for target in ["/v1/status", "/metrics"] {
        problem::check(&gateway.publish(&Request::get(target)), 404);
        problem::check(&gateway.subscribe(&Request::get(target)), 404);
    }
    problem::check(&gateway.manage(&Request::post("/v1/msgs/a/v1", "x")), 404);
    problem::check(&gateway.subscribe(&Request::post("/v1/msgs/a/v1", "x")), 404);
    problem::check(&gateway.publish(&Request::get("/v1/msgs/a/b/v1?group=g")), 404);
}
