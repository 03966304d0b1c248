//! The only way between cores: one bounded inbox per core, and a way to ring it.
//!
//! ```text
//!   any thread --send--> [ inbox of core k, bounded ] --wake--> the one task of core k that empties it
//!   answers travel back in a oneshot that was inside the frame
//! ```
//!
//! Invariants: a full inbox refuses, and the refusal is counted for the core that was full; a frame of the second kind
//! (`settle`) is never refused, because each one ends a read that was admitted before, or is one of the few of a drain or a reload, so
//! their number is bounded by the connections; nothing here takes a lock or waits. What a frame means is the API's business: this file only carries it.

use std::{
    future::poll_fn,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    task::{Poll, Waker},
    time::{Duration, Instant},
};

use atomic_waker::AtomicWaker;
use crossbeam::{
    queue::{ArrayQueue, SegQueue},
    utils::CachePadded,
};

use crate::limits;

/// Which core, counting from 0.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct ShardId(pub usize);

#[derive(Debug)]
struct Inbox<F> {
    frames: ArrayQueue<F>,
    settled: SegQueue<F>,
    waker: AtomicWaker,
    refused_total: AtomicU64,
}

/// Immutable, shared: the inboxes of all cores.
#[derive(Debug)]
pub struct Mesh<F> {
    inboxes: Arc<[CachePadded<Inbox<F>>]>,
}

impl<F> Clone for Mesh<F> {
    fn clone(&self) -> Self {
        Self { inboxes: Arc::clone(&self.inboxes) }
    }
}

impl<F> Mesh<F> {
    pub fn new(shards: usize) -> Self {
        let inbox = || Inbox {
            frames: ArrayQueue::new(limits::MESH_FRAMES_MAX),
            settled: SegQueue::new(),
            waker: AtomicWaker::new(),
            refused_total: AtomicU64::new(0),
        };
        Self { inboxes: (0..shards).map(|_| CachePadded::new(inbox())).collect() }
    }

    /// Number of cores.
    pub fn shards(&self) -> usize {
        self.inboxes.len()
    }

    pub fn shard_ids(&self) -> impl Iterator<Item = ShardId> + use<F> {
        (0..self.inboxes.len()).map(ShardId)
    }

    /// The core a hash belongs to.
    pub fn home(&self, hash: u64) -> ShardId {
        ShardId(usize::try_from(hash % self.inboxes.len() as u64).unwrap_or(0))
    }

    /// Puts a frame into a core's inbox; a full one gives it back, counted.
    pub fn send(&self, to: ShardId, frame: F) -> Result<(), F> {
        let inbox = &self.inboxes[to.0];
        let sent = inbox.frames.push(frame);
        if sent.is_err() {
            inbox.refused_total.fetch_add(1, Ordering::Relaxed);
        } else {
            inbox.waker.wake();
        }
        sent
    }

    /// Ends a read that was admitted before: never refused.
    pub fn settle(&self, to: ShardId, frame: F) {
        let inbox = &self.inboxes[to.0];
        inbox.settled.push(frame);
        inbox.waker.wake();
    }

    /// On core `me`: wakes the task that empties the inbox, if there is anything.
    pub fn look(&self, me: ShardId) {
        let inbox = &self.inboxes[me.0];
        if !inbox.frames.is_empty() || !inbox.settled.is_empty() {
            inbox.waker.wake();
        }
    }

    /// The next frame for core `me`. Called by one task of that core.
    pub async fn receive(&self, me: ShardId) -> F {
        let inbox = &self.inboxes[me.0];
        poll_fn(|cx| {
            inbox.waker.register(cx.waker());
            match inbox.settled.pop().or_else(|| inbox.frames.pop()) {
                Some(frame) => Poll::Ready(frame),
                None => Poll::Pending,
            }
        })
        .await
    }

    /// Frames refused by a core's full inbox since the start.
    pub fn refused_total(&self, shard: ShardId) -> u64 {
        self.inboxes[shard.0].refused_total.load(Ordering::Relaxed)
    }

    /// Frames waiting now.
    pub fn waiting(&self, shard: ShardId) -> usize {
        self.inboxes[shard.0].frames.len() + self.inboxes[shard.0].settled.len()
    }
}

/// Kicks without a tick after which a core is not kicked more: each holds a reference to the tick's task, whose count is 16-bit.
const UNANSWERED_MAX: u32 = 1_000;

/// How the kicker thread drives a core's tick: a wake from outside ends a park that glommio 0.9 should not have begun. Shared.
///
/// The waker is kept, not taken: a core can park with the woken tick in its run queue, and only a further wake, which a waker
/// that was taken could not give, gets it out.
#[derive(Debug)]
pub struct Kick {
    tick: OnceLock<Waker>,
    unanswered: AtomicU32,
    made: Instant,
    /// When the first kick without a tick came, in ns since `made`; 0: none.
    kicked_ns: AtomicU64,
    /// Whether sockets were ready since the kicker last asked.
    is_busy: AtomicBool,
}

impl Default for Kick {
    fn default() -> Self {
        let (tick, unanswered, kicked_ns, is_busy) = Default::default();
        Self { tick, unanswered, made: Instant::now(), kicked_ns, is_busy }
    }
}

impl Kick {
    /// From the kicker thread: one tick is due.
    pub fn kick(&self) {
        let unanswered = self.unanswered.load(Ordering::Relaxed);
        if unanswered < UNANSWERED_MAX {
            self.unanswered.fetch_add(1, Ordering::Relaxed);
            let _ = self.kicked_ns.compare_exchange(0, self.now_ns(), Ordering::Release, Ordering::Relaxed);
            if let Some(tick) = self.tick.get() {
                tick.wake_by_ref();
            }
        }
    }

    /// From the core: it has work. A core that does not say so is kicked less often. Whether this is news since the last kick.
    pub fn busy(&self) -> bool {
        let is_news = !self.is_busy.load(Ordering::Relaxed);
        if is_news {
            self.is_busy.store(true, Ordering::Relaxed);
        }
        is_news
    }

    /// From the kicker thread: whether the core had work since the last call.
    pub fn was_busy(&self) -> bool {
        // A look first: the line stays the core's while there is nothing to take back.
        self.is_busy.load(Ordering::Relaxed) && self.is_busy.swap(false, Ordering::Relaxed)
    }

    /// Resolves once per kick (kicks that come while the core is busy count as one), with how long ago it came. Always awaited by
    /// the same task.
    pub async fn due(&self) -> Duration {
        poll_fn(|cx| {
            let tick = self.tick.get_or_init(|| cx.waker().clone());
            debug_assert!(tick.will_wake(cx.waker()), "one task ticks");
            let kicked_ns = self.kicked_ns.swap(0, Ordering::Acquire);
            if kicked_ns == 0 {
                return Poll::Pending;
            }
            self.unanswered.store(0, Ordering::Relaxed);
            Poll::Ready(Duration::from_nanos(self.now_ns().saturating_sub(kicked_ns)))
        })
        .await
    }

    fn now_ns(&self) -> u64 {
        u64::try_from(self.made.elapsed().as_nanos()).unwrap_or(u64::MAX).max(1)
    }
}
