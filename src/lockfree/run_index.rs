//! Which of 64 chunks have a long enough run of free pages, so that no search looks at a chunk
//! twice for nothing.
//!
//! Compiled by `loom-tests`. One word per length, one bit per chunk. A set bit is a hint that may
//! be stale; a clear bit is never wrong for good:
//!
//! - **R1** When every `publish` of a chunk has returned, its bits are set for every length that
//!   its longest run had after the last give.

use crate::base::sync::{AtomicU64, Ordering, fence};

/// The words. All zero: no chunk has a free page.
pub struct RunIndex<const LENGTHS: usize> {
    /// For each length, the chunks that may have such a run.
    pub words: [AtomicU64; LENGTHS],
}

impl<const LENGTHS: usize> RunIndex<LENGTHS> {
    /// Returns the chunks that may have a run of the length with this index.
    #[inline]
    pub fn candidates(&self, length_index: usize) -> u64 {
        self.words[length_index].load(Ordering::Relaxed)
    }

    /// Brings the bits of a chunk up to date with its longest run, which `longest` returns. To be
    /// called after pages were given, and after a search found nothing.
    pub fn publish(&self, slot: u32, lengths: &[u8; LENGTHS], longest: impl Fn() -> usize) {
        let mask = 1u64 << slot;
        // One between the change of the pages and the look at the bits here, one between a cleared
        // bit and the second look at the pages: of a giver and a clearer, one sees what the other
        // did.
        fence(Ordering::SeqCst);
        loop {
            let run = longest();
            for (word, &length) in self.words.iter().zip(lengths) {
                let is_set = word.load(Ordering::Relaxed) & mask != 0;
                if usize::from(length) <= run && !is_set {
                    word.fetch_or(mask, Ordering::Relaxed);
                } else if usize::from(length) > run && is_set {
                    word.fetch_and(!mask, Ordering::Relaxed);
                }
            }
            fence(Ordering::SeqCst);
            if longest() == run {
                return;
            }
        }
    }
}
