//! One connection, many requests: pipelined ones are answered in order, and a body waits for `100 Continue`.
//!
//! Method: raw bytes on one connection. Two and then many requests are written before an answer is read; the answers
//! must come in the order of the requests, also when an early one is refused without closing. A subscription that waits
//! must not let a later answer pass it.

use std::time::Duration;

use kateway_tests::client::Request;
use kateway_tests::kateway::Kateway;
use kateway_tests::problem;
use kateway_tests::topic::Topic;

use crate::{Case, kafka};

pub const CASES: &[Case] = &[
    Case::new("pipelining::answers_come_in_order", answers_come_in_order),
    Case::new("pipelining::order_holds_on_kafka", order_holds_on_kafka).kafka(),
    Case::new("pipelining::a_refusal_in_the_middle_keeps_its_place", a_refusal_in_the_middle_keeps_its_place),
    Case::new("pipelining::a_waiting_read_is_not_overtaken", a_waiting_read_is_not_overtaken),
    Case::new("pipelining::expect_continue", expect_continue),
    Case::new("pipelining::connection_close_is_obeyed", connection_close_is_obeyed),
];

fn answers_come_in_order() {
    let gateway = Kateway::memory().start();
    pipeline(&gateway, &Topic::fresh("piped"), 200);
}

fn order_holds_on_kafka() {
    let admin = kafka().admin();
    let topic = Topic::fresh("piped");
    admin.create_topic(&topic.in_kafka(), 4);
    let gateway = Kateway::kafka(admin.brokers()).start();
    pipeline(&gateway, &topic, 200);
}

/// All requests in one write; the key is the same, so their offsets must rise with their order.
fn pipeline(gateway: &Kateway, topic: &Topic, count: i64) {
    let mut connection = gateway.publisher();
    let bytes: Vec<u8> = (0..count).flat_map(|n| topic.publish("key=same", format!("{n}")).bytes()).collect();
    connection.send(&bytes).expect("sent");
    let answers = (0..count).map(|_| connection.read_response().unwrap_or_else(|e| panic!("{e}")).expect(201));
    let offsets: Vec<i64> = answers.map(|answer| answer.number("x-offset")).collect();
    assert_eq!(offsets, (0..count).collect::<Vec<_>>());
    let mut reader = gateway.subscriber();
    for n in 0..count {
        let answer = reader.call(&topic.read("g", "wait=20s")).unwrap_or_else(|e| panic!("{e}")).expect(200);
        assert_eq!(answer.text(), format!("{n}"));
    }
}

fn a_refusal_in_the_middle_keeps_its_place() {
    let gateway = Kateway::memory().start();
    let topic = Topic::fresh("middle");
    let requests =
        [topic.publish("key=k", "first"), topic.publish("key=k&ack=wrong", "second"), topic.publish("key=k", "third")];
    let mut connection = gateway.publisher();
    connection.send(&requests.iter().flat_map(Request::bytes).collect::<Vec<_>>()).expect("sent");
    connection.read_response().expect("the first answer").expect(201);
    let refusal = connection.read_response().expect("the second answer");
    problem::check(&refusal, 400);
    assert!(!refusal.closes(), "a refused parameter does not end the connection");
    assert_eq!(connection.read_response().expect("the third answer").expect(201).number("x-offset"), 1);
}

fn a_waiting_read_is_not_overtaken() {
    let gateway = Kateway::memory().start();
    let topic = Topic::fresh("waiting");
    gateway.publish(&topic.publish("", "only")).expect(201);
    let mut connection = gateway.subscriber();
    let requests = [topic.read("g", "wait=5s"), topic.read("g", "wait=300ms"), topic.read("other", "wait=5s")];
    connection.send(&requests.iter().flat_map(Request::bytes).collect::<Vec<_>>()).expect("sent");
    let statuses: Vec<u16> = (0..3).map(|_| connection.read_response().expect("an answer").status).collect();
    assert_eq!(statuses, [200, 204, 200]);
}

fn expect_continue() {
    let gateway = Kateway::memory().start();
    let topic = Topic::fresh("expecting");
    let request = topic.publish("", "after the permission").header("Expect", "100-continue").bytes();
    let (head, body) = request.split_at(request.len() - "after the permission".len());

    let mut connection = gateway.publisher();
    connection.send(head).expect("sent");
    let interim = connection.read_raw(b"HTTP/1.1 100 Continue\r\n\r\n".len()).expect("the permission");
    assert_eq!(interim, b"HTTP/1.1 100 Continue\r\n\r\n");
    connection.send(body).expect("sent");
    connection.read_response().expect("an answer").expect(201);

    // A request that will be refused is refused instead of being invited to send its body.
    let mut connection = gateway.publisher();
    let doomed = b"POST /v1/msgs/a.b/v1 HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 10\r\n\r\n";
    connection.send(doomed).expect("sent");
    let answer = connection.read_response().expect("an answer");
    problem::check(&answer, 400);
    assert_eq!(answer.interim, [] as [u16; 0], "refused without asking for the body");

    let unknown = topic.publish("", "x").header("Expect", "200-ok");
    problem::check(&gateway.publish(&unknown), 417);
}

fn connection_close_is_obeyed() {
    let gateway = Kateway::memory().start();
    let topic = Topic::fresh("closing");
    let mut connection = gateway.publisher();
    let answer = connection.call(&topic.publish("", "x").header("Connection", "close")).expect("an answer").expect(201);
    assert!(answer.closes(), "the answer says that the connection ends");
    assert!(connection.closes_within(Duration::from_secs(5)));

    let mut connection = gateway.publisher();
    for n in 0..1_000 {
        let answer = connection.call(&topic.publish("", format!("{n}"))).unwrap_or_else(|e| panic!("{e}")).expect(201);
        assert!(!answer.closes(), "kept alive");
    }
}
