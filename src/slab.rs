//! Slabs: spans cut into persistent blocks of one class.
//!
//! - **A1** Of a slab's blocks, `free_count` are on its own list, `slab_count - carved_count` were
//!   never cut, and the rest are out in magazines, bins or use.
//! - **A2** A slab is on its class's list while it has a block to give; when all of its blocks are
//!   back it is nobody's and its pages go.

use crate::bin::Raw;
use crate::block::{Block, Header, Memory, NONE};
use crate::depot::Magazine;
use crate::size_class::{Class, HEADER_BYTES};
use crate::span::{Span, SpanKind};
use crate::sync::{Lock, Ordering};
use core::ptr::null;

struct Listed {
    first: *const Span,
    /// Blocks on slabs' own lists, and cut but given to nobody: figures for `stats`.
    idle_count: usize,
}

// SAFETY: the pointers are to type-stable descriptors, whose lists the lock guards.
unsafe impl Send for Listed {}

/// The slabs of one class.
pub struct Slabs {
    listed: Lock<Listed>,
}

/// What a carve took under the lock; the blocks are linked outside it, where page faults are free.
struct Cut {
    recycled: Magazine,
    fresh_base: usize,
    fresh_count: u32,
}

impl Slabs {
    /// No slab.
    pub const fn new() -> Self {
        Self { listed: Lock::new(Listed { first: null(), idle_count: 0 }) }
    }

    /// Takes up to `want` free blocks from one slab, made by `fresh_slab` when none has any.
    /// `Magazine::EMPTY`: there is no memory for a slab.
    pub fn carve<'h>(
        &self,
        class: Class,
        want: u32,
        free_header: Header,
        fresh_slab: impl Fn() -> Option<&'h Span>,
    ) -> Magazine {
        loop {
            if let Some(cut) = self.cut(class, want) {
                return link_fresh(class, cut, free_header);
            }
            let Some(span) = fresh_slab() else { return Magazine::EMPTY };
            let mut listed = self.listed.lock();
            push(&mut listed, span);
            listed.idle_count += class.slab_count() as usize;
        }
    }

    fn cut(&self, class: Class, want: u32) -> Option<Cut> {
        let mut listed = self.listed.lock();
        // SAFETY: listed descriptors are slabs of this class, guarded by the lock.
        let span = unsafe { listed.first.as_ref()? };
        let slab = &span.slab;
        let recycled = take_recycled(span, want);
        let carved = slab.carved_count.get();
        let fresh_count = (want - recycled.count).min(class.slab_count() - carved);
        slab.carved_count.set(carved + fresh_count);
        listed.idle_count -= (recycled.count + fresh_count) as usize;
        if slab.free_count.get() == 0 && slab.carved_count.get() == class.slab_count() {
            remove(&mut listed, span);
        }
        let fresh_base = span.base() + HEADER_BYTES + carved as usize * class.stride_bytes();
        Some(Cut { recycled, fresh_base, fresh_count })
    }

    /// Takes blocks back, one after the other, and hands slabs that are whole again to `release`.
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
            // SAFETY: a slab that `take_back` returns is on no list, and no block of it is out.
            if let Some(span) = unsafe { whole.as_ref() } {
                release(span);
            }
        }
    }

    /// The lock, for the time around a `fork`.
    pub fn fork_lock(&self) -> &Lock<impl Sized + use<>> {
        &self.listed
    }

    /// How many blocks lie in slabs.
    pub fn idle_count(&self) -> usize {
        self.listed.lock().idle_count
    }

    /// Walks the list; fatal when a slab on it contradicts A1 or A2.
    pub fn check(&self, class: Class) {
        let listed = self.listed.lock();
        let mut idle = 0;
        let mut at = listed.first;
        // SAFETY: as in `cut`.
        while let Some(span) = unsafe { at.as_ref() } {
            if span.kind() != SpanKind::Slab || span.class_index() != class.index() {
                crate::fatal::broken("class of a listed slab", span.class_index(), class.index());
            }
            let mut count = 0;
            let mut block = span.slab.free.get();
            while block != NONE {
                count += 1;
                block = Raw.link(block);
            }
            if count != span.slab.free_count.get() {
                crate::fatal::broken(
                    "free blocks of a slab",
                    count as usize,
                    span.slab.free_count.get() as usize,
                );
            }
            idle += (count + class.slab_count() - span.slab.carved_count.get()) as usize;
            at = span.next.get();
        }
        if idle != listed.idle_count {
            crate::fatal::broken("idle blocks of a class", idle, listed.idle_count);
        }
    }
}

/// Takes up to `want` blocks off a slab's own list.
fn take_recycled(span: &Span, want: u32) -> Magazine {
    let slab = &span.slab;
    let (head, available) = (slab.free.get(), slab.free_count.get());
    if available <= want {
        slab.free.set(NONE);
        slab.free_count.set(0);
        return Magazine { head, count: available };
    }
    let last = (1..want).fold(head, |block, _| Raw.link(block));
    slab.free.set(Raw.link(last));
    slab.free_count.set(available - want);
    Raw.set_link(last, NONE);
    Magazine { head, count: want }
}

/// Writes the headers and links of blocks that were just cut, in address order, before the recycled.
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

/// Puts a block on its slab's list; returns the slab, unlisted, when it is whole.
fn take_back(listed: &mut Listed, class: Class, span: &Span, block: Block) -> *const Span {
    let slab = &span.slab;
    Raw.set_link(block, slab.free.get());
    slab.free.set(block);
    slab.free_count.set(slab.free_count.get() + 1);
    listed.idle_count += 1;
    if slab.free_count.get() == slab.carved_count.get() {
        if slab.listed.get() {
            remove(listed, span);
        }
        listed.idle_count -= class.slab_count() as usize;
        return span;
    }
    if !slab.listed.get() {
        push(listed, span);
    }
    null()
}

fn push(listed: &mut Listed, span: &Span) {
    span.previous.set(null());
    span.next.set(listed.first);
    // SAFETY: a listed descriptor, guarded by the lock.
    if let Some(first) = unsafe { listed.first.as_ref() } {
        first.previous.set(span);
    }
    listed.first = span;
    span.slab.listed.set(true);
}

fn remove(listed: &mut Listed, span: &Span) {
    let (previous, next) = (span.previous.get(), span.next.get());
    // SAFETY: neighbours on the list, guarded by the lock.
    match unsafe { previous.as_ref() } {
        Some(previous) => previous.next.set(next),
        None => listed.first = next,
    }
    // SAFETY: as above.
    if let Some(next) = unsafe { next.as_ref() } {
        next.previous.set(previous);
    }
    span.slab.listed.set(false);
}
