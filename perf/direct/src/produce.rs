//! Acknowledged publishing in a closed loop: a report sends the next message.
//!
//! Invariant: each slot has at most one message under way, so `--in-flight` is exact. The payload outlives the client.

use std::{
    cell::RefCell,
    ffi::c_void,
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use rdkafka::bindings as rd;
use serde_json::json;

use crate::{
    Place,
    client::{Client, Options, name_of},
    cpu, us_each,
};

/// Between two looks at the clock while no report comes.
const POLL_MS: i32 = 10;
/// For what is under way at the end.
const FLUSH_MS: i32 = 30_000;
/// RD_KAFKA_PARTITION_UA: the partitioner decides.
const PARTITION_UNASSIGNED: i32 = -1;
const LATENCY_MAX_NS: u64 = 60_000_000_000;
const DIGITS: u8 = 3;

/// What to publish, and how.
#[derive(clap::Args, Debug)]
pub struct Plan {
    #[command(flatten)]
    place: Place,
    /// Messages under way.
    #[arg(long, default_value_t = 64)]
    in_flight: usize,
    /// linger.ms, also fractions of it.
    #[arg(long, default_value_t = 0.1)]
    linger_ms: f64,
    /// acks: 1, 0 or all.
    #[arg(long, default_value = "1")]
    acks: String,
    /// Requests under way to one broker.
    #[arg(long, default_value_t = 5)]
    requests_in_flight: u32,
    /// Bytes of a message.
    #[arg(long, default_value_t = 1_024)]
    size: usize,
    /// Seconds that are not counted.
    #[arg(long, default_value_t = 1.0)]
    warmup_s: f64,
    /// Seconds that count.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// So many messages instead, without a warm-up; 0: by time.
    #[arg(long, default_value_t = 0)]
    messages: u64,
}

/// The loop's state; `report` meets it through the client's opaque pointer.
struct Loop {
    topic: *mut rd::rd_kafka_topic_t,
    payload: Vec<u8>,
    start: Instant,
    /// When each slot's message was sent, in nanoseconds since `start`.
    sent_ns: Vec<u64>,
    /// Messages that may still be sent.
    left: u64,
    latency: Histogram<u64>,
    acknowledged: u64,
    /// Acknowledged before what counts.
    forgotten: u64,
    failed: u64,
    first_error: Option<String>,
}

pub fn run(plan: &Plan) -> Result<(serde_json::Value, bool), String> {
    let state = RefCell::new(Loop::new(plan)?);
    let options = Options::new(
        &plan.place,
        &[
            ("linger.ms", &plan.linger_ms),
            ("acks", &plan.acks),
            ("max.in.flight.requests.per.connection", &plan.requests_in_flight),
            // As the gateway: batches as large as they come, one partition for as long as a batch.
            ("batch.num.messages", &10_000),
            ("sticky.partitioning.linger.ms", &(plan.linger_ms * 2.0).ceil().max(1.0)),
            ("queue.buffering.max.messages", &(plan.in_flight + 1)),
            ("queue.buffering.max.kbytes", &2_097_151),
            ("socket.nagle.disable", &true),
        ],
    )?;
    options.on_report(report, (&raw const state).cast_mut().cast());
    let client = Client::new(rd::rd_kafka_type_t::RD_KAFKA_PRODUCER, options, &plan.place.topic)?;
    state.borrow_mut().begin(client.topic, plan.in_flight);

    if plan.messages == 0 {
        poll_until(&client, Instant::now() + Duration::from_secs_f64(plan.warmup_s), || false);
        state.borrow_mut().forget();
    }
    let (begun, cpu_before) = (Instant::now(), cpu());
    let end = begun + Duration::from_secs_f64(if plan.messages == 0 { plan.seconds } else { 600.0 });
    poll_until(&client, end, || plan.messages > 0 && state.borrow().answers() >= plan.messages);
    let (took, used) = (begun.elapsed(), cpu().saturating_sub(cpu_before));
    let mut report = {
        let mut state = state.borrow_mut();
        state.left = 0;
        state.tell(plan, took, used)
    };
    // SAFETY: a live client; the state is not borrowed while reports come.
    unsafe { rd::rd_kafka_flush(client.rk, FLUSH_MS) };
    drop(client);
    // What was under way at the end does not count, unless it failed.
    let state = state.borrow();
    report["failed"] = json!(state.failed);
    report["first_error"] = json!(state.first_error);
    Ok((report, state.failed == 0 && state.acknowledged > 0))
}

fn poll_until(client: &Client, end: Instant, is_done: impl Fn() -> bool) {
    while Instant::now() < end && !is_done() {
        // SAFETY: a live client; the state is not borrowed while reports come.
        unsafe { rd::rd_kafka_poll(client.rk, POLL_MS) };
    }
}

/// A message was acknowledged, or failed.
///
/// # Safety
/// Called by librdkafka from `rd_kafka_poll` or `rd_kafka_flush`, with the `RefCell<Loop>` that `run` keeps.
unsafe extern "C" fn report(_: *mut rd::rd_kafka_t, message: *const rd::rd_kafka_message_t, opaque: *mut c_void) {
    // SAFETY: see above; the message lives until we return, and its own opaque is the slot's number.
    let (state, code, slot) =
        unsafe { (&*opaque.cast::<RefCell<Loop>>(), (*message).err, (*message)._private as usize) };
    state.borrow_mut().reported(slot, code);
}

impl Loop {
    fn new(plan: &Plan) -> Result<Self, String> {
        if plan.in_flight == 0 || plan.size == 0 {
            return Err("in-flight and size are 1 or more".to_owned());
        }
        Ok(Self {
            topic: std::ptr::null_mut(),
            payload: vec![b'x'; plan.size],
            start: Instant::now(),
            sent_ns: vec![0; plan.in_flight],
            left: if plan.messages == 0 { u64::MAX } else { plan.messages },
            latency: Histogram::new_with_bounds(1, LATENCY_MAX_NS, DIGITS)
                .expect("the bounds are those the crate takes"),
            acknowledged: 0,
            forgotten: 0,
            failed: 0,
            first_error: None,
        })
    }

    fn begin(&mut self, topic: *mut rd::rd_kafka_topic_t, in_flight: usize) {
        self.topic = topic;
        for slot in 0..in_flight {
            let now = self.now();
            self.send(slot, now);
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn reported(&mut self, slot: usize, code: rd::rd_kafka_resp_err_t) {
        let now = self.now();
        if code == rd::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
            self.acknowledged += 1;
            self.latency.saturating_record(now - self.sent_ns[slot]);
        } else {
            self.fail(code);
        }
        self.send(slot, now);
    }

    fn send(&mut self, slot: usize, now: u64) {
        if self.left == 0 {
            return;
        }
        self.left -= 1;
        self.sent_ns[slot] = now;
        // SAFETY: a live topic; the payload is not touched and outlives the client; no flags: no copy, no free.
        let result = unsafe {
            rd::rd_kafka_produce(
                self.topic,
                PARTITION_UNASSIGNED,
                0,
                self.payload.as_mut_ptr().cast(),
                self.payload.len(),
                std::ptr::null(),
                0,
                slot as *mut c_void,
            )
        };
        if result != 0 {
            // The slot stays empty from here on; the run has failed.
            // SAFETY: reads this thread's last error.
            self.fail(unsafe { rd::rd_kafka_last_error() });
        }
    }

    fn fail(&mut self, code: rd::rd_kafka_resp_err_t) {
        self.failed += 1;
        self.first_error.get_or_insert_with(|| name_of(code));
    }

    fn answers(&self) -> u64 {
        self.acknowledged + self.failed
    }

    /// What came during the warm-up does not count; failures do.
    fn forget(&mut self) {
        self.latency.reset();
        self.forgotten += std::mem::take(&mut self.acknowledged);
    }

    #[allow(clippy::cast_precision_loss)] // counts and nanoseconds of one run
    fn tell(&self, plan: &Plan, took: Duration, used: Duration) -> serde_json::Value {
        let at = |quantile| self.latency.value_at_quantile(quantile) as f64 / 1e6;
        json!({
            "work": "produce", "in_flight": plan.in_flight, "linger_ms": plan.linger_ms, "acks": plan.acks,
            "requests_in_flight": plan.requests_in_flight, "size": plan.size, "settings": plan.place.settings,
            "messages": self.acknowledged, "messages_in_all": self.acknowledged + self.forgotten,
            "seconds": took.as_secs_f64(), "per_s": self.acknowledged as f64 / took.as_secs_f64(),
            "p50_ms": at(0.5), "p90_ms": at(0.9), "p99_ms": at(0.99), "p999_ms": at(0.999),
            "max_ms": self.latency.max() as f64 / 1e6, "cpu_us": us_each(used, self.acknowledged),
        })
    }
}
