//! Counts of durations in buckets that grow with them: quantiles within 1/16, in constant memory.

use super::report::Quantiles;

/// Buckets of one power of two.
const FINE: u64 = 16;
/// 18 minutes and all above are one bucket.
const BUCKETS: usize = 37 * 16;

/// Durations in nanoseconds.
#[derive(Debug, Clone)]
pub(crate) struct Histogram {
    counts: Vec<u64>,
    total: u64,
    most: u64,
}

impl Histogram {
    pub(crate) fn new() -> Self {
        Self {
            counts: vec![0; BUCKETS],
            total: 0,
            most: 0,
        }
    }

    pub(crate) fn add(&mut self, value: u64) {
        self.counts[bucket(value)] += 1;
        self.total += 1;
        self.most = self.most.max(value);
    }

    /// Forgets all.
    pub(crate) fn clear(&mut self) {
        if self.total > 0 {
            self.counts.fill(0);
            (self.total, self.most) = (0, 0);
        }
    }

    /// The value that a share `q` of all is not above; its bucket's upper end, and never above the largest.
    pub(crate) fn quantile(&self, q: f64) -> u64 {
        let wanted = (self.total as f64 * q).ceil() as u64;
        let mut seen = 0;
        for (index, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= wanted && seen > 0 {
                return upper(index).min(self.most);
            }
        }
        self.most
    }

    pub(crate) fn quantiles(&self) -> Quantiles {
        let us = |ns: u64| ns as f64 / 1000.0;
        Quantiles {
            p50_us: us(self.quantile(0.5)),
            p99_us: us(self.quantile(0.99)),
            max_us: us(self.most),
        }
    }
}

fn bucket(value: u64) -> usize {
    if value < FINE {
        return value as usize;
    }
    let power = u64::from(63 - value.leading_zeros());
    let within = (value >> (power - 4)) & (FINE - 1);
    (((power - 3) * FINE + within) as usize).min(BUCKETS - 1)
}

/// The largest value of bucket `index`.
fn upper(index: usize) -> u64 {
    let index = index as u64;
    if index < FINE {
        return index;
    }
    let (power, within) = (index / FINE + 3, index % FINE);
    (((FINE + within + 1) as u128) << (power - 4))
        .saturating_sub(1)
        .min(u64::MAX.into()) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_in_its_bucket_and_a_quantile_is_within_a_sixteenth() {
        for value in (0..5000).chain([1 << 20, (1 << 33) + 12345]) {
            let index = bucket(value);
            assert!(
                upper(index) >= value && (index == 0 || upper(index - 1) < value),
                "{value}"
            );
        }
        let mut histogram = Histogram::new();
        (1..=10_000).for_each(|value| histogram.add(value * 1000));
        for (q, exact) in [(0.5, 5e6), (0.99, 9.9e6), (1.0, 1e7)] {
            let got = histogram.quantile(q) as f64;
            assert!(got >= exact && got <= exact * 17.0 / 16.0, "{q}: {got}");
        }
        histogram.clear();
        assert_eq!(histogram.quantile(0.99), 0);
    }
}
