//! Mappings of one block each, and a small decaying store of those just freed: mapping and
//! unmapping the same megabytes over and over costs ten times as much as using them does, in page
//! faults.
//!
//! A mapping from the store may be much longer than the block it serves next. It is *loose* then: a
//! while later, if the block is still there, the excess is given back.
//!
//! - **U1** A mapping in the store is registered, of kind `Cached`, and owned by nobody else.
//! - **U2** The length of a mapping is changed only by the thread that `looseness` allows to (Z1).
//!   No system call is made under the lock.

use crate::base::fatal;
use crate::base::os::{self, MAX_PAGE_BYTES, Resized};
use crate::base::size_class::{FIRST_PAYLOAD_OFFSET, PAGE_BYTES, PAYLOAD_ALIGN};
use crate::base::sync::{AtomicUsize, Lock, Ordering, step, this_thread, wait_for};
use crate::lockfree::mapping::{self, Change, Space};
use crate::pages::chunk::CHUNK_BYTES;
use crate::pages::page_heap::PageHeap;
use crate::pages::registry::Backing;
use crate::pages::span::{Span, SpanKind};
use core::ptr::null;

const ENTRY_COUNT: usize = 16;
/// Most bytes in the store.
const MAX_CACHED_BYTES: usize = 64 * 1024 * 1024;
/// A mapping is snug if it exceeds the block's need by at most one part in this many.
const SLACK_DIVISOR: usize = 4;
/// How long a mapping stays in the store, or loose.
const KEEP_MILLISECONDS: u64 = 500;

const _: () = assert!(MAX_PAGE_BYTES % PAGE_BYTES == 0, "a mapping is whole pages of ours too");
const _: () = assert!(CHUNK_BYTES % MAX_PAGE_BYTES == 0, "a chunk is whole pages of any system");

/// All mappings.
pub struct Mappings {
    store: Lock<Store>,
    cached_bytes: AtomicUsize,
    mapped_bytes: AtomicUsize,
}

struct Store {
    cached: [*const Span; ENTRY_COUNT],
    loose: [Loose; ENTRY_COUNT],
}

/// A loose mapping, and the thread that gives its excess back; 0: none does.
#[derive(Clone, Copy)]
struct Loose {
    span: *const Span,
    claimed_by: usize,
}

impl Loose {
    const NONE: Self = Self { span: null(), claimed_by: 0 };
}

// SAFETY: the pointers are to descriptors (M1), guarded by the lock.
unsafe impl Send for Store {}

/// A mapping and what is known of its memory.
pub struct Mapped<'h> {
    /// Its descriptor.
    pub span: &'h Span,
    /// Whether every byte of it reads as zero.
    pub zeroed: bool,
}

/// The mappings and the page heap whose registry and descriptors they use.
struct Mapper<'h>(&'h Mappings, &'h PageHeap);

impl Space for Mapper<'_> {
    type Mapping = Span;

    fn extent(&self, span: &Span) -> (usize, usize) {
        (span.base(), span.bytes())
    }

    fn set_extent(&self, span: &Span, base: usize, bytes: usize) {
        span.describe_mapping(base, bytes);
    }

    fn register(&self, span: &Span) {
        self.1.registry.add_mapping(span);
    }

    fn forget(&self, base: usize, bytes: usize) {
        self.1.registry.remove(base, bytes);
    }

    fn forget_end(&self, base: usize, old: usize, new: usize) {
        // A chunk's number goes with the last of its addresses.
        let first = (base + new).next_multiple_of(CHUNK_BYTES);
        if first < base + old {
            self.forget(first, base + old - first);
        }
    }

    fn count(&self, added: usize, gone: usize) {
        self.0.mapped_bytes.fetch_add(added.wrapping_sub(gone), Ordering::Relaxed);
    }

    fn give_descriptor(&self, span: &Span) {
        self.1.give_descriptor(span);
    }

    fn unmap(&self, base: usize, bytes: usize) {
        // SAFETY: addresses of a mapping that is the caller's, or whose end it has claimed (U2),
        // and nothing refers to them any more.
        unsafe { os::unmap(base, bytes) };
    }

    fn change(&self, base: usize, old: usize, new: usize) -> Change {
        // SAFETY: the mapping is the caller's.
        match unsafe { os::resize(base, old, new) } {
            Resized::Done => Change::Done,
            Resized::NoRoom => Change::NoRoom,
            Resized::Fixed => Change::Fixed,
        }
    }

    fn map(&self, bytes: usize) -> Option<usize> {
        let base = os::map_aligned(bytes, CHUNK_BYTES, 0)?;
        if !self.1.registry.prepare(&self.1.descriptors, base, bytes) {
            // SAFETY: just mapped, unknown to anybody.
            unsafe { os::unmap(base, bytes) };
            return None;
        }
        Some(base)
    }

    fn move_pages(&self, base: usize, old: usize, target: usize, new: usize) -> bool {
        // SAFETY: both mappings are the caller's.
        unsafe { os::move_pages(base, old, target, new) }
    }
}

/// Returns whether a mapping is hardly longer than the `wanted` bytes.
fn is_snug(bytes: usize, wanted: usize) -> bool {
    bytes - wanted <= wanted / SLACK_DIVISOR
}

/// Returns the bytes of pages that a block of `size` bytes needs, wherever in a mapping its
/// alignment puts it.
pub fn needed_bytes(size: usize, align: usize) -> Option<usize> {
    let padding = if align > PAYLOAD_ALIGN { align } else { 0 };
    let bytes = size.checked_add(FIRST_PAYLOAD_OFFSET)?.checked_add(padding)?;
    (bytes <= isize::MAX as usize - CHUNK_BYTES).then(|| bytes.next_multiple_of(PAGE_BYTES))
}

/// Returns the length of its mapping: whole pages of any system.
fn mapping_bytes(size: usize, align: usize) -> Option<usize> {
    needed_bytes(size, align).map(|bytes| bytes.next_multiple_of(MAX_PAGE_BYTES))
}

impl Mappings {
    /// No mappings.
    pub const fn new() -> Self {
        Self {
            store: Lock::new(Store {
                cached: [null(); ENTRY_COUNT],
                loose: [Loose::NONE; ENTRY_COUNT],
            }),
            cached_bytes: AtomicUsize::new(0),
            mapped_bytes: AtomicUsize::new(0),
        }
    }

    /// Takes a mapping with room for `size` bytes at this alignment. `None`: the system has no more
    /// memory.
    pub fn take<'h>(
        &self,
        pages: &'h PageHeap,
        size: usize,
        align: usize,
        owner: u64,
    ) -> Option<Mapped<'h>> {
        let bytes = mapping_bytes(size, align)?;
        if let Some(span) = self.take_cached(bytes) {
            if span.bytes() >= bytes || self.set_bytes(pages, span, bytes) {
                let (base, length) = (span.base(), span.bytes());
                span.describe(SpanKind::Mapped, 0, base, length, owner);
                self.note_loose(pages, span, bytes);
                return Some(Mapped { span, zeroed: false });
            }
            self.release(pages, span);
        }
        let span = pages.take_descriptor()?;
        let mapper = Mapper(self, pages);
        let Some(base) = mapper.map(bytes) else {
            pages.give_descriptor(span);
            return None;
        };
        mapping::enter(&mapper, span, || {
            span.describe(SpanKind::Mapped, 0, base, bytes, owner);
        });
        Some(Mapped { span, zeroed: true })
    }

    /// Takes the shortest mapping in the store that is long enough, else the longest if it is not
    /// far from it: making it longer keeps the pages it has.
    fn take_cached<'h>(&self, bytes: usize) -> Option<&'h Span> {
        if self.cached_bytes.load(Ordering::Relaxed) < bytes / 2 {
            return None;
        }
        self.take_least(&mut self.store.lock(), |span| {
            let has = span.bytes();
            (has >= bytes / 2).then(|| (has < bytes, has.abs_diff(bytes)))
        })
    }

    /// Takes the mapping with the least key out of the store; those without a key stay.
    fn take_least<'h, K: Ord>(
        &self,
        store: &mut Store,
        key: impl Fn(&Span) -> Option<K>,
    ) -> Option<&'h Span> {
        let (_, span, slot) = store
            .cached
            .iter_mut()
            .filter_map(|slot| {
                // SAFETY: null, or a descriptor (M1).
                let span = unsafe { slot.as_ref() }?;
                Some((key(span)?, span, slot))
            })
            .min_by(|(one, ..), (other, ..)| one.cmp(other))?;
        *slot = null();
        step();
        self.cached_bytes.fetch_sub(span.bytes(), Ordering::Relaxed);
        Some(span)
    }

    /// Notes that a mapping from the store serves a block that needs only `wanted` bytes of it.
    fn note_loose(&self, pages: &PageHeap, span: &Span, wanted: usize) {
        if is_snug(span.bytes(), wanted) {
            return;
        }
        span.mapping.loose_since.set(os::coarse_milliseconds() as usize);
        span.mapping.needed_bytes.set(wanted);
        span.mapping.looseness.loosen();
        if !self.list_loose(span) && span.mapping.looseness.claim() {
            self.tighten(pages, span);
        }
    }

    /// Puts a mapping on the list of loose ones. `false`: the list is full.
    fn list_loose(&self, span: &Span) -> bool {
        let mut store = self.store.lock();
        let slot = store.loose.iter_mut().find(|slot| slot.span.is_null());
        slot.is_some_and(|slot| {
            *slot = Loose { span, claimed_by: 0 };
            true
        })
    }

    /// Gives back the excess of a loose mapping, which the caller has claimed.
    fn tighten(&self, pages: &PageHeap, span: &Span) {
        let wanted = span.mapping.needed_bytes.get();
        mapping::tighten(&Mapper(self, pages), span, &span.mapping.looseness, wanted);
    }

    /// Makes a mapping whose block is freed or resized tight again (U2).
    fn forget_loose(&self, span: &Span) {
        if span.mapping.looseness.is_tight() {
            return;
        }
        wait_for(|| span.mapping.looseness.try_tighten());
        let mut store = self.store.lock();
        let is_it = |slot: &&mut Loose| core::ptr::eq(slot.span, span) && slot.claimed_by == 0;
        if let Some(slot) = store.loose.iter_mut().find(is_it) {
            *slot = Loose::NONE;
        }
    }

    /// Takes a mapping back. It stays in the store for a while, and the oldest ones make room for
    /// it.
    pub fn give(&self, pages: &PageHeap, span: &Span, now: u64) {
        self.forget_loose(span);
        let bytes = span.bytes();
        if bytes > MAX_CACHED_BYTES {
            return self.release(pages, span);
        }
        span.set_owner(0);
        span.mapping.cached_at.set(now as usize);
        span.set_kind(SpanKind::Cached);
        while let Some(oldest) = self.put(span, bytes) {
            self.release(pages, oldest);
        }
    }

    /// Puts a mapping into the store; if there is no room, takes the oldest one out instead.
    fn put<'h>(&self, span: &Span, bytes: usize) -> Option<&'h Span> {
        let mut store = self.store.lock();
        let has_room = self.cached_bytes.load(Ordering::Relaxed) + bytes <= MAX_CACHED_BYTES;
        if has_room {
            if let Some(slot) = store.cached.iter_mut().find(|slot| slot.is_null()) {
                *slot = span;
                step();
                self.cached_bytes.fetch_add(bytes, Ordering::Relaxed);
                step();
                return None;
            }
        }
        self.take_least(&mut store, |span| Some(span.mapping.cached_at.get()))
    }

    fn release(&self, pages: &PageHeap, span: &Span) {
        mapping::release(&Mapper(self, pages), span);
    }

    /// Gives back to the system the mappings that were put into the store long before `now`, and
    /// the excess of loose ones; all of them if `now` is `None`. Returns the bytes that left the
    /// store.
    pub fn decay(&self, pages: &PageHeap, now: Option<u64>) -> usize {
        let is_old = |since: usize| {
            now.is_none_or(|now| now.saturating_sub(since as u64) >= KEEP_MILLISECONDS)
        };
        let mut bytes = 0;
        while let Some(span) = self.take_old(is_old) {
            bytes += span.bytes();
            self.release(pages, span);
        }
        for index in 0..ENTRY_COUNT {
            if let Some(span) = self.claim_loose(index, is_old) {
                self.tighten(pages, span);
                self.store.lock().loose[index] = Loose::NONE;
            }
        }
        bytes
    }

    /// Claims the loose mapping of a slot if it is old enough; then the slot is the caller's.
    fn claim_loose<'h>(&self, index: usize, is_old: impl Fn(usize) -> bool) -> Option<&'h Span> {
        let mut store = self.store.lock();
        let slot = &mut store.loose[index];
        // SAFETY: null, or a descriptor (M1).
        let span = unsafe { slot.span.as_ref() }.filter(|_| slot.claimed_by == 0)?;
        if !is_old(span.mapping.loose_since.get()) {
            return None;
        }
        slot.claimed_by = this_thread();
        step();
        if !span.mapping.looseness.claim() {
            // Its block was freed or resized meanwhile.
            *slot = Loose::NONE;
            return None;
        }
        Some(span)
    }

    /// Takes the oldest mapping out of the store, if it is old enough.
    fn take_old<'h>(&self, is_old: impl Fn(usize) -> bool) -> Option<&'h Span> {
        if self.cached_bytes.load(Ordering::Relaxed) == 0 {
            return None;
        }
        self.take_least(&mut self.store.lock(), |span| {
            let since = span.mapping.cached_at.get();
            is_old(since).then_some(since)
        })
    }

    /// Changes the length of a mapping, moving its pages if they cannot stay. The payload begins at
    /// the same distance from the base as before. `false`: nothing has changed.
    pub fn resize(&self, pages: &PageHeap, span: &Span, size: usize) -> bool {
        self.forget_loose(span);
        mapping_bytes(size, 1).is_some_and(|bytes| self.set_bytes(pages, span, bytes))
    }

    fn set_bytes(&self, pages: &PageHeap, span: &Span, new: usize) -> bool {
        let (base, old) = (span.base(), span.bytes());
        if new == old {
            return true;
        }
        // Do not prepare entries for a length that the system will refuse: they would never be
        // used.
        let is_prepared = pages.registry.is_prepared(base, new)
            || (os::could_map(new.saturating_sub(old))
                && pages.registry.prepare(&pages.descriptors, base, new));
        if !is_prepared {
            return false;
        }
        mapping::resize(&Mapper(self, pages), span, new)
    }

    /// Makes the store whole in a process that was just forked.
    ///
    /// # Safety
    /// As for `Lock::recover`.
    pub unsafe fn recover(&self) {
        let repair = |store: &mut Store, _| {
            let this = this_thread();
            for slot in &mut store.loose {
                // SAFETY: null, or a descriptor (M1).
                let Some(span) = (unsafe { slot.span.as_ref() }) else { continue };
                if slot.claimed_by != 0 && slot.claimed_by != this {
                    *slot = Loose::NONE;
                    span.mapping.looseness.settle();
                }
            }
            // SAFETY: as above.
            let cached = store.cached.iter().filter_map(|slot| unsafe { slot.as_ref() });
            self.cached_bytes.store(cached.map(Span::bytes).sum(), Ordering::Relaxed);
        };
        // SAFETY: the caller's contract.
        unsafe { self.store.recover(repair) };
    }

    /// Walks the store and the list of loose mappings; fatal if they contradict themselves or the
    /// registry (U1).
    pub fn check(&self, pages: &PageHeap) {
        let store = self.store.lock();
        let mut bytes = 0;
        // SAFETY: null, or a descriptor (M1).
        for span in store.cached.iter().filter_map(|slot| unsafe { slot.as_ref() }) {
            if span.kind() != SpanKind::Cached {
                fatal::broken("kind of a cached mapping", span.base(), span.bytes());
            }
            for address in (span.base()..span.end()).step_by(CHUNK_BYTES) {
                match pages.registry.find(address) {
                    Some(Backing::Mapping(there)) if core::ptr::eq(there, span) => {}
                    _ => fatal::broken("registration of a cached mapping", span.base(), address),
                }
            }
            bytes += span.bytes();
        }
        let counted = self.cached_bytes.load(Ordering::Relaxed);
        if bytes != counted {
            fatal::broken("bytes of cached mappings", bytes, counted);
        }
        let mapped = self.mapped_bytes.load(Ordering::Relaxed);
        if bytes > mapped {
            fatal::broken("bytes of mappings", bytes, mapped);
        }
        // A claimed one may be freed and used for something else before its claim ends.
        for loose in store.loose.iter().filter(|loose| loose.claimed_by == 0) {
            // SAFETY: as above.
            let Some(span) = (unsafe { loose.span.as_ref() }) else { continue };
            if span.kind() != SpanKind::Mapped {
                fatal::broken("kind of a loose mapping", span.base(), span.bytes());
            }
        }
    }

    /// Returns the bytes of all mappings, and of those in the store.
    pub fn figures(&self) -> (usize, usize) {
        (self.mapped_bytes.load(Ordering::Relaxed), self.cached_bytes.load(Ordering::Relaxed))
    }
}
