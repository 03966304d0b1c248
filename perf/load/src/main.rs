//! A load generator for kateway: publish and subscribe over HTTP/1.1, HTTP/2 and WebSocket, in a closed or an open loop.
//!
//! ```text
//! load --target 127.0.0.1:9191 --connections 64 --ack local                    closed loop: the next when an answer came
//! load --target 127.0.0.1:9194 --connections 64 --ack local --tls true         the same over TLS, to pub.tls_addr
//! load --target 127.0.0.1:9191 --rate 20000 --json result.json                 open loop: latency from the intended time
//! load --batch 500 --format json --size 100 --ack local                        batches: so many messages a request
//! load --work subscribe --target 127.0.0.1:9192 --batch 500 --connections 8    messages drained from a topic
//! load --scenario perf/scenarios/publish.toml --connections 256                a file's keys, and flags over them
//! ```
//!
//! Exit code 0 when every request was answered below 400, 1 when not (`--allow-errors`: 0), 64 for a plan that makes no sense.
//! `plan` says what is to be done, `pace` when, `lane` is one thread, `h1`, `h2` and `ws` speak, `wire` is what they go over, `stamp` tells a message's age, `tally`
//! counts, `report` tells.

mod answer;
mod frames;
mod h1;
mod h2;
mod lane;
mod pace;
mod plan;
mod report;
mod stamp;
mod tally;
mod wire;
mod ws;

use std::{
    io::IsTerminal as _,
    path::PathBuf,
    process::ExitCode,
    sync::{Arc, atomic::Ordering},
    thread,
    time::{Duration, Instant},
};

use clap::Parser;

use self::{
    lane::{Lane, Progress},
    plan::{Plan, Written},
    report::Report,
    tally::Tally,
};

/// `EX_USAGE` of sysexits.
const EXIT_USAGE: u8 = 64;

/// Generates load for kateway and says what came of it.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Scenario file (TOML) with the same names as the flags, which win.
    #[arg(long, value_name = "FILE")]
    scenario: Option<PathBuf>,
    #[command(flatten)]
    written: Written,
    /// Writes the result as JSON; `-`: to stdout, in place of the text.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// A line each second on stderr, on a terminal or not.
    #[arg(long)]
    progress: bool,
    /// Says `counting` on stderr when the warm-up is over and `counted` at the end, for whoever measures the server beside.
    #[arg(long)]
    announce: bool,
    /// Ends with 0 even if requests failed.
    #[arg(long)]
    allow_errors: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let below = arguments.scenario.as_deref().map_or_else(|| Ok(Written::default()), Written::read);
    let plan = match below.and_then(|below| arguments.written.over(below).resolve()) {
        Ok(plan) => plan,
        Err(said) => {
            eprintln!("load: {said}");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    let progress = Progress { is_announced: arguments.announce, ..Progress::default() };
    match run(&plan, progress, arguments.progress || std::io::stderr().is_terminal()) {
        Ok(report) => tell(&report, arguments.json, arguments.allow_errors),
        Err(error) => {
            eprintln!("load: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(plan: &Plan, progress: Progress, is_watched: bool) -> std::io::Result<Report> {
    let progress = Arc::new(progress);
    let start = Instant::now();
    let lanes: Vec<_> = (0..plan.threads)
        .map(|lane| {
            let (plan, progress) = (plan.clone(), Arc::clone(&progress));
            let numbers: Vec<usize> = (lane..plan.connections).step_by(plan.threads).collect();
            thread::Builder::new()
                .name(format!("load-{lane}"))
                .spawn(move || Lane::run(&plan, &numbers, start, &progress))
        })
        .collect::<Result<_, _>>()?;
    if is_watched {
        watch(&progress, || lanes.iter().any(|lane| !lane.is_finished()));
    }
    let mut tally = Tally::default();
    for lane in lanes {
        tally.add(&lane.join().map_err(|_| std::io::Error::other("a thread panicked"))??);
    }
    let counted = start.elapsed().as_secs_f64() - plan.warmup_s;
    // What was waited for after the end had been sent before it.
    Ok(Report::new(plan, &tally, counted.min(plan.seconds).max(1e-3)))
}

#[allow(clippy::disallowed_methods)] // The main thread has nothing else to do.
fn watch(progress: &Progress, is_running: impl Fn() -> bool) {
    let mut before = 0;
    while is_running() {
        thread::sleep(Duration::from_secs(1));
        let answers = progress.answers.load(Ordering::Relaxed);
        let errors = progress.errors.load(Ordering::Relaxed);
        eprintln!("{} answers/s, {answers} in all, {errors} without an answer", answers - before);
        before = answers;
    }
}

fn tell(report: &Report, json: Option<PathBuf>, allow_errors: bool) -> ExitCode {
    let document = || serde_json::to_string_pretty(report).expect("a report is plain data");
    match json {
        Some(path) if path.as_os_str() == "-" => println!("{}", document()),
        Some(path) => {
            print!("{report}");
            if let Err(error) = std::fs::write(&path, document()) {
                eprintln!("load: {}: {error}", path.display());
                return ExitCode::FAILURE;
            }
        }
        None => print!("{report}"),
    }
    if report.has_errors() && !allow_errors { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
