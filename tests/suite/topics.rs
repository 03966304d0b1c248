//! Topics change under a running gateway: they grow, have names Kafka will not have, and brokers that take nothing.
//!
//! Method: on the real cluster, with topics changed by the admin client behind the gateway's back. What was written to a partition
//! before the gateway could know of it must be read all the same; the gateway is stopped (SIGSTOP) meanwhile, so that "before" is
//! certain. Of two names that differ in `.` and `_` alone, the second is refused and not made. With all brokers stopped the
//! producer's queue fills to its bound exactly; what is refused then is counted, and a ledger proves it is not in the topic. That a
//! topic goes and comes again is `topics_again`'s.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use kateway_tests::client::{Connection, Failure, Response};
use kateway_tests::kateway::{Builder, Kateway};
use kateway_tests::ledger::{Answer, Draft, Ledger};
use kateway_tests::topic::Topic;
use kateway_tests::{figures, folder, frames, kcat, problem, wait_until};

use crate::{Case, kafka};

pub const CASES: &[Case] = &[
    Case::new("topics::partitions_grow", partitions_grow).kafka(),
    Case::new("topics::partitions_grow_for_newest", partitions_grow_for_newest).kafka(),
    Case::new("topics::new_partition_is_published_to_at_once", new_partition_is_published_to_at_once).kafka(),
    Case::new("topics::partitions_grow_while_nobody_reads", partitions_grow_while_nobody_reads).kafka(),
    Case::new("topics::new_partition_refuses_no_other", new_partition_refuses_no_other).kafka(),
    Case::new("topics::cores_that_disagree_list_once", cores_that_disagree_list_once).kafka(),
    Case::new("topics::names_that_collide", names_that_collide).kafka(),
    Case::new("topics::full_producer_queue", full_producer_queue).kafka().alone(),
];

/// For what the gateway notices by itself; it looks each second here.
pub const SOON: Duration = Duration::from_secs(20);

/// A gateway that looks each second which topics and partitions exist.
pub fn attentive() -> Builder {
    Kateway::kafka(&kafka().bootstrap()).shards(2).set("kafka.metadata_interval_s", 1)
}

// === growth ===

fn partitions_grow() {
    grow("reset=oldest");
}

/// `reset` says where a group starts that stands nowhere. One that reads the topic already must not lose the beginning of a
/// partition for having said `newest` once.
fn partitions_grow_for_newest() {
    grow("reset=newest");
}

fn grow(reset: &str) {
    let admin = kafka().admin();
    let topic = Topic::fresh("grown");
    admin.create_topic(&topic.in_kafka(), 2);
    // The stop is no stall.
    let gateway = attentive().set("shard.stall_ms", 60_000).start();
    let query = format!("{reset}&batch=100&wait=1s");
    // The group stands in both partitions before there is anything to read.
    let assigned = || partitions_of_group(&gateway, &topic).len();
    wait_until(SOON, "the group has both partitions", || read(&gateway, &topic, &query).is_empty() && assigned() == 2);
    let mut expected = BTreeSet::new();
    for partition in [0, 1] {
        publish_to(&gateway, &topic, partition, &mut expected).expect(201);
    }
    let refused = publish_to(&gateway, &topic, 4, &mut BTreeSet::new());
    assert_eq!(problem::check(&refused, 400).code, 40009);
    let mut seen = Vec::new();
    read_until(&gateway, &topic, &query, &expected, &mut seen);

    wait_until(SOON, "what was read is committed", || {
        admin.committed_sum(&topic.group_in_kafka("g"), &topic.in_kafka()) == 2
    });
    gateway.signal(libc::SIGSTOP);
    admin.create_partitions(&topic.in_kafka(), 5);
    let early: Vec<String> = (0..50).map(|n| format!("early {n}")).collect();
    admin.produce(&topic.in_kafka(), 5, early.iter().map(|text| text.clone().into_bytes()));
    gateway.signal(libc::SIGCONT);
    let grown = Instant::now();
    expected.extend(early);

    publish_until_stored(4, || publish_to(&gateway, &topic, 4, &mut expected));
    figures::note(
        format!("topics, grown, {reset}: published to a new partition after"),
        format!("{:?}", grown.elapsed()),
    );
    for partition in [2, 3] {
        publish_to(&gateway, &topic, partition, &mut expected).expect(201);
    }
    read_until(&gateway, &topic, &query, &expected, &mut seen);
    figures::note(format!("topics, grown, {reset}: all of it read after"), format!("{:?}", grown.elapsed()));
    assert_eq!(seen.len(), expected.len(), "nothing comes twice: {seen:?}");
    assert_eq!(partitions_of_group(&gateway, &topic).len(), 5);
    let count = i64::try_from(expected.len()).expect("few");
    wait_until(SOON, "all of it is committed", || {
        admin.committed_sum(&topic.group_in_kafka("g"), &topic.in_kafka()) == count
    });
}

/// The gateway looks each 30 s by itself. The producer of `ack=local` has published to the topic as it was, and is not the client that
/// lists topics: it learns of a new partition only by being asked for it.
fn new_partition_is_published_to_at_once() {
    let admin = kafka().admin();
    let topic = Topic::fresh("grown");
    admin.create_topic(&topic.in_kafka(), 2);
    let gateway = Kateway::kafka(&kafka().bootstrap()).start();
    let publish = |partition| {
        gateway.publish(&topic.publish(&format!("ack=local&partition={partition}"), folder::unique("message")))
    };
    publish(0).expect(201);
    admin.create_partitions(&topic.in_kafka(), 5);
    let grown = Instant::now();
    let before = publish_until_stored(4, || publish(4));
    figures::note("topics, grown, nobody told the gateway", format!("{:?}, before {before:?}", grown.elapsed()));
    let refused = publish(5);
    assert_eq!(problem::check(&refused, 400).code, 40009);
}

/// While a producer does not know a new partition yet, whoever asks for another one, or none, must not be refused for that.
fn new_partition_refuses_no_other() {
    const CLIENTS: usize = 8;
    let admin = kafka().admin();
    let topic = Topic::fresh("grown");
    admin.create_topic(&topic.in_kafka(), 2);
    let gateway = Kateway::kafka(&kafka().bootstrap()).start();
    // A connection to another broker would have the producer ask for everything anew: there is none to come.
    for partition in [0, 1] {
        gateway.publish(&topic.publish(&format!("ack=local&partition={partition}"), "first")).expect(201);
    }
    admin.create_partitions(&topic.in_kafka(), 5);
    // The snapshot has it from here on.
    publish_until_stored(3, || gateway.publish(&topic.publish("partition=3", folder::unique("message"))));
    let (is_stored, refused) = (AtomicBool::new(false), AtomicUsize::new(0));
    let publish = |connection: &mut Connection, query: &str| {
        let answer =
            connection.call(&topic.publish(query, folder::unique("message"))).unwrap_or_else(|e| panic!("{e}"));
        if answer.status != 201 {
            assert_eq!(problem::check(&answer, 503).code, 50301, "{query}: {}", answer.text());
            refused.fetch_add(1, Ordering::Relaxed);
        }
        answer.status
    };
    std::thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (gateway, is_stored, publish) = (&gateway, &is_stored, &publish);
            scope.spawn(move || {
                let mut connection = gateway.publisher();
                let deadline = Instant::now() + SOON;
                while !is_stored.load(Ordering::Relaxed) {
                    assert!(Instant::now() < deadline, "the producer learns of partition 4 within {SOON:?}");
                    if client == 0 && publish(&mut connection, "ack=local&partition=4") == 201 {
                        is_stored.store(true, Ordering::Relaxed);
                    } else if client > 0 {
                        let query = ["ack=local&partition=1", "ack=local", ""][client % 3];
                        assert_eq!(publish(&mut connection, query), 201, "{query}");
                    }
                }
            });
        }
    });
    assert!(refused.load(Ordering::Relaxed) > 0, "the producer was asked before it knew");
}

/// A group's home has seen its topic grow, another core that reads for it has not: each lists the topics once, and not with every read.
fn cores_that_disagree_list_once() {
    const READS: usize = 30;
    let admin = kafka().admin();
    let topic = Topic::fresh("grown");
    admin.create_topic(&topic.in_kafka(), 2);
    // By itself neither of them looks again, and both are read by.
    let gateway = Kateway::kafka(&kafka().bootstrap())
        .shards(2)
        .set("kafka.metadata_interval_s", 3_600)
        .set("sub.steer", false)
        .start();
    let mut publishers = [0, 1].map(|shard| gateway.connection_of_shard(shard, gateway.publish));
    let mut readers = [0, 1].map(|shard| gateway.connection_of_shard(shard, gateway.subscribe));
    let mut read = |shard: usize| {
        let request = topic.read("g", "wait=0s&reset=newest");
        readers[shard].call(&request).unwrap_or_else(|e| panic!("{e}")).status
    };
    wait_until(SOON, "both cores know the topic, and the group has joined", || [0, 1].map(&mut read) == [204, 204]);
    let home = gateway.status()["groups"][0]["shard"].as_u64().and_then(|n| usize::try_from(n).ok()).expect("a group");
    let refreshes =
        |shard: usize| gateway.scrape().sum("kateway_topic_refreshes_total", &[("shard", &shard.to_string())]);

    admin.create_partitions(&topic.in_kafka(), 5);
    let stale = [0, 1].map(refreshes)[1 - home];
    publish_until_stored(4, || {
        let request = topic.publish("partition=4", folder::unique("message"));
        publishers[home].call(&request).unwrap_or_else(|e| panic!("{e}"))
    });
    assert_eq!(refreshes(1 - home), stale, "one core has learnt it");
    let before = [0, 1].map(refreshes);
    for _ in 0..READS {
        assert!([200, 204].contains(&read(1 - home)));
    }
    wait_until(SOON, "the other has learnt it by reading", || refreshes(1 - home) > stale);
    let now = [0, 1].map(refreshes);
    assert!((0..2).all(|shard| now[shard] - before[shard] <= 2.0), "{READS} reads later: {before:?} -> {now:?}");
}

/// Publishes to a partition that is new until it is stored there; gives the codes it was refused with before.
fn publish_until_stored(partition: i64, mut publish: impl FnMut() -> Response) -> Vec<u64> {
    let mut before = Vec::new();
    wait_until(SOON, "the gateway publishes to a new partition", || {
        let answer = publish();
        if answer.status == 201 {
            assert_eq!(answer.number("x-partition"), partition);
            return true;
        }
        let code = problem::check(&answer, answer.status).code;
        // Not known yet to this core or its broker, then not yet to its producer.
        assert!([40009, 50301].contains(&code), "{}", answer.text());
        before.push(code);
        false
    });
    before.dedup();
    before
}

/// The gateway that opens the group next has never seen the topic smaller, and the group has nothing committed in what was added.
fn partitions_grow_while_nobody_reads() {
    const QUERY: &str = "reset=newest&batch=100&wait=1s";
    let admin = kafka().admin();
    let topic = Topic::fresh("grown");
    admin.create_topic(&topic.in_kafka(), 2);
    admin.produce(&topic.in_kafka(), 2, (0..10).map(|n| format!("before the group {n}").into_bytes()));
    let mut first = Kateway::kafka(&kafka().bootstrap()).start();
    wait_until(SOON, "the group stands at the end", || {
        assert_eq!(read(&first, &topic, QUERY), [""; 0]);
        admin.committed_sum(&topic.group_in_kafka("g"), &topic.in_kafka()) == 10
    });
    assert!(first.terminate(SOON).success());

    admin.create_partitions(&topic.in_kafka(), 5);
    let expected: BTreeSet<String> = (0..50).map(|n| format!("meanwhile {n}")).collect();
    admin.produce(&topic.in_kafka(), 5, expected.iter().map(|text| text.clone().into_bytes()));
    let second = Kateway::kafka(&kafka().bootstrap()).start();
    let mut seen = Vec::new();
    read_until(&second, &topic, QUERY, &expected, &mut seen);
    assert_eq!(seen.len(), expected.len(), "nothing comes twice: {seen:?}");
    wait_until(SOON, "all of it is committed", || {
        admin.committed_sum(&topic.group_in_kafka("g"), &topic.in_kafka()) == 60
    });
    // A group that begins now asks for the end of all five.
    wait_until(SOON, "the other group stands at the end", || {
        assert_eq!(second.subscribe(&topic.read("other", QUERY)).status, 204);
        admin.committed_sum(&topic.group_in_kafka("other"), &topic.in_kafka()) == 60
    });
}

/// Publishes a message of its own to `partition`, and adds it to `stored` if it was.
fn publish_to(gateway: &Kateway, topic: &Topic, partition: i32, stored: &mut BTreeSet<String>) -> Response {
    let text = folder::unique("message");
    let answer = gateway.publish(&topic.publish(&format!("partition={partition}"), text.clone()));
    if answer.status == 201 {
        stored.insert(text);
    }
    answer
}

/// What the gateway says the group has.
pub fn partitions_of_group(gateway: &Kateway, topic: &Topic) -> Vec<serde_json::Value> {
    let status = gateway.status();
    let groups = status["groups"].as_array().expect("the status lists groups");
    let group = groups.iter().find(|group| group["group"] == topic.group_in_kafka("g"));
    group.and_then(|group| group["partitions"].as_array().cloned()).unwrap_or_default()
}

/// One read of the group; empty where there is nothing yet.
pub fn read(gateway: &Kateway, topic: &Topic, query: &str) -> Vec<String> {
    let answer = gateway.subscribe(&topic.read("g", query));
    if answer.status == 204 {
        return Vec::new();
    }
    let frames = frames::decode(&answer.expect(200).body);
    frames.into_iter().map(|frame| String::from_utf8_lossy(&frame.payload).into_owned()).collect()
}

/// Reads until everything expected was seen; nothing else may come.
fn read_until(gateway: &Kateway, topic: &Topic, query: &str, expected: &BTreeSet<String>, seen: &mut Vec<String>) {
    let deadline = Instant::now() + SOON;
    loop {
        let missing: Vec<_> = expected.iter().filter(|text| !seen.contains(text)).collect();
        if missing.is_empty() {
            break;
        }
        assert!(Instant::now() < deadline, "after {SOON:?} {} were not delivered: {missing:?}", missing.len());
        seen.extend(read(gateway, topic, query));
    }
    assert!(seen.iter().all(|text| expected.contains(text)), "{seen:?} of {expected:?}");
}

// === names ===

fn names_that_collide() {
    let admin = kafka().admin();
    let settings = [("topics.auto_create", "true"), ("topics.partitions", "2"), ("topics.replicas", "3")];
    let gateway = settings.iter().fold(attentive(), |builder, (key, value)| builder.set(key, value)).start();
    let app = folder::unique("app");
    let first = Topic::new(&app, "b_c", "v1");
    let second = Topic::new(&format!("{app}_b"), "c", "v1");
    assert_eq!(first.in_kafka().replace('.', "_"), second.in_kafka().replace('.', "_"));
    gateway.publish(&first.publish("", "0")).expect(201);
    // Each on a connection of its own, so that both cores are asked, and the second time as the first.
    for query in ["", "async=1", "ack=local", "", "", "", "", ""] {
        let answer = gateway.publish(&second.publish(query, "x"));
        let problem = problem::check(&answer, 409);
        assert_eq!((problem.code, problem.slug.as_str()), (40901, "topic-collides"), "{}", answer.text());
        assert_eq!(problem.document["retryable"], false);
    }
    let unread = gateway.subscribe(&second.read("g", "wait=0s"));
    assert_eq!(problem::check(&unread, 404).code, 40401);
    assert_eq!(admin.partitions(&second.in_kafka()), None, "nothing was made");
    assert_eq!(admin.partitions(&first.in_kafka()), Some(2));
    gateway.publish(&first.publish("", "1")).expect(201);
    let mut seen = Vec::new();
    read_until(&gateway, &first, "batch=10&wait=1s", &["0", "1"].map(str::to_owned).into(), &mut seen);
    assert_eq!(admin.message_count(&first.in_kafka()), 2);
}

// === a queue that is full ===

/// A bound of the producer's queue, messages that meet it, and how many fit.
struct Bound {
    key: &'static str,
    value: u64,
    body_bytes: usize,
    fit: usize,
}

const BOUNDS: [Bound; 2] = [
    Bound { key: "kafka.queue_messages_max", value: 50, body_bytes: 200, fit: 50 },
    Bound { key: "kafka.queue_bytes_max", value: 1 << 20, body_bytes: 100_000, fit: 10 },
];

/// All brokers, stopped; they go on when this is dropped, whatever became of the trial.
struct Stopped;

impl Stopped {
    fn all() -> Self {
        (0..3).for_each(|id| kafka().freeze(id));
        Self
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        (0..3).for_each(|id| kafka().thaw(id));
    }
}

/// A gateway with one of the bounds, and what was tried on it.
struct Scene {
    bound: &'static Bound,
    topic: Topic,
    gateway: Kateway,
    ledger: Ledger,
    refused: usize,
}

impl Scene {
    fn open(bound: &'static Bound) -> Self {
        let topic = Topic::fresh("full");
        kafka().admin().create_topic(&topic.in_kafka(), 3);
        // One core: it has one producer, whose bound is the gateway's.
        let gateway = Kateway::kafka(&kafka().bootstrap()).shards(1).set(bound.key, bound.value).start();
        let ledger = Ledger::new(u64::from(gateway.pid()));
        let mut scene = Self { bound, topic, gateway, ledger, refused: 0 };
        let mut connection = scene.gateway.publisher();
        // Each partition's leader has been spoken to, and nothing waits.
        for key in 0..20 {
            assert_eq!(scene.call(&mut connection, 0, key, ""), Answer::Durable);
        }
        scene
    }

    fn send(&self, connection: &mut Connection, number: u32, key: u32, query: &str) -> Draft {
        let draft = self.ledger.enter(number, key, self.bound.body_bytes);
        let query = format!("key={}{query}", draft.key);
        connection.send(&self.topic.publish(&query, draft.body.clone()).bytes()).expect("sent");
        draft
    }

    /// Enters the answer. A refusal must be that of a full queue.
    fn take(&mut self, draft: &Draft, result: &Result<Response, Failure>) -> Answer {
        let answer = Answer::of(result);
        self.ledger.answered(draft.id, answer);
        if answer == Answer::Refused {
            let refusal = problem::check(result.as_ref().expect("an answer"), 503);
            assert_eq!((refusal.code, refusal.slug.as_str()), (50300, "queue-full"), "{refusal:?}");
            assert_eq!(refusal.document["retryable"], true);
            self.refused += 1;
        }
        answer
    }

    fn call(&mut self, connection: &mut Connection, number: u32, key: u32, query: &str) -> Answer {
        let draft = self.send(connection, number, key, query);
        let result = connection.read_response();
        self.take(&draft, &result)
    }

    fn counted(&self) -> f64 {
        self.gateway.scrape().sum("kateway_producer_queue_full_total", &[])
    }

    fn queued(&self) -> f64 {
        self.gateway.scrape().sum("kateway_producer_queue_messages", &[])
    }

    /// With the brokers stopped: one request waits for its report, messages without one fill the rest, then every kind is refused.
    /// Gives the request that waits.
    fn fill(&mut self) -> (Connection, Draft) {
        let mut waiting = self.gateway.publisher();
        let draft = self.send(&mut waiting, 1, 1, "");
        wait_until(SOON, "one message waits", || self.queued() >= 1.0);
        assert_eq!(self.counted(), 0.0);
        let mut connection = self.gateway.publisher();
        let mut taken = 1;
        while self.call(&mut connection, 2, 2, "&async=1") != Answer::Refused {
            taken += 1;
            assert!(taken <= self.bound.fit, "{} holds {taken}", self.bound.key);
        }
        assert_eq!(taken, self.bound.fit, "{} lets in what fits", self.bound.key);
        for query in ["", "&async=1", "&hh=n", "&partition=1"] {
            let start = Instant::now();
            assert_eq!(self.call(&mut connection, 2, 2, query), Answer::Refused);
            let took = start.elapsed();
            assert!(took < Duration::from_secs(1), "a refusal does not wait for Kafka: {took:?}");
        }
        assert_eq!(self.counted(), 5.0, "each refusal is counted");
        (waiting, draft)
    }

    fn close(mut self, (mut waiting, draft): (Connection, Draft)) {
        let result = waiting.read_response();
        assert_eq!(self.take(&draft, &result), Answer::Durable, "what was in the queue is stored: {result:?}");
        let mut connection = self.gateway.publisher();
        let again =
            wait_until(SOON, "publishing works again", || self.call(&mut connection, 3, 3, "") == Answer::Durable);
        for _ in 0..20 {
            assert_eq!(self.call(&mut connection, 3, 3, ""), Answer::Durable);
        }
        assert_eq!(self.call(&mut connection, 4, 4, "&async=1"), Answer::None);
        wait_until(SOON, "the queue is empty", || self.queued() == 0.0);
        #[allow(clippy::cast_precision_loss)] // a handful
        let refused = self.refused as f64;
        assert_eq!(self.counted(), refused);

        kafka().wait_in_sync(&self.topic.in_kafka());
        let verdict = self.ledger.check(&kcat::read_all(&kafka().bootstrap(), &self.topic.in_kafka()));
        figures::note(format!("topics, {} full: ledger", self.bound.key), &verdict);
        figures::note(format!("topics, {} full: 201 again after", self.bound.key), format!("{again:?}"));
        verdict.assert_clean();
        assert_eq!(verdict.none, self.bound.fit, "the queue but one, and one at the end");
        assert_eq!(verdict.records, verdict.durable + verdict.none, "what was accepted is there");
        assert_eq!(verdict.refused, self.refused);
    }
}

fn full_producer_queue() {
    let mut scenes = BOUNDS.each_ref().map(Scene::open);
    let stopped = Stopped::all();
    let start = Instant::now();
    let waiting = scenes.each_mut().map(Scene::fill);
    let filled = start.elapsed();
    drop(stopped);
    figures::note("topics, full: brokers were stopped for", format!("{filled:?}"));
    for (scene, waiting) in scenes.into_iter().zip(waiting) {
        scene.close(waiting);
    }
    kafka().wait_recovered();
}
