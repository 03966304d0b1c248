//! Prometheus families, built when a scrape asks (a `prometheus` Collector over the cores' cells).
//!
//! Series per core carry the label `shard`; label values are route and code names from fixed tables, never anything a client
//! wrote.

use std::sync::Arc;

use prometheus::{
    Encoder, TextEncoder,
    core::{Collector, Desc},
    proto,
};

use super::{
    Cell, OUTCOMES_MAX, ROUTES_MAX, ShardMetrics, SizesSnapshot,
    histogram::{BOUNDS_US, COARSE_BOUNDS_US, Histogram, HistogramSnapshot},
};

/// A number that was asked for over the mesh at scrape time: name, help, labels, value.
#[derive(Clone, Debug)]
pub struct Sample {
    pub name: &'static str,
    pub help: &'static str,
    pub kind: &'static str,
    pub labels: Vec<(&'static str, String)>,
    pub value: f64,
}

/// One scrape: the cores' blocks and the names of the matrix's rows and columns.
#[derive(Debug)]
pub struct Scrape {
    pub shards: Vec<Arc<ShardMetrics>>,
    pub routes: &'static [&'static str],
    /// Codes as label values, in the order of the matrix's columns.
    pub outcomes: Vec<String>,
    /// Kinds of failed TLS handshakes, in the order of their counters.
    pub tls_failures: &'static [&'static str],
    pub samples: Vec<Sample>,
    /// By core: records that went to the broker together.
    pub batches: Vec<(usize, SizesSnapshot)>,
}

impl Scrape {
    /// The Prometheus text format, version 0.0.4.
    pub fn text(self) -> Result<Vec<u8>, prometheus::Error> {
        let registry = prometheus::Registry::new();
        registry.register(Box::new(self))?;
        let mut out = Vec::new();
        TextEncoder::new().encode(&registry.gather(), &mut out)?;
        Ok(out)
    }
}

fn label(name: &str, value: &str) -> proto::LabelPair {
    let mut pair = proto::LabelPair::default();
    pair.set_name(name.to_owned());
    pair.set_value(value.to_owned());
    pair
}

fn metric(kind: &str, value: f64, labels: Vec<proto::LabelPair>) -> proto::Metric {
    let mut metric = proto::Metric::default();
    if kind == "counter" {
        let mut counter = proto::Counter::default();
        counter.set_value(value);
        metric.set_counter(counter);
    } else {
        let mut gauge = proto::Gauge::default();
        gauge.set_value(value);
        metric.set_gauge(gauge);
    }
    metric.set_label(labels);
    metric
}

fn family(name: &str, help: &str, kind: &str) -> proto::MetricFamily {
    let mut family = proto::MetricFamily::default();
    family.set_name(name.to_owned());
    family.set_help(help.trim().to_owned());
    family.set_field_type(match kind {
        "counter" => proto::MetricType::COUNTER,
        "histogram" => proto::MetricType::HISTOGRAM,
        _ => proto::MetricType::GAUGE,
    });
    family
}

/// A histogram of durations, in seconds.
fn durations(snapshot: &HistogramSnapshot, bounds_us: &[u64], labels: Vec<proto::LabelPair>) -> proto::Metric {
    let rows = snapshot.cumulative(bounds_us).into_iter().map(|(bound_us, count)| (float(bound_us) / 1e6, count));
    distribution(rows, snapshot.count(), float(snapshot.sum_ns) / 1e9, labels)
}

/// A histogram: bounds with how many are at most so large, how many there are, and their sum.
fn distribution(
    rows: impl Iterator<Item = (f64, u64)>,
    count: u64,
    sum: f64,
    labels: Vec<proto::LabelPair>,
) -> proto::Metric {
    let mut histogram = proto::Histogram::default();
    // The encoder adds the bucket `+Inf` itself, from the count.
    let buckets = rows.map(|(bound, count)| {
        let mut bucket = proto::Bucket::default();
        bucket.set_upper_bound(bound);
        bucket.set_cumulative_count(count);
        bucket
    });
    histogram.set_bucket(buckets.collect());
    histogram.set_sample_count(count);
    histogram.set_sample_sum(sum);
    let mut metric = proto::Metric::default();
    metric.set_histogram(histogram);
    metric.set_label(labels);
    metric
}

#[allow(clippy::cast_precision_loss)] // Prometheus values are floats.
fn float(value: u64) -> f64 {
    value as f64
}

impl Scrape {
    fn cells(&self) -> Vec<proto::MetricFamily> {
        let mut families: Vec<proto::MetricFamily> = Vec::new();
        for (shard, metrics) in self.shards.iter().enumerate() {
            let mut list = metrics.cells.list();
            list.push(Cell {
                kind: "counter",
                name: "kateway_shard_stalls_total",
                help: "Times the core was found stalled.",
                label: None,
                value: metrics.stalls.get(),
            });
            for cell in list {
                let at = families.iter().position(|f| f.name() == cell.name).unwrap_or_else(|| {
                    families.push(family(cell.name, cell.help, cell.kind));
                    families.len() - 1
                });
                let mut labels: Vec<_> = cell.label.iter().map(|(name, value)| label(name, value)).collect();
                labels.push(label("shard", &shard.to_string()));
                families[at].mut_metric().push(metric(cell.kind, float(cell.value), labels));
            }
        }
        families
    }

    fn requests(&self) -> proto::MetricFamily {
        let mut family = family("kateway_requests_total", "Requests answered, by route and code.", "counter");
        for (route, name) in self.routes.iter().enumerate().take(ROUTES_MAX) {
            for (outcome, code) in self.outcomes.iter().enumerate().take(OUTCOMES_MAX) {
                let total: u64 = self.shards.iter().map(|s| s.requests(route, outcome)).sum();
                if total > 0 {
                    let labels = vec![label("code", code), label("route", name)];
                    family.mut_metric().push(metric("counter", float(total), labels));
                }
            }
        }
        family
    }

    fn tls_failures(&self) -> proto::MetricFamily {
        let help = "TLS handshakes that failed, by kind.";
        let mut family = family("kateway_tls_handshake_failures_total", help, "counter");
        for (n, kind) in self.tls_failures.iter().enumerate() {
            let counters = self.shards.iter().filter_map(|shard| shard.tls_failures.get(n));
            let total: u64 = counters.map(super::Counter::get).sum();
            family.mut_metric().push(metric("counter", float(total), vec![label("kind", kind)]));
        }
        family
    }

    /// One histogram over all cores.
    fn histogram(&self, name: &str, help: &str, pick: impl Fn(&ShardMetrics) -> &Histogram) -> proto::MetricFamily {
        let mut snapshot = HistogramSnapshot::default();
        for shard in &self.shards {
            pick(shard).add_to(&mut snapshot);
        }
        let mut family = family(name, help, "histogram");
        family.mut_metric().push(durations(&snapshot, &BOUNDS_US, Vec::new()));
        family
    }

    fn stages(&self) -> proto::MetricFamily {
        let mut family = family("kateway_pub_stage_seconds", "Stages of a publish that was handed over.", "histogram");
        for (shard, metrics) in self.shards.iter().enumerate() {
            for (stage, histogram) in metrics.pub_stages.list() {
                let labels = vec![label("shard", &shard.to_string()), label("stage", stage)];
                let snapshot = HistogramSnapshot::of(histogram);
                family.mut_metric().push(durations(&snapshot, &COARSE_BOUNDS_US, labels));
            }
        }
        family
    }

    fn loop_delays(&self) -> proto::MetricFamily {
        let mut family =
            family("kateway_shard_loop_delay_seconds", "How late a core's tick ran after its kick.", "histogram");
        for (shard, metrics) in self.shards.iter().enumerate() {
            let labels = vec![label("shard", &shard.to_string())];
            let snapshot = HistogramSnapshot::of(&metrics.loop_delay);
            family.mut_metric().push(durations(&snapshot, &COARSE_BOUNDS_US, labels));
        }
        family
    }

    fn batches(&self) -> proto::MetricFamily {
        let help = "Records per batch sent to a broker, as its reports came back.";
        let mut family = family("kateway_producer_batch_records", help, "histogram");
        for (shard, sizes) in self.batches.iter().filter(|(_, sizes)| sizes.count() > 0) {
            let rows = sizes.cumulative().map(|(bound, count)| (float(bound), count));
            let labels = vec![label("shard", &shard.to_string())];
            family.mut_metric().push(distribution(rows, sizes.count(), float(sizes.sum), labels));
        }
        family
    }

    fn sampled(&self) -> Vec<proto::MetricFamily> {
        let mut families: Vec<proto::MetricFamily> = Vec::new();
        for sample in &self.samples {
            let at = families.iter().position(|f| f.name() == sample.name).unwrap_or_else(|| {
                families.push(family(sample.name, sample.help, sample.kind));
                families.len() - 1
            });
            let labels = sample.labels.iter().map(|(name, value)| label(name, value)).collect();
            families[at].mut_metric().push(metric(sample.kind, sample.value, labels));
        }
        families
    }
}

impl Collector for Scrape {
    fn desc(&self) -> Vec<&Desc> {
        // Families are made at scrape time; an empty description list registers without a name check.
        Vec::new()
    }

    fn collect(&self) -> Vec<proto::MetricFamily> {
        let mut families = self.cells();
        families.push(self.requests());
        families.push(self.tls_failures());
        families.push(self.histogram(
            "kateway_pub_duration_seconds",
            "Publish, first byte of the head until the answer is made.",
            |s| &s.pub_duration,
        ));
        families
            .push(self.histogram("kateway_sub_duration_seconds", "Subscribe, waiting included.", |s| &s.sub_duration));
        families.push(self.stages());
        families.push(self.loop_delays());
        families.push(self.batches());
        families.extend(self.sampled());
        families.retain(|f| !f.get_metric().is_empty());
        families
    }
}
