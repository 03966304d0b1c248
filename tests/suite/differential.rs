//! No request that h11 or llhttp refuses is accepted.
//!
//! Method: `conformance/differential.py` sends ten thousand, and says there what counts as accepted and which exceptions there are.

use std::process::{Command, Stdio};
use std::time::Duration;

use kateway_tests::kateway::Kateway;
use kateway_tests::{figures, folder, process, tools};

use crate::Case;

pub const CASES: &[Case] =
    &[Case::new("differential::accepts_only_what_others_accept", accepts_only_what_others_accept)];

const READERS: [&str; 2] = ["h11==0.16.0", "llhttp==9.3.0.0"];
const REQUESTS: u32 = 10_000;
const LIMIT: Duration = Duration::from_mins(5);

fn accepts_only_what_others_accept() {
    let gateway = Kateway::memory().start();
    let mut command = Command::new("python3");
    command.arg(folder::tests().join("conformance/differential.py")).env("PYTHONPATH", tools::python(&READERS));
    command.args(["--publish", &gateway.publish.to_string(), "--subscribe", &gateway.subscribe.to_string()]);
    command.args(["--count", &REQUESTS.to_string()]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let output = process::output("differential.py", command, LIMIT).expect("python3 can be started");
    let report = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(output.status.success() && report.contains("faults: 0\n"), "{report}");
    let number = |what: &str| -> u32 {
        let line = report.lines().find_map(|line| line.strip_prefix(what)?.strip_prefix(": "));
        line.and_then(|n| n.parse().ok()).unwrap_or_else(|| panic!("{what} is a number in {report}"))
    };
    assert_eq!(number("requests"), REQUESTS);
    // One that refuses everything would pass the comparison.
    assert!(number("accepted by kateway") > REQUESTS / 10, "{report}");
    assert!(number("stored and read back alike") > REQUESTS / 20, "{report}");
    for what in ["accepted by kateway", "refused by kateway, accepted by both others", "stored and read back alike"] {
        figures::note(format!("differential: {what}, of {REQUESTS}"), number(what));
    }
}
