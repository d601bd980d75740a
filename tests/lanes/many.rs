//! Many threads, many requests, many entries.

use crate::support::{
    Held, REGION, Random, active_owner, alone, close_empty, current_id, elsewhere, persistent_vec,
    shuffle, together,
};
use rqmalloc::{Entered, Request, persistent, stats};
use std::sync::{Arc, Barrier, Mutex};

#[test]
fn short_threads() {
    let _alone = alone();
    let count = if cfg!(debug_assertions) { 2_000 } else { 10_000 };
    let before = stats().open_request_count;
    let shared = Request::new();
    let mut kept = Vec::with_capacity(count);
    let mut mapped = 0;
    for number in 0..count as u64 {
        let shared = shared.clone();
        let thread = std::thread::spawn(move || {
            let held = shared.run(|| Held::new(40, number));
            rqmalloc::begin_request();
            let own = Held::new(1 + (number * 7919 % 5_000) as usize, number);
            let mut left = None;
            match number % 3 {
                // SAFETY: its block is forgotten.
                0 => drop(unsafe { rqmalloc::end_request() }),
                1 => {
                    assert_eq!(rqmalloc::close_request().surviving_blocks, 1);
                    own.free();
                }
                // Left open for the thread's exit, which closes it.
                _ => left = Some(own),
            }
            (held, left)
        });
        let (held, left) = thread.join().unwrap();
        kept.push(held);
        if let Some(left) = left {
            assert!(left.owner().is_none(), "adopted");
            left.free();
        }
        // Each thread exits before the next starts: what it leaves behind could add up.
        if number == 200 {
            mapped = stats().mapped_bytes;
        }
    }
    let now = stats();
    assert_eq!(now.open_request_count, before + 1);
    assert!(now.mapped_bytes <= mapped + (8 << 20), "{mapped} bytes before, {now}");
    assert_eq!(shared.usage().live_blocks, count as u64);
    assert!(shared.usage().footprint_bytes <= count * 64 + 2 * REGION, "{:?}", shared.usage());
    kept.into_iter().for_each(Held::free);
    close_empty(shared);
}

#[test]
fn ten_thousand_requests_closed_in_any_order() {
    let _alone = alone();
    ten_thousand_requests();
    trim_all();
    let first = stats();
    ten_thousand_requests();
    trim_all();
    let second = stats();
    // Control blocks and descriptors stay for the next requests; nothing else does.
    assert!(second.in_use_bytes <= first.in_use_bytes + (1 << 20), "{first}\n{second}");
}

fn ten_thousand_requests() {
    const COUNT: usize = 10_000;
    let before = stats();
    let mut open = Vec::with_capacity(COUNT);
    let with_the_vector = stats().in_use_bytes;
    open.extend((0..COUNT).map(|_| Request::new()));
    let idle = stats();
    assert_eq!(idle.open_request_count, before.open_request_count + COUNT as u64);
    // Pooled control blocks are in use, too, so a new one costs at most this.
    let each = idle.in_use_bytes.saturating_sub(with_the_vector) / COUNT;
    eprintln!("an idle open request: {each} bytes");
    assert!(each <= 2400, "{each} bytes for an idle open request");

    let mut random = Random::new(4711);
    let mut open: Vec<(Request, Vec<Held>)> = open
        .into_iter()
        .enumerate()
        .map(|(number, request)| {
            let mut held = Vec::with_capacity(4);
            let count = 1 + number % 4;
            request.run(|| {
                held.extend((0..count).map(|_| Held::new(random.size(2_000), number as u64)));
            });
            (request, held)
        })
        .collect();
    shuffle(&mut random, &mut open);
    let mut survivors = Vec::with_capacity(4 * COUNT);
    for (number, (request, mut held)) in open.into_iter().enumerate() {
        held.iter().for_each(Held::verify);
        assert!(held.iter().all(|held| held.owner() == Some(request.id())));
        assert_eq!(request.usage().live_blocks, held.len() as u64);
        match number % 4 {
            0 => {
                held.into_iter().for_each(Held::free);
                close_empty(request);
            }
            1 => {
                let count = held.len() as u64;
                drop(held);
                // SAFETY: its blocks are forgotten.
                let report = unsafe { request.end() }.unwrap();
                assert_eq!((report.freed_blocks, report.surviving_blocks), (count, 0));
            }
            2 => {
                survivors.append(&mut held);
                drop(request);
            }
            _ => {
                let report = request.close().unwrap();
                assert_eq!(report.surviving_blocks, held.len() as u64);
                survivors.append(&mut held);
            }
        }
    }
    assert_eq!(stats().open_request_count, before.open_request_count);
    shuffle(&mut random, &mut survivors);
    survivors.into_iter().for_each(Held::free);
    rqmalloc::check_structures();
}

fn trim_all() {
    // What the last one freed may let the next one find more.
    for _ in 0..3 {
        rqmalloc::trim();
    }
}

#[test]
fn threads_on_a_barrier_with_a_new_request_each_round() {
    let _alone = alone();
    const COUNT: usize = 32;
    let before = stats().open_request_count;
    let barrier = Arc::new(Barrier::new(COUNT));
    let current: Arc<Mutex<Option<Request>>> = Arc::default();
    // What each thread leaves for its neighbour to free in the next round.
    let left: Arc<Vec<Mutex<Vec<Held>>>> = Arc::new((0..COUNT).map(|_| Mutex::default()).collect());
    let threads: Vec<_> = (0..COUNT)
        .map(|thread| {
            let (barrier, current, left) = (barrier.clone(), current.clone(), left.clone());
            std::thread::spawn(move || {
                let mut random = Random::new(thread as u64);
                for round in 0..40 {
                    if thread == round % COUNT {
                        *current.lock().unwrap() = Some(Request::new());
                    }
                    barrier.wait();
                    let request = current.lock().unwrap().clone().unwrap();
                    let mut held = Vec::with_capacity(30);
                    request.run(|| {
                        held.extend((0..30).map(|seed| Held::new(random.size(3_000), seed)));
                        held.drain(..10).for_each(Held::free);
                    });
                    let own = Request::new();
                    held.push(own.run(|| Held::new(100, round as u64)));
                    drop(own);
                    let before = std::mem::replace(&mut *left[thread].lock().unwrap(), held);
                    before.into_iter().for_each(Held::free);
                    drop(request);
                    barrier.wait();
                    if thread == (round + 1) % COUNT {
                        // Drops the last handle while blocks are live, which the neighbours free
                        // meanwhile.
                        drop(current.lock().unwrap().take());
                    }
                    let neighbour = (thread + 1) % COUNT;
                    let freed: Vec<_> = std::mem::take(&mut *left[neighbour].lock().unwrap());
                    freed.into_iter().for_each(Held::free);
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert_eq!(stats().open_request_count, before);
    for held in left.iter() {
        held.lock().unwrap().drain(..).for_each(Held::free);
    }
    rqmalloc::check_structures();
}

#[test]
fn a_survivor_outlives_its_thread_and_its_request() {
    let _together = together();
    let mut survivors = Vec::new();
    for seed in 0..50 {
        survivors.append(&mut elsewhere(move || {
            rqmalloc::begin_request();
            let mut held: Vec<_> = persistent(|| Vec::with_capacity(3));
            held.push(Held::new(100, seed));
            held.push(Held::new(40_000, seed));
            held.push(Held::new(2 << 20, seed));
            assert_eq!(rqmalloc::close_request().surviving_blocks, 3);
            assert!(held.iter().all(|held| held.owner().is_none()), "adopted");
            held
        }));
    }
    // Control blocks and threads are reused meanwhile.
    for seed in 0..50 {
        elsewhere(move || {
            let request = Request::new();
            request.run(|| (0..100).for_each(|size| Held::new(1 + size, seed).free()));
            close_empty(request);
        });
    }
    assert!(survivors.iter().all(|held| held.owner().is_none()), "they are the process's");
    for (index, mut held) in survivors.into_iter().enumerate() {
        match index % 3 {
            0 => held.free(),
            1 => elsewhere(move || held.free()),
            _ => {
                // Resized, it no longer has the lifetime of its request, which is closed.
                held.resize(held.size() / 3);
                let request = Request::new();
                request.run(|| held.free());
                close_empty(request);
            }
        }
    }
}

/// An entry of any kind.
enum Level {
    Guard(Request, Option<Entered>),
    Hook,
}

#[test]
fn a_hundred_levels() {
    let _together = together();
    let mut random = Random::new(99);
    let mut levels: Vec<Level> = Vec::with_capacity(100);
    let mut expected = Vec::with_capacity(100);
    let mut held = Vec::with_capacity(100);
    for depth in 0..100u64 {
        if depth % 3 == 0 {
            expected.push(rqmalloc::begin_request());
            levels.push(Level::Hook);
        } else {
            let request = match levels.get(random.below(levels.len())) {
                // Now and then, one that this thread is already inside.
                Some(Level::Guard(request, _)) if depth % 5 == 0 => request.clone(),
                _ => Request::new(),
            };
            expected.push(request.id());
            let entered = request.enter();
            levels.push(Level::Guard(request, Some(entered)));
        }
        held.push(Held::new(100, depth));
        assert_eq!(held.last().unwrap().owner(), expected.last().copied(), "depth {depth}");
        if depth % 7 == 0 {
            persistent(|| assert_eq!((active_owner(), current_id().is_some()), (None, true)));
        }
    }
    // Guards are dropped in any order, hooks from the innermost out.
    let (mut left, mut hooks): (Vec<usize>, Vec<usize>) =
        persistent(|| ((0..100).collect(), (0..100).filter(|depth| depth % 3 == 0).collect()));
    while !left.is_empty() {
        let choice = left[random.below(left.len())];
        let gone = match &mut levels[choice] {
            Level::Guard(_, entered) => {
                *entered = None;
                choice
            }
            Level::Hook => {
                let innermost = hooks.pop().unwrap();
                let report = rqmalloc::close_request();
                assert_eq!((report.id, report.surviving_blocks), (expected[innermost], 1));
                innermost
            }
        };
        left.retain(|&depth| depth != gone);
        let top = left.iter().max().map(|&depth| expected[depth]);
        assert_eq!((current_id(), active_owner()), (top, top), "after {gone}");
    }
    held.into_iter().for_each(Held::free);
    drop(levels);
    assert_eq!(current_id(), None);
}

/// `persistent` and requests inside each other, and a panic from the innermost.
#[test]
fn a_hundred_levels_of_closures() {
    let _together = together();
    fn dive(depth: usize, seen: &mut Vec<Held>, unwinds: bool) {
        if depth == 100 {
            if unwinds {
                persistent(|| crate::support::unwind(1));
            }
            return;
        }
        let request = Request::new();
        request.run(|| {
            seen.push(Held::new(64, depth as u64));
            assert_eq!(seen.last().unwrap().owner(), Some(request.id()));
            if depth % 2 == 0 {
                persistent(|| {
                    assert_eq!((active_owner(), current_id()), (None, Some(request.id())));
                    dive(depth + 1, seen, unwinds);
                });
            } else {
                dive(depth + 1, seen, unwinds);
            }
            assert_eq!(active_owner(), Some(request.id()));
        });
    }
    for unwinds in [false, true] {
        let mut seen = Vec::with_capacity(100);
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            dive(0, &mut seen, unwinds);
        }));
        assert_eq!(caught.is_err(), unwinds);
        assert_eq!((current_id(), active_owner(), seen.len()), (None, None, 100));
        seen.into_iter().for_each(Held::free);
    }
}

/// The thread's exit leaves a hundred forgotten guards.
#[test]
fn a_hundred_forgotten_levels() {
    let _alone = alone();
    let before = stats().open_request_count;
    let shared = Request::new();
    let inside = shared.clone();
    let held = elsewhere(move || {
        let mut held = persistent_vec();
        for depth in 0..100 {
            let request = if depth % 4 == 0 { inside.clone() } else { Request::new() };
            std::mem::forget(request.enter());
            held.push(Held::new(64, depth));
            assert_eq!(held.last().unwrap().owner(), Some(request.id()));
        }
        assert_eq!(stats().open_request_count, before + 76);
        held
    });
    assert_eq!(stats().open_request_count, before + 1);
    assert_eq!(
        shared.to_string(),
        format!("request {}: open, no other handle is alive", shared.id())
    );
    held.into_iter().for_each(Held::free);
    assert!(shared.close().is_ok());
}
