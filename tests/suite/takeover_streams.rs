//! WebSockets and streams outlive the gateway that serves them: it is replaced, or told to go, and nothing is lost or cut.
//!
//! Method: eight WebSockets publish to a real cluster at a pace, more than 50,000 messages in all, each entered in a ledger; four groups read
//! the same topic without end, as frames, NDJSON, server-sent events and by WebSocket, two readers each, every delivery in a ledger of
//! deliveries. Meanwhile the gateway is replaced again and again, with more shards and with fewer (the kernel does not help:
//! `net.ipv4.tcp_migrate_req` is off); or one of two gateways gets SIGTERM, a third comes, and the second goes. The one that goes has to
//! end every WebSocket with 1001 and every stream with its last chunk; whoever comes again must find an open door. (Only where another
//! gateway goes on may a reader be told by 503 to come again in a second: the partitions are on their way.) Of what was published,
//! all that was acknowledged is stored, once and in order, and nothing else; of what is stored, every group has had all.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use kateway_tests::crowd::Places;
use kateway_tests::kateway::{Builder, Kateway};
use kateway_tests::ledger::{Answer, Ledger};
use kateway_tests::read_ledger::{ReadLedger, Received, hash};
use kateway_tests::readers::{Decoder, Delivery, End, Event, Format, Next, Stream};
use kateway_tests::topic::Topic;
use kateway_tests::ws::{self, WebSocket, handshake};
use kateway_tests::{figures, kcat, wait_until};

use crate::stage::SOON;
use crate::takeover::{replace, socket, with_socket};
use crate::ws_ledger::{CONNECTIONS, Load, Pace};
use crate::{Case, kafka};

pub const CASES: &[Case] = &[
    Case::new("takeover_streams::replaced_again_and_again", replaced_again_and_again).kafka().alone(),
    Case::new("takeover_streams::sigterm_sends_them_elsewhere", sigterm_sends_them_elsewhere).kafka().alone(),
];

const MESSAGES: usize = 50_000;
const PARTITIONS: i32 = 4;
const SECRET: &str = "0123456789abcdef0123456789abcdef";
const PACE: Pace = Pace { under_way: 20, pause: Duration::from_millis(10) };
const READERS: u32 = 2;
/// Partitions may be on their way from the one gateway to the other.
const REBALANCE: Duration = Duration::from_secs(4);
const COMMIT_INTERVAL: Duration = Duration::from_millis(100);
const AGAIN: Duration = Duration::from_mins(1);

/// How a group reads.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Stream(Format),
    WebSocket,
}

const KINDS: [Kind; 4] =
    [Kind::Stream(Format::Frames), Kind::Stream(Format::Lines), Kind::Stream(Format::Sse), Kind::WebSocket];

/// An answer without end.
enum Source {
    Stream(Box<Stream>),
    WebSocket(WebSocket, Decoder, VecDeque<Event>),
}

/// Why there is no answer without end.
enum Refusal {
    /// 503 with `Retry-After`: whoever held the partitions is just gone.
    Later,
    Other(String),
}

impl Source {
    fn open(address: SocketAddr, topic: &Topic, kind: Kind) -> Result<Self, Refusal> {
        let group = format!("{kind:?}").replace(['(', ')'], "-");
        match kind {
            Kind::Stream(format) => {
                let stream = Stream::open(address, &topic.read(&group, "stream=1"), format);
                stream.map(|stream| Self::Stream(Box::new(stream))).map_err(|failure| match failure.to_string() {
                    told if told.contains("answered 503") && told.contains("retry-after") => Refusal::Later,
                    other => Refusal::Other(other),
                })
            }
            Kind::WebSocket => {
                let target = format!("/v1/ws/msgs/{}?group={group}", topic.path());
                match WebSocket::dial(address, &handshake("GET", &target).app(&topic.appid)) {
                    Ok(Ok((ws, _))) => Ok(Self::WebSocket(ws, Decoder::new(Format::Frames), VecDeque::new())),
                    Ok(Err(refusal)) if refusal.status == 503 && refusal.header("retry-after").is_some() => {
                        Err(Refusal::Later)
                    }
                    Ok(Err(refusal)) => Err(Refusal::Other(format!("{} {}", refusal.status, refusal.text()))),
                    Err(failure) => Err(Refusal::Other(failure.to_string())),
                }
            }
        }
    }

    fn next(&mut self, limit: Duration) -> Next {
        let (ws, decoder, ready) = match self {
            Self::Stream(stream) => return stream.next(limit),
            Self::WebSocket(ws, decoder, ready) => (ws, decoder, ready),
        };
        loop {
            match ready.pop_front() {
                Some(Event::Heartbeat) => {}
                Some(event) => return Next::Event(event),
                None => match ws.next(limit) {
                    ws::Event::Binary(bytes) => ready.extend(decoder.feed(&bytes)),
                    ws::Event::Nothing => return Next::Nothing,
                    ws::Event::Close(1001, _) => return Next::End(End::Complete(Vec::new())),
                    _ => return Next::End(End::Cut),
                },
            }
        }
    }
}

/// What a reader has seen besides messages.
#[derive(Debug, Default)]
struct Ends {
    /// Answers that ended as announced.
    announced: usize,
    /// Told to come a little later.
    later: usize,
    failed: BTreeMap<String, usize>,
}

impl Ends {
    fn fail(&mut self, what: impl Into<String>) {
        *self.failed.entry(what.into()).or_default() += 1;
    }
}

/// One of a group.
struct Reader<'a> {
    client: u32,
    kind: Kind,
    ledger: &'a ReadLedger,
    got: &'a AtomicUsize,
}

impl Reader<'_> {
    /// Comes again whenever an answer ends, until told to stop.
    fn read(&self, topic: &Topic, places: &Places, stop: &AtomicBool) -> Ends {
        let mut ends = Ends::default();
        for turn in self.client.. {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            let place = places.nth(turn as usize).expect("a gateway is to be there");
            match Source::open(place, topic, self.kind) {
                Ok(source) => self.drain(source, stop, &mut ends),
                Err(Refusal::Later) => {
                    ends.later += 1;
                    // As it says.
                    std::thread::sleep(Duration::from_secs(1));
                }
                Err(Refusal::Other(why)) => {
                    ends.fail(why);
                    std::thread::sleep(Duration::from_millis(50));
                }
            }
        }
        ends
    }

    fn drain(&self, mut source: Source, stop: &AtomicBool, ends: &mut Ends) {
        while !stop.load(Ordering::Relaxed) {
            match source.next(Duration::from_millis(200)) {
                Next::Event(Event::Message(delivery)) => self.enter(&delivery),
                Next::Event(other) => ends.fail(format!("{other:?}")),
                Next::Nothing => {}
                Next::End(End::Complete(_)) => {
                    ends.announced += 1;
                    return;
                }
                Next::End(End::Cut) => return ends.fail("cut"),
            }
        }
    }

    fn enter(&self, delivery: &Delivery) {
        self.ledger.received(Received {
            client: self.client,
            position: delivery.position(),
            count: delivery.deliveries.unwrap_or(1),
            hash: hash(delivery.payload.as_deref().unwrap_or_default()),
            at: self.ledger.now(),
            processed: true,
        });
        self.got.fetch_add(1, Ordering::Relaxed);
    }
}

/// The readers of one group.
struct Group {
    kind: Kind,
    ledger: Arc<ReadLedger>,
    /// Messages they got. (What the ledger knows is not looked up for nothing.)
    got: Arc<AtomicUsize>,
    threads: Vec<JoinHandle<Ends>>,
}

impl Group {
    fn start(kind: Kind, topic: &Topic, places: &Places, stop: &Arc<AtomicBool>) -> Self {
        let (ledger, got) = (Arc::new(ReadLedger::new(COMMIT_INTERVAL)), Arc::<AtomicUsize>::default());
        let reader = |client| {
            let (topic, places, stop) = (topic.clone(), places.clone(), Arc::clone(stop));
            let (ledger, got) = (Arc::clone(&ledger), Arc::clone(&got));
            std::thread::spawn(move || {
                let reader = Reader { client, kind, ledger: &ledger, got: &got };
                reader.read(&topic, &places, &stop)
            })
        };
        let threads = (0..READERS).map(reader).collect();
        Self { kind, ledger, got, threads }
    }

    fn wait_got(&self, goal: usize) {
        wait_until(AGAIN, format!("{:?} reads on to {goal}", self.kind), || self.got.load(Ordering::Relaxed) >= goal);
    }
}

/// What is no fault of a gateway that goes in peace.
#[derive(Clone, Copy)]
struct Allowed {
    /// A reader that comes to the other gateway before that one knows who owns the partitions now is told so, with `Retry-After`.
    later_max: usize,
    /// Of a hundred messages: what was on its way from the owner through the other gateway, and so not acknowledged, when the partition
    /// changed hands.
    again_percent: usize,
}

/// Everybody who is at it.
struct Clients {
    topic: Topic,
    published: Arc<Ledger>,
    load: Load,
    groups: Vec<Group>,
    stop: Arc<AtomicBool>,
}

impl Clients {
    fn start(topic: Topic, run: u32, publish: &Places, subscribe: &Places) -> Self {
        let published = Arc::new(Ledger::new(u64::from(run)));
        let load = Load::start(publish, &topic, &published, PACE);
        let stop = Arc::<AtomicBool>::default();
        let groups = KINDS.map(|kind| Group::start(kind, &topic, subscribe, &stop));
        Self { topic, published, load, groups: groups.into(), stop }
    }

    fn acknowledged(&self) -> usize {
        self.published.count(Answer::Durable)
    }

    /// Some more are published, and every group reads them.
    fn wait_more(&self, more: usize) {
        let goal = self.acknowledged() + more;
        wait_until(AGAIN, format!("{more} more are acknowledged"), || self.acknowledged() >= goal);
        self.groups.iter().for_each(|group| group.wait_got(goal));
    }

    /// While `what` happens, and shortly after, partitions change hands.
    fn while_they_move<T>(&self, what: impl FnOnce() -> T) -> T {
        let from: Vec<Duration> = self.groups.iter().map(|group| group.ledger.now()).collect();
        let done = what();
        for (group, from) in self.groups.iter().zip(from) {
            group.ledger.moved(from, group.ledger.now() + REBALANCE);
        }
        done
    }

    /// Ends all of them and holds what they have seen against the topic. Each of them was sent away at least `times`.
    fn judge(self, what: &str, times: u32, allowed: Allowed) {
        let told = self.load.stop();
        let acknowledged = self.published.count(Answer::Durable);
        for group in &self.groups {
            group.wait_got(acknowledged);
            let is_read = || group.ledger.processed() >= acknowledged;
            wait_until(AGAIN, format!("{:?} reads all {acknowledged}", group.kind), is_read);
        }
        self.stop.store(true, Ordering::Relaxed);
        let records = kcat::read_all(&kafka().bootstrap(), &self.topic.in_kafka());
        let verdict = self.published.check(&records);
        figures::note(format!("{what}: WebSocket publishers, ledger"), &verdict);
        figures::note(format!("{what}: WebSocket publishers were told"), format!("{told:?}"));
        let mut faults = Vec::new();
        for group in self.groups {
            let ends = group.threads.into_iter().map(|thread| thread.join().expect("a reader does not panic"));
            let ends: Vec<Ends> = ends.collect();
            let verdict = group.ledger.check(&records);
            figures::note(format!("{what}: {:?}, ledger of deliveries", group.kind), &verdict);
            figures::note(
                format!("{what}: {:?}, told to come later", group.kind),
                ends.iter().map(|ends| ends.later).sum::<usize>(),
            );
            verdict.assert_clean();
            let is_fault = |ends: &&Ends| !ends.failed.is_empty() || ends.later > allowed.later_max;
            faults.extend(ends.iter().filter(is_fault).map(|ends| format!("{:?}: {ends:?}", group.kind)));
            let announced: usize = ends.iter().map(|ends| ends.announced).sum();
            assert!(
                announced >= (times * READERS) as usize,
                "{:?}: {announced} ends were announced, {ends:?}",
                group.kind
            );
            assert!(
                verdict.unacked_again * 100 <= verdict.records * allowed.again_percent,
                "{:?}: {verdict}",
                group.kind
            );
        }
        verdict.assert_clean();
        // What was sent and not told of was not taken: it may be sent again elsewhere.
        assert_eq!(verdict.records, verdict.durable, "{verdict}");
        assert!(verdict.durable >= MESSAGES, "{verdict}");
        assert!(told.failures.is_empty() && told.refused.is_empty(), "{told:?}");
        assert!(told.ends.keys().all(|code| [1000, 1001].contains(code)), "{told:?}");
        assert!(told.ends[&1001] >= (times * CONNECTIONS) as usize, "{told:?}");
        assert!(faults.is_empty(), "{faults:?}");
    }
}

fn gateway() -> Builder {
    let builder = Kateway::kafka(&kafka().bootstrap()).shards(2);
    builder.set("gateway.peer_secret", SECRET).set("drain.notice_s", 1)
}

fn topic(stem: &str) -> Topic {
    let topic = Topic::fresh(stem);
    kafka().admin().create_topic(&topic.in_kafka(), PARTITIONS);
    topic
}

fn replaced_again_and_again() {
    let migrates = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_migrate_req").unwrap_or_default();
    assert_eq!(migrates.trim(), "0", "the kernel does not do it for us");
    let path = socket();
    let builder = |shards| with_socket(gateway().shards(shards), &path);
    let mut gateway = builder(1).start();
    let [publish, subscribe] = [gateway.publish, gateway.subscribe].map(|address| Places::new([address]));
    let clients = Clients::start(topic("replaced"), gateway.pid(), &publish, &subscribe);
    let mut takeovers = 0;
    while takeovers < 4 || clients.acknowledged() < MESSAGES {
        clients.wait_more(5_000);
        clients.while_they_move(|| replace(&mut gateway, builder(2 - takeovers % 2)));
        takeovers += 1;
    }
    clients.wait_more(5_000);
    clients.judge(&format!("{takeovers} takeovers"), takeovers, Allowed { later_max: 0, again_percent: 1 });
}

fn sigterm_sends_them_elsewhere() {
    let named = |id: &str| {
        let gateway = gateway().set("gateway.id", id).start();
        gateway.wait_ready();
        gateway
    };
    let mut gateways = VecDeque::from([named("a"), named("b")]);
    let publish = Places::new(gateways.iter().map(|gateway| gateway.publish));
    let subscribe = Places::new(gateways.iter().map(|gateway| gateway.subscribe));
    let clients = Clients::start(topic("sent-elsewhere"), gateways[0].pid(), &publish, &subscribe);
    for id in ["c", "d"] {
        clients.wait_more(MESSAGES / 3);
        clients.while_they_move(|| {
            let mut leaving = gateways.pop_front().expect("there are two");
            // As a balancer does when it hears of it.
            publish.remove(leaving.publish);
            subscribe.remove(leaving.subscribe);
            assert_eq!(leaving.terminate(SOON).code(), Some(0), "{}", leaving.log());
        });
        clients.wait_more(1_000);
        clients.while_they_move(|| gateways.push_back(named(id)));
        let newest = gateways.back().expect("just come");
        publish.add(newest.publish);
        subscribe.add(newest.subscribe);
    }
    clients.wait_more(MESSAGES / 3);
    clients.judge("SIGTERM of two gateways", 1, Allowed { later_max: 6, again_percent: 10 });
}
