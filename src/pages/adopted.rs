//! Adopted spans: regions whose request is over and in which persistent blocks are. The store lists
//! those that are lent to nobody; see `lockfree/token` for who gives one back.
//!
//! - **A4** A span is on the list exactly while `region.listed` is set. Both change under the
//!   store's lock, which also guards `next` and `previous` of what is listed.
//! - **A5** First are the spans that were roomy when they were listed, then those that had no long
//!   holes, then, from `first_full` on, those that were full. So the first one tells of all.

use crate::base::fatal;
use crate::base::sync::{AtomicBool, AtomicUsize, Lock, Ordering, step};
use crate::pages::span::{Span, SpanKind};
use core::ptr::null;

struct Listed {
    first: *const Span,
    last: *const Span,
    first_full: *const Span,
    count: usize,
    /// The span that is being listed or taken off.
    touched: *const Span,
}

// SAFETY: the pointers are to type-stable descriptors, whose list the lock guards.
unsafe impl Send for Listed {}

/// The store.
pub struct AdoptedSpans {
    listed: Lock<Listed>,
    /// Bytes of their pages, lent ones too.
    held_bytes: AtomicUsize,
    /// Nothing is lent: what lies between survivors stays unused.
    is_pinning: AtomicBool,
}

impl AdoptedSpans {
    /// No span.
    pub const fn new() -> Self {
        Self {
            held_bytes: AtomicUsize::new(0),
            is_pinning: AtomicBool::new(false),
            listed: Lock::new(Listed {
                first: null(),
                last: null(),
                first_full: null(),
                count: 0,
                touched: null(),
            }),
        }
    }

    /// Lists a span unless `is_empty` says, under the lock, that nothing is left of it; whether it
    /// did.
    pub fn list_unless(&self, span: &Span, is_empty: impl FnOnce() -> bool) -> bool {
        let mut listed = self.listed.lock();
        if is_empty() {
            return false;
        }
        listed.touched = span;
        step();
        let (before, after) = listed.place_for(span);
        span.next.set(after);
        span.previous.set(before);
        span.region.listed.store(true, Ordering::Relaxed);
        step();
        // SAFETY: null, or listed descriptors (M1), guarded by the lock.
        let (before, after) = unsafe { (before.as_ref(), after.as_ref()) };
        match before {
            Some(before) => before.next.set(span),
            None => listed.first = span,
        }
        step();
        match after {
            Some(after) => after.previous.set(span),
            None => listed.last = span,
        }
        step();
        if after.is_none() && listed.first_full.is_null() && span.region.is_full() {
            listed.first_full = span;
        }
        step();
        listed.count += 1;
        listed.touched = null();
        true
    }

    /// Takes this span off the list, if it is on it.
    pub fn unlist(&self, span: &Span) -> bool {
        let mut listed = self.listed.lock();
        span.region.listed.load(Ordering::Relaxed) && {
            remove(&mut listed, span);
            true
        }
    }

    /// Lends nothing from now on, for finding faults: what is freed stays as it was.
    pub fn pin(&self) {
        self.is_pinning.store(true, Ordering::Relaxed);
    }

    /// Whether nothing is lent.
    pub fn is_pinning(&self) -> bool {
        self.is_pinning.load(Ordering::Relaxed)
    }

    /// So many bytes of pages are in adopted spans now.
    pub fn note_held(&self, bytes: usize) {
        self.held_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// So many are given back.
    pub fn note_given(&self, bytes: usize) {
        self.held_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Bytes of the pages of adopted spans, lent ones too.
    pub fn held_bytes(&self) -> usize {
        self.held_bytes.load(Ordering::Relaxed)
    }

    /// Returns whether there is any: else no persistent block lies in one.
    pub fn any(&self) -> bool {
        self.held_bytes() != 0
    }

    /// Takes the token of the span that is listed first. `None`: it has no hole of so many bytes.
    pub fn take<'h>(&self, least_bytes: usize) -> Option<&'h Span> {
        if !self.any() || self.is_pinning() {
            return None;
        }
        let mut listed = self.listed.lock();
        // SAFETY: null, or a listed descriptor (M1), guarded by the lock.
        let span = unsafe { listed.first.as_ref()? };
        if !span.region.has_room(least_bytes) {
            return None;
        }
        remove(&mut listed, span);
        if span.region.is_exhausted() {
            span.region.look_again();
        }
        Some(span)
    }

    /// Takes every token that is listed, and passes each on.
    pub fn take_all(&self, mut use_token: impl FnMut(&Span)) {
        if self.is_pinning() {
            return;
        }
        let mut taken: *const Span = null();
        loop {
            let mut listed = self.listed.lock();
            // SAFETY: null, or a listed descriptor (M1), guarded by the lock.
            let Some(span) = (unsafe { listed.first.as_ref() }) else { break };
            remove(&mut listed, span);
            drop(listed);
            span.next.set(taken);
            taken = span;
        }
        // SAFETY: null, or descriptors whose tokens were taken above (M1).
        while let Some(span) = unsafe { taken.as_ref() } {
            taken = span.next.get();
            use_token(span);
        }
    }

    /// Walks the list; fatal when it contradicts itself (A4).
    pub fn check(&self) {
        let listed = self.listed.lock();
        let (mut count, mut at, mut previous) = (0, listed.first, null());
        let mut is_full_seen = listed.first_full.is_null();
        // SAFETY: listed descriptors (M1), guarded by the lock.
        while let Some(span) = unsafe { at.as_ref() } {
            if span.kind() != SpanKind::Region || !span.region.listed.load(Ordering::Relaxed) {
                fatal::broken("kind of an adopted span", span.kind() as usize, count);
            }
            is_full_seen |= core::ptr::eq(span, listed.first_full);
            if span.previous.get() != previous {
                fatal::broken(
                    "neighbour of an adopted span",
                    span.previous.get().addr(),
                    previous.addr(),
                );
            }
            count += 1;
            previous = at;
            at = span.next.get();
        }
        if !is_full_seen {
            fatal::broken("first full one of the adopted spans", 0, listed.first_full.addr());
        }
        if count != listed.count {
            fatal::broken("adopted spans", count, listed.count);
        }
    }

    /// Makes the list whole in a process that was just forked: from its first span on it is at
    /// every step.
    ///
    /// # Safety
    /// As `Lock::recover`.
    pub unsafe fn recover(&self) {
        // SAFETY: the caller's contract.
        unsafe {
            self.listed.recover(|listed, is_torn| {
                if is_torn {
                    repair(listed);
                }
            });
        }
    }
}

impl Listed {
    /// Between which two a span is listed (A5). Of those with room, what was just used is warm.
    fn place_for(&self, span: &Span) -> (*const Span, *const Span) {
        if span.region.is_roomy() {
            return (null(), self.first);
        }
        // SAFETY: null, or a listed descriptor (M1), guarded by the lock.
        match unsafe { self.first_full.as_ref() } {
            Some(full) if !span.region.is_full() => (full.previous.get(), full),
            _ => (self.last, null()),
        }
    }
}

fn remove(listed: &mut Listed, span: &Span) {
    listed.touched = span;
    step();
    let (previous, next) = (span.previous.get(), span.next.get());
    if core::ptr::eq(span, listed.first_full) {
        listed.first_full = next;
    }
    // SAFETY: null, or listed neighbours (M1), guarded by the lock.
    let (before, after) = unsafe { (previous.as_ref(), next.as_ref()) };
    match before {
        Some(before) => before.next.set(next),
        None => listed.first = next,
    }
    step();
    match after {
        Some(after) => after.previous.set(previous),
        None => listed.last = previous,
    }
    step();
    span.region.listed.store(false, Ordering::Relaxed);
    step();
    listed.count -= 1;
    listed.touched = null();
}

fn repair(listed: &mut Listed) {
    // SAFETY: null, or the descriptor of a span that the thread which held the lock had (M1).
    if let Some(touched) = unsafe { listed.touched.as_ref() } {
        touched.region.listed.store(false, Ordering::Relaxed);
    }
    listed.touched = null();
    listed.first_full = null();
    let (mut count, mut at, mut previous) = (0, listed.first, null());
    // SAFETY: as in `check`; this is the only thread.
    while let Some(span) = unsafe { at.as_ref() } {
        span.previous.set(previous);
        span.region.listed.store(true, Ordering::Relaxed);
        if listed.first_full.is_null() && span.region.is_full() {
            listed.first_full = at;
        }
        count += 1;
        previous = at;
        at = span.next.get();
    }
    listed.last = previous;
    listed.count = count;
}
