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
        Request::get(&format!("/v1/msgs/{}/{}/{}?group={group}{and}{query}", self.appid, self.name, self.ver))
            .app(reader)
    }
}
