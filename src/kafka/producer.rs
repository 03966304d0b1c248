//! Producing: one producer per core and ack level, made when first used.
//!
//! Invariants: a record is with librdkafka when `send` returns `Ok`, whatever becomes of the future; a topic's handle is looked
//! up by its slot, never by name; a producer with a fatal error takes no more records and is replaced, its reports are still
//! served. Per core. It decides nothing about requests: refuse, retry and hand off are the API's.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    os::fd::OwnedFd,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use glommio::Task;
use rdkafka::bindings::rd_kafka_resp_err_t as rd;

use super::{
    batching::Nudge,
    delivery::{Due, Pipe, Report, Request, Wait, refusal},
    native::{Client, ErrorCode, Kind, TopicHandle},
    options,
    reach::Reach,
    stats::ProducerStats,
};
use crate::{
    config::resolve::Config,
    limits,
    offload::Offload,
    readiness::Socket,
    store::{Ack, Line, Partition, ProduceError, Record, Stored, Topic},
};

/// Between two questions for a topic that is not known.
const ASK_AGAIN: Duration = Duration::from_millis(250);

/// The producer of one ack level.
#[derive(Debug)]
pub(super) struct Producer {
    ack: Ack,
    config: Arc<Config>,
    offload: Offload,
    stats: Rc<ProducerStats>,
    reach: Rc<Reach>,
    /// The pipe in use, and retired ones with reports to come; each with the task that serves it, which ends when dropped.
    pipes: RefCell<Vec<(Rc<Pipe>, Task<()>)>>,
    is_making: Cell<bool>,
    /// When a topic that librdkafka does not know was last asked for again.
    asked_at: Cell<Option<Instant>>,
}

impl Producer {
    pub fn new(
        ack: Ack,
        config: &Arc<Config>,
        offload: &Offload,
        stats: &Rc<ProducerStats>,
        reach: &Rc<Reach>,
    ) -> Rc<Self> {
        Rc::new(Self {
            ack,
            config: Arc::clone(config),
            offload: offload.clone(),
            stats: Rc::clone(stats),
            reach: Rc::clone(reach),
            pipes: RefCell::default(),
            is_making: Cell::new(false),
            asked_at: Cell::new(None),
        })
    }

    /// Hands a record over and gives its report to come.
    pub fn produce(self: &Rc<Self>, topic: &Topic, record: Record) -> Result<Report, ProduceError> {
        if self.config.test.answer_before_report {
            let partition = record.partition.unwrap_or(0);
            self.send(topic, record, Instant::now())?;
            return Ok(Report::known(Stored { partition, offset: -1 }));
        }
        let now = Instant::now();
        let (pipe, ticket) = self.send(topic, record, now)?;
        let key = pipe.requests.borrow_mut().insert(Request::Waiting(None));
        let key = u32::try_from(key).expect("fewer requests wait than records");
        if let Some(wait) = pipe.outbox.borrow_mut().get_mut(ticket) {
            *wait = Wait::Request(key);
        }
        pipe.due.borrow_mut().push_back((now + self.config.publish.deadline, Due::Request(ticket)));
        Ok(Report::waiting(pipe, ticket, key))
    }

    /// Hands records over in their order, each with a place in `line`. Fails where the queue has no room; the rest stays.
    pub fn produce_all(
        self: &Rc<Self>,
        topic: &Topic,
        records: &mut VecDeque<Record>,
        line: &Rc<Line>,
    ) -> Result<(), ProduceError> {
        let now = Instant::now();
        let pipe = match self.pipe() {
            Ok(pipe) => pipe,
            Err(error) => {
                records.drain(..).for_each(|_| line.append_settled(Err(error.clone())));
                return Ok(());
            }
        };
        pipe.nudge.fit(pipe.outbox.borrow().lent().0 + records.len() as u64);
        let before = line.end();
        while !records.is_empty() && self.produce_run(&pipe, topic, records, (line, now)) {}
        if line.end() > before {
            // Not before librdkafka had the last of them: a nudge that finds one too young is in vain.
            pipe.nudge.sent(Instant::now());
            let due = now + self.config.publish.deadline;
            pipe.due.borrow_mut().push_back((due, Due::Line(Rc::clone(line), line.end())));
        }
        if records.is_empty() {
            return Ok(());
        }
        self.stats.queue_full.one();
        Err(ProduceError::QueueFull { queued_bytes: pipe.outbox.borrow().lent().1 })
    }

    /// As many of the first records as one call takes. `false`: there is no room for more.
    fn produce_run(
        self: &Rc<Self>,
        pipe: &Rc<Pipe>,
        topic: &Topic,
        records: &mut VecDeque<Record>,
        (line, now): (&Rc<Line>, Instant),
    ) -> bool {
        if records.pop_front_if(|record| record.partition.is_some_and(|p| p < 0)).is_some() {
            line.append_settled(Err(ProduceError::UnknownPartition));
            return true;
        }
        let handle = open_topic(&pipe.client, &mut pipe.topics.borrow_mut(), topic, &self.config).map(Arc::clone);
        let handle = match handle {
            Ok(handle) => handle,
            Err(error) => {
                records.drain(..).for_each(|_| line.append_settled(Err(error.clone())));
                return true;
            }
        };
        let (mut refused, mut back, mut is_full, mut is_wrong) = (Vec::new(), Vec::new(), false, false);
        let (mut taken, mut bytes) = (0, 0);
        {
            let mut outbox = pipe.outbox.borrow_mut();
            let run = Run::of(records, || outbox.sticky_partition(&handle, now));
            bytes += records.range(..run.count).map(|record| record.value.len()).sum::<usize>();
            let mut tell = |told: Result<&mut Wait, (ErrorCode, Record)>| match told {
                Ok(wait) => {
                    *wait = Wait::Line(Rc::clone(line), line.append());
                    taken += 1;
                }
                Err((code, record)) => {
                    bytes -= record.value.len();
                    is_wrong |= run.is_sticky && refusal(code).as_ref().is_some_and(ProduceError::is_unknown);
                    is_full |= code.is(rd::RD_KAFKA_RESP_ERR__QUEUE_FULL);
                    if is_full || is_wrong {
                        back.push(record);
                    } else {
                        refused.push((line.append(), code));
                    }
                }
            };
            if run.is_single {
                for record in records.drain(..run.count) {
                    match outbox.send(&handle, record) {
                        Ok(ticket) => outbox.get_mut(ticket).into_iter().for_each(|wait| tell(Ok(wait))),
                        Err(refused) => tell(Err(refused)),
                    }
                }
            } else {
                outbox.send_all(&handle, run.partition, records.drain(..run.count), tell);
            }
            if is_wrong {
                handle.forget_choice();
            }
        }
        self.stats.produced.add(taken);
        self.stats.produced_bytes.add(bytes as u64);
        for (number, code) in refused {
            line.settle(number, Err(self.refuse(pipe, topic, code)));
        }
        back.into_iter().rev().for_each(|record| records.push_front(record));
        !is_full
    }

    /// Hands a record over; its report is only counted.
    pub fn enqueue(self: &Rc<Self>, topic: &Topic, record: Record) -> Result<(), ProduceError> {
        self.send(topic, record, Instant::now()).map(|_| ())
    }

    fn send(
        self: &Rc<Self>,
        topic: &Topic,
        record: Record,
        now: Instant,
    ) -> Result<(Rc<Pipe>, super::native::Ticket), ProduceError> {
        if record.partition.is_some_and(|p| p < 0) {
            return Err(ProduceError::UnknownPartition);
        }
        let pipe = self.pipe()?;
        let bytes = record.value.len();
        let sent = {
            let mut topics = pipe.topics.borrow_mut();
            let handle = open_topic(&pipe.client, &mut topics, topic, &self.config)?;
            let mut outbox = pipe.outbox.borrow_mut();
            pipe.nudge.fit(outbox.lent().0 + 1);
            if record.partition.is_none() && record.key.is_none() {
                // Its time may be over; then the partitioner chooses anew.
                outbox.sticky_partition(handle, now);
            }
            outbox.send(handle, record)
        };
        match sent {
            Ok(ticket) => {
                self.stats.produced.one();
                self.stats.produced_bytes.add(bytes as u64);
                pipe.nudge.sent(now);
                Ok((pipe, ticket))
            }
            Err((code, _)) => Err(self.refuse(&pipe, topic, code)),
        }
    }

    /// Why librdkafka did not take a record.
    fn refuse(self: &Rc<Self>, pipe: &Rc<Pipe>, topic: &Topic, code: ErrorCode) -> ProduceError {
        if code.is(rd::RD_KAFKA_RESP_ERR__QUEUE_FULL) {
            self.stats.queue_full.one();
            return ProduceError::QueueFull { queued_bytes: pipe.outbox.borrow().lent().1 };
        }
        match refusal(code) {
            Some(unknown @ (ProduceError::UnknownTopic | ProduceError::UnknownPartition)) => {
                self.stats.unknown_topic.one();
                self.ask_again(pipe, topic);
                unknown
            }
            Some(refused) => {
                self.stats.enqueue_failed.one();
                refused
            }
            None => {
                self.stats.enqueue_failed.one();
                if pipe.client.fatal_error().is_some() {
                    pipe.retire();
                }
                ProduceError::NotStored { reason: code.name() }
            }
        }
    }

    /// A topic may have been made, or have grown, since librdkafka last looked; by itself it would look again only at the next
    /// refresh. One question for one topic is cheap; [`ASK_AGAIN`] bounds how many there are.
    fn ask_again(&self, pipe: &Pipe, topic: &Topic) {
        let now = Instant::now();
        if self.asked_at.get().is_some_and(|at| now.saturating_duration_since(at) < ASK_AGAIN) {
            return;
        }
        let handle = pipe.topics.borrow().get(topic.slot).and_then(Clone::clone);
        let Some(handle) = handle else { return };
        self.asked_at.set(Some(now));
        let (client, timeout) = (Arc::clone(&pipe.client), self.config.kafka.admin_timeout);
        // Refused when the pool is full: the next publish asks again.
        let _ = self.offload.spawn(move || {
            let _ = client.topics(Some(&handle), timeout);
        });
    }

    /// The pipe in use. The first is made here, on the core, which takes about a millisecond once; a replacement is made in
    /// the offload pool, and until then records are refused unsent.
    fn pipe(self: &Rc<Self>) -> Result<Rc<Pipe>, ProduceError> {
        if let Some((pipe, _)) = self.pipes.borrow().last()
            && !pipe.is_retired.get()
        {
            return Ok(Rc::clone(pipe));
        }
        if !self.pipes.borrow().is_empty() {
            self.replace();
            return Err(ProduceError::NotStored { reason: "PRODUCER_RESTARTS" });
        }
        let options = options::producer(&self.config, self.ack);
        let made = Client::create(Kind::Producer, &options, &self.offload);
        self.install(made).ok_or(ProduceError::NotStored { reason: "NO_PRODUCER" })
    }

    fn replace(self: &Rc<Self>) {
        if self.is_making.replace(true) {
            return;
        }
        let this = Rc::clone(self);
        glommio::spawn_local(async move {
            let made = this.make().await;
            this.is_making.set(false);
            if this.install(made).is_some() {
                this.stats.restarts.one();
            }
        })
        .detach();
    }

    /// Makes the first pipe without using the core for it. Gives the client, for calls about topics.
    pub async fn warm(self: &Rc<Self>) -> Option<Arc<Client>> {
        if let Ok(pipe) = self.current() {
            return Some(pipe);
        }
        let made = self.make().await;
        // A publish may have made it in the meantime: then ours is let go.
        self.current().ok().or_else(|| self.install(made).map(|pipe| Arc::clone(&pipe.client)))
    }

    fn current(&self) -> Result<Arc<Client>, ()> {
        self.pipes.borrow().last().map(|(pipe, _)| Arc::clone(&pipe.client)).ok_or(())
    }

    async fn make(&self) -> Result<(Arc<Client>, OwnedFd), String> {
        let options = options::producer(&self.config, self.ack);
        let offload = self.offload.clone();
        let made = self.offload.run(move || Client::create(Kind::Producer, &options, &offload)).await;
        made.unwrap_or_else(|error| Err(format!("offload pool: {error:?}")))
    }

    fn install(&self, made: Result<(Arc<Client>, OwnedFd), String>) -> Option<Rc<Pipe>> {
        let (client, hear) = match made {
            Ok(made) => made,
            Err(text) => {
                if let Some(held) = self.reach.log.pass(Instant::now()) {
                    tracing::error!(text, held, "a Kafka producer could not be made");
                }
                return None;
            }
        };
        let nudge = Nudge::new(Duration::from_micros(self.config.kafka.linger_us), client.linger());
        let stay = options::stay(&self.config, self.ack);
        let pipe = Pipe::new(client, stay, nudge, Rc::clone(&self.stats), Rc::clone(&self.reach))?;
        let hear = match Socket::adopt(hear) {
            Ok(hear) => hear,
            Err(error) => {
                tracing::error!(%error, "a producer's bell cannot be watched");
                return None;
            }
        };
        super::break_later(&self.config, &pipe.client);
        let task = glommio::spawn_local(Rc::clone(&pipe).serve(hear));
        self.pipes.borrow_mut().push((Rc::clone(&pipe), task));
        Some(pipe)
    }

    /// Answers overdue requests, and lets go of retired pipes whose reports are all in.
    pub async fn sweep(&self, now: Instant) {
        let pipes: Vec<_> = self.pipes.borrow().iter().map(|(pipe, _)| Rc::clone(pipe)).collect();
        let newest = pipes.len().saturating_sub(1);
        for (index, pipe) in pipes.iter().enumerate() {
            pipe.sweep(now).await;
            if index < newest && pipe.outbox.borrow().lent().0 == 0 {
                self.pipes.borrow_mut().retain(|(p, _)| !Rc::ptr_eq(p, pipe));
            }
        }
    }

    /// An eighth of the queue is left to those that do not wait for room, and to what librdkafka still counts of reports being read.
    pub fn has_room(&self) -> bool {
        let (records, bytes) = self.pipes.borrow().last().map_or((0, 0), |(pipe, _)| pipe.outbox.borrow().lent());
        let kafka = &self.config.kafka;
        let most = |max: usize| (max - max / 8) as u64;
        records < most(kafka.queue_messages_max) && bytes < most(kafka.queue_bytes_max)
    }

    /// Records without a report, and their bytes.
    pub fn queued(&self) -> (u64, u64) {
        let pipes = self.pipes.borrow();
        let sums = pipes.iter().map(|(pipe, _)| pipe.outbox.borrow().lent());
        sums.fold((0, 0), |(records, bytes), (r, b)| (records + r, bytes + b))
    }

    /// Clients of librdkafka there are.
    pub fn clients(&self) -> u64 {
        self.pipes.borrow().len() as u64
    }
}

/// Records at the head of a line that one call of librdkafka's takes.
#[derive(Clone, Copy)]
struct Run {
    count: usize,
    /// One by one, as the call that knows headers takes them, and as the one does that makes the partitioner choose.
    is_single: bool,
    /// `None`: the partitioner decides for each.
    partition: Option<Partition>,
    /// The partition is that of records without a key, not one they name.
    is_sticky: bool,
}

impl Run {
    fn of(records: &VecDeque<Record>, sticky: impl FnOnce() -> Option<Partition>) -> Self {
        let kind = |record: &Record| (record.partition, record.key.is_some(), record.headers.is_empty());
        let single = Self { count: records.len().min(1), is_single: true, partition: None, is_sticky: false };
        let Some(first) = records.front().map(kind) else { return single };
        let count = records.iter().take(limits::LOOP_ITEMS_MAX).take_while(|record| kind(record) == first).count();
        match first {
            (None, false, has_none) => match sticky() {
                Some(partition) if has_none => {
                    Self { count, is_single: false, partition: Some(partition), is_sticky: true }
                }
                // The partitioner decides, which knows whether the choice still holds.
                _ => single,
            },
            (_, _, false) => single,
            (partition, ..) => Self { count, is_single: false, partition, is_sticky: false },
        }
    }
}

fn open_topic<'a>(
    client: &Arc<Client>,
    topics: &'a mut Vec<Option<Arc<TopicHandle>>>,
    topic: &Topic,
    config: &Config,
) -> Result<&'a Arc<TopicHandle>, ProduceError> {
    if topics.len() <= topic.slot {
        topics.resize(topic.slot + 1, None);
    }
    let entry = &mut topics[topic.slot];
    if entry.is_none() {
        *entry = TopicHandle::open(client, &topic.name, config.topics.compression_of(&topic.name)).map(Arc::new);
    }
    entry.as_ref().ok_or(ProduceError::Refused { reason: "INVALID_TOPIC_NAME" })
}
