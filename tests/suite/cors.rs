//! Pages of configured origins may call from a browser, and no others (CORS, as the Fetch standard has it).
//!
//! Method: curl asks as a browser would, over HTTP/1.1 and over HTTP/2: a preflight of every route must name that route's methods and
//! the fields that were asked for and are known; an actual request must name the origin and every field of its answer that a browser
//! would hide, refusals included. The same from an origin that is not configured, and from a gateway that has none. The list is hot. A
//! real browser is in `browser.rs` where there is one.

use std::process::{Command, Stdio};
use std::time::Duration;

use kateway_tests::client::Request;
use kateway_tests::kateway::Kateway;
use kateway_tests::topic::Topic;
use kateway_tests::{folder, problem, process, wait_until};

use crate::Case;

pub const CASES: &[Case] = &[
    Case::new("cors::preflight_of_every_route", preflight_of_every_route),
    Case::new("cors::answers_name_the_origin", answers_name_the_origin),
    Case::new("cors::off_unless_configured", off_unless_configured),
    Case::new("cors::the_list_is_hot", the_list_is_hot),
];

const PAGE: &str = "https://app.example.org";
const SOON: Duration = Duration::from_secs(10);

/// What curl got: the status and the head's lines, lower-case, but for the status line.
#[derive(Debug)]
struct Got {
    status: u16,
    lines: Vec<String>,
}

impl Got {
    fn field(&self, name: &str) -> Option<&str> {
        self.lines.iter().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }

    fn has_cors(&self) -> bool {
        self.lines.iter().any(|line| line.starts_with("access-control-"))
    }
}

fn curl(version: &str, args: &[&str]) -> Got {
    let mut command = Command::new("curl");
    command.args(["-s", "-S", "-m", "20", "-o", "/dev/null", "-D", "-", "-H", "Expect:", version]).args(args);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let output = process::output("curl", command, Duration::from_secs(30)).expect("the tests need curl");
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    let head = String::from_utf8_lossy(&output.stdout).to_lowercase();
    let (first, rest) = head.split_once("\r\n").expect("a status line");
    let status = first.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    Got { status, lines: rest.lines().map(str::to_owned).collect() }
}

const VERSIONS: [&str; 2] = ["--http1.1", "--http2-prior-knowledge"];

fn preflight_of_every_route() {
    let gateway = Kateway::memory().set("http.origins", format!("{PAGE},http://localhost:8080")).start();
    let origin = format!("Origin: {PAGE}");
    let routes = [
        (gateway.publish, "/v1/msgs/t/v1", "post"),
        (gateway.subscribe, "/v1/msgs/a/t/v1?group=g", "get, put"),
        (gateway.subscribe, "/v1/offsets/a/t/v1/g", "put"),
        (gateway.subscribe, "/v1/bury/a/t/v1", "put"),
        (gateway.subscribe, "/v1/shadow/a/t/v1/g", "post"),
        (gateway.subscribe, "/v1/groups/a/t/v1/g", "delete"),
        (gateway.subscribe, "/v1/peek/a/t/v1", "get"),
        (gateway.manage, "/v1/status", "get, head"),
        (gateway.publish, "/alive", "get, head"),
    ];
    for version in VERSIONS {
        for (address, path, methods) in routes {
            let url = format!("http://{address}{path}");
            let ask = "Access-Control-Request-Headers: appid,Pubkey, x-header-Order-Id,x-evil,idempotency-key";
            let got = curl(
                version,
                &["-X", "OPTIONS", "-H", &origin, "-H", "Access-Control-Request-Method: POST", "-H", ask, &url],
            );
            assert_eq!(got.status, 204, "{path}: {got:?}");
            assert_eq!(got.field("access-control-allow-origin"), Some(PAGE), "{got:?}");
            assert_eq!(got.field("access-control-allow-methods"), Some(methods), "{path}: {got:?}");
            let fields = got.field("access-control-allow-headers");
            assert_eq!(fields, Some("appid, pubkey, x-header-order-id, idempotency-key"), "{got:?}");
            assert_eq!(got.field("access-control-max-age"), Some("600"), "{got:?}");
            assert_eq!(got.field("access-control-allow-credentials"), None, "{got:?}");
            assert!(got.lines.iter().any(|line| line == "vary: origin"), "{got:?}");
        }
        let url = format!("http://{}/v1/msgs/t/v1", gateway.publish);
        for evil in
            ["null", "https://app.example.org.evil.example", "http://app.example.org", "https://app.example.org:8443"]
        {
            let origin = format!("Origin: {evil}");
            let got =
                curl(version, &["-X", "OPTIONS", "-H", &origin, "-H", "Access-Control-Request-Method: POST", &url]);
            assert_eq!((got.status, got.has_cors()), (403, false), "{evil}: {got:?}");
        }
        let got = curl(version, &["-X", "OPTIONS", &url]);
        assert_eq!((got.status, got.has_cors()), (204, false), "no preflight: {got:?}");
        assert_eq!(got.field("allow"), Some("post, options"), "{got:?}");
        let nowhere = format!("http://{}/v1/nowhere", gateway.publish);
        let got =
            curl(version, &["-X", "OPTIONS", "-H", &origin, "-H", "Access-Control-Request-Method: GET", &nowhere]);
        assert_eq!(got.status, 404, "{got:?}");
    }
}

fn answers_name_the_origin() {
    let gateway = Kateway::memory().set("http.origins", PAGE).start();
    let origin = format!("Origin: {PAGE}");
    for version in VERSIONS {
        let topic = Topic::fresh("pages");
        let appid = format!("Appid: {}", topic.appid);
        let publish = format!("http://{}/v1/msgs/{}/v1", gateway.publish, topic.name);
        let read =
            |query: &str| format!("http://{}/v1/msgs/{}?group=g&wait=5s&{query}", gateway.subscribe, topic.path());
        let post = ["-H", &origin, "-H", &appid, "-H", "X-Header-Order: MQ==", "-H", "X-Tag: t", "-d", "x", &publish];
        let got = curl(version, &post);
        assert_eq!((got.status, got.field("access-control-allow-origin")), (201, Some(PAGE)), "{got:?}");
        assert_exposed(&got, &["x-request-id", "x-partition", "x-offset", "x-durability"]);
        let got = curl(version, &["-H", &origin, "-H", &appid, &read("batch=1")]);
        assert_eq!((got.status, got.field("access-control-allow-origin")), (200, Some(PAGE)), "{got:?}");
        let fields = ["x-partition", "x-offset", "x-timestamp", "x-tag", "x-header-order", "x-request-id"];
        assert_exposed(&got, &fields);
        curl(version, &post);
        let got = curl(
            version,
            &["-H", &origin, "-H", &appid, "-H", "Accept: application/x-ndjson", &read("batch=2&linger=10ms")],
        );
        assert_eq!((got.status, got.field("access-control-allow-origin")), (200, Some(PAGE)), "chunked: {got:?}");
        for (what, args) in [
            ("unknown parameter", ["-H", &origin, "-d", "x", &format!("{publish}?acks=1")]),
            ("unknown path", ["-H", &origin, "-d", "x", &format!("http://{}/nowhere", gateway.publish)]),
        ] {
            let got = curl(version, &args);
            assert!(got.status >= 400, "{what}: {got:?}");
            assert_eq!(got.field("access-control-allow-origin"), Some(PAGE), "{what}: {got:?}");
        }
        let large = folder::fresh("large", ".body");
        std::fs::write(&large, vec![b'x'; 600_000]).expect("the run's folder can be written");
        let body = format!("@{}", large.display());
        let got = curl(version, &["-H", &origin, "-H", "Transfer-Encoding: chunked", "--data-binary", &body, &publish]);
        assert_eq!((got.status, got.field("access-control-allow-origin")), (413, Some(PAGE)), "{got:?}");

        for other in [&["-H", "Origin: https://evil.example"][..], &[]] {
            let args = [other, &["-H", &appid, "-d", "x", &publish]].concat();
            let got = curl(version, &args);
            assert_eq!((got.status, got.has_cors()), (201, false), "{got:?}");
            assert!(got.lines.iter().any(|line| line == "vary: origin"), "a cache keeps them apart: {got:?}");
        }
    }
}

#[track_caller]
fn assert_exposed(got: &Got, names: &[&str]) {
    let exposed: Vec<&str> = got.field("access-control-expose-headers").unwrap_or_default().split(", ").collect();
    let hidden: Vec<_> = names.iter().filter(|name| !exposed.contains(name)).collect();
    assert!(hidden.is_empty(), "{hidden:?} of {got:?}");
}

fn off_unless_configured() {
    let gateway = Kateway::memory().start();
    let topic = Topic::fresh("pages");
    let preflight = Request::new("OPTIONS", &format!("/v1/msgs/{}/v1", topic.name)).header("Origin", PAGE);
    let refused = gateway.publish(&preflight.header("Access-Control-Request-Method", "POST"));
    assert_eq!(problem::check(&refused, 403).code, 40_301);
    let answer = gateway.publish(&topic.publish("", "x").header("Origin", PAGE)).expect(201);
    assert!(answer.header("vary").is_none() && answer.header("access-control-allow-origin").is_none());
    let answer = gateway.publish(&Request::new("OPTIONS", &format!("/v1/msgs/{}/v1", topic.name))).expect(204);
    assert_eq!(answer.header("allow"), Some("POST, OPTIONS"));
}

fn the_list_is_hot() {
    let file = folder::fresh("origins", ".toml");
    let write = |origins: &str| std::fs::write(&file, format!("[http]\norigins = [{origins}]\n")).expect("written");
    write("");
    let gateway = Kateway::memory().config(&file).start();
    let topic = Topic::fresh("pages");
    let names = || {
        let answer = gateway.publish(&topic.publish("", "x").header("Origin", PAGE)).expect(201);
        answer.header("access-control-allow-origin").map(str::to_owned)
    };
    assert_eq!(names(), None);
    write("\"*\"");
    gateway.signal(libc::SIGHUP);
    wait_until(SOON, "any origin is allowed", || names().as_deref() == Some(PAGE));
}
