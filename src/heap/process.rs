//! The limit of the process. When it has more in use than that, the open requests that hold most
//! are marked, largest first, until the process would be below without those that are marked.
//!
//! A *round* looks at every open request once, a portion at a time, and then marks the largest that
//! it has seen. While one goes on, every thread that looks does a portion, one after the other.
//!
//! | field | written by | read by |
//! |---|---|---|
//! | `limit` | who sets the limit | any thread |
//! | `next_look` | who claims a look by it | any thread |
//! | `seen_bytes`, `in_use_bytes` | who looks | any thread |
//! | `next_leaf` | who begins a round, from 0; else who has the turn | any thread |
//! | `turn` | see `lifecycle` | |
//! | `round` | who has the turn | the same |
//!
//! - **Y1** Nobody waits for the turn, so what its holder reads may fault. A request is marked by a
//!   visitor (L2), once.

use crate::base::sync::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use crate::lockfree::lifecycle::Occupancy;
use crate::lockfree::state::Phase;
use crate::request::control::Control;
use crate::request::stub::Stub;
use core::cell::Cell;

/// The interval at which it is looked whether the process is above its limit, in milliseconds, while
/// it could be.
const LOOK_MILLISECONDS: u64 = 10;
/// It is also looked when the process has grown by this part of the limit since the last look, or by
/// so many bytes if that is more.
const GROWTH_DIVISOR: usize = 64;
const MIN_GROWTH_BYTES: usize = 1024 * 1024;
/// How many requests are marked at most at the end of one round.
pub const MOST_MARKED: usize = 32;

/// The limit, and who may have to go.
pub struct ProcessLimit {
    /// The complement of the limit in bytes: 0 is none.
    pub limit: AtomicUsize,
    pub next_look: AtomicU64,
    /// What was mapped at the last look.
    pub seen_bytes: AtomicUsize,
    /// What was in use then.
    pub in_use_bytes: AtomicUsize,
    /// The leaf at which a round goes on, and one more; 0: there is none.
    pub next_leaf: AtomicUsize,
    pub turn: Occupancy,
    pub round: Round,
}

// SAFETY: `round` is its own who has the turn; everything else is atomic.
unsafe impl Sync for ProcessLimit {}

/// An open request that may be marked.
#[derive(Clone, Copy)]
pub struct Candidate {
    pub index: u32,
    pub generation: u32,
    /// What it holds without its children.
    pub bytes: usize,
}

/// What a round has seen.
pub struct Round {
    /// What requests hold that are marked already.
    pub marked_bytes: Cell<usize>,
    /// The largest others, in descending order.
    pub largest: [Cell<Candidate>; MOST_MARKED],
    pub count: Cell<usize>,
}

impl Round {
    /// Nothing is seen yet.
    pub fn begin(&self) {
        self.marked_bytes.set(0);
        self.count.set(0);
    }

    /// Notes what an open request holds. The stub may be wiped meanwhile, and its control block be
    /// another request's: what is read then is wrong, and harmless.
    pub fn note_stub(&self, stub: &'static Stub) {
        let state = stub.state.look();
        let control: *const Control = stub.control().cast();
        // SAFETY: null, or a control block (M1), of which only atomics are read.
        let Some(control) = (unsafe { control.as_ref() }) else { return };
        if state.phase() != Phase::Open {
            return;
        }
        let bytes = control.own_bytes();
        if control.is_marked_for_process() {
            self.marked_bytes.set(self.marked_bytes.get() + bytes);
        } else if bytes > 0 {
            self.note(Candidate { index: stub.index(), generation: state.generation(), bytes });
        }
    }

    /// Keeps a request if it is one of the largest.
    fn note(&self, candidate: Candidate) {
        let count = self.count.get();
        let smaller = |place: &Cell<Candidate>| place.get().bytes < candidate.bytes;
        let place = self.largest[..count].iter().position(smaller).unwrap_or(count);
        if place == MOST_MARKED {
            return;
        }
        let kept = (count + 1).min(MOST_MARKED);
        for index in (place + 1..kept).rev() {
            self.largest[index].set(self.largest[index - 1].get());
        }
        self.largest[place].set(candidate);
        self.count.set(kept);
    }
}

impl ProcessLimit {
    /// No limit.
    pub const fn new() -> Self {
        const NOBODY: Candidate = Candidate { index: 0, generation: 0, bytes: 0 };
        Self {
            limit: AtomicUsize::new(0),
            next_look: AtomicU64::new(0),
            seen_bytes: AtomicUsize::new(0),
            in_use_bytes: AtomicUsize::new(0),
            next_leaf: AtomicUsize::new(0),
            turn: Occupancy(AtomicBool::new(false)),
            round: Round {
                marked_bytes: Cell::new(0),
                largest: [const { Cell::new(NOBODY) }; MOST_MARKED],
                count: Cell::new(0),
            },
        }
    }

    /// Returns the limit in bytes.
    #[inline]
    pub fn get(&self) -> Option<usize> {
        match self.limit.load(Ordering::Relaxed) {
            0 => None,
            complement => Some(!complement),
        }
    }

    /// Whether a look is due at this time, or for what is mapped now; claims it.
    pub fn claim(&self, now: u64, mapped_bytes: usize, limit_bytes: usize) -> bool {
        let due = self.next_look.load(Ordering::Relaxed);
        let growth_bytes = mapped_bytes.saturating_sub(self.seen_bytes.load(Ordering::Relaxed));
        let is_due =
            now >= due || growth_bytes >= (limit_bytes / GROWTH_DIVISOR).max(MIN_GROWTH_BYTES);
        let next = now + LOOK_MILLISECONDS;
        is_due
            && self
                .next_look
                .compare_exchange(due, next, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }

    /// Makes the turn free in a process that was just forked: its holder may not be there.
    pub fn recover(&self) {
        self.next_leaf.store(0, Ordering::Relaxed);
        self.turn.leave();
    }
}
