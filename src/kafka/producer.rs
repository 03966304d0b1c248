//! Producing: one producer per core and ack level, made when first used.
//!
//! Invariants: a record is with librdkafka when `send` returns `Ok`, whatever becomes of the future; a topic's handle is looked
//! up by its slot, never by name; a producer with a fatal error takes no more records and is replaced, its reports are still
//! served. Per core. It decides nothing about requests: refuse, retry and hand off are the API's.

use std::{
    cell::{Cell, RefCell},
    os::fd::OwnedFd,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use glommio::Task;
use rdkafka::bindings::rd_kafka_resp_err_t as rd;

use super::{
    batching::Nudge,
    delivery::{Pending, Pipe, Report, Wait, refusal},
    native::{Client, ErrorCode, Kind, TopicHandle},
    options,
    reach::Reach,
    stats::ProducerStats,
};
use crate::{
    config::resolve::Config,
    offload::Offload,
    readiness::Socket,
    store::{Ack, ProduceError, Record, Stored, Topic},
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
            self.send(topic, record, Wait::Nobody, Instant::now())?;
            return Ok(Report::known(Stored { partition, offset: -1 }));
        }
        let now = Instant::now();
        let (pipe, ticket) = self.send(topic, record, Wait::Request(None), now)?;
        pipe.due.borrow_mut().push_back((now + self.config.publish.deadline, ticket));
        Ok(Report::waiting(pipe, ticket))
    }

    /// Hands a record over; its report is only counted.
    pub fn enqueue(self: &Rc<Self>, topic: &Topic, record: Record) -> Result<(), ProduceError> {
        self.send(topic, record, Wait::Nobody, Instant::now()).map(|_| ())
    }

    fn send(
        self: &Rc<Self>,
        topic: &Topic,
        record: Record,
        wait: Wait,
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
            outbox.send(handle, record, Pending { wait, is_overdue: false })
        };
        match sent {
            Ok(ticket) => {
                self.stats.produced.one();
                self.stats.produced_bytes.add(bytes as u64);
                pipe.nudge.sent(now);
                Ok((pipe, ticket))
            }
            Err(code) => Err(self.refuse(&pipe, topic, code)),
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
        let pipe = Pipe::new(client, nudge, Rc::clone(&self.stats), Rc::clone(&self.reach))?;
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

fn open_topic<'a>(
    client: &Arc<Client>,
    topics: &'a mut Vec<Option<Arc<TopicHandle>>>,
    topic: &Topic,
    config: &Config,
) -> Result<&'a TopicHandle, ProduceError> {
    if topics.len() <= topic.slot {
        topics.resize(topic.slot + 1, None);
    }
    let entry = &mut topics[topic.slot];
    if entry.is_none() {
        *entry = TopicHandle::open(client, &topic.name, config.topics.compression_of(&topic.name)).map(Arc::new);
    }
    entry.as_deref().ok_or(ProduceError::Refused { reason: "INVALID_TOPIC_NAME" })
}
