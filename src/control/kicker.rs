//! The kicker: a plain thread that ticks every core and notices when one stands still.
//!
//! glommio 0.9 can park an executor that has runnable tasks (`run_task_queues` gives up when preempted before its first queue
//! ran); a wake from another thread, every few ms, bounds what that costs. The same tick is the stall detector: a core whose
//! count does not advance is busy or dead. The thread sleeps and stores; it never blocks on anything.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use crate::{mesh::Kick, metrics::ShardMetrics};

/// What is kicked: a core's bell, and its block if it is a data core whose stalls count.
#[derive(Clone, Debug)]
pub struct Kicked {
    pub kick: Arc<Kick>,
    pub metrics: Option<Arc<ShardMetrics>>,
}

/// The running thread; stops when told or dropped.
#[derive(Debug)]
pub struct Kicker {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Kicker {
    /// Kicks every `period`; a core that does not tick for `stall` is counted and logged once per stall.
    #[allow(clippy::disallowed_methods)] // The kicker is a thread of its own; sleeping is its work.
    pub fn start(cores: Vec<Kicked>, period: Duration, stall: Duration) -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let run = move || {
            let mut seen: Vec<Seen> = cores.iter().map(|_| Seen::default()).collect();
            while !stopped.load(Ordering::Relaxed) {
                thread::sleep(period);
                for (n, (core, seen)) in cores.iter().zip(&mut seen).enumerate() {
                    core.kick.kick();
                    if let Some(metrics) = &core.metrics {
                        seen.look(n, metrics, stall);
                    }
                }
            }
        };
        let thread = thread::Builder::new().name("kicker".to_owned()).spawn(run)?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Kicker {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It ends within a period; a panic in it was printed already.
            let _ = thread.join();
        }
    }
}

struct Seen {
    ticks: u64,
    since: Instant,
    stalled: bool,
}

impl Default for Seen {
    fn default() -> Self {
        Self { ticks: 0, since: Instant::now(), stalled: false }
    }
}

impl Seen {
    fn look(&mut self, core: usize, metrics: &ShardMetrics, stall: Duration) {
        let ticks = metrics.cells.ticks.get();
        if ticks != self.ticks {
            if self.stalled {
                let stalled_ms = u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX);
                tracing::warn!(shard = core, stalled_ms, "the core runs again");
            }
            *self = Self { ticks, since: Instant::now(), stalled: false };
        } else if !self.stalled && self.since.elapsed() > stall {
            self.stalled = true;
            metrics.stalls.add(1);
            tracing::warn!(shard = core, "the core stalls");
        }
    }
}
