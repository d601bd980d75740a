//! `stray`, and the first steps in `header`: blocks come back from outside while others drain or
//! close.

use loom::sync::Arc;
use loom::thread;
use rqmalloc_loom_tests::lockfree::header::{
    Claim, FREED, Header, LIVE, Memory, claim_stray, settle_stray,
};
use rqmalloc_loom_tests::lockfree::stray::{Chain, Closed, StrayList};
use rqmalloc_loom_tests::model::{Blocks, explore};

/// An open list and live blocks.
struct Model {
    list: StrayList,
    memory: Blocks,
}

impl Model {
    fn new(count: usize) -> Arc<Self> {
        let list = StrayList::new();
        list.open();
        Arc::new(Self { list, memory: Blocks::new(count, Header::tag(1, LIVE)) })
    }

    /// Frees a block from outside, up to the push.
    fn free(&self, index: usize) -> Result<(), Closed> {
        let block = self.memory.block(index);
        self.memory.use_payload(block);
        assert_eq!(claim_stray(&self.memory, block), Claim::Taken);
        self.list.push(&self.memory, block, block)
    }

    /// Makes the drained blocks the drainer's own, and returns their indices.
    fn take_in(&self, chain: Chain) -> Vec<usize> {
        chain
            .blocks(&self.memory)
            .map(|block| {
                settle_stray(&self.memory, block);
                self.memory.use_payload(block);
                assert!(!self.memory.look(block).has(LIVE | FREED), "H3: a drained block is free");
                self.memory.index(block)
            })
            .collect()
    }

    fn assert_taken(&self, mut taken: Vec<usize>, expected: impl IntoIterator<Item = usize>) {
        taken.sort_unstable();
        assert!(taken.into_iter().eq(expected), "every pushed block is drained exactly once");
    }
}

/// S3: the swap sees the pusher's link and its last use of the payload.
#[test]
fn stray_push_against_drain() {
    explore(4, || {
        let model = Model::new(2);
        let other = model.clone();
        let pusher = thread::spawn(move || {
            [0, 1].into_iter().for_each(|index| other.free(index).unwrap());
        });
        let mut taken = model.take_in(model.list.drain());
        pusher.join().unwrap();
        taken.extend(model.take_in(model.list.drain()));
        model.assert_taken(taken, 0..2);
    });
}

/// Two pushers and a drainer: a pusher whose swap fails links its block anew.
#[test]
fn two_strays_against_drain() {
    explore(4, || {
        let model = Model::new(2);
        let others = [(0, model.clone()), (1, model.clone())];
        let pushers =
            others.map(|(index, other)| thread::spawn(move || other.free(index).unwrap()));
        let mut taken = model.take_in(model.list.drain());
        pushers.into_iter().for_each(|pusher| pusher.join().unwrap());
        taken.extend(model.take_in(model.list.drain()));
        model.assert_taken(taken, 0..2);
    });
}

/// Two lanes drain at once: each block goes to one of them.
#[test]
fn stray_push_against_two_drains() {
    explore(4, || {
        let model = Model::new(2);
        model.free(0).unwrap();
        let others = [model.clone(), model.clone()];
        let drainers = others.map(|other| thread::spawn(move || other.take_in(other.list.drain())));
        model.free(1).unwrap();
        let mut taken: Vec<usize> =
            drainers.into_iter().flat_map(|drainer| drainer.join().unwrap()).collect();
        taken.extend(model.take_in(model.list.drain()));
        model.assert_taken(taken, 0..2);
    });
}

/// A chain that a lane hands over is drained as it was linked.
#[test]
fn chain_pushed_against_drain() {
    explore(4, || {
        let model = Model::new(3);
        let other = model.clone();
        let pusher = thread::spawn(move || {
            let (first, last) = (other.memory.block(0), other.memory.block(1));
            other.memory.set_link(first, last);
            other.list.push(&other.memory, first, last).unwrap();
        });
        model.free(2).unwrap();
        let mut taken = model.take_in(model.list.drain());
        pusher.join().unwrap();
        taken.extend(model.take_in(model.list.drain()));
        model.assert_taken(taken, 0..3);
    });
}

/// Each push is either in the closer's chain, with everything the pusher did before, or refused,
/// with its block still live for the closer to count (S2).
#[test]
fn stray_push_against_close() {
    explore(4, || {
        let model = Model::new(2);
        let others = [(0, model.clone()), (1, model.clone())];
        let pushers = others.map(|(index, other)| thread::spawn(move || other.free(index)));
        let taken = model.take_in(model.list.close());
        for (index, pusher) in pushers.into_iter().enumerate() {
            let refused = pusher.join().unwrap() == Err(Closed);
            assert!(refused != taken.contains(&index), "a push is drained or refused, not both");
            assert_eq!(model.memory.look(model.memory.block(index)).has(LIVE), refused, "S2");
        }
        let late = model.memory.block(0);
        assert_eq!(model.list.push(&model.memory, late, late), Err(Closed), "closed for good");
    });
}

/// Of two frees of one block, one puts it on the list; the other finds it `AlreadyFreed`.
#[test]
fn double_free_by_two_threads() {
    explore(4, || {
        let model = Model::new(1);
        let free = |model: &Model| {
            let block = model.memory.block(0);
            let claim = claim_stray(&model.memory, block);
            if claim == Claim::Taken {
                model.list.push(&model.memory, block, block).unwrap();
            }
            claim
        };
        let other = model.clone();
        let freer = thread::spawn(move || free(&other));
        let claims = [free(&model), freer.join().unwrap()];
        let taken = claims.iter().filter(|&&claim| claim == Claim::Taken).count();
        assert_eq!(taken, 1, "of all frees of one block exactly one is `Taken`");
        model.assert_taken(model.take_in(model.list.drain()), 0..1);
    });
}
