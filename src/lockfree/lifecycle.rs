//! How much still needs a request, a survivor span or a lane: the words that tell which user is the
//! last.
//!
//! Compiled by `loom-tests`. Each type is one word with named transitions:
//!
//! | word | changed by | what its zero means |
//! |---|---|---|
//! | `Handles` | holders of a `Request` or of an entry; visitors | (no handle) the request closes |
//! | `SpanCount` | the closer, and threads that free a survivor | the span is needed no more: give it back |
//! | `Holds` | the closer, and threads that give back a survivor span | the control block is recycled |
//! | `LargeCount` | threads that allocate and free large blocks, under their list's lock | the list is empty |
//! | `Occupancy` | threads that enter and leave a lane | (set: a thread allocates from it) |
//!
//! - **L1** Of all transitions of one word, exactly one returns "last"; it happens after everything
//!   that every other thread did before its own.
//! - **L2** A span count starts when its region is made and is added to when its request is closed:
//!   frees that come while the closer still counts take it below zero. (Storing it at close would
//!   lose them.)
//! - **L3** A request is not over before its large blocks are off the count, and a thread that sees
//!   a block off the count sees the list without it.

use crate::base::sync::{AtomicBool, AtomicU32, AtomicU64, Ordering, const_fn};

/// How many handles a request has, and how many visitors: threads outside it that have a live block
/// of it and take another one. Visitors do not keep other threads from closing it; the closing
/// thread waits for them.
pub struct Handles(AtomicU64);

const HANDLES: u64 = u32::MAX as u64;
const ONE_VISITOR: u64 = 1 << u32::BITS;

impl Handles {
    const_fn! {
        /// No handle: the control block is pooled.
        pub const fn new() -> Self {
            Self(AtomicU64::new(0))
        }
    }

    /// Counts the first handle of a request that no other thread knows yet.
    #[inline]
    pub fn open(&self) {
        self.0.store(1, Ordering::Relaxed);
    }

    /// Adds a handle, for a thread that has one. Returns how many there were.
    #[inline]
    pub fn add(&self) -> u32 {
        (self.0.fetch_add(1, Ordering::Relaxed) & HANDLES) as u32
    }

    /// Drops a handle; `true` for the last one.
    #[inline]
    pub fn drop_one(&self) -> bool {
        self.0.fetch_sub(1, Ordering::AcqRel) & HANDLES == 1
    }

    /// Drops the caller's handle if it is the only one. `false`: nothing has changed.
    #[inline]
    pub fn drop_if_only(&self) -> bool {
        let mut seen = self.0.load(Ordering::Relaxed);
        while seen & HANDLES == 1 {
            match self.0.compare_exchange_weak(seen, seen - 1, Ordering::Acquire, Ordering::Relaxed)
            {
                Ok(_) => return true,
                Err(now) => seen = now,
            }
        }
        false
    }

    /// Takes the last handle back, after it was dropped: the thread that is to finish the request
    /// has something to do in it first.
    pub fn reopen(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// How many there are just now.
    pub fn count(&self) -> u32 {
        (self.0.load(Ordering::Relaxed) & HANDLES) as u32
    }

    /// Adds a visitor, which has no handle but a live block of the request. `false`: the last
    /// handle is gone, so the request is closed or being closed.
    pub fn try_visit(&self) -> bool {
        let mut seen = self.0.load(Ordering::Relaxed);
        while seen & HANDLES != 0 {
            let next = seen + ONE_VISITOR;
            match self.0.compare_exchange_weak(seen, next, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(now) => seen = now,
            }
        }
        false
    }

    /// Removes a visitor. Does nothing if there is none, because `recount_visitors` did not know of
    /// this one.
    pub fn end_visit(&self) {
        let mut seen = self.0.load(Ordering::Relaxed);
        while seen >= ONE_VISITOR {
            let next = seen - ONE_VISITOR;
            match self.0.compare_exchange_weak(seen, next, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => seen = now,
            }
        }
    }

    /// Succeeds once no visitor is left: then the thread that dropped the last handle has the
    /// request to itself. `None`: wait.
    pub fn try_own(&self) -> Option<()> {
        (self.0.load(Ordering::Acquire) < ONE_VISITOR).then_some(())
    }

    /// Keeps only `visitors` of the visitors, in a process that was just forked. What the others
    /// were doing in a lane is half done, so they keep the request open for good, as threads inside
    /// do.
    pub fn recount_visitors(&self, visitors: u32) {
        let word = self.0.load(Ordering::Relaxed);
        let lost = (word / ONE_VISITOR).saturating_sub(visitors.into());
        let handles = (word & HANDLES) + lost;
        self.0.store(handles + u64::from(visitors) * ONE_VISITOR, Ordering::Relaxed);
    }
}

/// How many live blocks a survivor span has.
pub struct SpanCount(pub AtomicU64);

impl SpanCount {
    /// Sets up the count of a region that is not handed out yet (L2).
    pub fn arm(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    /// Counts a survivor's free; `true` if it was the last and the closer is done with the span.
    pub fn drop_one(&self) -> bool {
        self.0.fetch_sub(1, Ordering::AcqRel) == 1
    }

    /// Adds the `live` survivors that the closer has found; `true` if all were freed meanwhile.
    pub fn settle(&self, live: u64) -> bool {
        self.0.fetch_add(live, Ordering::AcqRel).wrapping_add(live) == 0
    }
}

/// How many large blocks a request has.
pub struct LargeCount(AtomicU64);

impl LargeCount {
    const_fn! {
        /// No large block.
        pub const fn new() -> Self {
            Self(AtomicU64::new(0))
        }
    }

    /// Sets the count of a request that no other thread knows yet to 0.
    pub fn open(&self) {
        self.recount(0);
    }

    /// Sets the count, in the only thread there is.
    pub fn recount(&self, count: u64) {
        self.0.store(count, Ordering::Relaxed);
    }

    /// Adds a block that is on the list by now.
    pub fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// Takes a block off the count: the last thing its free does to the request (L3).
    pub fn drop_one(&self) {
        self.0.fetch_sub(1, Ordering::Release);
    }

    /// Returns how many there are; once a closer reads 0, the list stays empty.
    pub fn count(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }
}

/// How many survivor spans, and whether a closer, still need the control block.
pub struct Holds(AtomicU32);

impl Holds {
    const_fn! {
        /// No hold.
        pub const fn new() -> Self {
            Self(AtomicU32::new(0))
        }
    }

    /// Begins with the closer's own hold, for the whole of its walk.
    pub fn begin(&self) {
        self.0.store(1, Ordering::Relaxed);
    }

    /// Adds a span's hold, before its count is settled.
    pub fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// Drops a hold; `true` for the last one, whose thread recycles the control block.
    pub fn drop_one(&self) -> bool {
        self.0.fetch_sub(1, Ordering::AcqRel) == 1
    }
}

/// Whether a thread allocates from a lane. Zero: the lane is idle.
pub struct Occupancy(pub AtomicBool);

impl Occupancy {
    /// Takes an idle lane, and sees everything its last occupant did.
    #[inline]
    pub fn try_enter(&self) -> bool {
        !self.is_taken()
            && self.0.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    /// Makes the lane idle again.
    #[inline]
    pub fn leave(&self) {
        self.0.store(false, Ordering::Release);
    }

    /// Returns whether a thread is in the lane now.
    #[inline]
    pub fn is_taken(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
