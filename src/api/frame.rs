//! What cores say to each other over the mesh: connections that move, reads of a group that lives elsewhere, their settlement, and
//! management.
//!
//! Everything in a frame is `Send`; answers come back in the oneshot inside. A [`RemoteLease`] guards what a read handed out:
//! wherever it is dropped, even inside a channel whose other end has gone, the messages go back to their group.

use std::{os::fd::OwnedFd, sync::Arc, time::Instant};

use bytes::Bytes;
use futures_channel::oneshot;

use super::{reply::Problem, status::ShardStatus, top::Top};
use crate::{
    config::resolve::{Config, Roles},
    mesh::{Mesh, ShardId},
    store::{Delivery, FetchSpec, Grant, Reset},
};

/// Names one group on its home core.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
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
#[derive(Clone, Debug)]
pub struct FetchRequest {
    pub key: GroupKey,
    /// Partitions of the topic as the asking core knows them.
    pub partitions: i32,
    pub reset: Reset,
    pub spec: FetchSpec,
}

#[derive(Debug)]
pub enum Frame {
    Fetch {
        request: FetchRequest,
        answer: oneshot::Sender<Result<RemoteLease, Problem>>,
    },
    /// The messages under these grants were delivered, or were not.
    Settle {
        key: GroupKey,
        grants: Vec<Grant>,
        delivered: bool,
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

/// Messages read on another core, with the duty to say what became of them.
#[derive(Debug)]
pub struct RemoteLease {
    pub delivery: Delivery,
    /// Partitions of the topic as the home core knows them by now; 0 where it is gone.
    pub partitions: i32,
    key: GroupKey,
    home: ShardId,
    mesh: Mesh<Frame>,
    delivered: bool,
}

impl RemoteLease {
    pub fn new(delivery: Delivery, partitions: i32, key: GroupKey, home: ShardId, mesh: Mesh<Frame>) -> Self {
        Self { delivery, partitions, key, home, mesh, delivered: false }
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
            let settle = Frame::Settle { key: self.key.clone(), grants, delivered: self.delivered };
            self.mesh.settle(self.home, settle);
        }
    }
}
