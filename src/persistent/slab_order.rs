//! After many frees a slab's list leads back and forth through it. In the order of addresses it is
//! read as fast as memory can be, when blocks are taken and when they are freed once more.

use crate::base::fatal;
use crate::base::prefetch::prefetch;
use crate::base::size_class::PAYLOAD_ALIGN;
use crate::blocks::memory::Raw;
use crate::lockfree::depot::Magazine;
use crate::lockfree::header::{Memory, NONE, linked};
use crate::pages::span::Span;

/// The longest slab that is put in order; longer ones have few blocks.
const MAX_BYTES: usize = 64 * 1024;
/// Bytes that are fetched together.
const LINE_BYTES: usize = 64;
const WORDS: usize = MAX_BYTES / PAYLOAD_ALIGN / u64::BITS as usize;

/// Whether the list of a slab of `count` blocks is worth putting in order: most of them are on it,
/// and it has not been put in order since it became that long.
pub fn is_worth_ordering(span: &Span, count: u32) -> bool {
    let is_long = u32::from(span.counts.free.get()) >= count / 2;
    is_long && !span.slab.is_ordered.get() && span.bytes() <= MAX_BYTES
}

/// Puts the list of a slab in hand in the order of addresses.
pub fn in_order(span: &Span, listed: Magazine) -> Magazine {
    let base = span.base();
    // The list is a chain of waits for memory; its lines are not.
    for offset in (0..span.bytes()).step_by(LINE_BYTES) {
        prefetch(core::ptr::without_provenance::<u8>(base + offset));
    }
    // A bit for every address that a payload could have.
    let mut is_listed = [0_u64; WORDS];
    for block in linked(&Raw, listed.head) {
        let place = block.wrapping_sub(base) / PAYLOAD_ALIGN;
        match is_listed.get_mut(place / u64::BITS as usize) {
            Some(word) => *word |= 1 << (place % u64::BITS as usize),
            // The header of the block before would be no better than this link.
            None => fatal::header_overwritten(block, 0),
        }
    }
    let mut ordered = Magazine::EMPTY;
    let mut last = NONE;
    for (index, mut left) in is_listed.into_iter().enumerate() {
        while left != 0 {
            let place = index * u64::BITS as usize + left.trailing_zeros() as usize;
            left &= left - 1;
            let block = base + place * PAYLOAD_ALIGN;
            match last {
                NONE => ordered.head = block,
                last => Raw.set_link(last, block),
            }
            last = block;
            ordered.count += 1;
        }
    }
    if last != NONE {
        Raw.set_link(last, NONE);
    }
    if ordered.count != listed.count {
        fatal::broken("free blocks of a slab", ordered.count as usize, listed.count as usize);
    }
    span.slab.is_ordered.set(true);
    ordered
}
