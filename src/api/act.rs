//! Acknowledging, burying and moving, wherever the partitions are owned.
//!
//! ```text
//!   here --> by the member list: each owner once --> what none has done yet: a new look, from the start, for a while
//! ```
//!
//! Invariants: an item is done where its partition is owned, and its answer is its owner's; asking twice for what was done is answered
//! as the first time; what nobody owns has no lease, which is said once the group has come to rest. Per core: a group's home acts for
//! its group.

use std::{
    rc::Rc,
    time::{Duration, Instant},
};

use super::{
    bury, codes,
    context::Context,
    frame::{AckAt, Done, GroupKey, Op},
    home,
    owners::{self, Owner, Whereabouts, unreachable},
    reply::{self, Problem},
};
use crate::{
    store::{Acked, AdminError, Group, Partition, Reset, SeekError, Store},
    within::within,
};

/// Between two tries.
const AGAIN: Duration = Duration::from_millis(300);
/// How long an acknowledgement, a burial or a move looks for an owner during a rebalance.
const FIND_WITHIN: Duration = Duration::from_secs(8);
/// A look is given so long at least.
const LOOK_WITHIN_MIN: Duration = Duration::from_millis(500);
/// What leaving a group may take.
const LEAVE_WITHIN: Duration = Duration::from_secs(10);
/// What an acknowledgement may take at its owner.
const ACK_WITHIN: Duration = Duration::from_secs(2);

/// How long [`each`] may take.
pub fn patience(ctx: &Context, op: &Op) -> Duration {
    FIND_WITHIN + LOOK_WITHIN_MIN + at_owner(ctx, op)
}

/// What it may take at an owner.
fn at_owner(ctx: &Context, op: &Op) -> Duration {
    let config = ctx.config.borrow();
    match op {
        Op::Bury(_) => config.publish.deadline * 2 + ACK_WITHIN,
        // A rebalance may have to end first, and each of the two waits for brokers.
        Op::Move(_) => config.kafka.admin_timeout * 2 + ACK_WITHIN,
        // Leaving takes its time.
        Op::Release => LEAVE_WITHIN,
        _ => ACK_WITHIN,
    }
}

/// Acknowledges, buries or moves, each item where its partition is owned. [`Acked::NotOwned`] is left where nobody has it, so no lease of
/// it is alive.
pub async fn each(ctx: &Rc<Context>, key: &GroupKey, op: &Op, is_from_peer: bool) -> Result<Vec<Acked>, Problem> {
    let partitions = op.partitions();
    let done = vec![Acked::NotOwned; partitions.len()];
    let mut acting = Acting { ctx, key, op, partitions, done, refused: None, missed: None };
    let by = Instant::now() + FIND_WITHIN;
    // What was trusted may be of yesterday; what was just looked up is not.
    let mut is_fresh = false;
    loop {
        // During a rebalance what is on its way to somebody may come here.
        acting.act_here().await?;
        if acting.is_over() || is_from_peer {
            return Ok(acting.done);
        }
        let members = acting.look(is_fresh, by).await;
        let is_final = match &members {
            Some(members) if members.members.is_empty() => acting.act_for_nobody().await?,
            Some(members) => {
                acting.ask_owners(members).await?;
                is_fresh && members.is_settled && acting.give_up_unowned(members)?
            }
            None => false,
        };
        if is_final || acting.is_over() {
            return Ok(acting.done);
        }
        let (refused, missed, is_late) = (acting.refused.take(), acting.missed.take(), Instant::now() >= by);
        if let Some(problem) = refused.filter(|_| is_fresh).or(missed.filter(|_| is_late)) {
            return Err(problem);
        }
        if is_late {
            return Ok(acting.done);
        }
        is_fresh = true;
        glommio::timer::sleep(AGAIN).await;
    }
}

struct Acting<'a> {
    ctx: &'a Rc<Context>,
    key: &'a GroupKey,
    op: &'a Op,
    /// Of each item.
    partitions: Vec<Partition>,
    /// What became of it.
    done: Vec<Acked>,
    /// Who owns an item is nobody who could be asked.
    refused: Option<Problem>,
    /// Who was to be asked did not answer, or not yet.
    missed: Option<Problem>,
}

impl Acting<'_> {
    fn is_over(&self) -> bool {
        !self.done.contains(&Acked::NotOwned)
    }

    /// Those of the items not done that pass.
    fn open(&self, passes: impl Fn(Partition) -> bool) -> Vec<usize> {
        let is_open = |at: &usize| self.done[*at] == Acked::NotOwned && passes(self.partitions[*at]);
        (0..self.partitions.len()).filter(is_open).collect()
    }

    /// The members, unless that takes too long or fails; then what stands in the way is noted.
    async fn look(&mut self, is_fresh: bool, by: Instant) -> Option<Rc<Whereabouts>> {
        if !owners::may_ask(self.ctx) {
            return Some(Rc::default());
        }
        let left = by.saturating_duration_since(Instant::now()).max(LOOK_WITHIN_MIN);
        match within(left, owners::known(self.ctx, self.key, is_fresh)).await {
            Some(Ok(members)) => return Some(members),
            Some(Err(problem)) => self.missed = Some(problem),
            None => self.missed = Some(Problem::new(&codes::UNAVAILABLE, "nobody says in time who reads the group")),
        }
        None
    }

    /// Nobody has what is left, and nobody is about to get it. A move then makes this gateway a reader of it, which can move. Gives whether
    /// that is the end of it.
    fn give_up_unowned(&mut self, members: &Whereabouts) -> Result<bool, Problem> {
        let left = self.open(|partition| members.owner_of(partition).is_none());
        if left.is_empty() || left.len() < self.open(|_| true).len() {
            return Ok(false);
        }
        let Op::Move(_) = self.op else { return Ok(true) };
        let data = self.ctx.plane()?;
        if let Some(topic) = data.topics.get(&self.key.topic) {
            home::open(self.ctx, self.key, Reset::Oldest, topic.partitions.get())?;
        }
        Ok(false)
    }

    async fn act_here(&mut self) -> Result<(), Problem> {
        let data = self.ctx.plane()?;
        let Some(group) = data.groups.get(self.key) else { return Ok(()) };
        let owned = group.partitions();
        let ours = self.open(|partition| owned.contains(&partition));
        if ours.is_empty() {
            return Ok(());
        }
        match self.op {
            Op::Ack(items) => ours.into_iter().for_each(|at| self.done[at] = ack(&group, &items[at])),
            Op::Bury(bury) => self.done[0] = bury::here(self.ctx, &group, bury).await?,
            Op::Move(moves) => match data.backend.seek(&group, ours.iter().map(|at| moves[*at]).collect()).await {
                Ok(()) => ours.into_iter().for_each(|at| self.done[at] = Acked::Done),
                // It went to another in the meantime; the others stay where they are.
                Err(SeekError::NotOwned(_)) => {}
                Err(SeekError::Unavailable { reason }) => return Err(Problem::new(&codes::UNAVAILABLE, reason)),
            },
            _ => {}
        }
        Ok(())
    }

    /// Nobody reads: no lease is alive, and the commits are anybody's. Gives whether that is the end of it.
    async fn act_for_nobody(&mut self) -> Result<bool, Problem> {
        let Op::Move(moves) = self.op else { return Ok(true) };
        let data = self.ctx.plane()?;
        let topic = self.ctx.find_topic(&self.key.topic, false).await?;
        let open = self.open(|_| true);
        let ends: Vec<_> = open.iter().map(|at| moves[*at]).collect();
        match data.backend.set_committed(&topic, &self.key.group_id, &ends).await {
            Ok(()) => open.into_iter().for_each(|at| self.done[at] = Acked::Done),
            // Somebody joins, or leaves.
            Err(AdminError::InUse) => self.missed = Some(reply::admin_failed(AdminError::InUse)),
            Err(error) => return Err(reply::admin_failed(error)),
        }
        Ok(self.is_over())
    }

    /// Asks each gateway for what it owns of the rest.
    async fn ask_owners(&mut self, members: &Whereabouts) -> Result<(), Problem> {
        for addr in members.gateways() {
            let is_theirs = |owner: &Owner| matches!(owner, Owner::Gateway(Some(at)) if *at == addr);
            let theirs = self.open(|partition| members.owner_of(partition).is_some_and(is_theirs));
            if theirs.is_empty() {
                continue;
            }
            let data = self.ctx.plane()?;
            let limit = at_owner(self.ctx, self.op);
            match data.peers.call(self.ctx, &addr, self.key, &self.op.only(&theirs), limit).await {
                Ok(Done::Each(found)) => theirs.iter().zip(found).for_each(|(at, found)| self.done[*at] = found),
                Ok(_) => return Err(unreachable("it answered something else")),
                // Asking twice for what was done is answered as the first time.
                Err(problem) if *problem.code == codes::PEER_UNREACHABLE => self.missed = Some(problem),
                Err(problem) => return Err(problem),
            }
        }
        for at in self.open(|_| true) {
            // Without an owner it is on its way to somebody; ours by the list, it is not yet, or not any more, by what we know.
            let refusal = members.owner_of(self.partitions[at]).and_then(Owner::refusal);
            self.refused = refusal.or(self.refused.take());
        }
        Ok(())
    }
}

fn ack(group: &Group, item: &AckAt) -> Acked {
    match item.extend {
        None => group.ack_at(item.partition, item.offset),
        Some(term) => group.extend_at(item.partition, item.offset, term),
    }
}

/// Asks every other gateway that is a member. One that does not answer is left out.
pub async fn ask_all(ctx: &Rc<Context>, key: &GroupKey, members: &Whereabouts, op: &Op) -> Vec<Done> {
    let Some(data) = ctx.data.as_ref().filter(|_| owners::may_ask(ctx)) else { return Vec::new() };
    let mut answers = Vec::new();
    for addr in members.gateways() {
        answers.extend(data.peers.call(ctx, &addr, key, op, at_owner(ctx, op)).await.ok());
    }
    answers
}
