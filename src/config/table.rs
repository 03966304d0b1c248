//! Every configuration key, once.
//!
//! From this table come the reading of the file, of the environment and of the command line, the commented sample
//! `config/kateway.toml` and the output of `kateway check`. So a key cannot be read but undocumented, or documented but unread.
//! Invariants, held by tests: a path is `section.key`; keys of one section stand together; every default is valid by its own
//! rule; every key changes the typed configuration.

use super::{
    cpus,
    forms::{is_address_or_empty, is_free_option, is_host_port, is_id_byte, is_peer_secret, is_topic_compression},
    keys::{Form, Key, Kind, Preset},
};
use crate::limits;

/// Short command line flags and the keys they stand for.
pub const SHORT_FLAGS: &[(&str, &str)] = &[
    ("store", "store.kind"),
    ("brokers", "kafka.brokers"),
    ("pub", "pub.addr"),
    ("sub", "sub.addr"),
    ("man", "man.addr"),
    ("shards", "shard.count"),
];

/// Sections in file order, and what each is about.
pub const SECTIONS: &[(&str, &str)] = &[
    ("gateway", "This process."),
    ("store", "Where messages go."),
    ("shard", "One shard is one executor on one core."),
    ("pub", "The publish role."),
    ("sub", "The subscribe role."),
    ("man", "The manage role: health, status, metrics."),
    ("http", "Limits of the wire, for every listener."),
    ("kafka", "The Kafka cluster, when store.kind is `kafka`."),
    ("topics", "How topics come into being."),
    ("memory", "The embedded store, when store.kind is `memory`."),
    ("null", "The dry-run store, when store.kind is `null`."),
    ("drain", "What SIGTERM does."),
    ("log", "The gateway's own log."),
    ("handoff", "Messages kept on disk while Kafka is away."),
    ("tenancy", "Who may do what."),
    ("zookeeper", "Presence and shared settings."),
    ("test", "Switches that break a promise on purpose, so that a test can be seen red. Never for production."),
];

const ADDRESS: Form =
    Form { expected: "`IP:PORT`, or empty text to serve the role nowhere", is_valid: |text| is_address_or_empty(text) };
const ANY_TEXT: Form = Form { expected: "text", is_valid: |_| true };

/// The table.
pub const KEYS: &[Key] = &[
    Key {
        path: "gateway.id",
        kind: Kind::Text(Form {
            expected: "up to 64 letters, digits, `.`, `_`, `-`",
            is_valid: |text| text.len() <= limits::NAME_BYTES_MAX && text.bytes().all(is_id_byte),
        }),
        default: Preset::Text(""),
        doc: "Name of this gateway, unique among all gateways of a cluster. Empty: `<hostname>-<pid>`.",
        hot: false,
    },
    Key {
        path: "gateway.advertise",
        kind: Kind::Text(Form {
            expected: "`HOST:PORT`, or empty text for the address of the sub listener",
            is_valid: |text| text.is_empty() || is_host_port(text),
        }),
        default: Preset::Text(""),
        doc: "`HOST:PORT` under which other gateways reach the sub role of this one. Empty: `sub.addr` as it was bound, or nothing \
              where that means every address of the host (`0.0.0.0`).",
        hot: false,
    },
    Key {
        path: "gateway.peer_secret",
        kind: Kind::Secret(Form {
            expected: "at least 16 printable characters without spaces, or empty text for none",
            is_valid: |text| text.is_empty() || is_peer_secret(text),
        }),
        default: Preset::Text(""),
        doc: "Shared secret of the gateways of one cluster, for requests they forward to each other: at least 16 characters. It is \
              never shown. Empty: none.",
        hot: false,
    },
    Key {
        path: "store.kind",
        kind: Kind::Choice(&["kafka", "memory", "null"]),
        default: Preset::Text("kafka"),
        doc: "`kafka`: a real cluster. `memory`: embedded in this process, the whole API works, data is gone at exit. \
              `null`: dry run, nothing is stored. Flag --store.",
        hot: false,
    },
    Key {
        path: "shard.count",
        kind: Kind::Int { min: 0, max: 1_024 },
        default: Preset::Int(0),
        doc: "Number of shards. 0: one for each cpu of shard.cpus. More shards than cpus works, and is slower. Flag --shards.",
        hot: false,
    },
    Key {
        path: "shard.pin",
        kind: Kind::Bool,
        default: Preset::Bool(true),
        doc: "Bind each shard to one cpu. Switch it off where several gateways share the same cpus.",
        hot: false,
    },
    Key {
        path: "shard.cpus",
        kind: Kind::Text(Form {
            expected: "a list of cpus such as `0-3,8`",
            is_valid: |text| cpus::parse(text).is_ok(),
        }),
        default: Preset::Text(""),
        doc: "Cpus the shards use, such as `0-3,8`. Empty: all that the process may use.",
        hot: false,
    },
    Key {
        path: "shard.kicker_ms",
        kind: Kind::Int { min: 0, max: 1_000 },
        default: Preset::Int(5),
        doc: "Milliseconds between two wake-ups of every shard by the kicker thread, which undoes an executor parked with \
              work to do; 50 while all are idle. 0 switches it off: for tests only.",
        hot: false,
    },
    Key {
        path: "shard.stall_ms",
        kind: Kind::Int { min: 10, max: 60_000 },
        default: Preset::Int(500),
        doc: "Milliseconds after which a shard that makes no progress is counted as stalled and logged.",
        hot: false,
    },
    Key {
        path: "shard.preempt_us",
        kind: Kind::Int { min: 100, max: 100_000 },
        default: Preset::Int(1_000),
        doc: "Microseconds after which a busy task has to let the shard look at its sockets.",
        hot: false,
    },
    Key {
        path: "pub.addr",
        kind: Kind::Text(ADDRESS),
        default: Preset::Text("127.0.0.1:9191"),
        doc: "Address that serves publishing. Roles with the same address share one listener; port 0 takes any free port and \
              is never shared; empty text serves the role nowhere. Flag --pub.",
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
        path: "sub.addr",
        kind: Kind::Text(ADDRESS),
        default: Preset::Text("127.0.0.1:9192"),
        doc: "Address that serves subscribing; see pub.addr. Flag --sub.",
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
        path: "http.connections_max",
        kind: Kind::Int { min: 1, max: 1_000_000 },
        default: Preset::Int(20_000),
        doc: "Connections of one shard; over it a new one is answered 503 and closed, and none moves there (sub.steer). `kateway doctor` compares it with the \
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
        path: "http.body_timeout_ms",
        kind: Kind::Int { min: 10, max: 600_000 },
        default: Preset::Int(30_000),
        doc: "Milliseconds a request body may take to arrive; over it: 408.",
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
        path: "kafka.brokers",
        kind: Kind::List(Form { expected: "`HOST:PORT` of a broker", is_valid: |text| is_host_port(text) }),
        default: Preset::List(&[]),
        doc: "Brokers to learn the cluster from; two or three are enough. Flag --brokers.",
        hot: false,
    },
    Key {
        path: "kafka.linger_us",
        kind: Kind::Int { min: 0, max: 1_000_000 },
        default: Preset::Int(100),
        doc: "Microseconds a message may wait in the producer for others to share its request with; twice that from 24 messages \
              under way on, and nothing for one that is alone. 0: none waits, and each is nearly a request of its own.",
        hot: false,
    },
    Key {
        path: "kafka.batch_bytes_max",
        kind: Kind::Int { min: 1_024, max: 100_000_000 },
        default: Preset::Int(1_000_000),
        doc: "Bytes of one batch of the producer (`batch.size`).",
        hot: false,
    },
    Key {
        path: "kafka.queue_messages_max",
        kind: Kind::Int { min: 1, max: 10_000_000 },
        default: Preset::Int(100_000),
        doc: "Messages waiting in one producer; over it: 503. A shard has one producer for each ack level in use.",
        hot: false,
    },
    Key {
        path: "kafka.queue_bytes_max",
        kind: Kind::Int { min: 1_048_576, max: 1 << 40 },
        default: Preset::Int(64 << 20),
        doc: "Bytes waiting in one producer; over it: 503. Counted in KiB.",
        hot: false,
    },
    Key {
        path: "kafka.compression",
        kind: Kind::Choice(&["none", "gzip", "snappy", "lz4", "zstd"]),
        default: Preset::Text("none"),
        doc: "Compression of what is produced, batch by batch, unless topics.compression says otherwise for a topic.",
        hot: false,
    },
    Key {
        path: "kafka.fetch_queue_kbytes",
        kind: Kind::Int { min: 64, max: 2_097_151 },
        default: Preset::Int(4_096),
        doc: "KiB each group's consumer fetches ahead (`queued.max.messages.kbytes`). A full queue is looked at each 20 ms, so one \
              partition gives a group little more than 50 times this a second.",
        hot: false,
    },
    Key {
        path: "kafka.session_timeout_ms",
        kind: Kind::Int { min: 1_000, max: 1_800_000 },
        default: Preset::Int(6_000),
        doc: "Milliseconds after which Kafka gives a dead gateway's partitions to another. Within the brokers' \
              `group.min.session.timeout.ms` and `group.max.session.timeout.ms`.",
        hot: false,
    },
    Key {
        path: "kafka.metadata_interval_s",
        kind: Kind::Int { min: 1, max: 3_600 },
        default: Preset::Int(30),
        doc: "Seconds between two looks at which topics and partitions exist. A topic not known is looked up at once.",
        hot: false,
    },
    Key {
        path: "kafka.admin_timeout_ms",
        kind: Kind::Int { min: 100, max: 600_000 },
        default: Preset::Int(5_000),
        doc: "Milliseconds a call about topics or groups may take.",
        hot: false,
    },
    Key {
        path: "kafka.options",
        kind: Kind::List(Form {
            expected: "`name=value` of librdkafka, and none of the options the gateway's promises rest on",
            is_valid: |text| is_free_option(text),
        }),
        default: Preset::List(&[]),
        doc: "Further librdkafka options, each `name=value`, applied last to producers and consumers. Those the gateway's \
              promises rest on (acks, idempotence, group, offsets, partitioner, linger, timeouts of delivery) are refused.",
        hot: false,
    },
    Key {
        path: "topics.auto_create",
        kind: Kind::Bool,
        default: Preset::Bool(false),
        doc: "Create a topic when it is first published to. The embedded and the dry-run store always do.",
        hot: true,
    },
    Key {
        path: "topics.partitions",
        kind: Kind::Int { min: 1, max: 10_000 },
        default: Preset::Int(4),
        doc: "Partitions of a topic created so.",
        hot: true,
    },
    Key {
        path: "topics.replicas",
        kind: Kind::Int { min: 1, max: 100 },
        default: Preset::Int(1),
        doc: "Replicas of a topic created so. One replica does not survive its broker: use 3 in production.",
        hot: true,
    },
    Key {
        path: "topics.compression",
        kind: Kind::List(Form {
            expected: "`TOPIC=CODEC` with Kafka's name of a topic, or its beginning and `*`, and none, gzip, snappy, lz4 or zstd",
            is_valid: |text| is_topic_compression(text),
        }),
        default: Preset::List(&[]),
        doc: "Compression of what is produced to some topics, each `TOPIC=CODEC`; `app1.logs.*=zstd` means all that begin so, and the first \
              that fits counts.",
        hot: false,
    },
    Key {
        path: "memory.bytes_max",
        kind: Kind::Int { min: 1 << 20, max: 1 << 40 },
        default: Preset::Int(256 << 20),
        doc: "Bytes of all messages kept; over it the oldest of all go.",
        hot: false,
    },
    Key {
        path: "null.delay_us",
        kind: Kind::Int { min: 0, max: 60_000_000 },
        default: Preset::Int(0),
        doc: "Microseconds a dry-run publish takes.",
        hot: false,
    },
    Key {
        path: "null.error_ppm",
        kind: Kind::Int { min: 0, max: 1_000_000 },
        default: Preset::Int(0),
        doc: "Dry-run publishes that fail, per million.",
        hot: false,
    },
    Key {
        path: "drain.notice_s",
        kind: Kind::Int { min: 0, max: 3_600 },
        default: Preset::Int(5),
        doc: "Seconds after SIGTERM in which everything is served as usual while load balancers see /readyz fail. Below \
              drain.timeout_s.",
        hot: true,
    },
    Key {
        path: "drain.timeout_s",
        kind: Kind::Int { min: 1, max: 3_600 },
        default: Preset::Int(20),
        doc: "Seconds after SIGTERM by which the process has ended. The service manager must wait longer.",
        hot: true,
    },
    Key {
        path: "log.level",
        kind: Kind::Text(Form {
            expected: "`error`, `warn`, `info`, `debug`, `trace`, or a filter such as `info,kateway::kafka=debug`",
            is_valid: |text| !text.is_empty() && tracing_subscriber::EnvFilter::builder().parse(text).is_ok(),
        }),
        default: Preset::Text("info"),
        doc: "`error`, `warn`, `info`, `debug`, `trace`, or a filter such as `info,kateway::kafka=debug`.",
        hot: true,
    },
    Key {
        path: "log.format",
        kind: Kind::Choice(&["text", "json"]),
        default: Preset::Text("text"),
        doc: "One line of text, or one JSON object, for each record.",
        hot: false,
    },
    Key {
        path: "log.file",
        kind: Kind::Text(ANY_TEXT),
        default: Preset::Text(""),
        doc: "File to append to. Empty: stderr.",
        hot: false,
    },
    Key {
        path: "handoff.dir",
        kind: Kind::NotBuilt,
        default: Preset::Text(""),
        doc: "Directory of the hand-off log.",
        hot: false,
    },
    Key {
        path: "tenancy.mode",
        kind: Kind::NotBuilt,
        default: Preset::Text("open"),
        doc: "`open`: any valid `Appid` is accepted, and no secret is checked. For development and trusted networks.",
        hot: false,
    },
    Key {
        path: "zookeeper.servers",
        kind: Kind::NotBuilt,
        default: Preset::Text(""),
        doc: "ZooKeeper servers, `HOST:PORT,..`.",
        hot: false,
    },
    Key {
        path: "test.answer_before_report",
        kind: Kind::Bool,
        default: Preset::Bool(false),
        doc: "Answer 201 before Kafka has reported. Loses messages.",
        hot: false,
    },
    Key {
        path: "test.break_clients_ms",
        kind: Kind::Int { min: 0, max: 3_600_000 },
        default: Preset::Int(0),
        doc: "Milliseconds after which every Kafka client fails for good and has to be replaced; 0: never.",
        hot: false,
    },
    Key {
        path: "test.deaf_after_messages",
        kind: Kind::Int { min: 0, max: 1_000_000 },
        default: Preset::Int(0),
        doc: "Messages after which the first consumer of each group gives no more; 0: never.",
        hot: false,
    },
    Key {
        path: "test.panic_topic",
        kind: Kind::Text(Form { expected: "a Kafka topic", is_valid: |_| true }),
        default: Preset::Text(""),
        doc: "A request that looks this topic up (Kafka's name) panics; empty: none.",
        hot: false,
    },
];

/// The key at `path`.
pub fn find(path: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.path == path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_default_is_valid_by_its_own_rule() {
        for key in KEYS {
            let value = key.default.to_value();
            assert_eq!(key.accept(value.clone()).ok(), Some(value), "{}", key.path);
        }
    }

    #[test]
    fn paths_are_unique_and_sections_stand_together_in_order() {
        let mut sections: Vec<&str> = KEYS.iter().map(Key::section).collect();
        sections.dedup();
        let named: Vec<&str> = SECTIONS.iter().map(|(name, _)| *name).collect();
        assert_eq!(sections, named);
        for (n, key) in KEYS.iter().enumerate() {
            assert!(KEYS[..n].iter().all(|other| other.path != key.path), "{} stands twice", key.path);
            assert!(!key.name().is_empty() && !key.name().contains('.'), "{}", key.path);
        }
    }

    #[test]
    fn documentation_is_in_sentences() {
        for (what, doc) in KEYS.iter().map(|key| (key.path, key.doc)).chain(SECTIONS.iter().copied()) {
            assert!(doc.ends_with('.'), "{what}: {doc}");
        }
    }

    #[test]
    fn short_flags_name_keys() {
        for (flag, path) in SHORT_FLAGS {
            assert!(find(path).is_some(), "--{flag}");
        }
    }
}
