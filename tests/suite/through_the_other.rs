//! Whatever a reader can ask works through a gateway that owns nothing of it.
//!
//! Method: gateway `a` owns the partition of a topic and of its group's shadow queues, before, in the middle and at the end; all is asked of
//! `b`: burying, both queues, redrive, streams and their acknowledgement at `a`, peek, forgetting the group, and event streams that go on
//! behind the last event they had. What is committed is read from the broker. `peers` has what the two say to each other.

use std::time::Instant;

use kateway_tests::kateway::Kateway;
use kateway_tests::readers::{Decoder, Delivery, Format, Stream};
use kateway_tests::topic::Topic;
use kateway_tests::{figures, problem, wait_until};

use crate::peers::{builder, topic};
use crate::stage::{SOON, single};
use crate::{Case, kafka};

pub const CASES: &[Case] = &[
    Case::new("through_the_other::everything", everything).kafka(),
    Case::new("through_the_other::events_resume", events_resume).kafka(),
    Case::new("through_the_other::cursor_acknowledges", cursor_acknowledges).kafka(),
];

/// Messages for each life of an event stream.
const EACH: i64 = 20;

/// Gateway `a` owns the topic's partition and those of group `g`'s shadow queues; what is asked is asked of `b`.
struct Through {
    a: Kateway,
    b: Kateway,
    topic: Topic,
}

impl Through {
    fn start() -> Self {
        let topic = topic(1);
        let start = |id| builder(id).set("topics.replicas", 3).start();
        let a = start("a");
        a.subscribe(&topic.shadow("g")).expect(201);
        let queues = ["", "q=retry&", "q=dead&"];
        for queue in queues {
            a.subscribe(&topic.read("g", &format!("{queue}ack=1&wait=1s"))).expect(204);
        }
        let b = start("b");
        for queue in queues {
            b.subscribe(&topic.read("g", &format!("{queue}ack=1&wait=1s"))).expect(204);
        }
        let pair = Self { a, b, topic };
        wait_until(SOON, "one owns all three, the other nothing", || pair.is_as_it_was());
        pair
    }

    fn is_as_it_was(&self) -> bool {
        let queue = |queue| self.topic.shadow_in_kafka("g", queue);
        let names = [self.topic.in_kafka(), queue("retry"), queue("dead")];
        names.iter().all(|name| owned(&self.a, name) == 1 && owned(&self.b, name) == 0)
    }

    /// Numbers from `first` on.
    fn publish_more(&self, first: i64) {
        (first..first + EACH).for_each(|n| self.publish(&n.to_string()));
    }

    /// An event stream, which goes on at `cursor`.
    fn events(&self, query: &str, cursor: Option<&str>) -> Stream {
        let and = if query.is_empty() { "" } else { "&" };
        let request = self.topic.read("g", &format!("stream=1{and}{query}"));
        let request = cursor.iter().fold(request, |request, cursor| request.header("Last-Event-ID", cursor));
        Stream::open(self.b.subscribe, &request, Format::Sse).unwrap_or_else(|e| panic!("{e}"))
    }

    fn publish(&self, text: &str) {
        self.b.publish(&self.topic.publish("", text)).expect(201);
    }

    /// One message, which must come, and is this one.
    #[track_caller]
    fn read(&self, queue: &str, text: &str) -> (i32, i64) {
        let request = self.topic.read("g", &format!("{queue}ack=1&lease=1m&wait=20s"));
        let message = single(&self.b.subscribe(&request).expect(200));
        assert_eq!((message.text.as_str(), message.count), (text, None));
        message.position()
    }

    fn nothing_in(&self, queue: &str) {
        self.b.subscribe(&self.topic.read("g", &format!("{queue}&ack=1&wait=500ms"))).expect(204);
    }

    fn wait_committed(&self, name: &str, offset: i64) {
        wait_until(SOON, format!("{offset} is committed in {name}"), || {
            kafka().admin().committed(&self.topic.group_in_kafka("g"), name) == [Some(offset)]
        });
    }
}

/// Partitions of a topic, by its name in Kafka, that this gateway has for its groups.
pub fn owned(gateway: &Kateway, name: &str) -> usize {
    let status = gateway.status();
    let groups = status["groups"].as_array().expect("groups").iter().filter(|group| group["topic"] == name);
    groups.filter_map(|group| Some(group["partitions"].as_array()?.len())).sum()
}

fn everything() {
    let pair = Through::start();
    bury_and_redrive(&pair);
    stream_and_ack_elsewhere(&pair);
    let looked = pair.b.subscribe(&pair.topic.peek("n=10&partition=0&offset=0")).expect(200);
    let texts: Vec<_> = Decoder::messages(Format::Lines, &looked.body).iter().map(Delivery::text).collect();
    assert_eq!(texts, ["retried", "redriven", "streamed"]);
    assert!(pair.is_as_it_was(), "it was asked of the other all the time");
    forget(&pair);
    let asked = pair.a.scrape().sum("kateway_peer_asked_total", &[]);
    assert!(asked >= 10.0, "all of it went from one to the other: {asked}");
}

fn bury_and_redrive(pair: &Through) {
    let Through { b, topic, .. } = pair;
    let (retry, dead) = (topic.shadow_in_kafka("g", "retry"), topic.shadow_in_kafka("g", "dead"));
    pair.publish("retried");
    let at = pair.read("", "retried");
    b.subscribe(&topic.bury("g", "", "retry", at)).expect(200);
    pair.wait_committed(&topic.in_kafka(), 1);
    let at = pair.read("q=retry&", "retried");
    b.subscribe(&topic.ack_all("g", "q=retry", &[at])).expect(200);
    pair.wait_committed(&retry, 1);

    pair.publish("redriven");
    let at = pair.read("", "redriven");
    b.subscribe(&topic.bury("g", "", "dead", at)).expect(200);
    pair.wait_committed(&topic.in_kafka(), 2);
    let start = Instant::now();
    let answer = b.subscribe(&topic.redrive("g")).expect(200).json();
    figures::note("one message redriven through the gateway that does not own it", format!("{:?}", start.elapsed()));
    assert_eq!(answer, serde_json::json!({"ok": 1, "moved": 1, "done": true}));
    pair.wait_committed(&dead, 1);
    let at = pair.read("q=retry&", "redriven");
    b.subscribe(&topic.ack_all("g", "q=retry", &[at])).expect(200);
    pair.wait_committed(&retry, 2);
    pair.nothing_in("q=dead");
    pair.nothing_in("q=retry");
}

/// A stream at one gateway, acknowledged at the other.
fn stream_and_ack_elsewhere(pair: &Through) {
    let request = pair.topic.read("g", "stream=1&ack=1&lease=1m");
    let mut stream = Stream::open(pair.b.subscribe, &request, Format::Lines).unwrap_or_else(|e| panic!("{e}"));
    let start = Instant::now();
    pair.publish("streamed");
    let message = stream.message(SOON);
    figures::note("published, and in a stream of the gateway that does not own it", format!("{:?}", start.elapsed()));
    assert_eq!((message.text().as_str(), message.deliveries), ("streamed", Some(1)));
    pair.a.subscribe(&pair.topic.ack_all("g", "", &[message.position()])).expect(200);
    pair.wait_committed(&pair.topic.in_kafka(), 3);
    stream.reset();
}

/// A group is not forgotten while somebody reads it anywhere; after that it is, and begins anew.
fn forget(pair: &Through) {
    let Through { a, b, topic } = pair;
    let mut reader = a.subscriber();
    reader.send(&topic.read("g", "ack=1&wait=6s").bytes()).expect("sent");
    let is_waiting = || {
        let status = a.status();
        let name = topic.in_kafka();
        let groups =
            status["groups"].as_array().expect("groups").iter().filter(|group| group["topic"] == name.as_str());
        groups.filter_map(|group| group["waiting"].as_u64()).sum::<u64>() > 0
    };
    wait_until(SOON, "it waits", is_waiting);
    let refused = problem::check(&b.subscribe(&topic.delete_group("g")), 409);
    assert_eq!(refused.slug, "group-in-use");
    assert_eq!(reader.read_response().unwrap_or_else(|e| panic!("{e}")).status, 204);
    let start = Instant::now();
    wait_until(SOON, "a group that nobody reads is forgotten", || {
        let answer = b.subscribe(&topic.delete_group("g"));
        assert!([200, 409].contains(&answer.status), "{} {}", answer.status, answer.text());
        answer.status == 200
    });
    figures::note("a group forgotten through the gateway that does not own it", format!("{:?}", start.elapsed()));
    assert_eq!(kafka().admin().committed(&topic.group_in_kafka("g"), &topic.in_kafka()), [None]);
    pair.read("", "retried");
}

/// What was on its way to an event stream that broke comes to the next one, which says where it stood.
fn events_resume() {
    let pair = Through::start();
    let mut after = Vec::new();
    let mut cursor: Option<String> = None;
    for life in 0..4 {
        pair.publish_more(life * EACH);
        let start = Instant::now();
        // The group went back to the cursor, and half of what there is more of is processed.
        let mut stream = pair.events("", cursor.as_deref());
        for offset in life * EACH / 2..(life + 1) * EACH / 2 {
            let message = stream.message(SOON);
            assert_eq!((message.offset, message.text()), (offset, offset.to_string()), "life {life}");
            cursor = message.cursor;
        }
        after.push(start.elapsed());
        pair.wait_committed(&pair.topic.in_kafka(), (life + 1) * EACH);
        stream.reset();
    }
    assert!(pair.is_as_it_was(), "it was asked of the other all the time");
    figures::note("event streams resumed through the gateway that does not own it, each after", format!("{after:?}"));
}

/// With `ack=1` the cursor acknowledges; the rest is delivered again when its lease ends.
fn cursor_acknowledges() {
    let pair = Through::start();
    pair.publish_more(0);
    let mut broken = pair.events("ack=1&lease=3s", None);
    let had: Vec<_> = (0..EACH / 2).map(|_| broken.message(SOON)).collect();
    broken.reset();
    let cursor = had.last().and_then(|message| message.cursor.as_deref());
    let mut resumed = pair.events("ack=1&lease=3s", cursor);
    pair.wait_committed(&pair.topic.in_kafka(), EACH / 2);
    for offset in EACH / 2..EACH {
        let message = resumed.message(SOON);
        assert_eq!((message.offset, message.deliveries), (offset, Some(2)));
    }
    assert!(pair.is_as_it_was(), "it was asked of the other all the time");
}
