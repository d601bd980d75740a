//! A table of two levels: number -> entry. It never faults, for any number.
//!
//! Compiled by `loom-tests`.
//!
//! - **X1** Whoever finds an entry sees what its writer did before.
//! - **X2** An entry is written by whoever has its number, alone: the addresses it stands for are
//!   mapped, and the writer's.

use crate::base::sync::{AtomicUsize, Ordering};
use crate::lockfree::once::Once;
use core::ops::RangeInclusive;

/// Some entries. All zero: there are none.
pub struct Leaf<const LEAF: usize> {
    /// The entries; 0: there is none.
    pub entries: [AtomicUsize; LEAF],
}

/// The table.
pub struct Table<const ROOT: usize, const LEAF: usize> {
    /// The leaves, made as they are needed.
    pub leaves: [Once<Leaf<LEAF>>; ROOT],
}

impl<const ROOT: usize, const LEAF: usize> Table<ROOT, LEAF> {
    /// Returns the entry with this number; 0: there is none.
    #[inline]
    pub fn find(&self, number: usize) -> usize {
        self.place(number).map_or(0, |place| place.load(Ordering::Acquire))
    }

    fn place(&self, number: usize) -> Option<&AtomicUsize> {
        Some(&self.leaves.get(number / LEAF)?.get()?.entries[number % LEAF])
    }

    /// Returns whether there is room for these entries.
    pub fn is_prepared(&self, numbers: RangeInclusive<usize>) -> bool {
        leaves::<LEAF>(numbers).all(|index| self.leaves.get(index).is_some_and(Once::is_made))
    }

    /// Makes room for these entries, for the life of the process. `false`: `fresh` has no more, or
    /// the numbers are too large.
    ///
    /// # Safety
    /// `fresh` returns leaves without entries, as `Once::make` asks for.
    pub unsafe fn prepare(
        &self,
        numbers: RangeInclusive<usize>,
        fresh: impl Fn() -> Option<*mut Leaf<LEAF>>,
    ) -> bool {
        leaves::<LEAF>(numbers).all(|index| {
            // SAFETY: the caller's contract.
            self.leaves.get(index).is_some_and(|leaf| unsafe { leaf.make(&fresh) })
        })
    }

    /// Writes entries that have room; 0: there are none any more.
    pub fn set(&self, numbers: RangeInclusive<usize>, entry: usize) {
        numbers
            .filter_map(|number| self.place(number))
            .for_each(|place| place.store(entry, Ordering::Release));
    }

    /// Returns every entry there is: (number, entry).
    pub fn all(&self) -> impl Iterator<Item = (usize, usize)> {
        (0..ROOT)
            .filter(|&index| self.leaves[index].is_made())
            .flat_map(|index| index * LEAF..(index + 1) * LEAF)
            .map(|number| (number, self.find(number)))
            .filter(|&(_, entry)| entry != 0)
    }
}

/// Returns the indices of the leaves with these entries.
fn leaves<const LEAF: usize>(numbers: RangeInclusive<usize>) -> RangeInclusive<usize> {
    numbers.start() / LEAF..=numbers.end() / LEAF
}
