//! A message a reader cannot take goes to the group's retry or dead queue with all it carries, and is acknowledged in the same step.
//!
//! Method: messages with keys, tags and difficult headers are buried from the topic to retry, from retry to dead, from the topic to
//! dead, by both paths and always from another connection than the one that read; the copies are read by `q=`, and on the real cluster
//! by kcat as well, which also sees that the queues have the names of the contract. What must not be buried (no queues, no lease) is
//! refused and leaves no copy. A delay is measured with the clock; too many deliveries and redrive end where they should. While a
//! gateway is killed and comes back, four readers bury all they get: every message is in the dead queue once the group has committed it.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use kateway_tests::client::{Connection, Failure, Request, Response};
use kateway_tests::kateway::Kateway;
use kateway_tests::readers::Delivery;
use kateway_tests::topic::Topic;
use kateway_tests::{figures, folder, kcat, ports, problem, wait_until};

use crate::stage::{EndOnDrop, SOON, Stage, lines, pass, single};
use crate::{Case, kafka};

pub const CASES: &[Case] = &[
    Case::new("shadow_queues::registered_first_on_memory", || registered_first(&memory())),
    Case::new("shadow_queues::registered_first_on_kafka", || registered_first(&on_kafka())).kafka(),
    Case::new("shadow_queues::names_are_the_contract_s", names_are_the_contract_s).kafka(),
    Case::new("shadow_queues::copies_carry_everything_on_memory", || copies_carry_everything(&memory())),
    Case::new("shadow_queues::copies_carry_everything_on_kafka", || copies_carry_everything(&on_kafka())).kafka(),
    Case::new("shadow_queues::retry_then_dead_on_memory", || retry_then_dead(&memory())),
    Case::new("shadow_queues::retry_then_dead_on_kafka", || retry_then_dead(&on_kafka())).kafka(),
    Case::new("shadow_queues::no_lease_no_copy_on_memory", || no_lease_no_copy(&memory())),
    Case::new("shadow_queues::no_lease_no_copy_on_kafka", || no_lease_no_copy(&on_kafka())).kafka(),
    Case::new("shadow_queues::delay_on_memory", || delay(&memory())),
    Case::new("shadow_queues::delay_on_kafka", || delay(&on_kafka())).kafka(),
    Case::new("shadow_queues::redrive_on_memory", || redrive(&memory())),
    Case::new("shadow_queues::redrive_on_kafka", || redrive(&on_kafka())).kafka(),
    Case::new("shadow_queues::too_many_deliveries_on_memory", || too_many_deliveries(&memory())),
    Case::new("shadow_queues::too_many_deliveries_on_kafka", || too_many_deliveries(&on_kafka())).kafka(),
    Case::new("shadow_queues::nothing_is_lost_under_kills", nothing_is_lost_under_kills).kafka().alone(),
    Case::new("shadow_queues::names_too_long_on_memory", names_too_long_on_memory),
    Case::new("shadow_queues::names_too_long_on_kafka", names_too_long_on_kafka).kafka(),
];

fn memory() -> Stage {
    Stage::on_memory("shadowed")
}

/// Brokers of the tests demand two replicas in sync.
fn on_kafka() -> Stage {
    Stage::on_kafka_with("shadowed", 2, |builder| builder.set("topics.replicas", 3))
}

/// Reads one message of a queue, which must come.
fn read_queue(stage: &Stage, queue: &str) -> Response {
    stage.call(&stage.topic.read("g", &format!("q={queue}&ack=1&lease=1m&wait=20s"))).expect(200)
}

fn queue_is_empty(stage: &Stage, queue: &str) {
    stage.call(&stage.topic.read("g", &format!("q={queue}&ack=1&wait=500ms"))).expect(204);
}

fn register(stage: &Stage) {
    stage.call(&stage.topic.shadow("g")).expect(201);
}

fn registered_first(stage: &Stage) {
    stage.fill(0, 0..2);
    let message = stage.lease("lease=1m");
    let bury = || stage.call(&stage.topic.bury("g", "", "retry", message.position()));
    let refused = problem::check(&bury(), 400);
    assert!(refused.detail.contains("register shadow first"), "{}", refused.detail);
    stage.stays_committed(0, None);
    let read = |queue: &str| stage.call(&stage.topic.read("g", &format!("q={queue}&wait=0s")));
    for queue in ["retry", "dead"] {
        assert!(problem::check(&read(queue), 400).detail.contains("register shadow first"));
    }
    problem::check(&read("other"), 400);

    let made = stage.call(&stage.topic.shadow("g")).expect(201);
    assert_eq!(made.json()["ok"], 1);
    let there = stage.call(&stage.topic.shadow("g")).expect(200);
    assert_eq!(there.json()["ok"], 1);
    assert_eq!(bury().expect(200).json()["ok"], 1);
    stage.wait_committed(0, 1);
    // Of this group only.
    let refused = stage.call(&stage.topic.bury("other", "", "retry", (0, 0)));
    assert!(problem::check(&refused, 400).detail.contains("register shadow first"));
    let nowhere = Topic::new(&stage.topic.appid, "nowhere", "v1");
    if stage.on_kafka {
        problem::check(&stage.call(&nowhere.shadow("g")), 404);
    }
}

fn names_are_the_contract_s() {
    let stage = on_kafka();
    let reader = folder::unique("reader");
    let request = Request::post(&format!("/v1/shadow/{}/group1", stage.topic.path()), "").app(&reader);
    stage.call(&request).expect(201);
    for queue in ["retry", "dead"] {
        let name = format!("{}.{reader}.group1.{queue}", stage.topic.in_kafka());
        let partitions = kafka().admin().partitions(&name);
        assert!(partitions.is_some(), "{name} is there");
    }
}

/// A message with everything a publisher can give.
fn difficult(stage: &Stage, body: &str) {
    let header = |request: Request, (name, value): (&str, &[u8])| {
        request.header(&format!("X-Header-{name}"), &STANDARD.encode(value))
    };
    let headers: [(&str, &[u8]); 5] =
        [("zeta", b"1"), ("alpha", b"2"), ("zeta", b"3"), ("empty", b""), ("bytes", &[0, 255, b','])];
    let request = stage.topic.publish("partition=0&key=%00key%FF", body).header("X-Tag", "a;b");
    stage.gateway.publish(&headers.into_iter().fold(request, header)).expect(201);
}

/// Everything of a delivery that a copy must have. Names that begin with `kateway-` are the gateway's own.
fn content(delivery: &Delivery) -> impl PartialEq + std::fmt::Debug {
    let headers: Vec<_> = delivery.headers.iter().filter(|(name, _)| !name.starts_with("kateway-")).cloned().collect();
    (delivery.key.clone(), delivery.tag.clone(), headers, delivery.payload.clone())
}

fn copies_carry_everything(stage: &Stage) {
    register(stage);
    for (n, queue) in ["retry", "dead"].into_iter().enumerate() {
        difficult(stage, &format!("body {n}"));
        let original = stage.lease_batch("batch=2&lease=1m").remove(0);
        assert_eq!(original.headers.len(), 5, "{original:?}");
        let route = ["msgs", "bury"][n];
        stage.call(&stage.topic.bury_at(route, "g", "", queue, original.position())).expect(200);
        let read = stage.topic.read("g", &format!("q={queue}&ack=1&lease=1m&wait=20s&batch=2"));
        let copy = lines(&stage.call(&read.header("Accept", "application/x-ndjson")).expect(200)).remove(0);
        assert_eq!(format!("{:?}", content(&copy)), format!("{:?}", content(&original)), "{queue}");
        if stage.on_kafka {
            let records = kcat::read_all(&kafka().bootstrap(), &stage.topic.shadow_in_kafka("g", queue));
            assert_eq!(records.len(), 1, "one copy in {queue}");
            assert_eq!((&records[0].key, &records[0].payload), (&original.key, &original.payload));
        }
    }
    stage.wait_committed(0, 2);

    // A body in the request replaces the message's own; the rest is copied.
    difficult(stage, "as published");
    let original = stage.lease_batch("batch=2&lease=1m").remove(0);
    let bury = stage.topic.bury("g", "", "retry", original.position()).body("as repaired");
    stage.call(&bury).expect(200);
    let read =
        stage.topic.read("g", "q=retry&ack=1&lease=1m&wait=20s&batch=2").header("Accept", "application/x-ndjson");
    let copy = lines(&stage.call(&read).expect(200)).remove(0);
    assert_eq!(copy.text(), "as repaired");
    assert_eq!((&copy.key, &copy.tag), (&original.key, &original.tag));
    stage.wait_committed(0, 3);
}

fn retry_then_dead(stage: &Stage) {
    register(stage);
    stage.fill(0, 0..3);
    for n in 0..3 {
        let message = stage.lease("lease=1m");
        assert_eq!(message.text, n.to_string());
        stage.call(&stage.topic.bury("g", "", "retry", message.position())).expect(200);
    }
    stage.wait_committed(0, 3);
    stage.call(&stage.topic.read("g", "ack=1&wait=0s")).expect(204);
    // One is processed at last, and acknowledged in its queue, by each of the two ways.
    let mut rest = Vec::new();
    for n in 0..3 {
        let message = single(&read_queue(stage, "retry"));
        if n < 2 {
            rest.push(message.text.clone());
            // `q` names the queue it was read from.
            stage.call(&stage.topic.bury("g", "q=retry", "dead", message.position())).expect(200);
        } else {
            let (partition, offset) = message.position();
            let read = stage.topic.read_and_ack("g", "q=retry&ack=1&wait=0s", partition, offset);
            stage.call(&read).expect(204);
        }
    }
    queue_is_empty(stage, "retry");
    let mut dead = Vec::new();
    for _ in 0..2 {
        let message = single(&read_queue(stage, "dead"));
        dead.push(message.text.clone());
        stage.call(&stage.topic.ack_all("g", "q=dead", &[message.position()])).expect(200);
    }
    dead.sort();
    rest.sort();
    assert_eq!(dead, rest);
    queue_is_empty(stage, "dead");
}

fn no_lease_no_copy(stage: &Stage) {
    register(stage);
    stage.fill(0, 0..3);
    let message = stage.lease("lease=1m");
    assert_eq!(message.offset, 0);
    let bury = |query: &str, queue: &str, position| stage.call(&stage.topic.bury("g", query, queue, position));
    problem::check(&bury("", "retry", (0, 1)), 409);
    problem::check(&bury("", "dead", (0, 1_000)), 409);
    problem::check(&bury("q=retry", "dead", (0, 0)), 409);
    for queue in ["", "grave", "Retry"] {
        problem::check(&bury("", queue, (0, 0)), 400);
    }
    problem::check(&bury("q=grave", "dead", (0, 0)), 400);
    problem::check(&bury("delay=soon", "retry", (0, 0)), 400);
    problem::check(&bury("delays=1s", "retry", (0, 0)), 400);
    queue_is_empty(stage, "retry");
    queue_is_empty(stage, "dead");
    // Once buried it is acknowledged: a second copy is refused, or as good as the first, which already went.
    bury("", "retry", (0, 0)).expect(200);
    let again = bury("", "retry", (0, 0)).status;
    assert!([200, 409].contains(&again), "{again}");
    stage.wait_committed(0, 1);
    assert_eq!(read_queue(stage, "retry").text(), "0");
    queue_is_empty(stage, "retry");
}

fn delay(stage: &Stage) {
    const DELAY: Duration = Duration::from_secs(2);
    register(stage);
    stage.fill(0, 0..2);
    let late = stage.lease("lease=1m");
    let prompt = stage.lease("lease=1m");
    // The delay counts from the request on.
    let start = Instant::now();
    stage.call(&stage.topic.bury("g", "delay=2s", "retry", late.position())).expect(200);
    stage.wait_committed(0, 1);
    let early = stage.call(&stage.topic.read("g", "q=retry&ack=1&lease=1m&wait=500ms"));
    assert!(early.status == 204 || start.elapsed() >= DELAY, "it is not available yet: {}", early.text());
    let message = single(&read_queue(stage, "retry"));
    let took = start.elapsed();
    figures::note("shadow queues: a delay of 2 s took", format!("{took:?}"));
    assert_eq!((message.text.as_str(), message.count), ("0", None));
    assert!(took >= DELAY.saturating_sub(Duration::from_millis(50)), "not before its time: {took:?}");
    assert!(took < DELAY + Duration::from_secs(4), "{took:?}");
    stage.call(&stage.topic.bury("g", "", "retry", prompt.position())).expect(200);
    assert_eq!(read_queue(stage, "retry").text(), "1", "and another comes at once");
}

fn redrive(stage: &Stage) {
    register(stage);
    stage.fill(0, 0..2);
    for _ in 0..2 {
        let message = stage.lease("lease=1m");
        stage.call(&stage.topic.bury("g", "", "dead", message.position())).expect(200);
    }
    stage.wait_committed(0, 2);
    let answer = stage.call(&stage.topic.redrive("g")).expect(200);
    assert_eq!(answer.json()["ok"], 1);
    let mut back: Vec<String> = (0..2).map(|_| next_of_either(stage)).collect();
    back.sort();
    assert_eq!(back, ["0", "1"]);
    queue_is_empty(stage, "dead");
    stage.call(&stage.topic.redrive("g")).expect(200);
    queue_is_empty(stage, "retry");
}

/// The dead come back to where the group reads: its retry queue, or the topic.
fn next_of_either(stage: &Stage) -> String {
    let deadline = Instant::now() + SOON;
    while Instant::now() < deadline {
        for query in ["q=retry&ack=1&lease=1m&wait=300ms", "ack=1&lease=1m&wait=300ms"] {
            let answer = stage.call(&stage.topic.read("g", query));
            if answer.status == 200 {
                return answer.text();
            }
        }
    }
    panic!("what was dead comes back");
}

/// The third delivery is one too many: the message goes to the dead queue, and the partition goes on.
fn too_many_deliveries(stage: &Stage) {
    register(stage);
    stage.fill(0, 0..2);
    let query = "lease=300ms&max_deliveries=2";
    let first = stage.lease(query);
    assert_eq!((first.offset, first.count), (0, None));
    pass(Duration::from_millis(500));
    let second = stage.lease(query);
    assert_eq!((second.offset, second.count), (0, Some(2)));
    pass(Duration::from_millis(500));
    let other = stage.lease("lease=1m&max_deliveries=2");
    assert_eq!((other.offset, other.count), (1, None), "the partition goes on");
    let dead = single(&read_queue(stage, "dead"));
    assert_eq!((dead.text.as_str(), dead.count), ("0", None));
    stage.wait_committed(0, 1);
    stage.ack(&[other.position()]).expect(200);
    stage.wait_committed(0, 2);
    queue_is_empty(stage, "retry");
}

/// 64 characters for each of app, topic, reader and group: more than Kafka's 249.
fn long_topic() -> Topic {
    let app = folder::unique("app");
    Topic::new(&format!("{app}{}", "a".repeat(64 - app.len())), &"t".repeat(64), "v1")
}

fn names_too_long_on_memory() {
    let topic = long_topic();
    let gateway = Kateway::memory().start();
    gateway.publish(&topic.publish("", "x")).expect(201);
    names_too_long(&gateway, &topic);
}

fn names_too_long_on_kafka() {
    let topic = long_topic();
    kafka().admin().create_topic(&topic.in_kafka(), 1);
    let gateway = Kateway::kafka(&kafka().bootstrap()).set("topics.replicas", 3).start();
    gateway.publish(&topic.publish("", "x")).expect(201);
    names_too_long(&gateway, &topic);
}

fn names_too_long(gateway: &Kateway, topic: &Topic) {
    let (queue, others) = (topic.shadow_in_kafka("", "retry").len(), "g".repeat(64));
    problem::check(&gateway.subscribe(&topic.shadow(&others)), 400);
    // As long as Kafka takes them.
    let fits = "g".repeat(249 - queue);
    gateway.subscribe(&topic.shadow(&fits)).expect(201);
    problem::check(&gateway.subscribe(&topic.shadow(&format!("{fits}g"))), 400);
}

// === kills ===

const COUNT: usize = 300;
const READERS: usize = 4;
/// A rebalance waits for the session of the killed, 6 s; a lease taken just before is 2 s.
const KILLED_AND_BACK: Duration = Duration::from_mins(1);

/// The gateway dies twice while everything it gives is buried, and comes back at the same place.
fn nothing_is_lost_under_kills() {
    let (topic, admin) = (Topic::fresh("shadowed"), kafka().admin());
    admin.create_topic(&topic.in_kafka(), 2);
    let address = || SocketAddr::from(([127, 0, 0, 1], ports::reserve()));
    let builder = Kateway::kafka(admin.brokers()).shards(2).set("topics.replicas", 3).at(address(), address());
    let mut gateway = builder.clone().start();
    fill_with_everything(&gateway, &topic);
    gateway.subscribe(&topic.shadow("g")).expect(201);
    let (buried, is_over, start) = (AtomicUsize::new(0), AtomicBool::new(false), Instant::now());
    let place = gateway.subscribe;
    std::thread::scope(|scope| {
        let _end = EndOnDrop(&is_over);
        for _ in 0..READERS {
            scope.spawn(|| bury_all(place, &topic, &buried, &is_over));
        }
        for goal in [COUNT / 4, COUNT / 2] {
            wait_until(KILLED_AND_BACK, format!("{goal} are buried"), || buried.load(Ordering::Relaxed) >= goal);
            gateway.kill();
            gateway = builder.clone().start();
        }
        let all = i64::try_from(COUNT).expect("few");
        wait_until(KILLED_AND_BACK, "all of it is committed", || {
            admin.committed_sum(&topic.group_in_kafka("g"), &topic.in_kafka()) == all
        });
    });
    let answered = buried.load(Ordering::Relaxed);
    let copies = count_copies(&topic);
    figures::note(
        "shadow queues: 300 buried under two kills",
        format!("{copies} copies, {} duplicates, {answered} answered 200, in {:?}", copies - COUNT, start.elapsed()),
    );
    assert!(copies >= answered, "an answer is a copy: {copies} copies, {answered} answers");
}

fn fill_with_everything(gateway: &Kateway, topic: &Topic) {
    let mut publisher = gateway.publisher();
    for n in 0..COUNT {
        let request = topic.publish(&format!("partition={}&key=key-{n}", n % 2), n.to_string());
        let request = request.header("X-Tag", &format!("tag;{n}"));
        let request = request.header("X-Header-zeta", &STANDARD.encode([0, 255, b',']));
        let request = request.header("X-Header-alpha", &STANDARD.encode(n.to_string()));
        publisher.call(&request).unwrap_or_else(|e| panic!("{e}")).expect(201);
    }
}

/// Buries what it is given; a gateway that is away is waited for, a lease that has ended is another's.
fn bury_all(place: SocketAddr, topic: &Topic, buried: &AtomicUsize, is_over: &AtomicBool) {
    let read = topic.read("g", "ack=1&lease=2s&wait=1s");
    let mut connection = None;
    while !is_over.load(Ordering::Relaxed) {
        let Some(answer) = try_call(&mut connection, place, &read) else { continue };
        if answer.status != 200 {
            assert!([204, 503].contains(&answer.status), "{} {}", answer.status, answer.text());
            continue;
        }
        let bury = topic.bury("g", "", "dead", single(&answer).position());
        let Some(answer) = try_call(&mut connection, place, &bury) else { continue };
        assert!([200, 409, 503, 504].contains(&answer.status), "{} {}", answer.status, answer.text());
        buried.fetch_add(usize::from(answer.status == 200), Ordering::Relaxed);
    }
}

/// `None`: the gateway is away, or went away; the next call connects anew.
fn try_call(connection: &mut Option<Connection>, place: SocketAddr, request: &Request) -> Option<Response> {
    let open = connection.take().map_or_else(|| Connection::open(place), Ok);
    match open.and_then(|mut open| Ok((open.call(request)?, open))) {
        Ok((answer, open)) => {
            *connection = Some(open).filter(|_| !answer.closes());
            Some(answer)
        }
        Err(Failure::Connect(_)) => {
            // Nobody listens: nothing to wait for but the next try.
            pass(Duration::from_millis(10));
            None
        }
        Err(Failure::NoAnswer | Failure::Cut(_)) => None,
        Err(other) => panic!("{request:?}: {other}"),
    }
}

/// Every message has a copy that is what it was; of some the headers are compared, too. Gives how many copies there are.
fn count_copies(topic: &Topic) -> usize {
    let (brokers, dead) = (kafka().bootstrap(), topic.shadow_in_kafka("g", "dead"));
    let originals = kcat::read_all(&brokers, &topic.in_kafka());
    let copies = kcat::read_all(&brokers, &dead);
    let mut copies_of: HashMap<_, Vec<_>> = HashMap::new();
    for copy in &copies {
        copies_of.entry((copy.key.clone(), copy.payload.clone())).or_default().push(copy);
    }
    assert_eq!(originals.len(), COUNT);
    let is_lost = |n: &&kcat::Record| !copies_of.contains_key(&(n.key.clone(), n.payload.clone()));
    let lost: Vec<_> = originals.iter().filter(is_lost).map(|n| (n.partition, n.offset)).collect();
    assert!(lost.is_empty(), "acknowledged, and in the dead queue not: {lost:?}");
    assert_eq!(copies_of.len(), COUNT, "nothing else is there");
    for original in originals.iter().step_by(COUNT / 10) {
        let headers = kcat::read_headers(&brokers, &topic.in_kafka(), original.partition, original.offset);
        assert!(headers.windows(11).any(|bytes| bytes == b"kateway-tag"), "{}", String::from_utf8_lossy(&headers));
        for copy in &copies_of[&(original.key.clone(), original.payload.clone())] {
            let of_copy = kcat::read_headers(&brokers, &dead, copy.partition, copy.offset);
            assert_eq!(String::from_utf8_lossy(&of_copy), String::from_utf8_lossy(&headers), "{copy:?}");
        }
    }
    copies.len()
}
