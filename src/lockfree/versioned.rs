//! Words that one thread writes while others read them: a reader gets what one write left, or
//! nothing.
//!
//! Compiled by `loom-tests`.
//!
//! - **V1** One thread writes at a time; the version is odd from before its first word until after
//!   its last one.
//! - **V2** A reader that saw the same even version before and after its words saw those of one
//!   write. The first write must be ordered before the first read by something else.

use crate::base::sync::{AtomicU64, Ordering, fence};

/// Words with a version. Memory that was never written may contain anything.
#[repr(C)]
pub struct Versioned<const WORDS: usize> {
    /// Odd while the words are being written.
    pub version: AtomicU64,
    /// The words.
    pub words: [AtomicU64; WORDS],
}

impl<const WORDS: usize> Versioned<WORDS> {
    /// Writes all words. No other thread may be writing (V1).
    pub fn write(&self, words: &[u64; WORDS]) {
        let odd = self.version.load(Ordering::Relaxed) | 1;
        self.version.store(odd, Ordering::Relaxed);
        fence(Ordering::Release);
        for (place, &word) in self.words.iter().zip(words) {
            place.store(word, Ordering::Relaxed);
        }
        self.version.store(odd.wrapping_add(1), Ordering::Release);
    }

    /// Returns the words of one write (V2). `None`: they are being written.
    pub fn read(&self) -> Option<[u64; WORDS]> {
        let before = self.version.load(Ordering::Acquire);
        let words = core::array::from_fn(|word| self.words[word].load(Ordering::Relaxed));
        fence(Ordering::Acquire);
        let after = self.version.load(Ordering::Relaxed);
        (before == after && before & 1 == 0).then_some(words)
    }
}
