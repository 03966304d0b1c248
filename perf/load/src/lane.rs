//! One thread of the generator: its connections, its share of the schedule, its tally.

use std::{
    cell::RefCell,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{
    net::TcpStream,
    task::{JoinSet, LocalSet},
};

use crate::{
    answer::Answer,
    h1, h2,
    pace::Pacer,
    plan::{Plan, Protocol},
    stamp,
    tally::{Attempt, Tally},
    wire::{self, Wire},
    ws,
};

/// After a connection that could not be made.
const RECONNECT: Duration = Duration::from_millis(100);

/// What all threads count while they run; for the progress line, and for an end by messages.
#[derive(Debug, Default)]
pub struct Progress {
    pub messages: AtomicU64,
    pub answers: AtomicU64,
    pub errors: AtomicU64,
    /// Begin and end of what counts are said on stderr.
    pub is_announced: bool,
}

/// See the module text.
#[derive(Debug)]
pub struct Lane {
    pub plan: Plan,
    pub pacer: Pacer,
    tally: RefCell<Tally>,
    progress: Arc<Progress>,
    tls: Option<Arc<rustls::ClientConfig>>,
    /// Requests meant to go earlier are not counted.
    counted_from: Instant,
    /// One moment on both clocks.
    wall: (Instant, u64),
}

impl Lane {
    /// Runs the connections numbered `numbers` to the end of the plan.
    pub fn run(plan: &Plan, numbers: &[usize], start: Instant, progress: &Arc<Progress>) -> std::io::Result<Tally> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        LocalSet::new().block_on(&runtime, async {
            let counted_from = start + Duration::from_secs_f64(plan.warmup_s);
            let end = counted_from + Duration::from_secs_f64(plan.seconds);
            #[allow(clippy::cast_precision_loss)] // a handful of threads
            let rate = plan.rate / plan.threads as f64;
            let lane = Rc::new(Self {
                plan: plan.clone(),
                pacer: Pacer::new(start, end, rate),
                tally: RefCell::default(),
                progress: Arc::clone(progress),
                tls: plan.tls.then(wire::client),
                counted_from,
                wall: (Instant::now(), stamp::now()),
            });
            lane.hold(numbers, end).await?;
            let mut tally = lane.tally.take();
            tally.line_max = lane.pacer.line_max();
            Ok(tally)
        })
    }

    async fn hold(self: &Rc<Self>, numbers: &[usize], end: Instant) -> std::io::Result<()> {
        let mut connections = JoinSet::new();
        for number in numbers {
            let (lane, number) = (Rc::clone(self), *number);
            connections.spawn_local(async move { lane.connect(number).await });
        }
        let watching = async {
            tokio::time::sleep_until(self.counted_from.into()).await;
            self.say("counting", numbers);
            let before = cpu();
            self.until(end).await;
            self.say("counted", numbers);
            self.tally.borrow_mut().cpu = cpu().saturating_sub(before);
            self.pacer.stop();
        };
        let pacing = self.pacer.run(|late| self.tally.borrow_mut().late(late));
        let ((), paced) = tokio::join!(watching, pacing);
        paced?;
        // What waits for messages that need not come is cut; what was published is waited for.
        if !self.plan.is_read() {
            let all = async { while connections.join_next().await.is_some() {} };
            let _ = tokio::time::timeout(self.plan.patience(), all).await;
        }
        connections.abort_all();
        Ok(())
    }

    /// One thread speaks for all: they begin together and end within a millisecond.
    fn say(&self, what: &str, numbers: &[usize]) {
        if self.progress.is_announced && numbers.contains(&0) {
            eprintln!("{what}");
        }
    }

    /// The end of the plan, by time or by messages.
    async fn until(&self, end: Instant) {
        if self.plan.messages == 0 {
            return tokio::time::sleep_until(end.into()).await;
        }
        while Instant::now() < end && self.progress.messages.load(Ordering::Relaxed) < self.plan.messages {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Keeps one connection, made again whenever it ends.
    async fn connect(self: Rc<Self>, number: usize) {
        while !self.pacer.is_over() {
            let Ok(stream) = TcpStream::connect(self.plan.target).await else {
                self.fail("connect", 1);
                tokio::time::sleep(RECONNECT).await;
                continue;
            };
            // Refused by a kernel that has just made the socket: nothing to be done, and latency shows it.
            let _ = stream.set_nodelay(true);
            match self.plan.protocol {
                Protocol::H1 => {
                    let Some(wire) = self.wire(stream).await else {
                        self.fail("handshake", 1);
                        tokio::time::sleep(RECONNECT).await;
                        continue;
                    };
                    h1::drive(&self, wire, number).await;
                }
                Protocol::H2 => h2::drive(&self, stream, number).await,
                Protocol::Ws => ws::drive(&self, stream, number).await,
            }
        }
    }

    /// What HTTP/1.1 goes over; `None`: a handshake failed.
    async fn wire(&self, stream: TcpStream) -> Option<Wire> {
        match &self.tls {
            None => Some(Wire::plain(stream)),
            Some(config) => Wire::secure(stream, config).await.ok(),
        }
    }

    /// The moment in nanoseconds of the Unix epoch.
    pub fn wall(&self, moment: Instant) -> u64 {
        let (instant, nanos) = self.wall;
        let apart = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        // An intended time may lie before the lane began.
        let (after, before) = (moment.saturating_duration_since(instant), instant.saturating_duration_since(moment));
        nanos.saturating_add(apart(after)).saturating_sub(apart(before))
    }

    /// A request was answered.
    pub fn answered(&self, request: &Attempt, answer: &Answer) {
        let now = Instant::now();
        self.progress.answers.fetch_add(1, Ordering::Relaxed);
        if request.intended >= self.counted_from {
            self.progress.messages.fetch_add(answer.messages, Ordering::Relaxed);
            self.tally.borrow_mut().answer(request, answer, now);
        }
    }

    /// So many requests had no answer.
    pub fn fail(&self, class: &str, count: usize) {
        let count = count as u64;
        self.progress.errors.fetch_add(count, Ordering::Relaxed);
        self.tally.borrow_mut().error(class, count);
    }
}

/// CPU time of this thread.
fn cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or(0))
}
