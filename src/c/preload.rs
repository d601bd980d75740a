//! The C allocation functions, for a library that `LD_PRELOAD` puts in front of any program.
//!
//! `malloc` and its kin hand out persistent blocks; with `RQMALLOC_PRELOAD_REQUESTS=1` in the
//! environment, those of a thread inside a request belong to the request. With `RQMALLOC_STATS=1` a
//! line of figures is printed at exit.
//!
//! A program that defines `malloc` itself is left alone: the linker prefers its functions to these,
//! and those of these that it does not define pass the call on to the next library. The C library's
//! own names (`__libc_malloc`) always serve from here: a `malloc` that wraps them gets blocks of
//! this allocator.

use crate::api::global::pointer;
use crate::api::stats::stats;
use crate::base::environment;
use crate::base::fatal;
use crate::base::line::Line;
use crate::base::size_class::PAYLOAD_ALIGN;
use crate::base::sync::{AtomicBool, Ordering};
use crate::blocks::bins::Kind;
use crate::blocks::trace::Site;
use crate::c::family::{self, Family, checked_size};
use crate::c::preload_charge::{is_in_charge, pass_on};
use crate::c::preload_libraries::find_dlopen;
use crate::lockfree::header::NONE;
use crate::thread::{self, route};
use core::ffi::{c_int, c_void};
use core::ptr::null_mut;

/// Whether the blocks of a thread inside a request belong to it.
static OF_REQUESTS: AtomicBool = AtomicBool::new(false);

#[used]
#[unsafe(link_section = ".init_array")]
static AT_START: extern "C" fn() = read_environment;
#[used]
#[unsafe(link_section = ".fini_array")]
static AT_EXIT: extern "C" fn() = print_stats;

extern "C" fn read_environment() {
    let is_of_requests = environment::flag(c"RQMALLOC_PRELOAD_REQUESTS") == Some(true);
    OF_REQUESTS.store(is_of_requests, Ordering::Relaxed);
    if environment::flag(c"RQMALLOC_BACKGROUND") == Some(true) {
        // Without it, memory goes back on other threads' slow paths.
        let _ = crate::start_background_thread();
    }
    // Reads the environment too.
    find_dlopen();
}

extern "C" fn print_stats() {
    if environment::flag(c"RQMALLOC_STATS") == Some(true) {
        Line::print_each(format_args!("{}", stats()));
    }
}

/// Returns the family of this thread's blocks, where the fast path does not know it.
fn family() -> Family {
    match thread::active().kind() {
        Kind::Lane | Kind::Traced if OF_REQUESTS.load(Ordering::Relaxed) => Family::Request,
        _ => Family::Persistent,
    }
}

#[cold]
pub fn fail(error: c_int) -> *mut c_void {
    // SAFETY: `errno` is this thread's own.
    unsafe { *libc::__errno_location() = error };
    null_mut()
}

#[inline(always)]
pub fn alloc(size: usize, zeroed: bool) -> *mut c_void {
    let bins = thread::active();
    // Outside requests the active bins are the cache's.
    if core::ptr::eq(bins, bins.cache()) {
        let block = family::alloc_from_bins(bins, size, zeroed);
        if !block.is_null() {
            return block.cast();
        }
    }
    alloc_by_family(size, zeroed)
}

#[cold]
#[inline(never)]
fn alloc_by_family(size: usize, zeroed: bool) -> *mut c_void {
    match family::alloc(size, family(), zeroed, Site::NONE) {
        Ok(block) => block.cast(),
        Err(_) => fail(libc::ENOMEM),
    }
}

/// Allocates a block at an alignment that is a power of two.
pub fn alloc_aligned(align: usize, size: usize) -> *mut c_void {
    if align <= PAYLOAD_ALIGN {
        return alloc(size, false);
    }
    if size > isize::MAX as usize || align > isize::MAX as usize {
        return fail(libc::ENOMEM);
    }
    let block = match family() {
        Family::Request => route::alloc_slow(size, align).block,
        Family::Persistent => route::alloc_persistent_slow(size, align).block,
    };
    if block == NONE { fail(libc::ENOMEM) } else { pointer(block).cast() }
}

/// `malloc`. Size 0 returns a unique pointer.
#[unsafe(no_mangle)]
pub extern "C" fn malloc(size: usize) -> *mut c_void {
    alloc(size, false)
}

/// `free`.
///
/// # Safety
/// As for the C function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn free(pointer: *mut c_void) {
    // SAFETY: the caller's contract.
    unsafe { family::free(pointer.cast(), None) }
}

/// `free_sized` of C23. The block itself knows its size better.
///
/// # Safety
/// As for the C function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn free_sized(pointer: *mut c_void, _size: usize) {
    // SAFETY: the caller's contract.
    unsafe { free(pointer) }
}

/// `free_aligned_sized` of C23.
///
/// # Safety
/// As for the C function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn free_aligned_sized(pointer: *mut c_void, _align: usize, _size: usize) {
    // SAFETY: the caller's contract.
    unsafe { free(pointer) }
}

/// `calloc`.
#[unsafe(no_mangle)]
pub extern "C" fn calloc(count: usize, size: usize) -> *mut c_void {
    if !is_in_charge() {
        return pass_on!("calloc", fn(usize, usize) -> *mut c_void, count, size);
    }
    match checked_size(count, size, 0) {
        Ok(size) => alloc(size, true),
        Err(_) => fail(libc::ENOMEM),
    }
}

/// `realloc`. As in glibc, size 0 frees the block and returns null.
///
/// # Safety
/// As for the C function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn realloc(pointer: *mut c_void, size: usize) -> *mut c_void {
    if !is_in_charge() && (pointer.is_null() || !family::is_ours(pointer.cast())) {
        return pass_on!("realloc", fn(*mut c_void, usize) -> *mut c_void, pointer, size);
    }
    // SAFETY: the caller's contract.
    unsafe { resize(pointer, size) }
}

/// # Safety
/// `pointer` is null or a block of ours that nothing else uses.
#[inline(always)]
pub unsafe fn resize(pointer: *mut c_void, size: usize) -> *mut c_void {
    if pointer.is_null() {
        return alloc(size, false);
    }
    if size == 0 {
        // SAFETY: the caller's contract.
        unsafe { family::free(pointer.cast(), None) };
        return null_mut();
    }
    // SAFETY: the caller's contract.
    match unsafe { family::resize(pointer.cast(), size, usize::MAX, None, Site::NONE) } {
        Ok(block) => block.cast(),
        Err(_) => fail(libc::ENOMEM),
    }
}

/// `reallocarray`.
///
/// # Safety
/// As for the C function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn reallocarray(
    pointer: *mut c_void,
    count: usize,
    size: usize,
) -> *mut c_void {
    if !is_in_charge() && (pointer.is_null() || !family::is_ours(pointer.cast())) {
        return pass_on!(
            "reallocarray",
            fn(*mut c_void, usize, usize) -> *mut c_void,
            pointer,
            count,
            size
        );
    }
    match checked_size(count, size, 0) {
        // SAFETY: the caller's contract.
        Ok(size) => unsafe { resize(pointer, size) },
        Err(_) => fail(libc::ENOMEM),
    }
}

/// `memalign`. As in glibc, the alignment is rounded up to a power of two.
#[unsafe(no_mangle)]
pub extern "C" fn memalign(align: usize, size: usize) -> *mut c_void {
    if !is_in_charge() {
        return pass_on!("memalign", fn(usize, usize) -> *mut c_void, align, size);
    }
    alloc_rounded(align, size)
}

/// Allocates a block at an alignment that is rounded up to a power of two.
pub fn alloc_rounded(align: usize, size: usize) -> *mut c_void {
    match align.checked_next_power_of_two() {
        Some(align) => alloc_aligned(align, size),
        None => fail(libc::EINVAL),
    }
}

/// `aligned_alloc`.
#[unsafe(no_mangle)]
pub extern "C" fn aligned_alloc(align: usize, size: usize) -> *mut c_void {
    if !is_in_charge() {
        return pass_on!("aligned_alloc", fn(usize, usize) -> *mut c_void, align, size);
    }
    if align.is_power_of_two() { alloc_aligned(align, size) } else { fail(libc::EINVAL) }
}

/// `posix_memalign`.
///
/// # Safety
/// As for the C function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posix_memalign(
    place: *mut *mut c_void,
    align: usize,
    size: usize,
) -> c_int {
    if !is_in_charge() {
        return pass_on!(
            "posix_memalign",
            fn(*mut *mut c_void, usize, usize) -> c_int,
            place,
            align,
            size
        );
    }
    // SAFETY: the caller's contract.
    unsafe { alloc_to(place, align, size) }
}

/// Does the work of `posix_memalign`. As in glibc, `errno` is set too if there is no memory.
///
/// # Safety
/// `place` is writable.
pub unsafe fn alloc_to(place: *mut *mut c_void, align: usize, size: usize) -> c_int {
    if !align.is_power_of_two() || align % size_of::<*mut c_void>() != 0 {
        return libc::EINVAL;
    }
    let block = alloc_aligned(align, size);
    if block.is_null() {
        return libc::ENOMEM;
    }
    // SAFETY: the caller's contract.
    unsafe { place.write(block) };
    0
}

/// Returns the page length that the program was told, to which `valloc` and `pvalloc` align.
pub fn system_page_bytes() -> usize {
    // SAFETY: always callable; a constant from the start of the program on.
    unsafe { libc::sysconf(libc::_SC_PAGESIZE) as usize }
}

/// `valloc`: aligned to a page.
#[unsafe(no_mangle)]
pub extern "C" fn valloc(size: usize) -> *mut c_void {
    memalign(system_page_bytes(), size)
}

/// `pvalloc`: whole pages.
#[unsafe(no_mangle)]
pub extern "C" fn pvalloc(size: usize) -> *mut c_void {
    match whole_pages(size) {
        Some(size) => memalign(system_page_bytes(), size),
        None => fail(libc::ENOMEM),
    }
}

pub fn whole_pages(size: usize) -> Option<usize> {
    size.max(1).checked_next_multiple_of(system_page_bytes())
}

/// `malloc_usable_size`: how many bytes of a block may be used.
///
/// # Safety
/// As for the C function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn malloc_usable_size(pointer: *mut c_void) -> usize {
    if !is_in_charge() && !family::is_ours(pointer.cast()) {
        return pass_on!("malloc_usable_size", fn(*mut c_void) -> usize, pointer);
    }
    // SAFETY: the caller's contract.
    unsafe { family::block_size(pointer.cast()) }
}

/// `malloc_trim`: 1 if memory went back to the system.
#[unsafe(no_mangle)]
pub extern "C" fn malloc_trim(pad: usize) -> c_int {
    if !is_in_charge() {
        return pass_on!("malloc_trim", fn(usize) -> c_int, pad);
    }
    c_int::from(crate::trim() > 0)
}
