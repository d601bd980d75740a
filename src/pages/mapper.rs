//! What one mapping is given, keeps and loses when it comes, changes its length and goes: the steps
//! are in `lockfree::mapping`.

use crate::base::os::{self, Moved, Resized};
use crate::base::sync::{AtomicUsize, Ordering};
use crate::lockfree::mapping::{Change, Space};
use crate::pages::address_space::{AddressSpace, mapped_length, whole_chunks};
use crate::pages::chunk::CHUNK_BYTES;
use crate::pages::page_heap::PageHeap;
use crate::pages::span::{Extent, Span};
use core::cell::Cell;

/// Most mappings whose pages the system has moved, and which are mappings of its own therefore. A
/// block that grows when there are so many is copied.
const MOST_MOVED: usize = 1024;

/// What is counted of all mappings.
pub struct Counts {
    /// Their lengths; those in the store count too.
    mapped_bytes: AtomicUsize,
    /// Those whose pages were moved.
    moved_count: AtomicUsize,
}

impl Counts {
    /// Nothing.
    pub const fn new() -> Self {
        Self { mapped_bytes: AtomicUsize::new(0), moved_count: AtomicUsize::new(0) }
    }

    /// Returns the lengths of all mappings.
    pub fn mapped_bytes(&self) -> usize {
        self.mapped_bytes.load(Ordering::Relaxed)
    }

    /// Counts a mapping that was moved, or that is no more.
    pub fn note_moved(&self, from: Extent, to: Extent) {
        let count = |extent| usize::from(extent == Extent::Moved);
        self.moved_count.fetch_add(count(to).wrapping_sub(count(from)), Ordering::Relaxed);
    }
}

/// The mappings, where their addresses come from, and how far those of the one at hand are mapped.
pub struct Mapper<'h> {
    counts: &'h Counts,
    space: &'h AddressSpace,
    extent: Cell<Extent>,
    /// The same of the addresses that it is moved to.
    target: Cell<Extent>,
}

impl<'h> Mapper<'h> {
    /// For a mapping whose addresses are mapped so far.
    pub fn new(counts: &'h Counts, pages: &'h PageHeap, extent: Extent) -> Self {
        let (extent, target) = (Cell::new(extent), Cell::new(extent));
        Self { counts, space: &pages.space, extent, target }
    }

    /// For a mapping that there is.
    pub fn of(counts: &'h Counts, pages: &'h PageHeap, span: &Span) -> Self {
        Self::new(counts, pages, span.mapping.extent())
    }

    /// Changes the length of a mapping whose addresses are whole chunks.
    fn change_chunks(&self, base: usize, old: usize, new: usize) -> Change {
        let (have, need) = (whole_chunks(old), whole_chunks(new));
        if new < old {
            // SAFETY: the end of the caller's mapping, in the chunks that stay.
            unsafe { os::purge(base + new, old.min(need) - new) };
        }
        if need < have {
            self.space.give(base + need, old.saturating_sub(need), self.extent.get());
        }
        let is_moved = self.extent.get() == Extent::Moved;
        if need <= have || (!is_moved && self.space.take_at(base + have, need - have)) {
            return Change::Done;
        }
        let may_move = is_moved || self.counts.moved_count.load(Ordering::Relaxed) < MOST_MOVED;
        // It would leave a hole.
        if may_move && !self.space.would_split(base, have) { Change::NoRoom } else { Change::Fixed }
    }
}

impl Space for Mapper<'_> {
    type Mapping = Span;

    fn extent(&self, span: &Span) -> (usize, usize) {
        (span.base(), span.bytes())
    }

    fn set_extent(&self, span: &Span, base: usize, bytes: usize) {
        span.describe_mapping(base, bytes);
        span.mapping.set_extent(self.extent.get());
    }

    fn register(&self, span: &Span) {
        self.space.registry.add_mapping(span);
    }

    fn forget(&self, base: usize, bytes: usize) {
        self.space.registry.remove(base, bytes);
    }

    fn forget_end(&self, base: usize, old: usize, new: usize) {
        // A chunk's number goes with the last of its addresses.
        let first = (base + new).next_multiple_of(CHUNK_BYTES);
        if first < base + old {
            self.forget(first, base + old - first);
        }
    }

    fn count(&self, added: usize, gone: usize) {
        self.counts.mapped_bytes.fetch_add(added.wrapping_sub(gone), Ordering::Relaxed);
    }

    fn give_descriptor(&self, span: &Span) {
        self.space.give_descriptor(span);
    }

    fn unmap(&self, base: usize, bytes: usize) {
        if self.extent.get() == Extent::Exact {
            self.space.unmap(base, bytes);
        } else if base % CHUNK_BYTES == 0 {
            self.space.give(base, bytes, self.extent.get());
        } else {
            // SAFETY: the end of a mapping, inside a chunk, that the caller has claimed (U2).
            unsafe { os::purge(base, bytes) };
        }
    }

    fn change(&self, base: usize, old: usize, new: usize) -> Change {
        if self.extent.get() != Extent::Exact {
            return self.change_chunks(base, old, new);
        }
        // SAFETY: the mapping is the caller's.
        match unsafe { os::resize(base, old, new) } {
            Resized::Done => {
                self.space.note_resized(old, new);
                Change::Done
            }
            Resized::NoRoom => Change::NoRoom,
            Resized::Fixed => Change::Fixed,
        }
    }

    fn map(&self, bytes: usize) -> Option<usize> {
        let room = self.space.take(bytes)?;
        self.target.set(room.extent);
        Some(room.base)
    }

    fn move_pages(&self, base: usize, old: usize, target: usize, new: usize) -> bool {
        let (from, to) = (self.extent.get(), self.target.get());
        let (old, new) = (mapped_length(old, from), mapped_length(new, to));
        // SAFETY: both mappings are the caller's.
        match unsafe { os::move_pages(base, old, target, new) } {
            Moved::Done => {
                self.space.note_gone(base, old);
                let to = if to == Extent::Exact { to } else { Extent::Moved };
                self.counts.note_moved(from, to);
                self.extent.set(to);
                return true;
            }
            Moved::Refused if to == Extent::Exact => self.space.unmap(target, new),
            Moved::Refused => self.space.give(target, new, to),
            Moved::TargetGone => self.space.note_gone(target, new),
        }
        false
    }
}
