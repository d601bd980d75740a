//! Allocation and deallocation with every size and alignment, in both lifetimes.

use crate::support::{Held, MAX_CLASS, PAGE, layout, payload_for, payloads, together};
use rqmalloc::{Request, RqMalloc};
use std::alloc::GlobalAlloc;
use std::collections::{BTreeMap, HashMap, HashSet};

/// Runs a test outside requests and inside one, in which nothing may be left.
fn in_both_lifetimes(test: impl Fn()) {
    test();
    let request = Request::new();
    request.run(&test);
    assert_eq!(request.usage().live_blocks, 0);
    let report = request.close().unwrap();
    assert_eq!((report.freed_blocks, report.surviving_blocks), (0, 0));
}

/// Returns each class's largest size, one less and one more.
fn sizes_around_classes() -> impl Iterator<Item = usize> {
    payloads().flat_map(|payload| payload - 1..=payload + 1)
}

#[test]
fn it_is_installed() {
    let _together = together();
    assert!(rqmalloc::is_installed());
}

#[test]
fn every_size_at_every_alignment_to_a_page() {
    let _together = together();
    in_both_lifetimes(|| {
        for size in sizes_around_classes() {
            // All blocks of a size are live at once, so that overlapping ones spoil each other's
            // bytes.
            let held: [_; 17] =
                std::array::from_fn(|power| Held::new(size, 1 << power, (size + power) as u64));
            for held in held {
                assert!(held.usable() >= size, "{:?} has {} bytes", held.layout, held.usable());
                held.free();
            }
        }
    });
}

#[test]
fn a_size_gets_the_smallest_class_that_holds_it() {
    let _together = together();
    in_both_lifetimes(|| {
        for size in sizes_around_classes().filter(|&size| size <= MAX_CLASS) {
            let held = Held::new(size, 16, 1);
            assert_eq!(held.usable(), payload_for(size), "size {size}");
            assert_eq!(held.pointer.addr() % 16, 0, "size {size} at 1 is at 16 as all are");
            held.free();
        }
    });
}

#[test]
fn a_block_above_the_classes_has_its_bytes() {
    let _together = together();
    in_both_lifetimes(|| {
        for size in [MAX_CLASS + 1, 2 << 20, (4 << 20) - 16, 4 << 20, (4 << 20) + 1, 9 << 20] {
            let held = Held::new(size, 8, 2);
            assert!(held.usable() >= size, "{} bytes for {size}", held.usable());
            assert_eq!((held.usable() + 16) % PAGE, 0, "a mapping is whole pages");
            held.free();
        }
    });
}

#[test]
fn alignments_beyond_a_page() {
    let _together = together();
    in_both_lifetimes(|| {
        for power in 17..=23 {
            for size in [1, 100, 5000, 70_000, 1 << 20, 3 << 20] {
                let held = [Held::new(size, 1 << power, 3), Held::new(size, 1 << power, 4)];
                for held in held {
                    assert!(held.usable() >= size);
                    held.free();
                }
            }
        }
    });
}

#[test]
fn no_two_live_blocks_overlap() {
    let _together = together();
    in_both_lifetimes(|| {
        let mut held = rqmalloc::persistent(|| Vec::with_capacity(4000));
        for index in 0..4000 {
            held.push(Held::new(1 + index * 7 % 900, 1 << (index % 6), index as u64));
        }
        let mut extents: Vec<_> = held
            .iter()
            .map(|held| (held.pointer.addr(), held.pointer.addr() + held.usable()))
            .collect();
        extents.sort_unstable();
        // There is a header between two of them.
        assert!(extents.windows(2).all(|pair| pair[0].1 + 8 <= pair[1].0));
        drop(extents);
        held.into_iter().for_each(Held::free);
    });
}

#[test]
fn what_was_freed_is_used_again() {
    let _together = together();
    in_both_lifetimes(|| {
        for size in payloads().filter(|&payload| payload <= 32_776) {
            let held: [_; 3] = std::array::from_fn(|seed| Held::new(size, 8, seed as u64));
            let mut before = held.each_ref().map(|held| held.pointer.addr());
            // A thread does not keep more than one of those that survived requests of other tests.
            let least = if held[0].owner().is_some() { 3 } else { 1 };
            held.into_iter().for_each(Held::free);
            let held: [_; 3] = std::array::from_fn(|seed| Held::new(size, 8, seed as u64));
            let mut after = held.each_ref().map(|held| held.pointer.addr());
            before.sort_unstable();
            after.sort_unstable();
            let again = before.iter().filter(|address| after.contains(address)).count();
            assert!(again >= least, "{again} of size {size}");
            held.into_iter().for_each(Held::free);
        }
    });
}

#[test]
fn impossible_sizes_are_null() {
    let _together = together();
    const MAX: usize = isize::MAX as usize;
    let impossible = [
        layout(MAX, 1),
        layout(MAX - 7, 8),
        layout(MAX - 15, 16),
        layout(MAX - 31, 32),
        layout(MAX - 4095, 4096),
        layout(MAX - (8 << 20) + 1, 8 << 20),
        layout(MAX / 2, 1),
        layout(1 << 50, 16),
        layout(1, 1 << 62),
        layout(1 << 62, 1 << 62),
        layout(100, 1 << 50),
    ];
    in_both_lifetimes(|| {
        for layout in impossible {
            // SAFETY: no layout here has size 0.
            unsafe {
                assert!(RqMalloc.alloc(layout).is_null(), "{layout:?}");
                assert!(RqMalloc.alloc_zeroed(layout).is_null(), "{layout:?}");
            }
        }
        let mut vector: Vec<u8> = Vec::new();
        assert!(vector.try_reserve(MAX).is_err());
        vector.push(1);
        assert!(vector.try_reserve(MAX - 4096).is_err());
        assert_eq!(vector, [1]);
    });
}

#[test]
fn an_impossible_realloc_leaves_the_block_as_it_was() {
    let _together = together();
    in_both_lifetimes(|| {
        for size in [10, 1000, 50_000, 500_000, 3_000_000] {
            for align in [8, 64] {
                let mut held = Held::new(size, align, 5);
                for impossible in [isize::MAX as usize - (align - 1), 1 << 50] {
                    // SAFETY: a live block of this layout; the new layout is valid.
                    let moved = unsafe { RqMalloc.realloc(held.pointer, held.layout, impossible) };
                    assert!(moved.is_null());
                    held.verify();
                }
                held.resize(size + 1000);
                held.free();
            }
        }
    });
}

#[test]
fn zeroed_memory_is_zero_when_it_was_used_before() {
    let _together = together();
    in_both_lifetimes(|| {
        let mut reused = 0;
        for size in payloads().chain([2 << 20, 5 << 20]) {
            for align in [8, 256, 65_536] {
                // Filled with their patterns, and freed.
                let dirty: [_; 4] = std::array::from_fn(|seed| Held::new(size, align, seed as u64));
                let addresses = dirty.each_ref().map(|held| held.pointer.addr());
                dirty.into_iter().for_each(Held::free);
                let zeroed: [_; 4] =
                    std::array::from_fn(|seed| Held::zeroed(size, align, seed as u64));
                reused +=
                    zeroed.iter().filter(|held| addresses.contains(&held.pointer.addr())).count();
                zeroed.into_iter().for_each(Held::free);
            }
        }
        // Most of them were reused: otherwise nothing was tested.
        assert!(reused > 400, "only {reused} blocks were used twice");
    });
}

#[test]
fn zeroed_memory_is_zero_when_another_request_used_it() {
    let _together = together();
    let request = |size: usize, align: usize, zeroed: bool| {
        rqmalloc::begin_request();
        for seed in 0..6 {
            if zeroed {
                Held::zeroed(size, align, seed);
            } else {
                Held::new(size, align, seed);
            }
        }
        // SAFETY: nothing of the request is used any more.
        let _ = unsafe { rqmalloc::end_request() };
    };
    for size in payloads().chain([2 << 20, 5 << 20]) {
        for align in [16, 4096] {
            request(size, align, false);
            request(size, align, true);
        }
    }
}

#[test]
fn zeroed_memory_is_zero_after_a_trim() {
    let _together = together();
    for size in [100, 5000, 50_000, 700_000, 3 << 20] {
        let dirty: [_; 8] = std::array::from_fn(|seed| Held::new(size, 8, seed as u64));
        dirty.into_iter().for_each(Held::free);
        rqmalloc::trim();
        let zeroed: [_; 8] = std::array::from_fn(|seed| Held::zeroed(size, 8, seed as u64));
        zeroed.into_iter().for_each(Held::free);
    }
}

#[test]
fn collections_work_in_both_lifetimes() {
    let _together = together();
    in_both_lifetimes(|| {
        // `HashMap::new` draws its keys once per thread: no allocation stays behind.
        let mut words = HashMap::new();
        let mut sorted = BTreeMap::new();
        for number in 0..20_000_u32 {
            words.insert(number.to_string(), number);
            sorted.insert(number.reverse_bits(), number.to_string());
        }
        words.retain(|_, number| *number % 3 == 0);
        assert_eq!(words.len(), 6667);
        assert!(words.iter().all(|(word, number)| *word == number.to_string()));
        assert!(sorted.iter().all(|(key, word)| *word == key.reverse_bits().to_string()));
        let distinct: HashSet<_> = sorted.into_values().collect();
        assert_eq!(distinct.len(), 20_000);
    });
}

#[test]
fn a_request_owns_what_is_allocated_inside_and_nothing_else() {
    let _together = together();
    let request = Request::new();
    for size in payloads().chain([MAX_CLASS + 1, 5 << 20]) {
        for align in [8, 4096] {
            let outside = Held::new(size, align, 6);
            let inside = request.run(|| Held::new(size, align, 7));
            let persistent = request.run(|| rqmalloc::persistent(|| Held::new(size, align, 8)));
            assert_eq!(outside.owner(), None);
            assert_eq!(inside.owner(), Some(request.id()), "{:?}", inside.layout);
            assert_eq!(persistent.owner(), None);
            outside.free();
            inside.free();
            persistent.free();
        }
    }
    assert_eq!(request.usage().live_blocks, 0);
    assert_eq!(request.usage().live_bytes, 0);
}
