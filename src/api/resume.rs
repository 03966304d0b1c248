//! `Last-Event-ID`: an event stream that goes on after the last event its client had.
//!
//! With `ack=1` the cursor acknowledges what the client had; the rest of its lease comes again when that ends. In auto mode messages are
//! acknowledged when the connection took them, so those that were lost with it are behind the group's offset: the group goes back to
//! the cursor, unless somebody else reads it, who would get again what he had.

use std::{
    collections::HashMap,
    rc::Rc,
    time::{Duration, Instant},
};

use super::{
    ack, codes,
    context::Context,
    frame::{AckAt, GroupKey, Op},
    home, owners, readers,
    reply::{self, Problem},
};
use crate::store::{Offset, Partition, Store, Topic};

/// The connection that broke may still be the group's reader for a moment.
const ALONE_WITHIN: Duration = Duration::from_secs(2);
const ALONE_STEP: Duration = Duration::from_millis(50);

/// Takes the group to the cursor: the offset the client is to read next, by partition.
pub async fn resume(
    ctx: &Rc<Context>,
    key: &GroupKey,
    topic: &Topic,
    cursor: Vec<(Partition, Offset)>,
    is_explicit: bool,
) -> Result<(), Problem> {
    let cursor = cursor.into_iter().filter(|(partition, _)| *partition < topic.partitions.get());
    if is_explicit {
        let had = cursor.filter(|(_, next)| *next > 0);
        let items = had.map(|(partition, next)| AckAt { partition, offset: next - 1, extend: None }).collect();
        return match ack::acknowledge(ctx, key, items).await {
            // What no lease holds any more comes again.
            Err(problem) if *problem.code == codes::LEASE_LOST => Ok(()),
            done => done,
        };
    }
    let by = Instant::now() + ALONE_WITHIN;
    let known = loop {
        let members = owners::look(ctx, key, owners::TRUSTED).await?;
        let known = readers::known(ctx, key, &members).await?;
        if known.iter().all(|reader| reader.waiting == 0 && reader.leased == 0) {
            break known;
        }
        if Instant::now() > by {
            return Ok(());
        }
        glommio::timer::sleep(ALONE_STEP).await;
    };
    let data = ctx.plane()?;
    let mut ends: HashMap<Partition, Offset> = known.iter().map(|reader| (reader.partition, reader.end)).collect();
    let cursor: Vec<_> = cursor.collect();
    // Asking Kafka takes a client of its own: only for what no gateway knows.
    if cursor.iter().any(|(partition, _)| !ends.contains_key(partition)) {
        let committed = data.backend.committed(topic, &key.group_id).await.map_err(reply::admin_failed)?;
        for (partition, end) in committed {
            ends.entry(partition).or_insert(end);
        }
    }
    let is_behind = |(partition, next): &(Partition, Offset)| ends.get(partition).is_some_and(|end| next < end);
    let back: Vec<_> = cursor.into_iter().filter(is_behind).collect();
    if !back.is_empty() {
        home::ask(ctx, key, Op::Move(back), false).await?;
    }
    Ok(())
}
