//! The memory of blocks as the machine has it.

use crate::base::size_class::HEADER_BYTES;
use crate::base::sync::AtomicU64;
use crate::lockfree::header::{Block, Memory};
use core::ptr::with_exposed_provenance;

/// Access to block memory as the machine has it.
#[derive(Clone, Copy)]
pub struct Raw;

impl Memory for Raw {
    #[inline(always)]
    fn header(&self, block: Block) -> &AtomicU64 {
        // SAFETY: a caller with a block's address from this heap may touch the word before it (H1);
        // heap memory is mapped as long as any of its blocks is reachable.
        unsafe { &*with_exposed_provenance::<AtomicU64>(block - HEADER_BYTES) }
    }

    #[inline(always)]
    fn link(&self, block: Block) -> Block {
        // SAFETY: the payload of a free block belongs to the owner of the list it is in.
        unsafe { *with_exposed_provenance::<Block>(block) }
    }

    #[inline(always)]
    fn set_link(&self, block: Block, next: Block) {
        // SAFETY: as for `link`.
        unsafe { *core::ptr::with_exposed_provenance_mut::<Block>(block) = next }
    }
}
