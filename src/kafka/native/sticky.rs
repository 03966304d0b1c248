//! Where records without a key go: all to one partition for a while, then all to another, chosen at random of those that have a leader.
//!
//! librdkafka has the same (`sticky.partitioning.linger.ms`), but tells nobody where a record went, and asks for each one whether its
//! time is over and its partition led: with small records a twelfth of all the CPU. Here who hands records over knows the partition,
//! and names it for as long as it holds (KIP-480). Invariants: the choice is made under the topic's lock, by librdkafka's own call; a
//! record with a key goes where Kafka's Java client would send it. A partition that loses its leader gets records until its time is over,
//! some milliseconds later; they wait for the next leader, as those do that it had before.

use std::{
    ffi::c_void,
    ptr,
    sync::atomic::{AtomicI32, AtomicU64, Ordering},
};

use rdkafka::bindings as rd;

use crate::store::Partition;

const NONE: Partition = -1;

/// The choice for one topic of one client. Shared with librdkafka's main thread, which chooses for records that came before the topic
/// was known.
#[derive(Debug)]
pub struct Sticky {
    partition: AtomicI32,
    until_us: AtomicU64,
}

impl Default for Sticky {
    fn default() -> Self {
        Self { partition: AtomicI32::new(NONE), until_us: AtomicU64::new(0) }
    }
}

impl Sticky {
    /// Where records go now. `None`: the next one is left to the partitioner, which chooses for those behind it.
    pub fn partition(&self, now_us: u64, stay_us: u64) -> Option<Partition> {
        if now_us >= self.until_us.load(Ordering::Relaxed) {
            self.partition.store(NONE, Ordering::Relaxed);
            self.until_us.store(now_us + stay_us, Ordering::Relaxed);
        }
        Some(self.partition.load(Ordering::Relaxed)).filter(|partition| *partition != NONE)
    }

    /// It is not there, or was chosen for a topic that was made again.
    pub fn forget(&self) {
        self.partition.store(NONE, Ordering::Relaxed);
    }

    /// Makes it the choice for `conf`.
    ///
    /// # Safety
    /// `conf` is live and ours, and `self` outlives the client whose topic is made with it.
    pub unsafe fn attach(&self, conf: *mut rd::rd_kafka_topic_conf_t) {
        // SAFETY: by the caller.
        unsafe {
            rd::rd_kafka_topic_conf_set_opaque(conf, ptr::from_ref(self).cast_mut().cast());
            rd::rd_kafka_topic_conf_set_partitioner_cb(conf, Some(choose));
        }
    }
}

/// librdkafka's question, with the topic locked.
unsafe extern "C" fn choose(
    topic: *const rd::rd_kafka_topic_t,
    key: *const c_void,
    key_length: usize,
    count: i32,
    sticky: *mut c_void,
    record: *mut c_void,
) -> i32 {
    // SAFETY: called by librdkafka, as a partitioner is; `sticky` is what `attach` gave, and outlives the client.
    unsafe {
        if !key.is_null() {
            return rd::rd_kafka_msg_partitioner_murmur2_random(topic, key, key_length, count, sticky, record);
        }
        let is_led = |partition: i32| rd::rd_kafka_topic_partition_available(topic, partition) != 0;
        let sticky = &*sticky.cast::<Sticky>();
        let known = sticky.partition.load(Ordering::Relaxed);
        if (0..count).contains(&known) && is_led(known) {
            return known;
        }
        let start = rd::rd_kafka_msg_partitioner_random(topic, key, key_length, count, ptr::null_mut(), record);
        let chosen =
            (0..count).map(|step| (start + step) % count).find(|partition| is_led(*partition)).unwrap_or(start);
        sticky.partition.store(chosen, Ordering::Relaxed);
        chosen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_for_its_time() {
        let sticky = Sticky::default();
        assert_eq!(sticky.partition(1_000, 500), None);
        sticky.partition.store(3, Ordering::Relaxed);
        assert_eq!((sticky.partition(1_001, 500), sticky.partition(1_499, 500)), (Some(3), Some(3)));
        assert_eq!((sticky.partition(1_500, 500), sticky.partition(1_600, 500)), (None, None));
        sticky.partition.store(1, Ordering::Relaxed);
        assert_eq!(sticky.partition(1_999, 500), Some(1));
        sticky.forget();
        assert_eq!(sticky.partition(1_999, 500), None);
    }
}
