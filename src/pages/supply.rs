//! What other wings ask for pages: the page heap and the mappings, and whatever their owner tries
//! before it reports that there is no memory.

use crate::lockfree::header::Block;
use crate::pages::adopted::AdoptedSpans;
use crate::pages::page_heap::Taken;
use crate::pages::span::{Span, SpanKind};

/// Where spans come from and go back to.
pub trait Supply {
    /// Takes a span: from free pages, else reaped, else new. `None`: the system has no more memory.
    fn take_span(
        &self,
        kind: SpanKind,
        class: usize,
        pages: usize,
        owner: u64,
    ) -> Option<Taken<'_>>;
    /// Returns the span of a block that is free and on a list; fatal if it is not of this kind,
    /// because then a link was overwritten.
    fn span_of_free(&self, block: Block, kind: SpanKind) -> &Span;
    /// Returns the span of a block that is free and on a list, without looking at it: it may be of
    /// any kind. Fatal if there is none, because then a link was overwritten.
    fn span_of_page(&self, block: Block) -> &Span;
    /// Returns of what kind the span is that `span_of_page` found for a persistent block: a slab or a
    /// region; fatal if it is neither.
    fn kind_of_free_persistent(&self, block: Block, span: &Span) -> SpanKind;
    /// The adopted spans that are lent to nobody.
    fn adopted(&self) -> &AdoptedSpans;
    /// Gives a span of a chunk back.
    fn give_span(&self, span: &Span);
    /// Gives back some pages of a span.
    fn give_pages(&self, base: usize, pages: usize);
    /// Gives back a descriptor whose pages are gone.
    fn give_descriptor(&self, span: &Span);
    /// Gives back the mapping of a mapped block.
    fn give_mapping(&self, span: &Span);
}
