//! Whom the gateway trusts and how it is known, resolved: TLS of the listeners, load balancers in front, Kafka's security.
//!
//! Immutable, shared, as all of [`super::resolve`], whose part this is.

use std::{fmt, path::PathBuf};

use super::{cidr::Cidr, model::Written};

/// Load balancers in front, and what is believed of them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BalancersConfig {
    /// `http.proxy_from`: a connection from there begins with a PROXY header.
    pub proxy_from: Vec<Cidr>,
    /// `http.forwarded_from`: what they say in `X-Forwarded-For` is believed.
    pub forwarded_from: Vec<Cidr>,
}

/// Certificates of the listeners that speak TLS (`tls.*`).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct TlsConfig {
    /// `tls.certificates`: the first is for clients that name no host, or none of ours.
    pub certificates: Vec<CertificateFiles>,
    /// `tls.min_version` is 1.3.
    pub is_13_only: bool,
}

/// A certificate with its chain, and its key; one file may hold both.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CertificateFiles {
    pub chain: PathBuf,
    pub key: PathBuf,
}

/// How the brokers are spoken to, and as whom.
#[derive(Clone, PartialEq, Eq)]
pub struct KafkaSecurityConfig {
    /// `kafka.security_protocol`, in librdkafka's words: `plaintext|ssl|sasl_plaintext|sasl_ssl`.
    pub protocol: String,
    /// `kafka.sasl_mechanism`: `PLAIN|SCRAM-SHA-256|SCRAM-SHA-512`.
    pub sasl_mechanism: String,
    pub sasl_username: String,
    /// `kafka.sasl_password`. Never shown.
    pub sasl_password: String,
    /// `kafka.tls_ca`: PEM file of the authorities to believe; none: those of the system.
    pub tls_ca: Option<String>,
    /// `kafka.tls_cert`, `kafka.tls_key`: our own, for brokers that ask for one.
    pub tls_cert: Option<String>,
    pub tls_key: Option<String>,
    /// `kafka.tls_key_password`. Never shown.
    pub tls_key_password: Option<String>,
    /// `kafka.tls_verify_host`: the broker's certificate has to be for the name it was reached by.
    pub tls_verify_host: bool,
}

// === impl of the parts ===

impl BalancersConfig {
    pub(super) fn resolve(written: &Written) -> Self {
        let blocks = |path| {
            let blocks = written.list(path).iter().map(|text| Cidr::parse(text));
            blocks.map(|block| block.expect("the table lets only blocks of addresses pass")).collect()
        };
        Self { proxy_from: blocks("http.proxy_from"), forwarded_from: blocks("http.forwarded_from") }
    }
}

impl TlsConfig {
    pub(super) fn resolve(written: &Written) -> Self {
        let files = |text: &String| {
            let (chain, key) = text.split_once(':').unwrap_or((text, text));
            CertificateFiles { chain: chain.into(), key: key.into() }
        };
        Self {
            certificates: written.list("tls.certificates").iter().map(files).collect(),
            is_13_only: written.text("tls.min_version") == "1.3",
        }
    }
}

impl KafkaSecurityConfig {
    pub(super) fn resolve(written: &Written) -> Self {
        let text = |path| written.text(path).to_owned();
        let given = |path| Some(text(path)).filter(|text| !text.is_empty());
        Self {
            protocol: text("kafka.security_protocol"),
            sasl_mechanism: text("kafka.sasl_mechanism"),
            sasl_username: text("kafka.sasl_username"),
            sasl_password: text("kafka.sasl_password"),
            tls_ca: given("kafka.tls_ca"),
            tls_cert: given("kafka.tls_cert"),
            tls_key: given("kafka.tls_key"),
            tls_key_password: given("kafka.tls_key_password"),
            tls_verify_host: written.bool("kafka.tls_verify_host"),
        }
    }

    pub fn uses_sasl(&self) -> bool {
        self.protocol.starts_with("sasl")
    }

    pub fn uses_tls(&self) -> bool {
        self.protocol.ends_with("ssl")
    }
}

impl fmt::Debug for KafkaSecurityConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { protocol, sasl_mechanism, sasl_username, .. } = self;
        f.debug_struct("KafkaSecurityConfig")
            .field("protocol", protocol)
            .field("sasl_mechanism", sasl_mechanism)
            .field("sasl_username", sasl_username)
            .finish_non_exhaustive()
    }
}
