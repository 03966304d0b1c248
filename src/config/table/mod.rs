//! Every configuration key, once.
//!
//! From this table come the reading of the file, of the environment and of the command line, the commented sample
//! `config/kateway.toml` and the output of `kateway check`. So a key cannot be read but undocumented, or documented but unread.
//! Invariants, held by tests: a path is `section.key`; keys of one section stand together; every default is valid by its own
//! rule; every key changes the typed configuration.

mod operation;
mod process;
mod secure;
mod storage;
mod wire;

use super::keys::Key;

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
    ("tls", "Certificates of the listeners that speak TLS."),
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

/// The parts of the table, in the order of [`SECTIONS`].
const PARTS: [&[Key]; 5] = [process::KEYS, wire::KEYS, secure::KEYS, storage::KEYS, operation::KEYS];

/// The table.
pub static KEYS: &[Key] = &JOINED;

const JOINED: [Key; COUNT] = joined();
const COUNT: usize = PARTS[0].len() + PARTS[1].len() + PARTS[2].len() + PARTS[3].len() + PARTS[4].len();

const fn joined() -> [Key; COUNT] {
    let mut keys = [PARTS[0][0]; COUNT];
    let (mut at, mut part) = (0, 0);
    while part < PARTS.len() {
        let mut n = 0;
        while n < PARTS[part].len() {
            keys[at] = PARTS[part][n];
            (at, n) = (at + 1, n + 1);
        }
        part += 1;
    }
    keys
}

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
