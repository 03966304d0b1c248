//! What a page of another origin may do: CORS (the Fetch standard, section 3.2), and OPTIONS.
//!
//! Only origins that `http.origins` names get CORS fields. A preflight of any other is 403; its actual requests are answered as
//! everybody's, without a field by which a browser would show the page the answer. Nothing here is a right: identity is checked as ever,
//! and cookies play no part, so credentials are never allowed. The methods of a route are those its own refusal names.

use smallvec::SmallVec;

use super::{
    codes,
    context::Context,
    reply::{Problem, Stamp},
};
use crate::proto::{Head, Reply};

/// How long a browser may remember a preflight.
const MAX_AGE_S: i64 = 600;

/// The fields a page may send, besides `X-Header-*`. Lower-case.
const REQUEST_FIELDS: &[&str] = &[
    "accept",
    "appid",
    "authorization",
    "content-encoding",
    "content-type",
    "idempotency-key",
    "last-event-id",
    "pubkey",
    "subkey",
    "traceparent",
    "tracestate",
    "x-bury",
    "x-offset",
    "x-partition",
    "x-request-id",
    "x-tag",
    "x-tag-expr",
    "x-trace",
];
const RECORD_HEADER: &[u8] = b"x-header-";

/// What a browser shows of an answer in any case.
const SAFE_FIELDS: &[&str] =
    &["cache-control", "content-language", "content-length", "content-type", "expires", "last-modified", "pragma"];

/// What an answer says because of the request's origin, where any is configured.
#[derive(Debug)]
pub struct Origin {
    /// The origin, if it is allowed.
    allowed: Option<Box<[u8]>>,
}

/// A request for the options of a route.
#[derive(Debug)]
pub struct Options {
    /// `GET, PUT`.
    methods: &'static str,
    /// For a preflight: the fields that may be sent.
    fields: Option<SmallVec<[u8; 64]>>,
}

// === impl Origin ===

impl Origin {
    /// `None` where no origin is configured: CORS is off, and answers say nothing of it.
    pub fn of(ctx: &Context, head: &Head<'_>) -> Option<Self> {
        let config = ctx.config.borrow();
        let origins = &config.http.origins;
        if origins.is_empty() {
            return None;
        }
        let origin = head.field("origin").filter(|origin| is_allowed(origins, origin));
        Some(Self { allowed: origin.map(Into::into) })
    }

    /// The fields of an actual answer: who may see it, and what of it.
    pub fn add_to(&self, reply: &mut Reply) {
        // Caches keep an answer for one origin from another's.
        reply.add_field("Vary", b"Origin");
        let Some(origin) = &self.allowed else { return };
        let mut exposed: SmallVec<[u8; 256]> = SmallVec::new();
        for (name, _) in reply.fields() {
            let is_safe = SAFE_FIELDS.iter().any(|safe| name.eq_ignore_ascii_case(safe.as_bytes()));
            if !is_safe && !name.starts_with(b"Access-Control-") && !name.eq_ignore_ascii_case(b"vary") {
                if !exposed.is_empty() {
                    exposed.extend_from_slice(b", ");
                }
                exposed.extend_from_slice(name);
            }
        }
        reply.add_field("Access-Control-Allow-Origin", origin);
        if !exposed.is_empty() {
            reply.add_field("Access-Control-Expose-Headers", &exposed);
        }
    }
}

/// Whether the list names the origin, as browsers write it: scheme, host, and port unless it is the scheme's own.
pub fn is_allowed(origins: &[String], origin: &[u8]) -> bool {
    let is_text = !origin.is_empty() && origin.iter().all(|byte| (0x21..=0x7e).contains(byte));
    is_text && origins.iter().any(|known| known == "*" || origin.eq_ignore_ascii_case(known.as_bytes()))
}

// === impl Options ===

impl Options {
    /// `methods`: those of the route.
    pub fn plan(ctx: &Context, head: &Head<'_>, methods: &'static str) -> Result<Self, Problem> {
        let is_preflight = head.field("access-control-request-method").is_some();
        let Some(origin) = head.field("origin").filter(|_| is_preflight) else {
            return Ok(Self { methods, fields: None });
        };
        if !is_allowed(&ctx.config.borrow().http.origins, origin) {
            return Err(Problem::new(&codes::ORIGIN_REFUSED, "http.origins does not name this origin"));
        }
        let asked = head.field("access-control-request-headers").unwrap_or_default();
        let mut fields = SmallVec::new();
        for name in asked.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
            let is_known = REQUEST_FIELDS.iter().any(|known| name.eq_ignore_ascii_case(known.as_bytes()));
            let is_record =
                name.get(..RECORD_HEADER.len()).is_some_and(|start| start.eq_ignore_ascii_case(RECORD_HEADER));
            if is_known || is_record {
                if !fields.is_empty() {
                    fields.extend_from_slice(b", ");
                }
                fields.extend_from_slice(name);
            }
        }
        Ok(Self { methods, fields: Some(fields) })
    }

    /// 204; the origin's own fields are [`Origin::add_to`]'s.
    pub fn run(self, stamp: &Stamp) -> Reply {
        let allow = [self.methods, ", OPTIONS"].concat();
        let mut reply = Reply::new(204).field("X-Request-Id", &stamp.request_id).field("Allow", allow.as_bytes());
        let Some(fields) = self.fields else { return reply };
        reply.add_field("Access-Control-Allow-Methods", self.methods.as_bytes());
        if !fields.is_empty() {
            reply.add_field("Access-Control-Allow-Headers", &fields);
        }
        reply.add_field("Vary", b"Access-Control-Request-Headers");
        reply.number("Access-Control-Max-Age", MAX_AGE_S)
    }
}

#[cfg(test)]
mod tests {
    use super::{is_allowed as allows, *};

    #[test]
    fn origins_are_compared_whole() {
        let origins = ["https://app.example.org".to_owned(), "http://localhost:8080".to_owned()];
        let is_allowed = |origin: &str| allows(&origins, origin.as_bytes());
        assert!(is_allowed("https://app.example.org") && is_allowed("http://localhost:8080"));
        for other in [
            "",
            "null",
            "*",
            "https://app.example.org:444",
            "https://app.example.org.evil",
            "http://app.example.org",
            "https://app.example.or",
        ] {
            assert!(!is_allowed(other), "{other}");
        }
        let any = ["*".to_owned()];
        assert!(allows(&any, b"null") && allows(&any, b"https://x"));
        assert!(!allows(&any, b"a\r\nb") && !allows(&any, b""));
    }

    #[test]
    fn what_is_not_safe_is_exposed() {
        let origin = Origin { allowed: Some((*b"https://a").into()) };
        let mut reply = Reply::new(200).number("X-Offset", 1).field("X-Header-a", b"aGk=").body("text/plain", "x");
        origin.add_to(&mut reply);
        let fields: Vec<_> = reply.fields().map(|(name, value)| (name.to_vec(), value.to_vec())).collect();
        let field = |name: &str| fields.iter().find(|(n, _)| n == name.as_bytes()).map(|(_, value)| &value[..]);
        assert_eq!(field("Access-Control-Expose-Headers"), Some(&b"X-Offset, X-Header-a"[..]));
        assert_eq!(field("Access-Control-Allow-Origin"), Some(&b"https://a"[..]));
        assert_eq!(field("Vary"), Some(&b"Origin"[..]));
    }
}
