//! Blocks: the families of `emalloc` and `pemalloc`.

use crate::api::bailout::Bailout;
use crate::blocks::trace::Site;
use crate::c::bailouts::or_fail;
use crate::c::family::{self, Family, checked_size};
use crate::c::state::{Failure, State};
use crate::thread;
use crate::thread::life::current_or_start;
use core::ffi::{CStr, c_char, c_uint, c_void};
use core::ptr::null_mut;

/// Makes a block outlive its request.
///
/// # Safety
/// `pointer` is null or a live block.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rq_persist(pointer: *mut c_void) {
    if !pointer.is_null() {
        // SAFETY: the caller's contract.
        unsafe { crate::persist(pointer.cast()) }
    }
}

/// Frees a block of either family.
///
/// # Safety
/// `pointer` is null or a live block that is no longer used.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rq_free(pointer: *mut c_void) {
    // SAFETY: the caller's contract.
    unsafe { family::free(pointer.cast(), None) }
}

#[inline(always)]
fn alloc(size: usize, family: Family, zeroed: bool, site: Site) -> *mut c_void {
    or_fail(family::alloc(size, family, zeroed, site))
}

#[inline(always)]
fn alloc_product(
    (count, size, offset): (usize, usize, usize),
    family: Family,
    zeroed: bool,
    site: Site,
) -> *mut c_void {
    let size = checked_size(count, size, offset);
    or_fail(size.and_then(|size| family::alloc(size, family, zeroed, site)))
}

/// # Safety
/// As for `family::resize`.
#[inline(always)]
unsafe fn resize(
    pointer: *mut c_void,
    size: Result<usize, Bailout>,
    copy_size: usize,
    family: Family,
    site: Site,
) -> *mut c_void {
    // SAFETY: the caller's contract.
    or_fail(size.and_then(|size| unsafe {
        family::resize(pointer.cast(), size, copy_size, Some(family), site)
    }))
}

/// # Safety
/// `length` bytes of `text` are readable.
#[inline(always)]
unsafe fn duplicate(text: *const c_char, length: usize, family: Family, site: Site) -> *mut c_char {
    let copy = alloc_product((1, length, 1), family, false, site).cast::<c_char>();
    // SAFETY: the caller's contract; the copy is one byte longer.
    unsafe {
        copy.copy_from_nonoverlapping(text, length);
        copy.add(length).write(0);
    }
    copy
}

/// # Safety
/// `text` is a C string.
unsafe fn length(text: *const c_char) -> usize {
    // SAFETY: the caller's contract.
    unsafe { CStr::from_ptr(text) }.count_bytes()
}

/// # Safety
/// `file` is null or a C string that lives forever.
unsafe fn site(file: *const c_char, line: c_uint) -> Site {
    if file.is_null() {
        return Site::NONE;
    }
    // SAFETY: the caller's contract.
    Site::new(unsafe { CStr::from_ptr(file) }.to_bytes(), line)
}

/// Declares an allocating function of the request's family twice: plain, and with the site of the
/// call.
macro_rules! with_site {
    ($(#[$meta:meta])* $plain:ident, $at:ident, ($($name:ident: $kind:ty),*) -> $result:ty,
     |$site:ident| $body:expr) => {
        $(#[$meta])*
        ///
        /// # Safety
        /// Pointers are what `rqmalloc.h` says.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $plain($($name: $kind),*) -> $result {
            let $site = Site::NONE;
            // SAFETY: the caller's contract.
            #[allow(unused_unsafe)]
            unsafe { $body }
        }

        $(#[$meta])*
        /// With the site of the call.
        ///
        /// # Safety
        /// Pointers are what `rqmalloc.h` says; the file's name lives forever.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $at($($name: $kind,)* file: *const c_char, line: c_uint) -> $result {
            // SAFETY: the caller's contract.
            unsafe {
                let $site = site(file, line);
                $body
            }
        }
    };
}

with_site!(
    /// `emalloc`.
    rq_emalloc, rq_emalloc_at, (size: usize) -> *mut c_void,
    |site| alloc(size, Family::Request, false, site)
);
with_site!(
    /// `safe_emalloc`.
    rq_safe_emalloc, rq_safe_emalloc_at, (count: usize, size: usize, offset: usize) -> *mut c_void,
    |site| alloc_product((count, size, offset), Family::Request, false, site)
);
with_site!(
    /// `ecalloc`.
    rq_ecalloc, rq_ecalloc_at, (count: usize, size: usize) -> *mut c_void,
    |site| alloc_product((count, size, 0), Family::Request, true, site)
);
with_site!(
    /// `erealloc`.
    rq_erealloc, rq_erealloc_at, (pointer: *mut c_void, size: usize) -> *mut c_void,
    |site| resize(pointer, Ok(size), usize::MAX, Family::Request, site)
);
with_site!(
    /// `erealloc2`.
    rq_erealloc2, rq_erealloc2_at,
    (pointer: *mut c_void, size: usize, copy_size: usize) -> *mut c_void,
    |site| resize(pointer, Ok(size), copy_size, Family::Request, site)
);
with_site!(
    /// `safe_erealloc`.
    rq_safe_erealloc, rq_safe_erealloc_at,
    (pointer: *mut c_void, count: usize, size: usize, offset: usize) -> *mut c_void,
    |site| resize(pointer, checked_size(count, size, offset), usize::MAX, Family::Request, site)
);
with_site!(
    /// `estrdup`.
    rq_estrdup, rq_estrdup_at, (text: *const c_char) -> *mut c_char,
    |site| duplicate(text, length(text), Family::Request, site)
);
with_site!(
    /// `estrndup`.
    rq_estrndup, rq_estrndup_at, (text: *const c_char, length: usize) -> *mut c_char,
    |site| duplicate(text, length, Family::Request, site)
);

/// `emalloc` that returns null instead of failing.
#[unsafe(no_mangle)]
pub extern "C" fn rq_emalloc_or_null(size: usize) -> *mut c_void {
    or_null(family::alloc(size, Family::Request, false, Site::NONE))
}

/// Returns null instead of failing, and notes why.
fn or_null(result: Result<*mut u8, Bailout>) -> *mut c_void {
    match result {
        Ok(block) => block.cast(),
        Err(bailout) => {
            let why = match bailout {
                Bailout::Limit(_) => Failure::Limit,
                _ => Failure::Memory,
            };
            let state = current_or_start().and_then(State::of_or_make);
            state.inspect(|state| state.failure.set(why));
            null_mut()
        }
    }
}

/// Why the last allocation of this thread failed that returned null.
#[unsafe(no_mangle)]
pub extern "C" fn rq_failure() -> Failure {
    thread::current().and_then(State::of).map_or(Failure::None, |state| state.failure.get())
}

/// `erealloc` that returns null instead of failing.
///
/// # Safety
/// `pointer` is null or a live block that nobody else uses.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rq_erealloc_or_null(pointer: *mut c_void, size: usize) -> *mut c_void {
    let family = Some(Family::Request);
    // SAFETY: the caller's contract.
    or_null(unsafe { family::resize(pointer.cast(), size, usize::MAX, family, Site::NONE) })
}

/// `efree`.
///
/// # Safety
/// `pointer` is null or a live block that is no longer used.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rq_efree(pointer: *mut c_void) {
    // SAFETY: the caller's contract.
    unsafe { family::free(pointer.cast(), Some(Family::Request)) }
}

/// `pemalloc`.
#[unsafe(no_mangle)]
pub extern "C" fn rq_pemalloc(size: usize, persistent: bool) -> *mut c_void {
    alloc(size, Family::of_flag(persistent), false, Site::NONE)
}

/// `safe_pemalloc`.
#[unsafe(no_mangle)]
pub extern "C" fn rq_safe_pemalloc(
    count: usize,
    size: usize,
    offset: usize,
    persistent: bool,
) -> *mut c_void {
    alloc_product((count, size, offset), Family::of_flag(persistent), false, Site::NONE)
}

/// `pecalloc`.
#[unsafe(no_mangle)]
pub extern "C" fn rq_pecalloc(count: usize, size: usize, persistent: bool) -> *mut c_void {
    alloc_product((count, size, 0), Family::of_flag(persistent), true, Site::NONE)
}

/// `perealloc`.
///
/// # Safety
/// `pointer` is null or a live block that nobody else uses.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rq_perealloc(
    pointer: *mut c_void,
    size: usize,
    persistent: bool,
) -> *mut c_void {
    // SAFETY: the caller's contract.
    unsafe { resize(pointer, Ok(size), usize::MAX, Family::of_flag(persistent), Site::NONE) }
}

/// `safe_perealloc`.
///
/// # Safety
/// `pointer` is null or a live block that nobody else uses.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rq_safe_perealloc(
    pointer: *mut c_void,
    count: usize,
    size: usize,
    offset: usize,
    persistent: bool,
) -> *mut c_void {
    let (size, family) = (checked_size(count, size, offset), Family::of_flag(persistent));
    // SAFETY: the caller's contract.
    unsafe { resize(pointer, size, usize::MAX, family, Site::NONE) }
}

/// `pefree`.
///
/// # Safety
/// `pointer` is null or a live block that is no longer used.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rq_pefree(pointer: *mut c_void, persistent: bool) {
    // SAFETY: the caller's contract.
    unsafe { family::free(pointer.cast(), Some(Family::of_flag(persistent))) }
}

/// `pestrdup`.
///
/// # Safety
/// `text` is a C string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rq_pestrdup(text: *const c_char, persistent: bool) -> *mut c_char {
    // SAFETY: the caller's contract.
    unsafe { duplicate(text, length(text), Family::of_flag(persistent), Site::NONE) }
}

/// `pestrndup`.
///
/// # Safety
/// `length` bytes of `text` are readable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rq_pestrndup(
    text: *const c_char,
    length: usize,
    persistent: bool,
) -> *mut c_char {
    // SAFETY: the caller's contract.
    unsafe { duplicate(text, length, Family::of_flag(persistent), Site::NONE) }
}
