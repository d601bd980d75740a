//! How many still need a request, a survivor span, a lane: the words on which the last one decides.
//!
//! Compiled by `loom-tests`. Each type is one word with named transitions:
//!
//! | word | who changes it | what its zero means |
//! |---|---|---|
//! | `Handles` | holders of a `Request` or of an entry; visitors | (no handle:) the request closes |
//! | `SpanCount` | the closer, and who frees a survivor | the span is nobody's: give it back |
//! | `Holds` | the closer, and who gives back a survivor span | the control block is recycled |
//! | `LargeCount` | who allocates and frees large blocks, under their list's lock | the list is empty |
//! | `Occupancy` | who enters and leaves a lane | (set: a thread allocates from it) |
//!
//! - **L1** Of all transitions of one word, exactly one returns "last"; it happens after everything
//!   that every other one did before its own.
//! - **L2** A span count starts when its region is made and is added to when its request is closed: it
//!   runs below zero by the frees that come while the closer still counts. (Storing it at close would
//!   lose them.)
//! - **L3** A large block's request is not over before its count is off, and whoever sees it off sees the
//!   list without the block.

use crate::base::sync::{AtomicBool, AtomicU32, AtomicU64, Ordering, const_fn};

/// How many handles a request has, and how many visitors: threads outside that hold a live block of it
/// and take another one. Visitors keep nobody from closing it; who does waits for them.
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

    /// The first handle of a request that nobody else knows yet.
    #[inline]
    pub fn open(&self) {
        self.0.store(1, Ordering::Relaxed);
    }

    /// One more, by a holder. Returns how many there were.
    #[inline]
    pub fn add(&self) -> u32 {
        (self.0.fetch_add(1, Ordering::Relaxed) & HANDLES) as u32
    }

    /// One less; `true` for the last one.
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

    /// The last one was dropped, and who is to finish the request has something to do in it first: the
    /// handle is the caller's again.
    pub fn reopen(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// How many there are just now.
    pub fn count(&self) -> u32 {
        (self.0.load(Ordering::Relaxed) & HANDLES) as u32
    }

    /// One more visitor, who has no handle but holds a live block of the request; `false`: the last
    /// handle is gone, the request is closed or being closed.
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

    /// One visitor less; none is less than none, where `recount_visitors` did not know of this one.
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

    /// No visitor is left; who dropped the last handle has the request to itself then. `None`: wait.
    pub fn try_own(&self) -> Option<()> {
        (self.0.load(Ordering::Acquire) < ONE_VISITOR).then_some(())
    }

    /// Of the visitors only so many are there, in a process that was just forked. What the others were
    /// doing in a lane is half done, so they keep the request open for good, as threads inside do.
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
    /// The count of a region that is made and not handed out yet (L2).
    pub fn arm(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    /// A survivor was freed; `true` when it was the last and the closer is done with the span.
    pub fn drop_one(&self) -> bool {
        self.0.fetch_sub(1, Ordering::AcqRel) == 1
    }

    /// The closer has found `live` survivors; `true` when all of them were freed meanwhile.
    pub fn settle(&self, live: u64) -> bool {
        self.0.fetch_add(live, Ordering::AcqRel).wrapping_add(live) == 0
    }
}

/// How many large blocks a request has.
pub struct LargeCount(AtomicU64);

impl LargeCount {
    const_fn! {
        /// None.
        pub const fn new() -> Self {
            Self(AtomicU64::new(0))
        }
    }

    /// None, in a request that nobody else knows yet.
    pub fn open(&self) {
        self.recount(0);
    }

    /// So many, by the only thread there is.
    pub fn recount(&self, count: u64) {
        self.0.store(count, Ordering::Relaxed);
    }

    /// One more, on the list by now.
    pub fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// One less: the last thing its free does to the request (L3).
    pub fn drop_one(&self) {
        self.0.fetch_sub(1, Ordering::Release);
    }

    /// How many there are; at 0 the list is empty for good, for who closes.
    pub fn count(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }
}

/// How many survivor spans, and whether a closer, still need the control block.
pub struct Holds(AtomicU32);

impl Holds {
    const_fn! {
        /// Nobody does.
        pub const fn new() -> Self {
            Self(AtomicU32::new(0))
        }
    }

    /// The closer's own hold, for the whole of its walk.
    pub fn begin(&self) {
        self.0.store(1, Ordering::Relaxed);
    }

    /// One more span, before its count is settled.
    pub fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// One less; `true` for the last one, who recycles the control block.
    pub fn drop_one(&self) -> bool {
        self.0.fetch_sub(1, Ordering::AcqRel) == 1
    }
}

/// Whether a thread allocates from a lane. Zero: the lane is idle.
pub struct Occupancy(pub AtomicBool);

impl Occupancy {
    /// Takes an idle lane and sees all that its last occupant did.
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

    /// Whether somebody has it just now.
    #[inline]
    pub fn is_taken(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
