//! Where a request came from, when it came through load balancers that are believed (`http.forwarded_from`).
//!
//! Each of them appends the address it was reached from to `X-Forwarded-For`, so the list is read from its end: as long as an address
//! is one of theirs, what it says about the one before is believed, and the first that is not is the client. What a client wrote
//! into the field itself stands left of that, and counts for nothing.

use std::net::{IpAddr, SocketAddr};

use crate::{
    config::{BalancersConfig, Cidr},
    proto::Head,
};

/// The client of a request that came over a connection from `peer`.
pub fn client(balancers: &BalancersConfig, head: &Head<'_>, peer: Option<IpAddr>) -> Option<IpAddr> {
    let trusted = &balancers.forwarded_from;
    if trusted.is_empty() {
        return peer;
    }
    let fields: Vec<&[u8]> = head.fields_named("x-forwarded-for").collect();
    Some(behind(trusted, &fields, peer?))
}

fn behind(trusted: &[Cidr], fields: &[&[u8]], peer: IpAddr) -> IpAddr {
    let mut client = peer;
    for text in fields.iter().rev().flat_map(|field| field.rsplit(|byte| *byte == b',')) {
        if !trusted.iter().any(|block| block.contains(client)) {
            break;
        }
        // What is no address (`unknown`, a made-up name) says nothing, nor does what stands before it.
        let Some(before) = parse(text) else { break };
        client = before;
    }
    client
}

/// An address, alone or with its port.
fn parse(text: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(text).ok()?.trim_matches([' ', '\t']);
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let address = bare.parse::<IpAddr>().ok().or_else(|| text.parse::<SocketAddr>().ok().map(|address| address.ip()));
    address.map(|address| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rightmost_address_that_is_not_believed_is_the_client() {
        let trusted = ["10.0.0.0/8", "2001:db8::/32"].map(|text| Cidr::parse(text).expect("a block"));
        let client = |peer: &str, fields: &[&str]| {
            let fields: Vec<&[u8]> = fields.iter().map(|field| field.as_bytes()).collect();
            behind(&trusted, &fields, peer.parse().expect("an address")).to_string()
        };
        assert_eq!(client("10.0.0.1", &["192.0.2.1"]), "192.0.2.1");
        assert_eq!(client("192.0.2.9", &["192.0.2.1"]), "192.0.2.9", "whoever is not believed is the client");
        assert_eq!(client("10.0.0.1", &["1.1.1.1, 192.0.2.1,10.0.0.2"]), "192.0.2.1", "made up by the client: 1.1.1.1");
        assert_eq!(client("10.0.0.1", &["1.1.1.1", "192.0.2.1", "10.0.0.2 , 10.0.0.3"]), "192.0.2.1");
        assert_eq!(client("10.0.0.1", &["10.0.0.9, 10.0.0.2"]), "10.0.0.9", "all believed: the farthest");
        assert_eq!(client("10.0.0.1", &["192.0.2.1, unknown"]), "10.0.0.1");
        assert_eq!(client("10.0.0.1", &["192.0.2.1:4711"]), "192.0.2.1");
        assert_eq!(client("2001:db8::1", &["[2001:db9::7]:443"]), "2001:db9::7");
        assert_eq!(client("2001:db8::1", &["[2001:db9::7]"]), "2001:db9::7");
        assert_eq!(client("::ffff:10.0.0.1", &["::ffff:192.0.2.1"]), "192.0.2.1");
        assert_eq!(client("10.0.0.1", &[""]), "10.0.0.1");
        assert_eq!(client("10.0.0.1", &[]), "10.0.0.1");
    }
}
