//! Where a group stands: the calls around an assignment that wait for a broker. All of them run in the offload pool.
//!
//! Invariants: partitions are assigned at explicit offsets only, the committed one or the end the group asked for; what is
//! committed at a revocation is committed before the partition is given up, and nothing is committed of a lost assignment.
//!
//! A group that asked for the newest does so for the partitions there were when it began. Which those are is noted beside every
//! commit, because the next gateway to open the group would otherwise skip what was written to a partition added since.

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

/// An answered assignment.
#[derive(Debug)]
pub(super) struct Assigned {
    pub starts: Vec<Start>,
    /// How many partitions the topic had when the group began.
    pub first_partitions: Partition,
}

/// Why an assignment could not be answered.
#[derive(Debug)]
pub(super) enum AssignError {
    /// Offsets are not to be had at the moment: try again.
    Offsets(ErrorCode),
    /// librdkafka would not have it.
    Refused(String),
}

/// Finds where each partition starts, splits its queue off, and answers the assignment. An empty one is answered too.
/// `reset` is for partitions without a commit among the first; `first_partitions` are these as long as no commit says.
pub(super) fn assign(
    client: &Arc<Client>,
    topic: &CStr,
    partitions: &[Partition],
    reset: Reset,
    first_partitions: Partition,
    timeout: Duration,
) -> Result<Assigned, AssignError> {
    let found = starts(client, topic, partitions, reset, first_partitions, timeout);
    let (offsets, first_partitions) = found.map_err(AssignError::Offsets)?;
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
    Ok(Assigned { starts: found, first_partitions })
}

/// A partition, where it starts, and whether that was chosen here.
type Begin = (Partition, Offset, bool);

fn starts(
    client: &Client,
    topic: &CStr,
    partitions: &[Partition],
    reset: Reset,
    first_partitions: Partition,
    timeout: Duration,
) -> Result<(Vec<Begin>, Partition), ErrorCode> {
    if partitions.is_empty() {
        return Ok((Vec::new(), first_partitions));
    }
    // Also what others of the group have committed: for the note.
    let others = (0..first_partitions).filter(|partition| !partitions.contains(partition));
    let mut committed = PartitionList::new(topic, partitions.iter().copied().chain(others).map(|p| (p, 0)));
    client.committed(&mut committed, timeout)?;
    let first_partitions = committed.notes().filter_map(read_note).min().unwrap_or(first_partitions);
    let ours: Vec<_> = committed.entries().take(partitions.len()).collect();
    if let Some(failed) = ours.iter().find(|entry| !entry.code.is_ok()) {
        return Err(failed.code);
    }
    let (known, new): (Vec<_>, Vec<_>) = ours.into_iter().partition(|entry| entry.offset >= 0);
    let mut starts: Vec<_> = known.iter().map(|entry| (entry.partition, entry.offset, false)).collect();
    let begin = |partition| if partition < first_partitions { reset } else { Reset::Oldest };
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
    Ok((starts, first_partitions))
}

const NOTE: &str = "kateway first_partitions=";

fn read_note(note: &[u8]) -> Option<Partition> {
    let count = std::str::from_utf8(note).ok()?.strip_prefix(NOTE)?.parse().ok()?;
    (count > 0).then_some(count)
}

/// What is to be committed, with the note.
pub(super) fn commits(topic: &CStr, ends: &[(Partition, Offset)], first_partitions: Partition) -> PartitionList {
    PartitionList::new(topic, ends.iter().copied()).with_note(&format!("{NOTE}{first_partitions}"))
}

/// Answers an assignment nobody will read: where it starts is left to librdkafka, and its messages have no queue of their own.
pub(super) fn assign_unread(client: &Client, topic: &CStr, partitions: &[Partition]) -> Result<(), AssignError> {
    let list = PartitionList::new(topic, partitions.iter().map(|p| (*p, OFFSET_UNKNOWN)));
    client.assign(&list).map_err(AssignError::Refused)
}

/// Answers a revocation.
pub(super) fn unassign(client: &Client, topic: &CStr, partitions: &[Partition]) -> Result<(), String> {
    client.unassign(&PartitionList::new(topic, partitions.iter().map(|p| (*p, OFFSET_UNKNOWN))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_read_as_it_was_written() {
        let list = commits(c"t", &[(0, 5), (7, 9)], 12);
        assert_eq!(list.notes().map(read_note).collect::<Vec<_>>(), [Some(12), Some(12)]);
        let silent = PartitionList::new(c"t", [(0, 5)]);
        assert_eq!(silent.notes().map(read_note).collect::<Vec<_>>(), [None]);
    }

    #[test]
    fn notes_of_others_say_nothing() {
        for note in [&b""[..], b"4", b"kateway first_partitions=", b"kateway first_partitions=-4", b"\xff\0"] {
            assert_eq!(read_note(note), None, "{note:?}");
        }
    }
}
