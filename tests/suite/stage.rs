//! A gateway of two shards and a topic, on either store, for properties that both must have.
//!
//! No trials here: a property's file writes its trial once and registers it for both stores. What a group has committed is read from
//! the broker; the embedded store has no second way in, so there the gateway's own status must do.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kateway_tests::client::{Connection, Request, Response};
use kateway_tests::kateway::{Builder, Kateway};
use kateway_tests::readers::{Decoder, Delivery, Format};
use kateway_tests::topic::Topic;
use kateway_tests::wait_until;

use crate::kafka;

/// Longer than anything takes that is not broken.
pub const SOON: Duration = Duration::from_secs(20);

/// See the module's documentation.
pub struct Stage {
    pub gateway: Kateway,
    pub topic: Topic,
    pub on_kafka: bool,
}

impl Stage {
    pub fn on_kafka(stem: &str, partitions: i32) -> Self {
        Self::on_kafka_with(stem, partitions, |builder| builder)
    }

    pub fn on_kafka_with(stem: &str, partitions: i32, settle: impl FnOnce(Builder) -> Builder) -> Self {
        let topic = Topic::fresh(stem);
        kafka().admin().create_topic(&topic.in_kafka(), partitions);
        let gateway = settle(Kateway::kafka(&kafka().bootstrap()).shards(2)).start();
        Self { gateway, topic, on_kafka: true }
    }

    /// Four partitions; made with the first message.
    pub fn on_memory(stem: &str) -> Self {
        Self::on_memory_with(stem, |builder| builder)
    }

    pub fn on_memory_with(stem: &str, settle: impl FnOnce(Builder) -> Builder) -> Self {
        let gateway = settle(Kateway::memory().shards(2)).start();
        Self { gateway, topic: Topic::fresh(stem), on_kafka: false }
    }

    /// Publishes numbers, as text, to one partition.
    #[track_caller]
    pub fn fill(&self, partition: i32, numbers: Range<i64>) {
        let mut connection = self.gateway.publisher();
        for n in numbers {
            let request = self.topic.publish(&format!("partition={partition}"), n.to_string());
            connection.call(&request).unwrap_or_else(|e| panic!("{e}")).expect(201);
        }
    }

    /// One request to the subscribe listener on a connection of its own.
    #[track_caller]
    pub fn call(&self, request: &Request) -> Response {
        self.gateway.subscribe(request)
    }

    /// One message with `ack=1`, which must come; nothing is acknowledged.
    #[track_caller]
    pub fn lease(&self, query: &str) -> Single {
        single(&self.call(&self.topic.read("g", &format!("ack=1&wait=20s&{query}"))).expect(200))
    }

    /// A batch with `ack=1`, which must come; nothing is acknowledged.
    #[track_caller]
    pub fn lease_batch(&self, query: &str) -> Vec<Delivery> {
        let request = self.topic.read("g", &format!("ack=1&wait=20s&{query}"));
        lines(&self.call(&request.header("Accept", Format::Lines.media_type())).expect(200))
    }

    /// Acknowledges in a call of its own.
    #[track_caller]
    pub fn ack(&self, items: &[(i32, i64)]) -> Response {
        self.call(&self.topic.ack_all("g", "", items))
    }

    /// What group `g` has committed for a partition; `None` where nothing.
    pub fn committed(&self, group: &str, partition: i32) -> Option<i64> {
        let index = usize::try_from(partition).expect("a partition number");
        if self.on_kafka {
            return kafka().admin().committed(&self.topic.group_in_kafka(group), &self.topic.in_kafka())[index];
        }
        let request = self.topic.readers_as(&self.topic.appid, &format!("group={group}"));
        let rows = self.call(&request).expect(200).json();
        let row = rows.as_array()?.iter().find(|row| row["partition"] == partition)?;
        row["subd"].as_i64()
    }

    /// Waits until group `g` has committed `offset`; gives how long that took.
    #[track_caller]
    pub fn wait_committed(&self, partition: i32, offset: i64) -> Duration {
        wait_until(SOON, format!("{offset} is committed for partition {partition}"), || {
            self.committed("g", partition) == Some(offset)
        })
    }

    /// What was committed stays so although acknowledgements come: the commit interval is passed several times. Time is all there is
    /// to wait for.
    #[track_caller]
    pub fn stays_committed(&self, partition: i32, offset: Option<i64>) {
        std::thread::sleep(Duration::from_millis(500));
        let committed = self.committed("g", partition);
        assert_eq!(committed.unwrap_or(0), offset.unwrap_or(0), "nothing more is committed");
    }
}

/// A message read one by one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Single {
    pub partition: i32,
    pub offset: i64,
    pub text: String,
    /// `X-Delivery-Count`, which the first delivery does not have.
    pub count: Option<i64>,
}

impl Single {
    pub fn position(&self) -> (i32, i64) {
        (self.partition, self.offset)
    }
}

/// What a read with `batch=1` gave.
#[track_caller]
pub fn single(answer: &Response) -> Single {
    assert_eq!(answer.status, 200, "{}", answer.text());
    Single {
        partition: i32::try_from(answer.number("x-partition")).expect("a partition number"),
        offset: answer.number("x-offset"),
        text: answer.text(),
        count: answer.header("x-delivery-count").map(|_| answer.number("x-delivery-count")),
    }
}

/// The messages of an answer in NDJSON.
#[track_caller]
pub fn lines(answer: &Response) -> Vec<Delivery> {
    assert_eq!(answer.header("content-type"), Some(Format::Lines.media_type()), "{}", answer.text());
    Decoder::messages(Format::Lines, &answer.body)
}

/// One request on a kept connection.
#[track_caller]
pub fn call(connection: &mut Connection, request: &Request) -> Response {
    connection.call(request).unwrap_or_else(|e| panic!("{request:?}: {e}"))
}

/// Lets `time` pass where nothing can be waited for but the clock: leases, delays and heartbeats are measured in it.
pub fn pass(time: Duration) {
    std::thread::sleep(time);
}

/// Ends what the other threads of a scope wait for, also when this one panics.
pub struct EndOnDrop<'a>(pub &'a AtomicBool);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
