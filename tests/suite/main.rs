//! All properties of the gateway, tested from outside, in one program.
//!
//! One program, because ZooKeeper and three brokers take ten seconds to start and every property may use them: they are
//! started once, and only if a selected trial needs them. Each module here holds one property, its method on top, and
//! lists its trials in `CASES`.
//!
//! Order: ordinary trials run first, four at a time; then those that harm what is shared (they kill brokers) or that
//! measure time run *alone*, one after the other. Filters, `--list`, `--exact`, `--skip` and the summary are those of
//! Rust's own harness:
//!
//! ```text
//! cargo test -p kateway-tests --test suite                     everything
//! cargo test -p kateway-tests --test suite -- bad_input        what contains `bad_input`
//! cargo test -p kateway-tests --test suite -- --skip '[kafka]' what needs no cluster
//! KATEWAY_REPEAT=50 cargo test -p kateway-tests --test suite -- one_name   a trial that fails now and then
//! ```
//!
//! The gateway under test is `target/release/kateway`, or what `KATEWAY_BIN` names. Logs are kept when a trial fails.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::process::ExitCode;
use std::sync::{Mutex, OnceLock, PoisonError, RwLock};

use kateway_tests::kafka::{Cluster, Options};
use kateway_tests::{figures, folder};
use libtest_mimic::{Arguments, Trial};

mod acks;
mod answers;
mod bad_input;
mod balancers;
mod batch_ledger;
mod batch_streams;
mod batches;
mod browser;
mod command_line;
mod commits;
mod compression;
mod cors;
mod deadlines;
mod differential;
mod discovery;
mod drain;
mod faults;
mod formats;
mod framing;
mod group_isolation;
mod group_sharing;
mod h2spec;
mod http2;
mod http2_floods;
mod http2_windows;
mod idempotency;
mod instruments;
mod java_member;
mod kafka_security;
mod ledger_checker;
mod limits;
mod load_generator;
mod long_poll;
mod metrics;
mod partitioner;
mod peers;
mod pipelining;
mod positions;
mod proxy_header;
mod publish_modes;
mod read_chaos;
mod read_ledger_checker;
mod readme_examples;
mod rebalances;
mod respread;
mod roundtrip;
mod shadow_queues;
mod shards;
mod slow_clients;
mod slow_readers;
mod sockets;
mod sslyze;
mod stage;
mod start;
mod status;
mod steering;
mod stores;
mod streams;
mod subscribe_options;
mod tag_filter;
mod takeover;
mod takeover_streams;
mod through_the_other;
mod tls;
mod tls_traffic;
mod topic_names;
mod topics;
mod topics_again;
mod trace_context;
mod two_gateways;
mod varnishtest;
mod watchdog;
mod where_time_goes;
mod who_reads;
mod ws_clients;
mod ws_handshake;
mod ws_ledger;
mod ws_publish;
mod ws_subscribe;

/// Trials at a time. They mostly wait, for Kafka and for each other.
const THREADS: usize = 4;

/// Shown before the names of trials that use the cluster, so that a filter can leave them out.
const KAFKA: &str = "kafka";

/// One trial.
#[derive(Clone, Copy)]
pub struct Case {
    name: &'static str,
    run: fn(),
    needs_kafka: bool,
    alone: bool,
}

impl Case {
    const fn new(name: &'static str, run: fn()) -> Self {
        Self { name, run, needs_kafka: false, alone: false }
    }

    /// Uses the cluster of the run.
    const fn kafka(mut self) -> Self {
        self.needs_kafka = true;
        self
    }

    /// Runs when nothing else does.
    const fn alone(mut self) -> Self {
        self.alone = true;
        self
    }
}

const ALL: &[&[Case]] = &[
    acks::CASES,
    answers::CASES,
    bad_input::CASES,
    balancers::CASES,
    batch_ledger::CASES,
    batch_streams::CASES,
    batches::CASES,
    browser::CASES,
    command_line::CASES,
    compression::CASES,
    commits::CASES,
    cors::CASES,
    discovery::CASES,
    deadlines::CASES,
    differential::CASES,
    drain::CASES,
    faults::CASES,
    formats::CASES,
    framing::CASES,
    group_isolation::CASES,
    group_sharing::CASES,
    h2spec::CASES,
    http2::CASES,
    http2_floods::CASES,
    http2_windows::CASES,
    idempotency::CASES,
    instruments::CASES,
    java_member::CASES,
    kafka_security::CASES,
    ledger_checker::CASES,
    limits::CASES,
    load_generator::CASES,
    long_poll::CASES,
    metrics::CASES,
    partitioner::CASES,
    peers::CASES,
    pipelining::CASES,
    positions::CASES,
    proxy_header::CASES,
    publish_modes::CASES,
    read_chaos::CASES,
    read_ledger_checker::CASES,
    readme_examples::CASES,
    rebalances::CASES,
    respread::CASES,
    roundtrip::CASES,
    shadow_queues::CASES,
    shards::CASES,
    slow_clients::CASES,
    slow_readers::CASES,
    sockets::CASES,
    sslyze::CASES,
    start::CASES,
    status::CASES,
    steering::CASES,
    stores::CASES,
    streams::CASES,
    subscribe_options::CASES,
    tag_filter::CASES,
    takeover::CASES,
    takeover_streams::CASES,
    through_the_other::CASES,
    tls::CASES,
    tls_traffic::CASES,
    topic_names::CASES,
    topics::CASES,
    topics_again::CASES,
    trace_context::CASES,
    two_gateways::CASES,
    varnishtest::CASES,
    where_time_goes::CASES,
    watchdog::CASES,
    who_reads::CASES,
    ws_clients::CASES,
    ws_handshake::CASES,
    ws_ledger::CASES,
    ws_publish::CASES,
    ws_subscribe::CASES,
];

static CLUSTER: OnceLock<Cluster> = OnceLock::new();

/// The cluster of this run; for trials marked [`Case::kafka`].
pub fn kafka() -> &'static Cluster {
    CLUSTER.get().expect("the case is marked `.kafka()`")
}

fn main() -> ExitCode {
    say_which_trial_panicked();
    let mut args = Arguments::from_args();
    args.test_threads = args.test_threads.or(Some(THREADS));

    let mut cases: Vec<Case> = ALL.concat().repeat(repeats());
    // The summary keeps this order, and the pool takes trials in it.
    cases.sort_by_key(|case| (case.alone, case.name));
    let selected = |case: &&Case| !args.is_filtered_out(&trial(**case));
    if !args.list && cases.iter().filter(selected).any(|case| case.needs_kafka) {
        let _ = CLUSTER.set(Cluster::start(Options::TESTS));
    }

    let conclusion = libtest_mimic::run(&args, cases.into_iter().map(trial).collect());
    figures::print();
    // Once more at the end, where somebody who sees only the tail of a log looks.
    for complaint in COMPLAINTS.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        println!("{complaint}");
    }
    if let Some(cluster) = CLUSTER.get() {
        cluster.stop();
    }
    if conclusion.has_failed() {
        println!("logs are kept in {}", folder::run().display());
    } else {
        folder::remove();
    }
    conclusion.exit_code()
}

/// How often each selected trial runs (`KATEWAY_REPEAT`): to hunt one that fails now and then.
fn repeats() -> usize {
    std::env::var("KATEWAY_REPEAT").ok().map_or(1, |n| n.parse().expect("KATEWAY_REPEAT is a number"))
}

/// What panicked, by trial, place and message.
static COMPLAINTS: Mutex<Vec<String>> = Mutex::new(Vec::new());

const COMPLAINTS_MAX: usize = 20;

thread_local! {
    static TRIAL: Cell<&'static str> = const { Cell::new("a thread of a trial") };
}

/// Four trials share one stderr: each complaint begins with the trial's name, and no backtrace through this program drowns it.
fn say_which_trial_panicked() {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let message = panic.payload_as_str().unwrap_or("no message");
        let complaint = format!("{} at {place}: {message}", TRIAL.get());
        eprintln!("{complaint}");
        let mut complaints = COMPLAINTS.lock().unwrap_or_else(PoisonError::into_inner);
        if complaints.len() < COMPLAINTS_MAX {
            complaints.push(complaint);
        }
    }));
}

fn trial(case: Case) -> Trial {
    let trial = Trial::test(case.name, move || {
        // The ordinary share the lock, the lonely own it. All ordinary trials have been handed out before the first
        // lonely one asks, so it waits for those still running and is overtaken by none. A failed trial poisons it,
        // which means nothing: it guards no data.
        static TURN: RwLock<()> = RwLock::new(());
        let (_shared, _alone);
        if case.alone {
            _alone = TURN.write().unwrap_or_else(PoisonError::into_inner);
        } else {
            _shared = TURN.read().unwrap_or_else(PoisonError::into_inner);
        }
        TRIAL.set(case.name);
        let outcome = catch_unwind(AssertUnwindSafe(case.run));
        if outcome.is_err() && case.alone && case.needs_kafka {
            // Or every trial behind it fails as well.
            kafka().heal();
        }
        outcome.unwrap_or_else(|panic| resume_unwind(panic));
        Ok(())
    });
    if case.needs_kafka { trial.with_kind(KAFKA) } else { trial }
}
