//! Kafka's jars and its own command line tools.
//!
//! The jars come from Maven's central repository into `tests/.cache/kafka-3.9.1`, once per checkout;
//! `harness/kafka/pom.xml` names them. The tools are Kafka's ordinary ones (console producer and consumer, consumer
//! groups), called by class name as the shell scripts of a Kafka distribution call them. A [`Member`] is Kafka's own consumer in a group
//! that gateways read as well (`harness/kafka/Member.java`).

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{ChildStdin, Command, Output, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::process::Process;
use crate::{folder, process, wait_until};

/// The Kafka release tested against.
pub const KAFKA_VERSION: &str = "3.9.1";

pub const CONSOLE_PRODUCER: &str = "kafka.tools.ConsoleProducer";
pub const CONSOLE_CONSUMER: &str = "org.apache.kafka.tools.consumer.ConsoleConsumer";
pub const CONSUMER_GROUPS: &str = "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand";
pub const REASSIGN_PARTITIONS: &str = "org.apache.kafka.tools.reassign.ReassignPartitionsCommand";
pub const CONFIGS: &str = "kafka.admin.ConfigCommand";
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

/// What `group` has committed in `topic`, by partition, as Kafka's own tool says.
pub fn committed(brokers: &str, group: &str, topic: &str) -> BTreeMap<i32, i64> {
    // The tool's own patience, 5 s, is short for a busy machine.
    let args = ["--bootstrap-server", brokers, "--timeout", "60000", "--describe", "--group", group];
    let output = tool(CONSUMER_GROUPS, &args, b"");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(!text.contains("Error:"), "{CONSUMER_GROUPS} {args:?}: {text}");
    let rows = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    // GROUP TOPIC PARTITION CURRENT-OFFSET ..; a partition without an offset has `-`.
    let pair = |row: Vec<&str>| {
        let is_of_topic = row.get(1) == Some(&topic);
        is_of_topic.then(|| Some((row.get(2)?.parse().ok()?, row.get(3)?.parse().ok()?)))?
    };
    rows.filter_map(pair).collect()
}

/// Moves the replicas of a partition to `replicas` and waits until they are there.
pub fn reassign(brokers: &str, topic: &str, partition: i32, replicas: &[i32]) {
    let plan = folder::fresh("reassignment", ".json");
    let text = format!(
        r#"{{"version":1,"partitions":[{{"topic":"{topic}","partition":{partition},"replicas":{replicas:?}}}]}}"#
    );
    std::fs::write(&plan, text).expect("the run's folder can be written");
    let plan = plan.to_str().expect("the run's folder has a plain name");
    let run = |what: &str| {
        let args = ["--bootstrap-server", brokers, "--reassignment-json-file", plan, what];
        String::from_utf8_lossy(&tool(REASSIGN_PARTITIONS, &args, b"").stdout).into_owned()
    };
    run("--execute");
    wait_until(Duration::from_mins(1), format!("{topic}-{partition} is on {replicas:?}"), || {
        run("--verify").contains("is completed")
    });
}

/// Kafka's own consumer, cooperative-sticky, in a process of its own; killed on drop.
pub struct Member {
    process: Process,
    stdin: Option<ChildStdin>,
    said: Arc<Mutex<Said>>,
}

/// What a member has said so far.
#[derive(Debug, Default, Clone)]
pub struct Said {
    pub partitions: BTreeSet<i32>,
    /// Partition and offset, in the order received.
    pub records: Vec<(i32, i64)>,
    pub is_closed: bool,
}

impl Member {
    /// Joins `group` on `topic`; [`Self::said`] tells when it has partitions.
    pub fn join(brokers: &str, group: &str, topic: &str) -> Self {
        let mut command = java(&["-Xmx128m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"]);
        command.arg(folder::tests().join("harness/kafka/Member.java")).args([brokers, group, topic]);
        let log = std::fs::File::create(folder::fresh("member", ".stderr")).expect("the run's folder can be written");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log);
        let mut process = Process::start("java member", command).expect("java can be started");
        let stdin = Some(process.stdin());
        let lines = BufReader::new(process.stdout()).lines();
        let said = Arc::new(Mutex::new(Said::default()));
        let heard = Arc::clone(&said);
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                heard.lock().unwrap_or_else(PoisonError::into_inner).take(&line);
            }
        });
        Self { process, stdin, said }
    }

    pub fn said(&self) -> Said {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Lets it commit and leave, and waits until it has.
    #[track_caller]
    pub fn leave(mut self, limit: Duration) -> Said {
        drop(self.stdin.take());
        wait_until(limit, "the Java member has left", || self.said().is_closed);
        assert!(self.process.wait(limit).success(), "the Java member ends well");
        self.said()
    }

    /// `kill -9`: Kafka learns of it when the session is over.
    pub fn kill(&mut self) {
        self.process.kill();
    }
}

impl Said {
    fn take(&mut self, line: &str) {
        let mut words = line.split(' ');
        let what = words.next().unwrap_or_default();
        let numbers: Vec<i64> =
            words.map(|word| word.parse().unwrap_or_else(|_| panic!("numbers in {line:?}"))).collect();
        let partitions = numbers.iter().map(|n| i32::try_from(*n).expect("a partition number"));
        match (what, &numbers[..]) {
            ("assigned", _) => self.partitions.extend(partitions),
            ("revoked", _) => partitions.for_each(|partition| {
                self.partitions.remove(&partition);
            }),
            ("record", [partition, offset, _]) => {
                self.records.push((i32::try_from(*partition).expect("a partition number"), *offset));
            }
            ("closed", []) => self.is_closed = true,
            _ => panic!("the member said {line:?}"),
        }
    }
}
