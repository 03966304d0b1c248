//! The load generator (`perf/load`) counts what happened: an instrument is tested before it judges.
//!
//! Method: its own counts are held against the gateway's and against what can be read back. That a fixed rate hides no waiting is
//! shown by stopping the gateway (SIGSTOP) in the middle: every request that was due meanwhile has to count as slow, not only those
//! that were under way.

use std::process::{Command, Stdio};
use std::time::Duration;

use kateway_tests::kateway::{Kateway, binary};
use kateway_tests::{process, wait_until};
use serde_json::Value;

use crate::Case;

pub const CASES: &[Case] = &[
    Case::new("load_generator::counts_what_is_stored_and_read", counts_what_is_stored_and_read),
    Case::new("load_generator::waiting_is_not_left_out", waiting_is_not_left_out).alone(),
    Case::new("load_generator::refusals_are_errors", refusals_are_errors),
];

fn command(args: &[&str]) -> Command {
    let load = binary().with_file_name("load");
    let load = if load.is_file() { load } else { kateway_tests::folder::root().join("target/release/load") };
    let mut command = Command::new(load);
    command.args(["--json", "-", "--warmup-s", "0"]).args(args);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs the generator to its end; gives its exit code and result.
fn load(args: &[&str]) -> (Option<i32>, Value) {
    let child = process::spawn(command(args)).expect("the load generator is built with the workspace");
    let output = child.wait_with_output().expect("it ends");
    let text = String::from_utf8_lossy(&output.stdout);
    let result = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}{output:?}"));
    (output.status.code(), result)
}

fn counts_what_is_stored_and_read() {
    let gateway = Kateway::memory().shards(2).start();
    let (publish, subscribe) = (gateway.publish.to_string(), gateway.subscribe.to_string());
    let mut stored = 0;
    for protocol in ["h1", "h2", "ws"] {
        let common = ["--target", &publish, "--protocol", protocol, "--topics", "2", "--keys", "3", "--seconds", "1"];
        // As many as a busy machine reads again in time.
        let closed_loop = ["--rate", "0", "--depth", "4", "--messages", "20000"];
        for shape in [&["--rate", "500", "--depth", "2"][..], &closed_loop] {
            let (code, result) = load(&[&common[..], shape, &["--connections", "4"]].concat());
            assert_eq!((code, &result["errors"]), (Some(0), &serde_json::json!({})), "{result}");
            let answers = result["answers"]["201"].as_u64().expect("a count");
            assert_eq!((result["requests"].as_u64(), result["messages"].as_u64()), (Some(answers), Some(answers)));
            if shape[1] == "500" {
                assert_eq!(answers, 500, "a fixed rate leaves nothing out");
            }
            stored += answers;
        }
    }
    wait_until(Duration::from_secs(5), "the gateway has counted as much", || {
        gateway.status()["totals"]["kateway_pub_messages_total"] == stored
    });
    for (protocol, group, batch) in [("h1", "a", "100"), ("h2", "b", "100"), ("h1", "c", "1"), ("ws", "d", "100")] {
        let count = if batch == "1" { 100 } else { stored };
        let text = count.to_string();
        let args = ["--target", &subscribe, "--work", "subscribe", "--protocol", protocol, "--group", group];
        let more = ["--batch", batch, "--topics", "2", "--connections", "2", "--messages", &text, "--seconds", "20"];
        let (code, result) = load(&[&args[..], &more].concat());
        let messages = result["messages"].as_u64().expect("a count");
        // What was on its way when the count was full counts too.
        let is_right = if batch == "1" { messages >= count } else { messages == count };
        assert!(code == Some(0) && is_right, "{protocol} {batch}: {messages} of {count}, {result}");
    }
}

fn waiting_is_not_left_out() {
    const STOP: Duration = Duration::from_millis(600);
    let gateway = Kateway::null().set("shard.stall_ms", 60_000).start();
    let target = gateway.publish.to_string();
    let args = ["--target", &target, "--rate", "1000", "--seconds", "3", "--connections", "2"];
    let child = process::spawn(command(&args)).expect("the load generator is built with the workspace");
    let published = || gateway.scrape().sum("kateway_pub_messages_total", &[]);
    wait_until(Duration::from_secs(5), "the load has begun", || published() > 200.0);
    gateway.signal(libc::SIGSTOP);
    std::thread::sleep(STOP);
    gateway.signal(libc::SIGCONT);
    let output = child.wait_with_output().expect("it ends");
    let result: Value = serde_json::from_slice(&output.stdout).expect("a result");
    assert_eq!(result["requests"], 3_000, "{result}");
    // 600 of 3,000 were due while it stood: a tenth of all waited half of the stop or more. Only two were under way.
    let ms = |times: &str, quantile: &str| result[times][quantile].as_f64().expect("a time");
    assert!(ms("latency_ms", "p90") >= 200.0, "{result}");
    assert!(ms("service_ms", "p90") < 100.0, "{result}");
    assert!(result["line_max"].as_u64().expect("a count") >= 300, "{result}");
}

fn refusals_are_errors() {
    let gateway = Kateway::memory().start();
    let target = gateway.publish.to_string();
    let args = ["--target", &target, "--size", "600000", "--rate", "20", "--seconds", "1", "--connections", "2"];
    for protocol in ["h1", "h2"] {
        let (code, result) = load(&[&args[..], &["--protocol", protocol]].concat());
        assert_eq!(code, Some(1), "{result}");
        assert_eq!(result["errors"]["code 41301"], result["answers"]["413"], "{result}");
        assert_eq!(result["messages"], 0, "{result}");
    }
    let nobody = format!("127.0.0.1:{}", kateway_tests::ports::reserve());
    let (code, result) = load(&["--target", &nobody, "--seconds", "0.5", "--connections", "1"]);
    assert!(code == Some(1) && result["errors"]["connect"].as_u64().is_some_and(|n| n > 0), "{result}");
}
