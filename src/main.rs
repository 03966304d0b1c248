//! Arguments, allocator, exit codes.

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand};
use kateway::{
    api::codes,
    boot::{self, Start},
    config,
    control::{doctor, files, zookeeper::haproxy},
    error::StartError,
};

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
    /// Starts a gateway that takes the listeners over from the running one, which then drains: no connection is lost.
    Takeover(Options),
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
    /// Renders HAProxy's configuration from the gateways that are entered in ZooKeeper.
    Haproxy {
        #[command(flatten)]
        options: Options,
        #[command(flatten)]
        balancer: Balancer,
    },
}

#[derive(Args)]
struct Balancer {
    /// Goes on: writes --out and reloads HAProxy whenever the gateways change; an empty list changes nothing.
    #[arg(long, requires = "out", conflicts_with = "once")]
    watch: bool,
    /// Writes or prints the configuration once, as without --watch.
    #[arg(long)]
    once: bool,
    /// File to write instead of printing.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Template instead of the built-in one (config/haproxy.cfg.in).
    #[arg(long, value_name = "FILE")]
    template: Option<PathBuf>,
    /// Where HAProxy serves publishing.
    #[arg(long, value_name = "ADDR", default_value = "*:8191")]
    bind_pub: String,
    /// Where HAProxy serves subscribing.
    #[arg(long, value_name = "ADDR", default_value = "*:8192")]
    bind_sub: String,
    /// Shell command that reloads HAProxy.
    #[arg(long, value_name = "CMD", requires = "watch")]
    reload: Option<String>,
    /// File with the process id of HAProxy's master (haproxy -W -p FILE), which is sent SIGUSR2.
    #[arg(long, value_name = "FILE", requires = "watch")]
    pid_file: Option<PathBuf>,
}

impl Balancer {
    fn options(self) -> haproxy::Options {
        let Self { watch, once: _, out, template, bind_pub, bind_sub, reload, pid_file } = self;
        haproxy::Options {
            watches: watch,
            out,
            template,
            bind_publish: bind_pub,
            bind_subscribe: bind_sub,
            reload,
            pid_file,
        }
    }
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
        Command::Run(options) => ended(boot::run(options.sources(), Start::Fresh)),
        Command::Takeover(options) => ended(boot::run(options.sources(), Start::Takeover)),
        Command::Check { codes: true, .. } => print(&codes::markdown()),
        Command::Check { sample: true, .. } => print(&config::render::sample()),
        Command::Check { options, .. } => match check(&options.sources()) {
            Ok(toml) => print(&toml),
            Err(error) => ended(Err(error)),
        },
        Command::Doctor(options) => match config::load(&options.sources()) {
            Ok(config) => ExitCode::from(doctor::run(&config)),
            Err(errors) => ended(Err(as_config(&errors))),
        },
        Command::Haproxy { options, balancer } => ended(balance(&options.sources(), balancer)),
    }
}

fn as_config(errors: &[config::ConfigError]) -> StartError {
    StartError::Config(errors.iter().map(ToString::to_string).collect())
}

/// The configuration in effect, once it and the files it names are found good.
fn check(sources: &config::Sources) -> Result<String, StartError> {
    let settings = config::Settings::read(sources).map_err(|errors| as_config(&errors))?;
    let (tls, kafka) = settings.security();
    files::load(&tls, &kafka).map_err(StartError::Config)?;
    Ok(settings.to_toml())
}

/// What only a gateway needs plays no part: without a store of its own the command takes any.
fn balance(sources: &config::Sources, balancer: Balancer) -> Result<(), StartError> {
    let mut sources = sources.clone();
    let unneeded = [("store.kind", "null"), ("gateway.advertise", "balancer:1")];
    sources.flags.splice(0..0, unneeded.map(|(key, value)| (key.to_owned(), value.to_owned())));
    let config = config::load(&sources).map_err(|errors| as_config(&errors))?;
    haproxy::run(&config, &balancer.options()).map_err(StartError::Host)
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
