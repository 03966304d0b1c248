//! One core, one executor: what it owns and the tasks it runs.
//!
//! Everything here is `Rc`/`Cell`, made when the core starts and gone when it ends; other threads reach it by frames only. The
//! tasks: one accept loop per listener, one that empties the mesh inbox, one tick. The tick is driven by the kicker thread, not by
//! a timer: glommio 0.9 can park an executor that has runnable tasks, and a wake from outside is what ends that.

use std::{io, panic::AssertUnwindSafe, rc::Rc, sync::Arc, time::Instant};

use futures_lite::FutureExt;

use crate::{
    api::{
        bury,
        context::{Context, DataPlane},
        frame::{DrainPhase, Frame},
        home, idempotency, status, top,
    },
    config::resolve::Roles,
    limits,
    mesh::{Kick, ShardId},
    proto::{date, tls::Acceptor, watch::Every},
    readiness,
    server::{Connections, SWEEP_MS, conn, listener::Listener},
    store::Store,
    within::within,
};

/// Between two looks for idle groups.
const IDLE_MS: u64 = 1_000;
/// Between two renewals of what is on its way from other gateways; well within a lease of theirs.
const RENEW_MS: u64 = 3_000;

/// Per core: everything a core owns.
#[derive(Debug)]
pub struct Shard {
    ctx: Rc<Context>,
    connections: Rc<Connections>,
    listeners: Vec<Rc<Listener>>,
    /// From the start; else with [`Frame::Accept`].
    accepts: bool,
    kick: Arc<Kick>,
}

impl Shard {
    pub fn new(
        ctx: Rc<Context>,
        sockets: Vec<(socket2::Socket, Roles)>,
        tls: Option<Acceptor>,
        accepts: bool,
        kick: Arc<Kick>,
    ) -> io::Result<Rc<Self>> {
        let connections = Rc::new(Connections::default());
        connections.tls.replace(tls);
        let listener = |(socket, roles)| Listener::new(socket, roles, Rc::clone(&ctx), Rc::clone(&connections));
        let listeners = sockets.into_iter().map(listener).collect::<io::Result<_>>()?;
        let (mesh, me) = (ctx.mesh.clone(), ctx.shard);
        readiness::each_pass(move || mesh.look(me))?;
        connections.note_work(Arc::clone(&kick))?;
        Ok(Rc::new(Self { ctx, connections, listeners, accepts, kick }))
    }

    /// Runs until the gateway has finished ([`Frame::Finish`] answered).
    pub async fn run(self: Rc<Self>) {
        if self.accepts {
            self.accept();
        }
        glommio::spawn_local(Rc::clone(&self).tick()).detach();
        let mut received = 0_usize;
        loop {
            let frame = self.ctx.mesh.receive(self.ctx.shard).await;
            if let Some((deadline, answer)) = self.take(frame) {
                let left = self.finish(deadline).await;
                // The control thread may have given up waiting.
                let _ = answer.send(left);
                return;
            }
            received += 1;
            if received.is_multiple_of(limits::LOOP_ITEMS_MAX) {
                glommio::executor().yield_task_queue_now().await;
            }
        }
    }

    fn accept(&self) {
        for listener in &self.listeners {
            glommio::spawn_local(Rc::clone(listener).run()).detach();
        }
    }

    /// Acts on a frame; gives back the answer to the one that ends the core.
    fn take(&self, frame: Frame) -> Option<(Instant, futures_channel::oneshot::Sender<u64>)> {
        match frame {
            Frame::Fetch { key, request, answer } => {
                self.spawn(home::serve_fetch(Rc::clone(&self.ctx), key, request, answer));
            }
            Frame::Ask { key, op, is_from_peer, answer } => {
                let ctx = Rc::clone(&self.ctx);
                self.spawn(async move {
                    // Who asked may have gone.
                    let _ = answer.send(home::serve(&ctx, &key, op, is_from_peer).await);
                });
            }
            Frame::Call { call, answer } => {
                let ctx = Rc::clone(&self.ctx);
                self.spawn(async move {
                    // As above.
                    let _ = answer.send(call.run_here(&ctx).await);
                });
            }
            Frame::Settle { key, grants, outcome, origin } => {
                home::settle(&self.ctx, key, grants, outcome, origin);
            }
            Frame::Begin { name, fingerprint, answer } => {
                // As above; the right to run it then ends.
                let _ = answer.send(Ok(idempotency::begin_here(&self.ctx, &name, &fingerprint)));
            }
            Frame::Conclude { name, outcome } => idempotency::conclude(&self.ctx, &name, outcome),
            Frame::Connection { socket, unread, arrival, lived } => {
                let connections = Rc::clone(&self.connections);
                conn::spawn(&self.ctx, move |ctx| async move {
                    conn::serve_moved(&ctx, &connections, socket, &unread, (arrival, lived)).await;
                });
            }
            Frame::Status { answer } => {
                // The asker may have stopped waiting.
                let _ = answer.send(status::here(&self.ctx));
            }
            Frame::Top { answer } => {
                let ctx = Rc::clone(&self.ctx);
                glommio::spawn_local(async move {
                    // As above.
                    let _ = answer.send(top::here(&ctx).await);
                })
                .detach();
            }
            Frame::Listening { answer } => {
                // As above.
                let _ = answer
                    .send(self.listeners.iter().filter_map(|listener| listener.listening().transpose()).collect());
            }
            Frame::StopAccepting => self.listeners.iter().for_each(|listener| listener.close()),
            Frame::Accept => self.accept(),
            Frame::Drain(phase) => self.drain(phase),
            Frame::Reload(config) => {
                self.ctx.config.replace(Rc::new(config.as_ref().clone()));
            }
            Frame::Certificates(acceptor) => {
                self.connections.tls.replace(Some(acceptor));
            }
            Frame::Finish { deadline, answer } => return Some((deadline, answer)),
        }
        None
    }

    /// Runs what a frame asks for; a panic is its own end, not the core's.
    fn spawn(&self, serve: impl Future<Output = ()> + 'static) {
        let ctx = Rc::clone(&self.ctx);
        glommio::spawn_local(async move {
            if AssertUnwindSafe(serve).catch_unwind().await.is_err() {
                ctx.metrics.cells.panics.add(1);
            }
        })
        .detach();
    }

    /// Leases whose time is over, and messages that were delivered often enough.
    fn expire_leases(&self) {
        let Some(data) = &self.ctx.data else { return };
        let now = Instant::now();
        for group in data.groups.all() {
            group.expire(now);
            for burial in group.take_worn() {
                self.spawn(bury::worn(Rc::clone(&self.ctx), Rc::clone(&group), burial));
            }
        }
    }

    fn drain(&self, phase: DrainPhase) {
        self.ctx.set_drain_phase(phase);
        if phase == DrainPhase::Closing {
            for listener in &self.listeners {
                listener.close();
            }
            self.connections.close_idle();
        }
    }

    /// Flushes, commits, leaves, all within the deadline. Gives the records that were not reported in time.
    async fn finish(&self, deadline: Instant) -> u64 {
        let Some(data) = &self.ctx.data else { return 0 };
        let now = Instant::now();
        let left = data.backend.flush(now + deadline.saturating_duration_since(now) / 2).await;
        let leaving: Vec<_> = data
            .groups
            .take_all()
            .into_iter()
            .map(|group| {
                let ctx = Rc::clone(&self.ctx);
                glommio::spawn_local(async move { close_group(&ctx, &group).await })
            })
            .collect();
        let all_left = async {
            for leave in leaving {
                leave.await;
            }
        };
        within(deadline.saturating_duration_since(Instant::now()), all_left).await;
        left
    }

    /// The core's pulse: clock, date, deadlines, idle groups, gauges.
    async fn tick(self: Rc<Self>) {
        let cells = &self.ctx.metrics.cells;
        let mut refreshed_at = Instant::now();
        let (mut sweep, mut look_for_idle) = (Every::ms(SWEEP_MS), Every::ms(IDLE_MS));
        let mut renew = Every::ms(RENEW_MS);
        loop {
            let late = self.kick.due().await;
            self.ctx.metrics.loop_delay.record(late);
            cells.ticks.add(1);
            let clock = &self.connections.clock;
            clock.advance();
            if sweep.is_due(clock) {
                date::refresh();
                self.connections.sweep(cells);
                if self.ctx.drain_phase() == DrainPhase::Closing {
                    // Connections that became idle since.
                    self.connections.close_idle();
                }
                self.expire_leases();
                idempotency::expire(&self.ctx);
                self.gauges();
            }
            if renew.is_due(clock)
                && let Some(data) = &self.ctx.data
            {
                data.peers.renew(&self.ctx);
            }
            if look_for_idle.is_due(clock) {
                self.leave_idle_groups();
                self.refresh_topics_if_due(&mut refreshed_at);
            }
        }
    }

    fn gauges(&self) {
        let cells = &self.ctx.metrics.cells;
        // Since it was last asked: glommio counts from zero again with each answer.
        let busy = glommio::executor().executor_stats().total_runtime();
        cells.busy_us.add(u64::try_from(busy.as_micros()).unwrap_or(0));
        if let Some(DataPlane { backend, .. }) = &self.ctx.data {
            let (messages, bytes) = backend.queued();
            cells.producer_messages.set(messages);
            cells.producer_bytes.set(bytes);
            cells.held_bytes.set(backend.held_bytes() as u64);
        }
    }

    /// Topics that were deleted, or have grown, are noticed without a miss.
    fn refresh_topics_if_due(&self, refreshed_at: &mut Instant) {
        let is_kafka = self.ctx.data.as_ref().is_some_and(|data| !data.backend.makes_topics());
        if !is_kafka || refreshed_at.elapsed() < self.ctx.config.borrow().kafka.metadata_interval {
            return;
        }
        *refreshed_at = Instant::now();
        let ctx = Rc::clone(&self.ctx);
        glommio::spawn_local(async move {
            if let Some(data) = &ctx.data
                && let Err(problem) = ctx.refresh_topics(data).await
            {
                tracing::debug!(detail = %problem.detail, "the topic snapshot stays as it is");
            }
        })
        .detach();
    }

    fn leave_idle_groups(&self) {
        let Some(data) = &self.ctx.data else { return };
        let idle = self.ctx.config.borrow().subscribe.group_idle;
        for group in data.groups.take_idle(idle) {
            let ctx = Rc::clone(&self.ctx);
            glommio::spawn_local(async move { close_group(&ctx, &group).await }).detach();
        }
    }
}

async fn close_group(ctx: &Context, group: &Rc<crate::store::Group>) {
    if let Some(data) = &ctx.data {
        data.backend.close_group(group).await;
    }
}

/// The id of a core, for thread names.
pub fn thread_name(shard: ShardId) -> String {
    format!("shard-{}", shard.0)
}
