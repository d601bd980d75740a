//! What the tests share: blocks that know their bytes, the documented size classes, and a lock for
//! tests that look at the whole process.

#[path = "../support/random.rs"]
mod random;

pub use random::Random;
use rqmalloc::RqMalloc;
use std::alloc::{GlobalAlloc, Layout};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Length of a page of the allocator.
pub const PAGE: usize = 16 * 1024;
/// The largest payload of blocks that share slabs and regions; larger ones have spans of their own.
pub const MAX_SHARED: usize = 32 * 1024 + 8;
/// The largest payload that has a class; larger blocks have mappings of their own.
pub const MAX_CLASS: usize = (1 << 20) + 8;

static PROCESS: RwLock<()> = RwLock::new(());

/// Taken by a test that looks at figures of the whole process: no other test runs meanwhile.
pub fn alone() -> RwLockWriteGuard<'static, ()> {
    PROCESS.write().unwrap_or_else(PoisonError::into_inner)
}

/// Taken by every other test.
pub fn together() -> RwLockReadGuard<'static, ()> {
    PROCESS.read().unwrap_or_else(PoisonError::into_inner)
}

pub fn layout(size: usize, align: usize) -> Layout {
    Layout::from_size_align(size, align).unwrap()
}

/// Returns the payload sizes of the classes, by the rule rather than from the allocator's table: 8
/// + {0, 16 .. 112, then four steps a doubling .. 1 MiB}.
pub fn payloads() -> impl Iterator<Item = usize> {
    let steps =
        (7..20).flat_map(|power| (0..4).map(move |step| (1 << power) + (step << (power - 2))));
    (0..8).map(|sixteenth| 16 * sixteenth).chain(steps).chain([1 << 20]).map(|size: usize| size + 8)
}

/// Returns the payload of the class for a size at an alignment of at most 16.
pub fn payload_for(size: usize) -> usize {
    payloads().find(|&payload| payload >= size).unwrap()
}

/// Returns what a request is charged for a live block that has a class but is too large for the
/// region.
pub fn charged_for(size: usize) -> usize {
    let payload = payload_for(size);
    if payload <= MAX_SHARED { payload + 8 } else { (payload + 16).next_multiple_of(PAGE) }
}

/// Bytes for patterns, of which no two pieces are alike.
static NOISE: [u8; 2 * NOISE_STEP] = {
    let mut noise = [0; 2 * NOISE_STEP];
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut index = 0;
    while index < noise.len() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        noise[index] = (state >> 32) as u8;
        index += 1;
    }
    noise
};
const NOISE_STEP: usize = 4096;

/// Returns a piece of a pattern, `NOISE_STEP` bytes.
fn noise(seed: u64, piece: usize) -> &'static [u8] {
    let start =
        (seed.wrapping_mul(0x9e37_79b9) as usize >> 3).wrapping_add(piece * 613) % NOISE_STEP;
    &NOISE[start..start + NOISE_STEP]
}

/// Writes the pattern of `seed`.
pub fn write_pattern(bytes: &mut [u8], seed: u64) {
    for (piece, bytes) in bytes.chunks_mut(NOISE_STEP).enumerate() {
        bytes.copy_from_slice(&noise(seed, piece)[..bytes.len()]);
    }
}

/// Panics unless the bytes are the pattern of `seed`.
#[track_caller]
pub fn expect_pattern(bytes: &[u8], seed: u64) {
    for (piece, bytes) in bytes.chunks(NOISE_STEP).enumerate() {
        let expected = &noise(seed, piece)[..bytes.len()];
        if bytes != expected {
            let at = bytes.iter().zip(expected).position(|(a, b)| a != b).unwrap_or(0);
            panic!(
                "byte {} of the block at {:p} is {:#x} and not {:#x} (seed {seed})",
                piece * NOISE_STEP + at,
                bytes.as_ptr(),
                bytes[at],
                expected[at]
            );
        }
    }
}

/// A block with its layout and a pattern in it. It is freed only when told to: a test that ends a
/// request forgets its blocks.
#[derive(Debug)]
pub struct Held {
    pub pointer: *mut u8,
    pub layout: Layout,
    pub seed: u64,
}

// SAFETY: a block belongs to no thread, and `Held` is its only owner.
unsafe impl Send for Held {}

impl Held {
    /// Allocates in what is active, and writes the pattern of the seed.
    #[track_caller]
    pub fn new(size: usize, align: usize, seed: u64) -> Self {
        Self::try_new(size, align, seed).unwrap_or_else(|| panic!("no memory for {size} bytes"))
    }

    /// As `new`; `None` if the allocation is refused.
    #[track_caller]
    pub fn try_new(size: usize, align: usize, seed: u64) -> Option<Self> {
        let layout = layout(size, align);
        // SAFETY: no layout here has size 0.
        let pointer = unsafe { RqMalloc.alloc(layout) };
        (!pointer.is_null()).then(|| {
            let held = Self { pointer, layout, seed };
            held.accept();
            held
        })
    }

    /// As `new`, after checking that all bytes are zero.
    #[track_caller]
    pub fn zeroed(size: usize, align: usize, seed: u64) -> Self {
        let layout = layout(size, align);
        // SAFETY: no layout here has size 0.
        let held = Self { pointer: unsafe { RqMalloc.alloc_zeroed(layout) }, layout, seed };
        assert!(!held.pointer.is_null(), "no memory for {layout:?}");
        let dirty = held
            .bytes()
            .chunks(NOISE_STEP)
            .position(|piece| piece != &[0; NOISE_STEP][..piece.len()]);
        assert_eq!(dirty, None, "{layout:?} at {:p} is not zeroed", held.pointer);
        held.accept();
        held
    }

    #[track_caller]
    fn accept(&self) {
        assert!(!self.pointer.is_null(), "no memory for {:?}", self.layout);
        assert_eq!(self.pointer.addr() % self.layout.align(), 0, "{:?} is misaligned", self.layout);
        // SAFETY: a fresh block of this layout that nobody else has.
        let bytes = unsafe { std::slice::from_raw_parts_mut(self.pointer, self.layout.size()) };
        write_pattern(bytes, self.seed);
    }

    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the block is live, of this layout, and initialised by `new` or `zeroed`.
        unsafe { std::slice::from_raw_parts(self.pointer, self.layout.size()) }
    }

    /// Panics unless the bytes are as they were written.
    #[track_caller]
    pub fn verify(&self) {
        expect_pattern(self.bytes(), self.seed);
    }

    /// Verifies and frees.
    #[track_caller]
    pub fn free(self) {
        self.verify();
        // SAFETY: a live block of this layout.
        unsafe { RqMalloc.dealloc(self.pointer, self.layout) };
    }

    /// Reallocates: the bytes that both sizes have must be as they were; then the whole block is
    /// written anew.
    #[track_caller]
    pub fn resize(&mut self, size: usize) {
        self.verify();
        // SAFETY: a live block of this layout, and no size here is 0.
        let moved = unsafe { RqMalloc.realloc(self.pointer, self.layout, size) };
        assert!(!moved.is_null(), "no memory to resize {:?} to {size}", self.layout);
        self.pointer = moved;
        let kept = size.min(self.layout.size());
        self.layout = layout(size, self.layout.align());
        // SAFETY: `realloc` kept these bytes.
        expect_pattern(unsafe { std::slice::from_raw_parts(moved, kept) }, self.seed);
        self.seed = self.seed.wrapping_add(1);
        self.accept();
    }

    pub fn owner(&self) -> Option<rqmalloc::RequestId> {
        // SAFETY: the block is live.
        unsafe { rqmalloc::owner_of(self.pointer) }
    }

    /// Returns what its request is charged for it. A block that could have a span of its own is cut
    /// from the region if that has room; a block with a span of its own is at the start of it.
    pub fn charge(&self) -> usize {
        let payload = payload_for(self.layout.size());
        let is_in_region = self.pointer.addr() % PAGE != 16;
        if is_in_region { payload + 8 } else { charged_for(payload) }
    }

    pub fn usable(&self) -> usize {
        // SAFETY: the block is live.
        unsafe { rqmalloc::usable_size(self.pointer) }
    }
}

/// Returns a vector that is persistent however much it grows: it has a block from the start.
pub fn persistent_vec<T>() -> Vec<T> {
    rqmalloc::persistent(|| Vec::with_capacity(8))
}

/// Runs `f` in a thread of its own and waits for it.
pub fn elsewhere<R: Send + 'static>(f: impl FnOnce() -> R + Send + 'static) -> R {
    std::thread::spawn(f).join().unwrap()
}

/// Ends a request of which nobody uses anything any more.
#[track_caller]
pub fn ended(request: rqmalloc::Request) -> rqmalloc::Report {
    // SAFETY: no test uses what it allocated afterwards.
    unsafe { request.end() }.unwrap()
}

/// Ends the request likewise, if the report is of no interest.
#[track_caller]
pub fn end(request: rqmalloc::Request) {
    let _ = ended(request);
}
