//! Messages as readers get them: how a batch or a stream is written, and by what `Accept` it is chosen.
//!
//! ```text
//!   frames   i32 partition | i64 offset | i32 length | payload      partition -1: heartbeat    -2: gap (offset from, payload i64 to)
//!   NDJSON   an object a line                                       empty line: heartbeat      {"gap":{..}}
//!   SSE      id: cursor, data: the NDJSON object                    comment: heartbeat         event: gap, event: error
//! ```
//!
//! [`Writer`] knows one answer's format and, for SSE, how far it has come in each partition ([`cursor`]); [`Unwritten`] is what is
//! left of one batch; [`BatchBody`] writes one batch as a whole answer, [`super::stream`] many as one without end. One message as a
//! whole answer is [`single`]'s. Everything is appended to the connection's buffer directly: no value tree, no copy between.
//! Nothing here waits or counts.

pub mod cursor;
mod json;
pub mod single;
#[cfg(test)]
mod tests;

use std::task::{Context, Poll};

use self::cursor::Cursor;
pub use self::{
    cursor::parse_cursor,
    json::{put_gap, put_message},
    single::single,
};
use super::reply::{Problem, Stamp};
use crate::{
    limits,
    proto::{BodySource, Reply, compress::weight, reply::Aborted},
    store::{Delivery, Gap, Message, Offset, Partition},
};

/// What stands before the payload in a frame.
const FRAME_HEAD_BYTES: usize = 16;
/// The partition of a frame that is a heartbeat.
const HEARTBEAT_PARTITION: Partition = -1;
/// The partition of a frame that tells of a gap.
const GAP_PARTITION: Partition = -2;
/// How long a browser waits before it reconnects.
const SSE_RETRY: &[u8] = b"retry: 2000\n\n";

/// How messages are written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// `i32 partition | i64 offset | i32 length | payload`, big endian.
    Frames,
    Ndjson,
    /// Server-sent events (`text/event-stream`).
    Sse,
}

impl Format {
    /// By `Accept`: what is liked best, of equals what is named rather than meant by a wildcard. Frames where nothing fits.
    pub fn accepted(accept: Option<&[u8]>) -> Self {
        // Of formats liked equally, the first stands.
        let mut best = ((0, false), Self::Frames);
        for format in [Self::Ndjson, Self::Sse, Self::Frames] {
            let liking = accept.map_or((0, false), |accept| liking(accept, format.content_type().as_bytes()));
            if liking.0 > 0 && liking > best.0 {
                best = (liking, format);
            }
        }
        best.1
    }

    pub fn content_type(self) -> &'static str {
        match self {
            Self::Frames => "application/octet-stream",
            Self::Ndjson => "application/x-ndjson",
            Self::Sse => "text/event-stream",
        }
    }

    /// The head of an answer in this format.
    pub fn reply(self, request_id: &[u8]) -> Reply {
        let reply =
            Reply::new(200).field("X-Request-Id", request_id).field("Content-Type", self.content_type().as_bytes());
        if self == Self::Sse { reply.field("Cache-Control", b"no-cache") } else { reply }
    }
}

/// How much an `Accept` likes a type, in thousandths, and whether it names the type itself (RFC 9110 section 12.5.1). Of a wildcard only
/// frames are meant: they are what a reader without wishes gets.
fn liking(accept: &[u8], content_type: &[u8]) -> (u32, bool) {
    let mut found = (0, false);
    for range in accept.split(|b| *b == b',') {
        let mut parts = range.split(|b| *b == b';').map(<[u8]>::trim_ascii);
        let name = parts.next().unwrap_or_default();
        let is_named = name.eq_ignore_ascii_case(content_type);
        let is_meant = content_type == Format::Frames.content_type().as_bytes()
            && (name == b"*/*" || name.eq_ignore_ascii_case(b"application/*"));
        // The more specific range decides.
        if is_named || (is_meant && !found.1) {
            found = (parts.find_map(weight).unwrap_or(1_000), is_named);
        }
    }
    found
}

/// Writes one answer's messages in its format.
#[derive(Debug)]
pub struct Writer {
    format: Format,
    cursor: Cursor,
    has_begun: bool,
}

impl Writer {
    pub fn new(format: Format) -> Self {
        Self { format, cursor: Cursor::default(), has_begun: false }
    }

    pub fn message(&mut self, message: &Message, deliveries: u32, out: &mut Vec<u8>) {
        match self.format {
            Format::Frames => put_frame(message.partition, message.offset, &message.value, out),
            Format::Ndjson => {
                put_message(message, deliveries, out);
                out.push(b'\n');
            }
            Format::Sse => {
                self.begin(out);
                out.extend_from_slice(b"id: ");
                self.cursor.advance(message.partition, message.offset + 1);
                self.cursor.put(out);
                out.extend_from_slice(b"\ndata: ");
                put_message(message, deliveries, out);
                out.extend_from_slice(b"\n\n");
            }
        }
    }

    /// Where partitions stand of which nothing was written yet: a reader that resumes goes back there.
    fn begin_at(&mut self, ends: &[(Partition, Offset)]) {
        if self.format == Format::Sse {
            for (partition, next) in ends {
                self.cursor.advance(*partition, *next);
            }
        }
    }

    pub fn gap(&mut self, gap: &Gap, out: &mut Vec<u8>) {
        match self.format {
            Format::Frames => out.extend_from_slice(&gap_frame(gap)),
            Format::Ndjson => {
                put_gap(gap, out);
                out.push(b'\n');
            }
            Format::Sse => {
                self.begin(out);
                out.extend_from_slice(b"event: gap\ndata: ");
                put_gap(gap, out);
                out.extend_from_slice(b"\n\n");
            }
        }
    }

    /// Shows that the connection lives, where there is nothing else to write.
    pub fn heartbeat(&mut self, out: &mut Vec<u8>) {
        match self.format {
            Format::Frames => put_frame(HEARTBEAT_PARTITION, -1, b"", out),
            Format::Ndjson => out.push(b'\n'),
            Format::Sse => {
                self.begin(out);
                out.extend_from_slice(b": hb\n\n");
            }
        }
    }

    /// Writes an error that came after the first byte, if the format has a place for it. `Err`: the answer is to be cut.
    pub fn error(&mut self, problem: &Problem, stamp: &Stamp, out: &mut Vec<u8>) -> Result<(), Aborted> {
        if self.format != Format::Sse {
            let text = format!("{} {}", problem.code.number, problem.detail);
            return Err(Aborted(Some(text.into())));
        }
        self.begin(out);
        out.extend_from_slice(b"event: error\ndata: ");
        json::put_value(&problem.document(stamp), out);
        out.extend_from_slice(b"\n\n");
        Ok(())
    }

    fn begin(&mut self, out: &mut Vec<u8>) {
        if !std::mem::replace(&mut self.has_begun, true) {
            out.extend_from_slice(SSE_RETRY);
        }
    }
}

#[inline] // Once for each message of a batch.
fn put_frame(partition: Partition, offset: Offset, payload: &[u8], out: &mut Vec<u8>) {
    out.reserve(FRAME_HEAD_BYTES + payload.len());
    out.extend_from_slice(&frame_head(partition, offset, payload.len()));
    out.extend_from_slice(payload);
}

/// What stands before the payload in a frame.
#[inline] // As above.
pub fn frame_head(partition: Partition, offset: Offset, payload_bytes: usize) -> [u8; FRAME_HEAD_BYTES] {
    // A payload came through a limit far below 2 GiB, or from Kafka, whose own length is an i32.
    let length = i32::try_from(payload_bytes).unwrap_or(i32::MAX);
    // Put together first: each appending looks whether there is room.
    let mut head = [0; FRAME_HEAD_BYTES];
    head[..4].copy_from_slice(&partition.to_be_bytes());
    head[4..12].copy_from_slice(&offset.to_be_bytes());
    head[12..].copy_from_slice(&length.to_be_bytes());
    head
}

/// A gap as a frame.
pub fn gap_frame(gap: &Gap) -> Vec<u8> {
    let mut frame = Vec::with_capacity(FRAME_HEAD_BYTES + 8);
    put_frame(GAP_PARTITION, gap.from, &gap.to.to_be_bytes(), &mut frame);
    frame
}

/// What is left of a batch: its gaps, which come first, and its messages.
#[derive(Debug, Default)]
pub struct Unwritten {
    delivery: Delivery,
    /// Of `delivery.messages`.
    next: usize,
    /// Of `delivery.redelivered`, which is in the order of the messages.
    next_redelivered: usize,
}

impl Unwritten {
    pub fn new(delivery: Delivery) -> Self {
        Self { delivery, next: 0, next_redelivered: 0 }
    }

    /// Writes until `out` holds one write's worth. Gives whether it wrote anything.
    pub fn write(&mut self, writer: &mut Writer, out: &mut Vec<u8>) -> bool {
        writer.begin_at(&std::mem::take(&mut self.delivery.ends));
        let mut wrote = !self.delivery.gaps.is_empty();
        for gap in self.delivery.gaps.drain(..) {
            writer.gap(&gap, out);
        }
        while (out.len() < limits::WRITE_CHUNK_BYTES || !wrote)
            && let Some((message, deliveries)) = self.next_message()
        {
            writer.message(message, deliveries, out);
            wrote = true;
        }
        wrote
    }

    /// The next message, and how often it was delivered.
    #[inline] // As above.
    pub fn next_message(&mut self) -> Option<(&Message, u32)> {
        let message = self.delivery.messages.get(self.next)?;
        let deliveries = match self.delivery.redelivered.get(self.next_redelivered) {
            Some((index, count)) if *index == self.next => {
                self.next_redelivered += 1;
                *count
            }
            _ => 1,
        };
        self.next += 1;
        Some((message, deliveries))
    }

    pub fn next_gap(&mut self) -> Option<Gap> {
        self.delivery.gaps.pop()
    }

    pub fn is_over(&self) -> bool {
        self.delivery.gaps.is_empty() && self.next >= self.delivery.messages.len()
    }
}

/// A batch as a whole answer, written piece by piece so that it never stands twice in memory.
#[derive(Debug)]
pub struct BatchBody {
    writer: Writer,
    rest: Unwritten,
}

impl BatchBody {
    pub fn new(format: Format, delivery: Delivery) -> Self {
        Self { writer: Writer::new(format), rest: Unwritten::new(delivery) }
    }
}

impl BodySource for BatchBody {
    fn poll_piece(&mut self, _cx: &mut Context<'_>, out: &mut Vec<u8>) -> Poll<Option<Result<(), Aborted>>> {
        Poll::Ready(self.rest.write(&mut self.writer, out).then_some(Ok(())))
    }
}
