//! A future that is inside a request while it is polled.

use crate::api::bailout::{Bailout, Catching, catching, raise};
use crate::api::request::Request;
use core::fmt;
use core::future::Future;
use core::pin::Pin;
use core::task::{Context, Poll};

/// The future that [`Request::scope`] returns.
///
/// The request is entered for each poll and left before the poll returns, so that what the executor
/// allocates between polls stays outside, and the thread that polls next finds the request's lane
/// idle. The future is dropped inside the request too, when it is ready or cancelled; then the
/// scope drops its handle of the request.
#[must_use = "futures do nothing unless polled"]
pub struct Scope<F> {
    /// `None` once the future is ready.
    request: Option<Request>,
    /// Pinned with the scope; `None` once it is ready.
    future: Option<F>,
}

impl Request {
    /// Wraps `future` so that every poll of it runs inside this request: on any thread, under any
    /// executor. Scopes nest.
    ///
    /// Tasks that the future spawns do not inherit the request: give each its own `scope`. Code in
    /// `spawn_blocking` or on a thread of its own needs [`run`](Self::run).
    ///
    /// The scope owns a handle, so the request stays open until the future is done.
    ///
    /// A request that is marked, near its memory limit, at the end of a poll is given up: the
    /// future, or what it returned, is dropped inside the request, and the poll unwinds with a
    /// [`Bailout`], as [`bailout`](crate::bailout) does. Executors take that for a panic of this
    /// one task (without a message); [`Scope::catch`] turns it into an error.
    pub fn scope<F: Future>(&self, future: F) -> Scope<F> {
        Scope { request: Some(self.clone()), future: Some(future) }
    }
}

impl<F> Scope<F> {
    /// Returns a future whose output is an error if the request is given up: by
    /// [`bailout`](crate::bailout) in a poll, or because it is marked at the end of one. What
    /// [`Request::catch`] is to [`Request::run`].
    pub fn catch(self) -> CatchScope<F> {
        CatchScope { scope: self }
    }

    /// Drops the future inside the request, then the handle.
    fn leave(self: Pin<&mut Self>) {
        let (mut future, request) = self.project();
        let entered = request.as_ref().map(Request::enter);
        future.set(None);
        drop(entered);
        *request = None;
    }

    /// Notes that a poll bailed out, and leaves.
    fn give_up(self: Pin<&mut Self>) {
        if let Some(request) = &self.request {
            request.note_bailout();
        }
        self.leave();
    }

    /// Returns the future, pinned as the scope is, and the request.
    fn project(self: Pin<&mut Self>) -> (Pin<&mut Option<F>>, &mut Option<Request>) {
        // SAFETY: `future` is pinned with the scope: it is never moved out, only dropped in place
        // by `Pin::set` or with the scope, `Scope` has no `Unpin` of its own, and its `drop` treats
        // it as pinned. `request` is not pinned.
        unsafe {
            let this = self.get_unchecked_mut();
            (Pin::new_unchecked(&mut this.future), &mut this.request)
        }
    }
}

impl<F: Future> Future for Scope<F> {
    type Output = F::Output;

    /// # Panics
    /// If it is polled after it was ready, or as [`Request::enter`] does.
    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let (mut future, request) = self.project();
        let (Some(running), Some(inside)) = (future.as_mut().as_pin_mut(), request.as_ref()) else {
            panic!("Scope polled after it was ready");
        };
        let entered = inside.enter();
        let catching = Catching::new();
        let before = inside.control.poll_begins();
        let output = running.poll(context);
        inside.control.poll_ends(before);
        let marked = inside.given_up();
        if output.is_pending() && marked.is_none() {
            return output;
        }
        future.set(None);
        if let Some(limit) = marked {
            inside.note_bailout();
            drop(output);
            drop(entered);
            *request = None;
            raise(limit.into());
        }
        drop(catching);
        drop(entered);
        *request = None;
        output
    }
}

/// The future that [`Scope::catch`] returns.
#[must_use = "futures do nothing unless polled"]
pub struct CatchScope<F> {
    /// Pinned with this.
    scope: Scope<F>,
}

impl<F: Future> Future for CatchScope<F> {
    type Output = Result<F::Output, Bailout>;

    /// # Panics
    /// If it is polled after it was ready, if the future panics, or as [`Request::enter`] does.
    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        // SAFETY: `scope` is pinned with this: it is never moved, and this has no `Drop` of its
        // own.
        let mut scope = unsafe { self.map_unchecked_mut(|this| &mut this.scope) };
        let polled = catching(|| scope.as_mut().poll(context));
        match polled {
            Ok(output) => output.map(Ok),
            Err(bailout) => {
                scope.give_up();
                Poll::Ready(Err(bailout))
            }
        }
    }
}

impl<F> fmt::Debug for CatchScope<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CatchScope").field("scope", &self.scope).finish()
    }
}

impl<F> Drop for Scope<F> {
    fn drop(&mut self) {
        // SAFETY: a scope that is being dropped is never moved again.
        unsafe { Pin::new_unchecked(self) }.leave();
    }
}

impl<F> fmt::Debug for Scope<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scope").field("request", &self.request).finish_non_exhaustive()
    }
}
