//! Sessions against a wire in memory, and the handshake's refusals.

use std::{
    cell::RefCell,
    collections::VecDeque,
    fs::File,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use futures_lite::{AsyncRead, AsyncWrite};

use super::{
    Goodbye, Incoming, Opcode, Spec, Ws, frame,
    handshake::{Offer, Refusal, is_same_host},
};
use crate::{
    limits,
    proto::{
        head::parse_h1,
        watch::{Clock, Phase, Watch},
    },
};

/// Both directions of a connection.
#[derive(Default)]
struct Wire {
    incoming: VecDeque<u8>,
    reads: usize,
    is_ended: bool,
    outgoing: Vec<u8>,
    /// Bytes the client takes before it must be given more room.
    room: usize,
}

#[derive(Clone, Default)]
struct Stream(Rc<RefCell<Wire>>);

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut wire = self.0.borrow_mut();
        let got = wire.incoming.len().min(buffer.len());
        for (slot, byte) in buffer.iter_mut().zip(wire.incoming.drain(..got)) {
            *slot = byte;
        }
        wire.reads += 1;
        if got > 0 || wire.is_ended { Poll::Ready(Ok(got)) } else { Poll::Pending }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut wire = self.0.borrow_mut();
        let taken = bytes.len().min(wire.room);
        if taken == 0 {
            return Poll::Pending;
        }
        wire.room -= taken;
        wire.outgoing.extend_from_slice(&bytes[..taken]);
        Poll::Ready(Ok(taken))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// A frame as a client sends it.
fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
    let mask = [0x37, 0xfa, 0x21, 0x3d];
    let mut bytes = vec![first];
    match payload.len() {
        short @ ..126 => bytes.push(0x80 | u8::try_from(short).expect("short")),
        length => {
            bytes.push(0x80 | 127);
            bytes.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    bytes.extend_from_slice(&mask);
    bytes.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    bytes
}

struct Trial {
    wire: Stream,
    watch: Rc<Watch>,
    clock: Clock,
    ws: Ws<Stream>,
}

impl Trial {
    fn new(ping_every: Duration) -> Self {
        Self::behind(ping_every, b"")
    }

    /// `unread` came with the handshake.
    fn behind(ping_every: Duration, unread: &[u8]) -> Self {
        let wire = Stream::default();
        wire.0.borrow_mut().room = usize::MAX;
        let clock = Clock::default();
        let socket = File::open("/dev/null").expect("it is there").into();
        let watch = Rc::new(Watch::new(Rc::new(socket), clock.clone(), 0));
        let write_timeout = Duration::from_millis(50);
        let spec = Spec {
            message_bytes_max: 1_000_000,
            ping_every,
            write_timeout,
            bytes_per_s_min: 1_024,
            pace_every: ping_every,
        };
        let ws = Ws::new(wire.clone(), unread, Rc::clone(&watch), spec);
        Self { wire, watch, clock, ws }
    }

    fn sends(&self, bytes: &[u8]) {
        self.wire.0.borrow_mut().incoming.extend(bytes);
    }

    /// What it sent that was not read.
    fn left(&self) -> usize {
        self.wire.0.borrow().incoming.len()
    }

    fn poll(&mut self) -> Poll<Incoming> {
        self.ws.poll_message(&mut Context::from_waker(Waker::noop()))
    }

    fn flush(&mut self) -> Vec<u8> {
        let _ = self.ws.poll_flush(&mut Context::from_waker(Waker::noop()));
        std::mem::take(&mut self.wire.0.borrow_mut().outgoing)
    }

    #[track_caller]
    fn message(&mut self) -> Vec<u8> {
        match self.poll() {
            Poll::Ready(Incoming::Message { bytes, .. }) => bytes.to_vec(),
            other => panic!("no message: {other:?}"),
        }
    }

    #[track_caller]
    fn end(&mut self) -> Goodbye {
        loop {
            match self.poll() {
                Poll::Ready(Incoming::End(goodbye)) => return goodbye,
                Poll::Pending if self.left() > 0 => {}
                other => panic!("no end: {other:?}"),
            }
        }
    }
}

const LONG: Duration = Duration::from_secs(60);

/// Timers need an executor.
fn on_a_core(trial: impl Future<Output = ()> + 'static) {
    let executor = glommio::LocalExecutorBuilder::default().io_memory(1 << 20).make().expect("an executor");
    executor.run(trial);
}

#[test]
fn messages_are_whole_and_share_their_buffer() {
    on_a_core(async {
        let mut trial = Trial::new(LONG);
        let frames = [
            masked(0x82, b"one"),
            masked(0x01, b"tw"),
            masked(0x89, b"are you there"),
            masked(0x80, b"o"),
            masked(0x81, b""),
        ];
        trial.sends(&frames.concat());
        let Poll::Ready(Incoming::Message { bytes, is_text: false, .. }) = trial.poll() else {
            panic!("a binary message")
        };
        assert!(!bytes.is_unique(), "it is a slice of what was read");
        assert_eq!((&bytes[..], trial.message()), (&b"one"[..], b"two".to_vec()));
        assert_eq!(trial.message(), b"", "an empty message is one");
        assert!(trial.poll().is_pending());
        assert_eq!(trial.flush(), [&[0x8a, 13], &b"are you there"[..]].concat(), "the ping between was answered");
    });
}

#[test]
fn what_breaks_the_protocol_has_its_code() {
    on_a_core(async {
        let big = masked(0x82, &vec![0; 1_000_001]);
        let half = [masked(0x02, &vec![0; 600_000]), masked(0x80, &vec![0; 600_000])].concat();
        for (bytes, code) in [
            (&big[..], 1009),
            (&half, 1009),
            (&masked(0x81, b"\xff"), 1007),
            (&masked(0xc2, b"reserved bit"), 1002),
            (&masked(0x83, b"reserved opcode"), 1002),
            (&masked(0x80, b"continues nothing"), 1002),
            (&masked(0x09, b"a ping in fragments"), 1002),
            (&[0x82, 0x01, b'x'], 1002),
        ] {
            let mut trial = Trial::new(LONG);
            trial.sends(bytes);
            let Goodbye::Broken(close) = trial.end() else { panic!("{code}") };
            assert_eq!(close.code, code, "{close:?}");
        }
    });
}

#[test]
fn goodbyes_are_answered_and_ends_are_found() {
    on_a_core(async {
        let mut trial = Trial::new(LONG);
        trial.sends(&masked(0x88, &[3, 0xe8]));
        assert_eq!(trial.end(), Goodbye::Client);
        trial.ws.put(Opcode::Text, &[b"{\"ack\":1}"]);
        let wire = trial.wire.clone();
        wire.0.borrow_mut().is_ended = true;
        trial.ws.end(Goodbye::Client).await;
        let said = [&[0x81, 9], &b"{\"ack\":1}"[..], &[0x88, 2, 3, 0xe8]].concat();
        assert_eq!(wire.0.borrow().outgoing, said, "what was put goes before the answer");

        trial = Trial::new(LONG);
        trial.wire.0.borrow_mut().is_ended = true;
        assert_eq!(trial.end(), Goodbye::Gone);

        // Our own goodbye, and what the client sent before it heard it.
        trial = Trial::new(LONG);
        trial.sends(&[masked(0x82, b"late"), masked(0x88, &[3, 0xe9])].concat());
        let wire = trial.wire.clone();
        wire.0.borrow_mut().is_ended = true;
        let reason = "ä".repeat(100);
        trial.ws.end(Goodbye::Ours(super::Close::new(1001, reason))).await;
        let said = wire.0.borrow().outgoing.clone();
        assert_eq!((&said[..4], said.len()), (&[0x88, 124, 3, 0xe9][..], 126), "cut between two characters");
        assert!(wire.0.borrow().incoming.is_empty());
    });
}

#[test]
fn a_client_that_does_not_read_is_not_read_from() {
    on_a_core(async {
        let mut trial = Trial::new(LONG);
        trial.wire.0.borrow_mut().room = 0;
        let pings = masked(0x89, &[b'x'; 125]).repeat(10_000);
        trial.sends(&pings);
        for _ in 0..200 {
            assert!(trial.poll().is_pending());
            trial.flush();
        }
        assert!(trial.ws.unsent() < limits::WRITE_CHUNK_BYTES + 200, "{}", trial.ws.unsent());
        assert_eq!(trial.watch.phase(), Phase::Write);
        trial.clock.advance();
        glommio::timer::sleep(Duration::from_millis(60)).await;
        trial.clock.advance();
        assert!(trial.watch.expire_if_overdue(), "it takes nothing");
        // It goes on when it reads.
        let mut pongs = 0;
        for _ in 0..200 {
            trial.wire.0.borrow_mut().room = usize::MAX;
            let _ = trial.poll();
            pongs += trial.flush().len() / 127;
        }
        assert_eq!((pongs, trial.watch.phase()), (10_000, Phase::Handler));
    });
}

#[test]
fn pings_go_out_and_silence_ends_it() {
    on_a_core(async {
        let mut trial = Trial::new(Duration::from_millis(20));
        let mut pings = 0;
        let goodbye = loop {
            let _ = trial.poll();
            let pulse = trial.ws.poll_pulse(&mut Context::from_waker(Waker::noop()));
            pings += trial.flush().len() / 2;
            if let Poll::Ready(goodbye) = pulse {
                break goodbye;
            }
            if pings == 5 {
                // Until then it answers.
                assert!(trial.ws.unanswered.is_some());
            } else if pings < 5 {
                trial.sends(&masked(0x8a, b""));
            }
            glommio::timer::sleep(Duration::from_millis(1)).await;
        };
        assert!(matches!(goodbye, Goodbye::Ours(close) if close.code == 1008));
        assert_eq!(pings, 5 + 2, "three in a row are left unanswered");
    });
}

#[test]
fn a_poll_reads_so_much_and_no_more() {
    on_a_core(async {
        let mut trial = Trial::new(LONG);
        // A message that never ends.
        trial.sends(&[masked(0x02, b"a"), masked(0x00, b"").repeat(100_000)].concat());
        let all = trial.left();
        assert!(trial.poll().is_pending());
        assert!(all - trial.left() < limits::WS_READ_AT_ONCE_BYTES + limits::WS_READ_BUFFER_BYTES);
        while trial.left() > 0 {
            assert!(trial.poll().is_pending());
        }
        trial.sends(&masked(0x80, b"b"));
        assert_eq!(trial.message(), b"ab");
    });
}

#[test]
fn messages_that_are_kept_do_not_make_reads_small() {
    on_a_core(async {
        for unread in [&b""[..], &masked(0x82, b"unread")] {
            let mut trial = Trial::behind(LONG, unread);
            trial.sends(&masked(0x82, &[7; 100]).repeat(10_000));
            let mut kept = Vec::new();
            while let Poll::Ready(Incoming::Message { bytes, .. }) = trial.poll() {
                kept.push(bytes);
            }
            while kept.len() < 10_000 {
                if let Poll::Ready(Incoming::Message { bytes, .. }) = trial.poll() {
                    kept.push(bytes);
                }
            }
            let reads = trial.wire.0.borrow().reads;
            assert!(reads < 300, "{reads} reads of 10,000 messages");
        }
    });
}

#[test]
fn messages_that_are_few_among_much_are_told() {
    on_a_core(async {
        let message = masked(0x82, b"m");
        let pongs = masked(0x8a, &[0; 125]).repeat(124);
        let fragments = [masked(0x02, b"m"), masked(0x00, b"").repeat(2_700), masked(0x80, b"")].concat();
        for (frames, is_sparse) in [
            ([&message[..], &pongs].concat(), true),
            ([&message[..], &message, &pongs].concat(), true),
            ([&message[..], &fragments].concat(), true),
            (masked(0x82, &[7; 100]).repeat(200), false),
            (masked(0x82, &vec![7; 60_000]), false),
        ] {
            let mut trial = Trial::new(LONG);
            trial.sends(&frames.repeat(10));
            let mut last = None;
            while trial.left() > 0 || last.is_none() {
                if let Poll::Ready(Incoming::Message { is_sparse, .. }) = trial.poll() {
                    last = Some(is_sparse);
                }
            }
            while let Poll::Ready(Incoming::Message { is_sparse, .. }) = trial.poll() {
                last = Some(is_sparse);
            }
            assert_eq!(last, Some(is_sparse), "{} bytes", frames.len());
        }
    });
}

#[test]
fn what_was_taken_is_not_kept() {
    on_a_core(async {
        let mut trial = Trial::new(LONG);
        for _ in 0..1_000 {
            trial.ws.put(Opcode::Text, &[&[b'x'; 10_000]]);
            // Always a little behind.
            trial.wire.0.borrow_mut().room = if trial.ws.unsent() > 30_000 { 10_000 } else { 5_000 };
            assert!(trial.ws.poll_flush(&mut Context::from_waker(Waker::noop())).is_pending());
            trial.wire.0.borrow_mut().outgoing.clear();
        }
        assert!(trial.ws.out.capacity() <= 4 * limits::WRITE_CHUNK_BYTES, "{}", trial.ws.out.capacity());
    });
}

#[test]
fn a_message_that_does_not_come_ends_the_session() {
    on_a_core(async {
        for (frame, is_slow) in [(&masked(0x82, &[7; 100])[..50], true), (&masked(0x82, &[7; 100])[..], false)] {
            let mut trial = Trial::new(Duration::from_millis(20));
            trial.sends(frame);
            let _ = trial.poll();
            let (mut pings, mut close) = (0, None);
            while pings < 4 && close.is_none() {
                let _ = trial.poll();
                if let Poll::Ready(Goodbye::Ours(said)) = trial.ws.poll_pulse(&mut Context::from_waker(Waker::noop())) {
                    close = Some(said);
                }
                let pinged = trial.flush().len() / 2;
                pings += pinged;
                trial.sends(&masked(0x8a, b"").repeat(pinged));
                glommio::timer::sleep(Duration::from_millis(1)).await;
            }
            assert_eq!(
                close.map(|close| (close.code, close.reason.contains("slower"))),
                is_slow.then_some((1008, true))
            );
        }
    });
}

#[test]
fn lengths_take_the_shortest_form() {
    let put = |length: usize| {
        let mut out = Vec::new();
        frame::put(Opcode::Binary, &[&vec![7; length], b""], &mut out);
        (out[..out.len() - length].to_vec(), out.len())
    };
    assert_eq!(put(0).0, [0x82, 0]);
    assert_eq!(put(125).0, [0x82, 125]);
    assert_eq!(put(126).0, [0x82, 126, 0, 126]);
    assert_eq!(put(65_535).0, [0x82, 126, 0xff, 0xff]);
    assert_eq!(put(65_536).0, [0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0]);
}

const GOOD: &str = "Connection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\nSec-WebSocket-Version: 13\r\n\
                    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

fn handshake(fields: &str, version: &str) -> Result<(String, Vec<String>), Refusal> {
    let head = format!("GET / HTTP/{version}\r\nHost: x\r\n{fields}\r\n");
    let read = |head: &crate::proto::Head<'_>, _| {
        Offer::read(head).map(|offer| {
            let text = |name: &&[u8]| String::from_utf8_lossy(name).into_owned();
            (offer.accept.clone(), offer.protocols.iter().map(text).collect())
        })
    };
    parse_h1(head.as_bytes(), limits::HEAD_BYTES_MAX, limits::TARGET_BYTES_MAX, read)
        .expect("it is a head")
        .expect("it is whole")
}

#[test]
fn handshakes_are_read_strictly() {
    // RFC 6455 section 1.3.
    let accept = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=".to_owned();
    assert_eq!(handshake(GOOD, "1.1"), Ok((accept, vec![])));
    let offered = format!("{GOOD}Sec-WebSocket-Protocol: a, b\r\nsec-websocket-protocol: c\r\n");
    assert_eq!(
        handshake(&offered, "1.1").map(|(_, protocols)| protocols),
        Ok(vec!["a".into(), "b".into(), "c".into()])
    );
    assert_eq!(handshake(GOOD, "1.0"), Err(Refusal::NotAsked));
    assert_eq!(handshake("", "1.1"), Err(Refusal::NotAsked));
    for (wrong, instead) in [("Upgrade: WebSocket", "Upgrade: h2c"), ("keep-alive, Upgrade", "keep-alive")] {
        assert_eq!(handshake(&GOOD.replace(wrong, instead), "1.1"), Err(Refusal::NotAsked), "{instead}");
    }
    assert_eq!(handshake(&GOOD.replace("13", "8"), "1.1"), Err(Refusal::OtherVersion));
    for (wrong, instead) in [
        ("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZQ=="),
        ("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25jZQ"),
        ("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", ""),
        ("Sec-WebSocket-Version: 13\r\n", ""),
        ("Sec-WebSocket-Version: 13\r\n", "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Version: 13\r\n"),
        ("Upgrade: WebSocket\r\n", "Upgrade: websocket\r\nContent-Length: 1\r\n"),
        ("Upgrade: WebSocket\r\n", "Upgrade: websocket\r\nTransfer-Encoding: chunked\r\n"),
        ("Upgrade: WebSocket\r\n", "Upgrade: websocket\r\nSec-WebSocket-Protocol: a, a\r\n"),
        ("Upgrade: WebSocket\r\n", "Upgrade: websocket\r\nSec-WebSocket-Protocol: a b\r\n"),
        ("Upgrade: WebSocket\r\n", "Upgrade: websocket\r\nSec-WebSocket-Protocol:\r\n"),
    ] {
        let refused = handshake(&GOOD.replace(wrong, instead), "1.1");
        assert!(matches!(refused, Err(Refusal::Malformed(_))), "{instead:?}: {refused:?}");
    }
}

#[test]
fn a_page_of_the_same_host_is_known() {
    for (origin, host) in [
        ("http://a.example", "a.example"),
        ("http://a.example", "A.example:80"),
        ("https://a.example:443", "a.example"),
        ("http://127.0.0.1:8080", "127.0.0.1:8080"),
    ] {
        assert!(is_same_host(origin.as_bytes(), host.as_bytes()), "{origin} {host}");
    }
    for (origin, host) in [
        ("null", "null"),
        ("http://a.example", "b.example"),
        ("http://a.example", "a.example:8080"),
        ("http://a.example:443", "a.example"),
        ("ftp://a.example", "a.example"),
        ("http://a.example.evil", "a.example"),
    ] {
        assert!(!is_same_host(origin.as_bytes(), host.as_bytes()), "{origin} {host}");
    }
}
