//! The lane: the part of a request that one thread at a time allocates from.
//!
//! | field | written by | read by |
//! |---|---|---|
//! | `bins` | see `bins` | |
//! | `occupancy` | the thread that enters or leaves | any thread |
//! | `occupant` | the occupant, after it entered and before it leaves | any thread |
//! | `entry_count` | the occupant | the same |
//! | `regions`, `warm`, `cut_bytes`, `range_..` | the occupant, else the closer | the same |
//! | `pieces`, `limit_is_suspended`, `long` | the occupant, else the closer | the same |
//! | `slot` | who makes the lane | who gives it back |
//! | `next` | see `grow_list` | |
//!
//! - **N1** The lane cuts blocks from one *range* at a time: the rest of a region, or the inside of
//!   a free block. When the range is retired, the blocks of every region on `regions` follow one
//!   another without a gap from its start to its `cut_end`. So do those of the region that long
//!   blocks are cut from, one at a time, at any time.
//! - **N2** A lane's range lies in one of its own regions, so a thread that occupies a lane and has
//!   retired its range can walk its regions, whatever other lanes do meanwhile.

use crate::base::fatal;
use crate::base::size_class::{Class, FIRST_LARGE_CLASS, HEADER_BYTES, PAGE_BYTES, pages_for};
use crate::base::sync::{Gauge, Ordering};
use crate::blocks::bins::{Bins, Kind};
use crate::blocks::memory::Raw;
use crate::blocks::region::free_hole;
use crate::lockfree::grow_list::{Link, Linked};
use crate::lockfree::header::{Block, Header, Memory, NONE, linked};
use crate::lockfree::hole::shorten;
use crate::lockfree::lifecycle::Occupancy;
use crate::pages::span::{IS_FOR_LONG, Span};
use crate::request::long_range::LongRange;
use crate::request::span_list::SpanList;
use core::cell::Cell;
use core::ptr::null;

/// Most pages in a region: fewer than the page mask of an adopted span has bits for.
pub const MAX_REGION_PAGES: usize = 16;

const _: () =
    assert!(MAX_REGION_PAGES <= u32::BITS as usize, "`held_pages` has a bit for every page");
const _: () = assert!(
    MAX_REGION_PAGES * PAGE_BYTES == 256 * 1024,
    "regions are at most 256 KiB, several times the largest block in them"
);

/// A lane of a request.
#[repr(C)]
pub struct Lane {
    /// What a thread's `active` points to while it is in the lane.
    pub bins: Bins,
    /// Whether a thread is in the lane.
    pub occupancy: Occupancy,
    /// Tells the thread whose entries are in the lane from others; 0: there are none. Only a thread
    /// that is in the lane finds itself here.
    pub occupant: Gauge,
    /// How many of the thread's entries are in the lane.
    pub entry_count: Cell<usize>,
    /// The regions; the one taken last comes first.
    regions: Cell<*const Span>,
    /// Empty regions of earlier requests, shortest first.
    warm: Cell<*const Span>,
    /// Bytes of the blocks in all ranges but the one being cut.
    cut_bytes: Gauge,
    /// Where that range begins, and the region it is the rest of: null when it is the inside of a
    /// block.
    range_start: Gauge,
    range_region: Cell<*const Span>,
    /// What long blocks are cut from.
    long: LongRange,
    /// Bytes of the regions and holes that were taken for the request so far.
    taken_bytes: Cell<usize>,
    /// Adopted spans that the lane was lent, the one that holes are taken from first.
    lent: Cell<*const Span>,
    /// What a sweep has joined, by class: free blocks to cut others from.
    pieces: [Cell<Block>; FIRST_LARGE_CLASS],
    piece_count: Gauge,
    piece_bytes: Gauge,
    /// Whether the request's memory limit is suspended for the occupant, which reports or cleans
    /// up.
    pub limit_is_suspended: Cell<bool>,
    /// Its number among the lanes of the process; of a control block's first lane it means nothing.
    pub slot: u32,
    /// The request's next lane.
    next: Link<Lane>,
}

// SAFETY: see the table at the head of the module; `occupancy` orders one occupant after the other.
unsafe impl Sync for Lane {}

impl Linked for Lane {
    fn link(&self) -> &Link<Self> {
        &self.next
    }
}

/// Most bytes that a bin of one of several lanes keeps, and most blocks.
const SHARED_CAP_BYTES: usize = 8 * 1024;
const SHARED_CAP_COUNT: usize = 64;

/// Returns how many blocks a bin of one of several lanes keeps, and hands on at once.
pub fn shared_cap(class: Class) -> u32 {
    (SHARED_CAP_BYTES / class.stride_bytes()).clamp(1, SHARED_CAP_COUNT) as u32
}

/// Returns the regions on one of this lane's lists.
fn list<'h>(first: *const Span) -> SpanList<'h> {
    // SAFETY: a lane's lists link only descriptors (M1), and only the thread that has the lane
    // changes them.
    unsafe { SpanList::from(first) }
}

const _: () = assert!(NONE == 0, "zeros are empty bins and pieces");
const _: () = assert!(Kind::Unused as u8 == 0, "zeros are nobody's bins");

impl Lane {
    /// Creates an idle lane without regions.
    pub fn new(slot: u32) -> Self {
        // SAFETY: zeros are such a lane, but with bins that are full at once.
        let lane = Self { slot, ..unsafe { core::mem::zeroed() } };
        lane.set_shared(false);
        lane
    }

    /// Returns the pages of the next region, for a block of this stride: as much again as there is,
    /// within bounds.
    pub fn next_region_pages(&self, stride: usize) -> usize {
        let doubled = (self.taken_bytes.get() / PAGE_BYTES + 1).next_power_of_two();
        doubled.min(MAX_REGION_PAGES).max(pages_for(stride + HEADER_BYTES))
    }

    /// Takes the shortest warm region that has room for a block of this stride and that `suits`, if it
    /// is no longer than a new one would be.
    pub fn take_warm(&self, stride: usize, suits: impl Fn(&Span) -> bool) -> Option<&Span> {
        let mut place = &self.warm;
        // SAFETY: `warm` links only descriptors (M1).
        while let Some(span) = unsafe { place.get().as_ref() } {
            if span.bytes() >= stride + HEADER_BYTES && suits(span) {
                let is_short = span.bytes() <= self.next_region_pages(stride) * PAGE_BYTES;
                return is_short.then(|| {
                    place.set(span.next.get());
                    span
                });
            }
            place = &span.next;
        }
        None
    }

    /// Makes this region the range to cut from.
    pub fn adopt(&self, span: &Span) {
        self.retire_range();
        self.add_region(span, false);
        self.set_range(span.base() + HEADER_BYTES, span.end(), span);
    }

    /// Makes this region the one that long blocks are cut from, beside the range.
    pub fn adopt_long(&self, span: &Span) {
        self.add_region(span, true);
        self.long.open(span);
    }

    fn add_region(&self, span: &Span, is_for_long: bool) {
        span.region.note(IS_FOR_LONG, is_for_long);
        span.next.set(self.regions.replace(span));
        self.taken_bytes.set(self.taken_bytes.get() + span.bytes());
    }

    /// Cuts a long block from the region for these; `NONE` if what is left is too short.
    pub fn cut_long(&self, class: Class) -> Block {
        let cut = self.long.cut(class.stride_bytes(), |start| self.cut_at(start, class));
        cut.unwrap_or(NONE)
    }

    /// Cuts a long block that is alone in a hole, beside the range.
    pub fn cut_from_own_hole(&self, start: usize, class: Class) -> Block {
        self.taken_bytes.set(self.taken_bytes.get() + class.stride_bytes());
        self.cut_at(start, class)
    }

    fn cut_at(&self, start: usize, class: Class) -> Block {
        self.cut_bytes.add(class.stride_bytes());
        self.bins.cut_at(start, class)
    }

    /// Makes the inside of a piece the range to cut from, if there is one with room for a block of
    /// `class`: it lies in a region of this lane (N2). The piece is no longer a block. Returns its
    /// class.
    pub fn adopt_piece(&self, class: Class) -> Option<Class> {
        if self.piece_count.get() == 0 {
            return None;
        }
        let found = Class::all_shared()
            .skip(class.index())
            .find(|other| self.pieces[other.index()].get() != NONE)?;
        let block = self.pieces[found.index()].replace(NONE);
        self.pieces[found.index()].set(Raw.link(block));
        self.piece_count.set(self.piece_count.get() - 1);
        self.piece_bytes.add(found.stride_bytes().wrapping_neg());
        self.retire_range();
        self.recount(-1, -(found.stride_bytes() as isize));
        let start = block - HEADER_BYTES;
        self.set_range(start, start + found.stride_bytes(), null());
        Some(found)
    }

    /// Takes every piece; each is a free block linked to the next one of its class.
    pub fn take_pieces(&self) -> impl Iterator<Item = Block> + '_ {
        self.piece_count.set(0);
        self.piece_bytes.set(0);
        self.pieces.iter().map(|first| first.replace(NONE))
    }

    /// Walks the pieces; fatal if a header or the counts contradict them.
    pub fn check_pieces(&self) {
        let (mut count, mut bytes) = (0, 0);
        for class in Class::all_shared() {
            for block in linked(&Raw, self.pieces[class.index()].get()) {
                let header = Header(Raw.header(block).load(Ordering::Relaxed));
                if header != self.bins.free_header(class) {
                    fatal::header_overwritten(block, header.0);
                }
                count += 1;
                bytes += class.stride_bytes();
            }
        }
        if (count, bytes) != (self.piece_count.get(), self.piece_bytes.get()) {
            fatal::broken("pieces of a lane", count, self.piece_count.get());
        }
    }

    /// Returns the free memory of the lane: blocks, and bytes of stride.
    pub fn free_figures(&self) -> (usize, usize) {
        let (blocks, bytes) = self.bins.held();
        (blocks + self.piece_count.get(), bytes + self.piece_bytes.get())
    }

    fn set_range(&self, start: usize, end: usize, region: *const Span) {
        self.bins.set_region(start, end);
        self.range_start.set(start);
        self.range_region.set(region);
    }

    /// Cuts the rest of the range into free blocks, so that its region can be walked (N1).
    pub fn retire_range(&self) {
        while let Some(class) = Class::fitting(self.bins.left_bytes()) {
            // Not into larger classes, whose blocks usually have spans of their own.
            self.bins.cut_free(class.min(Class::LAST_SHARED));
        }
        self.leave_range();
    }

    /// Cuts nothing more, for the closer, who leaves memory alone that was never used. What is left
    /// of a piece, or of a hole, is a hole.
    pub fn close_range(&self) {
        let left_bytes = self.bins.left_bytes();
        if self.range_region.get().is_null() && left_bytes > 0 {
            free_hole(self.bins.bump(), left_bytes);
        }
        self.leave_range();
    }

    fn leave_range(&self) {
        self.cut_bytes.add(self.bins.bump() - self.range_start.get());
        // SAFETY: null, or the descriptor of a region (M1).
        if let Some(span) = unsafe { self.range_region.get().as_ref() } {
            span.region.cut_end.set(self.bins.bump());
        }
        self.set_range(0, 0, null());
    }

    /// Takes holes of this span from now on.
    pub fn borrow(&self, span: &Span) {
        span.next.set(self.lent.replace(span));
    }

    /// The spans that the lane was lent, the one that holes are taken from first.
    pub fn lent(&self) -> SpanList<'_> {
        list(self.lent.get())
    }

    /// The same, which are the caller's to settle.
    pub fn take_lent(&self) -> SpanList<'_> {
        list(self.lent.replace(null()))
    }

    /// Cuts from a hole of a lent span from now on. Its word says that it is in use.
    pub fn cut_from_hole(&self, start: usize, end: usize) {
        self.retire_range();
        self.taken_bytes.set(self.taken_bytes.get() + end - start);
        self.set_range(start, end, null());
    }

    /// The regions, the one that was taken last first.
    pub fn regions(&self) -> SpanList<'_> {
        list(self.regions.get())
    }

    /// Returns the bytes of all blocks ever cut here, free ones included.
    fn all_cut_bytes(&self) -> usize {
        let range = self.bins.bump().wrapping_sub(self.range_start.get());
        // If another thread reads while one range makes way for the next, the two words may not
        // belong together: then the range counts for nothing.
        let is_one_range = range <= MAX_REGION_PAGES * PAGE_BYTES;
        self.cut_bytes.get().wrapping_add(if is_one_range { range } else { 0 })
    }

    /// Returns the blocks, and bytes of stride, that are not in the lane's own bins.
    pub fn out(&self, alone: bool) -> Out {
        // Only in a request with a second lane can a lane have blocks without ever having cut one.
        if alone && self.bins.cut_count() == 0 {
            return Out { blocks: 0, bytes: 0 };
        }
        let (free_count, free_bytes) = self.free_figures();
        Out {
            blocks: self.bins.cut_count() as isize - free_count as isize,
            bytes: self.all_cut_bytes() as isize - free_bytes as isize,
        }
    }

    /// Sets how much the bins keep: without bound in a request's only lane; otherwise little, so
    /// that what one lane frees reaches the one that needs it.
    pub fn set_shared(&self, shared: bool) {
        for class in Class::all() {
            let cap = if shared { shared_cap(class) } else { u32::MAX };
            self.bins.bin(class).set_cap(cap);
        }
    }

    /// Takes a stray, whose header already says that it is not live, into the bins. Returns its
    /// class.
    pub fn absorb(&self, block: Block) -> Class {
        let header = Header(Raw.header(block).load(Ordering::Relaxed));
        match Class::from_index(header.class_index()) {
            Some(class) if header == self.bins.free_header(class) => {
                self.bins.put(block, class);
                self.bins.note_freed();
                class
            }
            _ => fatal::header_overwritten(block, header.0),
        }
    }

    /// Forgets all blocks. Every region goes to `keep`, which returns whether it stays with the
    /// lane.
    pub fn reset(&self, mut keep: impl FnMut(&Span) -> bool) {
        let regions = self.regions.replace(null());
        self.forget_blocks();
        for span in list(regions) {
            if keep(span) {
                self.put_warm(span);
            }
        }
    }

    /// Keeps an empty region for later requests, the shortest first, so that a small request has a
    /// small footprint, whatever the ones before it had. They come longest first, so this rarely
    /// walks.
    pub fn put_warm(&self, span: &Span) {
        let mut place = &self.warm;
        // SAFETY: `warm` links only descriptors (M1).
        while let Some(other) = unsafe { place.get().as_ref() }.filter(|o| o.bytes() < span.bytes())
        {
            place = &other.next;
        }
        span.next.set(place.get());
        place.set(span);
    }

    /// Takes all regions off the lane, for the closer, who has closed the range.
    pub fn take_regions(&self) -> SpanList<'_> {
        let regions = self.regions.replace(null());
        self.forget_blocks();
        list(regions)
    }

    fn forget_blocks(&self) {
        // SAFETY: only who closed the request comes here, and nobody has a handle that could read
        // its figures.
        unsafe { self.bins.reset() };
        if self.piece_count.get() != 0 {
            self.take_pieces().for_each(drop);
        }
        self.long.leave();
        self.cut_bytes.set(0);
        self.range_start.set(0);
        self.range_region.set(null());
        self.taken_bytes.set(0);
    }

    /// Whether the lane has no region and, being the only one, nothing in its bins to forget
    /// either.
    pub fn is_untouched(&self) -> bool {
        self.regions.get().is_null() && self.lent.get().is_null()
    }

    /// Takes every region off the lane that `is_free` says has no block in use.
    pub fn take_regions_where(&self, mut is_free: impl FnMut(&Span) -> bool) -> SpanList<'_> {
        self.long.leave();
        let (kept, taken) = (Cell::new(null()), Cell::new(null()));
        for span in list(self.regions.replace(null())) {
            let target = if is_free(span) { &taken } else { &kept };
            span.next.set(target.get());
            target.set(span);
        }
        self.regions.set(kept.get());
        list(taken.get())
    }

    /// Counts this many more blocks, and bytes of them, as cut; fewer if negative.
    pub fn recount(&self, blocks: isize, bytes: isize) {
        self.bins.recount(blocks);
        self.cut_bytes.add(bytes as usize);
    }

    /// Cuts `bytes` of free memory at `start` into pieces that are as large as possible.
    pub fn recut(&self, start: usize, bytes: usize) {
        let (mut at, end) = (start, start + bytes);
        while let Some(class) = Class::fitting(end - at).map(|class| class.min(Class::LAST_SHARED))
        {
            let block = at + HEADER_BYTES;
            Raw.header(block).store(self.bins.free_header(class).0, Ordering::Relaxed);
            Raw.set_link(block, self.pieces[class.index()].replace(block));
            self.piece_count.add(1);
            self.piece_bytes.add(class.stride_bytes());
            self.recount(1, class.stride_bytes() as isize);
            at += class.stride_bytes();
        }
    }

    /// Makes a live block of the request, which was of class `old` and may lie in any lane's region,
    /// one of a lower class where it is; `header` is the new one. The bins take what it loses.
    pub fn shorten(&self, block: Block, header: Header, old: Class, new: Class) {
        let start = block - HEADER_BYTES;
        let (mut at, end) = (start + new.stride_bytes(), start + old.stride_bytes());
        while let Some(class) = Class::fitting(end - at).map(|class| class.min(Class::LAST_SHARED))
        {
            let free = at + HEADER_BYTES;
            Raw.header(free).store(self.bins.free_header(class).0, Ordering::Relaxed);
            self.bins.put(free, class);
            self.bins.recount(1);
            at += class.stride_bytes();
        }
        shorten(&Raw, block, header);
    }

    /// Takes all warm regions off the lane.
    pub fn take_all_warm(&self) -> SpanList<'_> {
        list(self.warm.replace(null()))
    }
}

/// How much of a lane is outside its bins: negative if it frees what another lane handed out.
#[derive(Clone, Copy)]
pub struct Out {
    /// Blocks.
    pub blocks: isize,
    /// Bytes of stride.
    pub bytes: isize,
}
