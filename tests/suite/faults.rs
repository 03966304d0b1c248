//! No promise is broken while machines fail.
//!
//! Method: publishers enter everything in a ledger while a fault is done: the broker that leads most partitions is
//! killed with `kill -9` and started again, a broker is frozen, the gateway is killed and started again on the same
//! topic. When all is well again, kcat reads the whole topic and the ledger must find nothing lost, nothing refused
//! that is there, nothing altered, nothing of its own making, and order kept per connection and key. Availability is
//! asserted as well: after the fault the gateway publishes again within the deadline.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kateway_tests::kateway::{Builder, Kateway};
use kateway_tests::ledger::{Answer, Ledger, Verdict};
use kateway_tests::load::{Load, Plan, Tally};
use kateway_tests::topic::Topic;
use kateway_tests::{figures, kcat, process, wait_for, wait_until};

use crate::{Case, kafka};

pub const CASES: &[Case] = &[
    Case::new("faults::leader_killed_and_restarted", leader_killed_and_restarted).kafka().alone(),
    Case::new("faults::broker_frozen_and_thawed", broker_frozen_and_thawed).kafka().alone(),
    Case::new("faults::waiting_for_a_frozen_broker_is_idle", waiting_for_a_frozen_broker_is_idle).kafka().alone(),
    Case::new("faults::gateway_killed_and_restarted", gateway_killed_and_restarted).kafka().alone(),
    Case::new("faults::producers_that_fail_are_replaced", producers_that_fail_are_replaced).kafka().alone(),
    Case::new("faults::too_few_replicas_is_refused", too_few_replicas_is_refused).kafka().alone(),
];

/// `pub.deadline_ms`, which is 5 s, with room for a machine that also runs the brokers.
const DEADLINE: Duration = Duration::from_millis(6_500);

const AGAIN: Duration = Duration::from_mins(1);

/// A topic, a gateway of two shards and publishers at work.
struct Scene {
    topic: Topic,
    gateway: Kateway,
    ledger: Arc<Ledger>,
    load: Load,
}

impl Scene {
    fn open(what: &str) -> Self {
        Self::open_on(what, Kateway::kafka(&kafka().bootstrap()))
    }

    fn open_on(what: &str, gateway: Builder) -> Self {
        let topic = Topic::fresh(what);
        kafka().admin().create_topic(&topic.in_kafka(), 3);
        let gateway = gateway.shards(2).start();
        let ledger = Arc::new(Ledger::new(u64::from(gateway.pid())));
        let load = Load::start(&Plan::new(gateway.publish, &topic.appid, &topic.name), &ledger);
        let scene = Self { topic, gateway, ledger, load };
        scene.wait_more(500);
        scene
    }

    /// Waits until `more` further messages were answered durable; returns how long it took.
    fn wait_more(&self, more: usize) -> Duration {
        let goal = self.ledger.count(Answer::Durable) + more;
        wait_until(AGAIN, format!("{more} more messages are durable"), || self.ledger.count(Answer::Durable) >= goal)
    }

    fn close(self, what: &str) -> (Verdict, Tally) {
        let tally = self.load.stop();
        kafka().wait_in_sync(&self.topic.in_kafka());
        let verdict = self.ledger.check(&kcat::read_all(&kafka().bootstrap(), &self.topic.in_kafka()));
        figures::note(format!("faults, {what}: ledger"), &verdict);
        figures::note(
            format!("faults, {what}: answers"),
            format!("{:?}, unanswered {}, slowest {:?}", tally.statuses, tally.unanswered, tally.slowest),
        );
        (verdict, tally)
    }
}

/// A broker that answers nothing until this is dropped.
pub struct Frozen(u32);

impl Frozen {
    pub fn new(id: u32) -> Self {
        kafka().freeze(id);
        Self(id)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        kafka().thaw(self.0);
    }
}

fn leader_of_first_partition(topic: &Topic) -> u32 {
    let admin = kafka().admin();
    wait_for(AGAIN, "the partition has a leader", || u32::try_from(admin.leader(&topic.in_kafka(), 0)).ok())
}

fn leader_killed_and_restarted() {
    let scene = Scene::open("leader");
    let leader = leader_of_first_partition(&scene.topic);
    kafka().kill(leader);
    let back = scene.wait_more(2_000);
    figures::note("faults, leader killed: 2,000 more durable after", format!("{back:?}"));
    kafka().restart(leader);
    kafka().wait_recovered();
    scene.wait_more(500);
    let (verdict, tally) = scene.close("leader killed");
    verdict.assert_clean();
    assert_only_expected(&tally);
}

fn broker_frozen_and_thawed() {
    let scene = Scene::open("frozen");
    let leader = leader_of_first_partition(&scene.topic);
    let frozen = Frozen::new(leader);
    let start = Instant::now();
    // Longer than the publish deadline and than the session with ZooKeeper: some requests end unknown, then another
    // broker leads.
    wait_until(Duration::from_secs(40), "the frozen broker was replaced", || {
        start.elapsed() > Duration::from_secs(8) && leader_of_first_partition(&scene.topic) != leader
    });
    scene.wait_more(200);
    drop(frozen);
    kafka().wait_recovered();
    scene.wait_more(500);
    let (verdict, tally) = scene.close("broker frozen");
    verdict.assert_clean();
    assert_only_expected(&tally);
}

/// With records of `ack=all` in flight and more behind them, librdkafka's threads spin by themselves, at a core for each broker
/// (`src/kafka/native/linger.rs`).
fn waiting_for_a_frozen_broker_is_idle() {
    const CONNECTIONS: u32 = 40;
    let topic = Topic::fresh("waiting");
    kafka().admin().create_topic(&topic.in_kafka(), 1);
    let gateway = Kateway::kafka(&kafka().bootstrap()).shards(1).start();
    let ledger = Arc::new(Ledger::new(u64::from(gateway.pid())));
    let mut plan = Plan::new(gateway.publish, &topic.appid, &topic.name);
    plan.connections = CONNECTIONS;
    let load = Load::start(&plan, &ledger);
    let scene = Scene { topic, gateway, ledger, load };
    scene.wait_more(2_000);
    let leader = leader_of_first_partition(&scene.topic);
    let frozen = Frozen::new(leader);
    wait_until(Duration::from_secs(2), "every publisher waits", || {
        scene.gateway.scrape().sum("kateway_producer_queue_messages", &[]) >= f64::from(CONNECTIONS)
    });
    let cpu = || process::threads_cpu(scene.gateway.pid(), "rdk:broker");
    let (before, start) = (cpu(), Instant::now());
    // Within `message.timeout.ms`, after which nothing is under way any more.
    wait_until(Duration::from_secs(5), "a second went by", || start.elapsed() > Duration::from_secs(1));
    let (used, took) = (cpu().saturating_sub(before), start.elapsed());
    drop(frozen);
    kafka().wait_recovered();
    scene.wait_more(500);
    let (verdict, tally) = scene.close("waiting");
    verdict.assert_clean();
    assert_only_expected(&tally);
    figures::note("faults, waiting: CPU of librdkafka's broker threads", format!("{used:?} in {took:?}"));
    assert!(used < took / 4, "{used:?} of CPU in {took:?} of waiting");
}

fn gateway_killed_and_restarted() {
    let mut scene = Scene::open("gateway");
    scene.gateway.kill();
    let first = scene.load.stop();
    scene.gateway = Kateway::kafka(&kafka().bootstrap()).shards(2).start();
    // The second life enters in the same ledger, under keys and connections of its own.
    let plan = Plan::new(scene.gateway.publish, &scene.topic.appid, &scene.topic.name);
    scene.load = Load::start(&plan.numbered_from(100), &scene.ledger);
    scene.wait_more(1_000);
    let (verdict, tally) = scene.close("gateway killed");
    verdict.assert_clean();
    assert_only_expected(&tally);
    assert!(first.unanswered + first.cut > 0, "the kill hit requests under way: {first:?}");
}

/// Every producer gets a fatal error a second after it was made, as a broker that lost its state can give it: what was not sent is
/// refused, what was under way is unknown, and the next producer goes on. The broken ones are destroyed.
fn producers_that_fail_are_replaced() {
    const RESTARTS: f64 = 10.0;
    let gateway = Kateway::kafka(&kafka().bootstrap()).set("test.break_clients_ms", 1_000);
    let scene = Scene::open_on("broken", gateway);
    wait_until(AGAIN, "ten producers were replaced", || {
        scene.gateway.scrape().sum("kateway_producer_restarts_total", &[]) >= RESTARTS
    });
    scene.wait_more(500);
    // Of two cores, each with one in use and one that is going.
    wait_until(AGAIN, "broken producers are gone", || process::threads_named(scene.gateway.pid(), "rdk:main") <= 4);
    let (verdict, tally) = scene.close("producers broken");
    verdict.assert_clean();
    assert_only_expected(&tally);
}

/// With one in-sync replica left of two demanded, `ack=all` must fail rather than lie.
fn too_few_replicas_is_refused() {
    let scene = Scene::open("replicas");
    let leader = leader_of_first_partition(&scene.topic);
    let others: Vec<u32> = (0..3).filter(|id| *id != leader).collect();
    for id in &others {
        kafka().kill(*id);
    }
    wait_until(Duration::from_mins(1), "publishes are refused or unknown", || {
        let answer = scene.gateway.publish(&scene.topic.publish("partition=0", "one replica is not enough"));
        answer.status != 201
    });
    let answer = scene.gateway.publish(&scene.topic.publish("partition=0", "nor now"));
    assert!([503, 504].contains(&answer.status), "{} {}", answer.status, answer.text());
    kateway_tests::problem::check(&answer, answer.status);
    for id in &others {
        kafka().restart(*id);
    }
    kafka().wait_recovered();
    scene.wait_more(500);
    let Scene { topic, gateway: _gateway, ledger, load } = scene;
    load.stop();
    kafka().wait_in_sync(&topic.in_kafka());
    let records = kcat::read_all(&kafka().bootstrap(), &topic.in_kafka());
    // The probes above are not in the ledger.
    let of_ledger: Vec<_> = records.into_iter().filter(|record| record.key.is_some()).collect();
    let verdict = ledger.check(&of_ledger);
    figures::note("faults, too few replicas: ledger", &verdict);
    verdict.assert_clean();
}

/// Under a fault a publisher may see success, 503 and 504; nothing else, and no connection is cut by a gateway that
/// lives.
fn assert_only_expected(tally: &Tally) {
    let unexpected: Vec<_> = tally.statuses.keys().filter(|status| ![201, 503, 504].contains(*status)).collect();
    assert!(unexpected.is_empty(), "{tally:?}");
    assert_eq!((tally.unanswered, tally.cut, tally.not_connected), (0, 0, 0), "{tally:?}");
    assert!(tally.slowest < DEADLINE, "no request waits longer than its deadline: {tally:?}");
}
