//! Who a client is, behind load balancers that are believed: by PROXY header, by `X-Forwarded-For`, and from nobody else.
//!
//! Method: the address that `/v1/status/..` shows of a reader (`realip`) must be the one that was said, with every form of the header, in
//! one piece or byte by byte, before TLS too, on connections that move to another shard and on those that do not. A header from an address
//! that is not configured is no header; a missing, malformed or late one ends the connection and is counted.

use std::time::{Duration, Instant};

use kateway_tests::client::{Connection, Failure, Request};
use kateway_tests::kateway::{Builder, Kateway};
use kateway_tests::tls::Authority;
use kateway_tests::topic::Topic;
use kateway_tests::wait_until;
use rustls::version::{TLS12, TLS13};

use crate::Case;
use crate::tls::with_tls;

pub const CASES: &[Case] = &[
    Case::new("proxy_header::every_form_names_the_client", every_form_names_the_client),
    Case::new("proxy_header::before_tls_too", before_tls_too),
    Case::new("proxy_header::what_is_no_header_ends_the_connection", what_is_no_header_ends_the_connection),
    Case::new("proxy_header::from_elsewhere_it_is_not_read", from_elsewhere_it_is_not_read),
    Case::new("proxy_header::forwarded_for_is_believed_of_some", forwarded_for_is_believed_of_some),
];

const SOON: Duration = Duration::from_secs(10);
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// A header of version 2 for a TCP connection over IPv4.
fn v2(client: [u8; 4]) -> Vec<u8> {
    [&SIGNATURE[..], &[0x21, 0x11, 0, 12], &client, &[127, 0, 0, 1, 0x10, 0, 0x20, 0]].concat()
}

fn start() -> Kateway {
    Kateway::memory().shards(2).set("http.proxy_from", "127.0.0.0/8").start()
}

/// The client of the group's only reader, as the gateway shows it.
fn real_ip(gateway: &Kateway, topic: &Topic, group: &str) -> String {
    // Who manages comes by no load balancer.
    let rows = gateway.manage(&topic.readers_as(&topic.appid, &format!("group={group}"))).expect(200).json();
    let row = rows.as_array().and_then(|rows| rows.iter().find(|row| row["partition"] == 0)).cloned();
    row.unwrap_or_else(|| panic!("{rows}"))["realip"].as_str().unwrap_or("nobody").to_owned()
}

/// Publishes to a group of its own and reads through `connection`, whose header is sent already.
fn real_ip_of_read(gateway: &Kateway, mut connection: Connection, header: &[u8]) -> String {
    let topic = Topic::fresh("told");
    let mut publisher = gateway.publisher();
    publisher.send(&[header, &topic.publish("partition=0", "x").bytes()].concat()).expect("sent");
    publisher.read_response().unwrap_or_else(|e| panic!("{e}")).expect(201);
    connection.call(&topic.read("g", "wait=5s")).unwrap_or_else(|e| panic!("{e}")).expect(200);
    real_ip(gateway, &topic, "g")
}

fn every_form_names_the_client() {
    let gateway = start();
    let v6 = [&SIGNATURE[..], &[0x21, 0x21, 0, 36], &[0x20, 1, 0xd, 0xb8], &[0; 11], &[7], &[0; 20]].concat();
    let with_tlvs = {
        let tlvs = [&[1, 0, 2][..], b"h2", &[5, 0, 4], b"uniq"].concat();
        let mut header = v2([192, 0, 2, 5]);
        header[15] += u8::try_from(tlvs.len()).expect("short");
        [header, tlvs].concat()
    };
    for (header, client) in [
        (b"PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\r\n".to_vec(), "192.0.2.1"),
        (b"PROXY TCP6 2001:db8::7 ::1 1 65535\r\n".to_vec(), "2001:db8::7"),
        (b"PROXY UNKNOWN\r\n".to_vec(), "127.0.0.1"),
        (v2([192, 0, 2, 4]), "192.0.2.4"),
        (with_tlvs, "192.0.2.5"),
        (v6, "2001:db8::7"),
        // LOCAL: the balancer's own.
        ([&SIGNATURE[..], &[0x20, 0, 0, 0]].concat(), "127.0.0.1"),
    ] {
        // So many that some are accepted by the shard of their group, and some move.
        for _ in 0..4 {
            let mut connection = gateway.subscriber();
            connection.send(&header).expect("sent");
            assert_eq!(real_ip_of_read(&gateway, connection, &header), client, "{header:?}");
        }
        let mut connection = gateway.subscriber();
        for byte in &header {
            connection.send(&[*byte]).expect("sent");
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(real_ip_of_read(&gateway, connection, &header), client, "{header:?} byte by byte");
    }
    let scrape = gateway.scrape();
    assert!(scrape.sum("kateway_connections_steered_total", &[]) > 0.0, "some have moved");
    assert_eq!(scrape.sum("kateway_proxy_header_failures_total", &[]), 0.0);
    assert_eq!(scrape.sum("kateway_requests_malformed_total", &[]), 0.0);
}

fn before_tls_too() {
    let authority = Authority::new();
    let builder = with_tls(Kateway::memory().shards(2), &[&authority.issue("DNS:a.test")]);
    let gateway = builder.set("http.proxy_from", "127.0.0.1").start();
    let client = authority.client(&[&TLS12, &TLS13], &[]);
    for (header, ip) in
        [(v2([192, 0, 2, 4]), "192.0.2.4"), (b"PROXY TCP4 192.0.2.1 127.0.0.1 1 2\r\n".to_vec(), "192.0.2.1")]
    {
        let mut connection = Connection::open(gateway.address("sub_tls")).expect("a connection");
        connection.send(&header).expect("sent");
        let connection = connection.upgrade(&client, "a.test").unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(real_ip_of_read(&gateway, connection, &header), ip);
    }
    let without = Connection::open_tls(gateway.address("sub_tls"), &client, "a.test");
    assert!(matches!(without, Err(Failure::Connect(_))), "a handshake is no header");
    assert_eq!(gateway.scrape().sum("kateway_proxy_header_failures_total", &[]), 1.0);
}

fn what_is_no_header_ends_the_connection() {
    let gateway = start();
    let request = b"GET /alive HTTP/1.1\r\nHost: a\r\n\r\n";
    let too_long = [&b"PROXY UNKNOWN "[..], &[b'x'; 100], b"\r\n"].concat();
    let cut = &v2([1, 1, 1, 1])[..20];
    let wrong: [&[u8]; 5] = [
        b"",
        b"PROXY TCP4 192.0.2.1 198.51.100.1 1\r\n",
        &too_long,
        b"PRI * HTTP/2.0\r\n",
        b"\r\n\r\n\0\r\nQUIT\n\x11\x11\0\x0c",
    ];
    for (n, bytes) in (1_u32..).zip(wrong) {
        let mut connection = gateway.publisher();
        connection.send(&[bytes, &request[..]].concat()).expect("sent");
        assert!(connection.closes_within(SOON), "no answer is given: {bytes:?}");
        wait_until(SOON, "it is counted", || {
            gateway.scrape().sum("kateway_proxy_header_failures_total", &[]) == f64::from(n)
        });
    }
    // One that ends in the middle, and one that never comes to its end.
    let mut connection = gateway.publisher();
    connection.send(cut).expect("sent");
    connection.finish();
    assert!(connection.closes_within(SOON));
    let start = Instant::now();
    let mut slow = gateway.publisher();
    slow.send(cut).expect("sent");
    assert!(slow.closes_within(SOON), "it is cut");
    assert!(start.elapsed() >= Duration::from_millis(4_900), "{:?}", start.elapsed());
    assert_eq!(gateway.scrape().sum("kateway_proxy_header_failures_total", &[]), 7.0);
    assert_eq!(gateway.scrape().sum("kateway_connections_expired_total", &[]), 1.0);
}

fn from_elsewhere_it_is_not_read() {
    let gateway = Kateway::memory().set("http.proxy_from", "10.0.0.0/8,127.0.0.2").start();
    gateway.publish(&Request::get("/alive")).expect(200);
    for header in [&b"PROXY TCP4 192.0.2.1 198.51.100.1 1 2\r\n"[..], &v2([192, 0, 2, 1])] {
        let mut connection = gateway.publisher();
        connection.send(&[header, b"GET /alive HTTP/1.1\r\nHost: a\r\n\r\n"].concat()).expect("sent");
        match connection.read_response() {
            Ok(answer) => drop(answer.expect(400)),
            Err(Failure::NoAnswer) => {}
            Err(failure) => panic!("{failure}"),
        }
        assert!(connection.closes_within(SOON), "and nothing behind it is served");
    }
}

fn forwarded_for_is_believed_of_some() {
    let read = |builder: Builder, fields: &[&str]| {
        let gateway = builder.start();
        let topic = Topic::fresh("told");
        gateway.publish(&topic.publish("partition=0", "x")).expect(201);
        let request =
            fields.iter().fold(topic.read("g", "wait=5s"), |request, field| request.header("X-Forwarded-For", field));
        gateway.subscribe(&request).expect(200);
        real_ip(&gateway, &topic, "g")
    };
    let believed = || Kateway::memory().shards(2).set("http.forwarded_from", "127.0.0.1,10.0.0.0/8");
    assert_eq!(read(Kateway::memory(), &["192.0.2.1"]), "127.0.0.1", "nobody is believed");
    assert_eq!(read(believed(), &[]), "127.0.0.1");
    assert_eq!(
        read(believed(), &["1.1.1.1, 192.0.2.1, 10.0.0.7"]),
        "192.0.2.1",
        "what the client made up is not looked at"
    );
    assert_eq!(read(believed(), &["1.1.1.1", "192.0.2.1", "10.0.0.7"]), "192.0.2.1");
    assert_eq!(read(believed(), &["192.0.2.1, whoever"]), "127.0.0.1");
    assert_eq!(read(Kateway::memory().set("http.forwarded_from", "10.0.0.0/8"), &["192.0.2.1"]), "127.0.0.1");
}
