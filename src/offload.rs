//! A small pool of threads for calls that may stall a core: Kafka admin and group calls, client drops, flush, DNS.
//!
//! Invariants: the queue is bounded and a full queue refuses, counted; a job that panics ends with an error for whoever waits,
//! never with a hang (glommio's own `spawn_blocking` would hang); nobody on a core ever waits for a thread, only for a future.
//! One of the three places where threads meet (with `mesh` and `control`). It knows nothing of what the jobs do.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use crossbeam::channel::{Receiver, Sender, TrySendError, bounded};
use futures_channel::oneshot;

use crate::limits;

type Job = Box<dyn FnOnce() + Send>;

/// Why an offloaded call gave no result.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OffloadError {
    /// The queue is at its bound.
    Full,
    /// The call panicked; the panic was logged.
    Panicked,
}

/// Handle to the pool; clones share it. Threads end when the last handle is gone and the queue is empty.
#[derive(Clone, Debug)]
pub struct Offload {
    jobs: Sender<Job>,
    refused_total: Arc<AtomicU64>,
}

impl Offload {
    /// Starts `threads` threads.
    pub fn start(threads: usize) -> std::io::Result<Self> {
        let (jobs, inbox) = bounded(limits::OFFLOAD_JOBS_MAX);
        for n in 0..threads {
            let inbox = inbox.clone();
            thread::Builder::new().name(format!("offload-{n}")).spawn(move || work(&inbox))?;
        }
        Ok(Self { jobs, refused_total: Arc::default() })
    }

    /// Runs `call` on a pool thread. The call runs to its end even when the future is dropped.
    pub async fn run<T: Send + 'static>(&self, call: impl FnOnce() -> T + Send + 'static) -> Result<T, OffloadError> {
        let (answer, answered) = oneshot::channel();
        self.send(Box::new(move || {
            // The asker may have gone; its result is dropped with it.
            let _ = answer.send(call());
        }))?;
        answered.await.map_err(|_| OffloadError::Panicked)
    }

    /// Runs `call` with nobody waiting for it.
    pub fn spawn(&self, call: impl FnOnce() + Send + 'static) -> Result<(), OffloadError> {
        self.send(Box::new(call))
    }

    /// Jobs refused because the queue was full, since the start.
    pub fn refused_total(&self) -> u64 {
        self.refused_total.load(Ordering::Relaxed)
    }

    /// Jobs waiting now.
    pub fn queued(&self) -> usize {
        self.jobs.len()
    }

    fn send(&self, job: Job) -> Result<(), OffloadError> {
        self.jobs.try_send(job).map_err(|refused| {
            debug_assert!(matches!(refused, TrySendError::Full(_)), "pool threads hold the receiver for ever");
            self.refused_total.fetch_add(1, Ordering::Relaxed);
            OffloadError::Full
        })
    }
}

fn work(inbox: &Receiver<Job>) {
    while let Ok(job) = inbox.recv() {
        if catch_unwind(AssertUnwindSafe(job)).is_err() {
            tracing::error!("an offloaded call panicked");
        }
    }
}
