//! The page heap: spans from chunks, chunks from the operating system, and both back.
//!
//! No lock: pages are claimed in a chunk's bitmap, and `RunIndex` says in which chunk a search is
//! worth while. Chunks are in groups of 64 whose descriptors are never unmapped, so a searcher with
//! a stale chunk finds no free page in it, or free pages of its successor.

use crate::base::fatal;
use crate::base::os;
use crate::base::size_class::{
    FIRST_LARGE_CLASS, FIRST_PAYLOAD_OFFSET, MAX_CLASS_BYTES, PAGE_BYTES, pages_for,
};
use crate::base::sync::{AtomicU64, AtomicUsize, Ordering};
use crate::lockfree::bitmap::{longest_run, runs};
use crate::lockfree::once::{Once, OnceList};
use crate::lockfree::pool::Pool;
use crate::lockfree::run_index::RunIndex;
use crate::pages::chunk::{CHUNK_BYTES, Chunk, PAGES_PER_CHUNK};
use crate::pages::descriptors::DescriptorMemory;
use crate::pages::registry::{Backing, Registry};
use crate::pages::span::{Span, SpanKind, SpanMemory};
use core::ptr::{with_exposed_provenance, with_exposed_provenance_mut};

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

const _: () = assert!(CHUNKS_PER_GROUP == u64::BITS as usize, "`taken` has a bit for every chunk");

#[repr(C, align(64))]
struct Group {
    index: RunIndex<{ RUN_LENGTHS.len() }>,
    /// Which chunks exist, or are being opened or released.
    taken: AtomicU64,
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
    /// What is at which address.
    pub registry: Registry,
    /// Memory for descriptors.
    pub descriptors: DescriptorMemory,
    spans: Pool,
    groups: OnceList<Group, GROUP_COUNT>,
    chunk_count: AtomicUsize,
    hint: AtomicUsize,
}

impl PageHeap {
    /// A page heap without chunks.
    pub const fn new() -> Self {
        Self {
            registry: Registry::new(),
            descriptors: DescriptorMemory::new(),
            spans: Pool::new(),
            groups: OnceList { places: [const { Once::new() }; GROUP_COUNT] },
            chunk_count: AtomicUsize::new(0),
            hint: AtomicUsize::new(0),
        }
    }

    /// Takes a descriptor, which is the caller's alone. `None`: the system has no more memory.
    pub fn take_descriptor(&self) -> Option<&Span> {
        let address = match self.spans.take(&SpanMemory) {
            Some(address) => address,
            None => self.descriptors.take(size_of::<Span>())?,
        };
        // SAFETY: zeroed memory is a descriptor (of nothing), and only descriptors are pooled (M1).
        Some(unsafe { &*with_exposed_provenance::<Span>(address) })
    }

    /// Gives a descriptor back.
    pub fn give_descriptor(&self, span: &Span) {
        span.set_kind(SpanKind::Free);
        self.spans.put(&SpanMemory, core::ptr::from_ref(span).expose_provenance());
    }

    /// Takes a span of `pages` from the existing chunks.
    pub fn take_span(
        &self,
        kind: SpanKind,
        class: usize,
        pages: usize,
        owner: u64,
    ) -> Option<Taken<'_>> {
        let span = self.take_descriptor()?;
        let length_index = usize::from(LENGTH_INDEX[pages]);
        for group in self.groups.all() {
            let mut candidates = group.index.candidates(length_index);
            while candidates != 0 {
                let slot = candidates.trailing_zeros();
                candidates &= candidates - 1;
                let chunk = &group.chunks[slot as usize];
                if let Some((first, zeroed)) = chunk.take(pages, || publish(group, slot)) {
                    self.describe(span, chunk, first, pages, (kind, class, owner));
                    return Some(Taken { span, zeroed });
                }
                publish(group, slot);
            }
        }
        self.give_descriptor(span);
        None
    }

    fn describe(
        &self,
        span: &Span,
        chunk: &Chunk,
        first: usize,
        pages: usize,
        (kind, class, owner): (SpanKind, usize, u64),
    ) {
        let base = chunk.base() + first * PAGE_BYTES;
        span.describe(kind, class, base, pages * PAGE_BYTES, owner);
        chunk.set_span(first, named_pages(span), Some(span));
    }

    /// Maps one more chunk. `false`: the system has no more memory, or every slot is in use.
    pub fn grow(&self) -> bool {
        let hint = self.hint.load(Ordering::Relaxed);
        let Some(base) = os::map_aligned(CHUNK_BYTES, CHUNK_BYTES, hint) else { return false };
        self.hint.store(base.wrapping_sub(CHUNK_BYTES), Ordering::Relaxed);
        let prepared = self.registry.prepare(&self.descriptors, base, CHUNK_BYTES);
        let Some(number) = prepared.then(|| self.claim_slot()).flatten() else {
            // SAFETY: just mapped, unknown to anybody.
            unsafe { os::unmap(base, CHUNK_BYTES) };
            return false;
        };
        let Some(group) = self.groups.get(number / CHUNKS_PER_GROUP) else { return false };
        let slot = (number % CHUNKS_PER_GROUP) as u32;
        let chunk = &group.chunks[slot as usize];
        chunk.place(base, number);
        self.registry.add_chunk(chunk);
        self.chunk_count.fetch_add(1, Ordering::Relaxed);
        chunk.free.give(0, PAGES_PER_CHUNK);
        publish(group, slot);
        true
    }

    /// Claims the number of a chunk that does not exist.
    fn claim_slot(&self) -> Option<usize> {
        loop {
            let mut group_count = 0;
            for (index, group) in self.groups.all().enumerate() {
                let taken = group.taken.load(Ordering::Relaxed);
                if taken != u64::MAX {
                    let slot = (!taken).trailing_zeros();
                    if group.taken.fetch_or(1 << slot, Ordering::Acquire) & (1 << slot) == 0 {
                        return Some(index * CHUNKS_PER_GROUP + slot as usize);
                    }
                }
                group_count = index + 1;
            }
            let fresh =
                || self.descriptors.take(size_of::<Group>()).map(with_exposed_provenance_mut);
            // SAFETY: zeroed memory is a group without chunks.
            if !unsafe { self.groups.make_next(group_count, fresh) } {
                return None;
            }
        }
    }

    fn group_of(&self, chunk: &Chunk) -> Option<(&Group, u32)> {
        let number = chunk.number();
        let group = self.groups.get(number / CHUNKS_PER_GROUP)?;
        Some((group, (number % CHUNKS_PER_GROUP) as u32))
    }

    /// Returns the chunk that an address of ours is in.
    fn chunk_of(&self, address: usize) -> Option<&Chunk> {
        match self.registry.find(address)? {
            Backing::Chunk(chunk) => Some(chunk),
            Backing::Mapping(_) => None,
        }
    }

    /// Gives back a whole span with its descriptor.
    pub fn give_span(&self, span: &Span) {
        let (base, bytes, named) = (span.base(), span.bytes(), named_pages(span));
        let Some(chunk) = self.chunk_of(base) else { return };
        chunk.set_span(chunk.page_of(base), named, None);
        self.give_descriptor(span);
        self.give_unnamed(chunk, chunk.page_of(base), bytes / PAGE_BYTES);
    }

    /// Gives back pages whose descriptor goes on without them.
    pub fn give_pages(&self, base: usize, pages: usize) {
        let Some(chunk) = self.chunk_of(base) else { return };
        let first = chunk.page_of(base);
        chunk.set_span(first, pages, None);
        self.give_unnamed(chunk, first, pages);
    }

    fn give_unnamed(&self, chunk: &Chunk, first: usize, pages: usize) {
        chunk.give(first, pages);
        if let Some((group, slot)) = self.group_of(chunk) {
            publish(group, slot);
        }
    }

    /// Makes a span of one block longer by the pages behind it, if they are free.
    pub fn extend(&self, span: &Span, pages: usize) -> bool {
        let Some(chunk) = self.chunk_of(span.base()) else { return false };
        let have = span.bytes() / PAGE_BYTES;
        let first = chunk.page_of(span.base()) + have;
        if pages <= have {
            return true;
        }
        if !chunk.take_at(first, pages - have) {
            if let Some((group, slot)) = self.group_of(chunk) {
                publish(group, slot);
            }
            return false;
        }
        span.set_bytes(pages * PAGE_BYTES);
        true
    }

    /// Purges free pages: if `aged_only`, those that were already free at the last tick, else all.
    /// Chunks that are wholly free go back to the system. Returns the bytes given back.
    pub fn purge(&self, aged_only: bool) -> usize {
        let mut bytes = 0;
        for group in self.groups.all() {
            let mut taken = group.taken.load(Ordering::Relaxed);
            while taken != 0 {
                let slot = taken.trailing_zeros();
                taken &= taken - 1;
                bytes += self.purge_chunk(group, slot, aged_only);
            }
        }
        bytes
    }

    fn purge_chunk(&self, group: &Group, slot: u32, aged_only: bool) -> usize {
        let chunk = &group.chunks[slot as usize];
        if (!aged_only || chunk.is_idle()) && self.release(group, slot) {
            return CHUNK_BYTES;
        }
        let mask = chunk.purgeable(aged_only);
        let bytes: usize = runs(&mask)
            .map(|(first, count)| {
                // Where the system's pages are longer than ours, the ends of a run stay.
                let base = chunk.base();
                let (from, bytes) = os::whole_pages(base + first * PAGE_BYTES, count * PAGE_BYTES);
                let (first, count) = ((from - base) / PAGE_BYTES, bytes / PAGE_BYTES);
                if count == 0 {
                    return 0;
                }
                chunk.purge_run(first, count, |address, bytes| {
                    // SAFETY: the pages are claimed by this call, and were free until then.
                    unsafe { os::purge(address, bytes) }
                })
            })
            .sum();
        // Also for claims that were rolled back (B3).
        publish(group, slot);
        bytes
    }

    /// Gives a chunk back to the system if all of it is free.
    fn release(&self, group: &Group, slot: u32) -> bool {
        let chunk = &group.chunks[slot as usize];
        let base = chunk.base();
        if base == 0 || !chunk.free.take_all() {
            return false;
        }
        // It may have been released and opened anew before the claim: then `base` has changed.
        let base = chunk.base();
        publish(group, slot);
        self.registry.remove(base, CHUNK_BYTES);
        self.chunk_count.fetch_sub(1, Ordering::Relaxed);
        // SAFETY: every page is claimed by this call.
        unsafe { os::unmap(base, CHUNK_BYTES) };
        group.taken.fetch_and(!(1 << slot), Ordering::Release);
        true
    }

    /// Returns the bytes of mapped chunks.
    pub fn chunk_bytes(&self) -> usize {
        self.chunk_count.load(Ordering::Relaxed) * CHUNK_BYTES
    }

    /// Returns the bytes of free pages, and of those among them that are backed by memory.
    pub fn free_bytes(&self) -> (usize, usize) {
        self.groups.all().flat_map(|group| &group.chunks).fold((0, 0), |(free, dirty), chunk| {
            (free + chunk.free.free_count() * PAGE_BYTES, dirty + chunk.dirty_bytes())
        })
    }

    /// Looks at the registry and at the span that every page names; fatal if that is a descriptor
    /// of nothing or of other pages, or if the registry does not know the chunk. Other threads may
    /// take and give pages meanwhile.
    pub fn check(&self) {
        self.registry.check();
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

fn publish(group: &Group, slot: u32) {
    let chunk = &group.chunks[slot as usize];
    group.index.publish(slot, &RUN_LENGTHS, || longest_run(&chunk.free.snapshot()));
}
