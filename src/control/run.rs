//! The control thread: serves management, waits for signals, leads the drain.
//!
//! ```text
//!   SIGTERM > notice (readyz 503, every answer says close) > listeners closed, idle connections closed, long polls 204
//!           > connections gone or time over > each core flushes, commits, leaves > exit 0
//!   a second SIGTERM or SIGINT at any point > exit 3
//! ```
//!
//! Control thread. It sees the cores only through frames and through the counters they publish.

use std::{
    io::{self, Write},
    os::unix::net::UnixStream,
    process,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_channel::oneshot;
use futures_lite::AsyncReadExt;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::{
    certificates,
    log::Log,
    takeover::{Door, Predecessor},
    zookeeper::{Card, Presence},
};
use crate::{
    api::{
        context::{Context, Recent},
        frame::{DrainPhase, Frame},
        status,
    },
    config::{Host, Roles, Settings, Sources},
    error::StartError,
    mesh::{Kick, ShardId},
    metrics::Cells,
    proto::{
        date,
        tls::{Acceptor, Keeper},
        watch::Every,
    },
    readiness::Socket,
    server::{Connections, SWEEP_MS, listener::Listener},
    within::within,
};

/// Exit code of a drain that a second signal cut short.
pub const EXIT_CUT: i32 = 3;
/// Between two looks at the thread that speaks with ZooKeeper.
const PRESENCE_LOOK: Duration = Duration::from_secs(1);
/// What the removal of this gateway's node may take beyond the notice.
const WITHDRAWN_WITHIN: Duration = Duration::from_secs(2);
/// What a successor is given to reach a cluster.
const READY_WITHIN: Duration = Duration::from_secs(20);
/// What is looked back at: long enough to mean something, short enough to be of now.
const RECENT: Duration = Duration::from_secs(5);
/// How often the drain looks whether the connections are gone.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// What the control thread needs of the drain time to hear the cores' answers.
const ANSWER_WITHIN: Duration = Duration::from_millis(500);
/// Looks in a row that find no connection, before the cores are told to finish.
const QUIET_LOOKS: u32 = 2;
/// Kept back of the drain time for the last steps of the cores.
const FINISH_WITHIN: Duration = Duration::from_secs(4);

/// What the control thread is made of.
#[derive(Debug)]
pub struct Control {
    pub ctx: Rc<Context>,
    pub man: Vec<(socket2::Socket, Roles)>,
    /// None without `tls.certificates`.
    pub tls: Option<(Keeper, Acceptor)>,
    pub kick: Arc<Kick>,
    pub signals: Signals,
    pub log: Log,
    pub sources: Sources,
    pub settings: Settings,
    /// Where a successor knocks.
    pub door: Option<Door>,
    /// Whose listeners these are until this gateway serves.
    pub predecessor: Option<Predecessor>,
    /// What stdout is told then.
    pub ready: String,
    /// What ZooKeeper is told.
    pub card: Card,
}

/// Why a gateway goes away.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Cause {
    Signal,
    Successor,
}

/// Signals as byte streams; registered before anything is served.
#[derive(Debug)]
pub struct Signals {
    terminate: UnixStream,
    interrupt: UnixStream,
    reload: UnixStream,
}

impl Signals {
    pub fn register() -> io::Result<Self> {
        let pipe = |signal| {
            let (read, write) = UnixStream::pair()?;
            signal_hook::low_level::pipe::register(signal, write)?;
            Ok::<_, io::Error>(read)
        };
        Ok(Self { terminate: pipe(SIGTERM)?, interrupt: pipe(SIGINT)?, reload: pipe(SIGHUP)? })
    }
}

/// Runs until the drain has ended.
pub async fn run(control: Control) -> Result<(), StartError> {
    serve(control).await.map_err(|error| match error.downcast() {
        Ok(error) => error,
        Err(error) => StartError::Spawn(error),
    })
}

async fn serve(control: Control) -> io::Result<()> {
    let Control { ctx, man, tls, kick, signals, log, sources, settings, door, predecessor, ready, card } = control;
    let connections = Rc::new(Connections::default());
    if let Some((keeper, acceptor)) = tls {
        connections.tls.replace(Some(acceptor));
        glommio::spawn_local(certificates::watch(Rc::clone(&ctx), Rc::clone(&connections), keeper)).detach();
    }
    let man =
        man.into_iter().map(|(socket, roles)| Listener::new(socket, roles, Rc::clone(&ctx), Rc::clone(&connections)));
    let man = man.collect::<io::Result<Vec<_>>>()?;
    connections.note_work(Arc::clone(&kick))?;
    glommio::spawn_local(tick(Rc::clone(&ctx), kick, connections)).detach();
    glommio::spawn_local(reload(Rc::clone(&ctx), Socket::adopt(signals.reload.into())?, log, sources, settings))
        .detach();
    let mut terminate = Socket::adopt(signals.terminate.into())?;
    let mut interrupt = Socket::adopt(signals.interrupt.into())?;
    if predecessor.is_some() {
        // One that is told to go before it serves leaves its predecessor alone.
        let told = async {
            wait_for_either(&mut terminate, &mut interrupt).await;
            Err(io::Error::other(StartError::Host("told to end before it served: the running gateway goes on".into())))
        };
        futures_lite::future::or(told, wait_until_ready(&ctx)).await?;
    }
    let door = accept(&ctx, &man, door, predecessor).await?;
    let presence = Presence::start(&ctx.config(), card)?;
    print(&ready)?;
    let watched = glommio::spawn_local(watch_presence(presence.clone()));
    let told = async {
        wait_for_either(&mut terminate, &mut interrupt).await;
        Cause::Signal
    };
    let succeeded = async {
        let Some(door) = &door else { return std::future::pending().await };
        door.wait(&ctx, &man).await;
        Cause::Successor
    };
    let cause = futures_lite::future::or(told, succeeded).await;
    drop(door);
    watched.cancel().await;
    let again = glommio::spawn_local({
        let ctx = Rc::clone(&ctx);
        async move {
            if cause == Cause::Successor {
                // What it is told it does already.
                wait_for_either(&mut terminate, &mut interrupt).await;
            }
            wait_for_either(&mut terminate, &mut interrupt).await;
            cut(&ctx);
        }
    });
    let all_finished = drain(&ctx, cause, presence.as_ref()).await;
    if !all_finished {
        // Joining a core that does not answer could take for ever.
        process::exit(0);
    }
    again.cancel().await;
    Ok(())
}

/// Serves from here on, once ready, alone. Gives where a successor knocks.
async fn accept(
    ctx: &Rc<Context>,
    man: &[Rc<Listener>],
    door: Option<Door>,
    predecessor: Option<Predecessor>,
) -> io::Result<Option<Door>> {
    if predecessor.is_some() {
        for shard in ctx.mesh.shard_ids() {
            ctx.mesh.settle(shard, Frame::Accept);
        }
    }
    for listener in man {
        glommio::spawn_local(Rc::clone(listener).run()).detach();
    }
    let Some(predecessor) = predecessor else { return Ok(door) };
    predecessor.relieve().await;
    let config = ctx.config();
    let Some(path) = &config.gateway.takeover_socket else { return Ok(None) };
    Ok(Door::open(path, true).inspect_err(|error| tracing::error!(%error, "no successor can take over")).ok())
}

/// A successor accepts nothing before each of its cores reaches a cluster: until then its predecessor serves better.
async fn wait_until_ready(ctx: &Context) -> io::Result<()> {
    let deadline = Instant::now() + READY_WITHIN;
    loop {
        let gathered = status::gather(ctx).await;
        if gathered.iter().all(|(_, core)| core.as_ref().is_some_and(|core| core.reachable)) {
            return Ok(());
        }
        if Instant::now() >= deadline {
            let reason = format!("no Kafka cluster was reached within {READY_WITHIN:?}: the running gateway goes on");
            return Err(io::Error::other(StartError::Host(reason)));
        }
        glommio::timer::sleep(LOOK_EVERY).await;
    }
}

fn print(line: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{line}")?;
    stdout.flush()
}

async fn wait_for_either(terminate: &mut Socket, interrupt: &mut Socket) {
    let (mut first, mut second) = ([0_u8; 1], [0_u8; 1]);
    // Signals arrive as single bytes; an error would mean that our own pipe broke, which ends the process as well.
    let _ = futures_lite::future::or(terminate.read(&mut first), interrupt.read(&mut second)).await;
}

/// The pulse of the management connections, and the look back at what the cores did of late.
async fn tick(ctx: Rc<Context>, kick: Arc<Kick>, connections: Rc<Connections>) {
    let mut sweep = Every::ms(SWEEP_MS);
    let mut window = Window::now(&ctx);
    loop {
        kick.due().await;
        connections.clock.advance();
        if sweep.is_due(&connections.clock) {
            date::refresh();
            connections.sweep(&ctx.metrics.cells);
            if window.since.elapsed() >= RECENT {
                let next = Window::now(&ctx);
                ctx.recent.replace(window.until(&next));
                window = next;
            }
        }
    }
}

/// What the cores had done at one moment.
struct Window {
    since: Instant,
    messages: Vec<u64>,
    busy_us: Vec<u64>,
}

impl Window {
    fn now(ctx: &Context) -> Self {
        let each = |pick: fn(&Cells) -> u64| ctx.all_metrics.iter().map(|metrics| pick(&metrics.cells)).collect();
        Self {
            since: Instant::now(),
            messages: each(|cells| cells.pub_messages.get() + cells.sub_messages.get()),
            busy_us: each(|cells| cells.busy_us.get()),
        }
    }

    /// What was done between two moments.
    fn until(&self, later: &Self) -> Recent {
        let grown = |from: &[u64], to: &[u64]| -> Vec<u64> {
            from.iter().zip(to).map(|(from, to)| to.wrapping_sub(*from)).collect()
        };
        let wall_s = (later.since - self.since).as_secs_f64();
        let busy = grown(&self.busy_us, &later.busy_us).into_iter().map(Duration::from_micros);
        Recent {
            message_skew: Some(status::skew(&grown(&self.messages, &later.messages))),
            busy: busy.map(|busy| (busy.as_secs_f64() / wall_s).min(1.0)).collect(),
        }
    }
}

fn broadcast(ctx: &Context, phase: DrainPhase) {
    ctx.set_drain_phase(phase);
    for shard in ctx.mesh.shard_ids() {
        // Never refused: a core with a full inbox must hear of the drain all the same.
        ctx.mesh.settle(shard, Frame::Drain(phase));
    }
}

fn total(ctx: &Context, pick: impl Fn(&Cells) -> u64) -> u64 {
    ctx.all_metrics.iter().map(|metrics| pick(&metrics.cells)).sum()
}

async fn drain(ctx: &Rc<Context>, cause: Cause, presence: Option<&Presence>) -> bool {
    let config = ctx.config().drain.clone();
    let deadline = Instant::now() + config.timeout;
    tracing::info!(notice_s = config.notice.as_secs(), timeout_s = config.timeout.as_secs(), "draining");
    // Deregister first: whoever renders a balancer's configuration takes a moment to see us go.
    if let Some(presence) = presence {
        presence.withdraw();
    }
    broadcast(ctx, DrainPhase::Notice);
    match cause {
        Cause::Signal => glommio::timer::sleep(config.notice).await,
        // No balancer has anything to notice, but clients that pause are to hear it with an answer.
        Cause::Successor => quiet(ctx, Instant::now() + config.notice).await,
    }
    let finish_within = FINISH_WITHIN.min(config.timeout / 4);
    if presence.is_some() {
        let left = deadline.saturating_duration_since(Instant::now() + finish_within);
        within(WITHDRAWN_WITHIN.min(left), withdrawn()).await;
    }
    broadcast(ctx, DrainPhase::Closing);
    if let Some(until) = deadline.checked_sub(finish_within) {
        quiet(ctx, until).await;
    }
    if open(ctx) > 0 {
        tracing::warn!(connections = open(ctx), "the drain time is over; open connections are cut");
    }
    finish(ctx, deadline).await
}

fn open(ctx: &Context) -> u64 {
    total(ctx, |c| c.connections.get())
}

/// Waits until no connection is left, no longer than until then.
async fn quiet(ctx: &Context, until: Instant) {
    // A connection that moves from core to core is in neither's count for a moment, but in an inbox then, or in the next look.
    let is_quiet = || open(ctx) == 0 && ctx.mesh.shard_ids().all(|shard| ctx.mesh.waiting(shard) == 0);
    let mut quiet_looks = 0;
    while quiet_looks < QUIET_LOOKS && Instant::now() < until {
        quiet_looks = if is_quiet() { quiet_looks + 1 } else { 0 };
        if quiet_looks < QUIET_LOOKS {
            glommio::timer::sleep(LOOK_EVERY).await;
        }
    }
}

/// The node is gone. A ZooKeeper that does not answer forgets it by itself.
async fn withdrawn() {
    while !Presence::is_withdrawn() {
        glommio::timer::sleep(LOOK_EVERY).await;
    }
}

/// Has an owner whose call to ZooKeeper does not return replaced.
async fn watch_presence(presence: Option<Presence>) {
    while let Some(presence) = &presence {
        glommio::timer::sleep(PRESENCE_LOOK).await;
        presence.look();
    }
}

/// Tells every core to flush, commit and leave, and waits for them until the deadline. Gives whether all did.
async fn finish(ctx: &Rc<Context>, deadline: Instant) -> bool {
    let left = deadline.saturating_duration_since(Instant::now());
    let cores_deadline = Instant::now() + left.saturating_sub(ANSWER_WITHIN.min(left / 4));
    let asked: Vec<(ShardId, oneshot::Receiver<u64>)> = ctx
        .mesh
        .shard_ids()
        .map(|shard| {
            let (answer, answered) = oneshot::channel();
            ctx.mesh.settle(shard, Frame::Finish { deadline: cores_deadline, answer });
            (shard, answered)
        })
        .collect();
    let mut all = true;
    for (shard, answered) in asked {
        let left = deadline.saturating_duration_since(Instant::now());
        match within(left, answered).await.and_then(Result::ok) {
            Some(0) => {}
            Some(unreported) => tracing::warn!(shard = shard.0, unreported, "records without a report at the end"),
            None => {
                all = false;
                tracing::warn!(shard = shard.0, "the core did not finish in time");
            }
        }
    }
    tracing::info!("drained");
    all
}

/// A second signal: end now, and say what was cut.
fn cut(ctx: &Context) {
    let connections = total(ctx, |c| c.connections.get());
    let inflight = total(ctx, |c| c.inflight.get());
    let queued = total(ctx, |c| c.producer_messages.get());
    // Written by hand: the log's own thread may not get to it.
    eprintln!(
        "cut by a second signal: {connections} connections, {inflight} publishes in flight, {queued} records queued"
    );
    process::exit(EXIT_CUT);
}

/// Each SIGHUP reads the sources again; what is hot takes effect, what is not is named.
async fn reload(ctx: Rc<Context>, mut pipe: Socket, log: Log, sources: Sources, mut settings: Settings) {
    let mut byte = [0_u8; 1];
    while matches!(pipe.read(&mut byte).await, Ok(1)) {
        match Settings::read(&sources) {
            Ok(newer) => {
                let changes = settings.changes(&newer);
                settings = settings.reloaded(&newer);
                apply(&ctx, &log, &settings);
                // Said at the level now in force.
                tracing::info!(changed = changes.len(), "reloaded");
                for change in changes {
                    let effect = if change.hot { "in effect" } else { "with the next start" };
                    tracing::info!(key = change.path, effect, "changed");
                }
            }
            Err(errors) => {
                for error in errors {
                    tracing::error!(%error, "not reloaded");
                }
            }
        }
    }
}

fn apply(ctx: &Context, log: &Log, settings: &Settings) {
    let Ok(mut config) = settings.resolve(&Host::this()) else { return };
    // Known since the listeners were bound.
    config.gateway.advertise.clone_from(&ctx.config().gateway.advertise);
    config.gateway.bound.clone_from(&ctx.config().gateway.bound);
    log.set_level(&config.log.level);
    ctx.config.replace(Rc::new(config.clone()));
    let config = Arc::new(config);
    for shard in ctx.mesh.shard_ids() {
        ctx.mesh.settle(shard, Frame::Reload(Arc::clone(&config)));
    }
}
