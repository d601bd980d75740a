//! `Request`: a handle of a request, and the guard of being inside one.

use crate::api::finish::finish;
use crate::api::limit::{LimitBelowUse, LimitExceeded};
use crate::api::report::{Report, Usage};
use crate::base::request_id::RequestId;
use crate::base::sync::Ordering;
use crate::lockfree::header::NONE;
use crate::request::control::Control;
use crate::request::finish::Survivors;
use crate::request::leaks::{self, Leaks};
use crate::thread::callbacks::add_callback;
use crate::thread::finish::{drop_handle, drop_only_handle};
use crate::thread::guard::Inside;
use crate::thread::life::current_or_start;
use crate::thread::open::add_handle;
use crate::thread::{self, EntryKind, HEAP};
use core::fmt;
use core::marker::PhantomData;
use core::mem::ManuallyDrop;
use core::panic::{RefUnwindSafe, UnwindSafe};
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
    pub(super) control: &'static Control,
}

// A panic leaves a request as whole as it was: what a closure does in it is the closure's own.
impl UnwindSafe for Request {}
impl RefUnwindSafe for Request {}

static_assertions::assert_impl_all!(Request: Send, Sync, UnwindSafe, RefUnwindSafe);
static_assertions::assert_not_impl_any!(Entered: Send, Sync);

impl Request {
    /// The innermost request this thread is inside, also within
    /// [`persistent`](crate::persistent()); `None` outside requests.
    pub fn current() -> Option<Self> {
        let control = thread::current_control()?;
        add_handle(control);
        Some(Self { control })
    }

    /// Its number.
    pub fn id(&self) -> RequestId {
        RequestId(self.control.serial().0)
    }

    /// Enters the request: until the guard is dropped, what this thread allocates belongs to it.
    ///
    /// Guards may be dropped in any order, and forgetting one only keeps the request open until the
    /// thread exits: being inside is recorded by the thread, not by the guard.
    ///
    /// # Panics
    /// As a failed allocation does when there is no memory for the entry.
    pub fn enter(&self) -> Entered {
        add_handle(self.control);
        let thread = current_or_start();
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
            live_blocks: figures.live_blocks as u64,
            live_bytes: figures.live_bytes,
            footprint_bytes: figures.footprint,
            peak_bytes: figures.peak,
            limit_bytes: self.control.limit(),
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
        let in_use_bytes = self.control.footprint_bytes();
        Err(LimitBelowUse { limit_bytes: limit, in_use_bytes })
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
    /// [`RequestBuilder::on_end`](crate::RequestBuilder::on_end).
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
        self.finish_if_only(Survivors::None)
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
        add_handle(self.control);
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
    let _inside = current_or_start().map(|thread| {
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
    HEAP.find(payload).owner().map(|owner| RequestId(owner.serial.0))
}
