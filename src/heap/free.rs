//! Frees that the fast path refused, and blocks that bins have no room for.

use super::Heap;
use super::found::{Found, Owner, Place};
use crate::base::fatal;
use crate::base::size_class::Class;
use crate::base::sync::Ordering;
use crate::blocks::memory::Raw;
use crate::lockfree::depot::Magazine;
use crate::lockfree::header::{Block, FREED, Header, Memory, OF_LIVE};
use crate::lockfree::lifetime::{FreeOutside, free_outside};
use crate::pages::span::Span;
use crate::pages::supply::Supply;
use crate::persistent::cache::Cache;
use crate::persistent::store::free_header;
use crate::request::lane::Lane;

impl Heap {
    /// Looks at a cache's bin whose room is used up.
    #[cold]
    pub fn look(&self, cache: &Cache, class: Class) {
        if cache.has_room(class, &self.credit) {
            return;
        }
        // Blocks of adopted spans keep those, a page for each in the worst case.
        let sort = |rest| self.store.send_home(class, rest, self);
        // What is reaped at once had better be still in the processor's caches.
        let leaves_latest = self.store.is_full(class);
        let leaving = cache.make_room(class, &self.credit, sort, leaves_latest);
        self.provide_slots();
        self.store.put_rest(class, leaving, self);
    }

    /// Takes everything that a cache keeps.
    pub fn flush(&self, cache: &Cache) {
        cache.flush(&self.credit, |class, magazine| self.put_magazine(class, magazine));
    }

    /// Takes what a cache has not used since the last call.
    pub fn age_cache(&self, cache: &Cache) {
        cache.age(&self.credit, |class, magazine| self.put_magazine(class, magazine));
    }

    /// Takes back free blocks of `class`.
    pub fn put_magazine(&self, class: Class, magazine: Magazine) {
        self.provide_slots();
        self.store.put(class, magazine, self);
    }

    /// Frees a block. `lane` is the lane that the thread is in, if any.
    pub fn free(&self, found: &Found<'_>, cache: Option<&Cache>, lane: Option<&Lane>) {
        match found.place {
            Place::Slab(class) | Place::Adopted(class) => {
                self.free_persistent(found.block, class, cache);
            }
            Place::Region(class, owner) => self.free_in_region(found, class, owner, cache, lane),
            Place::Large(..) => self.free_large(found, |span| self.give_span(span)),
            Place::Mapped(_) => self.free_large(found, |span| self.give_mapping(span)),
        }
    }

    /// Marks the word before an over-aligned payload as freed (H4).
    pub fn mark_aligned_freed(&self, payload: usize, block: Block) {
        if payload != block {
            let word = Raw.header(payload);
            word.store(Header(word.load(Ordering::Relaxed)).with(FREED).0, Ordering::Relaxed);
        }
    }

    fn free_persistent(&self, block: Block, class: Class, cache: Option<&Cache>) {
        let free = free_header(self.persistent_tag(), class);
        Raw.header(block).store(free.0, Ordering::Relaxed);
        match cache {
            Some(cache) => {
                if cache.bins.bin(class).push(block) {
                    self.look(cache, class);
                }
            }
            None => self.store.put_one(class, block, self),
        }
    }

    fn free_in_region(
        &self,
        found: &Found<'_>,
        class: Class,
        owner: Owner,
        cache: Option<&Cache>,
        lane: Option<&Lane>,
    ) {
        if let Some(lane) = lane.filter(|lane| lane.bins.tag().id() == found.header.id()) {
            Raw.header(found.block).store(lane.bins.free_header(class).0, Ordering::Relaxed);
            lane.bins.put(found.block, class);
            lane.bins.note_freed();
            return;
        }
        let (stub, generation) = (owner.stub, owner.serial.generation());
        // Before the block is on the list, from which a lane may take it at once.
        stub.pending.add(generation, 1, class.stride_bytes());
        let freed = free_outside(&Raw, found.block, found.header, &stub.strays, generation);
        if freed == FreeOutside::Pushed {
            return;
        }
        stub.pending.take(generation, 1, class.stride_bytes());
        match freed {
            FreeOutside::Pushed | FreeOutside::Left => {}
            FreeOutside::Adopted => self.free_persistent(found.block, class, cache),
            FreeOutside::Changed => self.free(&self.find(found.block), cache, lane),
            FreeOutside::Ended => self.die_of_an_ended_request(found.block, owner.serial),
        }
    }

    /// Frees a large or mapped block, whose pages go by `give`.
    fn free_large(&self, found: &Found<'_>, give: impl FnOnce(&Span)) {
        let live = found.header;
        let free = live.without(OF_LIVE).0;
        let word = Raw.header(found.block);
        if word.compare_exchange(live.0, free, Ordering::Relaxed, Ordering::Relaxed).is_err() {
            fatal::double_free(found.block);
        }
        self.detach(found.span);
        give(found.span);
    }
}

#[cfg(test)]
mod tests {
    use crate::base::size_class::Class;
    use crate::blocks::bins::Freed;
    use crate::heap::tests::{free, new_cache, new_heap};
    use crate::lockfree::header::Block;
    use crate::persistent::cache::{CREDIT_BYTES, FREE_BYTES};
    use std::vec::Vec;

    #[test]
    fn sleeping_caches_keep_no_more_than_the_credit() {
        let heap = new_heap();
        heap.set_up();
        let caches: Vec<_> = (0..60)
            .map(|_| {
                let cache = new_cache(heap);
                for class in Class::all().filter(|class| class.payload_bytes() < 1 << 19) {
                    for _ in 0..6 {
                        let count = (400_000 / class.stride_bytes()).clamp(3, 600);
                        let blocks: Vec<Block> = (0..count)
                            .map(|_| heap.alloc_persistent(Some(&cache), class).block)
                            .collect();
                        blocks.into_iter().for_each(|block| free(heap, &cache, block));
                    }
                }
                cache.check();
                cache
            })
            .collect();
        let held: usize = caches.iter().map(|cache| cache.held_bytes()).sum();
        let drawn: usize = caches.iter().map(|cache| cache.drawn_bytes()).sum();
        assert_eq!(drawn, heap.credit.drawn_bytes());
        assert!(drawn > CREDIT_BYTES / 2, "{drawn} bytes: the caches did not want more");
        assert!(held <= CREDIT_BYTES + caches.len() * FREE_BYTES, "{held} bytes are kept");
        caches.iter().for_each(|cache| heap.flush(cache));
        assert_eq!(heap.credit.drawn_bytes(), 0);
        assert_eq!(caches.iter().map(|cache| cache.held_bytes()).sum::<usize>(), 0);
        heap.release_all_idle();
        assert_eq!(heap.pages.chunk_bytes(), 0);
    }

    #[test]
    fn traffic_within_a_bin_looks_at_it_now_and_then() {
        let heap = new_heap();
        heap.set_up();
        let cache = new_cache(heap);
        for class in [Class::of(64), Class::of(1024), Class::of(10_000), Class::of(100_000)] {
            let class = class.unwrap();
            let first = heap.alloc_persistent(Some(&cache), class).block;
            free(heap, &cache, first);
            for is_quiet in [false, true] {
                cache.set_quiet(is_quiet);
                let mut frees = Vec::new();
                for count in 1..2000 {
                    let block = heap.alloc_persistent(Some(&cache), class).block;
                    match cache.bins.free(block, class) {
                        Freed::Done => {}
                        Freed::LookDue => {
                            heap.look(&cache, class);
                            frees.push(count);
                        }
                        Freed::Refused => panic!("the block is live"),
                    }
                    cache.check();
                }
                let longest = frees.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap();
                assert!(longest <= if is_quiet { 1 } else { 257 }, "{class:?}: {longest} frees");
                assert!(frees.len() <= if is_quiet { 2000 } else { 1000 }, "{class:?}");
            }
        }
    }

    #[test]
    fn a_bin_that_is_filled_from_the_depot_keeps_what_it_may() {
        let heap = new_heap();
        heap.set_up();
        let (rich, poor) = (new_cache(heap), new_cache(heap));
        let class = Class::of(100).unwrap();
        let blocks: Vec<Block> =
            (0..5000).map(|_| heap.alloc_persistent(Some(&rich), class).block).collect();
        blocks.into_iter().for_each(|block| free(heap, &rich, block));
        heap.flush(&rich);
        assert!(heap.credit.draw(CREDIT_BYTES), "nobody has drawn anything");
        poor.set_share(usize::MAX);
        for class in Class::all_shared() {
            heap.alloc_persistent(Some(&poor), class);
            poor.check();
        }
        assert!(poor.held_bytes() <= FREE_BYTES, "{} bytes", poor.held_bytes());
        heap.check();
    }
}
