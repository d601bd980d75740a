//! The blocks of a request that are not in a region: each with a span of pages or a mapping of its
//! own, on the request's list.
//!
//! | field | written by | read by |
//! |---|---|---|
//! | `first` | the thread with the heap's lock of the list; the one that ends the request, alone | the same |
//! | `count` | the thread with that lock | any thread |
//! | `bytes` | the same, and the owner that resizes its block: by read-modify-write | any thread |

use crate::base::sync::{AtomicUsize, Ordering, step};
use crate::lockfree::lifecycle::LargeCount;
use crate::pages::span::Span;
use crate::request::footprint::Footprint;
use crate::request::span_list::SpanList;
use core::cell::Cell;
use core::ptr::null;

/// The list. Callers have the lock, unless a method says otherwise.
pub struct LargeList {
    first: Cell<*const Span>,
    count: LargeCount,
    /// Bytes that the request is charged for its large blocks.
    bytes: AtomicUsize,
}

impl LargeList {
    /// Creates an empty list.
    pub const fn new() -> Self {
        Self { first: Cell::new(null()), count: LargeCount::new(), bytes: AtomicUsize::new(0) }
    }

    /// Opens an empty list for a new request that no other thread knows yet.
    #[inline]
    pub fn open(&self) {
        self.count.open();
        self.bytes.store(0, Ordering::Relaxed);
    }

    /// Puts the span of a large block, charged `charged_bytes`, on the list.
    pub fn link(&self, span: &Span, charged_bytes: usize) {
        let second = self.first.get();
        span.previous.set(null());
        span.next.set(second);
        span.own.charged_bytes.set(charged_bytes);
        step();
        self.first.set(span);
        step();
        // SAFETY: null, or a descriptor (M1), on the list that the lock guards.
        if let Some(second) = unsafe { second.as_ref() } {
            second.previous.set(span);
            step();
        }
        self.count.add();
        step();
        self.bytes.fetch_add(charged_bytes, Ordering::Relaxed);
        step();
    }

    /// Takes a large block's span off the list, its bytes off the footprint and then counts it out.
    /// Afterwards the request may be over (L4).
    pub fn unlink(&self, span: &Span, footprint: &Footprint) {
        let (previous, next) = (span.previous.get(), span.next.get());
        // SAFETY: null, or a neighbour on the list, which the lock guards.
        match unsafe { previous.as_ref() } {
            Some(previous) => previous.next.set(next),
            None => self.first.set(next),
        }
        step();
        // SAFETY: as above.
        if let Some(next) = unsafe { next.as_ref() } {
            next.previous.set(previous);
            step();
        }
        let bytes = span.own.charged_bytes.get();
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        step();
        footprint.refund(bytes);
        step();
        self.count.drop_one();
    }

    /// Notes that a large block needs `new_bytes` now; `growth_bytes` more are already charged.
    /// Called without the lock, by the block's owner.
    pub fn recharge(
        &self,
        span: &Span,
        growth_bytes: usize,
        new_bytes: usize,
        footprint: &Footprint,
    ) {
        let old_bytes = span.own.charged_bytes.get();
        span.own.charged_bytes.set(new_bytes);
        self.bytes.fetch_add(new_bytes.wrapping_sub(old_bytes), Ordering::Relaxed);
        footprint.refund(old_bytes + growth_bytes - new_bytes);
    }

    /// Rebuilds, in a process that was just forked, what follows from the list, which is whole from
    /// its first span on at every step.
    pub fn repair(&self) {
        let (mut count, mut bytes, mut previous) = (0, 0, null());
        for span in self.spans() {
            span.previous.set(previous);
            count += 1;
            bytes += span.own.charged_bytes.get();
            previous = span;
        }
        self.count.recount(count);
        self.bytes.store(bytes, Ordering::Relaxed);
    }

    /// Returns the spans on the list.
    pub fn spans(&self) -> SpanList<'_> {
        // SAFETY: the list links only descriptors (M1), and the lock guards it.
        unsafe { SpanList::from(self.first.get()) }
    }

    /// Takes all spans off the list. Needs no lock once nobody frees a block of the request any
    /// more.
    pub fn take_all(&self) -> SpanList<'_> {
        // SAFETY: as above; what is taken is the caller's alone.
        unsafe { SpanList::from(self.first.replace(null())) }
    }

    /// Returns the number of blocks and the bytes charged for them. Any thread may ask.
    pub fn figures(&self) -> (usize, usize) {
        (self.count.count() as usize, self.bytes())
    }

    /// Returns the bytes charged for the blocks.
    pub fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }
}
