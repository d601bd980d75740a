//! A list that many push to and one takes all of: what lanes hand on to one another, and what is
//! called before a request's memory goes. It is never closed.
//!
//! - **K4** After its compare-and-swap succeeds a pusher touches nothing of what it pushed.
//! - **K5** A drain sees all that every pusher whose item it takes did before.

use crate::base::sync::{AtomicU64, Ordering, const_fn};
use crate::lockfree::header::{Block, Memory, NONE};
use crate::lockfree::stray::Chain;

/// The list.
pub struct Stack(AtomicU64);

impl Stack {
    const_fn! {
        /// An empty one. Zeros are one, too.
        pub const fn new() -> Self {
            Self(AtomicU64::new(NONE as u64))
        }
    }

    /// Pushes items that are linked from `first` to `last`.
    pub fn push<M: Memory>(&self, memory: &M, first: Block, last: Block) {
        let mut seen = self.0.load(Ordering::Relaxed);
        loop {
            memory.set_link(last, seen as Block);
            match self.0.compare_exchange_weak(
                seen,
                first as u64,
                Ordering::Release,
                Ordering::Relaxed,
            ) {
                Ok(_) => return,
                Err(now) => seen = now,
            }
        }
    }

    /// Whether a drain would find nothing now.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.0.load(Ordering::Relaxed) == NONE as u64
    }

    /// Takes all items, the last pushed first.
    pub fn drain(&self) -> Chain {
        Chain::from(self.0.swap(NONE as u64, Ordering::Acquire) as Block)
    }
}
