//! The PROXY header that a load balancer sends before a connection's own bytes, versions 1 and 2 (HAProxy's proxy-protocol.txt).
//!
//! One function from bytes to what they say. It takes no byte more than the header has, so whatever follows (TLS, HTTP) is found
//! where it stands. Who may send one is decided before: from anybody else these bytes are not looked for.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A line of version 1, CRLF included, is not longer.
const V1_BYTES_MAX: usize = 107;
/// What version 2 begins with.
const V2_SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// Signature, version and command, family, length.
const V2_FIXED_BYTES: usize = 16;
/// Addresses and what is told besides (TLVs); over it the header is refused.
pub const HEADER_BYTES_MAX: usize = V2_FIXED_BYTES + 4096;

/// What a header says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// Its length.
    pub bytes: usize,
    /// Where the client is; `None`: the balancer speaks for itself (a health check), or does not know.
    pub client: Option<IpAddr>,
}

/// The bytes are no header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NoHeader(pub &'static str);

/// The header at the start of `bytes`; `None`: it is not there to its end.
pub fn parse(bytes: &[u8]) -> Result<Option<Header>, NoHeader> {
    let common = bytes.len().min(V2_SIGNATURE.len());
    if bytes[..common] == V2_SIGNATURE[..common] {
        return parse_v2(bytes);
    }
    let common = bytes.len().min(V1_START.len());
    if bytes[..common] == V1_START[..common] {
        return parse_v1(bytes);
    }
    Err(NoHeader("it begins with no PROXY header"))
}

const V1_START: &[u8] = b"PROXY ";

/// `PROXY TCP4 192.0.2.1 198.51.100.1 56324 443`.
fn parse_v1(bytes: &[u8]) -> Result<Option<Header>, NoHeader> {
    let line = &bytes[..bytes.len().min(V1_BYTES_MAX)];
    let Some(end) = memchr::memchr(b'\n', line) else {
        return if line.len() == V1_BYTES_MAX { Err(NoHeader("the line is too long")) } else { Ok(None) };
    };
    let wrong = NoHeader("the line is not of its form");
    let text = line[..end].strip_suffix(b"\r").and_then(|line| std::str::from_utf8(line).ok()).ok_or(wrong)?;
    let bytes = end + 1;
    let mut words = text.split(' ').skip(1);
    let mut next = || words.next().ok_or(wrong);
    let family = next()?;
    if family == "UNKNOWN" {
        // Whatever follows is not looked at.
        return Ok(Some(Header { bytes, client: None }));
    }
    let (from, to) = (next()?, next()?);
    let is_port = |text: &str| {
        text.bytes().all(|digit| digit.is_ascii_digit())
            && (text == "0" || !text.starts_with('0'))
            && text.parse::<u16>().is_ok()
    };
    let are_ports = is_port(next()?) && is_port(next()?);
    let client = match family {
        "TCP4" if to.parse::<Ipv4Addr>().is_ok() => from.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
        "TCP6" if to.parse::<Ipv6Addr>().is_ok() => from.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
        _ => None,
    };
    match client {
        Some(client) if are_ports && words.next().is_none() => {
            Ok(Some(Header { bytes, client: Some(client.to_canonical()) }))
        }
        _ => Err(wrong),
    }
}

fn parse_v2(bytes: &[u8]) -> Result<Option<Header>, NoHeader> {
    let Some((fixed, rest)) = bytes.split_at_checked(V2_FIXED_BYTES) else { return Ok(None) };
    let (version_command, family) = (fixed[12], fixed[13]);
    if version_command >> 4 != 2 {
        return Err(NoHeader("its version is neither 1 nor 2"));
    }
    let len = usize::from(u16::from_be_bytes([fixed[14], fixed[15]]));
    if V2_FIXED_BYTES + len > HEADER_BYTES_MAX {
        return Err(NoHeader("it is too long"));
    }
    let is_local = match version_command & 0xf {
        0 => true,
        1 => false,
        _ => return Err(NoHeader("its command is neither LOCAL nor PROXY")),
    };
    let Some(said) = rest.get(..len) else { return Ok(None) };
    let short = NoHeader("it is shorter than its addresses");
    let client = match family {
        _ if is_local => None,
        // Stream over IPv4 or IPv6: two addresses, two ports; then TLVs, which are passed over.
        0x11 => Some(IpAddr::from(*said.get(..12).and_then(|said| said.first_chunk::<4>()).ok_or(short)?)),
        0x21 => Some(IpAddr::from(*said.get(..36).and_then(|said| said.first_chunk::<16>()).ok_or(short)?)),
        // Unspecified, datagrams, Unix sockets: the connection is taken, where it came from is not known.
        0x00 | 0x12 | 0x22 | 0x31 | 0x32 => None,
        _ => return Err(NoHeader("its address family is not known")),
    };
    let client = client.map(|client| client.to_canonical());
    Ok(Some(Header { bytes: V2_FIXED_BYTES + len, client }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v2(version_command: u8, family: u8, said: &[u8]) -> Vec<u8> {
        let len = u16::try_from(said.len()).expect("short").to_be_bytes();
        [&V2_SIGNATURE[..], &[version_command, family], &len, said].concat()
    }

    fn client(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn every_form_is_read_and_takes_its_own_bytes_only() {
        let v4 = [192, 0, 2, 1, 198, 51, 100, 1, 0xdc, 4, 1, 187];
        let v6 = [&[0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7][..], &[0; 20]].concat();
        let with_tlv = [&v4[..], &[1, 0, 2, b'h', b'2']].concat();
        for (bytes, client) in [
            (b"PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\r\n".to_vec(), Some(client("192.0.2.1"))),
            (b"PROXY TCP6 2001:db8::7 ::1 1 65535\r\n".to_vec(), Some(client("2001:db8::7"))),
            (b"PROXY TCP6 ::ffff:192.0.2.1 ::1 1 1\r\n".to_vec(), Some(client("192.0.2.1"))),
            (b"PROXY UNKNOWN\r\n".to_vec(), None),
            (b"PROXY UNKNOWN ffff:f..f:ffff whatever 1\r\n".to_vec(), None),
            (v2(0x21, 0x11, &v4), Some(client("192.0.2.1"))),
            (v2(0x21, 0x11, &with_tlv), Some(client("192.0.2.1"))),
            (v2(0x21, 0x21, &v6), Some(client("2001:db8::7"))),
            (v2(0x20, 0x00, &[]), None),
            (v2(0x20, 0x11, &v4), None),
            (v2(0x21, 0x00, &[1, 2, 3]), None),
            (v2(0x21, 0x31, &[0; 216]), None),
        ] {
            let whole = Ok(Some(Header { bytes: bytes.len(), client }));
            assert_eq!(parse(&bytes), whole, "{bytes:?}");
            assert_eq!(parse(&[&bytes[..], b"GET / HTTP/1.1\r\n"].concat()), whole, "{bytes:?}");
            for cut in 0..bytes.len() {
                assert_eq!(parse(&bytes[..cut]), Ok(None), "{:?}", &bytes[..cut]);
            }
        }
    }

    #[test]
    fn what_is_no_header_is_refused() {
        let long = [&b"PROXY UNKNOWN "[..], &[b'x'; 100]].concat();
        for bad in [
            &b"GET / HTTP/1.1\r\n"[..],
            b"PRI * HTTP/2.0",
            b"proxy TCP4 192.0.2.1 198.51.100.1 1 2\r\n",
            b"PROXY TCP4 192.0.2.1 198.51.100.1 1 2\n",
            b"PROXY TCP4 192.0.2.1 198.51.100.1 1\r\n",
            b"PROXY TCP4 192.0.2.1 198.51.100.1 1 2 3\r\n",
            b"PROXY TCP4 192.0.2.1 198.51.100.1 01 2\r\n",
            b"PROXY TCP4 192.0.2.1 198.51.100.1 1 65536\r\n",
            b"PROXY TCP4 192.0.2.01 198.51.100.1 1 2\r\n",
            b"PROXY TCP4 2001:db8::7 ::1 1 2\r\n",
            b"PROXY TCP6 192.0.2.1 198.51.100.1 1 2\r\n",
            b"PROXY UDP4 192.0.2.1 198.51.100.1 1 2\r\n",
            b"PROXY  TCP4 192.0.2.1 198.51.100.1 1 2\r\n",
            &long,
            &v2(0x11, 0x11, &[0; 12]),
            &v2(0x22, 0x11, &[0; 12]),
            &v2(0x21, 0x11, &[0; 11]),
            &v2(0x21, 0x21, &[0; 35]),
            &v2(0x21, 0x41, &[0; 12]),
            &v2(0x21, 0x11, &[0; 4097]),
        ] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }
}
