//! What `local` is, by the initial-exec model of thread-locals.
//!
//! Compiled into a shared library, the language's own thread-locals are reached through a call of
//! `__tls_get_addr` at every access, which may itself allocate. These lie at a distance from the thread
//! pointer that the dynamic loader fixes once, when the library is loaded with the program or, small as
//! they are, later from the room that it keeps. In a program's own code the linker turns the access into
//! one without a load.

use super::sentinels::UNUSED;
use crate::blocks::bin::Bins;
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
        // SAFETY: reads a word of this thread's that is always there.
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
        // SAFETY: writes a word of this thread's that only this module knows.
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

/// The bins that are active in this thread.
#[inline(always)]
pub fn active() -> *const Bins {
    read!("rqmalloc_local_active")
}

/// Makes bins active in this thread.
#[inline]
pub fn set_active(bins: *const Bins) {
    write!("rqmalloc_local_active", bins);
}

/// This thread's `Thread`, a name from above; null if the heap does not know it.
#[inline]
pub fn thread() -> *const () {
    read!("rqmalloc_local_thread")
}

/// Makes this thread known, or unknown.
pub fn set_thread(thread: *const ()) {
    write!("rqmalloc_local_thread", thread);
}

/// The request that was begun last after the thread had exited, and not ended; null: none.
pub fn late() -> *const Control {
    read!("rqmalloc_local_late")
}

/// Sets what `late` says.
pub fn set_late(control: *const Control) {
    write!("rqmalloc_local_late", control);
}
