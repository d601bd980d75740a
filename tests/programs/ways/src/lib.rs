//! A global allocator for test suites that know nothing of requests: rqmalloc, and the first
//! allocation of each thread puts the thread where `RQMALLOC_WAY` says, for as long as it lives:
//!
//! | way | a thread is |
//! |---|---|
//! | `outside` | in no request |
//! | `thread` | in a request of its own, which its exit closes |
//! | `shared` | in the one request that all threads are in, which is never closed |
//!
//! A thread that is not where it should be ends the process. At exit a process prints a line about
//! its threads for `ci/programs`, and if the others have exited, checks that their requests are
//! closed and that the allocator's structures do not contradict each other.

use rqmalloc::{Request, RequestId, RqMalloc};
use std::alloc::{GlobalAlloc, Layout};
use std::cell::Cell;
use std::env;
use std::fs;
use std::mem;
use std::process;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Outside,
    Thread,
    Shared,
}

/// The allocator, to be installed as a test program's global allocator.
pub struct Ways;

static WAY: OnceLock<Way> = OnceLock::new();
static SHARED: OnceLock<Request> = OnceLock::new();
/// How many threads have allocated.
static THREADS: AtomicU64 = AtomicU64::new(0);
/// How many requests of the way `thread` were closed, of every second thread, and how many blocks
/// survived them.
static SEEN_CLOSED: AtomicU64 = AtomicU64::new(0);
static SEEN_SURVIVORS: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// Whether this thread has been placed or is being placed: what that allocates must not do it
    /// again. It has no destructor, so it is there for a thread's last allocations too.
    static IS_PLACED: Cell<bool> = const { Cell::new(false) };
}

fn way() -> Way {
    *WAY.get_or_init(|| match env::var("RQMALLOC_WAY").as_deref() {
        Ok("outside") => Way::Outside,
        Ok("thread") => Way::Thread,
        Ok("shared") => Way::Shared,
        other => fail(&format!("RQMALLOC_WAY is {other:?}")),
    })
}

fn fail(text: &str) -> ! {
    eprintln!("rqmalloc-ways: {text}");
    process::abort();
}

#[inline]
fn place() {
    if !IS_PLACED.replace(true) {
        place_slow();
    }
}

#[cold]
fn place_slow() {
    let number = THREADS.fetch_add(1, Ordering::Relaxed);
    if number == 0 {
        // SAFETY: a function that does not unwind, in a program that is never unloaded.
        unsafe { libc::atexit(at_exit) };
    }
    let expected = match way() {
        Way::Outside => None,
        Way::Thread => {
            let id = rqmalloc::begin_request();
            // The others are closed as requests without a callback are.
            if number % 2 == 1 {
                current().on_end(|| {
                    SEEN_CLOSED.fetch_add(1, Ordering::Relaxed);
                    SEEN_SURVIVORS.fetch_add(current().usage().live_blocks, Ordering::Relaxed);
                });
            }
            Some(id)
        }
        Way::Shared => {
            let shared = SHARED.get_or_init(Request::new);
            mem::forget(shared.enter());
            Some(shared.id())
        }
    };
    let owner = fresh_owner();
    if owner != expected {
        fail(&format!("a block of {owner:?} and not of {expected:?}"));
    }
}

fn current() -> Request {
    Request::current().unwrap_or_else(|| fail("this thread is in no request"))
}

/// Returns the request that a new block belongs to.
fn fresh_owner() -> Option<RequestId> {
    let block = Box::new(0u64);
    // SAFETY: the block is live, and this allocator's.
    unsafe { rqmalloc::owner_of((&raw const *block).cast()) }
}

/// Panics unless this program allocates from rqmalloc, and this thread where `RQMALLOC_WAY` says.
#[track_caller]
pub fn check() {
    assert!(rqmalloc::is_installed());
    assert!(IS_PLACED.get(), "rqmalloc-ways is not the global allocator");
    let owner = fresh_owner();
    match way() {
        Way::Outside => assert_eq!(owner, None),
        Way::Thread => {
            assert_eq!(owner, Some(current().id()));
            let other = std::thread::spawn(fresh_owner).join().unwrap();
            assert!(other.is_some() && other != owner, "{other:?} and {owner:?}");
        }
        Way::Shared => assert_eq!(owner, SHARED.get().map(Request::id)),
    }
}

extern "C" fn at_exit() {
    let open = rqmalloc::stats().open_request_count;
    let running = fs::read_dir("/proc/self/task").map_or(0, Iterator::count);
    // Only then is it known what is open, and nothing changes meanwhile.
    let is_alone = running == 1;
    if is_alone {
        let expected = u64::from(way() != Way::Outside);
        if open != expected {
            fail(&format!("{open} requests are open and not {expected}"));
        }
        rqmalloc::check_structures();
    }
    eprintln!(
        "rqmalloc-ways: {} threads, {open} requests open, {}; seen {} closed with {} survivors",
        THREADS.load(Ordering::Relaxed),
        if is_alone { "checked" } else { "not alone" },
        SEEN_CLOSED.load(Ordering::Relaxed),
        SEEN_SURVIVORS.load(Ordering::Relaxed),
    );
}

// SAFETY: `RqMalloc` keeps the contract, and nothing here unwinds: `fail` aborts.
unsafe impl GlobalAlloc for Ways {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        place();
        // SAFETY: the caller's contract.
        unsafe { RqMalloc.alloc(layout) }
    }

    unsafe fn dealloc(&self, payload: *mut u8, layout: Layout) {
        // SAFETY: the caller's contract.
        unsafe { RqMalloc.dealloc(payload, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        place();
        // SAFETY: the caller's contract.
        unsafe { RqMalloc.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, payload: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        place();
        // SAFETY: the caller's contract.
        unsafe { RqMalloc.realloc(payload, layout, new_size) }
    }
}
