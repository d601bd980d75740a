//! The process's store of magazines of one class.
//!
//! Compiled by `loom-tests`. A ring of slots under a lock that is held for moves of one slot only:
//! magazines go in and out at the top, where they are warm, and are reaped from the bottom.
//!
//! - **D1** `bottom` and `count` describe the filled slots; a magazine is in one slot or outside.
//! - **D2** `low` is the least `count` since the last `age`: so many were not needed meanwhile.

use crate::block::Block;
use crate::sync::{AtomicU32, Lock, Ordering, const_fn};

/// A list of free blocks of one class, moved as one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Magazine {
    /// The first block, linked to the others through their payloads.
    pub head: Block,
    /// How many there are; 0 only when there is no magazine.
    pub count: u32,
}

impl Magazine {
    /// No magazine.
    pub const EMPTY: Self = Self { head: 0, count: 0 };

    /// Whether there is none.
    #[inline]
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }
}

/// The memory of a depot's slots. All calls come under the depot's lock.
pub trait Slots {
    /// How many slots there are.
    fn capacity(&self) -> u32;
    /// The magazine in a slot below `capacity`.
    fn get(&self, index: u32) -> Magazine;
    /// Puts a magazine into a slot below `capacity`.
    fn set(&mut self, index: u32, magazine: Magazine);
}

struct Ring<S> {
    slots: S,
    bottom: u32,
    count: u32,
    low: u32,
}

impl<S: Slots> Ring<S> {
    fn slot(&self, position: u32) -> u32 {
        (self.bottom + position) % self.slots.capacity()
    }
}

/// The store.
pub struct Depot<S> {
    ring: Lock<Ring<S>>,
    /// `count`, to be looked at without the lock: a hint.
    hint: AtomicU32,
}

impl<S> Depot<S> {
    const_fn! {
        /// An empty store with these slots.
        pub const fn new(slots: S) -> Self {
            Self {
                ring: Lock::new(Ring { slots, bottom: 0, count: 0, low: 0 }),
                hint: AtomicU32::new(0),
            }
        }
    }
}

impl<S: Slots> Depot<S> {
    /// Replaces the slots of a store that has never held anything.
    pub fn provide(&self, slots: S) {
        self.ring.lock().slots = slots;
    }

    /// Takes the lock for the time around a `fork`.
    pub fn hold_for_fork(&self) {
        self.ring.hold_for_fork();
    }

    /// Releases the lock, in the parent and in the child.
    ///
    /// # Safety
    /// This thread, or the one it is a copy of, called `hold_for_fork`.
    pub unsafe fn release_after_fork(&self) {
        // SAFETY: the caller's contract.
        unsafe { self.ring.release_after_fork() };
    }

    /// Puts a magazine on top; gives it back when every slot is filled.
    pub fn put(&self, magazine: Magazine) -> Result<(), Magazine> {
        let mut ring = self.ring.lock();
        if ring.count >= ring.slots.capacity() {
            return Err(magazine);
        }
        let slot = ring.slot(ring.count);
        ring.slots.set(slot, magazine);
        ring.count += 1;
        self.hint.store(ring.count, Ordering::Relaxed);
        Ok(())
    }

    /// Takes the magazine on top: the warmest.
    pub fn take(&self) -> Option<Magazine> {
        self.take_where(|ring| ring.slot(ring.count))
    }

    /// Takes the magazine at the bottom: the coldest.
    pub fn take_coldest(&self) -> Option<Magazine> {
        self.take_where(|ring| {
            let next = ring.slot(1);
            core::mem::replace(&mut ring.bottom, next)
        })
    }

    /// Takes the magazine of the slot that `choose` picks in the ring, which counts it no more.
    fn take_where(&self, choose: impl FnOnce(&mut Ring<S>) -> u32) -> Option<Magazine> {
        if self.magazine_count() == 0 {
            return None;
        }
        let mut ring = self.ring.lock();
        ring.count = ring.count.checked_sub(1)?;
        ring.low = ring.low.min(ring.count);
        self.hint.store(ring.count, Ordering::Relaxed);
        let slot = choose(&mut ring);
        Some(ring.slots.get(slot))
    }

    /// How many magazines nobody needed since the last call.
    pub fn age(&self) -> u32 {
        if self.magazine_count() == 0 {
            return 0;
        }
        let mut ring = self.ring.lock();
        let idle = ring.low;
        ring.low = ring.count;
        idle
    }

    /// How many magazines there are just now.
    #[inline]
    pub fn magazine_count(&self) -> u32 {
        self.hint.load(Ordering::Relaxed)
    }

    /// How many blocks there are. Walks every slot under the lock: for statistics.
    pub fn block_count(&self) -> u64 {
        let ring = self.ring.lock();
        (0..ring.count).map(|position| u64::from(ring.slots.get(ring.slot(position)).count)).sum()
    }
}
