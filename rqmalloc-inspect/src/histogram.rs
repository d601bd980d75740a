//! Sizes, counted by powers of two.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// The first bucket is of sizes up to this power of two: a page, the least that a request holds.
const FIRST_POWER: u32 = 12;
/// Buckets of a histogram: the last one is of 128 TiB and more.
pub const BUCKET_COUNT: usize = 36;

/// How many sizes were at most each power of two, and more than the one before.
pub struct Histogram([AtomicU64; BUCKET_COUNT]);

/// The counts of a histogram, or of several, at one time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Buckets([u64; BUCKET_COUNT]);

/// Returns the bucket of a size.
fn bucket_of(bytes: usize) -> usize {
    let power = usize::BITS - bytes.saturating_sub(1).leading_zeros();
    (power.saturating_sub(FIRST_POWER) as usize).min(BUCKET_COUNT - 1)
}

/// Returns the largest size of a bucket.
fn limit_of(bucket: usize) -> usize {
    1 << (FIRST_POWER as usize + bucket)
}

impl Default for Histogram {
    fn default() -> Self {
        Self(std::array::from_fn(|_| AtomicU64::new(0)))
    }
}

impl Histogram {
    /// Counts a size.
    pub fn add(&self, bytes: usize) {
        self.0[bucket_of(bytes)].fetch_add(1, Relaxed);
    }

    /// Adds what was counted to `buckets`.
    pub fn add_to(&self, buckets: &mut Buckets) {
        for (count, sum) in self.0.iter().zip(&mut buckets.0) {
            *sum += count.load(Relaxed);
        }
    }
}

impl Buckets {
    /// Nothing was counted.
    pub const EMPTY: Self = Self([0; BUCKET_COUNT]);

    /// Returns how many sizes were counted.
    pub fn count(&self) -> u64 {
        self.0.iter().sum()
    }

    /// Returns how many were at most this size, a power of two.
    pub fn count_up_to(&self, bytes: usize) -> u64 {
        self.0[..=bucket_of(bytes)].iter().sum()
    }

    /// Returns a power of two that this many hundredths of the sizes are at most; 0 if there are
    /// none.
    pub fn percentile(&self, hundredths: u64) -> usize {
        let wanted = (self.count() * hundredths).div_ceil(100);
        if wanted == 0 {
            return 0;
        }
        let mut seen = 0;
        let is_enough = |count: &u64| {
            seen += count;
            seen >= wanted
        };
        limit_of(self.0.iter().position(is_enough).unwrap_or(BUCKET_COUNT - 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(sizes: impl IntoIterator<Item = usize>) -> Buckets {
        let histogram = Histogram::default();
        sizes.into_iter().for_each(|bytes| histogram.add(bytes));
        let mut buckets = Buckets::EMPTY;
        histogram.add_to(&mut buckets);
        buckets
    }

    #[test]
    fn a_size_is_at_most_its_buckets_limit() {
        for bytes in [0, 1, 4096, 4097, 8192, 8193, 1 << 20, (1 << 20) + 1] {
            let bucket = bucket_of(bytes);
            assert!(bytes <= limit_of(bucket), "{bytes}");
            assert!(bucket == 0 || bytes > limit_of(bucket - 1), "{bytes}");
        }
        assert_eq!(bucket_of(usize::MAX), BUCKET_COUNT - 1);
    }

    #[test]
    fn percentiles_are_those_of_the_sizes() {
        assert_eq!(Buckets::EMPTY.percentile(50), 0);
        let sizes = counted((1..=100).map(|number| if number <= 98 { 16_000 } else { 1 << 20 }));
        assert_eq!((sizes.percentile(50), sizes.percentile(98)), (16 << 10, 16 << 10));
        assert_eq!((sizes.percentile(99), sizes.percentile(100)), (1 << 20, 1 << 20));
        assert_eq!((sizes.count_up_to(16 << 10), sizes.count_up_to(8 << 10)), (98, 0));
        assert_eq!(counted([5]).percentile(1), 4096);
    }
}
