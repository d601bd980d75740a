//! Which blocks of a slab are to be cut, for the first time or again after their page was purged,
//! and the steps that purge pages of one.
//!
//! Compiled by `loom-tests`. It knows masks and numbers: where blocks lie in pages only `Pages` knows,
//! and lists and memory only `Hand`.
//!
//! | field | written by | read by |
//! |---|---|---|
//! | all | under the class's lock; of a slab in hand, who has it in hand | the same; when a fatal error is worded |
//!
//! - **A6** While a slab is in hand nobody else cuts from it, so a page all of whose blocks are off
//!   the list and uncut is touched by nobody until it was purged. Blocks of an uncut page are never
//!   on a list.
//! - **A8** Who finds zeros where a purged block had its header finds it uncut, unless it is being
//!   cut again.

use crate::base::sync::{AtomicU32, Ordering, fence, step};
use core::ops::Range;

/// Words of a mask of pages.
const MASK_WORDS: usize = 3;
/// Most pages of the system that a header of a slab may be in.
pub const MAX_UNCUT_PAGES: usize = MASK_WORDS * u32::BITS as usize;

const END_SHIFT: u32 = 16;
const START_MASK: u32 = (1 << END_SHIFT) - 1;
const WAS_PURGED: u32 = 1 << 31;
/// Most blocks of a slab.
pub const MAX_BLOCKS: u32 = (WAS_PURGED >> END_SHIFT) - 1;

/// Where the blocks of a slab, which are numbered, lie in pages of the system.
pub trait Pages {
    /// Returns the page that a block's header is in.
    fn page_of_number(&self, number: u32) -> usize;
    /// Returns the blocks whose headers are in these pages.
    fn blocks_in(&self, pages: Range<usize>) -> Range<u32>;
}

/// The blocks that are to be cut. All zero: none is.
pub struct Uncut {
    /// `was_purged : 1 | end : 15 | start : 16`: whether pages were ever purged, and the blocks that
    /// are cut next.
    pub range: AtomicU32,
    /// A bit for every page of the system that a header may be in: those whose blocks are cut after
    /// the range. A purged page reads as zero.
    pub pages: [AtomicU32; MASK_WORDS],
}

impl Uncut {
    /// Makes it that of a new slab, of which nothing is to be cut yet.
    pub fn open(&self) {
        self.range.store(0, Ordering::Relaxed);
        self.set_pages(0);
    }

    /// The blocks that are cut next.
    pub fn range(&self) -> Range<u32> {
        let word = self.range.load(Ordering::Relaxed);
        word & START_MASK..(word & !WAS_PURGED) >> END_SHIFT
    }

    /// Changes the range by one store.
    pub fn set_range(&self, range: Range<u32>) {
        let was_purged = self.range.load(Ordering::Relaxed) & WAS_PURGED;
        self.store_range(range, was_purged);
    }

    fn store_range(&self, range: Range<u32>, was_purged: u32) {
        let word = was_purged | range.end << END_SHIFT | range.start;
        self.range.store(word, Ordering::Relaxed);
    }

    /// The pages of the system whose blocks are cut after the range.
    pub fn pages(&self) -> u128 {
        let words = self.pages.iter().rev();
        words.fold(0, |mask, word| mask << u32::BITS | u128::from(word.load(Ordering::Relaxed)))
    }

    /// Changes them, word by word.
    fn set_pages(&self, pages: u128) {
        for (index, word) in self.pages.iter().enumerate() {
            word.store((pages >> (index as u32 * u32::BITS)) as u32, Ordering::Relaxed);
        }
    }

    /// Returns whether a block, by its header, is to be cut.
    pub fn has(&self, number: u32, of: &impl Pages) -> bool {
        self.pages() >> of.page_of_number(number) & 1 == 1 || self.range().contains(&number)
    }

    /// Takes up to `want` neighbours, which the caller cuts.
    pub fn cut(&self, want: u32, of: &impl Pages) -> Range<u32> {
        let mut range = self.range();
        if range.is_empty() && want > 0 {
            range = self.take_pages(want, of);
        }
        let end = range.end.min(range.start + want);
        self.set_range(end..range.end);
        step();
        range.start..end
    }

    /// Takes the first pages, no more than `want` blocks need, as the new range.
    fn take_pages(&self, want: u32, of: &impl Pages) -> Range<u32> {
        let mut pages = self.pages();
        if pages == 0 {
            return 0..0;
        }
        let first = pages.trailing_zeros() as usize;
        let mut end = first;
        while pages >> end & 1 == 1 && of.blocks_in(first..end).len() < want as usize {
            pages &= !(1 << end);
            end += 1;
        }
        self.set_pages(pages);
        step();
        of.blocks_in(first..end)
    }

    /// Notes that the blocks of these pages are to be cut again, and what is left of the range.
    fn add(&self, pages: u128, range: Range<u32>) {
        // In this order, so that a process forked between them does not cut a block twice.
        self.store_range(range, WAS_PURGED);
        step();
        self.set_pages(self.pages() | pages);
        step();
    }

    /// Whether a block, where zeros were found in place of its header, was purged and is not cut
    /// again yet (A8). Only used to word a fatal error.
    pub fn was_purged(&self, number: u32, of: &impl Pages) -> bool {
        // Who finds zeros sees what was done before the system wiped the page.
        fence(Ordering::Acquire);
        self.range.load(Ordering::Relaxed) & WAS_PURGED != 0 && self.has(number, of)
    }
}

/// What can go of a slab.
pub struct FreePages {
    /// The pages that are purged.
    pub purged: u128,
    /// Those whose blocks are to be cut again, purged or not.
    pub uncut: u128,
    /// What is left of the range.
    pub range: Range<u32>,
}

/// A slab that the caller has in hand.
pub trait Hand {
    /// Blocks that were on the slab's list.
    type List;
    /// Takes all that is on the list, under the class's lock.
    fn take_list(&self) -> Self::List;
    /// Returns the pages in which every block is on the list or to be cut, and takes those blocks
    /// off the list.
    fn free_pages(&self, list: &mut Self::List) -> FreePages;
    /// Purges pages: they read as zero afterwards.
    fn purge(&self, pages: u128);
    /// Puts the slab back, with what is left of its list, under the class's lock.
    fn put_back(&self, list: Self::List);
}

/// Purges the free pages of a slab in hand, and puts it back (A6).
pub fn purge_free_pages<H: Hand>(hand: &H, uncut: &Uncut) {
    let mut list = hand.take_list();
    let free = hand.free_pages(&mut list);
    uncut.add(free.uncut, free.range);
    hand.purge(free.purged);
    hand.put_back(list);
}
