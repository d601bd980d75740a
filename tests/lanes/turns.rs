//! Lanes: one if threads take turns, one for each that is inside at once, and what one of them
//! frees is there for the others.

use crate::support::{Held, PAGE, REGION, Random, close_empty, elsewhere, together};
use rqmalloc::{Request, persistent};
use std::collections::BTreeSet;
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Barrier, Condvar, Mutex};

#[test]
fn threads_that_take_turns_share_one_lane() {
    let _together = together();
    let request = Request::new();
    let mut held = Vec::with_capacity(64);
    // The region that a pooled control block kept may be a large one.
    request.run(|| Held::new(100, 0).free());
    let footprint = request.usage().footprint_bytes;
    for number in 0..64 {
        let inside = request.clone();
        held.push(elsewhere(move || {
            inside.run(|| {
                let freed: Vec<_> = (0..20).map(|seed| Held::new(100, seed)).collect();
                freed.into_iter().for_each(Held::free);
                Held::new(100, number)
            })
        }));
        // A lane of its own for each would cost a page for each.
        let now = request.usage().footprint_bytes;
        assert!(now < footprint + 5 * PAGE, "{now} after {} threads", number + 1);
    }
    assert_eq!(request.usage().live_blocks, 64);
    assert_eq!(request.usage().live_bytes, 64 * 112);
    request.run(|| held.into_iter().for_each(Held::free));
    close_empty(request);
}

/// The threads live all the time and pass the request round: entering, not starting, takes a lane.
#[test]
fn threads_that_hand_a_baton_round_share_one_lane() {
    let _together = together();
    const COUNT: u64 = 8;
    let request = Request::new();
    // As many free blocks as one lane needs for all, in its bin; a second lane would take memory
    // anew.
    request.run(|| {
        let held: Vec<_> = (0..=2 * COUNT).map(|_| Held::new(200, 0)).collect();
        held.into_iter().for_each(Held::free);
    });
    let footprint = request.usage().footprint_bytes;
    let turn = Arc::new((Mutex::new(0), Condvar::new()));
    let threads: Vec<_> = (0..COUNT)
        .map(|index| {
            let (turn, request) = (turn.clone(), request.clone());
            std::thread::spawn(move || {
                let mut kept: Option<Held> = None;
                for round in 0..50 {
                    let mut number = turn.0.lock().unwrap();
                    while *number % COUNT != index {
                        number = turn.1.wait(number).unwrap();
                    }
                    // The lock lets only one thread be inside.
                    request.run(|| {
                        if let Some(held) = kept.replace(Held::new(200, round)) {
                            held.free();
                        }
                    });
                    *number += 1;
                    turn.1.notify_all();
                }
                kept.unwrap()
            })
        })
        .collect();
    let held: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    let usage = request.usage();
    assert_eq!((usage.live_blocks, usage.peak_bytes), (held.len() as u64, footprint));
    held.into_iter().for_each(Held::free);
    close_empty(request);
}

#[test]
fn a_lane_for_each_that_is_inside_at_once_and_none_for_who_comes_later() {
    let _together = together();
    const COUNT: usize = 7;
    let request = Request::builder().name("crowd").build();
    let (barrier, release) = (Arc::new(Barrier::new(COUNT + 1)), Arc::new(Barrier::new(COUNT + 1)));
    let threads: Vec<_> = (0..COUNT)
        .map(|number| {
            let (request, barrier, release) = (request.clone(), barrier.clone(), release.clone());
            std::thread::spawn(move || {
                let entered = request.enter();
                let held = Held::new(64, number as u64);
                barrier.wait();
                release.wait();
                drop(entered);
                held
            })
        })
        .collect();
    barrier.wait();
    let usage = request.usage();
    assert!(usage.live_blocks == COUNT as u64 && usage.footprint_bytes >= COUNT * 256, "{usage:?}");
    // A handle and an entry each.
    assert_eq!(
        request.to_string(),
        format!(
            "request {} (crowd): still open, {COUNT} threads are inside, {} other handles are \
             alive (every entry of a thread is one)",
            request.id(),
            2 * COUNT
        )
    );
    release.wait();
    let held: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    let pages: BTreeSet<_> = held.iter().map(|held| held.pointer.addr() / PAGE).collect();
    assert_eq!(pages.len(), COUNT, "every lane has a region of its own");
    for number in 0..30 {
        let inside = request.clone();
        elsewhere(move || inside.run(|| Held::new(64, number).free()));
    }
    assert_eq!(request.usage().footprint_bytes, usage.footprint_bytes, "the lanes were idle");
    assert_eq!(request.usage().live_blocks, COUNT as u64);
    held.into_iter().for_each(Held::free);
    close_empty(request);
}

#[test]
fn a_thread_that_enters_again_stays_in_its_lane() {
    let _together = together();
    let request = Request::new();
    let other = Request::new();
    let first = request.enter();
    let one = Held::new(64, 1);
    let inner = other.enter();
    let again = request.enter();
    let two = Held::new(64, 2);
    assert_eq!((one.owner(), two.owner()), (Some(request.id()), Some(request.id())));
    let footprint = request.usage().footprint_bytes;
    assert!(request.to_string().contains(" 1 thread"), "{request}");
    // The entry that took the lane goes first: the other entry has the lane now, and nobody else
    // gets it.
    drop(first);
    let outsider = request.clone();
    let three = persistent(|| elsewhere(move || outsider.run(|| Held::new(64, 3))));
    assert!(request.usage().footprint_bytes > footprint, "the lane is still taken");
    let four = Held::new(64, 4);
    assert_eq!(four.pointer.addr() / PAGE, one.pointer.addr() / PAGE);
    drop(again);
    drop(inner);
    assert!(!request.to_string().contains("inside"), "{request}");
    [one, two, three, four].into_iter().for_each(Held::free);
    close_empty(request);
    close_empty(other);
}

#[test]
fn what_another_thread_frees_inside_is_there_for_it() {
    let _together = together();
    let request = Request::new();
    let entered = request.enter();
    let held: Vec<_> = (0..20).map(|seed| Held::new(100, seed)).collect();
    let addresses: BTreeSet<_> =
        persistent(|| held.iter().map(|held| held.pointer.addr()).collect());
    let footprint = request.usage().footprint_bytes;
    let inside = request.clone();
    // Inside at the same time, in a lane of its own.
    let again = persistent(|| {
        elsewhere(move || {
            inside.run(|| {
                held.into_iter().for_each(Held::free);
                (0..20).map(|seed| Held::new(100, seed)).collect::<Vec<_>>()
            })
        })
    });
    // The blocks and their vector: the second lane needed no region.
    let usage = request.usage();
    assert_eq!((usage.live_blocks, usage.footprint_bytes), (21, footprint));
    assert!(again.iter().all(|held| addresses.contains(&held.pointer.addr())));
    again.into_iter().for_each(Held::free);
    drop(entered);
    close_empty(request);
}

/// What bins cannot keep goes round through the request, and is there for all lanes.
#[test]
fn what_one_lane_frees_comes_round_to_the_other() {
    let _together = together();
    const COUNT: usize = 10_000;
    let request = Request::new();
    let (blocks, to_free) = sync_channel::<Vec<Held>>(0);
    let (done, freed) = sync_channel::<()>(0);
    let inside = request.clone();
    let consumer = std::thread::spawn(move || {
        for batch in to_free {
            inside.run(|| batch.into_iter().for_each(Held::free));
            done.send(()).unwrap();
        }
    });
    let entered = request.enter();
    let mut after_first = 0;
    for round in 0..20 {
        let mut batch = persistent(|| Vec::with_capacity(COUNT));
        batch.extend((0..COUNT).map(|index| Held::new(50 + (index * 7) % 400, round)));
        persistent(|| {
            blocks.send(batch).unwrap();
            freed.recv().unwrap();
        });
        if round == 0 {
            after_first = request.usage().footprint_bytes;
        }
    }
    let usage = request.usage();
    assert!(after_first > 8 * REGION, "{usage:?}");
    // Some blocks of each of two dozen classes stay in the bins of the lane that frees.
    assert!(
        usage.peak_bytes <= after_first + 3 * REGION,
        "{after_first} after one round, {usage:?}"
    );
    drop(entered);
    rqmalloc::check_structures();
    drop(blocks);
    consumer.join().unwrap();
    close_empty(request);
}

/// Blocks of all sizes go from thread to thread, all inside at once; the figures are exact when all
/// threads are joined, and while nobody works.
#[test]
fn figures_are_exact_when_the_threads_are_joined() {
    let _together = together();
    const COUNT: usize = 6;
    for round in 0..if cfg!(debug_assertions) { 6 } else { 20 } {
        let request = Request::new();
        let slots: Arc<Vec<Mutex<Option<Held>>>> =
            Arc::new((0..100).map(|_| Mutex::default()).collect());
        let threads: Vec<_> = (0..COUNT)
            .map(|thread| {
                let (request, slots) = (request.clone(), slots.clone());
                std::thread::spawn(move || {
                    let mut random = Random::new(round * 100 + thread as u64);
                    for _ in 0..20 {
                        let entered = request.enter();
                        for _ in 0..100 {
                            let max = if random.below(100) == 0 { 3 << 20 } else { 20_000 };
                            let mut held = Held::new(random.size(max), random.next() >> 8);
                            if random.below(4) == 0 {
                                held.resize(random.size(9_000));
                            }
                            let before = slots[random.below(100)].lock().unwrap().replace(held);
                            if random.below(10) == 0 {
                                persistent(|| before.into_iter().for_each(Held::free));
                            } else {
                                before.into_iter().for_each(Held::free);
                            }
                        }
                        drop(entered);
                        // Now and then, one is freed from outside.
                        if let Some(held) = slots[random.below(100)].lock().unwrap().take() {
                            held.free();
                        }
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        let held: Vec<_> = slots.iter().filter_map(|slot| slot.lock().unwrap().take()).collect();
        let usage = request.usage();
        assert_eq!(usage.live_blocks, held.len() as u64);
        assert!(usage.live_bytes >= held.iter().map(|held| held.size() + 8).sum());
        assert!(held.iter().all(|held| held.owner() == Some(request.id())));
        assert!(
            usage.footprint_bytes >= usage.live_bytes && usage.peak_bytes >= usage.footprint_bytes
        );
        request.run(rqmalloc::check_structures);
        for (index, held) in held.into_iter().enumerate() {
            if index % 2 == 0 { held.free() } else { request.run(|| held.free()) }
        }
        close_empty(request);
    }
}

/// Two threads enter two requests in opposite orders, over and over.
#[test]
fn requests_are_entered_in_any_order_by_any_thread() {
    let _together = together();
    let (one, two) = (Request::new(), Request::new());
    let barrier = Arc::new(Barrier::new(2));
    let threads: Vec<_> = [(one.clone(), two.clone()), (two.clone(), one.clone())]
        .into_iter()
        .map(|(outer, inner)| {
            let barrier = barrier.clone();
            std::thread::spawn(move || {
                for round in 0..500 {
                    barrier.wait();
                    let first = outer.enter();
                    let a = Held::new(300, round);
                    let second = inner.enter();
                    let b = Held::new(300, round);
                    assert_eq!((a.owner(), b.owner()), (Some(outer.id()), Some(inner.id())));
                    a.free();
                    drop(first);
                    let c = Held::new(300, round);
                    assert_eq!(c.owner(), Some(inner.id()));
                    drop(second);
                    b.free();
                    c.free();
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    for request in [one, two] {
        assert!(request.usage().peak_bytes <= 2 * REGION, "{:?}", request.usage());
        close_empty(request);
    }
}
