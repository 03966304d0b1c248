//! The kicker: a plain thread that ticks every core and notices when one stands still.
//!
//! glommio 0.9 can park an executor that has runnable tasks (`run_task_queues` gives up when preempted before its first queue
//! ran); a wake from another thread, every few ms, bounds what that costs. The same tick is the stall detector: a core whose
//! count does not advance is busy or dead. The thread sleeps and stores; it never blocks on anything.
//!
//! A wake-up costs an idle machine more than anything else the gateway does on it: at 200 a second 1.6 % of a core for each executor
//! and 1 % for this thread. So while no core had a socket ready for a while, all are kicked each [`REST`] only; the first work after such
//! a rest can be late by one of those longer periods, if it meets the park at all.

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

/// Periods without work of any core after which the kicker rests.
const REST_AFTER: u32 = 20;
/// Between two kicks while it rests.
const REST: Duration = Duration::from_millis(50);

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
    /// Kicks every `period`, less often while all cores are idle; a core that does not tick for `stall` is counted and logged once per
    /// stall.
    #[allow(clippy::disallowed_methods)] // The kicker is a thread of its own; sleeping is its work.
    pub fn start(cores: Vec<Kicked>, period: Duration, stall: Duration) -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let run = move || {
            let mut seen: Vec<Seen> = cores.iter().map(|_| Seen::default()).collect();
            let mut idle_periods = 0;
            // A core that is not kicked does not tick: well within what counts as a stall.
            let rest = REST.min(stall / 4).max(period);
            while !stopped.load(Ordering::Relaxed) {
                // Unparked to end.
                thread::park_timeout(if idle_periods < REST_AFTER { period } else { rest });
                // Each is asked, so that none stays marked.
                let busy = cores.iter().filter(|core| core.kick.was_busy()).count();
                idle_periods = if busy > 0 { 0 } else { idle_periods.saturating_add(1) };
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
            thread.thread().unpark();
            // It ends at once; a panic in it was printed already.
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

#[cfg(test)]
mod tests {
    //! The fact of glommio 0.9 the kicker exists for: an executor that parks with runnable tasks. Two cores throw a ball to each
    //! other; when nobody catches it for a while although it was thrown, a core has parked. If a newer glommio makes the first
    //! half fail, the kicker is only a stall detector any more.
    #![allow(clippy::disallowed_methods)] // A test's own thread may sleep between two looks.

    use std::sync::atomic::AtomicU64;

    use glommio::{Latency, LocalExecutorBuilder, Placement, Shares};

    use super::*;
    use crate::mesh::{Mesh, ShardId};

    /// The shorter, the sooner a core is preempted before it ran anything, which is what parks it.
    const PREEMPT: Duration = Duration::from_micros(100);
    const RUN: Duration = Duration::from_secs(2);
    /// A throw takes tens of microseconds; so long without one is a hang, not a busy machine.
    const HUNG_AFTER: Duration = Duration::from_millis(700);
    const RUNS_MAX: usize = 40;

    /// Plays until the time is over or the ball lies still; gives whether it does.
    fn hangs(kicked: bool) -> bool {
        let mesh: Mesh<bool> = Mesh::new(2);
        let throws = Arc::new(AtomicU64::new(0));
        let kicks: Vec<Arc<Kick>> = vec![Arc::default(), Arc::default()];
        let players: Vec<_> = (0..2)
            .map(|n| {
                let (mesh, throws, kick) = (mesh.clone(), Arc::clone(&throws), Arc::clone(&kicks[n]));
                // As `boot` does it: born with a long timer, so that the hang is the one the kicker is for.
                LocalExecutorBuilder::new(Placement::Unbound)
                    .preempt_timer(Duration::from_mins(1))
                    .spawn(move || async move {
                        let latency = Latency::Matters(PREEMPT);
                        let queue = glommio::executor().create_task_queue(Shares::default(), latency, "game");
                        let game = glommio::spawn_local_into(play(mesh, n, throws, kick), queue);
                        game.expect("the queue is there").await;
                    })
                    .expect("an executor starts")
            })
            .collect();
        let kicker = kicked.then(|| {
            let cores = kicks.iter().map(|kick| Kicked { kick: Arc::clone(kick), metrics: None }).collect();
            Kicker::start(cores, Duration::from_millis(5), Duration::from_secs(60)).expect("a thread starts")
        });
        mesh.send(ShardId(0), true).expect("the inbox is empty");
        let hung = watch(&throws);
        for (n, kick) in kicks.iter().enumerate() {
            mesh.settle(ShardId(n), false);
            kick.kick();
        }
        // A core may park again before it ends: keep kicking until both have ended.
        let ended = Arc::new(AtomicBool::new(false));
        let ender = {
            let ended = Arc::clone(&ended);
            thread::spawn(move || {
                while !ended.load(Ordering::Relaxed) {
                    for kick in &kicks {
                        kick.kick();
                    }
                    thread::sleep(Duration::from_millis(1));
                }
            })
        };
        for player in players {
            player.join().expect("a player ends");
        }
        ended.store(true, Ordering::Relaxed);
        ender.join().expect("the ender ends");
        drop(kicker);
        hung
    }

    /// Does not say that it is busy: it is kicked as a core that rests.
    async fn play(mesh: Mesh<bool>, me: usize, throws: Arc<AtomicU64>, kick: Arc<Kick>) {
        glommio::spawn_local(async move {
            loop {
                kick.due().await;
            }
        })
        .detach();
        while mesh.receive(ShardId(me)).await {
            throws.fetch_add(1, Ordering::Relaxed);
            // The other inbox may be full only of balls, which there is one of.
            let _ = mesh.send(ShardId(1 - me), true);
        }
    }

    fn watch(throws: &AtomicU64) -> bool {
        let started = Instant::now();
        let (mut seen, mut since) = (0, Instant::now());
        while started.elapsed() < RUN || since.elapsed() > HUNG_AFTER / 2 {
            thread::sleep(Duration::from_millis(20));
            let now = throws.load(Ordering::Relaxed);
            if now != seen {
                (seen, since) = (now, Instant::now());
            } else if since.elapsed() > HUNG_AFTER {
                return true;
            }
        }
        false
    }

    #[test]
    fn glommio_parks_with_runnable_tasks_and_the_kicker_ends_it() {
        let runs = (1..=RUNS_MAX).find(|_| hangs(false));
        let runs = runs.expect("without the kicker two cores hang sooner or later");
        println!("without the kicker two cores hung in run {runs}");
        // As many runs as make a hang by chance unlikely to be missed.
        let enough = (4 * runs).clamp(6, 12);
        for run in 0..enough {
            assert!(!hangs(true), "hung with the kicker, run {run} of {enough} (without it: run {runs})");
        }
    }
}
