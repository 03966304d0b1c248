//! What a WebSocket has acknowledged is in the topic, once and in order, whatever dies meanwhile.
//!
//! Method: publishers with one connection and one key each keep a hundred messages under way, enter every one in a ledger before its frame
//! goes out, and enter what they are told: acknowledged, failed for sure, or unknown; what was never told of is unknown. A lost
//! connection is made anew, and nothing is sent twice. Meanwhile the broker that leads is killed and started again, and the gateway is
//! killed and started again. Then the whole topic is read by kcat: the ledger must find nothing lost, nothing that was refused, no order
//! broken. The same under SIGTERM, where every connection has to end with 1001 and every message that was taken be told of.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use kateway_tests::crowd::Places;
use kateway_tests::kateway::Kateway;
use kateway_tests::ledger::{Answer, Ledger};
use kateway_tests::topic::Topic;
use kateway_tests::ws::{BINARY, Event, FINAL, WebSocket, frame, handshake};
use kateway_tests::{figures, kcat, wait_until};

use crate::{Case, kafka};

pub const CASES: &[Case] = &[
    Case::new("ws_ledger::broker_and_gateway_killed", broker_and_gateway_killed).kafka().alone(),
    Case::new("ws_ledger::sigterm_under_load", sigterm_under_load).kafka().alone(),
];

pub const CONNECTIONS: u32 = 8;
const AGAIN: Duration = Duration::from_mins(1);
/// A key of its own for each connection there ever is.
const KEYS: u32 = 1_000;

/// What publishers were told besides acknowledgements.
#[derive(Debug, Default)]
pub struct Told {
    /// How connections ended: close codes; 0 without a goodbye.
    pub ends: BTreeMap<u16, usize>,
    pub failures: BTreeMap<u64, usize>,
    /// Handshakes that were answered by another status; 0: by none, or nothing listened.
    pub refused: BTreeMap<u16, usize>,
}

/// How a connection publishes.
#[derive(Clone, Copy)]
pub struct Pace {
    /// Messages at a time that it was not told of.
    pub under_way: usize,
    /// After each look at what it was told.
    pub pause: Duration,
}

impl Pace {
    const FULL: Self = Self { under_way: 100, pause: Duration::ZERO };
}

pub struct Load {
    stop: Arc<AtomicBool>,
    told: Arc<Mutex<Told>>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    /// Connections are made to `places` in turn.
    pub fn start(places: &Places, topic: &Topic, ledger: &Arc<Ledger>, pace: Pace) -> Self {
        let (stop, told) = (Arc::<AtomicBool>::default(), Arc::<Mutex<Told>>::default());
        let publisher = |number| {
            let (places, topic, ledger) = (places.clone(), topic.clone(), Arc::clone(ledger));
            let (stop, told) = (Arc::clone(&stop), Arc::clone(&told));
            std::thread::spawn(move || {
                for life in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let connection = number + CONNECTIONS * life;
                    let target = format!("/v1/ws/msgs/{}/v1?key=key-{}", topic.name, connection % KEYS);
                    let address = places.nth((number + life) as usize).expect("a gateway is to be there");
                    let status = match WebSocket::dial(address, &handshake("GET", &target).app(&topic.appid)) {
                        Ok(Ok((ws, _))) => {
                            publish(ws, connection, pace, &ledger, &stop, &told);
                            continue;
                        }
                        Ok(Err(refusal)) => refusal.status,
                        Err(_) => 0,
                    };
                    // Nobody is there, or not any more.
                    *told.lock().expect("nobody panicked").refused.entry(status).or_default() += 1;
                    std::thread::sleep(Duration::from_millis(20));
                }
            })
        };
        let threads = (0..CONNECTIONS).map(publisher).collect();
        Self { stop, told, threads }
    }

    pub fn stop(self) -> Told {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.into_iter().for_each(|thread| thread.join().expect("a publisher does not panic"));
        Arc::into_inner(self.told).expect("they have ended").into_inner().expect("nobody panicked")
    }
}

/// Publishes until the connection ends, or `stop`; then until all is told.
fn publish(mut ws: WebSocket, connection: u32, pace: Pace, ledger: &Ledger, stop: &AtomicBool, told: &Mutex<Told>) {
    let mut under_way = VecDeque::new();
    let (mut acked, mut failed) = (0, BTreeMap::new());
    let mut is_closing = false;
    loop {
        let mut frames = Vec::new();
        while !stop.load(Ordering::Relaxed) && under_way.len() < pace.under_way {
            let draft = ledger.enter(connection, connection % KEYS, 200);
            frames.extend(frame(FINAL | BINARY, &draft.body));
            under_way.push_back(draft.id);
        }
        if !frames.is_empty() {
            // One that has gone is found by reading.
            let _ = ws.send_raw(&frames);
        } else if stop.load(Ordering::Relaxed) && under_way.is_empty() && !is_closing {
            is_closing = true;
            let _ = ws.send_raw(&frame(FINAL | kateway_tests::ws::CLOSE, &1000_u16.to_be_bytes()));
        }
        std::thread::sleep(pace.pause);
        let end = match ws.next(Duration::from_secs(30)) {
            Event::Text(text) => {
                let said: serde_json::Value = serde_json::from_str(&text).expect("JSON");
                if let Some(n) = said["n"].as_u64() {
                    let code = said["code"].as_u64().expect("a failure has its code");
                    failed.insert(n, code);
                    *told.lock().expect("nobody panicked").failures.entry(code).or_default() += 1;
                } else {
                    let n = said["ack"].as_u64().expect("an acknowledgement");
                    while acked < n {
                        acked += 1;
                        let id = under_way.pop_front().expect("only what was sent is acknowledged");
                        let answer = match failed.remove(&acked) {
                            None => Answer::Durable,
                            Some(50400) => Answer::Unknown,
                            Some(_) => Answer::Refused,
                        };
                        ledger.answered(id, answer);
                    }
                }
                continue;
            }
            Event::Close(code, _) => code,
            Event::End => 0,
            other => panic!("{other:?}"),
        };
        *told.lock().expect("nobody panicked").ends.entry(end).or_default() += 1;
        return;
    }
}

fn broker_and_gateway_killed() {
    let topic = Topic::fresh("ws-ledger");
    kafka().admin().create_topic(&topic.in_kafka(), 3);
    let mut gateway = Kateway::kafka(&kafka().bootstrap()).shards(2).start();
    let (publish, subscribe) = (gateway.publish, gateway.subscribe);
    let ledger = Arc::new(Ledger::new(u64::from(gateway.pid())));
    let load = Load::start(&Places::new([publish]), &topic, &ledger, Pace::FULL);
    let wait_more = |more: usize| {
        let goal = ledger.count(Answer::Durable) + more;
        wait_until(AGAIN, format!("{more} more are acknowledged"), || ledger.count(Answer::Durable) >= goal)
    };
    wait_more(5_000);
    let leader = u32::try_from(kafka().admin().leader(&topic.in_kafka(), 0)).expect("it has a leader");
    kafka().kill(leader);
    wait_more(10_000);
    kafka().restart(leader);
    kafka().wait_recovered();
    wait_more(5_000);
    gateway.kill();
    gateway = Kateway::kafka(&kafka().bootstrap()).shards(2).at(publish, subscribe).start();
    wait_more(5_000);
    let told = load.stop();
    drop(gateway);
    kafka().wait_in_sync(&topic.in_kafka());
    let verdict = ledger.check(&kcat::read_all(&kafka().bootstrap(), &topic.in_kafka()));
    figures::note("WebSocket, broker and gateway killed: ledger", &verdict);
    figures::note("WebSocket, broker and gateway killed: told", format!("{told:?}"));
    verdict.assert_clean();
    assert!(verdict.unknown > 0, "the kill hit messages under way: {verdict}");
}

fn sigterm_under_load() {
    let topic = Topic::fresh("ws-drain");
    kafka().admin().create_topic(&topic.in_kafka(), 3);
    let mut gateway = Kateway::kafka(&kafka().bootstrap()).shards(2).set("drain.notice_s", 1).start();
    let ledger = Arc::new(Ledger::new(u64::from(gateway.pid())));
    let load = Load::start(&Places::new([gateway.publish]), &topic, &ledger, Pace::FULL);
    wait_until(AGAIN, "5,000 are acknowledged", || ledger.count(Answer::Durable) >= 5_000);
    gateway.signal(libc::SIGTERM);
    let status = gateway.wait_end(Duration::from_secs(20));
    let told = load.stop();
    assert_eq!(status.code(), Some(0));
    assert_eq!(told.ends, BTreeMap::from([(1001, CONNECTIONS as usize)]), "each was told that the gateway goes");
    assert!(told.failures.is_empty(), "{told:?}");
    let verdict = ledger.check(&kcat::read_all(&kafka().bootstrap(), &topic.in_kafka()));
    figures::note("WebSocket, SIGTERM under load: ledger", &verdict);
    verdict.assert_clean();
    // What was sent and not told of was not taken: it may be sent again elsewhere.
    assert_eq!(verdict.records, verdict.durable, "{verdict}");
}
