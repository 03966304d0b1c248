//! Where the time goes, and who takes it: stages of a publish, loop delay, batches, skew, heavy hitters, profiles.
//!
//! Method: known work is done and every instrument is held against it. The stages of a publish have no gap between them, so
//! their sums must be the whole to the digit the scrape shows. Heavy hitters are exact for few names and bounded for many. A
//! profile of a loaded core must name the gateway's own functions while the core goes on serving.

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kateway_tests::client::Request;
use kateway_tests::exposition::Scrape;
use kateway_tests::kateway::{Kateway, binary};
use kateway_tests::ledger::Ledger;
use kateway_tests::load::{Load, Plan};
use kateway_tests::topic::Topic;
use kateway_tests::{figures, folder, problem, process, wait_for, wait_until};
use serde_json::{Value, json};

use crate::{Case, kafka};

pub const CASES: &[Case] = &[
    Case::new("where_time_goes::stages_add_up_to_the_whole", stages_add_up_to_the_whole).kafka().alone(),
    Case::new("where_time_goes::stages_of_both_protocols", stages_of_both_protocols),
    Case::new("where_time_goes::batches_hold_every_record", batches_hold_every_record).kafka(),
    Case::new("where_time_goes::loop_delay_is_counted", loop_delay_is_counted),
    Case::new("where_time_goes::skew_names_a_lone_core", skew_names_a_lone_core),
    Case::new("where_time_goes::few_topics_are_counted_exactly", few_topics_are_counted_exactly),
    Case::new("where_time_goes::many_topics_stay_bounded", many_topics_stay_bounded),
    Case::new("where_time_goes::many_readers_stay_bounded", many_readers_stay_bounded),
    Case::new("where_time_goes::profile_names_our_functions", profile_names_our_functions).alone(),
    Case::new("where_time_goes::profile_is_asked_for_properly", profile_is_asked_for_properly),
];

const STAGES: [&str; 4] = ["parse", "kafka", "queue", "write"];
const SOON: Duration = Duration::from_secs(10);

fn stage(scrape: &Scrape, part: &str, stage: &str) -> f64 {
    scrape.sum(&format!("kateway_pub_stage_seconds_{part}"), &[("stage", stage)])
}

/// Waits until so many publishes have every stage; the last one is counted when the kernel has the answer.
fn wait_stages(gateway: &Kateway, count: f64) -> Scrape {
    let mut scrape = gateway.scrape();
    wait_until(SOON, "the stages are counted", || {
        scrape = gateway.scrape();
        STAGES.iter().all(|name| stage(&scrape, "count", name) == count)
    });
    scrape
}

fn stages_add_up_to_the_whole() {
    let admin = kafka().admin();
    let topic = Topic::fresh("staged");
    admin.create_topic(&topic.in_kafka(), 2);
    let gateway = Kateway::kafka(admin.brokers()).shards(2).start();
    let began = Instant::now();
    for n in 0..60 {
        gateway.publish(&topic.publish("", format!("{n:02}"))).expect(201);
    }
    for query in ["async=1", "ack=none"].repeat(10) {
        gateway.publish(&topic.publish(query, "x")).expect(202);
    }
    let took = began.elapsed().as_secs_f64();
    let scrape = wait_stages(&gateway, 80.0);
    assert_eq!(scrape.sum("kateway_pub_messages_total", &[]), 80.0);
    let sums = STAGES.map(|name| stage(&scrape, "sum", name));
    figures::note("stages of 80 publishes, s", format!("{STAGES:?} {sums:.6?}"));
    assert!(sums.iter().sum::<f64>() < took, "{sums:?} of {took} s");
    assert!(sums[1] > 0.5 * sums.iter().sum::<f64>(), "one at a time, Kafka takes most of it: {sums:?}");
    let whole = scrape.sum("kateway_pub_duration_seconds_sum", &[]);
    let parts: f64 = sums[..3].iter().sum();
    assert!((parts - whole).abs() < 1e-6, "no gap between the stages: {parts} of {whole}");
    for shard in ["0", "1"] {
        for name in STAGES {
            let labels = [("stage", name), ("shard", shard)];
            assert!(scrape.sum("kateway_pub_stage_seconds_count", &labels) > 0.0, "{labels:?}");
        }
    }
    // What was not handed over has no stages.
    gateway.publish(&topic.publish("partition=9", "x")).expect(400);
    gateway.publish(&topic.publish("", "")).expect(400);
    wait_stages(&gateway, 80.0);
}

/// By the load generator over HTTP/1.1 with pipelining and over HTTP/2.
fn stages_of_both_protocols() {
    let gateway = Kateway::memory().shards(2).start();
    let target = gateway.publish.to_string();
    let beside = binary().with_file_name("load");
    let load = if beside.is_file() { beside } else { folder::root().join("target/release/load") };
    let mut total = 0.0;
    for protocol in ["h1", "h2"] {
        let mut command = Command::new(&load);
        command.args(["--target", &target, "--protocol", protocol, "--depth", "4", "--connections", "4"]);
        command.args(["--seconds", "1", "--warmup-s", "0", "--json", "-"]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let child = process::spawn(command).expect("the load generator is built with the workspace");
        let output = child.wait_with_output().expect("it ends");
        let result: Value = serde_json::from_slice(&output.stdout).expect("a result");
        total += result["answers"]["201"].as_f64().expect("a count");
        let scrape = wait_stages(&gateway, total);
        assert_eq!(scrape.sum("kateway_pub_messages_total", &[]), total, "{protocol}");
        assert!(stage(&scrape, "sum", "write") > 0.0);
    }
    let status = gateway.status();
    for name in STAGES {
        assert!(status["shards"][0]["stages_us"][name]["p50"].is_u64(), "{name}: {status}");
    }
}

fn batches_hold_every_record() {
    let admin = kafka().admin();
    let topic = Topic::fresh("batched");
    admin.create_topic(&topic.in_kafka(), 2);
    let gateway = Kateway::kafka(admin.brokers()).start();
    let ledger = Arc::new(Ledger::new(1));
    let plan = Plan { connections: 16, ..Plan::new(gateway.publish, &topic.appid, &topic.name) };
    let load = Load::start(&plan, &ledger);
    wait_until(Duration::from_secs(30), "a thousand are stored", || {
        gateway.scrape().sum("kateway_producer_stored_total", &[]) > 1_000.0
    });
    let tally = load.stop();
    let scrape = gateway.scrape();
    let records = scrape.sum("kateway_producer_batch_records_sum", &[]);
    let batches = scrape.sum("kateway_producer_batch_records_count", &[]);
    assert_eq!(records, scrape.sum("kateway_producer_stored_total", &[]));
    assert_eq!(records, f64::from(u32::try_from(tally.status(201)).expect("a count")));
    assert!(batches > 0.0 && batches <= records, "{batches} batches of {records}");
    figures::note("records per batch, 16 connections", format!("{:.1}", records / batches));
    let mean = gateway.status()["shards"][0]["batch_records_mean"].as_f64().expect("there were batches");
    assert!((mean - records / batches).abs() < 1e-6);
}

fn loop_delay_is_counted() {
    let gateway = Kateway::null().shards(2).start();
    wait_until(SOON, "both cores have ticked some times", || {
        let scrape = gateway.scrape();
        ["0", "1"].iter().all(|s| scrape.sum("kateway_shard_loop_delay_seconds_count", &[("shard", s)]) > 10.0)
    });
    let status = gateway.status();
    assert!(status["shards"][0]["loop_delay_us"]["p50"].as_u64().is_some_and(|us| us > 0), "{status}");
}

fn skew_names_a_lone_core() {
    let gateway = Kateway::null().shards(2).start();
    let topic = Topic::fresh("skewed");
    let mut lone = gateway.publisher();
    let mut status = Value::Null;
    wait_until(Duration::from_secs(30), "one connection is one core's", || {
        for _ in 0..20 {
            lone.call(&topic.publish("", "x")).unwrap_or_else(|e| panic!("{e}")).expect(201);
        }
        status = gateway.status();
        status["skew"]["messages"] == 2.0
    });
    assert_eq!(status["skew"]["connections"], 2.0, "one connection on two cores");
    let scrape = gateway.scrape();
    for of in ["messages", "connections"] {
        assert_eq!(scrape.sum("kateway_shard_skew_ratio", &[("of", of)]), 2.0, "{of}");
    }
    let busy = |shard: usize| status["shards"][shard]["busy_share"].as_f64().expect("looked at");
    assert!((0.0..=1.0).contains(&busy(0)) && (0.0..=1.0).contains(&busy(1)), "{status}");
}

fn few_topics_are_counted_exactly() {
    let gateway = Kateway::memory().shards(2).start();
    let (small, large) = (Topic::fresh("small"), Topic::fresh("large"));
    for _ in 0..9 {
        gateway.publish(&small.publish("", "0123456789")).expect(201);
    }
    for _ in 0..4 {
        gateway.publish(&large.publish("", vec![b'x'; 1_000])).expect(201);
    }
    for _ in 0..3 {
        gateway.subscribe(&small.read_as("reader", "g", "wait=5s")).expect(200);
    }
    let mut status = Value::Null;
    wait_until(SOON, "the reads are counted", || {
        status = gateway.status();
        status["totals"]["kateway_sub_messages_total"] == 3
    });
    let row = |kind: &str, name: &str, published: [u64; 2], read: [u64; 2]| {
        json!({
            kind: name,
            "published_messages": published[0],
            "published_bytes": published[1],
            "read_messages": read[0],
            "read_bytes": read[1],
            "read_messages_others_max": 0,
        })
    };
    let topics =
        [row("topic", &small.in_kafka(), [9, 90], [3, 30]), row("topic", &large.in_kafka(), [4, 4_000], [0, 0])];
    assert_eq!(status["top"]["topics"]["by_messages"], json!(topics));
    assert_eq!(status["top"]["topics"]["by_bytes"], json!([topics[1], topics[0]]));
    let apps = [
        row("app", &small.appid, [9, 90], [0, 0]),
        row("app", &large.appid, [4, 4_000], [0, 0]),
        row("app", "reader", [0, 0], [3, 30]),
    ];
    assert_eq!(status["top"]["apps"]["by_messages"], json!(apps));
    assert_eq!(status["top"]["apps"]["by_bytes"], json!([apps[1], apps[0], apps[2]]));
}

fn many_topics_stay_bounded() {
    let gateway = Kateway::null().shards(2).start();
    let heavy = Topic::fresh("heavy");
    let mut connections = [gateway.publisher(), gateway.publisher(), gateway.publisher()];
    for n in 0..5_000 {
        let connection = &mut connections[n % 3];
        let mut send = |topic: &Topic, body: &str| {
            connection.call(&topic.publish("", body)).unwrap_or_else(|e| panic!("{e}")).expect(201);
        };
        send(&Topic::new(&format!("app{}", n % 700), &format!("t{n}"), "v1"), "xx");
        if n % 100 == 0 {
            send(&heavy, "0123456789");
        }
    }
    let asked = Instant::now();
    let top = gateway.status()["top"].clone();
    figures::note("status with 5,000 topics answered after", format!("{:?}", asked.elapsed()));
    for kind in ["topics", "apps"] {
        for order in ["by_messages", "by_bytes"] {
            let rows = top[kind][order].as_array().expect("a list");
            assert!((10..=50).contains(&rows.len()), "{kind} {order}: {}", rows.len());
        }
    }
    let first = &top["topics"]["by_messages"][0];
    assert_eq!((&first["topic"], &first["published_messages"]), (&json!(heavy.in_kafka()), &json!(50)));
    assert_eq!(top["topics"]["by_bytes"][0]["published_bytes"], 500);
    assert_eq!(top["apps"]["by_messages"][0]["app"], heavy.appid.as_str());
    assert!(gateway.scrape().samples.len() < 2_000, "topics are no series");
}

/// More reading apps than there are counters for.
fn many_readers_stay_bounded() {
    let gateway = Kateway::memory().start();
    let topic = Topic::fresh("popular");
    for _ in 0..40 {
        gateway.publish(&topic.publish("", "0123456789")).expect(201);
    }
    let mut reader = gateway.subscriber();
    let mut read = |app: &str, group: &str, batch: &str| {
        let request = topic.read_as(app, group, &format!("wait=5s&batch={batch}"));
        reader.call(&request).unwrap_or_else(|e| panic!("{e}")).expect(200);
    };
    for n in 0..300 {
        read(&format!("reader{n}"), "g", "1");
        if n % 30 == 0 {
            read("heavy", &format!("g{n}"), "40");
        }
    }
    let mut apps = Value::Null;
    wait_until(SOON, "the reads are counted", || {
        let status = gateway.status();
        apps = status["top"]["apps"].clone();
        status["totals"]["kateway_sub_messages_total"] == 700
    });
    for (order, unit, count) in [("by_messages", "read_messages", 400), ("by_bytes", "read_bytes", 4_000)] {
        let rows = apps[order].as_array().expect("a list");
        assert!(rows.len() <= 50, "{}", rows.len());
        assert_eq!(rows[0]["app"], "heavy", "{apps}");
        assert_eq!(rows[0][unit], count, "it was there from the start, so it is exact");
    }
}

fn profile_names_our_functions() {
    let gateway = Kateway::null().start();
    let topic = Topic::fresh("profiled");
    let ledger = Arc::new(Ledger::new(1));
    let plan = Plan { connections: 16, ..Plan::new(gateway.publish, &topic.appid, &topic.name) };
    let load = Load::start(&plan, &ledger);
    let published = || gateway.scrape().sum("kateway_pub_messages_total", &[]);
    wait_until(SOON, "the load is on", || published() > 100.0);
    let before = published();
    let folded = gateway.manage(&Request::get("/debug/profile?shard=0&seconds=2")).expect(200);
    let served = published() - before;
    assert_eq!(folded.header("content-type"), Some("text/plain; charset=utf-8"));
    let text = folded.text();
    let counted = |line: &str| -> u64 {
        let (stack, count) = line.rsplit_once(' ').expect("a stack and a count");
        assert!(stack.starts_with("shard-0;"), "{line}");
        count.parse().expect("a count")
    };
    let samples: u64 = text.lines().map(counted).sum();
    assert_eq!(samples, u64::try_from(folded.number("x-profile-samples")).expect("a count"));
    assert_eq!(folded.number("x-profile-lost"), 0);
    assert!(samples >= 20, "{samples} samples in {} ms of CPU", folded.number("x-profile-cpu-ms"));
    let ours: u64 = text.lines().filter(|line| line.contains("kateway::")).map(counted).sum();
    figures::note("profile", format!("{samples} samples, {ours} in stacks with ours, {served} publishes meanwhile"));
    assert!(ours * 2 > samples, "{ours} of {samples}:\n{text}");
    assert!(text.contains("kateway::server::conn::serve"), "{text}");
    assert!(served > 100.0, "the core serves while it is watched");

    let drawn = gateway.manage(&Request::get("/debug/profile?shard=0&seconds=1").header("Accept", "image/svg+xml"));
    let drawn = drawn.expect(200);
    assert_eq!(drawn.header("content-type"), Some("image/svg+xml"));
    let svg = drawn.text();
    assert!(svg.starts_with("<svg ") && svg.trim_end().ends_with("</svg>") && svg.contains("kateway::"), "{svg}");
    let tally = load.stop();
    assert!(tally.statuses.keys().all(|status| *status == 201) && tally.cut + tally.unanswered == 0, "{tally:?}");
    assert_eq!(gateway.scrape().sum("kateway_shard_stalls_total", &[]), 0.0);
}

fn profile_is_asked_for_properly() {
    let gateway = Kateway::null().shards(2).start();
    for (query, status, code) in [
        ("", 400, 40005),
        ("seconds=1", 400, 40005),
        ("shard=x", 400, 40002),
        ("shard=0&seconds=0", 400, 40002),
        ("shard=0&seconds=31", 400, 40002),
        ("shard=0&seconds=1&format=png", 400, 40002),
        ("shard=0&hz=1000", 400, 40003),
        ("shard=2", 404, 40402),
    ] {
        let answer = gateway.manage(&Request::get(&format!("/debug/profile?{query}")));
        assert_eq!(problem::check(&answer, status).code, code, "{query}");
    }
    problem::check(&gateway.manage(&Request::post("/debug/profile?shard=0", "x")), 405);
    problem::check(&gateway.publish(&Request::get("/debug/profile?shard=0")), 404);
    problem::check(&gateway.subscribe(&Request::get("/debug/profile?shard=0")), 404);

    // One at a time; the one under way is not harmed by those refused.
    let manage = gateway.manage;
    let long = std::thread::spawn(move || {
        let request = Request::get("/debug/profile?shard=1&seconds=4&format=svg");
        wait_for(SOON, "the others' turn is over", || {
            let answer = kateway_tests::client::once(manage, &request);
            (answer.status != 429).then_some(answer)
        })
    });
    wait_until(SOON, "a second one is refused", || {
        let answer = gateway.manage(&Request::get("/debug/profile?shard=0&seconds=1"));
        if answer.status == 200 {
            return false;
        }
        assert_eq!(problem::check(&answer, 429).code, 42903);
        assert!(answer.number("retry-after") >= 1);
        true
    });
    long.join().expect("it is answered").expect(200);
    gateway.manage(&Request::get("/debug/profile?shard=0&seconds=1")).expect(200);
}
