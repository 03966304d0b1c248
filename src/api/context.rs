//! What handlers reach of the core they run on.
//!
//! Per core, `Rc`/`Cell` throughout. The control thread has one too, without a data plane: it serves management only.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use smallvec::SmallVec;

use super::{
    backend::Backend,
    codes,
    frame::{DrainPhase, Frame},
    groups::Groups,
    idempotency::Kept,
    owners::Looks,
    peer::Peers,
    reply::{self, Problem},
};
use crate::{
    config::resolve::Config,
    limits,
    mesh::{Mesh, ShardId},
    metrics::{Hitters, ShardMetrics, process::ProcessSize},
    offload::Offload,
    profile,
    proto::compress::Encoders,
    registry::Topics,
    store::{
        AdminError, Store, Topic,
        notify::{Gate, Notify},
    },
};

/// Shortest time between two refreshes of the topic snapshot on one core, however many unknown topics are asked for.
const REFRESH_SPACING: Duration = Duration::from_millis(100);
/// Shortest time between two refreshes of one core because another knows a topic differently, however many reads show it.
const AGREE_SPACING: Duration = Duration::from_secs(1);
/// Partitions of a topic of the null store.
const NULL_PARTITIONS: i32 = 4;

/// Immutable once set, shared: the cores' threads, for profiles.
pub type Threads = Arc<[OnceLock<profile::Thread>]>;

/// The publishing and subscribing half of a core.
#[derive(Debug)]
pub struct DataPlane {
    pub backend: Backend,
    pub topics: Topics,
    pub groups: Groups,
    pub readers: Readers,
    pub peers: Peers,
    pub looks: Looks,
    /// Publishes whose repeats this core answers.
    pub kept: Kept,
    /// To [`limits::STATUS_RUNNING_MAX`] questions who reads.
    pub statuses: Gate,
    refresh: Refresh,
}

/// What this core gave to readers, by their app.
#[derive(Debug, Default)]
pub struct Readers {
    pub messages: Hitters,
    pub bytes: Hitters,
}

/// Refreshes of the topic snapshot: one at a time, in a task of their own, so that no request that gives up ends one.
#[derive(Debug)]
struct Refresh {
    running: Cell<bool>,
    /// The store is being asked right now.
    listing: Cell<bool>,
    /// Rounds that have ended, and the round somebody waits for.
    ended: Cell<u64>,
    wanted: Cell<u64>,
    outcome: RefCell<Result<(), Problem>>,
    bell: Notify,
    /// When cores were last found to disagree.
    disagreed_at: Cell<Option<Instant>>,
}

impl DataPlane {
    pub fn new(backend: Backend) -> Self {
        Self {
            backend,
            topics: Topics::default(),
            groups: Groups::default(),
            readers: Readers::default(),
            peers: Peers::default(),
            looks: Looks::default(),
            kept: Kept::default(),
            statuses: Gate::default(),
            refresh: Refresh {
                running: Cell::new(false),
                listing: Cell::new(false),
                ended: Cell::new(0),
                wanted: Cell::new(0),
                outcome: RefCell::new(Ok(())),
                bell: Notify::default(),
                disagreed_at: Cell::new(None),
            },
        }
    }
}

/// See the module text.
#[derive(Debug)]
pub struct Context {
    /// This core; the control thread counts as one more than there are cores.
    pub shard: ShardId,
    pub config: RefCell<Rc<Config>>,
    pub mesh: Mesh<Frame>,
    pub metrics: Arc<ShardMetrics>,
    /// Every core's block, for aggregation.
    pub all_metrics: Arc<[Arc<ShardMetrics>]>,
    pub offload: Offload,
    /// Every core's thread, known once it has started.
    pub threads: Threads,
    pub data: Option<DataPlane>,
    pub encoders: Encoders,
    drain: Cell<DrainPhase>,
    pub drain_bell: Notify,
    request_seed: u64,
    request_count: Cell<u64>,
    pub started: Instant,
    /// The process when this was made: before there were groups.
    pub size_at_start: ProcessSize,
    /// What the control thread last found; empty on the others.
    pub recent: RefCell<Recent>,
}

/// The last few seconds, over all cores.
#[derive(Clone, Debug, Default)]
pub struct Recent {
    /// The busiest core's messages over the mean; 1 when nothing was done.
    pub message_skew: Option<f64>,
    /// Share of the time each core was busy.
    pub busy: Vec<f64>,
}

impl Context {
    pub fn new(
        shard: ShardId,
        config: &Config,
        mesh: Mesh<Frame>,
        all_metrics: Arc<[Arc<ShardMetrics>]>,
        offload: Offload,
        threads: Threads,
        data: Option<DataPlane>,
    ) -> Rc<Self> {
        let metrics = all_metrics.get(shard.0).cloned().unwrap_or_default();
        Rc::new(Self {
            shard,
            config: RefCell::new(Rc::new(config.clone())),
            mesh,
            metrics,
            all_metrics,
            offload,
            threads,
            data,
            encoders: Encoders::default(),
            drain: Cell::default(),
            drain_bell: Notify::default(),
            // Keys differ per process and instance, so ids of two gateways do not meet.
            request_seed: ahash::RandomState::new().hash_one(shard.0),
            request_count: Cell::new(0),
            started: Instant::now(),
            size_at_start: ProcessSize::here(),
            recent: RefCell::default(),
        })
    }

    pub fn config(&self) -> Rc<Config> {
        Rc::clone(&self.config.borrow())
    }

    /// The data plane; the control thread has none, and so no topic.
    pub fn plane(&self) -> Result<&DataPlane, Problem> {
        self.data.as_ref().ok_or_else(reply::unknown_topic)
    }

    pub fn drain_phase(&self) -> DrainPhase {
        self.drain.get()
    }

    /// Moves on to a later phase; tells connections and waiting reads.
    pub fn set_drain_phase(&self, phase: DrainPhase) {
        if phase <= self.drain.get() {
            return;
        }
        self.drain.set(phase);
        self.drain_bell.ring();
        if phase == DrainPhase::Closing
            && let Some(data) = &self.data
        {
            data.groups.end_fetches();
        }
    }

    /// Resolves when the gateway begins to go away.
    pub async fn draining(&self) {
        while self.drain.get() == DrainPhase::Serving {
            self.drain_bell.wait().await;
        }
    }

    /// A new request id: sixteen hex digits.
    pub fn request_id(&self) -> SmallVec<[u8; 32]> {
        let id = self.unique();
        let digits: [u8; 16] = std::array::from_fn(|i| b"0123456789abcdef"[(id >> (60 - 4 * i) & 15) as usize]);
        SmallVec::from_slice(&digits)
    }

    /// A number no other core or gateway is likely to give.
    pub fn unique(&self) -> u64 {
        let count = self.request_count.get().wrapping_add(1);
        self.request_count.set(count);
        // Odd multiplier: distinct counts give distinct numbers.
        self.request_seed ^ count.wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    /// The topic, if it exists: from this core's snapshot, else by asking the store once.
    pub async fn find_topic(self: &Rc<Self>, name: &str, create: bool) -> Result<Rc<Topic>, Problem> {
        let data = self.plane()?;
        if let Some(topic) = data.topics.get(name) {
            return Ok(topic);
        }
        let panics = self.config.borrow().test.panic_topic.as_deref() == Some(name);
        assert!(!panics, "test.panic_topic is looked up");
        if matches!(data.backend, Backend::Null(_)) {
            return data.topics.put(name, NULL_PARTITIONS).ok_or_else(too_many_topics);
        }
        // A round that began before this call may bring it too: then there is nothing more to wait for.
        let refreshed = self.refresh_until(data, || data.topics.get(name)).await?;
        if let Some(topic) = refreshed {
            return Ok(topic);
        }
        if !create {
            return Err(reply::unknown_topic());
        }
        self.create_topic(data, name).await
    }

    async fn create_topic(&self, data: &DataPlane, name: &str) -> Result<Rc<Topic>, Problem> {
        let topics = self.config().topics.clone();
        if !topics.auto_create && !data.backend.makes_topics() {
            return Err(reply::unknown_topic());
        }
        if name.len() > limits::KAFKA_TOPIC_BYTES_MAX {
            return Err(Problem::new(&codes::TOPIC_NAME_TOO_LONG, "over Kafka's 249 characters"));
        }
        match data.backend.create_topic(name, topics.partitions, topics.replicas).await {
            // Another core or gateway was faster: as good.
            Ok(()) | Err(AdminError::Exists) => {}
            Err(error) => return Err(reply::admin_failed(error)),
        }
        let partitions = data.topics.get(name).map_or(topics.partitions, |t| t.partitions.get());
        data.topics.put(name, partitions).ok_or_else(too_many_topics)
    }

    /// Brings the snapshot up to date with a refresh that began after this call. Its failure is this call's.
    pub async fn refresh_topics(self: &Rc<Self>, data: &DataPlane) -> Result<(), Problem> {
        self.refresh_until(data, || None::<()>).await.map(|_| ())
    }

    /// The same, ended early by the first round after which `found` finds something.
    async fn refresh_until<T>(
        self: &Rc<Self>,
        data: &DataPlane,
        found: impl Fn() -> Option<T>,
    ) -> Result<Option<T>, Problem> {
        let refresh = &data.refresh;
        let wanted = self.want_refresh(data);
        // A round that need not wait has ended already: glommio runs a new task at once.
        loop {
            if let Some(found) = found() {
                return Ok(Some(found));
            }
            if refresh.ended.get() >= wanted {
                return refresh.outcome.borrow().clone().map(|()| None);
            }
            refresh.bell.wait().await;
        }
    }

    /// Has the snapshot brought up to date without waiting for it. Gives the round that will have done so.
    pub fn want_refresh(self: &Rc<Self>, data: &DataPlane) -> u64 {
        let refresh = &data.refresh;
        // A round under way may have listed before our topic came: wait for one that starts later.
        let wanted = refresh.ended.get() + 1 + u64::from(refresh.listing.get());
        refresh.wanted.set(refresh.wanted.get().max(wanted));
        if !refresh.running.replace(true) {
            glommio::spawn_local(Rc::clone(self).refresh_rounds()).detach();
        }
        wanted
    }

    /// Another core knows a topic with another count of partitions. Either may be behind: the topic has grown, or was made again,
    /// smaller. Each of the two calls this, and lists for itself.
    pub fn agree(self: &Rc<Self>, data: &DataPlane) {
        let (now, last) = (Instant::now(), &data.refresh.disagreed_at);
        if last.get().is_none_or(|at| now.saturating_duration_since(at) >= AGREE_SPACING) {
            last.set(Some(now));
            self.want_refresh(data);
        }
    }

    async fn refresh_rounds(self: Rc<Self>) {
        let Some(data) = &self.data else { return };
        let refresh = &data.refresh;
        while refresh.ended.get() < refresh.wanted.get() {
            refresh.listing.set(true);
            let listed = data.backend.list_topics().await;
            refresh.listing.set(false);
            if let Ok(topics) = &listed {
                data.topics.install(topics);
                self.metrics.cells.topic_refreshes.add(1);
            }
            *refresh.outcome.borrow_mut() = listed.map(|_| ()).map_err(reply::admin_failed);
            refresh.ended.set(refresh.ended.get() + 1);
            refresh.bell.ring();
            if !matches!(data.backend, Backend::Memory(_)) {
                glommio::timer::sleep(REFRESH_SPACING).await;
            }
        }
        refresh.running.set(false);
    }
}

fn too_many_topics() -> Problem {
    Problem::new(&codes::CORE_BUSY, "this core knows as many topics as it takes")
}
