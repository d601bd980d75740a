//! A header that names a request which is over, while the block is live: it was adopted meanwhile,
//! or something is wrong.
//!
//! Compiled by `loom-tests`.
//!
//! - **Y3** Who has seen that a request is over sees the headers that its close has left.

use crate::base::sync::{Ordering, fence};
use crate::lockfree::header::{Block, Header, Memory};

/// Returns whether the header that was `judged` is another one by now. The caller has seen, since
/// it read that one, that the request it names is over.
pub fn has_changed<M: Memory>(memory: &M, block: Block, judged: Header) -> bool {
    fence(Ordering::Acquire);
    memory.header(block).load(Ordering::Relaxed) != judged.0
}
