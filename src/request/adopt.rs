//! Regions of a request that is over, in which blocks stay: live ones are adopted, what lies
//! between them are holes, pages without a block go back, and the span is published for others to
//! cut from.

use super::Host;
use super::control::Control;
use super::lane::{Lane, Out};
use crate::base::size_class::{HEADER_BYTES, PAGE_BYTES};
use crate::base::sync::Ordering;
use crate::blocks::holes::{Holes, edges, give_free_pages};
use crate::blocks::memory::Raw;
use crate::blocks::region::{Cell, Ids, cells, free_hole, release_taken};
use crate::lockfree::header::{Header, LIVE};
use crate::lockfree::hole::Hole;
use crate::lockfree::lifetime::{Adoption, adopt_at_close};
use crate::lockfree::token::publish;
use crate::pages::shelf::{Shelf, give_pages_where};
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
    fn note_span(&mut self, settled: &Settled, held: u32, hole_bytes: usize) {
        if settled.adopted > 0 {
            self.span_bytes += held.count_ones() as usize * PAGE_BYTES;
            self.reusable_bytes += hole_bytes;
        }
    }
}

/// What one span has.
#[derive(Default)]
struct Settled {
    adopted: usize,
    /// Persistent blocks, adopted now or before.
    staying: usize,
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
    let mut holes = Holes::new(region);
    let start = region.base() + HEADER_BYTES;
    holes.run = (start, end);
    settle_run(control.ids(), (start, cut_end), survey, &mut settled, &mut holes);
    holes.note(cut_end, end - cut_end);
    holes.flush();
    survey.adopted.blocks += settled.adopted as isize;
    // Blocks that were persisted and reaped may still count: then the last one gives the span back.
    if settled.staying == 0 && !region.region.has_persisted.load(Ordering::Relaxed) {
        return release_region(control, supply, lane, region);
    }
    control.warm.let_go(region, supply);
    let all = u32::MAX >> (u32::BITS as usize - region.bytes() / PAGE_BYTES);
    let held = all & !holes.free_pages;
    region.region.held_pages.store(held, Ordering::Relaxed);
    region.region.cut_end.set(region.base());
    give_pages_where(supply, region, holes.free_pages);
    survey.note_span(&settled, held, holes.hole_bytes);
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
            let mut holes = Holes::new(span);
            for (start, bytes) in taken {
                let end = start + bytes;
                holes.run = edges(span, start, end);
                let (adopted, hole_bytes) = (settled.adopted, holes.hole_bytes);
                holes.note(start, Hole::WORD_BYTES);
                let inside = (start + Hole::WORD_BYTES, end);
                settle_run(control.ids(), inside, survey, &mut settled, &mut holes);
                holes.flush();
                if settled.adopted > adopted {
                    survey.span_bytes += bytes;
                    survey.reusable_bytes += holes.hole_bytes - hole_bytes;
                }
            }
            survey.adopted.blocks += settled.adopted as isize;
            give_free_pages(supply, span, &holes);
            span.region.has_persisted.store(false, Ordering::Relaxed);
            span.region.count.add(settled.adopted as u64);
        }
        _ => {
            for (start, bytes) in taken {
                free_hole(start, bytes);
            }
        }
    }
    span.set_owner(0);
    publish(&Shelf(supply), span);
}

/// Adopts what is live from `start` to `end`, and notes what is not as holes.
fn settle_run(
    ids: Ids,
    (start, end): (usize, usize),
    survey: &mut Survey,
    settled: &mut Settled,
    holes: &mut Holes,
) {
    let persistent = Header::tag(ids.persistent, LIVE);
    for (at, bytes, cell) in cells(start, end, ids) {
        let stays = match cell {
            Cell::Own(header, _) if header.has(LIVE) && survey.adopts => {
                survey.left = survey.left.saturating_sub(1);
                let is_adopted =
                    adopt_at_close(&Raw, at + HEADER_BYTES, persistent) == Adoption::Adopted;
                if is_adopted {
                    survey.adopted.bytes += bytes as isize;
                    settled.adopted += 1;
                }
                is_adopted
            }
            Cell::Own(..) | Cell::Word(_) | Cell::Hole => false,
            Cell::Persistent => true,
        };
        if stays {
            settled.staying += 1;
            holes.flush();
        } else {
            holes.note(at, bytes);
        }
    }
}
