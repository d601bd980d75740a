//! Blocks with pages of their own grow and shrink where they are.

use super::Heap;
use super::found::{Found, Owner, Place};
use crate::base::size_class::{Class, FIRST_PAYLOAD_OFFSET, PAGE_BYTES, pages_for};
use crate::base::sync::Ordering;
use crate::blocks::memory::Raw;
use crate::lockfree::header::{Block, Memory, TRACED};
use crate::pages::mappings::needed_bytes;
use crate::pages::page_heap::MAX_SPAN_PAGES;
use crate::pages::span::Span;
use crate::request::Shortage;
use crate::request::lane::Lane;

impl Heap {
    /// Makes a large or mapped block longer or shorter where it is, or moves its pages; the block,
    /// or what stands in the way: only a limit may give way. The block's alignment is at most 16.
    /// `lane` is the lane of the block's request that the caller is in, if any. A caller outside
    /// visits the request meanwhile, if the block has one.
    pub fn resize_own_pages(
        &self,
        found: &Found<'_>,
        lane: Option<&Lane>,
        new_size: usize,
    ) -> Result<Block, Shortage> {
        let span = found.span;
        let class = Class::of(new_size);
        let wanted = match (found.place, class) {
            (Place::Mapped(_), None) => needed_bytes(new_size, 1),
            (Place::Slab(old) | Place::Large(old, _), Some(class)) => {
                (old.is_large() && class.is_large()).then(|| class.slab_pages() * PAGE_BYTES)
            }
            _ => None,
        };
        let wanted = wanted.filter(|_| !found.header.has(TRACED)).ok_or(Shortage::Memory)?;
        let control = found.owner().map(Owner::control);
        let growth = wanted.saturating_sub(span.own.charged_bytes.get());
        if let Some(control) = control {
            if !self.may_fit(growth) {
                return Err(Shortage::Memory);
            }
            if growth > 0 && !control.charge_growth(lane, growth, new_size, self) {
                return Err(Shortage::Limit);
            }
        }
        let is_resized = match class {
            None => self.resize_mapping(span, new_size),
            Some(class) => self.resize_span(found, class),
        };
        if let Some(control) = control {
            if !is_resized {
                control.refund(growth);
            } else {
                // A span that shrinks keeps its pages.
                let charged = if class.is_none() { wanted } else { span.bytes() };
                control.recharge_large(span, growth, charged);
                control.note_taken(new_size);
            }
        }
        if is_resized { Ok(span.base() + FIRST_PAYLOAD_OFFSET) } else { Err(Shortage::Memory) }
    }

    fn resize_mapping(&self, span: &Span, new_size: usize) -> bool {
        self.mappings.resize(&self.pages, span, new_size) && {
            span.mapping.asked_bytes.set(new_size);
            self.note_growth();
            true
        }
    }

    fn resize_span(&self, found: &Found<'_>, class: Class) -> bool {
        let pages = class.slab_pages();
        // A block that shrinks keeps its pages unless more than half of them would go unused.
        let have = pages_for(found.span.bytes());
        if pages > MAX_SPAN_PAGES || pages * 2 < have || !self.pages.extend(found.span, pages) {
            return false;
        }
        found.span.set_class(class.index());
        let header = found.header.with_class(class.index());
        Raw.header(found.block).store(header.0, Ordering::Relaxed);
        true
    }
}

#[cfg(test)]
mod tests {
    use crate::base::size_class::Class;
    use crate::heap::tests::{free, new_cache, new_heap};

    #[test]
    fn spans_of_one_block_grow_where_they_stand() {
        let heap = new_heap();
        heap.set_up();
        let cache = new_cache(heap);
        let block = heap.alloc_persistent(Some(&cache), Class::of(50_000).unwrap()).block;
        assert_eq!(heap.resize_own_pages(&heap.find(block), None, 500_000), Ok(block));
        let found = heap.judge(block, 500_000, 8);
        assert!(found.span.bytes() >= 500_000);
        assert_eq!(heap.resize_own_pages(&found, None, 400_000), Ok(block));
        free(heap, &cache, block);
        heap.flush(&cache);
        heap.release_all_idle();
        assert_eq!(heap.pages.chunk_bytes(), 0);
    }
}
