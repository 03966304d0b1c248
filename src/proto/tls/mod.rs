//! TLS on a listener, by rustls: what a handshake needs, and why one failed.
//!
//! ```text
//!   PEM files --Keeper (control thread, offload)--> Acceptor (an Arc, replaced whole on every core) --handshake--> Stream
//! ```
//!
//! Invariants: TLS 1.2 and 1.3 only, no early data (a replayed POST would publish twice), no renegotiation; a session of one core
//! resumes on every other; an acceptor is complete, so a pair of files that does not belong together never serves.
//! Immutable, shared: a renewed certificate makes a new acceptor, and connections keep what they were made with.

mod certificates;
mod keeper;
mod records;
mod sessions;

use std::{future::Future, io, rc::Rc, sync::Arc};

use futures_rustls::{
    TlsAcceptor,
    rustls::{Error, PeerIncompatible, ServerConfig},
};

pub use self::{keeper::Keeper, records::Records};
use super::watch::Watch;
use crate::readiness::Socket;

/// A connection over TLS.
pub type TlsStream = futures_rustls::server::TlsStream<Records>;

/// What ALPN calls HTTP/2 and HTTP/1.1, in our order of preference.
const ALPN_H2: &[u8] = b"h2";
const ALPN_H1: &[u8] = b"http/1.1";
/// Bytes that may wait to be sent: one record. So a write that went through means that the client took what was before it, as the
/// deadline of writing wants it.
const UNSENT_BYTES_MAX: usize = 16 * 1024;

/// Does handshakes, with the certificates that were there when it was made.
#[derive(Clone, Debug)]
pub struct Acceptor(Arc<ServerConfig>);

impl Acceptor {
    /// The handshake. It has no deadline of its own. `watch` is told of records that are there in part.
    pub fn accept(&self, socket: Socket, watch: Rc<Watch>) -> impl Future<Output = io::Result<TlsStream>> + use<> {
        let acceptor = TlsAcceptor::from(Arc::clone(&self.0));
        acceptor.accept_with(Records::new(socket, watch), |session| session.set_buffer_limit(Some(UNSENT_BYTES_MAX)))
    }
}

/// What ALPN decided: `Some(true)` HTTP/2, `Some(false)` HTTP/1.1, `None`: the client did not say, and its first bytes tell.
pub fn is_h2(stream: &TlsStream) -> Option<bool> {
    stream.get_ref().1.alpn_protocol().map(|protocol| protocol == ALPN_H2)
}

/// Whether the handshake went on from an earlier session.
pub fn is_resumed(stream: &TlsStream) -> bool {
    stream.get_ref().1.handshake_kind() == Some(futures_rustls::rustls::HandshakeKind::Resumed)
}

/// Why a handshake failed; the discriminant is the row in the metrics.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Failure {
    /// It was not over in time.
    Timeout,
    /// The client left.
    Cut,
    /// The first bytes are no TLS.
    NotTls,
    /// No version in common.
    Version,
    /// No cipher suite, group or signature in common.
    Parameters,
    /// ALPN without a protocol of ours.
    Protocol,
    /// The client refused us, most often our certificate.
    Refused,
    Other,
}

impl Failure {
    /// As label values, in the order of the discriminants.
    pub const NAMES: [&'static str; 8] =
        ["timeout", "cut", "not_tls", "version", "parameters", "protocol", "refused", "other"];

    pub fn of(error: &io::Error) -> Self {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
            None => Self::Cut,
            Some(Error::InvalidMessage(_)) => Self::NotTls,
            Some(Error::NoApplicationProtocol) => Self::Protocol,
            Some(Error::AlertReceived(_)) => Self::Refused,
            Some(Error::PeerIncompatible(incompatible)) => match incompatible {
                // A client older than TLS 1.2 has no such extension, and that is looked at first.
                PeerIncompatible::SignatureAlgorithmsExtensionRequired
                | PeerIncompatible::SupportedVersionsExtensionRequired
                | PeerIncompatible::Tls12NotOffered
                | PeerIncompatible::Tls12NotOfferedOrEnabled
                | PeerIncompatible::Tls13RequiredForQuic
                | PeerIncompatible::ServerDoesNotSupportTls12Or13 => Self::Version,
                _ => Self::Parameters,
            },
            Some(_) => Self::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_have_their_names() {
        let tls = |error| Failure::of(&io::Error::new(io::ErrorKind::InvalidData, error));
        assert_eq!(tls(Error::PeerIncompatible(PeerIncompatible::Tls12NotOffered)), Failure::Version);
        assert_eq!(tls(Error::PeerIncompatible(PeerIncompatible::NoCipherSuitesInCommon)), Failure::Parameters);
        assert_eq!(tls(Error::NoApplicationProtocol), Failure::Protocol);
        assert_eq!(Failure::of(&io::ErrorKind::ConnectionReset.into()), Failure::Cut);
        assert_eq!(Failure::NAMES[Failure::Other as usize], "other");
        assert_eq!(Failure::NAMES[Failure::NotTls as usize], "not_tls");
    }
}
