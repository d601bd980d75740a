//! The control block of a request: pooled, type-stable, never inside a request.
//!
//! | field | written by | read by |
//! |---|---|---|
//! | `first`, further lanes | see `lane` | |
//! | `serial`, `id`, `name`, `leaks` | who opens the request, before anybody else knows it | anybody |
//! | `handles`, `holds`, `strays`, `on_end`, `budget`, `mark` | see `lifecycle`, `stray`, `budget` | |
//! | `limit_bytes`, `reserve_bytes` | who sets the limit | anybody, for the mark and for texts |
//! | `large` | under the heap's large lock | the same |
//! | `large_count`, `large_bytes`, `peak_bytes`, `warm_bytes` | who takes or gives a span, by read-modify-write | anybody |
//! | `kept`, `bailed_out` | who decrees a survivor, who gives the request up | who closes |
//! | `left_by_reclaim`, `reclaims_in_vain` | who reclaims; two at once only sweep too often or too rarely | the same |
//! | `refusal_is_told` | who is refused memory at the limit | the same |
//!
//! - **Q1** A live block of the request keeps its control block from being recycled.
//! - **Q2** The *footprint*, what `budget` has in use, is the sum of the request's regions and of what its
//!   large blocks need; it is charged before the memory is taken. `peak_bytes` is its largest value since
//!   the request was opened, or since it was measured anew.

use super::limit::{Bound, DEFAULT_RESERVE, limit_pages};
use super::{Host, Shortage, close, sweep};
use crate::base::size_class::{CLASS_COUNT, Class, HEADER_BYTES, PAGE_BYTES, pages_for};
use crate::base::sync::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use crate::blocks::bin::Kind;
use crate::blocks::memory::Raw;
use crate::lockfree::budget::{Budget, Mark};
use crate::lockfree::header::{Block, Header, LIVE, NONE, settle_stray};
use crate::lockfree::lifecycle::{Handles, Holds, LargeCount};
use crate::lockfree::pool::Successors;
use crate::lockfree::stray::{Chain, Closed, StrayList};
use crate::pages::span::{Span, SpanKind};
use crate::request::lane::{Lane, Out, shared_cap};
use core::cell::Cell;
use core::ptr::{null, null_mut, with_exposed_provenance, with_exposed_provenance_mut};

/// What no request's serial is: ids have 48 bits.
const NO_SERIAL: u64 = u64::MAX;

/// Before a request is marked its free blocks are swept if they are at least this part of its regions:
/// near the mark that may be at every slow path.
const SOFT_WORTH_DIVISOR: usize = 32;

/// How a request is opened.
#[derive(Clone, Copy, Default)]
pub struct Opening {
    /// What it is called in reports.
    pub name: Option<&'static str>,
    /// Bytes of pages it may hold.
    pub limit_bytes: Option<usize>,
    /// Bytes below the limit at which it is marked.
    pub reserve_bytes: Option<usize>,
    /// What is said of blocks that were never freed.
    pub leaks: LeakPolicy,
    /// Nothing is said when it is refused memory at its limit.
    pub hides_limit: bool,
}

/// What is said, when a request is over, of blocks that were never freed.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct LeakPolicy {
    /// They are listed after a clean end.
    pub reported: bool,
    /// And after a bailout.
    pub reported_after_bailout: bool,
    /// Every block remembers where it was allocated.
    pub traced: bool,
}

/// The control block.
#[repr(C, align(128))]
pub struct Control {
    /// The lane of a request that one thread at a time is in.
    pub first: Lane,
    /// The others, linked by `Lane::next`; they stay with the control block.
    pub others: AtomicPtr<Lane>,
    /// What lanes hand on to one another; made with the second lane, stays with the control block.
    exchange: AtomicPtr<Exchange>,
    successor: AtomicU64,
    /// The control block that was made before this one, written before this one is published.
    all_next: Cell<*const Control>,
    serial: AtomicU64,
    id: AtomicU64,
    /// What the request is called in reports.
    pub name: Cell<Option<&'static str>>,
    /// What is said of blocks that were never freed.
    pub leaks: Cell<LeakPolicy>,
    /// Who may still enter the request.
    pub handles: Handles,
    /// What still needs the control block after the request was closed.
    pub holds: Holds,
    /// Blocks that are not in a region.
    pub large: Cell<*const Span>,
    pub(super) large_count: LargeCount,
    pub(super) large_bytes: AtomicUsize,
    pub(super) budget: Budget,
    pub(super) peak_bytes: AtomicUsize,
    pub(super) limit_bytes: AtomicUsize,
    pub(super) reserve_bytes: AtomicUsize,
    pub(super) mark: Mark,
    /// What is called before the memory goes, the last one first. Its words are those of `StrayList`, its
    /// nodes are not blocks.
    pub on_end: StrayList,
    /// The request that hooks began before this one in a thread that has exited.
    pub begun_before: Cell<*const Control>,
    /// Whether a bailout gave the request up.
    pub bailed_out: AtomicBool,
    /// Whether `persist` was called on a block.
    pub kept: AtomicBool,
    /// Whether more than one lane was entered.
    shared: AtomicBool,
    /// Bytes of the ranges that were taken since the last sweep.
    unswept_bytes: AtomicUsize,
    sweeps_in_vain: AtomicU32,
    /// Bytes of free blocks that the last sweep at a bound has left, less those used since.
    pub(super) left_by_reclaim: AtomicUsize,
    pub(super) reclaims_in_vain: AtomicU32,
    /// Whether it was said that the request was refused memory at its limit, or nothing is to be said.
    refusal_is_told: AtomicBool,
    /// Bytes of warm regions that this control block is charged for.
    pub warm_bytes: AtomicUsize,
    /// Written by other threads: on cache lines of its own.
    pub strays: Strays,
}

/// What came back from outside.
#[repr(align(128))]
pub struct Strays {
    /// The blocks.
    pub list: StrayList,
    /// Blocks and bytes, for figures: added before a push, taken off by the drain.
    pending: AtomicU64,
}

/// Free blocks that lanes hand on, by class. Only who is inside the request touches them, so they are
/// never closed.
#[repr(align(64))]
struct Exchange {
    lists: [StrayList; CLASS_COUNT],
}

/// Blocks and bytes of strays in one word: a count, and below it sixteenths of bytes.
const PENDING_SHIFT: u32 = 32;

fn pending(blocks: usize, bytes: usize) -> u64 {
    (blocks as u64) << PENDING_SHIFT | (bytes / 16) as u64
}

// SAFETY: the table at the head of the module says who touches which field when.
unsafe impl Sync for Control {}

/// What a request uses just now.
#[derive(Clone, Copy)]
pub struct Figures {
    /// Blocks handed out and not freed.
    pub live_blocks: usize,
    /// Bytes of their strides.
    pub live_bytes: usize,
    /// Bytes of the spans it holds.
    pub footprint: usize,
    /// Largest footprint so far.
    pub peak: usize,
}

impl Control {
    /// The control block at this address, which a span or a thread names.
    ///
    /// # Safety
    /// `address` is that of a control block: they are type-stable.
    pub unsafe fn at<'h>(address: usize) -> &'h Self {
        // SAFETY: the caller's contract.
        unsafe { &*with_exposed_provenance::<Self>(address) }
    }

    /// Makes a control block of zeroed memory.
    ///
    /// # Safety
    /// `address` is zeroed, aligned memory of the size of a control block, the caller's alone.
    pub unsafe fn make<'h>(address: usize) -> &'h Self {
        let place = with_exposed_provenance_mut::<Self>(address);
        // SAFETY: the caller's contract.
        unsafe {
            place.write(Self::new());
            &*place
        }
    }

    fn new() -> Self {
        Self {
            first: new_lane(),
            others: AtomicPtr::new(null_mut()),
            exchange: AtomicPtr::new(null_mut()),
            successor: AtomicU64::new(0),
            all_next: Cell::new(null()),
            serial: AtomicU64::new(0),
            id: AtomicU64::new(0),
            name: Cell::new(None),
            leaks: Cell::new(LeakPolicy::default()),
            handles: Handles::new(),
            holds: Holds::new(),
            large: Cell::new(null()),
            large_count: LargeCount::new(),
            large_bytes: AtomicUsize::new(0),
            budget: Budget::new(),
            peak_bytes: AtomicUsize::new(0),
            limit_bytes: AtomicUsize::new(0),
            reserve_bytes: AtomicUsize::new(0),
            mark: Mark::new(),
            on_end: StrayList::new(),
            begun_before: Cell::new(null()),
            bailed_out: AtomicBool::new(false),
            kept: AtomicBool::new(false),
            shared: AtomicBool::new(false),
            unswept_bytes: AtomicUsize::new(0),
            sweeps_in_vain: AtomicU32::new(0),
            left_by_reclaim: AtomicUsize::new(0),
            reclaims_in_vain: AtomicU32::new(0),
            refusal_is_told: AtomicBool::new(false),
            warm_bytes: AtomicUsize::new(0),
            strays: Strays { list: StrayList::new(), pending: AtomicU64::new(0) },
        }
    }

    /// Puts a new control block on the list of all.
    pub fn list_in(&self, all: &AtomicPtr<Self>) {
        let this = core::ptr::from_ref(self).cast_mut();
        let mut first = all.load(Ordering::Relaxed);
        loop {
            self.all_next.set(first);
            match all.compare_exchange_weak(first, this, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => first = now,
            }
        }
    }

    /// The next one on the list of all.
    pub fn all_next(&self) -> *const Self {
        self.all_next.get()
    }

    /// Opens a new request. The control block comes from the pool: it is the caller's alone.
    #[inline]
    pub fn open(&self, serial: u64, id: u64, opening: &Opening) {
        self.serial.store(serial, Ordering::Relaxed);
        self.id.store(id, Ordering::Relaxed);
        self.name.set(opening.name);
        self.leaks.set(opening.leaks);
        self.large_count.open();
        self.large_bytes.store(0, Ordering::Relaxed);
        let limit_bytes = opening.limit_bytes.unwrap_or(usize::MAX);
        self.budget.open(limit_pages(limit_bytes));
        self.limit_bytes.store(limit_bytes, Ordering::Relaxed);
        let reserve_bytes = match opening.reserve_bytes {
            Some(bytes) => bytes.min(DEFAULT_RESERVE - 1),
            None => DEFAULT_RESERVE,
        };
        self.reserve_bytes.store(reserve_bytes, Ordering::Relaxed);
        self.mark.clear();
        self.peak_bytes.store(0, Ordering::Relaxed);
        self.on_end.open();
        self.bailed_out.store(false, Ordering::Relaxed);
        self.kept.store(false, Ordering::Relaxed);
        self.note_swept(0);
        self.left_by_reclaim.store(0, Ordering::Relaxed);
        self.reclaims_in_vain.store(0, Ordering::Relaxed);
        self.refusal_is_told.store(opening.hides_limit, Ordering::Relaxed);
        // The other lanes are opened by who enters them.
        self.first.bins.open(Kind::Lane, Header::tag(id, LIVE));
        if self.shared.load(Ordering::Relaxed) {
            self.shared.store(false, Ordering::Relaxed);
            self.first.set_shared(false);
        }
        self.strays.pending.store(0, Ordering::Relaxed);
        self.strays.list.open();
        self.handles.open();
    }

    /// The request is over and nothing of it is left: from here on a stale block's id is not this
    /// control block's.
    #[inline]
    pub fn retire(&self) {
        self.serial.store(NO_SERIAL, Ordering::Relaxed);
    }

    /// Whether it is to be said now that the request was refused memory at its limit: once.
    pub fn tells_refusal(&self) -> bool {
        !self.refusal_is_told.load(Ordering::Relaxed)
            && !self.refusal_is_told.swap(true, Ordering::Relaxed)
    }

    /// Its address, as spans name it.
    #[inline]
    pub fn address(&self) -> usize {
        core::ptr::from_ref(self).expose_provenance()
    }

    /// The request's number, never reused.
    pub fn serial(&self) -> u64 {
        self.serial.load(Ordering::Relaxed)
    }

    /// What stands in the headers of the request's blocks.
    pub fn id(&self) -> u64 {
        self.id.load(Ordering::Relaxed)
    }

    /// Whether there is only the first lane.
    pub fn has_one_lane(&self) -> bool {
        !self.shared.load(Ordering::Relaxed)
    }

    /// The lanes that were entered, as far as is known: the first, and all if it was not enough.
    pub fn lanes(&self) -> impl Iterator<Item = &Lane> {
        self.all_lanes().take(if self.has_one_lane() { 1 } else { usize::MAX })
    }

    /// All lanes, those of earlier requests too.
    pub fn all_lanes(&self) -> impl Iterator<Item = &Lane> {
        let mut next: *const Lane = &raw const self.first;
        let mut first = true;
        core::iter::from_fn(move || {
            // SAFETY: lanes are part of the control block or type-stable, and published whole.
            let lane = unsafe { next.as_ref()? };
            let link = if first { &self.others } else { &lane.next };
            first = false;
            next = link.load(Ordering::Acquire);
            Some(lane)
        })
    }

    /// Takes an idle lane, else a new one from `memory`, which gives zeroed memory for ever.
    #[inline]
    pub fn enter(&self, memory: impl Fn(usize) -> Option<usize>) -> Option<&Lane> {
        if self.first.occupancy.try_enter() { Some(&self.first) } else { self.enter_slow(memory) }
    }

    #[cold]
    fn enter_slow(&self, memory: impl Fn(usize) -> Option<usize>) -> Option<&Lane> {
        self.share(&memory);
        if let Some(lane) = self.all_lanes().find(|lane| lane.occupancy.try_enter()) {
            lane.bins.open(Kind::Lane, Header::tag(self.id(), LIVE));
            return Some(lane);
        }
        let place = with_exposed_provenance_mut::<Lane>(memory(size_of::<Lane>())?);
        // SAFETY: fresh memory of a lane's size, aligned more than a lane.
        let lane = unsafe {
            place.write(new_lane());
            &*place
        };
        lane.bins.open(Kind::Lane, Header::tag(self.id(), LIVE));
        lane.set_shared(true);
        lane.occupancy.try_enter();
        let mut first = self.others.load(Ordering::Relaxed);
        loop {
            lane.next.store(first, Ordering::Relaxed);
            match self.others.compare_exchange_weak(
                first,
                place,
                Ordering::Release,
                Ordering::Relaxed,
            ) {
                Ok(_) => return Some(lane),
                Err(now) => first = now,
            }
        }
    }

    /// More than one lane is entered: from here on bins are bounded, also those of occupied lanes.
    /// Without memory for the lists they are not, and only memory is lost.
    fn share(&self, memory: &impl Fn(usize) -> Option<usize>) {
        if self.exchange().is_none() {
            if let Some(address) = memory(size_of::<Exchange>()) {
                // Zeros are empty, open lists. Who loses the race leaves its own unused.
                let _ = self.exchange.compare_exchange(
                    null_mut(),
                    with_exposed_provenance_mut(address),
                    Ordering::AcqRel,
                    Ordering::Acquire,
                );
            }
        }
        if !self.shared.swap(true, Ordering::Relaxed) {
            self.all_lanes().for_each(|lane| lane.set_shared(true));
        }
    }

    /// A block that the lane's bins and region have no room for, and whether its payload reads as zero.
    /// `asked_bytes` is what the caller wants it for.
    #[cold]
    pub fn alloc_slow<S: Host>(
        &self,
        lane: &Lane,
        class: Class,
        asked_bytes: usize,
        supply: &S,
    ) -> Result<(Block, bool), Shortage> {
        if class.is_large() {
            return self.alloc_large(lane, class, asked_bytes, supply);
        }
        let block = self.alloc_shared(lane, class, asked_bytes, supply);
        if block != NONE {
            return Ok((block, false));
        }
        if !self.is_over_limit(pages_for(class.stride_bytes() + HEADER_BYTES)) {
            return Err(Shortage::Memory);
        }
        self.note_refusal(asked_bytes);
        Err(Shortage::Limit)
    }

    fn alloc_shared<S: Host>(
        &self,
        lane: &Lane,
        class: Class,
        asked_bytes: usize,
        supply: &S,
    ) -> Block {
        if !self.has_one_lane() {
            lane.bins.bin(class).set_cap(shared_cap(class));
            if self.take_handed_on(lane, class) {
                return lane.bins.alloc(class);
            }
        }
        if !self.strays.list.is_empty() {
            self.drain_into(lane);
            let block = lane.bins.alloc(class);
            if block != NONE {
                return block;
            }
        }
        if self.adopt_piece(lane, class) {
            return lane.bins.alloc(class);
        }
        if sweep::is_due(self, lane) {
            sweep::sweep(self, lane, supply);
            if self.has_free(lane, class) {
                return lane.bins.alloc(class);
            }
        }
        if self.adopt_region(lane, class, asked_bytes, Bound::Soft, supply) {
            return lane.bins.alloc(class);
        }
        // At the mark, at the limit or out of memory: what is free inside the request comes first, then
        // what it may have is looked at once more.
        let worth_bytes = self.region_bytes() / SOFT_WORTH_DIVISOR;
        let is_swept = self.reclaim_at_bound(lane, worth_bytes, supply).is_some();
        if self.has_free(lane, class)
            || self.adopt_region(lane, class, asked_bytes, Bound::Hard, supply)
        {
            return lane.bins.alloc(class);
        }
        // Before null any free block is worth it.
        if !is_swept
            && self.reclaim_at_bound(lane, class.stride_bytes(), supply).is_some()
            && (self.has_free(lane, class)
                || self.adopt_region(lane, class, asked_bytes, Bound::Hard, supply))
        {
            return lane.bins.alloc(class);
        }
        NONE
    }

    /// Whether the lane has a free block of this class, or something to cut one from.
    fn has_free(&self, lane: &Lane, class: Class) -> bool {
        lane.bins.bin(class).count() > 0 || self.adopt_piece(lane, class)
    }

    /// Cuts from a new region from now on. `false`: over the bound, or no memory.
    fn adopt_region<S: Host>(
        &self,
        lane: &Lane,
        class: Class,
        asked_bytes: usize,
        bound: Bound,
        supply: &S,
    ) -> bool {
        let Some(region) = self.take_region(lane, class.stride_bytes(), asked_bytes, bound, supply)
        else {
            return false;
        };
        self.unswept_bytes.fetch_add(region.bytes(), Ordering::Relaxed);
        lane.adopt(region);
        true
    }

    /// Cuts from the inside of a piece from now on, if there is one.
    fn adopt_piece(&self, lane: &Lane, class: Class) -> bool {
        let Some(piece) = lane.adopt_piece(class) else { return false };
        self.unswept_bytes.fetch_add(piece.stride_bytes(), Ordering::Relaxed);
        true
    }

    /// A lane's bin is over its cap: what came last goes round to the other lanes. What the bin still
    /// has it keeps: it took it when it had nothing.
    #[cold]
    pub fn lane_bin_full(&self, lane: &Lane, class: Class) {
        let bin = lane.bins.bin(class);
        // What the bin took when it had nothing, and the one block that saves the next way here.
        let kept = bin.cap().saturating_sub(shared_cap(class)) + 1;
        if bin.count() > kept {
            self.hand_on(lane, class, bin.count() - kept);
        }
    }

    /// What lanes hand on to one another. `None`: there was never a second lane, or no memory for it.
    fn exchange(&self) -> Option<&Exchange> {
        // SAFETY: null, or the lists of this control block, which are for ever.
        unsafe { self.exchange.load(Ordering::Acquire).as_ref() }
    }

    /// Hands on the `count` blocks that came last into a bin that has more.
    fn hand_on(&self, lane: &Lane, class: Class, count: u32) {
        let bin = lane.bins.bin(class);
        let Some(exchange) = self.exchange() else {
            return bin.set_cap(u32::MAX);
        };
        let (first, last) = bin.take_top(count);
        let bytes = count as usize * class.stride_bytes();
        self.strays.pending.fetch_add(pending(count as usize, bytes), Ordering::Relaxed);
        // These lists are never closed.
        let _ = exchange.lists[class.index()].push(&Raw, first, last);
    }

    /// Takes what other lanes handed on of a class into the lane's empty bin.
    fn take_handed_on(&self, lane: &Lane, class: Class) -> bool {
        let Some(exchange) = self.exchange() else {
            return false;
        };
        let list = &exchange.lists[class.index()];
        if list.is_empty() {
            return false;
        }
        let mut count = 0;
        for block in list.drain().blocks(&Raw) {
            lane.bins.put(block, class);
            count += 1;
        }
        let bytes = count * class.stride_bytes();
        self.strays.pending.fetch_sub(pending(count, bytes), Ordering::Relaxed);
        lane.bins.bin(class).set_cap(count as u32 + shared_cap(class));
        count > 0
    }

    /// Hands on what a lane's bins hold over their usual caps.
    pub fn hand_excess_on(&self, lane: &Lane) {
        if self.has_one_lane() {
            return;
        }
        for class in Class::all() {
            let (bin, cap) = (lane.bins.bin(class), shared_cap(class));
            bin.set_cap(cap);
            if bin.count() > cap {
                self.hand_on(lane, class, bin.count() - cap);
            }
        }
    }

    /// Forgets all that lanes handed on: its regions go.
    pub fn forget_handed_on(&self) {
        if let Some(exchange) = self.exchange().filter(|_| !self.has_one_lane()) {
            exchange.lists.iter().for_each(|list| {
                list.drain();
            });
        }
    }

    /// Takes all that lanes handed on into one lane's bins.
    pub fn take_all_handed_on(&self, lane: &Lane) {
        if !self.has_one_lane() {
            Class::all().for_each(|class| {
                self.take_handed_on(lane, class);
            });
        }
    }

    /// Gives a region back that no block of is in use.
    pub fn release_region<S: Host>(&self, region: &Span, supply: &S) {
        close::uncharge(self, region, supply);
        supply.give_span(region);
    }

    /// Bytes of the regions it holds.
    pub fn region_bytes(&self) -> usize {
        self.footprint_bytes().saturating_sub(self.large_bytes.load(Ordering::Relaxed))
    }

    /// Bytes of the ranges that were taken since the last sweep.
    pub fn unswept_bytes(&self) -> usize {
        self.unswept_bytes.load(Ordering::Relaxed)
    }

    /// How many sweeps were in vain, one after the other.
    pub fn sweeps_in_vain(&self) -> u32 {
        self.sweeps_in_vain.load(Ordering::Relaxed)
    }

    /// A sweep is done.
    pub fn note_swept(&self, in_vain: u32) {
        self.unswept_bytes.store(0, Ordering::Relaxed);
        self.sweeps_in_vain.store(in_vain, Ordering::Relaxed);
    }

    /// A region that is charged for: one of an earlier request, else a long one, else one that is just
    /// long enough.
    fn take_region<'l, S: Host>(
        &'l self,
        lane: &'l Lane,
        stride: usize,
        asked_bytes: usize,
        bound: Bound,
        supply: &'l S,
    ) -> Option<&'l Span> {
        if let Some(span) = lane.take_warm(stride) {
            if self.charge(Some(lane), span.bytes(), bound) {
                self.note_taken(asked_bytes);
                span.region.cut_end.set(span.base() + HEADER_BYTES);
                span.region.count.arm();
                return Some(span);
            }
            lane.put_warm(span);
        }
        let take = |pages: usize| {
            if !self.charge(Some(lane), pages * PAGE_BYTES, bound) {
                return None;
            }
            let taken = supply.take_span(SpanKind::Region, 0, pages, self.address());
            match taken {
                Some(_) => self.note_taken(asked_bytes),
                None => self.refund(pages * PAGE_BYTES),
            }
            taken
        };
        let (long, short) = (lane.next_region_pages(stride), pages_for(stride + HEADER_BYTES));
        Some(take(long).or_else(|| (short < long).then(|| take(short)).flatten())?.span)
    }

    /// Takes all strays into a lane's bins.
    pub(super) fn drain_into(&self, lane: &Lane) {
        self.absorb(lane, self.strays.list.drain());
    }

    /// Takes a chain of strays into a lane's bins.
    pub fn absorb(&self, lane: &Lane, chain: Chain) {
        let mut taken = 0;
        for block in chain.blocks(&Raw) {
            settle_stray(&Raw, block);
            taken += pending(1, lane.absorb(block).stride_bytes());
        }
        self.strays.pending.fetch_sub(taken, Ordering::Relaxed);
    }

    /// Frees a block from outside the lanes. Its header is claimed. `Err`: the request is closed.
    pub fn push_stray(&self, block: Block, class: Class) -> Result<(), Closed> {
        self.strays.pending.fetch_add(pending(1, class.stride_bytes()), Ordering::Relaxed);
        self.strays.list.push(&Raw, block, block)
    }

    /// Blocks and bytes of the strays just now.
    pub fn stray_figures(&self) -> (isize, isize) {
        let pending = self.strays.pending.load(Ordering::Relaxed);
        let sixteenths = pending & ((1 << PENDING_SHIFT) - 1);
        ((pending >> PENDING_SHIFT) as isize, sixteenths as isize * 16)
    }

    /// What the lanes have outside their bins, all together.
    pub fn out_of_lanes(&self) -> Out {
        let alone = self.has_one_lane();
        self.lanes().map(|lane| lane.out(alone)).fold(Out { blocks: 0, bytes: 0 }, |sum, out| Out {
            blocks: sum.blocks + out.blocks,
            bytes: sum.bytes + out.bytes,
        })
    }

    /// Large blocks, and the bytes of their spans.
    pub fn large_figures(&self) -> (usize, usize) {
        (self.large_count.count() as usize, self.large_bytes.load(Ordering::Relaxed))
    }

    /// What the request uses. Exact while nobody allocates or frees, never negative.
    pub fn figures(&self) -> Figures {
        let out = self.out_of_lanes();
        let (large_count, large_bytes) = self.large_figures();
        let (stray_blocks, stray_bytes) = self.stray_figures();
        let in_regions = (out.blocks - stray_blocks).max(0) as usize;
        let bytes_in_regions = (out.bytes - stray_bytes).max(0) as usize;
        let footprint = self.footprint_bytes();
        Figures {
            live_blocks: in_regions + large_count,
            live_bytes: bytes_in_regions + large_bytes,
            footprint,
            // What is charged may not have been compared yet.
            peak: self.peak_bytes().max(footprint),
        }
    }

    /// Largest footprint so far.
    pub fn peak_bytes(&self) -> usize {
        self.peak_bytes.load(Ordering::Relaxed)
    }
}

fn new_lane() -> Lane {
    // SAFETY: zeroed is an empty lane but for what is set below: no bins are full at count 0 only
    // if their cap is not 0.
    let lane: Lane = unsafe { core::mem::zeroed() };
    Class::all().for_each(|class| lane.bins.bin(class).set_cap(u32::MAX));
    lane
}

/// The successor words of pooled control blocks.
pub struct ControlMemory;

impl Successors for ControlMemory {
    fn successor(&self, address: usize) -> &AtomicU64 {
        // SAFETY: only control blocks are pooled here, and they are type-stable.
        unsafe { &(*with_exposed_provenance::<Control>(address)).successor }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_readme_knows_what_a_request_costs() {
        let readme: std::string::String = include_str!("../../README.md")
            .split_whitespace()
            .collect::<std::vec::Vec<_>>()
            .join(" ");
        let kib = |bytes: usize| bytes as f64 / 1024.0;
        for said in [
            std::format!("its control block, {:.2} KiB", kib(size_of::<super::Control>())),
            std::format!("costs a lane, {:.2} KiB", kib(size_of::<super::Lane>())),
        ] {
            assert!(readme.contains(&said), "README.md must say: {said}");
        }
    }
}
