//! `RequestBuilder`: how a request is opened.

use crate::api::request::{Request, persistent};
use crate::blocks::request_name::RequestName;
use crate::lockfree::budget::MAX_LEVELS;
use crate::request::control::{Control, Opening};
use crate::thread::open::open;
use core::fmt;
use std::alloc::{Layout, handle_alloc_error};
use std::boxed::Box;
use std::vec::Vec;

/// The settings of a request to be opened: see [`Request::builder`].
#[derive(Default)]
#[must_use = "a builder does nothing until `build`"]
pub struct RequestBuilder {
    opening: Opening,
    parent: Option<Request>,
    on_end: Vec<Callback>,
}

type Callback = Box<dyn FnOnce() + Send>;

impl RequestBuilder {
    /// Sets what the request is called in reports, lists and error messages: the first 64 bytes of
    /// the text, cut between two characters, with `?` for control characters. An empty text is no
    /// name.
    pub fn name(mut self, name: impl AsRef<str>) -> Self {
        self.opening.name = RequestName::new(name.as_ref());
        self
    }

    /// Sets how many bytes of pages the request should hold: above that it is marked, which
    /// [`check`](crate::check), [`catch`](Request::catch) and scopes see, after what is free inside
    /// the request has been looked through. Nothing is refused because of it: what is allocated
    /// between the mark and the look of the code that runs the request is allocated. With a
    /// [`memory_limit`](Self::memory_limit), too, it is marked at whichever comes first.
    ///
    /// What a service wants by default: code that cannot handle a failed allocation lives.
    pub fn soft_limit(mut self, bytes: usize) -> Self {
        self.opening.soft_limit_bytes = Some(bytes);
        self
    }

    /// Sets how many bytes of pages the request may hold: its footprint, including free blocks in
    /// its pages. At the limit, after what is free inside the request has been looked through,
    /// allocation returns null: `try_reserve` returns an error, most other Rust code ends the
    /// process. Long before that, at the [`reserve`](Self::reserve), the request is marked, as at a
    /// [`soft_limit`](Self::soft_limit). The limit is suspended while the thread panics and in
    /// `on_end` callbacks. ZendMM's `memory_limit`.
    ///
    /// A limit above 256 MiB may be rounded up, by less than two millionths of it.
    pub fn memory_limit(mut self, bytes: usize) -> Self {
        self.opening.limit_bytes = Some(bytes);
        self
    }

    /// Sets how many bytes below the memory limit the request is marked: what it may still allocate
    /// while it is being given up. By default an eighth of the limit, at most 4 MiB; or, if that is
    /// more, one and a quarter times what a request with a memory limit was seen to grow by in one
    /// poll of a scope, at most half of the limit. Such a growth counts half after each minute or
    /// two in which it was not seen again.
    pub fn reserve(mut self, bytes: usize) -> Self {
        self.opening.reserve_bytes = Some(bytes);
        self
    }

    /// Makes the request a child of `parent`: what it holds counts to its parent's footprint and
    /// peak, and to those of the parent's own parents, until the child is finished. It is refused
    /// memory when one of them is at its memory limit, and is to be given up when one of them is
    /// marked. A child keeps its parent open, as a handle does. Being inside the one is not being
    /// inside the other.
    pub fn parent(mut self, parent: &Request) -> Self {
        self.parent = Some(parent.clone());
        self
    }

    /// Registers `callback` to run inside the request before its memory goes: when it is ended or
    /// closed or its last handle is dropped, also after a bailout; last added first. For what no
    /// destructor reaches: C libraries, files, locks.
    ///
    /// The memory limit is suspended meanwhile. What the callback allocates belongs to the request.
    /// A panic in it is printed and ends only that callback.
    pub fn on_end(mut self, callback: impl FnOnce() + Send + 'static) -> Self {
        persistent(|| self.on_end.push(Box::new(callback)));
        self
    }

    /// Sets whether a clean end, one without a bailout, lists on standard error what was never
    /// freed: blocks and bytes by size class. ZendMM's debug build does. Costs a look at every
    /// block at the end.
    pub fn report_leaks(mut self, report: bool) -> Self {
        self.opening.leaks.reported = report;
        self
    }

    /// Sets whether the list is printed after a bailout as well.
    pub fn report_leaks_after_bailout(mut self, report: bool) -> Self {
        self.opening.leaks.reported_after_bailout = report;
        self.opening.leaks.reported |= report;
        self
    }

    /// Sets whether every block remembers where it was allocated, for the list of
    /// [`report_leaks`](Self::report_leaks), which this turns on. Call sites in Rust code are found
    /// with the feature `trace`, those in C where its macros pass them on. Blocks are some 200
    /// bytes longer, and every allocation and free takes the slow path: meant for finding a leak.
    /// The environment variable `RQMALLOC_TRACE=1` does the same for all requests of a process.
    pub fn trace_leaks(mut self, trace: bool) -> Self {
        self.opening.leaks.traced = trace;
        self.opening.leaks.reported |= trace;
        self
    }

    /// Sets whether the first allocation refused at the request's memory limit is reported on
    /// standard error, in one line with the request's name, limit and size: the end of the process
    /// may follow. It is reported unless this or `RQMALLOC_REPORT_LIMIT=0` in the environment turns
    /// it off. A process writes at most a few such lines a second, and how many it left out.
    pub fn report_limit(mut self, report: bool) -> Self {
        self.opening.hides_limit = !report;
        self
    }

    /// Opens the request.
    ///
    /// # Panics
    /// If there is no memory for it, as a failed allocation does (see [`handle_alloc_error`]); or if
    /// its [`parent`](Self::parent) has seven requests above it.
    pub fn build(mut self) -> Request {
        let parent = self.parent.take();
        if let Some(parent) = &parent {
            assert!(parent.control.may_be_parent(), "{MAX_LEVELS} requests are nested at most");
            self.opening.parent = Some(parent.control);
        }
        let opened = open(&self.opening);
        let control = opened.unwrap_or_else(|| handle_alloc_error(Layout::new::<Control>()));
        // The child has that handle from here on (Q3).
        core::mem::forget(parent);
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
        let Opening {
            name, limit_bytes, soft_limit_bytes, reserve_bytes, leaks, hides_limit, ..
        } = self.opening;
        f.debug_struct("RequestBuilder")
            .field("name", &name)
            .field("soft_limit", &soft_limit_bytes)
            .field("memory_limit", &limit_bytes)
            .field("reserve", &reserve_bytes)
            .field("parent", &self.parent)
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
    /// If there is no memory for its control block, as a failed allocation does.
    #[expect(clippy::new_without_default, reason = "a default value should not open a request")]
    pub fn new() -> Self {
        let opened = open(&Opening::default());
        let control = opened.unwrap_or_else(|| handle_alloc_error(Layout::new::<Control>()));
        Self { control }
    }

    /// Returns a builder for a request with a name or other settings.
    pub fn builder() -> RequestBuilder {
        RequestBuilder::default()
    }
}
