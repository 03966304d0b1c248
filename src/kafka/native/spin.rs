//! Keeps librdkafka's broker threads from spinning while a partition may not send.
//!
//! ```text
//!   broker thread --allow_wakeup_at?--> __wrap (here) --> librdkafka's own: "the batch is ready, wake me now"
//!        \-- may send: sends, sleeps            \-- "now" becomes "in PAUSE at the latest"
//!         \- may not: asks again at once, poll(2) with no time, until an answer comes
//! ```
//!
//! An idempotent producer (ack=all) sends nothing more for a partition with five records in flight, and all that time the thread
//! is told to wake now, because the next batch is past its linger: 165 calls of poll(2) a record, a core for each broker, at the
//! cost of the brokers beside it (`perf/results`, spin). There is no option against it. An answer, and a record for another
//! partition, wake the thread whatever its sleep, so the pause delays nothing (src: rd_kafka_broker_producer_serve).
//!
//! The linker puts [`__wrap_rd_kafka_msgq_allow_wakeup_at`] in front of the function (`build.rs`, `--wrap`); only arguments are
//! passed on, no struct of librdkafka's is read. In a librdkafka other than the one this was read in it only passes on.

use std::ffi::{c_int, c_void};

use rdkafka::bindings as rd;

/// librdkafka 2.12.1, in which the function and its caller were read.
const READ_IN: c_int = 0x020c_01ff;

/// The least that librdkafka sleeps, which counts whole milliseconds.
const PAUSE_US: i64 = 1_000;

unsafe extern "C" {
    #[link_name = "__real_rd_kafka_msgq_allow_wakeup_at"]
    fn real(
        queue: *mut c_void,
        sending: *const c_void,
        next_wakeup: *mut i64,
        now: i64,
        linger_us: i64,
        batch_messages: i32,
        batch_bytes: i64,
    ) -> c_int;
}

/// See the module text. Called by librdkafka's threads, with a partition's lock held or its queue their own.
///
/// # Safety
/// As librdkafka's own: `next_wakeup` is null or the calling thread's.
#[unsafe(no_mangle)]
unsafe extern "C" fn __wrap_rd_kafka_msgq_allow_wakeup_at(
    queue: *mut c_void,
    sending: *const c_void,
    next_wakeup: *mut i64,
    now: i64,
    linger_us: i64,
    batch_messages: i32,
    batch_bytes: i64,
) -> c_int {
    // SAFETY: null or the caller's own.
    let wanted = unsafe { next_wakeup.as_ref().copied() };
    // SAFETY: the caller's arguments as they are.
    let is_ready = unsafe { real(queue, sending, next_wakeup, now, linger_us, batch_messages, batch_bytes) };
    // SAFETY: as above.
    if let (Some(wanted), Some(given)) = (wanted, unsafe { next_wakeup.as_mut() })
        && is_ready != 0
        && is_known()
    {
        *given = wanted.min(now + PAUSE_US);
    }
    is_ready
}

fn is_known() -> bool {
    // SAFETY: gives a constant.
    unsafe { rd::rd_kafka_version() == READ_IN }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn librdkafka_is_the_one_that_was_read() {
        assert!(is_known(), "read rd_kafka_msgq_allow_wakeup_at and its callers again, then change READ_IN");
    }
}
