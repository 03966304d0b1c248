//! Answers of HTTP/1.1, read as they come: heads, bodies of a length or in chunks, and what a load generator wants of them.
//!
//! Invariants: bytes are consumed once; a body is never kept, but for the first bytes of a problem document. It knows nothing of
//! sockets.

use crate::{frames::Frames, stamp::Stamps};

/// What is kept of a refusal's body, to find its code.
const PROBLEM_BYTES_MAX: usize = 4_096;
/// More head than this is no answer of a gateway.
const HEAD_BYTES_MAX: usize = 64 * 1_024;

/// What the reader of a body looks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Wanted {
    /// The body of a 200 is frames, whose messages are counted; else each such answer is one message.
    pub frames: bool,
    /// Messages may open with the time they were sent.
    pub stamps: bool,
    /// Messages an answer stands for that is not read: as many as were in its request.
    pub published: u64,
}

impl Default for Wanted {
    fn default() -> Self {
        Self { frames: false, stamps: false, published: 1 }
    }
}

/// One answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answer {
    pub status: u16,
    /// Of its problem document.
    pub code: Option<u32>,
    /// Messages in it, for a read.
    pub messages: u64,
    pub bytes: u64,
    /// The connection ends with it.
    pub closes: bool,
    /// When its messages were sent, of those that say it.
    pub stamps: Vec<u64>,
}

/// The bytes are no answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Malformed(pub &'static str);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Part {
    Head,
    Length(u64),
    /// Until the connection ends.
    Endless,
    ChunkSize,
    Chunk(u64),
    ChunkEnd,
    Trailers,
}

/// What is wanted of one answer's body, whatever protocol brings it.
#[derive(Debug)]
pub struct Body {
    status: u16,
    bytes: u64,
    published: u64,
    frames: Option<Frames>,
    /// Of an answer that is one message; frames have their own.
    stamps: Option<Stamps>,
    problem: Vec<u8>,
}

impl Body {
    pub fn new(status: u16, wanted: Wanted) -> Self {
        let frames = (wanted.frames && status == 200).then(|| Frames::new(wanted.stamps));
        let stamps = (wanted.stamps && !wanted.frames && status == 200).then(Stamps::default);
        Self { status, bytes: 0, published: wanted.published, frames, stamps, problem: Vec::new() }
    }

    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), Malformed> {
        self.bytes += bytes.len() as u64;
        if let Some(frames) = &mut self.frames {
            frames.feed(bytes)?;
        } else if let Some(stamps) = &mut self.stamps {
            stamps.feed(bytes);
        } else if self.status >= 400 {
            let room = PROBLEM_BYTES_MAX.saturating_sub(self.problem.len());
            self.problem.extend_from_slice(&bytes[..bytes.len().min(room)]);
        }
        Ok(())
    }

    pub fn finish(self, closes: bool) -> Result<Answer, Malformed> {
        let Self { status, bytes, published, frames, stamps, problem } = self;
        let (messages, stamps) = if let Some(frames) = frames {
            frames.finish()?
        } else {
            let is_success = (200..300).contains(&status) && status != 204;
            (if is_success { published } else { 0 }, stamps.map_or_else(Vec::new, Stamps::finish))
        };
        Ok(Answer { status, code: problem_code(&problem), messages, bytes, closes, stamps })
    }
}

/// What is known of the answer being read.
#[derive(Debug)]
pub struct Reader {
    part: Part,
    closes: bool,
    body: Body,
    wanted: Wanted,
}

impl Reader {
    pub fn new(wanted: Wanted) -> Self {
        Self { part: Part::Head, closes: false, body: Body::new(0, Wanted::default()), wanted }
    }

    /// Reads on. Gives how many bytes were used, and the answer when it is whole; the rest is to be given again, with more.
    pub fn feed(&mut self, input: &[u8]) -> Result<(usize, Option<Answer>), Malformed> {
        let mut used = 0;
        loop {
            let rest = &input[used..];
            match self.part {
                Part::Head => {
                    let Some(length) = self.head(rest)? else { return Ok((used, None)) };
                    used += length;
                    if self.part == Part::Length(0) {
                        return Ok((used, Some(self.finish()?)));
                    }
                }
                Part::Length(left) | Part::Chunk(left) => {
                    let take = usize::try_from(left).unwrap_or(usize::MAX).min(rest.len());
                    self.body.feed(&rest[..take])?;
                    used += take;
                    let left = left - take as u64;
                    let is_chunk = matches!(self.part, Part::Chunk(_));
                    self.part = match (is_chunk, left) {
                        (true, 0) => Part::ChunkEnd,
                        (true, left) => Part::Chunk(left),
                        (false, 0) => return Ok((used, Some(self.finish()?))),
                        (false, left) => Part::Length(left),
                    };
                    if left > 0 {
                        return Ok((used, None));
                    }
                }
                Part::Endless => {
                    self.body.feed(rest)?;
                    return Ok((input.len(), None));
                }
                Part::ChunkSize | Part::ChunkEnd | Part::Trailers => {
                    let Some(line) = line(rest)? else { return Ok((used, None)) };
                    used += line.len() + 2;
                    self.part = match self.part {
                        Part::ChunkEnd if line.is_empty() => Part::ChunkSize,
                        Part::ChunkEnd => return Err(Malformed("a chunk is longer than its size")),
                        Part::ChunkSize => match chunk_size(line)? {
                            0 => Part::Trailers,
                            size => Part::Chunk(size),
                        },
                        _ if line.is_empty() => return Ok((used, Some(self.finish()?))),
                        _ => Part::Trailers,
                    };
                }
            }
        }
    }

    /// The connection has ended. The answer, if its end was the end of the body.
    pub fn end(&mut self) -> Option<Answer> {
        if self.part == Part::Endless { self.finish().ok() } else { None }
    }

    /// Whether some of an answer was read.
    pub fn is_inside(&self) -> bool {
        self.part != Part::Head
    }

    fn head(&mut self, input: &[u8]) -> Result<Option<usize>, Malformed> {
        let mut fields = [httparse::EMPTY_HEADER; 64];
        let mut head = httparse::Response::new(&mut fields);
        let length = match head.parse(input) {
            Ok(httparse::Status::Complete(length)) => length,
            Ok(httparse::Status::Partial) if input.len() > HEAD_BYTES_MAX => return Err(Malformed("an endless head")),
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(_) => return Err(Malformed("no HTTP/1.1 answer")),
        };
        let status = head.code.unwrap_or(0);
        self.closes = head.version == Some(0);
        let mut part = Part::Endless;
        for field in head.headers.iter() {
            let is = |name: &str| field.name.eq_ignore_ascii_case(name);
            if is("content-length") {
                let length = std::str::from_utf8(field.value).ok().and_then(|text| text.parse().ok());
                part = Part::Length(length.ok_or(Malformed("a content-length that is no number"))?);
            } else if is("transfer-encoding") {
                part = Part::ChunkSize;
            } else if is("connection") {
                self.closes |= field.value.eq_ignore_ascii_case(b"close");
            }
        }
        self.part = if status == 204 || status == 304 { Part::Length(0) } else { part };
        self.body = Body::new(status, self.wanted);
        Ok(Some(length))
    }

    fn finish(&mut self) -> Result<Answer, Malformed> {
        let closes = self.closes || self.part == Part::Endless;
        self.part = Part::Head;
        std::mem::replace(&mut self.body, Body::new(0, Wanted::default())).finish(closes)
    }
}

/// A line without its CRLF.
fn line(input: &[u8]) -> Result<Option<&[u8]>, Malformed> {
    match input.iter().position(|b| *b == b'\n') {
        Some(0) => Err(Malformed("a line that ends in LF alone")),
        Some(at) => input[..at].strip_suffix(b"\r").map(Some).ok_or(Malformed("a line that ends in LF alone")),
        None if input.len() > HEAD_BYTES_MAX => Err(Malformed("an endless line")),
        None => Ok(None),
    }
}

fn chunk_size(line: &[u8]) -> Result<u64, Malformed> {
    let digits = line.split(|b| *b == b';').next().unwrap_or_default();
    let text = std::str::from_utf8(digits.trim_ascii()).map_err(|_| Malformed("a chunk size that is no number"))?;
    u64::from_str_radix(text, 16).map_err(|_| Malformed("a chunk size that is no number"))
}

/// `code` of a problem document.
fn problem_code(body: &[u8]) -> Option<u32> {
    let document: serde_json::Value = serde_json::from_slice(body).ok()?;
    document.get("code")?.as_u64()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stamp;

    /// Feeds `bytes` split into pieces of `step`, and gives what came out.
    fn read(bytes: &[u8], step: usize, wanted: Wanted) -> Vec<Answer> {
        let (mut reader, mut pending, mut answers) = (Reader::new(wanted), Vec::new(), Vec::new());
        for piece in bytes.chunks(step) {
            pending.extend_from_slice(piece);
            loop {
                let (used, answer) = reader.feed(&pending).expect("well-formed");
                pending.drain(..used);
                let Some(answer) = answer else { break };
                answers.push(answer);
            }
        }
        answers.extend(reader.end());
        assert!(pending.is_empty() && !reader.is_inside());
        answers
    }

    const PIPELINED: &[u8] =
        b"HTTP/1.1 201 Created\r\nContent-Length: 8\r\n\r\n{\"ok\":1}HTTP/1.1 204 No Content\r\n\r\n\
        HTTP/1.1 503 Service Unavailable\r\ncontent-length: 14\r\nConnection: close\r\n\r\n{\"code\":50301}\
        HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0a;x=y\r\n0123456789\r\n0\r\nX-T: 1\r\n\r\n";

    #[test]
    fn answers_are_the_same_however_they_are_split() {
        let whole = read(PIPELINED, PIPELINED.len(), Wanted::default());
        let statuses: Vec<_> = whole.iter().map(|a| (a.status, a.messages, a.bytes, a.code, a.closes)).collect();
        let expected = [
            (201, 1, 8, None, false),
            (204, 0, 0, None, false),
            (503, 0, 14, Some(50301), true),
            (200, 1, 13, None, false),
        ];
        assert_eq!(statuses, expected);
        for step in 1..40 {
            assert_eq!(read(PIPELINED, step, Wanted::default()), whole, "in steps of {step}");
        }
    }

    #[test]
    fn frames_in_chunks_are_counted_with_their_stamps() {
        let mut body = Vec::new();
        for n in 0..3_u8 {
            let mut payload = [b'x'; 20];
            stamp::write(&mut payload, u64::from(n));
            body.extend_from_slice(&[0, 0, 0, n, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 20]);
            body.extend_from_slice(&payload);
        }
        let mut bytes = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
        for chunk in body.chunks(17) {
            bytes.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
            bytes.extend_from_slice(chunk);
            bytes.extend_from_slice(b"\r\n");
        }
        bytes.extend_from_slice(b"0\r\n\r\n");
        for step in 1..30 {
            let answers = read(&bytes, step, Wanted { frames: true, stamps: true, ..Wanted::default() });
            assert_eq!((answers.len(), answers[0].messages), (1, 3), "in steps of {step}");
            assert_eq!(answers[0].stamps, [0, 1, 2], "in steps of {step}");
        }
    }

    #[test]
    fn a_single_message_has_its_stamp() {
        let mut bytes = b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n".to_vec();
        bytes.extend_from_slice(&[b'x'; 20]);
        let payload = bytes.len() - 20;
        stamp::write(&mut bytes[payload..], 42);
        let answers = read(&bytes, 7, Wanted { stamps: true, ..Wanted::default() });
        assert_eq!((answers[0].messages, answers[0].stamps.as_slice()), (1, &[42][..]));
    }

    #[test]
    fn an_answer_without_length_ends_with_its_connection() {
        let answers = read(b"HTTP/1.0 200 OK\r\n\r\nall of it", 5, Wanted::default());
        assert_eq!((answers.len(), answers[0].bytes, answers[0].closes), (1, 9, true));
    }

    #[test]
    fn what_is_no_answer_is_said() {
        for bad in ["FTP\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n"] {
            assert!(Reader::new(Wanted::default()).feed(bad.as_bytes()).is_err(), "{bad:?}");
        }
        let chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        for bad in ["zz\r\n", "3\r\nabcd\r\n", "3\n"] {
            let bytes = [chunked, bad.as_bytes()].concat();
            assert!(Reader::new(Wanted::default()).feed(&bytes).is_err(), "{bad:?}");
        }
    }
}
