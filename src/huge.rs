//! Mappings of one block each, and a small decaying store of those just freed: mapping and
//! unmapping the same megabytes over and over costs ten times what using them does, in page faults.
//!
//! - **U1** A mapping in the store is registered, of kind `Cached`, and nobody else's.

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
    cached: Lock<[*const Span; ENTRY_COUNT]>,
    cached_bytes: AtomicUsize,
    mapped_bytes: AtomicUsize,
}

// SAFETY: the pointers are to type-stable descriptors, owned by the store while they are in it.
unsafe impl Sync for Mappings {}

/// A mapping and what is known of its memory.
pub struct Mapped<'h> {
    /// Its descriptor.
    pub span: &'h Span,
    /// Every byte of it reads as zero.
    pub zeroed: bool,
}

/// The length of the mapping for `size` bytes of payload, wherever in it an alignment puts them.
fn mapping_bytes(size: usize, align: usize) -> Option<usize> {
    let padding = if align > 16 { align } else { 0 };
    let bytes = size.checked_add(2 * HEADER_BYTES)?.checked_add(padding)?;
    (bytes <= isize::MAX as usize - CHUNK_BYTES).then(|| bytes.next_multiple_of(PAGE_BYTES))
}

impl Mappings {
    /// Nothing is mapped.
    pub const fn new() -> Self {
        Self {
            cached: Lock::new([null(); ENTRY_COUNT]),
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
            let length = span.bytes();
            span.describe(SpanKind::Huge, 0, span.base(), length, owner);
            return Some(Mapped { span, zeroed: false });
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

    fn take_cached<'h>(&self, bytes: usize) -> Option<&'h Span> {
        if self.cached_bytes.load(Ordering::Relaxed) < bytes {
            return None;
        }
        let mut cached = self.cached.lock();
        let best = cached
            .iter_mut()
            .filter_map(|slot| {
                // SAFETY: what the store holds are type-stable descriptors.
                let span = unsafe { slot.as_ref()? };
                let fits = span.bytes() >= bytes && span.bytes() - bytes <= bytes / SLACK_DIVISOR;
                fits.then_some((span, slot))
            })
            .min_by_key(|(span, _)| span.bytes());
        let (span, slot) = best?;
        *slot = null();
        self.cached_bytes.fetch_sub(span.bytes(), Ordering::Relaxed);
        Some(span)
    }

    /// Takes a mapping back. It stays for a while if there is room.
    pub fn give(&self, pages: &PageHeap, span: &Span, now: u64) {
        let bytes = span.bytes();
        if self.cached_bytes.load(Ordering::Relaxed) + bytes <= MAX_CACHED_BYTES {
            span.set_owner(0);
            span.note.set(now as usize);
            span.set_kind(SpanKind::Cached);
            let mut cached = self.cached.lock();
            if let Some(slot) = cached.iter_mut().find(|slot| slot.is_null()) {
                *slot = span;
                self.cached_bytes.fetch_add(bytes, Ordering::Relaxed);
                return;
            }
        }
        self.release(pages, span);
    }

    fn release(&self, pages: &PageHeap, span: &Span) {
        let (base, bytes) = (span.base(), span.bytes());
        pages.registry.remove(base, bytes);
        pages.give_descriptor(span);
        self.mapped_bytes.fetch_sub(bytes, Ordering::Relaxed);
        // SAFETY: the mapping is the caller's and nothing names it any more.
        unsafe { os::unmap(base, bytes) };
    }

    /// Gives mappings back to the system that were put in the store long before `now`; all of them
    /// when `now` is `None`. Returns their bytes.
    pub fn decay(&self, pages: &PageHeap, now: Option<u64>) -> usize {
        let mut bytes = 0;
        while let Some(span) = self.take_old(now) {
            bytes += span.bytes();
            self.release(pages, span);
        }
        bytes
    }

    fn take_old<'h>(&self, now: Option<u64>) -> Option<&'h Span> {
        if self.cached_bytes.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let mut cached = self.cached.lock();
        let (span, slot) = cached.iter_mut().find_map(|slot| {
            // SAFETY: what the store holds are type-stable descriptors.
            let span = unsafe { slot.as_ref()? };
            let age = now.map_or(u64::MAX, |now| now.saturating_sub(span.note.get() as u64));
            (age >= KEEP_MILLISECONDS).then_some((span, slot))
        })?;
        *slot = null();
        self.cached_bytes.fetch_sub(span.bytes(), Ordering::Relaxed);
        Some(span)
    }

    /// Changes the length of a mapping, moving its pages where they cannot stay. The payload begins
    /// at the same distance from the base as before. `false`: nothing has changed.
    pub fn resize(&self, pages: &PageHeap, span: &Span, size: usize) -> bool {
        let (base, old) = (span.base(), span.bytes());
        let Some(new) = mapping_bytes(size, 1) else { return false };
        if new == old {
            return true;
        }
        if !pages.registry.prepare(&pages.meta, base, new) {
            return false;
        }
        // What is registered must be mapped: shrink the table first, grow it last.
        if new < old {
            self.register(pages, span, base, new);
        }
        // SAFETY: the mapping is the caller's.
        if unsafe { os::resize(base, old, new) } {
            self.register(pages, span, base, new);
        } else if new < old {
            self.register(pages, span, base, old);
            return false;
        } else if !self.relocate(pages, span, new) {
            return false;
        }
        self.mapped_bytes.fetch_add(new.wrapping_sub(old), Ordering::Relaxed);
        true
    }

    fn register(&self, pages: &PageHeap, span: &Span, base: usize, bytes: usize) {
        pages.registry.remove(span.base(), span.bytes());
        span.describe_mapping(base, bytes);
        pages.registry.add_mapping(span);
    }

    /// Moves a mapping's pages to a longer one, without copying.
    fn relocate(&self, pages: &PageHeap, span: &Span, new: usize) -> bool {
        let (base, old) = (span.base(), span.bytes());
        let Some(target) = os::map_aligned(new, CHUNK_BYTES, 0) else { return false };
        let moved = pages.registry.prepare(&pages.meta, target, new)
            // SAFETY: both mappings are the caller's.
            && unsafe { os::move_pages(base, old, target, new) };
        if !moved {
            // SAFETY: mapped above, unknown to anybody.
            unsafe { os::unmap(target, new) };
            return false;
        }
        self.register(pages, span, target, new);
        true
    }

    /// Bytes of all mappings, and of those in the store.
    pub fn figures(&self) -> (usize, usize) {
        (self.mapped_bytes.load(Ordering::Relaxed), self.cached_bytes.load(Ordering::Relaxed))
    }
}
