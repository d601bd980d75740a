//! Handles: how C takes a request to other threads.

use crate::api::bailout::Bailout;
use crate::base::fatal;
use crate::c::bailouts::{fail, needed_thread};
use crate::c::tries::stack_here;
use crate::lockfree::state::Phase;
use crate::request::control::Control;
use crate::thread::finish::drop_handle;
use crate::thread::open::add_handle;
use crate::thread::{self, EntryKind};
use core::ptr::{from_ref, null};

/// Returns a handle of this thread's request; null without one.
#[unsafe(no_mangle)]
pub extern "C" fn rq_request_ref() -> *const Control {
    let Some(control) = thread::current_control() else { return null() };
    add_handle(control);
    from_ref(control)
}

/// Gives a handle back; with the last one, the request is closed.
///
/// # Safety
/// `request` is null or a handle that nobody uses afterwards.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rq_request_unref(request: *const Control) {
    // SAFETY: the caller's contract.
    if let Some(control) = unsafe { request.as_ref() } {
        expect_handle(control, "rq_request_unref");
        drop_handle(control);
    }
}

/// Ends the process if a handle is of a request that is over, unless another one has its place.
fn expect_handle(control: &Control, call: &str) {
    let seen = control.stub().state.look();
    if seen.phase() != Phase::Open || seen.handles() == 0 {
        fatal::handle_given_back(call);
    }
}

/// Enters a request.
///
/// # Safety
/// `request` is a handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rq_enter(request: *const Control) {
    // SAFETY: the caller's contract.
    let Some(control) = (unsafe { request.as_ref() }) else { fatal::no_request("rq_enter") };
    expect_handle(control, "rq_enter");
    let thread = needed_thread("rq_enter");
    add_handle(control);
    if thread.enter(control, EntryKind::Reference).is_none() {
        drop_handle(control);
        fail(Bailout::OutOfMemory(size_of::<Control>()), stack_here());
    }
}

/// Undoes this thread's last `rq_enter`.
#[unsafe(no_mangle)]
pub extern "C" fn rq_leave() {
    let thread = needed_thread("rq_leave");
    match thread.innermost(EntryKind::Reference) {
        Some(name) => thread.leave(name),
        None => fatal::no_request("rq_leave"),
    }
}
