//! The heap in a process that was just forked.

use super::Heap;
use crate::request::control::Control;

impl Heap {
    /// Opens every lock held by a thread that this process, which was just forked, does not have,
    /// and makes whole what that thread was changing. Only what it had in hand is lost. `visited`
    /// is the request that this thread visits: visitors that are not there keep nobody waiting.
    /// `drawn_bytes` is what its cache has drawn from the credit.
    ///
    /// # Safety
    /// This is the only thread of the process.
    pub unsafe fn recover(&self, visited: *const Control, drawn_bytes: usize) {
        // SAFETY: the caller's contract, for each of them.
        unsafe {
            self.pages.space.recover();
            self.store.recover();
            self.setup.recover(|is_done, _| *is_done = self.identity.is_chosen());
            self.mappings.recover(&self.pages);
            self.adopted.recover();
            self.controls.recover(visited);
            self.credit.recover(drawn_bytes);
        }
        self.process.recover();
    }
}
