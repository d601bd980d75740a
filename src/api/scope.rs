//! What is polled inside a request: futures, and whatever else a closure polls.

use crate::api::bailout::{Bailout, Catching, catching, raise};
use crate::api::inherit::{Place, Within};
use crate::api::request::Request;
use crate::request::control::Control;
use crate::request::limit::LimitExceeded;
use core::fmt;
use core::future::Future;
use core::pin::Pin;
use core::task::{Context, Poll};

/// A value that is polled, and dropped, inside a request: what [`Request::scope`] and [`inherit`]
/// return. ([`inherit`] outside requests: wherever its caller is; [`persistent_scope`]: inside
/// [`persistent`](crate::persistent()).)
///
/// A scope of a future is a future, and with the feature `stream` that of a stream is a stream.
/// Anything else is polled by [`poll_in`](Self::poll_in).
///
/// The request is entered for each poll and left before the poll returns, so that what the executor
/// allocates between polls stays outside, and the thread that polls next finds the request's lane
/// idle. What a poll returns *leaves* the scope: it may be a block of the request, and is freed by
/// whoever has it then. The value is dropped inside the request too, when the scope is *over*: the
/// future is ready, the stream has ended, the request was given up, or the scope was dropped. Then
/// the scope drops its handle of the request. After a panic in a poll the value is there until the
/// scope is dropped.
#[must_use = "scopes do nothing unless polled"]
pub struct Scope<T> {
    /// Pinned with the scope.
    within: Within<T>,
}

static_assertions::assert_impl_all!(Scope<u8>: Send, Sync, Unpin);
static_assertions::assert_not_impl_any!(Scope<*const u8>: Send, Sync);
static_assertions::assert_not_impl_any!(Scope<core::marker::PhantomPinned>: Unpin);
const _: () = assert!(
    size_of::<Scope<[u64; 8]>>() == size_of::<Option<[u64; 8]>>() + 16,
    "a scope adds its place, a word and a handle, and whether it is over"
);

impl Request {
    /// Wraps `value`, a future as a rule, so that every poll of it runs inside this request: on any
    /// thread, under any executor. Scopes nest.
    ///
    /// Tasks that a future spawns do not inherit the request: give each its own `scope`, or
    /// [`inherit`] it. Code in `spawn_blocking` or on a thread of its own needs
    /// [`run`](Self::run), [`wrap`](Self::wrap) or [`inherit_fn`](crate::inherit_fn). What runs
    /// elsewhere without one of these is not counted, limited or reported.
    ///
    /// The scope owns a handle, so the request stays open until the scope is over.
    ///
    /// A request that is marked, near its memory limit, at the end of a poll is given up: the
    /// future, and what it returned, is dropped inside the request, and the poll unwinds with a
    /// [`Bailout`], as [`bailout`](crate::bailout) does. Executors take that for a panic of this
    /// one task (without a message); [`Scope::catch`] turns it into an error.
    ///
    /// ```
    /// # #[global_allocator]
    /// # static GLOBAL: rqmalloc::RqMalloc = rqmalloc::RqMalloc;
    /// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
    /// let request = rqmalloc::Request::builder().memory_limit(8 << 20).build();
    /// let answer = request.scope(async { vec!["an answer".to_owned()] }).catch().await;
    /// assert_eq!(answer.unwrap(), ["an answer"]);
    /// assert_eq!(request.close().unwrap().surviving_blocks, 0);
    /// # });
    /// ```
    pub fn scope<T>(&self, value: T) -> Scope<T> {
        Scope { within: Within::new(Place::Request(self.clone()), value) }
    }
}

/// Wraps `value`, a future as a rule, in a [`scope`](Request::scope) of the request that this thread
/// is inside now; outside requests, in one that adds nothing. For code that spawns tasks and does
/// not know of requests: `tokio::spawn(rqmalloc::inherit(future))`.
///
/// A task of a request that is marked is given up as by [`scope`](Request::scope). Whoever awaits it
/// hands that on with `resume_unwind(join_error.into_panic())`: to the request's own scope that is
/// the bailout that it is.
///
/// ```
/// # #[global_allocator]
/// # static GLOBAL: rqmalloc::RqMalloc = rqmalloc::RqMalloc;
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// let current = async || rqmalloc::Request::current().map(|request| request.id());
/// let request = rqmalloc::Request::new();
/// let handler = request.scope(async move {
///     let alone = tokio::spawn(current());
///     let inherits = tokio::spawn(rqmalloc::inherit(current()));
///     (alone.await.unwrap(), inherits.await.unwrap())
/// });
/// assert_eq!(handler.await, (None, Some(request.id())));
/// # });
/// ```
pub fn inherit<T>(value: T) -> Scope<T> {
    Scope { within: Within::new(Place::current(), value) }
}

/// Wraps `value`, a future as a rule, so that it is polled and dropped inside
/// [`persistent`](crate::persistent()), whatever request its poller is inside: for what a handler
/// starts and the process keeps, such as the loading of a cache's entry that other requests wait
/// for, too.
///
/// ```
/// # #[global_allocator]
/// # static GLOBAL: rqmalloc::RqMalloc = rqmalloc::RqMalloc;
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// let request = rqmalloc::Request::new();
/// let entry = request.scope(rqmalloc::persistent_scope(async { vec![7; 1000] })).await;
/// assert_eq!(request.close().unwrap().surviving_blocks, 0);
/// assert_eq!(entry[999], 7);
/// # });
/// ```
pub fn persistent_scope<T>(value: T) -> Scope<T> {
    Scope { within: Within::new(Place::Persistent, value) }
}

impl<T> Scope<T> {
    /// Returns the value; `None` once the scope is over. It is used where the caller is, not inside
    /// the request.
    pub fn get(&self) -> Option<&T> {
        self.within.value()
    }

    /// Returns the request; `None` if there is none, or once the scope is over.
    pub fn request(&self) -> Option<&Request> {
        self.within.place().request()
    }

    /// Has `poll` poll the value inside the request: for what is polled but is no future, such as
    /// the body of an answer or a service. What it returns may be anything, a [`Poll`] as a rule.
    /// The scope is not over because of it, whatever it is: call [`drop_in`](Self::drop_in) when the
    /// value is done.
    ///
    /// ```
    /// # #[global_allocator]
    /// # static GLOBAL: rqmalloc::RqMalloc = rqmalloc::RqMalloc;
    /// # use std::{pin::pin, task::Poll};
    /// let request = rqmalloc::Request::new();
    /// let mut scope = pin!(request.scope(0..3));
    /// let mut next = || scope.as_mut().poll_in(|mut range| Poll::Ready(range.next().map(|n| vec![n])));
    /// assert_eq!(next(), Ok(Poll::Ready(Some(vec![0]))));
    /// assert_eq!(next(), Ok(Poll::Ready(Some(vec![1]))));
    /// scope.as_mut().drop_in();
    /// assert_eq!(scope.get(), None);
    /// ```
    ///
    /// # Errors
    /// If the request is given up, by [`bailout`](crate::bailout) in the poll or because it is
    /// marked at the end of it: the value, and what the poll returned, has been dropped inside, and
    /// the scope is over.
    ///
    /// # Panics
    /// If the scope is over, if `poll` panics, or as [`Request::enter`] does.
    pub fn poll_in<R>(
        self: Pin<&mut Self>,
        poll: impl FnOnce(Pin<&mut T>) -> R,
    ) -> Result<R, Bailout> {
        self.poll_caught(poll, |_| false)
    }

    /// The same; the value is also dropped inside, and the scope is over, if `is_over` says so of what
    /// the poll returned: with one entry where `poll_in` and [`drop_in`](Self::drop_in) take two.
    ///
    /// ```
    /// # #[global_allocator]
    /// # static GLOBAL: rqmalloc::RqMalloc = rqmalloc::RqMalloc;
    /// # use std::{pin::pin, task::Poll};
    /// let request = rqmalloc::Request::new();
    /// let mut scope = pin!(request.scope(0..1));
    /// let mut next = || {
    ///     let next = |mut range: std::pin::Pin<&mut std::ops::Range<_>>| Poll::Ready(range.next());
    ///     scope.as_mut().poll_in_until(next, |polled| *polled == Poll::Ready(None))
    /// };
    /// assert_eq!(next(), Ok(Poll::Ready(Some(0))));
    /// assert_eq!(next(), Ok(Poll::Ready(None)));
    /// assert_eq!(scope.get(), None);
    /// ```
    ///
    /// # Errors
    /// As `poll_in`.
    ///
    /// # Panics
    /// As `poll_in`, or if `is_over` does.
    pub fn poll_in_until<R>(
        self: Pin<&mut Self>,
        poll: impl FnOnce(Pin<&mut T>) -> R,
        is_over: impl FnOnce(&R) -> bool,
    ) -> Result<R, Bailout> {
        self.poll_caught(poll, is_over)
    }

    /// Drops the value inside the request, then the handle: the scope is over. If it was already,
    /// this does nothing.
    pub fn drop_in(self: Pin<&mut Self>) {
        self.within().clear();
    }

    /// Returns a future, or a stream, of results: an error if the request is given up, by
    /// [`bailout`](crate::bailout) in a poll, or because it is marked at the end of one. What
    /// [`Request::catch`] is to [`Request::run`]. The error is the last item of a stream.
    pub fn catch(self) -> CatchScope<T> {
        CatchScope { scope: self }
    }

    /// Polls inside; a request that is then marked is given up, and the error says why. What `poll`
    /// returned says whether the scope `is_over`. A bailout unwinds.
    fn poll_within<R>(
        self: Pin<&mut Self>,
        poll: impl FnOnce(Pin<&mut T>) -> R,
        is_over: impl FnOnce(&R) -> bool,
    ) -> Result<R, LimitExceeded> {
        let (mut value, place) = self.within().project();
        let polled = place.run(|| {
            let Some(running) = value.as_mut().as_pin_mut() else {
                panic!("Scope polled after it was over");
            };
            let control = place.request().map(|request| request.control);
            let before = control.and_then(Control::poll_begins);
            let polled = poll(running);
            control.inspect(|control| control.poll_ends(before));
            let marked = place.given_up();
            if marked.is_some() || is_over(&polled) {
                value.set(None);
            }
            // What was polled is dropped here, inside, if the request is given up.
            marked.map_or(Ok(polled), Err)
        });
        if polled.is_err() {
            note_bailout(place);
        }
        if value.is_none() {
            *place = Place::Caller;
        }
        polled
    }

    /// The same; what is given up unwinds to whoever polls.
    pub(super) fn poll_through<R>(
        self: Pin<&mut Self>,
        poll: impl FnOnce(Pin<&mut T>) -> R,
        is_over: impl FnOnce(&R) -> bool,
    ) -> R {
        let _catching = self.request().map(|_| Catching::new());
        self.poll_within(poll, is_over).unwrap_or_else(|limit| raise(limit.into()))
    }

    /// The same; what is given up is an error, and the scope is over.
    pub(super) fn poll_caught<R>(
        mut self: Pin<&mut Self>,
        poll: impl FnOnce(Pin<&mut T>) -> R,
        is_over: impl FnOnce(&R) -> bool,
    ) -> Result<R, Bailout> {
        match catching(|| self.as_mut().poll_within(poll, is_over)) {
            Ok(polled) => polled.map_err(Bailout::from),
            Err(bailout) => {
                note_bailout(self.within.place());
                self.drop_in();
                Err(bailout)
            }
        }
    }

    fn within(self: Pin<&mut Self>) -> Pin<&mut Within<T>> {
        // SAFETY: `within` is pinned with the scope, which has no `Drop` or `Unpin` of its own.
        unsafe { self.map_unchecked_mut(|this| &mut this.within) }
    }
}

/// Notes that a poll bailed out.
fn note_bailout(place: &Place) {
    if let Some(request) = place.request() {
        request.note_bailout();
    }
}

impl<F: Future> Future for Scope<F> {
    type Output = F::Output;

    /// # Panics
    /// If the scope is over, or as [`Request::enter`] does.
    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        self.poll_through(|future| future.poll(context), Poll::is_ready)
    }
}

/// The future, or the stream, that [`Scope::catch`] returns.
#[must_use = "scopes do nothing unless polled"]
pub struct CatchScope<T> {
    /// Pinned with this.
    scope: Scope<T>,
}

impl<T> CatchScope<T> {
    pub(super) fn scope(self: Pin<&mut Self>) -> Pin<&mut Scope<T>> {
        // SAFETY: `scope` is pinned with this, which has no `Drop` or `Unpin` of its own.
        unsafe { self.map_unchecked_mut(|this| &mut this.scope) }
    }

    /// Returns the scope as it is seen from outside.
    pub fn as_scope(&self) -> &Scope<T> {
        &self.scope
    }
}

impl<F: Future> Future for CatchScope<F> {
    type Output = Result<F::Output, Bailout>;

    /// # Panics
    /// If the scope is over, if the future panics, or as [`Request::enter`] does.
    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match self.scope().poll_caught(|future| future.poll(context), Poll::is_ready) {
            Ok(output) => output.map(Ok),
            Err(bailout) => Poll::Ready(Err(bailout)),
        }
    }
}

impl<T> fmt::Debug for CatchScope<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CatchScope").field("scope", &self.scope).finish()
    }
}

impl<T> fmt::Debug for Scope<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scope").field("request", &self.request()).finish_non_exhaustive()
    }
}
