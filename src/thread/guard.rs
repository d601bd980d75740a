//! Leaving for good: an entry goes, and with it the handle that it owns (T2).

use super::entries::EntryName;
use super::finish::drop_handle;
use super::{Thread, current};
#[cfg(feature = "capi")]
use crate::base::sync::Ordering;

/// An entry of this thread, left on drop.
pub struct Inside(pub EntryName);

impl Drop for Inside {
    fn drop(&mut self) {
        if let Some(thread) = current() {
            thread.leave(self.0);
        }
    }
}

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
    #[cfg(feature = "capi")]
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
