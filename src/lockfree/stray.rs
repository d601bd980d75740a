//! The stray list: blocks of a request on their way back from outside its lanes.
//!
//! Many push, one takes all by a swap. Its word is `generation : 20 | first : 44`: the low bits of
//! the request's generation, and the first block in sixteenths of bytes, `EMPTY` or `CLOSED`. Zero is
//! closed, so that a wiped stub takes no block.
//!
//! - **S1** After its compare-and-swap succeeds a pusher touches nothing of the request.
//! - **S2** A push succeeds only while the request that the block names is open. (A pusher that
//!   sleeps through exactly 2^20 requests of one stub would not be noticed.)
//! - **S3** A swap sees all that every pusher whose block it takes did before.

use crate::base::sync::{AtomicU64, Ordering};
use crate::lockfree::header::{Block, Memory, NONE, linked};

const FIRST_BITS: u32 = 44;
const FIRST_MASK: u64 = (1 << FIRST_BITS) - 1;
const UNIT_SHIFT: u32 = 4;

const CLOSED: u64 = 0;
/// No block, but one may come: payloads are far above it.
const EMPTY: u64 = 1;

const _: () = assert!(FIRST_BITS + UNIT_SHIFT == 48, "payloads are 16-byte aligned and below 2^48");

/// The first block of a list in this state.
const fn first_of(word: u64) -> Block {
    let first = word & FIRST_MASK;
    if first <= EMPTY { NONE } else { (first << UNIT_SHIFT) as Block }
}

const fn word_of(generation: u32, first: u64) -> u64 {
    (generation as u64) << FIRST_BITS | first
}

/// Why a push was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// The request is being closed, or is over, and the stub has no other one yet.
    Closed,
    /// The stub has another request.
    OtherRequest,
}

/// Blocks taken off a list, linked through their payloads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Chain {
    first: Block,
}

impl Chain {
    /// The blocks from this one on.
    pub const fn from(first: Block) -> Self {
        Self { first }
    }

    /// Returns whether there is no block.
    #[inline]
    pub const fn is_empty(&self) -> bool {
        self.first == NONE
    }

    /// The blocks, which the caller may overwrite.
    pub fn blocks<'m, M: Memory>(&self, memory: &'m M) -> impl Iterator<Item = Block> + use<'m, M> {
        linked(memory, self.first)
    }
}

/// The list. Zero: of a stub that has had no request yet, or was wiped; it is closed.
pub struct StrayList(pub AtomicU64);

impl StrayList {
    /// Opens the list for a new request. The stub is the caller's alone.
    #[inline]
    pub fn open(&self, generation: u32) {
        self.0.store(word_of(generation, EMPTY), Ordering::Release);
    }

    /// Why a push would be refused now; `None`: it would not. Whoever sees another request here
    /// also sees all that closing the one before did.
    #[inline]
    pub fn look(&self, generation: u32) -> Option<Refusal> {
        refusal(self.0.load(Ordering::Acquire), generation)
    }

    /// Pushes a block of the request with this generation.
    pub fn push<M: Memory>(
        &self,
        memory: &M,
        generation: u32,
        block: Block,
    ) -> Result<(), Refusal> {
        let mut seen = self.0.load(Ordering::Relaxed);
        loop {
            if let Some(refusal) = refusal(seen, generation) {
                return Err(refusal);
            }
            memory.set_link(block, first_of(seen));
            match self.0.compare_exchange_weak(
                seen,
                word_of(generation, block as u64 >> UNIT_SHIFT),
                Ordering::Release,
                Ordering::Relaxed,
            ) {
                Ok(_) => return Ok(()),
                Err(now) => seen = now,
            }
        }
    }

    /// Whether a drain would find nothing now. Only for threads inside the request.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.0.load(Ordering::Relaxed) & FIRST_MASK <= EMPTY
    }

    /// Takes all blocks; the list stays open. Only for threads inside the request, so it is open.
    pub fn drain(&self, generation: u32) -> Chain {
        chain(self.0.swap(word_of(generation, EMPTY), Ordering::Acquire))
    }

    /// Takes all blocks and refuses every later one.
    pub fn close(&self, generation: u32) -> Chain {
        chain(self.0.swap(word_of(generation, CLOSED), Ordering::Acquire))
    }
}

fn chain(word: u64) -> Chain {
    Chain { first: first_of(word) }
}

fn refusal(word: u64, generation: u32) -> Option<Refusal> {
    if word & !FIRST_MASK != word_of(generation, 0) {
        Some(Refusal::OtherRequest)
    } else if word & FIRST_MASK == CLOSED {
        Some(Refusal::Closed)
    } else {
        None
    }
}
