//! What is asked of the operating system, and the one place where its answers are judged: running
//! out of memory is reported to the caller, anything else is a bug of ours and fatal.
//!
//! System calls: `mmap`, `munmap`, `madvise`, `mremap`, `process_vm_readv`, `prctl(PR_SET_VMA)`, and `clock_gettime`
//! through the vdso. `system_call` adds those made without the C library: `nanosleep`, `write` and
//! `getrandom`.
//!
//! The system's pages are 4, 16 or 64 KiB long. Lengths of mappings are multiples of the largest,
//! so that they end on a page boundary everywhere; only `purge` has to ask.

use crate::base::fatal;
use crate::base::sync::{AtomicUsize, Ordering};
use crate::base::system_call::{errno, keeping_errno, random_bytes};
use core::ptr::{null_mut, without_provenance_mut};

/// The smallest page of any system this runs on.
pub const MIN_PAGE_BYTES: usize = 4 * 1024;
/// The largest page of any system this runs on; lengths of mappings are multiples of it.
pub const MAX_PAGE_BYTES: usize = 64 * 1024;

#[cfg(not(test))]
mod injected {
    #[inline(always)]
    pub(super) fn refuses() -> bool {
        false
    }
}

/// Maps `bytes` of zeroed memory near `hint` (0: anywhere). `None`: the system has no more.
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
            name_mapping(address, bytes);
            return Some(address.expose_provenance());
        }
        match errno() {
            libc::ENOMEM | libc::EAGAIN | libc::EINVAL => None,
            error => fatal::system_call("mmap", error),
        }
    })
}

/// Returns whether the system would map `bytes` more.
pub fn could_map(bytes: usize) -> bool {
    if bytes == 0 {
        return true;
    }
    match map(bytes, 0) {
        Some(address) => {
            // SAFETY: just mapped, never handed out.
            unsafe { unmap(address, bytes) };
            true
        }
        None => false,
    }
}

/// Returns whether addresses that are never touched cost this process nothing: it would get a
/// great many without memory. Where they are limited or count as memory, or where memory is locked
/// as it is mapped, it would not.
#[cfg(target_os = "linux")]
pub fn has_plenty_of_addresses() -> bool {
    const MANY_BYTES: usize = 1 << 40;
    if injected::refuses() {
        return false;
    }
    keeping_errno(|| {
        // Shared, so that it counts as memory where all does, and inaccessible, so that it never is
        // any, even if it is locked.
        // SAFETY: an anonymous mapping without a hint replaces no other.
        let address = unsafe {
            libc::mmap(
                null_mut(),
                MANY_BYTES,
                libc::PROT_NONE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return false;
        }
        // SAFETY: mapped above; nothing is there. Locked pages cannot be given back.
        let is_unlocked =
            unsafe { libc::madvise(address, MAX_PAGE_BYTES, libc::MADV_DONTNEED) == 0 };
        // SAFETY: mapped above, never handed out.
        unsafe { libc::munmap(address, MANY_BYTES) };
        is_unlocked
    })
}

/// Returns whether addresses that are never touched cost nothing; nobody knows on this system.
#[cfg(not(target_os = "linux"))]
pub fn has_plenty_of_addresses() -> bool {
    false
}

/// Names a mapping in `/proc/self/maps`, if the kernel can: since Linux 5.17, if configured to.
#[cfg(target_os = "linux")]
fn name_mapping(address: *mut libc::c_void, bytes: usize) {
    const IS_REFUSED: usize = 1;
    /// Whether the kernel has refused once; it always will then.
    static REFUSAL: AtomicUsize = AtomicUsize::new(0);
    if REFUSAL.load(Ordering::Relaxed) == IS_REFUSED {
        return;
    }
    // SAFETY: gives a name to a mapping made here; nothing else changes.
    let result = unsafe {
        libc::prctl(
            libc::PR_SET_VMA,
            libc::PR_SET_VMA_ANON_NAME,
            address,
            bytes,
            c"rqmalloc".as_ptr(),
        )
    };
    if result != 0 {
        REFUSAL.store(IS_REFUSED, Ordering::Relaxed);
    }
}

/// Names a mapping; this system cannot.
#[cfg(not(target_os = "linux"))]
fn name_mapping(_address: *mut libc::c_void, _bytes: usize) {}

/// Maps `bytes` of zeroed memory at a multiple of `align`, first trying `hint`.
pub fn map_aligned(bytes: usize, align: usize, hint: usize) -> Option<usize> {
    let first = map(bytes, hint)?;
    if first % align == 0 {
        return Some(first);
    }
    // SAFETY: just mapped, never handed out.
    unsafe { unmap(first, bytes) };
    // Where there is room, there is mostly more of it below.
    let second = map(bytes, first - first % align)?;
    if second % align == 0 {
        return Some(second);
    }
    // SAFETY: just mapped, never handed out.
    unsafe { unmap(second, bytes) };
    let wide = bytes.checked_add(align)?;
    let start = map(wide, 0)?;
    let aligned = start.next_multiple_of(align);
    let (before, after) = (aligned - start, wide - bytes - (aligned - start));
    // SAFETY: both pieces are in the mapping just made and outside the part that is returned.
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

/// Gives a mapping back. If the kernel cannot split one (`ENOMEM`), the pages are given back and
/// the addresses stay reserved.
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

/// Returns the address and length of the part of `bytes` from `address` that is whole pages of the
/// system.
pub fn whole_pages(address: usize, bytes: usize) -> (usize, usize) {
    let page = page_bytes();
    let start = address.next_multiple_of(page);
    let end = (address + bytes) / page * page;
    (start, end.saturating_sub(start))
}

/// Returns the length of a page of the system, which is asked for once.
pub fn page_bytes() -> usize {
    /// 0: not asked for yet.
    static PAGE_BYTES: AtomicUsize = AtomicUsize::new(0);
    match PAGE_BYTES.load(Ordering::Relaxed) {
        0 => {
            let bytes = ask_for_page_bytes();
            // What was answered once stays: another answer would be that of a refused mapping.
            let before =
                PAGE_BYTES.compare_exchange(0, bytes, Ordering::Relaxed, Ordering::Relaxed);
            before.map_or_else(|earlier| earlier, |_| bytes)
        }
        bytes => bytes,
    }
}

/// Asks the C library, and then the kernel whether it accepts that as a page: if pages are longer
/// than reported, purging one would purge its neighbours too.
#[cold]
fn ask_for_page_bytes() -> usize {
    // SAFETY: always callable.
    let said = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    let said = usize::try_from(said).unwrap_or(MAX_PAGE_BYTES);
    let Some(base) = map(2 * MAX_PAGE_BYTES, 0) else { return MAX_PAGE_BYTES };
    let lengths = core::iter::successors(Some(said), |bytes| Some(bytes * 2));
    // SAFETY: pages mapped above; the advice changes nothing about them.
    let is_a_page = |&bytes: &usize| unsafe {
        libc::madvise(pointer(base + bytes), bytes, libc::MADV_NORMAL) == 0
    };
    let found = keeping_errno(|| lengths.take_while(|&b| b < MAX_PAGE_BYTES).find(is_a_page));
    // SAFETY: mapped above, never handed out.
    unsafe { unmap(base, 2 * MAX_PAGE_BYTES) };
    found.unwrap_or(MAX_PAGE_BYTES)
}

/// Gives the memory of pages back and keeps the addresses: the pages read as zero afterwards.
///
/// # Safety
/// `bytes` from `address` are whole pages of the system, mapped here, whose contents are no longer
/// needed.
pub unsafe fn purge(address: usize, bytes: usize) {
    keeping_errno(|| {
        // SAFETY: the caller's contract.
        let result = unsafe { libc::madvise(pointer(address), bytes, libc::MADV_DONTNEED) };
        if result != 0 {
            match errno() {
                // Locked pages, and pages longer than the system reports, cannot be given back;
                // they must still read as zero.
                // SAFETY: the caller's contract.
                libc::EINVAL | libc::EAGAIN => unsafe { pointer(address).write_bytes(0, bytes) },
                error => fatal::system_call("madvise", error),
            }
        }
    });
}

/// The outcome of resizing a mapping in place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Resized {
    /// It has the new length.
    Done,
    /// There is no room and nothing has changed. Its pages can be moved.
    NoRoom,
    /// Nothing has changed and its pages cannot be moved: parts of it were locked or advised
    /// separately.
    Fixed,
}

/// Changes the length of a mapping in place.
///
/// # Safety
/// `old_bytes` from `address` are mapped here, by one call or by several.
#[cfg(target_os = "linux")]
pub unsafe fn resize(address: usize, old_bytes: usize, new_bytes: usize) -> Resized {
    if new_bytes > old_bytes && injected::refuses() {
        return Resized::NoRoom;
    }
    keeping_errno(|| {
        // SAFETY: the caller's contract; without MREMAP_MAYMOVE the mapping stays in place.
        let result = unsafe { libc::mremap(pointer(address), old_bytes, new_bytes, 0) };
        if result != libc::MAP_FAILED {
            return Resized::Done;
        }
        if errno() == libc::ENOMEM { Resized::NoRoom } else { Resized::Fixed }
    })
}

/// Changes the length of a mapping in place; this system cannot.
///
/// # Safety
/// `old_bytes` from `address` are one mapping made here.
#[cfg(not(target_os = "linux"))]
pub unsafe fn resize(_address: usize, _old_bytes: usize, _new_bytes: usize) -> Resized {
    Resized::Fixed
}

/// The outcome of moving a mapping's pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Moved {
    /// They are where the other mapping was.
    Done,
    /// Nothing has changed.
    Refused,
    /// They were not moved, and the other mapping is gone, or nobody can tell: some kernels remove
    /// it first, and another thread may have been given its addresses since.
    TargetGone,
}

/// Moves a mapping's pages onto the start of another mapping without copying them.
///
/// # Safety
/// `bytes` from `from` and `to_bytes` from `to` are mapped here, and nothing refers to the latter.
#[cfg(target_os = "linux")]
pub unsafe fn move_pages(from: usize, bytes: usize, to: usize, to_bytes: usize) -> Moved {
    // By this word the other mapping is known again. No other mapping has it.
    let word = random();
    // SAFETY: the caller's contract: the other mapping is writable, and nothing refers to it.
    unsafe { pointer(to).cast::<u64>().write(word) };
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
        if moved != libc::MAP_FAILED {
            Moved::Done
        } else if read_word(to) == Some(word) {
            Moved::Refused
        } else {
            Moved::TargetGone
        }
    })
}

/// Reads a word that may not be mapped. `None`: it is not, or the system does not say.
#[cfg(target_os = "linux")]
fn read_word(address: usize) -> Option<u64> {
    let mut word = 0_u64;
    let length = size_of::<u64>();
    let local = libc::iovec { iov_base: (&raw mut word).cast(), iov_len: length };
    let remote = libc::iovec { iov_base: pointer(address), iov_len: length };
    // SAFETY: reads this process's memory into `word`; addresses that are not mapped are an error.
    let read = unsafe { libc::process_vm_readv(libc::getpid(), &local, 1, &remote, 1, 0) };
    (usize::try_from(read) == Ok(length)).then_some(word)
}

/// Moves a mapping's pages onto another; this system cannot.
///
/// # Safety
/// `bytes` from each address are mapped here, and nothing refers to those at `to`.
#[cfg(not(target_os = "linux"))]
pub unsafe fn move_pages(_from: usize, _bytes: usize, _to: usize, _to_bytes: usize) -> Moved {
    Moved::Refused
}

/// Returns milliseconds of a monotonic clock that is cheap to read and accurate to a few
/// milliseconds.
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

/// Returns a number that an attacker or a bug is unlikely to guess.
pub fn random() -> u64 {
    let mut value = [0u8; 8];
    // A refusal leaves zeros; the address and the clock still differ from run to run.
    random_bytes(&mut value);
    u64::from_ne_bytes(value)
        ^ (value.as_ptr().addr() as u64).rotate_left(20)
        ^ coarse_milliseconds()
}

/// Makes pages read as zero in processes forked from now on. `false`: this system cannot.
///
/// # Safety
/// `bytes` from `address` are whole pages, mapped here.
#[cfg(target_os = "linux")]
pub unsafe fn clear_in_children(address: usize, bytes: usize) -> bool {
    keeping_errno(|| {
        // SAFETY: the caller's contract.
        unsafe { libc::madvise(pointer(address), bytes, libc::MADV_WIPEONFORK) == 0 }
    })
}

/// Makes pages read as zero in processes forked from now on; this system cannot.
///
/// # Safety
/// `bytes` from `address` are whole pages, mapped here.
#[cfg(not(target_os = "linux"))]
pub unsafe fn clear_in_children(_address: usize, _bytes: usize) -> bool {
    false
}

fn pointer(address: usize) -> *mut libc::c_void {
    if address == 0 { null_mut() } else { core::ptr::with_exposed_provenance_mut(address) }
}

#[cfg(test)]
pub mod injected {
    //! Refusals injected by tests: a thread's mapping calls count down to the first that fails.
    use core::cell::Cell;
    std::thread_local! {
        static CALLS_UNTIL_REFUSED: Cell<u64> = const { Cell::new(u64::MAX) };
    }
    /// After `calls` more successes every mapping call of this thread is refused, until this is set
    /// anew.
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
