//! Stubs: what a header leads to. A header's id decodes to a serial, `index : 24 | generation :
//! 24`; the index names a stub, and the generation which of the stub's requests it is.
//!
//! | field | written by | read by |
//! |---|---|---|
//! | `state`, `strays` | see `lockfree/state`, `lockfree/stray` | |
//! | `pending`, `persisted` | see `figures` | |
//! | `control`, `index` | the thread that makes the stub, before others know it | anybody |
//!
//! - **U3** Stubs are type-stable (M1), so a stale header can always be looked up; what it finds
//!   has another generation then, or is not open.

use super::figures::Pending;
use crate::base::sync::{AtomicPtr, Lock, Ordering};
use crate::blocks::identity::{MAX_GENERATION, Serial};
use crate::lockfree::counted::CountedBytes;
use crate::lockfree::said::Said;
use crate::lockfree::state::{Phase, State};
use crate::lockfree::stray::StrayList;
use core::cell::Cell;
use core::ptr::{null_mut, with_exposed_provenance_mut};

const INDEX_BITS: u32 = 24;
const LEAF_STUBS: usize = 1024;
const LEAF_COUNT: usize = (1 << INDEX_BITS) / LEAF_STUBS;

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
    control: Cell<*const ()>,
    index: Cell<u32>,
}

const _: () = assert!(size_of::<Stub>() == 64, "a stub is one cache line");

// SAFETY: the table at the head of the module says who touches which field when.
unsafe impl Sync for Stub {}

impl Stub {
    const fn new(control: *const (), index: u32) -> Self {
        Self {
            state: State::new(),
            strays: StrayList::new(),
            pending: CountedBytes::new(),
            persisted: CountedBytes::new(),
            control: Cell::new(control),
            index: Cell::new(index),
        }
    }

    /// Its control block, of a type that stands above this one.
    pub fn control(&self) -> *const () {
        self.control.get()
    }

    /// The figure of free blocks that are in no bin, of the request that the stub has.
    #[inline]
    pub fn pending(&self) -> Pending<'_> {
        Pending::new(&self.pending, self.state.look().generation())
    }

    /// The serial of its request, or of the last one it had.
    #[inline]
    pub fn serial(&self) -> Serial {
        Serial::new(self.index.get(), self.state.look().generation())
    }

    /// The serial of the next request. `None`: every generation is used up. The stub is the
    /// caller's.
    #[inline]
    pub fn next_serial(&self) -> Option<Serial> {
        let generation = self.state.look().generation();
        (generation < MAX_GENERATION).then(|| Serial::new(self.index.get(), generation + 1))
    }

    /// Whether it has a request of this generation that is not over yet.
    pub fn has(&self, generation: u32) -> bool {
        let state = self.state.look();
        state.generation() == generation && state.phase() != Phase::Over
    }
}

struct Leaf([Stub; LEAF_STUBS]);

/// The table. Zeros are an empty one.
pub struct Stubs {
    leaves: [AtomicPtr<Leaf>; LEAF_COUNT],
    /// Stubs that were made; the first one has index 1, because index 0 is the persistent lifetime.
    count: Said,
    making: Lock<()>,
}

impl Stubs {
    /// No stub.
    pub const fn new() -> Self {
        Self {
            leaves: [const { AtomicPtr::new(null_mut()) }; LEAF_COUNT],
            count: Said::new(),
            making: Lock::new(()),
        }
    }

    /// The stub with this index, if there is one.
    #[inline]
    pub fn find(&self, index: u32) -> Option<&'static Stub> {
        if index == 0 || u64::from(index) > self.count.hear() {
            return None;
        }
        let leaf = self.leaves[index as usize / LEAF_STUBS].load(Ordering::Relaxed);
        // SAFETY: a stub is counted after it was written to its leaf, and leaves are never
        // unmapped.
        Some(unsafe { &(&(*leaf).0)[index as usize % LEAF_STUBS] })
    }

    /// Whether a request has, or had, this serial.
    pub fn was_issued(&self, serial: Serial) -> bool {
        serial.generation() > 0
            && self
                .find(serial.index())
                .is_some_and(|stub| serial.generation() <= stub.state.look().generation())
    }

    /// Makes a stub for a control block. `None`: there is no memory, or no index is left. `memory`
    /// gives zeroed memory for the life of the process.
    pub fn make(
        &self,
        control: *const (),
        memory: impl Fn(usize) -> Option<usize>,
    ) -> Option<&'static Stub> {
        loop {
            let wanted = self.count.peek() as u32 + 1;
            let leaf = self.leaves.get(wanted as usize / LEAF_STUBS)?;
            // Nothing maps memory under a lock.
            let fresh = if leaf.load(Ordering::Relaxed).is_null() {
                with_exposed_provenance_mut::<Leaf>(memory(size_of::<Leaf>())?)
            } else {
                null_mut()
            };
            let _making = self.making.lock();
            if leaf.load(Ordering::Relaxed).is_null() {
                leaf.store(fresh, Ordering::Relaxed);
            }
            // Another thread may have made stubs meanwhile, and a leaf of ours may be lost to one
            // of theirs.
            if self.count.peek() as u32 + 1 != wanted {
                continue;
            }
            let leaf = leaf.load(Ordering::Relaxed);
            if leaf.is_null() {
                continue;
            }
            // SAFETY: memory for a leaf; this place in it was never used.
            let place = unsafe { &raw mut (*leaf).0[wanted as usize % LEAF_STUBS] };
            // SAFETY: as above.
            unsafe { place.write(Stub::new(control, wanted)) };
            self.count.say(u64::from(wanted));
            // SAFETY: written above, and never unmapped.
            return Some(unsafe { &*place });
        }
    }

    /// Every stub there is.
    pub fn all(&self) -> impl Iterator<Item = &'static Stub> + '_ {
        (1..=self.count.hear() as u32).filter_map(|index| self.find(index))
    }

    /// Makes the table whole in a process that was just forked: it is at every step.
    ///
    /// # Safety
    /// As `Lock::recover`.
    pub unsafe fn recover(&self) {
        // SAFETY: the caller's contract.
        unsafe { self.making.recover(|(), _| ()) };
    }
}
