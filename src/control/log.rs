//! Logging: one writer thread, never a core; what does not fit its queue is dropped and counted.

use std::{io, sync::OnceLock};

use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::{EnvFilter, Registry, layer::SubscriberExt, reload, util::SubscriberInitExt};

use crate::config::LogConfig;

/// Records waiting for the writer.
const RECORDS_MAX: usize = 16 * 1024;

static DROPPED: OnceLock<ErrorCounter> = OnceLock::new();

/// Keeps the writer alive; flushes when dropped.
#[derive(Debug)]
pub struct Log {
    filter: reload::Handle<EnvFilter, Registry>,
    _writer: WorkerGuard,
}

impl Log {
    /// Starts logging for this process. Called once.
    pub fn start(config: &LogConfig) -> io::Result<Self> {
        let sink: Box<dyn io::Write + Send> = match &config.file {
            Some(path) => Box::new(std::fs::File::options().create(true).append(true).open(path)?),
            None => Box::new(io::stderr()),
        };
        let (writer, guard) = NonBlockingBuilder::default().buffered_lines_limit(RECORDS_MAX).lossy(true).finish(sink);
        // A second start in one process keeps the first counter.
        let _ = DROPPED.set(writer.error_counter());
        let (filter, handle) = reload::Layer::new(filter(&config.level));
        let registry = tracing_subscriber::registry().with(filter);
        let started =
            if config.json { registry.with(json(writer)).try_init() } else { registry.with(text(writer)).try_init() };
        started.map_err(io::Error::other)?;
        Ok(Self { filter: handle, _writer: guard })
    }

    /// Takes over a new level.
    pub fn set_level(&self, level: &str) {
        if let Err(error) = self.filter.reload(filter(level)) {
            tracing::warn!(%error, "the log level could not be changed");
        }
    }
}

/// Records dropped because the writer was behind.
pub fn dropped_total() -> u64 {
    DROPPED.get().map_or(0, |counter| counter.dropped_lines() as u64)
}

fn filter(level: &str) -> EnvFilter {
    // The configuration has checked it; a filter that fails all the same must not silence the gateway.
    EnvFilter::try_new(level).unwrap_or_else(|_| EnvFilter::new("info"))
}

fn text<S>(writer: NonBlocking) -> impl tracing_subscriber::Layer<S>
where
    S: tracing::Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a>,
{
    tracing_subscriber::fmt::layer().with_ansi(false).with_writer(writer)
}

fn json<S>(writer: NonBlocking) -> impl tracing_subscriber::Layer<S>
where
    S: tracing::Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a>,
{
    tracing_subscriber::fmt::layer().json().with_writer(writer)
}
