//! At least once, whatever dies: with `ack=1` nothing is lost, only what may come again does, and order holds where partitions stay.
//!
//! Method: for a minute thirty clients read four partitions while a producer that is not the gateway writes; one answer in fifteen is
//! left by its client in the middle, or unprocessed. Every five seconds one gateway joins and another leaves (SIGTERM); in between one is
//! killed with `kill -9` and comes back, and the broker that leads the first partition, and may coordinate the group, is killed and comes
//! back. Every delivery and acknowledgement is in the ledger of deliveries, and what was done to the machines too; at the end it is
//! held against the topic as kcat reads it, and the committed offsets must be the end of the topic.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use kateway_tests::admin::Pace;
use kateway_tests::crowd::{Crowd, Places, Plan};
use kateway_tests::kateway::Kateway;
use kateway_tests::read_ledger::ReadLedger;
use kateway_tests::topic::Topic;
use kateway_tests::{figures, kcat, wait_until};

use crate::{Case, kafka};

pub const CASES: &[Case] = &[
    Case::new("read_chaos::nothing_is_lost", nothing_is_lost).kafka().alone(),
    Case::new("read_chaos::calm_is_exact", calm_is_exact).kafka().alone(),
];

const PARTITIONS: i32 = 4;
const SECRET: &str = "0123456789abcdef0123456789abcdef";
const COMMIT_INTERVAL: Duration = Duration::from_millis(100);
const STEP: Duration = Duration::from_secs(5);
const STEPS: usize = 12;
const AGAIN: Duration = Duration::from_mins(2);
const PACE: Pace = Pace { per_second: 500, bytes: 200 };
/// A gateway that joins or leaves as it should costs a rebalance of some seconds at most.
const IN_PEACE: Duration = Duration::from_millis(3_500);
/// After a fault partitions may still be on their way for a session of 6 s and the rebalance behind it.
const SETTLED: Duration = Duration::from_secs(12);

/// A gateway, and how often it said so far that it lost partitions.
struct Player {
    gateway: Kateway,
    lost: f64,
}

/// What the faults are done to.
struct Scene {
    topic: Topic,
    ledger: Arc<ReadLedger>,
    places: Places,
    players: Vec<Player>,
    leaving: Vec<Kateway>,
    began: usize,
    down: Option<(u32, Duration)>,
}

impl Scene {
    fn open(gateways: usize) -> Self {
        let topic = Topic::fresh("chaos");
        kafka().admin().create_topic(&topic.in_kafka(), PARTITIONS);
        let ledger = Arc::new(ReadLedger::new(COMMIT_INTERVAL));
        let (places, players, leaving) = (Places::default(), Vec::new(), Vec::new());
        let mut scene = Self { topic, ledger, places, players, leaving, began: 0, down: None };
        for _ in 0..gateways {
            scene.join();
        }
        scene
    }

    /// A further gateway, found by clients as soon as it is ready.
    fn join(&mut self) {
        self.began += 1;
        let builder = Kateway::kafka(&kafka().bootstrap()).shards(2).set("gateway.peer_secret", SECRET);
        let gateway = builder.set("gateway.id", format!("chaos-{}", self.began)).start();
        self.places.add(gateway.subscribe);
        self.players.push(Player { gateway, lost: 0.0 });
        self.partitions_move(IN_PEACE);
    }

    /// The eldest is told to go; clients no longer come to it, and what they have under way ends well.
    fn leave(&mut self) {
        let gateway = self.players.remove(0).gateway;
        self.places.remove(gateway.subscribe);
        gateway.signal(libc::SIGTERM);
        self.partitions_move(IN_PEACE);
        self.leaving.push(gateway);
    }

    fn kill_gateway(&mut self) {
        let mut gateway = self.players.remove(0).gateway;
        let address: SocketAddr = gateway.subscribe;
        let at = self.ledger.now();
        gateway.kill();
        self.ledger.disturbed(at, self.ledger.now());
        self.places.remove(address);
        self.partitions_move(SETTLED);
        self.join();
    }

    fn kill_broker(&mut self) {
        let leader = kafka().admin().leader(&self.topic.in_kafka(), 0);
        let leader = u32::try_from(leader).expect("the partition has a leader");
        self.down = Some((leader, self.ledger.now()));
        kafka().kill(leader);
        self.partitions_move(SETTLED);
    }

    fn restart_broker(&mut self) {
        let (broker, since) = self.down.take().expect("one was killed");
        kafka().restart(broker);
        kafka().wait_recovered();
        // No commit was sure all that time; the session with a new coordinator begins after it.
        self.ledger.disturbed(since, self.ledger.now() + SETTLED);
        self.partitions_move(SETTLED);
    }

    fn partitions_move(&self, takes: Duration) {
        let now = self.ledger.now();
        self.ledger.moved(now, now + takes);
    }

    /// A busy machine may cost a gateway its session: what it then lost is a disturbance like any other.
    fn note_lost_partitions(&mut self) {
        let now = self.ledger.now();
        for player in &mut self.players {
            let gateway = &mut player.gateway;
            assert!(!gateway.has_ended(), "a gateway nobody killed has ended: {:?}", gateway.log().lines().last());
            let lost = player.gateway.scrape().sum("kateway_consumer_lost_partitions_total", &[]);
            if lost > player.lost {
                player.lost = lost;
                self.ledger.disturbed(now.saturating_sub(SETTLED), now);
                self.ledger.moved(now.saturating_sub(SETTLED), now + SETTLED);
            }
        }
    }

    /// One step of five seconds and what happens in it.
    fn step(&mut self, n: usize) {
        let start = Instant::now();
        match n {
            3 => self.kill_gateway(),
            5 => self.kill_broker(),
            7 => self.restart_broker(),
            _ if n.is_multiple_of(2) => self.join(),
            _ => self.leave(),
        }
        wait_until(STEP * 10, "the step is over", || {
            self.note_lost_partitions();
            start.elapsed() >= STEP
        });
    }
}

/// The crowd, and a producer beside it.
fn run(scene: &mut Scene, plan: &Plan, faults: impl FnOnce(&mut Scene)) -> u64 {
    let is_over = AtomicBool::new(false);
    let crowd = Crowd::start(plan, &scene.places, &scene.ledger);
    let name = scene.topic.in_kafka();
    let published = std::thread::scope(|scope| {
        let end = EndOnDrop(&is_over);
        let producer = scope.spawn(|| kafka().admin().produce_paced(&name, PARTITIONS, PACE, &is_over));
        faults(scene);
        drop(end);
        producer.join().expect("the producer does not panic")
    });
    let group = scene.topic.group_in_kafka(&plan.group);
    let count = i64::try_from(published).expect("fewer");
    wait_until(AGAIN, format!("{published} messages are committed"), || {
        scene.note_lost_partitions();
        kafka().admin().committed_sum(&group, &name) == count
    });
    let tally = crowd.stop();
    figures::note(
        "read chaos: answers",
        format!("{:?}, cut {}, refused {}", tally.statuses, tally.cut.len(), tally.not_connected),
    );
    tally.assert_only_promised();
    published
}

/// Ends what the other threads of a scope wait for, also when this one panics.
struct EndOnDrop<'a>(&'a AtomicBool);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn nothing_is_lost() {
    let mut scene = Scene::open(2);
    let mut plan = Plan::new(&scene.topic, 30);
    (plan.dies_each, plan.query) = (29, "batch=10&wait=500ms&lease=2s".to_owned());
    let published = run(&mut scene, &plan, |scene| (0..STEPS).for_each(|n| scene.step(n)));
    kafka().wait_in_sync(&scene.topic.in_kafka());
    let records = kcat::read_all(&kafka().bootstrap(), &scene.topic.in_kafka());
    assert_eq!(u64::try_from(records.len()).ok(), Some(published), "an idempotent producer writes each once");
    let verdict = scene.ledger.check(&records);
    let (longest, partition) = scene.ledger.longest_gap(Duration::ZERO);
    figures::note("read chaos: ledger", &verdict);
    figures::note("read chaos: longest pause of a partition", format!("{longest:?} ({partition})"));
    verdict.assert_clean();
    assert!(verdict.unacked_again > 0, "clients died with messages in their hands: {verdict}");
    for gateway in &mut scene.leaving {
        assert!(gateway.wait_end(AGAIN).success(), "a gateway that was told to go ends well");
    }
}

/// The same crowd, nobody dies and nothing moves: each message comes once. This shows that the rules above forgive nothing by themselves.
fn calm_is_exact() {
    let mut scene = Scene::open(2);
    let plan = Plan::new(&scene.topic, 30);
    let is_settled = |scene: &Scene| {
        let partitions = |player: &Player| {
            let status = player.gateway.status();
            let groups = status["groups"].as_array().expect("the status lists groups").clone();
            groups.iter().filter_map(|group| group["partitions"].as_array()).map(Vec::len).sum::<usize>()
        };
        scene.players.iter().map(partitions).collect::<Vec<_>>() == [2, 2]
    };
    wait_until(AGAIN, "each gateway has its half", || {
        for player in &scene.players {
            player.gateway.subscribe(&scene.topic.read(&plan.group, "ack=1&wait=100ms"));
        }
        is_settled(&scene)
    });
    let published = run(&mut scene, &plan, |_| std::thread::sleep(Duration::from_secs(4)));
    let verdict = scene.ledger.check(&kcat::read_all(&kafka().bootstrap(), &scene.topic.in_kafka()));
    figures::note("read chaos, in calm: ledger", &verdict);
    verdict.assert_clean();
    let again = [verdict.unacked_again, verdict.young_again, verdict.above_gap_again];
    assert_eq!(again, [0; 3], "nothing comes again: {verdict}");
    assert_eq!(u64::try_from(verdict.deliveries).ok(), Some(published));
}
