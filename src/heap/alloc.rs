//! Blocks that no bin had.

use super::Heap;
use crate::base::os;
use crate::base::size_class::{Class, FIRST_PAYLOAD_OFFSET};
use crate::base::sync::Ordering;
use crate::blocks::allocated::Allocated;
use crate::blocks::memory::Raw;
use crate::lockfree::header::{Block, Header, LARGE, LIVE, Memory, NONE};
use crate::pages::mappings::{Mapped, needed_bytes};
use crate::pages::span::Span;
use crate::persistent::cache::Cache;
use crate::request::Shortage;
use crate::request::control::Control;
use crate::request::lane::Lane;

/// The length from which on the system is asked first whether it has that much.
const ORDINARY_BYTES: usize = 1 << 30;

impl Heap {
    /// Allocates a persistent block of `class` when the cache's bin is empty.
    #[cold]
    fn refill_and_alloc(&self, cache: &Cache, class: Class) -> Block {
        let tag = self.persistent_tag();
        let source = |want| self.store.take(class, want, tag, self);
        if cache.refill(class, &self.credit, source, |rest| self.store.put(class, rest, self)) {
            cache.bins.alloc(class)
        } else {
            NONE
        }
    }

    /// Allocates a persistent block by any route; `cache` is `None` in a thread that has given its
    /// own back.
    pub fn alloc_persistent(&self, cache: Option<&Cache>, class: Class) -> Allocated {
        let Some(cache) = cache else {
            return Allocated::used(self.store.take_one(class, self.persistent_tag(), self));
        };
        let block = cache.bins.alloc(class);
        if block != NONE {
            return Allocated::used(block);
        }
        if class.is_large() && !cache.has_previous(class) {
            cache.raise_cap(class, &self.credit);
            return self.store.take_large(class, self.persistent_tag(), self);
        }
        Allocated::used(self.refill_and_alloc(cache, class))
    }

    /// Allocates a persistent block above the largest class.
    pub fn alloc_persistent_mapped(&self, size: usize, align: usize) -> Allocated {
        self.take_mapping(size, align, 0, self.persistent_tag().with(LARGE))
            .map_or(Allocated::NOTHING, |(_, allocated)| allocated)
    }

    /// Allocates a class-sized block for a request from the caller's lane, whose bin is empty.
    pub fn alloc_of_request(
        &self,
        control: &Control,
        lane: &Lane,
        class: Class,
        asked_bytes: usize,
    ) -> Allocated {
        match control.alloc_refilling(lane, class, asked_bytes, self) {
            Ok((block, zeroed)) => Allocated::new(block, zeroed),
            Err(Shortage::Limit) => Allocated::REFUSED,
            Err(Shortage::Memory) => Allocated::NOTHING,
        }
    }

    /// Allocates a block above the largest class for a request, from the caller's lane.
    pub fn alloc_of_request_mapped(
        &self,
        control: &Control,
        lane: &Lane,
        size: usize,
        align: usize,
    ) -> Allocated {
        let Some(bytes) = needed_bytes(size, align) else { return Allocated::NOTHING };
        if !self.may_fit(bytes) && bytes <= control.lowest_limit().unwrap_or(usize::MAX) {
            return Allocated::NOTHING;
        }
        if !control.charge_or_reclaim(lane, bytes, size, self) {
            // Without a limit, a length too large to count is a shortage of memory.
            let has_limit = control.lowest_limit().is_some();
            return if has_limit { Allocated::REFUSED } else { Allocated::NOTHING };
        }
        let tag = Header::tag(control.id(), LIVE | LARGE);
        let Some((span, allocated)) = self.take_mapping(size, align, control.serial().0, tag)
        else {
            control.refund(bytes);
            return Allocated::NOTHING;
        };
        control.link_large(span, bytes, self);
        control.note_taken(size);
        allocated
    }

    /// Whether the system might have `bytes`. Asked before a request is charged for them, because
    /// its other threads would notice the charge; an ordinary length might always fit.
    pub(super) fn may_fit(&self, bytes: usize) -> bool {
        bytes < ORDINARY_BYTES || self.could_fit(bytes)
    }

    /// Whether the system would have `bytes` if everything idle went back to it.
    fn could_fit(&self, bytes: usize) -> bool {
        os::could_map(bytes.saturating_sub(self.idle_bytes()))
    }

    fn take_mapping(
        &self,
        size: usize,
        align: usize,
        owner: u64,
        tag: Header,
    ) -> Option<(&Span, Allocated)> {
        let take = || self.mappings.take(&self.pages, size, align, owner);
        let Mapped { span, zeroed } = take().or_else(|| {
            // Idle memory goes back only if the block could fit then.
            let bytes = needed_bytes(size, align)?;
            if !self.could_fit(bytes) {
                return None;
            }
            self.release_all_idle();
            take()
        })?;
        self.note_growth();
        span.mapping.asked_bytes.set(size);
        span.own.header_id.store(tag.id(), Ordering::Relaxed);
        let block = span.base() + FIRST_PAYLOAD_OFFSET;
        Raw.header(block).store(tag.0, Ordering::Relaxed);
        Some((span, Allocated::new(block, zeroed)))
    }
}
