//! The examples of the README do what it says they do.
//!
//! Method: the two blocks of code of its section "Reading" are taken out as they stand and run, by Python and by Node, against a gateway
//! on the embedded store whose address they are told. The Python one acknowledges what it has read, and a second run gets nothing of
//! it; the JavaScript one streams what is published while it runs.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kateway_tests::kateway::Kateway;
use kateway_tests::process::{self, Process};
use kateway_tests::topic::Topic;
use kateway_tests::{folder, wait_until};

use crate::Case;
use crate::stage::SOON;

pub const CASES: &[Case] = &[
    Case::new("readme_examples::python_reads_and_acknowledges", python_reads_and_acknowledges),
    Case::new("readme_examples::javascript_streams", javascript_streams),
];

/// The block of the section that is written in `language`.
fn example(language: &str) -> String {
    let readme = std::fs::read_to_string(folder::root().join("README.md")).expect("the README can be read");
    let section = readme.split_once("\n## Reading\n").expect("the README has a section Reading").1;
    let section = section.split("\n## ").next().expect("a section");
    let fence = format!("```{language}\n");
    let block = section.split_once(&fence).unwrap_or_else(|| panic!("Reading has a block in {language}")).1;
    block.split_once("```").expect("the block ends").0.to_owned()
}

/// Writes the example where its interpreter finds it.
fn write(language: &str, extension: &str) -> std::path::PathBuf {
    let path = folder::fresh("example", extension);
    std::fs::write(&path, example(language)).expect("the run's folder can be written");
    path
}

/// The topic of the README.
fn greetings() -> Topic {
    Topic::new("app1", "greetings", "v1")
}

fn publish(gateway: &Kateway, numbers: std::ops::Range<i32>) {
    for n in numbers {
        gateway.publish(&greetings().publish("partition=1", format!("hello {n}"))).expect(201);
    }
}

fn lines(numbers: std::ops::Range<i32>) -> Vec<String> {
    numbers.map(|n| format!("1 {n} hello {n}")).collect()
}

fn python_reads_and_acknowledges() {
    let gateway = Kateway::memory().shards(2).start();
    let path = write("python", ".py");
    let run = || -> Vec<String> {
        let mut command = Command::new("python3");
        command.arg(&path).env("KATEWAY", gateway.subscribe.to_string()).stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let output = process::output("python3", command, Duration::from_mins(1)).expect("the tests need python3");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text").lines().map(str::to_owned).collect()
    };
    publish(&gateway, 0..5);
    assert_eq!(run(), lines(0..5));
    publish(&gateway, 5..8);
    assert_eq!(run(), lines(5..8), "all that was read before is acknowledged, the last one too");
}

fn javascript_streams() {
    let gateway = Kateway::memory().shards(2).start();
    publish(&gateway, 0..3);
    let mut command = Command::new("node");
    command.arg(write("javascript", ".mjs")).env("KATEWAY", gateway.subscribe.to_string()).stdin(Stdio::null());
    let errors = std::fs::File::create(folder::fresh("node", ".stderr")).expect("the run's folder can be written");
    command.stdout(Stdio::piped()).stderr(errors);
    let mut node = Process::start("node", command).expect("the tests need node");
    let said = Arc::new(Mutex::new(Vec::new()));
    let (heard, stdout) = (Arc::clone(&said), BufReader::new(node.stdout()));
    std::thread::spawn(move || {
        for line in stdout.lines().map_while(Result::ok) {
            heard.lock().unwrap_or_else(PoisonError::into_inner).push(line);
        }
    });
    let said = || said.lock().unwrap_or_else(PoisonError::into_inner).clone();
    wait_until(SOON, "the example prints what was there", || said().len() >= 3);
    for n in 3..10 {
        publish(&gateway, n..n + 1);
        wait_until(SOON, format!("it prints message {n}"), || said().len() > usize::try_from(n).expect("few"));
    }
    assert_eq!(said(), lines(0..10));
    assert!(node.poll().is_none(), "the stream has no end");
}
