//! The time a message was meant to be sent, at the head of its payload: how a reader, which is another process, knows its age.
//!
//! Invariants: clocks of one machine are compared, nothing else; a payload that carries no stamp is passed over, not guessed at.

use std::time::{SystemTime, UNIX_EPOCH};

/// What a stamped payload opens with.
const MARK: [u8; 4] = *b"kwst";
/// Bytes of a stamp: the mark, then nanoseconds of the Unix epoch, big endian.
pub const BYTES: usize = 12;

/// Nanoseconds of the Unix epoch.
pub fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// Puts the stamp over the first bytes of `payload`, which has room for it.
pub fn write(payload: &mut [u8], nanos: u64) {
    payload[..MARK.len()].copy_from_slice(&MARK);
    payload[MARK.len()..BYTES].copy_from_slice(&nanos.to_be_bytes());
}

/// The stamps of payloads that come in pieces.
#[derive(Debug, Default)]
pub struct Stamps {
    head: [u8; BYTES],
    filled: usize,
    found: Vec<u64>,
}

impl Stamps {
    /// What is fed next is another payload.
    pub fn begin(&mut self) {
        self.filled = 0;
    }

    pub fn feed(&mut self, bytes: &[u8]) {
        let take = (BYTES - self.filled).min(bytes.len());
        if take == 0 {
            return;
        }
        self.head[self.filled..self.filled + take].copy_from_slice(&bytes[..take]);
        self.filled += take;
        if self.filled == BYTES && self.head.starts_with(&MARK) {
            let nanos = self.head.last_chunk().copied().expect("a stamp ends in eight bytes");
            self.found.push(u64::from_be_bytes(nanos));
        }
    }

    pub fn finish(self) -> Vec<u64> {
        self.found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_are_found_however_payloads_are_split() {
        let mut payloads = vec![vec![b'x'; 100]; 4];
        for (payload, nanos) in payloads.iter_mut().zip([7, u64::MAX]) {
            write(payload, nanos);
        }
        payloads[3].truncate(5);
        for step in 1..=100 {
            let mut stamps = Stamps::default();
            for payload in &payloads {
                stamps.begin();
                payload.chunks(step).for_each(|piece| stamps.feed(piece));
            }
            assert_eq!(stamps.finish(), [7, u64::MAX], "in steps of {step}");
        }
    }
}
