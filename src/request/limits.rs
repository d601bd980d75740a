//! The limits of a request, in bytes as they were set, and where it is marked below them.
//!
//! | field | written by | read by |
//! |---|---|---|
//! | all | who opens the request; a thread that sets a limit | any thread, for the mark and for texts |

use crate::base::size_class::PAGE_BYTES;
use crate::base::sync::{AtomicUsize, Ordering};
use crate::lockfree::budget::Limit;
use crate::request::growth::POLL_GROWTH;

/// How far below its limit a request is marked by default: this part of the limit, up to a maximum;
const RESERVE_DIVISOR: usize = 8;
pub const MAX_DEFAULT_RESERVE_BYTES: usize = 4 * 1024 * 1024;
/// or, if that is more, what requests were seen to grow by in one poll, and this part of it on top,
const GROWTH_MARGIN_DIVISOR: usize = 4;
/// but no more than this part of the limit.
const MOST_RESERVE_DIVISOR: usize = 2;
/// The `reserve_bytes` of a request whose opener did not set any.
const DEFAULT_RESERVE: usize = usize::MAX;
/// The `limit_bytes` and `soft_limit_bytes` of a request that has none.
const UNLIMITED: usize = usize::MAX;

/// What is charged is a multiple of this: pages, and the holes of adopted spans.
pub const UNIT_BYTES: usize = 256;

const _: () = assert!(PAGE_BYTES % UNIT_BYTES == 0, "pages are charged exactly");

/// The units of so many bytes.
pub fn units_of(bytes: usize) -> u64 {
    bytes.div_ceil(UNIT_BYTES) as u64
}

/// The units of a limit of so many bytes: down, where a charge goes up.
fn limit_units(bytes: usize) -> u64 {
    (bytes / UNIT_BYTES) as u64
}

/// A limit of so many bytes.
pub fn limit_of(bytes: usize) -> Limit {
    if bytes == UNLIMITED { Limit::NONE } else { Limit::of(limit_units(bytes)) }
}

/// How far below a limit a request is marked whose opener did not say it, where requests were seen
/// to grow by so much in one poll.
fn default_reserve(limit_bytes: usize, growth_bytes: usize) -> usize {
    let least_bytes = (limit_bytes / RESERVE_DIVISOR).min(MAX_DEFAULT_RESERVE_BYTES);
    let seen_bytes = growth_bytes.saturating_add(growth_bytes / GROWTH_MARGIN_DIVISOR);
    least_bytes.max(seen_bytes).min(limit_bytes / MOST_RESERVE_DIVISOR)
}

/// What a request is opened with.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Bytes of pages it may hold.
    pub limit_bytes: Option<usize>,
    /// Bytes of pages from which on it is marked.
    pub soft_limit_bytes: Option<usize>,
    /// How many bytes below the limit it is marked.
    pub reserve_bytes: Option<usize>,
}

/// The limits that a request has now.
pub struct LimitsNow {
    limit_bytes: AtomicUsize,
    soft_limit_bytes: AtomicUsize,
    reserve_bytes: AtomicUsize,
}

impl LimitsNow {
    /// Of no request.
    pub const fn new() -> Self {
        Self {
            limit_bytes: AtomicUsize::new(UNLIMITED),
            soft_limit_bytes: AtomicUsize::new(UNLIMITED),
            reserve_bytes: AtomicUsize::new(DEFAULT_RESERVE),
        }
    }

    /// Sets them for a new request, and returns its limit.
    #[inline]
    pub fn open(&self, limits: &Limits) -> Limit {
        let limit_bytes = limits.limit_bytes.unwrap_or(UNLIMITED);
        self.limit_bytes.store(limit_bytes, Ordering::Relaxed);
        let soft_limit_bytes = limits.soft_limit_bytes.unwrap_or(UNLIMITED);
        self.soft_limit_bytes.store(soft_limit_bytes, Ordering::Relaxed);
        let reserve_bytes = match limits.reserve_bytes {
            Some(bytes) => bytes.min(DEFAULT_RESERVE - 1),
            None => DEFAULT_RESERVE,
        };
        self.reserve_bytes.store(reserve_bytes, Ordering::Relaxed);
        limit_of(limit_bytes)
    }

    /// Whether there is no limit of either kind.
    #[inline]
    pub fn are_none(&self) -> bool {
        self.limit_bytes().min(self.soft_limit_bytes.load(Ordering::Relaxed)) == UNLIMITED
    }

    /// Returns the limit in bytes.
    pub fn limit_bytes(&self) -> usize {
        self.limit_bytes.load(Ordering::Relaxed)
    }

    /// Sets the limit, `usize::MAX` for none.
    pub fn set_limit(&self, bytes: usize) {
        self.limit_bytes.store(bytes, Ordering::Relaxed);
    }

    /// Returns the soft limit in bytes, if there is one.
    pub fn soft_limit_bytes(&self) -> Option<usize> {
        Some(self.soft_limit_bytes.load(Ordering::Relaxed)).filter(|&bytes| bytes != UNLIMITED)
    }

    /// Sets the soft limit, `usize::MAX` for none.
    pub fn set_soft_limit(&self, bytes: usize) {
        self.soft_limit_bytes.store(bytes, Ordering::Relaxed);
    }

    /// How many units may be in use before the request is near its limit.
    #[inline]
    pub fn near_units(&self) -> u64 {
        match self.limit_bytes() {
            UNLIMITED => u64::MAX,
            limit_bytes => self.near_limit(limit_bytes),
        }
    }

    fn near_limit(&self, limit_bytes: usize) -> u64 {
        let reserve_bytes = match self.reserve_bytes.load(Ordering::Relaxed) {
            DEFAULT_RESERVE => default_reserve(limit_bytes, POLL_GROWTH.bytes()),
            bytes => bytes,
        };
        limit_units(limit_bytes.saturating_sub(reserve_bytes))
    }

    /// How many units may be in use before it is above its soft limit.
    #[inline]
    pub fn soft_units(&self) -> u64 {
        self.soft_limit_bytes().map_or(u64::MAX, limit_units)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    #[test]
    fn the_default_reserve_is_what_a_poll_takes_up_to_half_of_the_limit() {
        for (limit, growth, expected) in [
            (0, MIB, 0),
            (16 * MIB, 0, 2 * MIB),
            (16 * MIB, MIB, 2 * MIB),
            (16 * MIB, 4 * MIB, 5 * MIB),
            (16 * MIB, 7 * MIB, 8 * MIB),
            (256 * MIB, MIB, 4 * MIB),
            (256 * MIB, 46 * MIB, 57 * MIB + MIB / 2),
            (256 * MIB, usize::MAX, 128 * MIB),
        ] {
            assert_eq!(default_reserve(limit, growth), expected, "{limit} {growth}");
        }
    }
}
