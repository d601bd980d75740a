//! The pages of a chunk: which are free, which of those are backed by memory, and what each is used
//! for.
//!
//! Compiled by `loom-tests`. What is known of a page is written while it is claimed:
//!
//! - **B4** A free page that is not dirty reads as zero: it is marked before it is free.
//! - **B5** A page names a descriptor from after that describes it until before it describes
//!   something else, and no free page names one.
//! - **B6** Whoever made pages free, or found none, brings the hints up to date afterwards (R1).

use crate::base::sync::{AtomicPtr, AtomicU64, Ordering};
use crate::lockfree::bitmap::{PageBitmap, runs};
use core::ptr::null_mut;

const WORD_BITS: usize = u64::BITS as usize;

/// What is known of the pages. All zero: none is free, and none is used.
pub struct ChunkPages<T, const WORDS: usize, const PAGES: usize> {
    /// Which pages are free.
    pub free: PageBitmap<WORDS>,
    /// Which free pages are backed by memory: given back since they were last purged.
    pub dirty: PageMask<WORDS>,
    /// Which dirty pages were already dirty at the last tick; of others it means nothing.
    pub aged: PageMask<WORDS>,
    /// The descriptors of the spans that the pages belong to.
    pub names: [AtomicPtr<T>; PAGES],
}

/// A bit for every page. Those of `dirty` are written only by the page's owner.
pub struct PageMask<const WORDS: usize>(pub [AtomicU64; WORDS]);

impl<const WORDS: usize> PageMask<WORDS> {
    fn words(&self) -> [u64; WORDS] {
        core::array::from_fn(|word| self.0[word].load(Ordering::Relaxed))
    }

    /// Sets or clears `first..first + count`; returns whether any was set before.
    fn change(&self, first: usize, count: usize, value: bool) -> bool {
        let mut any = 0;
        for word in first / WORD_BITS..=(first + count - 1) / WORD_BITS {
            let from = first.max(word * WORD_BITS) - word * WORD_BITS;
            let to = (first + count).min((word + 1) * WORD_BITS) - word * WORD_BITS;
            let mask = (u64::MAX >> (WORD_BITS - (to - from))) << from;
            any |= mask
                & if value {
                    self.0[word].fetch_or(mask, Ordering::Relaxed)
                } else if self.0[word].load(Ordering::Relaxed) & mask != 0 {
                    self.0[word].fetch_and(!mask, Ordering::Relaxed)
                } else {
                    0
                };
        }
        any != 0
    }
}

impl<T, const WORDS: usize, const PAGES: usize> ChunkPages<T, WORDS, PAGES> {
    /// Forgets what was known of the pages of a chunk that was here before; all are the caller's.
    pub fn reset(&self) {
        self.dirty.change(0, PAGES, false);
    }

    /// Returns the descriptor of a page's span; `None`: it is free or inside a span of one block.
    pub fn name(&self, page: usize) -> Option<&T> {
        // SAFETY: null, or a descriptor that `take` was given (M1).
        unsafe { self.names[page].load(Ordering::Acquire).as_ref() }
    }

    fn set_names(&self, first: usize, count: usize, name: *mut T) {
        for slot in &self.names[first..first + count] {
            slot.store(name, Ordering::Release);
        }
    }

    /// Claims a run of pages. `describe` makes a descriptor describe them from their first on, and
    /// returns it and how many of them name it. `publish` brings the hints up to date. Returns
    /// whether the run reads as zero. `None`: there is no such run.
    pub fn take<'t>(
        &self,
        count: usize,
        describe: impl FnOnce(usize) -> (usize, &'t T),
        publish: impl Fn(),
    ) -> Option<bool>
    where
        T: 't,
    {
        let Some(first) = self.free.take(count, &publish) else {
            publish();
            return None;
        };
        let was_dirty = self.dirty.change(first, count, false);
        let (named, descriptor) = describe(first);
        self.set_names(first, named, core::ptr::from_ref(descriptor).cast_mut());
        Some(!was_dirty)
    }

    /// Claims exactly these pages, whose span names none of them.
    pub fn take_at(&self, first: usize, count: usize, publish: impl Fn()) -> bool {
        let is_taken = self.free.take_at(first, count);
        if !is_taken {
            publish();
        }
        is_taken
    }

    /// Gives back pages that may have been written to. The first `named` of them name a descriptor;
    /// `let_go` gives that back, if it goes too.
    pub fn give(
        &self,
        first: usize,
        count: usize,
        named: usize,
        let_go: impl FnOnce(),
        publish: impl Fn(),
    ) {
        self.set_names(first, named, null_mut());
        let_go();
        self.dirty.change(first, count, true);
        self.aged.change(first, count, false);
        self.free.give(first, count);
        publish();
    }

    /// Purges dirty pages: if `aged_only`, those that were already dirty at the last tick. `trim`
    /// takes a run and returns what of it can be purged, `purge` does that. Returns how many pages
    /// were.
    pub fn purge(
        &self,
        aged_only: bool,
        trim: impl Fn(usize, usize) -> (usize, usize),
        purge: impl Fn(usize, usize),
        publish: impl Fn(),
    ) -> usize {
        let mut purged = 0;
        for (first, count) in runs(&self.purgeable(aged_only)) {
            let (first, count) = trim(first, count);
            if count > 0 && self.purge_run(first, count, &purge) {
                purged += count;
            }
        }
        // Also for claims that were rolled back (B3).
        publish();
        purged
    }

    /// Returns the free pages that are backed by memory (only those that were at the last tick too
    /// if `aged_only`), and ages all of them.
    fn purgeable(&self, aged_only: bool) -> [u64; WORDS] {
        let (free, dirty, aged) = (self.free.snapshot(), self.dirty.words(), self.aged.words());
        let now = core::array::from_fn(|word| free[word] & dirty[word]);
        for (word, bits) in self.aged.0.iter().enumerate() {
            bits.fetch_or(now[word], Ordering::Relaxed);
        }
        if aged_only { core::array::from_fn(|word| now[word] & aged[word]) } else { now }
    }

    fn purge_run(&self, first: usize, count: usize, purge: impl Fn(usize, usize)) -> bool {
        if !self.free.take_at(first, count) {
            return false;
        }
        purge(first, count);
        self.dirty.change(first, count, false);
        self.free.give(first, count);
        true
    }

    /// Returns whether every page of the `mapped` ones is free now, and none of them is dirty that
    /// was not at the last tick.
    pub fn is_idle(&self, mapped: usize) -> bool {
        let (dirty, aged) = (self.dirty.words(), self.aged.words());
        self.free.free_count() == mapped && (0..WORDS).all(|word| dirty[word] & !aged[word] == 0)
    }

    /// Returns how many free pages are backed by memory.
    pub fn dirty_count(&self) -> usize {
        let (free, dirty) = (self.free.snapshot(), self.dirty.words());
        (0..WORDS).map(|word| (free[word] & dirty[word]).count_ones() as usize).sum()
    }
}
