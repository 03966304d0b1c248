//! Where a group stands: the calls around an assignment that wait for a broker. All of them run in the offload pool.
//!
//! Invariants: partitions are assigned at explicit offsets only, the committed one or the end the group asked for; what is
//! committed at a revocation is committed before the partition is given up, and nothing is committed of a lost assignment.
//!
//! A group that asked for the newest does so once, for the partitions there were when it began: see [`Standing`].

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::CStr,
    sync::Arc,
    time::Duration,
};

use super::native::{Client, End, Entry, ErrorCode, PartitionList, Queue};
use crate::store::{At, Begin, Offset, Partition, Reset};

/// librdkafka's "no offset given".
const OFFSET_UNKNOWN: Offset = -1001;

/// What a member knows of its group beside the offsets it finds committed: whether the group has chosen already where it starts.
///
/// `reset` is that choice, and it is made once. A partition without a commit is new to the group if the topic has grown since the
/// group began, or if the topic was made again (then commits this member has seen are gone): it is read from its beginning. How
/// large the topic was is noted beside every commit, because the next gateway to open the group has never seen it smaller. What was
/// made again while no gateway had the group open cannot be told from a group that begins: `reset` decides.
#[derive(Clone, Debug)]
pub(super) struct Standing {
    pub reset: Reset,
    /// How many partitions the topic had when the group began, as far as is known; 0 once all of them are new to it. It only falls:
    /// too small means from the oldest, too large would skip.
    pub first_partitions: Partition,
    /// Where the group has had an offset committed, by anybody.
    pub committed: BTreeSet<Partition>,
    /// Starts this member has chosen: they hold even if their commit failed.
    pub chosen: BTreeMap<Partition, Offset>,
    /// How often the topic has been found to be another one: what was chosen before the last time does not count any more.
    pub anew: u64,
}

/// A partition that is ours now.
#[derive(Debug)]
pub(super) struct Start {
    pub partition: Partition,
    pub offset: Offset,
    /// The group had nothing committed: `offset` is to be committed at once, so that the choice is made once.
    pub is_chosen: bool,
    /// First and last offset that were to be read and are gone from the log. The commit stays before them until something behind them is
    /// acknowledged, so that whoever has the partition next hears of them too.
    pub gap: Option<(Offset, Offset)>,
    pub queue: Queue,
}

/// An answered assignment.
#[derive(Debug)]
pub(super) struct Assigned {
    pub starts: Vec<Start>,
    pub commits: Commits,
    /// [`Standing::anew`] as it was when the starts were asked for.
    pub anew: u64,
}

/// What the group's coordinator says is committed.
#[derive(Debug, Default)]
pub(super) struct Commits {
    found: Vec<Partition>,
    /// The least of their notes.
    note: Option<Partition>,
    /// One that was known when it was asked for is not there any more.
    is_one_gone: bool,
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
pub(super) fn assign(
    client: &Arc<Client>,
    topic: &CStr,
    partitions: &[Partition],
    mut standing: Standing,
    timeout: Duration,
) -> Result<Assigned, AssignError> {
    let anew = standing.anew;
    let (offsets, commits) = starts(client, topic, partitions, &mut standing, timeout).map_err(AssignError::Offsets)?;
    let mut found = Vec::with_capacity(offsets.len());
    for Place { partition, offset, is_chosen, gap } in offsets {
        // Split before the assignment: from its first message on everything comes by this queue.
        let queue = client.partition_queue(topic, partition);
        let queue = queue.ok_or_else(|| AssignError::Refused("no queue".to_owned()))?;
        queue.watch();
        found.push(Start { partition, offset, is_chosen, gap, queue });
    }
    let list = PartitionList::new(topic, found.iter().map(|start| (start.partition, start.offset)));
    client.assign(&list).map_err(AssignError::Refused)?;
    Ok(Assigned { starts: found, commits, anew })
}

/// Where a partition starts: as [`Start`], before there is a queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Place {
    partition: Partition,
    offset: Offset,
    is_chosen: bool,
    gap: Option<(Offset, Offset)>,
}

fn starts(
    client: &Client,
    topic: &CStr,
    partitions: &[Partition],
    standing: &mut Standing,
    timeout: Duration,
) -> Result<(Vec<Place>, Commits), ErrorCode> {
    if partitions.is_empty() {
        return Ok(Default::default());
    }
    let (ours, commits) = ask(client, topic, partitions, standing, timeout)?;
    if let Some(failed) = ours.iter().find(|entry| !entry.code.is_ok()) {
        return Err(failed.code);
    }
    standing.learn(&commits);
    let (known, new): (Vec<_>, Vec<_>) = ours.into_iter().partition(|entry| entry.offset >= 0);
    let (from_oldest, from_newest): (Vec<_>, Vec<_>) =
        new.into_iter().partition(|entry| standing.reset_of(entry.partition) == Reset::Oldest);
    let mut starts = Vec::with_capacity(partitions.len());
    if !from_newest.is_empty() {
        let found = ends(client, topic, End::Latest, &from_newest, timeout)?;
        starts.extend(
            found.iter().map(|entry| standing.chosen_place(End::Latest, entry)).collect::<Result<Vec<_>, _>>()?,
        );
    }
    // One question for all: where the new ones start, and whether what the others come to is still there.
    let asked: Vec<_> = known.iter().chain(&from_oldest).copied().collect();
    let found = match ends(client, topic, End::Oldest, &asked, timeout) {
        // Only who is new depends on it; a gap shows at the first message as well.
        Err(_) if from_oldest.is_empty() => Vec::new(),
        found => found?,
    };
    let oldest_of = |partition| found.iter().find(|entry| entry.partition == partition && entry.code.is_ok());
    starts.extend(known.iter().map(|entry| known_place(entry, oldest_of(entry.partition))));
    for entry in found.iter().filter(|found| from_oldest.iter().any(|new| new.partition == found.partition)) {
        starts.push(standing.chosen_place(End::Oldest, entry)?);
    }
    Ok((starts, commits))
}

fn ends(client: &Client, topic: &CStr, end: End, of: &[Entry], timeout: Duration) -> Result<Vec<Entry>, ErrorCode> {
    if of.is_empty() {
        return Ok(Vec::new());
    }
    let mut list = PartitionList::new(topic, of.iter().map(|entry| (entry.partition, 0)));
    client.offsets_at(end, &mut list, timeout)?;
    Ok(list.entries().collect())
}

/// The start of a partition with a commit: there, or at the oldest if that lies behind it.
fn known_place(committed: &Entry, oldest: Option<&Entry>) -> Place {
    let Entry { partition, offset, .. } = *committed;
    let gap = oldest.and_then(|oldest| gap(offset, oldest.offset));
    Place { partition, offset: gap.map_or(offset, |(_, last)| last + 1), is_chosen: false, gap }
}

/// First and last offset that are gone, of a reader that comes to `expected` where the log begins at `oldest`.
pub(super) fn gap(expected: Offset, oldest: Offset) -> Option<(Offset, Offset)> {
    (oldest > expected).then_some((expected, oldest - 1))
}

/// What is committed for `ours`, and what that and the commits of the others tell.
fn ask(
    client: &Client,
    topic: &CStr,
    ours: &[Partition],
    standing: &Standing,
    timeout: Duration,
) -> Result<(Vec<Entry>, Commits), ErrorCode> {
    let others = (0..standing.first_partitions).filter(|partition| !ours.contains(partition));
    let mut list = PartitionList::new(topic, ours.iter().copied().chain(others).map(|p| (p, 0)));
    client.committed(&mut list, timeout)?;
    let answered = list.entries().filter(|entry| entry.code.is_ok());
    let (found, none): (Vec<_>, Vec<_>) = answered.partition(|entry| entry.offset >= 0);
    let commits = Commits {
        found: found.iter().map(|entry| entry.partition).collect(),
        note: noted(&list),
        is_one_gone: none.iter().any(|entry| standing.committed.contains(&entry.partition)),
    };
    Ok((list.entries().take(ours.len()).collect(), commits))
}

/// What others have committed: for a member that has no partitions.
pub(super) fn look(
    client: &Client,
    topic: &CStr,
    standing: &Standing,
    timeout: Duration,
) -> Result<Commits, ErrorCode> {
    ask(client, topic, &[], standing, timeout).map(|(_, commits)| commits)
}

// === impl Standing ===

impl Standing {
    pub fn new(begin: Begin) -> Self {
        let Begin { reset, partitions } = begin;
        Self { reset, first_partitions: partitions, committed: BTreeSet::new(), chosen: BTreeMap::new(), anew: 0 }
    }

    pub fn learn(&mut self, commits: &Commits) {
        if commits.is_one_gone {
            // It went with the topic it was of.
            self.begin_anew();
        }
        // Commits of other tools have no note, and say nothing of the size.
        self.first_partitions = commits.note.map_or(self.first_partitions, |count| count.min(self.first_partitions));
        self.committed.extend(&commits.found);
    }

    /// Where `starts` begin was chosen, of those that say so.
    pub fn choose(&mut self, starts: &[Start]) {
        let chosen = starts.iter().filter(|start| start.is_chosen);
        self.chosen.extend(chosen.map(|start| (start.partition, start.offset)));
    }

    /// The topic is another one under the same name: all of it is new to the group.
    pub fn begin_anew(&mut self) {
        self.first_partitions = 0;
        self.committed.clear();
        self.chosen.clear();
        self.anew += 1;
    }

    /// Whether the commits of others could still tell something: they say how the group began, and are missed once they are gone.
    pub fn is_to_look(&self) -> bool {
        self.first_partitions > 0 && self.committed.is_empty()
    }

    /// The start of a partition without a commit, whose `end` of the log was asked for.
    fn chosen_place(&self, end: End, found: &Entry) -> Result<Place, ErrorCode> {
        let Entry { partition, code, .. } = *found;
        let place = Place { partition, offset: self.start_at(end, found), is_chosen: true, gap: None };
        if code.is_ok() { Ok(place) } else { Err(code) }
    }

    /// The start of a partition without a commit, whose `end` of the log was found to be at `found`. One that was chosen before holds,
    /// unless it lies beyond the log: then it is of a log that is gone, and this one is new.
    fn start_at(&self, end: End, found: &Entry) -> Offset {
        match self.chosen.get(&found.partition) {
            Some(chosen) if end == End::Latest && *chosen > found.offset => 0,
            Some(chosen) => *chosen,
            None => found.offset.max(0),
        }
    }

    /// Where the group starts in a partition without a commit.
    fn reset_of(&self, partition: Partition) -> Reset {
        if partition < self.first_partitions { self.reset } else { Reset::Oldest }
    }
}

/// The offset of a place in each of `count` partitions.
pub(super) fn places(
    client: &Client,
    topic: &CStr,
    count: Partition,
    at: At,
    timeout: Duration,
) -> Result<Vec<(Partition, Offset)>, ErrorCode> {
    let every = || PartitionList::new(topic, (0..count).map(|partition| (partition, 0)));
    let end = |end| {
        let mut list = every();
        client.offsets_at(end, &mut list, timeout)?;
        offsets_of(&list)
    };
    match at {
        At::Oldest => end(End::Oldest),
        At::Newest => end(End::Latest),
        At::TimeMs(time_ms) => {
            // First the ends: what is published meanwhile is not older than that.
            let latest = end(End::Latest)?;
            let mut list = every();
            client.offsets_at_time(time_ms, &mut list, timeout)?;
            let found = offsets_of(&list)?.into_iter().zip(latest);
            Ok(found.map(|((partition, at), (_, latest))| (partition, if at < 0 { latest } else { at })).collect())
        }
    }
}

fn offsets_of(list: &PartitionList) -> Result<Vec<(Partition, Offset)>, ErrorCode> {
    list.entries().map(|e| if e.code.is_ok() { Ok((e.partition, e.offset)) } else { Err(e.code) }).collect()
}

/// The least of the notes beside commits.
pub(super) fn noted(commits: &PartitionList) -> Option<Partition> {
    commits.notes().filter_map(read_note).min()
}

const NOTE: &str = "kateway first_partitions=";

fn read_note(note: &[u8]) -> Option<Partition> {
    let count: Partition = std::str::from_utf8(note).ok()?.strip_prefix(NOTE)?.parse().ok()?;
    (count >= 0).then_some(count)
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
        assert_eq!(read_note(b"kateway first_partitions=0"), Some(0));
    }

    /// Standing of a member that knew 2 of now 3 partitions, after what the commits said.
    fn newest(found: &[Partition], note: Option<Partition>, is_one_gone: bool) -> [Reset; 3] {
        let mut standing = Standing::new(Begin { reset: Reset::Newest, partitions: 2 });
        standing.learn(&Commits { found: found.to_vec(), note, is_one_gone });
        assert!(standing.committed.iter().eq(found));
        [0, 1, 2].map(|partition| standing.reset_of(partition))
    }

    #[test]
    fn reset_is_for_the_partitions_the_group_began_with() {
        use Reset::{Newest, Oldest};
        assert_eq!(newest(&[], None, false), [Newest, Newest, Oldest], "nothing is committed yet");
        assert_eq!(newest(&[0], Some(2), false), [Newest, Newest, Oldest]);
        assert_eq!(newest(&[0], Some(1), false), [Newest, Oldest, Oldest], "the note knows better than the snapshot");
        assert_eq!(newest(&[0], Some(i32::MAX), false), [Newest, Newest, Oldest], "no note makes it larger");
        assert_eq!(newest(&[0], Some(0), false), [Oldest; 3], "the topic was made again before");
        assert_eq!(newest(&[0], None, false), [Newest, Newest, Oldest], "another tool has committed");
        assert_eq!(newest(&[], None, true), [Oldest; 3], "the commits are gone");
        assert_eq!(newest(&[1], Some(2), true), [Oldest; 3], "one came late, or stayed: others are gone all the same");
    }

    #[test]
    fn what_retention_took_is_a_gap() {
        let entry = |offset| Entry { partition: 3, offset, code: ErrorCode(0) };
        let place = |offset, gap| Place { partition: 3, offset, is_chosen: false, gap };
        assert_eq!(known_place(&entry(7), Some(&entry(7))), place(7, None));
        assert_eq!(known_place(&entry(7), Some(&entry(0))), place(7, None));
        assert_eq!(known_place(&entry(7), Some(&entry(10))), place(10, Some((7, 9))));
        assert_eq!(known_place(&entry(7), None), place(7, None), "nobody could say");
    }

    #[test]
    fn nothing_chosen_outlives_the_topic() {
        let mut standing = Standing::new(Begin { reset: Reset::Newest, partitions: 2 });
        standing.chosen.insert(1, 100);
        standing.committed.insert(0);
        let found = |offset| Entry { partition: 1, offset, code: ErrorCode(0) };
        assert_eq!(standing.start_at(End::Latest, &found(150)), 100, "it holds");
        assert_eq!(standing.start_at(End::Latest, &found(99)), 0, "the log is another one");
        let before = standing.anew;
        standing.begin_anew();
        assert!(standing.chosen.is_empty() && standing.committed.is_empty());
        assert_eq!(standing.start_at(End::Latest, &found(150)), 150);
        assert_ne!(standing.anew, before, "an assignment under way notices");
        assert!(!standing.is_to_look(), "there is nothing left to ask for");
    }

    #[test]
    fn notes_of_others_say_nothing() {
        const TOO_MANY: &[u8] = b"kateway first_partitions=4294967296";
        for note in [&b""[..], b"4", b"kateway first_partitions=", b"kateway first_partitions=-4", b"\xff\0", TOO_MANY]
        {
            assert_eq!(read_note(note), None, "{note:?}");
        }
    }
}
