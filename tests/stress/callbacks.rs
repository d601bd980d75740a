//! What a request does before its memory goes.

use crate::failure::{Bomb, IS_FORKED, Planned};
use crate::model::{Block, Tracked, is_in_allocator, lock};
use crate::options::{breaks, with};
use crate::worker::{Shared, Worker};
use rqmalloc::{Request, persistent};
use std::panic::panic_any;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard};

#[derive(Clone, Copy)]
enum Kind {
    Nothing,
    Panics,
    PanicsTwice,
    Allocates,
    Leaves,
    Locks,
    Nests,
    AddsAnother,
    Looks,
    Revives,
}

/// Adds a callback of any kind to a request.
pub fn add(worker: &mut Worker, tracked: &Arc<Tracked>, may_revive: bool) {
    let kind = match worker.below(12) {
        0 | 1 if with("panics") => Kind::Panics,
        2 | 3 if with("bombs") => Kind::PanicsTwice,
        4 => Kind::Allocates,
        5 => Kind::Leaves,
        6 => Kind::Locks,
        7 => Kind::Nests,
        8 => Kind::AddsAnother,
        9 => Kind::Looks,
        10 if may_revive && with("revive") => Kind::Revives,
        _ => Kind::Nothing,
    };
    let handle = lock(&tracked.handle);
    let Some(request) = handle.as_ref() else { return };
    add_kind(&worker.shared, request, tracked, kind);
}

fn add_kind(shared: &Arc<Shared>, request: &Request, tracked: &Arc<Tracked>, kind: Kind) {
    tracked.due.fetch_add(1, Ordering::Relaxed);
    if breaks("callback") {
        tracked.due.fetch_add(1, Ordering::Relaxed);
    }
    let (shared, tracked) = (shared.clone(), tracked.clone());
    request.on_end(move || run(kind, &shared, &tracked));
}

/// In a forked process, the lock may have been held by a thread that is not there.
fn lock_here<T>(mutex: &Mutex<T>) -> Option<MutexGuard<'_, T>> {
    if IS_FORKED.load(Ordering::Relaxed) { mutex.try_lock().ok() } else { Some(lock(mutex)) }
}

fn run(kind: Kind, shared: &Arc<Shared>, tracked: &Arc<Tracked>) {
    assert!(!is_in_allocator(), "a callback of {tracked:?} runs in an allocator call");
    tracked.ran.fetch_add(1, Ordering::Relaxed);
    shared.count("callbacks");
    let Some(request) = Request::current() else {
        panic!("a callback runs outside of {tracked:?}")
    };
    assert_eq!(request.id(), tracked.id, "a callback runs in another request");
    match kind {
        Kind::Nothing => {}
        Kind::Panics => {
            drop(request);
            panic_any(Planned)
        }
        Kind::PanicsTwice => {
            drop(request);
            // Created outside the request: its drop unwinds.
            persistent(|| panic_any(Bomb))
        }
        Kind::Allocates => {
            let owner = Some(tracked.clone());
            for size in [5, 501, 50_005] {
                let block = Block::new(size, 8, size as u64, &owner, false);
                block.expect("the limit is suspended in a callback").free();
            }
        }
        Kind::Leaves => {
            if let Some(mut late) = lock_here(&tracked.late) {
                if late.len() < late.capacity() {
                    late.extend(Block::new(85, 8, 85, &Some(tracked.clone()), false));
                }
            }
        }
        Kind::Locks => {
            if let Some(mut guarded) = lock_here(&shared.guarded) {
                *guarded += 1;
            }
        }
        Kind::Nests => {
            let inner = Request::new();
            let id = inner.id();
            inner.run(|| assert_eq!(Request::current().map(|current| current.id()), Some(id)));
            assert_eq!(inner.close().expect("nobody else has it").surviving_blocks, 0);
        }
        Kind::AddsAnother => add_kind(shared, &request, tracked, Kind::Allocates),
        Kind::Looks => {
            let _ = (request.usage(), request.leaks(), rqmalloc::stats());
        }
        Kind::Revives => {
            if let Some(mut revived) = lock_here(&shared.revived) {
                if revived.len() < revived.capacity() {
                    shared.count("revived");
                    revived.push(request);
                }
            }
        }
    }
}

impl Worker {
    /// Adds one to a request that is shared, or that this thread is inside.
    pub fn add_callback(&mut self) {
        let place = self.below(self.shared.requests.len());
        let tracked = lock(&self.shared.requests[place]).clone();
        add(self, &tracked, true);
    }
}
