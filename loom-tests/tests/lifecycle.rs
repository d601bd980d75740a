//! `lifecycle`: lanes handed over.

use loom::sync::Arc;
use loom::thread;
use rqmalloc_loom_tests::base::sync::AtomicBool;
use rqmalloc_loom_tests::lockfree::lifecycle::Occupancy;
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
