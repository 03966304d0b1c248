//! Gateways enter themselves in ZooKeeper, and a balancer follows who is there; requests are served whatever ZooKeeper does.
//!
//! Method: a real ZooKeeper of the trial's own, whose list of ephemeral nodes is the judge, and a real HAProxy in master-worker mode whose
//! configuration `kateway haproxy --watch` renders and reloads. A second gateway appears and takes its share; one is told to go, and
//! not one request fails; one is killed, and is out of the configuration within its session; ZooKeeper is killed, or frozen, longer than
//! a session lasts, under load, and comes back: everybody is registered again within ten seconds and nobody noticed.
//! `KATEWAY_ZOOKEEPER_S` (default 8) is how long it is away; `make soak` takes a minute.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kateway_tests::client::{Connection, Request};
use kateway_tests::haproxy::Master;
use kateway_tests::kateway::{self, Builder, Kateway};
use kateway_tests::ledger::{Answer, Ledger};
use kateway_tests::load::{Load, Plan, Tally};
use kateway_tests::process::Process;
use kateway_tests::topic::Topic;
use kateway_tests::zookeeper::ZooKeeper;
use kateway_tests::{figures, folder, ports, wait_until};

use crate::Case;
use crate::stage::SOON;

pub const CASES: &[Case] = &[
    Case::new("discovery::node_says_where", node_says_where).alone(),
    Case::new("discovery::killed_gateway_is_gone_within_its_session", killed_gateway_is_gone_within_its_session)
        .alone(),
    Case::new("discovery::zookeeper_away_harms_nobody", zookeeper_away_harms_nobody).alone(),
    Case::new("discovery::starts_and_drains_without_zookeeper", starts_and_drains_without_zookeeper),
    Case::new("discovery::balancer_follows", balancer_follows).alone(),
];

const SESSION: Duration = Duration::from_secs(4);
const REGISTERED_WITHIN: Duration = Duration::from_secs(10);

fn node(id: &str) -> String {
    format!("/kateway/default/ids/{id}")
}

fn builder(zookeeper: SocketAddr, id: &str) -> Builder {
    let builder = Kateway::null().shards(2).set("gateway.id", id).set("zookeeper.servers", zookeeper);
    builder.set("zookeeper.session_timeout_ms", SESSION.as_millis())
}

#[track_caller]
fn wait_entered(zookeeper: &ZooKeeper, id: &str) {
    wait_until(REGISTERED_WITHIN, format!("{id} is entered"), || zookeeper.ephemerals().contains(&node(id)));
}

fn state(gateway: &Kateway) -> String {
    gateway.status()["zookeeper"]["state"].as_str().expect("a state").to_owned()
}

fn away() -> Duration {
    let seconds = std::env::var("KATEWAY_ZOOKEEPER_S").ok().and_then(|text| text.parse().ok()).unwrap_or(8);
    Duration::from_secs(seconds)
}

fn node_says_where() {
    let zookeeper = ZooKeeper::of_a_trial();
    let mut gateway = builder(zookeeper.address(), "gw-1").set("drain.notice_s", 2).start();
    wait_entered(&zookeeper, "gw-1");
    wait_until(SOON, "the gateway knows", || state(&gateway) == "registered");
    assert_eq!(gateway.scrape().sum("kateway_zookeeper_registered", &[]), 1.0);
    let said = zookeeper.data(&node("gw-1"));
    let json = said.lines().find(|line| line.starts_with('{')).unwrap_or_else(|| panic!("{said}"));
    let card: serde_json::Value = serde_json::from_str(json).expect("the node holds JSON");
    assert!(card.as_object().is_some_and(|card| card.values().all(serde_json::Value::is_string)), "flat: {card}");
    for (field, value) in [
        ("id", "gw-1".to_owned()),
        ("zone", "default".to_owned()),
        ("pub", gateway.publish.to_string()),
        ("sub", gateway.subscribe.to_string()),
        ("man", gateway.manage.to_string()),
    ] {
        assert_eq!(card[field], value, "{field}: {card}");
    }
    let server = zookeeper.address().to_string();
    let set = format!("zookeeper.servers={server}");
    let (code, text, stderr) = kateway::run(&["haproxy", "--once", "--set", &set]);
    assert_eq!(code, 0, "{stderr}");
    assert!(text.contains(&format!("    server gw-1 {} check\n", gateway.publish)), "{text}");
    let (code, text, stderr) = kateway::run(&["haproxy", "--set", &set, "--set", "zookeeper.zone=other"]);
    assert_eq!((code, text.as_str()), (69, ""), "an empty list is no configuration");
    assert!(stderr.contains("no gateway is entered"), "{stderr}");

    // Gone while everything is still served.
    let topic = Topic::fresh("leaving");
    gateway.signal(libc::SIGTERM);
    let gone = wait_until(Duration::from_secs(1), "the node is gone", || zookeeper.ephemerals().is_empty());
    gateway.publish(&topic.publish("", "x")).expect(201);
    wait_until(SOON, "the gateway knows", || state(&gateway) == "withdrawn");
    figures::note("discovery: node gone after SIGTERM", format!("{gone:?}"));
    assert_eq!(gateway.wait_end(SOON).code(), Some(0));
}

fn killed_gateway_is_gone_within_its_session() {
    let zookeeper = ZooKeeper::of_a_trial();
    let mut gateway = builder(zookeeper.address(), "gw-1").start();
    wait_entered(&zookeeper, "gw-1");
    gateway.kill();
    let start = Instant::now();
    wait_until(SOON, "its node goes", || zookeeper.ephemerals().is_empty());
    figures::note("discovery: node gone after kill -9, session of 4 s", format!("{:?}", start.elapsed()));
    assert!(start.elapsed() < SESSION * 2, "{:?}", start.elapsed());

    // Another life of it does not wait for the first one's session.
    let mut first = builder(zookeeper.address(), "gw-2").start();
    wait_entered(&zookeeper, "gw-2");
    first.kill();
    let second = builder(zookeeper.address(), "gw-2").start();
    let took = wait_until(SOON, "the second life is entered", || state(&second) == "registered");
    let card = zookeeper.data(&node("gw-2"));
    assert!(card.contains(&second.publish.to_string()), "{card}");
    figures::note("discovery: another life of a killed gateway entered after", format!("{took:?}"));
    std::thread::sleep(SESSION * 2);
    assert_eq!(zookeeper.ephemerals(), [node("gw-2")], "the end of the first one's session takes nothing");
}

/// A load that must not notice.
struct Running {
    gateway: Kateway,
    load: Load,
    ledger: Arc<Ledger>,
}

impl Running {
    fn start(zookeeper: &ZooKeeper) -> Self {
        let gateway = builder(zookeeper.address(), "gw-1").start();
        wait_entered(zookeeper, "gw-1");
        let topic = Topic::fresh("unharmed");
        let ledger = Arc::new(Ledger::new(u64::from(gateway.pid())));
        let mut plan = Plan::new(gateway.publish, &topic.appid, &topic.name);
        (plan.connections, plan.pause) = (4, Duration::from_millis(2));
        let load = Load::start(&plan, &ledger);
        Self { gateway, load, ledger }
    }

    /// Serves on for so long; gives the messages of each second.
    fn serve(&self, period: Duration) -> usize {
        let (start, before) = (Instant::now(), self.ledger.count(Answer::None));
        let (mut last, mut at) = (before, Instant::now());
        while start.elapsed() < period {
            std::thread::sleep(Duration::from_millis(100));
            if at.elapsed() >= Duration::from_secs(1) {
                let now = self.ledger.count(Answer::None);
                assert!(now > last, "requests are answered every second");
                (last, at) = (now, Instant::now());
            }
        }
        self.ledger.count(Answer::None) - before
    }
}

fn zookeeper_away_harms_nobody() {
    let mut zookeeper = ZooKeeper::of_a_trial();
    let running = Running::start(&zookeeper);
    let normal = running.serve(Duration::from_secs(2));

    zookeeper.kill();
    let killed = running.serve(away());
    wait_until(SOON, "the gateway says so", || state(&running.gateway) == "connecting");
    running.gateway.manage(&Request::get("/readyz")).expect(200);
    zookeeper.restart();
    let back = Instant::now();
    wait_entered(&zookeeper, "gw-1");
    wait_until(REGISTERED_WITHIN, "and again", || state(&running.gateway) == "registered");
    figures::note("discovery: registered after a kill of ZooKeeper within", format!("{:?}", back.elapsed()));

    zookeeper.signal(libc::SIGSTOP);
    let frozen = running.serve(away());
    zookeeper.signal(libc::SIGCONT);
    let back = Instant::now();
    // What it lists now may be of the session that is about to end.
    wait_until(REGISTERED_WITHIN, "registered for good", || {
        state(&running.gateway) == "registered" && zookeeper.ephemerals().contains(&node("gw-1"))
    });
    figures::note("discovery: registered after ZooKeeper was frozen within", format!("{:?}", back.elapsed()));
    std::thread::sleep(SESSION);
    assert_eq!(zookeeper.ephemerals(), [node("gw-1")]);

    let tally = running.load.stop();
    figures::note(
        format!("discovery: messages in 2 s, ZooKeeper killed and frozen for {:?}", away()),
        format!("{normal}, {killed}, {frozen}"),
    );
    assert_unharmed(&tally);
}

#[track_caller]
fn assert_unharmed(tally: &Tally) {
    assert_eq!((tally.not_connected, tally.unanswered, tally.cut), (0, 0, 0), "{tally:?}");
    assert!(tally.statuses.keys().all(|status| *status == 201), "{tally:?}");
}

fn starts_and_drains_without_zookeeper() {
    let nobody = SocketAddr::from(([127, 0, 0, 1], ports::reserve()));
    let mut gateway = builder(nobody, "gw-1").start();
    gateway.publish(&Topic::fresh("alone").publish("", "x")).expect(201);
    gateway.manage(&Request::get("/readyz")).expect(200);
    assert_eq!(state(&gateway), "connecting");
    assert_eq!(gateway.terminate(SOON).code(), Some(0));
    let set = format!("zookeeper.servers={nobody}");
    let (code, _, stderr) = kateway::run(&["haproxy", "--set", &set]);
    assert_eq!(code, 69, "{stderr}");
}

/// HAProxy, and the command that keeps its configuration.
struct Balancer {
    _watch: Process,
    haproxy: Master,
    out: PathBuf,
    said: PathBuf,
    publish: SocketAddr,
}

impl Balancer {
    fn start(zookeeper: &ZooKeeper) -> Self {
        let address = || SocketAddr::from(([127, 0, 0, 1], ports::reserve()));
        let (publish, subscribe) = (address(), address());
        let [out, pid_file, said] = [".cfg", ".pid", ".stderr"].map(|extension| folder::fresh("balancer", extension));
        let mut command = Command::new(kateway::binary());
        command.args(["haproxy", "--watch", "--out"]).arg(&out).arg("--pid-file").arg(&pid_file);
        command.args(["--bind-pub", &publish.to_string(), "--bind-sub", &subscribe.to_string()]);
        command.arg("--set").arg(format!("zookeeper.servers={}", zookeeper.address()));
        command.arg("--set").arg(format!("zookeeper.session_timeout_ms={}", SESSION.as_millis()));
        let file = std::fs::File::create(&said).expect("the run's folder can be written");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(file);
        let watch = Process::start("kateway haproxy", command).expect("the binary can be started");
        wait_until(SOON, "there is a configuration", || out.exists());
        let haproxy = Master::start(&out, &pid_file);
        let this = Self { _watch: watch, haproxy, out, said, publish };
        wait_until(SOON, "HAProxy passes requests on", || {
            let answer = Connection::open(publish).ok().and_then(|mut c| c.call(&Request::get("/alive")).ok());
            answer.is_some_and(|answer| answer.status == 200)
        });
        this
    }

    fn text(&self) -> String {
        std::fs::read_to_string(&self.out).expect("the configuration is there")
    }

    fn names(&self, id: &str) -> bool {
        self.text().contains(&format!("    server {id} "))
    }
}

fn balancer_follows() {
    let mut zookeeper = ZooKeeper::of_a_trial();
    let start = |id| builder(zookeeper.address(), id).set("drain.notice_s", 3).start();
    let mut first = start("gw-1");
    wait_entered(&zookeeper, "gw-1");
    let mut balancer = Balancer::start(&zookeeper);
    let topic = Topic::fresh("balanced");
    let ledger = Arc::new(Ledger::new(u64::from(first.pid())));
    let plan = |n| Plan {
        connections: 4,
        pause: Duration::from_millis(2),
        ..Plan::new(balancer.publish, &topic.appid, &topic.name).numbered_from(n)
    };
    let loads =
        [Load::start(&plan(0), &ledger), Load::start(&Plan { one_request_connections: true, ..plan(100) }, &ledger)];
    let published = |gateway: &Kateway| gateway.scrape().sum("kateway_pub_messages_total", &[]);
    wait_until(SOON, "requests pass", || ledger.count(Answer::None) > 500);

    let appeared = Instant::now();
    let mut second = start("gw-2");
    wait_until(SOON, "the second takes traffic", || published(&second) > 100.0);
    figures::note("discovery: a second gateway takes traffic after", format!("{:?}", appeared.elapsed()));
    // A session of the command's own is old enough that who is missing is taken for gone.
    wait_until(Duration::from_secs(30), "the first is told to go and is out of the configuration", || {
        if !first.has_ended() {
            first.signal(libc::SIGTERM);
            assert_eq!(first.wait_end(SOON).code(), Some(0));
        }
        !balancer.names("gw-1")
    });
    first = start("gw-1");
    wait_until(SOON, "it comes back and takes traffic", || published(&first) > 100.0);
    let loads = loads.map(Load::stop);
    let total: usize = loads.iter().map(|tally| tally.status(201)).sum();
    figures::note("discovery: through HAProxy, one came, one went by SIGTERM", format!("{total} answered, 0 failed"));
    loads.iter().for_each(assert_unharmed);

    let load = Load::start(&plan(200), &ledger);
    let killed = Instant::now();
    second.kill();
    wait_until(SOON, "the killed one is out of the configuration", || !balancer.names("gw-2"));
    figures::note("discovery: killed gateway out of HAProxy's configuration after", format!("{:?}", killed.elapsed()));
    assert!(killed.elapsed() < SESSION * 2, "{:?}", killed.elapsed());
    drop(load.stop());

    let load = Load::start(&plan(300), &ledger);
    let before = balancer.text();
    zookeeper.kill();
    std::thread::sleep(away());
    zookeeper.restart();
    wait_entered(&zookeeper, "gw-1");
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(
        balancer.text(),
        before,
        "nothing changed:\n{}",
        std::fs::read_to_string(&balancer.said).unwrap_or_default()
    );
    assert_unharmed(&load.stop());

    // Nobody is left: the last known configuration stays.
    assert_eq!(first.terminate(SOON).code(), Some(0));
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(balancer.text(), before);
    assert!(!balancer.haproxy.has_ended(), "{}", balancer.haproxy.log.display());
}
