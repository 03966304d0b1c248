//! A shard that stands still or fails costs what it was doing, and nothing else.
//!
//! Method: one shard's thread is stopped by the kernel (ptrace) while its gateway serves: the status must name it and list the
//! others, the other shard must go on, and the stall is counted. A request that panics (`test.panic_topic`) ends its own
//! connection, or over HTTP/2 its own stream; those beside it, and everything counted as open, are as before.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use kateway_tests::client::Request;
use kateway_tests::kateway::Kateway;
use kateway_tests::topic::Topic;
use kateway_tests::{figures, folder, hinder, problem, process, wait_for, wait_until};

use crate::Case;

pub const CASES: &[Case] = &[
    Case::new("shards::silent_one_is_named", silent_one_is_named),
    Case::new("shards::panic_ends_its_request_alone", panic_ends_its_request_alone),
];

const SOON: Duration = Duration::from_secs(10);

fn silent_one_is_named() {
    // A connection that has moved to the silent core would be as silent.
    let gateway = Kateway::null().shards(2).set("sub.steer", false).alarms_expected().start();
    let topic = Topic::fresh("silent");
    let mut connection = gateway.connection_of_shard(1, gateway.publish);
    let mut reader = gateway.connection_of_shard(1, gateway.subscribe);
    gateway.publish(&topic.publish("", "x")).expect(201);
    let stalls = |shard: &str| gateway.scrape().sum("kateway_shard_stalls_total", &[("shard", shard)]);
    let before = stalls("0");

    let held = hinder::hold_threads(gateway.pid(), "shard-0-");
    // The other one may be slow for once, on a busy machine.
    let (took, status) = wait_for(SOON, "the silent shard is named, and it alone", || {
        let asked = Instant::now();
        let status = gateway.status();
        (status["silent_shards"] == serde_json::json!([0])).then(|| (asked.elapsed(), status))
    });
    figures::note("shards, one silent: status answered after", format!("{took:?}"));
    assert!(took < Duration::from_millis(5 * 500), "it waits half a second for a shard: {took:?}");
    assert_eq!(status["shards"][0]["answered"], false, "{status}");
    assert_eq!(status["shards"][1]["answered"], true, "{status}");
    for target in ["/alive", "/livez", "/metrics"] {
        gateway.manage(&Request::get(target)).expect(200);
    }
    for _ in 0..100 {
        connection.call(&topic.publish("", "x")).unwrap_or_else(|e| panic!("{e}")).expect(201);
    }
    // A group that lives on the silent shard; the other shard's groups are read as ever.
    let mut refused = 0;
    wait_until(Duration::from_mins(1), "a group of the silent shard is asked for", || {
        let answer = reader.call(&topic.read(&folder::unique("g"), "wait=0s"));
        let answer = answer.unwrap_or_else(|e| panic!("{e}"));
        if answer.status == 503 {
            let problem = problem::check(&answer, 503);
            assert_eq!(problem.code, 50305);
            assert!(problem.detail.contains("core 0"), "{}", problem.detail);
            refused += 1;
        } else {
            answer.expect(204);
        }
        refused > 0
    });
    wait_until(SOON, "the stall is counted", || stalls("0") > before);
    gateway.wait_log(SOON, "the core stalls");

    drop(held);
    gateway.wait_log(SOON, "the core runs again");
    wait_until(SOON, "both answer", || gateway.status()["silent_shards"] == serde_json::json!([]));
    for _ in 0..10 {
        gateway.publish(&topic.publish("", "x")).expect(201);
    }
}

fn panic_ends_its_request_alone() {
    let good = Topic::fresh("fine");
    let bad = Topic::new(&good.appid, "panics", "v1");
    let gateway = Kateway::null().set("test.panic_topic", bad.in_kafka()).alarms_expected().start();
    let panics = || gateway.scrape().sum("kateway_shard_panics_total", &[]);
    let mut bystander = gateway.publisher();
    let mut publish = || bystander.call(&good.publish("", "x")).unwrap_or_else(|e| panic!("{e}")).expect(201);
    publish();
    assert_eq!(panics(), 0.0);

    assert!(gateway.publisher().call(&bad.publish("", "x")).is_err(), "no answer can be true");
    assert!(gateway.subscriber().call(&bad.read("g", "wait=0s")).is_err());
    wait_until(SOON, "two panics are counted", || panics() == 2.0);
    publish();

    // On one connection, each in its turn: the streams of one topic are reset, those of the other answered.
    let uris = folder::fresh("uris", ".txt");
    let uri = |topic: &Topic| format!("http://{}/v1/msgs/{}/v1\n", gateway.publish, topic.name);
    std::fs::write(&uris, uri(&good) + &uri(&bad)).expect("the run's folder can be written");
    let body = folder::fresh("body", ".bin");
    std::fs::write(&body, "x").expect("the run's folder can be written");
    let mut h2load = Command::new("h2load");
    h2load.args(["-N", "20", "-T", "20", "-n", "8", "-c", "1", "-m", "1", "-H", &format!("Appid: {}", good.appid)]);
    h2load.arg("-d").arg(&body).arg("-i").arg(&uris).stdin(Stdio::null()).stdout(Stdio::piped());
    let output = process::spawn(h2load).expect("the tests need h2load").wait_with_output().expect("h2load ends");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("requests: 8 total, 8 started, 8 done, 4 succeeded, 4 failed"), "{said}");
    assert!(said.contains("status codes: 4 2xx"), "{said}");
    wait_until(SOON, "six panics are counted", || panics() == 6.0);
    publish();

    drop(bystander);
    wait_until(SOON, "nothing is open any more", || {
        let scrape = gateway.scrape();
        scrape.sum("kateway_pub_inflight", &[]) == 0.0 && scrape.sum("kateway_connections", &[]) == 0.0
    });
}
