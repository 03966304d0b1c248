//! Producing: the records librdkafka holds, and whatever the caller keeps beside each.
//!
//! ```text
//!   send --> [ slot: payload | kept ] --> report: slot free, kept is given back
//! ```
//!
//! Invariants: a payload lives from the enqueue to its report, or to the end of the client; a slot is free again only after its
//! report, so a report never meets another record's slot (checked by generation as well). Slots are small: of many records under way
//! each is met twice, when it has long left the caches. Per core.

use std::{
    ffi::{c_int, c_void},
    mem, ptr,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use rdkafka::bindings as rd;
use slab::Slab;

use super::{Client, ErrorCode, Reported, TopicHandle, code_at};
use crate::store::{Header, Partition, Record};

/// Names a record in an [`Outbox`]; void once its report was taken.
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
    /// Until the report librdkafka may read it.
    payload: Bytes,
    /// Payload, key and headers, for the sums.
    bytes: u32,
    generation: u32,
    kept: T,
}

// One line of the cache.
const _: () = assert!(size_of::<Slot<[usize; 2]>>() <= 64);

/// See the module text.
#[derive(Debug)]
pub struct Outbox<T> {
    client: Arc<Client>,
    slots: Slab<Slot<T>>,
    generation: u32,
    lent: u64,
    lent_bytes: u64,
    /// When it was made, and how long records without a key go to the same partition.
    began: Instant,
    stay: Duration,
    /// For [`Self::send_all`]; empty in between.
    messages: Vec<rd::rd_kafka_message_t>,
    beside: Vec<Beside>,
}

/// What [`Outbox::send_all`] keeps of a record beside its slot.
#[derive(Debug)]
struct Beside {
    ticket: Ticket,
    key: Option<Bytes>,
    is_tombstone: bool,
    partition: Option<Partition>,
}

impl<T> Outbox<T> {
    /// The client's only outbox. Records without a key go to the same partition for `stay`.
    pub fn new(client: Arc<Client>, stay: Duration) -> Self {
        let (slots, messages, beside) = Default::default();
        Self { client, slots, generation: 0, lent: 0, lent_bytes: 0, began: Instant::now(), stay, messages, beside }
    }

    /// Where records without a key go now. `None`: the next that is sent without a partition decides it.
    pub fn sticky_partition(&self, topic: &TopicHandle, now: Instant) -> Option<Partition> {
        let us = |duration: Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        topic.sticky.partition(us(now.saturating_duration_since(self.began)), us(self.stay))
    }

    /// A slot for a record with `payload`, and `bytes` with key and headers.
    fn lend(&mut self, payload: Bytes, bytes: usize) -> Ticket
    where
        T: Default,
    {
        self.generation = self.generation.wrapping_add(1).max(1);
        let entry = self.slots.vacant_entry();
        let index = u32::try_from(entry.key()).expect("librdkafka's queue takes fewer records");
        let ticket = Ticket { index, generation: self.generation };
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        entry.insert(Slot { payload, bytes, generation: ticket.generation, kept: T::default() });
        ticket
    }

    /// Hands records without headers to librdkafka, all for `partition`, or each for the partitioner. Does not wait. Tells of each, in
    /// their order, whether it was taken; one that was not comes back.
    pub fn send_all(
        &mut self,
        topic: &TopicHandle,
        partition: Option<Partition>,
        records: impl Iterator<Item = Record>,
        mut tell: impl FnMut(Result<&mut T, (ErrorCode, Record)>),
    ) where
        T: Default,
    {
        assert!(Arc::ptr_eq(&topic.client, &self.client), "a topic handle belongs to one client");
        for record in records {
            let bytes = record.bytes();
            let Record { key, value, is_tombstone, headers, partition: named } = record;
            debug_assert!(headers.is_empty(), "librdkafka's call has no headers");
            let value = if is_tombstone { Bytes::new() } else { value };
            // The buffer of `Bytes` stays where it is when its handle moves into the slot.
            let (payload, length) = (value.as_ptr().cast_mut().cast(), value.len());
            let ticket = self.lend(value, bytes);
            self.messages.push(message(ticket, (!is_tombstone).then_some((payload, length)), key.as_deref()));
            self.beside.push(Beside { ticket, key, is_tombstone, partition: named });
        }
        let count = c_int::try_from(self.messages.len()).unwrap_or(c_int::MAX);
        // SAFETY: live topic; `count` messages, whose keys live as long as `beside`; a slot keeps its payload until the report or hands it
        // to the client's destroyer (Drop below). msgflags 0: no copy, no free.
        unsafe {
            let partition = partition.unwrap_or(PARTITION_UNASSIGNED);
            rd::rd_kafka_produce_batch(topic.ptr.as_ptr(), partition, 0, self.messages.as_mut_ptr(), count);
        }
        for (message, Beside { ticket, key, is_tombstone, partition }) in
            self.messages.iter().zip(self.beside.drain(..))
        {
            // SAFETY: live message.
            let code = unsafe { code_at(&raw const message.err) };
            let slot = &mut self.slots[ticket.index as usize];
            if code.is_ok() {
                self.lent += 1;
                self.lent_bytes += u64::from(slot.bytes);
                tell(Ok(&mut slot.kept));
                continue;
            }
            let Slot { payload: value, .. } = self.slots.remove(ticket.index as usize);
            tell(Err((code, Record { key, value, is_tombstone, headers: Vec::new(), partition })));
        }
        self.messages.clear();
    }

    /// Hands a record to librdkafka. Does not wait. One that is not taken comes back.
    pub fn send(&mut self, topic: &TopicHandle, record: Record) -> Result<Ticket, (ErrorCode, Record)>
    where
        T: Default,
    {
        assert!(Arc::ptr_eq(&topic.client, &self.client), "a topic handle belongs to one client");
        let length = record.bytes();
        let Record { key, value, is_tombstone, headers, partition } = record;
        let ticket = self.lend(if is_tombstone { Bytes::new() } else { value }, length);
        let slot = &self.slots[ticket.index as usize];
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
                let Slot { payload: value, .. } = self.slots.remove(ticket.index as usize);
                Err((code, Record { key, value, is_tombstone, headers, partition }))
            }
        }
    }

    /// Ends the lending of one payload. Gives what is kept beside it.
    pub fn settle(&mut self, report: &Reported) -> Option<T> {
        let ticket = Ticket::of(report.opaque);
        self.get_mut(ticket)?;
        let Slot { bytes, kept, .. } = self.slots.remove(ticket.index as usize);
        self.lent -= 1;
        self.lent_bytes -= u64::from(bytes);
        Some(kept)
    }

    /// What is kept beside a record without a report.
    pub fn get_mut(&mut self, ticket: Ticket) -> Option<&mut T> {
        let slot = self.slots.get_mut(ticket.index as usize)?;
        (slot.generation == ticket.generation).then_some(&mut slot.kept)
    }

    /// Records without a report, and their bytes.
    pub fn lent(&self) -> (u64, u64) {
        (self.lent, self.lent_bytes)
    }
}

impl<T> Drop for Outbox<T> {
    fn drop(&mut self) {
        self.client.lend(self.slots.drain().map(|slot| slot.payload).collect());
    }
}

/// RD_KAFKA_PARTITION_UA, a macro with a cast the bindings do not carry: the partitioner decides.
const PARTITION_UNASSIGNED: i32 = -1;

/// One record as [`rd::rd_kafka_produce_batch`] wants it. No payload says tombstone.
fn message(ticket: Ticket, payload: Option<(*mut c_void, usize)>, key: Option<&[u8]>) -> rd::rd_kafka_message_t {
    let (payload, len) = payload.unwrap_or((ptr::null_mut(), 0));
    let (key, key_len) = key.map_or((ptr::null_mut(), 0), |key| (key.as_ptr().cast_mut().cast(), key.len()));
    rd::rd_kafka_message_t {
        err: rd::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR,
        rkt: ptr::null_mut(),
        partition: PARTITION_UNASSIGNED,
        payload,
        len,
        key,
        key_len,
        offset: 0,
        _private: ticket.opaque() as *mut c_void,
    }
}

/// One record as librdkafka's other calls want it.
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
