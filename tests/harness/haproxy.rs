//! A real load balancer between clients and gateways: HAProxy, round robin, without affinity.
//!
//! Method: the configuration is written into the run's folder as an operator would write it. Every request of a kept connection goes to
//! whoever's turn it is; a backend is checked by `GET /alive` five times a second; what could not be connected is tried at the next
//! one, and nothing else is ever tried again, so that the proxy hides no lost request. Its own answers (502 when a backend died with
//! a request in its hands) carry no `Server: kateway` and are told apart by that ([`is_own_answer`]).

use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::client::{Connection, Request, Response};
use crate::process::Process;
use crate::{folder, ports, wait_until};

const START: Duration = Duration::from_secs(20);

/// Where one gateway listens.
#[derive(Debug, Clone, Copy)]
pub struct Backend {
    pub publish: SocketAddr,
    pub subscribe: SocketAddr,
}

/// A running proxy; ends with this.
pub struct HaProxy {
    process: Process,
    pub publish: SocketAddr,
    pub subscribe: SocketAddr,
}

impl HaProxy {
    /// Starts it before `backends` and waits until both of its ports answer.
    #[track_caller]
    pub fn start(backends: &[Backend]) -> Self {
        let address = || SocketAddr::from(([127, 0, 0, 1], ports::reserve()));
        let (publish, subscribe) = (address(), address());
        Self::start_from(&configuration(publish, subscribe, backends), publish, subscribe)
    }

    /// The same from a configuration that a trial wrote, which binds `publish` and `subscribe`.
    #[track_caller]
    pub fn start_from(configuration: &str, publish: SocketAddr, subscribe: SocketAddr) -> Self {
        let path = folder::fresh("haproxy", ".cfg");
        std::fs::write(&path, configuration).expect("the run's folder can be written");
        let log = std::fs::File::create(path.with_extension("log")).expect("the run's folder can be written");
        let copy = log.try_clone().expect("a file can be cloned");
        let mut command = Command::new(binary());
        // In the foreground, so that it is our own child.
        command.args(["-db", "-f"]).arg(&path).stdin(Stdio::null()).stdout(log).stderr(copy);
        let process = Process::start("haproxy", command).expect("the tests need HAProxy (package haproxy)");
        let mut proxy = Self { process, publish, subscribe };
        for address in [publish, subscribe] {
            wait_until(START, format!("HAProxy passes requests on at {address}"), || {
                assert!(proxy.process.poll().is_none(), "HAProxy ended; see {}", path.display());
                let answer = Connection::open(address).ok().and_then(|mut c| c.call(&Request::get("/alive")).ok());
                answer.is_some_and(|answer| answer.status == 200 && !is_own_answer(&answer))
            });
        }
        proxy
    }
}

/// A proxy whose configuration somebody else writes and reloads: master and worker, as a service manager would run them.
pub struct Master {
    process: Process,
    pub log: std::path::PathBuf,
}

impl Master {
    /// Runs it with the configuration at `path`; its master's id goes to `pid_file`.
    #[track_caller]
    pub fn start(path: &std::path::Path, pid_file: &std::path::Path) -> Self {
        let log = folder::fresh("haproxy", ".log");
        let file = std::fs::File::create(&log).expect("the run's folder can be written");
        let copy = file.try_clone().expect("a file can be cloned");
        let mut command = Command::new(binary());
        command.arg("-W").arg("-p").arg(pid_file).arg("-f").arg(path).stdin(Stdio::null()).stdout(file).stderr(copy);
        Self { process: Process::start("haproxy", command).expect("the tests need HAProxy (package haproxy)"), log }
    }

    pub fn has_ended(&mut self) -> bool {
        self.process.poll().is_some()
    }
}

impl Drop for Master {
    fn drop(&mut self) {
        // Its workers end with it.
        self.process.stop(Duration::from_secs(2));
    }
}

/// Services live where a user's PATH does not look.
fn binary() -> &'static str {
    ["/usr/sbin/haproxy", "/usr/local/sbin/haproxy"]
        .into_iter()
        .find(|path| std::path::Path::new(path).is_file())
        .unwrap_or("haproxy")
}

/// Whether the proxy made this answer itself.
pub fn is_own_answer(response: &Response) -> bool {
    response.header("server") != Some("kateway")
}

fn configuration(publish: SocketAddr, subscribe: SocketAddr, backends: &[Backend]) -> String {
    let servers = |address: fn(&Backend) -> SocketAddr| -> String {
        let line = |(n, backend)| format!("    server gateway-{n} {} check\n", address(backend));
        backends.iter().enumerate().map(line).collect()
    };
    format!(
        "global
    maxconn 4000
    log stdout format raw local0 notice

defaults
    mode http
    log global
    balance roundrobin
    option http-keep-alive
    option redispatch 1
    option httpchk GET /alive
    http-check expect status 200
    retries 2
    retry-on conn-failure
    default-server inter 200ms fall 2 rise 1
    timeout connect 1s
    timeout client 60s
    timeout server 60s
    timeout http-keep-alive 60s

frontend publish
    bind {publish}
    default_backend publishers

frontend subscribe
    bind {subscribe}
    default_backend subscribers

backend publishers
{publishers}
backend subscribers
{subscribers}",
        publishers = servers(|backend| backend.publish),
        subscribers = servers(|backend| backend.subscribe),
    )
}
