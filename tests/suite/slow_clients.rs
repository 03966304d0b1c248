//! Clients that are slow on purpose keep nobody else from being served.
//!
//! Method: slowhttptest opens hundreds of connections whose heads (-H, slowloris), bodies (-B) or readings (-X) come by the byte.
//! Beside all three a client publishes on a connection of its own each time: every one must be answered 201, soon. The tool's own probe
//! must find the service there to the end. Connections that were slow for longer than a head or a body may take are cut and counted.

use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use kateway_tests::kateway::Kateway;
use kateway_tests::topic::Topic;
use kateway_tests::{figures, process};

use crate::Case;

pub const CASES: &[Case] =
    &[Case::new("slow_clients::a_probe_is_answered_throughout", a_probe_is_answered_throughout).alone()];

const SECONDS: &str = "12";
const CONNECTIONS: &str = "300";
const LIMIT: Duration = Duration::from_secs(90);
const SOON: Duration = Duration::from_secs(10);

fn slowhttptest(mode: &[&str], url: &str) {
    let mut command = Command::new("slowhttptest");
    command.args(mode).args(["-c", CONNECTIONS, "-r", "100", "-l", SECONDS, "-p", "3", "-u", url]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let output =
        process::output("slowhttptest", command, LIMIT).expect("the tests need slowhttptest (package of that name)");
    let report = String::from_utf8_lossy(&output.stdout);
    let available: Vec<_> = report.lines().filter(|line| line.contains("service available")).collect();
    assert!(!available.is_empty(), "{report}");
    assert!(available.iter().all(|line| line.contains("YES")), "{report}");
}

fn a_probe_is_answered_throughout() {
    let gateway = Kateway::memory().set("http.head_timeout_ms", 5_000).start();
    let (topic, large) = (Topic::fresh("slow"), Topic::fresh("slow"));
    gateway.publish(&large.publish("", vec![b'l'; 500_000])).expect(201);
    let publish = format!("http://{}/v1/msgs/{}/v1", gateway.publish, topic.name);
    let peek = format!("http://{}/v1/peek/{}?n=1", gateway.subscribe, large.path());
    let ended = AtomicBool::new(false);
    let (answered, slowest) = std::thread::scope(|scope| {
        let probe = scope.spawn(|| {
            let (mut answered, mut slowest) = (0_u32, Duration::ZERO);
            while !ended.load(Ordering::Relaxed) {
                let start = Instant::now();
                gateway.publish(&topic.publish("", "probe")).expect(201);
                answered += 1;
                slowest = slowest.max(start.elapsed());
                std::thread::sleep(Duration::from_millis(20));
            }
            (answered, slowest)
        });
        let attacks = [
            scope.spawn(|| slowhttptest(&["-H", "-i", "2", "-x", "24"], &publish)),
            scope.spawn(|| slowhttptest(&["-B", "-i", "2", "-s", "8192", "-x", "10"], &publish)),
            scope.spawn(|| slowhttptest(&["-X", "-w", "512", "-y", "1024", "-n", "2", "-z", "32", "-k", "3"], &peek)),
        ];
        let ends = attacks.map(std::thread::ScopedJoinHandle::join);
        ended.store(true, Ordering::Relaxed);
        let probed = probe.join().expect("every probe was answered");
        for end in ends {
            end.expect("the service was there throughout");
        }
        probed
    });
    figures::note("slowhttptest -H -B -X: probes answered beside them", answered);
    figures::note("slowhttptest -H -B -X: slowest probe", format!("{slowest:?}"));
    assert!(answered > 100 && slowest < SOON, "{answered} answered, the slowest after {slowest:?}");
    let expired = |kind| gateway.scrape().sum("kateway_connections_expired_total", &[("kind", kind)]);
    assert!(expired("head") > 100.0 && expired("body_rate") > 100.0, "{} {}", expired("head"), expired("body_rate"));
}
