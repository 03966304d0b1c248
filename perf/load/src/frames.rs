//! The 16-byte frames of a batch answer: `i32 partition | i64 offset | i32 length | payload`, big endian. Counted, not kept.

use crate::{answer::Malformed, stamp::Stamps};

const HEAD_BYTES: usize = 16;

/// Where in a frame the stream stands.
#[derive(Debug, Default)]
pub struct Frames {
    head: Vec<u8>,
    payload_left: usize,
    messages: u64,
    stamps: Option<Stamps>,
}

impl Frames {
    /// `has_stamps`: payloads may open with the time they were sent, which is kept.
    pub fn new(has_stamps: bool) -> Self {
        Self { stamps: has_stamps.then(Stamps::default), ..Self::default() }
    }

    pub fn feed(&mut self, mut bytes: &[u8]) -> Result<(), Malformed> {
        while !bytes.is_empty() {
            let skip = self.payload_left.min(bytes.len());
            if let Some(stamps) = &mut self.stamps {
                stamps.feed(&bytes[..skip]);
            }
            self.payload_left -= skip;
            bytes = &bytes[skip..];
            let take = (HEAD_BYTES - self.head.len()).min(bytes.len());
            if self.payload_left > 0 {
                break;
            }
            self.head.extend_from_slice(&bytes[..take]);
            bytes = &bytes[take..];
            if self.head.len() == HEAD_BYTES {
                let length = i32::from_be_bytes([self.head[12], self.head[13], self.head[14], self.head[15]]);
                self.payload_left = usize::try_from(length).map_err(|_| Malformed("a frame of negative length"))?;
                self.messages += 1;
                self.head.clear();
                if let Some(stamps) = &mut self.stamps {
                    stamps.begin();
                }
            }
        }
        Ok(())
    }

    /// The messages there were, and when they were sent. A frame that is not whole is no answer.
    pub fn finish(self) -> Result<(u64, Vec<u64>), Malformed> {
        if self.payload_left > 0 || !self.head.is_empty() {
            return Err(Malformed("the last frame is cut"));
        }
        Ok((self.messages, self.stamps.map_or_else(Vec::new, Stamps::finish)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn three() -> Vec<u8> {
        let mut bytes = Vec::new();
        for length in [0_i32, 5, 300] {
            bytes.extend_from_slice(&7_i32.to_be_bytes());
            bytes.extend_from_slice(&42_i64.to_be_bytes());
            bytes.extend_from_slice(&length.to_be_bytes());
            bytes.extend(std::iter::repeat_n(0xff, usize::try_from(length).expect("positive")));
        }
        bytes
    }

    #[test]
    fn frames_are_counted_however_they_are_split() {
        let bytes = three();
        for step in 1..=bytes.len() {
            let mut frames = Frames::default();
            bytes.chunks(step).for_each(|piece| frames.feed(piece).expect("well-formed"));
            assert_eq!(frames.finish(), Ok((3, Vec::new())), "in steps of {step}");
        }
    }

    #[test]
    fn a_cut_frame_is_no_answer() {
        let bytes = three();
        for length in [1, 15, 17, 20, bytes.len() - 1] {
            let mut frames = Frames::default();
            frames.feed(&bytes[..length]).expect("well-formed so far");
            assert!(frames.finish().is_err(), "after {length} bytes");
        }
    }
}
