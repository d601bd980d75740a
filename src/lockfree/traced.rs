//! The bit of a header that tells of a record behind the block: where it was allocated.
//!
//! Compiled by `loom-tests`.
//!
//! - **Y2** The record is written before the header tells of it. Others that look at a request's
//!   blocks read it from then on.

use crate::base::sync::{AtomicU64, Ordering, fence};
use crate::lockfree::header::{Header, TRACED};

/// Makes the header of a live block of the caller's tell of its record.
pub fn tell(header: &AtomicU64) {
    let traced = Header(header.load(Ordering::Relaxed)).with(TRACED);
    header.store(traced.0, Ordering::Release);
}

/// Returns whether a header that was read tells of a record, which can be read then.
pub fn is_told(seen: Header) -> bool {
    let is_told = seen.has(TRACED);
    if is_told {
        fence(Ordering::Acquire);
    }
    is_told
}
