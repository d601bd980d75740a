//! How often the process reports that a request is at its memory limit: a few lines a second, and
//! how many were left out.

use crate::base::sync::{AtomicU64, Ordering, const_fn};

/// Most lines written in a second.
pub const LINES_PER_SECOND: u64 = 5;

const COUNT_BITS: u32 = 16;
const COUNT_MASK: u64 = (1 << COUNT_BITS) - 1;

/// The second of the last line and the lines written in it; and how many were left out since.
pub struct Refusals {
    lines: AtomicU64,
    left_out: AtomicU64,
}

impl Refusals {
    const_fn! {
        /// No line yet.
        pub const fn new() -> Self {
            Self { lines: AtomicU64::new(0), left_out: AtomicU64::new(0) }
        }
    }

    /// Returns how many lines were left out before this one; `None` if it must be left out too.
    pub fn next(&self, milliseconds: u64) -> Option<u64> {
        // One more than the second, so that 0 is no second.
        let second = (milliseconds / 1_000 + 1) << COUNT_BITS;
        let count = |word: u64| if word & !COUNT_MASK == second { word & COUNT_MASK } else { 0 };
        let granted = self.lines.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |word| {
            (count(word) < LINES_PER_SECOND).then(|| second | (count(word) + 1))
        });
        if granted.is_err() {
            self.left_out.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        Some(self.left_out.swap(0, Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    #[test]
    fn what_is_left_out_is_counted() {
        let refusals = Refusals::new();
        for start in [0, 7_000, 7_999 + 1] {
            let said = (0..20).filter_map(|step| refusals.next(start + step)).collect::<Vec<_>>();
            assert_eq!(said.len() as u64, LINES_PER_SECOND, "at {start}");
            let before = if start == 0 { 0 } else { 20 - LINES_PER_SECOND };
            assert_eq!((said[0], said[1]), (before, 0), "at {start}");
        }
    }
}
