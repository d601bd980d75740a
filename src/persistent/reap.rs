//! Free blocks on their way back: where they lie, and what becomes of those in adopted spans.

use crate::base::prefetch::prefetch;
use crate::base::size_class::{Class, HEADER_BYTES, PAGE_BYTES};
use crate::base::sync::Ordering;
use crate::blocks::holes::note_holes;
use crate::blocks::memory::Raw;
use crate::blocks::region::free_hole;
use crate::lockfree::header::{Block, Header, Memory};
use crate::lockfree::token::reap;
use crate::pages::shelf::Shelf;
use crate::pages::span::{Span, SpanKind};
use crate::pages::supply::Supply;

/// Most blocks that are reaped together.
const BATCH_COUNT: usize = 64;

/// Blocks, each with the span that it is in.
pub type Batch<'s> = [Option<(Block, &'s Span)>];

/// Returns those blocks to adopted spans, or to regions whose request is open, that lie in such, and
/// passes the others on with their slabs, some at a time.
pub fn reap_adopted<'s, S: Supply>(
    class: Class,
    mut blocks: impl Iterator<Item = Block>,
    supply: &'s S,
    mut pass_on: impl FnMut(&Batch<'s>),
) {
    let mut batch = [None; BATCH_COUNT];
    // Neighbours mostly come one after the other: they are counted off together.
    let mut run: Option<Run<'_>> = None;
    loop {
        // All descriptors are asked for before the first is looked at: after frees in random order
        // none is in the processor's caches.
        let mut count = 0;
        for (place, block) in batch.iter_mut().zip(blocks.by_ref()) {
            let span = supply.span_of_page(block);
            prefetch(span);
            *place = Some((block, span));
            count += 1;
        }
        if count == 0 {
            break;
        }
        for place in &mut batch[..count] {
            let Some((block, span)) = *place else { continue };
            if supply.kind_of_free_persistent(block, span) == SpanKind::Slab {
                continue;
            }
            *place = None;
            let page = (block - HEADER_BYTES) / PAGE_BYTES;
            let header = Header(Raw.header(block).load(Ordering::Relaxed));
            free_hole(block - HEADER_BYTES, class.stride_bytes());
            match run.as_mut().filter(|run| run.page == page || core::ptr::eq(run.span, span)) {
                Some(run) => {
                    run.count += 1;
                    run.page = page;
                }
                None => {
                    let next = Run { span, page, count: 1, persistent: header.id() };
                    finish_run(class, run.replace(next), supply);
                }
            }
        }
        pass_on(&batch[..count]);
    }
    finish_run(class, run, supply);
}

/// Blocks of one span that were reaped and still count. (A page that the span gave back may be
/// another span's, so one is known by its pages only.)
struct Run<'s> {
    span: &'s Span,
    page: usize,
    count: u64,
    /// The id of persistent blocks.
    persistent: u64,
}

fn finish_run<S: Supply>(class: Class, run: Option<Run<'_>>, supply: &S) {
    if let Some(Run { span, count, persistent, .. }) = run.filter(|run| run.count > 0) {
        note_holes(supply, span, count as usize * class.stride_bytes(), persistent);
        // Nothing of the span is touched afterwards.
        reap(&Shelf(supply), span, count);
    }
}
