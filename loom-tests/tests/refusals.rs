//! Lines about refusals: never more than allowed, and none is left out uncounted.

use loom::sync::Arc;
use loom::thread;
use rqmalloc_loom_tests::lockfree::refusals::{LINES_PER_SECOND, Refusals};
use rqmalloc_loom_tests::model::explore;

/// Two threads ask for the last line of a second at once.
#[test]
fn two_ask_for_the_last_line() {
    explore(3, || {
        let refusals = Arc::new(Refusals::new());
        for _ in 1..LINES_PER_SECOND {
            assert_eq!(refusals.next(10), Some(0));
        }
        let other = thread::spawn({
            let refusals = refusals.clone();
            move || refusals.next(10)
        });
        let said = [refusals.next(10), other.join().unwrap()];
        assert_eq!(said.iter().flatten().count(), 1, "there was one line left");
        let of_next_second = refusals.next(1_010);
        let left_out: u64 = said.iter().chain([&of_next_second]).flatten().sum();
        assert_eq!(left_out, 1, "the thread without a line is counted once");
    });
}

/// Two threads begin a second at once.
#[test]
fn a_new_second_begins_in_two_threads() {
    explore(3, || {
        let refusals = Arc::new(Refusals::new());
        for _ in 0..LINES_PER_SECOND + 2 {
            refusals.next(10);
        }
        let other = thread::spawn({
            let refusals = refusals.clone();
            move || refusals.next(1_010)
        });
        let said = [refusals.next(1_010), other.join().unwrap()];
        assert_eq!(said.iter().flatten().sum::<u64>(), 2, "what was left out is reported once");
    });
}
