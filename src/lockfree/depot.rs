//! The process's store of magazines of one class.
//!
//! Compiled by `loom-tests`. A ring of slots under a lock that is held for moves of one slot only:
//! magazines go in and out at the top, where they are most recent, and are reaped from the bottom.
//!
//! - **D1** `filled` says which slots are filled; a magazine is in one slot or outside. It changes
//!   by one store, so that a process forked at any moment has each magazine once.
//! - **D2** `low` is the least `count` since the last `age`: this many were not needed meanwhile. But
//!   while many magazines are refused, what comes is still in the processor's caches, and what is
//!   here is not: it stays, because the former is cheaper to reap.

use crate::base::sync::{AtomicU32, Lock, Ordering, const_fn, step};
use crate::lockfree::header::Block;

/// A list of free blocks of one class, moved as one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Magazine {
    /// The first block, linked to the others through their payloads.
    pub head: Block,
    /// How many blocks there are; 0 only if there is no magazine.
    pub count: u32,
}

impl Magazine {
    /// No magazine.
    pub const EMPTY: Self = Self { head: 0, count: 0 };

    /// Returns whether there is no magazine.
    #[inline]
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }
}

/// The part of the slots that is many magazines refused between two calls of `age`.
const MANY_DIVISOR: u32 = 4;

/// The memory of a depot's slots. Every call is made under the depot's lock.
pub trait Slots {
    /// Returns how many slots there are.
    fn capacity(&self) -> u32;
    /// Returns the magazine in a slot below `capacity`.
    fn get(&self, index: u32) -> Magazine;
    /// Puts a magazine into a slot below `capacity`.
    fn set(&mut self, index: u32, magazine: Magazine);
}

struct Ring<S> {
    slots: S,
    filled: Filled,
    low: u32,
    /// How many magazines were refused since the last `age`.
    refused_count: u32,
}

/// Which slots are filled, in one word: the first in the upper half, how many in the lower.
#[derive(Clone, Copy)]
struct Filled(u64);

impl Filled {
    const NONE: Self = Self(0);

    fn new(bottom: u32, count: u32) -> Self {
        Self(u64::from(bottom) << u32::BITS | u64::from(count))
    }

    fn bottom(self) -> u32 {
        (self.0 >> u32::BITS) as u32
    }

    fn count(self) -> u32 {
        self.0 as u32
    }
}

impl<S: Slots> Ring<S> {
    fn slot(&self, position: u32) -> u32 {
        (self.filled.bottom() + position) % self.slots.capacity()
    }

    fn fill(&mut self, filled: Filled) {
        step();
        self.filled = filled;
        step();
    }
}

/// The depot.
pub struct Depot<S> {
    ring: Lock<Ring<S>>,
    /// `count`, readable without the lock: a hint.
    hint: AtomicU32,
}

impl<S> Depot<S> {
    const_fn! {
        /// An empty depot with these slots.
        pub const fn new(slots: S) -> Self {
            Self {
                ring: Lock::new(Ring { slots, filled: Filled::NONE, low: 0, refused_count: 0 }),
                hint: AtomicU32::new(0),
            }
        }
    }
}

impl<S: Slots> Depot<S> {
    /// Replaces the slots of a depot that has never had a magazine.
    pub fn provide(&self, slots: S) {
        self.ring.lock().slots = slots;
    }

    /// Makes the depot whole in a process that was just forked.
    ///
    /// # Safety
    /// As for `Lock::recover`.
    pub unsafe fn recover(&self) {
        // SAFETY: the caller's contract. What is written under the lock is whole at every step
        // (D1).
        unsafe {
            self.ring.recover(|ring, _| {
                let count = ring.filled.count();
                ring.low = ring.low.min(count);
                self.hint.store(count, Ordering::Relaxed);
            });
        }
    }

    /// Puts a magazine on top, or gives it back if every slot is filled.
    pub fn put(&self, magazine: Magazine) -> Result<(), Magazine> {
        let mut ring = self.ring.lock();
        let (bottom, count) = (ring.filled.bottom(), ring.filled.count());
        if count >= ring.slots.capacity() {
            ring.refused_count = ring.refused_count.saturating_add(1);
            return Err(magazine);
        }
        let slot = ring.slot(count);
        ring.slots.set(slot, magazine);
        ring.fill(Filled::new(bottom, count + 1));
        self.hint.store(count + 1, Ordering::Relaxed);
        Ok(())
    }

    /// Takes the magazine on top: the most recent.
    pub fn take(&self) -> Option<Magazine> {
        self.take_where(|ring, left| (ring.slot(left), ring.filled.bottom()))
    }

    /// Takes the magazine at the bottom: the oldest.
    pub fn take_coldest(&self) -> Option<Magazine> {
        self.take_where(|ring, _| (ring.slot(0), ring.slot(1)))
    }

    /// Takes a magazine. Given how many stay, `choose` picks its slot, and the bottom of those that
    /// stay.
    fn take_where(&self, choose: impl FnOnce(&Ring<S>, u32) -> (u32, u32)) -> Option<Magazine> {
        if self.magazine_count() == 0 {
            return None;
        }
        let mut ring = self.ring.lock();
        let left = ring.filled.count().checked_sub(1)?;
        let (slot, bottom) = choose(&ring, left);
        ring.fill(Filled::new(bottom, left));
        ring.low = ring.low.min(left);
        self.hint.store(left, Ordering::Relaxed);
        Some(ring.slots.get(slot))
    }

    /// Returns how many magazines were not needed since the last call (D2). `None`: many were refused.
    pub fn age(&self) -> Option<u32> {
        if self.magazine_count() == 0 {
            return Some(0);
        }
        let mut ring = self.ring.lock();
        let many = ring.slots.capacity().div_ceil(MANY_DIVISOR).max(1);
        let idle = (ring.refused_count < many).then_some(ring.low);
        ring.low = ring.filled.count();
        ring.refused_count = 0;
        idle
    }

    /// Returns how many magazines there are now.
    #[inline]
    pub fn magazine_count(&self) -> u32 {
        self.hint.load(Ordering::Relaxed)
    }

    /// Shows every magazine to `visit`, under the lock. If something contradicts itself (D1, D2),
    /// returns its name and both sides. For tests.
    pub fn check(&self, visit: impl FnMut(Magazine)) -> Result<(), (&'static str, u32, u32)> {
        let ring = self.ring.lock();
        let (count, capacity) = (ring.filled.count(), ring.slots.capacity());
        if count > capacity {
            return Err(("magazines of a depot", count, capacity));
        }
        (0..count).map(|position| ring.slots.get(ring.slot(position))).for_each(visit);
        if ring.low > count {
            return Err(("idle magazines of a depot", ring.low, count));
        }
        let hint = self.hint.load(Ordering::Relaxed);
        if hint != count { Err(("hint of a depot", hint, count)) } else { Ok(()) }
    }

    /// Returns how many blocks there are. Walks every slot under the lock: for statistics.
    pub fn block_count(&self) -> u64 {
        let ring = self.ring.lock();
        (0..ring.filled.count())
            .map(|position| u64::from(ring.slots.get(ring.slot(position)).count))
            .sum()
    }
}
