//! `local` in the initial-exec model of thread-locals.
//!
//! In a shared library, every access to one of the language's own thread-locals calls
//! `__tls_get_addr`, which may itself allocate. These words lie at an offset from the thread
//! pointer that the dynamic loader fixes once: when the library is loaded with the program or,
//! because they are small, later from the room that the loader keeps. In a program's own code the
//! linker turns the access into one without a load.

use super::sentinels::UNUSED;
use crate::blocks::bins::Bins;
use crate::request::control::Control;
use core::arch::{asm, global_asm};

global_asm!(
    ".pushsection .tdata.rqmalloc,\"awT\",@progbits",
    ".balign 8",
    ".globl rqmalloc_local_active",
    ".hidden rqmalloc_local_active",
    ".type rqmalloc_local_active, @object",
    ".size rqmalloc_local_active, 8",
    "rqmalloc_local_active:",
    ".quad {unused}",
    ".globl rqmalloc_local_thread",
    ".hidden rqmalloc_local_thread",
    ".type rqmalloc_local_thread, @object",
    ".size rqmalloc_local_thread, 8",
    "rqmalloc_local_thread:",
    ".quad 0",
    ".globl rqmalloc_local_late",
    ".hidden rqmalloc_local_late",
    ".type rqmalloc_local_late, @object",
    ".size rqmalloc_local_late, 8",
    "rqmalloc_local_late:",
    ".quad 0",
    ".popsection",
    unused = sym UNUSED,
);

macro_rules! read {
    ($symbol:literal) => {{
        let value;
        // SAFETY: reads a word of this thread that is always there.
        unsafe {
            asm!(
                concat!("mov {value}, qword ptr [rip + ", $symbol, "@GOTTPOFF]"),
                "mov {value}, qword ptr fs:[{value}]",
                value = out(reg) value,
                options(pure, readonly, nostack, preserves_flags),
            );
        }
        value
    }};
}

macro_rules! write {
    ($symbol:literal, $value:expr) => {
        // SAFETY: writes a word of this thread that only this module knows.
        unsafe {
            asm!(
                concat!("mov {place}, qword ptr [rip + ", $symbol, "@GOTTPOFF]"),
                "mov qword ptr fs:[{place}], {value}",
                place = out(reg) _,
                value = in(reg) $value,
                options(nostack, preserves_flags),
            );
        }
    };
}

/// Returns the bins that are active in this thread (T1).
#[inline(always)]
pub fn active() -> *const Bins {
    read!("rqmalloc_local_active")
}

/// Makes bins active in this thread.
#[inline]
pub fn set_active(bins: *const Bins) {
    write!("rqmalloc_local_active", bins);
}

/// Returns this thread's `Thread`, untyped because that type is above this file; null if the heap
/// does not know the thread.
#[inline]
pub fn thread() -> *const () {
    read!("rqmalloc_local_thread")
}

/// Sets what `thread` returns: makes this thread known, or unknown.
pub fn set_thread(thread: *const ()) {
    write!("rqmalloc_local_thread", thread);
}

/// Returns the request begun last after the thread had exited, and not ended; null: none.
pub fn late() -> *const Control {
    read!("rqmalloc_local_late")
}

/// Sets what `late` returns.
pub fn set_late(control: *const Control) {
    write!("rqmalloc_local_late", control);
}
