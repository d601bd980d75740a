//! The stray list: blocks of a request on their way back from outside its lanes.
//!
//! Compiled by `loom-tests`. Many push, one takes all by a swap. Its word is either `CLOSED` or the
//! first block and a saturating count of the blocks.
//!
//! - **S1** After its compare-and-swap succeeds a pusher touches nothing of the request.
//! - **S2** A pusher that finds the list closed leaves its block's `LIVE` set: the closer counts it,
//!   and the pusher takes it off the span's count.
//! - **S3** A swap sees all that every pusher whose block it takes did before.

use crate::block::{Block, Memory, NONE};
use crate::sync::{AtomicU64, Ordering, const_fn};

/// Payload addresses are multiples of 16 below 2^48.
const ADDRESS_BITS: u32 = 44;
const ADDRESS_SHIFT: u32 = 4;
const ADDRESS_MASK: u64 = (1 << ADDRESS_BITS) - 1;
/// One less than what the count's bits hold: that pattern is `CLOSED`'s.
const MOST_COUNTED: u64 = (1 << (u64::BITS - ADDRESS_BITS)) - 2;

const EMPTY: u64 = 0;
const CLOSED: u64 = u64::MAX;

/// The request has been closed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Closed;

/// Blocks taken off a list, linked through their payloads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Chain {
    /// The block pushed last; `NONE`: there are none.
    pub first: Block,
    counted: u64,
}

impl Chain {
    /// How many blocks, when they were few enough for the word to count them.
    pub fn counted(&self) -> Option<u64> {
        (self.counted < MOST_COUNTED).then_some(self.counted)
    }

    /// The blocks. Each is read before it is handed out, so the caller may overwrite it.
    pub fn blocks<'m, M: Memory>(&self, memory: &'m M) -> impl Iterator<Item = Block> + use<'m, M> {
        let mut next = self.first;
        core::iter::from_fn(move || {
            (next != NONE).then(|| {
                let block = next;
                next = memory.link(block);
                block
            })
        })
    }
}

/// The list.
pub struct StrayList(AtomicU64);

const fn first_of(word: u64) -> Block {
    ((word & ADDRESS_MASK) << ADDRESS_SHIFT) as Block
}

const fn counted_in(word: u64) -> u64 {
    word >> ADDRESS_BITS
}

fn word_of(first: Block, counted: u64) -> u64 {
    (first as u64) >> ADDRESS_SHIFT | counted.min(MOST_COUNTED) << ADDRESS_BITS
}

fn chain_of(word: u64) -> Chain {
    Chain { first: first_of(word), counted: counted_in(word) }
}

impl StrayList {
    const_fn! {
        /// The list of a control block that no request has yet.
        pub const fn new() -> Self {
            Self(AtomicU64::new(CLOSED))
        }
    }

    /// Opens the list for a new request, which nobody else knows yet.
    #[inline]
    pub fn open(&self) {
        self.0.store(EMPTY, Ordering::Relaxed);
    }

    /// Pushes `count` blocks, linked from `first` to `last`.
    pub fn push<M: Memory>(
        &self,
        memory: &M,
        first: Block,
        last: Block,
        count: u64,
    ) -> Result<(), Closed> {
        let mut seen = self.0.load(Ordering::Relaxed);
        loop {
            if seen == CLOSED {
                return Err(Closed);
            }
            memory.set_link(last, first_of(seen));
            match self.0.compare_exchange_weak(
                seen,
                word_of(first, counted_in(seen) + count),
                Ordering::Release,
                Ordering::Relaxed,
            ) {
                Ok(_) => return Ok(()),
                Err(now) => seen = now,
            }
        }
    }

    /// Whether a drain would find nothing just now.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.0.load(Ordering::Relaxed) == EMPTY
    }

    /// How many blocks are on the list just now.
    pub fn counted(&self) -> u64 {
        match self.0.load(Ordering::Relaxed) {
            CLOSED => 0,
            word => counted_in(word),
        }
    }

    /// Takes all blocks; the list stays open. Only for who is inside the request, so it is open.
    pub fn drain(&self) -> Chain {
        chain_of(self.0.swap(EMPTY, Ordering::Acquire))
    }

    /// Takes all blocks and refuses every later one.
    pub fn close(&self) -> Chain {
        chain_of(self.0.swap(CLOSED, Ordering::Acquire))
    }
}
