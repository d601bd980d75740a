//! The variables of the environment that mean something here. All are flags, read by one rule: a value that
//! begins with `1` is yes, one that begins with `0` is no, and any other is as if there were none.
//!
//! | variable | if it says | then |
//! |---|---|---|
//! | `RQMALLOC_TRACE` | yes | every request traces its leaks and reports them |
//! | `RQMALLOC_REPORT_LIMIT` | no | nothing is said of what a request's limit refuses |
//! | `RQMALLOC_PRELOAD_REQUESTS` | yes | `malloc` inside a request hands out blocks of it |
//! | `RQMALLOC_PRELOAD_DEEPBIND` | yes | `dlopen` keeps `RTLD_DEEPBIND` |
//! | `RQMALLOC_STATS` | yes | the preloaded library prints its figures at exit |

use core::ffi::CStr;

/// What a variable says. `None`: nothing.
pub fn flag(name: &CStr) -> Option<bool> {
    // SAFETY: a text; whoever changes the environment while others read it breaks its contract.
    let value = unsafe { libc::getenv(name.as_ptr()) };
    if value.is_null() {
        return None;
    }
    // SAFETY: a text, of which the end is read at the most.
    match unsafe { value.cast::<u8>().read() } {
        b'1' => Some(true),
        b'0' => Some(false),
        _ => None,
    }
}
