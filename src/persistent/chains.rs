//! Lists of free blocks, followed one by one or side by side.

use crate::blocks::memory::Raw;
use crate::lockfree::depot::Magazine;
use crate::lockfree::header::{Block, Memory, NONE, linked};
use core::iter::from_fn;

/// Lists that are followed side by side.
pub const CHAIN_COUNT: usize = 8;

/// The blocks of a magazine.
pub fn blocks_of(magazine: Magazine) -> impl Iterator<Item = Block> {
    linked(&Raw, magazine.head).take(magazine.count as usize)
}

/// The blocks of several lists, one of each in turn: while the link of one is read from memory, which
/// leads to the next, the processor goes on with the others.
pub fn in_turn(mut heads: [Block; CHAIN_COUNT]) -> impl Iterator<Item = Block> {
    let mut left = CHAIN_COUNT;
    let mut at = 0;
    from_fn(move || {
        while left > 0 {
            at = if at + 1 < left { at + 1 } else { 0 };
            let block = heads[at];
            if block != NONE {
                heads[at] = Raw.link(block);
                return Some(block);
            }
            left -= 1;
            heads[at] = heads[left];
        }
        None
    })
}
