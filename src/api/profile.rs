//! `GET /debug/profile?shard=&seconds=`: where one core's CPU time goes, as folded stacks or as a picture.
//!
//! The core is not asked, so one that is caught in a loop can be looked at too. The wait and the naming of addresses are the
//! offload pool's. Served where management is; who may ask is to be checked with the other admin routes once tenancy is built.

use std::{rc::Rc, time::Duration};

use super::{
    codes,
    context::Context,
    query::Query,
    reply::{Problem, Stamp},
};
use crate::{
    profile::{self, ProfileError, svg},
    proto::{Head, Reply},
};

const PARAMETERS: &[&str] = &["shard", "seconds", "format"];
const SECONDS_DEFAULT: i64 = 10;
const SECONDS_MAX: i64 = 30;

/// A profile that was asked for.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    shard: usize,
    seconds: u32,
    is_drawn: bool,
}

impl Asked {
    pub fn plan(ctx: &Context, head: &Head<'_>) -> Result<Self, Problem> {
        let query = Query::parse(head.query, PARAMETERS)?;
        let shard = query.number("shard", 0..=i64::from(u16::MAX))?.ok_or_else(|| super::query::missing("shard"))?;
        let seconds = query.number("seconds", 1..=SECONDS_MAX)?.unwrap_or(SECONDS_DEFAULT);
        let is_drawn = match query.get("format") {
            None => head.field("accept").is_some_and(|accept| accept.starts_with(b"image/svg+xml")),
            Some(b"svg") => true,
            Some(b"folded") => false,
            Some(other) => return Err(super::query::invalid("format", other, "folded or svg")),
        };
        let shard = usize::try_from(shard).unwrap_or(usize::MAX);
        if shard >= ctx.threads.len() {
            let detail = format!("the cores of this gateway are 0 to {}", ctx.threads.len() - 1);
            return Err(Problem::new(&codes::UNKNOWN_SHARD, detail));
        }
        Ok(Self { shard, seconds: u32::try_from(seconds).unwrap_or(1), is_drawn })
    }

    pub async fn run(self, ctx: &Rc<Context>, stamp: &Stamp) -> Result<Reply, Problem> {
        let Self { shard, seconds, is_drawn } = self;
        let thread = *ctx.threads[shard].get().ok_or_else(|| Problem::new(&codes::STARTING, "the core is starting"))?;
        let root = format!("shard-{shard}");
        let made = move || {
            let profile = profile::record(&thread, Duration::from_secs(u64::from(seconds)))?;
            let text = if is_drawn { svg::draw(&profile, &root) } else { profile.folded(&root) };
            Ok::<_, ProfileError>((profile, text))
        };
        let (profile, text) = match ctx.offload.run(made).await {
            Ok(Ok(made)) => made,
            Ok(Err(ProfileError::Busy)) => {
                let mut busy = Problem::new(&codes::PROFILE_RUNNING, "one profile at a time, and one is being made");
                busy.retry_after_s = Some(seconds);
                return Err(busy);
            }
            Ok(Err(ProfileError::Host(error))) => {
                return Err(Problem::new(&codes::INTERNAL, format!("the core's thread cannot be watched: {error}")));
            }
            Err(error) => return Err(Problem::new(&codes::CORE_BUSY, format!("offload pool: {error:?}"))),
        };
        let number = |n: u128| i64::try_from(n).unwrap_or(i64::MAX);
        let content_type = if is_drawn { "image/svg+xml" } else { "text/plain; charset=utf-8" };
        Ok(Reply::new(200)
            .field("X-Request-Id", &stamp.request_id)
            .number("X-Profile-Samples", number(profile.samples.into()))
            .number("X-Profile-Lost", number(profile.lost.into()))
            .number("X-Profile-Cpu-Ms", number(profile.cpu.as_millis()))
            .body(content_type, text))
    }
}
