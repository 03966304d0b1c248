//! What a batch is told: a result for each of its messages, or for each run of them that have the same to say.
//!
//! Invariants: 201 (202 where nothing is promised) says that all are stored, 207 that some are, and a problem document that none is known
//! to be: of the first that may be, or else of the first that failed. Results stand in the order of the request.

use super::{
    super::{
        codes::{self, Code},
        reply::{Problem, Stamp},
    },
    send::Outcome,
};
use crate::{limits, proto::Reply, store::Stored};

/// An answer, and the code it is counted under if it is a refusal.
#[derive(Debug)]
pub struct Answered {
    pub reply: Reply,
    pub code: Option<&'static Code>,
}

/// What is said beside the results.
#[derive(Clone, Copy, Debug)]
pub struct Manner {
    pub in_ranges: bool,
    /// Nobody waited for reports.
    pub is_queued: bool,
    pub is_volatile: bool,
}

/// See the module text. `stored` of the results are good ones.
pub async fn answer(results: &[Outcome], stored: usize, manner: Manner, stamp: &Stamp) -> Answered {
    let mut failed = results.iter().filter_map(|result| result.as_ref().err());
    let first_failed = failed.next();
    let mut body = Vec::with_capacity(64 + if manner.in_ranges { 256 } else { results.len() * 32 });
    if let Some(first) = first_failed.filter(|_| stored == 0) {
        // A refusal would say of all that they are not stored.
        let is_unknown = |problem: &Problem| problem.code.number == codes::OUTCOME_UNKNOWN.number;
        let other = if is_unknown(first) { None } else { failed.find(|problem| is_unknown(problem)) };
        let problem = other.unwrap_or(first);
        body.extend_from_slice(problem.document(stamp).to_string().as_bytes());
        // The document is an object with fields.
        body.pop();
        body.extend_from_slice(b",\"ok\":0");
        list(results, manner.in_ranges, &mut body).await;
        let mut reply = problem.reply(stamp);
        reply.body = crate::proto::Body::Bytes(body.into());
        return Answered { reply, code: Some(problem.code) };
    }
    body.extend_from_slice(b"{\"ok\":");
    number(stored, &mut body);
    list(results, manner.in_ranges, &mut body).await;
    let status = match (first_failed, manner.is_queued) {
        (Some(_), _) => 207,
        (None, true) => 202,
        (None, false) => 201,
    };
    let mut reply = Reply::new(status).field("X-Request-Id", &stamp.request_id);
    if manner.is_queued || manner.is_volatile {
        reply.add_field("X-Durability", b"none");
    }
    Answered { reply: reply.body("application/json", body), code: None }
}

/// `,"results":[..]}`.
async fn list(results: &[Outcome], in_ranges: bool, body: &mut Vec<u8>) {
    body.extend_from_slice(b",\"results\":[");
    let (mut at, mut written) = (0, 0);
    while at < results.len() {
        let end = if in_ranges { end_of_range(results, at).await } else { at + 1 };
        if written > 0 {
            body.push(b',');
        }
        body.push(b'{');
        if in_ranges {
            body.extend_from_slice(b"\"from\":");
            number(at, body);
            body.extend_from_slice(b",\"to\":");
            number(end - 1, body);
            body.push(b',');
        }
        result(&results[at], body);
        body.push(b'}');
        at = end;
        written += 1;
        if written % limits::LOOP_ITEMS_MAX == 0 {
            glommio::executor().yield_now().await;
        }
    }
    body.extend_from_slice(b"]}");
}

/// One past the last of those from `at` on that are said together: neighbours in one partition, or failures for the same reason.
async fn end_of_range(results: &[Outcome], at: usize) -> usize {
    let mut end = at + 1;
    while end < results.len() && follows(&results[end - 1], &results[end]) {
        end += 1;
        if end.is_multiple_of(limits::LOOP_ITEMS_MAX) {
            glommio::executor().yield_now().await;
        }
    }
    end
}

fn follows(one: &Outcome, next: &Outcome) -> bool {
    match (one, next) {
        (Ok(one), Ok(next)) => {
            one.partition == next.partition
                && (one.offset + 1 == next.offset || (one.offset == -1 && next.offset == -1))
        }
        (Err(one), Err(next)) => one == next,
        _ => false,
    }
}

fn result(result: &Outcome, body: &mut Vec<u8>) {
    match result {
        Ok(Stored { partition, offset }) => {
            body.extend_from_slice(b"\"partition\":");
            number(*partition, body);
            body.extend_from_slice(b",\"offset\":");
            number(*offset, body);
        }
        Err(problem) => {
            body.extend_from_slice(b"\"code\":");
            number(problem.code.number, body);
            body.extend_from_slice(b",\"errmsg\":");
            body.extend_from_slice(serde_json::Value::from(&*problem.detail).to_string().as_bytes());
            body.extend_from_slice(if problem.code.retryable {
                b",\"retryable\":true"
            } else {
                b",\"retryable\":false"
            });
            if problem.code.number == codes::OUTCOME_UNKNOWN.number {
                body.extend_from_slice(b",\"outcome\":\"unknown\"");
            }
        }
    }
}

fn number(number: impl itoa::Integer, body: &mut Vec<u8>) {
    body.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

/// What a batch of which nothing was tried is told.
pub fn refused(problem: &Problem, stamp: &Stamp) -> Answered {
    Answered { reply: problem.reply(stamp), code: Some(problem.code) }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::proto::Body;

    fn said(results: &[Outcome], in_ranges: bool) -> (u16, Value) {
        let stored = results.iter().filter(|result| result.is_ok()).count();
        let manner = Manner { in_ranges, is_queued: false, is_volatile: false };
        let answered = futures_lite::future::block_on(answer(results, stored, manner, &Stamp::default()));
        let Body::Bytes(body) = answered.reply.body else { panic!("an answer has a body") };
        (answered.reply.status, serde_json::from_slice(&body).expect("JSON"))
    }

    #[allow(clippy::unnecessary_wraps)] // As results are.
    fn at(partition: i32, offset: i64) -> Outcome {
        Ok(Stored { partition, offset })
    }

    fn bad() -> Outcome {
        Err(Box::new(Problem::new(&codes::MESSAGE_TOO_LARGE, "a \"message\"")))
    }

    #[test]
    fn results_stand_in_order() {
        let (status, body) = said(&[at(3, 7), bad(), at(0, 1)], false);
        let failed = json!({"code": 41301, "errmsg": "a \"message\"", "retryable": false});
        let results = json!([{"partition": 3, "offset": 7}, failed, {"partition": 0, "offset": 1}]);
        assert_eq!((status, body), (207, json!({"ok": 2, "results": results})));
        assert_eq!(said(&[at(3, 7)], false), (201, json!({"ok": 1, "results": [{"partition": 3, "offset": 7}]})));
    }

    #[test]
    fn none_stored_is_the_first_ones_problem() {
        let (status, body) = said(&[bad(), bad()], true);
        assert_eq!((status, &body["code"], &body["ok"]), (413, &json!(41301), &json!(0)));
        let failed = json!({"from": 0, "to": 1, "code": 41301, "errmsg": "a \"message\"", "retryable": false});
        assert_eq!(body["results"], json!([failed]));
    }

    #[test]
    fn what_may_be_stored_is_no_refusal() {
        let unknown = || Err(Box::new(Problem::new(&codes::OUTCOME_UNKNOWN, "who knows")));
        for results in [[bad(), unknown()], [unknown(), bad()]] {
            let (status, body) = said(&results, false);
            assert_eq!((status, &body["code"]), (504, &json!(codes::OUTCOME_UNKNOWN.number)));
            assert_eq!(body["results"].as_array().map(Vec::len), Some(2));
        }
        assert_eq!(said(&[bad(), unknown(), at(0, 1)], false).0, 207);
    }

    #[test]
    fn neighbours_are_said_together() {
        let results = [at(0, 5), at(0, 6), at(1, 7), at(1, 9), bad(), bad(), at(2, -1), at(2, -1)];
        let (_, body) = said(&results, true);
        let ranges: Vec<_> =
            body["results"].as_array().expect("a list").iter().map(|r| (&r["from"], &r["to"])).collect();
        let expected = [(0, 1), (2, 2), (3, 3), (4, 5), (6, 7)].map(|(from, to)| (json!(from), json!(to)));
        assert_eq!(ranges, expected.iter().map(|(from, to)| (from, to)).collect::<Vec<_>>());
        assert_eq!(body["results"][0]["offset"], 5);
    }
}
