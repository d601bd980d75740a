//! `looseness`: only one thread at a time may change the length of a mapping (Z1).

use loom::sync::Arc;
use loom::thread;
use rqmalloc_loom_tests::base::sync::AtomicU32;
use rqmalloc_loom_tests::lockfree::looseness::Looseness;
use rqmalloc_loom_tests::model::{Plain, explore};

/// A mapping, longer than the two pages that its block needs.
struct Mapping {
    looseness: Looseness,
    pages: Plain<usize>,
}

impl Mapping {
    fn loose() -> Arc<Self> {
        // A descriptor whose last mapping was loose.
        let looseness = Looseness(AtomicU32::new(1));
        looseness.open();
        assert!(looseness.is_tight());
        Arc::new(Self { looseness, pages: Plain::new(5) })
    }

    /// Gives the excess back, as a tick does.
    fn give_back(&self) {
        if self.looseness.claim() {
            self.pages.write(|pages| *pages = 2);
            self.looseness.settle();
        }
    }

    /// Frees the block: its owner may do anything with the mapping.
    fn free(&self) -> usize {
        while self.looseness.try_tighten().is_none() {
            thread::yield_now();
        }
        self.pages.write(|pages| core::mem::replace(pages, 0))
    }
}

#[test]
fn freed_against_given_back() {
    explore(3, || {
        let mapping = Mapping::loose();
        let ticking = mapping.clone();
        // Ticks look at mappings that became loose while they ran.
        let tick = thread::spawn(move || ticking.give_back());
        mapping.pages.write(|pages| *pages = 6);
        mapping.looseness.loosen();
        let pages = mapping.free();
        tick.join().unwrap();
        assert!(pages == 6 || pages == 2, "freed whole, or after its excess was given back");
        assert_eq!(mapping.pages.read(|&pages| pages), 0, "nothing is given back afterwards");
    });
}

#[test]
fn freed_against_two_that_give_back() {
    explore(3, || {
        let mapping = Mapping::loose();
        mapping.looseness.loosen();
        let ticks = [mapping.clone(), mapping.clone()]
            .map(|mapping| thread::spawn(move || mapping.give_back()));
        let pages = mapping.free();
        ticks.into_iter().for_each(|tick| tick.join().unwrap());
        assert!(pages == 5 || pages == 2);
        assert_eq!(mapping.pages.read(|&pages| pages), 0);
    });
}

/// An owner that finds the mapping tight sees what was done to it.
#[test]
fn loosened_again_after_it_was_given_back() {
    explore(3, || {
        let mapping = Mapping::loose();
        let ticking = mapping.clone();
        mapping.looseness.loosen();
        let tick = thread::spawn(move || ticking.give_back());
        if mapping.looseness.is_tight() {
            assert_eq!(mapping.pages.read(|&pages| pages), 2);
            mapping.pages.write(|pages| *pages = 7);
        }
        tick.join().unwrap();
    });
}
