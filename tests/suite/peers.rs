//! What gateways ask each other is answered only to who has the secret, told only to who has it, and lost by neither end.
//!
//! Method: one partition, which gateway `a` owns, so that what is read at `b` is asked of `a`. The way from `a` back to `b` can be held
//! ([`kateway_tests::link`]): an answer that is on its way when its reader, or its gateway, goes away must come to the next reader, at
//! once where somebody is left to say so, and within the ten seconds of `api/peer.rs` where nobody is; never after the whole term of
//! the reader's lease. Seals are made here by an HMAC of
//! another crate's, over the bytes the gateway documents. `through_the_other` has what readers ask.

use std::io::Read;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use hmac::{Hmac, KeyInit, Mac};
use kateway_tests::client::{Connection, Failure, Request};
use kateway_tests::kateway::{Builder, Kateway};
use kateway_tests::link::Link;
use kateway_tests::topic::Topic;
use kateway_tests::{figures, ports, problem, wait_for, wait_until};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use sha2::Sha256;

use crate::stage::{SOON, single};
use crate::{Case, kafka};

pub const CASES: &[Case] = &[
    Case::new("peers::only_with_the_secret", only_with_the_secret).kafka(),
    Case::new("peers::nothing_is_told_to_who_has_it_not", nothing_is_told_to_who_has_it_not).kafka(),
    Case::new("peers::another_secret_is_said", another_secret_is_said).kafka(),
    Case::new("peers::answer_nobody_waits_for_goes_back", answer_nobody_waits_for_goes_back).kafka(),
    Case::new("peers::answer_of_a_dead_gateway_comes_again", answer_of_a_dead_gateway_comes_again).kafka(),
    Case::new("peers::one_filter_for_all", one_filter_for_all).kafka(),
    Case::new("peers::what_others_own_does_not_lie", what_others_own_does_not_lie).kafka(),
    Case::new("peers::a_look_finds_it", a_look_finds_it).kafka(),
];

const SECRET: &str = "0123456789abcdef0123456789abcdef";

fn address() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], ports::reserve()))
}

pub fn builder(id: &str) -> Builder {
    Kateway::kafka(&kafka().bootstrap()).shards(2).set("gateway.id", id).set("gateway.peer_secret", SECRET)
}

pub fn topic(partitions: i32) -> Topic {
    let topic = Topic::fresh("peers");
    kafka().admin().create_topic(&topic.in_kafka(), partitions);
    topic
}

// === who is answered ===

/// As `src/api/seal.rs` documents it.
fn seal(secret: &str, purpose: &str, time_ms: u128, id: &str, addr: &str, body: &[u8]) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("any length");
    let time = u64::try_from(time_ms).expect("not so late").to_be_bytes();
    for part in [purpose.as_bytes(), &time, id.as_bytes(), addr.as_bytes(), body] {
        mac.update(&(part.len() as u64).to_be_bytes());
        mac.update(part);
    }
    let digits = mac.finalize().into_bytes().iter().fold(String::new(), |digits, byte| digits + &format!("{byte:02x}"));
    format!("{time_ms};{id};{digits}")
}

fn now_ms() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_millis()
}

fn only_with_the_secret() {
    let topic = topic(1);
    let gateway = builder("a").start();
    let without = Kateway::kafka(&kafka().bootstrap()).start();
    gateway.subscribe(&topic.read("g", "wait=1s"));
    let addr = gateway.subscribe.to_string();
    let ask = |gateway: &Kateway, path: &str, seal: &str| {
        gateway.subscribe(&Request::post(path, "nonsense").header("X-Kateway-Seal", seal))
    };
    let (ops, greeting) = ("/v1/peer/ops", "/v1/peer/greeting");
    let good = |purpose| seal(SECRET, purpose, now_ms(), "c", &addr, b"nonsense");
    problem::check(&gateway.subscribe(&Request::post(ops, "nonsense")), 403);
    let late = seal(SECRET, "kateway ask", now_ms() - 120_000, "c", &addr, b"nonsense");
    let own = seal(SECRET, "kateway ask", now_ms(), "a", &addr, b"nonsense");
    let table = [
        (String::new(), "peer_secret"),
        (SECRET.to_owned(), "peer_secret"),
        (seal("0123456789abcdef0123456789abcdeF", "kateway ask", now_ms(), "c", &addr, b"nonsense"), "peer_secret"),
        (seal(SECRET, "kateway ask", now_ms(), "c", "127.0.0.1:1", b"nonsense"), "peer_secret"),
        (seal(SECRET, "kateway ask", now_ms(), "c", &addr, b"other"), "peer_secret"),
        (good("kateway greeting"), "peer_secret"),
        (late, "clocks"),
        (own, "gateway.id"),
    ];
    for (seal, said) in &table {
        let answer = ask(&gateway, ops, seal);
        problem::check(&answer, 403);
        assert!(answer.text().contains(said), "{seal}: {}", answer.text());
    }
    // Without a secret of its own a gateway has no peers, whatever they send.
    problem::check(&ask(&without, ops, &good("kateway ask")), 403);
    let with = ask(&gateway, ops, &good("kateway ask"));
    assert_eq!(with.status, 400, "a peer that talks nonsense is refused as such: {}", with.text());
    let greeted = ask(&gateway, greeting, &good("kateway greeting")).expect(200);
    let (time, id) = {
        let text = greeted.text();
        let mut parts = text.splitn(3, ';').map(str::to_owned);
        (parts.next().expect("a time"), parts.next().expect("an id"))
    };
    let expected = seal(SECRET, "kateway answer", time.parse().expect("ms"), "a", &addr, b"nonsense");
    assert_eq!(
        (id.as_str(), greeted.text()),
        ("a", expected),
        "it shows that it has the secret, and whose address it is"
    );
    // Nothing shows the secret.
    let shown = gateway.status().to_string() + &gateway.log() + &gateway.manage(&Request::get("/metrics")).text();
    assert!(!shown.contains(SECRET), "the secret is shown");
}

/// A member of the group says that it is a gateway at an address where somebody listens who has no secret: he learns that gateways greet
/// each other, and nothing of messages, names or the secret.
fn nothing_is_told_to_who_has_it_not() {
    let topic = topic(1);
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let addr = listener.local_addr().expect("bound");
    let heard = Arc::new(Mutex::new(Vec::new()));
    let ear = Arc::clone(&heard);
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let ear = Arc::clone(&ear);
            std::thread::spawn(move || {
                let mut bytes = [0; 4096];
                while let Ok(count @ 1..) = stream.read(&mut bytes) {
                    ear.lock().expect("nobody panicked").extend_from_slice(&bytes[..count]);
                }
            });
        }
    });
    let mut member = ClientConfig::new();
    member.set("bootstrap.servers", kafka().bootstrap()).set("group.id", topic.group_in_kafka("g"));
    member.set("client.id", format!("kateway-x@{addr}")).set("partition.assignment.strategy", "cooperative-sticky");
    let member: BaseConsumer = member.create().expect("the configuration is valid");
    member.subscribe(&[&topic.in_kafka()]).expect("it subscribes");
    wait_until(SOON, "it has the partition", || {
        member.poll(Duration::from_millis(50));
        member.assignment().is_ok_and(|assigned| assigned.count() == 1)
    });
    let gateway = builder("a").start();
    // It stays a member only while it is polled; ends with its channel, also when this trial panics.
    let (alive, over) = std::sync::mpsc::channel::<()>();
    let polling = std::thread::spawn(move || {
        while over.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
            member.poll(Duration::from_millis(50));
        }
    });
    refused(&gateway, &topic);
    let acked = gateway.subscribe(&topic.ack_all("g", "", &[(0, 0)]));
    problem::check(&acked, 503);
    drop(alive);
    polling.join().expect("it does not panic");
    let heard = heard.lock().expect("nobody panicked");
    let has = |text: &str| heard.windows(text.len()).any(|window| window == text.as_bytes());
    assert!(has("PRI * HTTP/2.0"), "he was greeted");
    assert!(!has(&topic.appid) && !has(SECRET), "he was told something: {}", String::from_utf8_lossy(&heard));
}

/// Two gateways whose secrets differ do not work together, and say why.
fn another_secret_is_said() {
    let topic = topic(1);
    let owner = builder("a").start();
    owner.subscribe(&topic.read("g", "wait=1s"));
    let other = builder("b").set("gateway.peer_secret", "another-secret-of-theirs").start();
    let said = refused(&other, &topic);
    assert!(said.contains("gateway.peer_secret"), "{said}");
    // Nor does one that has none.
    let without = Kateway::kafka(&kafka().bootstrap()).shards(2).set("gateway.id", "c").start();
    let said = refused(&without, &topic);
    assert!(said.contains("gateway.peer_secret is not set"), "{said}");
}

/// Waits until a read is answered with why the owner cannot be asked; as long as the group is being shared out there is none. Gives
/// the answer's text.
fn refused(gateway: &Kateway, topic: &Topic) -> String {
    let mut said = String::new();
    wait_until(SOON, "a read is refused", || {
        let answer = gateway.subscribe(&topic.read("g", "wait=1s"));
        said = answer.text();
        assert!([204, 503].contains(&answer.status), "{} {said}", answer.status);
        answer.status == 503
    });
    said
}

// === what is on its way ===

/// Gateway `a` owns the partition; `b` reaches it over a link.
struct Pair {
    a: Kateway,
    b: Kateway,
    link: Link,
    topic: Topic,
}

impl Pair {
    fn start() -> Self {
        let topic = topic(1);
        let (publish, subscribe) = (address(), address());
        let link = Link::to(subscribe);
        let a = builder("a").at(publish, subscribe).set("gateway.advertise", link.address).start();
        a.subscribe(&topic.shadow("g")).expect(201);
        a.subscribe(&topic.read("g", "wait=1s")).expect(204);
        let b = builder("b").start();
        // It joins, gets nothing to own, and finds out who owns it.
        b.subscribe(&topic.read("g", "wait=2s")).expect(204);
        let pair = Self { a, b, link, topic };
        pair.publish("warm");
        assert_eq!(single(&pair.b.subscribe(&pair.topic.read("g", "wait=20s"))).text, "warm");
        pair
    }

    fn publish(&self, text: &str) {
        self.a.publish(&self.topic.publish("", text)).expect(201);
    }

    fn leased(&self) -> u64 {
        let status = self.a.status();
        let groups = status["groups"].as_array().expect("groups").iter();
        groups.filter_map(|group| group["partitions"].as_array()).flatten().filter_map(|p| p["leased"].as_u64()).sum()
    }

    /// Readers that wait at `b`.
    fn waiting(&self) -> u64 {
        let status = self.b.status();
        status["groups"].as_array().expect("groups").iter().filter_map(|group| group["waiting"].as_u64()).sum()
    }

    /// A client of `b` that has asked for a message with a long lease, whose answer is on its way from `a` to `b`.
    fn answer_on_its_way(&self, text: &str) -> Connection {
        let asked = || self.a.scrape().sum("kateway_peer_asked_total", &[]);
        let before = asked();
        let mut client = self.b.subscriber();
        let query = "ack=1&lease=10m&max_deliveries=1&wait=20s";
        client.send(&self.topic.read("g", query).bytes()).expect("sent");
        wait_until(SOON, "the read is forwarded", || asked() > before);
        self.link.hold();
        self.publish(text);
        wait_until(SOON, "the answer has left the owner", || self.leased() == 1);
        client
    }

    /// The message comes at `a`; gives how often it was delivered before, and after how long it came.
    fn next(&self, text: &str) -> (Option<i64>, Duration) {
        let start = Instant::now();
        let answer = self.a.subscribe(&self.topic.read("g", "ack=1&lease=1m&wait=30s"));
        let got = single(&answer);
        assert_eq!(got.text, text);
        self.a.subscribe(&self.topic.ack_all("g", "", &[got.position()])).expect(200);
        (got.count, start.elapsed())
    }
}

fn answer_nobody_waits_for_goes_back() {
    let pair = Pair::start();
    let mut took = Vec::new();
    for n in 0..3 {
        let text = format!("back {n}");
        let client = pair.answer_on_its_way(&text);
        assert_eq!(pair.waiting(), 1);
        drop(client);
        wait_until(SOON, "its gateway has noticed", || pair.waiting() == 0);
        pair.link.release();
        let (count, time) = pair.next(&text);
        assert_eq!(count, None, "nobody ever had it");
        took.push(time);
    }
    figures::note("an answer between gateways that nobody waits for is another's after", format!("{took:?}"));
    assert!(took.iter().all(|time| *time < 5 * Duration::from_secs(1)), "{took:?}");
    let buried = pair.a.scrape().sum("kateway_sub_buried_worn_total", &[]);
    assert_eq!(buried.to_string(), "0", "what was never delivered is not worn");
}

fn answer_of_a_dead_gateway_comes_again() {
    let mut pair = Pair::start();
    let client = pair.answer_on_its_way("again");
    pair.b.kill();
    drop(client);
    pair.link.release();
    // As often delivered as its reader allowed, for all the owner can know: it is in the dead queue.
    let start = Instant::now();
    let dead = pair.topic.read("g", "q=dead&wait=30s");
    let mut got = None;
    wait_until(Duration::from_mins(1), "it is in the dead queue", || {
        let answer = pair.a.subscribe(&dead);
        got = (answer.status == 200).then(|| single(&answer).text);
        got.is_some()
    });
    assert_eq!(got.as_deref(), Some("again"));
    figures::note("an answer on its way to a gateway that is killed is free after", format!("{:?}", start.elapsed()));
    assert!(start.elapsed() < 5 * Duration::from_secs(10), "{:?}", start.elapsed());
}

// === one group, several gateways ===

/// Two gateways that own a partition each.
fn two_owners(topic: &Topic) -> [Kateway; 2] {
    let gateways = ["a", "b"].map(|id| builder(id).start());
    let owned = |gateway: &Kateway| {
        let rows = gateway.subscribe(&topic.readers_as(&topic.appid, "group=g")).expect(200).json();
        let of: std::collections::BTreeSet<String> = rows
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|row| row["gateway"].as_str().map(str::to_owned))
            .collect();
        of.len()
    };
    wait_until(SOON, "each owns a partition", || {
        for gateway in &gateways {
            gateway.subscribe(&topic.read("g", "wait=100ms"));
        }
        owned(&gateways[0]) == 2
    });
    gateways
}

fn one_filter_for_all() {
    let topic = topic(2);
    let [a, b] = two_owners(&topic);
    let read = |tag: &str, wait: &str| topic.read("g", wait).header("X-Tag", tag);
    // Reads by no filter may still be on their way between the two, and stand in its way for a moment.
    let mut waiting = wait_for(SOON, "a read by a filter waits", || {
        let mut client = a.subscriber();
        client.send(&read("x", "wait=30s").bytes()).expect("sent");
        client.patience(Duration::from_millis(500));
        let is_waiting = matches!(client.read_response(), Err(Failure::Timeout));
        client.patience(Duration::from_secs(40));
        is_waiting.then_some(client)
    });
    wait_until(SOON, "another filter is refused at the other gateway", || {
        b.subscribe(&read("y", "wait=0s")).status == 409
    });
    assert!([200, 204].contains(&b.subscribe(&read("x", "wait=0s")).status), "the same is not");
    problem::check(&b.subscribe(&topic.read("g", "wait=0s")), 409);
    a.publish(&topic.publish("partition=0", "0").header("X-Tag", "x")).expect(201);
    b.publish(&topic.publish("partition=1", "1").header("X-Tag", "x")).expect(201);
    assert_eq!(waiting.read_response().unwrap_or_else(|e| panic!("{e}")).status, 200, "it waited all the time");
    wait_until(SOON, "another is taken when nobody reads by the first", || {
        b.subscribe(&read("y", "wait=0s")).status == 204
    });
    // And the other way round: who read by the first before has to ask again, and finds nobody in the way.
    let again = a.subscribe(&read("x", "wait=0s")).status;
    assert!([200, 204].contains(&again), "{again}");
}

/// All clients come to one gateway, which always has something of its own: the other's partition is read all the same.
fn what_others_own_does_not_lie() {
    const TIME: Duration = Duration::from_secs(5);
    let topic = topic(2);
    let [a, _b] = two_owners(&topic);
    let is_over = std::sync::atomic::AtomicBool::new(false);
    let mut by_partition = [0_usize; 2];
    std::thread::scope(|scope| {
        let produce = || {
            // More than one client reads in that time.
            for _ in 0..15 {
                if is_over.load(std::sync::atomic::Ordering::Relaxed) {
                    break;
                }
                kafka().admin().produce(&topic.in_kafka(), 2, (0..20_000).map(|_| b"message".to_vec()));
            }
        };
        scope.spawn(produce);
        let start = Instant::now();
        let mut connection = a.subscriber();
        while start.elapsed() < TIME {
            let Ok(answer) = connection.call(&topic.read("g", "wait=5s")) else { break };
            if answer.status == 200 {
                by_partition[usize::try_from(single(&answer).partition).expect("small")] += 1;
            }
        }
        is_over.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    let (least, most) = (by_partition.iter().min().expect("two"), by_partition.iter().max().expect("two"));
    figures::note("all clients at one of two gateways: read of each partition in 5 s", format!("{by_partition:?}"));
    assert!(*least >= most / 20, "both are read: {by_partition:?}");
}

/// Reads that do not wait find what the other gateway owns, too.
fn a_look_finds_it() {
    let topic = topic(1);
    let owner = builder("a").start();
    owner.subscribe(&topic.read("g", "wait=1s"));
    let other = builder("b").start();
    other.subscribe(&topic.read("g", "wait=2s"));
    for n in 0..5 {
        owner.publish(&topic.publish("", n.to_string())).expect(201);
        let mut got = None;
        wait_until(SOON, "a read that does not wait gives it", || {
            let answer = other.subscribe(&topic.read("g", "wait=0s"));
            got = (answer.status == 200).then(|| single(&answer).text);
            got.is_some()
        });
        assert_eq!(got, Some(n.to_string()));
    }
}
