//! How a request is finished: what was asked to run before its memory goes, what it never freed, and
//! then its memory.

use super::callbacks::{in_persistent, run_callbacks};
use super::requests::count_finished;
use super::{HEAP, current};
use crate::base::line::Line;
use crate::base::sync::{Ordering, wait_for};
use crate::base::system_call::write_to_standard_error;
use crate::request::control::Control;
use crate::request::finish::{Outcome, Survivors};
use crate::request::leaks;

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
            let mut line = Line::EMPTY;
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
    count_finished();
    let is_stashed =
        outcome.is_over && current().is_some_and(|thread| thread.stash_control(control));
    if outcome.is_over && !is_stashed {
        HEAP.recycle(control);
    }
    outcome
}
