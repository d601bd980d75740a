//! `depot`: a magazine is in one slot or outside (D1), and its taker sees its blocks linked.

use loom::sync::Arc;
use loom::thread;
use rqmalloc_loom_tests::lockfree::depot::{Depot, Magazine, Slots};
use rqmalloc_loom_tests::lockfree::header::{Block, Header, Memory, NONE};
use rqmalloc_loom_tests::model::{Blocks, explore};

struct ModelSlots(Vec<Magazine>);

impl Slots for ModelSlots {
    fn capacity(&self) -> u32 {
        self.0.len() as u32
    }
    fn get(&self, index: u32) -> Magazine {
        self.0[index as usize]
    }
    fn set(&mut self, index: u32, magazine: Magazine) {
        self.0[index as usize] = magazine;
    }
}

/// A depot and blocks for magazines of two.
struct Model {
    depot: Depot<ModelSlots>,
    memory: Blocks,
}

impl Model {
    fn new(capacity: usize) -> Arc<Self> {
        let depot = Depot::new(ModelSlots(Vec::new()));
        depot.provide(ModelSlots(vec![Magazine::EMPTY; capacity]));
        Arc::new(Self { depot, memory: Blocks::new(6, Header(0)) })
    }

    /// Links two blocks into a magazine, as their owner.
    fn link(&self, number: usize) -> Magazine {
        let (first, second) = (self.memory.block(2 * number), self.memory.block(2 * number + 1));
        self.memory.set_link(second, NONE);
        self.memory.set_link(first, second);
        Magazine { head: first, count: 2 }
    }

    /// Walks the magazine and uses its blocks, as their new owner. Returns its number.
    fn use_up(&self, magazine: Magazine) -> usize {
        let mut block: Block = magazine.head;
        for _ in 0..magazine.count {
            let next = self.memory.link(block);
            self.memory.use_payload(block);
            block = next;
        }
        assert_eq!(block, NONE, "the taker of a magazine sees the links its giver made");
        self.memory.index(magazine.head) / 2
    }
}

/// The lock orders the giver's links before the taker's walk; there is one slot for one magazine.
#[test]
fn magazine_in_against_magazine_out() {
    explore(4, || {
        let model = Model::new(1);
        let other = model.clone();
        let giver = thread::spawn(move || other.depot.put(other.link(0)).is_ok());
        let taken = model.depot.take().map(|magazine| model.use_up(magazine));
        assert!(giver.join().unwrap(), "an empty depot has room");
        let left = model.depot.take().map(|magazine| model.use_up(magazine));
        assert_eq!(taken.or(left), Some(0), "a magazine that was put is taken");
        assert!(taken.is_none() || left.is_none(), "D1: and taken once");
    });
}

/// Of two magazines for one slot one is refused, and stays whole and its giver's.
#[test]
fn two_magazines_for_one_slot() {
    explore(4, || {
        let model = Model::new(1);
        let give = |model: &Model, number| {
            model.depot.put(model.link(number)).map_err(|refused| model.use_up(refused))
        };
        let other = model.clone();
        let giver = thread::spawn(move || give(&other, 1));
        let outcomes = [give(&model, 0), giver.join().unwrap()];
        let refused = outcomes.iter().filter_map(|outcome| outcome.err()).collect::<Vec<_>>();
        assert_eq!(refused.len(), 1, "one slot has room for one magazine");
        assert_eq!(model.depot.age(), None, "D2: what is here stays while others are refused");
        assert_eq!(model.depot.age(), Some(1), "and is idle afterwards");
        let kept = model.depot.take().map(|magazine| model.use_up(magazine));
        assert_eq!(kept, Some(1 - refused[0]), "`put` gives back the magazine it was given");
        assert!(model.depot.take().is_none(), "D1: a refused magazine is not in a slot");
    });
}

/// Puts at the top and takes from the bottom of a full ring wrap around without losing a magazine.
#[test]
fn magazine_in_against_reaping() {
    explore(4, || {
        let model = Model::new(2);
        assert!(model.depot.put(model.link(0)).is_ok());
        let other = model.clone();
        let reaper = thread::spawn(move || {
            other.depot.take_coldest().map(|magazine| other.use_up(magazine))
        });
        for number in [1, 2] {
            if let Err(refused) = model.depot.put(model.link(number)) {
                assert_eq!(number, 2, "there is room for two");
                assert_eq!(model.use_up(refused), 2, "`put` gives back what it was given");
            }
        }
        let reaped = reaper.join().unwrap();
        let mut seen = 0;
        let see = |magazine: Magazine| seen += magazine.count;
        assert_eq!(model.depot.check(see), Ok(()));
        assert_eq!(
            (seen, u64::from(seen)),
            (2 * model.depot.magazine_count(), model.depot.block_count())
        );
        assert!(reaped.is_none_or(|number| number == 0), "the oldest is the one put first");
        let left = core::iter::from_fn(|| model.depot.take());
        let left = left.map(|magazine| model.use_up(magazine)).collect::<Vec<_>>();
        match reaped {
            // The reaper looked at the hint too early and found nothing.
            None => assert_eq!(left, [1, 0], "D1: nothing is lost"),
            Some(_) => assert!(left == [2, 1] || left == [1], "D1: nothing is lost: {left:?}"),
        }
    });
}

/// Two takers of one magazine, one at the top and one at the bottom.
#[test]
fn two_takers_of_one_magazine() {
    explore(4, || {
        let model = Model::new(2);
        assert!(model.depot.put(model.link(0)).is_ok());
        let other = model.clone();
        let taker =
            thread::spawn(move || other.depot.take().map(|magazine| other.use_up(magazine)));
        let here = model.depot.take_coldest().map(|magazine| model.use_up(magazine));
        let there = taker.join().unwrap();
        assert!(here.is_some() != there.is_some(), "D1: exactly one gets it");
        assert_eq!(model.depot.magazine_count(), 0, "and the depot is empty");
        assert_eq!(model.depot.check(|_| ()), Ok(()));
    });
}
