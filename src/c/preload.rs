//! The C allocation functions, for a library that `LD_PRELOAD` puts before any program.
//!
//! `malloc` and its kin hand out persistent blocks; with `RQMALLOC_PRELOAD_REQUESTS=1` in the environment
//! those of a thread that is inside a request belong to it. With `RQMALLOC_STATS=1` a line of figures is
//! printed at exit.
//!
//! A program that defines `malloc` itself is left alone: the linker prefers its functions to these,
//! and those of these that it has not defined pass on to the library that comes next. The C
//! library's own names (`__libc_malloc`) serve from here always: a `malloc` that wraps them gets
//! blocks of this allocator.

use crate::api::global::pointer;
use crate::api::report::{Stats, stats};
use crate::base::fatal;
use crate::base::size_class::PAYLOAD_ALIGN;
use crate::base::sync::{AtomicBool, AtomicPtr, AtomicU8, AtomicU32, Ordering};
use crate::blocks::bin::Kind;
use crate::blocks::trace::Site;
use crate::c::family::{self, Family, checked_size};
use crate::lockfree::header::NONE;
use crate::thread::cancel::without_cancellation;
use crate::thread::{self, slow};
use core::ffi::{CStr, c_char, c_int, c_void};
use core::fmt::Write;
use core::ptr::null_mut;

/// Whether blocks of a thread inside a request belong to it.
static OF_REQUESTS: AtomicBool = AtomicBool::new(false);

#[used]
#[unsafe(link_section = ".init_array")]
static AT_START: extern "C" fn() = read_environment;
#[used]
#[unsafe(link_section = ".fini_array")]
static AT_EXIT: extern "C" fn() = print_stats;

extern "C" fn read_environment() {
    OF_REQUESTS.store(is_set(c"RQMALLOC_PRELOAD_REQUESTS"), Ordering::Relaxed);
    // Looks at the environment, too.
    find_dlopen();
}

/// Whether a variable of the environment is there and not 0.
fn is_set(name: &CStr) -> bool {
    // SAFETY: a text; the environment is not changed by this thread meanwhile.
    let value = unsafe { libc::getenv(name.as_ptr()) };
    // SAFETY: as above.
    !value.is_null() && !matches!(unsafe { CStr::from_ptr(value) }.to_bytes(), b"" | b"0")
}

extern "C" fn print_stats() {
    if is_set(c"RQMALLOC_STATS") {
        let mut line = fatal::Line::EMPTY;
        // A line that is too long is cut.
        let _ = write!(line, "{}", stats());
        line.print();
    }
}

// ---- who is in charge ----------------------------------------------------------------------

const UNKNOWN: u8 = 0;
const OURS: u8 = 1;
const THEIRS: u8 = 2;
/// Somebody asks just now.
const ASKED: u8 = 3;

/// Whether the program's `malloc` is the one here, or at last hands out blocks of this allocator.
static IN_CHARGE: AtomicU8 = AtomicU8::new(UNKNOWN);

#[inline(always)]
fn is_in_charge() -> bool {
    match IN_CHARGE.load(Ordering::Relaxed) {
        OURS => true,
        THEIRS => false,
        _ => find_who_is_in_charge(),
    }
}

/// Whether a block that comes back is one of ours: not so where a function here has passed on.
#[inline(always)]
fn is_from_here(block: *mut c_void) -> bool {
    IN_CHARGE.load(Ordering::Relaxed) != THEIRS || block.is_null() || family::is_ours(block.cast())
}

/// Asks whoever defines `malloc` for a block. (Its address does not tell: that of a function whose
/// address a program takes is a place in the program.) What that `malloc` calls meanwhile, and
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

// ---- allocation ----------------------------------------------------------------------------

/// Whose the blocks of this thread are, where that is not plain.
fn family() -> Family {
    match thread::active().kind() {
        Kind::Lane | Kind::Traced if OF_REQUESTS.load(Ordering::Relaxed) => Family::Request,
        _ => Family::Persistent,
    }
}

#[cold]
fn fail(error: c_int) -> *mut c_void {
    // SAFETY: the place is this thread's.
    unsafe { *libc::__errno_location() = error };
    null_mut()
}

#[inline(always)]
fn allocate(size: usize, zeroed: bool) -> *mut c_void {
    let bins = thread::active();
    // Outside requests the active bins are the cache's.
    if core::ptr::eq(bins, bins.cache()) {
        let block = family::allocate_in(bins, size, zeroed);
        if !block.is_null() {
            return block.cast();
        }
    }
    allocate_slow(size, zeroed)
}

#[cold]
#[inline(never)]
fn allocate_slow(size: usize, zeroed: bool) -> *mut c_void {
    match family::allocate(size, family(), zeroed, Site::NONE) {
        Ok(block) => block.cast(),
        Err(_) => fail(libc::ENOMEM),
    }
}

/// A block at an alignment that is a power of two.
fn allocate_aligned(align: usize, size: usize) -> *mut c_void {
    if align <= PAYLOAD_ALIGN {
        return allocate(size, false);
    }
    if size > isize::MAX as usize || align > isize::MAX as usize {
        return fail(libc::ENOMEM);
    }
    let block = match family() {
        Family::Request => slow::alloc_slow(size, align).block,
        Family::Persistent => slow::alloc_persistent(size, align).block,
    };
    if block == NONE { fail(libc::ENOMEM) } else { pointer(block).cast() }
}

/// `malloc`. Size 0 gives a unique pointer.
#[unsafe(no_mangle)]
pub extern "C" fn malloc(size: usize) -> *mut c_void {
    allocate(size, false)
}

/// `free`.
///
/// # Safety
/// As the C function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn free(pointer: *mut c_void) {
    // SAFETY: the caller's contract.
    unsafe { family::free(pointer.cast(), None) }
}

/// `free_sized` of C23. The block knows its size better.
///
/// # Safety
/// As the C function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn free_sized(pointer: *mut c_void, _size: usize) {
    // SAFETY: the caller's contract.
    unsafe { free(pointer) }
}

/// `free_aligned_sized` of C23.
///
/// # Safety
/// As the C function.
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
        Ok(size) => allocate(size, true),
        Err(_) => fail(libc::ENOMEM),
    }
}

/// `realloc`. As in glibc, size 0 frees and returns null.
///
/// # Safety
/// As the C function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn realloc(pointer: *mut c_void, size: usize) -> *mut c_void {
    if !is_in_charge() && (pointer.is_null() || !family::is_ours(pointer.cast())) {
        return pass_on!("realloc", fn(*mut c_void, usize) -> *mut c_void, pointer, size);
    }
    // SAFETY: the caller's contract.
    unsafe { resize(pointer, size) }
}

/// # Safety
/// `pointer` is null or a block of ours that nobody else uses.
#[inline(always)]
unsafe fn resize(pointer: *mut c_void, size: usize) -> *mut c_void {
    if pointer.is_null() {
        return allocate(size, false);
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
/// As the C function.
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

/// `memalign`. As in glibc, an alignment is rounded up to a power of two.
#[unsafe(no_mangle)]
pub extern "C" fn memalign(align: usize, size: usize) -> *mut c_void {
    if !is_in_charge() {
        return pass_on!("memalign", fn(usize, usize) -> *mut c_void, align, size);
    }
    allocate_rounded(align, size)
}

/// A block at an alignment that is rounded up to a power of two.
fn allocate_rounded(align: usize, size: usize) -> *mut c_void {
    match align.checked_next_power_of_two() {
        Some(align) => allocate_aligned(align, size),
        None => fail(libc::EINVAL),
    }
}

/// `aligned_alloc`.
#[unsafe(no_mangle)]
pub extern "C" fn aligned_alloc(align: usize, size: usize) -> *mut c_void {
    if !is_in_charge() {
        return pass_on!("aligned_alloc", fn(usize, usize) -> *mut c_void, align, size);
    }
    if align.is_power_of_two() { allocate_aligned(align, size) } else { fail(libc::EINVAL) }
}

/// `posix_memalign`.
///
/// # Safety
/// As the C function.
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
    unsafe { allocate_to(place, align, size) }
}

/// What `posix_memalign` does: as in glibc, `errno` says it too when there is no memory.
///
/// # Safety
/// `place` can be written.
unsafe fn allocate_to(place: *mut *mut c_void, align: usize, size: usize) -> c_int {
    if !align.is_power_of_two() || align % size_of::<*mut c_void>() != 0 {
        return libc::EINVAL;
    }
    let block = allocate_aligned(align, size);
    if block.is_null() {
        return libc::ENOMEM;
    }
    // SAFETY: the caller's contract.
    unsafe { place.write(block) };
    0
}

/// What `valloc` and `pvalloc` align to.
fn system_page_bytes() -> usize {
    // SAFETY: always callable; a constant that the program was started with.
    unsafe { libc::sysconf(libc::_SC_PAGESIZE) as usize }
}

/// `valloc`: a block at a page.
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

fn whole_pages(size: usize) -> Option<usize> {
    size.max(1).checked_next_multiple_of(system_page_bytes())
}

/// `malloc_usable_size`: bytes that may be used of a block.
///
/// # Safety
/// As the C function.
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

// ---- figures -------------------------------------------------------------------------------

/// `mallinfo2`, as far as its figures have a meaning here: what is mapped, in use and free. In the
/// place of the fast bins stands what is kept for the next allocation, in that of the top what
/// `malloc_trim` looks at.
#[unsafe(no_mangle)]
pub extern "C" fn mallinfo2() -> libc::mallinfo2 {
    if !is_in_charge() {
        return pass_on!("mallinfo2", fn() -> libc::mallinfo2,);
    }
    let stats = stats();
    // SAFETY: zeros are a `mallinfo2`.
    let mut info: libc::mallinfo2 = unsafe { core::mem::zeroed() };
    info.arena = stats.mapped;
    info.uordblks = stats.in_use;
    info.fordblks = stats.cached + stats.free;
    info.fsmblks = stats.cached;
    info.keepcost = stats.free;
    info
}

/// `mallinfo`: the same figures in the range of an `int`. One that does not fit is the largest.
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

/// `malloc_info`: XML to a stream, with glibc's elements as far as they have a meaning here. Kept
/// for the next allocation is "fast", free pages are "rest"; how many blocks that makes is not
/// known.
///
/// # Safety
/// As the C function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn malloc_info(options: c_int, stream: *mut libc::FILE) -> c_int {
    if !is_in_charge() {
        return pass_on!("malloc_info", fn(c_int, *mut libc::FILE) -> c_int, options, stream);
    }
    if options != 0 {
        return libc::EINVAL;
    }
    let Stats { mapped, in_use, cached, free, open_requests } = stats();
    let totals = text(format_args!(
        "<total type=\"fast\" size=\"{cached}\"/>\n\
         <total type=\"rest\" size=\"{free}\"/>\n"
    ));
    let sizes = text(format_args!(
        "<system type=\"current\" size=\"{mapped}\"/>\n\
         <aspace type=\"total\" size=\"{mapped}\"/>\n"
    ));
    let ours = text(format_args!(
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
    // Writing to a stream can be cancelled.
    let is_written = without_cancellation(|| {
        // SAFETY: texts, and the caller's stream.
        parts.into_iter().all(|part| unsafe { libc::fputs(part, stream) } >= 0)
    });
    if is_written { 0 } else { -1 }
}

/// `malloc_stats`: the figures on standard error, in one line.
#[unsafe(no_mangle)]
pub extern "C" fn malloc_stats() {
    if !is_in_charge() {
        return pass_on!("malloc_stats", fn() -> (),);
    }
    let Stats { mapped, in_use, cached, free, open_requests } = stats();
    text(format_args!(
        "system bytes = {mapped}, in use bytes = {in_use}, cached bytes = {cached}, \
         free bytes = {free}, open requests = {open_requests}"
    ))
    .print();
}

/// A text in a buffer of its own.
fn text(arguments: core::fmt::Arguments<'_>) -> fatal::Line {
    let mut line = fatal::Line::EMPTY;
    // None here is too long.
    let _ = line.write_fmt(arguments);
    line
}

// ---- the C library's own names -------------------------------------------------------------
//
// They serve from here whoever is in charge, and ask nobody: a `malloc` of the program's may be who
// calls.

/// glibc's `malloc`.
#[unsafe(no_mangle)]
pub extern "C" fn __libc_malloc(size: usize) -> *mut c_void {
    allocate(size, false)
}

/// glibc's `calloc`.
#[unsafe(no_mangle)]
pub extern "C" fn __libc_calloc(count: usize, size: usize) -> *mut c_void {
    match checked_size(count, size, 0) {
        Ok(size) => allocate(size, true),
        Err(_) => fail(libc::ENOMEM),
    }
}

/// glibc's `realloc`.
///
/// # Safety
/// As the C function.
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
/// As the C function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn __libc_free(pointer: *mut c_void) {
    if !is_from_here(pointer) {
        return pass_on!("__libc_free", fn(*mut c_void) -> (), pointer);
    }
    // SAFETY: the caller's contract.
    unsafe { family::free(pointer.cast(), None) }
}

/// An older name of `free`.
///
/// # Safety
/// As the C function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cfree(pointer: *mut c_void) {
    // SAFETY: the caller's contract.
    unsafe { __libc_free(pointer) }
}

/// glibc's `memalign`.
#[unsafe(no_mangle)]
pub extern "C" fn __libc_memalign(align: usize, size: usize) -> *mut c_void {
    allocate_rounded(align, size)
}

/// glibc's `posix_memalign`.
///
/// # Safety
/// As the C function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn __posix_memalign(
    place: *mut *mut c_void,
    align: usize,
    size: usize,
) -> c_int {
    // SAFETY: the caller's contract.
    unsafe { allocate_to(place, align, size) }
}

/// glibc's `valloc`.
#[unsafe(no_mangle)]
pub extern "C" fn __libc_valloc(size: usize) -> *mut c_void {
    allocate_aligned(system_page_bytes(), size)
}

/// glibc's `pvalloc`.
#[unsafe(no_mangle)]
pub extern "C" fn __libc_pvalloc(size: usize) -> *mut c_void {
    match whole_pages(size) {
        Some(size) => allocate_aligned(system_page_bytes(), size),
        None => fail(libc::ENOMEM),
    }
}

// ---- libraries that would keep to themselves -----------------------------------------------

type DlOpen = unsafe extern "C" fn(*const c_char, c_int) -> *mut c_void;

/// Flags of `dlopen` that are not passed on.
static DROPPED_FLAGS: AtomicU32 = AtomicU32::new(libc::RTLD_DEEPBIND as u32);

/// A `DlOpen`: the C library's, once it was looked up.
static NEXT_DLOPEN: AtomicPtr<c_void> = AtomicPtr::new(null_mut());

#[cold]
#[inline(never)]
fn find_dlopen() -> *mut c_void {
    // SAFETY: a text.
    let next = unsafe { libc::dlsym(libc::RTLD_NEXT, c"dlopen".as_ptr()) };
    if next.is_null() {
        fatal::system_call("dlsym", libc::ENOSYS);
    }
    if is_set(c"RQMALLOC_PRELOAD_DEEPBIND") {
        DROPPED_FLAGS.store(0, Ordering::Relaxed);
    }
    NEXT_DLOPEN.store(next, Ordering::Relaxed);
    next
}

/// `dlopen` without `RTLD_DEEPBIND`. With it a library prefers the C library's `malloc` to the
/// program's: blocks change hands between two allocators, and the program crashes, as PHP does with
/// its own extensions under other preloaded allocators. With `RQMALLOC_PRELOAD_DEEPBIND=1` in the
/// environment the flag is kept, for programs whose libraries must prefer their own symbols and
/// keep their blocks to themselves.
///
/// The last thing it does is a jump: the loader looks for libraries by who called `dlopen`.
///
/// # Safety
/// As the C function.
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
