//! Messages on their way out, and delivery reports.
//!
//! A fetched message is handed on without a copy: it keeps its whole fetch response alive, and its client. It may be dropped
//! on any thread: `rd_kafka_message_destroy` only lowers atomic counts of the response buffer, the partition and the topic
//! (src: `rd_kafka_op_destroy`, `rd_kafka_msg_destroy` with no accounting flag on fetched messages).

use std::{ffi::CStr, ptr, ptr::NonNull, slice, sync::Arc};

use bytes::Bytes;
use rdkafka::bindings as rd;

use super::{Client, ErrorCode, RawEvent, code_at};
use crate::store::{Header, Message};

/// A message, or an error that came in a message's place ([`Fetched::error`]).
#[derive(Debug)]
pub struct Fetched {
    ptr: NonNull<rd::rd_kafka_message_t>,
    /// The event that owns the message, when it came in one.
    event: Option<RawEvent>,
    /// Keeps the client until its last message is gone.
    _client: Arc<Client>,
}

// SAFETY: one owner; see the module text for the destroy, the rest only reads.
unsafe impl Send for Fetched {}
// SAFETY: shared use only reads, except `headers`, which needs `&mut`.
unsafe impl Sync for Fetched {}

impl Fetched {
    /// # Safety
    /// `ptr` is null or a message of `client` that the caller owns.
    pub(super) unsafe fn own(client: &Arc<Client>, ptr: *mut rd::rd_kafka_message_t) -> Option<Self> {
        NonNull::new(ptr).map(|ptr| Self { ptr, event: None, _client: Arc::clone(client) })
    }

    /// The message of a fetch event.
    pub(super) fn of_event(client: &Arc<Client>, event: RawEvent) -> Option<Self> {
        // SAFETY: live event; the message lives as long as the event, which is kept beside it.
        let ptr = unsafe { rd::rd_kafka_event_message_next(event.0.as_ptr()) };
        NonNull::new(ptr.cast_mut()).map(|ptr| Self { ptr, event: Some(event), _client: Arc::clone(client) })
    }

    fn message(&self) -> &rd::rd_kafka_message_t {
        // SAFETY: live until drop. The only field that is an enum, `err`, is read by `code_at` before anything else matters.
        unsafe { self.ptr.as_ref() }
    }

    /// What is wrong, when this is no message.
    pub fn error(&self) -> Option<ErrorCode> {
        // SAFETY: live struct.
        let code = unsafe { code_at(&raw const (*self.ptr.as_ptr()).err) };
        (!code.is_ok()).then_some(code)
    }

    pub fn partition(&self) -> i32 {
        self.message().partition
    }

    pub fn offset(&self) -> i64 {
        self.message().offset
    }

    /// Unix ms, -1 when the broker keeps none.
    pub fn timestamp_ms(&self) -> i64 {
        let mut kind = rd::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
        // SAFETY: live message, writable kind.
        unsafe { rd::rd_kafka_message_timestamp(self.ptr.as_ptr(), &raw mut kind) }
    }

    /// Empty for a tombstone as well.
    pub fn value(&self) -> &[u8] {
        let message = self.message();
        // SAFETY: payload and len describe memory of this message.
        unsafe { bytes_at(message.payload.cast(), message.len) }.unwrap_or_default()
    }

    /// The value is null.
    pub fn is_tombstone(&self) -> bool {
        self.message().payload.is_null()
    }

    pub fn key(&self) -> Option<&[u8]> {
        let message = self.message();
        // SAFETY: as `value`.
        unsafe { bytes_at(message.key.cast(), message.key_len) }
    }

    /// Copied, because they are few and small; librdkafka parses them at the first call.
    pub fn headers(&mut self) -> Vec<Header> {
        let mut list = ptr::null_mut();
        let mut headers = Vec::new();
        // SAFETY: live message; the list and what it names live as long as the message.
        unsafe {
            let code = rd::rd_kafka_message_headers(self.ptr.as_ptr(), &raw mut list);
            if !ErrorCode::from(code).is_ok() {
                return headers;
            }
            let (mut name, mut value, mut size) = (ptr::null(), ptr::null(), 0);
            for index in 0.. {
                let code = rd::rd_kafka_header_get_all(list, index, &raw mut name, &raw mut value, &raw mut size);
                if !ErrorCode::from(code).is_ok() {
                    break;
                }
                let name = Bytes::copy_from_slice(CStr::from_ptr(name).to_bytes());
                headers.push((name, bytes_at(value.cast(), size).map(Bytes::copy_from_slice)));
            }
        }
        headers
    }
}

impl Fetched {
    /// As the store has it. A value up to `copy_bytes_max` is copied; a larger one keeps its whole fetch response, and its client.
    pub fn into_message(mut self, copy_bytes_max: usize) -> Message {
        let headers = self.headers();
        let (partition, offset, timestamp_ms) = (self.partition(), self.offset(), self.timestamp_ms());
        let key = self.key().map(Bytes::copy_from_slice);
        let is_tombstone = self.is_tombstone();
        let value = if self.value().len() <= copy_bytes_max {
            Bytes::copy_from_slice(self.value())
        } else {
            Bytes::from_owner(self)
        };
        let headers = (!headers.is_empty()).then(|| headers.into());
        Message { partition, offset, timestamp_ms, key, value, is_tombstone, headers }
    }
}

impl AsRef<[u8]> for Fetched {
    fn as_ref(&self) -> &[u8] {
        self.value()
    }
}

impl Drop for Fetched {
    fn drop(&mut self) {
        if self.event.is_none() {
            // SAFETY: ours, destroyed once; thread-safe (module text).
            unsafe { rd::rd_kafka_message_destroy(self.ptr.as_ptr()) };
        }
    }
}

/// # Safety
/// `start` is null, or `length` bytes from it are readable for `'a`.
unsafe fn bytes_at<'a>(start: *const u8, length: usize) -> Option<&'a [u8]> {
    // SAFETY: by the caller.
    (!start.is_null()).then(|| unsafe { slice::from_raw_parts(start, length) })
}

/// What librdkafka knows of a record's whereabouts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Status {
    NotPersisted,
    PossiblyPersisted,
    Persisted,
}

/// One delivery report.
#[derive(Clone, Copy, Debug)]
pub struct Reported {
    pub code: ErrorCode,
    pub status: Status,
    pub partition: i32,
    pub offset: i64,
    /// What was given at the enqueue.
    pub opaque: u64,
}

impl Reported {
    /// # Safety
    /// `message` is a live message of a delivery report.
    pub(super) unsafe fn read(message: *const rd::rd_kafka_message_t) -> Self {
        // SAFETY: by the caller.
        unsafe {
            let status = match rd::rd_kafka_message_status(message) {
                rd::rd_kafka_msg_status_t::RD_KAFKA_MSG_STATUS_NOT_PERSISTED => Status::NotPersisted,
                rd::rd_kafka_msg_status_t::RD_KAFKA_MSG_STATUS_POSSIBLY_PERSISTED => Status::PossiblyPersisted,
                rd::rd_kafka_msg_status_t::RD_KAFKA_MSG_STATUS_PERSISTED => Status::Persisted,
            };
            Self {
                code: code_at(&raw const (*message).err),
                status,
                partition: (*message).partition,
                offset: (*message).offset,
                opaque: (*message)._private as u64,
            }
        }
    }
}
