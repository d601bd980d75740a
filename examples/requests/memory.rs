//! The resident memory of the process.

use std::fs;

/// Returns the bytes resident now; `None` if there is no `/proc`.
pub fn resident() -> Option<usize> {
    let statm = fs::read_to_string("/proc/self/statm").ok()?;
    let pages: usize = statm.split(' ').nth(1)?.parse().ok()?;
    // SAFETY: takes no pointer; every system has this value.
    let page_bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    Some(pages * usize::try_from(page_bytes).ok()?)
}
