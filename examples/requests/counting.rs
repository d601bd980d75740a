//! Two counters in front of the global allocator, and the switch to the system's.
//!
//! The comparison is fair because both sides run the same code: the same binary, the same two
//! counters, the same branch. A process is on one side from its first allocation to its last,
//! because a block must be freed by the allocator that served it; hence an environment variable,
//! which can be read before `main`, rather than a flag.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::ops::Sub;
use std::sync::atomic::{AtomicU8, Ordering};

/// Set for the child process that runs on the system allocator.
pub const PEER_VARIABLE: &str = "RQMALLOC_REQUESTS_PEER";
const PEER_VARIABLE_C: &std::ffi::CStr = c"RQMALLOC_REQUESTS_PEER";

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Side {
    RqMalloc,
    System,
}

const UNDECIDED: u8 = 0;
const RQMALLOC: u8 = 1;
const SYSTEM: u8 = 2;

static SIDE: AtomicU8 = AtomicU8::new(UNDECIDED);

/// Returns the allocator this process runs on.
#[inline]
pub fn side() -> Side {
    match SIDE.load(Ordering::Relaxed) {
        RQMALLOC => Side::RqMalloc,
        SYSTEM => Side::System,
        _ => decide(),
    }
}

/// Asks the C library, because `std::env` allocates and the first allocation calls this.
#[cold]
fn decide() -> Side {
    // SAFETY: the name is a C string, and nothing in this program changes the environment.
    let peer = unsafe { !libc::getenv(PEER_VARIABLE_C.as_ptr()).is_null() };
    SIDE.store(if peer { SYSTEM } else { RQMALLOC }, Ordering::Relaxed);
    if peer { Side::System } else { Side::RqMalloc }
}

/// How often this thread called the allocator, or the difference of two such counts. Resizing a
/// block, in place or by moving it, is neither an allocation nor a free.
#[derive(Clone, Copy, Default)]
pub struct Calls {
    pub allocations: i64,
    pub frees: i64,
}

impl Calls {
    /// Returns the number of blocks served but not freed; negative if more were freed than served.
    pub fn balance(self) -> i64 {
        self.allocations - self.frees
    }
}

impl Sub for Calls {
    type Output = Self;

    fn sub(self, earlier: Self) -> Self {
        Self {
            allocations: self.allocations - earlier.allocations,
            frees: self.frees - earlier.frees,
        }
    }
}

thread_local! {
    // Const-initialised and without destructors, so that an allocator may use them: access never
    // allocates.
    static ALLOCATIONS: Cell<i64> = const { Cell::new(0) };
    static FREES: Cell<i64> = const { Cell::new(0) };
}

pub fn calls() -> Calls {
    Calls { allocations: ALLOCATIONS.get(), frees: FREES.get() }
}

#[inline]
fn count(counter: &'static std::thread::LocalKey<Cell<i64>>) {
    counter.set(counter.get() + 1);
}

/// The allocator `A`, or the system's if [`side`] says so, with its calls counted.
pub struct Counting<A>(A);

impl<A> Counting<A> {
    pub const fn new(allocator: A) -> Self {
        Self(allocator)
    }
}

// SAFETY: every call goes, unchanged, to one of two allocators that keep the contract, and to the
// same one for all of a block's life, because `side` never changes.
unsafe impl<A: GlobalAlloc> GlobalAlloc for Counting<A> {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(&ALLOCATIONS);
        match side() {
            // SAFETY: the caller's contract.
            Side::RqMalloc => unsafe { self.0.alloc(layout) },
            // SAFETY: as above.
            Side::System => unsafe { System.alloc(layout) },
        }
    }

    #[inline]
    unsafe fn dealloc(&self, payload: *mut u8, layout: Layout) {
        count(&FREES);
        match side() {
            // SAFETY: the caller's contract.
            Side::RqMalloc => unsafe { self.0.dealloc(payload, layout) },
            // SAFETY: as above.
            Side::System => unsafe { System.dealloc(payload, layout) },
        }
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(&ALLOCATIONS);
        match side() {
            // SAFETY: the caller's contract.
            Side::RqMalloc => unsafe { self.0.alloc_zeroed(layout) },
            // SAFETY: as above.
            Side::System => unsafe { System.alloc_zeroed(layout) },
        }
    }

    #[inline]
    unsafe fn realloc(&self, payload: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        match side() {
            // SAFETY: the caller's contract.
            Side::RqMalloc => unsafe { self.0.realloc(payload, layout, new_size) },
            // SAFETY: as above.
            Side::System => unsafe { System.realloc(payload, layout, new_size) },
        }
    }
}
