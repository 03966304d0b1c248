//! WebSocket on one connection: messages written as they come due, as many under way as the plan says; acknowledgements, or messages,
//! read as they come.
//!
//! Frames are masked with zeros, which RFC 6455 lets a server tell from nothing else, so that sending costs the generator one copy. Of
//! reads everything that one call of the kernel brings counts as one answer.

use std::{collections::VecDeque, io, rc::Rc, time::Instant};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, Interest},
    net::TcpStream,
};

use crate::{
    answer::Answer,
    lane::Lane,
    pace::Turn,
    plan::{Plan, Work},
    stamp::{self, Stamps},
    tally::Attempt,
};

/// One read takes at most so much.
const READ_BYTES: usize = 256 * 1_024;
/// Before the payload of a message that is read: partition, offset, length.
const FRAME_HEAD_BYTES: usize = 16;

const TEXT: u8 = 0x81;
const BINARY: u8 = 0x82;
const CLOSE: u8 = 0x88;
const PING: u8 = 0x89;
const PONG: u8 = 0x8a;

/// Why a connection ended.
type Class = &'static str;

struct Connection<'a> {
    lane: &'a Lane,
    stream: TcpStream,
    /// A message as it goes out, and where its payload begins.
    frame: Vec<u8>,
    payload_at: usize,
    under_way: VecDeque<Attempt>,
    unwritten: Vec<u8>,
    written: usize,
    input: Vec<u8>,
    /// Bytes of `input` that are not used yet.
    filled: usize,
    /// Messages acknowledged.
    acked: u64,
    /// Since when a read waits.
    waiting: Instant,
    is_over: bool,
}

/// Serves the connection until it or the plan ends.
pub async fn drive(lane: &Rc<Lane>, mut stream: TcpStream, number: usize) {
    let plan = &lane.plan;
    let input = match open(plan, &mut stream, &plan.targets(number)[0]).await {
        Ok(input) => input,
        Err(class) => return lane.fail(class, 1),
    };
    let (frame, payload_at) = frame(BINARY, &plan.body());
    let mut connection = Connection {
        lane,
        stream,
        frame,
        payload_at,
        under_way: VecDeque::new(),
        unwritten: Vec::new(),
        written: 0,
        filled: input.len(),
        input,
        acked: 0,
        waiting: Instant::now(),
        is_over: false,
    };
    connection.input.resize(READ_BYTES, 0);
    if let Err(class) = connection.serve().await {
        lane.fail(class, connection.under_way.len().max(1));
    }
}

/// Makes the connection a WebSocket. Gives what came behind the answer.
async fn open(plan: &Plan, stream: &mut TcpStream, target: &str) -> Result<Vec<u8>, Class> {
    let Plan { appid, target: host, .. } = plan;
    let request = format!(
        "GET {target} HTTP/1.1\r\nHost: {host}\r\nAppid: {appid}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.map_err(|_| "reset")?;
    let mut answer = Vec::new();
    loop {
        let mut piece = [0; 4_096];
        let read = stream.read(&mut piece).await.map_err(|_| "reset")?;
        answer.extend_from_slice(&piece[..read]);
        if let Some(end) = answer.windows(4).position(|four| four == b"\r\n\r\n") {
            return if answer.starts_with(b"HTTP/1.1 101 ") { Ok(answer.split_off(end + 4)) } else { Err("refused") };
        }
        if read == 0 || answer.len() > 16 * 1_024 {
            return Err("malformed");
        }
    }
}

/// A masked frame, and where its payload begins.
fn frame(first: u8, payload: &[u8]) -> (Vec<u8>, usize) {
    let mut frame = vec![first];
    match (u8::try_from(payload.len()), u16::try_from(payload.len())) {
        (Ok(short @ ..126), _) => frame.push(0x80 | short),
        (_, Ok(medium)) => {
            frame.push(0x80 | 0x7e);
            frame.extend_from_slice(&medium.to_be_bytes());
        }
        _ => {
            frame.push(0x80 | 0x7f);
            frame.extend_from_slice(&(payload.len() as u64).to_be_bytes());
        }
    }
    frame.extend_from_slice(&[0; 4]);
    let payload_at = frame.len();
    frame.extend_from_slice(payload);
    (frame, payload_at)
}

impl Connection<'_> {
    async fn serve(&mut self) -> Result<(), Class> {
        let lane = self.lane;
        let is_read = lane.plan.is_read();
        let patience = lane.plan.patience();
        loop {
            if !is_read {
                self.take_turns();
                if self.is_over && self.under_way.is_empty() {
                    return Ok(());
                }
            }
            self.write()?;
            if self.read()? {
                continue;
            }
            if lane.pacer.is_over() && is_read {
                return Ok(());
            }
            let interest =
                if self.unwritten.is_empty() { Interest::READABLE } else { Interest::READABLE | Interest::WRITABLE };
            let has_room = !is_read && !self.is_over && self.under_way.len() < lane.plan.depth;
            tokio::select! {
                biased;
                turn = lane.pacer.turn(), if has_room && lane.pacer.is_open_loop() => match turn {
                    Some(intended) => self.append(intended),
                    None => self.is_over = true,
                },
                ready = self.stream.ready(interest) => drop(ready.map_err(|_| "reset")?),
                () = tokio::time::sleep(patience) => return Err("timeout"),
            }
        }
    }

    /// Takes the turns there are at once.
    fn take_turns(&mut self) {
        let now = Instant::now();
        while !self.is_over && self.under_way.len() < self.lane.plan.depth {
            match self.lane.pacer.try_turn(now) {
                Turn::Now(intended) => self.append(intended),
                Turn::Later => return,
                Turn::Over => self.is_over = true,
            }
        }
    }

    fn append(&mut self, intended: Instant) {
        let payload = self.unwritten.len() + self.payload_at;
        self.unwritten.extend_from_slice(&self.frame);
        if self.lane.plan.is_stamped() {
            stamp::write(&mut self.unwritten[payload..], self.lane.wall(intended));
        }
        let bytes = self.frame.len() as u64;
        self.under_way.push_back(Attempt { intended, sent: intended.max(self.waiting), bytes });
    }

    fn write(&mut self) -> Result<(), Class> {
        while self.written < self.unwritten.len() {
            match self.stream.try_write(&self.unwritten[self.written..]) {
                Ok(count) => self.written += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(_) => return Err("reset"),
            }
        }
        self.unwritten.clear();
        self.written = 0;
        Ok(())
    }

    /// Reads what there is. Gives whether there was anything.
    fn read(&mut self) -> Result<bool, Class> {
        match self.stream.try_read(&mut self.input[self.filled..]) {
            Ok(0) => Err("closed"),
            Ok(count) => {
                self.filled += count;
                self.take_frames()?;
                self.waiting = Instant::now();
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(_) => Err("reset"),
        }
    }

    fn take_frames(&mut self) -> Result<(), Class> {
        let mut used = 0;
        let (mut messages, mut bytes, mut stamps) = (0, 0, Vec::new());
        while let Some((first, head, length)) = head(&self.input[used..self.filled]) {
            if head + length > self.input.len() {
                self.input.resize(head + length, 0);
            }
            let Some(payload) = self.input[used..self.filled].get(head..head + length) else { break };
            match first {
                BINARY if self.lane.plan.is_read() => {
                    messages += 1;
                    bytes += (head + length) as u64;
                    if self.lane.plan.stamp {
                        let mut found = Stamps::default();
                        found.begin();
                        found.feed(payload.get(FRAME_HEAD_BYTES..).ok_or("malformed")?);
                        stamps.extend(found.finish());
                    }
                }
                TEXT => {
                    let said: Said = serde_json::from_slice(payload).map_err(|_| "malformed")?;
                    self.hear(&said)?;
                }
                PING => {
                    let pong = frame(PONG, payload).0;
                    self.unwritten.extend_from_slice(&pong);
                }
                CLOSE => return Err("closed"),
                _ => return Err("malformed"),
            }
            used += head + length;
        }
        self.input.copy_within(used..self.filled, 0);
        self.filled -= used;
        if messages > 0 && self.lane.plan.work == Work::Subscribe {
            let attempt = Attempt { intended: self.waiting, sent: self.waiting, bytes: 0 };
            let answer = Answer { status: 200, code: None, messages, bytes, closes: false, stamps };
            self.lane.answered(&attempt, &answer);
        }
        Ok(())
    }

    fn hear(&mut self, said: &Said) -> Result<(), Class> {
        let mut answer = Answer { status: 201, code: None, messages: 1, bytes: 0, closes: false, stamps: Vec::new() };
        let up_to = match (said.ack, said.n, said.code) {
            (Some(up_to), ..) => up_to,
            (None, Some(n), Some(code)) => {
                // Those before it are acknowledged with the next, all that matters of this one is its code.
                answer.code = Some(code);
                answer.status = u16::try_from(code / 100).unwrap_or(500);
                answer.messages = 0;
                if n != self.acked + 1 {
                    self.settle(n - 1, &Answer { status: 201, code: None, messages: 1, ..answer.clone() })?;
                }
                n
            }
            _ => return Err("malformed"),
        };
        self.settle(up_to, &answer)
    }

    fn settle(&mut self, up_to: u64, answer: &Answer) -> Result<(), Class> {
        while self.acked < up_to {
            self.acked += 1;
            let sent = self.under_way.pop_front().ok_or("malformed")?;
            self.lane.answered(&sent, answer);
        }
        Ok(())
    }
}

/// What the gateway says of messages that were published.
#[derive(serde::Deserialize)]
struct Said {
    ack: Option<u64>,
    n: Option<u64>,
    code: Option<u32>,
}

/// First byte, length of the head and of the payload, once the head is whole.
fn head(input: &[u8]) -> Option<(u8, usize, usize)> {
    let (first, second) = (*input.first()?, *input.get(1)?);
    let (head, length) = match second & 0x7f {
        126 => (4, u64::from(u16::from_be_bytes(input.get(2..4)?.try_into().ok()?))),
        127 => (10, u64::from_be_bytes(input.get(2..10)?.try_into().ok()?)),
        short => (2, u64::from(short)),
    };
    Some((first, head, usize::try_from(length).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_read_as_they_are_written() {
        for length in [0, 1, 125, 126, 65_535, 65_536] {
            let (frame, payload_at) = frame(BINARY, &vec![7; length]);
            let (first, head_bytes, payload_bytes) = head(&frame).expect("a whole head");
            // The mask stands behind the head.
            assert_eq!((first, head_bytes + 4, payload_bytes), (BINARY, payload_at, length));
            assert_eq!(frame.len(), payload_at + length);
            for cut in 0..head_bytes {
                assert!(head(&frame[..cut]).is_none(), "{cut} of {length}");
            }
        }
    }
}
