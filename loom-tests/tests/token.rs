//! `token`: who gives an adopted span back while its blocks are reaped and it is lent.

use loom::sync::Arc;
use loom::thread;
use rqmalloc_loom_tests::base::sync::{AtomicU64, Lock, Ordering};
use rqmalloc_loom_tests::lockfree::token::{AdoptedCount, Store, publish, reap};
use rqmalloc_loom_tests::model::{Plain, explore};

/// An adopted span.
struct Span {
    count: AdoptedCount,
    /// What only the token's holder touches.
    holes: Plain<u32>,
    /// What reapers write: the headers of their blocks.
    headers: [Plain<bool>; 2],
}

/// The store, with room for the one span.
struct Shelf {
    span: Span,
    is_listed: Lock<bool>,
    given_back: AtomicU64,
}

impl Store for Shelf {
    type Span = Span;

    fn count<'s>(&self, span: &'s Span) -> &'s AdoptedCount {
        &span.count
    }

    fn list_unless(&self, _span: &Span, is_empty: impl FnOnce() -> bool) -> bool {
        let mut is_listed = self.is_listed.lock();
        assert!(!*is_listed, "T5: listed twice");
        *is_listed = !is_empty();
        *is_listed
    }

    fn unlist(&self, _span: &Span) -> bool {
        core::mem::replace(&mut *self.is_listed.lock(), false)
    }

    fn give_back(&self, span: &Span) {
        assert_eq!(self.given_back.fetch_add(1, Ordering::Relaxed), 0, "T5: given back once");
        span.holes.write(|holes| *holes = u32::MAX);
        // Its pages are somebody else's, who writes what was a block.
        span.headers.iter().for_each(|header| header.write(|is_free| *is_free = false));
    }
}

impl Shelf {
    fn new() -> Arc<Self> {
        // A descriptor that had another span before.
        let count = AdoptedCount(AtomicU64::new(7));
        count.arm();
        Arc::new(Self {
            span: Span {
                count,
                holes: Plain::new(0),
                headers: [Plain::new(false), Plain::new(false)],
            },
            is_listed: Lock::new(false),
            given_back: AtomicU64::new(0),
        })
    }

    /// What the closer does at its end.
    fn close(&self, adopted: u64) {
        self.span.holes.write(|holes| *holes += 1);
        self.span.count.add(adopted);
        self.span.count.add_token();
        publish(self, &self.span);
    }

    fn reap(&self, header: usize) {
        self.span.headers[header].write(|is_free| *is_free = true);
        reap(self, &self.span, 1);
    }

    /// What a lane does that is lent the span, if it is there; `adopted` of its blocks survive.
    fn borrow(&self, adopted: u64) -> bool {
        if !self.unlist(&self.span) {
            return false;
        }
        assert_eq!(
            self.given_back.load(Ordering::Relaxed),
            0,
            "a span is lent that was given back"
        );
        self.span.holes.write(|holes| *holes += 1);
        self.span.count.add(adopted);
        publish(self, &self.span);
        true
    }

    fn assert_given_back(&self) {
        assert_eq!(self.given_back.load(Ordering::Relaxed), 1, "the span is lost");
    }
}

/// The only block is reaped while the closer counts, and a lane looks for a span.
#[test]
fn close_against_reap_and_lend() {
    explore(3, || {
        let shelf = Shelf::new();
        let reaper = thread::spawn({
            let shelf = shelf.clone();
            move || shelf.reap(0)
        });
        let lessee = thread::spawn({
            let shelf = shelf.clone();
            move || shelf.borrow(0)
        });
        shelf.close(1);
        reaper.join().unwrap();
        lessee.join().unwrap();
        shelf.assert_given_back();
    });
}

/// Two blocks are reaped, one of them while the span is lent.
#[test]
fn two_reaps_against_close() {
    explore(3, || {
        let shelf = Shelf::new();
        let reapers = [0, 1].map(|header| {
            let shelf = shelf.clone();
            thread::spawn(move || shelf.reap(header))
        });
        shelf.close(2);
        reapers.into_iter().for_each(|reaper| reaper.join().unwrap());
        shelf.assert_given_back();
    });
}

/// A magazine brings two blocks home at once, another one the third.
#[test]
fn blocks_of_two_magazines_against_close() {
    explore(3, || {
        let shelf = Shelf::new();
        let other = shelf.clone();
        let reaper = thread::spawn(move || {
            other.span.headers[0].write(|is_free| *is_free = true);
            reap(&*other, &other.span, 2);
        });
        let last = shelf.clone();
        let last = thread::spawn(move || last.reap(1));
        shelf.close(3);
        reaper.join().unwrap();
        last.join().unwrap();
        shelf.assert_given_back();
    });
}

/// A lane that was lent the span leaves a block there, which is reaped before the lane is counted.
#[test]
fn a_lessee_s_block_is_reaped_while_it_publishes() {
    explore(3, || {
        let shelf = Shelf::new();
        shelf.close(1);
        assert!(shelf.unlist(&shelf.span), "lent");
        let reapers = [0, 1].map(|header| {
            let shelf = shelf.clone();
            thread::spawn(move || shelf.reap(header))
        });
        shelf.span.holes.write(|holes| *holes += 1);
        shelf.span.count.add(1);
        publish(&*shelf, &shelf.span);
        reapers.into_iter().for_each(|reaper| reaper.join().unwrap());
        shelf.assert_given_back();
    });
}

/// Two lanes look for a span at once: one gets it.
#[test]
fn two_lanes_are_lent_one_span() {
    explore(3, || {
        let shelf = Shelf::new();
        shelf.close(1);
        let lessees = [0, 1].map(|_| {
            let shelf = shelf.clone();
            thread::spawn(move || shelf.borrow(0))
        });
        shelf.reap(0);
        lessees.into_iter().for_each(|lessee| {
            lessee.join().unwrap();
        });
        shelf.assert_given_back();
    });
}
