//! Work that runs somewhere else inside the request it belongs to: closures that take their request
//! along, and what closures and scopes share, a value with the place it runs in.

use crate::api::request::Request;
#[cfg(feature = "async")]
use crate::api::request::persistent;
#[cfg(feature = "async")]
use crate::request::limit::LimitExceeded;
use core::pin::Pin;

/// Where a value runs and is dropped.
pub(crate) enum Place {
    /// Inside a request, whose handle this is.
    Request(Request),
    /// Inside the persistent lifetime.
    #[cfg(feature = "async")]
    Persistent,
    /// Where the thread is that runs or drops it.
    Caller,
}

impl Place {
    /// Returns that of the innermost request this thread is inside.
    pub(crate) fn current() -> Self {
        Request::current().map_or(Self::Caller, Self::Request)
    }

    /// Runs `f` there.
    pub(crate) fn run<R>(&self, f: impl FnOnce() -> R) -> R {
        match self {
            Self::Request(request) => request.run(f),
            #[cfg(feature = "async")]
            Self::Persistent => persistent(f),
            Self::Caller => f(),
        }
    }
}

#[cfg(feature = "async")]
impl Place {
    pub(crate) fn request(&self) -> Option<&Request> {
        match self {
            Self::Request(request) => Some(request),
            _ => None,
        }
    }

    /// Returns why what runs there is to be given up.
    pub(crate) fn given_up(&self) -> Option<LimitExceeded> {
        self.request()?.given_up()
    }
}

/// A value that runs in one place and is dropped there, by whichever thread.
pub(crate) struct Within<T> {
    place: Place,
    /// Pinned with this; `None` once it is over.
    value: Option<T>,
}

impl<T> Within<T> {
    pub(crate) fn new(place: Place, value: T) -> Self {
        Self { place, value: Some(value) }
    }

    /// Drops the value in its place, then the handle of the request.
    pub(crate) fn clear(self: Pin<&mut Self>) {
        let (mut value, place) = self.project();
        if value.is_some() {
            place.run(|| value.set(None));
        }
        *place = Place::Caller;
    }

    /// Returns the value, pinned as this is, and the place.
    pub(crate) fn project(self: Pin<&mut Self>) -> (Pin<&mut Option<T>>, &mut Place) {
        // SAFETY: `value` is pinned with this: what is pinned is never moved out, only dropped in
        // place by `Pin::set` or with this (`call` has this by value), `Within` has no `Unpin` of
        // its own, and its `drop` treats it as pinned. `place` is not pinned.
        unsafe {
            let this = self.get_unchecked_mut();
            (Pin::new_unchecked(&mut this.value), &mut this.place)
        }
    }

    /// Calls the closure, which is dropped in its place too.
    fn call<R>(mut self) -> R
    where
        T: FnOnce() -> R,
    {
        let Self { place, value } = &mut self;
        place.run(|| value.take().expect("only this takes the closure, once")())
    }

    /// Calls the closure, any number of times.
    fn call_with<A, R>(&self, argument: A) -> R
    where
        T: Fn(A) -> R,
    {
        let call = self.value.as_ref().expect("only `call` takes the closure");
        self.place.run(|| call(argument))
    }
}

#[cfg(feature = "async")]
impl<T> Within<T> {
    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

    pub(crate) fn value(&self) -> Option<&T> {
        self.value.as_ref()
    }
}

impl<T> Drop for Within<T> {
    fn drop(&mut self) {
        // SAFETY: what is being dropped is never moved again.
        unsafe { Pin::new_unchecked(self) }.clear();
    }
}

impl Request {
    /// Returns a closure that runs `f` inside this request, on whichever thread calls it. `f`, and
    /// what it captured, is dropped inside too, also if it is never called; what it returns is the
    /// caller's. For `spawn_blocking`, thread pools and threads of one's own.
    ///
    /// The closure owns a handle, so the request stays open until it was called or dropped.
    ///
    /// ```
    /// # #[global_allocator]
    /// # static GLOBAL: rqmalloc::RqMalloc = rqmalloc::RqMalloc;
    /// let request = rqmalloc::Request::new();
    /// let words = request.run(|| vec!["a".to_owned(), "few".to_owned()]);
    /// let count = std::thread::spawn(request.wrap(move || words.len())).join().unwrap();
    /// assert_eq!(count, 2);
    /// assert_eq!(request.close().unwrap().surviving_blocks, 0);
    /// ```
    ///
    /// # Panics
    /// The closure panics if `f` does, or as [`enter`](Self::enter) does.
    pub fn wrap<R, F: FnOnce() -> R>(&self, f: F) -> impl FnOnce() -> R + use<R, F> {
        let within = Within::new(Place::Request(self.clone()), f);
        move || within.call()
    }

    /// Returns a closure that runs `f` inside this request each time it is called, by any number of
    /// threads at once if `f` is [`Sync`]: for `par_iter` and its like. What [`wrap`](Self::wrap) is
    /// to `FnOnce()`. Each call enters and leaves, which takes some 200 instructions.
    ///
    /// ```
    /// # #[global_allocator]
    /// # static GLOBAL: rqmalloc::RqMalloc = rqmalloc::RqMalloc;
    /// use rayon::prelude::*;
    ///
    /// let request = rqmalloc::Request::new();
    /// let line = request.wrap_each(|number: u32| format!("line {number}"));
    /// let lines: Vec<String> = (0..100u32).into_par_iter().map(line).collect();
    /// assert_eq!(request.usage().live_blocks, 100);
    /// drop(lines);
    /// assert_eq!(request.close().unwrap().surviving_blocks, 0);
    /// ```
    ///
    /// # Panics
    /// The closure panics if `f` does, or as [`enter`](Self::enter) does.
    pub fn wrap_each<A, R, F: Fn(A) -> R>(&self, f: F) -> impl Fn(A) -> R + use<A, R, F> {
        let within = Within::new(Place::Request(self.clone()), f);
        move |argument| within.call_with(argument)
    }
}

/// Returns a closure that runs `f` inside the request that this thread is inside now, as
/// [`Request::wrap`] does; outside requests, one that just calls it. For code that hands work to
/// other threads and does not know of requests.
///
/// ```
/// # #[global_allocator]
/// # static GLOBAL: rqmalloc::RqMalloc = rqmalloc::RqMalloc;
/// fn in_the_background<R: Send + 'static>(f: impl FnOnce() -> R + Send + 'static) -> R {
///     std::thread::spawn(rqmalloc::inherit_fn(f)).join().unwrap()
/// }
///
/// let current = || rqmalloc::Request::current().map(|request| request.id());
/// let request = rqmalloc::Request::new();
/// assert_eq!(request.run(|| in_the_background(current)), Some(request.id()));
/// assert_eq!(in_the_background(current), None);
/// ```
///
/// # Panics
/// The closure panics if `f` does, or as [`Request::enter`] does.
pub fn inherit_fn<R, F: FnOnce() -> R>(f: F) -> impl FnOnce() -> R + use<R, F> {
    let within = Within::new(Place::current(), f);
    move || within.call()
}

/// Returns a closure that runs `f`, each time it is called, inside the request that this thread is
/// inside now, as [`Request::wrap_each`] does; outside requests, one that just calls it.
///
/// ```
/// # #[global_allocator]
/// # static GLOBAL: rqmalloc::RqMalloc = rqmalloc::RqMalloc;
/// let current = |_: usize| rqmalloc::Request::current().map(|request| request.id());
/// let request = rqmalloc::Request::new();
/// let inside = request.run(|| rqmalloc::inherit_each(current));
/// assert_eq!((inside(0), inside(1)), (Some(request.id()), Some(request.id())));
/// assert_eq!(rqmalloc::inherit_each(current)(0), None);
/// ```
///
/// # Panics
/// The closure panics if `f` does, or as [`Request::enter`] does.
pub fn inherit_each<A, R, F: Fn(A) -> R>(f: F) -> impl Fn(A) -> R + use<A, R, F> {
    let within = Within::new(Place::current(), f);
    move |argument| within.call_with(argument)
}
