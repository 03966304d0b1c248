//! How gateways know each other: what one sends another is sealed with `gateway.peer_secret`, which itself never travels.
//!
//! ```text
//!   x-kateway-seal: <Unix ms>;<id of the asking gateway>;<HMAC-SHA256, hex>
//!   over: purpose, time, id, the address it is sent to (gateway.advertise of who is asked), body; each after its length
//! ```
//!
//! Where a member of a group says a gateway is, anybody may listen. So before anything is told to an address it has to show, by the seal
//! of its answer to a greeting, that it has the secret and is the gateway of that address; and a question is answered only to who
//! has it. Invariants: a seal is good for one address, one purpose and [`CLOCKS_APART_MAX`]; what is compared is compared in constant
//! time. Eavesdroppers are not kept out: between gateways is a trusted network, or TLS. (HMAC: RFC 2104.)

use std::{
    fmt::Write,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// The header field.
pub const FIELD: &str = "x-kateway-seal";
/// Of SHA-256.
const HASH_BYTES: usize = 32;
/// How far the clocks of two gateways may be apart.
pub const CLOCKS_APART_MAX: Duration = Duration::from_secs(30);

/// What a seal is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Purpose {
    /// The body is a nonce.
    Greeting,
    /// The body is the nonce of the greeting.
    Answer,
    /// The body is what is asked.
    Ask,
}

impl Purpose {
    fn name(self) -> &'static [u8] {
        match self {
            Self::Greeting => b"kateway greeting",
            Self::Answer => b"kateway answer",
            Self::Ask => b"kateway ask",
        }
    }
}

/// Why a seal is not good.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Broken {
    /// It is none, was made with another secret, for another address, or over another body.
    Wrong,
    /// It is good, but not of now.
    Clocks { apart: Duration },
}

/// Seals `body` for the gateway at `addr`.
pub fn seal(secret: &str, purpose: Purpose, id: &str, addr: &str, body: &[u8]) -> String {
    let time_ms = now_ms();
    let mac = mac(secret, purpose, time_ms, id, addr, body).finalize().into_bytes();
    let mut text = format!("{time_ms};{id};");
    for byte in mac {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// Gives the id of the gateway that sealed `body` for `addr`.
pub fn open<'a>(secret: &str, purpose: Purpose, seal: &'a [u8], addr: &str, body: &[u8]) -> Result<&'a str, Broken> {
    let (time_ms, id, hash) = parts(seal)?;
    mac(secret, purpose, time_ms, id, addr, body).verify_slice(&hash).map_err(|_| Broken::Wrong)?;
    is_of_now(time_ms).map(|()| id)
}

/// Whether it has the form of a seal, and is of now: what can be said of it before its body is there.
pub fn glance(seal: &[u8]) -> Result<(), Broken> {
    parts(seal).and_then(|(time_ms, ..)| is_of_now(time_ms))
}

/// Time, id and hash.
fn parts(seal: &[u8]) -> Result<(u64, &str, Vec<u8>), Broken> {
    let text = std::str::from_utf8(seal).map_err(|_| Broken::Wrong)?;
    let mut parts = text.splitn(3, ';');
    let (Some(time), Some(id), Some(digits)) = (parts.next(), parts.next(), parts.next()) else {
        return Err(Broken::Wrong);
    };
    let time_ms = time.parse().map_err(|_| Broken::Wrong)?;
    let hash = bytes_of(digits).filter(|hash| hash.len() == HASH_BYTES).ok_or(Broken::Wrong)?;
    Ok((time_ms, id, hash))
}

fn is_of_now(time_ms: u64) -> Result<(), Broken> {
    let apart = Duration::from_millis(now_ms().abs_diff(time_ms));
    if apart > CLOCKS_APART_MAX { Err(Broken::Clocks { apart }) } else { Ok(()) }
}

fn mac(secret: &str, purpose: Purpose, time_ms: u64, id: &str, addr: &str, body: &[u8]) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("a key of any length is good");
    for part in [purpose.name(), &time_ms.to_be_bytes(), id.as_bytes(), addr.as_bytes(), body] {
        mac.update(&(part.len() as u64).to_be_bytes());
        mac.update(part);
    }
    mac
}

fn bytes_of(digits: &str) -> Option<Vec<u8>> {
    let pairs = digits.as_bytes().chunks(2);
    pairs.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect()
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "0123456789abcdef";

    #[test]
    fn a_seal_is_good_for_one_secret_purpose_address_and_body() {
        let sealed = seal(SECRET, Purpose::Ask, "gw-1", "10.0.0.2:9192", b"body");
        let open = |secret, purpose, addr, body: &[u8]| open(secret, purpose, sealed.as_bytes(), addr, body);
        assert_eq!(open(SECRET, Purpose::Ask, "10.0.0.2:9192", b"body"), Ok("gw-1"));
        assert_eq!(open("0123456789abcdeg", Purpose::Ask, "10.0.0.2:9192", b"body"), Err(Broken::Wrong));
        assert_eq!(open(SECRET, Purpose::Greeting, "10.0.0.2:9192", b"body"), Err(Broken::Wrong));
        assert_eq!(open(SECRET, Purpose::Ask, "10.0.0.3:9192", b"body"), Err(Broken::Wrong));
        assert_eq!(open(SECRET, Purpose::Ask, "10.0.0.2:9192", b"bodz"), Err(Broken::Wrong));
        assert!(!sealed.contains(SECRET));
    }

    #[test]
    fn what_is_none_is_none() {
        let sealed = seal(SECRET, Purpose::Ask, "gw-1", "a:1", b"");
        for text in ["", ";", ";;", "1;gw-1;", "x;gw-1;00", "1;gw-1;zz", &sealed[1..], &sealed[..sealed.len() - 1]] {
            assert_eq!(open(SECRET, Purpose::Ask, text.as_bytes(), "a:1", b""), Err(Broken::Wrong), "{text}");
        }
    }

    #[test]
    fn an_old_seal_says_that_the_clocks_are_apart() {
        let time_ms = now_ms() - 60_000;
        let mac = mac(SECRET, Purpose::Ask, time_ms, "gw-1", "a:1", b"").finalize().into_bytes();
        let digits = mac.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"));
        let opened = open(SECRET, Purpose::Ask, format!("{time_ms};gw-1;{digits}").as_bytes(), "a:1", b"").err();
        assert!(matches!(opened, Some(Broken::Clocks { apart }) if apart >= Duration::from_secs(60)), "{opened:?}");
    }
}
