//! A gateway process: the built binary, started as an operator would start it.
//!
//! The gateway listens on port 0 and says in its ready line where that is, so any number of gateways run at once. Its
//! log goes to the run's folder. When a test is over the log is looked at: a panic or a stalled core in it fails the
//! test, whatever the answers were, unless the test said that it provokes one.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use serde_json::Value;

use crate::client::{self, Connection, Request, Response};
use crate::process::{self, Process};
use crate::{folder, wait_for, wait_until};

const START: Duration = Duration::from_secs(20);

/// Log lines that no test should leave behind.
const ALARMS: [&str; 2] = ["panicked", "the core stalls"];

/// How a gateway is to be started.
#[derive(Clone)]
pub struct Builder {
    store: String,
    brokers: Option<String>,
    shards: u32,
    settings: Vec<(String, String)>,
    config: Option<PathBuf>,
    addresses_from_config: bool,
    /// Publish, subscribe and manage listener; by default each takes any free port.
    addresses: [SocketAddr; 3],
    alarms_expected: bool,
    /// `run`, or `takeover`.
    start: &'static str,
    hinder: Option<fn(&mut Command)>,
}

impl Builder {
    /// Starts as the successor of the gateway behind `gateway.takeover_socket`.
    #[must_use]
    pub fn takes_over(mut self) -> Self {
        self.start = "takeover";
        self
    }

    #[must_use]
    pub fn shards(mut self, count: u32) -> Self {
        self.shards = count;
        self
    }

    /// `--set key=value`; a later value for the same key replaces the earlier.
    #[must_use]
    pub fn set(mut self, key: &str, value: impl std::fmt::Display) -> Self {
        self.settings.retain(|(k, _)| k != key);
        self.settings.push((key.to_owned(), value.to_string()));
        self
    }

    #[must_use]
    pub fn config(mut self, file: &Path) -> Self {
        self.config = Some(file.to_path_buf());
        self
    }

    /// Leaves the addresses to the configuration file.
    #[must_use]
    pub fn addresses_from_config(mut self) -> Self {
        self.addresses_from_config = true;
        self
    }

    /// Listens there, so that another life of the gateway can be found at the same place.
    #[must_use]
    pub fn at(mut self, publish: SocketAddr, subscribe: SocketAddr) -> Self {
        [self.addresses[0], self.addresses[1]] = [publish, subscribe];
        self
    }

    /// What the host does to it; see [`crate::hinder`].
    #[must_use]
    pub fn hindered(mut self, hinder: fn(&mut Command)) -> Self {
        self.hinder = Some(hinder);
        self
    }

    /// For tests that provoke a panic or a stall.
    #[must_use]
    pub fn alarms_expected(mut self) -> Self {
        self.alarms_expected = true;
        self
    }

    /// Starts the gateway and waits for its ready line.
    #[track_caller]
    pub fn start(self) -> Kateway {
        let log = folder::fresh("kateway", ".stderr");
        let mut command = self.command();
        let file = std::fs::File::create(&log).expect("the run's folder can be written");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(file);
        let mut process = Process::start("kateway", command).expect("the gateway binary can be started");
        let stdout = BufReader::new(process.stdout());
        let (lines, ready) = mpsc::channel();
        // Reads to the end, so that the gateway can never block on a full pipe.
        std::thread::spawn(move || stdout.lines().map_while(Result::ok).for_each(|line| drop(lines.send(line))));
        loop {
            let line = ready.recv_timeout(START).unwrap_or_else(|_| {
                panic!("the gateway is not ready after {START:?}; {}:\n{}", log.display(), text(&log));
            });
            if let Some(addresses) = line.strip_prefix("ready ") {
                return Kateway::new(process, addresses, log, self.alarms_expected);
            }
        }
    }

    fn command(&self) -> Command {
        let mut command = Command::new(binary());
        command.arg(self.start).args(["--store", &self.store]).args(["--shards", &self.shards.to_string()]);
        if !self.addresses_from_config {
            for (flag, address) in ["--pub", "--sub", "--man"].iter().zip(&self.addresses) {
                command.args([*flag, &address.to_string()]);
            }
        }
        if let Some(brokers) = &self.brokers {
            command.args(["--brokers", brokers]);
        }
        if let Some(config) = &self.config {
            command.arg("--config").arg(config);
        }
        for (key, value) in &self.settings {
            command.arg("--set").arg(format!("{key}={value}"));
        }
        if let Some(hinder) = self.hinder {
            hinder(&mut command);
        }
        command
    }
}

/// The binary under test.
pub fn binary() -> PathBuf {
    let path =
        std::env::var_os("KATEWAY_BIN").map_or_else(|| folder::root().join("target/release/kateway"), PathBuf::from);
    assert!(path.is_file(), "{} is missing; build it first (cargo build --release)", path.display());
    path
}

/// A running gateway; killed on drop.
pub struct Kateway {
    process: Process,
    pub publish: SocketAddr,
    pub subscribe: SocketAddr,
    pub manage: SocketAddr,
    /// What the ready line says.
    addresses: String,
    log: PathBuf,
    alarms_expected: bool,
}

impl Kateway {
    /// On the embedded store.
    pub fn memory() -> Builder {
        Self::on("memory", None)
    }

    /// On the store that keeps nothing.
    pub fn null() -> Builder {
        Self::on("null", None)
    }

    /// On a real cluster.
    pub fn kafka(brokers: &str) -> Builder {
        Self::on("kafka", Some(brokers.to_owned()))
    }

    fn on(store: &str, brokers: Option<String>) -> Builder {
        let builder = Builder {
            store: store.into(),
            brokers,
            shards: 1,
            settings: Vec::new(),
            config: None,
            addresses_from_config: false,
            addresses: [SocketAddr::from(([127, 0, 0, 1], 0)); 3],
            alarms_expected: false,
            start: "run",
            hinder: None,
        };
        // Tests that look at the notice period ask for one; all others would only wait for it. Many gateways and three brokers share the
        // CPUs of a small machine: pinned to the same one they would starve each other, and half a second without it is no fault of
        // theirs. An executor that really hangs does so for longer.
        builder.set("drain.notice_s", 0).set("shard.pin", false).set("shard.stall_ms", 2_000)
    }

    fn new(process: Process, addresses: &str, log: PathBuf, alarms_expected: bool) -> Self {
        let address = |name| address(addresses, name);
        Self {
            process,
            publish: address("pub"),
            subscribe: address("sub"),
            manage: address("man"),
            addresses: addresses.to_owned(),
            log,
            alarms_expected,
        }
    }

    /// A listener that the ready line names besides, such as `pub_tls`.
    #[track_caller]
    pub fn address(&self, name: &str) -> SocketAddr {
        address(&self.addresses, name)
    }

    // === requests ===

    /// One request to the publish listener on a connection of its own.
    #[track_caller]
    pub fn publish(&self, request: &Request) -> Response {
        client::once(self.publish, request)
    }

    #[track_caller]
    pub fn subscribe(&self, request: &Request) -> Response {
        client::once(self.subscribe, request)
    }

    #[track_caller]
    pub fn manage(&self, request: &Request) -> Response {
        client::once(self.manage, request)
    }

    #[track_caller]
    pub fn publisher(&self) -> Connection {
        Connection::open(self.publish).expect("the publish listener accepts")
    }

    #[track_caller]
    pub fn subscriber(&self) -> Connection {
        Connection::open(self.subscribe).expect("the subscribe listener accepts")
    }

    /// A connection to one of the listeners that `shard` serves. The kernel spreads them, so several are tried.
    #[track_caller]
    pub fn connection_of_shard(&self, shard: usize, address: SocketAddr) -> Connection {
        let count = || {
            let status = self.status();
            status["shards"][shard]["counters"]["kateway_connections"].as_u64().expect("a gauge")
        };
        wait_for(START, format!("shard {shard} has a connection"), || {
            let before = count();
            let mut connection = Connection::open(address).expect("the listener accepts");
            connection.call(&Request::get("/alive")).unwrap_or_else(|e| panic!("{e}")).expect(200);
            (count() > before).then_some(connection)
        })
    }

    #[track_caller]
    pub fn status(&self) -> Value {
        self.manage(&Request::get("/v1/status")).expect(200).json()
    }

    /// Waits until it asks for requests: a balancer that looks earlier leaves it out for a while.
    #[track_caller]
    pub fn wait_ready(&self) {
        wait_until(START, "/readyz says 200", || self.manage(&Request::get("/readyz")).status == 200);
    }

    #[track_caller]
    pub fn scrape(&self) -> crate::exposition::Scrape {
        crate::exposition::parse(&self.manage(&Request::get("/metrics")).expect(200).text())
    }

    // === the process ===

    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    pub fn open_fds(&self) -> usize {
        process::open_fds(self.pid())
    }

    pub fn resident_kib(&self) -> u64 {
        process::resident_kib(self.pid())
    }

    /// What the gateway has logged so far.
    pub fn log(&self) -> String {
        text(&self.log)
    }

    /// Waits until the log contains `what`.
    #[track_caller]
    pub fn wait_log(&self, limit: Duration, what: &str) {
        wait_until(limit, format!("the log says {what:?}"), || self.log().contains(what));
    }

    pub fn signal(&self, signal: i32) {
        self.process.signal(signal);
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    pub fn has_ended(&mut self) -> bool {
        self.process.poll().is_some()
    }

    /// Waits until the process has ended by itself.
    #[track_caller]
    pub fn wait_end(&mut self, limit: Duration) -> ExitStatus {
        self.process.wait(limit)
    }

    /// SIGTERM, and the exit status once it ended.
    #[track_caller]
    pub fn terminate(&mut self, limit: Duration) -> ExitStatus {
        self.signal(libc::SIGTERM);
        self.wait_end(limit)
    }
}

impl Drop for Kateway {
    fn drop(&mut self) {
        self.process.kill();
        if self.alarms_expected || std::thread::panicking() {
            return;
        }
        let log = self.log();
        let alarm = log.lines().find(|line| ALARMS.iter().any(|alarm| line.contains(alarm)));
        assert!(
            alarm.is_none(),
            "the gateway's log {} holds an alarm: {}",
            self.log.display(),
            alarm.unwrap_or_default()
        );
    }
}

#[track_caller]
fn address(addresses: &str, name: &str) -> SocketAddr {
    let found = addresses.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
    let text = found.unwrap_or_else(|| panic!("the ready line names {name}: {addresses}"));
    text.parse().unwrap_or_else(|_| panic!("{name} is an address: {addresses}"))
}

/// Runs the binary to its end with `args` and returns status, stdout and stderr.
pub fn run(args: &[&str]) -> (i32, String, String) {
    run_hindered(args, |_| ())
}

/// The same for one that takes its time.
pub fn run_within(args: &[&str], limit: Duration) -> (i32, String, String) {
    run_to_end(args, limit, |_| ())
}

/// The same under a hindrance (see [`crate::hinder`]).
pub fn run_hindered(args: &[&str], hinder: impl FnOnce(&mut Command)) -> (i32, String, String) {
    run_to_end(args, START, hinder)
}

fn run_to_end(args: &[&str], limit: Duration, hinder: impl FnOnce(&mut Command)) -> (i32, String, String) {
    let mut command = Command::new(binary());
    hinder(&mut command);
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let output = process::output("kateway", command, limit).expect("the gateway binary can be started");
    let utf8 = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap_or(-1), utf8(&output.stdout), utf8(&output.stderr))
}

fn text(path: &Path) -> String {
    String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned()
}
