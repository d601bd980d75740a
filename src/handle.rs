//! `Request`: a handle of a request, and the guard of being inside one.

use crate::block::NONE;
use crate::report::{Report, RequestId, Usage};
use crate::request::close::{Outcome, Survivors};
use crate::request::control::Control;
use crate::thread::{self, EntryKind, EntryName, HEAP};
use core::fmt;
use core::marker::PhantomData;
use core::mem::ManuallyDrop;
use std::alloc::{Layout, handle_alloc_error};

/// A request: a lifetime that blocks belong to, and a handle of it. Clones are handles of the same
/// request; when the last one is dropped, and nobody is inside, the request is closed as by
/// [`close`](Self::close).
///
/// ```
/// # #[global_allocator]
/// # static GLOBAL: rqmalloc::RqMalloc = rqmalloc::RqMalloc;
/// let request = rqmalloc::Request::new();
/// let words = request.run(|| "a few words".split(' ').map(String::from).collect::<Vec<_>>());
/// assert_eq!(request.usage().live_blocks, 4);
/// drop(words);
/// let report = request.close().unwrap();
/// assert_eq!(report.surviving_blocks, 0);
/// ```
pub struct Request {
    control: &'static Control,
}

static_assertions::assert_impl_all!(Request: Send, Sync);
static_assertions::assert_not_impl_any!(Entered: Send, Sync);

/// A request to be: see [`Request::builder`].
#[derive(Clone, Copy, Debug, Default)]
#[must_use = "a builder does nothing until `build`"]
pub struct RequestBuilder {
    name: Option<&'static str>,
}

impl RequestBuilder {
    /// What the request is called in its report.
    pub fn name(mut self, name: &'static str) -> Self {
        self.name = Some(name);
        self
    }

    /// Opens the request.
    ///
    /// # Panics
    /// As a failed allocation does (see [`handle_alloc_error`]) when there is no memory for it.
    pub fn build(self) -> Request {
        Request { control: open(self.name) }
    }
}

/// Opens a request with one handle, the caller's.
pub(crate) fn open(name: Option<&'static str>) -> &'static Control {
    let opened = match thread::current_or_start() {
        Some(thread) => thread.open_request(name),
        None => thread::open_without_thread(name),
    };
    opened.unwrap_or_else(|| handle_alloc_error(Layout::new::<Control>()))
}

/// Finishes a request whose last handle the caller dropped.
pub(crate) fn finish(control: &'static Control, survivors: Survivors) -> Report {
    let before = report_of(control);
    let Outcome {
        freed_blocks,
        freed_bytes,
        surviving_blocks,
        surviving_bytes,
        pinned_bytes,
        is_over: _,
    } = thread::finish(control, survivors);
    Report {
        freed_blocks: freed_blocks as u64,
        freed_bytes,
        surviving_blocks: surviving_blocks as u64,
        surviving_bytes,
        pinned_bytes,
        ..before
    }
}

/// A report of a request whose memory is as it was.
pub(crate) fn report_of(control: &Control) -> Report {
    Report {
        id: RequestId(control.serial()),
        name: control.name.get(),
        peak_bytes: control.peak_bytes(),
        freed_blocks: 0,
        freed_bytes: 0,
        surviving_blocks: 0,
        surviving_bytes: 0,
        pinned_bytes: 0,
        still_open: false,
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

    /// The innermost request this thread is inside, also within
    /// [`persistent`](crate::persistent); `None` outside requests.
    pub fn current() -> Option<Self> {
        let control = thread::current()?.current_control()?;
        thread::add_handle(control);
        Some(Self { control })
    }

    /// Its number.
    pub fn id(&self) -> RequestId {
        RequestId(self.control.serial())
    }

    /// Enters the request: until the guard is dropped, what this thread allocates belongs to it.
    ///
    /// Guards may be dropped in any order, and forgetting one only keeps the request open until the
    /// thread exits: being inside is recorded by the thread, not by the guard.
    ///
    /// # Panics
    /// As a failed allocation does when there is no memory for the entry.
    pub fn enter(&self) -> Entered {
        thread::add_handle(self.control);
        let thread = thread::current_or_start();
        let name = thread.and_then(|thread| thread.enter(self.control, EntryKind::Guard));
        if name.is_none() {
            thread::drop_handle(self.control);
            // A thread that has exited is in no request any more: its last allocations are
            // persistent. Without memory there is nothing to go on with.
            if thread.is_some() {
                handle_alloc_error(Layout::new::<Control>());
            }
        }
        Entered { name, thread: PhantomData }
    }

    /// Runs `f` inside the request; its allocations belong to the request, what it returns included.
    pub fn run<R>(&self, f: impl FnOnce() -> R) -> R {
        let _entered = self.enter();
        f()
    }

    /// What the request uses just now.
    pub fn usage(&self) -> Usage {
        let figures = self.control.figures();
        Usage {
            live_blocks: figures.live_blocks,
            live_bytes: figures.live_bytes,
            footprint: figures.footprint,
            peak: figures.peak,
            limit: None,
        }
    }

    /// Closes the request, the safe way to be done with it: blocks that are still live stay valid
    /// until they are freed, by whoever, and everything else goes back at once.
    ///
    /// # Errors
    /// Gives the request back when other handles are alive or somebody is inside.
    pub fn close(self) -> Result<Report, Self> {
        self.finish_if_only(Survivors::Live)
    }

    /// Ends the request: frees every block of it but those that [`persist`](crate::persist) kept,
    /// in time that does not depend on how many there are.
    ///
    /// # Safety
    /// Every use and every free of this request's blocks, by any thread, happens before this call;
    /// nothing that is used or dropped later points to one. `std::thread::scope` without an explicit
    /// `join`, and channels, do *not* give that for memory that the other thread frees: use
    /// [`close`](Self::close) there.
    ///
    /// # Errors
    /// Gives the request back when other handles are alive or somebody is inside.
    pub unsafe fn end(self) -> Result<Report, Self> {
        self.finish_if_only(Survivors::Kept)
    }

    fn finish_if_only(self, survivors: Survivors) -> Result<Report, Self> {
        if !self.control.handles.drop_if_only() {
            return Err(self);
        }
        // The handle is dropped already.
        let request = ManuallyDrop::new(self);
        Ok(finish(request.control, survivors))
    }
}

impl Clone for Request {
    fn clone(&self) -> Self {
        thread::add_handle(self.control);
        Self { control: self.control }
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        thread::drop_handle(self.control);
    }
}

/// Which request it is, and what keeps it open beside this handle: the text for an `Err` of
/// [`close`](Request::close) or [`end`](Request::end).
impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "request {}", self.control.serial())?;
        if let Some(name) = self.control.name.get() {
            write!(f, " ({name})")?;
        }
        let inside = self.control.lanes().filter(|lane| lane.occupancy.is_taken()).count();
        let others = self.control.handles.count().saturating_sub(1);
        let plural = |count, one, more| if count == 1 { one } else { more };
        if others == 0 {
            return f.write_str(": open, no other handle is alive");
        }
        let are = plural(others as usize, "handle is", "handles are");
        if inside == 0 {
            return write!(f, ": still open, {others} other {are} alive");
        }
        let threads = plural(inside, "thread is", "threads are");
        write!(f, ": still open, {inside} {threads} inside, {others} other {are} alive ")?;
        f.write_str("(every entry of a thread is one)")
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Request({self})")
    }
}

/// Being inside a request, from [`Request::enter`] until it is dropped.
#[must_use = "dropping the guard leaves the request at once"]
pub struct Entered {
    name: Option<EntryName>,
    /// An entry belongs to its thread: neither `Send` nor `Sync`.
    thread: PhantomData<*const ()>,
}

impl Drop for Entered {
    fn drop(&mut self) {
        if let (Some(name), Some(thread)) = (self.name, thread::current()) {
            thread.leave(name);
        }
    }
}

impl fmt::Debug for Entered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entered").field("is_inside", &self.name.is_some()).finish()
    }
}

/// Runs `f` with persistent allocations, whatever request this thread is inside: what it allocates
/// lives until it is freed, as outside requests.
///
/// For what a request's handler creates and the process keeps: caches, lazily made statics, pools.
///
/// # Panics
/// When `f` does, or as a failed allocation does when there is no memory for the entry.
pub fn persistent<R>(f: impl FnOnce() -> R) -> R {
    struct Inside(Option<EntryName>);
    impl Drop for Inside {
        fn drop(&mut self) {
            if let (Some(name), Some(thread)) = (self.0, thread::current()) {
                thread.leave(name);
            }
        }
    }
    let thread = thread::current_or_start();
    let _inside = Inside(thread.map(|thread| {
        thread.enter_persistent().unwrap_or_else(|| handle_alloc_error(Layout::new::<Control>()))
    }));
    f()
}

/// Whether the block at `payload` belongs to an open or closed request; for tests.
#[doc(hidden)]
pub fn owner_of(payload: *const u8) -> Option<RequestId> {
    let payload = payload.expose_provenance();
    if payload == NONE {
        return None;
    }
    let owner = HEAP.find(payload).span.owner();
    // SAFETY: a span's owner is a control block, kept by its live block.
    (owner != 0).then(|| RequestId(unsafe { Control::at(owner) }.serial()))
}
