//! Keys of the wire: `pub`, `sub`, `man`, `http`. See [`super`] for what each says.

use crate::{
    config::{
        Cidr,
        forms::{is_address_or_empty, is_origin},
        keys::{Form, Key, Kind, Preset},
    },
    limits,
};

const ADDRESS: Form =
    Form { expected: "`IP:PORT`, or empty text to serve the role nowhere", is_valid: |text| is_address_or_empty(text) };

pub const KEYS: &[Key] = &[
    Key {
        path: "pub.addr",
        kind: Kind::Text(ADDRESS),
        default: Preset::Text("127.0.0.1:9191"),
        doc: "Address that serves publishing. Roles with the same address share one listener; port 0 takes any free port and \
              is never shared; empty text serves the role nowhere. Flag --pub.",
        hot: false,
    },
    Key {
        path: "pub.tls_addr",
        kind: Kind::Text(ADDRESS),
        default: Preset::Text(""),
        doc: "Address that serves the same over TLS, with the certificates of tls.certificates; HTTP/2 or HTTP/1.1, as the client asks (ALPN). Empty text: none. To refuse cleartext, leave pub.addr empty.",
        hot: false,
    },
    Key {
        path: "pub.deadline_ms",
        kind: Kind::Int { min: 1_500, max: 600_000 },
        default: Preset::Int(5_000),
        doc: "Milliseconds after which a publish request is answered whatever happens (504 if the outcome is unknown). \
              Kafka gets one second less, so that its own verdict arrives first.",
        hot: false,
    },
    Key {
        path: "pub.message_bytes_max",
        kind: Kind::Int { min: 1, max: limits::MESSAGE_BYTES_MAX as u64 },
        default: Preset::Int(limits::MESSAGE_BYTES_MAX as u64),
        doc: "Bytes of one message; over it: 413. Not above `message.max.bytes` of the brokers.",
        hot: true,
    },
    Key {
        path: "pub.inflight_max",
        kind: Kind::Int { min: 1, max: 1_000_000 },
        default: Preset::Int(16_384),
        doc: "Publish requests in flight on one shard; over it: 429.",
        hot: true,
    },
    Key {
        path: "pub.batch_bytes_max",
        kind: Kind::Int { min: 1, max: limits::BATCH_BYTES_MAX as u64 },
        default: Preset::Int(limits::BATCH_BYTES_MAX as u64),
        doc: "Bytes of the body of one batch, decompressed; over it: 413.",
        hot: true,
    },
    Key {
        path: "pub.batch_messages_max",
        kind: Kind::Int { min: 1, max: limits::BATCH_MESSAGES_MAX as u64 },
        default: Preset::Int(limits::BATCH_MESSAGES_MAX as u64),
        doc: "Messages of one batch; over it: 400.",
        hot: true,
    },
    Key {
        path: "pub.batch_memory_bytes_max",
        kind: Kind::Int { min: 1 << 20, max: 1 << 40 },
        default: Preset::Int(256 << 20),
        doc: "Bytes that bodies of batches under way may hold on one shard; over it: 429. A JSON document counts whole, lines and frames \
              with what they may have under way.",
        hot: true,
    },
    Key {
        path: "pub.idempotency_window_s",
        kind: Kind::Int { min: 1, max: 86_400 },
        default: Preset::Int(600),
        doc: "Seconds an `Idempotency-Key` is remembered after its publish has finished: a repeat gets the first answer again.",
        hot: true,
    },
    Key {
        path: "pub.idempotency_keys_max",
        kind: Kind::Int { min: 1, max: 10_000_000 },
        default: Preset::Int(limits::IDEMPOTENCY_KEYS_MAX as u64),
        doc: "Keys one shard remembers, in 64 MiB at most; over either the oldest is forgotten before its time, and counted: \
              all applications share them.",
        hot: true,
    },
    Key {
        path: "sub.addr",
        kind: Kind::Text(ADDRESS),
        default: Preset::Text("127.0.0.1:9192"),
        doc: "Address that serves subscribing; see pub.addr. Flag --sub.",
        hot: false,
    },
    Key {
        path: "sub.tls_addr",
        kind: Kind::Text(ADDRESS),
        default: Preset::Text(""),
        doc: "Address that serves the same over TLS, with the certificates of tls.certificates; HTTP/2 or HTTP/1.1, as the client asks (ALPN). Empty text: none. To refuse cleartext, leave sub.addr empty. Other gateways speak cleartext to sub.addr: keep it on an inner network where gateway.peer_secret is set.",
        hot: false,
    },
    Key {
        path: "sub.commit_interval_ms",
        kind: Kind::Int { min: 10, max: 60_000 },
        default: Preset::Int(100),
        doc: "Milliseconds between two commits of a group's offsets. After a kill, what was acknowledged in between comes again.",
        hot: false,
    },
    Key {
        path: "sub.leases_max",
        kind: Kind::Int { min: 1, max: 1_000_000 },
        default: Preset::Int(limits::LEASES_MAX as u64),
        doc: "Messages of one partition handed out above the first unacknowledged one; over it the partition waits for the gap.",
        hot: false,
    },
    Key {
        path: "sub.groups_max",
        kind: Kind::Int { min: 1, max: 100_000 },
        default: Preset::Int(1_000),
        doc: "Groups this gateway reads at the same time. A group lives on one shard, and each shard takes an equal part of them, \
              rounded up; over it: 429, even where another shard has room. Each is a Kafka consumer with threads and memory of \
              its own.",
        hot: false,
    },
    Key {
        path: "sub.group_idle_s",
        kind: Kind::Int { min: 1, max: 86_400 },
        default: Preset::Int(60),
        doc: "Seconds without a client after which a group is left.",
        hot: false,
    },
    Key {
        path: "sub.waiters_max",
        kind: Kind::Int { min: 1, max: limits::GROUP_WAITERS_MAX as u64 },
        default: Preset::Int(limits::GROUP_WAITERS_MAX as u64),
        doc: "Requests waiting on one group at the same time, per shard; over it: 429.",
        hot: true,
    },
    Key {
        path: "sub.batch_bytes_max",
        kind: Kind::Int { min: 1, max: limits::BATCH_BYTES_MAX as u64 },
        default: Preset::Int(limits::BATCH_BYTES_MAX as u64),
        doc: "Bytes at which the answer to one request stops filling. Not below pub.message_bytes_max.",
        hot: true,
    },
    Key {
        path: "sub.memory_bytes_max",
        kind: Kind::Int { min: 1 << 20, max: 1 << 40 },
        default: Preset::Int(256 << 20),
        doc: "Bytes of messages one shard keeps for its groups, buffered or handed out. Over it a group waits for its clients, unless \
              it holds less than its equal part.",
        hot: false,
    },
    Key {
        path: "sub.watchdog_s",
        kind: Kind::Int { min: 5, max: 86_400 },
        default: Preset::Int(30),
        doc: "Seconds without progress after which a group with unread messages and waiting clients joins anew.",
        hot: false,
    },
    Key {
        path: "sub.max_stream_s",
        kind: Kind::Int { min: 0, max: 31_536_000 },
        default: Preset::Int(0),
        doc: "Seconds after which an answer with stream=1 ends; 0: it lasts as long as its client.",
        hot: true,
    },
    Key {
        path: "sub.steer",
        kind: Kind::Bool,
        default: Preset::Bool(true),
        doc: "Hand a cleartext HTTP/1.1 connection with its first read to the shard the group lives on. Else every read that came \
              to another shard goes there and back.",
        hot: true,
    },
    Key {
        path: "man.addr",
        kind: Kind::Text(ADDRESS),
        default: Preset::Text("127.0.0.1:9193"),
        doc: "Address that serves health, status and metrics; see pub.addr. On an address of its own it answers while the \
              shards are saturated. Flag --man.",
        hot: false,
    },
    Key {
        path: "man.tls_addr",
        kind: Kind::Text(ADDRESS),
        default: Preset::Text(""),
        doc: "Address that serves the same over TLS, with the certificates of tls.certificates; HTTP/2 or HTTP/1.1, as the client asks (ALPN). Empty text: none. To refuse cleartext, leave man.addr empty.",
        hot: false,
    },
    Key {
        path: "http.connections_max",
        kind: Kind::Int { min: 1, max: 1_000_000 },
        default: Preset::Int(20_000),
        doc: "Connections of one shard; over it a new one is answered 503 and closed (over TLS: closed without a word, before the handshake), and none moves there (sub.steer). `kateway doctor` compares it with the \
              limit on open files.",
        hot: true,
    },
    Key {
        path: "http.head_bytes_max",
        kind: Kind::Int { min: 256, max: limits::HEAD_BYTES_MAX as u64 },
        default: Preset::Int(limits::HEAD_BYTES_MAX as u64),
        doc: "Bytes of a request head; over it: 431.",
        hot: true,
    },
    Key {
        path: "http.target_bytes_max",
        kind: Kind::Int { min: 64, max: limits::TARGET_BYTES_MAX as u64 },
        default: Preset::Int(limits::TARGET_BYTES_MAX as u64),
        doc: "Bytes of a request target (path and query); over it: 414. Below http.head_bytes_max.",
        hot: true,
    },
    Key {
        path: "http.head_timeout_ms",
        kind: Kind::Int { min: 10, max: 600_000 },
        default: Preset::Int(10_000),
        doc: "Milliseconds a request head may take to arrive; over it: 408.",
        hot: true,
    },
    Key {
        path: "http.body_bytes_per_s_min",
        kind: Kind::Int { min: 0, max: 1_048_576 },
        default: Preset::Int(1_024),
        doc: "Bytes a second at which a request body has to arrive: each byte buys its part of a second, up to 30 s ahead; slower: 408, a WebSocket's message: 1008. \
              0: no such floor.",
        hot: true,
    },
    Key {
        path: "http.body_grace_ms",
        kind: Kind::Int { min: 10, max: 600_000 },
        default: Preset::Int(5_000),
        doc: "Milliseconds before http.body_bytes_per_s_min counts.",
        hot: true,
    },
    Key {
        path: "http.body_timeout_ms",
        kind: Kind::Int { min: 10, max: 3_600_000 },
        default: Preset::Int(600_000),
        doc: "Milliseconds a request body may take in all, however steadily it arrives; over it: 408.",
        hot: true,
    },
    Key {
        path: "http.idle_timeout_ms",
        kind: Kind::Int { min: 10, max: 86_400_000 },
        default: Preset::Int(60_000),
        doc: "Milliseconds after which a connection without a request is closed.",
        hot: true,
    },
    Key {
        path: "http.write_timeout_ms",
        kind: Kind::Int { min: 10, max: 600_000 },
        default: Preset::Int(30_000),
        doc: "Milliseconds after which a connection is closed whose client takes no byte of its answer.",
        hot: true,
    },
    Key {
        path: "http.ws_ping_ms",
        kind: Kind::Int { min: 100, max: 600_000 },
        default: Preset::Int(20_000),
        doc: "Milliseconds between two pings of a WebSocket, whatever its traffic. A client that leaves three in a row unanswered is \
              closed.",
        hot: true,
    },
    Key {
        path: "http.ws_echo",
        kind: Kind::Bool,
        default: Preset::Bool(false),
        doc: "Serve `GET /v1/ws/_echo` with the manage role: a WebSocket that gives back what it is sent, to test clients and proxies.",
        hot: true,
    },
    Key {
        path: "http.max_requests",
        kind: Kind::Int { min: 0, max: 1 << 40 },
        default: Preset::Int(0),
        doc: "Requests one connection carries; its client is then told to open another (`Connection: close`, GOAWAY), which a load balancer may give to another gateway. 0: any number. A WebSocket or an endless answer (stream=1) counts as one.",
        hot: true,
    },
    Key {
        path: "http.max_age_s",
        kind: Kind::Int { min: 0, max: 31_536_000 },
        default: Preset::Int(0),
        doc: "Seconds a connection is used, less up to a quarter, so that connections opened together do not end together: the first answer after that is its last, and an HTTP/2 connection is told at once (GOAWAY), a WebSocket, whose age counts from its handshake, closed (1001). What is under way is finished: sub.max_stream_s bounds endless answers. 0: as long as its client likes.",
        hot: true,
    },
    Key {
        path: "http.proxy_from",
        kind: Kind::List(Form {
            expected: "a block of addresses such as `10.0.0.0/8`, or one address",
            is_valid: |text| Cidr::parse(text).is_some(),
        }),
        default: Preset::List(&[]),
        doc: "Load balancers that begin each connection with a PROXY header (version 1 or 2, before TLS too) that says who the client is: blocks of addresses (`10.0.0.0/8`) or single ones. A connection from there without a header is closed; from anywhere else none is read. Other gateways must not be in the blocks: they send no header to each other, so the reads of groups that live there would fail.",
        hot: true,
    },
    Key {
        path: "http.forwarded_from",
        kind: Kind::List(Form {
            expected: "a block of addresses such as `10.0.0.0/8`, or one address",
            is_valid: |text| Cidr::parse(text).is_some(),
        }),
        default: Preset::List(&[]),
        doc: "Load balancers whose `X-Forwarded-For` is believed, written as http.proxy_from: the rightmost address in it that is none of theirs is the client.",
        hot: true,
    },
    Key {
        path: "http.origins",
        kind: Kind::List(Form {
            expected: "an origin such as `https://app.example.org` or `http://localhost:8080`, or `*` for any",
            is_valid: |text| is_origin(text),
        }),
        default: Preset::List(&[]),
        doc: "Origins whose pages may call the gateway from a browser (CORS): scheme, host, and port unless it is the scheme's own. `*`: \
              any. Empty: none, but for WebSockets of pages that the gateway's own host served, which always may.",
        hot: true,
    },
];
