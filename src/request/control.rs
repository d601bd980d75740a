//! The control block of a request: pooled, type-stable (M1), never inside a request. It is the sum
//! of its parts, which do not know it; the files above it say what is done with them.
//!
//! | field | written by | read by |
//! |---|---|---|
//! | `lanes`, `exchange`, `footprint`, `pace`, `large`, `warm`, `strays` | see the part's file | |
//! | `serial`, `id`, `persistent_id`, `numbers`, `name`, `leaks`, `opened_at` | who opens the request, before others know it | anybody |
//! | `stub` | who makes the control block | who has it, or is in its request |
//! | `on_end`, `on_close` | see `stack` | |
//! | `has_persisted`, `bailed_out`, `panicked` | who persists a block, who gives the request up, whom a panic takes out of it | who finishes |
//! | `mark_is_told` | who tells, by a swap | the same |
//! | `persistent_blocks` | threads inside, by read-modify-write | any thread |
//! | `begun_before` | the thread whose hook began the request | the same |
//!
//! - **Q1** Only a handle, a visit or the stub's being closed by the caller keeps a request: a live
//!   block does not.

use super::Host;
use crate::base::size_class::Class;
use crate::base::sync::{AtomicBool, AtomicU64, Ordering};
use crate::blocks::identity::Serial;
use crate::blocks::region::Ids;
use crate::blocks::request_id::RequestId;
use crate::blocks::request_name::RequestName;
use crate::lockfree::header::{Header, LIVE};
use crate::lockfree::large;
use crate::lockfree::stack::Stack;
use crate::pages::span::Span;
use crate::request::exchange::Exchange;
use crate::request::footprint::Footprint;
use crate::request::lane::{Lane, Out};
use crate::request::lanes::Lanes;
use crate::request::large_list::{LargeList, ListOf};
use crate::request::limits::Limits;
use crate::request::lists::Lists;
use crate::request::name::Name;
use crate::request::pace::Pace;
use crate::request::stub::Stub;
use crate::request::warm::Warm;
use core::cell::Cell;
use core::mem::offset_of;
use core::ptr::{null, with_exposed_provenance, with_exposed_provenance_mut};

/// A serial that no request has, because ids have 48 bits.
const NO_SERIAL: u64 = u64::MAX;

/// Numbers of past requests that a control block knows, for fatal errors.
const NUMBERS_KEPT: usize = 16;

/// How a request is opened.
#[derive(Clone, Copy, Default)]
pub struct Opening {
    /// What it is called.
    pub name: Option<RequestName>,
    /// Bytes of pages it may hold.
    pub limit_bytes: Option<usize>,
    /// Bytes of pages from which on it is marked, and never refused any.
    pub soft_limit_bytes: Option<usize>,
    /// How many bytes below the limit it is marked.
    pub reserve_bytes: Option<usize>,
    /// The request that what this one holds counts to, too. Whoever opens the child hands over a
    /// handle of its parent (Q3).
    pub parent: Option<&'static Control>,
    /// What is reported about blocks that were never freed.
    pub leaks: LeakPolicy,
    /// Whether nothing is reported when it is refused memory at its limit.
    pub hides_limit: bool,
    /// When, in milliseconds of the coarse clock; 0: nobody wants to know.
    pub opened_at: u64,
}

/// What is reported about blocks that were never freed, when a request is over.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct LeakPolicy {
    /// Whether they are listed after a clean end.
    pub reported: bool,
    /// Whether they are listed after a bailout, too.
    pub reported_after_bailout: bool,
    /// Whether every block remembers where it was allocated.
    pub traced: bool,
}

/// The control block of a request.
#[repr(C, align(128))]
pub struct Control {
    /// What the threads inside allocate from.
    pub lanes: Lanes,
    pub(super) exchange: Exchange,
    stub: &'static Stub,
    serial: AtomicU64,
    id: AtomicU64,
    persistent_id: AtomicU64,
    /// The numbers of the last requests, by generation.
    numbers: [AtomicU64; NUMBERS_KEPT],
    /// What the request is called.
    pub name: Name,
    /// When it was opened, in milliseconds of the coarse clock; 0: nobody asked for that.
    opened_at: Cell<u64>,
    /// What is called before the memory goes, the last one first. Its items are not blocks.
    pub on_end: Stack,
    /// What is called with the report, the last one first. Its items are not blocks.
    pub on_close: Stack,
    /// The request that hooks began before this one in a thread that has exited.
    pub begun_before: Cell<*const Control>,
    /// What is said of blocks that were never freed.
    pub leaks: Cell<LeakPolicy>,
    /// Whether a bailout gave the request up.
    pub bailed_out: AtomicBool,
    /// Whether a panic took a thread out of it.
    pub panicked: AtomicBool,
    mark_is_told: AtomicBool,
    persistent_blocks: AtomicU64,
    /// Whether `persist` was called on a block.
    pub has_persisted: AtomicBool,
    pub(super) footprint: Footprint,
    pub(super) pace: Pace,
    pub(super) large: LargeList,
    pub(super) warm: Warm,
}

// SAFETY: the table at the head of the module says which thread touches which field when.
unsafe impl Sync for Control {}

const _: () = assert!(
    offset_of!(Control, lanes) == 0 && offset_of!(Lanes, first) == 0,
    "the bins of the first lane start at the control block's first cache line"
);
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
    /// Returns the control block at an address that a span or a thread names.
    ///
    /// # Safety
    /// `address` is that of a control block (M1).
    pub unsafe fn at<'h>(address: usize) -> &'h Self {
        // SAFETY: the caller's contract.
        unsafe { &*with_exposed_provenance::<Self>(address) }
    }

    /// Makes a control block, whatever its memory contains.
    ///
    /// # Safety
    /// `address` is aligned memory of the size of a control block, the caller's alone, as its stub
    /// is. Whoever still has a pointer to an earlier one there reads its atomics at most.
    pub unsafe fn make(address: usize, stub: &'static Stub) {
        // SAFETY: the caller's contract.
        unsafe { with_exposed_provenance_mut::<Self>(address).write(Self::new(stub)) };
    }

    fn new(stub: &'static Stub) -> Self {
        Self {
            lanes: Lanes::new(),
            exchange: Exchange::new(),
            stub,
            serial: AtomicU64::new(0),
            id: AtomicU64::new(0),
            persistent_id: AtomicU64::new(0),
            numbers: [const { AtomicU64::new(0) }; NUMBERS_KEPT],
            name: Name::new(),
            opened_at: Cell::new(0),
            on_end: Stack::new(),
            on_close: Stack::new(),
            begun_before: Cell::new(null()),
            leaks: Cell::new(LeakPolicy::default()),
            bailed_out: AtomicBool::new(false),
            panicked: AtomicBool::new(false),
            mark_is_told: AtomicBool::new(false),
            persistent_blocks: AtomicU64::new(0),
            has_persisted: AtomicBool::new(false),
            footprint: Footprint::new(),
            pace: Pace::new(),
            large: LargeList::new(),
            warm: Warm::new(),
        }
    }

    /// Its stub.
    #[inline]
    pub fn stub(&self) -> &'static Stub {
        self.stub
    }

    /// The control block of the request that a stub has, or had.
    pub fn of(stub: &Stub) -> &'static Self {
        // SAFETY: a stub that has had a request is that of a control block, which is type-stable (M1).
        unsafe { &*stub.control().cast() }
    }

    /// Opens a new request. The control block is out of the pool and the caller's alone.
    #[inline]
    pub fn open(&self, serial: Serial, ids: Ids, number: u64, opening: &Opening) {
        self.serial.store(serial.0, Ordering::Relaxed);
        self.number_of(serial.generation()).store(number, Ordering::Relaxed);
        self.id.store(ids.request, Ordering::Relaxed);
        self.persistent_id.store(ids.persistent, Ordering::Relaxed);
        self.name.open(opening.name.as_ref());
        self.opened_at.set(opening.opened_at);
        self.leaks.set(opening.leaks);
        self.large.open();
        let parent = opening.parent.map(|parent| &parent.footprint);
        let limits = Limits {
            limit_bytes: opening.limit_bytes,
            soft_limit_bytes: opening.soft_limit_bytes,
            reserve_bytes: opening.reserve_bytes,
        };
        self.footprint.open(&limits, opening.hides_limit, parent);
        self.bailed_out.store(false, Ordering::Relaxed);
        self.panicked.store(false, Ordering::Relaxed);
        self.mark_is_told.store(false, Ordering::Relaxed);
        self.persistent_blocks.store(0, Ordering::Relaxed);
        self.has_persisted.store(false, Ordering::Relaxed);
        self.pace.open();
        self.lanes.open(Header::tag(ids.request, LIVE));
        let (stub, generation) = (self.stub(), serial.generation());
        stub.pending.open(generation);
        stub.persisted.open(generation);
        stub.strays.open(generation);
        stub.state.open(generation);
    }

    /// Retires a request that is over and of which nothing is left: from here on, the id in a stale
    /// block is not this control block's.
    #[inline]
    pub fn retire(&self) {
        self.serial.store(NO_SERIAL, Ordering::Relaxed);
        self.stub().state.retire();
    }

    /// The request's number, never reused.
    pub fn serial(&self) -> Serial {
        Serial(self.serial.load(Ordering::Relaxed))
    }

    /// Returns the id in the headers of the request's blocks.
    pub fn id(&self) -> u64 {
        self.id.load(Ordering::Relaxed)
    }

    fn number_of(&self, generation: u32) -> &AtomicU64 {
        &self.numbers[generation as usize % NUMBERS_KEPT]
    }

    /// Returns what its request is called by.
    pub fn request_id(&self) -> RequestId {
        let generation = self.stub().state.look().generation();
        RequestId(self.number_of(generation).load(Ordering::Relaxed))
    }

    /// Returns the number of the request with this generation, unless that is long ago, or its
    /// control block was made anew since.
    pub fn number_of_past(&self, generation: u32) -> Option<u64> {
        let now = self.stub().state.look().generation();
        (now.wrapping_sub(generation) < NUMBERS_KEPT as u32)
            .then(|| self.number_of(generation).load(Ordering::Relaxed))
            .filter(|&number| number != 0)
    }

    /// Returns how long it has been open, if somebody asked for that when it was opened.
    #[inline]
    pub fn age_milliseconds(&self, now: impl FnOnce() -> u64) -> Option<u64> {
        let opened_at = self.opened_at.get();
        (opened_at != 0).then(|| now().saturating_sub(opened_at))
    }

    /// Whether it is known how long it has been open, so that its report counts blocks, too.
    #[inline]
    pub fn is_timed(&self) -> bool {
        self.opened_at.get() != 0
    }

    /// Returns how many blocks were allocated in it so far, freed ones included, where `out` are not
    /// in its bins.
    pub(super) fn allocated_count(&self, out: Out) -> usize {
        let freed: usize = self.lanes().map(|lane| lane.bins.freed_count()).sum();
        freed + out.blocks.max(0) as usize + self.large.made_count()
    }

    /// Notes that a thread inside was given so many persistent blocks.
    pub fn note_persistent(&self, blocks: u64) {
        self.persistent_blocks.fetch_add(blocks, Ordering::Relaxed);
    }

    /// Returns how many persistent blocks threads inside were given.
    pub fn persistent_count(&self) -> u64 {
        self.persistent_blocks.load(Ordering::Relaxed)
    }

    /// Whether it must be told now that the request is marked: once.
    pub fn tells_mark(&self) -> bool {
        !self.mark_is_told.load(Ordering::Relaxed)
            && !self.mark_is_told.swap(true, Ordering::Relaxed)
    }

    /// What may stand in the headers of its regions.
    pub(super) fn ids(&self) -> Ids {
        Ids { request: self.id(), persistent: self.persistent_id.load(Ordering::Relaxed) }
    }

    // ---- lanes -------------------------------------------------------------------------------

    /// Whether there is only the first lane.
    #[inline]
    pub fn has_one_lane(&self) -> bool {
        self.lanes.is_one()
    }

    /// Whether nothing was ever cut for the request, and no large block is left.
    #[inline]
    pub(super) fn is_untouched(&self) -> bool {
        self.has_one_lane() && self.lanes.first.is_untouched() && self.large.figures().0 == 0
    }

    /// Returns the lanes that may have been entered: the first, and all once it was not enough.
    #[inline]
    pub fn lanes(&self) -> impl Iterator<Item = &Lane> {
        self.lanes.entered()
    }

    /// The lists of its exchange, if there are any.
    pub fn lists(&self) -> Option<&Lists> {
        self.exchange.lists()
    }

    /// Whether a lane was entered in this request, and not only in earlier ones.
    pub(super) fn has_entered(&self, lane: &Lane) -> bool {
        lane.bins.tag().id() == self.id()
    }

    /// Enters an idle lane, else one of the host's.
    #[inline]
    pub fn enter<S: Host>(&self, host: &S) -> Option<&Lane> {
        let first = self.lanes.enter_first();
        if first.is_some() { first } else { self.enter_slow(host) }
    }

    #[cold]
    fn enter_slow<S: Host>(&self, host: &S) -> Option<&Lane> {
        self.exchange.provide(host);
        self.lanes.share();
        self.lanes.enter_any(Header::tag(self.id(), LIVE), host)
    }

    /// Looks at a lane's bin whose room is used up.
    #[cold]
    pub fn look_at_bin(&self, lane: &Lane, class: Class) {
        self.exchange.look_at_bin(lane, class, self.stub().pending());
    }

    /// Takes everything that lanes handed on into one lane's bins.
    pub(super) fn take_all_handed_on(&self, lane: &Lane) {
        if !self.has_one_lane() {
            self.exchange.take_all_handed_on(lane, self.stub().pending());
        }
    }

    // ---- large blocks ------------------------------------------------------------------------

    /// Puts the span of a large block, charged `charged_bytes`, on the request's list.
    pub fn link_large<S: Host>(&self, span: &Span, charged_bytes: usize, supply: &S) {
        span.own.charged_bytes.set(charged_bytes);
        self.large.note_made();
        large::link(supply.large_lock(self.serial()), &self.large_blocks(), span);
    }

    /// The request's large blocks.
    pub fn large_blocks(&self) -> ListOf<'_> {
        self.large.of(&self.footprint)
    }

    /// Notes that a large block needs `new_bytes` now; `growth_bytes` more are already charged.
    pub fn recharge_large(&self, span: &Span, growth_bytes: usize, new_bytes: usize) {
        self.large.recharge(span, growth_bytes, new_bytes, &self.footprint);
    }

    /// Repairs the list of large blocks in a process that was just forked.
    pub fn repair_large(&self) {
        self.large.repair();
    }

    /// Returns the number of large blocks and the bytes charged for them.
    pub fn large_figures(&self) -> (usize, usize) {
        self.large.figures()
    }

    // ---- figures -----------------------------------------------------------------------------

    /// What is outside the lanes' bins and not in use by the request: free blocks, and persisted
    /// ones.
    pub(super) fn gone(&self) -> Out {
        let (pending_blocks, pending_bytes) = self.stub().pending.figures();
        let (persisted_blocks, persisted_bytes) = self.stub().persisted.figures();
        Out { blocks: pending_blocks + persisted_blocks, bytes: pending_bytes + persisted_bytes }
    }

    /// What the request uses. Exact while nobody allocates or frees, never negative.
    pub fn figures(&self) -> Figures {
        let out = self.lanes.out();
        let (large_count, large_bytes) = self.large.figures();
        let gone = self.gone();
        let in_regions = (out.blocks - gone.blocks).max(0) as usize;
        let bytes_in_regions = (out.bytes - gone.bytes).max(0) as usize;
        let footprint = self.footprint_bytes();
        Figures {
            live_blocks: in_regions + large_count,
            live_bytes: bytes_in_regions + large_bytes,
            footprint,
            // The last charge may not have reached the peak yet.
            peak: self.peak_bytes().max(footprint),
        }
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
