//! A global allocator for test suites that know nothing of requests: rqmalloc, and the first
//! allocation of each thread puts the thread where `RQMALLOC_WAY` says, for as long as it lives:
//!
//! | way | a thread is |
//! |---|---|
//! | `outside` | in no request |
//! | `thread` | in a request of its own, which its exit closes |
//! | `turns` | likewise, but after every 100 allocations the request is closed and another begun |
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
    Turns,
    Shared,
}

/// How many allocations there are in a request of the way `turns`.
const TURN: u32 = 100;

/// The allocator, to be installed as a test program's global allocator.
pub struct Ways;

static WAY: OnceLock<Way> = OnceLock::new();
static SHARED: OnceLock<Request> = OnceLock::new();
/// How many threads have allocated.
static THREADS: AtomicU64 = AtomicU64::new(0);
/// How many requests were seen to be closed, and how many blocks survived them.
static SEEN_CLOSED: AtomicU64 = AtomicU64::new(0);
static SEEN_SURVIVORS: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// Whether this thread has been placed.
    static IS_PLACED: Cell<bool> = const { Cell::new(false) };
    /// How many allocations the thread has before it is placed, or has its next turn. Neither has a
    /// destructor: they are there for a thread's last allocations too.
    static LEFT: Cell<u32> = const { Cell::new(0) };
}

fn way() -> Way {
    *WAY.get_or_init(|| match env::var("RQMALLOC_WAY").as_deref() {
        Ok("outside") => Way::Outside,
        Ok("thread") => Way::Thread,
        Ok("turns") => Way::Turns,
        Ok("shared") => Way::Shared,
        other => fail(&format!("RQMALLOC_WAY is {other:?}")),
    })
}

fn fail(text: &str) -> ! {
    eprintln!("rqmalloc-ways: {text}");
    process::abort();
}

/// Puts this thread where it belongs. Called before every allocation.
#[inline]
fn place() {
    match LEFT.get() {
        0 => place_slow(),
        left => LEFT.set(left - 1),
    }
}

#[cold]
fn place_slow() {
    // Allocations of what follows lead to no turn.
    LEFT.set(u32::MAX);
    if !IS_PLACED.replace(true) {
        start();
    } else if way() == Way::Turns && Request::current().is_some() {
        // Not in an exiting thread that has left its request and lists its leaks.
        saw_closed(rqmalloc::close_request().surviving_blocks);
        rqmalloc::begin_request();
    }
    LEFT.set(if way() == Way::Turns { TURN } else { u32::MAX });
}

fn start() {
    let number = THREADS.fetch_add(1, Ordering::Relaxed);
    if number == 0 {
        // SAFETY: a function that does not unwind, in a program that is never unloaded.
        unsafe { libc::atexit(at_exit) };
    }
    let expected = match way() {
        Way::Outside => None,
        Way::Thread => {
            let id = rqmalloc::begin_request();
            // The other threads' requests are closed as those without a callback are.
            if number % 2 == 1 {
                current().on_end(|| saw_closed(current().usage().live_blocks));
            }
            Some(id)
        }
        Way::Turns => Some(rqmalloc::begin_request()),
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

fn saw_closed(survivors: u64) {
    SEEN_CLOSED.fetch_add(1, Ordering::Relaxed);
    SEEN_SURVIVORS.fetch_add(survivors, Ordering::Relaxed);
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
        Way::Thread | Way::Turns => {
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
        // A thread that exits leaves the request, and drops a handle.
        let wanted = ": still open, 1 thread is inside, 1 other handle is alive";
        match SHARED.get().map(Request::to_string) {
            Some(shared) if !shared.contains(wanted) => fail(&shared),
            _ => {}
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
