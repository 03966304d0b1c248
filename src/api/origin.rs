//! Pages: of which origins a browser may use this gateway (`http.origins`).
//!
//! A browser sends `Origin` (RFC 6454) with what a page asks for and lets no page forge it; what comes without it is no page. Other
//! clients can say what they like: this protects people with browsers, not the gateway.

use super::{codes, context::Context, cors::is_allowed, reply::Problem};
use crate::proto::{Head, ws::handshake::is_same_host};

/// Refuses what a page of another origin asks for.
pub fn check(ctx: &Context, head: &Head<'_>) -> Result<(), Problem> {
    let mut origins = head.fields_named("origin");
    let Some(origin) = origins.next() else { return Ok(()) };
    let is_ours = is_allowed(&ctx.config.borrow().http.origins, origin)
        || head.field("host").is_some_and(|host| is_same_host(origin, host));
    if is_ours && origins.next().is_none() {
        return Ok(());
    }
    Err(Problem::new(&codes::ORIGIN_REFUSED, "pages of this origin may not use this gateway"))
}
