//! Acknowledgement: `PUT /v1/offsets/:appid/:topic/:ver/:group`, and the fields on the next read.
//!
//! An offset names the last message processed (`next=1`: the next one to read). It acknowledges what the lease with that message
//! holds up to it. All that a request names is tried; what no lease holds makes the answer 409, and changes nothing.

use std::{rc::Rc, time::Duration};

use bytes::Bytes;
use serde::Deserialize;
use serde_json::json;

use super::{
    call::{self, Answer},
    codes,
    context::Context,
    frame::{AckAt, GroupKey, Op},
    home,
    query::{self, Query},
    reply::Problem,
};
use crate::{limits, proto::Head, store::Acked};

/// The parameters of the route.
pub const PARAMETERS: &[&str] = &["next", "q"];
/// Fields of a read that acknowledge.
const PARTITION_FIELD: &str = "x-partition";
const OFFSET_FIELD: &str = "x-offset";

/// The bounds of a lease.
pub const LEASE_MIN: Duration = Duration::from_millis(100);
pub const LEASE_MAX: Duration = Duration::from_hours(12);

/// Acknowledgements of one request.
#[derive(Debug)]
pub struct Acks {
    pub key: GroupKey,
    pub body: Bytes,
    is_next: bool,
}

/// One line of the body.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Item {
    pub partition: i32,
    pub offset: i64,
    pub extend: Option<String>,
}

impl Acks {
    pub fn plan(head: &Head<'_>, reader: &str, parts: [&[u8]; 3], group: &[u8]) -> Result<Self, Problem> {
        let topic = call::topic(parts)?;
        let group_id = call::group_id(reader, group)?;
        let query = Query::parse(head.query, PARAMETERS)?;
        let key = call::key(topic, group_id, call::queue(&query)?);
        Ok(Self { key, body: Bytes::new(), is_next: query.flag("next")? })
    }

    pub async fn run(self, ctx: &Rc<Context>) -> Result<Answer, Problem> {
        let items = self.items()?;
        ctx.find_topic(&self.key.topic, false).await?;
        acknowledge(ctx, &self.key, items).await?;
        Ok(Answer::json(200, &json!({ "ok": 1 })))
    }

    fn items(&self) -> Result<Vec<AckAt>, Problem> {
        let wrong = |detail: String| Problem::new(&codes::INVALID_BODY, detail);
        let items: Vec<Item> = serde_json::from_slice(&self.body)
            .map_err(|e| wrong(format!("the body is not [{{\"partition\":0,\"offset\":123}}]: {e}")))?;
        checked(items, self.is_next)
    }
}

/// Offsets that can be. `is_next`: they name the message to read next.
pub fn checked(items: Vec<Item>, is_next: bool) -> Result<Vec<AckAt>, Problem> {
    let wrong = |detail: String| Problem::new(&codes::INVALID_BODY, detail);
    if items.is_empty() || items.len() > limits::BATCH_MESSAGES_MAX {
        return Err(wrong(format!("1 to {} offsets are named at a time", limits::BATCH_MESSAGES_MAX)));
    }
    let item = |item: Item| {
        let offset = if is_next { item.offset.saturating_sub(1) } else { item.offset };
        if item.partition < 0 || item.offset < 0 || offset < 0 {
            return Err(wrong(format!("partition {} offset {} cannot be", item.partition, item.offset)));
        }
        let extend = item.extend.as_deref().map(lease).transpose()?;
        Ok(AckAt { partition: item.partition, offset, extend })
    };
    items.into_iter().map(item).collect()
}

fn lease(text: &str) -> Result<Duration, Problem> {
    query::parse_duration(text.as_bytes())
        .filter(|term| (LEASE_MIN..=LEASE_MAX).contains(term))
        .ok_or_else(|| query::invalid("extend", text.as_bytes(), "a duration from 100ms to 12h"))
}

/// What a read acknowledges by its fields, if it does: both are there, and not both empty or -1. `is_next`: the offset is the one to be
/// read next.
pub fn by_fields(head: &Head<'_>, is_next: bool) -> Result<Option<AckAt>, Problem> {
    let wrong = |detail: &'static str| Problem::new(&codes::INVALID_FIELD, detail);
    let (partition, offset) = match (head.field(PARTITION_FIELD), head.field(OFFSET_FIELD)) {
        (None, None) | (Some(b"" | b"-1"), Some(b"" | b"-1")) => return Ok(None),
        (Some(partition), Some(offset)) => (partition, offset),
        _ => return Err(wrong("X-Partition and X-Offset acknowledge together")),
    };
    let number = |text: &[u8]| std::str::from_utf8(text).ok().and_then(|text| text.parse::<i64>().ok());
    let (Some(partition), Some(offset)) = (number(partition), number(offset)) else {
        return Err(wrong("X-Partition and X-Offset are whole numbers"));
    };
    let offset = if is_next { offset.saturating_sub(1) } else { offset };
    match i32::try_from(partition) {
        Ok(partition) if partition >= 0 && offset >= 0 => Ok(Some(AckAt { partition, offset, extend: None })),
        _ => Err(wrong("X-Partition and X-Offset name no message")),
    }
}

/// Has the owners acknowledge; an error names what no lease holds.
pub async fn acknowledge(ctx: &Rc<Context>, key: &GroupKey, items: Vec<AckAt>) -> Result<(), Problem> {
    let names: Vec<(i32, i64)> = items.iter().map(|item| (item.partition, item.offset)).collect();
    let acked = home::each(ctx, key, Op::Ack(items)).await?;
    let cells = &ctx.metrics.cells;
    let lost: Vec<String> = names
        .iter()
        .zip(&acked)
        .filter(|(_, acked)| **acked != Acked::Done)
        .map(|((partition, offset), _)| format!("partition {partition} offset {offset}"))
        .collect();
    cells.acks.add((names.len() - lost.len()) as u64);
    cells.acks_late.add(lost.len() as u64);
    if lost.is_empty() {
        return Ok(());
    }
    const SHOWN_MAX: usize = 20;
    let more = if lost.len() > SHOWN_MAX { format!(" and {} more", lost.len() - SHOWN_MAX) } else { String::new() };
    let detail = format!("no lease holds {}{more}", lost[..lost.len().min(SHOWN_MAX)].join(", "));
    Err(Problem::new(&codes::LEASE_LOST, detail))
}
