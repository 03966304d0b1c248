//! Kafka's own consumer and the gateway are members of one group like any two others.
//!
//! Method: a Java consumer with `CooperativeStickyAssignor` joins a group that a gateway reads. Together they get every message once; what
//! one has committed the other does not get after it has left, in both directions; and when the Java one is killed the gateway takes its
//! partitions over and gives again what it had not committed, and nothing else is skipped.

use std::collections::HashSet;
use std::time::Duration;

use kateway_tests::client::Connection;
use kateway_tests::java::{self, Member};
use kateway_tests::kateway::Kateway;
use kateway_tests::topic::Topic;
use kateway_tests::{figures, frames, wait_until};

use crate::stage::SOON;
use crate::{Case, kafka};

pub const CASES: &[Case] = &[
    Case::new("java_member::shares_and_respects", shares_and_respects).kafka(),
    Case::new("java_member::killed_is_taken_over", killed_is_taken_over).kafka(),
];

const PARTITIONS: i32 = 4;
const STEP: usize = 200;
const AGAIN: Duration = Duration::from_mins(1);

type Positions = HashSet<(i32, i64)>;

fn topic() -> Topic {
    let topic = Topic::fresh("mixed");
    kafka().admin().create_topic(&topic.in_kafka(), PARTITIONS);
    topic
}

fn fill(topic: &Topic) {
    kafka().admin().produce(&topic.in_kafka(), PARTITIONS, (0..STEP).map(|n| n.to_string().into_bytes()));
}

fn join(topic: &Topic) -> Member {
    Member::join(&kafka().bootstrap(), &topic.group_in_kafka("g"), &topic.in_kafka())
}

/// Reads what is there, in auto mode; gives how many of it were there before.
fn read(connection: &mut Connection, topic: &Topic, seen: &mut Positions) -> usize {
    let answer = connection.call(&topic.read("g", "batch=50&wait=300ms")).unwrap_or_else(|e| panic!("{e}"));
    match answer.status {
        200 => {
            let frames = frames::decode(&answer.body);
            frames.into_iter().filter(|frame| !seen.insert((frame.partition, frame.offset))).count()
        }
        // The owner is no kateway, or the group is being shared out anew.
        204 | 409 | 503 => 0,
        _ => panic!("{} {}", answer.status, answer.text()),
    }
}

fn partitions_of(gateway: &Kateway) -> usize {
    let status = gateway.status();
    let groups = status["groups"].as_array().expect("the status lists groups");
    groups.iter().filter_map(|group| group["partitions"].as_array()).map(Vec::len).sum()
}

/// Both have two partitions, while the gateway is asked.
fn wait_shared(gateway: &Kateway, topic: &Topic, member: &Member) {
    wait_until(AGAIN, "each has half of the partitions", || {
        gateway.subscribe(&topic.read("g", "wait=50ms"));
        (partitions_of(gateway), member.said().partitions.len()) == (2, 2)
    });
}

fn committed(topic: &Topic) -> i64 {
    kafka().admin().committed_sum(&topic.group_in_kafka("g"), &topic.in_kafka())
}

fn wait_committed(topic: &Topic, count: usize) {
    let count = i64::try_from(count).expect("few");
    wait_until(AGAIN, format!("{count} messages are committed"), || committed(topic) == count);
}

fn of(member: &Member) -> Positions {
    let records = member.said().records;
    let positions: Positions = records.iter().copied().collect();
    assert_eq!(positions.len(), records.len(), "the Java member gets none twice");
    positions
}

fn shares_and_respects() {
    let topic = topic();
    let mut gateway = Kateway::kafka(&kafka().bootstrap()).shards(2).start();
    let member = join(&topic);
    wait_shared(&gateway, &topic, &member);
    fill(&topic);
    let mut connection = gateway.subscriber();
    let mut seen = Positions::new();
    wait_until(AGAIN, "both together have everything", || {
        assert_eq!(read(&mut connection, &topic, &mut seen), 0, "none comes twice to the gateway");
        seen.len() + of(&member).len() == STEP
    });
    let theirs = of(&member);
    figures::note(
        "java member: messages of the gateway and of Kafka's own consumer",
        format!("{} and {}", seen.len(), theirs.len()),
    );
    assert!(seen.is_disjoint(&theirs), "nor to both");
    assert!(seen.len() >= STEP / 4 && theirs.len() >= STEP / 4, "both get their share");
    wait_committed(&topic, STEP);

    // It leaves: what it committed does not come to the gateway.
    let theirs: Positions = member.leave(SOON).records.into_iter().collect();
    seen.extend(&theirs);
    fill(&topic);
    wait_until(AGAIN, "the gateway has what is new", || {
        assert_eq!(read(&mut connection, &topic, &mut seen), 0, "and nothing that was committed");
        seen.len() == 2 * STEP
    });
    wait_committed(&topic, 2 * STEP);

    // The gateway goes: what it committed does not come to the next member.
    drop(connection);
    assert!(gateway.terminate(SOON).success());
    fill(&topic);
    let next = join(&topic);
    wait_until(AGAIN, "the next member has what is new", || of(&next).len() >= STEP);
    wait_committed(&topic, 3 * STEP);
    let by_tool = java::committed(&kafka().bootstrap(), &topic.group_in_kafka("g"), &topic.in_kafka());
    assert_eq!(by_tool.values().sum::<i64>(), committed(&topic), "Kafka's own tool agrees");
    let new: Positions = next.leave(SOON).records.into_iter().collect();
    assert_eq!(new.len(), STEP);
    assert!(seen.is_disjoint(&new), "and nothing that was committed");
}

/// After a kill Kafka waits for the session to end; what the dead member had not committed comes to the gateway, whatever else it was told.
fn killed_is_taken_over() {
    let topic = topic();
    let gateway = Kateway::kafka(&kafka().bootstrap()).shards(2).start();
    let mut member = join(&topic);
    wait_shared(&gateway, &topic, &member);
    member.kill();
    fill(&topic);
    let mut connection = gateway.subscriber();
    let mut seen = Positions::new();
    let took = wait_until(AGAIN, "the gateway has everything", || {
        read(&mut connection, &topic, &mut seen);
        seen.len() + member.said().records.len() >= STEP && partitions_of(&gateway) == 4
    });
    figures::note("java member: killed, and all with the gateway after", format!("{took:?}"));
    seen.extend(of(&member));
    assert_eq!(seen.len(), STEP, "nothing is skipped");
    wait_committed(&topic, STEP);
}
