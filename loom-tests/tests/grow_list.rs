//! `grow_list`: items pushed while others walk.

use loom::sync::Arc;
use loom::thread;
use rqmalloc_loom_tests::base::sync::AtomicPtr;
use rqmalloc_loom_tests::lockfree::grow_list::{GrowList, Link, Linked};
use rqmalloc_loom_tests::model::{Plain, explore};
use std::ptr::null_mut;

struct Item {
    link: Link<Item>,
    pusher: Plain<u32>,
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
