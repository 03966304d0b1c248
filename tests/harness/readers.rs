//! The three formats of a subscription as they arrive: frames, NDJSON and SSE, decoded byte by byte, and a stream over them.
//!
//! Method: a [`Decoder`] is fed whatever pieces the network made and gives what is complete: messages, heartbeats, gaps, errors. It
//! shares nothing with the gateway and tolerates nothing: an unknown partition below zero, a line that is no object, a field SSE does
//! not know are panics. A [`Stream`] reads a chunked HTTP/1.1 answer with it, gives one event after the other with a deadline, counts
//! heartbeats, and does not read at all when told to stall: what piles up is the gateway's affair.
//!
//! ```text
//! frames   i32 partition | i64 offset | i32 length | payload     heartbeat: partition -1, length 0; null payload: length -1
//!                                                                gap: partition -2, offset `from`, length 8, payload i64 `to`
//! NDJSON   {"partition":..,..}\n                                 heartbeat: an empty line; gap: {"gap":{"partition","from","to"}}
//! SSE      id: cursor / data: the NDJSON object                  heartbeat: a comment; `event: gap`, `event: error`
//! ```

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::client::{Connection, Failure, Part, Request, Response};
use crate::frames;

/// How messages are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Frames,
    Lines,
    Sse,
}

impl Format {
    pub const ALL: [Self; 3] = [Self::Frames, Self::Lines, Self::Sse];

    /// Its name in `Accept` and `Content-Type`.
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Frames => "application/octet-stream",
            Self::Lines => "application/x-ndjson",
            Self::Sse => "text/event-stream",
        }
    }
}

/// A message as a reader got it. What frames do not say is empty.
#[derive(Debug, Clone, PartialEq)]
pub struct Delivery {
    pub partition: i32,
    pub offset: i64,
    /// `None` is Kafka's null.
    pub payload: Option<Vec<u8>>,
    pub key: Option<Vec<u8>>,
    pub tag: Option<String>,
    pub headers: Vec<(String, Option<Vec<u8>>)>,
    pub timestamp: Option<i64>,
    pub deliveries: Option<i64>,
    /// The `id` of SSE.
    pub cursor: Option<String>,
}

impl Delivery {
    pub fn position(&self) -> (i32, i64) {
        (self.partition, self.offset)
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(self.payload.as_deref().unwrap_or_default()).into_owned()
    }
}

/// What stands in a stream.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    Message(Delivery),
    Heartbeat,
    /// Retention passed the group: `from` to `to` are no more.
    Gap {
        partition: i32,
        from: i64,
        to: i64,
    },
    /// SSE: how long to wait before a reconnect.
    Retry(u64),
    /// SSE alone can say it.
    Error(String),
}

/// Takes bytes, gives events.
#[derive(Debug)]
pub struct Decoder {
    format: Format,
    rest: Vec<u8>,
    event: SseEvent,
}

/// Fields of an SSE event so far; `id` is kept from one to the next.
#[derive(Debug, Default)]
struct SseEvent {
    id: Option<String>,
    name: Option<String>,
    data: Option<String>,
}

const HEAD_BYTES: usize = 16;
const HEARTBEAT: i32 = -1;
const GAP: i32 = -2;

impl Decoder {
    pub fn new(format: Format) -> Self {
        Self { format, rest: Vec::new(), event: SseEvent::default() }
    }

    /// All events of a complete body.
    #[track_caller]
    pub fn decode(format: Format, body: &[u8]) -> Vec<Event> {
        let mut decoder = Self::new(format);
        let events = decoder.feed(body);
        decoder.finish();
        events
    }

    /// The messages of a complete body, which holds nothing else but heartbeats.
    #[track_caller]
    pub fn messages(format: Format, body: &[u8]) -> Vec<Delivery> {
        let message = |event| match event {
            Event::Message(delivery) => Some(delivery),
            Event::Heartbeat | Event::Retry(_) => None,
            other => panic!("a message, not {other:?}"),
        };
        Self::decode(format, body).into_iter().filter_map(message).collect()
    }

    #[track_caller]
    pub fn feed(&mut self, bytes: &[u8]) -> Vec<Event> {
        self.rest.extend_from_slice(bytes);
        let mut events = Vec::new();
        let mut used = 0;
        while let Some((event, len)) = self.next(used) {
            events.extend(event);
            used += len;
        }
        self.rest.drain(..used);
        events
    }

    /// Panics when an event was begun and not ended.
    #[track_caller]
    pub fn finish(self) {
        assert!(self.rest.is_empty(), "{} bytes of an event that does not end", self.rest.len());
        assert!(self.event.data.is_none(), "an SSE event ends with an empty line: {:?}", self.event);
    }

    /// The piece that begins at `from`, if it is complete: its event, if it makes one, and its length.
    fn next(&mut self, from: usize) -> Option<(Option<Event>, usize)> {
        if self.format == Format::Frames {
            let (event, len) = next_frame(&self.rest[from..])?;
            return Some((Some(event), len));
        }
        let len = 1 + self.rest[from..].iter().position(|&b| b == b'\n')?;
        let line = std::str::from_utf8(&self.rest[from..from + len - 1]).expect("lines are UTF-8");
        let event = if self.format == Format::Lines {
            Some(if line.is_empty() { Event::Heartbeat } else { event_of(&json(line), None) })
        } else {
            self.event.take_line(line.strip_suffix('\r').unwrap_or(line))
        };
        Some((event, len))
    }
}

fn next_frame(bytes: &[u8]) -> Option<(Event, usize)> {
    let head = bytes.get(..HEAD_BYTES)?;
    let partition = i32::from_be_bytes(head[..4].try_into().expect("4 bytes"));
    let offset = i64::from_be_bytes(head[4..12].try_into().expect("8 bytes"));
    let len = i32::from_be_bytes(head[12..].try_into().expect("4 bytes"));
    assert!(len >= -1, "a length of {len}");
    let payload = bytes[HEAD_BYTES..].get(..usize::try_from(len.max(0)).expect("not negative"))?;
    let event = match partition {
        HEARTBEAT => {
            assert_eq!(len, 0, "a heartbeat carries nothing");
            Event::Heartbeat
        }
        GAP => {
            let to = payload.try_into().unwrap_or_else(|_| panic!("a gap carries 8 bytes, not {len}"));
            // The partition has no place in the head; topics with several are read in another format.
            Event::Gap { partition: GAP, from: offset, to: i64::from_be_bytes(to) }
        }
        _ => {
            assert!(partition >= 0, "partition {partition}");
            let payload = (len >= 0).then(|| payload.to_vec());
            Event::Message(Delivery { payload, ..bare(partition, offset) })
        }
    };
    Some((event, HEAD_BYTES + payload.len()))
}

fn bare(partition: i32, offset: i64) -> Delivery {
    Delivery {
        partition,
        offset,
        payload: None,
        key: None,
        tag: None,
        headers: Vec::new(),
        timestamp: None,
        deliveries: None,
        cursor: None,
    }
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{e} in {text:?}"))
}

fn event_of(object: &Value, cursor: Option<String>) -> Event {
    if let Some(gap) = object.get("gap") {
        return gap_of(gap);
    }
    let line = frames::decode_object(object);
    Event::Message(Delivery {
        payload: (!line.is_tombstone).then_some(line.payload),
        key: line.key,
        tag: line.tag,
        headers: line.headers,
        timestamp: Some(line.timestamp),
        deliveries: Some(line.deliveries),
        cursor,
        ..bare(line.partition, line.offset)
    })
}

fn gap_of(gap: &Value) -> Event {
    let number = |name: &str| gap[name].as_i64().unwrap_or_else(|| panic!("{name} is a number in {gap}"));
    let partition = i32::try_from(number("partition")).expect("a partition number");
    Event::Gap { partition, from: number("from"), to: number("to") }
}

// === impl SseEvent ===

impl SseEvent {
    /// WHATWG HTML, "interpreting an event stream"; stricter, as only a judge may be: fields are those the contract knows.
    fn take_line(&mut self, line: &str) -> Option<Event> {
        if line.is_empty() {
            return self.dispatch();
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value).to_owned();
        match field {
            "" => return Some(Event::Heartbeat),
            "id" => self.id = Some(value),
            "event" => self.name = Some(value),
            "data" => {
                self.data = Some(self.data.take().map_or(value.clone(), |before| before + "\n" + &value));
            }
            "retry" => return Some(Event::Retry(value.parse().expect("`retry` is a number of milliseconds"))),
            other => panic!("SSE has no field {other:?}"),
        }
        None
    }

    fn dispatch(&mut self) -> Option<Event> {
        let name = self.name.take();
        let data = self.data.take()?;
        Some(match name.as_deref() {
            None | Some("message") => {
                let cursor = self.id.clone();
                assert!(cursor.as_ref().is_some_and(|id| !id.is_empty()), "a message has a cursor: {data}");
                event_of(&json(&data), cursor)
            }
            Some("gap") => {
                let object = json(&data);
                gap_of(object.get("gap").unwrap_or(&object))
            }
            Some("error") => Event::Error(data),
            Some(other) => panic!("an event {other:?}: {data}"),
        })
    }
}

// === impl Stream ===

/// An answer that comes in pieces, over HTTP/1.1.
pub struct Stream {
    connection: Connection,
    decoder: Option<Decoder>,
    ready: VecDeque<Event>,
    pub head: Response,
    pub heartbeats: usize,
    pub retry_ms: Option<u64>,
    end: Option<End>,
}

/// How a stream ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// With its last chunk, and these trailers.
    Complete(Vec<(String, String)>),
    /// Without.
    Cut,
}

/// What came of waiting.
#[derive(Debug, Clone, PartialEq)]
pub enum Next {
    Event(Event),
    Nothing,
    End(End),
}

impl Stream {
    /// Sends `request`, asking for `format`, and takes the head, which is 200.
    pub fn open(address: SocketAddr, request: &Request, format: Format) -> Result<Self, Failure> {
        Self::open_with(Connection::open(address)?, request, format)
    }

    /// The same on a connection that is there.
    pub fn open_with(mut connection: Connection, request: &Request, format: Format) -> Result<Self, Failure> {
        let request = request.clone().header("Accept", format.media_type());
        connection.send(&request.bytes())?;
        let head = connection.head()?;
        if head.status != 200 {
            return Err(Failure::Malformed(format!("a stream is answered {} {:?}", head.status, head.headers)));
        }
        if head.header("content-type") != Some(format.media_type()) {
            return Err(Failure::Malformed(format!(
                "a stream of {:?}, not of {format:?}",
                head.header("content-type")
            )));
        }
        if head.header("transfer-encoding") != Some("chunked") {
            return Err(Failure::Malformed(format!("a stream is chunked: {:?}", head.headers)));
        }
        let decoder = Some(Decoder::new(format));
        Ok(Self { connection, decoder, ready: VecDeque::new(), head, heartbeats: 0, retry_ms: None, end: None })
    }

    /// The next message, gap or error; heartbeats are counted and passed over.
    #[track_caller]
    pub fn next(&mut self, limit: Duration) -> Next {
        let deadline = Instant::now() + limit;
        loop {
            while let Some(event) = self.ready.pop_front() {
                match event {
                    Event::Heartbeat => self.heartbeats += 1,
                    Event::Retry(ms) => self.retry_ms = Some(ms),
                    event => return Next::Event(event),
                }
            }
            if let Some(end) = &self.end {
                return Next::End(end.clone());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Next::Nothing;
            }
            self.fill(left);
        }
    }

    /// The next message; panics when something else comes, or nothing in time.
    #[track_caller]
    pub fn message(&mut self, limit: Duration) -> Delivery {
        match self.next(limit) {
            Next::Event(Event::Message(delivery)) => delivery,
            other => panic!("a message within {limit:?}, not {other:?}"),
        }
    }

    /// Reads on until the stream ends; messages that still come are given as well.
    #[track_caller]
    pub fn rest(&mut self, limit: Duration) -> (Vec<Delivery>, Option<End>) {
        let deadline = Instant::now() + limit;
        let mut rest = Vec::new();
        loop {
            match self.next(deadline.saturating_duration_since(Instant::now())) {
                Next::Event(Event::Message(delivery)) => rest.push(delivery),
                Next::Event(_) => {}
                Next::Nothing => return (rest, None),
                Next::End(end) => return (rest, Some(end)),
            }
        }
    }

    /// Does not read for that long. The time is what is tested here, so this sleeps.
    pub fn stall(&self, time: Duration) {
        std::thread::sleep(time);
    }

    /// Leaves by RST.
    pub fn reset(self) {
        self.connection.reset();
    }

    fn fill(&mut self, limit: Duration) {
        self.connection.patience(limit.max(Duration::from_millis(1)));
        match self.connection.part() {
            Ok(Part::Chunk(bytes)) => {
                let decoder = self.decoder.as_mut().expect("there until the stream ends");
                self.ready.extend(decoder.feed(&bytes));
            }
            Ok(Part::End(trailers)) => {
                // A complete body ends with a complete event.
                self.decoder.take().expect("there until the stream ends").finish();
                self.end = Some(End::Complete(trailers));
            }
            Err(Failure::Timeout) => {}
            Err(Failure::Malformed(what)) => panic!("{what}"),
            Err(_) => self.end = Some(End::Cut),
        }
    }
}
