//! HTTP/1.1 on one connection: requests written as they come due, answers read in order, as many under way as the plan says.

use std::{
    collections::VecDeque,
    io,
    pin::Pin,
    rc::Rc,
    time::{Duration, Instant},
};

use tokio::time::Sleep;

use crate::{answer::Reader, lane::Lane, pace::Turn, plan::Plan, stamp, tally::Attempt, wire::Wire};

/// One read takes at most so much; a batch answer takes several.
const READ_BYTES: usize = 256 * 1_024;

/// Why a connection ended.
type Class = &'static str;

struct Connection<'a> {
    lane: &'a Lane,
    stream: Wire,
    requests: Vec<Vec<u8>>,
    next: usize,
    under_way: VecDeque<Attempt>,
    unwritten: Vec<u8>,
    reader: Reader,
    input: Vec<u8>,
    /// Bytes of `input` that are not used yet.
    filled: usize,
    patience: Duration,
}

/// Serves the connection until it or the plan ends.
pub async fn drive(lane: &Rc<Lane>, stream: Wire, number: usize) {
    let plan = &lane.plan;
    let mut connection = Connection {
        lane,
        stream,
        requests: plan.targets(number).iter().map(|target| request(plan, target)).collect(),
        next: 0,
        under_way: VecDeque::new(),
        unwritten: Vec::new(),
        reader: Reader::new(plan.wanted()),
        input: vec![0; if plan.is_read() { READ_BYTES } else { 16 * 1_024 }],
        filled: 0,
        patience: plan.patience(),
    };
    if let Err(class) = connection.serve().await {
        lane.fail(class, connection.under_way.len());
    }
}

fn request(plan: &Plan, target: &str) -> Vec<u8> {
    let body = plan.body();
    let length = if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
    let content_type = plan.content_type().map(|form| format!("Content-Type: {form}\r\n")).unwrap_or_default();
    let (Plan { appid, target: host, .. }, method) = (plan, plan.method());
    let head = format!("{method} {target} HTTP/1.1\r\nHost: {host}\r\nAppid: {appid}\r\n{content_type}{length}\r\n");
    let mut bytes = head.into_bytes();
    bytes.extend_from_slice(&body);
    bytes
}

impl Connection<'_> {
    async fn serve(&mut self) -> Result<(), Class> {
        let lane = self.lane;
        let mut overdue = std::pin::pin!(tokio::time::sleep(self.patience));
        loop {
            let is_over = self.take_turns();
            self.write().await?;
            if self.under_way.is_empty() {
                let Some(intended) = lane.pacer.turn().await else { return Ok(()) };
                self.append(intended);
                continue;
            }
            if self.read()? {
                continue;
            }
            let has_room = self.under_way.len() < lane.plan.depth && !is_over && lane.pacer.is_open_loop();
            tokio::select! {
                biased;
                turn = lane.pacer.turn(), if has_room => {
                    if let Some(intended) = turn {
                        self.append(intended);
                    }
                }
                ready = self.stream.readable() => ready.map_err(|_| "reset")?,
                () = overdue.as_mut() => self.check_overdue(overdue.as_mut())?,
            }
        }
    }

    /// Takes the turns there are at once. Gives whether there are no more at all.
    fn take_turns(&mut self) -> bool {
        let now = Instant::now();
        while self.under_way.len() < self.lane.plan.depth {
            match self.lane.pacer.try_turn(now) {
                Turn::Now(intended) => self.append(intended),
                Turn::Later => return false,
                Turn::Over => return true,
            }
        }
        false
    }

    fn append(&mut self, intended: Instant) {
        let request = &self.requests[self.next];
        self.next = (self.next + 1) % self.requests.len();
        self.unwritten.extend_from_slice(request);
        let plan = &self.lane.plan;
        if plan.is_stamped() {
            let payload = self.unwritten.len() - plan.size;
            stamp::write(&mut self.unwritten[payload..], self.lane.wall(intended));
        }
        self.under_way.push_back(Attempt { intended, sent: Instant::now(), bytes: request.len() as u64 });
    }

    async fn write(&mut self) -> Result<(), Class> {
        let mut written = 0;
        if self.unwritten.is_empty() {
            return Ok(());
        }
        loop {
            let tried = match self.stream.try_write(&self.unwritten[written..]) {
                Ok(count) => {
                    written += count;
                    self.stream.try_flush()
                }
                Err(error) => Err(error),
            };
            match tried {
                Ok(()) if written == self.unwritten.len() => break,
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let writable = tokio::time::timeout(self.patience, self.stream.writable()).await;
                    writable.map_err(|_| "timeout")?.map_err(|_| "reset")?;
                }
                Err(_) => return Err("reset"),
            }
        }
        self.unwritten.clear();
        Ok(())
    }

    /// Reads what there is. Gives whether there was anything.
    fn read(&mut self) -> Result<bool, Class> {
        if self.filled == self.input.len() {
            return Err("malformed");
        }
        match self.stream.try_read(&mut self.input[self.filled..]) {
            Ok(0) => {
                let Some(answer) = self.reader.end() else {
                    return Err(if self.reader.is_inside() { "cut" } else { "closed" });
                };
                let sent = self.under_way.pop_front().ok_or("malformed")?;
                self.lane.answered(&sent, &answer);
                Err("closed")
            }
            Ok(count) => {
                self.filled += count;
                self.take_answers()?;
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(_) => Err("reset"),
        }
    }

    fn take_answers(&mut self) -> Result<(), Class> {
        let mut used = 0;
        loop {
            let (more, answer) = self.reader.feed(&self.input[used..self.filled]).map_err(|_| "malformed")?;
            used += more;
            let Some(answer) = answer else { break };
            let sent = self.under_way.pop_front().ok_or("malformed")?;
            self.lane.answered(&sent, &answer);
            if answer.closes {
                return Err("closed");
            }
        }
        self.input.copy_within(used..self.filled, 0);
        self.filled -= used;
        Ok(())
    }

    /// The timer is only set anew when it fires: most answers cost it nothing.
    fn check_overdue(&self, timer: Pin<&mut Sleep>) -> Result<(), Class> {
        let due = self.under_way.front().map_or_else(Instant::now, |first| first.sent) + self.patience;
        if due <= Instant::now() {
            return Err("timeout");
        }
        timer.reset(due.into());
        Ok(())
    }
}
