//! `stack`: items pushed while others drain.

use loom::sync::Arc;
use loom::thread;
use rqmalloc_loom_tests::lockfree::header::{Header, Memory};
use rqmalloc_loom_tests::lockfree::stack::Stack;
use rqmalloc_loom_tests::model::{Blocks, explore};

/// A list, and items whose payload is the owner's.
struct Model {
    list: Stack,
    memory: Blocks,
}

impl Model {
    fn new(count: usize) -> Arc<Self> {
        Arc::new(Self { list: Stack::new(), memory: Blocks::new(count, Header::tag(1, 0)) })
    }

    fn push(&self, index: usize) {
        let item = self.memory.block(index);
        self.memory.use_payload(item);
        self.list.push(&self.memory, item, item);
    }

    /// What a drainer does with what it took: the items are its own now. Their indices.
    fn drain(&self) -> Vec<usize> {
        let own = |item| {
            self.memory.use_payload(item);
            self.memory.index(item)
        };
        self.list.drain().blocks(&self.memory).map(own).collect()
    }

    fn assert_taken(&self, mut taken: Vec<usize>, expected: impl IntoIterator<Item = usize>) {
        taken.sort_unstable();
        assert!(taken.into_iter().eq(expected), "every pushed item is drained exactly once");
    }
}

/// K5: the swap sees the pusher's link and its last use of the payload.
#[test]
fn push_against_drain() {
    explore(4, || {
        let model = Model::new(2);
        let other = model.clone();
        let pusher = thread::spawn(move || [0, 1].into_iter().for_each(|index| other.push(index)));
        let mut taken = model.drain();
        pusher.join().unwrap();
        taken.extend(model.drain());
        model.assert_taken(taken, 0..2);
    });
}

/// Two pushers and a drainer: a pusher whose swap fails links its item anew.
#[test]
fn two_pushes_against_drain() {
    explore(4, || {
        let model = Model::new(2);
        let others = [(0, model.clone()), (1, model.clone())];
        let pushers = others.map(|(index, other)| thread::spawn(move || other.push(index)));
        let mut taken = model.drain();
        pushers.into_iter().for_each(|pusher| pusher.join().unwrap());
        taken.extend(model.drain());
        model.assert_taken(taken, 0..2);
    });
}

/// Two lanes drain at once: an item goes to one of them.
#[test]
fn push_against_two_drains() {
    explore(4, || {
        let model = Model::new(2);
        model.push(0);
        let drainers =
            [model.clone(), model.clone()].map(|other| thread::spawn(move || other.drain()));
        model.push(1);
        let mut taken: Vec<usize> =
            drainers.into_iter().flat_map(|drainer| drainer.join().unwrap()).collect();
        taken.extend(model.drain());
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
            other.list.push(&other.memory, first, last);
        });
        model.push(2);
        let mut taken = model.drain();
        pusher.join().unwrap();
        taken.extend(model.drain());
        model.assert_taken(taken, 0..3);
    });
}
