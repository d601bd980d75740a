//! The page heap: spans from chunks, chunks from the operating system, and both back.
//!
//! No lock: pages are claimed in a chunk's bitmap, and `RunIndex` says in which chunk a search is
//! worth while. Chunks are in groups of 64 whose descriptors are never unmapped, so a searcher with
//! a stale chunk finds no free page in it, or free pages of its successor.

use crate::base::fatal;
use crate::base::os::{self, MAX_PAGE_BYTES};
use crate::base::size_class::{
    FIRST_LARGE_CLASS, FIRST_PAYLOAD_OFFSET, MAX_CLASS_BYTES, PAGE_BYTES, pages_for,
};
use crate::base::sync::{AtomicUsize, Ordering};
use crate::lockfree::bitmap::longest_run;
use crate::lockfree::chunk_slots::{self, ChunkSlots, Chunks, Reach};
use crate::lockfree::once::{Once, OnceList};
use crate::lockfree::run_index::RunIndex;
use crate::pages::address_space::AddressSpace;
use crate::pages::chunk::{CHUNK_BYTES, Chunk, PAGES_PER_CHUNK};
use crate::pages::registry::Backing;
use crate::pages::span::{Extent, Span, SpanKind};
use core::ptr::with_exposed_provenance_mut;

/// What the first chunk has at first.
const FIRST_PAGES: usize = 16;
/// What is mapped of a chunk is a multiple of this.
const STEP_PAGES: usize = MAX_PAGE_BYTES / PAGE_BYTES;
const CHUNKS_PER_GROUP: usize = 64;
/// A group describes 256 MiB of chunks; all groups, 1 TiB.
const GROUP_COUNT: usize = 4096;

/// The lengths in pages that the index has a word for; a search for another takes the next longer.
const RUN_LENGTHS: [u8; 22] =
    [1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 13, 15, 16, 17, 21, 25, 29, 33, 41, 49, 57, 65];
/// The longest span that is taken from a chunk.
pub const MAX_SPAN_PAGES: usize = RUN_LENGTHS[RUN_LENGTHS.len() - 1] as usize;

static LENGTH_INDEX: [u8; MAX_SPAN_PAGES + 1] = {
    let mut table = [0; MAX_SPAN_PAGES + 1];
    let (mut index, mut pages) = (0, 1);
    while pages <= MAX_SPAN_PAGES {
        while (RUN_LENGTHS[index] as usize) < pages {
            index += 1;
        }
        table[pages] = index as u8;
        pages += 1;
    }
    table
};

const _: () = assert!(
    MAX_SPAN_PAGES == pages_for(FIRST_PAYLOAD_OFFSET + MAX_CLASS_BYTES),
    "a block of the largest class has a span"
);

const _: () = assert!(MAX_PAGE_BYTES % PAGE_BYTES == 0, "a mapping is whole pages of ours too");
const _: () = assert!(CHUNKS_PER_GROUP == u64::BITS as usize, "`slots` has a bit for every chunk");

#[repr(C, align(64))]
struct Group {
    index: RunIndex<{ RUN_LENGTHS.len() }>,
    /// Which chunks exist, or are being opened or released.
    slots: ChunkSlots,
    chunks: [Chunk; CHUNKS_PER_GROUP],
}

/// A new span and what is known of its memory.
pub struct Taken<'h> {
    /// Its descriptor.
    pub span: &'h Span,
    /// Whether every byte of it reads as zero.
    pub zeroed: bool,
}

/// The page heap.
pub struct PageHeap {
    /// Where chunks and descriptors come from, and what is at which address.
    pub space: AddressSpace,
    groups: OnceList<Group, GROUP_COUNT>,
    /// Bytes that are mapped of chunks.
    chunk_bytes: AtomicUsize,
    /// One more than the number of the chunk that may become longer; 0: none may.
    growing: AtomicUsize,
}

impl PageHeap {
    /// A page heap without chunks.
    pub const fn new() -> Self {
        Self {
            space: AddressSpace::new(),
            groups: OnceList { places: [const { Once::new() }; GROUP_COUNT] },
            chunk_bytes: AtomicUsize::new(0),
            growing: AtomicUsize::new(0),
        }
    }

    /// Takes a span of `pages` from the existing chunks.
    pub fn take_span(
        &self,
        kind: SpanKind,
        class: usize,
        pages: usize,
        owner: u64,
    ) -> Option<Taken<'_>> {
        let span = self.space.take_descriptor()?;
        let length_index = usize::from(LENGTH_INDEX[pages]);
        for group in self.groups.all() {
            let mut candidates = group.index.candidates(length_index);
            while candidates != 0 {
                let slot = candidates.trailing_zeros();
                candidates &= candidates - 1;
                let chunk = &group.chunks[slot as usize];
                let describe = |first| {
                    let base = chunk.base() + first * PAGE_BYTES;
                    span.describe(kind, class, base, pages * PAGE_BYTES, owner);
                    (named_pages(span), span)
                };
                let publish = || group.publish(slot);
                if let Some(zeroed) = chunk.pages.take(pages, describe, publish) {
                    return Some(Taken { span, zeroed });
                }
            }
        }
        self.space.give_descriptor(span);
        None
    }

    /// Maps more pages, this many in a row at least: behind those of a chunk that is not all mapped
    /// yet, else in one more chunk. As many as there are, so that a small program's first chunk
    /// grows by doubling; fewer if the system refuses. `false`: it has no more memory, or every
    /// slot is in use.
    pub fn grow(&self, pages: usize) -> bool {
        let (most, least) = (self.generous(pages), pages.next_multiple_of(STEP_PAGES));
        let grow = |wanted: usize| self.extend_chunk(pages, wanted) || self.open_chunk(wanted);
        grow(most) || (least < most && grow(least))
    }

    /// Returns how many pages are mapped if so many are needed: as many as there are.
    fn generous(&self, pages: usize) -> usize {
        let have = self.chunk_bytes() / PAGE_BYTES;
        have.max(pages.next_multiple_of(STEP_PAGES)).clamp(FIRST_PAGES, PAGES_PER_CHUNK)
    }

    /// Makes the chunk longer that is not all mapped: by as many pages as wanted, or all there is
    /// place for.
    fn extend_chunk(&self, pages: usize, wanted: usize) -> bool {
        let growing = self.growing.load(Ordering::Relaxed);
        let Some((opener, slot)) = growing.checked_sub(1).and_then(|number| self.slot_of(number))
        else {
            return false;
        };
        let more = |have: usize| {
            let left = PAGES_PER_CHUNK - have;
            (pages <= left).then_some(wanted.min(left))
        };
        let now = chunk_slots::extend(&opener, slot, more);
        if now == Some(PAGES_PER_CHUNK) {
            let _ = self.growing.compare_exchange(growing, 0, Ordering::Relaxed, Ordering::Relaxed);
        }
        now.is_some()
    }

    /// Opens one more chunk, of so many pages.
    fn open_chunk(&self, pages: usize) -> bool {
        let bytes = pages * PAGE_BYTES;
        let base = if bytes == CHUNK_BYTES {
            self.space.take(bytes).map(|room| room.base)
        } else {
            self.space.map(bytes)
        };
        let Some(base) = base else { return false };
        let Some((opener, slot)) = self.claim_slot() else {
            self.space.unmap(base, bytes);
            return false;
        };
        chunk_slots::open(&opener, slot, base, pages);
        if pages < PAGES_PER_CHUNK {
            self.growing.store(opener.number(slot) + 1, Ordering::Relaxed);
        }
        true
    }

    /// Claims the slot of a chunk that does not exist.
    fn claim_slot(&self) -> Option<(Opener<'_>, u32)> {
        loop {
            let mut group_count = 0;
            for (index, group) in self.groups.all().enumerate() {
                if let Some(slot) = group.slots.claim() {
                    return Some((Opener { heap: self, group, index }, slot));
                }
                group_count = index + 1;
            }
            let fresh =
                || self.space.descriptors.take(size_of::<Group>()).map(with_exposed_provenance_mut);
            // SAFETY: zeroed memory is a group without chunks.
            if !unsafe { self.groups.make_next(group_count, fresh) } {
                return None;
            }
        }
    }

    /// Returns the group and the slot of a chunk by its number.
    fn slot_of(&self, number: usize) -> Option<(Opener<'_>, u32)> {
        let index = number / CHUNKS_PER_GROUP;
        let group = self.groups.get(index)?;
        Some((Opener { heap: self, group, index }, (number % CHUNKS_PER_GROUP) as u32))
    }

    /// Brings the hints of a chunk up to date.
    fn publish(&self, chunk: &Chunk) {
        if let Some((opener, slot)) = self.slot_of(chunk.number()) {
            opener.group.publish(slot);
        }
    }

    /// Returns the chunk that an address of ours is in.
    fn chunk_of(&self, address: usize) -> Option<&Chunk> {
        match self.space.registry.find(address)? {
            Backing::Chunk(chunk) => Some(chunk),
            Backing::Mapping(_) => None,
        }
    }

    /// Gives back a whole span with its descriptor.
    pub fn give_span(&self, span: &Span) {
        let (base, bytes, named) = (span.base(), span.bytes(), named_pages(span));
        let Some(chunk) = self.chunk_of(base) else { return };
        let (first, let_go) = (chunk.page_of(base), || self.space.give_descriptor(span));
        chunk.pages.give(first, bytes / PAGE_BYTES, named, let_go, || self.publish(chunk));
    }

    /// Gives back pages whose descriptor goes on without them.
    pub fn give_pages(&self, base: usize, pages: usize) {
        let Some(chunk) = self.chunk_of(base) else { return };
        let first = chunk.page_of(base);
        chunk.pages.give(first, pages, pages, || (), || self.publish(chunk));
    }

    /// Makes a span of one block longer by the pages behind it, if they are free or can be mapped.
    pub fn extend(&self, span: &Span, pages: usize) -> bool {
        let Some(chunk) = self.chunk_of(span.base()) else { return false };
        let have = span.bytes() / PAGE_BYTES;
        let first = chunk.page_of(span.base()) + have;
        if pages <= have {
            return true;
        }
        let take = || chunk.pages.take_at(first, pages - have, || self.publish(chunk));
        let missing = (first + pages - have).saturating_sub(chunk.reach.pages());
        let map = || {
            let is_growing = self.growing.load(Ordering::Relaxed) == chunk.number() + 1;
            missing > 0 && is_growing && self.extend_chunk(missing, self.generous(missing))
        };
        let is_taken = take() || (map() && take());
        if is_taken {
            span.set_bytes(pages * PAGE_BYTES);
        }
        is_taken
    }

    /// Purges free pages: if `aged_only`, those that were already free at the last tick, else all.
    /// Chunks that are wholly free go back to the system. Returns the bytes given back.
    pub fn purge(&self, aged_only: bool) -> usize {
        let mut bytes = 0;
        for (index, group) in self.groups.all().enumerate() {
            let mut slots = group.slots.claimed();
            while slots != 0 {
                let slot = slots.trailing_zeros();
                slots &= slots - 1;
                bytes += self.purge_chunk(&Opener { heap: self, group, index }, slot, aged_only);
            }
        }
        bytes
    }

    fn purge_chunk(&self, opener: &Opener<'_>, slot: u32, aged_only: bool) -> usize {
        let group = opener.group;
        let chunk = &group.chunks[slot as usize];
        let pages = chunk.reach.pages();
        let may_go = !aged_only || chunk.pages.is_idle(pages);
        if may_go && chunk_slots::release(opener, &group.slots, slot) {
            return pages * PAGE_BYTES;
        }
        let address = |page: usize| chunk.base() + page * PAGE_BYTES;
        // Where the system's pages are longer than ours, the ends of a run stay.
        let trim = |first: usize, count: usize| {
            let (from, bytes) = os::whole_pages(address(first), count * PAGE_BYTES);
            ((from - chunk.base()) / PAGE_BYTES, bytes / PAGE_BYTES)
        };
        let purge = |first: usize, count: usize| {
            // SAFETY: the pages are claimed by this call, and were free until then.
            unsafe { os::purge(address(first), count * PAGE_BYTES) }
        };
        chunk.pages.purge(aged_only, trim, purge, || group.publish(slot)) * PAGE_BYTES
    }

    /// Returns the bytes that are mapped of chunks.
    pub fn chunk_bytes(&self) -> usize {
        self.chunk_bytes.load(Ordering::Relaxed)
    }

    /// Returns the bytes of free pages, and of those among them that are backed by memory.
    pub fn free_bytes(&self) -> (usize, usize) {
        self.groups.all().flat_map(|group| &group.chunks).fold((0, 0), |(free, dirty), chunk| {
            let pages = &chunk.pages;
            (free + pages.free.free_count() * PAGE_BYTES, dirty + pages.dirty_count() * PAGE_BYTES)
        })
    }

    /// Looks at the registry and at the span that every page names; fatal if that is a descriptor
    /// of nothing or of other pages, or if the registry does not know the chunk. Other threads may
    /// take and give pages meanwhile.
    pub fn check(&self) {
        self.space.check();
        for chunk in self.groups.all().flat_map(|group| &group.chunks) {
            for page in 0..PAGES_PER_CHUNK {
                let Some(span) = chunk.span(page) else { continue };
                let is_still_named =
                    || chunk.span(page).is_some_and(|now| core::ptr::eq(now, span));
                let names_it = || {
                    let address = chunk.base() + page * PAGE_BYTES;
                    self.chunk_of(address).is_some_and(|there| core::ptr::eq(there, chunk))
                        && span.kind() != SpanKind::Free
                        && (span.base()..span.end()).contains(&address)
                };
                if !names_it() && is_still_named() && !names_it() {
                    fatal::broken("span that a page names", span.base(), page);
                }
            }
        }
    }
}

/// Returns how many of a span's pages name it: all of a slab or a region, where blocks begin
/// anywhere, and the first one of a span of one block, where the header is.
fn named_pages(span: &Span) -> usize {
    match span.kind() {
        SpanKind::Slab if span.class_index() < FIRST_LARGE_CLASS => span.bytes() / PAGE_BYTES,
        SpanKind::Region => span.bytes() / PAGE_BYTES,
        _ => 1,
    }
}

impl Group {
    /// Brings the hints of a chunk up to date.
    fn publish(&self, slot: u32) {
        let pages = &self.chunks[slot as usize].pages;
        self.index.publish(slot, &RUN_LENGTHS, || longest_run(&pages.free.snapshot()));
    }
}

/// A group of the page heap in which chunks come and go.
struct Opener<'h> {
    heap: &'h PageHeap,
    group: &'h Group,
    /// Which of the groups it is.
    index: usize,
}

impl Opener<'_> {
    fn chunk(&self, slot: u32) -> &Chunk {
        &self.group.chunks[slot as usize]
    }

    /// Returns the number of a chunk.
    fn number(&self, slot: u32) -> usize {
        self.index * CHUNKS_PER_GROUP + slot as usize
    }
}

impl Chunks for Opener<'_> {
    fn base(&self, slot: u32) -> usize {
        self.chunk(slot).base()
    }

    fn reach(&self, slot: u32) -> &Reach {
        &self.chunk(slot).reach
    }

    fn place(&self, slot: u32, base: usize) {
        self.chunk(slot).place(base, self.number(slot));
    }

    fn register(&self, slot: u32) {
        self.heap.space.registry.add_chunk(self.chunk(slot));
    }

    fn forget(&self, base: usize) {
        self.heap.space.registry.remove(base, CHUNK_BYTES);
    }

    fn unmap(&self, base: usize, pages: usize) {
        let bytes = pages * PAGE_BYTES;
        let extent = if bytes == CHUNK_BYTES { Extent::Chunks } else { Extent::Exact };
        self.heap.space.give(base, bytes, extent);
        self.heap.chunk_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    fn map_behind(&self, base: usize, pages: usize, more: usize) -> bool {
        self.heap.space.map_at(base + pages * PAGE_BYTES, more * PAGE_BYTES)
    }

    fn take_all(&self, slot: u32, pages: usize) -> bool {
        self.chunk(slot).pages.free.take_at(0, pages)
    }

    fn give(&self, slot: u32, first: usize, count: usize) {
        self.heap.chunk_bytes.fetch_add(count * PAGE_BYTES, Ordering::Relaxed);
        self.chunk(slot).pages.free.give(first, count);
    }

    fn publish(&self, slot: u32) {
        self.group.publish(slot);
    }
}
