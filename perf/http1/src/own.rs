//! Engine `own`: one loop per connection over httparse and a `BytesMut`.
//!
//! Bytes are read into spare capacity, the head is tokenized in place, the body is split off without a copy when it lies
//! in the buffer, and the answers of all requests that arrived together leave in one send.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::rc::Rc;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::{Bytes, BytesMut};

use crate::sink::{Sink, write_hex};
use crate::wire::Wire;

pub const READ_BUFFER_BYTES: usize = 8 * 1024;
pub const HEAD_BYTES_MAX: usize = 4 * 1024;
pub const BODY_BYTES_MAX: usize = 512 * 1024;
const HEADERS_MAX: usize = 64;

/// Reads once into spare capacity; 0 is the peer's end.
async fn read_once<W: Wire>(wire: &mut W, buffer: &mut BytesMut) -> io::Result<usize> {
    let spare = buffer.spare_capacity_mut();
    // SAFETY: the bytes are only written by recv(2), never read before `set_len` below covers them.
    let spare = unsafe { &mut *(std::ptr::from_mut(spare) as *mut [u8]) };
    let count = poll_fn(|context| wire.poll_recv(context, spare)).await?;
    // SAFETY: recv(2) initialised `count` bytes of the spare capacity.
    unsafe { buffer.set_len(buffer.len() + count) };
    Ok(count)
}

async fn write_all<W: Wire>(wire: &mut W, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let count = poll_fn(|context| wire.poll_send(context, bytes)).await?;
        bytes = &bytes[count..];
    }
    Ok(())
}

/// What stands between the head and the next request.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Framing {
    Length(usize),
    Chunked,
}

struct Head {
    bytes: usize,
    framing: Framing,
    keep_alive: bool,
    expects_continue: bool,
}

/// A refusal: the answer's status line; the connection closes after it.
type Refusal = &'static str;
const BAD_REQUEST: Refusal = "400 Bad Request";
const TOO_LARGE: Refusal = "413 Content Too Large";
const HEAD_TOO_LARGE: Refusal = "431 Request Header Fields Too Large";

pub async fn serve_connection<W: Wire>(mut wire: W, sink: Rc<RefCell<Sink>>) {
    let mut answers = Vec::with_capacity(1024);
    if let Err(refusal) = serve_requests(&mut wire, &sink, &mut answers).await {
        answers.extend_from_slice(b"HTTP/1.1 ");
        answers.extend_from_slice(refusal.as_bytes());
        answers.extend_from_slice(b"\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
        let _ = write_all(&mut wire, &answers).await;
    }
}

async fn serve_requests<W: Wire>(wire: &mut W, sink: &RefCell<Sink>, answers: &mut Vec<u8>) -> Result<(), Refusal> {
    let mut buffer = BytesMut::with_capacity(READ_BUFFER_BYTES);
    loop {
        let head = match parse_head(&buffer)? {
            Some(head) => head,
            None => {
                // Nothing complete is left: everything answered so far leaves in one send.
                if !flush(wire, answers).await || !fill(wire, &mut buffer, READ_BUFFER_BYTES / 2).await {
                    return Ok(());
                }
                continue;
            }
        };
        let _ = buffer.split_to(head.bytes);
        if head.expects_continue && buffer.is_empty() {
            answers.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
            if !flush(wire, answers).await {
                return Ok(());
            }
        }
        let body = match head.framing {
            Framing::Length(length) => {
                while buffer.len() < length {
                    let missing = length - buffer.len();
                    if !flush(wire, answers).await || !fill(wire, &mut buffer, missing).await {
                        return Ok(());
                    }
                }
                buffer.split_to(length).freeze()
            }
            Framing::Chunked => match read_chunks(wire, &mut buffer, answers).await? {
                Some(body) => body,
                None => return Ok(()),
            },
        };
        let id = sink.borrow_mut().take(body);
        write_answer(answers, id);
        if !head.keep_alive {
            flush(wire, answers).await;
            return Ok(());
        }
    }
}

/// False when the peer is gone.
async fn flush<W: Wire>(wire: &mut W, answers: &mut Vec<u8>) -> bool {
    let sent = answers.is_empty() || write_all(wire, answers).await.is_ok();
    answers.clear();
    sent
}

/// Reads once, into at least `spare_bytes`; `reserve` takes the buffer's own front back when no body holds it.
async fn fill<W: Wire>(wire: &mut W, buffer: &mut BytesMut, spare_bytes: usize) -> bool {
    if buffer.capacity() - buffer.len() < spare_bytes {
        buffer.reserve(spare_bytes.max(READ_BUFFER_BYTES - buffer.len().min(READ_BUFFER_BYTES)));
    }
    matches!(read_once(wire, buffer).await, Ok(count) if count > 0)
}

/// One strict pass over the head; `None` when it is not complete yet.
fn parse_head(buffer: &[u8]) -> Result<Option<Head>, Refusal> {
    if buffer.is_empty() {
        return Ok(None);
    }
    let mut headers = [const { MaybeUninit::uninit() }; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut []);
    let bytes = match request.parse_with_uninit_headers(buffer, &mut headers) {
        Ok(httparse::Status::Complete(bytes)) if bytes <= HEAD_BYTES_MAX => bytes,
        Ok(httparse::Status::Partial) if buffer.len() <= HEAD_BYTES_MAX => return Ok(None),
        Ok(_) | Err(httparse::Error::TooManyHeaders) => return Err(HEAD_TOO_LARGE),
        Err(_) => return Err(BAD_REQUEST),
    };
    // httparse takes a bare LF as a line's end; RFC 9112 lets a server refuse it, and smuggling needs it.
    if memchr::memchr_iter(b'\n', &buffer[..bytes]).any(|at| at == 0 || buffer[at - 1] != b'\r') {
        return Err(BAD_REQUEST);
    }
    let http11 = request.version == Some(1);
    let mut length = None;
    let mut chunked = false;
    let mut hosts = 0;
    let mut keep_alive = http11;
    let mut expects_continue = false;
    for header in request.headers.iter() {
        match header.name.len() {
            4 if header.name.eq_ignore_ascii_case("host") => hosts += 1,
            14 if header.name.eq_ignore_ascii_case("content-length") => {
                if length.replace(parse_length(header.value)?).is_some() {
                    return Err(BAD_REQUEST);
                }
            }
            17 if header.name.eq_ignore_ascii_case("transfer-encoding") => {
                if chunked || !header.value.eq_ignore_ascii_case(b"chunked") {
                    return Err(BAD_REQUEST);
                }
                chunked = true;
            }
            10 if header.name.eq_ignore_ascii_case("connection") => {
                keep_alive = keep_alive && !header.value.eq_ignore_ascii_case(b"close");
            }
            6 if header.name.eq_ignore_ascii_case("expect") => expects_continue = true,
            _ => {}
        }
    }
    if (http11 && hosts != 1) || hosts > 1 || (chunked && (length.is_some() || !http11)) {
        return Err(BAD_REQUEST);
    }
    let framing = if chunked { Framing::Chunked } else { Framing::Length(length.unwrap_or(0)) };
    Ok(Some(Head { bytes, framing, keep_alive, expects_continue }))
}

pub fn parse_length(value: &[u8]) -> Result<usize, Refusal> {
    if value.is_empty() || value.len() > 18 {
        return Err(BAD_REQUEST);
    }
    let mut length = 0_usize;
    for digit in value {
        if !digit.is_ascii_digit() {
            return Err(BAD_REQUEST);
        }
        length = length * 10 + usize::from(digit - b'0');
    }
    if length > BODY_BYTES_MAX { Err(TOO_LARGE) } else { Ok(length) }
}

/// `None` when the peer is gone. No trailers, no chunk extensions: the stand needs neither.
async fn read_chunks<W: Wire>(
    wire: &mut W,
    buffer: &mut BytesMut,
    answers: &mut Vec<u8>,
) -> Result<Option<Bytes>, Refusal> {
    let mut body = BytesMut::new();
    loop {
        let Some(at) = memchr::memchr(b'\n', buffer) else {
            if buffer.len() > 18 {
                return Err(BAD_REQUEST);
            }
            if !flush(wire, answers).await || !fill(wire, buffer, READ_BUFFER_BYTES / 2).await {
                return Ok(None);
            }
            continue;
        };
        if at == 0 || buffer[at - 1] != b'\r' {
            return Err(BAD_REQUEST);
        }
        let digits = std::str::from_utf8(&buffer[..at - 1]).map_err(|_| BAD_REQUEST)?;
        let size = usize::from_str_radix(digits, 16).map_err(|_| BAD_REQUEST)?;
        if size + body.len() > BODY_BYTES_MAX {
            return Err(TOO_LARGE);
        }
        let _ = buffer.split_to(at + 1);
        while buffer.len() < size + 2 {
            if !flush(wire, answers).await || !fill(wire, buffer, size + 2).await {
                return Ok(None);
            }
        }
        if &buffer[size..size + 2] != b"\r\n" {
            return Err(BAD_REQUEST);
        }
        body.extend_from_slice(&buffer[..size]);
        let _ = buffer.split_to(size + 2);
        if size == 0 {
            return Ok(Some(body.freeze()));
        }
    }
}

/// The whole answer of one publish, appended to what waits to be sent.
fn write_answer(answers: &mut Vec<u8>, id: u64) {
    let mut hex = [0; 16];
    write_hex(id, &mut hex);
    answers.extend_from_slice(b"HTTP/1.1 201 Created\r\nServer: kateway\r\nDate: ");
    DATE.with_borrow_mut(|date| answers.extend_from_slice(date.now()));
    answers.extend_from_slice(b"\r\nX-Request-Id: ");
    answers.extend_from_slice(&hex);
    answers.extend_from_slice(b"\r\nContent-Type: application/json\r\nContent-Length: 8\r\n\r\n{\"ok\":1}");
}

thread_local! {
    static DATE: RefCell<DateCache> = const { RefCell::new(DateCache { second: 0, text: [0; 29] }) };
}

/// The Date header's text, made once a second.
struct DateCache {
    second: u64,
    text: [u8; 29],
}

impl DateCache {
    fn now(&mut self) -> &[u8] {
        let second = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        if second != self.second {
            self.second = second;
            self.text = http_date(second);
        }
        &self.text
    }
}

fn http_date(second: u64) -> [u8; 29] {
    let days = second / 86_400;
    let (hour, minute, seconds) = (second / 3_600 % 24, second / 60 % 60, second % 60);
    // Days to civil date, after Howard Hinnant's chrono algorithms, for dates from 1970 on.
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_shifted + 2) / 5 + 1;
    let month = if month_shifted < 10 { month_shifted + 3 } else { month_shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let names = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let weekday = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"][(days % 7) as usize];
    let name = names[(month - 1) as usize];
    let text = format!("{weekday}, {day:02} {name} {year} {hour:02}:{minute:02}:{seconds:02} GMT");
    let mut out = [b' '; 29];
    out.copy_from_slice(text.as_bytes());
    out
}
