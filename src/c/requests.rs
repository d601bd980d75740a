//! Requests: how C begins and ends them, and leaves them for the persistent lifetime.

use crate::api::bailout::Bailout;
use crate::api::hooks;
use crate::base::fatal;
use crate::blocks::request_name::RequestName;
use crate::c::bailouts::{fail, needed_thread, text};
use crate::c::tries::stack_here;
use crate::request::control::{Control, LeakPolicy, Opening};
use crate::request::finish::Survivors;
use crate::request::report::{Outcome, Report};
use crate::thread::callbacks::add_callback;
use crate::thread::{self, EntryKind};
use core::ffi::{c_char, c_int, c_void};

/// `rq_options`.
#[repr(C)]
pub struct Options {
    name: *const c_char,
    memory_limit: usize,
    reserve: usize,
    report_leaks: bool,
    report_leaks_after_bailout: bool,
    trace_leaks: bool,
    soft_limit: usize,
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
    span_bytes: usize,
    reusable_bytes: usize,
    still_open: bool,
    outcome: c_int,
    limit_bytes: usize,
    elapsed_milliseconds: u64,
}

/// Begins a request.
#[unsafe(no_mangle)]
pub extern "C" fn rq_begin_request() -> u64 {
    begin(&Opening::default(), stack_here())
}

/// Begins a request with options.
///
/// # Safety
/// `options` is null or points to options with a name that is null or a C string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rq_begin_request_with(options: *const Options) -> u64 {
    // SAFETY: the caller's contract.
    let Some(options) = (unsafe { options.as_ref() }) else { return rq_begin_request() };
    // SAFETY: as above.
    let name = unsafe { text(options.name) };
    let opening = Opening {
        name: RequestName::new(name),
        limit_bytes: (options.memory_limit != 0).then_some(options.memory_limit),
        soft_limit_bytes: (options.soft_limit != 0).then_some(options.soft_limit),
        reserve_bytes: (options.reserve != 0).then_some(options.reserve),
        leaks: LeakPolicy {
            reported: options.report_leaks
                || options.report_leaks_after_bailout
                || options.trace_leaks,
            reported_after_bailout: options.report_leaks_after_bailout,
            traced: options.trace_leaks,
        },
        ..Opening::default()
    };
    begin(&opening, stack_here())
}

/// Not inlined: its stack frame is larger than `rq_begin_request` may have.
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
/// As for [`end_request`](crate::end_request); `report` is null or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rq_end_request(report: *mut CReport) {
    // SAFETY: the caller's contract.
    unsafe { finish(Survivors::None, report, "rq_end_request") }
}

/// Closes this thread's innermost request.
///
/// # Safety
/// `report` is null or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rq_close_request(report: *mut CReport) {
    // SAFETY: the caller's contract.
    unsafe { finish(Survivors::Live, report, "rq_close_request") }
}

/// Leaves this thread's innermost request and writes the report to `place`.
///
/// # Safety
/// `place` is null or can be written; with [`Survivors::None`], as [`rq_end_request`].
unsafe fn finish(survivors: Survivors, place: *mut CReport, call: &str) {
    let Some(control) = hooks::leave() else { fatal::no_request(call) };
    let report = hooks::finish(control, survivors);
    let Report {
        id,
        peak_bytes,
        freed_blocks,
        freed_bytes,
        surviving_blocks,
        surviving_bytes,
        span_bytes,
        reusable_bytes,
        still_open,
        outcome,
        limit_bytes,
        elapsed,
        ..
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
                span_bytes,
                reusable_bytes,
                still_open,
                outcome: match outcome {
                    Outcome::Ended => 0,
                    Outcome::Closed => 1,
                    Outcome::OverLimit => 2,
                    Outcome::BailedOut => 3,
                    Outcome::Panicked => 4,
                    Outcome::Open => 5,
                },
                limit_bytes: limit_bytes.unwrap_or(0),
                elapsed_milliseconds: elapsed.map_or(0, |elapsed| elapsed.as_millis() as u64),
            });
        }
    }
}

/// Returns the number of this thread's request; 0 without one.
#[unsafe(no_mangle)]
pub extern "C" fn rq_current_request() -> u64 {
    thread::current_control().map_or(0, |control| control.request_id().get())
}

/// Registers a function to be called before the request's memory is freed.
///
/// # Safety
/// The function can be called with the argument, once, on the thread that finishes the request.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rq_on_end(
    callback: unsafe extern "C" fn(*mut c_void),
    argument: *mut c_void,
) {
    struct Argument(*mut c_void);
    // SAFETY: the caller's contract lets the finishing thread have it.
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

/// Makes what this thread allocates from here on persistent.
#[unsafe(no_mangle)]
pub extern "C" fn rq_persistent_on() {
    if needed_thread("rq_persistent_on").enter_persistent(EntryKind::PersistentHook).is_none() {
        fail(Bailout::OutOfMemory(0), stack_here());
    }
}

/// Ends `rq_persistent_on`.
#[unsafe(no_mangle)]
pub extern "C" fn rq_persistent_off() {
    let thread = needed_thread("rq_persistent_off");
    match thread.innermost(EntryKind::PersistentHook) {
        Some(name) => thread.leave(name),
        None => fatal::not_persistent(),
    }
}
