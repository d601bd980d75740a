//! Idle memory: giving it back when asked to, and by a thread of the allocator's own.

use crate::thread;
use core::fmt;

/// Gives unused memory back to the operating system: this thread's cache, and the process's stores
/// of free blocks, pages, mappings, control blocks and lanes. Returns the bytes given back.
///
/// Other threads are asked for what their caches keep. Each gives it on its next slow path; what a
/// thread keeps that sleeps on is in [`Stats::thread_cache_bytes`](crate::Stats::thread_cache_bytes)
/// afterwards.
pub fn trim() -> usize {
    thread::trim()
}

/// Starts a small thread that gives idle memory back by the clock, so that it goes back even if the
/// process does nothing at all. Without it, threads do that on their slow paths. Calling it again
/// does nothing.
///
/// It allocates nothing, takes no signals, and wakes up ten times a second while there is idle
/// memory, else once. What the caches of sleeping threads keep stays with them. A process that is
/// forked later does not have the thread until it calls this.
///
/// `RQMALLOC_BACKGROUND=1` in the environment starts it in programs that preload the library.
///
/// # Errors
/// The system refuses one more thread, or this code is in a library that may be unloaded.
///
/// ```
/// # #[cfg(not(miri))]
/// rqmalloc::start_background_thread()?;
/// # Ok::<(), rqmalloc::NoBackgroundThread>(())
/// ```
pub fn start_background_thread() -> Result<(), NoBackgroundThread> {
    thread::background::start().map_err(|error| NoBackgroundThread { error })
}

/// The background thread could not be started.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct NoBackgroundThread {
    /// The system's error number, as of `errno`.
    pub error: i32,
}

impl fmt::Display for NoBackgroundThread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the background thread cannot be started: system error {}", self.error)
    }
}

impl core::error::Error for NoBackgroundThread {}
