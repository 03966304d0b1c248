//! The lines between the chunks of a body, read strictly (RFC 9112 section 7.1).
//!
//! What of them means nothing here, extensions and trailers, is still held to the grammar: a line that another reader takes for
//! something else must not pass. Lines come without their CRLF.

use crate::proto::head::{Malformed, is_token_byte};

/// What chunks may cost beside their bytes, more than a sender with a reason needs: 16 bytes a chunk and as many as it carries.
const OVERHEAD_BYTES_MAX: u64 = 16 * 1024;
const OVERHEAD_BYTES_FREE: u64 = 16;

/// Bytes of size lines that carried next to nothing.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Overhead(u64);

impl Overhead {
    pub(super) fn add(&mut self, line_bytes: usize, size: u64) -> Result<(), Malformed> {
        self.0 = (self.0 + line_bytes as u64).saturating_sub(OVERHEAD_BYTES_FREE + size);
        if self.0 > OVERHEAD_BYTES_MAX {
            return Err(Malformed::Syntax("chunk extensions take more than the chunks"));
        }
        Ok(())
    }
}

/// Size in hex, at most eight digits; extensions are checked and passed over.
pub(super) fn parse_size(line: &[u8]) -> Result<u64, Malformed> {
    let wrong = Malformed::Syntax("a chunk size is not a hex number");
    let end = line.iter().position(|b| !b.is_ascii_hexdigit()).unwrap_or(line.len());
    if end == 0 || end > 8 {
        return Err(wrong);
    }
    check_extensions(&line[end..])?;
    let digit = |b: &u8| u64::from(char::from(*b).to_digit(16).unwrap_or(0));
    Ok(line[..end].iter().fold(0, |size, b| size << 4 | digit(b)))
}

/// `*( ";" token [ "=" ( token / quoted-string ) ] )`, without the white space that RFC 9112 calls bad.
fn check_extensions(mut rest: &[u8]) -> Result<(), Malformed> {
    let wrong = Err(Malformed::Syntax("a chunk extension breaks the grammar"));
    let token = |bytes: &[u8]| bytes.iter().position(|b| !is_token_byte(*b)).unwrap_or(bytes.len());
    while let Some((first, after)) = rest.split_first() {
        let name = token(after);
        if *first != b';' || name == 0 {
            return wrong;
        }
        rest = &after[name..];
        let Some(value) = rest.strip_prefix(b"=") else { continue };
        let taken = if value.first() == Some(&b'"') { quoted(value) } else { token(value) };
        if taken == 0 {
            return wrong;
        }
        rest = &value[taken..];
    }
    Ok(())
}

/// Bytes of the quoted string that `text` begins with; 0 when it is none.
fn quoted(text: &[u8]) -> usize {
    let mut at = 1;
    while let Some(byte) = text.get(at) {
        match byte {
            b'"' => return at + 1,
            b'\\' if text.get(at + 1).copied().is_some_and(is_text) => at += 2,
            byte if *byte != b'\\' && is_text(*byte) => at += 1,
            _ => return 0,
        }
    }
    0
}

/// What a field value may hold.
fn is_text(byte: u8) -> bool {
    byte == b'\t' || (byte >= 0x20 && byte != 0x7f)
}

/// A trailer field means nothing here; one that would change the framing or the target had it come in the head is a trap.
pub(super) fn check_trailer(line: &[u8]) -> Result<(), Malformed> {
    let colon = memchr::memchr(b':', line).unwrap_or(0);
    let (name, value) = line.split_at(colon);
    if name.is_empty() || !name.iter().copied().all(is_token_byte) || !value.iter().copied().all(is_text) {
        return Err(Malformed::Syntax("a trailer field breaks the grammar"));
    }
    let forbidden = [&b"content-length"[..], b"transfer-encoding", b"host"];
    if forbidden.iter().any(|field| name.eq_ignore_ascii_case(field)) {
        return Err(Malformed::Syntax("a trailer field belongs into the head"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_one_way_only() {
        for (line, size) in [
            (&b"0"[..], 0),
            (b"5", 5),
            (b"00000fF", 255),
            (b"ffffffff", 0xffff_ffff),
            (b"5;a", 5),
            (b"5;a=b;c=\"d \\\" ;\";e", 5),
        ] {
            assert_eq!(parse_size(line), Ok(size), "{}", String::from_utf8_lossy(line));
        }
        for line in [
            &b""[..],
            b"000000005",
            b"-5",
            b"+5",
            b"0x5",
            b" 5",
            b"5 ",
            b"5\t",
            b"5 ;a",
            b"5;",
            b"5; a",
            b"5;=b",
            b"5;a=",
            b"5;a=\"b",
            b"5;a=\"b\"c",
            b"5;a=\"\\",
            b"5;a\rb",
            b"5;a=b\x80",
            b"5,a",
        ] {
            assert!(parse_size(line).is_err(), "{}", String::from_utf8_lossy(line));
        }
    }

    #[test]
    fn trailers_are_fields() {
        for line in [&b"A: b"[..], b"a:", b"A:b\tc \x80"] {
            assert_eq!(check_trailer(line), Ok(()), "{}", String::from_utf8_lossy(line));
        }
        for line in [
            &b"A"[..],
            b": b",
            b" A: b",
            b"A : b",
            b"A: b\r",
            b"A: b\0",
            b"\x80: b",
            b"Content-Length: 5",
            b"transfer-encoding: chunked",
            b"Host: b",
        ] {
            assert!(check_trailer(line).is_err(), "{}", String::from_utf8_lossy(line));
        }
    }

    #[test]
    fn chunks_of_one_byte_are_borne_and_their_extensions_are_not() {
        let many = |line_bytes, size| {
            let mut overhead = Overhead::default();
            (0..100_000).find(|_| overhead.add(line_bytes, size).is_err())
        };
        assert_eq!(many(1, 1), None);
        assert_eq!(many(16, 1), None);
        assert_eq!(many(1_000, 1_000), None);
        assert_eq!(many(1_000, 1), Some(16));
    }
}
