//! A Kafka cluster of this run: ZooKeeper and n brokers on one machine.
//!
//! Method: every broker is a JVM of its own with a small heap and its own data and log folder, on a port reserved in
//! advance, so that it can be killed and started again at the same address. The settings are those a careful operator
//! uses (three replicas, two in sync, no unclean election, no topics made by accident); what differs serves speed only:
//! a short ZooKeeper session so that a killed leader is replaced in seconds, no initial rebalance delay, few offsets
//! partitions. The cluster counts as up when the brokers' own metadata names all of them.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::admin::{Admin, OFFSETS};
use crate::process::Process;
use crate::tls::Authority;
use crate::zookeeper::ZooKeeper;
use crate::{folder, java, ports, wait_until};

/// How long a broker may take to start or to be replaced as leader, on a busy two-core machine.
const PATIENCE: Duration = Duration::from_secs(90);

/// Who the secured listeners know, and the password.
pub const USER: &str = "gate";
pub const PASSWORD: &str = "open-sesame-7";

static PROOFS: AtomicU32 = AtomicU32::new(0);

/// What a cluster is made of.
#[derive(Clone, Copy)]
pub struct Options {
    pub brokers: u32,
    pub heap_mib: u32,
    /// Stop the JIT at its first level: starts faster, peaks lower. Right for tests, wrong for benchmarks.
    pub quick_start: bool,
    /// Listeners with TLS beside the open one: one that asks for a user (SASL), one that asks for a certificate.
    pub secured: bool,
}

impl Options {
    /// Three brokers that start fast.
    pub const TESTS: Self = Self { brokers: 3, heap_mib: 256, quick_start: true, secured: true };
}

/// Ports of a broker.
#[derive(Clone, Copy)]
struct Ports {
    plain: u16,
    sasl_ssl: u16,
    ssl: u16,
}

struct Broker {
    id: u32,
    ports: Ports,
    home: PathBuf,
    process: Mutex<Option<Process>>,
}

/// A running cluster; everything it started is killed on drop.
pub struct Cluster {
    brokers: Vec<Broker>,
    authority: Option<Authority>,
    options: Options,
    // After `brokers`: fields drop in order, and brokers end quietly only while ZooKeeper is there.
    zookeeper: ZooKeeper,
}

impl Cluster {
    /// Starts everything and waits until all brokers are in the metadata.
    pub fn start(options: Options) -> Self {
        let mut zookeeper = ZooKeeper::start();
        zookeeper.wait_ready();
        let authority = options.secured.then(Authority::new);
        let prepare = |id| Broker::prepare(id, options, zookeeper.address(), authority.as_ref());
        let brokers = (0..options.brokers).map(prepare).collect();
        let cluster = Self { brokers, authority, options, zookeeper };
        for broker in &cluster.brokers {
            broker.launch(options);
        }
        cluster.wait_whole();
        cluster.admin().warm_up_groups();
        cluster
    }

    /// `host:port,host:port,..` for `--brokers` and for every other client.
    pub fn bootstrap(&self) -> String {
        self.addresses(|ports| ports.plain)
    }

    /// The same of the listeners that ask for a user, over TLS.
    pub fn bootstrap_sasl_ssl(&self) -> String {
        self.addresses(|ports| ports.sasl_ssl)
    }

    /// The same of the listeners that ask for a certificate.
    pub fn bootstrap_ssl(&self) -> String {
        self.addresses(|ports| ports.ssl)
    }

    fn addresses(&self, port: fn(&Ports) -> u16) -> String {
        self.brokers.iter().map(|b| format!("127.0.0.1:{}", port(&b.ports))).collect::<Vec<_>>().join(",")
    }

    /// Who signed the brokers' certificates, and is believed by them.
    pub fn authority(&self) -> &Authority {
        self.authority.as_ref().expect("the cluster was started with secured listeners")
    }

    /// Gives [`USER`] its password for SCRAM; for PLAIN the brokers know it from the start.
    pub fn add_scram_user(&self) {
        let scram = |kind: &str| format!("{kind}=[iterations=4096,password={PASSWORD}]");
        let config = format!("{},{}", scram("SCRAM-SHA-256"), scram("SCRAM-SHA-512"));
        let brokers = self.bootstrap();
        let of = ["--entity-type", "users", "--entity-name", USER, "--alter", "--add-config", &config];
        java::tool(java::CONFIGS, &[&["--bootstrap-server", &brokers][..], &of].concat(), b"");
    }

    pub fn zookeeper(&self) -> SocketAddr {
        self.zookeeper.address()
    }

    pub fn admin(&self) -> Admin {
        Admin::new(&self.bootstrap())
    }

    /// Kills everything; for the owner of a cluster that is never dropped.
    pub fn stop(&self) {
        for broker in &self.brokers {
            self.kill(broker.id);
        }
        self.zookeeper.signal(libc::SIGKILL);
    }

    /// `kill -9` of one broker.
    pub fn kill(&self, id: u32) {
        if let Some(mut process) = self.slot(id).take() {
            process.kill();
        }
    }

    /// Bytes of a topic's records on the disk of the broker that has most of them.
    pub fn log_bytes(&self, topic: &str) -> u64 {
        let of_broker = |broker: &Broker| -> u64 {
            let partitions = std::fs::read_dir(broker.home.join("data")).into_iter().flatten().flatten();
            let ours = partitions.filter(|entry| {
                entry.file_name().to_string_lossy().rsplit_once('-').is_some_and(|(name, _)| name == topic)
            });
            let files = ours.flat_map(|entry| std::fs::read_dir(entry.path()).into_iter().flatten().flatten());
            let logs = files.filter(|file| file.path().extension().is_some_and(|extension| extension == "log"));
            logs.filter_map(|log| log.metadata().ok()).map(|metadata| metadata.len()).sum()
        };
        self.brokers.iter().map(of_broker).max().unwrap_or(0)
    }

    /// Starts a killed broker again on its old address and data.
    pub fn restart(&self, id: u32) {
        self.brokers[id as usize].launch(self.options);
    }

    /// SIGSTOP: the broker's sockets stay open and answer nothing.
    pub fn freeze(&self, id: u32) {
        self.slot(id).as_ref().expect("the broker runs").signal(libc::SIGSTOP);
    }

    /// SIGCONT after [`Self::freeze`].
    pub fn thaw(&self, id: u32) {
        self.slot(id).as_ref().expect("the broker runs").signal(libc::SIGCONT);
    }

    /// Undoes what a trial that failed left behind: starts what it killed, lets go on what it froze.
    pub fn heal(&self) {
        for broker in &self.brokers {
            let is_killed = self.slot(broker.id).is_none();
            if is_killed { self.restart(broker.id) } else { self.thaw(broker.id) }
        }
        self.wait_recovered();
    }

    /// Waits until the cluster is as it was before a fault: all brokers there, what groups commit in sync again, and the controller makes
    /// topics on all of them. Whoever disturbed it waits, so that the next trial finds it whole.
    pub fn wait_recovered(&self) {
        self.wait_whole();
        self.wait_in_sync(OFFSETS);
        let proof = format!("proof-{}", PROOFS.fetch_add(1, Ordering::Relaxed));
        self.admin().create_topic(&proof, 3);
        self.wait_in_sync(&proof);
    }

    /// Waits until every broker of the cluster is in the metadata.
    fn wait_whole(&self) {
        let admin = self.admin();
        let expected = self.brokers.len();
        wait_until(PATIENCE, format!("{expected} brokers in the metadata"), || {
            self.assert_alive();
            admin.broker_count().is_ok_and(|n| n == expected)
        });
    }

    /// Waits until every partition of `topic` has all its replicas in sync again.
    pub fn wait_in_sync(&self, topic: &str) {
        let admin = self.admin();
        wait_until(PATIENCE, format!("all replicas of {topic} in sync"), || admin.fully_in_sync(topic));
    }

    fn slot(&self, id: u32) -> std::sync::MutexGuard<'_, Option<Process>> {
        self.brokers[id as usize].process.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn assert_alive(&self) {
        for broker in &self.brokers {
            let ended = self.slot(broker.id).as_mut().is_some_and(|process| process.poll().is_some());
            assert!(!ended, "broker {} ended; see {}", broker.id, broker.home.display());
        }
    }
}

// === impl Broker ===

impl Broker {
    fn prepare(id: u32, options: Options, zookeeper: SocketAddr, authority: Option<&Authority>) -> Self {
        let home = folder::run().join(format!("broker-{id}"));
        std::fs::create_dir_all(&home).expect("the run's folder can be written");
        let ports = Ports { plain: ports::reserve(), sasl_ssl: ports::reserve(), ssl: ports::reserve() };
        let mut text = properties(id, ports.plain, options.brokers, zookeeper, &home);
        if let Some(authority) = authority {
            text = text.replace("listeners=", &format!("listeners={}", secured_listeners(ports)));
            text += &secured_properties(authority, &home);
        }
        std::fs::write(home.join("server.properties"), text).expect("the run's folder can be written");
        Self { id, ports, home, process: Mutex::new(None) }
    }

    fn launch(&self, options: Options) {
        let heap = format!("-Xmx{}m", options.heap_mib);
        let mut flags = vec!["-Xms64m", &heap, "-XX:+UseSerialGC"];
        if options.quick_start {
            flags.push("-XX:TieredStopAtLevel=1");
        }
        let mut command = java::java(&flags);
        command.arg("kafka.Kafka").arg(self.home.join("server.properties"));
        log_to(&mut command, &self.home.join("server.log"));
        let process = Process::start(format!("broker {}", self.id), command).expect("java can be started");
        *self.process.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(process);
    }
}

fn properties(id: u32, port: u16, brokers: u32, zookeeper: SocketAddr, home: &Path) -> String {
    let replicas = brokers.min(3);
    let in_sync = replicas.min(2);
    format!(
        "broker.id={id}
listeners=PLAINTEXT://127.0.0.1:{port}
zookeeper.connect={zookeeper}
zookeeper.session.timeout.ms=6000
log.dirs={data}
num.network.threads=2
num.io.threads=4
num.partitions=4
default.replication.factor={replicas}
min.insync.replicas={in_sync}
unclean.leader.election.enable=false
auto.leader.rebalance.enable=false
auto.create.topics.enable=false
delete.topic.enable=true
offsets.topic.num.partitions=4
offsets.topic.replication.factor={replicas}
transaction.state.log.num.partitions=1
transaction.state.log.replication.factor={replicas}
transaction.state.log.min.isr={in_sync}
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1200
log.segment.bytes=67108864
log.preallocate=false
log.cleaner.dedupe.buffer.size=4194304
replica.lag.time.max.ms=10000
",
        data = home.join("data").display()
    )
}

fn secured_listeners(ports: Ports) -> String {
    format!("SASL_SSL://127.0.0.1:{},SSL://127.0.0.1:{},", ports.sasl_ssl, ports.ssl)
}

fn secured_properties(authority: &Authority, home: &Path) -> String {
    let pair = authority.issue("IP:127.0.0.1");
    let read = |path: &Path| std::fs::read_to_string(path).expect("a file of the run");
    let keystore = home.join("keystore.pem");
    std::fs::write(&keystore, read(&pair.key) + &read(&pair.certificate)).expect("the run's folder can be written");
    let plain = "org.apache.kafka.common.security.plain.PlainLoginModule";
    let scram = "org.apache.kafka.common.security.scram.ScramLoginModule";
    format!(
        "ssl.keystore.type=PEM
ssl.keystore.location={keystore}
ssl.truststore.type=PEM
ssl.truststore.location={authority}
listener.name.ssl.ssl.client.auth=required
sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512
listener.name.sasl_ssl.plain.sasl.jaas.config={plain} required user_{USER}=\"{PASSWORD}\";
listener.name.sasl_ssl.scram-sha-256.sasl.jaas.config={scram} required;
listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config={scram} required;
",
        keystore = keystore.display(),
        authority = authority.certificate().display(),
    )
}

/// Sends the output of a JVM of ours to `path`; appended, because a restarted broker continues the log of the killed
/// one.
pub(crate) fn log_to(command: &mut Command, path: &Path) {
    let file =
        std::fs::OpenOptions::new().create(true).append(true).open(path).expect("the run's folder can be written");
    let copy = file.try_clone().expect("a file can be cloned");
    command.stdin(Stdio::null()).stdout(file).stderr(copy);
}
