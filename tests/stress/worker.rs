//! A thread of the program: where it is, by the model, and what it does next.

use crate::failure::note_action;
use crate::model::{Block, Owner, Tracked, lock, persistent_vec};
use crate::options::{breaks, with};
use crate::random::Random;
use rqmalloc::{Entered, Request, persistent};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

pub const REQUEST_COUNT: usize = 6;
pub const SLOT_COUNT: usize = 128;
pub const SCOPE_COUNT: usize = 4;
/// Most blocks that a thread has for itself, and most entries.
pub const OWN_COUNT: usize = 100;
const ENTRY_COUNT: usize = 14;
/// How deeply closures nest.
const CLOSURE_COUNT: usize = 4;

/// What all threads of a round share.
pub struct Shared {
    /// Requests that any thread may enter.
    pub requests: Vec<Mutex<Arc<Tracked>>>,
    /// Requests with one handle that any thread may look at, one for each worker.
    pub soles: Vec<Mutex<Option<Arc<Tracked>>>>,
    pub slots: Vec<Mutex<Option<Block>>>,
    pub scopes: Vec<Mutex<Option<crate::scopes::Held>>>,
    /// The blocks of each worker, for the thread that looks when all stand still.
    pub owns: Vec<Mutex<Vec<Block>>>,
    /// Every request of this round.
    pub all: Mutex<Vec<Arc<Tracked>>>,
    /// Handles that callbacks took while their request was closed.
    pub revived: Mutex<Vec<Request>>,
    /// Locked by callbacks, and by threads while they only allocate.
    pub guarded: Mutex<u64>,
    /// Whether there is only one worker: then everything repeats itself.
    pub is_alone: bool,
    pub counts: [AtomicUsize; crate::rounds::COUNT_NAMES.len()],
}

impl Shared {
    pub fn new(workers: usize, is_alone: bool) -> Arc<Self> {
        persistent(|| {
            let all = Mutex::new(Vec::with_capacity(1024));
            let request = || {
                let request = Request::new();
                let tracked = Tracked::new(request.id(), Some(request), false, false);
                lock(&all).push(tracked.clone());
                Mutex::new(tracked)
            };
            Arc::new(Self {
                requests: (0..REQUEST_COUNT).map(|_| request()).collect(),
                soles: (0..workers).map(|_| Mutex::default()).collect(),
                slots: (0..SLOT_COUNT).map(|_| Mutex::default()).collect(),
                scopes: (0..SCOPE_COUNT).map(|_| Mutex::default()).collect(),
                owns: (0..workers).map(|_| Mutex::new(persistent_vec(OWN_COUNT))).collect(),
                all,
                revived: Mutex::new(Vec::with_capacity(16)),
                guarded: Mutex::new(0),
                is_alone,
                counts: [const { AtomicUsize::new(0) }; crate::rounds::COUNT_NAMES.len()],
            })
        })
    }

    /// Counts, by name, something that a run should see.
    pub fn count(&self, name: &str) {
        let index = crate::rounds::COUNT_NAMES.iter().position(|other| *other == name);
        self.counts[index.unwrap()].fetch_add(1, Ordering::Relaxed);
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Guard,
    Hook,
    /// Left by the caller of the closure.
    Closure,
    Forgotten,
}

/// Where this thread is, by the model.
pub struct Entry {
    pub serial: u64,
    pub kind: Kind,
    /// `None`: inside `persistent`.
    pub target: Owner,
    pub guard: Option<Entered>,
}

pub struct Worker {
    pub shared: Arc<Shared>,
    pub random: Random,
    /// The index of this thread in `owns` and among the recorded actions.
    pub place: usize,
    /// The vector of `owns` while the thread works.
    pub own: Vec<Block>,
    pub entries: Vec<Entry>,
    pub serial: u64,
    pub closures: usize,
    pub pattern: u64,
    /// Whether it was started by another worker or in a forked process: then it starts no thread
    /// and does not fork.
    pub is_helper: bool,
    pub joins: Vec<crate::threads::Helper>,
    /// Follows from everything that was drawn.
    pub digest: u64,
}

impl Worker {
    /// Returns a worker that is not inside anything yet.
    pub fn new(shared: Arc<Shared>, seed: u64, place: usize, is_helper: bool) -> Self {
        Self {
            shared,
            random: Random::new(seed),
            place,
            own: persistent_vec(OWN_COUNT),
            entries: persistent_vec(ENTRY_COUNT + CLOSURE_COUNT),
            serial: 0,
            closures: 0,
            pattern: seed << 20,
            is_helper,
            joins: persistent_vec(8),
            digest: seed,
        }
    }

    pub fn below(&mut self, bound: usize) -> usize {
        self.random.below(bound)
    }

    /// Returns whose the next block is.
    pub fn active(&self) -> Owner {
        self.entries.last().and_then(|entry| entry.target.clone())
    }

    /// Returns the innermost request.
    pub fn inside(&self) -> Option<&Arc<Tracked>> {
        self.entries.iter().rev().find_map(|entry| entry.target.as_ref())
    }

    pub fn is_inside(&self, tracked: &Arc<Tracked>) -> bool {
        let is_it = |target: &Arc<Tracked>| Arc::ptr_eq(target, tracked);
        self.entries.iter().any(|entry| entry.target.as_ref().is_some_and(is_it))
    }

    /// Records an entry; returns its serial.
    pub fn push(&mut self, kind: Kind, target: Owner, guard: Option<Entered>) -> u64 {
        if let Some(tracked) = &target {
            tracked.inside.fetch_add(1, Ordering::Relaxed);
        }
        self.serial += 1;
        self.entries.push(Entry { serial: self.serial, kind, target, guard });
        self.serial
    }

    /// Records that the entry with this serial was left.
    pub fn pop(&mut self, serial: u64) {
        let index = self.entries.iter().position(|entry| entry.serial == serial);
        let entry = self.entries.remove(index.expect("a closure's entry"));
        leave(entry);
    }

    /// Whether there is room for another guard.
    pub fn has_room(&self) -> bool {
        self.entries.len() < ENTRY_COUNT
    }

    pub fn may_nest(&self) -> bool {
        self.closures < CLOSURE_COUNT
    }

    /// Checks that the allocator and the model agree on where the thread is.
    pub fn expect_inside(&self) {
        let is = Request::current().map(|request| request.id());
        let expected = self.inside().map(|tracked| tracked.id);
        assert_eq!(is, expected, "the thread is in the wrong request: {is:?}");
    }

    pub fn steps(&mut self, count: usize) {
        for _ in 0..count {
            self.step();
        }
    }

    fn step(&mut self) {
        let choice = self.below(1000);
        self.digest = (self.digest ^ choice as u64).wrapping_mul(0x100_0000_01b3);
        note_action(self.place, choice);
        match choice {
            0..780 => self.block_action(),
            780..840 => self.enter(),
            840..890 => self.leave_any(),
            890..910 => self.replace(),
            910..930 if with("sole") => self.sole(),
            930..940 => self.sealed(),
            940..965 if self.may_nest() => self.closure(),
            965..980 if with("looks") => self.look(),
            980..990 if with("scopes") => self.scope(),
            990..993 if with("callbacks") => self.add_callback(),
            993..995 => rqmalloc::check_structures(),
            995 if with("trim") && self.below(4) == 0 => drop(rqmalloc::trim()),
            996..998 if with("threads") && !self.is_helper => self.start_helper(),
            998 if with("fork") && !self.is_helper && self.below(3) == 0 => self.fork(),
            _ => self.expect_inside(),
        }
        if breaks("leave") && choice == 999 {
            std::mem::forget(lock(&self.shared.requests[0]).clone_handle().unwrap().enter());
        }
        if breaks("hang") && choice == 999 {
            // Never comes to the barrier, where the others wait. It does not sleep: there a thread
            // could be cancelled in the middle of Rust's frames.
            loop {
                std::thread::yield_now();
            }
        }
    }

    /// Prepares for the thread's exit: drops some guards and forgets others, and the exit leaves
    /// what they entered. The model's entries go with it: see `Exit`.
    pub fn finish(mut self) -> Exit {
        std::mem::take(&mut self.joins).into_iter().for_each(crate::threads::Helper::join);
        while self.below(3) != 0 && !self.entries.is_empty() {
            self.leave_any();
        }
        for entry in &mut self.entries {
            std::mem::forget(entry.guard.take());
        }
        self.give_away();
        Exit { entries: std::mem::take(&mut self.entries), digest: self.digest }
    }

    /// Leaves blocks in slots and frees the rest.
    fn give_away(&mut self) {
        for block in std::mem::take(&mut self.own) {
            let place = self.random.below(2 * SLOT_COUNT);
            match self.shared.slots.get(place) {
                Some(slot) => {
                    let before = lock(slot).replace(block);
                    before.into_iter().for_each(Block::free);
                }
                None => block.free(),
            }
        }
    }
}

/// What a thread was inside when it exited: the thread that joins it records that it no longer is.
#[must_use = "the model must learn that the thread is gone"]
pub struct Exit {
    entries: Vec<Entry>,
    pub digest: u64,
}

// SAFETY: the entries have no guards any more, the only part that belongs to the thread.
unsafe impl Send for Exit {}

impl Exit {
    pub fn note(self) {
        self.entries.into_iter().for_each(leave);
    }
}

pub fn leave(entry: Entry) {
    drop(entry.guard);
    if let Some(tracked) = entry.target {
        tracked.inside.fetch_sub(1, Ordering::Relaxed);
    }
}
