//! The functions of PHP's Zend Memory Manager under their own names, for Rust.
//!
//! There are two families. What [`emalloc`] and its kin hand out belongs to the request that this
//! thread is inside and is freed with it at the latest; without an open request, or inside
//! [`persistent`](crate::persistent()), it is persistent, as ZendMM's is before the first request.
//! What [`pemalloc`] and its kin hand out with `persistent` set lives until it is freed. A block
//! remembers its family: freeing or resizing it with the other one ends the process with a line
//! that says so, where ZendMM corrupts its heap.
//!
//! No function returns null. Where ZendMM raises `E_ERROR` and bails out (at the memory limit,
//! without memory, or when a product overflows), these unwind to the nearest [`Request::catch`], as
//! [`bailout`](crate::bailout) does; without one, the process ends with the error's text.
//!
//! Every block is aligned to 16 bytes (ZendMM: 8). Size 0 returns a unique pointer.
//!
//! ```
//! # #[global_allocator]
//! # static GLOBAL: rqmalloc::RqMalloc = rqmalloc::RqMalloc;
//! use rqmalloc::{Request, zend};
//!
//! let request = Request::builder().memory_limit(1 << 20).build();
//! let result = request.catch(|| {
//!     let block = zend::emalloc(100);
//!     // SAFETY: the block is live; 8 MiB are over the limit, so it stays as it is.
//!     unsafe { zend::erealloc(block, 8 << 20) }
//! });
//! println!("{}", result.unwrap_err()); // memory limit reached (limit 1048576, in use 16384, asked 8388608)
//! // SAFETY: nothing points to the block any more.
//! let report = unsafe { request.end() }.unwrap();
//! assert_eq!(report.freed_blocks, 1);
//! ```

use crate::api::bailout::{Bailout, is_catching, raise};
use crate::api::request::Request;
use crate::base::fatal;
use crate::blocks::trace::Site;
use crate::c::family::{self, Family, checked_size};
use crate::request::limit::LimitBelowUse;
use core::ffi::{CStr, c_char};
use core::fmt;
use core::panic::Location;

/// Returns the block, or unwinds to the nearest `catch`, or ends the process.
fn or_fail(result: Result<*mut u8, Bailout>) -> *mut u8 {
    match result {
        Ok(block) => block,
        Err(bailout) => fail(bailout),
    }
}

#[cold]
fn fail(bailout: Bailout) -> ! {
    if is_catching() {
        raise(bailout);
    }
    fatal::die_of(&bailout.line())
}

fn site(location: &'static Location<'static>) -> Site {
    Site::new(location.file().as_bytes(), location.line())
}

/// Allocates `size` bytes in this thread's request. ZendMM's `emalloc`.
#[track_caller]
pub fn emalloc(size: usize) -> *mut u8 {
    pemalloc(size, false)
}

/// Allocates as [`emalloc`] does, and returns instead of failing: for callers through which nothing
/// may unwind, such as the allocation callback of a C library. ZendMM has no such function.
///
/// ```
/// # #[global_allocator]
/// # static GLOBAL: rqmalloc::RqMalloc = rqmalloc::RqMalloc;
/// use rqmalloc::{Bailout, Request, zend};
///
/// extern "C" fn allocate(size: usize) -> *mut u8 {
///     zend::try_emalloc(size).unwrap_or(std::ptr::null_mut())
/// }
///
/// let request = Request::builder().memory_limit(1 << 20).report_limit(false).build();
/// assert!(request.run(|| allocate(2 << 20).is_null()));
/// let refused = request.run(|| zend::try_emalloc(2 << 20));
/// assert!(matches!(refused, Err(Bailout::Limit(limit)) if limit.limit_bytes == 1 << 20));
/// ```
///
/// # Errors
/// If the request is at its limit, or the system has no more memory.
#[track_caller]
pub fn try_emalloc(size: usize) -> Result<*mut u8, Bailout> {
    family::alloc(size, Family::Request, false, site(Location::caller()))
}

/// Resizes a block as [`erealloc`] does, and returns instead of failing, as [`try_emalloc`].
///
/// ```
/// # #[global_allocator]
/// # static GLOBAL: rqmalloc::RqMalloc = rqmalloc::RqMalloc;
/// use rqmalloc::{Request, zend};
///
/// let request = Request::builder().memory_limit(1 << 20).report_limit(false).build();
/// request.run(|| {
///     let block = zend::emalloc(100);
///     // SAFETY: the block is live, and stays so where it is.
///     assert!(unsafe { zend::try_erealloc(block, 2 << 20) }.is_err());
///     // SAFETY: it is not used any more.
///     unsafe { zend::efree(block) };
/// });
/// ```
///
/// # Safety
/// As for [`erealloc`]; after an error the old block is still live.
///
/// # Errors
/// If the request is at its limit, or the system has no more memory.
#[track_caller]
pub unsafe fn try_erealloc(block: *mut u8, size: usize) -> Result<*mut u8, Bailout> {
    let (family, site) = (Some(Family::Request), site(Location::caller()));
    // SAFETY: the caller's contract.
    unsafe { family::resize(block, size, usize::MAX, family, site) }
}

/// Allocates `count * size + offset` bytes. ZendMM's `safe_emalloc`.
#[track_caller]
pub fn safe_emalloc(count: usize, size: usize, offset: usize) -> *mut u8 {
    safe_pemalloc(count, size, offset, false)
}

/// Allocates `count * size` zeroed bytes. ZendMM's `ecalloc`, which always clears them: here, pages
/// fresh from the system are known to be zero.
#[track_caller]
pub fn ecalloc(count: usize, size: usize) -> *mut u8 {
    pecalloc(count, size, false)
}

/// Resizes a block, which may move. Null: as [`emalloc`]. Size 0 does not free: the block shrinks
/// to the smallest size. A block stays in its request, whichever is open; if the function fails,
/// the old block is as it was. ZendMM's `erealloc`.
///
/// # Safety
/// `block` is null or a live block that nothing else uses; afterwards only the returned one is
/// live.
#[track_caller]
pub unsafe fn erealloc(block: *mut u8, size: usize) -> *mut u8 {
    // SAFETY: the caller's contract.
    unsafe { perealloc(block, size, false) }
}

/// Resizes a block as [`erealloc`] does, but if it moves, only its first `copy_size` bytes come
/// along. ZendMM's `erealloc2`.
///
/// # Safety
/// As for [`erealloc`].
#[track_caller]
pub unsafe fn erealloc2(block: *mut u8, size: usize, copy_size: usize) -> *mut u8 {
    let site = site(Location::caller());
    // SAFETY: the caller's contract.
    or_fail(unsafe { family::resize(block, size, copy_size, Some(Family::Request), site) })
}

/// Resizes a block as [`erealloc`] does, to `count * size + offset` bytes. ZendMM's
/// `safe_erealloc`.
///
/// # Safety
/// As for [`erealloc`].
#[track_caller]
pub unsafe fn safe_erealloc(block: *mut u8, count: usize, size: usize, offset: usize) -> *mut u8 {
    // SAFETY: the caller's contract.
    unsafe { safe_perealloc(block, count, size, offset, false) }
}

/// Frees a block of the request's family, on any thread. Null is ignored. ZendMM's `efree`.
///
/// # Safety
/// `block` is null or a live block that is no longer used.
pub unsafe fn efree(block: *mut u8) {
    // SAFETY: the caller's contract.
    unsafe { pefree(block, false) }
}

/// Copies the text with its final zero. ZendMM's `estrdup`.
#[track_caller]
pub fn estrdup(text: &CStr) -> *mut c_char {
    pestrdup(text, false)
}

/// Copies exactly these bytes, zeros included, and appends a zero. ZendMM's `estrndup`.
#[track_caller]
pub fn estrndup(text: &[u8]) -> *mut c_char {
    pestrndup(text, false)
}

/// Allocates `size` bytes, persistent or in this thread's request. ZendMM's `pemalloc`. Persistent
/// memory counts towards no request's usage or limit; if there is no memory for it, ZendMM exits.
#[track_caller]
pub fn pemalloc(size: usize, persistent: bool) -> *mut u8 {
    let site = site(Location::caller());
    or_fail(family::alloc(size, Family::of_flag(persistent), false, site))
}

/// Allocates `count * size + offset` bytes. ZendMM's `safe_pemalloc`.
#[track_caller]
pub fn safe_pemalloc(count: usize, size: usize, offset: usize, persistent: bool) -> *mut u8 {
    let (family, site) = (Family::of_flag(persistent), site(Location::caller()));
    let size = checked_size(count, size, offset);
    or_fail(size.and_then(|size| family::alloc(size, family, false, site)))
}

/// Allocates `count * size` zeroed bytes. ZendMM's `pecalloc`.
#[track_caller]
pub fn pecalloc(count: usize, size: usize, persistent: bool) -> *mut u8 {
    let (family, site) = (Family::of_flag(persistent), site(Location::caller()));
    let size = checked_size(count, size, 0);
    or_fail(size.and_then(|size| family::alloc(size, family, true, site)))
}

/// Resizes a block as [`erealloc`] does. ZendMM's `perealloc`, which passes size 0 of a persistent
/// block to libc's `realloc`.
///
/// # Safety
/// As for [`erealloc`].
#[track_caller]
pub unsafe fn perealloc(block: *mut u8, size: usize, persistent: bool) -> *mut u8 {
    let (family, site) = (Some(Family::of_flag(persistent)), site(Location::caller()));
    // SAFETY: the caller's contract.
    or_fail(unsafe { family::resize(block, size, usize::MAX, family, site) })
}

/// Resizes a block as [`perealloc`] does, to `count * size + offset` bytes. ZendMM's
/// `safe_perealloc`.
///
/// # Safety
/// As for [`erealloc`].
#[track_caller]
pub unsafe fn safe_perealloc(
    block: *mut u8,
    count: usize,
    size: usize,
    offset: usize,
    persistent: bool,
) -> *mut u8 {
    let (family, site) = (Some(Family::of_flag(persistent)), site(Location::caller()));
    let size = checked_size(count, size, offset);
    // SAFETY: the caller's contract.
    or_fail(size.and_then(|size| unsafe { family::resize(block, size, usize::MAX, family, site) }))
}

/// Frees a block of the family that the flag names. Null is ignored. ZendMM's `pefree`, which
/// believes the flag: here the block knows better.
///
/// # Safety
/// `block` is null or a live block that is no longer used.
pub unsafe fn pefree(block: *mut u8, persistent: bool) {
    // SAFETY: the caller's contract.
    unsafe { family::free(block, Some(Family::of_flag(persistent))) }
}

/// Copies the text with its final zero. ZendMM's `pestrdup`.
#[track_caller]
pub fn pestrdup(text: &CStr, persistent: bool) -> *mut c_char {
    pestrndup(text.to_bytes(), persistent)
}

/// Copies exactly these bytes and appends a zero. ZendMM's `pestrndup`.
#[track_caller]
pub fn pestrndup(text: &[u8], persistent: bool) -> *mut c_char {
    let copy = safe_pemalloc(1, text.len(), 1, persistent);
    // SAFETY: the block is fresh and one byte longer than the text.
    unsafe {
        copy.copy_from_nonoverlapping(text.as_ptr(), text.len());
        copy.add(text.len()).write(0);
    }
    copy.cast()
}

/// Returns the bytes that fit into the block, at least what was asked for; 0 for null. ZendMM's
/// `zend_mem_block_size`.
///
/// # Safety
/// `block` is null or a live block. (Anything else ends the process with the name of the fault, if
/// it can be recognised.)
pub unsafe fn block_size(block: *const u8) -> usize {
    // SAFETY: the caller's contract.
    unsafe { family::block_size(block) }
}

/// Returns whether the address is in memory of this allocator, inside a block or not. Never faults.
/// ZendMM's `is_zend_ptr`, which walks lists for it.
pub fn is_ours(address: *const u8) -> bool {
    family::is_ours(address)
}

/// Returns the bytes that this thread's request uses, 0 without one: of its pages if `real`, else
/// of its live blocks, including headers and what size classes add. ZendMM's `zend_memory_usage`.
pub fn memory_usage(real: bool) -> usize {
    Request::current().map_or(0, |request| {
        let usage = request.usage();
        if real { usage.footprint_bytes } else { usage.live_bytes }
    })
}

/// Returns the most bytes used so far. They are bytes of pages either way: live blocks are not
/// counted one by one, so the result without `real` is an upper bound. ZendMM's
/// `zend_memory_peak_usage`.
pub fn memory_peak_usage(real: bool) -> usize {
    let _ = real;
    Request::current().map_or(0, |request| request.usage().peak_bytes)
}

/// Measures the peak anew from now on. ZendMM's `zend_memory_reset_peak_usage`.
pub fn memory_reset_peak_usage() {
    if let Some(request) = Request::current() {
        request.reset_peak();
    }
}

/// Why a limit was not set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum SetLimitError {
    /// The request holds more.
    BelowUse(LimitBelowUse),
    /// No request is open on this thread.
    NoRequest,
}

impl fmt::Display for SetLimitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BelowUse(error) => error.fmt(f),
            Self::NoRequest => f.write_str("no request is open on this thread"),
        }
    }
}

impl core::error::Error for SetLimitError {}

/// Sets the limit of this thread's request, in bytes of pages; `usize::MAX`: none. ZendMM's
/// `zend_set_memory_limit`, which forgets to store a limit that it made room for: here an accepted
/// limit is stored.
///
/// # Errors
/// If the request holds more, even after its free pages were given back, or if none is open.
/// Nothing has changed then.
pub fn set_memory_limit(bytes: usize) -> Result<(), SetLimitError> {
    let request = Request::current().ok_or(SetLimitError::NoRequest)?;
    let limit = (bytes != usize::MAX).then_some(bytes);
    request.set_memory_limit(limit).map_err(SetLimitError::BelowUse)
}

/// Gives back pages of this thread's request that contain only free blocks; without a request, the
/// process's idle memory. Returns the bytes given back. ZendMM's `zend_mm_gc`.
pub fn gc() -> usize {
    match Request::current() {
        Some(request) => request.reclaim(),
        None => crate::trim(),
    }
}
