//! Pages in a browser publish and read over HTTP: server-sent events, by `fetch` and by `EventSource`, go on where they broke off.
//!
//! Method: pages in Chromium, of an origin of their own, which the gateway is told to allow. One sets `Appid` with `fetch`, so every request
//! of it is preceded by a preflight; it gives its stream up in the middle, though the gateway has sent all and has it committed, and goes
//! on by `Last-Event-ID`. `EventSource` can set no field: it reads as the app `default`, which open tenancy takes whoever says nothing
//! for. Its wire breaks with fifty events on it that are committed; the browser itself comes again with the last id. Both must have every
//! value once and in order. A page of another origin gets nothing of either. (WebSocket pages are in `ws_clients.rs`.)

use kateway_tests::link::Link;
use kateway_tests::page::Page;
use kateway_tests::topic::Topic;
use kateway_tests::{folder, wait_until};
use serde_json::{Value, json};

use crate::Case;
use crate::stage::{SOON, Stage};

pub const CASES: &[Case] = &[
    Case::new("browser::fetch_publishes_and_reads_events", fetch_publishes_and_reads_events),
    Case::new("browser::event_source_resumes", event_source_resumes),
    Case::new("browser::other_origins_get_nothing", other_origins_get_nothing),
];

/// The script of that name, told `names`.
fn script(name: &str, names: &[(&str, &str)]) -> String {
    let told: Vec<String> = names.iter().map(|(name, value)| format!("const {name} = '{value}';\n")).collect();
    let path = folder::tests().join("suite/clients").join(name);
    told.concat() + &std::fs::read_to_string(path).expect("it is beside this file")
}

fn fetch_publishes_and_reads_events() {
    let page = Page::new();
    let stage = Stage::on_memory_with("events", |builder| builder.set("http.origins", page.origin()));
    let [publish, subscribe] = [stage.gateway.publish, stage.gateway.subscribe].map(|address| address.to_string());
    let names = [("PUB", &*publish), ("SUB", &subscribe), ("APP", &stage.topic.appid), ("TOPIC", &stage.topic.name)];
    let report = page.open(&script("fetch_events.js", &names), 3 * SOON);
    let all: Vec<String> = (0..100).map(|n| n.to_string()).collect();
    assert_eq!(report["published"], json!((0..100).collect::<Vec<_>>()), "offsets are shown: {report}");
    assert_eq!(report["values"], json!(all), "40 before it gave up, the rest after: {report}");
    assert_eq!(report["type"], json!("text/event-stream"), "{report}");
}

/// What `EventSource` says it is.
const NOBODY: &str = "default";

fn event_source_resumes() {
    let page = Page::new();
    let mut stage = Stage::on_memory_with("events", |builder| builder.set("http.origins", page.origin()));
    NOBODY.clone_into(&mut stage.topic.appid);
    let link = Link::to(stage.gateway.subscribe);
    let url = format!("http://{}/v1/msgs/{}?group=g&stream=1", link.address, stage.topic.path());
    let script = script("event_source.js", &[("URL_OF_EVENTS", &url), ("MIDDLE", "49"), ("LAST", "149")]);
    stage.fill(0, 0..50);
    let told = page.told();
    let report = std::thread::scope(|scope| {
        let page = scope.spawn(|| page.open(&script, 3 * SOON));
        let is_committed = |offset| stage.committed("g", 0) == Some(offset);
        // Committed is what was written; it may not have reached the page yet.
        wait_until(2 * SOON, "the page has read", || told.has("49") && is_committed(50));
        link.hold();
        stage.fill(0, 50..100);
        wait_until(SOON, "fifty more are on the wire, and committed", || is_committed(100));
        link.cut();
        stage.fill(0, 100..150);
        page.join().expect("the page reports")
    });
    let all: Vec<String> = (0..150).map(|n| n.to_string()).collect();
    assert_eq!(report["values"], json!(all), "{report}");
    assert!(report["last"].as_str().is_some_and(|id| id.starts_with("0:150")), "{report}");
    assert!(report["opened"].as_u64() >= Some(2), "the wire broke: {report}");
}

fn other_origins_get_nothing() {
    let stage = Stage::on_memory_with("events", |builder| builder.set("http.origins", "https://app.example.org"));
    let topic = Topic::new(NOBODY, &stage.topic.name, "v1");
    stage.gateway.publish(&topic.publish("", "not for them")).expect(201);
    let url = format!("http://{}/v1/msgs/{}?group=g", stage.gateway.subscribe, topic.path());
    let fetched = format!("fetch('{url}').then(() => report({{got: true}}), () => report({{got: false}}));");
    let named = format!(
        "fetch('{url}', {{headers: {{Appid: '{NOBODY}'}}}}).then(() => report({{got: true}}), () => report({{got: false}}));"
    );
    let streamed = format!(
        "const events = new EventSource('{url}&stream=1'); events.onopen = () => report({{got: true}});\n\
         events.onerror = () => report({{got: events.readyState !== EventSource.CLOSED}});"
    );
    for script in [fetched, named, streamed] {
        let report: Value = Page::new().open(&script, 3 * SOON);
        assert_eq!(report, json!({ "got": false }), "{script}");
    }
}
