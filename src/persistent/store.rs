//! The process's store of free persistent blocks: for each class the magazines that threads handed
//! over, and the slabs that all blocks are cut from.
//!
//! Blocks with a span of their own are not kept here: the span of a free one goes back at once.

use crate::base::fatal;
use crate::base::size_class::{
    Class, FIRST_LARGE_CLASS, FIRST_PAYLOAD_OFFSET, HEADER_BYTES, PAGE_BYTES,
};
use crate::base::sync::Ordering;
use crate::blocks::allocated::Allocated;
use crate::blocks::bin::check_list;
use crate::blocks::holes::note_holes;
use crate::blocks::memory::Raw;
use crate::blocks::region::free_hole;
use crate::lockfree::depot::{Depot, Magazine, Slots};
use crate::lockfree::header::{Block, Header, LIVE, Memory, NONE, linked};
use crate::lockfree::token::reap;
use crate::pages::page_heap::Taken;
use crate::pages::shelf::Shelf;
use crate::pages::span::{Span, SpanKind};
use crate::pages::supply::Supply;
use crate::persistent::from_holes;
use crate::persistent::slab::Slabs;
use core::iter::from_fn;
use core::ptr::{null_mut, with_exposed_provenance_mut};

/// Most magazines in a depot.
const SLOTS_PER_DEPOT: u32 = 4096;
/// Bytes of the slots of one depot.
const DEPOT_BYTES: usize = SLOTS_PER_DEPOT as usize * size_of::<Magazine>();
/// Bytes of the slots of all depots.
pub const SLOTS_BYTES: usize = DEPOT_BYTES * FIRST_LARGE_CLASS;
/// Most magazines that are reaped before the process grows.
const REAPED_BEFORE_GROWTH: usize = 32;
/// Most magazines of a class that are reaped at a tick.
const REAPED_AT_A_TICK: u32 = 64;

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
}

impl Store {
    /// Creates an empty store. Without slots every depot is full: magazines go back to their slabs.
    pub const fn new() -> Self {
        Self {
            slabs: [const { Slabs::new() }; FIRST_LARGE_CLASS],
            depots: [const { Depot::new(SlotArray { first: null_mut(), capacity: 0 }) };
                FIRST_LARGE_CLASS],
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
        let slabs = self.slabs(class);
        loop {
            let recycled = slabs.take(class, want, free_header);
            if !recycled.is_empty() {
                return recycled;
            }
            let cut = from_holes::cut(class, want, free_header, supply);
            if !cut.is_empty() {
                return cut;
            }
            let taken = supply.take_span(SpanKind::Slab, class.index(), class.slab_pages(), 0);
            let Some(Taken { span, .. }) = taken else { return Magazine::EMPTY };
            slabs.add(class, span);
        }
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
        if class.is_large() || supply.adopted().any() {
            reap_adopted(class, magazine, supply)
        } else {
            magazine
        }
    }

    /// Takes back free blocks of `class` that lie in slabs.
    pub fn put_rest<S: Supply>(&self, class: Class, magazine: Magazine, supply: &S) {
        if magazine.is_empty() {
            return;
        }
        if class.is_large() {
            give_large(magazine, supply);
        } else if let Err(magazine) = self.depot(class).put(magazine) {
            self.reap(class, magazine, supply);
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
    fn reap<S: Supply>(&self, class: Class, magazine: Magazine, supply: &S) {
        let of_slabs = reap_adopted(class, magazine, supply);
        if of_slabs.is_empty() {
            return;
        }
        self.slabs(class).reap(
            class,
            of_slabs,
            |block| supply.span_of_free(block, SpanKind::Slab),
            |span| supply.give_span(span),
        );
    }

    /// Reaps the coldest magazines of a class, at most `count`.
    fn reap_coldest<S: Supply>(&self, class: Class, count: usize, supply: &S) {
        for magazine in from_fn(|| self.depot(class).take_coldest()).take(count) {
            self.reap(class, magazine, supply);
        }
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

    /// Reaps half of the magazines that nobody needed since the last call.
    pub fn age<S: Supply>(&self, supply: &S) {
        for class in Class::all_shared() {
            let idle = self.depot(class).age().div_ceil(2).min(REAPED_AT_A_TICK);
            self.reap_coldest(class, idle as usize, supply);
        }
    }

    /// Reaps every magazine.
    pub fn release<S: Supply>(&self, supply: &S) {
        for class in Class::all_shared() {
            // No more than there were: other threads may put as fast as this one takes.
            let count = self.depot(class).magazine_count();
            self.reap_coldest(class, count as usize, supply);
        }
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

    fn slab_bytes(&self) -> usize {
        Class::all_shared().map(|class| self.slabs(class).idle_count() * class.stride_bytes()).sum()
    }

    /// Returns no less than what is stored, without a walk over the depots.
    pub fn most_bytes(&self) -> usize {
        self.slab_bytes() + self.depot_bytes()
    }

    /// Returns the bytes of what is stored.
    pub fn held_bytes(&self) -> usize {
        let in_depots: usize = Class::all_shared()
            .map(|class| self.depot(class).block_count() as usize * class.stride_bytes())
            .sum();
        self.slab_bytes() + in_depots
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
                if magazine.is_empty() {
                    fatal::broken("blocks of a magazine", 0, 1);
                }
                check_list("blocks of a magazine", magazine, free_header);
            };
            if let Err((name, left, right)) = self.depot(class).check(check_magazine) {
                fatal::broken(name, left as usize, right as usize);
            }
        }
    }
}

/// Returns the blocks of a magazine that lie in adopted spans, or in regions whose request is open,
/// to them; the others.
fn reap_adopted<S: Supply>(class: Class, magazine: Magazine, supply: &S) -> Magazine {
    let mut others = Magazine::EMPTY;
    // Neighbours mostly come one after the other: they are counted off together.
    let mut run: Option<Run<'_>> = None;
    for block in linked(&Raw, magazine.head).take(magazine.count as usize) {
        let page = (block - HEADER_BYTES) / PAGE_BYTES;
        let run = match &mut run {
            Some(run) if run.page == page => run,
            _ => {
                let span = supply.span_of_free_persistent(block);
                let count = match run.take() {
                    Some(run) if core::ptr::eq(run.span, span) => run.count,
                    other => {
                        finish_run(class, other, supply);
                        0
                    }
                };
                let persistent = Header(Raw.header(block).load(Ordering::Relaxed)).id();
                run.insert(Run { span, page, count, persistent })
            }
        };
        if run.span.kind() == SpanKind::Region {
            free_hole(block - HEADER_BYTES, class.stride_bytes());
            run.count += 1;
        } else {
            Raw.set_link(block, others.head);
            others = Magazine { head: block, count: others.count + 1 };
        }
    }
    finish_run(class, run, supply);
    others
}

/// Blocks of one span that were reaped and still count. (A page that the span gave back may be
/// another span's, so one is known by its pages only.)
struct Run<'s> {
    span: &'s Span,
    page: usize,
    count: u64,
    /// The id of persistent blocks.
    persistent: u64,
}

fn finish_run<S: Supply>(class: Class, run: Option<Run<'_>>, supply: &S) {
    if let Some(Run { span, count, persistent, .. }) = run.filter(|run| run.count > 0) {
        note_holes(supply, span, count as usize * class.stride_bytes(), persistent);
        // Nothing of the span is touched afterwards.
        reap(&Shelf(supply), span, count);
    }
}

/// The header of a free block, where live ones of class 0 have this tag.
pub fn free_header(tag: Header, class: Class) -> Header {
    tag.without(LIVE).with_class(class.index())
}

/// Gives back the spans of free large blocks.
fn give_large<S: Supply>(magazine: Magazine, supply: &S) {
    for block in linked(&Raw, magazine.head).take(magazine.count as usize) {
        supply.give_span(supply.span_of_free(block, SpanKind::Slab));
    }
}
