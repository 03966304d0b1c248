//! Blocks of addresses, as `10.0.0.0/8`, `2001:db8::/32` or one address alone.
//!
//! An IPv4 address that came over an IPv6 socket (`::ffff:10.0.0.1`) is the IPv4 address here.

use std::net::IpAddr;

/// The addresses whose first `bits` bits are those of `first`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cidr {
    first: IpAddr,
    bits: u32,
}

impl Cidr {
    /// `None`: no block. Bits beyond the length must be 0: `10.0.0.1/8` is more likely a mistake than a block.
    pub fn parse(text: &str) -> Option<Self> {
        let (address, bits) = text.split_once('/').map_or((text, None), |(address, bits)| (address, Some(bits)));
        let first = address.parse::<IpAddr>().ok()?;
        let width = if first.is_ipv4() { 32 } else { 128 };
        let bits = match bits {
            Some(bits) if bits.bytes().all(|digit| digit.is_ascii_digit()) => bits.parse().ok()?,
            Some(_) => return None,
            None => width,
        };
        let block = Self { first, bits };
        (bits <= width && Self::head(first, bits) == Self::head(first, width)).then_some(block)
    }

    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        address.is_ipv4() == self.first.is_ipv4() && Self::head(address, self.bits) == Self::head(self.first, self.bits)
    }

    /// The first `bits` bits, the rest 0.
    fn head(address: IpAddr, bits: u32) -> u128 {
        let number = match address {
            IpAddr::V4(v4) => u128::from(v4.to_bits()) << 96,
            IpAddr::V6(v6) => v6.to_bits(),
        };
        number & u128::MAX.checked_shl(128 - bits).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_hold_their_addresses() {
        let holds = |block: &str, address: &str| {
            let block = Cidr::parse(block).unwrap_or_else(|| panic!("{block}"));
            block.contains(address.parse().expect("an address"))
        };
        for (block, address) in [
            ("10.0.0.0/8", "10.255.0.1"),
            ("10.0.0.0/8", "::ffff:10.1.2.3"),
            ("127.0.0.1", "127.0.0.1"),
            ("0.0.0.0/0", "203.0.113.7"),
            ("2001:db8::/32", "2001:db8:ffff::1"),
            ("::/0", "::1"),
            ("192.0.2.128/25", "192.0.2.255"),
        ] {
            assert!(holds(block, address), "{block} {address}");
        }
        for (block, address) in [
            ("10.0.0.0/8", "11.0.0.0"),
            ("127.0.0.1/32", "127.0.0.2"),
            ("0.0.0.0/0", "::1"),
            ("::/0", "127.0.0.1"),
            ("192.0.2.128/25", "192.0.2.127"),
        ] {
            assert!(!holds(block, address), "{block} {address}");
        }
    }

    #[test]
    fn what_is_no_block_is_refused() {
        for bad in
            ["", "10.0.0.0/33", "::/129", "10.0.0.1/8", "10.0.0.0/", "10.0.0.0/+8", "10.0.0.0/8/8", "host", "10/8"]
        {
            assert_eq!(Cidr::parse(bad), None, "{bad}");
        }
    }
}
