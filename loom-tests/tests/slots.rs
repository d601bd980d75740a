//! `slots`: things taken and given back while idle ones are wiped, and stubs that are found
//! meanwhile.

use loom::sync::Arc;
use loom::thread;
use rqmalloc_loom_tests::base::sync::{AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};
use rqmalloc_loom_tests::lockfree::bitmap::{PageBitmap, longest_run};
use rqmalloc_loom_tests::lockfree::run_index::RunIndex;
use rqmalloc_loom_tests::lockfree::slots::{Contents, LEAF_SLOTS, Leaf};
use rqmalloc_loom_tests::lockfree::state::State;
use rqmalloc_loom_tests::model::{Plain, explore};

/// What a slot contains that was wiped, and one that was made.
const WIPED: u32 = 0;
const WHOLE: u32 = 7;

/// Slots that the models use; the others are spent.
const USED: usize = 2;

struct Model {
    leaf: Leaf,
    /// Leads to the leaf while it has an idle slot.
    index: RunIndex<1>,
    /// The things in the slots.
    things: [Plain<u32>; USED],
    /// What idle things have besides their memory: nothing once they were stripped.
    extras: [Plain<u32>; USED],
    stubs: [State; USED],
    /// Slots that share a page, so that they are wiped together or not at all.
    page_slots: usize,
}

impl Model {
    fn without_memory(page_slots: usize) -> Arc<Self> {
        let word = || AtomicU64::new(0);
        let leaf = Leaf {
            base: AtomicUsize::new(0),
            idle: PageBitmap { free: [word()] },
            made: word(),
            spent: word(),
            aged: [word(), word()],
            kept: AtomicU32::new(0),
        };
        Arc::new(Self {
            leaf,
            index: RunIndex { words: [word()] },
            things: [Plain::new(WIPED), Plain::new(WIPED)],
            extras: [Plain::new(0), Plain::new(0)],
            stubs: [State(word()), State(word())],
            page_slots,
        })
    }

    fn new(page_slots: usize) -> Arc<Self> {
        let model = Self::without_memory(page_slots);
        assert!(model.leaf.open(1, u64::MAX << USED, || model.publish()));
        model
    }

    /// Where slots share a page there is no hint, for fewer interleavings.
    fn publish(&self) {
        if self.page_slots > 1 {
            return;
        }
        self.index.publish(0, &[1], || longest_run(&self.leaf.idle.snapshot()));
    }

    /// When nobody is at it, the hint leads to the leaf if it has an idle slot (R1).
    fn assert_hint(&self) {
        let [idle] = self.leaf.idle.snapshot();
        assert!(idle == 0 || self.index.candidates(0) == 1, "R1: {idle:#b} are idle");
    }

    fn give(&self, slot: usize, is_old: bool) {
        self.leaf.give(slot, is_old, || self.publish());
    }

    /// Takes a slot, uses the thing in it and gives it back; which one it was.
    fn use_one(&self) -> Option<usize> {
        let slot = self.take()?;
        self.give(slot, false);
        Some(slot)
    }

    fn take(&self) -> Option<usize> {
        let (slot, is_made) = self.leaf.take(|| self.publish())?;
        if !is_made {
            self.things[slot].write(|thing| *thing = WHOLE);
            self.leaf.note_made(slot);
        }
        self.things[slot].read(|thing| assert_eq!(*thing, WHOLE, "I2: taken as made"));
        self.extras[slot].write(|extra| *extra = 1);
        Some(slot)
    }

    fn purge(&self) -> usize {
        self.leaf.purge(true, self, || self.publish())
    }
}

impl Contents for Model {
    fn strip(&self, slot: usize) {
        self.things[slot].read(|thing| assert_eq!(*thing, WHOLE, "I2: stripped"));
        self.extras[slot].write(|extra| *extra = 0);
    }

    fn wiped(&self, first: usize, count: usize) -> u64 {
        let end = (first + count).min(USED) / self.page_slots * self.page_slots;
        (first.next_multiple_of(self.page_slots)..end).map(|slot| 1 << slot).sum()
    }

    fn wipe(&self, first: usize, count: usize) {
        for slot in 0..USED {
            if self.wiped(first, count) & 1 << slot != 0 {
                self.things[slot].write(|thing| *thing = WIPED);
                self.extras[slot].read(|extra| assert_eq!(*extra, 0, "stripped before"));
            }
        }
        if count == LEAF_SLOTS {
            for stub in &self.stubs {
                self.leaf.keep(stub.look().generation());
            }
            // The system orders what was kept before the zeros.
            fence(Ordering::Release);
            self.stubs.iter().for_each(|stub| stub.rest(0));
        }
    }
}

/// I1, I2: what a thread takes is whole, whether it was wiped or not.
#[test]
fn taken_against_wiped() {
    explore(3, || {
        let model = Model::new(1);
        model.use_one();
        let other = model.clone();
        let user = thread::spawn(move || other.use_one());
        model.purge();
        user.join().unwrap();
        model.assert_hint();
        assert!(model.take().is_some() && model.take().is_some(), "no slot is lost");
        assert_eq!(model.take(), None);
        assert_eq!(model.index.candidates(0), 0, "the hint leads nowhere in vain twice");
        model.give(0, false);
        model.assert_hint();
    });
}

/// I4: a walk sees the things that others have made.
#[test]
fn made_against_walked() {
    explore(3, || {
        let model = Model::new(1);
        let other = model.clone();
        let walker = thread::spawn(move || {
            for slot in other.leaf.in_use() {
                other.things[slot].read(|thing| assert_eq!(*thing, WHOLE, "I4"));
            }
        });
        assert!(model.take().is_some() && model.take().is_some());
        walker.join().unwrap();
        assert_eq!(model.leaf.in_use().count(), USED);
    });
}

/// The same where two slots share a page: it is wiped only while both are idle.
#[test]
fn a_page_of_two_against_two_that_take() {
    explore(2, || {
        let model = Model::new(2);
        model.use_one();
        let users =
            [model.clone(), model.clone()].map(|model| thread::spawn(move || model.use_one()));
        model.purge();
        users.into_iter().for_each(|user| {
            user.join().unwrap();
        });
        assert!(model.take().is_some() && model.take().is_some(), "no slot is lost");
    });
}

/// Two looks at once strip and wipe a thing once.
#[test]
fn wiped_by_two() {
    explore(3, || {
        let model = Model::new(1);
        let both = [model.take(), model.take()];
        both.into_iter().flatten().for_each(|slot| model.give(slot, false));
        let other = model.clone();
        let looker = thread::spawn(move || other.purge());
        let went = model.purge() + looker.join().unwrap();
        assert_eq!(went, USED, "each went once");
    });
}

/// A thing goes at the third look, unless it was used meanwhile.
#[test]
fn a_look_goes_by_age() {
    explore(1, || {
        let model = Model::new(1);
        let look = || model.leaf.purge(false, &*model, || model.publish());
        let slot = model.use_one().unwrap();
        assert_eq!((look(), look()), (0, 0));
        model.use_one();
        assert_eq!((look(), look(), look()), (0, 0, 1));
        assert_eq!(model.take(), Some(slot));
        model.give(slot, false);
        assert_eq!(model.take(), Some(slot));
        model.give(slot, true);
        assert_eq!(look(), 1, "what was idle for long elsewhere goes at once");
    });
}

/// I3: whoever looks at a stub finds that a generation was issued, while it is wiped and opened
/// anew.
#[test]
fn judged_against_wiped_and_opened_anew() {
    explore(3, || {
        let model = Model::new(1);
        let slot = model.take().unwrap();
        model.stubs[slot].open(5);
        model.stubs[slot].retire();
        model.give(slot, false);
        let other = model.clone();
        let judge = thread::spawn(move || {
            assert!(other.leaf.was_issued(slot, &other.stubs[slot], 5), "I3");
            assert!(!other.leaf.was_issued(slot, &other.stubs[slot], 7), "never issued");
            assert!(!other.stubs[slot].has(5), "it is over");
        });
        assert_eq!(model.purge(), 1);
        assert_eq!(model.take(), Some(slot));
        let kept = model.leaf.kept();
        model.stubs[slot].rest(kept);
        model.stubs[slot].open(kept + 1);
        assert!(model.stubs[slot].has(6), "I3: above every one before");
        judge.join().unwrap();
    });
}

/// Who finds a leaf's memory sees what was written to it before.
#[test]
fn opened_against_found() {
    explore(3, || {
        let model = Model::without_memory(1);
        let other = model.clone();
        let finder = thread::spawn(move || {
            if other.leaf.base().is_some() {
                other.extras[0].read(|extra| assert_eq!(*extra, 3, "mapped before"));
            }
            other
                .leaf
                .take(|| other.publish())
                .inspect(|&(slot, _)| assert!(slot < USED, "not a spent one"));
        });
        model.extras[0].write(|extra| *extra = 3);
        assert!(model.leaf.open(1, u64::MAX << USED, || model.publish()));
        assert!(!model.leaf.open(2, 1, || ()), "its memory stays");
        finder.join().unwrap();
        assert_eq!(model.leaf.base(), Some(1));
        assert!(!model.leaf.is_spent(0), "nothing has changed");
        model.assert_hint();
    });
}

/// I1: a slot that is spent is never taken again, and what was in it goes.
#[test]
fn spent_against_taken_and_wiped() {
    explore(2, || {
        let model = Model::new(1);
        let spent = model.take().unwrap();
        let other = model.clone();
        let user = thread::spawn(move || other.use_one());
        model.strip(spent);
        model.leaf.spend(spent);
        model.purge();
        assert_ne!(user.join().unwrap(), Some(spent), "I1");
        assert!(model.leaf.is_spent(spent) && model.leaf.contradictions() == 0);
        // If the first look had to leave it beside one that was taken.
        model.purge();
        model.things[spent].read(|thing| assert_eq!(*thing, WIPED));
        assert!(model.take().is_some_and(|slot| slot != spent) && model.take().is_none());
    });
}
