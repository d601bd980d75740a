//! One thread looks at a request that another one changes: every look of the interface during every
//! kind of change, each pair for a moment. What a look returns must have been true; under
//! ThreadSanitizer (`ci/sanitize`) it must not race either.
#![allow(missing_docs)]

use rqmalloc::{Request, RqMalloc, stats};
use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

#[global_allocator]
static GLOBAL: RqMalloc = RqMalloc;

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;
/// How long a pair runs.
const MOMENT: Duration = Duration::from_millis(300);
/// Sizes of a large block, which has pages of its own: above 32 KiB.
const LARGE: [usize; 4] = [41 * KIB, 70 * KIB, 300 * KIB, 900 * KIB];
/// Sizes of a block with a mapping of its own.
const MAPPED: [usize; 4] = [2 * MIB, 3 * MIB, 9 * MIB, 5 * MIB];
/// Sizes of a block that is cut from a region.
const SMALL: [usize; 4] = [24, 100, 1000, 8000];
/// Sizes that a traced block may have within one class.
const WITHIN_A_CLASS: [usize; 4] = [90, 94, 98, 101];

/// Stops the others when dropped, also by a panic.
struct Stop<'f>(&'f AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Grows and shrinks one vector through the sizes, inside or outside the request, while another
/// thread looks. Returns how often each did something.
fn change_and_look(
    request: &Request,
    sizes: [usize; 4],
    is_inside: bool,
    look: impl Fn(&Request) + Sync,
) -> (usize, usize) {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let changer = scope.spawn(|| {
            let mut rounds = 0;
            let mut vector: Vec<u8> = request.run(|| Vec::with_capacity(sizes[0]));
            let mut change = || {
                for size in sizes {
                    vector.shrink_to(size);
                    vector.reserve_exact(size);
                    // Something in the way of a mapping that grows.
                    drop(black_box(Vec::<u8>::with_capacity(sizes[1])));
                }
            };
            while !stop.load(Ordering::Relaxed) {
                if is_inside {
                    request.run(&mut change)
                } else {
                    change()
                }
                rounds += 1;
            }
            rounds
        });
        let looker = scope.spawn(|| {
            let _stop = Stop(&stop);
            let (end, mut looks) = (Instant::now() + MOMENT, 0);
            while Instant::now() < end {
                look(request);
                looks += 1;
            }
            looks
        });
        (changer.join().unwrap(), looker.join().unwrap())
    })
}

/// Runs all sizes, inside and outside, in a request that `open` opens.
#[track_caller]
fn every_change(open: impl Fn() -> Request, look: impl Fn(&Request) + Sync) {
    for sizes in [SMALL, LARGE, MAPPED, WITHIN_A_CLASS] {
        for is_inside in [true, false] {
            let request = open();
            let (rounds, looks) = change_and_look(&request, sizes, is_inside, &look);
            assert!(rounds > 0 && looks > 0, "{rounds} rounds, {looks} looks");
            assert_eq!(request.usage().live_blocks, 0, "{request}");
            assert_eq!(request.close().unwrap().surviving_blocks, 0);
        }
    }
}

#[test]
fn usage_beside_changes() {
    every_change(Request::new, |request| {
        let usage = request.usage();
        // Exact only while nobody allocates, but never below zero.
        assert!(usage.live_blocks < 1 << 40 && usage.live_bytes < 1 << 50, "{usage:?}");
        assert_eq!(usage.limit_bytes, None);
    });
}

#[test]
fn the_text_and_the_sums_beside_changes() {
    every_change(Request::new, |request| {
        assert!(request.to_string().starts_with("request "));
        let stats = stats();
        assert_eq!(
            stats.mapped_bytes,
            stats.in_use_bytes + stats.cached_bytes + stats.free_bytes,
            "{stats}"
        );
        assert!(stats.open_request_count > 0, "{stats}");
    });
}

/// It reads the headers of mapped blocks, too, and those move.
#[test]
fn leaks_beside_changes() {
    every_change(Request::new, |request| {
        let leaks = request.leaks();
        assert!(leaks.sites.is_empty(), "{leaks}");
        let sum: u64 = leaks.classes.iter().map(|class| class.blocks).sum();
        assert_eq!(sum, leaks.blocks, "{leaks}");
    });
}

/// The record of a traced block is rewritten while it is read: it must say one of the sizes.
#[test]
fn leaks_beside_changes_of_traced_blocks() {
    let open = || Request::builder().trace_leaks(true).report_leaks(false).build();
    every_change(open, |request| {
        let leaks = request.leaks();
        let known = [SMALL, LARGE, MAPPED, WITHIN_A_CLASS].concat();
        for site in &leaks.sites {
            let asked = site.asked_bytes;
            assert!(known.contains(&asked), "nobody asked for {asked} bytes: {leaks}");
        }
    });
}

#[test]
fn reclaiming_and_limits_beside_changes() {
    every_change(Request::new, |request| {
        black_box(request.reclaim());
        request.set_memory_limit(Some(1 << 40)).unwrap();
        request.reset_peak();
        assert!(request.check().is_ok());
        request.set_memory_limit(None).unwrap();
    });
}
