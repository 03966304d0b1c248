//! The configuration, in two steps: what was written ([`model`], by the [`table`] of keys) and what it means ([`resolve`]).
//!
//! ```text
//!   file, KATEWAY_SECTION__KEY, command line  ->  model::Written  ->  check  ->  resolve::Config  ->  every core, as an Arc
//!                                   table::KEYS /  |
//!                                                 `->  render: kateway check, config/kateway.toml
//! ```
//!
//! Invariants: nothing is bound or started before all of it is valid; all errors are told at once, each with its place; a key
//! that is known is obeyed or refused, never ignored. It sees `limits` and nothing else of the gateway.

pub mod check;
pub mod cidr;
pub mod cpus;
pub mod error;
mod forms;
pub mod keys;
pub mod model;
pub mod render;
pub mod resolve;
pub mod security;
pub mod table;

#[cfg(test)]
mod tests;

pub use cidr::Cidr;
pub use error::ConfigError;
pub use forms::{is_host_port, is_id};
pub use model::{Sources, key_value};
pub use resolve::{
    Config, DrainConfig, GatewayConfig, Host, HttpConfig, KafkaConfig, ListenerConfig, LogConfig, MemoryConfig,
    NullConfig, PublishConfig, Roles, ShardConfig, StoreKind, SubscribeConfig, TestConfig, TopicsConfig,
    ZooKeeperConfig,
};
pub use security::{BalancersConfig, CertificateFiles, KafkaSecurityConfig, TlsConfig};

use model::Written;

/// A configuration free of errors, as written: what `kateway check` shows and a reload compares.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settings {
    written: Written,
}

/// One key whose value a reload found changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Change {
    pub path: &'static str,
    /// Takes effect now; else with the next start.
    pub hot: bool,
}

/// Reads, checks and resolves for this host, in one go.
pub fn load(sources: &Sources) -> Result<Config, Vec<ConfigError>> {
    Settings::read(sources)?.resolve(&Host::this())
}

// === impl Settings ===

impl Settings {
    /// Reads and checks. Asks nothing of the host, so that a configuration can be checked elsewhere than where it runs.
    pub fn read(sources: &Sources) -> Result<Self, Vec<ConfigError>> {
        let (written, mut errors) = model::read(sources);
        // A file that is not TOML said nothing about its keys: relations to what it may have set would be guesses.
        if errors.iter().all(|error| !error.path.is_empty()) {
            errors.extend(check::relations(&written, &errors));
        }
        if errors.is_empty() { Ok(Self { written }) } else { Err(errors) }
    }

    pub fn resolve(&self, host: &Host) -> Result<Config, Vec<ConfigError>> {
        Config::resolve(&self.written, host)
    }

    /// What of it names files.
    pub fn security(&self) -> (TlsConfig, KafkaSecurityConfig) {
        (TlsConfig::resolve(&self.written), KafkaSecurityConfig::resolve(&self.written))
    }

    /// As TOML, with the source of everything that is not a default.
    pub fn to_toml(&self) -> String {
        render::effective(&self.written)
    }

    /// What differs from here to `newer`.
    pub fn changes(&self, newer: &Self) -> Vec<Change> {
        let both = self.written.iter().zip(newer.written.iter());
        both.filter(|((_, old), (_, new))| old.value != new.value)
            .map(|((key, _), _)| Change { path: key.path, hot: key.hot })
            .collect()
    }

    /// `newer` where it is hot, this where it is not: what a running gateway can obey.
    pub fn reloaded(&self, newer: &Self) -> Self {
        let mut written = self.written.clone();
        written.take_hot(&newer.written);
        Self { written }
    }
}
