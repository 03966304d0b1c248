//! A read gives what its own app, group and topic ask for, whatever else uses the same connection or the same group
//! name.
//!
//! The old gateway kept a reader by its connection's address, so behind a proxy one tenant could get another's
//! messages. Method: one keep-alive connection alternates between two apps' groups and topics, message by message; one
//! group reads several topics at the same time; two apps use the same group name on one topic. Each read may only ever
//! yield what was published for it.

use std::time::Duration;

use kateway_tests::client::Connection;
use kateway_tests::kateway::Kateway;
use kateway_tests::topic::Topic;
use kateway_tests::wait_until;

use crate::{Case, kafka};

pub const CASES: &[Case] = &[
    Case::new("group_isolation::one_connection_two_apps_on_kafka", one_connection_two_apps_on_kafka).kafka(),
    Case::new("group_isolation::one_connection_two_apps_on_memory", one_connection_two_apps_on_memory),
    Case::new("group_isolation::one_group_several_topics_on_kafka", one_group_several_topics_on_kafka).kafka(),
    Case::new("group_isolation::one_group_several_topics_on_memory", one_group_several_topics_on_memory),
    Case::new("group_isolation::acks_stay_with_their_app_on_kafka", acks_stay_with_their_app_on_kafka).kafka(),
    Case::new("group_isolation::acks_stay_with_their_app_on_memory", acks_stay_with_their_app_on_memory),
    Case::new("group_isolation::same_group_name_of_two_readers", same_group_name_of_two_readers).kafka(),
];

const EACH: usize = 50;

fn on_kafka(topics: &[Topic]) -> Kateway {
    let admin = kafka().admin();
    for topic in topics {
        admin.create_topic(&topic.in_kafka(), 2);
    }
    Kateway::kafka(admin.brokers()).shards(2).start()
}

fn publish_each(gateway: &Kateway, topics: &[Topic]) {
    let mut connection = gateway.publisher();
    for n in 0..EACH {
        for topic in topics {
            let request = topic.publish("key=one", format!("{} {n}", topic.appid.clone() + &topic.name));
            connection.call(&request).unwrap_or_else(|e| panic!("{e}")).expect(201);
        }
    }
}

/// Reads `topics` in turn on one connection; each must give exactly its own messages in order.
fn read_in_turn(gateway: &Kateway, topics: &[Topic], group: &str) {
    let mut connection: Connection = gateway.subscriber();
    for n in 0..EACH {
        for topic in topics {
            let answer = connection.call(&topic.read(group, "wait=20s")).unwrap_or_else(|e| panic!("{e}")).expect(200);
            assert_eq!(answer.text(), format!("{} {n}", topic.appid.clone() + &topic.name));
        }
    }
    for topic in topics {
        connection.call(&topic.read(group, "wait=0s")).unwrap_or_else(|e| panic!("{e}")).expect(204);
    }
}

fn two_apps() -> [Topic; 2] {
    [Topic::fresh("orders"), Topic::fresh("orders")]
}

fn three_topics() -> [Topic; 3] {
    let first = Topic::fresh("orders");
    let sibling = |name| Topic::new(&first.appid, name, "v1");
    [sibling("returns"), sibling("invoices"), first]
}

fn one_connection_two_apps_on_kafka() {
    let topics = two_apps();
    let gateway = on_kafka(&topics);
    publish_each(&gateway, &topics);
    read_in_turn(&gateway, &topics, "same-name");
}

fn one_connection_two_apps_on_memory() {
    let topics = two_apps();
    let gateway = Kateway::memory().shards(2).start();
    publish_each(&gateway, &topics);
    read_in_turn(&gateway, &topics, "same-name");
}

fn one_group_several_topics_on_kafka() {
    let topics = three_topics();
    let gateway = on_kafka(&topics);
    publish_each(&gateway, &topics);
    read_in_turn(&gateway, &topics, "all-of-them");
}

fn one_group_several_topics_on_memory() {
    let topics = three_topics();
    let gateway = Kateway::memory().shards(2).start();
    publish_each(&gateway, &topics);
    read_in_turn(&gateway, &topics, "all-of-them");
}

fn acks_stay_with_their_app_on_kafka() {
    let topics = two_apps();
    let gateway = on_kafka(&topics);
    publish_each(&gateway, &topics);
    acks_stay_with_their_app(&gateway, &topics);
    let admin = kafka().admin();
    for (topic, behind) in topics.iter().zip([0, 1]) {
        let each = i64::try_from(EACH).expect("few");
        wait_until(Duration::from_secs(10), "what was acknowledged is committed", || {
            admin.committed_sum(&topic.group_in_kafka("g"), &topic.in_kafka()) == each - behind
        });
    }
}

fn acks_stay_with_their_app_on_memory() {
    let topics = two_apps();
    let gateway = Kateway::memory().shards(2).start();
    publish_each(&gateway, &topics);
    acks_stay_with_their_app(&gateway, &topics);
}

/// On one connection, with the same offsets in turn: one app acknowledges each with its next read, the other with a call of its own, which
/// at the end it leaves out.
fn acks_stay_with_their_app(gateway: &Kateway, topics: &[Topic; 2]) {
    let mut connection = gateway.subscriber();
    let query = "ack=1&lease=1m&wait=20s";
    let mut last: Option<(i32, i64)> = None;
    for n in 0..EACH {
        for (which, topic) in topics.iter().enumerate() {
            let request = match last.filter(|_| which == 0) {
                Some((partition, offset)) => topic.read_and_ack("g", query, partition, offset),
                None => topic.read("g", query),
            };
            let answer = connection.call(&request).unwrap_or_else(|e| panic!("{e}")).expect(200);
            assert_eq!(answer.text(), format!("{} {n}", topic.appid.clone() + &topic.name));
            let partition = i32::try_from(answer.number("x-partition")).expect("a partition number");
            let position = (partition, answer.number("x-offset"));
            if which == 0 {
                last = Some(position);
            } else if n + 1 < EACH {
                let ack = topic.ack_all("g", "", &[position]);
                connection.call(&ack).unwrap_or_else(|e| panic!("{e}")).expect(200);
            }
        }
    }
    let (partition, offset) = last.expect("messages came");
    let request = topics[0].read_and_ack("g", "ack=1&wait=0s", partition, offset);
    connection.call(&request).unwrap_or_else(|e| panic!("{e}")).expect(204);
}

fn same_group_name_of_two_readers() {
    let topic = Topic::fresh("public");
    let gateway = on_kafka(std::slice::from_ref(&topic));
    publish_each(&gateway, std::slice::from_ref(&topic));
    let mut connection = gateway.subscriber();
    for n in 0..EACH {
        for reader in ["reader-a", "reader-b"] {
            let request = topic.read_as(reader, "g", "wait=20s");
            let answer = connection.call(&request).unwrap_or_else(|e| panic!("{e}")).expect(200);
            assert_eq!(answer.text(), format!("{} {n}", topic.appid.clone() + &topic.name), "{reader}");
        }
    }
}
