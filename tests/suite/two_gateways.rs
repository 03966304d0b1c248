//! Two gateways behind a balancer that knows no stickiness are one: any client reads and acknowledges through either, and the stop of
//! one costs seconds, not messages.
//!
//! Method: HAProxy hands each request to whoever's turn it is. Publishers enter in the ledger, twenty readers with `ack=1` in the ledger
//! of deliveries. One gateway is told to go (SIGTERM) and comes back, the other is killed (`kill -9`) and comes back, each at its old
//! address. Gateways may answer what the contract promises and nothing else; the proxy itself may speak only around the kill. The
//! longest pause of a partition is printed. Then a topic of one partition, which one of the two owns: six clients, none may starve,
//! and what was acknowledged through either is what Kafka's own tool sees committed. Last, never a loop. `peers` has what gateways say to each
//! other.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kateway_tests::admin::{OFFSETS, Pace};
use kateway_tests::crowd::{Crowd, Places, Plan as Reading, Tally, served};
use kateway_tests::haproxy::{Backend, HaProxy};
use kateway_tests::java::{self, Member};
use kateway_tests::kateway::{Builder, Kateway};
use kateway_tests::ledger::Ledger;
use kateway_tests::load::{Load, Plan};
use kateway_tests::read_ledger::ReadLedger;
use kateway_tests::topic::Topic;
use kateway_tests::{figures, kcat, ports, problem, wait_until};

use crate::faults::Frozen;
use crate::stage::{SOON, single};
use crate::{Case, kafka};

pub const CASES: &[Case] = &[
    Case::new("two_gateways::stopped_and_killed", stopped_and_killed).kafka().alone(),
    Case::new("two_gateways::one_partition_for_six_clients", one_partition_for_six_clients).kafka().alone(),
    Case::new("two_gateways::acks_through_either", acks_through_either).kafka(),
    Case::new("two_gateways::a_silent_broker_is_no_business_of_theirs", a_silent_broker_is_no_business_of_theirs)
        .kafka()
        .alone(),
    Case::new("two_gateways::foreign_owner_is_said_by_both", foreign_owner_is_said_by_both).kafka(),
];

const SECRET: &str = "0123456789abcdef0123456789abcdef";
const COMMIT_INTERVAL: Duration = Duration::from_millis(100);
const AGAIN: Duration = Duration::from_mins(1);
/// What a stop may cost a partition: a session of 6 s, and taking over. Printed; a machine of two cores gets five times that.
const GAP: Duration = Duration::from_secs(10);

/// One of the two: its settings and its place, which outlive it.
#[derive(Clone)]
struct Seat {
    builder: Builder,
    place: Backend,
}

impl Seat {
    fn new(id: &str) -> Self {
        let address = || SocketAddr::from(([127, 0, 0, 1], ports::reserve()));
        let place = Backend { publish: address(), subscribe: address() };
        let builder = Kateway::kafka(&kafka().bootstrap()).shards(2).set("gateway.id", id);
        // The balancer is told, and has time to look.
        let builder = builder.set("gateway.peer_secret", SECRET).set("drain.notice_s", 2);
        Self { builder: builder.at(place.publish, place.subscribe), place }
    }

    fn start(&self) -> Kateway {
        self.builder.clone().start()
    }
}

fn topic(partitions: i32) -> Topic {
    let topic = Topic::fresh("balanced");
    kafka().admin().create_topic(&topic.in_kafka(), partitions);
    topic
}

fn committed(topic: &Topic) -> i64 {
    kafka().admin().committed_sum(&topic.group_in_kafka("g"), &topic.in_kafka())
}

/// Waits until all that was published is processed and acknowledged, while the crowd still reads.
fn wait_all_committed(topic: &Topic) {
    let count = kafka().admin().message_count(&topic.in_kafka());
    wait_until(AGAIN, format!("{count} messages are committed"), || committed(topic) == count);
}

/// The run's publishers and readers, behind the proxy.
struct Run {
    topic: Topic,
    proxy: HaProxy,
    ledger: Arc<Ledger>,
    reads: Arc<ReadLedger>,
    load: Load,
    crowd: Crowd,
}

impl Run {
    fn start(topic: Topic, seats: &[Seat]) -> Self {
        let proxy = HaProxy::start(&seats.iter().map(|seat| seat.place).collect::<Vec<_>>());
        let ledger = Arc::new(Ledger::new(u64::from(std::process::id())));
        let reads = Arc::new(ReadLedger::new(COMMIT_INTERVAL));
        let crowd = Crowd::start(&Reading::new(&topic, 20), &Places::new([proxy.subscribe]), &reads);
        let mut plan = Plan::new(proxy.publish, &topic.appid, &topic.name);
        (plan.connections, plan.pause) = (4, Duration::from_millis(5));
        let load = Load::start(&plan, &ledger);
        let run = Self { topic, proxy, ledger, reads, load, crowd };
        run.wait_more(1_000);
        run
    }

    fn wait_more(&self, more: usize) -> Duration {
        let goal = self.reads.processed() + more;
        wait_until(AGAIN, format!("{more} more messages are processed"), || self.reads.processed() >= goal)
    }
}

fn stopped_and_killed() {
    let seats = ["a", "b"].map(Seat::new);
    let mut gateways = [seats[0].start(), seats[1].start()];
    let run = Run::start(topic(4), &seats);
    let began = run.reads.now();

    let told = run.reads.now();
    assert!(gateways[0].terminate(SOON).success(), "it drained");
    run.wait_more(500);
    gateways[0] = seats[0].start();
    run.wait_more(1_000);
    run.reads.moved(told, run.reads.now());

    let killed = run.reads.now();
    gateways[1].kill();
    run.reads.disturbed(killed, killed);
    gateways[1] = seats[1].start();
    run.wait_more(2_000);
    let (pause, partition) = wait_for_all_partitions(&run, killed);
    run.reads.moved(killed, run.reads.now());

    let Run { topic, proxy: _proxy, ledger, reads, load, crowd } = run;
    let published = load.stop();
    wait_all_committed(&topic);
    let tally = crowd.stop();
    let records = kcat::read_all(&kafka().bootstrap(), &topic.in_kafka());
    let (verdict, read) = (ledger.check(&records), reads.check(&records));
    let (longest, _) = reads.longest_gap(began);
    figures::note("two gateways: ledger", &verdict);
    figures::note("two gateways: readers' ledger", &read);
    figures::note("two gateways: answers", format!("{:?}, of the proxy {:?}", tally.statuses, tally.of_proxy.len()));
    figures::note(
        "two gateways: longest pause of a partition",
        format!("{longest:?}; after kill -9 {pause:?} ({partition})"),
    );
    verdict.assert_clean();
    read.assert_clean();
    tally.assert_only_promised();
    assert_proxy_spoke_only_around(&tally, killed);
    let cut = published.statuses.keys().filter(|status| ![201, 429, 502, 503, 504].contains(*status)).count();
    assert_eq!(cut, 0, "{published:?}");
    assert!(longest < 5 * GAP, "a partition paused for {longest:?}");
}

/// The killed gateway's partitions come back when its session is over.
fn wait_for_all_partitions(run: &Run, killed: Duration) -> (Duration, i32) {
    let ends = || kafka().admin().committed(&run.topic.group_in_kafka("g"), &run.topic.in_kafka());
    let then = ends();
    wait_until(AGAIN, "every partition goes on", || {
        ends().iter().zip(&then).all(|(now, then)| now.unwrap_or(0) > then.unwrap_or(0))
    });
    run.reads.longest_gap(killed)
}

/// What was in the killed gateway's hands is gone with it: the proxy may say so for a moment, and no longer.
#[track_caller]
fn assert_proxy_spoke_only_around(tally: &Tally, killed: Duration) {
    let is_then = |at: &Duration| *at >= killed && *at <= killed + Duration::from_secs(3);
    let early_or_late: Vec<_> = tally.of_proxy.iter().filter(|(at, _)| !is_then(at)).collect();
    assert!(early_or_late.is_empty(), "killed at {killed:?}; the proxy's own answers: {early_or_late:?}");
    let cut: Vec<_> = tally.cut.iter().filter(|at| !is_then(at)).collect();
    assert!(cut.is_empty(), "killed at {killed:?}; answers cut: {cut:?}");
}

fn one_partition_for_six_clients() {
    const CLIENTS: u32 = 6;
    const PACE: Pace = Pace { per_second: 400, bytes: 100 };
    let seats = ["a", "b"].map(Seat::new);
    let _gateways = [seats[0].start(), seats[1].start()];
    let topic = topic(1);
    let proxy = HaProxy::start(&seats.iter().map(|seat| seat.place).collect::<Vec<_>>());
    let reads = Arc::new(ReadLedger::new(COMMIT_INTERVAL));
    let crowd = Crowd::start(&Reading::new(&topic, CLIENTS), &Places::new([proxy.subscribe]), &reads);
    let is_over = std::sync::atomic::AtomicBool::new(false);
    let published = std::thread::scope(|scope| {
        let producer = scope.spawn(|| kafka().admin().produce_paced(&topic.in_kafka(), 1, PACE, &is_over));
        let start = Instant::now();
        // Ends also when a client starves, so that the figure says which.
        while start.elapsed() < Duration::from_secs(20) && served(&reads.shares(), 50).len() < CLIENTS as usize {
            std::thread::sleep(Duration::from_millis(50));
        }
        is_over.store(true, std::sync::atomic::Ordering::Relaxed);
        producer.join().expect("the producer does not panic")
    });
    wait_all_committed(&topic);
    let shares = reads.shares();
    let tally = crowd.stop();
    let read = reads.check(&kcat::read_all(&kafka().bootstrap(), &topic.in_kafka()));
    figures::note("two gateways, one partition: messages per client", format!("{shares:?} of {published}"));
    figures::note("two gateways, one partition: readers' ledger", &read);
    read.assert_clean();
    tally.assert_only_promised();
    assert_eq!(served(&shares, 50).len(), CLIENTS as usize, "no client starves: {shares:?}");
    let by_tool = java::committed(&kafka().bootstrap(), &topic.group_in_kafka("g"), &topic.in_kafka());
    assert_eq!(by_tool.get(&0).copied(), i64::try_from(published).ok(), "Kafka's own tool agrees");
}

/// One partition, read through one gateway and acknowledged through the other, both ways, message by message.
fn acks_through_either() {
    const COUNT: i64 = 20;
    let gateways = ["a", "b"].map(|id| Seat::new(id).start());
    let topic = topic(1);
    for gateway in &gateways {
        gateway.subscribe(&topic.read("g", "ack=1&wait=1s"));
    }
    kafka().admin().produce(&topic.in_kafka(), 1, (0..COUNT).map(|n| n.to_string().into_bytes()));
    for n in 0..COUNT {
        let (reads, acks) = if n % 2 == 0 { (0, 1) } else { (1, 0) };
        let mut message = None;
        wait_until(SOON, format!("message {n} comes through gateway {reads}"), || {
            let answer = gateways[reads].subscribe(&topic.read("g", "ack=1&lease=1m&wait=5s"));
            // The other one may be taking the partition over for a moment.
            message = (answer.status == 200).then(|| single(&answer));
            assert!([200, 204, 503].contains(&answer.status), "{} {}", answer.status, answer.text());
            message.is_some()
        });
        let message = message.expect("waited for it");
        assert_eq!((message.offset, message.count), (n, None));
        if n % 4 < 2 {
            gateways[acks].subscribe(&topic.ack_all("g", "", &[message.position()])).expect(200);
        } else {
            gateways[acks]
                .subscribe(&topic.read_and_ack("g", "ack=1&wait=0s&batch=1&lease=100ms", 0, n + 1_000))
                .expect(409);
            let body = format!(r#"[{{"partition":0,"offset":{n},"extend":"2m"}}]"#);
            gateways[acks].subscribe(&topic.ack("g", "", body)).expect(200);
            gateways[acks].subscribe(&topic.ack_all("g", "next=1", &[(0, n + 1)])).expect(200);
        }
        wait_until(SOON, format!("{} are committed", n + 1), || committed(&topic) == n + 1);
    }
    // Moved, buried and looked at through whichever comes first.
    for (gateway, place) in gateways.iter().zip(["3", "5"]) {
        gateway.subscribe(&topic.move_to_offset("g", 0, place)).expect(200);
        wait_until(SOON, "it is moved", || committed(&topic) == place.parse::<i64>().expect("a number"));
    }
}

/// The offsets partition of `group` has its replicas on two brokers until this is dropped.
struct Offsets {
    partition: i32,
}

impl Offsets {
    fn on(group: &str, brokers: &[i32]) -> Self {
        let partition = kafka().admin().offsets_partition(group);
        java::reassign(&kafka().bootstrap(), OFFSETS, partition, brokers);
        Self { partition }
    }
}

impl Drop for Offsets {
    fn drop(&mut self) {
        // Of a trial that fails the brokers are not whole; then two replicas do for the rest of the run.
        if !std::thread::panicking() {
            java::reassign(&kafka().bootstrap(), OFFSETS, self.partition, &[0, 1, 2]);
        }
    }
}

/// A broker that holds no replica of the topic nor of what the group commits is silent. Every broker is asked who reads a group; what
/// is known must do for as long: reads and acknowledgements through the gateway that owns nothing go on, and are not refused.
fn a_silent_broker_is_no_business_of_theirs() {
    const SILENT: u32 = 2;
    const OTHERS: [i32; 2] = [0, 1];
    const PATIENCE: Duration = Duration::from_secs(2);
    let topic = Topic::fresh("balanced");
    kafka().admin().create_topic_on(&topic.in_kafka(), &OTHERS);
    // A follower in sync is waited for by every commit, so it must not be one.
    let _offsets = Offsets::on(&topic.group_in_kafka("g"), &OTHERS);
    let gateways = ["a", "b"].map(|id| Seat::new(id).start());
    let read = topic.read("g", "ack=1&lease=1m&wait=20s");
    for gateway in &gateways {
        gateway.subscribe(&topic.read("g", "ack=1&wait=2s"));
    }
    let publish = |text: String| gateways[0].publish(&topic.publish("ack=local", text)).expect(201);
    publish("before".to_owned());
    let first = single(&gateways[1].subscribe(&read));
    gateways[1].subscribe(&topic.ack_all("g", "", &[first.position()])).expect(200);
    let frozen = Frozen::new(SILENT);
    let mut took = Vec::new();
    // Longer than a look is trusted, so that some fall into it, and shorter than the cluster takes to give the broker up.
    let until = Instant::now() + Duration::from_secs(4);
    while Instant::now() < until {
        publish(format!("{}", took.len()));
        let start = Instant::now();
        let got = single(&gateways[1].subscribe(&read));
        gateways[1].subscribe(&topic.ack_all("g", "", &[got.position()])).expect(200);
        took.push(start.elapsed());
    }
    drop(frozen);
    kafka().wait_recovered();
    took.sort_unstable();
    let (middle, slowest) = (took[took.len() / 2], took[took.len() - 1]);
    figures::note(
        "two gateways, a broker silent: read and acknowledged through the other",
        format!("{} times, half of them in {middle:?}, slowest {slowest:?}", took.len()),
    );
    assert!(slowest < 5 * PATIENCE, "{slowest:?}");
}

/// The partition belongs to a member that is no kateway: both say so, at once, instead of asking each other for ever.
fn foreign_owner_is_said_by_both() {
    let topic = topic(1);
    let java = Member::join(&kafka().bootstrap(), &topic.group_in_kafka("g"), &topic.in_kafka());
    wait_until(AGAIN, "the Java member has the partition", || java.said().partitions.len() == 1);
    let gateways = ["a", "b"].map(|id| Seat::new(id).start());
    for gateway in &gateways {
        gateway.subscribe(&topic.read("g", "wait=2s"));
    }
    // Sticky assignment leaves the partition where it is.
    assert_eq!(java.said().partitions.len(), 1, "the gateways took nothing");
    let asked = || gateways.iter().map(|gateway| gateway.scrape().sum("kateway_peer_asked_total", &[])).sum::<f64>();
    let before = asked();
    for gateway in &gateways {
        let start = Instant::now();
        problem::check(&gateway.subscribe(&topic.ack_all("g", "", &[(0, 0)])), 409);
        problem::check(&gateway.subscribe(&topic.move_to_offset("g", 0, "0")), 409);
        assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
        let read = gateway.subscribe(&topic.read("g", "wait=1s"));
        assert!([204, 409].contains(&read.status), "{} {}", read.status, read.text());
    }
    let hops = asked() - before;
    assert!(hops <= 12.0, "at most one hop for each request: {hops}");
    assert!(java.leave(SOON).is_closed);
}
