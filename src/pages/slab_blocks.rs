//! What a span's descriptor knows of a slab's blocks; see `span` for who writes and reads it.

use crate::base::os::MIN_PAGE_BYTES;
use crate::base::size_class::{MAX_SLAB_PAGES, PAGE_BYTES, PAYLOAD_ALIGN};
use crate::lockfree::uncut::{MAX_BLOCKS, MAX_UNCUT_PAGES, Uncut};
use core::cell::Cell;

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
    /// Those that are to be cut.
    pub uncut: Uncut,
    /// The list the span is on; 0: none.
    pub list: Cell<u8>,
    /// The tick of its last change that keeps it from being looked through.
    pub changed_at: Cell<u8>,
    /// Whether its list was put in order since it became so long.
    pub is_ordered: Cell<bool>,
}

const _: () = assert!(
    MAX_SLAB_PAGES * PAGE_BYTES / MIN_PAGE_BYTES <= MAX_UNCUT_PAGES,
    "a bit for every page of the system that a slab is in"
);

const _: () = assert!(
    MAX_SLAB_PAGES * PAGE_BYTES / PAYLOAD_ALIGN <= MAX_BLOCKS as usize,
    "a number for every block of a slab"
);

impl SlabBlocks {
    /// Makes it that of a slab all of whose blocks are uncut.
    pub fn open(&self) {
        self.free_offset.set(0);
        self.uncut.open();
        self.list.set(0);
        self.changed_at.set(0);
        self.is_ordered.set(false);
    }
}
