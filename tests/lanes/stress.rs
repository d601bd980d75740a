//! Everything at once, from a seed: `RQMALLOC_STRESS_SEED`, `RQMALLOC_STRESS_SECONDS` (5),
//! `RQMALLOC_STRESS_THREADS` (4). One thread repeats itself; several vary in their order.

use crate::support::{
    Held, Random, active_owner, alone, close_empty, current_id, persistent_vec, setting,
};
use rqmalloc::{Entered, Request, RequestId, persistent, stats};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const REQUEST_COUNT: usize = 6;
const SLOT_COUNT: usize = 200;
/// Most blocks that a thread has for itself.
const OWN_COUNT: usize = 150;
/// Most guards that a thread has.
const GUARD_COUNT: usize = 14;

/// A block, and the request it belongs to.
struct Known {
    held: Held,
    owner: Option<RequestId>,
}

impl Known {
    fn new(size: usize, seed: u64, owner: Option<RequestId>) -> Self {
        let known = Self { held: Held::new(size, seed), owner };
        known.expect_owner();
        known
    }

    #[track_caller]
    fn expect_owner(&self) {
        // Adopted, if its request was closed meanwhile.
        let owner = self.held.owner();
        assert!(owner.is_none() || owner == self.owner, "{owner:?}, {:?}", self.held);
    }

    fn free(self) {
        self.expect_owner();
        self.held.free();
    }

    fn resize(&mut self, size: usize) {
        self.expect_owner();
        self.held.resize(size);
        // It stays in its request, or is persistent if that is closed.
        let owner = self.held.owner();
        assert!(owner.is_none() || owner == self.owner, "{owner:?}, {:?}", self.owner);
        self.owner = owner;
    }
}

#[derive(Default)]
struct Counts {
    entered: AtomicU64,
    closed: AtomicU64,
    still_open: AtomicU64,
    freed_elsewhere: AtomicU64,
}

struct Shared {
    requests: Vec<Mutex<Request>>,
    slots: Vec<Mutex<Option<Known>>>,
    counts: Counts,
}

struct Worker {
    shared: Arc<Shared>,
    random: Random,
    own: Vec<Known>,
    guards: Vec<(RequestId, Entered)>,
    /// The requests of forgotten guards, from the bottom: this thread is inside until it exits.
    forgotten: Vec<RequestId>,
    seed: u64,
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl Worker {
    /// Returns the request that this thread is inside.
    fn inside(&self) -> Option<RequestId> {
        self.guards.last().map(|(id, _)| *id).or(self.forgotten.last().copied())
    }

    fn allocate(&mut self) -> Known {
        self.seed += 1;
        let max = if self.random.below(400) == 0 { 4 << 20 } else { 40_000 };
        let size = self.random.size(max);
        Known::new(size, self.seed, self.inside())
    }

    fn keep(&mut self, known: Known) {
        if self.own.len() < OWN_COUNT {
            self.own.push(known);
        } else {
            let index = self.random.below(OWN_COUNT);
            std::mem::replace(&mut self.own[index], known).free();
        }
    }

    fn slot(&mut self) -> &Mutex<Option<Known>> {
        &self.shared.slots[self.random.below(SLOT_COUNT)]
    }

    fn step(&mut self) {
        match self.random.below(14) {
            0..4 => {
                let known = self.allocate();
                self.keep(known);
            }
            4..7 => {
                if !self.own.is_empty() {
                    let index = self.random.below(self.own.len());
                    self.own.swap_remove(index).free();
                }
            }
            7 => {
                if !self.own.is_empty() {
                    let index = self.random.below(self.own.len());
                    let size = self.random.size(60_000);
                    self.own[index].resize(size);
                }
            }
            8..10 => {
                let known = self.allocate();
                let before = self.slot().lock().unwrap().replace(known);
                if let Some(before) = before {
                    count(&self.shared.counts.freed_elsewhere);
                    before.free();
                }
            }
            10 => {
                let taken = self.slot().lock().unwrap().take();
                if let Some(mut taken) = taken {
                    let size = self.random.size(5_000);
                    taken.resize(size);
                    self.keep(taken);
                }
            }
            11 => {
                let taken = self.slot().lock().unwrap().take();
                if let Some(taken) = taken {
                    count(&self.shared.counts.freed_elsewhere);
                    if self.random.below(2) == 0 {
                        taken.free()
                    } else {
                        persistent(|| taken.free())
                    }
                }
            }
            12 => self.batch(),
            _ => {
                self.seed += 1;
                let (size, seed) = (self.random.size(9_000), self.seed);
                let known = persistent(|| Known::new(size, seed, None));
                self.keep(known);
            }
        }
    }

    /// Allocates many blocks of one class and frees them at once: more than the bin of a shared
    /// lane keeps.
    fn batch(&mut self) {
        let size = self.random.size(2_000);
        let mut batch = persistent(|| Vec::with_capacity(150));
        for _ in 0..self.random.below(150) {
            self.seed += 1;
            batch.push(Known::new(size, self.seed, self.inside()));
        }
        for known in batch.drain(..) {
            known.free();
        }
        persistent(|| drop(batch));
    }

    fn enter(&mut self) {
        let place = self.random.below(REQUEST_COUNT);
        let request = self.shared.requests[place].lock().unwrap().clone();
        if self.forgotten.len() < 2 && self.guards.is_empty() && self.random.below(60) == 0 {
            std::mem::forget(request.enter());
            self.forgotten.push(request.id());
        } else if self.guards.len() < GUARD_COUNT {
            self.guards.push((request.id(), request.enter()));
        }
        count(&self.shared.counts.entered);
    }

    fn leave(&mut self) {
        if !self.guards.is_empty() {
            // Out of order more often than not.
            let index = self.random.below(self.guards.len());
            drop(self.guards.remove(index));
        }
    }

    /// Replaces a request by a new one; the old one is closed now or by its last handle.
    fn replace(&mut self) {
        let fresh = Request::new();
        let place = self.random.below(REQUEST_COUNT);
        let before = std::mem::replace(&mut *self.shared.requests[place].lock().unwrap(), fresh);
        match self.random.below(3) {
            0 => drop(before),
            _ => match before.close() {
                Ok(report) => {
                    assert_eq!(report.freed_blocks, 0);
                    count(&self.shared.counts.closed);
                }
                Err(request) => {
                    count(&self.shared.counts.still_open);
                    // Others may leave at any moment: the text says how it is now.
                    let text = persistent(|| request.to_string());
                    let start = persistent(|| format!("request {}: ", request.id()));
                    assert!(text.starts_with(&start), "{text}");
                    persistent(|| drop((text, start)));
                }
            },
        }
    }

    /// Uses a request of its own, counted to the block.
    fn own_request(&mut self) {
        let mut inside = persistent(|| Vec::with_capacity(60));
        let id = rqmalloc::begin_request();
        for _ in 0..self.random.below(60) {
            self.seed += 1;
            inside.push(Known::new(self.random.size(9_000), self.seed, Some(id)));
        }
        while self.random.below(4) != 0 && !inside.is_empty() {
            inside.swap_remove(self.random.below(inside.len())).free();
        }
        let count = inside.len() as u64;
        if self.random.below(2) == 0 {
            inside.iter().for_each(|known| known.held.verify());
            // SAFETY: nobody else knows its blocks, and they are forgotten.
            let report = unsafe { rqmalloc::end_request() };
            assert_eq!((report.id, report.freed_blocks, report.surviving_blocks), (id, count, 0));
        } else {
            let report = rqmalloc::close_request();
            assert_eq!((report.id, report.freed_blocks, report.surviving_blocks), (id, 0, count));
            inside.drain(..).for_each(|known| self.keep(known));
        }
        persistent(|| drop(inside));
    }

    fn run(mut self, until: Instant) {
        while Instant::now() < until {
            match self.random.below(20) {
                0..10 => (0..self.random.below(40)).for_each(|_| self.step()),
                10..13 => self.enter(),
                13..16 => self.leave(),
                16 => self.replace(),
                17 => self.own_request(),
                18 if self.random.below(8) == 0 => rqmalloc::check_structures(),
                19 if self.random.below(60) == 0 => drop(rqmalloc::trim()),
                _ => assert_eq!((current_id(), active_owner()), (self.inside(), self.inside())),
            }
        }
        while !self.guards.is_empty() {
            self.leave();
        }
        // Leaves some to the next thread.
        for known in self.own.drain(..) {
            let place = self.random.below(2 * SLOT_COUNT);
            match self.shared.slots.get(place) {
                Some(slot) => {
                    if let Some(before) = slot.lock().unwrap().replace(known) {
                        before.free();
                    }
                }
                None => known.free(),
            }
        }
    }
}

#[test]
fn everything_at_once() {
    let _alone = alone();
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let seed = setting("RQMALLOC_STRESS_SEED", clock.as_nanos() as u64 % 1_000_000_007);
    let seconds = setting("RQMALLOC_STRESS_SECONDS", 5);
    let threads = setting("RQMALLOC_STRESS_THREADS", 4);
    eprintln!(
        "RQMALLOC_STRESS_SEED={seed} RQMALLOC_STRESS_SECONDS={seconds} RQMALLOC_STRESS_THREADS={threads}"
    );
    let before = stats().open_request_count;
    let shared = Arc::new(Shared {
        requests: (0..REQUEST_COUNT).map(|_| Mutex::new(Request::new())).collect(),
        slots: (0..SLOT_COUNT).map(|_| Mutex::default()).collect(),
        counts: Counts::default(),
    });
    let until = Instant::now() + Duration::from_secs(seconds);
    let mut generation = 0;
    while Instant::now() < until {
        // Threads come and go, too; their exit leaves what they forgot.
        let stop = until.min(Instant::now() + Duration::from_millis(500));
        let workers: Vec<_> = (0..threads)
            .map(|thread| {
                let seed = seed.wrapping_add((generation * threads + thread) * 7919);
                let shared = shared.clone();
                std::thread::spawn(move || {
                    let worker = Worker {
                        shared,
                        random: Random::new(seed),
                        own: Vec::with_capacity(OWN_COUNT),
                        guards: Vec::with_capacity(GUARD_COUNT),
                        forgotten: persistent_vec(),
                        seed: seed << 16,
                    };
                    worker.run(stop);
                })
            })
            .collect();
        workers.into_iter().for_each(|worker| worker.join().unwrap());
        generation += 1;
        // Between generations nobody is inside: every figure is exact.
        assert_eq!(
            stats().open_request_count,
            before + REQUEST_COUNT as u64,
            "generation {generation}"
        );
        rqmalloc::check_structures();
    }
    let Ok(shared) = Arc::try_unwrap(shared) else { panic!("a worker is still there") };
    let known: Vec<_> =
        shared.slots.into_iter().filter_map(|slot| slot.into_inner().unwrap()).collect();
    for request in &shared.requests {
        let request = request.lock().unwrap();
        let expected = known.iter().filter(|known| known.owner == Some(request.id())).count();
        // Vectors that workers allocated inside, and that their thread's exit freed, are not among
        // them.
        assert_eq!(request.usage().live_blocks, expected as u64, "{request}");
    }
    known.into_iter().for_each(Known::free);
    for request in shared.requests {
        close_empty(request.into_inner().unwrap());
    }
    let Counts { entered, closed, still_open, freed_elsewhere } = shared.counts;
    for (name, counter) in [
        ("entered", entered),
        ("closed", closed),
        ("still open", still_open),
        ("freed elsewhere", freed_elsewhere),
    ] {
        let count = counter.into_inner();
        eprintln!("{name}: {count}");
        // A single thread finds nobody else inside.
        assert!(count > 0 || seconds == 0, "{name} never happened");
    }
    assert_eq!(stats().open_request_count, before);
}
