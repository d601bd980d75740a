//! `stray` by itself: blocks are pushed while lanes drain, and the list is closed and opened anew.

use loom::sync::Arc;
use loom::thread;
use rqmalloc_loom_tests::base::sync::AtomicU64;
use rqmalloc_loom_tests::lockfree::header::{FREED, Header, LIVE};
use rqmalloc_loom_tests::lockfree::lifetime::{FreeOutside, free_outside, settle_stray};
use rqmalloc_loom_tests::lockfree::stray::{Chain, Refusal, StrayList};
use rqmalloc_loom_tests::model::{Blocks, explore};

const GENERATION: u32 = 5;

/// An open list and live blocks.
struct Model {
    list: StrayList,
    memory: Blocks,
}

impl Model {
    fn new(count: usize) -> Arc<Self> {
        let list = StrayList(AtomicU64::new(0));
        list.open(GENERATION);
        let memory = Blocks::new(count, Header::tag(GENERATION.into(), LIVE));
        Arc::new(Self { list, memory })
    }

    /// A free from outside.
    fn free(&self, index: usize) -> FreeOutside {
        let block = self.memory.block(index);
        self.memory.use_payload(block);
        let judged = self.memory.look(block);
        free_outside(&self.memory, block, judged, &self.list, GENERATION)
    }

    /// Makes the drained blocks the drainer's own, and returns their indices.
    fn take_in(&self, chain: Chain) -> Vec<usize> {
        let own = |block| {
            settle_stray(&self.memory, block);
            self.memory.use_payload(block);
            assert!(!self.memory.look(block).has(LIVE | FREED), "H3: drained is free");
            self.memory.index(block)
        };
        chain.blocks(&self.memory).map(own).collect()
    }

    fn drain(&self) -> Vec<usize> {
        self.take_in(self.list.drain(GENERATION))
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
            [0, 1].into_iter().for_each(|index| assert_eq!(other.free(index), FreeOutside::Pushed));
        });
        let mut taken = model.drain();
        pusher.join().unwrap();
        taken.extend(model.drain());
        model.assert_taken(taken, 0..2);
    });
}

/// Two pushers and a drainer: a pusher whose swap fails links its block anew.
#[test]
fn two_strays_against_drain() {
    explore(4, || {
        let model = Model::new(2);
        let pushers = [0, 1].map(|index| {
            let other = model.clone();
            thread::spawn(move || assert_eq!(other.free(index), FreeOutside::Pushed))
        });
        let mut taken = model.drain();
        pushers.into_iter().for_each(|pusher| pusher.join().unwrap());
        taken.extend(model.drain());
        model.assert_taken(taken, 0..2);
    });
}

/// Two lanes drain at once: each block goes to one of them.
#[test]
fn stray_push_against_two_drains() {
    explore(4, || {
        let model = Model::new(2);
        assert_eq!(model.free(0), FreeOutside::Pushed);
        let drainers =
            [model.clone(), model.clone()].map(|other| thread::spawn(move || other.drain()));
        assert_eq!(model.free(1), FreeOutside::Pushed);
        let mut taken: Vec<usize> =
            drainers.into_iter().flat_map(|drainer| drainer.join().unwrap()).collect();
        taken.extend(model.drain());
        model.assert_taken(taken, 0..2);
    });
}

/// S2: a push that comes after the close is refused, and says whether the stub has another request.
#[test]
fn a_list_is_closed_for_its_generation() {
    explore(2, || {
        let model = Model::new(1);
        let block = model.memory.block(0);
        assert!(model.list.is_empty());
        assert_eq!(model.list.look(GENERATION), None);
        assert_eq!(model.take_in(model.list.close(GENERATION)), []);
        assert_eq!(model.list.push(&model.memory, GENERATION, block), Err(Refusal::Closed));
        model.list.open(GENERATION + 1);
        assert_eq!(model.list.look(GENERATION), Some(Refusal::OtherRequest));
        assert_eq!(model.list.push(&model.memory, GENERATION, block), Err(Refusal::OtherRequest));
        assert_eq!(model.list.look(GENERATION + 1), None);
    });
}

/// S2: a wiped list takes no block, not even of a generation that ends in zeros.
#[test]
fn a_wiped_list_is_closed() {
    explore(1, || {
        let model = Model::new(1);
        let (block, list) = (model.memory.block(0), StrayList(AtomicU64::new(0)));
        assert_eq!(list.push(&model.memory, 0, block), Err(Refusal::Closed));
        assert_eq!(list.push(&model.memory, 1 << 20, block), Err(Refusal::Closed));
        assert_eq!(list.look(GENERATION), Some(Refusal::OtherRequest));
        assert!(list.is_empty() && list.close(0).is_empty());
    });
}

/// Of two frees of one block one puts it on the list; the other one finds the header changed.
#[test]
fn double_free_by_two_threads() {
    explore(4, || {
        let model = Model::new(1);
        let judged = model.memory.look(model.memory.block(0));
        let other = model.clone();
        let free = move |model: &Model| {
            free_outside(&model.memory, model.memory.block(0), judged, &model.list, GENERATION)
        };
        let freer = thread::spawn(move || free(&other));
        let freed = [free(&model), freer.join().unwrap()];
        let done = freed.iter().filter(|&&freed| freed == FreeOutside::Pushed).count();
        assert_eq!(done, 1, "of all the frees of one block exactly one is done: {freed:?}");
        model.assert_taken(model.drain(), 0..1);
    });
}
