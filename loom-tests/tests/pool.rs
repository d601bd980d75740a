//! `pool`: an object is on the stack or has one owner (P1), who sees what the last one did (P2).

use loom::sync::Arc;
use loom::thread;
use rqmalloc_loom_tests::base::sync::AtomicU64;
use rqmalloc_loom_tests::lockfree::pool::{ALIGN, Pool, Successors};
use rqmalloc_loom_tests::model::{Plain, explore};

struct Object {
    successor: AtomicU64,
    contents: Plain<u32>,
}

struct Objects(Vec<Object>);

impl Successors for Objects {
    fn successor(&self, address: usize) -> &AtomicU64 {
        &self.0[address / ALIGN - 1].successor
    }
}

/// A pool, and objects that are all outside it.
struct Model {
    pool: Pool,
    objects: Objects,
}

impl Model {
    fn new(count: usize) -> Arc<Self> {
        let object = |_| Object { successor: AtomicU64::new(0), contents: Plain::new(0) };
        Arc::new(Self { pool: Pool::new(), objects: Objects((0..count).map(object).collect()) })
    }

    /// Owns an object: stops the model if the object has another owner, or had one whose writes are
    /// not seen.
    fn own(&self, index: usize) {
        self.objects.0[index].contents.write(|owners| *owners += 1);
    }

    fn put(&self, index: usize) {
        self.own(index);
        self.pool.put(&self.objects, (index + 1) * ALIGN);
    }

    fn take(&self) -> Option<usize> {
        let index = self.pool.take(&self.objects)? / ALIGN - 1;
        self.own(index);
        Some(index)
    }

    fn assert_holds(&self, mut outside: Vec<usize>) {
        outside.extend(core::iter::from_fn(|| self.take()));
        outside.sort_unstable();
        assert!(
            outside.into_iter().eq(0..self.objects.0.len()),
            "P1: every object is on the stack or outside, once"
        );
    }
}

/// P2: the take acquires what the put released, at its first look and after a failed swap.
#[test]
fn put_against_take() {
    explore(4, || {
        let model = Model::new(2);
        model.put(0);
        let other = model.clone();
        let putter = thread::spawn(move || other.put(1));
        let taken = model.take();
        putter.join().unwrap();
        model.assert_holds(Vec::from_iter(taken));
    });
}

/// Two takers of one object.
#[test]
fn two_takers_of_one_object() {
    explore(4, || {
        let model = Model::new(1);
        model.put(0);
        let others = [model.clone(), model.clone()];
        let takers = others.map(|other| thread::spawn(move || other.take()));
        let taken: Vec<usize> =
            takers.into_iter().filter_map(|taker| taker.join().unwrap()).collect();
        assert_eq!(taken, [0], "P1: exactly one gets it");
    });
}

/// A taker sleeps between its look at the successor and its swap, while another one takes both
/// objects and puts the first back: the successor is no longer on the stack.
#[test]
fn take_against_two_takes_and_a_put() {
    explore(4, || {
        let model = Model::new(2);
        model.put(1);
        model.put(0);
        let other = model.clone();
        let churner = thread::spawn(move || {
            let (first, second) = (other.take(), other.take());
            if let Some(first) = first {
                other.put(first);
            }
            Vec::from_iter(second)
        });
        let taken = model.take();
        let mut outside = churner.join().unwrap();
        outside.extend(taken);
        model.assert_holds(outside);
    });
}

/// Three threads hand objects to and fro.
#[test]
fn three_threads_take_and_put() {
    explore(2, || {
        let model = Model::new(2);
        model.put(0);
        let others = [model.clone(), model.clone()];
        let threads = others.map(|other| {
            thread::spawn(move || {
                if let Some(index) = other.take() {
                    other.put(index);
                }
            })
        });
        model.put(1);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        model.assert_holds(Vec::new());
    });
}
