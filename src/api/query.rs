//! Query strings and header values, read strictly: an unknown or doubled parameter is refused, because a misspelt `ack` must
//! not lose data.

use std::time::Duration;

use bytes::Bytes;
use smallvec::SmallVec;

use super::{codes, reply::Problem};

/// Parameters old clients send everywhere; taken and without effect.
const LEGACY: [&str; 4] = ["mux", "use", "replicas", "limit"];

/// The parameters of one request.
#[derive(Debug, Default)]
pub struct Query<'a> {
    pairs: SmallVec<[(&'a [u8], &'a [u8]); 8]>,
}

impl<'a> Query<'a> {
    /// Splits the query; refuses what `allowed` does not name.
    pub fn parse(query: Option<&'a [u8]>, allowed: &[&str]) -> Result<Self, Problem> {
        let mut pairs: SmallVec<[(&[u8], &[u8]); 8]> = SmallVec::new();
        for pair in query.unwrap_or_default().split(|b| *b == b'&').filter(|p| !p.is_empty()) {
            let (name, value) = match memchr::memchr(b'=', pair) {
                Some(at) => (&pair[..at], &pair[at + 1..]),
                None => (pair, &b""[..]),
            };
            let is_known = allowed.iter().chain(&LEGACY).any(|known| known.as_bytes() == name);
            if !is_known {
                let detail = format!("unknown parameter {:?}", String::from_utf8_lossy(name));
                return Err(Problem::new(&codes::UNKNOWN_PARAMETER, detail));
            }
            if pairs.iter().any(|(seen, _)| *seen == name) {
                let detail = format!("parameter {} is given twice", String::from_utf8_lossy(name));
                return Err(Problem::new(&codes::DOUBLED_PARAMETER, detail));
            }
            pairs.push((name, value));
        }
        Ok(Self { pairs })
    }

    /// The value as written.
    pub fn get(&self, name: &str) -> Option<&'a [u8]> {
        self.pairs.iter().find(|(n, _)| *n == name.as_bytes()).map(|(_, value)| *value)
    }

    /// The value of a parameter that has to be there.
    pub fn required(&self, name: &'static str) -> Result<&'a [u8], Problem> {
        self.get(name).ok_or_else(|| missing(name))
    }

    /// A whole number within `range`.
    pub fn number(&self, name: &str, range: std::ops::RangeInclusive<i64>) -> Result<Option<i64>, Problem> {
        let Some(text) = self.get(name) else { return Ok(None) };
        let digits = text.strip_prefix(b"-").unwrap_or(text);
        let is_number = (1..=18).contains(&digits.len()) && digits.iter().all(u8::is_ascii_digit);
        let number = std::str::from_utf8(text).ok().filter(|_| is_number).and_then(|t| t.parse().ok());
        match number {
            Some(number) if range.contains(&number) => Ok(Some(number)),
            _ => Err(invalid(name, text, &format!("a whole number from {} to {}", range.start(), range.end()))),
        }
    }

    /// `1` or `0`.
    pub fn flag(&self, name: &str) -> Result<bool, Problem> {
        match self.get(name) {
            None | Some(b"0") => Ok(false),
            Some(b"1") => Ok(true),
            Some(other) => Err(invalid(name, other, "0 or 1")),
        }
    }

    /// Whole seconds, or a number with `ms`, `s`, `m` or `h`.
    pub fn duration(&self, name: &str, max: Duration) -> Result<Option<Duration>, Problem> {
        let Some(text) = self.get(name) else { return Ok(None) };
        match parse_duration(text) {
            Some(duration) if duration <= max => Ok(Some(duration)),
            _ => Err(invalid(
                name,
                text,
                &format!("a duration such as 500ms, 90s, 5m or 2h, at most {}s", max.as_secs()),
            )),
        }
    }
}

/// The problem of a parameter that has to be there.
pub fn missing(name: &str) -> Problem {
    Problem::new(&codes::MISSING_PARAMETER, format!("{name}= is required"))
}

/// The problem of a value that is not of its form.
pub fn invalid(name: &str, value: &[u8], expected: &str) -> Problem {
    let shown = String::from_utf8_lossy(&value[..value.len().min(64)]).into_owned();
    Problem::new(&codes::INVALID_PARAMETER, format!("{name}={shown:?} is not {expected}"))
}

pub fn parse_duration(text: &[u8]) -> Option<Duration> {
    let digits = text.iter().take_while(|b| b.is_ascii_digit()).count();
    if !(1..=9).contains(&digits) {
        return None;
    }
    let number: u64 = std::str::from_utf8(&text[..digits]).ok()?.parse().ok()?;
    match &text[digits..] {
        b"" | b"s" => Some(Duration::from_secs(number)),
        b"ms" => Some(Duration::from_millis(number)),
        b"m" => Some(Duration::from_secs(number * 60)),
        b"h" => Some(Duration::from_secs(number * 3600)),
        _ => None,
    }
}

/// Percent-decoding (RFC 3986). `None` when a `%` is not followed by two hex digits.
pub fn percent_decode(text: &[u8]) -> Option<Bytes> {
    if memchr::memchr(b'%', text).is_none() {
        return Some(Bytes::copy_from_slice(text));
    }
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, after)) = rest.split_first() {
        if byte == b'%' {
            let digits = after.get(..2)?;
            let high = char::from(digits[0]).to_digit(16)?;
            let low = char::from(digits[1]).to_digit(16)?;
            out.push(u8::try_from(high << 4 | low).ok()?);
            rest = &after[2..];
        } else {
            out.push(byte);
            rest = after;
        }
    }
    Some(out.into())
}

/// Appends `bytes` so that they can stand in a header: everything outside 0x21-0x7e, and `%`, percent-encoded.
pub fn percent_encode(bytes: &[u8], out: &mut SmallVec<[u8; 64]>) {
    for byte in bytes {
        if (0x21..=0x7e).contains(byte) && *byte != b'%' {
            out.push(*byte);
        } else {
            let hex = b"0123456789ABCDEF";
            out.extend_from_slice(&[b'%', hex[usize::from(byte >> 4)], hex[usize::from(byte & 15)]]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_and_doubled_parameters_are_refused() {
        let code =
            |query: &'static str| Query::parse(Some(query.as_bytes()), &["ack", "key"]).map_err(|p| p.code.number);
        assert!(code("ack=all&key=x&mux=1").is_ok());
        assert_eq!(code("acks=all").err(), Some(40003));
        assert_eq!(code("ack=all&ack=all").err(), Some(40004));
    }

    #[test]
    fn durations_and_numbers() {
        assert_eq!(parse_duration(b"500ms"), Some(Duration::from_millis(500)));
        assert_eq!(parse_duration(b"2h"), Some(Duration::from_secs(7200)));
        assert_eq!(parse_duration(b"90"), Some(Duration::from_secs(90)));
        for bad in [&b""[..], b"s", b"-1s", b"1e3", b"1d", b"1.5s"] {
            assert_eq!(parse_duration(bad), None);
        }
        let query = Query::parse(Some(b"batch=1e3&n=-5&m=007"), &["batch", "n", "m"]).expect("known");
        assert!(query.number("batch", 1..=4000).is_err());
        assert!(query.number("n", 1..=4000).is_err());
        assert_eq!(query.number("m", 1..=4000).ok().flatten(), Some(7));
    }

    #[test]
    fn percent_coding_goes_both_ways() {
        let all: Vec<u8> = (0..=255).collect();
        let mut encoded = SmallVec::new();
        percent_encode(&all, &mut encoded);
        assert!(encoded.iter().all(|b| (0x21..=0x7e).contains(b)));
        assert_eq!(percent_decode(&encoded).as_deref(), Some(&all[..]));
        assert_eq!(percent_decode(b"a%2"), None);
        assert_eq!(percent_decode(b"a%zz"), None);
    }
}
