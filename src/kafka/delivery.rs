//! Delivery reports: from librdkafka's queue to the one request that waits for each.
//!
//! ```text
//!  librdkafka threads --> main queue --(1 byte when it stops being empty)--> socket pair --> this core
//!                             \---- drained in steps of LOOP_ITEMS_MAX, a yield between ----> Outbox slot --> Report
//! ```
//!
//! Invariants: a report wakes exactly its own request; a request never waits past its deadline: then it is told "unknown" and
//! the payload stays with librdkafka until the report; what a report means for the data is decided in [`judge`] alone.
//! Per core. It knows no HTTP and does not produce.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    future::Future,
    mem,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use futures_lite::{AsyncReadExt, future};
use rdkafka::bindings::rd_kafka_resp_err_t as rd;
use slab::Slab;

use super::{
    batching::Nudge,
    native::{Client, ErrorCode, Event, Outbox, Queue, Reported, Reports, Status, Ticket, TopicHandle},
    reach::{LogLimit, Reach},
    stats::ProducerStats,
};
use crate::{
    limits,
    readiness::Socket,
    store::{Line, ProduceError, Produced, Stored},
};

/// Who wants to know of a record. Small, see [`Outbox`].
#[derive(Debug, Default)]
pub(super) enum Wait {
    #[default]
    Nobody,
    /// The place of that number.
    Line(Rc<Line>, u32),
    /// By its key.
    Request(u32),
    /// Whoever did was told that it is unknown.
    Overdue,
}

/// A request that waits for one record, or is to fetch what became of it.
#[derive(Debug)]
pub(super) enum Request {
    Waiting(Option<Waker>),
    /// And when the core had the answer.
    Answered(Produced, Instant),
}

/// What is to be known by its deadline.
#[derive(Debug)]
pub(super) enum Due {
    Request(Ticket),
    /// All places before that number.
    Line(Rc<Line>, u64),
}

/// One librdkafka producer with what it holds. A fatal error ends a pipe; the producer then makes another.
#[derive(Debug)]
pub(super) struct Pipe {
    pub outbox: RefCell<Outbox<Wait>>,
    /// By key.
    pub requests: RefCell<Slab<Request>>,
    /// Handles by `Topic::slot`.
    pub topics: RefCell<Vec<Option<Arc<TopicHandle>>>>,
    /// In the order of their deadlines, which are all equally far away.
    pub due: RefCell<VecDeque<(Instant, Due)>>,
    /// No more records: only reports are still to come.
    pub is_retired: Cell<bool>,
    pub nudge: Nudge,
    queue: Queue,
    pub client: Arc<Client>,
    stats: Rc<ProducerStats>,
    reach: Rc<Reach>,
}

impl Pipe {
    pub fn new(
        client: Arc<Client>,
        stay: Duration,
        nudge: Nudge,
        stats: Rc<ProducerStats>,
        reach: Rc<Reach>,
    ) -> Option<Rc<Self>> {
        let queue = client.main_queue()?;
        queue.watch();
        Some(Rc::new(Self {
            outbox: RefCell::new(Outbox::new(Arc::clone(&client), stay)),
            requests: RefCell::default(),
            topics: RefCell::default(),
            due: RefCell::default(),
            is_retired: Cell::new(false),
            nudge,
            queue,
            client,
            stats,
            reach,
        }))
    }

    /// No more records after a fatal error: everything queued is failed at once, by reports.
    pub fn retire(&self) {
        if !self.is_retired.replace(true) {
            self.client.purge();
        }
    }

    /// Serves reports until the executor ends, or the pipe is retired and empty.
    pub async fn serve(self: Rc<Self>, mut bell: Socket) {
        let mut bytes = [0; 64];
        loop {
            self.drain().await;
            if self.is_retired.get() && self.outbox.borrow().lent().0 == 0 {
                break;
            }
            let rung = async { Some(bell.read(&mut bytes).await) };
            let due = async {
                self.nudge.due().await;
                None
            };
            match future::or(rung, due).await {
                Some(Ok(0) | Err(_)) => break,
                Some(Ok(_)) => self.stats.wakeups.one(),
                None => self.send_on(),
            }
        }
    }

    /// Has librdkafka send what has lingered.
    fn send_on(&self) {
        if self.outbox.borrow().lent().0 > 0 {
            self.stats.nudges.one();
            self.client.nudge();
        }
    }

    async fn drain(&self) {
        let mut handled = 0;
        while let Some(event) = self.queue.poll() {
            match event {
                Event::Reports(reports) => handled += self.take_reports(reports).await,
                Event::Error { code, text, fatal } => self.take_error(code, &text, fatal),
                Event::Log { level, text } => log_line(&self.reach.log, level, &text),
                _ => {}
            }
            handled += 1;
            if handled >= limits::LOOP_ITEMS_MAX {
                handled = 0;
                glommio::executor().yield_now().await;
            }
        }
    }

    /// Gives how many were handled since the last yield.
    async fn take_reports(&self, mut reports: Reports) -> usize {
        // One event holds the reports of one batch (src): what one request carried to one partition.
        let mut batch = 0;
        loop {
            let mut stored = false;
            let now = Instant::now();
            let count = reports.next_some(|report| {
                stored |= report.code.is_ok();
                self.take_report(&report, now);
            });
            if stored {
                self.reach.heard(now);
            }
            batch += count;
            if count < limits::LOOP_ITEMS_MAX {
                self.stats.batches.record(batch);
                return count;
            }
            glommio::executor().yield_now().await;
        }
    }

    fn take_report(&self, report: &Reported, now: Instant) {
        let outcome = judge(report);
        self.count(&outcome);
        let kept = self.outbox.borrow_mut().settle(report);
        let Some(wait) = kept else {
            debug_assert!(false, "a report for a record that was not sent");
            return;
        };
        match wait {
            Wait::Nobody => {}
            Wait::Line(line, number) => {
                if !line.settle(number, outcome) {
                    self.stats.late.one();
                }
            }
            Wait::Request(key) => self.answer(key, outcome, now),
            Wait::Overdue => self.stats.late.one(),
        }
    }

    fn answer(&self, key: u32, outcome: Produced, now: Instant) {
        let before = self
            .requests
            .borrow_mut()
            .get_mut(key as usize)
            .map(|request| mem::replace(request, Request::Answered(outcome, now)));
        if let Some(Request::Waiting(Some(waker))) = before {
            waker.wake();
        }
    }

    fn count(&self, outcome: &Produced) {
        let counter = match outcome {
            Ok(_) => &self.stats.stored,
            Err(ProduceError::NotStored { .. } | ProduceError::QueueFull { .. }) => &self.stats.not_stored,
            Err(ProduceError::Unknown { .. }) => &self.stats.unknown,
            Err(ProduceError::Refused { .. }) => &self.stats.refused,
            Err(ProduceError::UnknownTopic | ProduceError::UnknownPartition) => &self.stats.unknown_topic,
        };
        counter.one();
    }

    fn take_error(&self, code: ErrorCode, text: &str, fatal: bool) {
        let now = Instant::now();
        if code.is(rd::RD_KAFKA_RESP_ERR__ALL_BROKERS_DOWN) {
            self.reach.missed();
        }
        if fatal {
            tracing::error!(error = code.name(), text, "the producer failed for good and is replaced");
            self.retire();
        } else if let Some(held) = self.reach.log.pass(now) {
            tracing::warn!(error = code.name(), text, held, "producer error");
        }
    }

    /// Answers requests whose deadline has passed; their payloads stay lent. Looks for reports first: a bell that was missed
    /// must cost a sweep's interval, not the deadline.
    pub async fn sweep(&self, now: Instant) {
        self.drain().await;
        let mut handled = 0;
        while self.sweep_one(now) {
            handled += 1;
            if handled % limits::LOOP_ITEMS_MAX == 0 {
                glommio::executor().yield_now().await;
            }
        }
    }

    /// Removes the first of the line, answered or overdue. `false` when there is none to remove yet.
    fn sweep_one(&self, now: Instant) -> bool {
        let mut line = self.due.borrow_mut();
        let Some((due, what)) = line.front() else { return false };
        let is_over = match what {
            Due::Request(ticket) => self.is_over(*ticket, *due, now),
            Due::Line(places, end) if *due > now => places.is_settled_before(*end),
            Due::Line(places, end) => {
                self.stats.overdue.add(places.settle_before(*end, &OVERDUE));
                true
            }
        };
        if is_over {
            line.pop_front();
        }
        is_over
    }

    /// Whether a request has its answer, and be it that its time is over.
    fn is_over(&self, ticket: Ticket, due: Instant, now: Instant) -> bool {
        let key = {
            let mut outbox = self.outbox.borrow_mut();
            let Some(wait) = outbox.get_mut(ticket) else { return true };
            let Wait::Request(key) = *wait else { return true };
            if due > now {
                return false;
            }
            *wait = Wait::Overdue;
            key
        };
        self.stats.overdue.one();
        self.answer(key, OVERDUE, now);
        true
    }
}

/// What is told of a record without a report when its time is over.
const OVERDUE: Produced = Err(ProduceError::Unknown { reason: "DEADLINE" });

/// What a report says about the data.
pub(super) fn judge(report: &Reported) -> Produced {
    if report.code.is_ok() {
        // With acks=0 there is no offset, only librdkafka's "invalid".
        return Ok(Stored { partition: report.partition, offset: report.offset.max(-1) });
    }
    let reason = report.code.name();
    // The status first: NOT_ENOUGH_REPLICAS_AFTER_APPEND and time-outs after sending are in the leader's log, perhaps.
    if report.status != Status::NotPersisted {
        return Err(ProduceError::Unknown { reason });
    }
    Err(refusal(report.code).unwrap_or(ProduceError::NotStored { reason }))
}

/// Errors that will be the same next time: about the topic or the record, not about the moment.
pub(super) fn refusal(code: ErrorCode) -> Option<ProduceError> {
    const UNKNOWN_TOPIC: [rd; 2] = [rd::RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC, rd::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART];
    const REFUSED: [rd; 12] = [
        rd::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE,
        rd::RD_KAFKA_RESP_ERR_RECORD_LIST_TOO_LARGE,
        rd::RD_KAFKA_RESP_ERR_TOPIC_EXCEPTION,
        rd::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED,
        rd::RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED,
        rd::RD_KAFKA_RESP_ERR_TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
        rd::RD_KAFKA_RESP_ERR_INVALID_RECORD,
        rd::RD_KAFKA_RESP_ERR_POLICY_VIOLATION,
        rd::RD_KAFKA_RESP_ERR_INVALID_TIMESTAMP,
        rd::RD_KAFKA_RESP_ERR_INVALID_REQUIRED_ACKS,
        rd::RD_KAFKA_RESP_ERR_UNSUPPORTED_FOR_MESSAGE_FORMAT,
        rd::RD_KAFKA_RESP_ERR_UNSUPPORTED_COMPRESSION_TYPE,
    ];
    if code.is_one_of(&UNKNOWN_TOPIC) {
        return Some(ProduceError::UnknownTopic);
    }
    if code.is(rd::RD_KAFKA_RESP_ERR__UNKNOWN_PARTITION) {
        return Some(ProduceError::UnknownPartition);
    }
    code.is_one_of(&REFUSED).then(|| ProduceError::Refused { reason: code.name() })
}

/// librdkafka's own log lines, at syslog levels. Those that repeat with every client and broker are limited.
pub(super) fn log_line(limit: &LogLimit, level: i32, text: &str) {
    match level {
        ..=4 => {
            if let Some(held) = limit.pass(Instant::now()) {
                tracing::warn!(held, "librdkafka {text}");
            }
        }
        5 => tracing::info!("librdkafka {text}"),
        _ => tracing::debug!("librdkafka {text}"),
    }
}

/// The report of one record. Dropped before it is there, it only stops the waiting.
#[derive(Debug)]
pub struct Report(State);

#[derive(Debug)]
enum State {
    Waiting {
        pipe: Rc<Pipe>,
        ticket: Ticket,
        key: u32,
    },
    /// Known at once (a test switch).
    Known(Stored),
    /// And when the core had the report.
    Over(Option<Instant>),
}

impl Report {
    pub(super) fn waiting(pipe: Rc<Pipe>, ticket: Ticket, key: u32) -> Self {
        Self(State::Waiting { pipe, ticket, key })
    }

    pub(super) fn known(stored: Stored) -> Self {
        Self(State::Known(stored))
    }

    /// When the core had the report that was awaited here.
    pub fn reported_at(&self) -> Option<Instant> {
        if let State::Over(at) = self.0 { at } else { None }
    }
}

impl Future for Report {
    type Output = Produced;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Produced> {
        let (outcome, at) = match &self.0 {
            State::Known(stored) => (Ok(*stored), None),
            State::Over(_) => (Err(ProduceError::Unknown { reason: "POLLED_AFTER_THE_END" }), None),
            State::Waiting { pipe, key, .. } => {
                let mut requests = pipe.requests.borrow_mut();
                let request = requests.get_mut(*key as usize).expect("a request is there until its answer is fetched");
                if let Request::Waiting(waker) = request {
                    match waker {
                        Some(kept) if kept.will_wake(cx.waker()) => {}
                        _ => *waker = Some(cx.waker().clone()),
                    }
                    return Poll::Pending;
                }
                match requests.remove(*key as usize) {
                    Request::Answered(outcome, at) => (outcome, Some(at)),
                    Request::Waiting(_) => (Err(ProduceError::Unknown { reason: "NOBODY_WAITED" }), None),
                }
            }
        };
        self.0 = State::Over(at);
        Poll::Ready(outcome)
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        if let State::Waiting { pipe, ticket, key } = &self.0 {
            pipe.requests.borrow_mut().try_remove(*key as usize);
            if let Some(wait @ Wait::Request(_)) = pipe.outbox.borrow_mut().get_mut(*ticket) {
                *wait = Wait::Nobody;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(code: rd, status: Status) -> Reported {
        Reported { code: code.into(), status, partition: 1, offset: 7, opaque: 0 }
    }

    #[test]
    fn the_status_decides_about_the_data() {
        let stored = judge(&report(rd::RD_KAFKA_RESP_ERR_NO_ERROR, Status::Persisted));
        assert_eq!(stored, Ok(Stored { partition: 1, offset: 7 }));
        for (code, status, expected) in [
            (rd::RD_KAFKA_RESP_ERR__MSG_TIMED_OUT, Status::NotPersisted, "not stored"),
            (rd::RD_KAFKA_RESP_ERR__MSG_TIMED_OUT, Status::PossiblyPersisted, "unknown"),
            (rd::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS, Status::NotPersisted, "not stored"),
            (rd::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS_AFTER_APPEND, Status::PossiblyPersisted, "unknown"),
            (rd::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE, Status::NotPersisted, "refused"),
            (rd::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE, Status::PossiblyPersisted, "unknown"),
            (rd::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED, Status::NotPersisted, "refused"),
            (rd::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART, Status::NotPersisted, "no topic"),
            (rd::RD_KAFKA_RESP_ERR__UNKNOWN_PARTITION, Status::NotPersisted, "no partition"),
            (rd::RD_KAFKA_RESP_ERR__PURGE_INFLIGHT, Status::PossiblyPersisted, "unknown"),
        ] {
            let got = match judge(&report(code, status)) {
                Err(ProduceError::NotStored { .. }) => "not stored",
                Err(ProduceError::Unknown { .. }) => "unknown",
                Err(ProduceError::Refused { .. }) => "refused",
                Err(ProduceError::UnknownTopic) => "no topic",
                Err(ProduceError::UnknownPartition) => "no partition",
                other => panic!("{other:?}"),
            };
            assert_eq!(got, expected, "{code:?} {status:?}");
        }
    }

    #[test]
    fn errors_have_their_names_and_new_codes_do_not_crash() {
        assert_eq!(ErrorCode::from(rd::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS).name(), "NOT_ENOUGH_REPLICAS");
        assert_eq!(ErrorCode(9_999).name(), "UNKNOWN_ERROR_CODE");
    }

    #[test]
    fn no_ack_means_no_offset() {
        let mut none = report(rd::RD_KAFKA_RESP_ERR_NO_ERROR, Status::Persisted);
        none.offset = -1001;
        assert_eq!(judge(&none), Ok(Stored { partition: 1, offset: -1 }));
    }
}
