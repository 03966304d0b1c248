//! Management routes: health, status, metrics.
//!
//! `alive` and `livez` say that the process runs; `readyz` says that it is worth sending requests: every core answers, no
//! drain, a cluster is reachable. Numbers are added up here, when asked, and nowhere else.

use std::{
    rc::Rc,
    sync::atomic::{AtomicU64, Ordering},
};

use serde_json::{Value, json};

use super::{
    Route, codes,
    context::Context,
    frame::DrainPhase,
    query::Query,
    reply::{Problem, Stamp},
    status,
};
use crate::{
    metrics::{
        export::{Sample, Scrape},
        session::{Presence, SESSION},
    },
    proto::{Head, Reply, tls},
};

/// Rows of the per-group lag series; more groups are added up under `other`.
const LAG_SERIES_MAX: usize = 200;

/// A management request whose head was found good.
#[derive(Clone, Copy, Debug)]
pub struct Manage {
    route: Route,
    verbose: bool,
}

impl Manage {
    pub fn plan(route: Route, head: &Head<'_>) -> Result<Self, Problem> {
        let allowed: &[&str] = if route == Route::Readyz { &["verbose"] } else { &[] };
        let query = Query::parse(head.query, allowed)?;
        Ok(Self { route, verbose: query.get("verbose").is_some() })
    }

    pub async fn run(self, ctx: &Rc<Context>, stamp: &Stamp) -> Result<Reply, Problem> {
        match self.route {
            Route::Status => Ok(json_reply(200, &status::document(ctx).await, stamp)),
            Route::Metrics => metrics(ctx, stamp).await,
            Route::Readyz => ready(ctx, self.verbose, stamp).await,
            _ => Ok(json_reply(200, &json!({ "ok": 1 }), stamp)),
        }
    }
}

fn json_reply(status: u16, document: &Value, stamp: &Stamp) -> Reply {
    Reply::new(status).field("X-Request-Id", &stamp.request_id).body("application/json", document.to_string())
}

async fn ready(ctx: &Rc<Context>, verbose: bool, stamp: &Stamp) -> Result<Reply, Problem> {
    let not_ready = |detail: String| Problem::new(&codes::STARTING, detail);
    if ctx.drain_phase() != DrainPhase::Serving {
        return Err(not_ready("the gateway is draining".to_owned()));
    }
    let gathered = status::gather(ctx).await;
    let silent: Vec<String> = gathered.iter().filter(|(_, s)| s.is_none()).map(|(id, _)| id.0.to_string()).collect();
    if !silent.is_empty() {
        return Err(not_ready(format!("cores without an answer: {}", silent.join(", "))));
    }
    if !gathered.iter().any(|(_, s)| s.as_ref().is_some_and(|s| s.reachable)) {
        return Err(not_ready("no Kafka cluster can be reached".to_owned()));
    }
    let mut document = json!({ "ok": 1 });
    if verbose {
        let shards = gathered.iter().map(|(id, s)| {
            json!({ "shard": id.0, "ready": true, "cluster_reachable": s.as_ref().is_some_and(|s| s.reachable) })
        });
        document["shards"] = shards.collect();
    }
    Ok(json_reply(200, &document, stamp))
}

async fn metrics(ctx: &Rc<Context>, stamp: &Stamp) -> Result<Reply, Problem> {
    let gathered = status::gather(ctx).await;
    let mut samples = vec![Sample {
        name: "kateway_build_info",
        help: "The build; always 1.",
        kind: "gauge",
        labels: vec![("version", env!("CARGO_PKG_VERSION").to_owned())],
        value: 1.0,
    }];
    let gauge = |name, help, shard: usize, value: f64| Sample {
        name,
        help,
        kind: "gauge",
        labels: vec![("shard", shard.to_string())],
        value,
    };
    for (id, status) in &gathered {
        let answered = if status.is_some() { 1.0 } else { 0.0 };
        samples.push(gauge("kateway_shard_answered", "1 when the core answered this scrape.", id.0, answered));
        let refused = float(ctx.mesh.refused_total(*id));
        samples.push(gauge("kateway_mesh_refused", "Frames refused by the core's full inbox.", id.0, refused));
        if let Some(status) = status {
            let groups = float(status.groups.len() as u64);
            samples.push(gauge("kateway_sub_groups", "Reader groups living on the core.", id.0, groups));
            samples.extend(status.clients.iter().map(|(name, kind, help, value)| Sample {
                name,
                help,
                kind,
                labels: vec![("shard", id.0.to_string())],
                value: float(*value),
            }));
        }
    }
    samples.extend(lag_samples(&gathered));
    samples.extend(skew_samples(ctx));
    samples.extend(presence_samples());
    let batches = gathered.into_iter().filter_map(|(id, status)| Some((id.0, status?.batches))).collect();
    let (shards, outcomes) = (ctx.all_metrics.to_vec(), super::outcome_labels());
    let tls_failures = &tls::Failure::NAMES;
    let scrape = Scrape { shards, routes: Route::NAMES, outcomes, tls_failures, samples, batches };
    let text = scrape.text().map_err(|error| Problem::new(&codes::INTERNAL, error.to_string()))?;
    Ok(Reply::new(200).field("X-Request-Id", &stamp.request_id).body("text/plain; version=0.0.4; charset=utf-8", text))
}

/// Lag of every group, the largest first; what is over the bound is one series.
fn lag_samples(gathered: &[(crate::mesh::ShardId, Option<status::ShardStatus>)]) -> Vec<Sample> {
    let groups = gathered.iter().filter_map(|(_, s)| s.as_ref()).flat_map(|s| &s.groups);
    let lag_of = |g: &crate::store::GroupStatus| {
        g.partitions.iter().filter(|p| p.latest >= 0).map(|p| u64::try_from(p.latest - p.end).unwrap_or(0)).sum::<u64>()
    };
    let mut lags: Vec<(&str, &str, u64)> = groups.map(|g| (g.topic.as_str(), g.group_id.as_str(), lag_of(g))).collect();
    lags.sort_by_key(|(_, _, lag)| std::cmp::Reverse(*lag));
    let rest: u64 = lags.iter().skip(LAG_SERIES_MAX).map(|(_, _, lag)| lag).sum();
    let has_rest = lags.len() > LAG_SERIES_MAX;
    lags.truncate(LAG_SERIES_MAX);
    if has_rest {
        lags.push(("other", "other", rest));
    }
    let sample = |(topic, group, lag): (&str, &str, u64)| Sample {
        name: "kateway_sub_lag_messages",
        help: "Messages a group has not committed, over the partitions this gateway owns.",
        kind: "gauge",
        labels: vec![("group", group.to_owned()), ("topic", topic.to_owned())],
        value: float(lag),
    };
    lags.into_iter().map(sample).collect()
}

fn skew_samples(ctx: &Context) -> Vec<Sample> {
    let connections = Some(status::connection_skew(ctx));
    let rows = [("connections", connections), ("messages", ctx.recent.borrow().message_skew)];
    let sample = |(of, value): (&str, Option<f64>)| {
        value.map(|value| Sample {
            name: "kateway_shard_skew_ratio",
            help: "The core with most over the mean of all cores; messages: of the last seconds.",
            kind: "gauge",
            labels: vec![("of", of.to_owned())],
            value,
        })
    };
    rows.into_iter().filter_map(sample).collect()
}

fn presence_samples() -> Vec<Sample> {
    if SESSION.presence() == Presence::Off {
        return Vec::new();
    }
    let sample = |name, help, kind, value| Sample { name, help, kind, labels: Vec::new(), value };
    let is_registered = u64::from(SESSION.presence() == Presence::Registered);
    let number = |cell: &AtomicU64| float(cell.load(Ordering::Relaxed));
    vec![
        sample(
            "kateway_zookeeper_registered",
            "1 while this gateway is entered in ZooKeeper.",
            "gauge",
            float(is_registered),
        ),
        sample(
            "kateway_zookeeper_sessions_total",
            "Sessions begun with ZooKeeper.",
            "counter",
            number(&SESSION.sessions),
        ),
        sample(
            "kateway_zookeeper_registrations_total",
            "Times this gateway entered itself in ZooKeeper.",
            "counter",
            number(&SESSION.registrations),
        ),
        sample(
            "kateway_zookeeper_replaced_total",
            "Sessions given up because a call to ZooKeeper did not return.",
            "counter",
            number(&SESSION.replaced),
        ),
        sample(
            "kateway_zookeeper_taken_total",
            "Times another gateway was found to use this one's id.",
            "counter",
            number(&SESSION.taken),
        ),
    ]
}

#[allow(clippy::cast_precision_loss)] // Prometheus values are floats.
fn float(value: u64) -> f64 {
    value as f64
}
