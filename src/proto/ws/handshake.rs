//! The opening handshake (RFC 6455 section 4.2), read from a request head and answered with 101.
//!
//! Strict: what a client must send it must send exactly once and in its form. Whether the topic is there, and who may come, is not known
//! here.

use base64::{Engine, engine::general_purpose::STANDARD};
use smallvec::SmallVec;
use tungstenite::handshake::derive_accept_key;

use crate::proto::{
    Reply,
    head::{Framing, Head, Version},
};

/// Why a request is no handshake.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// It does not ask for one.
    NotAsked,
    /// It came by HTTP/2.
    NotHttp11,
    /// It asks for another version of WebSocket.
    OtherVersion,
    Malformed(&'static str),
}

/// A good handshake.
#[derive(Debug)]
pub struct Offer<'a> {
    pub(super) accept: String,
    /// Subprotocols, in the order the client likes them.
    pub protocols: SmallVec<[&'a [u8]; 4]>,
}

impl<'a> Offer<'a> {
    pub fn read(head: &Head<'a>) -> Result<Self, Refusal> {
        if head.version == Version::Http2 {
            return Err(Refusal::NotHttp11);
        }
        // RFC 9110 section 7.8: Upgrade of HTTP/1.0 is as if it were not there.
        let asks = head.version == Version::Http11
            && lists(head, "connection", b"upgrade")
            && lists(head, "upgrade", b"websocket");
        if !asks {
            return Err(Refusal::NotAsked);
        }
        let once = |name, missing, doubled| {
            let mut fields = head.fields_named(name);
            match (fields.next(), fields.next()) {
                (Some(value), None) => Ok(value),
                (None, _) => Err(Refusal::Malformed(missing)),
                (Some(_), Some(_)) => Err(Refusal::Malformed(doubled)),
            }
        };
        let version =
            once("sec-websocket-version", "Sec-WebSocket-Version is missing", "Sec-WebSocket-Version is given twice")?;
        if version != b"13" {
            return Err(Refusal::OtherVersion);
        }
        let key = once("sec-websocket-key", "Sec-WebSocket-Key is missing", "Sec-WebSocket-Key is given twice")?;
        if STANDARD.decode(key).map_or(0, |key| key.len()) != 16 {
            return Err(Refusal::Malformed("Sec-WebSocket-Key is not 16 bytes in base64"));
        }
        if head.framing != Framing::Length(0) {
            return Err(Refusal::Malformed("a WebSocket handshake has no body"));
        }
        Ok(Self { accept: derive_accept_key(key), protocols: protocols(head)? })
    }

    /// The answer that makes the connection a WebSocket.
    pub fn reply(&self, request_id: &[u8], protocol: Option<&str>) -> Reply {
        let mut reply = Reply::new(101)
            .field("Connection", b"Upgrade")
            .field("Upgrade", b"websocket")
            .field("Sec-WebSocket-Accept", self.accept.as_bytes())
            .field("X-Request-Id", request_id);
        if let Some(protocol) = protocol {
            reply.add_field("Sec-WebSocket-Protocol", protocol.as_bytes());
        }
        reply
    }
}

/// Whether a field that is a list of names has this one, whatever its case.
fn lists(head: &Head<'_>, field: &str, name: &[u8]) -> bool {
    let mut items = head.fields_named(field).flat_map(|value| value.split(|b| *b == b','));
    items.any(|item| item.trim_ascii().eq_ignore_ascii_case(name))
}

fn protocols<'a>(head: &Head<'a>) -> Result<SmallVec<[&'a [u8]; 4]>, Refusal> {
    let mut protocols = SmallVec::<[&[u8]; 4]>::new();
    for item in head.fields_named("sec-websocket-protocol").flat_map(|value| value.split(|b| *b == b',')) {
        let name = item.trim_ascii();
        if name.is_empty() || !name.iter().all(|b| is_token_byte(*b)) {
            return Err(Refusal::Malformed("Sec-WebSocket-Protocol is no list of names"));
        }
        if protocols.contains(&name) {
            return Err(Refusal::Malformed("a subprotocol is offered twice"));
        }
        protocols.push(name);
    }
    Ok(protocols)
}

fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Whether a page of this origin (RFC 6454) was served by the host it now speaks to. A port that is the scheme's own may be left out on
/// either side.
pub fn is_same_host(origin: &[u8], host: &[u8]) -> bool {
    let bare = |authority: &[u8], port: &[u8]| authority.strip_suffix(port).unwrap_or(authority).to_ascii_lowercase();
    let same = |scheme: &[u8], port: &[u8]| {
        origin.strip_prefix(scheme).is_some_and(|authority| bare(authority, port) == bare(host, port))
    };
    same(b"http://", b":80") || same(b"https://", b":443")
}
