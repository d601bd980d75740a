//! A leaf of 64 slots for things that are made when they are taken, and whose memory is wiped when
//! they have been idle for long.
//!
//! Compiled by `loom-tests`. It knows bits, not memory: `Contents` does. A thing may have a stub
//! beside it, which others find by the slot's number at any time.
//!
//! - **I1** A slot whose idle bit a claim has cleared is the claimer's until it is given back (B1,
//!   B2). A spent slot is nobody's any more: only who wipes it touches it.
//! - **I2** The thing in a made slot is whole. Its owner notes that it is made after it has written
//!   it, and takes that back before it wipes any of it.
//! - **I3** Before stubs are wiped the leaf keeps the last generation that any of them had, and the
//!   next one that a slot opens is above it: who finds no generation in a stub asks the leaf.
//! - **I4** Whoever walks what is in use sees each thing as its maker left it, or later.

use crate::base::sync::{AtomicU32, AtomicU64, AtomicUsize, Ordering, fence, step};
use crate::lockfree::bitmap::{PageBitmap, runs};
use crate::lockfree::state::State;

/// Slots in a leaf: one word has a bit for each.
pub const LEAF_SLOTS: usize = u64::BITS as usize;

/// The leaf. All zero: it has no memory.
pub struct Leaf {
    /// Where its memory is; 0: nowhere yet.
    pub base: AtomicUsize,
    /// Which slots are nobody's, and can be taken.
    pub idle: PageBitmap<1>,
    /// Which have a thing in them.
    pub made: AtomicU64,
    /// Which are never taken again.
    pub spent: AtomicU64,
    /// Which were idle at the last look, and which at the one before, too; of others it means
    /// nothing.
    pub aged: [AtomicU64; 2],
    /// The highest generation of any stub when they were wiped last.
    pub kept: AtomicU32,
}

/// What is in the slots of a leaf.
pub trait Contents {
    /// Gives back what the idle thing in a slot has besides its own memory.
    fn strip(&self, slot: usize);
    /// Returns which slots of a run lose memory when it is wiped.
    fn wiped(&self, first: usize, count: usize) -> u64;
    /// Wipes what it can of a run: that reads as zero afterwards.
    fn wipe(&self, first: usize, count: usize);
}

const fn bit(slot: usize) -> u64 {
    1 << slot
}

fn slots_in(mut bits: u64) -> impl Iterator<Item = usize> {
    core::iter::from_fn(move || {
        let slot = bits.trailing_zeros() as usize;
        bits &= bits.wrapping_sub(1);
        (slot < LEAF_SLOTS).then_some(slot)
    })
}

impl Leaf {
    /// Gives the leaf its memory; all slots but the `spent` ones are idle then. `false`: it has
    /// other memory.
    pub fn open(&self, base: usize, spent: u64, publish: impl Fn()) -> bool {
        if self.base.compare_exchange(0, base, Ordering::Release, Ordering::Relaxed).is_err() {
            return false;
        }
        self.spent.fetch_or(spent, Ordering::Relaxed);
        self.idle.set(0, !spent);
        publish();
        true
    }

    /// Where its memory is. `None`: it has none.
    #[inline]
    pub fn base(&self) -> Option<usize> {
        match self.base.load(Ordering::Acquire) {
            0 => None,
            base => Some(base),
        }
    }

    /// Takes the first idle slot, which is the caller's (I1). Returns it, and whether there is a
    /// thing in it.
    pub fn take(&self, publish: impl Fn()) -> Option<(usize, bool)> {
        let Some(slot) = self.idle.take(1, || ()) else {
            publish();
            return None;
        };
        Some((slot, self.made.load(Ordering::Relaxed) & bit(slot) != 0))
    }

    /// Notes that the thing in the caller's slot is whole (I2, I4).
    pub fn note_made(&self, slot: usize) {
        self.made.fetch_or(bit(slot), Ordering::Release);
    }

    /// Gives a slot back, as one that was used just now or, if `is_old`, long ago.
    pub fn give(&self, slot: usize, is_old: bool, publish: impl Fn()) {
        for word in &self.aged {
            if is_old {
                word.fetch_or(bit(slot), Ordering::Relaxed);
            } else if word.load(Ordering::Relaxed) & bit(slot) != 0 {
                word.fetch_and(!bit(slot), Ordering::Relaxed);
            }
        }
        self.idle.set(0, bit(slot));
        publish();
    }

    /// Gives a slot up for good: no generation is left for it.
    pub fn spend(&self, slot: usize) {
        self.spent.fetch_or(bit(slot), Ordering::Relaxed);
    }

    /// Strips and wipes idle things: unless `all`, those that were idle at the last two looks, too.
    /// Returns how many went.
    pub fn purge(&self, all: bool, contents: &impl Contents, publish: impl Fn()) -> usize {
        let [idle] = self.idle.snapshot();
        let [made, spent] = [&self.made, &self.spent].map(|word| word.load(Ordering::Relaxed));
        let [last, before] = [0, 1].map(|age| self.aged[age].load(Ordering::Relaxed));
        self.aged[1].store(last & idle, Ordering::Relaxed);
        self.aged[0].fetch_or(idle, Ordering::Relaxed);
        let due = idle & made & if all { u64::MAX } else { last & before };
        if due | (spent & made) == 0 {
            return 0;
        }
        let mut went = 0;
        for (first, count) in runs(&[idle & (due | !made) | spent]) {
            let run = (u64::MAX >> (LEAF_SLOTS - count)) << first;
            let mine = run & !spent;
            if run & (due | (spent & made)) != 0 && self.idle.claim(0, mine) {
                went += self.purge_run(first, count, mine, contents);
                self.idle.set(0, mine);
            }
        }
        publish();
        went
    }

    /// The same for the slots of a run: `mine` are the caller's, the others are spent.
    fn purge_run(&self, first: usize, count: usize, mine: u64, contents: &impl Contents) -> usize {
        let made = self.made.load(Ordering::Relaxed);
        step();
        slots_in(made & mine).for_each(|slot| contents.strip(slot));
        step();
        let going = made & contents.wiped(first, count);
        if going != 0 {
            self.made.fetch_and(!going, Ordering::Relaxed);
            step();
            contents.wipe(first, count);
            step();
        }
        going.count_ones() as usize
    }

    /// Whether a slot is never taken again.
    pub fn is_spent(&self, slot: usize) -> bool {
        self.spent.load(Ordering::Relaxed) & bit(slot) != 0
    }

    /// Keeps what is lost with a stub that is wiped next (I3). The caller has its slot.
    pub fn keep(&self, generation: u32) {
        self.kept.fetch_max(generation, Ordering::Relaxed);
    }

    /// Returns the generation above which the caller's slot opens, if its stub was wiped.
    pub fn kept(&self) -> u32 {
        self.kept.load(Ordering::Relaxed)
    }

    /// Returns whether the stub of a slot, or one like it that was wiped, has had this generation.
    pub fn was_issued(&self, slot: usize, state: &State, generation: u32) -> bool {
        if generation <= state.look().generation() {
            return true;
        }
        // Who finds a wiped stub finds what was kept before.
        fence(Ordering::Acquire);
        generation <= self.kept() || self.is_spent(slot)
    }

    /// Returns how many slots have a thing in them, and how many of those are idle.
    pub fn figures(&self) -> (usize, usize) {
        let made = self.made.load(Ordering::Relaxed);
        let [idle] = self.idle.snapshot();
        (made.count_ones() as usize, (made & idle).count_ones() as usize)
    }

    /// Returns how many slots are both idle and spent: none.
    pub fn contradictions(&self) -> usize {
        let [idle] = self.idle.snapshot();
        (idle & self.spent.load(Ordering::Relaxed)).count_ones() as usize
    }

    /// Returns the slots whose thing has an owner (I4).
    pub fn in_use(&self) -> impl Iterator<Item = usize> {
        let [idle] = self.idle.snapshot();
        slots_in(self.made.load(Ordering::Acquire) & !idle & !self.spent.load(Ordering::Relaxed))
    }
}
