//! A latency histogram with fixed bounds, one writer, any reader.

use std::time::Duration;

use super::Counter;

/// Upper bounds in microseconds; one more bucket is unbounded.
pub const BOUNDS_US: [u64; 32] = [
    5, 10, 20, 30, 50, 100, 200, 300, 500, 750, 1_000, 1_500, 2_000, 3_000, 5_000, 7_500, 10_000, 15_000, 20_000,
    30_000, 50_000, 75_000, 100_000, 150_000, 200_000, 300_000, 500_000, 1_000_000, 2_000_000, 5_000_000, 10_000_000,
    31_000_000,
];
/// Those of the bounds that are shown where every core has series of its own.
pub const COARSE_BOUNDS_US: [u64; 16] =
    [5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 500_000, 5_000_000];

/// Per core.
#[derive(Debug)]
pub struct Histogram {
    buckets: [Counter; BOUNDS_US.len() + 1],
    /// In ns: most stages of a request take less than a few us, and their sums are compared with the whole.
    sum_ns: Counter,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: std::array::from_fn(|_| Counter::default()), sum_ns: Counter::default() }
    }
}

/// Upper bounds of [`Sizes`]: powers of two up to 2^13; one more class is unbounded.
const SIZES: usize = 14;

/// Per core. How many things came together, by powers of two.
#[derive(Debug, Default)]
pub struct Sizes {
    classes: [Counter; SIZES + 1],
    sum: Counter,
}

/// [`Sizes`] at one moment.
#[derive(Clone, Debug, Default)]
pub struct SizesSnapshot {
    classes: [u64; SIZES + 1],
    pub sum: u64,
}

impl Sizes {
    pub fn record(&self, size: usize) {
        if size == 0 {
            return;
        }
        let class = size.next_power_of_two().trailing_zeros() as usize;
        self.classes[class.min(SIZES)].add(1);
        self.sum.add(size as u64);
    }

    pub fn snapshot(&self) -> SizesSnapshot {
        SizesSnapshot { classes: std::array::from_fn(|i| self.classes[i].get()), sum: self.sum.get() }
    }
}

impl SizesSnapshot {
    pub fn count(&self) -> u64 {
        self.classes.iter().sum()
    }

    #[allow(clippy::cast_precision_loss)] // A mean needs no more than 52 bits.
    pub fn mean(&self) -> Option<f64> {
        (self.count() > 0).then(|| self.sum as f64 / self.count() as f64)
    }

    /// Each bound, and how many were at most so large.
    pub fn cumulative(&self) -> impl Iterator<Item = (u64, u64)> {
        self.classes[..SIZES]
            .iter()
            .scan(0, |total, count| {
                *total += count;
                Some(*total)
            })
            .enumerate()
            .map(|(class, total)| (1 << class, total))
    }
}

/// A histogram at one moment; adds up over cores.
#[derive(Clone, Debug)]
pub struct HistogramSnapshot {
    pub buckets: [u64; BOUNDS_US.len() + 1],
    pub sum_ns: u64,
}

impl Default for HistogramSnapshot {
    fn default() -> Self {
        Self { buckets: [0; BOUNDS_US.len() + 1], sum_ns: 0 }
    }
}

impl Histogram {
    pub fn record(&self, duration: Duration) {
        let ns = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let us = ns.div_ceil(1_000);
        let bucket = BOUNDS_US.partition_point(|bound| *bound < us);
        self.buckets[bucket].add(1);
        self.sum_ns.add(ns);
    }

    pub fn add_to(&self, snapshot: &mut HistogramSnapshot) {
        for (total, bucket) in snapshot.buckets.iter_mut().zip(&self.buckets) {
            *total += bucket.get();
        }
        snapshot.sum_ns += self.sum_ns.get();
    }
}

impl HistogramSnapshot {
    /// One core's.
    pub fn of(histogram: &Histogram) -> Self {
        let mut snapshot = Self::default();
        histogram.add_to(&mut snapshot);
        snapshot
    }

    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// How many took at most each of `bounds_us`, which are some of [`BOUNDS_US`] in order.
    pub fn cumulative(&self, bounds_us: &[u64]) -> Vec<(u64, u64)> {
        let mut rows = Vec::with_capacity(bounds_us.len());
        let (mut total, mut wanted) = (0, bounds_us.iter().peekable());
        for (bound, count) in BOUNDS_US.iter().zip(&self.buckets) {
            total += count;
            if wanted.next_if_eq(&bound).is_some() {
                rows.push((*bound, total));
            }
        }
        debug_assert_eq!(rows.len(), bounds_us.len(), "only bounds there are can be shown");
        rows
    }

    /// The bound under which this share of the values lies; `None` when there are no values, or it is over the last bound.
    pub fn quantile_us(&self, share: f64) -> Option<u64> {
        let count = self.count();
        let all = self.cumulative(&BOUNDS_US);
        #[allow(clippy::cast_precision_loss)] // A share needs no more than 52 bits.
        let reaches = |total: u64| count > 0 && total as f64 >= share * count as f64;
        all.into_iter().find(|(_, total)| reaches(*total)).map(|(bound, _)| bound)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_belongs_to_its_bucket_and_sums_are_exact() {
        let histogram = Histogram::default();
        for ns in [1, 5_000, 5_001, 10_000, 40_000_000_000] {
            histogram.record(Duration::from_nanos(ns));
        }
        let snapshot = HistogramSnapshot::of(&histogram);
        assert_eq!((snapshot.count(), snapshot.sum_ns), (5, 40_000_020_002));
        assert_eq!(snapshot.cumulative(&BOUNDS_US)[..3], [(5, 2), (10, 4), (20, 4)]);
        let coarse = snapshot.cumulative(&COARSE_BOUNDS_US);
        assert_eq!((coarse[0], coarse[15]), ((5, 2), (5_000_000, 4)));
        assert_eq!([0.4, 0.8, 1.0].map(|share| snapshot.quantile_us(share)), [Some(5), Some(10), None]);
        assert_eq!(HistogramSnapshot::default().quantile_us(0.5), None);
    }

    #[test]
    fn sizes_fall_into_powers_of_two() {
        let sizes = Sizes::default();
        for size in [0, 1, 2, 3, 4, 5, 10_000] {
            sizes.record(size);
        }
        let snapshot = sizes.snapshot();
        assert_eq!((snapshot.count(), snapshot.sum), (6, 10_015));
        let rows: Vec<_> = snapshot.cumulative().collect();
        assert_eq!(rows[..4], [(1, 1), (2, 2), (4, 4), (8, 5)]);
        assert_eq!(rows.last(), Some(&(8_192, 5)));
    }
}
