//! A producer that writes in transactions, which the gateway does not.
//!
//! What it leaves in a log beside messages is what readers have to cope with: messages that may not be read yet, or never, and the mark at
//! the end of each transaction, which takes an offset of its own.

use std::time::Duration;

use rdkafka::config::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

const CALL: Duration = Duration::from_secs(30);

/// A transaction that is open; the broker ends it after a minute.
pub struct Transaction(BaseProducer);

impl Transaction {
    /// Writes one message to a partition; it is stored, and not to be read, when this returns.
    pub fn write(brokers: &str, topic: &str, partition: i32, payload: &str) -> Self {
        let producer: BaseProducer = ClientConfig::new()
            .set("bootstrap.servers", brokers)
            .set("transactional.id", topic)
            .set("log_level", "0")
            .create()
            .expect("the configuration is valid");
        producer.init_transactions(CALL).expect("the coordinator answers");
        producer.begin_transaction().expect("none is open");
        let record = BaseRecord::<(), _>::to(topic).partition(partition).payload(payload);
        producer.send(record).unwrap_or_else(|(error, _)| panic!("a record can be queued: {error}"));
        producer.flush(CALL).expect("it is stored");
        Self(producer)
    }

    pub fn commit(self) {
        self.0.commit_transaction(CALL).expect("it is committed");
    }
}
