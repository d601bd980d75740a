//! `prewarm`: what the standard library creates once and keeps is created outside requests.

use crate::thread::callbacks::in_persistent;
use core::fmt::{self, Write};
use core::time::Duration;
use std::backtrace::{Backtrace, BacktraceStatus};
use std::boxed::Box;
use std::sync::Once;
use std::sync::mpsc::sync_channel;
use std::{io, panic};

/// Creates what the standard library creates on first use and keeps, so that it is persistent and
/// not of the request that happens to use it first: [`Request::end`](crate::Request::end) would
/// free it.
///
/// To be called at the start of `main`, and at the start of every thread that blocks on channels
/// inside requests. What it makes is persistent wherever it is called, inside a request and at its
/// memory limit too. The first call of a process takes less than 100 microseconds, or with
/// `RUST_BACKTRACE=1` as long, and as much memory, as the first backtrace does; a thread's first
/// call takes one microsecond, any other less.
///
/// ```
/// # #[global_allocator]
/// # static GLOBAL: rqmalloc::RqMalloc = rqmalloc::RqMalloc;
/// use std::sync::mpsc::channel;
/// use std::time::Duration;
///
/// rqmalloc::prewarm();
/// for _ in 0..2 {
///     let request = rqmalloc::Request::new();
///     request.run(|| {
///         let (_sender, receiver) = channel::<String>();
///         // Blocks, by means of a context of the thread that std keeps.
///         assert!(receiver.recv_timeout(Duration::from_millis(1)).is_err());
///     });
///     // SAFETY: nothing that the closure allocated is used any more.
///     let report = unsafe { request.end() }.unwrap();
///     assert_eq!(report.freed_blocks, 0);
/// }
/// ```
///
/// # The panic hook
///
/// It puts a hook before the one that is set: one that runs it inside
/// [`persistent`](crate::persistent()). What std caches of symbols while it prints the backtrace of a
/// panic, a part more with every new place, is persistent then. It does so once: set your own hook
/// *before* the first call. A hook that is set later replaces this one and should use `persistent`
/// itself:
///
/// ```
/// let previous = std::panic::take_hook();
/// std::panic::set_hook(Box::new(move |information| {
///     rqmalloc::persistent(|| previous(information));
/// }));
/// ```
///
/// A thread that is panicking cannot change the hook: there, all that is made once for the process
/// is left to the next call.
///
/// # What std keeps
///
/// | what | for | created by `prewarm` |
/// |---|---|---|
/// | symbols that a panic's backtrace needs | the process | yes, all, by the hook |
/// | symbols that a [`Backtrace`] needs | the process | in part (1) |
/// | buffers of `stdin` and `stdout` | the process | yes |
/// | `thread::current()` | the thread | yes |
/// | what a thread needs to block on `mpsc` channels | the thread | yes |
/// | a channel's list of waiting threads, its queue | the channel | no (2) |
/// | a thread that is started: its handle, its closure | the thread | no (3) |
/// | on macOS, the box of a `Mutex` or `Condvar` | the lock | no: lock it early |
/// | a `LazyLock`, `OnceLock` or `thread_local!` | process, thread | no: use it early |
///
/// 1. Where `RUST_BACKTRACE` or `RUST_LIB_BACKTRACE` is set. But more is kept with every new place
///    that is looked up, which is when a trace is formatted, as `{:?}` of an `anyhow::Error` does:
///    do that inside `persistent`.
/// 2. Send to a channel that outlives the request, and block on it, inside `persistent`.
/// 3. Start a thread that outlives the request inside `persistent`.
///
/// # What crates keep
///
/// These are ready after one use outside requests, "thread": in each thread.
///
/// | crate | what | created by |
/// |---|---|---|
/// | `ahash` | seeds | `RandomState::new()` |
/// | `chrono` | time zone, thread | `Local::now()`; read again when the zone changes |
/// | `crossbeam-channel` | as `mpsc`, thread | `recv_timeout` of no time on a `bounded(0)` |
/// | `futures-executor`, `tokio` | parker, thread | `block_on(async {})` |
/// | `lazy_static`, `once_cell` | the value | its use |
/// | `parking_lot` | table of waiting threads | `Condvar::wait_for` of no time, thread |
/// | `rand` | generator, thread | `rand::rng()` |
/// | `tracing` | list of dispatchers | setting the default early |
///
/// These keep more with use. Run that part inside `persistent`, or [`close`](crate::Request::close)
/// the request instead of ending it.
///
/// | crate | what |
/// |---|---|
/// | `backtrace` | symbols: as std's; `clear_symbol_cache()` before the end lets go of most |
/// | `crossbeam-epoch` | `pin()` creates a thread's part, not the blocks of the garbage queue |
/// | `rayon` | the pool (`build_global` creates it), blocks of the queue of jobs sent to it |
/// | `regex` | what a static expression caches with every search |
/// | `rhai` | strings of an engine (`set_max_strings_interned(0)` switches that off) |
/// | `tokio` | `spawn_blocking`: its queue and threads; `yield_now`: a list; a channel's queue |
/// | `tracing-subscriber` | a thread's buffer of text, the slab of spans and their extensions |
///
/// # Panics
/// As a failed allocation does when there is no memory.
pub fn prewarm() {
    in_persistent(|| {
        // A thread that is panicking cannot change the hook.
        if !std::thread::panicking() {
            static PROCESS: Once = Once::new();
            PROCESS.call_once(warm_process);
        }
        warm_thread();
    });
}

fn warm_process() {
    // Both have a buffer.
    let _ = (io::stdin(), io::stdout());
    let trace = Backtrace::capture();
    if trace.status() == BacktraceStatus::Captured {
        // Symbols are looked up when a trace is formatted.
        let _ = write!(Nowhere, "{trace}");
    }
    let previous = panic::take_hook();
    panic::set_hook(Box::new(move |information| in_persistent(|| previous(information))));
}

/// A channel without room blocks, with the thread's context, for no time. The context has
/// `thread::current()`, which this makes without a panic on a thread whose locals are gone.
fn warm_thread() {
    let (_sender, receiver) = sync_channel::<()>(0);
    let _ = receiver.recv_timeout(Duration::ZERO);
}

/// Takes any text.
struct Nowhere;

impl Write for Nowhere {
    fn write_str(&mut self, _text: &str) -> fmt::Result {
        Ok(())
    }
}
