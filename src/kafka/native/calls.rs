//! What is asked of a client: offsets, assignments, topics. Calls that wait for a broker or for librdkafka's main thread say
//! "blocks" and belong into the offload pool.

use std::{
    ffi::{CStr, CString, c_int},
    ptr::{self, NonNull},
    slice,
    sync::Arc,
    time::{Duration, Instant},
};

use rdkafka::bindings as rd;

use super::{
    Client, ErrorCode, Event, Queue, code_at,
    groups::{Refusal, fault},
    take_error, text_at,
};
use crate::store::{Offset, Partition, TopicMeta};

/// Partitions with an offset and a result each. One topic, because a group reads one.
#[derive(Debug)]
pub struct PartitionList(NonNull<rd::rd_kafka_topic_partition_list_t>);

// SAFETY: plain data with one owner.
unsafe impl Send for PartitionList {}

/// One line of a [`PartitionList`].
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    pub partition: Partition,
    pub offset: Offset,
    pub code: ErrorCode,
}

impl Drop for PartitionList {
    fn drop(&mut self) {
        // SAFETY: ours, destroyed once.
        unsafe { rd::rd_kafka_topic_partition_list_destroy(self.0.as_ptr()) };
    }
}

impl PartitionList {
    pub fn new(topic: &CStr, partitions: impl IntoIterator<Item = (Partition, Offset)>) -> Self {
        // SAFETY: a new list is never null (librdkafka aborts without memory); the added element stays valid until the next add.
        unsafe {
            let list = rd::rd_kafka_topic_partition_list_new(4);
            for (partition, offset) in partitions {
                (*rd::rd_kafka_topic_partition_list_add(list, topic.as_ptr(), partition)).offset = offset;
            }
            Self(NonNull::new_unchecked(list))
        }
    }

    /// # Safety
    /// `list` is null or live.
    pub(super) unsafe fn copy(list: *const rd::rd_kafka_topic_partition_list_t) -> Option<Self> {
        if list.is_null() {
            return None;
        }
        // SAFETY: by the caller; the copy is ours.
        NonNull::new(unsafe { rd::rd_kafka_topic_partition_list_copy(list) }).map(Self)
    }

    pub fn entries(&self) -> impl Iterator<Item = Entry> {
        // SAFETY: the list is live; its codes are read as integers.
        self.elements().map(|e| unsafe {
            Entry { partition: (*e).partition, offset: (*e).offset, code: code_at(&raw const (*e).err) }
        })
    }

    /// The same, with `note` to be committed beside each offset (Kafka's commit metadata, an arbitrary text).
    pub fn with_note(self, note: &str) -> Self {
        // SAFETY: a new list, so there is nothing to free; it frees what librdkafka's own allocator gave (which is never null).
        self.elements().for_each(|e| unsafe {
            let copy = rd::rd_kafka_mem_malloc(ptr::null_mut(), note.len().max(1));
            ptr::copy_nonoverlapping(note.as_ptr(), copy.cast(), note.len());
            (*e).metadata = copy;
            (*e).metadata_size = note.len();
        });
        self
    }

    /// What was committed beside the offsets; empty where there is none.
    pub fn notes(&self) -> impl Iterator<Item = &[u8]> {
        // SAFETY: librdkafka keeps size and pointer together; the list outlives what is borrowed.
        self.elements().map(|e| unsafe {
            if (*e).metadata.is_null() { &[] } else { slice::from_raw_parts((*e).metadata.cast(), (*e).metadata_size) }
        })
    }

    /// The first partition that failed decides.
    pub fn all_done(&self) -> Result<(), ErrorCode> {
        self.entries().find_map(|entry| entry.code.ok_or().err()).map_or(Ok(()), Err)
    }

    pub fn partitions(&self) -> Vec<Partition> {
        self.entries().map(|e| e.partition).collect()
    }

    fn set_offsets(&mut self, offset: Offset) {
        // SAFETY: live list, exclusively ours.
        self.elements().for_each(|e| unsafe { (*e).offset = offset });
    }

    fn elements(&self) -> impl Iterator<Item = *mut rd::rd_kafka_topic_partition_t> {
        // SAFETY: `elems` has `cnt` elements.
        let (start, count) = unsafe { ((*self.0.as_ptr()).elems, (*self.0.as_ptr()).cnt) };
        (0..usize::try_from(count).unwrap_or(0)).map(move |i| start.wrapping_add(i))
    }

    pub(super) fn raw(&self) -> *mut rd::rd_kafka_topic_partition_list_t {
        self.0.as_ptr()
    }
}

/// Where a look-up of offsets by time looks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    Oldest,
    Latest,
}

/// What [`Client::topics`] tells of one topic.
#[derive(Clone, Debug)]
pub struct TopicInfo {
    pub meta: TopicMeta,
    pub code: ErrorCode,
}

pub(super) fn ms(timeout: Duration) -> c_int {
    c_int::try_from(timeout.as_millis()).unwrap_or(c_int::MAX)
}

// === topics ===

impl Client {
    /// Every topic of the cluster, or the one named. Blocks. Refreshes what the client itself knows of them.
    pub fn topics(&self, only: Option<&super::TopicHandle>, timeout: Duration) -> Result<Vec<TopicInfo>, ErrorCode> {
        self.ask_any_broker(timeout, |timeout| self.topics_once(only, timeout))
    }

    fn topics_once(&self, only: Option<&super::TopicHandle>, timeout: Duration) -> Result<Vec<TopicInfo>, ErrorCode> {
        let mut found: *const rd::rd_kafka_metadata = ptr::null();
        let only_ptr = only.map_or(ptr::null_mut(), |handle| handle.ptr.as_ptr());
        // SAFETY: live client; the answer is read, then destroyed; counts describe their arrays.
        unsafe {
            let all = c_int::from(only.is_none());
            ErrorCode::from(rd::rd_kafka_metadata(self.raw(), all, only_ptr, &raw mut found, ms(timeout))).ok_or()?;
            let count = usize::try_from((*found).topic_cnt).unwrap_or(0);
            let topics = (0..count).map(|i| (*found).topics.add(i));
            let infos = topics.map(|topic| TopicInfo {
                meta: TopicMeta { name: text_at((*topic).topic), partitions: (*topic).partition_cnt },
                code: code_at(&raw const (*topic).err),
            });
            let infos = infos.collect();
            rd::rd_kafka_metadata_destroy(found);
            Ok(infos)
        }
    }

    /// Asks any broker for anything. Blocks. What it is good for is that somebody answers.
    pub fn probe(&self, timeout: Duration) -> Result<(), ErrorCode> {
        self.ask_any_broker(timeout, |timeout| self.probe_once(timeout))
    }

    fn probe_once(&self, timeout: Duration) -> Result<(), ErrorCode> {
        let mut found: *const rd::rd_kafka_metadata = ptr::null();
        // SAFETY: live client; the answer is destroyed unread.
        unsafe {
            ErrorCode::from(rd::rd_kafka_metadata(self.raw(), 0, ptr::null_mut(), &raw mut found, ms(timeout)))
                .ok_or()?;
            rd::rd_kafka_metadata_destroy(found);
        }
        Ok(())
    }

    /// Asks what any broker can answer. librdkafka asks the one it last used (src: `rd_kafka_broker_weight_usable`), and a broker that is
    /// silent stays the last used: alone, it would fail every question after all of the time. So the first tries are short, and in
    /// between a question goes to all of them, so that the next try is left to chance. The last is long, for a cluster that is slow.
    fn ask_any_broker<T>(
        &self,
        timeout: Duration,
        ask: impl Fn(Duration) -> Result<T, ErrorCode>,
    ) -> Result<T, ErrorCode> {
        const SHORT: [u32; 4] = [10, 10, 10, 5];
        const ALL: u32 = 50;
        let by = Instant::now() + timeout;
        for part in SHORT {
            match ask(timeout / part) {
                // Also when none was connected in that time.
                Err(TIMED_OUT | TRANSPORT) => self.ask_all_brokers(timeout / ALL),
                outcome => return outcome,
            }
        }
        ask(by.saturating_duration_since(Instant::now()))
    }

    /// Asks every broker something short, whatever they answer.
    fn ask_all_brokers(&self, timeout: Duration) {
        let mut found: *const rd::rd_kafka_group_list = ptr::null();
        // SAFETY: live client, terminated name of a group that there is not; an answer is destroyed unread.
        unsafe {
            rd::rd_kafka_list_groups(self.raw(), c"-".as_ptr(), &raw mut found, ms(timeout));
            if !found.is_null() {
                rd::rd_kafka_group_list_destroy(found);
            }
        }
    }

    /// CreateTopics for one topic. Blocks. Gives the broker's code and text when it refuses.
    pub fn create_topic(
        self: &Arc<Self>,
        name: &str,
        partitions: i32,
        replicas: i32,
        timeout: Duration,
    ) -> Result<(), Refusal> {
        let name = CString::new(name).map_err(|_| fault("NUL in the name"))?;
        let mut text = [0; 256];
        // SAFETY: a terminated name, and a writable text with its length.
        let topic =
            unsafe { rd::rd_kafka_NewTopic_new(name.as_ptr(), partitions, replicas, text.as_mut_ptr(), text.len()) };
        let Some(topic) = NonNull::new(topic) else {
            // SAFETY: librdkafka terminates what it writes there.
            return Err((INVALID_ARG, unsafe { text_at(text.as_ptr()) }));
        };
        let call = rd::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_CREATETOPICS;
        let event = self.admin_call(call, timeout, timeout + Duration::from_secs(1), |options, queue| {
            let mut topic = topic.as_ptr();
            // SAFETY: live client, options and queue; the request object is ours, copied by the call, and destroyed once.
            unsafe {
                rd::rd_kafka_CreateTopics(self.raw(), &raw mut topic, 1, options, queue);
                rd::rd_kafka_NewTopic_destroy(topic);
            }
        })?;
        // SAFETY: a CreateTopics result, as the queue carries nothing else; the array has `count` elements.
        unsafe {
            let mut count = 0;
            let result = rd::rd_kafka_event_CreateTopics_result(event.0.as_ptr());
            let topics = rd::rd_kafka_CreateTopics_result_topics(result, &raw mut count);
            let Some(topic) = slice::from_raw_parts(topics, count).first() else {
                return Err(fault("empty answer"));
            };
            let text = text_at(rd::rd_kafka_topic_result_error_string(*topic));
            ErrorCode::from(rd::rd_kafka_topic_result_error(*topic)).ok_or().map_err(|code| (code, text))
        }
    }

    /// Where the first message is that is not older than `time_ms`, of each partition, into the list; negative where there is none.
    /// Blocks, as `offsets_at`.
    pub fn offsets_at_time(&self, time_ms: i64, list: &mut PartitionList, timeout: Duration) -> Result<(), ErrorCode> {
        // Negative times are the protocol's words for other places.
        list.set_offsets(time_ms.max(0));
        // SAFETY: live client and list.
        ErrorCode::from(unsafe { rd::rd_kafka_offsets_for_times(self.raw(), list.raw(), ms(timeout)) }).ok_or()
    }

    /// Oldest or latest offset of each partition, into the list. Blocks: one request per leader, however many partitions.
    pub fn offsets_at(&self, end: End, list: &mut PartitionList, timeout: Duration) -> Result<(), ErrorCode> {
        // ListOffsets takes a time; -2 and -1 are the protocol's words for the two ends (src: the offset field is sent as is).
        list.set_offsets(match end {
            End::Oldest => i64::from(rd::RD_KAFKA_OFFSET_BEGINNING),
            End::Latest => i64::from(rd::RD_KAFKA_OFFSET_END),
        });
        // SAFETY: live client and list.
        ErrorCode::from(unsafe { rd::rd_kafka_offsets_for_times(self.raw(), list.raw(), ms(timeout)) }).ok_or()
    }
}

pub(super) const INVALID_ARG: ErrorCode = ErrorCode(rd::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR__INVALID_ARG as i32);
const TRANSPORT: ErrorCode = ErrorCode(rd::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR__TRANSPORT as i32);
pub(super) const TIMED_OUT: ErrorCode = ErrorCode(rd::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR__TIMED_OUT as i32);

// === groups ===

impl Client {
    /// Joins the group by subscribing to one topic. Blocks shortly (a call to librdkafka's main thread).
    pub fn subscribe(&self, topic: &CStr) -> Result<(), ErrorCode> {
        let list = PartitionList::new(topic, [(-1, 0)]);
        // SAFETY: live client and list, which is copied.
        ErrorCode::from(unsafe { rd::rd_kafka_subscribe(self.raw(), list.raw()) }).ok_or()
    }

    /// Committed offsets, into the list; negative where there is none. Blocks.
    pub fn committed(&self, list: &mut PartitionList, timeout: Duration) -> Result<(), ErrorCode> {
        // SAFETY: live client and list.
        ErrorCode::from(unsafe { rd::rd_kafka_committed(self.raw(), list.raw(), ms(timeout)) }).ok_or()
    }

    /// Commits and waits for the coordinator's answer, at most `timeout`: blocks.
    pub fn commit_and_wait(self: &Arc<Self>, list: &PartitionList, timeout: Duration) -> Result<(), ErrorCode> {
        let answer = Queue::temporary(self).ok_or(INVALID_ARG)?;
        self.commit_to(&answer, list)?;
        match answer.poll_for(ms(timeout)) {
            Some(Event::Committed { code, partitions }) => {
                code.ok_or()?;
                partitions.as_ref().map_or(Ok(()), PartitionList::all_done)
            }
            _ => Err(TIMED_OUT),
        }
    }

    /// Commits; the result comes by `queue` as [`Event::Committed`]. Does not wait.
    pub fn commit_to(&self, queue: &Queue, list: &PartitionList) -> Result<(), ErrorCode> {
        // SAFETY: live client, list (copied) and queue (kept by librdkafka until the answer); no callback.
        let code = unsafe { rd::rd_kafka_commit_queue(self.raw(), list.raw(), queue.raw(), None, ptr::null_mut()) };
        ErrorCode::from(code).ok_or()
    }

    /// Answers an assignment. Blocks shortly.
    pub fn assign(&self, list: &PartitionList) -> Result<(), String> {
        // SAFETY: live client and list, which is copied.
        unsafe {
            if self.is_cooperative() {
                return take_error(rd::rd_kafka_incremental_assign(self.raw(), list.raw())).map_or(Ok(()), Err);
            }
            let code = ErrorCode::from(rd::rd_kafka_assign(self.raw(), list.raw()));
            code.ok_or().map_err(|code| code.name().to_owned())
        }
    }

    /// Answers a revocation. Blocks shortly.
    pub fn unassign(&self, list: &PartitionList) -> Result<(), String> {
        // SAFETY: as `assign`; null gives up everything, which is what the eager protocol asks for.
        unsafe {
            if self.is_cooperative() {
                return take_error(rd::rd_kafka_incremental_unassign(self.raw(), list.raw())).map_or(Ok(()), Err);
            }
            let code = ErrorCode::from(rd::rd_kafka_assign(self.raw(), ptr::null()));
            code.ok_or().map_err(|code| code.name().to_owned())
        }
    }

    /// Goes on reading the partitions of the list from its offsets; what became of each is in the list. From here on no message from
    /// before comes out of a queue (src: the version barrier). Blocks shortly. An error means that it may yet happen, later.
    pub fn seek(&self, list: &mut PartitionList, timeout: Duration) -> Result<(), String> {
        // SAFETY: live client and list.
        unsafe { take_error(rd::rd_kafka_seek_partitions(self.raw(), list.raw(), ms(timeout))) }.map_or(Ok(()), Err)
    }

    /// Which protocol the members agreed on. Blocks shortly.
    fn is_cooperative(&self) -> bool {
        // SAFETY: live client; static text.
        unsafe { CStr::from_ptr(rd::rd_kafka_rebalance_protocol(self.raw())) == c"COOPERATIVE" }
    }

    /// Whether the partitions being revoked belong to others already: then nothing may be committed.
    pub fn is_assignment_lost(&self) -> bool {
        // SAFETY: live client; an atomic read.
        unsafe { rd::rd_kafka_assignment_lost(self.raw()) != 0 }
    }

    /// Oldest offset and one past the newest message, each if known, as the last fetch answer said. Does not wait.
    pub fn ends_seen(&self, topic: &CStr, partition: Partition) -> (Option<Offset>, Option<Offset>) {
        let (mut low, mut high) = (-1, -1);
        // SAFETY: live client, terminated name, two writable numbers.
        let code = unsafe {
            let (low, high) = (&raw mut low, &raw mut high);
            rd::rd_kafka_get_watermark_offsets(self.raw(), topic.as_ptr(), partition, low, high)
        };
        let known = |offset: Offset| (ErrorCode::from(code).is_ok() && offset >= 0).then_some(offset);
        (known(low), known(high))
    }

    /// Starts leaving the group. What is left to answer comes by `queue`; [`Client::is_closed`] tells when it is over.
    pub fn close_to(&self, queue: &Queue) -> Result<(), String> {
        // SAFETY: live client and queue.
        unsafe { take_error(rd::rd_kafka_consumer_close_queue(self.raw(), queue.raw())) }.map_or(Ok(()), Err)
    }

    pub fn is_closed(&self) -> bool {
        // SAFETY: live client.
        unsafe { rd::rd_kafka_consumer_closed(self.raw()) != 0 }
    }
}
