//! Tags: which messages a reader wants.
//!
//! A message carries its tags in one record header, `a;b`; a filter names some and lets through what has any of them. Knows
//! neither groups nor clients.

use serde::{Deserialize, Serialize};

use super::Message;

/// Any of these tags lets a message through.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TagFilter(Vec<Vec<u8>>);

impl TagFilter {
    /// From `X-Tag: a;b`. `None` when no tag is named.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let mut tags: Vec<Vec<u8>> = split_tags(text).map(<[u8]>::to_vec).collect();
        tags.sort_unstable();
        tags.dedup();
        (!tags.is_empty()).then_some(Self(tags))
    }

    pub fn passes(&self, message: &Message) -> bool {
        message.tag().is_some_and(|tag| split_tags(tag).any(|t| self.0.iter().any(|wanted| wanted == t)))
    }
}

fn split_tags(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|b| *b == b';').map(<[u8]>::trim_ascii).filter(|t| !t.is_empty())
}
