//! Scopes of what is no future: `poll_in`, `drop_in`, and what becomes of the value and of what its
//! polls return.

use crate::futures::{Dropped, greedy, under_both, yield_now};
use crate::support::{
    Held, active_owner, close_empty, current_id, elsewhere, persistent_vec, together, unwind,
};
use rqmalloc::{Bailout, Request, RequestId, Scope, bailout, persistent, persistent_scope};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Poll;
use tokio::task::spawn;

/// Something that is polled and is no future: a body of frames.
struct Body {
    frames: u64,
    #[expect(dead_code, reason = "it is there to be dropped")]
    dropped: Dropped,
}

impl Body {
    fn new(frames: u64, inside: &Arc<AtomicU64>) -> Self {
        Self { frames, dropped: Dropped::new(inside) }
    }

    fn poll_frame(&mut self) -> Poll<Option<Held>> {
        if self.frames == 0 {
            return Poll::Ready(None);
        }
        self.frames -= 1;
        Poll::Ready(Some(Held::new(1_000, self.frames)))
    }
}

/// What `Dropped` records: nothing yet, then the request.
fn nowhere() -> Arc<AtomicU64> {
    Arc::new(AtomicU64::new(u64::MAX))
}

fn number(id: Option<RequestId>) -> u64 {
    id.map_or(0, RequestId::get)
}

/// A request whose mark is at 768 KiB.
fn limited() -> Request {
    Request::builder().memory_limit(1 << 20).reserve(256 << 10).build()
}

#[test]
fn frames_are_made_inside_and_leave() {
    let _together = together();
    let request = Request::new();
    let id = request.id();
    let inside = nowhere();
    let mut scope = pin!(request.scope(request.run(|| Body::new(3, &inside))));
    assert_eq!(scope.request().map(Request::id), Some(id));
    let mut frames = persistent_vec();
    loop {
        let polled = scope.as_mut().poll_in(|mut body| {
            assert_eq!((current_id(), active_owner()), (Some(id), Some(id)));
            body.poll_frame()
        });
        assert_eq!((current_id(), active_owner()), (None, None));
        match polled.unwrap() {
            Poll::Ready(Some(frame)) => frames.push(frame),
            Poll::Ready(None) => break,
            Poll::Pending => unreachable!(),
        }
    }
    // The value is there until it is dropped, whatever a poll returned.
    assert_eq!(scope.get().map(|body| body.frames), Some(0));
    assert_eq!(inside.load(Ordering::Relaxed), u64::MAX);
    let request = request.close().unwrap_err();
    scope.as_mut().drop_in();
    assert_eq!(inside.load(Ordering::Relaxed), id.get());
    assert!(scope.get().is_none() && scope.request().is_none());
    scope.as_mut().drop_in();
    assert!(frames.iter().all(|frame| frame.owner() == Some(id)));
    assert_eq!((frames.len(), request.usage().live_blocks), (3, 3));
    // What left may outlive the request.
    let report = request.close().unwrap();
    assert_eq!(report.surviving_blocks, 3);
    frames.into_iter().for_each(Held::free);
}

#[test]
fn a_marked_request_is_given_up_at_the_end_of_a_poll() {
    let _together = together();
    let (request, other) = (limited(), Request::new());
    let (value, output) = (nowhere(), nowhere());
    let mut scope = pin!(request.scope(request.run(|| Body::new(5, &value))));
    let result = other.run(|| {
        scope.as_mut().poll_in(|_| {
            let kept: Vec<Vec<u8>> = (0..900).map(|_| vec![1; 1_000]).collect();
            (Dropped::new(&output), kept)
        })
    });
    let Err(Bailout::Limit(limit)) = result else { panic!("{:?}", result.is_ok()) };
    assert_eq!(limit.limit_bytes, 1 << 20);
    // Both were dropped inside, and the scope is over.
    let id = request.id().get();
    assert_eq!((value.load(Ordering::Relaxed), output.load(Ordering::Relaxed)), (id, id));
    assert!(scope.get().is_none() && scope.request().is_none());
    let again = catch_unwind(AssertUnwindSafe(|| scope.as_mut().poll_in(|_| ())));
    assert_eq!(
        again.unwrap_err().downcast_ref::<&str>().copied(),
        Some("Scope polled after it was over")
    );
    close_empty(request);
    close_empty(other);
}

#[test]
fn a_bailout_in_a_poll_is_the_error_of_poll_in() {
    let _together = together();
    let request = Request::new();
    let inside = nowhere();
    let mut scope = pin!(request.scope(request.run(|| Body::new(1, &inside))));
    let result = scope.as_mut().poll_in(|_| -> Poll<()> { bailout("no more") });
    assert_eq!(result, Err(Bailout::Called("no more")));
    assert_eq!(inside.load(Ordering::Relaxed), request.id().get());
    assert!(scope.get().is_none());
    assert_eq!((current_id(), active_owner()), (None, None));
    close_empty(request);
}

#[test]
fn a_panic_in_a_poll_goes_on_and_the_value_is_dropped_with_the_scope() {
    let _together = together();
    let request = Request::new();
    let inside = nowhere();
    let mut scope = Box::pin(request.scope(request.run(|| Body::new(1, &inside))));
    let panicking =
        AssertUnwindSafe(|| scope.as_mut().poll_in(|_| persistent(|| -> Poll<()> { unwind(7) })));
    let payload = catch_unwind(panicking).unwrap_err();
    assert_eq!(payload.downcast_ref(), Some(&7u64));
    assert_eq!((current_id(), active_owner()), (None, None));
    // It may be polled again, if it can go on.
    assert_eq!(inside.load(Ordering::Relaxed), u64::MAX);
    let Ok(Poll::Ready(Some(frame))) = scope.as_mut().poll_in(|mut body| body.poll_frame()) else {
        panic!("no frame");
    };
    frame.free();
    elsewhere(move || drop(scope));
    assert_eq!(inside.load(Ordering::Relaxed), request.id().get());
    close_empty(request);
}

/// A value whose drop panics once.
struct Explosive(bool);

impl Drop for Explosive {
    fn drop(&mut self) {
        if std::mem::take(&mut self.0) {
            persistent(|| unwind(8))
        }
    }
}

#[test]
fn a_value_whose_drop_panics_leaves_its_request() {
    let _together = together();
    let request = Request::new();
    let mut scope = Box::pin(request.scope(Explosive(true)));
    let payload = catch_unwind(AssertUnwindSafe(|| scope.as_mut().drop_in())).unwrap_err();
    assert_eq!(payload.downcast_ref(), Some(&8u64));
    assert!(scope.get().is_none());
    assert_eq!((current_id(), active_owner()), (None, None));
    drop(scope);
    close_empty(request);
}

#[test]
fn the_value_goes_before_the_handle() {
    let _together = together();
    let order = Arc::new(Mutex::new(Vec::with_capacity(8)));
    let note = |what: &'static str| {
        let order = order.clone();
        move || order.lock().unwrap().push((what, number(current_id())))
    };
    struct Noting<F: FnMut()>(F);
    impl<F: FnMut()> Drop for Noting<F> {
        fn drop(&mut self) {
            (self.0)();
        }
    }
    let request = Request::new();
    let id = request.id().get();
    request.on_end(note("callback"));
    let scope = request.scope((Noting(note("first")), Noting(note("second"))));
    // The scope has the last handle.
    drop(request);
    drop(scope);
    assert_eq!(*order.lock().unwrap(), [("first", id), ("second", id), ("callback", id)]);
}

#[test]
fn a_scope_inside_another_scope_is_given_up_alone() {
    under_both(|| async {
        let (outer, inner) = (Request::new(), limited());
        let outer_id = outer.id();
        let scope = inner.scope(greedy());
        let result = outer
            .scope(async move {
                let held = Held::new(100, 1);
                let result = scope.catch().await;
                assert_eq!((current_id(), active_owner()), (Some(outer_id), Some(outer_id)));
                held.free();
                result
            })
            .catch()
            .await;
        assert!(matches!(result, Ok(Err(Bailout::Limit(_)))), "{result:?}");
        close_empty(inner);
        close_empty(outer);
    });
}

#[test]
fn an_outer_scope_that_is_given_up_drops_the_inner_one_inside() {
    under_both(|| async {
        let (outer, inner) = (limited(), Request::new());
        let inside = nowhere();
        let scope = inner.scope(inner.run(|| Body::new(1, &inside)));
        let work = async move {
            let scope = scope;
            greedy().await;
            drop(scope);
        };
        let result = outer.scope(work).catch().await;
        assert!(matches!(result, Err(Bailout::Limit(_))), "{result:?}");
        assert_eq!(inside.load(Ordering::Relaxed), inner.id().get());
        close_empty(outer);
        close_empty(inner);
    });
}

/// A scope that one thread after the other polls.
#[test]
fn a_scope_migrates() {
    let _together = together();
    let request = Request::new();
    let id = request.id();
    let inside = nowhere();
    let mut scope = Box::pin(request.scope(request.run(|| Body::new(40, &inside))));
    for _ in 0..40 {
        let other = Request::new();
        scope = elsewhere(move || {
            let entered = other.enter();
            let polled = scope.as_mut().poll_in(|mut body| body.poll_frame());
            assert_eq!(active_owner(), Some(other.id()));
            drop(entered);
            let Ok(Poll::Ready(Some(frame))) = polled else { panic!("no frame") };
            assert_eq!(frame.owner(), Some(id));
            frame.free();
            close_empty(other);
            scope
        });
    }
    elsewhere(move || scope.as_mut().drop_in());
    assert_eq!(inside.load(Ordering::Relaxed), id.get());
    close_empty(request);
}

#[test]
fn a_persistent_scope_is_persistent_wherever_it_is_polled() {
    under_both(|| async {
        let request = Request::new();
        let id = request.id();
        let owners = Arc::new(Mutex::new(persistent(|| Vec::with_capacity(8))));
        struct OwnerAtDrop(Arc<Mutex<Vec<Option<RequestId>>>>);
        impl Drop for OwnerAtDrop {
            fn drop(&mut self) {
                self.0.lock().unwrap().push(active_owner());
            }
        }
        let at_drop = OwnerAtDrop(owners.clone());
        let held = request
            .scope(async move {
                let load = persistent_scope(async move {
                    let _at_drop = at_drop;
                    let held = Held::new(100, 1);
                    yield_now().await;
                    // The request is still the innermost one.
                    assert_eq!((current_id(), active_owner()), (Some(id), None));
                    held
                });
                assert!(load.request().is_none());
                let held = load.await;
                assert_eq!(active_owner(), Some(id));
                // One that is dropped before it is done.
                let at_drop = OwnerAtDrop(owners.clone());
                drop(persistent_scope(async move {
                    yield_now().await;
                    drop(at_drop);
                }));
                assert_eq!(*owners.lock().unwrap(), [None, None]);
                held
            })
            .await;
        assert_eq!(held.owner(), None);
        held.free();
        close_empty(request);
    });
}

/// A persistent scope has no mark of its own: the request it is awaited in does.
#[test]
fn the_mark_is_that_of_the_scope_s_own_request() {
    let _together = together();
    let request = limited();
    let result = request.catch(|| {
        let mut scope: Pin<&mut Scope<u8>> = pin!(persistent_scope(5));
        let kept: Vec<Vec<u8>> = (0..900).map(|_| vec![1; 1_000]).collect();
        let polled = scope.as_mut().poll_in(|value| (*value, kept.len()));
        assert_eq!(polled, Ok((5, 900)));
    });
    assert!(matches!(result, Err(Bailout::Limit(_))), "{result:?}");
    close_empty(request);
}

#[test]
fn a_task_may_be_dropped_between_polls_of_its_body() {
    under_both(|| async {
        let request = Request::new();
        let inside = nowhere();
        let scope = request.scope(request.run(|| Body::new(3, &inside)));
        let task = spawn(async move {
            let mut scope = pin!(scope);
            let Ok(Poll::Ready(Some(frame))) = scope.as_mut().poll_in(|mut body| body.poll_frame())
            else {
                panic!("no frame")
            };
            frame.free();
            std::future::pending::<()>().await;
        });
        yield_now().await;
        task.abort();
        assert!(task.await.unwrap_err().is_cancelled());
        assert_eq!(inside.load(Ordering::Relaxed), request.id().get());
        close_empty(request);
    });
}
