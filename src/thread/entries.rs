//! What a thread is inside: its entries, in the order they were made.
//!
//! They may be left in any order at the same cost: live ones are linked, and the slots of dead ones
//! are reused. An entry is named by its slot and its order, a number that no other entry of the
//! thread ever has.
//!
//! - **E1** A slot either belongs to a live entry, linked in the list of all and in that of its
//!   kind, or is on the list of free slots, or has never been used.
//! - **E2** `above_inline` is the number of live entries beyond the inline slots.

use crate::blocks::bins::Bins;
use crate::request::control::Control;
use crate::request::lane::Lane;
use core::cell::Cell;
use core::ptr::{null, null_mut};

/// How many entries a thread has room for before it allocates.
const INLINE_ENTRIES: usize = 8;
/// The most entries a thread keeps room for while none is live beyond the inline slots.
const KEPT_ENTRIES: usize = 512;

/// What made an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum EntryKind {
    /// A guard.
    Guard,
    /// `begin_request`.
    Hook,
    /// `persistent`.
    Persistent,
    /// `rq_persistent_on`.
    #[cfg_attr(not(feature = "capi"), expect(dead_code, reason = "only C has it"))]
    PersistentHook,
    /// `rq_enter`.
    #[cfg_attr(not(feature = "capi"), expect(dead_code, reason = "only C has it"))]
    Reference,
}

const KIND_COUNT: usize = 5;

/// The index of an entry's slot.
type Slot = u32;

/// No slot.
const NOWHERE: Slot = Slot::MAX;

/// A record of a thread's being inside a request, or inside `persistent`.
#[derive(Clone, Copy)]
pub struct Entry {
    /// The bins that are active while this is the newest entry (T1).
    pub bins: *const Bins,
    /// The request it is in; null: none.
    pub control: *const Control,
    /// The lane of that request; null: none.
    pub lane: *const Lane,
    order: u64,
    kind: EntryKind,
    live: bool,
    /// Live: its neighbours. Free: `older` is the next free slot.
    older: Slot,
    newer: Slot,
    older_of_kind: Slot,
    newer_of_kind: Slot,
}

impl Entry {
    /// Returns an entry in no request.
    pub const fn new(kind: EntryKind, bins: *const Bins) -> Self {
        Self {
            bins,
            control: null(),
            lane: null(),
            order: 0,
            kind,
            live: false,
            older: NOWHERE,
            newer: NOWHERE,
            older_of_kind: NOWHERE,
            newer_of_kind: NOWHERE,
        }
    }

    /// Returns the entry, in this lane of this request.
    pub const fn in_lane(self, control: *const Control, lane: *const Lane) -> Self {
        Self { control, lane, ..self }
    }
}

/// Names an entry of the current thread.
#[derive(Clone, Copy)]
pub struct EntryName {
    slot: Slot,
    order: u64,
}

impl EntryName {
    /// Returns when it was made: later entries have larger numbers.
    pub fn order(self) -> u64 {
        self.order
    }
}

/// A thread's entries; only that thread touches them.
pub struct Entries {
    /// All slots: `inline`, or a persistent block instead.
    first: Cell<*mut Entry>,
    capacity: Cell<usize>,
    inline: Cell<[Entry; INLINE_ENTRIES]>,
    above_inline: Cell<usize>,
    /// How many slots, from the first on, have been used.
    used: Cell<Slot>,
    first_free: Cell<Slot>,
    newest: Cell<Slot>,
    newest_of_kind: [Cell<Slot>; KIND_COUNT],
    last_order: Cell<u64>,
}

impl Entries {
    /// No entries. Must not be used before `settle`.
    pub const fn new() -> Self {
        Self {
            first: Cell::new(null_mut()),
            capacity: Cell::new(INLINE_ENTRIES),
            inline: Cell::new([Entry::new(EntryKind::Persistent, null()); INLINE_ENTRIES]),
            above_inline: Cell::new(0),
            used: Cell::new(0),
            first_free: Cell::new(NOWHERE),
            newest: Cell::new(NOWHERE),
            newest_of_kind: [const { Cell::new(NOWHERE) }; KIND_COUNT],
            last_order: Cell::new(0),
        }
    }

    /// Points at the inline slots: this must not move from now on.
    pub fn settle(&self) {
        self.first.set(self.inline.as_ptr().cast());
    }

    fn at(&self, slot: Slot) -> *mut Entry {
        self.first.get().wrapping_add(slot as usize)
    }

    /// Returns the entry in a used slot.
    #[inline]
    fn get(&self, slot: Slot) -> Entry {
        // SAFETY: a used slot is inside the array, which only this thread reaches.
        unsafe { *self.at(slot) }
    }

    #[inline]
    fn change(&self, slot: Slot, change: impl FnOnce(&mut Entry)) {
        // SAFETY: as in `get`; `change` reaches no other entry.
        change(unsafe { &mut *self.at(slot) });
    }

    /// Whether there is room for one more entry.
    #[inline]
    pub fn has_room(&self) -> bool {
        self.first_free.get() != NOWHERE || (self.used.get() as usize) < self.capacity.get()
    }

    /// Returns how many bytes twice as many slots take.
    pub fn wanted_bytes(&self) -> usize {
        self.capacity.get() * 2 * size_of::<Entry>()
    }

    /// Moves the slots to a larger block. Returns the block they were in, now the caller's, or
    /// null.
    ///
    /// # Safety
    /// `fresh` is `wanted_bytes` of memory, aligned to 16, and the caller's alone.
    pub unsafe fn grow(&self, fresh: *mut u8) -> *mut u8 {
        self.capacity.set(self.wanted_bytes() / size_of::<Entry>());
        // SAFETY: the caller's contract; `fresh` is longer than the used slots.
        unsafe { self.move_to(fresh.cast()) }
    }

    /// Moves the used slots. Returns the block they were in, or null if they were inline.
    ///
    /// # Safety
    /// `first` has room for the used slots, and is the caller's alone.
    unsafe fn move_to(&self, first: *mut Entry) -> *mut u8 {
        let before = self.first.replace(first);
        // SAFETY: the caller's contract.
        unsafe { first.copy_from_nonoverlapping(before, self.used.get() as usize) };
        if before == self.inline.as_ptr().cast() { null_mut() } else { before.cast() }
    }

    /// Moves back to the inline slots, unless a live entry is beyond them: from any block if `all`,
    /// else only from one too long to keep. Returns the block, now the caller's, or null.
    #[inline]
    pub fn take_idle_room(&self, all: bool) -> *mut u8 {
        let kept = if all { INLINE_ENTRIES } else { KEPT_ENTRIES };
        if self.capacity.get() <= kept || self.above_inline.get() > 0 {
            return null_mut();
        }
        self.move_inline()
    }

    #[cold]
    fn move_inline(&self) -> *mut u8 {
        self.capacity.set(INLINE_ENTRIES);
        self.used.set(self.used.get().min(INLINE_ENTRIES as Slot));
        // SAFETY: no more slots are used now than are inline.
        let before = unsafe { self.move_to(self.inline.as_ptr().cast()) };
        self.first_free.set(NOWHERE);
        for slot in (0..self.used.get()).filter(|&slot| !self.get(slot).live) {
            self.put_free(slot);
        }
        before
    }

    fn put_free(&self, slot: Slot) {
        let next = self.first_free.replace(slot);
        self.change(slot, |entry| entry.older = next);
    }

    fn take_slot(&self) -> Slot {
        let free = self.first_free.get();
        if free != NOWHERE {
            self.first_free.set(self.get(free).older);
            return free;
        }
        let slot = self.used.get();
        self.used.set(slot + 1);
        slot
    }

    /// Adds an entry as the newest. There is room.
    #[inline]
    pub fn push(&self, entry: Entry) -> EntryName {
        let slot = self.take_slot();
        let order = self.last_order.get() + 1;
        self.last_order.set(order);
        let older = self.newest.replace(slot);
        let older_of_kind = self.newest_of_kind[entry.kind as usize].replace(slot);
        self.change(slot, |entry_there| {
            *entry_there = Entry { order, live: true, older, older_of_kind, ..entry };
        });
        if older != NOWHERE {
            self.change(older, |other| other.newer = slot);
        }
        if older_of_kind != NOWHERE {
            self.change(older_of_kind, |other| other.newer_of_kind = slot);
        }
        if slot as usize >= INLINE_ENTRIES {
            self.above_inline.set(self.above_inline.get() + 1);
        }
        EntryName { slot, order }
    }

    /// Removes an entry and returns it; `None`: it had been removed before.
    #[inline]
    pub fn remove(&self, name: EntryName) -> Option<Entry> {
        if name.slot >= self.used.get() {
            return None;
        }
        let entry = self.get(name.slot);
        if entry.order != name.order || !entry.live {
            return None;
        }
        match entry.newer {
            NOWHERE => self.newest.set(entry.older),
            newer => self.change(newer, |other| other.older = entry.older),
        }
        if entry.older != NOWHERE {
            self.change(entry.older, |other| other.newer = entry.newer);
        }
        match entry.newer_of_kind {
            NOWHERE => self.newest_of_kind[entry.kind as usize].set(entry.older_of_kind),
            newer => self.change(newer, |other| other.older_of_kind = entry.older_of_kind),
        }
        if entry.older_of_kind != NOWHERE {
            self.change(entry.older_of_kind, |other| other.newer_of_kind = entry.newer_of_kind);
        }
        if name.slot as usize >= INLINE_ENTRIES {
            self.above_inline.set(self.above_inline.get() - 1);
        }
        self.change(name.slot, |entry| entry.live = false);
        self.put_free(name.slot);
        Some(entry)
    }

    fn named(&self, slot: Slot) -> Option<(EntryName, Entry)> {
        (slot != NOWHERE).then(|| {
            let entry = self.get(slot);
            (EntryName { slot, order: entry.order }, entry)
        })
    }

    /// Returns the newest entry.
    #[inline]
    pub fn newest(&self) -> Option<(EntryName, Entry)> {
        self.named(self.newest.get())
    }

    /// Returns the newest entry of a kind.
    #[inline]
    pub fn newest_of(&self, kind: EntryKind) -> Option<(EntryName, Entry)> {
        self.named(self.newest_of_kind[kind as usize].get())
    }

    /// Returns the order of the entry made last.
    pub fn last_order(&self) -> u64 {
        self.last_order.get()
    }

    /// Walks the lists; fatal when they contradict each other (E1, E2).
    pub fn check(&self) {
        let (mut live, mut above, mut of_kind) = (0, 0, 0);
        let mut slot = self.newest.get();
        while slot != NOWHERE {
            let entry = self.get(slot);
            if !entry.live || (entry.newer == NOWHERE) != (slot == self.newest.get()) {
                crate::base::fatal::broken(
                    "entry on the list",
                    slot as usize,
                    entry.newer as usize,
                );
            }
            live += 1;
            above += usize::from(slot as usize >= INLINE_ENTRIES);
            slot = entry.older;
        }
        for newest in &self.newest_of_kind {
            let mut slot = newest.get();
            while slot != NOWHERE {
                of_kind += 1;
                slot = self.get(slot).older_of_kind;
            }
        }
        let mut free = 0;
        let mut slot = self.first_free.get();
        while slot != NOWHERE {
            free += 1;
            slot = self.get(slot).older;
        }
        if live + free != self.used.get() as usize || live != of_kind {
            crate::base::fatal::broken("slots of entries", live + free, self.used.get() as usize);
        }
        if above != self.above_inline.get() {
            crate::base::fatal::broken(
                "entries beyond the inline ones",
                above,
                self.above_inline.get(),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    fn push(entries: &Entries, kind: EntryKind) -> EntryName {
        if !entries.has_room() {
            let memory = std::vec![0u128; entries.wanted_bytes().div_ceil(16)].leak();
            // SAFETY: fresh memory of that size; what was there before is leaked.
            unsafe { entries.grow(memory.as_mut_ptr().cast()) };
        }
        entries.push(Entry::new(kind, null()))
    }

    #[test]
    fn entries_left_in_any_order_are_those_that_a_list_has() {
        let entries = Entries::new();
        entries.settle();
        let mut model: Vec<(EntryName, EntryKind)> = Vec::new();
        let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
        for round in 0..20_000 {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            // Grows to a few hundred and shrinks back to none, over and over.
            let grows = round / 600 % 2 == 0;
            if model.is_empty() || (seed % 8 < 6) == grows {
                let kind = match seed / 8 % 3 {
                    0 => EntryKind::Guard,
                    1 => EntryKind::Hook,
                    _ => EntryKind::Persistent,
                };
                model.push((push(&entries, kind), kind));
            } else {
                let (name, _) = model.remove((seed / 8) as usize % model.len());
                assert!(entries.remove(name).is_some());
                assert!(entries.remove(name).is_none(), "an entry is left only once");
                let _ = entries.take_idle_room(seed % 16 < 8);
            }
            entries.check();
            let newest = model.last().map(|(name, _)| name.order());
            assert_eq!(entries.newest().map(|(name, _)| name.order()), newest);
            for kind in [EntryKind::Guard, EntryKind::Hook, EntryKind::Persistent] {
                let of_kind = model.iter().rev().find(|(_, other)| *other == kind);
                let expected = of_kind.map(|(name, _)| name.order());
                assert_eq!(entries.newest_of(kind).map(|(name, _)| name.order()), expected);
            }
        }
    }

    #[test]
    fn places_are_used_again() {
        let entries = Entries::new();
        entries.settle();
        let mut guard = push(&entries, EntryKind::Guard);
        for _ in 0..1000 {
            let next = push(&entries, EntryKind::Guard);
            entries.remove(guard);
            guard = next;
        }
        assert_eq!(entries.used.get(), 2, "one being left and one being made");
        entries.remove(guard);
        entries.check();
    }
}
