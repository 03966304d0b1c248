//! The checks requests share: in-flight bound, names, identity. Their order is the handler's (`Publish::plan`, `Subscribe::plan`).
//!
//! Tenancy is open in this version: any valid `Appid` is taken, a missing one is `default`.

use std::rc::Rc;

use super::{codes, context::Context, reply::Problem};
use crate::{proto::Head, registry::names};

/// The tenant of a request without `Appid`.
pub const DEFAULT_APPID: &str = "default";

/// One publish in flight; counted until dropped.
#[derive(Debug)]
pub struct Inflight(Rc<Context>);

impl Inflight {
    pub fn admit(ctx: &Rc<Context>) -> Result<Self, Problem> {
        let inflight = ctx.metrics.cells.inflight.get();
        if inflight >= ctx.config.borrow().publish.inflight_max as u64 {
            let detail = format!("{inflight} publishes are in flight on this core");
            return Err(Problem::new(&codes::TOO_MANY_INFLIGHT, detail));
        }
        ctx.metrics.cells.inflight.add(1);
        Ok(Self(Rc::clone(ctx)))
    }
}

impl Drop for Inflight {
    fn drop(&mut self) {
        self.0.metrics.cells.inflight.sub(1);
    }
}

/// The tenant the request speaks for.
pub fn appid<'a>(head: &Head<'a>) -> Result<&'a str, Problem> {
    match head.field("appid") {
        None => Ok(DEFAULT_APPID),
        Some(text) => name("Appid", text),
    }
}

/// A checked `appid`, `topic` or `group`.
pub fn name<'a>(what: &'static str, text: &'a [u8]) -> Result<&'a str, Problem> {
    if names::is_name(text)
        && let Ok(text) = std::str::from_utf8(text)
    {
        return Ok(text);
    }
    Err(Problem::new(&codes::INVALID_NAME, format!("{what} is not [A-Za-z0-9_-]{{1,64}}")))
}

/// A checked topic and version.
pub fn topic_names<'a>(topic: &'a [u8], ver: &'a [u8]) -> Result<(&'a str, &'a str), Problem> {
    let topic = name("topic", topic)?;
    if names::is_ver(ver)
        && let Ok(ver) = std::str::from_utf8(ver)
    {
        return Ok((topic, ver));
    }
    Err(Problem::new(&codes::INVALID_NAME, "ver is not v[0-9]{1,4}"))
}
