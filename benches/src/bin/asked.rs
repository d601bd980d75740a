//! What a program asks for: `asked memory ROW` prints, at each mark, how many blocks of each size
//! are live, and what they cost in size classes.
//!
//! ```text
//! asked SIZE blocks, of those with an alignment above 8
//! cost asked bytes, bytes with the classes of rqmalloc, the same in steps of 8, with mimalloc's
//! ```
//!
//! The classes of mimalloc are those of its version 2 with 16-byte alignment; up to 1 KiB only, as the
//! others: above, all have four classes a doubling.

use std::alloc::{GlobalAlloc, Layout, System};
use std::process::ExitCode;
use std::sync::atomic::{AtomicIsize, Ordering::Relaxed};

/// Blocks of at least so many bytes are not counted.
const MOST: usize = 1025;
/// The header of rqmalloc.
const HEADER: usize = 8;

struct Counting;

#[global_allocator]
static GLOBAL: Counting = Counting;

/// By size, then by whether the alignment is above 8.
static LIVE: [[AtomicIsize; 2]; MOST] = [const { [const { AtomicIsize::new(0) }; 2] }; MOST];

fn count(layout: Layout, change: isize) {
    if layout.size() < MOST {
        LIVE[layout.size()][usize::from(layout.align() > 8)].fetch_add(change, Relaxed);
    }
}

// SAFETY: it is the system's, with a counter beside.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout, 1);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(layout, -1);
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout, 1);
        // SAFETY: the caller's promise.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(layout, -1);
        count(Layout::from_size_align(size, layout.align()).expect("the caller's promise"), 1);
        // SAFETY: the caller's promise.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

/// Rounds up to a multiple of `step`, or, above `steps_end`, to a quarter of a doubling.
fn round(size: usize, step: usize, steps_end: usize) -> usize {
    let step =
        if size <= steps_end { step } else { ((size - 1) / 8 + 1).next_power_of_two().max(step) };
    size.next_multiple_of(step)
}

/// `base/size_class.rs`: classes are 8 bytes more than multiples of 16, then of an eighth of a
/// doubling's end.
fn ours(size: usize) -> usize {
    round(size.max(8) - HEADER, 16, 112) + 2 * HEADER
}

/// The same with steps of 8 up to 120 bytes.
fn in_eights(size: usize) -> usize {
    if size <= 120 { size.max(8).next_multiple_of(8) + HEADER } else { ours(size) }
}

fn mimalloc(size: usize) -> usize {
    if size <= 8 { 8 } else { round(size, 16, 128) }
}

fn at_mark(name: &str) {
    let (mut blocks, mut asked) = (0, 0);
    let mut costs = [0; 3];
    println!("asked at {name}");
    for (size, live) in LIVE.iter().enumerate().skip(1) {
        let [unaligned, aligned] =
            live.each_ref().map(|blocks| blocks.load(Relaxed).max(0).unsigned_abs());
        let count = unaligned + aligned;
        if count == 0 {
            continue;
        }
        println!("asked {size} {count} {aligned}");
        blocks += count;
        asked += count * size;
        costs[0] += count * ours(size);
        costs[1] += unaligned * in_eights(size) + aligned * ours(size);
        costs[2] += count * mimalloc(size);
    }
    println!(
        "cost {name} {blocks} blocks {asked} asked {} ours {} in eights {} mimalloc",
        costs[0], costs[1], costs[2]
    );
}

fn main() -> ExitCode {
    rqmalloc_benches::memory::AT_MARK.get_or_init(|| at_mark);
    rqmalloc_benches::main(None)
}
