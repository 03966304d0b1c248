//! An answer before it is bytes: status, fields, body, and what is to happen once it is out.
//!
//! Handlers build it once; [`super::h1`] and [`super::h2`] each write it their way. Fields are kept as ready HTTP/1 lines, which
//! is what the hot path needs; HTTP/2 takes them apart again.

use std::{
    fmt,
    io::Write,
    task::{Context, Poll},
    time::Instant,
};

use bytes::Bytes;

/// Room for the fields of most answers.
const FIELDS_BYTES: usize = 192;

/// Called when the whole answer was handed to the connection and flushed; dropped otherwise.
pub trait Sent {
    fn sent(self: Box<Self>);
}

/// The answer ends without its end, so that it cannot look complete. With a text (`<code> <detail>`) a client that reads trailers is
/// told why in `X-Error`; any other finds the connection, or its HTTP/2 stream, cut.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Aborted(pub Option<Box<str>>);

/// A body of unknown length, made piece by piece.
pub trait BodySource {
    /// Appends to `out` until it holds [`crate::limits::WRITE_CHUNK_BYTES`] or a little more. `None` is the end; `Err` cuts the answer.
    fn poll_piece(&mut self, cx: &mut Context<'_>, out: &mut Vec<u8>) -> Poll<Option<Result<(), Aborted>>>;

    /// All pieces given so far were handed to the connection; what this gives is told when its next flush has finished. The source is
    /// polled again afterwards, so one that waits for this alone need keep no waker. It may not be asked once it has ended: one that
    /// wants its last pieces told of is pending until it was asked.
    fn handed_over(&mut self) -> Option<Box<dyn Sent>> {
        None
    }
}

pub enum Body {
    Empty,
    Bytes(Bytes),
    Source(Box<dyn BodySource>),
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => write!(f, "Empty"),
            Self::Bytes(bytes) => write!(f, "Bytes({})", bytes.len()),
            Self::Source(_) => write!(f, "Source"),
        }
    }
}

/// See the module text.
pub struct Reply {
    pub status: u16,
    /// `name: value\r\n` lines; on the heap, because an answer moves some thirty times between handler and connection.
    fields: Vec<u8>,
    pub body: Body,
    /// Close the connection after this answer.
    pub close: bool,
    pub on_sent: Option<Box<dyn Sent>>,
    /// Count the writing of this answer from then on.
    pub timed_from: Option<Instant>,
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reply").field("status", &self.status).field("body", &self.body).finish_non_exhaustive()
    }
}

impl Reply {
    pub fn new(status: u16) -> Self {
        let fields = Vec::with_capacity(FIELDS_BYTES);
        Self { status, fields, body: Body::Empty, close: false, on_sent: None, timed_from: None }
    }

    /// A field whose name and value are known to be clean.
    pub fn field(mut self, name: &str, value: &[u8]) -> Self {
        self.add_field(name, value);
        self
    }

    pub fn add_field(&mut self, name: &str, value: &[u8]) {
        debug_assert!(
            !value.iter().any(|b| matches!(b, b'\r' | b'\n' | 0)),
            "values are encoded before they come here"
        );
        self.fields.extend_from_slice(name.as_bytes());
        self.fields.extend_from_slice(b": ");
        self.fields.extend_from_slice(value);
        self.fields.extend_from_slice(b"\r\n");
    }

    /// Fields as [`Reply::lines`] gave them.
    pub fn add_lines(&mut self, lines: &[u8]) {
        debug_assert!(lines.is_empty() || lines.ends_with(b"\r\n"), "whole lines");
        self.fields.extend_from_slice(lines);
    }

    /// A field with a number, without the formatting machinery's detours.
    pub fn number(mut self, name: &str, value: i64) -> Self {
        self.fields.extend_from_slice(name.as_bytes());
        self.fields.extend_from_slice(b": ");
        let mut digits = itoa::Buffer::new();
        self.fields.extend_from_slice(digits.format(value).as_bytes());
        self.fields.extend_from_slice(b"\r\n");
        self
    }

    /// A field with formatted text.
    pub fn add_display(&mut self, name: &str, value: fmt::Arguments<'_>) {
        self.fields.extend_from_slice(name.as_bytes());
        self.fields.extend_from_slice(b": ");
        // Writing to memory cannot fail.
        let _ = self.fields.write_fmt(value);
        self.fields.extend_from_slice(b"\r\n");
    }

    pub fn body(mut self, content_type: &str, body: impl Into<Bytes>) -> Self {
        self.add_field("Content-Type", content_type.as_bytes());
        self.body = Body::Bytes(body.into());
        self
    }

    /// The fields as HTTP/1 lines.
    pub fn lines(&self) -> &[u8] {
        &self.fields
    }

    /// The fields one by one.
    pub fn fields(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.fields.split(|b| *b == b'\n').filter_map(|line| {
            let line = line.strip_suffix(b"\r")?;
            let colon = memchr::memchr(b':', line)?;
            Some((&line[..colon], line[colon + 1..].trim_ascii()))
        })
    }
}

/// The reason phrase of a status line.
pub fn reason(status: u16) -> &'static str {
    match status {
        101 => "Switching Protocols",
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        204 => "No Content",
        207 => "Multi-Status",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        409 => "Conflict",
        413 => "Content Too Large",
        414 => "URI Too Long",
        415 => "Unsupported Media Type",
        417 => "Expectation Failed",
        422 => "Unprocessable Content",
        426 => "Upgrade Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        _ => "Unknown",
    }
}
