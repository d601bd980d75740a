//! The pages of a chunk as a bitmap: a set bit is a free page.
//!
//! Compiled by `loom-tests`. A run is claimed word by word by compare-and-swap, and rolled back if
//! a later word refuses, so no lock is taken and a claimed page has exactly one owner:
//!
//! - **B1** A bit that a claim has cleared belongs to that claim alone until it is set again.
//! - **B2** Setting a bit releases what its owner wrote to the page; clearing it acquires that.
//! - **B3** Rolling a claim back is a give: hints of free pages must be renewed after a refusal.

use crate::base::sync::{AtomicU64, Ordering};

const WORD_BITS: usize = u64::BITS as usize;

/// `WORDS * 64` pages. All zero: none is free.
pub struct PageBitmap<const WORDS: usize> {
    /// A bit for every page.
    pub free: [AtomicU64; WORDS],
}

/// Bits `from..from + count` of one word.
const fn mask(from: usize, count: usize) -> u64 {
    if count >= WORD_BITS { u64::MAX } else { ((1 << count) - 1) << from }
}

/// Splits the run `first..first + count` into the words it is in: (word, mask).
fn parts(first: usize, count: usize) -> impl DoubleEndedIterator<Item = (usize, u64)> + Clone {
    let end = first + count;
    (first / WORD_BITS..end.div_ceil(WORD_BITS)).map(move |word| {
        let from = first.max(word * WORD_BITS);
        let to = end.min((word + 1) * WORD_BITS);
        (word, mask(from - word * WORD_BITS, to - from))
    })
}

impl<const WORDS: usize> PageBitmap<WORDS> {
    /// Claims the lowest run of `count` free pages and returns its first index. Calls `rolled_back`
    /// for every claim that was refused halfway (B3).
    pub fn take(&self, count: usize, mut rolled_back: impl FnMut()) -> Option<usize> {
        loop {
            let first = find_run(&self.snapshot(), count)?;
            if self.take_at(first, count) {
                return Some(first);
            }
            rolled_back();
        }
    }

    /// Claims exactly the pages `first..first + count`, or nothing: a refusal may have been a give
    /// (B3).
    pub fn take_at(&self, first: usize, count: usize) -> bool {
        if first + count > WORDS * WORD_BITS {
            return false;
        }
        for (word, mask) in parts(first, count) {
            if !self.claim(word, mask) {
                parts(first, count)
                    .take_while(|(earlier, _)| *earlier < word)
                    .for_each(|(earlier, mask)| self.set(earlier, mask));
                return false;
            }
        }
        true
    }

    /// Gives claimed pages back.
    pub fn give(&self, first: usize, count: usize) {
        parts(first, count).for_each(|(word, mask)| self.set(word, mask));
    }

    /// Claims exactly these pages of one word, or nothing.
    pub fn claim(&self, word: usize, mask: u64) -> bool {
        let mut seen = self.free[word].load(Ordering::Relaxed);
        while seen & mask == mask {
            match self.free[word].compare_exchange_weak(
                seen,
                seen & !mask,
                Ordering::Acquire,
                Ordering::Relaxed,
            ) {
                Ok(_) => return true,
                Err(now) => seen = now,
            }
        }
        false
    }

    /// Gives claimed pages of one word back.
    pub fn set(&self, word: usize, mask: u64) {
        self.free[word].fetch_or(mask, Ordering::Release);
    }

    /// Returns the words, read one after the other.
    pub fn snapshot(&self) -> [u64; WORDS] {
        core::array::from_fn(|word| self.free[word].load(Ordering::Relaxed))
    }

    /// Returns how many pages are free.
    pub fn free_count(&self) -> usize {
        self.snapshot().iter().map(|word| word.count_ones() as usize).sum()
    }
}

/// Returns the first index of the lowest run of `count` set bits.
pub fn find_run<const WORDS: usize>(words: &[u64; WORDS], count: usize) -> Option<usize> {
    runs(words).find(|&(_, length)| length >= count).map(|(first, _)| first)
}

/// Returns the length of the longest run of set bits.
pub fn longest_run<const WORDS: usize>(words: &[u64; WORDS]) -> usize {
    runs(words).map(|(_, length)| length).max().unwrap_or(0)
}

/// Every maximal run of set bits: (first, length), lowest first.
pub fn runs<const WORDS: usize>(words: &[u64; WORDS]) -> impl Iterator<Item = (usize, usize)> + '_ {
    let mut at = 0;
    core::iter::from_fn(move || {
        let first = next_bit(words, at, true)?;
        let end = next_bit(words, first, false).unwrap_or(WORDS * WORD_BITS);
        at = end;
        Some((first, end - first))
    })
}

/// Returns the first index from `at` on whose bit is `value`.
fn next_bit<const WORDS: usize>(words: &[u64; WORDS], at: usize, value: bool) -> Option<usize> {
    let mut word = at / WORD_BITS;
    let mut from = at % WORD_BITS;
    while word < WORDS {
        let bits = if value { words[word] } else { !words[word] } & (u64::MAX << from);
        if bits != 0 {
            return Some(word * WORD_BITS + bits.trailing_zeros() as usize);
        }
        word += 1;
        from = 0;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Finds a run by looking at one bit after the other.
    fn naive_run(words: &[u64; 4], count: usize) -> Option<usize> {
        let bit = |index: usize| words[index / 64] >> (index % 64) & 1 == 1;
        (0..=256 - count).find(|&first| (first..first + count).all(bit))
    }

    fn random_words(seed: &mut u64) -> [u64; 4] {
        core::array::from_fn(|_| {
            let mut next = || {
                *seed ^= *seed << 13;
                *seed ^= *seed >> 7;
                *seed ^= *seed << 17;
                *seed
            };
            // Long runs of both kinds, and occasionally a full word.
            let (a, b) = (next(), next());
            if a % 5 == 0 { u64::MAX } else { (u64::MAX >> (a % 64)) ^ (1 << (b % 64)) }
        })
    }

    #[test]
    fn runs_are_found_where_a_plain_search_finds_them() {
        let mut seed = 0x1234_5678_9abc_def1;
        for _ in 0..2_000 {
            let words = random_words(&mut seed);
            for count in [1, 2, 3, 7, 16, 63, 64, 65, 129, 256] {
                assert_eq!(find_run(&words, count), naive_run(&words, count), "{words:x?} {count}");
            }
            let longest = (1..=256).rev().find(|&count| naive_run(&words, count).is_some());
            assert_eq!(longest_run(&words), longest.unwrap_or(0), "{words:x?}");
            let total: usize = runs(&words).map(|(_, length)| length).sum();
            assert_eq!(total, words.iter().map(|word| word.count_ones() as usize).sum::<usize>());
        }
    }

    #[test]
    fn a_refused_claim_leaves_no_trace() {
        let bitmap = PageBitmap { free: core::array::from_fn(|_| AtomicU64::new(0)) };
        bitmap.give(10, 100);
        bitmap.give(120, 136);
        let before: [u64; 4] = bitmap.snapshot();
        assert!(!bitmap.take_at(100, 30), "pages 110 to 119 are not free");
        assert!(!bitmap.take_at(0, 256));
        assert_eq!(bitmap.snapshot(), before);
        assert_eq!(bitmap.take(136, || ()), Some(120));
        assert_eq!(bitmap.take(101, || ()), None);
        assert_eq!(bitmap.take(100, || ()), Some(10));
        assert_eq!(bitmap.free_count(), 0);
    }
}
