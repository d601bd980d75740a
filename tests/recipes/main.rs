//! How a request's work on other threads stays in the request, by library: each recipe is the code
//! that one writes, and a measurement of what part of the bytes it asks for is the request's.
#![allow(missing_docs)]

mod body;
mod rayon;
#[cfg(tokio_unstable)]
mod task_hooks;
mod tasks;
mod threads;

use rqmalloc::{Request, RqMalloc, owner_of};
use std::alloc::{GlobalAlloc, Layout};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Counts the bytes that are asked for, and those that a request's blocks are asked for.
struct Counting;

static ALL_BYTES: AtomicUsize = AtomicUsize::new(0);
static REQUEST_BYTES: AtomicUsize = AtomicUsize::new(0);

fn count(payload: *mut u8, bytes: usize) {
    ALL_BYTES.fetch_add(bytes, Relaxed);
    // SAFETY: null, or a block that was just allocated.
    if unsafe { owner_of(payload) }.is_some() {
        REQUEST_BYTES.fetch_add(bytes, Relaxed);
    }
}

// SAFETY: `RqMalloc`'s own answers.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's contract.
        let payload = unsafe { RqMalloc.alloc(layout) };
        count(payload, layout.size());
        payload
    }

    unsafe fn dealloc(&self, payload: *mut u8, layout: Layout) {
        // SAFETY: the caller's contract.
        unsafe { RqMalloc.dealloc(payload, layout) };
    }

    unsafe fn realloc(&self, payload: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller's contract.
        let payload = unsafe { RqMalloc.realloc(payload, layout, size) };
        count(payload, size.saturating_sub(layout.size()));
        payload
    }
}

#[global_allocator]
static GLOBAL: Counting = Counting;

/// Into how many parts a handler's work is split.
const PARTS: u64 = 16;

/// One part of a handler's work: asks for a megabyte, and returns a number.
fn work(part: u64) -> usize {
    let lines: BTreeMap<String, Vec<u64>> = (0..3_000)
        .map(|line| (format!("part {part}, line {line}"), (0..line % 50).collect()))
        .collect();
    lines.iter().map(|(name, numbers)| name.len() + numbers.len()).sum()
}

/// The right to count: one recipe at a time, from its start on.
struct Alone(#[expect(dead_code, reason = "it is there to be dropped")] MutexGuard<'static, ()>);

impl Alone {
    fn new() -> Self {
        static ONE: Mutex<()> = Mutex::new(());
        Self(ONE.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Runs a handler that has a request, and returns what part of the bytes it asks for, per cent,
    /// was the request's.
    fn share(&self, name: &str, handler: impl FnOnce(&Request) -> usize) -> f64 {
        let expected: usize = (0..PARTS).map(work).sum();
        let request = Request::new();
        let counted = || (REQUEST_BYTES.load(Relaxed) as f64, ALL_BYTES.load(Relaxed) as f64);
        let before = counted();
        assert_eq!(handler(&request), expected);
        let after = counted();
        let all_bytes = after.1 - before.1;
        assert!(all_bytes > 0.9e6 * PARTS as f64, "{name}: {all_bytes} bytes are not the work");
        let share = 100.0 * (after.0 - before.0) / all_bytes;
        println!("{name}: {share:.2} % of {:.1} MB", all_bytes / 1e6);
        share
    }

    /// Fails unless practically all that the handler asks for is the request's.
    fn counts_all(&self, name: &str, handler: impl FnOnce(&Request) -> usize) {
        let share = self.share(name, handler);
        assert!(share > 99.0, "{name}: {share:.2} %");
    }
}
