//! What glibc has beyond the standard's functions, in the preloaded library: figures of the heap,
//! and its own names for `malloc` and its kin.

use crate::api::stats::{Stats, stats};
use crate::base::fatal;
use crate::base::line::Line;
use crate::c::family::{self, checked_size};
use crate::c::preload::{
    alloc, alloc_aligned, alloc_rounded, alloc_to, fail, resize, system_page_bytes, whole_pages,
};
use crate::c::preload_charge::{is_from_here, is_in_charge, pass_on};
use crate::thread::cancel::without_cancellation;
use core::ffi::{c_int, c_void};

// ---- figures -------------------------------------------------------------------------------

/// `mallinfo2`, as far as its figures mean anything here: what is mapped, in use and free. The
/// field of the fast bins has what is kept for the next allocation; that of the top has what
/// `malloc_trim` looks at.
#[unsafe(no_mangle)]
pub extern "C" fn mallinfo2() -> libc::mallinfo2 {
    if !is_in_charge() {
        return pass_on!("mallinfo2", fn() -> libc::mallinfo2,);
    }
    let stats = stats();
    // SAFETY: zeros are a `mallinfo2`.
    let mut info: libc::mallinfo2 = unsafe { core::mem::zeroed() };
    info.arena = stats.mapped_bytes;
    info.uordblks = stats.in_use_bytes;
    info.fordblks = stats.cached_bytes + stats.free_bytes;
    info.fsmblks = stats.cached_bytes;
    info.keepcost = stats.free_bytes;
    info
}

/// `mallinfo`: the figures of `mallinfo2` as `int`s. One that does not fit becomes the largest.
#[unsafe(no_mangle)]
pub extern "C" fn mallinfo() -> libc::mallinfo {
    if !is_in_charge() {
        return pass_on!("mallinfo", fn() -> libc::mallinfo,);
    }
    let cut = |bytes: usize| c_int::try_from(bytes).unwrap_or(c_int::MAX);
    let full = mallinfo2();
    // SAFETY: zeros are a `mallinfo`.
    let mut info: libc::mallinfo = unsafe { core::mem::zeroed() };
    info.arena = cut(full.arena);
    info.uordblks = cut(full.uordblks);
    info.fordblks = cut(full.fordblks);
    info.fsmblks = cut(full.fsmblks);
    info.keepcost = cut(full.keepcost);
    info
}

/// `malloc_info`: XML to a stream, with glibc's elements as far as they mean anything here. What is
/// kept for the next allocation is "fast", free pages are "rest"; the number of blocks in either is
/// unknown.
///
/// # Safety
/// As for the C function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn malloc_info(options: c_int, stream: *mut libc::FILE) -> c_int {
    if !is_in_charge() {
        return pass_on!("malloc_info", fn(c_int, *mut libc::FILE) -> c_int, options, stream);
    }
    if options != 0 {
        return libc::EINVAL;
    }
    let Stats {
        mapped_bytes: mapped,
        in_use_bytes: in_use,
        cached_bytes: cached,
        free_bytes: free,
        open_request_count: open_requests,
        ..
    } = stats();
    let totals = Line::of_arguments(format_args!(
        "<total type=\"fast\" size=\"{cached}\"/>\n\
         <total type=\"rest\" size=\"{free}\"/>\n"
    ));
    let sizes = Line::of_arguments(format_args!(
        "<system type=\"current\" size=\"{mapped}\"/>\n\
         <aspace type=\"total\" size=\"{mapped}\"/>\n"
    ));
    let ours = Line::of_arguments(format_args!(
        "<rqmalloc mapped=\"{mapped}\" in_use=\"{in_use}\" cached=\"{cached}\" free=\"{free}\" \
         open_requests=\"{open_requests}\"/>\n"
    ));
    let parts = [
        c"<malloc version=\"1\">\n<heap nr=\"0\">\n<sizes>\n</sizes>\n".as_ptr(),
        totals.as_ptr().cast(),
        sizes.as_ptr().cast(),
        c"</heap>\n".as_ptr(),
        totals.as_ptr().cast(),
        sizes.as_ptr().cast(),
        ours.as_ptr().cast(),
        c"</malloc>\n".as_ptr(),
    ];
    // Writing to a stream is a cancellation point.
    let is_written = without_cancellation(|| {
        // SAFETY: C strings, and the caller's stream.
        parts.into_iter().all(|part| unsafe { libc::fputs(part, stream) } >= 0)
    });
    if is_written { 0 } else { -1 }
}

/// `malloc_stats`: the figures in ten lines on standard error.
#[unsafe(no_mangle)]
pub extern "C" fn malloc_stats() {
    if !is_in_charge() {
        return pass_on!("malloc_stats", fn() -> (),);
    }
    Line::print_each(format_args!("{}", stats()));
}

// ---- the C library's own names -------------------------------------------------------------
//
// They serve from here whichever `malloc` is in charge, and ask no other: the caller may be a
// `malloc` of the program's.

/// glibc's `malloc`.
#[unsafe(no_mangle)]
pub extern "C" fn __libc_malloc(size: usize) -> *mut c_void {
    alloc(size, false)
}

/// glibc's `calloc`.
#[unsafe(no_mangle)]
pub extern "C" fn __libc_calloc(count: usize, size: usize) -> *mut c_void {
    match checked_size(count, size, 0) {
        Ok(size) => alloc(size, true),
        Err(_) => fail(libc::ENOMEM),
    }
}

/// glibc's `realloc`.
///
/// # Safety
/// As for the C function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn __libc_realloc(pointer: *mut c_void, size: usize) -> *mut c_void {
    if !is_from_here(pointer) {
        return pass_on!("__libc_realloc", fn(*mut c_void, usize) -> *mut c_void, pointer, size);
    }
    // SAFETY: the caller's contract.
    unsafe { resize(pointer, size) }
}

/// glibc's `free`.
///
/// # Safety
/// As for the C function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn __libc_free(pointer: *mut c_void) {
    if !is_from_here(pointer) {
        return pass_on!("__libc_free", fn(*mut c_void) -> (), pointer);
    }
    // SAFETY: the caller's contract.
    unsafe { family::free(pointer.cast(), None) }
}

/// An older name for `free`.
///
/// # Safety
/// As for the C function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cfree(pointer: *mut c_void) {
    // SAFETY: the caller's contract.
    unsafe { __libc_free(pointer) }
}

/// glibc's `memalign`.
#[unsafe(no_mangle)]
pub extern "C" fn __libc_memalign(align: usize, size: usize) -> *mut c_void {
    alloc_rounded(align, size)
}

/// glibc's `posix_memalign`.
///
/// # Safety
/// As for the C function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn __posix_memalign(
    place: *mut *mut c_void,
    align: usize,
    size: usize,
) -> c_int {
    // SAFETY: the caller's contract.
    unsafe { alloc_to(place, align, size) }
}

/// glibc's `valloc`.
#[unsafe(no_mangle)]
pub extern "C" fn __libc_valloc(size: usize) -> *mut c_void {
    alloc_aligned(system_page_bytes(), size)
}

/// glibc's `pvalloc`.
#[unsafe(no_mangle)]
pub extern "C" fn __libc_pvalloc(size: usize) -> *mut c_void {
    match whole_pages(size) {
        Some(size) => alloc_aligned(system_page_bytes(), size),
        None => fail(libc::ENOMEM),
    }
}
