//! The ledger: what was sent, what was promised, what is there.
//!
//! Method: every attempt to publish is entered *before* its first byte is sent, with an id, a key, its place in the
//! order of its lane (one connection, one key) and a hash of its bytes; its answer is entered afterwards. The message
//! itself carries ledger, id and a body that follows from the id, so that the independent reader's records can be
//! matched with attempts without trusting either side. Then:
//!
//! ```text
//!                     in the topic                 not in the topic
//! durable (201)       fine                         LOST
//! local, none (202)   fine                         allowed: this is counted, not judged
//! unknown (504, cut)  fine                         fine
//! refused (4xx, 503)  GHOST                        fine
//! never attempted     STRAY                        -
//! ```
//!
//! A record whose bytes differ from the attempt's is ALTERED; one that is there twice is a DUPLICATE; a durable record
//! that stands before one of its lane that was sent earlier is a REORDER.

use std::collections::HashMap;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::client::{Failure, Response};
use crate::haproxy;
use crate::kcat::Record;

/// What the gateway's answer promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// 201 without `X-Durability`: in Kafka, on all in-sync replicas.
    Durable,
    /// `X-Durability: local`: on the gateway's disk.
    Local,
    /// `X-Durability: none`.
    None,
    /// 504, or no complete answer: nobody knows.
    Unknown,
    /// 4xx, 502, 503: not stored.
    Refused,
}

impl Answer {
    pub fn of(result: &Result<Response, Failure>) -> Self {
        let response = match result {
            Ok(response) => response,
            Err(Failure::Connect(_)) => return Self::Refused,
            Err(_) => return Self::Unknown,
        };
        if haproxy::is_own_answer(response) {
            // A proxy does not know what became of the request it passed on.
            return Self::Unknown;
        }
        match (response.status, response.header("x-durability")) {
            (201, None) => Self::Durable,
            (200..300, Some("local")) => Self::Local,
            (200..300, Some("none")) => Self::None,
            (400..500 | 502 | 503, _) => Self::Refused,
            _ => Self::Unknown,
        }
    }
}

/// One connection's order of one key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Lane {
    connection: u32,
    key: u32,
}

#[derive(Debug)]
struct Attempt {
    lane: Lane,
    sequence: u64,
    hash: u64,
    answer: Answer,
}

/// A message about to be sent.
pub struct Draft {
    pub id: u64,
    pub key: String,
    pub body: Vec<u8>,
}

/// See the module's documentation.
pub struct Ledger {
    run: u64,
    next_id: AtomicU64,
    attempts: Mutex<HashMap<u64, Attempt>>,
}

/// Counts of everything the check found.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Verdict {
    pub durable: usize,
    pub local: usize,
    pub none: usize,
    pub unknown: usize,
    pub refused: usize,
    pub records: usize,
    pub lost: usize,
    pub ghost: usize,
    pub altered: usize,
    pub stray: usize,
    pub duplicate: usize,
    pub reorder: usize,
}

const MAGIC: &[u8; 8] = b"kw-entry";

/// Magic, run, id.
const HEAD_BYTES: usize = 24;

impl Ledger {
    /// `run` tells the records of this ledger from any other's.
    pub fn new(run: u64) -> Self {
        Self { run, next_id: AtomicU64::new(0), attempts: Mutex::default() }
    }

    /// Enters an attempt, as yet without an answer, and returns the message to send. `len` is at least the head's 24
    /// bytes.
    pub fn enter(&self, connection: u32, key: u32, len: usize) -> Draft {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let body = self.body(id, len);
        // Ids are given out in order and a connection sends one message after the other: within a lane the id is the
        // sequence.
        let attempt =
            Attempt { lane: Lane { connection, key }, sequence: id, hash: hash(&body), answer: Answer::Unknown };
        self.lock().insert(id, attempt);
        Draft { id, key: format!("key-{key}"), body }
    }

    pub fn answered(&self, id: u64, answer: Answer) {
        self.lock().get_mut(&id).expect("entered before it was sent").answer = answer;
    }

    pub fn count(&self, answer: Answer) -> usize {
        self.lock().values().filter(|attempt| attempt.answer == answer).count()
    }

    /// Compares the entries with what an independent reader found, all partitions, each from its beginning to its end.
    pub fn check(&self, records: &[Record]) -> Verdict {
        let attempts = self.lock();
        let mut verdict = Verdict { records: records.len(), ..Verdict::default() };
        let mut found: HashMap<u64, usize> = HashMap::new();
        let mut last: HashMap<(Lane, i32), u64> = HashMap::new();
        let mut in_order: Vec<&Record> = records.iter().collect();
        in_order.sort_by_key(|record| (record.partition, record.offset));

        for record in in_order {
            let payload = record.payload.as_deref().unwrap_or_default();
            let Some((id, attempt)) = self.id_of(payload).and_then(|id| Some((id, attempts.get(&id)?))) else {
                verdict.stray += 1;
                continue;
            };
            let key = format!("key-{}", attempt.lane.key);
            verdict.altered +=
                usize::from(hash(payload) != attempt.hash || record.key.as_deref() != Some(key.as_bytes()));
            let times = found.entry(id).or_insert(0);
            *times += 1;
            if *times > 1 {
                verdict.duplicate += 1;
                continue;
            }
            verdict.ghost += usize::from(attempt.answer == Answer::Refused);
            if attempt.answer == Answer::Durable {
                let previous = last.insert((attempt.lane, record.partition), attempt.sequence);
                verdict.reorder += usize::from(previous.is_some_and(|previous| previous > attempt.sequence));
            }
        }
        for (id, attempt) in attempts.iter() {
            verdict.tally(attempt.answer);
            verdict.lost += usize::from(attempt.answer == Answer::Durable && !found.contains_key(id));
        }
        verdict
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Attempt>> {
        self.attempts.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn body(&self, id: u64, len: usize) -> Vec<u8> {
        let mut body = Vec::with_capacity(len.max(HEAD_BYTES));
        body.extend_from_slice(MAGIC);
        body.extend_from_slice(&self.run.to_be_bytes());
        body.extend_from_slice(&id.to_be_bytes());
        let mut state = self.run ^ id.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        while body.len() < len {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            body.push(state.to_be_bytes()[0]);
        }
        body
    }

    fn id_of(&self, payload: &[u8]) -> Option<u64> {
        let head = payload.get(..HEAD_BYTES)?;
        let run = u64::from_be_bytes(head[8..16].try_into().expect("8 bytes"));
        let ours = head.starts_with(MAGIC) && run == self.run;
        ours.then(|| u64::from_be_bytes(head[16..].try_into().expect("8 bytes")))
    }
}

// === impl Verdict ===

impl Verdict {
    /// Panics unless every promise was kept and nothing is there that should not be. Duplicates are judged apart: an
    /// idempotent producer makes none within one life of the gateway, a client that repeats an unknown one may.
    #[track_caller]
    pub fn assert_clean(&self) {
        let faults = [self.lost, self.ghost, self.altered, self.stray, self.duplicate, self.reorder];
        assert_eq!(faults, [0; 6], "lost, ghost, altered, stray, duplicate, reorder: {self}");
    }

    fn tally(&mut self, answer: Answer) {
        let count = match answer {
            Answer::Durable => &mut self.durable,
            Answer::Local => &mut self.local,
            Answer::None => &mut self.none,
            Answer::Unknown => &mut self.unknown,
            Answer::Refused => &mut self.refused,
        };
        *count += 1;
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "durable {} local {} none {} unknown {} refused {}; records {}; lost {} ghost {} altered {} stray {} duplicate {} reorder {}",
            self.durable,
            self.local,
            self.none,
            self.unknown,
            self.refused,
            self.records,
            self.lost,
            self.ghost,
            self.altered,
            self.stray,
            self.duplicate,
            self.reorder
        )
    }
}

fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    hasher.finish()
}
