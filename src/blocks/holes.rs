//! What becomes of the free memory in an adopted span: neighbours become one hole, and pages that
//! nothing is left in go back.

use crate::base::size_class::{HEADER_BYTES, PAGE_BYTES};
use crate::base::sync::Ordering;
use crate::blocks::region::{Cell, Ids, cells, free_hole, runs};
use crate::lockfree::token::publish;
use crate::pages::shelf::{Shelf, give_adopted_pages};
use crate::pages::span::{Span, WORTH_A_WALK_DIVISOR};
use crate::pages::supply::Supply;

/// Notes that holes were left by a thread that reaps blocks, which still count. A span that has
/// room again is listed first; in another one whole pages may be free.
pub fn note_holes<S: Supply>(supply: &S, span: &Span, bytes: usize, persistent: u64) {
    let region = &span.region;
    let reaped_bytes = region.note_reaped(bytes);
    let is_roomy = region.is_roomy();
    let worth_bytes = if !is_roomy {
        span.bytes() / WORTH_A_WALK_DIVISOR
    } else {
        (span.bytes() / 2).max(PAGE_BYTES)
    };
    if reaped_bytes < worth_bytes || supply.adopted().is_pinning() {
        return;
    }
    region.forget_reaped();
    if !supply.adopted().unlist(span) {
        // It is lent, and has room when it comes back.
        region.note_room();
    } else if !is_roomy {
        region.look_again();
        publish(&Shelf(supply), span);
    } else {
        tidy_up(supply, span, persistent);
    }
}

/// Gives back the pages of an adopted span that nothing is left in. That may be all: blocks that were
/// reaped may still count, and keep the descriptor.
pub fn give_free_pages<S: Supply>(supply: &S, span: &Span, holes: &Holes) {
    let held = span.region.held_pages.load(Ordering::Relaxed);
    span.region.held_pages.store(held & !holes.free_pages, Ordering::Relaxed);
    give_adopted_pages(supply, span, held & holes.free_pages);
}

/// Looks through an adopted span that is lent to nobody, whose token the caller has: neighbouring
/// holes are joined, and the pages that nothing is left in go back.
pub fn tidy_up<S: Supply>(supply: &S, span: &Span, persistent: u64) {
    let mut holes = Holes::new(span);
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
    give_free_pages(supply, span, &holes);
    span.region.look_again();
    publish(&Shelf(supply), span);
}

/// Where a hole begins and ends, if a run of held pages does so there; else 0.
pub fn edges(span: &Span, start: usize, end: usize) -> (usize, usize) {
    let held = span.region.held_pages.load(Ordering::Relaxed);
    let is_held = |page: usize| held.checked_shr(page as u32).is_some_and(|rest| rest & 1 == 1);
    let (first, last) = (start - HEADER_BYTES - span.base(), end + HEADER_BYTES - span.base());
    let is_start = first % PAGE_BYTES == 0 && (first == 0 || !is_held(first / PAGE_BYTES - 1));
    let is_end = last % PAGE_BYTES == 0 && !is_held(last / PAGE_BYTES);
    (if is_start { start } else { 0 }, if is_end { end } else { 0 })
}

/// Neighbours that become one hole, in one run of a span's pages.
pub struct Holes {
    base: usize,
    /// Where the run begins, and where it ends.
    pub run: (usize, usize),
    start: usize,
    bytes: usize,
    /// Bytes of the holes that were written.
    pub hole_bytes: usize,
    /// Pages that nothing is left in.
    pub free_pages: u32,
}

impl Holes {
    /// None yet.
    pub fn new(span: &Span) -> Self {
        Self { base: span.base(), run: (0, 0), start: 0, bytes: 0, hole_bytes: 0, free_pages: 0 }
    }

    /// Free memory, which follows on the hole before it if that was not flushed.
    pub fn note(&mut self, start: usize, bytes: usize) {
        if self.bytes == 0 {
            self.start = start;
        }
        self.bytes += bytes;
    }

    /// The hole ends here: its word is written, but for whole pages of it, which go back.
    pub fn flush(&mut self) {
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
            self.free_pages |= 1 << page;
        }
        if !is_run_start {
            self.write(start, self.base + first_page * PAGE_BYTES - HEADER_BYTES);
        }
        self.write(self.base + end_page * PAGE_BYTES + HEADER_BYTES, end);
    }

    fn write(&mut self, start: usize, end: usize) {
        if start < end {
            free_hole(start, end - start);
            self.hole_bytes += end - start;
        }
    }
}
