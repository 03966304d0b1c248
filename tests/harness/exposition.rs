//! The Prometheus text format, read strictly.
//!
//! `/metrics` must be taken by any scraper, so the parser here accepts only what the format's description allows: a `#
//! TYPE` before the samples of a family, legal names, quoted and escaped label values, numbers Go's `ParseFloat` takes,
//! no sample twice.

use std::collections::{BTreeMap, HashMap, HashSet};

/// One sample.
#[derive(Debug, Clone)]
pub struct Sample {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub value: f64,
}

/// A whole scrape.
#[derive(Debug, Default)]
pub struct Scrape {
    pub types: HashMap<String, String>,
    pub samples: Vec<Sample>,
}

impl Scrape {
    /// The sum of all samples of `name` whose labels include `labels`.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let matches = |s: &&Sample| labels.iter().all(|(k, v)| s.labels.get(*k).is_some_and(|have| have == v));
        self.samples.iter().filter(|s| s.name == name).filter(matches).map(|s| s.value).sum()
    }

    pub fn has(&self, name: &str) -> bool {
        self.samples.iter().any(|s| s.name == name)
    }

    /// Every label value of every sample.
    pub fn label_values(&self) -> HashSet<&str> {
        self.samples.iter().flat_map(|s| s.labels.values()).map(String::as_str).collect()
    }
}

/// Parses a scrape; panics with the line that is not valid.
#[track_caller]
pub fn parse(text: &str) -> Scrape {
    assert!(text.ends_with('\n'), "the last line ends with a newline");
    let mut scrape = Scrape::default();
    let mut seen = HashSet::new();
    for line in text.lines().filter(|line| !line.is_empty()) {
        if let Some(comment) = line.strip_prefix('#') {
            let mut words = comment.split_whitespace();
            if words.next() == Some("TYPE") {
                let (name, kind) = (words.next().expect("TYPE has a name"), words.next().expect("TYPE has a type"));
                assert!(["counter", "gauge", "histogram", "summary", "untyped"].contains(&kind), "{line}");
                let old = scrape.types.insert(name.to_owned(), kind.to_owned());
                assert!(old.is_none(), "a family is declared once: {line}");
            }
            continue;
        }
        let sample = parse_sample(line);
        assert!(family(&scrape, &sample.name).is_some(), "declared by # TYPE before its samples: {line}");
        assert!(seen.insert((sample.name.clone(), sample.labels.clone())), "a sample comes once: {line}");
        scrape.samples.push(sample);
    }
    scrape
}

/// The family a sample belongs to; histograms and summaries add a suffix.
fn family<'a>(scrape: &'a Scrape, name: &str) -> Option<&'a str> {
    let bases = ["", "_bucket", "_sum", "_count"].into_iter().filter_map(|suffix| name.strip_suffix(suffix));
    bases.filter_map(|base| scrape.types.get_key_value(base)).map(|(base, _)| base.as_str()).next()
}

fn parse_sample(line: &str) -> Sample {
    let name_len = line.find(['{', ' ']).unwrap_or_else(|| panic!("a sample has a value: {line}"));
    let (name, mut rest) = line.split_at(name_len);
    assert!(is_name(name), "a legal metric name: {line}");
    let mut labels = BTreeMap::new();
    if let Some(inner) = rest.strip_prefix('{') {
        rest = inner;
        while !rest.starts_with('}') {
            let (label, tail) = rest.split_once("=\"").unwrap_or_else(|| panic!("label=\"value\": {line}"));
            assert!(is_name(label) && !label.contains(':'), "a legal label name: {line}");
            let (value, tail) = quoted(tail, line);
            // Scrapers compare the text of the last bucket.
            let is_bound = label != "le" || value == "+Inf" || value.parse().is_ok_and(f64::is_finite);
            assert!(is_bound, "a bucket's bound is a number or +Inf: {line}");
            assert!(labels.insert(label.to_owned(), value).is_none(), "a label comes once: {line}");
            rest = tail.strip_prefix(',').unwrap_or(tail);
        }
        rest = &rest[1..];
    }
    let value = rest.split_whitespace().next().unwrap_or_else(|| panic!("a sample has a value: {line}"));
    let value = match value {
        "+Inf" => f64::INFINITY,
        "-Inf" => f64::NEG_INFINITY,
        "NaN" => f64::NAN,
        number => number.parse().unwrap_or_else(|_| panic!("a number: {line}")),
    };
    Sample { name: name.to_owned(), labels, value }
}

/// Reads up to the closing quote, undoing `\\`, `\"` and `\n`; returns the rest after the quote.
fn quoted<'a>(text: &'a str, line: &str) -> (String, &'a str) {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (value, &text[at + 1..]),
            '\\' => match chars.next() {
                Some((_, 'n')) => value.push('\n'),
                Some((_, escaped @ ('\\' | '"'))) => value.push(escaped),
                _ => panic!("a legal escape: {line}"),
            },
            c => value.push(c),
        }
    }
    panic!("a closing quote: {line}");
}

fn is_name(text: &str) -> bool {
    let mut bytes = text.bytes();
    bytes.next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_' || b == b':')
        && bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b':')
}
