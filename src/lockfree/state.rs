//! The state of a request, in one word: who is in it, who may still enter it, and which of the
//! requests of its stub it is.
//!
//! `generation : 24 | phase : 2 | visitors : 12 | handles : 26`, from the top.
//!
//! - **L1** Of all transitions of one state, exactly one takes the last handle; it happens after
//!   everything that every other handle's holder did before dropping it.
//! - **L2** A visitor enters while the request is open and of the generation that its block names.
//!   Whoever finishes waits until no visitor is left, and sees what each of them did.
//! - **L3** Only a thread that has the stub to itself stores (`rest`, `open`, `retire`); every other
//!   transition compares what it found, or adds to it.

use crate::base::sync::{AtomicU64, Ordering};

/// The bits of a generation.
pub const GENERATION_BITS: u32 = 24;

const HANDLE_BITS: u32 = 26;
const VISITOR_BITS: u32 = 12;
const PHASE_BITS: u32 = 2;

const VISITOR_SHIFT: u32 = HANDLE_BITS;
const PHASE_SHIFT: u32 = VISITOR_SHIFT + VISITOR_BITS;
const GENERATION_SHIFT: u32 = PHASE_SHIFT + PHASE_BITS;

const _: () = assert!(
    GENERATION_SHIFT + GENERATION_BITS == u64::BITS,
    "generation, phase, visitors and handles are the whole word"
);

/// What it takes from the one phase to the other.
const OPEN_TO_CLOSING: u64 = 1 << PHASE_SHIFT;
const ONE_VISITOR: u64 = 1 << VISITOR_SHIFT;

/// Handles that a request may have: half of what can be counted, so that threads which add one at
/// the same time never overflow the count.
pub const MAX_HANDLES: u32 = 1 << (HANDLE_BITS - 1);

/// Visitors that a request may have at once.
pub const MAX_VISITORS: u32 = (1 << VISITOR_BITS) - 1;

/// How far a request is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// Its memory is nobody's but the stub's owner's.
    Over,
    /// Handles and visitors may come.
    Open,
    /// The last handle is gone; nobody enters any more.
    Closing,
}

/// What a state was at one moment.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Snapshot(u64);

impl Snapshot {
    const fn new(generation: u32, phase: Phase, visitors: u32, handles: u32) -> Self {
        let phase = match phase {
            Phase::Over => 0,
            Phase::Open => 1,
            Phase::Closing => 2,
        };
        Self(
            (generation as u64) << GENERATION_SHIFT
                | phase << PHASE_SHIFT
                | (visitors as u64) << VISITOR_SHIFT
                | handles as u64,
        )
    }

    /// Which of the requests of its stub it is.
    pub const fn generation(self) -> u32 {
        (self.0 >> GENERATION_SHIFT) as u32
    }

    /// How far it is.
    pub const fn phase(self) -> Phase {
        match self.0 >> PHASE_SHIFT & ((1 << PHASE_BITS) - 1) {
            0 => Phase::Over,
            1 => Phase::Open,
            _ => Phase::Closing,
        }
    }

    /// Threads outside that are growing a block of it.
    pub const fn visitors(self) -> u32 {
        (self.0 >> VISITOR_SHIFT) as u32 & MAX_VISITORS
    }

    /// Holders of the request.
    pub const fn handles(self) -> u32 {
        self.0 as u32 & ((1 << HANDLE_BITS) - 1)
    }

    /// Whether it is open and of this generation.
    pub const fn is_open(self, generation: u32) -> bool {
        matches!(self.phase(), Phase::Open) && self.generation() == generation
    }
}

impl core::fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let (generation, phase) = (self.generation(), self.phase());
        let (visitors, handles) = (self.visitors(), self.handles());
        write!(f, "generation {generation} {phase:?} visitors {visitors} handles {handles}")
    }
}

/// What is called before the last handle goes.
pub trait Callbacks {
    /// Whether there is nothing to call now.
    fn is_empty(&self) -> bool;
    /// Calls what there is, which may add handles, and more callbacks.
    fn run(&self);
}

/// The state. Zero: of a stub that has had no request yet, or was wiped.
pub struct State(pub AtomicU64);

impl State {
    /// What it is now.
    #[inline]
    pub fn look(&self) -> Snapshot {
        Snapshot(self.0.load(Ordering::Relaxed))
    }

    /// Whether the request of this generation is not over yet. Whoever sees that sees what opened
    /// it.
    #[inline]
    pub fn has(&self, generation: u32) -> bool {
        let seen = Snapshot(self.0.load(Ordering::Acquire));
        seen.generation() == generation && seen.phase() != Phase::Over
    }

    /// Of a stub whose last request, if any, had this generation. The stub is the caller's alone.
    pub fn rest(&self, generation: u32) {
        self.0.store(Snapshot::new(generation, Phase::Over, 0, 0).0, Ordering::Relaxed);
    }

    /// Opens a request with one handle, the caller's. The stub is the caller's alone.
    #[inline]
    pub fn open(&self, generation: u32) {
        self.0.store(Snapshot::new(generation, Phase::Open, 0, 1).0, Ordering::Release);
    }

    /// One more handle, for somebody who has one. Returns how many there were: more than
    /// `MAX_HANDLES` are a fault.
    #[inline]
    pub fn add_handle(&self) -> u32 {
        Snapshot(self.0.fetch_add(1, Ordering::Relaxed)).handles()
    }

    /// Drops the caller's handle, the last one after the callbacks have run: then the request is
    /// closing, and the caller's to finish. Whether it is.
    #[inline]
    pub fn drop_handle<C: Callbacks>(&self, callbacks: &C) -> bool {
        loop {
            match self.drop_shared() {
                None => return false,
                Some(seen) if self.close_or_run(seen, callbacks) => return true,
                Some(_) => {}
            }
        }
    }

    /// The same if the caller's is the only handle. `false`: others are alive, and the caller still
    /// has its own.
    #[inline]
    pub fn drop_only_handle<C: Callbacks>(&self, callbacks: &C) -> bool {
        loop {
            let seen = Snapshot(self.0.load(Ordering::Acquire));
            if seen.handles() != 1 {
                return false;
            }
            if self.close_or_run(seen, callbacks) {
                return true;
            }
        }
    }

    /// Drops a handle unless it is the only one; what was seen then has what every other holder did
    /// before it, and only the caller, or what it runs, can add another.
    #[inline]
    fn drop_shared(&self) -> Option<Snapshot> {
        let mut seen = Snapshot(self.0.load(Ordering::Acquire));
        while seen.handles() > 1 {
            match self.0.compare_exchange_weak(
                seen.0,
                seen.0 - 1,
                Ordering::Release,
                Ordering::Acquire,
            ) {
                Ok(_) => return None,
                Err(now) => seen = Snapshot(now),
            }
        }
        Some(seen)
    }

    /// Takes the last handle, the caller's, and the request from open to closing, unless there are
    /// callbacks, which it runs. Whether the request is closing.
    #[inline]
    fn close_or_run<C: Callbacks>(&self, mut seen: Snapshot, callbacks: &C) -> bool {
        if !callbacks.is_empty() {
            callbacks.run();
            return false;
        }
        // Only visitors come and go meanwhile.
        loop {
            match self.0.compare_exchange_weak(
                seen.0,
                seen.0 + OPEN_TO_CLOSING - 1,
                Ordering::Relaxed,
                Ordering::Relaxed,
            ) {
                Ok(_) => return true,
                Err(now) => seen = Snapshot(now),
            }
        }
    }

    /// The request is closing and no visitor is left: it is the caller's, who has closed it.
    /// `None`: wait.
    pub fn try_own(&self) -> Option<()> {
        let seen = Snapshot(self.0.load(Ordering::Acquire));
        (seen.visitors() == 0).then_some(())
    }

    /// Nothing of the request is left. The next one of this stub has another generation.
    #[inline]
    pub fn retire(&self) {
        let generation = self.look().generation();
        self.0.store(Snapshot::new(generation, Phase::Over, 0, 0).0, Ordering::Release);
    }

    /// Calls `f` as a visitor of the request with this generation, from outside: of a request that
    /// has a live block, or that was seen to be open. `None`: it is closing or over, or the stub has another one. `wait`
    /// is called again and again while there are as many visitors as can be counted.
    pub fn visit<R>(
        &self,
        generation: u32,
        mut wait: impl FnMut(),
        f: impl FnOnce() -> R,
    ) -> Option<R> {
        while !self.try_visit(generation)? {
            wait();
        }
        let result = f();
        self.end_visit();
        Some(result)
    }

    /// One visitor more. `Some(false)`: there are too many; `None`: the request does not take any.
    fn try_visit(&self, generation: u32) -> Option<bool> {
        let mut seen = self.look();
        while seen.is_open(generation) {
            if seen.visitors() == MAX_VISITORS {
                return Some(false);
            }
            let next = seen.0 + ONE_VISITOR;
            match self.0.compare_exchange_weak(seen.0, next, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return Some(true),
                Err(now) => seen = Snapshot(now),
            }
        }
        None
    }

    /// One visitor less. None is left where `recount_visitors` did not know of this one.
    fn end_visit(&self) {
        let mut seen = self.look();
        while seen.visitors() > 0 {
            let next = seen.0 - ONE_VISITOR;
            match self.0.compare_exchange_weak(seen.0, next, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => seen = Snapshot(now),
            }
        }
    }

    /// Of the visitors only so many exist, in a process that was just forked. What the others were
    /// doing in a lane is half done, so each keeps the request open for good, as threads inside do.
    pub fn recount_visitors(&self, visitors: u32) {
        let seen = self.look();
        let lost = seen.visitors().saturating_sub(visitors);
        let handles = seen.handles() + lost;
        let now = Snapshot::new(seen.generation(), seen.phase(), visitors, handles);
        // The only thread of the process: nothing else can have changed it.
        let _ = self.0.compare_exchange(seen.0, now.0, Ordering::Relaxed, Ordering::Relaxed);
    }
}
