//! A blocking WebSocket client (RFC 6455) that hides nothing: frames go out as the test says, and come back one by one.
//!
//! Written against the RFC alone, so that a misunderstanding of the gateway's library is not shared. Pings are answered unless the test
//! says otherwise, and counted; everything else is for the test to see.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::client::{Connection, Failure, Request, Response};

/// The key and the answer of RFC 6455 section 1.3.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
const MASK: [u8; 4] = [0x1b, 0x5a, 0xc3, 0x99];

pub const CONTINUATION: u8 = 0x0;
pub const TEXT: u8 = 0x1;
pub const BINARY: u8 = 0x2;
pub const CLOSE: u8 = 0x8;
pub const PING: u8 = 0x9;
pub const PONG: u8 = 0xa;
/// No further fragment follows.
pub const FINAL: u8 = 0x80;

/// What came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    Text(String),
    Binary(Vec<u8>),
    Pong(Vec<u8>),
    /// Code and reason.
    Close(u16, String),
    /// The connection ended.
    End,
    /// Nothing came in time.
    Nothing,
}

/// A handshake in the making: all that must be there is.
pub fn handshake(method: &str, target: &str) -> Request {
    Request::new(method, target)
        .header("Connection", "Upgrade")
        .header("Upgrade", "websocket")
        .header("Sec-WebSocket-Version", "13")
        .header("Sec-WebSocket-Key", KEY)
}

/// Of a frame's second byte: the mask bit, and the lengths that say that 16 or 64 bits of length follow.
const MASKED: u8 = 0x80;
const LENGTH_16: u8 = 0x7e;
const LENGTH_64: u8 = 0x7f;

/// A frame as a client sends it; `first` is its first byte.
pub fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    match payload.len() {
        short @ ..126 => bytes.push(MASKED | u8::try_from(short).expect("short")),
        medium @ ..=0xffff => {
            bytes.push(MASKED | LENGTH_16);
            bytes.extend_from_slice(&u16::try_from(medium).expect("medium").to_be_bytes());
        }
        long => {
            bytes.push(MASKED | LENGTH_64);
            bytes.extend_from_slice(&(long as u64).to_be_bytes());
        }
    }
    bytes.extend_from_slice(&MASK);
    bytes.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    bytes
}

/// See the module's documentation.
pub struct WebSocket {
    stream: TcpStream,
    input: Vec<u8>,
    /// Bytes of `input` that are used.
    at: usize,
    /// Pings that came.
    pub pings: usize,
    pub answers_pings: bool,
}

impl WebSocket {
    /// Opens one; `Err` is the gateway's refusal.
    #[track_caller]
    pub fn try_open(address: SocketAddr, request: &Request) -> Result<(Self, Response), Response> {
        Self::dial(address, request).unwrap_or_else(|failure| panic!("{address}: {failure}"))
    }

    /// The same where nobody may be there.
    pub fn dial(address: SocketAddr, request: &Request) -> Result<Result<(Self, Response), Response>, Failure> {
        let mut connection = Connection::open(address)?;
        let response = connection.call(request)?;
        if response.status != 101 {
            return Ok(Err(response));
        }
        let is = |name: &str, value: &str| response.header(name).is_some_and(|v| v.eq_ignore_ascii_case(value));
        assert!(is("upgrade", "websocket") && is("connection", "upgrade"), "{response:?}");
        assert_eq!(response.header("sec-websocket-accept"), Some(ACCEPT));
        assert!(response.header("sec-websocket-extensions").is_none() && response.header("content-length").is_none());
        let (stream, input) = connection.into_parts();
        Ok(Ok((Self { stream, input, at: 0, pings: 0, answers_pings: true }, response)))
    }

    #[track_caller]
    pub fn open(address: SocketAddr, request: &Request) -> Self {
        Self::try_open(address, request).unwrap_or_else(|refusal| panic!("{} {}", refusal.status, refusal.text())).0
    }

    /// Another end to send by, for a thread that does not read.
    pub fn sender(&self) -> TcpStream {
        self.stream.try_clone().expect("a socket can be cloned")
    }

    pub fn send_raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    #[track_caller]
    pub fn send(&mut self, opcode: u8, payload: &[u8]) {
        self.send_raw(&frame(FINAL | opcode, payload)).expect("the gateway reads");
    }

    #[track_caller]
    pub fn text(&mut self, text: &str) {
        self.send(TEXT, text.as_bytes());
    }

    #[track_caller]
    pub fn close(&mut self, code: u16) {
        self.send(CLOSE, &code.to_be_bytes());
    }

    /// The next event but pings.
    #[track_caller]
    pub fn next(&mut self, limit: Duration) -> Event {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(event) = self.take() {
                match event {
                    Some(event) => return event,
                    None => continue,
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Event::Nothing;
            }
            match self.fill(left) {
                Ok(true) => {}
                Ok(false) => return Event::End,
                Err(Failure::Timeout) => return Event::Nothing,
                Err(failure) => panic!("{failure}"),
            }
        }
    }

    /// What came before the end, and the end: its code, or 0 without a goodbye.
    #[track_caller]
    pub fn rest(&mut self, limit: Duration) -> (Vec<Event>, u16) {
        let (deadline, mut events) = (Instant::now() + limit, Vec::new());
        loop {
            match self.next(deadline.saturating_duration_since(Instant::now())) {
                Event::Close(code, _) => return (events, code),
                Event::End => return (events, 0),
                Event::Nothing => panic!("no end within {limit:?}: {events:?}"),
                event => events.push(event),
            }
        }
    }

    /// The next event, a text that is JSON.
    #[track_caller]
    pub fn json(&mut self, limit: Duration) -> serde_json::Value {
        match self.next(limit) {
            Event::Text(text) => serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}")),
            other => panic!("no text: {other:?}"),
        }
    }

    /// Reads acknowledgements until one says `n`; gives the others that came on the way, failures above all.
    #[track_caller]
    pub fn acked(&mut self, n: u64, limit: Duration) -> Vec<serde_json::Value> {
        let (deadline, mut others) = (Instant::now() + limit, Vec::new());
        loop {
            let said = self.json(deadline.saturating_duration_since(Instant::now()));
            match said["ack"].as_u64() {
                Some(acked) if acked == n => return others,
                Some(acked) => assert!(acked < n, "{acked} of {n} were acknowledged"),
                None => others.push(said),
            }
        }
    }

    /// A frame that is whole; `Some(None)`: one that is not for the test.
    #[allow(clippy::option_option)] // Three cases, one caller.
    fn take(&mut self) -> Option<Option<Event>> {
        let bytes = &self.input[self.at..];
        let (&first, rest) = bytes.split_first()?;
        let (&second, rest) = rest.split_first()?;
        assert_eq!((first & 0x70, second & 0x80), (0, 0), "no reserved bit, no mask");
        assert_eq!(first & FINAL, FINAL, "a server of ours sends no fragments");
        let (length, length_bytes) = match second {
            126 => (u64::from(u16::from_be_bytes(rest.get(..2)?.try_into().expect("2 bytes"))), 2),
            127 => (u64::from_be_bytes(rest.get(..8)?.try_into().expect("8 bytes")), 8),
            short => (u64::from(short), 0),
        };
        let length = usize::try_from(length).expect("it fits in memory");
        let payload = rest.get(length_bytes..length_bytes + length)?.to_vec();
        self.at += 2 + length_bytes + length;
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("text is UTF-8");
        Some(match first & 0xf {
            TEXT => Some(Event::Text(text(&payload))),
            BINARY => Some(Event::Binary(payload)),
            PONG => Some(Event::Pong(payload)),
            PING => {
                self.pings += 1;
                if self.answers_pings {
                    // The gateway may have gone; that shows with the next read.
                    let _ = self.send_raw(&frame(FINAL | PONG, &payload));
                }
                None
            }
            CLOSE if payload.is_empty() => Some(Event::Close(1005, String::new())),
            CLOSE => Some(Event::Close(u16::from_be_bytes([payload[0], payload[1]]), text(&payload[2..]))),
            other => panic!("opcode {other}"),
        })
    }

    fn fill(&mut self, limit: Duration) -> Result<bool, Failure> {
        self.input.drain(..self.at);
        self.at = 0;
        self.stream.set_read_timeout(Some(limit)).expect("a positive timeout");
        let old = self.input.len();
        self.input.resize(old + 64 * 1024, 0);
        let read = self.stream.read(&mut self.input[old..]);
        self.input.truncate(old + read.as_ref().copied().unwrap_or(0));
        match read {
            Ok(read) => Ok(read > 0),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                Err(Failure::Timeout)
            }
            // A reset is an end.
            Err(_) => Ok(false),
        }
    }
}
