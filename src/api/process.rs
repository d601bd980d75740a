//! The limit of the process.

use crate::request::limit::LimitExceeded;
use crate::thread::HEAP;

/// Sets what the process should have in use at most, in bytes; `None`: no limit. Nothing is refused
/// because of it. While the process is above it, the open requests that hold most, each without its
/// children, are marked, largest first, until the process would be below without those that are
/// marked: the code that runs them gives them up, as at a
/// [`soft_limit`](crate::RequestBuilder::soft_limit). A request that is marked for that stays so.
///
/// In use is what is mapped, less what the allocator could give back now: free pages, kept mappings,
/// and free blocks, except those in the caches of threads. It is looked at when the process grows
/// and by the threads that allocate, at most every few milliseconds.
pub fn set_process_limit(bytes: Option<usize>) {
    HEAP.set_process_limit(bytes);
}

/// Returns the limit of the process in bytes, if there is one: see [`set_process_limit`].
pub fn process_limit() -> Option<usize> {
    HEAP.process_limit()
}

/// Checks whether the process is above its limit, as it was some milliseconds ago at most: for a
/// service that sheds load before a request begins. Cheap.
///
/// # Errors
/// If it is: the limit and what is in use.
pub fn check_process() -> Result<(), LimitExceeded> {
    match HEAP.process_excess() {
        None => Ok(()),
        Some((limit_bytes, in_use_bytes)) => {
            Err(LimitExceeded::of_process(limit_bytes, in_use_bytes))
        }
    }
}
