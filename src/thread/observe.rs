//! Who is told of every request: observers, which are there for the life of the process.

use super::callbacks::{call_contained, outside};
use super::current;
use crate::base::sync::{AtomicPtr, AtomicU64, Ordering};
use crate::lockfree::grow_list::{GrowList, Link, Linked};
use crate::request::control::Control;
use crate::request::info::RequestInfo;
use crate::request::limit::LimitExceeded;
use crate::request::report::Report;
use std::boxed::Box;

/// Is told of every request of the process: see [`set_observer`](crate::set_observer()).
///
/// Calls come from the thread that opens or closes the request, outside of it, without a memory
/// limit; a panic in one is printed and goes no further. What an observer opens or closes during a
/// call is not told. A call for each event of each request should take microseconds at most.
pub trait Observer: Send + Sync {
    /// A request was opened.
    fn opened(&self, request: &RequestInfo) {
        let _ = request;
    }

    /// A request was found to be marked: it is at its soft limit, within the reserve of its memory
    /// limit, or was chosen at the limit of the process. Told once a request, by the first
    /// [`check`](crate::check), poll of a scope or [`catch`](crate::Request::catch) that finds it,
    /// else before `closed`.
    fn marked(&self, request: &RequestInfo, limit: &LimitExceeded) {
        let _ = (request, limit);
    }

    /// A request is over, wherever its last handle went. `request` says what it used before.
    fn closed(&self, request: &RequestInfo, report: &Report) {
        let _ = (request, report);
    }
}

/// An observer in the list of all.
struct Watch {
    next: Link<Watch>,
    observer: Box<dyn Observer>,
}

impl Linked for Watch {
    fn link(&self) -> &Link<Self> {
        &self.next
    }
}

static WATCHES: GrowList<Watch> = GrowList::new();

/// Adds an observer for good.
pub fn add(observer: Box<dyn Observer>) {
    let watch = Watch { next: Link(AtomicPtr::new(core::ptr::null_mut())), observer };
    // SAFETY: whole, on no list, and never freed.
    unsafe { WATCHES.push(Box::into_raw(Box::new(watch))) };
}

/// Whether there is an observer.
#[inline]
pub fn is_observed() -> bool {
    WATCHES.all().next().is_some()
}

#[cold]
fn tell(call: impl Fn(&dyn Observer)) {
    if is_telling() {
        return;
    }
    let set_telling = |is_telling| match current() {
        Some(thread) => thread.is_observing.set(is_telling),
        None => set_telling_late(is_telling),
    };
    set_telling(true);
    outside(|| {
        WATCHES.all().for_each(|watch| call_contained(|| call(&*watch.observer)));
    });
    set_telling(false);
}

/// Whether this thread is telling something: what an observer does is not told.
fn is_telling() -> bool {
    match current() {
        Some(thread) => thread.is_observing.get(),
        None => TELLING_LATE.iter().any(|place| place.load(Ordering::Relaxed) == this_thread()),
    }
}

/// The threads that have exited and are telling something. One that finds no place tells its
/// observers of what they do themselves, too.
static TELLING_LATE: [AtomicU64; 64] = [const { AtomicU64::new(0) }; 64];

fn this_thread() -> u64 {
    // SAFETY: always callable.
    unsafe { libc::pthread_self() as u64 }
}

#[cold]
fn set_telling_late(is_telling: bool) {
    let (from, to) = if is_telling { (0, this_thread()) } else { (this_thread(), 0) };
    let _ = TELLING_LATE.iter().find(|place| {
        place.compare_exchange(from, to, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    });
}

/// Tells that a request was opened.
#[cold]
pub fn tell_opened(control: &Control) {
    let info = RequestInfo::of_new(control);
    tell(|observer| observer.opened(&info));
}

/// Tells that a request is over.
#[cold]
pub fn tell_closed(info: &RequestInfo, report: &Report) {
    tell(|observer| observer.closed(info, report));
}

/// Returns whether and why a request is marked or was refused memory, and tells of the mark if it
/// was not told yet.
#[inline]
pub fn limit_exceeded(control: &Control) -> Option<LimitExceeded> {
    let limit = LimitExceeded::of(control)?;
    let is_new = || control.is_to_be_given_up() && !is_telling() && control.tells_mark();
    if is_observed() && is_new() {
        let info = RequestInfo::of(control);
        tell(|observer| observer.marked(&info, &limit));
    }
    Some(limit)
}
