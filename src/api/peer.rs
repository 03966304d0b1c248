//! From gateway to gateway: what is asked of a group's home that is another gateway's.
//!
//! ```text
//!   POST /v1/peer/greeting    a nonce; the answer is its seal
//!   POST /v1/peer/ops         (GroupKey, Op); the answer is Result<Done, (code, detail)>; both by postcard
//!   both: x-kateway-seal, see `seal`
//! ```
//!
//! One HTTP/2 connection for each pair of core and gateway. Invariants: nothing is told to an address that has not shown that the
//! gateway meant is there; what comes this way is answered from what is here, and never sent on; messages that were read this way are
//! acknowledged only when this gateway's client has them, and those whose gateway dies come again when their lease ends. Per core.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    net::{TcpStream, ToSocketAddrs},
    os::fd::OwnedFd,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_channel::oneshot;
use serde::{Deserialize, Serialize};

use super::{
    codes,
    context::Context,
    frame::{Done, FetchRequest, GroupKey, Op},
    home::{self, Lease},
    owners::unreachable,
    reply::{Problem, Stamp},
    seal::{self, Broken, Purpose},
};
use crate::{
    limits,
    proto::{
        Head, Reply, Sent,
        client::{Client, Post},
    },
    readiness::Socket,
    store::{
        Grant, LeaseSpec, Outcome,
        notify::{Gate, Notify},
    },
    within::within,
};

/// The routes.
const OPS_PATH: &str = "/v1/peer/ops";
const GREETING_PATH: &str = "/v1/peer/greeting";

const CONNECT_WITHIN: Duration = Duration::from_secs(2);
/// A peer that could not be reached is not tried again sooner.
const RECONNECT_AFTER: Duration = Duration::from_millis(250);
const GREET_WITHIN: Duration = Duration::from_secs(2);
/// How long messages that go to another gateway stay leased without a word of it.
pub const ON_WAY: Duration = Duration::from_secs(10);
/// How they are held for a client in auto mode.
pub const AUTO: LeaseSpec =
    LeaseSpec { term: ON_WAY, deliveries_max: None, stream: None, is_auto: true, on_way: Some(ON_WAY) };
/// A settlement is tried so long: without it the messages come again.
const SETTLE_FOR: Duration = Duration::from_secs(20);
const SETTLE_WITHIN: Duration = Duration::from_secs(3);

/// A failure as it goes from gateway to gateway.
#[derive(Serialize, Deserialize)]
struct Failure {
    number: u32,
    detail: String,
}

type Answered = Result<Done, Failure>;

/// Leases at another gateway whose answers are still on their way to clients of this one.
#[derive(Debug)]
struct Kept {
    addr: Arc<str>,
    key: GroupKey,
    grants: Vec<Grant>,
}

#[derive(Debug, Default)]
struct Peer {
    client: RefCell<Option<Rc<Client>>>,
    failed: RefCell<Option<(Instant, String)>>,
    is_dialing: Cell<bool>,
    dialed: Notify,
}

impl Peer {
    fn live(&self) -> Option<Rc<Client>> {
        self.client.borrow().as_ref().filter(|client| !client.is_closed()).cloned()
    }
}

/// Per core: the connections to other gateways.
#[derive(Debug, Default)]
pub struct Peers {
    by_addr: RefCell<HashMap<Arc<str>, Rc<Peer>>>,
    kept: RefCell<Vec<Kept>>,
    reading: Cell<usize>,
    dials: Gate,
    /// Reads of other gateways that wait here, by their ticket.
    asked: RefCell<HashMap<u64, oneshot::Sender<()>>>,
}

/// One forwarded read; counted until dropped.
#[derive(Debug)]
pub struct Place<'a>(&'a Peers);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.reading.set(self.0.reading.get() - 1);
    }
}

impl Peers {
    /// Whether [`Peers::place`] gives one.
    pub fn has_room(&self) -> bool {
        self.reading.get() < limits::PEER_READS_MAX
    }

    /// Room for one more forwarded read.
    pub fn place(&self, ctx: &Context) -> Option<Place<'_>> {
        if !self.has_room() {
            ctx.metrics.cells.peer_refused.add(1);
            return None;
        }
        self.reading.set(self.reading.get() + 1);
        Some(Place(self))
    }

    fn of(&self, addr: &Arc<str>) -> Option<Rc<Peer>> {
        let mut by_addr = self.by_addr.borrow_mut();
        if by_addr.len() >= limits::PEERS_MAX && !by_addr.contains_key(addr) {
            by_addr.retain(|_, peer| peer.is_dialing.get() || peer.live().is_some());
            if by_addr.len() >= limits::PEERS_MAX {
                return None;
            }
        }
        Some(Rc::clone(by_addr.entry(Arc::clone(addr)).or_default()))
    }

    /// Asks the gateway at `addr`.
    pub async fn call(
        &self,
        ctx: &Rc<Context>,
        addr: &Arc<str>,
        key: &GroupKey,
        op: &Op,
        limit: Duration,
    ) -> Result<Done, Problem> {
        if ctx.config.borrow().gateway.peer_secret.is_none() {
            return Err(unreachable("gateway.peer_secret is not set"));
        }
        let peer = self.of(addr).ok_or_else(|| unreachable("this core knows as many gateways as it takes"))?;
        let used = RefCell::new(None);
        let called = async {
            let client = connect(ctx, &peer, addr).await?;
            used.replace(Some(Rc::clone(&client)));
            post(ctx, &client, addr, key, op).await
        };
        match within(limit, called).await.unwrap_or_else(|| Err("it does not answer".to_owned())) {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(Failure { number, detail })) => Err(Problem::new(codes::by_number(number), detail)),
            Err(why) => {
                // The next call makes a new connection; those under way on this one end by themselves.
                peer.client
                    .borrow_mut()
                    .take_if(|client| used.borrow().as_ref().is_some_and(|used| Rc::ptr_eq(client, used)));
                ctx.metrics.cells.peer_failures.add(1);
                Err(unreachable(&format!("{addr}: {why}")))
            }
        }
    }

    /// Remembers leases that are to be renewed until they are settled.
    pub fn keep(&self, addr: &Arc<str>, key: &GroupKey, grants: &[Grant]) {
        if !grants.is_empty() {
            self.kept.borrow_mut().push(Kept { addr: Arc::clone(addr), key: key.clone(), grants: grants.to_vec() });
        }
    }

    /// Tells the gateway what became of messages that were read from it. Until it knows, or nothing would come of it any more, they are
    /// renewed.
    pub fn settle(&self, ctx: &Rc<Context>, addr: Arc<str>, key: GroupKey, grants: Vec<Grant>, outcome: Outcome) {
        let ctx = Rc::clone(ctx);
        glommio::spawn_local(async move {
            let Some(data) = &ctx.data else { return };
            let op = Op::Settle { grants, outcome };
            let (by, mut pause) = (Instant::now() + SETTLE_FOR, RECONNECT_AFTER);
            while data.peers.call(&ctx, &addr, &key, &op, SETTLE_WITHIN).await.is_err() && Instant::now() < by {
                glommio::timer::sleep(pause).await;
                pause = (pause * 2).min(SETTLE_WITHIN);
            }
            if let Op::Settle { grants, .. } = op {
                data.peers.kept.borrow_mut().retain(|kept| kept.addr != addr || kept.grants != grants);
            }
        })
        .detach();
    }

    /// Renews what is on its way from other gateways. Called every few seconds.
    pub fn renew(&self, ctx: &Rc<Context>) {
        for kept in &*self.kept.borrow() {
            let (addr, key) = (Arc::clone(&kept.addr), kept.key.clone());
            let (ctx, op) = (Rc::clone(ctx), Op::Renew { grants: kept.grants.clone() });
            glommio::spawn_local(async move {
                if let Some(data) = &ctx.data {
                    // One that fails is made good by the next, or its messages come again.
                    let _ = data.peers.call(&ctx, &addr, &key, &op, SETTLE_WITHIN).await;
                }
            })
            .detach();
        }
    }
}

/// The connection to that gateway, once it has shown who it is. One dials at a time; others wait for it.
async fn connect(ctx: &Rc<Context>, peer: &Rc<Peer>, addr: &Arc<str>) -> Result<Rc<Client>, String> {
    loop {
        if let Some(client) = peer.live() {
            return Ok(client);
        }
        if let Some((_, why)) = peer.failed.borrow().as_ref().filter(|(at, _)| at.elapsed() < RECONNECT_AFTER) {
            return Err(why.clone());
        }
        let dialed = peer.dialed.wait();
        if !peer.is_dialing.replace(true) {
            let (ctx, peer, addr) = (Rc::clone(ctx), Rc::clone(peer), Arc::clone(addr));
            // In a task of its own: whoever asked may go away, others wait for the same connection.
            glommio::spawn_local(async move {
                match open(&ctx, &addr).await {
                    Ok(client) => _ = peer.client.replace(Some(Rc::new(client))),
                    Err(why) => _ = peer.failed.replace(Some((Instant::now(), why))),
                }
                peer.is_dialing.set(false);
                peer.dialed.ring();
            })
            .detach();
        }
        dialed.await;
    }
}

async fn open(ctx: &Context, addr: &Arc<str>) -> Result<Client, String> {
    let _pass = ctx.plane().map_err(|_| "no data plane")?.peers.dials.enter(limits::DIALS_RUNNING_MAX).await;
    let to = Arc::clone(addr);
    let connected = ctx.offload.run(move || dial(&to)).await.map_err(|error| format!("offload pool: {error:?}"))?;
    let socket = connected.and_then(Socket::adopt).map_err(|error| error.to_string())?;
    let greeted = async {
        let client = Client::over(socket).await?;
        greet(ctx, &client, addr).await?;
        Ok(client)
    };
    within(GREET_WITHIN, greeted).await.unwrap_or_else(|| Err("it does not answer a greeting".to_owned()))
}

async fn greet(ctx: &Context, client: &Client, addr: &str) -> Result<(), String> {
    let nonce = ctx.unique().to_be_bytes();
    let answer = sealed(ctx, client, addr, Purpose::Greeting, Bytes::copy_from_slice(&nonce)).await?;
    let config = ctx.config();
    let secret = config.gateway.peer_secret.as_deref().ok_or("gateway.peer_secret is not set")?;
    match seal::open(secret, Purpose::Answer, &answer, addr, &nonce) {
        Ok(_) => Ok(()),
        Err(broken) => Err(format!("what answers there is not a gateway with our gateway.peer_secret ({broken:?})")),
    }
}

/// Blocks: in the offload pool.
#[allow(clippy::disallowed_methods)] // See above.
fn dial(addr: &str) -> std::io::Result<OwnedFd> {
    let mut last = std::io::Error::from(std::io::ErrorKind::AddrNotAvailable);
    for addr in addr.to_socket_addrs()? {
        match TcpStream::connect_timeout(&addr, CONNECT_WITHIN) {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                stream.set_nonblocking(true)?;
                return Ok(stream.into());
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

async fn post(ctx: &Context, client: &Client, addr: &str, key: &GroupKey, op: &Op) -> Result<Answered, String> {
    let body = postcard::to_stdvec(&(key, op)).map_err(|error| error.to_string())?;
    let answer = sealed(ctx, client, addr, Purpose::Ask, body.into()).await?;
    postcard::from_bytes(&answer).map_err(|error| error.to_string())
}

async fn sealed(ctx: &Context, client: &Client, addr: &str, purpose: Purpose, body: Bytes) -> Result<Bytes, String> {
    let config = ctx.config();
    let secret = config.gateway.peer_secret.as_deref().ok_or("gateway.peer_secret is not set")?;
    let seal = seal::seal(secret, purpose, &config.gateway.id, addr, &body);
    let post = Post {
        authority: addr,
        path: if purpose == Purpose::Greeting { GREETING_PATH } else { OPS_PATH },
        fields: &[(seal::FIELD, &seal)],
        body,
        answer_bytes_max: limits::PEER_ANSWER_BYTES_MAX,
    };
    let (status, body) = client.post(post).await?;
    if status == 200 {
        return Ok(body);
    }
    let document: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
    Err(format!("it answered {status} {}", document["detail"].as_str().unwrap_or_default()))
}

// === the other side ===

/// A question of another gateway. Whether it is one shows when its body is there.
#[derive(Debug)]
pub struct Asked {
    seal: Box<[u8]>,
    purpose: Purpose,
}

impl Asked {
    pub fn plan(ctx: &Context, head: &Head<'_>) -> Result<Self, Problem> {
        let has_secret = ctx.config.borrow().gateway.peer_secret.is_some();
        let seal = head.field(seal::FIELD).filter(|_| has_secret).ok_or_else(not_a_peer)?;
        // Before its body is read.
        seal::glance(seal).map_err(refused)?;
        let purpose = if head.path == GREETING_PATH.as_bytes() { Purpose::Greeting } else { Purpose::Ask };
        Ok(Self { seal: seal.into(), purpose })
    }

    /// The most body it may have: a buried message with a body of its own is the largest.
    pub fn body_bytes_max(ctx: &Context) -> usize {
        ctx.config.borrow().publish.message_bytes_max + limits::PEER_ASK_BYTES_MAX
    }

    /// Gives the seal that answers it, if it is a greeting.
    fn check(&self, ctx: &Context, body: &[u8]) -> Result<Option<String>, Problem> {
        let config = ctx.config();
        let gateway = &config.gateway;
        let Some(secret) = gateway.peer_secret.as_deref() else { return Err(not_a_peer()) };
        let addr = gateway.advertise.as_deref();
        let addr =
            addr.ok_or_else(|| Problem::new(&codes::NOT_A_PEER, "this gateway does not say where it is reached"))?;
        match seal::open(secret, self.purpose, &self.seal, addr, body) {
            Ok(id) if id == gateway.id => {
                let detail = format!("gateway.id of who asks is {id:?}, as that of this gateway; they must differ");
                Err(Problem::new(&codes::NOT_A_PEER, detail))
            }
            Ok(_) => {
                let is_greeting = self.purpose == Purpose::Greeting;
                Ok(is_greeting.then(|| seal::seal(secret, Purpose::Answer, &gateway.id, addr, body)))
            }
            Err(broken) => Err(refused(broken)),
        }
    }

    pub async fn run(self, ctx: &Rc<Context>, body: &Bytes, stamp: &Stamp) -> Result<Reply, Problem> {
        if let Some(answer) = self.check(ctx, body)? {
            return Ok(reply(stamp, answer.into_bytes()));
        }
        let asked = postcard::from_bytes::<(GroupKey, Op)>(body);
        let (key, op) = asked.map_err(|error| Problem::new(&codes::INVALID_BODY, error.to_string()))?;
        ctx.metrics.cells.peer_asked.add(1);
        let (answered, on_sent): (_, Option<Box<dyn Sent>>) = match op {
            Op::EndFetch(ticket) => {
                // Dropped, it ends the read's waiting.
                ctx.plane()?.peers.asked.borrow_mut().remove(&ticket);
                (Ok(Done::Settled), None)
            }
            Op::Fetch(request) => match fetch(ctx, &key, request).await {
                Ok(mut lease) => {
                    let delivery = lease.delivery().cloned().unwrap_or_default();
                    (Ok(Done::Fetched(delivery)), Some(Box::new(Handed(Some(lease)))))
                }
                Err(problem) => (Err(problem), None),
            },
            op => (home::ask(ctx, &key, op, true).await, None),
        };
        let answered: Answered =
            answered.map_err(|problem| Failure { number: problem.code.number, detail: problem.detail.into_owned() });
        let bytes =
            postcard::to_stdvec(&answered).map_err(|error| Problem::new(&codes::INTERNAL, error.to_string()))?;
        let mut reply = reply(stamp, bytes);
        reply.on_sent = on_sent;
        Ok(reply)
    }
}

/// A read for another gateway; it ends empty when that one says that nobody waits for it any more.
async fn fetch(ctx: &Rc<Context>, key: &GroupKey, mut request: FetchRequest) -> Result<Lease, Problem> {
    request.is_from_peer = true;
    request.spec.lease.get_or_insert(AUTO).on_way.get_or_insert(ON_WAY);
    let (waits, ended) = oneshot::channel();
    let asked = &ctx.plane()?.peers.asked;
    let ticket = request.ticket;
    asked.borrow_mut().insert(ticket, waits);
    let given_up = async {
        // The other end is dropped, or replaced: nobody ever sends.
        let _ = ended.await;
        Ok(Lease::Nothing)
    };
    let fetched = futures_lite::future::or(home::fetch(ctx, key, &request), given_up).await;
    asked.borrow_mut().remove(&ticket);
    fetched
}

fn reply(stamp: &Stamp, body: Vec<u8>) -> Reply {
    Reply::new(200).field("X-Request-Id", &stamp.request_id).body("application/octet-stream", body)
}

fn refused(broken: Broken) -> Problem {
    let Broken::Clocks { apart } = broken else { return not_a_peer() };
    let (apart_s, max_s) = (apart.as_secs(), seal::CLOCKS_APART_MAX.as_secs());
    let detail = format!("the clocks of the two gateways are {apart_s} s apart, more than {max_s} s");
    Problem::new(&codes::NOT_A_PEER, detail)
}

fn not_a_peer() -> Problem {
    Problem::new(
        &codes::NOT_A_PEER,
        "only gateways with the same gateway.peer_secret are answered, and what was meant for this one",
    )
}

/// Messages on their way to another gateway: once they are there, that one says what becomes of them.
struct Handed(Option<Lease>);

impl Sent for Handed {
    fn sent(mut self: Box<Self>) {
        match self.0.take() {
            Some(Lease::Remote(remote)) => remote.forget(),
            Some(Lease::Local { .. } | Lease::Nothing) | None => {}
        }
    }
}

impl Drop for Handed {
    fn drop(&mut self) {
        if let Some(lease) = self.0.take() {
            lease.settle(Outcome::Unsent);
        }
    }
}
