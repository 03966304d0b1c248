//! Producing: the records librdkafka holds, and whatever the caller keeps beside each.
//!
//! ```text
//!   send --> [ slot: payload | kept ] --> report: payload freed, kept stays --> release: slot free
//! ```
//!
//! Invariants: a payload lives from the enqueue to its report, or to the end of the client; a slot is free again only after its
//! report, so a report never meets another record's slot (checked by generation as well). Per core.

use std::{ffi::c_void, mem, ptr, sync::Arc};

use bytes::Bytes;
use rdkafka::bindings as rd;
use slab::Slab;

use super::{Client, ErrorCode, Reported, TopicHandle};
use crate::store::{Header, Partition, Record};

/// Names a record in an [`Outbox`]; void once its slot is released.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ticket {
    index: u32,
    generation: u32,
}

impl Ticket {
    fn opaque(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.index)
    }

    fn of(opaque: u64) -> Self {
        let low = opaque & u64::from(u32::MAX);
        Self { index: u32::try_from(low).unwrap_or(0), generation: u32::try_from(opaque >> 32).unwrap_or(0) }
    }
}

#[derive(Debug)]
struct Slot<T> {
    payload: Bytes,
    /// Until the report librdkafka may read the payload.
    is_lent: bool,
    /// Payload, key and headers, for the sums.
    bytes: u32,
    generation: u32,
    kept: T,
}

/// See the module text.
#[derive(Debug)]
pub struct Outbox<T> {
    client: Arc<Client>,
    slots: Slab<Slot<T>>,
    generation: u32,
    lent: u64,
    lent_bytes: u64,
}

impl<T> Outbox<T> {
    /// The client's only outbox.
    pub fn new(client: Arc<Client>) -> Self {
        Self { client, slots: Slab::new(), generation: 0, lent: 0, lent_bytes: 0 }
    }

    /// Hands a record to librdkafka. Does not wait.
    pub fn send(&mut self, topic: &TopicHandle, record: Record, kept: T) -> Result<Ticket, ErrorCode> {
        assert!(Arc::ptr_eq(&topic.client, &self.client), "a topic handle belongs to one client");
        self.generation = self.generation.wrapping_add(1).max(1);
        let length = record.bytes();
        let Record { key, value, is_tombstone, headers, partition } = record;
        let value = if is_tombstone { Bytes::new() } else { value };
        let slot = Slot {
            payload: value,
            is_lent: true,
            bytes: u32::try_from(length).unwrap_or(u32::MAX),
            generation: self.generation,
            kept,
        };
        let entry = self.slots.vacant_entry();
        let index = u32::try_from(entry.key()).map_err(|_| QUEUE_FULL)?;
        let ticket = Ticket { index, generation: self.generation };
        let slot = entry.insert(slot);
        let payload = (!is_tombstone).then_some(&slot.payload);
        let lent = Lent { payload, key: key.as_deref(), partition, opaque: ticket.opaque() };
        // SAFETY: the slot keeps the payload until the report or hands it to the client's destroyer (Drop below).
        let taken =
            unsafe { if headers.is_empty() { lent.produce(topic) } else { lent.produce_with(topic, &headers) } };
        match taken {
            Ok(()) => {
                self.lent += 1;
                self.lent_bytes += u64::from(slot.bytes);
                Ok(ticket)
            }
            Err(code) => {
                self.slots.remove(index as usize);
                Err(code)
            }
        }
    }

    /// Ends the lending of one payload. Gives what is kept beside it.
    pub fn settle(&mut self, report: &Reported) -> Option<(Ticket, &mut T)> {
        let ticket = Ticket::of(report.opaque);
        let slot = self.slots.get_mut(ticket.index as usize)?;
        if slot.generation != ticket.generation || !slot.is_lent {
            return None;
        }
        slot.is_lent = false;
        slot.payload = Bytes::new();
        self.lent -= 1;
        self.lent_bytes -= u64::from(slot.bytes);
        Some((ticket, &mut slot.kept))
    }

    pub fn get_mut(&mut self, ticket: Ticket) -> Option<&mut T> {
        let slot = self.slots.get_mut(ticket.index as usize)?;
        (slot.generation == ticket.generation).then_some(&mut slot.kept)
    }

    /// Frees the slot, unless its payload is still lent.
    pub fn release(&mut self, ticket: Ticket) {
        let free =
            self.slots.get(ticket.index as usize).is_some_and(|s| s.generation == ticket.generation && !s.is_lent);
        if free {
            self.slots.remove(ticket.index as usize);
        }
    }

    /// Records without a report, and their bytes.
    pub fn lent(&self) -> (u64, u64) {
        (self.lent, self.lent_bytes)
    }
}

impl<T> Drop for Outbox<T> {
    fn drop(&mut self) {
        let lent = self.slots.iter_mut().filter(|(_, slot)| slot.is_lent);
        self.client.lend(lent.map(|(_, slot)| mem::take(&mut slot.payload)).collect());
    }
}

const QUEUE_FULL: ErrorCode = ErrorCode(rd::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR__QUEUE_FULL as i32);

/// RD_KAFKA_PARTITION_UA, a macro with a cast the bindings do not carry: the partitioner decides.
const PARTITION_UNASSIGNED: i32 = -1;

/// One record as librdkafka's calls want it.
struct Lent<'a> {
    /// `None` for a tombstone.
    payload: Option<&'a Bytes>,
    key: Option<&'a [u8]>,
    partition: Option<Partition>,
    opaque: u64,
}

impl Lent<'_> {
    fn partition(&self) -> i32 {
        self.partition.unwrap_or(PARTITION_UNASSIGNED)
    }

    fn key(&self) -> (*const c_void, usize) {
        self.key.map_or((ptr::null(), 0), |key| (key.as_ptr().cast(), key.len()))
    }

    /// Null says tombstone; of an empty value librdkafka keeps that it is none (src).
    fn payload(&self) -> (*mut c_void, usize) {
        self.payload.map_or((ptr::null_mut(), 0), |payload| (payload.as_ptr().cast_mut().cast(), payload.len()))
    }

    /// The short way, without headers. The key is copied by librdkafka (src), the payload is not.
    ///
    /// # Safety
    /// The payload lives until the report for `opaque`, or until the client is destroyed.
    unsafe fn produce(&self, topic: &TopicHandle) -> Result<(), ErrorCode> {
        let (key, key_length) = self.key();
        let (payload, length) = self.payload();
        // SAFETY: live topic, readable key and payload; msgflags 0: no copy, no free.
        let result = unsafe {
            rd::rd_kafka_produce(
                topic.ptr.as_ptr(),
                self.partition(),
                0,
                payload,
                length,
                key,
                key_length,
                self.opaque as *mut c_void,
            )
        };
        if result == 0 {
            return Ok(());
        }
        // SAFETY: reads this thread's last error.
        Err(ErrorCode::from(unsafe { rd::rd_kafka_last_error() }))
    }

    /// With headers.
    ///
    /// # Safety
    /// As [`Lent::produce`].
    unsafe fn produce_with(&self, topic: &TopicHandle, headers: &[Header]) -> Result<(), ErrorCode> {
        use rd::rd_kafka_vtype_t as tag;
        let (key, key_length) = self.key();
        let (payload, length) = self.payload();
        // SAFETY: live topic and client; every union field is the one its tag names; the header list is ours until the call
        // takes it, which it does only when it succeeds.
        unsafe {
            let list = header_list(headers);
            let mut vus: [rd::rd_kafka_vu_t; 7] = mem::zeroed();
            vus[0].vtype = tag::RD_KAFKA_VTYPE_RKT;
            vus[0].u.rkt = topic.ptr.as_ptr();
            vus[1].vtype = tag::RD_KAFKA_VTYPE_PARTITION;
            vus[1].u.i32_ = self.partition();
            vus[2].vtype = tag::RD_KAFKA_VTYPE_MSGFLAGS;
            vus[2].u.i = 0;
            vus[3].vtype = tag::RD_KAFKA_VTYPE_VALUE;
            vus[3].u.mem.ptr = payload;
            vus[3].u.mem.size = length;
            vus[4].vtype = tag::RD_KAFKA_VTYPE_KEY;
            vus[4].u.mem.ptr = key.cast_mut();
            vus[4].u.mem.size = key_length;
            vus[5].vtype = tag::RD_KAFKA_VTYPE_OPAQUE;
            vus[5].u.ptr = self.opaque as *mut c_void;
            vus[6].vtype = tag::RD_KAFKA_VTYPE_HEADERS;
            vus[6].u.headers = list;
            let error = rd::rd_kafka_produceva(topic.client.raw(), vus.as_ptr(), vus.len());
            if error.is_null() {
                return Ok(());
            }
            rd::rd_kafka_headers_destroy(list);
            let code = ErrorCode::from(rd::rd_kafka_error_code(error));
            rd::rd_kafka_error_destroy(error);
            Err(code)
        }
    }
}

/// A header list in the given order; the caller owns it.
fn header_list(headers: &[Header]) -> *mut rd::rd_kafka_headers_t {
    // SAFETY: the list is new and ours; names and values are copied by the call (src).
    unsafe {
        let list = rd::rd_kafka_headers_new(headers.len());
        for (name, value) in headers {
            let name_length = isize::try_from(name.len()).unwrap_or(0);
            let (start, length) = match value {
                Some(value) => (value.as_ptr().cast(), isize::try_from(value.len()).unwrap_or(0)),
                None => (ptr::null(), 0),
            };
            rd::rd_kafka_header_add(list, name.as_ptr().cast(), name_length, start, length);
        }
        list
    }
}
