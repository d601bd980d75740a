//! What C has of each thread. A program that never calls it has none of it.

use crate::base::line::Line;
use crate::c::tries::Tries;
use crate::thread::{Extension, HEAP, Thread};
use core::cell::Cell;
use core::ptr::with_exposed_provenance_mut;

/// C's part of a thread, which `Thread::extension` leads to. Type-stable, as the thread is.
#[repr(C)]
pub struct State {
    /// First, so that the thread can have it cleared.
    extension: Extension,
    /// Every `rq_try` that the thread is in.
    pub tries: Tries,
    /// The text of the last bailout to one.
    pub bailout_text: Cell<Line>,
    /// Whether the error handler runs.
    pub is_telling: Cell<bool>,
}

impl State {
    /// What C has of a thread. `None`: nothing yet.
    #[inline]
    pub fn of(thread: &Thread) -> Option<&'static Self> {
        // SAFETY: null, or a state: nobody else hangs an extension on a thread.
        unsafe { thread.extension.get().cast::<Self>().as_ref() }
    }

    /// The same, made if there is none. `None`: out of memory.
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
            is_telling: Cell::new(false),
        };
        // SAFETY: fresh memory of a state's size, aligned to more than it needs.
        unsafe { place.write(state) };
        thread.extension.set(place.cast());
        Self::of(thread)
    }
}

/// Nothing of a thread that exits is to be seen by the next one that has its memory.
///
/// # Safety
/// The extension is that of a state.
unsafe fn clear(extension: *const Extension) {
    // SAFETY: the caller's contract.
    let state = unsafe { &*extension.cast::<State>() };
    state.tries.clear();
    state.bailout_text.set(Line::EMPTY);
    state.is_telling.set(false);
}
