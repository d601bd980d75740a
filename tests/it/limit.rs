//! A request's memory limit: exact at the boundary, soft before hard, only after reclaiming, and
//! for one request alone.

use crate::support::{
    Held, MAX_CLASS, MAX_SHARED, PAGE, charged_for, end, layout, persistent_vec, together,
};
use rqmalloc::{Request, RequestBuilder, RqMalloc, check, persistent};
use std::alloc::GlobalAlloc;
use std::sync::Barrier;

/// Allocates a block from what is active; null if refused.
fn try_take(size: usize) -> *mut u8 {
    // SAFETY: no size here is 0.
    unsafe { RqMalloc.alloc(layout(size, 8)) }
}

fn give(block: *mut u8, size: usize) {
    // SAFETY: a live block of this size.
    unsafe { RqMalloc.dealloc(block, layout(size, 8)) };
}

/// Allocates blocks of one size until one is refused.
fn fill(size: usize) -> Vec<*mut u8> {
    let mut blocks = persistent_vec();
    loop {
        let block = try_take(size);
        if block.is_null() {
            return blocks;
        }
        blocks.push(block);
    }
}

/// Returns the footprint of a block with a span or a mapping of its own; of another, its stride.
fn charge(size: usize) -> usize {
    if size > MAX_CLASS { (size + 16).next_multiple_of(PAGE) } else { charged_for(size) }
}

#[test]
fn no_limit_is_no_limit() {
    let _together = together();
    let request = Request::new();
    assert_eq!(request.usage().limit_bytes, None);
    request.run(|| assert_eq!(fill_to(64 << 20, 1 << 20), 64));
    assert_eq!(request.check(), Ok(()));
    end(request);
}

/// Allocates blocks of `size` until they have `bytes` together or one is refused; returns how many.
fn fill_to(bytes: usize, size: usize) -> usize {
    (0..bytes / size).take_while(|_| !try_take(size).is_null()).count()
}

#[test]
fn a_limit_of_zero_allows_nothing_but_the_request() {
    let _together = together();
    let request = Request::builder().memory_limit(0).build();
    request.run(|| {
        for size in [1, 100, MAX_SHARED, 100_000, 3 << 20] {
            assert!(try_take(size).is_null(), "{size}");
        }
        assert!(Vec::<u8>::new().try_reserve(1).is_err());
    });
    let limit = request.check().unwrap_err();
    assert_eq!((limit.limit_bytes, limit.in_use_bytes, limit.asked_bytes), (0, 0, 8));
    let usage = request.usage();
    assert_eq!(
        (usage.live_blocks, usage.footprint_bytes, usage.peak_bytes, usage.limit_bytes),
        (0, 0, 0, Some(0))
    );
    end(request);
}

#[test]
fn the_last_page_can_be_had_and_none_after_it() {
    let _together = together();
    // Blocks with spans and mappings of their own: the footprint of each is known.
    for size in [100_000, 3 << 20] {
        let pages = charge(size);
        for count in [1, 3] {
            for (spare, expected) in [(0, count), (PAGE - 1, count), (pages, count + 1)] {
                let limit = count * pages + spare;
                let request = Request::builder().memory_limit(limit).reserve(0).build();
                let blocks = request.run(|| fill(size));
                assert_eq!(blocks.len(), expected, "blocks of {size} in {limit}");
                assert_eq!(request.usage().footprint_bytes, expected * pages);
                request.run(|| give(blocks[0], size));
                request
                    .run(|| assert!(!try_take(size).is_null(), "what was freed can be had again"));
                end(request);
            }
        }
    }
}

#[test]
fn small_blocks_fill_the_limit_to_its_last_page() {
    let _together = together();
    let limit = 40 * PAGE + 5_000;
    let request = Request::builder().memory_limit(limit).build();
    let blocks = request.run(|| fill(24));
    let usage = request.usage();
    // Whole pages, and maybe holes of adopted spans.
    assert!(
        (40 * PAGE..=limit).contains(&(usage.footprint_bytes.next_multiple_of(PAGE).min(limit)))
    );
    assert!(usage.footprint_bytes > 39 * PAGE, "up to the limit");
    assert_eq!(usage.live_blocks, blocks.len() as u64);
    assert!(usage.live_bytes > 38 * PAGE, "{usage:?}");
    end(request);
}

#[test]
fn a_realloc_over_the_limit_changes_nothing() {
    let _together = together();
    for size in [100, 40_000, 200_000, 2 << 20] {
        let request = Request::builder().memory_limit(4 << 20).build();
        request.run(|| {
            let held = Held::new(size, 8, 1);
            let before = request.usage();
            // SAFETY: a live block of this layout.
            let moved = unsafe { RqMalloc.realloc(held.pointer, held.layout, 5 << 20) };
            assert!(moved.is_null(), "{size}");
            let after = request.usage();
            assert_eq!(
                (after.live_blocks, after.live_bytes, after.footprint_bytes),
                (before.live_blocks, before.live_bytes, before.footprint_bytes),
                "{size}"
            );
            held.free();
            assert_eq!(request.usage().live_bytes, 0);
        });
        assert!(request.check().is_err());
        end(request);
    }
}

#[test]
fn a_block_that_grows_in_place_is_charged_for() {
    let _together = together();
    let request = Request::builder().memory_limit(64 << 20).build();
    request.run(|| {
        let mut held = Held::new(60_000, 8, 1);
        for size in [100_000, 500_000, 2 << 20, 3 << 20, 30 << 20, 5 << 20, 900_000, 50_000, 10] {
            held.resize(size);
            let usage = request.usage();
            assert!(
                usage.footprint_bytes >= size && usage.footprint_bytes <= 2 * size + 600_000,
                "{usage:?}"
            );
        }
        held.free();
    });
    let usage = request.usage();
    assert!(
        usage.footprint_bytes <= 256 * 1024 && usage.peak_bytes >= 30 << 20,
        "only regions: {usage:?}"
    );
    end(request);
}

#[test]
fn soft_before_hard() {
    let _together = together();
    let request = Request::builder().memory_limit(4 << 20).reserve(1 << 20).build();
    request.run(|| {
        let mut marked_at = None;
        let blocks = {
            let mut blocks = persistent_vec();
            loop {
                let block = try_take(1_000);
                if block.is_null() {
                    break blocks;
                }
                blocks.push(block);
                if marked_at.is_none() && check().is_err() {
                    marked_at = Some(request.usage().footprint_bytes);
                }
            }
        };
        let marked_at = marked_at.expect("the mark comes before null");
        assert!(marked_at > 3 << 20 && marked_at < (3 << 20) + 2 * 256 * 1024, "{marked_at}");
        assert!(blocks.len() * 1_000 > 3 << 20);
    });
    let limit = request.check().unwrap_err();
    assert_eq!((limit.limit_bytes, limit.asked_bytes), (4 << 20, 1_000));
    assert!(limit.in_use_bytes <= 4 << 20 && limit.in_use_bytes > (4 << 20) - 2 * PAGE, "{limit}");
    assert_eq!(
        limit.to_string(),
        format!("memory limit reached (limit 4194304, in use {}, asked 1000)", limit.in_use_bytes)
    );
    end(request);
}

#[test]
fn one_request_at_its_limit_concerns_no_other() {
    let _together = together();
    let outer = Request::builder().memory_limit(8 << 20).build();
    let inner = Request::builder().memory_limit(1 << 20).build();
    outer.run(|| {
        inner.run(|| {
            assert!(!fill(10_000).is_empty());
            assert!(check().is_err());
            assert!(
                persistent(|| !try_take_and_give(5 << 20).is_null()),
                "persistent memory is free"
            );
        });
        assert_eq!(check(), Ok(()));
        assert!(!try_take(2 << 20).is_null());
    });
    assert!(inner.check().is_err() && outer.check().is_ok());
    end(inner);
    end(outer);
}

fn try_take_and_give(size: usize) -> *mut u8 {
    let block = try_take(size);
    if !block.is_null() {
        give(block, size);
    }
    block
}

/// Free blocks of one class are reclaimed before a block of another is refused, where ZendMM fails
/// with megabytes reclaimable.
#[test]
fn what_is_free_inside_is_reclaimed_before_null() {
    let _together = together();
    for other in [3_500, 20_000, 100_000, 2 << 20] {
        let request = Request::builder().memory_limit(6 << 20).reserve(0).build();
        request.run(|| {
            let blocks = fill(200);
            assert!(request.check().is_err());
            blocks.into_iter().for_each(|block| give(block, 200));
            let bytes = (6 << 20) * 9 / 10;
            let wanted = bytes / charge(other);
            let count = fill_to(wanted * other, other);
            assert!(count >= wanted * 9 / 10, "{count} of {wanted} blocks of {other}");
        });
        end(request);
    }
}

/// Blocks that stay are spread over all pages: what lies between them can still be allocated.
#[test]
fn what_is_free_between_live_blocks_is_reclaimed_too() {
    let _together = together();
    let request = Request::builder().memory_limit(4 << 20).reserve(0).build();
    request.run(|| {
        let blocks = fill(100);
        let (live, free): (Vec<_>, Vec<_>) =
            persistent(|| blocks.chunks(40).map(|chunk| chunk.split_at(1)).unzip());
        free.iter().copied().flatten().for_each(|&block| give(block, 100));
        let count = fill_to(1 << 20, 2_000);
        assert!(count >= (1 << 20) / 2_000 - 1, "{count} blocks of 2000 between {}", live.len());
        persistent(|| drop((live, free)));
    });
    end(request);
}

#[test]
fn a_request_that_reclaims_enough_is_not_marked() {
    let _together = together();
    let request = Request::builder().memory_limit(2 << 20).build();
    request.run(|| {
        // Each round frees all of its blocks, whose size the next one does not ask for.
        for round in 0..60 {
            let size = 100 + 300 * (round % 17);
            let blocks: Vec<_> = persistent(|| Vec::with_capacity(20_000));
            let mut blocks = blocks;
            blocks.extend((0..(1 << 20) / size).map(|_| try_take(size)));
            assert!(blocks.iter().all(|block| !block.is_null()), "round {round}");
            blocks.iter().for_each(|&block| give(block, size));
            persistent(|| drop(blocks));
        }
        assert_eq!(check(), Ok(()));
    });
    end(request);
}

#[test]
fn set_memory_limit_says_no_and_changes_nothing() {
    let _together = together();
    let request = Request::new();
    request.run(|| {
        assert_eq!(fill_to(4 << 20, 100_000), 41);
        let in_use = request.usage().footprint_bytes;
        let error = request.set_memory_limit(Some(1 << 20)).unwrap_err();
        assert_eq!((error.limit_bytes, error.in_use_bytes), (1 << 20, in_use));
        assert_eq!(
            error.to_string(),
            format!("memory limit below what is in use (limit 1048576, in use {in_use})")
        );
        assert_eq!(request.usage().limit_bytes, None);
        assert!(!try_take(8 << 20).is_null(), "the limit that was refused is not there");

        request.set_memory_limit(Some(16 << 20)).unwrap();
        assert_eq!(request.usage().limit_bytes, Some(16 << 20));
        assert!(try_take(8 << 20).is_null() && request.check().is_err());
        request.set_memory_limit(Some(64 << 20)).unwrap();
        assert_eq!(request.check(), Ok(()), "with room again it is not marked");
        assert!(!try_take(8 << 20).is_null());
        request.set_memory_limit(None).unwrap();
        assert_eq!(request.usage().limit_bytes, None);
    });
    end(request);
}

/// What is free goes back first; then the accepted limit is in force (ZendMM forgets it).
#[test]
fn set_memory_limit_makes_room_and_holds() {
    let _together = together();
    let request = Request::new();
    request.run(|| {
        let blocks: Vec<_> = persistent(|| Vec::with_capacity(100_000));
        let mut blocks = blocks;
        blocks.extend((0..80_000).map(|_| try_take(100)));
        blocks.iter().for_each(|&block| give(block, 100));
        assert!(request.usage().footprint_bytes > 8 << 20);
        request.set_memory_limit(Some(1 << 20)).unwrap();
        assert!(request.usage().footprint_bytes <= 1 << 20);
        assert!(try_take(2 << 20).is_null());
        persistent(|| drop(blocks));
    });
    end(request);
}

#[test]
fn suspended_while_panicking() {
    let _together = together();
    struct Grows;
    impl Drop for Grows {
        fn drop(&mut self) {
            assert!(!try_take(8 << 20).is_null(), "a destructor of a panic has no limit");
        }
    }
    let request = Request::builder().memory_limit(1 << 20).build();
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        request.run(|| {
            let _grows = Grows;
            std::panic::resume_unwind(persistent(|| Box::new(1u8)));
        });
    }));
    persistent(|| drop(result));
    request
        .run(|| assert!(try_take(MAX_SHARED).is_null(), "afterwards it is in force, and passed"));
    assert!(request.usage().footprint_bytes > 8 << 20);
    end(request);
}

#[test]
fn threads_at_the_boundary_never_pass_it() {
    let _together = together();
    const THREADS: usize = 4;
    for round in 0..30 {
        let limit = 3 << 20;
        let request = Request::builder().memory_limit(limit).build();
        let barrier = Barrier::new(THREADS);
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..THREADS)
                .map(|index| {
                    let (request, barrier) = (request.clone(), &barrier);
                    scope.spawn(move || {
                        barrier.wait();
                        request.run(|| {
                            let size = [60, 5_000, 70_000, 1 << 20][(index + round) % 4];
                            let mut blocks = persistent_vec();
                            for step in 0..3_000 {
                                let block = try_take(size);
                                assert!(request.usage().footprint_bytes <= limit);
                                if block.is_null() {
                                    blocks.drain(..).for_each(|block| give(block, size));
                                } else {
                                    blocks.push(block);
                                }
                                if step % 50 == 0 {
                                    std::thread::yield_now();
                                }
                            }
                            blocks.into_iter().for_each(|block| give(block, size));
                        });
                    })
                })
                .collect();
            threads.into_iter().for_each(|thread| thread.join().unwrap());
        });
        let usage = request.usage();
        assert!(usage.peak_bytes <= limit, "{usage:?}");
        assert_eq!((usage.live_blocks, usage.live_bytes), (0, 0), "{usage:?}");
        end(request);
    }
}

#[test]
fn a_free_by_another_request_makes_room_for_the_owner() {
    let _together = together();
    let owner = Request::builder().memory_limit(2 << 20).build();
    let other = Request::new();
    let blocks = owner.run(|| fill(10_000));
    owner.run(|| assert!(try_take(10_000).is_null()));
    other.run(|| blocks.iter().for_each(|&block| give(block, 10_000)));
    owner.run(|| assert!(fill_to(1 << 20, 10_000) > 100, "what came back from outside can be had"));
    end(owner);
    end(other);
}

#[test]
fn the_peak_can_be_measured_anew() {
    let _together = together();
    let request = Request::new();
    request.run(|| {
        give(try_take(10 << 20), 10 << 20);
        assert!(request.usage().peak_bytes >= 10 << 20);
        request.reset_peak();
        assert!(request.usage().peak_bytes < 1 << 20);
        give(try_take(3 << 20), 3 << 20);
        let peak = request.usage().peak_bytes;
        assert!((3 << 20..4 << 20).contains(&peak), "{peak}");
    });
    end(request);
}

/// The request's limit applies whichever thread grows the block: pages that move are not charged
/// twice.
#[test]
fn growth_has_the_same_limit_from_inside_and_from_outside() {
    let _together = together();
    const MIB: usize = 1 << 20;
    for (from, to) in [(60 * MIB, 97 * MIB), (2 * MIB, 99 * MIB), (500 << 10, 900 << 10)] {
        let limit = if from < MIB { MIB } else { 100 * MIB };
        let grown = [true, false].map(|is_inside| {
            let request = Request::builder().memory_limit(limit).build();
            let mut vector: Vec<u8> = request.run(|| Vec::with_capacity(from));
            let mut grow = || vector.try_reserve_exact(to).is_ok();
            let is_grown = if is_inside { request.run(&mut grow) } else { grow() };
            drop(vector);
            assert_eq!(request.usage().live_blocks, 0);
            end(request);
            is_grown
        });
        assert_eq!(grown[0], grown[1], "{from} to {to} bytes: inside, then outside");
    }
}

/// Space that becomes free after a refusal is found, however many refusals there were.
#[test]
fn what_is_freed_after_a_refusal_is_found() {
    let _together = together();
    let request = Request::builder().memory_limit(2 << 20).build();
    request.run(|| {
        let mut blocks = fill(24);
        for round in 0..4 {
            // What a sweep was not worth, in holes of adopted spans, goes first.
            let mut rest = persistent(Vec::new);
            loop {
                let found = try_take(30_000);
                if found.is_null() {
                    break;
                }
                persistent(|| rest.push(found));
            }
            for _ in 0..50 {
                assert!(try_take(30_000).is_null(), "round {round}");
            }
            // Blocks that were cut one after the other: whole pages of them become free.
            let quarter = persistent(|| blocks.split_off(blocks.len() * 3 / 4));
            quarter.into_iter().for_each(|block| give(block, 24));
            let found = try_take(30_000);
            assert!(!found.is_null(), "round {round}");
            give(found, 30_000);
            rest.iter().for_each(|&block| give(block, 30_000));
            persistent(|| drop(rest));
            blocks.append(&mut fill(24));
        }
        blocks.into_iter().for_each(|block| give(block, 24));
    });
    assert_eq!(request.usage().live_blocks, 0);
    end(request);
}

/// Whether the system would map this much, as one does that never refuses addresses.
fn would_map(bytes: usize) -> bool {
    let access = libc::PROT_READ | libc::PROT_WRITE;
    let kind = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: this test's own mapping, given back at once.
    unsafe {
        let address = libc::mmap(std::ptr::null_mut(), bytes, access, kind, -1, 0);
        address != libc::MAP_FAILED && libc::munmap(address, bytes) == 0
    }
}

#[test]
fn memory_that_was_never_had_is_no_peak_and_no_reason() {
    let _together = together();
    if would_map(1 << 40) {
        return eprintln!("skipped: this system overcommits without a bound");
    }
    // More than the system has, but within the limit.
    let request = Request::builder().memory_limit(1 << 45).build();
    let result =
        request.catch(|| Vec::<u8>::new().try_reserve_exact((1 << 45) - (4 << 20)).is_err());
    assert_eq!(result, Ok(true));
    assert!(request.check().is_ok());
    assert_eq!((request.usage().peak_bytes, request.usage().footprint_bytes), (0, 0));
    end(request);
    let request = Request::new();
    for size in [1 << 40, 1 << 46, 1 << 50, isize::MAX as usize - 100] {
        assert!(request.run(|| Vec::<u8>::new().try_reserve_exact(size).is_err()));
        assert_eq!(request.usage().peak_bytes, 0, "{size}");
    }
    end(request);
}

#[test]
fn growth_and_a_limit_from_outside_look_first_at_what_is_free() {
    let _together = together();
    let with_much_free = |builder: rqmalloc::RequestBuilder| {
        let request = builder.build();
        let block: Vec<u8> = request.run(|| {
            drop((0..100_000).map(|_| vec![1_u8; 100]).collect::<Vec<_>>());
            Vec::with_capacity(1_500_000)
        });
        (request, block)
    };
    let builder = Request::builder().memory_limit(16 << 20).reserve(2 << 20);
    let (request, mut block) = with_much_free(builder);
    block.reserve_exact(4_500_000);
    assert!(request.check().is_ok(), "{:?}", request.usage());
    drop(block);
    end(request);
    let (request, block) = with_much_free(Request::builder());
    assert!(request.usage().footprint_bytes > 8 << 20);
    assert_eq!(request.set_memory_limit(Some(4 << 20)), Ok(()));
    assert!(request.set_memory_limit(Some(1 << 20)).is_err(), "a block is live");
    drop(block);
    end(request);
}

#[test]
fn what_shrinks_is_never_refused() {
    let _together = together();
    for inside in [true, false] {
        let request = Request::builder().memory_limit(4 << 20).report_limit(false).build();
        let mut blocks: Vec<Vec<u8>> = rqmalloc::persistent(|| Vec::with_capacity(64));
        request.run(|| {
            blocks.push(vec![1; 3 << 20]);
            blocks.push(vec![1; 30_000]);
            loop {
                let mut block = Vec::new();
                if block.try_reserve_exact(100_000).is_err() {
                    break;
                }
                blocks.push(block);
            }
        });
        for size in [600_000, 50_000, 20_000, 3_000, 100, 8] {
            for block in &mut blocks[..2] {
                block.truncate(size);
                if inside {
                    request.run(|| block.shrink_to_fit())
                } else {
                    block.shrink_to_fit()
                }
                assert!(block.iter().all(|&byte| byte == 1));
            }
        }
        drop(blocks);
        end(request);
    }
}

#[test]
fn any_reserve_is_one() {
    let _together = together();
    for reserve in [1 << 20, usize::MAX - 1, usize::MAX] {
        let request = Request::builder().memory_limit(1 << 20).reserve(reserve).build();
        request.run(|| drop(vec![1_u8; 10]));
        assert!(request.check().is_err(), "marked from its first page on: {reserve}");
        end(request);
    }
}

/// A mapping is longer than its block, which grows for all that.
#[test]
fn growth_by_less_than_the_slack_of_a_mapping_is_growth() {
    let _together = together();
    let size = (12 << 20) + 1000;
    let request = Request::builder()
        .memory_limit((12 << 20) + (16 << 10))
        .reserve(0)
        .report_limit(false)
        .build();
    let layout = layout(size, 8);
    // SAFETY: the layout has a size; the block is freed with it or with what it was resized to.
    unsafe {
        let block = request.run(|| RqMalloc.alloc(layout));
        assert!(!block.is_null());
        let grown = request.run(|| RqMalloc.realloc(block, layout, size + 30_000));
        assert!(grown.is_null(), "it would hold {:?}", request.usage());
        request.run(|| RqMalloc.dealloc(block, layout));
    }
    let usage = request.usage();
    assert!(usage.peak_bytes <= (12 << 20) + (16 << 10), "{usage:?}");
}

/// Fills a request up to its limit with blocks of one size and shrinks one of them, over and over,
/// inside the request or outside. Returns how far the footprint went beyond the limit meanwhile.
fn shrink_at_the_limit(builder: RequestBuilder, align: usize, from: usize, to: usize) -> usize {
    const LIMIT_BYTES: usize = 2 << 20;
    let request = builder.memory_limit(LIMIT_BYTES).reserve(0).report_limit(false).build();
    let mut shrunk: Vec<Held> = persistent_vec();
    let mut whole: Vec<Held> = persistent_vec();
    for round in 0..100 {
        request.run(|| {
            while let Some(held) = Held::try_new(from, align, round) {
                whole.push(held);
            }
        });
        if !whole.is_empty() {
            let mut held = whole.swap_remove(round as usize % whole.len());
            if round % 2 == 0 {
                request.run(|| held.resize(to))
            } else {
                held.resize(to)
            }
            assert_eq!(held.owner(), Some(request.id()));
            shrunk.push(held);
        }
        let usage = request.usage();
        assert!(usage.footprint_bytes <= LIMIT_BYTES, "{from} to {to}, {align}: {usage:?}");
    }
    assert!(shrunk.len() >= 2 && request.check().is_err(), "the limit was reached");
    request.run(rqmalloc::check_structures);
    let peak_bytes = request.usage().peak_bytes;
    request.run(|| shrunk.drain(..).for_each(Held::free));
    whole.drain(..).for_each(Held::free);
    assert_eq!((request.usage().live_blocks, request.usage().live_bytes), (0, 0));
    end(request);
    peak_bytes.saturating_sub(LIMIT_BYTES)
}

#[test]
fn what_shrinks_at_the_limit_leaves_the_request_below_it() {
    let _together = together();
    for align in [8, 256] {
        for (from, to) in [(100, 9), (1_000, 700), (16_578, 15_288), (30_000, 17), (30_000, 21_000)]
        {
            let traced = Request::builder().trace_leaks(true).report_leaks(false);
            for builder in [Request::builder(), traced] {
                let beyond_bytes = shrink_at_the_limit(builder, align, from, to);
                assert_eq!(beyond_bytes, 0, "{from} to {to}, {align}: it stays where it is");
            }
        }
        for (from, to) in
            [(60_000, 30_000), (200_000, 60_000), (1_000_000, 100), (1_100_000, 900_000)]
        {
            let beyond_bytes = shrink_at_the_limit(Request::builder(), align, from, to);
            let most_bytes = (to + align + 32).next_multiple_of(PAGE) + PAGE;
            assert!(beyond_bytes <= most_bytes, "{from} to {to}, {align}: {beyond_bytes}");
        }
    }
}
