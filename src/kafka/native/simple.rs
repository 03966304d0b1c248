//! Reading without a group: librdkafka's simple consumer, which joins nothing and commits nothing.

use std::{ffi::c_int, ptr, sync::Arc};

use rdkafka::bindings as rd;

use super::{Client, ErrorCode, Queue, TopicHandle};
use crate::store::{Offset, Partition};

/// Partitions being read into one queue. Reading stops when it is dropped, which blocks shortly.
#[derive(Debug)]
pub struct Reading<'a> {
    topic: &'a TopicHandle,
    started: Vec<Partition>,
    pub queue: Queue,
}

impl<'a> Reading<'a> {
    /// Starts, on a consumer without a group. Does not wait: errors come by the queue.
    pub fn start(
        client: &Arc<Client>,
        topic: &'a TopicHandle,
        from: impl IntoIterator<Item = (Partition, Offset)>,
    ) -> Result<Self, ErrorCode> {
        assert!(Arc::ptr_eq(&topic.client, client), "a topic handle belongs to one client");
        let queue = Queue::temporary(client).ok_or(super::calls::INVALID_ARG)?;
        let mut reading = Self { topic, started: Vec::new(), queue };
        for (partition, offset) in from {
            // SAFETY: live topic and queue of one client.
            let failed = unsafe {
                rd::rd_kafka_consume_start_queue(topic.ptr.as_ptr(), partition, offset, reading.queue.raw()) != 0
            };
            if failed {
                // SAFETY: reads this thread's last error.
                return Err(ErrorCode::from(unsafe { rd::rd_kafka_last_error() }));
            }
            reading.started.push(partition);
        }
        Ok(reading)
    }
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        for partition in &self.started {
            // SAFETY: live topic; what was started is stopped once.
            unsafe { rd::rd_kafka_consume_stop(self.topic.ptr.as_ptr(), *partition) };
        }
    }
}

impl Queue {
    /// The next message, or an error in its place; waits up to `timeout_ms`: blocks.
    pub fn next_message(&self, timeout_ms: c_int) -> Option<super::Fetched> {
        let mut found = ptr::null_mut();
        // SAFETY: live queue, room for one message, which becomes ours.
        let count = unsafe { rd::rd_kafka_consume_batch_queue(self.raw(), timeout_ms, &raw mut found, 1) };
        // SAFETY: one live message of this client that nobody else owns, or null.
        if count == 1 { unsafe { super::Fetched::own(&self.client, found) } } else { None }
    }
}
