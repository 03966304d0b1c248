//! Publishers that keep a gateway busy and enter everything they do in a ledger.
//!
//! Each publisher is a thread with one connection (or one per request), sending one message at a time under a few keys,
//! so that order per connection and key can be judged. A cut connection is entered as unknown and a new one is made;
//! nothing is ever sent twice. Faults are done to the gateway or the brokers while the load runs; [`Load::stop`] ends
//! it at a moment the test chooses.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::client::{Connection, Failure, Request, Response};
use crate::ledger::{Answer, Ledger};

/// What the publishers do.
#[derive(Clone)]
pub struct Plan {
    pub address: SocketAddr,
    pub appid: String,
    /// Path and query without the key, e.g. `/v1/msgs/orders/v1?ack=all`.
    pub target: String,
    pub connections: u32,
    /// The first connection's number in the ledger; two loads of one ledger need different numbers.
    pub first: u32,
    /// Keys per connection; each connection has its own.
    pub keys: u32,
    pub body_bytes: usize,
    /// A new connection for each request, said with `Connection: close`.
    pub one_request_connections: bool,
    /// Between two messages of a connection.
    pub pause: Duration,
}

impl Plan {
    pub fn new(address: SocketAddr, appid: &str, topic: &str) -> Self {
        Self {
            address,
            appid: appid.to_owned(),
            target: format!("/v1/msgs/{topic}/v1"),
            connections: 8,
            first: 0,
            keys: 4,
            body_bytes: 200,
            one_request_connections: false,
            pause: Duration::ZERO,
        }
    }

    /// The same with connections numbered from `first`.
    #[must_use]
    pub fn numbered_from(&self, first: u32) -> Self {
        Self { first, ..self.clone() }
    }
}

/// One publisher's experience.
#[derive(Debug, Default, Clone)]
pub struct Tally {
    /// Connections refused by the kernel: nothing listens.
    pub not_connected: usize,
    /// Connections that ended with no byte of an answer though a request had been sent on a fresh or kept connection.
    pub unanswered: usize,
    /// Answers cut in the middle.
    pub cut: usize,
    pub statuses: std::collections::BTreeMap<u16, usize>,
    pub slowest: Duration,
}

impl Tally {
    fn note(&mut self, result: &Result<Response, Failure>, took: Duration) {
        match result {
            Ok(response) => *self.statuses.entry(response.status).or_default() += 1,
            Err(Failure::Connect(_)) => self.not_connected += 1,
            Err(Failure::NoAnswer) => self.unanswered += 1,
            Err(_) => self.cut += 1,
        }
        self.slowest = self.slowest.max(took);
    }

    fn add(mut self, other: Self) -> Self {
        self.not_connected += other.not_connected;
        self.unanswered += other.unanswered;
        self.cut += other.cut;
        for (status, count) in other.statuses {
            *self.statuses.entry(status).or_default() += count;
        }
        self.slowest = self.slowest.max(other.slowest);
        self
    }

    pub fn status(&self, status: u16) -> usize {
        self.statuses.get(&status).copied().unwrap_or(0)
    }
}

/// Running publishers.
pub struct Load {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Tally>>,
}

impl Load {
    pub fn start(plan: &Plan, ledger: &Arc<Ledger>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let publisher = |number| {
            let (plan, ledger, stop) = (plan.clone(), Arc::clone(ledger), Arc::clone(&stop));
            std::thread::spawn(move || publish(number, &plan, &ledger, &stop))
        };
        let threads = (plan.first..plan.first + plan.connections).map(publisher).collect();
        Self { stop, threads }
    }

    /// Ends the load after the answers under way.
    pub fn stop(self) -> Tally {
        self.stop.store(true, Ordering::Relaxed);
        let tallies = self.threads.into_iter().map(|thread| thread.join().expect("a publisher does not panic"));
        tallies.fold(Tally::default(), Tally::add)
    }
}

fn publish(number: u32, plan: &Plan, ledger: &Ledger, stop: &AtomicBool) -> Tally {
    let mut tally = Tally::default();
    let mut connection = None;
    for turn in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let key = number * plan.keys + turn % plan.keys;
        let draft = ledger.enter(number, key, plan.body_bytes);
        let start = Instant::now();
        let result = send(plan, &mut connection, &draft.key, draft.body);
        tally.note(&result, start.elapsed());
        ledger.answered(draft.id, Answer::of(&result));
        if plan.one_request_connections || !result.as_ref().is_ok_and(|response| !response.closes()) {
            connection = None;
        }
        std::thread::sleep(plan.pause);
        if matches!(result, Err(Failure::Connect(_))) {
            // Nothing listens: wait a little for somebody to come back, or for the end of the load.
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    tally
}

fn send(plan: &Plan, connection: &mut Option<Connection>, key: &str, body: Vec<u8>) -> Result<Response, Failure> {
    let connection = match connection {
        Some(open) => open,
        None => connection.insert(Connection::open(plan.address)?),
    };
    connection.patience(Duration::from_secs(15));
    let separator = if plan.target.contains('?') { '&' } else { '?' };
    let mut request = Request::post(&format!("{}{separator}key={key}", plan.target), body).app(&plan.appid);
    if plan.one_request_connections {
        request = request.header("Connection", "close");
    }
    connection.call(&request)
}
