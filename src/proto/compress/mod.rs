//! Content codings: gzip (RFC 1952) and zstd (RFC 8878), on the way in and on the way out.
//!
//! Invariants: no more comes out of one step than [`crate::limits::CODING_STEP_BYTES`], and a core does something else between two steps; a
//! body whose coding does not end well is none. Knows no topic and no route.

mod deflate;
mod inflate;
mod length;

pub use deflate::{Encoders, compress};
pub use inflate::Inflated;

/// A content coding we speak.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Coding {
    Gzip,
    Zstd,
}

/// How many compressed bytes are taken of a body that becomes no more than so many: what cannot be compressed becomes a little longer.
pub fn sent_bytes_max(bytes_max: usize) -> usize {
    bytes_max + bytes_max / 64 + 1024
}

/// A coding we do not speak, or several one over the other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UnknownCoding;

impl Coding {
    pub fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        }
    }

    /// By its name (RFC 9110 section 8.4.1; `x-gzip` is gzip's older one).
    fn named(name: &[u8]) -> Option<Self> {
        if name.eq_ignore_ascii_case(b"gzip") || name.eq_ignore_ascii_case(b"x-gzip") {
            return Some(Self::Gzip);
        }
        name.eq_ignore_ascii_case(b"zstd").then_some(Self::Zstd)
    }

    /// What a body is coded with, by its `Content-Encoding`.
    pub fn of_content(field: &[u8]) -> Result<Option<Self>, UnknownCoding> {
        let name = field.trim_ascii();
        if name.is_empty() || name.eq_ignore_ascii_case(b"identity") {
            return Ok(None);
        }
        Self::named(name).map(Some).ok_or(UnknownCoding)
    }

    /// What an answer is best coded with, by the fields `Accept-Encoding` (RFC 9110 section 12.5.3); `None`: as it is. Of what is liked
    /// equally zstd, which costs a core least, then gzip; as it is only where that is liked better.
    pub fn accepted<'a>(fields: impl Iterator<Item = &'a [u8]>) -> Option<Self> {
        let (mut gzip, mut zstd, mut identity, mut others) = (None, None, None, None);
        for item in fields.flat_map(|field| field.split(|byte| *byte == b',')) {
            let mut parts = item.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
            let name = parts.next().unwrap_or_default();
            let liking = parts.find_map(weight).unwrap_or(1_000);
            match Self::named(name) {
                Some(Self::Gzip) => gzip = Some(liking),
                Some(Self::Zstd) => zstd = Some(liking),
                None if name == b"*" => others = Some(liking),
                None if name.eq_ignore_ascii_case(b"identity") => identity = Some(liking),
                None => {}
            }
        }
        let (gzip, zstd) = (gzip.or(others).unwrap_or(0), zstd.or(others).unwrap_or(0));
        let (best, coding) = if gzip > zstd { (gzip, Self::Gzip) } else { (zstd, Self::Zstd) };
        (best > 0 && best >= identity.unwrap_or(0)).then_some(coding)
    }
}

/// The parameter `q`, in thousandths; one that is not of its form counts for nothing.
pub fn weight(parameter: &[u8]) -> Option<u32> {
    let value = parameter.strip_prefix(b"q=").or_else(|| parameter.strip_prefix(b"Q="))?;
    let value = std::str::from_utf8(value).ok().and_then(|text| text.parse::<f32>().ok());
    let value = value.filter(|q| (0.0..=1.0).contains(q)).unwrap_or(0.0);
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // Between 0 and 1.
    Some((value * 1_000.0) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_liked_best_is_taken() {
        let of = |fields: &[&'static str]| Coding::accepted(fields.iter().map(|field| field.as_bytes()));
        for (field, expected) in [
            ("gzip", Some(Coding::Gzip)),
            ("GZIP;q=0.1", Some(Coding::Gzip)),
            ("x-gzip", Some(Coding::Gzip)),
            ("deflate, gzip, br, zstd", Some(Coding::Zstd)),
            ("zstd;q=0.5, gzip;q=0.6", Some(Coding::Gzip)),
            ("gzip;q=0", None),
            ("gzip;q=0, *", Some(Coding::Zstd)),
            ("*", Some(Coding::Zstd)),
            ("*;q=0", None),
            ("identity", None),
            ("gzip;q=0.5, identity;q=0.6", None),
            ("gzip, identity", Some(Coding::Gzip)),
            ("identity;q=0, gzip;q=0.001", Some(Coding::Gzip)),
            ("gzip;q=2", None),
            ("br, deflate", None),
            ("", None),
        ] {
            assert_eq!(of(&[field]), expected, "{field}");
        }
        assert_eq!(of(&["br", "gzip"]), Some(Coding::Gzip), "a list may be several fields");
        assert_eq!(of(&[]), None);
    }

    #[test]
    fn a_body_has_one_coding() {
        assert_eq!(Coding::of_content(b"gzip"), Ok(Some(Coding::Gzip)));
        assert_eq!(Coding::of_content(b" Zstd"), Ok(Some(Coding::Zstd)));
        assert_eq!(Coding::of_content(b"identity"), Ok(None));
        for unknown in [&b"br"[..], b"gzip, gzip", b"deflate"] {
            assert_eq!(Coding::of_content(unknown), Err(UnknownCoding));
        }
    }
}
