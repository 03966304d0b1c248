//! Keys of operation: `drain`, `log`, `handoff`, `tenancy`, `zookeeper`, `test`. See [`super`] for what each says.

use crate::config::{
    forms::{is_host_port, is_id},
    keys::{Form, Key, Kind, Preset},
};

const ANY_TEXT: Form = Form { expected: "text", is_valid: |_| true };

pub const KEYS: &[Key] = &[
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
        kind: Kind::List(Form { expected: "`HOST:PORT` of a ZooKeeper server", is_valid: |text| is_host_port(text) }),
        default: Preset::List(&[]),
        doc: "ZooKeeper servers in which the gateway enters itself (`/kateway/<zone>/ids/<gateway.id>`), so that `kateway haproxy` finds it. \
              Requests are served whether they answer or not. Empty: none.",
        hot: false,
    },
    Key {
        path: "zookeeper.zone",
        kind: Kind::Text(Form {
            expected: "1 to 64 letters, digits, `.`, `_`, `-`",
            is_valid: |text| !text.is_empty() && is_id(text),
        }),
        default: Preset::Text("default"),
        doc: "The gateways behind one balancer are of one zone.",
        hot: false,
    },
    Key {
        path: "zookeeper.session_timeout_ms",
        kind: Kind::Int { min: 1_000, max: 600_000 },
        default: Preset::Int(6_000),
        doc: "Milliseconds after which ZooKeeper takes a gateway for gone that was killed. The servers allow 2 to 20 of their ticks.",
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
