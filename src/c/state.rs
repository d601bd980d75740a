//! What C keeps for each thread. A thread that never needs it has none.

use crate::base::line::Line;
use crate::c::tries::Tries;
use crate::thread::{Extension, HEAP, Thread};
use core::cell::Cell;
use core::ptr::with_exposed_provenance_mut;

/// `rq_failure_reason`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub enum Failure {
    /// No allocation has returned null.
    None,
    /// The request was refused memory at its limit.
    Limit,
    /// The system had no more memory.
    Memory,
}

/// C's part of a thread, which `Thread::extension` leads to. Never unmapped, as the thread (M1).
#[repr(C)]
pub struct State {
    /// First, so that the thread can have it cleared.
    extension: Extension,
    /// Every `rq_try` that the thread is inside.
    pub tries: Tries,
    /// The text of the last bailout.
    pub bailout_text: Cell<Line>,
    /// Why the last allocation failed that returned null.
    pub failure: Cell<Failure>,
    /// Whether the error handler is running.
    pub is_telling: Cell<bool>,
}

impl State {
    /// Returns C's part of a thread. `None`: it does not have one yet.
    #[inline]
    pub fn of(thread: &Thread) -> Option<&'static Self> {
        // SAFETY: null, or a state: nothing else sets a thread's extension.
        unsafe { thread.extension.get().cast::<Self>().as_ref() }
    }

    /// Returns C's part of a thread, making it if there is none. `None`: out of memory.
    #[inline]
    pub fn of_or_make(thread: &Thread) -> Option<&'static Self> {
        Self::of(thread).or_else(|| Self::make(thread))
    }

    #[cold]
    fn make(thread: &Thread) -> Option<&'static Self> {
        let address = HEAP.take_descriptor_memory(size_of::<Self>())?;
        let place = with_exposed_provenance_mut::<Self>(address);
        let state = Self {
            extension: Extension { clear },
            tries: Tries::new(),
            bailout_text: Cell::new(Line::EMPTY),
            failure: Cell::new(Failure::None),
            is_telling: Cell::new(false),
        };
        // SAFETY: fresh memory of a state's size, aligned to at least its alignment.
        unsafe { place.write(state) };
        thread.extension.set(place.cast());
        Self::of(thread)
    }
}

/// Clears what the next thread with this memory must not see of one that exits.
///
/// # Safety
/// The extension is that of a state.
unsafe fn clear(extension: *const Extension) {
    // SAFETY: the caller's contract.
    let state = unsafe { &*extension.cast::<State>() };
    state.tries.clear();
    state.bailout_text.set(Line::EMPTY);
    state.failure.set(Failure::None);
    state.is_telling.set(false);
}
