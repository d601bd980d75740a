//! Bulk free: when a request ends, all of its blocks go, counted to the last one, and nothing else
//! does.

use crate::support::{Held, MAX_CLASS, charged_for, elsewhere, payloads, persistent_vec, together};
use rqmalloc::Request;

/// Ends the innermost request of the hooks, of which the caller uses nothing any more.
fn end() -> rqmalloc::Report {
    // SAFETY: the callers in this file keep that contract.
    unsafe { rqmalloc::end_request() }
}

/// Adds a block of each class, and mappings.
fn fill(held: &mut Vec<Held>, align: usize, seed: u64) {
    held.extend(
        payloads()
            .chain([MAX_CLASS + 1, 2 << 20, 9 << 20])
            .map(|size| Held::new(size, align, seed)),
    );
}

#[test]
fn end_frees_every_class_and_leaves_persistent_bytes() {
    let _together = together();
    let mut persistent = persistent_vec();
    fill(&mut persistent, 8, 1);
    fill(&mut persistent, 4096, 2);
    let mut inside = persistent_vec();
    for round in 0..4 {
        let request = Request::new();
        request.run(|| {
            fill(&mut inside, 8, 10 + round);
            fill(&mut inside, 128, 20 + round);
        });
        let mut kept = persistent_vec();
        request.run(|| rqmalloc::persistent(|| fill(&mut kept, 8, round)));
        inside.iter().for_each(Held::verify);
        let usage = request.usage();
        assert_eq!(usage.live_blocks, inside.len() as u64);
        // SAFETY: the blocks in `inside` are forgotten unread.
        let report = unsafe { request.end() }.unwrap();
        assert_eq!(report.freed_blocks, inside.len() as u64);
        assert_eq!(report.freed_bytes, usage.live_bytes);
        assert_eq!((report.surviving_blocks, report.surviving_bytes, report.span_bytes), (0, 0, 0));
        inside.clear();
        persistent.iter().chain(&kept).for_each(Held::verify);
        kept.into_iter().for_each(Held::free);
    }
    persistent.into_iter().for_each(Held::free);
}

#[test]
fn what_was_freed_before_the_end_is_not_counted() {
    let _together = together();
    for freed_of_ten in 0..=10 {
        let mut held = persistent_vec();
        rqmalloc::begin_request();
        for index in 0..200 {
            held.push(Held::new(16 + index * 13, 8, index as u64));
        }
        let mut left_bytes = 0;
        for (index, held) in held.drain(..).enumerate() {
            if index % 10 < freed_of_ten {
                held.free();
            } else {
                left_bytes += held.charge();
            }
        }
        let report = end();
        assert_eq!(report.freed_blocks, 200 - 20 * freed_of_ten as u64);
        assert_eq!(report.freed_bytes, left_bytes);
    }
}

#[test]
fn end_counts_what_other_threads_freed() {
    let _together = together();
    for round in 0..20_usize {
        let mut theirs = persistent_vec();
        let mut held = persistent_vec();
        rqmalloc::begin_request();
        for index in 0..100 {
            let block = Held::new(1 + index * 37 % 3000, 1 << (index % 8), index as u64);
            if index % 4 == round % 4 { theirs.push(block) } else { held.push(block) }
        }
        theirs.push(Held::new(100_000, 8, 1));
        theirs.push(Held::new(2 << 20, 8, 2));
        let freed = theirs.len() as u64;
        rqmalloc::persistent(|| elsewhere(move || theirs.into_iter().for_each(Held::free)));
        let usage = Request::current().unwrap().usage();
        assert_eq!(usage.live_blocks, 102 - freed);
        // What came back is used again, and then no longer counted as a stray.
        if round % 2 == 0 {
            for index in 0..2000 {
                held.push(Held::new(1 + index % 3000, 8, 3));
            }
        }
        let live = held.len() as u64;
        held.clear();
        let report = end();
        assert_eq!(report.freed_blocks, live);
    }
}

#[test]
fn end_counts_exactly_when_all_was_freed_from_outside() {
    let _together = together();
    let request = Request::new();
    let mut held = persistent_vec();
    request.run(|| fill(&mut held, 8, 3));
    held.into_iter().for_each(Held::free);
    assert_eq!(request.usage().live_blocks, 0);
    assert_eq!(request.usage().live_bytes, 0);
    // SAFETY: nothing of it is left.
    let report = unsafe { request.end() }.unwrap();
    assert_eq!((report.freed_blocks, report.freed_bytes), (0, 0));
}

#[test]
fn a_request_without_an_allocation() {
    let _together = together();
    for _ in 0..100 {
        let id = rqmalloc::begin_request();
        let report = end();
        assert_eq!((report.id, report.freed_blocks, report.peak_bytes), (id, 0, 0));
        assert_eq!(report.to_string(), format!("request {id}: peak 0 B, nothing left behind"));
        let id = rqmalloc::begin_request();
        let report = rqmalloc::close_request();
        assert_eq!((report.id, report.surviving_blocks, report.span_bytes), (id, 0, 0));
        drop(Request::new());
    }
}

#[test]
fn ids_are_never_used_twice() {
    let _together = together();
    let ids = |count| {
        let mut ids = Vec::with_capacity(count);
        for _ in 0..count {
            ids.push(rqmalloc::begin_request());
            let _ = end();
        }
        ids
    };
    let threads: Vec<_> = (0..4).map(|_| std::thread::spawn(move || ids(3000))).collect();
    let mut all = ids(3000);
    threads.into_iter().for_each(|thread| all.extend(thread.join().unwrap()));
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), 15_000);
}

#[test]
fn end_in_another_thread_than_the_one_that_allocated() {
    let _together = together();
    for _ in 0..50 {
        let request = Request::new();
        let mut held = persistent_vec();
        request.run(|| fill(&mut held, 8, 4));
        let count = held.len() as u64;
        let (report, more) = elsewhere(move || {
            // This thread goes on with the same lane.
            let mut more = persistent_vec();
            request.run(|| fill(&mut more, 16, 5));
            held.iter().chain(&more).for_each(Held::verify);
            let more = more.len() as u64;
            // SAFETY: nothing of the request is used any more.
            (unsafe { request.end() }.unwrap(), more)
        });
        assert_eq!(report.freed_blocks, count + more);
    }
}

#[test]
fn end_of_a_request_that_several_threads_were_in() {
    let _together = together();
    for _ in 0..10 {
        let request = Request::new();
        let threads: Vec<_> = (0..4)
            .map(|thread| {
                let request = request.clone();
                std::thread::spawn(move || {
                    let mut held = persistent_vec();
                    let _entered = request.enter();
                    for index in 0..200 {
                        held.push(Held::new(1 + index * 11, 8, thread));
                    }
                    held.drain(..50).for_each(Held::free);
                    held.iter().for_each(Held::verify);
                    held
                })
            })
            .collect();
        let mut held: Vec<Held> =
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
        assert_eq!(request.usage().live_blocks, 600);
        // A thread that frees inside frees to the lane it is in.
        request.run(|| held.drain(..300).for_each(Held::free));
        assert_eq!(request.usage().live_blocks, 300);
        let bytes = request.usage().live_bytes;
        assert_eq!(bytes, held.iter().map(Held::charge).sum());
        // SAFETY: nothing of the request is used any more.
        let report = unsafe { request.end() }.unwrap();
        assert_eq!((report.freed_blocks, report.freed_bytes), (300, bytes));
    }
}

#[test]
fn a_kept_block_of_every_kind_outlives_the_end() {
    let _together = together();
    for align in [8, 64, 4096] {
        for every in [1, 2, 7] {
            let mut kept = persistent_vec();
            let mut doomed = persistent_vec();
            let mut persistent = persistent_vec();
            fill(&mut persistent, align, 6);
            rqmalloc::begin_request();
            for size in payloads().chain([MAX_CLASS + 1, 2 << 20, 9 << 20]) {
                kept.push(Held::new(size, align, size as u64));
                (1..every).for_each(|_| doomed.push(Held::new(size, align, 7)));
            }
            for held in &kept {
                // SAFETY: live blocks that no other thread knows.
                unsafe { rqmalloc::persist(held.pointer) };
                assert_eq!(held.owner(), None, "persistent at once");
            }
            assert_eq!(Request::current().unwrap().usage().live_blocks, doomed.len() as u64);
            // Half of the others are free by then.
            let gone = doomed.len() / 2;
            doomed.drain(..gone).for_each(Held::free);
            let expected = doomed.len() as u64;
            doomed.clear();
            let report = end();
            assert_eq!(report.freed_blocks, expected);
            assert_eq!(report.surviving_blocks, 0, "they are not the request's any more");
            // What the end gave back is used by others.
            let mut others = persistent_vec();
            fill(&mut others, align, 8);
            rqmalloc::begin_request();
            fill(&mut others, align, 9);
            kept.iter().for_each(Held::verify);
            kept.into_iter().for_each(Held::free);
            others.drain(..).for_each(Held::free);
            assert_eq!(end().freed_blocks, 0);
            persistent.into_iter().for_each(Held::free);
        }
    }
}

#[test]
fn persist_of_a_persistent_block_changes_nothing() {
    let _together = together();
    let held = Held::new(100, 8, 9);
    rqmalloc::begin_request();
    // SAFETY: a live block.
    unsafe { rqmalloc::persist(held.pointer) };
    let report = end();
    assert_eq!(report.surviving_blocks, 0);
    held.free();
}

#[test]
fn a_kept_block_may_be_freed_before_the_end() {
    let _together = together();
    rqmalloc::begin_request();
    let blocks = [
        Held::new(100, 8, 1),
        Held::new(50_000, 8, 2),
        Held::new(3 << 20, 8, 3),
        Held::new(9, 256, 4),
    ];
    for held in &blocks {
        // SAFETY: a live block.
        unsafe { rqmalloc::persist(held.pointer) };
    }
    let [small, span, mapping, aligned] = blocks;
    small.free();
    mapping.free();
    rqmalloc::persistent(|| {
        elsewhere(move || {
            span.free();
            aligned.free();
        });
    });
    assert_eq!(Request::current().unwrap().usage().live_blocks, 0);
    let report = end();
    assert_eq!((report.freed_blocks, report.surviving_blocks), (0, 0));
}

#[test]
#[should_panic(expected = "end_request: no request is open on this thread")]
fn end_of_none() {
    let _together = together();
    let _ = end();
}

#[test]
#[should_panic(expected = "close_request: no request is open on this thread")]
fn close_of_none() {
    let _together = together();
    let _ = rqmalloc::close_request();
}

#[test]
#[should_panic(expected = "end_request: no request is open on this thread")]
fn end_twice() {
    let _together = together();
    rqmalloc::begin_request();
    let _ = end();
    let _ = end();
}

#[test]
#[should_panic(expected = "end_request: no request is open on this thread")]
fn a_guard_is_not_the_hook_s_to_end() {
    let _together = together();
    let request = Request::new();
    let _entered = request.enter();
    let _ = end();
}

#[test]
fn a_second_handle_keeps_the_request_open() {
    let _together = together();
    rqmalloc::begin_request();
    let held = Held::new(100, 8, 1);
    let handle = Request::current().unwrap();
    let report = end();
    assert!(report.still_open);
    assert_eq!(report.freed_blocks, 0);
    assert!(report.to_string().ends_with("still open: other handles are alive"));
    held.verify();
    assert_eq!(handle.usage().live_blocks, 1);
    // SAFETY: the block is not used any more.
    let report = unsafe { handle.end() }.unwrap();
    assert_eq!((report.still_open, report.freed_blocks), (false, 1));
}

#[test]
fn end_and_close_give_the_request_back_while_others_have_it() {
    let _together = together();
    let request = Request::new();
    let clone = request.clone();
    let request = request.close().unwrap_err();
    // SAFETY: nothing of it is used; and it will not end.
    let request = unsafe { request.end() }.unwrap_err();
    drop(clone);
    let entered = request.enter();
    let request = request.close().unwrap_err();
    drop(entered);
    assert!(!request.close().unwrap().still_open);
}

#[test]
fn a_report_names_its_request() {
    let _together = together();
    let request = Request::builder().name("GET /").build();
    let held = request.run(|| Held::new(100, 8, 1));
    assert!(format!("{request:?}").contains("GET /"));
    let id = request.id();
    let report = request.close().unwrap();
    assert_eq!((report.id, report.name), (id, rqmalloc::RequestName::new("GET /")));
    // One region, or a hole of an adopted span.
    let shown = |bytes: usize| {
        assert!((256..=256 << 10).contains(&bytes));
        if bytes < 1024 {
            format!("{bytes} B")
        } else {
            format!("{}.{} KiB", bytes >> 10, bytes % 1024 * 10 / 1024)
        }
    };
    let (peak, spans) = (shown(report.peak_bytes), shown(report.span_bytes));
    let elapsed = match report.elapsed.unwrap().as_millis() {
        0 => String::new(),
        milliseconds => format!(", {milliseconds} ms"),
    };
    assert_eq!(
        report.to_string(),
        format!(
            "request {id} (GET /): peak {peak}{elapsed}, 1 block survives (112 B in spans of {spans})"
        )
    );
    held.free();
}

#[test]
fn the_peak_is_the_largest_footprint() {
    let _together = together();
    let request = Request::new();
    request.run(|| {
        assert_eq!(request.usage().peak_bytes, 0);
        Held::new(100, 8, 1).free();
        let region = request.usage().footprint_bytes;
        assert_eq!(request.usage().peak_bytes, region);
        let large = [Held::new(500_000, 8, 2), Held::new(500_000, 8, 3)];
        let peak = request.usage().footprint_bytes;
        assert_eq!(peak, region + 2 * charged_for(500_000));
        large.into_iter().for_each(Held::free);
        assert_eq!(request.usage().footprint_bytes, region);
        Held::new(500_000, 8, 4).free();
        assert_eq!(request.usage().peak_bytes, peak);
    });
    let peak = request.usage().peak_bytes;
    assert_eq!(request.close().unwrap().peak_bytes, peak);
}

/// The regions that stay with a control block do not make the next request look large, not even
/// after a sweep has gone through them.
#[test]
fn a_small_request_after_a_large_one_is_small() {
    let _together = together();
    // In a thread of its own, whose requests all use the same control block.
    elsewhere(|| {
        for _ in 0..3 {
            let large = Request::new();
            large.run(|| {
                let mut held = Vec::new();
                for size in [40, 400, 90, 1_500] {
                    held.clear();
                    held.extend((0..400_000 / size).map(|_| vec![1_u8; size]));
                }
            });
            assert!(large.usage().footprint_bytes > 400_000);
            // SAFETY: what was allocated inside was dropped there.
            let _ = unsafe { large.end() }.unwrap();
            let small = Request::new();
            drop(small.run(|| Box::new(1_u64)));
            // A region of one page, or a hole.
            assert!(small.usage().footprint_bytes <= 16 * 1024);
            let _ = small.close().unwrap();
        }
    });
}

/// The end gives spans back and looks at no block: it does not notice that every header is gone. (A
/// walk over the blocks would end the process with `header overwritten`.)
#[test]
fn end_looks_at_no_block() {
    let _together = together();
    for _ in 0..2 {
        const COUNT: usize = 20_000;
        let request = Request::new();
        request.run(|| {
            for index in 0..COUNT {
                let bytes = std::hint::black_box(vec![1_u8; 1 + index % 500].into_boxed_slice());
                let block = Box::into_raw(bytes);
                // SAFETY: the word before a payload is mapped, and nobody reads this one again: the
                // block is neither freed nor resized.
                unsafe { block.cast::<u64>().sub(1).write(u64::MAX) };
            }
        });
        // SAFETY: nothing points to the blocks any more.
        let report = unsafe { request.end() }.unwrap();
        assert_eq!(report.freed_blocks, COUNT as u64);
        assert_eq!(report.surviving_blocks, 0);
    }
}
