//! Two words on which threads decide about a request: how many large blocks it has, and whether a thread is
//! in a lane.
//!
//! - **L4** A large block's request is not over before its count is off, and whoever sees it off sees the
//!   list without the block.

use crate::base::sync::{AtomicBool, AtomicU64, Ordering, const_fn};

/// How many large blocks a request has.
pub struct LargeCount(AtomicU64);

impl LargeCount {
    const_fn! {
        /// No large block.
        pub const fn new() -> Self {
            Self(AtomicU64::new(0))
        }
    }

    /// Sets the count of a request that no other thread knows yet to 0.
    pub fn open(&self) {
        self.recount(0);
    }

    /// Sets the count, in the only thread there is.
    pub fn recount(&self, count: u64) {
        self.0.store(count, Ordering::Relaxed);
    }

    /// Adds a block that is on the list by now.
    pub fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// One less: the last thing its free does to the request (L4).
    pub fn drop_one(&self) {
        self.0.fetch_sub(1, Ordering::Release);
    }

    /// Returns how many there are; once a closer reads 0, the list stays empty.
    pub fn count(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }
}

/// Whether a thread allocates from a lane. Zero: the lane is idle.
pub struct Occupancy(pub AtomicBool);

impl Occupancy {
    /// Takes an idle lane, and sees everything its last occupant did.
    #[inline]
    pub fn try_enter(&self) -> bool {
        !self.is_taken()
            && self.0.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    /// Makes the lane idle again.
    #[inline]
    pub fn leave(&self) {
        self.0.store(false, Ordering::Release);
    }

    /// Returns whether a thread is in the lane now.
    #[inline]
    pub fn is_taken(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
