//! What lies in a region, from its start to its end.
//!
//! - **R2** A region that is not adopted is blocks from its start to `cut_end`. An adopted span,
//!   lent or not, has its `cut_end` at its base, and is its runs of held pages, if any; each is
//!   blocks and holes from its first word to its end. A hole in use is its word, blocks and holes.

use crate::base::fatal;
use crate::base::size_class::{Class, HEADER_BYTES, PAGE_BYTES};
use crate::base::sync::Ordering;
use crate::blocks::memory::Raw;
use crate::lockfree::header::{Block, Header, Memory};
use crate::lockfree::hole::{Hole, leave_hole, look};
use crate::pages::span::{MIN_HOLE_BYTES, Span};

/// Blocks of longer strides are not cut from holes, which are rarely longer than a page: one that
/// nothing is left in goes back.
pub const MAX_STRIDE_IN_HOLES: usize = PAGE_BYTES;

/// The ids that headers in a region may have.
#[derive(Clone, Copy)]
pub struct Ids {
    /// Of the request that cuts from it.
    pub request: u64,
    /// Of persistent blocks.
    pub persistent: u64,
}

impl Ids {
    /// In a span that no request cuts from.
    pub const fn of_persistent(persistent: u64) -> Self {
        Self { request: u64::MAX, persistent }
    }
}

/// What lies at one place of a region.
#[derive(Clone, Copy)]
pub enum Cell {
    /// A block of the request, live or free.
    Own(Header, Class),
    /// A persistent block, live or free.
    Persistent,
    /// The word of a hole in use; its blocks follow.
    Word(usize),
    /// A hole.
    Hole,
}

/// The runs of memory that a region has: where each begins, and where it ends.
pub fn runs(span: &Span) -> impl Iterator<Item = (usize, usize)> + use<> {
    let (base, held) = (span.base(), span.region.held_pages.load(Ordering::Relaxed));
    let cut_end = span.region.cut_end.get();
    let mut page = 0;
    core::iter::from_fn(move || {
        if held == 0 {
            let is_first = page == 0;
            page = 1;
            return (is_first && cut_end > base).then_some((base + HEADER_BYTES, cut_end));
        }
        page += (held.checked_shr(page).unwrap_or(0)).trailing_zeros();
        if page >= u32::BITS {
            return None;
        }
        let count = (held >> page).trailing_ones();
        let start = base + page as usize * PAGE_BYTES + HEADER_BYTES;
        page += count;
        Some((start, start + count as usize * PAGE_BYTES - 2 * HEADER_BYTES))
    })
}

/// What lies in one run, place by place, with its length. Fatal when a header was overwritten: the
/// walk could not go on.
pub fn cells(start: usize, end: usize, ids: Ids) -> impl Iterator<Item = (usize, usize, Cell)> {
    let mut at = start;
    core::iter::from_fn(move || {
        if at >= end {
            return None;
        }
        let block = at + HEADER_BYTES;
        let header = look(&Raw, block);
        let (cell, bytes) = match Hole::of(header) {
            Some(hole) if hole.is_in_use => (Cell::Word(hole.bytes), Hole::WORD_BYTES),
            Some(hole) => (Cell::Hole, hole.bytes),
            None => match Class::from_index(header.class_index()) {
                Some(class) if header.id() == ids.request => {
                    (Cell::Own(header, class), class.stride_bytes())
                }
                Some(class) if header.id() == ids.persistent => {
                    (Cell::Persistent, class.stride_bytes())
                }
                _ => fatal::header_overwritten(block, header.0),
            },
        };
        if bytes == 0 || at + bytes > end {
            fatal::header_overwritten(block, header.0);
        }
        let cell_start = at;
        at += bytes;
        Some((cell_start, bytes, cell))
    })
}

/// The blocks of the request in a region, each checked as it is passed.
pub fn walk(span: &Span, ids: Ids) -> impl Iterator<Item = (Block, Header, Class)> {
    runs(span).flat_map(move |(start, end)| cells(start, end, ids)).filter_map(|(at, _, cell)| {
        match cell {
            Cell::Own(header, class) => Some((at + HEADER_BYTES, header, class)),
            _ => None,
        }
    })
}

/// The same for what lies between the holes in use: those are passed as one.
pub fn cells_outside(
    start: usize,
    end: usize,
    ids: Ids,
) -> impl Iterator<Item = (usize, usize, Cell)> {
    let mut at = start;
    core::iter::from_fn(move || {
        let (start, bytes, cell) = cells(at, end, ids).next()?;
        let bytes = if let Cell::Word(hole_bytes) = cell { hole_bytes } else { bytes };
        at = start + bytes;
        Some((start, bytes, cell))
    })
}

/// The next hole of a span that has `least_bytes`, with the holes that follow on it: where it
/// begins, and its length. Nobody else takes holes of the span.
pub fn next_hole(span: &Span, least_bytes: usize, ids: Ids) -> Option<(usize, usize)> {
    loop {
        let mut short_bytes = 0;
        let found = hole_from(span, span.hole_start(), least_bytes, ids, &mut short_bytes);
        if found.is_some() {
            span.note_short_holes(short_bytes);
            return found;
        }
        if !span.looks_again(least_bytes, short_bytes) {
            return None;
        }
    }
}

/// The same, from an address on. Adds up what is too short, but worth a walk for shorter blocks.
fn hole_from(
    span: &Span,
    from: usize,
    least_bytes: usize,
    ids: Ids,
    short_bytes: &mut usize,
) -> Option<(usize, usize)> {
    let mut note_short = |bytes: usize| {
        if bytes >= MIN_HOLE_BYTES {
            *short_bytes += bytes;
        }
    };
    for (start, end) in runs(span).filter(|&(_, end)| end > from) {
        let (mut hole_start, mut hole_bytes) = (0, 0);
        for (at, bytes, cell) in cells_outside(start.max(from), end, ids) {
            match cell {
                Cell::Hole if hole_bytes > 0 => hole_bytes += bytes,
                Cell::Hole => (hole_start, hole_bytes) = (at, bytes),
                _ if hole_bytes >= least_bytes => break,
                _ => note_short(core::mem::take(&mut hole_bytes)),
            }
        }
        if hole_bytes >= least_bytes {
            return Some((hole_start, hole_bytes));
        }
        note_short(hole_bytes);
    }
    None
}

/// Leaves free memory: a hole that begins at `start`.
pub fn free_hole(start: usize, bytes: usize) {
    leave_hole(&Raw, start + HEADER_BYTES, Hole { bytes, is_in_use: false });
}

/// Takes a hole, whose blocks are behind its word from now on. By the lessee of the span.
pub fn take_hole(span: &Span, start: usize, bytes: usize) {
    let block = start + HEADER_BYTES;
    Raw.set_link(block, span.region.last_taken.get() as usize);
    leave_hole(&Raw, block, Hole { bytes, is_in_use: true });
    span.region.last_taken.set((start - span.base()) as u32);
}

/// Returns the holes that the lessee of a span took, which are its to settle: where each begins,
/// and its length.
pub fn release_taken(span: &Span) -> impl Iterator<Item = (usize, usize)> + use<'_> {
    let mut next = span.region.last_taken.replace(0) as usize;
    core::iter::from_fn(move || {
        if next == 0 {
            return None;
        }
        let start = span.base() + next;
        let header = Header(Raw.header(start + HEADER_BYTES).load(Ordering::Relaxed));
        let Some(hole) = Hole::of(header).filter(|hole| hole.is_in_use) else {
            fatal::header_overwritten(start + HEADER_BYTES, header.0);
        };
        next = Raw.link(start + HEADER_BYTES);
        Some((start, hole.bytes))
    })
}
