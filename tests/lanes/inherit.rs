//! Work on other threads: futures and closures that take their request along.

use crate::futures::{Dropped, greedy, under_both, yield_now};
use crate::support::{Held, active_owner, close_empty, current_id, elsewhere, together, unwind};
use rqmalloc::{Bailout, Request, RequestId, inherit, inherit_each, inherit_fn, persistent, stats};
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use tokio::task::{spawn, spawn_blocking};

fn here() -> (Option<RequestId>, Option<RequestId>) {
    (current_id(), active_owner())
}

#[test]
fn a_future_inherits_the_request_it_was_made_in() {
    under_both(|| async {
        let (request, other) = (Request::new(), Request::new());
        let id = request.id();
        // Made inside, polled outside, inside another one, and inside the same one.
        let outside = request.run(|| inherit(async { here() }));
        assert_eq!(outside.request().map(Request::id), Some(id));
        assert_eq!(outside.await, (Some(id), Some(id)));
        let in_other = request.run(|| inherit(async { here() }));
        assert_eq!(other.scope(in_other).await, (Some(id), Some(id)));
        let in_task = request.scope(async { spawn(inherit(async { here() })).await.unwrap() });
        assert_eq!(in_task.await, (Some(id), Some(id)));
        // What is made in `persistent` belongs to the innermost request all the same.
        let made_in_persistent = request.run(|| persistent(|| inherit(async { here() })));
        assert_eq!(made_in_persistent.await, (Some(id), Some(id)));
        close_empty(other);
        // The cell of the task: a worker may still be about to drop it.
        assert!(request.close().is_ok());
    });
}

#[test]
fn outside_requests_a_future_inherits_nothing() {
    under_both(|| async {
        let future = inherit(async {
            yield_now().await;
            here()
        });
        assert!(future.request().is_none());
        let request = Request::new();
        let id = request.id();
        assert_eq!(future.await, (None, None));
        // It is wherever it is polled.
        assert_eq!(request.scope(inherit(async { here() })).await, (Some(id), Some(id)));
        close_empty(request);
    });
}

/// The tasks of a request that is marked are given up; the request that awaits one is, too.
#[test]
fn a_task_of_a_marked_request_is_given_up_and_that_is_handed_on() {
    under_both(|| async {
        let request = Request::builder().memory_limit(1 << 20).reserve(256 << 10).build();
        let handler = async {
            match spawn(inherit(greedy())).await {
                Ok(length) => length,
                Err(error) => resume_unwind(error.into_panic()),
            }
        };
        let result = request.scope(handler).catch().await;
        assert!(matches!(result, Err(Bailout::Limit(_))), "{result:?}");
        assert!(request.close().is_ok());
    });
}

/// Returns what records, when dropped, which request the thread is inside.
fn recording() -> (Arc<AtomicU64>, impl Fn() -> u64) {
    let inside = Arc::new(AtomicU64::new(u64::MAX));
    let seen = inside.clone();
    (inside, move || seen.load(Ordering::Relaxed))
}

#[test]
fn a_wrapped_closure_runs_and_is_dropped_inside() {
    let _together = together();
    let request = Request::new();
    let id = request.id();
    let (inside, seen) = recording();
    let captured = request.run(|| Dropped::new(&inside));
    let wrapped = request.wrap(move || {
        let _captured = &captured;
        (here(), Held::new(100, 1))
    });
    let request = request.close().unwrap_err();
    let (found, held) = elsewhere(wrapped);
    assert_eq!(found, (Some(id), Some(id)));
    assert_eq!(seen(), id.get());
    // What it returned left with it, and its handle is gone.
    assert_eq!(held.owner(), Some(id));
    held.free();
    close_empty(request);
}

#[test]
fn a_wrapped_closure_that_nobody_calls_is_dropped_inside() {
    let _together = together();
    let (request, other) = (Request::new(), Request::new());
    let (inside, seen) = recording();
    let captured = request.run(|| Dropped::new(&inside));
    let wrapped = request.wrap(move || drop(captured));
    elsewhere(move || {
        let entered = other.enter();
        drop(wrapped);
        assert_eq!(active_owner(), Some(other.id()));
        drop(entered);
        close_empty(other);
    });
    assert_eq!(seen(), request.id().get());
    close_empty(request);
}

#[test]
fn a_wrapped_closure_that_panics_is_dropped_inside() {
    let _together = together();
    let request = Request::new();
    let (inside, seen) = recording();
    let captured = request.run(|| Dropped::new(&inside));
    let wrapped = request.wrap(move || {
        let _captured = &captured;
        persistent(|| unwind(3))
    });
    let payload = std::thread::spawn(wrapped).join().map(|(): ()| ()).unwrap_err();
    assert_eq!(payload.downcast_ref(), Some(&3u64));
    assert_eq!(seen(), request.id().get());
    close_empty(request);
}

#[test]
fn a_closure_inherits_the_request_it_was_made_in() {
    under_both(|| async {
        let request = Request::new();
        let id = request.id();
        let blocking = async { spawn_blocking(inherit_fn(here)).await.unwrap() };
        assert_eq!(request.scope(blocking).await, (Some(id), Some(id)));
        assert_eq!(spawn_blocking(inherit_fn(here)).await.unwrap(), (None, None));
        // Outside requests it runs wherever it is called.
        let wherever = inherit_fn(here);
        assert_eq!(request.run(wherever), (Some(id), Some(id)));
        // A thread for blocking work may have been made inside.
        assert!(request.close().is_ok());
    });
}

/// One closure, called by many threads at once and often.
#[test]
fn a_closure_for_each_item() {
    let _together = together();
    const THREADS: u64 = 4;
    let request = Request::new();
    let id = request.id();
    let (inside, seen) = recording();
    let captured = request.run(|| Dropped::new(&inside));
    let all = Barrier::new(THREADS as usize);
    let wrapped = request.wrap_each(move |number: u64| {
        let _captured = &captured;
        assert_eq!(here(), (Some(id), Some(id)));
        Held::new(100, number)
    });
    let inherited = request.run(|| inherit_each(|number: u64| (number, active_owner())));
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| {
                let (wrapped, inherited, all) = (&wrapped, &inherited, &all);
                scope.spawn(move || {
                    all.wait();
                    for number in 0..200 {
                        let held = wrapped(thread * 1_000 + number);
                        assert_eq!(held.owner(), Some(id));
                        held.free();
                        assert_eq!(inherited(number), (number, Some(id)));
                        assert_eq!(here(), (None, None));
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    });
    assert_eq!(inherit_each(|()| active_owner())(()), None);
    let request = request.close().unwrap_err();
    drop(inherited);
    drop(wrapped);
    assert_eq!(seen(), id.get());
    close_empty(request);
}

/// A closure that was called has no handle any more, and one that borrows needs no `'static`.
#[test]
fn a_wrapped_closure_s_handle_goes_with_the_call() {
    let _alone = crate::support::alone();
    let before = stats().open_request_count;
    let request = Request::new();
    let numbers = [1, 2, 3];
    let wrapped = request.wrap(|| numbers.iter().sum::<i32>());
    drop(request);
    assert_eq!(stats().open_request_count, before + 1);
    assert_eq!(wrapped(), 6);
    assert_eq!(stats().open_request_count, before);
}
