//! librdkafka behind owning types. This folder is the only place of the gateway's Kafka side that is not safe Rust.
//!
//! `mod` clients, queues, events; `calls` what is asked of a client, `groups` of groups it is no member of; `message` messages and reports; `simple` reading without a group; `outbox` producing; `linger` how
//! librdkafka's threads wait.
//!
//! Invariants:
//! - A [`Client`] is destroyed in the offload pool, never on a core: `rd_kafka_destroy` joins threads. It goes when the last
//!   queue, topic handle or message that points into it is gone, because each of them keeps an `Arc` of it.
//! - A payload is lent to librdkafka without a copy (msgflags 0). [`Outbox`] owns it from the enqueue to the delivery report,
//!   and gives what is left to the client's destroyer, so no thread of librdkafka reads freed memory.
//! - Every call here either returns at once or says in its text that it blocks; those belong into the offload pool.
//!
//! Broker error codes are read as integers: bindgen made a Rust enum of them, and a newer broker's code would be undefined
//! behaviour. Facts named "(src)" were read in librdkafka 2.12.1. This folder knows no topics, no requests and no policy.
#![allow(unsafe_code)]

use std::{
    ffi::{CStr, CString, c_char, c_int},
    io,
    mem::{self, ManuallyDrop},
    os::fd::{AsRawFd, OwnedFd},
    ptr::{self, NonNull},
    sync::{Arc, OnceLock},
};

use bytes::Bytes;
use crossbeam::queue::SegQueue;
use rdkafka::bindings as rd;

use self::sticky::Sticky;
use crate::{limits, offload::Offload};

mod calls;
mod groups;
mod linger;
mod message;
mod outbox;
mod simple;
mod sticky;

pub use calls::{End, Entry, PartitionList};
pub use groups::{Described, DescribedMember};
pub use linger::Linger;
pub use message::{Fetched, Reported, Status};
pub use outbox::{Outbox, Ticket};
pub use simple::Reading;

unsafe extern "C" {
    /// Declared again with an integer: codes of newer brokers are not in the enum of the bindings.
    #[link_name = "rd_kafka_err2name"]
    fn err2name(err: c_int) -> *const c_char;
}

/// A librdkafka error code: negative are its own, positive the broker's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ErrorCode(pub i32);

impl From<rd::rd_kafka_resp_err_t> for ErrorCode {
    fn from(code: rd::rd_kafka_resp_err_t) -> Self {
        Self(code as i32)
    }
}

impl ErrorCode {
    pub fn is_ok(self) -> bool {
        self.0 == 0
    }

    pub fn is(self, code: rd::rd_kafka_resp_err_t) -> bool {
        self.0 == code as i32
    }

    pub fn is_one_of(self, codes: &[rd::rd_kafka_resp_err_t]) -> bool {
        codes.iter().any(|code| self.is(*code))
    }

    /// Kafka's name of it.
    pub fn name(self) -> &'static str {
        // SAFETY: takes any integer; gives a static string for a known code, else a thread-local buffer (src), which is
        // recognised by its "ERR_" and not returned.
        let name = unsafe { CStr::from_ptr(err2name(self.0)) };
        match name.to_str() {
            Ok(known) if !known.starts_with("ERR_") => known,
            _ => "UNKNOWN_ERROR_CODE",
        }
    }

    fn ok_or(self) -> Result<(), Self> {
        if self.is_ok() { Ok(()) } else { Err(self) }
    }
}

/// Reads an error field without believing that it holds one of the enum's values.
///
/// # Safety
/// `field` points into a live struct of librdkafka.
unsafe fn code_at(field: *const rd::rd_kafka_resp_err_t) -> ErrorCode {
    // SAFETY: the enum is a C int; the caller vouches for the pointer.
    ErrorCode(unsafe { field.cast::<c_int>().read() })
}

/// Text of a librdkafka error object; frees it. `None` when there is no error.
///
/// # Safety
/// `error` is null or owned by the caller.
unsafe fn take_error(error: *mut rd::rd_kafka_error_t) -> Option<String> {
    if error.is_null() {
        return None;
    }
    // SAFETY: not null, ours, and not used after the destroy.
    unsafe {
        let text = CStr::from_ptr(rd::rd_kafka_error_string(error)).to_string_lossy().into_owned();
        rd::rd_kafka_error_destroy(error);
        Some(text)
    }
}

/// Which kind of client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Producer,
    Consumer,
}

/// One librdkafka client. Shared by what points into it; its calls are thread-safe.
#[derive(Debug)]
pub struct Client {
    ptr: NonNull<rd::rd_kafka_t>,
    /// Where queues write one byte when they stop being empty. Closed only after the client is destroyed: its threads write.
    wake: ManuallyDrop<OwnedFd>,
    /// Payloads librdkafka may still read; freed after the destroy.
    lent: OnceLock<Vec<Bytes>>,
    /// Its threads read it.
    linger: ManuallyDrop<Arc<Linger>>,
    /// Its threads ask them, for each topic that was opened.
    choices: SegQueue<Arc<Sticky>>,
    offload: Offload,
}

// SAFETY: rd_kafka_t is thread-safe by librdkafka's contract (INTRODUCTION.md, "Threads and callbacks"); the callbacks set (`linger`)
// touch nothing but a variable of librdkafka's own thread.
unsafe impl Send for Client {}
// SAFETY: as above.
unsafe impl Sync for Client {}

impl Client {
    /// Makes a client, and the socket that becomes readable when one of its watched queues does. Blocks for about a millisecond.
    pub fn create(kind: Kind, options: &[(String, String)], offload: &Offload) -> Result<(Arc<Self>, OwnedFd), String> {
        let linger = Arc::new(Linger::default());
        let (hear, wake) = wake_pair().map_err(|e| format!("socketpair: {e}"))?;
        let mut text = [0 as c_char; 512];
        // SAFETY: conf is new and ours until rd_kafka_new takes it; text is writable for its whole length.
        let ptr = unsafe {
            let conf = rd::rd_kafka_conf_new();
            for (name, value) in options {
                if let Err(reason) = set_option(conf, name, value, &mut text) {
                    rd::rd_kafka_conf_destroy(conf);
                    return Err(reason);
                }
            }
            let events = rd::RD_KAFKA_EVENT_DR
                | rd::RD_KAFKA_EVENT_ERROR
                | rd::RD_KAFKA_EVENT_LOG
                | rd::RD_KAFKA_EVENT_REBALANCE
                | rd::RD_KAFKA_EVENT_OFFSET_COMMIT;
            rd::rd_kafka_conf_set_events(conf, events);
            linger.attach(conf);
            let kind = match kind {
                Kind::Producer => rd::rd_kafka_type_t::RD_KAFKA_PRODUCER,
                Kind::Consumer => rd::rd_kafka_type_t::RD_KAFKA_CONSUMER,
            };
            let ptr = rd::rd_kafka_new(kind, conf, text.as_mut_ptr(), text.len());
            if ptr.is_null() {
                rd::rd_kafka_conf_destroy(conf);
            }
            ptr
        };
        let Some(ptr) = NonNull::new(ptr) else {
            // A client that failed late may leave threads behind (src: rd_kafka_init_wait).
            mem::forget(linger);
            // SAFETY: librdkafka terminates what it writes there.
            return Err(unsafe { CStr::from_ptr(text.as_ptr()) }.to_string_lossy().into_owned());
        };
        let (wake, linger) = (ManuallyDrop::new(wake), ManuallyDrop::new(linger));
        let client =
            Self { ptr, wake, lent: OnceLock::new(), linger, choices: SegQueue::new(), offload: offload.clone() };
        // SAFETY: live client; null forwards the log queue to the main queue, so logs are read where the reports are.
        unsafe {
            rd::rd_kafka_set_log_queue(ptr.as_ptr(), ptr::null_mut());
            if kind == Kind::Consumer {
                rd::rd_kafka_poll_set_consumer(ptr.as_ptr());
            }
        }
        Ok((Arc::new(client), hear))
    }

    /// How long a producer's records linger.
    pub fn linger(&self) -> Arc<Linger> {
        Arc::clone(&self.linger)
    }

    fn raw(&self) -> *mut rd::rd_kafka_t {
        self.ptr.as_ptr()
    }

    /// Delivery reports, errors and logs of a producer.
    pub fn main_queue(self: &Arc<Self>) -> Option<Queue> {
        // SAFETY: live client; the queue reference is owned by `Queue`.
        Queue::own(self, unsafe { rd::rd_kafka_queue_get_main(self.raw()) })
    }

    /// Everything of a consumer that has no partition queue of its own.
    pub fn consumer_queue(self: &Arc<Self>) -> Option<Queue> {
        // SAFETY: as in `main_queue`; null when the client is no consumer.
        Queue::own(self, unsafe { rd::rd_kafka_queue_get_consumer(self.raw()) })
    }

    /// A partition's messages, split off the consumer queue. Before the assignment: librdkafka leaves a queue alone that the
    /// application forwarded (RD_KAFKA_Q_F_FWD_APP, src), so no message goes the other way.
    pub fn partition_queue(self: &Arc<Self>, topic: &CStr, partition: i32) -> Option<Queue> {
        // SAFETY: live client, terminated name; forwarding to null keeps the messages in this queue.
        unsafe {
            let ptr = rd::rd_kafka_queue_get_partition(self.raw(), topic.as_ptr(), partition);
            let queue = Queue::own(self, ptr)?;
            rd::rd_kafka_queue_forward(ptr, ptr::null_mut());
            Some(queue)
        }
    }

    /// The code of the fatal error, once there was one.
    pub fn fatal_error(&self) -> Option<ErrorCode> {
        // SAFETY: live client; a null buffer of length 0 is allowed.
        let code = ErrorCode::from(unsafe { rd::rd_kafka_fatal_error(self.raw(), ptr::null_mut(), 0) });
        (!code.is_ok()).then_some(code)
    }

    /// Raises a fatal error as the broker would (tests).
    pub fn raise_fatal_error(&self) {
        let code = rd::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER;
        // SAFETY: live client, static terminated text.
        unsafe { rd::rd_kafka_test_fatal_error(self.raw(), code, c"test".as_ptr()) };
    }

    /// Fails everything queued and in flight; the reports follow. Does not wait for them.
    pub fn purge(&self) {
        let flags = rd::RD_KAFKA_PURGE_F_QUEUE | rd::RD_KAFKA_PURGE_F_INFLIGHT | rd::RD_KAFKA_PURGE_F_NON_BLOCKING;
        // SAFETY: live client.
        unsafe { rd::rd_kafka_purge(self.raw(), flags) };
    }

    /// Wakes the brokers' threads, which send what has lingered for `linger.ms`. Does not wait: a flush without time (src).
    pub fn nudge(&self) {
        // SAFETY: live client.
        unsafe { rd::rd_kafka_flush(self.raw(), 0) };
    }

    /// Payloads that must outlive the client. Only the first call counts; there is one [`Outbox`] per client.
    fn lend(&self, payloads: Vec<Bytes>) {
        let first = self.lent.set(payloads).is_ok();
        debug_assert!(first, "one outbox per client");
    }
}

/// What a client leaves to its destroyer. Dropped without [`Remains::destroy`] it leaks all of it: threads may still use it.
struct Remains {
    ptr: NonNull<rd::rd_kafka_t>,
    wake: ManuallyDrop<OwnedFd>,
    lent: ManuallyDrop<Vec<Bytes>>,
    linger: ManuallyDrop<Arc<Linger>>,
    choices: ManuallyDrop<SegQueue<Arc<Sticky>>>,
}

// SAFETY: of the last owner, moved to one other thread.
unsafe impl Send for Remains {}

impl Remains {
    fn destroy(self) {
        // SAFETY: no queue, topic handle or message is left, each kept an Arc of the client. No consumer close here: a
        // consumer that should say good-bye was closed before, and one that cannot must not hang the pool.
        unsafe {
            let flags = c_int::try_from(rd::RD_KAFKA_DESTROY_F_NO_CONSUMER_CLOSE).unwrap_or(0);
            rd::rd_kafka_destroy_flags(self.ptr.as_ptr(), flags);
        }
        drop(ManuallyDrop::into_inner(self.wake));
        drop(ManuallyDrop::into_inner(self.lent));
        drop(ManuallyDrop::into_inner(self.linger));
        drop(ManuallyDrop::into_inner(self.choices));
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // SAFETY: taken once, in drop; they stay as they are until librdkafka's threads have ended.
        let (wake, linger) = unsafe { (ManuallyDrop::take(&mut self.wake), ManuallyDrop::take(&mut self.linger)) };
        let lent = self.lent.take().unwrap_or_default();
        let choices = mem::take(&mut self.choices);
        let remains = Remains {
            ptr: self.ptr,
            wake: ManuallyDrop::new(wake),
            lent: ManuallyDrop::new(lent),
            linger: ManuallyDrop::new(linger),
            choices: ManuallyDrop::new(choices),
        };
        if self.offload.spawn(move || remains.destroy()).is_err() {
            tracing::error!("a Kafka client was leaked instead of destroyed: the offload queue is full");
        }
    }
}

/// # Safety
/// `conf` is live and ours.
unsafe fn set_option(
    conf: *mut rd::rd_kafka_conf_t,
    name: &str,
    value: &str,
    text: &mut [c_char; 512],
) -> Result<(), String> {
    let nul = |_| format!("kafka option {name}: NUL in it");
    let (key, val) = (CString::new(name).map_err(nul)?, CString::new(value).map_err(nul)?);
    // SAFETY: terminated strings, a writable buffer with its length.
    let result = unsafe { rd::rd_kafka_conf_set(conf, key.as_ptr(), val.as_ptr(), text.as_mut_ptr(), text.len()) };
    if result == rd::rd_kafka_conf_res_t::RD_KAFKA_CONF_OK {
        return Ok(());
    }
    // SAFETY: librdkafka terminates what it writes there.
    Err(unsafe { CStr::from_ptr(text.as_ptr()) }.to_string_lossy().into_owned())
}

/// Reading end for the core, writing end for librdkafka. Only the writing end is non-blocking: a full socket means the core
/// has been told already, and librdkafka ignores the error (src).
fn wake_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let (hear, wake) = std::os::unix::net::UnixStream::pair()?;
    wake.set_nonblocking(true)?;
    Ok((hear.into(), wake.into()))
}

/// A queue of events or messages.
#[derive(Debug)]
pub struct Queue {
    ptr: NonNull<rd::rd_kafka_queue_t>,
    client: Arc<Client>,
}

// SAFETY: librdkafka's queues are locked inside; the handle has one owner.
unsafe impl Send for Queue {}

/// What came out of a queue.
#[derive(Debug)]
pub enum Event {
    Reports(Reports),
    /// `fatal` when the client can do no more.
    Error {
        code: ErrorCode,
        text: String,
        fatal: bool,
    },
    Assign(PartitionList),
    Revoke(PartitionList),
    /// Result of a commit: the whole, and per partition.
    Committed {
        code: ErrorCode,
        partitions: Option<PartitionList>,
    },
    Log {
        level: i32,
        text: String,
    },
    /// A message that came by the consumer queue: of a partition whose queue was not split off.
    Message(Box<Fetched>),
    Other,
}

impl Queue {
    fn own(client: &Arc<Client>, ptr: *mut rd::rd_kafka_queue_t) -> Option<Self> {
        NonNull::new(ptr).map(|ptr| Self { ptr, client: Arc::clone(client) })
    }

    /// A queue of our own, for one answer.
    fn temporary(client: &Arc<Client>) -> Option<Self> {
        // SAFETY: live client.
        Self::own(client, unsafe { rd::rd_kafka_queue_new(client.raw()) })
    }

    fn raw(&self) -> *mut rd::rd_kafka_queue_t {
        self.ptr.as_ptr()
    }

    /// From now on the client's socket gets a byte when something comes into the queue after it was last seen empty.
    pub fn watch(&self) {
        // SAFETY: live queue; the descriptor outlives the client; one byte is copied (src).
        unsafe {
            let byte = c"!".as_ptr().cast();
            rd::rd_kafka_queue_io_event_enable(self.raw(), self.client.wake.as_raw_fd(), byte, 1);
        }
    }

    /// The next event. Does not wait. On a consumer's queue this counts as the application's poll (src: it holds fetched
    /// messages, so `rd_kafka_app_polled`), which is what `max.poll.interval.ms` looks at.
    pub fn poll(&self) -> Option<Event> {
        self.poll_for(0)
    }

    /// Waits up to `timeout_ms` for the next event: blocks.
    fn poll_for(&self, timeout_ms: c_int) -> Option<Event> {
        // SAFETY: live queue; the event is owned by `RawEvent`.
        let event = RawEvent(NonNull::new(unsafe { rd::rd_kafka_queue_poll(self.raw(), timeout_ms) })?);
        Some(event.sort(&self.client))
    }

    /// Takes up to `count_max` messages. Does not wait. Fewer than asked means the queue was seen empty: a byte follows
    /// when more come.
    pub fn fetch(&self, count_max: usize, into: &mut Vec<Fetched>) -> usize {
        let mut found = [ptr::null_mut(); limits::LOOP_ITEMS_MAX];
        let room = found.len().min(count_max);
        // SAFETY: the array has room for what is asked; messages become ours.
        let count = unsafe { rd::rd_kafka_consume_batch_queue(self.raw(), 0, found.as_mut_ptr(), room) };
        let count = usize::try_from(count).unwrap_or(0);
        // SAFETY: the first `count` are live messages of this client that nobody else owns.
        into.extend(found[..count].iter().filter_map(|m| unsafe { Fetched::own(&self.client, *m) }));
        count
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // SAFETY: ours; watching ends first, because librdkafka keeps the queue as long as it needs it itself.
        unsafe {
            rd::rd_kafka_queue_io_event_enable(self.raw(), -1, ptr::null(), 0);
            rd::rd_kafka_queue_destroy(self.raw());
        }
    }
}

#[derive(Debug)]
struct RawEvent(NonNull<rd::rd_kafka_event_t>);

impl Drop for RawEvent {
    fn drop(&mut self) {
        // SAFETY: ours, destroyed once.
        unsafe { rd::rd_kafka_event_destroy(self.0.as_ptr()) };
    }
}

impl RawEvent {
    fn code(&self) -> ErrorCode {
        // SAFETY: live event. The enum's value passes through as the integer it is.
        ErrorCode::from(unsafe { rd::rd_kafka_event_error(self.0.as_ptr()) })
    }

    fn sort(self, client: &Arc<Client>) -> Event {
        let event = self.0.as_ptr();
        // SAFETY: live event; each accessor is called on the type it is for; lists are copied before the event goes.
        unsafe {
            match rd::rd_kafka_event_type(event) {
                rd::RD_KAFKA_EVENT_DR => Event::Reports(Reports(self)),
                rd::RD_KAFKA_EVENT_ERROR => {
                    let text = rd::rd_kafka_event_error_string(event);
                    Event::Error { code: self.code(), text: text_at(text), fatal: client.fatal_error().is_some() }
                }
                rd::RD_KAFKA_EVENT_REBALANCE => {
                    let Some(list) = PartitionList::copy(rd::rd_kafka_event_topic_partition_list(event)) else {
                        return Event::Other;
                    };
                    if self.code().is(rd::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS) {
                        Event::Assign(list)
                    } else {
                        Event::Revoke(list)
                    }
                }
                rd::RD_KAFKA_EVENT_OFFSET_COMMIT => {
                    let list = PartitionList::copy(rd::rd_kafka_event_topic_partition_list(event));
                    Event::Committed { code: self.code(), partitions: list }
                }
                rd::RD_KAFKA_EVENT_LOG => {
                    let (mut facility, mut text, mut level) = (ptr::null(), ptr::null(), 0);
                    rd::rd_kafka_event_log(event, &raw mut facility, &raw mut text, &raw mut level);
                    Event::Log { level, text: format!("{}: {}", text_at(facility), text_at(text)) }
                }
                rd::RD_KAFKA_EVENT_FETCH => {
                    Fetched::of_event(client, self).map_or(Event::Other, |message| Event::Message(Box::new(message)))
                }
                _ => Event::Other,
            }
        }
    }
}

/// # Safety
/// `text` is null or terminated and live.
unsafe fn text_at(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: by the caller.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

/// Delivery reports of one event.
#[derive(Debug)]
pub struct Reports(RawEvent);

impl Reports {
    /// Hands the next reports to `each`, at most [`limits::LOOP_ITEMS_MAX`]. Gives how many; 0 at the end.
    pub fn next_some(&mut self, mut each: impl FnMut(Reported)) -> usize {
        let mut found = [ptr::null(); limits::LOOP_ITEMS_MAX];
        // SAFETY: live event of type DR; the array has room; the messages live as long as the event.
        let count = unsafe { rd::rd_kafka_event_message_array(self.0.0.as_ptr(), found.as_mut_ptr(), found.len()) };
        for message in &found[..count] {
            // SAFETY: as above.
            each(unsafe { Reported::read(*message) });
        }
        count
    }
}

/// A topic as the producer knows it: the partitioner's state and a shortcut around the look-up by name.
#[derive(Debug)]
pub struct TopicHandle {
    ptr: NonNull<rd::rd_kafka_topic_t>,
    sticky: Arc<Sticky>,
    client: Arc<Client>,
}

impl TopicHandle {
    /// With a compression of its own, if one is given. `None` when librdkafka refuses the name. A client opens a topic once.
    pub fn open(client: &Arc<Client>, name: &str, compression: Option<&str>) -> Option<Self> {
        let name = CString::new(name).ok()?;
        let sticky = Arc::new(Sticky::default());
        // SAFETY: live client; the copy is ours until the call that makes the topic takes it, which it does when it succeeds; the
        // client keeps `sticky` until its threads have ended; terminated name.
        let ptr = unsafe {
            let options = rd::rd_kafka_default_topic_conf_dup(client.raw());
            sticky.attach(options);
            if let Some(codec) = compression {
                set_compression(options, codec);
            }
            let ptr = rd::rd_kafka_topic_new(client.raw(), name.as_ptr(), options);
            if ptr.is_null() {
                rd::rd_kafka_topic_conf_destroy(options);
            }
            NonNull::new(ptr)?
        };
        client.choices.push(Arc::clone(&sticky));
        Some(Self { ptr, sticky, client: Arc::clone(client) })
    }

    /// Records without a key that follow go elsewhere.
    pub fn forget_choice(&self) {
        self.sticky.forget();
    }
}

/// A codec that librdkafka was built without is said, and the client's remains.
///
/// # Safety
/// `options` is live and ours.
unsafe fn set_compression(options: *mut rd::rd_kafka_topic_conf_t, codec: &str) {
    let Ok(value) = CString::new(codec) else { return };
    let mut said: [c_char; 256] = [0; 256];
    let name = c"compression.codec".as_ptr();
    // SAFETY: by the caller; terminated texts and a buffer with its length.
    let result = unsafe { rd::rd_kafka_topic_conf_set(options, name, value.as_ptr(), said.as_mut_ptr(), said.len()) };
    if result != rd::rd_kafka_conf_res_t::RD_KAFKA_CONF_OK {
        tracing::error!(codec, "librdkafka does not take this compression for a topic");
    }
}

// SAFETY: rd_kafka_topic_t is counted and locked inside (src); its calls are thread-safe.
unsafe impl Send for TopicHandle {}
// SAFETY: as above.
unsafe impl Sync for TopicHandle {}

impl Drop for TopicHandle {
    fn drop(&mut self) {
        // SAFETY: ours, destroyed once.
        unsafe { rd::rd_kafka_topic_destroy(self.ptr.as_ptr()) };
    }
}
