//! The groups that live on this core: opened when first read, kept while used, left when idle.
//!
//! Per core. A group outlives its clients' connections by `sub.group_idle_s`, so a client that comes and goes costs no
//! rebalance. How many there may be is bounded.

use std::{cell::RefCell, collections::HashMap, rc::Rc, time::Duration};

use super::{
    backend::Backend,
    codes,
    frame::GroupKey,
    reply::{self, Problem},
};
use crate::store::{Begin, Group, GroupStatus, Store, Topic};

/// See the module text.
#[derive(Debug, Default)]
pub struct Groups {
    open: RefCell<HashMap<GroupKey, Rc<Group>, ahash::RandomState>>,
}

impl Groups {
    /// The group, opened if it is not.
    pub fn get_or_open(
        &self,
        backend: &Backend,
        topic: &Rc<Topic>,
        key: &GroupKey,
        begin: Begin,
        groups_max: usize,
    ) -> Result<Rc<Group>, Problem> {
        let mut open = self.open.borrow_mut();
        if let Some(group) = open.get(key) {
            return Ok(Rc::clone(group));
        }
        if open.len() >= groups_max {
            return Err(Problem::new(&codes::TOO_MANY_GROUPS, format!("this core serves {groups_max} groups")));
        }
        let group = backend.open_group(topic, &key.group_id, begin).map_err(reply::admin_failed)?;
        open.insert(key.clone(), Rc::clone(&group));
        Ok(group)
    }

    pub fn get(&self, key: &GroupKey) -> Option<Rc<Group>> {
        self.open.borrow().get(key).cloned()
    }

    /// Every group that is open.
    pub fn all(&self) -> Vec<Rc<Group>> {
        self.open.borrow().values().cloned().collect()
    }

    /// Takes out the groups nobody used for `idle`; the caller closes them.
    pub fn take_idle(&self, idle: Duration) -> Vec<Rc<Group>> {
        let mut open = self.open.borrow_mut();
        let is_idle = |group: &Rc<Group>| group.idle_since().is_some_and(|since| since.elapsed() > idle);
        let keys: Vec<_> = open.iter().filter(|(_, group)| is_idle(group)).map(|(key, _)| key.clone()).collect();
        keys.iter().filter_map(|key| open.remove(key)).collect()
    }

    /// Takes out one group; the caller closes it.
    pub fn take(&self, key: &GroupKey) -> Option<Rc<Group>> {
        self.open.borrow_mut().remove(key)
    }

    /// Takes out every group; the caller closes them.
    pub fn take_all(&self) -> Vec<Rc<Group>> {
        self.open.borrow_mut().drain().map(|(_, group)| group).collect()
    }

    /// Ends every waiting read with nothing.
    pub fn end_fetches(&self) {
        for group in self.open.borrow().values() {
            group.end_fetches();
        }
    }

    pub fn status(&self) -> Vec<GroupStatus> {
        self.open.borrow().values().map(|group| group.status()).collect()
    }

    pub fn len(&self) -> usize {
        self.open.borrow().len()
    }

    pub fn is_empty(&self) -> bool {
        self.open.borrow().is_empty()
    }
}
