//! Being inside: nested requests, persistent scopes, guards dropped in any order or never, panics.

use crate::support::{Held, elsewhere, persistent_vec, together};
use rqmalloc::{Request, RequestId, begin_request, close_request, persistent};
use std::panic::{AssertUnwindSafe, catch_unwind};

fn end() -> rqmalloc::Report {
    // SAFETY: the callers in this file use nothing of the request any more.
    unsafe { rqmalloc::end_request() }
}

/// Returns the request of a block that this thread allocates now.
fn active() -> Option<RequestId> {
    let probe = Held::new(40, 8, 1);
    let owner = probe.owner();
    probe.free();
    owner
}

fn current() -> Option<RequestId> {
    Request::current().map(|request| request.id())
}

#[test]
fn an_inner_request_s_blocks_are_not_the_outer_s() {
    let _together = together();
    let outer = begin_request();
    let mine = Held::new(100, 8, 1);
    let inner = begin_request();
    assert_ne!(inner, outer);
    let theirs = Held::new(100, 8, 2);
    assert_eq!((mine.owner(), theirs.owner()), (Some(outer), Some(inner)));
    let report = end();
    assert_eq!((report.id, report.freed_blocks), (inner, 1));
    mine.verify();
    let report = end();
    assert_eq!((report.id, report.freed_blocks), (outer, 1));
}

#[test]
fn an_outer_block_is_freed_inside_and_an_inner_one_outside() {
    let _together = together();
    begin_request();
    let outer = [Held::new(100, 8, 1), Held::new(60_000, 8, 2), Held::new(2 << 20, 8, 3)];
    begin_request();
    let inner = [Held::new(100, 8, 4), Held::new(60_000, 8, 5), Held::new(2 << 20, 8, 6)];
    outer.into_iter().for_each(Held::free);
    let report = close_request();
    assert_eq!((report.freed_blocks, report.surviving_blocks), (0, 3));
    inner.into_iter().for_each(Held::free);
    assert_eq!(end().freed_blocks, 0);
}

#[test]
fn persistent_scopes_and_requests_nest() {
    let _together = together();
    assert_eq!(active(), None);
    let one = begin_request();
    assert_eq!(active(), Some(one));
    persistent(|| {
        assert_eq!((active(), current()), (None, Some(one)));
        let two = begin_request();
        assert_eq!((active(), current()), (Some(two), Some(two)));
        persistent(|| persistent(|| assert_eq!(active(), None)));
        assert_eq!(active(), Some(two));
        assert_eq!(end().id, two);
        assert_eq!((active(), current()), (None, Some(one)));
    });
    assert_eq!(active(), Some(one));
    assert_eq!(end().freed_blocks, 0);
    assert_eq!((active(), current()), (None, None));
}

#[test]
fn nesting_is_as_deep_as_one_likes() {
    let _together = together();
    let mut requests: Vec<(RequestId, Held)> = persistent_vec();
    for depth in 0..500 {
        let id = begin_request();
        if depth % 3 == 0 {
            persistent(|| assert_eq!(active(), None));
        }
        requests.push((id, Held::new(100 + depth, 8, depth as u64)));
    }
    while let Some((id, held)) = requests.pop() {
        assert_eq!((held.owner(), current()), (Some(id), Some(id)));
        held.verify();
        let report = end();
        assert_eq!((report.id, report.freed_blocks), (id, 1));
    }
    assert_eq!(current(), None);
}

#[test]
fn entering_the_same_request_twice_is_one_being_inside() {
    let _together = together();
    let request = Request::new();
    let outer = request.enter();
    let held = Held::new(100, 8, 1);
    let inner = request.enter();
    // In the same lane: this is its fast path.
    held.free();
    assert_eq!(request.usage().live_blocks, 0);
    drop(outer);
    assert_eq!(active(), Some(request.id()));
    drop(inner);
    assert_eq!(active(), None);
    assert!(request.close().is_ok());
}

#[test]
fn guards_are_dropped_out_of_order() {
    let _together = together();
    let requests: Vec<_> = (0..12).map(|_| Request::new()).collect();
    // The powers of a generator modulo 13 visit all places in some order; a step of 1 goes to the
    // next place.
    for step in [1, 2, 6, 7, 11] {
        let mut guards: Vec<_> = requests.iter().map(|request| Some(request.enter())).collect();
        let mut place = 1;
        for _ in 0..12 {
            drop(guards[place - 1].take());
            let innermost =
                guards.iter().rposition(Option::is_some).map(|index| requests[index].id());
            assert_eq!((active(), current()), (innermost, innermost), "step {step}, place {place}");
            place = place * step % 13;
            if guards.iter().all(Option::is_none) {
                break;
            }
            while guards[place - 1].is_none() {
                place = place % 12 + 1;
            }
        }
    }
    for request in requests {
        assert_eq!(request.usage().live_blocks, 0);
        assert!(request.close().is_ok());
    }
}

#[test]
fn a_hook_ends_below_a_guard() {
    let _together = together();
    let hook = begin_request();
    let below = Held::new(100, 8, 1);
    let request = Request::new();
    let entered = request.enter();
    below.verify();
    assert_eq!(end().id, hook);
    assert_eq!(active(), Some(request.id()));
    drop(entered);
    assert_eq!(active(), None);
}

#[test]
fn a_forgotten_guard_keeps_the_request_open_until_its_thread_exits() {
    let _together = together();
    let (request, held) = elsewhere(|| {
        let request = Request::new();
        std::mem::forget(request.enter());
        let held = Held::new(100, 8, 1);
        assert_eq!(held.owner(), Some(request.id()));
        // Still inside: neither can end it.
        let request = request.close().unwrap_err();
        (request, held)
    });
    // The thread has exited, and its entry has gone with it.
    let report = request.close().unwrap();
    assert!(report.surviving_blocks >= 1);
    held.free();
}

#[test]
fn a_thread_exits_with_open_requests() {
    let _together = together();
    for _ in 0..20 {
        let held = elsewhere(|| {
            begin_request();
            let outer = Held::new(100, 8, 1);
            begin_request();
            let inner = [Held::new(60_000, 8, 2), Held::new(2 << 20, 8, 3), Held::new(10, 8, 4)];
            std::mem::forget(Request::new().enter());
            (outer, inner, Held::new(20, 8, 5))
        });
        // All were closed at exit: what is live survives.
        let (outer, inner, innermost) = held;
        assert!(outer.owner().is_none() && innermost.owner().is_none());
        innermost.free();
        inner.into_iter().for_each(Held::free);
        outer.free();
    }
}

#[test]
fn a_panic_leaves_the_request() {
    let _together = together();
    let request = Request::new();
    let result = catch_unwind(AssertUnwindSafe(|| {
        request.run(|| {
            let _words = Box::new("dropped by unwinding".to_owned());
            persistent(|| panic!("of {}", std::hint::black_box("this test")))
        })
    }));
    assert_eq!((active(), current()), (None, None));
    let message = result.unwrap_err().downcast::<String>().unwrap();
    assert_eq!(*message, "of this test");
    drop(message);
    // What the panic machinery and the captured output keep may survive.
    assert!(!request.close().unwrap().still_open);
}

#[test]
fn a_panic_in_a_drop_while_inside() {
    struct Bomb(#[expect(dead_code, reason = "freed on the way")] Vec<u8>);
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("in a drop");
        }
    }
    let _together = together();
    let request = Request::new();
    let bomb = Bomb(vec![1; 1000]);
    let result = catch_unwind(AssertUnwindSafe(|| request.run(|| drop(bomb))));
    assert!(result.is_err());
    assert_eq!(active(), None);
    drop(result);
    assert!(request.close().is_ok());
}

#[test]
fn a_panic_past_the_end_leaves_the_hook_s_request_open() {
    let _together = together();
    let id = elsewhere(|| {
        let result = catch_unwind(|| {
            begin_request();
            std::panic::resume_unwind(Box::new(7_u64));
        });
        let id = current().unwrap();
        assert_eq!(*result.unwrap_err().downcast::<u64>().unwrap(), 7);
        assert_eq!(close_request().id, id);
        assert_eq!(current(), None);
        id
    });
    assert!(id.get() > 0);
}

#[test]
fn persistent_outside_of_requests_is_nothing_special() {
    let _together = together();
    let held = persistent(|| Held::new(100, 8, 1));
    assert_eq!(held.owner(), None);
    held.free();
    let result = catch_unwind(|| persistent(|| std::panic::resume_unwind(Box::new(()))));
    assert!(result.is_err());
    assert_eq!(active(), None);
}

#[test]
fn a_request_is_entered_by_one_thread_after_the_other() {
    let _together = together();
    let mut request = Request::new();
    let mut held = persistent_vec();
    let mut footprint = None;
    for seed in 0..40 {
        (request, held) = elsewhere(move || {
            let entered = request.enter();
            held.push(Held::new(100, 8, seed));
            if seed % 3 == 2 {
                held.swap_remove(0).free();
            }
            drop(entered);
            (request, held)
        });
        assert_eq!(request.usage().live_blocks, held.len() as u64);
        footprint.get_or_insert(request.usage().footprint_bytes);
    }
    // One lane, whatever threads were in it: one region.
    // (Holes of adopted spans come in any length.)
    assert!(request.usage().footprint_bytes <= footprint.unwrap() + 64 * 1024);
    request.run(|| held.drain(..).for_each(Held::free));
}
