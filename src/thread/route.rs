//! Where allocations, frees and resizes go when the fast path has no answer.

use super::life::current_or_start;
use super::persistent::{align_block, alloc_persistent};
use super::refusal::tell_refusal;
use super::visit::{visit, visit_lane};
use super::{ASKED, HEAP, RUNNING_COUNT, Thread, current, current_control};
use crate::base::os;
use crate::base::size_class::{Class, PAYLOAD_ALIGN, padded_size};
use crate::base::sync::Ordering;
use crate::blocks::allocated::Allocated;
use crate::blocks::bins::{Bins, Kind};
use crate::blocks::memory::Raw;
use crate::blocks::trace::{Site, Trace, needed_size};
use crate::heap::found::{Found, Place};
use crate::heap::idle::TICK_MILLISECONDS;
use crate::lockfree::header::{Block, Memory, NONE, TRACED};
use crate::lockfree::traced;
use crate::request::control::Control;
use crate::request::lane::Lane;

/// How many slow paths run between two looks at the clock, unless the thread is quiet.
const SLOW_PATHS_PER_LOOK: u32 = 8;
/// As how many slow paths it counts that the room of a bin is used up: many frees were none.
const SLOW_PATHS_PER_ROOM: u32 = 4;
/// A thread between two of whose looks so much time passes is quiet: every slow path looks, and in
/// its cache every free takes the slow path.
const QUIET_MILLISECONDS: u64 = 20;
/// How many looks in a row must come within less than this for it to be brisk again.
const BRISK_LOOKS: u32 = 16;
const BRISK_MILLISECONDS: u64 = 2;

/// Allocates when the fast path found nothing or does not apply. Reports a refusal at a request's
/// limit: only its program knows whether it can do without.
#[cold]
#[inline(never)]
pub fn alloc_slow(size: usize, align: usize) -> Allocated {
    let allocated = alloc_active(size, align);
    if allocated.is_refused() {
        current_control().inspect(|control| tell_refusal(control, size));
    }
    allocated
}

/// Allocates as `alloc_slow` does, for callers that report a refusal themselves.
pub fn alloc_active(size: usize, align: usize) -> Allocated {
    let thread = current_and_tick();
    match thread.and_then(|thread| thread.active_lane().map(|inside| (thread, inside))) {
        Some((thread, (control, lane))) => alloc_in_lane(thread, control, lane, size, align),
        None => alloc_persistent(thread, size, align),
    }
}

/// Allocates a persistent block, whatever is active.
pub fn alloc_persistent_slow(size: usize, align: usize) -> Allocated {
    alloc_persistent(current_and_tick(), size, align)
}

impl Thread {
    /// Looks at the clock on one slow path in `SLOW_PATHS_PER_LOOK`, on every one of a quiet
    /// thread, and gives up what it is asked for. This one counts as so many.
    fn tick(&self, slow_paths: u32) {
        if ASKED.is_asked(&self.answered) {
            HEAP.flush(&self.cache);
            self.unstash_all();
        }
        let count = self.slow_count.get() + slow_paths;
        self.slow_count.set(count);
        if count >= SLOW_PATHS_PER_LOOK || self.cache.is_quiet() {
            self.look_at_clock();
        }
    }

    /// Lets idle memory go back.
    fn look_at_clock(&self) {
        let now = os::coarse_milliseconds();
        self.slow_count.set(0);
        let since = now.saturating_sub(self.looked_at.replace(now));
        let brisk_count = if since < BRISK_MILLISECONDS { self.brisk_count.get() + 1 } else { 0 };
        self.brisk_count.set(brisk_count % BRISK_LOOKS);
        if since >= QUIET_MILLISECONDS || brisk_count == BRISK_LOOKS {
            self.cache.set_quiet(since >= QUIET_MILLISECONDS);
        }
        if now >= self.next_age.get() {
            self.next_age.set(now + TICK_MILLISECONDS);
            self.cache.set_share(RUNNING_COUNT.load(Ordering::Relaxed));
            HEAP.age_cache(&self.cache);
        }
        self.age_stash(now);
        HEAP.tick(now);
    }
}

/// Returns this thread, after a tick.
fn current_and_tick() -> Option<&'static Thread> {
    let thread = current_or_start();
    if let Some(thread) = thread {
        thread.tick(1);
    }
    thread
}

/// Allocates a block of a request from the lane of it that this thread is in.
fn alloc_in_lane(
    thread: &Thread,
    control: &Control,
    lane: &Lane,
    size: usize,
    align: usize,
) -> Allocated {
    if control.leaks.get().traced {
        return alloc_traced(thread, control, lane, size, align);
    }
    align_block(alloc_untraced(control, lane, size, align), align)
}

fn alloc_untraced(control: &Control, lane: &Lane, size: usize, align: usize) -> Allocated {
    let Some(padded) = padded_size(size, align) else { return Allocated::NOTHING };
    let Some(class) = Class::of(padded) else {
        return HEAP.alloc_of_request_mapped(control, lane, size, align);
    };
    let popped = lane.bins.alloc(class);
    if popped != NONE {
        return Allocated::used(popped);
    }
    HEAP.alloc_of_request(control, lane, class, size)
}

/// Allocates a block with a record of where it was allocated behind its payload.
#[cold]
fn alloc_traced(
    thread: &Thread,
    control: &Control,
    lane: &Lane,
    size: usize,
    align: usize,
) -> Allocated {
    let Some(needed) = needed_size(size, align, true) else { return Allocated::NOTHING };
    let allocated = alloc_untraced(control, lane, needed, PAYLOAD_ALIGN);
    if allocated.block == NONE {
        return allocated;
    }
    let class = Class::of(needed);
    write_trace(allocated.block, class, needed, size, thread.site.get());
    // Others that look at the request's blocks read the record as soon as the header tells of it.
    traced::tell(Raw.header(allocated.block));
    if class.is_none_or(Class::is_large) {
        let span = HEAP.find(allocated.block).span;
        span.own.traced_bytes.say(traced_block_bytes(class, needed) as u64);
    }
    align_block(allocated, align)
}

/// Returns the bytes of a traced block for `needed` bytes; its record is at their end.
fn traced_block_bytes(class: Option<Class>, needed: usize) -> usize {
    class.map_or(needed, Class::payload_bytes)
}

/// Writes the record of a traced block for `needed` bytes.
fn write_trace(block: Block, class: Option<Class>, needed: usize, asked_bytes: usize, site: Site) {
    let block_bytes = traced_block_bytes(class, needed);
    // SAFETY: the block is the caller's and traced, so it is longer than asked for by a record.
    unsafe { Trace::here(asked_bytes, site).write(block, block_bytes) };
}

/// Frees what the fast path refused.
#[cold]
#[inline(never)]
pub fn free_slow(payload: usize, size: usize, align: usize) {
    let thread = current_and_tick();
    let found = HEAP.judge(payload, size, align);
    HEAP.mark_aligned_freed(payload, found.block);
    free_judged(thread, &found);
}

/// Frees a block that was found and judged.
pub fn free_judged(thread: Option<&Thread>, found: &Found<'_>) {
    let lane = thread.and_then(Thread::active_lane).map(|(_, lane)| lane);
    HEAP.free(found, thread.map(|thread| &thread.cache), lane);
}

/// Looks at a bin whose room is used up, in the cache or in the lane this thread is in.
#[cold]
#[inline(never)]
pub fn look_slow(bins: &Bins, class: Class) {
    let Some(thread) = current() else { return };
    thread.tick(SLOW_PATHS_PER_ROOM);
    if bins.kind() != Kind::Lane {
        return HEAP.look(&thread.cache, class);
    }
    if let Some((control, lane)) = thread.active_lane() {
        control.look_at_bin(lane, class);
    }
}

/// Resizes a block in place if possible. Returns its payload, which moves only with its pages, or
/// `NONE`: the caller must allocate, copy and free.
pub fn resize_in_place(payload: usize, size: usize, align: usize, new_size: usize) -> Block {
    let found = HEAP.judge(payload, size, align);
    resize_found(payload, &found, align, new_size)
}

/// Does what `resize_in_place` does, for a block already found. Its payload has this alignment, or
/// lies `align - PAYLOAD_ALIGN` behind the block.
pub fn resize_found(payload: usize, found: &Found<'_>, align: usize, new_size: usize) -> Block {
    let is_traced = found.header.has(TRACED);
    let needed = needed_size(new_size, align, is_traced);
    let class = needed.and_then(Class::of);
    let trace = |class: Class| {
        if let (true, Some(needed)) = (is_traced, needed) {
            let site = current().map_or(Site::NONE, |thread| thread.site.get());
            write_trace(found.block, Some(class), needed, new_size, site);
        }
    };
    if let Some(class) = class.filter(|&class| found.is_of_class(class)) {
        trace(class);
        return payload;
    }
    let resize = |found: &Found<'_>, lane: Option<&Lane>| {
        if align > PAYLOAD_ALIGN {
            return NONE;
        }
        HEAP.resize_own_pages(found, lane, new_size).unwrap_or(NONE)
    };
    let Some(owner) = found.owner() else { return resize(found, None) };
    let Some(thread) = current() else { return NONE };
    let resize_inside = |lane: &Lane| match (found.place, class) {
        // It takes nothing, so no limit is in the way (Q4).
        (Place::Region(old, _), Some(new)) if new < old => {
            lane.shorten(found.block, found.header.with_class(new.index()), old, new);
            trace(new);
            payload
        }
        (Place::Region(..), _) => NONE,
        _ => resize(found, Some(lane)),
    };
    if let Some(lane) = thread.lane_inside(owner.control()) {
        return resize_inside(lane);
    }
    match visit_lane(thread, owner, resize_inside) {
        Some(resized) => resized,
        // The request is over, and the block persistent.
        None => {
            let found = HEAP.find(payload);
            if found.owner().is_some() { NONE } else { resize(&found, None) }
        }
    }
}

/// Makes a live block persistent, in place. One whose request is being closed is a survivor
/// already: whoever closes it need not have come to the block.
pub fn persist(payload: usize) {
    let thread = current_or_start();
    loop {
        let found = HEAP.find(payload);
        let Some(owner) = found.owner() else { return };
        let is_inside = thread.is_some_and(|thread| thread.lane_inside(owner.control()).is_some());
        let adopt = || HEAP.persist(&found, owner);
        let is_done = if is_inside { adopt() } else { visit(thread, owner, adopt).unwrap_or(true) };
        if is_done {
            return;
        }
    }
}

/// Allocates the new block for one that is resized, whichever thread's it is: of the same lifetime,
/// whatever is active. A stray's request may be closed: then the new block is persistent, as the
/// request's survivors are.
pub fn alloc_beside(payload: usize, size: usize, align: usize, new_size: usize) -> Allocated {
    let found = HEAP.judge(payload, size, align);
    let allocated = alloc_beside_found(&found, size, align, new_size);
    if allocated.is_refused() {
        found.owner().inspect(|owner| tell_refusal(owner.control(), new_size));
    }
    allocated
}

/// Does what `alloc_beside` does, for a block already found and callers that report a refusal
/// themselves. It was made for `size` bytes.
pub fn alloc_beside_found(
    found: &Found<'_>,
    size: usize,
    align: usize,
    new_size: usize,
) -> Allocated {
    let thread = current_or_start();
    let (Some(thread), Some(owner)) = (thread, found.owner()) else {
        return alloc_persistent(thread, new_size, align);
    };
    let control = owner.control();
    // What shrinks gives back as much as it takes, though only afterwards (Q4).
    let is_shrunk = is_shorter(found, size, align, new_size);
    let alloc = |lane: &Lane| {
        let was_suspended = lane.limit_is_suspended.get();
        lane.limit_is_suspended.set(was_suspended || is_shrunk);
        let allocated = alloc_in_lane(thread, control, lane, new_size, align);
        lane.limit_is_suspended.set(was_suspended);
        allocated
    };
    if let Some(lane) = thread.lane_inside(control) {
        return alloc(lane);
    }
    match visit_lane(thread, owner, alloc) {
        Some(allocated) => allocated,
        // The request is over: the old block outlives it, and so does the new one. (Or there is no
        // memory for a lane.)
        None => alloc_persistent(Some(thread), new_size, align),
    }
}

/// Whether a block with pages of its own would have less of them: one in a region shrinks in place.
fn is_shorter(found: &Found<'_>, size: usize, align: usize, new_size: usize) -> bool {
    let class = needed_size(new_size, align, found.header.has(TRACED)).and_then(Class::of);
    match (found.place, class) {
        (Place::Large(old, _), Some(new)) => new < old,
        (Place::Mapped(_), None) => new_size < size,
        (Place::Mapped(_), Some(_)) => true,
        _ => false,
    }
}
