//! What a thread is inside of: its entries, in the order in which they were made.
//!
//! They may be left in any order, which costs the same for each: the live ones are linked, and the
//! places of dead ones are used again. An entry is named by its place and a serial that no other
//! entry of the thread ever has.
//!
//! - **E1** A place is of a live entry, which is linked in its list and in that of its kind, or on the
//!   list of free places, or has never been used.
//! - **E2** `above_inline` is how many live entries are beyond the inline places.

use crate::blocks::bin::Bins;
use crate::request::control::Control;
use crate::request::lane::Lane;
use core::cell::Cell;
use core::ptr::{null, null_mut};

/// Entries that a thread has room for before it allocates.
const INLINE_ENTRIES: usize = 8;
/// Entries whose room stays with the thread when it is outside of all of them.
const KEPT_ENTRIES: usize = 512;

/// Why a thread is where it is.
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
}

const KIND_COUNT: usize = 4;

/// A place among the entries.
type Place = u32;

/// No place.
const NOWHERE: Place = Place::MAX;

/// A thread's being inside a request, or inside `persistent`.
#[derive(Clone, Copy)]
pub struct Entry {
    /// What is active while it is the newest.
    pub bins: *const Bins,
    /// The request; null: none.
    pub control: *const Control,
    /// The lane of the request.
    pub lane: *const Lane,
    serial: u64,
    kind: EntryKind,
    live: bool,
    /// Live: its neighbours. Free: the next free place.
    older: Place,
    newer: Place,
    older_of_kind: Place,
    newer_of_kind: Place,
}

impl Entry {
    /// An entry in no request.
    pub const fn new(kind: EntryKind, bins: *const Bins) -> Self {
        Self {
            bins,
            control: null(),
            lane: null(),
            serial: 0,
            kind,
            live: false,
            older: NOWHERE,
            newer: NOWHERE,
            older_of_kind: NOWHERE,
            newer_of_kind: NOWHERE,
        }
    }

    /// The same in a lane of a request.
    pub const fn in_lane(self, control: *const Control, lane: *const Lane) -> Self {
        Self { control, lane, ..self }
    }
}

/// Names an entry of the current thread.
#[derive(Clone, Copy)]
pub struct EntryName {
    place: Place,
    serial: u64,
}

impl EntryName {
    /// Later entries have larger ones.
    pub fn serial(self) -> u64 {
        self.serial
    }
}

/// The entries of a thread; only it touches them.
pub struct Entries {
    /// All places: the inline ones, or a persistent block in their stead.
    first: Cell<*mut Entry>,
    capacity: Cell<usize>,
    inline: Cell<[Entry; INLINE_ENTRIES]>,
    above_inline: Cell<usize>,
    /// Places that were ever used.
    used: Cell<Place>,
    first_free: Cell<Place>,
    newest: Cell<Place>,
    newest_of_kind: [Cell<Place>; KIND_COUNT],
    last_serial: Cell<u64>,
}

impl Entries {
    /// None. Not to be used before `settle`.
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
            last_serial: Cell::new(0),
        }
    }

    /// They stay where they are from now on.
    pub fn settle(&self) {
        self.first.set(self.inline.as_ptr().cast());
    }

    fn at(&self, place: Place) -> *mut Entry {
        self.first.get().wrapping_add(place as usize)
    }

    /// The entry at a place that was used.
    #[inline]
    fn get(&self, place: Place) -> Entry {
        // SAFETY: a used place is inside the array, which only this thread reaches.
        unsafe { *self.at(place) }
    }

    #[inline]
    fn change(&self, place: Place, change: impl FnOnce(&mut Entry)) {
        // SAFETY: as in `get`; `change` reaches no other entry.
        change(unsafe { &mut *self.at(place) });
    }

    /// Whether there is room for one more.
    #[inline]
    pub fn has_room(&self) -> bool {
        self.first_free.get() != NOWHERE || (self.used.get() as usize) < self.capacity.get()
    }

    /// How many bytes there must be for twice as many.
    pub fn wanted_bytes(&self) -> usize {
        self.capacity.get() * 2 * size_of::<Entry>()
    }

    /// Moves to a larger block; the one before, or null, is the caller's.
    ///
    /// # Safety
    /// `fresh` is memory of `wanted_bytes`, aligned to 16, and the caller's alone.
    pub unsafe fn grow(&self, fresh: *mut u8) -> *mut u8 {
        self.capacity.set(self.wanted_bytes() / size_of::<Entry>());
        // SAFETY: the caller's contract: it is longer than what is used.
        unsafe { self.move_to(fresh.cast()) }
    }

    /// Moves the used places; the block that they were in, or null.
    ///
    /// # Safety
    /// `first` is a place for as many, and the caller's alone.
    unsafe fn move_to(&self, first: *mut Entry) -> *mut u8 {
        let before = self.first.replace(first);
        // SAFETY: the caller's contract.
        unsafe { first.copy_from_nonoverlapping(before, self.used.get() as usize) };
        if before == self.inline.as_ptr().cast() { null_mut() } else { before.cast() }
    }

    /// Moves back to the inline places, where no other one is of a live entry: from any block if
    /// `all`, else from one that is too long to be kept. The block is the caller's; null: there is none.
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
        self.used.set(self.used.get().min(INLINE_ENTRIES as Place));
        // SAFETY: the inline places are as many as are used now.
        let before = unsafe { self.move_to(self.inline.as_ptr().cast()) };
        self.first_free.set(NOWHERE);
        for place in (0..self.used.get()).filter(|&place| !self.get(place).live) {
            self.put_free(place);
        }
        before
    }

    fn put_free(&self, place: Place) {
        let next = self.first_free.replace(place);
        self.change(place, |entry| entry.older = next);
    }

    fn take_place(&self) -> Place {
        let free = self.first_free.get();
        if free != NOWHERE {
            self.first_free.set(self.get(free).older);
            return free;
        }
        let place = self.used.get();
        self.used.set(place + 1);
        place
    }

    /// Makes an entry, the newest. There is room.
    #[inline]
    pub fn push(&self, entry: Entry) -> EntryName {
        let place = self.take_place();
        let serial = self.last_serial.get() + 1;
        self.last_serial.set(serial);
        let older = self.newest.replace(place);
        let older_of_kind = self.newest_of_kind[entry.kind as usize].replace(place);
        self.change(place, |slot| {
            *slot = Entry { serial, live: true, older, older_of_kind, ..entry };
        });
        if older != NOWHERE {
            self.change(older, |other| other.newer = place);
        }
        if older_of_kind != NOWHERE {
            self.change(older_of_kind, |other| other.newer_of_kind = place);
        }
        if place as usize >= INLINE_ENTRIES {
            self.above_inline.set(self.above_inline.get() + 1);
        }
        EntryName { place, serial }
    }

    /// Takes an entry out; `None`: it was before.
    #[inline]
    pub fn remove(&self, name: EntryName) -> Option<Entry> {
        if name.place >= self.used.get() {
            return None;
        }
        let entry = self.get(name.place);
        if entry.serial != name.serial || !entry.live {
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
        if name.place as usize >= INLINE_ENTRIES {
            self.above_inline.set(self.above_inline.get() - 1);
        }
        self.change(name.place, |slot| slot.live = false);
        self.put_free(name.place);
        Some(entry)
    }

    fn named(&self, place: Place) -> Option<(EntryName, Entry)> {
        (place != NOWHERE).then(|| {
            let entry = self.get(place);
            (EntryName { place, serial: entry.serial }, entry)
        })
    }

    /// The newest entry.
    #[inline]
    pub fn newest(&self) -> Option<(EntryName, Entry)> {
        self.named(self.newest.get())
    }

    /// The newest entry of a kind.
    #[inline]
    pub fn newest_of(&self, kind: EntryKind) -> Option<(EntryName, Entry)> {
        self.named(self.newest_of_kind[kind as usize].get())
    }

    /// The serial of the entry that was made last.
    #[cfg(feature = "capi")]
    pub fn last_serial(&self) -> u64 {
        self.last_serial.get()
    }

    /// Walks the lists; fatal when they contradict each other (E1, E2).
    pub fn check(&self) {
        let (mut live, mut above, mut of_kind) = (0, 0, 0);
        let mut place = self.newest.get();
        while place != NOWHERE {
            let entry = self.get(place);
            if !entry.live || (entry.newer == NOWHERE) != (place == self.newest.get()) {
                crate::base::fatal::broken(
                    "entry on the list",
                    place as usize,
                    entry.newer as usize,
                );
            }
            live += 1;
            above += usize::from(place as usize >= INLINE_ENTRIES);
            place = entry.older;
        }
        for newest in &self.newest_of_kind {
            let mut place = newest.get();
            while place != NOWHERE {
                of_kind += 1;
                place = self.get(place).older_of_kind;
            }
        }
        let mut free = 0;
        let mut place = self.first_free.get();
        while place != NOWHERE {
            free += 1;
            place = self.get(place).older;
        }
        if live + free != self.used.get() as usize || live != of_kind {
            crate::base::fatal::broken("places of entries", live + free, self.used.get() as usize);
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
            // Grows to some hundreds and back to none, over and over.
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
                assert!(entries.remove(name).is_none(), "an entry is left once");
                let _ = entries.take_idle_room(seed % 16 < 8);
            }
            entries.check();
            let newest = model.last().map(|(name, _)| name.serial());
            assert_eq!(entries.newest().map(|(name, _)| name.serial()), newest);
            for kind in [EntryKind::Guard, EntryKind::Hook, EntryKind::Persistent] {
                let of_kind = model.iter().rev().find(|(_, other)| *other == kind);
                let expected = of_kind.map(|(name, _)| name.serial());
                assert_eq!(entries.newest_of(kind).map(|(name, _)| name.serial()), expected);
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
        assert_eq!(entries.used.get(), 2, "one that is left and one that is made");
        entries.remove(guard);
        entries.check();
    }
}
