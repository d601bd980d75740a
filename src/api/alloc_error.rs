//! What becomes of a failed allocation that the program does not handle, where the program's
//! toolchain lets it choose that.

use crate::api::bailout::{Bailout, is_catching, raise};
use crate::base::line::Line;
use crate::base::system_call::write_to_standard_error;
use crate::lockfree::budget::Reason;
use crate::request::limit::LimitExceeded;
use crate::thread;
use core::alloc::Layout;

/// A hook for [`handle_alloc_error`](std::alloc::handle_alloc_error), which `vec![]`, `Box::new` and
/// the like call when an allocation fails: inside [`catch`](crate::Request::catch) or a scope it
/// gives the request up with a [`Bailout`], so that a request at its hard limit is an `Err`, and the
/// process goes on. Elsewhere, and in a thread that panics, the process ends as without the hook.
///
/// Rust has such a hook only in nightly toolchains, so it is the program that sets it:
///
/// ```ignore
/// #![feature(alloc_error_hook)]
///
/// std::alloc::set_alloc_error_hook(rqmalloc::alloc_error_hook);
/// ```
///
/// The unwinding begins where the allocation failed: code that is not prepared for a panic there, as
/// that between foreign functions, is passed as by [`bailout`](crate::bailout). The standard
/// library's is prepared.
///
/// # Panics
/// Unwinds with the bailout inside `catch` and scopes.
pub fn alloc_error_hook(layout: Layout) {
    let Some(thread) = thread::current().filter(|_| is_catching() && !std::thread::panicking())
    else {
        return tell(layout.size());
    };
    let limit = thread.current_control().and_then(|control| match control.marked() {
        Some((Reason::Refused(_), marked)) if marked.asked_bytes == layout.size() => {
            LimitExceeded::of(control)
        }
        _ => None,
    });
    // Without memory for the unwinding this is called again, and nothing is caught then.
    raise(limit.map_or(Bailout::OutOfMemory(layout.size()), Bailout::Limit))
}

/// Says what the standard library's own hook says.
#[cold]
fn tell(bytes: usize) {
    let line = Line::of_arguments(format_args!("memory allocation of {bytes} bytes failed\n"));
    write_to_standard_error(line.as_str().as_bytes());
}
