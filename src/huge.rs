//! Mappings of one block each, and a small decaying store of those just freed: mapping and
//! unmapping the same megabytes over and over costs ten times what using them does, in page faults.
//!
//! A mapping from the store may be much longer than the block it serves next. It is *loose* then: a
//! while later, if the block is still there, the rest is given back.
//!
//! - **U1** A mapping in the store is registered, of kind `Cached`, and nobody else's.
//! - **U2** A loose mapping's length changes only under the lock.

use crate::chunk::CHUNK_BYTES;
use crate::os;
use crate::page_heap::PageHeap;
use crate::size_class::{HEADER_BYTES, PAGE_BYTES};
use crate::span::{Span, SpanKind};
use crate::sync::{AtomicUsize, Lock, Ordering};
use core::ptr::null;

const ENTRY_COUNT: usize = 16;
/// What the store holds at most.
const MAX_CACHED_BYTES: usize = 64 * 1024 * 1024;
/// A mapping serves a block when at most this part of it is left over.
const SLACK_DIVISOR: usize = 4;
/// How long a mapping stays.
const KEEP_MILLISECONDS: u64 = 500;

/// The mappings.
pub struct Mappings {
    store: Lock<Store>,
    cached_bytes: AtomicUsize,
    mapped_bytes: AtomicUsize,
}

struct Store {
    cached: [*const Span; ENTRY_COUNT],
    loose: [*const Span; ENTRY_COUNT],
}

// SAFETY: the pointers are to type-stable descriptors, guarded by the lock.
unsafe impl Send for Store {}

/// A mapping and what is known of its memory.
pub struct Mapped<'h> {
    /// Its descriptor.
    pub span: &'h Span,
    /// Every byte of it reads as zero.
    pub zeroed: bool,
}

/// Forgets the chunk numbers that only the end of a mapping has which is about to go.
fn forget_end(pages: &PageHeap, base: usize, old: usize, new: usize) {
    let first = (base + new).next_multiple_of(CHUNK_BYTES);
    if first < base + old {
        pages.registry.remove(first, base + old - first);
    }
}

/// Whether a mapping is hardly longer than the `wanted` bytes.
fn is_snug(bytes: usize, wanted: usize) -> bool {
    bytes - wanted <= wanted / SLACK_DIVISOR
}

/// The length of the mapping for `size` bytes of payload, wherever in it an alignment puts them.
pub fn mapping_bytes(size: usize, align: usize) -> Option<usize> {
    let padding = if align > 16 { align } else { 0 };
    let bytes = size.checked_add(2 * HEADER_BYTES)?.checked_add(padding)?;
    (bytes <= isize::MAX as usize - CHUNK_BYTES).then(|| bytes.next_multiple_of(PAGE_BYTES))
}

impl Mappings {
    /// Nothing is mapped.
    pub const fn new() -> Self {
        Self {
            store: Lock::new(Store { cached: [null(); ENTRY_COUNT], loose: [null(); ENTRY_COUNT] }),
            cached_bytes: AtomicUsize::new(0),
            mapped_bytes: AtomicUsize::new(0),
        }
    }

    /// A mapping that holds `size` bytes at this alignment. `None`: the system has no more memory.
    pub fn take<'h>(
        &self,
        pages: &'h PageHeap,
        size: usize,
        align: usize,
        owner: usize,
    ) -> Option<Mapped<'h>> {
        let bytes = mapping_bytes(size, align)?;
        if let Some(span) = self.take_cached(bytes) {
            if span.bytes() >= bytes || self.set_bytes(pages, span, bytes) {
                let (base, length) = (span.base(), span.bytes());
                span.describe(SpanKind::Huge, 0, base, length, owner);
                self.note_loose(pages, span, bytes);
                return Some(Mapped { span, zeroed: false });
            }
            self.release(pages, span);
        }
        let span = pages.take_descriptor()?;
        let Some(base) = os::map_aligned(bytes, CHUNK_BYTES, 0) else {
            pages.give_descriptor(span);
            return None;
        };
        if !pages.registry.prepare(&pages.meta, base, bytes) {
            // SAFETY: just mapped, unknown to anybody.
            unsafe { os::unmap(base, bytes) };
            pages.give_descriptor(span);
            return None;
        }
        span.describe(SpanKind::Huge, 0, base, bytes, owner);
        pages.registry.add_mapping(span);
        self.mapped_bytes.fetch_add(bytes, Ordering::Relaxed);
        Some(Mapped { span, zeroed: true })
    }

    /// The shortest mapping in the store that is long enough, else the longest if it is not far
    /// from it: making it longer keeps the pages it has.
    fn take_cached<'h>(&self, bytes: usize) -> Option<&'h Span> {
        if self.cached_bytes.load(Ordering::Relaxed) < bytes / 2 {
            return None;
        }
        let mut store = self.store.lock();
        let (span, slot) = store
            .cached
            .iter_mut()
            // SAFETY: what the store holds are type-stable descriptors.
            .filter_map(|slot| unsafe { slot.as_ref() }.map(|span| (span, slot)))
            .filter(|(span, _)| span.bytes() >= bytes / 2)
            .min_by_key(|(span, _)| (span.bytes() < bytes, span.bytes().abs_diff(bytes)))?;
        *slot = null();
        self.cached_bytes.fetch_sub(span.bytes(), Ordering::Relaxed);
        Some(span)
    }

    /// A mapping from the store serves a block that needs `wanted` bytes of it.
    fn note_loose(&self, pages: &PageHeap, span: &Span, wanted: usize) {
        if is_snug(span.bytes(), wanted) {
            return;
        }
        span.carved_end.set(os::coarse_milliseconds() as usize);
        span.loose_need.store(wanted, Ordering::Relaxed);
        let mut store = self.store.lock();
        match store.loose.iter_mut().find(|slot| slot.is_null()) {
            Some(slot) => *slot = span,
            None => self.tighten(pages, span),
        }
    }

    /// Gives back what a loose mapping has too much.
    fn tighten(&self, pages: &PageHeap, span: &Span) {
        let wanted = span.loose_need.load(Ordering::Relaxed);
        if wanted != 0 {
            self.set_bytes(pages, span, wanted);
            // Last: who finds 0 goes on without the lock.
            span.loose_need.store(0, Ordering::Release);
        }
    }

    /// The block of a mapping is freed or resized: it is loose no more (U2).
    fn forget_loose(&self, span: &Span) {
        if span.loose_need.load(Ordering::Acquire) == 0 {
            return;
        }
        let mut store = self.store.lock();
        span.loose_need.store(0, Ordering::Relaxed);
        if let Some(slot) = store.loose.iter_mut().find(|slot| core::ptr::eq(**slot, span)) {
            *slot = null();
        }
    }

    /// Takes a mapping back. It stays for a while, and the oldest ones go to make room for it.
    pub fn give(&self, pages: &PageHeap, span: &Span, now: u64) {
        self.forget_loose(span);
        let bytes = span.bytes();
        if bytes > MAX_CACHED_BYTES {
            return self.release(pages, span);
        }
        span.set_owner(0);
        span.note.set(now as usize);
        span.set_kind(SpanKind::Cached);
        while let Some(oldest) = self.put(span, bytes) {
            self.release(pages, oldest);
        }
    }

    /// Puts a mapping into the store, or takes the oldest out, which stands in its way.
    fn put<'h>(&self, span: &Span, bytes: usize) -> Option<&'h Span> {
        let mut store = self.store.lock();
        let has_room = self.cached_bytes.load(Ordering::Relaxed) + bytes <= MAX_CACHED_BYTES;
        if has_room {
            if let Some(slot) = store.cached.iter_mut().find(|slot| slot.is_null()) {
                *slot = span;
                self.cached_bytes.fetch_add(bytes, Ordering::Relaxed);
                return None;
            }
        }
        self.take_oldest(&mut store)
    }

    fn take_oldest<'h>(&self, store: &mut Store) -> Option<&'h Span> {
        let (span, slot) = store
            .cached
            .iter_mut()
            // SAFETY: what the store holds are type-stable descriptors.
            .filter_map(|slot| unsafe { slot.as_ref() }.map(|span| (span, slot)))
            .min_by_key(|(span, _)| span.note.get())?;
        *slot = null();
        self.cached_bytes.fetch_sub(span.bytes(), Ordering::Relaxed);
        Some(span)
    }

    fn release(&self, pages: &PageHeap, span: &Span) {
        let (base, bytes) = (span.base(), span.bytes());
        pages.registry.remove(base, bytes);
        pages.give_descriptor(span);
        self.mapped_bytes.fetch_sub(bytes, Ordering::Relaxed);
        // SAFETY: the mapping is the caller's and nothing names it any more.
        unsafe { os::unmap(base, bytes) };
    }

    /// Gives mappings back to the system that were put in the store long before `now`, and what is
    /// too much of loose ones; all of them when `now` is `None`. Returns the store's bytes that went.
    pub fn decay(&self, pages: &PageHeap, now: Option<u64>) -> usize {
        let is_old = |since: usize| {
            now.is_none_or(|now| now.saturating_sub(since as u64) >= KEEP_MILLISECONDS)
        };
        let mut bytes = 0;
        while let Some(span) = self.take_old(is_old) {
            bytes += span.bytes();
            self.release(pages, span);
        }
        let mut store = self.store.lock();
        for slot in &mut store.loose {
            // SAFETY: what the store holds are type-stable descriptors.
            let Some(span) = (unsafe { slot.as_ref() }) else { continue };
            if is_old(span.carved_end.get()) {
                // A system call under the lock: without it the block could be freed meanwhile.
                self.tighten(pages, span);
                *slot = null();
            }
        }
        bytes
    }

    fn take_old<'h>(&self, is_old: impl Fn(usize) -> bool) -> Option<&'h Span> {
        if self.cached_bytes.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let mut store = self.store.lock();
        let oldest = self.take_oldest(&mut store)?;
        if is_old(oldest.note.get()) {
            return Some(oldest);
        }
        if let Some(slot) = store.cached.iter_mut().find(|slot| slot.is_null()) {
            *slot = oldest;
            self.cached_bytes.fetch_add(oldest.bytes(), Ordering::Relaxed);
        }
        None
    }

    /// Changes the length of a mapping, moving its pages where they cannot stay. The payload begins
    /// at the same distance from the base as before. `false`: nothing has changed.
    pub fn resize(&self, pages: &PageHeap, span: &Span, size: usize) -> bool {
        self.forget_loose(span);
        mapping_bytes(size, 1).is_some_and(|bytes| self.set_bytes(pages, span, bytes))
    }

    fn set_bytes(&self, pages: &PageHeap, span: &Span, new: usize) -> bool {
        let (base, old) = (span.base(), span.bytes());
        if new == old {
            return true;
        }
        if !pages.registry.prepare(&pages.meta, base, new) {
            return false;
        }
        // What is registered must be mapped: the end that goes is forgotten before, the one that
        // comes is entered after. What stays is never touched: its block may be freed meanwhile.
        if new < old {
            forget_end(pages, base, old, new);
        }
        // SAFETY: the mapping is the caller's.
        if unsafe { os::resize(base, old, new) } {
            span.set_bytes(new);
        } else if new < old || !self.relocate(pages, span, new) {
            pages.registry.add_mapping(span);
            return false;
        }
        pages.registry.add_mapping(span);
        self.mapped_bytes.fetch_add(new.wrapping_sub(old), Ordering::Relaxed);
        true
    }

    /// Moves a mapping's pages to a longer one, without copying. Where it stands then is not registered.
    fn relocate(&self, pages: &PageHeap, span: &Span, new: usize) -> bool {
        let (base, old) = (span.base(), span.bytes());
        let Some(target) = os::map_aligned(new, CHUNK_BYTES, 0) else { return false };
        if !pages.registry.prepare(&pages.meta, target, new) {
            // SAFETY: mapped above, unknown to anybody.
            unsafe { os::unmap(target, new) };
            return false;
        }
        // The old addresses are anybody's as soon as the pages have moved: forget them before.
        pages.registry.remove(base, old);
        // SAFETY: both mappings are the caller's.
        let moved = unsafe { os::move_pages(base, old, target, new) };
        if moved {
            span.describe_mapping(target, new);
        } else {
            // SAFETY: as above.
            unsafe { os::unmap(target, new) };
        }
        moved
    }

    /// The lock, for the time around a `fork`.
    pub fn fork_lock(&self) -> &Lock<impl Sized + use<>> {
        &self.store
    }

    /// Bytes of all mappings, and of those in the store.
    pub fn figures(&self) -> (usize, usize) {
        (self.mapped_bytes.load(Ordering::Relaxed), self.cached_bytes.load(Ordering::Relaxed))
    }
}
