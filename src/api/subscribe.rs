//! `GET /v1/msgs/:appid/:topic/:ver`: messages of a group, one or a batch, waiting if there are none.
//!
//! The group lives on the core its name hashes to. On that core the read is direct; on any other it goes by message and the
//! payloads come back refcounted. Either way the messages are settled by what became of the answer: delivered when its last
//! byte was taken by the kernel, given back when the client had gone.

use std::{rc::Rc, sync::Arc, time::Duration};

use futures_channel::oneshot;

use super::{
    codes,
    context::Context,
    format::{self, BatchBody, Format},
    frame::{DrainPhase, FetchRequest, Frame, GroupKey, RemoteLease},
    query::{Query, invalid},
    reply::{self, Problem, Stamp},
};
use crate::{
    limits,
    mesh::ShardId,
    proto::{Body, Head, Reply, Sent},
    registry::names,
    store::{Begin, Delivery, FetchSpec, Group, Reset, TagFilter, Topic},
};

/// The parameters of the route.
pub const PARAMETERS: &[&str] =
    &["group", "batch", "wait", "reset", "linger", "ack", "lease", "max_deliveries", "q", "stream"];
/// Of these, what this version does not do yet.
const NOT_BUILT: [&str; 5] = ["ack", "lease", "max_deliveries", "q", "stream"];

const LINGER_DEFAULT: Duration = Duration::from_millis(5);
const LINGER_MAX: Duration = Duration::from_secs(1);
/// What the home core gets on top of the wait before it counts as silent.
const MESH_GRACE: Duration = Duration::from_secs(5);

/// A read whose head was found good.
#[derive(Debug)]
pub struct Subscribe {
    key: GroupKey,
    reset: Reset,
    spec: FetchSpec,
    format: Format,
}

/// What a read gave and who is to be told what became of it.
enum Lease {
    Local { group: Rc<Group>, delivery: Delivery },
    Remote(RemoteLease),
}

impl Lease {
    /// The messages, to be written; the grants stay, to be settled.
    fn take_messages(&mut self) -> Delivery {
        let delivery = match self {
            Self::Local { delivery, .. } => delivery,
            Self::Remote(remote) => &mut remote.delivery,
        };
        let grants = std::mem::take(&mut delivery.grants);
        let taken = std::mem::take(delivery);
        delivery.grants = grants;
        taken
    }
}

impl Subscribe {
    pub fn plan(ctx: &Rc<Context>, head: &Head<'_>, reader: &str, parts: [&[u8]; 3]) -> Result<Self, Problem> {
        let owner = super::admit::name("appid", parts[0])?;
        let (topic, ver) = super::admit::topic_names(parts[1], parts[2])?;
        let query = Query::parse(head.query, PARAMETERS)?;
        if let Some(name) = NOT_BUILT.iter().find(|name| query.get(name).is_some_and(|v| v != b"0" && !v.is_empty())) {
            return Err(Problem::new(&codes::NOT_SUPPORTED, format!("{name}= is not built yet in this version")));
        }
        let group = query.get("group").ok_or_else(|| Problem::new(&codes::MISSING_PARAMETER, "group= is required"))?;
        let group = super::admit::name("group", group)?;
        let batch_max = i64::try_from(limits::BATCH_MESSAGES_MAX).unwrap_or(i64::MAX);
        let batch = query.number("batch", 1..=batch_max)?.unwrap_or(1);
        let wait_max = Duration::from_secs(limits::WAIT_S_MAX);
        let reset = match query.get("reset") {
            None | Some(b"oldest") => Reset::Oldest,
            Some(b"newest") => Reset::Newest,
            Some(other) => return Err(invalid("reset", other, "oldest or newest")),
        };
        if head.field("x-tag-expr").is_some() {
            return Err(Problem::new(&codes::NOT_SUPPORTED, "X-Tag-Expr is not built yet in this version"));
        }
        let tag = head.field("x-tag");
        if tag.is_some_and(|t| t.len() > limits::TAG_BYTES_MAX) {
            return Err(Problem::new(&codes::TAG_TOO_LONG, "X-Tag is over its limit"));
        }
        let spec = FetchSpec {
            messages_max: usize::try_from(batch).unwrap_or(1),
            bytes_max: ctx.config.borrow().subscribe.batch_bytes_max,
            wait: query.duration("wait", wait_max)?.unwrap_or(wait_max),
            linger: query.duration("linger", LINGER_MAX)?.unwrap_or(LINGER_DEFAULT),
            filter: tag.and_then(TagFilter::parse),
        };
        let key = GroupKey {
            topic: names::with_kafka_topic(owner, topic, ver, |name| Arc::from(name)),
            group_id: names::with_kafka_group(reader, group, |name| Arc::from(name)),
        };
        let format = match Format::by_accept(head.field("accept")) {
            Some(format) => format,
            // One message is given as it is, whatever the client accepts.
            None if batch == 1 => Format::Frames,
            None => {
                return Err(Problem::new(&codes::NOT_SUPPORTED, "text/event-stream is not built yet in this version"));
            }
        };
        Ok(Self { key, reset, spec, format })
    }

    /// The core the group lives on.
    pub fn home(&self, ctx: &Context) -> ShardId {
        ctx.mesh.home(home_hash(&self.key.topic, &self.key.group_id))
    }

    pub async fn run(self, ctx: &Rc<Context>, stamp: &Stamp) -> Result<Reply, Problem> {
        let home = self.home(ctx);
        let topic = ctx.find_topic(&self.key.topic, false).await?;
        let is_single = self.spec.messages_max == 1;
        let group_id = Arc::clone(&self.key.group_id);
        let request =
            FetchRequest { key: self.key, partitions: topic.partitions.get(), reset: self.reset, spec: self.spec };
        let lease = if home == ctx.shard {
            fetch_here(ctx, &request).await.map(|(group, delivery)| Lease::Local { group, delivery })
        } else {
            ctx.metrics.cells.sub_forwarded.add(1);
            let remote = fetch_there(ctx, home, request).await?;
            if let Some(data) = ctx.data.as_ref().filter(|_| remote.partitions != topic.partitions.get()) {
                ctx.agree(data);
            }
            Ok(Lease::Remote(remote))
        }?;
        let settlement = Settlement { lease: Some(lease), ctx: Rc::clone(ctx), topic, group_id, messages: 0, bytes: 0 };
        Ok(answer(settlement, is_single, self.format, stamp))
    }
}

/// The same on every core of the process: fixed seeds.
fn home_hash(topic_name: &str, group_id: &str) -> u64 {
    ahash::RandomState::with_seeds(1, 2, 3, 4).hash_one((topic_name, group_id))
}

/// Reads on this core, the group's home.
pub async fn fetch_here(ctx: &Rc<Context>, request: &FetchRequest) -> Result<(Rc<Group>, Delivery), Problem> {
    let data = ctx.data.as_ref().ok_or_else(reply::unknown_topic)?;
    let (groups_max, waiters_max) = {
        let config = ctx.config.borrow();
        (config.subscribe.groups_max.div_ceil(ctx.mesh.shards()), config.subscribe.waiters_max)
    };
    if ctx.drain_phase() == DrainPhase::Closing {
        let group = Group::new(&request.key.topic, &request.key.group_id, 0);
        return Ok((group, Delivery::default()));
    }
    let known = data.topics.get(&request.key.topic).map_or(request.partitions, |topic| topic.partitions.get());
    let begin = Begin { reset: request.reset, partitions: known.min(request.partitions) };
    let topic = data
        .topics
        .put_at_least(&request.key.topic, request.partitions)
        .ok_or_else(|| Problem::new(&codes::CORE_BUSY, "this core knows as many topics as it takes"))?;
    if known != request.partitions {
        ctx.agree(data);
    }
    let group = data.groups.get_or_open(&data.backend, &topic, request, begin, groups_max)?;
    if group.fetching() >= waiters_max {
        let detail = format!("{waiters_max} clients read this group");
        return Err(Problem::new(&codes::TOO_MANY_READERS, detail));
    }
    let delivery = group.fetch(&request.spec).await.map_err(reply::fetch_failed)?;
    Ok((group, delivery))
}

/// Reads on another core. A home that stays silent past the wait is an error, never a hang.
async fn fetch_there(ctx: &Rc<Context>, home: ShardId, request: FetchRequest) -> Result<RemoteLease, Problem> {
    let patience = request.spec.wait + request.spec.linger + MESH_GRACE;
    let (answer, answered) = oneshot::channel();
    ctx.mesh
        .send(home, Frame::Fetch { request, answer })
        .map_err(|_| Problem::new(&codes::CORE_BUSY, format!("the inbox of core {} is full", home.0)))?;
    let silent = || Problem::new(&codes::CORE_BUSY, format!("core {} did not answer", home.0));
    let timeout = async {
        glommio::timer::sleep(patience).await;
        Err(silent())
    };
    futures_lite::future::or(async { answered.await.unwrap_or_else(|_| Err(silent())) }, timeout).await
}

fn answer(mut settlement: Settlement, is_single: bool, format: Format, stamp: &Stamp) -> Reply {
    let delivery = settlement.lease.as_mut().map(Lease::take_messages).unwrap_or_default();
    let filtered = delivery.filtered;
    settlement.ctx.metrics.cells.sub_filtered.add(filtered);
    let Some(first) = delivery.messages.first() else {
        // An empty lease settles nothing.
        settlement.lease = None;
        return with_filtered(Reply::new(204).field("X-Request-Id", &stamp.request_id), filtered);
    };
    settlement.bytes = delivery.messages.iter().map(|m| m.value.len() as u64).sum();
    settlement.messages = delivery.messages.len() as u64;
    let reply = if is_single {
        format::single(&delivery, first, &stamp.request_id)
    } else {
        let mut reply = Reply::new(200)
            .field("X-Request-Id", &stamp.request_id)
            .field("Content-Type", format.content_type().as_bytes());
        reply.body = Body::Source(Box::new(BatchBody::new(format, delivery)));
        reply
    };
    let mut reply = with_filtered(reply, filtered);
    reply.on_sent = Some(Box::new(settlement));
    reply
}

fn with_filtered(reply: Reply, filtered: u64) -> Reply {
    if filtered == 0 {
        return reply;
    }
    reply.number("X-Filtered", i64::try_from(filtered).unwrap_or(i64::MAX))
}

/// Settles a lease by what becomes of its answer.
struct Settlement {
    lease: Option<Lease>,
    ctx: Rc<Context>,
    topic: Rc<Topic>,
    group_id: Arc<str>,
    messages: u64,
    bytes: u64,
}

impl Settlement {
    fn count(&self) {
        self.ctx.metrics.cells.sub_messages.add(self.messages);
        self.ctx.metrics.cells.sub_bytes.add(self.bytes);
        self.topic.usage.read.add(self.messages, self.bytes);
        if let Some(data) = &self.ctx.data {
            let reader = names::reader_of(&self.group_id);
            data.readers.messages.add(reader, self.messages);
            data.readers.bytes.add(reader, self.bytes);
        }
    }
}

impl Sent for Settlement {
    fn sent(mut self: Box<Self>) {
        self.count();
        match self.lease.take() {
            Some(Lease::Local { group, delivery }) => {
                group.ack(&delivery.grants);
            }
            Some(Lease::Remote(remote)) => remote.delivered(),
            None => {}
        }
    }
}

impl Drop for Settlement {
    fn drop(&mut self) {
        match self.lease.take() {
            Some(Lease::Local { group, delivery }) => {
                self.ctx.metrics.cells.sub_given_back.add(1);
                group.give_back(&delivery.grants);
            }
            // Dropping it gives it back.
            Some(Lease::Remote(_)) => self.ctx.metrics.cells.sub_given_back.add(1),
            None => {}
        }
    }
}

/// What this core does for a frame that asks for a read. A client that has gone cancels the wait.
pub async fn serve_fetch(
    ctx: Rc<Context>,
    request: FetchRequest,
    mut answer: oneshot::Sender<Result<RemoteLease, Problem>>,
) {
    let key = request.key.clone();
    let fetched = {
        let fetch = fetch_here(&ctx, &request);
        let fetch = async { Some(fetch.await) };
        let gone = async {
            answer.cancellation().await;
            None
        };
        futures_lite::future::or(fetch, gone).await
    };
    let Some(fetched) = fetched else { return };
    let topic = ctx.data.as_ref().and_then(|data| data.topics.get(&key.topic));
    let partitions = topic.map_or(0, |topic| topic.partitions.get());
    let leased = fetched.map(|(_, delivery)| RemoteLease::new(delivery, partitions, key, ctx.shard, ctx.mesh.clone()));
    // An asker that has gone drops the lease, which gives it back.
    let _ = answer.send(leased);
}
