//! Leaving for good: an entry goes, and with it the handle that it owns (T2).

use super::entries::EntryName;
use super::finish::drop_handle;
use super::{Thread, current};
use crate::base::sync::Ordering;
use std::thread::panicking;

/// An entry of this thread, left on drop.
pub struct Inside {
    name: EntryName,
    was_panicking: bool,
}

impl Inside {
    /// For an entry that was made just now.
    pub fn new(thread: &Thread, name: EntryName) -> Self {
        let was_panicking = panicking();
        if !was_panicking {
            thread.is_bailing_out.set(false);
        }
        Self { name, was_panicking }
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        let Some(thread) = current() else { return };
        let Some(control) = thread.leave_keeping_handle(self.name) else { return };
        if panicking() && !self.was_panicking {
            let is_bailout = thread.is_bailing_out.get();
            let why = if is_bailout { &control.bailed_out } else { &control.panicked };
            why.store(true, Ordering::Relaxed);
        }
        drop_handle(control);
    }
}

#[cfg(feature = "capi")]
impl Thread {
    /// Leaves an entry, even if there are newer ones. What it owned goes: the lane, then the
    /// handle.
    pub fn leave(&self, name: EntryName) {
        if let Some(control) = self.leave_keeping_handle(name) {
            drop_handle(control);
        }
    }

    /// Leaves every entry made after the one of this order; their requests do not end cleanly. (A
    /// depth would not do: an older entry may have been left, and its slot reused.)
    pub fn leave_after(&self, order: u64) {
        while let Some((name, entry)) = self.entries.newest() {
            if name.order() <= order {
                break;
            }
            // SAFETY: null, or a control block (M1).
            if let Some(control) = unsafe { entry.control.as_ref() } {
                control.bailed_out.store(true, Ordering::Relaxed);
            }
            self.leave(name);
        }
    }
}
