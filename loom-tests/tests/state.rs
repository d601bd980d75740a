//! `state`: the last handle, visitors, and the stub's next request.

use loom::sync::Arc;
use loom::thread;
use rqmalloc_loom_tests::base::sync::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use rqmalloc_loom_tests::lockfree::state::{Callbacks, Phase, State};
use rqmalloc_loom_tests::model::{Plain, explore};

/// Callbacks as a request has them: a list that holders push to.
struct Added {
    has_any: AtomicBool,
    run_count: AtomicU32,
}

impl Added {
    fn none() -> Self {
        Self { has_any: AtomicBool::new(false), run_count: AtomicU32::new(0) }
    }
}

impl Callbacks for Added {
    fn is_empty(&self) -> bool {
        !self.has_any.load(Ordering::Relaxed)
    }

    fn run(&self) {
        assert!(self.has_any.swap(false, Ordering::Acquire));
        self.run_count.fetch_add(1, Ordering::Relaxed);
    }
}

/// A stub, and what only those inside the request, or its finisher, may touch.
struct Stub {
    state: State,
    /// The request that the control block is of.
    generation: Plain<u32>,
    /// Written by each holder before it drops its handle.
    notes: [Plain<bool>; 2],
    /// Written by visitors.
    lane: Plain<u32>,
    callbacks: Added,
}

impl Stub {
    fn open(generation: u32) -> Arc<Self> {
        let stub = Arc::new(Self {
            state: State(AtomicU64::new(0)),
            generation: Plain::new(0),
            notes: [Plain::new(false), Plain::new(false)],
            lane: Plain::new(0),
            callbacks: Added::none(),
        });
        stub.reopen(generation);
        stub
    }

    fn reopen(&self, generation: u32) {
        self.generation.write(|now| *now = generation);
        self.state.open(generation);
    }

    /// Drops a handle; whether it finished the request.
    fn drop_handle(&self, note: usize) -> bool {
        self.notes[note].write(|note| *note = true);
        let is_last = self.state.drop_handle(&self.callbacks);
        if is_last {
            self.notes[1 - note].read(|note| assert!(note, "L1: after every other holder"));
            self.finish();
        }
        is_last
    }

    /// Takes the only handle there is.
    fn close(&self) {
        assert!(self.state.drop_only_handle(&self.callbacks), "a visitor is no handle");
        self.finish();
    }

    fn finish(&self) {
        while self.state.try_own().is_none() {
            thread::yield_now();
        }
        self.lane.write(|lane| *lane += 100);
        self.generation.write(|now| *now = u32::MAX);
        self.state.retire();
    }

    /// Visits; whether the request was open.
    fn visit(&self, generation: u32) -> bool {
        let visit = || {
            self.generation.read(|now| assert_eq!(*now, generation, "L2: of its own request"));
            self.lane.write(|lane| *lane += 1);
        };
        self.state.visit(generation, thread::yield_now, visit).is_some()
    }
}

/// L1: one of two drops is the last, and sees what the other's thread did.
#[test]
fn two_handles_are_dropped() {
    explore(3, || {
        let stub = Stub::open(5);
        stub.state.add_handle();
        let other = stub.clone();
        let dropper = thread::spawn(move || other.drop_handle(1));
        let finished = [stub.drop_handle(0), dropper.join().unwrap()];
        assert_eq!(finished.iter().filter(|&&last| last).count(), 1, "L1");
        assert_eq!(stub.state.look().phase(), Phase::Over);
    });
}

/// L1: `close` by a holder that waits until it is the only one sees what the one before did.
#[test]
fn the_only_handle_after_another() {
    explore(3, || {
        let stub = Stub::open(5);
        stub.state.add_handle();
        let other = stub.clone();
        let dropper = thread::spawn(move || {
            other.notes[1].write(|note| *note = true);
            other.state.drop_handle(&other.callbacks)
        });
        while !stub.state.drop_only_handle(&stub.callbacks) {
            thread::yield_now();
        }
        stub.notes[1].read(|note| assert!(note, "L1"));
        stub.finish();
        assert!(!dropper.join().unwrap());
    });
}

/// The callbacks that an earlier holder has added run before the request is closed, whichever way.
#[test]
fn callback_added_against_last_drop() {
    explore(3, || {
        let stub = Stub::open(5);
        stub.state.add_handle();
        let other = stub.clone();
        let dropper = thread::spawn(move || {
            other.callbacks.has_any.store(true, Ordering::Release);
            if other.state.drop_handle(&other.callbacks) {
                other.finish();
            }
        });
        if stub.state.drop_handle(&stub.callbacks) {
            stub.finish();
        }
        dropper.join().unwrap();
        assert_eq!(stub.callbacks.run_count.load(Ordering::Relaxed), 1, "a callback runs once");
    });
}

/// The same for a holder that closes the request if it is the only one.
#[test]
fn callback_added_against_close() {
    explore(3, || {
        let stub = Stub::open(5);
        stub.state.add_handle();
        let other = stub.clone();
        let dropper = thread::spawn(move || {
            other.callbacks.has_any.store(true, Ordering::Release);
            assert!(!other.state.drop_handle(&other.callbacks), "the other one stays");
        });
        while !stub.state.drop_only_handle(&stub.callbacks) {
            thread::yield_now();
        }
        stub.finish();
        dropper.join().unwrap();
        assert_eq!(stub.callbacks.run_count.load(Ordering::Relaxed), 1, "a callback runs once");
    });
}

/// L2: a visitor is inside before the request is closed, and then it is waited for, or not at all.
#[test]
fn visit_against_close() {
    explore(3, || {
        let stub = Stub::open(5);
        let other = stub.clone();
        let visitor = thread::spawn(move || other.visit(5));
        stub.close();
        let visits = u32::from(visitor.join().unwrap());
        stub.lane.read(|lane| assert_eq!(*lane, 100 + visits));
    });
}

/// L2: two visitors of one lane, which hand it over as `Occupancy` would, are both waited for.
#[test]
fn two_visits_against_close() {
    explore(3, || {
        let stub = Stub::open(5);
        let taken = Arc::new(AtomicBool::new(false));
        let visitors = [0, 1].map(|_| {
            let (stub, taken) = (stub.clone(), taken.clone());
            thread::spawn(move || {
                let enter = || {
                    let has_lane = taken
                        .compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed)
                        .is_ok();
                    if has_lane {
                        stub.lane.write(|lane| *lane += 1);
                        taken.store(false, Ordering::Release);
                    }
                    u32::from(has_lane)
                };
                stub.state.visit(5, thread::yield_now, enter).unwrap_or(0)
            })
        });
        stub.close();
        let visits: u32 = visitors.into_iter().map(|visitor| visitor.join().unwrap()).sum();
        stub.lane.read(|lane| assert_eq!(*lane, 100 + visits));
    });
}

/// L2: the stub's next request is not visited for a block of the one before.
#[test]
fn visit_against_close_and_the_next_request() {
    explore(3, || {
        let stub = Stub::open(5);
        let other = stub.clone();
        let visitor = thread::spawn(move || other.visit(5));
        stub.close();
        stub.reopen(6);
        visitor.join().unwrap();
        assert!(!stub.visit(5));
        assert!(stub.visit(6));
    });
}

/// A visitor that got to know a block by another way than the request's opening sees what opened
/// it.
#[test]
fn a_visitor_sees_what_opened_the_request() {
    explore(3, || {
        let stub = Stub::open(5);
        stub.close();
        let other = stub.clone();
        let visitor = thread::spawn(move || other.visit(6));
        stub.reopen(6);
        visitor.join().unwrap();
    });
}

/// So does a judge, who does not enter it.
#[test]
fn a_judge_sees_what_opened_the_request() {
    explore(3, || {
        let stub = Stub::open(5);
        stub.close();
        let other = stub.clone();
        let judge = thread::spawn(move || {
            if other.state.has(6) {
                other.generation.read(|now| assert_eq!(*now, 6, "opened before"));
            }
            assert!(!other.state.has(5), "over");
        });
        stub.reopen(6);
        judge.join().unwrap();
    });
}

/// A visit and a new handle do not lose each other.
#[test]
fn visit_against_add_and_drop() {
    explore(3, || {
        let stub = Stub::open(5);
        let other = stub.clone();
        let visitor = thread::spawn(move || other.visit(5));
        assert_eq!(stub.state.add_handle(), 1);
        assert!(!stub.state.drop_handle(&stub.callbacks));
        assert!(visitor.join().unwrap(), "the request is open all the time");
        let last = stub.state.look();
        assert_eq!((last.handles(), last.visitors(), last.generation()), (1, 0, 5));
    });
}

/// In a forked process a visitor that is lost keeps the request open for good; the one that is left
/// ends its visit, and one that was not known ends none.
#[test]
fn visitors_lost_in_a_fork() {
    explore(1, || {
        let stub = Stub::open(5);
        let fork = || {
            stub.state.recount_visitors(1);
            let seen = stub.state.look();
            assert_eq!((seen.handles(), seen.visitors(), seen.generation()), (2, 1, 5));
        };
        // The outer visitor ends a visit that the process does not know of any more.
        let inner = || stub.state.visit(5, thread::yield_now, fork);
        assert!(stub.state.visit(5, thread::yield_now, inner).flatten().is_some());
        assert!(!stub.state.drop_handle(&stub.callbacks), "the lost visitor's handle stays");
        let seen = stub.state.look();
        assert_eq!((seen.handles(), seen.visitors(), seen.phase()), (1, 0, Phase::Open));
    });
}
