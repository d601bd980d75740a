//! `RequestBuilder`: what a request is to be.

use crate::api::request::{Request, persistent};
use crate::request::control::{Control, Opening};
use crate::thread::open::open;
use core::fmt;
use std::alloc::{Layout, handle_alloc_error};
use std::boxed::Box;
use std::vec::Vec;

/// A request to be: see [`Request::builder`].
#[derive(Default)]
#[must_use = "a builder does nothing until `build`"]
pub struct RequestBuilder {
    opening: Opening,
    on_end: Vec<Callback>,
}

type Callback = Box<dyn FnOnce() + Send>;

impl RequestBuilder {
    /// What the request is called in its report.
    pub fn name(mut self, name: &'static str) -> Self {
        self.opening.name = Some(name);
        self
    }

    /// How many bytes of pages the request may hold: its footprint, free blocks in its pages included.
    /// At the limit, after what is free inside the request was looked through, allocation returns null:
    /// `try_reserve` is an error, most other Rust code ends the process. Long before that, at the
    /// [`reserve`](Self::reserve), the request is marked, which [`check`](crate::check),
    /// [`catch`](Request::catch) and scopes see. Suspended while the thread panics and in `on_end`
    /// callbacks. ZendMM's `memory_limit`.
    pub fn memory_limit(mut self, bytes: usize) -> Self {
        self.opening.limit_bytes = Some(bytes);
        self
    }

    /// How many bytes below the memory limit the request is marked: what it may still allocate while it
    /// is being given up. An eighth of the limit, at most 4 MiB, where nothing is said.
    pub fn reserve(mut self, bytes: usize) -> Self {
        self.opening.reserve_bytes = Some(bytes);
        self
    }

    /// Has `callback` called inside the request before its memory goes: when it is ended, closed, or its
    /// last handle dropped, after a bailout too; the last added first. For what no destructor reaches: C
    /// libraries, files, locks.
    ///
    /// The memory limit is suspended meanwhile. What the callback allocates belongs to the request. A
    /// panic in it is printed and ends that callback only.
    pub fn on_end(mut self, callback: impl FnOnce() + Send + 'static) -> Self {
        persistent(|| self.on_end.push(Box::new(callback)));
        self
    }

    /// Whether a clean end, one without a bailout, lists on standard error what was never freed: blocks
    /// and bytes by size class. ZendMM's debug build does. Costs a look at every block at the end.
    pub fn report_leaks(mut self, report: bool) -> Self {
        self.opening.leaks.reported = report;
        self
    }

    /// Whether the list is printed after a bailout as well.
    pub fn report_leaks_after_bailout(mut self, report: bool) -> Self {
        self.opening.leaks.reported_after_bailout = report;
        self.opening.leaks.reported |= report;
        self
    }

    /// Whether every block remembers where it was allocated, for the list of
    /// [`report_leaks`](Self::report_leaks), which this turns on. The call sites of Rust code are found with the feature
    /// `trace`, those of C where its macros pass them on. Blocks are some 200 bytes longer and every
    /// allocation and free goes the slow way: for looking for a leak. The environment variable
    /// `RQMALLOC_TRACE=1` does the same for all requests of a process.
    pub fn trace_leaks(mut self, trace: bool) -> Self {
        self.opening.leaks.traced = trace;
        self.opening.leaks.reported |= trace;
        self
    }

    /// Whether the first allocation that the request is refused at its memory limit is said on standard
    /// error, in one line with its name, limit and size: what follows may be the end of the process. It
    /// is, unless this or `RQMALLOC_REPORT_LIMIT=0` in the environment says otherwise. A process writes
    /// some lines a second, and how many it has left out.
    pub fn report_limit(mut self, report: bool) -> Self {
        self.opening.hides_limit = !report;
        self
    }

    /// Opens the request.
    ///
    /// # Panics
    /// As a failed allocation does (see [`handle_alloc_error`]) when there is no memory for it.
    pub fn build(self) -> Request {
        let opened = open(&self.opening);
        let control = opened.unwrap_or_else(|| handle_alloc_error(Layout::new::<Control>()));
        let request = Request { control };
        if !self.on_end.is_empty() {
            persistent(|| {
                self.on_end.into_iter().for_each(|callback| request.on_end(callback));
            });
        }
        request
    }
}

impl fmt::Debug for RequestBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Opening { name, limit_bytes, reserve_bytes, leaks, hides_limit } = self.opening;
        f.debug_struct("RequestBuilder")
            .field("name", &name)
            .field("memory_limit", &limit_bytes)
            .field("reserve", &reserve_bytes)
            .field("leaks", &leaks)
            .field("report_limit", &!hides_limit)
            .field("on_end", &self.on_end.len())
            .finish()
    }
}

impl Request {
    /// Opens a request.
    ///
    /// # Panics
    /// As a failed allocation does when there is no memory for its control block.
    #[expect(clippy::new_without_default, reason = "a default value should not open a request")]
    pub fn new() -> Self {
        Self::builder().build()
    }

    /// A request with a name.
    pub fn builder() -> RequestBuilder {
        RequestBuilder::default()
    }
}
