//! The stray list: blocks of a request on their way back from outside its lanes.
//!
//! Compiled by `loom-tests`. Many threads push; one takes all by a swap. The word is either
//! `CLOSED` or the first block.
//!
//! - **S1** After its compare-and-swap succeeds, a pusher touches nothing of the request.
//! - **S2** A pusher that finds the list closed leaves its block's `LIVE` set: the closer counts
//!   it, and the pusher takes it off the span's count.
//! - **S3** A swap sees everything that every pusher whose block it takes did before.

use crate::base::sync::{AtomicU64, Ordering, const_fn};
use crate::lockfree::header::{Block, Memory, NONE};

const EMPTY: u64 = NONE as u64;
const CLOSED: u64 = u64::MAX;

/// The request has been closed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Closed;

/// Blocks taken off a list, linked through their payloads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Chain {
    first: Block,
}

impl Chain {
    /// Returns the blocks. Each is read before it is handed out, so the caller may overwrite it.
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

impl StrayList {
    const_fn! {
        /// The list of a control block that has no request yet.
        pub const fn new() -> Self {
            Self(AtomicU64::new(CLOSED))
        }
    }

    /// Opens the list for a new request, which no other thread knows yet.
    #[inline]
    pub fn open(&self) {
        self.0.store(EMPTY, Ordering::Relaxed);
    }

    /// Pushes blocks that are linked from `first` to `last`. After success the caller must not
    /// touch the request (S1).
    pub fn push<M: Memory>(&self, memory: &M, first: Block, last: Block) -> Result<(), Closed> {
        let mut seen = self.0.load(Ordering::Relaxed);
        loop {
            if seen == CLOSED {
                return Err(Closed);
            }
            memory.set_link(last, seen as Block);
            match self.0.compare_exchange_weak(
                seen,
                first as u64,
                Ordering::Release,
                Ordering::Relaxed,
            ) {
                Ok(_) => return Ok(()),
                Err(now) => seen = now,
            }
        }
    }

    /// Returns whether a drain would find nothing now.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.0.load(Ordering::Relaxed) == EMPTY
    }

    /// Takes all blocks; the list stays open. Only called inside the request, so it is open.
    pub fn drain(&self) -> Chain {
        Chain { first: self.0.swap(EMPTY, Ordering::Acquire) as Block }
    }

    /// Takes all blocks and refuses every later one.
    pub fn close(&self) -> Chain {
        Chain { first: self.0.swap(CLOSED, Ordering::Acquire) as Block }
    }
}
