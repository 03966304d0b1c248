//! What the Kafka side counts. Per core: one writer, plain cells; whoever shows them takes the rows on the same core.

use std::cell::Cell;

use crate::metrics::Sizes;

/// A number that only grows.
#[derive(Default, Debug)]
pub struct Counter(Cell<u64>);

impl Counter {
    pub fn add(&self, n: u64) {
        self.0.set(self.0.get() + n);
    }

    pub fn one(&self) {
        self.add(1);
    }

    pub fn get(&self) -> u64 {
        self.0.get()
    }
}

/// One number of the clients: metric name, kind, help, value.
pub type Row = (&'static str, &'static str, &'static str, u64);

/// Fields of counters, each with its metric and what it means.
macro_rules! counters {
    ($(#[$doc:meta])* $name:ident { $($field:ident: $metric:literal, $help:literal;)* } $($more:ident: $kind:ty;)*) => {
        $(#[$doc])*
        #[derive(Default, Debug)]
        pub struct $name {
            $(#[doc = $help] pub $field: Counter,)*
            $(pub $more: $kind,)*
        }

        impl $name {
            /// Every counter as it stands, for `/metrics`.
            pub fn rows(&self) -> Vec<Row> {
                vec![$(($metric, "counter", $help, self.$field.get()),)*]
            }
        }
    };
}

counters! {
    /// Counters of all producers of a core.
    ProducerStats {
        produced: "kateway_producer_records_total", "Records librdkafka took.";
        produced_bytes: "kateway_producer_record_bytes_total", "Bytes of the values of these records.";
        stored: "kateway_producer_stored_total", "Reports: stored.";
        not_stored: "kateway_producer_not_stored_total", "Reports: for sure not stored.";
        unknown: "kateway_producer_unknown_total", "Reports: perhaps stored.";
        refused: "kateway_producer_refused_total", "Reports: refused by the broker.";
        unknown_topic: "kateway_producer_unknown_topic_total", "Reports and records: no such topic or partition.";
        queue_full: "kateway_producer_queue_full_total", "Times that a full queue refused a record, and those behind it.";
        enqueue_failed: "kateway_producer_enqueue_failed_total", "Records refused by the client for any other reason.";
        overdue: "kateway_producer_overdue_total", "Requests answered by their deadline, before the report.";
        late: "kateway_producer_late_total", "Reports that came after their request was answered.";
        restarts: "kateway_producer_restarts_total", "Producers replaced after a fatal error.";
        nudges: "kateway_producer_nudges_total", "Times librdkafka was told to send what had lingered.";
        wakeups: "kateway_producer_wakeups_total", "Times the core was told of reports.";
    }
    batches: Sizes;
}

counters! {
    /// Counters of all groups of a core.
    ConsumerStats {
        fetched: "kateway_consumer_fetched_total", "Messages taken from librdkafka.";
        fetched_bytes: "kateway_consumer_fetched_bytes_total", "Bytes of these messages.";
        rebalances: "kateway_consumer_rebalances_total", "Assignments and revocations.";
        lost_partitions: "kateway_consumer_lost_partitions_total", "Partitions taken away before anything could be committed.";
        commits: "kateway_consumer_commits_total", "Offset commits.";
        commits_failed: "kateway_consumer_commits_failed_total", "Offset commits that failed.";
        looks: "kateway_consumer_looks_total", "Looks of members without partitions at what others have committed.";
        offset_resets: "kateway_consumer_offset_resets_total", "Partitions continued at the oldest because their offset was gone.";
        gaps: "kateway_sub_gaps_total", "Times messages were gone before a group had read them: retention passed it.";
        seeks: "kateway_consumer_seeks_total", "Partitions moved for a client while they were read.";
        stuck: "kateway_sub_stuck_total", "Times a group had messages, waiting clients and no progress, and joined anew.";
        watchdog_looks: "kateway_sub_watchdog_looks_total", "Looks into a topic whether a group that seems stuck has anything to read.";
        errors: "kateway_consumer_errors_total", "Consumer errors.";
        restarts: "kateway_consumer_restarts_total", "Consumers replaced after a fatal error, or because their group was stuck.";
        groups_opened: "kateway_consumer_groups_opened_total", "Groups opened.";
        groups_closed: "kateway_consumer_groups_closed_total", "Groups left.";
        closes_overdue: "kateway_consumer_closes_overdue_total", "Consumers that did not leave their group within their time.";
    }
}
