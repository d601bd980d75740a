//! Where pages come from: what is free, else what is reaped, else new chunks, else everything idle.

use super::Heap;
use crate::base::fatal;
use crate::base::os;
use crate::base::size_class::HEADER_BYTES;
use crate::lockfree::header::Block;
use crate::pages::adopted::AdoptedSpans;
use crate::pages::page_heap::Taken;
use crate::pages::registry::Backing;
use crate::pages::span::{Span, SpanKind};
use crate::pages::supply::Supply;

/// Most chunks that are mapped, one after the other, to find room for a span.
const GROWTH_ATTEMPTS: usize = 4;
/// Bytes that depots must have to be reaped before the process grows: less is not worth the walk.
const REAP_WORTH_BYTES: usize = 2 * 1024 * 1024;
/// The part of the chunks that this must come to, too.
const REAP_WORTH_DIVISOR: usize = 8;

impl Heap {
    /// Reaps cold magazines before the process grows, if the depots have enough for it to be worth
    /// it.
    fn reap_before_growth(&self) -> bool {
        let held = self.store.depot_bytes();
        held >= REAP_WORTH_BYTES
            && held >= self.pages.chunk_bytes() / REAP_WORTH_DIVISOR
            && self.store.reap_some(self)
    }
}

impl Supply for Heap {
    fn take_span(
        &self,
        kind: SpanKind,
        class: usize,
        pages: usize,
        owner: u64,
    ) -> Option<Taken<'_>> {
        let take = || self.pages.take_span(kind, class, pages, owner);
        // Other threads may take all of a new chunk first, but not often.
        let grow =
            || (0..GROWTH_ATTEMPTS).find_map(|_| self.pages.grow(pages).then(take).flatten());
        let grow = || grow().inspect(|_| self.note_growth());
        take()
            .or_else(|| self.reap_before_growth().then(take).flatten())
            .or_else(grow)
            // The last resort before null: release everything idle, then look and grow once more.
            .or_else(|| {
                self.release_all_idle();
                take().or_else(grow)
            })
    }

    fn span_of_free(&self, block: Block, kind: SpanKind) -> &Span {
        let span = self.span_of_page(block);
        if span.kind() != kind {
            fatal::header_overwritten(block, 0);
        }
        span
    }

    #[inline]
    fn span_of_page(&self, block: Block) -> &Span {
        let span = match self.pages.space.registry.find(block) {
            Some(Backing::Chunk(chunk)) => chunk.span(chunk.page_of(block - HEADER_BYTES)),
            _ => None,
        };
        span.unwrap_or_else(|| fatal::header_overwritten(block, 0))
    }

    #[inline]
    fn kind_of_free_persistent(&self, block: Block, span: &Span) -> SpanKind {
        match span.kind() {
            kind @ (SpanKind::Slab | SpanKind::Region) => kind,
            _ => fatal::header_overwritten(block, 0),
        }
    }

    fn adopted(&self) -> &AdoptedSpans {
        &self.adopted
    }

    fn give_span(&self, span: &Span) {
        self.pages.give_span(span);
    }

    fn give_pages(&self, base: usize, pages: usize) {
        self.pages.give_pages(base, pages);
    }

    fn give_descriptor(&self, span: &Span) {
        self.pages.space.give_descriptor(span);
    }

    fn give_mapping(&self, span: &Span) {
        self.mappings.give(&self.pages, span, os::coarse_milliseconds());
    }
}

#[cfg(test)]
mod tests {
    use crate::base::os::injected::refuse_after;
    use crate::base::size_class::Class;
    use crate::heap::tests::{free, new_cache, new_heap, one_of_everything, one_request};
    use crate::lockfree::header::NONE;

    #[test]
    fn every_mapping_refused_in_turn_loses_nothing() {
        let mut refusals = 0;
        for calls in 0..40 {
            let heap = new_heap();
            refuse_after(calls);
            heap.set_up();
            let cache = new_cache(heap);
            let mut blocks = one_of_everything(heap, &cache);
            blocks.extend(one_request(heap));
            let refused = blocks.contains(&NONE) || blocks.len() < one_of_everything_count() + 5;
            refusals += usize::from(refused);
            refuse_after(u64::MAX);
            let again = one_of_everything(heap, &cache);
            assert!(!again.contains(&NONE), "refused after {calls} calls, it does not recover");
            assert_eq!(one_request(heap).iter().map(|&b| free(heap, &cache, b)).count(), 5);
            let live = blocks.into_iter().chain(again).filter(|&block| block != NONE);
            live.for_each(|block| free(heap, &cache, block));
            heap.check();
            heap.flush(&cache);
            heap.release_all_idle();
            assert_eq!(heap.pages.chunk_bytes(), 0, "refused after {calls} calls, chunks are lost");
            assert_eq!(heap.mappings.figures(), (0, 0), "refused after {calls} calls");
        }
        assert!((5..40).contains(&refusals), "{refusals} of 40 runs met a refusal");
    }

    fn one_of_everything_count() -> usize {
        Class::all().step_by(5).count() + 3
    }
}
