//! `prewarm`: what the standard library creates once and keeps is created outside requests.

use crate::thread::finish::in_persistent;
use core::fmt::{self, Write};
use core::time::Duration;
use std::backtrace::{Backtrace, BacktraceStatus};
use std::boxed::Box;
use std::sync::Once;
use std::sync::mpsc::sync_channel;
use std::{io, panic};

/// Creates what the standard library creates on first use and keeps, so that it is persistent and not
/// of the request that happens to use it first: [`Request::end`](crate::Request::end) would free it.
///
/// To be called at the start of `main`, and at the start of every thread that enters requests and that
/// blocks on channels there. What it makes is persistent wherever it is called, inside a request
/// and at its memory limit too. The first call of a process takes some microseconds, or with
/// `RUST_BACKTRACE=1` as long as the first backtrace does; any other call less than one.
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
///         // Blocks with a context of the thread that std keeps from here on.
///         assert!(receiver.recv_timeout(Duration::from_millis(1)).is_err());
///     });
///     // SAFETY: nothing that the closure allocated is used any more.
///     unsafe { request.end() }.unwrap();
/// }
/// ```
///
/// # The panic hook
///
/// It puts a hook before the one that is set: one that runs it inside [`persistent`](crate::persistent).
/// What std caches of symbols while it prints the backtrace of a panic, a part more with every new
/// place, is persistent then. It does so once: set your own hook *before* the first call. A hook that is
/// set later replaces this one and should use `persistent` itself:
///
/// ```
/// let previous = std::panic::take_hook();
/// std::panic::set_hook(Box::new(move |information| {
///     rqmalloc::persistent(|| previous(information));
/// }));
/// ```
///
/// A thread that is panicking cannot change the hook: there, this part is left to the next call.
///
/// # What is kept, by whom
///
/// | of std | lives for | created by `prewarm` |
/// |---|---|---|
/// | symbols, for panics | the process | yes: all of it is persistent, by the hook |
/// | symbols, for a `Backtrace` that you format (as `{:?}` of `anyhow::Error` does) | the process | in part (with `RUST_BACKTRACE` or `RUST_LIB_BACKTRACE` on): more is kept with each new place. Format inside `persistent` |
/// | buffers of `stdin` and `stdout` | the process | yes |
/// | `thread::current()`, a thread's context for blocking on channels (`mpsc`) | the thread | yes |
/// | a channel: its list of waiting threads, the blocks of its queue | the channel | no: block on a long-lived one, and send to it, inside `persistent` |
/// | a thread that is started | the thread | no: start those that outlive the request inside `persistent` |
/// | `LazyLock`, `OnceLock`, `thread_local!` of yours | process, thread | no: touch them early |
///
/// Popular crates keep as much. Those of the first kind are ready after one use outside requests, in
/// each thread where it says so:
///
/// | crate | what is kept | how to create it early |
/// |---|---|---|
/// | `once_cell`, `lazy_static` | the value | use it once (what it allocates later is another matter) |
/// | `crossbeam-channel` | context, in each thread | `crossbeam_channel::bounded::<()>(0).1.recv_timeout(Duration::ZERO)` with its sender alive |
/// | `rand` | generator, in each thread | `rand::rng()` |
/// | `parking_lot` | table of waiting threads, grown by each new thread that waits | `Condvar::wait_for` with no time, in each thread |
/// | `futures-executor`, `tokio` | parker, in each thread | `block_on(async {})` |
/// | `rayon` | the global pool | `rayon::current_num_threads()` |
/// | `ahash` | seeds | `RandomState::new()` |
/// | `chrono` | time zone, in each thread | `Local::now()`; read again when the zone changes |
/// | `tracing` | list of dispatchers | set the default early |
///
/// Those of the second kind keep more with use: run that part inside `persistent`, or
/// [`close`](crate::Request::close) the request instead of ending it:
///
/// | crate | what is kept |
/// |---|---|
/// | `regex` | a static expression's caches and the states of its automaton, from every search |
/// | `crossbeam-epoch` | the collector and each thread's part in it (`pin()` creates those), then every 64th piece of garbage a block of the global queue |
/// | `rayon` | a block of the pool's queue with every 63 jobs that are sent to it from outside |
/// | `tokio` | the blocking pool's queue and its map of threads (`spawn_blocking`), a worker's list of tasks that yielded (`yield_now`, and reading from what is always ready), the queue of a channel |
/// | `tracing-subscriber` | each thread's text buffer, the slab of spans and their extensions |
/// | `rhai` | an engine's string interner: `Engine::set_max_strings_interned(0)` switches it off |
/// | `backtrace` | the same symbols as std, once more: `clear_symbol_cache()` before the end, after one first use outside |
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
    drop((io::stdin(), io::stdout()));
    // Where locks are boxes, this one's box; and the unwinder's first use.
    drop(Backtrace::force_capture());
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
