//! A group's home: the core where its consumer, its leases and its waiting line are. What is asked of it comes by a call on that core,
//! by a frame from another, or from another gateway.
//!
//! Invariants: only the home touches a group; a home that stays silent past the wait is an error for who asked, never a hang; what is
//! owned by another gateway is asked of that one, once ([`super::elsewhere`]). Per core.

use std::{rc::Rc, time::Duration};

use futures_channel::oneshot;

use super::{
    act, codes,
    context::Context,
    elsewhere,
    frame::{Done, DrainPhase, FetchRequest, Frame, GroupKey, Op, Origin, Reader, RemoteLease},
    owners,
    reply::{self, Problem},
};
use crate::{
    mesh::ShardId,
    store::{Acked, Begin, Delivery, Grant, Group, Outcome, Reset, Store},
    within::within,
};

/// What the home core gets on top of what its work may take before it counts as silent.
pub const MESH_GRACE: Duration = Duration::from_secs(5);

/// What a read gave, and who is to be told what became of it.
#[derive(Debug)]
pub enum Lease {
    Nothing,
    Local { group: Rc<Group>, delivery: Delivery },
    Remote(RemoteLease),
}

impl Lease {
    /// The messages, to be written; the grants stay, to be settled.
    pub fn take_messages(&mut self) -> Delivery {
        let Some(delivery) = self.delivery() else { return Delivery::default() };
        let grants = std::mem::take(&mut delivery.grants);
        let taken = std::mem::take(delivery);
        delivery.grants = grants;
        taken
    }

    pub fn delivery(&mut self) -> Option<&mut Delivery> {
        match self {
            Self::Nothing => None,
            Self::Local { delivery, .. } => Some(delivery),
            Self::Remote(remote) => Some(&mut remote.delivery),
        }
    }

    /// Says what became of them.
    pub fn settle(self, outcome: Outcome) {
        match self {
            Self::Local { group, delivery } => group.settle(&delivery.grants, outcome),
            Self::Remote(remote) => remote.settle(outcome),
            Self::Nothing => {}
        }
    }
}

/// The core a group lives on: the same on every core of the process, by fixed seeds.
pub fn of(ctx: &Context, key: &GroupKey) -> ShardId {
    let hash = ahash::RandomState::with_seeds(1, 2, 3, 4).hash_one((&*key.topic, &*key.group_id));
    ctx.mesh.home(hash)
}

// === reading ===

/// Reads a group, wherever it lives.
pub async fn fetch(ctx: &Rc<Context>, key: &GroupKey, request: &FetchRequest) -> Result<Lease, Problem> {
    let home = of(ctx, key);
    if home == ctx.shard {
        return fetch_here(ctx, key, request).await;
    }
    ctx.metrics.cells.sub_forwarded.add(1);
    let (partitions, patience) = (request.partitions, request.spec.wait + request.spec.linger + MESH_GRACE);
    let frame = |answer| Frame::Fetch { key: key.clone(), request: request.clone(), answer };
    let remote: RemoteLease = ask_core(ctx, home, patience, frame).await?;
    if let Some(data) = ctx.data.as_ref().filter(|_| remote.partitions != partitions) {
        ctx.agree(data);
    }
    Ok(Lease::Remote(remote))
}

/// Reads on this core, the group's home.
async fn fetch_here(ctx: &Rc<Context>, key: &GroupKey, request: &FetchRequest) -> Result<Lease, Problem> {
    if ctx.drain_phase() == DrainPhase::Closing {
        return Ok(Lease::Nothing);
    }
    if request.is_from_peer && ctx.plane()?.groups.get(key).is_none() {
        // It was left since who asks has looked: nothing is owned here, and a reader elsewhere is no reason to join again.
        return Ok(Lease::Nothing);
    }
    let group = open(ctx, key, request.reset, request.partitions)?;
    let waiters_max = ctx.config.borrow().subscribe.waiters_max;
    if group.fetching() >= waiters_max {
        let detail = format!("{waiters_max} clients read this group");
        return Err(Problem::new(&codes::TOO_MANY_READERS, detail));
    }
    if !request.is_from_peer && owners::may_ask(ctx) && owners::has_secret(ctx) {
        return elsewhere::fetch(ctx, key, &group, request).await;
    }
    let delivery = group.fetch(&request.spec).await.map_err(reply::fetch_failed)?;
    if delivery.messages.is_empty() && !request.is_from_peer && group.owned() == 0 {
        Box::pin(elsewhere::explain(ctx, key)).await?;
    }
    Ok(Lease::Local { group, delivery })
}

/// `partitions`: of the topic, as whoever asks knows them.
pub fn open(ctx: &Rc<Context>, key: &GroupKey, reset: Reset, partitions: i32) -> Result<Rc<Group>, Problem> {
    let data = ctx.plane()?;
    let groups_max = ctx.config.borrow().subscribe.groups_max.div_ceil(ctx.mesh.shards());
    let known = data.topics.get(&key.topic).map_or(partitions, |topic| topic.partitions.get());
    let begin = Begin { reset, partitions: known.min(partitions) };
    let topic = data
        .topics
        .put_at_least(&key.topic, partitions)
        .ok_or_else(|| Problem::new(&codes::CORE_BUSY, "this core knows as many topics as it takes"))?;
    if known != partitions {
        ctx.agree(data);
    }
    data.groups.get_or_open(&data.backend, &topic, key, begin, groups_max)
}

/// What this core does for a frame that asks for a read. A client that has gone cancels the wait.
pub async fn serve_fetch(
    ctx: Rc<Context>,
    key: GroupKey,
    request: FetchRequest,
    mut answer: oneshot::Sender<Result<RemoteLease, Problem>>,
) {
    let fetched = {
        let fetch = async { Some(fetch_here(&ctx, &key, &request).await) };
        let gone = async {
            answer.cancellation().await;
            None
        };
        futures_lite::future::or(fetch, gone).await
    };
    let Some(fetched) = fetched else { return };
    let topic = ctx.data.as_ref().and_then(|data| data.topics.get(&key.topic));
    let partitions = topic.map_or(0, |topic| topic.partitions.get());
    let leased = fetched.map(|lease| {
        let new = |delivery, origin| RemoteLease::new(delivery, origin, &key, ctx.shard, &ctx.mesh);
        let mut remote = match lease {
            Lease::Nothing => new(Delivery::default(), Origin::Home),
            Lease::Local { delivery, .. } => new(delivery, Origin::Home),
            Lease::Remote(remote) => remote,
        };
        remote.partitions = partitions;
        remote
    });
    // An asker that has gone drops the lease, which gives it back.
    let _ = answer.send(leased);
}

/// What became of messages that were read from here.
pub fn settle(ctx: &Rc<Context>, key: GroupKey, grants: Vec<Grant>, outcome: Outcome, origin: Origin) {
    let Some(data) = &ctx.data else { return };
    match origin {
        Origin::Home => {
            // A group that was left meanwhile has committed what it could; the rest comes again.
            if let Some(group) = data.groups.get(&key) {
                group.settle(&grants, outcome);
            }
        }
        Origin::Peer(addr) => data.peers.settle(ctx, addr, key, grants, outcome),
    }
}

// === everything else that is asked ===

/// Asks a group's home, from whatever core.
pub async fn ask(ctx: &Rc<Context>, key: &GroupKey, op: Op, is_from_peer: bool) -> Result<Done, Problem> {
    let home = of(ctx, key);
    if home == ctx.shard {
        return serve(ctx, key, op, is_from_peer).await;
    }
    let patience = act::patience(ctx, &op) + MESH_GRACE;
    let frame = |answer| Frame::Ask { key: key.clone(), op, is_from_peer, answer };
    ask_core(ctx, home, patience, frame).await
}

/// Has acknowledgements, a burial or moves done. Gives what became of each.
pub async fn each(ctx: &Rc<Context>, key: &GroupKey, op: Op) -> Result<Vec<Acked>, Problem> {
    match ask(ctx, key, op, false).await? {
        Done::Each(done) => Ok(done),
        _ => Err(Problem::new(&codes::INTERNAL, "the group's home answered something else")),
    }
}

/// Acts on this core, the group's home.
pub async fn serve(ctx: &Rc<Context>, key: &GroupKey, op: Op, is_from_peer: bool) -> Result<Done, Problem> {
    let data = ctx.plane()?;
    let group = data.groups.get(key);
    match op {
        Op::Fetch(_) | Op::EndFetch(_) => Err(Problem::new(&codes::INTERNAL, "reads have a frame of their own")),
        Op::Settle { grants, outcome } => {
            if let Some(group) = group {
                group.settle(&grants, outcome);
            }
            Ok(Done::Settled)
        }
        Op::Renew { grants } => {
            if let Some(group) = group {
                group.renew(&grants);
            }
            Ok(Done::Settled)
        }
        Op::Ack(_) | Op::Bury(_) | Op::Move(_) => act::each(ctx, key, &op, is_from_peer).await.map(Done::Each),
        Op::Release => {
            let mut has_readers = release(ctx, key, group).await;
            if !is_from_peer && !has_readers {
                let members = owners::look(ctx, key, Duration::ZERO).await?;
                let others = act::ask_all(ctx, key, &members, &Op::Release).await;
                has_readers = others.iter().any(|done| matches!(done, Done::Released { has_readers: true }));
            }
            Ok(Done::Released { has_readers })
        }
        Op::EndStream(stream) => {
            if let Some(group) = group {
                group.end_stream(stream);
            }
            if !is_from_peer && owners::may_ask(ctx) {
                let members = owners::look(ctx, key, owners::TRUSTED).await?;
                act::ask_all(ctx, key, &members, &Op::EndStream(stream)).await;
            }
            Ok(Done::Settled)
        }
        Op::Filter(filter) => {
            let is_taken = group.is_none_or(|group| group.adopt_filter(filter.as_ref()).is_ok());
            Ok(Done::Filter { is_taken })
        }
        Op::Readers => Ok(Done::Readers(group.map_or_else(Vec::new, |group| readers(ctx, &group)))),
    }
}

/// Leaves a group that nobody reads. Gives whether somebody does.
async fn release(ctx: &Rc<Context>, key: &GroupKey, group: Option<Rc<Group>>) -> bool {
    let (Some(data), Some(group)) = (&ctx.data, group) else { return false };
    if group.idle_since().is_none() {
        return true;
    }
    if let Some(group) = data.groups.take(key) {
        data.backend.close_group(&group).await;
    }
    false
}

fn readers(ctx: &Context, group: &Group) -> Vec<Reader> {
    let status = group.status();
    let gateway = &ctx.config.borrow().gateway.id;
    let rows = status.partitions.iter().map(|part| Reader {
        partition: part.partition,
        end: part.end,
        real_ip: part.last_reader,
        shard: ctx.shard.0,
        gateway: gateway.clone(),
        waiting: group.fetching(),
        leased: part.leased,
        delivered_s_ago: part.delivered_s_ago,
    });
    rows.collect()
}

/// Asks another core. One that stays silent is an error, never a hang.
pub async fn ask_core<T>(
    ctx: &Context,
    core: ShardId,
    patience: Duration,
    frame: impl FnOnce(oneshot::Sender<Result<T, Problem>>) -> Frame,
) -> Result<T, Problem> {
    let (answer, answered) = oneshot::channel();
    ctx.mesh
        .send(core, frame(answer))
        .map_err(|_| Problem::new(&codes::CORE_BUSY, format!("the inbox of core {} is full", core.0)))?;
    let silent = || Problem::new(&codes::CORE_BUSY, format!("core {} did not answer", core.0));
    within(patience, answered).await.and_then(Result::ok).unwrap_or_else(|| Err(silent()))
}

/// Has a core do what only a core with a data plane can.
pub async fn call(ctx: &Context, key: &GroupKey, call: super::call::Call) -> Result<super::call::Answer, Problem> {
    let patience = call.patience() + MESH_GRACE;
    ask_core(ctx, of(ctx, key), patience, |answer| Frame::Call { call, answer }).await
}
