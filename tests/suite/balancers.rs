//! The example configurations for HAProxy and nginx do what they say: they spread, pass on who the client is, and lose nothing when a
//! gateway goes.
//!
//! Method: `config/haproxy.cfg` and `config/nginx.conf` are taken as they are, but for addresses and ports. Two gateways on the real
//! cluster stand behind; clients publish and read through the balancer, from an address of their own, which the gateways must show. Then
//! one gateway is told to go under load: every request must be answered 201. HAProxy speaks HTTP/1.1 to the gateways, and HTTP/2.

use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use kateway_tests::haproxy::HaProxy;
use kateway_tests::kateway::Kateway;
use kateway_tests::ledger::{Answer, Ledger};
use kateway_tests::load::{Load, Plan};
use kateway_tests::nginx::Nginx;
use kateway_tests::topic::Topic;
use kateway_tests::{figures, folder, kcat, ports, process, wait_until};

use crate::{Case, kafka};

pub const CASES: &[Case] = &[
    Case::new("balancers::haproxy", || haproxy("")).kafka().alone(),
    Case::new("balancers::haproxy_over_http2", || haproxy(" proto h2")).kafka().alone(),
    Case::new("balancers::nginx", nginx).kafka().alone(),
];

const SOON: Duration = Duration::from_secs(20);
const SECRET: &str = "0123456789abcdef0123456789abcdef";

fn address() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], ports::reserve()))
}

fn gateways(key: &str, balancer: &str) -> [Kateway; 2] {
    ["a", "b"].map(|id| {
        let builder = Kateway::kafka(&kafka().bootstrap()).shards(2).set("gateway.id", id);
        let builder = builder.set("gateway.peer_secret", SECRET).set("drain.notice_s", 5);
        let gateway = builder.set(key, balancer).at(address(), address()).start();
        gateway.wait_ready();
        gateway
    })
}

/// The example, with `replacements` made; each must have something to replace.
fn example(name: &str, replacements: &[(String, String)]) -> String {
    let text = std::fs::read_to_string(folder::root().join("config").join(name)).expect("the example is there");
    replacements.iter().fold(text, |text, (from, to)| {
        assert!(text.contains(from.as_str()), "{name} has {from:?}");
        text.replace(from, to)
    })
}

fn servers(gateways: &[Kateway; 2], after: &str) -> Vec<(String, String)> {
    (11..)
        .zip(gateways)
        .flat_map(|(host, gateway)| {
            [(9191, gateway.publish), (9192, gateway.subscribe)]
                .map(|(port, address)| (format!("10.0.0.{host}:{port}"), format!("{address}{after}")))
        })
        .collect()
}

fn haproxy(protocol: &str) {
    // HAProxy has an address of its own: the gateways ask each other from 127.0.0.1, without a header.
    let gateways = gateways("http.proxy_from", "127.0.0.9");
    let (publish, subscribe) = (address(), address());
    let mut replacements = servers(&gateways, &format!(" source 127.0.0.9{protocol}"));
    replacements.push(("bind *:9191".to_owned(), format!("bind {publish}")));
    replacements.push(("bind *:9192".to_owned(), format!("bind {subscribe}")));
    let proxy = HaProxy::start_from(&example("haproxy.cfg", &replacements), publish, subscribe);
    serves_and_lets_go(gateways, publish, subscribe);
    drop(proxy);
}

fn nginx() {
    let gateways = gateways("http.forwarded_from", "127.0.0.1");
    let (publish, subscribe) = (address(), address());
    let mut replacements = servers(&gateways, "");
    replacements.push(("listen 9191;".to_owned(), format!("listen {publish};")));
    replacements.push(("listen 9192;".to_owned(), format!("listen {subscribe};")));
    // One worker is enough here.
    replacements.push(("worker_processes auto;".to_owned(), "worker_processes 1;".to_owned()));
    let proxy = Nginx::start(&example("nginx.conf", &replacements), &[publish, subscribe]);
    serves_and_lets_go(gateways, publish, subscribe);
    drop(proxy);
}

fn serves_and_lets_go(mut gateways: [Kateway; 2], publish: SocketAddr, subscribe: SocketAddr) {
    let topic = Topic::fresh("balanced");
    kafka().admin().create_topic(&topic.in_kafka(), 4);
    let ledger = Arc::new(Ledger::new(u64::from(std::process::id())));
    let keep_alive = Plan { pause: Duration::from_millis(2), ..Plan::new(publish, &topic.appid, &topic.name) };
    let one_request = Plan { one_request_connections: true, ..keep_alive.numbered_from(100) };
    let loads = [Load::start(&keep_alive, &ledger), Load::start(&one_request, &ledger)];
    let answered_by = |gateway: &Kateway| gateway.scrape().sum("kateway_pub_messages_total", &[]);
    wait_until(SOON, "both take part", || gateways.iter().all(|gateway| answered_by(gateway) > 100.0));
    reads_from_its_own_address(&gateways, &topic, subscribe);

    let went = gateways[0].terminate(Duration::from_secs(20));
    assert_eq!(went.code(), Some(0), "it drained");
    let then = ledger.count(Answer::Durable);
    wait_until(SOON, "the other goes on", || ledger.count(Answer::Durable) > then + 200);
    let tallies = loads.map(Load::stop);
    for tally in &tallies {
        assert!(tally.statuses.keys().all(|status| *status == 201), "{tally:?}");
        assert_eq!((tally.not_connected, tally.cut, tally.unanswered), (0, 0, 0), "{tally:?}");
    }
    let verdict = ledger.check(&kcat::read_all(&kafka().bootstrap(), &topic.in_kafka()));
    figures::note("balancer, a gateway goes under load: ledger", &verdict);
    verdict.assert_clean();
}

/// A read through the balancer by a client that comes from an address of its own.
fn reads_from_its_own_address(gateways: &[Kateway; 2], topic: &Topic, subscribe: SocketAddr) {
    let url = format!("http://{subscribe}/v1/msgs/{}?group=g&wait=5s&batch=10", topic.path());
    wait_until(SOON, "the reader is shown with its address", || {
        let mut command = Command::new("curl");
        command.args(["--silent", "--show-error", "--fail", "--max-time", "20", "--interface", "127.0.0.77"]);
        command.args(["-H", &format!("Appid: {}", topic.appid), "-H", "X-Forwarded-For: 192.0.2.1", &url]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let output = process::output("curl", command, SOON * 2).expect("the tests need curl (package curl)");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        gateways.iter().any(|gateway| {
            let rows = gateway.manage(&topic.readers_as(&topic.appid, "group=g")).expect(200).text();
            assert!(!rows.contains("192.0.2.1"), "what the client made up: {rows}");
            rows.contains(r#""realip":"127.0.0.77""#)
        })
    });
}
