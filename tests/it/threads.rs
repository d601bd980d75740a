//! Pools of threads on a barrier, with a new request each round.

use crate::support::{Held, Random, together};
use rqmalloc::Request;
use std::sync::{Arc, Barrier, Mutex};

/// Runs `round(thread, number)` in `count` threads, which begin each round together.
fn in_rounds(count: usize, rounds: u64, round: impl Fn(usize, u64) + Send + Sync + 'static) {
    let (barrier, round) = (Arc::new(Barrier::new(count)), Arc::new(round));
    let threads: Vec<_> = (0..count)
        .map(|thread| {
            let (barrier, round) = (barrier.clone(), round.clone());
            std::thread::spawn(move || {
                for number in 0..rounds {
                    barrier.wait();
                    round(thread, number);
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

#[test]
fn every_thread_a_request_each_round() {
    let _together = together();
    for count in [8, 32] {
        in_rounds(count, 60, move |thread, number| {
            let mut random = Random::new(number * 100 + thread as u64);
            let mut held = Vec::with_capacity(100);
            let id = rqmalloc::begin_request();
            for seed in 0..100 {
                let size = random.size(if seed == 50 { 200_000 } else { 3_000 });
                held.push(Held::new(size, 8, seed));
            }
            let freed = random.below(100);
            held.drain(..freed).for_each(Held::free);
            held.iter().for_each(Held::verify);
            if number % 2 == 0 {
                held.clear();
                // SAFETY: the blocks are forgotten, and no other thread has seen them.
                let report = unsafe { rqmalloc::end_request() };
                assert_eq!((report.id, report.freed_blocks), (id, 100 - freed as u64));
            } else {
                let report = rqmalloc::close_request();
                assert_eq!((report.id, report.surviving_blocks), (id, 100 - freed as u64));
                held.into_iter().for_each(Held::free);
            }
        });
    }
}

#[test]
fn all_threads_in_one_request_each_round() {
    let _together = together();
    const COUNT: usize = 8;
    let current: Arc<Mutex<Option<Request>>> = Arc::default();
    let barrier = Arc::new(Barrier::new(COUNT));
    in_rounds(COUNT, 60, move |thread, number| {
        if thread == 0 {
            *current.lock().unwrap() = Some(Request::new());
        }
        barrier.wait();
        let request = current.lock().unwrap().clone().unwrap();
        let mut held = Vec::with_capacity(50);
        request.run(|| {
            (0..50).for_each(|seed| held.push(Held::new(1 + seed as usize * 91, 8, seed + number)));
            held.drain(..30).for_each(Held::free);
        });
        drop(request);
        barrier.wait();
        if thread == 0 {
            let request = current.lock().unwrap().take().unwrap();
            let usage = request.usage();
            assert_eq!(usage.live_blocks, COUNT as u64 * 20);
            *current.lock().unwrap() = Some(request);
        }
        barrier.wait();
        if thread == 0 {
            let request = current.lock().unwrap().take().unwrap();
            let report = request.close().unwrap();
            assert_eq!(report.freed_blocks, 0);
            assert!((20..=COUNT as u64 * 20).contains(&report.surviving_blocks), "{report}");
        }
        // Frees some before the close, some while it walks, some after it.
        held.into_iter().for_each(Held::free);
    });
}

#[test]
fn blocks_freed_by_the_next_thread_while_their_request_closes() {
    let _together = together();
    const COUNT: usize = 8;
    let slots: Arc<Vec<Mutex<Vec<Held>>>> =
        Arc::new((0..COUNT).map(|_| Mutex::default()).collect());
    let barrier = Arc::new(Barrier::new(COUNT));
    in_rounds(COUNT, 100, move |thread, number| {
        let request = Request::new();
        let mut held = Vec::with_capacity(40);
        request.run(|| {
            for seed in 0..40 {
                let size =
                    if seed == 7 { 90_000 } else { 1 + (seed * 37 + number) as usize % 2000 };
                held.push(Held::new(size, 8, seed));
            }
        });
        *slots[thread].lock().unwrap() = held;
        barrier.wait();
        let theirs = std::mem::take(&mut *slots[(thread + 1) % COUNT].lock().unwrap());
        if number % 2 == 0 {
            let (report, ()) = (request.close().unwrap(), theirs.into_iter().for_each(Held::free));
            assert!(report.surviving_blocks <= 40);
            assert_eq!(report.freed_blocks, 0);
        } else {
            theirs.into_iter().for_each(Held::free);
            assert!(request.close().unwrap().surviving_blocks <= 40);
        }
    });
}

#[test]
fn end_after_a_join_counts_exactly() {
    let _together = together();
    in_rounds(4, 30, |thread, number| {
        rqmalloc::begin_request();
        let mut held = rqmalloc::persistent(|| Vec::with_capacity(64));
        (0..64).for_each(|seed| held.push(Held::new(100 + seed as usize, 8, seed)));
        let theirs = rqmalloc::persistent(|| held.split_off((thread * 7 + number as usize) % 64));
        let left = held.len() as u64;
        rqmalloc::persistent(|| {
            std::thread::spawn(move || theirs.into_iter().for_each(Held::free)).join().unwrap();
            held.clear();
            drop(held);
        });
        // SAFETY: the other thread has been joined, and the rest is forgotten.
        let report = unsafe { rqmalloc::end_request() };
        assert_eq!(report.freed_blocks, left);
    });
}

#[test]
fn persistent_blocks_go_from_thread_to_thread() {
    let _together = together();
    let (senders, receivers): (Vec<_>, Vec<_>) =
        (0..4).map(|_| std::sync::mpsc::sync_channel::<Vec<Held>>(4)).unzip();
    let threads: Vec<_> = receivers
        .into_iter()
        .enumerate()
        .map(|(thread, receiver)| {
            let next = senders[(thread + 1) % 4].clone();
            std::thread::spawn(move || {
                let mut random = Random::new(thread as u64);
                for number in 0..200 {
                    let batch = (0..30)
                        .map(|seed| Held::new(random.size(5_000), 8, seed + number))
                        .collect();
                    next.send(batch).unwrap();
                    receiver.recv().unwrap().into_iter().for_each(Held::free);
                }
            })
        })
        .collect();
    drop(senders);
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}
