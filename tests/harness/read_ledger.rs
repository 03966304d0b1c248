//! The reader's side of the ledger: what was delivered to whom, what was acknowledged, and what may therefore come again.
//!
//! Method: a client enters every message it has received, and says whether it processed it (one that is killed in the middle of a batch
//! has not); it enters every acknowledgement with the moments it was sent and answered. The trial enters what it did to the machines:
//! moments from which on unwritten acknowledgements may be gone ([`ReadLedger::disturbed`]), and spans in which partitions changed hands
//! ([`ReadLedger::moved`]). At the end all is held against the topic as an independent reader has it:
//!
//! ```text
//! in the topic, processed by nobody                                   LOST
//! delivered, not in the topic                                         STRAY
//! delivered with other bytes                                          ALTERED
//! delivered again after a 200 for its acknowledgement, and neither    DUPLICATE
//!   (b) acknowledged within a commit interval and a second before a disturbance, or during it, nor
//!   (c) acknowledged above an offset that was not acknowledged yet
//! never seen before, first delivery, below the one before it of the   REORDER
//!   same client and partition, though the partition stayed where it was
//! ```
//!
//! What was never acknowledged with 200 may come again freely (a). A 200 may come while the message is on its way to somebody else; so only
//! acknowledgements answered before the second delivery was received count.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::kcat::Record;

/// On top of the commit interval: the commit's own way to the broker, on a busy machine.
const GRACE: Duration = Duration::from_secs(1);

/// Between a message's leaving the gateway and its being entered.
const ON_ITS_WAY: Duration = Duration::from_millis(500);

/// Examples in a verdict.
const TOLD_MAX: usize = 5;

/// Partition and offset.
pub type Position = (i32, i64);

/// A message as a client received it.
#[derive(Debug, Clone)]
pub struct Received {
    pub client: u32,
    pub position: Position,
    /// How often it was delivered, this time included, as the gateway says.
    pub count: i64,
    pub hash: u64,
    pub at: Duration,
    pub processed: bool,
}

/// An acknowledgement and its answer.
#[derive(Debug, Clone)]
pub struct Ack {
    pub client: u32,
    pub partition: i32,
    pub offsets: Vec<i64>,
    pub sent: Duration,
    pub answered: Duration,
    /// `None`: no complete answer.
    pub status: Option<u16>,
    /// Items of one request share it: they are recorded at the same moment.
    pub call: u64,
}

/// From a moment to a later one.
#[derive(Debug, Clone, Copy)]
struct Span {
    from: Duration,
    to: Duration,
}

#[derive(Debug, Default)]
struct Entries {
    received: Vec<Received>,
    acks: Vec<Ack>,
    disturbed: Vec<Span>,
    moved: Vec<Span>,
}

/// See the module's documentation.
pub struct ReadLedger {
    began: Instant,
    commit_interval: Duration,
    calls: AtomicU64,
    entries: Mutex<Entries>,
}

/// Counts of everything the check found.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct ReadVerdict {
    pub records: usize,
    pub deliveries: usize,
    pub acked: usize,
    pub refused_late: usize,
    /// Came again, allowed by (a), (b), (c).
    pub unacked_again: usize,
    pub young_again: usize,
    pub above_gap_again: usize,
    pub lost: usize,
    pub stray: usize,
    pub altered: usize,
    pub duplicate: usize,
    pub reorder: usize,
    /// The first few duplicates, told.
    pub told: Vec<String>,
}

impl ReadLedger {
    pub fn new(commit_interval: Duration) -> Self {
        let entries = Mutex::default();
        Self { began: Instant::now(), commit_interval, calls: AtomicU64::new(0), entries }
    }

    /// The moment, on the ledger's clock.
    pub fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// A number for one request with acknowledgements.
    pub fn call(&self) -> u64 {
        self.calls.fetch_add(1, Ordering::Relaxed)
    }

    pub fn received(&self, received: Received) {
        self.lock().received.push(received);
    }

    pub fn acked(&self, ack: Ack) {
        self.lock().acks.push(ack);
    }

    /// From `from` to `to` a gateway or a broker was gone, or a partition was lost.
    pub fn disturbed(&self, from: Duration, to: Duration) {
        self.lock().disturbed.push(Span { from, to });
    }

    /// From `from` to `to` partitions may have changed hands, in peace or not.
    pub fn moved(&self, from: Duration, to: Duration) {
        self.lock().moved.push(Span { from, to });
    }

    /// How many different messages were processed so far.
    pub fn processed(&self) -> usize {
        let entries = self.lock();
        let processed: HashSet<Position> =
            entries.received.iter().filter(|received| received.processed).map(|received| received.position).collect();
        processed.len()
    }

    /// How many messages each client has processed, in the order of clients.
    pub fn shares(&self) -> Vec<usize> {
        let mut shares: BTreeMap<u32, usize> = BTreeMap::new();
        for received in &self.lock().received {
            *shares.entry(received.client).or_default() += usize::from(received.processed);
        }
        shares.into_values().collect()
    }

    /// The longest time in which no message of a partition was received by anybody, from `from` on; and the partition.
    pub fn longest_gap(&self, from: Duration) -> (Duration, i32) {
        let mut moments: BTreeMap<i32, Vec<Duration>> = BTreeMap::new();
        for received in self.lock().received.iter().filter(|received| received.at >= from) {
            moments.entry(received.position.0).or_default().push(received.at);
        }
        let longest = moments.into_iter().map(|(partition, mut moments)| {
            moments.sort();
            let gaps = std::iter::once(&from).chain(&moments).zip(&moments);
            (gaps.map(|(before, after)| after.saturating_sub(*before)).max().unwrap_or_default(), partition)
        });
        longest.max().unwrap_or_default()
    }

    /// Compares the entries with what an independent reader found, all partitions, each from its beginning to its end.
    pub fn check(&self, records: &[Record]) -> ReadVerdict {
        let mut entries = self.lock();
        entries.received.sort_by_key(|received| received.at);
        let mut verdict = ReadVerdict {
            records: records.len(),
            deliveries: entries.received.len(),
            acked: entries.acks.iter().filter(|ack| ack.status == Some(200)).map(|ack| ack.offsets.len()).sum(),
            refused_late: entries.acks.iter().filter(|ack| ack.status == Some(409)).count(),
            ..ReadVerdict::default()
        };
        let stored: HashMap<Position, u64> = records
            .iter()
            .map(|record| ((record.partition, record.offset), hash(record.payload.as_deref().unwrap_or_default())))
            .collect();
        for received in &entries.received {
            match stored.get(&received.position) {
                None => verdict.stray += 1,
                Some(hash) => verdict.altered += usize::from(*hash != received.hash),
            }
        }
        let processed: HashSet<Position> =
            entries.received.iter().filter(|received| received.processed).map(|received| received.position).collect();
        verdict.lost = stored.keys().filter(|position| !processed.contains(position)).count();
        self.judge_duplicates(&entries, &mut verdict);
        verdict.reorder = reorders(&entries);
        verdict
    }

    /// Each delivery but the first is held against the one before it.
    fn judge_duplicates(&self, entries: &Entries, verdict: &mut ReadVerdict) {
        let lives = lives(entries);
        let mut seen: HashMap<Position, Duration> = HashMap::new();
        for received in &entries.received {
            let Some(before) = seen.insert(received.position, received.at) else { continue };
            let ack = lives.get(&received.position).and_then(|life| life.acked_between(before, received.at));
            match ack {
                None => verdict.unacked_again += 1,
                Some(ack) if self.is_young(ack, entries) => verdict.young_again += 1,
                Some(ack) if is_above_gap(received.position, ack, &lives) => verdict.above_gap_again += 1,
                Some(ack) => {
                    verdict.duplicate += 1;
                    if verdict.told.len() < TOLD_MAX {
                        verdict.told.push(format!("{received:?} after {ack:?}"));
                    }
                }
            }
        }
    }

    fn is_young(&self, ack: &Taken, entries: &Entries) -> bool {
        let until = ack.answered + self.commit_interval + GRACE;
        entries.disturbed.iter().any(|span| span.from <= until && ack.sent <= span.to)
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An acknowledgement that was answered 200.
#[derive(Debug, Clone, Copy)]
struct Taken {
    sent: Duration,
    answered: Duration,
    call: u64,
}

/// What happened to one message, in the order of time.
#[derive(Debug, Default)]
struct Life {
    delivered: Vec<Duration>,
    acks: Vec<Taken>,
}

impl Life {
    fn acked_between(&self, from: Duration, to: Duration) -> Option<&Taken> {
        self.acks.iter().find(|ack| ack.answered >= from && ack.answered < to)
    }

    /// Whether the message was in somebody's hands, or not yet in anybody's, when `ack` was recorded.
    fn is_open_at(&self, ack: &Taken) -> bool {
        let delivered = self.delivered.iter().rfind(|at| **at <= ack.answered).copied().unwrap_or_default();
        let closed = self.acks.iter().find(|own| own.answered >= delivered);
        closed.is_none_or(|own| own.call != ack.call && own.answered > ack.sent)
    }
}

/// Whether a lower offset of the partition was not acknowledged when this one was.
fn is_above_gap(position: Position, ack: &Taken, lives: &BTreeMap<Position, Life>) -> bool {
    lives.range((position.0, 0)..position).any(|(_, life)| life.is_open_at(ack))
}

/// An acknowledgement is of the lease that holds its last offset now. Where that offset was handed out anew in between, it may be of
/// another lease than the client had, with other messages before it: then the last offset alone counts.
fn lives(entries: &Entries) -> BTreeMap<Position, Life> {
    let mut deliveries: HashMap<Position, Vec<(Duration, u32)>> = HashMap::new();
    for received in &entries.received {
        deliveries.entry(received.position).or_default().push((received.at, received.client));
    }
    let is_of_the_same_lease = |ack: &Ack, last: i64| {
        let of_last = deliveries.get(&(ack.partition, last)).map(Vec::as_slice).unwrap_or_default();
        let own = of_last.iter().filter(|(at, client)| *client == ack.client && *at <= ack.sent).max();
        own.is_some_and(|own| !of_last.iter().any(|other| other.0 > own.0 && other.0 <= ack.answered + ON_ITS_WAY))
    };
    let mut lives: BTreeMap<Position, Life> = BTreeMap::new();
    for received in &entries.received {
        lives.entry(received.position).or_default().delivered.push(received.at);
    }
    for ack in entries.acks.iter().filter(|ack| ack.status == Some(200)) {
        let Some(last) = ack.offsets.iter().max() else { continue };
        let covers_all = is_of_the_same_lease(ack, *last);
        for offset in ack.offsets.iter().filter(|offset| covers_all || *offset == last) {
            let taken = Taken { sent: ack.sent, answered: ack.answered, call: ack.call };
            lives.entry((ack.partition, *offset)).or_default().acks.push(taken);
        }
    }
    for life in lives.values_mut() {
        life.acks.sort_by_key(|ack| ack.answered);
    }
    lives
}

fn reorders(entries: &Entries) -> usize {
    let mut seen: HashSet<Position> = HashSet::new();
    let mut last: HashMap<(u32, i32), (i64, Duration)> = HashMap::new();
    let mut count = 0;
    for received in &entries.received {
        let (partition, offset) = received.position;
        let is_new = seen.insert(received.position);
        if received.count > 1 {
            continue;
        }
        let before = last.insert((received.client, partition), (offset, received.at));
        let Some((higher, at)) = before.filter(|(before, _)| *before >= offset) else { continue };
        let stayed = entries.moved.iter().all(|span| span.to < at || span.from > received.at);
        count += usize::from(is_new && stayed && higher > offset);
    }
    count
}

// === impl ReadVerdict ===

impl ReadVerdict {
    /// Panics unless every message was processed and nothing came again that must not.
    #[track_caller]
    pub fn assert_clean(&self) {
        let faults = [self.lost, self.stray, self.altered, self.duplicate, self.reorder];
        assert_eq!(faults, [0; 5], "lost, stray, altered, duplicate, reorder: {self}");
    }
}

impl fmt::Display for ReadVerdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "records {} deliveries {} acked {} late {}; again: unacked {} young {} above a gap {}; lost {} stray {} altered {} duplicate {} reorder {}{}",
            self.records,
            self.deliveries,
            self.acked,
            self.refused_late,
            self.unacked_again,
            self.young_again,
            self.above_gap_again,
            self.lost,
            self.stray,
            self.altered,
            self.duplicate,
            self.reorder,
            if self.told.is_empty() { String::new() } else { format!("\n  {}", self.told.join("\n  ")) }
        )
    }
}

/// What a delivery's payload is compared by.
pub fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    hasher.finish()
}
