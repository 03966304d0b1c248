//! `Idempotency-Key`: a message that is sent twice in good faith is stored once (draft-ietf-httpapi-idempotency-key-header).
//!
//! ```text
//!   key in the head --> fingerprint of what is published --ask--> home core of (topic, key)
//!     new:      published in a task of its own; what came of it goes home, then to the client
//!     finished: the first answer again, with Idempotency-Replayed: true        running: 409        other bytes: 422
//! ```
//!
//! What stored nothing for sure is forgotten, so that a repeat runs. What may have been stored (504) is kept like a success: to run it
//! again could store it twice, which is what the key is to prevent. Invariants: at most one publish of a key runs at a time, and its
//! client's going does not end it; a [`Run`], wherever it is dropped, ends; only the home touches what is kept. A gateway keeps keys
//! for itself alone, and a restart forgets them: best effort, as the contract has it.

mod kept;

use std::{panic::AssertUnwindSafe, rc::Rc, sync::Arc, time::Instant};

use bytes::Bytes;
use futures_lite::FutureExt;
use sha2::{Digest, Sha256};

pub use self::kept::{Bounds, Kept};
use super::{
    codes,
    context::Context,
    frame::Frame,
    home,
    publish::{Publish, Timing},
    reply::{Problem, Stamp},
};
use crate::{
    limits,
    mesh::{Mesh, ShardId},
    proto::{Head, Reply},
    store::{Ack, Header},
};

/// Of SHA-256: nobody finds two publishes with the same one.
pub type Fingerprint = [u8; 32];

/// Topic and key, which name one publish.
pub type Name = Arc<[u8]>;

/// As the client chose it.
pub type Key = Box<[u8]>;

/// Says that an answer is the first one's.
const REPLAYED: &str = "Idempotency-Replayed";

/// What came of a publish, as its repeats are told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Stored, handed over, or queued, as asked: the status and the fields that say so.
    Done { status: u16, lines: Box<[u8]> },
    /// Perhaps.
    Unknown { detail: Box<str> },
}

/// What a home says to a publish.
#[derive(Debug)]
pub enum Begun {
    New(Run),
    Running,
    /// The key was used for something else.
    Other,
    Finished(Outcome),
    /// As many run as are kept.
    Full,
}

/// The right to run one publish, and the duty to say what came of it.
#[derive(Debug)]
pub struct Run {
    name: Name,
    home: ShardId,
    mesh: Mesh<Frame>,
    /// What is told if this is dropped; `None`: nothing was stored.
    outcome: Option<Outcome>,
    is_over: bool,
}

/// A publish with a key.
#[derive(Debug)]
pub struct Once {
    key: Key,
    publish: Publish,
}

/// The key of the request, if it is of its form.
pub fn key(head: &Head<'_>, value: &[u8]) -> Result<Key, Problem> {
    if head.fields_named("idempotency-key").count() > 1 {
        return Err(Problem::new(&codes::INVALID_FIELD, "Idempotency-Key is given twice"));
    }
    let is_printable = value.iter().all(|byte| (0x20..=0x7e).contains(byte));
    if value.is_empty() || value.len() > limits::IDEMPOTENCY_KEY_BYTES_MAX || !is_printable {
        let detail = format!("Idempotency-Key is not 1 to {} printable characters", limits::IDEMPOTENCY_KEY_BYTES_MAX);
        return Err(Problem::new(&codes::INVALID_FIELD, detail));
    }
    Ok(value.into())
}

// === impl Once ===

impl Once {
    pub fn new(key: Key, publish: Publish) -> Self {
        Self { key, publish }
    }

    pub fn bytes_max(&self) -> usize {
        self.publish.bytes_max()
    }

    /// Publishes the body unless that was done before, and answers.
    pub async fn run(
        self: Box<Self>,
        ctx: &Rc<Context>,
        body: Bytes,
        stamp: &Stamp,
    ) -> (Result<Reply, Problem>, Option<Timing>) {
        let began = Instant::now();
        let fingerprint = fingerprint(&self.publish, &body);
        let name = [self.publish.topic_name().as_bytes(), b"\0", &self.key].concat().into();
        match begin(ctx, name, fingerprint).await {
            Ok(Begun::New(run)) => self.publish(ctx, run, body, stamp, began).await,
            Ok(seen) => (seen_before(ctx, seen, stamp), None),
            Err(problem) => (Err(problem), None),
        }
    }

    /// In a task of its own: a client that goes leaves its outcome to its repeat.
    async fn publish(
        self: Box<Self>,
        ctx: &Rc<Context>,
        mut run: Run,
        body: Bytes,
        stamp: &Stamp,
        began: Instant,
    ) -> (Result<Reply, Problem>, Option<Timing>) {
        run.outcome = Some(Outcome::Unknown { detail: "the gateway failed".into() });
        let task = {
            let (ctx, stamp) = (Rc::clone(ctx), stamp.clone());
            async move {
                let published =
                    AssertUnwindSafe(self.publish.run_since(began, &ctx, body, &stamp)).catch_unwind().await;
                let Ok((result, timing)) = published else {
                    ctx.metrics.cells.panics.add(1);
                    tracing::error!("a publish with an Idempotency-Key panicked");
                    return None;
                };
                run.outcome = outcome(&result);
                run.finish(&ctx);
                Some((result, timing))
            }
        };
        let published = glommio::spawn_local(task).detach().await.flatten();
        published.unwrap_or_else(|| (Err(Problem::new(&codes::INTERNAL, "the publish failed")), None))
    }
}

/// What is remembered of an answer; `None`: nothing, since nothing was stored.
fn outcome(result: &Result<Reply, Problem>) -> Option<Outcome> {
    match result {
        Ok(reply) => {
            let of_the_request: [&[u8]; 2] = [b"X-Request-Id", b"Content-Type"];
            let said = reply.fields().filter(|(name, _)| !of_the_request.contains(name));
            let lines = said.flat_map(|(name, value)| [name, b": ", value, b"\r\n"]).flatten().copied().collect();
            Some(Outcome::Done { status: reply.status, lines })
        }
        Err(problem) if *problem.code == codes::OUTCOME_UNKNOWN => {
            Some(Outcome::Unknown { detail: problem.detail.as_ref().into() })
        }
        Err(_) => None,
    }
}

/// The answer to a publish that does not run.
fn seen_before(ctx: &Context, seen: Begun, stamp: &Stamp) -> Result<Reply, Problem> {
    let replayed = || ctx.metrics.cells.idempotency_replayed.add(1);
    Err(match seen {
        Begun::Finished(Outcome::Done { status, lines }) => {
            replayed();
            let mut reply = Reply::new(status).field("X-Request-Id", &stamp.request_id).field(REPLAYED, b"true");
            reply.add_lines(&lines);
            return Ok(reply.body("application/json", super::publish::OK_BODY));
        }
        Begun::Finished(Outcome::Unknown { detail }) => {
            replayed();
            let detail = format!("{detail}; a repeat of this key is not run: another key publishes once more");
            Problem::new(&codes::OUTCOME_UNKNOWN, detail)
        }
        Begun::Other => Problem::new(&codes::IDEMPOTENCY_OTHER, "the Idempotency-Key was used for another message"),
        Begun::Full => Problem::new(&codes::CORE_BUSY, "as many publishes with an Idempotency-Key run as are kept"),
        Begun::Running | Begun::New(_) => {
            let mut problem = Problem::new(&codes::IDEMPOTENCY_RUNNING, "the first publish of this key still runs");
            problem.retry_after_s = Some(1);
            problem
        }
    })
}

/// Over all that decides what is stored. Trace context is left out: a client that tries again has a new span.
fn fingerprint(publish: &Publish, body: &[u8]) -> Fingerprint {
    let mut hash = Sha256::new();
    let part = |hash: &mut Sha256, bytes: Option<&[u8]>| {
        hash.update(bytes.map_or(u64::MAX, |bytes| bytes.len() as u64).to_le_bytes());
        hash.update(bytes.unwrap_or_default());
    };
    let ack = match publish.ack {
        Ack::All => 0,
        Ack::Local => 1,
        Ack::None => 2,
    };
    hash.update([ack, u8::from(publish.is_async)]);
    hash.update(publish.record.partition.unwrap_or(-1).to_le_bytes());
    part(&mut hash, publish.record.key.as_deref());
    let is_trace = |(name, _): &&Header| name == "traceparent" || name == "tracestate";
    for (name, value) in publish.record.headers.iter().filter(|header| !is_trace(header)) {
        part(&mut hash, Some(name));
        part(&mut hash, value.as_deref());
    }
    part(&mut hash, Some(body));
    hash.finalize().into()
}

// === impl Run ===

impl Run {
    fn new(ctx: &Context, name: Name) -> Self {
        Self { name, home: ctx.shard, mesh: ctx.mesh.clone(), outcome: None, is_over: false }
    }

    /// Has what came of it known at home before anybody else hears of it.
    fn finish(mut self, ctx: &Context) {
        if self.home == ctx.shard {
            self.is_over = true;
            conclude(ctx, &self.name, self.outcome.take());
        }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if !self.is_over {
            let (name, outcome) = (Arc::clone(&self.name), self.outcome.take());
            self.mesh.settle(self.home, Frame::Conclude { name, outcome });
        }
    }
}

// === at home ===

async fn begin(ctx: &Rc<Context>, name: Name, fingerprint: Fingerprint) -> Result<Begun, Problem> {
    ctx.plane()?;
    let hash = ahash::RandomState::with_seeds(5, 6, 7, 8).hash_one(&name);
    let home = ctx.mesh.home(hash);
    if home == ctx.shard {
        let begun = begin_here(ctx, &name, &fingerprint);
        if !matches!(begun, Begun::Running) {
            return Ok(begun);
        }
        // Its end may be in this core's inbox already; a frame is read after it.
    }
    let patience = ctx.config.borrow().publish.deadline;
    home::ask_core(ctx, home, patience, |answer| Frame::Begin { name, fingerprint, answer }).await
}

/// On the home core: whether the publish may run.
pub fn begin_here(ctx: &Context, name: &Name, fingerprint: &Fingerprint) -> Begun {
    let Some(data) = &ctx.data else { return Begun::Full };
    let begun = {
        let bounds = Bounds::of(&ctx.config.borrow().publish);
        data.kept.begin(name, fingerprint, &bounds, Instant::now())
    };
    note(ctx, &data.kept);
    begun.unwrap_or_else(|| Begun::New(Run::new(ctx, Arc::clone(name))))
}

/// On the home core: what came of a publish; `None`: nothing was stored.
pub fn conclude(ctx: &Context, name: &Name, outcome: Option<Outcome>) {
    let Some(data) = &ctx.data else { return };
    let bounds = Bounds::of(&ctx.config.borrow().publish);
    data.kept.conclude(name, outcome, &bounds, Instant::now());
    note(ctx, &data.kept);
}

/// On the home core, now and then: what is kept long enough goes.
pub fn expire(ctx: &Context) {
    let Some(data) = ctx.data.as_ref().filter(|data| !data.kept.is_empty()) else { return };
    data.kept.expire(ctx.config.borrow().publish.idempotency_window, Instant::now());
    note(ctx, &data.kept);
}

fn note(ctx: &Context, kept: &Kept) {
    let cells = &ctx.metrics.cells;
    cells.idempotency_keys.set(kept.len() as u64);
    cells.idempotency_forgotten.add(kept.take_forgotten());
}
