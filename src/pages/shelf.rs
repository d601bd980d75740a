//! Adopted spans between their store and the page heap.

use crate::base::size_class::PAGE_BYTES;
use crate::base::sync::Ordering;
use crate::lockfree::token::{AdoptedCount, Store};
use crate::pages::span::Span;
use crate::pages::supply::Supply;

/// The store as `lockfree/token` knows it, with where a span goes that nothing is left of.
pub struct Shelf<'s, S>(pub &'s S);

impl<S: Supply> Store for Shelf<'_, S> {
    type Span = Span;

    fn count<'s>(&self, span: &'s Span) -> &'s AdoptedCount {
        &span.region.count
    }

    fn list_unless(&self, span: &Span, is_empty: impl FnOnce() -> bool) -> bool {
        self.0.adopted().list_unless(span, is_empty)
    }

    fn unlist(&self, span: &Span) -> bool {
        self.0.adopted().unlist(span)
    }

    fn give_back(&self, span: &Span) {
        let held = span.region.held_pages.load(Ordering::Relaxed);
        give_adopted_pages(self.0, span, held);
        self.0.give_descriptor(span);
    }
}

/// Gives those pages of an adopted span back that have a bit.
pub fn give_adopted_pages<S: Supply>(supply: &S, span: &Span, mask: u32) {
    give_pages_where(supply, span, mask);
    supply.adopted().note_given(mask.count_ones() as usize * PAGE_BYTES);
}

/// Gives those pages of a region back that have a bit.
pub fn give_pages_where<S: Supply>(supply: &S, region: &Span, mask: u32) {
    let pages = region.bytes() / PAGE_BYTES;
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
