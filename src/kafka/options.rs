//! Every librdkafka option the gateway relies on, set by name with its reason. What is not here is librdkafka's default on purpose.
//!
//! Invariant: `kafka.options` of the configuration comes last, so an operator can override what the promises do not rest
//! on (the configuration refuses the rest). This
//! file only knows names and values; who uses them is `producer` and `consumer`.

use std::time::Duration;

use crate::{
    config::{GatewayConfig, KafkaSecurityConfig, resolve::Config},
    store::Ack,
};

type Options = Vec<(String, String)>;

/// What a produce waits less than its request: a stalled broker is reported up to 0.7 s late (measured), and the request must
/// hear of it before its own deadline.
const REPORT_HEADROOM: Duration = Duration::from_secs(1);
const MESSAGE_TIMEOUT_MIN: Duration = Duration::from_millis(500);

/// Key, headers and the record's own framing on top of the largest payload.
const RECORD_OVERHEAD_BYTES: usize = 64 * 1024;
/// librdkafka's own default of `message.max.bytes`; Kafka's brokers take about 1 MiB by default.
const MESSAGE_BYTES_USUAL: usize = 1_000_000;

/// [`stay`]. Each request of librdkafka carries one partition, so staying makes
/// batches larger: with three brokers 1.4 x the rate and half the brokers' CPU against 1 ms (`perf/results`, compare).
const STICKY_MS: u64 = 20;
/// The same for ack=all, which has one batch of a partition under way at a time (`native/linger.rs`): a longer stay gained nothing, and
/// with distant brokers would queue records behind that batch while other partitions are free.
const STICKY_ALL_MS: u64 = 5;

/// What one fetch answer may hold: messages are handed out without a copy, so each keeps its answer alive.
const FETCH_BYTES_MAX: usize = 4 * 1024 * 1024;

/// How long records without a key go to the same partition: at least twice the linger, as librdkafka has it by default.
pub fn stay(config: &Config, ack: Ack) -> Duration {
    let ms = if ack == Ack::All { STICKY_ALL_MS } else { STICKY_MS };
    Duration::from_millis(ms).max(Duration::from_micros(2 * config.kafka.linger_us))
}

/// The options of the producer for one ack level.
pub fn producer(config: &Config, ack: Ack) -> Options {
    let mut options = Builder::default();
    common(&mut options, config);
    let kafka = &config.kafka;
    let name = match ack {
        Ack::All => "all",
        Ack::Local => "local",
        Ack::None => "none",
    };
    options.set("client.id", format!("kateway-{}-pub-{name}", config.gateway.id));
    match ack {
        Ack::All => {
            // Idempotent: retries neither duplicate nor reorder. It wants acks=all and at most 5 requests in flight.
            options.set("acks", "all").set("enable.idempotence", "true");
            // enable.gapless.guarantee stays off (setting it logs a warning): a gap is a record that was answered as failed,
            // and with it one such record would be fatal for all topics of the core.
            options.set("max.in.flight.requests.per.connection", 5).set("retries", i32::MAX);
        }
        Ack::Local => {
            // Retries are kept: a leader change is then invisible to clients. A retry may reorder and repeat, which the
            // contract says of `ack=local`; 5 in flight keep the pipe full and a reordering short.
            options.set("acks", 1).set("enable.idempotence", "false");
            options.set("max.in.flight.requests.per.connection", 5).set("retries", i32::MAX);
        }
        Ack::None => {
            // No answer comes, so there is nothing to retry on.
            options.set("acks", 0).set("enable.idempotence", "false").set("retries", 0);
        }
    }
    let message_timeout = message_timeout(config.publish.deadline);
    options.set("message.timeout.ms", message_timeout.as_millis());
    // A broker that does not answer must fail the request while the message can still be reported as what it is.
    options.set("request.timeout.ms", message_timeout.as_millis());
    // A leader change takes some 10 to 500 ms: ask again often within the few seconds there are.
    options.set("retry.backoff.ms", 50).set("retry.backoff.max.ms", 500);
    // A topic that was just made may be unknown to the first broker asked; longer than this it does not exist.
    options.set("topic.metadata.propagation.max.ms", message_timeout.as_millis() / 2);

    // Hash of the key as Kafka's Java client has it; records without a key go wherever the current batch goes.
    options.set("partitioner", "murmur2_random");
    options.set("linger.ms", fraction_ms(kafka.linger_us));
    // Off: the choice is ours (`native/sticky.rs`), and with it our partitioner would not be asked.
    options.set("sticky.partitioning.linger.ms", 0);
    options.set("batch.size", kafka.batch_bytes_max).set("batch.num.messages", 10_000);
    options.set("compression.codec", &kafka.compression);
    let message_bytes_max = (config.publish.message_bytes_max + RECORD_OVERHEAD_BYTES).max(MESSAGE_BYTES_USUAL);
    options.set("message.max.bytes", message_bytes_max);
    options.set("queue.buffering.max.messages", kafka.queue_messages_max);
    options.set("queue.buffering.max.kbytes", (kafka.queue_bytes_max / 1024).max(1));
    // Every record has a slot that waits for its report.
    options.set("delivery.report.only.error", "false");
    options.set("topic.metadata.refresh.interval.ms", kafka.metadata_interval.as_millis());
    options.finish(&kafka.options)
}

/// The options of a group's consumer, which may fetch `ahead_kbytes` ahead of its clients.
pub fn consumer(config: &Config, group_id: &str, ahead_kbytes: usize) -> Options {
    let mut options = Builder::default();
    common(&mut options, config);
    let kafka = &config.kafka;
    options.set("client.id", member_name(&config.gateway)).set("group.id", group_id);
    // Cooperative: a rebalance only stops the partitions that move. Dynamic membership (no group.instance.id): a static member
    // sends no LeaveGroup.
    options.set("partition.assignment.strategy", "cooperative-sticky").set("group.protocol", "classic");
    options.set("session.timeout.ms", kafka.session_timeout.as_millis());
    options.set("heartbeat.interval.ms", (kafka.session_timeout.as_millis() / 3).clamp(1, 2000));
    // The pump polls each second whatever the clients do; a core that cannot for a minute should lose its partitions.
    options.set("max.poll.interval.ms", kafka.session_timeout.as_millis().max(60_000));
    // The lease table decides what is committed, and where a group without a commit starts is asked for per request.
    options.set("enable.auto.commit", "false").set("enable.auto.offset.store", "false");
    // Every partition is assigned at an explicit offset, so this only says what to do when that offset is gone: retention
    // passed it, or the topic was made anew. librdkafka does it in place; answering an error by reassigning could be taken for
    // the answer to a rebalance under way.
    options.set("auto.offset.reset", "earliest");
    options.set("isolation.level", "read_committed").set("enable.partition.eof", "false");
    // Per partition and without clients: small. A full queue is looked at again after 20 ms; the default of 1 s stalls readers, and 5 ms
    // give them nothing more, but cost 500 idle groups with something to read 1.4 cores (commit 82d2ab3).
    options.set("queued.max.messages.kbytes", ahead_kbytes.max(1)).set("fetch.queue.backoff.ms", 20);
    // The byte bound above is the one that holds.
    options.set("queued.min.messages", 100_000);
    // One byte ends the broker's wait, so a new message is delivered at once; the wait only spaces empty fetches.
    options.set("fetch.min.bytes", 1).set("fetch.wait.max.ms", 500).set("fetch.error.backoff.ms", 100);
    options.set("fetch.message.max.bytes", 1024 * 1024).set("fetch.max.bytes", FETCH_BYTES_MAX);
    // New partitions are seen within this.
    let refresh_ms = kafka.metadata_interval.min(Duration::from_secs(30)).as_millis();
    options.set("topic.metadata.refresh.interval.ms", refresh_ms);
    options.finish(&kafka.options)
}

/// The options of a client of a group that never joins it: it asks for commits and makes them.
pub fn outsider(config: &Config, group_id: &str) -> Options {
    let mut options = Builder::default();
    common(&mut options, config);
    options.set("client.id", format!("kateway-{}-admin", config.gateway.id)).set("group.id", group_id);
    options.set("enable.auto.commit", "false").set("enable.auto.offset.store", "false");
    options.set("isolation.level", "read_committed").set("group.protocol", "classic");
    options.finish(&config.kafka.options)
}

/// The options of a client that makes one admin call.
pub fn admin(config: &Config) -> Options {
    let mut options = Builder::default();
    common(&mut options, config);
    options.set("client.id", format!("kateway-{}-admin", config.gateway.id));
    options.finish(&config.kafka.options)
}

/// The options of the client that looks into a topic.
pub fn peek(config: &Config) -> Options {
    let mut options = Builder::default();
    common(&mut options, config);
    options.set("client.id", format!("kateway-{}-peek", config.gateway.id));
    // Nothing is joined, and nothing is to be remembered of it.
    options.set("enable.auto.commit", "false").set("enable.auto.offset.store", "false");
    // An offset that is gone means the oldest; the end of a partition is said, because nobody waits for more.
    options.set("auto.offset.reset", "earliest").set("enable.partition.eof", "true");
    options.set("isolation.level", "read_committed");
    // It reads a little and goes: these bounds are for each partition (src: a simple consumer).
    options.set("queued.max.messages.kbytes", 64).set("queued.min.messages", 1_000);
    options.set("fetch.message.max.bytes", 256 * 1024).set("fetch.max.bytes", FETCH_BYTES_MAX);
    options.set("fetch.min.bytes", 1).set("fetch.wait.max.ms", 100).set("fetch.error.backoff.ms", 100);
    options.finish(&config.kafka.options)
}

/// What the group's list of members shows of this gateway: `kateway-<gateway id>@<HOST:PORT>`, so that other gateways find the owner
/// of a partition.
fn member_name(gateway: &GatewayConfig) -> String {
    let at = gateway.advertise.as_ref().map(|addr| format!("@{addr}")).unwrap_or_default();
    format!("kateway-{}{at}", gateway.id)
}

fn common(options: &mut Builder, config: &Config) {
    options.set("bootstrap.servers", &config.kafka.brokers);
    secure(options, &config.kafka.security);
    // Existence is the gateway's own decision.
    options.set("allow.auto.create.topics", "false");
    // Batching is the linger's business.
    options.set("socket.nagle.disable", "true").set("socket.keepalive.enable", "true");
    // A broker that hangs is given up after 10 s instead of a minute; one that restarts is back within a second.
    options.set("socket.timeout.ms", 10_000).set("socket.connection.setup.timeout.ms", 5_000);
    options.set("reconnect.backoff.ms", 50).set("reconnect.backoff.max.ms", 1_000);
    // Figures come from our own counters.
    options.set("statistics.interval.ms", 0).set("enable.metrics.push", "false");
    // Logs come by the queue the core reads, not from librdkafka's threads.
    options.set("log.queue", "true").set("log.connection.close", "false");
}

/// How the brokers are reached. What does not concern the protocol is left out: librdkafka refuses or reads it all the same.
fn secure(options: &mut Builder, security: &KafkaSecurityConfig) {
    options.set("security.protocol", &security.protocol);
    if security.uses_sasl() {
        options.set("sasl.mechanisms", &security.sasl_mechanism);
        options.set("sasl.username", &security.sasl_username).set("sasl.password", &security.sasl_password);
    }
    if security.uses_tls() {
        // `https` is librdkafka's word for: the certificate is for the host that was asked for.
        let verify = if security.tls_verify_host { "https" } else { "none" };
        options.set("ssl.endpoint.identification.algorithm", verify).set("enable.ssl.certificate.verification", "true");
        let files = [
            ("ssl.ca.location", &security.tls_ca),
            ("ssl.certificate.location", &security.tls_cert),
            ("ssl.key.location", &security.tls_key),
            ("ssl.key.password", &security.tls_key_password),
        ];
        for (name, value) in files {
            if let Some(value) = value {
                options.set(name, value);
            }
        }
    }
}

/// How long librdkafka may hold a record of a publish with this deadline.
pub fn message_timeout(deadline: Duration) -> Duration {
    deadline.saturating_sub(REPORT_HEADROOM).max(MESSAGE_TIMEOUT_MIN)
}

fn fraction_ms(us: u64) -> String {
    format!("{}.{:03}", us / 1000, us % 1000)
}

#[derive(Default)]
struct Builder(Options);

impl Builder {
    #[allow(clippy::needless_pass_by_value)] // numbers and literals at every call: a reference would only be noise
    fn set(&mut self, name: &str, value: impl ToString) -> &mut Self {
        self.0.push((name.to_owned(), value.to_string()));
        self
    }

    fn finish(mut self, overrides: &[(String, String)]) -> Options {
        self.0.extend_from_slice(overrides);
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_reported_before_its_request_ends() {
        assert_eq!(message_timeout(Duration::from_secs(5)), Duration::from_secs(4));
        assert_eq!(message_timeout(Duration::from_millis(300)), MESSAGE_TIMEOUT_MIN);
    }

    #[test]
    fn a_member_says_where_its_gateway_is() {
        let mut gateway = GatewayConfig {
            id: "gw-1".to_owned(),
            advertise: None,
            peer_secret: None,
            takeover_socket: None,
            bound: Vec::new(),
        };
        assert_eq!(member_name(&gateway), "kateway-gw-1");
        gateway.advertise = Some("10.0.0.1:9192".to_owned());
        assert_eq!(member_name(&gateway), "kateway-gw-1@10.0.0.1:9192");
    }

    #[test]
    fn linger_is_a_fraction_of_ms() {
        assert_eq!(fraction_ms(300), "0.300");
        assert_eq!(fraction_ms(1_050), "1.050");
        assert_eq!(fraction_ms(0), "0.000");
    }
}
