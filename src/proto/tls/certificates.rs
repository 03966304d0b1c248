//! Certificates with their keys, and which of them a client gets.
//!
//! The client names a host (SNI): it gets the first pair that is for that host and whose kind of key it can check; one that names
//! none, or one that no pair is for, gets the first pair. Immutable, shared.

use std::{path::Path, sync::Arc};

use futures_rustls::{
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
    rustls::{
        client::verify_server_name,
        crypto::CryptoProvider,
        server::{ClientHello, ParsedCertificate, ResolvesServerCert},
        sign::CertifiedKey,
    },
};

use crate::config::CertificateFiles;

/// All pairs, in the order configured; at least one.
#[derive(Debug)]
pub(super) struct Certificates {
    pairs: Vec<Arc<CertifiedKey>>,
}

impl Certificates {
    /// Reads them. Blocks. The error names the file.
    pub fn load(files: &[CertificateFiles], provider: &CryptoProvider) -> Result<Self, String> {
        let pairs = files.iter().map(|pair| load_pair(pair, provider).map(Arc::new)).collect::<Result<Vec<_>, _>>()?;
        if pairs.is_empty() { Err("no certificate".to_owned()) } else { Ok(Self { pairs }) }
    }

    fn of_host<'a>(&'a self, host: &str) -> impl Iterator<Item = &'a Arc<CertifiedKey>> {
        let host = ServerName::try_from(host.to_owned()).ok();
        self.pairs.iter().filter(move |pair| {
            let certificate = pair.end_entity_cert().ok().and_then(|der| ParsedCertificate::try_from(der).ok());
            certificate
                .zip(host.as_ref())
                .is_some_and(|(certificate, host)| verify_server_name(&certificate, host).is_ok())
        })
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let is_checkable = |pair: &&Arc<CertifiedKey>| pair.key.choose_scheme(hello.signature_schemes()).is_some();
        let named = hello.server_name().and_then(|host| self.of_host(host).find(is_checkable));
        named.or_else(|| self.pairs.iter().find(is_checkable)).or_else(|| self.pairs.first()).cloned()
    }
}

fn load_pair(files: &CertificateFiles, provider: &CryptoProvider) -> Result<CertifiedKey, String> {
    let told = |path: &Path, what: &dyn std::fmt::Display| format!("{}: {what}", path.display());
    let read = |path: &Path| std::fs::read(path).map_err(|error| told(path, &error));
    let chain = CertificateDer::pem_slice_iter(&read(&files.chain)?)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| told(&files.chain, &error))?;
    if chain.is_empty() {
        return Err(told(&files.chain, &"holds no certificate (PEM)"));
    }
    let key = PrivateKeyDer::from_pem_slice(&read(&files.key)?)
        .map_err(|error| told(&files.key, &format!("holds no private key (PEM, not encrypted): {error}")))?;
    CertifiedKey::from_der(chain, key, provider)
        .map_err(|error| told(&files.chain, &format!("does not go with the key in {}: {error}", files.key.display())))
}
