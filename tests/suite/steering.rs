//! A connection goes to the shard that its first read belongs to, and nothing of it is lost on the way.
//!
//! Method: on the embedded store with two shards, connections of both read one group. After that all of them are counted by one shard, and no
//! read went over the mesh. What a client had sent behind that read (pipelined, or a head that came in two pieces) is answered in
//! order. A connection that reads a second group, of the other shard, is served where it is, and each group gets its own messages.
//! With `sub.steer=false` nothing moves.

use std::time::Duration;

use kateway_tests::client::{Connection, Request, Response};
use kateway_tests::kateway::Kateway;
use kateway_tests::topic::Topic;
use kateway_tests::wait_until;

use crate::Case;

pub const CASES: &[Case] = &[
    Case::new("steering::connections_go_where_their_group_lives", connections_go_where_their_group_lives),
    Case::new("steering::unread_requests_go_along", unread_requests_go_along),
    Case::new("steering::a_second_group_is_read_over_the_mesh", a_second_group_is_read_over_the_mesh),
];

fn start(steers: bool) -> Kateway {
    Kateway::memory().shards(2).set("sub.steer", steers).start()
}

const SOON: Duration = Duration::from_secs(10);

/// A connection of each shard.
fn of_each_shard(gateway: &Kateway) -> Vec<Connection> {
    (0..2).map(|shard| gateway.connection_of_shard(shard, gateway.subscribe)).collect()
}

fn call(connection: &mut Connection, request: &Request) -> Response {
    connection.call(request).unwrap_or_else(|e| panic!("{e}"))
}

fn total(gateway: &Kateway, metric: &str) -> f64 {
    gateway.scrape().sum(metric, &[])
}

fn publish(gateway: &Kateway, topic: &Topic, text: &str) {
    gateway.publish(&topic.publish("partition=0", text)).expect(201);
}

fn connections_go_where_their_group_lives() {
    for steers in [true, false] {
        let topic = Topic::fresh("steered");
        let gateway = start(steers);
        let mut connections = of_each_shard(&gateway);
        for round in 0..3 {
            for (n, connection) in connections.iter_mut().enumerate() {
                let text = format!("round {round}, connection {n}");
                publish(&gateway, &topic, &text);
                assert_eq!(call(connection, &topic.read("g", "wait=1s")).expect(200).text(), text);
            }
        }
        let open = || {
            let status = gateway.status();
            let mut open = [0, 1]
                .map(|shard| status["shards"][shard]["counters"]["kateway_connections"].as_u64().expect("a gauge"));
            open.sort_unstable();
            open
        };
        // Others that were opened for a moment go by and by.
        let expected = if steers { [0, 2] } else { [1, 1] };
        wait_until(SOON, format!("connections of the shards are {expected:?}"), || open() == expected);
        let moved = total(&gateway, "kateway_connections_steered_total");
        let forwarded = total(&gateway, "kateway_sub_forwarded_total");
        if steers {
            assert_eq!((moved, forwarded), (1.0, 0.0), "one moved, and no read went over the mesh");
        } else {
            assert_eq!((moved, forwarded), (0.0, 3.0), "the reads of one of them went over the mesh");
        }
    }
}

/// One of the two is moved; both are asked the same.
fn unread_requests_go_along() {
    let topic = Topic::fresh("steered");
    let gateway = start(true);
    for mut connection in of_each_shard(&gateway) {
        publish(&gateway, &topic, "first");
        publish(&gateway, &topic, "second");
        let read = topic.read("g", "wait=1s").bytes();
        let (head, mut rest) = (&read[..20], read[20..].to_vec());
        connection.send(head).expect("sent");
        rest.extend_from_slice(&Request::get("/alive").bytes());
        rest.extend_from_slice(&read);
        connection.send(&rest).expect("sent");
        for body in ["first", "{\"ok\":1}", "second"] {
            let answer = connection.read_response().unwrap_or_else(|e| panic!("{e}")).expect(200);
            assert_eq!(answer.text(), body);
        }
    }
    assert_eq!(total(&gateway, "kateway_connections_steered_total"), 1.0);
}

fn a_second_group_is_read_over_the_mesh() {
    // So many that both homes occur.
    const GROUPS: usize = 20;
    let topic = Topic::fresh("steered");
    let gateway = start(true);
    publish(&gateway, &topic, "for every group");
    let mut connection = gateway.subscriber();
    for n in 0..GROUPS {
        let answer = call(&mut connection, &topic.read(&format!("group{n}"), "wait=1s")).expect(200);
        assert_eq!(answer.text(), "for every group");
    }
    for n in 0..GROUPS {
        call(&mut connection, &topic.read(&format!("group{n}"), "wait=0s")).expect(204);
    }
    assert!(total(&gateway, "kateway_sub_forwarded_total") > 0.0, "some groups live on the other shard");
    assert!(total(&gateway, "kateway_connections_steered_total") <= 1.0, "a connection moves once at most");
}
