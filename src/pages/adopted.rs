//! Adopted spans: regions whose request is over and in which persistent blocks are. The store lists
//! those that are lent to nobody; see `lockfree/token` for who gives one back.
//!
//! - **A4** A span is on the list exactly while `region.listed` is set. Both change under the
//!   store's lock, which also guards `next` and `previous` of what is listed.

use crate::base::fatal;
use crate::base::sync::{AtomicBool, AtomicUsize, Lock, Ordering, step};
use crate::pages::span::{Span, SpanKind};
use core::ptr::null;

struct Listed {
    first: *const Span,
    last: *const Span,
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
            listed: Lock::new(Listed { first: null(), last: null(), count: 0, touched: null() }),
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
        // What was just used is warm; what is full comes last.
        let is_last = span.region.is_full();
        let (before, after) = if is_last { (listed.last, null()) } else { (null(), listed.first) };
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

    /// Takes the token of the span that was listed first. `None`: there is none with room.
    pub fn take<'h>(&self) -> Option<&'h Span> {
        if !self.any() || self.is_pinning() {
            return None;
        }
        let mut listed = self.listed.lock();
        // SAFETY: null, or a listed descriptor (M1), guarded by the lock.
        let span = unsafe { listed.first.as_ref()? };
        if span.region.is_full() {
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
        // SAFETY: listed descriptors (M1), guarded by the lock.
        while let Some(span) = unsafe { at.as_ref() } {
            if span.kind() != SpanKind::Region || !span.region.listed.load(Ordering::Relaxed) {
                fatal::broken("kind of an adopted span", span.kind() as usize, count);
            }
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

fn remove(listed: &mut Listed, span: &Span) {
    listed.touched = span;
    step();
    let (previous, next) = (span.previous.get(), span.next.get());
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
    let (mut count, mut at, mut previous) = (0, listed.first, null());
    // SAFETY: as in `check`; this is the only thread.
    while let Some(span) = unsafe { at.as_ref() } {
        span.previous.set(previous);
        span.region.listed.store(true, Ordering::Relaxed);
        count += 1;
        previous = at;
        at = span.next.get();
    }
    listed.last = previous;
    listed.count = count;
}
