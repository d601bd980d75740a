//! Span descriptors: what a run of pages is used for.
//!
//! Descriptors are outside the chunks and stay readable (M1), so that a page's use can change while
//! a stale pointer to it is being judged.
//!
//! | part | field | written by | read by |
//! |---|---|---|---|
//! | all | `kind`, `class`, `base`, `bytes`, `owner` | the thread that describes the span, before it is published; of a mapping, its block's owner | any thread |
//! | all | `next`, `previous` | the holder of the list: the class's lock; the lane's occupant, then the closer; the request's lock of large blocks; the store of mappings | the same |
//! | `counts`, `slab` | all but `uncut`, `is_ordered` | under the class's lock | the same |
//! | `slab` | `is_ordered` | under the class's lock; of a slab in hand, who has it in hand | the same |
//! | `slab` | `uncut` | see `uncut` | |
//! | `region` | `cut_end`, `flags` | the occupant of the lane it is cut in; then the closer | the same; `cut_end` also when a fatal error is worded |
//! | `region` | `sweeper` | the occupant of the region's lane | threads that sweep others |
//! | `region` | `count`, `has_persisted` | see `token`; threads that persist a block, the finisher | the same |
//! | `region` | `held_pages`, `hole_offset`, `found_bytes`, `last_taken`, `listed` | the token's holder; `listed` under the store's lock | the same |
//! | `region` | `reaped_bytes`, `vain_units` | the token's holder; the former by threads that reap a block, too | the same; only hints |
//! | `own` | `header_id` | the thread that makes the block | anybody |
//! | `own` | `charged_bytes` | the block's owner | the same; under the request's lock, a thread that lists its blocks |
//! | `own` | `traced_bytes` | the owner, after it has written the record | any thread |
//! | `mapping` | `asked_bytes`, `needed_bytes`, `loose_since` | the owner, the last two before the mapping is loose | the owner; once loose, the thread that tightens it |
//! | `mapping` | `cached_at` | the thread that puts it into the store, before it is listed | the thread that takes it out |
//! | `mapping` | `extent` | as `base` | the owner |
//! | `mapping` | `looseness` | see `looseness` | any thread that may want to change `bytes` |

use crate::base::sync::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Gauge, Ordering};
use crate::lockfree::header::{Block, NONE};
use crate::lockfree::large::LargeBlock;
use crate::lockfree::looseness::Looseness;
use crate::lockfree::pool::Successors;
use crate::lockfree::said::Said;
use crate::lockfree::token::AdoptedCount;
use crate::pages::slab_blocks::{SlabBlocks, SlabCounts};
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
    Mapped,
    /// A mapping kept for the next block that needs one.
    Cached,
    /// Addresses of chunks that are mapped, without memory, and nobody's.
    Vacant,
}

/// How far addresses are mapped for a mapping.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Extent {
    /// To its end.
    Exact,
    /// To the end of the chunk that its end is in.
    Chunks,
    /// The same, by the system's move of its pages: the system does not join it with neighbours.
    Moved,
}

/// The part of a region.
pub struct RegionState {
    /// How far it is cut; valid from when its lane has left it.
    pub cut_end: Gauge,
    /// The address of the lane whose occupant sweeps it; 0: none does.
    pub sweeper: AtomicUsize,
    /// Blocks of it that were adopted, and the token once it is an adopted span.
    pub count: AdoptedCount,
    /// Adopted: which of its pages were not given back.
    pub held_pages: AtomicU32,
    /// Whether a block of it was persisted while its request was open.
    pub has_persisted: AtomicBool,
    /// Adopted: how far from the base the next hole is looked for; 0: from the start; `NOWHERE`.
    hole_offset: Cell<u32>,
    /// Adopted: bytes of holes that were found, or were too short, since it was looked through from
    /// the start.
    found_bytes: Cell<u32>,
    /// Adopted: how far from the base the hole is that its lessee took last; 0: it took none. Each
    /// leads to the one before it.
    pub last_taken: Cell<u32>,
    /// Adopted: bytes of holes that were left in it since it was last looked through.
    reaped_bytes: AtomicU32,
    /// Adopted: no hole is looked for that has at least so many units; `ANY_UNITS`: all are.
    vain_units: AtomicU8,
    /// Adopted: whether it is listed in the store.
    pub listed: AtomicBool,
    /// What its lane and its control block note of it.
    pub flags: Cell<u8>,
}

/// Its control block is charged for it as warm memory.
pub const IS_CHARGED_AS_WARM: u8 = 1;
/// Long blocks are cut from it.
pub const IS_FOR_LONG: u8 = 2;

/// The part of a span that a walk from its start to its end must find in holes.
pub const WORTH_A_WALK_DIVISOR: usize = 8;

/// Holes that are shorter are left to grow.
pub const MIN_HOLE_BYTES: usize = 256;

/// How exactly it is known which holes an adopted span does not have.
const VAIN_UNIT_BYTES: usize = 128;

const _: () = assert!(MIN_HOLE_BYTES % VAIN_UNIT_BYTES == 0, "a shorter hole is none");

/// Holes of all lengths are looked for: more units than a hole has.
const ANY_UNITS: u8 = u8::MAX;

/// In an adopted span no hole is looked for.
const NOWHERE: u32 = u32::MAX;

fn vain_units(bytes: usize) -> u8 {
    bytes.div_ceil(VAIN_UNIT_BYTES).min(ANY_UNITS as usize - 1) as u8
}

impl RegionState {
    /// Whether this is noted of it.
    pub fn is(&self, flag: u8) -> bool {
        self.flags.get() & flag != 0
    }

    /// Notes this of it, or takes it back. Returns whether it was noted.
    pub fn note(&self, flag: u8, is: bool) -> bool {
        let before = self.flags.get();
        self.flags.set(if is { before | flag } else { before & !flag });
        before & flag != 0
    }

    /// Whether it may have a hole of so many bytes.
    pub fn has_room(&self, bytes: usize) -> bool {
        vain_units(bytes) < self.vain_units.load(Ordering::Relaxed)
    }

    /// Whether a walk through it was not worth while for any hole.
    pub fn is_full(&self) -> bool {
        !self.has_room(MIN_HOLE_BYTES)
    }

    /// Whether holes of all lengths may be there.
    pub fn is_roomy(&self) -> bool {
        self.vain_units.load(Ordering::Relaxed) == ANY_UNITS
    }

    /// A hole was left. Returns the bytes of those that were since it was last looked through.
    pub fn note_reaped(&self, bytes: usize) -> usize {
        self.reaped_bytes.fetch_add(bytes as u32, Ordering::Relaxed) as usize + bytes
    }

    /// There is room again, wherever.
    pub fn note_room(&self) {
        self.vain_units.store(ANY_UNITS, Ordering::Relaxed);
    }

    /// Something was done about the holes that were left.
    pub fn forget_reaped(&self) {
        self.reaped_bytes.store(0, Ordering::Relaxed);
    }

    /// Whether the token's holder has found no further hole.
    pub fn is_exhausted(&self) -> bool {
        self.hole_offset.get() == NOWHERE
    }

    /// There may be holes anywhere: the next one is looked for from the start. By the token's
    /// holder.
    pub fn look_again(&self) {
        self.start_over();
        self.note_room();
        self.forget_reaped();
    }

    fn start_over(&self) {
        self.hole_offset.set(0);
        self.found_bytes.set(0);
    }
}

/// The part of a block that has a span or a mapping of its own.
pub struct OwnState {
    /// Bytes that the request is charged for it.
    pub charged_bytes: Gauge,
    /// Bytes of the block at the end of which its `Trace` is, from when that is written; 0: there
    /// is none.
    pub traced_bytes: Said,
    /// The id that the block's header was made with.
    pub header_id: AtomicU64,
}

/// The part of a mapping, in use or kept for the next block.
pub struct MappingState {
    /// Bytes that were asked for as its block.
    pub asked_bytes: Gauge,
    /// When a cached mapping was put into the store, in coarse milliseconds.
    pub cached_at: Gauge,
    /// Whether the mapping is longer than the block needs, and which thread may change that.
    pub looseness: Looseness,
    /// Bytes of a loose mapping that its block needs.
    pub needed_bytes: Gauge,
    /// When the mapping became loose, in coarse milliseconds.
    pub loose_since: Gauge,
    /// How far its addresses are mapped.
    extent: AtomicU8,
}

impl MappingState {
    /// Returns how far its addresses are mapped.
    pub fn extent(&self) -> Extent {
        match self.extent.load(Ordering::Relaxed) {
            1 => Extent::Chunks,
            2 => Extent::Moved,
            _ => Extent::Exact,
        }
    }

    /// Changes that.
    pub fn set_extent(&self, extent: Extent) {
        self.extent.store(extent as u8, Ordering::Relaxed);
    }
}

/// A descriptor.
#[repr(C, align(64))]
pub struct Span {
    successor: AtomicU64,
    kind: AtomicU8,
    class: AtomicU8,
    /// For a slab.
    pub counts: SlabCounts,
    base: AtomicUsize,
    /// Neighbours in the one list the span is on.
    pub next: Cell<*const Span>,
    /// See `next`.
    pub previous: Cell<*const Span>,
    /// For a slab.
    pub slab: SlabBlocks,
    bytes: AtomicUsize,
    owner: AtomicU64,
    /// For a region.
    pub region: RegionState,
    /// For the span or mapping of a large or mapped block.
    pub own: OwnState,
    /// For a mapping, besides that.
    pub mapping: MappingState,
}

// SAFETY: the table at the head of the module says which thread touches which field when.
unsafe impl Sync for Span {}

const _: () =
    assert!(size_of::<Span>() <= 3 * align_of::<Span>(), "a descriptor is three cache lines");
const _: () = assert!(
    core::mem::offset_of!(Span, slab) + size_of::<SlabBlocks>() <= align_of::<Span>(),
    "taking a block back touches one cache line of a descriptor"
);
const _: () = assert!(SpanKind::Free as u8 == 0, "a zeroed descriptor describes nothing");

impl Span {
    /// Makes the descriptor, which is the caller's alone, describe `bytes` from `base`.
    pub fn describe(&self, kind: SpanKind, class: usize, base: usize, bytes: usize, owner: u64) {
        self.class.store(class as u8, Ordering::Relaxed);
        self.base.store(base, Ordering::Relaxed);
        self.bytes.store(bytes, Ordering::Relaxed);
        self.owner.store(owner, Ordering::Relaxed);
        self.next.set(null());
        self.previous.set(null());
        self.counts.free.set(0);
        self.counts.out.set(0);
        self.counts.returned.set(0);
        self.slab.open();
        self.region.cut_end.set(base);
        self.region.sweeper.store(0, Ordering::Relaxed);
        self.region.count.arm();
        self.region.held_pages.store(0, Ordering::Relaxed);
        self.region.has_persisted.store(false, Ordering::Relaxed);
        self.region.listed.store(false, Ordering::Relaxed);
        self.region.look_again();
        self.region.last_taken.set(0);
        self.region.flags.set(0);
        self.own.charged_bytes.set(0);
        self.own.traced_bytes.reset();
        self.own.header_id.store(0, Ordering::Relaxed);
        self.mapping.asked_bytes.set(0);
        self.mapping.cached_at.set(0);
        self.mapping.looseness.open();
        self.mapping.needed_bytes.set(0);
        self.mapping.loose_since.set(0);
        self.mapping.set_extent(Extent::Exact);
        self.kind.store(kind as u8, Ordering::Relaxed);
    }

    /// Returns what the pages are used for.
    pub fn kind(&self) -> SpanKind {
        match self.kind.load(Ordering::Relaxed) {
            1 => SpanKind::Slab,
            2 => SpanKind::Region,
            3 => SpanKind::Large,
            4 => SpanKind::Mapped,
            5 => SpanKind::Cached,
            6 => SpanKind::Vacant,
            _ => SpanKind::Free,
        }
    }

    /// Changes what the pages are used for.
    pub fn set_kind(&self, kind: SpanKind) {
        self.kind.store(kind as u8, Ordering::Relaxed);
    }

    /// Returns the index of a slab's class.
    pub fn class_index(&self) -> usize {
        self.class.load(Ordering::Relaxed) as usize
    }

    /// Returns the first address.
    pub fn base(&self) -> usize {
        self.base.load(Ordering::Relaxed)
    }

    /// Returns the length.
    pub fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Changes the length.
    pub fn set_bytes(&self, bytes: usize) {
        self.bytes.store(bytes, Ordering::Relaxed);
    }

    /// Returns the first block on a slab's list; `NONE`: it is empty.
    #[inline]
    pub fn free(&self) -> Block {
        match self.slab.free_offset.get() {
            0 => NONE,
            offset => self.base() + offset as usize,
        }
    }

    /// Changes the first block on a slab's list.
    #[inline]
    pub fn set_free(&self, block: Block) {
        let offset = if block == NONE { 0 } else { block - self.base() };
        self.slab.free_offset.set(offset as u32);
    }

    /// Serial of the request that the block of the span belongs to, or that cuts the region; 0:
    /// none, its blocks are persistent.
    pub fn owner(&self) -> u64 {
        self.owner.load(Ordering::Relaxed)
    }

    /// Changes the address and the length of a mapping.
    pub fn describe_mapping(&self, base: usize, bytes: usize) {
        self.base.store(base, Ordering::Relaxed);
        self.bytes.store(bytes, Ordering::Relaxed);
    }

    /// Changes the class of the one block of the span.
    pub fn set_class(&self, class: usize) {
        self.class.store(class as u8, Ordering::Relaxed);
    }

    /// Returns the bytes of a mapping that its block needs: the rest may be given back at any time.
    pub fn needed_bytes(&self) -> usize {
        if self.mapping.looseness.is_tight() {
            self.bytes()
        } else {
            self.mapping.needed_bytes.get()
        }
    }

    /// Changes whose the blocks are.
    pub fn set_owner(&self, owner: u64) {
        self.owner.store(owner, Ordering::Relaxed);
    }

    /// Where the token's holder looks for the next hole.
    pub fn hole_start(&self) -> usize {
        self.base() + self.region.hole_offset.get() as usize
    }

    /// A hole of so many bytes was found that ends there. By the token's holder.
    pub fn note_hole(&self, bytes: usize, end: usize) {
        let region = &self.region;
        region.hole_offset.set((end - self.base()) as u32);
        region.found_bytes.set(region.found_bytes.get() + bytes as u32);
    }

    /// Holes were passed that were too short. By the token's holder.
    pub fn note_short_holes(&self, bytes: usize) {
        let found = &self.region.found_bytes;
        found.set(found.get() + bytes as u32);
    }

    /// No further hole of `least_bytes` was found, but shorter ones of `short_bytes` in all; whether
    /// to look again, from the start. By the token's holder.
    ///
    /// If there were few, that is not worth a walk before others are left. If they are too short,
    /// they are left to shorter blocks. And who took some has the others.
    pub fn looks_again(&self, least_bytes: usize, short_bytes: usize) -> bool {
        let region = &self.region;
        let found_bytes = region.found_bytes.get() as usize + short_bytes;
        let found_few = found_bytes < self.bytes() / WORTH_A_WALK_DIVISOR;
        if !found_few && short_bytes > 0 {
            region.start_over();
            region.vain_units.store(vain_units(least_bytes), Ordering::Relaxed);
            return false;
        }
        let looks_again = !found_few && region.last_taken.get() == 0;
        region.look_again();
        if !looks_again {
            region.hole_offset.set(NOWHERE);
        }
        if found_few {
            region.vain_units.store(0, Ordering::Relaxed);
        }
        looks_again
    }

    /// Returns one past the last address.
    pub fn end(&self) -> usize {
        self.base() + self.bytes()
    }
}

impl LargeBlock for Span {
    fn owner(&self) -> &AtomicU64 {
        &self.owner
    }
}

/// The successor words of pooled descriptors.
pub struct SpanMemory;

impl Successors for SpanMemory {
    fn successor(&self, address: usize) -> &AtomicU64 {
        // SAFETY: only addresses of descriptors are ever pooled here (M1).
        unsafe { &(*with_exposed_provenance::<Span>(address)).successor }
    }
}
