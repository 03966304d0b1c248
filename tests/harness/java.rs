//! Kafka's jars and its own command line tools.
//!
//! The jars come from Maven's central repository into `tests/.cache/kafka-3.9.1`, once per checkout;
//! `harness/kafka/pom.xml` names them. The tools are Kafka's ordinary ones (console producer and consumer, consumer
//! groups), called by class name as the shell scripts of a Kafka distribution call them.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use crate::{folder, process};

/// The Kafka release tested against.
pub const KAFKA_VERSION: &str = "3.9.1";

pub const CONSOLE_PRODUCER: &str = "kafka.tools.ConsoleProducer";
pub const CONSOLE_CONSUMER: &str = "org.apache.kafka.tools.consumer.ConsoleConsumer";
pub const CONSUMER_GROUPS: &str = "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand";
pub const GET_OFFSETS: &str = "org.apache.kafka.tools.GetOffsetShell";

/// Fetches the jars if they are not there yet, and returns their folder.
///
/// Maven writes into a folder of its own first: an interrupted download must not pass for a complete one.
pub fn fetch() -> PathBuf {
    let jars = folder::cache().join(format!("kafka-{KAFKA_VERSION}"));
    if jars.is_dir() {
        return jars;
    }
    let partial = folder::cache().join(format!("kafka-{KAFKA_VERSION}.partial-{}", std::process::id()));
    let pom = folder::tests().join("harness/kafka/pom.xml");
    println!("fetching Kafka {KAFKA_VERSION} with Maven");
    let status = Command::new("mvn")
        .args(["--batch-mode", "--quiet", "dependency:copy-dependencies"])
        .arg("-f")
        .arg(pom)
        .arg(format!("-DoutputDirectory={}", partial.display()))
        .status()
        .expect("the tests need Maven (package maven) and a JDK to fetch Kafka");
    assert!(status.success(), "Maven could not fetch Kafka {KAFKA_VERSION}; without network, fill {}", jars.display());
    // Another suite may have been faster; its folder is as good as ours.
    if std::fs::rename(&partial, &jars).is_err() {
        assert!(jars.is_dir(), "{} cannot be made", jars.display());
        let _ = std::fs::remove_dir_all(&partial);
    }
    jars
}

/// `java` with Kafka on its class path, logging to stderr, and `flags` for the machine.
pub fn java(flags: &[&str]) -> Command {
    let mut command = Command::new("java");
    let log4j = folder::tests().join("harness/kafka/log4j.properties");
    command.args(flags).arg(format!("-Dlog4j.configuration=file:{}", log4j.display()));
    command.arg("-cp").arg(fetch().join("*"));
    command
}

/// Runs one of Kafka's tools to its end with `input` on stdin.
pub fn tool(class: &str, args: &[&str], input: &[u8]) -> Output {
    let mut command = java(&["-Xmx128m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"]);
    command.arg(class).args(args);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = process::spawn(command).expect("java can be started");
    let mut stdin = child.stdin.take().expect("stdin is piped");
    stdin.write_all(input).expect("the tool reads its input");
    drop(stdin);
    let output = child.wait_with_output().expect("the tool can be waited for");
    assert!(output.status.success(), "{class} {args:?} failed:\n{}", String::from_utf8_lossy(&output.stderr));
    output
}
