//! `mapping` and `table`: addresses that one thread gives up are another one's at once, and what is
//! registered there is what its owner has registered.

use loom::sync::Arc;
use loom::thread;
use rqmalloc_loom_tests::base::sync::{AtomicU32, AtomicUsize, Lock, Ordering};
use rqmalloc_loom_tests::lockfree::looseness::Looseness;
use rqmalloc_loom_tests::lockfree::mapping::{
    Change, Space, enter, release, resize, split, tighten,
};
use rqmalloc_loom_tests::lockfree::once::Once;
use rqmalloc_loom_tests::lockfree::table::{Leaf, Table};
use rqmalloc_loom_tests::model::{Plain, explore};
use std::ops::Range;

/// Addresses there are: each has an entry.
const ADDRESSES: usize = 4;
const LEAF: usize = 2;

struct Descriptor {
    base: AtomicUsize,
    bytes: AtomicUsize,
    looseness: Looseness,
}

/// The system, the registry and some descriptors.
struct Model {
    /// Which addresses are mapped; the system's own.
    mapped: Lock<[bool; ADDRESSES]>,
    memory: [Plain<u32>; ADDRESSES],
    table: Table<{ ADDRESSES / LEAF }, LEAF>,
    descriptors: [Descriptor; 3],
    pooled: Lock<Vec<usize>>,
}

impl Model {
    fn new() -> Arc<Self> {
        let descriptor = |_| Descriptor {
            base: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            looseness: Looseness(AtomicU32::new(0)),
        };
        Arc::new(Self {
            mapped: Lock::new([false; ADDRESSES]),
            memory: std::array::from_fn(|_| Plain::new(0)),
            table: Table { leaves: std::array::from_fn(|_| Once::new()) },
            descriptors: std::array::from_fn(descriptor),
            pooled: Lock::new(vec![2, 1, 0]),
        })
    }

    fn addresses(&self, descriptor: usize) -> Range<usize> {
        let (base, bytes) = self.extent(&descriptor);
        base..base + bytes
    }

    /// What its owner may rely on: the entries lead to its descriptor, no others do, and the memory
    /// is its own.
    fn assert_owned(&self, descriptor: usize) {
        for address in 0..ADDRESSES {
            let is_own = self.addresses(descriptor).contains(&address);
            let leads_here = self.table.find(address) == descriptor + 1;
            assert_eq!(leads_here, is_own, "X3: {address} leads to descriptor {descriptor}");
        }
        for address in self.addresses(descriptor) {
            self.memory[address].write(|uses| *uses += 1);
        }
    }

    /// Maps addresses and registers them, as a new block does; `None`: there are none.
    fn take(&self, bytes: usize) -> Option<usize> {
        let descriptor = self.pooled.lock().pop()?;
        let Some(base) = self.map(bytes) else {
            self.pooled.lock().push(descriptor);
            return None;
        };
        enter(self, &descriptor, || self.set_extent(&descriptor, base, bytes));
        self.assert_owned(descriptor);
        Some(descriptor)
    }

    /// Gives mappings back; then nothing is left of any.
    fn close(&self, descriptors: impl IntoIterator<Item = usize>) {
        for descriptor in descriptors {
            self.assert_owned(descriptor);
            release(self, &descriptor);
        }
        assert!(self.table.all().next().is_none(), "X3: nothing is registered");
        assert_eq!(*self.mapped.lock(), [false; ADDRESSES], "nothing is mapped");
        assert_eq!(self.pooled.lock().len(), self.descriptors.len(), "no descriptor is lost");
    }
}

impl Space for Model {
    type Mapping = usize;

    fn extent(&self, mapping: &usize) -> (usize, usize) {
        let Descriptor { base, bytes, .. } = &self.descriptors[*mapping];
        (base.load(Ordering::Relaxed), bytes.load(Ordering::Relaxed))
    }

    fn set_extent(&self, mapping: &usize, base: usize, bytes: usize) {
        self.descriptors[*mapping].base.store(base, Ordering::Relaxed);
        self.descriptors[*mapping].bytes.store(bytes, Ordering::Relaxed);
    }

    fn register(&self, mapping: &usize) {
        let (base, bytes) = self.extent(mapping);
        self.table.set(base..=base + bytes - 1, mapping + 1);
    }

    fn forget(&self, base: usize, bytes: usize) {
        self.table.set(base..=base + bytes - 1, 0);
    }

    fn forget_end(&self, base: usize, old: usize, new: usize) {
        if new < old {
            self.forget(base + new, old - new);
        }
    }

    fn count(&self, _added: usize, _gone: usize) {}

    fn give_descriptor(&self, mapping: &usize) {
        self.pooled.lock().push(*mapping);
    }

    fn unmap(&self, base: usize, bytes: usize) {
        let mut mapped = self.mapped.lock();
        for address in base..base + bytes {
            assert!(mapped[address], "{address} is unmapped twice");
            self.memory[address].write(|uses| *uses = 0);
            mapped[address] = false;
        }
    }

    fn change(&self, base: usize, old: usize, new: usize) -> Change {
        let mut mapped = self.mapped.lock();
        for address in base + new..base + old {
            self.memory[address].write(|uses| *uses = 0);
            mapped[address] = false;
        }
        if (base + old..base + new).any(|address| address >= ADDRESSES || mapped[address]) {
            return Change::NoRoom;
        }
        (base + old..base + new).for_each(|address| mapped[address] = true);
        Change::Done
    }

    fn map(&self, bytes: usize) -> Option<usize> {
        let mut mapped = self.mapped.lock();
        let is_free = |base: &usize| mapped[*base..base + bytes].iter().all(|&mapped| !mapped);
        let base = (0..=ADDRESSES - bytes).find(is_free)?;
        mapped[base..base + bytes].fill(true);
        drop(mapped);
        let fresh = || {
            let entries = std::array::from_fn(|_| AtomicUsize::new(0));
            Some(Box::into_raw(Box::new(Leaf { entries })))
        };
        // SAFETY: an empty leaf, leaked.
        assert!(unsafe { self.table.prepare(base..=base + bytes - 1, fresh) });
        assert!(self.table.is_prepared(base..=base + bytes - 1));
        Some(base)
    }

    fn move_pages(&self, base: usize, old: usize, _target: usize, _new: usize) -> bool {
        self.unmap(base, old);
        true
    }
}

/// Runs `first` on a mapping of `bytes` while another thread takes one of `other_bytes`.
fn against_a_new_one(
    bytes: usize,
    other_bytes: usize,
    first: impl Fn(&Model, usize) -> Option<usize> + Send + Sync + Copy + 'static,
) {
    explore(3, move || {
        let model = Model::new();
        let descriptor = model.take(bytes).expect("there is room");
        let other = model.clone();
        let taker = thread::spawn(move || {
            let taken = other.take(other_bytes);
            taken.inspect(|&taken| other.assert_owned(taken))
        });
        let left = first(&model, descriptor);
        model.close(left.into_iter().chain(taker.join().unwrap()));
    });
}

/// A mapping goes while another one comes, perhaps to the same addresses.
#[test]
fn released_against_a_new_one() {
    against_a_new_one(3, 2, |model, descriptor| {
        release(model, &descriptor);
        None
    });
}

/// The same, perhaps with its descriptor.
#[test]
fn released_against_a_new_one_with_its_descriptor() {
    against_a_new_one(2, 2, |model, descriptor| {
        let others = std::mem::take(&mut *model.pooled.lock());
        release(model, &descriptor);
        model.pooled.lock().extend(others);
        None
    });
}

/// The end of a mapping goes because its block needs less.
#[test]
fn shortened_against_a_new_one() {
    against_a_new_one(3, 2, |model, descriptor| {
        assert!(resize(model, &descriptor, 2), "what gets shorter stays");
        model.assert_owned(descriptor);
        assert_eq!(model.addresses(descriptor), 0..2);
        Some(descriptor)
    });
}

/// A mapping becomes longer, in its place or in another one.
#[test]
fn lengthened_against_a_new_one() {
    against_a_new_one(1, 1, |model, descriptor| {
        assert!(resize(model, &descriptor, 2), "there is room for both");
        model.assert_owned(descriptor);
        assert_eq!(model.addresses(descriptor).len(), 2);
        Some(descriptor)
    });
}

/// A mapping is moved, and its old addresses are another one's at once.
#[test]
fn moved_against_a_new_one() {
    explore(3, move || {
        let model = Model::new();
        let [moved, behind] = [1, 1].map(|bytes| model.take(bytes).expect("there is room"));
        let other = model.clone();
        let taker = thread::spawn(move || {
            let taken = other.take(1);
            taken.inspect(|&taken| other.assert_owned(taken))
        });
        let is_moved = resize(&*model, &moved, 2);
        model.assert_owned(moved);
        assert_eq!(model.addresses(moved), if is_moved { 2..4 } else { 0..1 });
        model.close([moved, behind].into_iter().chain(taker.join().unwrap()));
    });
}

/// There is room neither behind a mapping nor elsewhere: it stays.
#[test]
fn lengthened_in_vain_against_a_new_one() {
    against_a_new_one(3, 1, |model, descriptor| {
        let is_done = resize(model, &descriptor, 4);
        model.assert_owned(descriptor);
        assert_eq!(model.addresses(descriptor).len(), if is_done { 4 } else { 3 });
        Some(descriptor)
    });
}

/// Lets a thread give the excess of a loose mapping back while its owner gets it and passes it to
/// `then`.
fn tightened_against(then: impl Fn(&Model, usize) + Send + Sync + Copy + 'static) {
    explore(3, move || {
        let model = Model::new();
        let descriptor = model.take(3).expect("there is room");
        model.descriptors[descriptor].looseness.loosen();
        let other = model.clone();
        let tightener = thread::spawn(move || {
            let looseness = &other.descriptors[descriptor].looseness;
            if looseness.claim() {
                tighten(&*other, &descriptor, looseness, 2);
            }
        });
        let is_owned = model.descriptors[descriptor].looseness.try_tighten().is_some();
        if is_owned {
            then(&model, descriptor);
        }
        tightener.join().unwrap();
        assert!(model.descriptors[descriptor].looseness.is_tight(), "the claim has ended");
        model.close(model.table.all().next().map(|_| descriptor));
    });
}

/// The excess of a loose mapping goes while its block is freed.
#[test]
fn tightened_against_release() {
    tightened_against(|model, descriptor| {
        model.assert_owned(descriptor);
        release(model, &descriptor);
    });
}

/// The excess of a loose mapping goes while its block grows: where it went there is room.
#[test]
fn tightened_against_lengthened() {
    tightened_against(|model, descriptor| {
        let needs = model.extent(&descriptor).1 + 1;
        assert!(resize(model, &descriptor, needs), "nobody else has what is behind it");
        model.assert_owned(descriptor);
    });
}

/// The excess of a loose mapping goes and is another one's at once.
#[test]
fn tightened_against_a_new_one() {
    against_a_new_one(3, 2, |model, descriptor| {
        tighten(model, &descriptor, &model.descriptors[descriptor].looseness, 2);
        Some(descriptor)
    });
}

/// A mapping is divided, and a part of it goes at once.
#[test]
fn divided_against_a_new_one() {
    against_a_new_one(3, 2, |model, descriptor| {
        let behind = model.pooled.lock().pop()?;
        split(model, &descriptor, &behind, 2, || model.set_extent(&behind, 2, 1));
        model.assert_owned(descriptor);
        model.assert_owned(behind);
        assert_eq!((model.addresses(descriptor), model.addresses(behind)), (0..2, 2..3));
        release(model, &descriptor);
        Some(behind)
    });
}

/// X1: whoever finds an entry, in a leaf that is being made, sees what its writer did before.
#[test]
fn entry_set_against_found() {
    fn set(model: &Model, address: usize) {
        let entries = std::array::from_fn(|_| AtomicUsize::new(0));
        let fresh = Box::into_raw(Box::new(Leaf { entries }));
        // SAFETY: an empty leaf, leaked.
        assert!(unsafe { model.table.prepare(address..=address, || Some(fresh)) });
        model.memory[address].write(|uses| *uses = 1);
        model.table.set(address..=address, address + 1);
        assert_eq!(model.table.find(address), address + 1, "one leaf for both");
    }
    explore(3, || {
        let model = Model::new();
        let [writer, finder] = [model.clone(), model.clone()];
        let writer = thread::spawn(move || set(&writer, 1));
        let finder = thread::spawn(move || {
            for address in [0, 1].into_iter().filter(|&address| finder.table.find(address) != 0) {
                finder.memory[address].read(|uses| assert_eq!(*uses, 1, "X1"));
            }
        });
        set(&model, 0);
        writer.join().unwrap();
        finder.join().unwrap();
        assert!(model.table.all().eq([(0, 1), (1, 2)]), "one leaf for both");
        assert_eq!(model.table.find(ADDRESSES), 0, "beyond the table there is nothing");
    });
}
