//! Persistent blocks, for a thread whatever is active in it, and for callers without a thread.

use super::{HEAP, Thread};
use crate::base::size_class::{Class, PAYLOAD_ALIGN, padded_size};
use crate::base::sync::Ordering;
use crate::blocks::allocated::Allocated;
use crate::blocks::memory::Raw;
use crate::lockfree::header::{Block, Header, Memory, NONE};

/// Allocates a persistent block. `thread` is `None` if it has given its cache back or has no memory
/// for one.
pub fn alloc_persistent(thread: Option<&Thread>, size: usize, align: usize) -> Allocated {
    if thread.is_none() {
        HEAP.set_up();
    }
    let class = padded_size(size, align).map(Class::of);
    let allocated = match class {
        None => Allocated::NOTHING,
        Some(Some(class)) => HEAP.alloc_persistent(thread.map(|thread| &thread.cache), class),
        Some(None) => HEAP.alloc_persistent_mapped(size, align),
    };
    if let (Some(thread), Some(class)) = (thread, class) {
        if let Some(control) = thread.current_control() {
            // What the bin has now it did not have before.
            let left = class.map_or(0, |class| thread.cache.bins.bin(class).count());
            control.note_persistent(u64::from(left) + 1);
        }
    }
    align_block(allocated, align)
}

/// Frees a block that `alloc_persistent` gave the thread for itself; ignores `NONE`.
pub fn free_persistent(thread: Option<&Thread>, block: Block) {
    if block != NONE {
        HEAP.free(&HEAP.find(block), thread.map(|thread| &thread.cache), None);
    }
}

/// Moves the payload up to its alignment and writes the word that leads back.
pub fn align_block(allocated: Allocated, align: usize) -> Allocated {
    let block = allocated.block;
    if align <= PAYLOAD_ALIGN || block % align == 0 || block == NONE {
        return allocated;
    }
    let payload = block.next_multiple_of(align);
    let word = Raw.header(payload);
    word.store(Header::aligned(payload - block).0, Ordering::Relaxed);
    allocated.at(payload)
}
