//! `Request`: a handle of a request, and the guard for being inside one.

use crate::base::sync::Ordering;
use crate::blocks::request_id::RequestId;
use crate::blocks::request_name::RequestName;
use crate::lockfree::header::NONE;
use crate::request::control::Control;
use crate::request::finish::Survivors;
use crate::request::info::{RequestInfo, Usage};
use crate::request::leaks::{self, Leaks};
use crate::request::limit::{LimitBelowUse, LimitExceeded};
use crate::request::report::Report;
use crate::thread::callbacks::add_callback;
use crate::thread::finish::{drop_handle, drop_only_handle, finish};
use crate::thread::guard::Inside;
use crate::thread::life::current_or_start;
use crate::thread::observe::limit_exceeded;
use crate::thread::open::add_handle;
use crate::thread::{self, EntryKind, HEAP};
use core::fmt;
use core::marker::PhantomData;
use core::mem::ManuallyDrop;
use core::panic::{RefUnwindSafe, UnwindSafe};
use std::alloc::{Layout, handle_alloc_error};

/// A handle of a request: of a lifetime that blocks belong to. Clones are handles of the same
/// request; when the last one is dropped, and no thread is inside, the request is closed as by
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
    pub(super) control: &'static Control,
}

// A panic leaves a request itself intact: what a closure does inside it is the closure's own.
impl UnwindSafe for Request {}
impl RefUnwindSafe for Request {}

static_assertions::assert_impl_all!(Request: Send, Sync, UnwindSafe, RefUnwindSafe);
static_assertions::assert_not_impl_any!(Entered: Send, Sync);

impl Request {
    /// Returns a handle of the innermost request this thread is inside, also within
    /// [`persistent`](crate::persistent()); `None` outside requests.
    pub fn current() -> Option<Self> {
        let control = thread::current_control()?;
        add_handle(control);
        Some(Self { control })
    }

    /// Returns the request's number.
    pub fn id(&self) -> RequestId {
        self.control.request_id()
    }

    /// Enters the request: until the guard is dropped, what this thread allocates belongs to it.
    ///
    /// Guards may be dropped in any order, and forgetting one only keeps the request open until the
    /// thread exits: being inside is recorded by the thread, not by the guard.
    ///
    /// # Panics
    /// If there is no memory for the entry, as a failed allocation does.
    pub fn enter(&self) -> Entered {
        add_handle(self.control);
        let thread = current_or_start();
        let name = thread.and_then(|thread| thread.enter(self.control, EntryKind::Guard));
        if name.is_none() {
            drop_handle(self.control);
            // A thread that has exited is no longer in any request: its last allocations are
            // persistent. Without memory for the entry there is nothing to go on with.
            if thread.is_some() {
                handle_alloc_error(Layout::new::<Control>());
            }
        }
        let inside = thread.zip(name).map(|(thread, name)| Inside::new(thread, name));
        Entered { inside, thread: PhantomData }
    }

    /// Runs `f` inside the request; its allocations belong to the request, including what it
    /// returns.
    pub fn run<R>(&self, f: impl FnOnce() -> R) -> R {
        let _entered = self.enter();
        f()
    }

    /// Returns what the request uses now. Blocks are its own; the footprint and its peak include
    /// what its children hold (see [`RequestBuilder::parent`](crate::RequestBuilder::parent)).
    pub fn usage(&self) -> Usage {
        Usage::of(self.control)
    }

    /// Returns what the request was called when it was opened.
    pub fn name(&self) -> Option<RequestName> {
        self.control.name.get()
    }

    /// Returns what [`open_requests`](crate::open_requests()) says of this request.
    pub fn info(&self) -> RequestInfo {
        RequestInfo::of(self.control)
    }

    /// Checks whether the request is marked, or one above it, or was refused memory at a limit.
    ///
    /// # Errors
    /// If so: which limit, what was in use and what was asked for at that time.
    pub fn check(&self) -> Result<(), LimitExceeded> {
        limit_exceeded(self.control).map_or(Ok(()), Err)
    }

    /// Returns why the request is marked: the code that runs it must then give it up.
    pub(crate) fn given_up(&self) -> Option<LimitExceeded> {
        self.control.is_to_be_given_up().then(|| limit_exceeded(self.control)).flatten()
    }

    /// Returns the request that this one is a child of, if any: see
    /// [`RequestBuilder::parent`](crate::RequestBuilder::parent).
    pub fn parent(&self) -> Option<Self> {
        // The child has a handle of it, and this is one of the child (Q3).
        let control = self.control.parent()?;
        add_handle(control);
        Some(Self { control })
    }

    /// Sets the soft limit, in bytes of pages; `None`: none. A request that holds more is marked at
    /// once, after what is free inside it was given back if this thread is inside; one that has
    /// room again is no longer marked because of it.
    pub fn set_soft_limit(&self, bytes: Option<usize>) {
        let limit = bytes.unwrap_or(usize::MAX);
        self.control.set_soft_limit(self.lane_here(), limit, &HEAP);
    }

    /// Sets the memory limit, in bytes of pages; `None`: no limit. What its children hold is in use,
    /// too. A request that has room again is
    /// no longer marked. ZendMM's `zend_set_memory_limit`, except that an accepted limit is always
    /// stored.
    ///
    /// # Errors
    /// If the request holds more than that, even after what is free inside it was given back.
    /// Nothing has changed then.
    pub fn set_memory_limit(&self, bytes: Option<usize>) -> Result<(), LimitBelowUse> {
        let limit = bytes.unwrap_or(usize::MAX);
        if self.control.set_limit(self.lane_here(), limit, &HEAP) {
            return Ok(());
        }
        if self.lane_here().is_none() {
            // From inside, what is free can be given back.
            let _entered = self.enter();
            if self.control.set_limit(self.lane_here(), limit, &HEAP) {
                return Ok(());
            }
        }
        let in_use_bytes = self.control.footprint_bytes();
        Err(LimitBelowUse { limit_bytes: limit, in_use_bytes })
    }

    /// Gives back the pages that contain only free blocks of this request, and returns their bytes.
    /// Looks through what was freed by this thread and by threads that are not inside now. ZendMM's
    /// `zend_mm_gc`.
    pub fn reclaim(&self) -> usize {
        let _entered = self.enter();
        self.lane_here().and_then(|lane| self.control.reclaim(lane, 1, &HEAP)).unwrap_or(0)
    }

    /// Measures the peak anew, starting from what is in use now.
    pub fn reset_peak(&self) {
        self.control.reset_peak();
    }

    /// Returns what of this request is not freed, except what other threads that are inside now
    /// have.
    pub fn leaks(&self) -> Leaks {
        // Without memory for more, only the sums.
        let with = |look: leaks::Look<'_>| {
            look(self.control, self.lane_here());
            Some(())
        };
        match persistent(|| leaks::collect(with, &HEAP)) {
            Some(leaks) => leaks.unwrap_or_else(|sums| sums),
            None => unreachable!("this handle keeps the request"),
        }
    }

    /// Registers `callback` to run inside the request before its memory goes, and before callbacks
    /// added earlier: see [`RequestBuilder::on_end`](crate::RequestBuilder::on_end).
    ///
    /// # Panics
    /// If there is no memory for it, as a failed allocation does.
    pub fn on_end(&self, callback: impl FnOnce() + Send + 'static) {
        if add_callback(self.control, callback).is_err() {
            handle_alloc_error(Layout::new::<Control>());
        }
    }

    /// Returns the lane of this request that this thread is in.
    fn lane_here(&self) -> Option<&'static crate::request::lane::Lane> {
        thread::current()?.lane_inside(self.control)
    }

    /// Notes that the request was given up: what it leaves behind is not worth a report.
    pub(crate) fn note_bailout(&self) {
        self.control.bailed_out.store(true, Ordering::Relaxed);
    }

    /// Closes the request, the safe way to be done with it: blocks that are still live stay valid
    /// until they are freed, by any thread, and everything else is given back at once.
    ///
    /// # Errors
    /// Returns the request if other handles are alive or a thread is inside.
    pub fn close(self) -> Result<Report, Self> {
        self.finish_if_only(Survivors::Live)
    }

    /// Ends the request: frees all of its blocks, in time that does not depend on how many there
    /// are. What [`persist`](crate::persist) was called on is not the request's any more.
    ///
    /// # Safety
    /// Every use and every free of this request's blocks, by any thread, happens before this call;
    /// nothing that is used or dropped later points to one. `std::thread::scope` without an
    /// explicit `join`, and channels, do *not* guarantee that for memory that the other thread
    /// frees: use [`close`](Self::close) there.
    ///
    /// An operation that the kernel has not completed (io_uring, aio) is a user of its buffers and
    /// of what its driver keeps for it, also after its future was dropped: cancel it and wait for
    /// it, or use `close`.
    ///
    /// # Errors
    /// Returns the request if other handles are alive or a thread is inside.
    pub unsafe fn end(self) -> Result<Report, Self> {
        self.finish_if_only(Survivors::None)
    }

    fn finish_if_only(self, survivors: Survivors) -> Result<Report, Self> {
        if !drop_only_handle(self.control) {
            return Err(self);
        }
        // The handle has already been dropped.
        let request = ManuallyDrop::new(self);
        Ok(finish(request.control, survivors))
    }
}

impl Clone for Request {
    fn clone(&self) -> Self {
        add_handle(self.control);
        Self { control: self.control }
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        drop_handle(self.control);
    }
}

/// Says which request it is, and what keeps it open besides this handle: the text for an `Err` of
/// [`close`](Request::close) or [`end`](Request::end).
impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "request {}", self.id())?;
        if let Some(name) = self.control.name.get() {
            write!(f, " ({name})")?;
        }
        let inside = self.control.lanes().filter(|lane| lane.occupancy.is_taken()).count();
        let others = self.control.stub().state.look().handles().saturating_sub(1);
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

/// A guard for being inside a request, from [`Request::enter`] until it is dropped.
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
/// For what a request's handler creates and the process keeps: caches, lazily created statics,
/// pools.
///
/// # Panics
/// If `f` does, or if there is no memory for the entry, as a failed allocation does.
pub fn persistent<R>(f: impl FnOnce() -> R) -> R {
    let _inside = current_or_start().map(|thread| {
        let name = thread.enter_persistent(EntryKind::Persistent);
        Inside::new(thread, name.unwrap_or_else(|| handle_alloc_error(Layout::new::<Control>())))
    });
    f()
}

/// Checks whether this thread's innermost request is marked, or one above it, or was refused memory
/// at a limit; `Ok` outside requests. Cheap: long computations should call it now and then.
///
/// # Errors
/// If so: which limit, what was in use and what was asked for at that time.
pub fn check() -> Result<(), LimitExceeded> {
    match thread::current_control() {
        Some(control) => limit_exceeded(control).map_or(Ok(()), Err),
        None => Ok(()),
    }
}

/// Returns the request, open or closed, that the block at `payload` belongs to; for tests.
///
/// # Safety
/// `payload` is null or points to a live block of this allocator.
#[doc(hidden)]
pub unsafe fn owner_of(payload: *const u8) -> Option<RequestId> {
    let payload = payload.expose_provenance();
    if payload == NONE {
        return None;
    }
    // A block of a request that is being closed is as good as persistent.
    let owner = HEAP.find(payload).owner().filter(|owner| owner.is_open())?;
    owner.control().number_of_past(owner.serial.generation()).map(RequestId)
}
