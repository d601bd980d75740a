//! What is asked of the operating system, and the one place where its answers are judged: out of
//! memory is returned, everything else is a fault of ours and fatal.
//!
//! System calls: `mmap`, `munmap`, `madvise`, `mremap`, `getrandom`, and `clock_gettime` through the
//! vdso. `sync` adds `sched_yield`, `fatal` adds `write` and `abort`.

use crate::fatal;
use core::ptr::{null_mut, without_provenance_mut};

#[cfg(not(test))]
mod injected {
    #[inline(always)]
    pub(super) fn refuses() -> bool {
        false
    }
}

#[cfg(target_os = "linux")]
unsafe fn errno_place() -> *mut i32 {
    // SAFETY: always callable; the result is this thread's.
    unsafe { libc::__errno_location() }
}

#[cfg(target_os = "macos")]
unsafe fn errno_place() -> *mut i32 {
    // SAFETY: always callable; the result is this thread's.
    unsafe { libc::__error() }
}

fn errno() -> i32 {
    // SAFETY: the place belongs to this thread.
    unsafe { *errno_place() }
}

/// Runs `call` and leaves the thread's `errno` as it was: callers of `malloc` and of Rust's
/// allocator do not expect it to change.
fn keeping_errno<R>(call: impl FnOnce() -> R) -> R {
    // SAFETY: the place belongs to this thread and stays valid.
    let place = unsafe { errno_place() };
    // SAFETY: as above.
    let before = unsafe { *place };
    let result = call();
    // SAFETY: as above.
    unsafe { *place = before };
    result
}

/// Maps `bytes` of zeroed memory near `hint` (0: anywhere). `None` when the system has no more.
pub fn map(bytes: usize, hint: usize) -> Option<usize> {
    if injected::refuses() {
        return None;
    }
    keeping_errno(|| {
        // SAFETY: an anonymous private mapping at a hint replaces no other.
        let address = unsafe {
            libc::mmap(
                without_provenance_mut(hint),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if address != libc::MAP_FAILED {
            return Some(address.expose_provenance());
        }
        match errno() {
            libc::ENOMEM | libc::EAGAIN | libc::EINVAL => None,
            error => fatal::system_call("mmap", error),
        }
    })
}

/// Maps `bytes` of zeroed memory at a multiple of `align`, first trying `hint`.
pub fn map_aligned(bytes: usize, align: usize, hint: usize) -> Option<usize> {
    let first = map(bytes, hint)?;
    if first % align == 0 {
        return Some(first);
    }
    // SAFETY: just mapped, never handed out.
    unsafe { unmap(first, bytes) };
    let wide = bytes.checked_add(align)?;
    let start = map(wide, 0)?;
    let aligned = start.next_multiple_of(align);
    let (before, after) = (aligned - start, wide - bytes - (aligned - start));
    // SAFETY: both pieces lie in the mapping just made and outside what is returned.
    unsafe {
        if before > 0 {
            unmap(start, before);
        }
        if after > 0 {
            unmap(aligned + bytes, after);
        }
    }
    Some(aligned)
}

/// Gives a mapping back. When the kernel has no room to split one (`ENOMEM`), the pages are given
/// back and the addresses stay reserved.
///
/// # Safety
/// `bytes` from `address` are whole pages mapped here, and nothing refers to them any more.
pub unsafe fn unmap(address: usize, bytes: usize) {
    keeping_errno(|| {
        // SAFETY: the caller's contract.
        let result = unsafe { libc::munmap(pointer(address), bytes) };
        if result != 0 {
            match errno() {
                // SAFETY: the mapping is still there.
                libc::ENOMEM => unsafe { purge(address, bytes) },
                error => fatal::system_call("munmap", error),
            }
        }
    });
}

/// Gives the memory of pages back and keeps the addresses: the pages read as zero afterwards.
///
/// # Safety
/// `bytes` from `address` are whole pages mapped here whose contents nobody needs.
pub unsafe fn purge(address: usize, bytes: usize) {
    keeping_errno(|| {
        // SAFETY: the caller's contract.
        let result = unsafe { libc::madvise(pointer(address), bytes, libc::MADV_DONTNEED) };
        if result != 0 {
            match errno() {
                // Locked pages cannot be given back; they must still read as zero.
                // SAFETY: the caller's contract.
                libc::EINVAL | libc::EAGAIN => unsafe { pointer(address).write_bytes(0, bytes) },
                error => fatal::system_call("madvise", error),
            }
        }
    });
}

/// Changes the length of a mapping where it stands. `false`: it could not and is as it was.
///
/// # Safety
/// `old_bytes` from `address` are one mapping made here.
#[cfg(target_os = "linux")]
pub unsafe fn resize(address: usize, old_bytes: usize, new_bytes: usize) -> bool {
    if new_bytes > old_bytes && injected::refuses() {
        return false;
    }
    keeping_errno(|| {
        // SAFETY: the caller's contract; without MREMAP_MAYMOVE the mapping stays in place.
        unsafe { libc::mremap(pointer(address), old_bytes, new_bytes, 0) != libc::MAP_FAILED }
    })
}

/// Changes the length of a mapping where it stands. This system cannot.
///
/// # Safety
/// `old_bytes` from `address` are one mapping made here.
#[cfg(not(target_os = "linux"))]
pub unsafe fn resize(_address: usize, _old_bytes: usize, _new_bytes: usize) -> bool {
    false
}

/// Moves a mapping's pages onto the start of another mapping without copying them.
/// `false`: nothing has changed.
///
/// # Safety
/// `bytes` from each address are mapped here, and nothing refers to those at `to`.
#[cfg(target_os = "linux")]
pub unsafe fn move_pages(from: usize, bytes: usize, to: usize, to_bytes: usize) -> bool {
    keeping_errno(|| {
        // SAFETY: the caller's contract.
        let moved = unsafe {
            libc::mremap(
                pointer(from),
                bytes,
                to_bytes,
                libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED,
                pointer(to),
            )
        };
        moved != libc::MAP_FAILED
    })
}

/// Moves a mapping's pages onto another. This system cannot.
///
/// # Safety
/// `bytes` from each address are mapped here, and nothing refers to those at `to`.
#[cfg(not(target_os = "linux"))]
pub unsafe fn move_pages(_from: usize, _bytes: usize, _to: usize, _to_bytes: usize) -> bool {
    false
}

/// Milliseconds of a monotonic clock that is cheap to read and a few milliseconds coarse.
pub fn coarse_milliseconds() -> u64 {
    #[cfg(target_os = "linux")]
    const CLOCK: libc::clockid_t = libc::CLOCK_MONOTONIC_COARSE;
    #[cfg(not(target_os = "linux"))]
    const CLOCK: libc::clockid_t = libc::CLOCK_MONOTONIC;
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is writable and the clock exists.
    unsafe { libc::clock_gettime(CLOCK, &raw mut time) };
    (time.tv_sec as u64) * 1_000 + (time.tv_nsec as u64) / 1_000_000
}

/// A number an attacker or a bug is unlikely to guess.
pub fn random() -> u64 {
    let mut value = [0u8; 8];
    #[cfg(target_os = "linux")]
    keeping_errno(|| {
        // SAFETY: the buffer is eight writable bytes. A refusal leaves zeros, and the address and
        // the clock below still differ from run to run. The C library's function is one at which a
        // thread can be cancelled.
        unsafe {
            libc::syscall(libc::SYS_getrandom, value.as_mut_ptr(), value.len(), libc::GRND_NONBLOCK)
        }
    });
    #[cfg(target_os = "macos")]
    // SAFETY: the buffer is eight writable bytes.
    unsafe {
        libc::arc4random_buf(value.as_mut_ptr().cast(), value.len());
    }
    u64::from_ne_bytes(value)
        ^ (value.as_ptr().addr() as u64).rotate_left(20)
        ^ coarse_milliseconds()
}

fn pointer(address: usize) -> *mut libc::c_void {
    if address == 0 { null_mut() } else { core::ptr::with_exposed_provenance_mut(address) }
}

#[cfg(test)]
pub mod injected {
    //! Refusals injected by tests: every mapping call of a thread counts down to one that fails.
    use core::cell::Cell;
    std::thread_local! {
        static CALLS_UNTIL_REFUSED: Cell<u64> = const { Cell::new(u64::MAX) };
    }
    /// After `calls` more successes the next mapping calls of this thread are refused, until set anew.
    pub fn refuse_after(calls: u64) {
        CALLS_UNTIL_REFUSED.set(calls);
    }
    pub(super) fn refuses() -> bool {
        let left = CALLS_UNTIL_REFUSED.get();
        if left == u64::MAX {
            return false;
        }
        CALLS_UNTIL_REFUSED.set(left.saturating_sub(1));
        left == 0
    }
}
