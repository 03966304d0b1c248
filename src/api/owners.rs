//! Who owns what of a group: this gateway, another one, or a member that is no gateway; and asking the others.
//!
//! The group's member list (Kafka's DescribeGroups) says which member owns which partition, and a gateway's consumer says by its
//! `client.id` where it is reached: `kateway-<id>@<HOST:PORT>`. A look at the list is kept for a moment, and renewed when it proved
//! wrong. Invariants: a request goes from gateway to gateway once; reads prefer what is owned here; what is asked of another gateway
//! is bounded in number and time. Per core: a group's home asks for its group.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    backend::Backend,
    codes,
    context::{Context, DataPlane},
    frame::{AckAt, BuryAt, Done, FetchRequest, GroupKey, Op, Origin, RemoteLease},
    home::Lease,
    reply::{self, Problem},
};
use crate::{
    limits,
    store::{
        Acked, AdminError, FetchSpec, Group, GroupMember, LeaseSpec, Offset, Partition, SeekError, Store,
        notify::Notify,
    },
};

/// How long a look at the member list is trusted.
pub const TRUSTED: Duration = Duration::from_secs(3);
/// The shortest time between two looks.
const LOOK_SPACING: Duration = Duration::from_millis(200);
/// How long a read waits for what is owned here before it asks elsewhere, where anything is owned here.
const HERE_FIRST: Duration = Duration::from_millis(500);
/// The same where nothing is: the first assignment may be on its way.
const HERE_FIRST_EMPTY: Duration = Duration::from_millis(50);
/// How long one of several owners is asked before it is the next one's turn.
const TURN: Duration = Duration::from_secs(2);
/// After an owner had nothing to say, or could not be reached.
const ASK_AGAIN: Duration = Duration::from_millis(300);
/// A lease of a read that was forwarded for a client in auto mode; renewed while the answer is on its way.
const AUTO_TERM: Duration = Duration::from_secs(10);
/// How long an acknowledgement, a burial or a move looks for an owner during a rebalance.
const FIND_WITHIN: Duration = Duration::from_secs(8);
/// What one of them may take at its owner.
const OP_WITHIN: Duration = Duration::from_secs(8);

/// A member of a group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Owner {
    Us,
    /// Another gateway, reached there; none where it says no address.
    Gateway(Option<Arc<str>>),
    /// What it calls itself.
    Stranger(String),
}

/// One look at the member list.
#[derive(Debug, Default)]
pub struct Whereabouts {
    pub members: Vec<(Owner, GroupMember)>,
}

impl Whereabouts {
    fn owner_of(&self, partition: Partition) -> Option<&Owner> {
        self.members.iter().find(|(_, member)| member.partitions.contains(&partition)).map(|(owner, _)| owner)
    }
}

type Looked = Result<Rc<Whereabouts>, Problem>;

#[derive(Debug, Default)]
struct Look {
    is_running: Cell<bool>,
    last: RefCell<Option<(Instant, Looked)>>,
    bell: Notify,
}

/// Per core: the looks at the groups that live here.
#[derive(Debug, Default)]
pub struct Looks {
    by_group: RefCell<HashMap<GroupKey, Rc<Look>, ahash::RandomState>>,
}

impl Looks {
    fn of(&self, key: &GroupKey) -> Rc<Look> {
        let mut by_group = self.by_group.borrow_mut();
        if by_group.len() >= limits::GROUP_LOOKS_MAX && !by_group.contains_key(key) {
            by_group.retain(|_, look| look.is_running.get());
        }
        Rc::clone(by_group.entry(key.clone()).or_default())
    }
}

/// Who this member is, by what its `client.id` says.
fn owner(ctx: &Context, client_id: &str) -> Owner {
    let Some(name) = client_id.strip_prefix("kateway-") else { return Owner::Stranger(client_id.to_owned()) };
    let config = ctx.config.borrow();
    let (id, addr) = name.split_once('@').map_or((name, None), |(id, addr)| (id, Some(addr)));
    // A member of this address under another id is an earlier life of this gateway, until its session is over.
    let is_here = addr.is_some() && addr == config.gateway.advertise.as_deref();
    if is_here || (id == config.gateway.id && addr.is_none()) {
        return Owner::Us;
    }
    Owner::Gateway(addr.map(Arc::from))
}

/// Whether there can be other members. Whether those that are gateways answer is found when they are asked.
pub fn may_ask(ctx: &Context) -> bool {
    matches!(ctx.data, Some(DataPlane { backend: Backend::Kafka(_), .. }))
}

/// The group's members, by a look that is at most `age_max` old.
pub async fn look(ctx: &Rc<Context>, key: &GroupKey, age_max: Duration) -> Result<Rc<Whereabouts>, Problem> {
    let data = ctx.plane()?;
    let look = data.looks.of(key);
    let wanted = Instant::now().checked_sub(age_max.max(LOOK_SPACING));
    loop {
        if let Some((at, found)) = look.last.borrow().as_ref()
            && wanted.is_none_or(|wanted| *at >= wanted)
        {
            return found.clone();
        }
        let rung = look.bell.wait();
        if !look.is_running.replace(true) {
            let (ctx, key, look) = (Rc::clone(ctx), key.clone(), Rc::clone(&look));
            // In a task of its own: whoever asked may go away, others wait for the same look.
            glommio::spawn_local(async move {
                let found = look_now(&ctx, &key).await;
                look.last.replace(Some((Instant::now(), found)));
                look.is_running.set(false);
                look.bell.ring();
            })
            .detach();
        }
        rung.await;
    }
}

async fn look_now(ctx: &Rc<Context>, key: &GroupKey) -> Result<Rc<Whereabouts>, Problem> {
    let data = ctx.plane()?;
    ctx.metrics.cells.group_looks.add(1);
    let info = data.backend.describe_group(&key.topic, &key.group_id).await.map_err(reply::admin_failed)?;
    let members = info.members.into_iter().map(|member| (owner(ctx, &member.client_id), member));
    Ok(Rc::new(Whereabouts { members: members.collect() }))
}

// === reading ===

/// Reads what is owned here, and what others own while there is nothing here.
pub async fn fetch(
    ctx: &Rc<Context>,
    key: &GroupKey,
    group: &Rc<Group>,
    request: &FetchRequest,
) -> Result<Lease, Problem> {
    let spec = &request.spec;
    let failure = RefCell::new(None);
    let here = async {
        let delivery = group.fetch(spec).await.map_err(reply::fetch_failed)?;
        Ok(Lease::Local { group: Rc::clone(group), delivery })
    };
    let elsewhere = async { Ok(fetch_elsewhere(ctx, key, group, request, &failure).await) };
    // What is here is looked at first; whichever is dropped gives back what it has.
    let lease = futures_lite::future::or(here, elsewhere).await?;
    match failure.into_inner() {
        // Nothing is owned here, and those who own something could not be asked.
        Some(problem) if is_empty(&lease) && group.partitions().is_empty() => Err(problem),
        _ => Ok(lease),
    }
}

fn is_empty(lease: &Lease) -> bool {
    match lease {
        Lease::Nothing => true,
        Lease::Local { delivery, .. } => delivery.messages.is_empty(),
        Lease::Remote(remote) => remote.delivery.messages.is_empty(),
    }
}

/// Asks the other owners, one after the other, until one has something. Ends by being dropped.
async fn fetch_elsewhere(
    ctx: &Rc<Context>,
    key: &GroupKey,
    group: &Rc<Group>,
    request: &FetchRequest,
    failure: &RefCell<Option<Problem>>,
) -> Lease {
    let by = Instant::now() + request.spec.wait;
    let mut turn = 0_usize;
    let mut age_max = TRUSTED;
    let mut is_first = true;
    loop {
        let owned = group.partitions().len();
        if i32::try_from(owned).is_ok_and(|owned| owned >= request.partitions) {
            group.changed.wait().await;
            continue;
        }
        if std::mem::take(&mut is_first) {
            glommio::timer::sleep(if owned == 0 { HERE_FIRST_EMPTY } else { HERE_FIRST }).await;
            continue;
        }
        let gateways = match look(ctx, key, age_max).await {
            Ok(members) => others(&members, failure),
            Err(problem) => {
                failure.replace(Some(problem));
                Vec::new()
            }
        };
        age_max = TRUSTED;
        if gateways.is_empty() {
            glommio::timer::sleep(ASK_AGAIN).await;
            continue;
        }
        let addr = &gateways[turn % gateways.len()];
        turn += 1;
        let left = by.saturating_duration_since(Instant::now());
        let wait = if gateways.len() == 1 { left } else { left.min(TURN) };
        let asked_at = Instant::now();
        match fetch_from(ctx, key, addr, request, wait).await {
            Ok(lease) if !is_empty(&lease) => {
                failure.replace(None);
                return lease;
            }
            Ok(_) => failure.replace(None),
            Err(problem) => {
                // It may have gone since: look again.
                age_max = Duration::ZERO;
                failure.replace(Some(problem))
            }
        };
        if asked_at.elapsed() < ASK_AGAIN {
            glommio::timer::sleep(ASK_AGAIN).await;
        }
    }
}

/// Where the other gateways are that own something; notes what stands in the way where there is none.
fn others(members: &Whereabouts, failure: &RefCell<Option<Problem>>) -> Vec<Arc<str>> {
    let owning = members.members.iter().filter(|(_, member)| !member.partitions.is_empty());
    let mut gateways = Vec::new();
    let mut problem = None;
    for (owner, _) in owning {
        match owner {
            Owner::Gateway(Some(addr)) => gateways.push(Arc::clone(addr)),
            Owner::Gateway(None) => problem = Some(unreachable("it does not say where it is reached")),
            Owner::Stranger(name) => problem = Some(stranger(name)),
            Owner::Us => {}
        }
    }
    if gateways.is_empty() {
        failure.replace(problem);
    }
    gateways
}

async fn fetch_from(
    ctx: &Rc<Context>,
    key: &GroupKey,
    addr: &Arc<str>,
    request: &FetchRequest,
    wait: Duration,
) -> Result<Lease, Problem> {
    let data = ctx.plane()?;
    let _place = data.peers.place(ctx)?;
    let auto = LeaseSpec { term: AUTO_TERM, deliveries_max: None, stream: None, is_auto: true };
    let lease = request.spec.lease.unwrap_or(auto);
    let spec = FetchSpec { wait, lease: Some(lease), ..request.spec.clone() };
    let (partitions, reset) = (request.partitions, request.reset);
    let op = Op::Fetch(FetchRequest { partitions, reset, spec, is_from_peer: true });
    ctx.metrics.cells.sub_peer_reads.add(1);
    let within = wait + request.spec.linger + OP_WITHIN;
    let Done::Fetched(delivery) = data.peers.call(ctx, addr, key, &op, within).await? else {
        return Err(unreachable("it answered something else"));
    };
    let origin = Origin::Peer(Arc::clone(addr));
    data.peers.keep(addr, key, &delivery.grants, lease.is_auto);
    Ok(Lease::Remote(RemoteLease::new(delivery, origin, key, ctx.shard, &ctx.mesh)))
}

// === acknowledging, burying, moving ===

/// Has the owners acknowledge what is not owned here.
pub async fn ack(ctx: &Rc<Context>, key: &GroupKey, items: &[AckAt], acked: &mut [Acked]) -> Result<(), Problem> {
    let mut finder = Finder::new(ctx, key);
    loop {
        let open: Vec<usize> = (0..items.len()).filter(|at| acked[*at] == Acked::NotOwned).collect();
        let Some(first) = open.first() else { return Ok(()) };
        let Some(addr) = finder.gateway_of(items[*first].partition).await? else {
            for at in open {
                acked[at] = Acked::NotLeased;
            }
            return Ok(());
        };
        let theirs: Vec<usize> = open.into_iter().filter(|at| finder.is_at(items[*at].partition, &addr)).collect();
        let op = Op::Ack(theirs.iter().map(|at| items[*at]).collect());
        if let Done::Acked(found) = finder.call(&addr, &op).await? {
            theirs.iter().zip(found).for_each(|(at, found)| acked[*at] = found);
        }
    }
}

/// Has the owner bury a message.
pub async fn bury(ctx: &Rc<Context>, key: &GroupKey, bury: BuryAt) -> Result<Acked, Problem> {
    let mut finder = Finder::new(ctx, key);
    let (partition, op) = (bury.partition, Op::Bury(bury));
    while let Some(addr) = finder.gateway_of(partition).await? {
        match finder.call(&addr, &op).await? {
            Done::Buried(Acked::NotOwned) => {}
            Done::Buried(found) => return Ok(found),
            _ => return Err(unreachable("it answered something else")),
        }
    }
    Ok(Acked::NotLeased)
}

/// Moves partitions: those owned here, those of other gateways, and those nobody owns.
pub async fn move_to(
    ctx: &Rc<Context>,
    key: &GroupKey,
    group: Option<Rc<Group>>,
    moves: Vec<(Partition, Offset)>,
    is_from_peer: bool,
) -> Result<Vec<Acked>, Problem> {
    let data = ctx.plane()?;
    let mut moved = vec![Acked::NotOwned; moves.len()];
    let mut finder = Finder::new(ctx, key);
    loop {
        for (at, place) in
            moves.iter().enumerate().filter(|(_, (p, _))| group.as_ref().is_some_and(|g| g.partitions().contains(p)))
        {
            let Some(group) = group.as_ref().filter(|_| moved[at] == Acked::NotOwned) else { continue };
            match data.backend.seek(group, vec![*place]).await {
                Ok(()) => moved[at] = Acked::Done,
                Err(SeekError::NotOwned(_)) => {}
                Err(SeekError::Unavailable { reason }) => return Err(Problem::new(&codes::UNAVAILABLE, reason)),
            }
        }
        let open: Vec<usize> = (0..moves.len()).filter(|at| moved[*at] == Acked::NotOwned).collect();
        let Some(first) = open.first().filter(|_| !is_from_peer) else { return Ok(moved) };
        if let Some(addr) = finder.gateway_of(moves[*first].0).await? {
            let theirs: Vec<usize> = open.into_iter().filter(|at| finder.is_at(moves[*at].0, &addr)).collect();
            let op = Op::Move(theirs.iter().map(|at| moves[*at]).collect());
            if let Done::Moved(found) = finder.call(&addr, &op).await? {
                theirs.iter().zip(found).for_each(|(at, found)| moved[*at] = found);
            }
            continue;
        }
        // Nobody reads: the commits are anybody's.
        let topic = ctx.find_topic(&key.topic, false).await?;
        let ends: Vec<_> = open.iter().map(|at| moves[*at]).collect();
        match data.backend.set_committed(&topic, &key.group_id, &ends).await {
            Ok(()) => return Ok(vec![Acked::Done; moves.len()]),
            // Somebody joins, or leaves.
            Err(AdminError::InUse) if finder.may_go_on() => finder.rest().await,
            Err(error) => return Err(reply::admin_failed(error)),
        }
    }
}

/// Looks for the owners of partitions, for a while: during a rebalance nobody owns what is on its way.
struct Finder<'a> {
    ctx: &'a Rc<Context>,
    key: &'a GroupKey,
    by: Instant,
    members: Rc<Whereabouts>,
    is_first: bool,
}

impl<'a> Finder<'a> {
    fn new(ctx: &'a Rc<Context>, key: &'a GroupKey) -> Self {
        Self { ctx, key, by: Instant::now() + FIND_WITHIN, members: Rc::default(), is_first: true }
    }

    fn may_go_on(&self) -> bool {
        Instant::now() < self.by
    }

    async fn rest(&self) {
        glommio::timer::sleep(ASK_AGAIN).await;
    }

    fn is_at(&self, partition: Partition, addr: &Arc<str>) -> bool {
        matches!(self.members.owner_of(partition), Some(Owner::Gateway(Some(at))) if at == addr)
    }

    /// The gateway that owns the partition; `None` when nobody does who could be asked, so no lease of it is alive.
    async fn gateway_of(&mut self, partition: Partition) -> Result<Option<Arc<str>>, Problem> {
        if !may_ask(self.ctx) {
            return Ok(None);
        }
        loop {
            // What was trusted at first has proved wrong when it is asked for again.
            let age_max = if std::mem::take(&mut self.is_first) { TRUSTED } else { Duration::ZERO };
            self.members = look(self.ctx, self.key, age_max).await?;
            match self.members.owner_of(partition) {
                Some(Owner::Gateway(Some(addr))) if self.may_go_on() => return Ok(Some(Arc::clone(addr))),
                Some(Owner::Gateway(Some(_))) => return Err(unreachable("the group does not come to rest")),
                Some(Owner::Gateway(None)) => return Err(unreachable("it does not say where it is reached")),
                Some(Owner::Stranger(name)) => return Err(stranger(name)),
                None if self.members.members.is_empty() => return Ok(None),
                // On its way to somebody; or ours by the list, and not yet, or not any more, by what we know.
                Some(Owner::Us) | None if self.may_go_on() => self.rest().await,
                Some(Owner::Us) | None => return Ok(None),
            }
        }
    }

    async fn call(&self, addr: &Arc<str>, op: &Op) -> Result<Done, Problem> {
        let data = self.ctx.plane()?;
        let mut answer = data.peers.call(self.ctx, addr, self.key, op, OP_WITHIN).await;
        if answer.as_ref().is_err_and(|problem| *problem.code == codes::PEER_UNREACHABLE) {
            self.rest().await;
            answer = data.peers.call(self.ctx, addr, self.key, op, OP_WITHIN).await;
        }
        answer
    }
}

pub fn unreachable(why: &str) -> Problem {
    Problem::new(&codes::PEER_UNREACHABLE, format!("the gateway that owns the partition could not be asked: {why}"))
}

fn stranger(name: &str) -> Problem {
    Problem::new(&codes::OWNER_FOREIGN, format!("the partition is owned by {name:?}, which is not a kateway"))
}

/// Asks every other gateway that is a member. One that does not answer is left out.
pub async fn ask_all(ctx: &Rc<Context>, key: &GroupKey, members: &Whereabouts, op: &Op) -> Vec<Done> {
    let Some(data) = ctx.data.as_ref().filter(|_| may_ask(ctx)) else { return Vec::new() };
    let (mut answers, mut asked) = (Vec::new(), Vec::new());
    for (owner, _) in &members.members {
        let Owner::Gateway(Some(addr)) = owner else { continue };
        if !asked.contains(&addr) {
            asked.push(addr);
            answers.extend(data.peers.call(ctx, addr, key, op, OP_WITHIN).await.ok());
        }
    }
    answers
}
