//! Messages of a batch on their way: handed to the store in the order of the request, their reports awaited in that order.
//!
//! ```text
//!   message --> record --> [ collected ] --produce_all--> [ under way ] --first to last--> results
//! ```
//!
//! Invariants: one result for each message, in the order they were given here; what is not taken fails alone; nothing here waits for a
//! report while there is room for more; what was collected is handed over before anything is waited for but room. No task and no timer of
//! its own.

use std::{collections::VecDeque, future::poll_fn, rc::Rc};

use super::{
    super::{
        context::{Context, DataPlane},
        publish,
        reply::{Problem, produce_failed},
    },
    parse::{Item, Parsed},
};
use crate::{
    limits,
    store::{Ack, Line, Partition, ProduceError, Record, Store, Stored, Topic},
};

/// What became of one message.
pub type Outcome = Result<Stored, Box<Problem>>;

/// Where a message went whose report nobody awaits.
const QUEUED: Stored = Stored { partition: -1, offset: -1 };

/// A record that was collected, and whose report is to come.
#[derive(Debug)]
struct UnderWay {
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
    /// Not handed over yet: the last of those under way.
    collected: VecDeque<Record>,
    under_way: VecDeque<UnderWay>,
    line: Rc<Line>,
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
        Self {
            ctx,
            data,
            topic,
            common,
            ack,
            is_queued,
            collected: VecDeque::new(),
            under_way: VecDeque::new(),
            line: Rc::default(),
            bytes_under_way: 0,
            results: Vec::new(),
            stored: 0,
            stored_bytes: 0,
        }
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

    /// Takes a message, to be handed over with others.
    pub async fn send(&mut self, parsed: Parsed) {
        let index = self.results.len();
        let outcome = parsed.map_err(Box::new).and_then(|item| self.collect(item, index));
        self.results.push(outcome);
        if index % limits::LOOP_ITEMS_MAX == limits::LOOP_ITEMS_MAX - 1 {
            self.hand_over().await;
            glommio::executor().yield_now().await;
        }
    }

    fn collect(&mut self, item: Item, index: usize) -> Outcome {
        let record = item.over(self.common, self.partitions())?;
        let (bytes, is_chosen_by_store) = (record.value.len(), record.partition.is_none());
        let held_bytes = record.bytes();
        if self.is_queued {
            let queued = self.data.backend.enqueue(&self.topic, record, self.ack);
            queued.map_err(|error| Box::new(self.failed(error, is_chosen_by_store)))?;
            self.count(bytes);
            return Ok(QUEUED);
        }
        self.collected.push_back(record);
        self.under_way.push_back(UnderWay { index, bytes, held_bytes, is_chosen_by_store });
        self.bytes_under_way += held_bytes;
        // Until its report is there.
        Ok(QUEUED)
    }

    /// Hands over what was collected, as there is room for it in the store.
    async fn hand_over(&mut self) {
        while !self.collected.is_empty() {
            let is_alone = self.under_way.len() == self.collected.len();
            // Refused for want of room, a message would be overtaken by those after it.
            if is_alone || self.data.backend.has_room(self.ack) {
                let handed_over = self.data.backend.produce_all(&self.topic, &mut self.collected, self.ack, &self.line);
                let Err(error) = handed_over else { return };
                if self.under_way.len() == self.collected.len() {
                    // No report of ours will make room.
                    self.collected.drain(..).for_each(|_| self.line.append_settled(Err(error.clone())));
                    return;
                }
            }
            self.report().await;
        }
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
        self.hand_over().await;
        while self.bytes_under_way > bytes_max {
            self.report().await;
        }
    }

    /// Waits for all reports.
    pub async fn finish(&mut self) {
        self.hand_over().await;
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

    /// Waits for the oldest report, of a record that was handed over.
    async fn report(&mut self) {
        // The store bounds the wait for each by itself, from when it was handed over; that the look-up of the topic took its time before
        // counts against none of them.
        let outcome = poll_fn(|cx| self.line.poll_take(cx)).await;
        let Some(UnderWay { index, bytes, held_bytes, is_chosen_by_store }) = self.under_way.pop_front() else {
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

impl Drop for Sending<'_> {
    fn drop(&mut self) {
        self.line.close();
    }
}
