//! Strays: blocks that come back to a request from outside its lanes.
//!
//! | field | written by | read by |
//! |---|---|---|
//! | `list` | see `stray` | |
//! | `pending` | who pushes, before, and who drains, after: by read-modify-write | anybody |

use crate::base::size_class::Class;
use crate::base::sync::{AtomicU64, Ordering};
use crate::blocks::memory::Raw;
use crate::lockfree::header::{Block, settle_stray};
use crate::lockfree::stray::{Chain, Closed, StrayList};
use crate::request::lane::Lane;

/// What came back from outside. Other threads write here: on cache lines of its own.
#[repr(align(128))]
pub struct Strays {
    list: StrayList,
    /// Free blocks that are in no bin: strays, and what lanes hand on to one another.
    pub pending: Pending,
}

impl Strays {
    /// Closed: no request has the control block yet.
    pub const fn new() -> Self {
        Self { list: StrayList::new(), pending: Pending::new() }
    }

    /// Opens the list for a new request, which nobody else knows yet.
    #[inline]
    pub fn open(&self) {
        self.pending.open();
        self.list.open();
    }

    /// A block comes back whose header is claimed. `Err`: the request is closed (S2).
    pub fn push(&self, block: Block, class: Class) -> Result<(), Closed> {
        self.pending.add(1, class.stride_bytes());
        self.list.push(&Raw, block, block)
    }

    /// Takes all strays into a lane's bins, if there are any.
    #[inline]
    pub fn drain_into(&self, lane: &Lane) -> bool {
        let has_strays = !self.list.is_empty();
        if has_strays {
            self.absorb(lane, self.list.drain());
        }
        has_strays
    }

    /// Takes all strays and refuses every later one.
    pub fn close(&self) -> Chain {
        self.list.close()
    }

    /// Takes a chain of strays into a lane's bins.
    pub fn absorb(&self, lane: &Lane, chain: Chain) {
        let mut taken = 0;
        for block in chain.blocks(&Raw) {
            settle_stray(&Raw, block);
            taken += Pending::word(1, lane.absorb(block).stride_bytes());
        }
        self.pending.take_word(taken);
    }
}

/// Blocks and bytes in one word: a count, and below it units of bytes.
pub struct Pending(AtomicU64);

const COUNT_SHIFT: u32 = 32;
/// Every stride is a multiple of it, so that 32 bits count 64 GiB.
const UNIT_BYTES: usize = 16;

impl Pending {
    const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    #[inline]
    fn open(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    fn word(blocks: usize, bytes: usize) -> u64 {
        (blocks as u64) << COUNT_SHIFT | (bytes / UNIT_BYTES) as u64
    }

    /// So many blocks leave the bins.
    pub fn add(&self, blocks: usize, bytes: usize) {
        self.0.fetch_add(Self::word(blocks, bytes), Ordering::Relaxed);
    }

    /// So many blocks are in bins again.
    pub fn take(&self, blocks: usize, bytes: usize) {
        self.take_word(Self::word(blocks, bytes));
    }

    fn take_word(&self, word: u64) {
        self.0.fetch_sub(word, Ordering::Relaxed);
    }

    /// Blocks and their bytes just now.
    pub fn figures(&self) -> (isize, isize) {
        let word = self.0.load(Ordering::Relaxed);
        let units = word & ((1 << COUNT_SHIFT) - 1);
        ((word >> COUNT_SHIFT) as isize, units as isize * UNIT_BYTES as isize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_and_bytes_share_a_word() {
        let pending = Pending::new();
        for class in Class::all() {
            pending.add(1, class.stride_bytes());
            assert_eq!(pending.figures(), (1, class.stride_bytes() as isize), "every stride fits");
            pending.take(1, class.stride_bytes());
        }
        pending.add(3, 96);
        pending.add(2, 64);
        pending.take(3, 96);
        assert_eq!(pending.figures(), (2, 64));
    }
}
