//! Sets of cpus: as an operator writes them (`0-3,8`) and as the kernel reports them.
//!
//! Invariant: a list is sorted and holds no cpu twice. Which cpus a process may use is asked of the kernel
//! (`/proc/self/status`), because `taskset`, cgroups and containers make that fewer than the host has. This file knows no keys.

use std::{fmt::Write as _, ops::RangeInclusive};

/// Cpu numbers the kernel can have (`CONFIG_NR_CPUS` at its largest).
const CPU_MAX: usize = 8_191;

/// Reads `0-3,8`; empty text is an empty list. The error says what is wrong in one phrase.
pub fn parse(text: &str) -> Result<Vec<usize>, String> {
    let mut cpus = Vec::new();
    for part in text.split(',').map(str::trim).filter(|_| !text.trim().is_empty()) {
        let range = parse_range(part)?;
        if let Some(cpu) = range.clone().find(|cpu| cpus.contains(cpu)) {
            return Err(format!("cpu {cpu} is named twice"));
        }
        cpus.extend(range);
    }
    cpus.sort_unstable();
    Ok(cpus)
}

/// The cpus this process may run on; cpu 0 alone if the kernel does not say.
pub fn usable() -> Vec<usize> {
    std::fs::read_to_string("/proc/self/status")
        .ok()
        .and_then(|status| allowed_in(&status))
        .filter(|cpus| !cpus.is_empty())
        .unwrap_or_else(|| vec![0])
}

/// Writes a sorted list as `parse` reads it.
pub fn render(cpus: &[usize]) -> String {
    let mut text = String::new();
    for run in cpus.chunk_by(|a, b| a + 1 == *b) {
        if let (Some(first), Some(last)) = (run.first(), run.last()) {
            let comma = if text.is_empty() { "" } else { "," };
            let dash = if first == last { String::new() } else { format!("-{last}") };
            // Writing to a String cannot fail.
            let _ = write!(text, "{comma}{first}{dash}");
        }
    }
    text
}

fn parse_range(part: &str) -> Result<RangeInclusive<usize>, String> {
    let (first, last) = part.split_once('-').unwrap_or((part, part));
    let (first, last) = (parse_cpu(first)?, parse_cpu(last)?);
    if first > last { Err(format!("`{part}` runs backwards")) } else { Ok(first..=last) }
}

fn parse_cpu(text: &str) -> Result<usize, String> {
    let is_number = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    match text.parse() {
        Ok(cpu) if is_number && cpu <= CPU_MAX => Ok(cpu),
        _ => Err(format!("`{text}` is not a cpu number")),
    }
}

fn allowed_in(status: &str) -> Option<Vec<usize>> {
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
    parse(list.trim()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_sorted_and_written_back() {
        for (text, cpus) in [("", vec![]), ("0", vec![0]), ("8, 0-3", vec![0, 1, 2, 3, 8]), ("2-2", vec![2])] {
            assert_eq!(parse(text), Ok(cpus), "{text:?}");
        }
        assert_eq!(render(&[0, 1, 2, 3, 8]), "0-3,8");
        assert_eq!(render(&[]), "");
    }

    #[test]
    fn what_is_no_list_is_refused() {
        for text in ["a", "1-", "-1", "3-1", "0,0", "0-3,2", "1,,2", "+1", "9999", "1-2-3"] {
            assert!(parse(text).is_err(), "{text:?} was accepted");
        }
    }

    #[test]
    fn the_kernel_s_line_is_understood() {
        assert_eq!(allowed_in("Name:\tx\nCpus_allowed:\tff\nCpus_allowed_list:\t0-1,4\n"), Some(vec![0, 1, 4]));
        assert!(!usable().is_empty());
    }
}
