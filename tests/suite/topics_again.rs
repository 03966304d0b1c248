//! A topic that is deleted and made again under the same name is another topic, for writers, readers and groups.
//!
//! Method: on the real cluster, by the admin client behind the gateway's back. While it is gone it is refused as unknown (or made again, where
//! the gateway makes topics); its successor begins at offset 0, and all of it is read, whatever a group had committed of the old one,
//! whoever of the group's members held its partition, and wherever the group had asked to start.

use std::time::Instant;

use kateway_tests::kateway::Kateway;
use kateway_tests::topic::Topic;
use kateway_tests::{figures, folder, kcat, problem, wait_for, wait_until};

use crate::topics::{SOON, attentive, partitions_of_group, read};
use crate::{Case, kafka};

pub const CASES: &[Case] = &[
    Case::new("topics_again::recreated_topic", recreated_topic).kafka(),
    Case::new("topics_again::recreated_topic_for_newest", recreated_topic_for_newest).kafka(),
    Case::new("topics_again::recreated_topic_for_idle_member", recreated_topic_for_idle_member).kafka(),
    Case::new("topics_again::recreated_topic_takes_no_late_commit", recreated_topic_takes_no_late_commit).kafka(),
    Case::new("topics_again::recreated_topic_keeps_old_commits", recreated_topic_keeps_old_commits).kafka(),
    Case::new("topics_again::deleted_topic_is_made_again", deleted_topic_is_made_again).kafka(),
];

const OLD: i64 = 10;
const NEW: i64 = 5;

/// The group is read all the time by the same gateway.
fn recreated_topic() {
    recreate("reset=oldest");
}

/// The group has chosen its start in the old topic: it was there before the new one, and all of that is new to it.
fn recreated_topic_for_newest() {
    recreate("reset=newest");
}

fn recreate(reset: &str) {
    let admin = kafka().admin();
    let topic = Topic::fresh("again");
    admin.create_topic(&topic.in_kafka(), 1);
    let gateway = attentive().start();
    wait_until(SOON, "the group stands in the topic", || {
        let answer = gateway.subscribe(&topic.read("g", &format!("{reset}&wait=1s")));
        // A coordinator that is busy may fail the first look-up of offsets.
        assert!([204, 503].contains(&answer.status), "{} {}", answer.status, answer.text());
        admin.committed(&topic.group_in_kafka("g"), &topic.in_kafka()) == [Some(0)]
    });
    publish_in_order(&gateway, &topic, "old", 0..OLD);
    read_in_order(&gateway, &topic, reset, "old", 0..OLD);
    wait_committed(&topic, "g", OLD);

    admin.delete_topic(&topic.in_kafka());
    let mut before = Vec::new();
    // Each core learns it for itself.
    wait_until(SOON, "every core says that the topic is unknown", || {
        let unknown = (0..20).take_while(|_| {
            let answer = gateway.publish(&topic.publish("", "to nobody"));
            assert!([404, 503].contains(&answer.status), "{} {}", answer.status, answer.text());
            let code = problem::check(&answer, answer.status).code;
            before.push(code);
            code == 40401
        });
        unknown.count() == 20
    });
    before.dedup();
    figures::note(format!("topics, gone, {reset}: codes until it is unknown"), format!("{before:?}"));

    admin.create_topic(&topic.in_kafka(), 1);
    let made = Instant::now();
    let first = wait_for(SOON, "the topic made again is published to", || {
        let answer = gateway.publish(&topic.publish("", "new 0"));
        if answer.status == 201 {
            return Some(answer);
        }
        assert!([404, 503].contains(&answer.status), "{} {}", answer.status, answer.text());
        problem::check(&answer, answer.status);
        None
    });
    figures::note(format!("topics, made again, {reset}: published to after"), format!("{:?}", made.elapsed()));
    assert_eq!(first.number("x-offset"), 0);
    publish_in_order(&gateway, &topic, "new", 1..NEW);
    read_in_order(&gateway, &topic, reset, "new", 0..NEW);
    figures::note(format!("topics, made again, {reset}: read after"), format!("{:?}", made.elapsed()));
    wait_committed(&topic, "g", NEW);
    let payloads: Vec<_> = kcat::read_all(admin.brokers(), &topic.in_kafka()).into_iter().map(|r| r.payload).collect();
    let expected: Vec<_> = (0..NEW).map(|n| Some(format!("new {n}").into_bytes())).collect();
    assert_eq!(payloads, expected, "what was refused is not there");
}

/// Of two members one has no partition, because there is only one, and so commits nothing. When the topic is made again, with the other
/// member gone, it must know all the same that the group is older than the topic.
fn recreated_topic_for_idle_member() {
    const QUERY: &str = "reset=newest&wait=500ms";
    let admin = kafka().admin();
    let topic = Topic::fresh("again");
    let group = topic.group_in_kafka("g");
    admin.create_topic(&topic.in_kafka(), 1);
    // Long enough for all that is done to the topic once it is killed.
    let mut first = attentive().set("kafka.session_timeout_ms", 10_000).start();
    wait_until(SOON, "the first member has the partition", || {
        first.subscribe(&topic.read("g", QUERY));
        admin.committed(&group, &topic.in_kafka()) == [Some(0)]
    });
    publish_in_order(&first, &topic, "old", 0..OLD);
    let second = attentive().start();
    wait_until(SOON, "the second member has joined, without a partition", || {
        second.subscribe(&topic.read("g", QUERY));
        admin.members(&group).len() == 2
    });
    wait_until(SOON, "the second member has seen the commit of the first", || {
        second.scrape().sum("kateway_consumer_looks_total", &[]) > 0.0
    });
    // Whichever of them has it: the other is the one to try.
    let has_partition = |gateway: &Kateway| !partitions_of_group(gateway, &topic).is_empty();
    wait_until(SOON, "one of them has the partition", || has_partition(&first) != has_partition(&second));
    assert!(has_partition(&first), "cooperative-sticky leaves the partition where it is");
    read_in_order(&first, &topic, "reset=newest", "old", 0..OLD);
    wait_committed(&topic, "g", OLD);

    // Killed: its session ends later than the topic, so the second gets the partition of the new one, not of the old.
    first.kill();
    admin.delete_topic(&topic.in_kafka());
    admin.create_topic(&topic.in_kafka(), 1);
    admin.produce(&topic.in_kafka(), 1, (0..NEW).map(|n| format!("new {n}").into_bytes()));
    assert!(partitions_of_group(&second, &topic).is_empty(), "it has had no partition before all of this was there");
    read_in_order(&second, &topic, "reset=newest", "new", 0..NEW);
    wait_committed(&topic, "g", NEW);
}

/// The topic goes with something read of it and not committed, and is made again while the gateway gives its partition up. That must not
/// be committed in the new topic, which is longer than the old one was by the time it is read. librdkafka sees to it by calling the
/// assignment lost.
fn recreated_topic_takes_no_late_commit() {
    let admin = kafka().admin();
    let topic = Topic::fresh("again");
    let committed = || admin.committed(&topic.group_in_kafka("g"), &topic.in_kafka());
    admin.create_topic(&topic.in_kafka(), 1);
    let gateway = attentive().set("sub.commit_interval_ms", 60_000).start();
    wait_until(SOON, "the group's start is committed", || {
        read(&gateway, &topic, "batch=1000&wait=1s").is_empty() && committed() == [Some(0)]
    });
    publish_in_order(&gateway, &topic, "old", 0..OLD);
    read_in_order(&gateway, &topic, "reset=oldest", "old", 0..OLD);
    assert_eq!(committed(), [Some(0)], "the rest is due in a minute");

    admin.delete_topic(&topic.in_kafka());
    wait_until(SOON, "the partition is being given up", || partitions_of_group(&gateway, &topic).is_empty());
    admin.create_topic(&topic.in_kafka(), 1);
    admin.produce(&topic.in_kafka(), 1, (0..2 * OLD).map(|n| format!("new {n}").into_bytes()));
    read_in_order(&gateway, &topic, "reset=oldest", "new", 0..2 * OLD);
}

/// The group was not read when the topic went, and stands beyond the new one's end.
fn recreated_topic_keeps_old_commits() {
    let admin = kafka().admin();
    let topic = Topic::fresh("again");
    admin.create_topic(&topic.in_kafka(), 1);
    admin.delete_topic(&topic.in_kafka());
    admin.create_topic(&topic.in_kafka(), 1);
    let gateway = attentive().start();
    publish_in_order(&gateway, &topic, "new", 0..NEW);
    // By hand: Kafka forgets commits of a topic that goes, unless somebody commits late or restores them.
    admin.commit(&topic.group_in_kafka("g"), &topic.in_kafka(), 0, OLD);
    assert_eq!(admin.committed(&topic.group_in_kafka("g"), &topic.in_kafka()), [Some(OLD)]);
    read_in_order(&gateway, &topic, "reset=oldest", "new", 0..NEW);
    wait_committed(&topic, "g", NEW);
    publish_in_order(&gateway, &topic, "new", NEW..2 * NEW);
    read_in_order(&gateway, &topic, "reset=oldest", "new", NEW..2 * NEW);
    wait_committed(&topic, "g", 2 * NEW);
}

/// Publishes `<what> <n>`, each at offset n.
fn publish_in_order(gateway: &Kateway, topic: &Topic, what: &str, numbers: std::ops::Range<i64>) {
    for n in numbers {
        let answer = gateway.publish(&topic.publish("", format!("{what} {n}"))).expect(201);
        assert_eq!(answer.number("x-offset"), n);
    }
}

/// Reads `<what> <n>` one by one, and that nothing follows.
fn read_in_order(gateway: &Kateway, topic: &Topic, reset: &str, what: &str, numbers: std::ops::Range<i64>) {
    for n in numbers {
        // While the topic was gone the group's reader was told so, and says it to its clients for a while.
        let answer = wait_for(SOON, format!("{what} {n} is read"), || {
            let answer = gateway.subscribe(&topic.read("g", &format!("{reset}&wait=20s")));
            if answer.status == 503 {
                assert_eq!(problem::check(&answer, 503).code, 50302);
                return None;
            }
            Some(answer.expect(200))
        });
        assert_eq!((answer.text(), answer.number("x-offset")), (format!("{what} {n}"), n));
    }
    gateway.subscribe(&topic.read("g", &format!("{reset}&wait=500ms"))).expect(204);
}

fn wait_committed(topic: &Topic, group: &str, offset: i64) {
    let admin = kafka().admin();
    wait_until(SOON, format!("{group} has committed {offset}"), || {
        admin.committed(&topic.group_in_kafka(group), &topic.in_kafka()) == [Some(offset)]
    });
}

/// Where topics are made when they are missing, one that somebody deleted is made again by the next who publishes.
fn deleted_topic_is_made_again() {
    const IN_A_ROW: usize = 20;
    let admin = kafka().admin();
    let topic = Topic::fresh("again");
    let settings = [("topics.auto_create", "true"), ("topics.partitions", "2"), ("topics.replicas", "3")];
    let builder = Kateway::kafka(&kafka().bootstrap()).shards(2).set("kafka.metadata_interval_s", 3_600);
    let gateway = settings.iter().fold(builder, |builder, (key, value)| builder.set(key, value)).start();
    let mut connections = [0, 1].map(|shard| gateway.connection_of_shard(shard, gateway.publish));
    let mut publish = |n: usize| {
        let request = topic.publish(["", "ack=local"][n / 2 % 2], folder::unique("message"));
        connections[n % 2].call(&request).unwrap_or_else(|e| panic!("{e}"))
    };
    let mut refused = Vec::new();
    let mut publish_in_a_row = |what: &str| {
        wait_until(SOON, format!("both cores publish to the topic {what}"), || {
            let stored = (0..IN_A_ROW).map(&mut publish).take_while(|answer| {
                if answer.status != 201 {
                    // Not there yet for one of them, which passes: nobody is told that there is no such topic.
                    refused.push(problem::check(answer, 503).code);
                }
                answer.status == 201
            });
            stored.count() == IN_A_ROW
        });
    };
    publish_in_a_row("that was missing");
    admin.delete_topic(&topic.in_kafka());
    publish_in_a_row("that was deleted");
    figures::note("topics, deleted and made by publishing: codes meanwhile", format!("{refused:?}"));
    assert_eq!(admin.partitions(&topic.in_kafka()), Some(2));
}
