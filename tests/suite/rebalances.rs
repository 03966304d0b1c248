//! Partitions move between gateways, and Kafka clients fail for good, without a message skipped.
//!
//! Method: on the real cluster, a group is read while its membership changes: every consumer client of the gateway is broken again and
//! again (`test.break_clients_ms`), a gateway is stopped (SIGSTOP) for longer than its session while another takes over, gateways come,
//! go and are killed. What was handed out and not committed may come again after such a change; nothing may be skipped, and in the end
//! exactly the end of the topic is committed, which a late commit of somebody who lost the partition would undo.

use std::collections::HashSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use kateway_tests::client::Connection;
use kateway_tests::kateway::Kateway;
use kateway_tests::topic::Topic;
use kateway_tests::{figures, frames, problem, process, wait_until};

use crate::{Case, kafka};

pub const CASES: &[Case] = &[
    Case::new("rebalances::consumers_that_fail_are_replaced", consumers_that_fail_are_replaced).kafka(),
    Case::new("rebalances::stopped_gateway_loses_its_partitions", stopped_gateway_loses_its_partitions).kafka(),
    Case::new("rebalances::refused_session_is_said", refused_session_is_said).kafka(),
    Case::new("rebalances::gateways_come_and_go", gateways_come_and_go).kafka().alone(),
];

const PARTITIONS: i32 = 4;
const AGAIN: Duration = Duration::from_mins(1);

fn topic() -> Topic {
    let topic = Topic::fresh("moved");
    kafka().admin().create_topic(&topic.in_kafka(), PARTITIONS);
    topic
}

/// Writes messages `from..to`, without the gateway.
fn fill(topic: &Topic, from: usize, to: usize) {
    kafka().admin().produce(&topic.in_kafka(), PARTITIONS, (from..to).map(|n| format!("{n}").into_bytes()));
}

/// One read; what it gave is added to `seen`. Gives how many messages of it were there before.
fn read(connection: &mut Connection, topic: &Topic, query: &str, seen: &mut HashSet<String>) -> usize {
    let answer = connection.call(&topic.read("g", query)).unwrap_or_else(|e| panic!("{e}"));
    if answer.status == 503 {
        // No consumer at the moment: as the answer says, later again.
        std::thread::sleep(Duration::from_millis(50));
        return 0;
    }
    if answer.status == 204 {
        return 0;
    }
    let frames = frames::decode(&answer.expect(200).body);
    frames.into_iter().filter(|frame| !seen.insert(String::from_utf8_lossy(&frame.payload).into_owned())).count()
}

/// Reads until `count` messages were seen; gives how many came again.
fn read_until(connection: &mut Connection, topic: &Topic, count: usize, seen: &mut HashSet<String>) -> usize {
    let deadline = Instant::now() + AGAIN;
    let mut again = 0;
    while seen.len() < count {
        assert!(Instant::now() < deadline, "{} of {count} messages after {AGAIN:?}", seen.len());
        again += read(connection, topic, "batch=50&wait=1s", seen);
    }
    again
}

fn committed(topic: &Topic) -> i64 {
    kafka().admin().committed_sum(&topic.group_in_kafka("g"), &topic.in_kafka())
}

fn wait_committed(topic: &Topic, count: usize) {
    let count = i64::try_from(count).expect("few");
    wait_until(AGAIN, format!("{count} messages are committed"), || committed(topic) == count);
}

fn partitions_of(gateway: &Kateway) -> usize {
    let status = gateway.status();
    let groups = status["groups"].as_array().expect("the status lists groups");
    groups.iter().filter_map(|group| group["partitions"].as_array()).map(Vec::len).sum()
}

/// librdkafka lets a consumer that failed for good neither commit nor leave: the next one waits for the session to end. It is a short one
/// here, so that every client reads for most of its life, on a slow machine too.
fn consumers_that_fail_are_replaced() {
    const STEP: usize = 200;
    let topic = topic();
    let gateway = Kateway::kafka(&kafka().bootstrap())
        .shards(2)
        .set("test.break_clients_ms", 8_000)
        .set("kafka.session_timeout_ms", 1_500)
        .start();
    let mut connection = gateway.subscriber();
    let mut seen = HashSet::new();
    let (mut filled, mut again, mut slowest) = (0, 0, Duration::ZERO);
    while gateway.scrape().sum("kateway_consumer_restarts_total", &[]) < 2.0 {
        fill(&topic, filled, filled + STEP);
        filled += STEP;
        let start = Instant::now();
        again += read_until(&mut connection, &topic, filled, &mut seen);
        slowest = slowest.max(start.elapsed());
    }
    wait_committed(&topic, filled);
    figures::note(
        "rebalances, two consumers broken",
        format!("{filled} messages, {again} came again, slowest step {slowest:?}"),
    );
    wait_until(AGAIN, "the broken consumers are gone", || {
        kafka().admin().members(&topic.group_in_kafka("g")).len() == 1
            && process::threads_named(gateway.pid(), "rdk:main") <= 5
    });
}

/// The stopped gateway has handed out messages that it did not commit. Back again, it must not commit them over what the other
/// has committed since, and must join anew.
fn stopped_gateway_loses_its_partitions() {
    const COUNT: usize = 400;
    let topic = topic();
    fill(&topic, 0, COUNT);
    // It would not commit by itself before it is stopped.
    let first = Kateway::kafka(&kafka().bootstrap()).set("sub.commit_interval_ms", 10_000).alarms_expected().start();
    let mut seen = HashSet::new();
    let mut to_first = first.subscriber();
    read(&mut to_first, &topic, "batch=2&wait=20s", &mut seen);
    wait_committed(&topic, seen.len());
    read(&mut to_first, &topic, "batch=20&wait=20s", &mut seen);
    first.signal(libc::SIGSTOP);
    let stopped = Instant::now();
    let uncommitted = committed(&topic);
    assert!(usize::try_from(uncommitted).expect("few") < seen.len(), "it was stopped before it committed");

    let second = Kateway::kafka(&kafka().bootstrap()).start();
    let mut to_second = second.subscriber();
    let mut seen_by_second = HashSet::new();
    read_until(&mut to_second, &topic, COUNT - usize::try_from(uncommitted).expect("few"), &mut seen_by_second);
    figures::note("rebalances, a gateway stopped: the other has everything after", format!("{:?}", stopped.elapsed()));
    wait_committed(&topic, COUNT);
    seen.extend(seen_by_second);
    assert_eq!(seen.len(), COUNT, "nothing is skipped");

    first.signal(libc::SIGCONT);
    wait_until(AGAIN, "the first gateway has noticed", || {
        first.scrape().sum("kateway_consumer_lost_partitions_total", &[]) >= f64::from(PARTITIONS)
    });
    // Both read again, in equal parts.
    wait_until(AGAIN, "the partitions are shared", || {
        read(&mut to_first, &topic, "batch=2&wait=50ms", &mut HashSet::new());
        read(&mut to_second, &topic, "batch=2&wait=50ms", &mut HashSet::new());
        [&first, &second].map(partitions_of) == [2, 2]
    });
    assert_eq!(committed(&topic), i64::try_from(COUNT).expect("few"), "nobody has set the group back");
    fill(&topic, COUNT, 2 * COUNT);
    let deadline = Instant::now() + AGAIN;
    while seen.len() < 2 * COUNT {
        assert!(Instant::now() < deadline, "{} of {} messages", seen.len(), 2 * COUNT);
        for connection in [&mut to_first, &mut to_second] {
            assert_eq!(read(connection, &topic, "batch=50&wait=200ms", &mut seen), 0, "nothing comes again by now");
        }
    }
    wait_committed(&topic, 2 * COUNT);
}

/// The brokers take no session so short (`group.min.session.timeout.ms`): readers are told, at once and again.
fn refused_session_is_said() {
    let topic = topic();
    fill(&topic, 0, 1);
    let gateway = Kateway::kafka(&kafka().bootstrap()).set("kafka.session_timeout_ms", 1_000).start();
    for _ in 0..3 {
        let start = Instant::now();
        let answer = gateway.subscribe(&topic.read("g", "wait=20s"));
        let problem = problem::check(&answer, 503);
        assert_eq!(problem.code, 50302);
        assert!(problem.detail.contains("INVALID_SESSION_TIMEOUT"), "{}", problem.detail);
        assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
    }
}

/// Ends what the other threads of a scope wait for, also when this one panics: the scope would wait for them for ever.
struct EndOnDrop<'a>(&'a AtomicBool);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Six gateways come, one after the other; each is told to go, or killed, as soon as the next one has partitions. All the time messages
/// are written, and the two that live are read.
fn gateways_come_and_go() {
    const GATEWAYS: usize = 6;
    const STEP: usize = 500;
    let topic = topic();
    let began = Instant::now();
    let (all, again) = (Mutex::default(), AtomicUsize::new(0));
    let is_over = AtomicBool::new(false);
    let mut leaving = Vec::new();
    let (last, written) = std::thread::scope(|scope| {
        let end_writer = EndOnDrop(&is_over);
        let writer = scope.spawn(|| {
            let mut written = 0;
            while !is_over.load(Ordering::Relaxed) {
                fill(&topic, written, written + STEP);
                written += STEP;
            }
            written
        });
        let mut previous: Option<Kateway> = None;
        for turn in 0..GATEWAYS {
            let gateway = Kateway::kafka(&kafka().bootstrap()).shards(2).start();
            let end = if turn % 2 == 0 { libc::SIGKILL } else { libc::SIGTERM };
            read_until_it_has_partitions(&gateway, previous.as_ref().map(|gone| (gone, end)), &topic, &all, &again);
            // One that was told to go does so while the next one joins.
            leaving.extend(previous.replace(gateway).filter(|_| end == libc::SIGTERM));
        }
        drop(end_writer);
        (previous.expect("there were gateways"), writer.join().expect("the writer does not panic"))
    });
    for mut gateway in leaving {
        assert!(gateway.wait_end(AGAIN).success(), "a gateway that was told to go ends well");
    }
    let mut seen = all.into_inner().expect("no reader panicked");
    let more = read_until(&mut last.subscriber(), &topic, written, &mut seen);
    wait_committed(&topic, written);
    figures::note(
        format!("rebalances, {GATEWAYS} gateways come and go"),
        format!("{written} messages, {} came again, {:?}", again.into_inner() + more, began.elapsed()),
    );
}

/// Two clients read of `gateway`, and two of the other, until the first has partitions and gave messages of them; then the other gets its
/// signal while its clients read.
fn read_until_it_has_partitions(
    gateway: &Kateway,
    other: Option<(&Kateway, i32)>,
    topic: &Topic,
    all: &Mutex<HashSet<String>>,
    again: &AtomicUsize,
) {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _end_readers = EndOnDrop(&done);
        let others = other.map(|(other, _)| other);
        for reader in [Some(gateway), Some(gateway), others, others].into_iter().flatten() {
            let (address, done) = (reader.subscribe, &done);
            scope.spawn(move || read_while_it_lives(address, topic, done, all, again));
        }
        let delivered = || gateway.scrape().sum("kateway_sub_messages_total", &[]);
        wait_until(AGAIN, "the new gateway has partitions", || partitions_of(gateway) > 0 && delivered() > 0.0);
        if let Some((other, end)) = other {
            other.signal(end);
        }
    });
}

fn read_while_it_lives(
    address: std::net::SocketAddr,
    topic: &Topic,
    done: &AtomicBool,
    all: &Mutex<HashSet<String>>,
    again: &AtomicUsize,
) {
    let Ok(mut connection) = Connection::open(address) else { return };
    while !done.load(Ordering::Relaxed) {
        let Ok(answer) = connection.call(&topic.read("g", "batch=10&wait=200ms")) else { return };
        if answer.status != 200 {
            continue;
        }
        let mut all = all.lock().expect("no reader panics");
        for frame in frames::decode(&answer.body) {
            let is_new = all.insert(String::from_utf8_lossy(&frame.payload).into_owned());
            again.fetch_add(usize::from(!is_new), Ordering::Relaxed);
        }
    }
}
