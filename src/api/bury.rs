//! Burying: a message goes to the group's retry or dead queue, and is acknowledged.
//!
//! `PUT /v1/msgs/:appid/:topic/:ver` (alias `PUT /v1/bury/..`) with `X-Bury`, `X-Partition` and `X-Offset`. The owner of the partition
//! copies key, tag, headers and body from its lease table, and acknowledges once the copy is stored on all in-sync replicas.
//! Invariants: what is being buried is nobody's until it is known what became of the copy; a copy whose fate is not known is not
//! acknowledged, so the worst is a message in both places. A message that was delivered as often as its readers allow goes to the dead
//! queue the same way.

use std::{
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use futures_channel::oneshot;

use super::{
    ack,
    call::{self, Answer},
    codes,
    context::Context,
    frame::{AckAt, BuryAt, GroupKey, Op},
    home,
    publish::too_large,
    query::Query,
    reply::{self, Problem},
};
use crate::{
    proto::Head,
    registry::names::Queue,
    store::{Ack, Acked, Burial, DUE_HEADER, Group, Header, Offset, Partition, ProduceError, Record, Store},
    within::within,
};

/// The parameters of the route.
pub const PARAMETERS: &[&str] = &["group", "q", "delay", "next"];
/// The longest `delay`.
pub const DELAY_MAX: Duration = Duration::from_hours(24 * 30);
/// Between two looks at a message that is being buried already.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// Between two tries to bury a message that was delivered too often.
const WORN_AGAIN: Duration = Duration::from_secs(1);

/// One message to be buried.
#[derive(Debug)]
pub struct Bury {
    /// The group on the queue it was read from.
    pub key: GroupKey,
    pub body: Bytes,
    pub body_bytes_max: usize,
    at: BuryAt,
}

impl Bury {
    pub fn plan(ctx: &Context, head: &Head<'_>, reader: &str, parts: [&[u8]; 3]) -> Result<Self, Problem> {
        let topic = call::topic(parts)?;
        let query = Query::parse(head.query, PARAMETERS)?;
        let group_id = call::group_id(reader, query.required("group")?)?;
        let from = call::queue(&query)?;
        let wrong = |detail: &'static str| Problem::new(&codes::INVALID_FIELD, detail);
        let to = head.field("x-bury").and_then(Queue::parse).ok_or_else(|| wrong("X-Bury is retry or dead"))?;
        let at = ack::by_fields(head, query.flag("next")?)?
            .ok_or_else(|| wrong("X-Partition and X-Offset say which message"))?;
        let delay = query.duration("delay", DELAY_MAX)?;
        Self::beside(ctx, &call::key(topic, group_id, from), at, to, Bytes::new(), delay)
    }

    /// The same of a group that is known.
    pub fn beside(
        ctx: &Context,
        key: &GroupKey,
        at: AckAt,
        to: Queue,
        body: Bytes,
        delay: Option<Duration>,
    ) -> Result<Self, Problem> {
        if delay.is_some() && to == Queue::Dead {
            return Err(Problem::new(&codes::INVALID_PARAMETER, "delay= is for the retry queue only"));
        }
        if to == Queue::Dead && Queue::of(&key.topic) == Some(to) {
            let detail = "what was read from the dead queue is there already";
            return Err(Problem::new(&codes::INVALID_FIELD, detail));
        }
        let body_bytes_max = ctx.config.borrow().publish.message_bytes_max;
        if body.len() > body_bytes_max {
            return Err(too_large(body_bytes_max));
        }
        let queue = Arc::from(to.beside(&key.topic, &key.group_id));
        let at = BuryAt { partition: at.partition, offset: at.offset, queue, body: None, delay };
        Ok(Self { key: key.clone(), body, body_bytes_max, at })
    }

    /// The message's partition and offset.
    pub fn place(&self) -> (Partition, Offset) {
        (self.at.partition, self.at.offset)
    }

    pub async fn run(mut self, ctx: &Rc<Context>) -> Result<Answer, Problem> {
        // Known here before the owner is asked: without the queue nothing may happen.
        shadow_topic(ctx, &self.at.queue).await?;
        shadow_or_topic(ctx, &self.key.topic).await?;
        self.at.body = Some(self.body).filter(|body| !body.is_empty());
        let name = format!("partition {} offset {}", self.at.partition, self.at.offset);
        if home::each(ctx, &self.key, Op::Bury(self.at)).await? == [Acked::Done] {
            return Ok(Answer::ok(200));
        }
        Err(Problem::new(&codes::LEASE_LOST, format!("no lease holds {name}")))
    }
}

/// The topic of a shadow queue, which was registered.
pub async fn shadow_topic(ctx: &Rc<Context>, name: &str) -> Result<Rc<crate::store::Topic>, Problem> {
    let found = ctx.find_topic(name, false).await;
    found.map_err(|problem| if *problem.code == codes::UNKNOWN_TOPIC { call::no_shadow() } else { problem })
}

/// A topic, or a shadow queue: each is missed in its own words.
pub async fn shadow_or_topic(ctx: &Rc<Context>, name: &str) -> Result<Rc<crate::store::Topic>, Problem> {
    if Queue::of(name).is_some() { shadow_topic(ctx, name).await } else { ctx.find_topic(name, false).await }
}

// === on the group's home ===

/// Buries a message that is leased here. Goes on when who asked has gone.
pub async fn here(ctx: &Rc<Context>, group: &Rc<Group>, at: &BuryAt) -> Result<Acked, Problem> {
    let by = Instant::now() + ctx.config.borrow().publish.deadline;
    let burial = loop {
        match group.begin_bury(at.partition, at.offset) {
            Ok(burial) => break burial,
            // Who asked before did not hear what became of it: that is known soon.
            Err(Acked::Burying) if Instant::now() < by => glommio::timer::sleep(LOOK_AGAIN).await,
            Err(acked) => return Ok(acked),
        }
    };
    let (answer, answered) = oneshot::channel();
    let (ctx, group, at) = (Rc::clone(ctx), Rc::clone(group), at.clone());
    glommio::spawn_local(async move {
        let copied = copy(&ctx, &burial, &at.queue, at.body, at.delay).await;
        let is_recorded = group.end_bury(&burial, copied.is_ok());
        let outcome = copied.map(|()| if is_recorded { Acked::Done } else { Acked::NotLeased });
        // Who asked may have gone.
        let _ = answer.send(outcome);
    })
    .detach();
    answered.await.unwrap_or_else(|_| Err(Problem::new(&codes::INTERNAL, "a burial came to no end")))
}

/// Buries what was delivered as often as its readers allow. Tried until it is done, or the partition is another's.
pub async fn worn(ctx: Rc<Context>, group: Rc<Group>, burial: Burial) {
    let queue = Queue::Dead.beside(&group.topic_name, &group.group_id);
    while !group.is_closing() && group.is_current(burial.message.partition, burial.epoch) {
        match copy(&ctx, &burial, &queue, None, None).await {
            Ok(()) => {
                group.end_bury(&burial, true);
                ctx.metrics.cells.buried_worn.add(1);
                return;
            }
            Err(problem) => {
                tracing::warn!(group = group.group_id, detail = %problem.detail, "a message could not be buried");
                glommio::timer::sleep(WORN_AGAIN).await;
            }
        }
    }
}

async fn copy(
    ctx: &Rc<Context>,
    burial: &Burial,
    queue: &str,
    body: Option<Bytes>,
    delay: Option<Duration>,
) -> Result<(), Problem> {
    let data = ctx.plane()?;
    let topic = shadow_topic(ctx, queue).await?;
    let message = &burial.message;
    let mut headers: Vec<Header> = message.headers().iter().filter(|(name, _)| name != DUE_HEADER).cloned().collect();
    if let Some(delay) = delay {
        let due = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default() + delay;
        headers.push((Bytes::from_static(DUE_HEADER), Some(due.as_millis().to_string().into())));
    }
    let record = Record {
        key: message.key.clone(),
        is_tombstone: message.is_tombstone && body.is_none(),
        value: body.unwrap_or_else(|| message.value.clone()),
        headers,
        partition: None,
    };
    let deadline = ctx.config.borrow().publish.deadline;
    let report = data.backend.produce(&topic, record, Ack::All).map_err(|error| reply::produce_failed(&error))?;
    let late = Err(ProduceError::Unknown { reason: "no report came in time" });
    within(deadline, report).await.unwrap_or(late).map_err(|error| reply::produce_failed(&error))?;
    ctx.metrics.cells.buried.add(1);
    Ok(())
}
