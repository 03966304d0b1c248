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
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use serde::Deserialize;

use super::{Client, ids_path};
use crate::config::{Config, is_host_port, is_id};

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

/// Runs the command to its end, which with `--watch` is a signal's.
pub fn run(config: &Config, options: &Options) -> Result<(), String> {
    if config.zookeeper.servers.is_empty() {
        return Err("zookeeper.servers: names no server".to_owned());
    }
    let template = match &options.template {
        None => TEMPLATE.to_owned(),
        Some(path) => fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?,
    };
    let mut balancer = Balancer { options, template, known: Gateways::new(), reloaded: None };
    if options.watches { balancer.watch(config) } else { balancer.once(config) }
}

struct Balancer<'a> {
    options: &'a Options,
    template: String,
    known: Gateways,
    reloaded: Option<Instant>,
}

impl Balancer<'_> {
    fn once(&mut self, config: &Config) -> Result<(), String> {
        let client = Client::begin(&config.zookeeper).map_err(|error| error.to_string())?;
        let children = client.children(&ids_path(&config.zookeeper)).map_err(|error| error.to_string())?;
        // An answer that never comes must not hold up the end.
        client.leave();
        let gateways = gateways(children);
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
                    self.follow(&client, &ids_path(&config.zookeeper), &out);
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

    /// Follows the registry until the session has ended.
    fn follow(&mut self, client: &Client, path: &str, out: &Path) {
        let began = Instant::now();
        while !client.is_closed() {
            // What changes meanwhile is read afterwards, and is one reload.
            thread::sleep(self.reloaded.map_or(Duration::ZERO, |at| RELOAD_SPACING.saturating_sub(at.elapsed())));
            if client.take_change() {
                match client.children(path) {
                    Ok(children) => self.take(gateways(children), began.elapsed() < SETTLE, out),
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
        if gateways.is_empty() {
            if !self.known.is_empty() {
                eprintln!("kateway haproxy: no gateway is entered; {} stays as it is", out.display());
                self.known.clear();
            }
            return;
        }
        let text = self.render(&gateways);
        let is_new = fs::read_to_string(out).map_or(true, |before| before != text);
        self.known = gateways;
        if !is_new {
            return;
        }
        let done = replace(out, &text).and_then(|()| self.reload());
        self.reloaded = Some(Instant::now());
        let ids: Vec<&str> = self.known.keys().map(String::as_str).collect();
        match done {
            Ok(()) => eprintln!("kateway haproxy: {} names {}", out.display(), ids.join(", ")),
            Err(error) => eprintln!("kateway haproxy: {} names {}, and: {error}", out.display(), ids.join(", ")),
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
            let status = Command::new("sh").args(["-c", command]).status()?;
            if !status.success() {
                return Err(io::Error::other(format!("{command}: {status}")));
            }
        }
        if let Some(path) = &self.options.pid_file {
            let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
            let text = fs::read_to_string(path).map_err(named)?;
            let pid = text.trim().parse().ok().and_then(rustix::process::Pid::from_raw);
            let pid = pid.ok_or_else(|| io::Error::other(format!("{} holds no process id", path.display())))?;
            rustix::process::kill_process(pid, rustix::process::Signal::USR2)?;
        }
        Ok(())
    }
}

/// What is entered, by id. What is not of its form is passed over.
fn gateways(children: Vec<(String, Vec<u8>)>) -> Gateways {
    let gateway = |(name, data): (String, Vec<u8>)| {
        let gateway: Gateway = serde_json::from_slice(&data).ok()?;
        let is_address = |text: &str| text.is_empty() || is_host_port(text);
        let is_good = gateway.id == name
            && !name.is_empty()
            && is_id(&name)
            && is_address(&gateway.publish)
            && is_address(&gateway.subscribe);
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
        Balancer { options, template: TEMPLATE.to_owned(), known: Gateways::new(), reloaded: None }
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
        let evil = [("a", "h:1\n    server x y:1"), ("a b", "h:1"), ("a", "h:1 backup"), ("", "h:1")];
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
        let _ = fs::remove_file(&out);
    }
}
