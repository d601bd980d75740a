//! Memory that nobody uses goes back: some of it over time, all of it when asked for.

use super::Heap;
use crate::base::sync::{AtomicU64, Ordering};
use crate::blocks::holes::tidy_up;
use crate::persistent::store::PORTION_BLOCKS;
use crate::request::growth::POLL_GROWTH;

/// The interval at which idle memory is looked for.
pub const TICK_MILLISECONDS: u64 = 100;
/// Milliseconds between two looks at idle control blocks and lanes. What was idle at two of them
/// goes at the third: after one to one and a half seconds, so that it stays where a burst comes
/// every second.
pub const LOOK_MILLISECONDS: u64 = 500;

/// The interval at which a portion is done of what is due since a tick.
const PORTION_MILLISECONDS: u64 = 5;
/// Most portions that are made up for, one at a time, when threads come by late.
const MOST_LATE_PORTIONS: u64 = 20;

/// What the process has, in bytes, not counting the thread caches.
#[derive(Clone, Copy, Default)]
pub struct HeapFigures {
    /// Mapped from the system.
    pub mapped: usize,
    /// Free pages, and memory for descriptors that nobody uses.
    pub free: usize,
    /// Those free pages that are backed by memory.
    pub free_resident: usize,
    /// Free blocks in the depots.
    pub depots: usize,
    /// Blocks of slabs that are not out: free, purged, or never cut.
    pub slabs: usize,
    /// Idle control blocks and their like, and warm regions.
    pub warm: usize,
    /// Freed mappings that are kept for the next block.
    pub mappings: usize,
    /// Pages of adopted spans.
    pub adopted: usize,
    /// Descriptors in use.
    pub descriptors: usize,
    /// What caches have drawn from their credit.
    pub drawn: usize,
}

impl Heap {
    /// Returns no less than what `release_all_idle` could give back.
    pub(super) fn idle_bytes(&self) -> usize {
        self.store.most_bytes() + self.pages.free_bytes().0 + self.kept_bytes()
    }

    /// Whether ticks still have something to give back: portions are due, or more than `reserve`
    /// bytes are resident that nobody uses.
    pub fn has_idle(&self, reserve: usize) -> bool {
        self.has_work.load(Ordering::Relaxed)
            || self.store.depot_bytes() + self.pages.free_bytes().1 + self.kept_bytes() > reserve
    }

    /// Returns the bytes of what is kept for the next mapped blocks and requests.
    fn kept_bytes(&self) -> usize {
        let controls = self.controls.figures();
        self.mappings.figures().1 + controls.idle_bytes + controls.warm_bytes
    }

    /// Gives back what has been idle since the last tick, if a tick is due, or a portion of what is
    /// due since then.
    pub fn tick(&self, now: u64) {
        if self.process_limit().is_some() {
            self.look_at_process(now);
        }
        if claim(&self.next_tick, now, TICK_MILLISECONDS, 0) {
            self.store.age();
            POLL_GROWTH.tick(now);
            if claim(&self.next_look, now, LOOK_MILLISECONDS, 0) {
                self.controls.purge(false, self);
            }
            self.mappings.decay(&self.pages, Some(now));
            self.pages.purge(true);
            self.has_work.store(true, Ordering::Relaxed);
        }
        if !self.has_work.load(Ordering::Relaxed) {
            return;
        }
        let is_due = claim(&self.next_portion, now, PORTION_MILLISECONDS, MOST_LATE_PORTIONS);
        if is_due && self.store.work(PORTION_BLOCKS, self) {
            self.has_work.store(false, Ordering::Relaxed);
        }
    }

    /// Gives everything idle back to the system: depots, control blocks with what they keep, cached
    /// mappings, free pages.
    /// Returns the bytes that went.
    pub fn release_all_idle(&self) -> usize {
        let purged = self.store.release(self);
        let persistent = self.persistent_tag().id();
        self.adopted.take_all(|span| tidy_up(self, span, persistent));
        let descriptor_bytes = self.controls.purge(true, self);
        purged + descriptor_bytes + self.mappings.decay(&self.pages, None) + self.pages.purge(false)
    }

    /// Returns the figures of the process, not counting the thread caches.
    pub fn figures(&self) -> HeapFigures {
        let (mapping_bytes, mappings) = self.mappings.figures();
        let (free, free_resident) = self.pages.free_bytes();
        let descriptors = &self.pages.space.descriptors;
        let controls = self.controls.figures();
        let unused = controls.empty_bytes + descriptors.untaken_bytes();
        HeapFigures {
            mapped: self.pages.chunk_bytes() + mapping_bytes + descriptors.mapped_bytes(),
            free: free + unused,
            free_resident,
            depots: self.store.depots_held_bytes(),
            slabs: self.store.slab_bytes(),
            warm: controls.warm_bytes + controls.idle_bytes,
            mappings,
            adopted: self.adopted.held_bytes(),
            descriptors: descriptors.mapped_bytes().saturating_sub(unused + controls.idle_bytes),
            drawn: self.credit.drawn_bytes(),
        }
    }
}

/// Claims what is due at a time, if it is due, and says when it is next: an interval later, where at
/// most so many intervals are made up for.
fn claim(next: &AtomicU64, now: u64, interval: u64, most_late: u64) -> bool {
    let due = next.load(Ordering::Relaxed);
    let after = due.max(now.saturating_sub(most_late * interval)) + interval;
    now >= due && next.compare_exchange(due, after, Ordering::Relaxed, Ordering::Relaxed).is_ok()
}

#[cfg(test)]
mod tests {
    use crate::base::size_class::{Class, PAGE_BYTES};
    use crate::heap::tests::{free, new_cache, new_heap};
    use crate::lockfree::header::{Block, NONE};
    use std::vec::Vec;

    #[test]
    fn figures_add_up_and_follow_a_block() {
        let heap = new_heap();
        heap.set_up();
        let cache = new_cache(heap);
        let class = Class::of(1 << 19).unwrap();
        let before = heap.figures();
        let blocks: Vec<Block> =
            (0..20).map(|_| heap.alloc_persistent(Some(&cache), class).block).collect();
        let during = heap.figures();
        assert!(during.mapped - before.mapped >= 20 << 19);
        assert!(during.mapped - during.free - during.slabs >= 20 << 19);
        blocks.into_iter().for_each(|block| free(heap, &cache, block));
        heap.flush(&cache);
        let after = heap.figures();
        assert_eq!(after.mapped, during.mapped, "chunks stay for a while");
        assert!(after.free >= 20 << 19);
        assert_eq!(heap.release_all_idle() % PAGE_BYTES, 0);
        assert_eq!(heap.pages.chunk_bytes(), 0);
    }

    #[test]
    fn a_mapping_is_reused_and_gives_back_what_is_too_much() {
        let heap = new_heap();
        heap.set_up();
        let cache = new_cache(heap);
        let first = heap.alloc_persistent_mapped(16 << 20, 16).block;
        free(heap, &cache, first);
        let second = heap.alloc_persistent_mapped(2 << 20, 16);
        assert_eq!(second.block, first, "the mapping of the freed block serves the next");
        assert!(!second.is_zeroed());
        let (mapped, _) = heap.mappings.figures();
        assert!(mapped >= 16 << 20);
        heap.mappings.decay(&heap.pages, None);
        let (mapped, cached) = heap.mappings.figures();
        assert!(mapped < 3 << 20 && cached == 0, "{mapped} mapped, {cached} cached");
        free(heap, &cache, second.block);
        let third = heap.alloc_persistent_mapped(3 << 20, 16);
        assert_ne!(third.block, NONE);
        free(heap, &cache, third.block);
        heap.release_all_idle();
        assert_eq!(heap.mappings.figures(), (0, 0));
    }
}
