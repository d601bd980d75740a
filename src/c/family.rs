//! Blocks of C: allocated without a `Layout`, of the family of requests or of the persistent one,
//! which each block remembers. The functions for C and those of `zend` are made of these.

use crate::api::bailout::Bailout;
use crate::api::global::pointer;
use crate::base::fatal;
use crate::base::os::MIN_PAGE_BYTES;
use crate::base::size_class::{Class, MAX_TABLE_BYTES, PAYLOAD_ALIGN};
use crate::base::sync::Ordering;
use crate::blocks::allocated::Allocated;
use crate::blocks::bins::{Bins, Freed, Kind};
use crate::blocks::memory::Raw;
use crate::blocks::trace::Site;
use crate::heap::found::{Found, Owner};
use crate::lockfree::header::{Block, EARLY, Header, LARGE, Memory, NONE};
use crate::request::control::Control;
use crate::request::limit::LimitExceeded;
use crate::thread::life::current_or_start;
use crate::thread::{self, HEAP, route};
use core::ptr::null_mut;

/// Below this there are no blocks, only what is read through a null pointer.
const FIRST_ADDRESS: usize = MIN_PAGE_BYTES;

/// From here on a program has no memory: reading there faults, on some machines without a page
/// fault. A header's id field has room for 48 bits.
const END_ADDRESS: usize = 1 << if cfg!(target_arch = "x86_64") { 47 } else { 48 };

/// Which functions a block belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Family {
    /// `emalloc` and `pemalloc(size, 0)`: the thread's request.
    Request,
    /// `pemalloc(size, 1)`, `malloc`, and everything that Rust allocates persistently.
    Persistent,
}

impl Family {
    /// Returns the family that the flag of `pemalloc` stands for.
    pub fn of_flag(persistent: bool) -> Self {
        if persistent { Self::Persistent } else { Self::Request }
    }

    /// Returns the family of a block.
    fn of(found: &Found<'_>) -> Self {
        let is_persistent = found.owner().is_none() && !found.header.has(EARLY);
        Self::of_flag(is_persistent)
    }

    /// Ends the process if a block is not of this family. An adopted one is of either.
    fn expect(self, payload: Block, found: &Found<'_>) {
        let is = Self::of(found);
        if is != self && !HEAP.is_adopted(found) {
            fatal::wrong_family(payload, is == Self::Persistent);
        }
    }
}

/// Returns `count * size + offset`, or why it cannot be allocated.
pub fn checked_size(count: usize, size: usize, offset: usize) -> Result<usize, Bailout> {
    count
        .checked_mul(size)
        .and_then(|product| product.checked_add(offset))
        .ok_or(Bailout::Overflow { count, size, offset })
}

/// Allocates a block of a family, never null; its bytes are zero if `zeroed`.
#[inline(always)]
pub fn alloc(size: usize, family: Family, zeroed: bool, site: Site) -> Result<*mut u8, Bailout> {
    if let Some(bins) = bins_of(family) {
        let payload = alloc_from_bins(bins, size, zeroed);
        if !payload.is_null() {
            return Ok(payload);
        }
    }
    alloc_by_route(size, family, zeroed, site)
}

/// Allocates from these bins; null if they have no block.
#[inline(always)]
pub fn alloc_from_bins(bins: &Bins, size: usize, zeroed: bool) -> *mut u8 {
    // Clearing a small block is cheaper than finding out whether it is zeroed.
    if zeroed && size > MAX_TABLE_BYTES {
        return null_mut();
    }
    let Some(class) = Class::of(size) else { return null_mut() };
    let payload = pointer(bins.alloc(class));
    if zeroed && !payload.is_null() {
        // SAFETY: the payload has at least this size.
        unsafe { payload.write_bytes(0, size) };
    }
    payload
}

/// Returns the bins that blocks of this family come from in this thread, if that is known without a
/// search.
#[inline(always)]
fn bins_of(family: Family) -> Option<&'static Bins> {
    let bins = thread::active();
    match family {
        // SAFETY: null in a sentinel, else the bins of this thread's cache, which are never
        // unmapped.
        Family::Persistent => unsafe { bins.cache().as_ref() },
        Family::Request => (bins.kind() == Kind::Lane).then_some(bins),
    }
}

/// Allocates as `alloc` does where the fast path has no answer.
#[cold]
#[inline(never)]
pub fn alloc_by_route(
    size: usize,
    family: Family,
    zeroed: bool,
    site: Site,
) -> Result<*mut u8, Bailout> {
    let thread = current_or_start();
    let inside =
        thread.and_then(|thread| thread.active_lane()).filter(|_| family == Family::Request);
    if size > isize::MAX as usize {
        return Err(Bailout::OutOfMemory(size));
    }
    let allocated = match (thread, inside) {
        (Some(thread), Some(_)) => {
            let before = thread.site.replace(site);
            let allocated = route::alloc_active(size, PAYLOAD_ALIGN);
            thread.site.set(before);
            allocated
        }
        _ => route::alloc_persistent_slow(size, PAYLOAD_ALIGN),
    };
    if allocated.block == NONE {
        return Err(failure(allocated, inside.map(|(control, _)| control), size));
    }
    if family == Family::Request && inside.is_none() {
        make_early(allocated.block);
    }
    let payload = pointer(allocated.block);
    if zeroed && !allocated.is_zeroed() {
        // SAFETY: the payload has at least this size.
        unsafe { payload.write_bytes(0, size) };
    }
    Ok(payload)
}

/// Marks a persistent block as one that was asked for as a request's: it is of that family all the
/// same.
fn make_early(block: Block) {
    let header = Raw.header(block);
    header.store(Header(header.load(Ordering::Relaxed)).with(EARLY).0, Ordering::Relaxed);
}

/// Returns why a block of this request, or a persistent one, was not allocated.
#[cold]
fn failure(allocated: Allocated, control: Option<&Control>, size: usize) -> Bailout {
    match control.and_then(LimitExceeded::of) {
        Some(limit) if allocated.is_refused() => Bailout::Limit(limit),
        _ => Bailout::OutOfMemory(size),
    }
}

/// Resizes a block of a family, which keeps its lifetime; null: as `alloc`. If it moves, at least
/// its first `copy_size` bytes come along, as far as both blocks have them.
///
/// # Safety
/// `payload` is null or a live block that nothing else uses.
pub unsafe fn resize(
    payload: *mut u8,
    size: usize,
    copy_size: usize,
    family: Option<Family>,
    site: Site,
) -> Result<*mut u8, Bailout> {
    if payload.is_null() {
        return alloc(size, family.unwrap_or(Family::Persistent), false, site);
    }
    let block = payload.expose_provenance();
    if let Some(resized) = resize_here(block, size, copy_size, family) {
        return Ok(resized);
    }
    let found = HEAP.find(block);
    if let Some(family) = family {
        family.expect(block, &found);
    }
    if size > isize::MAX as usize {
        return Err(Bailout::OutOfMemory(size));
    }
    // A payload that was moved up to an alignment stays unless it is much too long.
    let capacity = found.capacity(block);
    if block != found.block && size <= capacity && size > capacity / 2 {
        return Ok(payload);
    }
    let thread = current_or_start();
    let before = thread.map(|thread| thread.site.replace(site));
    let distance = block - found.block;
    let resized = route::resize_found(block, &found, PAYLOAD_ALIGN + distance, size);
    let allocated = if resized == NONE {
        route::alloc_beside_found(&found, found.made_for(capacity), PAYLOAD_ALIGN, size)
    } else {
        Allocated::NOTHING
    };
    let fresh = allocated.block;
    if let (Some(thread), Some(before)) = (thread, before) {
        thread.site.set(before);
    }
    if resized != NONE {
        return Ok(pointer(resized));
    }
    if fresh == NONE {
        return Err(failure(allocated, found.owner().map(Owner::control), size));
    }
    // It is persistent now, and of the family it was of, or, if it was adopted, is resized as.
    let was_request_s = match family {
        Some(family) if HEAP.is_adopted(&found) => family == Family::Request,
        _ => Family::of(&found) == Family::Request,
    };
    if was_request_s && HEAP.find(fresh).owner().is_none() {
        make_early(fresh);
    }
    let count = capacity.min(size).min(copy_size);
    // SAFETY: both payloads have at least `count` bytes, and a fresh block overlaps no live one.
    unsafe { pointer(fresh).copy_from_nonoverlapping(payload, count) };
    free_payload(block, &found);
    Ok(pointer(fresh))
}

/// Resizes a block of the bins that are active here, or of the cache's: within its class, or to
/// another one that shares spans. `None`: it is not one of these, or the bins have no block.
#[inline]
fn resize_here(
    block: Block,
    size: usize,
    copy_size: usize,
    family: Option<Family>,
) -> Option<*mut u8> {
    if !may_look_before(block) {
        return None;
    }
    let bins = bins_to_free_to(family)?;
    let header = Header(Raw.header(block).load(Ordering::Relaxed));
    let old = Class::from_index(header.class_index())?;
    let new = Class::of(size)?;
    if header.without(LARGE) != bins.tag().with_class(old.index()) {
        return None;
    }
    if old.is_large() || new.is_large() || header.has(LARGE) {
        // A mapping has no class.
        return (old == new && old.is_large()).then(|| pointer(block));
    }
    if old == new || (bins.kind() == Kind::Lane && bins.stretch(block, old, new)) {
        return Some(pointer(block));
    }
    let fresh = bins.alloc(new);
    if fresh == NONE {
        return None;
    }
    let count = old.payload_bytes().min(size).min(copy_size);
    // SAFETY: both payloads have at least `count` bytes, and a fresh block overlaps no live one.
    unsafe { pointer(fresh).copy_from_nonoverlapping(pointer(block), count) };
    is_freed(bins, block);
    Some(pointer(fresh))
}

fn free_payload(payload: Block, found: &Found<'_>) {
    HEAP.mark_aligned_freed(payload, found.block);
    route::free_judged(current_or_start(), found);
}

/// Frees a block of a family, or of either. Null is ignored.
///
/// # Safety
/// `payload` is null or a live block that is no longer used.
#[inline(always)]
pub unsafe fn free(payload: *mut u8, family: Option<Family>) {
    let block = payload.expose_provenance();
    let is_done =
        may_look_before(block) && bins_to_free_to(family).is_some_and(|bins| is_freed(bins, block));
    if !is_done {
        free_by_route(payload, family);
    }
}

/// Returns the bins that a block of this family most likely belongs to.
#[inline(always)]
fn bins_to_free_to(family: Option<Family>) -> Option<&'static Bins> {
    match family {
        Some(family) => bins_of(family),
        None => Some(thread::active()),
    }
}

/// Returns whether the word before a pointer can be read if anything is mapped at the pointer:
/// before the start of a page there may be nothing, if the pointer is not ours. (To the machine a
/// misaligned word is an ordinary mismatch; checked builds must catch it first.)
#[inline(always)]
fn may_look_before(block: Block) -> bool {
    block.wrapping_sub(FIRST_ADDRESS) < END_ADDRESS - FIRST_ADDRESS
        && block % MIN_PAGE_BYTES != 0
        && (!cfg!(debug_assertions) || block % PAYLOAD_ALIGN == 0)
}

/// Frees a block if it is one of these bins; returns whether it was.
#[inline(always)]
fn is_freed(bins: &Bins, block: Block) -> bool {
    match bins.free_unsized(block) {
        (Freed::Done, _) => true,
        (Freed::LookDue, Some(class)) => {
            route::look_slow(bins, class);
            true
        }
        _ => false,
    }
}

#[cold]
#[inline(never)]
fn free_by_route(payload: *mut u8, family: Option<Family>) {
    let block = payload.expose_provenance();
    if block == NONE {
        return;
    }
    if family.is_none() && may_look_before(block) {
        // A persistent block that was handed to a request's handler.
        if bins_of(Family::Persistent).is_some_and(|bins| is_freed(bins, block)) {
            return;
        }
    }
    let found = HEAP.find(block);
    if let Some(family) = family {
        family.expect(block, &found);
    }
    free_payload(block, &found);
}

/// Returns the bytes that fit into the block; 0 for null. Fatal if it is not a live block.
///
/// # Safety
/// `payload` is null or points to a live block of this allocator.
pub unsafe fn block_size(payload: *const u8) -> usize {
    let block = payload.expose_provenance();
    if block == NONE { 0 } else { HEAP.find(block).capacity(block) }
}

/// Returns whether the address is in memory of ours.
pub fn is_ours(payload: *const u8) -> bool {
    HEAP.is_ours(payload.expose_provenance())
}
