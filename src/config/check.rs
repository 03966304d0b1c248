//! Relations between values, where each alone is fine.
//!
//! A relation is not looked at when one of its keys already is in error, so that one mistake gives one message. This file knows
//! the written values only: what depends on the host (which cpus there are) is `resolve`'s.

use std::net::SocketAddr;

use super::{
    error::{ConfigError, Problem},
    model::Written,
    table::find,
};

/// A relation: the key that is blamed, the keys it looks at besides, and what was expected if it does not hold.
struct Relation {
    path: &'static str,
    with: &'static [&'static str],
    broken: fn(&Written) -> Option<String>,
}

/// Kafka's `message.timeout.ms` is so much shorter than `pub.deadline_ms`, see `kafka/options.rs`.
const KAFKA_HEAD_START_MS: u64 = 1_000;

const RELATIONS: &[Relation] = &[
    Relation {
        path: "kafka.brokers",
        with: &["store.kind"],
        broken: |w| {
            let missing = w.text("store.kind") == "kafka" && w.list("kafka.brokers").is_empty();
            missing.then(|| {
                "at least one `HOST:PORT`, because store.kind is `kafka` (try --store memory without a cluster)"
                    .to_owned()
            })
        },
    },
    Relation {
        path: "drain.notice_s",
        with: &["drain.timeout_s"],
        broken: |w| below(w, "drain.notice_s", "drain.timeout_s"),
    },
    Relation {
        path: "http.target_bytes_max",
        with: &["http.head_bytes_max"],
        broken: |w| below(w, "http.target_bytes_max", "http.head_bytes_max"),
    },
    Relation {
        path: "shard.kicker_ms",
        with: &["shard.stall_ms"],
        broken: |w| below(w, "shard.kicker_ms", "shard.stall_ms"),
    },
    Relation {
        path: "sub.batch_bytes_max",
        with: &["pub.message_bytes_max"],
        broken: |w| at_least(w, "sub.batch_bytes_max", "pub.message_bytes_max"),
    },
    Relation {
        path: "kafka.queue_bytes_max",
        with: &["kafka.batch_bytes_max"],
        broken: |w| at_least(w, "kafka.queue_bytes_max", "kafka.batch_bytes_max"),
    },
    Relation {
        path: "kafka.linger_us",
        with: &["pub.deadline_ms"],
        broken: |w| {
            let limit_us = w.int("pub.deadline_ms").saturating_sub(KAFKA_HEAD_START_MS) * 1_000;
            (w.int("kafka.linger_us") >= limit_us).then(|| {
                format!("less than {limit_us}, one second under pub.deadline_ms: the message would expire in the queue")
            })
        },
    },
    Relation {
        path: "pub.addr",
        with: &["sub.addr", "pub.tls_addr", "sub.tls_addr"],
        broken: |w| {
            let none =
                ["pub.addr", "sub.addr", "pub.tls_addr", "sub.tls_addr"].iter().all(|path| w.text(path).is_empty());
            none.then(|| "an address here or for sub.addr: the gateway would serve nothing".to_owned())
        },
    },
    Relation { path: "pub.tls_addr", with: BESIDE_TLS, broken: |w| cannot_speak_tls(w, "pub.tls_addr") },
    Relation { path: "sub.tls_addr", with: BESIDE_TLS, broken: |w| cannot_speak_tls(w, "sub.tls_addr") },
    Relation { path: "man.tls_addr", with: BESIDE_TLS, broken: |w| cannot_speak_tls(w, "man.tls_addr") },
    Relation {
        path: "kafka.sasl_username",
        with: &["kafka.security_protocol"],
        broken: |w| {
            goes_with(w, "kafka.sasl_username", "sasl_plaintext` or `sasl_ssl", |p| p.starts_with("sasl"), true)
        },
    },
    Relation {
        path: "kafka.sasl_password",
        with: &["kafka.security_protocol"],
        broken: |w| {
            goes_with(w, "kafka.sasl_password", "sasl_plaintext` or `sasl_ssl", |p| p.starts_with("sasl"), true)
        },
    },
    Relation {
        path: "kafka.tls_ca",
        with: &["kafka.security_protocol"],
        broken: |w| goes_with(w, "kafka.tls_ca", "ssl` or `sasl_ssl", |p| p.ends_with("ssl"), false),
    },
    Relation {
        path: "kafka.tls_cert",
        with: &["kafka.security_protocol", "kafka.tls_key"],
        broken: |w| {
            let alone = w.text("kafka.tls_cert").is_empty() != w.text("kafka.tls_key").is_empty();
            goes_with(w, "kafka.tls_cert", "ssl` or `sasl_ssl", |p| p.ends_with("ssl"), false)
                .or_else(|| alone.then(|| "kafka.tls_cert and kafka.tls_key together, or neither".to_owned()))
        },
    },
    Relation { path: "gateway.advertise", with: &["zookeeper.servers", "pub.addr", "sub.addr"], broken: is_nowhere },
    Relation { path: "sub.addr", with: &["pub.addr"], broken: |w| overlaps(w, "sub.addr", "pub.addr") },
    Relation { path: "man.addr", with: &["pub.addr"], broken: |w| overlaps(w, "man.addr", "pub.addr") },
    Relation { path: "man.addr", with: &["sub.addr"], broken: |w| overlaps(w, "man.addr", "sub.addr") },
];

/// Keys of addresses, cleartext first.
const ADDRESSES: [&str; 6] = ["pub.addr", "sub.addr", "man.addr", "pub.tls_addr", "sub.tls_addr", "man.tls_addr"];
const BESIDE_TLS: &[&str] = &["tls.certificates", "pub.addr", "sub.addr", "man.addr", "pub.tls_addr", "sub.tls_addr"];

/// Every broken relation among keys that are not in `errors`.
pub fn relations(written: &Written, errors: &[ConfigError]) -> Vec<ConfigError> {
    let in_error = |path: &str| errors.iter().any(|error| error.path == path);
    let looked_at = RELATIONS.iter().filter(|r| !in_error(r.path) && !r.with.iter().any(|path| in_error(path)));
    looked_at.filter_map(|r| (r.broken)(written).map(|expected| error(written, r.path, expected))).collect()
}

/// An error about the value of `path`.
pub fn error(written: &Written, path: &str, expected: String) -> ConfigError {
    let setting = written.setting(path);
    let key = find(path).expect("relations are about keys of the table");
    ConfigError {
        path: path.to_owned(),
        value: Some(key.shown(&setting.value)),
        origin: setting.origin.clone(),
        problem: Problem::Expected(expected),
    }
}

fn below(w: &Written, path: &str, limit: &str) -> Option<String> {
    (w.int(path) >= w.int(limit)).then(|| format!("less than {limit}, which is {}", w.int(limit)))
}

fn at_least(w: &Written, path: &str, limit: &str) -> Option<String> {
    (w.int(path) < w.int(limit)).then(|| format!("at least {limit}, which is {}", w.int(limit)))
}

/// Presence in ZooKeeper says where the gateway is; every address of the host is nowhere.
fn is_nowhere(w: &Written) -> Option<String> {
    let of = |path: &str| w.text(path).parse::<SocketAddr>().ok();
    let said = if w.text("gateway.advertise").is_empty() { "sub.addr" } else { "gateway.advertise" };
    let is_named = said == "gateway.advertise" && of(said).is_none();
    let addr = of(said).or_else(|| of("pub.addr")).filter(|_| !is_named);
    let is_nowhere = !w.list("zookeeper.servers").is_empty() && addr.is_some_and(|addr| addr.ip().is_unspecified());
    is_nowhere
        .then(|| "`HOST:PORT` at which a balancer reaches it, because zookeeper.servers are to be told".to_owned())
}

/// Two different addresses that cannot both be listened on: the same port, and one of them means every address of the host.
fn overlaps(w: &Written, path: &str, other: &str) -> Option<String> {
    let a: SocketAddr = w.text(path).parse().ok()?;
    let b: SocketAddr = w.text(other).parse().ok()?;
    let overlap =
        a != b && a.port() == b.port() && a.port() != 0 && (a.ip().is_unspecified() || b.ip().is_unspecified());
    overlap.then(|| {
        format!("another port than {other}, which is `{b}` and overlaps, or exactly the same address to share it")
    })
}

/// An address for TLS has a certificate, and is no other listener's but one that speaks TLS.
fn cannot_speak_tls(w: &Written, path: &str) -> Option<String> {
    let address: SocketAddr = w.text(path).parse().ok()?;
    if w.list("tls.certificates").is_empty() {
        return Some("a certificate in tls.certificates, or no address here".to_owned());
    }
    // Each pair is looked at once.
    let before = ADDRESSES.iter().take_while(|other| **other != path);
    let mut clashes = before.map(|other| {
        let is_cleartext = !other.ends_with("tls_addr");
        let is_same = w.text(other).parse() == Ok(address) && address.port() != 0 && is_cleartext;
        let clash = is_same.then(|| format!("another address than {other}, which speaks cleartext"));
        clash.or_else(|| overlaps(w, path, other))
    });
    clashes.find(Option::is_some).flatten()
}

/// A text that goes with some security protocols: without them it would be passed over, and with them some are needed.
fn goes_with(w: &Written, path: &str, protocols: &str, is_one: fn(&str) -> bool, is_needed: bool) -> Option<String> {
    let (is_given, is_one) = (!w.text(path).is_empty(), is_one(w.text("kafka.security_protocol")));
    let protocol = w.text("kafka.security_protocol");
    match (is_given, is_one) {
        (true, false) => Some(format!("nothing, or kafka.security_protocol to be `{protocols}`")),
        (false, true) if is_needed => Some(format!("text, because kafka.security_protocol is `{protocol}`")),
        _ => None,
    }
}
