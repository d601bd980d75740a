//! The report of a request that was refused memory at its limit: only its program knows whether it
//! can do without.

use crate::base::failure::MEMORY_LIMIT;
use crate::base::line::Line;
use crate::base::os;
use crate::lockfree::refusals::Refusals;
use crate::request::control::Control;
use core::fmt::Write;

/// The reports of such refusals so far.
static REFUSALS: Refusals = Refusals::new();

/// Reports that a request was refused memory at its limit: once per request, and not too often per
/// process.
#[cold]
pub fn tell_refusal(control: &Control, asked_bytes: usize) {
    if !control.tells_refusal() {
        return;
    }
    let Some(left_out) = REFUSALS.next(os::coarse_milliseconds()) else { return };
    line(control, asked_bytes, left_out).print();
}

/// Returns the line: the request, and how many others were left out since the last line.
fn line(control: &Control, asked_bytes: usize, left_out: u64) -> Line {
    let (refuser, level) = control.refuser();
    let (limit, in_use) = (refuser.limit().unwrap_or(usize::MAX), refuser.footprint_bytes());
    let mut line = Line::EMPTY;
    // A line that is too long is cut.
    let _ = write!(line, "{MEMORY_LIMIT} (request {}, ", control.request_id());
    if let Some(name) = control.name.get() {
        let _ = write!(line, "name {name}, ");
    }
    if level > 0 {
        let _ = write!(line, "parent {}, ", refuser.request_id());
    }
    let _ = write!(line, "limit {limit}, in use {in_use}, asked {asked_bytes})");
    if left_out > 0 {
        let _ = write!(line, " and {left_out} more");
    }
    line
}
