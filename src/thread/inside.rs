//! Being inside: entries are pushed and left here. The handle that an entry owns is not dropped
//! here: the caller that leaves the entry has it afterwards.

use super::entries::{Entry, EntryKind, EntryName};
use super::persistent::{alloc_persistent, free_persistent};
use super::sentinels::TRACED;
use super::{HEAP, Thread, local};
use crate::base::size_class::PAYLOAD_ALIGN;
use crate::lockfree::header::NONE;
use crate::request::control::Control;
use crate::request::lane::Lane;
use core::ptr::with_exposed_provenance_mut;

impl Thread {
    #[inline]
    fn make_room(&self) -> bool {
        self.entries.has_room() || self.make_room_slow()
    }

    #[cold]
    fn make_room_slow(&self) -> bool {
        let block = alloc_persistent(Some(self), self.entries.wanted_bytes(), PAYLOAD_ALIGN).block;
        if block == NONE {
            return false;
        }
        // SAFETY: a fresh block of that size.
        let before = unsafe { self.entries.grow(with_exposed_provenance_mut(block)) };
        free_persistent(Some(self), before.expose_provenance());
        true
    }

    /// Enters a request; the entry takes over the caller's handle (T2), and its lane counts it
    /// (T3). `None`: out of memory, and the caller still has the handle.
    #[inline(always)]
    pub fn enter(&self, control: &'static Control, kind: EntryKind) -> Option<EntryName> {
        if !self.make_room() {
            return None;
        }
        let lane = match self.lane_inside(control) {
            Some(lane) => lane,
            None => {
                let lane = control.enter(&HEAP)?;
                lane.occupant.set(self.address());
                lane
            }
        };
        lane.entry_count.set(lane.entry_count.get() + 1);
        lane.bins.set_cache(&raw const self.cache.bins);
        // A sentinel, if the request traces its leaks (T4).
        let is_traced = control.leaks.get().traced;
        let bins = if is_traced { &raw const TRACED } else { &raw const lane.bins };
        Some(self.push(Entry::new(kind, bins).in_lane(control, lane)))
    }

    /// Returns what a lane knows the thread by (T3).
    fn address(&self) -> usize {
        core::ptr::from_ref(self).addr()
    }

    /// Returns the lane of a request that this thread is already in (T3).
    #[inline]
    pub fn lane_inside<'c>(&self, control: &'c Control) -> Option<&'c Lane> {
        let is_here = |lane: &&Lane| lane.occupant.get() == self.address();
        let first = Some(&control.lanes.first).filter(is_here);
        if first.is_some() || control.has_one_lane() {
            first
        } else {
            // A block's request may be over by now, and the walk go on in the lanes of others (N4):
            // of those only one may be this thread's, and its tag tells.
            let of_request = |lane: &&Lane| lane.bins.tag().id() == control.id();
            control.lanes().find(is_here).filter(of_request)
        }
    }

    /// Returns the request and the lane that the thread allocates from, by its newest entry (T4).
    /// `None`: its allocations are persistent.
    pub fn active_lane(&self) -> Option<(&'static Control, &'static Lane)> {
        let (_, newest) = self.entries.newest()?;
        // SAFETY: the lane of a live entry is this thread's (T3), and the entry's handle keeps the
        // control block (T2).
        unsafe { newest.lane.as_ref().map(|lane| (&*newest.control, lane)) }
    }

    /// Enters the persistent lifetime.
    pub fn enter_persistent(&self, kind: EntryKind) -> Option<EntryName> {
        self.make_room().then(|| self.push(Entry::new(kind, &raw const self.cache.bins)))
    }

    /// Adds an entry and makes its bins active (T1).
    #[inline]
    fn push(&self, entry: Entry) -> EntryName {
        local::set_active(entry.bins);
        self.entries.push(entry)
    }

    /// Leaves an entry, even if there are newer ones, and hands its handle to the caller. `None`:
    /// it has none, or was left before.
    #[inline]
    pub fn leave_keeping_handle(&self, name: EntryName) -> Option<&'static Control> {
        let entry = self.entries.remove(name)?;
        // The bins of the newest remaining entry, or the cache's (T1).
        let cache = &raw const self.cache.bins;
        local::set_active(self.entries.newest().map_or(cache, |(_, newest)| newest.bins));
        // SAFETY: null, or a lane (M1), which the last of this thread's entries in it leaves (T3).
        if let Some(lane) = unsafe { entry.lane.as_ref() } {
            let left = lane.entry_count.get() - 1;
            lane.entry_count.set(left);
            if left == 0 {
                lane.occupant.set(0);
                lane.occupancy.leave();
            }
        }
        let idle_room = self.entries.take_idle_room(false);
        if !idle_room.is_null() {
            free_persistent(Some(self), idle_room.expose_provenance());
        }
        // SAFETY: null, or a control block (M1).
        unsafe { entry.control.as_ref() }
    }

    /// Leaves the newest entry made by `begin_request`. Returns its request, whose handle the
    /// caller now has.
    pub fn leave_hook(&self) -> Option<&'static Control> {
        self.leave_keeping_handle(self.innermost(EntryKind::Hook)?)
    }

    /// Calls `f`, which must not unwind, as if the thread were inside no request but those that `f`
    /// enters.
    pub fn outside(&self, f: impl FnOnce()) {
        let before = self.outside_after.replace(self.entries.last_order());
        f();
        self.outside_after.set(before);
    }

    /// Returns the request of the newest entry that is in one.
    pub fn current_control(&self) -> Option<&'static Control> {
        let of_kind = |kind| self.entries.newest_of(kind);
        #[cfg(feature = "capi")]
        let kinds = [EntryKind::Guard, EntryKind::Hook, EntryKind::Reference];
        #[cfg(not(feature = "capi"))]
        let kinds = [EntryKind::Guard, EntryKind::Hook];
        let (name, entry) =
            kinds.map(of_kind).into_iter().flatten().max_by_key(|(name, _)| name.order())?;
        if name.order() <= self.outside_after.get() {
            return None;
        }
        // SAFETY: a live entry's handle keeps its control block (T2).
        unsafe { entry.control.as_ref() }
    }

    /// Returns the newest entry of a kind.
    pub fn innermost(&self, kind: EntryKind) -> Option<EntryName> {
        self.entries.newest_of(kind).map(|(name, _)| name)
    }

    /// Returns the order of the entry made last.
    #[cfg(feature = "capi")]
    pub fn last_entry(&self) -> u64 {
        self.entries.last_order()
    }
}
