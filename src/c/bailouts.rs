//! Failure and bailout: `rq_try`, `rq_bailout`, and how a C function that cannot go on ends.
//!
//! Functions that may bail out jump over their own frames (`siglongjmp`), in which nothing has a
//! destructor to run by then. Each takes its own stack pointer, at most the size of an
//! `rq_try_frame` below its caller's, and passes it on: a frame below it is dead.

use crate::api::bailout::Bailout;
use crate::base::failure;
use crate::base::fatal;
use crate::base::line::{Line, valid_part};
use crate::base::sync::{AtomicBool, Ordering};
use crate::c::state::State;
use crate::c::tries::{TryFrame, stack_here};
use crate::lockfree::said::Said;
use crate::thread::callbacks::without_limit;
use crate::thread::life::current_or_start;
use crate::thread::{self, Thread};
use core::ffi::{CStr, c_char, c_int, c_void};
use core::ptr::with_exposed_provenance_mut;

unsafe extern "C" {
    fn siglongjmp(place: *mut c_void, value: c_int) -> !;
}

type ErrorHandler = extern "C" fn(*const c_char);

/// The address of an `ErrorHandler`; 0: there is none.
static ERROR_HANDLER: Said = Said::new();

/// Sets the error handler.
#[unsafe(no_mangle)]
pub extern "C" fn rq_set_error_handler(handler: Option<ErrorHandler>) {
    let address = |handler: ErrorHandler| (handler as *const c_void).expose_provenance();
    ERROR_HANDLER.say(handler.map_or(0, address) as u64);
}

fn tell_error_handler(thread: Option<&'static Thread>, line: &Line) {
    /// Whether a thread without memory for a state is running the handler.
    static IS_TELLING_WITHOUT_STATE: AtomicBool = AtomicBool::new(false);
    let handler = with_exposed_provenance_mut::<c_void>(ERROR_HANDLER.hear() as usize);
    if handler.is_null() {
        return;
    }
    // SAFETY: only `rq_set_error_handler` stores there, and it stores a handler.
    let handler = unsafe { core::mem::transmute::<*mut c_void, ErrorHandler>(handler) };
    let state = thread.and_then(State::of_or_make);
    // A handler that fails is not called about itself: that would never end.
    let set_telling = |is_telling| match state {
        Some(state) => state.is_telling.replace(is_telling),
        None if thread.is_some() => IS_TELLING_WITHOUT_STATE.swap(is_telling, Ordering::Relaxed),
        None => false,
    };
    if !set_telling(true) {
        without_limit(thread, || handler(line.as_ptr().cast()));
        set_telling(false);
    }
}

/// Jumps to the innermost `rq_try` that is still alive; returns if there is none.
fn jump(thread: Option<&'static Thread>, line: &Line, here: usize) {
    let Some((thread, state)) = thread.and_then(|t| State::of(t).map(|state| (t, state))) else {
        return;
    };
    let Some(frame) = state.tries.take_alive(thread.suspension.get(), here) else { return };
    if let Some(control) = thread.current_control() {
        control.bailed_out.store(true, Ordering::Relaxed);
    }
    // SAFETY: the frame is alive.
    thread.leave_after(unsafe { (*frame).entry });
    // Last: callbacks of requests closed on the way may have bailed out themselves.
    state.bailout_text.set(*line);
    // SAFETY: `sigsetjmp` filled the buffer in a function that has not returned; the frames from
    // here to there are this crate's, which have nothing to run, and those of C.
    unsafe { siglongjmp((&raw mut (*frame).place).cast(), 1) }
}

/// Ends a C function whose allocation failed. `here` is its stack pointer.
#[cold]
#[inline(never)]
pub fn fail(bailout: Bailout, here: usize) -> ! {
    let (thread, line) = (current_or_start(), bailout.line());
    tell_error_handler(thread, &line);
    jump(thread, &line, here);
    fatal::die_of(&line)
}

#[inline(always)]
pub fn or_fail(result: Result<*mut u8, Bailout>) -> *mut c_void {
    match result {
        Ok(block) => block.cast(),
        Err(bailout) => fail(bailout, stack_here()),
    }
}

/// Jumps to the innermost `rq_try`.
///
/// # Safety
/// `reason` is null or a C string; no frame on the way has destructors to run.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rq_bailout(reason: *const c_char) -> ! {
    // SAFETY: the caller's contract.
    unsafe { bail_out(reason, stack_here()) }
}

/// # Safety
/// As for `rq_bailout`.
#[cold]
#[inline(never)]
unsafe fn bail_out(reason: *const c_char, here: usize) -> ! {
    // SAFETY: the caller's contract.
    let line = failure::reason(unsafe { text(reason) });
    jump(current_or_start(), &line, here);
    fatal::no_try(line.as_str())
}

/// Returns the text of this thread's last bailout.
#[unsafe(no_mangle)]
pub extern "C" fn rq_bailout_reason() -> *const c_char {
    match thread::current().and_then(State::of) {
        // SAFETY: a state is never unmapped (M1), and only this thread changes its text.
        Some(state) => unsafe { (*state.bailout_text.as_ptr()).as_ptr().cast() },
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
    let state = State::of_or_make(thread).unwrap_or_else(|| out_of_memory(size_of::<State>()));
    let (entry, suspension) = (thread.last_entry(), thread.suspension.get());
    // SAFETY: the caller's contract.
    unsafe { state.tries.enter(frame, entry, suspension, stack_here()) }
}

/// Takes a frame off, which its function is about to leave.
///
/// # Safety
/// As for `rq_try_enter`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rq_try_leave(frame: *mut TryFrame) {
    if let Some(state) = thread::current().and_then(State::of) {
        // SAFETY: the caller's contract.
        unsafe { state.tries.leave(frame) }
    }
}

/// Returns this thread, for functions that mean nothing without it.
#[inline(always)]
pub fn needed_thread(call: &'static str) -> &'static Thread {
    match thread::current() {
        Some(thread) => thread,
        None => needed_thread_slow(call),
    }
}

#[cold]
#[inline(never)]
fn needed_thread_slow(call: &'static str) -> &'static Thread {
    match current_or_start() {
        Some(thread) => thread,
        None if thread::has_exited() => fatal::thread_has_exited(call),
        None => out_of_memory(size_of::<Thread>()),
    }
}

#[cold]
#[inline(never)]
fn out_of_memory(asked_bytes: usize) -> ! {
    fatal::die_of(&failure::out_of_memory(asked_bytes))
}

/// # Safety
/// `text` is null or a C string that lives for `'t`.
pub unsafe fn text<'t>(text: *const c_char) -> &'t str {
    if text.is_null() {
        return "";
    }
    // SAFETY: the caller's contract.
    valid_part(unsafe { CStr::from_ptr(text) }.to_bytes())
}
