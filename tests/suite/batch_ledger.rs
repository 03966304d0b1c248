//! What a batch's results promise is kept while a broker dies: each message by its own result.
//!
//! Method: publishers send batches of envelopes (keys in turn) and of frames (one key), every message entered in a ledger before its
//! batch is sent and judged by its own result afterwards. The broker that leads most partitions is killed with `kill -9` and started
//! again meanwhile. When all is well again kcat reads the topic, and the ledger must find nothing lost, nothing refused that is there,
//! nothing altered, and order kept per connection and key, within batches and from one to the next.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use kateway_tests::client::{Connection, Failure, Request, Response};
use kateway_tests::kateway::Kateway;
use kateway_tests::ledger::{Answer, Draft, Ledger};
use kateway_tests::topic::Topic;
use kateway_tests::{figures, kcat, wait_until};
use serde_json::{Value, json};

use crate::batches::{ENVELOPES, FRAMES, batch, framed};
use crate::{Case, kafka};

pub const CASES: &[Case] =
    &[Case::new("batch_ledger::leader_killed_and_restarted", leader_killed_and_restarted).kafka().alone()];

const PUBLISHERS: u32 = 4;
const KEYS: u32 = 4;
const BATCH: u32 = 50;
const AGAIN: Duration = Duration::from_mins(1);

fn leader_killed_and_restarted() {
    let topic = Topic::fresh("ledgered");
    kafka().admin().create_topic(&topic.in_kafka(), 3);
    let gateway = Kateway::kafka(&kafka().bootstrap()).shards(2).start();
    let ledger = Arc::new(Ledger::new(u64::from(gateway.pid())));
    let stop = Arc::new(AtomicBool::new(false));
    let publishers: Vec<_> = (0..PUBLISHERS)
        .map(|number| {
            let (topic, ledger, stop, address) =
                (topic.clone(), Arc::clone(&ledger), Arc::clone(&stop), gateway.publish);
            std::thread::spawn(move || publish(number, address, &topic, &ledger, &stop))
        })
        .collect();
    let wait_more = |more: usize| {
        let goal = ledger.count(Answer::Durable) + more;
        wait_until(AGAIN, format!("{more} more messages are durable"), || ledger.count(Answer::Durable) >= goal)
    };
    wait_more(5_000);
    let leader = u32::try_from(kafka().admin().leader(&topic.in_kafka(), 0)).expect("the partition has a leader");
    kafka().kill(leader);
    wait_more(10_000);
    kafka().restart(leader);
    kafka().wait_recovered();
    wait_more(5_000);
    stop.store(true, Ordering::Relaxed);
    let unanswered: usize = publishers.into_iter().map(|thread| thread.join().expect("no panic")).sum();
    kafka().wait_in_sync(&topic.in_kafka());
    let verdict = ledger.check(&kcat::read_all(&kafka().bootstrap(), &topic.in_kafka()));
    figures::note("batches, leader killed: ledger", &verdict);
    assert_eq!(unanswered, 0, "the gateway lives, so every batch is answered");
    verdict.assert_clean();
}

/// Gives how many batches had no answer.
fn publish(number: u32, address: std::net::SocketAddr, topic: &Topic, ledger: &Ledger, stop: &AtomicBool) -> usize {
    let mut connection = Connection::open(address).expect("the gateway accepts");
    connection.patience(Duration::from_secs(20));
    let mut unanswered = 0;
    for turn in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let is_framed = turn % 2 == 0;
        let key = |n: u32| number * KEYS + if is_framed { turn % KEYS } else { n % KEYS };
        let drafts: Vec<Draft> = (0..BATCH).map(|n| ledger.enter(number, key(n), 200)).collect();
        let request = if is_framed { frames(topic, &drafts) } else { envelopes(topic, &drafts) };
        let result = connection.call(&request);
        unanswered += usize::from(result.is_err());
        for (index, draft) in drafts.iter().enumerate() {
            ledger.answered(draft.id, answer_of(&result, index));
        }
        if !result.is_ok_and(|response| !response.closes()) {
            connection = Connection::open(address).expect("the gateway accepts");
        }
    }
    unanswered
}

fn frames(topic: &Topic, drafts: &[Draft]) -> Request {
    let messages: Vec<&[u8]> = drafts.iter().map(|draft| draft.body.as_slice()).collect();
    batch(topic, &format!("key={}", drafts[0].key), FRAMES, framed(&messages)).chunked(1_500)
}

fn envelopes(topic: &Topic, drafts: &[Draft]) -> Request {
    let envelope = |draft: &Draft| json!({"key": draft.key, "base64": STANDARD.encode(&draft.body)});
    let body: Vec<Value> = drafts.iter().map(envelope).collect();
    batch(topic, "", ENVELOPES, json!(body).to_string())
}

/// What the result of one message promises.
fn answer_of(result: &Result<Response, Failure>, index: usize) -> Answer {
    let Ok(response) = result else { return Answer::of(result) };
    let document = response.json();
    // A batch that was refused as such has no results, and is refused in each of its messages.
    let Some(results) = document["results"].as_array() else { return Answer::of(result) };
    match results[index]["code"].as_u64() {
        None => Answer::Durable,
        Some(code) if code / 100 == 504 => Answer::Unknown,
        Some(_) => Answer::Refused,
    }
}
