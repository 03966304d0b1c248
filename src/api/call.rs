//! Requests about a group that are answered with a few lines: acknowledgements, burials, shadow queues, positions, who reads.
//!
//! They are planned from the head, get their body, and run on a core with a data plane: the management thread, which has none, hands
//! them to one. So a [`Call`] and its [`Answer`] are `Send`, and know no connection.

use std::{rc::Rc, sync::Arc, time::Duration};

use bytes::Bytes;
use serde_json::{Value, json};

use super::{
    ack::Acks,
    bury::Bury,
    codes,
    context::Context,
    frame::GroupKey,
    home,
    positions::{Forget, Move, Peek},
    query::Query,
    readers::Readers,
    reply::{Problem, Stamp},
    shadow::{Redrive, Shadow},
};
use crate::{
    limits,
    proto::Reply,
    registry::names::{self, Queue},
};

/// What is to be done.
#[derive(Debug)]
pub enum Call {
    Acks(Acks),
    Bury(Bury),
    Shadow(Shadow),
    Redrive(Redrive),
    Move(Move),
    Forget(Forget),
    Peek(Peek),
    Readers(Readers),
}

/// What came of it.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub content_type: &'static str,
    pub body: Bytes,
    /// A header field.
    pub field: Option<(&'static str, String)>,
}

impl Answer {
    pub fn new(status: u16, content_type: &'static str, body: impl Into<Bytes>) -> Self {
        Self { status, content_type, body: body.into(), field: None }
    }

    pub fn json(status: u16, document: &Value) -> Self {
        Self::new(status, "application/json", document.to_string())
    }

    /// `{"ok":1}`.
    pub fn ok(status: u16) -> Self {
        Self::json(status, &json!({ "ok": 1 }))
    }
}

impl Call {
    /// The group it is about; its home runs it where the core that was asked cannot.
    fn key(&self) -> &GroupKey {
        match self {
            Self::Acks(acks) => &acks.key,
            Self::Bury(bury) => &bury.key,
            Self::Shadow(shadow) => &shadow.key,
            Self::Redrive(redrive) => &redrive.key,
            Self::Move(to) => &to.key,
            Self::Forget(forget) => &forget.key,
            Self::Peek(peek) => &peek.key,
            Self::Readers(readers) => &readers.key,
        }
    }

    /// How long it may take.
    pub fn patience(&self) -> Duration {
        Duration::from_secs(limits::WAIT_S_MAX)
    }

    /// The most body it may have.
    pub fn body_bytes_max(&self) -> usize {
        match self {
            Self::Acks(_) => limits::ACK_BODY_BYTES_MAX,
            Self::Bury(bury) => bury.body_bytes_max,
            _ => limits::HEAD_BYTES_MAX,
        }
    }

    pub fn take_body(&mut self, body: Bytes) {
        match self {
            Self::Acks(acks) => acks.body = body,
            Self::Bury(bury) => bury.body = body,
            _ => {}
        }
    }

    /// Does it, here or on a core that can.
    pub async fn run(self, ctx: &Rc<Context>, stamp: &Stamp) -> Result<Reply, Problem> {
        let answer = if ctx.data.is_some() {
            self.run_here(ctx).await
        } else {
            let key = self.key().clone();
            home::call(ctx, &key, self).await
        }?;
        let mut reply = Reply::new(answer.status).field("X-Request-Id", &stamp.request_id);
        if let Some((name, value)) = &answer.field {
            reply = reply.field(name, value.as_bytes());
        }
        Ok(reply.body(answer.content_type, answer.body))
    }

    /// Does it on this core, which has a data plane.
    pub async fn run_here(self, ctx: &Rc<Context>) -> Result<Answer, Problem> {
        match self {
            Self::Acks(acks) => acks.run(ctx).await,
            Self::Bury(bury) => bury.run(ctx).await,
            Self::Shadow(shadow) => shadow.run(ctx).await,
            Self::Redrive(redrive) => redrive.run(ctx).await,
            Self::Move(to) => to.run(ctx).await,
            Self::Forget(forget) => forget.run(ctx).await,
            Self::Peek(peek) => peek.run(ctx).await,
            Self::Readers(readers) => readers.run(ctx).await,
        }
    }
}

/// The topic a path names, in Kafka's words.
pub fn topic(parts: [&[u8]; 3]) -> Result<Arc<str>, Problem> {
    let owner = super::admit::name("appid", parts[0])?;
    let (topic, ver) = super::admit::topic_names(parts[1], parts[2])?;
    Ok(names::with_kafka_topic(owner, topic, ver, |name| Arc::from(name)))
}

/// The reader's group, in Kafka's words.
pub fn group_id(reader: &str, group: &[u8]) -> Result<Arc<str>, Problem> {
    let group = super::admit::name("group", group)?;
    Ok(names::with_kafka_group(reader, group, |name| Arc::from(name)))
}

/// The queue `q=` names: the topic itself where it is left out.
pub fn queue(query: &Query<'_>) -> Result<Option<Queue>, Problem> {
    match query.get("q") {
        None => Ok(None),
        Some(text) => Queue::parse(text).map(Some).ok_or_else(|| super::query::invalid("q", text, "retry or dead")),
    }
}

/// The key of a group on a topic, or on one of its shadow queues.
pub fn key(topic: Arc<str>, group_id: Arc<str>, queue: Option<Queue>) -> GroupKey {
    let topic = match queue {
        None => topic,
        Some(queue) => Arc::from(queue.topic(&topic, &group_id)),
    };
    GroupKey { topic, group_id }
}

/// What a group that has no shadow queues is told.
pub fn no_shadow() -> Problem {
    Problem::new(&codes::NO_SHADOW, "register shadow first")
}
