//! The words that every thread has: what is active in it, what the heap knows of it, and what it began
//! after it had exited.
//!
//! Constant-initialised and without destructors, so that they can be reached from the first instruction
//! of a thread to its last.

use super::sentinels::UNUSED;
use crate::blocks::bin::Bins;
use crate::request::control::Control;
use core::cell::Cell;
use core::ptr::null;

std::thread_local! {
    static ACTIVE: Cell<*const Bins> = const { Cell::new(&raw const UNUSED) };
    static THREAD: Cell<*const ()> = const { Cell::new(null()) };
    static LATE: Cell<*const Control> = const { Cell::new(null()) };
}

/// The bins that are active in this thread.
#[inline(always)]
pub fn active() -> *const Bins {
    ACTIVE.get()
}

/// Makes bins active in this thread.
#[inline]
pub fn set_active(bins: *const Bins) {
    ACTIVE.set(bins);
}

/// This thread's `Thread`, a name from above; null if the heap does not know it.
#[inline]
pub fn thread() -> *const () {
    THREAD.get()
}

/// Makes this thread known, or unknown.
pub fn set_thread(thread: *const ()) {
    THREAD.set(thread);
}

/// The request that was begun last after the thread had exited, and not ended; null: none.
pub fn late() -> *const Control {
    LATE.get()
}

/// Sets what `late` says.
pub fn set_late(control: *const Control) {
    LATE.set(control);
}
