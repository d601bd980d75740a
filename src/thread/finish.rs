//! How a request is finished: its callbacks run, what it never freed is reported, and then its
//! memory goes.

use super::callbacks::{in_persistent, run_callbacks, run_on_close};
use super::observe::{is_observed, limit_exceeded, tell_closed};
use super::requests::count_finished;
use super::{HEAP, current};
use crate::base::line::Line;
use crate::base::sync::{Ordering, wait_for};
use crate::base::system_call::write_to_standard_error;
use crate::lockfree::state::Callbacks;
use crate::request::control::Control;
use crate::request::finish::{Left, Survivors};
use crate::request::info::RequestInfo;
use crate::request::leaks;
use crate::request::report::Report;

/// What `State` runs of a request's callbacks.
struct OnEnd(&'static Control);

impl Callbacks for OnEnd {
    fn is_empty(&self) -> bool {
        self.0.on_end.is_empty()
    }

    fn run(&self) {
        run_callbacks(self.0);
    }
}

/// Drops a handle; the last one closes the request, after its callbacks have run.
pub fn drop_handle(control: &'static Control) {
    if control.stub().state.drop_handle(&OnEnd(control)) {
        let _ = finish(control, Survivors::Live);
    }
}

/// Drops the caller's handle if it is the only one, after the callbacks have run. `true`: the
/// request is the caller's to finish. `false`: others are alive, and the caller still has its
/// handle.
pub fn drop_only_handle(control: &'static Control) -> bool {
    control.stub().state.drop_only_handle(&OnEnd(control))
}

/// Lists on standard error what the request never freed, if its policy asks for that after such an
/// end.
#[cold]
fn report_leaks(control: &Control) {
    let policy = control.leaks.get();
    let is_clean = || !control.bailed_out.load(Ordering::Relaxed) && !std::thread::panicking();
    if !(policy.reported_after_bailout || is_clean()) {
        return;
    }
    let with = |look: leaks::Look<'_>| {
        look(control, None);
        Some(())
    };
    in_persistent(|| match leaks::collect(with, &HEAP) {
        Some(Ok(leaks)) if leaks.blocks > 0 => {
            write_to_standard_error(std::format!("{leaks}\n").as_bytes());
        }
        Some(Ok(_)) | None => {}
        // No memory for more than one line.
        Some(Err(leaks)) => Line::of_arguments(format_args!("{leaks}")).print(),
    });
}

/// Finishes a request that the caller has closed, pools its control block, and drops the handle of
/// its parent, which may be the last one.
#[inline]
pub fn finish(control: &'static Control, survivors: Survivors) -> Report {
    own(control);
    let mut report = Report::before(control, survivors);
    if is_observed() || !control.on_close.is_empty() || control.parent().is_some() {
        finish_watched(control, survivors, &mut report);
    } else {
        report.add(&release(control, survivors));
    }
    report
}

/// The same for a request of which others are told, or that counts to another one.
#[cold]
fn finish_watched(control: &'static Control, survivors: Survivors, report: &mut Report) {
    let info = is_observed().then(|| {
        let _ = limit_exceeded(control);
        RequestInfo::of(control)
    });
    let (on_close, parent) = (control.on_close.drain(), control.parent());
    report.add(&release(control, survivors));
    // Who is told may close the parent.
    parent.inspect(|parent| drop_handle(parent));
    run_on_close(on_close, report);
    info.inspect(|info| tell_closed(info, report));
}

/// Waits until the request is this thread's alone, and lists its leaks if it does so.
fn own(control: &'static Control) {
    let state = &control.stub().state;
    if state.try_own().is_none() {
        wait_for(|| state.try_own());
    }
    if control.leaks.get().reported {
        report_leaks(control);
    }
}

/// Gives back what the request has, takes what it held off its parent, and pools its control block.
#[inline]
fn release(control: &'static Control, survivors: Survivors) -> Left {
    let left = HEAP.finish_request(control, survivors);
    if control.parent().is_some() {
        control.leave_parent();
    }
    count_finished();
    let is_stashed = match current() {
        Some(thread) => thread.stash_control(control),
        None => false,
    };
    if !is_stashed {
        HEAP.recycle(control);
    }
    left
}
