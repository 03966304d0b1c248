//! Shadow queues: `POST /v1/shadow/..` makes a group's retry and dead queue, `POST /v1/redrive/..` moves what is dead back to retry.

use std::{
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::json;

use super::{
    ack, bury,
    call::{self, Answer},
    codes,
    context::Context,
    frame::{BuryAt, FetchRequest, GroupKey, Op},
    home,
    query::Query,
    reply::{self, Problem},
};
use crate::{
    limits,
    proto::Head,
    registry::names::Queue,
    store::{Acked, AdminError, FetchSpec, LeaseSpec, Outcome, Reset, Store},
};

/// Messages read from the dead queue at a time.
const STEP_MESSAGES: usize = 100;
/// How long a redrive goes on; it says how far it came.
const REDRIVE_WITHIN: Duration = Duration::from_secs(20);
/// The first read has to join the group.
const FIRST_WAIT: Duration = Duration::from_secs(8);
/// After this without a message the queue is empty.
const NEXT_WAIT: Duration = Duration::from_secs(1);
/// A message that is not moved by then stays dead.
const STEP_LEASE: Duration = Duration::from_secs(60);

/// Makes a group's shadow queues.
#[derive(Debug)]
pub struct Shadow {
    /// The group on the topic itself.
    pub key: GroupKey,
}

impl Shadow {
    pub fn plan(head: &Head<'_>, reader: &str, parts: [&[u8]; 3], group: &[u8]) -> Result<Self, Problem> {
        let (topic, group_id) = (call::topic(parts)?, call::group_id(reader, group)?);
        Query::parse(head.query, &[])?;
        let longest = Queue::Retry.topic(&topic, &group_id).len();
        if longest > limits::KAFKA_TOPIC_BYTES_MAX {
            let detail = format!("the shadow queues' names have {longest} characters, Kafka takes 249");
            return Err(Problem::new(&codes::TOPIC_NAME_TOO_LONG, detail));
        }
        Ok(Self { key: call::key(topic, group_id, None) })
    }

    pub async fn run(self, ctx: &Rc<Context>) -> Result<Answer, Problem> {
        let data = ctx.plane()?;
        let topic = ctx.find_topic(&self.key.topic, data.backend.makes_topics()).await?;
        let replicas = ctx.config.borrow().topics.replicas;
        let partitions = topic.partitions.get();
        let mut status = 200;
        for queue in [Queue::Retry, Queue::Dead] {
            let name = queue.topic(&self.key.topic, &self.key.group_id);
            match data.backend.create_topic(&name, partitions, replicas).await {
                Ok(()) => status = 201,
                Err(AdminError::Exists) => {}
                Err(error) => return Err(reply::admin_failed(error)),
            }
        }
        // This core knows them from now on; the others when they are asked.
        ctx.refresh_topics(data).await?;
        Ok(Answer::ok(status))
    }
}

/// Moves what is dead back to the retry queue.
#[derive(Debug)]
pub struct Redrive {
    /// The group on its dead queue.
    pub key: GroupKey,
    retry: Arc<str>,
}

impl Redrive {
    pub fn plan(head: &Head<'_>, reader: &str, parts: [&[u8]; 3], group: &[u8]) -> Result<Self, Problem> {
        let (topic, group_id) = (call::topic(parts)?, call::group_id(reader, group)?);
        Query::parse(head.query, &[])?;
        let retry = Arc::from(Queue::Retry.topic(&topic, &group_id));
        Ok(Self { key: call::key(topic, group_id, Some(Queue::Dead)), retry })
    }

    pub async fn run(self, ctx: &Rc<Context>) -> Result<Answer, Problem> {
        let dead = bury::shadow_topic(ctx, &self.key.topic).await?;
        bury::shadow_topic(ctx, &self.retry).await?;
        let by = Instant::now() + REDRIVE_WITHIN;
        let (mut moved, mut wait) = (0_u64, FIRST_WAIT);
        while Instant::now() < by {
            let spec = FetchSpec {
                messages_max: STEP_MESSAGES,
                bytes_max: limits::BATCH_BYTES_MAX,
                wait,
                linger: Duration::ZERO,
                filter: None,
                lease: Some(LeaseSpec::of(STEP_LEASE)),
                client: None,
                with_ends: false,
                waited: Duration::ZERO,
            };
            let partitions = dead.partitions.get();
            let request = FetchRequest { partitions, reset: Reset::Oldest, spec, is_from_peer: false, ticket: 0 };
            let mut lease = home::fetch(ctx, &self.key, &request).await?;
            let messages = lease.take_messages().messages;
            // Held, whatever becomes of this request.
            lease.settle(Outcome::Delivered);
            if messages.is_empty() {
                return Ok(Answer::json(200, &json!({ "ok": 1, "moved": moved, "done": true })));
            }
            for message in messages {
                if Instant::now() >= by {
                    // The rest comes again when its lease ends.
                    break;
                }
                let (partition, offset) = (message.partition, message.offset);
                let at = BuryAt { partition, offset, queue: Arc::clone(&self.retry), body: None, delay: None };
                if home::each(ctx, &self.key, Op::Bury(at)).await? != [Acked::Done] {
                    // Its lease has ended. A later one's burial would acknowledge it, as processed before: all of them come again.
                    break;
                }
                moved += 1;
            }
            wait = NEXT_WAIT;
        }
        Ok(Answer::json(200, &json!({ "ok": 1, "moved": moved, "done": false })))
    }
}

const _: () = assert!(STEP_LEASE.as_secs() < ack::LEASE_MAX.as_secs());
