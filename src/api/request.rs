//! `Request`: a handle of a request, and the guard of being inside one.

use crate::api::limit::{LimitBelowUse, LimitExceeded};
use crate::api::report::{Report, RequestId, Usage};
use crate::base::sync::Ordering;
use crate::lockfree::header::NONE;
use crate::request::control::{Control, Opening};
use crate::request::finish::{Outcome, Survivors};
use crate::request::leaks::{self, Leaks};
use crate::thread::finish::{add_callback, drop_handle, drop_only_handle};
use crate::thread::{self, EntryKind, HEAP, Inside};
use core::fmt;
use core::marker::PhantomData;
use core::mem::ManuallyDrop;
use core::panic::{RefUnwindSafe, UnwindSafe};
use std::alloc::{Layout, handle_alloc_error};
use std::boxed::Box;
use std::vec::Vec;

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

// A panic leaves a request as whole as it was: what a closure does in it is the closure's own.
impl UnwindSafe for Request {}
impl RefUnwindSafe for Request {}

static_assertions::assert_impl_all!(Request: Send, Sync, UnwindSafe, RefUnwindSafe);
static_assertions::assert_not_impl_any!(Entered: Send, Sync);

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
    /// [`reserve`](Self::reserve), the request is marked, which [`check`],
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

/// Opens a request with one handle, the caller's. `None`: out of memory.
pub(crate) fn open(opening: &Opening) -> Option<&'static Control> {
    match thread::current_or_start() {
        Some(thread) => thread.open_request(opening),
        None => thread::open_without_thread(opening),
    }
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
    } = thread::finish::finish(control, survivors);
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
    /// [`persistent`](crate::persistent()); `None` outside requests.
    pub fn current() -> Option<Self> {
        let control = thread::current_control()?;
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
            drop_handle(self.control);
            // A thread that has exited is in no request any more: its last allocations are
            // persistent. Without memory there is nothing to go on with.
            if thread.is_some() {
                handle_alloc_error(Layout::new::<Control>());
            }
        }
        Entered { inside: name.map(Inside), thread: PhantomData }
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
            limit: self.control.limit(),
        }
    }

    /// Whether the request has come to its memory limit or to the mark below it.
    ///
    /// # Errors
    /// What the limit is, what was in use and what was asked for then.
    pub fn check(&self) -> Result<(), LimitExceeded> {
        LimitExceeded::of(self.control).map_or(Ok(()), Err)
    }

    /// Why the request is marked: it is to be given up then by whoever runs it.
    pub(crate) fn given_up(&self) -> Option<LimitExceeded> {
        self.control.is_to_be_given_up().then(|| LimitExceeded::of(self.control)).flatten()
    }

    /// Sets the memory limit, in bytes of pages; `None`: no limit. A request that has room again is not
    /// marked any more. ZendMM's `zend_set_memory_limit`, but a limit that is accepted is always stored.
    ///
    /// # Errors
    /// When the request holds more than that, even after what is free inside it went back. Nothing has
    /// changed then.
    pub fn set_memory_limit(&self, bytes: Option<usize>) -> Result<(), LimitBelowUse> {
        let limit = bytes.unwrap_or(usize::MAX);
        if self.control.set_limit(self.lane_here(), limit, &HEAP) {
            return Ok(());
        }
        if self.lane_here().is_none() {
            // Inside, what is free can be given back.
            let _entered = self.enter();
            if self.control.set_limit(self.lane_here(), limit, &HEAP) {
                return Ok(());
            }
        }
        Err(LimitBelowUse { limit, in_use: self.control.footprint_bytes() })
    }

    /// Gives pages back that only free blocks of this request are in; the bytes that went. Looks through
    /// what this thread and threads that are not inside just now have freed. ZendMM's `zend_mm_gc`.
    pub fn reclaim(&self) -> usize {
        let _entered = self.enter();
        self.lane_here().and_then(|lane| self.control.reclaim(lane, 1, &HEAP)).unwrap_or(0)
    }

    /// From now on the peak is measured anew, from what is in use just now.
    pub fn reset_peak(&self) {
        self.control.reset_peak();
    }

    /// What of this request is not freed just now, but for what [`persist`](crate::persist) kept and for
    /// what other threads that are inside it just now have.
    pub fn leaks(&self) -> Leaks {
        // Without memory for more, the sums.
        persistent(|| leaks::collect(self.control, self.lane_here(), &HEAP))
            .unwrap_or_else(|sums| sums)
    }

    /// Has `callback` called inside the request before its memory goes, before those added earlier: see
    /// [`RequestBuilder::on_end`].
    ///
    /// # Panics
    /// As a failed allocation does when there is no memory for it.
    pub fn on_end(&self, callback: impl FnOnce() + Send + 'static) {
        if add_callback(self.control, callback).is_err() {
            handle_alloc_error(Layout::new::<Control>());
        }
    }

    /// The lane that this thread is in.
    fn lane_here(&self) -> Option<&'static crate::request::lane::Lane> {
        thread::current()?.lane_inside(self.control)
    }

    /// The request was given up: what it leaves behind is not worth a report.
    pub(crate) fn note_bailout(&self) {
        self.control.bailed_out.store(true, Ordering::Relaxed);
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
        if !drop_only_handle(self.control) {
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
        drop_handle(self.control);
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
    inside: Option<Inside>,
    /// An entry belongs to its thread: neither `Send` nor `Sync`.
    thread: PhantomData<*const ()>,
}

impl fmt::Debug for Entered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entered").field("is_inside", &self.inside.is_some()).finish()
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
    let _inside = thread::current_or_start().map(|thread| {
        let name = thread.enter_persistent(EntryKind::Persistent);
        Inside(name.unwrap_or_else(|| handle_alloc_error(Layout::new::<Control>())))
    });
    f()
}

/// Whether this thread's innermost request has come to its memory limit or to the mark below it; fine
/// outside requests. To be called now and then by what works long: cheap.
///
/// # Errors
/// What the limit is, what was in use and what was asked for then.
pub fn check() -> Result<(), LimitExceeded> {
    match thread::current_control() {
        Some(control) => LimitExceeded::of(control).map_or(Ok(()), Err),
        None => Ok(()),
    }
}

/// Whether the block at `payload` belongs to an open or closed request; for tests.
///
/// # Safety
/// `payload` is null or points to a live block of this allocator.
#[doc(hidden)]
pub unsafe fn owner_of(payload: *const u8) -> Option<RequestId> {
    let payload = payload.expose_provenance();
    if payload == NONE {
        return None;
    }
    HEAP.find(payload).control().map(|control| RequestId(control.serial()))
}
