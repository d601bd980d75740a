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
    /// Makes room in a cache's bin that is over its cap.
    #[cold]
    pub fn spill(&self, cache: &Cache, class: Class) {
        // Blocks of adopted spans keep those, a page for each in the worst case.
        let magazine = cache.make_room(class, |rest| self.store.send_home(class, rest, self));
        self.provide_slots();
        self.store.put_rest(class, magazine, self);
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
                    self.spill(cache, class);
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
