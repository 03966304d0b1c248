//! What a zstd body becomes, without decompressing it (RFC 8878).
//!
//! A frame that does not say its length has to be decompressed to know it, and while it is, its whole window is remembered: 8 MiB for a body
//! that is then refused. But how long a block becomes stands in it: so many literals, and matches whose lengths are coded apart from
//! what they repeat. Those are read here, and nothing is remembered but three small tables.
//!
//! Invariants: what is measured is exact for a body that can be decompressed, and of one that cannot it does not matter; work and memory
//! are bounded by the length of what was sent, and a core may do something else between two blocks.

use super::inflate::{BROKEN, CUT, FrameHead};
use crate::proto::Malformed;

/// RFC 8878 section 3.1.1.2.4.
const BLOCK_BYTES_MAX: u64 = 128 * 1024;
const SKIPPABLE_MAGIC: [u8; 3] = [0x2a, 0x4d, 0x18];

/// A body that is good as far as it was looked at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Measured {
    pub bytes: usize,
    /// Frames and blocks: each is some work, however little comes of it.
    pub parts: usize,
}

/// Measures all frames of a body; what becomes more than `bytes_max`, or would have to remember too much, is refused.
pub async fn measure(body: &[u8], bytes_max: usize) -> Result<Measured, Malformed> {
    if body.is_empty() {
        return Err(CUT);
    }
    let (mut rest, mut bytes, mut parts) = (body, 0_u64, 0);
    while !rest.is_empty() {
        parts += 1;
        glommio::executor().yield_if_needed().await;
        let head = FrameHead::read(rest).ok_or(CUT)?;
        if head.bytes == 0 {
            rest = after_skippable(rest)?;
            continue;
        }
        let room = (bytes_max as u64).saturating_sub(bytes);
        head.check(room)?;
        let mut frame = Frame::new(rest.get(head.bytes..).ok_or(CUT)?, head.window_bytes);
        let (mut given, is_known) = (head.content_bytes.unwrap_or(0), head.content_bytes.is_some());
        loop {
            let block = frame.block(is_known)?;
            parts += 1;
            given += if is_known { 0 } else { block.bytes };
            if given > room {
                return Err(Malformed::BodyTooLarge);
            }
            if block.is_last {
                break;
            }
            glommio::executor().yield_if_needed().await;
        }
        bytes += given;
        rest = frame.rest.get(if head.has_checksum { 4 } else { 0 }..).ok_or(CUT)?;
    }
    Ok(Measured { bytes: usize::try_from(bytes).map_err(|_| Malformed::BodyTooLarge)?, parts })
}

fn after_skippable(frame: &[u8]) -> Result<&[u8], Malformed> {
    let (magic, rest) = frame.split_first_chunk::<4>().ok_or(CUT)?;
    if magic[0] & 0xf0 != 0x50 || magic[1..] != SKIPPABLE_MAGIC {
        return Err(BROKEN);
    }
    let (length, rest) = rest.split_first_chunk::<4>().ok_or(CUT)?;
    usize::try_from(u32::from_le_bytes(*length)).ok().and_then(|length| rest.get(length..)).ok_or(CUT)
}

struct Block {
    bytes: u64,
    is_last: bool,
}

/// What follows the head of a frame.
struct Frame<'a> {
    rest: &'a [u8],
    tables: Tables,
    block_bytes_max: u64,
}

/// Of the codes of literal lengths, offsets and match lengths; kept from block to block.
#[derive(Default)]
struct Tables {
    literals: Option<Table>,
    offsets: Option<Table>,
    matches: Option<Table>,
}

impl<'a> Frame<'a> {
    fn new(rest: &'a [u8], window_bytes: u64) -> Self {
        Self { rest, tables: Tables::default(), block_bytes_max: window_bytes.min(BLOCK_BYTES_MAX) }
    }

    /// The next block. One whose length does not matter is only passed.
    fn block(&mut self, is_passed: bool) -> Result<Block, Malformed> {
        let ([a, b, c], rest) = self.rest.split_first_chunk::<3>().ok_or(CUT)?;
        let head = u32::from_le_bytes([*a, *b, *c, 0]);
        let (kind, size) = ((head >> 1) & 3, (head >> 3) as usize);
        let (content, rest) = rest.split_at_checked(if kind == 1 { 1 } else { size }).ok_or(CUT)?;
        self.rest = rest;
        let bytes = match kind {
            0 | 1 => size as u64,
            2 if is_passed => 0,
            2 => self.tables.block(content).ok_or(BROKEN)?,
            _ => return Err(BROKEN),
        };
        if size as u64 > self.block_bytes_max || bytes > self.block_bytes_max {
            return Err(BROKEN);
        }
        Ok(Block { bytes, is_last: head & 1 != 0 })
    }
}

impl Tables {
    /// What a compressed block becomes. `None`: it is none.
    fn block(&mut self, content: &[u8]) -> Option<u64> {
        let (literals, rest) = literals(content)?;
        let (first, rest) = rest.split_first()?;
        let (sequences, rest) = match first {
            0..128 => (usize::from(*first), rest),
            128..255 => {
                let (second, rest) = rest.split_first()?;
                (usize::from(first - 128) << 8 | usize::from(*second), rest)
            }
            255 => {
                let (two, rest) = rest.split_first_chunk()?;
                (usize::from(u16::from_le_bytes(*two)) + 0x7f00, rest)
            }
        };
        if sequences == 0 {
            return rest.is_empty().then_some(literals);
        }
        let (modes, rest) = rest.split_first()?;
        let rest = Table::choose(&mut self.literals, modes >> 6, &LITERALS, rest)?;
        let rest = Table::choose(&mut self.offsets, modes >> 4 & 3, &OFFSETS, rest)?;
        let rest = Table::choose(&mut self.matches, modes >> 2 & 3, &MATCHES, rest)?;
        if modes & 3 != 0 {
            return None;
        }
        Some(literals + self.matched(sequences, rest)?)
    }

    /// The lengths of all matches together (RFC 8878 section 3.1.1.3.2.1.2).
    fn matched(&self, sequences: usize, stream: &[u8]) -> Option<u64> {
        let (literals, offsets, matches) = (self.literals.as_ref()?, self.offsets.as_ref()?, self.matches.as_ref()?);
        let mut bits = Backwards::new(stream)?;
        let mut literal = literals.start(&mut bits)?;
        let mut offset = offsets.start(&mut bits)?;
        let mut matching = matches.start(&mut bits)?;
        let mut bytes = 0;
        for left in (0..sequences).rev() {
            bits.skip(u32::from(offset.symbol))?;
            let (base, extra) = MATCH_LENGTHS[usize::from(matching.symbol)];
            bytes += u64::from(base + bits.read(extra)?);
            bits.skip(LITERAL_LENGTH_BITS[usize::from(literal.symbol)])?;
            if bytes > BLOCK_BYTES_MAX {
                return None;
            }
            if left > 0 {
                literal = literals.next(literal, &mut bits)?;
                matching = matches.next(matching, &mut bits)?;
                offset = offsets.next(offset, &mut bits)?;
            }
        }
        (bits.left == 0).then_some(bytes)
    }
}

/// How many literals a block has, and what follows them (RFC 8878 section 3.1.1.3.1).
fn literals(content: &[u8]) -> Option<(u64, &[u8])> {
    let mut head = [0; 8];
    let known = content.len().min(5);
    head[..known].copy_from_slice(&content[..known]);
    let (first, head) = (head[0], u64::from_le_bytes(head));
    let (kind, format) = (first & 3, first >> 2 & 3);
    // Bytes of the head, what they become, and what they are coded in.
    let (head_bytes, regenerated, coded) = if kind < 2 {
        let (bytes, shift, bits) = match format {
            1 => (2, 4, 12),
            3 => (3, 4, 20),
            _ => (1, 3, 5),
        };
        let regenerated = head >> shift & ((1 << bits) - 1);
        (bytes, regenerated, if kind == 0 { regenerated } else { 1 })
    } else {
        let (bytes, bits) = match format {
            0 | 1 => (3, 10),
            2 => (4, 14),
            _ => (5, 18),
        };
        let mask = (1 << bits) - 1;
        (bytes, head >> 4 & mask, head >> (4 + bits) & mask)
    };
    let rest = content.get(head_bytes..)?.get(usize::try_from(coded).ok()?..)?;
    Some((regenerated, rest))
}

// === tables of codes ===

/// What codes of one kind may be.
struct Kind {
    symbols_max: usize,
    accuracy_log_max: u32,
    /// Of the table that needs not be sent.
    accuracy_log: u32,
    usual: &'static [i16],
}

/// RFC 8878 sections 3.1.1.3.2.1.1 and 3.1.1.3.2.2.
const LITERALS: Kind = Kind {
    symbols_max: 36,
    accuracy_log_max: 9,
    accuracy_log: 6,
    usual: &[
        4, 3, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 3, 2, 1, 1, 1, 1, 1, -1, -1, -1, -1,
    ],
};
const OFFSETS: Kind = Kind {
    symbols_max: 32,
    accuracy_log_max: 8,
    accuracy_log: 5,
    usual: &[1, 1, 1, 1, 1, 1, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1],
};
const MATCHES: Kind = Kind {
    symbols_max: 53,
    accuracy_log_max: 9,
    accuracy_log: 6,
    usual: &[
        1, 4, 3, 2, 2, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
        1, 1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1, -1, -1,
    ],
};

/// Bits that follow the code of a literal length.
const LITERAL_LENGTH_BITS: [u32; 36] =
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 3, 3, 4, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16];

/// The shortest match of each code, and the bits that follow.
const MATCH_LENGTHS: [(u32, u32); 53] = {
    let bits = [1, 1, 1, 1, 2, 2, 3, 3, 4, 4, 5, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16];
    let mut lengths = [(0, 0); 53];
    let (mut code, mut base) = (0, 3);
    while code < 53 {
        let extra = if code < 32 { 0 } else { bits[code - 32] };
        lengths[code] = (base, extra);
        base += 1 << extra;
        code += 1;
    }
    lengths
};

/// Where a decoder of codes stands.
#[derive(Clone, Copy, Default)]
struct State {
    symbol: u8,
    /// So many bits are added to `base` for the next one.
    bits: u8,
    base: u16,
}

/// Finite state entropy (RFC 8878 section 4.1).
struct Table {
    accuracy_log: u32,
    states: Vec<State>,
    /// It is the one that needs not be sent.
    is_usual: bool,
}

impl Table {
    /// The table that a block uses, by its mode; what follows its description.
    fn choose<'a>(table: &mut Option<Self>, mode: u8, kind: &Kind, rest: &'a [u8]) -> Option<&'a [u8]> {
        match mode {
            0 => {
                if !table.as_ref().is_some_and(|table| table.is_usual) {
                    *table = Some(Self { is_usual: true, ..Self::new(kind.accuracy_log, kind.usual)? });
                }
                Some(rest)
            }
            1 => {
                let (symbol, rest) = rest.split_first()?;
                let states = vec![State { symbol: *symbol, bits: 0, base: 0 }];
                let single = Self { accuracy_log: 0, states, is_usual: false };
                *table = (usize::from(*symbol) < kind.symbols_max).then_some(single);
                table.is_some().then_some(rest)
            }
            2 => {
                let (described, rest) = Self::described(kind, rest)?;
                *table = Some(described);
                Some(rest)
            }
            _ => table.is_some().then_some(rest),
        }
    }

    /// Reads how often each code comes (section 4.1.1).
    fn described<'a>(kind: &Kind, description: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let mut bits = Forwards { bytes: description, at: 0 };
        let accuracy_log = bits.read(4) + 5;
        if accuracy_log > kind.accuracy_log_max {
            return None;
        }
        let (mut shares, mut left) = (Vec::with_capacity(kind.symbols_max), 1_u32 << accuracy_log);
        while left > 0 {
            // The few values that cannot be taken by so many bits are told by one bit less.
            let width = (left + 1).ilog2() + 1;
            let short = (1 << width) - 2 - left;
            let low = bits.read(width - 1);
            let value = if low < short {
                low
            } else {
                let value = low + (bits.read(1) << (width - 1));
                if value >= 1 << (width - 1) { value - short } else { value }
            };
            // A share of -1 is one below 1.
            let share = i16::try_from(value).ok()? - 1;
            left = left.checked_sub(u32::from(share.unsigned_abs()))?;
            shares.push(share);
            if share == 0 {
                loop {
                    let more = bits.read(2);
                    shares.extend((0..more).map(|_| 0));
                    if more < 3 || shares.len() > kind.symbols_max {
                        break;
                    }
                }
            }
            if shares.len() > kind.symbols_max {
                return None;
            }
        }
        let rest = description.get(bits.at.div_ceil(8)..)?;
        Some((Self::new(accuracy_log, &shares)?, rest))
    }

    /// Spreads the codes over the states (section 4.1.1).
    fn new(accuracy_log: u32, shares: &[i16]) -> Option<Self> {
        let size = 1_usize << accuracy_log;
        let mut states = vec![State::default(); size];
        let mut next = [0_u16; 53];
        let mut rare_from = size;
        for (symbol, share) in (0_u8..).zip(shares) {
            next[usize::from(symbol)] = share.unsigned_abs();
            if *share == -1 {
                rare_from = rare_from.checked_sub(1)?;
                states[rare_from].symbol = symbol;
            }
        }
        let (mut at, step) = (0, (size >> 1) + (size >> 3) + 3);
        for (symbol, share) in (0_u8..).zip(shares) {
            for _ in 0..(*share).max(0) {
                states[at].symbol = symbol;
                at = (at + step) % size;
                while at >= rare_from {
                    at = (at + step) % size;
                }
            }
        }
        for state in &mut states {
            let number = &mut next[usize::from(state.symbol)];
            let bits = accuracy_log.checked_sub(number.checked_ilog2()?)?;
            state.bits = u8::try_from(bits).ok()?;
            state.base = u16::try_from((usize::from(*number) << bits).checked_sub(size)?).ok()?;
            *number += 1;
        }
        Some(Self { accuracy_log, states, is_usual: false })
    }

    fn start(&self, bits: &mut Backwards<'_>) -> Option<State> {
        self.states.get(bits.read(self.accuracy_log)? as usize).copied()
    }

    fn next(&self, state: State, bits: &mut Backwards<'_>) -> Option<State> {
        self.states.get(usize::from(state.base) + bits.read(u32::from(state.bits))? as usize).copied()
    }
}

// === bits ===

/// From the first byte on, lowest bit first. Behind the end are zeros; who reads there finds `at` past the end.
struct Forwards<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Forwards<'_> {
    fn read(&mut self, bits: u32) -> u32 {
        let mut value = 0;
        for n in 0..bits {
            let byte = self.bytes.get(self.at / 8).copied().unwrap_or(0);
            value |= u32::from(byte >> (self.at % 8) & 1) << n;
            self.at += 1;
        }
        value
    }
}

/// From the last byte on: the highest bit that is set there ends what was written first.
struct Backwards<'a> {
    bytes: &'a [u8],
    left: usize,
}

impl<'a> Backwards<'a> {
    fn new(bytes: &'a [u8]) -> Option<Self> {
        let last = bytes.last()?.checked_ilog2()?;
        Some(Self { bytes, left: (bytes.len() - 1) * 8 + last as usize })
    }

    fn skip(&mut self, bits: u32) -> Option<()> {
        self.left = self.left.checked_sub(bits as usize)?;
        Some(())
    }

    /// Sixteen at most.
    fn read(&mut self, bits: u32) -> Option<u32> {
        self.skip(bits)?;
        let from = self.left / 8;
        let mut four = [0; 4];
        if let Some(there) = self.bytes.get(from..from + 4) {
            four.copy_from_slice(there);
        } else {
            let last = &self.bytes[from.min(self.bytes.len())..];
            four[..last.len()].copy_from_slice(last);
        }
        Some(u32::from_le_bytes(four) >> (self.left % 8) & ((1 << bits) - 1))
    }
}

#[cfg(test)]
mod tests {
    use zstd_safe::{CCtx, CParameter, InBuffer, OutBuffer, zstd_sys::ZSTD_EndDirective as Directive};

    use super::{super::inflate::WINDOW_TOO_LARGE, *};

    fn run(body: &[u8], bytes_max: usize) -> Result<Measured, Malformed> {
        let executor = glommio::LocalExecutorBuilder::default().io_memory(1 << 20).make().expect("an executor");
        executor.run(measure(body, bytes_max))
    }

    /// One frame that does not say its length, flushed every so many bytes.
    fn framed(plain: &[u8], level: i32, flush_bytes: usize) -> Vec<u8> {
        let mut context = CCtx::create();
        context.set_parameter(CParameter::CompressionLevel(level)).expect("in its range");
        context.set_parameter(CParameter::ChecksumFlag(level % 2 == 0)).expect("in its range");
        let mut out = Vec::with_capacity(2 * zstd_safe::compress_bound(plain.len()) + 1024);
        let mut into = OutBuffer::around(&mut out);
        let pieces = plain.chunks(flush_bytes).map(|piece| (piece, Directive::ZSTD_e_flush));
        for (piece, how) in pieces.chain([(&b""[..], Directive::ZSTD_e_end)]) {
            let mut from = InBuffer::around(piece);
            while context.compress_stream2(&mut into, &mut from, how).expect("there is room") > 0 {}
        }
        out
    }

    /// Numbers that look as if nobody had chosen them.
    fn chance(state: &mut u64) -> usize {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (*state >> 40) as usize
    }

    fn texts() -> Vec<Vec<u8>> {
        let mut state = 7;
        let mut noise: Vec<u8> = (0..300_000).map(|_| chance(&mut state).to_be_bytes()[7]).collect();
        noise.extend_from_within(1_000..200_000);
        let words: Vec<Vec<u8>> = (0..500)
            .map(|_| (0..2 + chance(&mut state) % 9).map(|_| b"etaoinshrdlu"[chance(&mut state) % 12]).collect())
            .collect();
        let prose = (0..60_000).flat_map(|_| [&words[chance(&mut state) % 500][..], b" "].concat()).collect();
        let records = (0..9_000)
            .flat_map(|n| format!("{{\"id\":{n},\"at\":{},\"of\":\"many\"}}\n", n * n).into_bytes())
            .collect();
        let few = (0..200_000).map(|_| b"ab"[chance(&mut state) % 2]).collect();
        vec![vec![], b"x".to_vec(), vec![b' '; 3_000_000], noise, prose, records, few]
    }

    #[test]
    fn a_body_is_as_long_as_it_was_measured() {
        for plain in texts() {
            for level in [-5, -1, 1, 2, 3, 4, 6, 9, 12, 16, 19] {
                for flush_bytes in [100_000, 5_000_000] {
                    let body = framed(&plain, level, flush_bytes);
                    let measured = run(&body, plain.len()).map(|measured| measured.bytes);
                    assert_eq!(measured, Ok(plain.len()), "level {level}, flushed each {flush_bytes}");
                    if !plain.is_empty() {
                        assert_eq!(run(&body, plain.len() - 1), Err(Malformed::BodyTooLarge));
                    }
                }
            }
        }
    }

    /// What zstd makes of it, of which its two decoders are each stricter than the other about what is no good.
    fn decoded(body: &[u8]) -> Option<usize> {
        let mut decoder = zstd_safe::DCtx::create();
        let mut at_once = Vec::with_capacity(1 << 19);
        decoder.decompress(&mut at_once, body).ok()?;
        let mut room = vec![0; at_once.len() + 1];
        let (mut from, mut out) = (InBuffer::around(body), OutBuffer::around(&mut room[..]));
        loop {
            let left = decoder.decompress_stream(&mut out, &mut from).ok()?;
            if from.pos() == body.len() {
                return (left == 0 && out.as_slice() == at_once).then_some(at_once.len());
            }
        }
    }

    /// Whatever the bytes, there is no panic, and what can be decompressed was measured.
    #[test]
    fn what_is_damaged_is_measured_too() {
        let mut state = 3;
        let mut good = 0;
        let executor = glommio::LocalExecutorBuilder::default().io_memory(1 << 20).make().expect("an executor");
        for plain in texts() {
            let plain = &plain[..plain.len().min(2_000)];
            for level in [1, 3, 19] {
                let whole = framed(plain, level, 700);
                for _ in 0..1_000 {
                    let mut body = whole.clone();
                    for _ in 0..=chance(&mut state) % 3 {
                        let at = chance(&mut state) % body.len();
                        body[at] ^= 1 << (chance(&mut state) % 8);
                    }
                    body.truncate(body.len() - chance(&mut state) % 100 / 98);
                    let measured = executor.run(measure(&body, 1 << 20));
                    if let Some(bytes) = decoded(&body) {
                        // What may follow a window that is too wide is not looked at.
                        let is_wide = measured == Err(WINDOW_TOO_LARGE);
                        let measured = measured.map(|measured| measured.bytes);
                        assert!(is_wide || measured == Ok(bytes), "{measured:?}, {bytes}: {body:x?}");
                        good += 1;
                    }
                }
            }
        }
        assert!(good > 100, "{good}");
    }

    #[test]
    fn frames_follow_each_other() {
        let skippable = [0x5a, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3];
        let frame = framed(b"one", 3, 100);
        let body = [&skippable[..], &frame, &skippable, &frame].concat();
        assert_eq!(run(&body, 6), Ok(Measured { bytes: 6, parts: 8 }));
        assert_eq!(run(&body, 5), Err(Malformed::BodyTooLarge));
        assert_eq!(run(&body[..body.len() - 1], 6), Err(CUT));
        assert_eq!(run(&[&body[..], b"more"].concat(), 6), Err(BROKEN));
        assert_eq!(run(b"", 6), Err(CUT));
    }
}
