//! The blocks of a request that are not in a region: each with a span of pages or a mapping of its own, on
//! the request's list.

use super::control::Control;
use super::{Host, Shortage};
use crate::base::size_class::{Class, FIRST_PAYLOAD_OFFSET, PAGE_BYTES};
use crate::base::sync::{Ordering, step};
use crate::blocks::memory::Raw;
use crate::lockfree::header::{Block, Header, LARGE, LIVE, Memory};
use crate::pages::page_heap::Taken;
use crate::pages::span::{Span, SpanKind};
use crate::request::lane::Lane;
use core::ptr::null;

impl Control {
    /// A block with a span of its own, and whether its payload reads as zero.
    pub(super) fn alloc_large<S: Host>(
        &self,
        lane: &Lane,
        class: Class,
        asked_bytes: usize,
        supply: &S,
    ) -> Result<(Block, bool), Shortage> {
        let bytes = class.slab_pages() * PAGE_BYTES;
        if !self.charge_or_reclaim(lane, bytes, asked_bytes, supply) {
            let has_limit = self.limit().is_some();
            return Err(if has_limit { Shortage::Limit } else { Shortage::Memory });
        }
        let pages = class.slab_pages();
        let taken = supply.take_span(SpanKind::Large, class.index(), pages, self.address());
        let Some(Taken { span, zeroed }) = taken else {
            self.refund(bytes);
            return Err(Shortage::Memory);
        };
        let block = span.base() + FIRST_PAYLOAD_OFFSET;
        let header = Header::tag(self.id(), LIVE | LARGE).with_class(class.index());
        Raw.header(block).store(header.0, Ordering::Relaxed);
        self.link_large(span, bytes, supply);
        self.note_taken(asked_bytes);
        Ok((block, zeroed))
    }

    /// Puts the span of a large block, which is charged for so many bytes, on the request's list.
    pub fn link_large<S: Host>(&self, span: &Span, charged_bytes: usize, supply: &S) {
        supply.with_large_lock(self.address(), || {
            let second = self.large.get();
            span.previous.set(null());
            span.next.set(second);
            span.own.charged_bytes.set(charged_bytes);
            step();
            self.large.set(span);
            step();
            // SAFETY: the list holds type-stable descriptors, guarded by the lock.
            if let Some(second) = unsafe { second.as_ref() } {
                second.previous.set(span);
                step();
            }
            self.large_count.add();
            step();
            self.large_bytes.fetch_add(charged_bytes, Ordering::Relaxed);
            step();
        });
    }

    /// Makes anew, in a process that was just forked, what follows from the list of large blocks from
    /// its first on: that is whole at every step.
    pub fn repair_large(&self) {
        let (mut count, mut bytes) = (0, 0);
        let (mut previous, mut at) = (null(), self.large.get());
        // SAFETY: the list holds type-stable descriptors, and this is the only thread.
        while let Some(span) = unsafe { at.as_ref() } {
            span.previous.set(previous);
            count += 1;
            bytes += span.own.charged_bytes.get();
            previous = at;
            at = span.next.get();
        }
        self.large_count.recount(count);
        self.large_bytes.store(bytes, Ordering::Relaxed);
    }

    /// Takes a large block's span off the list and counts it out; `false`: a closer has done so.
    /// Afterwards the request may be over (L3).
    pub fn unlink_large<S: Host>(&self, span: &Span, supply: &S) -> bool {
        supply.with_large_lock(self.address(), || {
            if span.own.detached.get() {
                return false;
            }
            let (previous, next) = (span.previous.get(), span.next.get());
            // SAFETY: neighbours on the list, guarded by the lock.
            match unsafe { previous.as_ref() } {
                Some(previous) => previous.next.set(next),
                None => self.large.set(next),
            }
            step();
            // SAFETY: as above.
            if let Some(next) = unsafe { next.as_ref() } {
                next.previous.set(previous);
                step();
            }
            let bytes = span.own.charged_bytes.get();
            self.large_bytes.fetch_sub(bytes, Ordering::Relaxed);
            step();
            self.refund(bytes);
            step();
            self.large_count.drop_one();
            true
        })
    }

    /// A large block needs another number of bytes now; `growth_bytes` more are charged for already.
    pub fn recharge_large(&self, span: &Span, growth_bytes: usize, new_bytes: usize) {
        let old_bytes = span.own.charged_bytes.get();
        span.own.charged_bytes.set(new_bytes);
        self.large_bytes.fetch_add(new_bytes.wrapping_sub(old_bytes), Ordering::Relaxed);
        self.refund(old_bytes + growth_bytes - new_bytes);
    }
}
