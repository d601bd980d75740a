//! Persistent blocks from the holes of adopted spans.

use crate::base::size_class::{Class, HEADER_BYTES};
use crate::base::sync::Ordering;
use crate::blocks::memory::Raw;
use crate::blocks::region::{Ids, MAX_STRIDE_IN_HOLES, free_hole, next_hole};
use crate::lockfree::depot::Magazine;
use crate::lockfree::header::{Header, Memory};
use crate::lockfree::token::publish;
use crate::pages::shelf::Shelf;
use crate::pages::span::{MIN_HOLE_BYTES, Span};
use crate::pages::supply::Supply;

/// Adopted spans that are looked through before a new slab is taken.
const MAX_SPANS: usize = 2;

/// Cuts at most `want` free blocks of a class, which have this header.
pub fn cut<S: Supply>(class: Class, want: u32, free_header: Header, supply: &S) -> Magazine {
    let mut cut = Magazine::EMPTY;
    if class.stride_bytes() > MAX_STRIDE_IN_HOLES {
        return cut;
    }
    for _ in 0..MAX_SPANS {
        if cut.count == want {
            break;
        }
        // The span is this thread's until it is published.
        let Some(span) = supply.adopted().take(least_bytes(class)) else { break };
        let count_before = cut.count;
        cut_from(span, class, want, free_header, &mut cut);
        span.region.count.add((cut.count - count_before) as u64);
        publish(&Shelf(supply), span);
    }
    cut
}

fn least_bytes(class: Class) -> usize {
    class.stride_bytes().max(MIN_HOLE_BYTES)
}

fn cut_from(span: &Span, class: Class, want: u32, free_header: Header, cut: &mut Magazine) {
    let stride = class.stride_bytes();
    let ids = Ids::of_persistent(free_header.id());
    while cut.count < want {
        let Some((start, bytes)) = next_hole(span, least_bytes(class), ids) else { return };
        let count = (bytes / stride).min((want - cut.count) as usize);
        let end = start + count * stride;
        if end < start + bytes {
            free_hole(end, start + bytes - end);
        }
        for at in (start..end).step_by(stride).rev() {
            let block = at + HEADER_BYTES;
            Raw.header(block).store(free_header.0, Ordering::Relaxed);
            Raw.set_link(block, cut.head);
            *cut = Magazine { head: block, count: cut.count + 1 };
        }
        span.note_hole(end - start, end);
    }
}
