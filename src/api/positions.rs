//! Where a group stands: moving it, forgetting it, and looking into a topic without one.
//!
//! `PUT /v1/offset/:appid/:topic/:ver/:group/:partition?offset=N`, `PUT /v1/offset/..?time=`, `DELETE /v1/groups/..`,
//! `GET /v1/peek/..`. Offsets here are the next to read. A group that is read is moved by its owners, which drop its leases; one that
//! nobody reads is moved in Kafka's own list of commits.

use std::{
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::json;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::{
    bury,
    call::{self, Answer},
    codes,
    context::Context,
    format::{Format, Writer},
    frame::{Done, GroupKey, Op},
    home,
    query::{self, Query, invalid},
    reply::{self, Problem},
};
use crate::{
    limits,
    proto::Head,
    store::{Acked, AdminError, At, Offset, Partition, Store, Topic},
};

/// How long a group whose readers have just gone may take to be empty.
const EMPTY_WITHIN: Duration = Duration::from_secs(5);
/// Between two looks whether it is.
const EMPTY_STEP: Duration = Duration::from_millis(200);

/// Moves a group.
#[derive(Debug)]
pub struct Move {
    pub key: GroupKey,
    to: To,
}

#[derive(Clone, Copy, Debug)]
enum To {
    Offset(Partition, Offset),
    /// Every partition.
    Place(At),
}

impl Move {
    pub fn plan(
        head: &Head<'_>,
        reader: &str,
        parts: [&[u8]; 3],
        group: &[u8],
        partition: Option<&[u8]>,
    ) -> Result<Self, Problem> {
        let (topic, group_id) = (call::topic(parts)?, call::group_id(reader, group)?);
        let allowed: &[&str] = if partition.is_some() { &["offset", "q"] } else { &["time", "q"] };
        let query = Query::parse(head.query, allowed)?;
        let to = if let Some(text) = partition {
            let number = std::str::from_utf8(text).ok().and_then(|text| text.parse().ok()).filter(|p| *p >= 0);
            let partition = number.ok_or_else(|| invalid("partition", text, "a partition number"))?;
            let offset =
                query.number("offset", 0..=999_999_999_999_999_999)?.ok_or_else(|| query::missing("offset"))?;
            To::Offset(partition, offset)
        } else {
            To::Place(place(query.required("time")?)?)
        };
        Ok(Self { key: call::key(topic, group_id, call::queue(&query)?), to })
    }

    pub async fn run(self, ctx: &Rc<Context>) -> Result<Answer, Problem> {
        let data = ctx.plane()?;
        let topic = bury::shadow_or_topic(ctx, &self.key.topic).await?;
        let moves = match self.to {
            To::Place(at) => data.backend.offsets_at(&topic, at).await.map_err(reply::admin_failed)?,
            To::Offset(partition, offset) => {
                let (oldest, latest) = ends(ctx, &topic, partition).await?;
                if !(oldest..=latest).contains(&offset) {
                    let expected = format!("within the log, which goes from {oldest} to {latest}");
                    return Err(invalid("offset", offset.to_string().as_bytes(), &expected));
                }
                vec![(partition, offset)]
            }
        };
        let moved = home::each(ctx, &self.key, Op::Move(moves.clone())).await?;
        if moved.iter().any(|moved| *moved != Acked::Done) {
            return Err(Problem::new(
                &codes::PEER_UNREACHABLE,
                "the group is being shared out anew; nothing says who owns the partition",
            ));
        }
        let offsets: serde_json::Map<_, _> =
            moves.iter().map(|(partition, offset)| (partition.to_string(), json!(offset))).collect();
        Ok(Answer::json(200, &json!({ "ok": 1, "offsets": offsets })))
    }
}

async fn ends(ctx: &Rc<Context>, topic: &Topic, partition: Partition) -> Result<(Offset, Offset), Problem> {
    let data = ctx.plane()?;
    check_partition(topic, partition)?;
    let marks = data.backend.watermarks(topic).await.map_err(reply::admin_failed)?;
    let mark = marks.iter().find(|mark| mark.partition == partition);
    let mark = mark.ok_or_else(no_leader)?;
    Ok((mark.oldest, mark.latest))
}

fn check_partition(topic: &Topic, partition: Partition) -> Result<(), Problem> {
    let count = topic.partitions.get();
    if (0..count).contains(&partition) {
        return Ok(());
    }
    Err(Problem::new(&codes::PARTITION_OUT_OF_RANGE, format!("the topic has {count} partitions")))
}

fn no_leader() -> Problem {
    Problem::new(&codes::UNAVAILABLE, "the partition has no leader")
}

fn place(text: &[u8]) -> Result<At, Problem> {
    let wrong = || invalid("time", text, "RFC 3339, Unix ms, oldest or newest");
    match text {
        b"oldest" => return Ok(At::Oldest),
        b"newest" => return Ok(At::Newest),
        _ => {}
    }
    let decoded = query::percent_decode(text).ok_or_else(wrong)?;
    let text = std::str::from_utf8(&decoded).map_err(|_| wrong())?;
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        return text.parse().map(At::TimeMs).map_err(|_| wrong());
    }
    let time = OffsetDateTime::parse(text, &Rfc3339).map_err(|_| wrong())?;
    let ms = i64::try_from(time.unix_timestamp_nanos() / 1_000_000).map_err(|_| wrong())?;
    if ms < 0 { Err(wrong()) } else { Ok(At::TimeMs(ms)) }
}

/// Forgets a group's offsets in a topic.
#[derive(Debug)]
pub struct Forget {
    pub key: GroupKey,
}

impl Forget {
    pub fn plan(head: &Head<'_>, reader: &str, parts: [&[u8]; 3], group: &[u8]) -> Result<Self, Problem> {
        let (topic, group_id) = (call::topic(parts)?, call::group_id(reader, group)?);
        let query = Query::parse(head.query, &["q"])?;
        Ok(Self { key: call::key(topic, group_id, call::queue(&query)?) })
    }

    pub async fn run(self, ctx: &Rc<Context>) -> Result<Answer, Problem> {
        let data = ctx.plane()?;
        let topic = bury::shadow_or_topic(ctx, &self.key.topic).await?;
        // Gateways stay members for a while after their last client; that is no reader.
        let Done::Released { has_readers } = home::ask(ctx, &self.key, Op::Release, false).await? else {
            return Err(Problem::new(&codes::INTERNAL, "a release was answered with something else"));
        };
        if has_readers {
            return Err(Problem::new(&codes::GROUP_IN_USE, "the group has readers"));
        }
        let by = Instant::now() + EMPTY_WITHIN;
        loop {
            match data.backend.delete_committed(&topic, &self.key.group_id).await {
                Ok(()) => return Ok(Answer::ok(200)),
                Err(AdminError::InUse) if Instant::now() < by => glommio::timer::sleep(EMPTY_STEP).await,
                Err(error) => return Err(reply::admin_failed(error)),
            }
        }
    }
}

/// Looks into a topic.
#[derive(Debug)]
pub struct Peek {
    /// No group: only where it runs.
    pub key: GroupKey,
    messages_max: usize,
    partition: Option<Partition>,
    offset: Option<Offset>,
}

impl Peek {
    pub fn plan(head: &Head<'_>, parts: [&[u8]; 3]) -> Result<Self, Problem> {
        let topic = call::topic(parts)?;
        let query = Query::parse(head.query, &["n", "partition", "offset"])?;
        let peek_max = i64::try_from(limits::PEEK_MESSAGES_MAX).unwrap_or(i64::MAX);
        let count = query.number("n", 1..=peek_max)?.unwrap_or(1);
        let partition = query.number("partition", 0..=i64::from(i32::MAX))?.and_then(|p| i32::try_from(p).ok());
        let offset = query.number("offset", 0..=999_999_999_999_999_999)?;
        let key = call::key(topic, Arc::default(), None);
        Ok(Self { key, messages_max: usize::try_from(count).unwrap_or(1), partition, offset })
    }

    /// From `offset` on, or else the newest.
    pub async fn run(self, ctx: &Rc<Context>) -> Result<Answer, Problem> {
        let data = ctx.plane()?;
        let topic = ctx.find_topic(&self.key.topic, false).await?;
        if let Some(partition) = self.partition {
            check_partition(&topic, partition)?;
        }
        let marks = data.backend.watermarks(&topic).await.map_err(reply::admin_failed)?;
        if self.partition.is_some_and(|partition| marks.iter().all(|mark| mark.partition != partition)) {
            return Err(no_leader());
        }
        let wanted = marks.iter().filter(|mark| self.partition.is_none_or(|partition| partition == mark.partition));
        let back = Offset::try_from(self.messages_max).unwrap_or(Offset::MAX);
        let from: Vec<(Partition, Offset)> = wanted
            // Not clamp: of a topic made again between the two questions the oldest may be over the latest.
            .map(|mark| (mark.partition, self.offset.unwrap_or(mark.latest - back).min(mark.latest).max(mark.oldest)))
            .collect();
        let found = data.backend.peek(&topic, &from, self.messages_max, limits::BATCH_BYTES_MAX).await;
        let (mut body, mut writer) = (Vec::new(), Writer::new(Format::Ndjson));
        for message in found.map_err(reply::admin_failed)? {
            writer.message(&message, 1, &mut body);
        }
        Ok(Answer::new(200, Format::Ndjson.content_type(), body))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_rfc_3339_or_unix_ms() {
        let ms = |text: &[u8]| match place(text) {
            Ok(At::TimeMs(ms)) => Some(ms),
            _ => None,
        };
        assert_eq!(ms(b"1767225600000"), Some(1_767_225_600_000));
        assert_eq!(ms(b"2026-01-01T00:00:00Z"), Some(1_767_225_600_000));
        assert_eq!(ms(b"2026-01-01T01:00:00.5%2B01:00"), Some(1_767_225_600_500));
        for bad in [&b""[..], b"yesterday", b"-1", b"2026-01-01", b"1969-12-31T23:59:59Z", b"%zz"] {
            assert!(place(bad).is_err(), "{bad:?}");
        }
        assert!(matches!(place(b"oldest"), Ok(At::Oldest)));
    }
}
