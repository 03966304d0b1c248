//! A reader group's membership: one librdkafka consumer and the task that pumps it, on the group's home core.
//!
//! ```text
//!  librdkafka --> consumer queue: rebalances, commit results, errors --\
//!             --> queue per partition: messages ------------------------+--> pump --> store::Group --> clients
//!                   (a byte in the socket pair rings the group's bell) -/     ^-- demand, acks, close: the same bell
//! ```
//!
//! Invariants: messages are taken only as waiting clients want them; the consumer queue is polled each second, clients or not,
//! so no client causes a rebalance; partitions are taken and given up in the offload pool, the others go on meanwhile; a
//! partition's leases are void before it is given up, so an acknowledgement is either committed or refused. Per core.

use std::{
    cell::{Cell, RefCell},
    ffi::CString,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_lite::AsyncReadExt;
use glommio::Task;

use super::{
    native::{Client, Kind, PartitionList},
    offsets::{self, Standing},
    options,
    peek::Peeks,
    pump::{Pump, Seeks, Watchdog},
    reach::Reach,
    rebalance::COMMIT_MAX,
    stats::ConsumerStats,
    topic_name,
};
use crate::{
    config::resolve::Config,
    offload::Offload,
    readiness::Socket,
    store::{Begin, Bounds, Group, Offset, Partition, Topic, notify::Notify},
    within::within,
};

/// How long a client that could not be made, or that broke, waits for the next.
const REJOIN: Duration = Duration::from_secs(1);
/// What leaving may take, once no commit is under way: one that is may take [`COMMIT_MAX`] more, and is not tried again by then.
const LEAVE_MAX: Duration = Duration::from_secs(6);

/// What a member needs of its core.
#[derive(Clone, Debug)]
pub(super) struct Surroundings {
    pub config: Arc<Config>,
    pub offload: Offload,
    pub stats: Rc<ConsumerStats>,
    pub reach: Rc<Reach>,
    /// What each group may hold.
    pub bounds: Bounds,
    /// A member of this core looks for the commits of others. One at a time: there may be many members, and few threads to ask with.
    pub is_looking: Rc<Cell<bool>>,
    pub peeks: Rc<Peeks>,
    /// The watchdog of a member of this core looks into a topic. One at a time, for the same reason.
    pub is_watching: Rc<Cell<bool>>,
}

/// One group's membership.
#[derive(Debug)]
pub(super) struct Member {
    pub group: Rc<Group>,
    pub topic: CString,
    pub standing: RefCell<Standing>,
    pub around: Surroundings,
    /// Moves that wait for the pump.
    pub seeks: Seeks,
    pub watchdog: Watchdog,
    is_over: Cell<bool>,
    over: Notify,
    task: RefCell<Option<Task<()>>>,
}

impl Member {
    /// Joins. The pump runs until the group is closed or the member dropped.
    pub fn join(around: Surroundings, topic: &Topic, group_id: &str, begin: Begin) -> Rc<Self> {
        around.stats.groups_opened.one();
        let member = Rc::new(Self {
            group: Group::new(&topic.name, group_id, &around.bounds),
            topic: topic_name(&topic.name),
            standing: RefCell::new(Standing::new(begin)),
            around,
            seeks: Seeks::default(),
            watchdog: Watchdog::default(),
            is_over: Cell::new(false),
            over: Notify::default(),
            task: RefCell::default(),
        });
        let task = glommio::spawn_local(Rc::clone(&member).run());
        member.task.replace(Some(task));
        member
    }

    async fn run(self: Rc<Self>) {
        let mut deaf_after = self.around.config.test.deaf_after;
        while let Some((client, hear)) = self.connect().await {
            super::break_later(&self.around.config, &client);
            let Some(mut pump) = Pump::new(Rc::clone(&self), client) else { break };
            pump.deaf_after = deaf_after.take();
            let ringer = glommio::spawn_local(ring(Rc::clone(&self.group), hear));
            let is_closed = pump.run().await;
            drop(ringer);
            if is_closed {
                break;
            }
            self.around.stats.restarts.one();
            self.rest().await;
        }
        self.is_over.set(true);
        self.seeks.clear();
        self.over.ring();
    }

    /// A client that has subscribed; `None` when the group closes before there is one.
    async fn connect(&self) -> Option<(Arc<Client>, Socket)> {
        loop {
            if self.group.is_closing() {
                return None;
            }
            let options = options::consumer(&self.around.config, &self.group.group_id, self.ahead_kbytes());
            let (offload, topic) = (self.around.offload.clone(), self.topic.clone());
            let made = self.around.offload.run(move || {
                let (client, hear) = Client::create(Kind::Consumer, &options, &offload)?;
                client.subscribe(&topic).map_err(|code| code.name().to_owned())?;
                Ok::<_, String>((client, hear))
            });
            let reason = match made.await {
                Ok(Ok((client, hear))) => match Socket::adopt(hear) {
                    Ok(hear) => return Some((client, hear)),
                    Err(error) => error.to_string(),
                },
                Ok(Err(text)) => text,
                Err(error) => format!("offload pool: {error:?}"),
            };
            if let Some(held) = self.around.reach.log.pass(Instant::now()) {
                tracing::error!(group = self.group.group_id, reason, held, "a group could not be joined");
            }
            self.group.fail(&reason);
            self.rest().await;
        }
    }

    /// What its consumer may fetch ahead of its clients.
    fn ahead_kbytes(&self) -> usize {
        self.around.bounds.budget.ahead_kbytes(self.around.config.kafka.fetch_queue_kbytes)
    }

    /// Waits before the next client; only the group's closing ends it early.
    async fn rest(&self) {
        let by = Instant::now() + REJOIN;
        while !self.group.is_closing() && Instant::now() < by {
            let rung = self.group.bell.wait();
            within(by.saturating_duration_since(Instant::now()), rung).await;
        }
    }

    /// Leaves, with what is acknowledged committed. Gives up waiting after some seconds: the session then times out.
    pub async fn leave(&self) {
        self.group.close();
        let over = self.over.wait();
        if !self.is_over.get() && within(LEAVE_MAX + COMMIT_MAX, over).await.is_none() {
            self.around.stats.closes_overdue.one();
            tracing::warn!(group = self.group.group_id, "a group could not be left in time");
        }
        self.abandon();
        self.around.stats.groups_closed.one();
    }

    /// Ends the pump without a good-bye; the client goes with it.
    pub fn abandon(&self) {
        self.task.replace(None);
        self.seeks.clear();
    }

    /// What is to be committed, in librdkafka's form.
    pub fn commits(&self, ends: &[(Partition, Offset)]) -> PartitionList {
        offsets::commits(&self.topic, ends, self.standing.borrow().first_partitions)
    }
}

// === the commits of others ===

impl Member {
    /// A member that has no partitions learns what others have committed, once: when the topic is made again it could not know
    /// otherwise that the group is older. If that fails, the pump asks for it again. Gives `false` when it was not this member's turn.
    pub fn look(self: &Rc<Self>, client: &Arc<Client>) -> bool {
        if !self.standing.borrow().is_to_look() {
            return true;
        }
        if self.around.is_looking.replace(true) {
            return false;
        }
        let (this, client) = (Rc::clone(self), Arc::clone(client));
        glommio::spawn_local(async move {
            let (topic, standing) = (this.topic.clone(), this.standing.borrow().clone());
            let look = move || offsets::look(&client, &topic, &standing, COMMIT_MAX);
            if let Ok(Ok(commits)) = this.around.offload.run(look).await {
                this.around.stats.looks.one();
                this.standing.borrow_mut().learn(&commits);
            }
            this.around.is_looking.set(false);
        })
        .detach();
        true
    }
}

// === trouble ===

impl Member {
    /// Something that should work does not, at the moment.
    pub fn trouble(&self, reason: &str) {
        self.around.stats.errors.one();
        if let Some(held) = self.around.reach.log.pass(Instant::now()) {
            tracing::warn!(group = self.group.group_id, reason, held, "trouble with a group");
        }
        if !self.group.is_assigned() {
            self.group.fail(reason);
        }
    }
}

/// Rings the group's bell whenever one of the client's queues has something. Ends with the client, or dropped.
async fn ring(group: Rc<Group>, mut hear: Socket) {
    let mut bytes = [0; 64];
    while let Ok(1..) = hear.read(&mut bytes).await {
        group.bell.ring();
    }
}

/// How long a pump that leaves waits for librdkafka.
pub(super) fn leave_by(now: Instant) -> Instant {
    now + LEAVE_MAX
}
