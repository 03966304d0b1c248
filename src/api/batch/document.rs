//! Where the elements of a JSON array stand. The whole document is checked before one of them is given.
//!
//! ```text
//!   [ a, b, c, ... , x, y, z ]
//!     \----- run ----/ \-- run --/      each, in brackets, is given to simd-json; its structural indexes say where elements begin
//! ```
//!
//! A document of up to one run is given to it as it is. A longer one is cut at commas between elements, which keeps what the parser
//! needs beside it small, and lets the core do something else in between: runs that are good arrays, with commas between them and in
//! brackets, are a good array, and no other is. Invariant: what is given begins and ends where the element does, without white space.

use std::ops::Range;

use bytes::Bytes;
use memchr::memchr2;
use simd_json::{Buffers, INPUT_PADDING, Node, Tape};

use super::{super::codes, super::reply::Problem, parse::wrong};
use crate::limits;

/// The elements, at most `messages_max`.
pub async fn elements(body: &Bytes, messages_max: usize) -> Result<Vec<Range<usize>>, Problem> {
    let mut parser = Parser::default();
    let mut found = Vec::new();
    if body.len() <= 2 * limits::BATCH_RUN_BYTES {
        let content = parser.check(body)?.ok_or_else(not_an_array)?;
        let interior = content.start + 1..content.end;
        parser.collect(body, interior, 0, messages_max, &mut found)?;
        return if found.is_empty() { Err(no_messages()) } else { Ok(found) };
    }
    let start = after_white(body, 0);
    let end = body.trim_ascii_end().len();
    if body.get(start) != Some(&b'[') || end <= start + 1 || body[end - 1] != b']' {
        return Err(not_an_array());
    }
    let (mut at, end) = (start + 1, end - 1);
    let mut run = Vec::new();
    while at < end {
        let run_end = end_of_run(&body[..end], at);
        run.clear();
        run.push(b'[');
        run.extend_from_slice(&body[at..run_end]);
        run.push(b']');
        parser.check(&run)?.ok_or_else(not_an_array)?;
        let before = found.len();
        // The run's own bracket stands one before its first byte.
        parser.collect(&run, 1..run.len(), at.wrapping_sub(1), messages_max, &mut found)?;
        if found.len() == before || run_end + 1 == end {
            return Err(wrong("the body is not JSON: an element is missing"));
        }
        at = run_end + 1;
        glommio::executor().yield_if_needed().await;
    }
    Ok(found)
}

fn not_an_array() -> Problem {
    wrong("the body is not a JSON array")
}

fn no_messages() -> Problem {
    Problem::new(&codes::EMPTY_MESSAGE, "a batch has at least one message")
}

/// What simd-json works with.
struct Parser {
    /// It unescapes in place, and the messages must stay what they are; and it wants to read a little past the end.
    copy: Vec<u8>,
    buffers: Buffers,
}

impl Default for Parser {
    fn default() -> Self {
        Self { copy: Vec::new(), buffers: Buffers::new(0) }
    }
}

impl Parser {
    /// Checks a whole document. Gives where its content stands if it is an array.
    fn check(&mut self, document: &[u8]) -> Result<Option<Range<usize>>, Problem> {
        self.copy.clear();
        self.copy.reserve(document.len() + INPUT_PADDING);
        self.copy.extend_from_slice(document);
        self.copy.resize(document.len() + INPUT_PADDING, b' ');
        let mut tape = Tape(Vec::with_capacity(document.len() / 16));
        simd_json::fill_tape_padded(&mut self.copy, document.len(), &mut self.buffers, &mut tape)
            .map_err(|error| wrong(format!("the body is not JSON: {error}")))?;
        let is_array = matches!(tape.0.first(), Some(Node::Array { .. }));
        let start = after_white(document, 0);
        Ok(is_array.then_some(start..document.len()))
    }

    /// Adds the elements of the array just checked, whose inside is `inside`; `offset` is added to where they stand.
    fn collect(
        &self,
        document: &[u8],
        inside: Range<usize>,
        offset: usize,
        messages_max: usize,
        found: &mut Vec<Range<usize>>,
    ) -> Result<(), Problem> {
        let (mut depth, mut start) = (0_usize, None);
        for index in self.buffers.structural_indexes() {
            let at = *index as usize;
            if at < inside.start {
                continue;
            }
            let Some(byte) = document.get(at) else { break };
            match byte {
                b'{' | b'[' => {
                    start = start.or(Some(at));
                    depth += 1;
                }
                b'}' | b']' if depth > 0 => depth -= 1,
                b',' | b']' if depth == 0 => {
                    if let Some(start) = start.take() {
                        if found.len() == messages_max {
                            return Err(too_many(messages_max));
                        }
                        let end = start + document[start..at].trim_ascii_end().len();
                        found.push(start.wrapping_add(offset)..end.wrapping_add(offset));
                    }
                    if *byte == b']' {
                        break;
                    }
                }
                b',' | b':' => {}
                _ => start = start.or(Some(at)),
            }
        }
        Ok(())
    }
}

pub fn too_many(messages_max: usize) -> Problem {
    Problem::new(&codes::TOO_MANY_MESSAGES, format!("a batch has at most {messages_max} messages"))
}

fn after_white(body: &[u8], mut at: usize) -> usize {
    while body.get(at).is_some_and(|byte| matches!(byte, b' ' | b'\t' | b'\r' | b'\n')) {
        at += 1;
    }
    at
}

/// The first comma between elements that has a run's length before it, or the end.
fn end_of_run(body: &[u8], start: usize) -> usize {
    let (mut at, mut depth) = (start, 0_isize);
    while let Some(byte) = body.get(at) {
        match byte {
            b'"' => {
                at = end_of_string(body, at);
                continue;
            }
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth -= 1,
            b',' if depth == 0 && at - start >= limits::BATCH_RUN_BYTES => return at,
            _ => {}
        }
        at += 1;
    }
    body.len()
}

/// One past the closing quote of the string that begins at `at`.
fn end_of_string(body: &[u8], at: usize) -> usize {
    let mut at = at + 1;
    while let Some(found) = body.get(at..).and_then(|rest| memchr2(b'"', b'\\', rest)) {
        at += found;
        if body[at] == b'"' {
            return at + 1;
        }
        at += 2;
    }
    body.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(body: &str) -> Result<Vec<String>, u32> {
        let bytes = Bytes::from(body.to_owned());
        let executor = glommio::LocalExecutorBuilder::default().io_memory(1 << 20).make().expect("an executor");
        let ranges = executor.run(async { elements(&bytes, limits::BATCH_MESSAGES_MAX).await });
        let ranges = ranges.map_err(|problem| problem.code.number)?;
        Ok(ranges.into_iter().map(|range| body[range].to_owned()).collect())
    }

    /// The same elements, as many as make several runs.
    fn long(body: &str) -> Option<String> {
        let inside = body.trim().strip_prefix('[')?.strip_suffix(']')?;
        let filler = format!("\"{}\"", "x,]\\\"".repeat(3_000));
        let fillers = vec![filler; 20].join(" ,");
        Some(format!(" [{fillers},{inside},{fillers}, {inside} ] "))
    }

    #[test]
    fn elements_are_their_exact_bytes() {
        let body =
            " [ {\"a\" : 1.0} ,[1, [2]],\"te\\\"xt\" , \"\u{e4}]\",-1e+2,true\t,{\"]\":\"\\\\\"},null,\"\\\\\"\n] ";
        let expected = [
            "{\"a\" : 1.0}",
            "[1, [2]]",
            "\"te\\\"xt\"",
            "\"\u{e4}]\"",
            "-1e+2",
            "true",
            "{\"]\":\"\\\\\"}",
            "null",
            "\"\\\\\"",
        ];
        assert_eq!(found(body).expect("good"), expected);
        assert_eq!(found("[1]").expect("good"), ["1"]);
        let several = found(&long(body).expect("an array")).expect("good");
        assert_eq!(several.len(), 2 * (20 + expected.len()));
        assert_eq!(several[20..20 + expected.len()], expected);
        assert_eq!(several[40 + expected.len()..], expected);
    }

    #[test]
    fn one_fault_in_a_document_is_all_there_is() {
        let bad = [
            "[1,]",
            "[1,2",
            "{\"a\":1}",
            "1",
            "[1] 2",
            "[\"\\x\"]",
            "[01]",
            "",
            "[1,\"\u{1}\"]",
            "[,1]",
            "[1 2]",
            "[1],[2]",
            "[1,,2]",
            "[{\"a\":1]",
            "[\"a]",
            "[nul]",
            "]",
            "[",
            "[[1]",
            "[1]]",
        ];
        for body in bad {
            assert_eq!(found(body), Err(40014), "{body}");
            if let Some(long) = long(body) {
                assert_eq!(found(&long), Err(40014), "{body}, among others");
            }
        }
        assert_eq!(found(" [ ]"), Err(40006));
        let spaces = format!("[{}]", " ".repeat(3 * limits::BATCH_RUN_BYTES));
        assert_eq!(found(&spaces), Err(40014));
        assert_eq!(found(&format!("[{}1]", "1,".repeat(limits::BATCH_MESSAGES_MAX))), Err(40016));
        assert_eq!(
            found(&format!("[{}1]", "1,".repeat(limits::BATCH_MESSAGES_MAX - 1))).map(|all| all.len()),
            Ok(4_000)
        );
    }
}
