//! Figures measured on the way: latencies, memory, file descriptors, counts.
//!
//! Trials run in parallel, so what they print would be interleaved. They note figures here, and the suite prints one
//! table at the end.

use std::fmt::Display;
use std::sync::Mutex;

static NOTED: Mutex<Vec<(String, String)>> = Mutex::new(Vec::new());

/// Keeps `value` under `what` for the table at the end.
pub fn note(what: impl Display, value: impl Display) {
    let mut noted = NOTED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    noted.push((what.to_string(), value.to_string()));
}

/// Prints everything noted, sorted by name.
pub fn print() {
    let mut noted = NOTED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    noted.sort();
    if !noted.is_empty() {
        println!("figures:");
    }
    let width = noted.iter().map(|(what, _)| what.len()).max().unwrap_or(0);
    for (what, value) in noted.drain(..) {
        println!("  {what:width$}  {value}");
    }
}
