//! Lines and frames, taken out of a body that comes piece by piece.
//!
//! A message that lies in one piece is a slice of it, or a copy if it is a small part; one that lies across several is put together. Invariants: no more is kept than one
//! message may have; a bad line or frame is that message's result, and what follows is found all the same.

use bytes::{Buf, Bytes};
use memchr::memchr;

use super::{
    super::{publish, reply::Problem},
    parse::{Form, Parsed, checked, line, text_bytes_max, wrong},
};
use crate::limits;

/// Bytes of a frame's length.
const FRAME_HEAD_BYTES: usize = 4;

/// See the module text.
#[derive(Debug)]
pub struct Splitter {
    is_framed: bool,
    message_bytes_max: usize,
    piece: Bytes,
    /// What came before the piece of the message that goes on in it.
    partial: Vec<u8>,
    /// What is passed by of a message that is too long: of a frame so many bytes, of a line all up to its end.
    skipping: u64,
}

impl Splitter {
    pub fn new(form: Form, message_bytes_max: usize) -> Self {
        let is_framed = form == Form::Frames;
        Self { is_framed, message_bytes_max, piece: Bytes::new(), partial: Vec::new(), skipping: 0 }
    }

    /// The next piece, once all of the one before was taken.
    pub fn feed(&mut self, piece: Bytes) {
        debug_assert!(self.piece.is_empty(), "the piece before was taken whole");
        self.piece = piece;
    }

    /// The next message; `None` when the rest of it has not come yet.
    pub fn next(&mut self) -> Option<Parsed> {
        if self.is_framed { self.next_frame() } else { self.next_line() }
    }

    /// What is kept of a message that goes on.
    pub fn held_bytes(&self) -> usize {
        self.partial.capacity()
    }

    /// At the end of the body: what stands behind the last line's end, or a frame that is not whole.
    pub fn last(&mut self) -> Option<Parsed> {
        if self.is_framed {
            // Said once.
            let (skipping, partial) = (std::mem::take(&mut self.skipping), std::mem::take(&mut self.partial));
            let is_cut = skipping > 0 || !partial.is_empty();
            return is_cut.then(|| Err(wrong("the last frame is cut short")));
        }
        self.line(Bytes::new())
    }

    // === lines ===

    /// A line as it was sent may be longer than its message: of a string escapes are up to six bytes for one; there may be white space.
    fn line_bytes_max(&self, end: &[u8]) -> usize {
        let first = self.partial.first().or_else(|| end.trim_ascii_start().first());
        let is_text = first == Some(&b'"');
        64 + if is_text { text_bytes_max(self.message_bytes_max) } else { 2 * self.message_bytes_max }
    }

    fn next_line(&mut self) -> Option<Parsed> {
        while !self.piece.is_empty() {
            let Some(at) = memchr(b'\n', &self.piece) else {
                self.keep();
                return None;
            };
            let end = self.piece.split_to(at);
            self.piece.advance(1);
            if let Some(parsed) = self.line(end) {
                return Some(parsed);
            }
        }
        None
    }

    /// The rest of the piece belongs to a line that goes on.
    fn keep(&mut self) {
        if self.partial.is_empty() {
            // White space before it is not worth keeping.
            let white = self.piece.len() - self.piece.trim_ascii_start().len();
            self.piece.advance(white);
        }
        if self.partial.len() + self.piece.len() > self.line_bytes_max(&self.piece) {
            self.skipping = 1;
            self.partial = Vec::new();
        }
        if self.skipping == 0 {
            self.partial.extend_from_slice(&self.piece);
        }
        self.piece = Bytes::new();
    }

    /// A line with its end; `None` when there is nothing in it.
    fn line(&mut self, mut end: Bytes) -> Option<Parsed> {
        if self.partial.is_empty() {
            end = end.slice_ref(end.trim_ascii_start());
        }
        if std::mem::take(&mut self.skipping) > 0 || self.partial.len() + end.len() > self.line_bytes_max(&end) {
            self.partial = Vec::new();
            return Some(Err(self.too_large()));
        }
        let whole = if self.partial.is_empty() {
            end
        } else {
            self.partial.extend_from_slice(&end);
            Bytes::from(std::mem::take(&mut self.partial))
        };
        let trimmed = whole.trim_ascii();
        if trimmed.is_empty() {
            return None;
        }
        let apart_below = (limits::BODY_PIECE_BYTES / 2).max(whole.len() / 2);
        let text = if trimmed.len() == whole.len() { whole } else { whole.slice_ref(trimmed) };
        Some(line(&text, self.message_bytes_max).map(|item| item.apart(apart_below)))
    }

    fn too_large(&self) -> Problem {
        publish::too_large(self.message_bytes_max)
    }

    // === frames ===

    fn next_frame(&mut self) -> Option<Parsed> {
        if self.skipping > 0 {
            let here = self.skipping.min(self.piece.len() as u64);
            self.piece.advance(usize::try_from(here).unwrap_or(0));
            self.skipping -= here;
            if self.skipping > 0 {
                return None;
            }
            return Some(Err(self.too_large()));
        }
        let mut head = [0; FRAME_HEAD_BYTES];
        if !self.look(&mut head) {
            self.partial.extend_from_slice(&std::mem::take(&mut self.piece));
            return None;
        }
        let length = u32::from_be_bytes(head) as usize;
        if length > self.message_bytes_max {
            self.drop_head();
            self.skipping = length as u64;
            return self.next_frame();
        }
        let whole = FRAME_HEAD_BYTES + length;
        if self.partial.len() + self.piece.len() < whole {
            self.partial.reserve_exact(whole - self.partial.len());
            self.partial.extend_from_slice(&std::mem::take(&mut self.piece));
            return None;
        }
        if self.partial.is_empty() {
            self.piece.advance(FRAME_HEAD_BYTES);
            let item = checked(self.piece.split_to(length), self.message_bytes_max);
            return Some(item.map(|item| item.apart(limits::BODY_PIECE_BYTES / 2)));
        }
        let rest = self.piece.split_to(whole - self.partial.len());
        self.partial.extend_from_slice(&rest);
        let mut frame = Bytes::from(std::mem::take(&mut self.partial));
        frame.advance(FRAME_HEAD_BYTES);
        Some(checked(frame, self.message_bytes_max))
    }

    /// Reads the length of the next frame, if it has come whole.
    fn look(&self, head: &mut [u8; FRAME_HEAD_BYTES]) -> bool {
        let come = self.partial.iter().chain(&self.piece);
        let mut count = 0;
        for (place, byte) in head.iter_mut().zip(come) {
            *place = *byte;
            count += 1;
        }
        count == FRAME_HEAD_BYTES
    }

    fn drop_head(&mut self) {
        // Fewer than a head's bytes were kept, or the frame would have been looked at before.
        let kept = std::mem::take(&mut self.partial).len();
        self.piece.advance(FRAME_HEAD_BYTES.saturating_sub(kept));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes out when the body comes in pieces of so many bytes.
    fn split(form: Form, body: &[u8], piece_bytes: usize) -> Vec<Result<Vec<u8>, u32>> {
        let mut splitter = Splitter::new(form, 20);
        let mut all = Vec::new();
        for piece in body.chunks(piece_bytes) {
            splitter.feed(Bytes::copy_from_slice(piece));
            while let Some(parsed) = splitter.next() {
                all.push(parsed);
            }
        }
        // As it is asked: until there is nothing more.
        for _ in 0..3 {
            all.extend(splitter.last());
        }
        let said = |parsed: Parsed| parsed.map(|item| item.value.to_vec()).map_err(|problem| problem.code.number);
        all.into_iter().map(said).collect()
    }

    fn in_all_pieces(form: Form, body: &[u8], expected: &[Result<&[u8], u32>]) {
        let expected: Vec<_> = expected.iter().map(|one| one.map(<[u8]>::to_vec)).collect();
        for piece_bytes in 1..=body.len().max(1) {
            assert_eq!(split(form, body, piece_bytes), expected, "in pieces of {piece_bytes}");
        }
    }

    #[test]
    fn lines_end_where_they_end() {
        let long = format!("\"{}\"\n", "x".repeat(21));
        let endless = format!("\"{}\"\n", "x".repeat(200));
        let body = format!("1\n\n {{\"a\":2}} \r\n{{]\n\"te\\nxt\"\n{long}{endless}  \n3");
        let expected: [Result<&[u8], u32>; 7] =
            [Ok(b"1"), Ok(b"{\"a\":2}"), Err(40014), Ok(b"te\nxt"), Err(41301), Err(41301), Ok(b"3")];
        in_all_pieces(Form::Lines, body.as_bytes(), &expected);
        in_all_pieces(Form::Lines, b"\n \r\n", &[]);
    }

    #[test]
    fn a_small_message_keeps_no_piece() {
        for (form, body) in [(Form::Lines, &b"12\n34\n"[..]), (Form::Frames, b"\0\0\0\x0212\0\0\0\x0234")] {
            let piece = Bytes::copy_from_slice(body);
            let mut splitter = Splitter::new(form, 20);
            splitter.feed(piece.clone());
            let items: Vec<_> = std::iter::from_fn(|| splitter.next()).map(|item| item.expect("good").value).collect();
            assert_eq!(items, [&b"12"[..], b"34"]);
            assert!(items.iter().all(|value| !piece.as_ptr_range().contains(&value.as_ptr())), "{form:?}");
        }
    }

    #[test]
    fn a_line_may_be_six_times_its_message() {
        let line = format!("\"{}\"", "\\u0001".repeat(20));
        in_all_pieces(Form::Lines, line.as_bytes(), &[Ok(&[1; 20])]);
    }

    #[test]
    fn white_space_before_a_line_counts_for_nothing() {
        let body = format!("{0}1\n{0}\n{0}\"x\" \n1{0}\n", " ".repeat(200));
        in_all_pieces(Form::Lines, body.as_bytes(), &[Ok(b"1"), Ok(b"x"), Err(41301)]);
    }

    #[test]
    fn frames_are_taken_by_their_length() {
        let mut body = b"\0\0\0\x02ab\0\0\0\0\0\0\0\x03c\nd\0\0\0\x16".to_vec();
        body.extend_from_slice(&[b'x'; 22]);
        body.extend_from_slice(b"\0\0\0\x01e");
        let expected: [Result<&[u8], u32>; 5] = [Ok(b"ab"), Err(40006), Ok(b"c\nd"), Err(41301), Ok(b"e")];
        in_all_pieces(Form::Frames, &body, &expected);
        let cut: [Result<&[u8], u32>; 2] = [Ok(b"ab"), Err(40014)];
        for body in
            [&b"\0\0\0\x02ab\0\0\0\x02a"[..], b"\0\0\0\x02ab\0", b"\0\0\0\x02ab\xff\0\0\0a", b"\0\0\0\x02ab\0\0\0\x01"]
        {
            in_all_pieces(Form::Frames, body, &cut);
        }
    }
}
