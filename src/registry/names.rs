//! Names: which are valid, and what Kafka calls a topic or group of ours.
//!
//! Checked before any look-up or Kafka call, so nothing a client writes reaches Kafka unchecked. The rules are the contract's
//! (`api.md` section 1).

use std::{cell::RefCell, fmt::Write};

use crate::{limits, store::RETRY_SUFFIX};

/// `appid`, `topic`, `group`: `[A-Za-z0-9_-]{1,64}`.
pub fn is_name(text: &[u8]) -> bool {
    (1..=limits::NAME_BYTES_MAX).contains(&text.len())
        && text.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
}

/// `ver`: `v[0-9]{1,4}`.
pub fn is_ver(text: &[u8]) -> bool {
    matches!(text, [b'v', digits @ ..] if (1..=4).contains(&digits.len()) && digits.iter().all(u8::is_ascii_digit))
}

/// Writes Kafka's name of a topic into `out`: `appid.topic.ver`, and for a `ver` of two or more digits
/// `.adler32(appid + topic) % 1000` behind it. The parts are valid names.
fn kafka_topic(out: &mut String, appid: &str, topic: &str, ver: &str) {
    debug_assert!(is_name(appid.as_bytes()) && is_name(topic.as_bytes()) && is_ver(ver.as_bytes()));
    out.clear();
    for part in [appid, ".", topic, ".", ver] {
        out.push_str(part);
    }
    if ver.len() > 2 {
        let sum = adler32(appid.bytes().chain(topic.bytes()));
        // Writing to a String cannot fail.
        let _ = write!(out, ".{}", sum % 1000);
    }
}

/// Runs `use_name` with Kafka's name of the topic (see [`kafka_topic`]), in a buffer that is kept.
pub fn with_kafka_topic<T>(appid: &str, topic: &str, ver: &str, use_name: impl FnOnce(&str) -> T) -> T {
    with_buffer(|name| {
        kafka_topic(name, appid, topic, ver);
        use_name(name)
    })
}

/// Runs `use_name` with Kafka's name of a group, `<reader appid>.<group>`, in a buffer that is kept.
pub fn with_kafka_group<T>(reader: &str, group: &str, use_name: impl FnOnce(&str) -> T) -> T {
    with_buffer(|name| {
        name.clear();
        for part in [reader, ".", group] {
            name.push_str(part);
        }
        use_name(name)
    })
}

/// A group's shadow queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Queue {
    Retry,
    Dead,
}

impl Queue {
    pub fn parse(text: &[u8]) -> Option<Self> {
        match text {
            b"retry" => Some(Self::Retry),
            b"dead" => Some(Self::Dead),
            _ => None,
        }
    }

    fn suffix(self) -> &'static str {
        match self {
            Self::Retry => RETRY_SUFFIX,
            Self::Dead => ".dead",
        }
    }

    /// Kafka's name of the queue: `<Kafka topic>.<reader>.<group>.retry` or `.dead`.
    pub fn topic(self, topic: &str, group_id: &str) -> String {
        [topic, ".", group_id, self.suffix()].concat()
    }

    /// The queue a Kafka topic is, if it is one: a topic of ours ends in its version or a number.
    pub fn of(topic: &str) -> Option<Self> {
        [Self::Retry, Self::Dead].into_iter().find(|queue| topic.ends_with(queue.suffix()))
    }

    /// The queue of the group that reads `topic`, be that the topic itself or another queue of the group.
    pub fn beside(self, topic: &str, group_id: &str) -> String {
        match Self::of(topic).and_then(|queue| topic.strip_suffix(queue.suffix())) {
            Some(stem) => [stem, self.suffix()].concat(),
            None => self.topic(topic, group_id),
        }
    }
}

/// A buffer that is kept, for a name that every request makes anew. `write` makes no other name meanwhile.
fn with_buffer<T>(write: impl FnOnce(&mut String) -> T) -> T {
    thread_local! {
        static NAME: RefCell<String> = const { RefCell::new(String::new()) };
    }
    NAME.with_borrow_mut(write)
}

/// The reader's app in Kafka's name of a group.
pub fn reader_of(group_id: &str) -> &str {
    group_id.split('.').next().unwrap_or(group_id)
}

/// The owner's app in Kafka's name of a topic.
pub fn owner_of(topic: &str) -> &str {
    topic.split('.').next().unwrap_or(topic)
}

fn adler32(bytes: impl Iterator<Item = u8>) -> u32 {
    let (mut a, mut b) = (1_u32, 0_u32);
    for byte in bytes {
        a = (a + u32::from(byte)) % 65_521;
        b = (b + a) % 65_521;
    }
    b << 16 | a
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topic_vectors_of_the_contract() {
        let mut name = String::new();
        kafka_topic(&mut name, "app1", "foobar", "v10");
        assert_eq!(name, "app1.foobar.v10.844");
        kafka_topic(&mut name, "hisapp", "foobar", "v1");
        assert_eq!(name, "hisapp.foobar.v1");
    }

    #[test]
    fn shadow_queues_stand_beside_their_topic() {
        let retry = Queue::Retry.topic("hisapp.foobar.v1", "myapp.group1");
        assert_eq!(retry, "hisapp.foobar.v1.myapp.group1.retry");
        assert_eq!(Queue::Dead.beside(&retry, "myapp.group1"), "hisapp.foobar.v1.myapp.group1.dead");
        assert_eq!(Queue::Dead.beside("hisapp.foobar.v1", "a.b"), "hisapp.foobar.v1.a.b.dead");
        assert_eq!((Queue::of(&retry), Queue::of("hisapp.foobar.v1")), (Some(Queue::Retry), None));
    }

    #[test]
    fn names_are_checked_byte_by_byte() {
        for good in ["a", "A-_9", &"x".repeat(64)] {
            assert!(is_name(good.as_bytes()), "{good}");
        }
        for bad in ["", "a.b", "a b", "ä", "a%2e", "a\0", &"x".repeat(65)] {
            assert!(!is_name(bad.as_bytes()), "{bad}");
        }
        assert!(is_ver(b"v1") && is_ver(b"v9999"));
        for bad in ["", "v", "1", "v12345", "v1a", "V1"] {
            assert!(!is_ver(bad.as_bytes()), "{bad}");
        }
    }
}
