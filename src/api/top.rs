//! Who uses the gateway most: topics and apps by messages and by bytes, when asked.
//!
//! Nothing is sorted while messages flow. What is published, and what is read of a topic, is counted at the topic, which a core
//! keeps anyway ([`limits::TOPICS_MAX`] bounds how many); who publishes is part of a topic's name. Only readers are counted by
//! name, in two tables of fixed size ([`Hitters`]). Each core picks its heaviest, with yields between; here they are merged.
//! So a count is exact, but that of a topic that is not among the heaviest of some core lacks that core's share, and that of a
//! reader, where there are very many, is too high by at most `read_messages_others_max`.

use std::{cmp::Reverse, collections::HashMap, rc::Rc};

use futures_channel::oneshot;
use serde_json::{Value, json};

use super::{context::Context, frame::Frame, status};
use crate::{limits, metrics::Hits, registry::names};

/// Rows of each list as shown.
const ROWS_MAX: usize = 20;
/// Rows of each order that a core gives: more than are shown, because the heaviest of all need not be a core's heaviest.
const CORE_ROWS_MAX: usize = 200;

/// Messages and bytes, published and read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Use {
    published: (u64, u64),
    read: (u64, u64),
    read_messages_others_max: u64,
}

impl Use {
    fn messages(&self) -> u64 {
        self.published.0 + self.read.0
    }

    fn bytes(&self) -> u64 {
        self.published.1 + self.read.1
    }

    fn add(&mut self, other: &Self) {
        self.published.0 += other.published.0;
        self.published.1 += other.published.1;
        self.read.0 += other.read.0;
        self.read.1 += other.read.1;
        self.read_messages_others_max += other.read_messages_others_max;
    }

    fn json(&self, kind: &str, name: &str) -> Value {
        json!({
            kind: name,
            "published_messages": self.published.0,
            "published_bytes": self.published.1,
            "read_messages": self.read.0,
            "read_bytes": self.read.1,
            "read_messages_others_max": self.read_messages_others_max,
        })
    }
}

type Rows = Vec<(Box<str>, Use)>;

/// One core's heaviest.
#[derive(Clone, Debug, Default)]
pub struct Top {
    topics: Rows,
    apps: Rows,
}

/// This core's; what it answers to [`Frame::Top`].
pub async fn here(ctx: &Context) -> Top {
    let Some(data) = &ctx.data else { return Top::default() };
    let (mut topics, mut apps): (Rows, HashMap<Box<str>, Use, ahash::RandomState>) = Default::default();
    let mut slot = 0;
    while let Some(topic) = data.topics.by_slot(slot) {
        slot += 1;
        let used = Use { published: topic.usage.published.get(), read: topic.usage.read.get(), ..Use::default() };
        if used != Use::default() {
            let (app, published) = (names::owner_of(&topic.name), Use { published: used.published, ..Use::default() });
            match apps.get_mut(app) {
                Some(sum) => sum.add(&published),
                None => drop(apps.insert(app.into(), published)),
            }
            topics.push((topic.name.clone(), used));
        }
        if slot.is_multiple_of(limits::LOOP_ITEMS_MAX) {
            glommio::executor().yield_task_queue_now().await;
        }
    }
    for (reader, Hits { count, others_max }) in data.readers.messages.list() {
        let read = Use { read: (count, 0), read_messages_others_max: others_max, ..Use::default() };
        apps.entry(reader).or_default().add(&read);
    }
    for (reader, hits) in data.readers.bytes.list() {
        apps.entry(reader).or_default().add(&Use { read: (0, hits.count), ..Use::default() });
    }
    Top { topics: heaviest(topics), apps: heaviest(apps.into_iter().collect()) }
}

/// What is among the first by messages or by bytes.
fn heaviest(mut rows: Rows) -> Rows {
    let mut kept = first(&mut rows, Use::messages, CORE_ROWS_MAX);
    kept.extend(first(&mut rows, Use::bytes, CORE_ROWS_MAX));
    kept
}

/// Takes the first rows in that order out of `rows`; they are in no order.
fn first(rows: &mut Rows, by: fn(&Use) -> u64, max: usize) -> Rows {
    if rows.len() > max {
        rows.select_nth_unstable_by_key(max, |(_, used)| Reverse(by(used)));
    }
    rows.drain(..rows.len().min(max)).collect()
}

/// The heaviest of the gateway. Cores that do not answer in time are left out; the status names them as silent.
pub async fn document(ctx: &Rc<Context>) -> Value {
    let (mut topics, mut apps) = (HashMap::new(), HashMap::new());
    let asked = status::ask(ctx, |answer: oneshot::Sender<Top>| Frame::Top { answer }).await;
    for top in asked.into_iter().filter_map(|(_, top)| top) {
        for (sums, rows) in [(&mut topics, top.topics), (&mut apps, top.apps)] {
            for (name, used) in rows {
                sums.entry(name).or_insert_with(Use::default).add(&used);
            }
        }
    }
    json!({ "topics": orders("topic", topics), "apps": orders("app", apps) })
}

fn orders(kind: &str, sums: HashMap<Box<str>, Use>) -> Value {
    let mut rows: Rows = sums.into_iter().collect();
    let mut order = |by: fn(&Use) -> u64| -> Vec<Value> {
        rows.sort_by(|(a_name, a), (b_name, b)| by(b).cmp(&by(a)).then_with(|| a_name.cmp(b_name)));
        rows.iter().take(ROWS_MAX).map(|(name, used)| used.json(kind, name)).collect()
    };
    json!({ "by_messages": order(Use::messages), "by_bytes": order(Use::bytes) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_both_orders_are_kept_and_nothing_twice() {
        let rows: Rows = (0..1_000_u64)
            .map(|n| (n.to_string().into(), Use { published: (n, 1_000 - n), ..Use::default() }))
            .collect();
        let kept = heaviest(rows);
        let names: std::collections::HashSet<_> = kept.iter().map(|(name, _)| name.clone()).collect();
        assert_eq!((kept.len(), names.len()), (2 * CORE_ROWS_MAX, 2 * CORE_ROWS_MAX));
        assert!(names.contains("999") && names.contains("0") && !names.contains("500"));
    }

    #[test]
    fn an_order_is_by_weight_then_by_name() {
        let sums = [("b", 5), ("c", 9), ("a", 5)];
        let sums = sums.map(|(name, n)| (name.into(), Use { read: (n, 10 - n), ..Use::default() }));
        let document = orders("topic", sums.into_iter().collect());
        let names = |order: &str| {
            document[order].as_array().expect("a list").iter().map(|r| r["topic"].clone()).collect::<Vec<_>>()
        };
        assert_eq!(names("by_messages"), ["c", "a", "b"]);
        assert_eq!(names("by_bytes"), ["a", "b", "c"]);
    }
}
