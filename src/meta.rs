//! Memory for descriptors: taken from the operating system in blocks, zeroed, never given back, so
//! that what lives in it is type-stable.

use crate::os;
use crate::pool::ALIGN;
use crate::sync::{AtomicUsize, Lock, Ordering};

/// How much is mapped at once.
const STEP_BYTES: usize = 256 * 1024;

struct Rest {
    at: usize,
    end: usize,
}

/// A bump allocator that never frees.
pub struct Meta {
    rest: Lock<Rest>,
    mapped_bytes: AtomicUsize,
}

impl Meta {
    /// Nothing is mapped yet.
    pub const fn new() -> Self {
        Self { rest: Lock::new(Rest { at: 0, end: 0 }), mapped_bytes: AtomicUsize::new(0) }
    }

    /// Zeroed memory for ever, aligned as pooled objects are. `None`: the system has no more.
    pub fn take(&self, bytes: usize) -> Option<usize> {
        let bytes = bytes.next_multiple_of(ALIGN);
        if let Some(address) = self.cut(bytes) {
            return Some(address);
        }
        let step = bytes.next_multiple_of(STEP_BYTES);
        let fresh = os::map(step, 0)?;
        self.mapped_bytes.fetch_add(step, Ordering::Relaxed);
        let mut rest = self.rest.lock();
        // Keep the longer rest; what is dropped of the other was never touched.
        if step - bytes > rest.end - rest.at {
            *rest = Rest { at: fresh + bytes, end: fresh + step };
        }
        Some(fresh)
    }

    fn cut(&self, bytes: usize) -> Option<usize> {
        let mut rest = self.rest.lock();
        if rest.end - rest.at < bytes {
            return None;
        }
        let address = rest.at;
        rest.at += bytes;
        Some(address)
    }

    /// The lock, for the time around a `fork`.
    pub fn fork_lock(&self) -> &Lock<impl Sized + use<>> {
        &self.rest
    }

    /// Bytes mapped so far.
    pub fn mapped_bytes(&self) -> usize {
        self.mapped_bytes.load(Ordering::Relaxed)
    }
}
