//! The table of error codes: one cause, one code; code / 100 is the HTTP status.
//!
//! `config/error-codes.md` is generated from this table (`kateway check --codes`), so the published list cannot drift. Numbers
//! are never reused for another cause.

/// One row of the table.
#[derive(Debug, PartialEq, Eq)]
pub struct Code {
    pub number: u32,
    /// Last part of `urn:kateway:error:<slug>`.
    pub slug: &'static str,
    pub title: &'static str,
    /// Sending the same request again later can succeed.
    pub retryable: bool,
    /// What to do about it, for the published list.
    pub advice: &'static str,
    /// Position in [`TABLE`]; the metrics count by it.
    pub index: usize,
}

impl Code {
    #[allow(clippy::cast_possible_truncation)] // The macro asserts the range.
    pub const fn status(&self) -> u16 {
        (self.number / 100) as u16
    }
}

macro_rules! codes {
    ($($name:ident $number:literal $slug:literal $title:literal $retryable:literal $advice:literal)+) => {
        #[allow(non_camel_case_types, clippy::upper_case_acronyms)] // Only counts the rows.
        enum Index { $($name),+ }
        $(
            pub static $name: Code = Code {
                number: $number, slug: $slug, title: $title, retryable: $retryable, advice: $advice,
                index: Index::$name as usize,
            };
            const _: () = assert!($number >= 40_000 && $number < 60_000);
        )+
        /// Every code, in order of its number.
        pub static TABLE: &[&Code] = &[$(&$name),+];
    };
}

codes! {
    MALFORMED 40000 "malformed-request" "Malformed request" false "The bytes are not HTTP as RFC 9112 has it; the connection is closed."
    INVALID_NAME 40001 "invalid-name" "Invalid name" false "`appid`, `topic` and `group` are [A-Za-z0-9_-]{1,64}, `ver` is v[0-9]{1,4}."
    INVALID_PARAMETER 40002 "invalid-parameter" "Invalid parameter" false "The value of a query parameter is not of its form; the detail names it."
    UNKNOWN_PARAMETER 40003 "unknown-parameter" "Unknown parameter" false "The route has no such query parameter; check its spelling."
    DOUBLED_PARAMETER 40004 "doubled-parameter" "Doubled parameter" false "A query parameter is given twice."
    MISSING_PARAMETER 40005 "missing-parameter" "Missing parameter" false "A required query parameter is not given."
    EMPTY_MESSAGE 40006 "empty-message" "Empty message" false "A message has at least one byte."
    KEY_TOO_LONG 40007 "key-too-long" "Key too long" false "The partition key is over its limit."
    TAG_TOO_LONG 40008 "tag-too-long" "Tag too long" false "`X-Tag` is over its limit."
    PARTITION_OUT_OF_RANGE 40009 "partition-out-of-range" "Partition out of range" false "The topic has no such partition."
    INVALID_FIELD 40010 "invalid-field" "Invalid header field" false "The value of a request header is not of its form; the detail names it."
    NOT_SUPPORTED 40011 "not-supported" "Not supported" false "This version does not do that yet."
    TOPIC_NAME_TOO_LONG 40012 "topic-name-too-long" "Topic name too long" false "Kafka takes names of up to 249 characters."
    NO_SHADOW 40013 "shadow-not-registered" "No shadow queues" false "Create the group's shadow queues first: POST /v1/shadow/:appid/:topic/:ver/:group."
    INVALID_BODY 40014 "invalid-body" "Invalid body" false "The request body is not of its form; the detail says where."
    TOO_MANY_MESSAGES 40016 "too-many-messages" "Too many messages" false "The detail names the limit; send them in several batches."
    INVALID_CODING 40017 "invalid-content-coding" "Invalid content coding" false "The body is not what its Content-Encoding says, or is cut short."
    NOT_A_PEER 40300 "not-a-peer" "Not a gateway of this group" false "The route is for gateways with the same `gateway.peer_secret`."
    ORIGIN_REFUSED 40301 "origin-refused" "Origin not allowed" false "`http.origins` names the origins whose pages may call."
    UNKNOWN_PATH 40400 "unknown-path" "Unknown path" false "No such route on this listener."
    UNKNOWN_TOPIC 40401 "topic-not-found" "Topic not found" false "Create the topic first, or check appid, topic and version."
    UNKNOWN_SHARD 40402 "shard-not-found" "No such core" false "The detail says which cores there are."
    METHOD_NOT_ALLOWED 40500 "method-not-allowed" "Method not allowed" false "`Allow` names the methods."
    HEAD_TIMEOUT 40800 "head-timeout" "Request head timeout" true "The request head did not arrive in time."
    BODY_TIMEOUT 40801 "body-timeout" "Request body timeout" true "The request body did not arrive in time; nothing was stored."
    BODY_TOO_SLOW 40802 "body-too-slow" "Request body too slow" true "The request body came at less than `http.body_bytes_per_s_min`; nothing was stored."
    FILTER_CONFLICT 40900 "filter-conflict" "Another filter is in use" true "A group has one tag filter at a time."
    TOPIC_COLLIDES 40901 "topic-collides" "Topic name collides" false "Kafka takes `.` and `_` for the same in topic names."
    LEASE_LOST 40902 "lease-lost" "No lease holds the message" false "The lease ended, or the partition went to another member: the message comes again. Nothing was changed."
    OWNER_FOREIGN 40903 "owner-not-kateway" "Owned by another kind of member" true "A member of the group that is no kateway owns the partition; only Kafka's own protocol reaches it."
    GROUP_IN_USE 40904 "group-in-use" "The group has readers" true "Stop its readers first; a gateway leaves `sub.group_idle_s` after the last."
    IDEMPOTENCY_RUNNING 40905 "idempotency-key-running" "The first publish still runs" true "A publish with this Idempotency-Key has not finished; its answer is remembered for the repeat."
    MESSAGE_TOO_LARGE 41301 "message-too-large" "Message too large" false "The detail names the limit."
    BATCH_TOO_LARGE 41302 "batch-too-large" "Batch too large" false "The detail names the limit; send it in several batches."
    TARGET_TOO_LONG 41400 "target-too-long" "Request target too long" false "Path and query are over their limit."
    UNKNOWN_CODING 41500 "unsupported-content-coding" "Unsupported content coding" false "`Accept-Encoding` names the codings the route takes; send the message in one of them, or without."
    UNKNOWN_TYPE 41501 "unsupported-content-type" "Unsupported content type" false "The detail names the types the route takes."
    EXPECTATION_FAILED 41700 "expectation-failed" "Expectation failed" false "Only `100-continue` can be expected."
    IDEMPOTENCY_OTHER 42200 "idempotency-key-reused" "Idempotency-Key used for another message" false "A new message wants a new key; what counts is body, key, partition, headers and ack."
    UPGRADE_REQUIRED 42600 "upgrade-required" "Upgrade required" false "The route is a WebSocket: ask for it as RFC 6455 has it, in version 13."
    WEBSOCKET_NEEDS_HTTP1 42601 "websocket-needs-http1" "WebSocket needs HTTP/1.1" false "WebSockets are served on HTTP/1.1 only."
    TOO_MANY_INFLIGHT 42900 "too-many-in-flight" "Too many requests in flight" true "This core has as many publishes in flight as it takes; try again after Retry-After."
    TOO_MANY_READERS 42901 "too-many-readers" "Too many readers" true "As many clients read this group as it takes."
    TOO_MANY_GROUPS 42902 "too-many-groups" "Too many groups" true "The group's shard serves as many groups as it takes: its equal part of `sub.groups_max`."
    PROFILE_RUNNING 42903 "profile-running" "A profile is being made" true "One profile at a time; try again after Retry-After."
    HEAD_TOO_LARGE 43100 "head-too-large" "Request head too large" false "Request line and headers are over their limit."
    INTERNAL 50000 "internal" "Internal error" true "A defect of the gateway; the log has the request id."
    REFUSED_BY_BROKER 50200 "refused-by-broker" "Refused by the broker" false "The detail names Kafka's error."
    QUEUE_FULL 50300 "queue-full" "Producer queue full" true "Kafka takes less than is published; try again after Retry-After."
    NOT_STORED 50301 "not-stored" "Not stored" true "Kafka did not store the message, for sure; it may be sent again."
    UNAVAILABLE 50302 "cluster-unavailable" "Kafka cluster unavailable" true "No broker answered; try again after Retry-After."
    CONNECTION_LIMIT 50303 "connection-limit" "Too many connections" true "This core has as many connections as it takes."
    PEER_UNREACHABLE 50304 "peer-unreachable" "Owner unreachable" true "The gateway that owns the partition did not answer; another takes over within the session timeout."
    CORE_BUSY 50305 "core-busy" "Core busy" true "Another core of the gateway did not answer in time or has a full inbox."
    STARTING 50306 "not-ready" "Not ready" true "The gateway is starting, draining, or reaches no cluster."
    OUTCOME_UNKNOWN 50400 "outcome-unknown" "Outcome unknown" true "The message may have been stored; sending it again may duplicate it."
}

/// The code another gateway names. One of a newer build is an internal error here.
pub fn by_number(number: u32) -> &'static Code {
    TABLE.iter().find(|code| code.number == number).copied().unwrap_or(&INTERNAL)
}

/// The published list, as Markdown.
pub fn markdown() -> String {
    use std::fmt::Write;
    let mut out = String::from(
        "# Error codes\n\nGenerated from `src/api/codes.rs` by `kateway check --codes`; do not edit.\n\n\
         | code | status | type | title | retryable | advice |\n| --- | --- | --- | --- | --- | --- |\n",
    );
    for code in TABLE {
        // Writing to a String cannot fail.
        let _ = writeln!(
            out,
            "| {} | {} | `urn:kateway:error:{}` | {} | {} | {} |",
            code.number,
            code.status(),
            code.slug,
            code.title,
            if code.retryable { "yes" } else { "no" },
            code.advice
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::{TABLE, markdown};

    #[test]
    fn the_published_list_is_up_to_date() {
        let published = include_str!("../../config/error-codes.md");
        assert_eq!(published, markdown(), "write it anew with `make config`");
    }

    #[test]
    fn numbers_and_slugs_are_unique_and_sorted() {
        assert!(TABLE.windows(2).all(|pair| pair[0].number < pair[1].number));
        let mut slugs: Vec<_> = TABLE.iter().map(|c| c.slug).collect();
        slugs.sort_unstable();
        assert!(slugs.windows(2).all(|pair| pair[0] != pair[1]));
        assert!(TABLE.iter().enumerate().all(|(i, c)| c.index == i));
    }
}
