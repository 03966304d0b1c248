//! Reading, acknowledging, burying and moving what other gateways own of a group.
//!
//! ```text
//!   read:  [ others first, now and then ] --> here, and after a moment the others beside it --> [ the others, if nobody was asked ]
//!   act:   here --> by the member list: each owner once --> what none has done yet: a new look, from the start, for a while
//! ```
//!
//! Invariants: a request goes from gateway to gateway once; reads prefer what is owned here, without letting what others own lie; what
//! is asked of another gateway is bounded in number and time; an answer of another gateway that nobody waits for any more is given
//! back at once. Per core: a group's home asks for its group.

use std::{
    cell::{Cell, OnceCell, RefCell},
    future::poll_fn,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};

use futures_channel::oneshot;

use super::{
    bury, codes,
    context::{Context, DataPlane},
    frame::{AckAt, Done, FetchRequest, GroupKey, Op, Origin, RemoteLease},
    home::Lease,
    owners::{self, Owner, TRUSTED, Whereabouts, stranger, unreachable},
    peer::{AUTO, ON_WAY},
    reply::{self, Problem},
};
use crate::{
    store::{Acked, AdminError, FetchError, FetchSpec, Group, LeaseSpec, SeekError, Store},
    within::within,
};

/// How long a read waits for what is owned here before it asks elsewhere, where anything is owned here.
const HERE_FIRST: Duration = Duration::from_millis(500);
/// The same where nothing is: the first assignment may be on its way.
const HERE_FIRST_EMPTY: Duration = Duration::from_millis(50);
/// One read in so long begins with the others, so that what they own does not lie while there is always something here.
const OTHERS_FIRST_EVERY: Duration = Duration::from_millis(500);
/// How long such a read waits for them: it is a detour.
const FIRST_ANSWERS_WITHIN: Duration = Duration::from_millis(500);
/// When they did not answer within that, no read begins with them for so long.
const OTHERS_SILENT: Duration = Duration::from_secs(5);
/// How long an owner is asked at a time: what it owns may change, and what nobody waits for any more must not wait there for long.
const TURN: Duration = Duration::from_secs(2);
/// After an owner had nothing to say, or could not be reached.
const ASK_AGAIN: Duration = Duration::from_millis(300);
/// What an answer of another gateway may take on top of its wait.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// How long a read whose time is over waits for an answer that must be on its way.
const LAST_ANSWER_WITHIN: Duration = Duration::from_secs(1);
/// How long it waits for all owners, when nobody was asked before.
const LAST_ANSWERS_WITHIN: Duration = Duration::from_secs(2);
/// How long the first read by a tag filter waits for what other gateways say to it.
const AGREE_WITHIN: Duration = Duration::from_secs(2);
/// How long an acknowledgement, a burial or a move looks for an owner during a rebalance.
const FIND_WITHIN: Duration = Duration::from_secs(8);
/// What an acknowledgement may take at its owner.
const ACK_WITHIN: Duration = Duration::from_secs(2);

// === reading ===

/// Reads what is owned here, and what others own.
pub async fn fetch(
    ctx: &Rc<Context>,
    key: &GroupKey,
    group: &Rc<Group>,
    request: &FetchRequest,
) -> Result<Lease, Problem> {
    agree_filter(ctx, key, group, request).await?;
    let read = Read::new(ctx, key, group, request)?;
    if read.begins_with_others()
        && let Some(lease) = read.ask_each(FIRST_ANSWERS_WITHIN).await
    {
        return Ok(lease);
    }
    let here = async {
        let delivery = group.fetch(&request.spec).await.map_err(reply::fetch_failed)?;
        Ok(Lease::Local { group: Rc::clone(group), delivery })
    };
    // What is here is looked at first. An answer of another gateway that is late for it is given back by whoever waits for it.
    let lease = futures_lite::future::or(here, async { Ok(read.ask_until_found().await) }).await?;
    if !is_empty(&lease) {
        return Ok(lease);
    }
    if let Some(lease) = read.last_chance().await {
        return Ok(lease);
    }
    match read.failure.take() {
        // Nothing is owned here, and those who own something could not be asked.
        Some(problem) if group.owned() == 0 => Err(problem),
        _ => Ok(lease),
    }
}

/// A group has one tag filter at a time, wherever it is read: before the first read by another than the last, the other gateways are asked
/// whether theirs are over.
async fn agree_filter(ctx: &Rc<Context>, key: &GroupKey, group: &Group, request: &FetchRequest) -> Result<(), Problem> {
    let filter = &request.spec.filter;
    if ctx.config.borrow().gateway.peer_secret.is_none() || group.has_agreed(filter.as_ref()) {
        return Ok(());
    }
    group.adopt_filter(filter.as_ref()).map_err(reply::fetch_failed)?;
    let refused = async {
        let members = owners::look(ctx, key, TRUSTED).await?;
        let answers = ask_all(ctx, key, &members, &Op::Filter(filter.clone())).await;
        Ok(answers.iter().any(|done| matches!(done, Done::Filter { is_taken: false })))
    };
    if within(AGREE_WITHIN, refused).await == Some(Ok::<_, Problem>(true)) {
        return Err(reply::fetch_failed(FetchError::FilterConflict));
    }
    // Who cannot be asked has no say: reading goes on.
    group.set_agreed(filter.as_ref());
    Ok(())
}

fn is_empty(lease: &Lease) -> bool {
    match lease {
        Lease::Nothing => true,
        Lease::Local { delivery, .. } => delivery.messages.is_empty(),
        Lease::Remote(remote) => remote.delivery.messages.is_empty(),
    }
}

type Answer = Result<RemoteLease, Problem>;

/// One read, as far as other gateways have to do with it.
struct Read<'a> {
    ctx: &'a Rc<Context>,
    key: &'a GroupKey,
    group: &'a Rc<Group>,
    request: &'a FetchRequest,
    data: &'a DataPlane,
    /// Looked for when it is needed: most reads find what they want here.
    look: OnceCell<Rc<owners::Look>>,
    /// Why nobody could be asked, the last time.
    failure: RefCell<Option<Problem>>,
    /// Somebody was asked.
    has_asked: Cell<bool>,
    /// An answer that is waited for.
    coming: RefCell<Option<oneshot::Receiver<Answer>>>,
}

impl<'a> Read<'a> {
    fn new(
        ctx: &'a Rc<Context>,
        key: &'a GroupKey,
        group: &'a Rc<Group>,
        request: &'a FetchRequest,
    ) -> Result<Self, Problem> {
        let data = ctx.plane()?;
        let (look, failure, has_asked, coming) = Default::default();
        Ok(Self { ctx, key, group, request, data, look, failure, has_asked, coming })
    }

    fn asking(&self) -> &owners::Asking {
        &self.look.get_or_init(|| self.data.looks.of(self.key)).asking
    }

    /// Whether others own something, as far as can be said here.
    fn has_others(&self) -> bool {
        i32::try_from(self.group.owned()).is_ok_and(|owned| owned < self.request.partitions)
    }

    /// Whether this read asks the others before it looks here: every other one while they give, else one in a while.
    fn begins_with_others(&self) -> bool {
        if !self.has_others() || self.group.owned() == 0 {
            return false;
        }
        let (asking, now) = (self.asking(), Instant::now());
        let is_due = match asking.began_at.get() {
            None => true,
            Some(_) if asking.gave.take() => true,
            Some(at) => now.saturating_duration_since(at) >= OTHERS_FIRST_EVERY,
        };
        if is_due {
            asking.began_at.set(Some(now));
        }
        is_due
    }

    /// Asks each of the others once for what it has now.
    async fn ask_each(&self, limit: Duration) -> Option<Lease> {
        let asked = async {
            let gateways = self.others(TRUSTED).await;
            for _ in 0..gateways.len() {
                let lease = self.ask(self.asking().next_of(&gateways), Duration::ZERO).await;
                if let Ok(Some(lease)) = lease {
                    return Some(lease);
                }
            }
            None
        };
        let lease = within(limit, asked).await.unwrap_or_else(|| {
            self.failure.replace(Some(unreachable("it does not answer in time")));
            self.asking().began_at.set(Some(Instant::now() + OTHERS_SILENT));
            None
        });
        self.asking().gave.set(lease.is_some());
        lease
    }

    /// Asks the others, one after the other, until one has something. Ends by being dropped.
    async fn ask_until_found(&self) -> Lease {
        let by = Instant::now() + self.request.spec.wait;
        let mut head_start = Some(match (self.group.owned(), self.group.is_assigned()) {
            (0, true) => Duration::ZERO,
            (0, false) => HERE_FIRST_EMPTY,
            _ => HERE_FIRST,
        });
        let mut age_max = TRUSTED;
        loop {
            if !self.has_others() {
                self.group.changed.wait().await;
                continue;
            }
            if let Some(time) = head_start.take() {
                glommio::timer::sleep(time).await;
                continue;
            }
            let gateways = self.others(age_max).await;
            age_max = TRUSTED;
            if !gateways.is_empty() {
                let (left, asked_at) = (by.saturating_duration_since(Instant::now()), Instant::now());
                match self.ask(self.asking().next_of(&gateways), left.min(TURN)).await {
                    Ok(Some(lease)) => return lease,
                    Ok(None) => {}
                    // It may have gone since: look again.
                    Err(()) => age_max = Duration::ZERO,
                }
                if asked_at.elapsed() >= ASK_AGAIN {
                    continue;
                }
            }
            glommio::timer::sleep(ASK_AGAIN).await;
        }
    }

    /// When the read's time is over: an answer may be on its way, or nobody was asked yet.
    async fn last_chance(&self) -> Option<Lease> {
        if self.coming.borrow().is_some() {
            return within(LAST_ANSWER_WITHIN, self.answer()).await?.ok().flatten();
        }
        if self.has_asked.get() || !self.has_others() { None } else { self.ask_each(LAST_ANSWERS_WITHIN).await }
    }

    /// Where the other gateways are that own something; notes what stands in the way where there is none.
    async fn others(&self, age_max: Duration) -> Vec<Arc<str>> {
        let members = match owners::look(self.ctx, self.key, age_max).await {
            Ok(members) => members,
            Err(problem) => {
                self.failure.replace(Some(problem));
                return Vec::new();
            }
        };
        let mut gateways = Vec::new();
        let mut problem = None;
        for (owner, _) in members.members.iter().filter(|(_, member)| !member.partitions.is_empty()) {
            match owner {
                Owner::Gateway(Some(addr)) => gateways.push(Arc::clone(addr)),
                Owner::Gateway(None) => problem = Some(unreachable("it does not say where it is reached")),
                Owner::Stranger(name) => problem = Some(stranger(name)),
                Owner::Us => {}
            }
        }
        if gateways.is_empty() {
            self.failure.replace(problem);
        }
        gateways
    }

    /// Asks one of them. `Err`: it could not be asked.
    async fn ask(&self, addr: &Arc<str>, wait: Duration) -> Result<Option<Lease>, ()> {
        self.has_asked.set(true);
        let (answer, coming) = oneshot::channel();
        let lease = self.request.spec.lease.map_or(AUTO, |lease| LeaseSpec { on_way: Some(ON_WAY), ..lease });
        let spec = FetchSpec { wait, lease: Some(lease), ..self.request.spec.clone() };
        let asked = FetchRequest { spec, is_from_peer: true, ..*self.request };
        let (ctx, key, addr) = (Rc::clone(self.ctx), self.key.clone(), Arc::clone(addr));
        // In a task of its own, which nobody cuts off: what is on its way when nobody waits any more has to be given back.
        glommio::spawn_local(async move {
            // Dropping an answer that nobody took gives it back.
            let _ = answer.send(fetch_from(&ctx, &key, &addr, asked).await);
        })
        .detach();
        self.coming.replace(Some(coming));
        self.answer().await
    }

    /// The answer that is coming.
    async fn answer(&self) -> Result<Option<Lease>, ()> {
        let answer = poll_fn(|cx| match self.coming.borrow_mut().as_mut() {
            Some(coming) => Pin::new(coming).poll(cx).map(Result::ok),
            None => Poll::Ready(None),
        });
        let answer = answer.await;
        self.coming.replace(None);
        match answer {
            Some(Ok(lease)) => {
                self.failure.replace(None);
                let lease = Lease::Remote(lease);
                Ok(Some(lease).filter(|lease| !is_empty(lease)))
            }
            Some(Err(problem)) => {
                self.failure.replace(Some(problem));
                Err(())
            }
            None => Err(()),
        }
    }
}

async fn fetch_from(ctx: &Rc<Context>, key: &GroupKey, addr: &Arc<str>, request: FetchRequest) -> Answer {
    let data = ctx.plane()?;
    let place = data.peers.place(ctx);
    let _place = place.ok_or_else(|| unreachable("this core asks other gateways as often as it may"))?;
    ctx.metrics.cells.sub_peer_reads.add(1);
    let limit = request.spec.wait + request.spec.linger + ANSWER_WITHIN;
    let Done::Fetched(delivery) = data.peers.call(ctx, addr, key, &Op::Fetch(request), limit).await? else {
        return Err(unreachable("it answered something else"));
    };
    data.peers.keep(addr, key, &delivery.grants);
    Ok(RemoteLease::new(delivery, Origin::Peer(Arc::clone(addr)), key, ctx.shard, &ctx.mesh))
}

// === acknowledging, burying, moving ===

/// How long [`act`] may take.
pub fn patience(ctx: &Context, op: &Op) -> Duration {
    let look_max = ctx.config.borrow().kafka.admin_timeout;
    FIND_WITHIN + look_max + at_owner(ctx, op)
}

/// What it may take at an owner.
fn at_owner(ctx: &Context, op: &Op) -> Duration {
    let config = ctx.config.borrow();
    match op {
        Op::Bury(_) => config.publish.deadline * 2 + ACK_WITHIN,
        // A rebalance may have to end first, and each of the two waits for brokers.
        Op::Move(_) => config.kafka.admin_timeout * 2 + ACK_WITHIN,
        _ => ACK_WITHIN,
    }
}

/// Acknowledges, buries or moves, each item where its partition is owned. [`Acked::NotOwned`] is left where nobody says he owns it, so no
/// lease of it is alive.
pub async fn act(ctx: &Rc<Context>, key: &GroupKey, op: &Op, is_from_peer: bool) -> Result<Vec<Acked>, Problem> {
    let done = vec![Acked::NotOwned; op.partitions().len()];
    let mut acting = Acting { ctx, key, op, done, refused: None, missed: None };
    let by = Instant::now() + FIND_WITHIN;
    let mut age_max = TRUSTED;
    loop {
        // During a rebalance what is on its way to somebody may come here.
        acting.act_here().await?;
        if acting.is_over() || is_from_peer {
            return Ok(acting.done);
        }
        let members = if owners::may_ask(ctx) { owners::look(ctx, key, age_max).await? } else { Rc::default() };
        if members.members.is_empty() {
            if acting.act_for_nobody().await? {
                return Ok(acting.done);
            }
        } else {
            acting.ask_owners(&members).await?;
        }
        if acting.is_over() {
            return Ok(acting.done);
        }
        let (refused, missed, is_late) = (acting.refused.take(), acting.missed.take(), Instant::now() >= by);
        // What was trusted may be of yesterday; what was just looked up is not.
        if let Some(problem) = refused.filter(|_| age_max.is_zero()).or(missed.filter(|_| is_late)) {
            return Err(problem);
        }
        if is_late {
            return Ok(acting.done);
        }
        age_max = Duration::ZERO;
        glommio::timer::sleep(ASK_AGAIN).await;
    }
}

struct Acting<'a> {
    ctx: &'a Rc<Context>,
    key: &'a GroupKey,
    op: &'a Op,
    /// What became of each item.
    done: Vec<Acked>,
    /// Who owns an item is nobody who could be asked.
    refused: Option<Problem>,
    /// Who was to be asked did not answer, or not yet.
    missed: Option<Problem>,
}

impl Acting<'_> {
    fn is_over(&self) -> bool {
        !self.done.contains(&Acked::NotOwned)
    }

    /// Those of the items not done that pass.
    fn open(&self, passes: impl Fn(i32) -> bool) -> Vec<usize> {
        let partitions = self.op.partitions();
        let is_open = |at: &usize| self.done[*at] == Acked::NotOwned && passes(partitions[*at]);
        (0..partitions.len()).filter(is_open).collect()
    }

    async fn act_here(&mut self) -> Result<(), Problem> {
        let data = self.ctx.plane()?;
        let Some(group) = data.groups.get(self.key) else { return Ok(()) };
        let owned = group.partitions();
        let ours = self.open(|partition| owned.contains(&partition));
        if ours.is_empty() {
            return Ok(());
        }
        match self.op {
            Op::Ack(items) => ours.into_iter().for_each(|at| self.done[at] = ack(&group, &items[at])),
            Op::Bury(bury) => self.done[0] = bury::here(self.ctx, &group, bury).await?,
            Op::Move(moves) => match data.backend.seek(&group, ours.iter().map(|at| moves[*at]).collect()).await {
                Ok(()) => ours.into_iter().for_each(|at| self.done[at] = Acked::Done),
                // It went to another in the meantime; the others stay where they are.
                Err(SeekError::NotOwned(_)) => {}
                Err(SeekError::Unavailable { reason }) => return Err(Problem::new(&codes::UNAVAILABLE, reason)),
            },
            _ => {}
        }
        Ok(())
    }

    /// Nobody reads: no lease is alive, and the commits are anybody's. Gives whether that is the end of it.
    async fn act_for_nobody(&mut self) -> Result<bool, Problem> {
        let Op::Move(moves) = self.op else { return Ok(true) };
        let data = self.ctx.plane()?;
        let topic = self.ctx.find_topic(&self.key.topic, false).await?;
        let open = self.open(|_| true);
        let ends: Vec<_> = open.iter().map(|at| moves[*at]).collect();
        match data.backend.set_committed(&topic, &self.key.group_id, &ends).await {
            Ok(()) => open.into_iter().for_each(|at| self.done[at] = Acked::Done),
            // Somebody joins, or leaves.
            Err(AdminError::InUse) => self.missed = Some(reply::admin_failed(AdminError::InUse)),
            Err(error) => return Err(reply::admin_failed(error)),
        }
        Ok(self.is_over())
    }

    /// Asks each gateway for what it owns of the rest.
    async fn ask_owners(&mut self, members: &Whereabouts) -> Result<(), Problem> {
        for addr in members.gateways() {
            let is_theirs = |owner: &Owner| matches!(owner, Owner::Gateway(Some(at)) if *at == addr);
            let theirs = self.open(|partition| members.owner_of(partition).is_some_and(is_theirs));
            if theirs.is_empty() {
                continue;
            }
            let data = self.ctx.plane()?;
            let limit = at_owner(self.ctx, self.op);
            match data.peers.call(self.ctx, &addr, self.key, &self.op.only(&theirs), limit).await {
                Ok(Done::Each(found)) => theirs.iter().zip(found).for_each(|(at, found)| self.done[*at] = found),
                Ok(_) => return Err(unreachable("it answered something else")),
                // Asking twice for what was done is answered as the first time.
                Err(problem) if *problem.code == codes::PEER_UNREACHABLE => self.missed = Some(problem),
                Err(problem) => return Err(problem),
            }
        }
        for at in self.open(|_| true) {
            match members.owner_of(self.op.partitions()[at]) {
                Some(Owner::Gateway(None)) => {
                    self.refused = Some(unreachable("it does not say where it is reached"));
                }
                Some(Owner::Stranger(name)) => self.refused = Some(stranger(name)),
                // On its way to somebody; or ours by the list, and not yet, or not any more, by what we know.
                Some(Owner::Us | Owner::Gateway(Some(_))) | None => {}
            }
        }
        Ok(())
    }
}

fn ack(group: &Group, item: &AckAt) -> Acked {
    match item.extend {
        None => group.ack_at(item.partition, item.offset),
        Some(term) => group.extend_at(item.partition, item.offset, term),
    }
}

/// Asks every other gateway that is a member. One that does not answer is left out.
pub async fn ask_all(ctx: &Rc<Context>, key: &GroupKey, members: &Whereabouts, op: &Op) -> Vec<Done> {
    let Some(data) = ctx.data.as_ref().filter(|_| owners::may_ask(ctx)) else { return Vec::new() };
    let mut answers = Vec::new();
    for addr in members.gateways() {
        answers.extend(data.peers.call(ctx, &addr, key, op, ACK_WITHIN).await.ok());
    }
    answers
}
