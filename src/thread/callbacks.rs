//! Callbacks that run before a request's memory goes, or that are told what became of it, and how
//! user code is called: with the limit suspended, out of reach of bailouts, and with panics
//! contained.

use super::cancel::without_cancellation;
use super::entries::EntryName;
use super::life::current_or_start;
use super::{EntryKind, Thread, current};
use crate::blocks::memory::Raw;
use crate::lockfree::header::Block;
use crate::lockfree::stack::Stack;
use crate::lockfree::stray::Chain;
use crate::request::control::Control;
use crate::request::lane::Lane;
use crate::request::report::Report;
use core::alloc::Layout;
use core::panic::AssertUnwindSafe;
use core::ptr::with_exposed_provenance_mut;
use std::boxed::Box;

/// A callback on its request's list. The first word is the list's link.
#[repr(C)]
struct Node {
    next: usize,
    /// Frees the node and calls its closure, with the report if there is one yet.
    run: unsafe fn(*mut Node, Option<&Report>),
}

/// A node with its closure.
#[repr(C)]
struct Callback<F> {
    node: Node,
    call: F,
}

/// # Safety
/// `node` is the start of a `Callback<F>` that `add_callback` made, and the caller owns it.
unsafe fn run<F: FnOnce(Option<&Report>)>(node: *mut Node, report: Option<&Report>) {
    // SAFETY: the caller's contract.
    let callback = unsafe { Box::from_raw(node.cast::<Callback<F>>()) };
    let Callback { node: _, call } = *callback;
    call(report);
}

/// Registers a callback to run inside the request before its memory goes, last added first. The
/// caller is inside the request or has a handle, so the list is open. `Err`: no memory for this
/// many bytes.
pub fn add_callback<F: FnOnce() + Send + 'static>(control: &Control, call: F) -> Result<(), usize> {
    add(&control.on_end, move |_| call())
}

/// Registers a callback to be told what became of the request, as `add_callback` does.
pub fn add_on_close<F: FnOnce(&Report) + Send + 'static>(
    control: &Control,
    call: F,
) -> Result<(), usize> {
    add(&control.on_close, move |report| {
        report.map(call);
    })
}

fn add<F: FnOnce(Option<&Report>) + Send>(list: &Stack, call: F) -> Result<(), usize> {
    let layout = Layout::new::<Callback<F>>();
    // SAFETY: the layout contains a node, so its size is not zero.
    let place = in_persistent(|| unsafe { std::alloc::alloc(layout) }).cast::<Callback<F>>();
    if place.is_null() {
        return Err(layout.size());
    }
    let callback = Callback { node: Node { next: 0, run: run::<F> }, call };
    // SAFETY: fresh memory of this layout.
    unsafe { place.write(callback) };
    let node = place.expose_provenance();
    list.push(&Raw, node, node);
    Ok(())
}

/// Runs the callbacks inside the request, those that they add too. The caller has the
/// only handle, and still has it afterwards. A panic ends the callback it comes from.
#[cold]
pub fn run_callbacks(control: &'static Control) {
    let thread = current_or_start();
    let name = thread.and_then(|thread| thread.enter(control, EntryKind::Guard));
    without_limit(thread, || {
        loop {
            let mut has_run = false;
            for node in control.on_end.drain().blocks(&Raw) {
                has_run = true;
                run_node(node, None);
            }
            if !has_run {
                break;
            }
        }
    });
    if let (Some(thread), Some(name)) = (thread, name) {
        // The handle goes back to the caller.
        thread.leave_keeping_handle(name);
    }
}

/// Runs a callback that is off its list.
fn run_node(node: Block, report: Option<&Report>) {
    let node = with_exposed_provenance_mut::<Node>(node);
    // SAFETY: `add` made the node, and it is off the list.
    let call = || unsafe { ((*node).run)(node, report) };
    call_contained(call);
}

/// Tells callbacks that are off their list what became of their request.
#[cold]
pub fn run_on_close(callbacks: Chain, report: &Report) {
    outside(|| callbacks.blocks(&Raw).for_each(|node| run_node(node, Some(report))));
}

/// Runs what calls user code outside of any request; it must not unwind.
pub fn outside(f: impl FnOnce()) {
    in_persistent(|| {
        without_limit(current(), || match current() {
            Some(thread) => thread.outside(f),
            None => f(),
        });
    });
}

/// How many panics in a row are caught while panic payloads are dropped.
const MAX_PAYLOADS: usize = 16;

/// Calls user code. A panic ends it and goes no further; neither does one from dropping its
/// payload.
pub fn call_contained(call: impl FnOnce()) {
    let mut result = std::panic::catch_unwind(AssertUnwindSafe(call));
    for _ in 0..MAX_PAYLOADS {
        let Err(payload) = result else { return };
        result = std::panic::catch_unwind(AssertUnwindSafe(|| drop(payload)));
    }
    // This could go on forever.
    core::mem::forget(result);
}

/// Runs `f` with the memory limit of the thread's request suspended, and out of reach of
/// cancellation and of bailouts to its callers: there are Rust frames in between.
pub fn without_limit<R>(thread: Option<&'static Thread>, f: impl FnOnce() -> R) -> R {
    let _suspended = thread.map(Suspended::new);
    without_cancellation(f)
}

/// Until it is dropped, the limit of the thread's request is suspended and no bailout passes.
struct Suspended {
    thread: &'static Thread,
    lane: Option<&'static Lane>,
    was_suspended: bool,
    /// The suspension around this one.
    suspension: u64,
    catching_count: usize,
}

impl Suspended {
    fn new(thread: &'static Thread) -> Self {
        let lane = thread.active_lane().map(|(_, lane)| lane);
        let suspension = thread.last_suspension.get() + 1;
        thread.last_suspension.set(suspension);
        Self {
            thread,
            lane,
            was_suspended: lane.is_some_and(|lane| lane.limit_is_suspended.replace(true)),
            suspension: thread.suspension.replace(suspension),
            catching_count: thread.catching_count.replace(0),
        }
    }
}

impl Drop for Suspended {
    fn drop(&mut self) {
        self.thread.catching_count.set(self.catching_count);
        self.thread.suspension.set(self.suspension);
        if let Some(lane) = self.lane {
            lane.limit_is_suspended.set(self.was_suspended);
        }
    }
}

/// An entry into the persistent lifetime, left on drop.
struct InPersistent {
    thread: &'static Thread,
    name: EntryName,
}

impl InPersistent {
    fn new() -> Option<Self> {
        let thread = current_or_start()?;
        let name = thread.enter_persistent(EntryKind::Persistent)?;
        Some(Self { thread, name })
    }
}

impl Drop for InPersistent {
    fn drop(&mut self) {
        // Such an entry has no handle.
        self.thread.leave_keeping_handle(self.name);
    }
}

/// Runs `f` inside the persistent lifetime, or where the thread is if there is no memory for the
/// entry.
pub fn in_persistent<R>(f: impl FnOnce() -> R) -> R {
    let _inside = InPersistent::new();
    f()
}
