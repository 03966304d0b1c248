//! Questions about groups this gateway need not be a member of: who reads, what is committed, and moving what nobody reads.
//!
//! Invariants: every call waits in the offload pool, never on the core. What is committed is asked and set by a consumer of that group
//! that never joins it and lives for one call: its way to the coordinator is the one the gateway's own groups go, while librdkafka's
//! admin calls are not to be trusted when brokers come and go (`native/groups`). Per core.

use std::{rc::Rc, sync::Arc, time::Duration};

use rdkafka::bindings::rd_kafka_resp_err_t as rd;

use super::{
    admin::{Admin, EveryPartition, is_passing, told},
    native::{Client, Described, DescribedMember, ErrorCode, Kind},
    offsets, options,
};
use crate::{
    config::resolve::Config,
    limits,
    offload::Offload,
    store::{AdminError, GroupInfo, GroupMember, ListedGroup, Offset, Partition, Topic},
};

/// Every broker is asked for a group, and one that is silent must not hold up what another knows for long.
const DESCRIBE_MAX: Duration = Duration::from_secs(2);

/// See the module text.
#[derive(Debug)]
pub(super) struct GroupAdmin {
    config: Arc<Config>,
    offload: Offload,
    admin: Rc<Admin>,
}

impl GroupAdmin {
    pub fn new(config: &Arc<Config>, offload: &Offload, admin: &Rc<Admin>) -> Self {
        Self { config: Arc::clone(config), offload: offload.clone(), admin: Rc::clone(admin) }
    }

    pub async fn describe(&self, topic: &str, group_id: &str) -> Result<GroupInfo, AdminError> {
        let (asked, timeout) = (group_id.to_owned(), self.config.kafka.admin_timeout.min(DESCRIBE_MAX));
        let found = self.admin.ask_heard(move |client| client.describe_groups(Some(&asked), timeout)).await?;
        let (groups, silent) = found.map_err(|code| refusal(code, ""))?;
        match groups.into_iter().find(|group| group.group_id == group_id) {
            Some(group) if !group.code.is_ok() => Err(refusal(group.code, "")),
            Some(group) => Ok(info(group, topic)),
            // Whoever did not answer may have it.
            None => {
                silent.map_or(Ok(GroupInfo { members: Vec::new(), is_settled: true }), |code| Err(refusal(code, "")))
            }
        }
    }

    pub async fn list(&self, topic: &str) -> Result<Vec<ListedGroup>, AdminError> {
        let (topic, timeout) = (topic.to_owned(), self.config.kafka.admin_timeout);
        let asked = self.admin.ask_heard(move |client| {
            // Read here: there may be many members.
            let (groups, silent) = client.describe_groups(None, timeout)?;
            Ok((listed(groups, &topic), silent))
        });
        let (mut groups, silent) = asked.await?.map_err(|code: ErrorCode| refusal(code, ""))?;
        if let Some(code) = silent {
            // The groups of a broker that is away have another coordinator soon.
            tracing::warn!(error = code.name(), "a broker did not list its groups");
        }
        if groups.len() > limits::GROUPS_LISTED_MAX {
            tracing::warn!(
                groups = groups.len(),
                named = limits::GROUPS_LISTED_MAX,
                "more groups than a listing names"
            );
        }
        groups.truncate(limits::GROUPS_LISTED_MAX);
        Ok(groups)
    }

    pub async fn committed(&self, topic: &Topic, group_id: &str) -> Result<Vec<(Partition, Offset)>, AdminError> {
        let every = EveryPartition::of(topic)?;
        let found = self.ask(group_id, move |client, timeout| every.committed(client, timeout)).await?;
        Ok(found.entries().filter(|entry| entry.offset >= 0).map(|entry| (entry.partition, entry.offset)).collect())
    }

    /// The note beside the commits stays what it is; where there is none, the group begins now.
    pub async fn set_committed(
        &self,
        topic: &Topic,
        group_id: &str,
        ends: &[(Partition, Offset)],
    ) -> Result<(), AdminError> {
        if ends.is_empty() {
            return Ok(());
        }
        let (every, ends) = (EveryPartition::of(topic)?, ends.to_vec());
        let set = self.ask(group_id, move |client, timeout| {
            let found = every.committed(client, timeout)?;
            let first_partitions = offsets::noted(&found).unwrap_or(every.count).min(every.count);
            let commits = offsets::commits(&every.topic, &ends, first_partitions);
            client.commit_and_wait(&commits, timeout)
        });
        set.await
    }

    pub async fn delete_committed(&self, topic: &Topic, group_id: &str) -> Result<(), AdminError> {
        let every = EveryPartition::of(topic)?;
        // Asked first, because the call below is better not made in vain.
        let info = self.describe(&topic.name, group_id).await?;
        if info.members.iter().any(|member| !member.partitions.is_empty()) {
            return Err(AdminError::InUse);
        }
        if self.committed(topic, group_id).await?.is_empty() {
            return Ok(());
        }
        let (config, offload) = (Arc::clone(&self.config), self.offload.clone());
        let group_id = group_id.to_owned();
        let deleted = self.admin.run(move || {
            let unavailable = |reason| AdminError::Unavailable { reason };
            let (client, _) =
                Client::create(Kind::Producer, &options::admin(&config), &offload).map_err(unavailable)?;
            match client.delete_committed(&group_id, &every.list(), config.kafka.admin_timeout) {
                Ok(deleted) => deleted.all_done().map_err(|code| refusal(code, "")),
                Err((code, _)) if code.is(rd::RD_KAFKA_RESP_ERR_GROUP_ID_NOT_FOUND) => Ok(()),
                Err((code, text)) => Err(refusal(code, &text)),
            }
        });
        deleted.await?
    }

    /// Asks by a consumer of the group.
    async fn ask<T: Send + 'static>(
        &self,
        group_id: &str,
        question: impl FnOnce(&Arc<Client>, Duration) -> Result<T, ErrorCode> + Send + 'static,
    ) -> Result<T, AdminError> {
        let (config, offload, group_id) = (Arc::clone(&self.config), self.offload.clone(), group_id.to_owned());
        let asked = self.admin.run(move || {
            let unavailable = |reason| AdminError::Unavailable { reason };
            let options = options::outsider(&config, &group_id);
            let (client, _) = Client::create(Kind::Consumer, &options, &offload).map_err(unavailable)?;
            question(&client, config.kafka.admin_timeout).map_err(|code| refusal(code, ""))
        });
        asked.await?
    }
}

// === reading answers ===

fn info(group: Described, topic: &str) -> GroupInfo {
    let member = |member: DescribedMember| GroupMember {
        partitions: assigned(&member.assignment, topic).unwrap_or_default(),
        client_id: member.client_id,
        member_id: member.member_id,
        host: member.host,
    };
    let is_settled = ["Stable", "Empty", "Dead"].contains(&group.state.as_str());
    GroupInfo { members: group.members.into_iter().map(member).collect(), is_settled }
}

/// The groups that read `topic` stand first.
fn listed(groups: Vec<Described>, topic: &str) -> Vec<ListedGroup> {
    let has_some =
        |member: &DescribedMember| assigned(&member.assignment, topic).is_some_and(|found| !found.is_empty());
    let listed = groups.into_iter().map(|group| {
        let is_read = group.members.iter().any(has_some);
        ListedGroup { group_id: group.group_id, is_read }
    });
    let (mut read, others): (Vec<_>, Vec<_>) = listed.partition(|group| group.is_read);
    read.extend(others);
    read
}

/// The partitions of `topic` in an assignment as Kafka's clients encode it: version, then topics with their partitions, big endian. `None`
/// when it is none.
fn assigned(mut bytes: &[u8], topic: &str) -> Option<Vec<Partition>> {
    fn take<'a>(bytes: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = bytes.split_at_checked(count)?;
        *bytes = rest;
        Some(taken)
    }
    fn int(bytes: &mut &[u8]) -> Option<i32> {
        take(bytes, 4)?.try_into().ok().map(i32::from_be_bytes)
    }
    take(&mut bytes, 2)?;
    let mut partitions = Vec::new();
    for _ in 0..int(&mut bytes)? {
        let length = take(&mut bytes, 2)?.try_into().ok().map(u16::from_be_bytes)?;
        let name = take(&mut bytes, length.into())?;
        for _ in 0..int(&mut bytes)? {
            let partition = int(&mut bytes)?;
            if name == topic.as_bytes() {
                partitions.push(partition);
            }
        }
    }
    Some(partitions)
}

// === errors ===

fn refusal(code: ErrorCode, text: &str) -> AdminError {
    match code {
        _ if is_about_members(code) => AdminError::InUse,
        _ if code.is(rd::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART) => AdminError::UnknownTopic,
        _ if code.0 < 0 || is_about_coordinators(code) || is_passing(code) => {
            AdminError::Unavailable { reason: told(code, text) }
        }
        _ => AdminError::Refused { reason: told(code, text) },
    }
}

/// What Kafka says to one who is no member, when there are members.
fn is_about_members(code: ErrorCode) -> bool {
    code.is_one_of(&[
        rd::RD_KAFKA_RESP_ERR_UNKNOWN_MEMBER_ID,
        rd::RD_KAFKA_RESP_ERR_ILLEGAL_GENERATION,
        rd::RD_KAFKA_RESP_ERR_REBALANCE_IN_PROGRESS,
        rd::RD_KAFKA_RESP_ERR_NON_EMPTY_GROUP,
        rd::RD_KAFKA_RESP_ERR_GROUP_SUBSCRIBED_TO_TOPIC,
        rd::RD_KAFKA_RESP_ERR_FENCED_INSTANCE_ID,
    ])
}

/// What passes when the group has a coordinator again.
fn is_about_coordinators(code: ErrorCode) -> bool {
    code.is_one_of(&[
        rd::RD_KAFKA_RESP_ERR_NOT_COORDINATOR,
        rd::RD_KAFKA_RESP_ERR_COORDINATOR_NOT_AVAILABLE,
        rd::RD_KAFKA_RESP_ERR_COORDINATOR_LOAD_IN_PROGRESS,
        rd::RD_KAFKA_RESP_ERR_UNSTABLE_OFFSET_COMMIT,
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn assignments_are_read_as_clients_write_them() {
        let two = b"\0\x01\0\0\0\x02\0\x01t\0\0\0\x02\0\0\0\0\0\0\0\x05\0\x01u\0\0\0\x01\0\0\0\x07\xff\xff\xff\xff";
        assert_eq!(assigned(two, "t"), Some(vec![0, 5]));
        assert_eq!(assigned(two, "u"), Some(vec![7]));
        assert_eq!(assigned(two, "v"), Some(vec![]));
        for cut in 0..32 {
            assert_eq!(assigned(&two[..cut], "t"), None, "{cut} bytes");
        }
        assert_eq!(assigned(b"\0\0\x7f\xff\xff\xff\0\0", "t"), None, "more topics than bytes");
    }

    #[test]
    fn groups_that_read_the_topic_are_listed_first() {
        let group = |group_id: &str, assignment: &[u8]| Described {
            group_id: group_id.to_owned(),
            code: ErrorCode(0),
            state: String::new(),
            members: vec![DescribedMember {
                client_id: String::new(),
                member_id: String::new(),
                host: String::new(),
                assignment: assignment.to_vec(),
            }],
        };
        let (of_t, none_of_t) = (b"\0\x01\0\0\0\x01\0\x01t\0\0\0\x01\0\0\0\0", b"\0\x01\0\0\0\x01\0\x01t\0\0\0\0");
        let mut idle = group("idle", b"");
        idle.members.clear();
        let found = listed(vec![idle, group("rebalancing", b""), group("waits", none_of_t), group("reads", of_t)], "t");
        let found: Vec<_> = found.iter().map(|group| (group.group_id.as_str(), group.is_read)).collect();
        assert_eq!(found, [("reads", true), ("idle", false), ("rebalancing", false), ("waits", false)]);
    }

    #[test]
    fn members_of_others_are_told_from_a_cluster_in_trouble() {
        assert_eq!(refusal(rd::RD_KAFKA_RESP_ERR_UNKNOWN_MEMBER_ID.into(), ""), AdminError::InUse);
        assert_eq!(refusal(rd::RD_KAFKA_RESP_ERR_GROUP_SUBSCRIBED_TO_TOPIC.into(), ""), AdminError::InUse);
        let away = refusal(rd::RD_KAFKA_RESP_ERR__TIMED_OUT.into(), "");
        assert!(matches!(away, AdminError::Unavailable { .. }), "{away:?}");
        let denied = refusal(rd::RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED.into(), "no");
        assert_eq!(denied, AdminError::Refused { reason: "GROUP_AUTHORIZATION_FAILED: no".to_owned() });
    }
}
