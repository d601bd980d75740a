//! Whether a mapping is longer than its block needs, and which thread may change that.
//!
//! Compiled by `loom-tests`.
//!
//! - **Z1** The length of a mapping is changed by its block's owner while it is tight, and by the
//!   one thread that has claimed the excess, until that thread says that it is tight again.

use crate::base::sync::{AtomicU32, Ordering};

const TIGHT: u32 = 0;
const LOOSE: u32 = 1;
const CLAIMED: u32 = 2;

/// The word. Zero: as long as the block needs, so *tight*.
pub struct Looseness(pub AtomicU32);

impl Looseness {
    /// Sets up a new mapping, which no other thread knows yet.
    pub fn open(&self) {
        self.0.store(TIGHT, Ordering::Relaxed);
    }

    /// Returns whether the mapping is known to be as long as its block needs.
    pub fn is_tight(&self) -> bool {
        self.0.load(Ordering::Acquire) == TIGHT
    }

    /// Marks the mapping as longer than needed; called by its block's owner.
    pub fn loosen(&self) {
        self.0.store(LOOSE, Ordering::Release);
    }

    /// Claims the excess, to give it back.
    pub fn claim(&self) -> bool {
        self.0.compare_exchange(LOOSE, CLAIMED, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    /// Ends a claim: the excess was given back.
    pub fn settle(&self) {
        self.0.store(TIGHT, Ordering::Release);
    }

    /// Returns the whole mapping to the block's owner. `None`: another thread has claimed the
    /// excess and is not done.
    pub fn try_tighten(&self) -> Option<()> {
        let regain =
            || self.0.compare_exchange(LOOSE, TIGHT, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        (self.is_tight() || regain()).then_some(())
    }
}
