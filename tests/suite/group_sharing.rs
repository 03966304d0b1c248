//! Many clients of one group share a topic: together they get everything, each message once, and none starves.
//!
//! Method: 20,000 messages on four partitions, written by a producer that is not the gateway. Eight clients read with
//! one group in batches until all of it was seen or the deadline passed. While nothing fails the union must be
//! complete, no message may come twice, and every client must have had an eighth of a fair share at least. Once through one gateway of two shards,
//! once through two gateways, and with more clients than a batch can feed one message at a time. The offsets committed
//! at the end must be the topic's end.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use kateway_tests::client::{Connection, Request};
use kateway_tests::frames::{self, Frame};
use kateway_tests::kateway::Kateway;
use kateway_tests::topic::Topic;
use kateway_tests::{figures, wait_until};

use crate::{Case, kafka};

pub const CASES: &[Case] = &[
    Case::new("group_sharing::eight_clients_two_shards", eight_clients_two_shards).kafka().alone(),
    Case::new("group_sharing::eight_clients_two_gateways", eight_clients_two_gateways).kafka().alone(),
    Case::new("group_sharing::eight_clients_on_memory", eight_clients_on_memory).alone(),
    Case::new("group_sharing::groups_are_independent", groups_are_independent).kafka(),
];

const MESSAGES: usize = 20_000;
const CLIENTS: usize = 8;

fn eight_clients_two_shards() {
    let topic = filled_topic();
    let gateway = Kateway::kafka(&kafka().bootstrap()).shards(2).start();
    // Half of them by each shard: whichever is the group's home, the other reads over the mesh.
    let connect = |client| gateway.connection_of_shard(client % 2, gateway.subscribe);
    share("two shards", &topic, (0..CLIENTS).map(connect).collect());
    let forwarded = gateway.scrape().sum("kateway_sub_forwarded_total", &[]);
    figures::note("group sharing, two shards: reads over the mesh", forwarded);
    assert!(forwarded > 0.0, "the mesh was used");
    assert_all_committed(&topic);
}

fn eight_clients_two_gateways() {
    let topic = empty_topic();
    let start = || Kateway::kafka(&kafka().bootstrap()).shards(2).start();
    let gateways = [start(), start()];
    // Both are members before the counting starts: a rebalance in the middle may rightly deliver again what was not yet
    // committed.
    join(&topic, &gateways);
    fill(&topic);
    share("two gateways", &topic, (0..CLIENTS).map(|client| gateways[client % 2].subscriber()).collect());
    assert_all_committed(&topic);
}

fn eight_clients_on_memory() {
    let gateway = Kateway::memory().shards(2).start();
    let topic = Topic::fresh("shared");
    let mut connection = gateway.publisher();
    for n in 0..MESSAGES {
        connection.call(&topic.publish("", format!("message {n}"))).unwrap_or_else(|e| panic!("{e}")).expect(201);
    }
    share("memory store", &topic, (0..CLIENTS).map(|_| gateway.subscriber()).collect());
}

fn groups_are_independent() {
    let topic = filled_topic();
    let gateway = Kateway::kafka(&kafka().bootstrap()).shards(2).start();
    for group in ["first", "second"] {
        let frames = read_all(gateway.subscribe, &topic.read(group, "batch=1000&wait=5s"), MESSAGES);
        assert_eq!(frames.iter().collect::<HashSet<_>>().len(), MESSAGES, "{group} gets everything");
    }
}

fn filled_topic() -> Topic {
    let topic = empty_topic();
    fill(&topic);
    topic
}

fn empty_topic() -> Topic {
    let topic = Topic::fresh("shared");
    kafka().admin().create_topic(&topic.in_kafka(), 4);
    topic
}

fn fill(topic: &Topic) {
    kafka().admin().produce(&topic.in_kafka(), 4, (0..MESSAGES).map(|n| format!("message {n}").into_bytes()));
}

/// Lets the gateways join the group while the topic is still empty.
fn join(topic: &Topic, gateways: &[Kateway]) {
    wait_until(Duration::from_secs(40), "every gateway has partitions of the group", || {
        for gateway in gateways {
            gateway.subscribe(&topic.read("g", "wait=100ms")).expect(204);
        }
        gateways.iter().all(|gateway| {
            let status = gateway.status();
            let groups = status["groups"].as_array().expect("the status lists groups");
            groups.iter().any(|group| group["partitions"].as_array().is_some_and(|partitions| !partitions.is_empty()))
        })
    });
}

/// Eight clients read everything.
fn share(what: &str, topic: &Topic, clients: Vec<Connection>) {
    let seen: Mutex<Vec<Share>> = Mutex::default();
    let total = AtomicUsize::new(0);
    let start = Instant::now();
    std::thread::scope(|scope| {
        for connection in clients {
            let (seen, total) = (&seen, &total);
            scope.spawn(move || {
                let mine = read_share(connection, topic, total);
                seen.lock().expect("no client panics while it holds this").push(mine);
            });
        }
    });
    let shares = seen.into_inner().expect("no client panicked");
    let took = shares.iter().filter_map(|share| share.last).max().map(|last| last - start).unwrap_or_default();
    let shares: Vec<Vec<Frame>> = shares.into_iter().map(|share| share.frames).collect();
    let counts: Vec<usize> = shares.iter().map(Vec::len).collect();
    figures::note(format!("group sharing, {what}: messages per client"), format!("{counts:?} in {took:?}"));

    let all: Vec<&Frame> = shares.iter().flatten().collect();
    let different: HashSet<(i32, i64)> = all.iter().map(|frame| (frame.partition, frame.offset)).collect();
    let bodies: HashSet<&[u8]> = all.iter().map(|frame| &frame.payload[..]).collect();
    assert_eq!(different.len(), MESSAGES, "the union is complete");
    assert_eq!(bodies.len(), MESSAGES, "every message's own bytes");
    assert_eq!(all.len(), MESSAGES, "no message comes twice");
    let least = MESSAGES / CLIENTS / 8;
    assert!(counts.iter().all(|&count| count >= least), "every client gets a share, {least} at least: {counts:?}");
}

/// What one client got, and when the last of it came.
#[derive(Default)]
struct Share {
    frames: Vec<Frame>,
    last: Option<Instant>,
}

/// One client: small batches, so that eight have something to share, until all clients together have everything.
fn read_share(mut connection: Connection, topic: &Topic, total: &AtomicUsize) -> Share {
    let mut mine = Share::default();
    let deadline = Instant::now() + Duration::from_mins(1);
    while total.load(Ordering::Relaxed) < MESSAGES && Instant::now() < deadline {
        let answer = connection.call(&topic.read("g", "batch=50&wait=1s")).unwrap_or_else(|e| panic!("{e}"));
        if answer.status == 204 {
            continue;
        }
        let frames = frames::decode(&answer.expect(200).body);
        total.fetch_add(frames.len(), Ordering::Relaxed);
        mine.frames.extend(frames);
        mine.last = Some(Instant::now());
    }
    mine
}

/// One client reads until it has `count` messages.
fn read_all(address: SocketAddr, request: &Request, count: usize) -> Vec<Frame> {
    let mut connection = Connection::open(address).expect("the gateway accepts");
    let mut frames = Vec::new();
    let deadline = Instant::now() + Duration::from_mins(1);
    while frames.len() < count && Instant::now() < deadline {
        let answer = connection.call(request).unwrap_or_else(|e| panic!("{e}"));
        frames.extend(frames::decode(&answer.body));
    }
    frames
}

fn assert_all_committed(topic: &Topic) {
    let admin = kafka().admin();
    let count = i64::try_from(MESSAGES).expect("few");
    wait_until(Duration::from_secs(10), "all of it is committed", || {
        admin.committed_sum(&topic.group_in_kafka("g"), &topic.in_kafka()) == count
    });
}
