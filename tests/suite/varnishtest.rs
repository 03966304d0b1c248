//! HTTP/1.1 byte for byte, as cases that others can read and run: `tests/varnish/*.vtc`, the language of Varnish's own tests.
//!
//! Method: varnishtest sends what stands in each file and compares what comes back. Each `client` block is one case; all files must pass.
//! By hand: `varnishtest -Dpub=ADDRESS -Dsub=ADDRESS tests/varnish/*.vtc` against a gateway with `--store memory`.

use std::process::{Command, Stdio};
use std::time::Duration;

use kateway_tests::kateway::Kateway;
use kateway_tests::{figures, folder, process};

use crate::Case;

pub const CASES: &[Case] = &[Case::new("varnishtest::all_cases", all_cases)];

const CASES_MIN: usize = 60;
const LIMIT: Duration = Duration::from_mins(2);

fn all_cases() {
    let gateway = Kateway::memory().start();
    let folder = folder::tests().join("varnish");
    let entries = std::fs::read_dir(&folder).expect("the folder is there").map(|entry| entry.expect("readable").path());
    let mut files: Vec<_> =
        entries.filter(|path| path.extension().is_some_and(|extension| extension == "vtc")).collect();
    files.sort();
    let count =
        |file| std::fs::read_to_string(file).expect("readable").lines().filter(|l| l.starts_with("client ")).count();
    let cases: usize = files.iter().map(count).sum();
    figures::note("varnishtest: cases", cases);
    assert!(cases >= CASES_MIN, "{cases}");
    let mut command = Command::new("varnishtest");
    command.arg(format!("-Dpub={}", gateway.publish)).arg(format!("-Dsub={}", gateway.subscribe));
    command.args(["-k", "-q", "-j", "2", "-t", "60"]).args(&files);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let output = process::output("varnishtest", command, LIMIT).expect("the tests need varnishtest (package varnish)");
    let report = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(output.status.success(), "{report}");
}
