//! WebSocket as others understand it: Autobahn's cases, Python's `websockets`, Node's `ws`, and a page in Chromium.
//!
//! Method: kosoku drives Autobahn's test cases against `/v1/ws/_echo`, which has the same codec as publishing and reading; none may fail.
//! Each client publishes some hundred messages, as text, as bytes and in fragments, reads them back in order with `ack=1`, and what it
//! acknowledged must be committed. The page says who it is by subprotocol, as it can set no header; one of another origin is refused.

use std::process::{Command, Stdio};
use std::time::Duration;

use kateway_tests::kateway::Kateway;
use kateway_tests::page::Page;
use kateway_tests::topic::Topic;
use kateway_tests::{figures, folder, process, tools};
use serde_json::{Value, json};

use crate::Case;
use crate::stage::{SOON, Stage};

pub const CASES: &[Case] = &[
    Case::new("ws_clients::autobahn_s_cases", autobahn_s_cases).alone(),
    Case::new("ws_clients::python_websockets", python_websockets),
    Case::new("ws_clients::node_ws", node_ws),
    Case::new("ws_clients::page_in_chromium", page_in_chromium),
];

const COUNT: i64 = 400;

fn autobahn_s_cases() {
    let python = tools::python(&["kosoku==0.1.0"]);
    let gateway = Kateway::memory().set("http.ws_echo", true).start();
    let reports = folder::fresh("kosoku", ".reports");
    let mut command = Command::new("python3");
    command.arg(python.join("bin/kosoku")).env("PYTHONPATH", &python).args(["--parallelism", "2", "--outdir"]);
    // Compression (12 and 13) is not offered, so nothing of it could fail.
    command.arg(&reports).args(["--exclude", "12.*", "--exclude", "13.*"]);
    command.arg(format!("ws://{}/v1/ws/_echo", gateway.manage));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let output = process::output("kosoku", command, Duration::from_mins(4)).expect("python3 is there");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    let index = std::fs::read(reports.join("index.json")).expect("it writes reports");
    let index: Value = serde_json::from_slice(&index).expect("JSON");
    let cases = index.as_object().expect("by agent").values().flat_map(|cases| cases.as_object().into_iter().flatten());
    let mut counts = std::collections::BTreeMap::<&str, usize>::new();
    for (case, verdict) in cases {
        let (behavior, close) = (verdict["behavior"].as_str(), verdict["behaviorClose"].as_str());
        // NON-STRICT: invalid UTF-8 in a text that is not whole yet is found when its frame is.
        assert!(matches!(behavior, Some("OK" | "NON-STRICT" | "INFORMATIONAL")), "{case}: {verdict}");
        assert!(matches!(close, Some("OK" | "INFORMATIONAL")), "{case}: {verdict}");
        *counts.entry(behavior.unwrap_or_default()).or_default() += 1;
    }
    assert!(counts.values().sum::<usize>() >= 300, "{counts:?}");
    figures::note("Autobahn's cases", format!("{counts:?}"));
}

/// Runs a client's script, which judges what it sees itself, and looks at what it left committed.
fn runs(mut command: Command) {
    let stage = Stage::on_memory("ws");
    let Topic { appid, name, .. } = &stage.topic;
    let addresses = [stage.gateway.publish, stage.gateway.subscribe].map(|address| address.to_string());
    command.args(addresses).args([appid, name, &COUNT.to_string()]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let output = process::output("client", command, 3 * SOON).expect("it can be started");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let groups = stage.gateway.status()["groups"].clone();
    let committed = groups.as_array().expect("a list").iter().filter_map(|group| group["partitions"].as_array());
    let committed: i64 = committed.flatten().filter_map(|partition| partition["committed"].as_i64()).sum();
    assert!(committed >= COUNT, "{groups}");
}

fn script(name: &str) -> std::path::PathBuf {
    folder::tests().join("suite/clients").join(name)
}

fn python_websockets() {
    let mut command = Command::new("python3");
    command.arg(script("publish_and_read.py")).env("PYTHONPATH", tools::python(&["websockets==17.4"]));
    runs(command);
}

fn node_ws() {
    let mut command = Command::new("node");
    command.arg(script("publish_and_read.js")).env("NODE_PATH", tools::node(&["ws@8.23.0"]));
    runs(command);
}

fn page_in_chromium() {
    let page = Page::new();
    let stage = Stage::on_memory_with("ws", |builder| builder.set("http.origins", page.origin()));
    let Topic { appid, name, .. } = &stage.topic;
    let (publish, subscribe) = (stage.gateway.publish, stage.gateway.subscribe);
    let names = format!("const PUB = '{publish}', SUB = '{subscribe}', APP = '{appid}', TOPIC = '{name}';\n");
    let script = names + &std::fs::read_to_string(script("page.js")).expect("it is beside this file");
    let report = page.open(&script, 3 * SOON);
    let expected = json!({
        "protocols": ["kateway.v1.bin", "kateway.v1.json"],
        "in_order": true,
        "count": 200,
        "closed": [1000, 1000],
    });
    assert_eq!(report, expected);
    // A page of another origin does not get that far.
    let refused = format!(
        "const ws = new WebSocket('ws://{publish}/v1/ws/msgs/{name}/v1', ['kateway.v1.bin']);\n\
         ws.onopen = () => report({{opened: true}}); ws.onerror = () => report({{opened: false}});"
    );
    assert_eq!(Page::new().open(&refused, 3 * SOON), json!({ "opened": false }));
}
