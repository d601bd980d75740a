//! `lifecycle`: lanes handed over, and large blocks counted off.

use loom::sync::Arc;
use loom::thread;
use rqmalloc_loom_tests::base::sync::{AtomicBool, Lock};
use rqmalloc_loom_tests::lockfree::lifecycle::{LargeCount, Occupancy};
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

/// L4: large blocks are freed from outside while their request is closed. The closer that reads a count
/// of 0 looks at the list without its lock; else it detaches what is left. Then the control block is
/// the next request's.
#[test]
fn large_blocks_freed_against_close() {
    struct Request {
        count: LargeCount,
        lock: Lock<()>,
        /// The large blocks on the list.
        list: Plain<usize>,
        are_detached: Plain<bool>,
    }
    impl Request {
        fn link(&self) {
            let _guard = self.lock.lock();
            self.list.write(|listed| *listed += 1);
            self.count.add();
        }

        fn free(&self) {
            let _guard = self.lock.lock();
            if !self.are_detached.read(|&detached| detached) {
                self.list.write(|listed| *listed -= 1);
                self.count.drop_one();
            }
        }

        fn close(&self) {
            if self.count.count() == 0 {
                self.list.read(|listed| assert_eq!(*listed, 0, "L4: the list is empty"));
            } else {
                let _guard = self.lock.lock();
                self.list.write(|listed| *listed = 0);
                self.are_detached.write(|detached| *detached = true);
            }
        }
    }
    explore(3, || {
        let request = Arc::new(Request {
            count: LargeCount::new(),
            lock: Lock::new(()),
            list: Plain::new(0),
            are_detached: Plain::new(false),
        });
        request.count.open();
        [(); 2].into_iter().for_each(|()| request.link());
        let freers =
            [request.clone(), request.clone()].map(|other| thread::spawn(move || other.free()));
        request.close();
        request.count.open();
        request.link();
        freers.into_iter().for_each(|freer| freer.join().unwrap());
        assert_eq!(request.count.count(), 1, "nobody counts for the next request");
        request.list.read(|listed| assert_eq!(*listed, 1, "what is listed is counted"));
        request.are_detached.write(|detached| *detached = false);
        request.free();
        assert_eq!(request.count.count(), 0, "what is freed is counted off");
    });
}
