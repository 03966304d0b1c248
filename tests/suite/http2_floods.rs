//! A client that floods an HTTP/2 connection with frames loses it, and takes little from anybody else.
//!
//! Method: raw frames. Ten thousand of each kind are sent on one connection and on fifty; each connection must be ended, with a GOAWAY
//! that asks for calm, be counted by its kind, and the gateway must not have grown. Beside the fifty another client publishes: its rate
//! is compared with its own before and after. Clients that do what clients do, at a rate over the same bounds, are served.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use kateway_tests::client::{Connection, Failure};
use kateway_tests::h2::{
    self, CANCEL, CONTINUATION, DATA, END_HEADERS, END_STREAM, ENHANCE_YOUR_CALM, GOAWAY, HEADERS, PING, PRIORITY,
    RST_STREAM, SETTINGS, WINDOW_UPDATE, frame, read_frame,
};
use kateway_tests::kateway::Kateway;
use kateway_tests::topic::Topic;
use kateway_tests::{figures, wait_until};

use crate::Case;

pub const CASES: &[Case] = &[
    Case::new("http2_floods::each_kind_ends_its_connection", each_kind_ends_its_connection),
    Case::new("http2_floods::fifty_connections_harm_nobody", fifty_connections_harm_nobody).alone(),
    Case::new("http2_floods::proper_clients_are_not_harmed", proper_clients_are_not_harmed),
];

const SOON: Duration = Duration::from_secs(10);
const FRAMES: u32 = 10_000;
const GROWTH_KIB_MAX: u64 = 10 * 1024;

/// Names of the kinds as the counter has them.
const KINDS: [&str; 11] = [
    "reset",
    "reset by window",
    "any by window",
    "any by length",
    "ping",
    "settings",
    "empty_data",
    "continuation",
    "window_update",
    "other",
    "other unknown",
];

fn publish(topic: &Topic) -> Vec<u8> {
    h2::head("POST", &format!("/v1/msgs/{}/v1", topic.name), &[("appid", &topic.appid)])
}

/// Greeting and flood.
fn flood(kind: &str, topic: &Topic) -> Vec<u8> {
    let head = publish(topic);
    let sized = [head.clone(), h2::block(&[("content-length", "1")])].concat();
    let open = |stream: u32| frame(HEADERS, END_HEADERS, stream, &head);
    let one = |n: u32| match kind {
        "reset" => [open(2 * n + 1), frame(RST_STREAM, 0, 2 * n + 1, &CANCEL)].concat(),
        // Windows beyond their bound make the server reset streams (CVE-2025-8671), as do bodies longer than announced.
        "reset by window" | "any by window" => {
            [open(2 * n + 1), frame(WINDOW_UPDATE, 0, 2 * n + 1, &[0x7f, 255, 255, 255])].concat()
        }
        "any by length" => {
            [frame(HEADERS, END_HEADERS, 2 * n + 1, &sized), frame(DATA, END_STREAM, 2 * n + 1, b"xx")].concat()
        }
        "ping" => frame(PING, 0, 0, b"kateway?"),
        "settings" => frame(SETTINGS, 0, 0, &[0, 4, 0, 1, 0, 0]),
        "empty_data" => frame(DATA, 0, 1, b""),
        "continuation" => frame(CONTINUATION, 0, 1, b""),
        "window_update" => frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]),
        "other" => frame(PRIORITY, 0, 3, &[0, 0, 0, 1, 0]),
        _ => frame(0xee, 0, 0, b"unknown"),
    };
    let first = match kind {
        "empty_data" => open(1),
        "continuation" => frame(HEADERS, 0, 1, &head),
        _ => Vec::new(),
    };
    // More of these at once meet hyper's own bound now and then.
    let count = if kind == "reset by window" { 200 } else { FRAMES };
    [h2::greeting(), first, (0..count).flat_map(one).collect()].concat()
}

fn counted(gateway: &Kateway, kind: &str) -> f64 {
    let scrape = gateway.scrape();
    match kind.split(' ').next() {
        // Ours or hyper's own bound, whichever sees it first.
        Some("any") => scrape.sum("kateway_h2_floods_total", &[]),
        kind => scrape.sum("kateway_h2_floods_total", &[("kind", kind.unwrap_or_default())]),
    }
}

/// Sends all of it and reads what comes until the end; gives the GOAWAY's code.
fn attack(address: SocketAddr, bytes: &[u8]) -> Option<u32> {
    let mut connection = Connection::open(address).expect("the listener accepts");
    connection.patience(SOON);
    // The gateway may have closed before the last byte was sent.
    let _ = connection.send(bytes);
    let mut code = None;
    loop {
        match read_frame(&mut connection) {
            Ok(frame) if frame.kind == GOAWAY => code = frame.code(),
            Ok(_) => {}
            Err(Failure::Timeout) => panic!("the connection is not ended"),
            Err(_) => return code,
        }
    }
}

fn each_kind_ends_its_connection() {
    let gateway = Kateway::null().start();
    let topic = Topic::fresh("flood");
    gateway.publish(&topic.publish("", "warm")).expect(201);
    for kind in KINDS {
        let (before, resident) = (counted(&gateway, kind), gateway.resident_kib());
        let start = Instant::now();
        let code = attack(gateway.publish, &flood(kind, &topic));
        assert!(start.elapsed() < Duration::from_secs(5), "{kind}: {:?}", start.elapsed());
        assert_eq!(code, Some(ENHANCE_YOUR_CALM), "{kind}");
        assert_eq!(counted(&gateway, kind), before + 1.0, "{kind}");
        let growth = gateway.resident_kib().saturating_sub(resident);
        assert!(growth < GROWTH_KIB_MAX, "{kind}: {growth} KiB");
    }
    gateway.publish(&topic.publish("", "still served")).expect(201);
}

/// Publishes one after the other until told to stop.
struct Bystander {
    answered: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Bystander {
    fn start(gateway: &Kateway, topic: &Topic) -> Self {
        let (answered, stop) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
        let (mut connection, request) = (gateway.publisher(), topic.publish("", vec![b'b'; 100]));
        let (count, ended) = (Arc::clone(&answered), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                connection.call(&request).unwrap_or_else(|e| panic!("{e}")).expect(201);
                count.fetch_add(1, Ordering::Relaxed);
            }
        });
        Self { answered, stop, thread: Some(thread) }
    }

    /// Answers a second while `what` happens, and how long it took.
    fn rate(&self, what: impl FnOnce()) -> (f64, Duration) {
        let (start, before) = (Instant::now(), self.answered.load(Ordering::Relaxed));
        what();
        let answered = self.answered.load(Ordering::Relaxed) - before;
        let answered = f64::from(u32::try_from(answered).expect("a count"));
        (answered / start.elapsed().as_secs_f64(), start.elapsed())
    }

    fn end(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().expect("it runs").join().expect("every publish was answered");
    }
}

/// The fifty come one after the other over a second, as from an attacker who has no machine of his own on the gateway's CPUs: what the
/// sender costs is not what is measured.
fn fifty_connections_harm_nobody() {
    let gateway = Kateway::null().start();
    let topic = Topic::fresh("flood");
    let bystander = Bystander::start(&gateway, &topic);
    let pause = || std::thread::sleep(Duration::from_millis(500));
    bystander.rate(pause);
    let (mut worst, mut grown) = (f64::MAX, 0);
    for kind in KINDS {
        let bytes = flood(kind, &topic);
        let attack_all = || {
            let start = Instant::now();
            for n in 0..50 {
                attack(gateway.publish, &bytes);
                std::thread::sleep(
                    (start + Duration::from_millis(20) * (n + 1)).saturating_duration_since(Instant::now()),
                );
            }
        };
        // The machine has other work; a fall that is the flood's is there each time.
        let share = (0..3)
            .map(|_| {
                let (counted_before, resident) = (counted(&gateway, kind), gateway.resident_kib());
                let (before, _) = bystander.rate(pause);
                let (during, took) = bystander.rate(attack_all);
                let (after, _) = bystander.rate(pause);
                assert_eq!(counted(&gateway, kind), counted_before + 50.0, "{kind}");
                assert!(took < SOON, "{kind}: {took:?}");
                grown = grown.max(gateway.resident_kib().saturating_sub(resident));
                during / before.min(after)
            })
            .find(|share| *share > 2.0 / 3.0);
        let share =
            share.unwrap_or_else(|| panic!("{kind}: the other client's rate falls by more than a third, three times"));
        worst = worst.min(share);
    }
    bystander.end();
    figures::note(
        "http2 floods: 50 connections, another client's rate (worst kind)",
        format!("{:.0} %", worst * 100.0),
    );
    figures::note("http2 floods: 50 connections, resident memory grows by", format!("{grown} KiB"));
    assert!(grown < GROWTH_KIB_MAX, "{grown} KiB");
}

/// More of everything than a flood has, as clients have it: bodies that end in an empty DATA, cancelled requests, PINGs, windows that
/// follow what was received; each below its rate, or tied to requests.
fn proper_clients_are_not_harmed() {
    let gateway = Kateway::null().start();
    let topic = Topic::fresh("flood");
    let head = publish(&topic);
    let mut connection = gateway.publisher();
    connection.send(&h2::greeting()).expect("sent");
    for round in 0..20_u32 {
        for n in 0..50 {
            let stream = 2 * (round * 50 + n) + 1;
            let body = [frame(DATA, 0, stream, b"body"), frame(DATA, END_STREAM, stream, b"")].concat();
            connection.send(&[frame(HEADERS, END_HEADERS, stream, &head), body].concat()).expect("sent");
            loop {
                let frame = read_frame(&mut connection).unwrap_or_else(|e| panic!("stream {stream}: {e}"));
                assert!(frame.kind != GOAWAY && frame.kind != RST_STREAM, "stream {stream}: {frame:?}");
                if frame.kind == DATA {
                    let window = u32::try_from(frame.payload.len()).expect("short").to_be_bytes();
                    connection.send(&h2::frame(WINDOW_UPDATE, 0, 0, &window)).expect("sent");
                }
                if frame.stream == stream && frame.flags & END_STREAM != 0 {
                    break;
                }
            }
        }
    }
    // A hundred long polls given up at once.
    let cancelled: Vec<u8> = (0..100)
        .flat_map(|n| {
            let stream = 2 * (1_000 + n) + 1;
            [frame(HEADERS, END_HEADERS, stream, &head), frame(RST_STREAM, 0, stream, &CANCEL)].concat()
        })
        .collect();
    connection.send(&cancelled).expect("sent");
    h2::ping(&mut connection);
    wait_until(SOON, "no flood was counted".to_owned(), || gateway.scrape().sum("kateway_h2_floods_total", &[]) == 0.0);
}
