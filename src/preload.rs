//! The C allocation functions, for a library that `LD_PRELOAD` puts before any program.
//!
//! `malloc` and its kin hand out persistent blocks; with `RQMALLOC_PRELOAD_REQUESTS=1` in the environment
//! those of a thread that is inside a request belong to it. With `RQMALLOC_STATS=1` a line of figures is
//! printed at exit.
//!
//! A program that defines `malloc` itself is left alone: the linker prefers its functions to these, and
//! those of these that it has not defined pass on to the library that comes next.

use crate::bin::Kind;
use crate::block::NONE;
use crate::family::{self, Family, checked_size};
use crate::fatal;
use crate::global::{PAYLOAD_ALIGN, pointer};
use crate::report::stats;
use crate::sync::{AtomicBool, AtomicPtr, AtomicU8, Ordering};
use crate::thread::{self, slow};
use crate::trace::Site;
use core::ffi::{CStr, c_char, c_int, c_void};
use core::fmt::Write;
use core::ptr::null_mut;

/// What `valloc` and `pvalloc` align to.
const SYSTEM_PAGE_BYTES: usize = 4096;

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

// ---- who is in charge ----------------------------------------------------------------------------

const UNKNOWN: u8 = 0;
const OURS: u8 = 1;
const THEIRS: u8 = 2;

/// Whether the program's `malloc` is the one here.
static IN_CHARGE: AtomicU8 = AtomicU8::new(UNKNOWN);

#[inline(always)]
fn is_in_charge() -> bool {
    match IN_CHARGE.load(Ordering::Relaxed) {
        OURS => true,
        THEIRS => false,
        _ => find_who_is_in_charge(),
    }
}

/// Asks whoever defines `malloc` for a block. (Its address does not tell: that of a function whose address
/// a program takes is a place in the program.)
#[cold]
fn find_who_is_in_charge() -> bool {
    // SAFETY: functions of these names have these types.
    let is_ours = unsafe {
        let find = |name: &CStr| libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr());
        let (malloc, free) = (find(c"malloc"), find(c"free"));
        if malloc.is_null() || free.is_null() {
            return true;
        }
        let malloc =
            core::mem::transmute::<*mut c_void, extern "C" fn(usize) -> *mut c_void>(malloc);
        let free = core::mem::transmute::<*mut c_void, extern "C" fn(*mut c_void)>(free);
        let probe = malloc(1);
        let is_ours = probe.is_null() || family::is_ours(probe.cast());
        free(probe);
        is_ours
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

// ---- allocation ----------------------------------------------------------------------------------

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
    if !is_in_charge() {
        return pass_on!("realloc", fn(*mut c_void, usize) -> *mut c_void, pointer, size);
    }
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
    if !is_in_charge() {
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
        Ok(size) => unsafe { realloc(pointer, size) },
        Err(_) => fail(libc::ENOMEM),
    }
}

/// `memalign`. As in glibc, an alignment is rounded up to a power of two.
#[unsafe(no_mangle)]
pub extern "C" fn memalign(align: usize, size: usize) -> *mut c_void {
    if !is_in_charge() {
        return pass_on!("memalign", fn(usize, usize) -> *mut c_void, align, size);
    }
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
    if !align.is_power_of_two() || align % size_of::<*mut c_void>() != 0 {
        return libc::EINVAL;
    }
    // SAFETY: the place of errno is this thread's; this function must not change it.
    let errno = unsafe { *libc::__errno_location() };
    let block = allocate_aligned(align, size);
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = errno };
    if block.is_null() {
        return libc::ENOMEM;
    }
    // SAFETY: the caller's contract.
    unsafe { place.write(block) };
    0
}

/// `valloc`: a block at a page.
#[unsafe(no_mangle)]
pub extern "C" fn valloc(size: usize) -> *mut c_void {
    memalign(SYSTEM_PAGE_BYTES, size)
}

/// `pvalloc`: whole pages.
#[unsafe(no_mangle)]
pub extern "C" fn pvalloc(size: usize) -> *mut c_void {
    match size.max(1).checked_next_multiple_of(SYSTEM_PAGE_BYTES) {
        Some(size) => memalign(SYSTEM_PAGE_BYTES, size),
        None => fail(libc::ENOMEM),
    }
}

/// `malloc_usable_size`: bytes that may be used of a block.
///
/// # Safety
/// As the C function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn malloc_usable_size(pointer: *mut c_void) -> usize {
    if !is_in_charge() {
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

/// `mallinfo2`, as far as its figures have a meaning here: what is mapped, in use and free.
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
    info
}

// ---- libraries that would keep to themselves -----------------------------------------------------

type DlOpen = unsafe extern "C" fn(*const c_char, c_int) -> *mut c_void;

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
    NEXT_DLOPEN.store(next, Ordering::Relaxed);
    next
}

/// `dlopen` without `RTLD_DEEPBIND`. With it a library prefers the C library's `malloc` to the program's: blocks
/// change hands between two allocators, and the program crashes, as PHP does with its own extensions under other
/// preloaded allocators.
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
        next(name, flags & !libc::RTLD_DEEPBIND)
    }
}
