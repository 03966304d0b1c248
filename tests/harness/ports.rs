//! Free TCP ports for servers that must be told their port in advance (ZooKeeper, Kafka: their addresses appear in
//! their own metadata).
//!
//! Method: a port is free when it can be bound right now, and it is taken from below the range the kernel hands to
//! outgoing connections (32768 and up on Linux), so that no client socket of a parallel trial can slip onto it before
//! the server binds it. A port is given out once per process. Two suites at the same time start looking at different
//! places. The gateway does not need this: it takes port 0 and says in its ready line what it got.

use std::net::TcpListener;
use std::sync::atomic::{AtomicU16, Ordering};

const LOWEST: u16 = 20_000;
const COUNT: u16 = 12_000;

/// A port that was free a moment ago and that this process will not hand out again.
pub fn reserve() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = u16::try_from(std::process::id() * 37 % u32::from(COUNT)).expect("remainder is below COUNT");
    for _ in 0..COUNT {
        let step = NEXT.fetch_add(1, Ordering::Relaxed) % COUNT;
        let port = LOWEST + (start + step) % COUNT;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no free port from {LOWEST} on");
}
