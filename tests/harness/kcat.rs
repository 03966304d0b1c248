//! The independent reader: kcat.
//!
//! Messages may hold any byte, so no separator can be trusted. kcat prints, for each message, a line of numbers that
//! ends with the lengths of key and payload, then exactly that many bytes, then a newline; the parser here goes by the
//! lengths alone. Header values have no length in kcat's output, so headers are read one message at a time, where
//! everything up to the end of the output belongs to them.

use std::process::{Command, Output, Stdio};

use crate::process;

/// One message as it stands in Kafka. `None` is Kafka's null, which is not the same as empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub partition: i32,
    pub offset: i64,
    pub timestamp: i64,
    pub key: Option<Vec<u8>>,
    pub payload: Option<Vec<u8>>,
}

/// Reads all of `topic`, every partition from its beginning to its present end, in order of partition and offset.
pub fn read_all(brokers: &str, topic: &str) -> Vec<Record> {
    let output = kcat(brokers, &["-C", "-t", topic, "-o", "beginning", "-e", "-f", "%p %o %T %K %S\n%k%s\n"]);
    let mut records = parse(&output.stdout);
    records.sort_by_key(|r| (r.partition, r.offset));
    records
}

/// Reads one message.
pub fn read_one(brokers: &str, topic: &str, partition: i32, offset: i64) -> Record {
    let output = one(brokers, topic, partition, offset, "%p %o %T %K %S\n%k%s\n");
    parse(&output).pop().expect("kcat read the message it was asked for")
}

/// The headers of one message as kcat joins them: `name=value,name=value`, values as raw bytes.
pub fn read_headers(brokers: &str, topic: &str, partition: i32, offset: i64) -> Vec<u8> {
    one(brokers, topic, partition, offset, "%h")
}

fn one(brokers: &str, topic: &str, partition: i32, offset: i64, format: &str) -> Vec<u8> {
    let (partition, offset) = (partition.to_string(), offset.to_string());
    kcat(brokers, &["-C", "-t", topic, "-p", &partition, "-o", &offset, "-c", "1", "-f", format]).stdout
}

fn kcat(brokers: &str, args: &[&str]) -> Output {
    let mut command = Command::new("kcat");
    // A consumer group is not involved: kcat reads partitions directly. CRCs are checked so that a damaged record is an
    // error.
    command.args(["-b", brokers, "-q", "-X", "check.crcs=true", "-X", "fetch.wait.max.ms=50"]).args(args);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = process::spawn(command).expect("the tests need kcat (package kcat)");
    let output = child.wait_with_output().expect("kcat can be waited for");
    assert!(output.status.success(), "kcat {args:?} failed: {}", String::from_utf8_lossy(&output.stderr));
    output
}

fn parse(mut rest: &[u8]) -> Vec<Record> {
    let mut records = Vec::new();
    while !rest.is_empty() {
        let end = rest.iter().position(|&b| b == b'\n').expect("a line of numbers ends");
        let line = std::str::from_utf8(&rest[..end]).expect("a line of numbers is ASCII");
        let numbers: Vec<i64> = line.split(' ').map(|n| n.parse().expect("a number")).collect();
        let [partition, offset, timestamp, key_len, payload_len] = numbers[..] else {
            panic!("five numbers in {line:?}")
        };
        rest = &rest[end + 1..];
        let key = take(&mut rest, key_len);
        let payload = take(&mut rest, payload_len);
        assert_eq!(rest.first(), Some(&b'\n'), "each message is followed by a newline");
        rest = &rest[1..];
        let partition = i32::try_from(partition).expect("a partition number");
        records.push(Record { partition, offset, timestamp, key, payload });
    }
    records
}

/// kcat prints length -1 for null and then no bytes.
fn take(rest: &mut &[u8], len: i64) -> Option<Vec<u8>> {
    let len = usize::try_from(len).ok()?;
    let (taken, left) = rest.split_at(len);
    *rest = left;
    Some(taken.to_vec())
}
