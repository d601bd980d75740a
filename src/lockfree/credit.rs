//! What all threads together may promise themselves.
//!
//! Compiled by `loom-tests`.
//!
//! - **C2** What was drawn and not returned is never more than the whole.

use crate::base::sync::{AtomicUsize, Ordering, const_fn};

/// Bytes that nobody has drawn, out of `WHOLE`.
pub struct Credit<const WHOLE: usize> {
    drawn: AtomicUsize,
}

impl<const WHOLE: usize> Credit<WHOLE> {
    const_fn! {
        /// A credit of which nothing is drawn.
        pub const fn new() -> Self {
            Self { drawn: AtomicUsize::new(0) }
        }
    }

    /// Draws `bytes`, all or nothing; whether there were as many.
    pub fn draw(&self, bytes: usize) -> bool {
        let mut drawn = self.drawn.load(Ordering::Relaxed);
        loop {
            if bytes > WHOLE - drawn {
                return false;
            }
            match self.drawn.compare_exchange_weak(
                drawn,
                drawn + bytes,
                Ordering::Relaxed,
                Ordering::Relaxed,
            ) {
                Ok(_) => return true,
                Err(now) => drawn = now,
            }
        }
    }

    /// Returns bytes that were drawn.
    pub fn give_back(&self, bytes: usize) {
        // Where a signal handler forked meanwhile, the child may have forgotten them.
        let back = |drawn: usize| Some(drawn.saturating_sub(bytes));
        let _ = self.drawn.fetch_update(Ordering::Relaxed, Ordering::Relaxed, back);
    }

    /// Forgets what other threads have drawn, in a process that was just forked: this one has drawn
    /// `bytes`.
    pub fn recover(&self, bytes: usize) {
        self.drawn.store(bytes, Ordering::Relaxed);
    }

    /// Returns the bytes that are drawn.
    pub fn drawn_bytes(&self) -> usize {
        self.drawn.load(Ordering::Relaxed)
    }
}
