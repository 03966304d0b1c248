//! What sslyze, a scanner of others, finds wrong with the gateway's TLS: nothing but that it does not know the authority of the run.
//!
//! Method: its check against Mozilla's "intermediate" configuration (versions, cipher suites, curves, certificate, renegotiation, resumption and
//! the known attacks), of a gateway with an ECDSA certificate and of one with an RSA one.

use std::process::{Command, Stdio};
use std::time::Duration;

use kateway_tests::kateway::Kateway;
use kateway_tests::tls::Authority;
use kateway_tests::{process, tools};

use crate::Case;
use crate::tls::with_tls;

pub const CASES: &[Case] =
    &[Case::new("sslyze::only_the_private_authority_is_found", only_the_private_authority_is_found)];

const PATIENCE: Duration = Duration::from_mins(3);

fn only_the_private_authority_is_found() {
    let folder = tools::python(&["sslyze==6.3.1"]);
    let authority = Authority::new();
    for pair in [authority.issue("DNS:a.test,IP:127.0.0.1"), authority.issue_rsa("DNS:a.test,IP:127.0.0.1")] {
        let gateway = with_tls(Kateway::memory(), &[&pair]).start();
        let mut command = Command::new("python3");
        command.env("PYTHONPATH", &folder).args(["-m", "sslyze", "--mozilla_config", "intermediate"]);
        command.arg(gateway.address("pub_tls").to_string());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let output = process::output("sslyze", command, PATIENCE).expect("the tests need Python (package python3)");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let (_, verdict) = said.split_once("FAILED - Not compliant.").unwrap_or_else(|| panic!("{said}"));
        let found: Vec<&str> = verdict.lines().filter_map(|line| line.trim().strip_prefix("* ")).collect();
        assert!(found.len() == 1 && found[0].starts_with("certificate_path_validation"), "{said}");
    }
}
