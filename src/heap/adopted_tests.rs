//! Tests of adopted spans: who has one, what becomes of the memory between its blocks.

use super::Heap;
use super::found::Place;
use super::tests::{finish, free, new_cache, new_heap, one_request, open, use_class};
use crate::base::size_class::{Class, PAGE_BYTES};
use crate::blocks::bins::Freed;
use crate::blocks::region::{Ids, MAX_STRIDE_IN_HOLES, next_hole};
use crate::lockfree::header::{Block, NONE};
use crate::lockfree::token::publish;
use crate::pages::adopted::AdoptedSpans;
use crate::pages::page_heap::Taken;
use crate::pages::shelf::Shelf;
use crate::pages::span::{MIN_HOLE_BYTES, Span, SpanKind};
use crate::pages::supply::Supply;
use crate::persistent::cache::Cache;
use crate::request::control::Control;
use crate::request::finish::Survivors;
use core::cell::Cell;
use std::boxed::Box;
use std::vec::Vec;

#[test]
fn holes_between_survivors_are_filled_by_persistent_blocks_and_go_with_them() {
    let heap = new_heap();
    heap.set_up();
    let cache = new_cache(heap);
    let survivors = one_request(heap);
    let held_bytes = heap.adopted.held_bytes();
    assert!(held_bytes > 0);
    let class = Class::from_index(2).unwrap();
    let blocks: Vec<Block> =
        (0..5000).map(|_| heap.alloc_persistent(Some(&cache), class).block).collect();
    let in_holes = |block: &&Block| matches!(heap.find(**block).place, Place::Adopted(_));
    let count = blocks.iter().filter(in_holes).count();
    assert!(count * class.stride_bytes() > held_bytes / 4, "{count} in {held_bytes} bytes");
    assert!(count < blocks.len(), "and then slabs");
    heap.check();
    survivors.iter().chain(&blocks).for_each(|&block| free(heap, &cache, block));
    heap.flush(&cache);
    heap.release_all_idle();
    heap.check();
    assert_eq!(heap.adopted.held_bytes(), 0, "nothing is left of the spans");
}

#[test]
fn a_full_span_is_looked_through_again_when_blocks_of_it_were_reaped() {
    let heap = new_heap();
    heap.set_up();
    let cache = new_cache(heap);
    let survivors = one_request(heap);
    let class = Class::from_index(2).unwrap();
    let fill = || -> Vec<Block> {
        (0..5000).map(|_| heap.alloc_persistent(Some(&cache), class).block).collect()
    };
    let held_bytes = heap.adopted.held_bytes();
    let blocks = fill();
    assert!(heap.adopted.take(MIN_HOLE_BYTES).is_none(), "nothing with room is left");
    blocks.iter().for_each(|&block| free(heap, &cache, block));
    heap.flush(&cache);
    let span = heap.adopted.take(MIN_HOLE_BYTES).expect("there is room again");
    publish(&Shelf(heap), span);
    assert_eq!(heap.adopted.held_bytes(), held_bytes);
    survivors.iter().for_each(|&block| free(heap, &cache, block));
    heap.check();
}

#[test]
fn pages_that_are_free_between_survivors_go_back() {
    let heap = new_heap();
    heap.set_up();
    let cache = new_cache(heap);
    let control = open(heap).unwrap();
    let class = Class::from_index(10).unwrap();
    let blocks = allocate(heap, control, class, 20_000);
    assert_eq!(finish(heap, control, Survivors::Live).surviving_blocks, blocks.len());
    let held_bytes = heap.adopted.held_bytes();
    assert!(held_bytes >= blocks.len() * class.stride_bytes());
    // One in every span, so that none goes as a whole.
    let is_kept = |index: &usize| index % 1000 == 500;
    let (kept, freed): (Vec<usize>, Vec<usize>) = (0..blocks.len()).partition(is_kept);
    freed.iter().for_each(|&index| free(heap, &cache, blocks[index]));
    heap.flush(&cache);
    let by_itself = heap.adopted.held_bytes();
    assert!(by_itself < held_bytes / 4 * 3, "{by_itself} of {held_bytes} bytes without a trim");
    heap.release_all_idle();
    assert_eq!(heap.adopted.held_bytes(), kept.len() * PAGE_BYTES, "a page for each");
    heap.check();
    // What is left of each page is used again.
    use_class(heap, &cache, 2, 2000);
    kept.iter().for_each(|&index| free(heap, &cache, blocks[index]));
    heap.flush(&cache);
    heap.release_all_idle();
    assert_eq!(heap.adopted.held_bytes(), 0);
}

/// Allocates so many blocks of a class in one lane of a request, and leaves it.
fn allocate(
    heap: &'static Heap,
    control: &'static Control,
    class: Class,
    count: usize,
) -> Vec<Block> {
    let lane = control.enter(heap).unwrap();
    let alloc = |_| match lane.bins.alloc(class) {
        NONE => heap.alloc_of_request(control, lane, class, class.payload_bytes()).block,
        block => block,
    };
    let blocks = (0..count).map(alloc).collect();
    lane.occupancy.leave();
    blocks
}

fn free_all(heap: &Heap, cache: &Cache, blocks: impl IntoIterator<Item = Block>) {
    blocks.into_iter().for_each(|block| free(heap, cache, block));
    heap.flush(cache);
}

/// A heap in which something else happens when a free block's span is first looked up.
struct Interrupted<'a> {
    heap: &'static Heap,
    at: Block,
    action: Cell<Option<Box<dyn FnOnce() + 'a>>>,
}

impl Supply for Interrupted<'_> {
    fn take_span(
        &self,
        kind: SpanKind,
        class: usize,
        pages: usize,
        owner: u64,
    ) -> Option<Taken<'_>> {
        self.heap.take_span(kind, class, pages, owner)
    }

    fn span_of_free(&self, block: Block, kind: SpanKind) -> &Span {
        self.heap.span_of_free(block, kind)
    }

    fn span_of_page(&self, block: Block) -> &Span {
        self.heap.span_of_page(block)
    }

    fn kind_of_free_persistent(&self, block: Block, span: &Span) -> SpanKind {
        if let Some(action) = (block == self.at).then(|| self.action.take()).flatten() {
            action();
        }
        self.heap.kind_of_free_persistent(block, span)
    }

    fn adopted(&self) -> &AdoptedSpans {
        self.heap.adopted()
    }

    fn give_span(&self, span: &Span) {
        self.heap.give_span(span);
    }

    fn give_pages(&self, base: usize, pages: usize) {
        self.heap.give_pages(base, pages);
    }

    fn give_descriptor(&self, span: &Span) {
        self.heap.give_descriptor(span);
    }

    fn give_mapping(&self, span: &Span) {
        self.heap.give_mapping(span);
    }
}

/// While a block that was persisted is being reaped, its request is over; another one takes memory
/// and leaves a survivor, which must not be counted off.
#[test]
fn a_region_is_over_while_its_persisted_block_is_being_reaped() {
    for survivors in [Survivors::Live, Survivors::None] {
        let heap = new_heap();
        heap.set_up();
        let cache = new_cache(heap);
        let earlier = one_request(heap);
        // Too long for holes, so that it comes from a region.
        let class = Class::all().find(|c| c.stride_bytes() > MAX_STRIDE_IN_HOLES).unwrap();
        let control = open(heap).unwrap();
        let [persisted] = allocate(heap, control, class, 1)[..] else { unreachable!() };
        let found = heap.find(persisted);
        assert!(heap.persist(&found, found.owner().unwrap()));
        let last = heap.alloc_persistent(None, class).block;
        // The bin is a magazine that has the persisted block first.
        let bin = cache.bins.bin(class);
        bin.renew(2);
        for block in [last, persisted] {
            assert!(cache.bins.free(block, class) == Freed::Done);
        }
        let magazine = bin.take_all();
        assert_eq!((magazine.head, magazine.count), (persisted, 2));
        let (before_bytes, survivor) = (heap.adopted.held_bytes(), Cell::new(0));
        let interrupted = Interrupted {
            heap,
            at: last,
            action: Cell::new(Some(Box::new(|| {
                assert_eq!(finish(heap, control, survivors).surviving_blocks, 0);
                let next = open(heap).unwrap();
                assert!(core::ptr::eq(next, control), "it has what the other one left");
                survivor.set(allocate(heap, next, class, 1)[0]);
                assert_eq!(finish(heap, next, Survivors::Live).surviving_blocks, 1);
            }))),
        };
        heap.store.put(class, magazine, &interrupted);
        heap.check();
        assert!(survivor.get() != 0, "the block before was not counted off yet");
        assert!(heap.adopted.held_bytes() > before_bytes, "the survivor keeps its page");
        assert!(matches!(heap.find(survivor.get()).place, Place::Adopted(_)));
        free_all(heap, &cache, [survivor.get()]);
        assert_eq!(heap.adopted.held_bytes(), before_bytes, "and it alone");
        free_all(heap, &cache, earlier);
        heap.release_all_idle();
        heap.check();
        assert_eq!(heap.adopted.held_bytes(), 0);
    }
}

/// Returns how many tokens the store can lend, all of which it has again afterwards.
fn lendable(heap: &Heap) -> usize {
    let taken: Vec<_> = core::iter::from_fn(|| heap.adopted.take(MIN_HOLE_BYTES)).collect();
    taken.iter().for_each(|span| publish(&Shelf(heap), span));
    taken.len()
}

#[test]
fn a_span_that_was_reaped_while_it_was_lent_has_room() {
    let heap = new_heap();
    heap.set_up();
    let cache = new_cache(heap);
    // Spans with survivors from end to end.
    let class = Class::from_index(10).unwrap();
    let control = open(heap).unwrap();
    let mut blocks = allocate(heap, control, class, 1000);
    assert_eq!(finish(heap, control, Survivors::Live).surviving_blocks, blocks.len());
    let spans = lendable(heap);
    assert!(spans > 1);
    // A request is lent them all, and finds nothing in any.
    let lessee = open(heap).unwrap();
    let mut own = Vec::new();
    while lendable(heap) > 0 {
        own.extend(allocate(heap, lessee, class, 100));
    }
    let kept: Vec<Block> = blocks.iter().copied().step_by(300).collect();
    blocks.retain(|block| !kept.contains(block));
    free_all(heap, &cache, blocks);
    assert_eq!(lendable(heap), 0, "all of them are lent");
    assert_eq!(finish(heap, lessee, Survivors::None).freed_blocks, own.len());
    assert!(lendable(heap) > 0, "what was reaped is room");
    heap.check();
    free_all(heap, &cache, kept);
    heap.release_all_idle();
    assert_eq!(heap.adopted.held_bytes(), 0);
}

#[test]
fn a_walk_for_long_blocks_leaves_the_holes_to_short_ones() {
    let heap = new_heap();
    heap.set_up();
    let cache = new_cache(heap);
    let class = Class::from_index(10).unwrap();
    let control = open(heap).unwrap();
    let blocks = allocate(heap, control, class, 5000);
    // Neighbours in threes are freed from outside, where five stay.
    let (kept, freed): (Vec<usize>, Vec<usize>) = (0..5000).partition(|index| index % 8 < 5);
    freed.iter().for_each(|&index| free(heap, &cache, blocks[index]));
    assert_eq!(finish(heap, control, Survivors::Live).surviving_blocks, kept.len());
    let ids = Ids::of_persistent(heap.persistent_tag().id());
    let (mut spans, long_bytes) = (0, 10 * class.stride_bytes());
    while let Some(span) = heap.adopted.take(long_bytes) {
        while let Some((start, bytes)) = next_hole(span, long_bytes, ids) {
            span.note_hole(bytes, start + bytes);
        }
        publish(&Shelf(heap), span);
        spans += 1;
        assert!(spans < 100, "each is walked in vain once");
    }
    heap.check();
    let span = heap.adopted.take(MIN_HOLE_BYTES).expect("a span that is not full");
    assert!(next_hole(span, 3 * class.stride_bytes(), ids).is_some());
    publish(&Shelf(heap), span);
    free_all(heap, &cache, kept.iter().map(|&index| blocks[index]));
    heap.release_all_idle();
    assert_eq!(heap.adopted.held_bytes(), 0);
}
