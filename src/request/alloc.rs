//! Where a block comes from when the lane's bin is empty and its range too short: what came back
//! first, then what a sweep joins, then new memory.

use super::{Host, Shortage};
use crate::base::size_class::{Class, FIRST_PAYLOAD_OFFSET, HEADER_BYTES, PAGE_BYTES, pages_for};
use crate::base::sync::Ordering;
use crate::blocks::memory::Raw;
use crate::blocks::region::{MAX_STRIDE_IN_HOLES, free_hole, next_hole, take_hole};
use crate::lockfree::header::{Block, Header, LARGE, LIVE, Memory, NONE};
use crate::lockfree::hole::Hole;
use crate::pages::page_heap::Taken;
use crate::pages::span::{IS_FOR_LONG, MIN_HOLE_BYTES, Span, SpanKind};
use crate::request::control::Control;
use crate::request::footprint::Bound;
use crate::request::lane::{Lane, shared_cap};
use crate::request::long_range::is_long;
use crate::request::sweep;

/// The part of its regions that must be free for a request to be swept before it is marked: near
/// the mark, every slow path may ask.
const SOFT_WORTH_DIVISOR: usize = 32;

/// Adopted spans that are looked at before a new region is taken.
const MAX_BORROWED: usize = 3;

impl Control {
    /// Allocates a block that the lane's bins and range have no room for; also returns whether its
    /// payload reads as zero. `asked_bytes` is the size that the caller asked for.
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
        let bytes = pages_for(class.stride_bytes() + HEADER_BYTES) * PAGE_BYTES;
        let Some(level) = self.footprint.level_over_limit(bytes) else {
            return Err(Shortage::Memory);
        };
        self.footprint.note_refusal(level, asked_bytes);
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
            let (bin, cap) = (lane.bins.bin(class), shared_cap(class));
            bin.set_cap(cap);
            bin.renew(cap);
            if self.exchange.take_handed_on(lane, class, self.stub().pending()) {
                return lane.bins.alloc(class);
            }
        }
        if is_long(class) {
            let block = lane.cut_long(class);
            if block != NONE {
                return block;
            }
        }
        if self.stub().drain_into(lane) {
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
        let block = self.cut_new(lane, class, asked_bytes, Bound::Soft, supply);
        if block != NONE {
            return block;
        }
        // At the mark, at the limit or out of memory: use what is free inside the request first,
        // then try for a region once more.
        let worth_bytes = self.region_bytes() / SOFT_WORTH_DIVISOR;
        let is_swept = self.reclaim_at_bound(lane, worth_bytes, supply).is_some();
        let last_try = || match self.has_free(lane, class) {
            true => lane.bins.alloc(class),
            false => self.cut_new(lane, class, asked_bytes, Bound::Hard, supply),
        };
        let block = last_try();
        if block != NONE {
            return block;
        }
        // Before null is returned, any free block is worth a sweep.
        let is_worth_it =
            !is_swept && self.reclaim_at_bound(lane, class.stride_bytes(), supply).is_some();
        if is_worth_it { last_try() } else { NONE }
    }

    /// Whether the lane has a free block of this class, or a piece to cut one from, which it
    /// adopts.
    fn has_free(&self, lane: &Lane, class: Class) -> bool {
        lane.bins.bin(class).count() > 0 || self.adopt_piece(lane, class)
    }

    /// Cuts a block from new memory: a warm region, a hole of an adopted span, a fresh region. What is
    /// taken is the range from now on, or for a long block what these are cut from beside it. `NONE`:
    /// over the bound, or no memory.
    fn cut_new<S: Host>(
        &self,
        lane: &Lane,
        class: Class,
        asked_bytes: usize,
        bound: Bound,
        supply: &S,
    ) -> Block {
        let (stride, is_long) = (class.stride_bytes(), is_long(class));
        // A region that was for long blocks stays whole as long as there are holes.
        let suits = |span: &Span| span.region.is(IS_FOR_LONG) == is_long;
        let mut region = self.take_warm(lane, stride, suits, asked_bytes, bound);
        if region.is_none() {
            let hole = self.take_a_hole(lane, stride, is_long, asked_bytes, bound, supply);
            match hole {
                Some((start, _)) if is_long => return lane.cut_from_own_hole(start, class),
                Some((start, end)) => {
                    lane.cut_from_hole(start, end);
                    return lane.bins.alloc(class);
                }
                None => region = self.take_any(lane, stride, asked_bytes, bound, supply),
            }
        }
        let Some(region) = region else { return NONE };
        self.pace.note_range(region.bytes());
        if is_long {
            lane.adopt_long(region);
            return lane.cut_long(class);
        }
        lane.adopt(region);
        lane.bins.alloc(class)
    }

    /// A warm region that suited something else, or a fresh one.
    fn take_any<'l, S: Host>(
        &'l self,
        lane: &'l Lane,
        stride: usize,
        asked_bytes: usize,
        bound: Bound,
        supply: &'l S,
    ) -> Option<&'l Span> {
        let warm = self.take_warm(lane, stride, |_| true, asked_bytes, bound);
        warm.or_else(|| self.take_fresh(lane, stride, asked_bytes, bound, supply))
    }

    /// Makes the lane cut from the inside of a piece, if there is one.
    fn adopt_piece(&self, lane: &Lane, class: Class) -> bool {
        let Some(piece) = lane.adopt_piece(class) else { return false };
        self.pace.note_range(piece.stride_bytes());
        true
    }

    /// A region of an earlier request, charged for (Q2).
    fn take_warm<'l>(
        &self,
        lane: &'l Lane,
        stride: usize,
        suits: impl Fn(&Span) -> bool,
        asked_bytes: usize,
        bound: Bound,
    ) -> Option<&'l Span> {
        let span = lane.take_warm(stride, suits)?;
        if !self.footprint.charge_within(span.bytes(), bound) {
            lane.put_warm(span);
            return None;
        }
        self.footprint.note_taken(asked_bytes);
        span.set_owner(self.serial().0);
        span.region.cut_end.set(span.base() + HEADER_BYTES);
        span.region.has_persisted.store(false, Ordering::Relaxed);
        span.region.count.arm();
        Some(span)
    }

    /// Takes a hole of an adopted span, which is charged for (Q2): of one that the lane was lent, else
    /// of the next in the store; for one block if `is_alone`. Returns where blocks are cut from.
    fn take_a_hole<S: Host>(
        &self,
        lane: &Lane,
        stride: usize,
        is_alone: bool,
        asked_bytes: usize,
        bound: Bound,
        supply: &S,
    ) -> Option<(usize, usize)> {
        if stride > MAX_STRIDE_IN_HOLES {
            return None;
        }
        let least_bytes = (stride + Hole::WORD_BYTES).max(MIN_HOLE_BYTES);
        for _ in 0..MAX_BORROWED {
            let has_room =
                |span: &&Span| !span.region.is_exhausted() && span.region.has_room(least_bytes);
            let lent = lane.lent().take(MAX_BORROWED).find(has_room);
            let span = match lent {
                Some(span) => span,
                None => match supply.adopted().take(least_bytes) {
                    Some(span) => {
                        span.set_owner(self.serial().0);
                        lane.borrow(span);
                        span
                    }
                    None => return None,
                },
            };
            let Some((start, bytes)) = next_hole(span, least_bytes, self.ids()) else {
                continue;
            };
            // No more at once than a region would have, or than the request may have.
            let most_bytes = match is_alone {
                true => least_bytes,
                false => (lane.next_region_pages(stride) * PAGE_BYTES)
                    .min(self.footprint.room_bytes(bound))
                    .max(least_bytes),
            };
            let rest_bytes = bytes.saturating_sub(most_bytes);
            let bytes = bytes - rest_bytes;
            if !self.footprint.charge(Some(lane), bytes, bound) {
                return None;
            }
            self.footprint.note_taken(asked_bytes);
            if rest_bytes > 0 {
                free_hole(start + bytes, rest_bytes);
            }
            take_hole(span, start, bytes);
            span.note_hole(bytes, start + bytes);
            self.pace.note_range(bytes);
            return Some((start + Hole::WORD_BYTES, start + bytes));
        }
        None
    }

    /// A new region, charged for (Q2): a long one, else one that is just long enough, as it is where
    /// the limit is suspended.
    fn take_fresh<'l, S: Host>(
        &'l self,
        lane: &'l Lane,
        stride: usize,
        asked_bytes: usize,
        bound: Bound,
        supply: &'l S,
    ) -> Option<&'l Span> {
        let (long, short) = (lane.next_region_pages(stride), pages_for(stride + HEADER_BYTES));
        let take = |pages: usize| {
            let bytes = pages * PAGE_BYTES;
            let is_charged = self.footprint.charge_within(bytes, bound)
                || (pages == short && self.footprint.charge(Some(lane), bytes, bound));
            if !is_charged {
                return None;
            }
            let taken = supply.take_span(SpanKind::Region, 0, pages, self.serial().0);
            match taken {
                Some(_) => self.footprint.note_taken(asked_bytes),
                None => self.footprint.refund(bytes),
            }
            taken
        };
        Some(take(long).or_else(|| (short < long).then(|| take(short)).flatten())?.span)
    }

    /// Allocates a block with a span of its own; also returns whether its payload reads as zero.
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
            let has_limit = self.lowest_limit().is_some();
            return Err(if has_limit { Shortage::Limit } else { Shortage::Memory });
        }
        let taken = supply.take_span(SpanKind::Large, class.index(), pages, self.serial().0);
        let Some(Taken { span, zeroed }) = taken else {
            self.footprint.refund(bytes);
            return Err(Shortage::Memory);
        };
        let block = span.base() + FIRST_PAYLOAD_OFFSET;
        let header = Header::tag(self.id(), LIVE | LARGE).with_class(class.index());
        span.own.header_id.store(self.id(), Ordering::Relaxed);
        Raw.header(block).store(header.0, Ordering::Relaxed);
        self.link_large(span, bytes, supply);
        self.footprint.note_taken(asked_bytes);
        Ok((block, zeroed))
    }
}
