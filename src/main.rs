//! Arguments, allocator, exit codes.

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand};
use kateway::{api::codes, boot, config, control::doctor, error::StartError};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// An HTTP gateway in front of Apache Kafka.
#[derive(Parser)]
#[command(version, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Starts the gateway in the foreground.
    Run(Options),
    /// Validates the configuration and prints what is in effect.
    Check {
        #[command(flatten)]
        options: Options,
        /// Prints the table of error codes instead.
        #[arg(long)]
        codes: bool,
        /// Prints a configuration file with every key instead.
        #[arg(long)]
        sample: bool,
    },
    /// Examines the host and the brokers; starts nothing.
    Doctor(Options),
}

#[derive(Args)]
struct Options {
    /// Configuration file (TOML).
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where messages go: kafka, memory or null.
    #[arg(long, value_name = "STORE")]
    store: Option<String>,
    /// Kafka brokers to start from.
    #[arg(long, value_name = "HOST:PORT,..")]
    brokers: Option<String>,
    /// Address for publishing.
    #[arg(long = "pub", value_name = "ADDR")]
    publish: Option<String>,
    /// Address for subscribing.
    #[arg(long = "sub", value_name = "ADDR")]
    subscribe: Option<String>,
    /// Address for management.
    #[arg(long = "man", value_name = "ADDR")]
    manage: Option<String>,
    /// Number of cores to use.
    #[arg(long, value_name = "N")]
    shards: Option<String>,
    /// Any key of the configuration.
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE", value_parser = config::key_value)]
    set: Vec<(String, String)>,
}

impl Options {
    fn sources(self) -> config::Sources {
        let named = [
            ("store.kind", self.store),
            ("kafka.brokers", self.brokers),
            ("pub.addr", self.publish),
            ("sub.addr", self.subscribe),
            ("man.addr", self.manage),
            ("shard.count", self.shards),
        ];
        let named = named.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?)));
        config::Sources::of_process(self.config, named.chain(self.set).collect())
    }
}

fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::Run(options) => ended(boot::run(options.sources())),
        Command::Check { codes: true, .. } => print(&codes::markdown()),
        Command::Check { sample: true, .. } => print(&config::render::sample()),
        Command::Check { options, .. } => match config::effective_toml(&options.sources()) {
            Ok(toml) => print(&toml),
            Err(errors) => ended(Err(StartError::Config(errors.iter().map(ToString::to_string).collect()))),
        },
        Command::Doctor(options) => match config::load(&options.sources()) {
            Ok(config) => ExitCode::from(doctor::run(&config)),
            Err(errors) => ended(Err(StartError::Config(errors.iter().map(ToString::to_string).collect()))),
        },
    }
}

fn print(text: &str) -> ExitCode {
    print!("{text}");
    ExitCode::SUCCESS
}

fn ended(result: Result<(), StartError>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kateway: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}
