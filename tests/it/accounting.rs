//! Figures: a request's are exact while nobody allocates or frees in it; the process's add up.

use crate::support::{Held, Random, alone, elsewhere, payloads, persistent_vec, together};
use rqmalloc::{Request, stats};

/// Returns what a request is charged for these blocks together.
fn charged(held: &[Held]) -> usize {
    held.iter().map(Held::charge).sum()
}

#[track_caller]
fn expect_usage(request: &Request, held: &[Held]) {
    let usage = request.usage();
    assert_eq!((usage.live_blocks, usage.live_bytes), (held.len() as u64, charged(held)));
    assert!(
        usage.footprint_bytes >= usage.live_bytes && usage.peak_bytes >= usage.footprint_bytes,
        "{usage:?}"
    );
    assert_eq!(usage.limit_bytes, None);
}

#[test]
fn a_new_request_uses_nothing() {
    let _together = together();
    let usage = Request::new().usage();
    assert_eq!(
        (usage.live_blocks, usage.live_bytes, usage.footprint_bytes, usage.peak_bytes),
        (0, 0, 0, 0)
    );
}

#[test]
fn usage_is_exact_at_every_step() {
    let _together = together();
    let request = Request::new();
    let mut held = persistent_vec();
    for size in payloads() {
        request.run(|| held.push(Held::new(size, 8, size as u64)));
        expect_usage(&request, &held);
    }
    for index in (0..held.len()).rev().step_by(2) {
        let block = held.swap_remove(index);
        request.run(|| block.free());
        expect_usage(&request, &held);
    }
    for _ in 0..held.len() {
        held.remove(0).free();
        expect_usage(&request, &held);
    }
    assert_eq!(request.usage().live_bytes, 0);
}

#[test]
fn usage_is_exact_after_any_mixture() {
    let _together = together();
    let request = Request::new();
    let mut held: Vec<Held> = persistent_vec();
    let mut random = Random::new(77);
    for step in 0..6_000 {
        match random.below(10) {
            0..4 => {
                let size = random.size(1 << 20);
                request.run(|| held.push(Held::new(size, 8, step)));
            }
            _ if held.is_empty() => {}
            4..6 => {
                let block = held.swap_remove(random.below(held.len()));
                request.run(|| block.free());
            }
            6 => held.swap_remove(random.below(held.len())).free(),
            7 => {
                let block = held.swap_remove(random.below(held.len()));
                request.run(|| rqmalloc::persistent(|| block.free()));
            }
            8 => {
                let index = random.below(held.len());
                // When it shrinks by less than half, a block with pages of its own may keep them.
                let size = random.size(32_000);
                if held[index].layout.size() <= 32_776 {
                    request.run(|| held[index].resize(size));
                }
            }
            _ => {
                let index = random.below(held.len());
                let size = random.size(32_000);
                if held[index].layout.size() <= 32_776 {
                    held[index].resize(size);
                }
            }
        }
        if step % 10 == 0 {
            expect_usage(&request, &held);
        }
    }
    expect_usage(&request, &held);
    let (blocks, bytes) = (held.len() as u64, charged(&held));
    held.clear();
    // SAFETY: the blocks are forgotten.
    let report = unsafe { request.end() }.unwrap();
    assert_eq!((report.freed_blocks, report.freed_bytes), (blocks, bytes));
}

#[test]
fn a_free_by_another_thread_credits_the_owner() {
    let _together = together();
    let (owner, other) = (Request::new(), Request::new());
    let mut held = persistent_vec();
    owner.run(|| payloads().for_each(|size| held.push(Held::new(size, 8, 1))));
    while let Some(block) = held.pop() {
        let entered = other.clone();
        // From a thread that is inside another request.
        elsewhere(move || {
            let block = block;
            let entered = entered.enter();
            block.free();
            drop(entered);
        });
        expect_usage(&owner, &held);
    }
    assert_eq!(other.usage().live_blocks, 0);
}

#[test]
fn a_free_in_another_lane_credits_the_request_once() {
    let _together = together();
    let request = Request::new();
    let _inside = request.enter();
    let mut held = persistent_vec();
    (0..200).for_each(|seed| held.push(Held::new(1 + seed as usize * 53, 8, seed)));
    let rest = rqmalloc::persistent(|| {
        let theirs = held.split_off(100);
        let inside = request.clone();
        elsewhere(move || {
            let _inside = inside.enter();
            theirs.into_iter().for_each(Held::free);
            rqmalloc::persistent(|| drop(inside));
        });
        held
    });
    assert_eq!(request.usage().live_blocks, 100);
    assert_eq!(request.usage().live_bytes, charged(&rest));
    rest.into_iter().for_each(Held::free);
    assert_eq!((request.usage().live_blocks, request.usage().live_bytes), (0, 0));
}

#[test]
fn more_strays_than_the_list_counts() {
    let _together = together();
    const COUNT: usize = 1_100_000;
    let request = Request::new();
    let blocks: Vec<Box<u64>> = {
        let mut blocks = persistent_vec();
        request.run(|| blocks.extend((0..COUNT as u64).map(Box::new)));
        blocks
    };
    assert_eq!(request.usage().live_blocks, COUNT as u64);
    assert_eq!(request.usage().live_bytes, COUNT * 16);
    drop(blocks);
    let usage = request.usage();
    assert_eq!((usage.live_blocks, usage.live_bytes), (0, 0));
    // SAFETY: all of its blocks are freed.
    let report = unsafe { request.end() }.unwrap();
    assert_eq!((report.freed_blocks, report.freed_bytes), (0, 0));
}

#[test]
fn usage_is_never_negative_while_others_work() {
    let _together = together();
    let request = Request::new();
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let workers: Vec<_> = (0..3)
        .map(|worker| {
            let (request, stop) = (request.clone(), stop.clone());
            std::thread::spawn(move || {
                let mut held = persistent_vec();
                let mut random = Random::new(worker);
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    let size = random.size(100_000);
                    request.run(|| held.push(Held::new(size, 8, worker)));
                    if held.len() > 20 {
                        let block = held.swap_remove(random.below(20));
                        if random.below(2) == 0 {
                            block.free()
                        } else {
                            request.run(|| block.free())
                        }
                    }
                }
                held.into_iter().for_each(Held::free);
            })
        })
        .collect();
    for _ in 0..20_000 {
        let usage = request.usage();
        // There are at most 3 x 21 blocks: a difference that went below zero would be huge.
        assert!(usage.live_blocks < 10_000 && usage.live_bytes < 1 << 30, "{usage:?}");
        assert!(usage.footprint_bytes < 1 << 30);
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    workers.into_iter().for_each(|worker| worker.join().unwrap());
    let usage = request.usage();
    assert_eq!((usage.live_blocks, usage.live_bytes), (0, 0));
}

#[test]
fn a_mapping_that_was_longer_before_is_charged_evenly() {
    let _together = together();
    for is_trimmed in [false, true] {
        let between = || is_trimmed.then(rqmalloc::trim);
        Held::new(9 << 20, 8, 1).free();
        let request = Request::new();
        let mut held = request.run(|| Held::new(1_200_000, 8, 2));
        assert_eq!(request.usage().live_blocks, 1);
        between();
        held.verify();
        request.run(|| held.resize(1_500_000));
        between();
        held.free();
        let usage = request.usage();
        assert_eq!((usage.live_blocks, usage.live_bytes, usage.footprint_bytes), (0, 0, 0));
    }
}

#[track_caller]
fn expect_sum() -> rqmalloc::Stats {
    let stats = stats();
    assert_eq!(
        stats.mapped_bytes,
        stats.in_use_bytes + stats.cached_bytes + stats.free_bytes,
        "{stats}"
    );
    stats
}

#[test]
fn the_process_s_figures_add_up() {
    let _together = together();
    let mut held: Vec<Held> = Vec::new();
    let mut random = Random::new(5);
    for step in 0..3_000 {
        if random.below(2) == 0 || held.is_empty() {
            let size = random.size(3 << 20);
            held.push(Held::new(size, 8, step));
        } else {
            held.swap_remove(random.below(held.len())).free();
        }
        if step % 50 == 0 {
            let stats = expect_sum();
            assert!(stats.in_use_bytes >= held.iter().map(|held| held.layout.size()).sum());
        }
    }
    held.into_iter().for_each(Held::free);
    expect_sum();
}

/// How much the test harness and the caches of other threads may change `in_use_bytes`.
const NOISE: usize = 2 << 20;

#[test]
fn in_use_rises_and_falls_with_a_large_allocation() {
    let _alone = alone();
    const BIG: usize = 200 << 20;
    let rises_and_falls = |take: &dyn Fn() -> Vec<Held>, give: &dyn Fn(Vec<Held>)| {
        let before = expect_sum().in_use_bytes;
        let held = take();
        let during = expect_sum().in_use_bytes;
        assert!(
            during >= before + BIG - NOISE && during <= before + BIG + BIG / 4 + NOISE,
            "{before} {during}"
        );
        give(held);
        let after = expect_sum().in_use_bytes;
        assert!(after.abs_diff(before) < NOISE, "{before} before, {after} after");
    };
    let free = |held: Vec<Held>| held.into_iter().for_each(Held::free);
    rises_and_falls(&|| vec![Held::new(BIG, 8, 1)], &free);
    rises_and_falls(&|| (0..200).map(|seed| Held::new(1 << 20, 8, seed)).collect(), &free);
    rises_and_falls(
        &|| (0..BIG as u64 / 1024).map(|seed| Held::new(1000, 8, seed)).collect(),
        &free,
    );
    rises_and_falls(
        &|| {
            rqmalloc::begin_request();
            let mut held = persistent_vec();
            (0..BIG / 1024).for_each(|seed| held.push(Held::new(1000, 8, seed as u64)));
            held
        },
        &|held| {
            rqmalloc::persistent(|| drop(held));
            // SAFETY: the blocks are forgotten.
            let report = unsafe { rqmalloc::end_request() };
            assert_eq!(report.freed_blocks, BIG as u64 / 1024);
        },
    );
}

#[test]
fn open_requests_are_counted() {
    let _alone = alone();
    let before = stats().open_request_count;
    let requests: Vec<_> = (0..100).map(|_| Request::new()).collect();
    assert_eq!(stats().open_request_count, before + 100);
    let clones = requests.clone();
    drop(requests);
    assert_eq!(stats().open_request_count, before + 100);
    elsewhere(move || drop(clones));
    assert_eq!(stats().open_request_count, before);
    elsewhere(|| {
        rqmalloc::begin_request();
    });
    assert_eq!(stats().open_request_count, before, "closed when its thread exited");
}

#[test]
fn trim_gives_back_what_nobody_uses() {
    let _alone = alone();
    let held: Vec<_> = (0..100_000).map(|seed| Held::new(500, 8, seed)).collect();
    let keep = Held::new(500, 8, 1);
    let high = stats().mapped_bytes;
    assert!(high >= 50_000_000);
    held.into_iter().for_each(Held::free);
    let gone = rqmalloc::trim();
    assert!(gone >= 30_000_000, "{gone} bytes went");
    let low = expect_sum();
    assert!(low.mapped_bytes + 30_000_000 <= high, "{high} before, {low} after");
    keep.free();
}
