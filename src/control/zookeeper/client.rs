//! One session with ZooKeeper, by the crate `zookeeper` 0.8.
//!
//! What it lacks is made up for here: a server is tried before the crate is told of it (it panics, or spins, where there is none), the
//! beginning of a session has a time limit, changes of its state are flags that outlive a missed look, and the node is made again
//! after the crate has reconnected with a new session in silence. Calls block without a limit: only a thread that nobody waits for may
//! make them.
#![allow(clippy::disallowed_methods)] // Names are resolved on this thread, which serves nobody.

use std::{
    fmt, io,
    net::{SocketAddr, TcpStream, ToSocketAddrs},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use zookeeper::{Acl, CreateMode, WatchedEvent, ZkError, ZkState, ZooKeeper};

use crate::config::ZooKeeperConfig;

/// What a server has to answer a connection.
const CONNECT_WITHIN: Duration = Duration::from_secs(1);
/// What the first session may take to be there.
const SESSION_WITHIN: Duration = Duration::from_secs(4);

/// Threads that wait for a server's answer as long as it takes; with so many no session is begun.
const LEAVING_MAX: usize = 4;
static LEAVING: AtomicUsize = AtomicUsize::new(0);

/// Why a call failed.
#[derive(Debug)]
pub enum ClientError {
    /// No server takes a connection.
    NoServer,
    /// A server does, and begins no session.
    NoSession,
    /// It began one, and does not answer in time.
    Silent,
    Refused(ZkError),
}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoServer => write!(f, "no ZooKeeper server takes a connection"),
            Self::NoSession => write!(f, "no ZooKeeper server begins a session"),
            Self::Silent => write!(f, "ZooKeeper does not answer"),
            Self::Refused(error) => write!(f, "ZooKeeper: {error:?}"),
        }
    }
}

impl From<ZkError> for ClientError {
    fn from(error: ZkError) -> Self {
        Self::Refused(error)
    }
}

/// Whose a gateway's node is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Entered {
    /// It stood there.
    Before,
    /// It had to be made.
    Now,
    /// Another gateway's, which it stays.
    Taken,
}

/// The data of every child, by name.
pub type Children = Vec<(String, Vec<u8>)>;

/// What the crate tells from a thread of its own.
#[derive(Debug, Default)]
struct Told {
    is_connected: AtomicBool,
    is_closed: AtomicBool,
    has_changed: AtomicBool,
}

/// See the module text.
pub struct Client {
    zookeeper: ZooKeeper,
    told: Arc<Told>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("told", &self.told).finish_non_exhaustive()
    }
}

impl Client {
    /// Begins a session. The thread that calls this is woken by changes.
    pub fn begin(config: &ZooKeeperConfig) -> Result<Arc<Self>, ClientError> {
        if LEAVING.load(Ordering::Acquire) >= LEAVING_MAX {
            return Err(ClientError::NoSession);
        }
        let servers = reachable(&config.servers);
        if servers.is_empty() {
            return Err(ClientError::NoServer);
        }
        let servers: Vec<String> = servers.iter().map(SocketAddr::to_string).collect();
        let told = Arc::new(Told::default());
        let owner = thread::current();
        let changed = {
            let (told, owner) = (Arc::clone(&told), owner.clone());
            move || {
                told.has_changed.store(true, Ordering::Release);
                owner.unpark();
            }
        };
        let of_nodes = changed.clone();
        let timeout = config.session_timeout;
        // It panics if the first server has gone in between.
        let connect = || ZooKeeper::connect(&servers.join(","), timeout, move |_: WatchedEvent| of_nodes());
        let zookeeper = catch_unwind(AssertUnwindSafe(connect)).unwrap_or(Err(ZkError::SystemError))?;
        zookeeper.add_listener({
            let told = Arc::clone(&told);
            move |state| {
                told.is_connected.store(state == ZkState::Connected, Ordering::Release);
                told.is_closed.fetch_or(state == ZkState::Closed, Ordering::AcqRel);
                changed();
            }
        });
        let client = Arc::new(Self { zookeeper, told });
        let deadline = Instant::now() + SESSION_WITHIN;
        // The listener may have come too late for the first state: an answer is proof as well, but could be waited for without end.
        while !client.told.is_connected.load(Ordering::Acquire) {
            if client.is_closed() || Instant::now() >= deadline {
                client.leave();
                return Err(ClientError::NoSession);
            }
            thread::park_timeout(Duration::from_millis(50));
        }
        Ok(client)
    }

    pub fn is_closed(&self) -> bool {
        self.told.is_closed.load(Ordering::Acquire)
    }

    pub fn has_changed(&self) -> bool {
        self.told.has_changed.load(Ordering::Acquire)
    }

    /// Takes note of what changed. Gives whether there is a connection.
    pub fn take_change(&self) -> bool {
        self.told.has_changed.store(false, Ordering::Release);
        self.told.is_connected.load(Ordering::Acquire)
    }

    /// Has the node there, ephemeral and with these data. `replaces`: whether the node that is there may be, which is of an earlier
    /// session or life under the same id, or of another gateway.
    pub fn enter(&self, path: &str, data: &str, replaces: impl FnOnce(&[u8]) -> bool) -> Result<Entered, ClientError> {
        match self.zookeeper.get_data(path, true) {
            Ok((found, _)) if found == data.as_bytes() => return Ok(Entered::Before),
            Ok((found, _)) if !replaces(&found) => return Ok(Entered::Taken),
            Ok(_) => self.remove(path)?,
            Err(ZkError::NoNode) => {}
            Err(error) => return Err(error.into()),
        }
        let made = |path: &str, data: &str, mode| match self.zookeeper.create(
            path,
            data.as_bytes().to_vec(),
            Acl::open_unsafe().clone(),
            mode,
        ) {
            Ok(_) | Err(ZkError::NodeExists) => Ok(()),
            Err(error) => Err(ClientError::from(error)),
        };
        for (at, _) in path.match_indices('/').skip(1) {
            made(&path[..at], "", CreateMode::Persistent)?;
        }
        made(path, data, CreateMode::Ephemeral)?;
        // One that was made by another in between is not ours.
        match self.zookeeper.get_data(path, true)? {
            (found, _) if found == data.as_bytes() => Ok(Entered::Now),
            _ => Err(ClientError::Refused(ZkError::NodeExists)),
        }
    }

    /// Removes the node, unless it is another life's by now.
    pub fn remove_own(&self, path: &str, is_own: impl FnOnce(&[u8]) -> bool) -> Result<(), ClientError> {
        match self.zookeeper.get_data(path, false) {
            Ok((found, _)) if is_own(&found) => self.remove(path),
            Ok(_) | Err(ZkError::NoNode) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn remove(&self, path: &str) -> Result<(), ClientError> {
        match self.zookeeper.delete(path, None) {
            Ok(()) | Err(ZkError::NoNode) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// The children of a node, or an error if there is no answer for so long. Changes of the list are told from now on, until the
    /// connection is lost.
    pub fn children_within(self: &Arc<Self>, path: &str, limit: Duration) -> Result<Children, ClientError> {
        let (answer, answered) = mpsc::sync_channel(1);
        let (client, path) = (Arc::clone(self), path.to_owned());
        let look = move || {
            let children = client.children(&path);
            let _ = answer.send(children);
        };
        wait_apart("zookeeper-look", look).map_err(|_| ClientError::Silent)?;
        answered.recv_timeout(limit).unwrap_or(Err(ClientError::Silent))
    }

    fn children(&self, path: &str) -> Result<Children, ClientError> {
        let names = match self.zookeeper.get_children(path, true) {
            Err(ZkError::NoNode) => Vec::new(),
            names => names?,
        };
        let mut children = Vec::with_capacity(names.len());
        for name in names {
            match self.zookeeper.get_data(&format!("{path}/{name}"), false) {
                Ok((data, _)) => children.push((name, data)),
                // It has gone since.
                Err(ZkError::NoNode) => {}
                Err(error) => return Err(error.into()),
            }
        }
        children.sort();
        Ok(children)
    }

    /// Ends the session; its ephemeral nodes go at once.
    pub fn end(self: Arc<Self>) {
        drop(self);
    }

    /// The same where no answer may ever come: on a thread that waits for it as long as that takes.
    pub fn leave(self: Arc<Self>) {
        if let Err(error) = wait_apart("zookeeper-end", move || drop(self)) {
            tracing::warn!(%error, "a ZooKeeper session ends by its time-out");
        }
    }
}

/// Runs what may wait without end on a thread of its own, which is counted while it does. The crate may panic in it.
fn wait_apart(name: &str, call: impl FnOnce() + Send + 'static) -> io::Result<()> {
    LEAVING.fetch_add(1, Ordering::AcqRel);
    let call = move || {
        let _ = catch_unwind(AssertUnwindSafe(call));
        LEAVING.fetch_sub(1, Ordering::AcqRel);
    };
    let spawned = thread::Builder::new().name(name.to_owned()).spawn(call);
    if spawned.is_err() {
        LEAVING.fetch_sub(1, Ordering::AcqRel);
    }
    spawned.map(drop)
}

/// Those of the servers that take a connection now, each by one address.
fn reachable(servers: &[String]) -> Vec<SocketAddr> {
    let resolve = |server: &String| server.to_socket_addrs().ok().into_iter().flatten().collect::<Vec<_>>();
    let takes = |addr: &SocketAddr| TcpStream::connect_timeout(addr, CONNECT_WITHIN).is_ok();
    servers.iter().filter_map(|server| resolve(server).into_iter().find(takes)).collect()
}
