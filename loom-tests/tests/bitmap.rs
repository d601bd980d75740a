//! `bitmap`: a claimed page has one owner (B1), who sees what the one before wrote (B2).

use loom::sync::Arc;
use loom::thread;
use rqmalloc_loom_tests::base::sync::AtomicU64;
use rqmalloc_loom_tests::lockfree::bitmap::PageBitmap;
use rqmalloc_loom_tests::model::{Plain, explore};
use std::collections::BTreeMap;

/// A chunk of two words in which these pages are free; all others belong to somebody else for good.
struct Chunk {
    free: PageBitmap<2>,
    contents: BTreeMap<usize, Plain<u32>>,
}

impl Chunk {
    fn new(pages: impl Iterator<Item = usize> + Clone) -> Arc<Self> {
        let word = |index: usize| pages.clone().filter(move |page| page / 64 == index);
        let bits = |index| word(index).fold(0, |bits, page| bits | 1 << (page % 64));
        Arc::new(Self {
            free: PageBitmap { free: std::array::from_fn(|index| AtomicU64::new(bits(index))) },
            contents: pages.map(|page| (page, Plain::new(0))).collect(),
        })
    }

    /// Uses the pages as their owner: panics if a page has another owner, or had one whose writes
    /// are not seen.
    fn use_pages(&self, first: usize, count: usize) {
        for page in first..first + count {
            let contents = self.contents.get(&page).expect("a claimed page was free");
            contents.write(|users| *users += 1);
        }
    }

    /// Takes a run of `count`, uses it and gives it back.
    fn take_use_give(&self, count: usize) -> bool {
        let Some(first) = self.free.take(count, || ()) else { return false };
        self.use_pages(first, count);
        self.free.give(first, count);
        true
    }
}

/// The run across both words is granted once; the loser takes nothing from the winner.
#[test]
fn two_threads_take_the_last_pages() {
    explore(3, || {
        let chunk = Chunk::new(63..65);
        let other = chunk.clone();
        let taker = thread::spawn(move || {
            other.free.take(2, || ()).inspect(|&first| other.use_pages(first, 2)).is_some()
        });
        let here = chunk.free.take(2, || ()).inspect(|&first| chunk.use_pages(first, 2)).is_some();
        let there = taker.join().unwrap();
        assert!(here != there, "B1: of two claims of the same run exactly one succeeds");
        assert_eq!(chunk.free.free_count(), 0, "a claimed page is not free");
    });
}

/// A run that is claimed in one word and refused in the other is rolled back completely.
#[test]
fn run_of_two_words_against_one_of_its_pages() {
    explore(3, || {
        let chunk = Chunk::new(63..65);
        let other = chunk.clone();
        let taker = thread::spawn(move || {
            let taken = other.free.take_at(64, 1);
            if taken {
                other.use_pages(64, 1);
            }
            taken
        });
        let run = chunk.free.take(2, || ()).inspect(|&first| chunk.use_pages(first, 2)).is_some();
        let page = taker.join().unwrap();
        assert!(run != page, "B1: the page in the second word has one owner");
        let left = if run { 0 } else { 1 };
        assert_eq!(chunk.free.free_count(), left, "what a refused claim had taken is free again");
    });
}

/// The claimer of a page sees what its last owner wrote before giving it back.
#[test]
fn page_given_against_page_taken() {
    explore(3, || {
        let chunk = Chunk::new(63..65);
        let others: Vec<_> = [1, 2]
            .into_iter()
            .map(|count| {
                let other = chunk.clone();
                thread::spawn(move || other.take_use_give(count))
            })
            .collect();
        chunk.take_use_give(1);
        others.into_iter().for_each(|other| _ = other.join().unwrap());
        assert_eq!(chunk.free.free_count(), 2, "every page given back is free");
    });
}

/// A chunk is released only if all of it is free, and after everything its pages' owners did.
#[test]
fn chunk_release_against_page_taken() {
    explore(3, || {
        let chunk = Chunk::new(0..128);
        let other = chunk.clone();
        let user = thread::spawn(move || {
            let taken = other.free.take_at(127, 1);
            if taken {
                other.use_pages(127, 1);
                other.free.give(127, 1);
            }
            taken
        });
        let released = chunk.free.take_at(0, 128);
        if released {
            // Unmapping writes to every page: here, to the one that is in use.
            chunk.use_pages(127, 1);
        }
        let used = user.join().unwrap();
        assert!(released || used, "B1: a claim is refused only because another succeeds");
        let left = if released { 0 } else { 128 };
        assert_eq!(chunk.free.free_count(), left, "no page is lost and none is free twice");
    });
}
