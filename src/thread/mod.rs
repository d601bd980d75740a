//! Threads: which bins are active in one, what it has entered, how it starts and how it exits.
//!
//! `active` is one thread-local pointer without a destructor: to the thread cache's bins, or to
//! those of the lane the thread is in. Before first use and after exit it points at a static
//! sentinel whose bins are empty and whose tag no live header equals.
//!
//! - **T1** `active` is the bins of the topmost live entry, or the cache's when there is none.
//! - **T2** An entry owns a handle of its request from when it is pushed until it is left.
//! - **T3** A lane that a thread is in knows the thread, and how many of its live entries are in it; the
//!   last one leaves it.
//! - **T4** Inside a request that traces its leaks `active` is a sentinel too: every allocation and every
//!   free goes the slow way, which finds the lane by the entry.
//!
//! Finishing a request runs what its user gave, which may allocate and so start the thread; and a thread
//! that exits finishes requests. Here is what a thread has. Above it, each file names earlier ones: how
//! entries are made and left, how a thread starts and exits, how requests are finished, and how the slow
//! ways of an allocation and of a free lead to all that.

pub mod cancel;
mod entries;
mod pin;
mod sentinels;
#[cfg_attr(
    all(feature = "capi", target_os = "linux", target_arch = "x86_64"),
    path = "local_initial_exec.rs"
)]
mod local;
pub mod persistent;
mod inside;
mod fork;
pub mod life;
pub mod callbacks;
mod requests;
pub mod finish;
pub mod open;
pub mod guard;
mod refusal;
pub mod route;

pub use entries::EntryKind;

use crate::base::sync::{AtomicPtr, AtomicU64, AtomicUsize, Gauge, Ordering};
use crate::blocks::bin::{Bins, Kind};
use crate::blocks::trace::Site;
use crate::heap::Heap;
use crate::persistent::cache::Cache;
use crate::request::control::Control;
use core::cell::Cell;
use core::ptr::null_mut;
use entries::Entries;

/// The heap of the process.
pub static HEAP: Heap = Heap::new();

/// All threads there ever were.
static ALL: AtomicPtr<Thread> = AtomicPtr::new(null_mut());
static RUNNING_COUNT: AtomicUsize = AtomicUsize::new(0);

/// Pooled control blocks that a thread keeps for itself.
const MAX_STASHED: usize = 4;

/// What the allocator knows of a thread. Type-stable, reused by later threads.
#[repr(C, align(64))]
pub struct Thread {
    /// First, so that the cache's bins lead to the thread.
    pub cache: Cache,
    successor: AtomicU64,
    all_next: Cell<*const Thread>,
    stash: [Cell<*const Control>; MAX_STASHED],
    stash_count: Cell<usize>,
    /// Requests this thread opened and finished; for figures.
    opened_count: Gauge,
    finished_count: Gauge,
    entries: Entries,
    /// The request that this thread visits; null: none.
    visited: Cell<*const Control>,
    slow_count: Cell<u32>,
    next_age: Cell<u64>,
    /// How many callers up the stack wait for a bailout by unwinding.
    pub catching_count: Cell<usize>,
    /// The suspension that the thread is in, innermost; 0: none. Each has a number of its own, later ones
    /// larger ones.
    pub suspension: Cell<u64>,
    last_suspension: Cell<u64>,
    /// What a wing above has of this thread; null: nothing.
    pub extension: Cell<*const Extension>,
    /// Where the allocation is that is going on, when its caller says so.
    pub site: Cell<Site>,
}

/// How what a wing above has of a thread begins. It is type-stable: the memory's next thread has it too.
#[repr(C)]
pub struct Extension {
    /// Forgets everything: the thread exits.
    pub clear: unsafe fn(*const Extension),
}

/// The bins that are active in this thread.
#[inline(always)]
pub fn active() -> &'static Bins {
    // SAFETY: `active` always points at a sentinel, a cache or a lane, all of which are for ever.
    unsafe { &*local::active() }
}

/// This thread, if it has used the heap and not exited.
pub fn current() -> Option<&'static Thread> {
    // SAFETY: null, or a thread, which is type-stable.
    unsafe { local::thread().cast::<Thread>().as_ref() }
}

/// The innermost request that this thread is inside.
pub fn current_control() -> Option<&'static Control> {
    current()?.current_control()
}

/// Whether this thread has given everything back: only its last destructors run.
pub fn has_exited() -> bool {
    active().kind() == Kind::Exited
}

impl Thread {
    /// Walks what the thread has; fatal when it contradicts itself.
    pub fn check(&self) {
        self.entries.check();
        self.cache.check();
    }
}

/// Calls `visit` with the cache of every thread there is or was.
pub fn each_cache(mut visit: impl FnMut(&Cache)) {
    each_thread(|thread| visit(&thread.cache));
}

fn each_thread(mut visit: impl FnMut(&Thread)) {
    let mut next: *const Thread = ALL.load(Ordering::Acquire);
    // SAFETY: threads are type-stable and their list only grows.
    while let Some(thread) = unsafe { next.as_ref() } {
        visit(thread);
        next = thread.all_next.get();
    }
}

/// Gives everything idle of this thread and of the process back to the system; the bytes that went.
pub fn trim() -> usize {
    if let Some(thread) = current() {
        thread.cache.flush(|class, magazine| HEAP.put_magazine(class, magazine));
        for control in thread.stash.iter().take(thread.stash_count.get()) {
            // SAFETY: stashed control blocks are this thread's.
            HEAP.release_warm_of(unsafe { &*control.get() });
        }
    }
    HEAP.release_all_idle()
}
