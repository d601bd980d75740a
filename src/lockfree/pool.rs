//! A pool of objects that are never unmapped (M1): a lock-free stack.
//!
//! Compiled by `loom-tests`. A tag beside the address changes with every successful swap, so that a
//! taker that slept through a take and a put of the same object fails instead of installing a stale
//! successor.
//!
//! - **P1** An object is on the stack or has one owner.
//! - **P2** A put releases what its owner did to the object; the take acquires it.

use crate::base::sync::{AtomicU64, Ordering, const_fn};

/// The least alignment of an object.
pub const ALIGN: usize = 64;

const ADDRESS_BITS: u32 = 42;
const ADDRESS_SHIFT: u32 = 6;
const ADDRESS_MASK: u64 = (1 << ADDRESS_BITS) - 1;
const ONE_SWAP: u64 = 1 << ADDRESS_BITS;

/// How the stack reaches an object's successor word. It may be read while another thread owns the
/// object, so it is atomic.
pub trait Successors {
    /// Returns the successor word of the object at `address`.
    fn successor(&self, address: usize) -> &AtomicU64;
}

/// The stack.
pub struct Pool(AtomicU64);

const fn address_of(word: u64) -> usize {
    ((word & ADDRESS_MASK) << ADDRESS_SHIFT) as usize
}

const fn word_of(address: usize, before: u64) -> u64 {
    (before & !ADDRESS_MASK).wrapping_add(ONE_SWAP) | (address as u64 >> ADDRESS_SHIFT)
}

impl Pool {
    const_fn! {
        /// An empty pool.
        pub const fn new() -> Self {
            Self(AtomicU64::new(0))
        }
    }

    /// Puts an object back.
    pub fn put<M: Successors>(&self, memory: &M, address: usize) {
        let mut seen = self.0.load(Ordering::Relaxed);
        loop {
            memory.successor(address).store(address_of(seen) as u64, Ordering::Relaxed);
            match self.0.compare_exchange_weak(
                seen,
                word_of(address, seen),
                Ordering::Release,
                Ordering::Relaxed,
            ) {
                Ok(_) => return,
                Err(now) => seen = now,
            }
        }
    }

    /// Takes the object that was put last.
    pub fn take<M: Successors>(&self, memory: &M) -> Option<usize> {
        let mut seen = self.0.load(Ordering::Acquire);
        loop {
            let address = address_of(seen);
            if address == 0 {
                return None;
            }
            let next = memory.successor(address).load(Ordering::Relaxed) as usize;
            match self.0.compare_exchange_weak(
                seen,
                word_of(next, seen),
                Ordering::Relaxed,
                Ordering::Acquire,
            ) {
                Ok(_) => return Some(address),
                Err(now) => seen = now,
            }
        }
    }
}
