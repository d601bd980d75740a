//! A word that tells of what was done before it was said: a key that was made, a setting that was
//! read, a record that was written, how many things there are.
//!
//! Compiled by `loom-tests`.
//!
//! - **Y1** Whoever hears a value sees all that its speaker did, or had heard of, before.

use crate::base::sync::{AtomicU64, Ordering, const_fn};

/// The word. Zero: nothing was said.
pub struct Said(AtomicU64);

impl Said {
    const_fn! {
        /// Nothing was said.
        pub const fn new() -> Self {
            Self(AtomicU64::new(0))
        }
    }

    /// Says a value.
    #[inline]
    pub fn say(&self, value: u64) {
        self.0.store(value, Ordering::Release);
    }

    /// Says more: these bits, too.
    pub fn add(&self, bits: u64) {
        self.0.fetch_or(bits, Ordering::Release);
    }

    /// Takes back what was said, of something that only the caller knows.
    #[inline]
    pub fn reset(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    /// Hears what was said last (Y1).
    #[inline]
    pub fn hear(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }

    /// Returns what was said last, to somebody who has heard it or needs nothing else.
    #[inline]
    pub fn peek(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
