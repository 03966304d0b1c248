//! A topic as clients name it, and its paths.
//!
//! A trial takes a [`Topic::fresh`] one, whose app no other trial of the run uses; so trials share a cluster without
//! seeing each other.

use crate::client::Request;
use crate::folder::unique;

/// Owner, name and version of a topic.
#[derive(Debug, Clone)]
pub struct Topic {
    pub appid: String,
    pub name: String,
    pub ver: String,
}

impl Topic {
    pub fn new(appid: &str, name: &str, ver: &str) -> Self {
        Self { appid: appid.into(), name: name.into(), ver: ver.into() }
    }

    /// `stem`, version 1, of an app of its own.
    pub fn fresh(stem: &str) -> Self {
        Self::new(&unique("app"), stem, "v1")
    }

    /// Its name in Kafka. Only for versions of one digit, which need no checksum; `topic_names` tests the others by
    /// vector.
    pub fn in_kafka(&self) -> String {
        assert!(self.ver.len() == 2, "{} has one digit", self.ver);
        format!("{}.{}.{}", self.appid, self.name, self.ver)
    }

    /// The name of a group of the same app in Kafka.
    pub fn group_in_kafka(&self, group: &str) -> String {
        format!("{}.{group}", self.appid)
    }

    /// A publish request of the owner; `query` without the question mark, may be empty.
    pub fn publish(&self, query: &str, body: impl Into<Vec<u8>>) -> Request {
        let question = if query.is_empty() { "" } else { "?" };
        Request::post(&format!("/v1/msgs/{}/{}{question}{query}", self.name, self.ver), body).app(&self.appid)
    }

    /// A read by a group of the same app.
    pub fn read(&self, group: &str, query: &str) -> Request {
        self.read_as(&self.appid, group, query)
    }

    /// A read by a group of `reader`.
    pub fn read_as(&self, reader: &str, group: &str, query: &str) -> Request {
        let and = if query.is_empty() { "" } else { "&" };
        Request::get(&format!("/v1/msgs/{}?group={group}{and}{query}", self.path())).app(reader)
    }

    /// Owner, name and version as they stand in paths.
    pub fn path(&self) -> String {
        format!("{}/{}/{}", self.appid, self.name, self.ver)
    }

    /// A read that acknowledges `offset` of `partition`.
    pub fn read_and_ack(&self, group: &str, query: &str, partition: i32, offset: i64) -> Request {
        let read = self.read(group, query).header("X-Partition", &partition.to_string());
        read.header("X-Offset", &offset.to_string())
    }

    /// An acknowledgement of its own; `query` may be empty.
    pub fn ack(&self, group: &str, query: &str, body: impl Into<Vec<u8>>) -> Request {
        let question = if query.is_empty() { "" } else { "?" };
        let target = format!("/v1/offsets/{}/{group}{question}{query}", self.path());
        Request::new("PUT", &target).app(&self.appid).header("Content-Type", "application/json").body(body)
    }

    /// The same for these partitions and offsets.
    pub fn ack_all(&self, group: &str, query: &str, items: &[(i32, i64)]) -> Request {
        let item = |(partition, offset): &(i32, i64)| serde_json::json!({"partition": partition, "offset": offset});
        let items: Vec<serde_json::Value> = items.iter().map(item).collect();
        self.ack(group, query, serde_json::Value::from(items).to_string())
    }

    /// Makes the shadow queues of a group.
    pub fn shadow(&self, group: &str) -> Request {
        Request::post(&format!("/v1/shadow/{}/{group}", self.path()), "").app(&self.appid)
    }

    /// The name in Kafka of a group's `retry` or `dead` queue.
    pub fn shadow_in_kafka(&self, group: &str, queue: &str) -> String {
        format!("{}.{}.{group}.{queue}", self.in_kafka(), self.appid)
    }

    /// Moves one message to `queue`; `query` beside the group, may be empty.
    pub fn bury(&self, group: &str, query: &str, queue: &str, position: (i32, i64)) -> Request {
        self.bury_at("msgs", group, query, queue, position)
    }

    /// The same by either of its paths, `msgs` and `bury`.
    pub fn bury_at(
        &self,
        route: &str,
        group: &str,
        query: &str,
        queue: &str,
        (partition, offset): (i32, i64),
    ) -> Request {
        let and = if query.is_empty() { "" } else { "&" };
        Request::new("PUT", &format!("/v1/{route}/{}?group={group}{and}{query}", self.path()))
            .app(&self.appid)
            .header("X-Bury", queue)
            .header("X-Partition", &partition.to_string())
            .header("X-Offset", &offset.to_string())
            .body("")
    }

    /// Moves the dead back.
    pub fn redrive(&self, group: &str) -> Request {
        Request::post(&format!("/v1/redrive/{}/{group}", self.path()), "").app(&self.appid)
    }

    /// Moves one partition of a group to `offset`.
    pub fn move_to_offset(&self, group: &str, partition: i32, offset: &str) -> Request {
        let target = format!("/v1/offset/{}/{group}/{partition}?offset={offset}", self.path());
        Request::new("PUT", &target).app(&self.appid).body("")
    }

    /// Moves a group to a time.
    pub fn move_to_time(&self, group: &str, time: &str) -> Request {
        let time = crate::client::percent_encode(time.as_bytes());
        Request::new("PUT", &format!("/v1/offset/{}/{group}?time={time}", self.path())).app(&self.appid).body("")
    }

    /// Looks without a group.
    pub fn peek(&self, query: &str) -> Request {
        Request::get(&format!("/v1/peek/{}?{query}", self.path())).app(&self.appid)
    }

    pub fn delete_group(&self, group: &str) -> Request {
        Request::new("DELETE", &format!("/v1/groups/{}/{group}", self.path())).app(&self.appid)
    }

    /// Who reads with `group`, as `reader` sees it.
    pub fn readers_as(&self, reader: &str, query: &str) -> Request {
        Request::get(&format!("/v1/status/{}?{query}", self.path())).app(reader)
    }

    /// Who reads, as the owner sees it.
    pub fn all_readers(&self) -> Request {
        Request::get(&format!("/v1/subd/{}/{}", self.name, self.ver)).app(&self.appid)
    }
}
