//! Draining a topic in batches: every partition from its beginning, through one queue.
//!
//! Messages are counted and given back; their bytes are summed, not read. No group, no commit: those are not per message.

use std::{
    ptr,
    time::{Duration, Instant},
};

use rdkafka::bindings as rd;
use serde_json::json;

use crate::{
    Place,
    client::{Client, Options, name_of},
    cpu, us_each,
};

/// RD_KAFKA_OFFSET_BEGINNING.
const OFFSET_BEGINNING: i64 = -2;
const POLL_MS: i32 = 100;
/// Without a message for so long, the broker is not the limit but gone.
const SILENCE_MAX: Duration = Duration::from_secs(10);

/// What to drain.
#[derive(clap::Args, Debug)]
pub struct Plan {
    #[command(flatten)]
    place: Place,
    /// Most messages of one call.
    #[arg(long, default_value_t = 1_000)]
    batch: usize,
    /// Stop after so many; 0: at the end of every partition.
    #[arg(long, default_value_t = 0)]
    messages: u64,
}

#[derive(Default)]
struct Drained {
    messages: u64,
    bytes: u64,
    calls: u64,
    ends: i32,
}

pub fn run(plan: &Plan) -> Result<(serde_json::Value, bool), String> {
    let options = Options::new(
        &plan.place,
        &[
            // As the gateway: a full queue is looked at again after 5 ms, not after a second.
            ("fetch.queue.backoff.ms", &5),
            ("queued.min.messages", &100_000),
            ("fetch.message.max.bytes", &(1_024 * 1_024)),
            ("enable.partition.eof", &true),
            ("enable.auto.commit", &false),
            ("socket.nagle.disable", &true),
        ],
    )?;
    let client = Client::new(rd::rd_kafka_type_t::RD_KAFKA_CONSUMER, options, &plan.place.topic)?;
    let (begun, cpu_before) = (Instant::now(), cpu());
    // SAFETY: a live client; the queue is destroyed below.
    let queue = unsafe { rd::rd_kafka_queue_new(client.rk) };
    for partition in 0..client.partitions {
        // SAFETY: live topic and queue.
        let result = unsafe { rd::rd_kafka_consume_start_queue(client.topic, partition, OFFSET_BEGINNING, queue) };
        if result != 0 {
            // SAFETY: reads this thread's last error.
            return Err(name_of(unsafe { rd::rd_kafka_last_error() }));
        }
    }
    let (drained, last) = drain(plan, &client, queue)?;
    // That a topic ends is learnt half a second late, from a request without a message: not the time of any message.
    let (took, used) = (last.saturating_duration_since(begun), cpu().saturating_sub(cpu_before));
    for partition in 0..client.partitions {
        // SAFETY: started above.
        unsafe { rd::rd_kafka_consume_stop(client.topic, partition) };
    }
    // SAFETY: made above, not used again.
    unsafe { rd::rd_kafka_queue_destroy(queue) };
    Ok((drained.tell(plan, took, used), drained.messages > 0 && drained.messages >= plan.messages))
}

fn drain(plan: &Plan, client: &Client, queue: *mut rd::rd_kafka_queue_t) -> Result<(Drained, Instant), String> {
    let mut batch = vec![ptr::null_mut(); plan.batch.max(1)];
    let (mut drained, mut last) = (Drained::default(), Instant::now());
    while drained.ends < client.partitions && (plan.messages == 0 || drained.messages < plan.messages) {
        // SAFETY: a live queue; the array has the length given.
        let count = unsafe { rd::rd_kafka_consume_batch_queue(queue, POLL_MS, batch.as_mut_ptr(), batch.len()) };
        let taken = &batch[..usize::try_from(count).unwrap_or(0)];
        if taken.is_empty() {
            if last.elapsed() > SILENCE_MAX {
                return Err(format!("no message for {SILENCE_MAX:?} after {} messages", drained.messages));
            }
            continue;
        }
        drained.calls += 1;
        let before = drained.messages;
        for message in taken {
            // SAFETY: given to us by the call, destroyed once.
            let (code, length) = unsafe { ((**message).err, (**message).len) };
            // SAFETY: as above.
            unsafe { rd::rd_kafka_message_destroy(*message) };
            drained.take(code, length)?;
        }
        if drained.messages > before {
            last = Instant::now();
        }
    }
    Ok((drained, last))
}

impl Drained {
    fn take(&mut self, code: rd::rd_kafka_resp_err_t, length: usize) -> Result<(), String> {
        match code {
            rd::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR => {
                self.messages += 1;
                self.bytes += length as u64;
            }
            rd::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR__PARTITION_EOF => self.ends += 1,
            code => return Err(name_of(code)),
        }
        Ok(())
    }

    #[allow(clippy::cast_precision_loss)] // counts of one run
    fn tell(&self, plan: &Plan, took: Duration, used: Duration) -> serde_json::Value {
        json!({
            "work": "consume", "batch": plan.batch, "settings": plan.place.settings,
            "messages": self.messages, "bytes": self.bytes, "calls": self.calls, "seconds": took.as_secs_f64(),
            "per_s": self.messages as f64 / took.as_secs_f64(), "cpu_us": us_each(used, self.messages),
        })
    }
}
