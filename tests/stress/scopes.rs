//! Futures inside a request: polled, or dropped before they are done, by any thread.

use crate::closures::Freed;
use crate::model::{Block, Tracked, lock, persistent_vec};
use crate::worker::{REQUEST_COUNT, SCOPE_COUNT, Worker};
use rqmalloc::{Bailout, CatchScope, Request, persistent};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};

/// Allocates at each poll, and frees all of it when dropped.
pub struct Work {
    tracked: Arc<Tracked>,
    blocks: Vec<Freed>,
    left: usize,
}

impl Future for Work {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        let is = Request::current().map(|request| request.id());
        assert_eq!(is, Some(self.tracked.id), "polled inside {is:?}");
        let (owner, left) = (Some(self.tracked.clone()), self.left);
        let block = Block::new(left * 80 + 5, 8, left as u64, &owner, false);
        self.blocks.push(Freed(block));
        self.left -= 1;
        if self.left == 0 { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        let is = Request::current().map(|request| request.id());
        assert_eq!(is, Some(self.tracked.id), "a future is dropped inside {is:?}");
    }
}

/// A future that waits for a thread.
pub struct Held {
    tracked: Arc<Tracked>,
    /// `None` while it is being dropped.
    future: Option<Pin<Box<CatchScope<Work>>>>,
}

impl Drop for Held {
    fn drop(&mut self) {
        drop(self.future.take());
        self.tracked.scoped.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Worker {
    pub fn scope(&mut self) {
        let place = self.below(SCOPE_COUNT);
        let held = lock(&self.shared.scopes[place]).take();
        match held {
            Some(held) if self.below(5) == 0 => drop(held),
            Some(held) => self.poll(held),
            None => {
                let fresh = self.make_scope();
                let before =
                    fresh.and_then(|fresh| lock(&self.shared.scopes[place]).replace(fresh));
                drop(before);
            }
        }
    }

    fn make_scope(&mut self) -> Option<Held> {
        let place = self.below(REQUEST_COUNT);
        let tracked = lock(&self.shared.requests[place]).clone();
        let left = 1 + self.below(6);
        let work = Work { tracked: tracked.clone(), blocks: persistent_vec(8), left };
        let handle = lock(&tracked.handle);
        let Some(request) = handle.as_ref() else {
            drop(handle);
            // It expects to be dropped inside.
            std::mem::forget(work);
            return None;
        };
        tracked.scoped.fetch_add(1, Ordering::Relaxed);
        let future = persistent(|| Box::pin(request.scope(work).catch()));
        drop(handle);
        Some(Held { tracked, future: Some(future) })
    }

    fn poll(&mut self, mut held: Held) {
        let mut context = Context::from_waker(Waker::noop());
        let future = held.future.as_mut().unwrap();
        let polled = future.as_mut().poll(&mut context);
        self.shared.count("polls");
        match polled {
            Poll::Pending => {
                let place = self.below(SCOPE_COUNT);
                let before = lock(&self.shared.scopes[place]).replace(held);
                drop(before);
            }
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(Bailout::Limit(limit))) => {
                let may_be = held.tracked.is_limited.load(Ordering::Relaxed);
                assert!(may_be, "{limit}, in {:?}", held.tracked);
            }
            Poll::Ready(Err(other)) => panic!("given up: {other}"),
        }
    }
}
