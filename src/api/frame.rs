//! What cores say to each other over the mesh: connections that move, what is asked of a group's home, the settlement of reads, and
//! management. What is asked of a home can also come from, or go to, another gateway ([`super::peer`]).
//!
//! Everything in a frame is `Send`; answers come back in the oneshot inside. A [`RemoteLease`] guards what a read handed out:
//! wherever it is dropped, even inside a channel whose other end has gone, the messages go back to their group.

use std::{
    net::IpAddr,
    os::fd::OwnedFd,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_channel::oneshot;
use serde::{Deserialize, Serialize};

use super::{
    call::{Answer, Call},
    reply::Problem,
    status::ShardStatus,
    top::Top,
};
use crate::{
    config::resolve::{Config, Roles},
    mesh::{Mesh, ShardId},
    store::{Acked, Delivery, FetchSpec, Grant, Offset, Partition, Reset},
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
    Settle {
        grants: Vec<Grant>,
        is_delivered: bool,
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
}

/// What came of an [`Op`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Done {
    Fetched(Delivery),
    Settled,
    /// In the order asked.
    Acked(Vec<Acked>),
    Buried(Acked),
    Moved(Vec<Acked>),
    Readers(Vec<Reader>),
    Released {
        has_readers: bool,
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

#[derive(Debug)]
pub enum Frame {
    Fetch {
        key: GroupKey,
        request: FetchRequest,
        answer: oneshot::Sender<Result<RemoteLease, Problem>>,
    },
    /// The messages under these grants were delivered, or were not.
    Settle {
        key: GroupKey,
        grants: Vec<Grant>,
        is_delivered: bool,
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
    /// A connection whose first read is of a group that lives on the core this is sent to.
    Connection {
        socket: OwnedFd,
        /// What was read of it, from that request's first byte on.
        unread: Bytes,
        roles: Roles,
    },
    Status {
        answer: oneshot::Sender<ShardStatus>,
    },
    Top {
        answer: oneshot::Sender<Top>,
    },
    Drain(DrainPhase),
    /// Flush, commit, leave; answered when done.
    Finish {
        deadline: Instant,
        answer: oneshot::Sender<u64>,
    },
    Reload(Arc<Config>),
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
    delivered: bool,
}

impl RemoteLease {
    pub fn new(delivery: Delivery, origin: Origin, key: &GroupKey, home: ShardId, mesh: &Mesh<Frame>) -> Self {
        Self { delivery, partitions: 0, origin, key: key.clone(), home, mesh: mesh.clone(), delivered: false }
    }

    /// Who has them will say so himself.
    pub fn forget(mut self) {
        self.delivery.grants.clear();
    }

    /// The client has them.
    pub fn delivered(mut self) {
        self.delivered = true;
    }
}

impl Drop for RemoteLease {
    fn drop(&mut self) {
        let grants = std::mem::take(&mut self.delivery.grants);
        if !grants.is_empty() {
            let (key, origin) = (self.key.clone(), self.origin.clone());
            let settle = Frame::Settle { key, grants, is_delivered: self.delivered, origin };
            self.mesh.settle(self.home, settle);
        }
    }
}
