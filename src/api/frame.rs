//! What cores say to each other over the mesh: connections that move, what is asked of a group's home, the settlement of reads, and
//! management. What is asked of a home can also come from, or go to, another gateway ([`super::peer`]).
//!
//! Everything in a frame is `Send`; answers come back in the oneshot inside. A [`RemoteLease`] guards what a read handed out:
//! wherever it is dropped, even inside a channel whose other end has gone, the messages go back to their group.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::OwnedFd,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_channel::oneshot;
use serde::{Deserialize, Serialize};

use super::{
    Arrival,
    call::{Answer, Call},
    idempotency::{Begun, Fingerprint, Name, Outcome as PublishOutcome},
    reply::Problem,
    status::ShardStatus,
    top::Top,
};
use crate::{
    config::resolve::{Config, Roles},
    mesh::{Mesh, ShardId},
    proto::{tls::Acceptor, watch::Lived},
    store::{Acked, Delivery, FetchSpec, Grant, Offset, Outcome, Partition, Reset, TagFilter},
};

/// Names one group on its home core.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct GroupKey {
    pub topic: Arc<str>,
    pub group_id: Arc<str>,
}

/// How far the gateway is in going away.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub enum DrainPhase {
    #[default]
    Serving,
    /// Everything is served, each answer tells the client to go elsewhere.
    Notice,
    /// Listeners are closed, idle connections close, long polls end.
    Closing,
}

/// A read of a group.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FetchRequest {
    /// Partitions of the topic as the asking core knows them.
    pub partitions: i32,
    pub reset: Reset,
    pub spec: FetchSpec,
    /// It is answered from what this gateway owns.
    pub is_from_peer: bool,
    /// From another gateway: what [`Op::EndFetch`] names it by.
    pub ticket: u64,
}

/// One message that is acknowledged, with what its lease holds before it; or whose lease is renewed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct AckAt {
    pub partition: Partition,
    pub offset: Offset,
    pub extend: Option<Duration>,
}

/// A message that goes to a shadow queue.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BuryAt {
    pub partition: Partition,
    pub offset: Offset,
    /// Kafka's name of the queue.
    pub queue: Arc<str>,
    /// Instead of the message's own.
    pub body: Option<Bytes>,
    pub delay: Option<Duration>,
}

/// What is asked of a group's home, by a core or a gateway.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Op {
    Fetch(FetchRequest),
    /// Nobody waits for that read any more.
    EndFetch(u64),
    Settle {
        grants: Vec<Grant>,
        outcome: Outcome,
    },
    Renew {
        grants: Vec<Grant>,
    },
    Ack(Vec<AckAt>),
    Bury(BuryAt),
    /// The next offset to read, by partition.
    Move(Vec<(Partition, Offset)>),
    /// Who reads here.
    Readers,
    /// A member without clients leaves.
    Release,
    /// The client of an endless answer did not take it.
    EndStream(u64),
    /// The tag filter the group is to be read by from now on.
    Filter(Option<TagFilter>),
}

impl Op {
    /// The partitions of what is to be done, where it is done item by item: acknowledgements, a burial, moves.
    pub fn partitions(&self) -> Vec<Partition> {
        match self {
            Self::Ack(items) => items.iter().map(|item| item.partition).collect(),
            Self::Bury(bury) => vec![bury.partition],
            Self::Move(moves) => moves.iter().map(|(partition, _)| *partition).collect(),
            _ => Vec::new(),
        }
    }

    /// The same for some of its items only.
    pub fn only(&self, wanted: &[usize]) -> Self {
        match self {
            Self::Ack(items) => Self::Ack(wanted.iter().map(|at| items[*at]).collect()),
            Self::Move(moves) => Self::Move(wanted.iter().map(|at| moves[*at]).collect()),
            whole => whole.clone(),
        }
    }
}

/// What came of an [`Op`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Done {
    Fetched(Delivery),
    Settled,
    /// What became of each acknowledgement, burial or move, in the order asked.
    Each(Vec<Acked>),
    Readers(Vec<Reader>),
    Released {
        has_readers: bool,
    },
    /// Not where it is being read by another.
    Filter {
        is_taken: bool,
    },
}

/// One partition of a group, as its owner shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reader {
    pub partition: Partition,
    pub end: Offset,
    pub real_ip: Option<IpAddr>,
    pub shard: usize,
    pub gateway: String,
    pub waiting: usize,
    pub leased: usize,
    pub delivered_s_ago: Option<u64>,
}

/// Whose leases these are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The group's home on this gateway.
    Home,
    /// The gateway that is reached there.
    Peer(Arc<str>),
}

/// A duplicate of a listening socket, and what it serves.
#[derive(Debug)]
pub struct Listening {
    pub addr: SocketAddr,
    pub roles: Roles,
    pub fd: OwnedFd,
}

#[derive(Debug)]
pub enum Frame {
    Fetch {
        key: GroupKey,
        request: FetchRequest,
        answer: oneshot::Sender<Result<RemoteLease, Problem>>,
    },
    /// What became of the answer with the messages under these grants.
    Settle {
        key: GroupKey,
        grants: Vec<Grant>,
        outcome: Outcome,
        origin: Origin,
    },
    /// Something else asked of a group's home. `is_from_peer`: it is answered from what is here alone.
    Ask {
        key: GroupKey,
        op: Op,
        is_from_peer: bool,
        answer: oneshot::Sender<Result<Done, Problem>>,
    },
    /// A request that came to a thread without a data plane.
    Call {
        call: Call,
        answer: oneshot::Sender<Result<Answer, Problem>>,
    },
    /// A publish with a key that lives on the core this is sent to.
    Begin {
        name: Name,
        fingerprint: Fingerprint,
        answer: oneshot::Sender<Result<Begun, Problem>>,
    },
    /// What came of it; `None`: nothing was stored.
    Conclude {
        name: Name,
        outcome: Option<PublishOutcome>,
    },
    /// A connection whose first read is of a group that lives on the core this is sent to.
    Connection {
        socket: OwnedFd,
        /// What was read of it, from that request's first byte on.
        unread: Bytes,
        /// As the core that accepted it found it.
        arrival: Arrival,
        lived: Lived,
    },
    Status {
        answer: oneshot::Sender<ShardStatus>,
    },
    Top {
        answer: oneshot::Sender<Top>,
    },
    /// For a successor.
    Listening {
        answer: oneshot::Sender<io::Result<Vec<Listening>>>,
    },
    /// A successor accepts from the same sockets.
    StopAccepting,
    /// What was adopted from a predecessor is to be served from now on.
    Accept,
    Drain(DrainPhase),
    /// Flush, commit, leave; answered when done.
    Finish {
        deadline: Instant,
        answer: oneshot::Sender<u64>,
    },
    Reload(Arc<Config>),
    /// New connections get these certificates from now on.
    Certificates(Acceptor),
}

/// Messages read on another core, or through another gateway, with the duty to say what became of them.
#[derive(Debug)]
pub struct RemoteLease {
    pub delivery: Delivery,
    /// Partitions of the topic as the home core knows them by now; 0 where it is gone.
    pub partitions: i32,
    pub origin: Origin,
    key: GroupKey,
    home: ShardId,
    mesh: Mesh<Frame>,
    outcome: Outcome,
}

impl RemoteLease {
    pub fn new(delivery: Delivery, origin: Origin, key: &GroupKey, home: ShardId, mesh: &Mesh<Frame>) -> Self {
        let (key, mesh, outcome) = (key.clone(), mesh.clone(), Outcome::Unsent);
        Self { delivery, partitions: 0, origin, key, home, mesh, outcome }
    }

    /// Who has them will say so himself.
    pub fn forget(mut self) {
        self.delivery.grants.clear();
    }

    /// Says what became of them.
    pub fn settle(mut self, outcome: Outcome) {
        self.outcome = outcome;
    }
}

impl Drop for RemoteLease {
    fn drop(&mut self) {
        let grants = std::mem::take(&mut self.delivery.grants);
        if !grants.is_empty() {
            let (key, origin) = (self.key.clone(), self.origin.clone());
            let settle = Frame::Settle { key, grants, outcome: self.outcome, origin };
            self.mesh.settle(self.home, settle);
        }
    }
}
