//! What a span's descriptor knows of a slab's blocks; see `span` for who writes and reads it.

use crate::base::os::MIN_PAGE_BYTES;
use crate::base::size_class::{MAX_SLAB_PAGES, PAGE_BYTES};
use crate::base::sync::{AtomicBool, AtomicU32, Ordering};
use core::cell::Cell;
use core::ops::Range;

/// How many of the blocks of a slab are where.
pub struct SlabCounts {
    /// How many came back and are on its list.
    pub free: Cell<u16>,
    /// How many are out: in magazines, in bins or in use.
    pub out: Cell<u16>,
    /// How many came back since it was last looked through for pages to purge.
    pub returned: Cell<u16>,
}

/// The blocks of a slab that are not out.
pub struct SlabBlocks {
    /// How far from the base the first block is that came back; 0: there is none.
    pub(super) free_offset: Cell<u32>,
    /// The blocks that are cut next: the first in the lower half, the one behind the last in the
    /// upper half.
    range: AtomicU32,
    /// A bit for every page of the system that a header may be in: those whose blocks are cut after
    /// the range. A purged page reads as zero.
    uncut: [AtomicU32; UNCUT_WORDS],
    /// The list the span is on; 0: none.
    pub list: Cell<u8>,
    /// The tick of its last change that keeps it from being looked through.
    pub changed_at: Cell<u8>,
    /// Whether its list was put in order since it became so long.
    pub is_ordered: Cell<bool>,
    /// Whether pages of it were ever purged.
    pub was_purged: AtomicBool,
}

const UNCUT_WORDS: usize = 3;

const _: () = assert!(
    MAX_SLAB_PAGES * PAGE_BYTES / MIN_PAGE_BYTES <= UNCUT_WORDS * u32::BITS as usize,
    "a bit for every page of the system that a slab is in"
);

impl SlabBlocks {
    /// Makes it that of a slab all of whose blocks are uncut.
    pub fn open(&self) {
        self.free_offset.set(0);
        self.set_range(0..0);
        self.set_uncut(0);
        self.list.set(0);
        self.changed_at.set(0);
        self.is_ordered.set(false);
        self.was_purged.store(false, Ordering::Relaxed);
    }

    /// The blocks that are cut next.
    pub fn range(&self) -> Range<u32> {
        let word = self.range.load(Ordering::Relaxed);
        word & 0xffff..word >> 16
    }

    /// Changes the range by one store.
    pub fn set_range(&self, range: Range<u32>) {
        self.range.store(range.end << 16 | range.start, Ordering::Relaxed);
    }

    /// The pages of the system whose blocks are cut after the range.
    pub fn uncut(&self) -> u128 {
        self.uncut
            .iter()
            .rev()
            .fold(0, |mask, word| mask << u32::BITS | u128::from(word.load(Ordering::Relaxed)))
    }

    /// Changes them, word by word.
    pub fn set_uncut(&self, uncut: u128) {
        for (index, word) in self.uncut.iter().enumerate() {
            word.store((uncut >> (index as u32 * u32::BITS)) as u32, Ordering::Relaxed);
        }
    }
}
