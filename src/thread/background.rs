//! A thread of the allocator's own, if the program asks for one: what other threads do for idle
//! memory on their slow paths it does by the clock, so that a process that does nothing gives
//! memory back, too. It allocates nothing, runs nothing of the user's and takes no signal.

use super::life::current_or_start;
use super::pin;
use super::{BACKGROUND_RUNS, HEAP};
use crate::base::os;
use crate::base::sync::Ordering;
use crate::base::system_call::sleep;
use core::ffi::c_void;
use core::mem::MaybeUninit;
use core::ptr::null_mut;

/// Between two ticks while there is idle memory.
const BUSY_NANOSECONDS: u32 = 100_000_000;
/// Between two looks for idle memory while there was none.
const IDLE_NANOSECONDS: u32 = 999_000_000;
/// Idle memory below this is not worth waking up for.
const RESERVE_BYTES: usize = 1024 * 1024;
/// Bytes of its stack; the least that the system allows, if that is more.
const STACK_BYTES: usize = 64 * 1024;

/// Starts the thread, unless it runs already. The error is the system's.
pub fn start() -> Result<(), i32> {
    // Handles forks from here on.
    current_or_start();
    if !pin::is_pinned() {
        return Err(libc::ENOTSUP);
    }
    if BACKGROUND_RUNS.swap(true, Ordering::Relaxed) {
        return Ok(());
    }
    let result = create();
    if result.is_err() {
        BACKGROUND_RUNS.store(false, Ordering::Relaxed);
    }
    result
}

fn create() -> Result<(), i32> {
    let mut attributes = MaybeUninit::<libc::pthread_attr_t>::uninit();
    let (mut all, mut before) = (MaybeUninit::uninit(), MaybeUninit::uninit());
    let mut thread = MaybeUninit::uninit();
    // SAFETY: each is initialised before it is read, the mask is put back, and `run` is callable
    // for the life of the process.
    let error = unsafe {
        let error = libc::pthread_attr_init(attributes.as_mut_ptr());
        if error != 0 {
            return Err(error);
        }
        libc::pthread_attr_setdetachstate(attributes.as_mut_ptr(), libc::PTHREAD_CREATE_DETACHED);
        libc::pthread_attr_setstacksize(
            attributes.as_mut_ptr(),
            STACK_BYTES.max(libc::PTHREAD_STACK_MIN),
        );
        // A thread begins with the mask of the one that creates it.
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr());
        let error = libc::pthread_create(thread.as_mut_ptr(), attributes.as_ptr(), run, null_mut());
        libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), null_mut());
        libc::pthread_attr_destroy(attributes.as_mut_ptr());
        error
    };
    if error == 0 { Ok(()) } else { Err(error) }
}

extern "C" fn run(_: *mut c_void) -> *mut c_void {
    name_thread();
    loop {
        let is_busy = HEAP.has_idle(RESERVE_BYTES);
        sleep(if is_busy { BUSY_NANOSECONDS } else { IDLE_NANOSECONDS });
        HEAP.tick(os::coarse_milliseconds());
    }
}

#[cfg(target_os = "linux")]
fn name_thread() {
    // SAFETY: names this thread.
    unsafe { libc::prctl(libc::PR_SET_NAME, c"rqmalloc".as_ptr(), 0, 0, 0) };
}

#[cfg(not(target_os = "linux"))]
fn name_thread() {
    // SAFETY: names this thread.
    unsafe { libc::pthread_setname_np(c"rqmalloc".as_ptr()) };
}
