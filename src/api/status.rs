//! What a core says about itself when asked, and how the answers of all cores become one document.

use std::{
    rc::Rc,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use futures_channel::oneshot;
use serde_json::{Value, json};

use super::{backend::ClientCounter, context::Context, frame::Frame, top};
use crate::{
    config::Config,
    limits,
    mesh::ShardId,
    metrics::{Histogram, HistogramSnapshot, ShardMetrics, SizesSnapshot, process::ProcessSize, session::SESSION},
    store::{GroupStatus, Store},
};

/// How long a core has to answer before it is named as silent.
const ANSWER_WITHIN: Duration = Duration::from_millis(500);

/// One core's answer.
#[derive(Clone, Debug, Default)]
pub struct ShardStatus {
    pub topics: usize,
    pub groups: Vec<GroupStatus>,
    pub reachable: bool,
    pub queued_messages: u64,
    pub queued_bytes: u64,
    pub clients: Vec<ClientCounter>,
    pub batches: SizesSnapshot,
}

/// This core's status; what it answers to [`Frame::Status`].
pub fn here(ctx: &Context) -> ShardStatus {
    let Some(data) = &ctx.data else { return ShardStatus::default() };
    let (queued_messages, queued_bytes) = data.backend.queued();
    ShardStatus {
        topics: data.topics.len(),
        groups: data.groups.status(),
        reachable: data.backend.is_reachable(),
        queued_messages,
        queued_bytes,
        clients: data.backend.counters(),
        batches: data.backend.batch_sizes(),
    }
}

/// Every core's status.
pub async fn gather(ctx: &Context) -> Vec<(ShardId, Option<ShardStatus>)> {
    ask(ctx, |answer| Frame::Status { answer }).await
}

/// Asks every core at once; a core that does not answer in time is `None`.
pub async fn ask<T>(ctx: &Context, question: impl Fn(oneshot::Sender<T>) -> Frame) -> Vec<(ShardId, Option<T>)> {
    let asked: Vec<_> = ctx
        .mesh
        .shard_ids()
        .map(|shard| {
            let (answer, answered) = oneshot::channel();
            let sent = ctx.mesh.send(shard, question(answer));
            (shard, sent.is_ok().then_some(answered))
        })
        .collect();
    let mut deadline = std::pin::pin!(glommio::timer::sleep(ANSWER_WITHIN));
    let mut late = false;
    let mut gathered = Vec::with_capacity(asked.len());
    for (shard, answered) in asked {
        let status = match answered {
            // After the deadline only what is already there counts.
            Some(mut answered) if late => answered.try_recv().ok().flatten(),
            Some(answered) => {
                let timeout = async {
                    deadline.as_mut().await;
                    late = true;
                    None
                };
                futures_lite::future::or(async { answered.await.ok() }, timeout).await
            }
            None => None,
        };
        gathered.push((shard, status));
    }
    gathered
}

/// `GET /v1/status`.
pub async fn document(ctx: &Rc<Context>) -> Value {
    let gathered = gather(ctx).await;
    let silent: Vec<usize> = gathered.iter().filter(|(_, status)| status.is_none()).map(|(s, _)| s.0).collect();
    let shards: Vec<Value> = gathered.iter().map(|(shard, status)| shard_json(ctx, *shard, status.as_ref())).collect();
    let mut totals = serde_json::Map::new();
    for metrics in ctx.all_metrics.iter() {
        add_cells(&mut totals, metrics);
    }
    let groups: Vec<Value> = gathered
        .iter()
        .filter_map(|(s, status)| Some((s, status.as_ref()?)))
        .flat_map(|(s, st)| groups_json(*s, st))
        .collect();
    let groups_open = groups.len();
    let config = ctx.config();
    json!({
        "build": { "name": env!("CARGO_PKG_NAME"), "version": env!("CARGO_PKG_VERSION") },
        "gateway": config.gateway.id,
        "uptime_s": ctx.started.elapsed().as_secs(),
        "drain": format!("{:?}", ctx.drain_phase()).to_lowercase(),
        "listeners": listeners_json(ctx),
        "store": format!("{:?}", config.store).to_lowercase(),
        "shards": shards,
        "silent_shards": silent,
        "totals": totals,
        "groups": groups,
        "skew": { "connections": connection_skew(ctx), "messages": ctx.recent.borrow().message_skew },
        "top": top::document(ctx).await,
        "process": process_json(ctx, groups_open),
        "zookeeper": zookeeper_json(&config),
        "offload": { "queued": ctx.offload.queued(), "refused_total": ctx.offload.refused_total() },
        "limits": limits_json(ctx),
    })
}

/// Where the gateway listens, by the names of its line `ready`.
fn listeners_json(ctx: &Context) -> Value {
    let bound = &ctx.config.borrow().gateway.bound;
    Value::Object(bound.iter().map(|(name, addr)| ((*name).to_owned(), addr.to_string().into())).collect())
}

/// Adds a core's cells; those that differ in a label only are one number here.
fn add_cells(numbers: &mut serde_json::Map<String, Value>, metrics: &ShardMetrics) {
    for cell in metrics.cells.list() {
        let sum = numbers.get(cell.name).and_then(Value::as_u64).unwrap_or(0) + cell.value;
        numbers.insert(cell.name.to_owned(), sum.into());
    }
}

fn shard_json(ctx: &Context, shard: ShardId, status: Option<&ShardStatus>) -> Value {
    let counters = ctx.all_metrics.get(shard.0).map(|metrics| {
        let mut counters = serde_json::Map::new();
        add_cells(&mut counters, metrics);
        counters
    });
    json!({
        "shard": shard.0,
        "answered": status.is_some(),
        "counters": counters,
        "stalls": ctx.all_metrics.get(shard.0).map(|m| m.stalls.get()),
        "busy_share": ctx.recent.borrow().busy.get(shard.0),
        "loop_delay_us": ctx.all_metrics.get(shard.0).map(|m| quantiles(&m.loop_delay)),
        "stages_us": ctx.all_metrics.get(shard.0).map(|m| stages(m)),
        "batch_records_mean": status.map(|s| s.batches.mean()),
        "mesh_refused": ctx.mesh.refused_total(shard),
        "mesh_waiting": ctx.mesh.waiting(shard),
        "topics": status.map(|s| s.topics),
        "groups": status.map(|s| s.groups.len()),
        "leases": status.map(leases),
        "cluster_reachable": status.map(|s| s.reachable),
        "producer_queue_messages": status.map(|s| s.queued_messages),
        "producer_queue_bytes": status.map(|s| s.queued_bytes),
        "kafka": status.map(|s| s.clients.iter().map(|(name, _, _, value)| ((*name).to_owned(), Value::from(*value))).collect::<serde_json::Map<_, _>>()),
    })
}

/// Threads and memory, and what an open group takes of them: what the process has beyond its start, by the groups there are.
fn process_json(ctx: &Context, groups: usize) -> Value {
    let (now, before) = (ProcessSize::here(), ctx.size_at_start);
    let per_group = |now: u64, before: u64| now.saturating_sub(before).checked_div(groups as u64);
    json!({
        "threads": now.threads,
        "resident_bytes": now.resident_bytes,
        "threads_per_group": per_group(now.threads, before.threads),
        "resident_bytes_per_group": per_group(now.resident_bytes, before.resident_bytes),
    })
}

/// The gateway's presence in ZooKeeper.
fn zookeeper_json(config: &Config) -> Value {
    let number = |cell: &AtomicU64| cell.load(Ordering::Relaxed);
    json!({
        "state": SESSION.presence().name(),
        "connected": SESSION.is_connected(),
        "zone": config.zookeeper.zone,
        "sessions_total": number(&SESSION.sessions),
        "registrations_total": number(&SESSION.registrations),
        "replaced_total": number(&SESSION.replaced),
        "taken_total": number(&SESSION.taken),
    })
}

/// How far the largest is over the mean: 1 when all are alike, the number of cores when one has it all.
#[allow(clippy::cast_precision_loss)] // A ratio needs no more than 52 bits.
pub fn skew(counts: &[u64]) -> f64 {
    let (max, sum) = (counts.iter().max().copied().unwrap_or(0), counts.iter().sum::<u64>());
    if sum == 0 { 1.0 } else { max as f64 * counts.len() as f64 / sum as f64 }
}

pub fn connection_skew(ctx: &Context) -> f64 {
    let connections: Vec<u64> = ctx.all_metrics.iter().map(|m| m.cells.connections.get()).collect();
    skew(&connections)
}

/// Since the start, rounded up to a bound of the histogram; `null`: nothing yet, or over the last bound.
fn quantiles(histogram: &Histogram) -> Value {
    let snapshot = HistogramSnapshot::of(histogram);
    json!({ "p50": snapshot.quantile_us(0.5), "p99": snapshot.quantile_us(0.99), "p999": snapshot.quantile_us(0.999) })
}

fn stages(metrics: &ShardMetrics) -> Value {
    let stages = metrics.pub_stages.list().map(|(stage, histogram)| (stage.to_owned(), quantiles(histogram)));
    Value::Object(stages.into_iter().collect())
}

fn leases(status: &ShardStatus) -> usize {
    status.groups.iter().flat_map(|g| &g.partitions).map(|p| p.leased + p.returned).sum()
}

fn groups_json(shard: ShardId, status: &ShardStatus) -> Vec<Value> {
    let rows = status.groups.iter().map(|group| {
        let partitions: Vec<Value> = group
            .partitions
            .iter()
            .map(|p| {
                json!({
                    "partition": p.partition,
                    "committed": p.end,
                    "latest": p.latest,
                    "lag": (p.latest >= 0).then(|| (p.latest - p.end).max(0)),
                    "ready": p.ready,
                    "leased": p.leased,
                    "returned": p.returned,
                    "held_bytes": p.bytes,
                    "delivered_s_ago": p.delivered_s_ago,
                })
            })
            .collect();
        json!({
            "shard": shard.0,
            "topic": group.topic,
            "group": group.group_id,
            "assigned": group.assigned,
            "waiting": group.waiting,
            "delivered": group.delivered,
            "partitions": partitions,
        })
    });
    rows.collect()
}

fn limits_json(ctx: &Context) -> Value {
    let config = ctx.config();
    json!({
        "head_bytes_max": config.http.head_bytes_max,
        "target_bytes_max": config.http.target_bytes_max,
        "message_bytes_max": config.publish.message_bytes_max,
        "key_bytes_max": limits::KEY_BYTES_MAX,
        "tag_bytes_max": limits::TAG_BYTES_MAX,
        "batch_messages_max": limits::BATCH_MESSAGES_MAX,
        "batch_bytes_max": config.subscribe.batch_bytes_max,
        "publish_batch_messages_max": config.publish.batch_messages_max,
        "publish_batch_bytes_max": config.publish.batch_bytes_max,
        "inflight_max_per_shard": config.publish.inflight_max,
        "connections_max_per_shard": config.http.connections_max,
        "requests_max_per_connection": config.http.max_requests,
        "connection_age_s_max": config.http.max_age.map(|age| age.as_secs()),
        "groups_max": config.subscribe.groups_max,
        "held_bytes_max_per_shard": config.subscribe.memory_bytes_max,
        "leases_max_per_partition": config.subscribe.leases_max,
    })
}
