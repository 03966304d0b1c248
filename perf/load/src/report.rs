//! The result of a run, for people and for machines, and what makes it doubtful.

use std::{collections::BTreeMap, fmt, time::Duration};

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::{plan::Plan, tally::Tally};

/// A thread that worked more than this share of the time may itself have been the limit.
const BUSY_MAX: f64 = 0.9;
/// Requests that went so much later than intended although a connection was free blur the figures.
const LATE_MAX: Duration = Duration::from_millis(1);
/// How far the rate reached may be from the rate asked for.
const RATE_TOLERANCE: f64 = 0.02;

/// Milliseconds.
#[derive(Clone, Debug, Serialize)]
pub struct Times {
    pub mean: f64,
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub p999: f64,
    pub max: f64,
    /// `(quantile, ms)`, for plots.
    pub percentiles: Vec<(f64, f64)>,
}

/// See the module text.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub plan: Plan,
    pub version: &'static str,
    /// Those that counted.
    pub seconds: f64,
    pub requests: u64,
    pub requests_per_s: f64,
    pub messages: u64,
    pub messages_per_s: f64,
    pub bytes_in: u64,
    pub bytes_out: u64,
    /// From the intended sending to the last byte of the answer.
    pub latency_ms: Times,
    /// From the actual sending.
    pub service_ms: Times,
    /// From the sending of a message to its reading, for those that carried a stamp.
    pub end_to_end_ms: Option<Times>,
    pub answers: BTreeMap<u16, u64>,
    pub errors: BTreeMap<String, u64>,
    /// The longest line of requests that were due and not sent (of one thread).
    pub line_max: u64,
    /// The share of its time a thread of the generator worked.
    pub generator_busy: f64,
    pub generator_cpu_us_per_request: f64,
    pub warnings: Vec<String>,
}

#[allow(clippy::cast_precision_loss)] // counts of a run
impl Report {
    pub fn new(plan: &Plan, tally: &Tally, seconds: f64) -> Self {
        let requests = tally.requests();
        let busy = tally.cpu.as_secs_f64() / seconds / plan.threads as f64;
        Self {
            plan: plan.clone(),
            version: env!("CARGO_PKG_VERSION"),
            seconds,
            requests,
            requests_per_s: requests as f64 / seconds,
            messages: tally.messages,
            messages_per_s: tally.messages as f64 / seconds,
            bytes_in: tally.bytes_in,
            bytes_out: tally.bytes_out,
            latency_ms: times(&tally.latency),
            service_ms: times(&tally.service),
            end_to_end_ms: (!tally.age.is_empty()).then(|| times(&tally.age)),
            answers: tally.answers.clone(),
            errors: tally.errors.clone(),
            line_max: tally.line_max,
            generator_busy: busy,
            generator_cpu_us_per_request: tally.cpu.as_secs_f64() * 1e6 / requests.max(1) as f64,
            warnings: warnings(plan, tally, busy, requests as f64 / seconds),
        }
    }

    pub fn has_errors(&self) -> bool {
        !self.errors.is_empty()
    }
}

fn warnings(plan: &Plan, tally: &Tally, busy: f64, rate: f64) -> Vec<String> {
    let mut found = Vec::new();
    if cfg!(debug_assertions) {
        found.push("a debug build of the generator: build it with --release".to_owned());
    }
    if busy > BUSY_MAX {
        found.push(format!(
            "the generator worked {:.0} % of the time and may be the limit: more --threads",
            busy * 100.0
        ));
    }
    let late = Duration::from_nanos(tally.late.value_at_quantile(0.5));
    if !tally.late.is_empty() && late > LATE_MAX {
        found.push(format!("half of the requests went {late:?} or more too late although a connection was free"));
    }
    if plan.rate > 0.0 && plan.messages == 0 && (rate / plan.rate - 1.0).abs() > RATE_TOLERANCE {
        found.push(format!("{rate:.0} requests a second were answered, {:.0} were asked for", plan.rate));
    }
    found
}

#[allow(clippy::cast_precision_loss)] // nanoseconds of a run
fn times(histogram: &Histogram<u64>) -> Times {
    let ms = |nanos: u64| nanos as f64 / 1e6;
    let at = |quantile: f64| ms(histogram.value_at_quantile(quantile));
    Times {
        mean: histogram.mean() / 1e6,
        p50: at(0.5),
        p90: at(0.9),
        p99: at(0.99),
        p999: at(0.999),
        max: ms(histogram.max()),
        percentiles: histogram.iter_quantiles(2).map(|q| (q.quantile(), ms(q.value_iterated_to()))).collect(),
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} requests in {:.1} s: {:.0}/s; {} messages: {:.0}/s; {} bytes in, {} out",
            self.requests,
            self.seconds,
            self.requests_per_s,
            self.messages,
            self.messages_per_s,
            self.bytes_in,
            self.bytes_out
        )?;
        let line = |f: &mut fmt::Formatter<'_>, what: &str, times: &Times| {
            let Times { mean, p50, p90, p99, p999, max, .. } = times;
            writeln!(
                f,
                "{what} ms  p50 {p50:.3}  p90 {p90:.3}  p99 {p99:.3}  p99.9 {p999:.3}  max {max:.3}  mean {mean:.3}"
            )
        };
        line(f, "latency", &self.latency_ms)?;
        if self.plan.rate > 0.0 {
            line(f, "service", &self.service_ms)?;
            writeln!(f, "longest line of due requests {}", self.line_max)?;
        }
        if let Some(end_to_end) = &self.end_to_end_ms {
            line(f, "end to end", end_to_end)?;
        }
        let listed = |pairs: Vec<String>| if pairs.is_empty() { "none".to_owned() } else { pairs.join("  ") };
        writeln!(f, "answers {}", listed(self.answers.iter().map(|(k, v)| format!("{k}: {v}")).collect()))?;
        writeln!(f, "errors  {}", listed(self.errors.iter().map(|(k, v)| format!("{k}: {v}")).collect()))?;
        let (busy, cpu) = (self.generator_busy * 100.0, self.generator_cpu_us_per_request);
        writeln!(f, "generator busy {busy:.0} %, {cpu:.2} us CPU a request")?;
        self.warnings.iter().try_for_each(|warning| writeln!(f, "WARNING: {warning}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Written;

    #[test]
    fn what_makes_a_run_doubtful_is_said() {
        let plan = Written { rate: Some(1_000.0), ..Written::default() }.resolve().expect("valid");
        let mut tally = Tally::default();
        let said = |tally: &Tally, busy, rate| warnings(&plan, tally, busy, rate).join("\n");
        assert!(!said(&tally, 0.5, 995.0).contains("generator worked"));
        assert!(!said(&tally, 0.5, 995.0).contains("asked for"));
        assert!(said(&tally, 0.95, 995.0).contains("95 %"));
        assert!(said(&tally, 0.5, 970.0).contains("970 requests a second"));
        tally.late(Duration::from_millis(3));
        assert!(said(&tally, 0.5, 995.0).contains("too late"));
    }
}
