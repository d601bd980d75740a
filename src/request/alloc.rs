//! Where a block comes from when the lane's bin and range have none: what comes back first, then
//! what a sweep joins, then new memory.

use super::{Host, Shortage};
use crate::base::size_class::{Class, FIRST_PAYLOAD_OFFSET, HEADER_BYTES, PAGE_BYTES, pages_for};
use crate::base::sync::Ordering;
use crate::blocks::memory::Raw;
use crate::lockfree::header::{Block, Header, LARGE, LIVE, Memory, NONE};
use crate::pages::page_heap::Taken;
use crate::pages::span::{Span, SpanKind};
use crate::request::control::Control;
use crate::request::footprint::Bound;
use crate::request::lane::{Lane, shared_cap};
use crate::request::sweep;

/// Before a request is marked its free blocks are swept if they are at least this part of its
/// regions: near the mark that may be at every slow path.
const SOFT_WORTH_DIVISOR: usize = 32;

impl Control {
    /// A block that the lane's bins and region have no room for, and whether its payload reads as
    /// zero. `asked_bytes` is what the caller wants it for.
    #[cold]
    pub fn alloc_refilling<S: Host>(
        &self,
        lane: &Lane,
        class: Class,
        asked_bytes: usize,
        supply: &S,
    ) -> Result<(Block, bool), Shortage> {
        if class.is_large() {
            return self.alloc_large(lane, class, asked_bytes, supply);
        }
        let block = self.alloc_shared(lane, class, asked_bytes, supply);
        if block != NONE {
            return Ok((block, false));
        }
        if !self.footprint.is_over_limit(pages_for(class.stride_bytes() + HEADER_BYTES)) {
            return Err(Shortage::Memory);
        }
        self.footprint.note_refusal(asked_bytes);
        Err(Shortage::Limit)
    }

    fn alloc_shared<S: Host>(
        &self,
        lane: &Lane,
        class: Class,
        asked_bytes: usize,
        supply: &S,
    ) -> Block {
        if !self.has_one_lane() {
            lane.bins.bin(class).set_cap(shared_cap(class));
            if self.exchange.take_handed_on(lane, class, &self.strays.pending) {
                return lane.bins.alloc(class);
            }
        }
        if self.strays.drain_into(lane) {
            let block = lane.bins.alloc(class);
            if block != NONE {
                return block;
            }
        }
        if self.adopt_piece(lane, class) {
            return lane.bins.alloc(class);
        }
        if sweep::is_due(self, lane) {
            sweep::sweep(self, lane, supply);
            if self.has_free(lane, class) {
                return lane.bins.alloc(class);
            }
        }
        if self.adopt_region(lane, class, asked_bytes, Bound::Soft, supply) {
            return lane.bins.alloc(class);
        }
        // At the mark, at the limit or out of memory: what is free inside the request comes first,
        // then what it may have is looked at once more.
        let worth_bytes = self.region_bytes() / SOFT_WORTH_DIVISOR;
        let is_swept = self.reclaim_at_bound(lane, worth_bytes, supply).is_some();
        if self.has_free(lane, class)
            || self.adopt_region(lane, class, asked_bytes, Bound::Hard, supply)
        {
            return lane.bins.alloc(class);
        }
        // Before null any free block is worth it.
        if !is_swept
            && self.reclaim_at_bound(lane, class.stride_bytes(), supply).is_some()
            && (self.has_free(lane, class)
                || self.adopt_region(lane, class, asked_bytes, Bound::Hard, supply))
        {
            return lane.bins.alloc(class);
        }
        NONE
    }

    /// Whether the lane has a free block of this class, or something to cut one from.
    fn has_free(&self, lane: &Lane, class: Class) -> bool {
        lane.bins.bin(class).count() > 0 || self.adopt_piece(lane, class)
    }

    /// Cuts from a new region from now on. `false`: over the bound, or no memory.
    fn adopt_region<S: Host>(
        &self,
        lane: &Lane,
        class: Class,
        asked_bytes: usize,
        bound: Bound,
        supply: &S,
    ) -> bool {
        let Some(region) = self.take_region(lane, class.stride_bytes(), asked_bytes, bound, supply)
        else {
            return false;
        };
        self.pace.note_range(region.bytes());
        lane.adopt(region);
        true
    }

    /// Cuts from the inside of a piece from now on, if there is one.
    fn adopt_piece(&self, lane: &Lane, class: Class) -> bool {
        let Some(piece) = lane.adopt_piece(class) else { return false };
        self.pace.note_range(piece.stride_bytes());
        true
    }

    /// A region that is charged for (Q2): one of an earlier request, else a long one, else one that
    /// is just long enough.
    fn take_region<'l, S: Host>(
        &'l self,
        lane: &'l Lane,
        stride: usize,
        asked_bytes: usize,
        bound: Bound,
        supply: &'l S,
    ) -> Option<&'l Span> {
        if let Some(span) = lane.take_warm(stride) {
            if self.footprint.charge(Some(lane), span.bytes(), bound) {
                self.footprint.note_taken(asked_bytes);
                span.region.cut_end.set(span.base() + HEADER_BYTES);
                span.region.count.arm();
                return Some(span);
            }
            lane.put_warm(span);
        }
        let take = |pages: usize| {
            if !self.footprint.charge(Some(lane), pages * PAGE_BYTES, bound) {
                return None;
            }
            let taken = supply.take_span(SpanKind::Region, 0, pages, self.address());
            match taken {
                Some(_) => self.footprint.note_taken(asked_bytes),
                None => self.footprint.refund(pages * PAGE_BYTES),
            }
            taken
        };
        let (long, short) = (lane.next_region_pages(stride), pages_for(stride + HEADER_BYTES));
        Some(take(long).or_else(|| (short < long).then(|| take(short)).flatten())?.span)
    }

    /// A block with a span of its own, and whether its payload reads as zero.
    fn alloc_large<S: Host>(
        &self,
        lane: &Lane,
        class: Class,
        asked_bytes: usize,
        supply: &S,
    ) -> Result<(Block, bool), Shortage> {
        let pages = class.slab_pages();
        let bytes = pages * PAGE_BYTES;
        if !self.charge_or_reclaim(lane, bytes, asked_bytes, supply) {
            let has_limit = self.limit().is_some();
            return Err(if has_limit { Shortage::Limit } else { Shortage::Memory });
        }
        let taken = supply.take_span(SpanKind::Large, class.index(), pages, self.address());
        let Some(Taken { span, zeroed }) = taken else {
            self.footprint.refund(bytes);
            return Err(Shortage::Memory);
        };
        let block = span.base() + FIRST_PAYLOAD_OFFSET;
        let header = Header::tag(self.id(), LIVE | LARGE).with_class(class.index());
        Raw.header(block).store(header.0, Ordering::Relaxed);
        self.link_large(span, bytes, supply);
        self.footprint.note_taken(asked_bytes);
        Ok((block, zeroed))
    }
}
