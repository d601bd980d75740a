//! Stubs: what a header leads to. A header's id decodes to a serial, `index : 24 | generation :
//! 24`; the index names a stub, and the generation which of the stub's requests it is.
//!
//! | field | written by | read by |
//! |---|---|---|
//! | `state`, `strays` | see `lockfree/state`, `lockfree/stray` | |
//! | `pending`, `persisted` | see `figures` | |
//! | `control`, `index` | the thread that makes the control block, before others know it | anybody who has seen a request of it |
//!
//! - **U3** Stubs are type-stable (M1), so a stale header can always be looked up; what it finds
//!   has another generation then, or is not open. A wiped stub reads as one that has had no request:
//!   over, its list closed, without a control block.

use super::figures::Pending;
use crate::base::sync::{AtomicPtr, AtomicU32, Ordering};
use crate::blocks::identity::{MAX_GENERATION, Serial};
use crate::lockfree::counted::CountedBytes;
use crate::lockfree::state::State;
use crate::lockfree::stray::StrayList;
use core::ptr::with_exposed_provenance;

/// What other threads write of a request, on a cache line of its own.
#[repr(align(64))]
pub struct Stub {
    /// Who may enter the request, and how far it is.
    pub state: State,
    /// Blocks that come back from outside.
    pub strays: StrayList,
    /// Free blocks that are in no bin: strays, and what lanes hand on to one another.
    pub pending: CountedBytes,
    /// Blocks that were cut by the request and persisted.
    pub persisted: CountedBytes,
    control: AtomicPtr<()>,
    index: AtomicU32,
}

const _: () = assert!(size_of::<Stub>() == 64, "a stub is one cache line");

impl Stub {
    /// The stub at an address.
    ///
    /// # Safety
    /// The memory is for a stub (M1), zeros or one.
    pub unsafe fn at(address: usize) -> &'static Self {
        // SAFETY: the caller's contract. Zeros are a stub (U3).
        unsafe { &*with_exposed_provenance(address) }
    }

    /// Makes it the stub of this control block, if it is a wiped one: its requests go on above this
    /// generation. It is the caller's alone.
    pub fn settle(&self, control: *const (), index: u32, generation: u32) {
        if self.control().is_null() {
            self.control.store(control.cast_mut(), Ordering::Relaxed);
            self.index.store(index, Ordering::Relaxed);
            self.state.rest(generation);
        }
    }

    /// Its control block, of a type that stands above this one; null: it was wiped.
    pub fn control(&self) -> *const () {
        self.control.load(Ordering::Relaxed)
    }

    /// The figure of free blocks that are in no bin, of the request that the stub has.
    #[inline]
    pub fn pending(&self) -> Pending<'_> {
        Pending::new(&self.pending, self.state.look().generation())
    }

    /// The serial of its request, or of the last one it had.
    #[inline]
    pub fn serial(&self) -> Serial {
        Serial::new(self.index(), self.state.look().generation())
    }

    /// The serial of the next request. The stub is the caller's, and not spent.
    #[inline]
    pub fn next_serial(&self) -> Serial {
        Serial::new(self.index(), self.state.look().generation() + 1)
    }

    /// Whether every generation is used up.
    #[inline]
    pub fn is_spent(&self) -> bool {
        self.state.look().generation() == MAX_GENERATION
    }

    /// Its number among the stubs, and that of its control block.
    #[inline]
    pub fn index(&self) -> u32 {
        self.index.load(Ordering::Relaxed)
    }
}
