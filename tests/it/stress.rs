//! Everything at once, from a seed: `RQMALLOC_STRESS_SEED`, `RQMALLOC_STRESS_SECONDS` (5),
//! `RQMALLOC_STRESS_THREADS` (4). With several threads, the order of events differs from run to
//! run; one thread repeats itself.

use crate::support::{Held, Random, together};
use rqmalloc::Request;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const SLOT_COUNT: usize = 256;
const REQUEST_COUNT: usize = 6;
/// Most blocks that a thread has for itself.
const OWN_COUNT: usize = 200;

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().unwrap())
}

/// What all threads share: blocks of any lifetime, and requests to enter.
struct Shared {
    slots: Vec<Mutex<Option<Held>>>,
    requests: Vec<Mutex<Request>>,
    closed_count: AtomicU64,
    ended_count: AtomicU64,
}

struct Worker {
    shared: Arc<Shared>,
    random: Random,
    own: Vec<Held>,
    seed: u64,
}

impl Worker {
    fn allocate(&mut self) -> Held {
        let max = if self.random.below(500) == 0 { 6 << 20 } else { 40_000 };
        let size = self.random.size(max);
        let align = match self.random.below(20) {
            0 => 1 << self.random.below(17),
            _ => 1 << self.random.below(5),
        };
        self.seed += 1;
        if self.random.below(8) == 0 {
            Held::zeroed(size, align, self.seed)
        } else {
            Held::new(size, align, self.seed)
        }
    }

    fn slot(&mut self) -> &Mutex<Option<Held>> {
        &self.shared.slots[self.random.below(SLOT_COUNT)]
    }

    /// Does one small thing, in whatever is active.
    fn step(&mut self) {
        match self.random.below(12) {
            0..4 => {
                let held = self.allocate();
                self.keep(held);
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
            8 | 9 => {
                // Puts a block into a shared slot; what was there is now this thread's to free.
                let held = self.allocate();
                let before = self.slot().lock().unwrap().replace(held);
                if let Some(before) = before {
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
            _ => {
                let taken = self.slot().lock().unwrap().take();
                if let Some(taken) = taken {
                    taken.free();
                }
            }
        }
    }

    fn keep(&mut self, held: Held) {
        if self.own.len() == OWN_COUNT {
            let index = self.random.below(OWN_COUNT);
            std::mem::replace(&mut self.own[index], held).free();
        } else {
            self.own.push(held);
        }
    }

    fn steps(&mut self) {
        for _ in 0..self.random.below(60) {
            self.step();
        }
    }

    /// Enters a shared request, or replaces it and closes it with whatever is live in it.
    fn in_a_shared_request(&mut self) {
        let place = self.random.below(REQUEST_COUNT);
        if self.random.below(6) == 0 {
            let fresh = Request::new();
            let before =
                std::mem::replace(&mut *self.shared.requests[place].lock().unwrap(), fresh);
            // If others are inside, the last of them closes it.
            if before.close().is_ok() {
                self.shared.closed_count.fetch_add(1, Ordering::Relaxed);
            }
            return;
        }
        let request = self.shared.requests[place].lock().unwrap().clone();
        let entered = request.enter();
        drop(request);
        self.steps();
        match self.random.below(3) {
            0 => rqmalloc::persistent(|| self.steps()),
            1 => self.in_an_own_request(),
            _ => {}
        }
        drop(entered);
    }

    /// Uses a request that no other thread sees, so that it can be ended and counted to the block.
    fn in_an_own_request(&mut self) {
        let mut kept = rqmalloc::persistent(|| Vec::with_capacity(4));
        let mut inside = rqmalloc::persistent(|| Vec::with_capacity(100));
        rqmalloc::begin_request();
        for _ in 0..self.random.below(100) {
            let held = self.allocate();
            inside.push(held);
            if self.random.below(3) == 0 {
                let index = self.random.below(inside.len());
                let size = self.random.size(9_000);
                inside[index].resize(size);
            }
            if self.random.below(3) == 0 {
                let index = self.random.below(inside.len());
                inside.swap_remove(index).free();
            }
        }
        // Frees a persistent one inside.
        if let Some(held) = self.own.pop() {
            held.free();
        }
        rqmalloc::check_structures();
        while kept.len() < 4 && self.random.below(2) == 0 {
            if let Some(held) = inside.pop() {
                // SAFETY: a live block that no other thread knows.
                unsafe { rqmalloc::persist(held.pointer) };
                kept.push(held);
            }
        }
        inside.iter().for_each(Held::verify);
        let usage = Request::current().unwrap().usage();
        assert_eq!(usage.live_blocks, inside.len() as u64);
        if self.random.below(2) == 0 {
            // SAFETY: the blocks in `inside` are forgotten; the rest is persisted.
            let report = unsafe { rqmalloc::end_request() };
            assert_eq!(report.freed_blocks, inside.len() as u64);
            assert_eq!(report.surviving_blocks, 0);
            self.shared.ended_count.fetch_add(1, Ordering::Relaxed);
        } else {
            let report = rqmalloc::close_request();
            assert_eq!(report.freed_blocks, 0);
            assert_eq!(report.surviving_blocks, usage.live_blocks);
            kept.append(&mut inside);
        }
        for held in kept {
            self.keep(held);
        }
    }

    fn run(mut self, until: Instant) {
        while Instant::now() < until {
            match self.random.below(10) {
                0..4 => self.steps(),
                4..7 => self.in_a_shared_request(),
                7 | 8 => self.in_an_own_request(),
                _ if self.random.below(40) == 0 => drop(rqmalloc::trim()),
                _ => {}
            }
        }
        self.own.into_iter().for_each(Held::free);
    }
}

#[test]
fn everything_at_once() {
    let _together = together();
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let seed = setting("RQMALLOC_STRESS_SEED", clock.as_nanos() as u64 % 1_000_000_007);
    let seconds = setting("RQMALLOC_STRESS_SECONDS", 5);
    let threads = setting("RQMALLOC_STRESS_THREADS", 4);
    eprintln!(
        "RQMALLOC_STRESS_SEED={seed} RQMALLOC_STRESS_SECONDS={seconds} RQMALLOC_STRESS_THREADS={threads}"
    );
    let shared = Arc::new(Shared {
        slots: (0..SLOT_COUNT).map(|_| Mutex::default()).collect(),
        requests: (0..REQUEST_COUNT).map(|_| Mutex::new(Request::new())).collect(),
        closed_count: AtomicU64::new(0),
        ended_count: AtomicU64::new(0),
    });
    let until = Instant::now() + Duration::from_secs(seconds);
    let mut generation = 0;
    while Instant::now() < until {
        // Threads come and go, too.
        let stop = until.min(Instant::now() + Duration::from_millis(700));
        let workers: Vec<_> = (0..threads)
            .map(|thread| {
                let seed = seed + (generation * threads + thread) * 7919;
                let worker = Worker {
                    shared: shared.clone(),
                    random: Random::new(seed),
                    own: Vec::with_capacity(OWN_COUNT),
                    seed,
                };
                std::thread::spawn(move || worker.run(stop))
            })
            .collect();
        workers.into_iter().for_each(|worker| worker.join().unwrap());
        generation += 1;
    }
    let Ok(shared) = Arc::try_unwrap(shared) else { panic!("a worker is still there") };
    assert!(shared.ended_count.into_inner() > 0 && shared.closed_count.into_inner() > 0);
    for slot in shared.slots {
        if let Some(held) = slot.into_inner().unwrap() {
            held.free();
        }
    }
    for request in shared.requests {
        let request = request.into_inner().unwrap();
        let usage = request.usage();
        assert_eq!((usage.live_blocks, usage.live_bytes), (0, 0), "all of its blocks were freed");
        assert_eq!(request.close().unwrap().surviving_blocks, 0);
    }
    rqmalloc::check_structures();
}
