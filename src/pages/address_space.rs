//! Addresses of chunks and mappings: whole chunks mostly, one below the other, so that the system
//! has few mappings to keep, however many there are here.
//!
//! Where addresses cost nothing, a mapping takes them up to the end of the chunk that it ends in;
//! what is behind its end is never touched. Addresses that are given back are unmapped, unless that
//! would leave a hole between others while there are many: then they lose their memory and wait, as
//! a *vacancy*, for the next chunk or mapping.
//!
//! - **V5** A vacancy is whole chunks, mapped by us, reads as zero, and is registered. What has
//!   been taken out of the lists, and is of no kind, is the taker's.
//! - **V3** Whoever has mapped the first address of a chunk has its entry in the registry: nothing
//!   else begins in that chunk, and nothing from another one reaches into it.

use crate::base::fatal;
use crate::base::os::{self, MAX_PAGE_BYTES};
use crate::base::sync::{AtomicUsize, Lock, Ordering, step};
use crate::lockfree::pool::Pool;
use crate::pages::by_length::ByLength;
use crate::pages::chunk::CHUNK_BYTES;
use crate::pages::descriptors::DescriptorMemory;
use crate::pages::registry::{Backing, Registry};
use crate::pages::span::{Extent, Span, SpanKind, SpanMemory};
use core::iter::from_fn;
use core::ptr::{null, with_exposed_provenance};

/// A hole is at least this part of all addresses: `k` holes then leave `(1 - 1/256)^k` of the most
/// there ever were, so there are at most 256 while that is below 2 GiB, and some 3000 above 400.
const MOST_HOLES: usize = if cfg!(test) { 4 } else { 256 };
/// How often addresses are taken before the system is asked again whether there are plenty.
const TAKES_BETWEEN_QUESTIONS: usize = 1024;
/// Most chunks that the place for the next one is moved up by at once.
const MOST_MOVED_UP: usize = 64;
/// Most vacancies that are looked at again at a tick.
const MOST_REVIEWED: usize = 256;

const IS_PLENTY: usize = 1;

/// The addresses of the process's chunks and mappings.
pub struct AddressSpace {
    /// What is at which address.
    pub registry: Registry,
    /// Memory for descriptors.
    pub descriptors: DescriptorMemory,
    spans: Pool,
    vacant: Lock<ByLength>,
    /// Of `vacant`.
    vacant_bytes: AtomicUsize,
    /// Of chunks, mappings and vacancies.
    held_bytes: AtomicUsize,
    /// What is mapped next ends here, if there is room; a hint.
    frontier: AtomicUsize,
    /// Where the addresses end that are one below the other from there; a hint.
    top: AtomicUsize,
    /// Whether addresses are plenty, and twice how often they may be taken before that is asked.
    answer: AtomicUsize,
}

/// Addresses that were taken, and how far they are mapped.
pub struct Room {
    /// The first.
    pub base: usize,
    /// How far they are mapped.
    pub extent: Extent,
}

/// Returns the bytes of whole chunks that a length is in.
pub fn whole_chunks(bytes: usize) -> usize {
    bytes.next_multiple_of(CHUNK_BYTES)
}

/// Returns the bytes of addresses that a mapping of this length has.
pub fn mapped_length(bytes: usize, extent: Extent) -> usize {
    if extent == Extent::Exact { bytes } else { whole_chunks(bytes) }
}

impl AddressSpace {
    /// Nothing is mapped yet.
    pub const fn new() -> Self {
        Self {
            registry: Registry::new(),
            descriptors: DescriptorMemory::new(),
            spans: Pool::new(),
            vacant: Lock::new(ByLength::new()),
            vacant_bytes: AtomicUsize::new(0),
            held_bytes: AtomicUsize::new(0),
            frontier: AtomicUsize::new(0),
            top: AtomicUsize::new(0),
            answer: AtomicUsize::new(0),
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

    /// Whether addresses that are not used cost nothing; asks the system now and then.
    pub fn is_plenty(&self) -> bool {
        let mut answer = self.answer.load(Ordering::Relaxed);
        if answer / 2 == 0 {
            answer = TAKES_BETWEEN_QUESTIONS * 2 + usize::from(os::has_plenty_of_addresses());
        }
        self.answer.store(answer - 2, Ordering::Relaxed);
        answer & IS_PLENTY != 0
    }

    fn was_plenty(&self) -> bool {
        self.answer.load(Ordering::Relaxed) & IS_PLENTY != 0
    }

    /// Takes addresses of zeroed memory from the start of a chunk on, whose entries have room.
    /// `None`: the system has no more.
    pub fn take(&self, bytes: usize) -> Option<Room> {
        let whole = whole_chunks(bytes);
        let base = self.take_vacant(whole).or_else(|| {
            if bytes == whole || !self.is_plenty() {
                return None;
            }
            let base = self.map(whole);
            if base.is_none() {
                self.answer.store(TAKES_BETWEEN_QUESTIONS * 2, Ordering::Relaxed);
            }
            base
        });
        if let Some(base) = base {
            return Some(Room { base, extent: Extent::Chunks });
        }
        let extent = if bytes == whole { Extent::Chunks } else { Extent::Exact };
        Some(Room { base: self.map(bytes)?, extent })
    }

    /// Maps addresses from the start of a chunk on, whose entries have room then; below the last
    /// ones if possible.
    pub fn map(&self, bytes: usize) -> Option<usize> {
        let whole = whole_chunks(bytes);
        let hint = self.frontier.load(Ordering::Relaxed).saturating_sub(whole);
        let base = os::map_aligned(bytes, CHUNK_BYTES, hint)?;
        if !self.registry.prepare(&self.descriptors, base, bytes) {
            // SAFETY: just mapped, unknown to anybody.
            unsafe { os::unmap(base, bytes) };
            return None;
        }
        if base != hint {
            self.top.store(base + whole, Ordering::Relaxed);
        }
        self.frontier.store(base, Ordering::Relaxed);
        self.held_bytes.fetch_add(bytes, Ordering::Relaxed);
        Some(base)
    }

    /// Maps just these addresses, whose entries have room or are the caller's. `false`: something
    /// is there, or the system has no more.
    pub fn map_at(&self, base: usize, bytes: usize) -> bool {
        let Some(there) = os::map(bytes, base) else { return false };
        if there != base {
            // SAFETY: just mapped, unknown to anybody.
            unsafe { os::unmap(there, bytes) };
            return false;
        }
        self.held_bytes.fetch_add(bytes, Ordering::Relaxed);
        true
    }

    /// Takes just these chunks, behind a mapping of the caller's: out of a vacancy, or new ones.
    pub fn take_at(&self, base: usize, bytes: usize) -> bool {
        match self.registry.registered(base) {
            None => self.map_at(base, bytes),
            Some(Backing::Mapping(span)) => {
                let found =
                    self.unlink_if(span, |span| span.base() == base && span.bytes() >= bytes);
                found && {
                    self.cut(span, bytes);
                    true
                }
            }
            Some(Backing::Chunk(_)) => false,
        }
    }

    /// Unmaps addresses that were mapped here and are forgotten.
    pub fn unmap(&self, base: usize, bytes: usize) {
        // SAFETY: the caller's, by V5 or because it has the chunk or the mapping; nothing refers to
        // them any more.
        unsafe { os::unmap(base, bytes) };
        self.note_gone(base, bytes);
    }

    /// Notes that addresses are the system's again.
    pub fn note_gone(&self, base: usize, bytes: usize) {
        self.held_bytes.fetch_sub(bytes, Ordering::Relaxed);
        if self.frontier.load(Ordering::Relaxed) != base {
            return;
        }
        // Otherwise the next ones would be ever lower, and the registry ever longer.
        let (top, mut end) = (self.top.load(Ordering::Relaxed), whole_chunks(base + bytes));
        for _ in 0..MOST_MOVED_UP {
            if end >= top || self.registry.registered(end).is_some() {
                break;
            }
            end += CHUNK_BYTES;
        }
        self.frontier.store(end, Ordering::Relaxed);
    }

    /// Notes that a mapping has become longer or shorter at its end.
    pub fn note_resized(&self, old: usize, new: usize) {
        self.held_bytes.fetch_add(new.wrapping_sub(old), Ordering::Relaxed);
    }

    /// Gives addresses back, which are forgotten. The first `bytes` may have memory.
    pub fn give(&self, base: usize, bytes: usize, extent: Extent) {
        let length = mapped_length(bytes, extent);
        if extent == Extent::Chunks && self.was_plenty() {
            self.give_chunks(base, bytes, length);
        } else {
            self.unmap(base, length);
        }
    }

    /// Whether addresses are between others, and too few for a hole.
    pub fn would_split(&self, base: usize, bytes: usize) -> bool {
        bytes < self.held_bytes.load(Ordering::Relaxed) / MOST_HOLES
            && self.registry.registered(base - 1).is_some()
            && self.registry.registered(base + bytes).is_some()
    }

    fn give_chunks(&self, base: usize, used: usize, bytes: usize) {
        let (start, end) = self.absorb_neighbours(base, base + bytes);
        let is_kept = self.would_split(start, end - start) && {
            if used > 0 {
                // SAFETY: the caller's, whose contents nobody needs.
                unsafe { os::purge(base, used) };
            }
            self.keep(start, end - start)
        };
        if !is_kept {
            self.unmap(start, end - start);
        }
    }

    /// Takes the vacancies before and behind some addresses; returns where all of them start and
    /// end.
    fn absorb_neighbours(&self, mut start: usize, mut end: usize) -> (usize, usize) {
        if self.vacant_bytes.load(Ordering::Relaxed) == 0 {
            return (start, end);
        }
        for address in [start - 1, end] {
            let Some(Backing::Mapping(span)) = self.registry.registered(address) else { continue };
            if self.unlink_if(span, |span| span.end() == start || span.base() == end) {
                (start, end) = (start.min(span.base()), end.max(span.end()));
                self.cut(span, span.bytes());
            }
        }
        (start, end)
    }

    /// Unlinks a span if it is a vacancy and as wanted.
    fn unlink_if(&self, span: &Span, is_wanted: impl Fn(&Span) -> bool) -> bool {
        let mut vacant = self.vacant.lock();
        let is_it = span.kind() == SpanKind::Vacant && is_wanted(span);
        if is_it {
            self.unlink(&mut vacant, span);
        }
        is_it
    }

    fn unlink(&self, vacant: &mut ByLength, span: &Span) {
        span.set_kind(SpanKind::Free);
        step();
        vacant.remove(span);
        step();
        self.vacant_bytes.fetch_sub(span.bytes(), Ordering::Relaxed);
    }

    fn link(&self, span: &Span) {
        let mut vacant = self.vacant.lock();
        span.set_kind(SpanKind::Vacant);
        step();
        vacant.put(span);
        step();
        self.vacant_bytes.fetch_add(span.bytes(), Ordering::Relaxed);
        step();
    }

    /// Makes a vacancy of addresses that read as zero. `false`: there is no descriptor.
    fn keep(&self, base: usize, bytes: usize) -> bool {
        let Some(span) = self.take_descriptor() else { return false };
        span.describe(SpanKind::Free, 0, base, bytes, 0);
        self.registry.add_mapping(span);
        self.link(span);
        true
    }

    /// Takes the first `bytes` of a vacancy that was unlinked; the rest is one again.
    fn cut(&self, span: &Span, bytes: usize) {
        let (base, all) = (span.base(), span.bytes());
        self.registry.remove(base, bytes);
        if bytes == all {
            self.give_descriptor(span);
        } else {
            span.describe_mapping(base + bytes, all - bytes);
            self.link(span);
        }
    }

    fn take_vacant(&self, bytes: usize) -> Option<usize> {
        if self.vacant_bytes.load(Ordering::Relaxed) < bytes {
            return None;
        }
        let span = {
            let mut vacant = self.vacant.lock();
            let near = vacant.find_near(bytes, |span| span.bytes() >= bytes);
            let span = near.or_else(|| vacant.find_longer(bytes))?;
            self.unlink(&mut vacant, span);
            span
        };
        let base = span.base();
        self.cut(span, bytes);
        Some(base)
    }

    /// Unmaps vacancies that no longer need to be kept: at a tick the longest, else of all.
    pub fn review(&self, all: bool) {
        if self.vacant_bytes.load(Ordering::Relaxed) == 0 {
            return;
        }
        if all {
            let mut next = self.unlink_all();
            // SAFETY: null, or a descriptor (M1).
            while let Some(span) = unsafe { next.as_ref() } {
                next = span.next.get();
                self.review_one(span);
            }
            return;
        }
        let longest = || {
            let mut vacant = self.vacant.lock();
            let span = vacant.longest()?;
            let is_long = span.bytes() >= self.held_bytes.load(Ordering::Relaxed) / MOST_HOLES;
            is_long.then(|| self.unlink(&mut vacant, span)).map(|()| span)
        };
        from_fn(longest).take(MOST_REVIEWED).for_each(|span| self.review_one(span));
    }

    fn review_one(&self, span: &Span) {
        let (base, bytes) = (span.base(), span.bytes());
        self.cut(span, bytes);
        if self.was_plenty() {
            self.give_chunks(base, 0, bytes);
        } else {
            self.unmap(base, bytes);
        }
    }

    /// Unlinks every vacancy; returns the first of a chain of them.
    fn unlink_all(&self) -> *const Span {
        let mut vacant = self.vacant.lock();
        let mut first = null();
        while let Some(span) = vacant.longest() {
            self.unlink(&mut vacant, span);
            span.next.set(first);
            first = span;
        }
        first
    }

    /// Makes the vacancies whole in a process that was just forked.
    ///
    /// # Safety
    /// As for `Lock::recover`.
    pub unsafe fn recover(&self) {
        let repair = |vacant: &mut ByLength, is_held: bool| {
            if is_held {
                vacant.rebuild(self.registry.mappings(), SpanKind::Vacant);
            }
            let bytes = vacant.all().map(Span::bytes).sum();
            self.vacant_bytes.store(bytes, Ordering::Relaxed);
        };
        // SAFETY: the caller's contract.
        unsafe {
            self.descriptors.recover();
            self.vacant.recover(repair);
        }
    }

    /// Walks the registry and the vacancies; fatal if they contradict themselves or each other.
    pub fn check(&self) {
        self.registry.check();
        let vacant = self.vacant.lock();
        let mut bytes = 0;
        for span in vacant.all() {
            if span.kind() != SpanKind::Vacant || span.bytes() % CHUNK_BYTES != 0 {
                fatal::broken("kind of a vacancy", span.base(), span.bytes());
            }
            for address in (span.base()..span.end()).step_by(CHUNK_BYTES) {
                match self.registry.registered(address) {
                    Some(Backing::Mapping(there)) if core::ptr::eq(there, span) => {}
                    _ => fatal::broken("registration of a vacancy", span.base(), address),
                }
            }
            bytes += span.bytes();
        }
        let counted = self.vacant_bytes.load(Ordering::Relaxed);
        if bytes != counted {
            fatal::broken("bytes of vacancies", bytes, counted);
        }
        let held = self.held_bytes.load(Ordering::Relaxed);
        if bytes > held {
            fatal::broken("bytes of addresses", bytes, held);
        }
    }

    /// Begins at an address of the test's own: other tests map what is free elsewhere.
    #[cfg(test)]
    pub fn begin_below(&self, address: usize) {
        self.frontier.store(address, Ordering::Relaxed);
        self.top.store(address, Ordering::Relaxed);
    }

    /// Returns the bytes of all addresses, and of vacancies.
    #[cfg(test)]
    pub fn figures(&self) -> (usize, usize) {
        (self.held_bytes.load(Ordering::Relaxed), self.vacant_bytes.load(Ordering::Relaxed))
    }
}

const _: () = assert!(CHUNK_BYTES % MAX_PAGE_BYTES == 0, "a chunk is whole pages of any system");
