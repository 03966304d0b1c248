//! Sessions by WebSocket, from the first byte behind the handshake to the end, over a socket that a script plays.

use std::{
    cell::RefCell,
    fs::File,
    future::Future,
    io,
    os::fd::OwnedFd,
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use futures_lite::{AsyncRead, AsyncWrite};

use crate::proto::{
    watch::{Clock, Watch},
    ws::{Close, Goodbye, Incoming, Opcode, Spec, Ws},
};

/// Small, so that the fuzzer reaches it, and over the lengths that one byte says.
const MESSAGE_BYTES_MAX: usize = 300;

/// How the socket behaves, and who ends the session.
#[derive(Clone, Copy)]
struct Manner {
    /// Cuts what comes and what goes, waits between, and sends pings. `None`: all is there at once.
    seed: Option<u8>,
    /// The server says goodbye after so many messages.
    leaves_after: Option<usize>,
    /// The socket breaks once it took so many bytes.
    takes_max: usize,
}

/// A seed, in how many messages the server leaves, when the socket breaks, and what a client sends behind its handshake. Whatever the
/// pieces it comes in, the messages and the end are the same; whoever ends it, it ends, and what was written is well formed.
pub fn session(bytes: &[u8]) {
    let [seed, leaves_after, takes, sent @ ..] = bytes else { return };
    let smooth = Manner { seed: None, leaves_after: None, takes_max: usize::MAX };
    let rough = Manner { seed: Some(*seed), ..smooth };
    assert_eq!(run(sent, smooth), run(sent, rough));
    run(sent, Manner { leaves_after: Some(usize::from(leaves_after % 8)), ..rough });
    run(sent, Manner { takes_max: 4 * usize::from(*takes), ..rough });
}

/// The messages that came, and how it ended.
type Seen = (Vec<(Vec<u8>, bool)>, Goodbye);

fn run(sent: &[u8], manner: Manner) -> Seen {
    let mut chance = Chance::new(manner.seed.unwrap_or(0));
    let unread = if manner.seed.is_some() { chance.below(sent.len() + 1).min(64) } else { 0 };
    let socket = Socket {
        incoming: sent[unread..].to_vec(),
        read: 0,
        outgoing: Vec::new(),
        takes_max: manner.takes_max,
        chance: manner.seed.map(|_| chance),
        is_closed: false,
    };
    let wire = Wire(Rc::new(RefCell::new(socket)));
    // One is due whenever it is asked about.
    let spec = Spec {
        message_bytes_max: MESSAGE_BYTES_MAX,
        ping_every: Duration::ZERO,
        write_timeout: Duration::from_secs(30),
        bytes_per_s_min: 0,
        pace_every: Duration::ZERO,
    };
    let mut ws = Ws::new(wire.clone(), &sent[..unread], watch(), spec);
    let cx = &mut Context::from_waker(Waker::noop());
    // A byte read or written needs few; what is written is some times what was read.
    let mut polls_left = 10_000 + 200 * sent.len();
    let mut count = || polls_left = polls_left.checked_sub(1).expect("the session ends");
    let (mut messages, mut put) = (Vec::new(), Vec::new());
    let goodbye = loop {
        count();
        if manner.leaves_after.is_some_and(|after| messages.len() >= after) {
            break Goodbye::Ours(Close::going_away("the server leaves"));
        }
        match ws.poll_message(cx) {
            Poll::Ready(Incoming::Message { bytes, is_text, .. }) => {
                assert!(bytes.len() <= MESSAGE_BYTES_MAX && messages.len() < sent.len() / 6);
                assert!(!is_text || std::str::from_utf8(&bytes).is_ok());
                messages.push((bytes.to_vec(), is_text));
                // In two parts, and with something longer than any of them.
                let (head, tail) = bytes.split_at(bytes.len() / 2);
                let echo = [&[b'x'; MESSAGE_BYTES_MAX], head, tail];
                ws.put(Opcode::Binary, &echo);
                put.push((Opcode::Binary as u8, echo.concat()));
                let ack = format!("{{\"ack\":{}}}", messages.len());
                ws.put(Opcode::Text, &[ack.as_bytes()]);
                put.push((Opcode::Text as u8, ack.into_bytes()));
            }
            Poll::Ready(Incoming::End(goodbye)) => break goodbye,
            Poll::Pending => {}
        }
        // That it says that nobody answers is right here, and does not matter.
        if wire.0.borrow_mut().is_one_in(8)
            && let Poll::Ready(goodbye) = ws.poll_pulse(cx)
        {
            assert_eq!(goodbye, Goodbye::Ours(Close::silent()));
        }
        if let Poll::Ready(Err(_)) = ws.poll_flush(cx) {
            break Goodbye::Gone;
        }
    };
    let mut end = pin!(ws.end(goodbye.clone()));
    while end.as_mut().poll(cx).is_pending() {
        count();
    }
    check_written(&wire.0.borrow(), &put, &goodbye);
    (messages, goodbye)
}

/// Whole frames of a server: not masked, final, of the shortest form; data as it was put, and the goodbye behind everything.
fn check_written(socket: &Socket, put: &[(u8, Vec<u8>)], goodbye: &Goodbye) {
    let is_broken = socket.outgoing.len() == socket.takes_max;
    let (mut frames, mut rest) = (Vec::new(), &socket.outgoing[..]);
    while let Some((opcode, payload, after)) = frame(rest) {
        frames.push((opcode, payload.to_vec()));
        rest = after;
    }
    // Of one that is gone the rest is dropped, wherever it was.
    let is_cut = is_broken || *goodbye == Goodbye::Gone;
    assert!(rest.is_empty() || is_cut, "{rest:?}");
    assert!(socket.is_closed || is_cut);
    let closing = frames.iter().position(|(opcode, _)| *opcode == 8);
    let said = match closing {
        Some(at) => {
            assert_eq!(at + 1, frames.len(), "nothing follows a goodbye");
            frames.pop().map(|(_, payload)| payload)
        }
        None => None,
    };
    match (goodbye, &said) {
        (Goodbye::Gone, None) => {}
        (_, None) => assert!(is_broken),
        (Goodbye::Ours(close) | Goodbye::Broken(close), Some(said)) => {
            assert_eq!(said[..2], close.code.to_be_bytes());
            assert!(close.reason.as_bytes().starts_with(&said[2..]));
        }
        (Goodbye::Client, Some(said)) if said.is_empty() => {}
        (Goodbye::Client, Some(said)) => {
            let code = u16::from_be_bytes([said[0], said[1]]);
            assert!(matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999), "{code}");
            assert!(std::str::from_utf8(&said[2..]).is_ok());
        }
        (Goodbye::Gone, Some(_)) => panic!("there was nobody to say it to"),
    }
    frames.retain(|(opcode, _)| matches!(opcode, 1 | 2));
    assert!(if is_cut { put.starts_with(&frames) } else { put == frames }, "what was put is what was sent");
}

/// The first frame, and what follows it; `None`: it is not whole.
fn frame(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let [first, second, rest @ ..] = bytes else { return None };
    let opcode = first & 0xf;
    assert!(first & 0xf0 == 0x80 && matches!(opcode, 1 | 2 | 8 | 9 | 10), "final, no extension, known: {first:#x}");
    let (length, rest) = match second {
        0..=125 => (u64::from(*second), rest),
        126 => {
            let (length, rest) = rest.split_first_chunk()?;
            let length = u16::from_be_bytes(*length);
            assert!(length >= 126);
            (u64::from(length), rest)
        }
        127 => {
            let (length, rest) = rest.split_first_chunk()?;
            let length = u64::from_be_bytes(*length);
            assert!(length > u64::from(u16::MAX));
            (length, rest)
        }
        128.. => panic!("a server masks nothing"),
    };
    assert!(opcode < 8 || length <= 125, "a control frame is short");
    let (payload, rest) = rest.split_at_checked(usize::try_from(length).ok()?)?;
    Some((opcode, payload, rest))
}

fn watch() -> Rc<Watch> {
    thread_local!(static NULL: Rc<OwnedFd> = Rc::new(File::open("/dev/null").expect("it is there").into()));
    Rc::new(Watch::new(NULL.with(Rc::clone), Clock::default(), 0))
}

// === the socket ===

/// Numbers that look as if nobody had chosen them, the same for the same seed.
struct Chance(u32);

impl Chance {
    fn new(seed: u8) -> Self {
        Self(0x9e37_79b9 ^ u32::from(seed))
    }

    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 17;
        self.0 ^= self.0 << 5;
        self.0 as usize % bound
    }
}

struct Socket {
    incoming: Vec<u8>,
    read: usize,
    outgoing: Vec<u8>,
    takes_max: usize,
    chance: Option<Chance>,
    is_closed: bool,
}

impl Socket {
    /// How many of so many bytes are moved now; `None`: one has to wait.
    fn share(&mut self, bytes: usize) -> Option<usize> {
        let Some(chance) = &mut self.chance else { return Some(bytes) };
        let most = [1, 7, 64, 1024][chance.below(4)];
        (chance.below(4) > 0).then(|| bytes.min(1 + chance.below(most)))
    }

    fn is_one_in(&mut self, many: usize) -> bool {
        self.chance.as_mut().is_some_and(|chance| chance.below(many) == 0)
    }
}

#[derive(Clone)]
struct Wire(Rc<RefCell<Socket>>);

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut socket = self.0.borrow_mut();
        let left = socket.incoming.len() - socket.read;
        let Some(share) = socket.share(left.min(buffer.len())) else { return Poll::Pending };
        let from = socket.read;
        buffer[..share].copy_from_slice(&socket.incoming[from..from + share]);
        socket.read += share;
        Poll::Ready(Ok(share))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut socket = self.0.borrow_mut();
        assert!(!socket.is_closed && !bytes.is_empty());
        let Some(share) = socket.share(bytes.len()) else { return Poll::Pending };
        let share = share.min(socket.takes_max - socket.outgoing.len());
        socket.outgoing.extend_from_slice(&bytes[..share]);
        if share == 0 { Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())) } else { Poll::Ready(Ok(share)) }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.0.borrow_mut().is_one_in(4) { Poll::Pending } else { Poll::Ready(Ok(())) }
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.0.borrow_mut().is_one_in(4) {
            return Poll::Pending;
        }
        self.0.borrow_mut().is_closed = true;
        Poll::Ready(Ok(()))
    }
}
