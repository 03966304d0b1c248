//! Messages of a batch on their way: handed to the store in the order of the request, their reports awaited in that order.
//!
//! ```text
//!   message --> record --produce--> [ under way: report, report, .. ] --first to last--> results
//! ```
//!
//! Invariants: one result for each message, in the order they were given here; what is not taken fails alone; nothing here waits for a
//! report while there is room for more. No task and no timer of its own: a report that is there costs a look at it.

use std::{collections::VecDeque, rc::Rc};

use super::{
    super::{
        backend::Report,
        context::{Context, DataPlane},
        publish,
        reply::{Problem, produce_failed},
    },
    parse::{Item, Parsed},
};
use crate::{
    limits,
    store::{Ack, Partition, ProduceError, Record, Store, Stored, Topic},
};

/// What became of one message.
pub type Outcome = Result<Stored, Box<Problem>>;

/// Where a message went whose report nobody awaits.
const QUEUED: Stored = Stored { partition: -1, offset: -1 };

/// A record whose report is to come.
#[derive(Debug)]
struct UnderWay {
    report: Report,
    /// Of its result.
    index: usize,
    /// Of its value.
    bytes: usize,
    /// All that it holds.
    held_bytes: usize,
    is_chosen_by_store: bool,
}

/// See the module text.
#[derive(Debug)]
pub struct Sending<'a> {
    ctx: &'a Rc<Context>,
    data: &'a DataPlane,
    topic: Rc<Topic>,
    /// What the request says of all its messages.
    common: &'a Record,
    ack: Ack,
    is_queued: bool,
    under_way: VecDeque<UnderWay>,
    bytes_under_way: usize,
    pub results: Vec<Outcome>,
    pub stored: usize,
    stored_bytes: usize,
}

impl<'a> Sending<'a> {
    pub fn new(
        ctx: &'a Rc<Context>,
        data: &'a DataPlane,
        topic: Rc<Topic>,
        common: &'a Record,
        (ack, is_queued): (Ack, bool),
    ) -> Self {
        let (under_way, results) = Default::default();
        let (bytes_under_way, stored, stored_bytes) = Default::default();
        Self { ctx, data, topic, common, ack, is_queued, under_way, bytes_under_way, results, stored, stored_bytes }
    }

    /// Makes room for as many messages as there are.
    pub fn expect(&mut self, messages: usize) {
        self.results.reserve_exact(messages);
        if !self.is_queued {
            self.under_way.reserve_exact(messages);
        }
    }

    /// Partitions the topic has.
    pub fn partitions(&self) -> Partition {
        self.topic.partitions.get()
    }

    /// Hands a message over, once the store has room for it.
    pub async fn send(&mut self, parsed: Parsed) {
        // Refused for want of room, it would be overtaken by those after it.
        while !self.data.backend.has_room(self.ack) && !self.under_way.is_empty() {
            self.report().await;
        }
        let index = self.results.len();
        let outcome = parsed.map_err(Box::new).and_then(|item| self.hand_over(item, index));
        self.results.push(outcome);
        if index % limits::LOOP_ITEMS_MAX == limits::LOOP_ITEMS_MAX - 1 {
            glommio::executor().yield_now().await;
        }
    }

    fn hand_over(&mut self, item: Item, index: usize) -> Outcome {
        let record = item.over(self.common, self.partitions())?;
        let (bytes, is_chosen_by_store) = (record.value.len(), record.partition.is_none());
        let held_bytes = record.bytes();
        if self.is_queued {
            let queued = self.data.backend.enqueue(&self.topic, record, self.ack);
            queued.map_err(|error| Box::new(self.failed(error, is_chosen_by_store)))?;
            self.count(bytes);
            return Ok(QUEUED);
        }
        let produced = self.data.backend.produce(&self.topic, record, self.ack);
        let report = produced.map_err(|error| Box::new(self.failed(error, is_chosen_by_store)))?;
        self.under_way.push_back(UnderWay { report, index, bytes, held_bytes, is_chosen_by_store });
        self.bytes_under_way += held_bytes;
        // Until its report is there.
        Ok(QUEUED)
    }

    fn failed(&self, error: ProduceError, is_chosen_by_store: bool) -> Problem {
        match error {
            error @ (ProduceError::UnknownTopic | ProduceError::UnknownPartition) => {
                publish::failed(self.ctx, self.data, &self.topic, error, is_chosen_by_store)
            }
            error => produce_failed(&error),
        }
    }

    /// Waits until no more is under way than may be while more is read.
    pub async fn drain_to(&mut self, bytes_max: usize) {
        while self.bytes_under_way > bytes_max {
            self.report().await;
        }
    }

    /// Waits for all reports.
    pub async fn finish(&mut self) {
        let mut count = 0;
        while !self.under_way.is_empty() {
            self.report().await;
            count += 1;
            if count % limits::LOOP_ITEMS_MAX == 0 {
                glommio::executor().yield_now().await;
            }
        }
        let metrics = &self.ctx.metrics.cells;
        metrics.pub_messages.add(self.stored as u64);
        metrics.pub_bytes.add(self.stored_bytes as u64);
        self.topic.usage.published.add(self.stored as u64, self.stored_bytes as u64);
    }

    /// Waits for the oldest report.
    async fn report(&mut self) {
        // It stays in its place while it is waited for: this may be given up. The store bounds the wait for each by itself, from when
        // it was handed over; that the look-up of the topic took its time before counts against none of them.
        let Some(first) = self.under_way.front_mut() else { return };
        let outcome = (&mut first.report).await;
        let Some(UnderWay { index, bytes, held_bytes, is_chosen_by_store, .. }) = self.under_way.pop_front() else {
            return;
        };
        self.bytes_under_way -= held_bytes;
        self.results[index] = match outcome {
            Ok(stored) => {
                self.count(bytes);
                Ok(stored)
            }
            Err(error) => Err(Box::new(self.failed(error, is_chosen_by_store))),
        };
    }

    fn count(&mut self, bytes: usize) {
        self.stored += 1;
        self.stored_bytes += bytes;
    }
}
