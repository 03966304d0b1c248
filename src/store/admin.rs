//! What a store says about groups and positions, and how a group is moved.
//!
//! Types only: the calls are those of [`super::Store`]. This file knows no HTTP and no Kafka client.

use super::Partition;

/// A place in every partition of a topic.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum At {
    Oldest,
    Newest,
    /// Where the first message stands whose timestamp is not before this (unix ms); the newest if there is none.
    TimeMs(i64),
}

/// One member of a group, whoever runs it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GroupMember {
    /// What it calls itself; a gateway's is `kateway-<gateway id>@<HOST:PORT>`.
    pub client_id: String,
    pub member_id: String,
    /// As the broker saw it, such as `/10.0.0.1`.
    pub host: String,
    /// Its partitions of the topic that was asked about; perhaps none.
    pub partitions: Vec<Partition>,
}

/// A group and its members.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GroupInfo {
    pub members: Vec<GroupMember>,
    /// It is not being shared out: what no member has, nobody has.
    pub is_settled: bool,
}

/// A group of the cluster, in a listing made for one topic.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ListedGroup {
    pub group_id: String,
    /// A member of it has partitions of that topic.
    pub is_read: bool,
}

/// Why an open group was not moved, or not for sure.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SeekError {
    /// Another member has the partition, or nobody yet. Nothing was moved, unless it was taken away during the move.
    NotOwned(Partition),
    /// It did not work, or not in time; it may yet have moved.
    Unavailable { reason: String },
}
