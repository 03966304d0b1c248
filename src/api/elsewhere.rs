//! Reading what other gateways own of a group.
//!
//! ```text
//!   [ the others first, now and then ] --> here, and after a moment the others beside it --> [ the others, if nobody was asked ]
//! ```
//!
//! Invariants: a request goes from gateway to gateway once; reads prefer what is owned here, without letting what others own lie; what
//! is asked of another gateway is bounded in number, bytes and time; an answer of another gateway that nobody waits for any more is
//! given back at once; a group has one tag filter, wherever it is read. Per core: a group's home asks for its group.

use std::{
    cell::{Cell, OnceCell, RefCell},
    future::poll_fn,
    pin::{Pin, pin},
    rc::Rc,
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};

use futures_channel::oneshot;
use futures_lite::future;

use super::{
    act::ask_all,
    codes,
    context::{Context, DataPlane},
    frame::{Done, FetchRequest, GroupKey, Op, Origin, RemoteLease},
    home::Lease,
    owners::{self, Owner, Whereabouts, unreachable},
    peer::{AUTO, ON_WAY},
    reply::{self, Problem},
};
use crate::{
    limits,
    store::{FetchError, FetchSpec, Group, LeaseSpec},
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
/// And how many it asks; the next one asks further ones.
const ASKED_AT_ONCE_MAX: usize = 4;
/// When they did not answer within that, no read begins with them for so long.
const OTHERS_SILENT: Duration = Duration::from_secs(5);
/// How long an owner is asked at a time: what it owns may change, and what nobody waits for any more must not wait there for long.
const TURN: Duration = Duration::from_secs(2);
/// After an owner had nothing to say, or could not be reached.
const ASK_AGAIN: Duration = Duration::from_millis(300);
/// How long it takes to tell that nobody waits.
const END_WITHIN: Duration = Duration::from_secs(2);
/// What an answer of another gateway may take on top of its wait.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// How long a read whose time is over waits for an answer that must be on its way.
const LAST_ANSWER_WITHIN: Duration = Duration::from_secs(1);
/// How long it waits for all owners, when nobody was asked before.
const LAST_ANSWERS_WITHIN: Duration = Duration::from_secs(2);
/// How long the first read by a tag filter waits for what other gateways say to it.
const AGREE_WITHIN: Duration = Duration::from_secs(1);

// === reading ===

/// Reads what is owned here, and what others own.
pub async fn fetch(
    ctx: &Rc<Context>,
    key: &GroupKey,
    group: &Rc<Group>,
    request: &FetchRequest,
) -> Result<Lease, Problem> {
    // A reader from now on, so that nobody takes the group for free, or for another filter's, while others are asked.
    let reader = group.enter(&request.spec).map_err(reply::fetch_failed)?;
    // What has to do with other gateways stands in boxes: most reads find what they want here, and would only move the room for it.
    if !group.has_agreed(request.spec.filter.as_ref()) {
        Box::pin(agree_filter(ctx, key, group, request)).await?;
    }
    let read = Read::new(ctx, key, group, request)?;
    if read.begins_with_others()
        && let Some(members) = owners::glance(ctx, key)
        && let Some(lease) = Box::pin(read.ask_each(FIRST_ANSWERS_WITHIN, async { Ok(members) })).await
    {
        return Ok(lease);
    }
    let here = async {
        let delivery = group.fetch_as(&reader, &request.spec).await.map_err(reply::fetch_failed)?;
        Ok(Lease::Local { group: Rc::clone(group), delivery })
    };
    // What is here is looked at first. An answer of another gateway that is late for it is given back by whoever waits for it.
    let others = async {
        while !read.has_others() {
            group.changed.wait().await;
        }
        Ok(Box::pin(read.ask_until_found()).await)
    };
    let lease = future::or(here, others).await?;
    if !is_empty(&lease) {
        return Ok(lease);
    }
    if let Some(lease) = Box::pin(read.last_chance()).await {
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
    let refused = async {
        // A gateway that is not known yet asks this one before its own first read.
        let members = owners::known(ctx, key, false).await?;
        let answers = ask_all(ctx, key, &members, &Op::Filter(filter.clone())).await;
        Ok(answers.iter().any(|done| matches!(done, Done::Filter { is_taken: false })))
    };
    match within(AGREE_WITHIN, refused).await {
        Some(Ok::<_, Problem>(true)) => return Err(reply::fetch_failed(FetchError::FilterConflict)),
        // Who cannot be asked has no say for the moment: reading goes on.
        answered => group.set_agreed(filter.as_ref(), matches!(answered, Some(Ok(false)))),
    }
    Ok(())
}

fn is_empty(lease: &Lease) -> bool {
    match lease {
        Lease::Nothing => true,
        Lease::Local { delivery, .. } => delivery.messages.is_empty(),
        Lease::Remote(remote) => remote.delivery.messages.is_empty(),
    }
}

/// Why a gateway that has no secret, so asks nobody, has nothing for a reader: others own what there is.
pub async fn explain(ctx: &Rc<Context>, key: &GroupKey) -> Result<(), Problem> {
    if !owners::may_ask(ctx) {
        return Ok(());
    }
    // Who cannot say who reads the group stands in nobody's way.
    let Ok(members) = owners::known(ctx, key, false).await else { return Ok(()) };
    if owning(&members)?.is_empty() { Ok(()) } else { Err(unreachable("gateway.peer_secret is not set")) }
}

/// Where the other gateways are that own something; or what stands in the way, where only such do that cannot be asked.
fn owning(members: &Whereabouts) -> Result<Vec<Arc<str>>, Problem> {
    let mut gateways = Vec::new();
    let mut problem = None;
    for (owner, _) in members.members.iter().filter(|(_, member)| !member.partitions.is_empty()) {
        if let Owner::Gateway(Some(addr)) = owner {
            gateways.push(Arc::clone(addr));
        }
        problem = owner.refusal().or(problem);
    }
    match problem {
        Some(problem) if gateways.is_empty() => Err(problem),
        _ => Ok(gateways),
    }
}

type Answer = Result<RemoteLease, Problem>;
type Members = Result<Rc<Whereabouts>, Problem>;

/// One read, as far as other gateways have to do with it.
struct Read<'a> {
    ctx: &'a Rc<Context>,
    key: &'a GroupKey,
    group: &'a Rc<Group>,
    request: &'a FetchRequest,
    data: &'a DataPlane,
    began_at: Instant,
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
        Ok(Self { ctx, key, group, request, data, began_at: Instant::now(), look, failure, has_asked, coming })
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
    async fn ask_each(&self, limit: Duration, members: impl Future<Output = Members>) -> Option<Lease> {
        let asked = async {
            let gateways = if self.data.peers.has_room() { self.others(members.await) } else { Vec::new() };
            for _ in 0..gateways.len().min(ASKED_AT_ONCE_MAX) {
                let lease = self.ask(self.asking().next_of(&gateways), Duration::ZERO).await;
                if let Ok(Some(lease)) = lease {
                    return Some(lease);
                }
            }
            None
        };
        let lease = within(limit, asked).await.unwrap_or_else(|| {
            // Whoever was asked hears that nobody waits.
            self.coming.replace(None);
            self.failure.replace(Some(unreachable("it does not answer in time")));
            self.asking().began_at.set(Some(Instant::now() + OTHERS_SILENT));
            None
        });
        self.asking().gave.set(lease.is_some());
        lease
    }

    /// Asks the others, one after the other, until one has something. Ends by being dropped.
    async fn ask_until_found(&self) -> Lease {
        let by = self.began_at + self.request.spec.wait;
        let mut head_start = Some(match (self.group.owned(), self.group.is_assigned()) {
            (0, true) => Duration::ZERO,
            (0, false) => HERE_FIRST_EMPTY,
            _ => HERE_FIRST,
        });
        // What is known of the members was found wrong.
        let mut is_wrong = false;
        loop {
            if !self.has_others() {
                self.group.changed.wait().await;
                continue;
            }
            if let Some(time) = head_start.take() {
                glommio::timer::sleep(time).await;
                continue;
            }
            if !self.data.peers.has_room() {
                self.ctx.metrics.cells.peer_refused.add(1);
                glommio::timer::sleep(ASK_AGAIN).await;
                continue;
            }
            let gateways = self.others(owners::known(self.ctx, self.key, std::mem::take(&mut is_wrong)).await);
            if !gateways.is_empty() {
                let (left, asked_at) = (by.saturating_duration_since(Instant::now()), Instant::now());
                match self.ask(self.asking().next_of(&gateways), left.min(TURN)).await {
                    Ok(Some(lease)) => return lease,
                    Ok(None) => {}
                    // It may have gone since: look again.
                    Err(()) => is_wrong = true,
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
        if self.has_asked.get() || !self.has_others() {
            None
        } else {
            self.ask_each(LAST_ANSWERS_WITHIN, owners::known(self.ctx, self.key, false)).await
        }
    }

    /// Where the other gateways are that own something; notes what stands in the way where there is none.
    fn others(&self, members: Members) -> Vec<Arc<str>> {
        match members.and_then(|members| owning(&members)) {
            Ok(gateways) => {
                if gateways.is_empty() {
                    self.failure.replace(None);
                }
                gateways
            }
            Err(problem) => {
                self.failure.replace(Some(problem));
                Vec::new()
            }
        }
    }

    /// Asks one of them. `Err`: it could not be reached.
    async fn ask(&self, addr: &Arc<str>, wait: Duration) -> Result<Option<Lease>, ()> {
        self.has_asked.set(true);
        let (answer, coming) = oneshot::channel();
        let lease = self.request.spec.lease.map_or(AUTO, |lease| LeaseSpec { on_way: Some(ON_WAY), ..lease });
        let bytes_max = self.request.spec.bytes_max.min(limits::PEER_READ_BYTES_MAX);
        // Who looks only now and then must not wait for a batch to fill.
        let linger = self.request.spec.linger.min(wait);
        let waited = self.began_at.elapsed();
        let spec = FetchSpec { wait, linger, bytes_max, waited, lease: Some(lease), ..self.request.spec.clone() };
        let asked = FetchRequest { spec, is_from_peer: true, ..*self.request };
        let (ctx, key, addr) = (Rc::clone(self.ctx), self.key.clone(), Arc::clone(addr));
        // In a task of its own, which nobody cuts off: what is on its way when nobody waits any more has to be given back.
        glommio::spawn_local(fetch_from(ctx, key, addr, asked, answer)).detach();
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
                let is_gone = *problem.code == codes::PEER_UNREACHABLE;
                self.failure.replace(Some(problem));
                if is_gone { Err(()) } else { Ok(None) }
            }
            None => Ok(None),
        }
    }
}

/// Asks, and answers. An asker that has gone has the other gateway end the wait; what it gives all the same is given back.
async fn fetch_from(
    ctx: Rc<Context>,
    key: GroupKey,
    addr: Arc<str>,
    mut request: FetchRequest,
    mut asker: oneshot::Sender<Answer>,
) {
    let Some(data) = &ctx.data else { return };
    let Some(_place) = data.peers.place(&ctx) else { return };
    ctx.metrics.cells.sub_peer_reads.add(1);
    let ticket = ctx.unique();
    request.ticket = ticket;
    let limit = request.spec.wait + request.spec.linger + ANSWER_WITHIN;
    let op = Op::Fetch(request);
    let mut call = pin!(data.peers.call(&ctx, &addr, &key, &op, limit));
    let answered = {
        let gone = async {
            asker.cancellation().await;
            None
        };
        future::or(async { Some((&mut call).await) }, gone).await
    };
    let answered = if let Some(answered) = answered {
        answered
    } else {
        let end = Op::EndFetch(ticket);
        future::zip(call, data.peers.call(&ctx, &addr, &key, &end, END_WITHIN)).await.0
    };
    let answer = match answered {
        Ok(Done::Fetched(delivery)) => {
            data.peers.keep(&addr, &key, &delivery.grants);
            Ok(RemoteLease::new(delivery, Origin::Peer(Arc::clone(&addr)), &key, ctx.shard, &ctx.mesh))
        }
        Ok(_) => Err(unreachable("it answered something else")),
        Err(problem) => Err(problem),
    };
    // Dropping what nobody took gives it back.
    let _ = asker.send(answer);
}
