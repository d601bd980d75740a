//! Scopes of streams.

use crate::futures::{Dropped, under_both, yield_now};
use crate::support::{Held, active_owner, close_empty, current_id, unwind};
use futures_core::{FusedStream, Stream};
use rqmalloc::{Bailout, Request, bailout, inherit, persistent};
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

/// Yields `left` items, one in every second poll, and then `last`'s.
struct Items<L> {
    left: u64,
    is_pending: bool,
    last: L,
    #[expect(dead_code, reason = "it is there to be dropped")]
    dropped: Dropped,
}

impl<L: FnMut() -> Option<Held> + Unpin> Stream for Items<L> {
    type Item = Held;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Held>> {
        self.is_pending = !self.is_pending;
        if self.is_pending {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        if self.left == 0 {
            return Poll::Ready((self.last)());
        }
        self.left -= 1;
        Poll::Ready(Some(Held::new(300, self.left)))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left as usize, Some(self.left as usize))
    }
}

fn items<L>(request: &Request, left: u64, inside: &Arc<AtomicU64>, last: L) -> Items<L> {
    let dropped = request.run(|| Dropped::new(inside));
    Items { left, is_pending: false, last, dropped }
}

fn next<S: Stream>(stream: &mut Pin<&mut S>) -> impl Future<Output = Option<S::Item>> {
    poll_fn(|context| stream.as_mut().poll_next(context))
}

fn nowhere() -> Arc<AtomicU64> {
    Arc::new(AtomicU64::new(u64::MAX))
}

#[test]
fn items_are_made_inside_and_leave_and_the_end_is_the_scope_s() {
    under_both(|| async {
        let request = Request::new();
        let id = request.id();
        let inside = nowhere();
        let items = items(&request, 5, &inside, || None);
        let mut scope = pin!(request.scope_stream(items));
        assert_eq!(scope.size_hint(), (5, Some(5)));
        let mut count = 0;
        while let Some(held) = next(&mut scope).await {
            assert_eq!((current_id(), active_owner()), (None, None));
            assert_eq!(held.owner(), Some(id));
            held.free();
            count += 1;
            assert_eq!((scope.is_terminated(), inside.load(Ordering::Relaxed)), (false, u64::MAX));
        }
        assert_eq!(count, 5);
        assert_eq!(inside.load(Ordering::Relaxed), id.get());
        assert!(scope.is_terminated());
        assert_eq!(scope.size_hint(), (0, Some(0)));
        assert!(next(&mut scope).await.is_none(), "a scope that is over stays over");
        close_empty(request);
    });
}

#[test]
fn a_stream_may_be_cancelled_and_may_inherit() {
    under_both(|| async {
        let request = Request::new();
        let inside = nowhere();
        let items = items(&request, 5, &inside, || None);
        {
            let mut scope = pin!(request.run(|| inherit(items)));
            next(&mut scope).await.unwrap().free();
            yield_now().await;
        }
        assert_eq!(inside.load(Ordering::Relaxed), request.id().get());
        close_empty(request);
    });
}

/// Returns a last item that keeps more and more, past the mark.
fn greedy() -> impl FnMut() -> Option<Held> + Unpin {
    let mut kept = persistent(|| Vec::with_capacity(4_000));
    move || {
        for _ in 0..400 {
            kept.push(vec![1u8; 1_000]);
        }
        Some(Held::new(100, 1))
    }
}

#[test]
fn a_caught_stream_s_last_item_says_why_it_was_given_up() {
    under_both(|| async {
        let request = Request::builder().memory_limit(1 << 20).reserve(256 << 10).build();
        let inside = nowhere();
        let items = items(&request, 2, &inside, greedy());
        let mut scope = pin!(request.scope_stream(items).catch());
        assert_eq!(scope.size_hint(), (0, Some(3)));
        let mut count = 0;
        let error = loop {
            match next(&mut scope).await {
                Some(Ok(held)) => {
                    held.free();
                    count += 1;
                }
                Some(Err(error)) => break error,
                None => panic!("ended after {count} items"),
            }
        };
        // Two, the first of the greedy ones, and not the second one, which was dropped.
        assert_eq!(count, 3);
        assert!(matches!(error, Bailout::Limit(limit) if limit.limit_bytes == 1 << 20), "{error}");
        assert_eq!(inside.load(Ordering::Relaxed), request.id().get());
        assert!(scope.is_terminated());
        assert_eq!(scope.size_hint(), (0, Some(0)));
        assert!(next(&mut scope).await.is_none());
        // The item itself is not a `Drop` type: its block is what is left.
        let report = request.close().unwrap();
        assert_eq!(report.surviving_blocks, 1, "{report}");
    });
}

#[test]
fn without_catch_a_stream_that_is_given_up_unwinds() {
    under_both(|| async {
        let request = Request::new();
        let inside = nowhere();
        let items = items(&request, 1, &inside, || bailout("no items"));
        let mut scope = Box::pin(request.scope_stream(items));
        let mut scope = scope.as_mut();
        next(&mut scope).await.unwrap().free();
        let mut context = Context::from_waker(std::task::Waker::noop());
        assert!(scope.as_mut().poll_next(&mut context).is_pending());
        let payload = catch_unwind(AssertUnwindSafe(|| scope.as_mut().poll_next(&mut context)));
        let payload = payload.map(|_| ()).unwrap_err();
        assert_eq!(payload.downcast_ref(), Some(&Bailout::Called("no items")));
        assert_eq!((current_id(), active_owner()), (None, None));
    });
}

#[test]
fn a_panic_in_a_stream_goes_on_through_catch() {
    under_both(|| async {
        let request = Request::new();
        let inside = nowhere();
        let items = items(&request, 0, &inside, || persistent(|| unwind(4)));
        let mut scope = Box::pin(request.scope_stream(items).catch());
        let mut context = Context::from_waker(std::task::Waker::noop());
        assert!(scope.as_mut().poll_next(&mut context).is_pending());
        let payload = catch_unwind(AssertUnwindSafe(|| scope.as_mut().poll_next(&mut context)));
        assert_eq!(payload.map(|_| ()).unwrap_err().downcast_ref(), Some(&4u64));
        assert_eq!(inside.load(Ordering::Relaxed), u64::MAX);
        drop(scope);
        assert_eq!(inside.load(Ordering::Relaxed), request.id().get());
        close_empty(request);
    });
}
