//! A gateway comes up, always: on a busy machine, with many cores, whatever the preempt timer is.
//!
//! An executor of glommio 0.9 that is preempted before its first task ran parks for ever, and no wake reaches it then.
//! Method: many gateways start side by side with sixteen cores each and the shortest preempt timer there is, which makes
//! that likely: without the queue of `boot::in_quick_queue` about one start in twenty-five hangs. Each must print its
//! ready line, and each core and the management listener must answer.
//!
//! What cannot run says so in one sentence, at once, and serves nothing: io_uring is forbidden by a seccomp filter as container
//! runtimes install it, locked memory by its limit. `doctor` finds the same beforehand, and a limit on open files that is too low to serve.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use kateway_tests::kateway::{Kateway, run_hindered};
use kateway_tests::{figures, hinder, wait_until};

use crate::Case;

pub const CASES: &[Case] = &[
    Case::new("start::many_cores_with_a_short_timer", many_cores_with_a_short_timer).alone(),
    Case::new("start::refused_without_io_uring", refused_without_io_uring),
    Case::new("start::refused_with_too_little_locked_memory", refused_with_too_little_locked_memory),
    Case::new("start::doctor_finds_too_few_open_files", doctor_finds_too_few_open_files),
];

const STARTS: usize = 100;
const AT_ONCE: usize = 8;
const CORES: u32 = 16;
/// Sixteen cores share two CPUs with seven other gateways; one that hangs answers never.
const PATIENCE: Duration = Duration::from_secs(10);

fn many_cores_with_a_short_timer() {
    let started = AtomicUsize::new(0);
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while started.fetch_add(1, Ordering::Relaxed) < STARTS {
                    let gateway = Kateway::null().shards(CORES).set("shard.preempt_us", 100).start();
                    wait_until(PATIENCE, "every core answers", || {
                        let status = gateway.status();
                        assert_eq!(status["shards"].as_array().map(Vec::len), Some(CORES as usize), "{status}");
                        status["silent_shards"].as_array().is_some_and(Vec::is_empty)
                    });
                }
            });
        }
    });
    figures::note(format!("{STARTS} starts of {CORES} cores"), format!("{:?}", begun.elapsed()));
}

/// `EX_UNAVAILABLE` of sysexits.
const UNFIT: i32 = 69;
const RUN: [&str; 9] =
    ["run", "--store", "null", "--pub", "127.0.0.1:0", "--sub", "127.0.0.1:0", "--man", "127.0.0.1:0"];

fn refused_without_io_uring() {
    for (errno, remedy) in [(libc::EPERM, "seccomp"), (libc::ENOSYS, "Linux 5.8")] {
        let forbid = |command: &mut std::process::Command| hinder::forbid_io_uring(command, errno);
        let (status, out, err) = run_hindered(&RUN, forbid);
        assert_eq!((status, out.as_str()), (UNFIT, ""), "{err}");
        is_one_sentence(&err, &["io_uring", remedy]);
        let (status, out, _) = run_hindered(&["doctor", "--store", "null"], forbid);
        assert_eq!(status, UNFIT, "{out}");
        assert!(out.lines().any(|line| line.starts_with("FAIL  io_uring") && line.contains(remedy)), "{out}");
    }
}

fn refused_with_too_little_locked_memory() {
    let limit = |command: &mut std::process::Command| hinder::limit_locked_memory(command, 256 * 1_024);
    let (status, out, err) = run_hindered(&RUN, limit);
    assert_eq!((status, out.as_str()), (UNFIT, ""), "{err}");
    is_one_sentence(&err, &["locked memory", "256 KiB", "ulimit -l"]);
    let (status, out, _) = run_hindered(&["doctor", "--store", "null"], limit);
    assert_eq!(status, UNFIT, "{out}");
    assert!(out.lines().any(|line| line.starts_with("FAIL  locked memory")), "{out}");
}

fn doctor_finds_too_few_open_files() {
    let doctor = |count: u64| {
        let args = ["doctor", "--store", "null", "--shards", "1", "--set", "http.connections_max=1000"];
        let (status, out, _) = run_hindered(&args, |command| hinder::limit_open_files(command, count));
        let line = out.lines().find(|line| line.contains("open files")).unwrap_or_else(|| panic!("{out}")).to_owned();
        (status, line)
    };
    let (status, line) = doctor(200);
    assert!(
        status == UNFIT && line.starts_with("FAIL") && line.contains("200") && line.contains("ulimit -n"),
        "{line}"
    );
    let (_, line) = doctor(1_000);
    assert!(line.starts_with("WARN") && line.contains("http.connections_max"), "{line}");
    let (_, line) = doctor(4_000);
    assert!(line.starts_with("OK"), "{line}");
}

fn is_one_sentence(err: &str, words: &[&str]) {
    let said: Vec<_> = err.lines().filter(|line| line.starts_with("kateway:")).collect();
    assert_eq!(said.len(), 1, "{err}");
    assert!(words.iter().all(|word| said[0].contains(word)), "{words:?} in {err}");
    assert!(!err.contains("panicked"), "{err}");
}
