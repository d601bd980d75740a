//! Threads: which bins are active in one, what it has entered, how it starts and how it exits.
//!
//! `active` is a thread-local pointer without a destructor: to the bins of the thread's cache, or
//! to those of the lane the thread is in. Before first use and after exit it points at a static
//! sentinel whose bins are empty and whose tag no live header equals.
//!
//! - **T1** `active` points at the bins of the newest live entry, or at the cache's if there is
//!   none.
//! - **T2** An entry owns a handle of its request from its push until it is left.
//! - **T3** A lane that a thread is in knows the thread, and how many of its live entries are in
//!   the lane; the last of them leaves it.
//! - **T4** Inside a request that traces its leaks `active` is a sentinel too: every allocation and
//!   every free takes the slow path, which finds the lane by the entry.
//!
//! Finishing a request runs user code, which may allocate and so start the thread; and an exiting
//! thread finishes requests. This file says what a thread has. Above it, each file names only
//! earlier ones: how entries are made and left, how a thread starts and exits, how requests are
//! finished, and how the slow paths of allocations and frees lead to all that.

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
pub mod background;
pub mod callbacks;
mod requests;
pub mod observe;
pub mod finish;
pub mod open;
pub mod guard;
mod refusal;
pub mod visit;
pub mod route;

pub use entries::EntryKind;

use crate::base::sync::{AtomicBool, AtomicU64, AtomicUsize, Gauge};
use crate::blocks::bins::{Bins, Kind};
use crate::blocks::trace::Site;
use crate::heap::Heap;
use crate::lockfree::asked::Asked;
use crate::lockfree::grow_list::{GrowList, Link, Linked};
use crate::persistent::cache::Cache;
use crate::request::control::Control;
use core::cell::Cell;
use entries::Entries;

/// The process's heap.
pub static HEAP: Heap = Heap::new();

/// The list of all threads there have ever been.
static ALL: GrowList<Thread> = GrowList::new();
static RUNNING_COUNT: AtomicUsize = AtomicUsize::new(0);
/// Whether the background thread runs. No thread reads anything else because of it.
static BACKGROUND_RUNS: AtomicBool = AtomicBool::new(false);
/// How often all threads were asked for what their caches keep. Each answers on its next slow path;
/// one that sees it late keeps memory for longer, no more.
static ASKED: Asked = Asked::new();

/// How many pooled control blocks a thread keeps for itself.
const MAX_STASHED: usize = 4;

/// What the allocator knows of a thread; reused by later threads (M1).
#[repr(C, align(64))]
pub struct Thread {
    /// The thread's cache.
    pub cache: Cache,
    successor: AtomicU64,
    all_next: Link<Thread>,
    next_number: Cell<u64>,
    end_number: Cell<u64>,
    stash: [Cell<*const Control>; MAX_STASHED],
    stash_count: Cell<usize>,
    /// The serials that the stashed ones had at the last look.
    stash_seen: [Cell<u64>; MAX_STASHED],
    next_look: Cell<u64>,
    /// How many requests this thread opened and finished; for figures.
    opened_count: Gauge,
    finished_count: Gauge,
    entries: Entries,
    /// The request that this thread is visiting; null: none.
    visited: Cell<*const Control>,
    slow_count: Cell<u32>,
    /// When it last looked at the clock, and how many looks in a row came soon.
    looked_at: Cell<u64>,
    brisk_count: Cell<u32>,
    next_age: Cell<u64>,
    /// Which `ASKED` it has answered.
    answered: Cell<u64>,
    /// How many callers up the stack would catch a bailout that unwinds.
    pub catching_count: Cell<usize>,
    /// The number of the innermost suspension the thread is in; 0: none. Later ones have larger
    /// numbers.
    pub suspension: Cell<u64>,
    last_suspension: Cell<u64>,
    /// Whether what unwinds, if anything does, is a bailout.
    pub is_bailing_out: Cell<bool>,
    /// The order of the entry after which the thread is outside of requests, though it has not left
    /// them: it tells others about one.
    outside_after: Cell<u64>,
    /// Whether an observer is being told something.
    is_observing: Cell<bool>,
    /// What a higher wing keeps for this thread; null: nothing.
    pub extension: Cell<*const Extension>,
    /// The call site of the current allocation, if its caller gave it.
    pub site: Cell<Site>,
}

impl Linked for Thread {
    fn link(&self) -> &Link<Self> {
        &self.all_next
    }
}

/// The head of what a higher wing keeps for a thread. It stays with the thread's memory (M1): the
/// memory's next thread has it too.
#[repr(C)]
pub struct Extension {
    /// Forgets everything, because the thread exits.
    pub clear: unsafe fn(*const Extension),
}

/// Returns the bins that are active in this thread.
#[inline(always)]
pub fn active() -> &'static Bins {
    // SAFETY: a static sentinel, or the bins of a cache or a lane (T1, T4), which are never
    // unmapped (M1).
    unsafe { &*local::active() }
}

/// Returns this thread, if it has used the heap and not exited.
pub fn current() -> Option<&'static Thread> {
    // SAFETY: null, or a thread (M1).
    unsafe { local::thread().cast::<Thread>().as_ref() }
}

/// Returns the innermost request that this thread is inside.
pub fn current_control() -> Option<&'static Control> {
    current()?.current_control()
}

/// Whether this thread has given everything back: only its last destructors still run.
pub fn has_exited() -> bool {
    active().kind() == Kind::Exited
}

impl Thread {
    /// Walks the thread's entries and cache; fatal when they contradict themselves.
    pub fn check(&self) {
        self.entries.check();
        self.cache.check();
    }
}

/// Calls `visit` with the cache of every thread there is or has been.
pub fn each_cache(mut visit: impl FnMut(&Cache)) {
    each_thread(|thread| visit(&thread.cache));
}

fn each_thread(visit: impl FnMut(&Thread)) {
    ALL.all().for_each(visit);
}

/// Gives the idle memory of this thread and of the process back to the system. Returns the bytes
/// given back.
pub fn trim() -> usize {
    ASKED.ask();
    if let Some(thread) = current() {
        HEAP.flush(&thread.cache);
        thread.unstash_all();
    }
    HEAP.release_all_idle()
}
