//! The hooks: `begin_request` and its two ends, for servers and interpreters whose requests begin
//! and end on one thread.

use crate::blocks::request_id::RequestId;
use crate::request::control::{Control, Opening};
use crate::request::finish::Survivors;
use crate::request::report::Report;
use crate::thread::finish::{self as by_handle, drop_handle, drop_only_handle};
use crate::thread::open::open;
use crate::thread::{self, EntryKind, life};
use std::alloc::{Layout, handle_alloc_error};

/// Begins a request: from here to its end, what this thread allocates belongs to it. Requests nest:
/// the blocks of an inner one never belong to the outer.
///
/// A panic that skips the end leaves the request open; [`Request::run`](crate::Request::run) does
/// not have that problem.
///
/// On a thread that has given back everything the allocator had for it and only runs its last
/// thread-local destructors, what it allocates is persistent, as with
/// [`Request::run`](crate::Request::run).
///
/// # Panics
/// If there is no memory for its control block, as a failed allocation does.
pub fn begin_request() -> RequestId {
    begin(&Opening::default()).unwrap_or_else(|| handle_alloc_error(Layout::new::<Control>()))
}

/// Begins a request opened with these settings. `None`: out of memory.
pub(crate) fn begin(opening: &Opening) -> Option<RequestId> {
    let control = open(opening)?;
    let entered = match thread::current() {
        Some(thread) => thread.enter(control, EntryKind::Hook).is_some(),
        None => {
            thread::has_exited() && {
                life::begin_late(control);
                true
            }
        }
    };
    if !entered {
        drop_handle(control);
    }
    entered.then(|| control.request_id())
}

/// Ends this thread's innermost request begun by `begin_request`: frees all of its blocks, in time
/// that does not depend on how many there are. What [`persist`](crate::persist) was called on is
/// not the request's any more.
///
/// If other handles of the request are alive or a thread is still inside, the request is only left,
/// nothing is freed, and [`Report::still_open`] says so.
///
/// # Safety
/// Every use and every free of this request's blocks, by any thread, happens before this call;
/// nothing that is used or dropped later points to one. `std::thread::scope` without an explicit
/// `join`, and channels, do *not* guarantee that for memory that the other thread frees: use
/// [`close_request`] there. An operation that the kernel has not completed (io_uring, aio) is a user
/// of its buffers, also after its future was dropped.
///
/// # Panics
/// If no request begun by `begin_request` is open on this thread.
pub unsafe fn end_request() -> Report {
    let Some(control) = leave() else { panic!("end_request: no request is open on this thread") };
    finish(control, Survivors::None)
}

/// Closes this thread's innermost request begun by `begin_request`, the safe way to end it: blocks
/// that are still live stay valid until they are freed, by any thread, and everything else is given
/// back at once.
///
/// If other handles of the request are alive or a thread is still inside, the request is only left,
/// and [`Report::still_open`] says so.
///
/// # Panics
/// If no request begun by `begin_request` is open on this thread.
pub fn close_request() -> Report {
    let Some(control) = leave() else {
        panic!("close_request: no request is open on this thread");
    };
    finish(control, Survivors::Live)
}

/// Leaves this thread's innermost request begun by `begin`; its handle is the caller's. `None`:
/// there is no such request.
#[inline]
pub(crate) fn leave() -> Option<&'static Control> {
    match thread::current() {
        Some(thread) => thread.leave_hook(),
        None => life::leave_late(),
    }
}

/// Finishes a request that this thread has left, if no other handle is alive.
#[inline]
pub(crate) fn finish(control: &'static Control, survivors: Survivors) -> Report {
    if drop_only_handle(control) {
        return by_handle::finish(control, survivors);
    }
    let report = Report::of_open(control);
    drop_handle(control);
    report
}
