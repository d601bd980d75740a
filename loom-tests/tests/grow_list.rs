//! `grow_list`: items pushed while others walk.

use loom::sync::Arc;
use loom::thread;
use rqmalloc_loom_tests::base::sync::{AtomicPtr, AtomicU32, Ordering};
use rqmalloc_loom_tests::lockfree::grow_list::{GrowList, Link, Linked};
use rqmalloc_loom_tests::model::{Plain, explore};
use std::ptr::null_mut;

struct Item {
    link: Link<Item>,
    pusher: Plain<u32>,
    /// The same, for those that nothing orders after the pusher.
    number: AtomicU32,
}

impl Linked for Item {
    fn link(&self) -> &Link<Self> {
        &self.link
    }
}

fn push(list: &GrowList<Item>, pusher: u32) {
    let item = Box::into_raw(Box::new(Item {
        link: Link(AtomicPtr::new(null_mut())),
        pusher: Plain::new(0),
        number: AtomicU32::new(pusher),
    }));
    // SAFETY: a whole item, leaked.
    unsafe {
        (*item).pusher.write(|value| *value = pusher);
        list.push(item);
    }
    let is_there = list.all().any(|item| item.pusher.read(|value| *value == pusher));
    assert!(is_there, "what this thread pushed is there");
}

/// N1: a walk sees each item whole, once, and those that its pusher had seen behind it.
#[test]
fn pushed_by_two_against_walk() {
    explore(3, || {
        let list = Arc::new(GrowList::new());
        let [walker, pusher] = [list.clone(), list.clone()];
        let walk = |list: &GrowList<Item>| {
            let pushers: Vec<_> = list.all().map(|item| item.pusher.read(|value| *value)).collect();
            pushers
        };
        let walker = thread::spawn(move || walk(&walker));
        let pusher = thread::spawn(move || push(&pusher, 2));
        push(&list, 1);
        let seen = walker.join().unwrap();
        pusher.join().unwrap();
        let mut all = walk(&list);
        assert!(all.ends_with(&seen), "N1: {seen:?} of {all:?}");
        all.sort_unstable();
        assert_eq!(all, [1, 2]);
    });
}

/// An item as a walk that knows no better sees it: by its atomics.
fn numbers(list: &GrowList<Item>) -> Vec<u32> {
    list.all().map(|item| item.number.load(Ordering::Relaxed)).collect()
}

/// N4: a walk goes on while its list is cut, and one of its items comes to another list.
#[test]
fn cut_against_a_walk_that_goes_on() {
    explore(3, || {
        let [list, second] = [GrowList::new(), GrowList::new()].map(Arc::new);
        push(&second, 9);
        [1, 2, 3].into_iter().for_each(|pusher| push(&list, pusher));
        let walker = list.clone();
        let walker = thread::spawn(move || numbers(&walker));
        let mut cut = Vec::new();
        list.cut(1, |item| {
            if cut.is_empty() {
                // SAFETY: an item that is on no list any more.
                unsafe { second.push(std::ptr::from_ref(item).cast_mut()) };
            }
            cut.push(item.number.load(Ordering::Relaxed));
        });
        assert_eq!(cut, [2, 1], "the others go, each once");
        assert_eq!(numbers(&list), [3], "the ones pushed last stay");
        let seen = walker.join().unwrap();
        assert!(seen.starts_with(&[3]) && seen.len() <= 3, "{seen:?}");
        assert!(seen[1..].iter().all(|number| [1, 2, 9].contains(number)), "{seen:?}");
        let whole: Vec<_> = second.all().map(|item| item.pusher.read(|value| *value)).collect();
        assert_eq!(whole, [2, 9]);
        list.cut(0, |item| cut.push(item.number.load(Ordering::Relaxed)));
        assert_eq!((cut.len(), list.all().count()), (3, 0));
    });
}
