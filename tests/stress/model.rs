//! What must be the case: which blocks are live, whose they are, and what is in them; which
//! requests are open, and which threads are inside.
//!
//! Everything the model keeps is persistent: a request has the blocks that the model counts, and no
//! others.

use crate::options::breaks;
use rqmalloc::{Request, RequestId, RqMalloc, owner_of, persistent};
use std::alloc::{GlobalAlloc, Layout};
use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicIsize, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Relaxed everywhere: sums are compared only when all threads stand still, at a barrier.
const RELAXED: Ordering = Ordering::Relaxed;

/// A request, as the model knows it.
pub struct Tracked {
    pub id: RequestId,
    /// The model's own handle, until it is given up.
    pub handle: Mutex<Option<Request>>,
    /// Blocks that were handed out and not freed; those of them that `persist` was called on.
    pub live: AtomicIsize,
    /// Entries of all threads; handles that scopes have.
    pub inside: AtomicIsize,
    pub scoped: AtomicIsize,
    /// Whether allocations may be refused.
    pub is_limited: AtomicBool,
    /// Whether the model's handle is given up: then the last handle closes the request.
    pub may_be_over: AtomicBool,
    pub is_traced: bool,
    /// Callbacks that were added; callbacks that ran.
    pub due: AtomicUsize,
    pub ran: AtomicUsize,
    /// What callbacks allocated and left behind.
    pub late: Mutex<Vec<Block>>,
}

/// Whose a block is; `None`: persistent.
pub type Owner = Option<Arc<Tracked>>;

impl Tracked {
    pub fn new(
        id: RequestId,
        handle: Option<Request>,
        is_traced: bool,
        is_limited: bool,
    ) -> Arc<Self> {
        persistent(|| {
            Arc::new(Self {
                id,
                handle: Mutex::new(handle),
                live: AtomicIsize::new(0),
                inside: AtomicIsize::new(0),
                scoped: AtomicIsize::new(0),
                is_limited: AtomicBool::new(is_limited),
                may_be_over: AtomicBool::new(false),
                is_traced,
                due: AtomicUsize::new(0),
                ran: AtomicUsize::new(0),
                late: Mutex::new(Vec::with_capacity(8)),
            })
        })
    }

    /// Returns another handle, while the model has one.
    pub fn clone_handle(&self) -> Option<Request> {
        lock(&self.handle).clone()
    }

    /// Takes the model's handle: from here on, the request may be over.
    pub fn take_handle(&self) -> Option<Request> {
        let mut handle = lock(&self.handle);
        self.may_be_over.store(true, RELAXED);
        handle.take()
    }

    pub fn live(&self) -> usize {
        self.live.load(RELAXED) as usize
    }

    pub fn is_entered(&self) -> bool {
        self.inside.load(RELAXED) > 0 || self.scoped.load(RELAXED) > 0
    }

    /// Whether it is open; exact while all threads stand still.
    pub fn is_open(&self) -> bool {
        self.is_entered() || lock(&self.handle).is_some()
    }
}

/// Takes a lock. Poison means nothing here: an unplanned panic ends the process.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns a vector that is persistent however much it grows.
pub fn persistent_vec<T>(capacity: usize) -> Vec<T> {
    persistent(|| Vec::with_capacity(capacity.max(4)))
}

thread_local! {
    static IN_ALLOCATOR: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread is in a call of the allocator, where none of the program's own code may run.
pub fn is_in_allocator() -> bool {
    IN_ALLOCATOR.get()
}

/// Runs `f` with the flag cleared, for code that ends the process.
pub fn without_allocator_flag<R>(f: impl FnOnce() -> R) -> R {
    let before = IN_ALLOCATOR.replace(false);
    let result = f();
    IN_ALLOCATOR.set(before);
    result
}

fn in_allocator<R>(f: impl FnOnce() -> R) -> R {
    IN_ALLOCATOR.set(true);
    let result = f();
    IN_ALLOCATOR.set(false);
    result
}

/// A live block. It is freed only when told to, not when dropped.
#[derive(Debug)]
#[must_use = "a block that is dropped is live for ever"]
pub struct Block {
    pointer: *mut u8,
    layout: Layout,
    pattern: u64,
    owner: Owner,
}

// SAFETY: a block belongs to no thread, and `Block` is its only owner.
unsafe impl Send for Block {}

impl std::fmt::Debug for Tracked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "request {} ({} live)", self.id, self.live.load(RELAXED))
    }
}

/// Returns the indices of the bytes with a pattern: of a large block, its ends and some between.
fn probes(size: usize) -> impl Iterator<Item = usize> {
    let step = match size {
        ..=512 => 1,
        513..=65_536 => 61,
        _ => 4093,
    };
    (0..size).step_by(step).chain(size.saturating_sub(8)..size)
}

fn byte(pattern: u64, index: usize) -> u8 {
    (pattern.wrapping_mul(0x9e37_79b9).wrapping_add(index as u64 * 0x3d) >> 3) as u8
}

impl Block {
    /// Allocates wherever the thread is; by the model, that is in `owner`. `None`: refused, as a
    /// request with a limit may do.
    pub fn new(
        size: usize,
        align: usize,
        pattern: u64,
        owner: &Owner,
        zeroed: bool,
    ) -> Option<Self> {
        let layout = Layout::from_size_align(size, align).unwrap();
        // SAFETY: no size here is 0.
        let pointer = in_allocator(|| unsafe {
            if zeroed { RqMalloc.alloc_zeroed(layout) } else { RqMalloc.alloc(layout) }
        });
        let block = Self { pointer, layout, pattern, owner: owner.clone() };
        if pointer.is_null() {
            block.expect_limited();
            return None;
        }
        assert_eq!(pointer.addr() % align, 0, "{block:?} is misaligned");
        // SAFETY: the block is live.
        let is = unsafe { owner_of(pointer) };
        let expected = owner.as_ref().map(|owner| owner.id);
        assert_eq!(is, expected, "{block:?} was allocated in the wrong request");
        if zeroed {
            let bytes = block.bytes();
            assert!(probes(size).all(|index| bytes[index] == 0), "{block:?} is not zeroed");
        }
        block.count(1);
        block.fill();
        Some(block)
    }

    fn count(&self, change: isize) {
        if let Some(owner) = &self.owner {
            owner.live.fetch_add(change, RELAXED);
        }
    }

    fn expect_limited(&self) {
        let is_limited = self.owner.as_ref().is_some_and(|owner| owner.is_limited.load(RELAXED));
        assert!(
            is_limited,
            "{:?} was refused to {:?}, which has no limit",
            self.layout, self.owner
        );
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: a live block of this layout; `fill` wrote what is read of it, or it is zeroed.
        unsafe { std::slice::from_raw_parts(self.pointer, self.layout.size()) }
    }

    fn fill(&self) {
        for index in probes(self.layout.size()) {
            // SAFETY: inside a live block that nobody else has.
            unsafe { self.pointer.add(index).write(byte(self.pattern, index)) };
        }
    }

    pub fn verify(&self) {
        self.verify_first(self.layout.size());
    }

    fn verify_first(&self, size: usize) {
        for index in probes(self.layout.size()).filter(|&index| index < size) {
            // SAFETY: inside a live block that nobody else has, and `fill` wrote this byte.
            let is = unsafe { self.pointer.add(index).read() };
            let expected = byte(self.pattern, index);
            assert_eq!(is, expected, "byte {index} of {self:?} is not what was written");
        }
    }

    /// Verifies and frees.
    pub fn free(self) {
        self.verify();
        if breaks("forget") && self.owner.is_some() {
            return self.count(-1);
        }
        if !(breaks("free") && self.owner.is_some()) {
            self.count(-1);
        }
        // SAFETY: a live block of this layout.
        in_allocator(|| unsafe { RqMalloc.dealloc(self.pointer, self.layout) });
        if breaks("twice") && self.layout.size() < 100 {
            // SAFETY: none: this is the planted fault.
            unsafe { RqMalloc.dealloc(self.pointer, self.layout) };
        }
    }

    /// Reallocates, wherever the thread is; the bytes that both sizes have must be as they were.
    /// `false`: refused, and the block is unchanged.
    pub fn resize(&mut self, size: usize) -> bool {
        self.verify();
        // SAFETY: a live block of this layout, and no size here is 0.
        let pointer = in_allocator(|| unsafe { RqMalloc.realloc(self.pointer, self.layout, size) });
        if pointer.is_null() {
            self.expect_limited();
            self.verify();
            return false;
        }
        self.pointer = pointer;
        self.verify_first(size.min(self.layout.size()));
        self.layout = Layout::from_size_align(size, self.layout.align()).unwrap();
        self.note_owner();
        self.pattern += 1;
        self.fill();
        if breaks("pattern") {
            // SAFETY: a byte of the block.
            unsafe { self.pointer.write(!byte(self.pattern, 0)) };
        }
        true
    }

    /// Updates the owner: a block stays in its request; only one that outlives it may have become
    /// persistent by moving.
    fn note_owner(&mut self) {
        // SAFETY: the block is live.
        let is = unsafe { owner_of(self.pointer) };
        let Some(owner) = &self.owner else {
            return assert_eq!(is, None, "{self:?} is not persistent any more");
        };
        if is == Some(owner.id) {
            return;
        }
        let may_move = owner.may_be_over.load(RELAXED);
        assert!(is.is_none() && may_move, "{self:?} went to {is:?} when it was resized");
        self.count(-1);
        self.owner = None;
    }

    /// Makes it persistent: it is not its request's any more.
    pub fn persist(&mut self) {
        // SAFETY: a live block that only this thread has.
        unsafe { rqmalloc::persist(self.pointer) };
        self.count(-1);
        self.owner = None;
        self.note_owner();
    }

    pub fn owner(&self) -> &Owner {
        &self.owner
    }

    pub fn is_of(&self, tracked: &Arc<Tracked>) -> bool {
        self.owner.as_ref().is_some_and(|owner| Arc::ptr_eq(owner, tracked))
    }

    pub fn is_traced(&self) -> bool {
        self.owner.as_ref().is_some_and(|owner| owner.is_traced)
    }

    /// Forgets the block, which the end of its request freed.
    pub fn forget(self) {
        self.count(-1);
    }
}
