//! Which chunks of a group exist, and the steps by which one comes and goes.
//!
//! Compiled by `loom-tests`.
//!
//! - **B7** A slot is one chunk's from its claim until that chunk is unmapped; whoever claims it
//!   next sees all that was done to it.
//! - **B8** A chunk is described and registered before a page of it is free, and forgotten before
//!   it is unmapped (X3). Who gives it back has claimed every page.

use crate::base::sync::{AtomicU64, Ordering};

/// A bit for every slot; set: the chunk exists, or is being opened or released.
pub struct ChunkSlots(pub AtomicU64);

impl ChunkSlots {
    /// Returns which are claimed.
    pub fn claimed(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Claims a slot. `None`: all are claimed, or another thread has just claimed that one.
    pub fn claim(&self) -> Option<u32> {
        let slot = self.claimed().trailing_ones();
        let bit = 1u64.checked_shl(slot)?;
        (self.0.fetch_or(bit, Ordering::Acquire) & bit == 0).then_some(slot)
    }

    fn give(&self, slot: u32) {
        self.0.fetch_and(!(1 << slot), Ordering::Release);
    }
}

/// The chunks of a group, the registry, and the system.
pub trait Chunks {
    /// Returns where a chunk is; 0: nowhere yet.
    fn base(&self, slot: u32) -> usize;
    /// Makes a claimed slot describe the chunk at `base`; all of its pages are the caller's.
    fn place(&self, slot: u32, base: usize);
    /// Registers the chunk of a slot.
    fn register(&self, slot: u32);
    /// Forgets the chunk at `base`.
    fn forget(&self, base: usize);
    /// Gives the chunk at `base` back to the system.
    fn unmap(&self, base: usize);
    /// Claims every page, or nothing.
    fn take_all(&self, slot: u32) -> bool;
    /// Gives every page.
    fn give_all(&self, slot: u32);
    /// Brings the hints of a slot up to date.
    fn publish(&self, slot: u32);
}

/// Opens a chunk at `base`, which was just mapped, in a slot that the caller has claimed.
pub fn open<C: Chunks>(chunks: &C, slot: u32, base: usize) {
    chunks.place(slot, base);
    chunks.register(slot);
    chunks.give_all(slot);
    chunks.publish(slot);
}

/// Gives a chunk back to the system if all of it is free. Otherwise the caller publishes: a claim
/// may have been rolled back (B3).
pub fn release<C: Chunks>(chunks: &C, slots: &ChunkSlots, slot: u32) -> bool {
    if chunks.base(slot) == 0 || !chunks.take_all(slot) {
        return false;
    }
    // Only now: it may have been released and opened anew before the claim.
    let base = chunks.base(slot);
    chunks.publish(slot);
    chunks.forget(base);
    chunks.unmap(base);
    slots.give(slot);
    true
}
