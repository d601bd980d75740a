//! Memory for descriptors: taken from the operating system in blocks, zeroed, never given back.
//!
//! - **M1** Memory taken from here is never unmapped and only ever holds the type it was taken for,
//!   so a stale pointer to a descriptor, control block, lane or thread can still be read. What
//!   `pages/slots` took may be wiped while it is nobody's: it reads as zero, or as something made
//!   anew.

use crate::base::os;
use crate::base::sync::{AtomicUsize, Lock, Ordering, step};
use crate::lockfree::pool::ALIGN;

/// Bytes that are mapped at once, or a multiple of this.
const STEP_BYTES: usize = 256 * 1024;

struct Rest {
    at: usize,
    end: usize,
}

impl Rest {
    fn bytes(&self) -> usize {
        self.end.saturating_sub(self.at)
    }
}

/// A bump allocator that never frees.
pub struct DescriptorMemory {
    rest: Lock<Rest>,
    mapped_bytes: AtomicUsize,
    taken_bytes: AtomicUsize,
}

impl DescriptorMemory {
    /// Descriptor memory of which nothing is mapped yet.
    pub const fn new() -> Self {
        Self {
            rest: Lock::new(Rest { at: 0, end: 0 }),
            mapped_bytes: AtomicUsize::new(0),
            taken_bytes: AtomicUsize::new(0),
        }
    }

    /// Takes zeroed memory for the life of the process (M1), aligned as pooled objects are. `None`:
    /// the system has no more.
    pub fn take(&self, bytes: usize) -> Option<usize> {
        let bytes = bytes.next_multiple_of(ALIGN);
        let address = self.cut(bytes).or_else(|| self.map(bytes))?;
        self.taken_bytes.fetch_add(bytes, Ordering::Relaxed);
        Some(address)
    }

    /// Maps memory of which `bytes` are the caller's, from the address returned.
    fn map(&self, bytes: usize) -> Option<usize> {
        let fresh_bytes = bytes.next_multiple_of(STEP_BYTES);
        let fresh = os::map(fresh_bytes, 0)?;
        self.mapped_bytes.fetch_add(fresh_bytes, Ordering::Relaxed);
        let mut rest = self.rest.lock();
        // Keep the longer rest; what is dropped of the other was never touched.
        if fresh_bytes - bytes > rest.bytes() {
            // Empty meanwhile: a process forked now must not see half of each.
            rest.end = 0;
            step();
            rest.at = fresh + bytes;
            step();
            rest.end = fresh + fresh_bytes;
            step();
        }
        Some(fresh)
    }

    fn cut(&self, bytes: usize) -> Option<usize> {
        let mut rest = self.rest.lock();
        if rest.bytes() < bytes {
            return None;
        }
        let address = rest.at;
        step();
        rest.at += bytes;
        step();
        Some(address)
    }

    /// Makes it whole in a process that was just forked.
    ///
    /// # Safety
    /// As for `Lock::recover`.
    pub unsafe fn recover(&self) {
        // SAFETY: the caller's contract. What is written under the lock is whole at every step.
        unsafe { self.rest.recover(|_, _| ()) };
    }

    /// Returns the bytes that nobody has taken, and so never touched; in whole steps, so that one
    /// more descriptor does not change the figure.
    pub fn untaken_bytes(&self) -> usize {
        let untaken = self.mapped_bytes().saturating_sub(self.taken_bytes.load(Ordering::Relaxed));
        untaken / STEP_BYTES * STEP_BYTES
    }

    /// Returns the bytes mapped so far.
    pub fn mapped_bytes(&self) -> usize {
        self.mapped_bytes.load(Ordering::Relaxed)
    }
}
