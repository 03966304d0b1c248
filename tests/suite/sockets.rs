//! Sockets are what an operator expects of them: an answer goes out at once, and no child of the process inherits one.
//!
//! Method: from outside, by the kernel's own word. The flags of each descriptor stand in `/proc/<pid>/fdinfo`; options of a socket are
//! asked of a duplicate of the gateway's descriptor (pidfd_getfd(2)).

use std::time::Duration;

use kateway_tests::kateway::Kateway;
use kateway_tests::process;
use kateway_tests::topic::Topic;
use kateway_tests::wait_until;

use crate::Case;

pub const CASES: &[Case] = &[Case::new("sockets::close_on_exec_and_without_delay", close_on_exec_and_without_delay)];

fn close_on_exec_and_without_delay() {
    const CONNECTIONS: usize = 6;
    let gateway = Kateway::memory().shards(2).start();
    let topic = Topic::fresh("sockets");
    let mut connections: Vec<_> = (0..CONNECTIONS).map(|_| gateway.publisher()).collect();
    for connection in &mut connections {
        connection.call(&topic.publish("", "x")).unwrap_or_else(|e| panic!("{e}")).expect(201);
    }
    gateway.status();
    let sockets = process::sockets(gateway.pid());
    // Two listeners of each shard, and the management's.
    assert_eq!(sockets.iter().filter(|socket| socket.is_listening).count(), 5, "{sockets:?}");
    assert!(sockets.len() >= 5 + CONNECTIONS, "{sockets:?}");
    for socket in &sockets {
        assert!(socket.is_close_on_exec, "{socket:?} of {sockets:?}");
        assert!(socket.is_without_delay, "{socket:?} of {sockets:?}");
    }
    drop(connections);
    wait_until(Duration::from_secs(10), "only listeners are left", || process::sockets(gateway.pid()).len() == 5);
}
