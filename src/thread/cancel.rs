//! Cancellation of threads (`pthread_cancel`), kept away from Rust frames: it unwinds the stack
//! from wherever the C library can be cancelled, and a Rust function ends the process when it is
//! passed.

use core::ffi::c_int;
use core::ptr::null_mut;

/// `PTHREAD_CANCEL_DISABLE`.
const DISABLED: c_int = if cfg!(target_os = "macos") { 0 } else { 1 };

unsafe extern "C" {
    fn pthread_setcancelstate(state: c_int, before: *mut c_int) -> c_int;
}

/// Runs `f` while the thread cannot be cancelled; what comes meanwhile waits.
pub fn without_cancellation<R>(f: impl FnOnce() -> R) -> R {
    let mut before = DISABLED;
    // SAFETY: the place can be written.
    unsafe { pthread_setcancelstate(DISABLED, &raw mut before) };
    let result = f();
    // SAFETY: a state that the thread had.
    unsafe { pthread_setcancelstate(before, null_mut()) };
    result
}
