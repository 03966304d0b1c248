//! librdkafka alone, without HTTP: what a gateway on it can reach at most, measured with the same version and features.
//!
//! ```text
//! direct produce --brokers HOST:PORT --topic T --in-flight 64 --linger-ms 0.1     closed loop: one sent for each acknowledged
//! direct produce --brokers HOST:PORT --topic T --in-flight 50000 --messages 500000    fills a topic, flat out
//! direct consume --brokers HOST:PORT --topic T                                    drains a topic, in batches
//! ```
//!
//! Prints one JSON object. Exit code 1 when a message failed or a topic held less than asked for, 64 for unknown arguments.
//! Everything of ours runs in one thread beside librdkafka's own; payloads are lent, not copied; a message costs us one look at
//! the clock. `client` holds what both works need, `produce` and `consume` are the loops.

#![allow(unsafe_code)] // librdkafka's own calls are the limit to be shown: rdkafka's safe layer costs more per message

mod client;
mod consume;
mod produce;

use std::{process::ExitCode, time::Duration};

use clap::{Parser, Subcommand};

/// Measures librdkafka alone.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    work: Work,
}

#[derive(Subcommand)]
enum Work {
    /// Acknowledged publishing with so many messages under way.
    Produce(produce::Plan),
    /// Drains a topic from its beginning to what is its end now.
    Consume(consume::Plan),
}

/// Where to, and with what.
#[derive(clap::Args, Debug)]
struct Place {
    /// HOST:PORT,..
    #[arg(long)]
    brokers: String,
    #[arg(long)]
    topic: String,
    /// Any setting of librdkafka, over ours.
    #[arg(long = "set", value_name = "NAME=VALUE")]
    settings: Vec<String>,
}

fn main() -> ExitCode {
    let done = match Arguments::try_parse().map(|arguments| arguments.work) {
        Ok(Work::Produce(plan)) => produce::run(&plan),
        Ok(Work::Consume(plan)) => consume::run(&plan),
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 64 } else { 0 });
        }
    };
    match done {
        Ok((report, is_whole)) => {
            println!("{report}");
            if is_whole { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(said) => {
            eprintln!("direct: {said}");
            ExitCode::FAILURE
        }
    }
}

/// CPU time of the process, librdkafka's threads included.
fn cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// `time` in microseconds for each of so many.
#[allow(clippy::cast_precision_loss)] // counts of one run
fn us_each(time: Duration, count: u64) -> f64 {
    time.as_secs_f64() * 1e6 / count.max(1) as f64
}
