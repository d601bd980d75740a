//! Close keeps what is still live, for as long as it is, and pins only its pages.

use crate::support::{
    Held, MAX_CLASS, PAGE, alone, charged_for, elsewhere, payloads, persistent_vec, together,
};
use rqmalloc::Request;

fn survivors_of(request: Request, expected: usize) -> rqmalloc::Report {
    let report = request.close().unwrap();
    assert_eq!(report.surviving_blocks, expected as u64);
    report
}

#[test]
fn a_survivor_of_every_kind_is_valid_until_it_is_freed() {
    let _together = together();
    for align in [8, 64, 4096] {
        let request = Request::new();
        let mut held = persistent_vec();
        request.run(|| {
            for size in payloads().chain([MAX_CLASS + 1, 2 << 20, 9 << 20]) {
                held.push(Held::new(size, align, size as u64));
                Held::new(size, align, 0).free();
            }
        });
        let bytes = request.usage().live_bytes;
        let report = survivors_of(request, held.len());
        assert_eq!((report.freed_blocks, report.surviving_bytes), (0, bytes));
        // The pages in between are used by others now.
        let others: Vec<_> =
            (0..600).map(|seed| Held::new(1 + seed as usize * 97, 8, seed)).collect();
        for held in held {
            assert_eq!(held.owner(), None, "adopted");
            held.free();
        }
        others.into_iter().for_each(Held::free);
    }
}

#[test]
fn close_keeps_only_pages() {
    let _together = together();
    let request = Request::new();
    let mut held = persistent_vec();
    request.run(|| (0..20_000).for_each(|seed| held.push(Held::new(100, 8, seed))));
    let footprint = request.usage().footprint_bytes;
    assert!(footprint >= 20_000 * 112);
    // One of five thousand stays.
    let mut kept = persistent_vec();
    for (index, held) in held.into_iter().enumerate() {
        if index % 5000 == 2500 { kept.push(held) } else { request.run(|| held.free()) }
    }
    let report = survivors_of(request, kept.len());
    assert_eq!(report.surviving_bytes, kept.len() * charged_for(100));
    // A page for each, but for spans that the request was lent.
    assert!(report.span_bytes <= kept.len() * 16 * PAGE);
    assert!(report.reusable_bytes < report.span_bytes);
    kept.iter().for_each(Held::verify);
    kept.into_iter().for_each(Held::free);
}

#[test]
fn a_survivor_across_pages_keeps_them_all() {
    let _together = together();
    let request = Request::new();
    let held = request.run(|| {
        // Until one crosses the edge of a page, in a region that is long enough.
        std::iter::repeat_with(|| Held::new(32_000, 8, 1))
            .take(20)
            .reduce(|kept, held| {
                let spans = |held: &Held| {
                    (held.pointer.addr() + held.usable() - 1) / PAGE
                        - (held.pointer.addr() - 8) / PAGE
                        + 1
                };
                if spans(&held) == 3 && spans(&kept) < 3 {
                    kept.free();
                    held
                } else {
                    held.free();
                    kept
                }
            })
            .unwrap()
    });
    let report = survivors_of(request, 1);
    assert!(report.span_bytes >= report.surviving_bytes + report.reusable_bytes);
    let others: Vec<_> = (0..200).map(|seed| Held::new(10_000, 8, seed)).collect();
    held.free();
    others.into_iter().for_each(Held::free);
}

#[test]
fn a_survivor_is_freed_by_another_thread() {
    let _together = together();
    for _ in 0..50 {
        let request = Request::new();
        let held: Vec<_> =
            request.run(|| (0..100).map(|seed| Held::new(50 + seed as usize, 8, seed)).collect());
        let count = held.len() + 1;
        let _ = survivors_of(request, count);
        elsewhere(move || held.into_iter().for_each(Held::free));
    }
}

#[test]
fn a_survivor_is_freed_after_its_thread_and_the_closer_s_have_exited() {
    let _together = together();
    for size in [100, 10_000, 60_000, 700_000, 3 << 20] {
        let (request, held) = elsewhere(move || {
            let request = Request::new();
            let held = request.run(|| [Held::new(size, 8, 1), Held::new(size, 8, 2)]);
            (request, held)
        });
        let report = elsewhere(move || survivors_of(request, 2));
        assert!(report.span_bytes >= 2 * size);
        let [first, second] = held;
        elsewhere(move || first.free());
        second.free();
    }
}

#[test]
fn survivors_are_freed_while_their_region_s_neighbours_are_used() {
    let _together = together();
    let mut old: Vec<Held> = Vec::new();
    for round in 0..200_u64 {
        let request = Request::new();
        let mut fresh = persistent_vec();
        request.run(|| {
            for seed in 0..60 {
                fresh.push(Held::new(1 + (seed * 131 + round * 17) as usize % 4000, 8, seed));
            }
        });
        request.run(|| {
            for held in fresh.drain(..50) {
                held.free();
            }
        });
        let _ = survivors_of(request, 10);
        // Half of those from the round before are freed inside another request.
        let half = old.len() / 2;
        let other = Request::new();
        other.run(|| old.drain(..half).for_each(Held::free));
        old.append(&mut fresh);
    }
    old.into_iter().for_each(Held::free);
}

#[test]
fn the_last_handle_closes() {
    let _together = together();
    let request = Request::new();
    let held = request.run(|| Held::new(100, 8, 1));
    let clone = request.clone();
    drop(request);
    assert_eq!(clone.usage().live_blocks, 1);
    drop(clone);
    let other = Request::new();
    other.run(|| Held::new(100, 8, 2).free());
    held.free();
}

#[test]
fn a_guard_keeps_the_request_open_when_every_handle_is_gone() {
    let _together = together();
    let request = Request::new();
    let id = request.id();
    let entered = request.enter();
    drop(request);
    let held = Held::new(100, 8, 1);
    assert_eq!(held.owner(), Some(id));
    assert_eq!(Request::current().unwrap().id(), id);
    drop(entered);
    assert!(Request::current().is_none());
    held.free();
}

#[test]
fn new_requests_work_beside_survivors_of_old_ones() {
    let _together = together();
    let mut kept = Vec::new();
    for seed in 0..300 {
        let request = Request::new();
        let id = request.id();
        let size = if seed % 50 == 49 { 2 << 20 } else { 40 + seed as usize };
        kept.push((request.run(|| Held::new(size, 8, seed)), id));
        let _ = survivors_of(request, 1);
    }
    assert!(kept.iter().all(|(held, _)| held.owner().is_none()), "adopted");
    let mut ids: Vec<_> = kept.iter().map(|(_, id)| *id).collect();
    ids.dedup();
    assert_eq!(ids.len(), 300);
    for (index, (held, _)) in kept.into_iter().enumerate() {
        held.free();
        if index % 3 == 0 {
            // The control block is recycled by now, and used by another request.
            let request = Request::new();
            let other = request.run(|| Held::new(77, 8, 5));
            assert_eq!(request.usage().live_blocks, 1);
            request.run(|| other.free());
        }
    }
}

#[test]
fn what_was_freed_from_outside_does_not_survive() {
    let _together = together();
    let request = Request::new();
    let mut held: Vec<_> = request.run(|| (0..100).map(|seed| Held::new(100, 8, seed)).collect());
    let rest = held.split_off(60);
    elsewhere(move || held.into_iter().for_each(Held::free));
    // The vector that `collect` allocated inside was freed there, too.
    let report = survivors_of(request, 40);
    assert_eq!(report.surviving_bytes, 40 * charged_for(100));
    rest.into_iter().for_each(Held::free);
}

#[test]
fn close_after_several_threads_were_inside() {
    let _together = together();
    let request = Request::new();
    let threads: Vec<_> = (0..4)
        .map(|thread| {
            let request = request.clone();
            std::thread::spawn(move || {
                let mut held = Vec::with_capacity(300);
                let entered = request.enter();
                (0..300).for_each(|seed| {
                    held.push(Held::new(1 + seed as usize * 7, 8, thread * 1000 + seed))
                });
                held.drain(..100).for_each(Held::free);
                drop(entered);
                held
            })
        })
        .collect();
    let held: Vec<Vec<Held>> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    let _ = survivors_of(request, 800);
    let threads: Vec<_> = held
        .into_iter()
        .map(|held| std::thread::spawn(move || held.into_iter().for_each(Held::free)))
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

/// A lane may cut small blocks from the inside of a large free one that lies in another lane's
/// region.
#[test]
fn close_walks_a_region_that_another_lane_cuts_in() {
    let _together = together();
    for size in [2_000, 5_000, 10_000, 30_000] {
        let request = Request::new();
        let mut held = persistent_vec();
        let inside = request.enter();
        let first = Held::new(size, 8, 1);
        (0..200).for_each(|seed| held.push(Held::new(size, 8, seed)));
        let theirs = request.clone();
        let small = rqmalloc::persistent(|| {
            elsewhere(move || {
                let mut small = persistent_vec();
                let _inside = theirs.enter();
                held.into_iter().for_each(Held::free);
                (0..30).for_each(|seed| small.push(Held::new(100, 8, seed)));
                small
            })
        });
        drop(inside);
        let report = survivors_of(request, 31);
        assert_eq!(report.freed_blocks, 0);
        first.free();
        small.into_iter().for_each(Held::free);
    }
}

/// Without regions of their own for long blocks, each survivor here keeps most of a page, or more.
#[test]
fn short_survivors_lie_close_together_whatever_their_requests_needed() {
    const SURVIVORS: usize = 2000;
    const BYTES: usize = 500;
    let _alone = alone();
    for long_bytes in [4000, 16_000] {
        rqmalloc::trim();
        let before = rqmalloc::stats().adopted_bytes;
        let mut ring: Vec<Option<Vec<u8>>> = (0..SURVIVORS).map(|_| None).collect();
        for round in 0..4 * SURVIVORS {
            let request = Request::new();
            ring[round % SURVIVORS] = Some(request.run(|| {
                for step in 0..12 {
                    drop(std::hint::black_box(vec![1u8; 20 + 37 * (step * round % 9)]));
                    drop(std::hint::black_box(vec![
                        1u8;
                        if step % 4 == 3 { long_bytes } else { 30 }
                    ]));
                }
                vec![2u8; BYTES]
            }));
            let _ = request.close().unwrap();
        }
        let each = rqmalloc::stats().adopted_bytes.saturating_sub(before) / SURVIVORS;
        eprintln!("{long_bytes}: {each} bytes of adopted pages for each survivor");
        assert!(each < 3 * BYTES, "{each} bytes of pages for each survivor");
    }
}

#[test]
fn rust_s_own_values_survive() {
    let _together = together();
    let request = Request::new();
    let (words, shared) = request.run(|| {
        let words: Vec<String> = (0..1000).map(|number| format!("word {number}")).collect();
        (words, std::sync::Arc::new(std::sync::Mutex::new(vec![1, 2, 3])))
    });
    let weak = std::sync::Arc::downgrade(&shared);
    let report = request.close().unwrap();
    assert_eq!(report.surviving_blocks, 1003);
    shared.lock().unwrap().extend(4..1000);
    drop(shared);
    assert!(weak.upgrade().is_none());
    assert!(words.iter().enumerate().all(|(number, word)| *word == format!("word {number}")));
}

#[test]
fn what_is_made_lazily_inside_a_request_survives_it() {
    use std::cell::RefCell;
    use std::sync::OnceLock;
    static LAZY: OnceLock<Vec<u32>> = OnceLock::new();
    thread_local! {
        static LOCAL: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
    }
    let _together = together();
    let request = Request::new();
    request.run(|| {
        LAZY.get_or_init(|| (0..1000).collect());
        LOCAL.with_borrow_mut(|local| local.push("a word that is too long for nothing".to_owned()));
    });
    let report = request.close().unwrap();
    assert!(report.surviving_blocks >= 3, "{report}");
    assert!(LAZY.get().unwrap().iter().copied().eq(0..1000));
    LOCAL.with_borrow_mut(|local| {
        local.push("and another".to_owned());
        assert_eq!(local.concat(), "a word that is too long for nothingand another");
    });
}
