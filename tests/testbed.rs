//! ZooKeeper and Kafka for benchmarks and afternoons by hand.
//!
//! `testbed --brokers 1` starts one ZooKeeper and that many brokers on free ports, prints `brokers=HOST:PORT,..` and
//! `zookeeper=HOST:PORT` once all of them answer, and runs until SIGTERM, SIGINT or the end of its stdin, whichever
//! comes first; then it stops what it started and removes its data. `--topic NAME:PARTITIONS` (any number of times)
//! makes topics first.

use std::io::Read;
use std::sync::mpsc;

use kateway_tests::kafka::{Cluster, Options};
use kateway_tests::{folder, process};

const USAGE: &str = "usage: testbed [--brokers N] [--heap MIB] [--topic NAME:PARTITIONS]..";

fn main() {
    let (options, topics) = arguments();
    // Before any thread exists, so that all of them inherit the mask and only `sigwait` sees the signals.
    let signals = process::block_end_signals();
    let cluster = Cluster::start(options);
    let admin = cluster.admin();
    for (name, partitions) in &topics {
        admin.create_topic(name, *partitions);
    }
    println!("brokers={}\nzookeeper={}", cluster.bootstrap(), cluster.zookeeper());

    let (ended, end) = mpsc::channel();
    let by_signal = ended.clone();
    std::thread::spawn(move || {
        process::wait_for_signal(&signals);
        let _ = by_signal.send(());
    });
    std::thread::spawn(move || {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        let _ = ended.send(());
    });
    let _ = end.recv();
    drop(cluster);
    folder::remove();
}

fn arguments() -> (Options, Vec<(String, i32)>) {
    let mut options = Options { brokers: 1, heap_mib: 768, quick_start: false, secured: false };
    let mut topics = Vec::new();
    let mut args = std::env::args().skip(1);
    while let Some(flag) = args.next() {
        let value = args.next().unwrap_or_else(|| usage());
        match flag.as_str() {
            "--brokers" => options.brokers = value.parse().unwrap_or_else(|_| usage()),
            "--heap" => options.heap_mib = value.parse().unwrap_or_else(|_| usage()),
            "--topic" => {
                let (name, partitions) = value.split_once(':').unwrap_or_else(|| usage());
                topics.push((name.to_owned(), partitions.parse().unwrap_or_else(|_| usage())));
            }
            _ => usage(),
        }
    }
    (options, topics)
}

fn usage() -> ! {
    eprintln!("{USAGE}");
    std::process::exit(64)
}
