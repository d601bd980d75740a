//! Frees that the fast path refused, and what bins have too much.

use super::Heap;
use super::found::{Found, Place};
use crate::base::fatal;
use crate::base::size_class::Class;
use crate::base::sync::Ordering;
use crate::blocks::memory::Raw;
use crate::lockfree::depot::Magazine;
use crate::lockfree::header::{Block, Claim, FREED, Header, Memory, OF_LIVE, claim_stray};
use crate::pages::span::Span;
use crate::pages::supply::Supply;
use crate::persistent::cache::Cache;
use crate::request::control::Control;
use crate::request::finish;
use crate::request::lane::Lane;

impl Heap {
    /// Makes room in a cache's bin that is over its cap.
    #[cold]
    pub fn spill(&self, cache: &Cache, class: Class) {
        let magazine = cache.make_room(class);
        if !magazine.is_empty() {
            self.put_magazine(class, magazine);
        }
    }

    /// Takes free blocks of `class` back.
    pub fn put_magazine(&self, class: Class, magazine: Magazine) {
        self.store.put(class, magazine, self);
    }

    /// Frees a block. `lane` is the lane the thread is in, if any.
    pub fn free(&self, found: &Found<'_>, cache: Option<&Cache>, lane: Option<&Lane>) {
        match found.place {
            Place::Slab(class) => self.free_persistent(found, class, cache),
            Place::Region(class, control) => self.free_in_region(found, class, control, lane),
            Place::Large(_, control) => {
                self.free_large(found, Some(control), |span| self.give_span(span));
            }
            Place::Mapped(control) => {
                self.free_large(found, control, |span| self.give_mapping(span));
            }
        }
    }

    /// Marks the word before an over-aligned payload (H4).
    pub fn mark_aligned_freed(&self, payload: usize, block: Block) {
        if payload != block {
            let word = Raw.header(payload);
            word.store(Header(word.load(Ordering::Relaxed)).with(FREED).0, Ordering::Relaxed);
        }
    }

    fn free_persistent(&self, found: &Found<'_>, class: Class, cache: Option<&Cache>) {
        Raw.header(found.block).store(found.header.without(OF_LIVE).0, Ordering::Relaxed);
        match cache {
            Some(cache) => {
                if cache.bins.bin(class).push(found.block) {
                    self.spill(cache, class);
                }
            }
            None => self.store.put_one(class, found.block, self),
        }
    }

    fn free_in_region(
        &self,
        found: &Found<'_>,
        class: Class,
        control: &Control,
        lane: Option<&Lane>,
    ) {
        if let Some(lane) = lane.filter(|lane| lane.bins.tag().id() == found.header.id()) {
            Raw.header(found.block).store(lane.bins.free_header(class).0, Ordering::Relaxed);
            lane.bins.put(found.block, class);
            return;
        }
        if claim_stray(&Raw, found.block) == Claim::AlreadyFreed {
            fatal::double_free(found.block);
        }
        if control.push_stray(found.block, class).is_ok() {
            return;
        }
        let span = found.span;
        if span.region.count.drop_one() && finish::release_survivor_span(control, self, span) {
            self.recycle(control);
        }
    }

    /// Frees a large or mapped block, whose pages go by `give`; one of a request is on its list, or was
    /// taken off it by its closer.
    fn free_large(&self, found: &Found<'_>, control: Option<&Control>, give: impl FnOnce(&Span)) {
        let live = found.header;
        let free = live.without(OF_LIVE).0;
        let word = Raw.header(found.block);
        if word.compare_exchange(live.0, free, Ordering::Relaxed, Ordering::Relaxed).is_err() {
            fatal::double_free(found.block);
        }
        let survived = control.filter(|control| !control.unlink_large(found.span, self));
        give(found.span);
        if let Some(control) = survived {
            if control.holds.drop_one() {
                self.recycle(control);
            }
        }
    }
}
