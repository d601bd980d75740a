//! Which chunks of a group exist, and the steps by which one comes and goes.
//!
//! Compiled by `loom-tests`.
//!
//! - **B7** A slot is one chunk's from its claim until that chunk is unmapped; whoever claims it
//!   next sees all that was done to it.
//! - **B8** A chunk is described and registered before a page of it is free, and forgotten before
//!   it is unmapped (X3). Who gives it back has claimed every page.
//! - **B9** How far a chunk is mapped is changed by the thread that has claimed its reach, and who
//!   gives the chunk back has claimed that for good. Until the next chunk is in its slot, nobody
//!   else gets it.

use crate::base::sync::{AtomicU32, AtomicU64, Ordering};

/// How far a chunk is mapped, in pages from its base on. Zero: nothing is.
pub struct Reach(pub AtomicU32);

/// A thread is changing the reach.
const CLAIMED: u32 = 1 << 31;

impl Reach {
    /// Returns how many pages are mapped, or were a moment ago.
    pub fn pages(&self) -> usize {
        (self.0.load(Ordering::Relaxed) & !CLAIMED) as usize
    }

    /// Sets up a chunk of which all pages are the caller's.
    pub fn open(&self, pages: usize) {
        self.0.store(pages as u32, Ordering::Release);
    }

    /// Claims the reach, and returns it. `None`: another thread has it, or there is no chunk.
    pub fn claim(&self) -> Option<usize> {
        let pages = self.0.load(Ordering::Relaxed);
        let is_open = pages != 0 && pages & CLAIMED == 0;
        let claim = || {
            let claimed = pages | CLAIMED;
            self.0.compare_exchange(pages, claimed, Ordering::Acquire, Ordering::Relaxed).is_ok()
        };
        (is_open && claim()).then_some(pages as usize)
    }

    /// Ends a claim.
    pub fn settle(&self, pages: usize) {
        self.0.store(pages as u32, Ordering::Release);
    }
}

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
    /// Returns how far the chunk of a slot is mapped.
    fn reach(&self, slot: u32) -> &Reach;
    /// Makes a claimed slot describe the chunk at `base`; all of its pages are the caller's.
    fn place(&self, slot: u32, base: usize);
    /// Registers the chunk of a slot.
    fn register(&self, slot: u32);
    /// Forgets the chunk at `base`.
    fn forget(&self, base: usize);
    /// Gives the chunk at `base`, of so many pages, back to the system.
    fn unmap(&self, base: usize, pages: usize);
    /// Maps `more` pages behind the first `pages` of the chunk at `base`. `false`: something is
    /// there, or the system has no more.
    fn map_behind(&self, base: usize, pages: usize, more: usize) -> bool;
    /// Claims these first pages, which are all that are mapped, or nothing.
    fn take_all(&self, slot: u32, pages: usize) -> bool;
    /// Gives pages.
    fn give(&self, slot: u32, first: usize, count: usize);
    /// Brings the hints of a slot up to date.
    fn publish(&self, slot: u32);
}

/// Opens a chunk at `base`, whose first `pages` were just mapped, in a slot that the caller has
/// claimed.
pub fn open<C: Chunks>(chunks: &C, slot: u32, base: usize, pages: usize) {
    chunks.place(slot, base);
    chunks.register(slot);
    chunks.reach(slot).open(pages);
    chunks.give(slot, 0, pages);
    chunks.publish(slot);
}

/// Makes a chunk longer; `more` says by how many pages, for how many it has. Returns how many it
/// has then; `None`: no more than before.
pub fn extend<C: Chunks>(
    chunks: &C,
    slot: u32,
    more: impl FnOnce(usize) -> Option<usize>,
) -> Option<usize> {
    let reach = chunks.reach(slot);
    let pages = reach.claim()?;
    // Only now: the chunk stays while its reach is claimed.
    let base = chunks.base(slot);
    let Some(more) = more(pages).filter(|&more| chunks.map_behind(base, pages, more)) else {
        reach.settle(pages);
        return None;
    };
    reach.settle(pages + more);
    chunks.give(slot, pages, more);
    chunks.publish(slot);
    Some(pages + more)
}

/// Gives a chunk back to the system if all of it is free. Otherwise the caller publishes: a claim
/// may have been rolled back (B3).
pub fn release<C: Chunks>(chunks: &C, slots: &ChunkSlots, slot: u32) -> bool {
    let Some(pages) = chunks.reach(slot).claim() else { return false };
    if !chunks.take_all(slot, pages) {
        chunks.reach(slot).settle(pages);
        return false;
    }
    // Only now: it may have been released and opened anew before the claim.
    let base = chunks.base(slot);
    chunks.publish(slot);
    chunks.forget(base);
    chunks.unmap(base, pages);
    slots.give(slot);
    true
}
