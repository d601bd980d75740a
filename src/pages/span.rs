//! Span descriptors: what a run of pages is used for.
//!
//! Descriptors are type-stable and live outside the chunks, so that a page's use can change while a
//! stale pointer to it is being judged.
//!
//! | field | slab | region | large |
//! |---|---|---|---|
//! | `kind`, `class`, `base`, `bytes`, `owner` | set before the span is published, read by anybody | same | same |
//! | `slab`, `next`, `previous` | under the class's lock | - | - |
//! | `next`, `carved_end` | - | the lane it is cut in; then the closer | - |
//! | `next`, `previous`, `detached` | - | - | under the heap's large lock |
//! | `looseness` | - | - | see `looseness`; by it, who changes `bytes` |
//! | `loose_need` | - | - | the owner, before the mapping is loose |
//! | `traced_bytes` | - | - | the owner, after it has written the record |
//! | `charged_bytes`, `kept` | - | - | the owner |
//! | `sweeper` | - | who occupies the region's lane; read by who sweeps others | - |
//! | `count`, `held_pages` | - | the closer, then who frees a survivor | - |

use crate::base::sync::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Gauge, Ordering};
use crate::lockfree::header::Block;
use crate::lockfree::lifecycle::SpanCount;
use crate::lockfree::looseness::Looseness;
use crate::lockfree::pool::Successors;
use core::cell::Cell;
use core::ptr::{null, with_exposed_provenance};

/// What the pages of a span are used for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum SpanKind {
    /// Nothing: the descriptor is pooled.
    Free,
    /// Persistent blocks of one class.
    Slab,
    /// Blocks of one request, of any class.
    Region,
    /// One block of a request.
    Large,
    /// One block in a mapping of its own.
    Huge,
    /// A mapping kept for the next huge block.
    Cached,
}

/// The persistent blocks of a slab that are not out in magazines.
pub struct SlabBlocks {
    /// Blocks that came back.
    pub free: Cell<Block>,
    /// How many came back.
    pub free_count: Cell<u32>,
    /// How many were ever cut.
    pub carved_count: Cell<u32>,
    /// Whether the span is on its class's list of slabs with room.
    pub listed: Cell<bool>,
}

/// A descriptor.
#[repr(C, align(64))]
pub struct Span {
    successor: AtomicU64,
    kind: AtomicU8,
    class: AtomicU8,
    base: AtomicUsize,
    bytes: AtomicUsize,
    owner: AtomicUsize,
    /// Neighbours in the one list the span is on.
    pub next: Cell<*const Span>,
    /// See `next`.
    pub previous: Cell<*const Span>,
    /// Slab: see `SlabBlocks`.
    pub slab: SlabBlocks,
    /// Region: how far it is cut, from when its lane has left it.
    pub carved_end: Gauge,
    /// Region: address of the lane whose occupant sweeps it; 0: nobody does.
    pub sweeper: AtomicUsize,
    /// Region: survivors, from when its request is closed.
    pub count: SpanCount,
    /// Region: which of its pages survivors hold.
    pub held_pages: AtomicU32,
    /// Large and huge: `persist` was called on its block.
    pub kept: AtomicBool,
    /// Large: taken off its request's list by the closer.
    pub detached: Cell<bool>,
    /// Huge: bytes of the block that were asked for. Cached: when it was put there. Region: bytes
    /// that its control block is charged for.
    pub note: Gauge,
    /// Huge: whether its mapping is longer than the block needs, and who may change that.
    pub looseness: Looseness,
    /// Huge: bytes the block needs of a loose mapping.
    pub loose_need: Gauge,
    /// Large and huge: bytes of the block that its `Trace` stands at the end of, from when it is
    /// written there; 0: the block has none.
    pub traced_bytes: AtomicUsize,
    /// Large and huge: bytes that the request is charged for.
    pub charged_bytes: Gauge,
}

// SAFETY: the table at the head of the module says who touches which field when.
unsafe impl Sync for Span {}

static_assertions::const_assert!(size_of::<Span>() <= 192);

impl Span {
    /// Describes `bytes` from `base` from now on. The descriptor is the caller's alone.
    pub fn describe(&self, kind: SpanKind, class: usize, base: usize, bytes: usize, owner: usize) {
        self.class.store(class as u8, Ordering::Relaxed);
        self.base.store(base, Ordering::Relaxed);
        self.bytes.store(bytes, Ordering::Relaxed);
        self.owner.store(owner, Ordering::Relaxed);
        self.next.set(null());
        self.previous.set(null());
        self.slab.free.set(0);
        self.slab.free_count.set(0);
        self.slab.carved_count.set(0);
        self.slab.listed.set(false);
        self.carved_end.set(base);
        self.sweeper.store(0, Ordering::Relaxed);
        self.count.arm();
        self.held_pages.store(0, Ordering::Relaxed);
        self.kept.store(false, Ordering::Relaxed);
        self.detached.set(false);
        self.note.set(0);
        self.looseness.open();
        self.loose_need.set(0);
        self.traced_bytes.store(0, Ordering::Relaxed);
        self.charged_bytes.set(0);
        self.kind.store(kind as u8, Ordering::Relaxed);
    }

    /// What the pages are used for.
    pub fn kind(&self) -> SpanKind {
        match self.kind.load(Ordering::Relaxed) {
            1 => SpanKind::Slab,
            2 => SpanKind::Region,
            3 => SpanKind::Large,
            4 => SpanKind::Huge,
            5 => SpanKind::Cached,
            _ => SpanKind::Free,
        }
    }

    /// Changes what the pages are used for.
    pub fn set_kind(&self, kind: SpanKind) {
        self.kind.store(kind as u8, Ordering::Relaxed);
    }

    /// Slab: index of its class.
    pub fn class_index(&self) -> usize {
        self.class.load(Ordering::Relaxed) as usize
    }

    /// First address.
    pub fn base(&self) -> usize {
        self.base.load(Ordering::Relaxed)
    }

    /// Length.
    pub fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Changes the length.
    pub fn set_bytes(&self, bytes: usize) {
        self.bytes.store(bytes, Ordering::Relaxed);
    }

    /// Address of the control block of the request the blocks belong to; 0: persistent.
    pub fn owner(&self) -> usize {
        self.owner.load(Ordering::Relaxed)
    }

    /// Changes where a mapping stands and how long it is.
    pub fn describe_mapping(&self, base: usize, bytes: usize) {
        self.base.store(base, Ordering::Relaxed);
        self.bytes.store(bytes, Ordering::Relaxed);
    }

    /// Changes the class of the one block of the span.
    pub fn set_class(&self, class: usize) {
        self.class.store(class as u8, Ordering::Relaxed);
    }

    /// Bytes of a mapping that its block needs: what is more may be given back at any time.
    pub fn needed_bytes(&self) -> usize {
        if self.looseness.is_tight() { self.bytes() } else { self.loose_need.get() }
    }

    /// Changes whose the blocks are.
    pub fn set_owner(&self, owner: usize) {
        self.owner.store(owner, Ordering::Relaxed);
    }

    /// One past the last address.
    pub fn end(&self) -> usize {
        self.base() + self.bytes()
    }
}

/// The successor words of pooled descriptors.
pub struct SpanMemory;

impl Successors for SpanMemory {
    fn successor(&self, address: usize) -> &AtomicU64 {
        // SAFETY: only addresses of descriptors are ever pooled, and those are type-stable.
        unsafe { &(*with_exposed_provenance::<Span>(address)).successor }
    }
}
