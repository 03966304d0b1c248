//! What one client's rebalances are answered with, and the moves between them: calls that wait for a broker run in the offload pool, and their outcomes come
//! back to the pump of that client.
//!
//! Invariants: every assignment and every revocation is answered once, in order, each when the one before it is done, because
//! librdkafka stands still until it is; the answer to an assignment names exactly the partitions it gave, or the revocation that
//! follows could not be answered; nothing goes on for a client that is over. Per core; lives as long as the client's pump or its
//! last job.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use rdkafka::bindings::rd_kafka_resp_err_t as rd;

use super::{
    consumer::Member,
    native::{Client, ErrorCode, PartitionList},
    offsets::{self, AssignError, Assigned},
    pump::unavailable,
};
use crate::{
    offload::OffloadError,
    store::{Offset, Partition, SeekError},
};

/// Between two questions for offsets.
const ASK_AGAIN: Duration = Duration::from_millis(500);
/// What one try of a commit may hold up a rebalance.
pub(super) const COMMIT_MAX: Duration = Duration::from_secs(2);
/// After this no other try begins, and none while the group closes. What is not committed comes again; a start that is not is chosen
/// again, perhaps later.
const COMMIT_TRIES_MAX: Duration = Duration::from_secs(3);

/// How long a move may take: it waits for librdkafka's own threads only.
const SEEK_MAX: Duration = Duration::from_secs(2);
/// Between two tries of a move.
const SEEK_AGAIN: Duration = Duration::from_millis(50);

/// What librdkafka wants answered.
#[derive(Debug)]
pub(super) enum Rebalance {
    Assign(Vec<Partition>),
    /// Whether they are another member's already, as it was when librdkafka said so: the next answer resets that.
    Revoke {
        partitions: Vec<Partition>,
        is_lost: bool,
    },
}

/// What came of an answer.
#[derive(Debug)]
pub(super) enum Outcome {
    Assigned(Assigned),
    /// A move for a client is over.
    Sought(Sought),
    /// The group closes or its revocation waits: nothing of it is to be read.
    NotAssigned,
    /// These ends were committed, or were not.
    GaveUp {
        ends: Vec<(Partition, Offset)>,
        is_committed: bool,
    },
    /// librdkafka refused the answer, and would wait for another for ever.
    Refused(String),
}

/// What came of a move.
#[derive(Debug)]
pub(super) struct Sought {
    /// librdkafka reads on there.
    pub moved: Vec<(Partition, Offset)>,
    pub is_committed: bool,
    /// `None` when all of it was moved and committed.
    pub error: Option<SeekError>,
    /// librdkafka may move later, unseen: the client is of no use any more.
    pub is_torn: bool,
}

/// What is committed for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Why {
    Revoked,
    Moved,
}

/// Why something is not committed.
#[derive(Debug)]
struct Uncommitted {
    reason: &'static str,
    /// The coordinator does not know the member any more: its partitions are others', or will be.
    is_expelled: bool,
}

/// See the module text.
#[derive(Debug)]
pub(super) struct Answers {
    member: Rc<Member>,
    client: Arc<Client>,
    /// What waits behind the answer being worked on.
    waiting: RefCell<VecDeque<Rebalance>>,
    outcomes: RefCell<VecDeque<Outcome>>,
    is_running: Cell<bool>,
    /// The pump has ended.
    is_over: Cell<bool>,
}

impl Answers {
    pub fn new(member: &Rc<Member>, client: &Arc<Client>) -> Rc<Self> {
        Rc::new(Self {
            member: Rc::clone(member),
            client: Arc::clone(client),
            waiting: RefCell::default(),
            outcomes: RefCell::default(),
            is_running: Cell::new(false),
            is_over: Cell::new(false),
        })
    }

    /// One more, to be taken up in its turn.
    pub fn ask(&self, rebalance: Rebalance) {
        self.waiting.borrow_mut().push_back(rebalance);
    }

    /// The rebalance whose turn it is; none while one is being answered. A revocation that overtook its assignment would leave a
    /// partition that is not ours.
    pub fn next_rebalance(&self) -> Option<Rebalance> {
        if self.is_busy() { None } else { self.waiting.borrow_mut().pop_front() }
    }

    pub fn next_outcome(&self) -> Option<Outcome> {
        self.outcomes.borrow_mut().pop_front()
    }

    /// Whether a rebalance is still being answered.
    pub fn is_busy(&self) -> bool {
        self.is_running.get() || !self.outcomes.borrow().is_empty()
    }

    /// Whether a revocation waits that takes all of `partitions` again.
    fn is_overtaken(&self, partitions: &[Partition]) -> bool {
        self.waiting.borrow().iter().any(|rebalance| match rebalance {
            Rebalance::Assign(_) => false,
            Rebalance::Revoke { partitions: gone, .. } => partitions.iter().all(|partition| gone.contains(partition)),
        })
    }

    /// The client is not used any more.
    pub fn end(&self) {
        self.is_over.set(true);
    }

    /// Answers an assignment, once it is known where the partitions start. When that does not matter any more, because the group
    /// closes or a revocation of them waits, they are assigned all the same, but nobody reads them.
    pub fn assign(self: &Rc<Self>, partitions: Vec<Partition>) {
        let this = Rc::clone(self);
        self.spawn(async move {
            while !this.is_over.get() {
                let (client, topic, parts) = (Arc::clone(&this.client), this.member.topic.clone(), partitions.clone());
                let standing = this.member.standing.borrow().clone();
                let timeout = this.member.around.config.kafka.admin_timeout;
                let is_read = !this.member.group.is_closing() && !this.is_overtaken(&partitions);
                let call = move || {
                    if is_read {
                        offsets::assign(&client, &topic, &parts, standing, timeout).map(Outcome::Assigned)
                    } else {
                        offsets::assign_unread(&client, &topic, &parts).map(|()| Outcome::NotAssigned)
                    }
                };
                let reason = match this.call(call).await {
                    Ok(Ok(outcome)) => return outcome,
                    Ok(Err(AssignError::Refused(text))) => return Outcome::Refused(text),
                    Ok(Err(AssignError::Offsets(code))) => code.name(),
                    Err(OffloadError::Full) => "the offload pool is full",
                    Err(OffloadError::Panicked) => "a call failed",
                };
                this.member.trouble(reason);
                glommio::timer::sleep(ASK_AGAIN).await;
            }
            Outcome::NotAssigned
        });
    }

    /// Commits `ends`, then gives `partitions` up whatever became of the commit.
    pub fn give_up(self: &Rc<Self>, ends: Vec<(Partition, Offset)>, partitions: Vec<Partition>) {
        let this = Rc::clone(self);
        self.spawn(async move {
            let is_committed = this.commit(&ends, Why::Revoked).await.is_ok();
            while !this.is_over.get() {
                let (client, topic, parts) = (Arc::clone(&this.client), this.member.topic.clone(), partitions.clone());
                match this.call(move || offsets::unassign(&client, &topic, &parts)).await {
                    Ok(Ok(())) => break,
                    Ok(Err(text)) => return Outcome::Refused(text),
                    Err(OffloadError::Panicked) => return Outcome::Refused("a call failed".to_owned()),
                    Err(OffloadError::Full) => glommio::timer::sleep(ASK_AGAIN).await,
                }
            }
            Outcome::GaveUp { ends, is_committed }
        });
    }

    /// Moves librdkafka, then commits where to. A rebalance waits for it as for another rebalance.
    pub fn seek(self: &Rc<Self>, moves: Vec<(Partition, Offset)>) {
        let this = Rc::clone(self);
        self.spawn(async move {
            let mut sought = this.go_on_at(moves).await;
            let committed = this.commit(&sought.moved, Why::Moved).await;
            sought.is_committed = committed.is_ok();
            let failed = committed.err().map(|failed| match sought.moved.first() {
                Some((partition, _)) if failed.is_expelled => SeekError::NotOwned(*partition),
                _ => unavailable(failed.reason),
            });
            sought.error = sought.error.or(failed);
            Outcome::Sought(sought)
        });
    }

    /// Moves librdkafka. A partition whose assignment has only just been answered cannot be moved for a moment (src: it is an error until
    /// its fetcher has started).
    async fn go_on_at(&self, mut left: Vec<(Partition, Offset)>) -> Sought {
        let ended = |moved, error: Option<&str>, is_torn| Sought {
            moved,
            is_committed: false,
            error: error.map(unavailable),
            is_torn,
        };
        let since = Instant::now();
        let mut moved = Vec::with_capacity(left.len());
        loop {
            let (client, topic, moves) = (Arc::clone(&self.client), self.member.topic.clone(), left.clone());
            let call = move || {
                let mut list = PartitionList::new(&topic, moves);
                client.seek(&mut list, SEEK_MAX).map(|()| list)
            };
            let failed = match self.call(call).await {
                Ok(Ok(list)) => {
                    let is_done = |partition| list.entries().any(|e| e.partition == partition && e.code.is_ok());
                    let (done, not): (Vec<_>, Vec<_>) =
                        left.into_iter().partition(|(partition, _)| is_done(*partition));
                    moved.extend(done);
                    left = not;
                    list.entries().find(|entry| !entry.code.is_ok()).map(|entry| entry.code.name())
                }
                Ok(Err(text)) => return ended(moved, Some(&text), true),
                Err(OffloadError::Panicked) => return ended(moved, Some("a call failed"), true),
                Err(OffloadError::Full) => Some("the offload pool is full"),
            };
            let Some(reason) = failed else { return ended(moved, None, false) };
            if since.elapsed() > SEEK_MAX || self.is_over.get() {
                return ended(moved, Some(reason), false);
            }
            glommio::timer::sleep(SEEK_AGAIN).await;
        }
    }

    /// Commits `ends`. What may pass is tried again, as long as they are ours to commit.
    async fn commit(&self, ends: &[(Partition, Offset)], why: Why) -> Result<(), Uncommitted> {
        if ends.is_empty() {
            return Ok(());
        }
        let since = Instant::now();
        loop {
            let (client, commits) = (Arc::clone(&self.client), self.member.commits(ends));
            let (reason, may_pass, is_expelled) =
                match self.call(move || client.commit_and_wait(&commits, COMMIT_MAX)).await {
                    Ok(Ok(())) => return Ok(()),
                    Ok(Err(code)) => {
                        if code.is(rd::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART) {
                            // These ends are of a log that is gone. One that is made under its name is not to be entered in the middle.
                            self.member.standing.borrow_mut().begin_anew();
                        }
                        (code.name(), may_pass(code, why), is_expelled(code))
                    }
                    Err(OffloadError::Full) => ("the offload pool is full", true, false),
                    Err(OffloadError::Panicked) => ("a call failed", false, false),
                };
            if let Some(held) = self.member.around.reach.log.pass(Instant::now()) {
                let group = &self.member.group.group_id;
                tracing::warn!(group, error = reason, may_pass, held, "a commit that is waited for failed");
            }
            let is_lost = || self.client.is_assignment_lost();
            let failed = |is_expelled| Err(Uncommitted { reason, is_expelled });
            if !may_pass || since.elapsed() + ASK_AGAIN > COMMIT_TRIES_MAX {
                return failed(is_expelled || is_lost());
            }
            glommio::timer::sleep(ASK_AGAIN).await;
            if self.is_over.get() || self.member.group.is_closing() || is_lost() {
                return failed(is_lost());
            }
        }
    }

    async fn call<T: Send + 'static>(&self, call: impl FnOnce() -> T + Send + 'static) -> Result<T, OffloadError> {
        self.member.around.offload.run(call).await
    }

    /// One at a time: see [`Answers::next_rebalance`].
    fn spawn(self: &Rc<Self>, job: impl Future<Output = Outcome> + 'static) {
        let this = Rc::clone(self);
        this.is_running.set(true);
        glommio::spawn_local(async move {
            let outcome = job.await;
            this.is_running.set(false);
            this.outcomes.borrow_mut().push_back(outcome);
            this.member.group.bell.ring();
        })
        .detach();
    }
}

/// Whether the coordinator has taken the member out of its group.
fn is_expelled(code: ErrorCode) -> bool {
    code.is_one_of(&[
        rd::RD_KAFKA_RESP_ERR_UNKNOWN_MEMBER_ID,
        rd::RD_KAFKA_RESP_ERR_ILLEGAL_GENERATION,
        rd::RD_KAFKA_RESP_ERR_FENCED_INSTANCE_ID,
    ])
}

/// Whether a commit that failed so may succeed a moment later. Everything else is final: about the topic, the member, or our rights.
fn may_pass(code: ErrorCode, why: Why) -> bool {
    // Between two generations: what stays ours in a rebalance can be committed when it is over. What is being revoked belongs to the old.
    if code.is(rd::RD_KAFKA_RESP_ERR_ILLEGAL_GENERATION) {
        return why == Why::Moved;
    }
    code.is_one_of(&[
        rd::RD_KAFKA_RESP_ERR__TIMED_OUT,
        rd::RD_KAFKA_RESP_ERR__TIMED_OUT_QUEUE,
        rd::RD_KAFKA_RESP_ERR__TRANSPORT,
        rd::RD_KAFKA_RESP_ERR__WAIT_COORD,
        rd::RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT,
        rd::RD_KAFKA_RESP_ERR_COORDINATOR_LOAD_IN_PROGRESS,
        rd::RD_KAFKA_RESP_ERR_COORDINATOR_NOT_AVAILABLE,
        rd::RD_KAFKA_RESP_ERR_NOT_COORDINATOR,
        rd::RD_KAFKA_RESP_ERR_REBALANCE_IN_PROGRESS,
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_may_pass_is_committed_again() {
        let (moved, gone) = (rd::RD_KAFKA_RESP_ERR_NOT_COORDINATOR, rd::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART);
        assert!(may_pass(moved.into(), Why::Revoked));
        assert!(!may_pass(gone.into(), Why::Moved), "the next try could land in the topic made again");
        let generation = rd::RD_KAFKA_RESP_ERR_ILLEGAL_GENERATION.into();
        assert!(!may_pass(generation, Why::Revoked) && may_pass(generation, Why::Moved));
    }
}
