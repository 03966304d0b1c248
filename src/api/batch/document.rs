//! Where the elements of a JSON array stand. The whole document is checked before one of them is given.
//!
//! ```text
//!   [ a, b, c, ... , x, y, z ]
//!     \----- run ----/ \-- run --/      each, in brackets, is given to simd-json; its structural indexes say where elements begin
//! ```
//!
//! A document of up to two runs is given to it as it is. A longer one is cut at commas between elements, which keeps what the parser
//! needs beside it small, and lets the core do something else in between: runs that are good arrays, with commas between them and in
//! brackets, are a good array, and no other is. A run that it does not take is looked at element by element by serde, which has the last
//! word: simd-json refuses numbers that fit no machine's and halves of surrogate pairs, which are JSON. So is a run with a long element:
//! what simd-json needs beside it is many times its length. Invariant: what is given begins and ends where the element does, without
//! white space.

use std::ops::Range;

use bytes::Bytes;
use memchr::memchr2;
use simd_json::{Buffers, INPUT_PADDING, Node, Tape};

use super::{
    super::codes,
    super::reply::Problem,
    parse::{check_json, wrong},
};
use crate::limits;

/// The longest run that is given to simd-json.
const TAPE_RUN_BYTES_MAX: usize = 4 * limits::BATCH_RUN_BYTES;

/// The elements, at most `messages_max`.
pub async fn elements(body: &Bytes, messages_max: usize) -> Result<Vec<Range<usize>>, Problem> {
    let mut parser = Parser::default();
    let mut found = Found { elements: Vec::new(), messages_max };
    let (start, end) = (after_white(body, 0), before_white(body));
    if body.get(start) != Some(&b'[') || end <= start + 1 || body[end - 1] != b']' {
        return Err(not_an_array());
    }
    let (mut at, end) = (start + 1, end - 1);
    if after_white(body, at) == end {
        return Err(no_messages());
    }
    if body.len() <= 2 * limits::BATCH_RUN_BYTES && parser.is_array(body) {
        parser.collect(body, at..end + 1, 0, &mut found)?;
        return Ok(found.elements);
    }
    let mut run = Vec::new();
    while at < end {
        let run_end = end_of_run(&body[..end], at, limits::BATCH_RUN_BYTES);
        if run_end + 1 == end {
            return Err(wrong("the body is not JSON: an element is missing"));
        }
        let mut is_taken = false;
        if run_end - at <= TAPE_RUN_BYTES_MAX {
            run.clear();
            run.push(b'[');
            run.extend_from_slice(&body[at..run_end]);
            run.push(b']');
            let before = found.elements.len();
            if parser.is_array(&run) {
                // The run's own bracket stands one before its first byte.
                parser.collect(&run, 1..run.len(), at.wrapping_sub(1), &mut found)?;
                is_taken = found.elements.len() > before;
            }
        }
        if !is_taken {
            one_by_one(body, at..run_end, &mut found).await?;
        }
        at = run_end + 1;
        glommio::executor().yield_if_needed().await;
    }
    Ok(found.elements)
}

/// The elements of a run, each checked by itself.
async fn one_by_one(body: &[u8], run: Range<usize>, found: &mut Found) -> Result<(), Problem> {
    let mut at = run.start;
    loop {
        let end = end_of_run(&body[..run.end], at, 0);
        check_json(&body[at..end]).map_err(|problem| {
            wrong(format!("the body is not JSON: element {} is {}", found.elements.len(), problem.detail))
        })?;
        found.add(after_white(body, at)..at + before_white(&body[at..end]))?;
        if end == run.end {
            return Ok(());
        }
        at = end + 1;
        glommio::executor().yield_if_needed().await;
    }
}

/// Where elements stand.
struct Found {
    elements: Vec<Range<usize>>,
    messages_max: usize,
}

impl Found {
    fn add(&mut self, element: Range<usize>) -> Result<(), Problem> {
        if self.elements.len() == self.messages_max {
            return Err(too_many(self.messages_max));
        }
        self.elements.push(element);
        Ok(())
    }
}

fn not_an_array() -> Problem {
    wrong("the body is not a JSON array")
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
    /// Whether the document is an array, as far as simd-json can tell.
    fn is_array(&mut self, document: &[u8]) -> bool {
        self.copy.clear();
        self.copy.reserve(document.len() + INPUT_PADDING);
        self.copy.extend_from_slice(document);
        self.copy.resize(document.len() + INPUT_PADDING, b' ');
        let mut tape = Tape(Vec::with_capacity(document.len() / 16));
        let filled = simd_json::fill_tape_padded(&mut self.copy, document.len(), &mut self.buffers, &mut tape);
        filled.is_ok() && matches!(tape.0.first(), Some(Node::Array { .. }))
    }

    /// Adds the elements of the array just checked, whose inside is `inside`; `offset` is added to where they stand.
    fn collect(&self, document: &[u8], inside: Range<usize>, offset: usize, found: &mut Found) -> Result<(), Problem> {
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
                        let end = start + before_white(&document[start..at]);
                        found.add(start.wrapping_add(offset)..end.wrapping_add(offset))?;
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

pub fn no_messages() -> Problem {
    Problem::new(&codes::EMPTY_MESSAGE, "a batch has at least one message")
}

pub fn too_many(messages_max: usize) -> Problem {
    Problem::new(&codes::TOO_MANY_MESSAGES, format!("a batch has at most {messages_max} messages"))
}

fn is_white(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r' | b'\n')
}

fn after_white(body: &[u8], at: usize) -> usize {
    body[at..].iter().position(|byte| !is_white(*byte)).map_or(body.len(), |white| at + white)
}

/// One past the last byte that is no white space.
fn before_white(body: &[u8]) -> usize {
    body.iter().rposition(|byte| !is_white(*byte)).map_or(0, |last| last + 1)
}

/// The first comma between elements that has so many bytes before it, or the end.
fn end_of_run(body: &[u8], start: usize, bytes: usize) -> usize {
    let (mut at, mut depth) = (start, 0_isize);
    while let Some(byte) = body.get(at) {
        match byte {
            b'"' => {
                at = end_of_string(body, at);
                continue;
            }
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth -= 1,
            b',' if depth == 0 && at - start >= bytes => return at,
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
        let inside = body.trim_matches([' ', '\n']).strip_prefix('[')?.strip_suffix(']')?;
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
    fn json_is_what_its_grammar_says() {
        let deep = format!("{}{}", "[".repeat(3_000), "]".repeat(3_000));
        let huge = format!("[{}1]", "1,".repeat(TAPE_RUN_BYTES_MAX));
        for element in [
            "123456789012345678901234567890",
            "-9223372036854775809",
            "1e400",
            "[\"\\ud800\"]",
            "{\"\\udc00\":[1e999]}",
            &deep,
            &huge,
        ] {
            let body = format!("[1 , {element} ,\"x,\" ]");
            let expected = ["1", element, "\"x,\""];
            assert!(found(&body).expect("good") == expected, "{element:.60}");
            let several = found(&long(&body).expect("an array")).expect("good");
            assert!(several[20..23] == expected && several[43..] == expected && several.len() == 46, "{element:.60}");
            for bad in ["1 2", "[1", "1]", "", "\u{c}1", "\"\u{1}\"", "\"\\u12g4\"", "01"] {
                let body = format!("[{bad},{element}]");
                assert_eq!(found(&body), Err(40014), "{bad}, beside {element:.60}");
                let body = format!("[{element},{bad}]");
                assert_eq!(found(&body), Err(40014), "{bad}, beside {element:.60}");
            }
        }
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
            "[1]\u{c}",
            "\u{c}[1]",
            "[1,\u{c}2]",
        ];
        for body in bad {
            assert_eq!(found(body), Err(40014), "{body}");
            if let Some(long) = long(body) {
                assert_eq!(found(&long).map(|all| all.len()), Err(40014), "{body}, among others");
            }
        }
        assert_eq!(found(" [ ]"), Err(40006));
        let spaces = format!("[{}]", " ".repeat(3 * limits::BATCH_RUN_BYTES));
        assert_eq!(found(&spaces), Err(40006));
        assert_eq!(found(&format!("[{}1]", "1,".repeat(limits::BATCH_MESSAGES_MAX))), Err(40016));
        assert_eq!(
            found(&format!("[{}1]", "1,".repeat(limits::BATCH_MESSAGES_MAX - 1))).map(|all| all.len()),
            Ok(4_000)
        );
    }
}
