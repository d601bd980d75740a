//! `realloc`: every byte is kept, the block keeps its lifetime, and what can stay in place does.

use crate::support::{Held, MAX_CLASS, Random, charged_for, elsewhere, payloads, together};
use rqmalloc::Request;

/// Sizes on both sides of every boundary: between classes, to spans of their own, to mappings of
/// their own.
const LADDER: [usize; 22] = [
    1,
    8,
    9,
    24,
    120,
    121,
    1_000,
    1_032,
    1_033,
    8_200,
    32_776,
    32_777,
    40_968,
    100_000,
    300_000,
    MAX_CLASS - 1,
    MAX_CLASS,
    MAX_CLASS + 1,
    2 << 20,
    (4 << 20) - 16,
    5 << 20,
    13 << 20,
];

fn up_and_down(align: usize) {
    let mut held = Held::new(1, align, 1);
    for size in LADDER.into_iter().chain(LADDER.into_iter().rev()) {
        held.resize(size);
        assert!(held.usable() >= size);
    }
    held.free();
}

#[test]
fn grows_and_shrinks_across_every_boundary() {
    let _together = together();
    for align in [1, 8, 16, 32, 64, 512, 4096, 65_536, 2 << 20] {
        up_and_down(align);
        let request = Request::new();
        request.run(|| up_and_down(align));
        assert_eq!(request.usage().live_blocks, 0, "align {align}");
        assert_eq!(request.usage().live_bytes, 0, "align {align}");
    }
}

#[test]
fn jumps_from_every_size_to_every_other() {
    let _together = together();
    let request = Request::new();
    for from in LADDER {
        for to in LADDER {
            for align in [8, 128] {
                let mut persistent = Held::new(from, align, 2);
                persistent.resize(to);
                persistent.free();
                let mut inside = request.run(|| Held::new(from, align, 3));
                request.run(|| inside.resize(to));
                assert_eq!(inside.owner(), Some(request.id()));
                assert_eq!(request.usage().live_blocks, 1);
                request.run(|| inside.free());
            }
        }
    }
    assert_eq!(request.usage().live_bytes, 0);
}

#[test]
fn stays_in_place_within_its_class() {
    let _together = together();
    let check = || {
        let mut below = 1;
        for payload in payloads() {
            let mut held = Held::new(below, 8, 4);
            let neighbour = Held::new(below, 8, 5);
            let place = held.pointer;
            held.resize(payload);
            assert_eq!(held.pointer, place, "{below} to {payload}");
            held.resize(below);
            assert_eq!(held.pointer, place, "{payload} to {below}");
            neighbour.free();
            held.free();
            below = payload + 1;
        }
    };
    check();
    Request::new().run(check);
}

#[test]
fn stays_in_place_within_its_class_whatever_is_active() {
    let _together = together();
    let request = Request::new();
    let mut persistent = Held::new(100, 8, 6);
    let mut inside = request.run(|| Held::new(100, 8, 7));
    let places = (persistent.pointer, inside.pointer);
    request.run(|| persistent.resize(104));
    inside.resize(104);
    assert_eq!((persistent.pointer, inside.pointer), places);
    persistent.free();
    inside.free();
}

#[test]
fn the_last_block_of_a_request_grows_and_shrinks_in_place() {
    let _together = together();
    let request = Request::new();
    request.run(|| {
        let mut last = Held::new(64, 8, 8);
        let (mut place, mut moves) = (last.pointer, 0);
        for size in [200, 1000, 5000, 300, 64, 10_000] {
            last.resize(size);
            moves += usize::from(last.pointer != place);
            place = last.pointer;
            assert_eq!(request.usage().live_bytes, charged_for(size), "at {size}");
        }
        // A hole of an adopted span may have no room at its end.
        assert!(moves <= 6, "{moves} moves");
        // Now it is not the last any more.
        let after = Held::new(64, 8, 9);
        last.resize(12_000);
        assert!(moves > 0 || last.pointer != place);
        after.free();
        last.free();
    });
    assert_eq!(request.usage().live_blocks, 0);
}

#[test]
fn a_mapping_grows_without_a_copy_of_its_own_making() {
    let _together = together();
    // From 2 MiB to 6 MiB, blocks stay in place or move with their pages: either way the bytes must
    // be there, and the request is charged for the mapping as it is now.
    let request = Request::new();
    request.run(|| {
        let mut held = Held::new(2 << 20, 8, 10);
        for size in [3 << 20, 6 << 20, 17 << 20, 2 << 20] {
            held.resize(size);
            let usage = request.usage();
            assert_eq!(usage.live_blocks, 1);
            assert!(
                usage.live_bytes >= size && usage.live_bytes < size + size / 4 + (64 << 10),
                "{usage:?}"
            );
            assert_eq!(usage.footprint_bytes, usage.live_bytes);
        }
        held.free();
    });
    assert_eq!(request.usage().footprint_bytes, 0);
}

#[test]
fn a_persistent_vector_that_grows_inside_a_request_stays_persistent() {
    let _together = together();
    let mut vector: Vec<u64> = Vec::with_capacity(1);
    rqmalloc::begin_request();
    for number in 0..300_000 {
        vector.push(number);
        if vector.len().is_power_of_two() {
            // SAFETY: the block is live.
            let owner = unsafe { rqmalloc::owner_of(vector.as_ptr().cast()) };
            assert_eq!(owner, None, "at {number}");
        }
    }
    // SAFETY: the vector is persistent; nothing else was allocated.
    let report = unsafe { rqmalloc::end_request() };
    assert_eq!(report.freed_blocks, 0);
    assert!(vector.iter().copied().eq(0..300_000));
}

/// Resizes a block of a request across every boundary with `resize`; it must stay the request's.
fn stays_of(request: &Request, resize: impl Fn(&mut Held, usize)) {
    let mut held = request.run(|| Held::new(10, 8, 11));
    let mut over_aligned = request.run(|| Held::new(10, 1024, 12));
    for size in LADDER.into_iter().chain(LADDER.into_iter().rev()) {
        for held in [&mut held, &mut over_aligned] {
            resize(held, size);
            assert_eq!(held.owner(), Some(request.id()), "at {size}");
        }
        assert_eq!(request.usage().live_blocks, 2, "at {size}");
    }
    held.free();
    over_aligned.free();
    assert_eq!(request.usage().live_blocks, 0);
    assert_eq!(request.usage().live_bytes, 0);
}

#[test]
fn a_request_s_block_stays_the_request_s_when_resized_outside() {
    let _together = together();
    stays_of(&Request::new(), Held::resize);
}

#[test]
fn a_request_s_block_stays_the_request_s_when_resized_in_a_nested_request() {
    let _together = together();
    let (outer, inner) = (Request::new(), Request::new());
    outer.run(|| {
        stays_of(&outer, |held, size| inner.run(|| held.resize(size)));
        stays_of(&outer, |held, size| rqmalloc::persistent(|| held.resize(size)));
    });
    assert_eq!(inner.usage().live_blocks, 0);
    assert_eq!(inner.usage().peak_bytes, 0, "the inner request never had a byte");
}

#[test]
fn a_request_s_block_stays_the_request_s_when_resized_in_another_request() {
    let _together = together();
    let (one, other) = (Request::new(), Request::new());
    stays_of(&one, |held, size| other.run(|| held.resize(size)));
    assert_eq!(other.usage().peak_bytes, 0);
}

#[test]
fn a_request_s_block_stays_the_request_s_when_resized_by_another_thread() {
    let _together = together();
    let request = Request::new();
    // This thread is inside, too, so that the other one cannot have its lane.
    let _entered = request.enter();
    stays_of(&request, |held, size| {
        let mut sent = Held { pointer: held.pointer, layout: held.layout, seed: held.seed };
        *held = rqmalloc::persistent(|| {
            elsewhere(move || {
                sent.resize(size);
                sent
            })
        });
    });
}

#[test]
fn a_survivor_that_is_resized_stays_persistent() {
    let _together = together();
    for size in [10, 100, 5_000, 50_000, 500_000, 3 << 20] {
        let request = Request::new();
        let mut held = request.run(|| Held::new(size, 8, 13));
        let neighbour = request.run(|| Held::new(size, 8, 14));
        let report = request.close().unwrap();
        assert_eq!(report.surviving_blocks, 2);
        assert!(held.owner().is_none(), "{size}");
        held.resize(size * 3);
        neighbour.verify();
        assert!(held.owner().is_none(), "{size}");
        held.resize(1);
        held.free();
        neighbour.free();
    }
}

#[test]
fn a_kept_block_that_is_resized_inside_its_request_outlives_it() {
    let _together = together();
    for (from, to) in [
        (10, 20),
        (10, 500),
        (100, 50_000),
        (50_000, 90_000),
        (90_000, 3 << 20),
        (3 << 20, 9 << 20),
    ] {
        rqmalloc::begin_request();
        let (before, mut held) = (Held::new(from, 8, 15), Held::new(from, 8, 16));
        // SAFETY: a live block that no other thread knows.
        unsafe { rqmalloc::persist(held.pointer) };
        let after = Held::new(from, 8, 17);
        held.resize(to);
        before.free();
        after.free();
        // SAFETY: the only block that is used later was persisted.
        let report = unsafe { rqmalloc::end_request() };
        assert_eq!(report.freed_blocks, 0, "{from} to {to}");
        held.verify();
        held.resize(to + 1000);
        held.free();
    }
}

#[test]
fn random_walks_keep_every_byte() {
    let _together = together();
    let request = Request::new();
    let mut random = Random::new(20);
    let mut walkers: Vec<_> = (0..24)
        .map(|seed| {
            let size = random.size(2 << 20);
            if seed % 2 == 0 {
                Held::new(size, 8, seed)
            } else {
                request.run(|| Held::new(size, 16, seed))
            }
        })
        .collect();
    for _ in 0..4_000 {
        let index = random.below(walkers.len());
        let size = random.size(2 << 20);
        if random.below(2) == 0 {
            walkers[index].resize(size);
        } else {
            request.run(|| walkers[index].resize(size));
        }
    }
    for (index, held) in walkers.into_iter().enumerate() {
        assert_eq!(held.owner().is_some(), index % 2 == 1);
        held.free();
    }
    assert_eq!(request.usage().live_blocks, 0);
}

/// Returns a page in the middle of a block: changing it splits the block's mapping for the kernel.
fn page_inside(held: &Held) -> *mut libc::c_void {
    let page = 1 << 16;
    std::ptr::with_exposed_provenance_mut(
        (held.pointer.expose_provenance() + held.layout.size() / 2) / page * page,
    )
}

#[test]
fn mappings_with_a_locked_or_advised_part_grow_and_lose_nothing() {
    let _together = together();
    let stop = std::sync::atomic::AtomicBool::new(false);
    let stop = &stop;
    std::thread::scope(|scope| {
        // Takes whatever addresses become free, and would notice if somebody unmapped them.
        scope.spawn(move || {
            let bytes = 8 << 20;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let access = libc::PROT_READ | libc::PROT_WRITE;
                let kind = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
                // SAFETY: this test's own mapping, used within its bounds and given back.
                unsafe {
                    let address = libc::mmap(std::ptr::null_mut(), bytes, access, kind, -1, 0);
                    assert_ne!(address, libc::MAP_FAILED);
                    let bytes_of_it = address.cast::<u8>();
                    (0..bytes).step_by(1 << 20).for_each(|at| bytes_of_it.add(at).write(7));
                    std::thread::yield_now();
                    assert!((0..bytes).step_by(1 << 20).all(|at| bytes_of_it.add(at).read() == 7));
                    libc::munmap(address, bytes);
                }
            }
        });
        for round in 0..40 {
            let request = Request::new();
            let mut held = request.run(|| Held::new(2 << 20, 8, round));
            let page = page_inside(&held);
            // SAFETY: a page of a live block; its contents do not change.
            unsafe {
                match round % 3 {
                    // Without the right to lock memory this tests nothing.
                    0 => drop(libc::mlock(page, 1 << 16)),
                    1 => assert_eq!(libc::madvise(page, 1 << 16, libc::MADV_DONTFORK), 0),
                    _ => assert_eq!(libc::madvise(page, 1 << 16, libc::MADV_RANDOM), 0),
                }
            }
            for size in [3 << 20, 9 << 20, 31 << 20, 2 << 20] {
                held.resize(size);
            }
            held.free();
            drop(request);
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    rqmalloc::check_structures();
}
