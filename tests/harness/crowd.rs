//! Readers with `ack=1` that enter everything they get and acknowledge in a [`ReadLedger`].
//!
//! Each client is a thread with one connection at a time, to one of the places that serve now. It reads NDJSON, because that says how
//! often a message was delivered; acknowledges with its next read when all came of one partition, or by `PUT /v1/offsets`, in turn; and
//! now and then it dies: in the middle of an answer, or with the answer read and nothing done. What it does is decided by its number
//! and its turn, so that a run can be told again. The trial does its faults meanwhile and ends the crowd at a moment it chooses.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::client::{Connection, Failure, Request, Response};
use crate::haproxy;
use crate::read_ledger::{Ack, ReadLedger, Received, hash};
use crate::readers::{Decoder, Delivery, Format};
use crate::topic::Topic;

/// What the clients do.
#[derive(Clone)]
pub struct Plan {
    pub topic: Topic,
    pub group: String,
    pub clients: u32,
    /// Beside the group and `ack=1`, e.g. `batch=10&wait=500ms&lease=5s`.
    pub query: String,
    /// One answer in so many is left unprocessed by a client that dies; 0: none.
    pub dies_each: u32,
}

impl Plan {
    pub fn new(topic: &Topic, clients: u32) -> Self {
        let query = "batch=10&wait=500ms&lease=10s".to_owned();
        Self { topic: topic.clone(), group: "g".to_owned(), clients, query, dies_each: 0 }
    }
}

/// Addresses that serve reads now; the trial changes them as gateways come and go.
#[derive(Clone, Default)]
pub struct Places(Arc<Mutex<Vec<SocketAddr>>>);

impl Places {
    pub fn new(addresses: impl IntoIterator<Item = SocketAddr>) -> Self {
        Self(Arc::new(Mutex::new(addresses.into_iter().collect())))
    }

    pub fn add(&self, address: SocketAddr) {
        self.lock().push(address);
    }

    pub fn remove(&self, address: SocketAddr) {
        self.lock().retain(|known| *known != address);
    }

    /// One of them; the next number is the next one's turn.
    pub fn nth(&self, n: usize) -> Option<SocketAddr> {
        let addresses = self.lock();
        addresses.get(n % addresses.len().max(1)).copied()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<SocketAddr>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The experience of all clients.
#[derive(Debug, Default, Clone)]
pub struct Tally {
    /// Answers of gateways.
    pub statuses: BTreeMap<u16, usize>,
    /// Answers a proxy made itself: when, on the ledger's clock, and which.
    pub of_proxy: Vec<(Duration, u16)>,
    pub not_connected: usize,
    /// Answers that did not come, or not to their end: when.
    pub cut: Vec<Duration>,
    /// Bodies of answers nobody promised.
    pub unexpected: Vec<String>,
}

impl Tally {
    fn add(mut self, other: Self) -> Self {
        for (status, count) in other.statuses {
            *self.statuses.entry(status).or_default() += count;
        }
        self.of_proxy.extend(other.of_proxy);
        self.not_connected += other.not_connected;
        self.cut.extend(other.cut);
        self.unexpected.extend(other.unexpected);
        self
    }

    /// Panics when a gateway answered something it has not promised: success, a late acknowledgement, or a plea for patience.
    #[track_caller]
    pub fn assert_only_promised(&self) {
        assert!(self.unexpected.is_empty(), "{:?}", &self.unexpected[..self.unexpected.len().min(5)]);
    }
}

/// Running clients.
pub struct Crowd {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Tally>>,
}

impl Crowd {
    pub fn start(plan: &Plan, places: &Places, ledger: &Arc<ReadLedger>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let client = |number| {
            let mut client = Client {
                number,
                turn: 0,
                plan: plan.clone(),
                places: places.clone(),
                ledger: Arc::clone(ledger),
                connection: None,
                tally: Tally::default(),
            };
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || {
                client.read_until(&stop);
                client.tally
            })
        };
        Self { threads: (0..plan.clients).map(client).collect(), stop }
    }

    /// Ends the crowd after the answers under way; what was read is acknowledged.
    pub fn stop(self) -> Tally {
        self.stop.store(true, Ordering::Relaxed);
        let tallies = self.threads.into_iter().map(|thread| thread.join().expect("a client does not panic"));
        tallies.fold(Tally::default(), Tally::add)
    }
}

struct Client {
    number: u32,
    turn: u32,
    plan: Plan,
    places: Places,
    ledger: Arc<ReadLedger>,
    connection: Option<Connection>,
    tally: Tally,
}

/// What one answer gave of one partition.
type Batch = BTreeMap<i32, Vec<i64>>;

impl Client {
    fn read_until(&mut self, stop: &AtomicBool) {
        let mut unacked = Batch::new();
        while !stop.load(Ordering::Relaxed) {
            self.turn += 1;
            if self.dies() {
                // In the middle of an answer; what it has not acknowledged is not its business any more.
                self.leave_in_the_middle();
                unacked.clear();
                continue;
            }
            if unacked.len() > 1 || (unacked.len() == 1 && self.turn.is_multiple_of(2)) {
                self.acknowledge(&std::mem::take(&mut unacked));
            }
            unacked = self.read(&unacked);
        }
        self.acknowledge(&unacked);
    }

    fn dies(&self) -> bool {
        let each = self.plan.dies_each;
        each > 0 && (self.turn + self.number * 7).is_multiple_of(each)
    }

    /// One read, which acknowledges `before`; gives what it got.
    fn read(&mut self, before: &Batch) -> Batch {
        let query = format!("ack=1&{}", self.plan.query);
        let request = match before.iter().next() {
            Some((partition, offsets)) => {
                let last = *offsets.last().expect("a batch is not empty");
                self.plan.topic.read_and_ack(&self.plan.group, &query, *partition, last)
            }
            None => self.plan.topic.read(&self.plan.group, &query),
        };
        let sent = self.ledger.now();
        let answer = self.call(&request.header("Accept", Format::Lines.media_type()));
        let status = answer.as_ref().map(|answer| if answer.status == 204 { 200 } else { answer.status });
        self.note_acks(before, sent, status);
        let Some(answer) = answer.filter(|answer| answer.status == 200) else { return Batch::new() };
        let deliveries = Decoder::messages(Format::Lines, &answer.body);
        // One that dies with the answer in its hands.
        let is_processed = !(self.plan.dies_each > 0 && (self.turn + self.number).is_multiple_of(self.plan.dies_each));
        let batch = self.note_received(&deliveries, is_processed);
        if is_processed {
            return batch;
        }
        self.connection = None;
        Batch::new()
    }

    fn note_received(&self, deliveries: &[Delivery], processed: bool) -> Batch {
        let at = self.ledger.now();
        let mut batch = Batch::new();
        for delivery in deliveries {
            batch.entry(delivery.partition).or_default().push(delivery.offset);
            self.ledger.received(Received {
                client: self.number,
                position: delivery.position(),
                count: delivery.deliveries.unwrap_or(1),
                hash: hash(delivery.payload.as_deref().unwrap_or_default()),
                at,
                processed,
            });
        }
        for offsets in batch.values_mut() {
            offsets.sort_unstable();
        }
        batch
    }

    fn acknowledge(&mut self, batch: &Batch) {
        if batch.is_empty() {
            return;
        }
        let items: Vec<(i32, i64)> =
            batch.iter().map(|(partition, offsets)| (*partition, *offsets.last().expect("not empty"))).collect();
        let sent = self.ledger.now();
        let answer = self.call(&self.plan.topic.ack_all(&self.plan.group, "", &items));
        self.note_acks(batch, sent, answer.map(|answer| answer.status));
    }

    fn note_acks(&self, batch: &Batch, sent: Duration, status: Option<u16>) {
        let (answered, call) = (self.ledger.now(), self.ledger.call());
        for (partition, offsets) in batch {
            let (client, partition, offsets) = (self.number, *partition, offsets.clone());
            self.ledger.acked(Ack { client, partition, offsets, sent, answered, status, call });
        }
    }

    fn leave_in_the_middle(&mut self) {
        let request = self.plan.topic.read(&self.plan.group, &format!("ack=1&{}", self.plan.query));
        let Some(mut connection) = self.connection.take().or_else(|| self.connect()) else { return };
        connection.patience(Duration::from_secs(2));
        // The status line and a little more, if anything comes at all.
        if connection.send(&request.bytes()).is_ok() {
            let _ = connection.read_raw(60);
        }
        connection.reset();
    }

    fn connect(&mut self) -> Option<Connection> {
        let place = self.places.nth((self.number + self.turn) as usize)?;
        let connection = Connection::open(place).ok();
        self.tally.not_connected += usize::from(connection.is_none());
        if connection.is_none() {
            // Nothing listens: wait a little for somebody to come back.
            std::thread::sleep(Duration::from_millis(20));
        }
        connection
    }

    /// One request, one answer of a gateway.
    fn call(&mut self, request: &Request) -> Option<Response> {
        let mut connection = self.connection.take().or_else(|| self.connect())?;
        connection.patience(Duration::from_secs(15));
        match connection.call(request) {
            Ok(answer) => {
                if !answer.closes() {
                    self.connection = Some(connection);
                }
                self.note(answer)
            }
            Err(Failure::Connect(_)) => None,
            Err(_) => {
                self.tally.cut.push(self.ledger.now());
                None
            }
        }
    }

    fn note(&mut self, answer: Response) -> Option<Response> {
        if haproxy::is_own_answer(&answer) {
            self.tally.of_proxy.push((self.ledger.now(), answer.status));
            std::thread::sleep(Duration::from_millis(20));
            return None;
        }
        *self.tally.statuses.entry(answer.status).or_default() += 1;
        if ![200, 204, 409, 429, 503].contains(&answer.status) {
            self.tally.unexpected.push(format!("{} {}", answer.status, answer.text()));
        }
        if [429, 503].contains(&answer.status) {
            // As the answer says, later again; not so much later that the trial would only wait.
            std::thread::sleep(Duration::from_millis(50));
        }
        Some(answer)
    }
}

/// The clients that got at least `count` messages, of `clients`.
pub fn served(shares: &[usize], count: usize) -> BTreeSet<usize> {
    shares.iter().enumerate().filter(|(_, share)| **share >= count).map(|(client, _)| client).collect()
}
