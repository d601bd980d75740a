//! The sweep: when the bins of a long request are full of sizes that are no longer asked for, it
//! joins that memory again.
//!
//! The bins of all lanes that can be occupied are emptied and their blocks flagged as swept; each
//! region is walked, swept neighbours become one piece, a region that is one piece goes back, and
//! the others are *pieces*, from the inside of which blocks of any class are cut
//! (`Lane::adopt_piece`). What was not swept is never cut: a class that is wanted again finds its
//! blocks.
//!
//! - **W1** While it sweeps, the caller occupies every lane whose bins or regions it touches. A
//!   swept block lies in one of those bins; a region with a block in another lane's bins, or with a
//!   stray, is not one piece.

use super::Host;
use crate::base::size_class::{Class, HEADER_BYTES};
use crate::base::sync::Ordering;
use crate::blocks::memory::Raw;
use crate::blocks::region::{Cell, Ids, cells, free_hole, release_taken, runs, take_hole, walk};
use crate::lockfree::header::{Block, Header, Memory, SWEPT, linked};
use crate::lockfree::hole::Hole;
use crate::pages::span::{Span, SpanKind};
use crate::request::control::Control;
use crate::request::lane::Lane;

/// Most lanes that are swept at once.
const MAX_LANES: usize = 32;

/// Whether a request should be swept before it grows (W2).
pub fn is_due(control: &Control, lane: &Lane) -> bool {
    control.pace.is_sweep_due(control.region_bytes(), || free_bytes_in_reach(control, lane))
}

/// Returns what a sweep could get back, as far as is known: what is in the lane's bins and on its
/// way between lanes.
fn free_bytes_in_reach(control: &Control, lane: &Lane) -> usize {
    lane.free_figures().1 + control.stub().pending.figures().1.max(0) as usize
}

/// The lanes that the caller occupies.
struct Occupied<'c> {
    lanes: [Option<&'c Lane>; MAX_LANES],
}

impl<'c> Occupied<'c> {
    /// Occupies the lanes that nobody is in, beside the caller's own. They are written down because
    /// the list of lanes may grow meanwhile.
    fn take(control: &'c Control, lane: &'c Lane) -> Self {
        let idle = |other: &&Lane| !core::ptr::eq(*other, lane) && other.occupancy.try_enter();
        let mut lanes = [None; MAX_LANES];
        let all = core::iter::once(lane).chain(control.lanes().filter(idle));
        lanes.iter_mut().zip(all).for_each(|(slot, lane)| *slot = Some(lane));
        Self { lanes }
    }

    fn each(&self) -> impl Iterator<Item = &'c Lane> + '_ {
        self.lanes.iter().flatten().copied()
    }

    /// Leaves all lanes but the caller's, which is the first.
    fn leave(self) {
        self.each().skip(1).for_each(|lane| lane.occupancy.leave());
    }
}

/// Sweeps the lane that the caller is in and those that nobody is in.
#[cold]
pub fn sweep<S: Host>(control: &Control, lane: &Lane, supply: &S) {
    let free_bytes = free_bytes_in_reach(control, lane);
    control.take_all_handed_on(lane);
    let occupied = Occupied::take(control, lane);
    let has_one_lane = control.has_one_lane();
    let sweeper = core::ptr::from_ref(lane).addr();
    if !has_one_lane {
        let regions = occupied.each().flat_map(|lane| lane.regions().chain(lane.lent()));
        regions.for_each(|region| region.region.sweeper.store(sweeper, Ordering::Relaxed));
    }
    // A block whose region this sweep does not walk stays where it is (W1).
    let is_walked = |block| {
        has_one_lane
            || supply.span_of_free(block, SpanKind::Region).region.sweeper.load(Ordering::Relaxed)
                == sweeper
    };
    occupied.each().for_each(|other| sweep_bins(other, is_walked));
    let gained: usize = occupied.each().map(|other| sweep_regions(control, other, supply)).sum();
    occupied.leave();
    if !control.has_one_lane() {
        control.exchange.hand_excess_on(lane, control.stub().pending());
    }
    control.pace.note_sweep(gained, free_bytes);
}

/// Empties the bins of the blocks whose region is walked; they are swept, and still count as cut.
fn sweep_bins(lane: &Lane, is_walked: impl Fn(Block) -> bool) {
    lane.retire_range();
    for class in Class::all() {
        for block in linked(&Raw, lane.bins.bin(class).take_all().head) {
            if is_walked(block) {
                set_swept(block);
            } else {
                lane.bins.put(block, class);
            }
        }
    }
    lane.take_pieces().flat_map(|first| linked(&Raw, first)).for_each(set_swept);
}

fn set_swept(block: Block) {
    let word = Raw.header(block);
    let swept = Header(word.load(Ordering::Relaxed)).with(SWEPT);
    word.store(swept.0, Ordering::Relaxed);
}

/// A run of swept neighbours.
#[derive(Clone, Copy, Default)]
struct Piece {
    start: usize,
    bytes: usize,
    blocks: usize,
}

/// Sweeps the regions of one lane. Returns the bytes that went back or were joined to larger
/// blocks.
fn sweep_regions<S: Host>(control: &Control, swept: &Lane, supply: &S) -> usize {
    let ids = control.ids();
    let mut gained = 0;
    for region in swept.take_regions_where(|region| is_one_piece(region, ids)) {
        region.region.sweeper.store(0, Ordering::Relaxed);
        let blocks = walk(region, ids).count();
        let bytes = region.region.cut_end.get() - region.base() - HEADER_BYTES;
        swept.recount(-(blocks as isize), -(bytes as isize));
        control.footprint.refund(region.bytes());
        control.warm.let_go(region, supply);
        supply.give_span(region);
        gained += bytes;
    }
    for region in swept.regions() {
        region.region.sweeper.store(0, Ordering::Relaxed);
        let mut piece = Piece::default();
        for (block, header, class) in walk(region, ids) {
            if header.has(SWEPT) {
                // A persisted block, or what was one, lies between.
                if piece.start + piece.bytes != block - HEADER_BYTES {
                    gained += recut(swept, core::mem::take(&mut piece));
                }
                if piece.blocks == 0 {
                    piece.start = block - HEADER_BYTES;
                }
                piece.blocks += 1;
                piece.bytes += class.stride_bytes();
            } else {
                gained += recut(swept, core::mem::take(&mut piece));
            }
        }
        gained += recut(swept, piece);
    }
    gained + swept.lent().map(|span| sweep_lent(control, swept, span)).sum::<usize>()
}

/// Sweeps the holes that a lane took in a lent span: one that only swept blocks are in is free
/// again.
fn sweep_lent(control: &Control, lane: &Lane, span: &Span) -> usize {
    span.region.sweeper.store(0, Ordering::Relaxed);
    let mut gained = 0;
    for (start, bytes) in release_taken(span) {
        gained += sweep_hole(control, lane, span, start, bytes);
    }
    gained
}

fn sweep_hole(control: &Control, lane: &Lane, span: &Span, start: usize, bytes: usize) -> usize {
    let ids = control.ids();
    let inside = || cells(start + Hole::WORD_BYTES, start + bytes, ids);
    if inside().all(|(_, _, cell)| is_swept(cell)) {
        let blocks = inside().count() as isize;
        lane.recount(-blocks, -((bytes - Hole::WORD_BYTES) as isize));
        control.footprint.refund(bytes);
        free_hole(start, bytes);
        span.region.look_again();
        return bytes;
    }
    take_hole(span, start, bytes);
    let mut gained = 0;
    let mut piece = Piece::default();
    for (at, bytes, cell) in inside() {
        if is_swept(cell) {
            if piece.blocks == 0 {
                piece.start = at;
            }
            piece.blocks += 1;
            piece.bytes += bytes;
        } else {
            gained += recut(lane, core::mem::take(&mut piece));
        }
    }
    gained + recut(lane, piece)
}

/// Whether nothing but swept blocks is in a region; what was persisted stays where it is.
fn is_one_piece(region: &Span, ids: Ids) -> bool {
    runs(region).flat_map(|(start, end)| cells(start, end, ids)).all(|(_, _, cell)| is_swept(cell))
}

fn is_swept(cell: Cell) -> bool {
    matches!(cell, Cell::Own(header, _) if header.has(SWEPT))
}

/// Gives a piece to the lane whose region it lies in. Returns its bytes if it was more than one
/// block.
fn recut(lane: &Lane, piece: Piece) -> usize {
    if piece.blocks > 0 {
        lane.recount(-(piece.blocks as isize), -(piece.bytes as isize));
        lane.recut(piece.start, piece.bytes);
    }
    if piece.blocks > 1 { piece.bytes } else { 0 }
}
