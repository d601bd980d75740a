//! Whether a mapping is longer than its block needs, and who may change that.
//!
//! Compiled by `loom-tests`.
//!
//! - **Z1** The mapping's length is changed by its block's owner while it is tight, and by the one thread
//!   that has claimed what is too much, until it says that it is tight again.

use crate::base::sync::{AtomicU32, Ordering};

const TIGHT: u32 = 0;
const LOOSE: u32 = 1;
const CLAIMED: u32 = 2;

/// The word. Zero: as long as the block needs.
pub struct Looseness(pub AtomicU32);

impl Looseness {
    /// A new mapping, which nobody else knows yet.
    pub fn open(&self) {
        self.0.store(TIGHT, Ordering::Relaxed);
    }

    /// Whether it is as long as its block needs, as far as is known.
    pub fn is_tight(&self) -> bool {
        self.0.load(Ordering::Acquire) == TIGHT
    }

    /// It is longer from now on; by its block's owner.
    pub fn loosen(&self) {
        self.0.store(LOOSE, Ordering::Release);
    }

    /// Claims what is too much, to give it back.
    pub fn claim(&self) -> bool {
        self.0.compare_exchange(LOOSE, CLAIMED, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    /// What was claimed is given back.
    pub fn settle(&self) {
        self.0.store(TIGHT, Ordering::Release);
    }

    /// The block's owner has the whole mapping to itself again. `None`: another thread has claimed the
    /// end of it, and is not done.
    pub fn try_tighten(&self) -> Option<()> {
        let regain =
            || self.0.compare_exchange(LOOSE, TIGHT, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        (self.is_tight() || regain()).then_some(())
    }
}
