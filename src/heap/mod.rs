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
pub mod idle;
mod fork;
#[cfg(test)]
mod tests;

use crate::base::os;
use crate::base::sync::{AtomicU64, Lock, step};
use crate::blocks::identity::Identity;
use crate::lockfree::header::Header;
use crate::pages::adopted::AdoptedSpans;
use crate::pages::mappings::Mappings;
use crate::pages::page_heap::PageHeap;
use crate::persistent::store::{SLOTS_BYTES, Store};
use controls::Controls;

pub use controls::LOOK_MILLISECONDS;

/// The allocator: one instance of every part.
pub struct Heap {
    identity: Identity,
    /// Whether the heap is set up.
    setup: Lock<bool>,
    pages: PageHeap,
    mappings: Mappings,
    adopted: AdoptedSpans,
    store: Store,
    controls: Controls,
    next_tick: AtomicU64,
}

impl Heap {
    /// Creates a heap with nothing mapped and every bit zero: a static of it costs the binary
    /// nothing.
    pub const fn new() -> Self {
        Self {
            identity: Identity::new(),
            setup: Lock::new(false),
            pages: PageHeap::new(),
            mappings: Mappings::new(),
            adopted: AdoptedSpans::new(),
            store: Store::new(),
            controls: Controls::new(),
            next_tick: AtomicU64::new(0),
        }
    }

    /// Chooses the cookie and maps the slots of the store, once.
    pub fn set_up(&self) {
        if self.identity.is_chosen() {
            return;
        }
        let (cookie, slots) = (os::random() | 1, os::map(SLOTS_BYTES, 0));
        let mut is_done = self.setup.lock();
        if *is_done {
            drop(is_done);
            if let Some(base) = slots {
                // SAFETY: just mapped, and known to nobody else.
                unsafe { os::unmap(base, SLOTS_BYTES) };
            }
            return;
        }
        if let Some(base) = slots {
            // SAFETY: just mapped, and never unmapped.
            unsafe { self.store.provide_slots(base) };
        }
        step();
        self.identity.choose(cookie);
        step();
        *is_done = true;
        drop(is_done);
        self.controls.reserve(&self.pages.descriptors);
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
        self.pages.descriptors.take(bytes)
    }

    /// Walks every structure of the process; fatal if one contradicts itself.
    pub fn check(&self) {
        self.store.check(self.persistent_tag());
        self.mappings.check(&self.pages);
        self.adopted.check();
        self.controls.check();
        self.pages.check();
    }
}
