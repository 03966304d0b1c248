//! Who owns what of a group: this gateway, another one, or a member that is no gateway.
//!
//! The group's member list (Kafka's DescribeGroups) says which member owns which partition, and a gateway's consumer says by its
//! `client.id` where it is reached: `kateway-<id>@<HOST:PORT>`. A look at the list is kept for a moment, and renewed when it proved
//! wrong. Invariants: one look at a group at a time, whoever waits for it; few at a time on a core, because each asks every broker and
//! holds a thread meanwhile. Per core: a group's home asks for its group. What is asked of other gateways: [`super::elsewhere`].

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
    frame::GroupKey,
    reply::{self, Problem},
};
use crate::{
    limits,
    store::{
        GroupMember, Partition, Store,
        notify::{Gate, Notify},
    },
};

/// How long a look at the member list is trusted.
pub const TRUSTED: Duration = Duration::from_secs(3);
/// How long it is a guess, when there is no newer one.
const GOOD_FOR: Duration = Duration::from_secs(30);
/// The shortest time between two looks, and how long one that failed is the last word.
const LOOK_SPACING: Duration = Duration::from_millis(200);

/// A member of a group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Owner {
    Us,
    /// Another gateway, reached there; none where it says no address.
    Gateway(Option<Arc<str>>),
    /// What it calls itself.
    Stranger(String),
}

impl Owner {
    /// Why what it owns cannot be asked for.
    pub fn refusal(&self) -> Option<Problem> {
        match self {
            Self::Us | Self::Gateway(Some(_)) => None,
            Self::Gateway(None) => Some(unreachable("it does not say where it is reached")),
            Self::Stranger(name) => Some(stranger(name)),
        }
    }
}

/// One look at the member list.
#[derive(Clone, Debug, Default)]
pub struct Whereabouts {
    pub members: Vec<(Owner, GroupMember)>,
    /// What none of them has, nobody has.
    pub is_settled: bool,
}

impl Whereabouts {
    pub fn owner_of(&self, partition: Partition) -> Option<&Owner> {
        self.members.iter().find(|(_, member)| member.partitions.contains(&partition)).map(|(owner, _)| owner)
    }

    /// Where the other gateways are, each once.
    pub fn gateways(&self) -> Vec<Arc<str>> {
        let mut found: Vec<Arc<str>> = Vec::new();
        for (owner, _) in &self.members {
            if let Owner::Gateway(Some(addr)) = owner
                && !found.contains(addr)
            {
                found.push(Arc::clone(addr));
            }
        }
        found
    }
}

type Looked = Result<Rc<Whereabouts>, Problem>;

/// What is known of one group, and whether asking other gateways for it was worth it.
#[derive(Debug, Default)]
pub struct Look {
    is_running: Cell<bool>,
    last: RefCell<Option<(Instant, Looked)>>,
    /// The last that succeeded.
    good: RefCell<Option<(Instant, Rc<Whereabouts>)>>,
    bell: Notify,
    pub asking: Asking,
}

impl Look {
    /// A look fails when any broker is away, also one that has nothing to do with the group: then what was known is the better guess, and
    /// whoever is asked knows for himself what he owns.
    fn or_good(&self, found: Looked) -> Looked {
        let mut good = self.good.borrow_mut();
        match (&found, good.as_ref()) {
            (Ok(members), _) => *good = Some((Instant::now(), Rc::clone(members))),
            (Err(_), Some((at, members))) if at.elapsed() < GOOD_FOR => {
                return Ok(Rc::new(Whereabouts { is_settled: false, ..Whereabouts::clone(members) }));
            }
            (Err(_), _) => {}
        }
        found
    }
}

/// How reads of what others own go.
#[derive(Debug, Default)]
pub struct Asking {
    /// When a read last began with the others.
    pub began_at: Cell<Option<Instant>>,
    /// They had something then.
    pub gave: Cell<bool>,
    /// Whose turn it is, of several gateways.
    turn: Cell<usize>,
}

impl Asking {
    /// One of them, each in its turn.
    pub fn next_of<'a, T>(&self, gateways: &'a [T]) -> &'a T {
        let turn = self.turn.get();
        self.turn.set(turn.wrapping_add(1));
        &gateways[turn % gateways.len()]
    }
}

/// Per core: the looks at the groups that live here.
#[derive(Debug, Default)]
pub struct Looks {
    by_group: RefCell<HashMap<GroupKey, Rc<Look>, ahash::RandomState>>,
    gate: Gate,
}

impl Looks {
    pub fn of(&self, key: &GroupKey) -> Rc<Look> {
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

/// Whether gateways among them can be asked.
pub fn has_secret(ctx: &Context) -> bool {
    ctx.config.borrow().gateway.peer_secret.is_some()
}

/// The group's members, by a look that is at most `age_max` old.
pub async fn look(ctx: &Rc<Context>, key: &GroupKey, age_max: Duration) -> Result<Rc<Whereabouts>, Problem> {
    let look = ctx.plane()?.looks.of(key);
    let wanted = Instant::now().checked_sub(age_max.max(LOOK_SPACING));
    loop {
        if let Some((at, found)) = look.last.borrow().as_ref()
            && wanted.is_none_or(|wanted| *at >= wanted)
            && (found.is_ok() || at.elapsed() < LOOK_SPACING)
        {
            return found.clone();
        }
        let rung = look.bell.wait();
        begin(ctx, key, &look);
        rung.await;
    }
}

/// What is known, if that was good not long ago, else by a look. Whoever has found it wrong looks anew.
pub async fn known(ctx: &Rc<Context>, key: &GroupKey, is_wrong: bool) -> Result<Rc<Whereabouts>, Problem> {
    if is_wrong {
        return look(ctx, key, Duration::ZERO).await;
    }
    match glance(ctx, key) {
        Some(members) => Ok(members),
        None => look(ctx, key, TRUSTED).await,
    }
}

/// What is known at once; a look is begun where that is old, or nothing.
pub fn glance(ctx: &Rc<Context>, key: &GroupKey) -> Option<Rc<Whereabouts>> {
    let look = ctx.plane().ok()?.looks.of(key);
    let known = look.good.borrow().clone().filter(|(at, _)| at.elapsed() < GOOD_FOR);
    if known.as_ref().is_none_or(|(at, _)| at.elapsed() >= TRUSTED) {
        begin(ctx, key, &look);
    }
    known.map(|(_, members)| members)
}

/// In a task of its own: whoever asked may go away, others wait for the same look.
fn begin(ctx: &Rc<Context>, key: &GroupKey, look: &Rc<Look>) {
    if look.is_running.replace(true) {
        return;
    }
    let (ctx, key, look) = (Rc::clone(ctx), key.clone(), Rc::clone(look));
    glommio::spawn_local(async move {
        let found = look_now(&ctx, &key).await;
        let found = look.or_good(found);
        look.last.replace(Some((Instant::now(), found)));
        look.is_running.set(false);
        look.bell.ring();
    })
    .detach();
}

async fn look_now(ctx: &Rc<Context>, key: &GroupKey) -> Result<Rc<Whereabouts>, Problem> {
    let data = ctx.plane()?;
    let _pass = data.looks.gate.enter(limits::GROUP_LOOKS_RUNNING_MAX).await;
    ctx.metrics.cells.group_looks.add(1);
    let info = data.backend.describe_group(&key.topic, &key.group_id).await.map_err(reply::admin_failed)?;
    let is_settled = info.is_settled;
    let members = info.members.into_iter().map(|member| (owner(ctx, &member.client_id), member));
    Ok(Rc::new(Whereabouts { members: members.collect(), is_settled }))
}

pub fn unreachable(why: &str) -> Problem {
    Problem::new(&codes::PEER_UNREACHABLE, format!("the gateway that owns the partition could not be asked: {why}"))
}

fn stranger(name: &str) -> Problem {
    Problem::new(&codes::OWNER_FOREIGN, format!("the partition is owned by {name:?}, which is not a kateway"))
}
