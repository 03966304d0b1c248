//! HTTP/2 as RFC 9113 and HPACK as RFC 7541 have it, in the eyes of h2spec.
//!
//! Method: the program runs all of its cases, each on a connection of its own; every one must pass, and none be left out.

use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::time::Duration;

use kateway_tests::kateway::Kateway;
use kateway_tests::tls::Authority;
use kateway_tests::{process, tools};

use crate::Case;
use crate::tls::with_tls;

pub const CASES: &[Case] = &[Case::new("h2spec::cleartext", cleartext), Case::new("h2spec::over_tls", over_tls)];

const MODULE: &str = "github.com/summerwind/h2spec/cmd/h2spec";
const VERSION: &str = "v2.2.1+incompatible";
const LIMIT: Duration = Duration::from_mins(5);

/// Runs all cases; `more` are further arguments.
fn run(address: SocketAddr, more: &[&str]) {
    let mut command = Command::new(tools::go(MODULE, VERSION));
    command.args(["-h", &address.ip().to_string(), "-p", &address.port().to_string(), "-o", "5"]).args(more);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let output = process::output("h2spec", command, LIMIT).expect("h2spec can be started");
    let report = String::from_utf8_lossy(&output.stdout);
    let failures = report.find("Failures:").map_or("", |at| &report[at..]);
    assert!(
        report.contains("145 tests, 145 passed, 0 skipped, 0 failed"),
        "{failures}\n{}",
        report.lines().last().unwrap_or_default()
    );
}

fn cleartext() {
    let gateway = Kateway::memory().start();
    run(gateway.publish, &[]);
}

fn over_tls() {
    let pair = Authority::new().issue("IP:127.0.0.1");
    let gateway = with_tls(Kateway::memory(), &[&pair]).start();
    run(gateway.address("pub_tls"), &["-t", "-k"]);
}
