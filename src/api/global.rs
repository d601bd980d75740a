//! `RqMalloc`, the global allocator: the fast paths, and what they fall back to.

use crate::base::size_class::{Class, MAX_TABLE_BYTES, PAYLOAD_ALIGN};
use crate::blocks::bins::{Bins, Freed};
use crate::lockfree::header::{Block, NONE};
use crate::thread::{self, HEAP, route};
use core::alloc::{GlobalAlloc, Layout};
use core::ptr::{null_mut, with_exposed_provenance_mut};

/// The request-aware allocator, to be installed as the program's global allocator:
///
/// ```
/// #[global_allocator]
/// static GLOBAL: rqmalloc::RqMalloc = rqmalloc::RqMalloc;
///
/// assert!(rqmalloc::is_installed());
/// ```
///
/// When out of memory, allocation returns null. Misuse (a double free, a layout that is not the
/// block's, a pointer that is not to a block) ends the process with one line on standard error that
/// names it.
#[derive(Clone, Copy, Debug, Default)]
pub struct RqMalloc;

/// Returns a pointer to a block's payload; null for `NONE`.
#[inline(always)]
pub(crate) fn pointer(block: Block) -> *mut u8 {
    if block == NONE { null_mut() } else { with_exposed_provenance_mut(block) }
}

// Under Miri the blocks are the system allocator's, so that programs which install this allocator
// can still be checked; requests then count nothing.
// SAFETY: the system allocator keeps the contract.
#[cfg(miri)]
unsafe impl GlobalAlloc for RqMalloc {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's contract.
        unsafe { std::alloc::System.alloc(layout) }
    }
    unsafe fn dealloc(&self, payload: *mut u8, layout: Layout) {
        // SAFETY: the caller's contract.
        unsafe { std::alloc::System.dealloc(payload, layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's contract.
        unsafe { std::alloc::System.alloc_zeroed(layout) }
    }
    unsafe fn realloc(&self, payload: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the caller's contract.
        unsafe { std::alloc::System.realloc(payload, layout, new_size) }
    }
}

// SAFETY: a block is handed out by one list at a time, and its payload fits its layout: its class's
// payload is no smaller, and its address is 16-byte aligned or moved up to the alignment. Nothing
// unwinds.
#[cfg(not(miri))]
unsafe impl GlobalAlloc for RqMalloc {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if layout.align() <= PAYLOAD_ALIGN {
            if let Some(class) = Class::of(layout.size()) {
                let block = thread::active().alloc(class);
                if block != NONE {
                    return pointer(block);
                }
            }
        }
        pointer(route::alloc_slow(layout.size(), layout.align()).block)
    }

    #[inline]
    unsafe fn dealloc(&self, payload: *mut u8, layout: Layout) {
        let block = payload.expose_provenance();
        // To the machine a misaligned header is an ordinary mismatch; builds with debug assertions
        // name it before the word is read.
        if cfg!(debug_assertions) && block % PAYLOAD_ALIGN != 0 {
            route::free_slow(block, layout.size(), layout.align());
        }
        if let Some(class) = Class::of(layout.size()) {
            let bins = thread::active();
            match bins.free(block, class) {
                Freed::Done => return,
                Freed::LookDue => return route::look_slow(bins, class),
                Freed::Refused => {
                    if free_persistent_inside(bins, block, class) {
                        return;
                    }
                }
            }
        }
        route::free_slow(block, layout.size(), layout.align());
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // Small blocks are cheaper to clear than to ask about.
        if layout.size() <= MAX_TABLE_BYTES {
            // SAFETY: the caller's contract.
            let payload = unsafe { self.alloc(layout) };
            if !payload.is_null() {
                // SAFETY: the payload has at least the layout's size.
                unsafe { payload.write_bytes(0, layout.size()) };
            }
            return payload;
        }
        alloc_zeroed_slow(layout)
    }

    #[inline]
    unsafe fn realloc(&self, payload: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        if layout.align() <= PAYLOAD_ALIGN {
            if let (Some(old), Some(new)) = (Class::of(layout.size()), Class::of(new_size)) {
                if old == new && thread::active().has_live(payload.expose_provenance(), old) {
                    return payload;
                }
            }
        }
        // SAFETY: the caller's contract.
        unsafe { realloc_slow(payload, layout, new_size) }
    }
}

/// Makes the second compare of a free inside a request, with the cache's tag: a handler drops what
/// it was handed.
#[inline(always)]
fn free_persistent_inside(bins: &Bins, block: Block, class: Class) -> bool {
    // SAFETY: null in a sentinel, else the bins of this thread's cache (M1).
    let Some(cache) = (unsafe { bins.cache().as_ref() }) else { return false };
    match cache.free(block, class) {
        Freed::Refused => return false,
        Freed::LookDue => route::look_slow(cache, class),
        Freed::Done => {}
    }
    true
}

#[cold]
fn alloc_zeroed_slow(layout: Layout) -> *mut u8 {
    let popped = match Class::of(layout.size()) {
        Some(class) if layout.align() <= PAYLOAD_ALIGN => thread::active().alloc(class),
        _ => NONE,
    };
    let (block, zeroed) = if popped == NONE {
        let allocated = route::alloc_slow(layout.size(), layout.align());
        (allocated.block, allocated.is_zeroed())
    } else {
        (popped, false)
    };
    let payload = pointer(block);
    if !payload.is_null() && !zeroed {
        // SAFETY: the payload has at least the layout's size.
        unsafe { payload.write_bytes(0, layout.size()) };
    }
    payload
}

/// # Safety
/// As `GlobalAlloc::realloc`.
#[cold]
#[inline(never)]
unsafe fn realloc_slow(payload: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
    let block = payload.expose_provenance();
    let (size, align) = (layout.size(), layout.align());
    let bins = thread::active();
    let old = if align <= PAYLOAD_ALIGN { Class::of(size) } else { None };
    let is_active = old.is_some_and(|class| bins.has_live(block, class));
    let mut fresh = NONE;
    let mut stays = true;
    if let (Some(old), Some(new)) = (old, Class::of(new_size)) {
        if is_active && !old.is_large() {
            if bins.stretch(block, old, new) {
                return payload;
            }
            // The active bins are those of the block's own lifetime.
            fresh = bins.alloc(new);
            stays = fresh == NONE && new < old;
            if fresh == NONE && !stays {
                fresh = route::alloc_slow(new_size, align).block;
            }
        }
    }
    if stays {
        let resized = route::resize_in_place(block, size, align, new_size);
        if resized != NONE {
            return pointer(resized);
        }
        fresh = route::alloc_beside(block, size, align, new_size).block;
    }
    let fresh = pointer(fresh);
    if !fresh.is_null() {
        // SAFETY: both payloads are at least that long, and a fresh block overlaps no live one. The
        // old block is the caller's, with this layout.
        unsafe {
            fresh.copy_from_nonoverlapping(payload, size.min(new_size));
            GlobalAlloc::dealloc(&RqMalloc, payload, layout);
        }
    }
    fresh
}

/// Makes the block at `payload`, allocated inside a request, persistent, in place: it is not the
/// request's any more, stays valid after `end_request`, and is freed like any other persistent
/// block, by any thread. A block that is already persistent stays so.
///
/// # Safety
/// `payload` points to a live block of this allocator, and no other thread frees or resizes it
/// during the call. (A pointer to anything else ends the process with the name of the fault, where
/// it can be told.)
pub unsafe fn persist(payload: *mut u8) {
    if !cfg!(miri) {
        thread::route::persist(payload.expose_provenance());
    }
}

/// Whether the program's global allocator is `RqMalloc`, directly or through a wrapper. `false`
/// under Miri, where the system allocator stands in.
pub fn is_installed() -> bool {
    let probe = std::boxed::Box::new(core::hint::black_box(0u8));
    let address = core::hint::black_box(&raw const *probe).expose_provenance();
    HEAP.is_ours(address)
}

/// Walks this thread's cache, the lanes of its request and the process's slabs; ends the process
/// with the name of the structure that contradicts itself. For tests.
#[doc(hidden)]
pub fn check_structures() {
    if let Some(thread) = thread::current() {
        thread.check();
        if let Some(control) = thread.current_control() {
            HEAP.check_request(control, thread.lane_inside(control));
        }
    }
    HEAP.check();
}

/// Returns how many bytes the block at `payload` has; for tests of the size classes.
///
/// # Safety
/// `payload` points to a live block of this allocator.
#[doc(hidden)]
pub unsafe fn usable_size(payload: *const u8) -> usize {
    let payload = payload.expose_provenance();
    HEAP.find(payload).capacity(payload)
}
