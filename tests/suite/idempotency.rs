//! `Idempotency-Key`: a message sent twice is stored once, and its repeat is answered as the first time.
//!
//! Method: the same request goes out twice, over two connections to a gateway of four shards, so that it meets every way to the key's
//! home; answers are compared field by field, and a reader counts what is stored. Whatever decides what is stored is then changed, one
//! thing at a time: 422. A publish that takes its time is met while it runs (409) and after its client has gone. What stored nothing runs
//! again; what may have been stored, made by a broker that is stopped with the message in its hands, does not. Last the bounds.

use std::io::Write;
use std::time::Duration;

use flate2::{Compression, write::GzEncoder};
use kateway_tests::client::{Request, Response};
use kateway_tests::kateway::Kateway;
use kateway_tests::topic::Topic;
use kateway_tests::{folder, frames, problem, wait_until};

use crate::faults::Frozen;
use crate::stage::SOON;
use crate::{Case, kafka};

pub const CASES: &[Case] = &[
    Case::new("idempotency::repeat_gets_the_first_answer", repeat_gets_the_first_answer),
    Case::new("idempotency::another_message_is_refused", another_message_is_refused),
    Case::new("idempotency::running_is_said", running_is_said),
    Case::new("idempotency::outlives_its_client", outlives_its_client),
    Case::new("idempotency::what_stored_nothing_runs_again", what_stored_nothing_runs_again),
    Case::new("idempotency::repeats_at_once_store_one", repeats_at_once_store_one).kafka(),
    Case::new("idempotency::unknown_outcome_is_kept", unknown_outcome_is_kept).kafka().alone(),
    Case::new("idempotency::bounds_and_window", bounds_and_window),
    Case::new("idempotency::compressed_or_not_is_the_same", compressed_or_not_is_the_same),
];

const RUNNING: u64 = 40_905;
const OTHER: u64 = 42_200;

fn keyed(topic: &Topic, query: &str, key: &str, body: &str) -> Request {
    topic.publish(query, body).header("Idempotency-Key", key)
}

/// Everything but what names the request.
fn said(answer: &Response) -> Vec<(String, Vec<u8>)> {
    let own = ["x-request-id", "date", "idempotency-replayed"];
    answer.headers.iter().filter(|(name, _)| !own.contains(&name.as_str())).cloned().collect()
}

fn is_replayed(answer: &Response) -> bool {
    answer.header("idempotency-replayed") == Some("true")
}

#[track_caller]
fn stored(gateway: &Kateway, topic: &Topic) -> usize {
    let answer = gateway.subscribe(&topic.read(&folder::unique("g"), "batch=4000&wait=5s&linger=500ms")).expect(200);
    frames::decode(&answer.body).len()
}

fn repeat_gets_the_first_answer() {
    let gateway = Kateway::memory().shards(4).start();
    let topic = Topic::fresh("once");
    for n in 0..40 {
        // One connection for both, and one each: from the home core, from others, and from two of them.
        let (mut first, mut second) = (gateway.publisher(), gateway.publisher());
        let request = keyed(&topic, "key=k", &format!("\"order {n}\""), "paid");
        let answers = [&mut first, &mut second].map(|c| c.call(&request).unwrap_or_else(|e| panic!("{e}")).expect(201));
        let again = first.call(&request).unwrap_or_else(|e| panic!("{e}")).expect(201);
        assert_eq!(said(&answers[0]), said(&answers[1]));
        assert_eq!(said(&answers[0]), said(&again));
        assert_eq!(answers[0].body, again.body);
        assert_eq!([&answers[0], &answers[1], &again].map(is_replayed), [false, true, true]);
    }
    let other = Topic::new(&topic.appid, "other", "v1");
    assert!(
        !is_replayed(&gateway.publish(&keyed(&other, "key=k", "\"order 0\"", "paid")).expect(201)),
        "a key is its topic's"
    );
    let queued = keyed(&topic, "async=1", "async", "x");
    gateway.publish(&queued).expect(202);
    let again = gateway.publish(&queued).expect(202);
    assert!(is_replayed(&again));
    assert_eq!(again.header("x-durability"), Some("none"));
    for _ in 0..2 {
        assert!(!is_replayed(&gateway.publish(&topic.publish("key=k", "without a key")).expect(201)));
    }
    assert_eq!(stored(&gateway, &topic), 40 + 1 + 2);
    let counted = |name| gateway.scrape().sum(name, &[]);
    assert_eq!(counted("kateway_pub_idempotency_replayed_total"), 81.0);
    assert_eq!(counted("kateway_pub_idempotency_keys"), 42.0);
}

fn another_message_is_refused() {
    let gateway = Kateway::memory().shards(4).start();
    let topic = Topic::fresh("reused");
    let request = |query: &str, body: &str| keyed(&topic, query, "k1", body);
    let first = request("key=a", "body").header("X-Tag", "t").header("X-Header-h", "aGk=");
    gateway.publish(&first).expect(201);
    let tagged = |request: Request| request.header("X-Tag", "t").header("X-Header-h", "aGk=");
    for (what, other) in [
        ("body", tagged(request("key=a", "bodi"))),
        ("longer body", tagged(request("key=a", "body "))),
        ("key", tagged(request("key=b", "body"))),
        ("no key", tagged(request("", "body"))),
        ("partition", tagged(request("key=a&partition=0", "body"))),
        ("ack", tagged(request("key=a&ack=local", "body"))),
        ("async", tagged(request("key=a&async=1", "body"))),
        ("tag", request("key=a", "body").header("X-Tag", "u").header("X-Header-h", "aGk=")),
        ("header", request("key=a", "body").header("X-Tag", "t").header("X-Header-h", "aGo=")),
        ("order of headers", request("key=a", "body").header("X-Header-h", "aGk=").header("X-Tag", "t")),
        ("one header less", request("key=a", "body").header("X-Tag", "t")),
    ] {
        let refused = problem::check(&gateway.publish(&other), 422);
        assert_eq!(refused.code, OTHER, "{what}");
    }
    // A client that tries again is another span of its trace.
    let span = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    assert!(is_replayed(&gateway.publish(&tagged(request("key=a", "body")).header("traceparent", span)).expect(201)));
    for (what, key) in [("empty", String::new()), ("256 bytes", "k".repeat(256)), ("not printable", "k\u{e9}".into())] {
        let refused = problem::check(&gateway.publish(&keyed(&topic, "", &key, "x")), 400);
        assert_eq!(refused.code, 40_010, "{what}");
    }
    gateway.publish(&keyed(&topic, "key=a", &"k".repeat(255), "x")).expect(201);
    let doubled = keyed(&topic, "", "a", "x").header("idempotency-key", "b");
    assert_eq!(problem::check(&gateway.publish(&doubled), 400).code, 40_010);
    problem::check(&gateway.publish(&keyed(&topic, "batch=1", "a", "[1]")), 400);
    assert_eq!(stored(&gateway, &topic), 2);
}

fn running_is_said() {
    let gateway = Kateway::null().shards(2).set("null.delay_us", 2_000_000).start();
    let topic = Topic::fresh("running");
    let request = keyed(&topic, "", "slow", "x");
    let mut first = gateway.publisher();
    first.send(&request.bytes()).expect("sent");
    wait_until(SOON, "it runs", || gateway.scrape().sum("kateway_pub_idempotency_keys", &[]) == 1.0);
    for _ in 0..8 {
        let refused = gateway.publish(&request);
        assert_eq!(problem::check(&refused, 409).code, RUNNING);
        assert_eq!(refused.header("retry-after"), Some("1"));
    }
    assert_eq!(problem::check(&gateway.publish(&keyed(&topic, "", "slow", "y")), 422).code, OTHER);
    assert!(!is_replayed(&first.read_response().unwrap_or_else(|e| panic!("{e}")).expect(201)));
    for _ in 0..8 {
        assert!(is_replayed(&gateway.publish(&request).expect(201)));
    }
}

/// Over HTTP/1.1 and HTTP/2: who has gone before the answer finds it by the repeat.
fn outlives_its_client() {
    let gateway = Kateway::null().shards(2).set("null.delay_us", 1_000_000).start();
    let topic = Topic::fresh("gone");
    let keys = || gateway.scrape().sum("kateway_pub_idempotency_keys", &[]);
    let mut client = gateway.publisher();
    client.send(&keyed(&topic, "", "h1", "x").bytes()).expect("sent");
    wait_until(SOON, "it runs", || keys() == 1.0);
    client.reset();
    let url = format!("http://{}/v1/msgs/{}/v1", gateway.publish, topic.name);
    let mut curl = std::process::Command::new("curl");
    curl.args(["-s", "--http2-prior-knowledge", "-m", "0.3", "-H", "Expect:", "-H", "Idempotency-Key: h2", "-d", "x"]);
    curl.args(["-H", &format!("Appid: {}", topic.appid), &url]);
    let output = kateway_tests::process::output("curl", curl, SOON).expect("the tests need curl");
    assert_eq!(output.status.code(), Some(28), "curl gave up in time");
    assert_eq!(keys(), 2.0);
    for key in ["h1", "h2"] {
        let mut answer = None;
        wait_until(SOON, format!("{key} has finished"), || {
            let got = gateway.publish(&keyed(&topic, "", key, "x"));
            assert!([201, 409].contains(&got.status), "{}", got.text());
            answer = (got.status == 201).then_some(got);
            answer.is_some()
        });
        assert!(answer.as_ref().is_some_and(is_replayed), "{key} ran once");
    }
}

fn what_stored_nothing_runs_again() {
    let gateway = Kateway::null().shards(2).set("null.error_ppm", 500_000).start();
    let topic = Topic::fresh("again");
    let mut refused = 0;
    for n in 0..20 {
        let request = keyed(&topic, "", &format!("{n}"), "x");
        wait_until(SOON, "it is stored", || {
            let answer = gateway.publish(&request);
            refused += usize::from(answer.status != 201);
            assert!(!is_replayed(&answer));
            answer.status == 201
        });
        assert!(is_replayed(&gateway.publish(&request).expect(201)));
    }
    assert!(refused > 0, "some failed");

    let gateway = Kateway::memory().start();
    problem::check(&gateway.publish(&keyed(&topic, "partition=9", "p", "x")), 400);
    assert!(!is_replayed(&gateway.publish(&keyed(&topic, "partition=1", "p", "x")).expect(201)), "the key was free");
}

/// Many clients with the same message at the same moment, until each is told the same.
fn repeats_at_once_store_one() {
    const MESSAGES: usize = 20;
    let topic = Topic::fresh("race");
    kafka().admin().create_topic(&topic.in_kafka(), 4);
    let gateway = Kateway::kafka(&kafka().bootstrap()).shards(2).start();
    let told = std::thread::scope(|scope| {
        let client = |_| {
            scope.spawn(|| {
                let mut connection = gateway.publisher();
                let mut offset = |n| {
                    let request = keyed(&topic, "key=k", &format!("m{n}"), &format!("message {n}"));
                    loop {
                        let answer = connection.call(&request).unwrap_or_else(|e| panic!("{e}"));
                        if answer.status != 409 {
                            return answer.expect(201).number("x-offset");
                        }
                    }
                };
                (0..MESSAGES).map(&mut offset).collect::<Vec<_>>()
            })
        };
        let clients: Vec<_> = (0..6).map(client).collect();
        clients.into_iter().map(|c| c.join().expect("no client panics")).collect::<Vec<_>>()
    });
    assert!(told.windows(2).all(|pair| pair[0] == pair[1]), "{told:?}");
    assert_eq!(kafka().admin().message_count(&topic.in_kafka()), i64::try_from(MESSAGES).expect("few"));
}

fn unknown_outcome_is_kept() {
    let topic = Topic::fresh("unknown");
    kafka().admin().create_topic(&topic.in_kafka(), 1);
    // One shard, whose producer has a connection to the leader.
    let gateway = Kateway::kafka(&kafka().bootstrap()).set("pub.deadline_ms", 2_000).start();
    gateway.publish(&topic.publish("", "warm")).expect(201);
    let leader = u32::try_from(kafka().admin().leader(&topic.in_kafka(), 0)).expect("a leader");
    let frozen = Frozen::new(leader);
    let request = keyed(&topic, "", "k", "perhaps");
    problem::check(&gateway.publish(&request), 504);
    drop(frozen);
    kafka().wait_recovered();
    wait_until(Duration::from_mins(1), "the topic takes messages", || {
        gateway.publish(&topic.publish("", "after")).status == 201
    });
    let kept = problem::check(&gateway.publish(&request), 504);
    assert!(kept.detail.contains("another key"), "{}", kept.detail);
    kafka().wait_in_sync(&topic.in_kafka());
}

fn bounds_and_window() {
    let gateway = Kateway::memory().set("pub.idempotency_keys_max", 2).set("pub.idempotency_window_s", 4).start();
    let topic = Topic::fresh("bounded");
    let publish = |key: &str| is_replayed(&gateway.publish(&keyed(&topic, "", key, "x")).expect(201));
    let counted = |name| gateway.scrape().sum(name, &[]);
    assert_eq!(
        ["a", "b", "c", "b", "c", "a"].map(publish),
        [false, false, false, true, true, false],
        "the oldest goes"
    );
    wait_until(SOON, "the counter says so", || counted("kateway_pub_idempotency_forgotten_total") == 2.0);
    assert_eq!(counted("kateway_pub_idempotency_keys"), 2.0);
    wait_until(SOON, "their time is over", || counted("kateway_pub_idempotency_keys") == 0.0);
    assert!(!publish("c"));
}

/// What counts is the message, not how it came.
fn compressed_or_not_is_the_same() {
    let gateway = Kateway::memory().shards(2).start();
    let topic = Topic::fresh("coded");
    let gzip = |body: &str| {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(body.as_bytes()).expect("memory takes it");
        encoder.finish().expect("memory takes it")
    };
    let compressed =
        |body: &str| topic.publish("", gzip(body)).header("Content-Encoding", "gzip").header("Idempotency-Key", "k");
    assert!(!is_replayed(&gateway.publish(&compressed("message")).expect(201)));
    assert!(is_replayed(&gateway.publish(&compressed("message")).expect(201)));
    assert!(is_replayed(&gateway.publish(&keyed(&topic, "", "k", "message")).expect(201)));
    assert_eq!(problem::check(&gateway.publish(&compressed("massage")), 422).code, OTHER);
    assert_eq!(stored(&gateway, &topic), 1);
}
