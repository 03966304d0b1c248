//! A gateway is replaced without downtime: its successor takes the listening sockets over, and no request is lost.
//!
//! Method: clients with one connection per request, with kept connections and with HTTP/2 (Node's own client) publish without a pause
//! while the gateway is replaced again and again, with more shards and with fewer; every request must be answered 201, and every
//! connection taken in. The kernel must not help: `net.ipv4.tcp_migrate_req` is off. On Kafka the ledger must find every durable
//! message, and readers go on. Then what goes wrong: a successor that dies before it is ready, that reaches no cluster, that is another
//! version or no gateway at all, and one that nobody waits for. (What lives longer than a request is in `takeover_streams.rs`.)

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use kateway_tests::client::{Connection, Part, Request};
use kateway_tests::kateway::{self, Builder, Kateway};
use kateway_tests::ledger::{Answer, Ledger};
use kateway_tests::load::{Load, Plan, Tally};
use kateway_tests::process::{self, Process};
use kateway_tests::tls::Authority;
use kateway_tests::topic::Topic;
use kateway_tests::{figures, folder, kcat, ports, wait_until};
use rustls::version::TLS13;

use crate::stage::SOON;
use crate::tls::with_tls;
use crate::{Case, kafka};

pub const CASES: &[Case] = &[
    Case::new("takeover::nothing_is_lost", nothing_is_lost).alone(),
    Case::new("takeover::acknowledged_is_stored", acknowledged_is_stored).kafka().alone(),
    Case::new("takeover::what_is_under_way_is_finished", what_is_under_way_is_finished),
    Case::new("takeover::tls_is_handed_over_too", tls_is_handed_over_too),
    Case::new("takeover::failing_successor_costs_nothing", failing_successor_costs_nothing),
    Case::new("takeover::successor_without_a_cluster_gives_up", successor_without_a_cluster_gives_up),
    Case::new("takeover::nobody_to_take_over_from", nobody_to_take_over_from),
];

const REQUESTS: usize = 50_000;

pub fn socket() -> PathBuf {
    // Short: a Unix address has 108 bytes.
    std::env::temp_dir().join(format!("{}.sock", folder::unique("kateway")))
}

pub fn with_socket(builder: Builder, path: &std::path::Path) -> Builder {
    builder.set("gateway.takeover_socket", path.display())
}

/// Replaces `gateway` by one that listens at the same addresses; gives how long the old one took to end from the new one's ready line.
pub fn replace(gateway: &mut Kateway, builder: Builder) -> Duration {
    let successor = builder.at(gateway.publish, gateway.subscribe).takes_over().start();
    let ready = Instant::now();
    assert_eq!((successor.publish, successor.subscribe), (gateway.publish, gateway.subscribe));
    assert_eq!(successor.manage, gateway.manage, "port 0 is the one there was");
    let status = gateway.wait_end(SOON);
    assert_eq!(status.code(), Some(0), "{}", gateway.log());
    *gateway = successor;
    ready.elapsed()
}

fn assert_uncut(what: &str, tally: &Tally) {
    let failed = (tally.not_connected, tally.unanswered, tally.cut);
    assert_eq!(failed, (0, 0, 0), "{what}: {tally:?}");
    assert!(tally.statuses.keys().all(|status| *status == 201), "{what}: {tally:?}");
}

/// What a store that keeps nothing has answered 201.
fn answered(ledger: &Ledger) -> usize {
    ledger.count(Answer::None)
}

/// Publishers over HTTP/2.
struct Http2 {
    node: Process,
    stdin: std::process::ChildStdin,
    said: PathBuf,
}

impl Http2 {
    fn start(gateway: &Kateway, topic: &Topic) -> Self {
        let said = folder::fresh("h2_publisher", ".json");
        let file = std::fs::File::create(&said).expect("the run's folder can be written");
        let mut command = Command::new("node");
        command.arg(folder::tests().join("harness/h2_publisher.mjs")).arg(gateway.publish.to_string());
        command.arg(format!("/v1/msgs/{}/v1", topic.name)).args([&topic.appid, "4", "8"]);
        command.stdin(Stdio::piped()).stdout(file).stderr(Stdio::inherit());
        let mut node = Process::start("node", command).expect("the tests need node");
        let stdin = node.stdin();
        Self { node, stdin, said }
    }

    /// The tally of its end.
    fn stop(self) -> serde_json::Value {
        let Self { mut node, stdin, said } = self;
        drop(stdin);
        assert!(node.wait(SOON).success());
        let text = std::fs::read_to_string(said).expect("it can be read");
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }
}

fn nothing_is_lost() {
    let migrates = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_migrate_req").unwrap_or_default();
    assert_eq!(migrates.trim(), "0", "the kernel does not do it for us");
    let path = socket();
    let topic = Topic::fresh("replaced");
    // Long enough that clients which pause hear with an answer that it goes.
    let builder = |shards| with_socket(Kateway::null().shards(shards), &path).set("drain.notice_s", 1);
    let mut gateway = builder(1).start();
    let mode = std::fs::metadata(&path).expect("the socket is there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    let ledger = Arc::new(Ledger::new(u64::from(gateway.pid())));
    let keep_alive = Plan { connections: 6, ..Plan::new(gateway.publish, &topic.appid, &topic.name) };
    let one_request = Plan { one_request_connections: true, ..keep_alive.numbered_from(100) };
    let pausing = Plan { connections: 20, pause: Duration::from_millis(400), ..keep_alive.numbered_from(200) };
    let loads = [&keep_alive, &one_request, &pausing].map(|plan| Load::start(plan, &ledger));
    let http2 = Http2::start(&gateway, &topic);
    let start = Instant::now();
    let (mut takeovers, mut took) = (0, Vec::new());
    // To 2 shards and back to 1, until there were enough requests, and at least six times.
    while takeovers < 6 || (answered(&ledger) < REQUESTS && start.elapsed() < Duration::from_secs(90)) {
        let before = answered(&ledger);
        wait_until(SOON, "some more are answered", || answered(&ledger) > before + 1_000);
        took.push(replace(&mut gateway, builder(2 - takeovers % 2)));
        takeovers += 1;
    }
    let [keep_alive, one_request, pausing] = loads.map(Load::stop);
    let http2 = http2.stop();
    let over_http2 = usize::try_from(http2["answered"].as_u64().expect("a number")).expect("fits");
    let total = keep_alive.status(201) + one_request.status(201) + pausing.status(201) + over_http2;
    let kinds = format!(
        "{} kept, {} of one request each, {} with a pause of 0.4 s, {over_http2} over HTTP/2 ({} GOAWAY, {} refused unseen \
         and sent again)",
        keep_alive.status(201),
        one_request.status(201),
        pausing.status(201),
        http2["goaways"],
        http2["refused"]
    );
    took.sort_unstable();
    figures::note("takeover: requests answered, failed", format!("{total} ({kinds}), 0, over {takeovers} takeovers"));
    figures::note("takeover: the old one ends after", format!("{:?} to {:?}", took[0], took[took.len() - 1]));
    assert_uncut("keep-alive", &keep_alive);
    assert_uncut("one request each", &one_request);
    assert_uncut("with a pause", &pausing);
    assert_eq!(http2["failures"], serde_json::json!({}), "{http2}");
    assert!(http2["goaways"].as_u64() >= Some(6), "it was told to go: {http2}");
    assert!(total >= REQUESTS, "{total}");
    assert!(gateway.terminate(SOON).success());
    assert!(!path.exists(), "its file goes with it");
}

/// On Kafka: what was acknowledged is there, and a group is read on by the successor.
fn acknowledged_is_stored() {
    let path = socket();
    let topic = Topic::fresh("handed");
    kafka().admin().create_topic(&topic.in_kafka(), 4);
    let builder = |shards| with_socket(Kateway::kafka(&kafka().bootstrap()).shards(shards), &path);
    let mut gateway = builder(2).start();
    let ledger = Arc::new(Ledger::new(u64::from(gateway.pid())));
    let load = Load::start(&Plan::new(gateway.publish, &topic.appid, &topic.name), &ledger);
    for shards in [1, 2] {
        let before = ledger.count(Answer::Durable);
        wait_until(SOON, "some more are durable", || ledger.count(Answer::Durable) > before + 500);
        gateway.subscribe(&topic.read("g", "wait=10s")).expect(200);
        replace(&mut gateway, builder(shards));
        let again = topic.read("g", "wait=10s");
        wait_until(Duration::from_mins(1), "the group goes on", || gateway.subscribe(&again).status == 200);
    }
    let tally = load.stop();
    assert_uncut("on Kafka", &tally);
    let verdict = ledger.check(&kcat::read_all(&kafka().bootstrap(), &topic.in_kafka()));
    figures::note("takeover: ledger", &verdict);
    verdict.assert_clean();
    assert_eq!(verdict.unknown, 0, "{verdict}");
}

/// Half a request, a long poll and a stream with the old one are ended by it, not cut.
fn what_is_under_way_is_finished() {
    let path = socket();
    let topic = Topic::fresh("halfway");
    let builder = with_socket(Kateway::null().shards(2), &path);
    let mut gateway = builder.clone().start();
    let request = topic.publish("", vec![b'x'; 10_000]).bytes();
    let mut half = gateway.publisher();
    half.send(&request[..5_000]).expect("sent");
    let mut poll = gateway.subscriber();
    poll.send(&topic.read("g", "wait=30s").bytes()).expect("sent");
    let mut stream = gateway.subscriber();
    stream.send(&topic.read("s", "stream=1").bytes()).expect("sent");
    stream.head().unwrap_or_else(|e| panic!("{e}")).expect(200);
    let mut idle = gateway.publisher();
    idle.call(&topic.publish("", "x")).unwrap_or_else(|e| panic!("{e}")).expect(201);
    wait_until(SOON, "the poll waits", || {
        gateway.status()["groups"].as_array().is_some_and(|groups| groups.iter().any(|group| group["waiting"] == 1))
    });
    let successor = builder.at(gateway.publish, gateway.subscribe).takes_over().start();
    assert!(poll.read_response().unwrap_or_else(|e| panic!("{e}")).expect(204).closes());
    let mut part = || stream.part().unwrap_or_else(|e| panic!("a stream ends whole: {e}"));
    while matches!(part(), Part::Chunk(_)) {}
    assert!(idle.closes_within(SOON), "an idle connection ends");
    assert!(!gateway.has_ended(), "half a request is waited for");
    // One SIGTERM says what the old one does already; two would cut.
    gateway.signal(libc::SIGTERM);
    half.send(&request[5_000..]).expect("sent");
    assert!(half.read_response().unwrap_or_else(|e| panic!("{e}")).expect(201).closes());
    assert_eq!(gateway.wait_end(SOON).code(), Some(0));
    successor.publish(&topic.publish("", "x")).expect(201);
}

/// One connection for each request, over TLS, while the gateway is replaced: the addresses stay, and nothing fails.
fn tls_is_handed_over_too() {
    let path = socket();
    let topic = Topic::fresh("sealed");
    let authority = Authority::new();
    let pair = authority.issue("DNS:a.test");
    let builder = |shards| with_tls(with_socket(Kateway::null().shards(shards), &path), &[&pair]);
    let mut gateway = builder(1).start();
    let addresses = ["pub_tls", "sub_tls", "man_tls"].map(|name| gateway.address(name));
    let client = authority.client(&[&TLS13], &[b"http/1.1"]);
    let (is_over, count, start) = (AtomicBool::new(false), AtomicUsize::new(0), Instant::now());
    std::thread::scope(|scope| {
        let publisher = || {
            // A trial that fails must end as well.
            while !is_over.load(Ordering::Relaxed) && start.elapsed() < Duration::from_mins(1) {
                let mut connection =
                    Connection::open_tls(addresses[0], &client, "a.test").unwrap_or_else(|e| panic!("{e}"));
                let request = topic.publish("", "x").header("Connection", "close");
                connection.call(&request).unwrap_or_else(|e| panic!("{e}")).expect(201);
                count.fetch_add(1, Ordering::Relaxed);
            }
        };
        let publishers = [(); 3].map(|()| scope.spawn(publisher));
        for shards in [2, 1] {
            let before = count.load(Ordering::Relaxed);
            wait_until(SOON, "some are answered", || count.load(Ordering::Relaxed) > before + 100);
            replace(&mut gateway, builder(shards));
            assert_eq!(["pub_tls", "sub_tls", "man_tls"].map(|name| gateway.address(name)), addresses);
        }
        let before = count.load(Ordering::Relaxed);
        wait_until(SOON, "they go on", || count.load(Ordering::Relaxed) > before + 100);
        is_over.store(true, Ordering::Relaxed);
        for publisher in publishers {
            publisher.join().expect("no request fails");
        }
    });
    let answered = count.load(Ordering::Relaxed);
    figures::note("takeover over TLS: requests answered, failed", format!("{answered}, 0, over 2 takeovers"));
}

/// Takes part in the handover up to a point, as told, and then is gone: over the real socket, by Python.
fn half_a_successor(path: &std::path::Path, hello: &str, wants_sockets: bool) -> String {
    const SCRIPT: &str = r"
import json, socket, sys
path, hello, wants = sys.argv[1:]
s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
s.settimeout(10)
s.connect(path)
s.send(hello.encode())
fds = 0
while True:
    data, got, _, _ = socket.recv_fds(s, 65536, 64)
    fds += len(got)
    said = json.loads(data) if data else None
    if wants != 'true' or said['sockets']['is_last']:
        print(json.dumps({'fds': fds, 'said': said}))
        break
";
    let mut command = Command::new("python3");
    command.args(["-c", SCRIPT]).arg(path).args([hello, &wants_sockets.to_string()]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let output = process::output("python3", command, SOON).expect("the tests need python3");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

fn failing_successor_costs_nothing() {
    let path = socket();
    let topic = Topic::fresh("kept");
    let builder = with_socket(Kateway::null().shards(3), &path);
    let mut gateway = builder.clone().start();
    let hello = r#"{"hello":{"version":1,"pid":1,"build":"x","later":"field"}}"#;
    let other = r#"{"hello":{"version":99,"pid":1,"build":"x"}}"#;
    for _ in 0..3 {
        // Two listeners of three shards, and man.
        assert!(half_a_successor(&path, hello, true).starts_with(r#"{"fds": 7,"#));
        let refused = half_a_successor(&path, other, false);
        assert!(refused.contains("refused") && refused.contains("version 99"), "{refused}");
        assert_eq!(half_a_successor(&path, "nonsense", false), r#"{"fds": 0, "said": null}"#);
    }
    for _ in 0..50 {
        gateway.publish(&topic.publish("", "x")).expect(201);
    }
    assert!(!gateway.has_ended());
    assert!(gateway.log().contains("this gateway goes on"), "{}", gateway.log());
    gateway.manage(&Request::get("/readyz")).expect(200);
    replace(&mut gateway, builder);
    gateway.publish(&topic.publish("", "x")).expect(201);
}

fn successor_without_a_cluster_gives_up() {
    let path = socket();
    let topic = Topic::fresh("kept");
    let gateway = with_socket(Kateway::null().shards(2), &path).start();
    let mut kept = gateway.publisher();
    kept.call(&topic.publish("", "x")).unwrap_or_else(|e| panic!("{e}")).expect(201);
    let nobody = format!("127.0.0.1:{}", ports::reserve());
    let socket = format!("gateway.takeover_socket={}", path.display());
    let [publish, subscribe, manage] = [gateway.publish, gateway.subscribe, gateway.manage].map(|a| a.to_string());
    let args =
        ["takeover", "--brokers", &nobody, "--set", &socket, "--shards", "2", "--pub", &publish, "--sub", &subscribe];
    let successor = std::thread::spawn({
        let args: Vec<String> = args.iter().map(ToString::to_string).chain(["--man".into(), manage]).collect();
        move || kateway::run_within(&args.iter().map(String::as_str).collect::<Vec<_>>(), Duration::from_mins(1))
    });
    while !successor.is_finished() {
        let mut fresh = Connection::open(gateway.publish).unwrap_or_else(|e| panic!("{e}"));
        for connection in [&mut kept, &mut fresh] {
            let answer = connection.call(&topic.publish("", "x")).unwrap_or_else(|e| panic!("{e}")).expect(201);
            assert!(!answer.closes());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let (code, stdout, stderr) = successor.join().expect("it does not panic");
    assert_eq!((code, stdout.as_str()), (69, ""), "{stderr}");
    assert!(stderr.contains("the running gateway goes on"), "{stderr}");
    gateway.publish(&topic.publish("", "x")).expect(201);
}

fn nobody_to_take_over_from() {
    let path = socket();
    let key = format!("gateway.takeover_socket={}", path.display());
    let addresses = ["--pub", "127.0.0.1:0", "--sub", "127.0.0.1:0", "--man", "127.0.0.1:0"];
    let run = |args: &[&str]| kateway::run(&[args, &addresses[..]].concat());
    let (code, _, stderr) = run(&["takeover", "--store", "null", "--set", &key]);
    assert_eq!(code, 69, "{stderr}");
    assert!(stderr.contains("cannot take over"), "{stderr}");
    let (code, _, stderr) = run(&["takeover", "--store", "null"]);
    assert_eq!(code, 64, "{stderr}");
    assert!(stderr.contains("gateway.takeover_socket"), "{stderr}");

    // A file that a killed gateway left is no obstacle, a running one is.
    std::fs::File::create(&path)
        .expect("the folder of temporary files can be written")
        .write_all(b"x")
        .expect("written");
    let mut gateway = with_socket(Kateway::null(), &path).start();
    gateway.kill();
    assert!(path.exists());
    let gateway = with_socket(Kateway::null(), &path).start();
    let (code, _, stderr) = run(&["run", "--store", "null", "--set", &key]);
    assert_eq!(code, 69, "{stderr}");
    assert!(stderr.contains("another gateway"), "{stderr}");
    gateway.manage(&Request::get("/readyz")).expect(200);
}
