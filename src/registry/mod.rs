//! What exists, as one core knows it: the topics of the cluster, interned, refreshed whole.
//!
//! A topic that is not in the table may exist all the same (it was made a moment ago): the API asks the store once and installs
//! the answer. Per core: handles and counters hang on a topic's slot, which never changes. This module knows no Kafka and no
//! HTTP.

pub mod names;

use std::{cell::RefCell, collections::HashMap, rc::Rc};

use crate::{
    limits,
    store::{Topic, TopicMeta, Usage},
};

/// The topics of one core. A topic that was deleted keeps its slot, with no partitions.
#[derive(Debug, Default)]
pub struct Topics {
    by_name: RefCell<HashMap<Box<str>, Rc<Topic>, ahash::RandomState>>,
    by_slot: RefCell<Vec<Rc<Topic>>>,
}

impl Topics {
    pub fn get(&self, name: &str) -> Option<Rc<Topic>> {
        self.by_name.borrow().get(name).filter(|t| t.partitions.get() > 0).cloned()
    }

    /// The topics there are and were, one by one; a slot never changes.
    pub fn by_slot(&self, slot: usize) -> Option<Rc<Topic>> {
        self.by_slot.borrow().get(slot).cloned()
    }

    /// Takes over what the cluster lists: new topics come, gone ones go, partition counts follow.
    pub fn install(&self, listed: &[TopicMeta]) {
        for topic in self.by_name.borrow().values() {
            topic.partitions.set(0);
        }
        for meta in listed {
            self.put(&meta.name, meta.partitions);
        }
    }

    /// One topic exists. `None` when the table is at its bound.
    pub fn put(&self, name: &str, partitions: i32) -> Option<Rc<Topic>> {
        let mut by_name = self.by_name.borrow_mut();
        if let Some(topic) = by_name.get(name) {
            topic.partitions.set(partitions);
            return Some(Rc::clone(topic));
        }
        if by_name.len() >= limits::TOPICS_MAX {
            return None;
        }
        let (slot, partitions) = (by_name.len(), partitions.into());
        let topic = Rc::new(Topic { name: name.into(), slot, partitions, usage: Usage::default() });
        by_name.insert(name.into(), Rc::clone(&topic));
        self.by_slot.borrow_mut().push(Rc::clone(&topic));
        Some(topic)
    }

    /// One topic exists with so many partitions, as another core has it. The larger of two counts is the newer, unless the
    /// topic was made again: cores that see theirs differ list anew.
    pub fn put_at_least(&self, name: &str, partitions: i32) -> Option<Rc<Topic>> {
        let known = self.get(name).map_or(0, |topic| topic.partitions.get());
        self.put(name, partitions.max(known))
    }

    /// The store says there is no such topic any more.
    pub fn forget(&self, topic: &Topic) {
        topic.partitions.set(0);
    }

    /// Topics that exist.
    pub fn len(&self) -> usize {
        self.by_name.borrow().values().filter(|t| t.partitions.get() > 0).count()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
