//! What the process as a whole takes of the host: threads and resident memory, as Linux counts them.
//!
//! A group's consumer has threads and memory of its own that no counter of ours sees; the difference between a process with and
//! without groups does. Read when a management request asks.

use std::fs;

/// See the module text.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ProcessSize {
    pub threads: u64,
    pub resident_bytes: u64,
}

impl ProcessSize {
    /// This process now; zeros where `/proc` is not to be read.
    pub fn here() -> Self {
        fs::read_to_string("/proc/self/status").map(|text| Self::parse(&text)).unwrap_or_default()
    }

    fn parse(status: &str) -> Self {
        let number = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_whitespace().next()?.parse::<u64>().ok()
        };
        let resident_kib = number("VmRSS:").unwrap_or(0);
        Self { threads: number("Threads:").unwrap_or(0), resident_bytes: resident_kib * 1024 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_of_a_process_is_read() {
        let text = "Name:\tkateway\nVmRSS:\t   51200 kB\nThreads:\t17\n";
        assert_eq!(ProcessSize::parse(text), ProcessSize { threads: 17, resident_bytes: 50 << 20 });
        assert!(ProcessSize::here().threads > 0);
    }
}
