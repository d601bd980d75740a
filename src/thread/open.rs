//! How requests are opened, and how handles are added.

use super::life::{current_or_start, drop_handles_by};
use super::observe::{self, Observer, is_observed, tell_opened};
use super::requests::count_opened_without_thread;
use super::{HEAP, Thread, finish};
use crate::base::environment;
use crate::base::fatal;
use crate::base::os;
use crate::lockfree::said::Said;
use crate::lockfree::state::MAX_HANDLES;
use crate::request::control::{Control, Opening};
use std::boxed::Box;

pub use super::requests::open_count;

/// What the environment sets for all requests, as these flags; 0: not read yet.
static OF_ALL_REQUESTS: Said = Said::new();
const IS_KNOWN: u64 = 1;
const ARE_TRACED: u64 = 2;
const HIDE_LIMITS: u64 = 4;
const ARE_OBSERVED: u64 = 8;

/// Opens a request with one handle, the caller's. `None`: out of memory.
#[inline(always)]
pub fn open(opening: &Opening) -> Option<&'static Control> {
    match current_or_start() {
        Some(thread) => thread.open(opening),
        None => open_without_thread(opening),
    }
}

impl Thread {
    #[inline(always)]
    fn open(&self, opening: &Opening) -> Option<&'static Control> {
        let control = self.take_control()?;
        open_as(control, self.take_number(), opening);
        self.opened_count.add(1);
        Some(control)
    }
}

/// Opens a request in a thread that has exited or has no memory for a cache.
fn open_without_thread(opening: &Opening) -> Option<&'static Control> {
    HEAP.set_up();
    let control = HEAP.take_control()?;
    open_as(control, HEAP.draw_numbers(), opening);
    count_opened_without_thread();
    Some(control)
}

#[inline(always)]
fn open_as(control: &Control, number: u64, opening: &Opening) {
    // Whoever sees the flags sees what was stored before: how handles are dropped.
    if OF_ALL_REQUESTS.hear() == IS_KNOWN && opening.name.is_none() {
        return HEAP.open_request(control, number, opening);
    }
    open_slow(control, number, opening)
}

/// Opens the first request of a process, one with a name, or any one if the environment sets
/// something for all or an observer is told of them.
#[cold]
fn open_slow(control: &Control, number: u64, opening: &Opening) {
    let heard = OF_ALL_REQUESTS.hear();
    let flags = if heard & IS_KNOWN == 0 { read_environment() } else { heard };
    let is_observed = is_observed();
    let is_timed = is_observed || opening.name.is_some();
    let mut opening = *opening;
    opening.leaks.traced |= flags & ARE_TRACED != 0;
    opening.leaks.reported |= flags & ARE_TRACED != 0;
    opening.hides_limit |= flags & HIDE_LIMITS != 0;
    opening.opened_at = if is_timed { os::coarse_milliseconds().max(1) } else { 0 };
    HEAP.open_request(control, number, &opening);
    if is_observed {
        tell_opened(control);
    }
}

/// Reads what the environment sets for all requests, before the first one is opened.
fn read_environment() -> u64 {
    drop_handles_by(finish::drop_handle);
    let mut flags = IS_KNOWN;
    if environment::flag(c"RQMALLOC_TRACE") == Some(true) {
        flags |= ARE_TRACED;
    }
    if environment::flag(c"RQMALLOC_REPORT_LIMIT") == Some(false) {
        flags |= HIDE_LIMITS;
    }
    if environment::flag(c"RQMALLOC_ADOPT") == Some(false) {
        HEAP.pin_survivors();
    }
    OF_ALL_REQUESTS.add(flags);
    flags
}

/// Adds an observer, which is told of all requests that are opened from now on.
pub fn add_observer(observer: Box<dyn Observer>) {
    observe::add(observer);
    OF_ALL_REQUESTS.add(ARE_OBSERVED);
}

/// Adds a handle; the caller has one. Fatal when there are so many that counting them would soon
/// fail: only forgetting handles in a loop gets there.
pub fn add_handle(control: &Control) {
    let before = control.stub().state.add_handle();
    if before > MAX_HANDLES {
        fatal::broken("handles of a request", before as usize, MAX_HANDLES as usize);
    }
}
