//! `once`: what is made when it is first needed.

use loom::sync::Arc;
use loom::thread;
use rqmalloc_loom_tests::lockfree::once::{Once, OnceList};
use rqmalloc_loom_tests::model::{Plain, explore};

/// A thing that says who made it.
type Thing = Plain<u32>;

fn thing(maker: u32) -> *mut Thing {
    let thing = Box::new(Plain::new(0));
    thing.write(|value| *value = maker);
    Box::leak(thing)
}

fn make(once: &Once<Thing>, maker: u32) {
    // SAFETY: a whole thing, leaked.
    assert!(unsafe { once.make(|| Some(thing(maker))) });
}

/// O1: a thing that was got is whole.
#[test]
fn made_against_got() {
    explore(3, || {
        let once = Arc::new(Once::<Thing>::new());
        let other = once.clone();
        let reader = thread::spawn(move || {
            if let Some(thing) = other.get() {
                thing.read(|maker| assert_eq!(*maker, 1, "O1"));
            }
        });
        make(&once, 1);
        reader.join().unwrap();
        assert!(once.get().is_some(), "what was made is there");
        // SAFETY: makes nothing.
        assert!(unsafe { once.make(|| panic!("made twice")) });
    });
}

/// O2: of two that make it, both get the same, whole.
#[test]
fn made_by_two() {
    explore(3, || {
        let once = Arc::new(Once::<Thing>::new());
        let other = once.clone();
        let get = |once: &Once<Thing>| once.get().expect("it was made").read(|maker| *maker);
        let maker = thread::spawn(move || {
            make(&other, 1);
            get(&other)
        });
        make(&once, 2);
        let here = get(&once);
        assert_eq!(maker.join().unwrap(), here, "O2");
        assert!(here == 1 || here == 2, "O1");
    });
}

/// Nothing is there, and nothing is made, without memory.
#[test]
fn not_made_without_memory() {
    explore(1, || {
        let once = Once::<Thing>::new();
        // SAFETY: makes nothing.
        assert!(!unsafe { once.make(|| None) });
        assert!(once.get().is_none());
    });
}

/// O3: two that have seen all of a list make the same next thing, and a third sees no gap.
#[test]
fn next_one_made_by_two() {
    explore(3, || {
        let list = Arc::new(OnceList { places: std::array::from_fn(|_| Once::new()) });
        let add = |list: &OnceList<Thing, 3>, maker: u32| {
            let count = list.all().count();
            // SAFETY: a whole thing, leaked.
            assert!(unsafe { list.make_next(count, || Some(thing(maker))) });
            assert!(list.all().count() > count, "O3: what this thread made is there");
            assert!(list.get(count).is_some(), "by its index, too");
        };
        let others = [list.clone(), list.clone()];
        let makers = [1, 2].map(|maker| {
            let list = others[maker as usize - 1].clone();
            thread::spawn(move || add(&list, maker))
        });
        list.all().for_each(|thing| thing.read(|maker| assert!(*maker > 0, "O1")));
        makers.into_iter().for_each(|maker| maker.join().unwrap());
        let count = list.all().count();
        assert!(count == 1 || count == 2, "{count} things of two makers");
    });
}
