//! Keeps thread cancellation (`pthread_cancel`) away from Rust frames: it unwinds the stack from
//! any cancellation point of the C library, and a Rust function that it unwinds through ends the
//! process.

use core::ffi::c_int;
use core::ptr::null_mut;

/// `PTHREAD_CANCEL_DISABLE`.
const DISABLED: c_int = if cfg!(target_os = "macos") { 0 } else { 1 };

unsafe extern "C" {
    fn pthread_setcancelstate(state: c_int, before: *mut c_int) -> c_int;
}

/// Runs `f` with cancellation disabled; a cancellation that arrives meanwhile waits.
pub fn without_cancellation<R>(f: impl FnOnce() -> R) -> R {
    let mut before = DISABLED;
    // SAFETY: `before` is writable.
    unsafe { pthread_setcancelstate(DISABLED, &raw mut before) };
    let result = f();
    // SAFETY: the state that the thread had before.
    unsafe { pthread_setcancelstate(before, null_mut()) };
    result
}
