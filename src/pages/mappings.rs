//! Mappings of one block each, from the start of a chunk on, and what becomes of them when their
//! block is freed: they go to the store, and from there back to the address space.
//!
//! The length of a mapping is what its block needs; its addresses mostly reach to the end of a
//! chunk, so that the block grows there without a system call. A mapping from the store may have
//! memory beyond what the block needs that it serves next. It is *loose* then: a while later, if the
//! block is still there, the excess is given back.
//!
//! - **U2** The length of a mapping is changed only by the thread that `looseness` allows to (Z1).
//!   No system call is made under a lock.

use crate::base::os::{self, MAX_PAGE_BYTES};
use crate::base::size_class::{FIRST_PAYLOAD_OFFSET, PAGE_BYTES, PAYLOAD_ALIGN};
use crate::base::sync::wait_for;
use crate::lockfree::mapping;
use crate::pages::address_space::whole_chunks;
use crate::pages::chunk::CHUNK_BYTES;
use crate::pages::mapper::{Counts, Mapper};
use crate::pages::mapping_store::{KEEP_MILLISECONDS, MOST_LOOSE, MappingStore};
use crate::pages::page_heap::PageHeap;
use crate::pages::span::{Extent, Span, SpanKind};

/// A mapping is snug if it exceeds the block's need by at most one part in this many.
const SLACK_DIVISOR: usize = 4;
/// A mapping from the store is divided if it is so many times as long as needed; else its excess
/// goes a while later, if the block is still there.
const WORTH_A_CUT_FACTOR: usize = 4;

/// All mappings.
pub struct Mappings {
    store: MappingStore,
    counts: Counts,
}

/// A mapping and what is known of its memory.
pub struct Mapped<'h> {
    /// Its descriptor.
    pub span: &'h Span,
    /// Whether every byte of it reads as zero.
    pub zeroed: bool,
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
        Self { store: MappingStore::new(), counts: Counts::new() }
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
        if let Some(span) = self.store.take(bytes) {
            if span.bytes() >= bytes || self.set_bytes(pages, span, bytes) {
                self.cut(pages, span, bytes);
                let extent = span.mapping.extent();
                span.describe(SpanKind::Mapped, 0, span.base(), span.bytes(), owner);
                span.mapping.set_extent(extent);
                self.note_loose(pages, span, bytes);
                return Some(Mapped { span, zeroed: false });
            }
            self.release(pages, span);
        }
        let span = pages.space.take_descriptor()?;
        let Some(room) = pages.space.take(bytes) else {
            pages.space.give_descriptor(span);
            return None;
        };
        mapping::enter(&Mapper::new(&self.counts, pages, room.extent), span, || {
            span.describe(SpanKind::Mapped, 0, room.base, bytes, owner);
            span.mapping.set_extent(room.extent);
        });
        Some(Mapped { span, zeroed: true })
    }

    /// Puts the chunks of a mapping from the store back that a block of `wanted` bytes does not
    /// reach, if they are many: pieces would serve no longer block later.
    fn cut(&self, pages: &PageHeap, span: &Span, wanted: usize) {
        let (kept, extent) = (whole_chunks(wanted), span.mapping.extent());
        if span.bytes() < kept * WORTH_A_CUT_FACTOR {
            return;
        }
        let Some(behind) = pages.space.take_descriptor() else { return };
        let (base, bytes) = (span.base() + kept, span.bytes() - kept);
        let kept_extent = if extent == Extent::Exact { Extent::Chunks } else { extent };
        mapping::split(&Mapper::new(&self.counts, pages, kept_extent), span, behind, kept, || {
            behind.describe(SpanKind::Free, 0, base, bytes, 0);
            behind.mapping.set_extent(extent);
            self.counts.note_moved(Extent::Exact, extent);
        });
        self.store.put_back(behind, span.mapping.cached_at.get());
    }

    /// Notes that a mapping from the store serves a block that needs only `wanted` bytes of it.
    fn note_loose(&self, pages: &PageHeap, span: &Span, wanted: usize) {
        if is_snug(span.bytes(), wanted) {
            return;
        }
        span.mapping.loose_since.set(os::coarse_milliseconds() as usize);
        span.mapping.needed_bytes.set(wanted);
        span.mapping.looseness.loosen();
        // Where addresses are few, they go at once.
        let is_listed = span.mapping.extent() != Extent::Exact && self.store.list_loose(span);
        if !is_listed && span.mapping.looseness.claim() {
            self.tighten(pages, span);
        }
    }

    /// Gives back the excess of a loose mapping, which the caller has claimed.
    fn tighten(&self, pages: &PageHeap, span: &Span) {
        let wanted = span.mapping.needed_bytes.get();
        let mapper = Mapper::of(&self.counts, pages, span);
        mapping::tighten(&mapper, span, &span.mapping.looseness, wanted);
    }

    /// Makes a mapping whose block is freed or resized tight again (U2).
    fn forget_loose(&self, span: &Span) {
        if span.mapping.looseness.is_tight() {
            return;
        }
        wait_for(|| span.mapping.looseness.try_tighten());
        self.store.unlist_loose(span);
    }

    /// Takes a mapping back. It stays in the store for a while, and the oldest ones make room for
    /// it.
    pub fn give(&self, pages: &PageHeap, span: &Span, now: u64) {
        self.forget_loose(span);
        let (mapped, cached) = self.figures();
        while let Some(other) = self.store.put(span, mapped.saturating_sub(cached), now) {
            self.release(pages, other);
            if core::ptr::eq(other, span) {
                break;
            }
        }
    }

    fn release(&self, pages: &PageHeap, span: &Span) {
        self.counts.note_moved(span.mapping.extent(), Extent::Exact);
        mapping::release(&Mapper::of(&self.counts, pages, span), span);
    }

    /// Gives back to the system the mappings that were put into the store long before `now`, and
    /// the excess of loose ones; all of them if `now` is `None`. Returns the bytes that left the
    /// store.
    pub fn decay(&self, pages: &PageHeap, now: Option<u64>) -> usize {
        let is_old = |since: usize| {
            now.is_none_or(|now| now.saturating_sub(since as u64) >= KEEP_MILLISECONDS)
        };
        let mut bytes = 0;
        while let Some(span) = self.store.take_old(is_old) {
            bytes += span.bytes();
            self.release(pages, span);
        }
        for index in 0..MOST_LOOSE {
            if let Some(span) = self.store.claim_loose(index, is_old) {
                self.tighten(pages, span);
                self.store.clear_loose(index);
            }
        }
        pages.space.review(now.is_none());
        bytes
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
        let space = &pages.space;
        let is_prepared = space.registry.is_prepared(base, new)
            || (os::could_map(new.saturating_sub(old))
                && space.registry.prepare(&space.descriptors, base, new));
        if !is_prepared {
            return false;
        }
        mapping::resize(&Mapper::of(&self.counts, pages, span), span, new)
    }

    /// Makes the store whole in a process that was just forked.
    ///
    /// # Safety
    /// As for `Lock::recover`.
    pub unsafe fn recover(&self, pages: &PageHeap) {
        // SAFETY: the caller's contract.
        unsafe { self.store.recover(&pages.space.registry) };
    }

    /// Walks the store and the list of loose mappings; fatal if they contradict themselves or the
    /// registry.
    pub fn check(&self, pages: &PageHeap) {
        self.store.check(&pages.space.registry, || self.counts.mapped_bytes());
    }

    /// Returns the bytes of all mappings, and of those in the store.
    pub fn figures(&self) -> (usize, usize) {
        (self.counts.mapped_bytes(), self.store.bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::boxed::Box;
    use std::vec::Vec;

    const MIB: usize = 1 << 20;

    struct Both(&'static Mappings, &'static PageHeap);

    impl Both {
        fn new(test: usize) -> Self {
            let both =
                Self(Box::leak(Box::new(Mappings::new())), Box::leak(Box::new(PageHeap::new())));
            // Nothing of a process is mapped as low as this, unless it asks for it.
            both.1.space.begin_below((16 << 40) + test * (16 << 30));
            both
        }

        fn take(&self, bytes: usize) -> &'static Span {
            self.0.take(self.1, bytes, 16, 0).expect("there is memory").span
        }

        fn give(&self, span: &'static Span) {
            self.0.give(self.1, span, 1);
        }

        /// Empties the store.
        fn decay(&self) {
            self.0.decay(self.1, None);
            self.check();
        }

        fn check(&self) {
            self.0.check(self.1);
            self.1.check();
        }

        fn addresses(&self) -> (usize, usize) {
            self.1.space.figures()
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn addresses_between_others_are_kept_and_used_again() {
        let both = Both::new(1);
        let spans: Vec<_> = (0..32).map(|_| both.take(MIB)).collect();
        assert_eq!(both.addresses(), (32 * CHUNK_BYTES, 0), "whole chunks");
        let (given, kept): (Vec<_>, Vec<_>) =
            spans.into_iter().enumerate().partition(|(i, _)| i % 2 == 1);
        let (base, last) = (given[3].1.base(), given[15].1.base());
        given.into_iter().for_each(|(_, span)| both.give(span));
        both.decay();
        let (held, vacant) = both.addresses();
        // The last one was at the edge.
        assert_eq!((held, vacant), (31 * CHUNK_BYTES, 15 * CHUNK_BYTES));
        assert!(both.1.space.registry.find(base).is_none(), "nothing of ours is there");
        assert!(both.1.space.registry.find(last).is_none());
        let again: Vec<_> = (0..10).map(|_| both.take(2 * MIB)).collect();
        assert_eq!(both.addresses(), (held, vacant - 10 * CHUNK_BYTES), "nothing is mapped anew");
        both.check();
        // Neighbours join, and what is long enough is unmapped.
        kept.into_iter().for_each(|(_, span)| both.give(span));
        again.into_iter().for_each(|span| both.give(span));
        both.decay();
        assert_eq!(both.addresses(), (0, 0), "nothing is left between nothing");
        assert_eq!(both.0.figures(), (0, 0));
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_block_grows_to_the_end_of_its_chunk_and_into_a_vacancy() {
        let both = Both::new(2);
        let spans: Vec<_> = (0..32).map(|_| both.take(MIB)).collect();
        let (base, before) = (spans[20].base(), both.addresses());
        assert!(both.0.resize(both.1, spans[20], 3 * MIB) && spans[20].base() == base);
        assert_eq!(both.addresses(), before, "no address is taken");
        // The one before was mapped behind it.
        assert_eq!(spans[19].base(), base + CHUNK_BYTES);
        both.give(spans[19]);
        both.decay();
        assert_eq!(both.addresses(), (before.0, CHUNK_BYTES));
        assert!(both.0.resize(both.1, spans[20], 7 * MIB) && spans[20].base() == base);
        assert_eq!(both.addresses(), (before.0, 0));
        assert_eq!(spans[20].bytes(), 7 * MIB + MAX_PAGE_BYTES);
        both.check();
        // It can neither grow nor leave a hole.
        assert!(!both.0.resize(both.1, spans[20], 9 * MIB) && spans[20].base() == base);
        // What it has no more is a vacancy again.
        assert!(both.0.resize(both.1, spans[20], 2 * MIB));
        assert_eq!(both.addresses(), (before.0, CHUNK_BYTES));
        both.check();
        (0..32).filter(|&index| index != 19).for_each(|index| both.give(spans[index]));
        both.decay();
        assert_eq!((both.addresses(), both.0.figures()), ((0, 0), (0, 0)));
    }

    #[test]
    fn what_a_block_does_not_reach_of_a_stored_mapping_stays_in_the_store() {
        let both = Both::new(3);
        let long = both.take(30 * MIB);
        let base = long.base();
        both.give(long);
        let short = both.take(3 * MIB);
        assert_eq!((short.base(), short.bytes()), (base, CHUNK_BYTES));
        assert_eq!(both.0.figures().1, 30 * MIB + MAX_PAGE_BYTES - CHUNK_BYTES);
        let other = both.take(25 * MIB);
        assert_eq!(other.base(), base + CHUNK_BYTES);
        both.check();
        both.give(short);
        both.give(other);
        both.decay();
        assert_eq!((both.addresses(), both.0.figures()), ((0, 0), (0, 0)));
    }
}
