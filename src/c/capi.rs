//! The C ABI: `include/rqmalloc.h` says what each function does.
//!
//! Functions that may bail out jump over their own frames (`siglongjmp`): nothing in them has a
//! destructor to run by then. Each takes its stack pointer itself, at most the size of an
//! `rq_try_frame` below its caller's, and hands it on: a frame below it is dead.

use crate::api::bailout::Bailout;
use crate::api::hooks;
use crate::api::report::Report;
use crate::base::fatal::{self, Line};
use crate::base::line::valid_part;
use crate::base::sync::{AtomicPtr, Ordering};
use crate::blocks::trace::Site;
use crate::c::family::{self, Family, checked_size};
use crate::c::zend;
use crate::request::control::{Control, LeakPolicy, Opening};
use crate::request::finish::Survivors;
use crate::thread::finish::{add_callback, without_limit};
use crate::thread::tries::{TryFrame, stack_here};
use crate::thread::{self, EntryKind, Thread};
use core::ffi::{CStr, c_char, c_int, c_uint, c_void};
use core::ptr::null_mut;

/// `rq_options`.
#[repr(C)]
pub struct Options {
    name: *const c_char,
    memory_limit: usize,
    reserve: usize,
    report_leaks: bool,
    report_leaks_after_bailout: bool,
    trace_leaks: bool,
}

/// `rq_report`.
#[repr(C)]
pub struct CReport {
    id: u64,
    peak_bytes: usize,
    freed_blocks: u64,
    freed_bytes: usize,
    surviving_blocks: u64,
    surviving_bytes: usize,
    pinned_bytes: usize,
    still_open: bool,
}

/// `rq_limit_error`.
#[repr(C)]
pub struct LimitError {
    limit_bytes: usize,
    in_use_bytes: usize,
    asked_bytes: usize,
}

unsafe extern "C" {
    fn siglongjmp(place: *mut c_void, value: c_int) -> !;
}

// ---- failure and bailout -----------------------------------------------------------------------

type ErrorHandler = extern "C" fn(*const c_char);

/// An `ErrorHandler`, or null.
static ERROR_HANDLER: AtomicPtr<c_void> = AtomicPtr::new(null_mut());

/// Sets the error handler.
#[unsafe(no_mangle)]
pub extern "C" fn rq_set_error_handler(handler: Option<ErrorHandler>) {
    let handler = handler.map_or(null_mut(), |handler| handler as *mut c_void);
    ERROR_HANDLER.store(handler, Ordering::Release);
}

fn tell_error_handler(thread: Option<&'static Thread>, line: &Line) {
    let handler = ERROR_HANDLER.load(Ordering::Acquire);
    if handler.is_null() {
        return;
    }
    // SAFETY: only `rq_set_error_handler` stores there, and it stores a handler.
    let handler = unsafe { core::mem::transmute::<*mut c_void, ErrorHandler>(handler) };
    // A handler that fails is not told of itself: that would never end.
    if thread.is_some_and(|thread| thread.is_telling.replace(true)) {
        return;
    }
    without_limit(thread, || handler(line.as_ptr().cast()));
    if let Some(thread) = thread {
        thread.is_telling.set(false);
    }
}

/// Goes back to the innermost `rq_try` that is still there, if there is one.
fn jump(thread: Option<&'static Thread>, line: &Line, here: usize) {
    let Some(thread) = thread else { return };
    let Some(frame) = thread.tries.take_alive(here) else { return };
    if let Some(control) = thread.current_control() {
        control.bailed_out.store(true, Ordering::Relaxed);
    }
    // SAFETY: the frame is alive.
    thread.leave_after(unsafe { (*frame).entry });
    // Last: callbacks of requests that were closed on the way may have bailed out themselves.
    thread.bailout_text.set(*line);
    // SAFETY: `sigsetjmp` filled the place, in a function that has not returned; the frames between here
    // and there are this crate's, which have nothing to run, and those of C.
    unsafe { siglongjmp((&raw mut (*frame).place).cast(), 1) }
}

/// An allocation failed, in a function of C's whose stack pointer this is.
#[cold]
#[inline(never)]
fn fail(bailout: Bailout, here: usize) -> ! {
    let (thread, line) = (thread::current_or_start(), bailout.line());
    tell_error_handler(thread, &line);
    jump(thread, &line, here);
    fatal::die_of(&line)
}

#[inline(always)]
fn or_fail(result: Result<*mut u8, Bailout>) -> *mut c_void {
    match result {
        Ok(block) => block.cast(),
        Err(bailout) => fail(bailout, stack_here()),
    }
}

/// Goes back to the innermost `rq_try`.
///
/// # Safety
/// `reason` is null or a text; no frame on the way has destructors to run.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rq_bailout(reason: *const c_char) -> ! {
    // SAFETY: the caller's contract.
    unsafe { bail_out(reason, stack_here()) }
}

/// # Safety
/// As `rq_bailout`.
#[cold]
#[inline(never)]
unsafe fn bail_out(reason: *const c_char, here: usize) -> ! {
    // SAFETY: the caller's contract.
    let line = fatal::reason(unsafe { text(reason) });
    jump(thread::current_or_start(), &line, here);
    fatal::no_try(line.as_str())
}

/// The text of this thread's last bailout.
#[unsafe(no_mangle)]
pub extern "C" fn rq_bailout_reason() -> *const c_char {
    match thread::current_or_start() {
        // SAFETY: a thread is type-stable, and only this thread changes its text.
        Some(thread) => unsafe { (*thread.bailout_text.as_ptr()).as_ptr().cast() },
        None => c"".as_ptr(),
    }
}

/// Makes a frame the innermost `rq_try`.
///
/// # Safety
/// The frame stays where it is until `rq_try_leave`; its `function` is set.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rq_try_enter(frame: *mut TryFrame) {
    let thread = needed_thread("rq_try");
    // SAFETY: the caller's contract.
    unsafe { thread.tries.enter(frame, thread.last_entry(), stack_here()) }
}

/// The function of a frame is about to leave it.
///
/// # Safety
/// As `rq_try_enter`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rq_try_leave(frame: *mut TryFrame) {
    if let Some(thread) = thread::current() {
        // SAFETY: the caller's contract.
        unsafe { thread.tries.leave(frame) }
    }
}

/// This thread, for functions that mean nothing without it.
#[inline(always)]
fn needed_thread(call: &'static str) -> &'static Thread {
    match thread::current() {
        Some(thread) => thread,
        None => needed_thread_slow(call),
    }
}

#[cold]
#[inline(never)]
fn needed_thread_slow(call: &'static str) -> &'static Thread {
    match thread::current_or_start() {
        Some(thread) => thread,
        None if thread::has_exited() => fatal::thread_has_exited(call),
        None => fatal::die_of(&fatal::out_of_memory(size_of::<Thread>())),
    }
}

/// # Safety
/// `text` is null or a text that outlives what it is used for.
unsafe fn text<'t>(text: *const c_char) -> &'t str {
    if text.is_null() {
        return "";
    }
    // SAFETY: the caller's contract.
    valid_part(unsafe { CStr::from_ptr(text) }.to_bytes())
}

// ---- requests ----------------------------------------------------------------------------------

/// Begins a request.
#[unsafe(no_mangle)]
pub extern "C" fn rq_begin_request() -> u64 {
    begin(&Opening::default(), stack_here())
}

/// Begins a request with options.
///
/// # Safety
/// `options` is null or points to options whose name lives as long as the request.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rq_begin_request_with(options: *const Options) -> u64 {
    // SAFETY: the caller's contract.
    let Some(options) = (unsafe { options.as_ref() }) else { return rq_begin_request() };
    // SAFETY: as above.
    let name = unsafe { text(options.name) };
    let opening = Opening {
        name: (!name.is_empty()).then_some(name),
        limit_bytes: (options.memory_limit != 0).then_some(options.memory_limit),
        reserve_bytes: (options.reserve != 0).then_some(options.reserve),
        leaks: LeakPolicy {
            reported: options.report_leaks
                || options.report_leaks_after_bailout
                || options.trace_leaks,
            reported_after_bailout: options.report_leaks_after_bailout,
            traced: options.trace_leaks,
        },
        hides_limit: false,
    };
    begin(&opening, stack_here())
}

/// Not inlined: its stack frame is larger than what `rq_begin_request` may have.
#[inline(never)]
fn begin(opening: &Opening, here: usize) -> u64 {
    match hooks::begin(opening) {
        Some(id) => id.get(),
        None => fail(Bailout::OutOfMemory(size_of::<Control>()), here),
    }
}

/// Ends this thread's innermost request.
///
/// # Safety
/// As [`end_request`](crate::end_request); `report` is null or can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rq_end_request(report: *mut CReport) {
    // SAFETY: the caller's contract.
    unsafe { leave(Survivors::Kept, report, "rq_end_request") }
}

/// Closes this thread's innermost request.
///
/// # Safety
/// `report` is null or can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rq_close_request(report: *mut CReport) {
    // SAFETY: the caller's contract.
    unsafe { leave(Survivors::Live, report, "rq_close_request") }
}

/// Leaves this thread's innermost request and writes the report where there is a place for it.
///
/// # Safety
/// `place` is null or can be written; with [`Survivors::Kept`], as [`rq_end_request`].
unsafe fn leave(survivors: Survivors, place: *mut CReport, call: &str) {
    let Some(report) = hooks::leave(survivors) else { fatal::no_request(call) };
    let Report {
        id,
        name: _,
        peak_bytes,
        freed_blocks,
        freed_bytes,
        surviving_blocks,
        surviving_bytes,
        pinned_bytes,
        still_open,
    } = report;
    if !place.is_null() {
        // SAFETY: the caller's contract.
        unsafe {
            place.write(CReport {
                id: id.get(),
                peak_bytes,
                freed_blocks,
                freed_bytes,
                surviving_blocks,
                surviving_bytes,
                pinned_bytes,
                still_open,
            });
        }
    }
}

/// The number of this thread's request.
#[unsafe(no_mangle)]
pub extern "C" fn rq_current_request() -> u64 {
    thread::current_control().map_or(0, Control::serial)
}

/// Has a function called before the request's memory goes.
///
/// # Safety
/// The function can be called with the argument, once, on the thread that finishes the request.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rq_on_end(
    callback: unsafe extern "C" fn(*mut c_void),
    argument: *mut c_void,
) {
    struct Argument(*mut c_void);
    // SAFETY: the caller's contract lets the finisher's thread have it.
    unsafe impl Send for Argument {}
    impl Argument {
        fn get(self) -> *mut c_void {
            self.0
        }
    }
    let Some(control) = thread::current_control() else { fatal::no_request("rq_on_end") };
    let argument = Argument(argument);
    // SAFETY: the caller's contract.
    let added = add_callback(control, move || unsafe { callback(argument.get()) });
    if let Err(asked) = added {
        fail(Bailout::OutOfMemory(asked), stack_here());
    }
}

/// What this thread allocates is persistent from here on.
#[unsafe(no_mangle)]
pub extern "C" fn rq_persistent_on() {
    if needed_thread("rq_persistent_on").enter_persistent(EntryKind::PersistentHook).is_none() {
        fail(Bailout::OutOfMemory(0), stack_here());
    }
}

/// The end of `rq_persistent_on`.
#[unsafe(no_mangle)]
pub extern "C" fn rq_persistent_off() {
    let thread = needed_thread("rq_persistent_off");
    match thread.innermost(EntryKind::PersistentHook) {
        Some(name) => thread.leave(name),
        None => fatal::not_persistent(),
    }
}

/// Decrees that a block outlives its request.
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

/// Frees a block of any family.
///
/// # Safety
/// `pointer` is null or a live block that nobody uses any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rq_free(pointer: *mut c_void) {
    // SAFETY: the caller's contract.
    unsafe { family::free(pointer.cast(), None) }
}

// ---- the families ------------------------------------------------------------------------------

#[inline(always)]
fn allocate(size: usize, family: Family, zeroed: bool, site: Site) -> *mut c_void {
    or_fail(family::allocate(size, family, zeroed, site))
}

#[inline(always)]
fn allocate_product(
    (count, size, offset): (usize, usize, usize),
    family: Family,
    zeroed: bool,
    site: Site,
) -> *mut c_void {
    let size = checked_size(count, size, offset);
    or_fail(size.and_then(|size| family::allocate(size, family, zeroed, site)))
}

/// # Safety
/// As `family::resize`.
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
/// `length` bytes of `text` can be read.
#[inline(always)]
unsafe fn duplicate(text: *const c_char, length: usize, family: Family, site: Site) -> *mut c_char {
    let copy = allocate_product((1, length, 1), family, false, site).cast::<c_char>();
    // SAFETY: the caller's contract; the copy is one byte longer.
    unsafe {
        copy.copy_from_nonoverlapping(text, length);
        copy.add(length).write(0);
    }
    copy
}

/// # Safety
/// `text` is a text.
unsafe fn length(text: *const c_char) -> usize {
    // SAFETY: the caller's contract.
    unsafe { CStr::from_ptr(text) }.count_bytes()
}

/// # Safety
/// `file` is null or a text that lives for ever.
unsafe fn site(file: *const c_char, line: c_uint) -> Site {
    if file.is_null() {
        return Site::NONE;
    }
    // SAFETY: the caller's contract.
    Site::new(unsafe { CStr::from_ptr(file) }.to_bytes(), line)
}

/// Declares an allocating function of the request's family, plain and with the place of the call.
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
        /// With the place of the call.
        ///
        /// # Safety
        /// Pointers are what `rqmalloc.h` says; the file's name lives for ever.
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
    |site| allocate(size, Family::Request, false, site)
);
with_site!(
    /// `safe_emalloc`.
    rq_safe_emalloc, rq_safe_emalloc_at, (count: usize, size: usize, offset: usize) -> *mut c_void,
    |site| allocate_product((count, size, offset), Family::Request, false, site)
);
with_site!(
    /// `ecalloc`.
    rq_ecalloc, rq_ecalloc_at, (count: usize, size: usize) -> *mut c_void,
    |site| allocate_product((count, size, 0), Family::Request, true, site)
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
    family::allocate(size, Family::Request, false, Site::NONE).map_or(null_mut(), <*mut u8>::cast)
}

/// `erealloc` that returns null instead of failing.
///
/// # Safety
/// `pointer` is null or a live block that nobody else uses.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rq_erealloc_or_null(pointer: *mut c_void, size: usize) -> *mut c_void {
    let family = Some(Family::Request);
    // SAFETY: the caller's contract.
    unsafe { family::resize(pointer.cast(), size, usize::MAX, family, Site::NONE) }
        .map_or(null_mut(), <*mut u8>::cast)
}

/// `efree`.
///
/// # Safety
/// `pointer` is null or a live block that nobody uses any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rq_efree(pointer: *mut c_void) {
    // SAFETY: the caller's contract.
    unsafe { family::free(pointer.cast(), Some(Family::Request)) }
}

/// `pemalloc`.
#[unsafe(no_mangle)]
pub extern "C" fn rq_pemalloc(size: usize, persistent: bool) -> *mut c_void {
    allocate(size, Family::of_flag(persistent), false, Site::NONE)
}

/// `safe_pemalloc`.
#[unsafe(no_mangle)]
pub extern "C" fn rq_safe_pemalloc(
    count: usize,
    size: usize,
    offset: usize,
    persistent: bool,
) -> *mut c_void {
    allocate_product((count, size, offset), Family::of_flag(persistent), false, Site::NONE)
}

/// `pecalloc`.
#[unsafe(no_mangle)]
pub extern "C" fn rq_pecalloc(count: usize, size: usize, persistent: bool) -> *mut c_void {
    allocate_product((count, size, 0), Family::of_flag(persistent), true, Site::NONE)
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
/// `pointer` is null or a live block that nobody uses any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rq_pefree(pointer: *mut c_void, persistent: bool) {
    // SAFETY: the caller's contract.
    unsafe { family::free(pointer.cast(), Some(Family::of_flag(persistent))) }
}

/// `pestrdup`.
///
/// # Safety
/// `text` is a text.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rq_pestrdup(text: *const c_char, persistent: bool) -> *mut c_char {
    // SAFETY: the caller's contract.
    unsafe { duplicate(text, length(text), Family::of_flag(persistent), Site::NONE) }
}

/// `pestrndup`.
///
/// # Safety
/// `length` bytes of `text` can be read.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rq_pestrndup(
    text: *const c_char,
    length: usize,
    persistent: bool,
) -> *mut c_char {
    // SAFETY: the caller's contract.
    unsafe { duplicate(text, length, Family::of_flag(persistent), Site::NONE) }
}

// ---- figures and the limit -----------------------------------------------------------------------

/// `zend_mem_block_size`.
///
/// # Safety
/// `pointer` is null or a live block.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rq_block_size(pointer: *const c_void) -> usize {
    // SAFETY: the caller's contract.
    unsafe { zend::block_size(pointer.cast()) }
}

/// `is_zend_ptr`.
#[unsafe(no_mangle)]
pub extern "C" fn rq_is_ours(pointer: *const c_void) -> bool {
    zend::is_ours(pointer.cast())
}

/// `zend_memory_usage`.
#[unsafe(no_mangle)]
pub extern "C" fn rq_memory_usage(real: bool) -> usize {
    zend::memory_usage(real)
}

/// `zend_memory_peak_usage`.
#[unsafe(no_mangle)]
pub extern "C" fn rq_memory_peak_usage(real: bool) -> usize {
    zend::memory_peak_usage(real)
}

/// `zend_memory_reset_peak_usage`.
#[unsafe(no_mangle)]
pub extern "C" fn rq_memory_reset_peak_usage() {
    zend::memory_reset_peak_usage();
}

/// `zend_set_memory_limit`.
#[unsafe(no_mangle)]
pub extern "C" fn rq_set_memory_limit(bytes: usize) -> bool {
    zend::set_memory_limit(bytes).is_ok()
}

/// `zend_mm_gc`.
#[unsafe(no_mangle)]
pub extern "C" fn rq_gc() -> usize {
    zend::gc()
}

/// Whether this thread's request is below its mark.
///
/// # Safety
/// `error` is null or can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rq_check(error: *mut LimitError) -> bool {
    let Err(limit) = crate::check() else { return true };
    if !error.is_null() {
        // SAFETY: the caller's contract.
        unsafe {
            error.write(LimitError {
                limit_bytes: limit.limit,
                in_use_bytes: limit.in_use,
                asked_bytes: limit.asked,
            });
        }
    }
    false
}
