//! The sweep: a long request whose bins hold much, of sizes that are not asked for any more, gets
//! that memory back in one piece.
//!
//! The bins of all lanes that can be had are emptied and their blocks marked; each region is walked,
//! neighbours that are marked become one piece, a region that is one piece goes back, and the other
//! pieces are cut anew into blocks as large as they can be. `Control::alloc_slow` cuts small blocks
//! from the inside of large free ones.
//!
//! - **W1** While it sweeps, the caller occupies every lane whose bins or regions it touches. A block
//!   that is marked lies in one of those bins; a region that holds a block of another lane's bins, or
//!   a stray, is not one piece.
//! - **W2** A sweep costs a look at every block of those regions; it is not tried again until the
//!   request has cut new blocks from a part as large as a quarter of what was looked at.

use super::Supply;
use super::control::Control;
use crate::bin::Raw;
use crate::block::{Block, Header, Memory, NONE, SWEPT};
use crate::lane::{Lane, walk};
use crate::size_class::{Class, HEADER_BYTES};
use crate::span::Span;
use crate::sync::Ordering;

/// A request smaller than this is not worth the walk.
const MIN_REGION_BYTES: usize = 128 * 1024;
/// The bins must hold at least this part of the footprint.
const HELD_DIVISOR: usize = 6;
/// The ranges taken since the last sweep must be at least this part of the regions.
const UNSWEPT_DIVISOR: usize = 32;

/// Whether a request of this footprint, which would grow, should be swept first.
pub fn is_due(control: &Control, lane: &Lane) -> bool {
    let bytes = control.region_bytes();
    bytes >= MIN_REGION_BYTES
        && control.unswept_bytes() >= bytes / UNSWEPT_DIVISOR
        && lane.bins.held().1 >= bytes / HELD_DIVISOR
}

/// Sweeps the lane the caller is in and those nobody is in.
#[cold]
pub fn sweep<S: Supply>(control: &Control, lane: &Lane, supply: &S) {
    let held = |other: &&Lane| core::ptr::eq(*other, lane) || other.occupancy.try_enter();
    let mut taken = 0u64;
    for (index, _) in control.lanes().enumerate().take(64).filter(|(_, other)| held(other)) {
        taken |= 1 << index;
    }
    let lanes = || {
        control
            .lanes()
            .enumerate()
            .take(64)
            .filter(|(index, _)| taken >> index & 1 == 1)
            .map(|(_, other)| other)
    };
    let is_alone = control.is_alone();
    if !is_alone {
        lanes()
            .flat_map(Lane::regions)
            .for_each(|region| region.held_pages.store(1, Ordering::Relaxed));
    }
    // A block that another thread's lane cut cannot be swept: its region is not walked (W1).
    let is_swept =
        |block| is_alone || supply.region_of(block).held_pages.load(Ordering::Relaxed) == 1;
    lanes().for_each(|other| mark_bins(other, is_swept));
    lanes().for_each(|other| sweep_regions(control, lane, other, supply));
    lanes().filter(|other| !core::ptr::eq(*other, lane)).for_each(|other| other.occupancy.leave());
    control.note_swept();
}

/// Empties the bins of what is swept; those blocks are marked and stay counted as cut.
fn mark_bins(lane: &Lane, is_swept: impl Fn(Block) -> bool) {
    lane.retire_range();
    for class in Class::all() {
        let mut next = lane.bins.bin(class).take_all().head;
        while next != NONE {
            let block = next;
            next = Raw.link(block);
            if is_swept(block) {
                let header = Raw.header(block);
                let marked = Header(header.load(Ordering::Relaxed)).with(SWEPT);
                header.store(marked.0, Ordering::Relaxed);
            } else {
                lane.bins.put(block, class);
            }
        }
    }
}

/// A run of marked blocks.
#[derive(Clone, Copy, Default)]
struct Piece {
    start: usize,
    bytes: usize,
    blocks: usize,
}

fn sweep_regions<S: Supply>(control: &Control, lane: &Lane, swept: &Lane, supply: &S) {
    let id = control.id();
    let whole = swept.take_regions_where(|region| is_one_piece(region, id));
    for region in whole {
        region.held_pages.store(0, Ordering::Relaxed);
        let blocks = walk(region, id).count();
        let bytes = region.carved_end.get() - region.base() - HEADER_BYTES;
        lane.uncount(blocks, bytes);
        control.shrink(region.bytes());
        control.release_region(region, supply);
    }
    for region in swept.regions() {
        region.held_pages.store(0, Ordering::Relaxed);
        let mut piece = Piece::default();
        for (block, header, class) in walk(region, id) {
            if header.has(SWEPT) {
                if piece.blocks == 0 {
                    piece.start = block - HEADER_BYTES;
                }
                piece.blocks += 1;
                piece.bytes += class.stride_bytes();
            } else {
                recut(lane, core::mem::take(&mut piece));
            }
        }
        recut(lane, piece);
    }
}

fn is_one_piece(region: &Span, id: u64) -> bool {
    walk(region, id).all(|(_, header, _)| header.has(SWEPT))
}

/// Cuts a piece into free blocks of the sweeping lane, as large as they can be.
fn recut(lane: &Lane, piece: Piece) {
    if piece.blocks > 0 {
        lane.uncount(piece.blocks, piece.bytes);
        lane.recut(piece.start, piece.bytes);
    }
}
