//! One instance of everything, and every routing decision: what comes from where, and whose a block
//! is that comes back.

use crate::base::fatal;
use crate::base::os;
use crate::base::size_class::{
    CLASS_COUNT, Class, FIRST_LARGE_CLASS, HEADER_BYTES, PAGE_BYTES, pages_for,
};
use crate::base::sync::{AtomicPtr, AtomicU64, AtomicUsize, Lock, Ordering, step};
use crate::blocks::allocated::Allocated;
use crate::blocks::identity::{PERSISTENT_SERIAL, id_of, serial_of};
use crate::blocks::memory::Raw;
use crate::blocks::trace::{TRACE_BYTES, Trace};
use crate::lockfree::depot::{Depot, Magazine, Slots};
use crate::lockfree::header::{
    ALIGNED, Block, Claim, FREED, Header, LARGE, LIVE, Memory, NONE, OF_LIVE, PERSISTENT, TRACED,
    claim_stray,
};
use crate::lockfree::pool::Pool;
use crate::pages::chunk::CHUNK_BYTES;
use crate::pages::mappings::{Mapped, Mappings, needed_bytes};
use crate::pages::page_heap::{MAX_SPAN_PAGES, PageHeap, Taken};
use crate::pages::registry::Backing;
use crate::pages::span::{Span, SpanKind};
use crate::persistent::cache::Cache;
use crate::persistent::slab::Slabs;
use crate::request::control::{Control, ControlMemory, Opening};
use crate::request::finish::{self, Outcome, Survivors};
use crate::request::lane::Lane;
use crate::request::{Shortage, Supply};
use core::ptr::{null_mut, with_exposed_provenance_mut};

/// Magazines a depot holds at most.
const SLOTS_PER_DEPOT: u32 = 4096;
/// How often a span is looked for in a chunk that was just mapped for it.
const GROWTH_ATTEMPTS: usize = 4;
/// Magazines that are reaped at most before the process grows.
const REAPED_BEFORE_GROWTH: usize = 32;
/// What depots must hold before they are reaped to avoid growth: less is not worth the walk.
const REAP_WORTH_BYTES: usize = 2 * 1024 * 1024;
/// Magazines of a class that are reaped at most at a tick.
const REAPED_AT_A_TICK: u32 = 64;
/// How often idle memory is looked for.
pub const TICK_MILLISECONDS: u64 = 100;
/// Bytes of regions that may stay with all pooled control blocks together.
const MAX_WARM_BYTES: usize = 64 * 1024 * 1024;
/// Blocks that are no longer are had without a question.
const ORDINARY_BYTES: usize = 1 << 30;
/// Locks of the lists of large blocks: requests share them by address.
const LARGE_LOCK_COUNT: usize = 16;
/// Serials that a thread draws at once.
pub const SERIALS_PER_DRAW: u64 = 1024;

/// The slots of a depot, in memory mapped at the first use of the heap.
struct SlotArray {
    first: *mut Magazine,
    capacity: u32,
}

// SAFETY: the memory is the depot's alone, reached under its lock only.
unsafe impl Send for SlotArray {}

impl Slots for SlotArray {
    fn capacity(&self) -> u32 {
        self.capacity
    }
    fn get(&self, index: u32) -> Magazine {
        // SAFETY: `index < capacity`, and a slot that is read was set before.
        unsafe { *self.first.add(index as usize) }
    }
    fn set(&mut self, index: u32, magazine: Magazine) {
        // SAFETY: `index < capacity`.
        unsafe { *self.first.add(index as usize) = magazine }
    }
}

/// Everything.
pub struct Heap {
    cookie: AtomicU64,
    setup: Lock<bool>,
    /// Chunks, registry, descriptors.
    pub pages: PageHeap,
    slabs: [Slabs; CLASS_COUNT],
    depots: [Depot<SlotArray>; FIRST_LARGE_CLASS],
    mappings: Mappings,
    controls: Pool,
    /// All control blocks there ever were, linked by `Control::all_next`.
    all_controls: AtomicPtr<Control>,
    large_locks: [Lock<()>; LARGE_LOCK_COUNT],
    serials: AtomicU64,
    warm_bytes: AtomicUsize,
    next_tick: AtomicU64,
}

/// A block that came back, found and judged: it is live, and its layout is the right one.
pub struct Found<'h> {
    /// Its true payload: not the over-aligned address inside it.
    pub block: Block,
    /// What its pages are used for.
    pub span: &'h Span,
    /// Its header.
    pub header: Header,
}

impl Found<'_> {
    /// Bytes from the payload to the end of its block: what may be used of it.
    pub fn capacity(&self, payload: usize) -> usize {
        let is_traced = self.header.has(TRACED);
        let whole = match self.span.kind() {
            SpanKind::Mapped if is_traced => self.span.mapping.asked_bytes.get(),
            SpanKind::Mapped => self.span.needed_bytes() - 2 * HEADER_BYTES,
            _ => Class::from_index(self.header.class_index()).map_or(0, Class::payload_bytes),
        };
        let whole = if is_traced { Trace::place(whole) } else { whole };
        whole.saturating_sub(payload - self.block)
    }

    /// Whether a block of this class is as long as this one.
    pub fn is_of_class(&self, class: Class) -> bool {
        self.span.kind() != SpanKind::Mapped && self.header.class_index() == class.index()
    }

    /// The control block of the request the block belongs to; `None`: it is persistent.
    pub fn control<'c>(&self) -> Option<&'c Control> {
        // SAFETY: an owner is a control block, kept by this live block (Q1).
        (self.span.owner() != 0).then(|| unsafe { Control::at(self.span.owner()) })
    }
}

/// A block's bytes for the figures of the process.
#[derive(Clone, Copy, Default)]
pub struct HeapFigures {
    /// Bytes mapped from the system.
    pub mapped: usize,
    /// Bytes of free pages.
    pub free: usize,
    /// Bytes of blocks and mappings kept for the next allocation.
    pub cached: usize,
}

/// The size a block must have so that `size` bytes at `align` fit somewhere in it. Payloads are
/// 16-byte aligned, so at most `align - 16` bytes lie before the place.
pub fn padded_size(size: usize, align: usize) -> Option<usize> {
    if align <= 16 { Some(size) } else { size.checked_add(align - 16) }
}

/// The same for a block that is longer by a trace, which stands before any alignment is looked at.
pub fn needed_size(size: usize, align: usize, is_traced: bool) -> Option<usize> {
    let padded = padded_size(size, align)?;
    if is_traced { padded.checked_add(TRACE_BYTES) } else { Some(padded) }
}

impl Heap {
    /// Nothing is mapped, and every bit is zero: a static of it costs the binary nothing.
    pub const fn new() -> Self {
        Self {
            cookie: AtomicU64::new(0),
            setup: Lock::new(false),
            pages: PageHeap::new(),
            slabs: [const { Slabs::new() }; CLASS_COUNT],
            depots: [const { Depot::new(SlotArray { first: null_mut(), capacity: 0 }) };
                FIRST_LARGE_CLASS],
            mappings: Mappings::new(),
            controls: Pool::new(),
            all_controls: AtomicPtr::new(null_mut()),
            large_locks: [const { Lock::new(()) }; LARGE_LOCK_COUNT],
            serials: AtomicU64::new(0),
            warm_bytes: AtomicUsize::new(0),
            next_tick: AtomicU64::new(0),
        }
    }

    /// Draws the cookie and maps the depots' slots, once.
    pub fn set_up(&self) {
        if self.cookie.load(Ordering::Acquire) != 0 {
            return;
        }
        let array_bytes = SLOTS_PER_DEPOT as usize * size_of::<Magazine>();
        let (cookie, slots) = (os::random() | 1, os::map(array_bytes * FIRST_LARGE_CLASS, 0));
        let mut is_done = self.setup.lock();
        if *is_done {
            drop(is_done);
            if let Some(base) = slots {
                // SAFETY: just mapped, unknown to anybody.
                unsafe { os::unmap(base, array_bytes * FIRST_LARGE_CLASS) };
            }
            return;
        }
        // Without slots a depot is always full, and magazines go back to their slabs.
        if let Some(base) = slots {
            for (index, depot) in self.depots.iter().enumerate() {
                let first = with_exposed_provenance_mut(base + index * array_bytes);
                depot.provide(SlotArray { first, capacity: SLOTS_PER_DEPOT });
            }
        }
        step();
        self.cookie.store(cookie, Ordering::Release);
        step();
        *is_done = true;
    }

    fn cookie(&self) -> u64 {
        self.cookie.load(Ordering::Relaxed)
    }

    /// The header of a live persistent block of class 0.
    pub fn persistent_tag(&self) -> Header {
        Header::tag(id_of(PERSISTENT_SERIAL, self.cookie()), LIVE | PERSISTENT)
    }

    // ---- persistent blocks -------------------------------------------------------------------

    /// A block of `class` where the cache's bin is empty.
    #[cold]
    pub fn alloc_slow(&self, cache: &Cache, class: Class) -> Block {
        if cache.refill(class, |want| self.take_magazine(class, want)) {
            cache.bins.alloc(class)
        } else {
            NONE
        }
    }

    /// Makes room in a cache's full bin.
    #[cold]
    pub fn bin_full(&self, cache: &Cache, class: Class) {
        let magazine = cache.make_room(class);
        if !magazine.is_empty() {
            self.put_magazine(class, magazine);
        }
    }

    /// Free blocks of `class`, at most about `want`.
    fn take_magazine(&self, class: Class, want: u32) -> Magazine {
        let tag = self.persistent_tag().without(LIVE).with_class(class.index());
        if class.is_large() {
            let block = self.alloc_large(class).block;
            if block == NONE {
                return Magazine::EMPTY;
            }
            Raw.header(block).store(tag.0, Ordering::Relaxed);
            Raw.set_link(block, NONE);
            return Magazine { head: block, count: 1 };
        }
        match self.depots[class.index()].take() {
            Some(magazine) => magazine,
            None => self.slabs[class.index()].take(class, want, tag, || {
                self.take_span(SpanKind::Slab, class.index(), class.slab_pages(), 0)
                    .map(|taken| taken.span)
            }),
        }
    }

    /// Takes free blocks of `class` back.
    pub fn put_magazine(&self, class: Class, magazine: Magazine) {
        if class.is_large() {
            self.reap(class, magazine);
        } else if let Err(magazine) = self.depots[class.index()].put(magazine) {
            self.reap(class, magazine);
        }
    }

    /// Returns free blocks to their slabs, and slabs that are whole again to the page heap.
    fn reap(&self, class: Class, magazine: Magazine) {
        if class.is_large() {
            let mut block = magazine.head;
            for _ in 0..magazine.count {
                let next = Raw.link(block);
                self.pages.give_span(self.span_of_free(block, SpanKind::Slab));
                block = next;
            }
            return;
        }
        self.slabs[class.index()].reap(
            class,
            magazine,
            |block| self.span_of_free(block, SpanKind::Slab),
            |span| self.pages.give_span(span),
        );
    }

    /// The span of a block that lies in a magazine or a bin: if it is not one of this kind, a link
    /// was overwritten.
    fn span_of_free(&self, block: Block, kind: SpanKind) -> &Span {
        match self.pages.registry.find(block) {
            Some(Backing::Chunk(chunk)) => match chunk.span(chunk.page_of(block - HEADER_BYTES)) {
                Some(span) if span.kind() == kind => span,
                _ => fatal::header_overwritten(block, 0),
            },
            _ => fatal::header_overwritten(block, 0),
        }
    }

    /// One free block for a thread without a cache.
    fn take_one(&self, class: Class) -> Block {
        let magazine = self.take_magazine(class, 1);
        if magazine.count > 1 {
            let rest = Magazine { head: Raw.link(magazine.head), count: magazine.count - 1 };
            self.put_magazine(class, rest);
        }
        magazine.head
    }

    /// One block back from a thread without a cache.
    fn put_one(&self, class: Class, block: Block) {
        let top = if class.is_large() { None } else { self.depots[class.index()].take() };
        match top {
            Some(top) if top.count < class.magazine_count() => {
                Raw.set_link(block, top.head);
                self.put_magazine(class, Magazine { head: block, count: top.count + 1 });
            }
            other => {
                if let Some(full) = other {
                    self.put_magazine(class, full);
                }
                Raw.set_link(block, NONE);
                self.put_magazine(class, Magazine { head: block, count: 1 });
            }
        }
    }

    /// A persistent block by any route: `cache` is `None` in a thread that has given its back.
    pub fn alloc_persistent(&self, cache: Option<&Cache>, class: Class) -> Allocated {
        match cache {
            Some(cache) => {
                let block = cache.bins.alloc(class);
                if block != NONE {
                    return Allocated::used(block);
                }
                if class.is_large() && !cache.has_previous(class) {
                    cache.raise_cap(class);
                    return self.alloc_large(class);
                }
                Allocated::used(self.alloc_slow(cache, class))
            }
            None => {
                let block = self.take_one(class);
                if block != NONE {
                    let live = self.persistent_tag().with_class(class.index());
                    Raw.header(block).store(live.0, Ordering::Relaxed);
                }
                Allocated::used(block)
            }
        }
    }

    /// A persistent block with a span of its own.
    fn alloc_large(&self, class: Class) -> Allocated {
        let span = self.take_span(SpanKind::Slab, class.index(), class.slab_pages(), 0);
        let Some(Taken { span, zeroed }) = span else { return Allocated::NOTHING };
        let block = span.base() + 2 * HEADER_BYTES;
        let live = self.persistent_tag().with_class(class.index());
        Raw.header(block).store(live.0, Ordering::Relaxed);
        Allocated::new(block, zeroed)
    }

    // ---- mapped blocks -----------------------------------------------------------------------

    /// A persistent block above the largest class.
    pub fn alloc_mapped(&self, size: usize, align: usize) -> Allocated {
        self.take_mapping(size, align, 0, self.persistent_tag().with(LARGE))
            .map_or(Allocated::NOTHING, |(_, allocated)| allocated)
    }

    /// A block with a class, of a request in a lane of which the caller is and which has none.
    pub fn alloc_in(
        &self,
        control: &Control,
        lane: &Lane,
        class: Class,
        asked_bytes: usize,
    ) -> Allocated {
        match control.alloc_refilling(lane, class, asked_bytes, self) {
            Ok((block, zeroed)) => Allocated::new(block, zeroed),
            Err(Shortage::Limit) => Allocated::REFUSED,
            Err(Shortage::Memory) => Allocated::NOTHING,
        }
    }

    /// A block above the largest class, of a request in a lane of which the caller is.
    pub fn alloc_mapped_in(
        &self,
        control: &Control,
        lane: &Lane,
        size: usize,
        align: usize,
    ) -> Allocated {
        let Some(bytes) = needed_bytes(size, align) else { return Allocated::NOTHING };
        if !self.may_fit(bytes) && bytes <= control.limit().unwrap_or(usize::MAX) {
            return Allocated::NOTHING;
        }
        if !control.charge_or_reclaim(lane, bytes, size, self) {
            // A length that cannot even be counted is no matter of the limit where there is none.
            let has_limit = control.limit().is_some();
            return if has_limit { Allocated::REFUSED } else { Allocated::NOTHING };
        }
        let tag = Header::tag(control.id(), LIVE | LARGE);
        let Some((span, allocated)) = self.take_mapping(size, align, control.address(), tag) else {
            control.refund(bytes);
            return Allocated::NOTHING;
        };
        control.link_large(span, bytes, self);
        control.note_taken(size);
        allocated
    }

    /// Whether the system might have so much: not to be asked of it after a request was charged for it,
    /// which others of its threads would notice. Lengths that are nothing out of the ordinary may.
    fn may_fit(&self, bytes: usize) -> bool {
        bytes < ORDINARY_BYTES || self.could_fit(bytes)
    }

    /// Whether the system would have so much if everything idle went back to it.
    fn could_fit(&self, bytes: usize) -> bool {
        os::could_map(bytes.saturating_sub(self.idle_bytes()))
    }

    fn take_mapping(
        &self,
        size: usize,
        align: usize,
        owner: usize,
        tag: Header,
    ) -> Option<(&Span, Allocated)> {
        let take = || self.mappings.take(&self.pages, size, align, owner);
        let Mapped { span, zeroed } = take().or_else(|| {
            // Memory that nobody uses goes only if the block could fit then.
            let bytes = needed_bytes(size, align)?;
            if !self.could_fit(bytes) {
                return None;
            }
            self.release_all_idle();
            take()
        })?;
        span.mapping.asked_bytes.set(size);
        let block = span.base() + 2 * HEADER_BYTES;
        Raw.header(block).store(tag.0, Ordering::Relaxed);
        Some((span, Allocated::new(block, zeroed)))
    }

    // ---- judging what comes back -------------------------------------------------------------

    /// Finds the block of a payload that is freed or resized with this layout. Fatal, with the name
    /// of the fault, when it is not a live block of this heap with that layout.
    pub fn judge(&self, payload: usize, size: usize, align: usize) -> Found<'_> {
        let found = self.find(payload);
        let Found { span, header, .. } = found;
        let needed = needed_size(size, align, header.has(TRACED));
        let class = needed.and_then(Class::of);
        let fits = match (span.kind(), class) {
            (SpanKind::Mapped, None) if header.has(TRACED) => {
                Some(span.mapping.asked_bytes.get()) == needed
            }
            (SpanKind::Mapped, None) => span.mapping.asked_bytes.get() == size,
            (SpanKind::Mapped, Some(_)) | (_, None) => false,
            (_, Some(class)) => class.index() == header.class_index(),
        };
        if !fits {
            let capacity = match span.kind() {
                SpanKind::Mapped => span.mapping.asked_bytes.get(),
                _ => found.capacity(payload),
            };
            fatal::another_layout(payload, capacity, size);
        }
        found
    }

    /// Finds the live block of a payload, whatever its layout. An address that no block can have is
    /// named before anything is read by it.
    pub fn find(&self, payload: usize) -> Found<'_> {
        if payload % 16 != 0 || payload == 0 {
            fatal::not_a_block(payload);
        }
        let span = match self.pages.registry.find(payload) {
            None => fatal::not_a_block(payload),
            // Chunk numbers are longer than mappings.
            Some(Backing::Mapping(span)) if is_inside(payload, span.base(), span.end()) => span,
            Some(Backing::Mapping(_)) => fatal::not_a_block(payload),
            Some(Backing::Chunk(chunk)) => {
                if !is_inside(payload, chunk.base(), chunk.base() + CHUNK_BYTES) {
                    fatal::not_a_block(payload);
                }
                match chunk.span(chunk.page_of(payload - HEADER_BYTES)) {
                    Some(span) => span,
                    // The inside of a span of one block, or a free page.
                    None => self.find_aligned_or_die(payload),
                }
            }
        };
        let word = Header(Raw.header(payload).load(Ordering::Relaxed));
        match word.aligned_distance() {
            Some(distance) if self.leads_back(span, payload, distance) => {
                if word.has(FREED) {
                    fatal::double_free(payload);
                }
                self.live_block(payload, payload - distance, span)
            }
            _ => self.live_block(payload, payload, span),
        }
    }

    /// Whether an `ALIGNED` word leads to a place in the same span.
    fn leads_back(&self, span: &Span, payload: usize, distance: usize) -> bool {
        payload.checked_sub(distance).is_some_and(|block| block >= span.base() + 2 * HEADER_BYTES)
    }

    /// A page that names no span: an over-aligned payload far inside a span of one block, or misuse.
    fn find_aligned_or_die(&self, payload: usize) -> &Span {
        // The page lies in a mapped chunk, so its words can be read.
        let word = Header(Raw.header(payload).load(Ordering::Relaxed));
        let base = word.aligned_distance().and_then(|distance| payload.checked_sub(distance));
        if let Some(Backing::Chunk(chunk)) = base.and_then(|base| self.pages.registry.find(base)) {
            let page = base.map_or(0, |base| chunk.page_of(base - HEADER_BYTES));
            if let Some(span) = chunk.span(page) {
                if payload < span.end() {
                    return span;
                }
            }
        }
        self.die_of_a_free_page(payload, word)
    }

    /// A header read from a page that is free: what it was tells what happened.
    fn die_of_a_free_page(&self, payload: usize, word: Header) -> ! {
        let serial = serial_of(word.id(), self.cookie());
        if word.has(ALIGNED) && word.has(FREED) {
            fatal::double_free(payload);
        }
        if serial == PERSISTENT_SERIAL && word.has(PERSISTENT) && !word.has(LIVE) {
            fatal::double_free(payload);
        }
        if self.was_issued(serial) && !word.has(ALIGNED) {
            die_of_a_request(payload, serial, word);
        }
        fatal::not_a_block(payload)
    }

    /// Whether a request had this serial.
    fn was_issued(&self, serial: u64) -> bool {
        serial != PERSISTENT_SERIAL && serial < self.serials_drawn()
    }

    fn serials_drawn(&self) -> u64 {
        self.serials.load(Ordering::Relaxed) + 1
    }

    /// Looks at the header of a block and says what is wrong with it, if anything is.
    fn live_block<'h>(&'h self, payload: usize, block: Block, span: &'h Span) -> Found<'h> {
        if !starts_a_block(span, block) {
            fatal::not_a_block(payload);
        }
        let header = Header(Raw.header(block).load(Ordering::Relaxed));
        let owner = span.owner();
        let serial = serial_of(header.id(), self.cookie());
        let expected = match owner {
            0 => PERSISTENT_SERIAL,
            // SAFETY: a span's owner is a control block's address.
            owner => unsafe { Control::at(owner) }.serial(),
        };
        if span.kind() == SpanKind::Cached && serial == PERSISTENT_SERIAL {
            fatal::double_free(payload);
        }
        if serial != expected {
            if self.was_issued(serial) {
                die_of_a_request(payload, serial, header);
            }
            if span.kind() == SpanKind::Region && !is_cut(span, self.bump_in(span), block) {
                fatal::not_a_block(payload);
            }
            fatal::header_overwritten(payload, header.0);
        }
        let class_is_right = match span.kind() {
            SpanKind::Slab | SpanKind::Large => header.class_index() == span.class_index(),
            SpanKind::Mapped => header.class_index() == 0,
            _ => header.class_index() < CLASS_COUNT,
        };
        let flags_are_right = match span.kind() {
            SpanKind::Slab => header.has(PERSISTENT) && !header.has(LARGE | ALIGNED),
            SpanKind::Region => !header.has(LARGE | ALIGNED),
            _ => header.has(LARGE) && !header.has(ALIGNED),
        };
        if !class_is_right || !flags_are_right {
            fatal::header_overwritten(payload, header.0);
        }
        if !header.has(LIVE) || header.has(FREED) {
            fatal::double_free(payload);
        }
        Found { block, span, header }
    }

    /// How far a region is cut: its lane knows while it is the lane's first.
    fn bump_in(&self, span: &Span) -> usize {
        // SAFETY: a region's owner is a control block.
        let control = unsafe { Control::at(span.owner()) };
        let inside = |bump: &usize| *bump > span.base() && *bump <= span.end();
        control
            .lanes()
            .map(|lane| lane.bins.bump())
            .find(inside)
            .map_or(span.region.cut_end.get(), |bump| bump.max(span.region.cut_end.get()))
    }

    // ---- frees that the fast path refused ----------------------------------------------------

    /// Frees a block that the fast path refused. `lane` is the lane the thread is in, if any.
    pub fn free_found(&self, found: &Found<'_>, cache: Option<&Cache>, lane: Option<&Lane>) {
        match found.span.kind() {
            SpanKind::Slab => self.free_persistent(found, cache),
            SpanKind::Region => self.free_in_region(found, lane),
            _ => self.free_large(found),
        }
    }

    /// Marks the word before an over-aligned payload (H4).
    pub fn mark_aligned_freed(&self, payload: usize, block: Block) {
        if payload != block {
            let word = Raw.header(payload);
            word.store(Header(word.load(Ordering::Relaxed)).with(FREED).0, Ordering::Relaxed);
        }
    }

    fn free_persistent(&self, found: &Found<'_>, cache: Option<&Cache>) {
        let Some(class) = Class::from_index(found.header.class_index()) else { return };
        Raw.header(found.block).store(found.header.without(OF_LIVE).0, Ordering::Relaxed);
        match cache {
            Some(cache) => {
                if cache.bins.bin(class).push(found.block) {
                    self.bin_full(cache, class);
                }
            }
            None => self.put_one(class, found.block),
        }
    }

    fn free_in_region(&self, found: &Found<'_>, lane: Option<&Lane>) {
        let Some(class) = Class::from_index(found.header.class_index()) else { return };
        if let Some(lane) = lane.filter(|lane| lane.bins.tag().id() == found.header.id()) {
            Raw.header(found.block).store(lane.bins.free_header(class).0, Ordering::Relaxed);
            lane.bins.put(found.block, class);
            return;
        }
        if claim_stray(&Raw, found.block) == Claim::AlreadyFreed {
            fatal::double_free(found.block);
        }
        // SAFETY: a region's owner is a control block, and this live block keeps it (Q1).
        let control = unsafe { Control::at(found.span.owner()) };
        if control.push_stray(found.block, class).is_ok() {
            return;
        }
        let span = found.span;
        if span.region.count.drop_one() && finish::release_survivor_span(control, self, span) {
            self.recycle(control);
        }
    }

    fn free_large(&self, found: &Found<'_>) {
        let live = found.header;
        let free = live.without(OF_LIVE).0;
        let word = Raw.header(found.block);
        if word.compare_exchange(live.0, free, Ordering::Relaxed, Ordering::Relaxed).is_err() {
            fatal::double_free(found.block);
        }
        match found.span.owner() {
            0 => {}
            owner => {
                // SAFETY: the owner is a control block, kept by this block until now (Q1).
                let control = unsafe { Control::at(owner) };
                if !control.unlink_large(found.span, self) {
                    finish::release_large_span(found.span, self);
                    if control.holds.drop_one() {
                        self.recycle(control);
                    }
                    return;
                }
            }
        }
        finish::release_large_span(found.span, self);
    }

    /// Makes a large or mapped block longer or shorter where it is, or moves its pages; the block, or
    /// what stands in the way: only a limit may give way. The block's alignment is at most 16. `lane` is
    /// the lane of the block's request that the caller is in, if any.
    pub fn resize_own_pages(
        &self,
        found: &Found<'_>,
        lane: Option<&Lane>,
        new_size: usize,
    ) -> Result<Block, Shortage> {
        let span = found.span;
        let class = Class::of(new_size);
        let wanted = match (span.kind(), class) {
            (SpanKind::Mapped, None) => needed_bytes(new_size, 1),
            (SpanKind::Large, Some(class)) if class.is_large() => {
                Some(class.slab_pages() * PAGE_BYTES)
            }
            (SpanKind::Slab, Some(class))
                if class.is_large() && span.class_index() >= FIRST_LARGE_CLASS =>
            {
                Some(class.slab_pages() * PAGE_BYTES)
            }
            _ => None,
        };
        let wanted = wanted.filter(|_| !found.header.has(TRACED)).ok_or(Shortage::Memory)?;
        let control = found.control();
        let growth = wanted.saturating_sub(span.own.charged_bytes.get());
        if let Some(control) = control {
            if !self.may_fit(growth) {
                return Err(Shortage::Memory);
            }
            if growth > 0 && !control.charge_growth(lane, growth, new_size, self) {
                return Err(Shortage::Limit);
            }
        }
        let is_resized = match class {
            None => self.resize_mapping(span, new_size),
            Some(class) => self.resize_span(found, class),
        };
        if let Some(control) = control {
            if !is_resized {
                control.refund(growth);
            } else {
                // A span that is shortened keeps its pages.
                let is_mapped = span.kind() == SpanKind::Mapped;
                control.recharge_large(span, growth, if is_mapped { wanted } else { span.bytes() });
                control.note_taken(new_size);
            }
        }
        if is_resized { Ok(span.base() + 2 * HEADER_BYTES) } else { Err(Shortage::Memory) }
    }

    fn resize_mapping(&self, span: &Span, new_size: usize) -> bool {
        self.mappings.resize(&self.pages, span, new_size) && {
            span.mapping.asked_bytes.set(new_size);
            true
        }
    }

    fn resize_span(&self, found: &Found<'_>, class: Class) -> bool {
        let pages = class.slab_pages();
        // A shrunk block keeps its pages unless they are worth something.
        let have = pages_for(found.span.bytes());
        if pages > MAX_SPAN_PAGES || pages * 2 < have || !self.pages.extend(found.span, pages) {
            return false;
        }
        found.span.set_class(class.index());
        let header = found.header.with_class(class.index());
        Raw.header(found.block).store(header.0, Ordering::Relaxed);
        true
    }

    // ---- requests ----------------------------------------------------------------------------

    /// A control block from the pool, else a new one. `None`: the system has no more memory.
    pub fn take_control(&self) -> Option<&Control> {
        match self.controls.take(&ControlMemory) {
            // SAFETY: only control blocks are pooled here.
            Some(address) => Some(unsafe { Control::at(address) }),
            None => {
                let address =
                    self.pages.descriptors.take(size_of::<Control>().next_multiple_of(128) + 64)?;
                // SAFETY: fresh zeroed memory, aligned to 64 and longer by as much.
                let control = unsafe { Control::make(address.next_multiple_of(128)) };
                control.list_in(&self.all_controls);
                Some(control)
            }
        }
    }

    fn all_controls(&self) -> impl Iterator<Item = &Control> {
        let mut next: *const Control = self.all_controls.load(Ordering::Acquire);
        core::iter::from_fn(move || {
            // SAFETY: control blocks are type-stable, and published whole.
            let control = unsafe { next.as_ref()? };
            next = control.all_next();
            Some(control)
        })
    }

    /// Puts a control block back whose request is over.
    pub fn recycle(&self, control: &Control) {
        control.retire();
        self.controls.put(&ControlMemory, control.address());
    }

    /// Draws serials for a thread: `SERIALS_PER_DRAW` from the one returned on.
    pub fn draw_serials(&self) -> u64 {
        self.serials.fetch_add(SERIALS_PER_DRAW, Ordering::Relaxed) + 1
    }

    /// Opens a request in a control block that is the caller's alone.
    #[inline]
    pub fn open_request(&self, control: &Control, serial: u64, opening: &Opening) {
        control.open(serial, id_of(serial, self.cookie()), opening);
    }

    /// Finishes a request whose last handle the caller dropped.
    pub fn finish_request(&self, control: &Control, survivors: Survivors) -> Outcome {
        finish::finish(control, self, survivors)
    }

    /// Decrees that a live block of a request outlives it. Fatal when it is no live block.
    pub fn persist(&self, payload: usize) {
        let found = self.find(payload);
        let owner = found.span.owner();
        if owner == 0 {
            return;
        }
        // A release, for what `TRACED` promises to those who see it in this word.
        Raw.header(found.block).store(found.header.with(PERSISTENT).0, Ordering::Release);
        found.span.own.kept.store(true, Ordering::Relaxed);
        // SAFETY: the owner is a control block, kept by this block (Q1).
        unsafe { Control::at(owner) }.kept.store(true, Ordering::Relaxed);
    }

    /// Whether this payload's page or mapping is this heap's.
    pub fn is_ours(&self, payload: usize) -> bool {
        self.pages.registry.find(payload).is_some()
    }

    /// The lock of the list of large blocks of the request with this control block.
    fn large_lock(&self, control: usize) -> &Lock<()> {
        &self.large_locks[(control >> 8) % LARGE_LOCK_COUNT]
    }

    // ---- memory goes back --------------------------------------------------------------------

    /// Reaps cold magazines before the process grows, if the depots hold enough to be worth it.
    fn reap_before_growth(&self) -> bool {
        let held: usize = self.depot_bytes();
        if held < REAP_WORTH_BYTES || held < self.pages.chunk_bytes() / 8 {
            return false;
        }
        let mut left = REAPED_BEFORE_GROWTH;
        for class in Class::all().filter(|class| !class.is_large()) {
            let depot = &self.depots[class.index()];
            let share = left.min(depot.magazine_count() as usize / 4);
            for magazine in core::iter::from_fn(|| depot.take_coldest()).take(share) {
                self.reap(class, magazine);
            }
            left -= share;
        }
        left < REAPED_BEFORE_GROWTH
    }

    /// No less than what `release_all_idle` could give back.
    fn idle_bytes(&self) -> usize {
        let in_slabs: usize =
            Class::all().map(|c| self.slabs[c.index()].idle_count() * c.stride_bytes()).sum();
        let (_, cached) = self.mappings.figures();
        let (free, _) = self.pages.free_bytes();
        let warm = self.warm_bytes.load(Ordering::Relaxed);
        in_slabs + self.depot_bytes() + cached + free + warm
    }

    /// About how much the depots hold, by their numbers of magazines.
    fn depot_bytes(&self) -> usize {
        Class::all()
            .filter(|class| !class.is_large())
            .map(|class| {
                let count = self.depots[class.index()].magazine_count() as usize;
                count * class.magazine_count() as usize * class.stride_bytes()
            })
            .sum()
    }

    /// Gives back what has been idle since the last tick, if a tick is due.
    pub fn tick(&self, now: u64) {
        let due = self.next_tick.load(Ordering::Relaxed);
        if now < due
            || self
                .next_tick
                .compare_exchange(
                    due,
                    now + TICK_MILLISECONDS,
                    Ordering::Relaxed,
                    Ordering::Relaxed,
                )
                .is_err()
        {
            return;
        }
        for class in Class::all().filter(|class| !class.is_large()) {
            let depot = &self.depots[class.index()];
            let idle = depot.age().div_ceil(2).min(REAPED_AT_A_TICK) as usize;
            for magazine in core::iter::from_fn(|| depot.take_coldest()).take(idle) {
                self.reap(class, magazine);
            }
        }
        self.mappings.decay(&self.pages, Some(now));
        self.pages.purge(true);
    }

    /// Gives everything idle back to the system: depots, warm regions, cached mappings, free pages.
    /// Returns the bytes that went.
    pub fn release_all_idle(&self) -> usize {
        for class in Class::all().filter(|class| !class.is_large()) {
            // Not more than there were: other threads may put as fast as this one takes.
            let count = self.depots[class.index()].magazine_count() as usize;
            for magazine in
                core::iter::from_fn(|| self.depots[class.index()].take_coldest()).take(count)
            {
                self.reap(class, magazine);
            }
        }
        self.release_warm();
        self.mappings.decay(&self.pages, None) + self.pages.purge(false)
    }

    /// Takes every pooled control block, gives its warm regions back, and pools it again.
    fn release_warm(&self) {
        if self.warm_bytes.load(Ordering::Relaxed) == 0 {
            return;
        }
        let emptied = Pool::new();
        while let Some(address) = self.controls.take(&ControlMemory) {
            // SAFETY: only control blocks are pooled here; this one is the caller's now.
            finish::release_warm(unsafe { Control::at(address) }, self);
            emptied.put(&ControlMemory, address);
        }
        while let Some(address) = emptied.take(&ControlMemory) {
            self.controls.put(&ControlMemory, address);
        }
    }

    /// Gives the warm regions of one idle control block back.
    pub fn release_warm_of(&self, control: &Control) {
        finish::release_warm(control, self);
    }

    /// The process's figures but for the thread caches.
    pub fn figures(&self) -> HeapFigures {
        let (mapping_bytes, cached_mappings) = self.mappings.figures();
        let (free, _) = self.pages.free_bytes();
        let in_depots_and_slabs: usize = Class::all()
            .map(|class| {
                let idle = self.slabs[class.index()].idle_count();
                let depot = self.depots.get(class.index()).map_or(0, Depot::block_count);
                (idle + depot as usize) * class.stride_bytes()
            })
            .sum();
        HeapFigures {
            mapped: self.pages.chunk_bytes()
                + mapping_bytes
                + self.pages.descriptors.mapped_bytes(),
            free,
            cached: in_depots_and_slabs + cached_mappings + self.warm_bytes.load(Ordering::Relaxed),
        }
    }

    // ---- fork --------------------------------------------------------------------------------

    /// Opens every lock that a thread held which this process, forked just now, does not have, and
    /// makes whole what such a thread was changing. What it had in hand is lost, nothing else. `visited`
    /// is the request that this thread visits: visitors that are not there keep nobody waiting.
    ///
    /// # Safety
    /// This is the only thread of the process.
    pub unsafe fn recover(&self, visited: *const Control) {
        for control in self.all_controls() {
            control.handles.recount_visitors(u32::from(core::ptr::eq(control, visited)));
        }
        // SAFETY: the caller's contract, for each of them.
        unsafe {
            self.pages.descriptors.recover();
            self.depots.iter().for_each(|depot| depot.recover());
            self.setup.recover(|is_done, _| {
                *is_done = self.cookie.load(Ordering::Relaxed) != 0;
            });
            Class::all().for_each(|class| self.slabs[class.index()].recover(class));
            self.mappings.recover();
            for lock in &self.large_locks {
                lock.recover(|(), is_torn| {
                    let guarded = |control: &&Control| {
                        core::ptr::eq(self.large_lock(control.address()), lock)
                    };
                    if is_torn {
                        self.all_controls().filter(guarded).for_each(Control::repair_large);
                    }
                });
            }
        }
    }

    /// Walks every slab list; fatal when one contradicts itself.
    pub fn check(&self) {
        Class::all().for_each(|class| self.slabs[class.index()].check(class));
        self.mappings.check();
        self.pages.check();
    }
}

impl Supply for Heap {
    fn take_span(
        &self,
        kind: SpanKind,
        class: usize,
        pages: usize,
        owner: usize,
    ) -> Option<Taken<'_>> {
        let take = || self.pages.take_span(kind, class, pages, owner);
        // Other threads may take all of a new chunk first, but not often.
        let grow = || (0..GROWTH_ATTEMPTS).find_map(|_| self.pages.grow().then(take).flatten());
        take()
            .or_else(|| self.reap_before_growth().then(take).flatten())
            .or_else(grow)
            // The last resort before null: everything idle, then what is mapped once more.
            .or_else(|| {
                self.release_all_idle();
                take().or_else(grow)
            })
    }

    fn region_of(&self, block: Block) -> &Span {
        self.span_of_free(block, SpanKind::Region)
    }

    fn give_span(&self, span: &Span) {
        self.pages.give_span(span);
    }

    fn give_pages(&self, base: usize, pages: usize) {
        self.pages.give_pages(base, pages);
    }

    fn give_descriptor(&self, span: &Span) {
        self.pages.give_descriptor(span);
    }

    fn give_mapping(&self, span: &Span) {
        self.mappings.give(&self.pages, span, os::coarse_milliseconds());
    }

    fn charge_warm(&self, bytes: usize) -> bool {
        let before = self.warm_bytes.fetch_add(bytes, Ordering::Relaxed);
        if before + bytes > MAX_WARM_BYTES {
            self.warm_bytes.fetch_sub(bytes, Ordering::Relaxed);
            return false;
        }
        true
    }

    fn refund_warm(&self, bytes: usize) {
        self.warm_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    fn with_large_lock<R>(&self, control: usize, change: impl FnOnce() -> R) -> R {
        let _guard = self.large_lock(control).lock();
        change()
    }
}

/// A header of a request that its place does not belong to: the request is over, or the block had
/// been given back before.
fn die_of_a_request(payload: usize, serial: u64, header: Header) -> ! {
    if header.has(LARGE) && !header.has(LIVE) {
        fatal::double_free(payload);
    }
    fatal::ended_request(payload, serial)
}

/// Whether a payload and the word before it lie in memory from `start` to `end`.
fn is_inside(payload: usize, start: usize, end: usize) -> bool {
    payload >= start + HEADER_BYTES && payload < end
}

/// Whether a payload can begin here at all, by the span's geometry.
fn starts_a_block(span: &Span, block: Block) -> bool {
    let Some(offset) = block.checked_sub(span.base() + 2 * HEADER_BYTES) else { return false };
    match span.kind() {
        SpanKind::Slab => Class::from_index(span.class_index()).is_some_and(|class| {
            offset % class.stride_bytes() == 0
                && offset / class.stride_bytes() < class.slab_count() as usize
        }),
        SpanKind::Region => offset % 16 == 0,
        _ => offset == 0,
    }
}

/// Whether a region's blocks, walked from its start, include this one. For a last message: stops at
/// the first header that is none.
fn is_cut(span: &Span, end: usize, block: Block) -> bool {
    let mut at = span.base() + 2 * HEADER_BYTES;
    while at < block && at < end {
        let header = Header(Raw.header(at).load(Ordering::Relaxed));
        match Class::from_index(header.class_index()) {
            Some(class) => at += class.stride_bytes(),
            None => return false,
        }
    }
    at == block && at < end
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::os::injected::refuse_after;
    use crate::base::sync::paused::{Pause, has_come, stop_at};
    use std::boxed::Box;
    use std::vec::Vec;

    fn new_heap() -> &'static Heap {
        // SAFETY: a heap of zeros is a new one, as its documentation says.
        let heap = unsafe { Box::<Heap>::new_zeroed().assume_init() };
        Box::leak(heap)
    }

    fn new_cache(heap: &Heap) -> Box<Cache> {
        // SAFETY: a cache of zeros is one that is not open.
        let cache = unsafe { Box::<Cache>::new_zeroed().assume_init() };
        cache.open(heap.persistent_tag(), 1);
        cache
    }

    fn free(heap: &Heap, cache: &Cache, block: Block) {
        heap.free_found(&heap.find(block), Some(cache), None);
    }

    /// One of everything; what could not be had is `NONE`.
    fn one_of_everything(heap: &'static Heap, cache: &Cache) -> Vec<Block> {
        let mut blocks: Vec<Block> = Class::all()
            .step_by(5)
            .map(|class| heap.alloc_persistent(Some(cache), class).block)
            .collect();
        blocks.push(heap.alloc_persistent(None, Class::from_index(3).unwrap()).block);
        blocks.push(heap.alloc_mapped(3 << 20, 16).block);
        blocks.push(heap.alloc_mapped(1 << 20, 8 << 20).block);
        blocks
    }

    /// A request that allocates from regions and large spans and survives by one block of each.
    fn one_request(heap: &'static Heap) -> Vec<Block> {
        let Some(control) = heap.take_control() else { return Vec::new() };
        heap.open_request(control, heap.draw_serials(), &Opening::default());
        let mut blocks = Vec::new();
        if let Some(lane) = control.enter(|bytes| heap.pages.descriptors.take(bytes)) {
            for class in [0, 20, 40, 50].map(|index| Class::from_index(index).unwrap()) {
                blocks.push(heap.alloc_in(control, lane, class, class.payload_bytes()).block);
            }
            blocks.push(heap.alloc_mapped_in(control, lane, 2 << 20, 16).block);
            lane.occupancy.leave();
        }
        blocks.retain(|&block| block != NONE);
        assert!(control.handles.drop_if_only());
        let outcome = heap.finish_request(control, Survivors::Live);
        assert_eq!(outcome.surviving_blocks, blocks.len());
        if outcome.is_over {
            heap.recycle(control);
        }
        blocks
    }

    #[test]
    fn every_mapping_refused_in_turn_loses_nothing() {
        let mut refusals = 0;
        for calls in 0..40 {
            let heap = new_heap();
            refuse_after(calls);
            heap.set_up();
            let cache = new_cache(heap);
            let mut blocks = one_of_everything(heap, &cache);
            blocks.extend(one_request(heap));
            let refused = blocks.contains(&NONE) || blocks.len() < one_of_everything_count() + 5;
            refusals += usize::from(refused);
            refuse_after(u64::MAX);
            let again = one_of_everything(heap, &cache);
            assert!(!again.contains(&NONE), "refused after {calls} calls, it does not recover");
            assert_eq!(one_request(heap).iter().map(|&b| free(heap, &cache, b)).count(), 5);
            let live = blocks.into_iter().chain(again).filter(|&block| block != NONE);
            live.for_each(|block| free(heap, &cache, block));
            heap.check();
            cache.flush(|class, magazine| heap.put_magazine(class, magazine));
            heap.release_all_idle();
            assert_eq!(heap.pages.chunk_bytes(), 0, "refused after {calls} calls, chunks are lost");
            assert_eq!(heap.mappings.figures(), (0, 0), "refused after {calls} calls");
        }
        assert!((5..40).contains(&refusals), "{refusals} of 40 runs met a refusal");
    }

    fn one_of_everything_count() -> usize {
        Class::all().step_by(5).count() + 3
    }

    #[test]
    fn figures_add_up_and_follow_a_block() {
        let heap = new_heap();
        heap.set_up();
        let cache = new_cache(heap);
        let class = Class::of(1 << 19).unwrap();
        let before = heap.figures();
        let blocks: Vec<Block> =
            (0..20).map(|_| heap.alloc_persistent(Some(&cache), class).block).collect();
        let during = heap.figures();
        assert!(during.mapped - before.mapped >= 20 << 19);
        assert!(during.mapped - during.free - during.cached >= 20 << 19);
        blocks.into_iter().for_each(|block| free(heap, &cache, block));
        cache.flush(|class, magazine| heap.put_magazine(class, magazine));
        let after = heap.figures();
        assert_eq!(after.mapped, during.mapped, "chunks stay for a while");
        assert!(after.free >= 20 << 19);
        assert_eq!(heap.release_all_idle() % CHUNK_BYTES, 0);
        assert_eq!(heap.pages.chunk_bytes(), 0);
    }

    #[test]
    fn a_mapping_is_reused_and_gives_back_what_is_too_much() {
        let heap = new_heap();
        heap.set_up();
        let cache = new_cache(heap);
        let first = heap.alloc_mapped(16 << 20, 16).block;
        free(heap, &cache, first);
        let second = heap.alloc_mapped(2 << 20, 16);
        assert_eq!(second.block, first, "the mapping of the freed block serves the next");
        assert!(!second.is_zeroed());
        let (mapped, _) = heap.mappings.figures();
        assert!(mapped >= 16 << 20);
        heap.mappings.decay(&heap.pages, None);
        let (mapped, cached) = heap.mappings.figures();
        assert!(mapped < 3 << 20 && cached == 0, "{mapped} mapped, {cached} cached");
        free(heap, &cache, second.block);
        let third = heap.alloc_mapped(3 << 20, 16);
        assert_ne!(third.block, NONE);
        free(heap, &cache, third.block);
        heap.release_all_idle();
        assert_eq!(heap.mappings.figures(), (0, 0));
    }

    type Action = fn(&'static Heap, &Cache);

    /// What a thread does whose steps are forked at; together they take every lock there is.
    const FORKED_AT: [(&str, Action); 7] = [
        ("set up", |heap, _| heap.set_up()),
        ("magazines", |heap, cache| {
            use_class(heap, cache, 2, 40);
            use_class(heap, cache, 2, 40);
        }),
        ("slabs", |heap, cache| {
            use_class(heap, cache, FIRST_LARGE_CLASS - 1, 20);
            heap.release_all_idle();
            use_class(heap, cache, FIRST_LARGE_CLASS - 1, 20);
        }),
        ("mappings", |heap, cache| {
            let first = heap.alloc_mapped(16 << 20, 16).block;
            free(heap, cache, first);
            let loose = heap.alloc_mapped(2 << 20, 16).block;
            heap.mappings.decay(&heap.pages, None);
            let other = heap.alloc_mapped(3 << 20, 16).block;
            [loose, other].iter().for_each(|&block| free(heap, cache, block));
            heap.mappings.decay(&heap.pages, None);
        }),
        ("requests", |heap, cache| {
            one_request(heap).iter().for_each(|&block| free(heap, cache, block));
        }),
        ("large blocks", |heap, cache| large_blocks(heap, cache)),
        ("descriptors", |heap, _| {
            [300 << 10, 64, 200 << 10, 128].iter().for_each(|&bytes| {
                heap.pages.descriptors.take(bytes);
            });
        }),
    ];

    /// Blocks of one class, all back in their slabs or depot afterwards.
    fn use_class(heap: &'static Heap, cache: &Cache, index: usize, count: usize) {
        let class = Class::from_index(index).unwrap();
        let blocks: Vec<Block> =
            (0..count).map(|_| heap.alloc_persistent(Some(cache), class).block).collect();
        blocks.iter().for_each(|&block| free(heap, cache, block));
        cache.flush(|class, magazine| heap.put_magazine(class, magazine));
    }

    /// Large blocks of one request, freed in another order while others stay on its list.
    fn large_blocks(heap: &'static Heap, cache: &Cache) {
        let control = heap.take_control().unwrap();
        heap.open_request(control, heap.draw_serials(), &Opening::default());
        let lane = control.enter(|bytes| heap.pages.descriptors.take(bytes)).unwrap();
        let class = Class::from_index(FIRST_LARGE_CLASS).unwrap();
        let blocks: Vec<Block> =
            (0..3).map(|_| heap.alloc_in(control, lane, class, 1).block).collect();
        lane.occupancy.leave();
        [1, 0, 2].iter().for_each(|&index| free(heap, cache, blocks[index]));
        assert!(control.handles.drop_if_only());
        assert!(heap.finish_request(control, Survivors::Live).is_over);
        heap.recycle(control);
    }

    /// All that a process does with a heap it has been given by a fork; `live` are blocks that it has.
    fn use_after_fork(heap: &'static Heap, live: &[Block]) {
        // SAFETY: the process has one thread.
        unsafe { heap.recover(core::ptr::null()) };
        heap.check();
        heap.set_up();
        let cache = new_cache(heap);
        let mut blocks = one_of_everything(heap, &cache);
        for index in [2, FIRST_LARGE_CLASS - 1] {
            let class = Class::from_index(index).unwrap();
            blocks.extend((0..200).map(|_| heap.alloc_persistent(Some(&cache), class).block));
        }
        blocks.extend_from_slice(live);
        let mut unique = blocks.clone();
        unique.sort_unstable();
        unique.dedup();
        assert!(unique.len() == blocks.len() && !blocks.contains(&NONE), "a block is had once");
        blocks.iter().for_each(|&block| free(heap, &cache, block));
        one_request(heap).iter().for_each(|&block| free(heap, &cache, block));
        large_blocks(heap, &cache);
        cache.flush(|class, magazine| heap.put_magazine(class, magazine));
        heap.check();
        for control in heap.all_controls() {
            control.repair_large();
            assert!(control.large_figures().0 <= 3);
        }
        heap.release_all_idle();
        // A chunk may have pages in it that the other thread had in hand.
        assert!(heap.pages.chunk_bytes() <= CHUNK_BYTES, "no more is lost than was in hand");
    }

    /// Forks; the status that the child ended with: 0 if it ran to its end.
    fn status_of_a_child(run: impl FnOnce()) -> i32 {
        // SAFETY: the child uses nothing that another thread of this process could hold.
        match unsafe { libc::fork() } {
            0 => {
                // SAFETY: always callable.
                unsafe { libc::alarm(20) };
                let run = std::panic::AssertUnwindSafe(run);
                let code = i32::from(std::panic::catch_unwind(run).is_err());
                // SAFETY: always callable.
                unsafe { libc::_exit(code) }
            }
            child => {
                let mut status = 0;
                // SAFETY: `status` is writable.
                unsafe { libc::waitpid(child, &raw mut status, 0) };
                if child > 0 { status } else { child }
            }
        }
    }

    #[test]
    fn a_fork_at_every_step_of_every_critical_section_loses_nothing_else() {
        for (name, action) in FORKED_AT {
            let mut heap = new_heap();
            let mut live = Vec::new();
            if name != "set up" {
                heap.set_up();
                let cache = new_cache(heap);
                use_class(heap, &cache, 2, 100);
                live = one_of_everything(heap, &cache);
                cache.flush(|class, magazine| heap.put_magazine(class, magazine));
            }
            let mut steps = 0;
            while fork_at(heap, &live, name, action, steps) {
                steps += 1;
                if name == "set up" {
                    heap = new_heap();
                }
            }
            assert!(steps > 4, "{name} has {steps} steps");
        }
    }

    /// Forks while a thread is at this step of an action; `false`: the action has fewer.
    fn fork_at(heap: &'static Heap, live: &[Block], name: &str, action: Action, step: u64) -> bool {
        let pause: &'static Pause = Box::leak(Box::default());
        let thread = std::thread::spawn(move || {
            let cache = new_cache(heap);
            stop_at(step, pause);
            action(heap, &cache);
            has_come()
        });
        while !pause.has_stopped.load(Ordering::Acquire) && !thread.is_finished() {
            std::thread::yield_now();
        }
        if pause.has_stopped.load(Ordering::Acquire) {
            let status = status_of_a_child(|| use_after_fork(heap, live));
            pause.may_go_on.store(true, Ordering::Release);
            assert_eq!(status, 0, "forked at step {step} of {name}");
        }
        thread.join().unwrap()
    }

    #[test]
    fn a_fork_by_who_holds_a_lock_leaves_it_held() {
        let heap = new_heap();
        heap.set_up();
        let cache = new_cache(heap);
        let held = heap.large_locks[3].lock();
        let status = status_of_a_child(|| {
            // SAFETY: the process has one thread.
            unsafe { heap.recover(core::ptr::null()) };
            drop(held);
            use_after_fork(heap, &one_of_everything(heap, &cache));
        });
        assert_eq!(status, 0);
    }

    #[test]
    fn spans_of_one_block_grow_where_they_stand() {
        let heap = new_heap();
        heap.set_up();
        let cache = new_cache(heap);
        let block = heap.alloc_persistent(Some(&cache), Class::of(50_000).unwrap()).block;
        assert_eq!(heap.resize_own_pages(&heap.find(block), None, 500_000), Ok(block));
        let found = heap.judge(block, 500_000, 8);
        assert!(found.span.bytes() >= 500_000);
        assert_eq!(heap.resize_own_pages(&found, None, 400_000), Ok(block));
        free(heap, &cache, block);
        cache.flush(|class, magazine| heap.put_magazine(class, magazine));
        heap.release_all_idle();
        assert_eq!(heap.pages.chunk_bytes(), 0);
    }
}
