//! The blocks of a request that are not in a region: each with a span of pages or a mapping of its
//! own, on the request's list.
//!
//! | field | written by | read by |
//! |---|---|---|
//! | `first` | the thread with the heap's lock of the list; the one that ends the request, alone | the same |
//! | `count` | the thread with that lock | any thread |
//! | `made_count` | the thread that makes a block, by read-modify-write | any thread |
//! | `bytes` | the same, and the owner that resizes its block: by read-modify-write | any thread |

use crate::base::sync::{AtomicUsize, Ordering, step};
use crate::lockfree::large::{LargeBlocks, LargeCount};
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
    /// Blocks that were ever on the list.
    made_count: AtomicUsize,
}

impl LargeList {
    /// Creates an empty list.
    pub const fn new() -> Self {
        Self {
            first: Cell::new(null()),
            count: LargeCount::new(),
            bytes: AtomicUsize::new(0),
            made_count: AtomicUsize::new(0),
        }
    }

    /// Opens an empty list for a new request that no other thread knows yet.
    #[inline]
    pub fn open(&self) {
        self.count.open();
        self.bytes.store(0, Ordering::Relaxed);
        self.made_count.store(0, Ordering::Relaxed);
    }

    /// Counts a block that is linked next.
    pub fn note_made(&self) {
        self.made_count.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns how many blocks were made, freed ones included.
    pub fn made_count(&self) -> usize {
        self.made_count.load(Ordering::Relaxed)
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

    /// The list, with the footprint of its request.
    pub fn of<'l>(&'l self, footprint: &'l Footprint) -> ListOf<'l> {
        ListOf { list: self, footprint }
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

/// The list of a request. Callers have the lock.
pub struct ListOf<'l> {
    list: &'l LargeList,
    footprint: &'l Footprint,
}

impl LargeBlocks for ListOf<'_> {
    type Block = Span;

    fn insert(&self, span: &Span) {
        let second = self.list.first.get();
        span.previous.set(null());
        span.next.set(second);
        step();
        self.list.first.set(span);
        step();
        // SAFETY: null, or a descriptor (M1), on the list that the lock guards.
        if let Some(second) = unsafe { second.as_ref() } {
            second.previous.set(span);
            step();
        }
    }

    fn remove(&self, span: &Span) {
        let (previous, next) = (span.previous.get(), span.next.get());
        // SAFETY: null, or a neighbour on the list, which the lock guards.
        match unsafe { previous.as_ref() } {
            Some(previous) => previous.next.set(next),
            None => self.list.first.set(next),
        }
        step();
        // SAFETY: as above.
        if let Some(next) = unsafe { next.as_ref() } {
            next.previous.set(previous);
            step();
        }
    }

    fn charge(&self, span: &Span) {
        self.list.bytes.fetch_add(span.own.charged_bytes.get(), Ordering::Relaxed);
    }

    fn refund(&self, span: &Span) {
        let bytes = span.own.charged_bytes.get();
        self.list.bytes.fetch_sub(bytes, Ordering::Relaxed);
        step();
        self.footprint.refund(bytes);
    }

    fn count(&self) -> &LargeCount {
        &self.list.count
    }

    fn take_all(&self) -> impl Iterator<Item = &Span> {
        self.list.take_all()
    }
}
