//! Free pages of slabs whose other blocks live go back to the system: which they are. The steps are
//! in `lockfree/uncut` (A6).

use crate::base::os;
use crate::base::size_class::{Class, HEADER_BYTES};
use crate::base::sync::Ordering;
use crate::blocks::memory::Raw;
use crate::lockfree::depot::Magazine;
use crate::lockfree::header::{Block, Header, LIVE, Memory, NONE, linked};
use crate::lockfree::uncut::{FreePages, Pages};
use crate::pages::span::{Span, SpanKind};
use crate::persistent::slab_pages::{MAX_PAGES, SlabPages, runs_in};
use core::ops::Range;

/// A mask of one page.
fn bit(page: usize) -> u128 {
    1 << page
}

/// Whether a payload is in a block of a slab that was purged and not cut since: its header reads as
/// zero. Only used to word a fatal error.
pub fn is_purged(span: &Span, payload: Block) -> bool {
    let class = Class::from_index(span.class_index()).filter(|class| !class.is_large());
    let Some(class) = class.filter(|_| span.kind() == SpanKind::Slab) else { return false };
    if payload < span.base() + 2 * HEADER_BYTES {
        return false;
    }
    let pages = SlabPages::new(class, span.base(), span.end(), os::page_bytes());
    let number = pages.number(payload);
    number < class.slab_count() && span.slab.uncut.was_purged(number, &pages)
}

/// Whether a slab in hand seems to have a page that could be purged: no block of it is live. Blocks
/// that are free may be out all the same, so this is only a hint, which costs less than a walk along
/// the list. Adds the blocks that it looked at.
pub fn has_candidates(span: &Span, pages: &SlabPages, looked: &mut u32) -> bool {
    let uncut = span.slab.uncut.pages();
    let is_live = |number: u32| {
        let header = || Header(Raw.header(pages.block(number)).load(Ordering::Relaxed));
        !span.slab.uncut.has(number, pages) && header().has(LIVE)
    };
    (0..pages.page_count()).any(|page| {
        *looked += 1;
        uncut & bit(page) == 0 && pages.is_inside(page) && {
            let mut blocks = pages.blocks_across(page);
            let count = blocks.len();
            let has_live = blocks.any(is_live);
            *looked += (count - blocks.len()) as u32;
            count > 0 && !has_live
        }
    })
}

/// Returns what can go of a slab in hand, whose list begins with `head`.
pub fn free_pages(span: &Span, pages: &SlabPages, head: Block) -> FreePages {
    let purged = purgeable(span, pages, head);
    let of_blocks = runs_in(purged).flatten().filter(|&page| has_headers(pages, page));
    let gone = of_blocks.fold(0, |mask, page| mask | bit(page));
    let (range, folded) = fold(span.slab.uncut.range(), pages, gone);
    FreePages { purged, uncut: gone | folded, range }
}

/// Purges pages of a slab. Returns their bytes.
///
/// # Safety
/// All of them are in the slab, and nobody touches what is in them.
pub unsafe fn purge(pages: &SlabPages, purged: u128) -> usize {
    let mut bytes = 0;
    for run in runs_in(purged) {
        let (start, end) = (pages.address(run.start), pages.address(run.end));
        // SAFETY: the caller's contract.
        unsafe { os::purge(start, end - start) };
        bytes += end - start;
    }
    bytes
}

fn has_headers(pages: &SlabPages, page: usize) -> bool {
    !pages.blocks_in(page..page + 1).is_empty()
}

/// The pages in which every block is on the list or uncut, and in which no block's link is whose
/// header stays.
fn purgeable(span: &Span, pages: &SlabPages, head: Block) -> u128 {
    let uncut = span.slab.uncut.pages();
    let mut free_counts = [0_u16; MAX_PAGES];
    let mut note = |block: Block| {
        pages.pages_of(block).for_each(|page| free_counts[page] += 1);
    };
    linked(&Raw, head).for_each(&mut note);
    let of_pages = runs_in(uncut).flat_map(|run| pages.blocks_in(run));
    of_pages.chain(span.slab.uncut.range()).for_each(|number| note(pages.block(number)));
    let mut purgeable = 0;
    for page in (0..pages.page_count()).filter(|&page| pages.is_inside(page)) {
        let is_free = usize::from(free_counts[page]) == pages.blocks_across(page).len();
        let before_stays = page == 0 || (purgeable | uncut) & bit(page - 1) == 0;
        if is_free && !(before_stays && pages.splits_a_block(page)) {
            purgeable |= bit(page);
        }
    }
    purgeable
}

/// Leaves those blocks of a list that satisfy `stays`, in their order.
pub fn keep(head: Block, stays: impl Fn(Block) -> bool) -> Magazine {
    let mut kept = Magazine::EMPTY;
    let mut last = NONE;
    for block in linked(&Raw, head).filter(|&block| stays(block)) {
        match last {
            NONE => kept.head = block,
            last => Raw.set_link(last, block),
        }
        last = block;
        kept.count += 1;
    }
    if last != NONE {
        Raw.set_link(last, NONE);
    }
    kept
}

/// Marks the pages of a range as uncut, but for one that is cut in part and stays. Returns what is
/// left of the range, and the pages.
fn fold(range: Range<u32>, pages: &SlabPages, gone: u128) -> (Range<u32>, u128) {
    if range.is_empty() {
        return (0..0, 0);
    }
    let first = pages.page_of(pages.block(range.start));
    let end = pages.page_of(pages.block(range.end - 1)) + 1;
    let is_whole = pages.first_in(first) == range.start || gone & bit(first) != 0;
    let from = if is_whole { first } else { first + 1 };
    let folded = (from..end).filter(|&page| has_headers(pages, page));
    let rest = if is_whole { 0..0 } else { range.start..pages.first_in(from) };
    (rest, folded.fold(0, |mask, page| mask | bit(page)))
}
