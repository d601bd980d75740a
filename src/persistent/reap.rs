//! Free blocks on their way back: where they lie, and what becomes of those in adopted spans.

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

/// Returns the blocks of a magazine that lie in adopted spans, or in regions whose request is open,
/// to them, and passes the others on with their spans.
pub fn reap_adopted<'s, S: Supply>(
    class: Class,
    blocks: impl Iterator<Item = Block>,
    supply: &'s S,
    mut pass_on: impl FnMut(Block, &'s Span),
) {
    // Neighbours mostly come one after the other: they are counted off together.
    let mut run: Option<Run<'_>> = None;
    for block in blocks {
        let page = (block - HEADER_BYTES) / PAGE_BYTES;
        if let Some(run) = run.as_mut().filter(|run| run.page == page) {
            free_hole(block - HEADER_BYTES, class.stride_bytes());
            run.count += 1;
            continue;
        }
        let span = supply.span_of_free_persistent(block);
        if span.kind() == SpanKind::Slab {
            pass_on(block, span);
            continue;
        }
        let count = match run.take() {
            Some(run) if core::ptr::eq(run.span, span) => run.count,
            other => {
                finish_run(class, other, supply);
                0
            }
        };
        let persistent = Header(Raw.header(block).load(Ordering::Relaxed)).id();
        free_hole(block - HEADER_BYTES, class.stride_bytes());
        run = Some(Run { span, page, count: count + 1, persistent });
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
