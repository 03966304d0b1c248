//! One ZooKeeper server for the brokers (Kafka 3.9 in ZooKeeper mode; kateway itself uses the same kind of server
//! later).
//!
//! Started from the jars Kafka brings, with a small heap, on a reserved port, its log in the run's folder.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::time::Duration;

use crate::process::Process;
use crate::{folder, java, ports, wait_until};

/// A running ZooKeeper; killed on drop.
pub struct ZooKeeper {
    process: Process,
    address: SocketAddr,
}

impl ZooKeeper {
    pub fn start() -> Self {
        let port = ports::reserve();
        let home = folder::run().join("zookeeper");
        std::fs::create_dir_all(&home).expect("the run's folder can be written");
        let config = home.join("zoo.cfg");
        let text = format!(
            "tickTime=1000\ndataDir={}\nclientPort={port}\nclientPortAddress=127.0.0.1\nmaxClientCnxns=0\n\
             admin.enableServer=false\n4lw.commands.whitelist=ruok,srvr\nforceSync=no\n",
            home.join("data").display()
        );
        std::fs::write(&config, text).expect("the run's folder can be written");

        let mut command: Command = java::java(&["-Xmx96m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"]);
        command.arg("org.apache.zookeeper.server.quorum.QuorumPeerMain").arg(&config);
        crate::kafka::log_to(&mut command, &home.join("zookeeper.log"));
        let process = Process::start("zookeeper", command).expect("java can be started");
        Self { process, address: SocketAddr::from(([127, 0, 0, 1], port)) }
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
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    stream.write_all(b"ruok")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(answer == b"imok")
}
