//! Keys of this process: `gateway`, `store`, `shard`. See [`super`] for what each says.

use crate::config::{
    cpus,
    forms::{is_host_port, is_id, is_peer_secret},
    keys::{Form, Key, Kind, Preset},
};

pub const KEYS: &[Key] = &[
    Key {
        path: "gateway.id",
        kind: Kind::Text(Form { expected: "up to 64 letters, digits, `.`, `_`, `-`", is_valid: |text| is_id(text) }),
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
        path: "gateway.takeover_socket",
        kind: Kind::Text(Form {
            expected: "the path of a Unix socket of up to 90 bytes, or empty text for none",
            is_valid: |text| text.len() <= 90 && !text.contains('\0'),
        }),
        default: Preset::Text(""),
        doc: "Path of the Unix socket at which `kateway takeover` finds this gateway, to take its listeners over without losing a \
              connection. Only the gateway's own user may. Empty: none.",
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
];
