//! Slabs: spans cut into persistent blocks of one class.
//!
//! - **A1** Of a slab's blocks, `free_count` are on its own list, `slab_count - cut_count` were
//!   never cut, and the rest are out in magazines, in bins or in use.
//! - **A2** A slab is on its class's list while it has a block to give; when all of its blocks are
//!   back it is nobody's, and its pages go.
//! - **A3** The list is whole from its first slab on at every step, and all else but `touched`
//!   follows from it, so a process that is forked meanwhile can rebuild the rest.

use crate::base::fatal;
use crate::base::size_class::{Class, HEADER_BYTES};
use crate::base::sync::{Lock, Ordering, step};
use crate::blocks::memory::Raw;
use crate::lockfree::depot::Magazine;
use crate::lockfree::header::{Block, Header, Memory, NONE, linked};
use crate::pages::span::{Span, SpanKind};
use core::ptr::null;

struct Listed {
    first: *const Span,
    /// Blocks on the slabs' own lists, and those that were never cut: a figure for `stats`.
    idle_count: usize,
    /// The slab being changed.
    touched: *const Span,
}

// SAFETY: the pointers are to descriptors (M1), whose lists the lock guards.
unsafe impl Send for Listed {}

/// The slabs of one class.
pub struct Slabs {
    listed: Lock<Listed>,
}

/// What `take_listed` took under the lock; the blocks are linked outside it, where page faults keep
/// nobody waiting.
struct Cut {
    recycled: Magazine,
    fresh_base: usize,
    fresh_count: u32,
}

impl Slabs {
    /// Creates an empty list of slabs.
    pub const fn new() -> Self {
        Self { listed: Lock::new(Listed { first: null(), idle_count: 0, touched: null() }) }
    }

    /// Takes up to `want` free blocks from one slab, which `fresh_slab` makes if none has any.
    /// `Magazine::EMPTY`: there is no memory for a slab.
    pub fn take(&self, class: Class, want: u32, free_header: Header) -> Magazine {
        match self.take_listed(class, want) {
            Some(cut) => link_fresh(class, cut, free_header),
            None => Magazine::EMPTY,
        }
    }

    /// Lists a new slab.
    pub fn add(&self, class: Class, span: &Span) {
        let mut listed = self.listed.lock();
        push(&mut listed, span);
        step();
        listed.idle_count += class.slab_count() as usize;
        listed.touched = null();
    }

    fn take_listed(&self, class: Class, want: u32) -> Option<Cut> {
        let mut listed = self.listed.lock();
        // SAFETY: null, or a descriptor (M1): a slab of this class, on the list that the lock
        // guards.
        let span = unsafe { listed.first.as_ref()? };
        listed.touched = span;
        step();
        let slab = &span.slab;
        let recycled = take_recycled(span, want);
        let cut_before = slab.cut_count.get();
        let fresh_count = (want - recycled.count).min(class.slab_count() - cut_before);
        slab.cut_count.set(cut_before + fresh_count);
        step();
        listed.idle_count -= (recycled.count + fresh_count) as usize;
        step();
        if slab.free_count.get() == 0 && slab.cut_count.get() == class.slab_count() {
            remove(&mut listed, span);
        }
        listed.touched = null();
        let fresh_base = span.base() + HEADER_BYTES + cut_before as usize * class.stride_bytes();
        Some(Cut { recycled, fresh_base, fresh_count })
    }

    /// Takes blocks back, one after the other, and passes slabs that are whole again to `release`.
    /// `span_of` finds the slab of a block.
    pub fn reap<'h>(
        &self,
        class: Class,
        magazine: Magazine,
        span_of: impl Fn(Block) -> &'h Span,
        release: impl Fn(&'h Span),
    ) {
        let mut block = magazine.head;
        let mut left = magazine.count;
        while left > 0 {
            let mut whole: *const Span = null();
            {
                let mut listed = self.listed.lock();
                while left > 0 && whole.is_null() {
                    let next = Raw.link(block);
                    whole = take_back(&mut listed, class, span_of(block), block);
                    block = next;
                    left -= 1;
                }
            }
            // SAFETY: null, or a slab that `take_back` returned: it is on no list, and no block of
            // it is out.
            if let Some(span) = unsafe { whole.as_ref() } {
                release(span);
            }
        }
    }

    /// Makes the list whole in a process that was just forked (A3).
    ///
    /// # Safety
    /// As for `Lock::recover`.
    pub unsafe fn recover(&self, class: Class) {
        // SAFETY: the caller's contract.
        unsafe {
            self.listed.recover(|listed, is_torn| {
                if is_torn {
                    repair(listed, class);
                }
            });
        }
    }

    /// Returns how many blocks lie in slabs.
    pub fn idle_count(&self) -> usize {
        self.listed.lock().idle_count
    }

    /// Walks the list; fatal if a slab on it contradicts A1 or A2.
    pub fn check(&self, class: Class) {
        let listed = self.listed.lock();
        let mut idle = 0;
        let mut at = listed.first;
        // SAFETY: as in `take_listed`.
        while let Some(span) = unsafe { at.as_ref() } {
            if span.kind() != SpanKind::Slab || span.class_index() != class.index() {
                fatal::broken("class of a listed slab", span.class_index(), class.index());
            }
            let count = free_blocks(span);
            if count != span.slab.free_count.get() {
                fatal::broken(
                    "free blocks of a slab",
                    count as usize,
                    span.slab.free_count.get() as usize,
                );
            }
            idle += idle_blocks(span, class);
            at = span.next.get();
        }
        if idle != listed.idle_count {
            fatal::broken("idle blocks of a class", idle, listed.idle_count);
        }
    }
}

/// Rebuilds what follows from the list (A3).
fn repair(listed: &mut Listed, class: Class) {
    // SAFETY: null, or the descriptor (M1) of a slab that the thread with the lock was changing.
    if let Some(touched) = unsafe { listed.touched.as_ref() } {
        touched.slab.free_count.set(free_blocks(touched));
        touched.slab.listed.set(false);
    }
    listed.idle_count = 0;
    let (mut previous, mut at) = (null(), listed.first);
    // SAFETY: as in `take_listed`.
    while let Some(span) = unsafe { at.as_ref() } {
        span.previous.set(previous);
        span.slab.listed.set(true);
        listed.idle_count += idle_blocks(span, class);
        previous = at;
        at = span.next.get();
    }
    // SAFETY: as above.
    let touched = unsafe { listed.touched.as_ref() };
    if let Some(exhausted) = touched.filter(|span| idle_blocks(span, class) == 0) {
        if exhausted.slab.listed.get() {
            remove(listed, exhausted);
        }
    }
    listed.touched = null();
}

/// Counts the blocks on a slab's own list.
fn free_blocks(span: &Span) -> u32 {
    linked(&Raw, span.slab.free.get()).count() as u32
}

/// Takes up to `want` blocks off a slab's own list.
fn take_recycled(span: &Span, want: u32) -> Magazine {
    let slab = &span.slab;
    let (head, available) = (slab.free.get(), slab.free_count.get());
    if available <= want {
        slab.free.set(NONE);
        step();
        slab.free_count.set(0);
        step();
        return Magazine { head, count: available };
    }
    let last = (1..want).fold(head, |block, _| Raw.link(block));
    slab.free.set(Raw.link(last));
    step();
    slab.free_count.set(available - want);
    step();
    Raw.set_link(last, NONE);
    Magazine { head, count: want }
}

/// Writes the headers and links of the blocks just cut, in address order, before the recycled ones.
fn link_fresh(class: Class, cut: Cut, free_header: Header) -> Magazine {
    let stride = class.stride_bytes();
    let first = cut.fresh_base + HEADER_BYTES;
    let mut head = cut.recycled.head;
    for index in (0..cut.fresh_count as usize).rev() {
        let block = first + index * stride;
        Raw.header(block).store(free_header.0, Ordering::Relaxed);
        Raw.set_link(block, head);
        head = block;
    }
    Magazine { head, count: cut.recycled.count + cut.fresh_count }
}

/// Puts a block on its slab's list. Returns the slab, unlisted, if it is whole; else null.
fn take_back(listed: &mut Listed, class: Class, span: &Span, block: Block) -> *const Span {
    let slab = &span.slab;
    listed.touched = span;
    step();
    Raw.set_link(block, slab.free.get());
    step();
    slab.free.set(block);
    step();
    slab.free_count.set(slab.free_count.get() + 1);
    step();
    let was_listed = slab.listed.get();
    if was_listed {
        listed.idle_count += 1;
    }
    let is_whole = slab.free_count.get() == slab.cut_count.get();
    if is_whole && was_listed {
        remove(listed, span);
        listed.idle_count -= idle_blocks(span, class);
    }
    if !is_whole && !was_listed {
        push(listed, span);
        listed.idle_count += idle_blocks(span, class);
    }
    listed.touched = null();
    if is_whole { span } else { null() }
}

/// Returns how many blocks a slab has to give.
fn idle_blocks(span: &Span, class: Class) -> usize {
    let slab = &span.slab;
    (slab.free_count.get() + class.slab_count() - slab.cut_count.get()) as usize
}

fn push(listed: &mut Listed, span: &Span) {
    let second = listed.first;
    listed.touched = span;
    step();
    span.previous.set(null());
    step();
    span.next.set(second);
    step();
    listed.first = span;
    step();
    // SAFETY: null, or a descriptor (M1), on the list that the lock guards.
    if let Some(second) = unsafe { second.as_ref() } {
        second.previous.set(span);
        step();
    }
    span.slab.listed.set(true);
    step();
}

fn remove(listed: &mut Listed, span: &Span) {
    let (previous, next) = (span.previous.get(), span.next.get());
    listed.touched = span;
    step();
    // SAFETY: null, or a neighbour on the list, which the lock guards.
    match unsafe { previous.as_ref() } {
        Some(previous) => previous.next.set(next),
        None => listed.first = next,
    }
    step();
    // SAFETY: as above.
    if let Some(next) = unsafe { next.as_ref() } {
        next.previous.set(previous);
        step();
    }
    span.slab.listed.set(false);
    step();
}
