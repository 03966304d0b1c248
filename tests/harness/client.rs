//! A blocking HTTP/1.1 client that hides nothing.
//!
//! Ordinary clients repair, retry and pool; a test wants to say exactly which bytes go out on which connection and to
//! see exactly what comes back. [`Connection::send`] takes raw bytes, [`Connection::read_response`] returns the status,
//! every header in order, the body with chunks undone, and whether the message was complete. Responses are parsed by
//! httparse; requests are not parsed at all.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::{ClientConfig, ClientConnection};
use serde_json::Value;

use crate::tls::Wire;

/// Default for one read. Longer than the longest long poll, so that a hang is told from slowness.
const PATIENCE: Duration = Duration::from_secs(40);

const READ_BYTES: usize = 64 * 1024;

/// Why there is no answer.
#[derive(Debug)]
pub enum Failure {
    /// The connection could not be made; nothing was sent.
    Connect(io::Error),
    /// The peer closed or reset before the first byte of an answer.
    NoAnswer,
    /// The answer began and was cut: what arrived, head included.
    Cut(Vec<u8>),
    /// Nothing came in time.
    Timeout,
    /// Not HTTP.
    Malformed(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cut(bytes) => write!(f, "cut after {:?}", String::from_utf8_lossy(bytes)),
            other => write!(f, "{other:?}"),
        }
    }
}

/// An answer, its body complete.
#[derive(Debug, Clone)]
pub struct Response {
    pub status: u16,
    /// In the order received, names lower-case.
    pub headers: Vec<(String, Vec<u8>)>,
    pub body: Vec<u8>,
    /// 1xx statuses that came before.
    pub interim: Vec<u16>,
    /// The sizes of the chunks, empty when the body was not chunked.
    pub chunks: Vec<usize>,
}

impl Response {
    /// The first header of that name, as text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.header_bytes(name).and_then(|value| std::str::from_utf8(value).ok())
    }

    pub fn header_bytes(&self, name: &str) -> Option<&[u8]> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_slice())
    }

    /// All values of a repeated header, in order.
    pub fn all(&self, name: &str) -> Vec<&[u8]> {
        self.headers.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_slice()).collect()
    }

    /// A header that must be there and be a number.
    pub fn number(&self, name: &str) -> i64 {
        let text = self.header(name).unwrap_or_else(|| panic!("{name} is missing in {self:?}"));
        text.parse().unwrap_or_else(|_| panic!("{name} is a number, not {text:?}"))
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("body is JSON ({e}): {:?}", self.text()))
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Whether the answer announces that the connection ends.
    pub fn closes(&self) -> bool {
        self.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"))
    }

    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{} {:?}", self.status, self.text());
        self
    }
}

/// A request in the making. Adds `Host`, and `Content-Length` where there is a body; nothing else.
#[derive(Debug, Clone)]
pub struct Request {
    head: String,
    body: Option<Vec<u8>>,
    chunk_bytes: Option<usize>,
}

impl Request {
    pub fn new(method: &str, target: &str) -> Self {
        Self { head: format!("{method} {target} HTTP/1.1\r\nHost: kateway\r\n"), body: None, chunk_bytes: None }
    }

    pub fn get(target: &str) -> Self {
        Self::new("GET", target)
    }

    pub fn post(target: &str, body: impl Into<Vec<u8>>) -> Self {
        Self::new("POST", target).body(body)
    }

    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.head.extend([name, ": ", value, "\r\n"]);
        self
    }

    #[must_use]
    pub fn app(self, appid: &str) -> Self {
        self.header("Appid", appid)
    }

    #[must_use]
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = Some(body.into());
        self
    }

    /// Sends the body in chunks of that size instead of with a length.
    #[must_use]
    pub fn chunked(mut self, chunk_bytes: usize) -> Self {
        self.chunk_bytes = Some(chunk_bytes);
        self
    }

    /// The exact bytes that go out.
    pub fn bytes(&self) -> Vec<u8> {
        let mut out = self.head.clone().into_bytes();
        match (&self.body, self.chunk_bytes) {
            (Some(body), Some(size)) => {
                out.extend_from_slice(b"Transfer-Encoding: chunked\r\n\r\n");
                for chunk in body.chunks(size) {
                    out.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
                    out.extend_from_slice(chunk);
                    out.extend_from_slice(b"\r\n");
                }
                out.extend_from_slice(b"0\r\n\r\n");
            }
            (Some(body), None) => {
                out.extend_from_slice(format!("Content-Length: {}\r\n\r\n", body.len()).as_bytes());
                out.extend_from_slice(body);
            }
            (None, _) => out.extend_from_slice(b"\r\n"),
        }
        out
    }
}

/// One TCP connection.
pub struct Connection {
    stream: Wire,
    /// Received and not yet used: the rest of a pipelined answer.
    pending: Vec<u8>,
}

impl Connection {
    pub fn open(address: SocketAddr) -> Result<Self, Failure> {
        let stream = TcpStream::connect_timeout(&address, Duration::from_secs(10)).map_err(Failure::Connect)?;
        stream.set_nodelay(true).map_err(Failure::Connect)?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(Failure::Connect)?;
        stream.set_write_timeout(Some(PATIENCE)).map_err(Failure::Connect)?;
        Ok(Self { stream: Wire::Plain(stream), pending: Vec::new() })
    }

    /// The same over TLS, to a server that has to be `host`. A failed handshake is [`Failure::Connect`].
    pub fn open_tls(address: SocketAddr, config: &Arc<ClientConfig>, host: &str) -> Result<Self, Failure> {
        Self::open(address)?.upgrade(config, host)
    }

    /// Goes on over TLS.
    pub fn upgrade(self, config: &Arc<ClientConfig>, host: &str) -> Result<Self, Failure> {
        let Wire::Plain(stream) = self.stream else { panic!("the connection is over TLS already") };
        let stream = Wire::over(stream, config, host).map_err(Failure::Connect)?;
        Ok(Self { stream, pending: Vec::new() })
    }

    /// What was agreed on, of a connection over TLS.
    pub fn session(&self) -> &ClientConnection {
        self.stream.session()
    }

    pub fn patience(&self, limit: Duration) {
        self.stream.tcp().set_read_timeout(Some(limit)).expect("a positive timeout");
    }

    /// Sends raw bytes.
    pub fn send(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        let sent = self.stream.write_all(bytes).and_then(|()| self.stream.flush());
        sent.map_err(|_| Failure::NoAnswer)
    }

    /// What [`Self::send`] would put on the wire, to be sent in parts by [`Self::send_sealed`].
    pub fn sealed(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.stream.sealed(bytes)
    }

    /// Sends bytes of [`Self::sealed`].
    pub fn send_sealed(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.stream.tcp().write_all(bytes).map_err(|_| Failure::NoAnswer)
    }

    /// Says that no more bytes will come, but still listens.
    pub fn finish(&self) {
        let _ = self.stream.tcp().shutdown(std::net::Shutdown::Write);
    }

    /// Ends the connection with RST: what is in flight is thrown away.
    pub fn reset(self) {
        let linger = libc::linger { l_onoff: 1, l_linger: 0 };
        let size = libc::socklen_t::try_from(size_of::<libc::linger>()).expect("a few bytes");
        let fd = std::os::fd::AsRawFd::as_raw_fd(self.stream.tcp());
        // SAFETY: the descriptor is open for as long as `self` is, and the option's address and size belong together.
        unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_LINGER, (&raw const linger).cast(), size) };
    }

    /// One request, one answer.
    pub fn call(&mut self, request: &Request) -> Result<Response, Failure> {
        // A refusal may arrive, and the connection close, while the body is still being written; the answer counts, not
        // the write error.
        let sent = self.send(&request.bytes());
        let answer = self.read_response_to(request.head.starts_with("HEAD "));
        answer.map_err(|failure| sent.err().unwrap_or(failure))
    }

    pub fn read_response(&mut self) -> Result<Response, Failure> {
        self.read_response_to(false)
    }

    /// What comes until the peer's end, uninterpreted; over TLS an end without close_notify is an error.
    pub fn read_to_end(&mut self) -> io::Result<Vec<u8>> {
        let mut rest = std::mem::take(&mut self.pending);
        self.stream.read_to_end(&mut rest).map(|_| rest)
    }

    /// Exactly `len` bytes, uninterpreted.
    pub fn read_raw(&mut self, len: usize) -> Result<Vec<u8>, Failure> {
        self.take(len)
    }

    /// The first nine bytes of what comes next, which stay there: a frame's head, or a part of a status line.
    pub fn peek(&mut self) -> Result<[u8; 9], Failure> {
        loop {
            if let Some(first) = self.pending.first_chunk() {
                return Ok(*first);
            }
            if self.fill()? == 0 {
                return Err(self.ended());
            }
        }
    }

    /// The same if it comes within `limit`.
    pub fn peek_for(&mut self, limit: Duration) -> Option<[u8; 9]> {
        self.patience(limit);
        let first = self.peek();
        self.patience(PATIENCE);
        first.ok()
    }

    /// The next head that is no interim one; the body is left for [`Self::part`]. `Timeout` loses nothing.
    pub fn head(&mut self) -> Result<Response, Failure> {
        loop {
            let head = self.read_head()?;
            if !(100..200).contains(&head.status) {
                return Ok(head);
            }
        }
    }

    /// The next chunk of a chunked body, once it is there to its end. After [`Failure::Timeout`] it may be asked for again.
    pub fn part(&mut self) -> Result<Part, Failure> {
        loop {
            if let Some((part, len)) = first_part(&self.pending)? {
                self.pending.drain(..len);
                return Ok(part);
            }
            if self.fill()? == 0 {
                return Err(Failure::Cut(std::mem::take(&mut self.pending)));
            }
        }
    }

    /// The socket of a plain connection, and what was received and not yet used.
    pub fn into_parts(self) -> (TcpStream, Vec<u8>) {
        let Wire::Plain(stream) = self.stream else { panic!("the connection is over TLS") };
        (stream, self.pending)
    }

    /// Undoes [`Self::read_raw`].
    pub fn put_back(&mut self, bytes: &[u8]) {
        self.pending.splice(..0, bytes.iter().copied());
    }

    fn read_response_to(&mut self, head_only: bool) -> Result<Response, Failure> {
        let mut interim = Vec::new();
        loop {
            let head = self.read_head()?;
            if (100..200).contains(&head.status) && head.status != 101 {
                interim.push(head.status);
                continue;
            }
            let mut response = Response { interim, ..head };
            if !head_only && response.status != 204 && response.status != 304 && response.status != 101 {
                self.read_body(&mut response)?;
            }
            return Ok(response);
        }
    }

    fn read_head(&mut self) -> Result<Response, Failure> {
        loop {
            let mut slots = [httparse::EMPTY_HEADER; 100];
            let mut parsed = httparse::Response::new(&mut slots);
            match parsed.parse(&self.pending) {
                Ok(httparse::Status::Complete(len)) => {
                    let headers =
                        parsed.headers.iter().map(|h| (h.name.to_ascii_lowercase(), h.value.to_vec())).collect();
                    let status = parsed.code.expect("a complete head has a status");
                    self.pending.drain(..len);
                    return Ok(Response { status, headers, body: Vec::new(), interim: Vec::new(), chunks: Vec::new() });
                }
                Ok(httparse::Status::Partial) => {
                    if self.fill()? == 0 {
                        return Err(self.ended());
                    }
                }
                Err(error) => {
                    return Err(Failure::Malformed(format!("{error}: {:?}", String::from_utf8_lossy(&self.pending))));
                }
            }
        }
    }

    fn read_body(&mut self, response: &mut Response) -> Result<(), Failure> {
        if response.header("transfer-encoding").is_some_and(|v| v.eq_ignore_ascii_case("chunked")) {
            return self.read_chunks(response);
        }
        let Some(len) =
            response.header("content-length").map(|v| v.parse::<usize>().expect("Content-Length is a number"))
        else {
            // Without either the body ends with the connection.
            while self.fill()? > 0 {}
            response.body = std::mem::take(&mut self.pending);
            return Ok(());
        };
        response.body = self.take(len)?;
        Ok(())
    }

    fn read_chunks(&mut self, response: &mut Response) -> Result<(), Failure> {
        loop {
            let line = self.take_line()?;
            let size = line.split(';').next().unwrap_or_default().trim();
            let size =
                usize::from_str_radix(size, 16).map_err(|_| Failure::Malformed(format!("chunk size {line:?}")))?;
            if size == 0 {
                // Trailers, then the empty line.
                while !self.take_line()?.is_empty() {}
                return Ok(());
            }
            let chunk = self.take(size)?;
            response.body.extend_from_slice(&chunk);
            response.chunks.push(size);
            if !self.take_line()?.is_empty() {
                return Err(Failure::Malformed("a chunk is followed by CRLF".into()));
            }
        }
    }

    fn take(&mut self, len: usize) -> Result<Vec<u8>, Failure> {
        while self.pending.len() < len {
            if self.fill()? == 0 {
                return Err(Failure::Cut(std::mem::take(&mut self.pending)));
            }
        }
        let rest = self.pending.split_off(len);
        Ok(std::mem::replace(&mut self.pending, rest))
    }

    fn take_line(&mut self) -> Result<String, Failure> {
        loop {
            if let Some(at) = self.pending.windows(2).position(|pair| pair == b"\r\n") {
                let line = String::from_utf8_lossy(&self.pending[..at]).into_owned();
                self.pending.drain(..at + 2);
                return Ok(line);
            }
            if self.fill()? == 0 {
                return Err(Failure::Cut(std::mem::take(&mut self.pending)));
            }
        }
    }

    fn fill(&mut self) -> Result<usize, Failure> {
        let old = self.pending.len();
        self.pending.resize(old + READ_BYTES, 0);
        let result = self.stream.read(&mut self.pending[old..]);
        self.pending.truncate(old + result.as_ref().copied().unwrap_or(0));
        result.map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Failure::Timeout,
            _ => self.ended(),
        })
    }

    fn ended(&mut self) -> Failure {
        if self.pending.is_empty() { Failure::NoAnswer } else { Failure::Cut(std::mem::take(&mut self.pending)) }
    }

    /// Whether the peer closes within `limit` and sends nothing more before it does.
    pub fn closes_within(&mut self, limit: Duration) -> bool {
        self.patience(limit);
        let start = Instant::now();
        let closed = loop {
            match self.fill() {
                Ok(0) | Err(Failure::NoAnswer | Failure::Cut(_)) => break self.pending.is_empty(),
                Err(_) => break false,
                Ok(_) if start.elapsed() > limit => break false,
                Ok(_) => {}
            }
        };
        self.patience(PATIENCE);
        closed
    }
}

/// A piece of a chunked body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    Chunk(Vec<u8>),
    /// The last chunk, with the trailers that came behind it.
    End(Vec<(String, String)>),
}

/// The first part that lies complete in `bytes`, and how many of them it takes.
fn first_part(bytes: &[u8]) -> Result<Option<(Part, usize)>, Failure> {
    let line = |from: usize| bytes[from..].windows(2).position(|pair| pair == b"\r\n").map(|at| from + at);
    let Some(end) = line(0) else { return Ok(None) };
    let text = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let size = text.split(';').next().unwrap_or_default().trim();
    let size = usize::from_str_radix(size, 16).map_err(|_| Failure::Malformed(format!("chunk size {text:?}")))?;
    let mut at = end + 2;
    if size > 0 {
        let Some(chunk) = bytes.get(at..at + size + 2) else { return Ok(None) };
        if !chunk.ends_with(b"\r\n") {
            return Err(Failure::Malformed("a chunk is followed by CRLF".into()));
        }
        return Ok(Some((Part::Chunk(chunk[..size].to_vec()), at + size + 2)));
    }
    let mut trailers = Vec::new();
    while let Some(end) = line(at) {
        let text = String::from_utf8_lossy(&bytes[at..end]).into_owned();
        at = end + 2;
        if text.is_empty() {
            return Ok(Some((Part::End(trailers), at)));
        }
        let (name, value) = text.split_once(':').ok_or_else(|| Failure::Malformed(format!("trailer {text:?}")))?;
        trailers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    Ok(None)
}

/// One request on a connection of its own.
#[track_caller]
pub fn once(address: SocketAddr, request: &Request) -> Response {
    let mut connection = Connection::open(address).unwrap_or_else(|e| panic!("{address}: {e}"));
    connection.call(request).unwrap_or_else(|e| panic!("{request:?}: {e}"))
}

/// Percent-encodes everything but unreserved characters.
pub fn percent_encode(bytes: &[u8]) -> String {
    let encode = |&b: &u8| match b {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => char::from(b).to_string(),
        _ => format!("%{b:02X}"),
    };
    bytes.iter().map(encode).collect()
}

/// Undoes percent-encoding.
pub fn percent_decode(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let code = (first == b'%').then(|| tail.get(..2)).flatten().and_then(|hex| std::str::from_utf8(hex).ok());
        if let Some(byte) = code.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            out.push(byte);
            rest = &tail[2..];
        } else {
            out.push(first);
            rest = tail;
        }
    }
    out
}
