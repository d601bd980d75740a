//! The environment variables that the allocator reads. All are flags and follow one rule: a value
//! that begins with `1` means yes, one that begins with `0` means no, and any other counts as
//! unset.
//!
//! | variable | if set to | then |
//! |---|---|---|
//! | `RQMALLOC_TRACE` | yes | every request traces its leaks and reports them |
//! | `RQMALLOC_REPORT_LIMIT` | no | allocations refused by a request's limit are not reported |
//! | `RQMALLOC_ADOPT` | no | memory between the survivors of a request is not used again |
//! | `RQMALLOC_PRELOAD_REQUESTS` | yes | `malloc` inside a request hands out blocks of the request |
//! | `RQMALLOC_PRELOAD_DEEPBIND` | yes | `dlopen` keeps `RTLD_DEEPBIND` |
//! | `RQMALLOC_BACKGROUND` | yes | the preloaded library starts the background thread |
//! | `RQMALLOC_STATS` | yes | the preloaded library prints its figures at exit |

use core::ffi::CStr;

/// Returns what a variable says; `None` if it says neither.
pub fn flag(name: &CStr) -> Option<bool> {
    // SAFETY: a C string; changing the environment while another thread reads it breaks its
    // contract.
    let value = unsafe { libc::getenv(name.as_ptr()) };
    if value.is_null() {
        return None;
    }
    // SAFETY: a C string, of which at most the final zero is read.
    match unsafe { value.cast::<u8>().read() } {
        b'1' => Some(true),
        b'0' => Some(false),
        _ => None,
    }
}
