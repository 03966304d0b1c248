//! `kateway haproxy`: HAProxy's configuration from the gateways that ZooKeeper knows, and its reload when that changes.
//!
//! Invariants: an empty list changes nothing, since a balancer that knows somebody is better than one that knows nobody; the file is
//! replaced whole; what stands in the registry is data, so only names and addresses that are such get into the configuration. After
//! a session of our own has begun, gateways that are missing are kept for a while: they have lost theirs at the same time. A command
//! of its own: no core runs, and waiting is its work.
#![allow(clippy::disallowed_methods)] // As said: it may wait.

use std::{
    collections::BTreeMap,
    fs, io,
    net::SocketAddr,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use serde::Deserialize;

use super::{Client, ClientError, ids_path};
use crate::config::{Config, ZooKeeperConfig, is_host_port, is_id};

/// The configuration where no other template is given.
const TEMPLATE: &str = include_str!("../../../config/haproxy.cfg.in");
/// Between two tries to reach ZooKeeper.
const AGAIN: Duration = Duration::from_millis(500);
/// The longest between two looks at the registry; a change is told sooner.
const LOOK: Duration = Duration::from_secs(2);
/// Several changes at once are one reload.
const CALM: Duration = Duration::from_millis(100);
/// HAProxy's master overlooks a signal that comes while it reloads.
const RELOAD_SPACING: Duration = Duration::from_secs(2);
/// What a look at the registry may take; then ZooKeeper has lost the session, whatever it says.
const LOOK_WITHIN: Duration = Duration::from_secs(15);
/// What `--reload` may take.
const RELOAD_WITHIN: Duration = Duration::from_secs(30);
/// How long after our own session began nobody is taken for gone.
const SETTLE: Duration = Duration::from_secs(15);

/// What the command was told.
#[derive(Clone, Debug)]
pub struct Options {
    /// Go on, and follow changes.
    pub watches: bool,
    /// The file to write; else it is printed.
    pub out: Option<PathBuf>,
    pub template: Option<PathBuf>,
    pub bind_publish: String,
    pub bind_subscribe: String,
    /// A shell command that reloads HAProxy.
    pub reload: Option<String>,
    /// The file with the process id of HAProxy's master, which SIGUSR2 reloads.
    pub pid_file: Option<PathBuf>,
}

/// A gateway as it enters itself; further fields are its own business.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
struct Gateway {
    id: String,
    #[serde(rename = "pub", default)]
    publish: String,
    #[serde(rename = "sub", default)]
    subscribe: String,
}

type Gateways = BTreeMap<String, Gateway>;

/// A backend of the configuration, and a gateway's address in it.
type Backend = (&'static str, fn(&mut Gateway) -> &mut String);
const BACKENDS: [Backend; 2] =
    [("publishers", |gateway| &mut gateway.publish), ("subscribers", |gateway| &mut gateway.subscribe)];

/// Runs the command to its end, which with `--watch` is a signal's.
pub fn run(config: &Config, options: &Options) -> Result<(), String> {
    if config.zookeeper.servers.is_empty() {
        return Err("zookeeper.servers: names no server".to_owned());
    }
    let template = match &options.template {
        None => TEMPLATE.to_owned(),
        Some(path) => fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?,
    };
    let mut balancer = Balancer::new(options, template);
    if options.watches { balancer.watch(config) } else { balancer.once(config) }
}

struct Balancer<'a> {
    options: &'a Options,
    template: String,
    known: Gateways,
    reloaded: Option<Instant>,
    /// What HAProxy was last told to read is not the file, or nobody knows.
    needs_reload: bool,
    /// Backends that nobody is entered for, whose servers are kept.
    kept: [bool; BACKENDS.len()],
    /// The last failure, which is said once.
    failure: String,
}

impl<'a> Balancer<'a> {
    fn new(options: &'a Options, template: String) -> Self {
        let (known, kept, failure) = (Gateways::new(), [false; BACKENDS.len()], String::new());
        Self { options, template, known, reloaded: None, needs_reload: true, kept, failure }
    }

    fn once(&mut self, config: &Config) -> Result<(), String> {
        let client = Client::begin(&config.zookeeper).map_err(|error| error.to_string())?;
        let children = client.children_within(&ids_path(&config.zookeeper), LOOK_WITHIN);
        // An answer that never comes must not hold up the end.
        client.leave();
        let gateways = gateways(children.map_err(|error| error.to_string())?);
        if gateways.is_empty() {
            return Err(format!("no gateway is entered in {}", ids_path(&config.zookeeper)));
        }
        let text = self.render(&gateways);
        match &self.options.out {
            None => print!("{text}"),
            Some(path) => replace(path, &text).map_err(|error| format!("{}: {error}", path.display()))?,
        }
        Ok(())
    }

    fn watch(&mut self, config: &Config) -> Result<(), String> {
        let Some(out) = self.options.out.clone() else { return Err("--watch needs --out".to_owned()) };
        let mut was_told = false;
        loop {
            match Client::begin(&config.zookeeper) {
                Ok(client) => {
                    was_told = false;
                    self.follow(&client, &config.zookeeper, &out);
                    eprintln!(
                        "kateway haproxy: the session with ZooKeeper has ended; {} stays as it is",
                        out.display()
                    );
                    client.leave();
                }
                Err(error) if !was_told => {
                    was_told = true;
                    eprintln!("kateway haproxy: {error}; {} stays as it is", out.display());
                }
                Err(_) => {}
            }
            thread::sleep(AGAIN);
        }
    }

    /// Follows the registry until the session has ended, or gives no answers any more.
    fn follow(&mut self, client: &Arc<Client>, config: &ZooKeeperConfig, out: &Path) {
        let (path, began, mut heard) = (ids_path(config), Instant::now(), Instant::now());
        while !client.is_closed() && heard.elapsed() < config.session_timeout * 2 + LOOK + RELOAD_SPACING {
            // What changes meanwhile is read afterwards, and is one reload.
            thread::sleep(self.reloaded.map_or(Duration::ZERO, |at| RELOAD_SPACING.saturating_sub(at.elapsed())));
            if client.take_change() {
                match client.children_within(&path, LOOK_WITHIN) {
                    Ok(children) => {
                        self.take(gateways(children), began.elapsed() < SETTLE, out);
                        heard = Instant::now();
                    }
                    Err(ClientError::Silent) => return,
                    Err(error) => eprintln!("kateway haproxy: {error}"),
                }
            }
            if !client.has_changed() {
                thread::park_timeout(LOOK);
            }
            thread::sleep(CALM);
        }
    }

    /// Writes and reloads, if that changes anything.
    fn take(&mut self, mut gateways: Gateways, is_settling: bool, out: &Path) {
        if is_settling {
            for (id, gateway) in &self.known {
                gateways.entry(id.clone()).or_insert_with(|| gateway.clone());
            }
        }
        self.keep_last(&mut gateways);
        if gateways.is_empty() {
            return;
        }
        let text = self.render(&gateways);
        let is_new = fs::read_to_string(out).map_or(true, |before| before != text);
        self.known = gateways;
        self.needs_reload |= is_new;
        if !self.needs_reload {
            return;
        }
        let written = if is_new { replace(out, &text) } else { Ok(()) };
        let done = written.and_then(|()| self.reload());
        self.reloaded = Some(Instant::now());
        self.needs_reload = done.is_err();
        let failure = done.err().map(|error| format!(", and: {error}")).unwrap_or_default();
        if is_new || failure != self.failure {
            let ids: Vec<&str> = self.known.keys().map(String::as_str).collect();
            eprintln!("kateway haproxy: {} names {}{failure}", out.display(), ids.join(", "));
        }
        self.failure = failure;
    }

    /// A backend that nobody is entered for any more keeps the servers it had.
    fn keep_last(&mut self, gateways: &mut Gateways) {
        for ((name, address), was_kept) in BACKENDS.iter().zip(&mut self.kept) {
            let is_entered = gateways.values_mut().any(|gateway| !address(gateway).is_empty());
            let is_kept = !is_entered && self.known.values_mut().any(|gateway| !address(gateway).is_empty());
            if is_kept && !*was_kept {
                eprintln!("kateway haproxy: no gateway is entered for {name}; it keeps its servers");
            }
            *was_kept = is_kept;
            for (id, former) in self.known.iter_mut().filter(|_| is_kept) {
                if address(former).is_empty() {
                    continue;
                }
                let gateway = gateways.entry(id.clone());
                let (publish, subscribe) = (String::new(), String::new());
                let gateway = gateway.or_insert_with(|| Gateway { id: id.clone(), publish, subscribe });
                address(gateway).clone_from(address(former));
            }
        }
    }

    fn render(&self, gateways: &Gateways) -> String {
        let servers = |address: fn(&Gateway) -> &str| {
            // Two lives of a gateway, one of which takes over from the other, are one server.
            let mut seen = Vec::new();
            let mut lines = Vec::new();
            for gateway in gateways.values().filter(|gateway| !address(gateway).is_empty()) {
                if !seen.contains(&address(gateway)) {
                    seen.push(address(gateway));
                    lines.push(format!("    server {} {} check", gateway.id, address(gateway)));
                }
            }
            lines.join("\n")
        };
        self.template
            .replace("@bind_pub@", &self.options.bind_publish)
            .replace("@bind_sub@", &self.options.bind_subscribe)
            .replace("@servers_pub@", &servers(|gateway| &gateway.publish))
            .replace("@servers_sub@", &servers(|gateway| &gateway.subscribe))
    }

    fn reload(&self) -> io::Result<()> {
        if let Some(command) = &self.options.reload {
            run_within(command, RELOAD_WITHIN)?;
        }
        if let Some(path) = &self.options.pid_file {
            let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
            let text = fs::read_to_string(path).map_err(named)?;
            let pid = text.trim().parse().ok().and_then(rustix::process::Pid::from_raw);
            let pid = pid.ok_or_else(|| io::Error::other(format!("{} holds no process id", path.display())))?;
            // A file that stayed may name any process by now, which the signal would end.
            let comm = fs::read_to_string(format!("/proc/{}/comm", pid.as_raw_nonzero().get())).unwrap_or_default();
            if !comm.starts_with("haproxy") {
                let reason = format!("{}: process {} is no HAProxy", path.display(), text.trim());
                return Err(io::Error::other(reason));
            }
            rustix::process::kill_process(pid, rustix::process::Signal::USR2)?;
        }
        Ok(())
    }
}

/// Runs a shell command; one that takes longer is ended with what it has started.
fn run_within(command: &str, limit: Duration) -> io::Result<()> {
    let mut child = Command::new("sh").args(["-c", command]).process_group(0).spawn()?;
    let start = Instant::now();
    loop {
        match child.try_wait()? {
            Some(status) if status.success() => return Ok(()),
            Some(status) => return Err(io::Error::other(format!("{command}: {status}"))),
            None if start.elapsed() < limit => thread::sleep(CALM.min(limit)),
            None => break,
        }
    }
    let group = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw);
    if let Some(group) = group {
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
    }
    let _ = child.wait();
    Err(io::Error::other(format!("{command}: not done within {limit:?}")))
}

/// Where a balancer can connect to; every address of a host is none.
fn is_address(text: &str) -> bool {
    is_host_port(text) && !text.parse::<SocketAddr>().is_ok_and(|addr| addr.ip().is_unspecified())
}

/// What is entered, by id. What is not of its form is passed over.
fn gateways(children: Vec<(String, Vec<u8>)>) -> Gateways {
    let gateway = |(name, data): (String, Vec<u8>)| {
        let gateway: Gateway = serde_json::from_slice(&data).ok()?;
        let is_fine = |text: &str| text.is_empty() || is_address(text);
        let is_good = gateway.id == name
            && !name.is_empty()
            && is_id(&name)
            && is_fine(&gateway.publish)
            && is_fine(&gateway.subscribe);
        if !is_good {
            eprintln!("kateway haproxy: {name:?} is not entered as a gateway is");
        }
        is_good.then_some((name, gateway))
    };
    children.into_iter().filter_map(gateway).collect()
}

/// Whoever reads the file finds the old text or the new one.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let new = path.with_extension(format!("{}.new", std::process::id()));
    fs::write(&new, text)?;
    fs::rename(&new, path).inspect_err(|_| drop(fs::remove_file(&new)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn card(id: &str, publish: &str) -> (String, Vec<u8>) {
        let json = serde_json::json!({"id": id, "pub": publish, "sub": "h:2", "zone": "z", "new": "field"});
        (id.to_owned(), json.to_string().into_bytes())
    }

    fn balancer(options: &Options) -> Balancer<'_> {
        Balancer::new(options, TEMPLATE.to_owned())
    }

    fn options(out: Option<PathBuf>) -> Options {
        let (bind_publish, bind_subscribe) = ("*:1".to_owned(), "*:2".to_owned());
        Options { watches: true, out, template: None, bind_publish, bind_subscribe, reload: None, pid_file: None }
    }

    #[test]
    fn what_is_entered_becomes_servers() {
        let options = options(None);
        let text = balancer(&options).render(&gateways(vec![card("b", "10.0.0.2:1"), card("a", "10.0.0.1:1")]));
        assert!(
            text.contains("backend publishers\n    server a 10.0.0.1:1 check\n    server b 10.0.0.2:1 check\n"),
            "{text}"
        );
        assert!(text.contains("bind *:1\n") && text.contains("bind *:2\n") && !text.contains('@'), "{text}");
        assert!(text.contains("backend subscribers\n    server a h:2 check\n"), "one address, one server: {text}");
    }

    #[test]
    fn only_names_and_addresses_get_in() {
        let evil = [
            ("a", "0.0.0.0:1"),
            ("a", "[::]:1"),
            ("a", "h:1\n    server x y:1"),
            ("a b", "h:1"),
            ("a", "h:1 backup"),
            ("", "h:1"),
        ];
        for (id, publish) in evil {
            assert!(gateways(vec![card(id, publish)]).is_empty(), "{id:?} {publish:?}");
        }
        assert!(gateways(vec![("a".to_owned(), b"no json".to_vec())]).is_empty());
        assert!(gateways(vec![("other".to_owned(), card("a", "h:1").1)]).is_empty());
    }

    #[test]
    fn an_empty_list_changes_nothing_and_missing_ones_are_kept_at_first() {
        let out = std::env::temp_dir().join(format!("kateway-haproxy-{}.cfg", std::process::id()));
        let options = options(Some(out.clone()));
        let mut balancer = balancer(&options);
        let read = || fs::read_to_string(&out).unwrap_or_default();
        balancer.take(gateways(vec![card("a", "h:1"), card("b", "h:2")]), true, &out);
        assert!(read().contains("server a h:1") && read().contains("server b h:2"));
        balancer.take(gateways(vec![card("a", "h:1")]), true, &out);
        assert!(read().contains("server b h:2"), "it may have lost its session");
        balancer.take(gateways(vec![card("a", "h:1")]), false, &out);
        assert!(!read().contains("server b h:2"));
        balancer.take(Gateways::new(), false, &out);
        assert!(read().contains("server a h:1"));
        // Publishing is nobody's now, and keeps who had it.
        balancer.take(gateways(vec![card("c", "")]), false, &out);
        assert!(read().contains("publishers\n    server a h:1 check\n"), "{}", read());
        balancer.take(gateways(vec![card("c", "h:3")]), false, &out);
        assert!(read().contains("publishers\n    server c h:3 check\n"), "{}", read());
        let _ = fs::remove_file(&out);
    }

    #[test]
    fn a_reload_that_failed_is_tried_again() {
        let [out, flag] = ["cfg", "flag"]
            .map(|name| std::env::temp_dir().join(format!("kateway-reload-{}.{name}", std::process::id())));
        let mut options = options(Some(out.clone()));
        options.reload = Some(format!("test -e {}", flag.display()));
        let mut balancer = balancer(&options);
        let entered = || gateways(vec![card("a", "h:1")]);
        balancer.take(entered(), false, &out);
        assert!(balancer.needs_reload);
        fs::write(&flag, "").expect("the folder of temporary files can be written");
        balancer.take(entered(), false, &out);
        assert!(!balancer.needs_reload);
        for file in [&out, &flag] {
            let _ = fs::remove_file(file);
        }
    }

    #[test]
    fn a_command_is_not_waited_for_without_end() {
        assert!(run_within("exit 0", RELOAD_WITHIN).is_ok());
        assert!(run_within("exit 3", RELOAD_WITHIN).is_err_and(|error| error.to_string().contains("exit status: 3")));
        let late = run_within("sleep 60", Duration::from_millis(50));
        assert!(late.is_err_and(|error| error.to_string().contains("not done within")));
    }
}
