//! The words that every thread has: its active bins, its `Thread`, and the request it began last
//! after it had exited.
//!
//! Constant-initialised and without destructors, so that they can be reached from a thread's first
//! instruction to its last.

use super::sentinels::UNUSED;
use crate::blocks::bins::Bins;
use crate::request::control::Control;
use core::cell::Cell;
use core::ptr::null;

std::thread_local! {
    static ACTIVE: Cell<*const Bins> = const { Cell::new(&raw const UNUSED) };
    static THREAD: Cell<*const ()> = const { Cell::new(null()) };
    static LATE: Cell<*const Control> = const { Cell::new(null()) };
}

/// Returns the bins that are active in this thread (T1).
#[inline(always)]
pub fn active() -> *const Bins {
    ACTIVE.get()
}

/// Makes bins active in this thread.
#[inline]
pub fn set_active(bins: *const Bins) {
    ACTIVE.set(bins);
}

/// Returns this thread's `Thread`, untyped because that type is above this file; null if the heap
/// does not know the thread.
#[inline]
pub fn thread() -> *const () {
    THREAD.get()
}

/// Sets what `thread` returns: makes this thread known, or unknown.
pub fn set_thread(thread: *const ()) {
    THREAD.set(thread);
}

/// Returns the request begun last after the thread had exited, and not ended; null: none.
pub fn late() -> *const Control {
    LATE.get()
}

/// Sets what `late` returns.
pub fn set_late(control: *const Control) {
    LATE.set(control);
}
