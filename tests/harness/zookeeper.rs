//! One ZooKeeper server: for the brokers (Kafka 3.9 in ZooKeeper mode), or of a trial's own for the presence of gateways.
//!
//! Started from the jars Kafka brings, with a small heap, on a reserved port, its log in the run's folder.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::process::{self, Process};
use crate::{folder, java, ports, wait_until};

/// A running ZooKeeper; killed on drop.
pub struct ZooKeeper {
    process: Process,
    address: SocketAddr,
    home: PathBuf,
}

impl ZooKeeper {
    /// The brokers' own.
    pub fn start() -> Self {
        Self::start_in(folder::run().join("zookeeper"), ports::reserve())
    }

    /// One that a trial may do with what it likes; it answers when this returns.
    #[track_caller]
    pub fn of_a_trial() -> Self {
        let mut this = Self::start_in(folder::fresh("zookeeper", ""), ports::reserve());
        this.wait_ready();
        this
    }

    fn start_in(home: PathBuf, port: u16) -> Self {
        std::fs::create_dir_all(&home).expect("the run's folder can be written");
        let config = home.join("zoo.cfg");
        let text = format!(
            "tickTime=1000\ndataDir={}\nclientPort={port}\nclientPortAddress=127.0.0.1\nmaxClientCnxns=0\n\
             admin.enableServer=false\n4lw.commands.whitelist=ruok,srvr,dump\nforceSync=no\n",
            home.join("data").display()
        );
        std::fs::write(&config, text).expect("the run's folder can be written");

        let mut command: Command = java::java(&["-Xmx96m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"]);
        command.arg("org.apache.zookeeper.server.quorum.QuorumPeerMain").arg(&config);
        crate::kafka::log_to(&mut command, &home.join("zookeeper.log"));
        let process = Process::start("zookeeper", command).expect("java can be started");
        Self { process, address: SocketAddr::from(([127, 0, 0, 1], port)), home }
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// After [`Self::kill`]: at the same address, with what it had written.
    #[track_caller]
    pub fn restart(&mut self) {
        *self = Self::start_in(self.home.clone(), self.address.port());
        self.wait_ready();
    }

    /// Paths of the ephemeral nodes, as the server lists them.
    pub fn ephemerals(&self) -> Vec<String> {
        let dump = ask(self.address, b"dump").unwrap_or_default();
        let text = String::from_utf8_lossy(&dump).into_owned();
        text.lines().map(str::trim).filter(|line| line.starts_with('/')).map(str::to_owned).collect()
    }

    /// What a node holds, read by ZooKeeper's own client.
    #[track_caller]
    pub fn data(&self, path: &str) -> String {
        let mut command: Command = java::java(&["-Xmx64m", "-XX:TieredStopAtLevel=1"]);
        command.args(["org.apache.zookeeper.ZooKeeperMain", "-server", &self.address.to_string(), "get", path]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let output = process::output("zkCli", command, Duration::from_mins(1)).expect("java can be started");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn signal(&self, signal: i32) {
        self.process.signal(signal);
    }

    /// Waits until the server answers `imok`.
    pub fn wait_ready(&mut self) {
        let address = self.address;
        wait_until(Duration::from_mins(1), "ZooKeeper answers imok", || {
            assert!(self.process.poll().is_none(), "ZooKeeper ended; see its log in {}", folder::run().display());
            are_you_ok(address).unwrap_or(false)
        });
    }
}

fn are_you_ok(address: SocketAddr) -> std::io::Result<bool> {
    Ok(ask(address, b"ruok")? == b"imok")
}

/// One of the four-letter words.
fn ask(address: SocketAddr, word: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    stream.write_all(word)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(answer)
}
