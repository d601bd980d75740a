//! `lifecycle`: the last one decides, after everybody else (L1).

use loom::sync::Arc;
use loom::thread;
use rqmalloc_loom_tests::base::sync::{AtomicBool, AtomicU64, Ordering};
use rqmalloc_loom_tests::lockfree::lifecycle::{Handles, Holds, Occupancy, SpanCount};
use rqmalloc_loom_tests::model::{Plain, explore};

/// Handing a lane over publishes the bins: the next occupant sees all that the last one did.
#[test]
fn lane_left_against_lane_entered() {
    struct Lane {
        occupancy: Occupancy,
        bins: Plain<u32>,
    }
    impl Lane {
        fn pass_through(&self) -> bool {
            let entered = self.occupancy.try_enter();
            if entered {
                self.bins.write(|visits| *visits += 1);
                self.occupancy.leave();
            }
            entered
        }
    }
    explore(3, || {
        let occupancy = Occupancy(AtomicBool::new(false));
        let lane = Arc::new(Lane { occupancy, bins: Plain::new(0) });
        let others = [lane.clone(), lane.clone()];
        let threads = others.map(|other| thread::spawn(move || other.pass_through()));
        let here = u32::from(lane.pass_through());
        let visits = threads
            .into_iter()
            .fold(here, |visits, thread| visits + u32::from(thread.join().unwrap()));
        assert!(visits > 0, "an idle lane lets somebody in");
        assert!(!lane.occupancy.is_taken(), "the last occupant has made it idle");
        lane.bins.read(|seen| assert_eq!(*seen, visits, "one occupant at a time"));
    });
}

/// A request: handles, one lane, and how often it was finished.
struct Request {
    handles: Handles,
    lane: Occupancy,
    bins: Plain<u32>,
    own: [Plain<u32>; 3],
    finished: Plain<u32>,
}

impl Request {
    /// Opens a request with one handle.
    fn open() -> Arc<Self> {
        let handles = Handles::new();
        handles.open();
        Arc::new(Self {
            handles,
            lane: Occupancy(AtomicBool::new(false)),
            bins: Plain::new(0),
            own: std::array::from_fn(|_| Plain::new(0)),
            finished: Plain::new(0),
        })
    }

    /// Works as a thread with a handle: enters the lane if it is idle, and uses what is its own.
    fn work(&self, who: usize) {
        self.own[who].write(|uses| *uses += 1);
        if self.lane.try_enter() {
            self.bins.write(|visits| *visits += 1);
            self.lane.leave();
        }
    }

    /// Finishes the request, alone in it: everything done under a handle happened before.
    fn finish(&self) {
        self.finished.write(|times| *times += 1);
        self.bins.write(|visits| *visits += 1);
        self.own.iter().for_each(|own| own.write(|uses| *uses += 1));
    }

    fn drop_handle(&self) {
        if self.handles.drop_one() {
            self.wait_and_finish();
        }
    }

    /// Waits for visitors, as the thread that dropped the last handle, and finishes.
    fn wait_and_finish(&self) {
        while self.handles.try_own().is_none() {
            thread::yield_now();
        }
        self.finish();
    }

    /// Works as a thread with a live block and no handle. It never finishes anything.
    fn visit(&self, who: usize) {
        if self.handles.try_visit() {
            self.work(who);
            self.handles.end_visit();
        }
    }

    /// Called after every thread was joined.
    fn assert_finished_once(&self) {
        assert_eq!(self.handles.count(), 0, "every handle was dropped");
        self.finished.read(|times| assert_eq!(*times, 1, "L1: exactly one finishes the request"));
    }
}

/// Everything done under a handle happens before the finish, which the last handle's thread does.
#[test]
fn last_handle_dropped_against_enter() {
    explore(3, || {
        let request = Request::open();
        let others = [0, 1].map(|who| {
            request.handles.add();
            let other = request.clone();
            thread::spawn(move || {
                other.work(who);
                other.drop_handle();
            })
        });
        request.drop_handle();
        others.into_iter().for_each(|other| other.join().unwrap());
        request.assert_finished_once();
    });
}

/// `close` by a thread that may be the only holder: it finishes, or it changes nothing and drops
/// its handle.
#[test]
fn close_if_only_against_drop() {
    explore(3, || {
        let request = Request::open();
        request.handles.add();
        let other = request.clone();
        let thread = thread::spawn(move || {
            other.work(0);
            other.drop_handle();
        });
        request.work(1);
        if request.handles.drop_if_only() {
            request.wait_and_finish();
        } else {
            request.drop_handle();
        }
        thread.join().unwrap();
        request.assert_finished_once();
    });
}

/// A thread with a live block but no handle visits or comes too late; a visitor works before the
/// finish.
#[test]
fn visit_against_last_drop() {
    explore(3, || {
        let request = Request::open();
        let others = [0, 1].map(|who| {
            let other = request.clone();
            thread::spawn(move || other.visit(who))
        });
        request.work(2);
        request.drop_handle();
        others.into_iter().for_each(|other| other.join().unwrap());
        request.assert_finished_once();
    });
}

/// A visit against a `close` by the only holder, which it does not prevent.
#[test]
fn visit_against_close_if_only() {
    explore(3, || {
        let request = Request::open();
        let other = request.clone();
        let thread = thread::spawn(move || other.visit(0));
        request.work(1);
        assert!(request.handles.drop_if_only(), "a visitor has no handle");
        request.wait_and_finish();
        thread.join().unwrap();
        request.assert_finished_once();
    });
}

/// A survivor span: the closer settles it while survivors are freed; the last one gives it back
/// after everybody's last use, and sees which pages the closer has kept.
#[test]
fn span_settled_against_survivors_freed() {
    struct Span {
        count: SpanCount,
        held_pages: Plain<u32>,
        payloads: [Plain<u32>; 2],
        given: Plain<u32>,
    }
    impl Span {
        fn give(&self) {
            self.held_pages.read(|held| assert_eq!(*held, 1, "the closer is done with the span"));
            self.payloads.iter().for_each(|payload| payload.write(|word| *word = 0));
            self.given.write(|times| *times += 1);
        }
    }
    explore(3, || {
        let count = SpanCount(AtomicU64::new(0));
        count.arm();
        let span = Arc::new(Span {
            count,
            held_pages: Plain::new(0),
            payloads: std::array::from_fn(|_| Plain::new(0)),
            given: Plain::new(0),
        });
        let freers = [0, 1].map(|index| {
            let span = span.clone();
            thread::spawn(move || {
                span.payloads[index].write(|word| *word += 1);
                if span.count.drop_one() {
                    span.give();
                }
            })
        });
        span.held_pages.write(|held| *held = 1);
        if span.count.settle(2) {
            span.give();
        }
        freers.into_iter().for_each(|freer| freer.join().unwrap());
        span.given.read(|times| assert_eq!(*times, 1, "L1: exactly one gives the span back"));
    });
}

/// The last hold recycles the control block after everybody's last look at it.
#[test]
fn last_hold_dropped_recycles() {
    struct Control {
        holds: Holds,
        fields: [Plain<u32>; 2],
        recycled: Plain<u32>,
    }
    impl Control {
        fn drop_hold(&self) {
            if self.holds.drop_one() {
                self.fields.iter().for_each(|field| field.write(|value| *value = 0));
                self.recycled.write(|times| *times += 1);
            }
        }
    }
    explore(3, || {
        let control = Arc::new(Control {
            holds: Holds::new(),
            fields: std::array::from_fn(|_| Plain::new(0)),
            recycled: Plain::new(0),
        });
        control.holds.begin();
        control.holds.add();
        let other = control.clone();
        let freer = thread::spawn(move || {
            other.fields[0].write(|value| *value += 1);
            other.drop_hold();
        });
        control.fields[1].write(|value| *value += 1);
        control.drop_hold();
        freer.join().unwrap();
        control.recycled.read(|times| assert_eq!(*times, 1, "L1: exactly one recycles"));
    });
}

/// A handle is cloned and handed to a third thread while the first one ends the request: the end is
/// refused while any of them is alive, or comes after everything done under them.
#[test]
fn end_against_handle_being_cloned() {
    explore(3, || {
        let request = Request::open();
        request.handles.add();
        let other = request.clone();
        let cloner = thread::spawn(move || {
            other.work(0);
            other.handles.add();
            let third = other.clone();
            let user = thread::spawn(move || {
                third.work(1);
                third.drop_handle();
            });
            other.drop_handle();
            user.join().unwrap();
        });
        request.work(2);
        if request.handles.drop_if_only() {
            request.wait_and_finish();
        } else {
            request.drop_handle();
        }
        cloner.join().unwrap();
        request.assert_finished_once();
    });
}

/// The thread that drops the last handle first runs the request's callbacks inside it, under a
/// handle it makes anew; a visitor works before the finish or comes too late.
#[test]
fn callbacks_of_the_finisher_against_visit() {
    struct WithCallbacks {
        request: Arc<Request>,
        pending: AtomicBool,
        ran: Plain<u32>,
    }
    impl WithCallbacks {
        fn drop_handle(&self) {
            while self.request.handles.drop_one() {
                if !self.pending.swap(false, Ordering::Acquire) {
                    return self.request.wait_and_finish();
                }
                self.request.handles.reopen();
                self.request.work(0);
                self.ran.write(|times| *times += 1);
            }
        }
    }
    explore(3, || {
        let both = Arc::new(WithCallbacks {
            request: Request::open(),
            pending: AtomicBool::new(true),
            ran: Plain::new(0),
        });
        let other = both.clone();
        let thread = thread::spawn(move || other.request.visit(1));
        both.request.work(2);
        both.drop_handle();
        thread.join().unwrap();
        both.request.assert_finished_once();
        both.ran.read(|times| assert_eq!(*times, 1, "the callbacks ran once, before the finish"));
    });
}

/// The thread that drops the last handle, by a drop or by a `close`, sees the callbacks that
/// earlier holders have added.
#[test]
fn callback_added_against_last_drop() {
    for closes in [false, true] {
        explore(3, move || {
            let request = Request::open();
            let pending = Arc::new(AtomicBool::new(false));
            request.handles.add();
            let (other, adds) = (request.clone(), pending.clone());
            let thread = thread::spawn(move || {
                adds.store(true, Ordering::Relaxed);
                // The finisher runs the callback.
                other.handles.drop_one() && adds.load(Ordering::Relaxed)
            });
            let is_last = closes && request.handles.drop_if_only() || request.handles.drop_one();
            let runs_here = is_last && pending.load(Ordering::Relaxed);
            assert!(runs_here != thread.join().unwrap(), "the callback runs once");
        });
    }
}
