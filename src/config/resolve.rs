//! What the configuration means: typed, complete, checked. Everything above reads this and nothing else.
//!
//! Immutable, shared: built once at start (and at each reload), handed to every core as an `Arc`. What the written values
//! leave open (`0`: one for each cpu; empty: the host's name) is settled here, from the [`Host`]. This file reads no sources.

use std::{fmt, net::SocketAddr, path::PathBuf, time::Duration};

use super::{
    check, cpus,
    error::ConfigError,
    model::Written,
    security::{BalancersConfig, KafkaSecurityConfig, TlsConfig},
};

/// Which store answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StoreKind {
    Kafka,
    Memory,
    Null,
}

/// What a listener serves.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Roles {
    pub publish: bool,
    pub subscribe: bool,
    pub manage: bool,
    /// All of it over TLS, and in no other way.
    pub tls: bool,
}

/// One address and what is served there. Two sections with the same address become one listener with both roles.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ListenerConfig {
    pub addr: SocketAddr,
    pub roles: Roles,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    pub gateway: GatewayConfig,
    pub shard: ShardConfig,
    /// Listeners every shard serves (`pub`, `sub`).
    pub data_listeners: Vec<ListenerConfig>,
    /// Listeners of the control thread (`man`); an address that is a data listener's too is served by the shards.
    pub man_listeners: Vec<ListenerConfig>,
    pub tls: TlsConfig,
    pub http: HttpConfig,
    pub balancers: BalancersConfig,
    pub publish: PublishConfig,
    pub subscribe: SubscribeConfig,
    pub store: StoreKind,
    pub kafka: KafkaConfig,
    pub topics: TopicsConfig,
    pub memory: MemoryConfig,
    pub null: NullConfig,
    pub drain: DrainConfig,
    pub log: LogConfig,
    pub zookeeper: ZooKeeperConfig,
    pub test: TestConfig,
}

/// What the host decides where the operator did not.
#[derive(Clone, Debug)]
pub struct Host {
    pub name: String,
    pub pid: u32,
    /// Cpus the process may use; never empty.
    pub cpus: Vec<usize>,
}

#[derive(Clone, PartialEq, Eq)]
pub struct GatewayConfig {
    /// `gateway.id`: unique among gateways; default `<hostname>-<pid>`.
    pub id: String,
    /// `gateway.advertise`: where other gateways reach the sub role (`HOST:PORT`). Written empty, it is known once the listeners are
    /// bound, see [`GatewayConfig::advertise_bound`]; `None`: nowhere.
    pub advertise: Option<String>,
    /// `gateway.peer_secret`; `None`: not set.
    pub peer_secret: Option<String>,
    /// `gateway.takeover_socket`; `None`: nobody can take over.
    pub takeover_socket: Option<PathBuf>,
    /// Where the listeners were bound, by the names of the line `ready`; nothing before that.
    pub bound: Vec<(&'static str, SocketAddr)>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ShardConfig {
    /// `shard.count`: executors, at least one (written `0`: one for each of `cpus`).
    pub count: usize,
    /// `shard.pin`: bind each executor to a cpu.
    pub pin: bool,
    /// `shard.cpus`: the cpus to use, at least one, sorted (written empty: those the process may use). Shard n takes the cpu
    /// at n modulo their number.
    pub cpus: Vec<usize>,
    /// `shard.kicker_ms`: period of the kicker thread; 0 switches it off (tests only).
    pub kicker_ms: u64,
    /// `shard.stall_ms`: a core whose tick does not advance for so long is counted and logged.
    pub stall_ms: u64,
    /// `shard.preempt_us`: glommio's preempt timer.
    pub preempt_us: u64,
}

/// Limits of the wire (`http.*`).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HttpConfig {
    /// `http.connections_max` per shard; over it a connection is answered 503 and closed.
    pub connections_max: usize,
    pub head_bytes_max: usize,
    pub target_bytes_max: usize,
    /// `http.head_timeout_ms` (10 s): a head that is not complete by then: 408.
    pub head_timeout: Duration,
    /// `http.body_bytes_per_s_min` (1,024): a body that comes slower: 408; 0 switches it off.
    pub body_bytes_per_s_min: u64,
    /// `http.body_grace_ms` (5 s): how long before that counts.
    pub body_grace: Duration,
    /// `http.body_timeout_ms` (600 s): a body that is not complete by then, however fast it comes: 408.
    pub body_timeout: Duration,
    /// `http.idle_timeout_ms` (60 s): a connection without a request closes.
    pub idle_timeout: Duration,
    /// `http.write_timeout_ms` (30 s): an answer the client does not take closes the connection.
    pub write_timeout: Duration,
    /// `http.max_requests` (0): what one connection carries; none: any number.
    pub max_requests: Option<u64>,
    /// `http.max_age_s` (0): how long a connection is used; none: as long as its client likes.
    pub max_age: Option<Duration>,
    /// `http.origins`: pages of these may call, `*`: of any; empty: none.
    pub origins: Vec<String>,
    /// `http.ws_ping_ms` (20 s): a WebSocket is pinged so often.
    pub ws_ping: Duration,
    /// `http.ws_echo`: serve the WebSocket that gives back what it is sent.
    pub ws_echo: bool,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PublishConfig {
    /// `pub.deadline_ms` (5,000): no publish waits longer.
    pub deadline: Duration,
    /// `pub.message_bytes_max`.
    pub message_bytes_max: usize,
    /// `pub.inflight_max` per shard; over it: 429.
    pub inflight_max: usize,
    /// `pub.batch_bytes_max` (8 MiB): over it a batch is 413.
    pub batch_bytes_max: usize,
    /// `pub.batch_messages_max` (4,000).
    pub batch_messages_max: usize,
    /// `pub.batch_memory_bytes_max` (256 MiB): what the batches under way on one shard may hold; over it: 429.
    pub batch_memory_bytes_max: usize,
    /// `pub.idempotency_window_s` (600).
    pub idempotency_window: Duration,
    /// `pub.idempotency_keys_max` per shard.
    pub idempotency_keys_max: usize,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SubscribeConfig {
    /// `sub.commit_interval_ms` (100).
    pub commit_interval: Duration,
    /// `sub.leases_max` per partition; over it the partition waits for the first unacknowledged message.
    pub leases_max: usize,
    /// `sub.groups_max` per gateway (1,000), an equal part for each shard; over that: 429.
    pub groups_max: usize,
    /// `sub.group_idle_s` (60): a group without clients leaves after so long.
    pub group_idle: Duration,
    /// `sub.waiters_max` concurrent fetches per group on one shard; over it: 429.
    pub waiters_max: usize,
    /// `sub.batch_bytes_max`: an answer stops filling here.
    pub batch_bytes_max: usize,
    /// `sub.memory_bytes_max` (256 MiB): what one shard keeps of messages for its groups.
    pub memory_bytes_max: usize,
    /// `sub.watchdog_s` (30): a group that has messages, waiting clients and no progress for so long joins anew.
    pub watchdog: Duration,
    /// `sub.max_stream_s` (0): how long an answer with `stream=1` may last; none: as long as its client.
    pub max_stream: Option<Duration>,
    /// `sub.steer`: connections go to the shard their first read belongs to.
    pub steer: bool,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KafkaConfig {
    /// `kafka.brokers`: `host:port,..`.
    pub brokers: String,
    /// `kafka.linger_us`: producer linger in microseconds (librdkafka takes fractions of ms).
    pub linger_us: u64,
    /// `kafka.batch_bytes_max`: `batch.size`.
    pub batch_bytes_max: usize,
    /// `kafka.queue_messages_max`, per producer.
    pub queue_messages_max: usize,
    /// `kafka.queue_bytes_max`, per producer.
    pub queue_bytes_max: usize,
    /// `kafka.compression`: `none|gzip|snappy|lz4|zstd`.
    pub compression: String,
    /// `kafka.fetch_queue_kbytes`: `queued.max.messages.kbytes` of each consumer.
    pub fetch_queue_kbytes: usize,
    /// `kafka.session_timeout_ms` (6,000).
    pub session_timeout: Duration,
    /// `kafka.metadata_interval_s`: how often the topic snapshot and consumers' metadata are refreshed (30).
    pub metadata_interval: Duration,
    /// `kafka.admin_timeout_ms`: metadata, create topic, watermarks (5,000).
    pub admin_timeout: Duration,
    pub security: KafkaSecurityConfig,
    /// `kafka.options`: further librdkafka options, `name=value`, applied last to producers and consumers.
    pub options: Vec<(String, String)>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TopicsConfig {
    /// `topics.auto_create` (false; always true for memory and null).
    pub auto_create: bool,
    /// `topics.partitions` (4).
    pub partitions: i32,
    /// `topics.replicas` (1).
    pub replicas: i32,
    /// `topics.compression`: pattern and codec, the first that fits counts.
    pub compression: Vec<(String, String)>,
}

impl TopicsConfig {
    /// What a topic's messages are compressed with, if not as `kafka.compression` says.
    pub fn compression_of(&self, topic: &str) -> Option<&str> {
        let fits = |pattern: &str| match pattern.strip_suffix('*') {
            Some(prefix) => topic.starts_with(prefix),
            None => topic == pattern,
        };
        self.compression.iter().find(|(pattern, _)| fits(pattern)).map(|(_, codec)| codec.as_str())
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MemoryConfig {
    /// `memory.bytes_max` over all topics; a partition over its share drops its oldest records.
    pub bytes_max: usize,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NullConfig {
    /// `null.delay_us`: how long a dry-run produce takes.
    pub delay: Duration,
    /// `null.error_ppm`: dry-run produces that fail, per million.
    pub error_ppm: u32,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DrainConfig {
    /// `drain.notice_s` (5; 0 allowed).
    pub notice: Duration,
    /// `drain.timeout_s` (20).
    pub timeout: Duration,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LogConfig {
    /// `log.level`: `error|warn|info|debug|trace` or a tracing filter; changed by SIGHUP.
    pub level: String,
    /// `log.format`: `text|json`.
    pub json: bool,
    /// `log.file`: empty = stderr.
    pub file: Option<PathBuf>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ZooKeeperConfig {
    /// `zookeeper.servers`, `HOST:PORT` each; empty: presence is off.
    pub servers: Vec<String>,
    /// `zookeeper.zone` (`default`).
    pub zone: String,
    /// `zookeeper.session_timeout_ms` (6,000).
    pub session_timeout: Duration,
}

/// Switches that break a promise on purpose, so that tests can be seen red. Named at start when on.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct TestConfig {
    /// `test.answer_before_report`: 201 without waiting for the delivery report.
    pub answer_before_report: bool,
    /// `test.break_clients_ms`: a Kafka client fails for good so long after it was made; `None` = never.
    pub break_clients: Option<Duration>,
    /// `test.deaf_after_messages`: the first consumer of a group gives so many messages and no more; `None` = all.
    pub deaf_after: Option<usize>,
    /// `test.panic_topic`: the request that looks it up panics.
    pub panic_topic: Option<String>,
}

// === impl Host ===

impl Host {
    pub fn this() -> Self {
        let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let name = if name.trim().is_empty() { "kateway".to_owned() } else { name.trim().to_owned() };
        Self { name, pid: std::process::id(), cpus: cpus::usable() }
    }
}

// === impl Config ===

impl Config {
    /// Gives written values, free of errors, their meaning on `host`.
    pub fn resolve(written: &Written, host: &Host) -> Result<Self, Vec<ConfigError>> {
        let (data_listeners, man_listeners) = listeners(written);
        Ok(Self {
            gateway: GatewayConfig::resolve(written, host),
            shard: ShardConfig::resolve(written, host).map_err(|error| vec![error])?,
            data_listeners,
            man_listeners,
            tls: TlsConfig::resolve(written),
            http: HttpConfig::resolve(written),
            balancers: BalancersConfig::resolve(written),
            publish: PublishConfig::resolve(written),
            subscribe: SubscribeConfig::resolve(written),
            store: match written.text("store.kind") {
                "memory" => StoreKind::Memory,
                "null" => StoreKind::Null,
                _ => StoreKind::Kafka,
            },
            kafka: KafkaConfig::resolve(written),
            topics: TopicsConfig::resolve(written),
            memory: MemoryConfig { bytes_max: size(written, "memory.bytes_max") },
            null: NullConfig {
                delay: Duration::from_micros(written.int("null.delay_us")),
                error_ppm: number(written, "null.error_ppm"),
            },
            drain: DrainConfig {
                notice: Duration::from_secs(written.int("drain.notice_s")),
                timeout: Duration::from_secs(written.int("drain.timeout_s")),
            },
            log: LogConfig {
                level: written.text("log.level").to_owned(),
                json: written.text("log.format") == "json",
                file: Some(written.text("log.file")).filter(|file| !file.is_empty()).map(PathBuf::from),
            },
            zookeeper: ZooKeeperConfig {
                servers: written.list("zookeeper.servers").to_vec(),
                zone: written.text("zookeeper.zone").to_owned(),
                session_timeout: millis(written, "zookeeper.session_timeout_ms"),
            },
            test: TestConfig {
                answer_before_report: written.bool("test.answer_before_report"),
                break_clients: Some(millis(written, "test.break_clients_ms")).filter(|after| !after.is_zero()),
                deaf_after: Some(size(written, "test.deaf_after_messages")).filter(|after| *after > 0),
                panic_topic: Some(written.text("test.panic_topic")).filter(|name| !name.is_empty()).map(str::to_owned),
            },
        })
    }
}

// === impl of the parts ===

impl GatewayConfig {
    fn resolve(written: &Written, host: &Host) -> Self {
        let id = match written.text("gateway.id") {
            "" => format!("{}-{}", host.name, host.pid),
            id => id.to_owned(),
        };
        let given = |path| Some(written.text(path)).filter(|text| !text.is_empty()).map(str::to_owned);
        Self {
            id,
            advertise: given("gateway.advertise"),
            peer_secret: given("gateway.peer_secret"),
            takeover_socket: given("gateway.takeover_socket").map(PathBuf::from),
            bound: Vec::new(),
        }
    }

    /// Fills in where the sub role was bound, unless the operator said where it is reached. An address that means every address of
    /// the host says nothing to another host.
    pub fn advertise_bound(&mut self, bound: Option<SocketAddr>) {
        if self.advertise.is_none() {
            self.advertise = bound.filter(|addr| !addr.ip().is_unspecified()).map(|addr| addr.to_string());
        }
    }
}

impl fmt::Debug for GatewayConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, advertise, peer_secret, takeover_socket, bound } = self;
        let peer_secret = peer_secret.as_ref().map(|_| "***");
        f.debug_struct("GatewayConfig")
            .field("id", id)
            .field("advertise", advertise)
            .field("peer_secret", &peer_secret)
            .field("bound", bound)
            .field("takeover_socket", &takeover_socket)
            .finish()
    }
}

impl ShardConfig {
    fn resolve(written: &Written, host: &Host) -> Result<Self, ConfigError> {
        let wanted = cpus::parse(written.text("shard.cpus")).expect("the table lets only lists of cpus pass");
        let cpus = if wanted.is_empty() { host.cpus.clone() } else { wanted };
        if cpus.iter().any(|cpu| !host.cpus.contains(cpu)) {
            let expected = format!("cpus this process may use, which are {}", cpus::render(&host.cpus));
            return Err(check::error(written, "shard.cpus", expected));
        }
        let count = match size(written, "shard.count") {
            0 => cpus.len(),
            count => count,
        };
        Ok(Self {
            count,
            pin: written.bool("shard.pin"),
            cpus,
            kicker_ms: written.int("shard.kicker_ms"),
            stall_ms: written.int("shard.stall_ms"),
            preempt_us: written.int("shard.preempt_us"),
        })
    }
}

#[cfg(test)]
impl HttpConfig {
    /// Each deadline is `within`; nothing is off that is on by default.
    pub fn of_a_test(within: Duration) -> Self {
        Self {
            connections_max: 1,
            head_bytes_max: crate::limits::HEAD_BYTES_MAX,
            target_bytes_max: crate::limits::TARGET_BYTES_MAX,
            head_timeout: within,
            body_bytes_per_s_min: 1_024,
            body_grace: within,
            body_timeout: within,
            idle_timeout: within,
            write_timeout: within,
            max_requests: None,
            max_age: None,
            origins: Vec::new(),
            ws_ping: within,
            ws_echo: false,
        }
    }
}

impl HttpConfig {
    fn resolve(written: &Written) -> Self {
        Self {
            connections_max: size(written, "http.connections_max"),
            head_bytes_max: size(written, "http.head_bytes_max"),
            target_bytes_max: size(written, "http.target_bytes_max"),
            head_timeout: millis(written, "http.head_timeout_ms"),
            body_bytes_per_s_min: written.int("http.body_bytes_per_s_min"),
            body_grace: millis(written, "http.body_grace_ms"),
            body_timeout: millis(written, "http.body_timeout_ms"),
            idle_timeout: millis(written, "http.idle_timeout_ms"),
            write_timeout: millis(written, "http.write_timeout_ms"),
            max_requests: Some(written.int("http.max_requests")).filter(|max| *max > 0),
            max_age: Some(Duration::from_secs(written.int("http.max_age_s"))).filter(|max| !max.is_zero()),
            origins: written.list("http.origins").to_vec(),
            ws_ping: millis(written, "http.ws_ping_ms"),
            ws_echo: written.bool("http.ws_echo"),
        }
    }
}

impl PublishConfig {
    fn resolve(written: &Written) -> Self {
        Self {
            deadline: millis(written, "pub.deadline_ms"),
            message_bytes_max: size(written, "pub.message_bytes_max"),
            inflight_max: size(written, "pub.inflight_max"),
            batch_bytes_max: size(written, "pub.batch_bytes_max"),
            batch_messages_max: size(written, "pub.batch_messages_max"),
            batch_memory_bytes_max: size(written, "pub.batch_memory_bytes_max"),
            idempotency_window: Duration::from_secs(written.int("pub.idempotency_window_s")),
            idempotency_keys_max: size(written, "pub.idempotency_keys_max"),
        }
    }
}

impl SubscribeConfig {
    fn resolve(written: &Written) -> Self {
        Self {
            commit_interval: millis(written, "sub.commit_interval_ms"),
            leases_max: size(written, "sub.leases_max"),
            groups_max: size(written, "sub.groups_max"),
            group_idle: Duration::from_secs(written.int("sub.group_idle_s")),
            waiters_max: size(written, "sub.waiters_max"),
            batch_bytes_max: size(written, "sub.batch_bytes_max"),
            memory_bytes_max: size(written, "sub.memory_bytes_max"),
            watchdog: Duration::from_secs(written.int("sub.watchdog_s")),
            max_stream: Some(Duration::from_secs(written.int("sub.max_stream_s"))).filter(|limit| !limit.is_zero()),
            steer: written.bool("sub.steer"),
        }
    }
}

impl KafkaConfig {
    fn resolve(written: &Written) -> Self {
        Self {
            brokers: written.list("kafka.brokers").join(","),
            linger_us: written.int("kafka.linger_us"),
            batch_bytes_max: size(written, "kafka.batch_bytes_max"),
            queue_messages_max: size(written, "kafka.queue_messages_max"),
            queue_bytes_max: size(written, "kafka.queue_bytes_max"),
            compression: written.text("kafka.compression").to_owned(),
            fetch_queue_kbytes: size(written, "kafka.fetch_queue_kbytes"),
            session_timeout: millis(written, "kafka.session_timeout_ms"),
            metadata_interval: Duration::from_secs(written.int("kafka.metadata_interval_s")),
            admin_timeout: millis(written, "kafka.admin_timeout_ms"),
            security: KafkaSecurityConfig::resolve(written),
            options: written.list("kafka.options").iter().map(|text| pair(text)).collect(),
        }
    }
}

impl TopicsConfig {
    fn resolve(written: &Written) -> Self {
        let store_makes_topics = written.text("store.kind") != "kafka";
        Self {
            auto_create: store_makes_topics || written.bool("topics.auto_create"),
            partitions: number(written, "topics.partitions"),
            replicas: number(written, "topics.replicas"),
            compression: written.list("topics.compression").iter().map(|text| pair(text)).collect(),
        }
    }
}

/// Merges roles with the same address into one listener; port 0 means another port each time and is never merged. Those of the data
/// plane, and those of the control thread alone.
fn listeners(written: &Written) -> (Vec<ListenerConfig>, Vec<ListenerConfig>) {
    let publish = Roles { publish: true, ..Roles::default() };
    let subscribe = Roles { subscribe: true, ..Roles::default() };
    let manage = Roles { manage: true, ..Roles::default() };
    let (mut data, mut man): (Vec<ListenerConfig>, Vec<ListenerConfig>) = Default::default();
    let over_tls = |roles| Roles { tls: true, ..roles };
    for (path, roles) in [
        ("pub.addr", publish),
        ("sub.addr", subscribe),
        ("pub.tls_addr", over_tls(publish)),
        ("sub.tls_addr", over_tls(subscribe)),
        ("man.addr", manage),
        ("man.tls_addr", over_tls(manage)),
    ] {
        let Ok(addr) = written.text(path).parse::<SocketAddr>() else { continue };
        match data.iter_mut().find(|listener| listener.addr == addr && addr.port() != 0) {
            Some(shared) => shared.roles = shared.roles.and(roles),
            None if roles.manage => man.push(ListenerConfig { addr, roles }),
            None => data.push(ListenerConfig { addr, roles }),
        }
    }
    (data, man)
}

// === impl Roles ===

impl Roles {
    /// The roles of both.
    fn and(self, other: Self) -> Self {
        Self {
            publish: self.publish || other.publish,
            subscribe: self.subscribe || other.subscribe,
            manage: self.manage || other.manage,
            tls: self.tls || other.tls,
        }
    }
}

fn pair(text: &str) -> (String, String) {
    let (name, value) = text.split_once('=').expect("the table lets only name=value pass");
    (name.trim().to_owned(), value.trim().to_owned())
}

fn millis(written: &Written, path: &str) -> Duration {
    Duration::from_millis(written.int(path))
}

fn size(written: &Written, path: &str) -> usize {
    number(written, path)
}

/// A number that fits its type by the table's bounds.
fn number<T: TryFrom<u64>>(written: &Written, path: &str) -> T {
    T::try_from(written.int(path)).unwrap_or_else(|_| unreachable!("the table bounds {path} by what its type holds"))
}
