//! Free pages inside slabs: purged, cut again, judged.

use super::Heap;
use super::tests::{free, last_words, new_cache, new_heap};
use crate::base::os;
use crate::base::size_class::{Class, PAGE_BYTES};
use crate::base::sync::Ordering;
use crate::blocks::memory::Raw;
use crate::lockfree::header::{Block, Memory};
use crate::persistent::cache::Cache;
use std::vec::Vec;

/// Allocates `bytes` of one class, fills each block, and frees all but one in 64. Returns the others,
/// and the ones that were freed.
fn sparse(
    heap: &'static Heap,
    cache: &Cache,
    class: Class,
    bytes: usize,
) -> (Vec<Block>, Vec<Block>) {
    let blocks: Vec<Block> = (0..bytes / class.stride_bytes())
        .map(|_| heap.alloc_persistent(Some(cache), class).block)
        .collect();
    blocks.iter().for_each(|&block| fill(block, class));
    let (kept, freed): (Vec<_>, Vec<_>) = (0..blocks.len()).partition(|index| index % 64 == 7);
    freed.iter().for_each(|&index| free(heap, cache, blocks[index]));
    heap.flush(cache);
    let pick = |of: Vec<usize>| of.into_iter().map(|index| blocks[index]).collect();
    (pick(kept), pick(freed))
}

fn words(block: Block, class: Class) -> &'static mut [usize] {
    let first = core::ptr::with_exposed_provenance_mut(block);
    // SAFETY: the payload of a block that the caller has.
    unsafe { core::slice::from_raw_parts_mut(first, class.payload_bytes() / 8) }
}

fn fill(block: Block, class: Class) {
    words(block, class).fill(block);
}

fn check_filled(block: Block, class: Class) {
    assert!(words(block, class).iter().all(|&word| word == block), "{class:?} {block:#x}");
}

#[test]
fn free_pages_of_a_slab_go_back_and_are_cut_again() {
    let heap = new_heap();
    heap.set_up();
    let cache = new_cache(heap);
    let page_bytes = os::page_bytes();
    for class in Class::all_shared() {
        let bytes = (40 * class.slab_pages() * PAGE_BYTES).min(4 << 20);
        let (kept, freed) = sparse(heap, &cache, class, bytes);
        heap.check();
        let purged = heap.store.release(heap);
        let mut slabs: Vec<usize> = kept.iter().map(|&b| heap.find(b).span.base()).collect();
        slabs.dedup();
        let held = slabs.len() * class.slab_pages() * PAGE_BYTES;
        // A block that is kept keeps the pages that it is in, and one more if a header ends there.
        let pages_of_kept = kept.len() * (class.stride_bytes().div_ceil(page_bytes) + 2);
        let least = held.saturating_sub(pages_of_kept * page_bytes);
        assert!(purged >= least, "{class:?}: {purged} of {held} bytes, {least} expected");
        assert!(purged < held);
        assert_eq!(heap.store.release(heap), 0, "once");
        heap.check();
        kept.iter().for_each(|&block| check_filled(block, class));
        let again: Vec<Block> =
            freed.iter().map(|_| heap.alloc_persistent(Some(&cache), class).block).collect();
        again.iter().for_each(|&block| fill(block, class));
        let mut all: Vec<Block> = again.iter().chain(&kept).copied().collect();
        all.sort_unstable();
        assert!(all.windows(2).all(|pair| pair[0] + class.stride_bytes() <= pair[1]), "{class:?}");
        heap.check();
        all.iter().for_each(|&block| check_filled(block, class));
        all.iter().for_each(|&block| free(heap, &cache, block));
        heap.flush(&cache);
        heap.release_all_idle();
        assert_eq!(heap.pages.chunk_bytes(), 0, "{class:?}");
    }
}

#[test]
fn free_pages_of_a_slab_go_back_at_the_second_tick() {
    let heap = new_heap();
    heap.set_up();
    let cache = new_cache(heap);
    let class = Class::of(500).unwrap();
    let (kept, _) = sparse(heap, &cache, class, 4 << 20);
    heap.store.release(heap);
    let tick = || {
        heap.store.age();
        while !heap.store.work(64, heap) {}
    };
    let (others, freed) = sparse(heap, &cache, class, 4 << 20);
    let is_purged = |block: &&Block| {
        crate::persistent::slab_purge::is_purged(heap.find(kept[0]).span, **block)
            || Raw.header(**block).load(Ordering::Relaxed) == 0
    };
    assert_eq!(freed.iter().filter(is_purged).count(), 0);
    tick();
    assert_eq!(freed.iter().filter(is_purged).count(), 0, "seen once");
    for _ in 0..20 {
        tick();
    }
    let count = freed.iter().filter(is_purged).count();
    assert!(count * 2 > freed.len(), "{count} of {}", freed.len());
    heap.check();
    kept.iter().chain(&others).for_each(|&block| free(heap, &cache, block));
}

#[test]
fn a_double_free_in_a_purged_page_has_a_name() {
    let heap = new_heap();
    heap.set_up();
    let cache = new_cache(heap);
    for index in [0, 2, 10, 30] {
        let class = Class::from_index(index).unwrap();
        let (_, freed) = sparse(heap, &cache, class, 4 << 20);
        heap.release_all_idle();
        let header = |block: &&Block| Raw.header(**block).load(Ordering::Relaxed) == 0;
        let Some(&block) = freed.iter().find(header) else {
            assert!(index < 3, "pages of {class:?} are purged");
            continue;
        };
        let said = last_words(|| free(heap, &cache, block));
        assert!(said.starts_with("rqmalloc: double free"), "{class:?}: {said}");
    }
}

#[test]
fn everything_in_depots_comes_back_with_ticks() {
    let heap = new_heap();
    heap.set_up();
    let cache = new_cache(heap);
    let class = Class::of(1000).unwrap();
    let blocks: Vec<Block> =
        (0..80_000).map(|_| heap.alloc_persistent(Some(&cache), class).block).collect();
    blocks.iter().for_each(|&block| free(heap, &cache, block));
    heap.flush(&cache);
    assert!(heap.store.most_bytes() > 16 << 20);
    // The first looks at what was needed, and that of two magazines one is kept each time.
    for _ in 0..20 {
        heap.store.age();
        while !heap.store.work(1000, heap) {}
    }
    assert_eq!(heap.store.most_bytes(), 0);
}

/// Where there is plenty, blocks are taken in the order of addresses, whatever they were freed in: each
/// once.
#[test]
fn after_many_frees_blocks_are_taken_in_order() {
    let heap = new_heap();
    heap.set_up();
    let cache = new_cache(heap);
    let class = Class::of(24).unwrap();
    let (kept, mut freed) = sparse(heap, &cache, class, 400 * class.slab_pages() * PAGE_BYTES);
    // Once more, back and forth.
    let most = freed.len();
    freed = (0..most).map(|_| heap.alloc_persistent(Some(&cache), class).block).collect();
    for index in 0..most {
        // A prime that does not divide the number.
        free(heap, &cache, freed[(index * 100_003) % most]);
    }
    heap.flush(&cache);
    heap.check();
    for _ in 0..4 {
        heap.store.age();
        while !heap.store.work(1000, heap) {}
    }
    heap.check();
    let again: Vec<Block> =
        (0..most).map(|_| heap.alloc_persistent(Some(&cache), class).block).collect();
    heap.check();
    let ascending = again.windows(2).filter(|pair| pair[0] < pair[1]).count();
    // The last ones are not plenty.
    assert!(ascending > most / 5 * 4, "{ascending} of {most}");
    again.iter().for_each(|&block| fill(block, class));
    let mut all: Vec<Block> = again.iter().chain(&kept).copied().collect();
    all.sort_unstable();
    assert!(all.windows(2).all(|pair| pair[0] + class.stride_bytes() <= pair[1]));
    all.iter().for_each(|&block| check_filled(block, class));
    all.iter().for_each(|&block| free(heap, &cache, block));
    heap.flush(&cache);
    heap.release_all_idle();
    assert_eq!(heap.pages.chunk_bytes(), 0);
}
