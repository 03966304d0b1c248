//! What is counted: one block of cells per core, written by that core alone, read by whoever asks.
//!
//! Invariant: a cell has one writer, so counting is a plain load and store; a reader on another thread sees a value that was
//! true a moment ago. Nothing is added up in between: [`export`] does it when a scrape asks. This module knows no routes and no
//! codes, only how many there are.

pub mod export;
pub mod histogram;
pub mod hitters;
pub mod process;
pub mod session;

use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam::utils::CachePadded;

pub use histogram::{Histogram, HistogramSnapshot, Sizes, SizesSnapshot};
pub use hitters::{Hits, Hitters};

/// Upper bounds of the request matrix; the API asserts that its tables fit.
pub const ROUTES_MAX: usize = 32;
pub const OUTCOMES_MAX: usize = 64;
/// Kinds of failed TLS handshakes, likewise.
pub const TLS_FAILURES: usize = 8;

/// A cell with one writer.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    pub fn sub(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_sub(n), Ordering::Relaxed);
    }

    pub fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What a cell says to whoever asks.
#[derive(Clone, Copy, Debug)]
pub struct Cell {
    pub kind: &'static str,
    pub name: &'static str,
    pub help: &'static str,
    /// Tells it from others of the same name, which stand beside it.
    pub label: Option<(&'static str, &'static str)>,
    pub value: u64,
}

macro_rules! cells {
    ($($(#[doc = $doc:literal])* $name:ident: $kind:literal $metric:literal $($label:ident = $by:literal)?,)+) => {
        /// Per core: the cells that have no labels but the shard, and one of a fixed few.
        #[derive(Debug, Default)]
        pub struct Cells {
            $($(#[doc = $doc])* pub $name: Counter,)+
        }

        impl Cells {
            /// Every cell; those of one name stand together, and the first has the name's help text.
            pub fn list(&self) -> Vec<Cell> {
                vec![$(Cell {
                    kind: $kind,
                    name: $metric,
                    help: concat!($($doc),*),
                    label: None$(.or(Some((stringify!($label), $by))))?,
                    value: self.$name.get(),
                }),+]
            }
        }
    };
}

cells! {
    /// Connections accepted.
    accepted: "counter" "kateway_connections_accepted_total",
    /// Connections open now.
    connections: "gauge" "kateway_connections",
    /// Connections refused because the core has as many as it takes.
    connections_refused: "counter" "kateway_connections_refused_total",
    /// Connections handed to the shard that their first read belongs to.
    connections_steered: "counter" "kateway_connections_steered_total",
    /// Connections ended, or bodies of HTTP/2 requests given up, or HTTP/2 answers not taken, because a client let a deadline pass: no request.
    expired_idle: "counter" "kateway_connections_expired_total" kind = "idle",
    /// The same: a PROXY header, the TLS handshake.
    expired_preface: "counter" "kateway_connections_expired_total" kind = "preface",
    /// The same: the rest of a request head.
    expired_head: "counter" "kateway_connections_expired_total" kind = "head",
    /// The same: the whole of a body.
    expired_body: "counter" "kateway_connections_expired_total" kind = "body",
    /// The same: a body that comes too slowly.
    expired_body_rate: "counter" "kateway_connections_expired_total" kind = "body_rate",
    /// The same: an answer that is not taken.
    expired_write: "counter" "kateway_connections_expired_total" kind = "write",
    /// The same: any sign of life on an HTTP/2 connection with open requests.
    expired_silent: "counter" "kateway_connections_expired_total" kind = "silent",
    /// HTTP/2 connections ended because their client sent too many frames of a kind: resets, its own and provoked ones.
    h2_floods_reset: "counter" "kateway_h2_floods_total" kind = "reset",
    /// The same: PING.
    h2_floods_ping: "counter" "kateway_h2_floods_total" kind = "ping",
    /// The same: SETTINGS.
    h2_floods_settings: "counter" "kateway_h2_floods_total" kind = "settings",
    /// The same: DATA without a byte, not ending its stream.
    h2_floods_empty_data: "counter" "kateway_h2_floods_total" kind = "empty_data",
    /// The same: CONTINUATION.
    h2_floods_continuation: "counter" "kateway_h2_floods_total" kind = "continuation",
    /// The same: WINDOW_UPDATE.
    h2_floods_window_update: "counter" "kateway_h2_floods_total" kind = "window_update",
    /// The same: kinds that are ignored.
    h2_floods_other: "counter" "kateway_h2_floods_total" kind = "other",
    /// The same, by a bound of hyper's own.
    h2_floods_hyper: "counter" "kateway_h2_floods_total" kind = "hyper",
    /// TLS handshakes that were completed.
    tls_handshakes: "counter" "kateway_tls_handshakes_total",
    /// Of these, handshakes that resumed a session.
    tls_resumed: "counter" "kateway_tls_resumed_total",
    /// Connections of load balancers closed because their PROXY header was missing, malformed or late.
    proxy_headers_failed: "counter" "kateway_proxy_header_failures_total",
    /// Requests whose bytes were not HTTP as it must be.
    malformed: "counter" "kateway_requests_malformed_total",
    /// Publishes in flight now.
    inflight: "gauge" "kateway_pub_inflight",
    /// Bytes of memory that batches under way have taken.
    batch_bytes: "gauge" "kateway_pub_batch_bytes",
    /// Messages published (acknowledged or queued as asked).
    pub_messages: "counter" "kateway_pub_messages_total",
    /// Bytes of published messages.
    pub_bytes: "counter" "kateway_pub_bytes_total",
    /// Publishes with an Idempotency-Key that were answered as the first time.
    idempotency_replayed: "counter" "kateway_pub_idempotency_replayed_total",
    /// Idempotency keys forgotten before their time, for want of room.
    idempotency_forgotten: "counter" "kateway_pub_idempotency_forgotten_total",
    /// Idempotency keys this core remembers.
    idempotency_keys: "gauge" "kateway_pub_idempotency_keys",
    /// Messages delivered to readers.
    sub_messages: "counter" "kateway_sub_messages_total",
    /// Bytes of delivered messages.
    sub_bytes: "counter" "kateway_sub_bytes_total",
    /// Messages passed over by tag filters.
    sub_filtered: "counter" "kateway_sub_filtered_total",
    /// Answers whose client left before it had them; their messages were given back.
    sub_given_back: "counter" "kateway_sub_given_back_total",
    /// Reads answered by another core over the mesh.
    sub_forwarded: "counter" "kateway_sub_forwarded_total",
    /// Acknowledgements by clients that were recorded.
    acks: "counter" "kateway_sub_acks_total",
    /// Acknowledgements of messages no lease holds: they came too late, or name what was never handed out.
    acks_late: "counter" "kateway_sub_acks_late_total",
    /// Messages copied to shadow queues.
    buried: "counter" "kateway_sub_buried_total",
    /// Of these, messages that were delivered as often as their readers allow.
    buried_worn: "counter" "kateway_sub_buried_worn_total",
    /// Reads sent on to the gateway that owns the messages.
    sub_peer_reads: "counter" "kateway_sub_peer_reads_total",
    /// Reads that were not sent on, because this core has as many under way as it may.
    peer_refused: "counter" "kateway_sub_peer_reads_refused_total",
    /// Questions of other gateways answered.
    peer_asked: "counter" "kateway_peer_asked_total",
    /// Questions other gateways did not answer.
    peer_failures: "counter" "kateway_peer_failures_total",
    /// Looks at Kafka's list of a group's members.
    group_looks: "counter" "kateway_group_looks_total",
    /// Answers with stream=1 being written now.
    streams: "gauge" "kateway_sub_streams",
    /// Answers that went uncompressed because the core had as many encoders as it may.
    encoders_refused: "counter" "kateway_sub_encoders_refused_total",
    /// WebSockets open now.
    ws_connections: "gauge" "kateway_ws_connections",
    /// Bytes published by WebSockets whose reports are to come, as they came over the wire.
    ws_bytes: "gauge" "kateway_ws_publish_bytes",
    /// Messages published by WebSockets that were not stored, or may not have been.
    ws_failed: "counter" "kateway_ws_messages_failed_total",
    /// Times a WebSocket was not read, because it or the producer had as much under way as it may.
    ws_paused: "counter" "kateway_ws_pauses_total",
    /// WebSockets closed because no pong came.
    ws_silent: "counter" "kateway_ws_silent_total",
    /// Bytes of messages this core keeps for its groups.
    held_bytes: "gauge" "kateway_sub_held_bytes",
    /// Messages waiting in this core's producers.
    producer_messages: "gauge" "kateway_producer_queue_messages",
    /// Bytes waiting in this core's producers.
    producer_bytes: "gauge" "kateway_producer_queue_bytes",
    /// Times the topic snapshot was refreshed.
    topic_refreshes: "counter" "kateway_topic_refreshes_total",
    /// Microseconds this core's executor was busy.
    busy_us: "counter" "kateway_shard_busy_microseconds_total",
    /// Ticks of the core; it stands still when the core stalls.
    ticks: "counter" "kateway_shard_ticks_total",
    /// Tasks that panicked and were contained.
    panics: "counter" "kateway_shard_panics_total",
}

/// Per core: everything one core counts. Shared with readers, written by its core alone (but `stalls`, written by the kicker).
#[derive(Debug)]
pub struct ShardMetrics {
    pub cells: CachePadded<Cells>,
    /// Times the kicker found the core stalled.
    pub stalls: CachePadded<Counter>,
    requests: Box<[[Counter; OUTCOMES_MAX]; ROUTES_MAX]>,
    /// TLS handshakes that failed, by kind.
    pub tls_failures: [Counter; TLS_FAILURES],
    /// From the first byte of the head until the answer is being made, publish.
    pub pub_duration: Histogram,
    /// The same, subscribe (waiting included).
    pub sub_duration: Histogram,
    /// Where the time of a publish that was handed over goes.
    pub pub_stages: Stages,
    /// How late the core's tick ran after its kick.
    pub loop_delay: Histogram,
}

/// Per core: the stages of a publish, without a gap between them.
///
/// ```text
///   first byte of the head ---parse--- handed over ---kafka--- report on the core ---queue--- its request runs ---write--- taken by the kernel
/// ```
///
/// `parse` holds the wait for the body, `kafka` everything that is librdkafka's and the broker's, `queue` what a woken request
/// waits for its turn, `write` the making of the answer and a client that is slow to take it. A publish nobody waits for
/// (`async`, `ack=none`) and a store that answers at once have `kafka` for the hand-over itself, and no `queue`.
#[derive(Debug, Default)]
pub struct Stages {
    pub parse: Histogram,
    pub kafka: Histogram,
    pub queue: Histogram,
    pub write: Histogram,
}

impl Stages {
    /// Label value and histogram, in the order of the stages.
    pub fn list(&self) -> [(&'static str, &Histogram); 4] {
        [("parse", &self.parse), ("kafka", &self.kafka), ("queue", &self.queue), ("write", &self.write)]
    }
}

impl Default for ShardMetrics {
    fn default() -> Self {
        Self {
            cells: CachePadded::default(),
            stalls: CachePadded::default(),
            requests: Box::new(std::array::from_fn(|_| std::array::from_fn(|_| Counter::default()))),
            tls_failures: Default::default(),
            pub_duration: Histogram::default(),
            sub_duration: Histogram::default(),
            pub_stages: Stages::default(),
            loop_delay: Histogram::default(),
        }
    }
}

impl ShardMetrics {
    /// Counts one answered request.
    pub fn count_request(&self, route: usize, outcome: usize) {
        self.requests[route.min(ROUTES_MAX - 1)][outcome.min(OUTCOMES_MAX - 1)].add(1);
    }

    pub fn requests(&self, route: usize, outcome: usize) -> u64 {
        self.requests[route.min(ROUTES_MAX - 1)][outcome.min(OUTCOMES_MAX - 1)].get()
    }
}
