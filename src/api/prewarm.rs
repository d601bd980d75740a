//! `prewarm`: creates, outside requests, what the standard library creates once and keeps.

use crate::thread::callbacks::in_persistent;
use core::fmt::{self, Write};
use core::time::Duration;
use std::backtrace::{Backtrace, BacktraceStatus};
use std::boxed::Box;
use std::sync::Once;
use std::sync::mpsc::sync_channel;
use std::{io, panic};

/// Creates what the standard library creates on first use and keeps, so that it is persistent and
/// does not belong to the request that happens to use it first:
/// [`Request::end`](crate::Request::end) would free it.
///
/// Call it at the start of `main`, and at the start of every thread that blocks on channels inside
/// requests. What it creates is persistent wherever it is called, even inside a request at its
/// memory limit. The first call in a process takes less than 100 microseconds, or with
/// `RUST_BACKTRACE=1` as much time and memory as the first backtrace; a thread's first call takes
/// one microsecond, any other less.
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
///         // Blocks, using a context of the thread that std keeps.
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
/// `prewarm` replaces the panic hook with one that runs the previous hook inside
/// [`persistent`](crate::persistent()). What std caches of symbols while it prints a panic's
/// backtrace, more with every new location, is then persistent. This happens once: set your own
/// hook *before* the first call. A hook set later replaces this one and should use `persistent`
/// itself:
///
/// ```
/// let previous = std::panic::take_hook();
/// std::panic::set_hook(Box::new(move |information| {
///     rqmalloc::persistent(|| previous(information));
/// }));
/// ```
///
/// A panicking thread cannot change the hook: a call there leaves everything that is created once
/// per process to the next call.
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
/// | a started thread: its handle, its closure | the thread | no (3) |
/// | on macOS, the box of a `Mutex` or `Condvar` | the lock | no: lock it early |
/// | a `LazyLock`, `OnceLock` or `thread_local!` | process, thread | no: use it early |
///
/// 1. If `RUST_BACKTRACE` or `RUST_LIB_BACKTRACE` is set. But more is kept with every new location
///    looked up, which happens when a trace is formatted, as by `{:?}` of an `anyhow::Error`: do
///    that inside `persistent`.
/// 2. Send to a channel that outlives the request, and block on it, inside `persistent`.
/// 3. Start a thread that outlives the request inside `persistent`.
///
/// # What crates keep
///
/// These are ready after one use outside requests; those marked "thread", after one in each thread.
///
/// | crate | what | created by |
/// |---|---|---|
/// | `ahash` | seeds | `RandomState::new()` |
/// | `chrono` | time zone, thread | `Local::now()`; read again when the zone changes |
/// | `crossbeam-channel` | as `mpsc`, thread | `recv_timeout` with a zero timeout on a `bounded(0)` |
/// | `futures-executor`, `tokio` | parker, thread | `block_on(async {})` |
/// | `lazy_static`, `once_cell` | the value | using it |
/// | `parking_lot` | table of waiting threads | `Condvar::wait_for` with a zero timeout, thread |
/// | `rand` | generator, thread | `rand::rng()` |
/// | `tracing` | list of dispatchers | setting the default early |
///
/// These keep more as they are used. Run that part inside `persistent`, or
/// [`close`](crate::Request::close) the request instead of ending it.
///
/// | crate | what |
/// |---|---|
/// | `backtrace` | symbols, as std does; `clear_symbol_cache()` before the end frees most |
/// | `crossbeam-epoch` | `pin()` creates a thread's part, not the blocks of the garbage queue |
/// | `rayon` | the pool (`build_global` creates it), blocks of the queue of jobs sent to it |
/// | `regex` | what a static `Regex` caches with every search |
/// | `rhai` | an engine's interned strings (`set_max_strings_interned(0)` turns that off) |
/// | `tokio` | `spawn_blocking`: its queue and threads; `yield_now`: a list; a channel's queue |
/// | `tracing-subscriber` | a thread's text buffer, the slab of spans and their extensions |
///
/// # Panics
/// If there is no memory, as a failed allocation does.
pub fn prewarm() {
    in_persistent(|| {
        // A panicking thread cannot change the hook.
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

/// Blocks for no time on a channel without room, which uses the thread's context. The context has
/// `thread::current()`, which this creates without a panic on a thread whose locals are gone.
fn warm_thread() {
    let (_sender, receiver) = sync_channel::<()>(0);
    let _ = receiver.recv_timeout(Duration::ZERO);
}

/// Discards any text.
struct Nowhere;

impl Write for Nowhere {
    fn write_str(&mut self, _text: &str) -> fmt::Result {
        Ok(())
    }
}
