//! Keeps the acceptor up to date with its files: looks whether they changed, and makes a new one of them.
//!
//! Control thread, in the offload pool: reading files blocks. Invariant: an acceptor is replaced by a complete one only, so files that are
//! being written, or do not belong together, change nothing.

use std::{os::unix::fs::MetadataExt, path::Path, sync::Arc};

use futures_rustls::rustls::{
    ServerConfig,
    crypto::{CryptoProvider, ring},
    server::ProducesTickets,
    version::{TLS12, TLS13},
};

use super::{ALPN_H1, ALPN_H2, Acceptor, certificates::Certificates, sessions::Sessions};
use crate::config::TlsConfig;

/// What tells one content of a file from another without reading it; `None`: it cannot be looked at.
type Stamp = Option<(u64, u64, u64, (i64, i64))>;

/// See the module text. Sessions and tickets outlive a renewal.
#[derive(Clone, Debug)]
pub struct Keeper {
    provider: Arc<CryptoProvider>,
    sessions: Arc<Sessions>,
    tickets: Arc<dyn ProducesTickets>,
    /// What the last attempt was made of.
    config: TlsConfig,
    stamps: Vec<Stamp>,
}

impl Keeper {
    /// Reads the files for the first time. Blocks.
    pub fn load(config: TlsConfig) -> Result<(Self, Acceptor), String> {
        // Its keys are replaced each six hours, behind a lock that is held for a look only.
        let tickets = ring::Ticketer::new().map_err(|error| format!("no keys for session tickets: {error}"))?;
        let provider = Arc::new(ring::default_provider());
        let mut this =
            Self { provider, sessions: Arc::default(), tickets, config: TlsConfig::default(), stamps: Vec::new() };
        let acceptor = this.take(config)?;
        Ok((this, acceptor))
    }

    /// A new acceptor when the files or the configuration changed since the last look, or why there is none. Blocks.
    pub fn look(mut self, config: TlsConfig) -> (Option<Result<Acceptor, String>>, Self) {
        let is_changed = config != self.config || stamps(&config) != self.stamps;
        (is_changed.then(|| self.take(config)), self)
    }

    fn take(&mut self, config: TlsConfig) -> Result<Acceptor, String> {
        // Before they are read: what changes meanwhile is seen by the next look.
        self.stamps = stamps(&config);
        self.config = config;
        let config = &self.config;
        let certificates = Certificates::load(&config.certificates, &self.provider)?;
        let versions: &[_] = if config.is_13_only { &[&TLS13] } else { &[&TLS12, &TLS13] };
        let mut server = ServerConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(versions)
            .map_err(|error| error.to_string())?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(certificates));
        server.alpn_protocols = vec![ALPN_H2.to_vec(), ALPN_H1.to_vec()];
        server.session_storage = Arc::clone(&self.sessions) as _;
        server.ticketer = Arc::clone(&self.tickets);
        // Early data can be replayed, and a publish must not be.
        server.max_early_data_size = 0;
        Ok(Acceptor(Arc::new(server)))
    }
}

fn stamps(config: &TlsConfig) -> Vec<Stamp> {
    config.certificates.iter().flat_map(|files| [stamp(&files.chain), stamp(&files.key)]).collect()
}

fn stamp(path: &Path) -> Stamp {
    // Follows links: certificates are often renewed by turning one.
    let found = std::fs::metadata(path).ok()?;
    Some((found.dev(), found.ino(), found.len(), (found.ctime(), found.ctime_nsec())))
}
