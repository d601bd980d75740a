//! How a request is finished: what was asked to run before its memory goes, what it never freed, and
//! then its memory.

use super::cancel::without_cancellation;
#[cfg(feature = "capi")]
use super::tries::TryFrame;
use super::{EntryKind, FINISHED_WITHOUT_THREAD, HEAP, Inside, Thread, current, current_or_start};
use crate::base::fatal;
use crate::base::sync::{Ordering, wait_for};
use crate::base::system_call::write_to_standard_error;
use crate::blocks::memory::Raw;
use crate::request::control::Control;
use crate::request::finish::{Outcome, Survivors};
use crate::request::lane::Lane;
use crate::request::leaks;
use core::alloc::Layout;
use core::panic::AssertUnwindSafe;
use core::ptr::with_exposed_provenance_mut;
use std::boxed::Box;

/// A callback on its request's list. The first word is the list's.
#[repr(C)]
struct Node {
    next: usize,
    /// Frees the node and calls what it has.
    run: unsafe fn(*mut Node),
}

/// A node with its closure.
#[repr(C)]
struct Callback<F> {
    node: Node,
    call: F,
}

/// # Safety
/// `node` is the first part of a `Callback<F>` that `add_callback` made, and nobody else's.
unsafe fn run<F: FnOnce()>(node: *mut Node) {
    // SAFETY: the caller's contract.
    let callback = unsafe { Box::from_raw(node.cast::<Callback<F>>()) };
    let Callback { node: _, call } = *callback;
    call();
}

/// Has something called inside the request before its memory goes: the last added first. The caller is
/// inside the request or has a handle, so the list is open. `Err`: no memory, for so many bytes.
pub fn add_callback<F: FnOnce() + Send + 'static>(control: &Control, call: F) -> Result<(), usize> {
    let layout = Layout::new::<Callback<F>>();
    // SAFETY: a node has a size.
    let place = in_persistent(|| unsafe { std::alloc::alloc(layout) }).cast::<Callback<F>>();
    if place.is_null() {
        return Err(layout.size());
    }
    let callback = Callback { node: Node { next: 0, run: run::<F> }, call };
    // SAFETY: fresh memory for it.
    unsafe { place.write(callback) };
    let node = place.expose_provenance();
    // The list is never closed.
    let _ = control.on_end.push(&Raw, node, node);
    Ok(())
}

/// Runs `f` with persistent allocations, as far as the thread has room to say so.
pub fn in_persistent<R>(f: impl FnOnce() -> R) -> R {
    let _inside = current_or_start()
        .and_then(|thread| thread.enter_persistent(EntryKind::Persistent))
        .map(Inside);
    f()
}

/// Drops a handle; the last one closes the request.
pub fn drop_handle(control: &'static Control) {
    while control.handles.drop_one() {
        if control.on_end.is_empty() {
            finish(control, Survivors::Live);
            return;
        }
        run_callbacks(control);
    }
}

/// Drops the caller's handle if it is the only one, after the callbacks have run: the request is the
/// caller's to finish. `false`: others are alive, and the handle is still the caller's.
pub fn drop_only_handle(control: &'static Control) -> bool {
    while control.handles.drop_if_only() {
        if control.on_end.is_empty() {
            return true;
        }
        run_callbacks(control);
    }
    false
}

/// Runs the callbacks inside the request, those that they add too. The caller has dropped the last
/// handle; it has one again afterwards. A panic ends the callback it comes from.
#[cold]
fn run_callbacks(control: &'static Control) {
    control.handles.reopen();
    let thread = current_or_start();
    let name = thread.and_then(|thread| thread.enter(control, EntryKind::Guard));
    without_limit(thread, || {
        loop {
            let mut has_run = false;
            for node in control.on_end.drain().blocks(&Raw) {
                has_run = true;
                let node = with_exposed_provenance_mut::<Node>(node);
                // SAFETY: `add_callback` made the node, and it is off the list.
                let call = || unsafe { ((*node).run)(node) };
                call_contained(call);
            }
            if !has_run {
                break;
            }
        }
    });
    if let (Some(thread), Some(name)) = (thread, name) {
        // The handle is the caller's again.
        thread.leave_keeping_handle(name);
    }
}

/// Panics out of panics' payloads that are dropped, one after the other.
const MAX_PAYLOADS: usize = 16;

/// Calls what the user gave. A panic ends it and goes no further; nor does one of the payload's drop.
fn call_contained(call: impl FnOnce()) {
    let mut result = std::panic::catch_unwind(AssertUnwindSafe(call));
    for _ in 0..MAX_PAYLOADS {
        let Err(payload) = result else { return };
        result = std::panic::catch_unwind(AssertUnwindSafe(|| drop(payload)));
    }
    // This might never end.
    core::mem::forget(result);
}

/// Runs `f` with the memory limit of the thread's request suspended, and out of reach of bailouts
/// to whoever called and of cancellation: Rust frames lie between.
pub fn without_limit<R>(thread: Option<&'static Thread>, f: impl FnOnce() -> R) -> R {
    let _suspended = thread.map(Suspended::new);
    without_cancellation(f)
}

/// A thread whose request's limit is suspended and that no bailout leaves, until it is dropped.
struct Suspended {
    thread: &'static Thread,
    lane: Option<&'static Lane>,
    was_suspended: bool,
    #[cfg(feature = "capi")]
    tries: (*mut TryFrame, usize),
    catching_count: usize,
}

impl Suspended {
    fn new(thread: &'static Thread) -> Self {
        let lane = thread.active_lane().map(|(_, lane)| lane);
        Self {
            thread,
            lane,
            was_suspended: lane.is_some_and(|lane| lane.limit_is_suspended.replace(true)),
            #[cfg(feature = "capi")]
            tries: thread.tries.hide(),
            catching_count: thread.catching_count.replace(0),
        }
    }
}

impl Drop for Suspended {
    fn drop(&mut self) {
        self.thread.catching_count.set(self.catching_count);
        #[cfg(feature = "capi")]
        self.thread.tries.show(self.tries);
        if let Some(lane) = self.lane {
            lane.limit_is_suspended.set(self.was_suspended);
        }
    }
}

/// Lists on standard error what the request never freed, if its policy says so for such an end.
#[cold]
fn report_leaks(control: &Control) {
    let policy = control.leaks.get();
    let is_clean = || !control.bailed_out.load(Ordering::Relaxed) && !std::thread::panicking();
    if !(policy.reported_after_bailout || is_clean()) {
        return;
    }
    in_persistent(|| match leaks::collect(control, None, &HEAP) {
        Ok(leaks) if leaks.blocks > 0 => {
            write_to_standard_error(std::format!("{leaks}\n").as_bytes());
        }
        Ok(_) => {}
        // No memory for more than a line.
        Err(leaks) => {
            let mut line = fatal::Line::EMPTY;
            let _ = core::fmt::Write::write_fmt(&mut line, format_args!("{leaks}"));
            line.print();
        }
    });
}

/// Finishes a request whose last handle the caller dropped, and pools its control block.
pub fn finish(control: &'static Control, survivors: Survivors) -> Outcome {
    if control.handles.try_own().is_none() {
        wait_for(|| control.handles.try_own());
    }
    if control.leaks.get().reported {
        report_leaks(control);
    }
    let outcome = HEAP.finish_request(control, survivors);
    let thread = current();
    match thread {
        Some(thread) => thread.finished_count.add(1),
        None => {
            FINISHED_WITHOUT_THREAD.fetch_add(1, Ordering::Relaxed);
        }
    }
    if outcome.is_over && !thread.is_some_and(|thread| thread.stash_control(control)) {
        HEAP.recycle(control);
    }
    outcome
}
