//! What becomes of a request's memory when it is over: *end* frees everything that is not kept,
//! *close* keeps what is still live.
//!
//! Close against a free from outside, step by step (the models in `loom-tests` run this order):
//!
//! 1. the stray list is closed; whoever frees later decrements its span's count (S2, L2);
//! 2. the closer holds the control block for the whole walk (`Holds::begin`);
//! 3. each region: pages without a survivor go back, the others are noted in `held_pages`, the
//!    control block is held once more, and only then the count is settled;
//! 4. whoever brings a span's count to zero gives its pages back and drops its hold;
//! 5. whoever drops the last hold recycles the control block.

use super::Host;
use crate::base::size_class::{HEADER_BYTES, PAGE_BYTES};
use crate::base::sync::Ordering;
use crate::blocks::memory::Raw;
use crate::lockfree::header::{LIVE, Memory, PERSISTENT};
use crate::pages::span::{Span, SpanKind};
use crate::request::control::Control;
use crate::request::lane::{Lane, walk};
use crate::request::span_list::SpanList;
use core::cell::Cell;
use core::ptr::null;

/// Which blocks stay.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Survivors {
    /// Every live one: close.
    Live,
    /// Those that `persist` was called on: end.
    Kept,
}

/// What a request left behind.
#[derive(Clone, Copy, Default)]
pub struct Outcome {
    /// Blocks that were live and are freed now.
    pub freed_blocks: usize,
    /// Bytes of their strides.
    pub freed_bytes: usize,
    /// Blocks that stay.
    pub surviving_blocks: usize,
    /// Bytes of their strides.
    pub surviving_bytes: usize,
    /// Bytes of the pages they hold.
    pub pinned_bytes: usize,
    /// Whether the control block is the caller's to recycle.
    pub is_over: bool,
}

/// Finishes a request whose last handle the caller dropped; nobody is in any of its lanes.
pub fn finish<S: Host>(control: &Control, supply: &S, survivors: Survivors) -> Outcome {
    let keeps_blocks = match survivors {
        Survivors::Live => true,
        Survivors::Kept => control.kept.load(Ordering::Relaxed),
    };
    let strays = control.strays.close();
    let (stray_blocks, stray_bytes) = if keeps_blocks {
        // Drained blocks must not look live to the walk. Whoever frees from now on is counted live.
        control.strays.absorb(&control.lanes.first, strays);
        control.take_all_handed_on(&control.lanes.first);
        (0, 0)
    } else {
        control.strays.pending.figures()
    };
    let out = control.lanes.out();
    let (large_count, large_bytes) = control.large_figures();
    let live_in_regions = (out.blocks - stray_blocks).max(0) as usize;
    let bytes_in_regions = (out.bytes - stray_bytes).max(0) as usize;
    if keeps_blocks && live_in_regions + large_count > 0 {
        return keep_survivors(control, supply, survivors, live_in_regions);
    }
    release_large(control, supply);
    if !control.has_one_lane() {
        control.exchange.forget_handed_on();
    }
    control.lanes().for_each(|lane| reset_lane(control, lane, supply));
    Outcome {
        freed_blocks: live_in_regions + large_count,
        freed_bytes: bytes_in_regions + large_bytes,
        is_over: true,
        ..Outcome::default()
    }
}

/// Empties a lane; its regions stay with the control block as far as the process's cap allows.
fn reset_lane<S: Host>(control: &Control, lane: &Lane, supply: &S) {
    if lane.is_untouched(control.has_one_lane()) {
        return;
    }
    lane.reset(|region| {
        let stays = control.warm.keeps(region, supply);
        if !stays {
            supply.give_span(region);
        }
        stays
    });
}

/// Gives the regions back that stayed with a pooled control block; their bytes.
pub fn release_warm<S: Host>(control: &Control, supply: &S) -> usize {
    let mut bytes = 0;
    for region in control.lanes().flat_map(Lane::take_all_warm) {
        bytes += region.bytes();
        control.warm.let_go(region, supply);
        supply.give_span(region);
    }
    bytes
}

fn release_large<S: Host>(control: &Control, supply: &S) {
    // Without the lock: the caller's contract (end) or the count (close, L3) says that nobody frees
    // a large block any more.
    control.large.take_all().for_each(|span| release_large_span(span, supply));
}

/// Gives the span or the mapping of a large block back. A header that still says live tells a later
/// free that the request is over, one that does not tells it that the block was freed.
pub fn release_large_span<S: Host>(span: &Span, supply: &S) {
    match span.kind() {
        SpanKind::Mapped => supply.give_mapping(span),
        _ => supply.give_span(span),
    }
}

#[cold]
fn keep_survivors<S: Host>(
    control: &Control,
    supply: &S,
    survivors: Survivors,
    live_in_regions: usize,
) -> Outcome {
    let mut outcome = Outcome::default();
    control.holds.begin();
    let mut left = live_in_regions;
    for region in control.lanes().flat_map(Lane::take_regions) {
        control.warm.let_go(region, supply);
        let found = scan(region, control.id(), survivors, left);
        left -= found.surviving_blocks + found.freed_blocks;
        outcome.freed_blocks += found.freed_blocks;
        outcome.freed_bytes += found.freed_bytes;
        outcome.surviving_blocks += found.surviving_blocks;
        outcome.surviving_bytes += found.surviving_bytes;
        outcome.pinned_bytes += keep_region(control, supply, region, &found);
    }
    keep_large(control, supply, survivors, &mut outcome);
    outcome.is_over = control.holds.drop_one();
    outcome
}

/// What a region has.
#[derive(Default)]
struct Scan {
    surviving_blocks: usize,
    surviving_bytes: usize,
    freed_blocks: usize,
    freed_bytes: usize,
    held_pages: u32,
}

/// Looks at every block of a region, until `left` live ones were seen.
fn scan(region: &Span, id: u64, survivors: Survivors, left: usize) -> Scan {
    let mut found = Scan::default();
    if left == 0 {
        return found;
    }
    for (block, header, class) in walk(region, id) {
        if !header.has(LIVE) {
            continue;
        }
        let stride = class.stride_bytes();
        if survivors == Survivors::Live || header.has(PERSISTENT) {
            let start = block - HEADER_BYTES - region.base();
            let (first, last) = (start / PAGE_BYTES, (start + stride - 1) / PAGE_BYTES);
            found.held_pages |= pages_mask(first, last);
            found.surviving_blocks += 1;
            found.surviving_bytes += stride;
        } else {
            // Its page may stay: a stale free must not pass for a survivor's.
            Raw.header(block).store(header.without(LIVE).0, Ordering::Relaxed);
            found.freed_blocks += 1;
            found.freed_bytes += stride;
        }
        if found.surviving_blocks + found.freed_blocks == left {
            break;
        }
    }
    found
}

/// The bits of `Span::held_pages` from one page to another.
fn pages_mask(first: usize, last: usize) -> u32 {
    (u32::MAX >> (u32::BITS as usize - 1 - (last - first))) << first
}

/// Turns a region into a survivor span, or gives it back. Returns the bytes that stay pinned.
fn keep_region<S: Host>(control: &Control, supply: &S, region: &Span, found: &Scan) -> usize {
    if found.surviving_blocks == 0 {
        region.region.count.settle(0);
        supply.give_span(region);
        return 0;
    }
    let pages = region.bytes() / PAGE_BYTES;
    give_pages_where(supply, region, pages, !found.held_pages);
    region.region.held_pages.store(found.held_pages, Ordering::Relaxed);
    control.holds.add();
    let pinned = found.held_pages.count_ones() as usize * PAGE_BYTES;
    if region.region.count.settle(found.surviving_blocks as u64) {
        // The closer's own hold is still there: this cannot be the last.
        release_survivor_span(control, supply, region);
        return 0;
    }
    pinned
}

fn give_pages_where<S: Host>(supply: &S, region: &Span, pages: usize, mask: u32) {
    let mut page = 0;
    while page < pages {
        let rest = mask >> page;
        if rest & 1 == 0 {
            page += 1;
            continue;
        }
        let run = (rest.trailing_ones() as usize).min(pages - page);
        supply.give_pages(region.base() + page * PAGE_BYTES, run);
        page += run;
    }
}

/// The last survivor of a span is gone. `true`: so is the last of the request, and the control
/// block is the caller's to recycle.
pub fn release_survivor_span<S: Host>(control: &Control, supply: &S, region: &Span) -> bool {
    let pages = region.bytes() / PAGE_BYTES;
    let held = region.region.held_pages.load(Ordering::Relaxed);
    give_pages_where(supply, region, pages, held);
    supply.give_descriptor(region);
    control.holds.drop_one()
}

fn keep_large<S: Host>(control: &Control, supply: &S, survivors: Survivors, outcome: &mut Outcome) {
    let doomed: Cell<*const Span> = Cell::new(null());
    supply.with_large_lock(control.address(), || {
        for span in control.large.take_all() {
            // By the descriptor: the block's owner may be moving its pages.
            if survivors == Survivors::Live || span.own.kept.load(Ordering::Relaxed) {
                outcome.surviving_blocks += 1;
                outcome.surviving_bytes += span.own.charged_bytes.get();
                outcome.pinned_bytes += span.bytes();
                control.holds.add();
                span.own.detached.set(true);
            } else {
                outcome.freed_blocks += 1;
                outcome.freed_bytes += span.own.charged_bytes.get();
                span.next.set(doomed.replace(span));
            }
        }
    });
    // SAFETY: descriptors that were taken off the list above: the caller's alone.
    let doomed = unsafe { SpanList::from(doomed.get()) };
    doomed.for_each(|span| release_large_span(span, supply));
}
