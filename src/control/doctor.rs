//! `kateway doctor`: looks whether this host can run this configuration, says what to do where it cannot, and starts nothing.
//!
//! One line a check: `OK`, `WARN` (it runs, and something will hurt) or `FAIL` (it does not run). Invariants: every line that is
//! not OK says what to do; nothing stays open or changed behind it. Gathering facts is apart from judging them, so that the
//! judgement is tested without a broken host. It knows the configuration and the kernel, and neither shards nor Kafka's protocol.

use std::{
    fs, io,
    net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs as _},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use super::{
    files,
    host::{self, Limit, Resource},
};
use crate::config::{Config, ListenerConfig, StoreKind, cpus};

/// Exit code when a check failed (`EX_UNAVAILABLE` of sysexits, as a refused start).
pub const EXIT_UNFIT: u8 = 69;

/// The oldest kernel whose `io_uring` glommio can use.
const KERNEL_MIN: (u32, u32) = (5, 8);
/// Below this glommio refuses to make an executor.
const LOCKED_BYTES_MIN: u64 = 512 * 1024;
/// What one executor locks at most: its rings and its registered buffers.
const LOCKED_BYTES_PER_SHARD: u64 = 1024 * 1024 + LOCKED_BYTES_MIN;
/// Descriptors of one executor beside its connections: rings, wake-ups, listeners.
const FILES_PER_SHARD: u64 = 16;
/// Descriptors of the process beside its shards: control, log, broker connections.
const FILES_OF_PROCESS: u64 = 256;
/// How long one broker address may take to answer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Unix time of 2025-01-01: a clock before it was never set.
const CLOCK_S_MIN: u64 = 1_735_689_600;

/// How a check ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Verdict {
    Ok,
    Warn,
    Fail,
}

/// One line of the report.
#[derive(Debug)]
struct Finding {
    verdict: Verdict,
    what: String,
    says: String,
    /// Empty when all is well.
    todo: String,
}

/// Examines the host for `config`, prints the report, and gives the exit code.
pub fn run(config: &Config) -> u8 {
    let mut findings = vec![
        io_uring(io_uring_available()),
        kernel(&proc_line("/proc/sys/kernel/osrelease")),
        locked_memory(host::limit(Resource::LockedBytes), config.shard.count),
        open_files(host::limit(Resource::OpenFiles), config),
        shards(config),
        memory(config, memory_available_bytes()),
        clock(SystemTime::now(), host::is_clock_synchronised()),
    ];
    let local_ports = local_ports();
    for listener in config.data_listeners.iter().chain(&config.man_listeners) {
        findings.push(listener_free(listener, bind_once(listener.addr), local_ports));
    }
    if config.store == StoreKind::Kafka {
        findings.extend(config.kafka.brokers.split(',').map(|broker| reachable(broker, connect_once(broker))));
    }
    findings.extend(files_of(config));
    for finding in &findings {
        println!("{}", finding.line());
    }
    let is_fit = findings.iter().all(|finding| finding.verdict != Verdict::Fail);
    if is_fit { 0 } else { EXIT_UNFIT }
}

/// Whether executors can be made here; else one plain sentence that says why not. `boot` asks before it starts anything.
pub fn io_uring_available() -> Result<(), String> {
    let disabled = proc_line("/proc/sys/kernel/io_uring_disabled");
    host::try_io_uring().map_err(|error| io_uring_refusal(&error, &disabled))
}

/// Whether the limit on locked memory lets an executor be made; else one plain sentence. To be asked once the limit was raised.
pub fn locked_memory_suffices() -> Result<(), String> {
    match host::limit(Resource::LockedBytes).and_then(|limit| limit.soft) {
        Some(bytes) if bytes < LOCKED_BYTES_MIN => Err(format!(
            "kateway needs {} of locked memory for each core's io_uring, and the limit is {}: raise it (`ulimit -l`, LimitMEMLOCK=).",
            kib(LOCKED_BYTES_MIN),
            kib(bytes)
        )),
        _ => Ok(()),
    }
}

fn io_uring_refusal(error: &io::Error, disabled: &str) -> String {
    match (error.raw_os_error(), disabled) {
        (Some(libc::ENOSYS), _) => {
            let (major, minor) = KERNEL_MIN;
            format!("kateway needs io_uring, which this kernel does not have: run Linux {major}.{minor} or later.")
        }
        (Some(libc::EPERM), "1" | "2") => {
            "kateway needs io_uring, which this host has switched off: run `sysctl kernel.io_uring_disabled=0`.".to_owned()
        }
        (Some(libc::EPERM | libc::EACCES), _) => {
            "kateway needs io_uring, which a seccomp filter forbids here (container runtimes do by default): allow io_uring_setup, \
             io_uring_enter and io_uring_register in the container's seccomp profile."
                .to_owned()
        }
        (Some(libc::ENOMEM), _) => {
            "kateway needs io_uring, for which the limit on locked memory is too low here: raise it (`ulimit -l`, LimitMEMLOCK=)."
                .to_owned()
        }
        _ => format!("kateway needs io_uring, which cannot be set up here: {error}."),
    }
}

fn io_uring(available: Result<(), String>) -> Finding {
    match available {
        Ok(()) => ok("io_uring", "available"),
        Err(reason) => fail("io_uring", "not available", reason),
    }
}

fn kernel(release: &str) -> Finding {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    let version = (numbers.next().and_then(Result::ok), numbers.next().and_then(Result::ok));
    match version {
        (Some(major), Some(minor)) if (major, minor) >= KERNEL_MIN => ok("kernel", release),
        (Some(_), Some(_)) => fail("kernel", release, format!("run Linux {}.{} or later", KERNEL_MIN.0, KERNEL_MIN.1)),
        _ => {
            warn("kernel", format!("release `{release}` is not understood"), "see that it is Linux 5.8 or later".into())
        }
    }
}

fn locked_memory(limit: Option<Limit>, shards: usize) -> Finding {
    const WHAT: &str = "locked memory";
    const REMEDY: &str = "raise it: `ulimit -l`, LimitMEMLOCK= in the unit file, --ulimit memlock= for a container";
    let wanted = LOCKED_BYTES_PER_SHARD * count(shards);
    match limit.map(|limit| limit.hard) {
        None => warn(WHAT, "the limit cannot be read", "see that /proc is mounted".into()),
        Some(None) => ok(WHAT, "unlimited"),
        Some(Some(hard)) if hard < LOCKED_BYTES_MIN => fail(
            WHAT,
            format!("the limit is {}, an executor needs {}", kib(hard), kib(LOCKED_BYTES_MIN)),
            REMEDY.into(),
        ),
        Some(Some(hard)) if hard < wanted => {
            warn(WHAT, format!("the limit is {}, {shards} shards may want {}", kib(hard), kib(wanted)), REMEDY.into())
        }
        Some(Some(hard)) => ok(WHAT, format!("the limit is {}, {shards} shards want {}", kib(hard), kib(wanted))),
    }
}

fn open_files(limit: Option<Limit>, config: &Config) -> Finding {
    const WHAT: &str = "open files";
    let least = FILES_OF_PROCESS + count(config.shard.count) * FILES_PER_SHARD;
    let wanted = least + count(config.shard.count) * count(config.http.connections_max);
    let todo = || "raise it (`ulimit -n`, LimitNOFILE= in the unit file), or lower http.connections_max".to_owned();
    // The gateway raises the soft limit itself, so the hard one counts.
    match limit.map(|limit| limit.hard) {
        None => warn(WHAT, "the limit cannot be read", "see that /proc is mounted".into()),
        Some(None) => ok(WHAT, "unlimited"),
        Some(Some(hard)) if hard < least => {
            fail(WHAT, format!("the limit is {hard}, the least to start is {least}"), todo())
        }
        Some(Some(hard)) if hard < wanted => {
            warn(WHAT, format!("the limit is {hard}, with all connections {wanted} would be open"), todo())
        }
        Some(Some(hard)) => ok(WHAT, format!("the limit is {hard}, at most {wanted} are wanted")),
    }
}

fn shards(config: &Config) -> Finding {
    let (shards, list) = (config.shard.count, cpus::render(&config.shard.cpus));
    let says = format!("{shards} shards on cpus {list}");
    if shards > config.shard.cpus.len() {
        let todo = "set shard.count to the number of cpus, or 0; more shards than cpus only take each other's time";
        return warn("cpus", says, todo.to_owned());
    }
    ok("cpus", says)
}

fn memory(config: &Config, available_bytes: Option<u64>) -> Finding {
    const WHAT: &str = "memory";
    /// One for each ack level.
    const PRODUCERS_PER_SHARD: u64 = 3;
    let (bound, keys) = match config.store {
        StoreKind::Kafka => {
            let queues = count(config.shard.count) * PRODUCERS_PER_SHARD * count(config.kafka.queue_bytes_max);
            (queues, "shard.count or kafka.queue_bytes_max")
        }
        StoreKind::Memory => (count(config.memory.bytes_max), "memory.bytes_max"),
        StoreKind::Null => (0, ""),
    };
    match available_bytes {
        None => warn(WHAT, "what is available cannot be read", "see that /proc is mounted".into()),
        Some(available) if available < bound => {
            let says = format!("{} are available, messages may take {}", mib(available), mib(bound));
            warn(WHAT, says, format!("lower {keys}, or give the host more"))
        }
        Some(available) => ok(WHAT, format!("{} are available, messages take at most {}", mib(available), mib(bound))),
    }
}

fn clock(now: SystemTime, synchronised: Option<bool>) -> Finding {
    const WHAT: &str = "clock";
    let is_set = now.duration_since(UNIX_EPOCH).is_ok_and(|since| since.as_secs() >= CLOCK_S_MIN);
    match (is_set, synchronised) {
        (false, _) => {
            fail(WHAT, "was never set", "set it and keep it right with NTP: tokens and timestamps rest on it".into())
        }
        (true, Some(false)) => warn(WHAT, "nothing keeps it right", "run an NTP client such as chrony".into()),
        (true, Some(true)) => ok(WHAT, "set and kept right"),
        (true, None) => ok(WHAT, "set"),
    }
}

fn listener_free(listener: &ListenerConfig, bound: io::Result<()>, local_ports: Option<(u16, u16)>) -> Finding {
    let (addr, roles) = (listener.addr, listener.roles);
    let named = [("pub", roles.publish), ("sub", roles.subscribe), ("man", roles.manage)];
    let keys: Vec<&str> = named.iter().filter(|(_, on)| *on).map(|(name, _)| *name).collect();
    let what = format!("{} {addr}", keys.join("+"));
    if let Err(error) = bound {
        let todo = match error.kind() {
            io::ErrorKind::AddrInUse => "stop what listens there (it may be a running gateway), or choose another port",
            io::ErrorKind::AddrNotAvailable => "choose an address of this host",
            io::ErrorKind::PermissionDenied => {
                "choose a port from 1024 up, or grant CAP_NET_BIND_SERVICE (AmbientCapabilities= in the unit file)"
            }
            _ => "choose another address",
        };
        return fail(what, error.to_string(), format!("{todo}; {}.addr", keys.join(".addr, ")));
    }
    match local_ports {
        Some((first, last)) if (first..=last).contains(&addr.port()) => {
            let says = format!("free, but outgoing connections take ports from {first} to {last}");
            warn(what, says, "choose a port outside, or reserve it: sysctl net.ipv4.ip_local_reserved_ports".to_owned())
        }
        _ => ok(what, "free"),
    }
}

fn files_of(config: &Config) -> Vec<Finding> {
    match files::load(&config.tls, &config.kafka.security) {
        Ok(_) => vec![ok("files", "those the configuration names can be used")],
        Err(wrong) => {
            let told =
                |error| fail("files", error, "put it there, readable for the gateway, or mend the key".to_owned());
            wrong.into_iter().map(told).collect()
        }
    }
}

fn reachable(broker: &str, connected: io::Result<SocketAddr>) -> Finding {
    let what = format!("broker {broker}");
    match connected {
        Ok(addr) => ok(what, format!("accepts connections ({addr})")),
        Err(error) => fail(what, error.to_string(), "start it, open the way to it, or mend kafka.brokers".to_owned()),
    }
}

// === facts ===

/// Binds and lets go. Without SO_REUSEPORT, so that a running gateway is seen.
fn bind_once(addr: SocketAddr) -> io::Result<()> {
    TcpListener::bind(addr).map(drop)
}

/// Connects to the first address of `broker` that accepts.
#[allow(clippy::disallowed_methods)] // Doctor runs without cores: resolving names may take its time.
fn connect_once(broker: &str) -> io::Result<SocketAddr> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for addr in broker.to_socket_addrs()? {
        match TcpStream::connect_timeout(&addr, CONNECT_TIMEOUT) {
            Ok(_) => return Ok(addr),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn local_ports() -> Option<(u16, u16)> {
    let line = proc_line("/proc/sys/net/ipv4/ip_local_port_range");
    let mut ports = line.split_whitespace().map(str::parse);
    Some((ports.next()?.ok()?, ports.next()?.ok()?))
}

fn memory_available_bytes() -> Option<u64> {
    let table = fs::read_to_string("/proc/meminfo").ok()?;
    let rest = table.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    rest.trim().trim_end_matches("kB").trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

/// A one-line file, trimmed; empty where there is none.
fn proc_line(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

// === impl Finding ===

impl Finding {
    fn line(&self) -> String {
        let verdict = match self.verdict {
            Verdict::Ok => "OK  ",
            Verdict::Warn => "WARN",
            Verdict::Fail => "FAIL",
        };
        let todo = if self.todo.is_empty() { String::new() } else { format!(". To do: {}", self.todo) };
        format!("{verdict}  {}: {}{todo}", self.what, self.says)
    }
}

fn ok(what: impl Into<String>, says: impl Into<String>) -> Finding {
    Finding { verdict: Verdict::Ok, what: what.into(), says: says.into(), todo: String::new() }
}

fn warn(what: impl Into<String>, says: impl Into<String>, todo: String) -> Finding {
    Finding { verdict: Verdict::Warn, what: what.into(), says: says.into(), todo }
}

fn fail(what: impl Into<String>, says: impl Into<String>, todo: String) -> Finding {
    Finding { verdict: Verdict::Fail, what: what.into(), says: says.into(), todo }
}

fn count(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}

fn kib(bytes: u64) -> String {
    format!("{} KiB", bytes / 1024)
}

fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes / (1024 * 1024))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Host, Sources, resolve::Roles};

    fn config(flags: &[(&str, &str)]) -> Config {
        let flags = [("store", "memory")].iter().chain(flags).map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        let sources = Sources { flags: flags.collect(), ..Sources::default() };
        let host = Host { name: "h".to_owned(), pid: 1, cpus: vec![0, 1] };
        let settings = crate::config::Settings::read(&sources).expect("the configuration is valid");
        settings.resolve(&host).expect("the configuration fits the host")
    }

    fn hard(limit: u64) -> Limit {
        Limit { soft: Some(0), hard: Some(limit) }
    }

    #[test]
    fn each_refusal_of_io_uring_says_what_to_do() {
        let says = |errno, disabled| io_uring_refusal(&io::Error::from_raw_os_error(errno), disabled);
        assert!(says(libc::ENOSYS, "").contains("Linux 5.8"));
        assert!(says(libc::EPERM, "2").contains("sysctl kernel.io_uring_disabled=0"));
        assert!(says(libc::EPERM, "0").contains("seccomp"));
        assert!(says(libc::ENOMEM, "0").contains("LimitMEMLOCK"));
        assert!(says(libc::EMFILE, "0").contains("cannot be set up"));
    }

    #[test]
    fn kernels_are_compared_by_number() {
        let verdict = |release| kernel(release).verdict;
        assert_eq!([verdict("5.8.0"), verdict("6.18.44-x"), verdict("10.1")], [Verdict::Ok; 3]);
        assert_eq!([verdict("5.4.0-generic"), verdict("4.19")], [Verdict::Fail; 2]);
        assert_eq!(verdict("odd"), Verdict::Warn);
    }

    #[test]
    fn limits_are_judged_against_the_shards() {
        let verdict = |limit| locked_memory(Some(limit), 2).verdict;
        assert_eq!(verdict(hard(64 << 10)), Verdict::Fail);
        assert_eq!(verdict(hard(1 << 20)), Verdict::Warn);
        assert_eq!(verdict(hard(8 << 20)), Verdict::Ok);
        assert_eq!(verdict(Limit { soft: Some(1), hard: None }), Verdict::Ok);

        let config = config(&[("shards", "2"), ("http.connections_max", "1000")]);
        let verdict = |limit| open_files(Some(limit), &config).verdict;
        assert_eq!(verdict(hard(200)), Verdict::Fail);
        assert_eq!(verdict(hard(1024)), Verdict::Warn);
        assert_eq!(verdict(hard(4096)), Verdict::Ok);
    }

    #[test]
    fn shards_memory_and_clock_are_judged() {
        assert_eq!(shards(&config(&[("shards", "2")])).verdict, Verdict::Ok);
        assert_eq!(shards(&config(&[("shards", "3")])).verdict, Verdict::Warn);
        let config = config(&[("memory.bytes_max", "2097152")]);
        assert_eq!(memory(&config, Some(1 << 20)).verdict, Verdict::Warn);
        assert_eq!(memory(&config, Some(1 << 30)).verdict, Verdict::Ok);
        assert_eq!(clock(UNIX_EPOCH, Some(true)).verdict, Verdict::Fail);
        assert_eq!(clock(SystemTime::now(), Some(false)).verdict, Verdict::Warn);
    }

    #[test]
    fn a_port_in_use_fails_and_one_in_the_outgoing_range_warns() {
        let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let addr = taken.local_addr().expect("a bound socket");
        let listener = ListenerConfig { addr, roles: Roles { publish: true, manage: true, ..Roles::default() } };
        let finding = listener_free(&listener, bind_once(addr), None);
        assert_eq!(finding.verdict, Verdict::Fail);
        assert!(finding.line().contains("pub.addr, man.addr"), "{}", finding.line());
        assert_eq!(listener_free(&listener, Ok(()), Some((1, 65_535))).verdict, Verdict::Warn);
        assert_eq!(listener_free(&listener, Ok(()), None).verdict, Verdict::Ok);
    }

    #[test]
    fn a_broker_that_listens_is_reachable_and_one_that_does_not_is_not() {
        let broker = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let name = broker.local_addr().expect("a bound socket").to_string();
        assert_eq!(reachable(&name, connect_once(&name)).verdict, Verdict::Ok);
        drop(broker);
        let finding = reachable(&name, connect_once(&name));
        assert_eq!(finding.verdict, Verdict::Fail);
        assert!(finding.line().contains("To do: "));
    }
}
