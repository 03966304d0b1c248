//! What is asked about groups without being a member. All of it blocks and belongs into the offload pool.
//!
//! librdkafka's admin interface has calls for all of this, and they are left alone where there is another way: they remember a group's
//! coordinator for as long as it is asked about, even when it is the coordinator no more (src: `rd_kafka_coord_cache_find` renews what it
//! finds, and nothing evicts it), and abort the process when a broker goes away at the wrong moment (seen, with 2.12.1).

use std::{
    ffi::{CString, c_int},
    ptr::{self, NonNull},
    slice,
    sync::Arc,
    time::Duration,
};

use rdkafka::bindings as rd;

use super::{
    Client, ErrorCode, Queue, RawEvent,
    calls::{INVALID_ARG, PartitionList, TIMED_OUT, ms},
    code_at, text_at,
};

/// Longer than anybody waits; the longest librdkafka takes.
const NEVER: Duration = Duration::from_hours(1);

/// What a broker or librdkafka said instead of an answer: code and text.
pub type Refusal = (ErrorCode, String);

/// Which admin call an answer is for.
type Call = rd::rd_kafka_admin_op_t;

impl Client {
    /// One admin call: `send` starts it with its options and the queue of the answer. It ends by itself after `timeout`, and is waited
    /// for as long as `wait`: blocks.
    pub(super) fn admin_call(
        self: &Arc<Self>,
        call: Call,
        timeout: Duration,
        wait: Duration,
        send: impl FnOnce(*const rd::rd_kafka_AdminOptions_t, *mut rd::rd_kafka_queue_t),
    ) -> Result<RawEvent, Refusal> {
        let queue = Queue::temporary(self).ok_or_else(|| fault("no queue"))?;
        let mut text = [0; 256];
        // SAFETY: live client and queue; the options are ours before and after the call, which copies them.
        let event = unsafe {
            let (start, length) = (text.as_mut_ptr(), text.len());
            let options = rd::rd_kafka_AdminOptions_new(self.raw(), call);
            rd::rd_kafka_AdminOptions_set_request_timeout(options, ms(timeout), start, length);
            if matches!(call, Call::RD_KAFKA_ADMIN_OP_CREATETOPICS) {
                rd::rd_kafka_AdminOptions_set_operation_timeout(options, ms(timeout), start, length);
            }
            send(options, queue.raw());
            rd::rd_kafka_AdminOptions_destroy(options);
            rd::rd_kafka_queue_poll(queue.raw(), ms(wait))
        };
        let event = RawEvent(NonNull::new(event).ok_or((TIMED_OUT, String::new()))?);
        if event.code().is_ok() {
            return Ok(event);
        }
        // SAFETY: live event.
        let text = unsafe { text_at(rd::rd_kafka_event_error_string(event.0.as_ptr())) };
        Err((event.code(), text))
    }

    /// Groups as their coordinators describe them: the one named, or all. Every broker is asked which groups it has, so a coordinator that
    /// moved does not matter; besides, whether a broker did not answer. Blocks.
    pub fn describe_groups(
        &self,
        only: Option<&str>,
        timeout: Duration,
    ) -> Result<(Vec<Described>, Option<ErrorCode>), ErrorCode> {
        let only = only.map(CString::new).transpose().map_err(|_| INVALID_ARG)?;
        let name = only.as_ref().map_or(ptr::null(), |name| name.as_ptr());
        let mut found: *const rd::rd_kafka_group_list = ptr::null();
        // Without knowing the brokers it would wait for somebody else to ask for them (src).
        self.probe(timeout)?;
        // SAFETY: live client, terminated name or null; the answer is read, then destroyed; counts describe their arrays.
        unsafe {
            let code = ErrorCode::from(rd::rd_kafka_list_groups(self.raw(), name, &raw mut found, ms(timeout)));
            if found.is_null() {
                return Err(if code.is_ok() { INVALID_ARG } else { code });
            }
            let groups = all((*found).groups, (*found).group_cnt).iter().map(|group| described(group)).collect();
            rd::rd_kafka_group_list_destroy(found);
            Ok((groups, (!code.is_ok()).then_some(code)))
        }
    }

    /// Forgets what the group has committed for `partitions`. Gives what became of each.
    ///
    /// The only call to a coordinator by way of librdkafka's admin interface, which aborts the process when a connection ends in the
    /// wrong moment (src; confluentinc/librdkafka 4605 and 5397): a request that timed out while it waited for its coordinator is
    /// finished twice. So it is made by a client that is destroyed after it, and must not time out by itself before that.
    pub fn delete_committed(
        self: &Arc<Self>,
        group_id: &str,
        partitions: &PartitionList,
        timeout: Duration,
    ) -> Result<PartitionList, Refusal> {
        let group_id = CString::new(group_id).map_err(|_| fault("NUL in the group"))?;
        let call = Call::RD_KAFKA_ADMIN_OP_DELETECONSUMERGROUPOFFSETS;
        let event = self.admin_call(call, NEVER, timeout, |options, queue| {
            // SAFETY: live client, options, queue and list; the request is ours before and after the call, which copies it.
            unsafe {
                let mut ask = rd::rd_kafka_DeleteConsumerGroupOffsets_new(group_id.as_ptr(), partitions.raw());
                rd::rd_kafka_DeleteConsumerGroupOffsets(self.raw(), &raw mut ask, 1, options, queue);
                rd::rd_kafka_DeleteConsumerGroupOffsets_destroy(ask);
            }
        })?;
        // SAFETY: an answer to this call, as the queue carries nothing else; the array has `count` elements, which live as long as
        // the event; the list is copied.
        unsafe {
            let mut count = 0;
            let result = rd::rd_kafka_event_DeleteConsumerGroupOffsets_result(event.0.as_ptr());
            let groups = rd::rd_kafka_DeleteConsumerGroupOffsets_result_groups(result, &raw mut count);
            let first = if count > 0 { *groups } else { ptr::null() };
            if first.is_null() {
                return Err(fault("empty answer"));
            }
            refused(rd::rd_kafka_group_result_error(first))?;
            PartitionList::copy(rd::rd_kafka_group_result_partitions(first)).ok_or_else(|| fault("empty answer"))
        }
    }
}

// === reading answers ===

/// A group as its coordinator describes it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Described {
    pub group_id: String,
    pub code: ErrorCode,
    /// As Kafka names it, `Stable` for one.
    pub state: String,
    pub members: Vec<DescribedMember>,
}

/// One member, with its assignment as Kafka's clients encode it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DescribedMember {
    pub client_id: String,
    pub member_id: String,
    pub host: String,
    pub assignment: Vec<u8>,
}

pub(super) fn fault(text: &str) -> Refusal {
    (INVALID_ARG, text.to_owned())
}

/// # Safety
/// `error` is null or live.
unsafe fn refused(error: *const rd::rd_kafka_error_t) -> Result<(), Refusal> {
    if error.is_null() {
        return Ok(());
    }
    // SAFETY: by the caller.
    let (code, text) = unsafe { (rd::rd_kafka_error_code(error), text_at(rd::rd_kafka_error_string(error))) };
    ErrorCode::from(code).ok_or().map_err(|code| (code, text))
}

/// # Safety
/// `start` is null, or `count` live elements begin there.
unsafe fn all<'a, T>(start: *const T, count: c_int) -> &'a [T] {
    let count = usize::try_from(count).unwrap_or(0);
    if start.is_null() || count == 0 {
        return &[];
    }
    // SAFETY: by the caller.
    unsafe { slice::from_raw_parts(start, count) }
}

/// # Safety
/// `group` is live.
unsafe fn described(group: *const rd::rd_kafka_group_info) -> Described {
    // SAFETY: by the caller; counts describe their arrays, texts are terminated, the code is read as an integer.
    unsafe {
        let members = all((*group).members, (*group).member_cnt).iter().map(|member| DescribedMember {
            client_id: text_at(member.client_id),
            member_id: text_at(member.member_id),
            host: text_at(member.client_host),
            assignment: all(member.member_assignment.cast::<u8>(), member.member_assignment_size).to_vec(),
        });
        Described {
            group_id: text_at((*group).group),
            code: code_at(&raw const (*group).err),
            state: text_at((*group).state),
            members: members.collect(),
        }
    }
}
