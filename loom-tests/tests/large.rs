//! `large`: large blocks are freed and persisted from outside while their request is closed, and
//! its control block is the next request's.

use loom::sync::Arc;
use loom::thread;
use rqmalloc_loom_tests::base::sync::{AtomicU64, Lock, Ordering};
use rqmalloc_loom_tests::lockfree::large::{
    LargeBlock, LargeBlocks, LargeCount, adopt_all, detach, link,
};
use rqmalloc_loom_tests::model::{Plain, explore};

struct Block {
    owner: AtomicU64,
    /// Its links, and what its pages are used for.
    descriptor: Plain<u32>,
}

impl LargeBlock for Block {
    fn owner(&self) -> &AtomicU64 {
        &self.owner
    }
}

/// A control block; it has one request after the other, with the serials 1 and 2.
struct Model {
    lock: Lock<()>,
    count: LargeCount,
    /// The serial of its request.
    serial: Plain<u64>,
    /// The blocks on the list.
    list: Plain<Vec<usize>>,
    /// What is counted of them.
    charged: Plain<usize>,
    blocks: [Block; 3],
}

impl Model {
    /// Opens the first request, with so many blocks.
    fn new(count: usize) -> Arc<Self> {
        let block = |_| Block { owner: AtomicU64::new(0), descriptor: Plain::new(0) };
        let model = Self {
            lock: Lock::new(()),
            count: LargeCount::new(),
            serial: Plain::new(0),
            list: Plain::new(Vec::new()),
            charged: Plain::new(0),
            blocks: std::array::from_fn(block),
        };
        model.open(1);
        (0..count).for_each(|index| model.link(index, 1));
        Arc::new(model)
    }

    fn open(&self, serial: u64) {
        self.serial.write(|now| *now = serial);
        self.count.open();
        self.charged.write(|charged| *charged = 0);
    }

    fn link(&self, index: usize, serial: u64) {
        let block = &self.blocks[index];
        block.descriptor.write(|uses| *uses = 0);
        block.owner.store(serial, Ordering::Relaxed);
        link(&self.lock, &self, block);
    }

    fn index(&self, block: &Block) -> usize {
        self.blocks.iter().position(|other| std::ptr::eq(other, block)).expect("it is one")
    }

    /// What a thread does that persists a block.
    fn detach(&self, index: usize) {
        detach(
            &self.blocks[index],
            |_| &self.lock,
            |owner| {
                self.serial
                    .read(|serial| assert_eq!(*serial, owner, "L4: its request is not over"));
                Some(self)
            },
        );
    }

    /// Frees a block: its descriptor is used for something else at once.
    fn free(&self, index: usize) {
        self.detach(index);
        self.blocks[index].descriptor.write(|uses| *uses += 1);
    }

    /// Closes the request, as `request/finish.rs` does. The blocks that were adopted.
    fn close(&self) -> Vec<usize> {
        let mut adopted = Vec::new();
        if self.count.count() == 0 {
            let left = self.take_all().count();
            assert_eq!(left, 0, "L4: the list is empty");
        } else {
            adopt_all(&self.lock, &self, |block| {
                block.descriptor.read(|uses| assert_eq!(*uses, 0, "L5: it is not freed yet"));
                adopted.push(self.index(block));
            });
        }
        self.charged.read(|charged| assert_eq!(*charged, adopted.len(), "what is listed"));
        adopted
    }
}

impl LargeBlocks for &Model {
    type Block = Block;

    fn insert(&self, block: &Block) {
        self.list.write(|list| list.push(self.index(block)));
    }

    fn remove(&self, block: &Block) {
        block.descriptor.read(|_| ());
        self.list.write(|list| {
            let place = list.iter().position(|&index| index == self.index(block));
            list.remove(place.expect("L5: it is on the list"));
        });
    }

    fn charge(&self, _block: &Block) {
        self.charged.write(|charged| *charged += 1);
    }

    fn refund(&self, block: &Block) {
        block.descriptor.read(|_| ());
        self.charged.write(|charged| *charged -= 1);
    }

    fn count(&self) -> &LargeCount {
        &self.count
    }

    fn take_all(&self) -> impl Iterator<Item = &Block> {
        self.list.write(std::mem::take).into_iter().map(|index| &self.blocks[index])
    }
}

/// L4, L5: blocks come back from outside while their request is closed. A closer that reads a count
/// of 0 does without the lock. Then the control block has the next request.
#[test]
fn large_blocks_freed_against_close() {
    explore(3, || {
        let model = Model::new(2);
        let freers = [0, 1].map(|index| {
            let model = model.clone();
            thread::spawn(move || model.free(index))
        });
        model.close();
        model.open(2);
        model.link(2, 2);
        freers.into_iter().for_each(|freer| freer.join().unwrap());
        assert_eq!(model.count.count(), 1, "nobody counts for the next request");
        model.list.read(|list| assert_eq!(*list, [2], "what is listed is counted"));
        model.free(2);
        assert_eq!(model.count.count(), 0, "what is freed is counted off");
        assert_eq!(model.close().len(), 0);
    });
}

/// L5: a block is persisted from outside while its request is closed: it is persistent, by one of
/// them.
#[test]
fn large_block_persisted_against_close() {
    explore(3, || {
        let model = Model::new(1);
        let other = model.clone();
        let persister = thread::spawn(move || {
            other.detach(0);
            let owner = other.blocks[0].owner.load(Ordering::Relaxed);
            assert_eq!(owner, 0, "it is persistent");
        });
        model.close();
        model.open(2);
        persister.join().unwrap();
        model.free(0);
        model.list.read(|list| assert!(list.is_empty()));
        assert_eq!(model.count.count(), 0);
    });
}

/// Two threads inside a request list blocks, and one outside frees one.
#[test]
fn large_block_linked_against_freed() {
    explore(3, || {
        let model = Model::new(1);
        let [linker, freer] = [model.clone(), model.clone()];
        let linker = thread::spawn(move || linker.link(1, 1));
        let freer = thread::spawn(move || freer.free(0));
        model.link(2, 1);
        linker.join().unwrap();
        freer.join().unwrap();
        assert_eq!(model.count.count(), 2);
        assert_eq!(model.close().len(), 2);
    });
}
