//! What is wrong with a configuration: where it stands, what was written, what was expected.
//!
//! One error names one place, and every error stands alone, so that all can be shown at once.

use std::fmt;

use super::{keys::Key, table::KEYS};

/// One thing to mend.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConfigError {
    /// TOML path; the variable's name for an unknown variable; empty when a whole file is meant.
    pub path: String,
    /// The value as it was written, where there is one to show.
    pub value: Option<String>,
    pub origin: Origin,
    pub problem: Problem,
}

/// Where a value stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Origin {
    Default,
    /// Line 0 is the file as a whole.
    File {
        file: String,
        line: usize,
    },
    Variable(String),
    CommandLine,
}

/// Why it cannot stay so.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Problem {
    /// No such key; the nearest there is.
    Unknown { near: Option<String> },
    /// Completes "expected ...".
    Expected(String),
    /// A known key of a feature this version does not have.
    NotBuilt,
    /// The file cannot be read, or is not TOML.
    File(String),
}

/// The existing path nearest to `path`, if one is near enough to be what was meant.
pub fn nearest_path(path: &str) -> Option<&'static str> {
    let same_name = || {
        let name = path.rsplit('.').next().unwrap_or(path);
        KEYS.iter().find(|key| key.name() == name)
    };
    let allowance = (path.len() / 4).max(2);
    // Cut short (a unit left out) is the likeliest slip: `pub.deadline` means `pub.deadline_ms`.
    let distance = |key: &Key| {
        let is_cut_short = key.path.starts_with(path) && path.len() * 2 > key.path.len();
        if is_cut_short { 1 } else { edits(path, key.path) }
    };
    KEYS.iter()
        .map(|key| (distance(key), key))
        .filter(|(distance, _)| *distance <= allowance)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, key)| key)
        .or_else(same_name)
        .map(|key| key.path)
}

/// Levenshtein distance in bytes.
fn edits(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

// === impl ConfigError ===

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.value.as_ref().map(|value| format!(" = {value}")).unwrap_or_default();
        match (self.path.as_str(), &self.origin) {
            ("", origin) => write!(f, "{origin}: {}", self.problem),
            (path, Origin::Default) => write!(f, "{path}{value}: {}", self.problem),
            (path, origin) => write!(f, "{path}{value} ({origin}): {}", self.problem),
        }
    }
}

impl std::error::Error for ConfigError {}

// === impl Origin ===

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { file, line: 0 } => f.write_str(file),
            Self::File { file, line } => write!(f, "{file}:{line}"),
            Self::Variable(name) => write!(f, "variable {name}"),
            Self::CommandLine => f.write_str("command line"),
        }
    }
}

// === impl Problem ===

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown { near: None } => f.write_str("there is no such key"),
            Self::Unknown { near: Some(near) } => write!(f, "there is no such key; did you mean `{near}`?"),
            Self::Expected(expected) => write!(f, "expected {expected}"),
            Self::NotBuilt => f.write_str("not built yet in this version; leave it out"),
            Self::File(reason) => f.write_str(reason),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_misses_are_found_and_far_ones_are_not() {
        for (written, meant) in [
            ("pub.deadline", Some("pub.deadline_ms")),
            ("drain.timout_s", Some("drain.timeout_s")),
            ("publish.deadline_ms", Some("pub.deadline_ms")),
            ("deadline_ms", Some("pub.deadline_ms")),
            ("kafka.broker", Some("kafka.brokers")),
            ("something.else_entirely", None),
        ] {
            assert_eq!(nearest_path(written), meant, "{written}");
        }
    }

    #[test]
    fn distance_is_levenshtein_s() {
        assert_eq!(edits("kitten", "sitting"), 3);
        assert_eq!(edits("", "abc"), 3);
        assert_eq!(edits("abc", "abc"), 0);
    }
}
