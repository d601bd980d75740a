//! Regions of a request that is over, in which blocks stay: live ones are adopted, what lies
//! between them are holes, pages without a block go back, and the span is published for others to
//! cut from.

use super::Host;
use super::control::Control;
use super::lane::{Lane, Out};
use crate::base::size_class::{HEADER_BYTES, PAGE_BYTES};
use crate::base::sync::Ordering;
use crate::blocks::memory::Raw;
use crate::blocks::region::{Cell, Ids, cells, release_taken, runs};
use crate::lockfree::header::{Header, LIVE};
use crate::lockfree::hole::{Hole, leave_hole};
use crate::lockfree::lifetime::{Adoption, adopt_at_close};
use crate::lockfree::token::publish;
use crate::pages::shelf::{Shelf, give_adopted_pages, give_pages_where};
use crate::pages::span::Span;

/// What is found and done in the regions of a request.
pub struct Survey {
    /// Whether live blocks stay.
    adopts: bool,
    /// Live blocks that were not seen yet.
    left: usize,
    /// Blocks that were adopted.
    pub adopted: Out,
    /// Bytes of the pages, and of the holes of earlier spans, in which blocks stay.
    pub span_bytes: usize,
    /// Bytes of what is between them.
    pub reusable_bytes: usize,
}

impl Survey {
    /// Of a request with this many live blocks.
    pub fn new(adopts: bool, live_blocks: usize) -> Self {
        Self {
            adopts,
            left: live_blocks,
            adopted: Out { blocks: 0, bytes: 0 },
            span_bytes: 0,
            reusable_bytes: 0,
        }
    }
}

impl Survey {
    /// Whether anything may stay in a span. What was persisted in it is counted nowhere else.
    fn must_walk(&self, span: &Span) -> bool {
        (self.adopts && self.left > 0) || span.region.has_persisted.load(Ordering::Relaxed)
    }

    /// Counts a span that survivors are in.
    fn note_span(&mut self, settled: &Settled, held: u32) {
        if settled.adopted > 0 {
            self.span_bytes += held.count_ones() as usize * PAGE_BYTES;
            self.reusable_bytes += settled.hole_bytes;
        }
    }
}

/// What one span has.
#[derive(Default)]
struct Settled {
    adopted: usize,
    /// Persistent blocks, adopted now or before.
    staying: usize,
    hole_bytes: usize,
    /// Pages that no block lies in.
    free_pages: u32,
}

/// Adopts what is live in a region of the request, or keeps or returns it if nothing is.
pub fn settle_region<S: Host>(
    control: &Control,
    supply: &S,
    lane: &Lane,
    region: &Span,
    survey: &mut Survey,
) {
    if !survey.must_walk(region) {
        return release_region(control, supply, lane, region);
    }
    // All of it, what was never cut included.
    let end = region.end() - HEADER_BYTES;
    let cut_end = region.region.cut_end.get();
    let mut settled = Settled::default();
    let holes = &mut Holes::new(region, &mut settled);
    let start = region.base() + HEADER_BYTES;
    holes.run = (start, end);
    settle_run(control.ids(), start, cut_end, survey, holes);
    holes.note(cut_end, end - cut_end);
    holes.flush();
    survey.adopted.blocks += settled.adopted as isize;
    if settled.staying == 0 {
        return release_region(control, supply, lane, region);
    }
    control.warm.let_go(region, supply);
    let all = u32::MAX >> (u32::BITS as usize - region.bytes() / PAGE_BYTES);
    let held = all & !settled.free_pages;
    region.region.held_pages.store(held, Ordering::Relaxed);
    region.region.cut_end.set(region.base());
    give_pages_where(supply, region, settled.free_pages);
    survey.note_span(&settled, held);
    region.set_owner(0);
    region.region.has_persisted.store(false, Ordering::Relaxed);
    region.region.count.add(settled.adopted as u64);
    region.region.count.add_token();
    supply.adopted().note_held(held.count_ones() as usize * PAGE_BYTES);
    publish(&Shelf(supply), region);
}

/// A region that no block stays in is warm, or goes.
fn release_region<S: Host>(control: &Control, supply: &S, lane: &Lane, region: &Span) {
    if control.warm.keeps(region, supply) {
        lane.put_warm(region);
    } else {
        supply.give_span(region);
    }
}

/// Ends a lane's use of a span that it was lent: what it cut from holes is adopted, or a hole
/// again. Without a survey nothing stays, and only the words of holes are written.
pub fn settle_lent<S: Host>(
    control: &Control,
    supply: &S,
    span: &Span,
    survey: Option<&mut Survey>,
) {
    let taken = release_taken(span);
    match survey {
        Some(survey) if survey.must_walk(span) => {
            let mut settled = Settled::default();
            let holes = &mut Holes::new(span, &mut settled);
            for (start, bytes) in taken {
                let end = start + bytes;
                holes.run = edges(span, start, end);
                let before = (holes.settled.adopted, holes.settled.hole_bytes);
                holes.note(start, Hole::WORD_BYTES);
                settle_run(control.ids(), start + Hole::WORD_BYTES, end, survey, holes);
                holes.flush();
                if holes.settled.adopted > before.0 {
                    survey.span_bytes += bytes;
                    survey.reusable_bytes += holes.settled.hole_bytes - before.1;
                }
            }
            survey.adopted.blocks += settled.adopted as isize;
            give_free_pages(supply, span, &settled);
            span.region.has_persisted.store(false, Ordering::Relaxed);
            span.region.count.add(settled.adopted as u64);
        }
        _ => {
            for (start, bytes) in taken {
                leave_hole(&Raw, start + HEADER_BYTES, Hole { bytes, is_in_use: false });
            }
        }
    }
    span.set_owner(0);
    publish(&Shelf(supply), span);
}

/// Gives back the pages of an adopted span that nothing is left in. That may be all: blocks that were
/// reaped may still count, and keep the descriptor.
fn give_free_pages<S: Host>(supply: &S, span: &Span, settled: &Settled) {
    let held = span.region.held_pages.load(Ordering::Relaxed);
    span.region.held_pages.store(held & !settled.free_pages, Ordering::Relaxed);
    give_adopted_pages(supply, span, held & settled.free_pages);
}

/// Looks through an adopted span that is lent to nobody, whose token the caller has: neighbouring
/// holes are joined, and the pages that nothing is left in go back.
pub fn tidy_up<S: Host>(supply: &S, span: &Span, persistent: u64) {
    let mut settled = Settled::default();
    let holes = &mut Holes::new(span, &mut settled);
    for (start, end) in runs(span) {
        holes.run = (start, end);
        for (at, bytes, cell) in cells(start, end, Ids::of_persistent(persistent)) {
            match cell {
                Cell::Persistent => holes.flush(),
                _ => holes.note(at, bytes),
            }
        }
        holes.flush();
    }
    give_free_pages(supply, span, &settled);
    span.region.look_again();
    publish(&Shelf(supply), span);
}

/// Where a hole begins and ends, if a run of held pages does so there; else 0.
fn edges(span: &Span, start: usize, end: usize) -> (usize, usize) {
    let held = span.region.held_pages.load(Ordering::Relaxed);
    let is_held = |page: usize| held.checked_shr(page as u32).is_some_and(|rest| rest & 1 == 1);
    let (first, last) = (start - HEADER_BYTES - span.base(), end + HEADER_BYTES - span.base());
    let is_start = first % PAGE_BYTES == 0 && (first == 0 || !is_held(first / PAGE_BYTES - 1));
    let is_end = last % PAGE_BYTES == 0 && !is_held(last / PAGE_BYTES);
    (if is_start { start } else { 0 }, if is_end { end } else { 0 })
}

/// Adopts what is live from `start` to `end`, and notes what is not as holes.
fn settle_run(ids: Ids, start: usize, end: usize, survey: &mut Survey, holes: &mut Holes<'_>) {
    let persistent = Header::tag(ids.persistent, LIVE);
    for (at, bytes, cell) in cells(start, end, ids) {
        let stays = match cell {
            Cell::Own(header, _) if header.has(LIVE) && survey.adopts => {
                survey.left = survey.left.saturating_sub(1);
                let is_adopted =
                    adopt_at_close(&Raw, at + HEADER_BYTES, persistent) == Adoption::Adopted;
                if is_adopted {
                    survey.adopted.bytes += bytes as isize;
                    holes.settled.adopted += 1;
                }
                is_adopted
            }
            Cell::Own(..) | Cell::Word(_) | Cell::Hole => false,
            Cell::Persistent => true,
        };
        if stays {
            holes.settled.staying += 1;
            holes.flush();
        } else {
            holes.note(at, bytes);
        }
    }
}

/// Neighbours that become one hole, in one run of a span's pages.
struct Holes<'s> {
    base: usize,
    /// Where the run begins, and where it ends.
    run: (usize, usize),
    start: usize,
    bytes: usize,
    settled: &'s mut Settled,
}

impl<'s> Holes<'s> {
    fn new(region: &Span, settled: &'s mut Settled) -> Self {
        Self { base: region.base(), run: (0, 0), start: 0, bytes: 0, settled }
    }

    /// Free memory, which follows on the hole before it if that was not flushed.
    fn note(&mut self, start: usize, bytes: usize) {
        if self.bytes == 0 {
            self.start = start;
        }
        self.bytes += bytes;
    }

    /// The hole ends here: its word is written, but for whole pages of it, which go back.
    fn flush(&mut self) {
        let (start, end) = (self.start, self.start + self.bytes);
        if core::mem::take(&mut self.bytes) == 0 {
            return;
        }
        // The first word of a run and the one behind it are never used.
        let (used_start, used_end) = (self.base + HEADER_BYTES, self.base - HEADER_BYTES);
        let is_run_start = start == self.run.0;
        let first_page = if is_run_start {
            (start - used_start) / PAGE_BYTES
        } else {
            (start - self.base).div_ceil(PAGE_BYTES)
        };
        let end_page = (end - if end == self.run.1 { used_end } else { self.base }) / PAGE_BYTES;
        if end_page <= first_page {
            return self.write(start, end);
        }
        for page in first_page..end_page {
            self.settled.free_pages |= 1 << page;
        }
        if !is_run_start {
            self.write(start, self.base + first_page * PAGE_BYTES - HEADER_BYTES);
        }
        self.write(self.base + end_page * PAGE_BYTES + HEADER_BYTES, end);
    }

    fn write(&mut self, start: usize, end: usize) {
        if start < end {
            leave_hole(&Raw, start + HEADER_BYTES, Hole { bytes: end - start, is_in_use: false });
            self.settled.hole_bytes += end - start;
        }
    }
}
