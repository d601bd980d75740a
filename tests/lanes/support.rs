//! What the tests share: blocks that know their bytes, numbers that only look random, and a lock
//! for tests that look at the whole process.

#[path = "../support/random.rs"]
mod random;

pub use random::Random;
use rqmalloc::{Request, RequestId, RqMalloc, owner_of, persistent};
use std::alloc::{GlobalAlloc, Layout};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Length of a page of the allocator, and of the first region of a lane.
pub const PAGE: usize = 16 * 1024;
/// Length of the largest region.
pub const REGION: usize = 256 * 1024;

static PROCESS: RwLock<()> = RwLock::new(());

/// Taken by a test that looks at figures of the whole process: no other test runs meanwhile.
pub fn alone() -> RwLockWriteGuard<'static, ()> {
    PROCESS.write().unwrap_or_else(PoisonError::into_inner)
}

/// Taken by every other test.
pub fn together() -> RwLockReadGuard<'static, ()> {
    PROCESS.read().unwrap_or_else(PoisonError::into_inner)
}

/// Puts items into an order that only looks random.
pub fn shuffle<T>(random: &mut Random, items: &mut [T]) {
    for index in (1..items.len()).rev() {
        items.swap(index, random.below(index + 1));
    }
}

/// A block with its layout and bytes that follow from its seed. It is freed only when told to.
#[derive(Debug)]
pub struct Held {
    pub pointer: *mut u8,
    layout: Layout,
    seed: u64,
}

// SAFETY: a block belongs to no thread, and `Held` is its only owner.
unsafe impl Send for Held {}

// SAFETY: a shared one only reads the block.
unsafe impl Sync for Held {}

fn byte(seed: u64, index: usize) -> u8 {
    (seed.wrapping_mul(0x9e37_79b9).wrapping_add(index as u64 * 0x3d) >> 3) as u8
}

impl Held {
    /// Allocates in what is active, and fills the block.
    #[track_caller]
    pub fn new(size: usize, seed: u64) -> Self {
        let layout = Layout::from_size_align(size, 8).unwrap();
        // SAFETY: no size here is 0.
        let held = Self { pointer: unsafe { RqMalloc.alloc(layout) }, layout, seed };
        held.fill();
        held
    }

    #[track_caller]
    fn fill(&self) {
        assert!(!self.pointer.is_null(), "no memory for {:?}", self.layout);
        // SAFETY: a block of this layout that nobody else has; written before it is read.
        let bytes = unsafe {
            self.pointer.write_bytes(0, self.layout.size());
            std::slice::from_raw_parts_mut(self.pointer, self.layout.size())
        };
        // Writes the ends and some bytes in between, which `verify` reads.
        for index in probes(self.layout.size()) {
            bytes[index] = byte(self.seed, index);
        }
    }

    /// Panics unless the bytes are as they were written.
    #[track_caller]
    pub fn verify(&self) {
        self.verify_first(self.layout.size());
    }

    #[track_caller]
    fn verify_first(&self, size: usize) {
        // SAFETY: the block is live, no smaller, and initialised by `fill`.
        let bytes = unsafe { std::slice::from_raw_parts(self.pointer, size) };
        for index in probes(self.layout.size()).filter(|&index| index < size) {
            let expected = byte(self.seed, index);
            assert_eq!(
                bytes[index], expected,
                "byte {index} of {:p}, {:?}, seed {}",
                self.pointer, self.layout, self.seed
            );
        }
    }

    /// Verifies and frees.
    #[track_caller]
    pub fn free(self) {
        self.verify();
        // SAFETY: a live block of this layout.
        unsafe { RqMalloc.dealloc(self.pointer, self.layout) };
    }

    /// Reallocates: the bytes that both sizes have must be as they were.
    #[track_caller]
    pub fn resize(&mut self, size: usize) {
        self.verify();
        // SAFETY: a live block of this layout, and no size here is 0.
        self.pointer = unsafe { RqMalloc.realloc(self.pointer, self.layout, size) };
        assert!(!self.pointer.is_null(), "no memory to resize {:?} to {size}", self.layout);
        self.verify_first(size.min(self.layout.size()));
        self.layout = Layout::from_size_align(size, 8).unwrap();
        self.seed += 1;
        self.fill();
    }

    pub fn size(&self) -> usize {
        self.layout.size()
    }

    pub fn owner(&self) -> Option<RequestId> {
        // SAFETY: the block is live.
        unsafe { owner_of(self.pointer) }
    }
}

/// Returns the indices of every byte of a small block; of a large one, the ends and some between.
fn probes(size: usize) -> impl Iterator<Item = usize> {
    let step = if size <= 256 { 1 } else { 61 };
    (0..size).step_by(step).chain(size.saturating_sub(8)..size)
}

/// Returns a vector that is persistent however much it grows: it has a block from the start.
pub fn persistent_vec<T>() -> Vec<T> {
    persistent(|| Vec::with_capacity(8))
}

/// Returns the request that this thread is inside.
pub fn current_id() -> Option<RequestId> {
    Request::current().map(|request| request.id())
}

/// Returns the request that a fresh block of this thread belongs to.
#[track_caller]
pub fn active_owner() -> Option<RequestId> {
    let held = Held::new(40, 1);
    let owner = held.owner();
    held.free();
    owner
}

/// Runs `f` in a thread of its own and waits for it.
pub fn elsewhere<R: Send + 'static>(f: impl FnOnce() -> R + Send + 'static) -> R {
    std::thread::spawn(f).join().unwrap()
}

/// Closes a request that has no other handle and nothing live in it.
#[track_caller]
pub fn close_empty(request: Request) {
    let usage = request.usage();
    assert_eq!((usage.live_blocks, usage.live_bytes), (0, 0), "{request}");
    let report = request.close().unwrap();
    assert_eq!((report.surviving_blocks, report.span_bytes), (0, 0), "{report}");
}

/// Unwinds without a message.
pub fn unwind(payload: u64) -> ! {
    std::panic::resume_unwind(Box::new(payload))
}

pub fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().unwrap())
}
