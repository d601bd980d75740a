//! The two words that every thread has: what is active in it, and what the heap knows of it.
//!
//! Constant-initialised and without destructors, so that they can be reached from the first instruction
//! of a thread to its last.

use super::{Thread, UNUSED};
use crate::bin::Bins;
use core::cell::Cell;
use core::ptr::null;

std::thread_local! {
    static ACTIVE: Cell<*const Bins> = const { Cell::new(&raw const UNUSED) };
    static THREAD: Cell<*const Thread> = const { Cell::new(null()) };
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

/// This thread; null if the heap does not know it.
#[inline]
pub fn thread() -> *const Thread {
    THREAD.get()
}

/// Makes this thread known, or unknown.
pub fn set_thread(thread: *const Thread) {
    THREAD.set(thread);
}
