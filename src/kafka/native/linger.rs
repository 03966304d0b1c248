//! Two mends of how librdkafka's broker threads wait: the core says how long records linger, and no thread spins while a partition may
//! not send.
//!
//! ```text
//!   broker thread --allow_wakeup_at?--> __wrap (here) --> librdkafka's own, with the core's linger: "the batch is ready, wake me now"
//!        \-- may send: sends, sleeps            \-- "now" becomes "in PAUSE at the latest"
//!         \- may not: asks again at once, poll(2) with no time, until an answer comes
//! ```
//!
//! `linger.ms` is fixed when a client is made, and no one value serves a lone record and many connections (`kafka/batching.rs`). An
//! idempotent producer (ack=all) sends nothing more for a partition with five records in flight, and all that time the thread is told
//! to wake now, because the next batch is past its linger: 165 calls of poll(2) a record, a core for each broker (`perf/results`,
//! compare). There is no option against either. An answer, and the first record of another partition, wake the thread whatever its sleep
//! (src: rd_kafka_broker_producer_serve); a record that the spin would have sent the moment it had lingered waits for the core's nudge,
//! as with ack=local.
//!
//! The linker puts [`__wrap_rd_kafka_msgq_allow_wakeup_at`] in front of the function (`build.rs`, `--wrap`); arguments are passed on, no
//! struct of librdkafka's is read. In a librdkafka other than the one this was read in it only passes on. A thread knows whose it is
//! from an interceptor, which librdkafka calls when the thread starts.

use std::{
    cell::Cell,
    ffi::{c_char, c_int, c_void},
    ptr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::Duration,
};

use rdkafka::bindings as rd;

/// librdkafka 2.12.1, in which the function and its callers were read.
const READ_IN: c_int = 0x020c_01ff;

/// librdkafka's rd_bool_t (src: rdtypes.h).
type RdBool = u8;

/// The least that librdkafka sleeps, which counts whole milliseconds.
const PAUSE_US: i64 = 1_000;

/// What librdkafka passes as linger while it flushes.
const FLUSHING_US: i64 = 1;

thread_local! {
    /// Of the client whose thread this is; outlives the thread, see [`Linger::attach`].
    static OF_CLIENT: Cell<*const Linger> = const { Cell::new(ptr::null()) };
}

/// How long records of one client linger. Written by the core, read by librdkafka's threads when they look for what to send.
#[derive(Debug)]
pub struct Linger {
    /// Below 0: as `linger.ms` says.
    us: AtomicI64,
    /// A thread of the client has found this, in a librdkafka that is known.
    is_obeyed: AtomicBool,
}

impl Default for Linger {
    fn default() -> Self {
        Self { us: AtomicI64::new(-1), is_obeyed: AtomicBool::new(false) }
    }
}

impl Linger {
    /// Whether [`Linger::set`] has an effect; else `linger.ms` holds.
    pub fn is_obeyed(&self) -> bool {
        self.is_obeyed.load(Ordering::Relaxed)
    }

    pub(in crate::kafka) fn obey(&self) {
        self.is_obeyed.store(true, Ordering::Relaxed);
    }

    /// From here on, for records that wait already too; unless `linger.ms` is 0.
    pub fn set(&self, linger: Duration) {
        self.us.store(i64::try_from(linger.as_micros()).unwrap_or(i64::MAX), Ordering::Relaxed);
    }

    /// Has the client's threads obey this.
    ///
    /// # Safety
    /// `conf` is live and the caller's; whoever makes a client of it keeps `self` until that client is destroyed.
    pub(super) unsafe fn attach(self: &Arc<Self>, conf: *mut rd::rd_kafka_conf_t) {
        let this = Arc::as_ptr(self).cast_mut().cast();
        // SAFETY: live conf, static terminated name. It fails only for a name that is there already.
        unsafe { rd::rd_kafka_conf_interceptor_add_on_new(conf, NAME.as_ptr(), Some(client_made), this) };
    }
}

const NAME: &std::ffi::CStr = c"kateway-linger";

unsafe extern "C" fn client_made(
    client: *mut rd::rd_kafka_t,
    _conf: *const rd::rd_kafka_conf_t,
    this: *mut c_void,
    _text: *mut c_char,
    _text_bytes: usize,
) -> rd::rd_kafka_resp_err_t {
    // SAFETY: the client that is being made, before it has threads; `this` as given to `attach`.
    unsafe { rd::rd_kafka_interceptor_add_on_thread_start(client, NAME.as_ptr(), Some(thread_started), this) }
}

unsafe extern "C" fn thread_started(
    _client: *mut rd::rd_kafka_t,
    _kind: rd::rd_kafka_thread_type_t,
    _name: *const c_char,
    this: *mut c_void,
) -> rd::rd_kafka_resp_err_t {
    let this: *const Linger = this.cast_const().cast();
    OF_CLIENT.set(this);
    // SAFETY: as given to `attach`; kept until the client's threads have ended.
    if let Some(this) = unsafe { this.as_ref() }
        && is_known()
    {
        this.obey();
    }
    rd::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR
}

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
    ) -> RdBool;
}

/// See the module text. Called by librdkafka's broker threads.
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
) -> RdBool {
    // SAFETY: null, or kept by the client, which ends its threads before it lets go of it.
    let chosen = unsafe { OF_CLIENT.get().as_ref() };
    let chosen_us = chosen.map(|chosen| chosen.us.load(Ordering::Relaxed)).filter(|us| *us >= 0);
    let linger_us = match chosen_us {
        Some(chosen_us) if linger_us > FLUSHING_US && is_known() => chosen_us,
        _ => linger_us,
    };
    // SAFETY: null or the caller's own.
    let wanted = unsafe { next_wakeup.as_ref().copied() };
    // SAFETY: the caller's arguments, but for the time.
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
