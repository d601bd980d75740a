//! Whether the program's `malloc` is that of the preloaded library.

use crate::base::sync::{AtomicU8, Ordering};
use crate::c::family;
use core::ffi::{CStr, c_void};

const UNKNOWN: u8 = 0;
const OURS: u8 = 1;
const THEIRS: u8 = 2;
/// A thread is finding out.
const ASKED: u8 = 3;

/// Whether the program's `malloc` is the one here, or in the end hands out blocks of this
/// allocator.
static IN_CHARGE: AtomicU8 = AtomicU8::new(UNKNOWN);

#[inline(always)]
pub fn is_in_charge() -> bool {
    match IN_CHARGE.load(Ordering::Relaxed) {
        OURS => true,
        THEIRS => false,
        _ => find_who_is_in_charge(),
    }
}

/// Returns whether a block that comes back is ours: it may not be where a function here passes
/// calls on.
#[inline(always)]
pub fn is_from_here(block: *mut c_void) -> bool {
    IN_CHARGE.load(Ordering::Relaxed) != THEIRS || block.is_null() || family::is_ours(block.cast())
}

/// Asks whichever library defines `malloc` for a block. (The function's address does not tell: if a
/// program takes it, it is an address in the program.) Meanwhile the calls of that `malloc`, and of
/// other threads, are served from here.
#[cold]
fn find_who_is_in_charge() -> bool {
    let asked = IN_CHARGE.compare_exchange(UNKNOWN, ASKED, Ordering::Relaxed, Ordering::Relaxed);
    if let Err(answer) = asked {
        return answer != THEIRS;
    }
    // SAFETY: functions of these names have these types.
    let is_ours = unsafe {
        let find = |name: &CStr| libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr());
        let (malloc, free) = (find(c"malloc"), find(c"free"));
        if malloc.is_null() || free.is_null() {
            true
        } else {
            type Malloc = extern "C" fn(usize) -> *mut c_void;
            let malloc = core::mem::transmute::<*mut c_void, Malloc>(malloc);
            let free = core::mem::transmute::<*mut c_void, extern "C" fn(*mut c_void)>(free);
            let probe = malloc(1);
            let is_ours = probe.is_null() || family::is_ours(probe.cast());
            free(probe);
            is_ours
        }
    };
    IN_CHARGE.store(if is_ours { OURS } else { THEIRS }, Ordering::Relaxed);
    is_ours
}

/// Calls the function of this name that comes after ours.
macro_rules! pass_on {
    ($name:literal, fn($($kind:ty),*) -> $result:ty, $($value:expr),*) => {{
        // SAFETY: the function with this name in the next library has this type.
        unsafe {
            let next = libc::dlsym(libc::RTLD_NEXT, concat!($name, "\0").as_ptr().cast());
            if next.is_null() {
                fatal::system_call("dlsym", libc::ENOSYS);
            }
            core::mem::transmute::<*mut c_void, unsafe extern "C" fn($($kind),*) -> $result>(next)(
                $($value),*
            )
        }
    }};
}

pub(super) use pass_on;
