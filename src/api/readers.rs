//! Who reads a topic: `GET /v1/status/:appid/:topic/:ver` for a reader's own groups, `GET /v1/subd/:topic/:ver` for all of the owner's.
//!
//! A row per group and partition, from what Kafka has committed, what the group's members say, and what this gateway and the others
//! know of their clients. Groups that nobody reads are there too, as long as they have something committed. Made anew for each request;
//! how many groups one request looks at is bounded: those that are read come first, and the answer says how many are left out.

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap},
    rc::Rc,
    sync::Arc,
};

use futures_lite::future::try_zip;
use serde_json::{Value, json};

use super::{
    act,
    call::{self, Answer},
    context::Context,
    frame::{Done, GroupKey, Op, Reader},
    home, owners,
    owners::{Owner, Whereabouts},
    query::Query,
    reply::{self, Problem},
};
use crate::{
    limits,
    proto::Head,
    registry::names,
    store::{ListedGroup, Offset, Partition, Store, Topic, Watermarks},
};

/// Says how many groups an answer leaves out.
const OMITTED: &str = "X-Groups-Omitted";

/// A question who reads.
#[derive(Debug)]
pub struct Readers {
    /// The topic; the group only where one is asked for.
    pub key: GroupKey,
    /// The groups of this app only.
    reader: Option<String>,
}

impl Readers {
    /// A reader asks for its own groups, or one of them.
    pub fn of_reader(head: &Head<'_>, reader: &str, parts: [&[u8]; 3]) -> Result<Self, Problem> {
        let topic = call::topic(parts)?;
        let query = Query::parse(head.query, &["group"])?;
        let group_id = query.get("group").map(|group| call::group_id(reader, group)).transpose()?;
        Ok(Self { key: call::key(topic, group_id.unwrap_or_default(), None), reader: Some(reader.to_owned()) })
    }

    /// The owner asks for all.
    pub fn of_owner(head: &Head<'_>, owner: &str, topic: &[u8], ver: &[u8]) -> Result<Self, Problem> {
        let topic = call::topic([owner.as_bytes(), topic, ver])?;
        Query::parse(head.query, &[])?;
        Ok(Self { key: call::key(topic, Arc::default(), None), reader: None })
    }

    pub async fn run(self, ctx: &Rc<Context>) -> Result<Answer, Problem> {
        let data = ctx.plane()?;
        let _pass = data.statuses.enter(limits::STATUS_RUNNING_MAX).await;
        let topic = ctx.find_topic(&self.key.topic, false).await?;
        let marks = data.backend.watermarks(&topic).await.map_err(reply::admin_failed)?;
        let (groups, omitted) = if self.key.group_id.is_empty() {
            let listed = data.backend.list_groups(&topic.name).await.map_err(reply::admin_failed)?;
            choose(listed, self.reader.as_deref(), limits::STATUS_GROUPS_MAX)
        } else {
            (vec![self.key.group_id.to_string()], 0)
        };
        let mut answer = Answer::json(200, &Value::Array(rows_of_all(ctx, &topic, &marks, groups).await?));
        answer.field = (omitted > 0).then(|| (OMITTED, omitted.to_string()));
        Ok(answer)
    }
}

/// The groups that are looked at, of this reader or of all: those that read the topic, then the others. Besides, how many are left out.
fn choose(mut listed: Vec<ListedGroup>, reader: Option<&str>, groups_max: usize) -> (Vec<String>, usize) {
    listed.retain(|group| {
        let id = &group.group_id;
        id.contains('.') && reader.is_none_or(|reader| names::reader_of(id) == reader)
    });
    listed.sort_unstable_by(|a, b| b.is_read.cmp(&a.is_read).then_with(|| a.group_id.cmp(&b.group_id)));
    let omitted = listed.len().saturating_sub(groups_max);
    (listed.into_iter().take(groups_max).map(|group| group.group_id).collect(), omitted)
}

/// The rows of these groups, in their order. Three are asked about at a time: each waits for brokers, and takes one of the few threads
/// that do ([`limits::OFFLOAD_THREADS`]), of which one is left for rebalances.
async fn rows_of_all(
    ctx: &Rc<Context>,
    topic: &Topic,
    marks: &[Watermarks],
    groups: Vec<String>,
) -> Result<Vec<Value>, Problem> {
    let (waiting, found) = (RefCell::new(groups.into_iter().enumerate()), RefCell::new(BTreeMap::new()));
    let ask = async || {
        loop {
            let next = waiting.borrow_mut().next();
            let Some((place, group_id)) = next else { return Ok::<_, Problem>(()) };
            let rows = rows_of(ctx, topic, marks, &group_id).await?;
            found.borrow_mut().insert(place, rows);
        }
    };
    try_zip(ask(), try_zip(ask(), ask())).await?;
    Ok(found.into_inner().into_values().flatten().collect())
}

/// Who has a partition, as far as anybody says.
struct Seat {
    real_ip: Option<String>,
    shard: Option<usize>,
    gateway: String,
    end: Option<Offset>,
    delivered_s_ago: Option<u64>,
}

async fn rows_of(
    ctx: &Rc<Context>,
    topic: &Topic,
    marks: &[Watermarks],
    group_id: &str,
) -> Result<Vec<Value>, Problem> {
    let data = ctx.plane()?;
    let committed: HashMap<Partition, Offset> =
        data.backend.committed(topic, group_id).await.map_err(reply::admin_failed)?.into_iter().collect();
    let key = call::key(Arc::from(&*topic.name), Arc::from(group_id), None);
    let seats = seats(ctx, &key).await?;
    if committed.is_empty() && seats.is_empty() {
        return Ok(Vec::new());
    }
    let (appid, group) = group_id.split_once('.').unwrap_or((group_id, ""));
    let rows = marks.iter().filter_map(|mark| {
        let seat = seats.get(&mark.partition);
        let stands = seat.and_then(|seat| seat.end).or_else(|| committed.get(&mark.partition).copied());
        if stands.is_none() && seat.is_none() {
            return None;
        }
        Some(json!({
            "appid": appid,
            "group": group,
            "partition": mark.partition,
            "pold": mark.oldest,
            "pubd": mark.latest,
            "subd": stands,
            "lag": (mark.latest - stands.unwrap_or(mark.oldest)).max(0),
            "realip": seat.and_then(|seat| seat.real_ip.as_deref()),
            "shard": seat.and_then(|seat| seat.shard),
            "gateway": seat.map(|seat| &seat.gateway),
            "delivered_s_ago": seat.and_then(|seat| seat.delivered_s_ago),
            "state": if seat.is_some() { "online" } else { "offline" },
        }))
    });
    Ok(rows.collect())
}

async fn seats(ctx: &Rc<Context>, key: &GroupKey) -> Result<HashMap<Partition, Seat>, Problem> {
    let mut seats = HashMap::new();
    let members = owners::look(ctx, key, owners::TRUSTED).await?;
    for (owner, member) in &members.members {
        let is_gateway = !matches!(owner, Owner::Stranger(_));
        for partition in &member.partitions {
            let seat = Seat {
                // Of a gateway's readers only the gateway knows the address.
                real_ip: (!is_gateway).then(|| member.host.trim_start_matches('/').to_owned()),
                shard: None,
                gateway: member.client_id.clone(),
                end: None,
                delivered_s_ago: None,
            };
            seats.insert(*partition, seat);
        }
    }
    for reader in known(ctx, key, &members).await? {
        seats.insert(reader.partition, seat_of(reader));
    }
    Ok(seats)
}

/// What the gateways know of their readers.
pub async fn known(ctx: &Rc<Context>, key: &GroupKey, members: &Whereabouts) -> Result<Vec<Reader>, Problem> {
    let here = home::ask(ctx, key, Op::Readers, true).await?;
    let all = act::ask_all(ctx, key, members, &Op::Readers).await.into_iter().chain([here]);
    Ok(all.flat_map(|done| if let Done::Readers(readers) = done { readers } else { Vec::new() }).collect())
}

fn seat_of(reader: Reader) -> Seat {
    Seat {
        real_ip: reader.real_ip.map(|ip| ip.to_string()),
        shard: Some(reader.shard),
        gateway: reader.gateway,
        end: Some(reader.end),
        delivered_s_ago: reader.delivered_s_ago,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_that_are_read_are_not_left_out() {
        let group = |id: &str, is_read| ListedGroup { group_id: id.to_owned(), is_read };
        let listed = || {
            let idle = (0..10).map(|n| group(&format!("app1.idle-{n}"), false));
            let others = [group("app2.reads", true), group("tool", true), group("app1.reads", true)];
            idle.chain(others).collect::<Vec<_>>()
        };
        let chosen = |reader, max| choose(listed(), reader, max);
        let (groups, omitted) = chosen(None, 3);
        assert_eq!((groups, omitted), (["app1.reads", "app2.reads", "app1.idle-0"].map(str::to_owned).to_vec(), 9));
        let (groups, omitted) = chosen(Some("app1"), 2);
        assert_eq!((groups, omitted), (["app1.reads", "app1.idle-0"].map(str::to_owned).to_vec(), 9));
        assert_eq!(chosen(Some("app2"), 2), (vec!["app2.reads".to_owned()], 0));
        assert_eq!(chosen(None, 12).1, 0, "what is no group of ours is not counted");
    }
}
