//! Where a group stands: the calls around an assignment that wait for a broker. All of them run in the offload pool.
//!
//! Invariants: partitions are assigned at explicit offsets only, the committed one or the end the group asked for; what is
//! committed at a revocation is committed before the partition is given up, and nothing is committed of a lost assignment.

use std::{ffi::CStr, sync::Arc, time::Duration};

use super::native::{Client, End, ErrorCode, PartitionList, Queue};
use crate::store::{Offset, Partition, Reset};

/// librdkafka's "no offset given".
const OFFSET_UNKNOWN: Offset = -1001;

/// A partition that is ours now.
#[derive(Debug)]
pub(super) struct Start {
    pub partition: Partition,
    pub offset: Offset,
    /// The group had nothing committed: `offset` is to be committed at once, so that the choice is made once.
    pub is_chosen: bool,
    pub queue: Queue,
}

/// Why an assignment could not be answered.
#[derive(Debug)]
pub(super) enum AssignError {
    /// Offsets are not to be had at the moment: try again.
    Offsets(ErrorCode),
    /// librdkafka would not have it.
    Refused(String),
}

/// Finds where each partition starts (`begin`: where nothing is committed), splits its queue off, and answers the assignment.
/// An empty one is answered too.
pub(super) fn assign(
    client: &Arc<Client>,
    topic: &CStr,
    partitions: &[Partition],
    begin: impl Fn(Partition) -> Reset,
    timeout: Duration,
) -> Result<Vec<Start>, AssignError> {
    let offsets = starts(client, topic, partitions, begin, timeout).map_err(AssignError::Offsets)?;
    let mut found = Vec::with_capacity(offsets.len());
    for (partition, offset, is_chosen) in offsets {
        // Split before the assignment: from its first message on everything comes by this queue.
        let queue = client.partition_queue(topic, partition);
        let queue = queue.ok_or_else(|| AssignError::Refused("no queue".to_owned()))?;
        queue.watch();
        found.push(Start { partition, offset, is_chosen, queue });
    }
    let list = PartitionList::new(topic, found.iter().map(|start| (start.partition, start.offset)));
    client.assign(&list).map_err(AssignError::Refused)?;
    Ok(found)
}

fn starts(
    client: &Client,
    topic: &CStr,
    partitions: &[Partition],
    begin: impl Fn(Partition) -> Reset,
    timeout: Duration,
) -> Result<Vec<(Partition, Offset, bool)>, ErrorCode> {
    if partitions.is_empty() {
        return Ok(Vec::new());
    }
    let mut committed = PartitionList::new(topic, partitions.iter().map(|p| (*p, 0)));
    client.committed(&mut committed, timeout)?;
    if let Some(failed) = committed.entries().find(|entry| !entry.code.is_ok()) {
        return Err(failed.code);
    }
    let (known, new): (Vec<_>, Vec<_>) = committed.entries().partition(|entry| entry.offset >= 0);
    let mut starts: Vec<_> = known.iter().map(|entry| (entry.partition, entry.offset, false)).collect();
    for (reset, end) in [(Reset::Oldest, End::Oldest), (Reset::Newest, End::Latest)] {
        let new: Vec<_> = new.iter().filter(|entry| begin(entry.partition) == reset).collect();
        if new.is_empty() {
            continue;
        }
        let mut ends = PartitionList::new(topic, new.iter().map(|entry| (entry.partition, 0)));
        client.offsets_at(end, &mut ends, timeout)?;
        for entry in ends.entries() {
            if !entry.code.is_ok() {
                return Err(entry.code);
            }
            starts.push((entry.partition, entry.offset.max(0), true));
        }
    }
    Ok(starts)
}

/// Answers an assignment nobody will read: where it starts is left to librdkafka, and its messages have no queue of their own.
pub(super) fn assign_unread(client: &Client, topic: &CStr, partitions: &[Partition]) -> Result<(), AssignError> {
    let list = PartitionList::new(topic, partitions.iter().map(|p| (*p, OFFSET_UNKNOWN)));
    client.assign(&list).map_err(AssignError::Refused)
}

/// Commits, and waits for what the broker says.
pub(super) fn commit(
    client: &Arc<Client>,
    topic: &CStr,
    ends: &[(Partition, Offset)],
    timeout: Duration,
) -> Result<(), ErrorCode> {
    client.commit_and_wait(&PartitionList::new(topic, ends.iter().copied()), timeout)
}

/// Answers a revocation.
pub(super) fn unassign(client: &Client, topic: &CStr, partitions: &[Partition]) -> Result<(), String> {
    client.unassign(&PartitionList::new(topic, partitions.iter().map(|p| (*p, OFFSET_UNKNOWN))))
}
