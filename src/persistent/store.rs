//! The process's store of free persistent blocks: for each class the magazines that threads handed
//! over, and the slabs that all blocks are cut from.
//!
//! Blocks with a span of their own are not kept here: the span of a free one goes back at once.

use crate::base::fatal;
use crate::base::size_class::{Class, FIRST_LARGE_CLASS, FIRST_PAYLOAD_OFFSET};
use crate::base::sync::{AtomicU32, Ordering};
use crate::blocks::allocated::Allocated;
use crate::blocks::list::check_list;
use crate::blocks::memory::Raw;
use crate::lockfree::depot::{Depot, Magazine, Slots};
use crate::lockfree::header::{Block, Header, LIVE, Memory, NONE};
use crate::pages::page_heap::Taken;
use crate::pages::span::SpanKind;
use crate::pages::supply::Supply;
use crate::persistent::chains::{CHAIN_COUNT, blocks_of, in_turn};
use crate::persistent::from_holes;
use crate::persistent::reap::reap_adopted;
use crate::persistent::slab::Slabs;
use core::ptr::{null_mut, with_exposed_provenance_mut};

/// Most magazines in a depot.
const SLOTS_PER_DEPOT: u32 = 1024;
/// Bytes of the slots of one depot.
const DEPOT_BYTES: usize = SLOTS_PER_DEPOT as usize * size_of::<Magazine>();
/// Bytes of the slots of all depots.
pub const SLOTS_BYTES: usize = DEPOT_BYTES * FIRST_LARGE_CLASS;
/// Most magazines that are reaped before the process grows.
const REAPED_BEFORE_GROWTH: usize = 32;
/// Least magazines of a class that are reaped at a tick, if so many were not needed.
const LEAST_REAPED: u32 = CHAIN_COUNT as u32;
/// Blocks that are reaped, or looked at in slabs, at once: some 50 to 100 ns for each. A tick's work
/// is done in such portions.
pub const PORTION_BLOCKS: usize = 32 * 1024;

/// The slots of a depot, in memory that is provided when the heap is first used.
struct SlotArray {
    first: *mut Magazine,
    capacity: u32,
}

// SAFETY: the memory is the depot's alone, and reached only under its lock.
unsafe impl Send for SlotArray {}

impl Slots for SlotArray {
    fn capacity(&self) -> u32 {
        self.capacity
    }
    fn get(&self, index: u32) -> Magazine {
        // SAFETY: `index < capacity`, and a slot is set before it is read.
        unsafe { *self.first.add(index as usize) }
    }
    fn set(&mut self, index: u32, magazine: Magazine) {
        // SAFETY: `index < capacity`.
        unsafe { *self.first.add(index as usize) = magazine }
    }
}

/// The store of free persistent blocks.
pub struct Store {
    slabs: [Slabs; FIRST_LARGE_CLASS],
    depots: [Depot<SlotArray>; FIRST_LARGE_CLASS],
    /// Magazines of each class that are to be reaped before the next tick.
    due_magazines: [AtomicU32; FIRST_LARGE_CLASS],
    /// The class that the next portion begins with.
    next_class: AtomicU32,
}

impl Store {
    /// Creates an empty store. Without slots every depot is full: magazines go back to their slabs.
    pub const fn new() -> Self {
        Self {
            slabs: [const { Slabs::new() }; FIRST_LARGE_CLASS],
            depots: [const { Depot::new(SlotArray { first: null_mut(), capacity: 0 }) };
                FIRST_LARGE_CLASS],
            due_magazines: [const { AtomicU32::new(0) }; FIRST_LARGE_CLASS],
            next_class: AtomicU32::new(0),
        }
    }

    /// Provides the depots with slots, once.
    ///
    /// # Safety
    /// `base` is the address of `SLOTS_BYTES` writable bytes, the store's alone for the life of the
    /// process.
    pub unsafe fn provide_slots(&self, base: usize) {
        for (index, depot) in self.depots.iter().enumerate() {
            let first = with_exposed_provenance_mut(base + index * DEPOT_BYTES);
            depot.provide(SlotArray { first, capacity: SLOTS_PER_DEPOT });
        }
    }

    fn depot(&self, class: Class) -> &Depot<SlotArray> {
        &self.depots[class.index()]
    }

    fn slabs(&self, class: Class) -> &Slabs {
        &self.slabs[class.index()]
    }

    /// Takes free blocks of `class`: a magazine of the depot, else at most `want` from a slab that
    /// has some, from holes of adopted spans, or from a new slab. `tag` is the header of live ones
    /// of class 0.
    pub fn take<S: Supply>(&self, class: Class, want: u32, tag: Header, supply: &S) -> Magazine {
        let free_header = free_header(tag, class);
        if class.is_large() {
            let block = self.take_large(class, tag, supply).block;
            if block == NONE {
                return Magazine::EMPTY;
            }
            Raw.header(block).store(free_header.0, Ordering::Relaxed);
            Raw.set_link(block, NONE);
            return Magazine { head: block, count: 1 };
        }
        if let Some(magazine) = self.depot(class).take() {
            return magazine;
        }
        let release = |span| supply.give_span(span);
        let recycled = self.slabs(class).take(class, want, free_header, release);
        if !recycled.is_empty() {
            return recycled;
        }
        let cut = from_holes::cut(class, want, free_header, supply);
        if !cut.is_empty() {
            return cut;
        }
        let taken = supply.take_span(SpanKind::Slab, class.index(), class.slab_pages(), 0);
        let Some(Taken { span, .. }) = taken else { return Magazine::EMPTY };
        self.slabs(class).take_first(class, span, want, free_header)
    }

    /// Takes a live block with a span of its own.
    pub fn take_large<S: Supply>(&self, class: Class, tag: Header, supply: &S) -> Allocated {
        let taken = supply.take_span(SpanKind::Slab, class.index(), class.slab_pages(), 0);
        let Some(Taken { span, zeroed }) = taken else { return Allocated::NOTHING };
        let block = span.base() + FIRST_PAYLOAD_OFFSET;
        Raw.header(block).store(tag.with_class(class.index()).0, Ordering::Relaxed);
        Allocated::new(block, zeroed)
    }

    /// Takes one live block, for a thread without a cache; `NONE`: there is no memory.
    pub fn take_one<S: Supply>(&self, class: Class, tag: Header, supply: &S) -> Block {
        let magazine = self.take(class, 1, tag, supply);
        if magazine.is_empty() {
            return NONE;
        }
        if magazine.count > 1 {
            let rest = Magazine { head: Raw.link(magazine.head), count: magazine.count - 1 };
            self.put(class, rest, supply);
        }
        Raw.header(magazine.head).store(tag.with_class(class.index()).0, Ordering::Relaxed);
        magazine.head
    }

    /// Takes back free blocks of `class`.
    pub fn put<S: Supply>(&self, class: Class, magazine: Magazine, supply: &S) {
        let rest = self.send_home(class, magazine, supply);
        self.put_rest(class, rest, supply);
    }

    /// Takes back those blocks that lie in adopted spans, where any class can be cut from them.
    /// Returns the others.
    pub fn send_home<S: Supply>(&self, class: Class, magazine: Magazine, supply: &S) -> Magazine {
        if !class.is_large() && !supply.adopted().any() {
            return magazine;
        }
        let mut others = Magazine::EMPTY;
        reap_adopted(class, blocks_of(magazine), supply, |batch| {
            for &(block, _) in batch.iter().flatten() {
                Raw.set_link(block, others.head);
                others = Magazine { head: block, count: others.count + 1 };
            }
        });
        others
    }

    /// Whether magazines of a class that come are reaped at once, as far as can be told without a
    /// lock.
    pub fn is_full(&self, class: Class) -> bool {
        !class.is_large() && self.depot(class).magazine_count() == SLOTS_PER_DEPOT
    }

    /// Takes back free blocks of `class` that lie in slabs.
    pub fn put_rest<S: Supply>(&self, class: Class, magazine: Magazine, supply: &S) {
        if magazine.is_empty() {
            return;
        }
        if class.is_large() {
            give_large(magazine, supply);
        } else if let Err(magazine) = self.depot(class).put(magazine) {
            self.reap(class, blocks_of(magazine), supply);
        }
    }

    /// Takes back one free block from a thread without a cache.
    pub fn put_one<S: Supply>(&self, class: Class, block: Block, supply: &S) {
        let top = if class.is_large() { None } else { self.depot(class).take() };
        match top {
            Some(top) if top.count < class.magazine_count() => {
                Raw.set_link(block, top.head);
                self.put(class, Magazine { head: block, count: top.count + 1 }, supply);
            }
            other => {
                if let Some(full) = other {
                    self.put(class, full, supply);
                }
                Raw.set_link(block, NONE);
                self.put(class, Magazine { head: block, count: 1 }, supply);
            }
        }
    }

    /// Returns free blocks to their slabs, and slabs that are whole again to the supply. Those that
    /// lie in adopted spans become holes there.
    fn reap<S: Supply>(&self, class: Class, blocks: impl Iterator<Item = Block>, supply: &S) {
        let slabs = self.slabs(class);
        reap_adopted(class, blocks, supply, |batch| {
            slabs.take_back(class, batch, |span| supply.give_span(span));
        });
    }

    /// Reaps the coldest magazines of a class, at most `count`. Returns how many blocks there were.
    fn reap_coldest<S: Supply>(&self, class: Class, count: usize, supply: &S) -> usize {
        let (mut left, mut blocks) = (count, 0);
        while left > 0 {
            let mut heads = [NONE; CHAIN_COUNT];
            let mut taken = 0;
            for head in heads.iter_mut().take(left) {
                let Some(magazine) = self.depot(class).take_coldest() else { break };
                *head = magazine.head;
                taken += 1;
                blocks += magazine.count as usize;
            }
            if taken == 0 {
                break;
            }
            self.reap(class, in_turn(heads), supply);
            left -= taken;
        }
        blocks
    }

    /// Reaps some of the coldest magazines of all classes. Returns whether there were any.
    pub fn reap_some<S: Supply>(&self, supply: &S) -> bool {
        let mut left = REAPED_BEFORE_GROWTH;
        for class in Class::all_shared() {
            let share = left.min(self.depot(class).magazine_count() as usize / 4);
            self.reap_coldest(class, share, supply);
            left -= share;
        }
        left < REAPED_BEFORE_GROWTH
    }

    /// A tick has come: half of the magazines that nobody needed since the last one are to be reaped,
    /// and slabs are to be looked through that did not change. `work` does that. Where many magazines
    /// are refused, blocks come back to all slabs: there is no look until that is over.
    pub fn age(&self) {
        for class in Class::all_shared() {
            let idle = self.depot(class).age();
            let due = idle.map_or(0, |idle| idle.min(idle.div_ceil(2).max(LEAST_REAPED)));
            self.due_magazines[class.index()].store(due, Ordering::Relaxed);
            if idle.is_some() {
                self.slabs(class).tick();
            }
        }
    }

    /// Does so many blocks' worth of what is due since the last tick. Returns whether that was all.
    pub fn work<S: Supply>(&self, blocks: usize, supply: &S) -> bool {
        // What is reaped first need not be looked through twice.
        let mut left = blocks;
        self.work_through(&mut left, |class| self.reap_due(class, supply))
            && self.work_through(&mut left, |class| self.look_through(class, supply))
    }

    /// Does a kind of work for all classes until there is none, or no blocks are `left`. Returns
    /// whether there is none.
    fn work_through(&self, left: &mut usize, work_on: impl Fn(Class) -> Option<usize>) -> bool {
        let first = self.next_class.load(Ordering::Relaxed) as usize;
        for index in (first..FIRST_LARGE_CLASS).chain(0..first) {
            let Some(class) = Class::from_index(index) else { continue };
            while *left > 0 {
                let Some(done) = work_on(class) else { break };
                *left = left.saturating_sub(done);
            }
            if *left == 0 {
                self.next_class.store(index as u32, Ordering::Relaxed);
                return false;
            }
        }
        true
    }

    /// Reaps a few magazines, if that is due. Returns how many blocks there were.
    fn reap_due<S: Supply>(&self, class: Class, supply: &S) -> Option<usize> {
        let due = &self.due_magazines[class.index()];
        let left = due.load(Ordering::Relaxed);
        let count = left.min(CHAIN_COUNT as u32);
        // Two threads that work at once may reap less.
        due.store(left - count, Ordering::Relaxed);
        (count > 0).then(|| self.reap_coldest(class, count as usize, supply))
    }

    /// Looks through a slab, if that is due. Returns the work in blocks.
    fn look_through<S: Supply>(&self, class: Class, supply: &S) -> Option<usize> {
        let looked = self.slabs(class).purge_one(class, false, |span| supply.give_span(span))?;
        Some(looked.blocks as usize)
    }

    /// Reaps every magazine, and purges what is free in slabs. Returns the bytes that were purged.
    pub fn release<S: Supply>(&self, supply: &S) -> usize {
        let mut bytes = 0;
        for class in Class::all_shared() {
            // No more than there were: other threads may put as fast as this one takes.
            let count = self.depot(class).magazine_count();
            self.reap_coldest(class, count as usize, supply);
            let slabs = self.slabs(class);
            for _ in 0..slabs.unsettle(class) {
                let Some(looked) = slabs.purge_one(class, true, |span| supply.give_span(span))
                else {
                    break;
                };
                bytes += looked.bytes;
            }
        }
        bytes
    }

    /// Returns no less than what the depots have: every magazine counts as a full one.
    pub fn depot_bytes(&self) -> usize {
        Class::all_shared()
            .map(|class| {
                let count = self.depot(class).magazine_count() as usize;
                count * class.magazine_count() as usize * class.stride_bytes()
            })
            .sum()
    }

    /// Returns the bytes of blocks of slabs that are not out.
    pub fn slab_bytes(&self) -> usize {
        Class::all_shared().map(|class| self.slabs(class).idle_count() * class.stride_bytes()).sum()
    }

    /// Returns no less than what is stored, without a walk over the depots.
    pub fn most_bytes(&self) -> usize {
        self.slab_bytes() + self.depot_bytes()
    }

    /// Returns the bytes of what is in the depots.
    pub fn depots_held_bytes(&self) -> usize {
        Class::all_shared()
            .map(|class| self.depot(class).block_count() as usize * class.stride_bytes())
            .sum()
    }

    /// Makes the store whole in a process that was just forked.
    ///
    /// # Safety
    /// As for `Lock::recover`.
    pub unsafe fn recover(&self) {
        for class in Class::all_shared() {
            // SAFETY: the caller's contract.
            unsafe {
                self.depot(class).recover();
                self.slabs(class).recover(class);
            }
        }
    }

    /// Walks every slab and every magazine, whose blocks have this tag but are not live; fatal if
    /// one contradicts itself.
    pub fn check(&self, tag: Header) {
        for class in Class::all_shared() {
            self.slabs(class).check(class);
            let free_header = free_header(tag, class);
            let check_magazine = |magazine: Magazine| {
                let (count, most) = (magazine.count as usize, class.magazine_count() as usize);
                if !(1..=most).contains(&count) {
                    fatal::broken("blocks of a magazine", count, most);
                }
                check_list("blocks of a magazine", magazine, free_header);
            };
            if let Err((name, left, right)) = self.depot(class).check(check_magazine) {
                fatal::broken(name, left as usize, right as usize);
            }
        }
    }
}

/// The header of a free block, where live ones of class 0 have this tag.
pub fn free_header(tag: Header, class: Class) -> Header {
    tag.without(LIVE).with_class(class.index())
}

/// Gives back the spans of free large blocks.
fn give_large<S: Supply>(magazine: Magazine, supply: &S) {
    for block in blocks_of(magazine) {
        supply.give_span(supply.span_of_free(block, SpanKind::Slab));
    }
}
