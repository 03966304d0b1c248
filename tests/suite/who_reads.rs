//! A reader sees its own groups, the owner of a topic sees all of them, and both see who they are, wherever they are.
//!
//! Method: known amounts are published and read, and every field of every row must say so, on both listeners and both stores. Apps whose
//! names begin alike have groups that are called alike; none may see another's. Of more groups than an answer shows, the one that reads is
//! shown. On the real cluster two gateways and Kafka's own consumer share a group, and whichever gateway is asked shows the partitions of
//! all three.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use kateway_tests::client::Request;
use kateway_tests::java::Member;
use kateway_tests::kateway::Kateway;
use kateway_tests::topic::Topic;
use kateway_tests::{figures, folder, problem, wait_until};
use serde_json::Value;

use crate::stage::{SOON, Stage, call, single};
use crate::{Case, kafka};

pub const CASES: &[Case] = &[
    Case::new("who_reads::rows_say_what_was_done_on_memory", || rows_say_what_was_done(&Stage::on_memory("read"))),
    Case::new("who_reads::rows_say_what_was_done_on_kafka", || rows_say_what_was_done(&Stage::on_kafka("read", 2)))
        .kafka(),
    Case::new("who_reads::apps_do_not_see_each_other_on_memory", || {
        apps_do_not_see_each_other(&Stage::on_memory("read"));
    }),
    Case::new("who_reads::apps_do_not_see_each_other_on_kafka", || {
        apps_do_not_see_each_other(&Stage::on_kafka("read", 2));
    })
    .kafka(),
    Case::new("who_reads::of_many_groups_those_that_read_are_shown_on_memory", || {
        of_many_groups_those_that_read_are_shown(&Stage::on_memory("many"));
    }),
    Case::new("who_reads::members_elsewhere_are_shown", members_elsewhere_are_shown).kafka(),
];

const FIELDS: [&str; 11] =
    ["appid", "group", "partition", "pold", "pubd", "subd", "lag", "realip", "shard", "gateway", "state"];

/// Groups that one answer shows.
const GROUPS_SHOWN_MAX: usize = 200;

/// The shared secret of gateways that ask each other.
const SECRET: &str = "0123456789abcdef0123456789abcdef";

/// The rows of an answer, each with every field.
#[track_caller]
fn rows(gateway: &Kateway, request: &Request) -> Vec<Value> {
    let answer = gateway.subscribe(request).expect(200).json();
    let rows = answer.as_array().unwrap_or_else(|| panic!("an array: {answer}")).clone();
    for row in &rows {
        for field in FIELDS {
            assert!(row.get(field).is_some(), "{field} is missing in {row}");
        }
    }
    rows
}

fn rows_of(stage: &Stage, group: &str) -> Vec<Value> {
    rows(&stage.gateway, &stage.topic.readers_as(&stage.topic.appid, &format!("group={group}")))
}

fn row_of(rows: &[Value], partition: i32) -> Value {
    rows.iter().find(|row| row["partition"] == partition).unwrap_or_else(|| panic!("{partition} in {rows:?}")).clone()
}

fn rows_say_what_was_done(stage: &Stage) {
    stage.fill(0, 0..10);
    stage.fill(1, 0..4);
    assert_eq!(rows_of(stage, "g"), Vec::<Value>::new(), "nobody has read yet");
    // Three of one partition, none of the other, are acknowledged; whatever else came is held.
    let mut acked = 0;
    while acked < 3 {
        let message = stage.lease("lease=1m");
        if message.partition == 0 {
            stage.ack(&[message.position()]).expect(200);
            acked += 1;
        }
    }
    stage.wait_committed(0, 3);
    let mut waiting = stage.gateway.subscriber();
    waiting.send(&stage.topic.read("g", "ack=1&wait=20s&batch=100&lease=1m").bytes()).expect("sent");
    waiting.read_response().unwrap_or_else(|e| panic!("{e}")).expect(200);
    let found = rows_of(stage, "g");
    let first = row_of(&found, 0);
    assert_eq!(first["appid"], stage.topic.appid.as_str());
    assert_eq!(first["group"], "g");
    let numbers = |row: &Value| ["pold", "pubd", "subd", "lag"].map(|field| row[field].as_i64().unwrap_or(0));
    assert_eq!(numbers(&first), [0, 10, 3, 7], "{first}");
    let second = row_of(&found, 1);
    assert_eq!(numbers(&second), [0, 4, 0, 4], "{second}");
    assert_eq!(first["realip"], "127.0.0.1");
    assert!(first["shard"].as_u64().is_some_and(|shard| shard < 2), "{first}");
    assert!(first["gateway"].as_str().is_some_and(|gateway| !gateway.is_empty()), "{first}");
    assert!(first["state"].as_str().is_some_and(|state| !state.is_empty()), "{first}");

    // The same on the manage listener; all groups of the reader without `group`; all readers for the owner.
    let by_man = stage.gateway.manage(&stage.topic.readers_as(&stage.topic.appid, "group=g")).expect(200).json();
    assert_eq!(numbers(&row_of(by_man.as_array().expect("an array"), 0)), [0, 10, 3, 7]);
    stage.call(&stage.topic.read("other", "wait=20s")).expect(200);
    wait_until(SOON, "both groups are shown", || {
        let all = rows(&stage.gateway, &stage.topic.readers_as(&stage.topic.appid, ""));
        ["g", "other"].iter().all(|group| all.iter().any(|row| row["group"] == *group))
    });
    let owners = rows(&stage.gateway, &stage.topic.all_readers());
    assert_eq!(
        numbers(&row_of(&owners.into_iter().filter(|row| row["group"] == "g").collect::<Vec<_>>(), 0)),
        [0, 10, 3, 7]
    );

    problem::check(&stage.call(&stage.topic.readers_as(&stage.topic.appid, "groups=g")), 400);
    problem::check(&stage.call(&stage.topic.readers_as(&stage.topic.appid, "group=no.name")), 400);
    let nowhere = Topic::new(&stage.topic.appid, "nowhere", "v1");
    problem::check(&stage.call(&nowhere.all_readers()), 404);
    problem::check(&stage.call(&nowhere.readers_as(&nowhere.appid, "")), 404);
}

fn apps_do_not_see_each_other(stage: &Stage) {
    stage.fill(0, 0..5);
    let short = folder::unique("reader");
    // `1` and `11`: one name is the beginning of the other, and one its end.
    let readers = [short.clone(), format!("{short}1"), format!("1{short}")];
    for reader in &readers {
        for group in ["g", "h"] {
            single(&stage.call(&stage.topic.read_as(reader, group, "wait=20s")));
        }
    }
    for reader in &readers {
        wait_until(SOON, "the own groups are shown, and no others", || {
            let found = rows(&stage.gateway, &stage.topic.readers_as(reader, ""));
            assert!(found.iter().all(|row| row["appid"] == reader.as_str()), "{reader}: {found:?}");
            ["g", "h"].iter().all(|group| found.iter().any(|row| row["group"] == *group))
        });
        let one = rows(&stage.gateway, &stage.topic.readers_as(reader, "group=g"));
        assert!(
            !one.is_empty() && one.iter().all(|row| row["group"] == "g" && row["appid"] == reader.as_str()),
            "{one:?}"
        );
    }
    let nobody = rows(&stage.gateway, &stage.topic.readers_as(&format!("{short}11"), ""));
    assert_eq!(nobody, Vec::<Value>::new());
    let all = rows(&stage.gateway, &stage.topic.all_readers());
    for reader in &readers {
        assert!(all.iter().any(|row| row["appid"] == reader.as_str()), "the owner sees {reader}: {all:?}");
    }
}

/// More than one answer looks at; the one that reads is the last by its name.
fn of_many_groups_those_that_read_are_shown(stage: &Stage) {
    stage.fill(0, 0..1);
    let named = |n: usize| format!("idle-{n:03}");
    let mut connection = stage.gateway.subscriber();
    for n in 0..GROUPS_SHOWN_MAX + 4 {
        call(&mut connection, &stage.topic.move_to_time(&named(n), "oldest")).expect(200);
    }
    let all = stage.call(&stage.topic.all_readers()).expect(200);
    assert_eq!(all.header("x-groups-omitted"), Some("4"));
    stage.call(&stage.topic.read("reads", "wait=20s")).expect(200);
    for request in [stage.topic.all_readers(), stage.topic.readers_as(&stage.topic.appid, "")] {
        let start = Instant::now();
        let answer = stage.call(&request).expect(200);
        figures::note("who reads, of 205 groups", format!("{:?}", start.elapsed()));
        assert_eq!(answer.header("x-groups-omitted"), Some("5"));
        let rows = rows(&stage.gateway, &request);
        let groups: BTreeSet<&str> = rows.iter().filter_map(|row| row["group"].as_str()).collect();
        assert_eq!(groups.len(), GROUPS_SHOWN_MAX);
        assert!(groups.contains("reads") && groups.contains(named(0).as_str()));
    }
    let one = stage.call(&stage.topic.readers_as(&stage.topic.appid, "group=reads")).expect(200);
    assert_eq!(one.header("x-groups-omitted"), None);
}

fn members_elsewhere_are_shown() {
    let topic = Topic::fresh("read");
    let admin = kafka().admin();
    admin.create_topic(&topic.in_kafka(), 6);
    let start = |id: &str| {
        let builder = Kateway::kafka(admin.brokers()).shards(2).set("gateway.peer_secret", SECRET);
        builder.set("gateway.id", id).start()
    };
    let gateways = [start("gateway-a"), start("gateway-b")];
    let java = Member::join(admin.brokers(), &topic.group_in_kafka("g"), &topic.in_kafka());
    let request = topic.readers_as(&topic.appid, "group=g");
    wait_until(Duration::from_mins(1), "either gateway shows the partitions of all three", || {
        for gateway in &gateways {
            gateway.subscribe(&topic.read("g", "wait=100ms"));
        }
        let theirs = java.said().partitions;
        !theirs.is_empty() && gateways.iter().all(|gateway| shows_all(&rows(gateway, &request), &theirs))
    });
    let left = java.leave(SOON);
    assert!(left.is_closed);
    wait_until(Duration::from_mins(1), "what it had is shown with the gateways", || {
        for gateway in &gateways {
            gateway.subscribe(&topic.read("g", "wait=100ms"));
        }
        let found = rows(&gateways[0], &request);
        found.len() == 6
            && found.iter().all(|row| ["gateway-a", "gateway-b"].iter().any(|id| names(&row["gateway"], id)))
    });
}

fn shows_all(rows: &[Value], of_java: &BTreeSet<i32>) -> bool {
    let is_java = |row: &&Value| of_java.iter().any(|partition| row["partition"] == *partition);
    let of = |id: &str| rows.iter().filter(|row| names(&row["gateway"], id)).count();
    let foreign = rows.iter().filter(is_java).filter(|row| names(&row["gateway"], "java-member")).count();
    rows.len() == 6 && of("gateway-a") > 0 && of("gateway-b") > 0 && foreign == of_java.len()
}

/// A gateway is shown by its id; a member that is none by what it calls itself.
fn names(field: &Value, id: &str) -> bool {
    field.as_str().is_some_and(|text| text.contains(id))
}
