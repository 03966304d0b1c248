//! Keys of the stores: `kafka`, `topics`, `memory`, `null`. See [`super`] for what each says.

use crate::config::{
    forms::{is_free_option, is_host_port, is_topic_compression},
    keys::{Form, Key, Kind, Preset},
};

const ANY_TEXT: Form = Form { expected: "text", is_valid: |_| true };

pub const KEYS: &[Key] = &[
    Key {
        path: "kafka.brokers",
        kind: Kind::List(Form { expected: "`HOST:PORT` of a broker", is_valid: |text| is_host_port(text) }),
        default: Preset::List(&[]),
        doc: "Brokers to learn the cluster from; two or three are enough. Flag --brokers.",
        hot: false,
    },
    Key {
        path: "kafka.security_protocol",
        kind: Kind::Choice(&["plaintext", "ssl", "sasl_plaintext", "sasl_ssl"]),
        default: Preset::Text("plaintext"),
        doc: "How the brokers are spoken to: in cleartext or over TLS (`ssl`), with or without a user (`sasl`). Producers, consumers, admin calls and probes alike.",
        hot: false,
    },
    Key {
        path: "kafka.sasl_mechanism",
        kind: Kind::Choice(&["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"]),
        default: Preset::Text("PLAIN"),
        doc: "How the user is proven, with a sasl protocol. PLAIN sends the password as it is: over TLS only.",
        hot: false,
    },
    Key {
        path: "kafka.sasl_username",
        kind: Kind::Text(ANY_TEXT),
        default: Preset::Text(""),
        doc: "The user, with a sasl protocol.",
        hot: false,
    },
    Key {
        path: "kafka.sasl_password",
        kind: Kind::Secret(ANY_TEXT),
        default: Preset::Text(""),
        doc: "The user's password, best given as the variable KATEWAY_KAFKA__SASL_PASSWORD. It is never shown.",
        hot: false,
    },
    Key {
        path: "kafka.tls_ca",
        kind: Kind::Text(ANY_TEXT),
        default: Preset::Text(""),
        doc: "PEM file of the authorities that sign the brokers' certificates, with an ssl protocol. Empty: those of the system.",
        hot: false,
    },
    Key {
        path: "kafka.tls_cert",
        kind: Kind::Text(ANY_TEXT),
        default: Preset::Text(""),
        doc: "PEM file of the gateway's own certificate, for brokers that ask for one. Empty: none.",
        hot: false,
    },
    Key {
        path: "kafka.tls_key",
        kind: Kind::Text(ANY_TEXT),
        default: Preset::Text(""),
        doc: "PEM file of the key to kafka.tls_cert.",
        hot: false,
    },
    Key {
        path: "kafka.tls_key_password",
        kind: Kind::Secret(ANY_TEXT),
        default: Preset::Text(""),
        doc: "Password of that file, if it has one. It is never shown.",
        hot: false,
    },
    Key {
        path: "kafka.tls_verify_host",
        kind: Kind::Bool,
        default: Preset::Bool(true),
        doc: "Whether a broker's certificate has to be for the name it is reached by.",
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
              promises rest on (acks, idempotence, group, offsets, partitioner, linger, timeouts of delivery) are refused, and so are those of \
              security that are secrets, or that switch the check of certificates off: kafka.sasl_*, kafka.tls_*.",
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
];
