//! From gateway to gateway: what is asked of a group's home that is another gateway's.
//!
//! ```text
//!   POST /v1/peer/ops    x-kateway-peer: <gateway.peer_secret>    x-kateway-hop: <id of the asking gateway>
//!   body: (GroupKey, Op)    answer: Result<Done, (code, detail)>    both by postcard
//! ```
//!
//! One HTTP/2 connection for each pair of core and gateway. Invariants: what comes this way is answered from what is here, and never
//! sent on; without the secret nothing is answered; messages that were read this way are acknowledged only when this gateway's
//! client has them, and those whose gateway dies come again when their lease ends. Per core.

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
use serde::{Deserialize, Serialize};

use super::{
    codes,
    context::Context,
    frame::{Done, GroupKey, Op},
    home::{self, Lease},
    owners::unreachable,
    reply::{Problem, Stamp},
};
use crate::{
    limits,
    proto::{
        Head, Reply, Sent,
        client::{Client, Post},
    },
    readiness::Socket,
    store::Grant,
};

/// The route.
pub const PATH: &str = "/v1/peer/ops";
const SECRET_FIELD: &str = "x-kateway-peer";
const HOP_FIELD: &str = "x-kateway-hop";

const CONNECT_WITHIN: Duration = Duration::from_secs(2);
/// A peer that could not be reached is not tried again sooner.
const RECONNECT_AFTER: Duration = Duration::from_millis(500);
/// A settlement is worth a few tries: without it the messages come again.
const SETTLE_TRIES: u32 = 3;
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
    client: RefCell<Option<Client>>,
    failed_at: Cell<Option<Instant>>,
}

/// Per core: the connections to other gateways.
#[derive(Debug, Default)]
pub struct Peers {
    by_addr: RefCell<HashMap<Arc<str>, Rc<Peer>>>,
    kept: RefCell<Vec<Kept>>,
    reading: Cell<usize>,
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
    /// Room for one more forwarded read.
    pub fn place(&self, ctx: &Context) -> Result<Place<'_>, Problem> {
        if self.reading.get() >= limits::PEER_READS_MAX {
            ctx.metrics.cells.peer_refused.add(1);
            return Err(unreachable("this core asks other gateways as often as it may"));
        }
        self.reading.set(self.reading.get() + 1);
        Ok(Place(self))
    }

    /// Asks the gateway at `addr`.
    pub async fn call(
        &self,
        ctx: &Context,
        addr: &Arc<str>,
        key: &GroupKey,
        op: &Op,
        within: Duration,
    ) -> Result<Done, Problem> {
        if ctx.config.borrow().gateway.peer_secret.is_none() {
            return Err(unreachable("gateway.peer_secret is not set"));
        }
        let peer = Rc::clone(self.by_addr.borrow_mut().entry(Arc::clone(addr)).or_default());
        let called = async {
            let client = connect(ctx, &peer, addr).await?;
            post(ctx, &client, addr, key, op).await
        };
        let late = async {
            glommio::timer::sleep(within).await;
            Err("it does not answer".to_owned())
        };
        match futures_lite::future::or(called, late).await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(Failure { number, detail })) => Err(Problem::new(codes::by_number(number), detail)),
            Err(why) => {
                // The next call makes a new connection; those under way on this one end by themselves.
                peer.client.replace(None);
                ctx.metrics.cells.peer_failures.add(1);
                Err(unreachable(&format!("{addr}: {why}")))
            }
        }
    }

    /// Remembers leases that are to be renewed until they are settled.
    pub fn keep(&self, addr: &Arc<str>, key: &GroupKey, grants: &[Grant], is_auto: bool) {
        if is_auto && !grants.is_empty() {
            self.kept.borrow_mut().push(Kept { addr: Arc::clone(addr), key: key.clone(), grants: grants.to_vec() });
        }
    }

    /// Tells the gateway what became of messages that were read from it.
    pub fn settle(&self, ctx: &Rc<Context>, addr: Arc<str>, key: GroupKey, grants: Vec<Grant>, is_delivered: bool) {
        self.kept.borrow_mut().retain(|kept| kept.addr != addr || kept.grants != grants);
        let ctx = Rc::clone(ctx);
        glommio::spawn_local(async move {
            let Some(data) = &ctx.data else { return };
            let op = Op::Settle { grants, is_delivered };
            for _ in 0..SETTLE_TRIES {
                if data.peers.call(&ctx, &addr, &key, &op, SETTLE_WITHIN).await.is_ok() {
                    return;
                }
                glommio::timer::sleep(RECONNECT_AFTER).await;
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

async fn connect(ctx: &Context, peer: &Peer, addr: &Arc<str>) -> Result<Client, String> {
    if let Some(client) = peer.client.borrow().as_ref().filter(|client| !client.is_closed()) {
        return Ok(client.clone());
    }
    if peer.failed_at.get().is_some_and(|at| at.elapsed() < RECONNECT_AFTER) {
        return Err("it could not be reached a moment ago".to_owned());
    }
    let addr = Arc::clone(addr);
    let connected = ctx.offload.run(move || dial(&addr)).await.map_err(|error| format!("{error:?}"))?;
    let client = match connected.and_then(Socket::adopt).map_err(|error| error.to_string()) {
        Ok(socket) => Client::over(socket).await,
        Err(error) => Err(error),
    };
    peer.failed_at.set(client.is_err().then(Instant::now));
    let client = client?;
    peer.client.replace(Some(client.clone()));
    Ok(client)
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
    let config = ctx.config();
    let secret = config.gateway.peer_secret.as_deref().ok_or("gateway.peer_secret is not set")?;
    let body = postcard::to_stdvec(&(key, op)).map_err(|error| error.to_string())?;
    let post = Post {
        authority: addr,
        path: PATH,
        fields: &[(SECRET_FIELD, secret), (HOP_FIELD, &config.gateway.id)],
        body: body.into(),
        answer_bytes_max: limits::PEER_ANSWER_BYTES_MAX,
    };
    let (status, body) = client.post(post).await?;
    if status != 200 {
        return Err(format!("it answered {status}"));
    }
    postcard::from_bytes(&body).map_err(|error| error.to_string())
}

// === the other side ===

/// A question of another gateway, whose secret was found good.
#[derive(Debug)]
pub struct Asked(());

impl Asked {
    pub fn plan(ctx: &Context, head: &Head<'_>) -> Result<Self, Problem> {
        let config = ctx.config.borrow();
        let is_good = match (&config.gateway.peer_secret, head.field(SECRET_FIELD)) {
            (Some(secret), Some(given)) => is_same(secret.as_bytes(), given),
            _ => false,
        };
        if !is_good {
            return Err(Problem::new(
                &codes::NOT_A_PEER,
                "only gateways with the same gateway.peer_secret are answered",
            ));
        }
        Ok(Self(()))
    }

    pub async fn run(self, ctx: &Rc<Context>, body: &Bytes, stamp: &Stamp) -> Result<Reply, Problem> {
        let asked = postcard::from_bytes::<(GroupKey, Op)>(body);
        let (key, op) = asked.map_err(|error| Problem::new(&codes::INVALID_BODY, error.to_string()))?;
        ctx.metrics.cells.peer_asked.add(1);
        let (answered, on_sent): (_, Option<Box<dyn Sent>>) = match op {
            Op::Fetch(mut request) => {
                request.is_from_peer = true;
                match home::fetch(ctx, &key, request).await {
                    Ok(mut lease) => {
                        let delivery = lease.delivery().cloned().unwrap_or_default();
                        (Ok(Done::Fetched(delivery)), Some(Box::new(Handed(Some(lease)))))
                    }
                    Err(problem) => (Err(problem), None),
                }
            }
            op => (home::ask(ctx, &key, op, true).await, None),
        };
        let answered: Answered =
            answered.map_err(|problem| Failure { number: problem.code.number, detail: problem.detail.into_owned() });
        let bytes =
            postcard::to_stdvec(&answered).map_err(|error| Problem::new(&codes::INTERNAL, error.to_string()))?;
        let mut reply =
            Reply::new(200).field("X-Request-Id", &stamp.request_id).body("application/octet-stream", bytes);
        reply.on_sent = on_sent;
        Ok(reply)
    }
}

/// In a time that says nothing about where they differ.
fn is_same(secret: &[u8], given: &[u8]) -> bool {
    let differs = secret.iter().zip(given).fold(0, |differs, (a, b)| differs | (a ^ b));
    secret.len() == given.len() && differs == 0
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
            lease.settle(false);
        }
    }
}
