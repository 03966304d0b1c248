//! The framing scanner before hyper: follows the same bytes, and stops the connection where hyper would be too lenient.
//!
//! hyper drops Content-Length beside Transfer-Encoding and a repeated equal Content-Length before a handler sees them,
//! and takes a bare LF. So each head is looked at twice: once here, once by hyper. To know where the next head
//! starts, the scanner must follow bodies too.

use memchr::{memchr, memmem};

use crate::own::{HEAD_BYTES_MAX, parse_length};

enum State {
    Head,
    Body {
        left: usize,
    },
    ChunkSize,
    /// `left` counts the chunk's bytes and its CRLF.
    ChunkData {
        left: usize,
        last: bool,
    },
}

pub struct Scanner {
    state: State,
    /// What of the current line or head came with earlier reads.
    carry: Vec<u8>,
}

/// The bytes must not reach hyper; answer with this status line and close.
pub type Refusal = &'static str;
const BAD_REQUEST: Refusal = "400 Bad Request";
const HEAD_TOO_LARGE: Refusal = "431 Request Header Fields Too Large";

impl Scanner {
    pub fn new() -> Self {
        Self { state: State::Head, carry: Vec::new() }
    }

    /// Follows the next bytes of the connection.
    pub fn scan(&mut self, mut bytes: &[u8]) -> Result<(), Refusal> {
        while !bytes.is_empty() {
            match &mut self.state {
                State::Body { left } => {
                    let taken = (*left).min(bytes.len());
                    *left -= taken;
                    bytes = &bytes[taken..];
                    if *left == 0 {
                        self.state = State::Head;
                    }
                }
                State::ChunkData { left, last } => {
                    let taken = (*left).min(bytes.len());
                    *left -= taken;
                    bytes = &bytes[taken..];
                    if *left == 0 {
                        self.state = if *last { State::Head } else { State::ChunkSize };
                    }
                }
                State::Head => bytes = self.scan_head(bytes)?,
                State::ChunkSize => bytes = self.scan_chunk_size(bytes)?,
            }
        }
        Ok(())
    }

    fn scan_head<'a>(&mut self, bytes: &'a [u8]) -> Result<&'a [u8], Refusal> {
        if self.carry.is_empty() {
            if let Some(at) = memmem::find(bytes, b"\r\n\r\n") {
                self.state = check_head(&bytes[..at + 4])?;
                return Ok(&bytes[at + 4..]);
            }
            check_partial_head(bytes)?;
            self.carry.extend_from_slice(bytes);
            return Ok(&[]);
        }
        let known = self.carry.len();
        self.carry.extend_from_slice(&bytes[..bytes.len().min(HEAD_BYTES_MAX + 1)]);
        let Some(at) = memmem::find(&self.carry[known.saturating_sub(3)..], b"\r\n\r\n") else {
            check_partial_head(&self.carry)?;
            return Ok(&[]);
        };
        let end = known.saturating_sub(3) + at + 4;
        self.state = check_head(&self.carry[..end])?;
        self.carry.clear();
        Ok(&bytes[end - known..])
    }

    fn scan_chunk_size<'a>(&mut self, bytes: &'a [u8]) -> Result<&'a [u8], Refusal> {
        let Some(at) = memchr(b'\n', bytes) else {
            self.carry.extend_from_slice(bytes);
            return if self.carry.len() > 18 { Err(BAD_REQUEST) } else { Ok(&[]) };
        };
        self.carry.extend_from_slice(&bytes[..=at]);
        let digits = self.carry.strip_suffix(b"\r\n").ok_or(BAD_REQUEST)?;
        let digits = std::str::from_utf8(digits).map_err(|_| BAD_REQUEST)?;
        let size = usize::from_str_radix(digits, 16).map_err(|_| BAD_REQUEST)?;
        self.carry.clear();
        self.state = State::ChunkData { left: size.checked_add(2).ok_or(BAD_REQUEST)?, last: size == 0 };
        Ok(&bytes[at + 1..])
    }
}

/// A head that is not complete: still within the limit, and no bare LF that would make hyper see its end.
fn check_partial_head(bytes: &[u8]) -> Result<(), Refusal> {
    if bytes.len() > HEAD_BYTES_MAX {
        return Err(HEAD_TOO_LARGE);
    }
    if memchr::memchr_iter(b'\n', bytes).any(|at| at == 0 || bytes[at - 1] != b'\r') {
        return Err(BAD_REQUEST);
    }
    Ok(())
}

/// Strict checks of a complete head; returns what follows it.
fn check_head(head: &[u8]) -> Result<State, Refusal> {
    if head.len() > HEAD_BYTES_MAX {
        return Err(HEAD_TOO_LARGE);
    }
    let mut rest = head;
    let mut length = None;
    let mut chunked = false;
    let mut hosts = 0;
    let mut first = true;
    while let Some(at) = memchr(b'\n', rest) {
        let line = rest[..at].strip_suffix(b"\r").ok_or(BAD_REQUEST)?;
        rest = &rest[at + 1..];
        if first || line.is_empty() {
            first = false;
            continue;
        }
        let colon = memchr(b':', line).ok_or(BAD_REQUEST)?;
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        match name.len() {
            4 if name.eq_ignore_ascii_case(b"host") => hosts += 1,
            14 if name.eq_ignore_ascii_case(b"content-length") => {
                if length.replace(parse_length(value)?).is_some() {
                    return Err(BAD_REQUEST);
                }
            }
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => {
                if chunked || !value.eq_ignore_ascii_case(b"chunked") {
                    return Err(BAD_REQUEST);
                }
                chunked = true;
            }
            _ => {}
        }
    }
    if hosts > 1 || (chunked && length.is_some()) {
        return Err(BAD_REQUEST);
    }
    Ok(match (chunked, length.unwrap_or(0)) {
        (true, _) => State::ChunkSize,
        (false, 0) => State::Head,
        (false, left) => State::Body { left },
    })
}
