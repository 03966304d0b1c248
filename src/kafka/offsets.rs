//! Where a group stands: the calls around an assignment that wait for a broker. All of them run in the offload pool.
//!
//! Invariants: partitions are assigned at explicit offsets only, the committed one or the end the group asked for; what is
//! committed at a revocation is committed before the partition is given up, and nothing is committed of a lost assignment.

use std::{ffi::CStr, sync::Arc, time::Duration};

use super::native::{Client, End, ErrorCode, PartitionList, Queue};
use crate::store::{Offset, Partition, Reset};

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
    /// librdkafka refused: the assignment is no longer current, another event follows.
    Stale(String),
}

/// Finds where each partition starts, splits its queue off, and answers the assignment. An empty one is answered too.
pub(super) fn assign(
    client: &Arc<Client>,
    topic: &CStr,
    partitions: &[Partition],
    reset: Reset,
    timeout: Duration,
) -> Result<Vec<Start>, AssignError> {
    let offsets = starts(client, topic, partitions, reset, timeout).map_err(AssignError::Offsets)?;
    let mut found = Vec::with_capacity(offsets.len());
    for (partition, offset, is_chosen) in offsets {
        // Split before the assignment: from its first message on everything comes by this queue.
        let queue = client.partition_queue(topic, partition);
        let queue = queue.ok_or_else(|| AssignError::Stale("no queue".to_owned()))?;
        queue.watch();
        found.push(Start { partition, offset, is_chosen, queue });
    }
    let list = PartitionList::new(topic, found.iter().map(|start| (start.partition, start.offset)));
    client.assign(&list).map_err(AssignError::Stale)?;
    Ok(found)
}

fn starts(
    client: &Client,
    topic: &CStr,
    partitions: &[Partition],
    reset: Reset,
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
    if !new.is_empty() {
        let end = match reset {
            Reset::Oldest => End::Oldest,
            Reset::Newest => End::Latest,
        };
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

/// Commits `ends`, when there are any, and gives `partitions` up whatever became of the commit.
pub(super) fn give_up(
    client: &Arc<Client>,
    topic: &CStr,
    ends: &[(Partition, Offset)],
    partitions: &PartitionList,
    timeout: Duration,
) -> Result<(), ErrorCode> {
    let committed = if ends.is_empty() {
        Ok(())
    } else {
        client.commit_and_wait(&PartitionList::new(topic, ends.iter().copied()), timeout)
    };
    if let Err(text) = client.unassign(partitions) {
        tracing::debug!(text, "a revocation was not current any more");
    }
    committed
}

/// Answers an assignment with nothing: the group is closing.
pub(super) fn decline(client: &Client, topic: &CStr) {
    if let Err(text) = client.assign(&PartitionList::new(topic, [])) {
        tracing::debug!(text, "an assignment was not current any more");
    }
}
