//! What becomes of a request's memory when it is over: *end* frees everything, *close* keeps what is
//! still live, as persistent blocks.
//!
//! Close against a free from outside, step by step:
//!
//! 1. the stray list is closed; frees from outside leave their blocks to the closer from here on
//!    (S2);
//! 2. what is on the list goes into a lane's bins, so that it does not look live;
//! 3. each live block is adopted (`lockfree/lifetime`), or is a hole if its free was first;
//! 4. the adopted blocks of a span are counted, then the span is published (`lockfree/token`):
//!    after that the closer does not touch it any more (T7).

use super::Host;
use super::adopt::{Survey, settle_lent, settle_region};
use super::control::Control;
use super::lane::{Lane, Out};
use super::lanes::MAX_KEPT_LANES;
use crate::base::sync::Ordering;
use crate::lockfree::large;
use crate::pages::span::{Span, SpanKind};

/// Which blocks stay.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Survivors {
    /// Every live one: close.
    Live,
    /// None: end. What was persisted is not the request's any more.
    None,
}

/// What is left of a request.
#[derive(Clone, Copy, Default)]
pub struct Left {
    /// Blocks that were live and have been freed.
    pub freed_blocks: usize,
    /// Bytes of their strides.
    pub freed_bytes: usize,
    /// Blocks that were adopted.
    pub surviving_blocks: usize,
    /// Bytes of their strides.
    pub surviving_bytes: usize,
    /// Bytes of the spans and mappings that they are in.
    pub span_bytes: usize,
    /// Bytes of those that other blocks can be cut from.
    pub reusable_bytes: usize,
    /// Blocks that were ever allocated in the request; counted if it is timed.
    pub allocated_blocks: usize,
}

/// Finishes a request that the caller has closed; nobody is in any of its lanes.
pub fn finish<S: Host>(control: &Control, supply: &S, survivors: Survivors) -> Left {
    if control.is_untouched() {
        return Left { allocated_blocks: control.large.made_count(), ..Left::default() };
    }
    let (stub, first) = (control.stub(), &control.lanes.first);
    let strays = stub.close_strays();
    let gone = if survivors == Survivors::Live {
        stub.absorb(first, strays);
        control.take_all_handed_on(first);
        // A block whose free comes from now on is live: its free leaves it to this thread.
        let (blocks, bytes) = stub.persisted.figures();
        Out { blocks, bytes }
    } else {
        control.gone()
    };
    let out = control.lanes.out();
    let allocated_blocks = if control.is_timed() { control.allocated_count(out) } else { 0 };
    let live_blocks = (out.blocks - gone.blocks).max(0) as usize;
    let live_bytes = (out.bytes - gone.bytes).max(0) as usize;
    let (large_count, large_bytes) = control.large_figures();
    let adopts = survivors == Survivors::Live && live_blocks + large_count > 0;
    if adopts || control.has_persisted.load(Ordering::Relaxed) {
        let left = settle(control, supply, survivors, (live_blocks, live_bytes));
        return Left { allocated_blocks, ..left };
    }
    release_large(control, supply);
    if !control.has_one_lane() {
        control.exchange.forget_handed_on();
    }
    for (index, lane) in control.lanes().enumerate() {
        reset_lane(control, lane, supply, index <= MAX_KEPT_LANES);
    }
    shed_lanes(control, supply);
    Left {
        freed_blocks: live_blocks + large_count,
        freed_bytes: live_bytes + large_bytes,
        allocated_blocks,
        ..Left::default()
    }
}

/// Empties a lane; if that stays with the control block, so do its regions, as far as the caps
/// allow.
fn reset_lane<S: Host>(control: &Control, lane: &Lane, supply: &S, is_kept: bool) {
    if control.has_one_lane() && lane.is_untouched() {
        return;
    }
    lane.take_lent().for_each(|span| settle_lent(control, supply, span, None));
    lane.reset(|region| {
        let stays = is_kept && control.warm.keeps(region, supply);
        if !stays {
            let_go(control, region, supply);
        }
        stays
    });
}

/// Gives back the lanes that are more than stay with a control block.
#[inline]
fn shed_lanes<S: Host>(control: &Control, supply: &S) {
    if !control.has_one_lane() {
        control.lanes.shed(MAX_KEPT_LANES, |lane| {
            release_warm(control, lane, supply);
            supply.give_lane(lane, false);
        });
    }
}

fn release_warm<S: Host>(control: &Control, lane: &Lane, supply: &S) {
    lane.take_all_warm().for_each(|region| let_go(control, region, supply));
}

/// Gives back an empty region, whether it was warm or not.
#[cold]
fn let_go<S: Host>(control: &Control, region: &Span, supply: &S) {
    control.warm.let_go(region, supply);
    supply.give_span(region);
}

/// Gives back what an idle control block has besides its own memory: warm regions, lanes, lists. It
/// is the caller's alone.
pub fn strip<S: Host>(control: &Control, supply: &S) {
    control.lanes.all().for_each(|lane| release_warm(control, lane, supply));
    control.lanes.shed(0, |lane| supply.give_lane(lane, true));
    control.exchange.release(supply);
}

fn release_large<S: Host>(control: &Control, supply: &S) {
    // Without the lock: the caller's contract (end) or the count (close, L4) says that nobody frees
    // a large block any more.
    control.large.take_all().for_each(|span| release_large_span(span, supply));
}

/// Gives back the span or the mapping of a large block. A header that still says live tells a later
/// free that the request is over; one that does not tells it that the block was freed.
pub fn release_large_span<S: Host>(span: &Span, supply: &S) {
    match span.kind() {
        SpanKind::Mapped => supply.give_mapping(span),
        _ => supply.give_span(span),
    }
}

/// Looks at the blocks of every region that may have one that stays.
#[cold]
fn settle<S: Host>(
    control: &Control,
    supply: &S,
    survivors: Survivors,
    (live_blocks, live_bytes): (usize, usize),
) -> Left {
    let mut outcome = Left::default();
    let mut survey = Survey::new(survivors == Survivors::Live, live_blocks);
    if !control.has_one_lane() {
        control.exchange.forget_handed_on();
    }
    for lane in control.lanes() {
        lane.close_range();
        lane.take_lent().for_each(|span| settle_lent(control, supply, span, Some(&mut survey)));
        for region in lane.take_regions() {
            settle_region(control, supply, lane, region, &mut survey);
        }
    }
    shed_lanes(control, supply);
    if survivors == Survivors::None {
        outcome.freed_blocks = live_blocks;
        outcome.freed_bytes = live_bytes;
    }
    outcome.surviving_blocks = survey.adopted.blocks as usize;
    outcome.surviving_bytes = survey.adopted.bytes as usize;
    outcome.span_bytes = survey.span_bytes;
    outcome.reusable_bytes = survey.reusable_bytes;
    settle_large(control, supply, survivors, &mut outcome);
    outcome
}

fn settle_large<S: Host>(control: &Control, supply: &S, survivors: Survivors, outcome: &mut Left) {
    if survivors == Survivors::None {
        let (count, bytes) = control.large_figures();
        outcome.freed_blocks += count;
        outcome.freed_bytes += bytes;
        return release_large(control, supply);
    }
    large::adopt_all(supply.large_lock(control.serial()), &control.large_blocks(), |span| {
        // By the descriptor: the block's owner may be moving its pages.
        outcome.surviving_blocks += 1;
        outcome.surviving_bytes += span.own.charged_bytes.get();
        outcome.span_bytes += span.bytes();
    });
}
