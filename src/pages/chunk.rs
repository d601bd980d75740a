//! Chunks: 4 MiB, 4 MiB-aligned, divided into 256 pages, of which the first ones are mapped.
//!
//! | field | written by | read by |
//! |---|---|---|
//! | `base`, `number` | the thread that opens or releases the chunk, while no page of it is free or in use | owners of its pages |
//! | `reach` | see `chunk_slots` | any thread, to judge an address |
//! | `pages` | see `chunk_pages`: the owner of a page; a purge, of free pages | any thread, to judge an address; purges and figures |

use crate::base::size_class::PAGE_BYTES;
use crate::base::sync::{AtomicUsize, Ordering};
use crate::lockfree::chunk_pages::ChunkPages;
use crate::lockfree::chunk_slots::Reach;
use crate::pages::span::Span;

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
    /// How many of its pages are mapped.
    pub reach: Reach,
    /// What is known of its pages.
    pub pages: ChunkPages<Span, WORDS, PAGES_PER_CHUNK>,
}

impl Chunk {
    /// Returns the first address; 0 if there is no chunk.
    pub fn base(&self) -> usize {
        self.base.load(Ordering::Relaxed)
    }

    /// Returns one past the last address that is mapped.
    pub fn end(&self) -> usize {
        self.base() + self.reach.pages() * PAGE_BYTES
    }

    /// Returns which of the page heap's chunks it is.
    pub fn number(&self) -> usize {
        self.number.load(Ordering::Relaxed)
    }

    /// Puts the chunk at `base`; all of its pages are the caller's.
    pub fn place(&self, base: usize, number: usize) {
        self.number.store(number, Ordering::Relaxed);
        self.pages.reset();
        self.base.store(base, Ordering::Relaxed);
    }

    /// Returns the page that an address of this chunk is in.
    pub fn page_of(&self, address: usize) -> usize {
        (address & (CHUNK_BYTES - 1)) / PAGE_BYTES
    }

    /// Returns the span of a page; `None` if it is free or inside a span of one block.
    pub fn span(&self, page: usize) -> Option<&Span> {
        self.pages.name(page)
    }
}
