//! A question to all threads, which each answers when it comes to it.
//!
//! Compiled by `loom-tests`.
//!
//! - **C3** A thread that comes to it after it was asked, and has not answered since, answers.

use crate::base::sync::{AtomicU64, Ordering, const_fn};
use core::cell::Cell;

/// How often all threads were asked.
pub struct Asked(AtomicU64);

impl Asked {
    const_fn! {
        /// Nobody was asked yet.
        pub const fn new() -> Self {
            Self(AtomicU64::new(0))
        }
    }

    /// Asks all threads.
    pub fn ask(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns whether the caller was asked since its last answer, and answers: `answered` is its
    /// own.
    #[inline]
    pub fn is_asked(&self, answered: &Cell<u64>) -> bool {
        let asked = self.0.load(Ordering::Relaxed);
        answered.replace(asked) != asked
    }
}
