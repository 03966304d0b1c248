//! nginx between clients and gateways, from a configuration that a trial wrote.
//!
//! It runs in the foreground as a child of ours, with a folder of its own for its pid file and what it buffers.

use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::client::{Connection, Request};
use crate::process::Process;
use crate::{folder, wait_until};

const START: Duration = Duration::from_secs(20);

/// A running nginx; ends with this.
pub struct Nginx {
    process: Process,
}

impl Nginx {
    /// Starts it and waits until each of `ports` passes requests on to a gateway.
    #[track_caller]
    pub fn start(configuration: &str, ports: &[SocketAddr]) -> Self {
        let home = folder::fresh("nginx", "");
        std::fs::create_dir_all(&home).expect("the run's folder can be written");
        let path = home.join("nginx.conf");
        std::fs::write(&path, configuration).expect("the run's folder can be written");
        let log = std::fs::File::create(home.join("nginx.log")).expect("the run's folder can be written");
        let mut command = Command::new(binary());
        command.arg("-p").arg(&home).arg("-c").arg(&path).args(["-g", "daemon off;"]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let process = Process::start("nginx", command).expect("the tests need nginx (package nginx-light)");
        let mut proxy = Self { process };
        for address in ports {
            wait_until(START, format!("nginx passes requests on at {address}"), || {
                assert!(proxy.process.poll().is_none(), "nginx ended; see {}", home.display());
                let answer = Connection::open(*address).ok().and_then(|mut c| c.call(&Request::get("/alive")).ok());
                answer.is_some_and(|answer| answer.status == 200)
            });
        }
        proxy
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // Its workers end with it only when it is asked.
        self.process.stop(Duration::from_secs(5));
    }
}

/// Services live where a user's PATH does not look.
fn binary() -> &'static str {
    ["/usr/sbin/nginx", "/usr/local/sbin/nginx"]
        .into_iter()
        .find(|path| std::path::Path::new(path).is_file())
        .unwrap_or("nginx")
}
