//! How a request is finished: its callbacks run, what it never freed is reported, and then its
//! memory goes.

use super::callbacks::{in_persistent, run_callbacks};
use super::requests::count_finished;
use super::{HEAP, current};
use crate::base::line::Line;
use crate::base::sync::{Ordering, wait_for};
use crate::base::system_call::write_to_standard_error;
use crate::lockfree::state::Callbacks;
use crate::request::control::Control;
use crate::request::finish::{Outcome, Survivors};
use crate::request::leaks;

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
        finish(control, Survivors::Live);
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
    in_persistent(|| match leaks::collect(control, None, &HEAP) {
        Ok(leaks) if leaks.blocks > 0 => {
            write_to_standard_error(std::format!("{leaks}\n").as_bytes());
        }
        Ok(_) => {}
        // No memory for more than one line.
        Err(leaks) => Line::of_arguments(format_args!("{leaks}")).print(),
    });
}

/// Finishes a request that the caller has closed, and pools its control block.
pub fn finish(control: &'static Control, survivors: Survivors) -> Outcome {
    let state = &control.stub().state;
    if state.try_own().is_none() {
        wait_for(|| state.try_own());
    }
    if control.leaks.get().reported {
        report_leaks(control);
    }
    let outcome = HEAP.finish_request(control, survivors);
    if let Some(parent) = control.parent() {
        leave_parent(control, parent);
    } else {
        pool(control);
    }
    outcome
}

/// Pools the control block of a request that is over.
#[inline(always)]
fn pool(control: &'static Control) {
    count_finished();
    let is_stashed = match current() {
        Some(thread) => thread.stash_control(control),
        None => false,
    };
    if !is_stashed {
        HEAP.recycle(control);
    }
}

/// Takes what the request held off its parent, pools its control block, and drops its handle of the
/// parent, which may be the last one.
#[cold]
fn leave_parent(control: &'static Control, parent: &'static Control) {
    control.leave_parent();
    pool(control);
    drop_handle(parent);
}
