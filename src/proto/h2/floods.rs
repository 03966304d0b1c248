//! Frames of one HTTP/2 connection, counted as their bytes pass; what floods is ended.
//!
//! ```text
//!   socket --bytes--> [ 9-byte heads, payloads skipped ] --same bytes--> hyper     more frames of a kind than a client needs: flood
//!   socket <--bytes-- [ 9-byte heads, payloads skipped ] <--same bytes-- hyper     resets that the client provoked count as its own
//! ```
//!
//! hyper has bounds too, some of them lower; a GOAWAY of its own that asks for calm counts as a flood of kind `hyper`. Invariants:
//! nothing is copied but frame heads; a frame is judged when its head is there, however the bytes were cut. Knows no socket and no
//! clock: bytes and the time come in, a verdict goes out. Per core.

use crate::{limits, proto::head::H2_PREFACE};

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

/// Flag of DATA and HEADERS.
const END_STREAM: u8 = 1;
/// Flag of HEADERS and CONTINUATION.
const END_HEADERS: u8 = 4;

const ENHANCE_YOUR_CALM: u32 = 11;

/// Codes of resets by which a server says that the client broke the rules of the stream (CVE-2025-8671, "MadeYouReset"): PROTOCOL_ERROR,
/// FLOW_CONTROL_ERROR, STREAM_CLOSED, FRAME_SIZE_ERROR, COMPRESSION_ERROR, ENHANCE_YOUR_CALM. REFUSED_STREAM is what a client gets
/// that opens many streams before it has read our settings: no handler ran for it, and hyper bounds it.
const PROVOKED: [u32; 6] = [1, 3, 5, 6, 9, ENHANCE_YOUR_CALM];

/// What a connection was ended for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Flood {
    Reset,
    Ping,
    Settings,
    EmptyData,
    Continuation,
    WindowUpdate,
    Other,
    Hyper,
}

impl Flood {
    /// Debug data of our GOAWAY.
    fn text(self) -> &'static [u8] {
        match self {
            Self::Reset => b"too many resets",
            Self::Ping => b"too many PING frames",
            Self::Settings => b"too many SETTINGS frames",
            Self::EmptyData => b"too many empty DATA frames",
            Self::Continuation => b"too many CONTINUATION frames",
            Self::WindowUpdate => b"too many WINDOW_UPDATE frames",
            Self::Other | Self::Hyper => b"too many frames",
        }
    }
}

/// What is known of a frame: its head, and the error code of a reset or a GOAWAY.
#[derive(Clone, Copy, Debug)]
struct Frame {
    len: u32,
    kind: u8,
    flags: u8,
    stream: u32,
    code: u32,
}

/// Finds frames in one direction's bytes.
#[derive(Debug)]
struct Parser {
    /// Bytes that are no frame: the client's preface, then payloads.
    skip: u32,
    /// The head being gathered, and what of the payload is looked at.
    gathered: [u8; 17],
    have: usize,
    want: usize,
    /// Kind of the frame whose payload is skipped.
    kind: u8,
}

const HEAD_BYTES: usize = 9;

impl Parser {
    fn new(skip: u32, kind: u8) -> Self {
        Self { skip, gathered: [0; 17], have: 0, want: HEAD_BYTES, kind }
    }

    /// Nothing of a frame has passed that is not whole.
    fn is_between_frames(&self) -> bool {
        self.skip == 0 && self.have == 0
    }

    /// The next frame that `bytes` complete the head of; they shrink by what was looked at.
    fn next(&mut self, bytes: &mut &[u8]) -> Option<Frame> {
        loop {
            let skipped = bytes.len().min(self.skip as usize);
            *bytes = &bytes[skipped..];
            self.skip -= u32::try_from(skipped).unwrap_or(self.skip);
            if bytes.is_empty() {
                return None;
            }
            let take = bytes.len().min(self.want - self.have);
            self.gathered[self.have..self.have + take].copy_from_slice(&bytes[..take]);
            self.have += take;
            *bytes = &bytes[take..];
            if self.have < self.want {
                return None;
            }
            let [a, b, c, kind, flags] = *self.gathered.first_chunk().expect("a head has five bytes");
            let len = u32::from_be_bytes([0, a, b, c]);
            let looked_at = match kind {
                RST_STREAM => 4,
                GOAWAY => 8,
                _ => 0,
            };
            let looked_at = looked_at.min(len);
            self.want = HEAD_BYTES + looked_at as usize;
            if self.have < self.want {
                continue;
            }
            let word = |at: usize| self.gathered[at..].first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes));
            let code = if kind == GOAWAY { word(13) } else { word(9) };
            let frame = Frame { len, kind, flags, stream: word(5) & 0x7fff_ffff, code };
            (self.skip, self.have, self.want, self.kind) = (len - looked_at, 0, HEAD_BYTES, kind);
            return Some(frame);
        }
    }
}

/// How many of each there were within the second.
#[derive(Clone, Copy, Default, Debug)]
struct Second {
    number: u64,
    resets: u32,
    pings: u32,
    settings: u32,
    empty_data: u32,
    window_updates: u32,
    others: u32,
    data_sent: u32,
}

/// See the module text.
#[derive(Debug)]
pub(super) struct Frames {
    read: Parser,
    written: Parser,
    second: Second,
    resets: u32,
    continuations: u32,
    in_block: bool,
    /// The highest the client has opened.
    stream: u32,
}

impl Frames {
    /// Before the client's preface.
    pub(super) fn new() -> Self {
        Self {
            // What is before the first frame is as much to be waited for as a head.
            read: Parser::new(u32::try_from(H2_PREFACE.len()).unwrap_or(0), SETTINGS),
            written: Parser::new(0, DATA),
            second: Second::default(),
            resets: 0,
            continuations: 0,
            in_block: false,
            stream: 0,
        }
    }

    /// The client has begun something other than DATA and not ended it.
    pub(super) fn is_cut_short(&self) -> bool {
        self.in_block || self.read.have > 0 || (self.read.skip > 0 && self.read.kind != DATA)
    }

    /// Looks at what the client sent.
    pub(super) fn read(&mut self, mut bytes: &[u8], now_ms: u64) -> Result<(), Flood> {
        self.begin_second(now_ms);
        while let Some(frame) = self.read.next(&mut bytes) {
            self.judge(frame)?;
        }
        Ok(())
    }

    /// Looks at what hyper wrote.
    pub(super) fn written(&mut self, mut bytes: &[u8], now_ms: u64) -> Result<(), Flood> {
        self.begin_second(now_ms);
        let mut verdict = Ok(());
        // To the end, whatever is found: a GOAWAY of ours must know where a frame ends.
        while let Some(frame) = self.written.next(&mut bytes) {
            match frame.kind {
                DATA => self.second.data_sent = self.second.data_sent.saturating_add(1),
                RST_STREAM if PROVOKED.contains(&frame.code) => verdict = verdict.and(self.count_reset()),
                GOAWAY if frame.code == ENHANCE_YOUR_CALM => verdict = verdict.and(Err(Flood::Hyper)),
                _ => {}
            }
        }
        verdict
    }

    fn begin_second(&mut self, now_ms: u64) {
        let number = now_ms / 1_000;
        if number != self.second.number {
            self.second = Second { number, ..Second::default() };
        }
    }

    fn judge(&mut self, frame: Frame) -> Result<(), Flood> {
        let second = &mut self.second;
        match frame.kind {
            DATA if frame.len > 0 || frame.flags & END_STREAM != 0 => Ok(()),
            DATA => count(&mut second.empty_data, limits::H2_EMPTY_DATA_MAX, Flood::EmptyData),
            HEADERS => {
                self.stream = self.stream.max(frame.stream);
                self.continuations = 0;
                self.in_block = frame.flags & END_HEADERS == 0;
                Ok(())
            }
            CONTINUATION => {
                self.in_block = frame.flags & END_HEADERS == 0;
                count(&mut self.continuations, limits::H2_CONTINUATIONS_MAX, Flood::Continuation)
            }
            RST_STREAM => self.count_reset(),
            PING => count(&mut second.pings, limits::H2_PINGS_MAX, Flood::Ping),
            SETTINGS => count(&mut second.settings, limits::H2_SETTINGS_MAX, Flood::Settings),
            WINDOW_UPDATE => {
                // A client may say for the stream and for the connection that it took what was sent.
                let max = limits::H2_WINDOW_UPDATES_MAX.saturating_add(second.data_sent.saturating_mul(2));
                count(&mut second.window_updates, max, Flood::WindowUpdate)
            }
            _ => count(&mut second.others, limits::H2_OTHERS_MAX, Flood::Other),
        }
    }

    fn count_reset(&mut self) -> Result<(), Flood> {
        count(&mut self.resets, limits::H2_RESETS_TOTAL_MAX, Flood::Reset)?;
        count(&mut self.second.resets, limits::H2_RESETS_MAX, Flood::Reset)
    }

    /// The frame that tells the client, unless bytes of another one stand before it unfinished.
    pub(super) fn goaway(&self, flood: Flood) -> Option<Vec<u8>> {
        if !self.written.is_between_frames() || flood == Flood::Hyper {
            return None;
        }
        let text = flood.text();
        let len = u8::try_from(8 + text.len()).ok()?;
        let mut frame = vec![0, 0, len, GOAWAY, 0, 0, 0, 0, 0];
        frame.extend_from_slice(&self.stream.to_be_bytes());
        frame.extend_from_slice(&ENHANCE_YOUR_CALM.to_be_bytes());
        frame.extend_from_slice(text);
        Some(frame)
    }
}

fn count(counter: &mut u32, max: u32, flood: Flood) -> Result<(), Flood> {
    *counter = counter.saturating_add(1);
    if *counter > max { Err(flood) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let len = u8::try_from(payload.len()).expect("short");
        [&[0, 0, len, kind, flags, 0, 0, 0, 1], payload].concat()
    }

    /// How many of these frames pass within one second, the bytes cut into pieces.
    fn passes(frames: &[u8], copies: usize, piece_bytes: usize) -> Result<(), (usize, Flood)> {
        let mut counted = Frames::new();
        for bytes in H2_PREFACE.chunks(piece_bytes) {
            counted.read(bytes, 0).expect("the preface is no frame");
        }
        for n in 0..copies {
            for bytes in frames.chunks(piece_bytes) {
                counted.read(bytes, 999).map_err(|flood| (n, flood))?;
            }
            assert!(counted.read.is_between_frames());
        }
        Ok(())
    }

    #[test]
    fn each_kind_has_its_bound() {
        let max = |bound: u32| bound as usize;
        let headers = frame(HEADERS, 0, b"abc");
        for (frames, bound, flood) in [
            (frame(RST_STREAM, 0, &[0, 0, 0, 8]), max(limits::H2_RESETS_MAX), Flood::Reset),
            (frame(PING, 0, b"kateway?"), max(limits::H2_PINGS_MAX), Flood::Ping),
            (frame(SETTINGS, 0, &[0; 6]), max(limits::H2_SETTINGS_MAX), Flood::Settings),
            (frame(DATA, 0, b""), max(limits::H2_EMPTY_DATA_MAX), Flood::EmptyData),
            (frame(CONTINUATION, 0, b"ab"), max(limits::H2_CONTINUATIONS_MAX), Flood::Continuation),
            (frame(WINDOW_UPDATE, 0, &[0, 0, 0, 1]), max(limits::H2_WINDOW_UPDATES_MAX), Flood::WindowUpdate),
            (frame(2, 0, &[0; 5]), max(limits::H2_OTHERS_MAX), Flood::Other),
            (frame(200, 0, &[0; 200]), max(limits::H2_OTHERS_MAX), Flood::Other),
        ] {
            for piece_bytes in [1, 2, 7, 9, 10, 1_000] {
                assert_eq!(passes(&frames, bound, piece_bytes), Ok(()), "{flood:?}");
                assert_eq!(passes(&frames, 10_000, piece_bytes), Err((bound, flood)), "pieces of {piece_bytes}");
            }
        }
        for harmless in [
            frame(DATA, END_STREAM, b""),
            frame(DATA, 0, b"d"),
            [headers, frame(CONTINUATION, END_HEADERS, b"d")].concat(),
        ] {
            assert_eq!(passes(&harmless, 10_000, 9), Ok(()));
        }
    }

    #[test]
    fn a_second_later_all_is_forgotten_but_the_resets_of_the_connection() {
        let mut counted = Frames::new();
        counted.read(H2_PREFACE, 0).expect("the preface is no frame");
        let reset = frame(RST_STREAM, 0, &[0, 0, 0, 8]);
        for n in 0..u64::from(limits::H2_RESETS_TOTAL_MAX) {
            // 50 a second.
            counted.read(&reset, n * 20).expect("few at a time");
        }
        assert_eq!(counted.read(&reset, 1_000_000), Err(Flood::Reset));
    }

    #[test]
    fn resets_that_the_client_provokes_count() {
        for (code, counts) in [(0, false), (1, true), (2, false), (5, true), (7, false), (8, false)] {
            let mut counted = Frames::new();
            let reset = frame(RST_STREAM, 0, &[0, 0, 0, code]);
            let ended = (0..=limits::H2_RESETS_MAX).find(|_| counted.written(&reset, 5).is_err());
            assert_eq!(ended.is_some(), counts, "code {code}");
        }
        let calm = frame(GOAWAY, 0, &[0, 0, 0, 1, 0, 0, 0, 11]);
        assert_eq!(Frames::new().written(&calm, 5), Err(Flood::Hyper));
        assert_eq!(Frames::new().written(&frame(GOAWAY, 0, &[0; 8]), 5), Ok(()));
    }

    #[test]
    fn the_client_is_told_where_a_frame_ends_only() {
        let mut counted = Frames::new();
        counted.read(&[H2_PREFACE, &frame(HEADERS, END_HEADERS, b"abc")].concat(), 5).expect("one request");
        assert!(!counted.is_cut_short());
        counted.written(&frame(DATA, 0, b"answer")[..12], 5).expect("an answer");
        assert_eq!(counted.goaway(Flood::Ping), None);
        counted.written(b"wer", 5).expect("its rest");
        let goaway = counted.goaway(Flood::Ping).expect("between frames");
        assert_eq!(goaway[..17], [0, 0, 28, GOAWAY, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 11]);
    }

    #[test]
    fn a_head_that_was_begun_is_known() {
        let mut counted = Frames::new();
        counted.read(&H2_PREFACE[..20], 0).expect("no frame");
        assert!(counted.is_cut_short());
        counted.read(&H2_PREFACE[20..], 0).expect("no frame");
        assert!(!counted.is_cut_short());
        for (bytes, is_cut_short) in [
            (frame(HEADERS, 0, b"abc"), true),
            (frame(CONTINUATION, 0, b"abc"), true),
            (frame(CONTINUATION, END_HEADERS, b"abc"), false),
            (frame(DATA, 0, b"abc")[..10].to_vec(), false),
            (b"bc\0".to_vec(), true),
        ] {
            counted.read(&bytes, 0).expect("no flood");
            assert_eq!(counted.is_cut_short(), is_cut_short, "{bytes:?}");
        }
    }
}
