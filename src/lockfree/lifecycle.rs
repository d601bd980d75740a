//! Whether a thread is in a lane.
//!
//! Compiled by `loom-tests`.

use crate::base::sync::{AtomicBool, Ordering};

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
