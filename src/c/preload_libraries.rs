//! The preloaded library's `dlopen`, for libraries that would keep to their own symbols.

use crate::base::environment;
use crate::base::fatal;
use crate::base::sync::{AtomicPtr, AtomicU32, Ordering};
use core::ffi::{c_char, c_int, c_void};
use core::ptr::null_mut;

type DlOpen = unsafe extern "C" fn(*const c_char, c_int) -> *mut c_void;

/// Flags of `dlopen` that are not passed on.
static DROPPED_FLAGS: AtomicU32 = AtomicU32::new(libc::RTLD_DEEPBIND as u32);

/// A `DlOpen`: the C library's, once it was looked up.
static NEXT_DLOPEN: AtomicPtr<c_void> = AtomicPtr::new(null_mut());

/// Looks up the next `dlopen`, and whether the environment asks to keep the flag.
#[cold]
#[inline(never)]
pub fn find_dlopen() -> *mut c_void {
    // SAFETY: a C string.
    let next = unsafe { libc::dlsym(libc::RTLD_NEXT, c"dlopen".as_ptr()) };
    if next.is_null() {
        fatal::system_call("dlsym", libc::ENOSYS);
    }
    if environment::flag(c"RQMALLOC_PRELOAD_DEEPBIND") == Some(true) {
        DROPPED_FLAGS.store(0, Ordering::Relaxed);
    }
    NEXT_DLOPEN.store(next, Ordering::Relaxed);
    next
}

/// `dlopen` without `RTLD_DEEPBIND`. With that flag a library prefers the C library's `malloc` to
/// the program's: blocks change hands between two allocators and the program crashes, as PHP does
/// with its own extensions under other preloaded allocators. With `RQMALLOC_PRELOAD_DEEPBIND=1` in
/// the environment the flag is kept, for programs whose libraries must prefer their own symbols and
/// keep their blocks to themselves.
///
/// It ends in a jump, because the loader searches for libraries by the caller of `dlopen`.
///
/// # Safety
/// As for the C function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dlopen(name: *const c_char, flags: c_int) -> *mut c_void {
    let mut next = NEXT_DLOPEN.load(Ordering::Relaxed);
    if next.is_null() {
        next = find_dlopen();
    }
    // SAFETY: the next function of this name has this type; the caller's contract.
    unsafe {
        let next = core::mem::transmute::<*mut c_void, DlOpen>(next);
        next(name, flags & !(DROPPED_FLAGS.load(Ordering::Relaxed) as c_int))
    }
}
