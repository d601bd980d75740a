//! Chunks: 4 MiB, 4 MiB-aligned, divided into 256 pages.
//!
//! | field | written by | read by |
//! |---|---|---|
//! | `base`, `number` | the thread that opens or releases the chunk, while no page of it is free or in use | owners of its pages |
//! | `free` | claims and gives (B1, B2) | any thread |
//! | `dirty` | the owner of the page | the same; purges and figures |
//! | `aged` | the owner of the page; a purge, of free pages | purges |
//! | `spans[page]` | the owner of the page | any thread, to judge an address |

use crate::base::size_class::PAGE_BYTES;
use crate::base::sync::{AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use crate::lockfree::bitmap::PageBitmap;
use crate::pages::span::Span;
use core::ptr::null_mut;

/// Length and alignment of a chunk.
pub const CHUNK_BYTES: usize = 4 * 1024 * 1024;
/// Pages of a chunk.
pub const PAGES_PER_CHUNK: usize = CHUNK_BYTES / PAGE_BYTES;
const WORD_BITS: usize = u64::BITS as usize;
const WORDS: usize = PAGES_PER_CHUNK / WORD_BITS;

const _: () = assert!(WORDS * WORD_BITS == PAGES_PER_CHUNK, "a bit for every page");

/// What is known of a chunk. All zero: there is none.
#[repr(C, align(64))]
pub struct Chunk {
    base: AtomicUsize,
    number: AtomicUsize,
    /// Which pages are free.
    pub free: PageBitmap<WORDS>,
    /// Which free pages are backed by memory: given back since they were last purged.
    dirty: PageMask,
    /// Which dirty pages were already dirty at the last tick.
    aged: PageMask,
    spans: [AtomicPtr<Span>; PAGES_PER_CHUNK],
}

/// A bit for every page. Those of `dirty` are written only by the page's owner.
struct PageMask([AtomicU64; WORDS]);

impl PageMask {
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

impl Chunk {
    /// Returns the first address; 0 if there is no chunk.
    pub fn base(&self) -> usize {
        self.base.load(Ordering::Relaxed)
    }

    /// Returns which of the page heap's chunks it is.
    pub fn number(&self) -> usize {
        self.number.load(Ordering::Relaxed)
    }

    /// Puts the chunk at `base`; all of its pages are the caller's.
    pub fn place(&self, base: usize, number: usize) {
        self.number.store(number, Ordering::Relaxed);
        self.dirty.change(0, PAGES_PER_CHUNK, false);
        self.aged.change(0, PAGES_PER_CHUNK, false);
        self.base.store(base, Ordering::Relaxed);
    }

    /// Returns the page that an address of this chunk is in.
    pub fn page_of(&self, address: usize) -> usize {
        (address & (CHUNK_BYTES - 1)) / PAGE_BYTES
    }

    /// Returns the span of a page; `None` if it is free or inside a span of one block.
    pub fn span(&self, page: usize) -> Option<&Span> {
        let span = self.spans[page].load(Ordering::Acquire);
        // SAFETY: null, or a descriptor (M1).
        unsafe { span.as_ref() }
    }

    /// Sets the span that the pages `first..first + count` belong to.
    pub fn set_span(&self, first: usize, count: usize, span: Option<&Span>) {
        let span = span.map_or(null_mut(), |span| core::ptr::from_ref(span).cast_mut());
        for slot in &self.spans[first..first + count] {
            slot.store(span, Ordering::Release);
        }
    }

    /// Claims a run of pages; returns its first page and whether the run reads as zero. Calls
    /// `rolled_back` for every claim that was refused halfway (B3).
    pub fn take(&self, count: usize, rolled_back: impl FnMut()) -> Option<(usize, bool)> {
        let first = self.free.take(count, rolled_back)?;
        Some((first, !self.dirty.change(first, count, false)))
    }

    /// Claims exactly these pages.
    pub fn take_at(&self, first: usize, count: usize) -> bool {
        self.free.take_at(first, count) && {
            self.dirty.change(first, count, false);
            true
        }
    }

    /// Gives back pages that may have been written to.
    pub fn give(&self, first: usize, count: usize) {
        self.dirty.change(first, count, true);
        self.aged.change(first, count, false);
        self.free.give(first, count);
    }

    /// Returns the free pages that are backed by memory (only those that were at the last tick too
    /// if `aged_only`), and ages all of them.
    pub fn purgeable(&self, aged_only: bool) -> [u64; WORDS] {
        let (free, dirty, aged) = (self.free.snapshot(), self.dirty.words(), self.aged.words());
        let now = core::array::from_fn(|word| free[word] & dirty[word]);
        for (word, bits) in self.aged.0.iter().enumerate() {
            bits.fetch_or(now[word], Ordering::Relaxed);
        }
        if aged_only { core::array::from_fn(|word| now[word] & aged[word]) } else { now }
    }

    /// Claims dirty pages, purges them by `purge(address, bytes)`, and gives them back clean.
    /// Returns the bytes purged.
    pub fn purge_run(&self, first: usize, count: usize, purge: impl FnOnce(usize, usize)) -> usize {
        if !self.free.take_at(first, count) {
            return 0;
        }
        purge(self.base() + first * PAGE_BYTES, count * PAGE_BYTES);
        self.dirty.change(first, count, false);
        self.aged.change(first, count, false);
        self.free.give(first, count);
        count * PAGE_BYTES
    }

    /// Returns whether every page is free now, and none of them is dirty that was not at the last
    /// tick.
    pub fn is_idle(&self) -> bool {
        let (dirty, aged) = (self.dirty.words(), self.aged.words());
        self.free.free_count() == PAGES_PER_CHUNK
            && (0..WORDS).all(|word| dirty[word] & !aged[word] == 0)
    }

    /// Returns the bytes of free pages that are backed by memory.
    pub fn dirty_bytes(&self) -> usize {
        let (free, dirty) = (self.free.snapshot(), self.dirty.words());
        (0..WORDS).map(|word| (free[word] & dirty[word]).count_ones() as usize).sum::<usize>()
            * PAGE_BYTES
    }
}
