//! `run_index`: a hint may be stale, but no run of free pages stays without one (R1).

use loom::sync::Arc;
use loom::thread;
use rqmalloc_loom_tests::base::sync::AtomicU64;
use rqmalloc_loom_tests::lockfree::bitmap::{PageBitmap, longest_run};
use rqmalloc_loom_tests::lockfree::run_index::RunIndex;
use rqmalloc_loom_tests::model::explore;

const LENGTHS: [u8; 2] = [1, 2];
const SLOT: u32 = 5;

/// One chunk and its bits in the index.
struct Group<const WORDS: usize> {
    pages: PageBitmap<WORDS>,
    index: RunIndex<2>,
}

impl<const WORDS: usize> Group<WORDS> {
    /// A chunk without free pages, in whose index the bits of these lengths are set all the same.
    fn full_with_stale_hints(hints: [bool; 2]) -> Arc<Self> {
        let word = |index: usize| AtomicU64::new(u64::from(hints[index]) << SLOT);
        Arc::new(Self {
            pages: PageBitmap { free: std::array::from_fn(|_| AtomicU64::new(0)) },
            index: RunIndex { words: std::array::from_fn(word) },
        })
    }

    fn publish(&self) {
        self.index.publish(SLOT, &LENGTHS, || longest_run(&self.pages.snapshot()));
    }

    fn give(&self, first: usize, count: usize) {
        self.pages.give(first, count);
        self.publish();
    }

    /// Searches the chunk, as a thread that a hint led here.
    fn search(&self, count: usize) -> bool {
        let found = self.pages.take(count, || self.publish()).is_some();
        if !found {
            self.publish();
        }
        found
    }

    fn assert_every_run_has_its_hint(&self) {
        let run = longest_run(&self.pages.snapshot());
        for (index, &length) in LENGTHS.iter().enumerate() {
            assert!(
                usize::from(length) > run || self.index.candidates(index) & 1 << SLOT != 0,
                "R1: when every publish has returned, a run of {run} has the bit of length {length}"
            );
        }
    }
}

/// Of a giver and a searcher that clears the bit, one sees what the other did.
#[test]
fn page_given_against_search_in_vain() {
    explore(4, || {
        let group = Group::<1>::full_with_stale_hints([true, false]);
        let other = group.clone();
        let giver = thread::spawn(move || other.give(0, 1));
        group.search(1);
        giver.join().unwrap();
        group.assert_every_run_has_its_hint();
    });
}

/// Two searchers that clear against one that gives: a clear that was decided before the give and
/// done after it is taken back.
#[test]
fn page_given_against_two_searches_in_vain() {
    explore(2, || {
        let group = Group::<1>::full_with_stale_hints([true, false]);
        let others = [group.clone(), group.clone()];
        let threads = others.map(|other| thread::spawn(move || other.search(1)));
        group.give(0, 1);
        threads.into_iter().for_each(|thread| _ = thread.join().unwrap());
        group.assert_every_run_has_its_hint();
    });
}

/// Two runs become one: at least one of the givers sees all of it, and the other does not undo
/// that.
#[test]
fn two_gives_that_make_one_run() {
    for hint in [false, true] {
        explore(2, move || {
            let group = Group::<2>::full_with_stale_hints([false, hint]);
            let other = group.clone();
            let giver = thread::spawn(move || other.give(64, 1));
            group.give(63, 1);
            giver.join().unwrap();
            group.assert_every_run_has_its_hint();
        });
    }
}

/// Rolling a claim back is a give: its pages were missing meanwhile, and a search that found none
/// has cleared the bit.
#[test]
fn claim_rolled_back_against_search_in_vain() {
    explore(4, || {
        let group = Group::<2>::full_with_stale_hints([false, false]);
        group.give(63, 1);
        let other = group.clone();
        let claimer = thread::spawn(move || {
            // Page 64 is not free.
            assert!(!other.pages.take_at(63, 2));
            other.publish();
        });
        group.search(1);
        claimer.join().unwrap();
        group.assert_every_run_has_its_hint();
    });
}

/// A search in vain takes the hint away, so that the next one does not come.
#[test]
fn search_in_vain_clears_the_hint() {
    explore(1, || {
        let group = Group::<1>::full_with_stale_hints([true, true]);
        assert!(!group.search(1));
        assert_eq!([0, 1].map(|index| group.index.candidates(index)), [0, 0]);
    });
}
