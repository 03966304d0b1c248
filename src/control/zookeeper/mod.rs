//! Presence in ZooKeeper: an ephemeral node that says where this gateway serves, for whoever renders a balancer's configuration.
//!
//! ```text
//!   control thread --wanted, park/unpark--> owner thread: probe > session > node > look now and then > withdraw
//!        | each second: has its call returned? no: it is left alone, and a new owner starts
//! ```
//!
//! The client of the crate `zookeeper` 0.8 is synchronous, has no time-outs, panics where a connection cannot be made, loses watches
//! when it reconnects and never recovers once closed (`client`). So it lives on a thread of its own that nobody waits for: requests are
//! served as ever while ZooKeeper is away, and `/v1/status` says so. Invariants: one owner at a time may write the node; a session that
//! was lost is followed by a new one with a node of its own, as long as presence is wanted; the node is gone before listeners close.

mod client;
pub mod haproxy;

use std::{
    cell::RefCell,
    io,
    net::SocketAddr,
    panic::{AssertUnwindSafe, catch_unwind},
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, Thread},
    time::{Duration, Instant},
};

use self::client::{Client, ClientError, Entered};
use crate::{
    config::{Config, ZooKeeperConfig},
    metrics::session::{Presence as State, SESSION},
};

/// Between two tries to begin a session.
const AGAIN: Duration = Duration::from_millis(500);
/// Between two looks whether the node is there.
const LOOK: Duration = Duration::from_secs(5);
/// A call that has not returned by then has lost its server.
const STUCK: Duration = Duration::from_secs(15);
/// Owners given up that have not come back; with so many no further one is started.
const STUCK_MAX: u64 = 4;

/// What the node says: flat, all text.
#[derive(Clone, Debug)]
pub struct Card {
    path: String,
    fields: serde_json::Value,
    /// Tells two lives with the same id apart.
    life: String,
}

/// Control thread: the presence of this gateway.
#[derive(Clone, Debug)]
pub struct Presence {
    shared: Arc<Shared>,
    owner: Rc<RefCell<Thread>>,
}

#[derive(Debug)]
struct Shared {
    config: ZooKeeperConfig,
    card: Card,
    is_wanted: AtomicBool,
    /// The owner that may act.
    generation: AtomicU64,
    started: Instant,
    /// Since when the owner's call runs, in ms since `started`; 0: it runs none.
    calling_ms: AtomicU64,
    /// Owners given up and not yet ended.
    given_up: AtomicU64,
    /// This life has entered itself before.
    was_entered: AtomicBool,
}

/// Where the gateways of a zone stand.
pub fn ids_path(config: &ZooKeeperConfig) -> String {
    format!("/kateway/{}/ids", config.zone)
}

impl Card {
    /// `[publish, subscribe, manage]`: as they were bound.
    pub fn new(config: &Config, bound: [Option<SocketAddr>; 3]) -> Self {
        let (id, zone) = (&config.gateway.id, &config.zookeeper.zone);
        let advertised = config.gateway.advertise.as_deref();
        let host = advertised.and_then(|at| at.rsplit_once(':')).map(|(host, _)| host);
        let shown = |addr: Option<SocketAddr>| match (addr, host) {
            // Every address of the host is none that others can use.
            (Some(addr), Some(host)) if addr.ip().is_unspecified() => format!("{host}:{}", addr.port()),
            (Some(addr), _) => addr.to_string(),
            (None, _) => String::new(),
        };
        let [publish, subscribe, manage] = bound;
        let fields = serde_json::json!({
            "id": id,
            "zone": zone,
            "ver": "1",
            "build": env!("CARGO_PKG_VERSION"),
            "host": crate::config::Host::this().name,
            "pub": shown(publish),
            "sub": advertised.filter(|_| subscribe.is_some()).map_or_else(|| shown(subscribe), str::to_owned),
            "man": shown(manage),
        });
        let life = format!("{}-{:x}", std::process::id(), ahash::RandomState::new().hash_one(id));
        Self { path: format!("{}/{id}", ids_path(&config.zookeeper)), fields, life }
    }

    /// The node's data. A session's node is told from an earlier one's, which is about to go.
    fn text(&self, session: u64) -> String {
        let mut fields = self.fields.clone();
        fields["life"] = format!("{}-{session}", self.life).into();
        fields.to_string()
    }

    /// Whether these data are of this life.
    fn is_own(&self, data: &[u8]) -> bool {
        let found: serde_json::Value = serde_json::from_slice(data).unwrap_or_default();
        let session = found["life"].as_str().and_then(|life| life.strip_prefix(&self.life));
        session.is_some_and(|session| session.starts_with('-'))
    }
}

// === impl Presence ===

impl Presence {
    /// Enters the gateway as soon as ZooKeeper is there. `None`: no servers are configured.
    pub fn start(config: &Config, card: Card) -> io::Result<Option<Self>> {
        let config = config.zookeeper.clone();
        if config.servers.is_empty() {
            return Ok(None);
        }
        SESSION.set_presence(State::Connecting);
        let shared = Arc::new(Shared {
            config,
            card,
            is_wanted: AtomicBool::new(true),
            generation: AtomicU64::new(0),
            started: Instant::now(),
            calling_ms: AtomicU64::new(0),
            given_up: AtomicU64::new(0),
            was_entered: AtomicBool::new(false),
        });
        let owner = Rc::new(RefCell::new(spawn(&shared, 0)?));
        Ok(Some(Self { shared, owner }))
    }

    /// Now and then: an owner whose call does not return is replaced.
    pub fn look(&self) {
        let since = self.shared.calling_ms.load(Ordering::Acquire);
        let is_stuck = since != 0 && self.shared.now_ms().saturating_sub(since) > ms(STUCK);
        if !is_stuck || self.shared.given_up.load(Ordering::Acquire) >= STUCK_MAX {
            return;
        }
        tracing::warn!("a call to ZooKeeper does not return; its session is given up");
        SESSION.count(|cells| &cells.replaced);
        SESSION.set_connected(false);
        if self.shared.is_wanted.load(Ordering::Acquire) {
            SESSION.set_presence(State::Connecting);
        }
        self.shared.given_up.fetch_add(1, Ordering::AcqRel);
        let generation = self.shared.generation.fetch_add(1, Ordering::AcqRel) + 1;
        self.shared.calling_ms.store(0, Ordering::Release);
        match spawn(&self.shared, generation) {
            Ok(owner) => drop(self.owner.replace(owner)),
            Err(error) => {
                tracing::error!(%error, "no thread for ZooKeeper");
                // As before, so that the next look tries again.
                self.shared.given_up.fetch_sub(1, Ordering::AcqRel);
                self.shared.generation.store(generation - 1, Ordering::Release);
                self.shared.calling_ms.store(since, Ordering::Release);
            }
        }
    }

    /// Has the node removed.
    pub fn withdraw(&self) {
        self.shared.is_wanted.store(false, Ordering::Release);
        self.owner.borrow().unpark();
    }

    /// Whether it is removed, or the session that held it has ended.
    pub fn is_withdrawn() -> bool {
        SESSION.presence() == State::Withdrawn
    }
}

fn spawn(shared: &Arc<Shared>, generation: u64) -> io::Result<Thread> {
    let owner = Owner { shared: Arc::clone(shared), generation };
    let thread = thread::Builder::new().name("zookeeper".to_owned()).spawn(move || owner.run())?;
    Ok(thread.thread().clone())
}

impl Shared {
    fn now_ms(&self) -> u64 {
        ms(self.started.elapsed()).max(1)
    }
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

// === the owner ===

struct Owner {
    shared: Arc<Shared>,
    generation: u64,
}

impl Owner {
    fn run(self) {
        // A client that finds no server tries again without a pause; what serves requests comes first.
        let _ = rustix::process::setpriority_process(None, 19);
        while self.is_current() && self.shared.is_wanted.load(Ordering::Acquire) {
            let Some(client) = self.begin() else {
                thread::park_timeout(AGAIN);
                continue;
            };
            self.hold(&client);
            // Ends the session, and with it the node.
            self.call(move || {
                client.end();
                Ok(())
            });
            if self.is_current() {
                SESSION.set_connected(false);
            }
        }
        if self.is_current() {
            SESSION.set_presence(State::Withdrawn);
        } else {
            self.shared.given_up.fetch_sub(1, Ordering::AcqRel);
        }
    }

    fn is_current(&self) -> bool {
        self.shared.generation.load(Ordering::Acquire) == self.generation
    }

    /// Runs what may never return, and where the control thread sees it. A panic in it is an error like others.
    fn call<T>(&self, call: impl FnOnce() -> Result<T, ClientError>) -> Option<T> {
        if self.is_current() {
            self.shared.calling_ms.store(self.shared.now_ms(), Ordering::Release);
        }
        let done = catch_unwind(AssertUnwindSafe(call));
        if self.is_current() {
            self.shared.calling_ms.store(0, Ordering::Release);
        }
        match done {
            Ok(Ok(done)) => return Some(done),
            Ok(Err(error)) => tracing::debug!(%error, "ZooKeeper"),
            Err(_) => tracing::warn!("the ZooKeeper client failed"),
        }
        None
    }

    fn begin(&self) -> Option<Arc<Client>> {
        let client = self.call(|| Client::begin(&self.shared.config))?;
        SESSION.count(|cells| &cells.sessions);
        Some(client)
    }

    /// Keeps the node there until the session has ended, or presence is no longer wanted.
    fn hold(&self, client: &Client) {
        let (shared, card) = (&self.shared, &self.shared.card);
        let path = &card.path;
        let json = card.text(SESSION.sessions.load(Ordering::Relaxed));
        let may_replace = |found: &[u8]| !shared.was_entered.load(Ordering::Relaxed) || card.is_own(found);
        let (mut before, mut heard) = (None, Instant::now());
        // A client whose threads have ended never says so.
        let patience = shared.config.session_timeout * 2;
        while self.is_current() && !client.is_closed() && heard.elapsed() < patience {
            if !shared.is_wanted.load(Ordering::Acquire) {
                self.call(|| client.remove_own(path, |found| card.is_own(found)));
                return;
            }
            // Said before the look: a change that comes during it is looked at again.
            let is_connected = client.take_change();
            let entered = is_connected.then(|| self.call(|| client.enter(path, &json, may_replace))).flatten();
            if !self.is_current() {
                return;
            }
            SESSION.set_connected(is_connected);
            match entered {
                Some(Entered::Now) => {
                    shared.was_entered.store(true, Ordering::Relaxed);
                    SESSION.count(|cells| &cells.registrations);
                    tracing::info!(path, "entered in ZooKeeper");
                }
                Some(Entered::Taken) if before != entered => {
                    SESSION.count(|cells| &cells.taken);
                    tracing::warn!(path, "gateway.id is used by another gateway, which stands in ZooKeeper instead");
                }
                None if before.is_some() => tracing::warn!("ZooKeeper does not answer; requests are served as ever"),
                _ => {}
            }
            if entered.is_some() {
                heard = Instant::now();
            }
            before = entered;
            let is_entered = entered.is_some_and(|entered| entered != Entered::Taken);
            SESSION.set_presence(if is_entered { State::Registered } else { State::Connecting });
            if !client.has_changed() {
                thread::park_timeout(if is_entered { LOOK } else { AGAIN });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn card(bound: [Option<&str>; 3]) -> Card {
        let pairs = [("store.kind", "null"), ("gateway.id", "a"), ("gateway.advertise", "gw.example.org:9")];
        let flags = pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).to_vec();
        let sources = crate::config::Sources { flags, ..Default::default() };
        let config = crate::config::load(&sources).expect("valid");
        Card::new(&config, bound.map(|addr| addr.map(|addr| addr.parse().expect("an address"))))
    }

    #[test]
    fn only_what_is_bound_is_entered() {
        let both = card([Some("0.0.0.0:1"), Some("0.0.0.0:2"), None]).fields;
        assert_eq!(
            (&both["pub"], &both["sub"], &both["man"]),
            (&"gw.example.org:1".into(), &"gw.example.org:9".into(), &"".into())
        );
        assert_eq!(card([Some("10.0.0.1:1"), None, None]).fields["sub"], "", "it reads for nobody");
    }

    #[test]
    fn own_sessions_are_told_from_other_lives() {
        let (one, other) = (card([None; 3]), card([None; 3]));
        assert_ne!(one.text(1), one.text(2));
        assert!(one.is_own(one.text(7).as_bytes()));
        assert!(!one.is_own(other.text(7).as_bytes()) && !one.is_own(b"no json") && !one.is_own(b"{}"));
    }
}
