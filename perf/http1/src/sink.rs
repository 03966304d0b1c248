//! Stands in for a producer: takes each body as `Bytes` and keeps the last N of them, as librdkafka's queue would.

use bytes::Bytes;

#[derive(Clone, Copy, PartialEq)]
pub enum BodyMode {
    /// Hand over the slice of the read buffer: no copy, but it pins the whole buffer until the report.
    Slice,
    /// Hand over an exact-size copy: the read buffer is free at once.
    Copy,
}

pub struct Sink {
    kept: Vec<Bytes>,
    next: usize,
    body: BodyMode,
    request_count: u64,
}

impl Sink {
    pub fn new(hold: usize, body: BodyMode) -> Self {
        Self { kept: vec![Bytes::new(); hold.max(1)], next: 0, body, request_count: 0 }
    }

    /// Takes a body, returns the request id of its answer.
    pub fn take(&mut self, body: Bytes) -> u64 {
        let body = if self.body == BodyMode::Copy { Bytes::copy_from_slice(&body) } else { body };
        self.kept[self.next] = body;
        self.next = (self.next + 1) % self.kept.len();
        self.request_count += 1;
        self.request_count.wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }
}

/// Sixteen hex digits, the gateway's request id.
pub fn write_hex(id: u64, out: &mut [u8; 16]) {
    for (index, digit) in out.iter_mut().enumerate() {
        *digit = b"0123456789abcdef"[((id >> (60 - 4 * index)) & 15) as usize];
    }
}
