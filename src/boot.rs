//! Start order: configuration, host, sockets, cores, control; stop in reverse.
//!
//! Everything that can fail fails here, before the line `ready` is printed: addresses are bound before a core starts, a core
//! that does not come up ends the start. After that the process ends only by drain, by a second signal, or loudly when a core
//! dies.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc, OnceLock,
        mpsc::{self, RecvTimeoutError},
    },
    time::Duration,
};

use glommio::{ExecutorJoinHandle, Latency, LocalExecutorBuilder, Placement, Shares};
use socket2::Socket;

use crate::{
    api::{
        backend::Backend,
        context::{Context, DataPlane, Threads},
        frame::Frame,
    },
    config::{Config, Host, ListenerConfig, Roles, Settings, Sources, StoreKind},
    control::{
        doctor, files,
        host::{self, Resource},
        kicker::{Kicked, Kicker},
        log::Log,
        run::{self, Control, Signals},
        takeover::{Door, Handed, Place, Predecessor},
        zookeeper::Card,
    },
    error::StartError,
    kafka::KafkaStore,
    limits,
    mesh::{Kick, Mesh, ShardId},
    metrics::ShardMetrics,
    offload::Offload,
    profile,
    proto::tls::Acceptor,
    server::socket,
    shard::{Shard, thread_name},
    store::{
        Bounds,
        memory::{Broker, MemoryStore},
        null::NullStore,
    },
};

/// Registered buffers are not used, so each executor asks for little locked memory.
const IO_MEMORY_BYTES: usize = 1 << 20;
/// A core that is not up by then never will be.
const CORE_START_WITHIN: Duration = Duration::from_secs(10);
/// The control thread's preempt timer.
const CONTROL_PREEMPT: Duration = Duration::from_millis(1);
/// The preempt timer until a core has something the kicker can kick: see [`in_quick_queue`].
const BIRTH_PREEMPT: Duration = Duration::from_mins(1);

/// What every core gets; each makes its own `Rc` state of it.
#[derive(Clone)]
struct Parts {
    config: Arc<Config>,
    mesh: Mesh<Frame>,
    metrics: Arc<[Arc<ShardMetrics>]>,
    offload: Offload,
    threads: Threads,
    memory: Option<Arc<Broker>>,
    acceptor: Option<Acceptor>,
}

type CoreHandle = ExecutorJoinHandle<Result<(), StartError>>;
type Sockets = Vec<(Socket, Roles)>;
/// Every core's sockets, the control thread's, and where they are.
type Bound = (Vec<Sockets>, Sockets, Addrs);

/// Where the listening sockets come from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Start {
    /// They are made.
    Fresh,
    /// A running gateway hands them over, and drains.
    Takeover,
}

/// Runs the gateway until it is told to go.
pub fn run(sources: Sources, start: Start) -> Result<(), StartError> {
    let as_config =
        |errors: Vec<crate::config::ConfigError>| StartError::Config(errors.iter().map(ToString::to_string).collect());
    let settings = Settings::read(&sources).map_err(as_config)?;
    let mut config = settings.resolve(&Host::this()).map_err(as_config)?;
    doctor::io_uring_available().map_err(StartError::Host)?;
    let signals = Signals::register().map_err(StartError::Spawn)?;
    let log = Log::start(&config.log).map_err(StartError::Spawn)?;
    for resource in [Resource::OpenFiles, Resource::LockedBytes] {
        if let Err(error) = host::raise(resource) {
            tracing::warn!(%error, ?resource, "the limit stays as it is");
        }
    }
    doctor::locked_memory_suffices().map_err(StartError::Host)?;
    let shards = config.shard.count;
    let tls = files::load(&config.tls, &config.kafka.security).map_err(StartError::Config)?;
    let mut predecessor = predecessor(&config, start)?;
    let (data_sockets, man_sockets, addrs) = bind(&config, predecessor.as_mut())?;
    if let Some(predecessor) = &mut predecessor {
        // Nobody here accepts from the others, so they must end with the predecessor.
        predecessor.sockets.clear();
    }
    let door = door(&config, start)?;
    config.gateway.advertise_bound(addrs.of("sub"));
    config.gateway.bound.clone_from(&addrs.0);
    let threads = limits::OFFLOAD_THREADS + limits::OFFLOAD_THREADS_PER_CORE * shards;
    let offload = Offload::start(threads).map_err(StartError::Spawn)?;
    let parts = Parts {
        mesh: Mesh::new(shards),
        metrics: (0..shards).map(|_| Arc::default()).collect(),
        offload,
        threads: (0..shards).map(|_| OnceLock::new()).collect(),
        memory: (config.store == StoreKind::Memory).then(|| Broker::new(config.memory.bytes_max)),
        acceptor: tls.as_ref().map(|(_, acceptor)| acceptor.clone()),
        config: Arc::new(config),
    };
    announce(&parts.config);
    let kicks: Vec<Arc<Kick>> = (0..=shards).map(|_| Arc::default()).collect();
    let handles = start_cores(&parts, data_sockets, start, &kicks)?;
    let _kicker = start_kicker(&parts, &kicks).map_err(StartError::Spawn)?;
    let control = move || {
        let Parts { config, mesh, metrics, offload, threads, .. } = parts;
        let ctx = Context::new(ShardId(shards), &config, mesh, metrics, offload, threads, None);
        let (kick, ready) = (Arc::clone(&kicks[shards]), ready_line(&addrs));
        let card = Card::new(&config, [addrs.of("pub"), addrs.of("sub"), addrs.of("man")]);
        Control { ctx, man: man_sockets, tls, kick, signals, log, sources, settings, door, predecessor, ready, card }
    };
    let executor = builder(Placement::Unbound, "control").make().map_err(spawn_error)?;
    let control = async move { run::run(control()).await };
    executor.run(in_quick_queue(CONTROL_PREEMPT, control))??;
    for handle in handles {
        // A core that failed has said so; the process ends either way.
        let _ = handle.join();
    }
    Ok(())
}

#[allow(clippy::needless_pass_by_value)] // The form `map_err` wants.
fn spawn_error(error: glommio::GlommioError<()>) -> StartError {
    StartError::Spawn(io::Error::other(error.to_string()))
}

fn builder(placement: Placement, name: &str) -> LocalExecutorBuilder {
    LocalExecutorBuilder::new(placement).name(name).io_memory(IO_MEMORY_BYTES).preempt_timer(BIRTH_PREEMPT)
}

/// Runs `work` under its own preempt timer. An executor whose timer fires before its first task ran parks for ever (see
/// `control::kicker`), and the kicker cannot reach one that has not run yet: so an executor is born with a long timer, and only the
/// queue that everything then runs in has the short one.
async fn in_quick_queue<T: 'static>(
    preempt: Duration,
    work: impl Future<Output = T> + 'static,
) -> Result<T, StartError> {
    let queue = glommio::executor().create_task_queue(Shares::default(), Latency::Matters(preempt), "everything");
    let work = glommio::spawn_local_into(work, queue).map_err(spawn_error)?;
    Ok(work.await)
}

/// Addresses as they were bound, by role.
#[derive(Default)]
struct Addrs(Vec<(&'static str, SocketAddr)>);

impl Addrs {
    fn note(&mut self, roles: Roles, addr: SocketAddr) {
        for (has, plain, over_tls) in
            [(roles.publish, "pub", "pub_tls"), (roles.subscribe, "sub", "sub_tls"), (roles.manage, "man", "man_tls")]
        {
            if has {
                self.0.push((if roles.tls { over_tls } else { plain }, addr));
            }
        }
    }

    fn of(&self, name: &str) -> Option<SocketAddr> {
        self.0.iter().find(|(known, _)| *known == name).map(|(_, addr)| *addr)
    }
}

/// Asks the running gateway for its sockets.
fn predecessor(config: &Config, start: Start) -> Result<Option<Predecessor>, StartError> {
    if start == Start::Fresh {
        return Ok(None);
    }
    let Some(path) = &config.gateway.takeover_socket else {
        let unset = "gateway.takeover_socket: a takeover needs the path at which the running gateway listens";
        return Err(StartError::Config(vec![unset.to_owned()]));
    };
    let failed = |error| StartError::Host(format!("cannot take over from {}: {error}", path.display()));
    Predecessor::ask(path).map(Some).map_err(failed)
}

/// Where a successor of this gateway knocks. A successor itself opens it once it serves.
fn door(config: &Config, start: Start) -> Result<Option<Door>, StartError> {
    let Some(path) = config.gateway.takeover_socket.as_ref().filter(|_| start == Start::Fresh) else { return Ok(None) };
    let failed = |error| StartError::Host(format!("cannot listen at {}: {error}", path.display()));
    Door::open(path, false).map(Some).map_err(failed)
}

/// Binds every address once per core, before any core starts; or takes what a predecessor has of them.
fn bind(config: &Config, mut predecessor: Option<&mut Predecessor>) -> Result<Bound, StartError> {
    let mut addrs = Addrs::default();
    let mut per_core: Vec<Sockets> = (0..config.shard.count).map(|_| Vec::new()).collect();
    let mut handed = |addr, roles| predecessor.as_mut().map_or_else(Vec::new, |p| p.take(Place::new(addr, roles)));
    for ListenerConfig { addr, roles } in &config.data_listeners {
        let bound = spread(*addr, handed(*addr, *roles), config.shard.count)?;
        addrs.note(*roles, bound_addr(&bound[0], *addr)?);
        for (n, socket) in bound.into_iter().enumerate() {
            per_core[n % config.shard.count].push((socket, *roles));
        }
    }
    let mut man = Vec::new();
    for ListenerConfig { addr, roles } in &config.man_listeners {
        let bound = spread(*addr, handed(*addr, *roles), 1)?;
        addrs.note(*roles, bound_addr(&bound[0], *addr)?);
        man.extend(bound.into_iter().map(|socket| (socket, *roles)));
    }
    Ok((per_core, man, addrs))
}

/// Sockets of one address: at least one for each core. Of those that were handed over all are kept, since each has a queue of its own;
/// what is missing joins them when it listens.
fn spread(addr: SocketAddr, handed: Vec<Handed>, cores: usize) -> Result<Vec<Socket>, StartError> {
    let mut sockets: Vec<Socket> = handed.into_iter().map(|handed| handed.socket).collect();
    let is_handed = !sockets.is_empty();
    // Port 0: the first one's port is everybody's.
    let mut addr = if is_handed { bound_addr(&sockets[0], addr)? } else { addr };
    if !is_handed {
        check_free(addr)?;
    }
    let make = if is_handed { socket::reserve } else { socket::listen };
    while sockets.len() < cores {
        let made = make(addr).map_err(|source| StartError::Bind { addr, source })?;
        addr = bound_addr(&made, addr)?;
        sockets.push(made);
    }
    Ok(sockets)
}

fn check_free(addr: SocketAddr) -> Result<(), StartError> {
    if socket::is_taken(addr) {
        return Err(StartError::Bind { addr, source: io::ErrorKind::AddrInUse.into() });
    }
    Ok(())
}

fn bound_addr(socket: &Socket, addr: SocketAddr) -> Result<SocketAddr, StartError> {
    let bound = socket.local_addr().map_err(|source| StartError::Bind { addr, source })?;
    Ok(bound.as_socket().unwrap_or(addr))
}

/// Whether other gateways are expected, Kafka is on another host, and this gateway says that it is reached on its own.
fn is_for_this_host_only(config: &Config) -> bool {
    let is_loopback = |address: &str| {
        address.parse::<SocketAddr>().is_ok_and(|address| address.ip().is_loopback())
            || address.starts_with("localhost:")
    };
    config.gateway.peer_secret.is_some()
        && config.gateway.advertise.as_deref().is_some_and(is_loopback)
        && config.kafka.brokers.split(',').any(|broker| !is_loopback(broker))
}

/// Says loudly what an operator must not overlook.
fn announce(config: &Config) {
    if config.store == StoreKind::Memory {
        tracing::warn!("store=memory: everything published is gone when this process ends");
    }
    if config.store == StoreKind::Null {
        tracing::warn!("store=null: nothing published is stored");
    }
    if config.gateway.advertise.is_none() && config.data_listeners.iter().any(|listener| listener.roles.subscribe) {
        tracing::warn!(
            "sub has no address of its own and gateway.advertise is empty: other gateways cannot find this one"
        );
    }
    if let Some(address) = config.gateway.advertise.as_deref().filter(|_| is_for_this_host_only(config)) {
        tracing::warn!(address, "gateways on other hosts cannot reach this one there: set gateway.advertise");
    }
    tracing::warn!("tenancy.mode=open: any valid Appid is taken, no secret is checked");
    if config.store == StoreKind::Kafka && config.gateway.peer_secret.is_none() {
        tracing::info!("gateway.peer_secret is not set: what other gateways own of a group is not asked of them");
    }
    if config.test.answer_before_report {
        tracing::warn!("test.answer_before_report: answers promise what they cannot keep");
    }
    if let Some(after) = config.test.break_clients {
        tracing::warn!(?after, "test.break_clients_ms: every Kafka client fails for good");
    }
    if let Some(after) = config.test.deaf_after {
        tracing::warn!(after, "test.deaf_after_messages: the first consumer of every group gives no more than that");
    }
    if let Some(topic) = &config.test.panic_topic {
        tracing::warn!(topic, "test.panic_topic: requests for it panic");
    }
}

fn start_cores(
    parts: &Parts,
    sockets: Vec<Sockets>,
    start: Start,
    kicks: &[Arc<Kick>],
) -> Result<Vec<CoreHandle>, StartError> {
    let (up, came_up) = mpsc::channel();
    let config = &parts.config.shard;
    let mut handles = Vec::with_capacity(config.count);
    for (n, sockets) in sockets.into_iter().enumerate() {
        let placement =
            if config.pin { Placement::Fixed(config.cpus[n % config.cpus.len()]) } else { Placement::Unbound };
        let (parts, kick, up) = (parts.clone(), Arc::clone(&kicks[n]), up.clone());
        let core = move || async move {
            let _loud = Loud(n);
            let data = DataPlane::new(backend(&parts));
            let Parts { config, mesh, metrics, offload, threads, acceptor, .. } = parts;
            let known = profile::Thread::here().map(|thread| {
                // Set once: this is core `n`, and it starts once.
                let _ = threads[n].set(thread);
            });
            let ctx = Context::new(ShardId(n), &config, mesh, metrics, offload, threads, Some(data));
            let made = known.and_then(|()| Shard::new(ctx, sockets, acceptor, start == Start::Fresh, kick));
            // The start may have been given up meanwhile.
            let _ = up.send(made.as_ref().map(|_| ()).map_err(|error| io::Error::new(error.kind(), error.to_string())));
            drop(up);
            if let Ok(shard) = made {
                shard.run().await;
            }
        };
        let preempt = Duration::from_micros(config.preempt_us);
        let core = move || in_quick_queue(preempt, core());
        let handle = builder(placement, &thread_name(ShardId(n))).spawn(core).map_err(spawn_error)?;
        handles.push(handle);
    }
    drop(up);
    for _ in 0..config.count {
        let up = came_up.recv_timeout(CORE_START_WITHIN).unwrap_or_else(|missing| match missing {
            RecvTimeoutError::Timeout => Err(io::ErrorKind::TimedOut.into()),
            // glommio gives the reason to whoever joins the thread, and which one that is is not known here.
            RecvTimeoutError::Disconnected => Err(io::Error::other("`kateway doctor` may say what it lacks")),
        });
        up.map_err(StartError::Spawn)?;
    }
    Ok(handles)
}

fn backend(parts: &Parts) -> Backend {
    let config = &parts.config;
    match (config.store, &parts.memory) {
        (StoreKind::Kafka, _) => Backend::Kafka(KafkaStore::new(config, &parts.offload)),
        (StoreKind::Memory, Some(broker)) => {
            Backend::Memory(MemoryStore::new(Arc::clone(broker), Bounds::new(&config.subscribe)))
        }
        _ => Backend::Null(NullStore::new(config)),
    }
}

fn start_kicker(parts: &Parts, kicks: &[Arc<Kick>]) -> io::Result<Option<Kicker>> {
    let config = &parts.config.shard;
    if config.kicker_ms == 0 {
        tracing::warn!("shard.kicker_ms=0: cores can hang, deadlines do not run");
        return Ok(None);
    }
    let cores = kicks
        .iter()
        .enumerate()
        .map(|(n, kick)| Kicked { kick: Arc::clone(kick), metrics: parts.metrics.get(n).cloned() });
    let period = Duration::from_millis(config.kicker_ms);
    Kicker::start(cores.collect(), period, Duration::from_millis(config.stall_ms)).map(Some)
}

/// The one line on stdout that says where the gateway serves.
fn ready_line(addrs: &Addrs) -> String {
    let shown = |name| addrs.of(name).map_or_else(|| "-".to_owned(), |addr| addr.to_string());
    let mut line = format!("ready pub={} sub={} man={}", shown("pub"), shown("sub"), shown("man"));
    for (name, addr) in addrs.0.iter().filter(|(name, _)| name.ends_with("_tls")) {
        line.extend([" ", name, "=", &addr.to_string()]);
    }
    line
}

/// A core that unwinds takes the process with it: half a gateway would lose requests in silence.
struct Loud(usize);

impl Drop for Loud {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("core {} died; the process ends", self.0);
            std::process::exit(70);
        }
    }
}
