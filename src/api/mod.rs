//! Routes and meaning: the only place that sees both HTTP and the store.
//!
//! ```text
//!   Head --plan--> Planned (owned: what to do, how much body it takes) --body--> run --> Reply
//! ```
//!
//! Invariants: a plan borrows nothing, so the connection's buffer is free while the body is read; names are checked before any
//! look-up; every request is counted once, by route and code, when its reply is made. Handlers hold no `RefCell` borrow across an
//! await and never block.

pub mod ack;
pub mod act;
pub mod admit;
pub mod backend;
pub mod batch;
pub mod bury;
pub mod call;
pub mod codes;
pub mod context;
pub mod cors;
pub mod elsewhere;
pub mod format;
pub mod forwarded;
pub mod frame;
pub mod groups;
pub mod home;
pub mod idempotency;
pub mod manage;
pub mod origin;
pub mod owners;
pub mod peer;
pub mod positions;
pub mod profile;
pub mod publish;
pub mod query;
pub mod readers;
pub mod reply;
pub mod resume;
mod route;
pub mod seal;
pub mod shadow;
pub mod status;
pub mod stream;
pub mod subscribe;
pub mod top;
pub mod ws;

use std::{net::IpAddr, rc::Rc, time::Instant};

use bytes::Bytes;
use smallvec::SmallVec;

use self::{
    batch::Batch,
    call::Call,
    codes::Code,
    context::Context,
    cors::{Options, Origin},
    frame::DrainPhase,
    idempotency::{Key, Once},
    manage::Manage,
    publish::{Publish, Timing},
    reply::{Problem, Stamp},
    subscribe::Subscribe,
};
use crate::{
    config::resolve::Roles,
    limits,
    mesh::ShardId,
    metrics,
    proto::{
        Head, Malformed, Method, Pieces, Reply,
        compress::{self, Coding, Inflated},
        tls,
    },
};

/// Success statuses, counted before the codes.
const SUCCESSES: [u16; 6] = [200, 201, 202, 204, 207, 101];

const _: () = assert!(SUCCESSES.len() + codes::TABLE.len() <= metrics::OUTCOMES_MAX);
const _: () = assert!(Route::NAMES.len() <= metrics::ROUTES_MAX);
const _: () = assert!(tls::Failure::NAMES.len() == metrics::TLS_FAILURES);

/// The route table's rows; the discriminant is the row of the request matrix.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Route {
    Unknown,
    Publish,
    Subscribe,
    Alive,
    Livez,
    Readyz,
    Status,
    Metrics,
    Profile,
    Peer,
    Offsets,
    Bury,
    Shadow,
    Redrive,
    Position,
    Forget,
    Peek,
    Readers,
    WsPublish,
    WsSubscribe,
    WsEcho,
}

impl Route {
    /// Names as metrics show them, in order of the discriminant.
    pub const NAMES: &'static [&'static str] = &[
        "unknown",
        "publish",
        "subscribe",
        "alive",
        "livez",
        "readyz",
        "status",
        "metrics",
        "profile",
        "peer",
        "offsets",
        "bury",
        "shadow",
        "redrive",
        "position",
        "forget",
        "peek",
        "readers",
        "ws_publish",
        "ws_subscribe",
        "ws_echo",
    ];
}

/// Label values of the request matrix's columns.
pub fn outcome_labels() -> Vec<String> {
    let successes = SUCCESSES.iter().map(u16::to_string);
    successes.chain(codes::TABLE.iter().map(|code| code.number.to_string())).collect()
}

fn outcome_of(status: u16) -> usize {
    SUCCESSES.iter().position(|s| *s == status).unwrap_or(0)
}

fn outcome_of_code(code: &Code) -> usize {
    SUCCESSES.len() + code.index
}

/// What is to be done for one request.
#[derive(Debug)]
enum Action {
    Refuse(Problem),
    Options(Box<Options>),
    Publish(Publish),
    Batch(Box<Batch>),
    /// A publish whose body is compressed.
    Inflate(Box<(Publish, Option<Key>, Coding)>),
    /// With an `Idempotency-Key`.
    Once(Box<Once>),
    /// On the heap, as what is rarer still: a plan moves several times, and every publish would move the room for the largest.
    Subscribe(Box<Subscribe>),
    Manage(Manage),
    Profile(profile::Asked),
    Call(Box<Call>),
    Peer(peer::Asked),
    Ws(Box<ws::Asked>),
}

/// How a request came.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    pub roles: Roles,
    pub client: Option<IpAddr>,
}

/// A request whose head was understood. Owns everything it needs.
#[derive(Debug)]
pub struct Planned {
    route: Route,
    stamp: Stamp,
    started: Instant,
    extras: Option<Box<Extras>>,
    action: Action,
}

/// What few requests want of their answers.
#[derive(Debug)]
struct Extras {
    traced: bool,
    origin: Option<Origin>,
}

impl Extras {
    fn of(ctx: &Context, head: &Head<'_>) -> Option<Box<Self>> {
        let traced = head.field("x-trace").is_some_and(|v| v.eq_ignore_ascii_case(b"true"));
        let origin = Origin::of(ctx, head);
        (traced || origin.is_some()).then(|| Box::new(Self { traced, origin }))
    }
}

/// Reads the head, decides what is to be done. Everything that can be refused without the body is refused here.
/// `started` is when the head's first byte was there.
pub fn plan(ctx: &Rc<Context>, head: &Head<'_>, arrival: Arrival, started: Instant) -> Planned {
    let stamp = Stamp { request_id: request_id(ctx, head), path: SmallVec::from_slice(head.path) };
    let (route, action) = route::route(ctx, head, arrival, &stamp);
    let action = action.or_else(|problem| options(ctx, head, problem)).unwrap_or_else(Action::Refuse);
    Planned { route, stamp, started, extras: Extras::of(ctx, head), action }
}

/// The plan for a head that was read but breaks a limit: it is refused.
pub fn plan_malformed(ctx: &Rc<Context>, head: &Head<'_>, cause: Malformed) -> Planned {
    let stamp =
        Stamp { request_id: ctx.request_id(), path: SmallVec::from_slice(&head.path[..head.path.len().min(64)]) };
    let problem = reply::malformed(cause).unwrap_or_else(|| Problem::new(&codes::MALFORMED, "the request was cut"));
    let (route, action) = (Route::Unknown, Action::Refuse(problem));
    Planned { route, stamp, started: Instant::now(), extras: None, action }
}

fn request_id(ctx: &Context, head: &Head<'_>) -> SmallVec<[u8; 32]> {
    let is_clean = |id: &&[u8]| {
        (1..=limits::REQUEST_ID_BYTES_MAX).contains(&id.len()) && id.iter().all(|b| (0x21..=0x7e).contains(b))
    };
    head.field("x-request-id").filter(is_clean).map_or_else(|| ctx.request_id(), SmallVec::from_slice)
}

/// OPTIONS, which every route answers: it takes none of a route's methods, and is told which those are.
fn options(ctx: &Context, head: &Head<'_>, problem: Problem) -> Result<Action, Problem> {
    match problem.allow {
        Some(methods) if head.method == Method::Options => {
            Options::plan(ctx, head, methods).map(|options| Action::Options(Box::new(options)))
        }
        _ => Err(problem),
    }
}

impl Planned {
    /// The most body this request may have; `None` when its body is not wanted: it was refused, or makes the connection a WebSocket.
    pub fn body_bytes_max(&self, ctx: &Context) -> Option<usize> {
        match &self.action {
            // They read their body themselves, or have none.
            Action::Refuse(_) | Action::Batch(_) | Action::Inflate(_) | Action::Ws(_) => None,
            Action::Publish(publish) => Some(publish.bytes_max()),
            Action::Once(once) => Some(once.bytes_max()),
            Action::Call(call) => Some(call.body_bytes_max()),
            Action::Peer(_) => Some(peer::Asked::body_bytes_max(ctx)),
            // A body that means nothing here is read and ignored, as RFC 9110 has it for GET, within reason.
            Action::Subscribe(_) | Action::Manage(_) | Action::Profile(_) | Action::Options(_) => {
                Some(limits::HEAD_BYTES_MAX)
            }
        }
    }

    /// The core where the group lives that is to be read.
    pub fn home(&self, ctx: &Context) -> Option<ShardId> {
        match &self.action {
            Action::Subscribe(subscribe) => Some(subscribe.home(ctx)),
            Action::Ws(asked) => asked.home(ctx),
            _ => None,
        }
    }

    /// Whether the connection is to become a WebSocket.
    pub fn is_upgrade(&self) -> bool {
        matches!(self.action, Action::Ws(_))
    }

    /// Makes it one: the answer that is to go out, and what is to be served then, unless it is refused.
    pub async fn upgrade(self, ctx: &Rc<Context>) -> (Reply, Option<ws::Session>) {
        let Self { route, stamp, action, .. } = self;
        let opened = match action {
            Action::Ws(asked) => asked.open(ctx).await,
            _ => Err(Problem::new(&codes::INTERNAL, "this request is for no WebSocket")),
        };
        match opened {
            Ok((reply, session)) => {
                ctx.metrics.count_request(route as usize, outcome_of(reply.status));
                (reply, Some(session))
            }
            Err(problem) => {
                ctx.metrics.count_request(route as usize, outcome_of_code(problem.code));
                let mut reply = problem.reply(&stamp);
                reply.close = ctx.drain_phase() != DrainPhase::Serving;
                (reply, None)
            }
        }
    }

    /// Whether it reads its body itself: [`Planned::run_reading`].
    pub fn reads_body(&self) -> bool {
        matches!(self.action, Action::Batch(_) | Action::Inflate(_))
    }

    /// Whether the client's going away ends the request (long polls), rather than being found when the answer is written.
    pub fn ends_with_client(&self) -> bool {
        matches!(self.action, Action::Subscribe(_))
    }

    /// The answer to a body that could not be read; `None`: nobody is there to be told.
    pub fn body_failed(self, ctx: &Context, cause: Malformed) -> Option<Reply> {
        let problem = match (cause, self.body_bytes_max(ctx)) {
            (Malformed::BodyTooLarge, Some(bytes_max)) => Some(publish::too_large(bytes_max)),
            (cause, _) => reply::malformed(cause),
        };
        problem.map(|problem| self.refuse(ctx, &problem))
    }

    fn refuse(&self, ctx: &Context, problem: &Problem) -> Reply {
        ctx.metrics.count_request(self.route as usize, outcome_of_code(problem.code));
        let mut reply = problem.reply(&self.stamp);
        reply.close = ctx.drain_phase() != DrainPhase::Serving;
        if let Some(Extras { origin: Some(origin), .. }) = self.extras.as_deref() {
            origin.add_to(&mut reply);
        }
        reply
    }

    /// Does it.
    pub async fn run(self, ctx: &Rc<Context>, body: Bytes) -> Reply {
        let Self { route, stamp, started, extras, action } = self;
        let (mut timing, mut timed_from) = (None, None);
        let result = match action {
            Action::Refuse(problem) => Err(problem),
            Action::Batch(_) | Action::Inflate(_) => {
                Err(Problem::new(&codes::INTERNAL, "this request reads its body itself"))
            }
            Action::Options(options) => Ok(options.run(&stamp)),
            Action::Publish(publish) => {
                let result;
                (result, timing) = publish.run(ctx, body, &stamp).await;
                timed_from = record_stages(ctx, started, timing);
                result
            }
            Action::Once(once) => {
                let result;
                (result, timing) = Box::pin(once.run(ctx, body, &stamp)).await;
                timed_from = record_stages(ctx, started, timing);
                result
            }
            Action::Subscribe(subscribe) => {
                // The head was read a moment ago: what follows is waiting for messages.
                let (enqueued, coding) = (Instant::now(), subscribe.coding);
                let mut result = subscribe.run(ctx, &stamp).await;
                if let (Some(coding), Ok(reply)) = (coding, &mut result) {
                    encode(ctx, reply, coding);
                }
                let resumed = Instant::now();
                ctx.metrics.sub_duration.record(resumed - started);
                timing = Some(Timing { enqueued, reported: resumed, resumed });
                result
            }
            Action::Manage(manage) => manage.run(ctx, &stamp).await,
            Action::Profile(asked) => asked.run(ctx, &stamp).await,
            Action::Call(mut call) => {
                call.take_body(body);
                Box::pin(call.run(ctx, &stamp)).await
            }
            Action::Peer(asked) => Box::pin(asked.run(ctx, &body, &stamp)).await,
            // Refused when planned, where the connection cannot become one.
            Action::Ws(_) => Err(Problem::new(&codes::WEBSOCKET_NEEDS_HTTP1, "this route is a WebSocket on HTTP/1.1")),
        };
        let mut reply = match result {
            Ok(reply) => {
                ctx.metrics.count_request(route as usize, outcome_of(reply.status));
                reply
            }
            Err(problem) => {
                ctx.metrics.count_request(route as usize, outcome_of_code(problem.code));
                problem.reply(&stamp)
            }
        };
        if let Some(extras) = extras {
            extras.add_to(ctx, &mut reply, started, timing);
        }
        reply.close |= ctx.drain_phase() != DrainPhase::Serving;
        reply.timed_from = timed_from;
        reply
    }
}

impl Planned {
    /// Does what reads its body itself. `None`: the client has gone.
    pub async fn run_reading(self, ctx: &Rc<Context>, pieces: &mut impl Pieces) -> Option<Reply> {
        let Self { route, stamp, started, extras, action } = self;
        let mut timing = None;
        let (mut reply, code) = match action {
            Action::Batch(batch) => {
                let answered = batch.run(ctx, pieces, &stamp).await?;
                (answered.reply, answered.code)
            }
            Action::Inflate(inflate) => {
                let (publish, key, coding) = *inflate;
                let bytes_max = publish.bytes_max();
                // A message takes no more than one that came as it is would: a gzip window is 32 KiB, one of zstd is not needed.
                let inflated = Inflated::new(coding, pieces, bytes_max, &|_| true).whole(bytes_max).await;
                let result = match inflated {
                    Ok(body) => {
                        let result;
                        (result, timing) = match key {
                            None => publish.run(ctx, body, &stamp).await,
                            Some(key) => Box::new(Once::new(key, publish)).run(ctx, body, &stamp).await,
                        };
                        result
                    }
                    Err(Malformed::BodyTooLarge) => Err(publish::too_large(bytes_max)),
                    Err(cause) => Err(reply::malformed(cause)?),
                };
                result.map_or_else(|problem| (problem.reply(&stamp), Some(problem.code)), |reply| (reply, None))
            }
            _ => return None,
        };
        ctx.metrics.count_request(route as usize, code.map_or_else(|| outcome_of(reply.status), outcome_of_code));
        if let Some(extras) = extras {
            extras.add_to(ctx, &mut reply, started, timing);
        }
        reply.close |= ctx.drain_phase() != DrainPhase::Serving;
        Some(reply)
    }
}

/// Compresses an answer for a client that said what it takes.
fn encode(ctx: &Context, reply: &mut Reply, accepted: Option<Coding>) {
    if reply.status != 200 {
        return;
    }
    reply.add_field("Vary", b"Accept-Encoding");
    if let Some(coding) = accepted
        && !compress::compress(reply, coding, &ctx.encoders)
    {
        ctx.metrics.cells.encoders_refused.add(1);
    }
}

impl Extras {
    fn add_to(&self, ctx: &Context, reply: &mut Reply, started: Instant, timing: Option<Timing>) {
        if self.traced {
            add_trace(ctx, reply, started, timing);
        }
        if let Some(origin) = &self.origin {
            origin.add_to(reply);
        }
    }
}

/// Counts the stages that are over. Gives when the last one began, if there is one.
fn record_stages(ctx: &Context, started: Instant, timing: Option<Timing>) -> Option<Instant> {
    let Some(Timing { enqueued, reported, resumed }) = timing else {
        ctx.metrics.pub_duration.record(started.elapsed());
        return None;
    };
    let stages = &ctx.metrics.pub_stages;
    stages.parse.record(enqueued - started);
    stages.kafka.record(reported - enqueued);
    stages.queue.record(resumed - reported);
    ctx.metrics.pub_duration.record(resumed - started);
    Some(resumed)
}

/// The answer to bytes that are no request; `None`: nobody is there to be told.
pub fn malformed(ctx: &Context, cause: Malformed) -> Option<Reply> {
    ctx.metrics.cells.malformed.add(1);
    let problem = reply::malformed(cause)?;
    ctx.metrics.count_request(Route::Unknown as usize, outcome_of_code(problem.code));
    let stamp = Stamp { request_id: ctx.request_id(), path: SmallVec::from_slice(b"/") };
    let mut reply = problem.reply(&stamp);
    reply.close = true;
    Some(reply)
}

/// The answer to a connection over the limit.
pub fn too_many_connections(ctx: &Context) -> Reply {
    let stamp = Stamp { request_id: ctx.request_id(), path: SmallVec::from_slice(b"/") };
    let mut reply =
        Problem::new(&codes::CONNECTION_LIMIT, "this core has as many connections as it takes").reply(&stamp);
    reply.close = true;
    reply
}

/// `X-Serverid` and `Server-Timing` in ms: the stages of a publish but the last, which is not over when its length would have to
/// be said. `kafka` of a read is its waiting for messages. A request that asked the store nothing spent its time in `parse`.
fn add_trace(ctx: &Context, reply: &mut Reply, started: Instant, timing: Option<Timing>) {
    let ms = |from: Instant, to: Instant| to.saturating_duration_since(from).as_secs_f64() * 1e3;
    let Timing { enqueued, reported, resumed } = timing.unwrap_or_else(|| {
        let now = Instant::now();
        Timing { enqueued: now, reported: now, resumed: now }
    });
    reply.add_field("X-Serverid", ctx.config.borrow().gateway.id.as_bytes());
    reply.add_display(
        "Server-Timing",
        format_args!(
            "parse;dur={:.3}, queue;dur={:.3}, kafka;dur={:.3}",
            ms(started, enqueued),
            ms(reported, resumed),
            ms(enqueued, reported)
        ),
    );
}
