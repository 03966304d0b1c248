//! Certificates made for one run, and the client's side of TLS.
//!
//! An [`Authority`] and what it issues are made by the `openssl` command, in the run's folder, and end with it: nothing of them is in
//! the repository. A client believes that authority alone, so a wrong certificate is a failed handshake.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned, SupportedProtocolVersion};

use crate::folder;

/// A certificate and its key, PEM files.
#[derive(Debug, Clone)]
pub struct Pair {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl Pair {
    /// As `tls.certificates` takes it.
    pub fn setting(&self) -> String {
        format!("{}:{}", self.certificate.display(), self.key.display())
    }

    /// Puts another pair in its place, as a renewal does.
    pub fn replace_with(&self, other: &Self) {
        // The certificate last: a gateway that looks in between finds a key that does not belong to it, and waits.
        std::fs::copy(&other.key, &self.key).expect("the run's folder can be written");
        std::fs::copy(&other.certificate, &self.certificate).expect("the run's folder can be written");
    }
}

/// Signs certificates.
#[derive(Debug)]
pub struct Authority {
    pair: Pair,
}

impl Authority {
    pub fn new() -> Self {
        let pair = fresh("authority");
        let subject = ["-subj", "/CN=kateway test authority", "-addext", "keyUsage=critical,keyCertSign,cRLSign"];
        request(&pair, &["ec", "-pkeyopt", "ec_paramgen_curve:P-256"], &subject);
        Self { pair }
    }

    /// Its own certificate.
    pub fn certificate(&self) -> &Path {
        &self.pair.certificate
    }

    /// A certificate for these names (`DNS:a.test,IP:127.0.0.1`).
    pub fn issue(&self, names: &str) -> Pair {
        self.issue_with(names, &["ec", "-pkeyopt", "ec_paramgen_curve:P-256"])
    }

    pub fn issue_rsa(&self, names: &str) -> Pair {
        self.issue_with(names, &["rsa:2048"])
    }

    fn issue_with(&self, names: &str, key: &[&str]) -> Pair {
        let pair = fresh("leaf");
        let (names, signer) = (format!("subjectAltName={names}"), &self.pair);
        let (certificate, signer_key) = (text(&signer.certificate), text(&signer.key));
        let of = [
            "-subj",
            "/CN=kateway test",
            "-addext",
            &names,
            "-addext",
            "basicConstraints=critical,CA:FALSE",
            "-CA",
            &certificate,
            "-CAkey",
            &signer_key,
        ];
        request(&pair, key, &of);
        pair
    }

    /// A client that believes this authority, with one of these protocols (ALPN) if any.
    pub fn client(&self, versions: &[&'static SupportedProtocolVersion], alpn: &[&[u8]]) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        let own = CertificateDer::from_pem_file(&self.pair.certificate).expect("a certificate");
        roots.add(own).expect("an authority");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_protocol_versions(versions);
        let mut config = builder.expect("versions").with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
        Arc::new(config)
    }
}

impl Default for Authority {
    fn default() -> Self {
        Self::new()
    }
}

fn fresh(stem: &str) -> Pair {
    let certificate = folder::fresh(stem, ".pem");
    Pair { key: certificate.with_extension("key"), certificate }
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

fn request(pair: &Pair, key: &[&str], of: &[&str]) {
    let (certificate, key_file) = (text(&pair.certificate), text(&pair.key));
    let mut command = Command::new("openssl");
    command.args(["req", "-x509", "-newkey"]).args(key).args(["-noenc", "-days", "30"]);
    command.args(["-keyout", &key_file, "-out", &certificate]).args(of);
    let output = command.output().expect("the tests need openssl (package openssl)");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// What a connection of a test goes over.
#[derive(Debug)]
pub enum Wire {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Wire {
    /// Shakes hands on a connected socket.
    pub fn over(stream: TcpStream, config: &Arc<ClientConfig>, host: &str) -> io::Result<Self> {
        let host = ServerName::try_from(host.to_owned()).expect("a name");
        let session = ClientConnection::new(Arc::clone(config), host).map_err(io::Error::other)?;
        let mut stream = StreamOwned::new(session, stream);
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock)?;
        }
        Ok(Self::Tls(Box::new(stream)))
    }

    pub fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(stream) => stream,
            Self::Tls(stream) => &stream.sock,
        }
    }

    /// The bytes that go out for these, once all before them have gone.
    pub fn sealed(&mut self, bytes: &[u8]) -> Vec<u8> {
        let Self::Tls(stream) = self else { return bytes.to_vec() };
        let mut out = Vec::new();
        stream.conn.writer().write_all(bytes).expect("the session takes it");
        while stream.conn.wants_write() {
            stream.conn.write_tls(&mut out).expect("a Vec takes it");
        }
        out
    }

    pub fn session(&self) -> &ClientConnection {
        match self {
            Self::Plain(_) => panic!("the connection is not over TLS"),
            Self::Tls(stream) => &stream.conn,
        }
    }
}

impl Read for Wire {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.read(into),
            Self::Tls(stream) => stream.read(into),
        }
    }
}

impl Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.write(bytes),
            Self::Tls(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(stream) => stream.flush(),
            Self::Tls(stream) => stream.flush(),
        }
    }
}
