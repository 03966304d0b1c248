//! The order of things on one connection: head, plan, body, run, answer; again.
//!
//! ```text
//!   the first read is of a group that lives on core k: socket and unread bytes go to core k, which serves the connection from there
//!   a later one, of a group that lives elsewhere: by a frame over the mesh
//! ```
//!
//! An answer that ends the connection is followed by a short reading of what the client still sends, so that the answer is not
//! lost to a reset. A long poll ends when its client goes.

use std::{os::fd::OwnedFd, panic::AssertUnwindSafe, rc::Rc, sync::Arc, time::Instant};

use bytes::Bytes;
use futures_lite::FutureExt;

use super::{Connections, Listed, life::Life};
use crate::{
    api::{
        self, Arrival, Planned,
        context::Context,
        frame::{DrainPhase, Frame},
    },
    config::resolve::Roles,
    limits,
    mesh::ShardId,
    proto::{
        Head, Malformed, Reply, Stream, Version,
        h1::{H1, Pending},
        h2::{self, RequestBody},
        head::Framing,
        watch::Lived,
    },
    readiness::Socket,
};

/// Frames in a core's inbox from which on it counts as stuck.
const STEER_WAITING_MAX: usize = 16;

/// What an answer to unreadable bytes assumes of its request.
const UNREADABLE: Pending = Pending {
    framing: Framing::Length(0),
    version: Version::Http11,
    keep_alive: false,
    expects_continue: false,
    bodiless: false,
    takes_trailers: false,
    head_bytes: 0,
};

/// Counts a connection while it is open.
pub(super) struct Open<'a>(&'a Context);

impl<'a> Open<'a> {
    pub fn new(ctx: &'a Context) -> Self {
        ctx.metrics.cells.connections.add(1);
        Self(ctx)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.metrics.cells.connections.sub(1);
    }
}

/// A connection whose next byte is HTTP's.
pub(super) struct Entered<'a> {
    pub open: Open<'a>,
    pub listed: Listed,
    pub stream: Stream,
    pub arrival: Arrival,
    /// Where TLS has settled it.
    pub is_h2: Option<bool>,
}

/// Serves a plain connection until it ends.
pub fn serve<'a>(
    ctx: &'a Rc<Context>,
    connections: &'a Rc<Connections>,
    socket: Socket,
    roles: Roles,
) -> impl Future<Output = ()> + 'a {
    let (open, listed) = (Open::new(ctx), connections.list(&socket));
    let arrival = Arrival { roles, client: socket.peer_ip() };
    serve_entered(ctx, connections, Entered { open, listed, stream: Stream::Plain(socket), arrival, is_h2: None })
}

/// Serves a connection until it ends.
pub(super) async fn serve_entered(ctx: &Rc<Context>, connections: &Rc<Connections>, entered: Entered<'_>) {
    let Entered { open, listed, stream, arrival, is_h2 } = entered;
    let config = Rc::new(ctx.config.borrow().http.clone());
    let steers = stream.is_plain() && ctx.config.borrow().subscribe.steer;
    let mut h1 = H1::new(stream, Rc::clone(&listed.watch), Rc::clone(&config));
    let is_h2 = match is_h2 {
        Some(is_h2) => Ok(is_h2),
        None => h1.is_h2().await,
    };
    match is_h2 {
        Ok(true) => {
            let (stream, unread) = h1.into_parts();
            let life = Life::new(&listed.watch, &config);
            let service = H2Service { ctx: Rc::clone(ctx), arrival, life: Rc::clone(&life) };
            let draining = {
                let ctx = Rc::clone(ctx);
                async move { futures_lite::future::or(ctx.draining(), life.over()).await }
            };
            let metrics = Arc::clone(&ctx.metrics);
            let start = h2::Start { stream, unread, watch: Rc::clone(&listed.watch), config, metrics };
            h2::serve(start, draining, service.clone(), service).await;
        }
        Ok(false) => {
            if let Some((home, h1)) = serve_h1(ctx, h1, arrival, steers).await {
                let (stream, unread) = h1.into_parts();
                let lived = listed.watch.lived();
                drop::<Listed>(listed);
                hand_over(ctx, connections, open, Moved { home, stream, unread, arrival, lived });
            }
        }
        Err(_) => {}
    }
}

/// A connection on its way to the core its first read belongs to.
struct Moved {
    home: ShardId,
    stream: Stream,
    unread: Bytes,
    arrival: Arrival,
    lived: Lived,
}

/// Whether a connection may move to `home`: it has room, and does not look stuck. Else its reads go over the mesh, which has an answer
/// to both.
fn takes_connections(ctx: &Context, home: ShardId) -> bool {
    let has_room = ctx
        .all_metrics
        .get(home.0)
        .is_some_and(|home| home.cells.connections.get() < ctx.config.borrow().http.connections_max as u64);
    has_room && ctx.mesh.waiting(home) < STEER_WAITING_MAX && ctx.drain_phase() == DrainPhase::Serving
}

/// Gives the connection to its core; one whose inbox is full leaves it here, in a task of its own: the task of every connection would
/// else have room for two.
fn hand_over(ctx: &Rc<Context>, connections: &Rc<Connections>, open: Open<'_>, moved: Moved) {
    let Moved { home, stream, unread, arrival, lived } = moved;
    let Some(socket) = stream.into_plain() else { return };
    let socket = match socket.release() {
        Ok(socket) => socket,
        Err(error) => return tracing::warn!(%error, "a connection could not be moved, and is closed"),
    };
    let sent = ctx.mesh.send(home, Frame::Connection { socket, unread, arrival, lived });
    // From here on it is counted where it is.
    drop(open);
    match sent {
        Ok(()) => ctx.metrics.cells.connections_steered.add(1),
        Err(Frame::Connection { socket, unread, arrival, lived }) => {
            let connections = Rc::clone(connections);
            spawn(ctx, move |ctx| async move {
                serve_moved(&ctx, &connections, socket, &unread, (arrival, lived)).await;
            });
        }
        Err(_) => {}
    }
}

/// Runs what serves a connection in a task of its own, whose panic ends that connection alone. The future is made within the task: one
/// that is moved into it would take its place twice.
pub fn spawn<F: Future<Output = ()> + 'static>(ctx: &Rc<Context>, serve: impl FnOnce(Rc<Context>) -> F + 'static) {
    let ctx = Rc::clone(ctx);
    glommio::spawn_local(async move {
        if AssertUnwindSafe(serve(Rc::clone(&ctx))).catch_unwind().await.is_err() {
            ctx.metrics.cells.panics.add(1);
            tracing::error!("a connection task panicked; the connection is closed");
        }
    })
    .detach();
}

/// Serves a connection that another core accepted, and read `unread` of.
pub async fn serve_moved(
    ctx: &Rc<Context>,
    connections: &Rc<Connections>,
    socket: OwnedFd,
    unread: &[u8],
    (arrival, lived): (Arrival, Lived),
) {
    let _open = Open::new(ctx);
    let socket = match Socket::adopt(socket) {
        Ok(socket) => socket,
        Err(error) => return tracing::warn!(%error, "a connection of another core cannot be watched"),
    };
    if connections.len() >= ctx.config.borrow().http.connections_max {
        ctx.metrics.cells.connections_refused.add(1);
        return refuse(ctx, connections, socket).await;
    }
    let config = Rc::new(ctx.config.borrow().http.clone());
    let listed = connections.list(&socket);
    listed.watch.go_on(lived);
    let h1 = H1::resume(Stream::Plain(socket), unread, Rc::clone(&listed.watch), config);
    serve_h1(ctx, h1, arrival, false).await;
}

/// Answers 503 and closes: the core has as many connections as it takes.
pub async fn refuse(ctx: &Rc<Context>, connections: &Rc<Connections>, socket: Socket) {
    let config = Rc::new(ctx.config.borrow().http.clone());
    let listed = connections.list(&socket);
    let mut h1 = H1::new(Stream::Plain(socket), Rc::clone(&listed.watch), config);
    if h1.answer(api::too_many_connections(ctx), &UNREADABLE, true).await.is_ok() {
        h1.close().await;
    }
}

/// Serves requests until the connection ends, or with `steers` until its first read, if that belongs to another core.
async fn serve_h1(
    ctx: &Rc<Context>,
    mut h1: H1<Stream>,
    arrival: Arrival,
    mut steers: bool,
) -> Option<(ShardId, H1<Stream>)> {
    let mut answered = 0_usize;
    loop {
        answered = (answered + 1) % limits::REQUESTS_IN_A_ROW_MAX;
        if answered == 0 {
            futures_lite::future::yield_now().await;
        }
        let next = h1.next(|head, began| api::plan(ctx, head, arrival, began)).await;
        let (planned, mut pending) = match next {
            Ok(Some(next)) => next,
            Ok(None) => {
                h1.say_close();
                return None;
            }
            Err(cause) => {
                answer_malformed(ctx, h1, cause).await;
                return None;
            }
        };
        if steers && let Some(home) = planned.home(ctx) {
            steers = false;
            if home != ctx.shard && takes_connections(ctx, home) {
                h1.rewind(&pending);
                return Some((home, h1));
            }
        }
        if planned.reads_body() {
            h1 = Box::pin(read_and_answer(ctx, h1, planned, pending)).await?;
            continue;
        }
        let Some(bytes_max) = planned.body_bytes_max(ctx) else {
            if planned.is_upgrade() {
                h1 = Box::pin(upgrade(ctx, h1, planned, pending)).await?;
                continue;
            }
            let goes_on = h1.skip_buffered(&pending);
            let reply = planned.run(ctx, Bytes::new()).await;
            h1 = answer(ctx, h1, reply, &pending, !goes_on).await?;
            continue;
        };
        let body = match h1.body(&mut pending, bytes_max).await {
            Ok(body) => body,
            Err(cause) => {
                if let Some(reply) = planned.body_failed(ctx, cause) {
                    answer(ctx, h1, reply, &pending, true).await;
                }
                return None;
            }
        };
        let reply = run(ctx, &mut h1, planned, body).await?;
        h1 = answer(ctx, h1, reply, &pending, false).await?;
    }
}

/// Runs what reads its body itself, and answers. On the heap: few requests do, and all connections would have room for it.
async fn read_and_answer(
    ctx: &Rc<Context>,
    mut h1: H1<Stream>,
    planned: Planned,
    mut pending: Pending,
) -> Option<H1<Stream>> {
    let (reply, is_over) = {
        let mut pieces = h1.pieces(&mut pending);
        let reply = planned.run_reading(ctx, &mut pieces).await?;
        (reply, pieces.is_over())
    };
    answer(ctx, h1, reply, &pending, !is_over).await
}

/// Makes the connection a WebSocket and serves it to its end. Gives it back if that was refused.
async fn upgrade(ctx: &Rc<Context>, mut h1: H1<Stream>, planned: Planned, pending: Pending) -> Option<H1<Stream>> {
    let (reply, session) = planned.upgrade(ctx).await;
    let Some(session) = session else { return answer(ctx, h1, reply, &pending, false).await };
    h1.answer(reply, &pending, false).await.ok()?;
    let watch = h1.watch();
    let (stream, unread) = h1.into_parts();
    session.serve(stream, &unread, watch).await;
    None
}

/// Runs the plan; `None` when it was a long poll and its client has gone.
async fn run(ctx: &Rc<Context>, h1: &mut H1<Stream>, planned: Planned, body: Bytes) -> Option<Reply> {
    if !planned.ends_with_client() {
        return Some(planned.run(ctx, body).await);
    }
    let answered = async { Some(planned.run(ctx, body).await) };
    let gone = async {
        h1.gone().await;
        None
    };
    // Its going is looked at first: an answer made in the same round would be written to nobody, and count as delivered.
    futures_lite::future::or(gone, answered).await
}

/// Writes the answer; gives the connection back if it goes on.
async fn answer(
    ctx: &Context,
    mut h1: H1<Stream>,
    reply: Reply,
    pending: &Pending,
    must_close: bool,
) -> Option<H1<Stream>> {
    // HTTP/1.0 has no chunks: only the end of the connection ends a body of unknown length.
    let endless = pending.version == Version::Http10 && matches!(reply.body, crate::proto::Body::Source(_));
    let is_last = h1.is_last();
    let close = must_close || reply.close || !pending.keep_alive || endless || is_last;
    let timed_from = reply.timed_from;
    if h1.answer(reply, pending, close).await.is_err() {
        return None;
    }
    if let Some(from) = timed_from {
        ctx.metrics.pub_stages.write.record(from.elapsed());
    }
    if close {
        h1.close().await;
        return None;
    }
    Some(h1)
}

async fn answer_malformed(ctx: &Rc<Context>, mut h1: H1<Stream>, cause: Malformed) {
    if let Some(reply) = api::malformed(ctx, cause)
        && h1.answer(reply, &UNREADABLE, true).await.is_ok()
    {
        h1.close().await;
    }
}

/// Counts a panic of the stream that holds it; hyper's task then resets the stream.
struct PanicCounted<'a>(&'a Context);

impl Drop for PanicCounted<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.metrics.cells.panics.add(1);
        }
    }
}

/// The same plan and run for HTTP/2 streams.
#[derive(Clone)]
struct H2Service {
    ctx: Rc<Context>,
    arrival: Arrival,
    life: Rc<Life>,
}

impl h2::PlanFn for H2Service {
    type Planned = Planned;

    fn plan(&self, head: &Head<'_>) -> Planned {
        self.life.count_request();
        match h2::check(head, &self.ctx.config.borrow().http) {
            Ok(()) => api::plan(&self.ctx, head, self.arrival, Instant::now()),
            Err(cause) => api::plan_malformed(&self.ctx, head, cause),
        }
    }
}

impl h2::AnswerFn<Planned> for H2Service {
    fn answer(&self, planned: Planned, body: RequestBody) -> impl Future<Output = Reply> + use<> {
        let ctx = Rc::clone(&self.ctx);
        async move {
            let _counted = PanicCounted(&ctx);
            if planned.reads_body() {
                let pace = body.pace(&ctx.config.borrow().http);
                return Box::pin(answer_reading(&ctx, planned, body.paced(pace))).await;
            }
            let Some(bytes_max) = planned.body_bytes_max(&ctx) else {
                body.pass_by().await;
                return planned.run(&ctx, Bytes::new()).await;
            };
            let pace = body.pace(&ctx.config.borrow().http);
            match body.read(bytes_max, pace).await {
                Ok(body) => planned.run(&ctx, body).await,
                // A client that has gone gets this answer nowhere.
                Err(cause) => planned.body_failed(&ctx, cause).unwrap_or_else(|| Reply::new(400)),
            }
        }
    }
}

/// Runs what reads its body itself.
async fn answer_reading(ctx: &Rc<Context>, planned: Planned, mut body: h2::PacedBody) -> Reply {
    let reply = planned.run_reading(ctx, &mut body).await;
    if !body.is_over() {
        body.skip().await;
    }
    // A client that has gone gets this answer nowhere.
    reply.unwrap_or_else(|| Reply::new(400))
}
