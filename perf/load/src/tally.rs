//! What came of the requests of one thread: latencies, answers, errors.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;

use crate::{answer::Answer, stamp};

/// Significant digits of every latency.
const DIGITS: u8 = 3;
/// Latencies above are counted as this.
const LATENCY_MAX: Duration = Duration::from_secs(3_600);

/// When a request was to go, and when it went.
#[derive(Clone, Copy, Debug)]
pub struct Attempt {
    pub intended: Instant,
    pub sent: Instant,
    pub bytes: u64,
}

/// See the module text. Times are in nanoseconds.
#[derive(Clone, Debug)]
pub struct Tally {
    /// From the intended time to the last byte of the answer.
    pub latency: Histogram<u64>,
    /// From the actual sending.
    pub service: Histogram<u64>,
    /// How much later than intended a request went although a connection was free.
    pub late: Histogram<u64>,
    /// From the sending a message's stamp names to the last byte of the answer that brought it.
    pub age: Histogram<u64>,
    pub answers: BTreeMap<u16, u64>,
    /// By class, or by the code of a problem document.
    pub errors: BTreeMap<String, u64>,
    pub messages: u64,
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub line_max: u64,
    pub cpu: Duration,
}

// === impl Tally ===

impl Default for Tally {
    fn default() -> Self {
        let histogram =
            || Histogram::new_with_bounds(1, nanos(LATENCY_MAX), DIGITS).expect("the bounds are those the crate takes");
        Self {
            latency: histogram(),
            service: histogram(),
            late: histogram(),
            age: histogram(),
            answers: BTreeMap::new(),
            errors: BTreeMap::new(),
            messages: 0,
            bytes_in: 0,
            bytes_out: 0,
            line_max: 0,
            cpu: Duration::ZERO,
        }
    }
}

impl Tally {
    pub fn answer(&mut self, request: &Attempt, answer: &Answer, now: Instant) {
        self.latency.saturating_record(nanos(now.saturating_duration_since(request.intended)));
        self.service.saturating_record(nanos(now.saturating_duration_since(request.sent)));
        *self.answers.entry(answer.status).or_default() += 1;
        self.messages += answer.messages;
        self.bytes_in += answer.bytes;
        self.bytes_out += request.bytes;
        if !answer.stamps.is_empty() {
            self.ages(&answer.stamps, stamp::now());
        }
        // Of a batch some messages were refused.
        if answer.status == 207 {
            self.error("mixed", 1);
        }
        if answer.status >= 400 {
            let class = answer.code.map_or_else(|| format!("status {}", answer.status), |code| format!("code {code}"));
            self.error(&class, 1);
        }
    }

    /// Messages sent at `stamps` were read at `now`, in nanoseconds of the Unix epoch.
    pub fn ages(&mut self, stamps: &[u64], now: u64) {
        for stamp in stamps {
            self.age.saturating_record(now.saturating_sub(*stamp).max(1));
        }
    }

    pub fn error(&mut self, class: &str, count: u64) {
        if count > 0 {
            *self.errors.entry(class.to_owned()).or_default() += count;
        }
    }

    pub fn late(&mut self, by: Duration) {
        self.late.saturating_record(nanos(by));
    }

    pub fn add(&mut self, other: &Self) {
        let pairs = [
            (&mut self.latency, &other.latency),
            (&mut self.service, &other.service),
            (&mut self.late, &other.late),
            (&mut self.age, &other.age),
        ];
        for (mine, theirs) in pairs {
            mine.add(theirs).expect("all have the same bounds");
        }
        for (status, count) in &other.answers {
            *self.answers.entry(*status).or_default() += count;
        }
        for (class, count) in &other.errors {
            self.error(class, *count);
        }
        self.messages += other.messages;
        self.bytes_in += other.bytes_in;
        self.bytes_out += other.bytes_out;
        self.line_max = self.line_max.max(other.line_max);
        self.cpu += other.cpu;
    }

    pub fn requests(&self) -> u64 {
        self.answers.values().sum()
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latency_counts_from_the_intended_time() {
        let mut tally = Tally::default();
        let intended = Instant::now();
        let sent = intended + Duration::from_millis(40);
        let request = Attempt { intended, sent, bytes: 10 };
        let answer =
            Answer { status: 503, code: Some(50301), messages: 0, bytes: 5, closes: false, stamps: Vec::new() };
        tally.answer(&request, &answer, sent + Duration::from_millis(2));
        let ms = |histogram: &Histogram<u64>| histogram.max() / 1_000_000;
        assert_eq!((ms(&tally.latency), ms(&tally.service)), (42, 2));
        let mut sum = tally.clone();
        sum.add(&tally);
        assert_eq!((sum.requests(), sum.errors["code 50301"], sum.bytes_in), (2, 2, 10));
    }

    #[test]
    fn a_message_is_as_old_as_its_stamp_says() {
        let mut tally = Tally::default();
        tally.ages(&[1_000_000_000, 1_001_000_000, 1_009_000_000], 1_005_000_000);
        let mut sum = tally.clone();
        sum.add(&tally);
        let ms = |quantile| sum.age.value_at_quantile(quantile) / 1_000_000;
        assert_eq!((sum.age.len(), ms(1.0), ms(0.5)), (6, 5, 4));
        assert_eq!(sum.age.min(), 1, "a clock that was set back makes none negative");
    }
}
