//! What a subscriber says on its connection: `{"ack":[..]}`, `{"credit":N}`, `{"bury":{..}}`, as text or as binary frames.
//!
//! An acknowledgement that is recorded is not answered; a burial is, by `{"buried":{"partition","offset"}}`; what fails, and what is no such
//! frame, by `{"code","errmsg","retryable","of"}`, where `of` names the command. Only what is no JSON at all ends the connection.

use std::{future::Future, pin::Pin, rc::Rc};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};

use super::super::{
    ack::{self, Item},
    bury::{self, Bury},
    codes,
    context::Context,
    frame::{AckAt, GroupKey},
    query,
    reply::Problem,
};
use crate::registry::names::Queue;

/// A frame that was understood.
#[derive(Debug)]
pub enum Command {
    /// So many more messages may be sent.
    Credit(u64),
    Ack(Vec<AckAt>),
    Bury(Box<Bury>),
}

/// A frame that was not.
#[derive(Debug)]
pub enum Wrong {
    NoJson,
    /// And what it was about.
    Command(&'static str, Problem),
}

/// What is being done, and what the client is told of it in the end.
pub type Acting = Pin<Box<dyn Future<Output = Option<String>>>>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Burial {
    partition: i32,
    offset: i64,
    to: String,
    delay: Option<String>,
    /// Instead of the message's own.
    value: Option<String>,
    base64: Option<String>,
}

impl Command {
    /// `is_next`: offsets name the message to read next.
    pub fn read(frame: &[u8], ctx: &Context, key: &GroupKey, is_next: bool) -> Result<Self, Wrong> {
        let document: Value = serde_json::from_slice(frame).map_err(|_| Wrong::NoJson)?;
        let unknown = || {
            let detail = "a frame is {\"ack\":[..]}, {\"credit\":N} or {\"bury\":{..}}";
            Wrong::Command("frame", Problem::new(&codes::INVALID_BODY, detail))
        };
        let Value::Object(fields) = document else { return Err(unknown()) };
        let mut fields = fields.into_iter();
        let (Some((name, value)), None) = (fields.next(), fields.next()) else { return Err(unknown()) };
        match name.as_str() {
            "credit" => match value.as_u64() {
                Some(more) => Ok(Self::Credit(more)),
                None => Err(Wrong::Command("credit", invalid("credit is a whole number, 0 or more"))),
            },
            "ack" => acks(value, is_next).map(Self::Ack).map_err(|problem| Wrong::Command("ack", problem)),
            "bury" => burial(value, ctx, key, is_next)
                .map(|bury| Self::Bury(Box::new(bury)))
                .map_err(|problem| Wrong::Command("bury", problem)),
            _ => Err(unknown()),
        }
    }
}

fn invalid(detail: impl Into<std::borrow::Cow<'static, str>>) -> Problem {
    Problem::new(&codes::INVALID_BODY, detail)
}

fn acks(value: Value, is_next: bool) -> Result<Vec<AckAt>, Problem> {
    let items: Vec<Item> = serde_json::from_value(value)
        .map_err(|error| invalid(format!("ack is not [{{\"partition\":0,\"offset\":123}}]: {error}")))?;
    ack::checked(items, is_next)
}

fn burial(value: Value, ctx: &Context, key: &GroupKey, is_next: bool) -> Result<Bury, Problem> {
    let Burial { partition, offset, to, delay, value, base64 } = serde_json::from_value(value).map_err(|error| {
        invalid(format!("bury is not {{\"partition\":0,\"offset\":123,\"to\":\"retry\"}}: {error}"))
    })?;
    let at = ack::checked(vec![Item { partition, offset, extend: None }], is_next)?;
    let to = Queue::parse(to.as_bytes()).ok_or_else(|| invalid("to is retry or dead"))?;
    let body = match (value, base64) {
        (None, None) => Bytes::new(),
        (Some(text), None) => Bytes::from(text),
        (None, Some(text)) => STANDARD.decode(text).map(Bytes::from).map_err(|_| invalid("base64 is not base64"))?,
        (Some(_), Some(_)) => return Err(invalid("a burial has value or base64, not both")),
    };
    let delay = delay.map(|text| {
        let delay = query::parse_duration(text.as_bytes()).filter(|delay| *delay <= bury::DELAY_MAX);
        delay.ok_or_else(|| query::invalid("delay", text.as_bytes(), "a duration such as 500ms, 90s, 5m or 2h"))
    });
    Bury::beside(ctx, key, at[0], to, body, delay.transpose()?)
}

/// Does it. What it takes it with it, so that nothing of the session is borrowed meanwhile.
pub fn act(ctx: &Rc<Context>, key: &GroupKey, command: Command) -> Option<Acting> {
    let (ctx, key) = (Rc::clone(ctx), key.clone());
    match command {
        Command::Credit(_) => None,
        Command::Ack(items) => Some(Box::pin(async move {
            let problem = ack::acknowledge(&ctx, &key, items).await.err()?;
            Some(failure(&problem, "ack"))
        })),
        Command::Bury(bury) => Some(Box::pin(async move {
            let (partition, offset) = bury.place();
            Some(match bury.run(&ctx).await {
                Ok(_) => json!({ "buried": { "partition": partition, "offset": offset } }).to_string(),
                Err(problem) => failure(&problem, "bury"),
            })
        })),
    }
}

/// What a client is told of something that failed.
pub fn failure(problem: &Problem, of: &str) -> String {
    let mut document = problem.short();
    document["of"] = of.into();
    document.to_string()
}
