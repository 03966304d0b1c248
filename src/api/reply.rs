//! From a cause to an answer: problems (RFC 9457), the stamp every answer carries, and what malformed requests are told.
//!
//! The only place that knows how a failure looks on the wire.

use std::borrow::Cow;

use smallvec::SmallVec;

use super::codes::{self, Code};
use crate::{
    proto::{Malformed, Reply},
    store::{AdminError, FetchError, ProduceError},
};

/// What identifies one request in its answer.
#[derive(Clone, Debug, Default)]
pub struct Stamp {
    pub request_id: SmallVec<[u8; 32]>,
    /// The request's path, for `instance`.
    pub path: SmallVec<[u8; 64]>,
}

/// A failure on its way to the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub code: &'static Code,
    pub detail: Cow<'static, str>,
    pub retry_after_s: Option<u32>,
    pub allow: Option<&'static str>,
}

impl Problem {
    pub fn new(code: &'static Code, detail: impl Into<Cow<'static, str>>) -> Self {
        // Overload and trouble with Kafka always say when to come back.
        let retry_after_s = matches!(code.status(), 429 | 503 | 504).then_some(1);
        Self { code, detail: detail.into(), retry_after_s, allow: None }
    }

    pub fn allow(mut self, methods: &'static str) -> Self {
        self.allow = Some(methods);
        self
    }

    /// The problem document.
    pub fn document(&self, stamp: &Stamp) -> serde_json::Value {
        let mut body = serde_json::json!({
            "type": format!("urn:kateway:error:{}", self.code.slug),
            "title": self.code.title,
            "status": self.code.status(),
            "detail": self.detail,
            "instance": String::from_utf8_lossy(&stamp.path),
            "code": self.code.number,
            "retryable": self.code.retryable,
            "request_id": String::from_utf8_lossy(&stamp.request_id),
            "errmsg": self.detail,
        });
        if self.code.number == codes::OUTCOME_UNKNOWN.number {
            body["outcome"] = "unknown".into();
        }
        body
    }

    /// The same in short, for one of many: `{"code","errmsg","retryable"}`.
    pub fn short(&self) -> serde_json::Value {
        let Self { code, detail, .. } = self;
        let mut body = serde_json::json!({ "code": code.number, "errmsg": detail, "retryable": code.retryable });
        if code.number == codes::OUTCOME_UNKNOWN.number {
            body["outcome"] = "unknown".into();
        }
        body
    }

    pub fn reply(&self, stamp: &Stamp) -> Reply {
        let mut reply = Reply::new(self.code.status()).field("X-Request-Id", &stamp.request_id);
        if let Some(seconds) = self.retry_after_s {
            reply = reply.number("Retry-After", i64::from(seconds));
        }
        if let Some(methods) = self.allow {
            reply = reply.field("Allow", methods.as_bytes());
        }
        if self.code.number == codes::UNKNOWN_CODING.number {
            reply.add_field("Accept-Encoding", b"gzip, zstd");
        }
        if *self.code == codes::UPGRADE_REQUIRED {
            // What it has to say by RFC 9110 section 15.5.22 and RFC 6455 section 4.4.
            reply = reply
                .field("Connection", b"Upgrade")
                .field("Upgrade", b"websocket")
                .field("Sec-WebSocket-Version", b"13");
        }
        reply.body("application/problem+json", self.document(stamp).to_string())
    }
}

/// What a request that cannot be read is told; `None`: nobody is there to be told.
pub fn malformed(cause: Malformed) -> Option<Problem> {
    Some(match cause {
        Malformed::Syntax(detail) => Problem::new(&codes::MALFORMED, detail),
        Malformed::HeadTooLarge => Problem::new(&codes::HEAD_TOO_LARGE, "the request head is over its limit"),
        Malformed::TargetTooLong => Problem::new(&codes::TARGET_TOO_LONG, "the request target is over its limit"),
        Malformed::HeadTimeout => Problem::new(&codes::HEAD_TIMEOUT, "the request head did not arrive in time"),
        Malformed::BodyTimeout => Problem::new(&codes::BODY_TIMEOUT, "the request body did not arrive in time"),
        Malformed::BodyTooSlow => Problem::new(&codes::BODY_TOO_SLOW, "the request body comes too slowly"),
        Malformed::BodyTooLarge => Problem::new(&codes::MESSAGE_TOO_LARGE, "the body is over its limit"),
        Malformed::Coding(detail) => Problem::new(&codes::INVALID_CODING, detail),
        Malformed::NoRoom => {
            Problem::new(&codes::TOO_MANY_INFLIGHT, "bodies under way take all memory there is for them")
        }
        Malformed::Expectation => Problem::new(&codes::EXPECTATION_FAILED, "only 100-continue can be expected"),
        Malformed::Foreign | Malformed::Cut => return None,
    })
}

pub fn produce_failed(error: &ProduceError) -> Problem {
    match error {
        ProduceError::QueueFull { queued_bytes } => {
            Problem::new(&codes::QUEUE_FULL, format!("{queued_bytes} bytes wait in the producer's queue"))
        }
        ProduceError::NotStored { reason } => Problem::new(&codes::NOT_STORED, format!("not stored: {reason}")),
        ProduceError::Unknown { reason } => {
            Problem::new(&codes::OUTCOME_UNKNOWN, format!("the message may have been stored: {reason}"))
        }
        ProduceError::Refused { reason } => Problem::new(&codes::REFUSED_BY_BROKER, format!("Kafka refused: {reason}")),
        ProduceError::UnknownTopic => unknown_topic(),
        ProduceError::UnknownPartition => {
            Problem::new(&codes::PARTITION_OUT_OF_RANGE, "the topic has no such partition")
        }
    }
}

pub fn admin_failed(error: AdminError) -> Problem {
    match error {
        AdminError::Unavailable { reason } => Problem::new(&codes::UNAVAILABLE, reason),
        AdminError::Exists | AdminError::Collides => {
            Problem::new(&codes::TOPIC_COLLIDES, "the topic exists, or Kafka takes its name for another's")
        }
        AdminError::UnknownTopic => unknown_topic(),
        AdminError::Refused { reason } => Problem::new(&codes::REFUSED_BY_BROKER, reason),
        AdminError::InUse => Problem::new(&codes::GROUP_IN_USE, "the group has readers"),
        AdminError::NotSupported => Problem::new(&codes::NOT_SUPPORTED, "this store has no such operation"),
    }
}

pub fn fetch_failed(error: FetchError) -> Problem {
    match error {
        FetchError::FilterConflict => {
            Problem::new(&codes::FILTER_CONFLICT, "readers of this group use another tag filter")
        }
        FetchError::TooManyWaiters => Problem::new(&codes::TOO_MANY_READERS, "too many clients wait on this group"),
        FetchError::Unavailable { reason } => Problem::new(&codes::UNAVAILABLE, reason),
    }
}

pub fn unknown_topic() -> Problem {
    Problem::new(&codes::UNKNOWN_TOPIC, "no such topic")
}
