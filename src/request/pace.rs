//! When a sweep, or reclaiming at a bound, is worth its walk.
//!
//! All fields are written and read by the threads that allocate, sweep or reclaim in the request;
//! two at once only sweep too often or too rarely.
//!
//! - **W2** A sweep costs a look at every block of the regions; it is not tried again until the
//!   request has cut new blocks from a thirty-second part of them, or from more if sweeps did not
//!   pay off.
//! - **W3** Reclaiming at a bound that got nothing back is not tried again until enough was freed
//!   for it to be worth it.

#![forbid(unsafe_code)]

use crate::base::sync::{AtomicU32, AtomicUsize, Ordering};

/// Least bytes of regions that are worth the walk.
const MIN_REGION_BYTES: usize = 128 * 1024;
/// The part of the regions that must be in bins.
const FREE_DIVISOR: usize = 6;
/// The part of the regions that the ranges taken since the last sweep must come to.
const UNSWEPT_DIVISOR: usize = 32;
/// The part of what was free that a sweep must get back: otherwise it was in vain.
const GAIN_DIVISOR: usize = 4;
/// Most times that the interval between sweeps is doubled while they are in vain.
const MAX_SWEEP_DOUBLINGS: u32 = 5;

/// The part of the regions that must be freed for reclaiming at a bound to be worth it again: the
/// first, and more each time it was in vain, up to the second.
const FREED_DIVISORS: [usize; 2] = [1024, 32];

/// Doublings from the shortest interval to the longest.
const MAX_RECLAIM_DOUBLINGS: u32 = (FREED_DIVISORS[0] / FREED_DIVISORS[1]).ilog2();

/// What sweeps found, and what has happened since.
pub struct Pace {
    /// Bytes of the ranges taken since the last sweep.
    unswept_bytes: AtomicUsize,
    sweeps_in_vain: AtomicU32,
    /// Bytes of free blocks that the last reclaiming left, less those used since.
    left_by_reclaim: AtomicUsize,
    reclaims_in_vain: AtomicU32,
}

/// Returns how many attempts in a row were in vain, after one more.
fn count_in_vain(before: u32, is_in_vain: bool, most: u32) -> u32 {
    if is_in_vain { (before + 1).min(most) } else { 0 }
}

impl Pace {
    /// Creates the pace of no request.
    pub const fn new() -> Self {
        Self {
            unswept_bytes: AtomicUsize::new(0),
            sweeps_in_vain: AtomicU32::new(0),
            left_by_reclaim: AtomicUsize::new(0),
            reclaims_in_vain: AtomicU32::new(0),
        }
    }

    /// Opens a new request that no other thread knows yet and that has nothing to sweep.
    #[inline]
    pub fn open(&self) {
        self.unswept_bytes.store(0, Ordering::Relaxed);
        self.sweeps_in_vain.store(0, Ordering::Relaxed);
        self.left_by_reclaim.store(0, Ordering::Relaxed);
        self.reclaims_in_vain.store(0, Ordering::Relaxed);
    }

    /// Notes that a lane now cuts from a range of `bytes`.
    pub fn note_range(&self, bytes: usize) {
        self.unswept_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Whether a request with `region_bytes` of regions should be swept before it grows (W2).
    /// `free_bytes` returns what a sweep could get back.
    pub fn is_sweep_due(&self, region_bytes: usize, free_bytes: impl FnOnce() -> usize) -> bool {
        let in_vain = self.sweeps_in_vain.load(Ordering::Relaxed);
        region_bytes >= MIN_REGION_BYTES
            && self.unswept_bytes.load(Ordering::Relaxed)
                >= (region_bytes / UNSWEPT_DIVISOR) << in_vain
            && free_bytes() >= region_bytes / FREE_DIVISOR
    }

    /// Notes a sweep: `gained_bytes` went back or were joined, of `free_bytes` that were free.
    pub fn note_sweep(&self, gained_bytes: usize, free_bytes: usize) {
        let is_in_vain = gained_bytes < free_bytes / GAIN_DIVISOR;
        let before = self.sweeps_in_vain.load(Ordering::Relaxed);
        self.unswept_bytes.store(0, Ordering::Relaxed);
        let in_vain = count_in_vain(before, is_in_vain, MAX_SWEEP_DOUBLINGS);
        self.sweeps_in_vain.store(in_vain, Ordering::Relaxed);
    }

    /// Whether reclaiming is worth it before a request with `region_bytes` of regions is marked or
    /// refused memory (W3): `free_bytes` are free, and fewer than `worth_bytes` are of no use.
    pub fn is_reclaim_due(
        &self,
        region_bytes: usize,
        free_bytes: usize,
        worth_bytes: usize,
    ) -> bool {
        let left_bytes = self.left_by_reclaim.load(Ordering::Relaxed).min(free_bytes);
        self.left_by_reclaim.store(left_bytes, Ordering::Relaxed);
        let doubled = (region_bytes / FREED_DIVISORS[0])
            .saturating_mul(1 << self.reclaims_in_vain.load(Ordering::Relaxed));
        let wanted_bytes = doubled.min(region_bytes / FREED_DIVISORS[1]).max(worth_bytes);
        free_bytes >= worth_bytes && free_bytes - left_bytes >= wanted_bytes
    }

    /// Notes a reclaiming: `went_bytes` went back, and `left_bytes` of free blocks stayed.
    pub fn note_reclaim(&self, went_bytes: usize, left_bytes: usize) {
        self.left_by_reclaim.store(left_bytes, Ordering::Relaxed);
        let before = self.reclaims_in_vain.load(Ordering::Relaxed);
        let in_vain = count_in_vain(before, went_bytes == 0, MAX_RECLAIM_DOUBLINGS);
        self.reclaims_in_vain.store(in_vain, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REGION_BYTES: usize = 32 * 1024 * 1024;

    /// Returns the bytes of ranges after which a sweep is due.
    fn interval(pace: &Pace) -> usize {
        let first =
            (0..).map(|doublings| (REGION_BYTES / UNSWEPT_DIVISOR) << doublings).find(|&bytes| {
                pace.unswept_bytes.store(bytes, Ordering::Relaxed);
                pace.is_sweep_due(REGION_BYTES, || REGION_BYTES)
            });
        pace.unswept_bytes.store(0, Ordering::Relaxed);
        first.unwrap()
    }

    #[test]
    fn sweeps_in_vain_are_made_ever_more_rarely() {
        let pace = Pace::new();
        let shortest = interval(&pace);
        for doublings in 1..=MAX_SWEEP_DOUBLINGS {
            pace.note_sweep(0, REGION_BYTES);
            assert_eq!(interval(&pace), shortest << doublings);
        }
        pace.note_sweep(0, REGION_BYTES);
        assert_eq!(interval(&pace), shortest << MAX_SWEEP_DOUBLINGS, "within bounds");
        pace.note_sweep(REGION_BYTES / GAIN_DIVISOR, REGION_BYTES);
        assert_eq!(interval(&pace), shortest, "one that paid off starts over");
    }

    #[test]
    fn a_small_request_or_one_whose_bins_are_empty_is_not_swept() {
        let pace = Pace::new();
        pace.note_range(REGION_BYTES);
        assert!(!pace.is_sweep_due(MIN_REGION_BYTES - 1, || unreachable!("too small to ask")));
        assert!(!pace.is_sweep_due(REGION_BYTES, || REGION_BYTES / FREE_DIVISOR - 1));
    }

    #[test]
    fn reclaiming_in_vain_waits_until_enough_was_freed() {
        let pace = Pace::new();
        let (free, first) = (REGION_BYTES / 2, REGION_BYTES / FREED_DIVISORS[0]);
        assert!(pace.is_reclaim_due(REGION_BYTES, free, 1));
        pace.note_reclaim(0, free);
        assert!(!pace.is_reclaim_due(REGION_BYTES, free + 2 * first - 1, 1));
        assert!(pace.is_reclaim_due(REGION_BYTES, free + 2 * first, 1));
        (0..2 * MAX_RECLAIM_DOUBLINGS).for_each(|_| pace.note_reclaim(0, free));
        let longest = REGION_BYTES / FREED_DIVISORS[1];
        assert!(!pace.is_reclaim_due(REGION_BYTES, free + longest - 1, 1));
        assert!(pace.is_reclaim_due(REGION_BYTES, free + longest, 1));
    }
}
