//! Finishing a request for callers that get a report.

use crate::api::report::Report;
use crate::request::control::Control;
use crate::request::finish::{Outcome, Survivors};
use crate::thread;

/// Finishes a request whose last handle the caller dropped.
pub(crate) fn finish(control: &'static Control, survivors: Survivors) -> Report {
    let before = report_of(control);
    let Outcome {
        freed_blocks,
        freed_bytes,
        surviving_blocks,
        surviving_bytes,
        span_bytes,
        reusable_bytes,
    } = thread::finish::finish(control, survivors);
    Report {
        freed_blocks: freed_blocks as u64,
        freed_bytes,
        surviving_blocks: surviving_blocks as u64,
        surviving_bytes,
        span_bytes,
        reusable_bytes,
        ..before
    }
}

/// Returns the report of a request whose memory has not changed.
pub(crate) fn report_of(control: &Control) -> Report {
    Report {
        id: control.request_id(),
        name: control.name.get(),
        peak_bytes: control.peak_bytes(),
        freed_blocks: 0,
        freed_bytes: 0,
        surviving_blocks: 0,
        surviving_bytes: 0,
        span_bytes: 0,
        reusable_bytes: 0,
        still_open: false,
    }
}
