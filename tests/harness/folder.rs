//! The folder of one run: broker data, logs, configuration files that trials write.
//!
//! It lies under `tests/.cache` (not in git), is named after the time and the pid, and is removed after a clean run.
//! When a trial failed it stays, and its path is printed, because the logs in it are the evidence.

use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

static RUN: LazyLock<PathBuf> = LazyLock::new(|| {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is past 1970").as_secs();
    let path = cache().join("runs").join(format!("{seconds}-{}", std::process::id()));
    std::fs::create_dir_all(&path).expect("tests/.cache can be written");
    path
});

/// The repository's root.
pub fn root() -> PathBuf {
    tests().parent().expect("tests/ lies in the repository").to_path_buf()
}

/// The `tests` folder.
pub fn tests() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Downloads and runs; ignored by git.
pub fn cache() -> PathBuf {
    tests().join(".cache")
}

/// The folder of this run.
pub fn run() -> &'static Path {
    &RUN
}

/// A new path in the run's folder that starts with `stem`.
pub fn fresh(stem: &str, extension: &str) -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let n = COUNT.fetch_add(1, Ordering::Relaxed);
    run().join(format!("{stem}-{n}{extension}"))
}

/// A name no other trial of this run uses, valid as app, topic and group.
pub fn unique(stem: &str) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let n = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("{stem}-{n}-{}", std::process::id())
}

/// Removes this run's folder; logs are worth keeping only after a failure.
pub fn remove() {
    let _ = std::fs::remove_dir_all(run());
}
