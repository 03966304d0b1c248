//! RFC 9457 problem documents, checked to the last field.
//!
//! Every refusal of the gateway has one shape; clients of fifteen years match on it. So no test looks at a status
//! alone: [`check`] holds the whole document against the contract and against the response that carries it.

use serde_json::Value;

use crate::client::Response;

/// The parts of a problem a test may want to look at further.
#[derive(Debug, Clone)]
pub struct Problem {
    pub code: u64,
    pub slug: String,
    pub detail: String,
    pub document: Value,
}

/// Panics unless `response` is a problem of `status`, complete and consistent.
#[track_caller]
pub fn check(response: &Response, status: u16) -> Problem {
    let text = response.text();
    assert_eq!(response.status, status, "{text}");
    assert_eq!(response.header("content-type"), Some("application/problem+json"), "{text}");
    let problem = check_document(response.json(), status);
    assert_eq!(problem.document["request_id"].as_str(), response.header("x-request-id"), "{text}");
    if [429, 503, 504].contains(&status) {
        let seconds = response.header("retry-after").and_then(|v| v.parse::<u32>().ok());
        assert!(seconds.is_some(), "{status} says when to come back, in whole seconds: {:?}", response.headers);
    }
    if status == 405 {
        assert!(response.header("allow").is_some_and(|allow| !allow.is_empty()), "405 names what is allowed");
    }
    problem
}

/// The document alone, as a stream says it.
#[track_caller]
pub fn check_document(document: Value, status: u16) -> Problem {
    let text = document.to_string();
    let field = |name: &str| document.get(name).unwrap_or_else(|| panic!("`{name}` is missing in {text}")).clone();
    let string = |name: &str| field(name).as_str().unwrap_or_else(|| panic!("`{name}` is text in {text}")).to_owned();

    assert_eq!(field("status"), status, "{text}");
    let code = field("code").as_u64().unwrap_or_else(|| panic!("`code` is a number in {text}"));
    assert_eq!(code / 100, u64::from(status), "code / 100 is the status: {text}");
    let kind = string("type");
    let slug = kind.strip_prefix("urn:kateway:error:").unwrap_or_else(|| panic!("`type` is ours in {text}")).to_owned();
    let slug_bytes_valid = slug.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    assert!(!slug.is_empty() && slug_bytes_valid, "{slug:?} is a slug");
    assert!(!string("title").is_empty(), "{text}");
    let detail = string("detail");
    assert_eq!(string("errmsg"), detail, "errmsg repeats detail for old clients: {text}");
    assert!(field("retryable").is_boolean(), "{text}");
    let _ = string("instance");
    let _ = string("request_id");
    Problem { code, slug, detail, document }
}
