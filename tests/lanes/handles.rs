//! Handles and guards: what keeps a request open, what closes it, and what is reported.

use crate::support::{
    Held, active_owner, alone, close_empty, current_id, elsewhere, persistent_vec, together, unwind,
};
use rqmalloc::{Request, persistent, stats};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::channel;

#[test]
fn a_request_with_other_handles_comes_back_and_says_so() {
    let _together = together();
    let request = Request::builder().name("GET /").build();
    let id = request.id();
    let others = [request.clone(), request.clone()];
    let held = request.run(|| Held::new(100, 1));
    let text = format!("request {id} (GET /): still open, 2 other handles are alive");
    let request = request.close().unwrap_err();
    assert_eq!(request.to_string(), text);
    assert_eq!(format!("{request:?}"), format!("Request({text})"));
    // SAFETY: the request will not end.
    let request = unsafe { request.end() }.unwrap_err();
    assert_eq!(request.to_string(), text);
    // Nothing has happened to it.
    held.verify();
    assert_eq!(request.usage().live_blocks, 1);
    drop(others);
    assert_eq!(
        request.to_string(),
        format!("request {id} (GET /): open, no other handle is alive")
    );
    held.free();
    close_empty(request);
}

#[test]
fn a_request_somebody_is_inside_comes_back_and_says_so() {
    let _together = together();
    let request = Request::new();
    let id = request.id();
    let (enter, entered) = channel::<()>();
    let (leave, left) = channel::<()>();
    let inside = request.clone();
    let thread = std::thread::spawn(move || {
        inside.run(|| {
            persistent(|| {
                enter.send(()).unwrap();
                left.recv().unwrap();
            });
        });
    });
    entered.recv().unwrap();
    let here = request.enter();
    // Two entries and the thread's own handle.
    let text = format!(
        "request {id}: still open, 2 threads are inside, 3 other handles are alive (every entry \
         of a thread is one)"
    );
    let request = request.close().unwrap_err();
    assert_eq!(request.to_string(), text);
    // SAFETY: the request will not end.
    let request = unsafe { request.end() }.unwrap_err();
    assert_eq!(request.to_string(), text);
    persistent(|| leave.send(()).unwrap());
    thread.join().unwrap();
    let request = request.close().unwrap_err();
    let text = request.to_string();
    assert!(text.starts_with(&format!("request {id}: still open, 1 thread")), "{text}");
    drop(here);
    assert_eq!(request.to_string(), format!("request {id}: open, no other handle is alive"));
}

#[test]
fn the_last_handle_closes() {
    let _alone = alone();
    let before = stats().open_request_count;
    let request = Request::new();
    let clone = request.clone();
    assert_eq!(stats().open_request_count, before + 1);
    let held = request.run(|| Held::new(100, 1));
    drop(request);
    assert_eq!(stats().open_request_count, before + 1);
    elsewhere(move || drop(clone));
    assert_eq!(stats().open_request_count, before);
    assert_eq!(held.owner(), None, "it survives, and is persistent");
    held.free();

    // An entry is a handle, too.
    let request = Request::new();
    let id = request.id();
    let entered = request.enter();
    drop(request);
    assert_eq!((stats().open_request_count, current_id()), (before + 1, Some(id)));
    assert_eq!(active_owner(), Some(id));
    drop(entered);
    assert_eq!((stats().open_request_count, current_id()), (before, None));

    // Of many threads, one is the last.
    for round in 0..50 {
        let request = Request::new();
        let threads: Vec<_> = (0..4)
            .map(|number| {
                let request = request.clone();
                std::thread::spawn(move || {
                    let held = request.run(|| Held::new(100, round * 10 + number));
                    drop(request);
                    held
                })
            })
            .collect();
        drop(request);
        threads.into_iter().for_each(|thread| thread.join().unwrap().free());
        assert_eq!(stats().open_request_count, before);
    }
}

#[test]
fn hooks_only_leave_while_other_handles_are_alive() {
    let _alone = alone();
    let before = stats().open_request_count;
    for ends in [false, true] {
        let id = rqmalloc::begin_request();
        let held = Held::new(100, 1);
        let handle = Request::current().unwrap();
        let peak = handle.usage().peak_bytes;
        let report = if ends {
            // SAFETY: the request will not end.
            unsafe { rqmalloc::end_request() }
        } else {
            rqmalloc::close_request()
        };
        assert_eq!((report.id, report.still_open, report.peak_bytes), (id, true, peak));
        assert_eq!((report.freed_blocks, report.surviving_blocks), (0, 0));
        // One region, or a hole of an adopted span.
        let peak = match report.peak_bytes {
            bytes @ ..1024 => format!("{bytes} B"),
            bytes => format!("{}.{} KiB", bytes / 1024, bytes % 1024 * 10 / 1024),
        };
        assert_eq!(
            report.to_string(),
            format!("request {id}: peak {peak}, still open: other handles are alive")
        );
        assert_eq!((current_id(), active_owner()), (None, None));
        assert_eq!(stats().open_request_count, before + 1);
        held.verify();
        assert_eq!(handle.usage().live_blocks, 1);
        let report = handle.close().unwrap();
        assert_eq!((report.id, report.surviving_blocks, report.still_open), (id, 1, false));
        assert_eq!(stats().open_request_count, before);
        held.free();
    }
}

#[test]
fn hooks_only_leave_while_another_thread_is_inside() {
    let _alone = alone();
    let before = stats().open_request_count;
    rqmalloc::begin_request();
    let handle = Request::current().unwrap();
    let (thread, leave) = persistent(|| {
        let (enter, entered) = channel::<()>();
        let (leave, left) = channel::<()>();
        let thread = std::thread::spawn(move || {
            let guard = handle.enter();
            drop(handle);
            let held = Held::new(100, 1);
            persistent(|| {
                enter.send(()).unwrap();
                left.recv().unwrap();
            });
            let other = Held::new(100, 2);
            drop(guard);
            (held, other)
        });
        entered.recv().unwrap();
        (thread, leave)
    });
    assert!(rqmalloc::close_request().still_open);
    assert_eq!(stats().open_request_count, before + 1);
    leave.send(()).unwrap();
    let (held, other) = thread.join().unwrap();
    // The thread's entry was the last handle.
    assert_eq!(stats().open_request_count, before);
    assert_eq!((held.owner(), other.owner()), (None, None), "adopted");
    held.free();
    other.free();
}

#[test]
fn hooks_leave_their_own_entry_under_others() {
    let _together = together();
    let outer = rqmalloc::begin_request();
    let other = Request::new();
    let entered = other.enter();
    // The hook's entry is below the guard's, which stays the active one.
    assert_eq!(rqmalloc::close_request().id, outer);
    assert_eq!((current_id(), active_owner()), (Some(other.id()), Some(other.id())));
    drop(entered);
    assert_eq!((current_id(), active_owner()), (None, None));
    close_empty(other);

    // A guard of the hook's own request keeps it open, in the same lane.
    let id = rqmalloc::begin_request();
    let request = Request::current().unwrap();
    let entered = request.enter();
    drop(request);
    let held = Held::new(64, 1);
    let before = request_footprint();
    let report = rqmalloc::close_request();
    assert!(report.still_open);
    assert_eq!(active_owner(), Some(id));
    assert_eq!(request_footprint(), before);
    let request = Request::current().unwrap();
    held.free();
    drop(entered);
    close_empty(request);
}

fn request_footprint() -> usize {
    Request::current().unwrap().usage().footprint_bytes
}

#[test]
fn hooks_without_a_request_panic() {
    let _together = together();
    let message = |payload: Box<dyn std::any::Any + Send>| {
        payload.downcast_ref::<&str>().map(ToString::to_string).unwrap()
    };
    let request = Request::new();
    // A guard is no hook's.
    let _entered = request.enter();
    let closed = catch_unwind(rqmalloc::close_request).unwrap_err();
    assert_eq!(message(closed), "close_request: no request is open on this thread");
    // SAFETY: there is nothing to end.
    let ended = catch_unwind(|| unsafe { rqmalloc::end_request() }).unwrap_err();
    assert_eq!(message(ended), "end_request: no request is open on this thread");
    assert_eq!(current_id(), Some(request.id()));
}

#[test]
fn a_forgotten_guard_keeps_the_request_open_until_its_thread_exits() {
    let _alone = alone();
    let before = stats().open_request_count;
    let request = Request::new();
    let id = request.id();
    let inside = request.clone();
    let (ready, is_ready) = channel::<Held>();
    let (leave, left) = channel::<()>();
    let thread = std::thread::spawn(move || {
        std::mem::forget(inside.enter());
        drop(inside);
        assert_eq!((current_id(), active_owner()), (Some(id), Some(id)));
        let held = Held::new(100, 1);
        // A guard above the forgotten one comes and goes.
        let other = Request::new();
        other.run(|| assert_eq!(active_owner(), Some(other.id())));
        drop(other);
        assert_eq!(active_owner(), Some(id));
        persistent(|| {
            ready.send(held).unwrap();
            left.recv().unwrap();
        });
    });
    let held = is_ready.recv().unwrap();
    let request = request.close().unwrap_err();
    assert!(request.to_string().contains("still open, 1 thread"), "{request}");
    drop(request);
    assert_eq!(stats().open_request_count, before + 1);
    leave.send(()).unwrap();
    thread.join().unwrap();
    assert_eq!(stats().open_request_count, before, "the thread's exit left it");
    assert_eq!(held.owner(), None, "adopted");
    held.free();
}

#[test]
fn guards_go_in_any_order() {
    let _together = together();
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        let requests = [Request::new(), Request::new(), Request::new()];
        let mut guards = requests.each_ref().map(|request| Some(request.enter()));
        let mut held = persistent_vec();
        for index in order {
            guards[index] = None;
            let top = guards.iter().rposition(Option::is_some);
            let expected = top.map(|top| requests[top].id());
            assert_eq!((current_id(), active_owner()), (expected, expected), "order {order:?}");
            held.push(Held::new(100, index as u64));
            assert_eq!(held.last().unwrap().owner(), expected);
        }
        held.into_iter().for_each(Held::free);
        requests.into_iter().for_each(close_empty);
    }
}

/// `persistent` between guards that are dropped while it runs.
#[test]
fn guards_go_inside_persistent() {
    let _together = together();
    let (one, two) = (Request::new(), Request::new());
    let first = one.enter();
    let second = two.enter();
    persistent(|| {
        assert_eq!((current_id(), active_owner()), (Some(two.id()), None));
        drop(second);
        assert_eq!((current_id(), active_owner()), (Some(one.id()), None));
        drop(first);
        assert_eq!((current_id(), active_owner()), (None, None));
        // The dead entries are below this one, and the new one is above it.
        let again = one.enter();
        assert_eq!(active_owner(), Some(one.id()));
        std::mem::drop(again);
        assert_eq!(active_owner(), None);
    });
    assert_eq!((current_id(), active_owner()), (None, None));
    close_empty(one);
    close_empty(two);
}

#[test]
fn a_panic_inside_leaves() {
    let _together = together();
    let request = Request::new();
    let mut held = persistent_vec();
    let payload = catch_unwind(AssertUnwindSafe(|| {
        request.run(|| {
            held.push(Held::new(100, 1));
            persistent(|| {
                request.run(|| {
                    held.push(Held::new(100, 2));
                    unwind(7)
                })
            })
        })
    }))
    .unwrap_err();
    assert_eq!((current_id(), active_owner()), (None, None));
    assert!(held.iter().all(|held| held.owner() == Some(request.id())));
    // The payload was allocated inside.
    assert_eq!(request.usage().live_blocks, 3);
    assert_eq!(payload.downcast_ref::<u64>(), Some(&7));
    held.into_iter().for_each(Held::free);
    let report = request.close().unwrap();
    assert_eq!(report.surviving_blocks, 1, "{report}");
    assert_eq!(payload.downcast::<u64>().unwrap(), Box::new(7));
}

/// A panic between the hooks leaves the request open; the thread's exit closes it.
#[test]
fn a_panic_past_a_hook_s_end_is_left_by_the_thread() {
    let _alone = alone();
    let before = stats().open_request_count;
    let held = std::thread::spawn(move || {
        let mut held = persistent_vec();
        let unwound = catch_unwind(AssertUnwindSafe(|| {
            rqmalloc::begin_request();
            held.push(Held::new(100, 1));
            unwind(1)
        }));
        assert!(unwound.is_err());
        assert_eq!(stats().open_request_count, before + 1);
        assert_eq!(active_owner(), held[0].owner());
        held
    })
    .join()
    .unwrap();
    assert_eq!(stats().open_request_count, before);
    assert!(held[0].owner().is_none(), "adopted");
    held.into_iter().for_each(Held::free);
}

#[test]
fn a_thread_that_exits_inside_leaves() {
    let _alone = alone();
    let before = stats().open_request_count;
    let request = Request::new();
    let inside = request.clone();
    let (held, own) = elsewhere(move || {
        std::mem::forget(inside.enter());
        let held = Held::new(100, 1);
        rqmalloc::begin_request();
        let own = Held::new(100, 2);
        std::mem::forget(Request::new().enter());
        std::mem::forget(inside.enter());
        (held, own)
    });
    assert_eq!(stats().open_request_count, before + 1);
    let usage = request.usage();
    // What joining needs was allocated by this thread, the thread's results by that one.
    assert!(usage.live_blocks >= 1, "{usage:?}");
    assert_eq!((held.owner(), own.owner()), (Some(request.id()), None));
    own.free();
    held.free();
    let report = request.close().unwrap();
    assert_eq!(report.surviving_blocks, usage.live_blocks - 1, "{report}");
    assert_eq!(stats().open_request_count, before);
}

#[test]
fn a_guard_in_a_thread_local_is_dropped_at_exit() {
    let _alone = alone();
    std::thread_local! {
        static GUARD: std::cell::RefCell<Option<rqmalloc::Entered>> =
            const { std::cell::RefCell::new(None) };
    }
    let before = stats().open_request_count;
    let request = Request::new();
    let inside = request.clone();
    elsewhere(move || {
        GUARD.with_borrow_mut(|guard| *guard = Some(inside.enter()));
        Held::new(100, 1).free();
    });
    assert!(!request.to_string().contains("inside"), "{request}");
    drop(request);
    assert_eq!(stats().open_request_count, before);
}

/// Many threads create and drop handles while one tries to close: there is exactly one close, and
/// never while somebody is inside.
#[test]
fn closing_races_with_entering() {
    let _alone = alone();
    let before = stats().open_request_count;
    for round in 0..if cfg!(debug_assertions) { 200 } else { 1_000 } {
        let mut request = Request::new();
        let id = request.id();
        let inside = request.clone();
        let thread = std::thread::spawn(move || {
            let mut held = persistent_vec();
            for number in 0..round % 7 {
                inside.run(|| held.push(Held::new(64, number)));
            }
            drop(inside);
            held
        });
        let report = loop {
            match request.close() {
                Ok(report) => break report,
                Err(still_open) => request = still_open,
            }
            std::thread::yield_now();
        };
        assert_eq!((report.id, report.surviving_blocks), (id, round % 7));
        let held = thread.join().unwrap();
        held.into_iter().for_each(Held::free);
    }
    assert_eq!(stats().open_request_count, before);
}

/// Leaving takes the same work wherever the entry is among the others, and so does entering.
#[test]
fn guards_by_the_hundred_thousand_in_every_order() {
    let _together = together();
    const COUNT: usize = 100_000;
    let requests: Vec<Request> = persistent(|| (0..4).map(|_| Request::new()).collect());
    let orders: [fn(usize) -> usize; 4] = [
        |at| at,
        |at| COUNT - 1 - at,
        |at| at * 7919 % COUNT,
        |at| (at * 2) % COUNT + at * 2 / COUNT,
    ];
    for order in orders {
        let mut guards = persistent_vec();
        for at in 0..COUNT {
            guards.push(Some(requests[at % 4].enter()));
        }
        let held = Held::new(100, 1);
        assert_eq!(active_owner(), Some(requests[(COUNT - 1) % 4].id()));
        for at in 0..COUNT {
            let place = order(at);
            guards[place] = None;
            if place == COUNT - 1 {
                // Of those that are left, the newest one counts.
                let newest =
                    guards.iter().rposition(Option::is_some).map(|at| requests[at % 4].id());
                assert_eq!(current_id(), newest);
            }
        }
        assert_eq!((current_id(), active_owner()), (None, None));
        held.free();
    }
    rqmalloc::check_structures();
    requests.into_iter().for_each(close_empty);
}

/// A callback's panic ends only that callback, whatever its payload does when dropped.
#[test]
fn a_payload_that_panics_ends_nothing_but_its_callback() {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            if !std::thread::panicking() {
                unwind(2);
            }
        }
    }
    fn request(ran: &std::sync::Arc<std::sync::atomic::AtomicUsize>) -> Request {
        let (first, last) = (ran.clone(), ran.clone());
        let count = |ran: &std::sync::atomic::AtomicUsize| {
            ran.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
        };
        Request::builder()
            .on_end(move || {
                count(&first);
            })
            .on_end(move || {
                count(&last);
                persistent(|| std::panic::resume_unwind(Box::new(Bomb)))
            })
            .build()
    }
    let _alone = alone();
    let before = stats().open_request_count;
    let ran = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let ends: [fn(Request); 4] = [
        drop,
        |request| assert_eq!(request.close().unwrap().surviving_blocks, 0),
        // SAFETY: nothing was allocated in it.
        |request| assert_eq!(unsafe { request.end() }.unwrap().freed_blocks, 0),
        |request| {
            let entered = request.enter();
            drop(request);
            drop(entered);
        },
    ];
    for (number, end) in ends.into_iter().enumerate() {
        let request = request(&ran);
        let result = catch_unwind(AssertUnwindSafe(|| end(request)));
        assert!(result.is_ok(), "end {number} unwound");
        assert_eq!((current_id(), active_owner()), (None, None), "end {number}");
        let ran = ran.load(std::sync::atomic::Ordering::Relaxed);
        assert_eq!(ran, 2 * (number + 1), "end {number}: every callback runs once");
        assert_eq!(stats().open_request_count, before, "end {number}");
    }
}
