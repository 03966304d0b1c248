//! SIGTERM ends the gateway without cutting anybody off.
//!
//! Method: under load of keep-alive connections, one-request connections and long polls, SIGTERM is sent. During the
//! notice everything is served, each answer saying `Connection: close`, while `/readyz` is 503; then long polls end
//! with 204, every request that was accepted is answered, over HTTP/2 as well, and the process ends with 0 within the drain time. The ledger
//! must find every durable message. A second SIGTERM ends it at once with 3.

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kateway_tests::client::{Connection, Failure, Request};
use kateway_tests::kateway::Kateway;
use kateway_tests::ledger::{Answer, Ledger};
use kateway_tests::load::{Load, Plan, Tally};
use kateway_tests::topic::Topic;
use kateway_tests::{figures, folder, kcat, problem, process, wait_until};

use crate::{Case, kafka};

pub const CASES: &[Case] = &[
    Case::new("drain::nothing_is_cut_under_load", nothing_is_cut_under_load).kafka().alone(),
    Case::new("drain::notice_serves_and_announces", notice_serves_and_announces),
    Case::new("drain::long_polls_end_with_204", long_polls_end_with_204),
    Case::new("drain::request_under_way_is_finished", request_under_way_is_finished),
    Case::new("drain::streams_under_way_are_answered", streams_under_way_are_answered),
    Case::new("drain::idle_gateway_ends_at_once", idle_gateway_ends_at_once),
    Case::new("drain::sigint_drains_too", sigint_drains_too),
    Case::new("drain::second_sigterm_cuts", second_sigterm_cuts),
    Case::new("drain::stuck_client_cannot_hold_it_up", stuck_client_cannot_hold_it_up),
];

fn nothing_is_cut_under_load() {
    let admin = kafka().admin();
    let topic = Topic::fresh("drained");
    let quiet = Topic::new(&topic.appid, "quiet", "v1");
    admin.create_topic(&topic.in_kafka(), 4);
    admin.create_topic(&quiet.in_kafka(), 1);
    let mut gateway = Kateway::kafka(admin.brokers()).shards(2).set("drain.notice_s", 2).start();
    let mut polls: Vec<Connection> = (0..10).map(|_| gateway.subscriber()).collect();
    for poll in &mut polls {
        poll.send(&quiet.read("g", "wait=30s").bytes()).expect("sent");
    }
    let ledger = Arc::new(Ledger::new(u64::from(gateway.pid())));
    let keep_alive = Plan::new(gateway.publish, &topic.appid, &topic.name);
    let one_request = Plan { one_request_connections: true, ..keep_alive.numbered_from(100) };
    let loads = [Load::start(&keep_alive, &ledger), Load::start(&one_request, &ledger)];
    wait_until(Duration::from_secs(20), "a thousand durable answers", || ledger.count(Answer::Durable) >= 1_000);

    let start = Instant::now();
    gateway.signal(libc::SIGTERM);
    for poll in &mut polls {
        poll.read_response().unwrap_or_else(|e| panic!("a long poll is answered: {e}")).expect(204);
    }
    // `drain.timeout_s`, and not a moment more.
    let status = gateway.wait_end(Duration::from_secs(20));
    let took = start.elapsed();
    let [keep_alive, one_request] = loads.map(Load::stop);
    figures::note("drain under load: from SIGTERM to exit, notice 2 s", format!("{took:?}"));
    assert_eq!(status.code(), Some(0));
    assert!(took > Duration::from_millis(1_900), "the notice is kept: {took:?}");
    assert_uncut("keep-alive", &keep_alive, 0);
    assert_uncut("one request each", &one_request, HANDSHAKES_RESET_MAX);
    let verdict = ledger.check(&kcat::read_all(admin.brokers(), &topic.in_kafka()));
    figures::note("drain under load: ledger", &verdict);
    verdict.assert_clean();
    assert_eq!(verdict.unknown, one_request.unanswered, "every request that was accepted is answered: {verdict}");
}

/// A connection whose handshake is under way when a listener closes is reset by the kernel, which no process can see or prevent: at some
/// 700 connections a second that is one in some fifty runs. (Only a successor that takes the sockets over is without that.)
const HANDSHAKES_RESET_MAX: usize = 1;

/// Once nothing listens any more a client is refused by the kernel; that is not a cut.
fn assert_uncut(what: &str, tally: &Tally, unanswered_max: usize) {
    assert!(tally.unanswered <= unanswered_max, "{what}: {tally:?}");
    assert_eq!(tally.cut, 0, "{what}: {tally:?}");
    assert!(tally.statuses.keys().all(|status| *status == 201), "{what}: {tally:?}");
}

fn notice_serves_and_announces() {
    let mut gateway = Kateway::memory().shards(2).set("drain.notice_s", 2).start();
    let topic = Topic::fresh("noticed");
    let mut kept = gateway.publisher();
    let answer = kept.call(&topic.publish("", "before")).expect("an answer").expect(201);
    assert!(!answer.closes());
    gateway.manage(&Request::get("/readyz")).expect(200);

    gateway.signal(libc::SIGTERM);
    let noticed = wait_until(Duration::from_secs(1), "readyz says 503", || {
        gateway.manage(&Request::get("/readyz")).status == 503
    });
    figures::note("drain: readyz is 503 after", format!("{noticed:?}"));
    problem::check(&gateway.manage(&Request::get("/readyz")), 503);
    gateway.manage(&Request::get("/alive")).expect(200);
    let answer = kept.call(&topic.publish("", "on a kept connection")).expect("an answer").expect(201);
    assert!(answer.closes(), "the answer tells the client to go elsewhere");
    let answer = gateway.publish(&topic.publish("", "on a new connection")).expect(201);
    assert!(answer.closes());
    let answer = gateway.subscribe(&topic.read("g", "wait=1s")).expect(200);
    assert!(answer.closes());
    assert_eq!(gateway.wait_end(Duration::from_secs(10)).code(), Some(0));
}

fn long_polls_end_with_204() {
    let mut gateway = Kateway::memory().shards(2).start();
    let topic = Topic::fresh("polled");
    gateway.publish(&topic.publish("", "x")).expect(201);
    gateway.subscribe(&topic.read("g", "wait=5s")).expect(200);
    let mut polls: Vec<Connection> = (0..40).map(|_| gateway.subscriber()).collect();
    for poll in &mut polls {
        poll.send(&topic.read("g", "wait=30s").bytes()).expect("sent");
    }
    wait_until(Duration::from_secs(5), "all of them wait", || {
        gateway.status()["groups"].as_array().is_some_and(|groups| groups.iter().any(|group| group["waiting"] == 40))
    });
    let start = Instant::now();
    gateway.signal(libc::SIGTERM);
    for poll in &mut polls {
        let answer = poll.read_response().unwrap_or_else(|e| panic!("{e}")).expect(204);
        assert!(answer.closes());
    }
    assert_eq!(gateway.wait_end(Duration::from_secs(10)).code(), Some(0));
    figures::note("drain: 40 long polls, no notice, SIGTERM to exit", format!("{:?}", start.elapsed()));
}

/// What the client has begun to send, or to read, when the signal comes goes on to its end.
fn request_under_way_is_finished() {
    let mut gateway = Kateway::memory().start();
    let topic = Topic::fresh("finished");
    for _ in 0..40 {
        gateway.publish(&topic.publish("key=k", vec![b'x'; 500_000])).expect(201);
    }
    let request = topic.publish("", vec![b'x'; 10_000]).bytes();
    let mut sending = gateway.publisher();
    sending.send(&request[..5_000]).expect("sent");
    let mut head_only = gateway.publisher();
    head_only.send(&request[..20]).expect("sent");
    let mut reading = gateway.subscriber();
    reading.send(&topic.read("g", "batch=40&wait=5s&linger=1s").bytes()).expect("sent");
    let begin = reading.read_raw(100).expect("the answer begins");
    wait_until(Duration::from_secs(2), "the requests have begun", || {
        gateway.scrape().sum("kateway_connections", &[]) >= 3.0
    });
    gateway.signal(libc::SIGTERM);
    wait_until(Duration::from_secs(2), "new connections are refused", || Connection::open(gateway.publish).is_err());
    for (what, begun, connection) in [("body", 5_000, &mut sending), ("head", 20, &mut head_only)] {
        connection.send(&request[begun..]).unwrap_or_else(|e| panic!("half a {what} at SIGTERM: {e}"));
        let answer = connection.read_response().unwrap_or_else(|e| panic!("half a {what} at SIGTERM: {e}"));
        assert!(answer.expect(201).closes());
    }
    reading.put_back(&begin);
    let answer = reading.read_response().unwrap_or_else(|e| panic!("half an answer at SIGTERM: {e}")).expect(200);
    assert!(answer.body.len() > 4_000_000, "all of it: {}", answer.body.len());
    assert_eq!(gateway.wait_end(Duration::from_secs(5)).code(), Some(0));
}

/// Over HTTP/2: publishes under way are answered, a long poll ends with 204 on its stream, and the clients are told to go by GOAWAY.
fn streams_under_way_are_answered() {
    const STREAMS: u32 = 32;
    // A publish takes so long that all of them are under way when the signal comes.
    let mut gateway = Kateway::null().shards(2).set("null.delay_us", 3_000_000).start();
    let topic = Topic::fresh("streams");
    let appid = format!("Appid: {}", topic.appid);
    let body = folder::fresh("h2load", ".body");
    std::fs::write(&body, "x").expect("the run's folder can be written");
    let mut publish = Command::new("h2load");
    publish.args(["-n", &STREAMS.to_string(), "-c", "4", "-m", "8", "-H", &appid, "-d"]).arg(&body);
    publish.arg(format!("http://{}/v1/msgs/{}/v1", gateway.publish, topic.name));
    let mut poll = Command::new("nghttp");
    poll.args(["-v", "-H", &appid]);
    poll.arg(format!("http://{}/v1/msgs/{}/{}/v1?group=g&wait=30s", gateway.subscribe, topic.appid, topic.name));
    let running = |mut command: Command| {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        process::spawn(command).expect("the tests need h2load and nghttp (package nghttp2-client)")
    };
    let poll = running(poll);
    wait_until(Duration::from_secs(10), "the long poll waits", || {
        gateway.status()["groups"].as_array().is_some_and(|groups| groups.iter().any(|group| group["waiting"] == 1))
    });
    let publish = running(publish);
    wait_until(Duration::from_secs(3), "all publishes are under way", || {
        gateway.scrape().sum("kateway_pub_inflight", &[]) >= f64::from(STREAMS)
    });
    let start = Instant::now();
    gateway.signal(libc::SIGTERM);
    let [polled, published] = [poll, publish].map(|child| {
        let output = child.wait_with_output().expect("the tool ends");
        String::from_utf8_lossy(&output.stdout).into_owned()
    });
    assert!(polled.contains(":status: 204") && polled.contains("recv GOAWAY frame"), "{polled}");
    let requests =
        format!("requests: {STREAMS} total, {STREAMS} started, {STREAMS} done, {STREAMS} succeeded, 0 failed");
    assert!(published.contains(&requests), "{published}");
    assert!(published.contains(&format!("status codes: {STREAMS} 2xx, 0 3xx, 0 4xx, 0 5xx")), "{published}");
    assert_eq!(gateway.wait_end(Duration::from_secs(10)).code(), Some(0));
    figures::note("drain: 32 streams and a long poll over HTTP/2, SIGTERM to exit", format!("{:?}", start.elapsed()));
}

fn idle_gateway_ends_at_once() {
    let mut gateway = Kateway::memory().shards(2).start();
    let _idle: Vec<Connection> = (0..20).map(|_| gateway.publisher()).collect();
    let start = Instant::now();
    assert_eq!(gateway.terminate(Duration::from_secs(5)).code(), Some(0));
    figures::note("drain: idle gateway, SIGTERM to exit", format!("{:?}", start.elapsed()));
}

fn sigint_drains_too() {
    let mut gateway = Kateway::memory().start();
    gateway.signal(libc::SIGINT);
    assert_eq!(gateway.wait_end(Duration::from_secs(5)).code(), Some(0));
}

fn second_sigterm_cuts() {
    let mut gateway = Kateway::memory().set("drain.notice_s", 15).start();
    let topic = Topic::fresh("cut");
    gateway.publish(&topic.publish("", "x")).expect(201);
    gateway.subscribe(&topic.read("g", "wait=5s")).expect(200);
    let mut poll = gateway.subscriber();
    poll.send(&topic.read("g", "wait=30s").bytes()).expect("sent");
    gateway.signal(libc::SIGTERM);
    wait_until(Duration::from_secs(2), "the notice has begun", || {
        gateway.manage(&Request::get("/readyz")).status == 503
    });
    let start = Instant::now();
    gateway.signal(libc::SIGTERM);
    assert_eq!(gateway.wait_end(Duration::from_secs(3)).code(), Some(3));
    figures::note("drain: second SIGTERM to exit", format!("{:?}", start.elapsed()));
    assert!(matches!(poll.read_response(), Err(Failure::NoAnswer)), "cut means cut");
    assert!(gateway.log().contains("cut"), "the log says what was cut:\n{}", gateway.log());
}

/// A client that sends half a body and one that never reads its answer: both are given up when the drain time ends.
fn stuck_client_cannot_hold_it_up() {
    let mut gateway = Kateway::memory().set("drain.timeout_s", 8).start();
    let topic = Topic::fresh("stuck");
    let request = topic.publish("", vec![b'x'; 10_000]).bytes();
    let mut half = gateway.publisher();
    half.send(&request[..5_000]).expect("sent");
    for _ in 0..40 {
        gateway.publish(&topic.publish("key=k", vec![b'x'; 500_000])).expect(201);
    }
    let mut deaf = gateway.subscriber();
    deaf.send(&topic.read("g", "batch=40&wait=5s").bytes()).expect("sent");
    deaf.read_raw(10).expect("the answer begins");
    let start = Instant::now();
    let status = gateway.terminate(Duration::from_secs(12));
    let took = start.elapsed();
    figures::note("drain: two stuck clients, timeout 8 s, SIGTERM to exit", format!("{took:?}"));
    assert!(took > Duration::from_secs(1) && took < Duration::from_secs(8), "given time, but not for ever: {took:?}");
    assert_eq!(status.code(), Some(0));
}
