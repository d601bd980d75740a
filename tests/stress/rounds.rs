//! A process with a seed: rounds of threads that work until they meet at a barrier, where the model
//! and the allocator are compared, and that exit at the end of the round.

use crate::failure::{self, fail};
use crate::model::{Block, Tracked, lock};
use crate::options::Options;
use crate::requests::expect_report;
use crate::threads::Helper;
use crate::worker::{Exit, REQUEST_COUNT, Shared, Worker};
use rqmalloc::{persistent, stats};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

/// What a run counts and expects to see.
pub const COUNT_NAMES: [&str; 11] = [
    "closed",
    "ended",
    "still open",
    "callbacks",
    "revived",
    "helpers",
    "cancelled",
    "forks",
    "polls",
    "looks",
    "bailouts",
];
/// How often the threads of a round meet, and how much each does before that.
const PHASE_COUNT: usize = 5;
const STEPS_OF_A_PHASE: usize = 1500;
/// How much more a process may use than after its first round, when nothing is live.
const GROWTH_BYTES: usize = 32 << 20;

/// Runs rounds until the time is up, and prints what was counted.
pub fn run(options: &Options) {
    failure::set_up();
    let seed = options.seed.unwrap_or(1);
    let until = Instant::now() + Duration::from_secs(options.seconds);
    let (mut counts, mut digest, mut round) = ([0; COUNT_NAMES.len()], 0_u64, 0);
    let before = stats().open_request_count;
    let mut first_in_use = None;
    while options.rounds.map_or(Instant::now() < until, |rounds| round < rounds) {
        failure::note_round(seed, round);
        let shared = Shared::new(options.threads, options.threads == 1);
        let seed = seed.wrapping_mul(1_000_003).wrapping_add(round as u64 * 7919);
        digest = digest.wrapping_mul(31) ^ run_round(&shared, seed, options.threads);
        for (sum, count) in counts.iter_mut().zip(&shared.counts) {
            *sum += count.load(Ordering::Relaxed);
        }
        let Ok(shared) = Arc::try_unwrap(shared).map_err(|_| ()) else {
            fail("a callback of the round still waits")
        };
        drop(shared);
        rqmalloc::trim();
        let after = stats();
        assert_eq!(after.open_request_count, before, "requests are open after a round: {after}");
        let bound = *first_in_use.get_or_insert(after.in_use_bytes) + GROWTH_BYTES;
        assert!(after.in_use_bytes <= bound, "{after} after a round, {bound} at the most expected");
        round += 1;
    }
    for (name, count) in COUNT_NAMES.iter().zip(counts) {
        println!("{name}: {count}");
    }
    println!("rounds: {round}\ndigest: {digest:x}");
}

fn run_round(shared: &Arc<Shared>, seed: u64, threads: usize) -> u64 {
    let barrier = Arc::new(Barrier::new(threads));
    let workers: Vec<_> = (0..threads)
        .map(|place| {
            let (shared, barrier) = (shared.clone(), barrier.clone());
            std::thread::spawn(move || {
                let seed = seed.wrapping_add(place as u64 * 104_729);
                let mut worker = Worker::new(shared, seed, place, false);
                let result = catch_unwind(AssertUnwindSafe(|| work(&mut worker, &barrier)));
                match result {
                    Ok(()) => worker.finish(),
                    Err(_) => fail("a planned panic came out of where it was to stay"),
                }
            })
        })
        .collect();
    let exits: Vec<Exit> = workers
        .into_iter()
        .map(|worker| worker.join().unwrap_or_else(|_| fail("a worker unwound")))
        .collect();
    let digest = exits.iter().fold(0, |digest, exit| digest ^ exit.digest);
    exits.into_iter().for_each(Exit::note);
    take_down(shared);
    digest
}

fn work(worker: &mut Worker, barrier: &Barrier) {
    for _ in 0..PHASE_COUNT {
        worker.steps(STEPS_OF_A_PHASE);
        worker.joins.drain(..).for_each(Helper::join);
        worker.expect_inside();
        let place = worker.place;
        std::mem::swap(&mut worker.own, &mut lock(&worker.shared.owns[place]));
        barrier.wait();
        // Each thread checks its own cache and its own lanes, inside requests and outside.
        rqmalloc::check_structures();
        persistent(rqmalloc::check_structures);
        barrier.wait();
        if place == 0 {
            while_all_stand_still(worker);
        }
        barrier.wait();
        std::mem::swap(&mut worker.own, &mut lock(&worker.shared.owns[place]));
    }
}

/// Nobody else does anything, so every figure is exact.
fn while_all_stand_still(worker: &mut Worker) {
    let shared = worker.shared.clone();
    let revived =
        std::mem::replace(&mut *lock(&shared.revived), persistent(|| Vec::with_capacity(16)));
    drop(revived);
    expect_open(&shared);
    let stats = stats();
    assert_eq!(
        stats.mapped_bytes,
        stats.in_use_bytes + stats.cached_bytes + stats.free_bytes,
        "{stats}"
    );
    for place in 0..REQUEST_COUNT {
        let tracked = lock(&shared.requests[place]).clone();
        expect_figures(&tracked);
        if worker.below(4) == 0 && !tracked.is_entered() {
            let is_end = worker.below(2) == 0;
            finish_exactly(&shared, &tracked, is_end);
            let fresh = worker.open(false);
            *lock(&shared.requests[place]) = fresh;
        }
    }
    for sole in &shared.soles {
        if let Some(tracked) = lock(sole).as_ref() {
            expect_figures(tracked);
        }
    }
    expect_open(&shared);
}

/// Drops the handles that callbacks took, and those they take meanwhile.
fn drop_revived(shared: &Shared) -> bool {
    let mut found = false;
    loop {
        // Not under the lock, which a callback takes.
        let Some(request) = lock(&shared.revived).pop() else { return found };
        found = true;
        drop(request);
    }
}

fn expect_open(shared: &Shared) {
    let expected = lock(&shared.all).iter().filter(|tracked| tracked.is_open()).count() as u64;
    let is = stats().open_request_count;
    assert_eq!(is, expected, "requests are open: {is}, the model has {expected}");
}

fn expect_figures(tracked: &Tracked) {
    let handle = lock(&tracked.handle);
    let Some(request) = handle.as_ref() else { return };
    let usage = request.usage();
    assert_eq!(usage.live_blocks, tracked.live() as u64, "blocks live in {tracked:?}, {request}");
    assert!((usage.live_bytes == 0) == (usage.live_blocks == 0), "{usage:?}");
    if !tracked.is_entered() {
        let leaks = request.leaks();
        let expected = tracked.live() as u64;
        assert_eq!(leaks.blocks, expected, "leaks of {tracked:?}: {leaks}");
    }
}

/// Ends or closes a request that nobody is inside. What an end frees is forgotten everywhere.
fn finish_exactly(shared: &Shared, tracked: &Arc<Tracked>, is_end: bool) {
    let Some(request) = tracked.take_handle() else { return };
    each_block_of(shared, tracked, |block| {
        block.verify();
        Some(block)
    });
    // SAFETY: all threads stand still, nobody is inside, no scope waits, and the blocks that
    // `persist` did not keep are forgotten below, before anybody goes on.
    let result = unsafe { if is_end { request.end() } else { request.close() } };
    match result {
        Ok(report) => {
            shared.count(if is_end { "ended" } else { "closed" });
            expect_report(tracked, &report, is_end);
        }
        // A callback took a handle: the last one closes the request.
        Err(request) => {
            let is_revived = drop_revived(shared);
            assert!(is_revived, "refused, and nobody else has a handle: {request}");
            drop(request);
            drop_revived(shared);
            return;
        }
    }
    if is_end {
        each_block_of(shared, tracked, |block| {
            block.forget();
            None
        });
        assert_eq!(tracked.live(), 0, "the model lost a block of {tracked:?}");
    }
}

/// Looks at every block of a request, wherever it is.
fn each_block_of(
    shared: &Shared,
    tracked: &Arc<Tracked>,
    mut change: impl FnMut(Block) -> Option<Block>,
) {
    for slot in &shared.slots {
        let mut slot = lock(slot);
        if slot.as_ref().is_some_and(|block| block.is_of(tracked)) {
            *slot = slot.take().and_then(&mut change);
        }
    }
    let owns = shared.owns.iter().chain([&tracked.late]);
    for own in owns {
        let mut own = lock(own);
        for index in (0..own.len()).rev() {
            if own[index].is_of(tracked) {
                let block = own.swap_remove(index);
                own.extend(change(block));
            }
        }
    }
}

/// Looks at what is left for the last time and frees it: all threads have exited.
fn take_down(shared: &Arc<Shared>) {
    drop_revived(shared);
    shared.scopes.iter().for_each(|scope| drop(lock(scope).take()));
    let soles = shared.soles.iter().filter_map(|sole| lock(sole).take());
    let requests = shared.requests.iter().map(|tracked| lock(tracked).clone());
    for tracked in requests.chain(soles) {
        expect_figures(&tracked);
        finish_exactly(shared, &tracked, false);
    }
    drop_revived(shared);
    let all = std::mem::take(&mut *lock(&shared.all));
    for slot in &shared.slots {
        let block = lock(slot).take();
        block.into_iter().for_each(Block::free);
    }
    for tracked in &all {
        let late = std::mem::take(&mut *lock(&tracked.late));
        late.into_iter().for_each(Block::free);
    }
    for tracked in &all {
        let (due, ran) = (tracked.due.load(Ordering::Relaxed), tracked.ran.load(Ordering::Relaxed));
        assert_eq!(ran, due, "callbacks ran {ran} times and not {due} times in {tracked:?}");
        assert_eq!(tracked.live(), 0, "the model lost a block of {tracked:?}");
        assert!(!tracked.is_open(), "the model lost a handle of {tracked:?}");
    }
}
