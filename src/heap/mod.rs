//! The allocator: `Heap` is the sum of the parts below it, and its files answer the questions that
//! need more than one of them: what comes from where, and whose a block is that comes back.

mod controls;
pub mod found;
mod supply;
mod judge;
mod alloc;
mod free;
mod resize;
mod requests;
mod process;
mod overload;
pub mod idle;
mod fork;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod adopted_tests;
#[cfg(test)]
mod slab_tests;
#[cfg(test)]
mod controls_tests;

use crate::base::os;
use crate::base::sync::{AtomicBool, AtomicU64, Lock, Ordering, step};
use crate::blocks::identity::Identity;
use crate::lockfree::header::Header;
use crate::pages::adopted::AdoptedSpans;
use crate::pages::mappings::Mappings;
use crate::pages::page_heap::PageHeap;
use crate::persistent::cache::CacheCredit;
use crate::persistent::store::{SLOTS_BYTES, Store};
use crate::request::control::Control;
use crate::request::lane::Lane;
use controls::Controls;
use process::ProcessLimit;

pub use controls::MAX_WARM_BYTES;

/// Where addresses are few, the slots are mapped when there are as many times their bytes in chunks.
const SLOTS_WORTH_FACTOR: usize = 4;

/// The allocator: one instance of every part.
pub struct Heap {
    identity: Identity,
    /// Whether the heap is set up.
    setup: Lock<bool>,
    /// Whether the store has slots, or is about to.
    has_slots: AtomicBool,
    pages: PageHeap,
    mappings: Mappings,
    adopted: AdoptedSpans,
    store: Store,
    controls: Controls,
    credit: CacheCredit,
    process: ProcessLimit,
    next_tick: AtomicU64,
    /// When idle control blocks are looked at next.
    next_look: AtomicU64,
    /// When a portion of what is due is done next.
    next_portion: AtomicU64,
    /// Whether anything is due since the last tick.
    has_work: AtomicBool,
}

impl Heap {
    /// Creates a heap with nothing mapped and every bit zero: a static of it costs the binary
    /// nothing.
    pub const fn new() -> Self {
        Self {
            identity: Identity::new(),
            setup: Lock::new(false),
            has_slots: AtomicBool::new(false),
            pages: PageHeap::new(),
            mappings: Mappings::new(),
            adopted: AdoptedSpans::new(),
            store: Store::new(),
            controls: Controls::new(),
            credit: CacheCredit::new(),
            process: ProcessLimit::new(),
            next_tick: AtomicU64::new(0),
            next_look: AtomicU64::new(0),
            next_portion: AtomicU64::new(0),
            has_work: AtomicBool::new(false),
        }
    }

    /// Chooses the cookie, once.
    pub fn set_up(&self) {
        if self.identity.is_chosen() {
            return;
        }
        let cookie = os::random() | 1;
        let mut is_done = self.setup.lock();
        if *is_done {
            return;
        }
        self.identity.choose(cookie);
        step();
        *is_done = true;
        drop(is_done);
        self.controls.reserve(&self.pages.space.descriptors);
    }

    /// Maps the slots of the store, once, when magazines are there to be put into them. Until then
    /// these go back to their slabs. Where addresses are few, a small program does without.
    fn provide_slots(&self) {
        if self.has_slots.load(Ordering::Relaxed) {
            return;
        }
        let is_large = self.pages.chunk_bytes() >= SLOTS_BYTES * SLOTS_WORTH_FACTOR;
        if !is_large && !self.pages.space.is_plenty() {
            return;
        }
        let Some(base) = os::map(SLOTS_BYTES, 0) else { return };
        if self.has_slots.swap(true, Ordering::Relaxed) {
            // SAFETY: just mapped, and known to nobody else.
            return unsafe { os::unmap(base, SLOTS_BYTES) };
        }
        // SAFETY: just mapped, and never unmapped; nobody else has come here.
        unsafe { self.store.provide_slots(base) };
    }

    /// Returns the header of a live persistent block of class 0.
    pub fn persistent_tag(&self) -> Header {
        self.identity.persistent_tag()
    }

    /// Draws numbers of requests for a thread.
    pub fn draw_numbers(&self) -> u64 {
        self.identity.draw_numbers()
    }

    /// Zeroed memory for ever, for what is type-stable. `None`: the system has no more.
    pub fn take_descriptor_memory(&self, bytes: usize) -> Option<usize> {
        self.pages.space.descriptors.take(bytes)
    }

    /// Walks what a request has that the caller is inside, in `lane`, if in any; fatal if a structure
    /// contradicts itself.
    pub fn check_request(&self, control: &Control, lane: Option<&Lane>) {
        control.check(lane);
        self.controls.check_inside(control);
    }

    /// Walks every structure of the process; fatal if one contradicts itself.
    pub fn check(&self) {
        self.store.check(self.persistent_tag());
        self.mappings.check(&self.pages);
        self.adopted.check();
        self.controls.check();
        self.check_requests();
        self.pages.check();
    }
}
