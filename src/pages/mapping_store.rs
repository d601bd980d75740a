//! The store of freed mappings: mapping and unmapping the same megabytes over and over costs ten
//! times as much as using them does, in page faults.
//!
//! Each stays for half a second. What is live and what is stored together come to no more than what
//! was live in the last second, plus a reserve: a program that takes and frees gets its own memory
//! again, and no more than it had.
//!
//! - **U1** A mapping in the store is registered, of kind `Cached`, and owned by nobody else. It
//!   comes and goes under the lock.

use crate::base::fatal;
use crate::base::sync::{AtomicUsize, Lock, Ordering, step, this_thread};
use crate::pages::address_space::mapped_length;
use crate::pages::by_length::ByLength;
use crate::pages::chunk::CHUNK_BYTES;
use crate::pages::registry::{Backing, Registry};
use crate::pages::span::{Extent, Span, SpanKind};
use core::ptr::null;

/// Most bytes in the store beyond what was live in the last second and is no more.
const RESERVE_BYTES: usize = 64 * 1024 * 1024;
/// Most of what was live in the last second that is kept.
const MOST_KEPT_BYTES: usize = 1024 * 1024 * 1024;
/// How long a mapping stays in the store, or loose.
pub const KEEP_MILLISECONDS: u64 = 900;
/// Most mappings that are loose at once; of others the excess is given back at once.
pub const MOST_LOOSE: usize = 16;

/// The store, and the list of loose mappings.
pub struct MappingStore {
    lock: Lock<Store>,
    bytes: AtomicUsize,
}

struct Store {
    cached: ByLength,
    loose: [Loose; MOST_LOOSE],
    live: Peak,
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

/// The most bytes that were live since some half second to a second ago.
struct Peak {
    /// When this half second has begun, in coarse milliseconds.
    since: u64,
    now: usize,
    before: usize,
}

impl Peak {
    fn note(&mut self, live: usize, now: u64) {
        let passed = now.saturating_sub(self.since);
        if passed >= KEEP_MILLISECONDS {
            let is_recent = passed < 2 * KEEP_MILLISECONDS;
            self.before = if is_recent { self.now } else { live };
            self.now = live;
            self.since = now;
        }
        self.now = self.now.max(live);
    }

    /// Returns the most bytes that may be stored beside this many live ones.
    fn bound(&self, live: usize) -> usize {
        let gone = self.now.max(self.before).saturating_sub(live);
        RESERVE_BYTES + gone.min(MOST_KEPT_BYTES)
    }
}

fn room(span: &Span) -> usize {
    mapped_length(span.bytes(), span.mapping.extent())
}

impl MappingStore {
    /// An empty store.
    pub const fn new() -> Self {
        let live = Peak { since: 0, now: 0, before: 0 };
        let store = Store { cached: ByLength::new(), loose: [Loose::NONE; MOST_LOOSE], live };
        Self { lock: Lock::new(store), bytes: AtomicUsize::new(0) }
    }

    /// Returns the bytes in the store.
    pub fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Takes a mapping for a block of `bytes`: of that length if possible, else a longer one, or
    /// one that is not much shorter.
    pub fn take<'h>(&self, bytes: usize) -> Option<&'h Span> {
        if self.bytes() < bytes / 2 {
            return None;
        }
        let mut store = self.lock.lock();
        let cached = &store.cached;
        let span = cached
            .find_near(bytes, |span| span.bytes() >= bytes)
            .or_else(|| cached.find_near(bytes, |span| room(span) >= bytes))
            .or_else(|| cached.find_shorter(bytes, |span| room(span) >= bytes))
            .or_else(|| cached.find_longer(bytes))
            .or_else(|| cached.find_shorter(bytes, |_| true))?;
        self.unlink(&mut store, span);
        Some(span)
    }

    fn unlink(&self, store: &mut Store, span: &Span) {
        span.set_kind(SpanKind::Free);
        step();
        store.cached.remove(span);
        step();
        self.bytes.fetch_sub(span.bytes(), Ordering::Relaxed);
    }

    /// Puts a mapping into the store, as its block is freed. `live` is the bytes that were live with
    /// it. If there is no room, returns the oldest one instead, or this one if it would never have
    /// room: it is the caller's.
    pub fn put<'h>(&self, span: &'h Span, live: usize, now: u64) -> Option<&'h Span> {
        let bytes = span.bytes();
        let mut store = self.lock.lock();
        store.live.note(live, now);
        let bound = store.live.bound(live.saturating_sub(bytes));
        if bytes > bound {
            return Some(span);
        }
        if self.bytes() + bytes > bound {
            let oldest = store.cached.oldest()?;
            self.unlink(&mut store, oldest);
            return Some(oldest);
        }
        span.mapping.cached_at.set(now as usize);
        self.link(&mut store, span);
        None
    }

    /// Puts back what was not needed of a mapping, and how old that is.
    pub fn put_back(&self, span: &Span, cached_at: usize) {
        span.mapping.cached_at.set(cached_at);
        self.link(&mut self.lock.lock(), span);
    }

    fn link(&self, store: &mut Store, span: &Span) {
        span.set_owner(0);
        step();
        span.set_kind(SpanKind::Cached);
        step();
        store.cached.put(span);
        step();
        self.bytes.fetch_add(span.bytes(), Ordering::Relaxed);
        step();
    }

    /// Takes the oldest mapping out of the store, if it is old enough.
    pub fn take_old<'h>(&self, is_old: impl Fn(usize) -> bool) -> Option<&'h Span> {
        if self.bytes() == 0 {
            return None;
        }
        let mut store = self.lock.lock();
        let span = store.cached.oldest().filter(|span| is_old(span.mapping.cached_at.get()))?;
        self.unlink(&mut store, span);
        Some(span)
    }

    /// Puts a mapping on the list of loose ones. `false`: the list is full.
    pub fn list_loose(&self, span: &Span) -> bool {
        let mut store = self.lock.lock();
        let slot = store.loose.iter_mut().find(|slot| slot.span.is_null());
        slot.is_some_and(|slot| {
            *slot = Loose { span, claimed_by: 0 };
            true
        })
    }

    /// Takes a mapping from the list of loose ones, unless its excess is being given back.
    pub fn unlist_loose(&self, span: &Span) {
        let mut store = self.lock.lock();
        let is_it = |slot: &&mut Loose| core::ptr::eq(slot.span, span) && slot.claimed_by == 0;
        if let Some(slot) = store.loose.iter_mut().find(is_it) {
            *slot = Loose::NONE;
        }
    }

    /// Claims the loose mapping of a slot if it is old enough; then the slot is the caller's.
    pub fn claim_loose<'h>(
        &self,
        index: usize,
        is_old: impl Fn(usize) -> bool,
    ) -> Option<&'h Span> {
        let mut store = self.lock.lock();
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

    /// Gives a slot back that was claimed.
    pub fn clear_loose(&self, index: usize) {
        self.lock.lock().loose[index] = Loose::NONE;
    }

    /// Makes the store whole in a process that was just forked.
    ///
    /// # Safety
    /// As for `Lock::recover`.
    pub unsafe fn recover(&self, registry: &Registry) {
        let repair = |store: &mut Store, is_held: bool| {
            let this = this_thread();
            for slot in &mut store.loose {
                // SAFETY: null, or a descriptor (M1).
                let Some(span) = (unsafe { slot.span.as_ref() }) else { continue };
                if slot.claimed_by != 0 && slot.claimed_by != this {
                    *slot = Loose::NONE;
                    span.mapping.looseness.settle();
                }
            }
            if is_held {
                store.cached.rebuild(registry.mappings(), SpanKind::Cached);
            }
            let bytes = store.cached.all().map(Span::bytes).sum();
            self.bytes.store(bytes, Ordering::Relaxed);
        };
        // SAFETY: the caller's contract.
        unsafe { self.lock.recover(repair) };
    }

    /// Walks the store and the list of loose mappings; fatal if they contradict themselves or the
    /// registry (U1).
    pub fn check(&self, registry: &Registry, mapped: impl Fn() -> usize) {
        let store = self.lock.lock();
        let mut bytes = 0;
        for span in store.cached.all() {
            if span.kind() != SpanKind::Cached {
                fatal::broken("kind of a cached mapping", span.base(), span.bytes());
            }
            for address in (span.base()..span.end()).step_by(CHUNK_BYTES) {
                match registry.find(address) {
                    Some(Backing::Mapping(there)) if core::ptr::eq(there, span) => {}
                    _ => fatal::broken("registration of a cached mapping", span.base(), address),
                }
            }
            bytes += span.bytes();
        }
        let counted = self.bytes();
        if bytes != counted {
            fatal::broken("bytes of cached mappings", bytes, counted);
        }
        if bytes > mapped() {
            fatal::broken("bytes of mappings", bytes, mapped());
        }
        // A claimed one may be freed and used for something else before its claim ends.
        for loose in store.loose.iter().filter(|loose| loose.claimed_by == 0) {
            // SAFETY: null, or a descriptor (M1).
            let Some(span) = (unsafe { loose.span.as_ref() }) else { continue };
            let is_loose =
                span.kind() == SpanKind::Mapped && span.mapping.extent() != Extent::Exact;
            if !is_loose {
                fatal::broken("kind of a loose mapping", span.base(), span.bytes());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn live_and_stored_come_to_no_more_than_was_live_and_a_reserve() {
        let mib = 1 << 20;
        let mut peak = Peak { since: 0, now: 0, before: 0 };
        peak.note(300 * mib, 10_000);
        assert_eq!(peak.bound(300 * mib), RESERVE_BYTES);
        assert_eq!(peak.bound(100 * mib), RESERVE_BYTES + 200 * mib);
        peak.note(100 * mib, 10_000 + KEEP_MILLISECONDS);
        assert_eq!(peak.bound(100 * mib), RESERVE_BYTES + 200 * mib, "within a second");
        peak.note(100 * mib, 10_000 + 2 * KEEP_MILLISECONDS);
        assert_eq!(peak.bound(100 * mib), RESERVE_BYTES, "later");
        peak.note(9000 * mib, 20_000);
        assert_eq!(peak.bound(0), RESERVE_BYTES + MOST_KEPT_BYTES);
        peak.note(50 * mib, 40_000);
        assert_eq!(peak.bound(0), RESERVE_BYTES + 50 * mib, "what was live long ago is forgotten");
    }
}
